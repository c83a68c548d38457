//! A node with an empty disk joins a running cluster.
//!
//! It asks any member over and over until it is taken in: what it says twice counts once, as long as its data directory
//! is the same. The answer is the table that the cluster was formed over, by which all its nodes know each other, and
//! where the members are; both are written down before anything else is done.

use std::collections::BTreeMap;
use std::time::Duration;

use kv_proto::status::ApiError;
use kv_proto::{sealed, v1};
use kv_types::NodeId;
use tonic::transport::Endpoint;
use tracing::info;

use crate::config::{Config, Join};
use crate::membership::{Membership, table_from_wire};
use crate::node_error::NodeError;

const RETRY_PAUSE: Duration = Duration::from_millis(500);
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Joins; returns once that is written down.
///
/// # Errors
/// [`NodeError::Join`] if the cluster refuses for good.
pub(crate) async fn join(
    config: &Config,
    wish: &Join,
    membership: &Membership,
    client_addr: &str,
) -> Result<(), NodeError> {
    let refused = |cause: String| NodeError::Join { addr: wish.addr.clone(), cause };
    let endpoint =
        Endpoint::from_shared(format!("http://{}", wish.addr)).map_err(|cause| refused(cause.to_string()))?;
    let subject = v1::JoinSubject {
        cluster: config.cluster.clone(),
        node: config.node.get(),
        incarnation: membership.incarnation().get(),
        peer_addr: config.advertise_peer.clone(),
        client_addr: client_addr.to_owned(),
        learner: wish.learner,
    };
    let mut said = String::new();
    loop {
        let mut client = v1::peer_client::PeerClient::new(endpoint.connect_lazy());
        let asked = client.join(sealed::seal::<v1::JoinRequest>(&subject));
        let failure = match tokio::time::timeout(ANSWER_MAX, asked).await {
            Ok(Ok(reply)) => match sealed::open(reply.into_inner()) {
                Ok(outcome) => return take(&outcome, membership).map_err(refused),
                Err(cause) => ApiError::Checksum(cause.to_string()),
            },
            Ok(Err(status)) => ApiError::from_status(&status),
            Err(_) => ApiError::Deadline,
        };
        if matches!(
            failure,
            ApiError::MemberExists(_)
                | ApiError::WrongCluster(_)
                | ApiError::Invalid(_)
                | ApiError::Refused(_)
        ) {
            return Err(refused(failure.to_string()));
        }
        let text = failure.to_string();
        if text != said {
            info!(addr = wish.addr, %failure, "not taken in yet");
            said = text;
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

fn take(outcome: &v1::JoinOutcome, membership: &Membership) -> Result<(), String> {
    let table = outcome.table.as_ref().ok_or("the answer has no table")?;
    let table = table_from_wire(table).map_err(|cause| cause.to_string())?;
    let contact = |member: &v1::Member| (NodeId::new(member.node), member.peer_addr.clone());
    let contacts: BTreeMap<NodeId, String> = outcome.members.iter().map(contact).collect();
    membership.taken_in(table, contacts).map_err(|cause| cause.to_string())
}
