//! Random lives of a replica: writes, pins, merges, crashes and purges in any order, against the model.

use kv_storage::{Checkpoint, CheckpointStep, Pin};
use kv_types::{LogIndex, Nanos};
use proptest::prelude::*;

use crate::node::{Model, Node, chooser, scan_all};

#[derive(Debug, Clone)]
enum Act {
    Apply(u64),
    Pin,
    Unpin(usize),
    Scan(usize),
    Freeze,
    Steps(u8),
    Flush,
    Purge,
    Sweep,
    Crash(u64),
    Kill,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (1..25_u64).prop_map(Act::Apply),
        2 => Just(Act::Pin),
        2 => (0..9_usize).prop_map(Act::Unpin),
        2 => (0..9_usize).prop_map(Act::Scan),
        2 => Just(Act::Freeze),
        4 => (1..9_u8).prop_map(Act::Steps),
        1 => Just(Act::Flush),
        1 => Just(Act::Purge),
        1 => Just(Act::Sweep),
        1 => any::<u64>().prop_map(Act::Crash),
        1 => Just(Act::Kill),
    ]
}

struct Life {
    node: Node,
    model: Model,
    pins: Vec<Pin>,
    checkpoint: Option<Checkpoint>,
}

impl Life {
    fn act(mut self, act: &Act) -> Self {
        match act {
            Act::Apply(count) => self.node.apply(&mut self.model, *count),
            Act::Pin => self.pins.extend(self.node.store.reader().pin(Nanos::default())),
            Act::Unpin(at) if *at < self.pins.len() => drop(self.pins.remove(*at)),
            Act::Scan(at) => {
                if let Some(pin) = self.pins.get(*at) {
                    assert_eq!(&scan_all(pin), self.model.state(pin.index()));
                }
            }
            Act::Freeze => {
                if let Some(checkpoint) = self.node.store.freeze() {
                    self.checkpoint = Some(checkpoint);
                }
            }
            Act::Steps(count) => (0..*count).for_each(|_| self.step()),
            Act::Flush => self.node.store.flush_effects().unwrap(),
            Act::Purge => self.node.store.purge_effects(LogIndex::new(u64::MAX)),
            Act::Sweep => self.node.sweep(),
            Act::Crash(seed) => return self.end(&mut chooser(*seed)),
            Act::Kill => return self.end(&mut |_| 0),
            Act::Unpin(_) => {}
        }
        self
    }

    fn step(&mut self) {
        let Some(checkpoint) = &mut self.checkpoint else { return };
        match checkpoint.step(Nanos::default()).unwrap() {
            CheckpointStep::Again | CheckpointStep::Wait => {}
            CheckpointStep::Wal(op) => self.node.wal.write(op),
            CheckpointStep::Done(done) => {
                drop(self.node.store.merged(done));
                self.checkpoint = None;
            }
        }
    }

    fn end(self, choose: &mut dyn FnMut(usize) -> usize) -> Self {
        let Self { node, model, pins, checkpoint } = self;
        drop((pins, checkpoint));
        let node = node.crash(&model, choose);
        Self { node, model, pins: Vec::new(), checkpoint: None }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_life_agrees_with_the_model(seed in any::<u64>(), acts in prop::collection::vec(act(), 1..60)) {
        let model = Model::new(seed, 16);
        let mut life = Life { node: Node::new(), model, pins: Vec::new(), checkpoint: None };
        for act in &acts {
            life = life.act(act);
        }
        for pin in &life.pins {
            prop_assert_eq!(&scan_all(pin), life.model.state(pin.index()));
        }
        life.node.check(&life.model);
    }
}
