//! What is promised, on real processes. Each test holds the machine for itself, so they run one after another.

mod bad_input;
mod broken_streams;
mod counters;
mod damage;
mod dropped_clients;
mod examples;
mod formation;
mod full_disk;
mod late_follower;
mod leader_kills;
mod leases;
mod many_sessions;
mod members;
mod meta_leader;
mod outcomes;
mod pauses;
mod pressure;
mod recorded_answers;
mod repair;
mod request_ids;
mod restarts;
mod rewriting;
mod transactions;
mod txn_ctl;
