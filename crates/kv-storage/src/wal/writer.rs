//! The one writer.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use kv_types::{Entry, ShardId};

use super::codec::{self, Encoded, KIND_COPIED, KIND_MANIFEST, Manifest};
use super::create::{Hurry, NextSegment, OpenSegment, WalOptions, create_segment, keep_ballast};
use super::durable::{DurableFile, DurableNote};
use super::error::{Corruption, WalError, io_error};
use super::layout::{
    BLOCK_BYTES, GROUP_HEADER_BYTES, GroupHeader, RECORD_HEADER_BYTES, RecordHeader, Seed, SegmentNo,
    WAL_DIR, padded,
};
use super::reader::{LogReader, Shared};
use super::recovery::{self, WalRecovery};
use super::segment::Segment;
use super::state::{Bounds, Origin};
use crate::WalRecord;
use crate::disk::Disk;

/// The encode buffer is given back above this size: one huge group must not cost its memory for ever.
const BUFFER_BYTES_MAX: usize = 4 << 20;

/// What a group is made of.
#[derive(Clone, Copy)]
pub(super) enum Content<'a> {
    Records(&'a [WalRecord]),
    Copied(ShardId, &'a [Entry]),
    Manifest(&'a Manifest),
}

/// The write-ahead log: owned by one thread, which alone writes.
///
/// # Invariants
/// - Every group before `end` of the active segment, and every older segment, is durable.
/// - No number in `1..=newest` is ever given to another file.
/// - No group stands behind a manifest before it is noted that its segment was begun.
#[derive(Debug)]
pub struct Wal {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) options: WalOptions,
    pub(super) reader: Arc<LogReader>,
    /// Lengths of all segments that were begun; the last is active.
    pub(super) segments: BTreeMap<SegmentNo, u64>,
    active: OpenSegment,
    /// Where the next group begins.
    end: u64,
    ready: Option<OpenSegment>,
    /// Released files under new names, oldest first, to be used before any new one is made.
    pub(super) spares: VecDeque<OpenSegment>,
    /// Where the next segment comes from if somebody else makes it.
    preparing: Option<(Receiver<Result<OpenSegment, WalError>>, Hurry)>,
    newest: SegmentNo,
    /// Number of the newest group, which is durable.
    group: u64,
    /// Says that the active segment was begun, and how far it is durable if `noted`.
    durable: DurableFile,
    /// Whether it is noted that the newest group is durable, so that its rot is seen.
    noted: bool,
    failed: bool,
    buffer: Vec<u8>,
    /// Places of the entries in `buffer`, and how many each record has.
    places: Vec<Encoded>,
    counts: Vec<usize>,
    /// Sequence numbers of the records to be written.
    seqs: Vec<u64>,
    bounds: BTreeMap<ShardId, Bounds>,
}

impl Wal {
    /// Recovers what the segments hold and begins a new one.
    ///
    /// # Errors
    /// [`WalError::Corrupt`] says which shards are damaged; the caller must not let them vote or acknowledge.
    ///
    /// # Panics
    /// If the options contradict each other.
    pub fn open(disk: Arc<dyn Disk>, options: WalOptions) -> Result<(Self, WalRecovery), WalError> {
        let size = options.segment_bytes;
        assert!(size.is_multiple_of(BLOCK_BYTES), "a segment of {size} bytes is not made of whole blocks");
        assert!(u32::try_from(size).is_ok(), "a segment of {size} bytes is longer than positions reach");
        assert!(
            options.reserve_bytes + 2 * BLOCK_BYTES < size,
            "a segment of {size} bytes is shorter than its reserve"
        );
        disk.create_dir_all(Path::new(WAL_DIR)).map_err(io_error("create", WAL_DIR))?;
        disk.sync_dir(Path::new("")).map_err(io_error("sync the directory of", WAL_DIR))?;
        let scanned = recovery::scan(disk.as_ref(), options.incarnation)?;
        if options.must_exist && scanned.chain.is_empty() {
            return Err(Corruption::new(scanned.newest, 0, "no segment holds anything").into());
        }
        // After a plain crash of the process the last group may be whole and yet only in the page cache.
        if let Some(last) = scanned.chain.last() {
            last.file.sync().map_err(io_error("sync", last.no))?;
        }
        for no in &scanned.recovery.unbegun {
            let path = no.path();
            disk.remove(&path).map_err(io_error("remove", path.display()))?;
        }
        disk.sync_dir(Path::new(WAL_DIR)).map_err(io_error("sync", WAL_DIR))?;
        keep_ballast(disk.as_ref(), options.ballast_bytes)?;
        let durable = DurableFile::open(disk.as_ref(), options.incarnation)?;
        let previous = scanned.chain.last().map_or(SegmentNo::ZERO, |segment| segment.no);
        let mut newest = scanned.newest;
        newest = newest.next();
        let active = create_segment(disk.as_ref(), newest, size)?;
        let segments = scanned.chain.iter().map(|segment| (segment.no, segment.bytes)).collect();
        let files = scanned.chain.iter().map(|segment| (segment.no, Arc::clone(&segment.file))).collect();
        let shared = Shared { shards: scanned.states, files };
        let reader = Arc::new(LogReader::new(options.incarnation, shared));
        let mut wal = Self {
            disk,
            options,
            reader,
            segments,
            active,
            end: 0,
            ready: None,
            spares: VecDeque::new(),
            preparing: None,
            newest,
            group: scanned.group,
            durable,
            noted: false,
            failed: false,
            buffer: Vec::new(),
            places: Vec::new(),
            counts: Vec::new(),
            seqs: Vec::new(),
            bounds: BTreeMap::new(),
        };
        wal.begin_active(previous, scanned.end)?;
        wal.trim(&scanned.chain, &scanned.ends)?;
        Ok((wal, scanned.recovery))
    }

    /// Cuts segments of former lives where they end: a node that is started again and again would fill its budget with
    /// zeros. A durable manifest names each end, so whether a cut survives a crash matters to nobody.
    fn trim(&mut self, chain: &[Segment], ends: &[u64]) -> Result<(), WalError> {
        for (segment, end) in chain.iter().zip(ends).filter(|(segment, end)| segment.bytes > **end) {
            segment.file.set_len(*end).map_err(io_error("cut", segment.no))?;
            self.segments.insert(segment.no, *end);
        }
        Ok(())
    }

    /// Writes all records as one group, durable on return.
    ///
    /// # Errors
    /// [`WalError::Full`] and [`WalError::TooLarge`] if nothing was written; any other error is final and what it
    /// concerns is unknown.
    ///
    /// # Panics
    /// If a record contradicts its shard's log: an entry that does not follow, a vote that changes, a base note above
    /// the log.
    pub fn write(&mut self, records: &[WalRecord]) -> Result<(), WalError> {
        if records.is_empty() {
            return Ok(());
        }
        self.check(records);
        let bare = records.iter().all(|record| record.op.is_bare());
        let origin = self.append_group(Content::Records(records), bare)?;
        let mut shared = self.reader.lock();
        let mut places = self.places.as_slice();
        for (record, count) in records.iter().zip(&self.counts) {
            let (mine, rest) = places.split_at_checked(*count).expect("the counts add up to all places");
            places = rest;
            shared.shards.entry(record.shard).or_default().apply_op(&record.op, origin, mine);
        }
        Ok(())
    }

    /// Records that everything written is durable, so that rot of the last group is not taken for a torn tail. To be
    /// called when nothing was written for about 10 ms; does nothing if nothing was written since the last time.
    ///
    /// # Errors
    /// As [`Wal::write`]; never for want of room.
    pub fn sync_note(&mut self) -> Result<(), WalError> {
        self.living()?;
        if self.noted { Ok(()) } else { self.note() }
    }

    fn note(&mut self) -> Result<(), WalError> {
        let note = DurableNote { segment: self.active.no, group: self.group };
        self.durable.write(note).inspect_err(|_| self.failed = true)?;
        self.noted = true;
        Ok(())
    }

    /// The next segment, for another thread to make once a quarter of the active one is used; `None` if it is there
    /// or being made.
    pub fn next_segment(&mut self) -> Option<NextSegment> {
        let early = self.end < self.options.segment_bytes / 4;
        if early || self.failed || self.ready.is_some() || self.preparing.is_some() {
            return None;
        }
        self.ready = self.spares.pop_front();
        if self.ready.is_some() {
            return None;
        }
        let no = self.next_number();
        let (made, result) = sync_channel(1);
        let hurry = Hurry::default();
        self.preparing = Some((result, hurry.clone()));
        let bytes = self.options.segment_bytes;
        Some(NextSegment { disk: Arc::clone(&self.disk), no, bytes, hurry, made })
    }

    /// Makes the next segment ready, so that no write has to wait for its zeros; does nothing if it is. To be called
    /// after a write that began a segment, off the path of the next.
    ///
    /// # Errors
    /// [`WalError::Full`] if there is no room; any other error is final.
    pub fn prepare_next(&mut self) -> Result<(), WalError> {
        self.living()?;
        if self.ready.is_none() {
            let made = self.preparing.take().and_then(|(made, hurry)| {
                hurry.up();
                made.recv().ok()
            });
            let ready = made.or_else(|| self.spares.pop_front().map(Ok)).unwrap_or_else(|| {
                let no = self.next_number();
                create_segment(self.disk.as_ref(), no, self.options.segment_bytes)
            });
            self.ready = Some(ready.inspect_err(|error| self.failed |= !matches!(error, WalError::Full))?);
        }
        Ok(())
    }

    /// Whether [`Wal::prepare_next`] has nothing to do.
    pub fn is_next_ready(&self) -> bool {
        self.ready.is_some()
    }

    /// Reads entries back.
    pub fn reader(&self) -> Arc<LogReader> {
        Arc::clone(&self.reader)
    }

    /// Length of all segments, spare files aside.
    pub fn bytes(&self) -> u64 {
        // One that is being made takes its room already.
        let next = self.ready.is_some() || self.preparing.is_some();
        let ready = if next { self.options.segment_bytes } else { 0 };
        self.segments.values().sum::<u64>() + ready
    }

    /// Number of the newest durable group.
    pub fn group(&self) -> u64 {
        self.group
    }

    /// The segment being written.
    pub fn active(&self) -> SegmentNo {
        self.active.no
    }

    /// A number that no file ever had.
    pub(super) fn next_number(&mut self) -> SegmentNo {
        self.newest = self.newest.next();
        self.newest
    }

    /// Places of the entries of the group written last.
    pub(super) fn places(&self) -> &[Encoded] {
        &self.places
    }

    /// After a failed removal or directory sync the node stops as after any other.
    pub(super) fn fail(&mut self) {
        self.failed = true;
    }

    fn living(&self) -> Result<(), WalError> {
        if self.failed { Err(WalError::Failed) } else { Ok(()) }
    }

    /// Checks every record against the log it continues, before any of them is written.
    fn check(&mut self, records: &[WalRecord]) {
        self.bounds.clear();
        self.seqs.clear();
        let shared = self.reader.lock();
        for WalRecord { shard, op } in records {
            let bounds = self.bounds.get(shard).copied().unwrap_or_else(|| {
                shared.shards.get(shard).map_or_else(Bounds::default, super::state::ShardState::bounds)
            });
            let next = bounds.step(op);
            assert!(next.is_ok(), "{shard}: {}: {bounds:?} before {op:?}", next.err().unwrap_or_default());
            let next = next.unwrap_or(bounds);
            self.seqs.push(next.seq);
            self.bounds.insert(*shard, next);
        }
    }

    /// Writes one group where it fits and makes it durable; says where its entries count from.
    pub(super) fn append_group(&mut self, content: Content<'_>, bare: bool) -> Result<Origin, WalError> {
        self.living()?;
        self.encode(content, self.active.no);
        if !self.fits(bare)? {
            self.begin_next()?;
            self.encode(content, self.active.no);
            let (bytes, bytes_max) = (self.group_bytes(), self.options.segment_bytes - self.end);
            if bytes > bytes_max {
                return Err(WalError::TooLarge { bytes, bytes_max });
            }
        }
        self.put_group()
    }

    fn group_bytes(&self) -> u64 {
        padded(self.buffer.len() as u64)
    }

    /// Whether the encoded group goes into the active segment. Without a segment to follow, its end is kept for
    /// records that carry no entries: a node that cannot write its vote is lost to all its shards.
    fn fits(&mut self, bare: bool) -> Result<bool, WalError> {
        let (bytes, room) = (self.group_bytes(), self.options.segment_bytes - self.end);
        if self.ready.is_none() && bytes + self.options.reserve_bytes > room {
            match self.prepare_next() {
                Err(WalError::Full) if bare && bytes <= room => return Ok(true),
                prepared => prepared?,
            }
        }
        Ok(bytes <= room)
    }

    fn begin_next(&mut self) -> Result<(), WalError> {
        self.prepare_next()?;
        let next = self.ready.take().expect("the next segment was prepared");
        let previous = std::mem::replace(&mut self.active, next);
        let end = std::mem::take(&mut self.end);
        self.begin_active(previous.no, end)
    }

    /// Writes the manifest, durable and noted before any group behind it.
    fn begin_active(&mut self, previous: SegmentNo, previous_end: u64) -> Result<(), WalError> {
        let shards =
            self.reader.lock().shards.iter().map(|(shard, state)| (*shard, state.note())).collect::<Vec<_>>();
        let manifest = Manifest { previous, previous_end, shards };
        self.encode(Content::Manifest(&manifest), self.active.no);
        let bytes = self.group_bytes();
        assert!(
            bytes + self.options.reserve_bytes < self.options.segment_bytes,
            "a manifest of {bytes} bytes leaves no room in its segment"
        );
        self.put_group()?;
        self.note()?;
        self.segments.insert(self.active.no, self.options.segment_bytes);
        self.reader.lock().files.insert(self.active.no, Arc::clone(&self.active.file));
        Ok(())
    }

    /// Encodes a group into the buffer, its header still blank.
    fn encode(&mut self, content: Content<'_>, segment: SegmentNo) {
        let seed = Seed::new(self.options.incarnation, segment);
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_BYTES_MAX);
        self.places.clear();
        self.counts.clear();
        self.buffer.resize(GROUP_HEADER_BYTES, 0);
        match content {
            Content::Records(records) => {
                for (at, WalRecord { shard, op }) in records.iter().enumerate() {
                    let seq = self.seqs.get(at).copied().expect("every record was checked and numbered");
                    self.record(seed, *shard, codec::kind(op), seq, |out, places| {
                        codec::put_op(out, op, seed, places);
                    });
                }
            }
            Content::Copied(shard, entries) => {
                let seq = self.reader.lock().shards.get(&shard).map_or(0, |state| state.seq) + 1;
                self.record(seed, shard, KIND_COPIED, seq, |out, places| {
                    codec::put_copied(out, entries, seed, places);
                });
            }
            Content::Manifest(manifest) => {
                self.record(seed, ShardId::META, KIND_MANIFEST, 0, |out, _| {
                    codec::put_manifest(out, manifest)
                });
            }
        }
    }

    fn record(
        &mut self,
        seed: Seed,
        shard: ShardId,
        kind: u8,
        seq: u64,
        put: impl FnOnce(&mut Vec<u8>, &mut Vec<Encoded>),
    ) {
        let at = self.buffer.len();
        let before = self.places.len();
        self.buffer.resize(at + RECORD_HEADER_BYTES, 0);
        put(&mut self.buffer, &mut self.places);
        self.counts.push(self.places.len() - before);
        let body = self.buffer.get(at + RECORD_HEADER_BYTES..).unwrap_or_default();
        let body_bytes = u32::try_from(body.len()).expect("a record is shorter than a segment");
        let header = RecordHeader { body_bytes, body_crc: seed.crc(body), shard, kind, seq }.encode(seed);
        if let Some(slot) = self.buffer.get_mut(at..at + RECORD_HEADER_BYTES) {
            slot.copy_from_slice(&header);
        }
    }

    /// Completes the encoded group and makes it durable behind the last one.
    fn put_group(&mut self) -> Result<Origin, WalError> {
        let body_bytes = self.buffer.len() - GROUP_HEADER_BYTES;
        let header = GroupHeader {
            reused: self.active.reused,
            incarnation: self.options.incarnation,
            segment: self.active.no,
            offset: self.end,
            group: self.group + 1,
            synced: self.group,
            body_bytes: u32::try_from(body_bytes).expect("a group is shorter than a segment"),
            records: u32::try_from(self.counts.len()).expect("a group is shorter than a segment"),
        };
        if let Some(slot) = self.buffer.get_mut(..GROUP_HEADER_BYTES) {
            slot.copy_from_slice(&header.encode());
        }
        let bytes = self.group_bytes();
        self.buffer.resize(usize::try_from(bytes).expect("a group fits memory"), 0);
        let (file, no) = (&self.active.file, self.active.no);
        let put = file.write_at(self.end, &self.buffer).map_err(io_error("write", no));
        let put = put.and_then(|()| file.sync().map_err(io_error("sync", no)));
        put.inspect_err(|_| self.failed = true)?;
        let origin = Origin { segment: no, offset: self.end };
        self.end += bytes;
        self.group += 1;
        self.noted = false;
        Ok(origin)
    }
}
