//! What is still to come for growing text.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use super::append_words::Claims;
use super::{AppendOp, AppendState, Expected, Outlook};

/// How many reads are looked at before a state is called hopeless: the next ones tell the most.
const READS_AHEAD: usize = 8;

/// Which reads are to come, and which writes they can still begin with.
///
/// A read is *bound* if no write is left with whose text its result begins. From now on until it, therefore, nothing is
/// written, only appended, and the present text must be the beginning of its result.
#[derive(Clone, Debug, Default)]
pub struct AppendOutlook {
    /// For each operation what it is to the outlook.
    roles: Vec<Role>,
    /// The reads that returned, in the order of their returns.
    reads: Vec<Wanted>,
    /// The writes, those of one text together.
    writes: Vec<Offered>,
    /// The bound reads that are not placed yet, by their number among the reads.
    bound: BTreeSet<usize>,
    /// The texts that are still to be read, and how often.
    texts: BTreeMap<Arc<str>, usize>,
    claims: Claims,
    /// Whether each operation is placed.
    placed: Vec<bool>,
    /// How many appends were placed before the write they can only come after.
    premature: usize,
}

#[derive(Clone, Copy, Debug)]
enum Role {
    /// A read that returned, by its number among the reads.
    Read(usize),
    /// A write, by the number of its text.
    Write(usize),
    /// An append, or a read that never returned.
    Other,
}

#[derive(Clone, Debug)]
struct Wanted {
    text: Arc<str>,
    /// How many texts it can begin with are still to be written.
    sources: usize,
    is_placed: bool,
}

#[derive(Clone, Debug)]
struct Offered {
    /// How many writes of this text are left.
    left: usize,
    /// The reads that begin with it.
    reads: Vec<usize>,
}

impl AppendOutlook {
    pub(super) fn new(ops: &[Expected<'_, AppendOp>]) -> Self {
        let mut outlook = Self {
            roles: vec![Role::Other; ops.len()],
            claims: Claims::new(ops),
            placed: vec![false; ops.len()],
            ..Self::default()
        };
        let mut texts: BTreeMap<&str, usize> = BTreeMap::new();
        let mut reads = Vec::new();
        for (number, expected) in ops.iter().enumerate() {
            match (expected.op, expected.ret) {
                (AppendOp::Read(Some(text)), Some(ret)) => reads.push((ret, number, text)),
                (AppendOp::Write(text), _) => {
                    let at = *texts.entry(text.as_ref()).or_insert(outlook.writes.len());
                    if at == outlook.writes.len() {
                        outlook.writes.push(Offered { left: 0, reads: Vec::new() });
                    }
                    outlook.set_role(number, Role::Write(at));
                    outlook.writes.get_mut(at).into_iter().for_each(|write| write.left += 1);
                }
                (AppendOp::Read(_) | AppendOp::Append(_), _) => {}
            }
        }
        reads.sort_unstable_by_key(|(ret, number, _)| (*ret, *number));
        let lengths: BTreeSet<usize> = texts.keys().map(|text| text.len()).collect();
        for (_, number, text) in reads {
            let read = outlook.reads.len();
            outlook.set_role(number, Role::Read(read));
            let beginnings = lengths.iter().filter_map(|length| texts.get(text.get(..*length)?));
            let mut sources = 0;
            for write in beginnings {
                outlook.writes.get_mut(*write).into_iter().for_each(|write| write.reads.push(read));
                sources += 1;
            }
            outlook.reads.push(Wanted { text: text.clone(), sources, is_placed: true });
            outlook.place_read(read, false);
        }
        outlook
    }

    fn set_role(&mut self, number: usize, role: Role) {
        self.roles.get_mut(number).into_iter().for_each(|slot| *slot = role);
    }

    fn role(&self, number: usize) -> Role {
        self.roles.get(number).copied().unwrap_or(Role::Other)
    }

    fn is_placed(&self, number: usize) -> bool {
        self.placed.get(number).copied().unwrap_or_default()
    }

    fn set_placed(&mut self, number: usize, is_placed: bool) {
        self.placed.get_mut(number).into_iter().for_each(|placed| *placed = is_placed);
    }

    /// Sorts a read in or out after it changed.
    fn bind(&mut self, read: usize) {
        if self.reads.get(read).is_some_and(|wanted| wanted.sources == 0 && !wanted.is_placed) {
            self.bound.insert(read);
        } else {
            self.bound.remove(&read);
        }
    }

    fn place_read(&mut self, read: usize, is_placed: bool) {
        let Some(wanted) = self.reads.get_mut(read) else { return };
        wanted.is_placed = is_placed;
        let times = self.texts.entry(wanted.text.clone()).or_default();
        if is_placed {
            *times -= 1
        } else {
            *times += 1
        }
        if *times == 0 {
            let text = wanted.text.clone();
            self.texts.remove(&text);
        }
        self.bind(read);
    }

    /// Counts a write of a text in or out, and tells the reads that begin with it.
    fn count_write(&mut self, at: usize, is_left: bool) {
        let Some(write) = self.writes.get_mut(at) else { return };
        let turns = if is_left { write.left == 0 } else { write.left == 1 };
        if is_left {
            write.left += 1
        } else {
            write.left -= 1
        }
        if !turns {
            return;
        }
        let reads = std::mem::take(&mut write.reads);
        for read in &reads {
            if let Some(wanted) = self.reads.get_mut(*read) {
                if is_left { wanted.sources += 1 } else { wanted.sources -= 1 }
            }
            self.bind(*read);
        }
        if let Some(write) = self.writes.get_mut(at) {
            write.reads = reads;
        }
    }

    /// Whether the operation is an append that can only come after a write which is not placed.
    fn is_premature(&self, number: usize) -> bool {
        let base = self.claims.bases.get(number).copied().flatten();
        base.is_some_and(|base| !self.is_placed(base))
    }

    /// Whether some read to come begins with this text.
    fn is_awaited(&self, beginning: &str) -> bool {
        let mut from = self.texts.range::<str, _>((Bound::Included(beginning), Bound::Unbounded));
        from.next().is_some_and(|(text, _)| text.starts_with(beginning))
    }
}

impl Outlook<AppendState> for AppendOutlook {
    fn take(&mut self, number: usize) {
        self.premature += usize::from(self.is_premature(number));
        self.set_placed(number, true);
        match self.role(number) {
            Role::Read(read) => self.place_read(read, true),
            Role::Write(at) => self.count_write(at, false),
            Role::Other => {}
        }
    }

    fn put_back(&mut self, number: usize) {
        match self.role(number) {
            Role::Read(read) => self.place_read(read, false),
            Role::Write(at) => self.count_write(at, true),
            Role::Other => {}
        }
        self.set_placed(number, false);
        // All that was placed after it has been put back, so its write stands as it did when it was taken.
        self.premature -= usize::from(self.is_premature(number));
    }

    /// What came before the write it should come after is overwritten, and will not be read again.
    fn hopeless(&self, state: &AppendState) -> bool {
        let mut next = self.bound.iter().take(READS_AHEAD).filter_map(|read| self.reads.get(*read));
        self.claims.contradict
            || self.premature > 0
            || next.any(|wanted| !wanted.text.starts_with(state.text()))
    }

    /// The state is told by reads alone, and what is appended to it does not bring those back.
    fn forgotten(&self, state: &AppendState) -> bool {
        !self.is_awaited(state.text())
    }

    /// A text that no read shows: between it and the next write nothing is read.
    fn settles(&self, number: usize) -> bool {
        self.claims.unseen.get(number).copied().unwrap_or_default()
    }
}
