//! Sessions: a thin face on the gateway and the meta group's rows.

use std::sync::Arc;
use std::time::Duration;

use kv_proto::status::ApiError;
use kv_proto::v1;
use kv_proto::validate::{self, WireError};
use kv_state::gate;
use kv_state::sessions::{self, Session, SessionAnswer, SessionCommand};
use kv_storage::Pin;
use kv_types::limits::{SESSION_WINDOW, SESSIONS_PER_ENTRY_MAX};
use kv_types::{SessionId, ShardId};
use tonic::{Request, Response, Status};

use crate::gateway::{DEADLINE_DEFAULT, Gateway};
use crate::renewals::{Renewals, change_sessions};
use crate::rows::PinnedRows;

/// Serves clients that need sessions, and operators who look at them.
#[derive(Clone, Debug)]
pub(crate) struct SessionService {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) renewals: Arc<Renewals>,
}

impl SessionService {
    fn check(&self, context: Option<&v1::RequestContext>) -> Result<Option<Duration>, ApiError> {
        Ok(validate::context(context, &self.gateway.cluster)?.deadline)
    }

    /// The meta group's rows as they are now.
    async fn meta(&self, deadline: Option<Duration>) -> Result<(Pin, u64), ApiError> {
        let meta = self.gateway.meta()?;
        self.gateway.confirm(meta, deadline).await?;
        Ok((meta.pin()?, meta.time.ms()))
    }
}

#[tonic::async_trait]
impl v1::sessions_server::Sessions for SessionService {
    async fn open_session(
        &self,
        request: Request<v1::OpenSessionRequest>,
    ) -> Result<Response<v1::OpenSessionReply>, Status> {
        let request = request.into_inner();
        let deadline = self.check(request.context.as_ref())?;
        let nonce = <[u8; 16]>::try_from(&request.nonce[..])
            .map_err(|_| ApiError::Invalid("the nonce of a session has 16 bytes".to_owned()))?;
        let command = SessionCommand::Open {
            nonce: u128::from_be_bytes(nonce),
            ttl: Duration::from_millis(request.ttl_ms),
        };
        match change_sessions(&self.gateway, deadline, command).await? {
            SessionAnswer::Opened { session, lease_until } => Ok(Response::new(v1::OpenSessionReply {
                session: session.get(),
                lease_until_ms: lease_until.ms(),
            })),
            other => unreachable!("an opening is answered {other:?}"),
        }
    }

    async fn renew_sessions(
        &self,
        request: Request<v1::RenewSessionsRequest>,
    ) -> Result<Response<v1::RenewSessionsReply>, Status> {
        let request = request.into_inner();
        let deadline = self.check(request.context.as_ref())?;
        validate::at_most("sessions", request.sessions.len(), SESSIONS_PER_ENTRY_MAX)
            .map_err(ApiError::from)?;
        let sessions = request.sessions.into_iter().map(SessionId::new).collect();
        let patience = deadline.unwrap_or(DEADLINE_DEFAULT);
        let renewed = tokio::time::timeout(patience, self.renewals.renew(sessions)).await;
        let leases = renewed.map_err(|_| ApiError::Deadline)??;
        let renewed = |(session, lease): (SessionId, Option<kv_types::ClusterTime>)| v1::RenewedSession {
            session: session.get(),
            lease_until_ms: lease.map(kv_types::ClusterTime::ms),
        };
        Ok(Response::new(v1::RenewSessionsReply { sessions: leases.into_iter().map(renewed).collect() }))
    }

    async fn close_session(
        &self,
        request: Request<v1::CloseSessionRequest>,
    ) -> Result<Response<v1::CloseSessionReply>, Status> {
        let request = request.into_inner();
        let deadline = self.check(request.context.as_ref())?;
        let command = SessionCommand::Close { session: named(request.session)? };
        change_sessions(&self.gateway, deadline, command).await?;
        Ok(Response::new(v1::CloseSessionReply {}))
    }

    async fn get_session(
        &self,
        request: Request<v1::GetSessionRequest>,
    ) -> Result<Response<v1::GetSessionReply>, Status> {
        let request = request.into_inner();
        let deadline = self.check(request.context.as_ref())?;
        let id = named(request.session)?;
        let (pin, time_ms) = self.meta(deadline).await?;
        let session = sessions::session(&PinnedRows(&pin), id).map_err(unreadable)?;
        let mut progress = Vec::new();
        for handle in self.gateway.shards.values().filter(|handle| handle.shard != ShardId::META) {
            let pin = handle.pin()?;
            let limit = usize::try_from(SESSION_WINDOW).unwrap_or(usize::MAX);
            let found = gate::session_progress(&PinnedRows(&pin), id, limit).map_err(unreadable)?;
            if found != gate::SessionProgress::default() {
                progress.push(v1::SessionProgress {
                    shard: handle.shard.get(),
                    floor: found.floor,
                    records: found.records as u64,
                });
            }
        }
        let session = session.map(|session| wire(id, &session));
        Ok(Response::new(v1::GetSessionReply { session, progress, time_ms }))
    }

    async fn list_sessions(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsReply>, Status> {
        let request = request.into_inner();
        let deadline = self.check(request.context.as_ref())?;
        let after = (request.after > 0).then(|| SessionId::new(request.after));
        let limit = match usize::try_from(request.limit) {
            Ok(limit @ 1..=SESSIONS_PER_ENTRY_MAX) => limit,
            _ => SESSIONS_PER_ENTRY_MAX,
        };
        let (pin, time_ms) = self.meta(deadline).await?;
        let mut found = sessions::list(&PinnedRows(&pin), after, limit + 1).map_err(unreadable)?;
        let more = found.len() > limit;
        found.truncate(limit);
        let sessions = found.iter().map(|(id, session)| wire(*id, session)).collect();
        Ok(Response::new(v1::ListSessionsReply { sessions, more, time_ms }))
    }
}

fn named(session: u64) -> Result<SessionId, ApiError> {
    if session == 0 { Err(WireError::Missing("session").into()) } else { Ok(SessionId::new(session)) }
}

fn unreadable(cause: impl std::fmt::Display) -> ApiError {
    ApiError::Checksum(cause.to_string())
}

fn wire(id: SessionId, session: &Session) -> v1::Session {
    v1::Session {
        session: id.get(),
        ttl_ms: u64::try_from(session.ttl.as_millis()).unwrap_or(u64::MAX),
        opened_ms: session.opened.ms(),
        lease_until_ms: session.lease_until.ms(),
        closed: session.closed,
    }
}
