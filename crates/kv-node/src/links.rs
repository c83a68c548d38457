//! The way to the peers: this node dials every peer and sends only on what it dialled, so that each direction can fail
//! alone. What the peers send arrives at `service::peer`. A link carries Raft's messages, and steps of transactions and the
//! answers to them.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use kv_proto::sealed::SealError;
use kv_proto::v1::shard_message::Body;
use kv_proto::{sealed, v1};
use kv_raft::{Message, MessageKind};
use kv_shard::LamportClock;
use kv_types::limits::{
    PEER_FRAME_BYTES_MAX, PEER_FRAME_BYTES_TARGET, PEER_QUEUE_BYTES_MAX, PEER_QUEUE_LEN_MAX,
};
use kv_types::{NodeId, ShardId, Term};
use prost::Message as _;
use tokio_stream::Stream;
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
use crate::step_calls::StepCalls;

/// The metadata key under which a link's caller introduces itself.
pub(crate) const IDENTITY_KEY: &str = "quorate-identity-bin";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const REDIAL_FIRST: Duration = Duration::from_millis(50);
const REDIAL_MAX: Duration = Duration::from_millis(500);
/// While the cluster is not formed, peers are asked this often how far they are.
const FORMATION_POLL: Duration = Duration::from_millis(50);

/// What a link carries.
#[derive(Debug)]
enum Item {
    Raft(Message),
    Step(v1::StepTxn),
    Result(v1::StepTxnResult),
}

impl Item {
    /// What it weighs in a frame, roughly.
    fn bytes(&self) -> usize {
        match self {
            Self::Raft(message) => message_bytes(message),
            Self::Step(step) => step.encoded_len(),
            Self::Result(result) => result.encoded_len(),
        }
    }

    fn is_of_raft(&self) -> bool {
        matches!(self, Self::Raft(_))
    }

    fn into_wire(self, shard: ShardId) -> v1::ShardMessage {
        let body = match self {
            Self::Raft(message) => return raft_wire::encode(shard, &message),
            Self::Step(step) => Body::Step(step),
            Self::Result(result) => Body::Result(result),
        };
        v1::ShardMessage { shard: shard.get(), body: Some(body) }
    }
}

/// Messages that wait for one peer.
#[derive(Debug, Default)]
struct Outbox(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<(ShardId, Item, usize)>,
    bytes: usize,
    /// Nothing is queued for a peer that is not linked: it would be stale when it arrives.
    open: bool,
    /// Which link takes from it.
    link: u64,
    /// Of the link, while it waits for messages.
    waker: Option<Waker>,
}

impl Outbox {
    /// Steps of transactions leave half of the room to Raft, without which none of them is ever carried out.
    fn push(&self, shard: ShardId, item: Item) -> bool {
        let bytes = item.bytes();
        let share = if item.is_of_raft() { 1 } else { 2 };
        let (len_max, bytes_max) = (PEER_QUEUE_LEN_MAX / share, PEER_QUEUE_BYTES_MAX / share);
        let mut queue = self.lock();
        let full = queue.messages.len() >= len_max || queue.bytes + bytes > bytes_max;
        if full || !queue.open {
            return false;
        }
        queue.bytes += bytes;
        queue.messages.push_back((shard, item, bytes));
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// A new link takes from it from now on; its number. The one before is told that it has ended.
    fn begin(&self) -> u64 {
        let mut queue = self.lock();
        let (link, waker) = (queue.link + 1, queue.waker.take());
        *queue = Queue { link, ..Queue::default() };
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
        link
    }

    /// The link is there: what is queued from now on goes over it.
    fn open(&self, link: u64) {
        let mut queue = self.lock();
        queue.open = queue.link == link;
    }

    /// The link is gone.
    fn close(&self) {
        self.begin();
    }

    /// Takes as many messages as one frame shall hold, or is woken when there are some; `None` if another link takes them.
    fn poll_take(&self, link: u64, cx: &Context<'_>) -> Poll<Option<Vec<(ShardId, Item)>>> {
        let mut queue = self.lock();
        if queue.link != link {
            return Poll::Ready(None);
        }
        if queue.messages.is_empty() {
            queue.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let mut batch = Vec::with_capacity(queue.messages.len());
        let mut taken = 0;
        while taken < PEER_FRAME_BYTES_TARGET
            && let Some((shard, item, bytes)) = queue.messages.pop_front()
        {
            taken += bytes;
            batch.push((shard, item));
        }
        queue.bytes -= taken;
        Poll::Ready(Some(batch))
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The frames of one link, as its connection pulls them: whenever it can write, all that has gathered leaves in one.
struct Frames {
    peer: Arc<Peer>,
    link: u64,
    clock: Arc<LamportClock>,
    metrics: Arc<Metrics>,
}

impl Stream for Frames {
    type Item = v1::Frame;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<v1::Frame>> {
        let Some(batch) = ready!(self.peer.outbox.poll_take(self.link, cx)) else { return Poll::Ready(None) };
        let messages = batch.into_iter().map(|(shard, item)| item.into_wire(shard)).collect();
        self.metrics.frames_sent.inc();
        Poll::Ready(Some(sealed::seal(&v1::PeerBatch { lamport: self.clock.now(), messages })))
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
    /// What peers are asked for beside Raft.
    pub(crate) step_calls: Arc<StepCalls>,
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
        let (addr, gone) = (addr.to_owned(), CancellationToken::new());
        Ok(Self { addr, outbox: Outbox::default(), endpoint, gone })
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
        let step_calls = Arc::new(StepCalls::new());
        Ok(Self { me, peers, clock, metrics, membership, directory, step_calls, replicas, tasks, stop })
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

    /// Tells these replicas from now on when a peer cannot be reached.
    pub(crate) fn watch(&self, replicas: Vec<Arc<Mailbox>>) {
        *self.replicas.lock().unwrap_or_else(PoisonError::into_inner) = replicas;
    }

    /// Queues messages; what has no room is dropped, which Raft tolerates.
    pub(crate) fn send(&self, shard: ShardId, messages: Vec<Message>) {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        for message in messages {
            let to = peers.get(&message.to);
            if !to.is_some_and(|peer| peer.outbox.push(shard, Item::Raft(message))) {
                self.metrics.messages_dropped.inc();
            }
        }
    }

    /// Queues a step for a peer; whether it has room.
    pub(crate) fn send_step(&self, to: NodeId, shard: ShardId, step: v1::StepTxn) -> bool {
        self.send_item(to, shard, Item::Step(step))
    }

    /// Queues an answer to a step. One that has no room is lost, and the step asked for again.
    pub(crate) fn send_result(&self, to: NodeId, shard: ShardId, result: v1::StepTxnResult) {
        self.send_item(to, shard, Item::Result(result));
    }

    fn send_item(&self, to: NodeId, shard: ShardId, item: Item) -> bool {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        let taken = peers.get(&to).is_some_and(|peer| peer.outbox.push(shard, item));
        if !taken {
            self.metrics.messages_dropped.inc();
        }
        taken
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
        peer.outbox.close();
        self.step_calls.lost(node);
        self.directory.update(node, |contact| contact.connected = false);
        for replica in self.replicas.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            replica.control(Control::Unreachable(node));
        }
    }

    /// Keeps a link to a peer, for ever.
    async fn keep(&self, node: NodeId, peer: &Arc<Peer>) {
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
    async fn link(&self, node: NodeId, peer: &Arc<Peer>, channel: Channel) -> Result<(), tonic::Status> {
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
        let number = peer.outbox.begin();
        let frames = Frames {
            peer: Arc::clone(peer),
            link: number,
            clock: Arc::clone(&self.clock),
            metrics: Arc::clone(&self.metrics),
        };
        let mut request = tonic::Request::new(frames);
        let introduced = sealed::seal::<v1::HelloRequest>(&self.membership.introduce(node)).encode_to_vec();
        request.metadata_mut().insert_bin(IDENTITY_KEY, MetadataValue::from_bytes(&introduced));
        let mut acks = client.link(request).await?.into_inner();
        info!(peer = %node, "linked");
        peer.outbox.open(number);
        self.directory.update(node, |contact| contact.connected = true);
        while acks.message().await?.is_some() {}
        Err(tonic::Status::unavailable("the peer ended the link"))
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

    fn vote() -> Item {
        Item::Raft(Message {
            from: NodeId::new(1),
            to: NodeId::new(2),
            term: Term::new(1),
            kind: MessageKind::VoteAck { granted: true, pre: false },
        })
    }

    fn count(outbox: &Outbox, link: u64) -> Option<usize> {
        match outbox.poll_take(link, &Context::from_waker(Waker::noop())) {
            Poll::Ready(batch) => batch.map(|batch| batch.len()),
            Poll::Pending => Some(0),
        }
    }

    #[test]
    fn steps_leave_half_of_the_room_to_raft() {
        let outbox = Outbox::default();
        outbox.open(outbox.begin());
        let step = || Item::Step(v1::StepTxn::default());
        while outbox.push(ShardId::META, step()) {}
        for _ in 0..PEER_QUEUE_LEN_MAX / 2 {
            assert!(outbox.push(ShardId::META, vote()));
        }
        assert!(!outbox.push(ShardId::META, vote()) && !outbox.push(ShardId::META, step()));
    }

    #[test]
    fn a_closed_outbox_keeps_nothing_and_a_full_one_drops() {
        let outbox = Outbox::default();
        assert!(!outbox.push(ShardId::META, vote()));
        let link = outbox.begin();
        assert!(!outbox.push(ShardId::META, vote()));
        outbox.open(link);
        for _ in 0..PEER_QUEUE_LEN_MAX {
            assert!(outbox.push(ShardId::META, vote()));
        }
        assert!(!outbox.push(ShardId::META, vote()));
        assert_eq!(count(&outbox, link), Some(PEER_QUEUE_LEN_MAX));
        assert!(outbox.push(ShardId::META, vote()));
        outbox.close();
        assert_eq!(count(&outbox, link), None);
    }

    /// The stream of a link that broke may be polled once more; it must take nothing from the next.
    #[test]
    fn only_the_newest_link_takes() {
        let outbox = Outbox::default();
        let (old, new) = (outbox.begin(), outbox.begin());
        outbox.open(old);
        assert!(!outbox.push(ShardId::META, vote()));
        outbox.open(new);
        assert!(outbox.push(ShardId::META, vote()));
        assert_eq!((count(&outbox, old), count(&outbox, new)), (None, Some(1)));
        assert_eq!(count(&outbox, new), Some(0));
    }
}
