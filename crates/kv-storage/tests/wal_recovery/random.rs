//! Random lives of a WAL: write, crash anywhere, recover, go on. What one small workload per rule cannot show is what
//! many rules do to each other over several lives.

use kv_storage::WalOp;
use kv_storage::WalRecord;
use kv_storage::disk::faulty::{DirLoss, VirtualDisk};
use kv_types::{HardState, LogId, NodeId, ShardId, Term};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};

use super::model::{self, Model, Shard, Step, entry, id, note, op, raft};

const SEEDS: u64 = 150;
const LIVES: usize = 6;
const STEPS: usize = 14;

#[test]
fn random_lives_lose_nothing_acknowledged() {
    for seed in 0..SEEDS {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (mut disk, mut model) = (VirtualDisk::new(), Model::new());
        for life in 0..LIVES {
            (disk, model) = live(&mut rng, disk, model, &format!("seed {seed}, life {life}"));
        }
    }
}

/// One life: opens, checks, writes until the power goes; the disk after it and what it must hold.
fn live(rng: &mut ChaCha8Rng, disk: VirtualDisk, mut model: Model, place: &str) -> (VirtualDisk, Model) {
    disk.power_off_after(rng.random_range(0..70));
    let mut in_flight = model.clone();
    if let Ok((mut wal, recovery)) = model::open(&disk) {
        assert!(model::agrees(&wal, &recovery, &model), "{place}: {recovery:#?}\nexpected {model:#?}");
        for _ in 0..STEPS {
            let step = random_step(rng, &model);
            in_flight = model.clone();
            if let Step::Write(records) = &step {
                records.iter().for_each(|record| model::apply(&mut in_flight, record));
            }
            if model::run(&mut wal, std::slice::from_ref(&step)) == 0 {
                break;
            }
            model.clone_from(&in_flight);
        }
    }
    // The process may die while the machine runs on; then nothing unsynced is lost yet, and what the next start shows
    // must stay. A start that is cut itself has shown nothing, so this one runs on the disk and not on a copy.
    let killed = rng.random_bool(0.2);
    let image = if killed {
        disk.power_on();
        disk
    } else {
        disk.crash(DirLoss::Any, &mut |outcomes: usize| rng.random_range(0..outcomes))
    };
    let looked = if killed { image.clone() } else { image.copy() };
    let (wal, recovery) = model::open(&looked).unwrap_or_else(|error| panic!("{place}: {error}"));
    if model::agrees(&wal, &recovery, &in_flight) {
        return (image, in_flight);
    }
    assert!(model::agrees(&wal, &recovery, &model), "{place}: {recovery:#?}\nexpected {model:#?}");
    (image, model)
}

fn random_step(rng: &mut ChaCha8Rng, model: &Model) -> Step {
    match rng.random_range(0..11) {
        0 => Step::Note,
        1 => Step::Prepare,
        2 => Step::Release,
        3 => Step::HandOut,
        _ => {
            let mut model = model.clone();
            let mut records = Vec::new();
            for _ in 0..rng.random_range(1..4) {
                let shard = rng.random_range(1..4);
                let state = model.get(&ShardId::new(shard)).cloned().unwrap_or_default();
                let record = random_record(rng, shard, &state);
                model::apply(&mut model, &record);
                records.push(record);
            }
            Step::Write(records)
        }
    }
}

/// An entry of the log at or above the base, or the base itself.
fn above_base(rng: &mut ChaCha8Rng, shard: &Shard) -> LogId {
    let base = shard.recovered.base.meta.last;
    let above: Vec<_> =
        shard.entries.iter().map(|entry| entry.id).filter(|id| id.index > base.index).collect();
    if above.is_empty() { base } else { above[rng.random_range(0..above.len())] }
}

fn random_record(rng: &mut ChaCha8Rng, shard: u32, state: &Shard) -> WalRecord {
    let (base, last) = (state.recovered.base.meta.last, state.recovered.last());
    let generation = state.recovered.base.generation.get();
    match rng.random_range(0..12) {
        0 => {
            let at = above_base(rng, state);
            op(shard, WalOp::BaseAt(note(generation, at.term.get(), at.index.get())))
        }
        1 => {
            let below: Vec<_> =
                state.entries.iter().map(|entry| entry.id).filter(|id| id.index <= base.index).collect();
            let upto = if below.is_empty() {
                state.recovered.log_start
            } else {
                below[rng.random_range(0..below.len())]
            };
            op(shard, WalOp::Compact(upto))
        }
        2 if rng.random_bool(0.3) => {
            let at = above_base(rng, state);
            let base = note(generation + 1, at.term.get(), at.index.get());
            op(shard, WalOp::Install { hard: None, base, keep_tail: true })
        }
        3 => {
            let at = above_base(rng, state);
            op(shard, WalOp::Regenerated(note(generation + 1, at.term.get(), at.index.get())))
        }
        4 if rng.random_bool(0.3) => {
            let term = state.recovered.hard.term.get();
            let end = id(term, last.index.get() + rng.random_range(1..50));
            let base = note(generation + 1, end.term.get(), end.index.get());
            op(shard, WalOp::Install { hard: None, base, keep_tail: false })
        }
        _ => random_raft(rng, shard, state, last, base),
    }
}

fn random_raft(rng: &mut ChaCha8Rng, shard: u32, state: &Shard, last: LogId, base: LogId) -> WalRecord {
    let mut term = state.recovered.hard.term.get();
    let hard = (term == 0 || rng.random_bool(0.3)).then(|| {
        term += 1;
        HardState {
            term: Term::new(term),
            vote: Some(NodeId::new(rng.random_range(1..4))),
            ..HardState::default()
        }
    });
    let lowest = base.index.max(state.recovered.log_start.index).next();
    let truncate = (hard.is_some() && lowest <= last.index && rng.random_bool(0.5))
        .then(|| rng.random_range(lowest.get()..=last.index.get()));
    let first = truncate.unwrap_or(last.index.get() + 1);
    let count = rng.random_range(0..4);
    let size = if rng.random_bool(0.15) { 6000 } else { 300 };
    let append = (first..first + count).map(|index| entry(term, index, rng.random_range(0..size))).collect();
    raft(shard, hard, truncate, append)
}
