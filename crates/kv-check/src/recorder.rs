//! Writes a history down while it happens.

use std::collections::BTreeMap;

use crate::datum::Datum;
use crate::error::{HistoryError, Problem};
use crate::event::{Event, EventKind, Function};

/// Turns events into json lines, numbered in the order they come in, and refuses what no reader would take.
///
/// It does no I/O and remembers only what is under way: a run of any length can be recorded. Whoever calls it from
/// several threads records an invocation *before* the operation is sent and a return *after* the answer is there, each
/// under one lock with the others: the order of the lines is what is checked.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    next_index: u64,
    /// What each process is doing, and since which line.
    pending: BTreeMap<Datum, (Function, u32)>,
}

impl Recorder {
    /// A recorder at the beginning of a history.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The line for an event, without the newline.
    ///
    /// # Errors
    ///
    /// If a process begins a second operation, or ends what it has not begun.
    pub fn line(&mut self, event: &Event) -> Result<String, HistoryError> {
        let line = u32::try_from(self.next_index + 1).unwrap_or(u32::MAX);
        let process = || event.process.to_string();
        let fault = match (event.kind, self.pending.get(&event.process)) {
            (EventKind::Invoke, Some((_, since))) => {
                Some(Problem::DoubleInvoke { process: process(), function: event.function, since: *since })
            }
            (EventKind::Invoke, None) => None,
            (_, None) => Some(Problem::ReturnWithoutInvoke { process: process(), function: event.function }),
            (_, Some((function, since))) if *function != event.function => {
                Some(Problem::OtherReturn { process: process(), field: "f", since: *since })
            }
            (_, Some(_)) => None,
        };
        if let Some(problem) = fault {
            return Err(HistoryError::at(line, 1, problem));
        }
        match event.kind {
            EventKind::Invoke => {
                self.pending.insert(event.process.clone(), (event.function, line));
            }
            EventKind::Ok | EventKind::Fail | EventKind::Info => {
                self.pending.remove(&event.process);
            }
        }
        let text = event.to_json_line(self.next_index);
        self.next_index += 1;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_can_be_read() {
        let mut recorder = Recorder::new();
        let mut invoke = Event::new(3, EventKind::Invoke, Function::Write, "a\n\"b");
        invoke.key = Datum::text("k");
        invoke.time = Some(5);
        let mut ok = Event { kind: EventKind::Ok, ..invoke.clone() };
        ok.revision = Some(9);
        let lines = [invoke.clone(), ok.clone()].map(|event| recorder.line(&event).unwrap());
        let history = crate::read(&lines.join("\n")).unwrap();
        let mut expected = crate::History::from_events([invoke, ok]).unwrap().operations().to_vec();
        for (expected, read) in expected.iter_mut().zip(history.operations()) {
            (expected.called_at, expected.returned_at) = (read.called_at, read.returned_at);
        }
        assert_eq!(history.operations(), expected);
    }

    #[test]
    fn nonsense_is_not_recorded() {
        let mut recorder = Recorder::new();
        let invoke = Event::new(3, EventKind::Invoke, Function::Write, 1);
        let ok = Event { kind: EventKind::Ok, ..invoke.clone() };
        assert!(recorder.line(&ok).is_err(), "a return without an invocation");
        assert!(recorder.line(&invoke).is_ok());
        assert!(recorder.line(&invoke).is_err(), "two at once");
        assert!(
            recorder.line(&Event { function: Function::Read, ..ok.clone() }).is_err(),
            "another function"
        );
        assert!(recorder.line(&ok).is_ok());
        assert!(
            recorder.line(&invoke).is_ok_and(|line| line.contains("\"index\":2")),
            "refused lines do not count"
        );
    }
}
