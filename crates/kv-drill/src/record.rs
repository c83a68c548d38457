//! What a run leaves behind: all that a report shows. Times are milliseconds since the workload began.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The version of this format.
pub const FORMAT: u32 = 1;

/// A run. `report.json` is this.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`FORMAT`].
    pub format: u32,
    /// `VALID`, `VIOLATION`, `UNKNOWN` or `NOT EXERCISED`.
    pub verdict: String,
    /// Why it is not `VALID`, in sentences; empty if it is.
    pub reasons: Vec<String>,
    /// What was played.
    pub drill: Played,
    /// What the checker found.
    pub check: Checked,
    /// Its steps, in the order in which they fired.
    pub steps: Vec<StepFired>,
    /// What was in force, and when: a lane of the report each.
    pub faults: Vec<Fault>,
    /// What clients did, in the order of calls.
    pub operations: Vec<Operation>,
    /// Changes of leadership, by shard and time.
    pub leadership: Vec<Leadership>,
    /// What became of each expectation.
    pub expectations: Vec<Expectation>,
    /// How long things took.
    pub times: Times,
    /// Every replica after healing.
    pub replicas: Vec<Replica>,
    /// Whether all replicas of each shard have one state in the end; absent if that could not be seen.
    pub converged: Option<bool>,
}

/// What was played.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Played {
    /// Its name.
    pub name: String,
    /// What breaks and what must hold.
    pub about: String,
    /// What an operator does.
    pub runbook: String,
    /// What chance came from.
    pub seed: u64,
    /// The command that plays it again.
    pub repro: String,
    /// The version of the programs.
    pub version: String,
    /// When it began, as UTC: `2026-01-31T12:00:00Z`.
    pub begun: String,
    /// How many nodes.
    pub nodes: u64,
    /// How many shards, the meta group not counted.
    pub shards: u32,
    /// `register`, `counter`, `bank`, `append`, `set` or `lock`.
    pub workload: String,
    /// How many clients.
    pub clients: u32,
    /// How many keys.
    pub keys: u32,
    /// How long clients worked.
    pub duration_ms: f64,
    /// The longest election timeout of the nodes, E of expectations.
    pub election_ms: f64,
}

/// What the checker found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    /// The model or property.
    pub model: String,
    /// Operations that were looked at.
    pub operations: u64,
    /// Those that succeeded.
    pub ok: u64,
    /// Those that did not happen.
    pub failed: u64,
    /// Those of which nobody knows.
    pub unknown: u64,
    /// How long it took.
    pub took_ms: f64,
    /// The smallest part of the history that cannot be explained, for people; empty if there is none.
    pub counterexample: String,
    /// Where the whole history is, beside the report.
    pub history: String,
}

/// A step that fired.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepFired {
    /// Its number in the file, from 1.
    pub number: u32,
    /// What it says.
    pub text: String,
    /// When it was to fire; absent if it waited for something to happen.
    #[serde(default)]
    pub planned_ms: Option<f64>,
    /// When it fired; absent if it never did.
    pub at_ms: Option<f64>,
    /// Whom its roles meant.
    pub chosen: BTreeMap<String, u64>,
    /// Nodes that could reach each other then, the largest set first; empty if it is no partition.
    pub sides: Vec<Vec<u64>>,
    /// Why it could not be done; empty if it was.
    pub error: String,
}

/// Something that was in force for a while.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// The rule's name, or what was done to a process: `kill n2`.
    pub name: String,
    /// The rule, or the same.
    pub text: String,
    /// `message`, `wire` or `process`.
    pub plane: String,
    /// Since when.
    pub from_ms: f64,
    /// Until when.
    pub until_ms: f64,
    /// Messages that it matched.
    pub matched: u64,
    /// Those it acted on.
    pub acted: u64,
    /// The same by link, `n1->n2`.
    pub links: BTreeMap<String, Counts>,
    /// Client operations that were under way while it was in force.
    pub concurrent: u64,
}

/// Messages of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// That matched.
    pub matched: u64,
    /// That something was done to.
    pub acted: u64,
}

/// What a client did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// The client.
    pub client: u32,
    /// Whether it writes.
    pub write: bool,
    /// Whether the client was cut off from a majority when it called.
    pub minority: bool,
    /// When it was called.
    pub call_ms: f64,
    /// When it ended; absent if it never did.
    pub return_ms: Option<f64>,
    /// `ok`, `failed` (it did not happen) or `unknown`.
    pub outcome: String,
}

/// A change of leadership.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Leadership {
    /// The shard; 0 is the meta group.
    pub shard: u32,
    /// Since when it was seen.
    pub at_ms: f64,
    /// The epoch.
    pub epoch: u64,
    /// Who leads; absent if nobody is known to.
    pub leader: Option<u64>,
}

/// What became of an expectation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Expectation {
    /// What was expected.
    pub text: String,
    /// Whether it was met; absent if nobody can say.
    pub met: Option<bool>,
    /// What was measured.
    pub measured: String,
}

/// How long things took; absent if they did not happen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// From the first fault to the first operation that failed or is unknown.
    pub first_error_ms: Option<f64>,
    /// From the first fault to the first new leader.
    pub new_leader_ms: Option<f64>,
    /// From the first fault to the first write of the majority that was called after it and succeeded.
    pub first_success_ms: Option<f64>,
    /// From the last healing until writes of all clients succeed again.
    pub recovery_ms: Option<f64>,
}

/// A replica after healing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Replica {
    /// The shard.
    pub shard: u32,
    /// The node.
    pub node: u64,
    /// What it has applied.
    pub applied: u64,
    /// Its state hash.
    pub state_hash: String,
}
