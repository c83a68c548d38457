//! One way to stop the node for good, from any task or thread.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

/// Stops the node and remembers the first reason.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fatal {
    stop: CancellationToken,
    reason: Arc<OnceLock<String>>,
}

impl Fatal {
    /// Stops the node. Only the first reason is kept.
    pub(crate) fn stop(&self, reason: String) {
        // A later reason is a consequence of the first.
        let _ = self.reason.set(reason);
        self.stop.cancel();
    }

    /// Stops the node if the caller panics before it drops this. A task or thread that is gone would leave a node that
    /// still votes and listens, but writes or merges nothing.
    pub(crate) fn on_panic(&self, who: String) -> OnPanic {
        OnPanic { fatal: self.clone(), who }
    }

    /// Completes when the node must stop.
    pub(crate) async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Why the node stops, if it does.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.reason.get().map(String::as_str)
    }
}

/// Held by whoever the node cannot do without.
#[derive(Debug)]
pub(crate) struct OnPanic {
    fatal: Fatal,
    who: String,
}

impl Drop for OnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.fatal.stop(format!("{} panicked", self.who));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[tokio::test]
    async fn a_panic_stops_the_node_and_an_end_does_not() {
        let fatal = Fatal::default();
        drop(fatal.on_panic("nobody".to_owned()));
        assert_eq!(fatal.reason(), None);
        let thread = fatal.clone();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _guard = thread.on_panic("the thread".to_owned());
            panic!("for the test");
        }));
        assert!(panicked.is_err());
        fatal.stopped().await;
        assert_eq!(fatal.reason(), Some("the thread panicked"));
        let task = Fatal::default();
        let guarded = task.clone();
        let ended = tokio::spawn(async move {
            let _guard = guarded.on_panic("the task".to_owned());
            tokio::task::yield_now().await;
            panic!("for the test");
        });
        assert!(ended.await.is_err());
        assert_eq!(task.reason(), Some("the task panicked"));
    }
}
