//! Forgetting: records without a session by their age, sessions when they are dead.

use kv_types::limits::{COLLECT_RECORDS_MAX, COLLECT_SESSION_ROWS_MAX, REQUEST_RETENTION};
use kv_types::{ClusterTime, Space, TimedId, TxnId};

use super::admit::decode_floor;
use super::record::Record;
use crate::apply::{Answer, Rows};
use crate::planted::Planted;
use crate::sessions::SessionBatch;
use crate::step::{Step, Stepped};
use crate::system_key;

/// Whether the outcome of an id may be forgotten, so that the id is refused.
pub(super) fn is_too_old(id: TimedId, time: ClusterTime) -> bool {
    id < first_kept(time)
}

/// The smallest id that is not too old: of the first second that is less than the retention ago.
pub(super) fn first_kept(time: ClusterTime) -> TimedId {
    let seconds = time.before(REQUEST_RETENTION).map_or(0, |edge| edge.seconds() + 1);
    TimedId::first_of(seconds).expect("a time less the retention is far from the last second")
}

impl<R: Rows> Step<'_, R> {
    /// Removes the oldest records without a session that are due; whether more are. Looks at no row unless a second has
    /// passed since there was nothing left to do, and never at one it has removed: what is below the cursor is gone, and
    /// nothing is added there, because such ids are too old.
    pub(crate) fn collect_timed(&mut self) -> Stepped<bool, R> {
        let gate = self.gate()?;
        let (from, to) = (gate.collected, first_kept(gate.time));
        if from >= to {
            return Ok(false);
        }
        let due = self.heads_in(Space::System, &system_key::timed_records(from, to), COLLECT_RECORDS_MAX)?;
        let last = due.last().and_then(|(key, _)| system_key::timed_of(key));
        let more = due.len() == COLLECT_RECORDS_MAX;
        self.gate()?.collected = last.filter(|_| more).map_or(to, TimedId::next);
        for (key, head) in due {
            self.remove(key, head);
        }
        Ok(more)
    }

    /// Forgets sessions of which every lease ends at or before `until`, and raises the horizon to it, so that whatever
    /// is still under way of them is refused.
    pub(crate) fn gc_sessions(&mut self, sessions: &SessionBatch, until: ClusterTime) -> Stepped<Answer, R> {
        if !self.planted(Planted::HorizonForgotten) {
            let gate = self.gate()?;
            gate.horizon = gate.horizon.max(until);
        }
        let mut room = COLLECT_SESSION_ROWS_MAX;
        let mut left = Vec::new();
        for session in sessions.iter() {
            self.carried.recall.forget(session);
            if self.planted(Planted::CollectDropsPrepared) {
                let after = TxnId { session, seq: 0 };
                let prepared = self.heads_in(Space::System, &system_key::prepared_after(Some(after)), 1)?;
                for (key, head) in prepared {
                    self.remove(key, head);
                }
                self.carried.recall.held = None;
            }
            // One more than there is room for tells whether rows are left.
            let mut due = self.heads_in(Space::System, &system_key::of_one_session(session), room + 1)?;
            if due.len() > room {
                left.push(session);
                due.truncate(room);
            }
            room -= due.len();
            for (key, head) in due {
                self.remove(key, head);
            }
        }
        Ok(Answer::SessionsCollected { rows: (COLLECT_SESSION_ROWS_MAX - room) as u64, left })
    }

    /// Forgets the outcomes of sessions that lie below their floors. A busy session needs none of it: its next requests
    /// take the places.
    pub(crate) fn trim_sessions(&mut self, sessions: &SessionBatch) -> Stepped<Answer, R> {
        let mut room = COLLECT_SESSION_ROWS_MAX;
        let mut left = Vec::new();
        for session in sessions.iter() {
            self.carried.recall.forget(session);
            let rows = self.heads_in(Space::System, &system_key::of_one_session(session), room + 1)?;
            if rows.len() > room {
                left.push(session);
                continue;
            }
            room -= rows.len();
            let floor_key = system_key::floor(session);
            let row = self.get(&floor_key)?;
            let floor = row.map_or(Ok(0), |row| decode_floor(&row.value));
            let floor = floor.map_err(|cause| self.unreadable(cause))?;
            for (key, head) in rows.into_iter().filter(|(key, _)| *key != floor_key) {
                let Some(row) = self.get(&key)? else { continue };
                let (seq, _) = Record::decode(&row.value).map_err(|cause| self.unreadable(cause))?;
                if seq < floor {
                    self.remove(key, head);
                }
            }
        }
        Ok(Answer::SessionsCollected { rows: (COLLECT_SESSION_ROWS_MAX - room) as u64, left })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_kept_for_the_retention_and_no_longer_than_a_second_more() {
        let at = |ms| ClusterTime::from_ms(ms).unwrap();
        let retention = 900_000;
        let id = TimedId::new(at(5_999), 1);
        assert!(!is_too_old(id, at(0)));
        assert!(!is_too_old(id, at(5_999 + retention - 1_000)));
        assert!(!is_too_old(id, at(4_999 + retention)), "it is of second 5");
        assert!(is_too_old(id, at(5_000 + retention)));
        assert!(is_too_old(TimedId::from_raw(0), ClusterTime::MAX));
        assert!(!is_too_old(TimedId::from_raw(u128::MAX), ClusterTime::MAX));
    }
}
