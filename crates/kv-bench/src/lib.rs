//! A load generator for a Quorate cluster.
//!
//! # Terms
//!
//! In a *closed loop*, a number of callers each begin an operation when their last one ended: the load follows the
//! cluster. In an *open loop*, operations begin at a fixed *rate* whatever the cluster does, as those of the world's
//! users do. *Coordinated omission* is the error of measuring from when a late operation was sent instead of from when
//! it should have been.
//!
//! # How it works
//!
//! [`run`] connects `conns` clients ([`kv_client::Client`]), writes the keys first if asked to, lets the load run
//! through a warm-up that is not counted, reads the servers' CPU time ([`cpu`]), counts for `secs`, and reads it again.
//! The module `load` makes operations: values are unique (a run's number and a counter), keys are drawn from a fixed number or
//! counted upwards. Each caller records into a histogram of its own; they are added at the end into a [`Report`].
//!
//! In the open loop, operation i is due at start + i / rate. Callers take the next number, sleep until it is due and
//! measure from then; if all callers are busy, operations begin late and the lateness counts.
//!
//! # What it does not do
//!
//! It checks no answer against a model: that is the drills' work. It never retries beyond what the client does; an
//! operation that fails is counted, not measured.

mod args;
pub mod cpu;
mod load;
mod report;
mod run;

pub use args::{Args, Operation};
pub use report::Report;
pub use run::run;
