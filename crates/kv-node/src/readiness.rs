//! Whether the node serves, and if not, why.

use std::sync::{Arc, OnceLock};

use crate::gateway::Gateway;
use crate::membership::Membership;

/// What readiness depends on.
#[derive(Debug)]
pub(crate) struct Readiness {
    membership: Arc<Membership>,
    /// Set once the replicas are open.
    gateway: OnceLock<Arc<Gateway>>,
}

impl Readiness {
    pub(crate) fn new(membership: Arc<Membership>) -> Self {
        Self { membership, gateway: OnceLock::new() }
    }

    /// The replicas are open.
    pub(crate) fn serve(&self, gateway: Arc<Gateway>) {
        // It is set once, when the replicas have been opened.
        let _ = self.gateway.set(gateway);
    }

    /// Why the node does not serve; `None` if it does.
    pub(crate) fn problem(&self) -> Option<String> {
        if !self.membership.is_formed() {
            let missing: Vec<String> = self.membership.missing().iter().map(ToString::to_string).collect();
            return Some(format!("the cluster is not formed; not heard from: {}", missing.join(", ")));
        }
        let Some(gateway) = self.gateway.get() else {
            return Some("the replicas are being opened".to_owned());
        };
        let orphan = gateway.shards.values().find(|shard| shard.leadership.leader().is_none());
        orphan.map(|shard| format!("{} has no leader known here", shard.shard))
    }
}
