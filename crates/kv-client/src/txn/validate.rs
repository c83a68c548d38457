//! The end of a transaction that has only read: each shard says whether what was read of it is still so.
//!
//! Every read was answered before the first shard is asked. So if each says yes, everything was as it was read at the
//! moment between: nothing has changed from its read to its validation.

use std::sync::Arc;
use std::time::Instant;

use kv_proto::txn::Validate;
use kv_proto::v1;
use kv_types::Request as Identity;

use super::commit::Committed;
use super::content::Content;
use super::error::{AbortCause, Aborted, TxnError};
use crate::attempt::Caller;
use crate::call::{Call, Unary};
use crate::error::Failure;
use crate::join::join_all;
use crate::node::{Node, unary_failure};
use crate::reply::{Header, Source};
use crate::token::Token;

/// A question to one shard, as it is sent.
struct ValidateCall {
    place: bytes::Bytes,
    question: v1::ValidateRequest,
    token: Arc<Token>,
}

impl Call for ValidateCall {
    type Answer = (v1::ValidateReply, Source);

    const IS_WATCHED: bool = false;

    fn is_write(&self) -> bool {
        false
    }

    fn routing_key(&self) -> &[u8] {
        &self.place
    }

    async fn send(&self, node: &Node, _: Option<Identity>, until: Instant) -> Result<Self::Answer, Failure> {
        let unary = Unary { node, until, failure: unary_failure };
        let context = Some(unary.context(&self.token));
        let request = v1::ValidateRequest { context, ..self.question.clone() };
        unary.wait(node.txn().validate(request)).await
    }
}

/// Validates a content that writes nothing.
pub(super) async fn validate(caller: &Arc<Caller>, content: Content) -> Result<Committed, TxnError> {
    let questions = content.into_questions().into_iter().filter_map(|question| {
        let place = place(&question)?;
        Some(ValidateCall { place, question: question.into(), token: Arc::clone(&caller.token) })
    });
    let mut last = None;
    for answer in join_all(questions.map(|call| ask(caller, call))).await {
        last = Some(answer?);
    }
    Ok(Committed { header: last })
}

async fn ask(caller: &Arc<Caller>, call: ValidateCall) -> Result<Header, TxnError> {
    let read = |(reply, source): (v1::ValidateReply, Source)| {
        let header = source.header(reply.header)?;
        caller.token.seen(&header);
        Ok(if reply.valid { Ok(header) } else { Err(reply.conflict) })
    };
    let valid = caller.call_to_read(call, read).await.map_err(TxnError::Failed)?;
    valid.map_err(|conflict| {
        let at = Some(conflict).filter(|at| !at.is_empty());
        TxnError::Aborted(Aborted { cause: AbortCause::Conflict, at, request: None })
    })
}

/// Where in the key space a question is.
fn place(question: &Validate) -> Option<bytes::Bytes> {
    let key = question.reads.first().map(|(key, _)| key.bytes().clone());
    key.or_else(|| question.scans.first().map(|(range, _)| range.start().clone()))
}
