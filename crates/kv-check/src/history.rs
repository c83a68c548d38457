//! Operations with a beginning and an end, paired from events.

use std::collections::BTreeMap;

use crate::datum::Datum;
use crate::error::{HistoryError, Problem};
use crate::event::{Event, EventKind, Function, Place};

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It took effect between call and return; the value is its result.
    Ok(Datum),
    /// It answered that the value was another than expected, and changed nothing.
    Mismatch,
    /// Nobody knows: it may take effect at any time after its call, or never.
    Open,
}

/// One operation of a history. Those that failed for certain are not in one.
///
/// # Invariants
///
/// - `ret` is there exactly if the outcome is not [`Outcome::Open`].
/// - `call <= ret`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Who did it.
    pub process: Datum,
    /// What it does.
    pub function: Function,
    /// On what; nil if there is one object only.
    pub key: Datum,
    /// Its argument.
    pub input: Datum,
    /// How it ended.
    pub outcome: Outcome,
    /// When it was called: any unit, one scale for the whole history.
    pub call: u64,
    /// When it returned.
    pub ret: Option<u64>,
    /// The revision that the shard gave it.
    pub revision: Option<u64>,
    /// The fencing token of an acquired lock.
    pub token: Option<u64>,
    /// Where the call stands in the text.
    pub called_at: Place,
    /// Where the return stands in the text.
    pub returned_at: Place,
}

impl Operation {
    /// An operation that was called and has not returned.
    #[must_use]
    pub fn open(process: impl Into<Datum>, function: Function, input: impl Into<Datum>, call: u64) -> Self {
        Self {
            process: process.into(),
            function,
            key: Datum::Nil,
            input: input.into(),
            outcome: Outcome::Open,
            call,
            ret: None,
            revision: None,
            token: None,
            called_at: Place::default(),
            returned_at: Place::default(),
        }
    }

    /// The same on a key.
    #[must_use]
    pub fn on(mut self, key: impl Into<Datum>) -> Self {
        self.key = key.into();
        self
    }

    /// The same, returned with a result.
    #[must_use]
    pub fn returned(mut self, ret: u64, result: impl Into<Datum>) -> Self {
        self.ret = Some(ret);
        self.outcome = Outcome::Ok(result.into());
        self
    }

    /// The same with a revision.
    #[must_use]
    pub fn revised(mut self, revision: u64) -> Self {
        self.revision = Some(revision);
        self
    }

    /// The result, if it is known.
    #[must_use]
    pub fn result(&self) -> Option<&Datum> {
        match &self.outcome {
            Outcome::Ok(result) => Some(result),
            Outcome::Mismatch | Outcome::Open => None,
        }
    }
}

/// What clients saw: operations, in the order of their calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    operations: Vec<Operation>,
    failed: usize,
}

impl History {
    /// A history made in memory.
    ///
    /// # Errors
    ///
    /// If an operation returned before it was called.
    pub fn from_operations(mut operations: Vec<Operation>) -> Result<Self, HistoryError> {
        for operation in &operations {
            let (called, returned) = (operation.call, operation.ret.unwrap_or(operation.call));
            if returned < called {
                let problem = Problem::ReturnBeforeCall { called, returned };
                return Err(HistoryError::at_process(operation.returned_at, problem));
            }
        }
        operations.sort_by_key(|operation| operation.call);
        Ok(Self { operations, failed: 0 })
    }

    /// A history from its events, in their order.
    ///
    /// # Errors
    ///
    /// If an operation ends that never began, or a process begins two at once.
    pub fn from_events(events: impl IntoIterator<Item = Event>) -> Result<Self, HistoryError> {
        let mut pairing = Pairing::default();
        for event in events {
            pairing.push(event)?;
        }
        Ok(pairing.finish())
    }

    /// The operations, in the order of their calls.
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// How many operations failed for certain; they are not among the operations.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.failed
    }
}

/// Joins events to operations.
#[derive(Debug, Default)]
pub(crate) struct Pairing {
    operations: Vec<Operation>,
    /// The operation that each process is in.
    pending: BTreeMap<Datum, usize>,
    /// Operations that failed; taken out at the end.
    failed: Vec<usize>,
    /// The position of the next event. Positions are times: they differ, so that no two events are at once.
    position: u64,
}

impl Pairing {
    /// Takes the next event.
    pub(crate) fn push(&mut self, event: Event) -> Result<(), HistoryError> {
        self.position += 1;
        match event.kind {
            EventKind::Invoke => self.invoke(event),
            EventKind::Ok | EventKind::Fail | EventKind::Info => self.end(event),
        }
    }

    fn invoke(&mut self, event: Event) -> Result<(), HistoryError> {
        if let Some(busy) = self.pending.get(&event.process) {
            let problem = Problem::DoubleInvoke {
                process: event.process.to_string(),
                function: event.function,
                since: self.operations.get(*busy).map_or(0, |operation| operation.called_at.line),
            };
            return Err(HistoryError::at_process(event.place, problem));
        }
        self.pending.insert(event.process.clone(), self.operations.len());
        self.operations.push(Operation {
            process: event.process,
            function: event.function,
            key: event.key,
            input: event.value,
            outcome: Outcome::Open,
            call: self.position,
            ret: None,
            revision: None,
            token: event.token,
            called_at: event.place,
            returned_at: Place::default(),
        });
        Ok(())
    }

    fn end(&mut self, event: Event) -> Result<(), HistoryError> {
        let pending = self.pending.remove(&event.process);
        let Some((index, operation)) =
            pending.and_then(|index| Some((index, self.operations.get_mut(index)?)))
        else {
            let (process, function) = (event.process.to_string(), event.function);
            let problem = Problem::ReturnWithoutInvoke { process, function };
            return Err(HistoryError::at_process(event.place, problem));
        };
        let field = match () {
            () if event.function != operation.function => Some("f"),
            // Logs of one line an event may leave the key out of the return.
            () if event.key != operation.key && !event.key.is_nil() => Some("key"),
            () => None,
        };
        if let Some(field) = field {
            let (process, since) = (event.process.to_string(), operation.called_at.line);
            let problem = Problem::OtherReturn { process, field, since };
            return Err(HistoryError::at_function(event.place, problem));
        }
        operation.returned_at = event.place;
        operation.revision = event.revision;
        match event.kind {
            EventKind::Ok => {
                operation.ret = Some(self.position);
                operation.outcome = Outcome::Ok(event.value);
                operation.token = event.token.or(operation.token);
            }
            EventKind::Fail if event.mismatch => {
                operation.ret = Some(self.position);
                operation.outcome = Outcome::Mismatch;
            }
            EventKind::Fail => self.failed.push(index),
            EventKind::Invoke | EventKind::Info => {}
        }
        Ok(())
    }

    /// All operations so far, those that failed too, and the positions of the latter in order.
    pub(crate) fn into_parts(self) -> (Vec<Operation>, Vec<usize>) {
        let Self { operations, mut failed, .. } = self;
        failed.sort_unstable();
        (operations, failed)
    }

    /// The history of all events so far; what has not returned is open.
    pub(crate) fn finish(self) -> History {
        let (mut operations, failed) = self.into_parts();
        let mut gone = failed.iter().copied().peekable();
        let mut index = 0;
        operations.retain(|_| {
            let keep = gone.next_if_eq(&index).is_none();
            index += 1;
            keep
        });
        History { operations, failed: failed.len() }
    }
}
