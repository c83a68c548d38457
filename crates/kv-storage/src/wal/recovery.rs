//! From segments to shards: which groups count, what they say, and whose records are damaged if they do not add up.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use kv_types::{Body, Entry, HardState, Incarnation, Lamport, LogId, LogIndex, Membership, ShardId};

use super::codec::{self, KIND_MANIFEST, Manifest, Record};
use super::durable::{self, DurableNote};
use super::error::{Corruption, WalError, io_error};
use super::layout::{GroupHeader, SegmentNo, WAL_DIR};
use super::segment::{GroupAt, RawRecord, Segment};
use super::state::{Origin, ShardState};
use crate::disk::Disk;
use crate::{BaseNote, Generation, MergeNote, WalOp};

/// All of an entry but its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryHead {
    /// Where it stands and who made it.
    pub id: LogId,
    /// The leader's stamp.
    pub stamp: Lamport,
    /// What [`Body::payload_bytes`] says of it.
    pub payload_bytes: u64,
    /// Whether it changes the membership.
    pub is_config: bool,
}

impl EntryHead {
    /// The head of an entry.
    pub fn of(entry: &Entry) -> Self {
        let is_config = matches!(entry.body, Body::Config(_));
        Self { id: entry.id, stamp: entry.stamp, payload_bytes: entry.body.payload_bytes(), is_config }
    }
}

/// What the WAL says about a shard after a restart.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecoveredShard {
    /// The hard state.
    pub hard: HardState,
    /// The newest base note; the default if there was none.
    pub base: BaseNote,
    /// A merge that was begun and not completed.
    pub merge: Option<MergeNote>,
    /// The generation that must not be opened again.
    pub damaged: Option<Generation>,
    /// The last entry before the log.
    pub log_start: LogId,
    /// The entries after it, without a hole.
    pub entries: Vec<EntryHead>,
    /// The memberships among them.
    pub configs: Vec<(LogIndex, Membership)>,
}

impl RecoveredShard {
    /// The last entry of the log.
    pub fn last(&self) -> LogId {
        self.entries.last().map_or(self.log_start, |entry| entry.id)
    }
}

/// A group that was being written when the node stopped: it was never acknowledged and is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TornTail {
    /// The segment.
    pub segment: SegmentNo,
    /// Where the group began.
    pub offset: u64,
}

/// What [`crate::wal::Wal::open`] found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WalRecovery {
    /// Every shard that was ever written.
    pub shards: BTreeMap<ShardId, RecoveredShard>,
    /// The torn group that was cut, if any.
    pub torn: Option<TornTail>,
    /// Segments that hold the logs, oldest first.
    pub segments: Vec<SegmentNo>,
    /// Segments that were created and never begun; they are removed.
    pub unbegun: Vec<SegmentNo>,
    /// Groups read.
    pub groups: u64,
    /// What was known to be durable; none if an older release wrote all of it.
    pub noted: Option<DurableNote>,
}

/// What recovery hands to the writer besides [`WalRecovery`].
#[derive(Debug, Default)]
pub(super) struct Scanned {
    pub(super) states: BTreeMap<ShardId, ShardState>,
    pub(super) chain: Vec<Segment>,
    /// Where each of them ends.
    pub(super) ends: Vec<u64>,
    /// Where the newest segment's groups end.
    pub(super) end: u64,
    /// Number of the newest group; 0 if there is none.
    pub(super) group: u64,
    /// The newest number any file bears.
    pub(super) newest: SegmentNo,
    pub(super) recovery: WalRecovery,
}

/// Reads all segments; changes nothing.
pub(super) fn scan(disk: &dyn Disk, incarnation: Incarnation) -> Result<Scanned, WalError> {
    let names = disk.list(Path::new(WAL_DIR)).map_err(io_error("list", WAL_DIR))?;
    let mut segments = Vec::new();
    for no in names.iter().filter_map(|name| SegmentNo::of_name(name)) {
        segments.push(Segment::open(disk, no, incarnation)?);
    }
    segments.sort_by_key(|segment| segment.no);
    let newest = segments.last().map_or(SegmentNo::ZERO, |segment| segment.no);
    let (links, unbegun) = chain(segments)?;
    let noted = durable::read(disk, incarnation)?.map(|found| found.note);
    check_newest(&links, noted)?;
    let mut replay = Replay { scanned: Scanned { newest, ..Scanned::default() }, heads: BTreeMap::new() };
    replay.scanned.recovery.unbegun = unbegun;
    replay.scanned.recovery.noted = noted;
    let ends = links.iter().skip(1).map(|(_, _, manifest)| Some(manifest.previous_end)).chain([None]);
    for (at, ((segment, header, manifest), end)) in links.iter().zip(ends).enumerate() {
        let later = links.get(at + 1..).unwrap_or_default();
        replay.manifest(segment, header, manifest, at == 0)?;
        replay.groups(segment, end, later)?;
        replay.scanned.ends.push(replay.scanned.end);
    }
    replay.scanned.chain = links.into_iter().map(|(segment, _, _)| segment).collect();
    replay.finish()
}

type Link = (Segment, GroupHeader, Manifest);

/// The segments that were begun, oldest first, each naming the one before it; and the numbers of the others.
fn chain(mut segments: Vec<Segment>) -> Result<(Vec<Link>, Vec<SegmentNo>), WalError> {
    let (mut links, mut unbegun): (Vec<Link>, Vec<SegmentNo>) = (Vec::new(), Vec::new());
    let mut expected: Option<SegmentNo> = None;
    while let Some(mut segment) = segments.pop() {
        let is_next = expected.is_none_or(|no| no == segment.no);
        match segment.manifest()? {
            Some((header, manifest)) if is_next => {
                expected = Some(manifest.previous);
                links.push((segment, header, manifest));
            }
            Some(_) => {
                return Err(Corruption::new(segment.no, 0, "the segment after this one is missing").into());
            }
            // A later manifest names it, or a group stands behind its own: so it was begun.
            None if expected == Some(segment.no) || segment.header_after(0)?.is_some() => {
                return Err(manifest_damaged(&segment, &links).into());
            }
            None => unbegun.push(segment.no),
        }
    }
    links.reverse();
    unbegun.reverse();
    Ok((links, unbegun))
}

/// The newest segment must not be older than the newest that was begun. Nobody knows whose records stood in it.
fn check_newest(links: &[Link], noted: Option<DurableNote>) -> Result<(), Corruption> {
    let newest = links.last().map_or(SegmentNo::ZERO, |(segment, _, _)| segment.no);
    match noted {
        Some(noted) if newest < noted.segment => {
            Err(Corruption::new(noted.segment, 0, "the newest segment is missing or illegible"))
        }
        _ => Ok(()),
    }
}

/// A manifest says nothing that a later one does not, but without it nobody knows what the entries after it meant.
fn manifest_damaged(segment: &Segment, newer: &[Link]) -> Corruption {
    let mut corruption = Corruption::new(segment.no, 0, "the manifest is damaged");
    if let Some((_, _, manifest)) = newer.first() {
        corruption.possible = manifest.shards.iter().map(|(shard, _)| *shard).collect();
    }
    corruption
}

/// Head and membership of each entry of one shard.
type Heads = BTreeMap<LogIndex, (EntryHead, Option<Membership>)>;

struct Replay {
    scanned: Scanned,
    heads: BTreeMap<ShardId, Heads>,
}

impl Replay {
    /// The oldest manifest is where the states begin; every later one must say what was replayed.
    fn manifest(
        &mut self,
        segment: &Segment,
        header: &GroupHeader,
        manifest: &Manifest,
        oldest: bool,
    ) -> Result<(), WalError> {
        let scanned = &mut self.scanned;
        if oldest {
            let states = manifest.shards.iter().map(|(shard, note)| (*shard, ShardState::of_note(note)));
            scanned.states = states.collect();
        } else {
            if header.group != scanned.group + 1 {
                return Err(Corruption::new(segment.no, 0, "a group is missing before the manifest").into());
            }
            for (shard, note) in &manifest.shards {
                if let Some(state) = scanned.states.get_mut(shard) {
                    state.learn_last(note.last);
                }
            }
            let known: Vec<_> = scanned.states.iter().map(|(shard, state)| (*shard, state.note())).collect();
            if known != manifest.shards {
                let mut corruption = Corruption::new(segment.no, 0, "the manifest contradicts the records");
                let differs = |(shard, note): &&(ShardId, codec::ShardNote)| {
                    !manifest.shards.iter().any(|(other, told)| other == shard && told == note)
                };
                corruption.touched = known.iter().filter(differs).map(|(shard, _)| *shard).collect();
                return Err(corruption.into());
            }
        }
        scanned.group = header.group;
        scanned.end = header.padded_bytes();
        scanned.recovery.segments.push(segment.no);
        scanned.recovery.groups += 1;
        Ok(())
    }

    /// Replays the groups after the manifest, up to `end` if a later segment knows it.
    fn groups(&mut self, segment: &Segment, end: Option<u64>, later: &[Link]) -> Result<(), WalError> {
        loop {
            let offset = self.scanned.end;
            if Some(offset) == end {
                return Ok(());
            }
            let found = segment.group(offset)?;
            if let GroupAt::Sound(header, records) = &found
                && header.group == self.scanned.group + 1
                && end.is_none_or(|end| offset + header.padded_bytes() <= end)
            {
                self.group(segment, header, records)?;
                continue;
            }
            let is_noted = self.scanned.recovery.noted.is_some_and(|noted| noted.group > self.scanned.group);
            let durable = end.is_some() || is_noted || segment.header_after(offset)?.is_some();
            if durable {
                return Err(self.corruption(segment, &found, later)?.into());
            }
            if !matches!(found, GroupAt::Blank) {
                self.scanned.recovery.torn = Some(TornTail { segment: segment.no, offset });
            }
            return Ok(());
        }
    }

    fn group(
        &mut self,
        segment: &Segment,
        header: &GroupHeader,
        records: &[RawRecord],
    ) -> Result<(), WalError> {
        let origin = Origin { segment: segment.no, offset: header.offset };
        for record in records {
            self.record(segment, record, origin)
                .map_err(|what| Corruption::of_shard(segment.no, header.offset, what, record.header.shard))?;
        }
        self.scanned.group = header.group;
        self.scanned.end = header.offset + header.padded_bytes();
        self.scanned.recovery.groups += 1;
        Ok(())
    }

    fn record(&mut self, segment: &Segment, raw: &RawRecord, origin: Origin) -> Result<(), &'static str> {
        let seed = super::layout::Seed::new(segment.incarnation, segment.no);
        if raw.header.kind == KIND_MANIFEST {
            return Err("a manifest stands among the records");
        }
        let mut places = Vec::new();
        let record = codec::record(raw.header.kind, &raw.body, seed, &mut places);
        let record = record.map_err(|_| "a record with sound checksums is malformed")?;
        for place in &mut places {
            place.at += raw.body_at;
        }
        let state = self.scanned.states.entry(raw.header.shard).or_default();
        if raw.header.seq != state.seq + 1 {
            return Err("a record of the shard is missing before this one");
        }
        let heads = self.heads.entry(raw.header.shard).or_default();
        match &record {
            Record::Op(op) => {
                state.bounds().step(op)?;
                keep_heads(heads, op);
            }
            Record::Copied(entries) => fill_heads(heads, state, entries),
        }
        state.apply(&record, origin, &places);
        Ok(())
    }

    /// Whose records the damage at the current end touches (A9): legible headers name them; else sequence numbers
    /// further on tell who has a gap, and a shard that is not met again may have one.
    fn corruption(&self, segment: &Segment, bad: &GroupAt, later: &[Link]) -> Result<Corruption, WalError> {
        let offset = self.scanned.end;
        let mut corruption = Corruption::new(segment.no, offset, "a group that was durable is damaged");
        if let GroupAt::Bad { legible, all } = bad {
            let unsound = legible.iter().filter(|(_, sound)| !sound);
            corruption.touched.extend(unsound.map(|(header, _)| header.shard));
            if *all && !corruption.touched.is_empty() {
                return Ok(corruption);
            }
        }
        let expected: BTreeMap<ShardId, u64> =
            self.scanned.states.iter().map(|(shard, state)| (*shard, state.seq)).collect();
        let mut met = BTreeSet::new();
        let mut meet = |shard: ShardId, before: u64| {
            if met.insert(shard) && expected.get(&shard).copied().unwrap_or(0) != before {
                corruption.touched.insert(shard);
            }
        };
        let mut at = offset;
        while let Some(header) = segment.header_after(at)? {
            at = header.offset;
            if let GroupAt::Sound(_, records) = segment.group(at)? {
                for record in records {
                    meet(record.header.shard, record.header.seq.saturating_sub(1));
                }
            }
        }
        // The next manifest knows every shard's number, so nobody is left in doubt.
        if let Some((_, _, manifest)) = later.first() {
            for (shard, note) in &manifest.shards {
                meet(*shard, note.seq);
            }
        }
        corruption.possible = expected.keys().filter(|shard| !met.contains(shard)).copied().collect();
        corruption.possible.retain(|shard| !corruption.touched.contains(shard));
        Ok(corruption)
    }

    /// Checks that no entry is missing, and turns heads into what the node wants to know.
    fn finish(mut self) -> Result<Scanned, WalError> {
        for (shard, state) in &self.scanned.states {
            let heads = self.heads.remove(shard).unwrap_or_default();
            if state.slots.iter().any(|slot| !slot.is_met()) || heads.len() != state.slots.len() {
                let what = "entries that the log must hold are in no segment";
                return Err(Corruption::of_shard(self.scanned.newest, 0, what, *shard).into());
            }
            let mut recovered = RecoveredShard {
                hard: state.hard,
                base: state.base.clone(),
                merge: state.merge,
                damaged: state.damaged,
                log_start: state.start,
                entries: Vec::with_capacity(heads.len()),
                configs: Vec::new(),
            };
            for (index, (head, config)) in heads {
                recovered.entries.push(head);
                recovered.configs.extend(config.map(|membership| (index, membership)));
            }
            self.scanned.recovery.shards.insert(*shard, recovered);
        }
        Ok(self.scanned)
    }
}

fn insert_head(heads: &mut Heads, entry: &Entry) {
    let config = match &entry.body {
        Body::Config(membership) => Some(membership.clone()),
        Body::Blank | Body::Command(_) => None,
    };
    heads.insert(entry.id.index, (EntryHead::of(entry), config));
}

/// What a change does to the heads; the same as [`ShardState::apply_op`] does to the slots.
fn keep_heads(heads: &mut Heads, op: &WalOp) {
    match op {
        WalOp::Raft { truncate_from, append, .. } => {
            if let Some(from) = truncate_from {
                heads.split_off(from);
            }
            for entry in append {
                insert_head(heads, entry);
            }
        }
        WalOp::Install { base, keep_tail: true, .. } => {
            *heads = heads.split_off(&base.meta.last.index.next())
        }
        WalOp::Install { .. } => heads.clear(),
        WalOp::Compact(id) => *heads = heads.split_off(&id.index.next()),
        WalOp::MergeBegin(_) | WalOp::BaseAt(_) | WalOp::Regenerated(_) | WalOp::Damaged(_) => {}
    }
}

/// Heads of entries whose first copy is gone.
fn fill_heads(heads: &mut Heads, state: &ShardState, entries: &[Entry]) {
    for entry in entries {
        let unmet = state.slot(entry.id.index).is_some_and(|slot| !slot.is_met());
        if unmet {
            insert_head(heads, entry);
        }
    }
}
