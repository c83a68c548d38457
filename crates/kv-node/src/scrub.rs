//! The scrub: replicas compare their states before anybody notices that one of them has gone wrong.
//!
//! Two comparisons, both on by default. A leader asks the other replicas of its group for the *state hash* after an entry
//! that all have applied; every effect record names one, so nothing has to stand still. If they differ, a majority with
//! one hash is right, and the others are told that they are damaged. And each node reads its *bases* through, one after
//! the other, while nothing is merged into them: all rows together must have the hash that the base's note names. What is
//! found damaged is fetched from another member.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_proto::status::ApiError;
use kv_proto::{sealed, v1};
use kv_storage::{Generation, StoreError, Verification};
use kv_types::{ClusterId, LogIndex, NodeId, ShardId, StateHash};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tracing::{debug, error, warn};

use crate::background::Background;
use crate::gateway::{Gateway, ShardHandle};
use crate::links::Links;
use crate::mailbox::Control;

/// Replicas are asked for the state after an entry so long after their leader has applied it.
const SETTLE: Duration = Duration::from_secs(1);

/// How long a replica may take to answer.
const CALL_MAX: Duration = Duration::from_secs(5);

/// A base is read through so many rounds of comparisons apart: that costs a microsecond or two a row.
const ROUNDS_A_READ: u32 = 60;

/// Steps on the thread for long work before others get a turn.
const STEPS_A_TURN: usize = 4;

/// What the scrub looks at.
pub(crate) struct Scrub {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) links: Arc<Links>,
    pub(crate) background: Background,
    pub(crate) cluster_id: ClusterId,
    /// Time between two rounds.
    pub(crate) interval: Duration,
    /// Held by whoever merges: while the scrub holds it, a base stands still.
    pub(crate) merge_slot: Arc<tokio::sync::Mutex<()>>,
    /// Somebody waits for that: the scrub makes way.
    pub(crate) merge_waits: Arc<AtomicBool>,
}

/// What the replicas of a group said of one state.
#[derive(Debug, Default)]
struct Answers {
    /// Who has which hash.
    hashes: BTreeMap<u128, Vec<NodeId>>,
}

/// What follows from the answers.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// All that answered have the same.
    Same,
    /// More than half of the members have this one; these have another.
    Damaged(StateHash, Vec<NodeId>),
    /// No hash has a majority.
    Undecided,
}

impl Answers {
    fn add(&mut self, node: NodeId, hash: StateHash) {
        self.hashes.entry(hash.get()).or_default().push(node);
    }

    fn verdict(&self, members: usize) -> Verdict {
        if self.hashes.len() < 2 {
            return Verdict::Same;
        }
        let Some((hash, _)) = self.hashes.iter().find(|(_, nodes)| nodes.len() * 2 > members) else {
            return Verdict::Undecided;
        };
        let others = self.hashes.iter().filter(|(other, _)| *other != hash);
        Verdict::Damaged(StateHash::new(*hash), others.flat_map(|(_, nodes)| nodes).copied().collect())
    }
}

impl Scrub {
    /// Runs until the node stops.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut round = 0_u32;
        let mut read: BTreeMap<ShardId, u32> = BTreeMap::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(self.interval) => {}
            }
            round = round.wrapping_add(1);
            for handle in self.gateway.shards.values() {
                if handle.leadership.leader() == Some(self.gateway.node) {
                    self.compare(handle, &stop).await;
                }
                // Spread over the rounds, so that not all nodes read all their bases at once.
                let due =
                    read.get(&handle.shard).is_none_or(|last| round.wrapping_sub(*last) >= ROUNDS_A_READ);
                if due && self.read_base(handle, &stop).await {
                    read.insert(handle.shard, round);
                }
            }
        }
    }

    /// Compares the state of the group that this node leads.
    async fn compare(&self, handle: &ShardHandle, stop: &CancellationToken) {
        let (asked, status) = oneshot::channel();
        handle.mailbox.control(Control::Status(asked));
        let Ok(status) = status.await else { return };
        if !status.verified || status.applied.index == LogIndex::ZERO {
            return;
        }
        let (index, own) = (status.applied.index, status.hash);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SETTLE) => {}
        }
        let members = status.raft.membership.members();
        let mut answers = Answers::default();
        answers.add(self.gateway.node, own);
        for node in members.iter().filter(|node| **node != self.gateway.node) {
            match self.ask(*node, handle.shard, index, Bytes::new()).await {
                Ok(Some(hash)) => answers.add(*node, hash),
                Ok(None) => {}
                Err(cause) => debug!(shard = %handle.shard, %node, %cause, "no state hash from this member"),
            }
        }
        let (shard, metrics) = (handle.shard, &self.gateway.metrics);
        metrics.scrubs.inc();
        match answers.verdict(members.len()) {
            Verdict::Same => {}
            Verdict::Undecided => {
                metrics.scrub_mismatches.inc();
                error!(%shard, %index, ?answers, "the replicas differ, and no state has a majority");
            }
            Verdict::Damaged(majority, nodes) => {
                metrics.scrub_mismatches.inc();
                error!(%shard, %index, %majority, ?nodes, "replicas differ from the majority: their rows are damaged");
                for node in nodes {
                    if node == self.gateway.node {
                        judge(handle, index, majority);
                    } else if let Err(cause) = self.ask(node, shard, index, encode(majority)).await {
                        warn!(%shard, %node, %cause, "a damaged replica cannot be told; the next round tries again");
                    }
                }
            }
        }
    }

    async fn ask(
        &self,
        node: NodeId,
        shard: ShardId,
        index: LogIndex,
        majority_hash: Bytes,
    ) -> Result<Option<StateHash>, ApiError> {
        let channel = self.links.dial(node).ok_or(ApiError::NoLeader(shard))?;
        let subject = v1::CompareStateSubject {
            cluster_id: self.cluster_id.get(),
            shard: shard.get(),
            index: index.get(),
            majority_hash,
        };
        let request = Request::new(sealed::seal::<v1::CompareStateRequest>(&subject));
        let mut client = v1::peer_client::PeerClient::new(channel);
        let reply = tokio::time::timeout(CALL_MAX, client.compare_state(request)).await;
        let reply =
            reply.map_err(|_| ApiError::Deadline)?.map_err(|status| ApiError::from_status(&status))?;
        let outcome =
            sealed::open(reply.into_inner()).map_err(|cause| ApiError::Checksum(cause.to_string()))?;
        Ok(decode(&outcome.hash))
    }

    /// Reads a base through; whether that came to an end, or has to wait for nothing.
    async fn read_base(&self, handle: &ShardHandle, stop: &CancellationToken) -> bool {
        let _slot = self.merge_slot.lock().await;
        let generation = handle.reader.generation();
        let mut verification = match handle.reader.base_verification() {
            Ok(Some(verification)) => verification,
            Ok(None) => return false,
            Err(cause) => return tell(handle, generation, cause),
        };
        let started = Instant::now();
        loop {
            if stop.is_cancelled() || self.merge_waits.load(Ordering::Acquire) {
                return false;
            }
            let turn = move || -> Result<Option<Verification>, StoreError> {
                for _ in 0..STEPS_A_TURN {
                    if verification.step()? {
                        return Ok(None);
                    }
                }
                Ok(Some(verification))
            };
            match self.background.run(turn).await {
                Some(Ok(Some(rest))) => verification = rest,
                Some(Ok(None)) => {
                    debug!(shard = %handle.shard, took = ?started.elapsed(), "the base has the hash its note names");
                    self.gateway.metrics.bases_read.inc();
                    return true;
                }
                Some(Err(cause)) => return tell(handle, generation, cause),
                None => return false,
            }
        }
    }
}

/// Tells the replica what is wrong with its rows; anything else is for those to tell who need them.
fn tell(handle: &ShardHandle, generation: Generation, cause: StoreError) -> bool {
    match cause {
        StoreError::Damaged { detail } => handle.mailbox.control(Control::Damaged(generation, detail)),
        other => warn!(shard = %handle.shard, cause = %other, "the base cannot be read through"),
    }
    true
}

/// What this node's replica has after an entry. Told what the majority has there, it draws the conclusion.
pub(crate) fn answer(
    subject: &v1::CompareStateSubject,
    cluster_id: ClusterId,
    shards: &BTreeMap<ShardId, ShardHandle>,
) -> Result<v1::CompareStateOutcome, ApiError> {
    if subject.cluster_id != cluster_id.get() {
        return Err(ApiError::WrongCluster("the comparison is meant for another cluster".to_owned()));
    }
    let shard = ShardId::new(subject.shard);
    let handle = shards.get(&shard).ok_or(ApiError::UnknownShard(shard))?;
    let index = LogIndex::new(subject.index);
    if let Some(majority) = decode(&subject.majority_hash) {
        judge(handle, index, majority);
    }
    let generation = handle.reader.generation();
    let hash = handle.reader.hash_after(index);
    let hash = hash.map_err(|cause| handle.read_error(generation, cause.into()))?;
    Ok(v1::CompareStateOutcome { hash: hash.map(encode).unwrap_or_default() })
}

/// A majority has this hash after the entry: who has another one is damaged.
fn judge(handle: &ShardHandle, index: LogIndex, majority: StateHash) {
    let generation = handle.reader.generation();
    if let Ok(Some(own)) = handle.reader.hash_after(index)
        && own != majority
    {
        let detail =
            format!("the rows after {index} have the hash {own}, a majority of the replicas has {majority}");
        handle.mailbox.control(Control::Damaged(generation, detail));
    }
}

fn encode(hash: StateHash) -> Bytes {
    Bytes::copy_from_slice(&hash.get().to_be_bytes())
}

fn decode(bytes: &[u8]) -> Option<StateHash> {
    Some(StateHash::new(u128::from_be_bytes(bytes.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(hashes: &[u128]) -> Answers {
        let mut answers = Answers::default();
        for (node, hash) in (1..).zip(hashes) {
            answers.add(NodeId::new(node), StateHash::new(*hash));
        }
        answers
    }

    #[test]
    fn only_a_majority_of_all_members_is_right() {
        assert_eq!(answers(&[7, 7, 7]).verdict(3), Verdict::Same);
        assert_eq!(answers(&[7]).verdict(5), Verdict::Same);
        let damaged = Verdict::Damaged(StateHash::new(7), vec![NodeId::new(2)]);
        assert_eq!(answers(&[7, 9, 7]).verdict(3), damaged);
        assert_eq!(answers(&[7, 9, 7]).verdict(5), Verdict::Undecided, "two members have not said");
        assert_eq!(answers(&[7, 9]).verdict(2), Verdict::Undecided);
        let leader = Verdict::Damaged(StateHash::new(9), vec![NodeId::new(1)]);
        assert_eq!(answers(&[7, 9, 9]).verdict(3), leader);
    }

    #[test]
    fn a_hash_travels_as_sixteen_bytes() {
        let hash = StateHash::new(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        assert_eq!(decode(&encode(hash)), Some(hash));
        assert_eq!(decode(b""), None);
    }
}
