//! The workload of transactions: what a scenario may fix of it, and what the seed draws.

use std::time::Duration;

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use serde::Deserialize;

use super::pick;

/// Clients with sessions that run transactions over all shards. What is not fixed follows from the seed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Transactions {
    /// Clients.
    pub clients: Option<usize>,
    /// Keys of each kind and shard.
    pub keys: Option<u64>,
    /// The longest pause of a client between two transactions, in microseconds.
    pub think_us: Option<u64>,
    /// Percent of answers to clients that are lost.
    pub lost: Option<u32>,
    /// Percent of the steps at which a copy is kept, which arrives at any later time.
    pub kept: Option<u32>,
    /// Percent of the attempts, from the third on, at which a client gives a transaction up.
    pub give_ups: Option<u32>,
    /// How long a question between nodes waits for its answer, in milliseconds.
    pub patience_ms: Option<u64>,
    /// How long a manager tries to have a transaction decided, and finished, in milliseconds.
    pub decide_ms: Option<u64>,
    /// How long a session lives without a renewal, in milliseconds.
    pub ttl_ms: Option<u64>,
    /// How often in ten thousand pulses a client closes its session, and how often it falls silent.
    pub closes: Option<u32>,
    /// See `closes`.
    pub silences: Option<u32>,
    /// Questions of parties, and answers, in ten thousand that take much longer; as all messages, if not given.
    pub slow: Option<u32>,
    /// How much longer at the most, in microseconds; likewise.
    pub slow_us: Option<u64>,
    /// Whether only questions are that slow that come after a decision: what it was, and that it is to be carried out.
    pub slow_decided: bool,
    /// The kinds of work, by their names; all, if not given.
    pub kinds: Option<Vec<Kind>>,
}

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Lists are read and appended to, of several shards.
    Append,
    /// A list is appended to by a compare-and-set.
    AppendOne,
    /// A list is read.
    Get,
    /// Something goes from an account to another.
    Transfer,
    /// All accounts are read.
    Total,
    /// Two counters are read and written.
    Count,
    /// One is incremented.
    CountOne,
    /// Of two switches at most one may be on.
    Switch,
    /// In all ranges there may be one member at most.
    Member,
    /// A lamp is switched on or off and counted, or looked at twice without a lock. Only where it is asked for.
    Lamp,
    /// Keys of all shards are written together, blindly, or read together.
    Twins,
    /// A register is read and written, and another one read.
    Register,
    /// A register is put, compared and set, or read.
    RegisterOne,
}

/// All kinds, with how often each happens.
const KINDS: &[(Kind, u32)] = &[
    (Kind::Append, 10),
    (Kind::AppendOne, 3),
    (Kind::Get, 4),
    (Kind::Transfer, 5),
    (Kind::Total, 3),
    (Kind::Count, 4),
    (Kind::CountOne, 2),
    (Kind::Switch, 4),
    (Kind::Member, 4),
    (Kind::Lamp, 4),
    (Kind::Twins, 4),
    (Kind::Register, 3),
    (Kind::RegisterOne, 4),
];

/// The workload of one run.
#[derive(Clone, Debug, Default)]
pub(crate) struct TransactionsPlan {
    pub(crate) clients: usize,
    pub(crate) keys: u64,
    pub(crate) think_us: u64,
    pub(crate) lost: u32,
    pub(crate) kept: u32,
    pub(crate) give_ups: u32,
    pub(crate) patience: Duration,
    pub(crate) decide: Duration,
    pub(crate) ttl: Duration,
    pub(crate) closes: u32,
    pub(crate) silences: u32,
    pub(crate) slow: Option<u32>,
    pub(crate) slow_us: Option<u64>,
    pub(crate) slow_decided: bool,
    pub(crate) kinds: Vec<(Kind, u32)>,
}

impl Transactions {
    /// Draws what is left open, apart from everything else that the seed draws.
    pub(crate) fn plan(&self, seed: u64) -> TransactionsPlan {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(8);
        let wanted = |kind: &Kind| match &self.kinds {
            Some(kinds) => kinds.contains(kind),
            None => *kind != Kind::Lamp,
        };
        TransactionsPlan {
            clients: self.clients.unwrap_or(rng.random_range(4..9)),
            keys: self.keys.unwrap_or(rng.random_range(1..3)),
            think_us: self.think_us.unwrap_or(pick(&mut rng, &[5_000, 20_000, 60_000])),
            lost: self.lost.unwrap_or(pick(&mut rng, &[2, 10, 30])),
            kept: self.kept.unwrap_or(pick(&mut rng, &[10, 30])),
            give_ups: self.give_ups.unwrap_or(pick(&mut rng, &[2, 10, 30])),
            patience: Duration::from_millis(self.patience_ms.unwrap_or(pick(&mut rng, &[50, 200, 500]))),
            decide: Duration::from_millis(self.decide_ms.unwrap_or(pick(&mut rng, &[300, 1000, 5000]))),
            ttl: Duration::from_millis(self.ttl_ms.unwrap_or(rng.random_range(1000..3000))),
            closes: self.closes.unwrap_or(pick(&mut rng, &[5, 20, 80])),
            silences: self.silences.unwrap_or(pick(&mut rng, &[2, 10, 40])),
            slow: self.slow,
            slow_us: self.slow_us,
            slow_decided: self.slow_decided,
            kinds: KINDS.iter().filter(|(kind, _)| wanted(kind)).copied().collect(),
        }
    }
}
