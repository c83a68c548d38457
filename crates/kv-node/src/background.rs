//! One thread at the lowest priority for long work on the disk: merging, comparing, removing, freeing large tables; and a
//! second one a little below normal, on which a merge goes on that is behind, a rewritten base runs after the writes, and
//! bases are opened.
//!
//! A merge at normal priority takes the commit's CPU for whole scheduler slices: commit p99 rises from 0.2 to 4 ms on
//! two cores; at nice 19 it does not, but on a full machine it does not get on either, and what it should free fills up.
//! sled's own threads write what merges hand them. They inherit the priority of the thread that first opens a base: at
//! nice 19 they would hold back a merge that is in a hurry.

use std::thread::JoinHandle;

use kv_storage::Retired;
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::fatal::Fatal;

/// Work that may wait.
const QUEUE_LEN_MAX: usize = 256;

/// At which priority a thread works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Below everything else.
    Low,
    /// Below those that answer, but with a share of a full machine that keeps up with them.
    Urgent,
}

impl Priority {
    fn nice(self) -> i32 {
        match self {
            Self::Low => 19,
            Self::Urgent => 5,
        }
    }
}

type Work = Box<dyn FnOnce() + Send>;

/// The way to the thread; cheap to clone. The thread ends when all handles are gone and its work is done.
#[derive(Clone, Debug)]
pub(crate) struct Background {
    work: mpsc::Sender<Work>,
}

impl Background {
    pub(crate) fn start(priority: Priority, fatal: Fatal) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (work, mut queue) = mpsc::channel::<Work>(QUEUE_LEN_MAX);
        let name = match priority {
            Priority::Low => "merge",
            Priority::Urgent => "merge-now",
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _guard = fatal.on_panic("the merge thread".to_owned());
            // On Linux this is the priority of the calling thread alone.
            if let Err(error) = rustix::process::setpriority_process(None, priority.nice()) {
                warn!(%error, "the merge thread keeps its priority");
            }
            while let Some(work) = queue.blocking_recv() {
                work();
            }
        })?;
        Ok((Self { work }, thread))
    }

    /// Runs work on the thread, once there is room in its queue; `None` if the thread is gone. Work is never dropped for
    /// want of room: a checkpoint that gets lost leaves its replica waiting for its end for ever.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (done, result) = oneshot::channel();
        let work: Work = Box::new(move || drop(done.send(work())));
        self.work.send(work).await.ok()?;
        result.await.ok()
    }

    /// Whether what a replica has to remove finds room in the queue.
    pub(crate) fn has_room(&self) -> bool {
        self.work.capacity() > QUEUE_LEN_MAX / 2
    }

    /// Removes files on the thread, if [it has room](Background::has_room). What stays, for want of it or because the disk refuses, is
    /// removed later: a base by the next start, effects when more of them go.
    pub(crate) fn remove(&self, retired: Retired) {
        let removal = move || {
            if let Err(cause) = retired.remove() {
                warn!(%cause, "files that are not needed any more stay for now");
            }
        };
        let _ = self.work.try_send(Box::new(removal));
    }

    /// Drops something on the thread, because that takes long.
    pub(crate) fn free<T: Send + 'static>(&self, thing: T) {
        // If the queue is full it is dropped here and now, which is slow but right.
        let _ = self.work.try_send(Box::new(move || drop(thing)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn work_waits_for_room_in_a_full_queue() {
        let (background, thread) = Background::start(Priority::Low, Fatal::default()).unwrap();
        let (started, begun) = channel();
        let (open, gate) = channel::<()>();
        let block = move || {
            started.send(()).unwrap();
            gate.recv().unwrap();
        };
        assert!(background.work.try_send(Box::new(block)).is_ok());
        begun.recv().unwrap();
        assert!(background.has_room());
        for _ in 0..QUEUE_LEN_MAX {
            assert!(background.work.try_send(Box::new(|| ())).is_ok());
        }
        assert!(!background.has_room());
        let mut run = Box::pin(background.run(|| 7));
        let polled = run.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Pending), "{polled:?}");
        open.send(()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert_eq!(runtime.block_on(run), Some(7));
        drop(background);
        thread.join().unwrap();
    }
}
