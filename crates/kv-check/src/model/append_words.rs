//! What reads of growing text tell about the order of the appends, if every text can be told from the others.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::{AppendOp, Expected};

/// The texts written and appended, if no one is the beginning of another: then whatever is read can be taken apart in
/// one way only.
struct Words<'a> {
    words: BTreeMap<&'a str, Word>,
}

/// The operations that bring a text.
#[derive(Clone, Debug, Default)]
struct Word {
    writes: Vec<usize>,
    appends: Vec<usize>,
}

/// What the reads that returned tell.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    /// For each operation the write after which alone it can come: some read shows it behind that write.
    pub(super) bases: Vec<Option<usize>>,
    /// Whether each operation brings a text that no read shows.
    pub(super) unseen: Vec<bool>,
    /// Whether the reads cannot all be true, whatever the order.
    pub(super) contradict: bool,
}

impl Claims {
    /// Reads them out of the operations.
    pub(super) fn new(ops: &[Expected<'_, AppendOp>]) -> Self {
        let reads = ops.iter().filter_map(|expected| match expected.op {
            AppendOp::Read(Some(text)) if expected.ret.is_some() => Some(text.as_ref()),
            AppendOp::Read(_) | AppendOp::Write(_) | AppendOp::Append(_) => None,
        });
        let mut claims =
            Self { bases: vec![None; ops.len()], unseen: vec![false; ops.len()], contradict: false };
        let Some(words) = Words::new(ops) else { return claims };
        claims.unseen = ops.iter().map(|expected| !matches!(expected.op, AppendOp::Read(_))).collect();
        for read in reads {
            claims.contradict = claims.contradict || !claims.learn(&words, read);
        }
        claims
    }

    /// Learns from one read; false if it cannot be true.
    fn learn(&mut self, words: &Words<'_>, read: &str) -> bool {
        // A text from nowhere cannot be read.
        let Some(parts) = words.split(read) else { return false };
        for operation in parts.iter().flat_map(|word| word.writes.iter().chain(&word.appends)) {
            self.unseen.get_mut(*operation).into_iter().for_each(|unseen| *unseen = false);
        }
        let mut base = None;
        for (position, word) in parts.into_iter().enumerate() {
            match (position, word.writes.as_slice(), word.appends.as_slice()) {
                (0, [write], []) => base = Some(*write),
                // It may be one of several: nothing is learnt.
                (0, [_, ..], _) => return true,
                // Only the first text can have been written; the others were appended to it.
                (_, _, []) => return false,
                (_, _, [append]) if base.is_some() => {
                    let Some(known) = self.bases.get_mut(*append) else { continue };
                    // It took effect once, after one write.
                    if known.is_some() && *known != base {
                        return false;
                    }
                    *known = base;
                }
                _ => {}
            }
        }
        true
    }
}

impl<'a> Words<'a> {
    /// None if a text is empty or the beginning of another.
    fn new(ops: &[Expected<'a, AppendOp>]) -> Option<Self> {
        let mut words: BTreeMap<&str, Word> = BTreeMap::new();
        for (number, expected) in ops.iter().enumerate() {
            match expected.op {
                AppendOp::Read(_) => {}
                AppendOp::Write(text) => words.entry(text).or_default().writes.push(number),
                AppendOp::Append(text) => words.entry(text).or_default().appends.push(number),
            }
        }
        // In their order, a text that begins another stands directly before one that it begins.
        let texts: Vec<_> = words.keys().copied().collect();
        let are_apart = texts.windows(2).all(|pair| match pair {
            [first, second] => !second.starts_with(first),
            _ => true,
        });
        (are_apart && !words.contains_key("")).then_some(Self { words })
    }

    /// Takes a text apart; none if it is not made of these.
    fn split(&self, mut text: &str) -> Option<Vec<&Word>> {
        let mut parts = Vec::new();
        while !text.is_empty() {
            // The word that begins the text is the last one not behind it: anything between them would begin with it.
            let (word, found) =
                self.words.range::<str, _>((Bound::Unbounded, Bound::Included(text))).next_back()?;
            text = text.strip_prefix(word)?;
            parts.push(found);
        }
        Some(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(ops: &[AppendOp]) -> Claims {
        let expected: Vec<_> = ops.iter().map(|op| Expected { op, ret: Some(1) }).collect();
        Claims::new(&expected)
    }

    fn write(text: &str) -> AppendOp {
        AppendOp::Write(text.into())
    }

    fn append(text: &str) -> AppendOp {
        AppendOp::Append(text.into())
    }

    fn read(text: &str) -> AppendOp {
        AppendOp::Read(Some(text.into()))
    }

    #[test]
    fn a_read_tells_what_came_after_which_write() {
        let claims = claims(&[write("a."), append("b."), append("c."), read("a.c."), append("d.")]);
        assert_eq!(claims.bases, [None, None, Some(0), None, None]);
        assert_eq!(claims.unseen, [false, true, false, false, true]);
        assert!(!claims.contradict);
    }

    #[test]
    fn reads_can_contradict_each_other() {
        assert!(claims(&[append("a."), read("b.")]).contradict, "a text from nowhere");
        assert!(claims(&[append("a."), write("b."), read("a.b.")]).contradict, "a write in the middle");
        let two_bases = [write("a."), write("b."), append("c."), read("a.c."), read("b.c.")];
        assert!(claims(&two_bases).contradict, "an append after two writes");
    }

    #[test]
    fn texts_that_cannot_be_told_apart_tell_nothing() {
        for ops in [[append("1"), append("11"), read("111")], [write(""), append("1"), read("2")]] {
            let claims = claims(&ops);
            assert!(!claims.contradict && claims.unseen == [false; 3] && claims.bases == [None; 3]);
        }
    }

    #[test]
    fn equal_texts_claim_nothing() {
        let claims = claims(&[write("a."), append("b."), append("b."), read("a.b.b.")]);
        assert_eq!(claims.bases, [None; 4]);
        assert!(!claims.contradict);
    }
}
