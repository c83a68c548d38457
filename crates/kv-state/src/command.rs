//! What a log entry can ask a shard to do.

use kv_types::{Key, KeyRange, Revision, Value};

use crate::cluster::ClusterCommand;

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
    /// Changes the cluster; only the meta group's log holds such entries.
    Cluster(ClusterCommand),
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
