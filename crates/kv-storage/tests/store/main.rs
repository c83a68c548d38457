//! The shard store against a model, through crashes at every step, on the twin and on sled itself.

mod checkpoints;
mod crashes;
mod images;
mod model;
mod node;
mod pins;
mod snapshots;
