//! A node that stops hands its leaderships over first, so that nobody waits for an election.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kv_types::{NodeId, ShardId};
use tokio::sync::oneshot;
use tracing::{debug, info};

use crate::clock;
use crate::gateway::ShardHandle;
use crate::mailbox::Control;

const POLL: Duration = Duration::from_millis(5);

/// Hands over what `me` leads, each to the voter that is furthest, and waits until that is done, at most for `patience`.
pub(crate) async fn hand_over(me: NodeId, shards: &BTreeMap<ShardId, ShardHandle>, patience: Duration) {
    let led = |handle: &&ShardHandle| handle.leadership.leader() == Some(me);
    for handle in shards.values().filter(led) {
        begin(handle, me, patience).await;
    }
    let deadline = Instant::now() + patience;
    while shards.values().any(|handle| led(&handle)) && Instant::now() < deadline {
        tokio::time::sleep(POLL).await;
    }
}

async fn begin(handle: &ShardHandle, me: NodeId, patience: Duration) {
    let shard = handle.shard;
    let (asked, status) = oneshot::channel();
    handle.mailbox.control(Control::Status(asked));
    let Ok(status) = status.await else { return };
    let voters = &status.raft.membership.voters;
    let now = clock::now();
    let peers = status.raft.peers.iter().filter(|(node, peer)| {
        **node != me && voters.contains(*node) && peer.last_contact.is_some_and(|at| now.since(at) < patience)
    });
    let Some((heir, _)) = peers.max_by_key(|(_, peer)| peer.matched) else { return };
    let (asked, answer) = oneshot::channel();
    handle.mailbox.control(Control::Transfer(*heir, asked));
    match answer.await {
        Ok(Ok(())) => info!(%shard, %heir, "handing the leadership over"),
        Ok(Err(cause)) => debug!(%shard, %heir, %cause, "the leadership cannot be handed over"),
        Err(_) => {}
    }
}
