//! What clients do, written down while they do it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kv_check::{Datum, Event, EventKind, Function, HistoryError, Recorder};

use crate::record::Operation;

/// Most operations of a run. Clients that have reached it rest, so that a history fits into memory.
pub(crate) const OPERATIONS_MAX: usize = 400_000;

/// The moment from which times count, the end of work, and who is cut off: one for all clients.
#[derive(Debug)]
pub(crate) struct Clock {
    origin: Instant,
    /// When time began, in nanoseconds after the origin.
    begun: AtomicU64,
    stop: AtomicBool,
    /// A bit for each node that is cut off from the majority.
    cut_off: AtomicU64,
}

impl Clock {
    /// A clock that starts now.
    pub(crate) fn start() -> Arc<Self> {
        let (begun, stop, cut_off) = (AtomicU64::new(0), AtomicBool::new(false), AtomicU64::new(0));
        Arc::new(Self { origin: Instant::now(), begun, stop, cut_off })
    }

    /// Time begins now.
    pub(crate) fn restart(&self) {
        let begun = u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.begun.store(begun, Ordering::Relaxed);
    }

    /// Milliseconds since the start.
    pub(crate) fn ms(&self) -> f64 {
        self.elapsed().as_secs_f64() * 1000.0
    }

    /// Since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.origin.elapsed().saturating_sub(Duration::from_nanos(self.begun.load(Ordering::Relaxed)))
    }

    /// Whether clients go on.
    pub(crate) fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Has clients end.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Says which nodes are cut off from the majority, as bits.
    pub(crate) fn cut_off(&self, nodes: u64) {
        self.cut_off.store(nodes, Ordering::Relaxed);
    }

    /// Whether a node is.
    pub(crate) fn is_cut_off(&self, node: u64) -> bool {
        1_u64.checked_shl(u32::try_from(node).unwrap_or(u32::MAX)).unwrap_or(0)
            & self.cut_off.load(Ordering::Relaxed)
            != 0
    }
}

/// An operation, with what only the judge wants to know.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    /// As the report shows it.
    pub(crate) operation: Operation,
    /// The shards it is about.
    pub(crate) shards: Vec<u32>,
    /// Whether it was done by a probe, which asks one node only.
    pub(crate) probe: bool,
    /// Whether a node has answered it, whatever it said.
    pub(crate) answered: bool,
    /// Whether it belongs to the workload, not to what runs beside it to see what a cluster does.
    pub(crate) of_workload: bool,
}

/// Histories as they are written. Whoever writes holds the lock for a moment, so that the order of events is that of real
/// time: a call is noted before it is sent, a return after it came.
#[derive(Debug)]
pub(crate) struct Book {
    /// The clock of all.
    pub(crate) clock: Arc<Clock>,
    pages: Mutex<Pages>,
}

/// What is in the book.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    recorder: Recorder,
    /// The events, as the checker takes them.
    pub(crate) events: Vec<Event>,
    /// The same as lines of text.
    pub(crate) lines: String,
    /// The operations, in the order of their calls.
    pub(crate) seen: Vec<Seen>,
    /// What could not be written down.
    pub(crate) broken: Option<HistoryError>,
}

/// A call as it is noted.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// The client's number.
    pub(crate) client: u32,
    /// Its process: another one after each operation of which nobody knows.
    pub(crate) process: i64,
    /// What it does.
    pub(crate) function: Function,
    /// On what.
    pub(crate) key: Datum,
    /// With what.
    pub(crate) value: Datum,
    /// Whether it writes.
    pub(crate) write: bool,
    /// The shards it is about.
    pub(crate) shards: Vec<u32>,
    /// The node it is sent to, if it is sent to that one only.
    pub(crate) probe: Option<u64>,
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum End {
    /// It happened.
    Ok(Told),
    /// It answered that the value was another than expected.
    Mismatch(Option<u64>),
    /// It did not happen.
    Failed,
    /// Nobody knows.
    Unknown,
}

/// What was told of an operation that happened.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Told {
    /// Its result.
    pub(crate) value: Datum,
    /// The revision it made or saw.
    pub(crate) revision: Option<u64>,
    /// The token of a lock.
    pub(crate) token: Option<u64>,
}

impl Told {
    /// A result at a revision.
    pub(crate) fn at(value: impl Into<Datum>, revision: u64) -> Self {
        Self { value: value.into(), revision: Some(revision), token: None }
    }
}

/// A call that is under way.
#[derive(Debug)]
pub(crate) struct Ticket {
    at: usize,
    event: Event,
}

impl Book {
    /// An empty book.
    pub(crate) fn new(clock: Arc<Clock>) -> Arc<Self> {
        Arc::new(Self { clock, pages: Mutex::default() })
    }

    /// What is in it.
    pub(crate) fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is no room for more.
    pub(crate) fn is_full(&self) -> bool {
        self.pages().seen.len() >= OPERATIONS_MAX
    }

    /// Notes a call that is about to be sent.
    pub(crate) fn call(&self, call: Call) -> Ticket {
        let minority = call.probe.is_some_and(|node| self.clock.is_cut_off(node));
        let mut event = Event::new(call.process, EventKind::Invoke, call.function, call.value);
        event.key = call.key;
        let mut pages = self.pages();
        let call_ms = self.clock.ms();
        pages.write(&mut event, call_ms);
        let operation = Operation {
            client: call.client,
            write: call.write,
            minority,
            call_ms,
            return_ms: None,
            outcome: "unknown".to_owned(),
        };
        let probe = call.probe.is_some();
        pages.seen.push(Seen { operation, shards: call.shards, probe, answered: false, of_workload: false });
        Ticket { at: pages.seen.len() - 1, event }
    }

    /// Notes what came back.
    pub(crate) fn end(&self, ticket: Ticket, end: End) {
        let answered = matches!(end, End::Ok(_) | End::Mismatch(_));
        self.end_answered(ticket, end, answered);
    }

    /// Notes what came back, and whether it was a node that said so.
    pub(crate) fn end_answered(&self, ticket: Ticket, end: End, answered: bool) {
        let mut event = ticket.event;
        let outcome = match end {
            End::Ok(told) => {
                event.kind = EventKind::Ok;
                (event.value, event.revision, event.token) = (told.value, told.revision, told.token);
                "ok"
            }
            // It is an answer: the operation took effect, and its effect was none.
            End::Mismatch(revision) => {
                (event.kind, event.mismatch, event.revision) = (EventKind::Fail, true, revision);
                "ok"
            }
            End::Failed => {
                event.kind = EventKind::Fail;
                "failed"
            }
            End::Unknown => {
                event.kind = EventKind::Info;
                "unknown"
            }
        };
        let mut pages = self.pages();
        let now = self.clock.ms();
        pages.write(&mut event, now);
        if let Some(seen) = pages.seen.get_mut(ticket.at) {
            seen.operation.return_ms = Some(now);
            seen.answered = answered;
            outcome.clone_into(&mut seen.operation.outcome);
        }
    }

    /// How many operations ended so far: well, not at all, and nobody knows how.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let pages = self.pages();
        let ended = pages.seen.iter().filter(|seen| seen.operation.return_ms.is_some());
        ended.fold((0, 0, 0), |(ok, failed, unknown), seen| match seen.operation.outcome.as_str() {
            "ok" => (ok + 1, failed, unknown),
            "failed" => (ok, failed + 1, unknown),
            _ => (ok, failed, unknown + 1),
        })
    }
}

impl Pages {
    fn write(&mut self, event: &mut Event, ms: f64) {
        event.time = Some(nanos(ms));
        match self.recorder.line(event) {
            Ok(line) => {
                self.lines.push_str(&line);
                self.lines.push('\n');
                self.events.push(event.clone());
            }
            Err(error) => {
                self.broken.get_or_insert(error);
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a run lasts minutes")]
fn nanos(ms: f64) -> u64 {
    (ms * 1e6).max(0.0) as u64
}
