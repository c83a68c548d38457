//! The cluster as this node sees it: status, members, shards, the map for clients.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_proto::status::ApiError;
use kv_proto::{v1, validate};
use kv_raft::Role;
use kv_shard::ReplicaStatus;
use kv_types::{NodeId, ShardId};
use tokio::sync::oneshot;
use tonic::{Request, Response, Status};

use crate::clock;
use crate::gateway::{Gateway, ShardHandle};
use crate::logging::LogControl;
use crate::mailbox::Control;
use crate::membership::Membership;

/// Serves operators, and clients that route.
#[derive(Clone, Debug)]
pub(crate) struct ClusterService {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) membership: Arc<Membership>,
    pub(crate) log: LogControl,
    pub(crate) started: Instant,
    /// A member that is silent for longer may be down.
    pub(crate) patience: Duration,
}

impl ClusterService {
    fn check(&self, context: Option<&v1::RequestContext>) -> Result<(), ApiError> {
        validate::context(context, &self.gateway.cluster).map(drop)
    }

    async fn replica(&self, handle: &ShardHandle) -> Option<ReplicaStatus> {
        let (asked, status) = oneshot::channel();
        handle.mailbox.control(Control::Status(asked));
        status.await.ok()
    }

    async fn shard_status(&self, shard: ShardId, handle: &ShardHandle) -> v1::ShardStatus {
        let range = self.gateway.map.range_of(shard).map(|range| validate::range_to_wire(&range));
        let Some(status) = self.replica(handle).await else {
            return v1::ShardStatus { shard: shard.get(), range, ..v1::ShardStatus::default() };
        };
        let raft = &status.raft;
        let replica = |node: &NodeId| {
            if *node == self.gateway.node {
                return v1::ShardReplica {
                    node: node.get(),
                    role: role(&status).into(),
                    match_index: Some(raft.last.index.get()),
                    applied: Some(status.applied.index.get()),
                    state_hash: hash_bytes(&status),
                };
            }
            let led_here = raft.role == Role::Leader;
            let peer = raft.peers.get(node).filter(|_| led_here);
            let leads = raft.leader == Some(*node);
            let role = match (leads, raft.membership.is_voter(*node)) {
                (true, _) => v1::Role::Leader,
                (false, true) => v1::Role::Follower,
                (false, false) => v1::Role::Learner,
            };
            v1::ShardReplica {
                node: node.get(),
                role: role.into(),
                match_index: peer.map(|peer| peer.matched.get()),
                ..v1::ShardReplica::default()
            }
        };
        v1::ShardStatus {
            shard: shard.get(),
            range,
            leader: raft.leader.unwrap_or_default().get(),
            epoch: raft.term.get(),
            replicas: raft.membership.members().iter().map(replica).collect(),
        }
    }
}

fn role(status: &ReplicaStatus) -> v1::Role {
    match status.raft.role {
        Role::Leader => v1::Role::Leader,
        Role::Candidate | Role::PreCandidate => v1::Role::Candidate,
        Role::Follower if status.raft.membership.is_voter(status.raft.id) => v1::Role::Follower,
        Role::Follower => v1::Role::Learner,
    }
}

fn hash_bytes(status: &ReplicaStatus) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(&status.hash.get().to_be_bytes())
}

#[tonic::async_trait]
impl v1::cluster_server::Cluster for ClusterService {
    async fn status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        self.check(request.into_inner().context.as_ref())?;
        let mut replicas = Vec::new();
        for handle in self.gateway.shards.values() {
            let Some(status) = self.replica(handle).await else { continue };
            replicas.push(v1::ReplicaStatus {
                shard: status.shard.get(),
                role: role(&status).into(),
                epoch: status.raft.term.get(),
                leader: status.raft.leader.unwrap_or_default().get(),
                commit: status.raft.commit.get(),
                applied: status.applied.index.get(),
                last: status.raft.last.index.get(),
                state_hash: hash_bytes(&status),
                lease_ms: 0,
            });
        }
        let now = clock::now();
        let peer = |(node, contact): (&NodeId, &crate::directory::Contact)| v1::PeerStatus {
            node: node.get(),
            addr: contact.peer_addr.clone(),
            connected: contact.connected,
            last_contact_ms: contact
                .heard
                .map(|heard| u64::try_from(now.since(heard).as_millis()).unwrap_or(u64::MAX)),
            suspect: contact.is_suspect(now, self.patience),
        };
        let members = self.gateway.directory.all();
        Ok(Response::new(v1::StatusReply {
            node: self.gateway.node.get(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: self.gateway.cluster.clone(),
            cluster_id: self.membership.cluster_id().unwrap_or_default().get(),
            incarnation: self.membership.incarnation().get(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            replicas,
            peers: members.iter().filter(|(node, _)| **node != self.gateway.node).map(peer).collect(),
            ready: self.membership.is_formed(),
        }))
    }

    async fn members(
        &self,
        request: Request<v1::MembersRequest>,
    ) -> Result<Response<v1::MembersReply>, Status> {
        self.check(request.into_inner().context.as_ref())?;
        let now = clock::now();
        let member = |(node, contact): (&NodeId, &crate::directory::Contact)| {
            let me = *node == self.gateway.node;
            v1::MemberStatus {
                node: node.get(),
                peer_addr: contact.peer_addr.clone(),
                client_addr: contact.client_addr.clone(),
                voter: true,
                incarnation: if me { self.membership.incarnation() } else { contact.incarnation }.get(),
                suspect: !me && contact.is_suspect(now, self.patience),
            }
        };
        let members = self.gateway.directory.all().iter().map(member).collect();
        Ok(Response::new(v1::MembersReply { members }))
    }

    async fn shards(&self, request: Request<v1::ShardsRequest>) -> Result<Response<v1::ShardsReply>, Status> {
        self.check(request.into_inner().context.as_ref())?;
        let mut shards = Vec::new();
        for (shard, handle) in &self.gateway.shards {
            shards.push(self.shard_status(*shard, handle).await);
        }
        Ok(Response::new(v1::ShardsReply { node: self.gateway.node.get(), shards }))
    }

    async fn cluster_map(
        &self,
        request: Request<v1::ClusterMapRequest>,
    ) -> Result<Response<v1::ClusterMapReply>, Status> {
        self.check(request.into_inner().context.as_ref())?;
        let gateway = &self.gateway;
        let members = gateway.directory.all();
        let member = |(node, contact): (&NodeId, &crate::directory::Contact)| v1::MapMember {
            node: node.get(),
            client_addr: contact.client_addr.clone(),
        };
        let shard = |handle: &ShardHandle| {
            let range = gateway.map.range_of(handle.shard)?;
            let hint = handle.leadership.leader().map(|node| v1::LeaderHint {
                node: node.get(),
                client_addr: gateway.directory.client_addr(node).unwrap_or_default(),
            });
            Some(v1::MapShard {
                shard: handle.shard.get(),
                range: Some(validate::range_to_wire(&range)),
                leader: hint,
                epoch: handle.leadership.term().get(),
                replicas: members.keys().map(|node| node.get()).collect(),
            })
        };
        Ok(Response::new(v1::ClusterMapReply {
            cluster: gateway.cluster.clone(),
            cluster_id: self.membership.cluster_id().unwrap_or_default().get(),
            version: 1,
            members: members.iter().map(member).collect(),
            shards: gateway.shards.values().filter_map(shard).collect(),
        }))
    }

    async fn set_log_level(
        &self,
        request: Request<v1::SetLogLevelRequest>,
    ) -> Result<Response<v1::SetLogLevelReply>, Status> {
        let request = request.into_inner();
        self.check(request.context.as_ref())?;
        let previous = self.log.set(&request.filter).map_err(ApiError::Invalid)?;
        Ok(Response::new(v1::SetLogLevelReply { previous }))
    }
}
