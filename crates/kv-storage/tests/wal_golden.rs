//! The life of a WAL as scripts: `testscripts/wal`.
//!
//! Commands collect records (`raft`, `base`, `rewritten`, `merge`, `install`, `compact`, `damaged`), write them as one group
//! (`write`), call the host's duties (`note`, `prepare`, `release`), break things (`power`, `crash`, `flip`, `remove`,
//! `full`) and look (`open`, `verify`, `ls`).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its functions too")]

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use goldenscript::{ArgumentConsumer, Command, Context};
use kv_storage::disk::Disk as _;
use kv_storage::disk::faulty::{DirLoss, VirtualDisk};
use kv_storage::wal::{SegmentNo, Wal, WalOptions, WalRecovery, verify};
use kv_storage::{BaseNote, Generation, MergeNote, WalOp, WalRecord};
use kv_types::{
    Body, Entry, HardState, Incarnation, Lamport, LogId, LogIndex, Membership, NodeId, ShardId, SnapshotMeta,
    Term,
};
use test_each_file::test_each_path;

test_each_path! { in "crates/kv-storage/testscripts/wal" as scripts => script }

fn script(path: &Path) {
    goldenscript::run(&mut Runner::default(), path).expect("the script runs");
}

type Outcome = Result<String, Box<dyn Error>>;

#[derive(Default)]
struct Runner {
    disk: VirtualDisk,
    wal: Option<Wal>,
    group: Vec<WalRecord>,
}

const INCARNATION: Incarnation = Incarnation::new(0x5eed);

fn options() -> WalOptions {
    WalOptions {
        segment_bytes: 32 << 10,
        budget_bytes: 64 << 10,
        total_bytes_max: 128 << 10,
        reserve_bytes: 4 << 10,
        copy_bytes_max: 4 << 10,
        ballast_bytes: 0,
        ..WalOptions::new(INCARNATION)
    }
}

impl goldenscript::Runner for Runner {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Outcome {
        let mut args = command.consume_args();
        let output = match command.name.as_str() {
            "raft" | "base" | "rewritten" | "merge" | "install" | "compact" | "damaged" => {
                let shard = ShardId::new(number(&mut args, "shard")?.ok_or("which shard?")?.try_into()?);
                let op = op(&command.name, &mut args)?;
                self.group.push(WalRecord { shard, op });
                String::new()
            }
            "open" => self.open()?,
            "ls" => self.disk.list(Path::new("wal"))?.join("\n"),
            "verify" => verify(&self.disk, INCARNATION)?.to_string(),
            "power" => {
                self.disk.power_off_after(number(&mut args, "calls")?.ok_or("after how many calls?")?);
                String::new()
            }
            "crash" => self.crash(&mut args)?,
            "flip" => self.flip(&mut args)?,
            "remove" => {
                let segment =
                    SegmentNo::new(number(&mut args, "segment")?.ok_or("which segment?")?.try_into()?);
                self.disk.remove(&segment.path())?;
                String::new()
            }
            "full" => {
                let free = number(&mut args, "free")?.ok_or("how much is free?")?;
                let used = (1 << 40) - self.disk.free_bytes()?;
                self.disk.set_capacity(used + free);
                String::new()
            }
            _ => self.duty(&command.name)?,
        };
        args.reject_next()?;
        Ok(output)
    }
}

impl Runner {
    fn wal(&mut self) -> Result<&mut Wal, Box<dyn Error>> {
        Ok(self.wal.as_mut().ok_or("the WAL is not open")?)
    }

    fn duty(&mut self, name: &str) -> Outcome {
        let group = if name == "write" { std::mem::take(&mut self.group) } else { Vec::new() };
        let wal = self.wal()?;
        let before = wal.group();
        match name {
            "write" => wal.write(&group)?,
            "note" => {
                wal.sync_note()?;
                return Ok(format!("noted: group {} in {}", wal.group(), wal.active()));
            }
            "prepare" => wal.prepare_next()?,
            "release" => {
                let released = wal.release()?;
                return Ok(format!("{released:?}, {} bytes left", wal.bytes()));
            }
            other => return Err(format!("unknown command {other}").into()),
        }
        match wal.group() - before {
            0 => Ok("no group".to_owned()),
            _ => Ok(format!("group {} in {}", wal.group(), wal.active())),
        }
    }

    fn open(&mut self) -> Outcome {
        self.group.clear();
        let (wal, recovery) = Wal::open(Arc::new(self.disk.clone()), options())?;
        let output = describe(&wal, &recovery);
        self.wal = Some(wal);
        output
    }

    /// `keep`, `lose`, or `tear=<mask>` of the lost sectors of a small write; directories lose all or nothing.
    fn crash(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        self.wal = None;
        let torn = number(args, "tear")?;
        let lose = match (args.next_pos(), torn) {
            (Some("keep"), None) => false,
            (Some("lose"), None) | (None, Some(_)) => true,
            _ => return Err("keep, lose or tear=<mask>".into()),
        };
        let mask = torn.map(usize::try_from).transpose()?;
        let mut choose = |outcomes: usize| match mask {
            _ if !lose => 0,
            Some(mask) if outcomes == 256 => mask,
            _ => outcomes - 1,
        };
        self.disk = self.disk.crash(DirLoss::Any, &mut choose);
        Ok(String::new())
    }

    fn flip(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let segment = SegmentNo::new(number(args, "segment")?.ok_or("which segment?")?.try_into()?);
        let offset = number(args, "at")?.ok_or("which byte?")?;
        assert!(self.disk.flip(&segment.path(), offset, 0), "{segment} has no byte {offset}");
        Ok(String::new())
    }
}

fn number(args: &mut ArgumentConsumer<'_>, key: &str) -> Result<Option<u64>, Box<dyn Error>> {
    Ok(args.take_key(key).map(str::parse).transpose()?)
}

/// `t2i5`
fn id(text: &str) -> Result<LogId, Box<dyn Error>> {
    let (term, index) = text.trim_start_matches('t').split_once('i').ok_or("an id is written t1i1")?;
    Ok(LogId::new(Term::new(term.parse()?), LogIndex::new(index.parse()?)))
}

/// `t2i5-7x100`: entries 5 to 7 of term 2, 100 bytes each.
fn entries(text: &str) -> Result<Vec<Entry>, Box<dyn Error>> {
    let (ids, bytes) = text.split_once('x').ok_or("entries are written t1i1-2x10")?;
    let (first, last) = ids.split_once('-').map_or((ids, None), |(first, last)| (first, Some(last)));
    let first = id(first)?;
    let last = last.map(str::parse).transpose()?.unwrap_or(first.index.get());
    let bytes: usize = bytes.parse()?;
    let entry = |index| Entry {
        id: LogId::new(first.term, LogIndex::new(index)),
        stamp: Lamport::ZERO,
        body: Body::Command(Bytes::from(vec![b'x'; bytes])),
    };
    Ok((first.index.get()..=last).map(entry).collect())
}

fn hard(args: &mut ArgumentConsumer<'_>) -> Result<Option<HardState>, Box<dyn Error>> {
    let vote = number(args, "vote")?.map(NodeId::new);
    Ok(number(args, "term")?.map(|term| HardState { term: Term::new(term), vote, ..HardState::default() }))
}

fn base(args: &mut ArgumentConsumer<'_>) -> Result<BaseNote, Box<dyn Error>> {
    let generation = Generation::new(number(args, "gen")?.unwrap_or(0));
    let membership = Membership::of_voters([NodeId::new(1)]);
    let meta = SnapshotMeta { last: id(args.take_key("at").ok_or("a base at which entry?")?)?, membership };
    Ok(BaseNote { generation, meta, ..BaseNote::default() })
}

fn op(name: &str, args: &mut ArgumentConsumer<'_>) -> Result<WalOp, Box<dyn Error>> {
    Ok(match name {
        "raft" => WalOp::Raft {
            hard: hard(args)?,
            truncate_from: number(args, "truncate")?.map(LogIndex::new),
            append: args.take_key("append").map(entries).transpose()?.unwrap_or_default(),
        },
        "base" => WalOp::BaseAt(base(args)?),
        "rewritten" => WalOp::Regenerated(base(args)?),
        "install" => WalOp::Install {
            hard: hard(args)?,
            keep_tail: args.take_key("keep_tail") == Some("true"),
            base: base(args)?,
        },
        "merge" => WalOp::MergeBegin(MergeNote {
            generation: Generation::new(number(args, "gen")?.unwrap_or(0)),
            from: LogIndex::new(number(args, "from")?.unwrap_or(0)),
            to: LogIndex::new(number(args, "to")?.ok_or("a merge to which entry?")?),
        }),
        "compact" => WalOp::Compact(id(args.take_key("upto").ok_or("up to which entry?")?)?),
        _ => WalOp::Damaged(Generation::new(number(args, "gen")?.unwrap_or(0))),
    })
}

fn describe(wal: &Wal, recovery: &WalRecovery) -> Outcome {
    let mut out = String::new();
    let segments: Vec<_> = recovery.segments.iter().map(ToString::to_string).collect();
    writeln!(out, "read {} groups of [{}], writing {}", recovery.groups, segments.join(", "), wal.active())?;
    if let Some(torn) = recovery.torn {
        writeln!(out, "cut a torn group at {} byte {}", torn.segment, torn.offset)?;
    }
    for no in &recovery.unbegun {
        writeln!(out, "removed {no}, never begun")?;
    }
    for (shard, state) in &recovery.shards {
        let vote = state.hard.vote.map_or_else(|| "nobody".to_owned(), |vote| vote.to_string());
        write!(
            out,
            "{shard}: {} voted {vote}, base {} {}",
            state.hard.term, state.base.generation, state.base.meta.last
        )?;
        if let Some(merge) = state.merge {
            write!(out, ", merging to {}", merge.to)?;
        }
        if let Some(damaged) = state.damaged {
            write!(out, ", {damaged} damaged")?;
        }
        write!(out, ", log after {}:", state.log_start)?;
        for head in &state.entries {
            let read = wal.reader().read(*shard, head.id.index..=head.id.index, 0)?;
            assert_eq!(read.first().map(|entry| entry.body.payload_bytes()), Some(head.payload_bytes));
            write!(out, " {}x{}", head.id, head.payload_bytes)?;
        }
        writeln!(out)?;
    }
    Ok(out)
}
