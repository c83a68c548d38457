//! What a manager leaves that goes away between two steps of a transaction.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use kv_client::v1;
use kv_client::v1::peer_client::PeerClient;
use kv_client::v1::step_txn::Ask;
use kv_client::v1::step_txn_result::Result as Answer;
use kv_proto::sealed;
use kv_state::txn::{Transaction, TxnCommand, Write};
use kv_state::{Command, Envelope};
use kv_types::{ClusterTime, Key, Request, SessionId, SessionRequest, ShardId, TxnId, Value};

use crate::Cluster;
use crate::raw::{Raw, Session};

/// How long the session lives in whose name it is prepared.
const TTL: Duration = Duration::from_secs(60);

/// How long the participant may take, in milliseconds.
const PATIENCE_MS: u32 = 5000;

/// Prepares the part of a transaction that writes two keys of different shards, at the shard of the second; nobody drives the
/// transaction after that. The shard has it for two seconds: then it asks the anchor's shard, and ends it.
///
/// # Errors
/// If the shard does not say yes.
pub async fn leave(
    cluster: &Cluster,
    anchor: (&'static str, ShardId),
    other: (&'static str, ShardId),
) -> anyhow::Result<TxnId> {
    let led = cluster.led().await?;
    let leader = |shard: &ShardId| led.get(shard).map(|led| led.leader).context("the shard is led");
    let meta = cluster.endpoints_of(&[leader(&ShardId::META)?]);
    let meta = Raw::at(meta.first().context("it has an address")?)?;
    let session = Session::open(&meta, TTL).await?;
    let request = SessionRequest {
        session: SessionId::new(session.session),
        seq: 1,
        first_incomplete: 0,
        lease_until: ClusterTime::from_ms(session.lease_until_ms).context("a time")?,
    };

    let write = |key: &'static str| -> anyhow::Result<Write> {
        Ok(Write { key: Key::new(key)?, value: Some(Value::new("left")?) })
    };
    let writes = vec![write(anchor.0)?, write(other.0)?];
    let txn = Transaction::new(Key::new(anchor.0)?, Vec::new(), Vec::new(), writes)?;
    let owner = |key: &[u8]| if key == anchor.0.as_bytes() { anchor.1 } else { other.1 };
    let part = txn.parts(owner).remove(&other.1).context("it has a part there")?;
    let prepare = TxnCommand::Prepare { fingerprint: txn.fingerprint(), anchor: txn.anchor().clone(), part };
    let step = Envelope::once(Request::Session(request), Command::Txn(prepare))?;

    let status = cluster.client()?.status_of_endpoints().await;
    let told = status.into_iter().find_map(|node| node.answer.ok()).context("a node answers")?;
    let ask = Some(Ask::Step(step.encode()));
    let step = v1::StepTxn { deadline_ms: PATIENCE_MS, ask, reservation: 0 };
    let subject =
        v1::StepTxnsSubject { cluster_id: told.cluster_id, shard: other.1.get(), steps: vec![step] };
    let peer = cluster.peer_addr(leader(&other.1)?)?;
    let mut peer = PeerClient::connect(format!("http://{peer}")).await?;
    let reply = peer.step_txns(sealed::seal::<v1::StepTxnsRequest>(&subject)).await?.into_inner();
    let outcome = sealed::open(reply)?;
    let said_yes =
        |answer: &Answer| matches!(answer, Answer::Outcome(told) if told.answer() == v1::TxnAnswer::Prepared);
    let answer = outcome.results.first().and_then(|result| result.result.as_ref());
    ensure!(answer.is_some_and(said_yes), "{outcome:?}");
    Ok(request.txn())
}
