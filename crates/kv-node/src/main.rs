//! `kvnode`: the daemon's command line.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use kv_chaos::Server;
use kv_node::config::{Config, Flags};
use kv_node::dev::{DevCluster, Running};
use kv_node::logging;
use kv_node::{Listeners, Node};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// How often a development cluster looks whether every shard has a leader, and how many times.
const LEADERS_POLL: Duration = Duration::from_millis(10);
const LEADERS_POLLS: u32 = 300;

/// Quorate's daemon.
#[derive(Parser)]
#[command(name = "kvnode", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs one node.
    Serve(Serve),
    /// Runs a whole cluster in this process, on loopback.
    Dev(Dev),
    /// Asks a node whether it serves; exit 0 if it does.
    Health(Health),
    /// Checks the data directory of a node that does not run; exit 0 if it is sound, 1 if damaged.
    VerifyData(VerifyData),
}

#[derive(Args)]
struct Serve {
    #[command(flatten)]
    flags: Box<Flags>,
    /// A TOML file with the same names as the flags, `_` for `-`.
    #[arg(long, env = "KVNODE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Args)]
struct Dev {
    /// How many nodes.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=9))]
    nodes: u64,
    /// How many shards, the meta group not counted.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=26))]
    shards: u64,
    /// Node n serves clients on this port + n; 0 is any free port.
    #[arg(long, default_value_t = 7100)]
    base_port: u16,
    /// Keeps the data here over restarts; without it the data is gone at the end.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Has the nodes dial each other through a chaos proxy: `kvctl chaos` hurts what passes. It is controlled on the base port
    /// + 500.
    #[arg(long)]
    chaos: bool,
    /// What is logged.
    #[arg(long, env = "KVNODE_LOG", default_value = "warn", value_name = "FILTER")]
    log: String,
}

#[derive(Args)]
struct Health {
    /// The node's client address.
    #[arg(long, env = "KVNODE_HEALTH_ADDR", default_value = "127.0.0.1:7100", value_name = "ADDR")]
    addr: String,
    /// How long to wait, in milliseconds.
    #[arg(long, default_value_t = 1000, value_name = "MS")]
    timeout_ms: u64,
}

#[derive(Args)]
struct VerifyData {
    /// The data directory.
    #[arg(long, env = "KVNODE_DATA_DIR", value_name = "DIR")]
    data_dir: PathBuf,
    /// Deletes the ballast file first, which frees 64 MiB on a full disk.
    #[arg(long)]
    free_ballast: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    #[cfg(feature = "planted")]
    match kv_node::planted::choose() {
        Ok(Some(bug)) => eprintln!("kvnode: BUG ON PURPOSE: {bug:?}. This daemon breaks its promises."),
        Ok(None) => {}
        Err(cause) => return complain(&anyhow::Error::msg(cause)),
    }
    let done = match cli.command {
        Command::Serve(serve) => serve.run(),
        Command::Dev(dev) => on_all_cores(dev.run()),
        Command::Health(health) => on_all_cores(health.run()),
        Command::VerifyData(verify) => verify.run(),
    };
    match done {
        Ok(code) => code,
        Err(cause) => complain(&cause),
    }
}

fn on_all_cores(run: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<ExitCode> {
    Runtime::new()?.block_on(run)?;
    Ok(ExitCode::SUCCESS)
}

fn complain(cause: &anyhow::Error) -> ExitCode {
    eprintln!("kvnode: {cause:#}");
    ExitCode::FAILURE
}

/// A line that somebody waits for.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Whoever closed our output does not wait for it.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

impl Serve {
    fn run(self) -> anyhow::Result<ExitCode> {
        let flags = self.flags.over_file(self.config.as_deref())?;
        let config = flags.check()?;
        let runtime =
            Builder::new_multi_thread().worker_threads(config.worker_threads).enable_all().build()?;
        runtime.block_on(serve(config, &flags))?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn serve(config: Config, flags: &Flags) -> anyhow::Result<()> {
    let filter = flags.log.as_deref().unwrap_or("info");
    let form = flags.log_format.as_deref().unwrap_or("text");
    let log = logging::start(filter, form).map_err(anyhow::Error::msg)?;
    let listeners = Listeners::bind(config.client_addr, config.peer_addr, config.http_addr).await?;
    let id = config.node.get();
    let mut signals = Signals::listen()?;
    let mut node = Node::start(config, listeners, log).await?;
    tokio::select! {
        ready = node.ready() => if ready {
            say(&format!("ready node={id} client={}", node.client_addr));
        },
        () = signals.received() => node.stop(),
    }
    tokio::select! {
        stopped = node.stopped() => return Ok(stopped?),
        () = signals.received() => node.stop(),
    }
    Ok(node.stopped().await?)
}

/// SIGTERM and SIGINT, listened to from the start to the end: one that comes while nobody waits is not lost.
struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// Completes at the next signal that was not seen yet.
    async fn received(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

impl Dev {
    async fn run(self) -> anyhow::Result<()> {
        let log = logging::start(&self.log, "text").map_err(anyhow::Error::msg)?;
        let scratch = Scratch::new(self.data_dir.as_deref())?;
        let Self { nodes, shards, base_port, chaos, .. } = self;
        let cluster = DevCluster { nodes, shards, base_port, chaos };
        let mut signals = Signals::listen()?;
        let Running { mut nodes, chaos } = cluster.start(scratch.dir(), &log).await?;
        for (node, id) in nodes.iter_mut().zip(1..) {
            tokio::select! {
                ready = node.ready() => if ready {
                    say(&format!("ready node={id} client={}", node.client_addr));
                } else {
                    node.stopped().await.with_context(|| format!("n{id}"))?;
                },
                () = signals.received() => return stop_all(nodes).await,
            }
        }
        // A first write that meets a shard without a leader would only be slower; a greeting that waits for ever helps
        // nobody.
        for _ in 0..LEADERS_POLLS {
            if nodes.iter().all(|node| node.problem().is_none()) {
                break;
            }
            tokio::time::sleep(LEADERS_POLL).await;
        }
        self.greet(&nodes, chaos.as_ref(), &scratch);
        signals.received().await;
        stop_all(nodes).await?;
        if let Some(chaos) = chaos {
            chaos.stop().await;
        }
        Ok(())
    }

    fn greet(&self, nodes: &[Node], chaos: Option<&Server>, scratch: &Scratch) {
        let endpoints: Vec<&str> = nodes.iter().map(|node| node.client_addr.as_str()).collect();
        let kept = if scratch.kept { "kept" } else { "gone at the end; --data-dir keeps it" };
        say(&format!(
            "\n{} nodes, {} shards; data in {} ({kept})",
            nodes.len(),
            self.shards,
            scratch.dir().display()
        ));
        say("\nTry, in another terminal:");
        if self.base_port != 7100 || self.nodes != 5 {
            say(&format!("  export KVCTL_ENDPOINTS={}", endpoints.join(",")));
        }
        say("  kvctl put greeting hello\n  kvctl get greeting\n  kvctl status");
        if let Some(chaos) = chaos {
            say(&format!("  export KVCTL_CHAOS={}", chaos.control_addr()));
            say("  kvctl chaos isolate 'leader-of(1)'\n  kvctl chaos status\n  kvctl chaos heal");
        }
        say("\n(kvctl is `cargo run --release --bin kvctl --` in a checkout.) Ctrl-C ends the cluster.");
    }
}

async fn stop_all(mut nodes: Vec<Node>) -> anyhow::Result<()> {
    for node in &nodes {
        node.stop();
    }
    for node in &mut nodes {
        node.stopped().await?;
    }
    Ok(())
}

/// Where a development cluster keeps its data.
struct Scratch {
    dir: PathBuf,
    kept: bool,
}

impl Scratch {
    fn new(kept: Option<&std::path::Path>) -> anyhow::Result<Self> {
        if let Some(dir) = kept {
            return Ok(Self { dir: dir.to_owned(), kept: true });
        }
        let dir = std::env::temp_dir().join(format!("kvnode-dev-{}", std::process::id()));
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self { dir, kept: false })
    }

    fn dir(&self) -> &std::path::Path {
        &self.dir
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.kept {
            // What cannot be removed is left in the directory for temporary files.
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

impl Health {
    async fn run(self) -> anyhow::Result<()> {
        let asked = async {
            let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", self.addr))?;
            let mut client = HealthClient::new(endpoint.connect().await?);
            let request = HealthCheckRequest { service: "quorate.v1.KV".to_owned() };
            anyhow::Ok(client.check(request).await?.into_inner().status())
        };
        match tokio::time::timeout(Duration::from_millis(self.timeout_ms), asked).await {
            Ok(Ok(ServingStatus::Serving)) => {
                say("serving");
                Ok(())
            }
            Ok(Ok(_)) => bail!("{} does not serve", self.addr),
            Ok(Err(cause)) => Err(cause.context(format!("{} does not answer", self.addr))),
            Err(_) => bail!("{} does not answer within {} ms", self.addr, self.timeout_ms),
        }
    }
}

impl VerifyData {
    fn run(self) -> anyhow::Result<ExitCode> {
        logging::start("error", "text").map_err(anyhow::Error::msg)?;
        if self.free_ballast {
            let freed = kv_node::verify::free_ballast(&self.data_dir)?;
            say(if freed { "the ballast is deleted" } else { "there is no ballast" });
        }
        let report = kv_node::verify::verify(&self.data_dir)?;
        say(report.text.trim_end());
        say(if report.sound { "sound" } else { "damaged" });
        Ok(if report.sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
