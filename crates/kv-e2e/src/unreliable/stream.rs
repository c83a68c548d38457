//! One stream of a client, and the stream to the node that carries it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_client::v1;
use rand::RngExt as _;
use rand::rngs::ChaCha8Rng;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use v1::pipeline_reply::Result as Reply;
use v1::pipeline_request::Op;

use super::Shared;
use super::kept::Kept;

/// Frames that wait on either side.
const FRAMES_AHEAD: usize = 4;

/// Marks the ids of doubles on the stream of their originals: clients count theirs up from 1.
const DOUBLE: u64 = 1 << 63;

/// A double that is sent again soon waits at most so long.
const SOON_MAX: Duration = Duration::from_secs(1);

pub(super) type Replies = ReceiverStream<Result<v1::PipelineReplies, Status>>;

/// Opens the stream to the node and carries both until one of them ends.
pub(super) async fn carry(
    shared: Arc<Shared>,
    node: u64,
    requests: Streaming<v1::PipelineRequests>,
) -> Result<Replies, Status> {
    let behind = shared.nodes.get(&node).ok_or_else(|| Status::internal("there is no such node"))?;
    let (onward, frames) = mpsc::channel(FRAMES_AHEAD);
    let replies = behind.kv().pipeline(ReceiverStream::new(frames)).await?.into_inner();
    let (back, stream) = mpsc::channel(FRAMES_AHEAD);
    let gone = back.clone();
    let there = there(Arc::clone(&shared), node, requests, onward);
    let back = answers(shared, replies, back);
    tokio::spawn(async move {
        tokio::select! {
            // A client that sends no more still waits for answers.
            () = async { there.await; std::future::pending().await } => {}
            () = back => {}
            () = gone.closed() => {}
        }
    });
    Ok(ReceiverStream::new(stream))
}

/// Carries requests to the node.
async fn there(
    shared: Arc<Shared>,
    node: u64,
    mut requests: Streaming<v1::PipelineRequests>,
    onward: mpsc::Sender<v1::PipelineRequests>,
) {
    let mut choices = shared.choices();
    while let Ok(Some(frame)) = requests.message().await {
        let twice = choose(&shared, node, &frame.requests, &mut choices);
        let context = frame.context.clone();
        if onward.send(frame).await.is_err() {
            return;
        }
        if !twice.is_empty() {
            shared.counts.twice(twice.len());
            if onward.send(v1::PipelineRequests { context, requests: twice }).await.is_err() {
                return;
            }
        }
    }
}

/// The doubles that are sent at once; others are kept.
fn choose(
    shared: &Shared,
    node: u64,
    requests: &[v1::PipelineRequest],
    choices: &mut ChaCha8Rng,
) -> Vec<v1::PipelineRequest> {
    let faults = &shared.faults;
    let mut twice = Vec::new();
    let writes = requests.iter().filter(|request| is_write(request));
    shared.counts.writes(writes.clone().count());
    for request in writes.filter(|request| request.request_id.is_some()) {
        if choices.random_bool(faults.twice) {
            twice.push(v1::PipelineRequest { id: request.id | DOUBLE, ..request.clone() });
        }
        let keep = |to: u64, wait: Duration, is_late: bool| {
            let kept = Kept {
                due: Instant::now() + wait,
                from: node,
                to,
                is_late,
                tries: 0,
                request: request.clone(),
            };
            shared.keep(kept);
        };
        if choices.random_bool(faults.soon) {
            keep(node, SOON_MAX.mul_f64(choices.random()), false);
        }
        if choices.random_bool(faults.late) {
            let wait = choices.random_range(faults.lateness.clone());
            keep(shared.any_node(choices), wait, true);
        }
    }
    twice
}

fn is_write(request: &v1::PipelineRequest) -> bool {
    matches!(
        request.op,
        Some(
            Op::Put(_)
                | Op::Delete(_)
                | Op::DeleteRange(_)
                | Op::CompareAndSet(_)
                | Op::Increment(_)
                | Op::Commit(_)
        )
    )
}

/// Carries answers back to the client, but for those that are lost.
async fn answers(
    shared: Arc<Shared>,
    mut replies: Streaming<v1::PipelineReplies>,
    back: mpsc::Sender<Result<v1::PipelineReplies, Status>>,
) {
    let mut choices = shared.choices();
    loop {
        let mut frame = match replies.message().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return,
            Err(status) => return drop(back.send(Err(status)).await),
        };
        let (doubles, mut originals): (Vec<_>, Vec<_>) =
            frame.replies.into_iter().partition(|reply| reply.id & DOUBLE > 0);
        for double in doubles {
            shared.counts.answered(double.result.as_ref());
        }
        if originals.is_empty() {
            continue;
        }
        if choices.random_bool(shared.faults.break_stream) {
            shared.counts.stream_broken(originals.len());
            return drop(back.send(Err(Status::unavailable("the stream was broken on its way"))).await);
        }
        let count = originals.len();
        originals.retain(|reply| is_refusal(reply) || !choices.random_bool(shared.faults.lose_reply));
        shared.counts.replies_lost(count - originals.len());
        frame.replies = originals;
        if !frame.replies.is_empty() && back.send(Ok(frame)).await.is_err() {
            return;
        }
    }
}

/// Whether nothing was done: to lose such an answer shows nothing.
fn is_refusal(reply: &v1::PipelineReply) -> bool {
    matches!(reply.result, Some(Reply::Error(_)))
}
