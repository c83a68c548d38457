//! The way to the peers: this node dials every peer and sends only on what it dialled, so that each direction can fail
//! alone. What the peers send arrives at `service::peer`.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use kv_proto::sealed::SealError;
use kv_proto::{sealed, v1};
use kv_raft::{Message, MessageKind};
use kv_shard::LamportClock;
use kv_types::limits::{
    PEER_FRAME_BYTES_MAX, PEER_FRAME_BYTES_TARGET, PEER_QUEUE_BYTES_MAX, PEER_QUEUE_LEN_MAX,
};
use kv_types::{NodeId, ShardId, Term};
use prost::Message as _;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Code;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tracing::{debug, error, info, warn};

use crate::clock;
use crate::directory::Directory;
use crate::gateway::ShardHandle;
use crate::mailbox::{Control, Mailbox};
use crate::membership::Membership;
use crate::metrics::Metrics;
use crate::raft_wire;
use crate::snapshots;

/// The metadata key under which a link's caller introduces itself.
pub(crate) const IDENTITY_KEY: &str = "quorate-identity-bin";

/// Frames that wait for the socket; the queue before it is where batches grow.
const FRAMES_AHEAD: usize = 2;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const REDIAL_FIRST: Duration = Duration::from_millis(50);
const REDIAL_MAX: Duration = Duration::from_millis(500);
/// While the cluster is not formed, peers are asked this often how far they are.
const FORMATION_POLL: Duration = Duration::from_millis(50);

/// Messages that wait for one peer.
#[derive(Debug, Default)]
struct Outbox {
    queue: Mutex<Queue>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<(ShardId, Message, usize)>,
    bytes: usize,
    /// Nothing is queued for a peer that is not connected: it would be stale when it arrives.
    open: bool,
}

impl Outbox {
    fn push(&self, shard: ShardId, message: Message) -> bool {
        let bytes = message_bytes(&message);
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let full = queue.messages.len() >= PEER_QUEUE_LEN_MAX || queue.bytes + bytes > PEER_QUEUE_BYTES_MAX;
        if full || !queue.open {
            return false;
        }
        queue.bytes += bytes;
        queue.messages.push_back((shard, message, bytes));
        drop(queue);
        self.arrived.notify_one();
        true
    }

    fn set_open(&self, open: bool) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        *queue = Queue { open, ..Queue::default() };
    }

    /// Waits for messages and takes as many as one frame shall hold.
    async fn take(&self) -> Vec<(ShardId, Message)> {
        loop {
            let batch = self.take_now();
            if !batch.is_empty() {
                return batch;
            }
            self.arrived.notified().await;
        }
    }

    fn take_now(&self) -> Vec<(ShardId, Message)> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let mut batch = Vec::with_capacity(queue.messages.len());
        let mut taken = 0;
        while taken < PEER_FRAME_BYTES_TARGET
            && let Some((shard, message, bytes)) = queue.messages.pop_front()
        {
            taken += bytes;
            batch.push((shard, message));
        }
        queue.bytes -= taken;
        batch
    }
}

/// What a message weighs in a frame, roughly: its entries, and a little for the rest.
pub(crate) fn message_bytes(message: &Message) -> usize {
    const OVERHEAD: u64 = 64;
    let entries = match &message.kind {
        MessageKind::Append { entries, .. } => {
            entries.iter().map(|entry| entry.body.payload_bytes() + OVERHEAD).sum()
        }
        MessageKind::AppendAck { .. }
        | MessageKind::Vote { .. }
        | MessageKind::VoteAck { .. }
        | MessageKind::TimeoutNow { .. }
        | MessageKind::ReadIndex { .. }
        | MessageKind::ReadIndexAck { .. } => 0,
    };
    usize::try_from(entries + OVERHEAD).unwrap_or(usize::MAX)
}

/// The links to all peers.
#[derive(Debug)]
pub(crate) struct Links {
    me: NodeId,
    /// The other members; they come and go.
    peers: RwLock<BTreeMap<NodeId, Arc<Peer>>>,
    clock: Arc<LamportClock>,
    metrics: Arc<Metrics>,
    membership: Arc<Membership>,
    directory: Arc<Directory>,
    /// The replicas that are told when a peer cannot be reached.
    replicas: Mutex<Vec<Arc<Mailbox>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Peer {
    addr: String,
    outbox: Outbox,
    endpoint: Endpoint,
    /// A connection for calls that are no part of the link, kept up as long as it is used.
    calls: Channel,
    /// Ends the link for good.
    gone: CancellationToken,
}

impl Peer {
    /// A peer with this address, dialled at it or at that of the proxy before it.
    fn new(node: NodeId, addr: &str, proxy: Option<&str>) -> Result<Self, AddressError> {
        let dialled = proxy.unwrap_or(addr);
        let endpoint = Endpoint::from_shared(format!("http://{dialled}"))
            .map_err(|_| AddressError { node, addr: dialled.to_owned() })?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(1))
            .keep_alive_timeout(Duration::from_secs(2))
            .keep_alive_while_idle(true)
            .initial_stream_window_size(u32::try_from(PEER_FRAME_BYTES_MAX).ok())
            .initial_connection_window_size(u32::try_from(2 * PEER_FRAME_BYTES_MAX).ok());
        let (addr, gone, calls) = (addr.to_owned(), CancellationToken::new(), endpoint.connect_lazy());
        Ok(Self { addr, outbox: Outbox::default(), endpoint, calls, gone })
    }
}

/// Why an address cannot be dialled.
#[derive(Debug, thiserror::Error)]
#[error("the address `{addr}` of {node} cannot be dialled")]
pub struct AddressError {
    node: NodeId,
    addr: String,
}

impl Links {
    pub(crate) fn new(
        (me, members): (NodeId, &BTreeMap<NodeId, String>),
        membership: Arc<Membership>,
        (directory, clock): (Arc<Directory>, Arc<LamportClock>),
        metrics: Arc<Metrics>,
        (tasks, stop): (TaskTracker, CancellationToken),
    ) -> Result<Self, AddressError> {
        let mut peers = BTreeMap::new();
        for (node, addr) in members.iter().filter(|(node, _)| **node != me) {
            peers.insert(*node, Arc::new(Peer::new(*node, addr, directory.proxy(*node))?));
        }
        let (peers, replicas) = (RwLock::new(peers), Mutex::default());
        Ok(Self { me, peers, clock, metrics, membership, directory, replicas, tasks, stop })
    }

    fn peer(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).get(&node).cloned()
    }

    /// Links to exactly these members from now on, at these addresses.
    pub(crate) fn set_members(self: &Arc<Self>, members: &BTreeMap<NodeId, String>) {
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        peers.retain(|node, peer| {
            let stays = members.get(node) == Some(&peer.addr);
            if !stays {
                peer.gone.cancel();
            }
            stays
        });
        for (node, addr) in members.iter().filter(|(node, _)| **node != self.me) {
            if !peers.contains_key(node) {
                match Peer::new(*node, addr, self.directory.proxy(*node)) {
                    Ok(peer) => self.keep_up(*node, Arc::clone(peers.entry(*node).or_insert(Arc::new(peer)))),
                    // Whoever joined under it cannot be reached under it.
                    Err(cause) => warn!(%cause, "a member cannot be dialled"),
                }
            }
        }
    }

    /// A connection of its own to a peer, for calls that are no part of the link.
    pub(crate) fn dial(&self, node: NodeId) -> Option<Channel> {
        self.peer(node).map(|peer| peer.endpoint.connect_lazy())
    }

    /// The way for calls that are no part of the link, of which there are many.
    pub(crate) fn calls(&self, node: NodeId) -> Option<v1::peer_client::PeerClient<Channel>> {
        let client = v1::peer_client::PeerClient::new(self.peer(node)?.calls.clone());
        Some(
            client
                .max_decoding_message_size(PEER_FRAME_BYTES_MAX)
                .max_encoding_message_size(PEER_FRAME_BYTES_MAX),
        )
    }

    /// Tells these replicas from now on when a peer cannot be reached.
    pub(crate) fn watch(&self, replicas: Vec<Arc<Mailbox>>) {
        *self.replicas.lock().unwrap_or_else(PoisonError::into_inner) = replicas;
    }

    /// Queues messages; what has no room is dropped, which Raft tolerates.
    pub(crate) fn send(&self, shard: ShardId, messages: Vec<Message>) {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        for message in messages {
            let taken = peers.get(&message.to).is_some_and(|peer| peer.outbox.push(shard, message));
            if !taken {
                self.metrics.messages_dropped.inc();
            }
        }
    }

    /// Streams a shard's rows to a peer, and tells the replica how that ended.
    pub(crate) fn send_snapshot(&self, shard: ShardHandle, to: NodeId, term: Term) {
        self.stream(shard, to, term, false);
    }

    /// Streams a shard's rows to a member that has asked for them, because its own are damaged. Raft hears nothing of it.
    pub(crate) fn send_rows(&self, shard: ShardHandle, to: NodeId, term: Term) {
        self.stream(shard, to, term, true);
    }

    fn stream(&self, shard: ShardHandle, to: NodeId, term: Term, repair: bool) {
        let Some(peer) = self.peer(to) else { return };
        // On a connection of its own: receivers that stall use up a connection's window, and heartbeats must not wait for
        // it. Nor is a connection that damaged one snapshot, or broke, used for the next or the rest.
        let dial = move || peer.endpoint.connect_lazy();
        let subject = v1::SnapshotSubject {
            shard: shard.shard.get(),
            from: self.me.get(),
            to: to.get(),
            term: term.get(),
            cluster_id: self.membership.cluster_id().unwrap_or_default().get(),
            repair,
            ..v1::SnapshotSubject::default()
        };
        let (stop, metrics) = (self.stop.clone(), Arc::clone(&self.metrics));
        self.tasks.spawn(async move {
            // A stream may take minutes, and a node that stops does not wait for it.
            let result = tokio::select! {
                () = stop.cancelled() => return,
                result = snapshots::send(dial, subject, &shard.mailbox, &metrics) => result,
            };
            if matches!(result, Err(snapshots::TransferError::Sealed(_))) {
                metrics.frames_bad.inc();
            }
            let result =
                result.map_err(|error| info!(shard = %shard.shard, %to, %error, "the snapshot was not sent"));
            if !repair {
                shard.mailbox.control(Control::SnapshotSent(to, result));
            }
        });
    }

    /// Starts a task for each peer.
    pub(crate) fn start(self: &Arc<Self>) {
        for (node, peer) in self.peers.read().unwrap_or_else(PoisonError::into_inner).iter() {
            self.keep_up(*node, Arc::clone(peer));
        }
    }

    fn keep_up(self: &Arc<Self>, node: NodeId, peer: Arc<Peer>) {
        let links = Arc::clone(self);
        self.tasks.spawn(async move {
            let gone = peer.gone.clone();
            tokio::select! {
                () = links.stop.cancelled() => {}
                () = gone.cancelled() => links.lost(node, &peer),
                () = links.keep(node, &peer) => {}
            }
        });
    }

    /// Nothing is sent over the link any more.
    fn lost(&self, node: NodeId, peer: &Peer) {
        peer.outbox.set_open(false);
        self.directory.update(node, |contact| contact.connected = false);
        for replica in self.replicas.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            replica.control(Control::Unreachable(node));
        }
    }

    /// Keeps a link to a peer, for ever.
    async fn keep(&self, node: NodeId, peer: &Peer) {
        let mut pause = REDIAL_FIRST;
        let mut channel = peer.endpoint.connect_lazy();
        loop {
            match self.link(node, peer, channel.clone()).await {
                Ok(()) => {
                    pause = REDIAL_FIRST;
                    tokio::time::sleep(FORMATION_POLL).await;
                }
                Err(status) => {
                    debug!(peer = %node, %status, "no link");
                    if status.code() == Code::DataLoss {
                        // Whatever damages bytes may sit on the connection.
                        channel = peer.endpoint.connect_lazy();
                    }
                    tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
                    pause = (pause * 2).min(REDIAL_MAX);
                }
            }
            self.lost(node, peer);
        }
    }

    /// Introduces this node, and sends until the link breaks. `Ok` if the cluster is not formed yet.
    async fn link(&self, node: NodeId, peer: &Peer, channel: Channel) -> Result<(), tonic::Status> {
        let mut client = v1::peer_client::PeerClient::new(channel)
            .max_decoding_message_size(PEER_FRAME_BYTES_MAX)
            .max_encoding_message_size(PEER_FRAME_BYTES_MAX);
        let hello: v1::HelloRequest = sealed::seal(&self.membership.introduce(node));
        let reply = tokio::time::timeout(CONNECT_TIMEOUT, client.hello(hello))
            .await
            .map_err(|_| tonic::Status::deadline_exceeded("no answer to hello"))??
            .into_inner();
        let answer = sealed::open(reply)
            .map_err(|cause| damaged(&self.metrics, node, "answer to a greeting", &cause))?;
        let identity = answer.identity.unwrap_or_default();
        self.membership
            .hear(&identity)
            .map_err(|error| tonic::Status::failed_precondition(error.to_string()))?;
        if answer.removed {
            self.membership.stop_as_removed();
        }
        if !answer.refused.is_empty() {
            return Err(tonic::Status::failed_precondition(answer.refused));
        }
        if !self.membership.is_formed() || identity.stage() != v1::Stage::Formed {
            return Ok(());
        }
        let (frames, stream) = mpsc::channel(FRAMES_AHEAD);
        let mut request = tonic::Request::new(ReceiverStream::new(stream));
        let introduced = sealed::seal::<v1::HelloRequest>(&self.membership.introduce(node)).encode_to_vec();
        request.metadata_mut().insert_bin(IDENTITY_KEY, MetadataValue::from_bytes(&introduced));
        let mut acks = client.link(request).await?.into_inner();
        info!(peer = %node, "linked");
        peer.outbox.set_open(true);
        self.directory.update(node, |contact| contact.connected = true);
        tokio::select! {
            () = self.pump(node, peer, frames) => Err(tonic::Status::unavailable("the link was closed")),
            ended = async { loop { match acks.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return tonic::Status::unavailable("the peer ended the link"),
                Err(status) => return status,
            }}} => Err(ended),
        }
    }

    async fn pump(&self, node: NodeId, peer: &Peer, frames: mpsc::Sender<v1::Frame>) {
        loop {
            let batch = peer.outbox.take().await;
            let messages = batch.iter().map(|(shard, message)| raft_wire::encode(*shard, message)).collect();
            let frame = sealed::seal(&v1::PeerBatch { lamport: self.clock.now(), messages });
            if frames.send(frame).await.is_err() {
                debug!(peer = %node, "the link takes no more frames");
                return;
            }
            self.metrics.frames_sent.inc();
        }
    }

    /// Something was heard from a peer.
    pub(crate) fn heard(&self, peer: NodeId) {
        self.directory.update(peer, |contact| contact.heard = Some(clock::now()));
    }
}

/// Counts and logs what came from a peer with a wrong checksum. The caller acts on nothing of it.
pub(crate) fn damaged(
    metrics: &Metrics,
    peer: impl std::fmt::Display,
    what: &str,
    cause: &SealError,
) -> tonic::Status {
    metrics.frames_bad.inc();
    error!(%peer, %cause, "a damaged {what}");
    tonic::Status::data_loss(format!("a damaged {what}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vote() -> Message {
        Message {
            from: NodeId::new(1),
            to: NodeId::new(2),
            term: Term::new(1),
            kind: MessageKind::VoteAck { granted: true, pre: false },
        }
    }

    #[test]
    fn a_closed_outbox_keeps_nothing_and_a_full_one_drops() {
        let outbox = Outbox::default();
        assert!(!outbox.push(ShardId::META, vote()));
        outbox.set_open(true);
        for _ in 0..PEER_QUEUE_LEN_MAX {
            assert!(outbox.push(ShardId::META, vote()));
        }
        assert!(!outbox.push(ShardId::META, vote()));
        assert_eq!(outbox.take_now().len(), PEER_QUEUE_LEN_MAX);
        assert!(outbox.push(ShardId::META, vote()));
        outbox.set_open(false);
        assert!(outbox.take_now().is_empty());
    }
}
