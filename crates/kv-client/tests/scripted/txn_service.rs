//! Transactions as a test has them: checked as a server would, decided at once, remembered by their id.

use std::collections::BTreeSet;

use kv_proto::status::ApiError;
use kv_proto::txn::{Commit, Validate};
use kv_proto::v1::{self, AbortReason};
use kv_types::Key;
use tonic::{Request, Response, Status};

use super::store::shard_of;
use super::{Act, Inner, Service, header, name};

#[tonic::async_trait]
impl v1::txn_server::Txn for Service {
    async fn commit(&self, request: Request<v1::CommitRequest>) -> Result<Response<v1::CommitReply>, Status> {
        let commit = self.0.lock().unwrap().scripted_commit(request.into_inner());
        match commit {
            Scripted::Told(told) => Ok(Response::new(told?)),
            Scripted::Broken => Err(Status::unavailable("the answer was lost")),
            Scripted::Ignored => std::future::pending().await,
        }
    }

    async fn validate(
        &self,
        request: Request<v1::ValidateRequest>,
    ) -> Result<Response<v1::ValidateReply>, Status> {
        let mut inner = self.0.lock().unwrap();
        let request = request.into_inner();
        inner.validated.push(request.clone());
        Ok(Response::new(inner.validate(request)?))
    }

    async fn reserve(
        &self,
        request: Request<v1::ReserveRequest>,
    ) -> Result<Response<v1::ReserveReply>, Status> {
        let mut inner = self.0.lock().unwrap();
        inner.reserved.push(request.into_inner());
        Ok(Response::new(v1::ReserveReply { header: header(), reserved: true }))
    }

    async fn list_txns(
        &self,
        _: Request<v1::ListTxnsRequest>,
    ) -> Result<Response<v1::ListTxnsReply>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn end_txn(&self, _: Request<v1::EndTxnRequest>) -> Result<Response<v1::EndTxnReply>, Status> {
        Err(Status::unimplemented("not scripted"))
    }
}

/// What becomes of a call.
pub enum Scripted<T> {
    /// It is answered.
    Told(Result<T, ApiError>),
    /// The connection breaks.
    Broken,
    /// Nobody answers.
    Ignored,
}

impl Inner {
    /// A commit, whichever way it has come.
    pub fn scripted_commit(&mut self, request: v1::CommitRequest) -> Scripted<v1::CommitReply> {
        self.commits.push(request.clone());
        let act = self.script.pop_front();
        let forced = match act {
            Some(Act::Fail(error)) => return Scripted::Told(Err(error)),
            Some(Act::Break) => return Scripted::Broken,
            Some(Act::Ignore) => return Scripted::Ignored,
            Some(Act::Abort(reason)) => Some(reason),
            Some(Act::Damage) => panic!("a transaction has no row"),
            Some(Act::Lose) | None => None,
        };
        let told = self.commit(request, forced);
        if matches!(act, Some(Act::Lose)) { Scripted::Broken } else { Scripted::Told(told) }
    }

    fn validate(&mut self, request: v1::ValidateRequest) -> Result<v1::ValidateReply, Status> {
        let Validate { reads, scans, .. } = request.try_into()?;
        let anchor = Key::new("none").unwrap();
        let content = Commit { anchor, reads, scans, writes: Vec::new() };
        let conflict = self.store.lock().unwrap().conflict(&content);
        let valid = conflict.is_none();
        Ok(v1::ValidateReply { header: header(), valid, conflict: conflict.unwrap_or_default() })
    }

    fn commit(
        &mut self,
        request: v1::CommitRequest,
        forced: Option<AbortReason>,
    ) -> Result<v1::CommitReply, ApiError> {
        let id = request.context.clone().and_then(|context| context.request_id).map(name);
        let id = id.ok_or_else(|| ApiError::Invalid("no request id".into()))?;
        if let Some(known) = self.decided.lock().unwrap().get(&id) {
            let header = known.header.clone().map(|header| v1::Header { replayed: true, ..header });
            return Ok(v1::CommitReply { header, ..known.clone() });
        }
        let content = Commit::try_from(request)?;
        check(&content, &self.map)?;
        let mut store = self.store.lock().unwrap();
        let mut reply = v1::CommitReply { header: header(), ..v1::CommitReply::default() };
        match (forced, store.conflict(&content)) {
            (Some(reason), _) => reply.aborted = reason.into(),
            (None, Some(key)) => {
                reply.aborted = AbortReason::Conflict.into();
                reply.conflict = key;
            }
            (None, None) => store.carry_out(content),
        }
        self.decided.lock().unwrap().insert(id, reply.clone());
        Ok(reply)
    }
}

/// What a server refuses, and no client may send.
fn check(content: &Commit, map: &v1::ClusterMapReply) -> Result<(), ApiError> {
    let refused = |what: &str| Err(ApiError::Invalid(what.to_owned()));
    let reads: BTreeSet<_> = content.reads.iter().map(|(key, _)| key).collect();
    let writes: BTreeSet<_> = content.writes.iter().map(|(key, _)| key).collect();
    let starts: BTreeSet<_> = content.scans.iter().map(|(range, _)| range.start()).collect();
    if (reads.len(), writes.len(), starts.len())
        != (content.reads.len(), content.writes.len(), content.scans.len())
    {
        return refused("a key is named twice");
    }
    if !reads.contains(&content.anchor) && !writes.contains(&content.anchor) {
        return refused("the anchor is no key of it");
    }
    for (number, (range, _)) in content.scans.iter().enumerate() {
        if content.scans[..number].iter().any(|(other, _)| other.intersection(range).is_some()) {
            return refused("two ranges overlap");
        }
        let (_, own) = shard_of(range.start(), map);
        if own.intersection(range).as_ref() != Some(range) {
            return refused("a range reaches beyond its shard");
        }
    }
    Ok(())
}
