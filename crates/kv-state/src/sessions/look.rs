//! Looks at the sessions, which change nothing.

use kv_types::{ClusterTime, LogIndex, SessionId, Space};

use super::codec::decode_number;
use super::{Session, SessionBatch};
use crate::apply::Rows;
use crate::gate;
use crate::read::{ReadError, look};
use crate::system_key;

/// Sessions that no request can come of any more, once a shard's horizon is at `until`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dead {
    /// The sessions.
    pub sessions: SessionBatch,
    /// At or after the end of every lease that was ever issued for them.
    pub until: ClusterTime,
}

/// A session, if it lives or has a lease running.
///
/// # Errors
/// [`ReadError`]
pub fn session<R: Rows>(rows: &R, session: SessionId) -> Result<Option<Session>, ReadError<R::Error>> {
    look(rows, system_key::meta_session(session), |row| Session::decode(&row.value))
}

/// The sessions after one, or from the first, at most `limit`.
///
/// # Errors
/// [`ReadError`]
pub fn list<R: Rows>(
    rows: &R,
    after: Option<SessionId>,
    limit: usize,
) -> Result<Vec<(SessionId, Session)>, ReadError<R::Error>> {
    let Some(rest) = system_key::meta_sessions_after(after) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for (key, _) in rows.heads_in(Space::System, &rest, limit).map_err(ReadError::Rows)? {
        let Some(id) = system_key::session_of(&key) else { continue };
        if let Some(session) = session(rows, id)? {
            found.push((id, session));
        }
    }
    Ok(found)
}

/// How many sessions there are.
///
/// # Errors
/// [`ReadError`]
pub fn count<R: Rows>(rows: &R) -> Result<u64, ReadError<R::Error>> {
    Ok(look(rows, system_key::session_count(), |row| decode_number(&row.value))?.unwrap_or(0))
}

/// Which of the sessions are dead, by a linearisable view of the meta group's rows whose last entry is `applied`. A
/// session that the view cannot know yet is not named.
///
/// # Errors
/// [`ReadError`]
pub fn dead<R: Rows>(
    rows: &R,
    applied: LogIndex,
    sessions: &SessionBatch,
) -> Result<Dead, ReadError<R::Error>> {
    let mut gone = Vec::new();
    for id in sessions.iter() {
        if id <= applied.revision().session() && session(rows, id)?.is_none() {
            gone.push(id);
        }
    }
    let sessions = SessionBatch::new(gone).expect("a part of a batch is no larger");
    // After the sessions, for whoever reads each row as it is now: the time may be later than it need be, never earlier.
    Ok(Dead { sessions, until: gate::cluster_time(rows)? })
}
