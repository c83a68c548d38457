//! One key of a key-value store: it is absent, which is nil, or has a value.

use super::cell::{Cell, Words};
use crate::event::Function;

/// One key of a key-value store: it is absent, which is nil, or has a value.
pub type Kv = Cell<KvWords>;

/// The words of [`Kv`].
#[derive(Clone, Debug, Default)]
pub struct KvWords;

impl Words for KvWords {
    const NAME: &'static str = "kv";
    const FUNCTIONS: &'static [Function] =
        &[Function::Read, Function::Write, Function::Delete, Function::Cas];
}
