//! What a node starts beside its replicas: work on the disk and the rows, on the members, on transactions.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;

use kv_storage::EngineFactory;
use kv_storage::disk::Disk;
use kv_types::ClusterId;

use super::{Parts, Run};
use crate::background::{Background, Priority};
use crate::fatal::Fatal;
use crate::gateway::Gateway;
use crate::host::Shared;
use crate::identity::Table;
use crate::maintenance::Maintenance;
use crate::meta::{Applied, Meta};
use crate::node_error::NodeError;
use crate::reconciler::Reconciler;
use crate::repair::Repairer;
use crate::rewriting::Rewriter;
use crate::scrub::Scrub;
use crate::txns::Txns;
use crate::watchdog::Watchdog;

/// The threads for long work on the disk, and the handles to join them by.
pub(super) struct LongWork {
    pub(super) background: Background,
    pub(super) merge_now: Background,
    pub(super) threads: Vec<JoinHandle<()>>,
}

impl LongWork {
    pub(super) fn start(fatal: &Fatal) -> Result<Self, NodeError> {
        let os = |cause| NodeError::Os { doing: "start a thread", cause };
        let (background, low) = Background::start(Priority::Low, fatal.clone()).map_err(os)?;
        let (merge_now, urgent) = Background::start(Priority::Urgent, fatal.clone()).map_err(os)?;
        Ok(Self { background, merge_now, threads: vec![low, urgent] })
    }
}

impl Run {
    /// Starts what keeps the disk small and the rows sound.
    pub(super) fn start_maintenance(
        &self,
        parts: &Parts,
        gateway: &Arc<Gateway>,
        shared: Shared,
        (disk, engines): (Arc<dyn Disk>, Arc<dyn EngineFactory>),
        cluster_id: ClusterId,
    ) {
        let (merge_slot, merge_waits) = (Arc::default(), Arc::<AtomicBool>::default());
        if let Some(interval) = self.config.scrub_interval {
            let scrub = Scrub {
                gateway: Arc::clone(gateway),
                links: Arc::clone(&parts.links),
                background: shared.background.clone(),
                cluster_id,
                interval,
                merge_slot: Arc::clone(&merge_slot),
                merge_waits: Arc::clone(&merge_waits),
            };
            parts.tasks.spawn(scrub.run(self.halt.clone()));
        }
        let watchdog =
            Watchdog { engines: Arc::clone(&engines), gateway: Arc::clone(gateway), wal: shared.wal.clone() };
        parts.tasks.spawn(watchdog.run(self.halt.clone()));
        let rewriter = Rewriter {
            gateway: Arc::clone(gateway),
            shared: shared.clone(),
            disk: Arc::clone(&disk),
            installer: Arc::clone(&parts.installer),
            slack_bytes: self.config.base_slack_bytes,
            merge_slot: Arc::clone(&merge_slot),
        };
        let maintenance = Maintenance {
            gateway: Arc::clone(gateway),
            shared,
            disk,
            memtable_bytes_max: self.config.memtable_bytes,
            disk_free_min: self.config.disk_free_min,
            rewriter,
            merge_waits,
        };
        let repairer = Repairer::new(
            Arc::clone(gateway),
            Arc::clone(&parts.links),
            Arc::clone(&parts.installer),
            parts.fatal.clone(),
            cluster_id,
        );
        parts.tasks.spawn(maintenance.run(repairer, self.halt.clone()));
    }

    pub(super) fn start_txns(&self, parts: &Parts, gateway: &Arc<Gateway>) -> Arc<Txns> {
        let txns = Arc::new(Txns::new(
            (Arc::clone(gateway), Arc::clone(&parts.links)),
            (parts.tasks.clone(), self.halt.clone()),
            parts.fatal.clone(),
        ));
        // Set once: this runs once.
        let _ = parts.txns.set(Arc::clone(&txns));
        parts.tasks.spawn(Arc::clone(&txns).keep());
        txns
    }

    pub(super) fn start_reconciler(
        &self,
        parts: &Parts,
        gateway: &Arc<Gateway>,
        (table, foreseen): (Table, Applied),
    ) -> Meta {
        let meta = Meta::new(Arc::clone(gateway), Arc::clone(&parts.links), table.cluster_id());
        // Set once: this runs once.
        let _ = parts.meta.set(meta.clone());
        let reconciler = Reconciler {
            gateway: Arc::clone(gateway),
            meta: meta.clone(),
            links: Arc::clone(&parts.links),
            directory: Arc::clone(&parts.directory),
            peers: Arc::clone(&parts.membership),
            fatal: parts.fatal.clone(),
            table,
            foreseen,
            configured: self.config.members.clone(),
            addresses: (self.config.advertise_peer.clone(), self.client_addr.clone()),
            patience: self.config.election_timeout_min * 4,
        };
        parts.tasks.spawn(reconciler.run(self.halt.clone()));
        meta
    }
}
