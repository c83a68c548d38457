//! A node from start to stop.

mod upkeep;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kv_shard::{LamportClock, Opening};
use kv_storage::data_dir::DataDir;
use kv_storage::wal::{LogReader, RecoveredShard};
use kv_types::{Membership as Voters, NodeId, ShardId};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info};

use self::upkeep::LongWork;
use crate::ceiling::NodeCeiling;
use crate::config::Config;
use crate::directory::Directory;
use crate::fatal::Fatal;
use crate::gateway::{Gateway, ShardHandle};
use crate::handover::hand_over;
use crate::host::Shared;
use crate::http;
use crate::identity::{Stage, Table};
use crate::joining::join;
use crate::links::Links;
use crate::listeners::Listeners;
use crate::log_budget::LogBudget;
use crate::logging::LogControl;
use crate::mailbox::{Control, Mailbox};
use crate::membership::Membership;
use crate::meta::{Applied, Meta};
use crate::metrics::Metrics;
use crate::node_error::NodeError;
use crate::opening::{OpenedDir, Replicas, open_replica, verify};
use crate::readiness::Readiness;
use crate::renewals::Renewals;
use crate::service::cluster::ClusterService;
use crate::service::peer::PeerService;
use crate::service::session::SessionService;
use crate::serving::{Clients, serve_peers};
use crate::session_keeper::SessionKeeper;
use crate::snapshots::{Installer, Room};
use crate::txns::Txns;
use crate::wal_writer::WalWriter;

/// Bytes of recent log entries each replica keeps in memory.
const LOG_CACHE_BYTES: usize = 16 << 20;

/// How often a new cluster looks whether all its links stand.
const SPREAD_POLL: Duration = Duration::from_millis(5);

/// How often a node that cannot go on says what it waits for.
const NAG: Duration = Duration::from_secs(5);

/// A running node.
#[derive(Debug)]
pub struct Node {
    /// The address clients are told.
    pub client_addr: String,
    ready: CancellationToken,
    stop: CancellationToken,
    readiness: Arc<OnceLock<Arc<Readiness>>>,
    run: tokio::task::JoinHandle<Result<(), NodeError>>,
}

impl Node {
    /// Starts a node: opens its data directory, then forms or joins its cluster in the background.
    ///
    /// # Errors
    /// [`NodeError`] if the data directory cannot be used; nothing runs then.
    pub async fn start(config: Config, listeners: Listeners, log: LogControl) -> Result<Self, NodeError> {
        let (client, _, _) =
            listeners.addresses().map_err(|cause| NodeError::Os { doing: "read an address", cause })?;
        let client_addr = config.advertise_client.clone().unwrap_or_else(|| client.to_string());
        let (ready, stop) = (CancellationToken::new(), CancellationToken::new());
        let opened = tokio::task::spawn_blocking({
            let config = config.clone();
            move || OpenedDir::open(&config)
        });
        let opened = opened.await.map_err(|cause| NodeError::Fatal(cause.to_string()))??;
        let readiness = Arc::new(OnceLock::new());
        let run = Run {
            config,
            log,
            client_addr: client_addr.clone(),
            ready: ready.clone(),
            stop: stop.clone(),
            halt: CancellationToken::new(),
            readiness: Arc::clone(&readiness),
        };
        let run = tokio::spawn(run.run(opened, listeners));
        Ok(Self { client_addr, ready, stop, readiness, run })
    }

    /// Waits until the node serves; `false` if it stopped before.
    pub async fn ready(&mut self) -> bool {
        tokio::select! {
            () = self.ready.cancelled() => true,
            () = self.stop.cancelled() => false,
        }
    }

    /// Why the node cannot answer for every shard at the moment; `None` if it can.
    pub fn problem(&self) -> Option<String> {
        self.readiness
            .get()
            .map_or_else(|| Some("the node is starting".to_owned()), |readiness| readiness.problem())
    }

    /// Asks the node to stop; [`Node::stopped`] completes when it has.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until the node has stopped.
    ///
    /// # Errors
    /// [`NodeError`] if it was not asked to.
    pub async fn stopped(&mut self) -> Result<(), NodeError> {
        match (&mut self.run).await {
            Ok(result) => result,
            Err(panic) => Err(NodeError::Fatal(format!("a task of the node failed: {panic}"))),
        }
    }
}

/// What a node's run needs besides its data directory.
struct Run {
    config: Config,
    log: LogControl,
    client_addr: String,
    ready: CancellationToken,
    /// Ends the service of clients; what they wait for is still answered.
    stop: CancellationToken,
    /// Ends everything else, once clients are served to their end.
    halt: CancellationToken,
    readiness: Arc<OnceLock<Arc<Readiness>>>,
}

/// What a serving node holds until it has stopped.
struct Serving {
    _dir: DataDir,
    threads: Vec<std::thread::JoinHandle<()>>,
    clients: tokio::task::JoinHandle<()>,
}

/// What all parts of a run share.
struct Parts {
    membership: Arc<Membership>,
    directory: Arc<Directory>,
    clock: Arc<LamportClock>,
    metrics: Arc<Metrics>,
    links: Arc<Links>,
    fatal: Fatal,
    tasks: TaskTracker,
    shards: Arc<OnceLock<BTreeMap<ShardId, ShardHandle>>>,
    meta: Arc<OnceLock<Meta>>,
    txns: Arc<OnceLock<Arc<Txns>>>,
    readiness: Arc<Readiness>,
    installer: Arc<Installer>,
}

impl Run {
    async fn run(self, opened: OpenedDir, listeners: Listeners) -> Result<(), NodeError> {
        let (stop, halt) = (self.stop.clone(), self.halt.clone());
        let _ended = (stop.drop_guard_ref(), halt.drop_guard_ref());
        let node = self.config.node;
        info!(%node, cluster = self.config.cluster, incarnation = %opened.identity.incarnation, "starting");
        let fresh = opened.identity.stage != Stage::Formed;
        let parts = self.parts(&opened)?;
        // Set once: this runs once.
        let _ = self.readiness.set(Arc::clone(&parts.readiness));
        let Listeners { client, peer, http } = listeners;
        let peer_service = PeerService {
            me: node,
            membership: Arc::clone(&parts.membership),
            links: Arc::clone(&parts.links),
            clock: Arc::clone(&parts.clock),
            metrics: Arc::clone(&parts.metrics),
            shards: Arc::clone(&parts.shards),
            installer: Arc::clone(&parts.installer),
            meta: Arc::clone(&parts.meta),
            txns: Arc::clone(&parts.txns),
        };
        parts.tasks.spawn(serve_peers(peer_service, peer, self.halt.clone(), parts.fatal.clone()));
        let pages =
            http::serve(http, Arc::clone(&parts.metrics), Arc::clone(&parts.readiness), self.halt.clone());
        parts.tasks.spawn(async move {
            if let Err(cause) = pages.await {
                error!(%cause, "http is not served any more");
            }
        });
        parts.links.start();
        if let Err(cause) = self.join(&parts).await {
            let _ = self.end(&parts, Vec::new()).await;
            return Err(cause);
        }
        let Some(table) = self.formed(&parts).await else {
            let ended = self.end(&parts, Vec::new()).await;
            // Its lock goes last: until here tasks may write there.
            drop(opened);
            return ended;
        };
        let serving = match self.serve(&parts, opened, table, fresh, client).await {
            Ok(serving) => serving,
            Err(cause) => {
                // What has been started is ended; the cause is what the caller hears.
                let _ = self.end(&parts, Vec::new()).await;
                return Err(cause);
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => info!(%node, "stopping"),
            () = parts.fatal.stopped() => {}
        }
        if let Some(shards) = parts.shards.get() {
            hand_over(node, shards, self.config.election_timeout_min).await;
        }
        // The lock of the directory goes last, when nothing writes there any more.
        let Serving { _dir, threads, clients } = serving;
        // A replica that ends leaves the writes under way unknown: first they are answered, for a bounded time.
        self.stop.cancel();
        tokio::select! {
            _ = clients => {}
            () = parts.fatal.stopped() => {}
        }
        self.end(&parts, threads).await
    }

    fn parts(&self, opened: &OpenedDir) -> Result<Parts, NodeError> {
        let config = &self.config;
        let fatal = Fatal::default();
        let directory = Arc::new(Directory::new(&config.members, config.peer_proxies.clone()));
        directory.update(config.node, |contact| contact.client_addr.clone_from(&self.client_addr));
        let founders = match config.join {
            Some(_) => Vec::new(),
            None => config.members.keys().copied().collect(),
        };
        let membership = Arc::new(Membership::new(
            opened.identity.clone(),
            (founders, config.shards.clone()),
            Arc::clone(&opened.disk),
            (Arc::clone(&directory), fatal.clone()),
            (config.advertise_peer.clone(), self.client_addr.clone()),
        ));
        let tasks = TaskTracker::new();
        let ceiling = NodeCeiling::new(Arc::clone(&opened.ceiling), tasks.clone(), fatal.clone());
        let clock = Arc::new(LamportClock::new(config.node, Arc::new(ceiling)));
        let metrics = Arc::new(Metrics::new());
        let links = Links::new(
            (config.node, &config.members),
            Arc::clone(&membership),
            (Arc::clone(&directory), Arc::clone(&clock)),
            Arc::clone(&metrics),
            (tasks.clone(), self.halt.clone()),
        )?;
        let readiness = Arc::new(Readiness::new(Arc::clone(&membership)));
        let shards = Arc::new(OnceLock::new());
        let room = Room::new(Arc::clone(&opened.disk), config.disk_free_min);
        let storage = (Arc::clone(&opened.engines), room);
        let installer = Installer::new(storage, Arc::clone(&metrics), (tasks.clone(), self.halt.clone()));
        Ok(Parts {
            membership,
            directory,
            clock,
            metrics,
            links: Arc::new(links),
            fatal,
            tasks,
            shards,
            meta: Arc::default(),
            txns: Arc::default(),
            readiness,
            installer: Arc::new(installer),
        })
    }

    /// Has this node taken into a running cluster, if that is what it was started for, and links it to the members it
    /// was told then. Returns early if the node stops.
    async fn join(&self, parts: &Parts) -> Result<(), NodeError> {
        if let Some(wish) = self.config.join.as_ref().filter(|_| !parts.membership.is_formed()) {
            tokio::select! {
                joined = join(&self.config, wish, &parts.membership, &self.client_addr) => joined?,
                () = self.stop.cancelled() => {}
                () = parts.fatal.stopped() => {}
            }
        }
        if let Some(contacts) = parts.membership.joined() {
            let addrs = contacts.iter().map(|(node, peer)| (*node, (peer.clone(), String::new())));
            parts.directory.set_members(&addrs.collect());
            parts.directory.update(self.config.node, |own| own.client_addr.clone_from(&self.client_addr));
            parts.links.set_members(&contacts);
        }
        Ok(())
    }

    /// Waits until the cluster is formed; `None` if the node stops before.
    async fn formed(&self, parts: &Parts) -> Option<Table> {
        loop {
            tokio::select! {
                table = parts.membership.formed() => return Some(table),
                () = self.stop.cancelled() => return None,
                () = parts.fatal.stopped() => return None,
                () = tokio::time::sleep(NAG) => {
                    let missing = parts.membership.missing();
                    info!(?missing, "waiting for all initial members: a new cluster is formed once, by all of them");
                }
            }
        }
    }

    /// Opens the replicas and serves clients. The threads it starts end when the handles to them are gone.
    async fn serve(
        &self,
        parts: &Parts,
        opened: OpenedDir,
        table: Table,
        fresh: bool,
        client: TcpListener,
    ) -> Result<Serving, NodeError> {
        let OpenedDir { dir, disk, engines, wal, mut shards, .. } = opened;
        let LongWork { background, merge_now, mut threads } = LongWork::start(&parts.fatal)?;
        let log_reader = wal.reader();
        let (writer, wal_thread) = WalWriter::start(
            wal,
            parts.fatal.clone(),
            self.halt.clone(),
            parts.metrics.space.wal_bytes.clone(),
        )
        .map_err(|cause| NodeError::Os { doing: "start a thread", cause })?;
        let log = self.log_budget(parts);
        let shared = Shared {
            wal: writer,
            links: Arc::clone(&parts.links),
            background,
            merge_now,
            metrics: Arc::clone(&parts.metrics),
            fatal: parts.fatal.clone(),
            memory_full: Arc::default(),
            pace: Arc::default(),
            log: Arc::clone(&log),
            log_reader: Arc::clone(&log_reader),
        };
        let voters = Voters::of_voters(table.members.keys().copied());
        let (mut replicas, mut foreseen) = (Replicas::default(), Applied::default());
        for shard in table.shards.shards() {
            let recovered = shards.remove(&shard).unwrap_or_default();
            let opening = self.opening(shard, &voters, recovered, &log_reader, parts);
            // On this thread, for the priority of sled's.
            let replica = open_replica(&shared.merge_now, opening, &disk, &engines).await?;
            if shard == ShardId::META {
                foreseen = Applied::foreseen(&replica);
            }
            replicas.add(replica, &shared);
        }
        let Replicas { hosts, handles, verifications } = replicas;
        let gateway = Arc::new(Gateway::new(
            (self.config.cluster.clone(), self.config.node),
            table.shards.clone(),
            handles.clone(),
            (Arc::clone(&parts.directory), Arc::clone(&parts.clock)),
            Arc::clone(&parts.metrics),
            (log, Arc::clone(&shared.pace)),
        ));
        let mailboxes = handles.values().map(|handle| Arc::clone(&handle.mailbox)).collect();
        parts.links.watch(mailboxes);
        for host in hosts {
            parts.tasks.spawn(host.run(self.halt.clone()));
        }
        if fresh {
            self.spread_leaders(parts, &table, &handles);
        }
        // Both set once: this runs once.
        let _ = parts.shards.set(handles);
        parts.readiness.serve(Arc::clone(&gateway));
        parts.tasks.spawn(verify(verifications, shared.background.clone(), self.halt.clone(), {
            let (node, ready) = (self.config.node, self.ready.clone());
            move || {
                info!(%node, "serving");
                ready.cancel();
            }
        }));
        self.start_maintenance(parts, &gateway, shared, (disk, engines), table.cluster_id());
        let txns = self.start_txns(parts, &gateway);
        let meta = self.start_reconciler(parts, &gateway, (table, foreseen));
        let clients = self.clients(parts, gateway, meta, txns);
        let clients = parts.tasks.spawn(clients.serve(client));
        threads.push(wal_thread);
        Ok(Serving { _dir: dir, threads, clients })
    }

    fn log_budget(&self, parts: &Parts) -> Arc<LogBudget> {
        let taken = parts.metrics.space.wal_bytes.clone();
        Arc::new(LogBudget::new(taken, self.config.wal_segment_bytes, self.config.wal_bytes))
    }

    /// What serves clients, and the tasks that do the work behind it.
    fn clients(&self, parts: &Parts, gateway: Arc<Gateway>, meta: Meta, txns: Arc<Txns>) -> Clients {
        let cluster = ClusterService {
            gateway: Arc::clone(&gateway),
            membership: Arc::clone(&parts.membership),
            meta,
            log: self.log.clone(),
            started: Instant::now(),
            election_timeout: self.config.election_timeout_min,
        };
        let renewals = Arc::new(Renewals::new(Arc::clone(&gateway)));
        parts.tasks.spawn(Arc::clone(&renewals).run(self.halt.clone(), parts.fatal.clone()));
        let keeper = SessionKeeper { gateway: Arc::clone(&gateway), fatal: parts.fatal.clone() };
        parts.tasks.spawn(keeper.run(self.halt.clone()));
        let sessions = SessionService { gateway: Arc::clone(&gateway), renewals };
        Clients { gateway, cluster, sessions, txns, stop: self.stop.clone(), fatal: parts.fatal.clone() }
    }

    fn opening(
        &self,
        shard: ShardId,
        voters: &Voters,
        recovered: RecoveredShard,
        reader: &Arc<LogReader>,
        parts: &Parts,
    ) -> Opening {
        let config = &self.config;
        let raft = kv_raft::Config {
            election_timeout_min: config.election_timeout_min,
            heartbeat: config.heartbeat,
            ..kv_raft::Config::new(config.node, rand::random(), rand::random())
        };
        Opening {
            shard,
            raft,
            genesis: voters.clone(),
            recovered,
            reader: Arc::clone(reader),
            log_cache_bytes: LOG_CACHE_BYTES as u64,
            clock: Arc::clone(&parts.clock),
        }
    }

    /// In a new cluster each shard has a node that campaigns as soon as it reaches the others, before any election
    /// timeout runs out, so that the leaders are spread from the start.
    fn spread_leaders(&self, parts: &Parts, table: &Table, handles: &BTreeMap<ShardId, ShardHandle>) {
        let nodes: Vec<NodeId> = table.members.keys().copied().collect();
        let (me, others) = (self.config.node, nodes.len().saturating_sub(1));
        let nth_node = |nth: usize| nodes.get(nth % nodes.len().max(1)) == Some(&me);
        let mine = handles.values().enumerate().filter(|(nth, _)| nth_node(*nth));
        let mine: Vec<Arc<Mailbox>> = mine.map(|(_, handle)| Arc::clone(&handle.mailbox)).collect();
        let directory = Arc::clone(&parts.directory);
        let patience = Instant::now() + self.config.election_timeout_min;
        parts.tasks.spawn(async move {
            while directory.connected() < others && Instant::now() < patience {
                tokio::time::sleep(SPREAD_POLL).await;
            }
            for mailbox in mine {
                mailbox.control(Control::Campaign);
            }
        });
    }

    async fn end(&self, parts: &Parts, threads: Vec<std::thread::JoinHandle<()>>) -> Result<(), NodeError> {
        self.stop.cancel();
        self.halt.cancel();
        parts.tasks.close();
        parts.tasks.wait().await;
        let joined =
            tokio::task::spawn_blocking(move || threads.into_iter().all(|thread| thread.join().is_ok()));
        let clean = joined.await.unwrap_or(false);
        match parts.fatal.reason() {
            Some(reason) => Err(NodeError::Fatal(reason.to_owned())),
            None if clean => Ok(()),
            None => Err(NodeError::Fatal("a thread of the node panicked".to_owned())),
        }
    }
}
