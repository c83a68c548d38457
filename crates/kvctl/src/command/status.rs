//! `status`.

use kv_client::{Client, Error, NodeAnswer, v1};
use serde::Serialize;

use super::{Ended, hash_text, or_dash, role_word};
use crate::args::Format;
use crate::bytes_text::harmless;
use crate::console::Console;
use crate::failure::Exit;

#[derive(Debug, Serialize)]
struct StatusJson {
    nodes: Vec<NodeJson>,
}

#[derive(Debug, Serialize)]
struct NodeJson {
    node: Option<u64>,
    endpoint: String,
    up: bool,
    ready: bool,
    version: Option<String>,
    cluster: Option<String>,
    incarnation: Option<String>,
    uptime_ms: Option<u64>,
    /// The shortest; the longest is twice this.
    election_timeout_ms: Option<u64>,
    /// How it dials its peers: `direct`, `proxy` or `mixed`.
    peer_path: Option<&'static str>,
    peers: Vec<PeerJson>,
    replicas: Vec<ReplicaJson>,
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct PeerJson {
    node: u64,
    addr: String,
    connected: bool,
    last_contact_ms: Option<u64>,
    suspect: bool,
    proxy: Option<String>,
}

#[derive(Debug, Serialize)]
struct ReplicaJson {
    shard: u32,
    role: &'static str,
    epoch: u64,
    leader: Option<u64>,
    commit: u64,
    applied: u64,
    last: u64,
    state_hash: Option<String>,
    lease_ms: u64,
    damage: Option<String>,
}

pub(crate) async fn run(client: &Client, console: &mut Console) -> Ended {
    let answers = client.status().await;
    if let Some(error) = nobody_answered(&answers) {
        return Err(error.into());
    }
    if console.format == Format::Json {
        let nodes = answers.into_iter().map(NodeJson::from).collect();
        console.json(&StatusJson { nodes })?;
        return Ok(Exit::Ok);
    }
    let head = ["NODE", "ENDPOINT", "STATE", "SHARD", "ROLE", "EPOCH", "COMMIT", "APPLIED", "LEASE_MS"];
    let nodes: Vec<_> = answers.into_iter().map(NodeJson::from).collect();
    let paths = nodes.iter().filter_map(|node| node.peer_path);
    let path = paths.reduce(|all, one| if all == one { all } else { MIXED }).unwrap_or(DIRECT);
    console.rows(&head, nodes.into_iter().flat_map(NodeJson::rows).collect())?;
    console.line(&format!("peer path: {path}"))?;
    Ok(Exit::Ok)
}

/// The first failure, if there are only failures.
pub(super) fn nobody_answered<T>(answers: &[NodeAnswer<T>]) -> Option<Error> {
    if answers.iter().any(|answer| answer.answer.is_ok()) {
        return None;
    }
    answers.iter().find_map(|answer| answer.answer.as_ref().err().cloned())
}

impl NodeJson {
    /// A line for each replica; one line if there is none.
    fn rows(self) -> Vec<Vec<String>> {
        let state = match (self.up, self.ready) {
            (true, true) => "up",
            (true, false) => "starting",
            (false, _) => "down",
        };
        let first = vec![or_dash(self.node), harmless(&self.endpoint)];
        let of = |replica: &ReplicaJson| {
            vec![
                if replica.damage.is_some() { "damaged" } else { state }.to_owned(),
                replica.shard.to_string(),
                replica.role.to_owned(),
                replica.epoch.to_string(),
                replica.commit.to_string(),
                replica.applied.to_string(),
                replica.lease_ms.to_string(),
            ]
        };
        if self.replicas.is_empty() {
            return vec![[first, vec![state.to_owned()], vec!["-".to_owned(); 6]].concat()];
        }
        self.replicas.iter().map(|replica| [first.clone(), of(replica)].concat()).collect()
    }
}

impl From<NodeAnswer<v1::StatusReply>> for NodeJson {
    fn from(answer: NodeAnswer<v1::StatusReply>) -> Self {
        let NodeAnswer { node, endpoint, answer } = answer;
        let node = node.map(kv_types::NodeId::get);
        match answer {
            Ok(status) => Self {
                node: Some(status.node),
                endpoint,
                up: true,
                ready: status.ready,
                version: Some(status.version),
                cluster: Some(status.cluster),
                incarnation: Some(format!("{:016x}", status.incarnation)),
                uptime_ms: Some(status.uptime_ms),
                election_timeout_ms: Some(status.election_timeout_ms),
                peer_path: Some(peer_path(&status.peers)),
                peers: status.peers.into_iter().map(PeerJson::from).collect(),
                replicas: status.replicas.into_iter().map(ReplicaJson::from).collect(),
                error: None,
            },
            Err(error) => Self {
                node,
                endpoint,
                up: false,
                ready: false,
                version: None,
                cluster: None,
                incarnation: None,
                uptime_ms: None,
                election_timeout_ms: None,
                peer_path: None,
                peers: Vec::new(),
                replicas: Vec::new(),
                error: Some(error.to_string()),
            },
        }
    }
}

const DIRECT: &str = "direct";
const MIXED: &str = "mixed";

/// How a node dials its peers.
fn peer_path(peers: &[v1::PeerStatus]) -> &'static str {
    match peers.iter().filter(|peer| !peer.proxy.is_empty()).count() {
        0 => DIRECT,
        some if some == peers.len() => "proxy",
        _ => MIXED,
    }
}

impl From<v1::PeerStatus> for PeerJson {
    fn from(peer: v1::PeerStatus) -> Self {
        let v1::PeerStatus { node, addr, connected, last_contact_ms, suspect, proxy } = peer;
        let proxy = Some(proxy).filter(|proxy| !proxy.is_empty());
        Self { node, addr, connected, last_contact_ms, suspect, proxy }
    }
}

impl From<v1::ReplicaStatus> for ReplicaJson {
    fn from(replica: v1::ReplicaStatus) -> Self {
        Self {
            shard: replica.shard,
            role: role_word(replica.role),
            epoch: replica.epoch,
            leader: (replica.leader > 0).then_some(replica.leader),
            commit: replica.commit,
            applied: replica.applied,
            last: replica.last,
            state_hash: hash_text(&replica.state_hash),
            lease_ms: replica.lease_ms,
            damage: (!replica.damage.is_empty()).then_some(replica.damage),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_their_shape() {
        let replica = v1::ReplicaStatus {
            shard: 1,
            role: v1::Role::Leader.into(),
            epoch: 4,
            leader: 2,
            commit: 9,
            applied: 8,
            last: 9,
            state_hash: vec![0xab; 2].into(),
            lease_ms: 300,
            damage: String::new(),
        };
        let peer = v1::PeerStatus {
            node: 3,
            addr: "h:1".into(),
            connected: true,
            proxy: "p:1".into(),
            ..v1::PeerStatus::default()
        };
        let status = v1::StatusReply {
            node: 2,
            version: "0.1.0".into(),
            cluster: "c".into(),
            incarnation: 255,
            uptime_ms: 5,
            replicas: vec![replica],
            peers: vec![peer],
            ready: true,
            election_timeout_ms: 500,
            ..v1::StatusReply::default()
        };
        let answer = NodeAnswer { node: None, endpoint: "h:2".into(), answer: Ok(status) };
        let json = StatusJson { nodes: vec![NodeJson::from(answer)] };
        assert_eq!(
            serde_json::to_string(&json).unwrap(),
            concat!(
                r#"{"nodes":[{"node":2,"endpoint":"h:2","up":true,"ready":true,"version":"0.1.0","cluster":"c","#,
                r#""incarnation":"00000000000000ff","uptime_ms":5,"election_timeout_ms":500,"peer_path":"proxy","#,
                r#""peers":[{"node":3,"addr":"h:1","connected":true,"last_contact_ms":null,"suspect":false,"#,
                r#""proxy":"p:1"}],"#,
                r#""replicas":[{"shard":1,"role":"leader","epoch":4,"leader":2,"commit":9,"applied":8,"last":9,"#,
                r#""state_hash":"abab","lease_ms":300,"damage":null}],"error":null}]}"#
            )
        );
    }
}
