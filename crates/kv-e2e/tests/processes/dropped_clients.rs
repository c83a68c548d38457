//! A client that is dropped leaves nothing behind at the nodes.

use std::time::Duration;

use kv_e2e::{Cluster, Options, wait};
use kv_types::{Key, Value};

const CLIENTS: usize = 40;

/// The node may have opened a few files of its own meanwhile.
const SLACK: usize = CLIENTS / 4;

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_dropped_closes_its_connections() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options { nodes: 1, ..Options::beside() }).await?;
    cluster.led().await?;
    let files = || -> anyhow::Result<usize> {
        let pids = cluster.pids();
        let folders = pids.iter().map(|pid| std::fs::read_dir(format!("/proc/{pid}/fd")));
        Ok(folders.map(|folder| folder.map(Iterator::count)).sum::<Result<usize, _>>()?)
    };
    let before = files()?;
    for number in 0..CLIENTS {
        let client = cluster.client()?;
        client.put(Key::new("key")?, Value::new(number.to_string())?).await?;
        client.get(Key::new("key")?).await?;
    }
    let look = || async {
        let now = files().map_err(|cause| cause.to_string())?;
        if now <= before + SLACK { Ok(()) } else { Err(format!("{now} open files, {before} before")) }
    };
    wait::until("the end of the connections", Duration::from_secs(20), look).await?;
    cluster.finish().await
}
