//! A lock with holders, and with fencing tokens if the history has them.

use super::cell::{Symbol, Symbols};
use super::{Expected, Model, Nature, NoOutlook, foreign, refuse_mismatch};
use crate::error::HistoryError;
use crate::event::Function;
use crate::history::{Operation, Outcome};

/// A lock. It is free at first. The holder is the value of the operation, or its process if that is nil.
///
/// Fencing tokens, where an acquisition tells one, rise from holder to holder.
#[derive(Clone, Debug, Default)]
pub struct Lock {
    holders: Symbols,
}

/// An operation on a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LockOp {
    /// Takes the lock, which must be free.
    Acquire {
        /// Who takes it.
        holder: Symbol,
        /// The token it came with.
        token: Option<u64>,
    },
    /// Gives it back, which only its holder can.
    Release(Symbol),
}

/// Who holds the lock, and the last token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LockState {
    holder: Option<Symbol>,
    token: Option<u64>,
}

impl Model for Lock {
    type Op = LockOp;
    type State = LockState;
    type Outlook = NoOutlook;

    const NAME: &'static str = "lock";

    fn parse(&mut self, operation: &Operation) -> Result<LockOp, HistoryError> {
        refuse_mismatch::<Self>(operation)?;
        let named = if operation.input.is_nil() { &operation.process } else { &operation.input };
        let holder = self.holders.number(named);
        match operation.function {
            Function::Acquire => {
                // The token of an open acquisition was never told.
                let token = operation.token.filter(|_| operation.outcome != Outcome::Open);
                Ok(LockOp::Acquire { holder, token })
            }
            Function::Release => Ok(LockOp::Release(holder)),
            Function::Read
            | Function::Write
            | Function::Cas
            | Function::Append
            | Function::Delete
            | Function::Add
            | Function::Incr
            | Function::Txn => Err(foreign::<Self>(operation)),
        }
    }

    fn initial(&self) -> LockState {
        LockState { holder: None, token: None }
    }

    fn step(&self, state: &LockState, op: &LockOp) -> Option<LockState> {
        match *op {
            LockOp::Acquire { holder, token } => {
                let rises = token.is_none() || token > state.token;
                let free = state.holder.is_none();
                (free && rises).then(|| LockState { holder: Some(holder), token: token.or(state.token) })
            }
            LockOp::Release(holder) => {
                (state.holder == Some(holder)).then_some(LockState { holder: None, token: state.token })
            }
        }
    }

    fn opened(&self, op: &LockOp) -> LockOp {
        match *op {
            LockOp::Acquire { holder, token: _ } => LockOp::Acquire { holder, token: None },
            LockOp::Release(holder) => LockOp::Release(holder),
        }
    }

    fn nature(&self, _op: &LockOp) -> Nature {
        Nature::Both
    }

    /// Who takes the lock found it given back; who gives it back had taken it. Without the tokens of others a token is
    /// only easier to explain.
    fn explains(&self, change: &LockOp, observation: &LockOp) -> bool {
        match (change, observation) {
            (LockOp::Release(_), LockOp::Acquire { .. }) => true,
            (LockOp::Acquire { holder, .. }, LockOp::Release(by)) => holder == by,
            (LockOp::Acquire { .. }, LockOp::Acquire { .. }) | (LockOp::Release(_), LockOp::Release(_)) => {
                false
            }
        }
    }

    fn overwrites(&self, _change: &LockOp) -> bool {
        true
    }

    fn outlook(&self, _ops: &[Expected<'_, LockOp>]) -> NoOutlook {
        NoOutlook
    }

    fn describe(&self, state: &LockState) -> String {
        let holder = state
            .holder
            .map_or_else(|| "free".to_owned(), |holder| format!("held by {}", self.holders.describe(holder)));
        state.token.map_or_else(|| holder.clone(), |token| format!("{holder}, last token {token}"))
    }
}
