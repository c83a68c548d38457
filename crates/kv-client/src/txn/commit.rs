//! The end of a transaction: one call to the leader of its anchor's shard.

use std::sync::Arc;
use std::time::Instant;

use kv_proto::request::{self, Request};
use kv_proto::request_id;
use kv_proto::status::ApiError;
use kv_proto::v1::{self, AbortReason, pipeline_reply};
use kv_types::{Key, Outcome, Request as Identity, RequestId};

use super::content::Content;
use super::error::{AbortCause, Aborted, TxnError};
use crate::attempt::Caller;
use crate::call::{Call, Unary};
use crate::error::{Error, Failure};
use crate::node::{Node, unary_write_failure};
use crate::reply::{Header, Source};
use crate::token::Token;

/// A larger transaction is a call of its own: it gains nothing from company.
const PIPELINED_BYTES_MAX: usize = 64 << 10;

/// A transaction that is committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Where, by whom and when, at the shard that decided; `None` if the transaction had read and written nothing, so that
    /// nobody was asked.
    pub header: Option<Header>,
}

/// A commit as it is sent.
struct CommitCall {
    commit: request::Commit,
    token: Arc<Token>,
}

impl Call for CommitCall {
    type Answer = (RequestId, v1::CommitReply, Source);

    const IS_WATCHED: bool = false;

    fn is_write(&self) -> bool {
        true
    }

    fn routing_key(&self) -> &[u8] {
        self.commit.content.anchor.as_ref()
    }

    async fn send(
        &self,
        node: &Node,
        identity: Option<Identity>,
        until: Instant,
    ) -> Result<Self::Answer, Failure> {
        let Some(identity) = identity else {
            return Err(Failure::Config("a transaction needs a request id".to_owned()));
        };
        if self.commit.content.bytes() <= PIPELINED_BYTES_MAX {
            let request = Request::Commit(self.commit.clone());
            return match node.send(request, Some(identity), until).await? {
                (pipeline_reply::Result::Commit(reply), source) => Ok((identity.id(), reply, source)),
                (pipeline_reply::Result::Error(error), _) => Err(ApiError::from_pipeline(error).into()),
                (_, source) => Err(source.bad("it answers another question")),
            };
        }
        let unary = Unary { node, until, failure: unary_write_failure };
        let context = v1::RequestContext {
            request_id: Some(request_id::write(&identity)),
            ..unary.context(&self.token)
        };
        let request = v1::CommitRequest { context: Some(context), ..self.commit.clone().into() };
        let (reply, source) = unary.wait(node.txn().commit(request)).await?;
        Ok((identity.id(), reply, source))
    }
}

/// Commits a content that is not empty.
pub(super) async fn commit(
    caller: &Arc<Caller>,
    (content, reservation): (Content, u64),
    anchor: Key,
) -> Result<Committed, TxnError> {
    let commit = request::Commit { content: content.into_commit(anchor.clone()), reservation };
    let call = CommitCall { commit, token: Arc::clone(&caller.token) };
    let read = |(request, reply, source): (RequestId, v1::CommitReply, Source)| {
        let header = source.header(reply.header)?;
        caller.token.seen(&header);
        Ok(match cause(reply.aborted) {
            None => Ok(Committed { header: Some(header) }),
            Some(cause) => {
                let at = Some(reply.conflict).filter(|at| !at.is_empty());
                Err(Aborted { cause, at, request: Some(request) })
            }
        })
    };
    match caller.call_as_txn(call, read).await {
        Ok(decided) => Ok(decided?),
        Err(error) => Err(failed(error, anchor)),
    }
}

/// Why it is aborted; `None` if it is committed. A reason that this client does not know is one, too.
fn cause(reason: i32) -> Option<AbortCause> {
    match AbortReason::try_from(reason) {
        Ok(AbortReason::None) => None,
        Ok(AbortReason::Conflict) => Some(AbortCause::Conflict),
        Ok(AbortReason::Locked) => Some(AbortCause::Locked),
        Ok(AbortReason::Unreachable) => Some(AbortCause::Unreachable),
        Ok(AbortReason::DecidedBefore) | Err(_) => Some(AbortCause::DecidedBefore),
    }
}

/// What a commit without an answer came to.
fn failed(error: Error, anchor: Key) -> TxnError {
    if error.outcome == Outcome::Unknown {
        return TxnError::Unknown { anchor, source: Box::new(error) };
    }
    let cause = match &error.failure {
        Failure::Api(ApiError::Conflict(_)) => AbortCause::Conflict,
        Failure::Api(ApiError::Locked(_)) => AbortCause::Locked,
        _ => return TxnError::Failed(error),
    };
    TxnError::Aborted(Aborted { cause, at: None, request: error.request })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reply_that_gives_no_reason_means_committed() {
        assert_eq!(cause(0), None);
        assert_eq!(cause(AbortReason::Conflict.into()), Some(AbortCause::Conflict));
        assert_eq!(cause(AbortReason::Locked.into()), Some(AbortCause::Locked));
        assert_eq!(cause(AbortReason::Unreachable.into()), Some(AbortCause::Unreachable));
        assert_eq!(cause(AbortReason::DecidedBefore.into()), Some(AbortCause::DecidedBefore));
        assert_eq!(cause(99), Some(AbortCause::DecidedBefore), "of a newer server");
        assert_eq!(cause(-1), Some(AbortCause::DecidedBefore));
    }

    #[test]
    fn a_refusal_that_did_nothing_is_an_abort_and_one_that_may_have_is_not() {
        let anchor = || Key::new("a").unwrap();
        let error = |failure: ApiError, outcome| Error { failure: failure.into(), outcome, request: None };
        let locked = ApiError::Locked("k".into());
        let aborted = failed(error(locked.clone(), Outcome::NotApplied), anchor());
        assert!(matches!(&aborted, TxnError::Aborted(aborted) if aborted.cause == AbortCause::Locked));
        let unknown = failed(error(locked, Outcome::Unknown), anchor());
        assert!(matches!(unknown, TxnError::Unknown { .. }));
        let refused = failed(error(ApiError::Quota("disk".into()), Outcome::NotApplied), anchor());
        assert!(matches!(refused, TxnError::Failed(_)));
    }
}
