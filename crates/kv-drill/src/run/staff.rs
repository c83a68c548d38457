//! All who work during a run: clients, probes, and whoever watches the leaders.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kv_client::Client;
use kv_fault::{Drill, WorkloadKind};
use kv_proto::v1;
use kv_types::{Key, NodeId, ShardId, Value};
use tokio::task::JoinSet;

use crate::book::{Book, Clock};
use crate::error::RunError;
use crate::one_node::OneNode;
use crate::site::Site;
use crate::watch::Watch;
use crate::workload::{self, Ground, PATIENCE, Pinned, Place, Worker};

/// How long the cluster may take until every shard takes writes, before and after what is done to it.
const WRITABLE_MAX: Duration = Duration::from_secs(30);

/// Between two tries to write.
const RETRY: Duration = Duration::from_millis(100);

/// Those who work, and where they write it down.
pub(super) struct Staff {
    pub(super) clock: Arc<Clock>,
    pub(super) watch: Arc<Watch>,
    /// A client for what belongs to no workload.
    pub(super) admin: Client,
    /// The history of the workload.
    pub(super) book: Arc<Book>,
    /// The history of the probes' registers.
    pub(super) probes: Arc<Book>,
    /// The longest of any node.
    pub(super) election_timeout: Duration,
    kind: WorkloadKind,
    accounts: usize,
    /// A key on each shard, to see whether it takes writes.
    settle: Vec<Place>,
    idle: Vec<Worker>,
    idle_probes: (Option<Worker>, Vec<Pinned>),
    working: JoinSet<Result<Worker, RunError>>,
    pinned: JoinSet<Result<(), RunError>>,
    /// Ends with this value.
    _watching: JoinSet<()>,
}

impl Staff {
    /// Everybody, ready to begin, once the cluster takes writes.
    pub(super) async fn hire(drill: &Drill, site: &Site) -> Result<Self, RunError> {
        let admin = site.client(0)?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Keys of its own for each run, on whatever cluster.
        let run = format!("{}-{:x}", drill.name, since.as_millis());
        let settle = site.places(&admin, &format!("{run}/settle")).await?;
        let silent = writable(&admin, &settle).await?;
        if let Some(shard) = silent.first() {
            return Err(RunError::Cluster(format!("s{shard} takes no writes, before anything was broken")));
        }
        if site.local.is_some() {
            spread_leaders(&admin, &settle, site).await?;
        }
        let workload = &drill.workload;
        let ground = Ground::new(spread(&settle, &run, workload_keys(drill)), workload.value_bytes);
        workload::prepare(&admin, (workload.kind, &ground)).await?;
        let clock = Clock::start();
        let connections: BTreeMap<_, _> = site
            .direct
            .iter()
            .map(|(id, addr)| Ok((*id, OneNode::new(addr, PATIENCE)?)))
            .collect::<Result<_, RunError>>()?;
        let (watch, watching) = Watch::begin(Arc::clone(&clock), connections);
        let election_timeout = await_view(&watch, settle.len()).await?;
        let (book, probes) = (Book::new(Arc::clone(&clock)), Book::new(Arc::clone(&clock)));
        let mut staff = Self {
            watch,
            admin,
            election_timeout,
            kind: workload.kind,
            accounts: ground.places.len(),
            idle: Vec::new(),
            idle_probes: (None, Vec::new()),
            working: JoinSet::new(),
            pinned: JoinSet::new(),
            settle,
            book,
            probes,
            clock,
            _watching: watching,
        };
        staff.fill(drill, site, &ground, &run)?;
        Ok(staff)
    }

    fn fill(&mut self, drill: &Drill, site: &Site, ground: &Arc<Ground>, run: &str) -> Result<(), RunError> {
        let workload = &drill.workload;
        let mut number = 0;
        for nth in 0..usize::try_from(workload.clients).unwrap_or(0) {
            let shared = (Arc::clone(&self.book), Arc::clone(ground));
            let own = (drill.seed, workload.think);
            self.idle.push(Worker::new(site.client(nth)?, shared, number, own));
            number += 1;
        }
        let registers = Ground::new(spread(&self.settle, &format!("{run}-probes"), self.settle.len()), 1);
        let shared = (Arc::clone(&self.probes), Arc::clone(&registers));
        let writer = Worker::new(site.client(0)?, shared, number, (drill.seed, workload.think));
        self.idle_probes.0 = Some(writer);
        // A probe feels what clients feel: it goes through the proxy if they do.
        for (id, addr) in &site.dialled {
            let node = OneNode::new(addr, PATIENCE)?;
            for (place, write) in registers.places.iter().flat_map(|place| [(place, false), (place, true)]) {
                number += 1;
                self.idle_probes.1.push(Pinned {
                    id: *id,
                    node: node.clone(),
                    book: Arc::clone(&self.probes),
                    ground: Arc::clone(&registers),
                    place: place.clone(),
                    number,
                    write,
                });
            }
        }
        Ok(())
    }

    /// Everybody begins, and so does time.
    pub(super) fn begin(&mut self) {
        self.clock.restart();
        self.watch.restart();
        for worker in self.idle.drain(..) {
            self.working.spawn(worker.work(self.kind));
        }
        let (writer, pinned) = &mut self.idle_probes;
        if let Some(writer) = writer.take() {
            self.working.spawn(workload::probe_writes(writer));
        }
        for probe in pinned.drain(..) {
            self.pinned.spawn(workload::pinned(probe));
        }
    }

    /// Waits until everybody has ended, and looks at everything once more. What is wrong, in sentences.
    pub(super) async fn end(&mut self) -> Result<Vec<String>, RunError> {
        let mut workers = Vec::new();
        while let Some(ended) = self.working.join_next().await {
            workers.push(ended.map_err(|error| RunError::Cluster(format!("a client failed: {error}")))??);
        }
        while let Some(ended) = self.pinned.join_next().await {
            ended.map_err(|error| RunError::Cluster(format!("a probe failed: {error}")))??;
        }
        let silent = writable(&self.admin, &self.settle).await?;
        let wrongs = silent.iter().map(|shard| {
            format!("s{shard} took no write within {} s when all was mended", WRITABLE_MAX.as_secs())
        });
        let wrongs: Vec<_> = wrongs.collect();
        if !wrongs.is_empty() {
            return Ok(wrongs);
        }
        let (until, mut unread) = (Instant::now() + WRITABLE_MAX, BTreeSet::new());
        let mut at_all = true;
        for worker in &mut workers {
            let is_probe = Arc::ptr_eq(&worker.book, &self.probes);
            let kind = if is_probe { WorkloadKind::Register } else { self.kind };
            // That one client looks at what is out of use is enough.
            let at_all = !is_probe && std::mem::take(&mut at_all);
            unread.extend(worker.look(kind, at_all, until).await?);
        }
        let seconds = WRITABLE_MAX.as_secs();
        let verb = if self.kind == WorkloadKind::Lock { "read, or locked," } else { "read" };
        Ok(unread
            .iter()
            .map(|key| format!("{key} was not {verb} within {seconds} s when all was mended"))
            .collect())
    }

    /// How many accounts the bank has.
    pub(super) fn accounts(&self) -> usize {
        self.accounts
    }
}

/// How many keys: a bank of one account moves nothing.
fn workload_keys(drill: &Drill) -> usize {
    let keys = usize::try_from(drill.workload.keys).unwrap_or(1);
    if drill.workload.kind == WorkloadKind::Bank { keys.max(2) } else { keys }
}

/// Places for keys, on one shard after the other.
fn spread(shards: &[Place], run: &str, count: usize) -> Vec<Place> {
    let start = |place: &Place| place.key.split('/').next().unwrap_or_default().to_owned();
    let place = |(at, place): (usize, &Place)| Place {
        key: format!("{}/{run}/{at}", start(place)),
        shard: place.shard,
    };
    shards.iter().cycle().enumerate().take(count).map(place).collect()
}

/// The shards that take no write in time.
async fn writable(client: &Client, places: &[Place]) -> Result<Vec<u32>, RunError> {
    let unfit = |error: &dyn std::fmt::Display| RunError::Unfit(error.to_string());
    let deadline = tokio::time::Instant::now() + WRITABLE_MAX;
    let mut silent = Vec::new();
    for place in places {
        let key = Key::new(place.key.clone()).map_err(|error| unfit(&error))?;
        let value = Value::new("settled").map_err(|error| unfit(&error))?;
        while client.put(key.clone(), value.clone()).await.is_err() {
            if tokio::time::Instant::now() >= deadline {
                silent.push(place.shard);
                break;
            }
            tokio::time::sleep(RETRY).await;
        }
    }
    Ok(silent)
}

/// Hands the shards out to the nodes in turn. Who stands first leads when a cluster is formed; with one leader of everything
/// no step of a transaction would leave its node.
async fn spread_leaders(client: &Client, places: &[Place], site: &Site) -> Result<(), RunError> {
    let wanted: BTreeMap<u32, u64> = places
        .iter()
        .zip(site.direct.keys().cycle())
        .map(|(place, node)| (place.shard, node.get()))
        .collect();
    let deadline = tokio::time::Instant::now() + WRITABLE_MAX;
    loop {
        let shards = client.shards().await.map_err(|error| RunError::Cluster(error.to_string()))?;
        let is_elsewhere =
            |shard: &&v1::ShardStatus| wanted.get(&shard.shard).is_some_and(|node| shard.leader != *node);
        let elsewhere: Vec<u32> = shards.iter().filter(is_elsewhere).map(|shard| shard.shard).collect();
        if elsewhere.is_empty() {
            return Ok(());
        }
        if tokio::time::Instant::now() >= deadline {
            let (what, instead) =
                ("leaders on all nodes".to_owned(), format!("{elsewhere:?} are led by others"));
            return Err(RunError::Late { what, limit: WRITABLE_MAX, instead });
        }
        for shard in elsewhere {
            let node = wanted.get(&shard).copied().map(NodeId::new);
            if let Some(node) = node {
                // Whoever cannot now is asked again.
                let _ = client.transfer_leader(ShardId::new(shard), node).await;
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Waits until it is known who leads every shard, and the meta group; the longest election timeout of any node.
async fn await_view(watch: &Watch, shards: usize) -> Result<Duration, RunError> {
    let deadline = tokio::time::Instant::now() + WRITABLE_MAX;
    loop {
        let led = watch.led();
        let is_led = led.len() > shards && led.values().all(|(_, leader)| leader.is_some());
        if let Some(longest) = watch.longest_election_timeout().filter(|_| is_led) {
            return Ok(longest);
        }
        if tokio::time::Instant::now() >= deadline {
            let (what, instead) =
                ("a leader of every shard, and every node to answer".to_owned(), format!("{led:?}"));
            return Err(RunError::Late { what, limit: WRITABLE_MAX, instead });
        }
        tokio::time::sleep(RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_lie_on_one_shard_after_the_other() {
        let shard = |key: &str, shard| Place { key: format!("{key}/run/settle"), shard };
        let shards = [shard("", 1), shard("02", 2)];
        let places = spread(&shards, "run", 3);
        let keys: Vec<_> = places.iter().map(|place| (place.key.as_str(), place.shard)).collect();
        assert_eq!(keys, [("/run/0", 1), ("02/run/1", 2), ("/run/2", 1)]);
    }
}
