//! The cluster as this node sees it: status, members, shards, the map for clients.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_proto::status::ApiError;
use kv_proto::v1::change_member_request::Change;
use kv_proto::{v1, validate};
use kv_raft::Role;
use kv_shard::ReplicaStatus;
use kv_state::cluster::{ClusterCommand, Member, ReadMode, Settings, Wanted};
use kv_types::{NodeId, ShardId};
use tokio::sync::oneshot;
use tonic::{Request, Response, Status};

use crate::clock;
use crate::directory::Contact;
use crate::gateway::{Gateway, ShardHandle};
use crate::logging::LogControl;
use crate::mailbox::Control;
use crate::membership::Membership;
use crate::meta::Meta;

/// Serves operators, and clients that route.
#[derive(Clone, Debug)]
pub(crate) struct ClusterService {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) membership: Arc<Membership>,
    pub(crate) meta: Meta,
    pub(crate) log: LogControl,
    pub(crate) started: Instant,
    /// The shortest of this node.
    pub(crate) election_timeout: Duration,
}

impl ClusterService {
    /// A member that is silent for longer may be down.
    fn patience(&self) -> Duration {
        self.election_timeout * 4
    }

    fn check(&self, context: Option<&v1::RequestContext>) -> Result<(), ApiError> {
        validate::context(context, &self.gateway.cluster).map(drop)
    }

    async fn replica(&self, handle: &ShardHandle) -> Option<ReplicaStatus> {
        let (asked, status) = oneshot::channel();
        handle.mailbox.control(Control::Status(asked));
        status.await.ok()
    }

    /// A member before the founding of the cluster is recorded.
    fn unrecorded(&self, node: NodeId, contact: &Contact) -> v1::MemberStatus {
        let me = node == self.gateway.node;
        v1::MemberStatus {
            node: node.get(),
            peer_addr: contact.peer_addr.clone(),
            client_addr: contact.client_addr.clone(),
            voter: true,
            incarnation: if me { self.membership.incarnation() } else { contact.incarnation }.get(),
            suspect: !me && contact.is_suspect(clock::now(), self.patience()),
            wanted: v1::WantedRole::Voter.into(),
            announced: false,
        }
    }

    fn recorded(&self, node: NodeId, member: &Member, contact: Option<&Contact>) -> v1::MemberStatus {
        let me = node == self.gateway.node;
        let silent = || contact.is_none_or(|contact| contact.is_suspect(clock::now(), self.patience()));
        let meta =
            self.meta.applied().ok().and_then(|applied| applied.cluster.groups.get(&ShardId::META).cloned());
        v1::MemberStatus {
            node: node.get(),
            peer_addr: member.peer_addr.clone(),
            client_addr: member.client_addr.clone(),
            voter: meta.is_some_and(|meta| meta.membership.is_voter(node)),
            incarnation: member.incarnation.unwrap_or_default().get(),
            suspect: !me && member.incarnation.is_some() && silent(),
            wanted: match member.wanted {
                Wanted::Voter => v1::WantedRole::Voter,
                Wanted::Learner => v1::WantedRole::Learner,
                Wanted::Removed => v1::WantedRole::Removed,
            }
            .into(),
            announced: member.incarnation.is_none(),
        }
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

const READ_MODE: &str = "read-mode";
const CLOCK_DRIFT: &str = "clock-drift-ppm";

fn settings(settings: &Settings) -> Vec<v1::Setting> {
    let mode = match settings.read_mode {
        ReadMode::Lease => "lease",
        ReadMode::ReadIndex => "read-index",
    };
    let setting = |name: &str, value: String| v1::Setting { name: name.to_owned(), value };
    vec![setting(READ_MODE, mode.to_owned()), setting(CLOCK_DRIFT, settings.clock_drift_ppm.to_string())]
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
                lease_ms: u64::try_from(handle.lease.left().as_millis()).unwrap_or(u64::MAX),
                damage: status.damage.unwrap_or_default(),
            });
        }
        let now = clock::now();
        let peer = |(node, contact): (&NodeId, &Contact)| v1::PeerStatus {
            node: node.get(),
            addr: contact.peer_addr.clone(),
            connected: contact.connected,
            last_contact_ms: contact
                .heard
                .map(|heard| u64::try_from(now.since(heard).as_millis()).unwrap_or(u64::MAX)),
            suspect: contact.is_suspect(now, self.patience()),
            proxy: self.gateway.directory.proxy(*node).unwrap_or_default().to_owned(),
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
            election_timeout_ms: u64::try_from(self.election_timeout.as_millis()).unwrap_or(u64::MAX),
        }))
    }

    async fn members(
        &self,
        request: Request<v1::MembersRequest>,
    ) -> Result<Response<v1::MembersReply>, Status> {
        self.check(request.into_inner().context.as_ref())?;
        let cluster = self.meta.applied()?.cluster;
        let contacts = self.gateway.directory.all();
        let members = if cluster.members.is_empty() {
            contacts.iter().map(|(node, contact)| self.unrecorded(*node, contact)).collect()
        } else {
            let settled = cluster.is_settled();
            let shown = cluster.members.iter().filter(|(node, member)| {
                member.wanted != Wanted::Removed || (!settled && cluster.subject == Some(**node))
            });
            shown.map(|(node, member)| self.recorded(*node, member, contacts.get(node))).collect()
        };
        let group = |(shard, group): (&ShardId, &kv_state::cluster::Group)| v1::GroupProgress {
            shard: shard.get(),
            done: group.reached == cluster.change,
            membership: Some(validate::membership_to_wire(&group.membership)),
        };
        Ok(Response::new(v1::MembersReply {
            members,
            change: cluster.change.get(),
            groups: cluster.groups.iter().map(group).collect(),
            settings: settings(&cluster.settings),
        }))
    }

    async fn change_member(
        &self,
        request: Request<v1::ChangeMemberRequest>,
    ) -> Result<Response<v1::ChangeMemberReply>, Status> {
        let request = request.into_inner();
        self.check(request.context.as_ref())?;
        let node = |raw| validate::node("node", raw).map_err(ApiError::from);
        let command = match request.change {
            None => return Err(ApiError::Invalid("no change is asked for".to_owned()).into()),
            Some(Change::Add(add)) => {
                validate::addr("peer address", &add.peer_addr).map_err(ApiError::from)?;
                let wanted = if add.learner { Wanted::Learner } else { Wanted::Voter };
                ClusterCommand::Add { node: node(add.node)?, peer_addr: add.peer_addr, wanted }
            }
            Some(Change::Remove(raw)) => ClusterCommand::Remove { node: node(raw)? },
            Some(Change::Promote(raw)) => ClusterCommand::Promote { node: node(raw)? },
        };
        self.meta.change(command).await?;
        Ok(Response::new(v1::ChangeMemberReply {}))
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderReply>, Status> {
        let request = request.into_inner();
        self.check(request.context.as_ref())?;
        let (shard, to) =
            (ShardId::new(request.shard), validate::node("node", request.node).map_err(ApiError::from)?);
        let handle = self.gateway.shards.get(&shard).ok_or(ApiError::UnknownShard(shard))?;
        self.gateway.transfer(handle, to).await?;
        Ok(Response::new(v1::TransferLeaderReply {}))
    }

    async fn set_setting(
        &self,
        request: Request<v1::SetSettingRequest>,
    ) -> Result<Response<v1::SetSettingReply>, Status> {
        let request = request.into_inner();
        self.check(request.context.as_ref())?;
        let setting = request.setting.unwrap_or_default();
        let command = match (setting.name.as_str(), setting.value.as_str()) {
            (READ_MODE, "lease") => ClusterCommand::SetReadMode(ReadMode::Lease),
            (READ_MODE, "read-index") => ClusterCommand::SetReadMode(ReadMode::ReadIndex),
            (READ_MODE, other) => {
                let text = format!("read-mode `{other}` is unknown: `lease` or `read-index` is expected");
                return Err(ApiError::Invalid(text).into());
            }
            (CLOCK_DRIFT, ppm) => {
                let wrong = |_| ApiError::Invalid(format!("clock-drift-ppm `{ppm}` is no whole number"));
                ClusterCommand::SetClockDrift(ppm.parse().map_err(wrong)?)
            }
            (other, _) => {
                let text = format!("there is no setting `{other}`: read-mode and clock-drift-ppm can be set");
                return Err(ApiError::Invalid(text).into());
            }
        };
        self.meta.change(command).await?;
        Ok(Response::new(v1::SetSettingReply {}))
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
        let member = |(node, contact): (&NodeId, &Contact)| v1::MapMember {
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
                cluster_time_ms: handle.time.ms(),
            })
        };
        Ok(Response::new(v1::ClusterMapReply {
            cluster: gateway.cluster.clone(),
            cluster_id: self.membership.cluster_id().unwrap_or_default().get(),
            version: self.meta.applied().map_or(0, |applied| applied.cluster.change.get()),
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
