//! What a gRPC message of ours says, as far as rules look at it.

use std::ops::RangeInclusive;

use bytes::Bytes;
use kv_fault::{Half, Kind, Message};
use kv_proto::v1::shard_message::Body;
use kv_proto::{sealed, v1};
use kv_state::txn::TxnCommand;
use kv_state::{Command, Opened};
use kv_types::{ShardId, Term};
use prost::Message as _;

/// What kind of call a stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Raft messages and steps of transactions, many in one.
    Link,
    /// A snapshot.
    Snapshot,
    /// Whatever else nodes say to each other.
    Control,
    /// A client's call with one request.
    Client,
    /// A client's call with one request and a stream of answers.
    ClientScan,
    /// A client's stream of requests, answered by a stream.
    ClientStream,
}

/// Calls of clients whose requests are a stream. Those of peers are named in [`Call::of`].
const CLIENT_STREAMS: [&str; 1] = ["/quorate.v1.KV/Pipeline"];

/// Calls of clients with one request and a stream of answers.
const CLIENT_SCANS: [&str; 1] = ["/quorate.v1.KV/Scan"];

const PEER: &str = "/quorate.v1.Peer/";

impl Call {
    /// By the path of a request.
    pub(crate) fn of(path: &str) -> Self {
        match path.strip_prefix(PEER) {
            Some("Link") => Self::Link,
            Some("SnapshotStream") => Self::Snapshot,
            Some(_) => Self::Control,
            None if CLIENT_STREAMS.contains(&path) => Self::ClientStream,
            None if CLIENT_SCANS.contains(&path) => Self::ClientScan,
            None => Self::Client,
        }
    }

    /// Whether its request may be sent twice in one stream; of others, a call of its own is a copy.
    pub(crate) fn is_stream(self) -> bool {
        matches!(self, Self::Link | Self::Snapshot | Self::ClientStream)
    }

    /// Whether its answer may be of several messages.
    pub(crate) fn answers_stream(self) -> bool {
        matches!(self, Self::Link | Self::ClientScan | Self::ClientStream)
    }

    /// The kind of its answer, if that says nothing itself.
    fn kind(self) -> Kind {
        match self {
            Self::Link | Self::Control => Kind::Control,
            Self::Snapshot => Kind::SnapshotChunk,
            Self::Client | Self::ClientScan | Self::ClientStream => Kind::Client,
        }
    }
}

/// What rules see of one gRPC message: itself, or each message in it.
#[derive(Debug)]
pub(crate) enum Seen {
    /// It stands or falls as a whole; it counts as each of these.
    Whole(Vec<Message>),
    /// Messages that have nothing to do with each other.
    Batch(v1::PeerBatch, Vec<Message>),
}

/// What is known of a stream beside its messages.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    pub(crate) call: Call,
    /// The shard of the snapshot, once its header was seen.
    shard: Option<ShardId>,
    /// The term in which it is sent.
    term: Option<Term>,
    /// What its request counted as, for its answer.
    asked: Vec<Message>,
}

impl Stream {
    pub(crate) fn new(call: Call) -> Self {
        Self { call, shard: None, term: None, asked: Vec::new() }
    }

    /// What a request holds. What cannot be read counts as its call.
    pub(crate) fn request(&mut self, payload: &Bytes) -> Seen {
        let seen = match self.call {
            Call::Link => batch(payload),
            Call::Snapshot => Some(Seen::Whole(vec![self.chunk(payload)])),
            Call::Control | Call::Client | Call::ClientScan | Call::ClientStream => None,
        };
        let seen = seen.unwrap_or_else(|| Seen::Whole(vec![self.plain(Half::Request, payload.len())]));
        if let (Seen::Whole(messages), false) = (&seen, self.call.is_stream()) {
            self.asked.clone_from(messages);
        }
        seen
    }

    /// What an answer counts as: what was asked, from the other side.
    pub(crate) fn reply(&self, bytes: usize) -> Vec<Message> {
        if self.asked.is_empty() {
            return vec![self.plain(Half::Reply, bytes)];
        }
        let size = size(bytes);
        let answer = |asked: &Message| Message { half: Half::Reply, bytes: size, ..asked.clone() };
        self.asked.iter().map(answer).collect()
    }

    fn plain(&self, half: Half, bytes: usize) -> Message {
        let (shard, term) = (self.shard, self.term);
        Message { kind: self.call.kind(), half, shard, term, indexes: None, bytes: size(bytes) }
    }

    fn chunk(&mut self, payload: &Bytes) -> Message {
        if let Ok(v1::SnapshotChunk { piece: Some(v1::snapshot_chunk::Piece::Header(header)), .. }) =
            v1::SnapshotChunk::decode(payload.clone())
            && let Ok(subject) = sealed::open(header)
        {
            self.shard = Some(ShardId::new(subject.shard));
            self.term = Some(Term::new(subject.term));
        }
        self.plain(Half::Request, payload.len())
    }
}

fn size(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn batch(payload: &Bytes) -> Option<Seen> {
    let frame = v1::Frame::decode(payload.clone()).ok()?;
    let batch = sealed::open(frame).ok()?;
    let messages = batch.messages.iter().map(shard_message).collect();
    Some(Seen::Batch(batch, messages))
}

fn shard_message(wire: &v1::ShardMessage) -> Message {
    let plain = |kind, half| Message {
        kind,
        half,
        shard: Some(ShardId::new(wire.shard)),
        term: None,
        indexes: None,
        bytes: size(wire.encoded_len()),
    };
    match &wire.body {
        None => plain(Kind::Control, Half::Request),
        Some(Body::Raft(message)) => {
            let (kind, half) = raft(message);
            Message { term: Some(Term::new(message.term)), indexes: indexes(message), ..plain(kind, half) }
        }
        Some(Body::Step(step)) => plain(step_kind(step), Half::Request),
        Some(Body::Result(result)) => plain(asked(result), Half::Reply),
    }
}

/// An empty append is a heartbeat to us: a probe and the news of a commit look the same.
fn raft(message: &v1::RaftMessage) -> (Kind, Half) {
    use v1::raft_message::Kind as Wire;
    match &message.kind {
        Some(Wire::Append(append)) if append.entries.is_empty() => (Kind::Heartbeat, Half::Request),
        Some(Wire::Append(_)) => (Kind::Append, Half::Request),
        Some(Wire::AppendAck(_)) => (Kind::Append, Half::Reply),
        Some(Wire::Vote(vote)) => (if vote.pre { Kind::PreVote } else { Kind::Vote }, Half::Request),
        Some(Wire::VoteAck(ack)) => (if ack.pre { Kind::PreVote } else { Kind::Vote }, Half::Reply),
        Some(Wire::ReadIndex(_)) => (Kind::ReadIndex, Half::Request),
        Some(Wire::ReadIndexAck(_)) => (Kind::ReadIndex, Half::Reply),
        Some(Wire::TimeoutNow(_)) => (Kind::TimeoutNow, Half::Request),
        None => (Kind::Control, Half::Request),
    }
}

/// The indexes of an append's entries.
fn indexes(message: &v1::RaftMessage) -> Option<RangeInclusive<u64>> {
    let Some(v1::raft_message::Kind::Append(append)) = &message.kind else { return None };
    let index = |entry: Option<&v1::Entry>| entry?.id.map(|id| id.index);
    Some(index(append.entries.first())?..=index(append.entries.last())?)
}

/// What an answer to a step is the answer to.
fn asked(result: &v1::StepTxnResult) -> Kind {
    match result.kind() {
        v1::StepKind::Prepare => Kind::Prepare,
        v1::StepKind::Decide => Kind::Decide,
        v1::StepKind::Resolve => Kind::Resolve,
        v1::StepKind::Known => Kind::Known,
        v1::StepKind::Unspecified => Kind::Control,
    }
}

fn step_kind(step: &v1::StepTxn) -> Kind {
    let Some(v1::step_txn::Ask::Step(step)) = &step.ask else { return Kind::Known };
    match Opened::decode(step.clone()).map(Opened::into_command) {
        Ok(Command::Txn(TxnCommand::Prepare { .. })) => Kind::Prepare,
        Ok(Command::Txn(TxnCommand::Resolve { .. })) => Kind::Resolve,
        // The anchor's leader takes a commit itself; what travels is the question of one who waits for it.
        Ok(Command::Txn(TxnCommand::Commit { .. } | TxnCommand::Abort { .. } | TxnCommand::Fence { .. })) => {
            Kind::Decide
        }
        Ok(_) | Err(_) => Kind::Control,
    }
}

/// A frame of some of a batch's messages.
pub(crate) fn frame(lamport: u64, messages: Vec<v1::ShardMessage>) -> Bytes {
    let frame: v1::Frame = sealed::seal(&v1::PeerBatch { lamport, messages });
    frame.encode_to_vec().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::v1::raft_message::Kind as Wire;

    fn of(kind: Wire) -> v1::ShardMessage {
        let message = v1::RaftMessage { from: 1, to: 2, term: 7, kind: Some(kind) };
        v1::ShardMessage { shard: 3, body: Some(Body::Raft(message)) }
    }

    fn append(indexes: &[u64]) -> v1::ShardMessage {
        let entry = |index: &u64| v1::Entry {
            id: Some(v1::LogId { term: 7, index: *index }),
            ..v1::Entry::default()
        };
        of(Wire::Append(v1::Append { entries: indexes.iter().map(entry).collect(), ..v1::Append::default() }))
    }

    #[test]
    fn a_frame_is_seen_message_by_message() {
        let sent = vec![
            append(&[4, 5, 6]),
            append(&[]),
            of(Wire::AppendAck(v1::AppendAck::default())),
            of(Wire::Vote(v1::Vote { pre: true, ..v1::Vote::default() })),
            of(Wire::VoteAck(v1::VoteAck { granted: true, pre: false })),
            of(Wire::ReadIndexAck(v1::ReadIndexAck::default())),
            of(Wire::TimeoutNow(v1::TimeoutNow::default())),
        ];
        let Seen::Batch(batch, messages) = Stream::new(Call::Link).request(&frame(9, sent.clone())) else {
            panic!("a frame is a batch")
        };
        assert_eq!((batch.lamport, batch.messages), (9, sent));
        let seen: Vec<_> = messages.iter().map(|message| (message.kind, message.half)).collect();
        let expected = [
            (Kind::Append, Half::Request),
            (Kind::Heartbeat, Half::Request),
            (Kind::Append, Half::Reply),
            (Kind::PreVote, Half::Request),
            (Kind::Vote, Half::Reply),
            (Kind::ReadIndex, Half::Reply),
            (Kind::TimeoutNow, Half::Request),
        ];
        assert_eq!(seen, expected);
        assert_eq!(messages[0].indexes, Some(4..=6));
        assert!(messages.iter().all(|m| m.shard == Some(ShardId::new(3)) && m.term == Some(Term::new(7))));
    }

    #[test]
    fn what_cannot_be_read_counts_as_its_call() {
        let mut stream = Stream::new(Call::Link);
        let Seen::Whole(messages) = stream.request(&Bytes::from_static(b"?")) else { panic!("no batch") };
        assert_eq!(messages[0].kind, Kind::Control);
    }

    #[test]
    fn steps_and_their_answers_are_messages_of_a_link() {
        let ask = v1::step_txn::Ask::Known(v1::TxnName::default());
        let step = v1::StepTxn { ask: Some(ask), ..v1::StepTxn::default() };
        let result = v1::StepTxnResult { kind: v1::StepKind::Resolve.into(), ..v1::StepTxnResult::default() };
        let sent = [Body::Step(step), Body::Result(result)];
        let sent = sent.map(|body| v1::ShardMessage { shard: 2, body: Some(body) });
        let Seen::Batch(_, messages) = Stream::new(Call::Link).request(&frame(9, sent.into())) else {
            panic!("a frame is a batch")
        };
        let seen: Vec<_> = messages.iter().map(|message| (message.kind, message.half)).collect();
        assert_eq!(seen, [(Kind::Known, Half::Request), (Kind::Resolve, Half::Reply)]);
        assert!(messages.iter().all(|message| message.shard == Some(ShardId::new(2))));
    }

    #[test]
    fn a_snapshots_chunks_belong_to_the_shard_of_its_header() {
        let subject = v1::SnapshotSubject { shard: 4, term: 2, ..v1::SnapshotSubject::default() };
        let header = v1::snapshot_chunk::Piece::Header(sealed::seal(&subject));
        let header = v1::SnapshotChunk { piece: Some(header), ..v1::SnapshotChunk::default() };
        let mut stream = Stream::new(Call::Snapshot);
        stream.request(&header.encode_to_vec().into());
        let Seen::Whole(chunk) = stream.request(&Bytes::from_static(b"")) else { panic!("one chunk") };
        assert_eq!((chunk[0].kind, chunk[0].shard), (Kind::SnapshotChunk, Some(ShardId::new(4))));
    }

    /// Streaming calls are told from others by name; this fails when a proto file gets another one.
    #[test]
    fn every_call_with_a_stream_is_known() {
        let set = prost_types::FileDescriptorSet::decode(kv_proto::FILE_DESCRIPTOR_SET).unwrap();
        let services =
            set.file.iter().filter(|file| file.package() == "quorate.v1").flat_map(|file| &file.service);
        let calls = services.flat_map(|service| service.method.iter().map(move |method| (service, method)));
        for (service, method) in calls {
            let path = format!("/quorate.v1.{}/{}", service.name(), method.name());
            assert_eq!(Call::of(&path).is_stream(), method.client_streaming(), "{path}");
            assert_eq!(Call::of(&path).answers_stream(), method.server_streaming(), "{path}");
        }
    }
}
