//! A snapshot whose stream breaks after any chunk, and is resumed while writes and merges go on, is the sender's state.

use std::sync::Arc;

use kv_storage::{Checkpoint, EngineFactory, SnapshotReceiver, SnapshotSource, TwinFactory, WalOp};
use kv_types::LogIndex;

use crate::crashes::chunk_rows;
use crate::node::{Model, Node, SHARD, chooser};

/// More chunks than any stream here has.
const ALL: usize = 1000;

/// A sender that is never idle.
struct Sender {
    node: Node,
    model: Model,
    merge: Option<Checkpoint>,
    source: SnapshotSource,
}

impl Sender {
    /// Of a base at 700, with a merge to 800 begun or not.
    fn new(seed: u64, cursors: usize) -> Self {
        let (mut node, mut model) = (Node::new(), Model::new(seed, 300));
        node.apply(&mut model, 700);
        node.checkpoint();
        node.apply(&mut model, 100);
        let merge = seed.is_multiple_of(2).then(|| node.store.freeze().unwrap());
        let source = node.store.snapshot_source().rewindable(cursors);
        Self { node, model, merge, source }
    }

    /// Some entries are applied, and merged a little; merges begin again and again.
    fn goes_on(&mut self, entries: u64, steps: usize) {
        self.node.apply(&mut self.model, entries);
        for _ in 0..steps {
            let merge = self.merge.take().or_else(|| self.node.store.freeze());
            let Some(mut merge) = merge else { continue };
            let merged = self.node.step(&mut merge);
            self.merge = (!merged).then_some(merge);
        }
        self.node.purge(LogIndex::new(u64::MAX));
    }
}

fn receiver(node: &Node) -> SnapshotReceiver {
    let engines: Arc<dyn EngineFactory> = Arc::<TwinFactory>::clone(&node.engines);
    SnapshotReceiver::new(engines, SHARD, node.wal.base.generation.next()).unwrap()
}

/// The end of the stream is installed in a replica that had something else, and is the sender's state there.
fn installs(receiver: SnapshotReceiver, mut to: Node, sender: Sender) {
    let Sender { mut model, source, .. } = sender;
    let end = source.trailer().unwrap().meta.last.index;
    let received = receiver.finish().unwrap();
    assert_eq!(received.base().meta.last.index, end);
    to.wal.write(WalOp::Install { hard: None, base: received.base().clone(), keep_tail: true });
    let (opened, _) = to.store.install(received).unwrap();
    assert_eq!(opened, model.opened(end));
    to.check(&model);
    let values = model.state(end).values().map(|row| row.value.len());
    let chunks: usize = values.filter(|len| *len > 16_384).map(|len| len.div_ceil(16_384)).sum();
    assert!(chunks > 0, "some values are kept in chunks");
    assert_eq!(chunk_rows(&to), chunks, "chunks that no head names are gone");
    to.apply(&mut model, 20);
    to.checkpoint();
    to.crash(&model, &mut chooser(end.get()));
}

/// Streams until `cut` chunks are taken in and `lost` more are under way, then resumes; whether the stream was so long.
fn cut_and_resumed(seed: u64, cut: u32, lost: u32, busy: (u64, usize)) -> bool {
    let mut sender = Sender::new(seed, ALL);
    let to = Node::new();
    let mut receiver = receiver(&to);
    let mut resumed = false;
    loop {
        let number = receiver.next_number();
        if number == cut && !resumed {
            resumed = true;
            for _ in 0..lost {
                sender.source.next_chunk().unwrap();
                sender.goes_on(busy.0, busy.1);
            }
            assert!(sender.source.rewind(number), "chunk {number}");
        }
        sender.goes_on(busy.0, busy.1);
        match sender.source.next_chunk().unwrap() {
            Some(chunk) => receiver.push(&chunk).unwrap(),
            None => break,
        }
    }
    installs(receiver, to, sender);
    resumed
}

#[test]
fn a_stream_cut_after_any_chunk_goes_on_where_it_was_cut() {
    for (seed, lost, busy) in [(0, 2, (0, 0)), (1, 0, (3, 5)), (2, 3, (3, 5)), (3, 1000, (2, 40))] {
        let cuts = (0..).take_while(|cut| cut_and_resumed(seed, *cut, lost, busy)).count();
        assert!(cuts >= 4, "{cuts} cuts");
    }
}

#[test]
fn a_stream_that_breaks_again_and_again_comes_to_its_end() {
    for seed in 0..4 {
        let mut choose = chooser(seed);
        let mut sender = Sender::new(seed, ALL);
        let to = Node::new();
        let mut receiver = receiver(&to);
        let mut breaks = 0;
        loop {
            // Up to three chunks are lost, or arrive.
            let (given, taken) = (choose(4), choose(4));
            let mut ended = false;
            for at in 0..given.max(1) {
                sender.goes_on(2, 7);
                let Some(chunk) = sender.source.next_chunk().unwrap() else {
                    ended = true;
                    break;
                };
                if at < taken {
                    receiver.push(&chunk).unwrap();
                }
            }
            if ended && sender.source.rewind(receiver.next_number()) {
                match sender.source.next_chunk().unwrap() {
                    None => break,
                    Some(chunk) => receiver.push(&chunk).unwrap(),
                }
            }
            breaks += u32::from(!ended);
            assert!(sender.source.rewind(receiver.next_number()));
        }
        assert!(breaks >= 3);
        installs(receiver, to, sender);
    }
}

#[test]
fn a_source_goes_back_as_far_as_it_keeps_cursors_and_never_forward() {
    let mut sender = Sender::new(2, 3);
    let to = Node::new();
    let mut receiver = receiver(&to);
    for _ in 0..4 {
        receiver.push(&sender.source.next_chunk().unwrap().unwrap()).unwrap();
    }
    let source = &mut sender.source;
    assert!(!source.rewind(0), "four chunks back");
    assert!(!source.rewind(5), "it was never given out");
    // Chunks 1, 2 and 3 are remembered; from there on nothing later is.
    assert!(source.rewind(4) && source.rewind(2));
    assert!(!source.rewind(3) && !source.rewind(0));
    let again: Vec<_> = (0..2).map(|_| source.next_chunk().unwrap().unwrap()).collect();
    assert!(receiver.push(&again[0]).is_err(), "the receiver has it already, and says so");
    assert_eq!(receiver.next_number(), 4);
    while let Some(chunk) = sender.source.next_chunk().unwrap() {
        receiver.push(&chunk).unwrap();
    }
    installs(receiver, to, sender);
}

#[test]
fn a_source_that_keeps_no_cursors_goes_nowhere() {
    let mut source = Sender::new(1, 0).source;
    source.next_chunk().unwrap();
    assert!(source.rewind(1) && !source.rewind(0));
}
