//! A snapshot whose connection breaks in its midst goes on where it was cut, while writes go on.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use kv_client::Config;
use kv_e2e::{Cluster, Ledger, Options, Writers};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// More entries than a replica keeps after a checkpoint.
const ENTRIES: usize = 30_000;

const VALUE_BYTES: usize = 4 << 10;

/// Connections are cut when they have carried so much: less than a tenth of the snapshot.
const CUT_AFTER_BYTES: u64 = 8 << 20;

/// How many connections are cut.
const CUTS: u64 = 3;

const PATIENCE: Duration = Duration::from_secs(60);

/// Carries connections to a port, and cuts the first few that have carried much.
#[derive(Debug)]
struct Relay {
    addr: String,
    cuts: Arc<AtomicU64>,
}

impl Relay {
    async fn start(to: String) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (addr, cuts) = (listener.local_addr()?.to_string(), Arc::new(AtomicU64::new(0)));
        let counted = Arc::clone(&cuts);
        tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                // A node that is down takes no connection: neither does this.
                let Ok(to) = TcpStream::connect(&to).await else { continue };
                let cuts = Arc::clone(&counted);
                tokio::spawn(async move {
                    // However it ends, both sockets are closed.
                    let _ = carry(from, to, &cuts).await;
                });
            }
        });
        Ok(Self { addr, cuts })
    }
}

async fn carry(mut from: TcpStream, mut to: TcpStream, cuts: &AtomicU64) -> std::io::Result<()> {
    let ((mut from_read, mut from_write), (mut to_read, mut to_write)) = (from.split(), to.split());
    let onward = async {
        let (mut buffer, mut carried) = (vec![0; 64 << 10], 0);
        loop {
            let read = from_read.read(&mut buffer).await?;
            carried += read as u64;
            let cut = |done: u64| (done < CUTS).then_some(done + 1);
            let cuts_it = carried > CUT_AFTER_BYTES
                && cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, cut).is_ok();
            if read == 0 || cuts_it {
                return Ok(());
            }
            to_write.write_all(buffer.get(..read).unwrap_or_default()).await?;
        }
    };
    tokio::select! {
        ended = onward => ended,
        ended = tokio::io::copy(&mut to_read, &mut from_write) => ended.map(drop),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_whose_connections_are_cut_goes_on_where_it_was() -> anyhow::Result<()> {
    let options = Options { nodes: 3, ..Options::beside() };
    let mut cluster = Cluster::prepare(options.flag("--wal-mb=192"))?;
    // All of them know the third node by the relay's address.
    let members = cluster.members();
    let (others, third) = members.rsplit_once(",3=").context("the third member")?;
    let relay = Relay::start(third.to_owned()).await?;
    let members = format!("--initial-members={others},3={}", relay.addr);
    for node in cluster.all() {
        cluster.launch_with(node, &[&members])?;
    }
    for node in cluster.all() {
        cluster.process(node)?.says(&format!("ready node={node} "), PATIENCE).await?;
    }
    cluster.led().await?;
    cluster.stop(&[3]).await?;
    let ledger = Arc::new(Ledger::default());
    let config = Config::new(cluster.endpoints_of(&[1, 2]));
    let writers = Writers::start_with(config, &ledger, "l", (&['a'], 256, VALUE_BYTES))?;
    writers.progress("more entries than the log keeps", ENTRIES, PATIENCE).await?;
    for node in [1, 2] {
        cluster.counted_to(3, node, "checkpoints_total", PATIENCE).await?;
    }
    cluster.launch_with(3, &[&members])?;
    cluster.process(3)?.says("ready node=3 ", PATIENCE).await?;
    // The meta group's snapshot, which is small, may be there first.
    cluster.counted(3, "snapshots_resumed_total", PATIENCE).await?;
    writers.progress("writes beside the snapshot", 1000, PATIENCE).await?;
    writers.stop().await?;
    cluster.agree().await?;
    let (cuts, resumed) =
        (relay.cuts.load(Ordering::SeqCst), cluster.metric(3, "snapshots_resumed_total").await?);
    let installed = cluster.metric(3, "snapshots_installed_total").await?;
    eprintln!("{cuts} connections were cut, {resumed} streams resumed, {installed} snapshots installed");
    eprintln!("{:?}", ledger.audit(&cluster.client()?).await?);
    cluster.finish().await
}
