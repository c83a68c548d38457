//! Who receives a shard's snapshot, and what is kept of one whose stream broke.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kv_storage::SnapshotReceiver;
use kv_types::{NodeId, ShardId, Term};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use super::TransferError;

/// How long somebody who asks for the position of a stream waits for the thread that still writes it.
const SETTLE_MAX: Duration = Duration::from_secs(1);

/// Names a snapshot of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StreamName {
    pub(super) from: NodeId,
    /// The number the sender has drawn for it; 0 if it cannot be resumed.
    pub(super) number: u64,
}

/// One place a shard: its snapshot is received by one call, or a part of it is kept.
///
/// # Invariants
/// - A receiver is in one hand: a call's, or kept here. So no two streams write one.
/// - A place is left only by whoever holds its ticket; tickets are never used again.
#[derive(Debug)]
pub(super) struct Places {
    state: Mutex<State>,
    changed: watch::Sender<()>,
    keep_max: Duration,
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    places: BTreeMap<ShardId, Place>,
    tickets: u64,
}

#[derive(Debug)]
struct Place {
    ticket: u64,
    name: StreamName,
    /// In which its sender leads.
    term: Term,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// A call takes chunks in; this breaks it off.
    Flowing(CancellationToken),
    /// The stream is whole, and is being checked and installed.
    Whole,
    /// The stream broke.
    Kept(Box<SnapshotReceiver>),
}

/// Holds a shard's place while its snapshot is received; the place is free, or what was kept lies there, once the last
/// clone of it is gone.
#[derive(Debug)]
pub(super) struct Holder {
    places: Arc<Places>,
    shard: ShardId,
    ticket: u64,
    /// Cancelled when the call is to be broken off.
    pub(super) broken_off: CancellationToken,
}

impl Places {
    pub(super) fn new(keep_max: Duration, (tasks, stop): (TaskTracker, CancellationToken)) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), changed: watch::Sender::new(()), keep_max, tasks, stop })
    }

    /// Takes a shard's place for a new stream; gives what was kept of another one, to be dropped. One that still comes from a
    /// leader of an older term is broken off, for nobody needs it: then the place is free a little later.
    pub(super) fn take(
        self: &Arc<Self>,
        shard: ShardId,
        name: StreamName,
        term: Term,
    ) -> Result<(Arc<Holder>, Option<Box<SnapshotReceiver>>), TransferError> {
        let mut state = self.lock();
        let kept = match state.places.remove(&shard) {
            None => None,
            Some(Place { stage: Stage::Kept(receiver), .. }) => Some(receiver),
            Some(taken) => {
                if let Stage::Flowing(broken_off) = &taken.stage
                    && taken.term < term
                {
                    broken_off.cancel();
                }
                state.places.insert(shard, taken);
                return Err(TransferError::Busy(shard));
            }
        };
        Ok((self.hold(&mut state, shard, (name, term)), kept))
    }

    /// Takes a shard's place, and what is kept there, to go on with chunk `next`.
    pub(super) fn take_up(
        self: &Arc<Self>,
        shard: ShardId,
        name: StreamName,
        next: u32,
    ) -> Result<(Arc<Holder>, Box<SnapshotReceiver>), TransferError> {
        let mut state = self.lock();
        match state.places.remove(&shard) {
            Some(Place { name: kept, term, stage: Stage::Kept(receiver), .. })
                if kept == name && receiver.next_number() == next =>
            {
                Ok((self.hold(&mut state, shard, (name, term)), receiver))
            }
            Some(other) => {
                let kept = matches!(other.stage, Stage::Kept(_));
                state.places.insert(shard, other);
                Err(if kept { TransferError::Gone(next) } else { TransferError::Busy(shard) })
            }
            None => Err(TransferError::Gone(next)),
        }
    }

    fn hold(
        self: &Arc<Self>,
        state: &mut State,
        shard: ShardId,
        (name, term): (StreamName, Term),
    ) -> Arc<Holder> {
        state.tickets += 1;
        let (ticket, broken_off) = (state.tickets, self.stop.child_token());
        let stage = Stage::Flowing(broken_off.clone());
        state.places.insert(shard, Place { ticket, name, term, stage });
        Arc::new(Holder { places: Arc::clone(self), shard, ticket, broken_off })
    }

    /// Whether somebody receives a snapshot of the shard now.
    pub(super) fn is_taken(&self, shard: ShardId) -> bool {
        let state = self.lock();
        state.places.get(&shard).is_some_and(|place| !matches!(place.stage, Stage::Kept(_)))
    }

    /// How many chunks of a stream were taken in; `None` if nothing is kept of it. A call that still receives it is broken
    /// off: its sender would not ask if it were still sending.
    pub(super) async fn position(
        &self,
        shard: ShardId,
        name: StreamName,
    ) -> Result<Option<u32>, TransferError> {
        let mut changed = self.changed.subscribe();
        let settled = async {
            loop {
                if let Some(position) = self.look(shard, name) {
                    return position;
                }
                // It cannot fail: the other end is here.
                let _ = changed.changed().await;
            }
        };
        tokio::time::timeout(SETTLE_MAX, settled).await.map_err(|_| TransferError::Busy(shard))
    }

    /// The position of a stream; `None` while its call is being broken off.
    fn look(&self, shard: ShardId, name: StreamName) -> Option<Option<u32>> {
        let state = self.lock();
        let place = state.places.get(&shard).filter(|place| place.name == name);
        match place.map(|place| &place.stage) {
            Some(Stage::Flowing(broken_off)) => {
                broken_off.cancel();
                None
            }
            Some(Stage::Kept(receiver)) => Some(Some(receiver.next_number())),
            Some(Stage::Whole) | None => Some(None),
        }
    }

    /// Puts what was received in the place of the call that received it, for a while; drops it if nobody can ask for it.
    fn keep(self: &Arc<Self>, shard: ShardId, ticket: u64, receiver: Box<SnapshotReceiver>) {
        let mut state = self.lock();
        let place = state.places.get_mut(&shard);
        let own = place.filter(|place| place.ticket == ticket && place.name.number != 0);
        let Some(place) = own.filter(|_| !self.stop.is_cancelled()) else {
            drop(state);
            return drop(receiver);
        };
        info!(%shard, from = %place.name.from, chunks = receiver.next_number(), "a snapshot stream broke; what came is kept");
        place.stage = Stage::Kept(receiver);
        drop(state);
        self.changed.send_replace(());
        let places = Arc::clone(self);
        self.tasks.spawn(async move {
            tokio::select! {
                () = places.stop.cancelled() => {}
                () = tokio::time::sleep(places.keep_max) => {}
            }
            if let Some(receiver) = places.expired(shard, ticket) {
                info!(%shard, "a snapshot stream was not resumed; what came is dropped");
                // It removes files.
                let _ = tokio::task::spawn_blocking(move || drop(receiver)).await;
            }
        });
    }

    fn expired(&self, shard: ShardId, ticket: u64) -> Option<Box<SnapshotReceiver>> {
        let mut state = self.lock();
        match state.places.remove(&shard) {
            Some(Place { ticket: kept, stage: Stage::Kept(receiver), .. }) if kept == ticket => {
                Some(receiver)
            }
            Some(other) => {
                state.places.insert(shard, other);
                None
            }
            None => None,
        }
    }

    /// A panicking holder leaves a map that is whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Holder {
    /// The stream broke: what came of it is kept.
    pub(super) fn keep(&self, receiver: Box<SnapshotReceiver>) {
        self.places.keep(self.shard, self.ticket, receiver);
    }

    /// The stream is whole: it is not broken off any more.
    pub(super) fn whole(&self) {
        let mut state = self.places.lock();
        if let Some(place) = state.places.get_mut(&self.shard).filter(|place| place.ticket == self.ticket) {
            place.stage = Stage::Whole;
        }
        drop(state);
        self.places.changed.send_replace(());
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        let place = state.places.get(&self.shard);
        let own = place.filter(|place| place.ticket == self.ticket);
        if own.is_some_and(|place| !matches!(place.stage, Stage::Kept(_))) {
            state.places.remove(&self.shard);
        }
        drop(state);
        self.places.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use kv_storage::{EngineFactory, Generation, TwinFactory};

    use super::*;

    const SHARD: ShardId = ShardId::new(1);
    const TERM: Term = Term::new(3);

    fn name(number: u64) -> StreamName {
        StreamName { from: NodeId::new(2), number }
    }

    fn places(keep_max: Duration) -> (Arc<Places>, CancellationToken, TaskTracker) {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        (Places::new(keep_max, (tasks.clone(), stop.clone())), stop, tasks)
    }

    fn receiver(engines: &Arc<TwinFactory>, generation: u64) -> Box<SnapshotReceiver> {
        let engines: Arc<dyn EngineFactory> = Arc::<TwinFactory>::clone(engines);
        Box::new(SnapshotReceiver::new(engines, SHARD, Generation::new(generation)).unwrap())
    }

    fn generations(engines: &TwinFactory) -> usize {
        engines.list(Path::new("shard-1")).unwrap().len()
    }

    #[tokio::test]
    async fn a_receiver_is_in_one_hand() {
        let (places, ..) = places(Duration::MAX);
        let engines = Arc::new(TwinFactory::new());
        let (holder, kept) = places.take(SHARD, name(7), TERM).unwrap();
        assert!(kept.is_none());
        assert!(matches!(places.take(SHARD, name(8), TERM), Err(TransferError::Busy(_))));
        assert!(matches!(places.take_up(SHARD, name(7), 0), Err(TransferError::Busy(_))));
        assert_eq!(places.position(SHARD, name(8)).await.unwrap(), None);
        assert!(!holder.broken_off.is_cancelled(), "another stream breaks nothing off");
        assert!(matches!(places.take(SHARD, name(8), TERM.next()), Err(TransferError::Busy(_))));
        assert!(holder.broken_off.is_cancelled(), "but one of a newer leader");
        holder.keep(receiver(&engines, 1));
        assert_eq!(places.position(SHARD, name(7)).await.unwrap(), Some(0));
        assert!(matches!(places.take_up(SHARD, name(7), 1), Err(TransferError::Gone(1))));
        assert!(matches!(places.take_up(SHARD, name(8), 0), Err(TransferError::Gone(0))));
        let (second, taken) = places.take_up(SHARD, name(7), 0).unwrap();
        drop(holder);
        assert!(
            matches!(places.take(SHARD, name(8), TERM), Err(TransferError::Busy(_))),
            "the place is the second's"
        );
        second.keep(taken);
        drop(second);
        let (third, kept) = places.take(SHARD, name(8), TERM).unwrap();
        assert_eq!(kept.map(|kept| kept.next_number()), Some(0), "another stream drops what is kept");
        assert_eq!(generations(&engines), 0);
        drop(third);
        assert_eq!(places.position(SHARD, name(8)).await.unwrap(), None);
    }

    #[tokio::test]
    async fn who_asks_for_a_position_breaks_the_call_off_and_waits_for_its_thread() {
        let (places, ..) = places(Duration::MAX);
        let engines = Arc::new(TwinFactory::new());
        let (holder, _) = places.take(SHARD, name(7), TERM).unwrap();
        let writer = {
            let receiver = receiver(&engines, 1);
            tokio::spawn(async move {
                holder.broken_off.cancelled().await;
                holder.keep(receiver);
            })
        };
        assert_eq!(places.position(SHARD, name(7)).await.unwrap(), Some(0));
        writer.await.unwrap();
        let (holder, receiver) = places.take_up(SHARD, name(7), 0).unwrap();
        holder.whole();
        assert_eq!(places.position(SHARD, name(7)).await.unwrap(), None, "what is whole is not resumed");
        assert!(!holder.broken_off.is_cancelled());
        drop((holder, receiver));
    }

    #[tokio::test]
    async fn what_is_kept_goes_after_a_while_or_when_the_node_stops() {
        let engines = Arc::new(TwinFactory::new());
        for (keep_max, stopped) in [(Duration::ZERO, false), (Duration::MAX, true)] {
            let (places, stop, tasks) = places(keep_max);
            let (holder, _) = places.take(SHARD, name(7), TERM).unwrap();
            holder.keep(receiver(&engines, 1));
            drop(holder);
            if stopped {
                assert_eq!(
                    (generations(&engines), places.position(SHARD, name(7)).await.unwrap()),
                    (1, Some(0))
                );
                stop.cancel();
            }
            tasks.close();
            tasks.wait().await;
            assert_eq!((generations(&engines), places.position(SHARD, name(7)).await.unwrap()), (0, None));
        }
        let (places, stop, _) = places(Duration::MAX);
        let (unnamed, _) = places.take(SHARD, name(0), TERM).unwrap();
        unnamed.keep(receiver(&engines, 2));
        assert_eq!(generations(&engines), 0, "it cannot be asked for");
        drop(unnamed);
        stop.cancel();
        let (late, _) = places.take(SHARD, name(7), TERM).unwrap();
        late.keep(receiver(&engines, 3));
        assert_eq!(generations(&engines), 0, "the node has stopped");
    }
}
