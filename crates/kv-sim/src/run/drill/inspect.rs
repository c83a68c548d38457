//! What rules see of what nodes say to each other: the same as the proxy shows them.

use kv_fault::{Half, Kind, Message};
use kv_raft::{Message as Raft, MessageKind};
use kv_state::txn::TxnCommand;
use kv_state::{Command, Opened};
use kv_types::{ShardId, Term};

use crate::network::Packet;
use crate::party::Question;

/// What a message weighs beside its entries, and an entry beside its payload, in bytes.
const ENVELOPE: u64 = 64;

/// What a part of a snapshot weighs.
const CHUNK: u64 = 64 << 10;

/// A message of Raft.
pub(super) fn packet(packet: &Packet) -> Message {
    let Raft { term, kind, .. } = &packet.message;
    let vote = |pre: bool| if pre { Kind::PreVote } else { Kind::Vote };
    let (seen, half) = match kind {
        MessageKind::Append { entries, .. } if entries.is_empty() => (Kind::Heartbeat, Half::Request),
        MessageKind::Append { .. } => (Kind::Append, Half::Request),
        MessageKind::AppendAck { .. } => (Kind::Append, Half::Reply),
        MessageKind::Vote { pre, .. } => (vote(*pre), Half::Request),
        MessageKind::VoteAck { pre, .. } => (vote(*pre), Half::Reply),
        MessageKind::TimeoutNow { .. } => (Kind::TimeoutNow, Half::Request),
        MessageKind::ReadIndex { .. } => (Kind::ReadIndex, Half::Request),
        MessageKind::ReadIndexAck { .. } => (Kind::ReadIndex, Half::Reply),
    };
    let entries = match kind {
        MessageKind::Append { entries, .. } => entries.as_slice(),
        MessageKind::AppendAck { .. }
        | MessageKind::Vote { .. }
        | MessageKind::VoteAck { .. }
        | MessageKind::TimeoutNow { .. }
        | MessageKind::ReadIndex { .. }
        | MessageKind::ReadIndexAck { .. } => &[],
    };
    let ends = entries.first().zip(entries.last());
    let payload: u64 = entries.iter().map(|entry| entry.body.payload_bytes() + ENVELOPE).sum();
    Message {
        kind: seen,
        half,
        shard: Some(packet.shard),
        term: Some(*term),
        indexes: ends.map(|(first, last)| first.id.index.get()..=last.id.index.get()),
        bytes: ENVELOPE + payload,
    }
}

/// A question of a party that another node is asked; none of those that stay on their node.
pub(super) fn question(question: &Question) -> Option<Message> {
    let (kind, shard, payload) = match question {
        Question::Step(shard, bytes, _) => (step(bytes), *shard, bytes.len()),
        Question::Known(shard, _) => (Kind::Known, *shard, 0),
        Question::Confirm(_) | Question::Pause(_) => return None,
    };
    let bytes = ENVELOPE + u64::try_from(payload).unwrap_or(u64::MAX - ENVELOPE);
    Some(Message { kind, half: Half::Request, shard: Some(shard), term: None, indexes: None, bytes })
}

/// A part of a snapshot.
pub(super) fn chunk(shard: ShardId, term: Term) -> Message {
    let (kind, half) = (Kind::SnapshotChunk, Half::Request);
    Message { kind, half, shard: Some(shard), term: Some(term), indexes: None, bytes: CHUNK }
}

fn step(bytes: &bytes::Bytes) -> Kind {
    match Opened::decode(bytes.clone()).map(Opened::into_command) {
        Ok(Command::Txn(TxnCommand::Prepare { .. })) => Kind::Prepare,
        Ok(Command::Txn(TxnCommand::Resolve { .. })) => Kind::Resolve,
        Ok(Command::Txn(TxnCommand::Commit { .. } | TxnCommand::Abort { .. } | TxnCommand::Fence { .. })) => {
            Kind::Decide
        }
        Ok(_) | Err(_) => Kind::Control,
    }
}
