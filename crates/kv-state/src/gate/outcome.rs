//! What is known of a request, and of sessions: looks at rows, which change nothing.
//!
//! All of these want rows of *one* view, and promise no more than that view does: only the answer of a linearisable one
//! speaks of now.

use kv_types::limits::SESSION_WINDOW;
use kv_types::{ClusterTime, Fingerprint, Request, SessionId, Space, TxnId};

use super::GateState;
use super::admit::{decode_floor, seq_of};
use super::collect::{first_kept, is_too_old};
use super::record::{Record, Recorded, RecordedResult};
use crate::apply::Rows;
use crate::read::{Looked, ReadError, look};
use crate::system_key;

/// What a shard knows of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It was decided: applied, or it failed for good.
    Decided(Recorded),
    /// It was settled: it was not applied and never will be.
    Settled,
    /// It has not been applied so far. It may still be under way: only a settling rules that out.
    NotSeen,
    /// Whatever it came to, its record may be gone.
    NoLongerKnown,
}

/// How far a session is on this shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionProgress {
    /// The number below which its client waits for nothing.
    pub floor: u64,
    /// Records kept of it, counted up to the limit asked for.
    pub records: usize,
}

/// What is known of a request; of a session's, with a lease that the meta group has issued for it. A lease of zero is
/// none, and leaves only what a record says.
///
/// # Errors
/// [`ReadError`]
pub fn outcome<R: Rows>(rows: &R, request: &Request) -> Result<Found, ReadError<R::Error>> {
    let record = look(rows, system_key::record(request.id()), |row| {
        Ok(match Record::decode(&row.value)? {
            // Its place has been given to another.
            (seq, _) if seq != seq_of(request) => None,
            (_, Record::Settled) => Some(Found::Settled),
            // Whoever fenced it was told no outcome, and neither is its client.
            (_, Record::Fenced) => None,
            (_, Record::Decided { result, .. }) => Some(Found::Decided(Record::recorded(row, result))),
        })
    })?;
    if let Some(found) = record.flatten() {
        return Ok(found);
    }
    let gate = gate(rows)?;
    let forgotten = match request {
        Request::Session(request) => {
            request.lease_until <= gate.horizon || request.seq < floor(rows, request.session)?
        }
        Request::Timed(id) => is_too_old(*id, gate.time),
    };
    Ok(if forgotten { Found::NoLongerKnown } else { Found::NotSeen })
}

/// Whether the gate's record says that a transaction is committed; `None` without a record. One that was settled, or whose
/// id was used for something else, never will be.
pub(crate) fn is_committed<R: Rows>(rows: &R, txn: TxnId, content: Fingerprint) -> Looked<Option<bool>, R> {
    let decided = look(rows, system_key::record(txn.request()), |row| {
        Ok(match Record::decode(&row.value)? {
            (of, _) if of != txn.seq => None,
            (_, Record::Decided { result, fingerprint }) => {
                Some(fingerprint == content && result == RecordedResult::TxnCommitted)
            }
            (_, Record::Settled) => Some(false),
            (_, Record::Fenced) => None,
        })
    })?;
    Ok(decided.flatten())
}

/// The shard's cluster time: what a new leader's stamps begin at, and what replies tell clients.
///
/// # Errors
/// [`ReadError`]
pub fn cluster_time<R: Rows>(rows: &R) -> Result<ClusterTime, ReadError<R::Error>> {
    Ok(gate(rows)?.time)
}

/// Whether records without a session are due: a [`Command::Tick`](crate::Command::Tick) removes some.
///
/// # Errors
/// [`ReadError`]
pub fn timed_are_due<R: Rows>(rows: &R) -> Result<bool, ReadError<R::Error>> {
    let gate = gate(rows)?;
    let (from, to) = (gate.collected, first_kept(gate.time));
    let due = |range| rows.heads_in(Space::System, &range, 1).map_err(ReadError::Rows);
    Ok(from < to && !due(system_key::timed_records(from, to))?.is_empty())
}

/// The sessions this shard has rows of after one, or from the first, at most `limit`: whom to ask the meta group about.
///
/// # Errors
/// [`ReadError`]
pub fn sessions_seen<R: Rows>(
    rows: &R,
    after: Option<SessionId>,
    limit: usize,
) -> Result<Vec<SessionId>, ReadError<R::Error>> {
    Ok(session_rows(rows, after, limit)?.into_iter().map(|(session, _)| session).collect())
}

/// The same, and how many rows of each there are, counted up to [`SESSION_WINDOW`]: rows of one session lie together, so
/// few looks find many small sessions.
///
/// # Errors
/// [`ReadError`]
pub fn session_rows<R: Rows>(
    rows: &R,
    after: Option<SessionId>,
    limit: usize,
) -> Result<Vec<(SessionId, usize)>, ReadError<R::Error>> {
    let window = usize::try_from(SESSION_WINDOW).expect("a window is small");
    let mut seen: Vec<(SessionId, usize)> = Vec::new();
    let mut last = after;
    while seen.len() < limit
        && let Some(rest) = system_key::of_sessions_after(last)
    {
        let found = rows.heads_in(Space::System, &rest, window).map_err(ReadError::Rows)?;
        let is_end = found.len() < window;
        let first = seen.len();
        for session in found.iter().filter_map(|(key, _)| system_key::session_of(key)) {
            match seen.last_mut().filter(|(of, _)| *of == session) {
                Some((_, count)) => *count += 1,
                None => seen.push((session, 1)),
            }
        }
        if is_end {
            break;
        }
        // The last one may have more rows than were looked at: it is counted anew, unless it is the only one.
        if seen.len() > first + 1 {
            seen.pop();
        }
        last = seen.last().map(|(session, _)| *session);
    }
    seen.truncate(limit);
    Ok(seen)
}

/// How far a session is on this shard; at most `limit` records are counted.
///
/// # Errors
/// [`ReadError`]
pub fn session_progress<R: Rows>(
    rows: &R,
    session: SessionId,
    limit: usize,
) -> Result<SessionProgress, ReadError<R::Error>> {
    let all = system_key::of_one_session(session);
    let found = rows.heads_in(Space::System, &all, limit.saturating_add(1)).map_err(ReadError::Rows)?;
    let floor_key = system_key::floor(session);
    let records = found.iter().filter(|(key, _)| *key != floor_key).count().min(limit);
    Ok(SessionProgress { floor: floor(rows, session)?, records })
}

pub(crate) fn gate<R: Rows>(rows: &R) -> Looked<GateState, R> {
    Ok(look(rows, system_key::gate(), |row| GateState::decode(&row.value))?.unwrap_or_default())
}

fn floor<R: Rows>(rows: &R, session: SessionId) -> Looked<u64, R> {
    Ok(look(rows, system_key::floor(session), |row| decode_floor(&row.value))?.unwrap_or(0))
}
