//! `kvchaos`: the chaos proxy's command line.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use kv_chaos::{Server, cluster_links};
use kv_proto::v1::ListLinksRequest;
use kv_proto::v1::chaos_client::ChaosClient;
use kv_types::NodeId;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Quorate's chaos proxy.
#[derive(Parser)]
#[command(name = "kvchaos", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the proxy.
    Serve(Box<Serve>),
    /// Asks a proxy whether it serves; exit 0 if it does.
    Health(Health),
}

#[derive(Args)]
struct Health {
    /// Where the proxy is controlled.
    #[arg(long, env = "KVCHAOS_HEALTH_ADDR", default_value = "127.0.0.1:7600", value_name = "ADDR")]
    addr: String,
    /// How long to wait, in milliseconds.
    #[arg(long, default_value_t = 1000, value_name = "MS")]
    timeout_ms: u64,
}

#[derive(Args)]
struct Serve {
    /// The peer addresses of the nodes, as nodes would dial them: `1=HOST:PORT,2=HOST:PORT,...`; ids from 1 to 9.
    #[arg(long, env = "KVCHAOS_PEERS", value_name = "MEMBERS", value_parser = addresses)]
    peers: BTreeMap<NodeId, String>,
    /// The client addresses of the nodes; without it clients have no way through the proxy.
    #[arg(long, env = "KVCHAOS_CLIENTS", default_value = "", value_name = "MEMBERS", value_parser = addresses)]
    clients: BTreeMap<NodeId, String>,
    /// Where the links listen.
    #[arg(long, env = "KVCHAOS_LISTEN", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_name = "IP")]
    listen: IpAddr,
    /// Node a dials node b at this port + 10 a + b, clients dial node b at this port + b; 0 is any.
    #[arg(long, env = "KVCHAOS_BASE_PORT", default_value_t = 7600, value_name = "PORT")]
    base_port: u16,
    /// Where it is controlled by gRPC (`kvctl chaos`).
    #[arg(long, env = "KVCHAOS_CONTROL_ADDR", default_value = "127.0.0.1:7600", value_name = "ADDR")]
    control_addr: SocketAddr,
    /// Where metrics are served over HTTP.
    #[arg(long, env = "KVCHAOS_HTTP_ADDR", default_value = "127.0.0.1:7699", value_name = "ADDR")]
    http_addr: SocketAddr,
    /// Decides every draw of lots.
    #[arg(long, env = "KVCHAOS_SEED", default_value_t = 1)]
    seed: u64,
    /// All links are bytes: no rule looks at messages, and any protocol passes.
    #[arg(long)]
    bytes_only: bool,
    /// What is logged.
    #[arg(long, env = "KVCHAOS_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve(args) => run(*args),
        Command::Health(args) => health(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "kvchaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// On half of the cores, as the nodes: more threads only wake each other.
fn run(args: Serve) -> anyhow::Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    runtime.block_on(serve(args))
}

async fn serve(serve: Serve) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&serve.log).context("--log")?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    if serve.peers.is_empty() && serve.clients.is_empty() {
        bail!("--peers or --clients names the nodes to stand before");
    }
    let mut links = cluster_links(serve.listen, serve.base_port, (&serve.peers, &serve.clients))?;
    for link in &mut links {
        link.messages = !serve.bytes_only;
    }
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let server = Server::start(links, serve.seed, (serve.control_addr, serve.http_addr)).await?;
    let mut out = std::io::stdout();
    for (link, listen) in server.proxy().links() {
        writeln!(out, "link {link} {listen}")?;
    }
    writeln!(out, "ready control={} http={}", server.control_addr(), server.http_addr())?;
    out.flush()?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    server.stop().await;
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn health(Health { addr, timeout_ms }: Health) -> anyhow::Result<()> {
    let asked = async {
        let mut client = ChaosClient::connect(format!("http://{addr}")).await?;
        anyhow::Ok(client.list_links(ListLinksRequest {}).await?.into_inner().links.len())
    };
    let wait = Duration::from_millis(timeout_ms);
    let links =
        tokio::time::timeout(wait, asked).await.with_context(|| format!("{addr} does not answer"))??;
    writeln!(std::io::stdout(), "serving links={links}")?;
    Ok(())
}

/// Ids are one digit, for the ports of links.
fn addresses(text: &str) -> anyhow::Result<BTreeMap<NodeId, String>> {
    let mut found = BTreeMap::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (id, addr) =
            part.split_once('=').with_context(|| format!("`{part}`: ID=HOST:PORT is expected"))?;
        let id: u64 = id.parse().with_context(|| format!("`{part}`: the id is no number"))?;
        if !(1..=9).contains(&id) {
            bail!("`{part}`: ids from 1 to 9 are expected");
        }
        let is_address =
            addr.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if !is_address {
            bail!("`{part}`: HOST:PORT is expected after the `=`");
        }
        if found.insert(NodeId::new(id), addr.to_owned()).is_some() {
            bail!("`{part}`: the id is named twice");
        }
    }
    Ok(found)
}
