//! The log a replica reads from: recent entries in memory, older ones in the WAL.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;

use kv_types::{Entry, LogId, LogIndex, ShardId, Term};

use crate::wal::{LogReader, RecoveredShard, WalError, entry_bytes};

/// Names one call of [`ShardLog::append`]. Given back to [`ShardLog::persisted`] when the WAL has written what was
/// appended. An index would not do: it may have been truncated and written anew since.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct WriteMark(u64);

/// A write on its way to the WAL.
#[derive(Debug)]
struct Pending {
    mark: WriteMark,
    /// The first index it changes.
    from: LogIndex,
}

/// A shard's log.
///
/// # Invariants
/// - `cache` ends with the last entry and has no hole; what lies before it is persisted.
/// - Only persisted entries are read from the WAL, so an index that was truncated and written anew is never served
///   from its older position: it is not persisted before the WAL knows its newer one.
/// - `terms` name the term of every entry of the log and of its start.
#[derive(Debug)]
pub struct ShardLog {
    shard: ShardId,
    reader: Arc<LogReader>,
    start: LogIndex,
    last: LogIndex,
    /// First index and term of each run of entries of one term, from the start on.
    terms: VecDeque<(LogIndex, Term)>,
    cache: VecDeque<Entry>,
    cache_bytes: u64,
    cache_bytes_max: u64,
    pending: VecDeque<Pending>,
    next_mark: WriteMark,
}

impl ShardLog {
    /// The log as the WAL holds it; `cache_bytes_max` bounds what stays in memory once it is persisted.
    pub fn new(
        shard: ShardId,
        reader: Arc<LogReader>,
        recovered: &RecoveredShard,
        cache_bytes_max: u64,
    ) -> Self {
        let start = recovered.log_start;
        let mut log = Self {
            shard,
            reader,
            start: start.index,
            last: start.index,
            terms: VecDeque::from([(start.index, start.term)]),
            cache: VecDeque::new(),
            cache_bytes: 0,
            cache_bytes_max,
            pending: VecDeque::new(),
            next_mark: WriteMark(1),
        };
        for head in &recovered.entries {
            log.push_id(head.id);
        }
        log
    }

    /// Truncates, then appends: what one Raft write does to the log. The same change goes to the WAL in the same order;
    /// when it is written, the mark goes to [`ShardLog::persisted`].
    ///
    /// # Panics
    /// If the truncation reaches below the log, or an entry does not follow its end.
    pub fn append(&mut self, truncate_from: Option<LogIndex>, entries: &[Entry]) -> WriteMark {
        let from = truncate_from.unwrap_or_else(|| self.last.next());
        if let Some(from) = truncate_from {
            self.truncate(from);
        }
        for entry in entries {
            self.push_id(entry.id);
            self.cache_bytes += entry_bytes(entry);
            self.cache.push_back(entry.clone());
        }
        let mark = self.next_mark;
        self.next_mark = WriteMark(mark.0 + 1);
        self.pending.push_back(Pending { mark, from });
        mark
    }

    /// The WAL has written everything up to and with this mark.
    pub fn persisted(&mut self, upto: WriteMark) {
        while self.pending.front().is_some_and(|pending| pending.mark <= upto) {
            self.pending.pop_front();
        }
        self.evict();
    }

    /// A snapshot became the base: the log begins after it; entries above it stay if `keep_tail`. The WAL has written
    /// the matching `Install`.
    ///
    /// # Panics
    /// If a tail is to be kept that the log does not hold.
    pub fn reset(&mut self, log_start: LogId, keep_tail: bool) {
        if keep_tail {
            let term = self.term(log_start.index);
            assert!(
                term == Some(log_start.term),
                "{}: a tail is kept above {log_start}: {term:?}",
                self.shard
            );
            self.compact(log_start);
            return;
        }
        self.start = log_start.index;
        self.last = log_start.index;
        self.terms = VecDeque::from([(log_start.index, log_start.term)]);
        self.cache.clear();
        self.cache_bytes = 0;
        // Later writes count from the new end; earlier ones concern nothing that is left.
        self.pending.clear();
    }

    /// Entries up to here are no longer read.
    ///
    /// # Panics
    /// If the log does not hold the entry.
    pub fn compact(&mut self, upto: LogId) {
        if upto.index <= self.start {
            return;
        }
        let term = self.term(upto.index);
        assert!(term == Some(upto.term), "{}: compaction up to {upto}: {term:?}", self.shard);
        while self.cache.front().is_some_and(|entry| entry.id.index <= upto.index) {
            self.pop_front();
        }
        while self.terms.get(1).is_some_and(|(first, _)| *first <= upto.index) {
            self.terms.pop_front();
        }
        self.start = upto.index;
    }

    /// Entries of `range`, as many from its start as `max_bytes` (encoded) allow, but at least one. A range that begins
    /// on disk goes on in memory: whoever asks without a limit is given all of it.
    ///
    /// # Errors
    /// [`WalError::NotHeld`] if the first entry is compacted or not appended yet; else as [`LogReader::read`].
    pub fn read(&self, range: RangeInclusive<LogIndex>, max_bytes: u64) -> Result<Vec<Entry>, WalError> {
        let (first, last) = (*range.start(), (*range.end()).min(self.last));
        if first <= self.start || first > last {
            return Err(WalError::NotHeld { shard: self.shard, index: first });
        }
        let cached = self.cached_from();
        let mut entries = Vec::new();
        if first < cached {
            let on_disk = self.reader.read(self.shard, first..=last.min(cached.prev()), max_bytes)?;
            entries = self.checked(first, on_disk)?;
        }
        let next = first.plus(entries.len() as u64);
        if next < cached {
            return Ok(entries);
        }
        let skip = usize::try_from(next.since(cached)).unwrap_or(usize::MAX);
        let mut bytes: u64 = entries.iter().map(entry_bytes).sum();
        for entry in self.cache.iter().skip(skip).take_while(|entry| entry.id.index <= last) {
            bytes += entry_bytes(entry);
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    /// One entry; `None` if the log does not hold it.
    ///
    /// # Errors
    /// As [`LogReader::read`].
    pub fn entry(&self, index: LogIndex) -> Result<Option<Entry>, WalError> {
        if index <= self.start || index > self.last {
            return Ok(None);
        }
        Ok(self.read(index..=index, 0)?.into_iter().next())
    }

    /// The term of an entry or of the log's start; `None` outside.
    pub fn term(&self, index: LogIndex) -> Option<Term> {
        if index < self.start || index > self.last {
            return None;
        }
        let run = self.terms.partition_point(|(first, _)| *first <= index);
        self.terms.get(run.checked_sub(1)?).map(|(_, term)| *term)
    }

    /// The last entry; the start if there is none.
    pub fn last(&self) -> LogId {
        LogId::new(self.term(self.last).expect("the last entry has a term"), self.last)
    }

    /// The last entry before the log.
    pub fn start(&self) -> LogId {
        LogId::new(self.term(self.start).expect("the start has a term"), self.start)
    }

    /// Bytes of entries in memory.
    pub fn cached_bytes(&self) -> u64 {
        self.cache_bytes
    }

    /// The last entry that is in the WAL as it is here.
    pub fn persisted_index(&self) -> LogIndex {
        self.pending.iter().map(|pending| pending.from.prev()).min().unwrap_or(self.last).max(self.start)
    }

    /// What the WAL gave back must be this log's entries; if not, a mark was given for a write that had not happened.
    fn checked(&self, first: LogIndex, entries: Vec<Entry>) -> Result<Vec<Entry>, WalError> {
        let mut index = first;
        for entry in &entries {
            let expected = self.term(index).map(|term| LogId::new(term, index));
            assert!(
                expected == Some(entry.id),
                "{}: the WAL holds {} where the log holds {expected:?}",
                self.shard,
                entry.id
            );
            index = index.next();
        }
        Ok(entries)
    }

    fn cached_from(&self) -> LogIndex {
        self.cache.front().map_or(self.last.next(), |entry| entry.id.index)
    }

    fn push_id(&mut self, id: LogId) {
        assert!(
            id.index == self.last.next(),
            "{}: {id} does not follow the log's end {}",
            self.shard,
            self.last
        );
        if self.terms.back().is_none_or(|(_, term)| *term != id.term) {
            self.terms.push_back((id.index, id.term));
        }
        self.last = id.index;
    }

    fn truncate(&mut self, from: LogIndex) {
        assert!(
            from > self.start,
            "{}: truncation from {from}, the log starts at {}",
            self.shard,
            self.start
        );
        while self.cache.back().is_some_and(|entry| entry.id.index >= from) {
            if let Some(entry) = self.cache.pop_back() {
                self.cache_bytes -= entry_bytes(&entry);
            }
        }
        while self.terms.back().is_some_and(|(first, _)| *first >= from) {
            self.terms.pop_back();
        }
        self.last = self.last.min(from.prev());
    }

    fn pop_front(&mut self) {
        if let Some(entry) = self.cache.pop_front() {
            self.cache_bytes -= entry_bytes(&entry);
        }
    }

    /// Lets go of the oldest entries in memory that are persisted, until the rest fits.
    fn evict(&mut self) {
        let persisted = self.persisted_index();
        while self.cache_bytes > self.cache_bytes_max
            && self.cache.front().is_some_and(|entry| entry.id.index <= persisted)
        {
            self.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kv_types::{Body, HardState, Incarnation, Lamport};

    use super::*;
    use crate::disk::faulty::VirtualDisk;
    use crate::wal::{Wal, WalOptions};
    use crate::{WalOp, WalRecord};

    const SHARD: ShardId = ShardId::new(1);

    fn entry(term: u64, index: u64) -> Entry {
        let body = Body::Command(Bytes::from(format!("t{term} wrote i{index}")));
        Entry { id: LogId::new(Term::new(term), LogIndex::new(index)), stamp: Lamport::ZERO, body }
    }

    fn entries(term: u64, range: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
        range.map(|index| entry(term, index)).collect()
    }

    fn at(index: u64) -> LogIndex {
        LogIndex::new(index)
    }

    fn options() -> WalOptions {
        WalOptions {
            segment_bytes: 64 << 10,
            ballast_bytes: 0,
            reserve_bytes: 0,
            ..WalOptions::new(Incarnation::new(1))
        }
    }

    /// A log that keeps nothing persisted in memory, and its WAL.
    fn log() -> (Wal, ShardLog) {
        let (wal, _) = Wal::open(Arc::new(VirtualDisk::new()), options()).unwrap();
        let log = ShardLog::new(SHARD, wal.reader(), &RecoveredShard::default(), 0);
        (wal, log)
    }

    fn write(wal: &mut Wal, truncate_from: Option<LogIndex>, append: &[Entry]) {
        let term = append.last().map_or(Term::new(9), |entry| entry.id.term);
        let hard = Some(HardState { term, ..HardState::default() });
        let op = WalOp::Raft { hard, truncate_from, append: append.to_vec() };
        wal.write(&[WalRecord { shard: SHARD, op }]).unwrap();
    }

    #[test]
    fn serves_memory_then_disk() {
        let (mut wal, mut log) = log();
        let all = entries(1, 1..=5);
        let mark = log.append(None, &all);
        assert_eq!(log.read(at(1)..=at(5), u64::MAX).unwrap(), all);
        assert_eq!(log.persisted_index(), at(0));
        write(&mut wal, None, &all);
        log.persisted(mark);
        assert_eq!((log.cached_bytes(), log.persisted_index()), (0, at(5)));
        assert_eq!(log.read(at(1)..=at(5), u64::MAX).unwrap(), all);
        assert_eq!(log.read(at(2)..=at(5), 1).unwrap(), entries(1, 2..=2), "at least one");
        let more = entries(1, 6..=6);
        log.append(None, &more);
        assert_eq!(log.read(at(1)..=at(6), u64::MAX).unwrap(), entries(1, 1..=6), "goes on in memory");
        let five = entry_bytes(&entry(1, 5));
        assert_eq!(log.read(at(5)..=at(6), five).unwrap(), entries(1, 5..=5), "the limit counts both");
        assert_eq!(log.read(at(5)..=at(6), 2 * five).unwrap(), entries(1, 5..=6));
        assert_eq!(log.entry(at(6)).unwrap(), Some(entry(1, 6)));
        assert_eq!(log.entry(at(7)).unwrap(), None);
        assert!(matches!(log.read(at(7)..=at(9), 1), Err(WalError::NotHeld { .. })));
    }

    #[test]
    fn a_rewritten_index_is_never_served_from_its_older_position() {
        let (mut wal, mut log) = log();
        let first = log.append(None, &entries(1, 1..=5));
        write(&mut wal, None, &entries(1, 1..=5));
        let second = log.append(Some(at(3)), &entries(2, 3..=5));
        // The notice of the first write comes late: it must not be taken for one of the second.
        log.persisted(first);
        assert_eq!(log.persisted_index(), at(2));
        assert_eq!(log.read(at(3)..=at(5), u64::MAX).unwrap(), entries(2, 3..=5));
        let all = [entries(1, 1..=2), entries(2, 3..=5)].concat();
        assert_eq!(log.read(at(1)..=at(5), u64::MAX).unwrap(), all);
        write(&mut wal, Some(at(3)), &entries(2, 3..=5));
        log.persisted(second);
        assert_eq!(log.cached_bytes(), 0);
        assert_eq!(log.read(at(3)..=at(5), u64::MAX).unwrap(), entries(2, 3..=5));
        assert_eq!(log.last(), entry(2, 5).id);
    }

    #[test]
    fn an_entry_that_comes_back_is_not_persisted_by_its_first_write() {
        let (mut wal, mut log) = log();
        let first = log.append(None, &entries(1, 1..=3));
        write(&mut wal, None, &entries(1, 1..=3));
        log.append(Some(at(2)), &entries(2, 2..=2));
        // A later leader has the very entries of the first write.
        let third = log.append(Some(at(2)), &entries(1, 2..=3));
        log.persisted(first);
        write(&mut wal, Some(at(2)), &entries(2, 2..=2));
        assert_eq!(log.persisted_index(), at(1));
        assert_eq!(log.read(at(2)..=at(3), u64::MAX).unwrap(), entries(1, 2..=3));
        log.persisted(third);
        assert_eq!(log.persisted_index(), at(3));
    }

    #[test]
    fn truncation_alone_keeps_the_terms_below_it() {
        let (_, mut log) = log();
        log.append(None, &entries(1, 1..=2));
        log.append(None, &entries(3, 3..=4));
        log.append(Some(at(3)), &[]);
        assert_eq!(log.last(), entry(1, 2).id);
        assert_eq!((log.term(at(2)), log.term(at(3))), (Some(Term::new(1)), None));
    }

    #[test]
    fn compaction_and_reset_move_the_start() {
        let (_, mut log) = log();
        log.append(None, &entries(1, 1..=4));
        log.compact(entry(1, 2).id);
        log.compact(entry(1, 1).id);
        assert_eq!((log.start(), log.last()), (entry(1, 2).id, entry(1, 4).id));
        assert!(matches!(log.read(at(2)..=at(3), 1), Err(WalError::NotHeld { .. })));
        log.reset(entry(1, 3).id, true);
        assert_eq!(log.read(at(4)..=at(4), 1).unwrap(), entries(1, 4..=4));
        log.reset(entry(5, 9).id, false);
        assert_eq!((log.start(), log.last(), log.cached_bytes()), (entry(5, 9).id, entry(5, 9).id, 0));
        log.append(None, &entries(5, 10..=10));
        assert_eq!(log.entry(at(10)).unwrap(), Some(entry(5, 10)));
    }

    #[test]
    fn a_node_that_is_started_again_and_again_keeps_no_empty_segments() {
        let disk = VirtualDisk::new();
        for life in 0..20 {
            let (mut wal, recovery) = Wal::open(Arc::new(disk.clone()), options()).unwrap();
            assert_eq!(recovery.shards.get(&SHARD).map_or(0, |shard| shard.entries.len()), life);
            // Manifest and one group in each of the lives before, and one segment that is written to.
            assert!(
                wal.bytes() <= (64 << 10) + life as u64 * (16 << 10),
                "{} bytes in life {life}",
                wal.bytes()
            );
            write(&mut wal, None, &entries(1, life as u64 + 1..=life as u64 + 1));
        }
    }

    #[test]
    fn a_restart_finds_what_was_written() {
        let disk = VirtualDisk::new();
        let (mut wal, _) = Wal::open(Arc::new(disk.clone()), options()).unwrap();
        write(&mut wal, None, &entries(1, 1..=3));
        write(&mut wal, Some(at(3)), &entries(2, 3..=4));
        let (wal, recovery) = Wal::open(Arc::new(disk), options()).unwrap();
        let log = ShardLog::new(SHARD, wal.reader(), &recovery.shards[&SHARD], 1 << 20);
        assert_eq!((log.start(), log.last(), log.persisted_index()), (LogId::ZERO, entry(2, 4).id, at(4)));
        let all = log.read(at(1)..=at(4), u64::MAX).unwrap();
        assert_eq!(all, [entries(1, 1..=2), entries(2, 3..=4)].concat());
    }
}
