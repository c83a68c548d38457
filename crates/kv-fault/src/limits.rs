//! Bounds of what a rule and a drill may ask for.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Most nodes of a drill's cluster, and most that a partition is resolved over.
pub const NODES_MAX: u32 = 9;

/// Most shards of a drill's cluster, without the meta group.
pub const SHARDS_MAX: u32 = 63;

/// Most rules in force at once.
pub const RULES_MAX: usize = 256;

/// Most rules out of force that a table remembers; the oldest are forgotten.
pub const ENDED_MAX: usize = 1024;

/// Most letters of the name of a rule or of a drill.
pub const NAME_LEN_MAX: usize = 64;

/// Most extra copies of one message, of all rules together.
pub const COPIES_MAX: u32 = 16;

/// Most bits flipped in one message by one rule.
pub const FLIPS_MAX: u32 = 64;

/// Most later messages that may overtake one.
pub const REORDER_MAX: u32 = 64;

/// Longest time of a delay, a jitter, a gap, or half a pulse.
pub const SPAN_MAX: Duration = Duration::from_secs(120);

/// Longest workload of a drill.
pub const WORKLOAD_MAX: Duration = Duration::from_secs(120);

/// Most clients of a drill's workload.
pub const CLIENTS_MAX: u64 = 64;

/// Most keys of a drill's workload.
pub const KEYS_MAX: u64 = 1024;

/// Longest pause of a client between two calls.
pub const THINK_MAX: Duration = Duration::from_secs(10);

/// Longest value of a set's element, in bytes.
pub const VALUE_BYTES_MAX: u64 = 64 << 10;

/// Memory of a node for rows that are not merged yet, in MiB: what a node takes.
pub const MEMTABLE_MB: RangeInclusive<u64> = 8..=256;

/// Longest text of a drill in bytes.
pub const DRILL_BYTES_MAX: usize = 64 << 10;

/// Most steps of a drill, with those that a swizzle stands for.
pub const STEPS_MAX: usize = 256;

/// Most expectations of a drill.
pub const EXPECTS_MAX: usize = 64;

/// Shortest interval of a repeated step.
pub const EVERY_MIN: Duration = Duration::from_millis(10);

// A swizzle clogs and unclogs each node once.
const _: () = assert!(STEPS_MAX > 2 * NODES_MAX as usize);
const _: () = assert!(RULES_MAX >= STEPS_MAX);
