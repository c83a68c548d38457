//! Reads a WAL offline and says what is where and whether it is sound; changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use kv_types::{Incarnation, LogId, ShardId};

use super::codec::KIND_MANIFEST;
use super::error::{WalError, io_error};
use super::layout::{SegmentNo, WAL_DIR};
use super::recovery::{self, RecoveredShard, WalRecovery};
use super::segment::{GroupAt, Segment};
use crate::disk::Disk;

/// What a segment holds, whether or not the WAL as a whole recovers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentReport {
    /// The segment.
    pub segment: SegmentNo,
    /// Length of the file.
    pub bytes: u64,
    /// Whether it begins with a sound manifest.
    pub manifest: bool,
    /// Sound groups, the manifest included.
    pub groups: u64,
    /// Records in them.
    pub records: u64,
    /// Whose they are, the manifest's aside.
    pub shards: BTreeSet<ShardId>,
    /// Blocks where a sound group should stand and does not. One behind the last group of the newest segment, or of one
    /// that was the newest when the node stopped, is a torn tail and no damage.
    pub bad: Vec<u64>,
}

/// What [`verify`] found.
#[derive(Debug)]
pub struct WalReport {
    /// Every segment, oldest first.
    pub segments: Vec<SegmentReport>,
    /// What recovery would say.
    pub recovery: Result<WalRecovery, WalError>,
}

impl WalReport {
    /// Whether a node could start with this WAL.
    pub fn is_sound(&self) -> bool {
        self.recovery.is_ok()
    }
}

/// Reads every segment and recovers in memory, entry checksums included.
///
/// # Errors
/// Of the operating system, and for another incarnation or format; damage is in the report.
pub fn verify(disk: &dyn Disk, incarnation: Incarnation) -> Result<WalReport, WalError> {
    let names = disk.list(Path::new(WAL_DIR)).map_err(io_error("list", WAL_DIR))?;
    let mut numbers: Vec<SegmentNo> = names.iter().filter_map(|name| SegmentNo::of_name(name)).collect();
    numbers.sort_unstable();
    let mut segments = Vec::new();
    for no in numbers {
        segments.push(report(Segment::open(disk, no, incarnation)?)?);
    }
    let recovery = recovery::scan(disk, incarnation).map(|scanned| scanned.recovery);
    Ok(WalReport { segments, recovery })
}

fn report(mut segment: Segment) -> Result<SegmentReport, WalError> {
    let manifest = segment.manifest()?.is_some();
    let (groups, records, shards) = (0, 0, BTreeSet::new());
    let bad = Vec::new();
    let mut report =
        SegmentReport { segment: segment.no, bytes: segment.bytes, manifest, groups, records, shards, bad };
    let mut next = Some(0);
    while let Some(offset) = next {
        next = match segment.group(offset)? {
            GroupAt::Sound(header, records) => {
                report.groups += 1;
                report.records += records.len() as u64;
                let own = records.iter().filter(|record| record.header.kind != KIND_MANIFEST);
                report.shards.extend(own.map(|record| record.header.shard));
                Some(offset + header.padded_bytes())
            }
            unsound => {
                let later = segment.header_after(offset)?.map(|header| header.offset);
                if later.is_some() || matches!(unsound, GroupAt::Bad { .. }) {
                    report.bad.push(offset);
                }
                later
            }
        };
    }
    Ok(report)
}

fn list(f: &mut fmt::Formatter<'_>, shards: &BTreeSet<ShardId>) -> fmt::Result {
    shards.iter().try_for_each(|shard| write!(f, " {shard}"))
}

impl fmt::Display for SegmentReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.manifest && self.groups == 0 && self.bad.is_empty() {
            return write!(f, "{}: {} bytes, not begun", self.segment, self.bytes);
        }
        write!(
            f,
            "{}: {} bytes, {} groups, {} records",
            self.segment, self.bytes, self.groups, self.records
        )?;
        if !self.shards.is_empty() {
            f.write_str(", shards")?;
            list(f, &self.shards)?;
        }
        if !self.manifest {
            f.write_str(", no sound manifest")?;
        }
        self.bad.iter().try_for_each(|offset| write!(f, ", not sound at byte {offset}"))
    }
}

fn shard_line(f: &mut fmt::Formatter<'_>, shard: ShardId, state: &RecoveredShard) -> fmt::Result {
    let last: LogId = state.last();
    write!(f, "{shard}: {}", state.hard.term)?;
    if let Some(vote) = state.hard.vote {
        write!(f, " voted {vote}")?;
    }
    write!(f, ", log {} to {last} ({} entries)", state.log_start, state.entries.len())?;
    write!(f, ", base {} at {}", state.base.generation, state.base.meta.last)?;
    if let Some(merge) = state.merge {
        write!(f, ", merging {} to {}", merge.from, merge.to)?;
    }
    if let Some(damaged) = state.damaged {
        write!(f, ", {damaged} damaged")?;
    }
    writeln!(f)
}

fn shard_lines(f: &mut fmt::Formatter<'_>, shards: &BTreeMap<ShardId, RecoveredShard>) -> fmt::Result {
    shards.iter().try_for_each(|(shard, state)| shard_line(f, *shard, state))
}

impl fmt::Display for WalReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.segments {
            writeln!(f, "{segment}")?;
        }
        match &self.recovery {
            Ok(recovery) => {
                if let Some(noted) = recovery.noted {
                    writeln!(f, "{}, group {}: known to be durable", noted.segment, noted.group)?;
                }
                shard_lines(f, &recovery.shards)?;
                if let Some(torn) = recovery.torn {
                    writeln!(f, "torn tail at {} byte {}: never acknowledged", torn.segment, torn.offset)?;
                }
                writeln!(f, "sound")
            }
            Err(error) => writeln!(f, "not sound: {error}"),
        }
    }
}
