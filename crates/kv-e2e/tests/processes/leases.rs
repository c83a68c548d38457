//! Reads by the leader's lease: no message, and never stale.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use kv_client::{Client, Config};
use kv_e2e::{Cluster, Options, settings, wait};
use kv_types::{Key, ShardId, Value};

const PATIENCE: Duration = Duration::from_secs(60);

fn key() -> anyhow::Result<Key> {
    Ok(Key::new(Bytes::from_static(b"a/lease"))?)
}

async fn leased(cluster: &Cluster, node: u64) -> anyhow::Result<()> {
    let client = Client::new(Config::new(cluster.endpoints_of(&[node])))?;
    let look = || async {
        for answer in client.status_of_endpoints().await {
            let status = answer.answer.map_err(|cause| cause.to_string())?;
            if status.replicas.iter().any(|replica| replica.shard == 1 && replica.lease_ms > 0) {
                return Ok(());
            }
        }
        Err("no lease".to_owned())
    };
    wait::until("a lease", PATIENCE, look).await
}

/// Writes the value until a write is acknowledged: attempts at a sleeping node end without an answer.
async fn put_until_acknowledged(client: &Client, value: &str) -> anyhow::Result<()> {
    let look = || async {
        let value = Value::new(value.to_owned()).map_err(|cause| cause.to_string())?;
        let key = key().map_err(|cause| cause.to_string())?;
        client.put(key, value).await.map(drop).map_err(|cause| cause.to_string())
    };
    wait::until("an acknowledged write", PATIENCE, look).await
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_by_lease_cause_no_peer_message_and_the_mode_can_be_changed() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options { nodes: 3, ..Options::beside() }).await?;
    let leader = cluster.led().await?.get(&ShardId::new(1)).context("shard 1 is led")?.leader;
    let client = cluster.client()?;
    client.put(key()?, Value::new("1")?).await?;
    leased(&cluster, leader).await?;
    let rounds = |node| cluster.metric(node, "peer_messages_for_reads_total");
    let before = rounds(leader).await?;
    for _ in 0..10_000 {
        let got = client.get(key()?).await?;
        ensure!(got.row.is_some_and(|row| row.value.bytes() == "1"), "the value is there");
    }
    let caused = rounds(leader).await? - before;
    eprintln!("10,000 reads by lease: {caused} messages between peers");
    ensure!(caused == 0, "{caused} messages were sent for reads");

    client.set_setting("read-mode", "read-index").await?;
    let look = || async {
        client.get(key().map_err(|cause| cause.to_string())?).await.map_err(|cause| cause.to_string())?;
        let now = rounds(leader).await.map_err(|cause| cause.to_string())?;
        if now > before { Ok(()) } else { Err("no round".to_owned()) }
    };
    wait::until("reads by rounds", PATIENCE, look).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_slept_past_its_lease_serves_nothing_stale() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options { nodes: 3, ..Options::beside() }).await?;
    let mut cluster = sleepers(cluster).await?;
    // The same where the voters' own timeouts differ: what a lease rests on is what they were asked to promise.
    let all = cluster.all();
    cluster.kill(&all).await?;
    for (node, timeout) in all.iter().zip([300, 500, 1200]) {
        cluster.launch_with(*node, &[&format!("--election-timeout-ms={timeout}"), "--heartbeat-ms=50"])?;
    }
    sleepers(cluster).await?.finish().await
}

/// Puts the leader to sleep past its lease, and reads from it what others have written meanwhile.
async fn sleepers(mut cluster: Cluster) -> anyhow::Result<Cluster> {
    let tries = settings::number("QUORATE_LEASE_TRIES", 5)?;
    for nth in 0..tries {
        let leader = cluster.led().await?.get(&ShardId::new(1)).context("shard 1 is led")?.leader;
        let others: Vec<u64> = cluster.all().into_iter().filter(|node| *node != leader).collect();
        let (old, new) = (format!("{nth}-old"), format!("{nth}-new"));
        put_until_acknowledged(&cluster.client()?, &old).await?;
        leased(&cluster, leader).await?;
        // Reads on their way into the sleeping leader: they are answered, if at all, when it wakes.
        let sleeper = Client::new(Config::new(cluster.endpoints_of(&[leader])))?;
        ensure!(sleeper.get(key()?).await?.row.is_some(), "the connection stands");
        cluster.pause(&[leader]).await?;
        let reads: Vec<_> = (0..32)
            .map(|_| {
                let sleeper = sleeper.clone();
                let key = key();
                tokio::spawn(async move { sleeper.get(key?).await.map_err(anyhow::Error::from) })
            })
            .collect();
        let survivor = cluster.client_of(&others)?;
        // Acknowledged by a newer leader: from here on the old value is stale, for whoever reads after it. The reads above
        // were called before, so for them both are right; those below are not.
        put_until_acknowledged(&survivor, &new).await?;
        let late: Vec<_> = (0..32)
            .map(|_| {
                let sleeper = sleeper.clone();
                let key = key();
                tokio::spawn(async move { sleeper.get(key?).await.map_err(anyhow::Error::from) })
            })
            .collect();
        cluster.resume(&[leader])?;
        for read in reads {
            // Either value, or no answer.
            drop(read.await?);
        }
        let mut served = 0;
        for read in late {
            if let Ok(got) = read.await? {
                let row = got.row.context("the key is there")?;
                ensure!(
                    row.value.bytes() == new.as_bytes(),
                    "try {nth}: a stale read: {:?}",
                    row.value.bytes()
                );
                served += 1;
            }
        }
        eprintln!("try {nth}: {served} of 32 late reads answered, none stale");
    }
    Ok(cluster)
}
