//! Exactly once: the gate that a request passes at apply, and the memory behind it.
//!
//! # Terms
//!
//! A *request* is one call of a client, however often it is attempted; its *id* is the same in every attempt: a
//! [session](kv_types::SessionRequest) and a number in it (*seq*), or, without a session, a
//! [timed id](kv_types::TimedId). Its *record* holds what it came to, once it has been decided. The *floor* of a session
//! is the number below which its client waits for no answer any more. The *horizon* of a shard is a time of the meta
//! group: requests whose lease ends at or before it are refused. *Cluster time* is the shard's own clock, moved by the
//! stamps of entries. A *replay* is the answer from a record. A *refusal* means that this attempt did nothing.
//!
//! # How it works
//!
//! [`Envelope::once`](crate::Envelope::once) puts a request around a command. All rules are applied at apply, so that
//! they are the same on every replica and after every change of the leader, in this order:
//!
//! 1. *Known truth first.* If there is a record, it is the answer ([`Recorded`]), whatever else holds; with other content
//!    under the same id, [`Refusal::Mismatch`]. Failures of a comparison or of an increment are recorded, too: final.
//! 2. Of a session: `lease_until <= horizon` is [`Refusal::SessionExpired`]; the floor rises to `first_incomplete`; `seq`
//!    below the floor is [`Refusal::Stale`], 256 or more above it [`Refusal::WindowOverflow`]. Without a session: an id older than the retention is [`Refusal::TooOld`], one too far
//!    ahead of the cluster time [`Refusal::TooEarly`].
//! 3. The effect, and the record of it, in the same step.
//!
//! A refusal leaves no trace but the cluster time: time counts for every entry that carries it, or an id refused as too
//! old could be young again under the next leader. The floor does not rise by an attempt that the gate refuses; one that has
//! passed it and meets another transaction's lock has told how far its session is.
//!
//! [`Command::Settle`](crate::Command::Settle) passes the same rules with the id that it settles. If that has a record,
//! the record is the answer; if not, it gets one that says *never*: a later attempt meets [`Refusal::Settled`]. Whoever
//! settles a request that he did not send need not know how far its session is: he claims `first_incomplete` 0.
//!
//! **Places.** A session has 256 places on a shard, and the record of a request is at the place of its number modulo 256.
//! A request that is carried out is less than 256 above the floor, so whoever had its place before is below the floor,
//! and would be refused as stale: his record may go. So a session costs a bounded number of rows that are written again
//! and again in place, and nothing has to be removed on the way.
//!
//! **Forgetting.** A record below the floor is kept until its place is taken, or the session is trimmed
//! ([`TrimSessions`](crate::Command::TrimSessions), for sessions that rest); whoever asks for it meanwhile is told what he
//! was told before. All records of a session go when it is dead
//! ([`GcSessions`](crate::Command::GcSessions), decided by [`crate::sessions::dead`]): its `until` is no earlier than any
//! lease ever issued for the sessions it names, and the horizon rises to it in the same step. So an attempt that comes
//! after its record is gone is `Stale` or `SessionExpired`, never new. A session that lives may be refused by a horizon
//! that other sessions raised: its client renews and sends the same id again. Records without a session go when they
//! are as old as an id that is refused; whatever is below the cursor `collected` is gone already.
//!
//! # Cost
//!
//! A command without an envelope reads and writes nothing of this. A request of a session writes its record; the gate's row
//! when the time has moved on, which a leader lets it do in steps of 10 ms; the floor when `first_incomplete` has moved. A
//! client may claim less than is true: `first_incomplete` rounded down to a multiple of 16 moves the floor once in 16
//! requests. It looks up neither gate nor floor nor whose place it takes, if an entry before it has: what was found is
//! [carried](crate::Carried) from entry to entry, for the last sessions seen. A request without a session reads and writes
//! gate and record; it looks for old records when a second has passed or more are due, and removes at most 64.
//!
//! A record is 26 to 35 bytes, a floor 9; with key and head that is about 110 bytes stored and 250 in memory. A session
//! that rests costs a shard its floor and the records at or above it, once it is trimmed: 10,000 sessions with one record
//! each take 5 MB of memory, and no entry's work grows with their number. A busy one has at most 257 rows.
//!
//! # Caller's duties
//!
//! 1. The leader stamps what it proposes ([`stamp`](crate::stamp)), with `max(last, base + its own clock since base)`,
//!    `base` being the cluster time when the first entry of its own term was applied.
//! 2. `lease_until` and the `until` of a collection are times of the meta group, never of this shard.
//! 3. A refusal is never told to a client as a failure of the *call*: an earlier attempt may have been applied.
//!
//! # What it does not do
//!
//! Transactions pass it and have rows of their own beside ([`crate::txn`]). No waiting, no retries. Request ids of two shards know
//! nothing of each other: a retry goes to the shard that owns the key.

mod admit;
mod collect;
mod note;
mod outcome;
mod recall;
mod record;

use bytes::{BufMut, Bytes};
use kv_types::{ClusterTime, TimedId, TxnId};

use crate::codec::{DecodeError, end, take_time, take_u8, take_u128};

pub(crate) use outcome::is_committed;
pub use outcome::{
    Found, SessionProgress, cluster_time, outcome, session_progress, session_rows, sessions_seen,
    timed_are_due,
};
pub(crate) use recall::{Known, Recall};
pub use record::{Recorded, RecordedResult};

const ROW_VERSION: u8 = 1;

/// Why a request was refused. The same on every replica; nothing was done by this attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The id stands for another command already.
    #[error("the request id was used with other content")]
    Mismatch,
    /// The session may be dead. If it is not, its client renews it and sends the same request again.
    #[error("the session's lease ends before the shard's horizon {horizon}")]
    SessionExpired {
        /// The horizon.
        horizon: ClusterTime,
    },
    /// The session's client has said that it needs no answer to this request any more. It may have been applied.
    #[error("the session is past this request: its floor is {floor}")]
    Stale {
        /// The floor.
        floor: u64,
    },
    /// Too many requests of the session are in flight.
    #[error("a session has at most {} requests in flight, from {floor} on", kv_types::limits::SESSION_WINDOW)]
    WindowOverflow {
        /// The floor.
        floor: u64,
    },
    /// The id is so old that its outcome may be forgotten.
    #[error("the request id is too old at {time}")]
    TooOld {
        /// The cluster time.
        time: ClusterTime,
    },
    /// The id is of a time that is far ahead.
    #[error("the request id is too far ahead of {time}")]
    TooEarly {
        /// The cluster time.
        time: ClusterTime,
    },
    /// Another transaction has locked a key, so nothing was done; not recorded: the same may be sent again. Of a
    /// transaction that is itself prepared here: its anchor decides.
    #[error("the transaction {owner} has locked the key")]
    Locked {
        /// Whom to ask.
        owner: TxnId,
    },
    /// The request was settled before it arrived: it was not applied and never will be.
    #[error("the request was settled as not applied")]
    Settled,
}

/// The gate's own row.
///
/// # Invariants
/// Neither `time` nor `horizon` nor `collected` ever goes back. Checked where an entry ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GateState {
    /// The cluster time.
    pub(crate) time: ClusterTime,
    /// Leases that end at or before it, in the meta group's time, are refused.
    pub(crate) horizon: ClusterTime,
    /// No record without a session is below it, and none will ever be.
    pub(crate) collected: TimedId,
}

impl GateState {
    /// Time never runs back, whatever a leader stamps.
    pub(crate) fn advance(&mut self, stamp: ClusterTime) {
        self.time = self.time.max(stamp);
    }

    pub(crate) fn encode(&self) -> [u8; 33] {
        let mut bytes = [0; 33];
        let mut out = &mut bytes[..];
        out.put_u8(ROW_VERSION);
        out.put_u64_le(self.time.ms());
        out.put_u64_le(self.horizon.ms());
        out.put_u128_le(self.collected.get());
        bytes
    }

    pub(crate) fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let input = &mut bytes.clone();
        match take_u8(input)? {
            ROW_VERSION => {}
            version => return Err(DecodeError::Version(version)),
        }
        let (time, horizon) = (take_time(input)?, take_time(input)?);
        let collected = TimedId::from_raw(take_u128(input)?);
        end(input)?;
        Ok(Self { time, horizon, collected })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_row_round_trips_and_every_truncation_is_refused(
            now in 0..=ClusterTime::MAX.ms(), horizon in 0..=ClusterTime::MAX.ms(), raw in any::<u128>()
        ) {
            let time = |ms| ClusterTime::from_ms(ms).unwrap();
            let (time, horizon) = (time(now), time(horizon));
            let state = GateState { time, horizon, collected: TimedId::from_raw(raw) };
            let bytes = Bytes::copy_from_slice(&state.encode());
            prop_assert_eq!(GateState::decode(&bytes), Ok(state));
            for len in 0..bytes.len() {
                prop_assert!(GateState::decode(&bytes.slice(..len)).is_err());
            }
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = GateState::decode(&Bytes::from(bytes));
        }
    }
}
