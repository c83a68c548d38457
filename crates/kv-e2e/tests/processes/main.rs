//! What is promised, on real processes. Each test holds the machine for itself, so they run one after another.

mod bad_input;
mod broken_streams;
mod counters;
mod damage;
mod formation;
mod full_disk;
mod late_follower;
mod leader_kills;
mod leases;
mod members;
mod pauses;
mod pressure;
mod repair;
mod restarts;
mod rewriting;
