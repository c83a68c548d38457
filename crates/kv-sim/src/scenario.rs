//! What a run is made of: drawn from the seed, as far as the scenario's file does not say otherwise.

use std::collections::BTreeMap;
use std::time::Duration;

use kv_fault::Drill;
use kv_raft::LeaseConfig;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use serde::Deserialize;

use crate::clock::MILLION;
use crate::settings::Settings;

mod counting;
mod drill;
mod transactions;

pub use counting::Counting;
pub(crate) use counting::CountingPlan;
pub use drill::NotPlayed;
pub(crate) use transactions::TransactionsPlan;
pub use transactions::{Kind, Transactions};

/// How long the part with trouble may last, unless the scenario says so, when increments are counted: it ends with them.
const COUNTING_MS_MAX: u64 = 60_000;

/// How long the part with trouble lasts, unless the scenario says so, when there are transactions: parts are left alone for
/// two seconds.
const TRANSACTIONS_MS: u64 = 10_000;

/// A kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The power of a node goes, and comes back.
    Crash,
    /// The power goes in the middle of a write of the WAL, of a checkpoint, or of a start.
    TornCrash,
    /// A process stands still while its clock goes on.
    Suspend,
    /// One direction between two nodes is cut.
    OneWayCut,
    /// A node is cut off, in both directions.
    Isolate,
    /// Nobody hears a node any more, but it hears all.
    Mute,
    /// The nodes fall into two parts.
    Partition,
    /// A disk answers nothing for a while.
    StallDisk,
    /// A sync fails, and the node stops.
    FailSync,
    /// A disk is full, or nearly, for a while. Only where a scenario asks for it.
    FullDisk,
    /// The rate of a clock changes, within the bound if leases rest on it.
    ClockRate,
    /// A clock stands for a while. Leases do not survive that: only without them, or to see them fail.
    ClockFreeze,
    /// A clock leaps ahead. Likewise.
    ClockJump,
    /// A leader is told to hand over.
    Transfer,
    /// The membership is changed.
    Reconfigure,
    /// A node stands for election.
    Campaign,
    /// A disk is replaced by an empty one; the node takes no part any more.
    Wipe,
    /// A byte of a WAL rots while the node is down; it must not come up.
    Rot,
    /// A row of a base rots, while its node is down or with its scrub finding out; the rows come from another member.
    Spoil,
    /// A base is merged, a log compacted, a base rewritten, old segments let go.
    KeepHouse,
}

/// Nearly all kinds, with how often each happens unless a scenario says otherwise.
const MIX: &[(Fault, u32)] = &[
    (Fault::Crash, 10),
    (Fault::TornCrash, 4),
    (Fault::Suspend, 6),
    (Fault::OneWayCut, 8),
    (Fault::Isolate, 6),
    (Fault::Mute, 4),
    (Fault::Partition, 4),
    (Fault::StallDisk, 3),
    (Fault::FailSync, 1),
    (Fault::ClockRate, 4),
    (Fault::ClockFreeze, 2),
    (Fault::ClockJump, 2),
    (Fault::Transfer, 6),
    (Fault::Reconfigure, 5),
    (Fault::Campaign, 2),
    (Fault::Wipe, 1),
    (Fault::Rot, 1),
    (Fault::Spoil, 3),
    (Fault::KeepHouse, 16),
];

/// What a file may fix; everything else follows from the seed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scenario {
    /// Voters at the beginning.
    pub voters: Option<u64>,
    /// Further nodes, which begin outside the groups.
    pub spares: Option<u64>,
    /// Shards.
    pub shards: Option<u32>,
    /// Length of the part with trouble, in milliseconds of true time.
    pub run_ms: Option<u64>,
    /// Clients.
    pub clients: Option<usize>,
    /// The longest pause of a client between two calls, in microseconds.
    pub think_us: Option<u64>,
    /// Keys that clients use.
    pub keys: Option<u64>,
    /// Percent of calls that read.
    pub reads: Option<u32>,
    /// Whether leaders serve reads by a lease.
    pub lease: Option<bool>,
    /// The bound on clocks that leases rest on, in parts per million.
    pub drift_ppm: Option<u32>,
    /// How far clocks really are off, in parts per million; the bound, if not given.
    pub skew_ppm: Option<u32>,
    /// The shortest election timeout, in milliseconds.
    pub election_ms: Option<u64>,
    /// The interval of heartbeats, in milliseconds.
    pub heartbeat_ms: Option<u64>,
    /// The shortest and the longest time a message takes, in microseconds.
    pub delay_us: Option<(u64, u64)>,
    /// Messages in ten thousand that take much longer.
    pub slow: Option<u32>,
    /// How much longer at the most, in microseconds.
    pub slow_us: Option<u64>,
    /// Messages in ten thousand that are lost.
    pub loss: Option<u32>,
    /// Messages in ten thousand that arrive twice.
    pub doubled: Option<u32>,
    /// Percent of the messages sent into a cut that arrive when it is mended.
    pub late: Option<u32>,
    /// The shortest and the longest time a disk takes for a write, in microseconds.
    pub disk_us: Option<(u64, u64)>,
    /// The mean time between two troubles, in milliseconds.
    pub trouble_ms: Option<u64>,
    /// The longest time a trouble lasts, in milliseconds.
    pub lasts_ms: Option<u64>,
    /// How often each trouble happens beside the others; those not named do not happen.
    pub mix: Option<BTreeMap<Fault, u32>>,
    /// Clients with sessions beside the others; then there is a meta group, and trouble ends with the counting.
    pub counting: Option<Counting>,
    /// Clients with transactions; then there is a meta group, and sessions are collected as where something is counted.
    pub transactions: Option<Transactions>,
    /// A drill that is played: see [`Scenario::of_drill`].
    #[serde(skip)]
    pub drill: Option<Drill>,
}

/// Everything a run is made of.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) settings: Settings,
    pub(crate) run: Duration,
    pub(crate) clients: usize,
    pub(crate) think_us: u64,
    pub(crate) keys: u64,
    pub(crate) reads: u32,
    pub(crate) skew_ppm: u64,
    pub(crate) delay_us: (u64, u64),
    pub(crate) slow: u32,
    pub(crate) slow_us: u64,
    pub(crate) loss: u32,
    pub(crate) doubled: u32,
    pub(crate) late: u32,
    pub(crate) disk_us: (u64, u64),
    pub(crate) trouble_ms: u64,
    pub(crate) lasts_ms: u64,
    pub(crate) mix: Vec<(Fault, u32)>,
    pub(crate) counting: Option<CountingPlan>,
    pub(crate) transactions: Option<TransactionsPlan>,
    pub(crate) drill: Option<Drill>,
}

impl Scenario {
    /// Reads a scenario from the text of a file.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// Draws what the scenario leaves open.
    pub(crate) fn plan(&self, seed: u64) -> Plan {
        // Every choice is drawn, whether it is needed or not: so one that a file fixes changes no other.
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut settings = self.settings(seed, &mut rng);
        // Where transactions are, somebody has to collect sessions, though nobody counts.
        let nobody = Counting { clients: Some(0), ..Counting::default() };
        let counting = self.counting.as_ref().or(self.transactions.as_ref().map(|_| &nobody));
        if counting.is_some() {
            settings.has_meta = true;
            // Logs are longer, and what piles up while there is no quorum has to be sent when there is one.
            settings.append_entries_max *= 8;
            settings.uncommitted_bytes_max = settings.uncommitted_bytes_max.min(4 << 10);
        }
        if self.transactions.is_some() {
            settings.shards = self.shards.unwrap_or(pick(&mut rng, &[2, 3])).max(2);
        }
        let has_lease = settings.lease.is_some();
        let election_ms = u64::try_from(settings.election_timeout.as_millis()).unwrap_or(u64::MAX);
        let drift = settings.lease.map_or(200_000, |lease| lease.drift_ppm);
        let drawn = drawn_mix(&mut rng, has_lease);
        let mix = match &self.mix {
            Some(mix) => mix.iter().map(|(fault, weight)| (*fault, *weight)).collect(),
            None => drawn,
        };
        let drawn_ms = rng.random_range(2000..5000);
        let run_ms = match (&self.counting, &self.transactions) {
            (_, Some(_)) => TRANSACTIONS_MS,
            (Some(_), None) => COUNTING_MS_MAX,
            (None, None) => drawn_ms,
        };
        Plan {
            counting: counting.map(|counting| counting.plan(seed)),
            transactions: self.transactions.as_ref().map(|transactions| transactions.plan(seed)),
            drill: self.drill.clone(),
            run: Duration::from_millis(self.run_ms.unwrap_or(run_ms)),
            clients: self.clients.unwrap_or(rng.random_range(2..6)),
            think_us: self.think_us.unwrap_or(pick(&mut rng, &[5_000, 20_000, 60_000])),
            keys: self.keys.unwrap_or(rng.random_range(1..8)),
            reads: self.reads.unwrap_or(rng.random_range(20..70)),
            skew_ppm: u64::from(self.skew_ppm.unwrap_or(drift)).min(MILLION - 1),
            delay_us: self.delay_us.unwrap_or(pick(&mut rng, &[(100, 600), (200, 5_000), (500, 15_000)])),
            slow: self.slow.unwrap_or(pick(&mut rng, &[0, 30, 300])),
            slow_us: self.slow_us.unwrap_or(rng.random_range(1..5) * election_ms * 1000),
            loss: self.loss.unwrap_or(pick(&mut rng, &[0, 100, 1000])),
            doubled: self.doubled.unwrap_or(pick(&mut rng, &[0, 300])),
            late: self.late.unwrap_or(pick(&mut rng, &[0, 20, 60])),
            disk_us: self.disk_us.unwrap_or(pick(&mut rng, &[(50, 300), (500, 8_000), (100, 40_000)])),
            trouble_ms: self.trouble_ms.unwrap_or(pick(&mut rng, &[60, 150, 400])),
            lasts_ms: self.lasts_ms.unwrap_or(pick(&mut rng, &[200, 600, 1500])),
            mix,
            settings,
        }
    }

    fn settings(&self, seed: u64, rng: &mut ChaCha8Rng) -> Settings {
        let voters = self.voters.unwrap_or(pick(rng, &[3, 3, 5]));
        let spares = self.spares.unwrap_or(rng.random_range(0..3));
        let shards = self.shards.unwrap_or(pick(rng, &[1, 1, 2]));
        let mut settings = Settings::new(voters + spares, shards);
        settings.seed = seed;
        settings.voters = voters;
        settings.is_strict = false;
        settings.log_cache_bytes = pick(rng, &[0, 500, 1 << 20]);
        settings.append_entries_max = rng.random_range(1..12);
        settings.in_flight_appends_max = rng.random_range(1..5);
        settings.uncommitted_bytes_max = pick(rng, &[1000, 1 << 20]);
        settings.apply_max = rng.random_range(1..6);
        let has_lease = self.lease.unwrap_or(rng.random_range(0..4) > 0);
        let drift_ppm = self.drift_ppm.unwrap_or(pick(rng, &[10_000, 100_000]));
        let granularity = Duration::from_micros(100);
        settings.lease = has_lease.then_some(LeaseConfig { drift_ppm, granularity });
        settings.election_timeout = Duration::from_millis(self.election_ms.unwrap_or(100));
        settings.heartbeat = Duration::from_millis(self.heartbeat_ms.unwrap_or(20));
        settings
    }
}

/// One of these.
pub(crate) fn pick<T: Copy>(rng: &mut ChaCha8Rng, choices: &[T]) -> T {
    *choices.get(rng.random_range(0..choices.len())).expect("the number is below the length")
}

/// Some kinds of trouble only, so that what needs quiet elsewhere is met as well.
fn drawn_mix(rng: &mut ChaCha8Rng, has_lease: bool) -> Vec<(Fault, u32)> {
    let mut mix = Vec::new();
    for (fault, weight) in MIX {
        let is_in = rng.random_range(0..3) > 0;
        let needs_no_lease = matches!(fault, Fault::ClockFreeze | Fault::ClockJump);
        if is_in && !(needs_no_lease && has_lease) {
            mix.push((*fault, *weight));
        }
    }
    mix
}
