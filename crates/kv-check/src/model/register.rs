//! A register: read and write.

use super::cell::{Cell, Words};
use crate::event::Function;

/// A register: read and write.
pub type Register = Cell<RegisterWords>;

/// The words of [`Register`].
#[derive(Clone, Debug, Default)]
pub struct RegisterWords;

impl Words for RegisterWords {
    const NAME: &'static str = "register";
    const FUNCTIONS: &'static [Function] = &[Function::Read, Function::Write];
}
