//! Who leads a shard, and having another node lead it.

use std::time::Duration;

use anyhow::Context as _;
use kv_types::{NodeId, ShardId};

use crate::{Cluster, wait};

/// How long a change of the leader may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The node that leads a shard.
///
/// # Errors
/// If none does.
pub async fn leader_of(cluster: &Cluster, shard: ShardId) -> anyhow::Result<u64> {
    Ok(cluster.led().await?.get(&shard).context("the shard is led")?.leader)
}

/// Has a node lead a shard.
///
/// # Errors
/// If it does not come to that.
pub async fn lead(cluster: &Cluster, shard: ShardId, node: u64) -> anyhow::Result<()> {
    let client = cluster.client()?;
    let look = || async {
        let led = leader_of(cluster, shard).await.map_err(|cause| format!("{cause:#}"))?;
        if led == node {
            return Ok(());
        }
        // One that is not ready to lead is asked again.
        let asked = client.transfer_leader(shard, NodeId::new(node)).await;
        Err(format!("n{led} leads {shard}; {asked:?}"))
    };
    wait::until("a change of the leader", PATIENCE, look).await
}
