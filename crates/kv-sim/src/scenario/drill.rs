//! The scenario that a drill is played in.

use std::collections::BTreeMap;

use kv_fault::{Action, Deed, Draft, Drill, Place, Route, Workload, WorkloadKind};

use super::{Counting, Kind, Scenario, Transactions};

/// The daemon's shortest election timeout and its heartbeat, in milliseconds.
const ELECTION_MS: u64 = 500;
const HEARTBEAT_MS: u64 = 50;

/// Clients think as long as the drill says, but as long as this at least, in microseconds: here every call is looked at from
/// all sides, and a drill is for many seeds.
const THINK_US: u64 = 40_000;

/// Clients, at the most.
const CLIENTS_MAX: u64 = 8;

/// Clients that count: their pauses are short.
const COUNTING_MAX: usize = 4;

/// Why a drill cannot be played here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotPlayed {
    /// It breaks connections of clients.
    #[error("step {number} breaks connections of clients: here they have none")]
    Clients {
        /// The step's number in the file.
        number: usize,
    },
}

impl Scenario {
    /// What a drill is played in: its cluster, its workload, and no trouble but its own.
    ///
    /// # Errors
    /// [`NotPlayed`]
    pub fn of_drill(drill: Drill) -> Result<Self, NotPlayed> {
        for step in &drill.steps {
            match &step.deed {
                Deed::Rule(draft) if is_of_connections_of_clients(draft) => {
                    return Err(NotPlayed::Clients { number: step.number });
                }
                Deed::Process(_) | Deed::Partition { .. } | Deed::Rule(_) | Deed::Heal { .. } => {}
            }
        }
        let workload = &drill.workload;
        let clients =
            usize::try_from(workload.clients.min(CLIENTS_MAX)).expect("there are a few at the most");
        let run_ms = u64::try_from(workload.duration.as_millis()).unwrap_or(u64::MAX);
        let is_register = workload.kind == WorkloadKind::Register;
        Ok(Self {
            voters: Some(u64::from(drill.cluster.nodes)),
            spares: Some(0),
            shards: Some(drill.cluster.shards),
            run_ms: Some(run_ms),
            clients: Some(if is_register { clients } else { 1 }),
            think_us: Some(think_us(workload)),
            keys: Some(workload.keys),
            lease: Some(true),
            election_ms: Some(ELECTION_MS),
            heartbeat_ms: Some(HEARTBEAT_MS),
            slow: Some(0),
            loss: Some(0),
            doubled: Some(0),
            late: Some(0),
            mix: Some(BTreeMap::new()),
            counting: Some(counting(workload, clients)),
            transactions: transactions(workload, clients),
            drill: Some(drill),
            ..Self::default()
        })
    }
}

fn is_of_connections_of_clients(draft: &Draft) -> bool {
    let is_of_clients = |route: &Route| route.from == Place::Clients || route.to == Place::Clients;
    matches!(draft.rule.action, Action::Wire(_))
        && !draft.routes.is_empty()
        && draft.routes.iter().all(is_of_clients)
}

fn think_us(workload: &Workload) -> u64 {
    u64::try_from(workload.think.as_micros()).unwrap_or(u64::MAX).max(THINK_US)
}

/// Whoever collects sessions is always there, and with it the meta group, as in the daemon's clusters.
fn counting(workload: &Workload, clients: usize) -> Counting {
    let nobody = Counting {
        clients: Some(0),
        lost: Some(0),
        doubled: Some(0),
        late_ms: Some(1_000_000),
        ..Counting::default()
    };
    if workload.kind != WorkloadKind::Counter {
        return nobody;
    }
    Counting {
        // They count until the drill is over.
        increments: usize::MAX,
        clients: Some(clients.min(COUNTING_MAX)),
        counters: Some(workload.keys),
        in_flight: Some(1),
        ..nobody
    }
}

fn transactions(workload: &Workload, clients: usize) -> Option<Transactions> {
    let kinds = match workload.kind {
        WorkloadKind::Register | WorkloadKind::Counter => return None,
        WorkloadKind::Bank => vec![Kind::Transfer, Kind::Total],
        WorkloadKind::Append => vec![Kind::Append, Kind::AppendOne, Kind::Get],
        WorkloadKind::Set => vec![Kind::AppendOne, Kind::Get],
        WorkloadKind::Lock => vec![Kind::Switch, Kind::Member],
    };
    Some(Transactions {
        clients: Some(clients),
        // As many of each shard.
        keys: Some(workload.keys.div_ceil(2)),
        think_us: Some(think_us(workload)),
        lost: Some(0),
        kept: Some(0),
        kinds: Some(kinds),
        ..Transactions::default()
    })
}
