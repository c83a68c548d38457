//! What a log entry can ask a shard to do.

use kv_types::{ClusterTime, Key, KeyRange, Revision, Value};

use crate::cluster::ClusterCommand;
use crate::sessions::{SessionBatch, SessionCommand};
use crate::txn::TxnCommand;

/// One command: the content of one log entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Writes a value, whatever was there.
    Put {
        /// The key.
        key: Key,
        /// Its new value.
        value: Value,
    },
    /// Removes a key; nothing happens if it is absent.
    Delete {
        /// The key.
        key: Key,
    },
    /// Removes the first keys of a range, at most [`DELETE_RANGE_KEYS_MAX`](kv_types::limits::DELETE_RANGE_KEYS_MAX);
    /// the answer says whether more are left.
    DeleteRange {
        /// The keys.
        range: KeyRange,
    },
    /// Writes a value if the key is as expected (compare-and-set).
    CompareAndSet {
        /// The key.
        key: Key,
        /// What must hold for the write to happen.
        expect: Expect,
        /// Its new value.
        value: Value,
    },
    /// Adds to a number. Its value is decimal ASCII, as `put` of a number writes it: an optional `-` and digits, no
    /// `+`, no space, no leading zero, within an `i64`. An absent key counts as 0.
    Increment {
        /// The key.
        key: Key,
        /// What is added; may be negative.
        delta: i64,
    },
    /// Closes the request id that it carries: if it has no outcome yet, it never will have.
    Settle,
    /// Changes the cluster; only the meta group's log holds such entries.
    Cluster(ClusterCommand),
    /// Opens, renews and ends sessions; only the meta group's log holds such entries.
    Session(SessionCommand),
    /// Forgets sessions that the meta group names dead; see [`crate::gate`].
    GcSessions {
        /// The sessions.
        sessions: SessionBatch,
        /// A time of the meta group that is not before any lease ever issued for them.
        until: ClusterTime,
    },
    /// Forgets of sessions what they need no more: outcomes below their floors.
    TrimSessions {
        /// The sessions.
        sessions: SessionBatch,
    },
    /// A step of a transaction.
    Txn(TxnCommand),
    /// Moves the cluster time on, and collects what is due by it.
    Tick,
}

impl Command {
    /// Whether a client asks for it by itself, so that it can carry a request id.
    pub fn is_of_client(&self) -> bool {
        match self {
            Self::Put { .. }
            | Self::Delete { .. }
            | Self::DeleteRange { .. }
            | Self::CompareAndSet { .. }
            | Self::Increment { .. }
            | Self::Settle => true,
            Self::Txn(command) => command.is_of_client(),
            Self::Cluster(_)
            | Self::Session(_)
            | Self::GcSessions { .. }
            | Self::TrimSessions { .. }
            | Self::Tick => false,
        }
    }
}

impl Command {
    /// Whether it makes no sense without a request id; of a transaction, without that of a session.
    pub(crate) fn needs_request(&self) -> bool {
        match self {
            Self::Settle => true,
            Self::Txn(command) => command.is_of_client(),
            _ => false,
        }
    }
}

/// What a compare-and-set expects of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// There is no such key.
    Absent,
    /// The key holds this value.
    Value(Value),
    /// The key was last written at this revision.
    Revision(Revision),
}
