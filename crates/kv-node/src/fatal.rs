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

    /// Completes when the node must stop.
    pub(crate) async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Why the node stops, if it does.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.reason.get().map(String::as_str)
    }
}
