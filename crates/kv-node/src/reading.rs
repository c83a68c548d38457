//! The rows that reads return, and whose locks lie on them.
//!
//! A reader looks at locks before it looks at values, or at both in one view. Most of the time nothing is locked in the
//! whole shard, which [`PublishedLocks`](kv_shard::PublishedLocks) says without a look. What has been seen under the lock of
//! a writer is not returned before [`Txns::read`](crate::txns::Txns::read) has found out about the writer.

use bytes::Bytes;
use kv_proto::status::{ApiError, Compacted, Overloaded};
use kv_proto::txn::Validate;
use kv_proto::v1;
use kv_shard::AsRead;
use kv_state::txn::{self, LockedBy};
use kv_storage::{Generation, PageLimit, Pin, ReadError, RowRange, StoreError};
use kv_txn::{Looked, Named, Owner};
use kv_types::limits::{SCAN_PAGE_BYTES_MAX, SCAN_PAGE_ROWS_MAX};
use kv_types::{Key, KeyRange, RowKey, Space, TxnId};

use crate::answer::wire_row;
use crate::clock;
use crate::gateway::{Gateway, PageRequest, RETRY_AFTER, ShardHandle};
use crate::mailbox::Control;
use crate::rows::PinnedRows;

/// Rows of a shard that do not change while they are looked at.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) pin: Pin,
    /// Whether anything in it may be locked.
    may_be_locked: bool,
}

/// A page, and what is left to read.
pub(crate) type Page = (v1::ScanReply, Option<PageRequest>);

impl Gateway {
    /// Reads one key from the rows as they are now.
    pub(crate) fn get(
        &self,
        shard: &ShardHandle,
        key: &Bytes,
        in_pipeline: bool,
    ) -> Result<Looked<v1::GetReply>, ApiError> {
        let installs = shard.reader.installs();
        if installs.is_none() || shard.locks.none().is_none() {
            return self.get_pinned(shard, key, in_pipeline);
        }
        let (revision, generation) = (shard.reader.applied(), shard.reader.generation());
        let row = shard.reader.get(&RowKey::new(Space::User, key));
        let row = row.map_err(|error| shard.read_error(generation, error))?;
        if shard.reader.installs() != installs {
            return self.get_pinned(shard, key, in_pipeline);
        }
        let header = Some(self.read_header(shard, revision, in_pipeline));
        let row = row.map(|row| wire_row(key.clone(), row, false));
        Ok(Looked::free(v1::GetReply { header, row }))
    }

    fn get_pinned(
        &self,
        shard: &ShardHandle,
        key: &Bytes,
        in_pipeline: bool,
    ) -> Result<Looked<v1::GetReply>, ApiError> {
        let view = shard.view()?;
        let owners = self.owners_of(&view, std::slice::from_ref(key))?;
        let row = view.pin.get(&RowKey::new(Space::User, key));
        let row = row.map_err(|error| shard.read_error(view.pin.generation(), error))?;
        let header = Some(self.read_header(shard, view.pin.index(), in_pipeline));
        let row = row.map(|row| wire_row(key.clone(), row, false));
        Ok(Looked { found: v1::GetReply { header, row }, owners })
    }

    /// Reads several keys at one revision, as many as fit a reply.
    pub(crate) fn multi_get(
        &self,
        shard: &ShardHandle,
        keys: &[Bytes],
        in_pipeline: bool,
    ) -> Result<Looked<v1::MultiGetReply>, ApiError> {
        let view = shard.view()?;
        let owners = self.owners_of(&view, keys)?;
        let header = self.read_header(shard, view.pin.index(), in_pipeline);
        let mut reply = v1::MultiGetReply { header: Some(header), rows: Vec::new(), looked_at: 0 };
        let mut bytes = 0;
        for key in keys {
            let row = view.pin.get(&RowKey::new(Space::User, key));
            let row = row.map_err(|error| shard.read_error(view.pin.generation(), error))?;
            let size = row.as_ref().map_or(0, |row| key.len() + row.value.len());
            if bytes + size > SCAN_PAGE_BYTES_MAX && reply.looked_at > 0 {
                break;
            }
            bytes += size;
            reply.rows.extend(row.map(|row| wire_row(key.clone(), row, false)));
            reply.looked_at += 1;
        }
        Ok(Looked { found: reply, owners })
    }

    /// Freezes the rows of a range, to be read page by page.
    pub(crate) fn freeze(&self, shard: &ShardHandle, range: &KeyRange) -> Result<Looked<View>, ApiError> {
        let view = shard.view()?;
        let owners = self.owners_in(&view, range)?;
        Ok(Looked { found: view, owners })
    }

    /// Reads one page of a range as it is now.
    pub(crate) fn one_page(
        &self,
        shard: &ShardHandle,
        page: &PageRequest,
        in_pipeline: bool,
    ) -> Result<Looked<v1::ScanReply>, ApiError> {
        let view = shard.view()?;
        let (found, rest) = self.read_page(shard, &view, page.clone(), in_pipeline)?;
        // What is behind the page is none of its reader's concern.
        let end = rest.map(|rest| rest.range.start().clone()).or_else(|| page.range.end().cloned());
        let range = KeyRange::new(page.range.start().clone(), end)
            .map_err(|error| ApiError::Invalid(error.to_string()))?;
        let owners = self.owners_in(&view, &range)?;
        Ok(Looked { found, owners })
    }

    /// Reads one page of a range at the pinned revision, and what is left to read.
    pub(crate) fn read_page(
        &self,
        shard: &ShardHandle,
        view: &View,
        page: PageRequest,
        in_pipeline: bool,
    ) -> Result<Page, ApiError> {
        let pin = &view.pin;
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

    /// Whether what was read of a shard still is as it was.
    pub(crate) fn validate(
        &self,
        shard: &ShardHandle,
        question: &Validate,
    ) -> Result<Looked<v1::ValidateReply>, ApiError> {
        let view = shard.view()?;
        let mut owners = Vec::new();
        let conflict = self.conflict(shard, &view, question, &mut owners)?;
        let found = v1::ValidateReply {
            header: Some(self.read_header(shard, view.pin.index(), false)),
            valid: conflict.is_none(),
            conflict: conflict.unwrap_or_default(),
        };
        // What has changed already stays changed, whoever else is about to change it.
        Ok(if found.valid { Looked { found, owners } } else { Looked::free(found) })
    }

    fn conflict(
        &self,
        shard: &ShardHandle,
        view: &View,
        question: &Validate,
        owners: &mut Vec<Owner>,
    ) -> Result<Option<Bytes>, ApiError> {
        let Validate { since, reads, scans } = question;
        let changed = AsRead { since: since.index(), reads, scans }.changed(&view.rows(), &shard.deletes);
        let changed = changed.map_err(|error| shard.read_error(view.pin.generation(), error))?;
        if changed.is_some() {
            return Ok(changed);
        }
        for (key, _) in reads {
            owners.extend(self.owners_of(view, std::slice::from_ref(key.bytes()))?);
        }
        for (range, _) in scans {
            owners.extend(self.owners_in(view, range)?);
        }
        Ok(None)
    }

    fn owners_of(&self, view: &View, keys: &[Bytes]) -> Result<Vec<Owner>, ApiError> {
        let mut owners = Vec::new();
        for key in keys.iter().filter(|_| view.may_be_locked) {
            let key = Key::new(key.clone()).map_err(|error| ApiError::Invalid(error.to_string()))?;
            if let Some(LockedBy::Writer(txn)) = txn::lock_of(&view.rows(), &key).map_err(unreadable)? {
                owners.extend(self.owner(view, txn)?);
            }
        }
        Ok(owners)
    }

    fn owners_in(&self, view: &View, range: &KeyRange) -> Result<Vec<Owner>, ApiError> {
        if !view.may_be_locked {
            return Ok(Vec::new());
        }
        let mut owners = Vec::new();
        for txn in txn::writers_in(&view.rows(), range).map_err(unreadable)? {
            owners.extend(self.owner(view, txn)?);
        }
        Ok(owners)
    }

    /// A transaction that has a lock in a view has its prepared part there, which names its anchor.
    fn owner(&self, view: &View, txn: TxnId) -> Result<Option<Owner>, ApiError> {
        let prepared = txn::prepared(&view.rows(), txn).map_err(unreadable)?;
        Ok(prepared.map(|part| Owner {
            txn: Named { txn, fingerprint: part.fingerprint },
            anchor: self.map.shard_of(part.anchor.as_ref()),
        }))
    }
}

impl View {
    fn rows(&self) -> PinnedRows<'_> {
        PinnedRows(&self.pin)
    }
}

/// Why a look at rows of the system failed.
pub(crate) fn unreadable(cause: kv_state::ReadError<ReadError>) -> ApiError {
    ApiError::Checksum(cause.to_string())
}

impl ShardHandle {
    /// Pins the rows as they are now.
    ///
    /// # Errors
    /// [`ApiError::Overloaded`] if too many hold pins.
    pub(crate) fn pin(&self) -> Result<Pin, ApiError> {
        let generation = self.reader.generation();
        self.reader.pin_for_clients(clock::now()).map_err(|error| self.read_error(generation, error))
    }

    /// Pins the rows as they are now, and finds out whether anything in them may be locked.
    ///
    /// # Errors
    /// [`ApiError::Overloaded`] if too many hold pins.
    pub(crate) fn view(&self) -> Result<View, ApiError> {
        let before = self.locks.none();
        let pin = self.pin()?;
        let may_be_locked = before.is_none() || before != self.locks.none();
        Ok(View { pin, may_be_locked })
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
            error @ ReadError::Behind { .. } => ApiError::Draining(error.to_string()),
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
