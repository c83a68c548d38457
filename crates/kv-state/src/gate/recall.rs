//! What the gate found when it last looked, so that the next entry need not look again.
//!
//! It holds nothing that the rows do not: whoever begins with an empty one applies the same. What it knows of sessions is
//! bounded, and what has no room in it is looked up. Of two sessions whose numbers are the same modulo [`SESSIONS_AT_HAND`], each takes place
//! after place from the other.

use kv_types::limits::SESSION_WINDOW;
use kv_types::{RowHead, SessionId};

use super::GateState;
use crate::txn::Held;

/// Sessions with numbers in a row that are remembered beside each other.
const SESSIONS_AT_HAND: usize = 64;

/// The gate's row, and floors and places of sessions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recall {
    /// The gate's row, if it is known.
    pub(crate) gate: Option<Known<GateState>>,
    /// What transactions hold, if it is known: all of it, or nothing.
    pub(crate) held: Option<Held>,
    /// Empty until the first session comes.
    sessions: Vec<Option<Box<OfSession>>>,
}

/// A row that is known: what it says, and its head if there is one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known<T> {
    pub(crate) content: T,
    pub(crate) head: Option<RowHead>,
}

/// What is known of one session, or of several that share it.
#[derive(Clone, Debug)]
struct OfSession {
    floor: Option<(SessionId, Floor)>,
    /// By the number of the request, modulo their number.
    places: Vec<Option<(SessionId, Place)>>,
}

/// A session's floor; 0 without a row.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Floor {
    pub(super) value: u64,
    pub(super) head: Option<RowHead>,
}

/// Who has a place: the number of the request, and the head of its record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) seq: u64,
    pub(super) head: RowHead,
}

impl Recall {
    pub(super) fn floor(&self, session: SessionId) -> Option<Floor> {
        self.of(session)?.floor.as_ref().filter(|(of, _)| *of == session).map(|(_, floor)| *floor)
    }

    pub(super) fn place(&self, session: SessionId, seq: u64) -> Option<Place> {
        let place = self.of(session)?.places.get(place_of(seq))?;
        place.as_ref().filter(|(of, _)| *of == session).map(|(_, place)| *place)
    }

    pub(super) fn set_floor(&mut self, session: SessionId, floor: Floor) {
        self.of_mut(session).floor = Some((session, floor));
    }

    pub(super) fn set_place(&mut self, session: SessionId, place: Place) {
        if let Some(slot) = self.of_mut(session).places.get_mut(place_of(place.seq)) {
            *slot = Some((session, place));
        }
    }

    /// Rows of the session change otherwise than by its requests.
    pub(super) fn forget(&mut self, session: SessionId) {
        if let Some(slot) = self.sessions.get_mut(chunk_of(session)) {
            *slot = None;
        }
    }

    fn of(&self, session: SessionId) -> Option<&OfSession> {
        self.sessions.get(chunk_of(session))?.as_deref()
    }

    fn of_mut(&mut self, session: SessionId) -> &mut OfSession {
        if self.sessions.is_empty() {
            self.sessions.resize_with(SESSIONS_AT_HAND, || None);
        }
        let slot = self.sessions.get_mut(chunk_of(session)).expect("a chunk is below their number");
        slot.get_or_insert_with(|| {
            let places = (0..SESSION_WINDOW).map(|_| None).collect();
            Box::new(OfSession { floor: None, places })
        })
    }
}

fn chunk_of(session: SessionId) -> usize {
    usize::try_from(session.get() % SESSIONS_AT_HAND as u64).expect("a chunk is below their number")
}

fn place_of(seq: u64) -> usize {
    usize::try_from(seq % SESSION_WINDOW).expect("a window is small")
}
