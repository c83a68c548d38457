//! What is wrong with a history.

use thiserror::Error;

use crate::event::{Function, Place};

/// A history that cannot be checked, and where.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line}, column {column}: {problem}")]
pub struct HistoryError {
    /// The line, from 1; 0 if the history was not read from a text.
    pub line: u32,
    /// The column, in bytes from 1.
    pub column: u32,
    /// What is wrong there.
    pub problem: Problem,
}

/// What is wrong with a history.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// The line is no event.
    #[error("{0}")]
    Syntax(String),
    /// The line ends before the event does.
    #[error("the line ends in the middle of an event: is the history truncated?")]
    Truncated,
    /// The text is neither json lines, nor maps, nor a log.
    #[error("this is no history: json lines, edn maps or a Jepsen log are expected")]
    UnknownFormat,
    /// A field that every event has is not there.
    #[error("the event has no `{0}`")]
    MissingField(&'static str),
    /// The type is none of the four.
    #[error("unknown type `{0}`: invoke, ok, fail or info is expected")]
    UnknownType(String),
    /// No model knows the function.
    #[error("unknown f `{0}`")]
    UnknownFunction(String),
    /// The model does not know the function.
    #[error("f `{function}` does not belong to the model {model}")]
    ForeignFunction {
        /// The function.
        function: Function,
        /// The model's name.
        model: &'static str,
    },
    /// The value is not what the function takes or gives.
    #[error("value {value} of `{function}`: {expected} is expected")]
    BadValue {
        /// The function.
        function: Function,
        /// The value, as json.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The operation ends but never began.
    #[error("process {process} returns from `{function}`, but has invoked nothing")]
    ReturnWithoutInvoke {
        /// The process, as json.
        process: String,
        /// The function of the return.
        function: Function,
    },
    /// A process begins a second operation before the first one ended.
    #[error("process {process} invokes `{function}`, but has not returned from line {since} yet")]
    DoubleInvoke {
        /// The process, as json.
        process: String,
        /// The function of the second operation.
        function: Function,
        /// The line of the first one.
        since: u32,
    },
    /// The end speaks of something else than the beginning.
    #[error("process {process} returns with another {field} than it invoked in line {since}")]
    OtherReturn {
        /// The process, as json.
        process: String,
        /// `f` or `key`.
        field: &'static str,
        /// The line of the invocation.
        since: u32,
    },
    /// Events are not in order, so what really came first is not known.
    #[error("the index runs back from {before} to {index}: sort the history by index")]
    IndexRunsBack {
        /// The index of the event before.
        before: u64,
        /// The index here.
        index: u64,
    },
    /// Two transactions, or one twice, append the same to a key: which of them a read saw cannot be told.
    #[error("{element} is appended to key {key} a second time, first in line {since}")]
    AppendedTwice {
        /// The key, as json.
        key: String,
        /// The element.
        element: i64,
        /// The line of the first.
        since: u32,
    },
    /// A return that came before its invocation.
    #[error("an operation returns at {returned}, before it was called at {called}")]
    ReturnBeforeCall {
        /// When it was called.
        called: u64,
        /// When it returned.
        returned: u64,
    },
}

impl HistoryError {
    pub(crate) fn at(line: u32, column: u32, problem: Problem) -> Self {
        Self { line, column, problem }
    }

    pub(crate) fn at_process(place: Place, problem: Problem) -> Self {
        Self::at(place.line, place.process, problem)
    }

    pub(crate) fn at_function(place: Place, problem: Problem) -> Self {
        Self::at(place.line, place.function, problem)
    }

    pub(crate) fn at_value(place: Place, problem: Problem) -> Self {
        Self::at(place.line, place.value, problem)
    }
}
