//! What a crash leaves.

use std::sync::Arc;

use bytes::Bytes;

use super::tree::{FileOp, Stage, Tree, apply_dir, apply_file};
use super::{DirLoss, SECTOR_BYTES, VirtualDisk};

/// Writes of up to this many sectors are torn in every possible way, larger ones in the patterns of [`tear`].
const TORN_EXHAUSTIVELY_MAX: usize = 8;

/// Decides what a crash does: picks one of several outcomes.
pub trait Chooser {
    /// One of `0..outcomes`; 0 is "kept whole". A larger answer counts modulo `outcomes`.
    fn choose(&mut self, outcomes: usize) -> usize;
}

impl<F: FnMut(usize) -> usize> Chooser for F {
    fn choose(&mut self, outcomes: usize) -> usize {
        self(outcomes)
    }
}

pub(super) fn crash(tree: &Tree, loss: DirLoss, chooser: &mut dyn Chooser) -> Tree {
    let mut left = tree.clone();
    for file in left.files.values_mut() {
        let mut image = Arc::clone(&file.durable);
        for (stage, op) in file.pending.drain(..) {
            let kept = if stage == Stage::Settled { vec![op] } else { survive(&image, op, chooser) };
            for op in kept {
                apply_file(Arc::make_mut(&mut image), &op);
            }
        }
        file.durable = Arc::clone(&image);
        file.current = image;
    }
    for dir in left.dirs.values_mut() {
        let fresh = dir.pending.iter().filter(|(stage, _)| *stage != Stage::Settled).count();
        let lost = match loss {
            DirLoss::Prefix if fresh > 0 => chooser.choose(fresh + 1) % (fresh + 1),
            DirLoss::Prefix | DirLoss::Any => 0,
        };
        let mut at = 0;
        for (stage, op) in dir.pending.drain(..) {
            let unsynced = stage != Stage::Settled;
            at += usize::from(unsynced);
            let kept = match loss {
                DirLoss::Prefix => !unsynced || at + lost <= fresh,
                DirLoss::Any => !unsynced || chooser.choose(2).is_multiple_of(2),
            };
            if kept {
                apply_dir(&mut dir.durable, &op);
            }
        }
        dir.current = dir.durable.clone();
    }
    left
}

/// The parts of an operation that reach the disk.
fn survive(image: &[u8], op: FileOp, chooser: &mut dyn Chooser) -> Vec<FileOp> {
    let FileOp::Write { offset, bytes } = op else {
        return if chooser.choose(2).is_multiple_of(2) { vec![op] } else { Vec::new() };
    };
    let sectors = bytes.len().div_ceil(SECTOR_BYTES);
    // Zeros beyond the end can only differ in how far the file grew.
    let plain_growth = offset >= image.len() as u64 && bytes.iter().all(|byte| *byte == 0);
    let kept: Vec<bool> = if plain_growth {
        let cut = match chooser.choose(3) % 3 {
            0 => sectors,
            1 => 0,
            _ => sectors / 2,
        };
        (0..sectors).map(|sector| sector < cut).collect()
    } else if sectors <= TORN_EXHAUSTIVELY_MAX {
        let mask = chooser.choose(1 << sectors);
        (0..sectors).map(|sector| mask >> sector & 1 == 0).collect()
    } else {
        let pattern = chooser.choose(tears(sectors)) % tears(sectors);
        (0..sectors).map(|sector| tear(sectors, pattern, sector)).collect()
    };
    pieces(offset, &bytes, &kept)
}

/// Number of patterns of [`tear`].
fn tears(sectors: usize) -> usize {
    3 * sectors + 1
}

/// Whether a large torn write keeps `sector`: cut short, only the rest, one sector lost, or every second one.
fn tear(sectors: usize, pattern: usize, sector: usize) -> bool {
    let arm = pattern % sectors;
    match pattern / sectors {
        0 => arm == 0 || sector < arm,
        1 => sector > arm,
        2 => sector != arm,
        _ => sector % 2 == 1,
    }
}

fn pieces(offset: u64, bytes: &Bytes, kept: &[bool]) -> Vec<FileOp> {
    let whole = kept.iter().all(|kept| *kept);
    if whole {
        return vec![FileOp::Write { offset, bytes: bytes.clone() }];
    }
    let sectors = kept.iter().enumerate().filter(|(_, kept)| **kept);
    sectors
        .map(|(sector, _)| {
            let start = sector * SECTOR_BYTES;
            let end = bytes.len().min(start + SECTOR_BYTES);
            FileOp::Write { offset: offset + start as u64, bytes: bytes.slice(start..end) }
        })
        .collect()
}

/// Counts through all sequences of choices like an odometer whose digits have different ranges.
#[derive(Debug, Default)]
struct Odometer {
    digits: Vec<(usize, usize)>,
    at: usize,
}

impl Odometer {
    /// Moves to the next sequence; false after the last.
    fn advance(&mut self) -> bool {
        self.digits.truncate(self.at);
        self.at = 0;
        while let Some((digit, outcomes)) = self.digits.pop() {
            if digit + 1 < outcomes {
                self.digits.push((digit + 1, outcomes));
                return true;
            }
        }
        false
    }
}

impl Chooser for Odometer {
    fn choose(&mut self, outcomes: usize) -> usize {
        if self.at == self.digits.len() {
            self.digits.push((0, outcomes));
        }
        self.at += 1;
        self.digits.get(self.at - 1).map_or(0, |(digit, _)| *digit)
    }
}

/// The images that [`VirtualDisk::legal_images`] enumerates.
#[derive(Debug)]
pub struct LegalImages {
    tree: Tree,
    capacity: u64,
    loss: DirLoss,
    left: usize,
    odometer: Odometer,
    done: bool,
}

impl LegalImages {
    pub(super) fn new(tree: Tree, capacity: u64, loss: DirLoss, limit: usize) -> Self {
        Self { tree, capacity, loss, left: limit, odometer: Odometer::default(), done: false }
    }
}

impl Iterator for LegalImages {
    type Item = VirtualDisk;

    fn next(&mut self) -> Option<VirtualDisk> {
        if self.done || self.left == 0 {
            return None;
        }
        self.left -= 1;
        let image = crash(&self.tree, self.loss, &mut self.odometer);
        self.done = !self.odometer.advance();
        Some(VirtualDisk::of_tree(image, self.capacity))
    }
}
