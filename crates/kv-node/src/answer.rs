//! Answers in the shape of the wire: headers, rows, and the rows that reads return.

use bytes::Bytes;
use kv_proto::status::{ApiError, Compacted, Overloaded};
use kv_proto::{checksum, v1, validate};
use kv_shard::Written;
use kv_state::Answer;
use kv_storage::{Generation, PageLimit, Pin, ReadError, RowRange, StoreError};
use kv_types::limits::{SCAN_PAGE_BYTES_MAX, SCAN_PAGE_ROWS_MAX};
use kv_types::{LogIndex, Row, RowKey, ShardId, Space};

use crate::clock;
use crate::gateway::{Gateway, PageRequest, RETRY_AFTER, ShardHandle};
use crate::mailbox::Control;
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
        let leader =
            self.shards.get(&shard).and_then(|handle| handle.leadership.leader()).unwrap_or(self.node);
        v1::Header {
            cluster: self.cluster_in_header(in_pipeline),
            shard: shard.get(),
            epoch: written.id.term.get(),
            leader: leader.get(),
            revision: written.id.index.get(),
            lamport: Some(validate::lamport_to_wire(written.stamp)),
            cluster_time_ms: self.shards.get(&shard).map_or(0, |handle| handle.time.ms()),
            replayed: false,
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

    /// Reads one key from the rows as they are now.
    pub(crate) fn get(
        &self,
        shard: &ShardHandle,
        key: &Bytes,
        in_pipeline: bool,
    ) -> Result<v1::GetReply, ApiError> {
        let (revision, generation) = (shard.reader.applied(), shard.reader.generation());
        let row = shard.reader.get(&RowKey::new(Space::User, key));
        let row = row.map_err(|error| shard.read_error(generation, error))?;
        let header = Some(self.read_header(shard, revision, in_pipeline));
        Ok(v1::GetReply { header, row: row.map(|row| wire_row(key.clone(), row, false)) })
    }

    /// Reads several keys at one revision, as many as fit a reply.
    pub(crate) fn multi_get(
        &self,
        shard: &ShardHandle,
        keys: &[Bytes],
        in_pipeline: bool,
    ) -> Result<v1::MultiGetReply, ApiError> {
        let pin = shard.pin()?;
        let header = self.read_header(shard, pin.index(), in_pipeline);
        let mut reply = v1::MultiGetReply { header: Some(header), rows: Vec::new(), looked_at: 0 };
        let mut bytes = 0;
        for key in keys {
            let row = pin.get(&RowKey::new(Space::User, key));
            let row = row.map_err(|error| shard.read_error(pin.generation(), error))?;
            let size = row.as_ref().map_or(0, |row| key.len() + row.value.len());
            if bytes + size > SCAN_PAGE_BYTES_MAX && reply.looked_at > 0 {
                break;
            }
            bytes += size;
            reply.rows.extend(row.map(|row| wire_row(key.clone(), row, false)));
            reply.looked_at += 1;
        }
        Ok(reply)
    }

    /// Reads one page of a range at the pinned revision, and what is left to read.
    pub(crate) fn read_page(
        &self,
        shard: &ShardHandle,
        pin: &Pin,
        page: PageRequest,
        in_pipeline: bool,
    ) -> Result<(v1::ScanReply, Option<PageRequest>), ApiError> {
        let header = self.read_header(shard, pin.index(), in_pipeline);
        let limit = page.limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
        let room = PageLimit { rows: limit.min(SCAN_PAGE_ROWS_MAX), bytes: SCAN_PAGE_BYTES_MAX };
        let rows = RowRange::of(Space::User, &page.range);
        let found = pin.scan(&rows, room, clock::now());
        let found = found.map_err(|error| shard.read_error(pin.generation(), error))?;
        let left = page.limit.map(|limit| limit.saturating_sub(found.rows.len() as u64));
        let resume = if left == Some(0) { None } else { found.resume.map(|key| key.key()) };
        let rows =
            found.rows.into_iter().map(|(key, row)| wire_row(key.key(), row, page.keys_only)).collect();
        let rest = match &resume {
            None => None,
            Some(key) => {
                let range = kv_types::KeyRange::new(key.clone(), page.range.end().cloned());
                let range = range.map_err(|error| ApiError::Invalid(error.to_string()))?;
                Some(PageRequest {
                    range,
                    beyond: page.beyond.clone(),
                    limit: left,
                    keys_only: page.keys_only,
                })
            }
        };
        let resume_key = if left == Some(0) { None } else { resume.or(page.beyond) };
        Ok((v1::ScanReply { header: Some(header), rows, resume_key }, rest))
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

impl ShardHandle {
    /// Pins the rows as they are now.
    ///
    /// # Errors
    /// [`ApiError::Overloaded`] if too many hold pins.
    pub(crate) fn pin(&self) -> Result<Pin, ApiError> {
        let generation = self.reader.generation();
        self.reader.pin(clock::now()).map_err(|error| self.read_error(generation, error))
    }

    /// Why rows could not be read. Damage is told the replica, which gets them anew; others can read them meanwhile.
    /// `generation` is that of the base, asked for before it was read.
    pub(crate) fn read_error(&self, generation: Generation, error: ReadError) -> ApiError {
        match error {
            ReadError::PinExpired { resume } => ApiError::Compacted(Compacted {
                message: "the read held its revision for too long; begin again at the resume key".to_owned(),
                resume_key: resume.map(|key| key.key()),
            }),
            error @ ReadError::TooManyPins => {
                ApiError::Overloaded(Overloaded { message: error.to_string(), retry_after: RETRY_AFTER })
            }
            ReadError::Store(StoreError::Damaged { detail }) => {
                self.mailbox.control(Control::Damaged(generation, detail));
                ApiError::Draining(format!(
                    "the rows of {} are damaged on this node and are being fetched anew",
                    self.shard
                ))
            }
            other => ApiError::Checksum(other.to_string()),
        }
    }
}
