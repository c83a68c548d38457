//! Many sessions at once: what they cost while they live, and that nothing of them is left when they have ended.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kv_client::v1;
use kv_e2e::raw::{Raw, Session, Way, incr};
use kv_e2e::{Cluster, Options, cpu, memory, settings, wait};
use kv_types::ShardId;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

/// Keys on each of the four shards.
const KEYS: [&str; 4] = ["a", "h", "o", "u"];

/// Calls under way at once.
const AT_ONCE: usize = 64;

/// Sessions of one client, which it renews by one call.
const OF_A_CLIENT: usize = 4;

/// A session is renewed so often in its time to live.
const RENEWALS_PER_TTL: u32 = 3;

const PATIENCE: Duration = Duration::from_secs(120);

/// What a call is about and where it goes, for each of many.
async fn each<T, F>(many: usize, call: impl Fn(usize) -> F) -> anyhow::Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = anyhow::Result<T>> + Send + 'static,
{
    let (mut calls, mut done) = (JoinSet::new(), Vec::with_capacity(many));
    for number in 0..many {
        while calls.len() >= AT_ONCE {
            done.push(calls.join_next().await.context("a call is under way")???);
        }
        calls.spawn(call(number));
    }
    while let Some(call) = calls.join_next().await {
        done.push(call??);
    }
    Ok(done)
}

/// CPU of the meta group's leader and of all nodes, in percent of a core, while some work goes on.
async fn cpu_while(
    cluster: &Cluster,
    leader: u32,
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<(f64, f64)> {
    let used = || -> anyhow::Result<(Duration, Duration)> {
        let all = cluster.pids().into_iter().map(cpu::cpu_time).sum::<anyhow::Result<Duration>>()?;
        Ok((cpu::cpu_time(leader)?, all))
    };
    let (before, began) = (used()?, Instant::now());
    work.await?;
    let (after, span) = (used()?, began.elapsed());
    let percent = |after: Duration, before: Duration| 100.0 * (after - before).div_duration_f64(span);
    Ok((percent(after.0, before.0), percent(after.1, before.1)))
}

/// Renews all sessions for a while, each three times in its time to live.
async fn renew(meta: &Raw, sessions: &[u64], ttl: Duration, span: Duration) -> anyhow::Result<()> {
    let clients: Vec<&[u64]> = sessions.chunks(OF_A_CLIENT).collect();
    let every = (ttl / RENEWALS_PER_TTL).div_f64(clients.len() as f64);
    let mut ticks = interval(every.max(Duration::from_micros(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (began, mut calls) = (Instant::now(), JoinSet::new());
    for mine in clients.into_iter().cycle() {
        if began.elapsed() >= span {
            break;
        }
        ticks.tick().await;
        let (meta, sessions) = (meta.clone(), mine.to_vec());
        calls.spawn(async move {
            let asked = v1::RenewSessionsRequest { context: None, sessions };
            let renewed = meta.sessions().renew_sessions(asked).await?.into_inner().sessions;
            ensure!(renewed.iter().all(|session| session.lease_until_ms.is_some()), "{renewed:?}");
            Ok(())
        });
        while let Some(ended) = calls.try_join_next() {
            ended??;
        }
    }
    while let Some(ended) = calls.join_next().await {
        ended??;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_sessions_cost_little_and_leave_nothing_behind() -> anyhow::Result<()> {
    let count = usize::try_from(settings::number("QUORATE_SESSIONS", 400)?)?;
    let ttl = Duration::from_secs(settings::number("QUORATE_SESSION_TTL", 6)?);
    let span = ttl / 2;
    let cluster = Cluster::start(Options::default()).await?;
    let led = cluster.led().await?;
    let at = |shard: u32| -> anyhow::Result<(u64, Raw)> {
        let leader = led.get(&ShardId::new(shard)).context("every shard is led")?.leader;
        let endpoints = cluster.endpoints_of(&[leader]);
        Ok((leader, Raw::at(endpoints.first().context("it has an address")?)?))
    };
    let (leader, meta) = at(0)?;
    let position = cluster.all().iter().position(|node| *node == leader).context("it is one of them")?;
    let leader = *cluster.pids().get(position).context("it runs")?;
    let shards: Arc<Vec<Raw>> =
        Arc::new((1..=4).map(|shard| Ok(at(shard)?.1)).collect::<anyhow::Result<_>>()?);

    let rest = async {
        tokio::time::sleep(span).await;
        Ok(())
    };
    let idle = cpu_while(&cluster, leader, rest).await?;
    let before = memory::resident_bytes(leader)?;
    let opened = each(count, |_| {
        let meta = meta.clone();
        async move { Session::open(&meta, ttl).await }
    })
    .await?;
    let sessions: Vec<u64> = opened.iter().map(|session| session.session).collect();
    let kept: Arc<Vec<Session>> = Arc::new(opened);
    let busy = async {
        each(count, |number| {
            let (shards, kept) = (Arc::clone(&shards), Arc::clone(&kept));
            async move {
                let session = kept.get(number).context("it is open")?;
                for (node, key) in shards.iter().zip(KEYS) {
                    let sent = node.send(Way::Unary, incr(key, 1), Some(session.request(1, 0))).await?;
                    sent.map_err(|refused| anyhow::anyhow!("{refused:?}"))?;
                }
                Ok(())
            }
        })
        .await
    };
    // They are renewed meanwhile: with many, it takes longer than they live.
    let (written, _) = tokio::join!(busy, renew(&meta, &sessions, ttl, span));
    written?;
    let after = memory::resident_bytes(leader)?;
    let renewing = cpu_while(&cluster, leader, renew(&meta, &sessions, ttl, span)).await?;
    eprintln!(
        "{count} sessions of {ttl:?} with a write to each shard: memory of the meta group's leader {} KiB more; \
         CPU in percent of a core, of it and of all nodes: idle {:.1} and {:.1}, renewing {:.1} and {:.1}",
        after.saturating_sub(before) / 1024,
        idle.0,
        idle.1,
        renewing.0,
        renewing.1
    );
    let client = cluster.client()?;
    let first = kv_types::SessionId::new(*sessions.first().context("there are some")?);
    ensure!(client.session(first).await?.progress.len() == KEYS.len(), "every shard knows it");

    // Nobody renews them any more.
    let nothing_left = || async {
        let page = client.sessions(None).await.map_err(|cause| cause.to_string())?;
        let known = client.session(first).await.map_err(|cause| cause.to_string())?.progress.len();
        if page.sessions.is_empty() && known == 0 {
            Ok(())
        } else {
            Err(format!("{} sessions, the first known to {known} shards", page.sessions.len()))
        }
    };
    wait::until("all sessions to be forgotten", PATIENCE + ttl, nothing_left).await?;
    cluster.finish().await
}
