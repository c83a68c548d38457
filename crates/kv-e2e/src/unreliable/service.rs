//! What the layer answers in a node's place.

use std::sync::Arc;

use kv_client::v1;
use rand::RngExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use super::{Behind, MESSAGE_BYTES_MAX, Shared, stream};

type Answer<T> = Result<Response<T>, Status>;

/// One port.
#[derive(Clone, Debug)]
pub(super) struct Port {
    node: u64,
    shared: Arc<Shared>,
}

impl Port {
    pub(super) fn new(node: u64, shared: &Arc<Shared>) -> Self {
        Self { node, shared: Arc::clone(shared) }
    }

    fn behind(&self) -> Result<&Behind, Status> {
        self.shared.nodes.get(&self.node).ok_or_else(|| Status::internal("there is no such node"))
    }

    fn sessions(&self) -> Result<v1::sessions_client::SessionsClient<Channel>, Status> {
        let channel = self.behind()?.channel.clone();
        Ok(v1::sessions_client::SessionsClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    fn cluster(&self) -> Result<v1::cluster_client::ClusterClient<Channel>, Status> {
        let channel = self.behind()?.channel.clone();
        Ok(v1::cluster_client::ClusterClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// The answer, or an error in its place.
    fn may_lose<T>(&self, answer: Answer<T>) -> Answer<T> {
        let lost = self.shared.choices().random_bool(self.shared.faults.lose_session_reply);
        if answer.is_ok() && lost {
            self.shared.counts.session_reply_lost();
            return Err(Status::unavailable("the answer was lost on its way"));
        }
        answer
    }

    /// The layer's address of a node, for the node's own.
    fn disguise(&self, node: u64, address: &mut String) {
        if let Some(behind) = self.shared.nodes.get(&node) {
            address.clone_from(&behind.address);
        }
    }
}

fn not_carried<T>() -> Answer<T> {
    Err(Status::unimplemented("the layer does not carry this call"))
}

#[tonic::async_trait]
impl v1::kv_server::Kv for Port {
    type PipelineStream = stream::Replies;

    async fn pipeline(&self, request: Request<Streaming<v1::PipelineRequests>>) -> Answer<stream::Replies> {
        Ok(Response::new(stream::carry(Arc::clone(&self.shared), self.node, request.into_inner()).await?))
    }

    async fn get_outcome(&self, request: Request<v1::GetOutcomeRequest>) -> Answer<v1::GetOutcomeReply> {
        self.behind()?.kv().get_outcome(request.into_inner()).await
    }

    async fn put(&self, _: Request<v1::PutRequest>) -> Answer<v1::PutReply> {
        not_carried()
    }

    async fn get(&self, _: Request<v1::GetRequest>) -> Answer<v1::GetReply> {
        not_carried()
    }

    async fn multi_get(&self, _: Request<v1::MultiGetRequest>) -> Answer<v1::MultiGetReply> {
        not_carried()
    }

    async fn delete(&self, _: Request<v1::DeleteRequest>) -> Answer<v1::DeleteReply> {
        not_carried()
    }

    async fn delete_range(&self, _: Request<v1::DeleteRangeRequest>) -> Answer<v1::DeleteRangeReply> {
        not_carried()
    }

    type ScanStream = ReceiverStream<Result<v1::ScanReply, Status>>;

    async fn scan(&self, _: Request<v1::ScanRequest>) -> Answer<Self::ScanStream> {
        not_carried()
    }

    async fn scan_page(&self, _: Request<v1::ScanRequest>) -> Answer<v1::ScanReply> {
        not_carried()
    }

    async fn compare_and_set(&self, _: Request<v1::CompareAndSetRequest>) -> Answer<v1::CompareAndSetReply> {
        not_carried()
    }

    async fn increment(&self, _: Request<v1::IncrementRequest>) -> Answer<v1::IncrementReply> {
        not_carried()
    }
}

#[tonic::async_trait]
impl v1::sessions_server::Sessions for Port {
    async fn open_session(&self, request: Request<v1::OpenSessionRequest>) -> Answer<v1::OpenSessionReply> {
        self.may_lose(self.sessions()?.open_session(request.into_inner()).await)
    }

    async fn renew_sessions(
        &self,
        request: Request<v1::RenewSessionsRequest>,
    ) -> Answer<v1::RenewSessionsReply> {
        self.may_lose(self.sessions()?.renew_sessions(request.into_inner()).await)
    }

    async fn close_session(
        &self,
        request: Request<v1::CloseSessionRequest>,
    ) -> Answer<v1::CloseSessionReply> {
        self.may_lose(self.sessions()?.close_session(request.into_inner()).await)
    }

    async fn get_session(&self, request: Request<v1::GetSessionRequest>) -> Answer<v1::GetSessionReply> {
        self.sessions()?.get_session(request.into_inner()).await
    }

    async fn list_sessions(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Answer<v1::ListSessionsReply> {
        self.sessions()?.list_sessions(request.into_inner()).await
    }
}

#[tonic::async_trait]
impl v1::cluster_server::Cluster for Port {
    async fn cluster_map(&self, request: Request<v1::ClusterMapRequest>) -> Answer<v1::ClusterMapReply> {
        let mut map = self.cluster()?.cluster_map(request.into_inner()).await?.into_inner();
        for member in &mut map.members {
            self.disguise(member.node, &mut member.client_addr);
        }
        for hint in map.shards.iter_mut().filter_map(|shard| shard.leader.as_mut()) {
            self.disguise(hint.node, &mut hint.client_addr);
        }
        Ok(Response::new(map))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Answer<v1::StatusReply> {
        not_carried()
    }

    async fn members(&self, _: Request<v1::MembersRequest>) -> Answer<v1::MembersReply> {
        not_carried()
    }

    async fn shards(&self, _: Request<v1::ShardsRequest>) -> Answer<v1::ShardsReply> {
        not_carried()
    }

    async fn change_member(&self, _: Request<v1::ChangeMemberRequest>) -> Answer<v1::ChangeMemberReply> {
        not_carried()
    }

    async fn transfer_leader(
        &self,
        _: Request<v1::TransferLeaderRequest>,
    ) -> Answer<v1::TransferLeaderReply> {
        not_carried()
    }

    async fn set_setting(&self, _: Request<v1::SetSettingRequest>) -> Answer<v1::SetSettingReply> {
        not_carried()
    }

    async fn set_log_level(&self, _: Request<v1::SetLogLevelRequest>) -> Answer<v1::SetLogLevelReply> {
        not_carried()
    }
}
