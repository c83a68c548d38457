//! A disk without a single free byte: nothing acknowledged is lost, and the node comes back once there is room.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use kv_client::{Client, Config};
use kv_e2e::{Cluster, Ledger, Options, Process, Writers, binaries, leaders, wait, writers};
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_secs(60);

/// More than a node needs to start, and little enough to be filled at once.
const DISK_MIB: usize = 512;

/// With room for what a node is sent while its disk is full, too.
const ROOMY_DISK_MIB: usize = 768;

/// A file system of its own, which lives as long as the process that holds it.
struct OwnDisk {
    holder: Process,
    at: PathBuf,
}

impl OwnDisk {
    /// `None` if this machine does not let users mount, after saying so.
    async fn mount(mib: usize, at: &Path, log: &Path) -> anyhow::Result<Option<Self>> {
        std::fs::create_dir_all(at)?;
        let script = format!(
            "mount -t tmpfs -o size={mib}m tmpfs '{}' && echo mounted && exec tail -f /dev/null",
            at.display()
        );
        let mut holder = match Process::spawn(Path::new("unshare"), &["-rm", "sh", "-c", &script], log) {
            Ok(holder) => holder,
            Err(cause) => {
                eprintln!("NOT TESTED: a full disk needs `unshare`: {cause:#}");
                return Ok(None);
            }
        };
        if holder.says("mounted", PATIENCE).await.is_err() {
            let said = holder.output()?;
            eprintln!(
                "NOT TESTED: a full disk needs a mount of one's own, which is not permitted here: {said}"
            );
            return Ok(None);
        }
        Ok(Some(Self { holder, at: at.to_owned() }))
    }

    /// Runs a program that sees the file system.
    fn run(&self, program: &Path, args: &[String], log: &Path) -> anyhow::Result<Process> {
        let holder = self.holder.pid().to_string();
        let enter = ["-t", &holder, "-U", "-m", "--preserve-credentials", "--"].map(str::to_owned);
        let program = program.display().to_string();
        let args: Vec<String> = enter.into_iter().chain([program]).chain(args.iter().cloned()).collect();
        Ok(Process::spawn(Path::new("nsenter"), &args, log)?)
    }

    /// A file of it, as this process reaches it.
    fn file(&self, name: &str) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.pid()));
        root.join(self.at.strip_prefix("/").unwrap_or(&self.at)).join(name)
    }

    /// Takes all that is free.
    fn fill(&self) -> anyhow::Result<u64> {
        let mut file = File::create(self.file("filler"))?;
        let mut written = 0;
        for block in [1 << 20, 4096] {
            let block = vec![1; block];
            while file.write_all(&block).is_ok() {
                written += block.len() as u64;
            }
        }
        Ok(written)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing_and_the_node_comes_back_when_there_is_room() -> anyhow::Result<()> {
    let options = Options { nodes: 1, split_keys: String::new(), ..Options::beside() };
    let flags = ["--wal-mb=192", "--memtable-mb=8", "--disk-free-min-mb=0"];
    let cluster = Cluster::prepare(flags.iter().fold(options, |options, flag| options.flag(flag)))?;
    let (at, mount_log) = (cluster.data_dir(1), cluster.scratch("mount.log"));
    let Some(mut disk) = OwnDisk::mount(DISK_MIB, &at, &mount_log).await? else {
        return cluster.finish().await;
    };
    let (program, args, log) = (binaries::path_of("kvnode")?, cluster.serve_args(1)?, cluster.log(1));
    let mut node = disk.run(&program, &args, &log)?;
    node.says("ready node=1 ", PATIENCE).await?;
    let settings = |timeout| Config { timeout, ..Config::new(cluster.endpoints_of(&[1])) };
    let client = Client::new(settings(PATIENCE))?;
    let ledger = Arc::new(Ledger::default());
    writers::put(&client, &ledger, "before", "x".into()).await??;
    let taken = disk.fill()?;
    ensure!(taken > 0, "there was nothing left to fill");

    let pushing =
        Writers::start_with(settings(Duration::from_secs(1)), &ledger, "full", (&['a'], 16, 32 << 10))?;
    // It refuses or it stops.
    let mut look = || match node.ended() {
        Ok(Some(status)) => Ok(Some(status)),
        Ok(None) => {
            let failures = ledger.failures();
            let full = failures.iter().filter(|(failure, _)| failure.starts_with("ResourceExhausted"));
            let refused: usize = full.map(|(_, count)| count).sum();
            if refused >= 100 { Ok(None) } else { Err(format!("{refused} writes refused")) }
        }
        Err(cause) => Err(cause.to_string()),
    };
    let looked = || std::future::ready(look());
    let ended = wait::until("a node whose disk is full refuses or stops", PATIENCE, looked).await?;
    pushing.stop().await?;
    let output = node.output()?;
    let last = output.lines().last().unwrap_or_default();
    eprintln!(
        "{} MiB taken away; ended {ended:?}: {last}; {} acknowledged, failures {:?}",
        taken >> 20,
        ledger.count(),
        ledger.failures()
    );
    ensure!(!output.contains("panicked"), "{output}");
    match ended {
        Some(status) => {
            ensure!(status.code() == Some(1) && last.contains("No space left"), "{status}: {output}");
        }
        None => {
            node.signal(Signal::TERM)?;
            node.ends(PATIENCE).await?;
        }
    }

    std::fs::remove_file(disk.file("filler"))?;
    let mut node = disk.run(&program, &args, &log)?;
    node.says("ready node=1 ", PATIENCE).await?;
    writers::put(&client, &ledger, "after", "x".into()).await??;
    eprintln!("{:?}", ledger.audit(&client).await?);
    node.signal(Signal::TERM)?;
    ensure!(node.ends(PATIENCE).await?.success(), "an orderly stop: {}", node.output()?);
    disk.holder.kill().await?;
    cluster.finish().await
}

/// It waits with what it cannot store and catches up once there is room.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_whose_disk_is_full_lives_on_and_holds_nobody_up() -> anyhow::Result<()> {
    const FULL: u64 = 3;
    let options = Options { nodes: 3, split_keys: String::new(), ..Options::beside() };
    let flags = ["--wal-mb=192", "--memtable-mb=16"];
    let mut cluster = Cluster::prepare(flags.iter().fold(options, |options, flag| options.flag(flag)))?;
    let (at, mount_log) = (cluster.data_dir(FULL), cluster.scratch("mount.log"));
    let Some(mut disk) = OwnDisk::mount(ROOMY_DISK_MIB, &at, &mount_log).await? else {
        return cluster.finish().await;
    };
    cluster.launch(1)?;
    cluster.launch(2)?;
    // Merges look for room before they begin.
    let free_min = "--disk-free-min-mb=64".to_owned();
    let args = cluster.serve_args(FULL)?.into_iter().filter(|arg| !arg.starts_with("--disk-free-min-mb"));
    let args: Vec<String> = args.chain([free_min]).collect();
    let node = disk.run(&binaries::path_of("kvnode")?, &args, &cluster.log(FULL))?;
    cluster.adopt(FULL, node);
    for node in cluster.all() {
        cluster.process(node)?.says(&format!("ready node={node} "), PATIENCE).await?;
    }
    for shard in cluster.led().await?.into_keys() {
        leaders::lead(&cluster, shard, 1).await?;
    }
    let ledger = Arc::new(Ledger::default());
    writers::put(&cluster.client()?, &ledger, "before", "x".into()).await??;
    cluster.agree().await?;
    let taken = disk.fill()?;

    let settings = Config { timeout: PATIENCE, ..Config::new(cluster.endpoints_of(&[1, 2])) };
    let pushing = Writers::start_with(settings, &ledger, "full", (&['a'], 8, 32 << 10))?;
    pushing.progress("writes while the disk of a follower is full", 4000, PATIENCE).await?;
    pushing.stop().await?;
    let full = cluster.process(FULL)?;
    ensure!(full.ended()?.is_none(), "it stopped: {}", full.output()?);
    full.says("the disk is full: nothing is applied until space is freed", PATIENCE).await?;
    eprintln!(
        "{} MiB taken away; {} acknowledged, failures {:?}",
        taken >> 20,
        ledger.count(),
        ledger.failures()
    );
    ensure!(ledger.failures().is_empty(), "the other two are a majority");

    std::fs::remove_file(disk.file("filler"))?;
    cluster.agree().await?;
    cluster.process(FULL)?.says("the disk has room again", PATIENCE).await?;
    eprintln!("{:?}", ledger.audit(&cluster.client()?).await?);
    let stopped = cluster.stop(&[FULL]).await?;
    ensure!(stopped.iter().all(|status| status.success()), "an orderly stop: {stopped:?}");
    disk.holder.kill().await?;
    cluster.finish().await
}
