//! Histories, models and checkers: of linearisability, and of strict serialisability.
//!
//! # The problem
//!
//! Clients of a store note what they asked and what they were told: a [`History`]. The store promises that it behaved
//! as if every operation had taken effect once, at one instant between its call and its return. The checker looks for
//! instants that explain every result. If there are some the history is *linearisable*; if there are none the promise is
//! broken.
//!
//! A transactional store promises the same of transactions, each of which reads and changes several keys: that is
//! *strict serialisability*. Keys depend on each other then, and the history is a [`TransactionHistory`].
//!
//! # Terms
//!
//! An *operation* is called and returns. One that *failed for certain* never happened and is left out. One that is
//! *open* ended without an answer, or not at all: it may take effect at any time after its call, even after its client
//! gave up, or never. A *model* is the object without concurrency: a state, and what each operation does to it. An
//! *order* of the operations explains a history if the model, taken through it, gives every result, and if nothing
//! stands before what had returned before it was called.
//!
//! # How it works
//!
//! [`read`] takes a history from text: json lines with Jepsen's fields, edn maps, or a Jepsen log. [`Recorder`] writes
//! one; [`History::from_operations`] makes one in memory. [`check`] parts it by key, for keys do not depend on each
//! other, and looks at each:
//!
//! 1. The *witness*: if the operations carry revisions, the order by revision is tried. It takes one pass, and proves the
//!    key good if it explains everything. It never proves a key bad.
//! 2. The *search* of Wing and Gong with Lowe's memory, and the shortcuts that the module `search` proves. Keys are
//!    searched in rounds of growing length, so that a hard one does not hide an impossible one. The first impossible key
//!    ends the check.
//! 3. The *counterexample*: the operations of the impossible key are cut down to a few that contradict each other, and the
//!    longest possible order of these is told.
//!
//! Deciding is NP-complete, so every check has a [`Budget`], and [`Verdict::Unknown`] is an honest answer. A history in
//! which no read or no write succeeded is [`Verdict::NotExercised`]: it would be valid whatever the store did.
//!
//! # How transactions are checked
//!
//! Each key holds a list; transactions append elements to it, each its own, and read it. [`read_transactions`] takes such
//! a history from text, in Jepsen's form of list-append; [`Event::transaction`] makes the events for a [`Recorder`].
//! [`check_transactions`] takes the order of a key's elements from the longest read, and from it who was before whom:
//! because one appended behind the other, read what the other appended, or did not. Together with real time this must not
//! lead in a circle. A list shows all that ever happened to it, so that here nothing is guessed: the verdict is certain
//! both ways, and takes about linear time. It names what is wrong as Adya and Elle do, see [`AnomalyKind`], and tells
//! circles in sentences:
//!
//! ```text
//! G-single: read skew: transactions go before each other in a circle, and one read is to blame
//!   T1: process 0: append 1 to x, append 1 to y, committed (lines 2 and 4)
//!   T2: process 1: read x -> [1], read y -> [], committed (lines 3 and 5)
//!   T1 was before T2 because T2 read T1's append of 1 to x
//!   T2 was before T1 because T2 read y as [], without T1's append of 1
//! ```
//!
//! # Caller's duties
//!
//! 1. The order of the events must be that of real time: an invocation is noted before the request leaves, a return after
//!    the answer arrived.
//! 2. Whoever is not sure that an operation failed says `info`, not `fail`.
//! 3. The deadline comes from the caller: this crate reads no clock.
//! 4. No element is appended to a key twice, not even by a transaction that failed: a retry appends another one.
//!
//! # What it does not do
//!
//! Of transactions it checks lists only, not registers, and no promise weaker than strict serialisability. Predicates,
//! such as reads of a range of keys, are in no model. It makes no I/O, starts no thread, and uses no random number: the
//! same history gives the same verdict, counterexample and number of steps.

mod append;
mod budget;
mod check;
mod counterexample;
mod datum;
mod error;
mod event;
mod history;
mod linearise;
pub mod model;
mod read;
mod recorder;
mod search;
mod shrink;
mod transaction;
mod witness;
pub mod workload;

pub use append::{
    ANOMALIES_MAX, Anomalies, Anomaly, AnomalyKind, TransactionReport, TransactionVerdict, check_transactions,
};
pub use budget::{Budget, CONFIGURATIONS_MAX, Exhausted};
pub use check::{Report, Verdict, check, check_against};
pub use counterexample::Counterexample;
pub use datum::Datum;
pub use error::{HistoryError, Problem};
pub use event::{Event, EventKind, Function, Place};
pub use history::{History, Operation, Outcome};
pub use linearise::{Linearised, linearise};
pub use model::{Model, ModelKind};
pub use read::{read, read_bytes, read_events, read_transactions};
pub use recorder::Recorder;
pub use search::Timed;
pub use transaction::{Ending, MicroOperation, Transaction, TransactionHistory};
