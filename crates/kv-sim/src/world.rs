//! What the invariants look at: every replica as the outside can see it, and what has just been seen.

use std::collections::BTreeMap;

use kv_raft::{LeaseUpdate, Message};
use kv_state::StateHash;
use kv_state::txn::{Known, Transaction};
use kv_storage::WalOp;
use kv_types::{
    Body, Entry, Key, LogId, LogIndex, Membership, Nanos, NodeId, RequestId, Revision, ShardId, Term, TxnId,
};

use crate::clock::NodeClock;
use crate::held::Held;

/// One replica, told from what it handed out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ghost {
    /// Whether its process runs.
    pub(crate) up: bool,
    /// Its hard state and log in memory.
    pub(crate) memory: Held,
    /// Its hard state and log on disk.
    pub(crate) disk: Held,
    /// The term it leads.
    pub(crate) leads: Option<Term>,
    /// What it knows to be committed, in this life.
    pub(crate) commit: LogIndex,
    /// What it has applied, in this life.
    pub(crate) applied: LogIndex,
    /// The lease that its readers see.
    pub(crate) lease: LeaseUpdate,
    /// The memberships in its log, by index, with the one below the log at its start.
    pub(crate) configs: BTreeMap<LogIndex, Membership>,
}

/// One group.
#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    pub(crate) replicas: BTreeMap<NodeId, Ghost>,
    /// What some replica knew to be committed, from index 1.
    pub(crate) committed: Vec<LogId>,
    /// The term of the replica that knew it first, its leader: the term it was committed in.
    pub(crate) committed_in: Vec<Term>,
    /// Every entry that was ever in a log.
    pub(crate) entries: BTreeMap<LogId, Entry>,
}

/// Everything.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    /// True time.
    pub(crate) now: Nanos,
    pub(crate) clocks: BTreeMap<NodeId, NodeClock>,
    pub(crate) groups: BTreeMap<ShardId, Group>,
    /// The content of every transaction that a client has ever wanted committed.
    pub(crate) txns: BTreeMap<TxnId, Transaction>,
    /// The shortest election timeout, which every voter withholds its vote for.
    pub(crate) election_timeout: std::time::Duration,
}

/// What was seen of one replica.
#[derive(Debug)]
pub(crate) enum Seen<'a> {
    /// It starts, with this on its disk.
    Started(&'a Held, &'a [(LogIndex, Membership)]),
    /// Its process ends.
    Gone,
    /// Its rows are damaged: what is applied goes back to the base.
    Lost(LogIndex),
    /// It handed out a record; it leads this term before and after.
    Wrote(&'a WalOp, Option<Term>),
    /// A record is durable.
    Durable(&'a WalOp),
    /// It leads this term, or none.
    Leads(Option<Term>),
    /// It sent a message.
    Sent(&'a Message),
    /// It took a message.
    Took(&'a Message),
    /// It published a lease.
    Lease(LeaseUpdate),
    /// It knows that so much is committed.
    Commit(LogIndex),
    /// It applied an entry, and its rows have this hash.
    Applied(LogId, StateHash),
    /// The membership of this entry is in force.
    InForce(LogIndex),
    /// A client asks it for a write.
    Asked(&'a [u8]),
    /// It answered a write that this entry made.
    Answered(LogId),
    /// It applied an attempt of a request, and that took effect, or not.
    Attempted(LogId, &'a Attempt),
    /// A client learns, or claims to know, what became of a request.
    Told(RequestId, Fate),
    /// What a counter was after an entry, when all requests are over.
    Counted(&'a Key, i64, LogIndex),
    /// A client wants a transaction committed.
    Begun(TxnId, &'a Transaction),
    /// It applied a step of a transaction.
    Stepped(LogId, &'a TxnStep),
    /// It tells whether a transaction is committed.
    Outcome(TxnId, bool),
    /// Nothing is under way any more.
    AtRest,
}

/// A step of a transaction, as it was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TxnStep {
    pub(crate) txn: TxnId,
    /// What the rows say of the decision, after the step.
    pub(crate) known: Known,
    /// Whether its entry wrote a row that the transaction is to write.
    pub(crate) took_effect: bool,
}

/// An attempt of a request, as it was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) request: RequestId,
    /// The counter that it is about, and what its effect adds; `None` for a settling.
    pub(crate) adds: Option<(Key, i64)>,
    /// Whether its entry wrote the counter's row.
    pub(crate) took_effect: bool,
}

/// What became of a request, as far as its client will ever know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It was applied, by the entry of this revision.
    Applied(Revision),
    /// It was not applied, and never will be.
    NotApplied,
    /// The client has given up finding out.
    Unknown,
}

/// What was seen, and of whom.
#[derive(Debug)]
pub(crate) struct Event<'a> {
    pub(crate) node: NodeId,
    pub(crate) shard: ShardId,
    pub(crate) seen: Seen<'a>,
}

impl Group {
    /// The replica of a node.
    pub(crate) fn replica(&self, node: NodeId) -> Option<&Ghost> {
        self.replicas.get(&node)
    }

    /// The last entry that was committed in a term before this one. Its own term may be much older.
    pub(crate) fn last_committed_before(&self, term: Term) -> Option<LogId> {
        let at = self.committed_in.iter().rposition(|in_term| *in_term < term)?;
        self.committed.get(at).copied()
    }

    /// The term in which an entry was committed, if it was.
    pub(crate) fn committed_in(&self, id: LogId) -> Option<Term> {
        let at = usize::try_from(id.index.get().checked_sub(1)?).ok()?;
        self.committed_in.get(at).copied().filter(|_| self.committed_at(id.index) == Some(id))
    }

    /// The committed entry at an index, if some replica knew it.
    pub(crate) fn committed_at(&self, index: LogIndex) -> Option<LogId> {
        let at = usize::try_from(index.get().checked_sub(1)?).ok()?;
        self.committed.get(at).copied()
    }
}

impl Ghost {
    /// The membership in force: the newest in the log.
    pub(crate) fn membership(&self) -> (LogIndex, Membership) {
        let newest = self.configs.last_key_value();
        newest.map(|(index, membership)| (*index, membership.clone())).unwrap_or_default()
    }

    fn take(&mut self, op: &WalOp) {
        self.memory.take(op);
        match op {
            WalOp::Raft { truncate_from, append, .. } => {
                if let Some(from) = truncate_from {
                    self.configs.retain(|index, _| index < from);
                }
                for entry in append {
                    if let Body::Config(membership) = &entry.body {
                        self.configs.insert(entry.id.index, membership.clone());
                    }
                }
            }
            WalOp::Install { base, keep_tail, .. } => {
                let last = base.meta.last.index;
                self.configs.retain(|index, _| *keep_tail && *index > last);
                self.configs.insert(last, base.meta.membership.clone());
            }
            WalOp::Compact(_)
            | WalOp::MergeBegin(_)
            | WalOp::BaseAt(_)
            | WalOp::Regenerated(_)
            | WalOp::Damaged(_) => {}
        }
    }
}

impl World {
    /// The group of a shard.
    pub(crate) fn group(&mut self, shard: ShardId) -> &mut Group {
        self.groups.entry(shard).or_default()
    }

    /// A replica.
    pub(crate) fn ghost(&mut self, node: NodeId, shard: ShardId) -> &mut Ghost {
        self.group(shard).replicas.entry(node).or_default()
    }

    /// The clock of a node.
    pub(crate) fn clock_of(&self, node: NodeId) -> NodeClock {
        self.clocks.get(&node).copied().unwrap_or_default()
    }

    /// What the clock of a node shows.
    pub(crate) fn clock(&self, node: NodeId) -> Nanos {
        self.clock_of(node).at(self.now)
    }

    /// Takes note of what was seen, after every invariant has looked at it.
    pub(crate) fn note(&mut self, event: &Event<'_>) {
        let group = self.group(event.shard);
        let ghost = group.replicas.entry(event.node).or_default();
        match &event.seen {
            Seen::Started(found, configs) => {
                *ghost = Ghost {
                    up: true,
                    memory: (*found).clone(),
                    disk: (*found).clone(),
                    configs: configs.iter().cloned().collect(),
                    ..Ghost::default()
                };
            }
            Seen::Gone => {
                ghost.up = false;
                ghost.leads = None;
                ghost.lease = LeaseUpdate::default();
            }
            Seen::Lost(base) => ghost.applied = *base,
            Seen::Wrote(op, _) => {
                ghost.take(op);
                if let WalOp::Raft { append, .. } = op {
                    for entry in append {
                        group.entries.entry(entry.id).or_insert_with(|| entry.clone());
                    }
                }
            }
            Seen::Durable(op) => ghost.disk.take(op),
            Seen::Leads(term) => ghost.leads = *term,
            Seen::Lease(lease) => ghost.lease = *lease,
            Seen::Commit(index) => {
                ghost.commit = *index;
                for known in group.committed.len() as u64 + 1..=index.get() {
                    let Some(id) = ghost.memory.at(LogIndex::new(known)) else { break };
                    group.committed.push(id);
                    group.committed_in.push(ghost.memory.hard.term);
                }
            }
            Seen::Applied(id, _) => ghost.applied = id.index,
            Seen::Begun(name, txn) => {
                self.txns.insert(*name, (*txn).clone());
            }
            Seen::Sent(_)
            | Seen::Took(_)
            | Seen::InForce(_)
            | Seen::Asked(_)
            | Seen::Answered(_)
            | Seen::Attempted(..)
            | Seen::Told(..)
            | Seen::Counted(..)
            | Seen::Stepped(..)
            | Seen::Outcome(..)
            | Seen::AtRest => {}
        }
    }
}
