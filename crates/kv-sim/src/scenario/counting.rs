//! The counting workload: what a scenario may fix of it, and what the seed draws.

use std::time::Duration;

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use serde::Deserialize;

use super::pick;

/// Clients with sessions that add to counters, each increment once. What is not fixed follows from the seed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Counting {
    /// Increments that are to be acknowledged, of all clients together.
    pub increments: usize,
    /// Clients.
    pub clients: Option<usize>,
    /// Counters of each shard.
    pub counters: Option<u64>,
    /// Requests that a client has in flight.
    pub in_flight: Option<usize>,
    /// Percent of requests that read first and then compare and set.
    pub compared: Option<u32>,
    /// Percent of requests without a session.
    pub timed: Option<u32>,
    /// Percent of answers that are lost on their way to the client.
    pub lost: Option<u32>,
    /// Percent of attempts that are sent twice.
    pub doubled: Option<u32>,
    /// The mean time between two deliveries of what was sent long ago, in milliseconds.
    pub late_ms: Option<u64>,
    /// How long a session lives without a renewal, in milliseconds.
    pub ttl_ms: Option<u64>,
    /// How often in ten thousand pulses a client closes its session, and how often it falls silent.
    pub closes: Option<u32>,
    /// See `closes`.
    pub silences: Option<u32>,
    /// The longest time between the naming of dead sessions and their collection, in milliseconds.
    pub collect_ms: Option<u64>,
}

/// The workload of one run.
#[derive(Clone, Debug, Default)]
pub(crate) struct CountingPlan {
    pub(crate) increments: usize,
    pub(crate) clients: usize,
    pub(crate) counters: u64,
    pub(crate) in_flight: usize,
    pub(crate) compared: u32,
    pub(crate) timed: u32,
    pub(crate) lost: u32,
    pub(crate) doubled: u32,
    pub(crate) late_ms: u64,
    pub(crate) ttl: Duration,
    pub(crate) closes: u32,
    pub(crate) silences: u32,
    pub(crate) collect_ms: u64,
}

impl Counting {
    /// Draws what is left open, apart from everything else that the seed draws.
    pub(crate) fn plan(&self, seed: u64) -> CountingPlan {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(6);
        CountingPlan {
            increments: self.increments,
            clients: self.clients.unwrap_or(rng.random_range(4..11)),
            counters: self.counters.unwrap_or(rng.random_range(1..6)),
            in_flight: self.in_flight.unwrap_or(rng.random_range(2..8)),
            compared: self.compared.unwrap_or(pick(&mut rng, &[0, 10, 40])),
            timed: self.timed.unwrap_or(pick(&mut rng, &[0, 10, 30])),
            lost: self.lost.unwrap_or(pick(&mut rng, &[2, 10, 30])),
            doubled: self.doubled.unwrap_or(pick(&mut rng, &[0, 5, 20])),
            late_ms: self.late_ms.unwrap_or(pick(&mut rng, &[10, 30, 100])),
            ttl: Duration::from_millis(self.ttl_ms.unwrap_or(rng.random_range(1000..3000))),
            closes: self.closes.unwrap_or(pick(&mut rng, &[5, 20, 80])),
            silences: self.silences.unwrap_or(pick(&mut rng, &[2, 10, 40])),
            collect_ms: self.collect_ms.unwrap_or(pick(&mut rng, &[20, 500, 3000])),
        }
    }
}
