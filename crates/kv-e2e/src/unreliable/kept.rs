//! Doubles that wait for their time, and how they are sent then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_client::v1;
use rand::RngExt as _;
use tokio::sync::mpsc;
use tokio::time::{sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use v1::pipeline_reply::Result as Reply;

use super::{ASKED_MAX, CONNECT_MAX, KEPT_MAX, Shared};

/// How often a double is sent after its leader.
const TRIES_MAX: u32 = 8;

/// How long after a refusal.
const NEXT_TRY: Duration = Duration::from_millis(100);

/// What a double says about its deadline: its original's may be nearly over.
const DEADLINE_MS: u32 = 5_000;

/// Doubles sent in one frame.
const FRAME_MAX: usize = 64;

const FRAMES_AHEAD: usize = 4;

/// A double that waits.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    /// When it is sent.
    pub(super) due: Instant,
    /// The node its original went to.
    pub(super) from: u64,
    /// The node it is sent to.
    pub(super) to: u64,
    /// Whether it is one of those that are sent late.
    pub(super) is_late: bool,
    /// How often it was sent.
    pub(super) tries: u32,
    /// The request.
    pub(super) request: v1::PipelineRequest,
}

/// Hands doubles to their nodes when their time has come.
pub(super) async fn keep(shared: Arc<Shared>, mut arriving: mpsc::Receiver<Kept>) {
    let mut waiting: BTreeMap<(Instant, u64), Kept> = BTreeMap::new();
    for nth in 0.. {
        shared.counts.waiting(waiting.len());
        let next = waiting.first_key_value().map(|((due, _), _)| *due);
        let due = async {
            match next {
                Some(due) => sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            arrived = arriving.recv() => match arrived {
                None => return,
                Some(_) if waiting.len() >= KEPT_MAX => shared.counts.not_doubled(),
                Some(kept) => {
                    waiting.insert((kept.due, nth), kept);
                }
            },
            () = due => {
                let Some((_, kept)) = waiting.pop_first() else { continue };
                let Some(behind) = shared.nodes.get(&kept.to) else { continue };
                if behind.doubles.try_send(kept).is_err() {
                    shared.counts.not_doubled();
                }
            }
        }
    }
}

/// Sends doubles to one node by a stream of their own.
pub(super) async fn send_doubles(shared: Arc<Shared>, node: u64, mut queue: mpsc::Receiver<Kept>) {
    while let Some(first) = queue.recv().await {
        let Some(behind) = shared.nodes.get(&node) else { return };
        let (frames, requests) = mpsc::channel(FRAMES_AHEAD);
        let mut kv = behind.kv();
        match timeout(CONNECT_MAX, kv.pipeline(ReceiverStream::new(requests))).await {
            Ok(Ok(response)) => {
                let sent = Sent { shared: Arc::clone(&shared), frames, asked: BTreeMap::new(), count: 0 };
                sent.serve(first, &mut queue, response.into_inner()).await;
            }
            // The node is away: later, elsewhere.
            Ok(Err(_)) | Err(_) => again(&shared, first, None),
        }
    }
}

/// Doubles that one node has been sent.
struct Sent {
    shared: Arc<Shared>,
    frames: mpsc::Sender<v1::PipelineRequests>,
    asked: BTreeMap<u64, Kept>,
    count: u64,
}

impl Sent {
    /// Serves one stream to its end.
    async fn serve(
        mut self,
        first: Kept,
        queue: &mut mpsc::Receiver<Kept>,
        mut replies: Streaming<v1::PipelineReplies>,
    ) {
        self.send(vec![first]);
        let mut doubles = Vec::new();
        loop {
            tokio::select! {
                frame = replies.message() => match frame {
                    Ok(Some(frame)) => frame.replies.into_iter().for_each(|reply| self.answered(reply)),
                    Ok(None) | Err(_) => return,
                },
                count = queue.recv_many(&mut doubles, FRAME_MAX) => {
                    if count == 0 {
                        return;
                    }
                    self.send(std::mem::take(&mut doubles));
                }
            }
        }
    }

    fn send(&mut self, doubles: Vec<Kept>) {
        let mut requests = Vec::with_capacity(doubles.len());
        for kept in doubles {
            self.count += 1;
            if kept.tries == 0 {
                if kept.is_late {
                    self.shared.counts.late(kept.to != kept.from);
                } else {
                    self.shared.counts.soon();
                }
            }
            let request = kept.request.clone();
            requests.push(v1::PipelineRequest { id: self.count, deadline_ms: DEADLINE_MS, ..request });
            self.asked.insert(self.count, kept);
            // A node that hangs answers none; the oldest are given up.
            if self.asked.len() > ASKED_MAX {
                self.asked.pop_first();
            }
        }
        if self.frames.try_send(v1::PipelineRequests { context: None, requests }).is_err() {
            self.shared.counts.not_doubled();
        }
    }

    fn answered(&mut self, reply: v1::PipelineReply) {
        let kept = self.asked.remove(&reply.id);
        self.shared.counts.answered(reply.result.as_ref());
        let Some(Reply::Error(error)) = reply.result else { return };
        let Some(detail) = error.detail else { return };
        if let (v1::Reason::NotLeader | v1::Reason::NoLeader, Some(kept)) = (detail.reason(), kept) {
            again(&self.shared, kept, detail.hint.map(|hint| hint.node));
        }
    }
}

/// Sends a double after its leader, or to any node if nobody named one.
fn again(shared: &Shared, kept: Kept, hint: Option<u64>) {
    if kept.tries >= TRIES_MAX {
        return shared.counts.not_doubled();
    }
    let any = || {
        let nth = rand::rng().random_range(0..shared.nodes.len());
        shared.nodes.keys().nth(nth).copied().unwrap_or_default()
    };
    let to = hint.unwrap_or_else(any);
    shared.keep(Kept { due: Instant::now() + NEXT_TRY, to, tries: kept.tries + 1, ..kept });
}
