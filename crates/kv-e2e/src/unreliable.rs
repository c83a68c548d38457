//! A layer between clients and nodes that loses answers and sends requests again.
//!
//! # Terms
//!
//! A *double* is a request that the layer sends once more by itself, under the request id its client gave it. It is sent
//! *at once*, beside the original; *soon*, to the same node; or *late*, when the client has long had its answer, to any
//! node, which is then followed to the leader of that time. Its answer goes to nobody, and is counted.
//!
//! # How it works
//!
//! [`Layer::start`] listens on one port for each node. Clients are given these ports as endpoints, and the map they ask
//! for names them, so that they never meet a node itself. Streams of requests, sessions and the map are passed through
//! frame by frame. A random choice for each message, from a seed, decides what is done to it: an answer is dropped after
//! the node gave it, a stream is broken when the node has answered, an answer about sessions is replaced by an error, a
//! request is doubled. [`Layer::counted`] says how often, and what the doubles were answered, so that a test can show
//! that its faults happened.
//!
//! Nothing grows with time: doubles that wait are bounded by [`KEPT_MAX`], those that are under way by
//! [`ASKED_MAX`] a node; beyond it requests are not doubled, which is counted, too.
//!
//! # What it does not do
//!
//! It changes no message and never delays an original. Of the unary calls it carries only those that `kv-client` makes
//! to write and to ask for outcomes.

mod counts;
mod kept;
mod service;
mod stream;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::Context as _;
use kv_client::v1;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};

pub use counts::Counted;
use counts::Counts;
use kept::Kept;

/// Doubles that wait for their time.
pub const KEPT_MAX: usize = 4096;

/// Doubles sent to one node and not answered.
pub const ASKED_MAX: usize = 1024;

/// Bytes in flight on a stream, and on a connection, before flow control stops the sender.
const WINDOW_BYTES: u32 = 8 << 20;

/// Bytes of a message; a frame of the pipeline is the largest there is.
const MESSAGE_BYTES_MAX: usize = 8 << 20;

const CONNECT_MAX: Duration = Duration::from_secs(1);

/// How likely each fault is.
#[derive(Clone, Debug)]
pub struct Faults {
    /// That an answer is dropped.
    pub lose_reply: f64,
    /// That the stream is broken instead of a frame of answers being passed on.
    pub break_stream: f64,
    /// That a write is sent twice at once.
    pub twice: f64,
    /// That a write is sent again within a second.
    pub soon: f64,
    /// That a write is sent again late.
    pub late: f64,
    /// When that is.
    pub lateness: Range<Duration>,
    /// That the answer about a session is replaced by an error.
    pub lose_session_reply: f64,
}

impl Faults {
    /// A layer that only passes on.
    pub fn none() -> Self {
        Self {
            lose_reply: 0.0,
            break_stream: 0.0,
            twice: 0.0,
            soon: 0.0,
            late: 0.0,
            lateness: Duration::ZERO..Duration::from_millis(1),
            lose_session_reply: 0.0,
        }
    }
}

/// One port for each node.
#[derive(Debug)]
pub struct Layer {
    shared: Arc<Shared>,
    /// Ends them all when it is dropped.
    _tasks: JoinSet<()>,
}

/// What the ports have in common.
#[derive(Debug)]
struct Shared {
    faults: Faults,
    seed: u64,
    /// How many random sequences were begun.
    sequences: AtomicU64,
    counts: Counts,
    nodes: BTreeMap<u64, Behind>,
    kept: mpsc::Sender<Kept>,
}

/// A node behind the layer.
#[derive(Debug)]
struct Behind {
    channel: Channel,
    /// Where the layer listens for it.
    address: String,
    /// Doubles for it that are not sent by the stream of their originals.
    doubles: mpsc::Sender<Kept>,
}

impl Behind {
    fn kv(&self) -> v1::kv_client::KvClient<Channel> {
        v1::kv_client::KvClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

impl Shared {
    /// Random choices of one stream or task.
    fn choices(&self) -> ChaCha8Rng {
        let sequence = self.sequences.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        ChaCha8Rng::seed_from_u64(self.seed.wrapping_add(sequence))
    }

    /// Any node.
    fn any_node(&self, choices: &mut ChaCha8Rng) -> u64 {
        let nth = choices.random_range(0..self.nodes.len());
        self.nodes.keys().nth(nth).copied().unwrap_or_default()
    }

    /// Keeps a double for its time, unless too many are kept.
    fn keep(&self, kept: Kept) {
        if self.kept.try_send(kept).is_err() {
            self.counts.not_doubled();
        }
    }
}

impl Layer {
    /// Listens for each of these nodes, whose client addresses are given.
    ///
    /// # Errors
    /// If there are no ports.
    pub async fn start(nodes: &BTreeMap<u64, String>, faults: Faults, seed: u64) -> anyhow::Result<Self> {
        let (kept, waiting) = mpsc::channel(ASKED_MAX);
        let (mut behind, mut listeners, mut queues) = (BTreeMap::new(), Vec::new(), Vec::new());
        for (node, address) in nodes {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            let channel = Endpoint::from_shared(format!("http://{address}"))
                .with_context(|| format!("node {node} at {address}"))?
                .connect_timeout(CONNECT_MAX)
                .tcp_nodelay(true)
                .initial_stream_window_size(WINDOW_BYTES)
                .initial_connection_window_size(WINDOW_BYTES)
                .connect_lazy();
            let (doubles, queue) = mpsc::channel(ASKED_MAX);
            let address = listener.local_addr()?.to_string();
            behind.insert(*node, Behind { channel, address, doubles });
            listeners.push((*node, listener));
            queues.push((*node, queue));
        }
        let (counts, sequences) = (Counts::default(), AtomicU64::new(0));
        let shared = Arc::new(Shared { faults, seed, sequences, counts, nodes: behind, kept });
        let mut tasks = JoinSet::new();
        for (node, listener) in listeners {
            tasks.spawn(serve(service::Port::new(node, &shared), listener));
        }
        for (node, queue) in queues {
            tasks.spawn(kept::send_doubles(Arc::clone(&shared), node, queue));
        }
        tasks.spawn(kept::keep(Arc::clone(&shared), waiting));
        Ok(Self { shared, _tasks: tasks })
    }

    /// Where clients find the layer.
    pub fn endpoints(&self) -> Vec<String> {
        self.shared.nodes.values().map(|behind| behind.address.clone()).collect()
    }

    /// What it has done so far.
    pub fn counted(&self) -> Counted {
        self.shared.counts.read()
    }
}

async fn serve(port: service::Port, listener: TcpListener) {
    let kv = v1::kv_server::KvServer::new(port.clone())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let served = Server::builder()
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .add_service(kv)
        .add_service(v1::sessions_server::SessionsServer::new(port.clone()))
        .add_service(v1::cluster_server::ClusterServer::new(port))
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
        .await;
    if let Err(cause) = served {
        eprintln!("the layer does not serve a port any more: {cause}");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::wait;

    #[tokio::test]
    async fn no_more_doubles_wait_than_the_bound() {
        let nowhere = BTreeMap::from([(1, "127.0.0.1:1".to_owned())]);
        let layer = Layer::start(&nowhere, Faults::none(), 1).await.unwrap();
        let due = Instant::now() + Duration::from_secs(3600);
        let request = v1::PipelineRequest::default();
        let kept = Kept { due, from: 1, to: 1, is_late: true, tries: 0, request };
        for _ in 0..KEPT_MAX + 10 {
            layer.shared.keep(kept.clone());
            tokio::task::yield_now().await;
        }
        let look = || async {
            let counted = layer.counted();
            let all = counted.waiting == KEPT_MAX as u64 && counted.not_doubled == 10;
            if all { Ok(()) } else { Err(format!("{counted:?}")) }
        };
        wait::until("all to be kept or counted", Duration::from_secs(10), look).await.unwrap();
    }

    #[tokio::test]
    async fn clients_are_told_the_ports_of_the_layer() {
        let nodes = BTreeMap::from([(1, "127.0.0.1:1".to_owned()), (2, "127.0.0.1:2".to_owned())]);
        let layer = Layer::start(&nodes, Faults::none(), 1).await.unwrap();
        let endpoints = layer.endpoints();
        assert_eq!(endpoints.len(), 2);
        assert!(
            endpoints.iter().all(|endpoint| nodes.values().all(|node| node != endpoint)),
            "{endpoints:?}"
        );
    }
}
