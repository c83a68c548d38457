//! The messages of one direction of one call, each carried as the rules want it.
//!
//! While no rule looks at messages, bytes pass as they came. Else each message is judged; what waits for its time or is held
//! stays here, and the end of the direction waits for it. A message that overtakes another is what a delay of some messages
//! is for; whoever wants a slow link in order uses the plane below.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::HeaderMap;
use hyper::body::{Frame, Incoming};
use kv_fault::{Fate, Link, Message, RuleName, Verdict};
use kv_proto::v1;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use crate::faults::{Faults, Held, Room};
use crate::grpc::{self, Piece, Splitter};
use crate::inspect::{self, Seen, Stream};

/// A message that lets others pass goes on after so long, if no others come.
const REORDER_MAX: Duration = Duration::from_millis(50);

/// Frames of a body that wait for the other side.
const FRAMES_AHEAD: usize = 4;

/// A body that is carried, as whoever sends it on sees it.
pub(crate) type Carried = StreamBody<ReceiverStream<Result<Frame<Bytes>, hyper::Error>>>;

/// Where a direction of a call is sent on; open until it is dropped.
#[derive(Debug)]
pub(crate) struct Out(mpsc::Sender<Result<Frame<Bytes>, hyper::Error>>);

/// Whoever was to receive has gone away.
struct Gone;

impl Out {
    pub(crate) fn new() -> (Self, Carried) {
        let (frames, stream) = mpsc::channel(FRAMES_AHEAD);
        (Self(frames), StreamBody::new(ReceiverStream::new(stream)))
    }

    async fn send(&self, bytes: Bytes) -> Result<(), Gone> {
        self.0.send(Ok(Frame::data(bytes))).await.map_err(|_| Gone)
    }

    async fn end(&self, end: End) -> Result<(), Gone> {
        let last = match end {
            End::Whole(None) => return Ok(()),
            End::Whole(Some(trailers)) => Ok(Frame::trailers(trailers)),
            End::Broken(error) => Err(error),
        };
        self.0.send(last).await.map_err(|_| Gone)
    }

    /// Returns when nobody receives any more.
    pub(crate) async fn closed(&self) {
        self.0.closed().await;
    }
}

/// What is done with a copy of a request that does not fit into its own call.
pub(crate) type Copier = Box<dyn Fn(Bytes, Duration) + Send>;

/// One direction of a call.
pub(crate) struct Carrier {
    pub(crate) faults: Arc<Faults>,
    /// The direction in which these messages travel.
    pub(crate) link: Link,
    /// What makes another call of a copy; `None` if this direction is an answer or a stream.
    pub(crate) copier: Option<Copier>,
    /// Whether it is a stream: what is lost leaves no gap.
    is_stream: bool,
    /// The message of a call with one was lost.
    lost: bool,
    waiting: Vec<Waiting>,
    sequence: u64,
}

struct Waiting {
    bytes: Bytes,
    sequence: u64,
    why: Why,
    _room: Room,
}

enum Why {
    /// Its time has not come.
    Until(Instant),
    /// So many others have to pass, or so much time.
    Others(u32, Instant),
    /// A rule holds it since a change.
    Held(RuleName, u64),
}

/// How the direction ended at its source.
enum End {
    /// In good order.
    Whole(Option<HeaderMap>),
    /// It broke.
    Broken(hyper::Error),
}

/// What the messages of a direction are.
pub(crate) enum Side<'a> {
    Request(&'a mut Stream),
    Reply(&'a Stream),
}

impl Carrier {
    pub(crate) fn new(faults: Arc<Faults>, link: Link, is_stream: bool) -> Self {
        Self { faults, link, copier: None, is_stream, lost: false, waiting: Vec::new(), sequence: 0 }
    }

    /// Carries all of a body. Returns when everything has arrived, or was lost: whether something arrived after its source had
    /// given up. If a call's one message was lost, its other side waits for it until `out` is dropped.
    pub(crate) async fn carry(&mut self, mut body: Incoming, out: &Out, mut side: Side<'_>) -> bool {
        let mut splitter = Splitter::default();
        let mut changes = self.faults.changes();
        let (mut end, mut late) = (None, false);
        while end.is_none() || !self.waiting.is_empty() {
            tokio::select! {
                biased;
                frame = body.frame(), if end.is_none() => match frame {
                    None => end = Some(End::Whole(None)),
                    // Whoever has asked gave up, but what is on its way arrives nevertheless.
                    Some(Err(_)) if !self.waiting.is_empty() => (end, late) = (Some(End::Whole(None)), true),
                    Some(Err(error)) => end = Some(End::Broken(error)),
                    Some(Ok(frame)) => match frame.into_data() {
                        Err(other) => end = Some(End::Whole(other.into_trailers().ok())),
                        Ok(bytes) => {
                            if self.data(&mut splitter, bytes, &mut side, out).await.is_err() {
                                return late;
                            }
                        }
                    },
                },
                () = due(self.next_due()) => {}
                _ = changes.changed(), if !self.waiting.is_empty() => {}
                () = out.closed() => return late,
            }
            if self.deliver_due(out).await.is_err() {
                return late;
            }
        }
        if let Some(end) = end.filter(|_| !self.lost) {
            // Whoever has gone away needs no end.
            let _ = out.end(end).await;
        }
        late
    }

    /// Waits as long as rules want an answer to wait that is nothing but its head, an error. Whether it arrives.
    pub(crate) async fn carry_head(&mut self, asked: &Stream) -> bool {
        if self.faults.is_quiet() {
            return true;
        }
        let mut changes = self.faults.changes();
        let (mut verdict, change) = self.judge_all(&asked.reply(0));
        // It has no bits that could be flipped, and a call has one answer.
        verdict.flips.clear();
        verdict.copies.clear();
        // An empty message waits in its place, and arrives nowhere.
        let (out, _sent) = Out::new();
        let mut sent = self.act((verdict, change), Bytes::new(), &out).await;
        while sent.is_ok() && !self.waiting.is_empty() {
            tokio::select! {
                () = due(self.next_due()) => {}
                _ = changes.changed() => {}
            }
            sent = self.deliver_due(&out).await;
        }
        !self.lost
    }

    /// Whether the one message of a call was lost.
    pub(crate) fn was_lost(&self) -> bool {
        self.lost
    }

    async fn data(
        &mut self,
        splitter: &mut Splitter,
        bytes: Bytes,
        side: &mut Side<'_>,
        out: &Out,
    ) -> Result<(), Gone> {
        for piece in splitter.feed(bytes, self.faults.is_quiet()) {
            match piece {
                Piece::Raw(bytes) => out.send(bytes).await?,
                Piece::Message(payload) => self.message(payload, side, out).await?,
            }
        }
        Ok(())
    }

    async fn message(&mut self, payload: Bytes, side: &mut Side<'_>, out: &Out) -> Result<(), Gone> {
        let seen = match side {
            Side::Request(stream) => stream.request(&payload),
            Side::Reply(stream) => Seen::Whole(stream.reply(payload.len())),
        };
        match seen {
            Seen::Whole(messages) => {
                let verdict = self.judge_all(&messages);
                self.act(verdict, payload, out).await?;
                if self.has_been_passed() { self.deliver_due(out).await } else { Ok(()) }
            }
            Seen::Batch(batch, messages) => self.batch(payload, batch, &messages, out).await,
        }
    }

    /// What stands or falls together: the worst that is said of one of them.
    fn judge_all(&mut self, messages: &[Message]) -> (Verdict, u64) {
        let mut all = (Verdict::PLAIN, 0);
        for message in messages {
            let (one, change) = self.faults.judge(self.link, message);
            all.1 = change;
            all.0.fate = match (std::mem::replace(&mut all.0.fate, Fate::Deliver), one.fate) {
                (Fate::Drop, _) | (_, Fate::Drop) => Fate::Drop,
                (Fate::Hold(by), _) | (_, Fate::Hold(by)) => Fate::Hold(by),
                (Fate::Deliver, Fate::Deliver) => Fate::Deliver,
            };
            all.0.delay = all.0.delay.max(one.delay);
            all.0.reorder = all.0.reorder.max(one.reorder);
            all.0.flips.extend(one.flips);
            if one.copies.len() > all.0.copies.len() {
                all.0.copies = one.copies;
            }
        }
        all
    }

    /// What of a batch is delivered at once keeps its order, and the plain ones in a row stay together.
    async fn batch(
        &mut self,
        payload: Bytes,
        batch: v1::PeerBatch,
        messages: &[Message],
        out: &Out,
    ) -> Result<(), Gone> {
        let verdicts: Vec<_> = messages.iter().map(|message| self.faults.judge(self.link, message)).collect();
        if self.waiting.is_empty() && verdicts.iter().all(|(verdict, _)| verdict.is_plain()) {
            return out.send(grpc::framed(&payload)).await;
        }
        let mut plain = Vec::new();
        for (message, (verdict, change)) in batch.messages.into_iter().zip(verdicts) {
            if verdict.is_plain() {
                plain.push(message);
                self.passed();
            } else {
                if is_at_once(&verdict) {
                    send_batch(batch.lamport, &mut plain, out).await?;
                }
                self.act((verdict, change), inspect::frame(batch.lamport, vec![message]), out).await?;
            }
            if self.has_been_passed() {
                send_batch(batch.lamport, &mut plain, out).await?;
                self.deliver_due(out).await?;
            }
        }
        send_batch(batch.lamport, &mut plain, out).await
    }

    async fn act(
        &mut self,
        (verdict, change): (Verdict, u64),
        payload: Bytes,
        out: &Out,
    ) -> Result<(), Gone> {
        let bytes = grpc::framed(&flipped(payload, &verdict.flips));
        let now = Instant::now();
        for delay in &verdict.copies {
            match &self.copier {
                Some(copier) => copier(bytes.clone(), *delay),
                None => self.wait(bytes.clone(), Why::Until(now + *delay)),
            }
        }
        if verdict.fate != Fate::Drop {
            self.passed();
        }
        match verdict.fate {
            Fate::Drop => self.lost |= !self.is_stream,
            Fate::Hold(by) => self.wait(bytes, Why::Held(by, change)),
            Fate::Deliver => match verdict.reorder {
                Some(others) => self.wait(bytes, Why::Others(others, now + verdict.delay + REORDER_MAX)),
                None if verdict.delay.is_zero() => return out.send(bytes).await,
                None => self.wait(bytes, Why::Until(now + verdict.delay)),
            },
        }
        Ok(())
    }

    fn wait(&mut self, bytes: Bytes, why: Why) {
        // Without room it is lost, and counted.
        let Some(room) = self.faults.room(bytes.len()) else {
            self.lost |= !self.is_stream;
            return;
        };
        self.sequence += 1;
        self.waiting.push(Waiting { bytes, sequence: self.sequence, why, _room: room });
    }

    /// A message has come that is not lost: it passes those that let others pass, also if it waits itself.
    fn passed(&mut self) {
        for waiting in &mut self.waiting {
            if let Why::Others(others, _) = &mut waiting.why {
                *others = others.saturating_sub(1);
            }
        }
    }

    /// Whether somebody has let as many others pass as it was to.
    fn has_been_passed(&self) -> bool {
        self.waiting.iter().any(|waiting| matches!(waiting.why, Why::Others(0, _)))
    }

    fn next_due(&self) -> Option<Instant> {
        let due = |waiting: &Waiting| match waiting.why {
            Why::Until(due) | Why::Others(_, due) => Some(due),
            Why::Held(..) => None,
        };
        self.waiting.iter().filter_map(due).min()
    }

    /// Delivers what has waited long enough, in the order in which its time came.
    async fn deliver_due(&mut self, out: &Out) -> Result<(), Gone> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        let mut due = Vec::new();
        let mut staying = Vec::new();
        for waiting in self.waiting.drain(..) {
            let at = match &waiting.why {
                Why::Until(at) => (*at <= now).then_some(*at),
                Why::Others(others, at) => (*others == 0 || *at <= now).then_some(now),
                Why::Held(by, change) => match self.faults.held(by, *change) {
                    Held::Still => None,
                    Held::Released => Some(now),
                    Held::Lost => {
                        self.lost |= !self.is_stream;
                        continue;
                    }
                },
            };
            match at {
                Some(at) => due.push((at, waiting)),
                None => staying.push(waiting),
            }
        }
        self.waiting = staying;
        due.sort_by_key(|(at, waiting)| (*at, waiting.sequence));
        for (_, waiting) in due {
            out.send(waiting.bytes).await?;
        }
        Ok(())
    }
}

/// Whether it is sent before what comes behind it.
fn is_at_once(verdict: &Verdict) -> bool {
    verdict.fate == Fate::Deliver && verdict.reorder.is_none() && verdict.delay.is_zero()
}

/// Sends what has gathered of a batch, if anything has.
async fn send_batch(lamport: u64, messages: &mut Vec<v1::ShardMessage>, out: &Out) -> Result<(), Gone> {
    if messages.is_empty() {
        return Ok(());
    }
    out.send(grpc::framed(&inspect::frame(lamport, std::mem::take(messages)))).await
}

async fn due(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// The bytes with some bits turned over, each chosen by a hash.
fn flipped(payload: Bytes, flips: &[u64]) -> Bytes {
    if flips.is_empty() || payload.is_empty() {
        return payload;
    }
    let mut bytes = BytesMut::from(&payload[..]);
    let bits = u64::try_from(bytes.len()).unwrap_or(u64::MAX).saturating_mul(8);
    for hash in flips {
        let bit = hash % bits;
        let at = usize::try_from(bit / 8).unwrap_or(usize::MAX);
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1 << (bit % 8);
        }
    }
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::Call;
    use kv_fault::{Action, Filter, Half, Kind, Links, Nth, Rule};

    /// A frame of appends that end with these entries.
    fn appends(indexes: impl IntoIterator<Item = u64>) -> Bytes {
        let append = |index| {
            let id = Some(v1::LogId { term: 1, index });
            let entries = vec![v1::Entry { id, ..v1::Entry::default() }];
            let append = v1::Append { entries, ..v1::Append::default() };
            let kind = Some(v1::raft_message::Kind::Append(append));
            let message = v1::RaftMessage { from: 1, to: 2, term: 1, kind };
            v1::ShardMessage { shard: 1, body: Some(v1::shard_message::Body::Raft(message)) }
        };
        inspect::frame(7, indexes.into_iter().map(append).collect())
    }

    /// Rules under which the first message lets so many others pass.
    fn first_lets_pass(others: u32, link: Link) -> Arc<Faults> {
        let message = Message {
            kind: Kind::Append,
            half: Half::Request,
            shard: None,
            term: None,
            indexes: None,
            bytes: 9,
        };
        let loaded = |window| {
            let filter = Filter { nth: Some(Nth::Only(1)), ..Filter::on(Links::All) };
            let action = Action::Reorder { window };
            let rule = Rule { name: "r".parse().unwrap(), filter, action, pulse: None };
            let faults = Faults::new(1);
            faults.load(vec![rule], None, &[]).unwrap();
            faults
        };
        let window = (1..=64).find(|window| loaded(*window).judge(link, &message).0.reorder == Some(others));
        Arc::new(loaded(window.unwrap()))
    }

    #[tokio::test]
    async fn as_many_messages_go_before_another_as_were_drawn_in_whatever_frames_they_are() {
        let link = "n1->n2".parse().unwrap();
        let mut carrier = Carrier::new(first_lets_pass(3, link), link, true);
        let (out, mut sent) = Out::new();
        let mut stream = Stream::new(Call::Link);
        for frame in [1..=2, 3..=7] {
            let carried = carrier.message(appends(frame), &mut Side::Request(&mut stream), &out).await;
            assert!(carried.is_ok());
        }
        drop(out);
        let expected: [&[u64]; 4] = [&[2], &[3, 4], &[1], &[5, 6, 7]];
        for indexes in expected {
            let frame = sent.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(frame, grpc::framed(&appends(indexes.iter().copied())), "{indexes:?}");
        }
        assert!(sent.frame().await.is_none());
    }

    #[test]
    fn a_flip_turns_one_bit_over() {
        let payload = Bytes::from_static(&[0, 0, 0]);
        assert_eq!(flipped(payload.clone(), &[]), payload);
        assert_eq!(flipped(payload.clone(), &[9]), Bytes::from_static(&[0, 2, 0]));
        assert_eq!(flipped(payload.clone(), &[9, 9]), payload);
        assert_eq!(
            flipped(payload, &[24]),
            Bytes::from_static(&[1, 0, 0]),
            "the hash is taken modulo the bits"
        );
        assert_eq!(flipped(Bytes::new(), &[1]), Bytes::new());
    }
}
