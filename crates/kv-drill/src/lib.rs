//! Drills: faults on a timeline against a real cluster, clients that are recorded, a verdict and a report.
//!
//! # Terms
//!
//! What a *drill* says is `kv-fault`'s; a *run* plays it once. A *record* is all that is known of a run afterwards; a report shows it.
//!
//! # How it works
//!
//! [`Chaos`] tells a chaos proxy what to do, and [`ClusterRoles`] says who leads what at this moment, so that `leader-of(1)` becomes a
//! node when a step fires. [`record`] is what a run leaves behind, and [`report`] shows it to people.

mod chaos;
pub mod record;
pub mod report;
mod roles;

pub use chaos::{Chaos, ChaosError};
pub use roles::ClusterRoles;
