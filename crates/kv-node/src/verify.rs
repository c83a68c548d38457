//! `kvnode verify-data`: what is in a data directory, and whether it is sound. Reads only.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use kv_storage::data_dir::{DataDir, DataDirError};
use kv_storage::disk::{Disk, ReadOnlyDisk};
use kv_storage::wal::{self, RecoveredShard, WalError};
use kv_storage::{
    CeilingFile, Engine, EngineError, EngineFactory, ShardStore, SledFactory, StoreOptions, StoreStart,
    Unsound, verify_base, verify_effects,
};
use kv_types::ShardId;

use crate::identity::{Identity, IdentityError};

/// Cache for the bases while they are read.
const CACHE_BYTES: u64 = 64 << 20;

/// Why a directory cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It cannot be opened.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// It is not a node's.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It is empty.
    #[error("{0} holds no node's data")]
    Empty(String),
    /// The operating system refuses.
    #[error("the data directory cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// The WAL cannot be read at all.
    #[error(transparent)]
    Wal(#[from] WalError),
}

/// What was found.
#[derive(Debug)]
pub struct Report {
    /// For people: what is where.
    pub text: String,
    /// Whether everything is sound.
    pub sound: bool,
}

/// Looks at everything in a data directory that no node has open.
///
/// # Errors
/// [`VerifyError`] if it cannot be looked at; damage is in the report.
pub fn verify(root: &Path) -> Result<Report, VerifyError> {
    let dir = existing(root)?;
    let Some(identity) = dir.read_identity()? else {
        return Err(VerifyError::Empty(root.display().to_string()));
    };
    let identity = Identity::decode(&identity)?;
    let disk = dir.disk();
    let mut report = Report { text: String::new(), sound: true };
    report.say(&format!(
        "node {} of cluster {}, incarnation {}, {:?}",
        identity.node, identity.cluster, identity.incarnation, identity.stage
    ));
    let ceiling = CeilingFile::open(dir.disk())?;
    report.say(&format!("the Lamport clock is below {}", ceiling.durable().saturating_add(1)));
    let wal = wal::verify(disk.as_ref(), identity.incarnation)?;
    for segment in &wal.segments {
        let shards: Vec<String> = segment.shards.iter().map(ToString::to_string).collect();
        report.say(&format!(
            "wal {:?}: {} bytes, {} groups, {} records of {}",
            segment.segment,
            segment.bytes,
            segment.groups,
            segment.records,
            if shards.is_empty() { "no shard".to_owned() } else { shards.join(" ") }
        ));
    }
    let recovery = match wal.recovery {
        Ok(recovery) => recovery,
        Err(error) => {
            report.damage(&format!("wal: {error}"));
            return Ok(report);
        }
    };
    let engines = Arc::new(SledFactory::new(disk.as_ref().clone(), CACHE_BYTES));
    for (shard, recovered) in recovery.shards {
        report.shard(shard, &recovered, &(Arc::clone(&disk) as Arc<dyn Disk>), &engines);
    }
    Ok(report)
}

impl Report {
    fn say(&mut self, line: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{line}");
    }

    fn damage(&mut self, line: &str) {
        self.sound = false;
        self.say(&format!("DAMAGED {line}"));
    }

    fn shard(
        &mut self,
        shard: ShardId,
        recovered: &RecoveredShard,
        disk: &Arc<dyn Disk>,
        engines: &Arc<SledFactory>,
    ) {
        let (base, last) = (&recovered.base, recovered.last());
        self.say(&format!(
            "{shard}: term {}, log ({}, {last}], base {} at {}",
            recovered.hard.term, recovered.log_start, base.generation, base.meta.last
        ));
        match verify_base(engines.as_ref(), shard, base.generation) {
            Err(error) => self.damage(&format!("{shard} sled: {error}")),
            Ok(found) => {
                let merging = recovered.merge.is_some();
                let text = format!(
                    "{shard} sled: {} rows, {} bytes of values, {} bytes on disk, hash {}{}",
                    found.rows,
                    found.value_bytes,
                    found.disk_bytes,
                    found.hash,
                    if merging { ", a merge is under way" } else { "" }
                );
                if found.is_sound() || merging { self.say(&text) } else { self.damage(&text) }
            }
        }
        self.effects(shard, recovered, disk.as_ref());
        let start = StoreStart::of(shard, recovered);
        let opened = ShardStore::open(
            Arc::new(ReadOnlyDisk::new(Arc::clone(disk))),
            Arc::new(KeepAll(Arc::clone(engines))),
            start,
            StoreOptions::default(),
        );
        let verified = opened.map_err(|error| error.to_string()).and_then(|(store, opened)| {
            store.verify().map(|hash| (opened.applied, hash)).map_err(|error| error.to_string())
        });
        match verified {
            Ok((applied, hash)) => self.say(&format!("{shard} state: applied {applied}, hash {hash}, sound")),
            Err(error) => self.damage(&format!("{shard} state: {error}")),
        }
    }
}

impl Report {
    /// The effects after the base can be done again from the WAL, so a node heals what is damaged here when it starts.
    fn effects(&mut self, shard: ShardId, recovered: &RecoveredShard, disk: &dyn Disk) {
        let report = match verify_effects(disk, shard, recovered.base.generation) {
            Ok(report) => report,
            Err(error) => return self.damage(&format!("{shard} effects: {error}")),
        };
        self.say(&format!("{shard} effects: {} records in {} files", report.records, report.files));
        for Unsound { path, at, after, damaged } in report.unsound {
            let place = format!("{shard} effects: {} from byte {at} on, after entry {after}", path.display());
            let cure = "a start does again what follows, from the write-ahead log";
            if damaged {
                self.damage(&format!("{place}; {cure}"));
            } else {
                self.say(&format!("{place}: unsound, as a crash leaves the end of a log; {cure}"));
            }
        }
    }
}

/// Engines of which none is removed: opening a store removes those that no record names.
#[derive(Debug)]
struct KeepAll(Arc<SledFactory>);

impl EngineFactory for KeepAll {
    fn open(&self, dir: &Path, create: bool) -> Result<Arc<dyn Engine>, EngineError> {
        self.0.open(dir, create)
    }

    fn remove(&self, _: &Path) -> Result<(), EngineError> {
        Ok(())
    }

    fn list(&self, parent: &Path) -> Result<Vec<String>, EngineError> {
        self.0.list(parent)
    }
}

/// Deletes the file that only takes room, so that a node with a full disk can start; whether there was one.
///
/// # Errors
/// [`VerifyError`] if the directory is in use or cannot be changed.
pub fn free_ballast(root: &Path) -> Result<bool, VerifyError> {
    let dir = existing(root)?;
    Ok(wal::free_ballast(dir.disk().as_ref())?)
}

/// Opens a data directory that is there: opening creates it, and a mistyped path must not leave one behind.
fn existing(root: &Path) -> Result<DataDir, VerifyError> {
    if !root.is_dir() {
        return Err(VerifyError::Empty(root.display().to_string()));
    }
    Ok(DataDir::open(root)?)
}
