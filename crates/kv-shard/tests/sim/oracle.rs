//! What must hold whatever happens, told from what the replicas and the clients have seen.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kv_shard::{WriteFailure, Written};
use kv_state::{Answer, Command, StateHash};
use kv_types::{Body, Entry, Lamport, LogId, LogIndex, NodeId, Outcome, Row, RowKey, ShardId, Term};

use crate::model::Model;

/// What a client asked for.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    Write(Bytes),
    Read(RowKey),
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Written(LogId),
    Failed(WriteFailure),
    Read(LogIndex),
    NoLeader,
    /// The node went away: the client knows nothing.
    Broken,
}

/// One call of a client.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) shard: ShardId,
    pub(crate) node: NodeId,
    pub(crate) ask: Ask,
    /// The last entry that some client knew of when the call began.
    pub(crate) floor: LogIndex,
    pub(crate) end: Option<End>,
}

/// An applied entry.
#[derive(Clone, Debug)]
struct Fact {
    id: LogId,
    hash: StateHash,
    answer: Option<Answer>,
}

/// One shard, as the group must agree on it.
#[derive(Debug, Default)]
struct Shard {
    /// Every entry any replica ever had in its log.
    entries: BTreeMap<LogId, Entry>,
    /// Applied entries, from the first.
    facts: Vec<Fact>,
    stamp: Lamport,
    model: Model,
    leaders: BTreeMap<Term, NodeId>,
    /// The last entry that an answer to a client rests on.
    known: LogIndex,
    /// Commands whose write was said not to have happened.
    denied: BTreeSet<Bytes>,
}

/// All shards and all calls.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    shards: BTreeMap<ShardId, Shard>,
    pub(crate) calls: Vec<Call>,
}

impl Oracle {
    fn shard(&mut self, shard: ShardId) -> &mut Shard {
        self.shards.entry(shard).or_default()
    }

    /// A client begins a call; its number.
    pub(crate) fn begin(&mut self, node: NodeId, shard: ShardId, ask: Ask) -> usize {
        let floor = self.shard(shard).known;
        self.calls.push(Call { shard, node, ask, floor, end: None });
        self.calls.len() - 1
    }

    fn end(&mut self, call: usize, end: End) -> Call {
        let call = &mut self.calls[call];
        assert_eq!(call.end, None, "{call:?} is answered again: {end:?}");
        call.end = Some(end);
        call.clone()
    }

    /// The node of these calls is gone.
    pub(crate) fn node_gone(&mut self, node: NodeId) {
        for call in self.calls.iter_mut().filter(|call| call.node == node && call.end.is_none()) {
            call.end = Some(End::Broken);
        }
    }

    /// A replica puts entries into its log. One id names one entry (Log Matching), and stamps rise along the log.
    pub(crate) fn appended(&mut self, node: NodeId, shard: ShardId, entries: &[Entry]) {
        let known = self.shard(shard);
        for pair in entries.windows(2) {
            assert!(pair[0].stamp < pair[1].stamp, "{node} {shard}: stamps {pair:?}");
        }
        for entry in entries {
            assert_ne!(entry.stamp, Lamport::ZERO, "{node} {shard}: {} has no stamp", entry.id);
            let old = known.entries.entry(entry.id).or_insert_with(|| entry.clone());
            assert_eq!(old, entry, "{node} {shard}: {} names two entries", entry.id);
        }
    }

    /// Election Safety: one leader a term.
    pub(crate) fn leads(&mut self, node: NodeId, shard: ShardId, term: Term) {
        let leader = *self.shard(shard).leaders.entry(term).or_insert(node);
        assert_eq!(leader, node, "{shard}: two nodes lead {term}");
    }

    /// A replica stands at `id` with this state hash: all replicas apply the same entries to the same end.
    pub(crate) fn applied(&mut self, node: NodeId, shard: ShardId, id: LogId, hash: StateHash) {
        let known = self.shard(shard);
        let Some(at) = usize::try_from(id.index.get()).unwrap().checked_sub(1) else {
            assert_eq!((id, hash), (LogId::ZERO, StateHash::EMPTY));
            return;
        };
        if at == known.facts.len() {
            known.first_applied(id, hash);
        }
        let fact = known.facts.get(at).unwrap_or_else(|| panic!("{node} {shard}: {id} skips entries"));
        assert_eq!((fact.id, fact.hash), (id, hash), "{node} {shard} differs (State Machine Safety)");
    }

    /// A write is answered.
    pub(crate) fn written(&mut self, call: usize, result: Result<Written, WriteFailure>) {
        let end = match &result {
            Ok(written) => End::Written(written.id),
            Err(failure) => End::Failed(*failure),
        };
        let Call { shard, ask, .. } = self.end(call, end);
        let Ask::Write(command) = ask else { panic!("a read was answered as a write") };
        let known = self.shard(shard);
        match result {
            Ok(Written { id, stamp, answer }) => {
                let fact = &known.facts[usize::try_from(id.index.get()).unwrap() - 1];
                assert_eq!((fact.id, fact.answer.as_ref()), (id, Some(&answer)), "{shard}: answer");
                let entry = &known.entries[&id];
                assert_eq!((&entry.body, entry.stamp), (&Body::Command(command), stamp), "{shard}: {id}");
                known.known = known.known.max(id.index);
            }
            Err(failure) if failure.outcome() == Outcome::NotApplied && is_unique(&command) => {
                let done = known.facts.iter().find(
                    |fact| matches!(&known.entries[&fact.id].body, Body::Command(other) if *other == command),
                );
                assert!(done.is_none(), "{shard}: {failure}, yet {done:?} did it");
                known.denied.insert(command);
            }
            Err(_) => {}
        }
    }

    /// A read is answered: it shows the state after `applied`, which holds all that was known when it began.
    pub(crate) fn read(&mut self, call: usize, applied: LogIndex, row: Option<&Row>) {
        let Call { shard, ask, floor, .. } = self.end(call, End::Read(applied));
        let Ask::Read(key) = ask else { panic!("a write was answered as a read") };
        assert!(applied >= floor, "{shard}: a read of {applied} began after {floor} was known");
        let known = self.shard(shard);
        assert_eq!(known.model.row(&key, applied), row, "{shard}: {key:?} at {applied}");
        known.known = known.known.max(applied);
    }

    /// A read found no leader.
    pub(crate) fn read_failed(&mut self, call: usize) {
        self.end(call, End::NoLeader);
    }

    /// All rows of a replica that stands at `applied`.
    pub(crate) fn rows(
        &mut self,
        node: NodeId,
        shard: ShardId,
        applied: LogIndex,
        rows: &BTreeMap<RowKey, Row>,
    ) {
        let known = self.shard(shard);
        assert_eq!(&known.model.rows(applied), rows, "{node} {shard}: rows at {applied}");
        let hash = rows.iter().fold(StateHash::EMPTY, |hash, (key, row)| hash.with(key, &row.head));
        let at = usize::try_from(applied.get()).unwrap();
        let expected = at.checked_sub(1).map_or(StateHash::EMPTY, |at| known.facts[at].hash);
        assert_eq!(hash, expected, "{node} {shard}: the hash of the rows at {applied}");
    }

    /// How many entries were applied, and how many leaders there were.
    pub(crate) fn work(&self) -> (usize, usize) {
        let sum = |count: fn(&Shard) -> usize| self.shards.values().map(count).sum();
        (sum(|shard| shard.facts.len()), sum(|shard| shard.leaders.len()))
    }
}

/// Only a plain removal may be asked for twice in the same words.
fn is_unique(command: &Bytes) -> bool {
    !matches!(Command::decode(command.clone()), Ok(Command::Delete { .. }))
}

impl Shard {
    fn first_applied(&mut self, id: LogId, hash: StateHash) {
        let entry = self.entries.get(&id).unwrap_or_else(|| panic!("{id} was in no log"));
        assert!(entry.stamp > self.stamp, "{id} has the stamp {}, after {}", entry.stamp, self.stamp);
        self.stamp = entry.stamp;
        let mut answer = None;
        if let Body::Command(command) = &entry.body {
            assert!(!self.denied.contains(command), "{id} was said not to have happened");
            let command = Command::decode(command.clone()).unwrap();
            answer = Some(self.model.apply(id.index, entry.stamp, &command));
        }
        self.facts.push(Fact { id, hash, answer });
    }
}
