//! What peers send: introductions, Raft messages, snapshots.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kv_proto::status::ApiError;
use kv_proto::v1::shard_message::Body;
use kv_proto::validate::NUMBER_MAX;
use kv_proto::{sealed, v1, validate};
use kv_raft::Message;
use kv_shard::LamportClock;
use kv_state::cluster::{ClusterCommand, Wanted};
use kv_types::{ClusterId, Incarnation, NodeId, ShardId};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use crate::gateway::ShardHandle;
use crate::identity::IdentityError;
use crate::links::{IDENTITY_KEY, Links, damaged};
use crate::membership::{Membership, table_to_wire};
use crate::meta::Meta;
use crate::metrics::Metrics;
use crate::raft_wire;
use crate::repair::send_rows;
use crate::scrub;
use crate::snapshots::{Installer, TransferError};
use crate::txns::Txns;

/// A link acknowledges every so many frames; the sender only counts them.
const ACK_EVERY: u64 = 1024;

/// A link without a frame looks this often whether its peer is still a member.
const MEMBER_CHECK: Duration = Duration::from_millis(500);

/// Serves peers.
#[derive(Clone, Debug)]
pub(crate) struct PeerService {
    pub(crate) me: NodeId,
    pub(crate) membership: Arc<Membership>,
    pub(crate) links: Arc<Links>,
    pub(crate) clock: Arc<LamportClock>,
    pub(crate) metrics: Arc<Metrics>,
    /// Set once the replicas are open.
    pub(crate) shards: Arc<OnceLock<BTreeMap<ShardId, ShardHandle>>>,
    pub(crate) installer: Arc<Installer>,
    /// Set once the meta group's replica is open.
    pub(crate) meta: Arc<OnceLock<Meta>>,
    /// The same of transactions.
    pub(crate) txns: Arc<OnceLock<Arc<Txns>>>,
}

type Acks = Pin<Box<dyn Stream<Item = Result<v1::LinkAck, Status>> + Send>>;

#[tonic::async_trait]
impl v1::peer_server::Peer for PeerService {
    async fn hello(&self, request: Request<v1::HelloRequest>) -> Result<Response<v1::HelloReply>, Status> {
        let identity = self.greeting(request.into_inner())?;
        let (refused, removed) = match self.membership.hear(&identity) {
            Ok(_) => (String::new(), false),
            Err(error) => (error.to_string(), matches!(error, IdentityError::Removed { .. })),
        };
        let identity = Some(self.membership.introduce(NodeId::new(identity.from)));
        Ok(Response::new(sealed::seal(&v1::HelloAnswer { identity, refused, removed })))
    }

    type LinkStream = Acks;

    async fn link(&self, request: Request<Streaming<v1::Frame>>) -> Result<Response<Acks>, Status> {
        let identity = request.metadata().get_bin(IDENTITY_KEY).and_then(|value| value.to_bytes().ok());
        let identity = identity.and_then(|bytes| v1::HelloRequest::decode(bytes).ok());
        let identity =
            identity.ok_or_else(|| Status::invalid_argument("a link begins with an introduction"))?;
        let identity = self.greeting(identity)?;
        let peer = self
            .membership
            .hear(&identity)
            .map_err(|error| Status::failed_precondition(error.to_string()))?;
        let (shards, _) = self.shards()?;
        let inbound = Inbound { service: self.clone(), shards: shards.clone(), peer };
        let (acks, stream) = mpsc::channel(1);
        let frames = request.into_inner();
        tokio::spawn(async move {
            let ended = inbound.run(frames, &acks).await;
            // Answers may have been lost with it.
            inbound.service.links.step_calls.lost(peer);
            if let Err(status) = ended {
                // The sender may be gone already.
                drop(acks.send(Err(status)).await);
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn snapshot_stream(
        &self,
        request: Request<Streaming<v1::SnapshotChunk>>,
    ) -> Result<Response<v1::SnapshotResult>, Status> {
        let (shards, cluster) = self.shards()?;
        let result = self.installer.receive(self.me, cluster, shards, request.into_inner()).await;
        let outcome = match result {
            Ok(id) => {
                let installed = Some(kv_proto::validate::log_id_to_wire(id));
                v1::SnapshotOutcome { installed, refused: String::new() }
            }
            Err(TransferError::Sealed(cause)) => {
                return Err(damaged(&self.metrics, "the sender", "header of a snapshot", &cause));
            }
            // Faults of the way here, which are no reason to begin anew.
            Err(error @ TransferError::Damaged(_)) => {
                self.metrics.frames_bad.inc();
                warn!(%error, "a snapshot stream is broken off");
                return Err(Status::data_loss(error.to_string()));
            }
            Err(error @ (TransferError::Stream(_) | TransferError::Stalled | TransferError::BrokenOff)) => {
                return Err(Status::aborted(error.to_string()));
            }
            Err(error) => {
                warn!(%error, "a snapshot was refused");
                v1::SnapshotOutcome { installed: None, refused: error.to_string() }
            }
        };
        Ok(Response::new(sealed::seal(&outcome)))
    }

    async fn snapshot_position(
        &self,
        request: Request<v1::SnapshotPositionRequest>,
    ) -> Result<Response<v1::SnapshotPositionReply>, Status> {
        let subject = sealed::open(request.into_inner()).map_err(|cause| {
            damaged(&self.metrics, "a peer", "question for a snapshot's position", &cause)
        })?;
        let cluster = self.membership.cluster_id().unwrap_or_default();
        match self.installer.position(self.me, cluster, &subject).await {
            Ok(next_chunk) => Ok(Response::new(sealed::seal(&v1::SnapshotPosition { next_chunk }))),
            Err(error @ TransferError::Busy(_)) => Err(Status::unavailable(error.to_string())),
            Err(error) => Err(Status::failed_precondition(error.to_string())),
        }
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinReply>, Status> {
        let subject = sealed::open(request.into_inner())
            .map_err(|cause| damaged(&self.metrics, "somebody", "wish to join", &cause))?;
        let (meta, table) = self.meta().ok().zip(self.membership.table()).ok_or_else(not_open)?;
        if subject.cluster != self.membership.cluster() {
            let text = format!("this is cluster `{}`, not `{}`", self.membership.cluster(), subject.cluster);
            return Err(ApiError::WrongCluster(text).into());
        }
        let node = validate::node("node", subject.node).map_err(ApiError::from)?;
        validate::addr("peer address", &subject.peer_addr).map_err(ApiError::from)?;
        validate::addr("client address", &subject.client_addr).map_err(ApiError::from)?;
        info!(%node, addr = subject.peer_addr, "wants to join");
        let join = ClusterCommand::Join {
            node,
            incarnation: Incarnation::new(subject.incarnation),
            peer_addr: subject.peer_addr,
            client_addr: subject.client_addr,
            wanted: if subject.learner { Wanted::Learner } else { Wanted::Voter },
        };
        meta.change(join).await?;
        let members = meta.current().await?.members;
        let present = members.iter().filter(|(_, member)| member.wanted != Wanted::Removed);
        let member = |(node, member): (&NodeId, &kv_state::cluster::Member)| v1::Member {
            node: node.get(),
            peer_addr: member.peer_addr.clone(),
            client_addr: member.client_addr.clone(),
            incarnation: member.incarnation.unwrap_or_default().get(),
        };
        let outcome =
            v1::JoinOutcome { table: Some(table_to_wire(&table)), members: present.map(member).collect() };
        Ok(Response::new(sealed::seal(&outcome)))
    }

    async fn change_cluster(
        &self,
        request: Request<v1::ChangeClusterRequest>,
    ) -> Result<Response<v1::ChangeClusterReply>, Status> {
        let change = sealed::open(request.into_inner())
            .map_err(|cause| damaged(&self.metrics, "a peer", "change of the cluster", &cause))?;
        self.meta()?.take(change).await?;
        Ok(Response::new(v1::ChangeClusterReply {}))
    }

    async fn read_cluster(
        &self,
        request: Request<v1::ReadClusterRequest>,
    ) -> Result<Response<v1::ReadClusterReply>, Status> {
        let subject = sealed::open(request.into_inner())
            .map_err(|cause| damaged(&self.metrics, "a peer", "question for the members", &cause))?;
        Ok(Response::new(sealed::seal(&self.meta()?.tell(&subject)?)))
    }

    async fn repair(&self, request: Request<v1::RepairRequest>) -> Result<Response<v1::RepairReply>, Status> {
        let subject = sealed::open(request.into_inner())
            .map_err(|cause| damaged(&self.metrics, "a peer", "wish for rows", &cause))?;
        let (shards, cluster) = self.shards()?;
        let refused = send_rows(&subject, cluster, shards, &self.links).await?;
        Ok(Response::new(sealed::seal(&v1::RepairOutcome { refused })))
    }

    async fn compare_state(
        &self,
        request: Request<v1::CompareStateRequest>,
    ) -> Result<Response<v1::CompareStateReply>, Status> {
        let subject = sealed::open(request.into_inner())
            .map_err(|cause| damaged(&self.metrics, "a peer", "state hash", &cause))?;
        let (shards, cluster) = self.shards()?;
        let outcome = scrub::answer(&subject, cluster, shards)?;
        Ok(Response::new(sealed::seal(&outcome)))
    }
}

fn not_open() -> Status {
    ApiError::NoLeader(ShardId::META).into()
}

impl PeerService {
    /// The replicas, once they are open, and the cluster they belong to.
    fn shards(&self) -> Result<(&BTreeMap<ShardId, ShardHandle>, ClusterId), Status> {
        let shards = self.shards.get().ok_or_else(|| Status::unavailable("the replicas are not open yet"))?;
        Ok((shards, self.membership.cluster_id().unwrap_or_default()))
    }

    fn meta(&self) -> Result<&Meta, Status> {
        self.meta.get().ok_or_else(not_open)
    }

    /// Checks a greeting before anything in it is heard.
    fn greeting(&self, hello: v1::HelloRequest) -> Result<v1::Identity, Status> {
        sealed::open(hello).map_err(|cause| damaged(&self.metrics, "somebody", "greeting", &cause))
    }
}

/// One link of one peer.
struct Inbound {
    service: PeerService,
    shards: BTreeMap<ShardId, ShardHandle>,
    peer: NodeId,
}

impl Inbound {
    async fn run(
        &self,
        mut frames: Streaming<v1::Frame>,
        acks: &mpsc::Sender<Result<v1::LinkAck, Status>>,
    ) -> Result<(), Status> {
        let mut count = 0_u64;
        loop {
            let frame = match tokio::time::timeout(MEMBER_CHECK, frames.message()).await {
                // A removed node may have nothing to say, and has to be told all the same.
                Err(_) => {
                    self.check_member()?;
                    continue;
                }
                Ok(frame) => frame?,
            };
            let Some(frame) = frame else { return Ok(()) };
            self.take(frame)?;
            count += 1;
            if count.is_multiple_of(ACK_EVERY) {
                // Acks only count; one that finds no room is left out.
                let _ = acks.try_send(Ok(v1::LinkAck { frames: count }));
            }
        }
    }

    fn check_member(&self) -> Result<(), Status> {
        if self.service.membership.is_member(self.peer) {
            return Ok(());
        }
        Err(Status::failed_precondition(IdentityError::Removed { node: self.peer }.to_string()))
    }

    /// Checks a frame and hands its messages to their replicas. A bad frame ends the link: what follows it on a
    /// damaged connection is worth nothing.
    fn take(&self, frame: v1::Frame) -> Result<(), Status> {
        let metrics = &self.service.metrics;
        let batch = sealed::open(frame).map_err(|cause| damaged(metrics, self.peer, "frame", &cause))?;
        metrics.frames_received.inc();
        self.check_member()?;
        self.service.links.heard(self.peer);
        if batch.lamport > NUMBER_MAX {
            metrics.frames_bad.inc();
            return Err(Status::invalid_argument(format!("a Lamport counter of {}", batch.lamport)));
        }
        // The node stops if this fails.
        self.service.clock.merge(batch.lamport).map_err(|cause| Status::unavailable(cause.to_string()))?;
        let mut sorted: BTreeMap<ShardId, Vec<Message>> = BTreeMap::new();
        let mut steps = Vec::new();
        let cannot_be = |cause: &dyn std::fmt::Display| {
            metrics.frames_bad.inc();
            Status::invalid_argument(format!("a message that cannot be: {cause}"))
        };
        for wire in batch.messages {
            let shard = ShardId::new(wire.shard);
            let message = match wire.body {
                Some(Body::Raft(message)) => raft_wire::decode(message).map_err(|cause| cannot_be(&cause))?,
                Some(Body::Step(step)) => {
                    steps.push((shard, step));
                    continue;
                }
                Some(Body::Result(result)) => {
                    self.service.links.step_calls.answered(self.peer, result);
                    continue;
                }
                None => return Err(cannot_be(&"it is empty")),
            };
            if message.from != self.peer || message.to != self.service.me {
                metrics.frames_bad.inc();
                let text =
                    format!("a message of {} to {} on the link of {}", message.from, message.to, self.peer);
                return Err(Status::invalid_argument(text));
            }
            sorted.entry(shard).or_default().push(message);
        }
        for (shard, messages) in sorted {
            if let Some(handle) = self.shards.get(&shard) {
                let dropped = handle.mailbox.messages(messages);
                metrics.messages_dropped.inc_by(dropped as u64);
            }
        }
        // Before its replicas are open nobody leads here, and whoever asks does so again.
        if let Some(txns) = self.service.txns.get().filter(|_| !steps.is_empty()) {
            txns.serve(self.peer, steps);
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use kv_proto::v1::peer_server::Peer as _;
    use kv_storage::disk::faulty::VirtualDisk;
    use kv_storage::{CeilingFile, EngineFactory, TwinFactory};
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::directory::Directory;
    use crate::fatal::Fatal;
    use crate::identity::Identity;
    use crate::shard_map::ShardMap;
    use crate::snapshots::Room;

    fn membership(me: u64, fatal: &Fatal) -> Arc<Membership> {
        let members: BTreeMap<NodeId, String> =
            [1, 2].map(|node| (NodeId::new(node), format!("127.0.0.1:{node}"))).into();
        let identity = Identity::new(NodeId::new(me), "c".to_owned(), Incarnation::new(me + 100));
        Arc::new(Membership::new(
            identity,
            (members.keys().copied().collect(), ShardMap::split_at(Vec::new()).unwrap()),
            Arc::new(VirtualDisk::new()),
            (Arc::new(Directory::new(&members, BTreeMap::new())), fatal.clone()),
            ("peer".to_owned(), "client".to_owned()),
        ))
    }

    fn service(fatal: &Fatal) -> PeerService {
        service_with(fatal, (Arc::new(TwinFactory::new()), Room::new(Arc::new(VirtualDisk::new()), 0)))
    }

    /// A node n1 that is linked to nobody.
    pub(crate) fn service_with(fatal: &Fatal, storage: (Arc<dyn EngineFactory>, Room)) -> PeerService {
        let (me, membership) = (NodeId::new(1), membership(1, fatal));
        let disk = Arc::new(VirtualDisk::new());
        CeilingFile::create(disk.as_ref()).unwrap();
        let ceiling = Arc::new(CeilingFile::open(disk).unwrap());
        let (clock, metrics) = (Arc::new(LamportClock::new(me, ceiling)), Arc::new(Metrics::new()));
        let tasks = (TaskTracker::new(), CancellationToken::new());
        let installer = Installer::new(storage, Arc::clone(&metrics), tasks);
        let links = Links::new(
            (me, &BTreeMap::new()),
            Arc::clone(&membership),
            (Arc::new(Directory::new(&BTreeMap::new(), BTreeMap::new())), Arc::clone(&clock)),
            Arc::clone(&metrics),
            (TaskTracker::new(), CancellationToken::new()),
        );
        PeerService {
            me,
            membership,
            links: Arc::new(links.unwrap()),
            clock,
            metrics,
            shards: Arc::default(),
            installer: Arc::new(installer),
            meta: Arc::default(),
            txns: Arc::default(),
        }
    }

    #[tokio::test]
    async fn a_damaged_greeting_is_counted_and_not_heard() {
        let fatal = Fatal::default();
        let service = service(&fatal);
        let sound: v1::HelloRequest = sealed::seal(&membership(2, &fatal).introduce(NodeId::new(1)));
        let mut refused = 0;
        for at in 0..sound.body.len() {
            let mut body = sound.body.to_vec();
            body[at] ^= 4;
            let damaged = v1::HelloRequest { body: body.into(), crc: sound.crc };
            let status = service.hello(Request::new(damaged)).await.unwrap_err();
            refused += 1;
            assert_eq!(status.code(), tonic::Code::DataLoss, "byte {at}: {status}");
            assert_eq!(service.metrics.frames_bad.get(), refused);
        }
        assert_eq!(service.membership.missing(), [NodeId::new(2)]);
        let answer = service.hello(Request::new(sound)).await.unwrap().into_inner();
        assert_eq!(sealed::open(answer).unwrap().refused, "");
        assert!(service.membership.missing().is_empty() && fatal.reason().is_none());
    }
}
