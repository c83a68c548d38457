//! Effects that wait for `take`, and which writes are durable.

use std::collections::VecDeque;

use kv_types::{Entry, HardState, LogId, LogIndex, Nanos, SnapshotMeta};

use crate::{Message, Output, ReadRefused, Reset, SnapshotJob, Ticket, Write, WriteId};

/// A write handed out and not durable.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    id: WriteId,
    /// The end of the log that it makes durable.
    end: LogIndex,
    /// When it was handed out.
    since: Nanos,
}

/// Gathers effects, and follows the writes that were handed out.
///
/// # Invariants
/// - Writes in flight have ascending names, and ends of the log that never descend.
/// - `durable` and the ends in flight speak of the log as it is now: a truncation lowers them, so that the
///   acknowledgement of an older write never counts for entries that replaced it (trap "ABA" of asynchronous logs).
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// The write being gathered; its name is the one after `issued`.
    pending: Option<Write>,
    /// Writes handed out and not durable.
    in_flight: VecDeque<InFlight>,
    /// The newest write handed out.
    issued: WriteId,
    /// The newest write known to be durable.
    persisted: WriteId,
    /// The end of the durable part of the log.
    durable: LogIndex,
    /// The newest write that changes the hard state.
    hard_write: WriteId,
    send: Vec<Message>,
    send_after: Vec<(WriteId, Message)>,
    reads: Vec<(Ticket, Result<LogIndex, ReadRefused>)>,
    snapshots: Vec<SnapshotJob>,
}

impl Outbox {
    /// Nothing to do, and a log that is durable up to `durable`.
    pub(crate) fn new(durable: LogIndex) -> Self {
        Self { durable, ..Self::default() }
    }

    pub(crate) fn durable(&self) -> LogIndex {
        self.durable
    }

    pub(crate) fn persisted(&self) -> WriteId {
        self.persisted
    }

    fn pending(&mut self) -> &mut Write {
        let id = self.issued.next();
        self.pending.get_or_insert(Write {
            id,
            hard: None,
            reset: None,
            truncate_from: None,
            append: Vec::new(),
        })
    }

    /// Writes the hard state; returns the write that does.
    pub(crate) fn write_hard(&mut self, hard: HardState) -> WriteId {
        let write = self.pending();
        write.hard = Some(hard);
        let id = write.id;
        self.hard_write = id;
        id
    }

    /// Writes an entry that follows the log's end.
    pub(crate) fn write_entry(&mut self, entry: Entry) {
        self.pending().append.push(entry);
    }

    /// Removes entries from `from` on, on disk and from the write being gathered.
    pub(crate) fn write_truncation(&mut self, from: LogIndex) {
        self.forget(from.prev());
        let write = self.pending();
        if write.append.first().is_some_and(|first| first.id.index < from) {
            // The write itself puts the first ones there: leaving out the rest is enough.
            write.append.retain(|entry| entry.id.index < from);
        } else {
            write.append.clear();
            let begins_at = write.reset.as_ref().map_or(from, |reset| from.max(reset.meta.last.index.next()));
            write.truncate_from = Some(write.truncate_from.map_or(begins_at, |older| older.min(begins_at)));
        }
    }

    /// Makes a snapshot the base. `keep_tail`: the log in memory holds its end, and what follows stays.
    pub(crate) fn write_reset(&mut self, meta: SnapshotMeta, keep_tail: bool) {
        let end = meta.last.index;
        if !keep_tail {
            self.forget(LogIndex::ZERO);
        }
        let write = self.pending();
        // The disk is behind the log in memory by the rest of this write. Its own tail stays only if it holds the
        // snapshot's end, and if that rest would not have removed it.
        let disk_ends_below = write.append.first().is_some_and(|first| first.id.index <= end);
        write.append.retain(|entry| keep_tail && entry.id.index > end);
        let cut_below = write.truncate_from.is_some_and(|from| from <= end);
        let reset_before = write.reset.as_ref().is_some_and(|reset| !reset.keep_tail);
        let keep_tail = keep_tail && !disk_ends_below && !cut_below && !reset_before;
        if !keep_tail {
            write.truncate_from = None;
        }
        write.reset = Some(Reset { meta, keep_tail });
    }

    /// Leaves the tail of the log on disk, whatever it holds: a planted bug.
    pub(crate) fn leave_tail(&mut self) {
        if let Some(reset) = self.pending().reset.as_mut() {
            reset.keep_tail = true;
        }
    }

    /// The log after `kept` is no longer what earlier writes contain.
    fn forget(&mut self, kept: LogIndex) {
        self.durable = self.durable.min(kept);
        for write in &mut self.in_flight {
            write.end = write.end.min(kept);
        }
    }

    /// The write that makes the log durable up to `index`; [`WriteId::ZERO`] if it is.
    pub(crate) fn write_of(&self, index: LogIndex) -> WriteId {
        if index <= self.durable {
            return WriteId::ZERO;
        }
        match self.in_flight.iter().find(|write| write.end >= index) {
            Some(write) => write.id,
            None => self.issued.next(),
        }
    }

    /// The newest write that changes the hard state.
    pub(crate) fn hard_write(&self) -> WriteId {
        self.hard_write
    }

    /// Writes up to `upto` are durable.
    pub(crate) fn on_persisted(&mut self, upto: WriteId) {
        assert!(upto <= self.issued, "{upto} is durable, but {} is the newest write", self.issued);
        while let Some(write) = self.in_flight.pop_front_if(|write| write.id <= upto) {
            self.durable = self.durable.max(write.end);
        }
        self.persisted = self.persisted.max(upto);
    }

    pub(crate) fn send(&mut self, message: Message) {
        self.send.push(message);
    }

    /// Sends once `write` is durable.
    pub(crate) fn send_after(&mut self, write: WriteId, message: Message) {
        if write <= self.persisted { self.send.push(message) } else { self.send_after.push((write, message)) }
    }

    pub(crate) fn answer_read(&mut self, ticket: Ticket, result: Result<LogIndex, ReadRefused>) {
        self.reads.push((ticket, result));
    }

    pub(crate) fn start_snapshot(&mut self, job: SnapshotJob) {
        self.snapshots.push(job);
    }

    /// When the oldest write that is not durable was handed out.
    pub(crate) fn oldest_write(&self) -> Option<Nanos> {
        self.in_flight.front().map(|write| write.since)
    }

    /// Hands everything out; `last` is the end of the log.
    pub(crate) fn take(&mut self, now: Nanos, last: LogId) -> Output {
        let write = self.pending.take();
        if let Some(write) = &write {
            self.issued = write.id;
            self.in_flight.push_back(InFlight { id: write.id, end: last.index, since: now });
        }
        Output {
            write,
            send: std::mem::take(&mut self.send),
            send_after: std::mem::take(&mut self.send_after),
            reads: std::mem::take(&mut self.reads),
            snapshots: std::mem::take(&mut self.snapshots),
            ..Output::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use kv_types::{Body, Lamport, Term};

    use super::*;

    const NOW: Nanos = Nanos::new(0);

    fn id(term: u64, index: u64) -> LogId {
        LogId::new(Term::new(term), LogIndex::new(index))
    }

    fn entry(term: u64, index: u64) -> Entry {
        Entry { id: id(term, index), stamp: Lamport::ZERO, body: Body::Blank }
    }

    fn meta(index: u64) -> SnapshotMeta {
        SnapshotMeta { last: id(1, index), ..SnapshotMeta::default() }
    }

    #[test]
    fn an_old_write_does_not_vouch_for_entries_that_replaced_its_own() {
        let mut outbox = Outbox::new(LogIndex::ZERO);
        outbox.write_entry(entry(1, 1));
        outbox.write_entry(entry(1, 2));
        let first = outbox.take(NOW, id(1, 2)).write.unwrap().id;
        outbox.write_truncation(LogIndex::new(2));
        outbox.write_entry(entry(2, 2));
        let second = outbox.take(NOW, id(2, 2)).write.unwrap().id;
        outbox.on_persisted(first);
        assert_eq!(outbox.durable(), LogIndex::new(1));
        assert_eq!(outbox.write_of(LogIndex::new(2)), second);
        outbox.on_persisted(second);
        assert_eq!(outbox.durable(), LogIndex::new(2));
    }

    #[test]
    fn a_truncation_within_the_gathered_write_leaves_no_trace() {
        let mut outbox = Outbox::new(LogIndex::ZERO);
        outbox.write_entry(entry(1, 1));
        outbox.write_entry(entry(1, 2));
        outbox.write_truncation(LogIndex::new(2));
        let write = outbox.take(NOW, id(1, 1)).write.unwrap();
        assert_eq!((write.truncate_from, write.append), (None, vec![entry(1, 1)]));
    }

    #[test]
    fn a_truncation_below_the_gathered_write_replaces_it() {
        let mut outbox = Outbox::new(LogIndex::new(5));
        outbox.write_entry(entry(1, 6));
        outbox.write_truncation(LogIndex::new(4));
        outbox.write_entry(entry(2, 4));
        outbox.write_truncation(LogIndex::new(3));
        let write = outbox.take(NOW, id(1, 2)).write.unwrap();
        assert_eq!((write.truncate_from, write.append), (Some(LogIndex::new(3)), vec![]));
    }

    #[test]
    fn a_reset_keeps_the_tail_on_disk_only_if_it_is_the_tail_in_memory() {
        let mut outbox = Outbox::new(LogIndex::new(9));
        outbox.write_reset(meta(4), true);
        assert!(outbox.take(NOW, id(1, 9)).write.unwrap().reset.unwrap().keep_tail);
        outbox.write_truncation(LogIndex::new(6));
        outbox.write_entry(entry(2, 6));
        outbox.write_entry(entry(2, 7));
        outbox.write_reset(meta(6), true);
        let write = outbox.take(NOW, id(2, 7)).write.unwrap();
        assert!(!write.reset.unwrap().keep_tail, "the disk still has the entries that were cut");
        assert_eq!((write.truncate_from, write.append), (None, vec![entry(2, 7)]));
    }
}
