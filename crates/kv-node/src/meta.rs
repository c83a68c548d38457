//! The way to the meta group from any node: what it says of the cluster, and how to change that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_proto::status::ApiError;
use kv_proto::{sealed, v1};
use kv_state::Command;
use kv_state::cluster::{ClusterCommand, ClusterState};
use kv_types::{ClusterId, NodeId};
use tonic::Request;

use crate::gateway::Gateway;
use crate::links::Links;

/// How long a change waits for a leader of the meta group.
const LEADER_PATIENCE: Duration = Duration::from_secs(5);

/// How often it looks for one.
const LEADER_POLL: Duration = Duration::from_millis(50);

/// How long another node may take to answer.
const CALL_MAX: Duration = Duration::from_secs(10);

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
    pub(crate) fn applied(&self) -> Result<ClusterState, ApiError> {
        let row = self.gateway.meta()?.reader.get(&ClusterState::row_key());
        let row = row.map_err(|cause| ApiError::Checksum(cause.to_string()))?;
        let state = row.map_or(Ok(ClusterState::default()), |row| ClusterState::decode(&row.value));
        state.map_err(|cause| ApiError::Checksum(format!("the cluster's row cannot be read: {cause}")))
    }

    /// The cluster as it is now: a linearisable read.
    ///
    /// # Errors
    /// [`ApiError`] if no leader confirms it.
    pub(crate) async fn current(&self) -> Result<ClusterState, ApiError> {
        self.gateway.confirm(self.gateway.meta()?, None).await?;
        self.applied()
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
                None => Err(ApiError::NoLeader(kv_types::ShardId::META)),
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
            return Err(ApiError::NoLeader(kv_types::ShardId::META));
        };
        let change = v1::ClusterChange {
            cluster_id: self.cluster_id.get(),
            command: Command::Cluster(command).encode(),
        };
        let request = Request::new(sealed::seal::<v1::ChangeClusterRequest>(&change));
        let mut client = v1::peer_client::PeerClient::new(channel);
        match tokio::time::timeout(CALL_MAX, client.change_cluster(request)).await {
            Err(_) => Err(ApiError::Deadline),
            Ok(Err(status)) => Err(ApiError::from_status(&status)),
            Ok(Ok(_)) => Ok(()),
        }
    }

    /// Another node's change, if this node leads the meta group.
    ///
    /// # Errors
    /// [`ApiError`]
    pub(crate) async fn take(&self, change: v1::ClusterChange) -> Result<(), ApiError> {
        if change.cluster_id != self.cluster_id.get() {
            return Err(ApiError::WrongCluster("the change is meant for another cluster".to_owned()));
        }
        match Command::decode(change.command) {
            Ok(Command::Cluster(command)) => self.gateway.change_cluster(command).await,
            Ok(_) => Err(ApiError::Invalid("this is no change of the cluster".to_owned())),
            Err(cause) => Err(ApiError::Invalid(cause.to_string())),
        }
    }
}
