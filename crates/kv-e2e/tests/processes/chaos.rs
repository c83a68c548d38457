//! Nodes that dial each other through a chaos proxy.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kv_drill::{Chaos, Process, ports};
use kv_e2e::{Cluster, Options, binaries, http, kvctl, wait};
use kv_types::{Key, Value};

/// How soon writes succeed again once a proxy that died is back.
const BACK_MAX: Duration = Duration::from_secs(2);

const WAIT: Duration = Duration::from_secs(60);

/// A proxy, and nodes that dial each other at it.
struct Rig {
    cluster: Cluster,
    proxy: Process,
    base: u16,
}

impl Rig {
    async fn start() -> anyhow::Result<Self> {
        let mut cluster = Cluster::prepare(Options { nodes: 3, ..Options::default() })?;
        let base = ports::block(100)?;
        let proxy = proxy(&cluster, base).await?;
        for node in cluster.all() {
            let others = cluster.all().into_iter().filter(|other| *other != node);
            let proxies =
                others.map(|other| format!("{other}=127.0.0.1:{}", u64::from(base) + 10 * node + other));
            let flag = format!("--peer-proxies={}", proxies.collect::<Vec<_>>().join(","));
            cluster.launch_with(node, &[&flag])?;
        }
        for node in cluster.all() {
            cluster.process(node)?.says(&format!("ready node={node} "), WAIT).await?;
        }
        Ok(Self { cluster, proxy, base })
    }

    fn chaos(&self) -> anyhow::Result<Chaos> {
        Ok(Chaos::new(&format!("127.0.0.1:{}", self.base), Duration::from_secs(5))?)
    }
}

async fn proxy(cluster: &Cluster, base: u16) -> anyhow::Result<Process> {
    let args = [
        "serve".to_owned(),
        format!("--peers={}", cluster.members()),
        format!("--base-port={base}"),
        format!("--control-addr=127.0.0.1:{base}"),
        format!("--http-addr=127.0.0.1:{}", base + 99),
    ];
    let mut proxy = Process::spawn(&binaries::path_of("kvchaos")?, &args, &cluster.scratch("chaos.log"))?;
    proxy.says("ready control=", WAIT).await?;
    Ok(proxy)
}

#[tokio::test]
async fn a_proxy_that_dies_is_dialled_again_when_it_is_back() -> anyhow::Result<()> {
    let mut rig = Rig::start().await?;
    let client = rig.cluster.client_with_timeout(Duration::from_secs(20))?;
    let (key, value) = (Key::new("apple")?, |value: &str| Value::new(value.to_owned()));
    client.put(key.clone(), value("before")?).await?;

    rig.proxy.kill().await?;
    rig.proxy = proxy(&rig.cluster, rig.base).await?;
    let back = Instant::now();
    client.put(key.clone(), value("after")?).await?;
    let took = back.elapsed();
    eprintln!("a write succeeded {} ms after the proxy was back", took.as_millis());
    ensure!(took < BACK_MAX, "it took {took:?}");
    let got = client.get(key).await?;
    ensure!(got.row.context("the key is gone")?.value == value("after")?);
    rig.cluster.finish().await
}

#[tokio::test]
async fn what_a_rule_matches_is_seen_in_table_and_metrics() -> anyhow::Result<()> {
    let rig = Rig::start().await?;
    let chaos = rig.chaos()?;
    let rule = kv_fault::Draft::parse("{ name = \"late\", kinds = [\"heartbeat\"], delay = \"5ms\" }")?;
    let rule = rule.into_rule().context("it names no role")?;
    chaos.load(std::slice::from_ref(&rule), None).await?;
    ensure!(chaos.load(&[rule], None).await.is_err_and(|error| error.to_string().contains("late")));
    let matched = || async {
        let rules = chaos.rules().await.map_err(|error| error.to_string())?.rules;
        let matched: u64 = rules.iter().flat_map(|rule| &rule.counts).map(|count| count.matched).sum();
        if matched > 20 { Ok(()) } else { Err(matched.to_string()) }
    };
    wait::until("heartbeats are matched", WAIT, matched).await?;
    let (_, page) = http::get(rig.base + 99, "/metrics").await?;
    ensure!(page.contains("kvchaos_matched_total{rule=\"late\",link=\"n"), "{page}");
    ensure!(chaos.heal(None, false).await? == ["late"]);

    let strange = kv_fault::Draft::parse("{ name = \"far\", links = [\"n1->n8\"], drop = true }")?;
    let strange = strange.into_rule().context("it names no role")?;
    let refused = chaos.load(&[strange], None).await;
    ensure!(refused.is_err_and(|error| error.to_string().contains("no link n1->n8")));
    rig.cluster.finish().await
}

/// Rules about single links, told by hand, shown, and put in force again as they were shown.
#[tokio::test]
async fn rules_are_told_by_kvctl_and_loaded_again_as_they_are_shown() -> anyhow::Result<()> {
    let rig = Rig::start().await?;
    rig.cluster.led().await?;
    let (endpoints, control) = (rig.cluster.endpoints().join(","), format!("127.0.0.1:{}", rig.base));
    let told = |args: &[&str], input: &str| {
        let words: Vec<&str> =
            ["-o", "json", "chaos", "--chaos", &control].into_iter().chain(args.iter().copied()).collect();
        let ended = kvctl::kvctl_fed(&endpoints, &words, input.as_bytes())?;
        ensure!(ended.code == Some(0), "{args:?}: {ended:?}");
        Ok(serde_json::from_str::<serde_json::Value>(&ended.stdout)?)
    };
    told(&["slow", "1", "2", "--latency", "20ms"], "")?;
    told(&["drop", "--kind", "vote", "--link", "n1->n3", "--name", "no-votes"], "")?;
    told(&["slow", "*", "leader-of(1)", "--latency", "10ms", "--jitter", "5ms", "--name", "all"], "")?;
    let shown = told(&["status"], "")?;
    let rules: Vec<&str> =
        shown["rules"].as_array().context("rules")?.iter().filter_map(|rule| rule["rule"].as_str()).collect();
    ensure!(rules.len() == 3, "{shown}");
    ensure!(told(&["heal"], "")?["healed"].as_array().is_some_and(|healed| healed.len() == 3));
    let again = kvctl::kvctl_fed(
        &endpoints,
        &["chaos", "--chaos", &control, "load", "-"],
        (rules.join("\n") + "\n").as_bytes(),
    )?;
    ensure!(again.code == Some(0) && again.stdout.lines().count() == 3, "{again:?}");
    let strange =
        kvctl::kvctl(&endpoints, &["chaos", "--chaos", &control, "slow", "1", "8", "--latency", "1ms"])?;
    ensure!(strange.code == Some(1) && strange.stderr.contains("no link n1->n8"), "{strange:?}");
    told(&["heal"], "")?;
    ensure!(told(&["watch"], "")?["watching"] == true && told(&["log"], "")?["log"].is_null());
    rig.cluster.finish().await
}
