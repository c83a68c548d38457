//! Opening what a data directory holds: identity, WAL, replicas.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use kv_shard::{Opening, Replica, ReplicaError};
use kv_storage::data_dir::DataDir;
use kv_storage::disk::Disk;
use kv_storage::wal::{RecoveredShard, Wal, WalOptions};
use kv_storage::{
    CeilingFile, EngineFactory, ShardStore, SledFactory, StoreError, StoreOptions, StoreStart, Verification,
};
use kv_types::{Incarnation, ShardId};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::background::Background;
use crate::clock;
use crate::config::Config;
use crate::gateway::ShardHandle;
use crate::host::{Host, Shared, chain};
use crate::identity::{Identity, Stage};
use crate::mailbox::{Control, Mailbox};
use crate::node_error::NodeError;
use crate::waiter::Waiter;

/// The data directory, open and checked.
pub(crate) struct OpenedDir {
    /// Held for its lock.
    pub(crate) dir: DataDir,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) engines: Arc<dyn EngineFactory>,
    pub(crate) identity: Identity,
    /// How far the Lamport clock may go.
    pub(crate) ceiling: Arc<CeilingFile>,
    pub(crate) wal: Wal,
    pub(crate) shards: BTreeMap<ShardId, RecoveredShard>,
}

impl OpenedDir {
    /// Opens the directory, which may be new.
    ///
    /// # Errors
    /// [`NodeError`] names what is wrong with it and what to do.
    pub(crate) fn open(config: &Config) -> Result<Self, NodeError> {
        let dir = DataDir::open(&config.data_dir)?;
        let identity = match dir.read_identity()? {
            Some(text) => Identity::decode(&text)?,
            None => {
                // First, so that a directory with an identity always has a ceiling.
                CeilingFile::create(dir.disk().as_ref())?;
                let incarnation = Incarnation::new(rand::random());
                let identity = Identity::new(config.node, config.cluster.clone(), incarnation);
                dir.write_identity(identity.encode().as_bytes())?;
                identity
            }
        };
        identity.check_started_as(config.node, &config.cluster)?;
        let disk: Arc<dyn Disk> = dir.disk();
        let ceiling = Arc::new(CeilingFile::open(Arc::clone(&disk))?);
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
            // Whoever holds the oldest segment is told while there is room for what comes until he has let it go.
            budget_bytes: config.wal_bytes.saturating_sub(2 * config.wal_segment_bytes),
            total_bytes_max: config.wal_bytes,
            segment_bytes: config.wal_segment_bytes,
            ballast_bytes: config.ballast_bytes,
            // A node opens its WAL before it can become a member.
            must_exist: identity.stage == Stage::Formed,
            ..WalOptions::new(identity.incarnation)
        };
        let (wal, recovery) =
            Wal::open(Arc::clone(&disk), options).map_err(|cause| NodeError::Wal { cause })?;
        if let Some(torn) = recovery.torn {
            info!(segment = ?torn.segment, offset = torn.offset, "cut what was being written when the node stopped");
        }
        let cache = config.cache_bytes / (config.shards.shards().count() as u64).max(1);
        let engines = Arc::new(SledFactory::new(dir.disk().as_ref().clone(), cache));
        Ok(Self { dir, disk, engines, identity, ceiling, wal, shards: recovery.shards })
    }
}

/// The replicas of a node, opened.
#[derive(Default)]
pub(crate) struct Replicas {
    pub(crate) hosts: Vec<Host>,
    pub(crate) handles: BTreeMap<ShardId, ShardHandle>,
    pub(crate) verifications: Vec<(Arc<Mailbox>, Verification)>,
}

impl Replicas {
    pub(crate) fn add(&mut self, replica: Replica<Waiter>, shared: &Shared) {
        let verification = replica.verification();
        let (host, handle) = Host::new(replica, shared.clone());
        self.verifications.push((Arc::clone(&handle.mailbox), verification));
        self.handles.insert(handle.shard, handle);
        self.hosts.push(host);
    }
}

/// Opens a replica's rows on the background thread and joins them with its log.
pub(crate) async fn open_replica(
    thread: &Background,
    opening: Opening,
    disk: &Arc<dyn Disk>,
    engines: &Arc<dyn EngineFactory>,
) -> Result<Replica<Waiter>, NodeError> {
    let shard = opening.shard;
    let failed = |cause: String| NodeError::Open { shard, cause };
    let (disk, engines) = (Arc::clone(disk), Arc::clone(engines));
    let opened = thread.run(move || {
        Replica::open(opening, clock::now(), |recovered| {
            let start = StoreStart::of(shard, recovered);
            ShardStore::open(disk, engines, start, StoreOptions::default())
        })
    });
    let opened: Result<Replica<Waiter>, ReplicaError> =
        opened.await.ok_or_else(|| failed("the merge thread has ended".to_owned()))?;
    #[cfg_attr(not(feature = "planted"), allow(unused_mut, reason = "a bug may be planted in it"))]
    let mut replica = opened.map_err(|cause| failed(chain(&cause)))?;
    #[cfg(feature = "planted")]
    replica.plant(crate::planted::of_replicas());
    Ok(replica)
}

/// Compares the rows of each replica with their hash, one replica after the other, then calls `done`. The replicas vote
/// and acknowledge meanwhile.
pub(crate) async fn verify(
    verifications: Vec<(Arc<Mailbox>, Verification)>,
    background: Background,
    stop: CancellationToken,
    done: impl FnOnce(),
) {
    for (mailbox, mut verification) in verifications {
        let stopped = stop.clone();
        let verified = background.run(move || {
            // A node that stops in the middle of it begins anew at its next start.
            while !stopped.is_cancelled() {
                if verification.step()? {
                    return Ok(true);
                }
            }
            Ok::<_, StoreError>(false)
        });
        match verified.await {
            Some(Ok(true)) => mailbox.control(Control::Verified(Ok(()))),
            // A damaged replica is the host's to cure; the others serve.
            Some(Err(cause)) => mailbox.control(Control::Verified(Err(cause))),
            Some(Ok(false)) | None => return,
        }
    }
    done();
}
