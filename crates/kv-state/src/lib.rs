//! A shard's replicated state machine, pure and deterministic
