//! Raft messages on the wire.
//!
//! `kv-proto` knows no Raft and `kv-raft` knows no wire, so the two meet here. Whether a message makes sense is the
//! core's to judge; here it only has to be whole.

use kv_proto::v1::{self, append_ack, raft_message::Kind, shard_message::Body};
use kv_proto::validate::{self, Envelope, WireError};
use kv_raft::{Conflict, Message, MessageKind, ReadRefused, Round};
use kv_types::{Nanos, ShardId};

/// A message of a shard's replica for the wire.
pub(crate) fn encode(shard: ShardId, message: &Message) -> v1::ShardMessage {
    let kind = match &message.kind {
        MessageKind::Append { prev, last, entries, commit, round, promise_ms } => Kind::Append(v1::Append {
            prev: Some(validate::log_id_to_wire(*prev)),
            last: Some(validate::log_id_to_wire(*last)),
            entries: entries.iter().map(validate::entry_to_wire).collect(),
            commit: commit.get(),
            round: Some(round_to_wire(*round)),
            promise_ms: *promise_ms,
        }),
        MessageKind::AppendAck { round, result, clock } => Kind::AppendAck(v1::AppendAck {
            round: Some(round_to_wire(*round)),
            result: Some(match result {
                Ok(matched) => append_ack::Result::Match(matched.get()),
                Err(conflict) => append_ack::Result::Conflict(v1::Conflict {
                    rejected: conflict.prev.get(),
                    hint: Some(validate::log_id_to_wire(conflict.hint)),
                }),
            }),
            clock_ns: clock.get(),
        }),
        MessageKind::Vote { last, pre, by_transfer } => Kind::Vote(v1::Vote {
            last: Some(validate::log_id_to_wire(*last)),
            pre: *pre,
            transfer: *by_transfer,
        }),
        MessageKind::TimeoutNow { last } => {
            Kind::TimeoutNow(v1::TimeoutNow { last: Some(validate::log_id_to_wire(*last)) })
        }
        MessageKind::VoteAck { granted, pre } => Kind::VoteAck(v1::VoteAck { granted: *granted, pre: *pre }),
        MessageKind::ReadIndex { round } => {
            Kind::ReadIndex(v1::ReadIndex { round: Some(round_to_wire(*round)) })
        }
        MessageKind::ReadIndexAck { round, result } => Kind::ReadIndexAck(v1::ReadIndexAck {
            round: Some(round_to_wire(*round)),
            index: result.as_ref().ok().map(|index| index.get()),
            leader: match result {
                Err(ReadRefused::NotLeader { hint: Some(node) }) => node.get(),
                _ => 0,
            },
        }),
    };
    let message = v1::RaftMessage {
        from: message.from.get(),
        to: message.to.get(),
        term: message.term.get(),
        kind: Some(kind),
    };
    v1::ShardMessage { shard: shard.get(), body: Some(Body::Raft(message)) }
}

/// A message from the wire.
///
/// # Errors
/// [`WireError`] names what is missing or out of bounds.
pub(crate) fn decode(wire: v1::RaftMessage) -> Result<Message, WireError> {
    let Envelope { from, to, term, kind } = validate::raft_message(wire)?;
    let kind = match kind {
        Kind::Append(append) => MessageKind::Append {
            prev: validate::log_id("prev", append.prev)?,
            last: validate::log_id("last", append.last)?,
            entries: append.entries.into_iter().map(validate::entry).collect::<Result<_, _>>()?,
            commit: validate::index("commit", append.commit)?,
            round: round(append.round)?,
            promise_ms: append.promise_ms,
        },
        Kind::AppendAck(ack) => MessageKind::AppendAck {
            round: round(ack.round)?,
            result: match ack.result.ok_or(WireError::Missing("result"))? {
                append_ack::Result::Match(matched) => Ok(validate::index("match", matched)?),
                append_ack::Result::Conflict(conflict) => Err(Conflict {
                    prev: validate::index("rejected", conflict.rejected)?,
                    hint: validate::log_id("hint", conflict.hint)?,
                }),
            },
            clock: Nanos::new(ack.clock_ns),
        },
        Kind::Vote(vote) => MessageKind::Vote {
            last: validate::log_id("last", vote.last)?,
            pre: vote.pre,
            by_transfer: vote.transfer,
        },
        Kind::TimeoutNow(wish) => MessageKind::TimeoutNow { last: validate::log_id("last", wish.last)? },
        Kind::VoteAck(ack) => MessageKind::VoteAck { granted: ack.granted, pre: ack.pre },
        Kind::ReadIndex(ask) => MessageKind::ReadIndex { round: round(ask.round)? },
        Kind::ReadIndexAck(ack) => MessageKind::ReadIndexAck {
            round: round(ack.round)?,
            result: match ack.index {
                Some(index) => Ok(validate::index("index", index)?),
                None => {
                    let hint = (ack.leader > 0).then(|| kv_types::NodeId::new(ack.leader));
                    Err(ReadRefused::NotLeader { hint })
                }
            },
        },
    };
    Ok(Message { from, to, term, kind })
}

fn round_to_wire(round: Round) -> v1::Round {
    v1::Round { incarnation: round.incarnation, counter: round.number }
}

fn round(wire: Option<v1::Round>) -> Result<Round, WireError> {
    let wire = wire.ok_or(WireError::Missing("round"))?;
    Ok(Round { incarnation: wire.incarnation, number: wire.counter })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kv_types::{Entry, Lamport, LogId, LogIndex, NodeId, Term};

    use super::*;

    fn id(term: u64, index: u64) -> LogId {
        LogId::new(Term::new(term), LogIndex::new(index))
    }

    fn messages() -> Vec<MessageKind> {
        let round = Round { incarnation: 7, number: 9 };
        let stamp = Lamport { counter: 3, node: NodeId::new(1) };
        let entry = Entry { id: id(2, 5), stamp, body: kv_types::Body::Command(Bytes::from("command")) };
        vec![
            MessageKind::Append {
                prev: id(1, 4),
                last: id(2, 5),
                entries: vec![entry],
                commit: LogIndex::new(4),
                round,
                promise_ms: 500,
            },
            MessageKind::AppendAck { round, result: Ok(LogIndex::new(5)), clock: Nanos::new(77) },
            MessageKind::AppendAck {
                round,
                result: Err(Conflict { prev: LogIndex::new(4), hint: id(1, 2) }),
                clock: Nanos::new(u64::MAX),
            },
            MessageKind::Vote { last: id(1, 4), pre: true, by_transfer: false },
            MessageKind::Vote { last: id(1, 4), pre: false, by_transfer: true },
            MessageKind::TimeoutNow { last: id(1, 4) },
            MessageKind::VoteAck { granted: true, pre: false },
            MessageKind::ReadIndex { round },
            MessageKind::ReadIndexAck { round, result: Ok(LogIndex::new(4)) },
            MessageKind::ReadIndexAck {
                round,
                result: Err(ReadRefused::NotLeader { hint: Some(NodeId::new(2)) }),
            },
        ]
    }

    fn message(kind: MessageKind) -> Message {
        Message { from: NodeId::new(1), to: NodeId::new(2), term: Term::new(2), kind }
    }

    #[test]
    fn every_kind_round_trips() {
        for kind in messages() {
            let sent = message(kind);
            let wire = encode(ShardId::new(3), &sent);
            let Some(v1::shard_message::Body::Raft(message)) = wire.body else { panic!("{wire:?}") };
            assert_eq!((wire.shard, decode(message).unwrap()), (3, sent));
        }
    }

    #[test]
    fn every_flipped_byte_of_a_frame_is_refused() {
        use prost::Message as _;
        let batch = v1::PeerBatch {
            lamport: 8,
            messages: messages().into_iter().map(|kind| encode(ShardId::new(3), &message(kind))).collect(),
        };
        let frame = kv_proto::sealed::seal::<v1::Frame>(&batch).encode_to_vec();
        for at in 0..frame.len() {
            for bit in 0..8 {
                let mut bad = frame.clone();
                bad[at] ^= 1 << bit;
                let opened = v1::Frame::decode(Bytes::from(bad)).map(kv_proto::sealed::open);
                // What still opens must say the same: a flip in a field number of no meaning.
                if let Ok(Ok(opened)) = opened {
                    assert_eq!(opened, batch, "byte {at} bit {bit}");
                }
            }
        }
    }
}
