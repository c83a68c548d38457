//! When all is mended.

use std::time::Duration;

use crate::error::RunError;
use crate::local::Local;
use crate::record::Replica;
use crate::watch::{Watch, one_state};

/// How long the replicas may take to hold the same when no client writes.
const AGREE_MAX: Duration = Duration::from_secs(30);

/// Between two looks at the replicas.
const LOOK: Duration = Duration::from_millis(100);

/// Waits until the processes that were started again serve. What is wrong with any, in sentences.
pub(super) async fn processes(local: Option<&mut Local>) -> Result<Vec<String>, RunError> {
    let Some(local) = local else { return Ok(Vec::new()) };
    let mut wrongs = Vec::new();
    for node in local.ids() {
        match local.await_ready(node).await {
            Ok(()) => {}
            Err(RunError::Ended { status, .. }) => wrongs.push(format!("{node} ended by itself ({status})")),
            Err(RunError::Late { limit, .. }) => {
                wrongs.push(format!("{node} did not serve again within {} s", limit.as_secs()));
            }
            Err(error) => return Err(error),
        }
    }
    wrongs.extend(local.died().into_iter().map(|node| format!("{node} ended by itself")));
    wrongs.extend(local.panicked().into_iter().map(|node| format!("{node} panicked: see its log")));
    wrongs.dedup();
    Ok(wrongs)
}

/// Waits until all replicas of each shard have one state; what they have come to, and whether they have.
pub(super) async fn converge(watch: &Watch) -> (Vec<Replica>, Option<bool>) {
    let deadline = tokio::time::Instant::now() + AGREE_MAX;
    loop {
        let replicas = watch.replicas();
        let agree = replicas.as_deref().and_then(one_state);
        if agree.is_some() || tokio::time::Instant::now() >= deadline {
            return (replicas.unwrap_or_default(), agree);
        }
        tokio::time::sleep(LOOK).await;
    }
}
