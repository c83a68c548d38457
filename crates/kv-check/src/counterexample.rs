//! Why a history cannot be explained.

use std::fmt;

use serde_json::{Value, json};

use crate::budget::{Budget, Purse};
use crate::datum::Datum;
use crate::event::Function;
use crate::history::{Operation, Outcome};
use crate::linearise::advance;
use crate::model::Model;
use crate::search::{Search, Timed};
use crate::shrink::{Core, cut_at};

/// A part of the history of one object that no order explains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counterexample {
    /// The object; nil if there is only one.
    pub key: Datum,
    /// How many operations the object has in the whole history.
    pub of: usize,
    /// The operations that contradict each other, in the order of their calls. Those that returned too late to matter
    /// are open.
    pub operations: Vec<Operation>,
    /// Whether nothing more can be left out; if not, time ran out.
    pub is_minimal: bool,
    /// The longest order that is possible, by the positions among the operations.
    pub longest: Vec<usize>,
    /// The state after it, in words.
    pub state: String,
    /// The operation that has to come next, and cannot: no other that can come next helps.
    pub stuck: Option<usize>,
}

/// How many operations of a counterexample are shown to people: the latest.
const SHOWN_MAX: usize = 50;

/// How many steps may be spent on the longest order of a core.
const LONGEST_STEPS: u64 = 500_000;

impl Counterexample {
    /// Explains what a search and its shrinking came to. `source` are the operations behind `ops`.
    pub(crate) fn new<M: Model>(
        model: &M,
        ops: &[Timed<M::Op>],
        source: &[&Operation],
        key: Datum,
        core: &Core,
    ) -> Self {
        let cut = |ret: Option<u64>| ret.filter(|ret| *ret <= core.until);
        let kept = || core.kept.iter().filter_map(|number| Some((ops.get(*number)?, source.get(*number)?)));
        let part: Vec<_> = kept().map(|(timed, _)| cut_at(model, timed, core.until)).collect();
        let mut operations: Vec<Operation> = kept().map(|(_, operation)| (*operation).clone()).collect();
        for operation in operations.iter_mut().filter(|operation| cut(operation.ret).is_none()) {
            operation.ret = None;
            operation.token = None;
            operation.outcome = Outcome::Open;
        }
        let longest = longest_order(model, &part).unwrap_or_else(|| {
            let position = |number| core.kept.iter().position(|kept| kept == number);
            core.longest.iter().filter_map(position).collect()
        });
        let mut state = model.initial();
        for timed in longest.iter().filter_map(|at| part.get(*at)) {
            state = model.step(&state, &timed.op).unwrap_or(state);
        }
        let left = part.iter().enumerate().filter(|(at, _)| !longest.contains(at));
        let stuck = left.filter_map(|(at, timed)| Some((timed.ret?, at))).min().map(|(_, at)| at);
        let state = model.describe(&state);
        Self { key, of: source.len(), operations, is_minimal: core.is_minimal, longest, state, stuck }
    }

    /// As json.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "key": self.key.to_json(),
            "of": self.of,
            "operations": self.operations.iter().map(operation_json).collect::<Vec<_>>(),
            "minimal": self.is_minimal,
            "longest_order": self.longest,
            "state": self.state,
            "stuck": self.stuck,
        })
    }
}

/// The longest order that the thorough search finds; none if that takes too long.
fn longest_order<M: Model>(model: &M, part: &[Timed<M::Op>]) -> Option<Vec<usize>> {
    let budget = Budget::steps(LONGEST_STEPS);
    let mut search = Search::thorough(model, part);
    advance(&mut search, &mut Purse::new(&budget), LONGEST_STEPS, 0).ok()?;
    Some(search.longest().to_vec())
}

fn operation_json(operation: &Operation) -> Value {
    let outcome = match &operation.outcome {
        Outcome::Ok(_) => "ok",
        Outcome::Mismatch => "mismatch",
        Outcome::Open => "open",
    };
    let line = |line: u32| (line > 0).then_some(line);
    json!({
        "process": operation.process.to_json(),
        "f": operation.function.word(),
        "value": operation.input.to_json(),
        "outcome": outcome,
        "result": operation.result().map(Datum::to_json),
        "revision": operation.revision,
        "token": operation.token,
        "call": operation.call,
        "return": operation.ret,
        "call_line": line(operation.called_at.line),
        "return_line": line(operation.returned_at.line),
    })
}

/// One line for people: `process 3: write 5, ok (lines 7 to 9)`.
impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}: {}", self.process, self.function)?;
        if !self.input.is_nil() {
            write!(f, " {}", self.input)?;
        }
        match &self.outcome {
            Outcome::Ok(result) if self.function == Function::Read => write!(f, " -> {result}")?,
            Outcome::Ok(result) if result.is_nil() || *result == self.input => f.write_str(", ok")?,
            Outcome::Ok(result) => write!(f, " -> {result}")?,
            Outcome::Mismatch => f.write_str(", found another value")?,
            Outcome::Open => f.write_str(", open")?,
        }
        if let Some(token) = self.token {
            write!(f, ", token {token}")?;
        }
        match (self.called_at.line, self.returned_at.line) {
            (0, _) => Ok(()),
            (call, ret) if self.ret.is_some() && ret > 0 => write!(f, " (lines {call} and {ret})"),
            (call, _) => write!(f, " (line {call})"),
        }
    }
}

/// Several lines for people.
impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_nil() {
            writeln!(f, "key {}", self.key)?;
        }
        let size = if self.is_minimal { "no fewer do" } else { "fewer might" };
        writeln!(f, "{} of {} operations contradict each other, {size}:", self.operations.len(), self.of)?;
        let passed_over = self.operations.len().saturating_sub(SHOWN_MAX);
        if passed_over > 0 {
            writeln!(f, "  (the first {passed_over} are left out here; json has all)")?;
        }
        for (position, operation) in (1..).zip(&self.operations).skip(passed_over) {
            writeln!(f, "  {position}. {operation}")?;
        }
        let order: Vec<_> = self.longest.iter().map(|at| (at + 1).to_string()).collect();
        let shown = order.get(order.len().saturating_sub(SHOWN_MAX)..).unwrap_or_default().join(", ");
        let order = match order.len() {
            0 => "nothing".to_owned(),
            length if length > SHOWN_MAX => format!("..., {shown}"),
            _ => shown,
        };
        writeln!(f, "the longest possible order is {order}; the state is then {}", self.state)?;
        match self.stuck {
            Some(stuck) => write!(f, "{} must have taken effect by then, and cannot have", stuck + 1),
            None => write!(f, "nothing else can be placed"),
        }
    }
}
