//! What the clients were told, compared with what the groups did: a model of the state machine answers every call once
//! more.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kv_shard::{WriteFailure, Written};
use kv_state::gate::Found;
use kv_state::sessions::{Dead, SessionBatch};
use kv_state::txn::Known;
use kv_state::{Answer, Command, Opened, StateHash};
use kv_types::{
    Body, ClusterTime, Entry, Lamport, LogId, LogIndex, Nanos, NodeId, Outcome, Request, Row, RowKey,
    ShardId, Space,
};

use crate::model::Model;
use crate::violation::{Holds, hold};

/// What a client asked for.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    Write(Bytes),
    Read(RowKey),
    /// What is known of a request.
    Outcome(Request),
    /// Which of these sessions are dead; a question to the meta group.
    Dead(SessionBatch),
    /// What is known of a transaction.
    Known(kv_txn::Named),
    /// Whether the rows may be read.
    Confirm,
}

/// What a look at system rows has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Looked {
    Outcome(Found),
    Dead(Dead),
    Known(Known),
    Confirmed,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    pub(crate) begun: Nanos,
    /// The last entry that some client knew of when the call began.
    pub(crate) floor: LogIndex,
    pub(crate) end: Option<End>,
    /// The row that was read, or what the write was answered.
    pub(crate) row: Option<Row>,
    pub(crate) answer: Option<Answer>,
    pub(crate) looked: Option<Looked>,
}

/// An applied entry.
#[derive(Clone, Debug)]
struct Fact {
    id: LogId,
    hash: StateHash,
    /// The command, and what the model answers to it.
    command: Option<(Bytes, Answer)>,
}

/// One shard, as the group must agree on it.
#[derive(Debug, Default)]
struct Shard {
    /// Applied entries, from the first.
    facts: Vec<Fact>,
    stamp: Lamport,
    model: Model,
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
    /// Calls without an end, by node.
    open: BTreeMap<NodeId, BTreeSet<usize>>,
    /// Calls that have ended since somebody last looked.
    pub(crate) ended: Vec<usize>,
    /// What the model says is left aside: a bug is planted that has to be found by what is promised, not by a prediction.
    is_blind: bool,
}

impl Oracle {
    /// Nothing was asked yet.
    pub(crate) fn new(is_blind: bool) -> Self {
        Self { is_blind, ..Self::default() }
    }

    fn shard(&mut self, shard: ShardId) -> &mut Shard {
        self.shards.entry(shard).or_default()
    }

    /// A client begins a call now; its number.
    pub(crate) fn begin(&mut self, now: Nanos, (node, shard): (NodeId, ShardId), ask: Ask) -> usize {
        let floor = self.shard(shard).known;
        self.calls.push(Call {
            shard,
            node,
            ask,
            begun: now,
            floor,
            end: None,
            row: None,
            answer: None,
            looked: None,
        });
        let call = self.calls.len() - 1;
        self.open.entry(node).or_default().insert(call);
        call
    }

    /// A call.
    pub(crate) fn call(&self, call: usize) -> &Call {
        self.calls.get(call).expect("calls are numbered by the oracle")
    }

    fn end(&mut self, number: usize, end: End) -> Result<Call, crate::Violation> {
        let call = self.calls.get_mut(number).expect("calls are numbered by the oracle");
        hold!(call.end.is_none(), "answers", "{call:?} is answered again: {end:?}");
        call.end = Some(end);
        self.open.entry(call.node).or_default().remove(&number);
        self.ended.push(number);
        Ok(call.clone())
    }

    /// The node of these calls is gone.
    pub(crate) fn node_gone(&mut self, node: NodeId) {
        for number in self.open.remove(&node).unwrap_or_default() {
            if let Some(call) = self.calls.get_mut(number) {
                call.end = Some(End::Broken);
            }
            self.ended.push(number);
        }
    }

    /// A replica stands at `id` with this state hash, by this entry: all replicas apply the same entries to the same
    /// end.
    pub(crate) fn applied(
        &mut self,
        node: NodeId,
        shard: ShardId,
        (id, hash): (LogId, StateHash),
        entry: Option<&Entry>,
    ) -> Holds {
        let known = self.shard(shard);
        let Some(at) = id.index.get().checked_sub(1).and_then(|at| usize::try_from(at).ok()) else {
            hold!((id, hash) == (LogId::ZERO, StateHash::EMPTY), "answers", "{node} {shard}: {id} {hash:?}");
            return Ok(());
        };
        if at == known.facts.len() {
            known.first_applied(id, hash, entry)?;
        }
        let fact = known.facts.get(at).map(|fact| (fact.id, fact.hash));
        hold!(
            fact == Some((id, hash)),
            "state-machine-safety",
            "{node} {shard}: {id} {hash:?} against {fact:?}"
        );
        Ok(())
    }

    /// A write is answered.
    pub(crate) fn written(&mut self, number: usize, result: Result<Written, WriteFailure>) -> Holds {
        let end = match &result {
            Ok(written) => End::Written(written.id),
            Err(failure) => End::Failed(*failure),
        };
        let Call { shard, ask, .. } = self.end(number, end)?;
        let Ask::Write(command) = ask else {
            hold!(false, "answers", "call {number}: a read was answered as a write");
            return Ok(());
        };
        match result {
            Ok(written) => {
                let at = usize::try_from(written.id.index.get()).unwrap_or(usize::MAX).wrapping_sub(1);
                let is_blind = self.is_blind;
                let known = self.shard(shard);
                let mut fact = known.facts.get(at).map(|fact| (fact.id, fact.command.clone()));
                if let Some((_, Some((_, answer)))) = fact.as_mut().filter(|_| is_blind) {
                    *answer = written.answer.clone();
                }
                let told = Some((written.id, Some((command, written.answer.clone()))));
                hold!(fact == told, "answers", "{shard}: {told:?} was answered, {fact:?} was done");
                known.known = known.known.max(written.id.index);
                if let Some(call) = self.calls.get_mut(number) {
                    call.answer = Some(written.answer);
                }
            }
            Err(failure) if failure.outcome() == Outcome::NotApplied && is_unique(&command) => {
                let known = self.shard(shard);
                let did = |fact: &&Fact| fact.command.as_ref().is_some_and(|(done, _)| *done == command);
                let done = known.facts.iter().rev().find(did);
                hold!(done.is_none(), "answers", "{shard}: {failure}, yet {done:?} did it");
                known.denied.insert(command);
            }
            Err(_) => {}
        }
        Ok(())
    }

    /// A read is answered: it shows the state after `applied`, which holds all that was known when it began.
    pub(crate) fn read(&mut self, number: usize, applied: LogIndex, row: Option<&Row>) -> Holds {
        let Call { shard, ask, floor, node, .. } = self.end(number, End::Read(applied))?;
        let Ask::Read(key) = ask else {
            hold!(false, "answers", "call {number}: a write was answered as a read");
            return Ok(());
        };
        let name = "linearisability";
        hold!(applied >= floor, name, "{shard}: a read of {applied} on {node} began after {floor} was known");
        let is_blind = self.is_blind;
        let known = self.shard(shard);
        let should = known.model.row(&key, applied);
        hold!(
            is_blind || should == row,
            "answers",
            "{shard}: {key:?} is {row:?} at {applied}, not {should:?}"
        );
        known.known = known.known.max(applied);
        if let Some(call) = self.calls.get_mut(number) {
            call.row = row.cloned();
        }
        Ok(())
    }

    /// A look at system rows is answered: it shows the state after `applied`, which holds all that was known when it
    /// began.
    pub(crate) fn looked(&mut self, number: usize, applied: LogIndex, looked: Looked) -> Holds {
        let Call { shard, floor, node, .. } = self.end(number, End::Read(applied))?;
        let name = "linearisability";
        hold!(applied >= floor, name, "{shard}: a look at {applied} on {node} began after {floor} was known");
        let known = self.shard(shard);
        known.known = known.known.max(applied);
        if let Some(call) = self.calls.get_mut(number) {
            call.looked = Some(looked);
        }
        Ok(())
    }

    /// A read found no leader.
    pub(crate) fn read_failed(&mut self, number: usize) -> Holds {
        self.end(number, End::NoLeader).map(|_| ())
    }

    /// All rows of a replica that stands at `applied`.
    pub(crate) fn rows(
        &mut self,
        node: NodeId,
        shard: ShardId,
        applied: LogIndex,
        rows: &BTreeMap<RowKey, Row>,
    ) -> Holds {
        let is_blind = self.is_blind;
        let known = self.shard(shard);
        let should = known.model.rows(applied);
        let same = is_blind || rows.iter().filter(|(key, _)| key.space() == Space::User).eq(&should);
        hold!(same, "rows", "{node} {shard}: rows at {applied}: {rows:?}, not {should:?}");
        let hash = rows.iter().fold(StateHash::EMPTY, |hash, (key, row)| hash.with(key, &row.head));
        let at = usize::try_from(applied.get()).unwrap_or(usize::MAX);
        let fact = at.checked_sub(1).and_then(|at| known.facts.get(at)).map(|fact| fact.hash);
        let should = fact.unwrap_or(StateHash::EMPTY);
        hold!(hash == should, "rows", "{node} {shard}: the hash of the rows at {applied}");
        Ok(())
    }

    /// How many entries were applied.
    pub(crate) fn applied_len(&self) -> usize {
        self.shards.values().map(|shard| shard.facts.len()).sum()
    }
}

/// Whether nobody may ask for this twice in the same words. A removal may come again, and so may what is carried out
/// once however often it is asked for, and what concerns sessions.
pub(crate) fn is_unique(command: &Bytes) -> bool {
    !matches!(
        Opened::decode(command.clone()),
        Ok(Opened::Plain(Command::Delete { .. }) | Opened::Timed { .. } | Opened::Once { .. })
    )
}

/// An entry's command as it was asked for, before a leader stamped it.
pub(crate) fn as_asked(command: &Bytes) -> Bytes {
    kv_state::stamp(command.clone(), ClusterTime::ZERO)
}

impl Shard {
    fn first_applied(&mut self, id: LogId, hash: StateHash, entry: Option<&Entry>) -> Holds {
        let Some(entry) = entry else {
            hold!(false, "validity", "{id} was in no log");
            return Ok(());
        };
        let stamp = entry.stamp;
        hold!(stamp > self.stamp, "stamps", "{id} has the stamp {stamp}, after {}", self.stamp);
        self.stamp = stamp;
        let mut done = None;
        if let Body::Command(command) = &entry.body {
            hold!(!self.denied.contains(command), "answers", "{id} was said not to have happened");
            let decoded = Opened::decode(command.clone());
            let Ok(decoded) = decoded else {
                hold!(false, "answers", "{id} is no command: {decoded:?}");
                return Ok(());
            };
            done = Some((as_asked(command), self.model.apply(id.index, stamp, &decoded)));
        }
        self.facts.push(Fact { id, hash, command: done });
        Ok(())
    }
}
