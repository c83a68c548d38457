//! The write-ahead log of a node, shared by all its shards.
//!
//! # Terms
//! - A *record* is one change of one shard; it is written whole or not at all and bears the shard's own sequence
//!   number.
//! - A *group* is what one fdatasync makes durable: the records of one [`Wal::write`], padded to whole blocks. It is
//!   the unit of a torn tail: nothing orders the sectors of a group, so one bad record condemns all of it.
//! - A *segment* is a file that groups fill from the front. Its first group is the *manifest*: hard state,
//!   notes and log bounds of every shard, and where the segment before it ends. So a quiet shard pins no segment.
//! - A *spare* is the file of a segment that was released, under a new number, its old bytes still in it.
//!
//! # How it works
//! [`Wal::write`] encodes its records into one buffer, writes it behind the last group and syncs. If it does not fit,
//! the ready segment is begun with a manifest. A group is written only when the one before it is durable. Hence the
//! rule of recovery: a bad group with a sound header of a later group anywhere behind it, or a later segment, or a note that
//! it was durable, is *corruption*; any other bad group is a *torn tail* and is cut. After a restart nothing
//! is appended to an old segment: a new one is begun, whose number no file ever had and whose checksums therefore match
//! no older bytes.
//!
//! The next segment is the oldest spare, or else a file of zeros: either has its length and its blocks already, so that a
//! sync has nothing to record but the bytes. (A file that is waited for is taken before all zeros are written, if its blocks
//! are reserved: the rest reads as zeros, too, and only syncs into it record more.) Old bytes of a spare match no checksum of its new number, so they are not taken for
//! groups; but at the end of its groups they cannot be told from a group torn before its header was written, and no
//! torn tail is reported there.
//!
//! The last group cannot be told from a torn one if it rots, nor a newest segment that is gone from one never begun. So a
//! file beside the segments, `durable`, says which segment was begun last, before a group stands behind its manifest; and
//! [`Wal::sync_note`] has it say up to which group all is durable, once nothing more comes.
//!
//! [`Wal::release`] drops segments strictly oldest first: a truncation in a newer one must not vanish before the
//! entries it truncated. Only entries pin a segment: those above the base note (*redo*) and those kept for slow
//! followers. Few of the latter are copied forward as a `Copied` record, durable before the unlink.
//!
//! # What it does not do
//! It starts no thread and knows no time: the host calls [`Wal::sync_note`] and [`Wal::prepare_next`] when it is idle,
//! and decides what to checkpoint or compact when [`Released`] says who pins. It never retries a failed sync.

mod bytes_reader;
mod codec;
mod create;
mod durable;
mod error;
mod layout;
mod reader;
mod recovery;
mod release;
mod segment;
mod slots;
mod state;
mod verify;
mod writer;

pub(crate) use codec::entry_bytes;
pub use create::{Hurry, NextSegment, WalOptions, free_ballast};
pub use durable::DurableNote;
pub use error::{Corruption, WalError};
pub use layout::SegmentNo;
pub use reader::{LogReader, Unmerged};
pub use recovery::{EntryHead, RecoveredShard, TornTail, WalRecovery};
pub use release::Released;
pub use verify::{SegmentReport, WalReport, verify};
pub use writer::Wal;
