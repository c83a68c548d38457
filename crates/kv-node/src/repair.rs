//! Rows for replicas whose own are damaged: any member that has them sends a snapshot.
//!
//! A node asks the other members of the group in turn ([`Repairer`]) until one sends; the stream arrives as any snapshot
//! does. Which rows fit is for the replica to decide: [`kv_shard::Replica::repair_received`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_proto::status::ApiError;
use kv_proto::{sealed, v1, validate};
use kv_shard::ReplicaStatus;
use kv_types::{ClusterId, LogIndex, NodeId, ShardId};
use tokio::sync::oneshot;
use tonic::{Request, Status};
use tracing::{info, warn};

use crate::fatal::Fatal;
use crate::gateway::{Gateway, ShardHandle};
use crate::links::Links;
use crate::mailbox::Control;
use crate::snapshots::Installer;

/// The next member is asked after so long, if no snapshot has begun to arrive.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How long a member may take to answer.
const CALL_MAX: Duration = Duration::from_secs(5);

/// Asks for rows.
pub(crate) struct Repairer {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) links: Arc<Links>,
    pub(crate) installer: Arc<Installer>,
    pub(crate) fatal: Fatal,
    pub(crate) cluster_id: ClusterId,
    asked: BTreeMap<ShardId, Asked>,
}

/// Who was asked last.
#[derive(Clone, Copy)]
struct Asked {
    peer: NodeId,
    at: Instant,
}

impl Repairer {
    pub(crate) fn new(
        gateway: Arc<Gateway>,
        links: Arc<Links>,
        installer: Arc<Installer>,
        fatal: Fatal,
        cluster_id: ClusterId,
    ) -> Self {
        Self { gateway, links, installer, fatal, cluster_id, asked: BTreeMap::new() }
    }

    /// Asks for what is damaged, unless it is on its way.
    pub(crate) fn look(&mut self, replicas: &[ReplicaStatus]) {
        let damaged = replicas.iter().filter(|replica| replica.damage.is_some()).count();
        self.gateway.metrics.replicas_damaged.set(i64::try_from(damaged).unwrap_or(i64::MAX));
        for replica in replicas {
            match &replica.damage {
                None => {
                    self.asked.remove(&replica.shard);
                }
                Some(detail) => self.ask(replica, detail),
            }
        }
    }

    fn ask(&mut self, replica: &ReplicaStatus, detail: &str) {
        let shard = replica.shard;
        let last = self.asked.get(&shard).copied();
        let waits = last.is_some_and(|asked| asked.at.elapsed() < ASK_AGAIN);
        if waits || replica.installing || self.installer.is_receiving(shard) {
            return;
        }
        let others: Vec<NodeId> =
            replica.raft.membership.members().into_iter().filter(|node| *node != self.gateway.node).collect();
        let after = |asked: Asked| others.iter().find(|node| **node > asked.peer);
        let Some(peer) = last.and_then(after).or(others.first()).copied() else {
            let text = format!(
                "the rows of {shard} are damaged ({detail}), and there is no other member to fetch them from; restore a \
                 backup into an empty directory"
            );
            return self.fatal.stop(text);
        };
        self.asked.insert(shard, Asked { peer, at: Instant::now() });
        let Some(channel) = self.links.dial(peer) else { return };
        let subject = v1::RepairSubject {
            cluster_id: self.cluster_id.get(),
            shard: shard.get(),
            from: self.gateway.node.get(),
            applied: replica.base.get(),
        };
        tokio::spawn(async move {
            let request = Request::new(sealed::seal::<v1::RepairRequest>(&subject));
            let mut client = v1::peer_client::PeerClient::new(channel);
            let answered = tokio::time::timeout(CALL_MAX, client.repair(request)).await;
            let refused = match answered {
                Err(_) => ApiError::Deadline.to_string(),
                Ok(Err(status)) => ApiError::from_status(&status).to_string(),
                Ok(Ok(reply)) => match sealed::open(reply.into_inner()) {
                    Ok(outcome) if outcome.refused.is_empty() => {
                        return info!(%shard, %peer, "a member sends its rows in the place of the damaged ones");
                    }
                    Ok(outcome) => outcome.refused,
                    Err(cause) => cause.to_string(),
                },
            };
            warn!(%shard, %peer, refused, "no rows from this member; the next one is asked");
        });
    }
}

/// Sends a member the rows it asks for, if they are what it needs; why not, otherwise.
pub(crate) async fn send_rows(
    subject: &v1::RepairSubject,
    cluster_id: ClusterId,
    shards: &BTreeMap<ShardId, ShardHandle>,
    links: &Links,
) -> Result<String, Status> {
    let to = validate::node("from", subject.from).map_err(ApiError::from)?;
    if subject.cluster_id != cluster_id.get() {
        return Err(ApiError::WrongCluster("the wish is meant for another cluster".to_owned()).into());
    }
    let shard = ShardId::new(subject.shard);
    let handle = shards.get(&shard).ok_or(ApiError::UnknownShard(shard))?;
    let (asked, status) = oneshot::channel();
    handle.mailbox.control(Control::Status(asked));
    let status = status.await.map_err(|_| ApiError::Stopped)?;
    if !status.verified {
        return Ok("its own rows are damaged, or not compared with their hash yet".to_owned());
    }
    let wanted = LogIndex::new(subject.applied);
    if status.applied.index < wanted {
        return Ok(format!("it has applied {} only, not {wanted}", status.applied.index));
    }
    links.send_rows(handle.clone(), to, status.raft.term);
    Ok(String::new())
}
