//! `kvnode verify-data`: what is in a data directory, and whether it is sound. Reads only.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use kv_storage::data_dir::{DataDir, DataDirError};
use kv_storage::disk::Disk;
use kv_storage::wal::{self, RecoveredShard, WalError};
use kv_storage::{
    CeilingFile, EngineFactory, ShardStore, SledFactory, StoreOptions, StoreStart, verify_base,
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
        let start = StoreStart { shard, base: base.clone(), merge: recovered.merge, wal_last: last.index };
        let opened = ShardStore::open(
            Arc::clone(disk),
            Arc::clone(engines) as Arc<dyn EngineFactory>,
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
