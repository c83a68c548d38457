//! The manager of a transaction dies at each of its steps, or the leader of a participant does: nobody else waits for long, and
//! what is decided stands.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kv_client::{Client, v1};
use kv_e2e::leaders::lead;
use kv_e2e::prepared::{ByHand, Placed};
use kv_e2e::raw::Raw;
use kv_e2e::{Cluster, Options};
use kv_types::limits::TXN_PREPARED_TTL;
use kv_types::{Key, ShardId, Value};

use super::transactions::{nothing_left, patient};

const PATIENCE: Duration = Duration::from_secs(60);

/// The longest election timeout of a node that is told nothing else.
const ELECTION_MAX: Duration = Duration::from_secs(1);

/// Anchor and participants. Each shard is led by the node of its number.
const KEYS: [Placed; 3] = [("a/1", ShardId::new(1)), ("h/1", ShardId::new(2)), ("o/1", ShardId::new(3))];

/// The leaders that die: of the anchor's shard, and of the participant that hears last.
const VICTIMS: [(&str, u64); 2] = [("the manager", 1), ("the leader of a participant", 3)];

/// A manager ends what is decided at its next look, which may be before it is killed. Then it is tried anew, so often.
const TRIES_MAX: usize = 20;

/// The last step that was taken before the death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Nothing is prepared.
    Begun,
    /// All participants have said yes.
    Prepared,
    /// It is committed, and no participant knows.
    Decided,
    /// One participant knows.
    HalfResolved,
}

const STEPS: [Step; 4] = [Step::Begun, Step::Prepared, Step::Decided, Step::HalfResolved];

impl Step {
    fn is_decided(self) -> bool {
        matches!(self, Self::Decided | Self::HalfResolved)
    }
}

/// Drives a transaction up to a step and kills a node; when that was. `None` if the participants had heard of the decision.
async fn dies_at(
    cluster: &mut Cluster,
    step: Step,
    victim: u64,
    value: &str,
) -> anyhow::Result<Option<Instant>> {
    let by_hand = ByHand::begin(cluster, &KEYS, value).await?;
    let [_, (_, first), (_, last)] = KEYS;
    if step != Step::Begun {
        by_hand.prepare(first).await?;
        by_hand.prepare(last).await?;
    }
    if step.is_decided() {
        if victim == u64::from(last.get()) {
            // It hears of nothing any more.
            cluster.pause(&[victim]).await?;
        }
        by_hand.decide().await?;
    }
    if step == Step::HalfResolved {
        by_hand.resolve(first).await?;
    }
    cluster.kill(&[victim]).await?;
    let died = Instant::now();
    let mut left = Vec::new();
    for (key, shard) in [KEYS[1], KEYS[2]] {
        // Whom the victim has led nobody can say at once; what it has not heard is there.
        let is_there = u64::from(shard.get()) == victim || is_prepared(cluster, key, shard).await?;
        left.push(is_there);
    }
    let expected = match step {
        Step::Begun => return Ok(Some(died)),
        Step::Prepared | Step::Decided => [true, true],
        Step::HalfResolved => [false, true],
    };
    Ok((left == expected).then_some(died))
}

/// Whether a part is prepared, as the shard's leader says.
async fn is_prepared(cluster: &Cluster, key: &'static str, shard: ShardId) -> anyhow::Result<bool> {
    let leader = cluster.endpoints_of(&[shard.get().into()]);
    let leader = Raw::at(leader.first().context("it has an address")?)?;
    let request = v1::ListTxnsRequest { context: None, place: key.into(), limit: 0 };
    Ok(!leader.txns().list_txns(request).await?.into_inner().prepared.is_empty())
}

/// Reads and writes all keys at once, as anybody does; how long after the death all were read, and all written.
async fn served(client: &Client, died: Instant, seen: &str) -> anyhow::Result<[Duration; 2]> {
    let (mut read, mut written) = (Duration::ZERO, Duration::ZERO);
    let one = |key: &'static str| async move {
        let got = client.get(Key::new(key)?).await?.row.context("it is there")?;
        ensure!(got.value.as_ref() == seen.as_bytes(), "{key} is {:?}, not {seen}", got.value);
        let read = died.elapsed();
        client.put(Key::new(key)?, Value::new("between")?).await?;
        Ok((read, died.elapsed()))
    };
    let [(a, _), (h, _), (o, _)] = KEYS;
    let all = tokio::try_join!(one(a), one(h), one(o))?;
    for (of_read, of_write) in [all.0, all.1, all.2] {
        (read, written) = (read.max(of_read), written.max(of_write));
    }
    Ok([read, written])
}

#[tokio::test(flavor = "multi_thread")]
async fn who_dies_at_any_step_of_a_transaction_blocks_nobody_for_long() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let client = Client::new(patient(&cluster))?;
    for (key, shard) in KEYS {
        lead(&cluster, shard, shard.get().into()).await?;
        client.put(Key::new(key)?, Value::new("between")?).await?;
    }
    let expected = 2 * ELECTION_MAX + TXN_PREPARED_TTL;
    for (who, victim) in VICTIMS {
        for step in STEPS {
            let mut tries = 0;
            loop {
                tries += 1;
                ensure!(tries <= TRIES_MAX, "{who} has never died at {step:?}");
                let value = format!("{who} dies, {step:?}, {tries}");
                let died = dies_at(&mut cluster, step, victim, &value).await?;
                let seen = if step.is_decided() { &value } else { "between" };
                let [read, written] = served(&client, died.unwrap_or_else(Instant::now), seen).await?;
                cluster.start_nodes(&[victim]).await?;
                nothing_left(&cluster, PATIENCE).await?;
                for (_, shard) in KEYS {
                    lead(&cluster, shard, shard.get().into()).await?;
                }
                if died.is_some() {
                    eprintln!(
                        "{who} dies, {step:?}: all is read after {read:?}, written after {written:?} (try {tries})"
                    );
                    ensure!(read.max(written) < 2 * expected, "{step:?}, {who}: {read:?}, {written:?}");
                    break;
                }
            }
        }
    }
    cluster.agree().await?;
    cluster.finish().await
}
