//! The engine's cache is not much larger than it is told to be, however long the rows are. The process's own memory is
//! looked at, so this is a binary of its own.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its functions too")]

use std::fs;
use std::ops::Bound;
use std::path::Path;

use kv_storage::disk::RealDisk;
use kv_storage::{EngineFactory, SledFactory};
use kv_types::limits::CHUNK_BYTES;

const MIB: u64 = 1 << 20;

/// 188 MiB of chunks.
const CHUNKS: u64 = 12_000;

/// What sled does not count, a mebibyte that it does, and what it throws away a little later.
const GROWTH_MAX: u64 = 112 * MIB;

fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn long_rows_do_not_stay_in_memory_beyond_the_cache() {
    let root = tempfile::tempdir().unwrap();
    let factory = SledFactory::new(RealDisk::new(root.path()).unwrap(), MIB);
    let engine = factory.open(Path::new("shard-1/gen-0"), true).unwrap();
    let before = memory();
    let chunk = vec![7; CHUNK_BYTES];
    for n in 0..CHUNKS {
        // In no order, as keys of users are.
        engine.insert(&(n * 7919 % CHUNKS).to_be_bytes(), &chunk).unwrap();
    }
    let written = memory().saturating_sub(before);
    assert_eq!(engine.scan(Bound::Unbounded, Bound::Unbounded).filter(Result::is_ok).count() as u64, CHUNKS);
    let read = memory().saturating_sub(before);
    eprintln!("{} MiB more after writing, {} after reading", written / MIB, read / MIB);
    assert!(written.max(read) < GROWTH_MAX, "{} MiB, {} MiB", written / MIB, read / MIB);
}
