//! When all is mended.

use std::collections::BTreeSet;
use std::time::Duration;

use kv_types::NodeId;

use crate::error::RunError;
use crate::local::Local;
use crate::record::Replica;
use crate::watch::{Watch, one_state};

/// How long the replicas may take to hold the same when no client writes.
const AGREE_MAX: Duration = Duration::from_secs(30);

/// How long a node whose disk was wiped may take to find out that its id is spent.
const LEAVE_MAX: Duration = Duration::from_secs(10);

/// Between two looks at the replicas.
const LOOK: Duration = Duration::from_millis(100);

/// Waits until the processes that were started again serve. What is wrong with any, in sentences; and who has left the
/// cluster for good, as one must that was wiped. What nodes did without the proxy is not their fault.
pub(super) async fn processes(
    local: Option<&mut Local>,
) -> Result<(Vec<String>, BTreeSet<NodeId>), RunError> {
    let Some(local) = local else { return Ok((Vec::new(), BTreeSet::new())) };
    if let Some(why) = local.proxy_failed()? {
        return Err(RunError::Cluster(why));
    }
    let mut wrongs = Vec::new();
    for node in local.ids() {
        match local.await_ready(node).await {
            // Whether it should have ended is asked below.
            Ok(()) | Err(RunError::Ended { .. }) => {}
            Err(RunError::Late { limit, .. }) => {
                wrongs.push(format!("{node} did not serve again within {} s", limit.as_secs()));
            }
            Err(error) => return Err(error),
        }
    }
    for node in local.outlive_their_disks(LEAVE_MAX).await? {
        wrongs.push(format!("{node} goes on under its id, although its disk was wiped"));
    }
    let (died, left) = local.died();
    wrongs.extend(died.into_iter().map(|node| format!("{node} ended by itself: see its log")));
    wrongs.extend(local.panicked().into_iter().map(|node| format!("{node} panicked: see its log")));
    Ok((wrongs, left.into_iter().collect()))
}

/// Waits until all replicas of each shard have one state, but for those of nodes that have left; what they have come to, and whether they have.
pub(super) async fn converge(watch: &Watch, left: &BTreeSet<NodeId>) -> (Vec<Replica>, Option<bool>) {
    let deadline = tokio::time::Instant::now() + AGREE_MAX;
    loop {
        let replicas = watch.replicas(left);
        let agree = replicas.as_deref().and_then(one_state);
        if agree.is_some() || tokio::time::Instant::now() >= deadline {
            return (replicas.unwrap_or_default(), agree);
        }
        tokio::time::sleep(LOOK).await;
    }
}
