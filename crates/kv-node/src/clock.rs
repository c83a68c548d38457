//! The node's own clock.

use kv_types::Nanos;
use rustix::time::{ClockId, clock_gettime};

/// CLOCK_BOOTTIME now: it counts suspend, which `std::time::Instant` does not, and it never runs back.
pub(crate) fn now() -> Nanos {
    read(ClockId::Boottime)
}

/// CLOCK_REALTIME now: it may be set, and so tells what the other clock has missed.
pub(crate) fn realtime() -> Nanos {
    read(ClockId::Realtime)
}

fn read(clock: ClockId) -> Nanos {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    Nanos::new(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}
