//! The client library: finds the leader of a key's shard, batches, retries what is safe, and says honestly what it
//! does not know.
//!
//! # Terms
//!
//! The *map* says which shard owns a key and who may lead it. A *hint* is what a node that does not lead says about who
//! does. An *attempt* is one request sent to one node; a *call* is what the application asked for and may take several.
//! A *request id* names a write, the same in every attempt; it is a number of a *session*, or drawn at random
//! ([`RequestIds`]). The *outcome* of a failed write is `not applied` or `unknown` ([`kv_types::Outcome`]).
//!
//! # How it works
//!
//! [`Client::connect`] asks the endpoints for the map and keeps it. A call is routed by it; an error that says more (a
//! hint, a broken connection) changes it at once, and it is fetched anew, by one fetch for all callers, when nothing
//! better is known; from several nodes, if the first does not know all leaders. A node that failed, or owes answers and
//! says nothing, is left alone for a moment; while a shard has no leader that is known and awake, nobody is asked.
//!
//! The first write to a shard opens a session for it, which is renewed as long as the client lives. A write is sent until
//! it has a definite answer, or its time is over, always under the same id, so that the shard carries it out once; with
//! capped exponential backoff and full jitter, and within a budget: retries add no more than a tenth to the load. One
//! attempt that is in doubt makes the call `unknown`, until an answer of the shard settles it. Where no session can be
//! had, an id drawn at random does.
//!
//! A transaction ([`Client::begin`], [`Client::transact`], [`Client::compare`]) reads with the same calls, and remembers what
//! it saw and what it wants to write. Its commit is one call to the leader of the shard of one of its keys, the *anchor*,
//! retried like a write under a number of a session that only transactions have. *Aborted* is an answer, and final: it
//! may be tried anew. What is *unknown* is not.
//!
//! Each node has one `Pipeline` stream and one task. Callers put their request into the node's queue and wait; the
//! stream, polled by its connection whenever that can write, takes all that has gathered into one frame. So batches
//! grow with load, and a lone caller waits for nobody. Deadlines are looked after by the same task: a call costs no
//! task and no timer.
//!
//! When the stream breaks, requests that were put into a frame may have arrived. Requests still in the queue were never
//! sent: all of them may go elsewhere.
//!
//! # Caller's duties
//!
//! 1. Call within a tokio runtime with time and I/O enabled, and keep it alive while a call is under way.
//! 2. Treat [`kv_types::Outcome::Unknown`] as that: ask [`Client::outcome`], or read before you write again.
//!    Of a transaction, [`TxnError::Unknown`] names the key to ask with.
//! 3. Bound your own concurrency: beyond 4,096 requests that wait for one node, calls are refused in this client (and
//!    tried again until their deadline).
//! 4. [`Client::close`] what is no longer needed; otherwise its sessions end when their time to live is over.
//!
//! # What it does not do
//!
//! It does not cache values, and [`Client::multi_get`] and [`Client::delete_range`] are not atomic over shards or steps:
//! each step of a range deletion is a write of its own. A transaction locks nothing before its commit, and what it has read
//! need not be of one instant unless it is committed. A session does not outlive the process.

mod admin;
mod attempt;
mod budget;
mod call;
mod client;
mod config;
mod error;
mod join;
mod lane;
mod left;
mod map;
mod node;
mod outcome;
mod pipeline;
mod reply;
mod routes;
mod scan;
mod sessions;
mod token;
mod txn;

pub use admin::NodeAnswer;
pub use client::Client;
pub use config::{Backoff, Config, RequestIds, Tries};
pub use error::{Error, Failure, RangeError};
pub use kv_proto::request::{Delete, Expect, Put, Scan as ScanRequest};
pub use kv_proto::status::{ApiError, LeaderHint};
pub use kv_proto::v1;
pub use left::ShardTxns;
pub use outcome::{Known, RequestOutcome};
pub use reply::{Deleted, Got, Header, Incremented, MultiGot, Page, RangeDeleted, Row, Swapped, Written};
pub use scan::Scan;
pub use tonic::Code;
pub use txn::{
    AbortCause, Aborted, Committed, Compare, Compared, LimitExceeded, Txn, TxnError, TxnOp, TxnRow,
};
