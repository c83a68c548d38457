//! The parties of transactions on one node: the functions of `kv-txn`, kept in the node's life and polled by hand.
//!
//! A party asks, and waits; what it asks is taken from the [`Desk`] by whoever drives the run, and the answer is laid there
//! when it has come about in the run's own time. Then the party that asked is polled, and no other. So there is no waker, no
//! thread and no order but that of the answers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use kv_shard::{AsRead, PublishedDeletes};
use kv_state::gate::Refusal;
use kv_state::txn::{self, Known, LockedBy, Transaction, TxnCommand};
use kv_state::{Command, Envelope, Opened};
use kv_storage::ShardReader;
use kv_txn::{Decision, Failure, Looked, Named, Owner, Shards, Step};
use kv_types::{
    Key, KeyRange, LogIndex, Nanos, Revision, Row, RowKey, SessionRequest, ShardId, Space, Term, TxnId,
};

use crate::view::View;

/// Keys of one range that a reader is given.
const SCANNED_MAX: usize = 64;

/// Why something was not answered as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Nobody is known to lead the shard, or whoever was asked does not.
    NoLeader,
    /// No answer came in time.
    Deadline,
    /// The write has no answer of the state machine, or the read none of a leader.
    Broken,
    /// The rows cannot be read now.
    Unreadable,
    /// The manager of the transaction is at work.
    Driven,
    /// The state machine has refused it.
    Refused(Refusal),
}

/// What a client reads of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LookAt {
    Key(Key),
    Range(KeyRange),
    /// A key that was read before: whether it still is as it was.
    Again {
        key: Key,
        seen: Option<Revision>,
        since: LogIndex,
    },
}

/// What a client is given of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) rows: Vec<(Key, Row)>,
    /// The last entry that is in them.
    pub(crate) index: LogIndex,
    /// Whether they are not as they were when they were read before.
    pub(crate) has_changed: bool,
}

/// The rows of a shard on one node, and what it knows of deletes.
#[derive(Clone, Debug)]
pub(crate) struct AtHand {
    pub(crate) reader: Arc<ShardReader>,
    pub(crate) deletes: Arc<PublishedDeletes>,
}

/// What a party asks.
#[derive(Clone, Debug)]
pub(crate) enum Question {
    /// A step, as bytes; of a fence that is not of the manager itself, the transaction.
    Step(ShardId, Bytes, Option<TxnId>),
    Known(ShardId, Named),
    Confirm(ShardId),
    /// To wait, for the time of so many failures.
    Pause(u32),
}

impl Question {
    /// Whether it asks what was decided, or has that carried out.
    pub(crate) fn is_after_decision(&self) -> bool {
        match self {
            Self::Known(..) => true,
            Self::Step(_, bytes, _) => matches!(
                Opened::decode(bytes.clone()),
                Ok(Opened::Timed { command: Command::Txn(TxnCommand::Resolve { .. }), .. })
            ),
            Self::Confirm(_) | Self::Pause(_) => false,
        }
    }
}

/// What it is answered.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Step(Step),
    Known(Known),
    Confirmed,
    Paused(bool),
    Failed(Failure<Cause>),
}

/// A question on its way to whoever drives the run.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) number: u64,
    pub(crate) question: Question,
    pub(crate) bounds: Bounds,
}

/// How long a party tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Nothing is asked after this.
    pub(crate) until: Nanos,
    /// Nothing is asked again when its node does not lead the shard in this term.
    pub(crate) office: Option<(ShardId, Term)>,
}

/// What a party has come to, for the client that waits for it.
#[derive(Clone, Debug)]
pub(crate) enum Told {
    Decided(TxnId, Decision),
    Read(Found),
    Failed(Failure<Cause>),
}

/// Who waits for what a party comes to: an attempt of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) client: usize,
    pub(crate) attempt: u64,
}

#[derive(Debug, Default)]
struct Papers {
    next: u64,
    /// The clock of the node.
    now: Nanos,
    /// Whose turn it is.
    running: u64,
    asked: Vec<Asked>,
    /// Which party waits for which answer.
    waiting: BTreeMap<u64, u64>,
    answers: BTreeMap<u64, Reply>,
    told: Vec<(Caller, Told)>,
}

/// Where questions and answers lie.
#[derive(Debug, Default)]
pub(crate) struct Desk(Mutex<Papers>);

impl Desk {
    fn papers(&self) -> MutexGuard<'_, Papers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question that waits for its answer.
struct Asking<'a> {
    desk: &'a Desk,
    number: u64,
}

impl Future for Asking<'_> {
    type Output = Reply;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Reply> {
        let answer = self.desk.papers().answers.remove(&self.number);
        answer.map_or(Poll::Pending, Poll::Ready)
    }
}

/// The shards as one party of a node reaches them.
#[derive(Clone, Debug)]
pub(crate) struct Reach {
    desk: Arc<Desk>,
    readers: BTreeMap<ShardId, AtHand>,
    bounds: Bounds,
    /// The transaction whose manager it is: that may fence it.
    drives: Option<TxnId>,
    #[cfg(feature = "planted")]
    planted: Option<kv_txn::Planted>,
}

type Answered<T> = Result<T, Failure<Cause>>;

impl Reach {
    fn ask(&self, question: Question) -> Asking<'_> {
        let mut papers = self.desk.papers();
        papers.next += 1;
        let (number, party) = (papers.next, papers.running);
        papers.waiting.insert(number, party);
        papers.asked.push(Asked { number, question, bounds: self.bounds });
        Asking { desk: &self.desk, number }
    }

    fn view(&self, at: ShardId) -> Result<View, Cause> {
        let now = self.desk.papers().now;
        let at_hand = self.readers.get(&at).ok_or(Cause::Unreadable)?;
        Ok(View::new(at_hand.reader.pin(now).map_err(|_| Cause::Unreadable)?, now))
    }

    /// Looks at rows, and at who has locked them for writing, in one view.
    fn look(&self, at: ShardId, what: &LookAt) -> Result<Looked<Found>, Cause> {
        let view = self.view(at)?;
        let has_changed = match what {
            LookAt::Again { key, seen, since } => {
                let reads = [(key.clone(), *seen)];
                let read = AsRead { since: *since, reads: &reads, scans: &[] };
                let deletes = self.readers.get(&at).map(|at_hand| &*at_hand.deletes);
                let changed = read.changed(&view, deletes.ok_or(Cause::Unreadable)?);
                changed.map_err(|_| Cause::Unreadable)?.is_some()
            }
            LookAt::Key(_) | LookAt::Range(_) => false,
        };
        let (keys, writers) = match what {
            LookAt::Key(key) | LookAt::Again { key, .. } => {
                let lock = txn::lock_of(&view, key).map_err(|_| Cause::Unreadable)?;
                let writer = match lock {
                    Some(LockedBy::Writer(txn)) => vec![txn],
                    Some(LockedBy::Readers(_)) | None => Vec::new(),
                };
                (vec![key.clone()], writer)
            }
            LookAt::Range(range) => {
                let writers = txn::writers_in(&view, range).map_err(|_| Cause::Unreadable)?;
                (keys_in(&view, range)?, writers)
            }
        };
        let mut rows = Vec::new();
        for key in keys {
            let row = kv_state::Rows::get(&view, &RowKey::user(&key)).map_err(|_| Cause::Unreadable)?;
            rows.extend(row.map(|row| (key, row)));
        }
        let found = Found { rows, index: view.index(), has_changed };
        let mut owners = Vec::new();
        for txn in writers {
            let prepared = txn::prepared(&view, txn).map_err(|_| Cause::Unreadable)?;
            owners.extend(prepared.map(|part| Owner {
                txn: Named { txn, fingerprint: part.fingerprint },
                anchor: owner(part.anchor.as_ref()),
            }));
        }
        Ok(Looked { found, owners })
    }
}

fn keys_in(view: &View, range: &KeyRange) -> Result<Vec<Key>, Cause> {
    let heads = kv_state::Rows::heads_in(view, Space::User, range, SCANNED_MAX);
    let heads = heads.map_err(|_| Cause::Unreadable)?;
    Ok(heads.into_iter().filter_map(|(key, _)| Key::new(key.key()).ok()).collect())
}

/// The shard that a key of a transaction is in: its first letter.
pub(crate) fn owner(key: &[u8]) -> ShardId {
    ShardId::new(key.first().map_or(0, |letter| u32::from(letter.wrapping_sub(b'0'))))
}

impl Shards for Reach {
    type Error = Cause;

    fn owner(&self, key: &[u8]) -> ShardId {
        owner(key)
    }

    async fn step(&self, at: ShardId, step: Envelope) -> Answered<Step> {
        let fences = match step.command() {
            Command::Txn(TxnCommand::Fence { txn, .. }) if self.drives != Some(*txn) => Some(*txn),
            _ => None,
        };
        match self.ask(Question::Step(at, step.encode(), fences)).await {
            Reply::Step(step) => Ok(step),
            other => Err(failure(other)),
        }
    }

    async fn known(&self, at: ShardId, txn: Named) -> Answered<Known> {
        match self.ask(Question::Known(at, txn)).await {
            Reply::Known(known) => Ok(known),
            other => Err(failure(other)),
        }
    }

    async fn confirm(&self, at: ShardId) -> Answered<()> {
        match self.ask(Question::Confirm(at)).await {
            Reply::Confirmed => Ok(()),
            other => Err(failure(other)),
        }
    }

    async fn is_prepared(&self, at: ShardId, txn: TxnId) -> Answered<bool> {
        let view = self.view(at).map_err(Failure::Failed)?;
        let prepared = txn::prepared(&view, txn).map_err(|_| Failure::Failed(Cause::Unreadable))?;
        Ok(prepared.is_some())
    }

    async fn pause(&self, failures: u32) -> bool {
        matches!(self.ask(Question::Pause(failures)).await, Reply::Paused(true))
    }

    #[cfg(feature = "planted")]
    fn planted(&self) -> Option<kv_txn::Planted> {
        self.planted
    }
}

/// Has a record forgotten. One that stays is found again by its keeper.
async fn forget(reach: &Reach, anchor: ShardId, txn: TxnId) {
    let _ = kv_txn::forget(reach, anchor, [txn].into()).await;
}

fn failure(reply: Reply) -> Failure<Cause> {
    match reply {
        Reply::Failed(failure) => failure,
        other => unreachable!("another question was answered {other:?}"),
    }
}

/// What a party is about, so that no second one is about the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum About {
    /// A transaction is driven, at the shard of its anchor.
    Drives(ShardId, TxnId),
    /// A part is unblocked.
    Unblocks(ShardId, TxnId),
}

struct Party {
    about: Option<About>,
    future: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// All parties of a node. They end with its life.
#[derive(Default)]
pub(crate) struct Parties {
    desk: Arc<Desk>,
    next: u64,
    parties: BTreeMap<u64, Party>,
    about: BTreeSet<About>,
    /// A fault that all of them act with.
    #[cfg(feature = "planted")]
    planted: Option<kv_txn::Planted>,
}

impl fmt::Debug for Parties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parties").field("about", &self.about).finish_non_exhaustive()
    }
}

impl Parties {
    /// The way to the shards for a party with these bounds.
    pub(crate) fn reach(&self, readers: BTreeMap<ShardId, AtHand>, bounds: Bounds) -> Reach {
        Reach {
            desk: Arc::clone(&self.desk),
            readers,
            bounds,
            drives: None,
            #[cfg(feature = "planted")]
            planted: self.planted,
        }
    }

    /// All of them act with a fault.
    #[cfg(feature = "planted")]
    pub(crate) fn plant(&mut self, fault: Option<kv_txn::Planted>) {
        self.planted = fault;
    }

    /// Whether somebody is about this.
    pub(crate) fn is_about(&self, about: About) -> bool {
        self.about.contains(&about)
    }

    /// The transactions that are driven here.
    pub(crate) fn drives(&self) -> impl Iterator<Item = TxnId> {
        self.about.iter().filter_map(|about| match about {
            About::Drives(_, txn) => Some(*txn),
            About::Unblocks(..) => None,
        })
    }

    /// A party begins; its number, under which it has its first turn.
    fn begin(&mut self, about: Option<About>, future: impl Future<Output = ()> + Send + 'static) -> u64 {
        self.about.extend(about);
        self.next += 1;
        self.parties.insert(self.next, Party { about, future: Box::pin(future) });
        self.next
    }

    /// The manager of a transaction for which a client waits. When it is decided and the client is told, it finishes.
    pub(crate) fn commit(
        &mut self,
        caller: Caller,
        (reach, finishing): (Reach, Reach),
        (request, txn): (SessionRequest, Transaction),
    ) -> u64 {
        let anchor = owner(txn.anchor().as_ref());
        let id = request.txn();
        let reach = Reach { drives: Some(id), ..reach };
        self.begin(Some(About::Drives(anchor, id)), async move {
            let decided = kv_txn::commit(&reach, request, &txn).await;
            let committed = match &decided {
                Ok(decision) => Some(decision.aborted.is_none()),
                // It was fenced, so that what is prepared may go.
                Err(Failure::Refused(_) | Failure::Mismatched(_)) => Some(false),
                Err(Failure::Locked(_) | Failure::Busy(_) | Failure::Failed(_)) => None,
            };
            let told = decided.map_or_else(Told::Failed, |decision| Told::Decided(id, decision));
            reach.desk.papers().told.push((caller, told));
            let participants = txn.participants(owner);
            if let Some(committed) = committed.filter(|_| !participants.is_empty()) {
                let named = Named { txn: id, fingerprint: txn.fingerprint() };
                if kv_txn::finish(&finishing, named, &participants, committed).await && committed {
                    forget(&finishing, anchor, id).await;
                }
            }
        })
    }

    /// Whoever finishes a transaction that has a record.
    pub(crate) fn finish(&mut self, reach: Reach, anchor: ShardId, record: txn::Record) -> u64 {
        self.begin(Some(About::Drives(anchor, record.txn)), async move {
            let named = Named { txn: record.txn, fingerprint: record.fingerprint };
            if kv_txn::finish(&reach, named, &record.participants, true).await {
                forget(&reach, anchor, record.txn).await;
            }
        })
    }

    /// Whoever ends a part that was prepared long ago.
    pub(crate) fn unblock(&mut self, reach: Reach, at: ShardId, prepared: txn::Prepared) -> u64 {
        self.begin(Some(About::Unblocks(at, prepared.txn)), async move {
            // What fails is tried again at a later look.
            let _ = kv_txn::unblock(&reach, at, &prepared).await;
        })
    }

    /// A reader for a client.
    pub(crate) fn read(&mut self, caller: Caller, reach: Reach, (at, what): (ShardId, LookAt)) -> u64 {
        self.begin(None, async move {
            let told = match read(&reach, at, &what).await {
                Ok(found) => Told::Read(found),
                Err(failure) => Told::Failed(failure),
            };
            reach.desk.papers().told.push((caller, told));
        })
    }

    /// An answer has come about; whose turn it is therefore. One that has gone needs none.
    pub(crate) fn answer(&mut self, number: u64, reply: Reply) -> Option<u64> {
        let mut papers = self.desk.papers();
        let party = papers.waiting.remove(&number)?;
        papers.answers.insert(number, reply);
        Some(party)
    }

    /// A turn of a party, at what the node's clock shows: what it asks then, and what it has to tell.
    pub(crate) fn turn(&mut self, number: u64, now: Nanos) -> (Vec<Asked>, Vec<(Caller, Told)>) {
        {
            let mut papers = self.desk.papers();
            papers.running = number;
            papers.now = now;
        }
        let ended = self.parties.get_mut(&number).is_some_and(|party| {
            party.future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
        });
        if ended && let Some(about) = self.parties.remove(&number).and_then(|party| party.about) {
            self.about.remove(&about);
        }
        let mut papers = self.desk.papers();
        (std::mem::take(&mut papers.asked), std::mem::take(&mut papers.told))
    }
}

async fn read(reach: &Reach, at: ShardId, what: &LookAt) -> Answered<Found> {
    reach.confirm(at).await?;
    let looked = reach.look(at, what).map_err(Failure::Failed)?;
    kv_txn::past_locks(reach, at, looked, || reach.look(at, what)).await
}
