//! Transactions over the keys of several shards: what each of them does at apply.
//!
//! # Terms
//!
//! A transaction is named by the request of a session that commits it ([`TxnId`]); its *content* is fixed from then on:
//! the keys it has read, each with the revision it saw, and the writes it wants. It is *valid* as long as every key it has
//! read still is as it was. One of its keys is the *anchor*; the shard of that key is the anchor's, all others that
//! own a key of it are *participants*. What a shard owns of it is that shard's [`Part`]. Whoever drives it, the leader of
//! the anchor's shard or one that took over, is the *manager*.
//!
//! # How it works
//!
//! 1. [`TxnCommand::Prepare`] at every participant: if its part is valid and no lock is in the way, locks are set, and the
//!    writes are kept beside them. This is the participant's *yes*.
//! 2. When all have said yes, [`TxnCommand::Commit`] at the anchor: one entry that validates the anchor's own part, applies
//!    it, and writes the record *committed*; or the record *aborted*, if a key was changed. **This entry is the
//!    decision.** A transaction without other participants is this entry alone.
//! 3. [`TxnCommand::Resolve`] at every participant: the writes that are kept take effect, or do not, and the locks go.
//! 4. [`TxnCommand::Forget`] at the anchor, when all have acknowledged that.
//!
//! Nothing waits in the log. A manager that gives up proposes [`TxnCommand::Abort`] at the anchor. Whoever meets a lock for
//! too long proposes [`TxnCommand::Fence`] there: if the transaction is undecided it can never be committed afterwards, and
//! the lock may go. So no party can block the others as long as each shard has a quorum.
//!
//! **What an answer means.** *Committed* and *aborted* are told from a record. [`TxnAnswer::Absent`], the answer to a
//! fence that finds no record, means exactly: *if the lock of this transaction is still there, it is aborted*; for it may as
//! well have been committed, acknowledged by all and forgotten. Nobody is told *aborted* because of it. A
//! [`Refusal`](crate::gate::Refusal) and a [`TxnAnswer::Conflict`] of a prepare are not recorded: the same may be sent again.
//!
//! **Locks bind every writer.** Whatever would change a key that another transaction has locked is refused
//! ([`Refusal::Locked`](crate::gate::Refusal::Locked)). A key that is only read has a lock that other readers share. Locks
//! are on keys that exist and on keys that do not. Readers look at the lock first, then at the value ([`lock_of`]).
//!
//! **Rows.** Locks, prepared parts and unfinished records are rows of the system; in snapshots and in the state hash like
//! any other. No session's floor or end removes them. What a transaction came to is beside that a record of the gate, at the
//! place of its number ([`crate::gate`]): at the anchor for whoever asks again, at a participant so that a prepare that
//! comes late is not taken for new, and for a fence. These go as all records of a session do.
//!
//! Why this is strictly serialisable, and what breaks without each of the rules, is told in `docs/transactions.md`.
//!
//! # Caller's duties
//!
//! 1. Commit is proposed only after every participant has said yes to the same content.
//! 2. Resolve says *committed* only after a record that does, and *aborted* only after a record that does or after *absent*.
//! 3. Forget is proposed only when every participant has acknowledged the resolve.
//! 4. The parts that one Resolve ends are one, or have together no more keys and bytes than a transaction may have.
//! 5. A part holds all keys and ranges of the content that its shard owns, and no other; no range of it reaches beyond the
//!    shard, and all together have at most [`TXN_SCANNED_KEYS_MAX`](kv_types::limits::TXN_SCANNED_KEYS_MAX) keys.
//!
//! # What it does not do
//!
//! It sends nothing and retries nothing.

mod codec;
mod content;
mod held;
mod locks;
mod look;
mod step;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kv_types::{Fingerprint, Key, Revision, TxnId};

pub use content::{ContentError, Part, Read, Scan, Transaction, Write};
pub(crate) use held::Held;
pub use look::{
    Known, LockedBy, Prepared, Record, known, lock_of, prepared, prepared_txns, records, writers_in,
};

/// What an entry asks a shard to do for a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnCommand {
    /// Validates, locks and keeps a participant's part. Carries the request of the transaction.
    Prepare {
        /// Of the whole content.
        fingerprint: Fingerprint,
        /// Where the decision is made.
        anchor: Key,
        /// What this shard owns of it.
        part: Part,
    },
    /// Decides the transaction, at its anchor. Carries the request of the transaction.
    Commit {
        /// Of the whole content.
        fingerprint: Fingerprint,
        /// What this shard owns of it.
        part: Part,
        /// A key of each other participant, or where a range begins: its owner has a part.
        participants: Vec<Bytes>,
    },
    /// Decides that it is aborted, unless it is decided already. Carries the request of the transaction.
    Abort {
        /// Of the whole content.
        fingerprint: Fingerprint,
    },
    /// Asks the anchor's shard what it came to; if it is undecided, it never will be committed.
    Fence {
        /// The transaction.
        txn: TxnId,
        /// Of its content: an id whose client has used it twice is two transactions here, of which one at most is committed.
        fingerprint: Fingerprint,
        /// What its client has waited for no more when it was prepared.
        first_incomplete: u64,
    },
    /// Ends parts of a participant.
    Resolve {
        /// How each transaction has ended: where nobody waits for it, many can share an entry.
        endings: BTreeMap<TxnId, Ending>,
    },
    /// Removes records that every participant has acknowledged.
    Forget {
        /// The transactions: nobody waits for it, so that many can share an entry.
        txns: BTreeSet<TxnId>,
    },
}

/// How a transaction has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Of its content: a part of another content stays.
    pub fingerprint: Fingerprint,
    /// Whether it is committed.
    pub committed: bool,
}

impl TxnCommand {
    /// Ends the part of one transaction.
    pub fn resolve(txn: TxnId, fingerprint: Fingerprint, committed: bool) -> Self {
        Self::Resolve { endings: BTreeMap::from([(txn, Ending { fingerprint, committed })]) }
    }

    /// Whether it is a part of the client's request, which passes the gate.
    pub(crate) fn is_of_client(&self) -> bool {
        matches!(self, Self::Prepare { .. } | Self::Commit { .. } | Self::Abort { .. })
    }

    /// The content it is about, if it passes the gate.
    pub(crate) fn fingerprint(&self) -> Option<Fingerprint> {
        match self {
            Self::Prepare { fingerprint, .. }
            | Self::Commit { fingerprint, .. }
            | Self::Abort { fingerprint } => Some(*fingerprint),
            Self::Fence { .. } | Self::Resolve { .. } | Self::Forget { .. } => None,
        }
    }
}

/// What a shard answers. What was known before is answered by [`Answer::Replayed`](crate::Answer::Replayed).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnAnswer {
    /// The participant says yes: locks are set and the writes kept.
    Prepared,
    /// A key is not as it was read; nothing was done. Not recorded.
    Conflict {
        /// The key, or where the range begins that is not as it was scanned.
        key: Bytes,
        /// The key's revision now; `None` if it is absent, and of a range.
        found: Option<Revision>,
    },
    /// It is committed, by this entry.
    Committed,
    /// It is aborted, by this entry.
    Aborted {
        /// The key that was not as it was read, if that is why.
        conflict: Option<Bytes>,
    },
    /// There is no record: if a lock of it is still there, it is aborted, and never will be committed.
    Absent,
    /// It has a record.
    Decided {
        /// Whether it is committed.
        committed: bool,
    },
    /// There is nothing of it here any more.
    Resolved,
    /// The records are removed, or there were none.
    Forgotten,
}
