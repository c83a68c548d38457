//! A node from start to stop.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kv_proto::v1;
use kv_shard::{LamportClock, Opening, Replica, ReplicaError};
use kv_storage::data_dir::{DataDir, DataDirError};
use kv_storage::disk::Disk;
use kv_storage::wal::{LogReader, RecoveredShard, Wal, WalError, WalOptions};
use kv_storage::{EngineFactory, OpenError, ShardStore, SledFactory, StoreOptions, StoreStart};
use kv_types::limits::{
    APPEND_BYTES_MAX, APPEND_ENTRIES_MAX, IN_FLIGHT_APPENDS_MAX, IN_FLIGHT_BYTES_MAX, PEER_FRAME_BYTES_MAX,
    PIPELINE_FRAME_BYTES_MAX, UNCOMMITTED_BYTES_MAX,
};
use kv_types::{Incarnation, Membership as Voters, NodeId, ShardId};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tracing::{error, info};

use crate::background::Background;
use crate::clock;
use crate::config::Config;
use crate::directory::Directory;
use crate::fatal::Fatal;
use crate::gateway::{Gateway, Leadership, ShardHandle};
use crate::host::{Host, chain};
use crate::http;
use crate::identity::{Identity, IdentityError, Stage, Table};
use crate::links::{AddressError, Links};
use crate::logging::LogControl;
use crate::mailbox::{Control, Mailbox};
use crate::maintenance::Maintenance;
use crate::membership::Membership;
use crate::metrics::Metrics;
use crate::readiness::Readiness;
use crate::service::cluster::ClusterService;
use crate::service::kv::KvService;
use crate::service::peer::PeerService;
use crate::snapshots::Installer;
use crate::waiter::Waiter;
use crate::wal_writer::WalWriter;

/// Bytes of recent log entries each replica keeps in memory.
const LOG_CACHE_BYTES: usize = 16 << 20;

/// How long a stopping node waits for calls that are under way.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// How often a new cluster looks whether all its links stand.
const SPREAD_POLL: Duration = Duration::from_millis(5);

/// How often a node that cannot go on says what it waits for.
const NAG: Duration = Duration::from_secs(5);

/// Why a node cannot start, or has stopped.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// An address cannot be served.
    #[error("cannot serve {what} on {addr}: {cause}; is another process using the port?")]
    Bind {
        /// What.
        what: &'static str,
        /// Where.
        addr: SocketAddr,
        /// Why.
        cause: io::Error,
    },
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The data directory or the cluster is another one's.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The WAL cannot be opened.
    #[error(
        "{cause}. This replica may have lost a vote or an acknowledged write: it must not come back under its id. Keep \
         the directory for inquiry and replace the node by a new one"
    )]
    Wal {
        /// Why.
        cause: WalError,
    },
    /// The WAL of a formed node is gone.
    #[error(
        "the data directory belongs to a formed cluster, but its write-ahead log is gone: this node may have lost \
         acknowledged writes and must not come back under its id; replace it by a new one"
    )]
    WalMissing,
    /// A shard's rows cannot be opened.
    #[error("{shard} cannot be opened: {cause}")]
    Open {
        /// The shard.
        shard: ShardId,
        /// Why.
        cause: String,
    },
    /// A peer's address makes no sense.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The operating system refuses something.
    #[error("cannot {doing}: {cause}")]
    Os {
        /// What.
        doing: &'static str,
        /// Why.
        cause: io::Error,
    },
    /// The node had to stop.
    #[error("{0}")]
    Fatal(String),
}

/// Sockets that are bound before anything is touched, so that a port in use leaves no trace.
#[derive(Debug)]
pub struct Listeners {
    client: TcpListener,
    peer: TcpListener,
    http: TcpListener,
}

impl Listeners {
    /// Binds the three addresses of a node; port 0 is any.
    ///
    /// # Errors
    /// [`NodeError::Bind`] names the address.
    pub async fn bind(client: SocketAddr, peer: SocketAddr, http: SocketAddr) -> Result<Self, NodeError> {
        let bind = async |what, addr| {
            TcpListener::bind(addr).await.map_err(|cause| NodeError::Bind { what, addr, cause })
        };
        Ok(Self {
            client: bind("clients", client).await?,
            peer: bind("peers", peer).await?,
            http: bind("http", http).await?,
        })
    }

    /// Where clients, peers and HTTP are really served.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr, SocketAddr)> {
        Ok((self.client.local_addr()?, self.peer.local_addr()?, self.http.local_addr()?))
    }
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    /// The address clients are told.
    pub client_addr: String,
    ready: CancellationToken,
    stop: CancellationToken,
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
        let run =
            Run { config, log, client_addr: client_addr.clone(), ready: ready.clone(), stop: stop.clone() };
        let run = tokio::spawn(run.run(opened, listeners));
        Ok(Self { client_addr, ready, stop, run })
    }

    /// Waits until the node serves; `false` if it stopped before.
    pub async fn ready(&mut self) -> bool {
        tokio::select! {
            () = self.ready.cancelled() => true,
            () = self.stop.cancelled() => false,
        }
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

/// The data directory, open and checked.
struct OpenedDir {
    /// Held for its lock.
    _dir: DataDir,
    disk: Arc<dyn Disk>,
    engines: Arc<dyn EngineFactory>,
    identity: Identity,
    wal: Wal,
    shards: BTreeMap<ShardId, RecoveredShard>,
}

impl OpenedDir {
    fn open(config: &Config) -> Result<Self, NodeError> {
        let dir = DataDir::open(&config.data_dir)?;
        let identity = match dir.read_identity()? {
            Some(text) => Identity::decode(&text)?,
            None => {
                let incarnation = Incarnation::new(rand::random());
                let identity = Identity::new(config.node, config.cluster.clone(), incarnation);
                dir.write_identity(identity.encode().as_bytes())?;
                identity
            }
        };
        identity.check_started_as(config.node, &config.cluster)?;
        let disk: Arc<dyn Disk> = dir.disk();
        let wal_dir = Path::new("wal");
        if identity.stage == Stage::Formed
            && disk
                .list(wal_dir)
                .map_err(|cause| NodeError::Os { doing: "list the data directory", cause })?
                .is_empty()
        {
            return Err(NodeError::WalMissing);
        }
        let options = WalOptions {
            budget_bytes: config.wal_bytes,
            segment_bytes: config.wal_segment_bytes,
            ballast_bytes: config.ballast_bytes,
            ..WalOptions::new(identity.incarnation)
        };
        let (wal, recovery) =
            Wal::open(Arc::clone(&disk), options).map_err(|cause| NodeError::Wal { cause })?;
        if let Some(torn) = recovery.torn {
            info!(segment = ?torn.segment, offset = torn.offset, "cut what was being written when the node stopped");
        }
        let cache = config.cache_bytes / (config.shards.shards().count() as u64).max(1);
        let engines = Arc::new(SledFactory::new(dir.disk().as_ref().clone(), cache));
        Ok(Self { _dir: dir, disk, engines, identity, wal, shards: recovery.shards })
    }
}

/// What a node's run needs besides its data directory.
struct Run {
    config: Config,
    log: LogControl,
    client_addr: String,
    ready: CancellationToken,
    stop: CancellationToken,
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
    readiness: Arc<Readiness>,
}

impl Run {
    async fn run(self, opened: OpenedDir, listeners: Listeners) -> Result<(), NodeError> {
        let stop = self.stop.clone();
        let _stopped = stop.drop_guard_ref();
        let node = self.config.node;
        info!(%node, cluster = self.config.cluster, incarnation = %opened.identity.incarnation, "starting");
        let fresh = opened.identity.stage != Stage::Formed;
        let parts = self.parts(&opened)?;
        let Listeners { client, peer, http } = listeners;
        let peer_service = PeerService {
            me: node,
            membership: Arc::clone(&parts.membership),
            links: Arc::clone(&parts.links),
            clock: Arc::clone(&parts.clock),
            metrics: Arc::clone(&parts.metrics),
            shards: Arc::clone(&parts.shards),
            installer: Arc::new(Installer::new(Arc::clone(&opened.engines))),
        };
        parts.tasks.spawn(serve_peers(peer_service, peer, self.stop.clone(), parts.fatal.clone()));
        let pages =
            http::serve(http, Arc::clone(&parts.metrics), Arc::clone(&parts.readiness), self.stop.clone());
        parts.tasks.spawn(async move {
            if let Err(cause) = pages.await {
                error!(%cause, "http is not served any more");
            }
        });
        parts.links.start(&self.stop);
        let Some(table) = self.formed(&parts).await else {
            return self.end(&parts, Vec::new()).await;
        };
        let threads = self.serve(&parts, opened, table, fresh, client).await?;
        tokio::select! {
            () = self.stop.cancelled() => info!(%node, "stopping"),
            () = parts.fatal.stopped() => {}
        }
        self.end(&parts, threads).await
    }

    fn parts(&self, opened: &OpenedDir) -> Result<Parts, NodeError> {
        let config = &self.config;
        let fatal = Fatal::default();
        let directory = Arc::new(Directory::new(&config.members));
        directory.update(config.node, |contact| contact.client_addr.clone_from(&self.client_addr));
        let peer_addr = config.members.get(&config.node).cloned().unwrap_or_default();
        let membership = Arc::new(Membership::new(
            opened.identity.clone(),
            (config.members.keys().copied().collect(), config.shards.clone()),
            Arc::clone(&opened.disk),
            (Arc::clone(&directory), fatal.clone()),
            (peer_addr, self.client_addr.clone()),
        ));
        let clock = Arc::new(LamportClock::new(config.node, 0));
        let metrics = Arc::new(Metrics::new());
        let tasks = TaskTracker::new();
        let links = Links::new(
            (config.node, &config.members),
            Arc::clone(&membership),
            (Arc::clone(&directory), Arc::clone(&clock)),
            Arc::clone(&metrics),
            tasks.clone(),
        )?;
        let readiness = Arc::new(Readiness::new(Arc::clone(&membership)));
        let shards = Arc::new(OnceLock::new());
        Ok(Parts {
            membership,
            directory,
            clock,
            metrics,
            links: Arc::new(links),
            fatal,
            tasks,
            shards,
            readiness,
        })
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
    ) -> Result<Vec<std::thread::JoinHandle<()>>, NodeError> {
        let OpenedDir { _dir, disk, engines, wal, mut shards, .. } = opened;
        let os = |doing| move |cause| NodeError::Os { doing, cause };
        let (background, merge_thread) = Background::start().map_err(os("start a thread"))?;
        let log_reader = wal.reader();
        let (writer, wal_thread) =
            WalWriter::start(wal, parts.fatal.clone(), parts.metrics.wal_bytes.clone())
                .map_err(os("start a thread"))?;
        let memory_full = Arc::new(AtomicBool::new(false));
        let voters = Voters::of_voters(table.members.keys().copied());
        let mut handles = BTreeMap::new();
        let mut hosts = Vec::new();
        for shard in table.shards.shards() {
            let recovered = shards.remove(&shard).unwrap_or_default();
            let opening = self.opening(shard, &voters, recovered, &log_reader, parts);
            let replica = open_replica(&background, opening, &disk, &engines).await?;
            let handle = ShardHandle {
                shard,
                mailbox: Arc::new(Mailbox::new()),
                reader: replica.reader(),
                leadership: Arc::new(Leadership::default()),
            };
            handles.insert(shard, handle.clone());
            hosts.push(Host {
                replica,
                handle,
                wal: writer.clone(),
                links: Arc::clone(&parts.links),
                background: background.clone(),
                metrics: Arc::clone(&parts.metrics),
                fatal: parts.fatal.clone(),
                memory_full: Arc::clone(&memory_full),
                install: None,
                led: false,
            });
        }
        let gateway = Arc::new(Gateway::new(
            (self.config.cluster.clone(), self.config.node),
            table.shards.clone(),
            handles.clone(),
            (Arc::clone(&parts.directory), Arc::clone(&parts.clock)),
            Arc::clone(&parts.metrics),
        ));
        let mailboxes = handles.values().map(|handle| Arc::clone(&handle.mailbox)).collect();
        parts.links.watch(mailboxes);
        for host in hosts {
            parts.tasks.spawn(host.run(self.stop.clone()));
        }
        if fresh {
            self.spread_leaders(parts, &table, &handles);
        }
        // Set once: this runs once.
        let _ = parts.shards.set(handles);
        parts.readiness.serve(Arc::clone(&gateway));
        let maintenance = Maintenance {
            gateway: Arc::clone(&gateway),
            wal: writer,
            background,
            disk,
            fatal: parts.fatal.clone(),
            memory_full,
            memtable_bytes_max: self.config.memtable_bytes,
            disk_free_min: self.config.disk_free_min,
        };
        parts.tasks.spawn(maintenance.run(self.stop.clone()));
        self.serve_clients(parts, gateway, client);
        parts.tasks.spawn(hold(_dir, self.stop.clone(), parts.tasks.clone()));
        Ok(vec![wal_thread, merge_thread])
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
            id: config.node,
            election_timeout_min: config.election_timeout_min,
            heartbeat: config.heartbeat,
            in_flight_appends_max: IN_FLIGHT_APPENDS_MAX,
            in_flight_bytes_max: IN_FLIGHT_BYTES_MAX,
            append_bytes_max: APPEND_BYTES_MAX,
            append_entries_max: APPEND_ENTRIES_MAX,
            uncommitted_bytes_max: UNCOMMITTED_BYTES_MAX,
            incarnation: rand::random(),
            seed: rand::random(),
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

    fn serve_clients(&self, parts: &Parts, gateway: Arc<Gateway>, listener: TcpListener) {
        let kv = KvService { gateway: Arc::clone(&gateway) };
        let cluster = ClusterService {
            gateway: Arc::clone(&gateway),
            membership: Arc::clone(&parts.membership),
            log: self.log.clone(),
            started: Instant::now(),
            patience: self.config.election_timeout_min * 4,
        };
        let (stop, fatal) = (self.stop.clone(), parts.fatal.clone());
        let (ready, node) = (self.ready.clone(), self.config.node);
        parts.tasks.spawn(async move {
            let (reporter, health) = tonic_health::server::health_reporter();
            reporter.set_serving::<v1::kv_server::KvServer<KvService>>().await;
            let reflection = tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(kv_proto::FILE_DESCRIPTOR_SET)
                .build_v1();
            let reflection = match reflection {
                Ok(reflection) => reflection,
                Err(cause) => return fatal.stop(format!("the reflection service cannot be built: {cause}")),
            };
            let kv = v1::kv_server::KvServer::new(kv)
                .max_decoding_message_size(PIPELINE_FRAME_BYTES_MAX)
                .max_encoding_message_size(PIPELINE_FRAME_BYTES_MAX);
            let server = Server::builder()
                .initial_stream_window_size(u32::try_from(PIPELINE_FRAME_BYTES_MAX).ok())
                .initial_connection_window_size(u32::try_from(4 * PIPELINE_FRAME_BYTES_MAX).ok())
                .http2_keepalive_interval(Some(Duration::from_secs(10)))
                .add_service(kv)
                .add_service(v1::cluster_server::ClusterServer::new(cluster))
                .add_service(health)
                .add_service(reflection);
            info!(%node, "serving");
            ready.cancel();
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            let stopping = stop.clone();
            let draining = async move {
                stopping.cancelled().await;
                gateway.drain();
                reporter.set_not_serving::<v1::kv_server::KvServer<KvService>>().await;
            };
            tokio::select! {
                served = server.serve_with_incoming_shutdown(incoming, draining) => {
                    if let Err(cause) = served {
                        fatal.stop(format!("clients are not served any more: {}", chain(&cause)));
                    }
                }
                // A stream that its client never ends does not keep the node from stopping.
                () = async { stop.cancelled().await; tokio::time::sleep(DRAIN_MAX).await; } => {}
            }
        });
    }

    async fn end(&self, parts: &Parts, threads: Vec<std::thread::JoinHandle<()>>) -> Result<(), NodeError> {
        self.stop.cancel();
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

/// Holds the data directory's lock until every task that uses it is asked to stop.
async fn hold(dir: DataDir, stop: CancellationToken, _tasks: TaskTracker) {
    stop.cancelled().await;
    drop(dir);
}

async fn serve_peers(service: PeerService, listener: TcpListener, stop: CancellationToken, fatal: Fatal) {
    let peers = v1::peer_server::PeerServer::new(service)
        .max_decoding_message_size(PEER_FRAME_BYTES_MAX)
        .max_encoding_message_size(PEER_FRAME_BYTES_MAX);
    let server = Server::builder()
        .initial_stream_window_size(u32::try_from(PEER_FRAME_BYTES_MAX).ok())
        .initial_connection_window_size(u32::try_from(2 * PEER_FRAME_BYTES_MAX).ok())
        .http2_keepalive_interval(Some(Duration::from_secs(1)))
        .http2_keepalive_timeout(Some(Duration::from_secs(2)))
        .add_service(peers);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::select! {
        served = server.serve_with_incoming(incoming) => {
            if let Err(cause) = served {
                fatal.stop(format!("peers are not served any more: {}", chain(&cause)));
            }
        }
        () = stop.cancelled() => {}
    }
}

/// Opens a replica's rows on the background thread, checks them against the state hash, and joins them with its log.
async fn open_replica(
    background: &Background,
    opening: Opening,
    disk: &Arc<dyn Disk>,
    engines: &Arc<dyn EngineFactory>,
) -> Result<Replica<Waiter>, NodeError> {
    let shard = opening.shard;
    let failed = |cause: String| NodeError::Open { shard, cause };
    let (disk, engines) = (Arc::clone(disk), Arc::clone(engines));
    let opened = background.run(move || {
        Replica::open(opening, clock::now(), |recovered| {
            let start = StoreStart {
                shard,
                base: recovered.base.clone(),
                merge: recovered.merge,
                wal_last: recovered.last().index,
            };
            let (store, opened) = ShardStore::open(disk, engines, start, StoreOptions::default())?;
            store.verify().map_err(|cause| OpenError::Damaged { detail: cause.to_string() })?;
            Ok((store, opened))
        })
    });
    let opened: Result<Replica<Waiter>, ReplicaError> =
        opened.await.ok_or_else(|| failed("the merge thread has ended".to_owned()))?;
    opened.map_err(|cause| failed(chain(&cause)))
}
