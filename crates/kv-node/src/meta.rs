//! The way to the meta group from any node: what it says of the cluster, and how to change that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_proto::status::ApiError;
use kv_proto::{sealed, v1};
use kv_shard::Replica;
use kv_state::Command;
use kv_state::cluster::{ClusterCommand, ClusterState};
use kv_types::{ClusterId, LogIndex, NodeId, Revision, Row, ShardId};
use tonic::Request;
use tracing::{debug, warn};

use crate::gateway::Gateway;
use crate::links::Links;
use crate::waiter::Waiter;

/// How long a change waits for a leader of the meta group.
const LEADER_PATIENCE: Duration = Duration::from_secs(5);

/// How often it looks for one.
const LEADER_POLL: Duration = Duration::from_millis(50);

/// How long another node may take to answer.
const CALL_MAX: Duration = Duration::from_secs(10);

/// How long another node may take to say what it has applied.
const READ_MAX: Duration = Duration::from_secs(1);

/// The cluster as some node has applied it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    /// When it was last changed: of two, the one changed later is the newer.
    pub(crate) revision: Revision,
    pub(crate) cluster: ClusterState,
}

impl Applied {
    /// The cluster as the meta group's log will have it once all of it is committed. No node remembers how far that is, and
    /// until it hears it from a leader it has to know those that may elect one. What cannot be read is left out: it is
    /// for others to find.
    pub(crate) fn foreseen(replica: &Replica<Waiter>) -> Self {
        let mut foreseen = match replica.reader().get(&ClusterState::row_key()) {
            Ok(Some(row)) => Self::of_row(row.head.modified, &row.value).unwrap_or_default(),
            Ok(None) | Err(_) => Self::default(),
        };
        let visit = |index: LogIndex, command| {
            if let Ok(Command::Cluster(command)) = Command::decode(command)
                && foreseen.cluster.apply(index.revision(), command).is_ok()
            {
                foreseen.revision = index.revision();
            }
        };
        if let Err(cause) = replica.unapplied(visit) {
            warn!(%cause, "the end of the meta group's log cannot be read");
        }
        foreseen
    }

    fn of_row(revision: Revision, row: &Bytes) -> Result<Self, ApiError> {
        let cluster = ClusterState::decode(row)
            .map_err(|cause| ApiError::Checksum(format!("the cluster's row cannot be read: {cause}")))?;
        Ok(Self { revision, cluster })
    }
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Meta {
    gateway: Arc<Gateway>,
    links: Arc<Links>,
    cluster_id: ClusterId,
}

impl Meta {
    pub(crate) fn new(gateway: Arc<Gateway>, links: Arc<Links>, cluster_id: ClusterId) -> Self {
        Self { gateway, links, cluster_id }
    }

    /// The cluster as this node has applied it, which may be behind.
    ///
    /// # Errors
    /// [`ApiError`] if the row cannot be read.
    pub(crate) fn applied(&self) -> Result<Applied, ApiError> {
        self.row()?
            .map_or_else(|| Ok(Applied::default()), |row| Applied::of_row(row.head.modified, &row.value))
    }

    fn row(&self) -> Result<Option<Row>, ApiError> {
        let row = self.gateway.meta()?.reader.get(&ClusterState::row_key());
        row.map_err(|cause| ApiError::Checksum(cause.to_string()))
    }

    /// What these nodes have applied, if one of them knows more than this.
    pub(crate) async fn newer(&self, than: Revision, nodes: impl Iterator<Item = NodeId>) -> Option<Applied> {
        for node in nodes {
            match self.read(node).await {
                Ok(told) if told.revision > than => return Some(told),
                Ok(_) => {}
                Err(cause) => debug!(%node, %cause, "it does not say who the members are"),
            }
        }
        None
    }

    async fn read(&self, node: NodeId) -> Result<Applied, ApiError> {
        let channel = self.links.dial(node).ok_or(ApiError::NoLeader(ShardId::META))?;
        let subject = v1::ReadClusterSubject { cluster_id: self.cluster_id.get() };
        let request = sealed::seal::<v1::ReadClusterRequest>(&subject);
        let mut client = v1::peer_client::PeerClient::new(channel);
        let reply = tokio::time::timeout(READ_MAX, client.read_cluster(request)).await;
        let reply =
            reply.map_err(|_| ApiError::Deadline)?.map_err(|status| ApiError::from_status(&status))?;
        let outcome =
            sealed::open(reply.into_inner()).map_err(|cause| ApiError::Checksum(cause.to_string()))?;
        match outcome.revision {
            0 => Ok(Applied::default()),
            revision => Applied::of_row(Revision::new(revision), &outcome.row),
        }
    }

    /// What another node is told that asks for what this one has applied.
    ///
    /// # Errors
    /// [`ApiError`] if it is of another cluster, or the row cannot be read.
    pub(crate) fn tell(&self, subject: &v1::ReadClusterSubject) -> Result<v1::ReadClusterOutcome, ApiError> {
        self.check_cluster(subject.cluster_id)?;
        let row = self.row()?.map(|row| (row.head.modified.get(), row.value));
        let (revision, row) = row.unwrap_or_default();
        Ok(v1::ReadClusterOutcome { revision, row })
    }

    fn check_cluster(&self, id: u64) -> Result<(), ApiError> {
        if id == self.cluster_id.get() {
            return Ok(());
        }
        Err(ApiError::WrongCluster("that is meant for another cluster".to_owned()))
    }

    /// The cluster as it is now: a linearisable read.
    ///
    /// # Errors
    /// [`ApiError`] if no leader confirms it.
    pub(crate) async fn current(&self) -> Result<ClusterState, ApiError> {
        self.gateway.confirm(self.gateway.meta()?, None).await?;
        Ok(self.applied()?.cluster)
    }

    /// Changes the cluster, here or at the leader of the meta group, once there is one.
    ///
    /// # Errors
    /// [`ApiError`]: refused, or what went wrong; whether it happened is in its outcome. A change is sent once.
    pub(crate) async fn change(&self, command: ClusterCommand) -> Result<(), ApiError> {
        let patience = Instant::now() + LEADER_PATIENCE;
        loop {
            let leader = self.gateway.meta()?.leadership.leader();
            let result = match leader {
                Some(leader) if leader == self.gateway.node => {
                    self.gateway.change_cluster(command.clone()).await
                }
                Some(leader) => self.ask(leader, command.clone()).await,
                None => Err(ApiError::NoLeader(ShardId::META)),
            };
            match result {
                Err(ApiError::NotLeader(_) | ApiError::NoLeader(_)) if Instant::now() < patience => {
                    tokio::time::sleep(LEADER_POLL).await;
                }
                done => return done,
            }
        }
    }

    async fn ask(&self, leader: NodeId, command: ClusterCommand) -> Result<(), ApiError> {
        let Some(channel) = self.links.dial(leader) else {
            return Err(ApiError::NoLeader(ShardId::META));
        };
        let change = v1::ClusterChange {
            cluster_id: self.cluster_id.get(),
            command: Command::Cluster(command).encode(),
        };
        let request = Request::new(sealed::seal::<v1::ChangeClusterRequest>(&change));
        let mut client = v1::peer_client::PeerClient::new(channel);
        match tokio::time::timeout(CALL_MAX, client.change_cluster(request)).await {
            Err(_) => Err(ApiError::Deadline),
            // It has just died: who leads now is not known here yet.
            Ok(Err(status)) if ApiError::was_not_sent(&status) => Err(ApiError::NoLeader(ShardId::META)),
            Ok(Err(status)) => Err(ApiError::from_status(&status)),
            Ok(Ok(_)) => Ok(()),
        }
    }

    /// Another node's change, if this node leads the meta group.
    ///
    /// # Errors
    /// [`ApiError`]
    pub(crate) async fn take(&self, change: v1::ClusterChange) -> Result<(), ApiError> {
        self.check_cluster(change.cluster_id)?;
        match Command::decode(change.command) {
            Ok(Command::Cluster(command)) => self.gateway.change_cluster(command).await,
            Ok(_) => Err(ApiError::Invalid("this is no change of the cluster".to_owned())),
            Err(cause) => Err(ApiError::Invalid(cause.to_string())),
        }
    }
}
