//! What is promised, on real processes. Each test holds the machine for itself, so they run one after another.

mod formation;
mod leader_kills;
mod pauses;
mod restarts;
