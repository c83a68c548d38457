//! Whole clusters of real replicas.
mod clock;
mod cluster;
mod held;
mod house;
mod invariants;
mod model;
mod network;
mod node;
mod oracle;
mod planted;
mod report;
mod run;
mod scenario;
mod settings;
mod stream;
#[cfg(test)]
mod tests;
mod violation;
mod world;
pub use planted::Planted;
#[cfg(feature = "planted")]
pub use report::run_planted;
pub use report::{Failure, Report, Tally, run};
pub use scenario::{Fault, Scenario};
pub use violation::Violation;
