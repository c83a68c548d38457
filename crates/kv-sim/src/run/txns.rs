//! Transactions: each node is what the daemon is, with managers, keepers and readers of `kv-txn`; clients with sessions
//! commit through whoever leads the anchor's shard, and ask again under the same id until they know.

use std::collections::BTreeMap;
use std::time::Duration;

use kv_types::{Nanos, NodeId, ShardId, Term};
use rand::RngExt;

use super::{Happening, Run};
use crate::party::{Caller, Reply};
use crate::report::TransactionsTally;
use crate::scenario::TransactionsPlan;

mod calls;
mod clients;
mod end;
mod keeper;
mod late;
mod ledger;
mod requests;
mod resting;
mod sessions;
mod work;

pub(super) use calls::{Letter, Origin};
use clients::Client;
use ledger::Ledger;
use resting::Resting;

/// How often a client looks after its session and its work.
const PULSE_US: u64 = 20_000;

/// The first look of a keeper comes within this time, and then every so often.
const KEEP_US: u64 = 200_000;

/// What is to be done at a time.
#[derive(Debug)]
pub(super) enum Deed {
    /// A client looks after its session, and begins something.
    Pulse(usize),
    /// A client has no answer yet to an attempt.
    Again(Caller),
    /// A letter arrives.
    Letter(Letter),
    /// A party gets an answer, in this life of its node, unless it has another one.
    Answer(NodeId, u64, u64, Reply),
    /// Something arrives that a client has asked for some time ago.
    Late,
    /// The keeper of a node looks after what is left.
    Keep(NodeId),
    /// Parts to be ended have rested for long enough, in this life of a node.
    Rested(NodeId, u64, ShardId),
}

/// What a call is for.
#[derive(Debug)]
enum Purpose {
    /// A node serves what parties ask, its own or those of other nodes.
    Serve(NodeId, Vec<Origin>),
    /// A keeper's look at a shard that its node leads in this term.
    Look(NodeId, ShardId, Term),
    /// A client writes without a transaction.
    Write(Caller),
    /// Something about the session of a client.
    Session(usize),
}

/// All of it.
#[derive(Debug)]
pub(super) struct Txns {
    plan: TransactionsPlan,
    clients: Vec<Client>,
    calls: BTreeMap<usize, Purpose>,
    resting: Resting,
    ledger: Ledger,
    /// Numbers the attempts of clients.
    attempts: u64,
    /// What clients have asked managers for, and may arrive again.
    kept: Vec<Letter>,
    /// Nothing is begun any more; then, sessions end.
    is_ending: bool,
    is_closing: bool,
    pub(super) tally: TransactionsTally,
}

impl Txns {
    /// Whether what is under way is to come to its end.
    pub(super) fn is_ending(&self) -> bool {
        self.is_ending
    }
}

impl Run {
    pub(super) fn begin_txns(&mut self, plan: TransactionsPlan) {
        let clients = plan.clients;
        self.txns = Some(Txns {
            clients: (0..clients).map(|_| Client::default()).collect(),
            calls: BTreeMap::new(),
            resting: Resting::new(),
            ledger: Ledger::default(),
            attempts: 0,
            kept: Vec::new(),
            is_ending: false,
            is_closing: false,
            tally: TransactionsTally::default(),
            plan,
        });
        for client in 0..clients {
            self.after(Duration::ZERO, Happening::Txn(Deed::Pulse(client)));
        }
        self.after(Duration::from_millis(10), Happening::Txn(Deed::Late));
        for node in self.cluster.settings.nodes() {
            let pause = Duration::from_micros(self.dice.txns.random_range(1..=KEEP_US));
            self.after(pause, Happening::Txn(Deed::Keep(node)));
        }
    }

    pub(super) fn transact(&mut self, deed: Deed) {
        match deed {
            Deed::Pulse(client) => {
                let pause = self.dice.txns.random_range(1..=2 * PULSE_US);
                self.after(Duration::from_micros(pause), Happening::Txn(Deed::Pulse(client)));
                self.pulse(client);
            }
            Deed::Again(caller) => self.ask_again(caller),
            Deed::Letter(letter) => self.letter_arrives(letter),
            Deed::Answer(node, life, number, reply) => self.answer_party((node, life, number), reply),
            Deed::Late => self.ask_something_late(),
            Deed::Rested(node, life, at) => self.rested(node, life, at),
            Deed::Keep(node) => {
                let pause = self.dice.txns.random_range(KEEP_US / 2..=KEEP_US * 3 / 2);
                self.after(Duration::from_micros(pause), Happening::Txn(Deed::Keep(node)));
                self.keep(node);
            }
        }
    }

    /// A call has ended that may be one of these; whether it is.
    pub(super) fn txns_heard(&mut self, call: usize) -> bool {
        let Some(txns) = self.txns.as_mut() else { return false };
        let Some(purpose) = txns.calls.remove(&call) else { return false };
        let is_lost = self.dice.txns.random_range(0..100) < txns.plan.lost;
        match purpose {
            Purpose::Serve(node, origins) => {
                for origin in origins {
                    self.served(node, origin, call);
                }
            }
            Purpose::Look(node, shard, term) => self.look_after(node, shard, term, call),
            // Whoever lost the answer asks again, in time.
            Purpose::Write(caller) if !is_lost => self.hear_write(caller, call),
            Purpose::Session(client) if !is_lost => self.hear_txn_session(client, call),
            Purpose::Write(_) | Purpose::Session(_) => {}
        }
        true
    }

    /// The term in which a node leads a shard.
    fn leads(&self, node: NodeId, shard: ShardId) -> Option<Term> {
        let replica = self.cluster.replica(node, shard)?;
        replica.is_leader().then(|| replica.leadership().0)
    }

    /// Who leads, or believes so, mostly, else any node.
    fn seems_to_lead(&mut self, shard: ShardId) -> NodeId {
        let leaders: Vec<NodeId> =
            self.cluster.settings.nodes().filter(|node| self.leads(*node, shard).is_some()).collect();
        let rng = &mut self.dice.txns;
        if leaders.is_empty() || rng.random_range(0..10) == 0 {
            return NodeId::new(rng.random_range(1..=self.cluster.settings.nodes));
        }
        crate::scenario::pick(rng, &leaders)
    }

    /// True time in so long.
    fn in_time_of(&self, span: Duration) -> Nanos {
        self.cluster.now.after(span)
    }

    /// What the transactions have come to.
    pub(crate) fn transacted(&self) -> TransactionsTally {
        self.txns.as_ref().map(|txns| txns.tally).unwrap_or_default()
    }
}
