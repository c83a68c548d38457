//! A cluster of processes on loopback, with a chaos proxy on every link, for one run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kv_fault::{End, Link};
use kv_types::NodeId;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::error::RunError;
use crate::process::Process;
use crate::{ports, programs};

/// Between two looks at a process.
const LOOK: Duration = Duration::from_millis(50);

/// How long a process may take until it is ready: a node writes its first WAL segment with zeros.
const READY_MAX: Duration = Duration::from_secs(60);

/// Processes, their data and their logs. They die with the value, and all that they have written is removed.
#[derive(Debug)]
pub(crate) struct Local {
    program: PathBuf,
    proxy: Process,
    control: String,
    /// Where the proxy listens for each link.
    links: BTreeMap<Link, String>,
    nodes: BTreeMap<NodeId, Node>,
    shards: u32,
    memtable_mb: u64,
    /// The name of the cluster.
    name: String,
    /// Whether clients are told to dial nodes at the proxy.
    advertises_proxy: bool,
    /// Removed after the processes have ended: they write there.
    dir: TempDir,
}

#[derive(Debug)]
struct Node {
    client: u16,
    peer: u16,
    http: u16,
    process: Option<Process>,
    is_paused: bool,
    /// Whether it had ended by itself when it was to be killed.
    was_dead: bool,
    /// Whether its data was removed: its id is spent then, and it stops as soon as the others tell it so.
    is_wiped: bool,
}

impl Node {
    fn running(&mut self, id: NodeId) -> Result<&mut Process, RunError> {
        self.process.as_mut().ok_or_else(|| RunError::Cluster(format!("{id} does not run")))
    }
}

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// The name of the drill.
    pub(crate) name: String,
    /// How many nodes.
    pub(crate) nodes: u32,
    /// How many shards beside the meta group.
    pub(crate) shards: u32,
    /// Memory of a node for rows that are not merged yet, in MiB.
    pub(crate) memtable_mb: u64,
    /// Whether clients go through the proxy.
    pub(crate) through_proxy: bool,
    /// What the proxy draws its lots from.
    pub(crate) seed: u64,
}

fn at(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

impl Local {
    /// Starts the proxy and the nodes, and waits until all are ready.
    pub(crate) async fn start(shape: Shape) -> Result<Self, RunError> {
        let (program, proxy) = (programs::path_of("kvnode")?, programs::path_of("kvchaos")?);
        let dir = tempfile::Builder::new().prefix("quorate-drill-").tempdir();
        let dir = dir.map_err(RunError::system("cannot make a temporary folder"))?;
        let nodes = choose_ports(shape.nodes)?;
        let list = |port: fn(&Node) -> u16| {
            let each = nodes.iter().map(|(id, node)| format!("{}={}", id.get(), at(port(node))));
            each.collect::<Vec<_>>().join(",")
        };
        let args = [
            "serve".to_owned(),
            format!("--peers={}", list(|node| node.peer)),
            format!("--clients={}", list(|node| node.client)),
            "--base-port=0".to_owned(),
            "--control-addr=127.0.0.1:0".to_owned(),
            "--http-addr=127.0.0.1:0".to_owned(),
            format!("--seed={}", shape.seed),
        ];
        let mut proxy = Process::spawn(&proxy, &args, &dir.path().join("chaos.log"))?;
        let ready = proxy.says("ready control=", READY_MAX).await?;
        let control = ready.trim_start_matches("ready control=").split(' ').next().unwrap_or_default();
        let links = listed(&proxy.output()?);
        let mut local = Self {
            control: control.to_owned(),
            dir,
            program,
            proxy,
            links,
            nodes,
            shards: shape.shards,
            memtable_mb: shape.memtable_mb,
            name: format!("drill-{}", shape.name),
            advertises_proxy: shape.through_proxy,
        };
        for node in local.ids() {
            local.launch(node)?;
        }
        for node in local.ids() {
            local.await_ready(node).await?;
        }
        Ok(local)
    }

    /// All nodes.
    pub(crate) fn ids(&self) -> BTreeSet<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// Where the proxy is controlled.
    pub(crate) fn control(&self) -> &str {
        &self.control
    }

    /// The client addresses of the nodes, past the proxy.
    pub(crate) fn direct(&self) -> BTreeMap<NodeId, String> {
        self.nodes.iter().map(|(id, node)| (*id, at(node.client))).collect()
    }

    /// Where clients dial the nodes.
    pub(crate) fn dialled(&self) -> BTreeMap<NodeId, String> {
        let dialled = |(id, node): (&NodeId, &Node)| {
            let proxied = self.links.get(&Link { from: End::Clients, to: End::Node(*id) });
            let proxied = proxied.filter(|_| self.advertises_proxy);
            (*id, proxied.cloned().unwrap_or_else(|| at(node.client)))
        };
        self.nodes.iter().map(dialled).collect()
    }

    /// Starts a node without waiting for it; one that runs goes on.
    pub(crate) fn launch(&mut self, id: NodeId) -> Result<(), RunError> {
        let args = self.serve_args(id);
        let (program, log) = (self.program.clone(), self.log(id));
        let node = self.node(id)?;
        if node.process.is_none() {
            node.process = Some(Process::spawn(&program, &args, &log)?);
            node.is_paused = false;
        }
        Ok(())
    }

    /// Waits until a node that was started serves.
    pub(crate) async fn await_ready(&mut self, id: NodeId) -> Result<(), RunError> {
        match self.node(id)?.process.as_mut() {
            Some(process) => process.says(&format!("ready node={} ", id.get()), READY_MAX).await.map(drop),
            None => Err(RunError::Cluster(format!("{id} does not run"))),
        }
    }

    /// SIGKILL; one that does not run stays so.
    pub(crate) async fn kill(&mut self, id: NodeId) -> Result<(), RunError> {
        let node = self.node(id)?;
        node.is_paused = false;
        match node.process.take() {
            Some(mut process) => {
                node.was_dead |= !node.is_wiped && process.ended()?.is_some();
                process.kill().await
            }
            None => Ok(()),
        }
    }

    /// SIGKILL, and its data is removed.
    pub(crate) async fn wipe(&mut self, id: NodeId) -> Result<(), RunError> {
        self.kill(id).await?;
        self.node(id)?.is_wiped = true;
        let data = self.data(id);
        match std::fs::remove_dir_all(&data) {
            Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
                Err(RunError::System { what: format!("cannot remove {}", data.display()), cause })
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// SIGKILL, and the base of every shard is overwritten: what the node has on its disk beside its log is of no use.
    pub(crate) async fn damage(&mut self, id: NodeId) -> Result<(), RunError> {
        self.kill(id).await?;
        for base in self.bases(id)? {
            let what = format!("cannot damage {}", base.display());
            std::fs::write(base, b"damaged on purpose").map_err(RunError::system(what))?;
        }
        Ok(())
    }

    /// The files that hold a node's rows.
    pub(crate) fn bases(&self, id: NodeId) -> Result<Vec<PathBuf>, RunError> {
        let data = self.data(id);
        let unreadable = || format!("cannot look for rows in {}", data.display());
        let mut bases = Vec::new();
        let mut folders = vec![data.clone()];
        while let Some(folder) = folders.pop() {
            let entries = match std::fs::read_dir(&folder) {
                Ok(entries) => entries,
                // A generation may go while its node runs.
                Err(gone) if gone.kind() == std::io::ErrorKind::NotFound => continue,
                Err(cause) => return Err(RunError::system(unreadable())(cause)),
            };
            for entry in entries {
                let path = entry.map_err(RunError::system(unreadable()))?.path();
                let name = folder.file_name().and_then(|name| name.to_str());
                let is_of_generation = name.is_some_and(|name| name.starts_with("gen-"));
                if path.is_dir() {
                    folders.push(path);
                } else if is_of_generation && path.ends_with("db") {
                    bases.push(path);
                }
            }
        }
        Ok(bases)
    }

    /// SIGSTOP; returns when it stands still.
    pub(crate) async fn pause(&mut self, id: NodeId) -> Result<(), RunError> {
        let node = self.node(id)?;
        node.is_paused = true;
        node.running(id)?.pause().await
    }

    /// SIGCONT.
    pub(crate) fn resume(&mut self, id: NodeId) -> Result<(), RunError> {
        let node = self.node(id)?;
        node.is_paused = false;
        node.running(id)?.signal(Signal::CONT)
    }

    /// The nodes that are down.
    pub(crate) fn down(&self) -> Vec<NodeId> {
        self.nodes.iter().filter(|(_, node)| node.process.is_none()).map(|(id, _)| *id).collect()
    }

    /// The nodes that stand still.
    pub(crate) fn paused(&self) -> Vec<NodeId> {
        self.nodes.iter().filter(|(_, node)| node.is_paused).map(|(id, _)| *id).collect()
    }

    /// Waits until the nodes that were wiped and started again have ended, as they must: their ids are spent. Those that go on.
    pub(crate) async fn outlive_their_disks(&mut self, patience: Duration) -> Result<Vec<NodeId>, RunError> {
        let deadline = Instant::now() + patience;
        loop {
            let mut alive = Vec::new();
            for (id, node) in &mut self.nodes {
                if let Some(process) = node.process.as_mut().filter(|_| node.is_wiped)
                    && process.ended()?.is_none()
                {
                    alive.push(*id);
                }
            }
            if alive.is_empty() || Instant::now() >= deadline {
                return Ok(alive);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The nodes that ended by themselves: those that should not have, and those that were wiped before, which should.
    pub(crate) fn died(&mut self) -> (Vec<NodeId>, Vec<NodeId>) {
        let (mut died, mut left) = (Vec::new(), Vec::new());
        for (id, node) in &mut self.nodes {
            if node.was_dead {
                died.push(*id);
                continue;
            }
            if let Some(process) = &mut node.process
                && matches!(process.ended(), Ok(Some(_)))
            {
                if node.is_wiped { left.push(*id) } else { died.push(*id) }
            }
        }
        (died, left)
    }

    /// Whether a node ever panicked, by its log.
    pub(crate) fn panicked(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().filter(|id| has_panicked(&self.log(*id))).collect()
    }

    /// What is wrong with the proxy, if anything is.
    pub(crate) fn proxy_failed(&mut self) -> Result<Option<String>, RunError> {
        let log = self.dir.path().join("chaos.log");
        let ended = self.proxy.ended()?;
        let ended = ended.map(|status| format!("the chaos proxy ended by itself ({status}): see its log"));
        Ok(ended.or_else(|| has_panicked(&log).then(|| "the chaos proxy panicked: see its log".to_owned())))
    }

    /// Copies the logs of all processes.
    pub(crate) fn keep_logs(&self, to: &Path) -> Result<(), RunError> {
        let copy = |from: PathBuf, name: String| {
            let copied = std::fs::copy(&from, to.join(name));
            copied.map(drop).map_err(RunError::system(format!("cannot copy {}", from.display())))
        };
        copy(self.dir.path().join("chaos.log"), "chaos.log".to_owned())?;
        self.nodes.keys().try_for_each(|id| copy(self.log(*id), format!("{id}.log")))
    }

    /// Ends all processes.
    pub(crate) async fn stop(&mut self) -> Result<(), RunError> {
        let mut first = Ok(());
        for id in self.ids() {
            first = first.and(self.kill(id).await);
        }
        first.and(self.proxy.kill().await)
    }

    fn node(&mut self, id: NodeId) -> Result<&mut Node, RunError> {
        self.nodes.get_mut(&id).ok_or_else(|| RunError::Cluster(format!("there is no node {id}")))
    }

    fn data(&self, id: NodeId) -> PathBuf {
        self.dir.path().join(format!("{id}.data"))
    }

    fn log(&self, id: NodeId) -> PathBuf {
        self.dir.path().join(format!("{id}.log"))
    }

    fn serve_args(&self, id: NodeId) -> Vec<String> {
        let members = self.nodes.iter().map(|(id, node)| format!("{}={}", id.get(), at(node.peer)));
        let proxies = self.nodes.keys().filter_map(|other| {
            let listen = self.links.get(&Link::between(id, *other))?;
            Some(format!("{}={listen}", other.get()))
        });
        let mut args = vec![
            "serve".to_owned(),
            format!("--node-id={}", id.get()),
            format!("--data-dir={}", self.data(id).display()),
            format!("--cluster={}", self.name),
            format!("--initial-members={}", members.collect::<Vec<_>>().join(",")),
            format!("--peer-proxies={}", proxies.collect::<Vec<_>>().join(",")),
            format!("--split-keys={}", split_keys(self.shards)),
            format!("--memtable-mb={}", self.memtable_mb),
            // The disk of whoever plays a drill may be nearly full: that is no part of it.
            "--disk-free-min-mb=0".to_owned(),
        ];
        if let Some(node) = self.nodes.get(&id) {
            args.push(format!("--client-addr={}", at(node.client)));
            args.push(format!("--peer-addr={}", at(node.peer)));
            args.push(format!("--http-addr={}", at(node.http)));
        }
        if self.advertises_proxy
            && let Some(listen) = self.links.get(&Link { from: End::Clients, to: End::Node(id) })
        {
            args.push(format!("--advertise-client={listen}"));
        }
        args
    }
}

fn has_panicked(log: &Path) -> bool {
    String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).contains("panicked at")
}

/// Where the first key of each shard but the first is: `02,03` for three.
fn split_keys(shards: u32) -> String {
    (2..=shards).fold(String::new(), |mut keys, shard| {
        let comma = if keys.is_empty() { "" } else { "," };
        // Writing to a text does not fail.
        let _ = write!(keys, "{comma}{shard:02}");
        keys
    })
}

/// The lines `link n1->n2 127.0.0.1:40001` of the proxy.
fn listed(output: &str) -> BTreeMap<Link, String> {
    let lines = output.lines().filter_map(|line| line.strip_prefix("link ")?.split_once(' '));
    lines.filter_map(|(link, listen)| Some((link.parse().ok()?, listen.trim().to_owned()))).collect()
}

fn choose_ports(nodes: u32) -> Result<BTreeMap<NodeId, Node>, RunError> {
    let each = usize::try_from(nodes).unwrap_or(usize::MAX);
    let free = ports::free(each.saturating_mul(3))?;
    let chosen = free.chunks_exact(3).zip(1..).filter_map(|(chunk, id)| {
        let [client, peer, http] = *<&[u16; 3]>::try_from(chunk).ok()?;
        Some((
            NodeId::new(id),
            Node { client, peer, http, process: None, is_paused: false, was_dead: false, is_wiped: false },
        ))
    });
    Ok(chosen.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_begin_at_two_digits() {
        assert_eq!(split_keys(1), "");
        assert_eq!(split_keys(4), "02,03,04");
        assert!(split_keys(63).ends_with(",63"));
    }

    #[test]
    fn links_are_read_from_what_the_proxy_says() {
        let said = "link n1->n2 127.0.0.1:5\nlink clients->n1 127.0.0.1:6\nready control=x http=y\n";
        let links = listed(said);
        assert_eq!(links.get(&"n1->n2".parse().unwrap()).unwrap(), "127.0.0.1:5");
        assert_eq!(links.get(&"clients->n1".parse().unwrap()).unwrap(), "127.0.0.1:6");
        assert_eq!(links.len(), 2);
    }
}
