//! Answers in the shape of the wire: headers, rows, and what writes answer.

use bytes::Bytes;
use kv_proto::status::ApiError;
use kv_proto::{checksum, v1, validate};
use kv_shard::Written;
use kv_state::Answer;
use kv_txn::Place;
use kv_types::{LogIndex, Row, ShardId};

use crate::gateway::{Gateway, ShardHandle};
use crate::once;
use crate::waiter::WriteKind;

/// The answer to a write, whatever it was.
pub(crate) enum WriteReply {
    Put(v1::PutReply),
    Delete(v1::DeleteReply),
    DeleteRange(v1::DeleteRangeReply),
    CompareAndSet(v1::CompareAndSetReply),
    Increment(v1::IncrementReply),
    Outcome(v1::GetOutcomeReply),
}

impl Gateway {
    fn cluster_in_header(&self, in_pipeline: bool) -> String {
        // A pipeline names the cluster once a batch.
        if in_pipeline { String::new() } else { self.cluster.clone() }
    }

    /// The header of a write's answer.
    fn written_header(&self, shard: ShardId, written: &Written, in_pipeline: bool) -> v1::Header {
        self.placed_header(
            shard,
            &Place { id: written.id, stamp: written.stamp, replayed: false },
            in_pipeline,
        )
    }

    /// The header of an answer that an entry has given.
    pub(crate) fn placed_header(&self, shard: ShardId, place: &Place, in_pipeline: bool) -> v1::Header {
        let leader =
            self.shards.get(&shard).and_then(|handle| handle.leadership.leader()).unwrap_or(self.node);
        v1::Header {
            cluster: self.cluster_in_header(in_pipeline),
            shard: shard.get(),
            epoch: place.id.term.get(),
            leader: leader.get(),
            revision: place.id.index.get(),
            lamport: Some(validate::lamport_to_wire(place.stamp)),
            cluster_time_ms: self.shards.get(&shard).map_or(0, |handle| handle.time.ms()),
            replayed: place.replayed,
        }
    }

    /// The header of a read's answer. Its revision was taken before the rows were read, so all of it is in them; its
    /// stamp is taken after, so that no row is newer: what the client holds as its token covers all it has seen.
    pub(crate) fn read_header(
        &self,
        shard: &ShardHandle,
        revision: LogIndex,
        in_pipeline: bool,
    ) -> v1::Header {
        v1::Header {
            cluster: self.cluster_in_header(in_pipeline),
            shard: shard.shard.get(),
            epoch: shard.leadership.term().get(),
            leader: shard.leadership.leader().unwrap_or_default().get(),
            revision: revision.get(),
            lamport: Some(validate::lamport_to_wire(shard.reader.stamp())),
            cluster_time_ms: shard.time.ms(),
            replayed: false,
        }
    }

    /// The answer to a write, whether this attempt or an earlier one carried it out.
    pub(crate) fn write_reply(
        &self,
        kind: WriteKind,
        shard: ShardId,
        written: Written,
        in_pipeline: bool,
    ) -> Result<WriteReply, ApiError> {
        let header = self.written_header(shard, &written, in_pipeline);
        match (kind, written.answer) {
            (kind, Answer::Replayed(recorded)) => self.replay(kind, header, &recorded),
            (WriteKind::Settle, answer) => once::settled(header, answer),
            (_, Answer::Refused(refusal)) => Err(once::refused(&refusal)),
            (_, Answer::IncrementFailed(failure)) => Err(once::not_incremented(failure)),
            (kind, answer) => Ok(first_reply(kind, Some(header), answer)),
        }
    }
}

/// The answer to a write that was carried out just now.
fn first_reply(kind: WriteKind, header: Option<v1::Header>, answer: Answer) -> WriteReply {
    match (kind, answer) {
        (WriteKind::Put, Answer::Written) => WriteReply::Put(v1::PutReply { header }),
        (WriteKind::Delete, Answer::Deleted { count, .. }) => {
            WriteReply::Delete(v1::DeleteReply { header, deleted: count })
        }
        (WriteKind::DeleteRange { beyond, .. }, Answer::Deleted { count, resume }) => {
            let resume_key = resume.or(beyond);
            WriteReply::DeleteRange(v1::DeleteRangeReply { header, deleted: count, resume_key })
        }
        (WriteKind::CompareAndSet, Answer::CompareFailed { found }) => {
            // The row's key is the request's; the client knows it.
            let omitted = |row: &Row| row.value.is_empty() && row.head.value_bytes > 0;
            let value_omitted = found.as_ref().is_some_and(omitted);
            let current = found.map(|row| wire_row(Bytes::new(), row, false));
            WriteReply::CompareAndSet(v1::CompareAndSetReply {
                header,
                swapped: false,
                current,
                value_omitted,
            })
        }
        (WriteKind::CompareAndSet, Answer::Written) => WriteReply::CompareAndSet(v1::CompareAndSetReply {
            header,
            swapped: true,
            ..v1::CompareAndSetReply::default()
        }),
        (WriteKind::Increment, Answer::Incremented { value }) => {
            WriteReply::Increment(v1::IncrementReply { header, value })
        }
        (kind, other) => unreachable!("{kind:?} is answered {other:?}: each command has its own answers"),
    }
}

/// A row for the wire, with its checksum.
pub(crate) fn wire_row(key: Bytes, row: Row, keys_only: bool) -> v1::Row {
    let head = row.head;
    let mut wire = v1::Row {
        key,
        value: if keys_only { Bytes::new() } else { row.value },
        create_revision: head.created.get(),
        mod_revision: head.modified.get(),
        version: head.version,
        lamport: Some(validate::lamport_to_wire(head.stamp)),
        lease: 0,
        crc: None,
    };
    wire.crc = Some(checksum::row(&wire));
    wire
}
