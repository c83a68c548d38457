//! A whole cluster in one process on loopback: the newcomer's first command.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use kv_chaos::{Server, ServerError, Wanted, cluster_links};
use kv_fault::{End, Link};
use kv_types::NodeId;

use crate::config::{ConfigError, Flags, split_keys};
use crate::listeners::Listeners;
use crate::logging::LogControl;
use crate::node::Node;
use crate::node_error::NodeError;

/// Small segments: five nodes write theirs with zeros before the cluster is ready.
const WAL_SEGMENT_BYTES: u64 = 24 << 20;

/// What a development cluster is made of.
#[derive(Clone, Debug)]
pub struct DevCluster {
    /// How many nodes.
    pub nodes: u64,
    /// How many shards besides the meta group.
    pub shards: u64,
    /// Node n serves clients on this port + n, peers 100 and HTTP 200 above; 0 is any.
    pub base_port: u16,
    /// Nodes dial each other through a chaos proxy, which is controlled 500 above; its links are described at
    /// [`cluster_links`].
    pub chaos: bool,
}

/// A development cluster that runs.
#[derive(Debug)]
pub struct Running {
    /// Its nodes, in order.
    pub nodes: Vec<Node>,
    /// Its proxy, if it has one.
    pub chaos: Option<Server>,
}

/// Why a development cluster does not start.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// What was asked for makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A node does not start.
    #[error("n{node}: {cause}")]
    Node {
        /// The node.
        node: u64,
        /// Why.
        cause: NodeError,
    },
    /// The chaos proxy does not start.
    #[error("the chaos proxy: {0}")]
    Chaos(#[from] ServerError),
    /// A port would be above 65535.
    #[error("--base-port {0} leaves no room for the ports of all nodes")]
    Ports(u16),
}

impl DevCluster {
    /// Starts all nodes; each keeps its data in a directory of its own below `dir`.
    ///
    /// # Errors
    /// [`DevError`] names the node.
    pub async fn start(&self, dir: &Path, log: &LogControl) -> Result<Running, DevError> {
        let failed = |node| move |cause| DevError::Node { node, cause };
        let mut bound = Vec::new();
        let (mut members, mut clients) = (BTreeMap::new(), BTreeMap::new());
        for node in 1..=self.nodes {
            let [client, peer, http] = self.addresses(node)?;
            let listeners = Listeners::bind(client, peer, http).await.map_err(failed(node))?;
            let (client, peer, _) = listeners
                .addresses()
                .map_err(|cause| failed(node)(NodeError::Os { doing: "read an address", cause }))?;
            members.insert(NodeId::new(node), peer.to_string());
            clients.insert(NodeId::new(node), client.to_string());
            bound.push((node, listeners));
        }
        let chaos = if self.chaos { Some(self.proxy(&members, &clients).await?) } else { None };
        let listed: Vec<String> =
            members.iter().map(|(node, addr)| format!("{}={addr}", node.get())).collect();
        let mut starting = Vec::new();
        for (node, listeners) in bound {
            let flags = Flags {
                node_id: Some(node),
                data_dir: Some(dir.join(format!("n{node}"))),
                cluster: Some("dev".to_owned()),
                initial_members: Some(listed.join(",")),
                peer_proxies: chaos.as_ref().map(|chaos| proxies(chaos, NodeId::new(node))),
                disk_free_min_mb: Some(0),
                ..Flags::default()
            };
            let mut config = flags.check()?;
            config.shards = split_keys(&split_points(self.shards).join(","))?;
            let share = usize::try_from(self.nodes).unwrap_or(1).max(1);
            config.memtable_bytes /= share;
            config.cache_bytes /= share as u64;
            config.wal_segment_bytes = WAL_SEGMENT_BYTES;
            config.ballast_bytes = 0;
            starting.push((node, tokio::spawn(Node::start(config, listeners, log.clone()))));
        }
        let mut nodes = Vec::new();
        for (node, starting) in starting {
            let started =
                starting.await.map_err(|cause| failed(node)(NodeError::Fatal(cause.to_string())))?;
            nodes.push(started.map_err(failed(node))?);
        }
        Ok(Running { nodes, chaos })
    }

    async fn proxy(
        &self,
        peers: &BTreeMap<NodeId, String>,
        clients: &BTreeMap<NodeId, String>,
    ) -> Result<Server, DevError> {
        let above = |above: u16| match self.base_port {
            0 => Ok(0),
            base => base.checked_add(above).ok_or(DevError::Ports(base)),
        };
        let ip = Ipv4Addr::LOCALHOST;
        let links: Vec<Wanted> =
            cluster_links(ip.into(), above(500)?, (peers, clients)).map_err(ServerError::from)?;
        let at = |port| SocketAddr::from((ip, port));
        Ok(Server::start(links, 1, (at(above(500)?), at(above(599)?))).await?)
    }

    fn addresses(&self, node: u64) -> Result<[SocketAddr; 3], DevError> {
        let port = |above: u64| match self.base_port {
            0 => Ok(0),
            base => u16::try_from(u64::from(base) + above + node).map_err(|_| DevError::Ports(base)),
        };
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Ok([at(port(0)?), at(port(100)?), at(port(200)?)])
    }
}

/// Where a node dials its peers, as the flag wants it.
fn proxies(chaos: &Server, from: NodeId) -> String {
    let of = |(link, addr): (Link, SocketAddr)| match link.to {
        End::Node(to) if link.from == End::Node(from) => Some(format!("{}={addr}", to.get())),
        End::Node(_) | End::Clients => None,
    };
    chaos.proxy().links().filter_map(of).collect::<Vec<_>>().join(",")
}

/// Keys that split the letters evenly: `g n t` for four shards.
fn split_points(shards: u64) -> Vec<String> {
    let letter = |nth: u64| {
        let offset = nth * 26 / shards.max(1);
        let letter = u8::try_from(offset.min(25)).map_or('z', |offset| char::from(b'a' + offset));
        letter.to_string()
    };
    let mut points: Vec<String> = (1..shards).map(letter).collect();
    points.dedup();
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_shards_split_at_g_n_t() {
        assert_eq!(split_points(4), ["g", "n", "t"]);
        assert!(split_points(1).is_empty());
    }
}
