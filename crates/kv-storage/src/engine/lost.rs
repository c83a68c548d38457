//! Stands where a damaged base was: nothing is read from it, nothing is written to it.

use std::ops::Bound;

use bytes::Bytes;

use super::{Engine, EngineError, EngineScan};

/// An engine that only says why it is one.
#[derive(Debug)]
pub(crate) struct Lost {
    detail: String,
}

impl Lost {
    pub(crate) fn new(detail: String) -> Self {
        Self { detail }
    }

    fn damaged<T>(&self) -> Result<T, EngineError> {
        Err(EngineError::Damaged { detail: self.detail.clone() })
    }
}

impl Engine for Lost {
    fn get(&self, _: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.damaged()
    }

    fn insert(&self, _: &[u8], _: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.damaged()
    }

    fn remove(&self, _: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.damaged()
    }

    fn scan(&self, _: Bound<&[u8]>, _: Bound<&[u8]>) -> EngineScan<'_> {
        Box::new(std::iter::once_with(|| self.damaged()))
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.damaged()
    }

    fn check(&self) -> Result<(), EngineError> {
        self.damaged()
    }

    fn disk_bytes(&self) -> Result<u64, EngineError> {
        Ok(0)
    }
}
