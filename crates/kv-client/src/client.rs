//! What applications call.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use kv_proto::request::{self, Expect, Request};
use kv_proto::v1::{self, pipeline_reply};
use kv_types::limits::MULTI_GET_KEYS_MAX;
use kv_types::{Key, KeyRange, RequestId, SessionId, ShardId, Value};

use crate::admin::{self, NodeAnswer};
use crate::attempt::Caller;
use crate::config::Config;
use crate::error::{Error, Failure, RangeError};
use crate::join::join_all;
use crate::left::{self, ShardTxns};
use crate::outcome::{self, RequestOutcome};
use crate::pipeline::Answer;
use crate::reply::{Deleted, Got, Header, Incremented, MultiGot, Page, RangeDeleted, Swapped, Written};
use crate::scan::Scan;

/// A cluster, for applications. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) caller: Arc<Caller>,
}

/// Takes the reply of one kind out of an answer.
macro_rules! expect_reply {
    ($answer:expr, $kind:ident) => {
        match $answer {
            (pipeline_reply::Result::$kind(reply), source) => (reply, source),
            (_, source) => return Err(source.bad("it answers another question")),
        }
    };
}

impl Client {
    /// A client that finds out where the cluster is at its first call. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Failure::Config`] if there is no endpoint or one is no address.
    pub fn new(config: Config) -> Result<Self, Error> {
        Ok(Self { caller: Arc::new(Caller::new(config).map_err(Error::of_read)?) })
    }

    /// A client that knows where the cluster is.
    ///
    /// # Errors
    /// As [`Client::new`]; and if no endpoint gave a map within the timeout.
    pub async fn connect(config: Config) -> Result<Self, Error> {
        let client = Self::new(config)?;
        let now = Instant::now();
        client.caller.refresh(now, now + client.caller.config.timeout).await.map_err(Error::of_read)?;
        Ok(client)
    }

    /// Writes a key.
    ///
    /// # Errors
    /// [`Error`]; its outcome says whether the write happened.
    pub async fn put(&self, key: Key, value: Value) -> Result<Written, Error> {
        let read = |answer: Answer| self.written(answer);
        self.caller.call(Request::Put(request::Put { key, value }), read).await
    }

    /// Writes a key under an id that the caller chose: an earlier call with it, by whomever, that was carried out is
    /// answered again, and not repeated.
    ///
    /// # Errors
    /// [`Error`]; its outcome says whether the write happened.
    pub async fn put_as(&self, id: RequestId, key: Key, value: Value) -> Result<Written, Error> {
        let deadline = self.caller.deadline();
        let id = outcome::with_lease(&self.caller, id, deadline).await.map_err(Error::of_read)?;
        let read = |answer: Answer| self.written(answer);
        self.caller.call_as(id, Request::Put(request::Put { key, value }), deadline, read).await
    }

    fn written(&self, answer: Answer) -> Result<Written, Failure> {
        let (reply, source) = expect_reply!(answer, Put);
        Ok(Written { header: self.seen(source.header(reply.header)?) })
    }

    /// Reads a key.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn get(&self, key: Key) -> Result<Got, Error> {
        let read = |answer: Answer| {
            let (reply, source) = expect_reply!(answer, Get);
            let row = reply.row.map(|row| source.row(row)).transpose()?;
            Ok(Got { header: self.seen(source.header(reply.header)?), row })
        };
        self.caller.call(Request::Get(request::Get { key }), read).await
    }

    /// Reads several keys: those of one shard at one revision, as far as they fit one reply.
    ///
    /// # Errors
    /// [`Error`] if any of them could not be read.
    pub async fn multi_get(&self, keys: Vec<Key>) -> Result<MultiGot, Error> {
        let deadline = self.caller.deadline();
        let mut by_shard: BTreeMap<ShardId, Vec<(usize, Key)>> = BTreeMap::new();
        for (position, key) in keys.into_iter().enumerate() {
            let shard = self.caller.shard_of(key.as_ref(), deadline).await.map_err(Error::of_read)?;
            by_shard.entry(shard).or_default().push((position, key));
        }
        let parts = join_all(by_shard.into_values().map(|part| self.get_of_shard(part))).await;
        let mut found = BTreeMap::new();
        for part in parts {
            found.extend(part?);
        }
        Ok(MultiGot { found: found.into_values().collect() })
    }

    /// Reads keys of one shard, as many calls as the replies' limits ask for.
    async fn get_of_shard(&self, mut rest: Vec<(usize, Key)>) -> Result<Vec<(usize, Got)>, Error> {
        let mut found = Vec::with_capacity(rest.len());
        while !rest.is_empty() {
            let keys: Vec<Key> = rest.iter().take(MULTI_GET_KEYS_MAX).map(|(_, key)| key.clone()).collect();
            let asked = keys.len();
            let read = |answer: Answer| {
                let (reply, source) = expect_reply!(answer, MultiGet);
                let looked_at = usize::try_from(reply.looked_at).unwrap_or(usize::MAX);
                if looked_at == 0 || looked_at > asked {
                    return Err(source.bad("it looked at no key, or at too many"));
                }
                let header = self.seen(source.header(reply.header)?);
                Ok((looked_at, header, source.rows(reply.rows)?, source))
            };
            let request = Request::MultiGet(request::MultiGet { keys });
            let (looked_at, header, rows, source) = self.caller.call(request, read).await?;
            let mut rows = rows.into_iter().peekable();
            for (position, key) in rest.drain(..looked_at) {
                let row = rows.next_if(|row| row.key == key);
                found.push((position, Got { header: header.clone(), row }));
            }
            if rows.next().is_some() {
                return Err(Error::of_read(source.bad("it has a row that was not asked for")));
            }
        }
        Ok(found)
    }

    /// Deletes a key.
    ///
    /// # Errors
    /// [`Error`]; its outcome says whether the deletion happened.
    pub async fn delete(&self, key: Key) -> Result<Deleted, Error> {
        let read = |answer: Answer| {
            let (reply, source) = expect_reply!(answer, Delete);
            let header = self.seen(source.header(reply.header)?);
            Ok(Deleted { header, deleted: reply.deleted })
        };
        self.caller.call(Request::Delete(request::Delete { key }), read).await
    }

    /// Deletes all keys of a range, in steps; not atomic.
    ///
    /// # Errors
    /// [`RangeError`] says how far it came.
    pub async fn delete_range(&self, range: KeyRange) -> Result<RangeDeleted, RangeError> {
        let mut rest = range;
        let mut deleted = 0;
        loop {
            let step = self.delete_step(&rest).await;
            let stopped = |source: Error| RangeError { deleted, resume_key: rest.start().clone(), source };
            let (done, resume_key) = step.map_err(stopped)?;
            let Some(resume_key) = resume_key else {
                return Ok(RangeDeleted { header: done.header, deleted: deleted + done.deleted });
            };
            let next = KeyRange::new(resume_key, rest.end().cloned())
                .ok()
                .filter(|next| next.start() > rest.start() || done.deleted > 0);
            let Some(next) = next else {
                let failure = Failure::BadReply {
                    endpoint: done.header.leader.to_string(),
                    cause: "the deletion does not move on".to_owned(),
                };
                return Err(stopped(Error::of_write(failure)));
            };
            deleted += done.deleted;
            rest = next;
        }
    }

    async fn delete_step(&self, range: &KeyRange) -> Result<(RangeDeleted, Option<bytes::Bytes>), Error> {
        let request = Request::DeleteRange(request::DeleteRange { range: range.clone() });
        let read = |answer: Answer| {
            let (reply, source) = expect_reply!(answer, DeleteRange);
            let header = self.seen(source.header(reply.header)?);
            Ok((RangeDeleted { header, deleted: reply.deleted }, reply.resume_key))
        };
        self.caller.call(request, read).await
    }

    /// Writes a key if it is as expected.
    ///
    /// # Errors
    /// [`Error`]; its outcome says whether the write happened. That the key was not as expected is no error.
    pub async fn cas(&self, key: Key, expect: Expect, value: Value) -> Result<Swapped, Error> {
        let asked = key.clone();
        let request = request::CompareAndSet { key, expect, value };
        let read = |answer: Answer| {
            let (reply, source) = expect_reply!(answer, CompareAndSet);
            let current = reply.current.map(|row| source.found(&asked, row)).transpose()?;
            let header = self.seen(source.header(reply.header)?);
            Ok(Swapped { header, swapped: reply.swapped, current, value_omitted: reply.value_omitted })
        };
        self.caller.call(Request::CompareAndSet(request), read).await
    }

    /// Adds to a number: a value of decimal digits with an optional `-`, within 64 bits. An absent key counts as 0.
    ///
    /// # Errors
    /// [`Error`]; its outcome says whether the number was added. [`ApiError::NotANumber`](crate::ApiError::NotANumber)
    /// and [`ApiError::NumberOverflow`](crate::ApiError::NumberOverflow) if it cannot be.
    pub async fn incr(&self, key: Key, delta: i64) -> Result<Incremented, Error> {
        let read = |answer: Answer| {
            let (reply, source) = expect_reply!(answer, Increment);
            let header = self.seen(source.header(reply.header)?);
            Ok(Incremented { header, value: reply.value })
        };
        self.caller.call(Request::Increment(request::Increment { key, delta }), read).await
    }

    /// Reads a range, page by page, all rows of one shard at one revision.
    pub fn scan(&self, scan: request::Scan) -> Scan {
        Scan::new(Arc::clone(&self.caller), scan)
    }

    /// Reads one page of a range, of the shard of its start, by the pipeline.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn scan_page(&self, scan: request::Scan) -> Result<Page, Error> {
        let read = |answer: Answer| {
            let (reply, source) = expect_reply!(answer, ScanPage);
            let page = source.page(reply)?;
            self.caller.token.seen(&page.header);
            Ok(page)
        };
        self.caller.call(Request::ScanPage(scan), read).await
    }

    /// The status of every node: the configured endpoints and the members the map names beside them.
    pub async fn status(&self) -> Vec<NodeAnswer<v1::StatusReply>> {
        admin::status(&self.caller).await
    }

    /// The status of the configured endpoints only, in their order.
    pub async fn status_of_endpoints(&self) -> Vec<NodeAnswer<v1::StatusReply>> {
        admin::status_of_endpoints(&self.caller).await
    }

    /// The members, as the first node that answers knows them.
    ///
    /// # Errors
    /// [`Error`] if no node answers.
    pub async fn members(&self) -> Result<v1::MembersReply, Error> {
        admin::members(&self.caller).await
    }

    /// Announces, promotes or removes a member.
    ///
    /// # Errors
    /// [`Error`]; its outcome says whether the wish is recorded.
    pub async fn change_member(&self, change: v1::change_member_request::Change) -> Result<(), Error> {
        admin::change_member(&self.caller, change).await
    }

    /// Asks the leader of a shard to hand over to another voter; the answer comes when that has begun, and it may still fail.
    ///
    /// # Errors
    /// [`Error`]; unless its outcome is unknown, nobody hands over.
    pub async fn transfer_leader(&self, shard: ShardId, to: kv_types::NodeId) -> Result<(), Error> {
        admin::transfer_leader(&self.caller, shard, to).await
    }

    /// Changes a setting of the whole cluster.
    ///
    /// # Errors
    /// [`Error`]; its outcome says whether it is recorded.
    pub async fn set_setting(&self, name: &str, value: &str) -> Result<(), Error> {
        admin::set_setting(&self.caller, name, value).await
    }

    /// The shards, from what all nodes that answer know.
    ///
    /// # Errors
    /// [`Error`] if no node answers.
    pub async fn shards(&self) -> Result<Vec<v1::ShardStatus>, Error> {
        admin::shards(&self.caller).await
    }

    /// What a request with an id came to: on the shard of a key, or, without one, on any. With `settle` a request that was
    /// not seen is closed, so that it never will be applied.
    ///
    /// # Errors
    /// [`Error`]; it says nothing of the request.
    pub async fn outcome(
        &self,
        id: RequestId,
        key: Option<&[u8]>,
        settle: bool,
    ) -> Result<RequestOutcome, Error> {
        match key {
            Some(key) => outcome::of_key(&self.caller, id, key, settle).await,
            None => outcome::anywhere(&self.caller, id, settle).await,
        }
    }

    /// Draws an id for one write of a key; it is good for 15 minutes.
    ///
    /// # Errors
    /// [`Error`] if no node tells the time of the key's shard.
    pub async fn new_request_id(&self, key: &Key) -> Result<RequestId, Error> {
        let deadline = self.caller.deadline();
        let drawn = async {
            let shard = self.caller.shard_of(key.as_ref(), deadline).await?;
            self.caller.timed_id(shard, deadline).await
        };
        Ok(RequestId::Timed(drawn.await.map_err(Error::of_read)?))
    }

    /// A session, how far it is on each shard, and the meta group's time.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn session(&self, session: SessionId) -> Result<v1::GetSessionReply, Error> {
        outcome::session_of(&self.caller, session, self.caller.deadline()).await.map_err(Error::of_read)
    }

    /// A page of the sessions after one, or from the first.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn sessions(&self, after: Option<SessionId>) -> Result<v1::ListSessionsReply, Error> {
        admin::sessions(&self.caller, after).await
    }

    /// What transactions have left in every shard: parts that wait for a decision, or for the news of it, and the records of
    /// committed ones that a participant has not ended yet. The shards are asked at the same time, but not at one instant.
    ///
    /// # Errors
    /// [`Error`] if there is no map; of a shard that does not answer, beside what the others say.
    pub async fn list_txns(&self) -> Result<Vec<ShardTxns>, Error> {
        left::list(&self.caller).await
    }

    /// Has the part that a transaction has prepared in the shard of `place` ended, however young it is: the anchor's shard is
    /// asked what the transaction came to, and decides now if it has not yet. What it decides cannot be chosen. A part that is
    /// gone is no error, so the same may be asked again.
    ///
    /// # Errors
    /// [`Error`]; its outcome says whether the part may have been ended.
    /// [`ApiError::Locked`](crate::ApiError::Locked) if a manager was at work on the transaction all the time.
    pub async fn end_txn(
        &self,
        place: impl Into<bytes::Bytes>,
        txn: v1::TxnName,
    ) -> Result<v1::EndTxnReply, Error> {
        left::end(&self.caller, place.into(), txn).await
    }

    /// Ends the sessions of this client and its clones; a later write opens others. Without it they end by themselves, when
    /// their time to live is over.
    ///
    /// # Errors
    /// [`Error`] if the meta group could not be told.
    pub async fn close(&self) -> Result<(), Error> {
        self.caller.sessions.close(&self.caller).await.map_err(Error::of_read)
    }

    /// The largest Lamport counter this client has seen.
    pub fn lamport(&self) -> u64 {
        self.caller.token.counter()
    }

    /// Merges what a reply says into the token.
    fn seen(&self, header: Header) -> Header {
        self.caller.token.seen(&header);
        header
    }
}
