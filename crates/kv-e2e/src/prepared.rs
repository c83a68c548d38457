//! What a manager leaves that goes away between two steps of a transaction.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use kv_client::v1::peer_client::PeerClient;
use kv_client::v1::step_txn::Ask;
use kv_client::v1::step_txn_result::Result as Answer;
use kv_client::v1::{self, TxnAnswer};
use kv_proto::sealed;
use kv_state::txn::{Transaction, TxnCommand, Write};
use kv_state::{Command, Envelope};
use kv_types::{ClusterTime, Key, Request, SessionId, SessionRequest, ShardId, TxnId, Value};

use crate::Cluster;
use crate::cluster::Led;
use crate::raw::{Raw, Session};

/// How long the session lives in whose name it is prepared.
const TTL: Duration = Duration::from_secs(60);

/// How long a shard may take, in milliseconds.
const PATIENCE_MS: u32 = 5000;

/// A key, and the shard it lies on.
pub type Placed = (&'static str, ShardId);

/// A transaction that is driven from outside, as its manager would. Nobody drives it but whoever has this.
#[derive(Debug)]
pub struct ByHand {
    cluster_id: u64,
    /// Where the leader of each shard serves its peers, when it began.
    leaders: BTreeMap<ShardId, String>,
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
        let status = cluster.client()?.status_of_endpoints().await;
        let told = status.into_iter().find_map(|node| node.answer.ok()).context("a node answers")?;
        let leader = |(shard, led): (&ShardId, &Led)| Ok((*shard, cluster.peer_addr(led.leader)?));
        let leaders = led.iter().map(leader).collect::<anyhow::Result<_>>()?;
        Ok(Self { cluster_id: told.cluster_id, leaders, keys: keys.to_vec(), txn, request })
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
        self.ask(at, self.of_client(prepare)?, TxnAnswer::Prepared).await
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
        self.ask(anchor, self.of_client(commit)?, TxnAnswer::Committed).await
    }

    /// Has a participant end its part, after it was decided.
    ///
    /// # Errors
    /// If the shard does not.
    pub async fn resolve(&self, at: ShardId) -> anyhow::Result<()> {
        let (txn, fingerprint) = (self.id(), self.txn.fingerprint());
        let resolve = TxnCommand::Resolve { txn, fingerprint, committed: true };
        self.ask(at, Envelope::timed(Command::Txn(resolve))?, TxnAnswer::Resolved).await
    }

    fn owner(&self, key: &[u8]) -> Option<ShardId> {
        self.keys.iter().find(|(own, _)| own.as_bytes() == key).map(|(_, shard)| *shard)
    }

    fn of_client(&self, command: TxnCommand) -> anyhow::Result<Envelope> {
        Ok(Envelope::once(Request::Session(self.request), Command::Txn(command))?)
    }

    async fn ask(&self, at: ShardId, step: Envelope, expected: TxnAnswer) -> anyhow::Result<()> {
        let ask = Some(Ask::Step(step.encode()));
        let step = v1::StepTxn { deadline_ms: PATIENCE_MS, ask, reservation: 0 };
        let subject = v1::StepTxnsSubject { cluster_id: self.cluster_id, shard: at.get(), steps: vec![step] };
        let peer = self.leaders.get(&at).context("the shard is led")?;
        let mut peer = PeerClient::connect(format!("http://{peer}")).await?;
        let reply = peer.step_txns(sealed::seal::<v1::StepTxnsRequest>(&subject)).await?.into_inner();
        let outcome = sealed::open(reply)?;
        let answer = outcome.results.first().and_then(|result| result.result.as_ref());
        let is_so = |answer: &Answer| matches!(answer, Answer::Outcome(told) if told.answer() == expected);
        ensure!(answer.is_some_and(is_so), "{expected:?} is expected of {at}: {outcome:?}");
        Ok(())
    }
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
