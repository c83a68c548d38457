//! What a change does to the sessions.

use std::time::Duration;

use kv_types::limits::{SESSION_TTL_MAX, SESSION_TTL_MIN, SESSIONS_MAX};
use kv_types::{ClusterTime, RowHead, RowKey, SessionId};

use super::codec::{decode_number, encode_number};
use super::{Session, SessionAnswer, SessionBatch, SessionCommand, SessionRefusal};
use crate::apply::{Answer, Rows};
use crate::codec::DecodeError;
use crate::planted::Planted;
use crate::step::{Step, Stepped};
use crate::system_key;

impl<R: Rows> Step<'_, R> {
    pub(crate) fn session(&mut self, command: SessionCommand) -> Stepped<Answer, R> {
        let now = self.gate()?.time;
        let answer = match command {
            SessionCommand::Open { nonce, ttl } => self.open(now, nonce, ttl)?,
            SessionCommand::Renew { sessions } => Ok(SessionAnswer::Renewed(self.renew(now, &sessions)?)),
            SessionCommand::Close { session } => {
                self.close(now, session)?;
                Ok(SessionAnswer::Closed)
            }
            SessionCommand::Expire { sessions } => Ok(SessionAnswer::Expired(self.expire(now, &sessions)?)),
        };
        Ok(Answer::Session(answer))
    }

    fn open(
        &mut self,
        now: ClusterTime,
        nonce: u128,
        ttl: Duration,
    ) -> Stepped<Result<SessionAnswer, SessionRefusal>, R> {
        let opened = |session, lease_until| Ok(Ok(SessionAnswer::Opened { session, lease_until }));
        if let Some((raw, _)) = self.number(&system_key::nonce(nonce))? {
            let id = SessionId::new(raw);
            let renewed = self.renew_one(now, id)?;
            return renewed.map_or(Ok(Err(SessionRefusal::Closed(id))), |until| opened(id, until));
        }
        if !(SESSION_TTL_MIN..=SESSION_TTL_MAX).contains(&ttl) {
            return Ok(Err(SessionRefusal::TtlOutOfRange));
        }
        let count = self.number(&system_key::session_count())?;
        let (sessions, count_head) = count.map_or((0, None), |(count, head)| (count, Some(head)));
        if sessions >= SESSIONS_MAX {
            return Ok(Err(SessionRefusal::TooMany));
        }
        let id = self.index.revision().session();
        let lease_until = now.after(ttl);
        let session = Session { nonce, ttl, opened: now, lease_until, closed: false };
        self.write(system_key::meta_session(id), None, &session.encode());
        self.write(system_key::nonce(nonce), None, &encode_number(id.get()));
        self.write(system_key::session_count(), count_head, &encode_number(sessions + 1));
        opened(id, lease_until)
    }

    fn renew(
        &mut self,
        now: ClusterTime,
        sessions: &SessionBatch,
    ) -> Stepped<Vec<(SessionId, Option<ClusterTime>)>, R> {
        sessions.iter().map(|id| Ok((id, self.renew_one(now, id)?))).collect()
    }

    /// The end of a session's lease after its renewal; `None` if it is closed or gone.
    fn renew_one(&mut self, now: ClusterTime, id: SessionId) -> Stepped<Option<ClusterTime>, R> {
        let Some((mut session, head)) = self.meta_session(id)?.filter(|(session, _)| !session.closed) else {
            return Ok(None);
        };
        let lease_until = now.after(session.ttl);
        if session.lease_until < lease_until {
            session.lease_until = lease_until;
            self.write(system_key::meta_session(id), Some(head), &session.encode());
        }
        Ok(Some(session.lease_until))
    }

    fn close(&mut self, now: ClusterTime, id: SessionId) -> Stepped<(), R> {
        let Some((mut session, head)) = self.meta_session(id)? else { return Ok(()) };
        if session.is_over(now) || self.planted(Planted::ClosedAheadOfLease) {
            return self.forget_sessions(vec![(id, session, head)]);
        }
        if !session.closed {
            session.closed = true;
            self.write(system_key::meta_session(id), Some(head), &session.encode());
        }
        Ok(())
    }

    fn expire(&mut self, now: ClusterTime, sessions: &SessionBatch) -> Stepped<Vec<SessionId>, R> {
        let mut over = Vec::new();
        for id in sessions.iter() {
            let found = self.meta_session(id)?;
            over.extend(found.filter(|(session, _)| session.is_over(now)).map(|(s, head)| (id, s, head)));
        }
        let expired = over.iter().map(|(id, _, _)| *id).collect();
        self.forget_sessions(over)?;
        Ok(expired)
    }

    fn forget_sessions(&mut self, over: Vec<(SessionId, Session, RowHead)>) -> Stepped<(), R> {
        if over.is_empty() {
            return Ok(());
        }
        let count = self.number(&system_key::session_count())?;
        let (sessions, count_head) = count.map_or((0, None), |(count, head)| (count, Some(head)));
        let left = sessions.checked_sub(over.len() as u64);
        let left = left.ok_or_else(|| self.unreadable(DecodeError::Field("the number of sessions")))?;
        for (id, session, head) in over {
            self.remove(system_key::meta_session(id), head);
            let key = system_key::nonce(session.nonce);
            if let Some(head) = self.head(&key)? {
                self.remove(key, head);
            }
        }
        match (left, count_head) {
            (0, Some(head)) => self.remove(system_key::session_count(), head),
            (_, head) => self.write(system_key::session_count(), head, &encode_number(left)),
        }
        Ok(())
    }

    fn meta_session(&self, id: SessionId) -> Stepped<Option<(Session, RowHead)>, R> {
        self.decoded(&system_key::meta_session(id), |row| Session::decode(&row.value))
    }

    fn number(&self, key: &RowKey) -> Stepped<Option<(u64, RowHead)>, R> {
        self.decoded(key, |row| decode_number(&row.value))
    }
}
