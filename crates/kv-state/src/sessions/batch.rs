//! Sessions that one entry is about.

use std::collections::BTreeSet;

use kv_types::SessionId;
use kv_types::limits::SESSIONS_PER_ENTRY_MAX;

/// Some sessions, each once, in order.
///
/// # Invariants
/// Checked by [`SessionBatch::new`]: at most [`SESSIONS_PER_ENTRY_MAX`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionBatch(BTreeSet<SessionId>);

/// More sessions than one entry takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} sessions are too many for one entry")]
pub struct TooManySessions(usize);

impl SessionBatch {
    /// These sessions.
    ///
    /// # Errors
    /// [`TooManySessions`] if one entry cannot take them.
    pub fn new(sessions: impl IntoIterator<Item = SessionId>) -> Result<Self, TooManySessions> {
        let sessions: BTreeSet<_> = sessions.into_iter().collect();
        if sessions.len() > SESSIONS_PER_ENTRY_MAX {
            return Err(TooManySessions(sessions.len()));
        }
        Ok(Self(sessions))
    }

    /// The sessions in order.
    pub fn iter(&self) -> impl Iterator<Item = SessionId> {
        self.0.iter().copied()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_a_limit() {
        let first = |count: usize| (0..count as u64).map(SessionId::new);
        assert_eq!(SessionBatch::new(first(SESSIONS_PER_ENTRY_MAX)).unwrap().len(), SESSIONS_PER_ENTRY_MAX);
        let over = SESSIONS_PER_ENTRY_MAX + 1;
        assert_eq!(SessionBatch::new(first(over)), Err(TooManySessions(over)));
        assert!(SessionBatch::new([]).unwrap().is_empty());
    }
}
