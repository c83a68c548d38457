//! One key whose value is text that grows: read, write and append.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::append_outlook::AppendOutlook;
use super::{Expected, Model, Nature, bad_input, bad_result, foreign, refuse_mismatch};
use crate::datum::Datum;
use crate::error::HistoryError;
use crate::event::Function;
use crate::history::Operation;

/// One key whose value is text that grows. It is empty at first, and nil is the same as empty.
#[derive(Clone, Debug, Default)]
pub struct KvAppend;

/// An operation on growing text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AppendOp {
    /// A read with its result; without one if it is not known.
    Read(Option<Arc<str>>),
    /// A write.
    Write(Arc<str>),
    /// Adds text at the end.
    Append(Arc<str>),
}

/// A text with its hash, which grows with it: long texts are not hashed again for every append.
#[derive(Clone, Debug)]
pub struct AppendState {
    text: Arc<str>,
    hash: u64,
}

/// A prime below 2^61 as modulus, so that a product fits into 128 bits, and a base far from any alphabet.
const MODULUS: u64 = (1 << 61) - 1;
const BASE: u64 = 0x0000_9e37_79b9_7f4b;

impl AppendState {
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    fn new(text: Arc<str>) -> Self {
        Self { hash: extend_hash(0, &text), text }
    }

    fn append(&self, more: &str) -> Self {
        let text = [self.text.as_ref(), more].concat();
        Self { text: text.into(), hash: extend_hash(self.hash, more) }
    }
}

fn extend_hash(hash: u64, text: &str) -> u64 {
    text.bytes().fold(hash, |hash, byte| {
        let next = (u128::from(hash) * u128::from(BASE) + u128::from(byte) + 1) % u128::from(MODULUS);
        u64::try_from(next).unwrap_or_default()
    })
}

impl PartialEq for AppendState {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.text == other.text
    }
}

impl Eq for AppendState {}

impl Hash for AppendState {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write_u64(self.hash);
    }
}

impl Model for KvAppend {
    type Op = AppendOp;
    type State = AppendState;
    type Outlook = AppendOutlook;

    const NAME: &'static str = "kv-append";

    fn parse(&mut self, operation: &Operation) -> Result<AppendOp, HistoryError> {
        refuse_mismatch::<Self>(operation)?;
        let input = || text_of(&operation.input).ok_or_else(|| bad_input(operation, "text or a number"));
        Ok(match operation.function {
            Function::Read => {
                let result = operation.result().map(|result| {
                    let text = if result.is_nil() { Some(Arc::from("")) } else { text_of(result) };
                    text.ok_or_else(|| bad_result(operation, "text, a number or nil"))
                });
                AppendOp::Read(result.transpose()?)
            }
            Function::Write => AppendOp::Write(input()?),
            Function::Append => AppendOp::Append(input()?),
            Function::Delete => AppendOp::Write(Arc::from("")),
            Function::Cas
            | Function::Add
            | Function::Incr
            | Function::Acquire
            | Function::Release
            | Function::Txn => {
                return Err(foreign::<Self>(operation));
            }
        })
    }

    fn initial(&self) -> AppendState {
        AppendState::new(Arc::from(""))
    }

    fn step(&self, state: &AppendState, op: &AppendOp) -> Option<AppendState> {
        match op {
            AppendOp::Read(None) => Some(state.clone()),
            AppendOp::Read(Some(text)) => (*text == state.text).then(|| state.clone()),
            AppendOp::Write(text) => Some(AppendState::new(text.clone())),
            AppendOp::Append(more) => Some(state.append(more)),
        }
    }

    fn nature(&self, op: &AppendOp) -> Nature {
        match op {
            AppendOp::Read(_) => Nature::Observes,
            AppendOp::Write(_) | AppendOp::Append(_) => Nature::Changes,
        }
    }

    /// What was read is the last text written, if any, and all that was appended since. All of these occur in it; what
    /// does not occur in it did not reach it.
    fn explains(&self, change: &AppendOp, observation: &AppendOp) -> bool {
        let AppendOp::Read(Some(seen)) = observation else { return false };
        match change {
            AppendOp::Read(_) => false,
            AppendOp::Write(text) => seen.starts_with(text.as_ref()),
            AppendOp::Append(text) => seen.contains(text.as_ref()),
        }
    }

    fn overwrites(&self, change: &AppendOp) -> bool {
        matches!(change, AppendOp::Write(_))
    }

    fn outlook(&self, ops: &[Expected<'_, AppendOp>]) -> AppendOutlook {
        AppendOutlook::new(ops)
    }

    fn describe(&self, state: &AppendState) -> String {
        Datum::text(&state.text).to_string()
    }
}

fn text_of(datum: &Datum) -> Option<Arc<str>> {
    match datum {
        Datum::Text(text) => Some(text.clone()),
        Datum::Int(number) => Some(number.to_string().into()),
        Datum::Nil | Datum::List(_) => None,
    }
}
