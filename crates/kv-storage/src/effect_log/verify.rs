//! Looking at an effect log that nobody has open, and telling damage from what a crash leaves.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kv_types::{LogIndex, ShardId};

use super::effects_dir;
use super::frames::{Frame, Frames, HEADER_BYTES, header, is_header};
use crate::disk::{Disk, DiskFile};
use crate::effect::AppliedEntry;
use crate::notes::Generation;
use crate::store_error::StoreError;

/// How far behind bad bytes a sound record is looked for.
const LOOK_BEHIND_BYTES: u64 = 2 << 20;

/// What an effect log holds, for a report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EffectReport {
    /// Files of the current generation.
    pub files: usize,
    /// Sound records in them.
    pub records: u64,
    /// Where bytes are that are no record.
    pub unsound: Vec<Unsound>,
}

/// Bytes of an effect file that are no record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsound {
    /// The file.
    pub path: PathBuf,
    /// Where they begin.
    pub at: u64,
    /// The last sound entry before them.
    pub after: LogIndex,
    /// Whether records follow: then something was damaged. At the end of a log a crash leaves such bytes, too.
    pub damaged: bool,
}

/// Reads the effect log of a shard that nobody has open, and changes nothing.
///
/// # Errors
/// [`StoreError::Io`] of the disk; damage is in the report.
pub fn verify_effects(
    disk: &dyn Disk,
    shard: ShardId,
    generation: Generation,
) -> Result<EffectReport, StoreError> {
    let dir = effects_dir(shard);
    let mut report = EffectReport::default();
    let names = disk.list(&dir)?;
    let files = names.iter().filter_map(|name| Some((dir.join(name), LogIndex::new(name.parse().ok()?))));
    for (path, first) in files {
        // A log goes on behind this file: it was whole once.
        for unsound in &mut report.unsound {
            unsound.damaged = true;
        }
        let file = disk.open(&path)?;
        let mut head = vec![0; header(shard, generation, first).len()];
        let count = file.read_at(0, &mut head)?;
        if head == header(shard, generation, first) {
            report.files += 1;
            scan(&file, &path, first, &mut report)?;
        } else if count < head.len() || !is_header(&head) {
            report.unsound.push(Unsound { path, at: 0, after: first.prev(), damaged: false });
        }
    }
    Ok(report)
}

fn scan(
    file: &Arc<dyn DiskFile>,
    path: &Path,
    first: LogIndex,
    report: &mut EffectReport,
) -> Result<(), StoreError> {
    let end = file.len()?;
    let mut frames = Frames::new(Arc::clone(file), HEADER_BYTES, end);
    let (mut next, mut at) = (first, HEADER_BYTES);
    let bad_at = loop {
        match frames.next()? {
            Frame::Record { at, body } if index_of(body.clone()) != Some(next) => break at,
            Frame::Record { at: from, body } => {
                report.records += 1;
                next = next.next();
                at = from + 8 + body.len() as u64;
            }
            Frame::End => return Ok(()),
            Frame::Bad { .. } => break at,
        }
    };
    let damaged = record_behind(file, bad_at, end, next)?;
    report.unsound.push(Unsound { path: path.to_owned(), at: bad_at, after: next.prev(), damaged });
    Ok(())
}

/// Whether a later record begins within reach of bad bytes. The length among them may be bad, so every place is tried.
fn record_behind(
    file: &Arc<dyn DiskFile>,
    bad_at: u64,
    end: u64,
    wanted: LogIndex,
) -> Result<bool, StoreError> {
    for at in bad_at + 1..end.min(bad_at + LOOK_BEHIND_BYTES) {
        // Most places do not even hold a length that fits, which is cheap to see.
        let mut length = [0; 4];
        let read = file.read_at(at, &mut length)?;
        let length = u64::from(u32::from_le_bytes(length));
        if read < 4 || length == 0 || at + 8 + length > end {
            continue;
        }
        if let Frame::Record { body, .. } = Frames::new(Arc::clone(file), at, end).next()?
            && index_of(body).is_some_and(|index| index > wanted)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn index_of(body: bytes::Bytes) -> Option<LogIndex> {
    AppliedEntry::decode(body).ok().map(|entry| entry.id.index)
}

#[cfg(test)]
mod tests {
    use kv_types::{Lamport, LogId, StateHash, Term};

    use super::super::{EffectLog, EffectLogStart};
    use super::*;
    use crate::disk::faulty::VirtualDisk;

    const SHARD: ShardId = ShardId::new(1);

    /// A log of two files of ten records each.
    fn log() -> VirtualDisk {
        let disk = VirtualDisk::new();
        let start = EffectLogStart {
            shard: SHARD,
            generation: Generation::new(1),
            base: LogIndex::ZERO,
            needed: LogIndex::ZERO,
            wal_last: LogIndex::new(100),
            file_bytes_max: 360,
        };
        let log = EffectLog::open(Arc::new(disk.clone()), &start, &mut |_, _| ()).unwrap();
        for index in 1..=20 {
            let id = LogId { term: Term::new(1), index: LogIndex::new(index) };
            let (stamp, hash) = (Lamport::ZERO, StateHash::EMPTY);
            log.append(&AppliedEntry { id, stamp, membership: None, changes: Vec::new(), hash }).unwrap();
        }
        log.flush().unwrap();
        log.sync().unwrap();
        disk
    }

    fn report(disk: &VirtualDisk) -> EffectReport {
        verify_effects(disk, SHARD, Generation::new(1)).unwrap()
    }

    #[test]
    fn every_flipped_byte_but_of_the_last_record_is_damage_and_nothing_is_changed() {
        let disk = log();
        let sound = report(&disk);
        assert!(sound.files >= 2 && sound.records == 20 && sound.unsound.is_empty(), "{sound:?}");
        let names = disk.list(&effects_dir(SHARD)).unwrap();
        for (nth, name) in names.iter().enumerate() {
            let path = effects_dir(SHARD).join(name);
            let bytes = disk.open(&path).unwrap().len().unwrap();
            for offset in 0..bytes {
                let bad = disk.copy();
                assert!(bad.flip(&path, offset, 2));
                let calls = bad.calls();
                let found = report(&bad);
                let unsound = found.unsound.first().unwrap_or_else(|| panic!("{name} {offset}: {found:?}"));
                assert_eq!((&unsound.path, bad.calls()), (&path, calls));
                let last_record = nth + 1 == names.len() && found.records == 19;
                let last_header = nth + 1 == names.len() && offset < HEADER_BYTES;
                assert!(unsound.damaged || last_record || last_header, "{name} {offset}: {found:?}");
            }
        }
    }
}
