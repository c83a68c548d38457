//! Raises the durable ceiling of the Lamport clock, off the path of requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kv_shard::Ceiling;
use kv_storage::CeilingFile;
use kv_storage::data_dir::DataDirError;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::fatal::Fatal;

/// The ceiling of a node's clock.
#[derive(Debug)]
pub(crate) struct NodeCeiling {
    file: Arc<CeilingFile>,
    /// Whether a raise is under way in the background.
    busy: Arc<AtomicBool>,
    /// Waited for before the data directory is given back.
    tasks: TaskTracker,
    runtime: Handle,
    fatal: Fatal,
}

impl NodeCeiling {
    /// Must be called within the node's runtime.
    pub(crate) fn new(file: Arc<CeilingFile>, tasks: TaskTracker, fatal: Fatal) -> Self {
        let runtime = Handle::current();
        Self { file, busy: Arc::default(), tasks, runtime, fatal }
    }
}

impl Ceiling for NodeCeiling {
    fn durable(&self) -> u64 {
        self.file.durable()
    }

    fn begin(&self, to: u64) {
        if self.busy.swap(true, Ordering::AcqRel) {
            return;
        }
        let (file, busy, fatal) = (Arc::clone(&self.file), Arc::clone(&self.busy), self.fatal.clone());
        let raise = move || {
            let raised = file.raise(to);
            busy.store(false, Ordering::Release);
            match raised {
                Ok(()) => {}
                // There is half a step to go until the clock needs it: room may come until then.
                Err(cause) if cause.is_no_room() => {
                    warn!(%cause, "no room for the ceiling of the Lamport clock");
                }
                Err(cause) => stop(&fatal, &cause),
            }
        };
        self.tasks.spawn_blocking_on(raise, &self.runtime);
    }

    fn raise(&self, to: u64) -> Result<(), DataDirError> {
        let raise = || self.file.raise(to);
        let async_worker =
            Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
        let raised = if async_worker { tokio::task::block_in_place(raise) } else { raise() };
        raised.inspect_err(|cause| stop(&self.fatal, cause))
    }
}

fn stop(fatal: &Fatal, cause: &DataDirError) {
    fatal.stop(format!(
        "the ceiling of the Lamport clock cannot be raised: {cause}. Nothing is lost; see to the disk and start the node \
         again"
    ));
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use kv_shard::LamportClock;
    use kv_storage::disk::faulty::{FaultKind, VirtualDisk};
    use kv_types::limits::LAMPORT_STEP;
    use kv_types::{Lamport, NodeId};

    use super::*;

    fn ceiling(disk: &VirtualDisk, tasks: &TaskTracker, fatal: &Fatal) -> Arc<NodeCeiling> {
        CeilingFile::create(disk).unwrap();
        let file = CeilingFile::open(Arc::new(disk.clone())).unwrap();
        Arc::new(NodeCeiling::new(Arc::new(file), tasks.clone(), fatal.clone()))
    }

    #[tokio::test]
    async fn a_start_raises_the_ceiling_in_the_background() {
        let (disk, tasks, fatal) = (VirtualDisk::new(), TaskTracker::new(), Fatal::default());
        let clock = LamportClock::new(NodeId::new(1), ceiling(&disk, &tasks, &fatal));
        tasks.close();
        tasks.wait().await;
        let calls = disk.calls();
        let last = (0..1000).map(|_| clock.stamp(Lamport::ZERO).unwrap().counter).last();
        assert_eq!((last, disk.calls()), (Some(1000), calls), "no stamp waits for the disk");
        let again = LamportClock::new(NodeId::new(1), ceiling(&disk, &tasks, &fatal));
        assert_eq!(again.now(), LAMPORT_STEP);
    }

    #[tokio::test]
    async fn a_full_disk_is_tried_again_later() {
        let (disk, tasks, fatal) = (VirtualDisk::new(), TaskTracker::new(), Fatal::default());
        let seam = ceiling(&disk, &tasks, &fatal);
        tasks.close();
        disk.fail_nth(FaultKind::Write, 1, ErrorKind::StorageFull);
        seam.begin(5);
        tasks.wait().await;
        assert_eq!((seam.durable(), fatal.reason()), (0, None));
        seam.begin(6);
        tasks.wait().await;
        assert_eq!((seam.durable(), fatal.reason()), (6, None));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_disk_that_fails_stops_the_node() {
        let (disk, tasks, fatal) = (VirtualDisk::new(), TaskTracker::new(), Fatal::default());
        let seam = ceiling(&disk, &tasks, &fatal);
        disk.power_off_after(0);
        assert!(seam.raise(5).is_err());
        assert_eq!(seam.durable(), 0);
        fatal.stopped().await;
        assert!(fatal.reason().unwrap().contains("Lamport clock cannot be raised"), "{:?}", fatal.reason());
    }
}
