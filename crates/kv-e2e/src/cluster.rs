//! A cluster of real processes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use kv_client::{Client, Config, v1};
use kv_types::{ShardId, Term};
use rustix::process::Signal;
use tempfile::TempDir;

use kv_drill::Process;

use crate::reserved::{Ports, Reserved};
use crate::turn::Turn;
use crate::{binaries, http, wait};

/// How long a node may take until it is ready: it writes its first WAL segment with zeros.
const READY_MAX: Duration = Duration::from_secs(60);

/// How long an orderly stop may take.
const STOP_MAX: Duration = Duration::from_secs(20);

/// How long the replicas may take to hold the same when nobody writes.
const AGREE_MAX: Duration = Duration::from_secs(60);

/// Lines of each log that are printed when a test fails.
const TAIL_LINES: usize = 15;

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many nodes form the cluster.
    pub nodes: u64,
    /// How many more may join it; their ids follow.
    pub spare: u64,
    /// Where its shards are split.
    pub split_keys: String,
    /// Further flags of every node.
    pub flags: Vec<String>,
    /// Whether another test's cluster may run beside it: nothing that is asserted is a time, a rate or an amount of memory.
    pub beside: bool,
}

impl Default for Options {
    fn default() -> Self {
        // The disk of a test machine may be nearly full: that is no part of most tests.
        Self {
            nodes: 5,
            spare: 0,
            split_keys: "g,n,t".to_owned(),
            flags: vec!["--disk-free-min-mb=0".to_owned()],
            beside: false,
        }
    }
}

impl Options {
    /// A cluster that does not mind another one beside it.
    #[must_use]
    pub fn beside() -> Self {
        Self { beside: true, ..Self::default() }
    }

    /// With a further flag, such as `--wal-mb=192`. A flag may be given once: one of the same name is replaced.
    #[must_use]
    pub fn flag(mut self, flag: &str) -> Self {
        let name = flag.split('=').next().unwrap_or(flag);
        self.flags.retain(|given| given.split('=').next() != Some(name));
        self.flags.push(flag.to_owned());
        self
    }
}

/// One shard as its leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Led {
    /// The node that leads.
    pub leader: u64,
    /// Its epoch.
    pub epoch: Term,
}

/// Processes, their data and their logs.
#[derive(Debug)]
pub struct Cluster {
    options: Options,
    ports: Reserved,
    running: BTreeMap<u64, Process>,
    dir: TempDir,
    finished: bool,
    _turn: Turn,
}

impl Cluster {
    /// A cluster none of whose nodes runs yet.
    ///
    /// # Errors
    /// If there are no free ports or no temporary directory.
    pub fn prepare(options: Options) -> anyhow::Result<Self> {
        let turn = if options.beside { Turn::share() } else { Turn::take() }?;
        let dir = tempfile::Builder::new().prefix("quorate-e2e-").tempdir()?;
        let ports = Reserved::take(options.nodes + options.spare)?;
        Ok(Self { options, ports, running: BTreeMap::new(), dir, finished: false, _turn: turn })
    }

    /// A cluster all of whose nodes are ready.
    ///
    /// # Errors
    /// If one does not start.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let mut cluster = Self::prepare(options)?;
        cluster.start_nodes(&cluster.all()).await?;
        Ok(cluster)
    }

    /// The ids of all nodes that form the cluster.
    pub fn all(&self) -> Vec<u64> {
        (1..=self.options.nodes).collect()
    }

    /// Starts a spare node that asks a member to be taken in, and waits until it serves.
    ///
    /// # Errors
    /// If it does not.
    pub async fn join(&mut self, node: u64, via: u64, flags: &[&str]) -> anyhow::Result<()> {
        let asked = self.ports.nodes.get(&via).with_context(|| format!("there is no node {via}"))?.peer;
        let mut args = self.serve_args(node)?;
        args.retain(|arg| !arg.starts_with("--initial-members") && !arg.starts_with("--split-keys"));
        args.push(format!("--join=127.0.0.1:{asked}"));
        args.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let process = Process::spawn(&binaries::path_of("kvnode")?, &args, &self.log(node))?;
        self.running.insert(node, process);
        self.process(node)?.says(&format!("ready node={node} "), READY_MAX).await?;
        Ok(())
    }

    /// Starts a node without waiting for it.
    ///
    /// # Errors
    /// If the process cannot be started.
    pub fn launch(&mut self, node: u64) -> anyhow::Result<()> {
        self.launch_with(node, &[])
    }

    /// Starts a node, with some flags instead of those of the same name, without waiting for it.
    ///
    /// # Errors
    /// If the process cannot be started.
    pub fn launch_with(&mut self, node: u64, flags: &[&str]) -> anyhow::Result<()> {
        let name = |flag: &str| flag.split('=').next().unwrap_or_default().to_owned();
        let mut args = self.serve_args(node)?;
        args.retain(|arg| flags.iter().all(|flag| name(flag) != name(arg)));
        args.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let process = Process::spawn(&binaries::path_of("kvnode")?, &args, &self.log(node))?;
        self.running.insert(node, process);
        Ok(())
    }

    /// Starts nodes together and waits until all of them are ready.
    ///
    /// # Errors
    /// If one does not get ready.
    pub async fn start_nodes(&mut self, nodes: &[u64]) -> anyhow::Result<()> {
        for node in nodes {
            self.launch(*node)?;
        }
        for node in nodes {
            let said = self.process(*node)?.says(&format!("ready node={node} "), READY_MAX).await;
            said.with_context(|| format!("node {node}"))?;
        }
        Ok(())
    }

    /// The command line of a node.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn serve_args(&self, node: u64) -> anyhow::Result<Vec<String>> {
        let at = |port: u16| format!("127.0.0.1:{port}");
        let ports = self.ports.nodes.get(&node).with_context(|| format!("there is no node {node}"))?;
        let mut args = vec![
            "serve".to_owned(),
            format!("--node-id={node}"),
            format!("--data-dir={}", self.data_dir(node).display()),
            "--cluster=e2e".to_owned(),
            format!("--client-addr={}", at(ports.client)),
            format!("--peer-addr={}", at(ports.peer)),
            format!("--http-addr={}", at(ports.http)),
            format!("--initial-members={}", self.members()),
            format!("--split-keys={}", self.options.split_keys),
        ];
        args.extend(self.options.flags.iter().cloned());
        Ok(args)
    }

    /// The initial members, as the flag wants them.
    pub fn members(&self) -> String {
        let member = |(node, ports): (&u64, &Ports)| format!("{node}=127.0.0.1:{}", ports.peer);
        let founders = self.ports.nodes.iter().filter(|(node, _)| **node <= self.options.nodes);
        founders.map(member).collect::<Vec<_>>().join(",")
    }

    /// The process of a running node.
    ///
    /// # Errors
    /// If it was not started.
    pub fn process(&mut self, node: u64) -> anyhow::Result<&mut Process> {
        self.running.get_mut(&node).with_context(|| format!("node {node} does not run"))
    }

    /// Takes in a node that the caller has started.
    pub fn adopt(&mut self, node: u64, process: Process) {
        self.running.insert(node, process);
    }

    /// A node has ended by itself, as it should.
    pub fn forget(&mut self, node: u64) {
        self.running.remove(&node);
    }

    /// The process ids of all running nodes.
    pub fn pids(&self) -> Vec<u32> {
        self.running.values().map(Process::pid).collect()
    }

    /// The counter or gauge `quorate_NAME` of a node.
    ///
    /// # Errors
    /// If the node does not answer or has no such metric.
    pub async fn metric(&self, node: u64, name: &str) -> anyhow::Result<u64> {
        let (_, page) = http::get(self.http_port(node)?, "/metrics").await?;
        let wanted = format!("quorate_{name} ");
        let found = page.lines().find_map(|line| line.strip_prefix(&wanted));
        found.and_then(|number| number.parse().ok()).with_context(|| format!("no {wanted}in {page}"))
    }

    /// Waits until a metric of a node is at least 1.
    ///
    /// # Errors
    /// If that takes longer than `limit`.
    pub async fn counted(&self, node: u64, name: &str, limit: Duration) -> anyhow::Result<()> {
        self.counted_to(1, node, name, limit).await
    }

    /// Waits until a metric of a node is at least `least`.
    ///
    /// # Errors
    /// If that takes longer than `limit`.
    pub async fn counted_to(&self, least: u64, node: u64, name: &str, limit: Duration) -> anyhow::Result<()> {
        let look = || async {
            let count = self.metric(node, name).await.map_err(|cause| cause.to_string())?;
            if count >= least { Ok(()) } else { Err(count.to_string()) }
        };
        wait::until(name, limit, look).await
    }

    /// SIGKILL to all of these at once.
    ///
    /// # Errors
    /// If one does not run.
    pub async fn kill(&mut self, nodes: &[u64]) -> anyhow::Result<()> {
        for node in nodes {
            self.process(*node)?.signal(Signal::KILL)?;
        }
        for node in nodes {
            let mut process = self.running.remove(node).context("it was signalled")?;
            process.kill().await?;
        }
        Ok(())
    }

    /// SIGTERM to all of these at once; their exit statuses.
    ///
    /// # Errors
    /// If one does not run or does not end.
    pub async fn stop(&mut self, nodes: &[u64]) -> anyhow::Result<Vec<ExitStatus>> {
        for node in nodes {
            self.process(*node)?.signal(Signal::TERM)?;
        }
        let mut ended = Vec::new();
        for node in nodes {
            let mut process = self.running.remove(node).context("it was signalled")?;
            ended.push(process.ends(STOP_MAX).await.with_context(|| format!("node {node}"))?);
        }
        Ok(ended)
    }

    /// SIGSTOP; returns when all of them stand still.
    ///
    /// # Errors
    /// If one does not run.
    pub async fn pause(&mut self, nodes: &[u64]) -> anyhow::Result<()> {
        for node in nodes {
            self.process(*node)?.pause().await?;
        }
        Ok(())
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// If one does not run.
    pub fn resume(&mut self, nodes: &[u64]) -> anyhow::Result<()> {
        nodes.iter().try_for_each(|node| Ok(self.process(*node)?.signal(Signal::CONT)?))
    }

    /// Removes the data of a node that does not run.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn wipe(&mut self, node: u64) -> anyhow::Result<()> {
        ensure!(!self.running.contains_key(&node), "node {node} runs");
        Ok(std::fs::remove_dir_all(self.data_dir(node))?)
    }

    /// Where a node keeps its data.
    pub fn data_dir(&self, node: u64) -> PathBuf {
        self.dir.path().join(format!("{node}.data"))
    }

    /// Where a node's output goes.
    pub fn log(&self, node: u64) -> PathBuf {
        self.dir.path().join(format!("{node}.log"))
    }

    /// A place for other files of the test.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The client addresses of these nodes.
    pub fn endpoints_of(&self, nodes: &[u64]) -> Vec<String> {
        let ports = nodes.iter().filter_map(|node| self.ports.nodes.get(node));
        ports.map(|ports| format!("127.0.0.1:{}", ports.client)).collect()
    }

    /// The client addresses of all nodes.
    pub fn endpoints(&self) -> Vec<String> {
        self.endpoints_of(&self.all())
    }

    /// Where a node serves its peers.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn peer_addr(&self, node: u64) -> anyhow::Result<String> {
        Ok(format!("127.0.0.1:{}", self.ports.nodes.get(&node).context("there is no such node")?.peer))
    }

    /// The port a node serves HTTP on.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn http_port(&self, node: u64) -> anyhow::Result<u16> {
        Ok(self.ports.nodes.get(&node).context("there is no such node")?.http)
    }

    /// A client with connections of its own.
    ///
    /// # Errors
    /// If an endpoint is no address, which none is.
    pub fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(Config::new(self.endpoints()))?)
    }

    /// A client that knows these nodes to begin with.
    ///
    /// # Errors
    /// As [`Cluster::client`].
    pub fn client_of(&self, nodes: &[u64]) -> anyhow::Result<Client> {
        Ok(Client::new(Config::new(self.endpoints_of(nodes)))?)
    }

    /// A client whose calls end after `timeout`.
    ///
    /// # Errors
    /// As [`Cluster::client`].
    pub fn client_with_timeout(&self, timeout: Duration) -> anyhow::Result<Client> {
        Ok(Client::new(Config { timeout, ..Config::new(self.endpoints()) })?)
    }

    /// Waits until a majority of the nodes that answer names the same leader for every shard, and says who that is.
    ///
    /// # Errors
    /// If that does not happen.
    pub async fn led(&self) -> anyhow::Result<BTreeMap<ShardId, Led>> {
        let running: Vec<u64> = self.running.keys().copied().collect();
        let client = Client::new(Config::new(self.endpoints_of(&running)))?;
        let majority = usize::try_from(self.options.nodes)? / 2 + 1;
        let look = || async {
            let mut votes: BTreeMap<ShardId, BTreeMap<(Term, u64), usize>> = BTreeMap::new();
            for node in client.status_of_endpoints().await {
                for replica in node.answer.map(|status| status.replicas).unwrap_or_default() {
                    let named = votes.entry(ShardId::new(replica.shard)).or_default();
                    *named.entry((Term::new(replica.epoch), replica.leader)).or_default() += 1;
                }
            }
            let mut led = BTreeMap::new();
            for (shard, named) in &votes {
                let agreed = named.iter().find(|((_, leader), count)| *leader != 0 && **count >= majority);
                let ((epoch, leader), _) = agreed.ok_or_else(|| format!("{shard}: {named:?}"))?;
                led.insert(*shard, Led { leader: *leader, epoch: *epoch });
            }
            if led.is_empty() { Err("nobody answers".to_owned()) } else { Ok(led) }
        };
        wait::until("a leader of every shard", AGREE_MAX, look).await
    }

    /// Waits until all running replicas of each shard have the same state hash at the same applied index; says which.
    ///
    /// # Errors
    /// If that does not happen; at once if two replicas differ at the same index.
    pub async fn agree(&self) -> anyhow::Result<BTreeMap<ShardId, (u64, Bytes)>> {
        let running: Vec<u64> = self.running.keys().copied().collect();
        let client = Client::new(Config::new(self.endpoints_of(&running)))?;
        let look = || async {
            let mut states: BTreeMap<ShardId, Vec<(String, v1::ReplicaStatus)>> = BTreeMap::new();
            for node in client.status_of_endpoints().await {
                let status = node.answer.map_err(|error| format!("{}: {error}", node.endpoint))?;
                for replica in status.replicas {
                    let named = (format!("n{}", status.node), replica);
                    states.entry(ShardId::new(named.1.shard)).or_default().push(named);
                }
            }
            let mut agreed = BTreeMap::new();
            for (shard, replicas) in states {
                match one_state(&replicas)? {
                    Ok(state) => agreed.insert(shard, state),
                    Err(conflict) => return Ok(Err(conflict)),
                };
            }
            Ok(Ok(agreed))
        };
        wait::until("the same state in all replicas", AGREE_MAX, look).await?.map_err(anyhow::Error::msg)
    }

    /// Ends the test well: kills what runs, and checks that no node ever panicked.
    ///
    /// # Errors
    /// If one did.
    pub async fn finish(mut self) -> anyhow::Result<()> {
        let running: Vec<u64> = self.running.keys().copied().collect();
        self.resume(&running)?;
        self.kill(&running).await?;
        for node in self.ports.nodes.keys().copied() {
            let log = std::fs::read(self.log(node)).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            ensure!(!log.contains("panicked"), "node {node} panicked");
        }
        self.finished = true;
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.running.clear();
        if self.finished {
            return;
        }
        self.dir.disable_cleanup(true);
        eprintln!("data and logs are kept in {}", self.dir.path().display());
        for node in self.ports.nodes.keys() {
            let log = std::fs::read(self.log(*node)).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default();
            eprintln!("--- node {node}\n{}", tail.join("\n"));
        }
    }
}

/// The state all replicas of a shard have; the inner error if two differ for good, the outer one if they may yet agree.
fn one_state(replicas: &[(String, v1::ReplicaStatus)]) -> Result<Result<(u64, Bytes), String>, String> {
    let text = || {
        let lines = replicas.iter().map(|(node, replica)| {
            let v1::ReplicaStatus { shard, role, epoch, leader, commit, applied, last, state_hash, .. } = replica;
            format!("{node} s{shard} role {role} t{epoch} leader n{leader} commit {commit} applied {applied} last {last} {state_hash:?}")
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    for (_, one) in replicas {
        let differs = |(_, other): &&(String, v1::ReplicaStatus)| {
            other.applied == one.applied && other.state_hash != one.state_hash
        };
        if replicas.iter().any(|other| differs(&other)) {
            return Ok(Err(format!("replicas differ:\n{}", text())));
        }
    }
    match replicas {
        [(_, first), rest @ ..] if rest.iter().all(|(_, other)| other.applied == first.applied) => {
            Ok(Ok((first.applied, first.state_hash.clone())))
        }
        _ => Err(text()),
    }
}
