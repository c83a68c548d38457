//! Sessions as the meta group has them: who may use request ids of a session, and until when.
//!
//! # Terms
//!
//! A *session* is opened by a client and belongs to it. Its *lease* ends at a cluster time of the meta group,
//! `lease_until`, which a *renewal* moves on. A session is *dead* when no lease of it that was ever issued still runs.
//! A *nonce* is a number that the client draws, so that an opening sent twice opens one session.
//!
//! # How it works
//!
//! The id of a session is the revision of the entry that opened it. Its row holds the largest `lease_until` ever issued
//! for it, because a renewal never moves it back. [`SessionCommand::Renew`] renews many sessions in one entry, each with
//! its own time to live. Nothing ends by itself: [`SessionCommand::Expire`] names sessions whose time seems to be over,
//! and each is ended only if it is so at apply, by the entry's own cluster time. A renewal earlier in the log wins.
//!
//! [`SessionCommand::Close`] ends a session early, and nobody renews it any more. But requests with its lease may be
//! under way as long as the lease runs, so its row stays, closed, until then; `Expire` removes it. Hence one rule tells
//! whether a session is dead: *it has no row* ([`dead`]). It needs no memory of sessions that were, and the time that
//! goes with the answer, the meta group's own, is at or after every lease of the sessions it names. On that
//! [`crate::gate`] relies when it forgets them.
//!
//! # Cost
//!
//! A session takes two rows, together about 200 bytes stored and 400 in memory: 10,000 are 4 MB. A renewal reads and
//! writes one of them; an opening writes both, and the row that counts the sessions. No command looks at sessions that it
//! does not name.
//!
//! # Caller's duties
//!
//! 1. Put these commands in [`Envelope::timed`](crate::Envelope::timed), and stamp them.
//! 2. Ask [`dead`] of a linearisable view, and take sessions and time from one answer.
//! 3. A meta group that is restored from a backup starts its log above every revision that the lost one can have
//!    reached, and its cluster time above every lease that the lost one can have issued, or ids and times are issued twice.
//!
//! # What it does not do
//!
//! It knows no client and no connection, and tells no shard anything: shards ask. It does not decide when to expire.

mod batch;
mod codec;
mod look;
mod step;

use std::time::Duration;

use kv_types::{ClusterTime, SessionId};

pub use batch::{SessionBatch, TooManySessions};
pub use look::{Dead, count, dead, list, session};

/// A session that lives, or is closed and has a lease running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// What its client drew when it opened the session.
    pub nonce: u128,
    /// How long it lives without a renewal.
    pub ttl: Duration,
    /// When it was opened.
    pub opened: ClusterTime,
    /// The end of the longest lease that was ever issued for it.
    pub lease_until: ClusterTime,
    /// Whether its client has closed it: it is not renewed any more.
    pub closed: bool,
}

impl Session {
    /// Whether all its leases have ended.
    pub fn is_over(&self, now: ClusterTime) -> bool {
        self.lease_until <= now
    }
}

/// A change of the sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionCommand {
    /// Opens a session; with a nonce that has one, renews that instead.
    Open {
        /// A number that no other client draws, the same in every attempt.
        nonce: u128,
        /// How long the session shall live without a renewal.
        ttl: Duration,
    },
    /// Moves the leases of sessions on, each by its own time to live from now.
    Renew {
        /// The sessions.
        sessions: SessionBatch,
    },
    /// Ends a session; its rows stay until its lease does.
    Close {
        /// The session.
        session: SessionId,
    },
    /// Removes those of the sessions whose lease has ended.
    Expire {
        /// The sessions.
        sessions: SessionBatch,
    },
}

/// What a change of the sessions answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionAnswer {
    /// The session is open.
    Opened {
        /// The session.
        session: SessionId,
        /// The end of its lease.
        lease_until: ClusterTime,
    },
    /// Of each session named: the end of its lease, or `None` if it is closed or gone.
    Renewed(Vec<(SessionId, Option<ClusterTime>)>),
    /// The session is closed, or was gone already.
    Closed,
    /// The sessions that were removed.
    Expired(Vec<SessionId>),
}

/// Why the sessions were not changed. The same on every replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionRefusal {
    /// The nonce has a session, which was closed.
    #[error("{0} is closed")]
    Closed(SessionId),
    /// There are too many.
    #[error("there are {} sessions already", kv_types::limits::SESSIONS_MAX)]
    TooMany,
    /// The time to live is outside its limits.
    #[error(
        "a session lives from {} to {} seconds without a renewal",
        kv_types::limits::SESSION_TTL_MIN.as_secs(),
        kv_types::limits::SESSION_TTL_MAX.as_secs()
    )]
    TtlOutOfRange,
}
