//! One key whose value is text that grows: read, write and append.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::{Expected, Model, Nature, Outlook, bad_input, bad_result, foreign, refuse_mismatch};
use crate::datum::Datum;
use crate::error::HistoryError;
use crate::event::Function;
use crate::history::Operation;

/// One key whose value is text that grows. It is empty at first, and nil is the same as empty.
#[derive(Clone, Debug, Default)]
pub struct KvAppend;

/// An operation on growing text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AppendOp {
    /// A read with its result; without one if it is not known.
    Read(Option<Arc<str>>),
    /// A write.
    Write(Arc<str>),
    /// Adds text at the end.
    Append(Arc<str>),
}

/// A text with its hash, which grows with it: long texts are not hashed again for every append.
#[derive(Clone, Debug)]
pub struct AppendState {
    text: Arc<str>,
    hash: u64,
}

/// A prime below 2^61 as modulus, so that a product fits into 128 bits, and a base far from any alphabet.
const MODULUS: u64 = (1 << 61) - 1;
const BASE: u64 = 0x0000_9e37_79b9_7f4b;

impl AppendState {
    fn new(text: Arc<str>) -> Self {
        Self { hash: extend_hash(0, &text), text }
    }

    fn append(&self, more: &str) -> Self {
        let text = [self.text.as_ref(), more].concat();
        Self { text: text.into(), hash: extend_hash(self.hash, more) }
    }
}

fn extend_hash(hash: u64, text: &str) -> u64 {
    text.bytes().fold(hash, |hash, byte| {
        let next = (u128::from(hash) * u128::from(BASE) + u128::from(byte) + 1) % u128::from(MODULUS);
        u64::try_from(next).unwrap_or_default()
    })
}

impl PartialEq for AppendState {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.text == other.text
    }
}

impl Eq for AppendState {}

impl Hash for AppendState {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write_u64(self.hash);
    }
}

impl Model for KvAppend {
    type Op = AppendOp;
    type State = AppendState;
    type Outlook = AppendOutlook;

    const NAME: &'static str = "kv-append";

    fn parse(&mut self, operation: &Operation) -> Result<AppendOp, HistoryError> {
        refuse_mismatch::<Self>(operation)?;
        let input = || text_of(&operation.input).ok_or_else(|| bad_input(operation, "text or a number"));
        Ok(match operation.function {
            Function::Read => {
                let result = operation.result().map(|result| {
                    let text = if result.is_nil() { Some(Arc::from("")) } else { text_of(result) };
                    text.ok_or_else(|| bad_result(operation, "text, a number or nil"))
                });
                AppendOp::Read(result.transpose()?)
            }
            Function::Write => AppendOp::Write(input()?),
            Function::Append => AppendOp::Append(input()?),
            Function::Delete => AppendOp::Write(Arc::from("")),
            Function::Cas | Function::Add | Function::Incr | Function::Acquire | Function::Release => {
                return Err(foreign::<Self>(operation));
            }
        })
    }

    fn initial(&self) -> AppendState {
        AppendState::new(Arc::from(""))
    }

    fn step(&self, state: &AppendState, op: &AppendOp) -> Option<AppendState> {
        match op {
            AppendOp::Read(None) => Some(state.clone()),
            AppendOp::Read(Some(text)) => (*text == state.text).then(|| state.clone()),
            AppendOp::Write(text) => Some(AppendState::new(text.clone())),
            AppendOp::Append(more) => Some(state.append(more)),
        }
    }

    fn nature(&self, op: &AppendOp) -> Nature {
        match op {
            AppendOp::Read(_) => Nature::Observes,
            AppendOp::Write(_) | AppendOp::Append(_) => Nature::Changes,
        }
    }

    /// What was read is the last text written, if any, and all that was appended since. All of these occur in it; what
    /// does not occur in it did not reach it.
    fn explains(&self, change: &AppendOp, observation: &AppendOp) -> bool {
        let AppendOp::Read(Some(seen)) = observation else { return false };
        match change {
            AppendOp::Read(_) => false,
            AppendOp::Write(text) => seen.starts_with(text.as_ref()),
            AppendOp::Append(text) => seen.contains(text.as_ref()),
        }
    }

    fn outlook(&self, ops: &[Expected<'_, AppendOp>]) -> AppendOutlook {
        AppendOutlook::new(ops)
    }

    fn describe(&self, state: &AppendState) -> String {
        Datum::text(&state.text).to_string()
    }
}

fn text_of(datum: &Datum) -> Option<Arc<str>> {
    match datum {
        Datum::Text(text) => Some(text.clone()),
        Datum::Int(number) => Some(number.to_string().into()),
        Datum::Nil | Datum::List(_) => None,
    }
}

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
}

#[derive(Clone, Copy, Debug)]
enum Role {
    /// A read that returned, by its number among the reads.
    Read(usize),
    /// A write, by the number of its text.
    Write(usize),
    /// Neither.
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
    fn new(ops: &[Expected<'_, AppendOp>]) -> Self {
        let mut outlook = Self { roles: vec![Role::Other; ops.len()], ..Self::default() };
        let mut texts: BTreeMap<&str, usize> = BTreeMap::new();
        let mut reads = Vec::new();
        for (number, expected) in ops.iter().enumerate() {
            match (expected.op, expected.ret) {
                (AppendOp::Read(Some(text)), Some(ret)) => reads.push((ret, number, text)),
                (AppendOp::Write(text), _) => {
                    let at = *texts.entry(text.as_ref()).or_insert_with(|| {
                        outlook.writes.push(Offered { left: 0, reads: Vec::new() });
                        outlook.writes.len() - 1
                    });
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
            outlook.reads.push(Wanted { text: text.clone(), sources, is_placed: false });
            outlook.bind(read);
        }
        outlook
    }

    fn set_role(&mut self, number: usize, role: Role) {
        self.roles.get_mut(number).into_iter().for_each(|slot| *slot = role);
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
        self.reads.get_mut(read).into_iter().for_each(|wanted| wanted.is_placed = is_placed);
        self.bind(read);
    }

    /// Tells every read that begins with this text that there is a source more or less.
    fn change_sources(&mut self, write: usize, change: impl Fn(&mut usize)) {
        let reads = self.writes.get_mut(write).map(|write| std::mem::take(&mut write.reads)).unwrap_or_default();
        for read in &reads {
            self.reads.get_mut(*read).into_iter().for_each(|wanted| change(&mut wanted.sources));
            self.bind(*read);
        }
        if let Some(write) = self.writes.get_mut(write) {
            write.reads = reads;
        }
    }

    fn role(&self, number: usize) -> Role {
        self.roles.get(number).copied().unwrap_or(Role::Other)
    }
}

impl Outlook<AppendState> for AppendOutlook {
    fn take(&mut self, number: usize) {
        match self.role(number) {
            Role::Read(read) => self.place_read(read, true),
            Role::Write(at) => {
                let Some(write) = self.writes.get_mut(at) else { return };
                write.left -= 1;
                if write.left == 0 {
                    self.change_sources(at, |sources| *sources -= 1);
                }
            }
            Role::Other => {}
        }
    }

    fn put_back(&mut self, number: usize) {
        match self.role(number) {
            Role::Read(read) => self.place_read(read, false),
            Role::Write(at) => {
                let Some(write) = self.writes.get_mut(at) else { return };
                write.left += 1;
                if write.left == 1 {
                    self.change_sources(at, |sources| *sources += 1);
                }
            }
            Role::Other => {}
        }
    }

    fn hopeless(&self, state: &AppendState) -> bool {
        let mut next = self.bound.iter().take(READS_AHEAD).filter_map(|read| self.reads.get(*read));
        next.any(|wanted| !wanted.text.starts_with(state.text.as_ref()))
    }
}
