//! The sessions of the meta group once more, written plainly.

use std::collections::BTreeMap;
use std::time::Duration;

use kv_state::sessions::{SessionAnswer, SessionCommand, SessionRefusal};
use kv_types::limits::{SESSION_TTL_MAX, SESSION_TTL_MIN, SESSIONS_MAX};
use kv_types::{ClusterTime, LogIndex, SessionId};

#[derive(Clone, Copy, Debug)]
struct Session {
    nonce: u128,
    ttl: Duration,
    lease_until: ClusterTime,
    closed: bool,
}

/// All sessions that live or have a lease running.
#[derive(Debug, Default)]
pub(super) struct Sessions(BTreeMap<SessionId, Session>);

impl Sessions {
    pub(super) fn apply(
        &mut self,
        index: LogIndex,
        now: ClusterTime,
        command: &SessionCommand,
    ) -> Result<SessionAnswer, SessionRefusal> {
        match command {
            SessionCommand::Open { nonce, ttl } => self.open(index, now, *nonce, *ttl),
            SessionCommand::Renew { sessions } => {
                Ok(SessionAnswer::Renewed(sessions.iter().map(|id| (id, self.renew(now, id))).collect()))
            }
            SessionCommand::Close { session } => {
                if let Some(found) = self.0.get_mut(session) {
                    found.closed = true;
                }
                self.0.retain(|id, found| id != session || found.lease_until > now);
                Ok(SessionAnswer::Closed)
            }
            SessionCommand::Expire { sessions } => {
                let is_over = |id: &SessionId| self.0.get(id).is_some_and(|found| found.lease_until <= now);
                let over: Vec<SessionId> = sessions.iter().filter(is_over).collect();
                self.0.retain(|id, _| !over.contains(id));
                Ok(SessionAnswer::Expired(over))
            }
        }
    }

    fn open(
        &mut self,
        index: LogIndex,
        now: ClusterTime,
        nonce: u128,
        ttl: Duration,
    ) -> Result<SessionAnswer, SessionRefusal> {
        let known = self.0.iter().find(|(_, session)| session.nonce == nonce).map(|(id, _)| *id);
        if let Some(session) = known {
            let lease_until = self.renew(now, session).ok_or(SessionRefusal::Closed(session))?;
            return Ok(SessionAnswer::Opened { session, lease_until });
        }
        if !(SESSION_TTL_MIN..=SESSION_TTL_MAX).contains(&ttl) {
            return Err(SessionRefusal::TtlOutOfRange);
        }
        if self.0.len() as u64 >= SESSIONS_MAX {
            return Err(SessionRefusal::TooMany);
        }
        let (session, lease_until) = (index.revision().session(), now.after(ttl));
        self.0.insert(session, Session { nonce, ttl, lease_until, closed: false });
        Ok(SessionAnswer::Opened { session, lease_until })
    }

    fn renew(&mut self, now: ClusterTime, session: SessionId) -> Option<ClusterTime> {
        let found = self.0.get_mut(&session).filter(|found| !found.closed)?;
        found.lease_until = found.lease_until.max(now.after(found.ttl));
        Some(found.lease_until)
    }
}
