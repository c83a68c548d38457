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

    /// Entries of `range`, as many from its start as `max_bytes` (encoded) allow, but at least one. Reads memory and
    /// disk at most once each, so a range that begins on disk may end where memory begins.
    ///
    /// # Errors
    /// [`WalError::NotHeld`] if the first entry is compacted or not appended yet; else as [`LogReader::read`].
    pub fn read(&self, range: RangeInclusive<LogIndex>, max_bytes: u64) -> Result<Vec<Entry>, WalError> {
        let (first, last) = (*range.start(), (*range.end()).min(self.last));
        if first <= self.start || first > last {
            return Err(WalError::NotHeld { shard: self.shard, index: first });
        }
        let cached = self.cached_from();
        if first < cached {
            let entries = self.reader.read(self.shard, first..=last.min(cached.prev()), max_bytes)?;
            return self.checked(first, entries);
        }
        let skip = usize::try_from(first.since(cached)).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let mut entries = Vec::new();
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
