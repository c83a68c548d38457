//! Requests waiting for one node, and the frames they leave in.
//!
//! Callers push into a bounded queue. The stream of frames is polled by the connection itself, whenever it can write:
//! each poll takes all that has gathered into one frame, so that batches grow with load and an idle caller waits for
//! nobody. Replies are matched by id. No task and no timer per call: [`Requests::expire`] is called now and then.
//!
//! A request that has waited here for a quarter of its time is not sent any more. Where more is asked than can be sent, each
//! would else leave just before its deadline, and be answered just after it: much work, and no success.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use kv_proto::request::Request;
use kv_proto::request_id;
use kv_proto::v1::{self, pipeline_reply};
use kv_types::limits::{PIPELINE_FRAME_REQUESTS_MAX, PIPELINE_IN_FLIGHT_MAX};
use tokio::sync::{Notify, oneshot};
use tokio_stream::Stream;

use crate::error::Failure;
use crate::reply::Source;

/// Requests that may wait for one node before callers are refused.
pub(crate) const QUEUE_LEN_MAX: usize = PIPELINE_IN_FLIGHT_MAX;

/// A frame takes no further request at this size: one of a few large ones would be work for long, at both ends.
const FRAME_BYTES_TARGET: usize = 64 << 10;

/// A request is not sent any more when so many times what has gone of its time is more than what is left.
const STALE_FACTOR: u32 = 3;

/// Bytes a request takes in a frame besides keys and values: ids, tags, lengths, numbers. Generous.
const ENVELOPE_BYTES: usize = 192;

/// The same of each key, range and write of a transaction.
const PART_BYTES: usize = 64;

/// The weight of one answer in what is typical is one part of so many.
const SMOOTHING: u32 = 64;

/// The low bits of an id are the request's slot, the highest are a count, so that a late reply finds another id in its slot.
const SLOT_BITS: u32 = 16;

/// The bit between them is set if the answer may take its time: that of a transaction waits for others. From such an answer
/// it cannot be seen whether the node is silent, nor what is typical.
const PATIENT: u64 = 1 << SLOT_BITS;

const _: () = assert!(PIPELINE_IN_FLIGHT_MAX <= 1 << SLOT_BITS, "every slot has a number");

/// An answer and who gave it.
pub(crate) type Answer = (pipeline_reply::Result, Source);

/// A request that nobody has answered yet.
struct Waiting {
    deadline: Instant,
    /// When it was put into a frame; until then, when it was queued.
    sent: Instant,
    reply: oneshot::Sender<Result<Answer, Failure>>,
}

struct Queued {
    request: Request,
    /// What makes its retry safe.
    identity: Option<kv_types::Request>,
    waiting: Waiting,
}

#[derive(Default)]
struct Slot {
    id: u64,
    waiting: Option<Waiting>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Queued>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    count: u64,
    /// Requests sent and not answered, those included that nobody waits for any more: callers that give up soon must not hide
    /// that the node is silent.
    owed: usize,
    /// What an answer takes, smoothed.
    typical: Duration,
    /// When the node last answered, or began to owe an answer.
    heard: Option<Instant>,
    /// Which stream may take from the queue; a stream that broke may still be polled and must get nothing.
    stream: u64,
    /// Of the stream, while it waits for a request or for a free slot.
    waker: Option<Waker>,
}

/// The requests of one node: queued, or sent and not answered.
pub(crate) struct Requests {
    endpoint: Arc<str>,
    state: Mutex<State>,
    arrived: Notify,
}

impl Requests {
    pub(crate) fn new(endpoint: Arc<str>) -> Self {
        Self { endpoint, state: Mutex::new(State::default()), arrived: Notify::new() }
    }

    /// Queues a request; the receiver gets its answer.
    pub(crate) fn push(
        &self,
        request: Request,
        identity: Option<kv_types::Request>,
        deadline: Instant,
    ) -> Result<oneshot::Receiver<Result<Answer, Failure>>, Failure> {
        let (reply, answer) = oneshot::channel();
        let waker = {
            let mut state = self.lock();
            if state.queue.len() >= QUEUE_LEN_MAX {
                return Err(Failure::QueueFull(self.endpoint.to_string()));
            }
            state.queue.push_back(Queued {
                request,
                identity,
                waiting: Waiting { deadline, sent: Instant::now(), reply },
            });
            state.waker.take()
        };
        match waker {
            Some(waker) => waker.wake(),
            None => self.arrived.notify_one(),
        }
        Ok(answer)
    }

    /// Returns when a request waits.
    pub(crate) async fn wanted(&self) {
        while self.lock().queue.is_empty() {
            self.arrived.notified().await;
        }
    }

    /// Begins a new stream; earlier ones end.
    pub(crate) fn open(self: &Arc<Self>, context: ContextSource) -> Frames {
        let mut state = self.lock();
        state.end_stream();
        Frames { requests: Arc::clone(self), stream: state.stream, turned: false, context }
    }

    /// Ends the stream, if there is one: as long as it could send, its connection would stay.
    pub(crate) fn close(&self) {
        self.lock().end_stream();
    }

    /// Hands the replies of a frame to those who wait.
    pub(crate) fn answer(&self, replies: Vec<v1::PipelineReply>, source: &Source) {
        let mut answered = Vec::with_capacity(replies.len());
        let waker = {
            let mut state = self.lock();
            let now = Instant::now();
            state.heard = Some(now);
            for reply in replies {
                let is_prompt = reply.id & PATIENT == 0;
                state.owed = state.owed.saturating_sub(usize::from(is_prompt));
                if let (Some(waiting), Some(result)) = (state.release(reply.id), reply.result) {
                    if is_prompt {
                        state.learn(now.saturating_duration_since(waiting.sent));
                    }
                    answered.push((waiting, result));
                }
            }
            // Only a stream that waits for a slot has anything to gain from being woken here.
            if state.queue.is_empty() { None } else { state.waker.take() }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        for (waiting, result) in answered {
            // A caller that has gone wants no answer.
            let _ = waiting.reply.send(Ok((result, source.clone())));
        }
    }

    /// Fails what was sent and not answered; the queue stays.
    pub(crate) fn fail_sent(&self, failure: &Failure) {
        let sent: Vec<_> = {
            let mut state = self.lock();
            // Left in place, the waker of the broken stream would swallow the next push's call for a new one.
            state.end_stream();
            state.free.clear();
            state.owed = 0;
            std::mem::take(&mut state.slots).into_iter().filter_map(|slot| slot.waiting).collect()
        };
        for waiting in sent {
            let _ = waiting.reply.send(Err(failure.clone()));
        }
    }

    /// Fails what was not sent.
    pub(crate) fn fail_queued(&self, cause: &str) {
        let queued = std::mem::take(&mut self.lock().queue);
        for Queued { waiting, .. } in queued {
            let endpoint = self.endpoint.to_string();
            let _ = waiting.reply.send(Err(Failure::Unreachable { endpoint, cause: cause.to_owned() }));
        }
    }

    /// What an answer of the node takes at the moment.
    pub(crate) fn typical(&self) -> Duration {
        self.lock().typical
    }

    /// How long the node has said nothing while it owes answers.
    pub(crate) fn silence(&self, now: Instant) -> Duration {
        let state = self.lock();
        let heard = state.heard.filter(|_| state.owed > 0);
        heard.map_or(Duration::ZERO, |heard| now.saturating_duration_since(heard))
    }

    /// Fails what has passed its deadline.
    pub(crate) fn expire(&self, now: Instant) {
        let (mut unsent, mut sent) = (Vec::new(), Vec::new());
        {
            let mut state = self.lock();
            if state.queue.iter().any(|queued| queued.waiting.deadline <= now) {
                let (late, rest) = std::mem::take(&mut state.queue)
                    .into_iter()
                    .partition::<VecDeque<_>, _>(|queued| queued.waiting.deadline <= now);
                state.queue = rest;
                unsent.extend(late);
            }
            for index in 0..state.slots.len() {
                let slot = state.slots.get(index);
                let is_late = slot.and_then(|slot| slot.waiting.as_ref()).is_some_and(|w| w.deadline <= now);
                let id = slot.map_or(0, |slot| slot.id);
                if is_late {
                    sent.extend(state.release(id));
                }
            }
        }
        self.fail_unsent(unsent.into_iter().map(|queued| queued.waiting));
        for waiting in sent {
            let _ = waiting.reply.send(Err(Failure::TimedOut(self.endpoint.to_string())));
        }
    }

    fn fail_unsent(&self, unsent: impl IntoIterator<Item = Waiting>) {
        for waiting in unsent {
            let _ = waiting.reply.send(Err(Failure::NotSent(format!(
                "the request waited for {} in this client",
                self.endpoint
            ))));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing below panics with the lock held; if it did, the state would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whoever sends the stream's frames is told that no more will come.
    fn end_stream(&mut self) {
        self.stream += 1;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn has_room(&self) -> bool {
        !self.free.is_empty() || self.slots.len() < PIPELINE_IN_FLIGHT_MAX
    }

    /// One answer took so long.
    fn learn(&mut self, took: Duration) {
        self.typical = (self.typical * (SMOOTHING - 1) + took) / SMOOTHING;
    }

    fn keep(&mut self, mut waiting: Waiting, is_prompt: bool, now: Instant) -> u64 {
        waiting.sent = now;
        self.count += 1;
        // A node that owes nothing may be silent; its silence begins with the first question.
        if is_prompt && self.owed == 0 {
            self.heard = Some(now);
        }
        self.owed += usize::from(is_prompt);
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        let patience = if is_prompt { 0 } else { PATIENT };
        let id = (self.count << (SLOT_BITS + 1)) | patience | index as u64;
        if let Some(slot) = self.slots.get_mut(index) {
            *slot = Slot { id, waiting: Some(waiting) };
        }
        id
    }

    fn release(&mut self, id: u64) -> Option<Waiting> {
        let index = usize::try_from(id & ((1 << SLOT_BITS) - 1)).ok()?;
        let slot = self.slots.get_mut(index).filter(|slot| slot.id == id)?;
        let waiting = slot.waiting.take()?;
        self.free.push(index);
        Some(waiting)
    }

    /// Moves requests from the queue into a frame, as many as its limits and the free slots allow; and those beside it that
    /// have waited too long.
    fn fill(&mut self, now: Instant) -> (Vec<v1::PipelineRequest>, Vec<Waiting>) {
        let mut requests = Vec::with_capacity(self.queue.len().min(PIPELINE_FRAME_REQUESTS_MAX));
        let mut stale = Vec::new();
        let mut bytes = 0;
        while requests.len() < PIPELINE_FRAME_REQUESTS_MAX && self.has_room() {
            let Some(next) = self.queue.front() else { break };
            if next.waiting.is_stale(now) {
                stale.extend(self.queue.pop_front().map(|queued| queued.waiting));
                continue;
            }
            bytes += request_bytes(&next.request);
            if bytes > FRAME_BYTES_TARGET && !requests.is_empty() {
                break;
            }
            let Some(Queued { request, identity, waiting }) = self.queue.pop_front() else { break };
            let left = waiting.deadline.saturating_duration_since(now).max(Duration::from_millis(1));
            let deadline_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
            let is_prompt = !matches!(request, Request::Commit(_));
            let id = self.keep(waiting, is_prompt, now);
            let request_id = identity.as_ref().map(request_id::write);
            requests.push(v1::PipelineRequest { id, deadline_ms, op: Some(request.into()), request_id });
        }
        (requests, stale)
    }
}

impl Waiting {
    /// Whether too much of its time has gone in the queue.
    fn is_stale(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.sent) * STALE_FACTOR > self.deadline.saturating_duration_since(now)
    }
}

/// An upper bound of a request's size in a frame.
fn request_bytes(request: &Request) -> usize {
    let content = match request {
        Request::Put(put) => put.key.bytes().len() + put.value.bytes().len(),
        Request::Get(get) => get.key.bytes().len(),
        Request::MultiGet(get) => get.keys.iter().map(|key| key.bytes().len() + 8).sum(),
        Request::Delete(delete) => delete.key.bytes().len(),
        Request::DeleteRange(delete) => range_bytes(&delete.range),
        Request::ScanPage(scan) => range_bytes(&scan.range),
        Request::CompareAndSet(cas) => {
            let expected = match &cas.expect {
                kv_proto::request::Expect::Value(value) => value.bytes().len(),
                kv_proto::request::Expect::Revision(_) | kv_proto::request::Expect::Absent => 0,
            };
            cas.key.bytes().len() + expected + cas.value.bytes().len()
        }
        Request::Increment(increment) => increment.key.bytes().len(),
        Request::Commit(commit) => {
            let content = &commit.content;
            let parts = content.reads.len() + content.scans.len() + content.writes.len();
            content.anchor.bytes().len() + content.bytes() + parts * PART_BYTES
        }
    };
    content + ENVELOPE_BYTES
}

fn range_bytes(range: &kv_types::KeyRange) -> usize {
    range.start().len() + range.end().map_or(0, bytes::Bytes::len)
}

/// Makes the context of each frame.
pub(crate) type ContextSource = Box<dyn Fn() -> v1::RequestContext + Send + Sync>;

/// The frames of one stream, as the connection pulls them.
pub(crate) struct Frames {
    requests: Arc<Requests>,
    stream: u64,
    /// Whether other tasks had their turn since the queue was found not empty.
    turned: bool,
    context: ContextSource,
}

impl Stream for Frames {
    type Item = v1::PipelineRequests;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let mut state = this.requests.lock();
        if state.stream != this.stream {
            return Poll::Ready(None);
        }
        if state.queue.is_empty() || !state.has_room() {
            this.turned = false;
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if !this.turned {
            // Callers that one reply frame has just woken push their next requests in this turn: one frame for all.
            this.turned = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        this.turned = false;
        let (requests, stale) = state.fill(Instant::now());
        drop(state);
        this.requests.fail_unsent(stale);
        if requests.is_empty() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(v1::PipelineRequests { context: Some((this.context)()), requests }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::request::{Get, Put};
    use kv_types::{Key, Outcome, Value};

    fn get() -> Request {
        Request::Get(Get { key: Key::new("k").unwrap() })
    }

    fn put(bytes: usize) -> Request {
        let value = Value::new(vec![0; bytes]).unwrap();
        Request::Put(Put { key: Key::new("k").unwrap(), value })
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn requests() -> Arc<Requests> {
        Arc::new(Requests::new("h:1".into()))
    }

    fn frames(requests: &Arc<Requests>) -> Frames {
        requests.open(Box::new(v1::RequestContext::default))
    }

    /// The ids of the next frame; `None` if none is ready after everybody had a turn.
    fn next(frames: &mut Frames) -> Option<Vec<u64>> {
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..2 {
            if let Poll::Ready(frame) = Pin::new(&mut *frames).poll_next(&mut cx) {
                return frame.map(|frame| frame.requests.iter().map(|request| request.id).collect());
            }
        }
        None
    }

    fn answer(requests: &Requests, ids: &[u64]) {
        let result = Some(pipeline_reply::Result::Get(v1::GetReply::default()));
        let replies = ids.iter().map(|id| v1::PipelineReply { id: *id, result: result.clone() }).collect();
        requests.answer(replies, &Source { endpoint: "h:1".into(), cluster: "c".into() });
    }

    fn failure(answer: &mut oneshot::Receiver<Result<Answer, Failure>>) -> Failure {
        answer.try_recv().unwrap().unwrap_err()
    }

    #[test]
    fn frames_hold_their_limits() {
        let requests = requests();
        let mut frames = frames(&requests);
        let _answers: Vec<_> =
            (0..=PIPELINE_FRAME_REQUESTS_MAX).map(|_| requests.push(get(), None, later()).unwrap()).collect();
        let first = next(&mut frames).unwrap().len();
        assert_eq!(first, FRAME_BYTES_TARGET / (ENVELOPE_BYTES + 1), "each takes its key and its envelope");
        let rest: usize = std::iter::from_fn(|| next(&mut frames)).map(|frame| frame.len()).sum();
        assert_eq!(first + rest, PIPELINE_FRAME_REQUESTS_MAX + 1);
        let sizes = [FRAME_BYTES_TARGET / 4; 5].into_iter().chain([1 << 20]);
        let _answers: Vec<_> = sizes.map(|size| requests.push(put(size), None, later()).unwrap()).collect();
        assert_eq!(next(&mut frames).unwrap().len(), 3, "four and their envelopes are more");
        assert_eq!(next(&mut frames).unwrap().len(), 2);
        assert_eq!(next(&mut frames).unwrap().len(), 1, "a large one has its own");
        assert_eq!(next(&mut frames), None);
    }

    /// Else each would be sent just before its deadline, and none be answered in time.
    #[test]
    fn what_has_waited_for_a_quarter_of_its_time_is_not_sent() {
        let requests = requests();
        let mut frames = frames(&requests);
        let second = Duration::from_secs(1);
        let now = Instant::now();
        let queued = |waited: Duration| {
            let (reply, answer) = oneshot::channel();
            let waiting = Waiting { deadline: now + second, sent: now - waited, reply };
            let get = Queued { request: get(), identity: None, waiting };
            requests.lock().queue.push_back(get);
            answer
        };
        let (mut stale, mut fresh) = (queued(second / 2), queued(second / 4));
        assert_eq!(next(&mut frames).unwrap().len(), 1);
        assert_eq!(failure(&mut stale).outcome(), Outcome::NotApplied);
        assert!(fresh.try_recv().is_err(), "no answer yet");
        let mut stale = queued(second / 2);
        assert_eq!(next(&mut frames), None);
        assert_eq!(failure(&mut stale).outcome(), Outcome::NotApplied);
    }

    /// A connection stays as long as one of its streams may send.
    #[test]
    fn a_stream_that_nobody_reads_any_more_ends() {
        struct Woken(std::sync::atomic::AtomicBool);
        impl std::task::Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.store(true, std::sync::atomic::Ordering::Release);
            }
        }
        let ends: [fn(&Requests); 2] =
            [Requests::close, |requests| requests.fail_sent(&Failure::Broken("h:1".into()))];
        for end in ends {
            let requests = requests();
            let mut frames = frames(&requests);
            let woken = Arc::new(Woken(false.into()));
            let waker = Waker::from(Arc::clone(&woken));
            let mut cx = Context::from_waker(&waker);
            assert!(Pin::new(&mut frames).poll_next(&mut cx).is_pending());
            end(&requests);
            assert!(woken.0.load(std::sync::atomic::Ordering::Acquire));
            assert!(matches!(Pin::new(&mut frames).poll_next(&mut cx), Poll::Ready(None)));
        }
    }

    #[test]
    fn no_more_are_in_flight_than_the_server_reads() {
        let requests = requests();
        let mut frames = frames(&requests);
        let mut ids = Vec::new();
        let mut answers = Vec::new();
        while ids.len() < PIPELINE_IN_FLIGHT_MAX {
            answers.push(requests.push(get(), None, later()).unwrap());
            ids.extend(next(&mut frames).unwrap());
        }
        answers.push(requests.push(get(), None, later()).unwrap());
        assert_eq!(next(&mut frames), None);
        answer(&requests, &ids[..1]);
        assert!(answers[0].try_recv().unwrap().is_ok());
        assert_eq!(next(&mut frames).unwrap().len(), 1);
    }

    #[test]
    fn a_full_queue_refuses() {
        let requests = requests();
        let _answers: Vec<_> =
            (0..QUEUE_LEN_MAX).map(|_| requests.push(get(), None, later()).unwrap()).collect();
        let refused = requests.push(get(), None, later()).unwrap_err();
        assert_eq!((refused.outcome(), &*refused.reason()), (Outcome::NotApplied, "overloaded"));
    }

    #[test]
    fn a_broken_stream_fails_what_it_carried_and_keeps_the_rest() {
        let requests = requests();
        let mut broken = frames(&requests);
        let mut sent = requests.push(put(1), None, later()).unwrap();
        next(&mut broken).unwrap();
        let mut queued = requests.push(put(1), None, later()).unwrap();
        requests.fail_sent(&Failure::Broken("there".to_owned()));
        assert_eq!(failure(&mut sent).outcome(), Outcome::Unknown);
        assert!(queued.try_recv().is_err(), "no answer yet");
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(Pin::new(&mut broken).poll_next(&mut cx), Poll::Ready(None)), "it gets no more");
        assert_eq!(next(&mut frames(&requests)).unwrap().len(), 1);
    }

    #[test]
    fn the_deadline_knows_what_was_sent() {
        let requests = requests();
        let mut frames = frames(&requests);
        let soon = Instant::now() + Duration::from_secs(1);
        let mut sent = requests.push(put(1), None, soon).unwrap();
        let late = next(&mut frames).unwrap();
        let mut queued = requests.push(put(1), None, soon).unwrap();
        let mut patient = requests.push(put(1), None, later()).unwrap();
        requests.expire(soon + Duration::from_millis(1));
        assert_eq!(failure(&mut sent).outcome(), Outcome::Unknown);
        assert_eq!(failure(&mut queued).outcome(), Outcome::NotApplied);
        // The late answer finds its slot taken by another request and is nobody's.
        let ids = next(&mut frames).unwrap();
        answer(&requests, &late);
        assert!(patient.try_recv().is_err());
        answer(&requests, &ids);
        assert!(patient.try_recv().unwrap().is_ok());
    }

    #[test]
    fn a_node_is_silent_only_while_it_owes_answers() {
        let requests = requests();
        let mut frames = frames(&requests);
        let much_later = Instant::now() + Duration::from_secs(9);
        assert_eq!(requests.silence(much_later), Duration::ZERO);
        let _first = requests.push(get(), None, later()).unwrap();
        let _second = requests.push(get(), None, later()).unwrap();
        assert_eq!(requests.silence(much_later), Duration::ZERO, "nothing was asked yet");
        let ids = next(&mut frames).unwrap();
        let silence = requests.silence(much_later);
        assert!(silence > Duration::from_secs(8), "{silence:?}");
        answer(&requests, &ids[..1]);
        assert!(requests.silence(much_later) <= silence);
        answer(&requests, &ids[1..]);
        assert_eq!(requests.silence(much_later), Duration::ZERO);
    }

    #[test]
    fn a_node_is_silent_also_towards_those_who_have_given_up() {
        let requests = requests();
        let mut frames = frames(&requests);
        let (soon, much_later) =
            (Instant::now() + Duration::from_millis(500), Instant::now() + Duration::from_secs(9));
        let _gone = requests.push(get(), None, soon).unwrap();
        let ids = next(&mut frames).unwrap();
        requests.expire(soon + Duration::from_millis(1));
        assert!(requests.silence(much_later) > Duration::from_secs(8));
        let _next = requests.push(get(), None, later()).unwrap();
        let more = next(&mut frames).unwrap();
        assert!(requests.silence(much_later) > Duration::from_secs(8), "the question before is not answered");
        answer(&requests, &ids);
        answer(&requests, &more);
        assert_eq!(requests.silence(much_later), Duration::ZERO);
    }

    #[test]
    fn a_transaction_may_take_its_time() {
        let requests = requests();
        let mut frames = frames(&requests);
        let much_later = Instant::now() + Duration::from_secs(9);
        let content = kv_proto::txn::Commit {
            anchor: Key::new("k").unwrap(),
            reads: vec![(Key::new("k").unwrap(), None)],
            scans: Vec::new(),
            writes: Vec::new(),
        };
        let commit = Request::Commit(kv_proto::request::Commit { content, reservation: 0 });
        let mut commit = requests.push(commit, None, later()).unwrap();
        let _get = requests.push(get(), None, later()).unwrap();
        let ids = next(&mut frames).unwrap();
        assert!(requests.silence(much_later) > Duration::from_secs(8), "the get is not answered");
        answer(&requests, &ids[1..]);
        assert_eq!(requests.silence(much_later), Duration::ZERO, "only the transaction is not");
        let typical = requests.typical();
        answer(&requests, &ids[..1]);
        assert!(commit.try_recv().unwrap().is_ok());
        assert_eq!(requests.typical(), typical);
    }

    #[tokio::test]
    async fn a_request_after_a_break_calls_for_a_new_stream() {
        let requests = requests();
        let mut broken = frames(&requests);
        assert_eq!(next(&mut broken), None);
        requests.fail_sent(&Failure::Broken("there".to_owned()));
        let _answer = requests.push(get(), None, later()).unwrap();
        tokio::time::timeout(Duration::from_secs(10), requests.wanted()).await.unwrap();
    }
}
