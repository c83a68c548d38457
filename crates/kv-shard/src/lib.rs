//! One replica of one shard: Raft, storage and state joined
