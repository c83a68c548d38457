//! What a replica is started with.

use std::time::Duration;

use kv_types::limits::{
    APPEND_BYTES_MAX, APPEND_ENTRIES_MAX, ELECTION_TIMEOUT_MIN_DEFAULT, HEARTBEAT_DEFAULT,
    IN_FLIGHT_APPENDS_MAX, IN_FLIGHT_BYTES_MAX, PROMISE_MAX, UNCOMMITTED_BYTES_MAX,
};
use kv_types::{HardState, LogId, LogIndex, Membership, MembershipError, NodeId, SnapshotMeta, Term};

use crate::LeaseConfig;

/// Settings of one replica; its peers may have others.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node this replica lives on.
    pub id: NodeId,
    /// Shortest election timeout, *E* in what follows. Each timeout is drawn uniformly from this up to twice this; a vote
    /// is withheld for this long after a sign of life of the leader, or as long as the leader asks if that is longer; a
    /// leader that has not heard from a quorum for this long stops leading, and so does one whose disk has not answered
    /// for this long. A leader that wants a lease asks for a promise of this length, in whole milliseconds.
    pub election_timeout_min: Duration,
    /// Interval of a leader's heartbeats.
    pub heartbeat: Duration,
    /// Appends in flight to one follower.
    pub in_flight_appends_max: usize,
    /// Payload bytes in flight to one follower, exceeded by at most one append.
    pub in_flight_bytes_max: u64,
    /// Payload bytes in one append, unless a single entry is larger.
    pub append_bytes_max: u64,
    /// Entries in one append.
    pub append_entries_max: usize,
    /// Bytes of entries proposed and not committed, each counted as its payload and 64 B; a batch is always taken when
    /// there are none.
    pub uncommitted_bytes_max: u64,
    /// Drawn anew at each start: tells the rounds of two lives apart.
    pub incarnation: u64,
    /// Seed of the election timeouts. The node's id is mixed in, so replicas may share it.
    pub seed: u64,
    /// Whether this replica, when it leads, serves reads by a lease; if not, each read waits for a round.
    pub lease: Option<LeaseConfig>,
    /// A bug to run with.
    #[cfg(feature = "planted")]
    pub planted: Option<crate::Planted>,
}

/// An entry without its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryShape {
    /// Its name.
    pub id: LogId,
    /// Its payload bytes.
    pub bytes: u64,
}

/// What a replica finds on its disk.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// The hard state. Its term may be behind that of `base`, which counts as seen.
    pub hard: HardState,
    /// Where the state machine's base stands: committed and applied at least this far.
    pub base: SnapshotMeta,
    /// The entry before the first one held; not after `base.last`.
    pub log_start: LogId,
    /// The entries held; they reach `base.last` at least.
    pub entries: Vec<EntryShape>,
    /// The config entries among them, ascending. Those that `base` covers are ignored.
    pub configs: Vec<(LogIndex, Membership)>,
    /// The commit index, as far as it is known.
    pub commit: LogIndex,
    /// The applied index.
    pub applied: LogIndex,
}

/// Why a replica cannot be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    /// A setting is out of its range.
    #[error("setting {0} is out of range")]
    Setting(&'static str),
    /// The log and the state machine's base leave a gap, or contradict each other.
    #[error("the log ({log_start}, {log_last}] does not join the base at {base}")]
    Base {
        /// The entry before the first one held.
        log_start: LogId,
        /// The last one held.
        log_last: LogId,
        /// The end of the base.
        base: LogId,
    },
    /// An entry does not follow the one before it.
    #[error("{entry} does not follow {before}")]
    Order {
        /// The entry.
        entry: LogId,
        /// The one before it.
        before: LogId,
    },
    /// An entry is newer than the hard state, which is written first.
    #[error("the log ends in {last}, the hard state is at {term}")]
    Term {
        /// The last entry.
        last: LogId,
        /// The newest term seen.
        term: Term,
    },
    /// The state machine is ahead of the log.
    #[error("applied up to {applied}, the log ends at {last}")]
    Applied {
        /// The applied index.
        applied: LogIndex,
        /// The end of the log.
        last: LogIndex,
    },
    /// A config entry is not in the log, or out of order.
    #[error("there is no config entry at {0}")]
    ConfigIndex(LogIndex),
    /// A membership cannot stand.
    #[error("the membership of {index} cannot stand")]
    Membership {
        /// The config entry.
        index: LogIndex,
        /// Why.
        source: MembershipError,
    },
}

impl Config {
    /// The default limits and times, and no lease.
    pub fn new(id: NodeId, incarnation: u64, seed: u64) -> Self {
        Self {
            id,
            election_timeout_min: ELECTION_TIMEOUT_MIN_DEFAULT,
            heartbeat: HEARTBEAT_DEFAULT,
            in_flight_appends_max: IN_FLIGHT_APPENDS_MAX,
            in_flight_bytes_max: IN_FLIGHT_BYTES_MAX,
            append_bytes_max: APPEND_BYTES_MAX,
            append_entries_max: APPEND_ENTRIES_MAX,
            uncommitted_bytes_max: UNCOMMITTED_BYTES_MAX,
            incarnation,
            seed,
            lease: None,
            #[cfg(feature = "planted")]
            planted: None,
        }
    }

    /// The promise this replica asks for when it leads, in milliseconds; 0 if it wants no lease.
    pub(crate) fn promise_ms(&self) -> u32 {
        match self.lease {
            Some(_) => u32::try_from(self.election_timeout_min.as_millis()).unwrap_or(u32::MAX),
            None => 0,
        }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Corrupt::Setting`] names the first setting out of range.
    pub(crate) fn check(&self) -> Result<(), Corrupt> {
        let checks = [
            ("id", self.id != NodeId::ZERO),
            ("heartbeat", !self.heartbeat.is_zero()),
            (
                "election_timeout_min",
                self.election_timeout_min > self.heartbeat && self.election_timeout_min <= PROMISE_MAX,
            ),
            ("lease", self.lease.is_none_or(|lease| lease.is_sound())),
            ("in_flight_appends_max", self.in_flight_appends_max > 0),
            ("append_entries_max", self.append_entries_max > 0),
        ];
        match checks.into_iter().find(|(_, holds)| !holds) {
            Some((name, _)) => Err(Corrupt::Setting(name)),
            None => Ok(()),
        }
    }
}
