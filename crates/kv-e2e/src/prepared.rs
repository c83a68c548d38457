//! What a manager leaves that goes away between two steps of a transaction.
//!
//! Steps are messages of the links between nodes. So whoever drives a transaction from outside links itself to the leader in
//! the name of another member, who hears the answers and has not asked: what the shard then has tells that it was taken.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use kv_client::v1;
use kv_client::v1::peer_client::PeerClient;
use kv_client::v1::shard_message::Body;
use kv_client::v1::step_txn::Ask;
use kv_proto::sealed;
use kv_state::txn::{Transaction, TxnCommand, Write};
use kv_state::{Command, Envelope};
use kv_types::{ClusterTime, Key, Request, SessionId, SessionRequest, ShardId, TxnId, Value};

use crate::Cluster;
use crate::cluster::Led;
use crate::raw::{Raw, Session};
use crate::wait;
use prost::Message as _;
use tokio_stream::StreamExt as _;
use tonic::metadata::MetadataValue;

/// How long the session lives in whose name it is prepared.
const TTL: Duration = Duration::from_secs(60);

/// How long a shard may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// No member has this id.
const STRANGER: u64 = 999;

/// The metadata key under which a link's caller introduces itself.
const IDENTITY_KEY: &str = "quorate-identity-bin";

/// A key, and the shard it lies on.
pub type Placed = (&'static str, ShardId);

/// Who leads a shard.
#[derive(Debug)]
struct Leader {
    node: u64,
    peer_addr: String,
    clients: Raw,
}

/// What a shard is to have of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trace {
    Prepared,
    Decided,
    Nothing,
}

/// A transaction that is driven from outside, as its manager would. Nobody drives it but whoever has this.
#[derive(Debug)]
pub struct ByHand {
    /// The leader of each shard, and where it serves peers and clients, when it began.
    leaders: BTreeMap<ShardId, Leader>,
    /// The first is the anchor.
    keys: Vec<Placed>,
    txn: Transaction,
    request: SessionRequest,
}

impl ByHand {
    /// A transaction that writes a value to these keys, each of another shard, and is decided by the shard of the first. Nobody
    /// has heard of it.
    ///
    /// # Errors
    /// If there is no session for it.
    pub async fn begin(cluster: &Cluster, keys: &[Placed], value: &str) -> anyhow::Result<Self> {
        let led = cluster.led().await?;
        let meta = led.get(&ShardId::META).context("the meta group is led")?.leader;
        let meta = cluster.endpoints_of(&[meta]);
        let meta = Raw::at(meta.first().context("it has an address")?)?;
        let session = Session::open(&meta, TTL).await?;
        let request = SessionRequest {
            session: SessionId::new(session.session),
            seq: 1,
            first_incomplete: 0,
            lease_until: ClusterTime::from_ms(session.lease_until_ms).context("a time")?,
        };
        let write = |(key, _): &Placed| -> anyhow::Result<Write> {
            Ok(Write { key: Key::new(*key)?, value: Some(Value::new(value.to_owned())?) })
        };
        let writes = keys.iter().map(write).collect::<Result<Vec<_>, _>>()?;
        let (anchor, _) = keys.first().context("it has an anchor")?;
        let txn = Transaction::new(Key::new(*anchor)?, Vec::new(), Vec::new(), writes)?;
        let leader = |(shard, led): (&ShardId, &Led)| {
            let (node, peer_addr) = (led.leader, cluster.peer_addr(led.leader)?);
            let clients = cluster.endpoints_of(&[node]);
            let clients = Raw::at(clients.first().context("it has an address")?)?;
            Ok((*shard, Leader { node, peer_addr, clients }))
        };
        let leaders = led.iter().map(leader).collect::<anyhow::Result<_>>()?;
        Ok(Self { leaders, keys: keys.to_vec(), txn, request })
    }

    /// What it is called.
    pub fn id(&self) -> TxnId {
        self.request.txn()
    }

    /// Has a participant prepare its part. The shard has it for two seconds: then it asks the anchor's shard, and ends it.
    ///
    /// # Errors
    /// If the shard does not say yes.
    pub async fn prepare(&self, at: ShardId) -> anyhow::Result<()> {
        let part = self.txn.parts(|key| self.owner(key)).remove(&Some(at)).context("it has a part there")?;
        let (fingerprint, anchor) = (self.txn.fingerprint(), self.txn.anchor().clone());
        let prepare = TxnCommand::Prepare { fingerprint, anchor, part };
        self.send(at, self.of_client(prepare)?, Trace::Prepared).await
    }

    /// Has the anchor's shard decide.
    ///
    /// # Errors
    /// If the decision is not *committed*.
    pub async fn decide(&self) -> anyhow::Result<()> {
        let (_, anchor) = *self.keys.first().context("it has an anchor")?;
        let part =
            self.txn.parts(|key| self.owner(key)).remove(&Some(anchor)).context("it has a part there")?;
        let participants = self.txn.participants(|key| self.owner(key));
        let commit = TxnCommand::Commit { fingerprint: self.txn.fingerprint(), part, participants };
        self.send(anchor, self.of_client(commit)?, Trace::Decided).await
    }

    /// Has a participant end its part, after it was decided.
    ///
    /// # Errors
    /// If the shard does not.
    pub async fn resolve(&self, at: ShardId) -> anyhow::Result<()> {
        let (txn, fingerprint) = (self.id(), self.txn.fingerprint());
        let resolve = TxnCommand::resolve(txn, fingerprint, true);
        self.send(at, Envelope::timed(Command::Txn(resolve))?, Trace::Nothing).await
    }

    fn owner(&self, key: &[u8]) -> Option<ShardId> {
        self.keys.iter().find(|(own, _)| own.as_bytes() == key).map(|(_, shard)| *shard)
    }

    fn of_client(&self, command: TxnCommand) -> anyhow::Result<Envelope> {
        Ok(Envelope::once(Request::Session(self.request), Command::Txn(command))?)
    }

    /// Has a shard take a step, and waits until it has.
    async fn send(&self, at: ShardId, step: Envelope, expected: Trace) -> anyhow::Result<()> {
        let ask = Some(Ask::Step(step.encode()));
        let deadline_ms = u32::try_from(PATIENCE.as_millis())?;
        let step = v1::StepTxn { deadline_ms, ask, ..v1::StepTxn::default() };
        let message = v1::ShardMessage { shard: at.get(), body: Some(Body::Step(step)) };
        let frame: v1::Frame = sealed::seal(&v1::PeerBatch { lamport: 0, messages: vec![message] });
        let leader = self.leaders.get(&at).context("the shard is led")?;
        let mut peer = PeerClient::connect(format!("http://{}", leader.peer_addr)).await?;
        let introduced = introduce(&mut peer, leader.node).await?;
        // The link stays until the step is taken.
        let frames = tokio_stream::iter([frame]).chain(tokio_stream::pending());
        let mut request = tonic::Request::new(frames);
        request.metadata_mut().insert_bin(IDENTITY_KEY, MetadataValue::from_bytes(&introduced));
        let _acks = peer.link(request).await?;
        let look = || async {
            match self.trace(at).await {
                Ok(trace) if trace == expected => Ok(()),
                other => Err(format!("{at} has {other:?}")),
            }
        };
        wait::until("a step is taken", PATIENCE, look).await
    }

    /// What the leader of a shard has of it.
    async fn trace(&self, at: ShardId) -> anyhow::Result<Trace> {
        let place = self.keys.iter().find(|(_, shard)| *shard == at).context("it has a key there")?.0;
        let request = v1::ListTxnsRequest { context: None, place: place.into(), limit: 0 };
        let leader = self.leaders.get(&at).context("the shard is led")?;
        let left = leader.clients.txns().list_txns(request).await?.into_inner();
        let id = self.id();
        let is_it = |name: &Option<v1::TxnName>| {
            name.as_ref().is_some_and(|name| (name.session, name.seq) == (id.session.get(), id.seq))
        };
        Ok(if left.prepared.iter().any(|part| is_it(&part.txn)) {
            Trace::Prepared
        } else if left.unfinished.iter().any(|record| is_it(&record.txn)) {
            Trace::Decided
        } else {
            Trace::Nothing
        })
    }
}

/// What a member other than `node` would say of itself on a link. A stranger is refused, but told who the members are.
async fn introduce(peer: &mut PeerClient<tonic::transport::Channel>, node: u64) -> anyhow::Result<Vec<u8>> {
    let stranger =
        v1::Identity { from: STRANGER, to: node, stage: v1::Stage::Empty.into(), ..v1::Identity::default() };
    let reply = peer.hello(sealed::seal::<v1::HelloRequest>(&stranger)).await?.into_inner();
    let answer = sealed::open(reply)?;
    ensure!(!answer.refused.is_empty(), "a stranger is taken in");
    let told = answer.identity.context("it introduces itself")?;
    let table = told.candidate.clone().context("it has a table")?;
    let other = table.members.iter().find(|member| member.node != node).context("there is another member")?;
    let identity =
        v1::Identity { from: other.node, to: node, incarnation: other.incarnation, speaker: None, ..told };
    Ok(sealed::seal::<v1::HelloRequest>(&identity).encode_to_vec())
}

/// Prepares the part of a transaction that writes two keys of different shards, at the shard of the second; nobody drives the
/// transaction after that.
///
/// # Errors
/// If the shard does not say yes.
pub async fn leave(cluster: &Cluster, anchor: Placed, other: Placed) -> anyhow::Result<TxnId> {
    let by_hand = ByHand::begin(cluster, &[anchor, other], "left").await?;
    by_hand.prepare(other.1).await?;
    Ok(by_hand.id())
}
