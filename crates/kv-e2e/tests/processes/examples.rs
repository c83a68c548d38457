//! The worked examples: a hundred runs of each, ten at a time, and every one ends as it must.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kv_client::{Client, Config, Tries};
use kv_e2e::examples::{Names, Report, back_order, bank, last_item, order, register};
use kv_e2e::{Cluster, Options, settings};
use tokio::task::JoinSet;

/// Runs that are under way at once.
const AT_ONCE: usize = 10;

/// Runs an example many times; every report, in no order, all of them checked.
async fn many<R, F>(
    name: &str,
    clients: &[Client],
    run: impl Fn(Client, Names) -> F,
) -> anyhow::Result<Vec<R>>
where
    R: Report + Send + 'static,
    F: Future<Output = anyhow::Result<R>> + Send + 'static,
{
    let runs = usize::try_from(settings::number("QUORATE_EXAMPLE_RUNS", 100)?)?;
    let (began, mut under_way, mut reports) = (Instant::now(), JoinSet::new(), Vec::new());
    let mut longest = Duration::ZERO;
    for at in 0..runs + AT_ONCE {
        if at < runs {
            let client = clients.get(at % clients.len()).context("there is a client")?.clone();
            let run = run(client, Names::new(format!("{name}-{at}")));
            under_way.spawn(async move {
                let began = Instant::now();
                (at, run.await, began.elapsed())
            });
        }
        if at + 1 >= AT_ONCE {
            let Some(ended) = under_way.join_next().await else { break };
            let (at, report, took) = ended?;
            let report = report.with_context(|| format!("run {at} of {name}"))?;
            report.check().with_context(|| format!("run {at} of {name}"))?;
            longest = longest.max(took);
            reports.push(report);
        }
    }
    ensure!(reports.len() == runs, "{} runs of {name} have ended", reports.len());
    eprintln!("{name}: {runs} runs in {:?}, the longest in {longest:?}", began.elapsed());
    Ok(reports)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_run_of_every_example_ends_as_it_must() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options { nodes: 3, ..Options::beside() }).await?;
    cluster.led().await?;
    let transact = Tries { max: u32::MAX, within: Duration::from_secs(20) };
    let config = Config { timeout: Duration::from_secs(10), transact, ..Config::new(cluster.endpoints()) };
    let clients = [Client::new(config.clone())?, Client::new(config)?];

    let run = |client, names| async move { register::run(&client, &names).await };
    let reports = many("register", &clients, run).await?;
    let first = reports.iter().filter(|report| report.told[0].1 == register::Answer::Yours).count();
    eprintln!("  the first user won {first} times");

    let run = |client, names| async move { last_item::run(&client, &names).await };
    let reports = many("last_item", &clients, run).await?;
    let first = reports.iter().filter(|report| report.told[0].1 == last_item::Answer::Bought).count();
    eprintln!("  the first buyer won {first} times");

    let run = |client, names| async move { bank::run(&client, &names).await };
    let reports = many("bank", &clients, run).await?;
    let looks: usize = reports.iter().map(|report| report.seen.looks).sum();
    let refused = reports.iter().flat_map(|report| &report.transfers).filter(|made| !made.done).count();
    ensure!(looks >= reports.len() && refused > 0, "{looks} looks, {refused} refused: nothing was shown");
    eprintln!("  {looks} looks, {refused} transfers refused");

    let run = |client, names| async move { back_order::run(&client, &names).await };
    let reports = many("back_order", &clients, run).await?;
    let first = reports.iter().filter(|report| report.events["anna"] == "sent").count();
    eprintln!("  the first customer came first {first} times");

    let run = |client, names| async move { order::run(&client, &names).await };
    let reports = many("order", &clients, run).await?;
    let known = |report: &order::OrderReport| report.done_before_cut + report.done_by_others;
    let applied = reports.iter().filter(|report| known(report) < report.found.messages.len()).count();
    let whole = reports.iter().filter(|report| report.found.orders.contains("cut-off")).count();
    eprintln!(
        "  {whole} orders of those cut off are there; {applied} messages were done by a consumer cut off"
    );
    cluster.finish().await
}
