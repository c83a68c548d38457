//! Random walks: cores under loss, doubling, reordering, crashes with whatever prefix of the writes was durable, and
//! snapshots. After every event the oracle looks at all of them; in the end the group must come to rest in agreement.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    dead_code,
    reason = "a test may panic; the harness is shared"
)]

#[path = "harness/clock.rs"]
mod clock;
#[path = "harness/cluster.rs"]
mod cluster;
#[path = "harness/oracle.rs"]
mod oracle;
#[path = "harness/walker.rs"]
mod walker;

use walker::{Met, Walk};

fn walks(seeds: std::ops::Range<u64>) {
    let mut met = Met::default();
    let count = usize::try_from(seeds.end - seeds.start).unwrap();
    for seed in seeds {
        let result = std::panic::catch_unwind(|| Walk::new(seed).run(2000));
        match result {
            Ok(one) => met.add(&one),
            Err(cause) => panic!("seed {seed} fails: {:?}", cause.downcast_ref::<String>()),
        }
    }
    // A walk that does nothing proves nothing.
    let rare = met.applied < 50 * count || met.elections < 2 * count || met.leases < 50 * count;
    assert!(
        !rare && met.changes * 2 > count && met.transfers > count,
        "too little in {count} walks: {met:?}"
    );
}

#[test]
fn safety_holds_on_walks_a() {
    walks(0..30);
}

#[test]
fn safety_holds_on_walks_b() {
    walks(1000..1030);
}

#[test]
fn a_seed_fixes_the_walk() {
    assert_eq!(Walk::new(7).run(1000), Walk::new(7).run(1000));
}
