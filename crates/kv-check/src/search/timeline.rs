//! Calls and returns in order, as a list from which operations can be taken out and put back in constant time.

use super::Timed;

/// The end of the list, and its head.
const HEAD: usize = 0;

/// Calls and returns of the operations that are not placed.
///
/// Node `1 + 2n` is the call of operation n, node `2 + 2n` its return; an open operation has only a call.
#[derive(Debug)]
pub(super) struct Timeline {
    next: Vec<usize>,
    previous: Vec<usize>,
    has_return: Vec<bool>,
}

impl Timeline {
    pub(super) fn new<Op>(ops: &[Timed<Op>]) -> Self {
        let mut events = Vec::with_capacity(2 * ops.len());
        for (number, timed) in ops.iter().enumerate() {
            events.push((timed.call, false, call_node(number)));
            events.extend(timed.ret.map(|ret| (ret, true, return_node(number))));
        }
        // Operations that meet in one instant are concurrent: calls come first.
        events.sort_unstable();
        let nodes = 1 + 2 * ops.len();
        let mut timeline = Self {
            next: vec![HEAD; nodes],
            previous: vec![HEAD; nodes],
            has_return: ops.iter().map(|timed| timed.ret.is_some()).collect(),
        };
        let mut last = HEAD;
        for (_, _, node) in events {
            timeline.join(last, node);
            last = node;
        }
        timeline.join(last, HEAD);
        timeline
    }

    /// The operations that were called before the first return: each of them can be placed next.
    pub(super) fn available(&self) -> impl Iterator<Item = usize> {
        let mut node = HEAD;
        std::iter::from_fn(move || {
            node = self.next.get(node).copied()?;
            // Calls have odd numbers, returns and the head even ones.
            (node % 2 == 1).then_some(node / 2)
        })
    }

    /// Takes an operation out.
    pub(super) fn lift(&mut self, number: usize) {
        self.unlink(call_node(number));
        if self.has_return(number) {
            self.unlink(return_node(number));
        }
    }

    /// Puts the operation back that was taken out last.
    pub(super) fn put_back(&mut self, number: usize) {
        if self.has_return(number) {
            self.relink(return_node(number));
        }
        self.relink(call_node(number));
    }

    fn has_return(&self, number: usize) -> bool {
        self.has_return.get(number).copied().unwrap_or_default()
    }

    fn neighbours(&self, node: usize) -> (usize, usize) {
        let at = |links: &[usize]| links.get(node).copied().unwrap_or(HEAD);
        (at(&self.previous), at(&self.next))
    }

    fn unlink(&mut self, node: usize) {
        let (previous, next) = self.neighbours(node);
        self.join(previous, next);
    }

    /// A node that was taken out still knows where it stood.
    fn relink(&mut self, node: usize) {
        let (previous, next) = self.neighbours(node);
        self.join(previous, node);
        self.join(node, next);
    }

    fn join(&mut self, first: usize, second: usize) {
        self.next.get_mut(first).into_iter().for_each(|next| *next = second);
        self.previous.get_mut(second).into_iter().for_each(|previous| *previous = first);
    }
}

fn call_node(number: usize) -> usize {
    1 + 2 * number
}

fn return_node(number: usize) -> usize {
    2 + 2 * number
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timed(call: u64, ret: Option<u64>) -> Timed<()> {
        Timed { op: (), call, ret }
    }

    fn available(timeline: &Timeline) -> Vec<usize> {
        timeline.available().collect()
    }

    #[test]
    fn what_was_called_before_the_first_return_can_come_next() {
        let ops = [timed(1, Some(3)), timed(2, None), timed(4, Some(6)), timed(5, Some(7))];
        let mut timeline = Timeline::new(&ops);
        assert_eq!(available(&timeline), [0, 1]);
        timeline.lift(0);
        assert_eq!(available(&timeline), [1, 2, 3]);
        timeline.lift(1);
        timeline.lift(3);
        assert_eq!(available(&timeline), [2]);
        timeline.put_back(3);
        timeline.put_back(1);
        assert_eq!(available(&timeline), [1, 2, 3]);
        timeline.put_back(0);
        assert_eq!(available(&timeline), [0, 1]);
    }

    #[test]
    fn what_meets_in_one_instant_is_concurrent() {
        let timeline = Timeline::new(&[timed(1, Some(2)), timed(2, Some(2)), timed(3, Some(4))]);
        assert_eq!(available(&timeline), [0, 1]);
    }

    #[test]
    fn nothing_is_available_in_an_empty_history() {
        assert!(available(&Timeline::new::<()>(&[])).is_empty());
    }
}
