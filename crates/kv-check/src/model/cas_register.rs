//! A register that can also compare and set.

use super::cell::{Cell, Words};
use crate::event::Function;

/// A register that can also compare and set.
pub type CasRegister = Cell<CasRegisterWords>;

/// The words of [`CasRegister`].
#[derive(Clone, Debug, Default)]
pub struct CasRegisterWords;

impl Words for CasRegisterWords {
    const NAME: &'static str = "cas-register";
    const FUNCTIONS: &'static [Function] = &[Function::Read, Function::Write, Function::Cas];
}
