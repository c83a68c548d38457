//! What a client says in every request: which cluster it means and the largest Lamport counter it has seen.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kv_proto::v1;

use crate::reply::Header;

/// The client's share of the context of its requests.
#[derive(Debug)]
pub(crate) struct Token {
    cluster: String,
    counter: AtomicU64,
}

impl Token {
    pub(crate) fn new(cluster: String) -> Self {
        Self { cluster, counter: AtomicU64::new(0) }
    }

    /// Merges what a reply says.
    pub(crate) fn seen(&self, header: &Header) {
        self.counter.fetch_max(header.lamport.counter, Ordering::Relaxed);
    }

    /// The largest counter seen.
    pub(crate) fn counter(&self) -> u64 {
        self.counter.load(Ordering::Relaxed)
    }

    /// The context of a request whose answer is waited for so long.
    pub(crate) fn context_for(&self, patience: Duration) -> v1::RequestContext {
        let deadline_ms = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
        v1::RequestContext { deadline_ms, ..self.context() }
    }

    /// The context of a request.
    pub(crate) fn context(&self) -> v1::RequestContext {
        let counter = self.counter();
        v1::RequestContext {
            cluster: self.cluster.clone(),
            deadline_ms: 0,
            lamport: (counter > 0).then_some(counter),
            map_version: 0,
            request_id: None,
        }
    }
}
