//! What became of what a drill expects, by what nodes have answered and who has led. It is seen from outside: nothing here
//! changes what happens, so that a seed is the same with expectations and without.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kv_fault::{Expect, Fired, RuleName, Within};
use kv_types::{Nanos, NodeId, ShardId};

use super::super::Run;
use crate::oracle::{Ask, End};
use crate::report::Expected;

/// A partition while it was there.
#[derive(Debug)]
struct Cut {
    rule: RuleName,
    from: Nanos,
    until: Nanos,
    cut_off: BTreeSet<NodeId>,
    /// Whether more than half of the nodes reach each other.
    has_majority: bool,
}

/// A write that somebody has asked a node for: a client, or a manager for a transaction.
#[derive(Clone, Copy, Debug)]
struct Write {
    shard: ShardId,
    node: NodeId,
    begun: Nanos,
    ended: Nanos,
    is_accepted: bool,
}

/// What is seen of a drill.
#[derive(Debug, Default)]
pub(super) struct Watch {
    cuts: Vec<Cut>,
    writes: Vec<Write>,
    /// When the first fault came into force, and who led then.
    first_fault: Option<(Nanos, BTreeMap<ShardId, NodeId>)>,
    /// When somebody led who did not when the first fault came.
    new_leader: Option<Nanos>,
    /// When somebody led who did not at the beginning.
    other_leader: Option<Nanos>,
    /// When something was mended for the last time.
    mended: Option<Nanos>,
    ended: Option<Nanos>,
}

/// Whether it was met, if that can be said, and the time that it took.
type Judged = (Option<bool>, Option<Duration>);

const NOT_KNOWN: Judged = (None, None);

impl Watch {
    /// Something is broken from now on.
    pub(super) fn broken(&mut self, now: Nanos, leaders: &BTreeMap<ShardId, NodeId>) {
        self.first_fault.get_or_insert_with(|| (now, leaders.clone()));
    }

    /// A step has cut nodes off, if it was a partition.
    pub(super) fn cut(&mut self, now: Nanos, fired: &Fired) {
        let (Some(first), Some(rule)) = (fired.sides.first(), fired.rules.first()) else { return };
        let nodes: BTreeSet<NodeId> = fired.sides.iter().flatten().copied().collect();
        self.cuts.push(Cut {
            rule: rule.name.clone(),
            from: now,
            until: Nanos::new(u64::MAX),
            cut_off: kv_fault::minority(&fired.sides),
            has_majority: first.len() * 2 > nodes.len(),
        });
    }

    /// Something was mended: these rules, or a process.
    pub(super) fn mended(&mut self, now: Nanos, rules: &BTreeSet<RuleName>) {
        self.mended = Some(now);
        let open = self.cuts.iter_mut().filter(|cut| cut.until > now && rules.contains(&cut.rule));
        open.for_each(|cut| cut.until = now);
    }

    /// Who leads now.
    pub(super) fn led(
        &mut self,
        now: Nanos,
        leaders: &BTreeMap<ShardId, NodeId>,
        begin: &BTreeMap<ShardId, NodeId>,
    ) {
        let differs = |before: &BTreeMap<ShardId, NodeId>| {
            leaders.iter().any(|(shard, leader)| before.get(shard).is_some_and(|before| before != leader))
        };
        if self.other_leader.is_none() && differs(begin) {
            self.other_leader = Some(now);
        }
        if self.new_leader.is_none() && self.first_fault.as_ref().is_some_and(|(_, led)| differs(led)) {
            self.new_leader = Some(now);
        }
    }

    /// The drill is over; what comes then is no part of it.
    pub(super) fn ended(&mut self, now: Nanos) {
        self.ended = Some(now);
    }

    /// What became of an expectation, where an election timeout lasts this long at the most.
    fn judge(&self, expect: &Expect, longest: Duration, matched: impl Fn(&RuleName) -> u64) -> Judged {
        let end = self.ended.unwrap_or_default();
        match expect {
            Expect::MinorityRefusesWithin(within) => {
                worst(self.cuts.iter().map(|cut| self.refuses(cut, within.duration(longest))))
            }
            Expect::MajorityAvailableWithin(within) => self.majority(within, longest),
            Expect::AvailableAfterHealWithin(within) => match self.mended {
                Some(mended) => self.available((mended, end), within.duration(longest)),
                None => NOT_KNOWN,
            },
            Expect::LeaderChangeWithin(within) => match (&self.first_fault, self.new_leader) {
                (Some((first, _)), Some(at)) => {
                    let took = at.since(*first);
                    (Some(took <= within.duration(longest)), Some(took))
                }
                (Some(_), None) => (Some(false), None),
                (None, _) => NOT_KNOWN,
            },
            Expect::NoLeaderChange => (Some(self.other_leader.is_none()), None),
            Expect::MatchedAtLeast { rule, count } => (Some(matched(rule) >= *count), None),
        }
    }

    /// Nodes that are cut off accept no write any more; and when they accepted the last.
    fn refuses(&self, cut: &Cut, within: Duration) -> Judged {
        let asked = |write: &&Write| {
            cut.cut_off.contains(&write.node) && (cut.from..cut.until).contains(&write.begun)
        };
        let asked: Vec<&Write> = self.writes.iter().filter(asked).collect();
        let accepted = asked.iter().filter(|write| write.is_accepted && write.ended <= cut.until);
        let last = accepted.map(|write| write.ended.since(cut.from)).max();
        let from = cut.from.after(within);
        match last {
            Some(last) if last > within => (Some(false), Some(last)),
            _ if !asked.iter().any(|write| write.ended >= from) => NOT_KNOWN,
            last => (Some(true), Some(last.unwrap_or_default())),
        }
    }

    /// Those that are not cut off go on: after each partition, or after the first fault if there is none.
    fn majority(&self, within: &Within, longest: Duration) -> Judged {
        let (within, end) = (within.duration(longest), self.ended.unwrap_or_default());
        if self.cuts.is_empty() {
            let first = self.first_fault.as_ref();
            return first.map_or(NOT_KNOWN, |(first, _)| self.available((*first, end), within));
        }
        worst(self.cuts.iter().map(|cut| match cut.has_majority {
            true => self.available((cut.from, cut.until.min(end)), within),
            false => NOT_KNOWN,
        }))
    }

    /// Every shard that is written takes a write that was begun in this time; and how long the slowest took.
    fn available(&self, (from, until): (Nanos, Nanos), within: Duration) -> Judged {
        let shards: BTreeSet<ShardId> = self.writes.iter().map(|write| write.shard).collect();
        let first = |shard: ShardId| {
            let good = |write: &&Write| {
                write.shard == shard && write.is_accepted && write.begun >= from && write.ended <= until
            };
            self.writes.iter().filter(good).map(|write| write.ended.since(from)).min()
        };
        let all: Option<Vec<Duration>> = shards.into_iter().map(first).collect();
        match all.map(|all| all.into_iter().max()) {
            Some(Some(slowest)) => (Some(slowest <= within), Some(slowest)),
            None if until.since(from) >= within => (Some(false), None),
            Some(None) | None => NOT_KNOWN,
        }
    }
}

/// One judgement of several: unmet if one is, not known if one is not known; else the longest time.
fn worst(each: impl Iterator<Item = Judged>) -> Judged {
    let rank = |(met, took): &Judged| {
        let rank = match met {
            Some(true) => 0,
            None => 1,
            Some(false) => 2,
        };
        (rank, *took)
    };
    each.max_by_key(rank).unwrap_or(NOT_KNOWN)
}

impl Run {
    /// Who leads which shard.
    pub(super) fn leaders(&self) -> BTreeMap<ShardId, NodeId> {
        let shards = self.cluster.settings.shards();
        shards.filter_map(|shard| Some((shard, self.cluster.leader(shard)?))).collect()
    }

    /// Something is broken from now on.
    pub(super) fn watch_broken(&mut self) {
        let leaders = self.leaders();
        if let Some(playing) = self.drill.as_mut() {
            playing.watch.broken(self.cluster.now, &leaders);
        }
    }

    /// Something was mended: these rules, or a process.
    pub(super) fn watch_mended(&mut self, rules: &BTreeSet<RuleName>) {
        if let Some(playing) = self.drill.as_mut() {
            playing.watch.mended(self.cluster.now, rules);
        }
    }

    /// A call has ended.
    pub(in crate::run) fn watch_call(&mut self, call: usize) {
        let Some(playing) = self.drill.as_mut().filter(|playing| !playing.is_over) else { return };
        let call = self.cluster.oracle.call(call);
        if let Ask::Write(_) = call.ask {
            let is_accepted = matches!(call.end, Some(End::Written(_)));
            let (begun, ended) = (call.begun, self.cluster.now);
            let write = Write { shard: call.shard, node: call.node, begun, ended, is_accepted };
            playing.watch.writes.push(write);
        }
    }

    /// What became of what the drill expects, in its order.
    pub(crate) fn expectations(&self) -> Vec<Expected> {
        let Some(playing) = self.drill.as_ref() else { return Vec::new() };
        // Timeouts are drawn between the shortest and twice that.
        let longest = self.cluster.settings.election_timeout * 2;
        let judge = |expect: &Expect| {
            let (met, took) = playing.watch.judge(expect, longest, |rule| playing.matched(rule));
            Expected { what: expect.to_string(), is_of_exercise: expect.is_of_exercise(), met, took }
        };
        playing.drill.expects.iter().map(judge).collect()
    }
}

#[cfg(test)]
mod tests {
    use kv_fault::{Action, Filter, Links, Rule};

    use super::*;

    const LONGEST: Duration = Duration::from_secs(1);

    fn ms(ms: u64) -> Nanos {
        Nanos::default().after(Duration::from_millis(ms))
    }

    fn write(shard: u32, node: u64, (begun, ended): (u64, u64), is_accepted: bool) -> Write {
        let (shard, node) = (ShardId::new(shard), NodeId::new(node));
        Write { shard, node, begun: ms(begun), ended: ms(ended), is_accepted }
    }

    /// Node 1 of three, which led, is cut off from 1 s to 3 s, and the drill ends at 6 s.
    fn cut(writes: &[Write]) -> Watch {
        let mut watch = Watch::default();
        let name: RuleName = "cut".parse().unwrap();
        let led = |node| BTreeMap::from([(ShardId::new(1), NodeId::new(node))]);
        let rule = Rule {
            name: name.clone(),
            filter: Filter::on(Links::Only(BTreeSet::new())),
            action: Action::Drop,
            pulse: None,
        };
        let sides =
            [[2, 3].as_slice(), &[1]].map(|side| side.iter().map(|node| NodeId::new(*node)).collect());
        watch.broken(ms(1000), &led(1));
        watch.cut(ms(1000), &Fired { rules: vec![rule], sides: sides.to_vec(), ..Fired::default() });
        watch.led(ms(1500), &led(1), &led(1));
        watch.led(ms(1800), &led(2), &led(1));
        watch.mended(ms(3000), &BTreeSet::from([name]));
        watch.ended(ms(6000));
        watch.writes = writes.to_vec();
        watch
    }

    fn judged(watch: &Watch, expect: &Expect) -> (Option<bool>, Option<u128>) {
        let (met, took) = watch.judge(expect, LONGEST, |_| 3);
        (met, took.map(|took| took.as_millis()))
    }

    fn within(text: &str) -> Within {
        text.parse().unwrap()
    }

    #[test]
    fn nodes_that_are_cut_off_refuse_or_nobody_has_asked() {
        let refuse = Expect::MinorityRefusesWithin(within("500ms"));
        let after = |writes: &[Write]| judged(&cut(writes), &refuse);
        assert_eq!(after(&[]), (None, None));
        assert_eq!(after(&[write(1, 2, (2000, 2010), false)]), (None, None), "another node was asked");
        assert_eq!(after(&[write(1, 1, (1100, 1200), true)]), (None, None), "asked before that time alone");
        let refused = write(1, 1, (2000, 2010), false);
        assert_eq!(after(&[refused]), (Some(true), Some(0)));
        assert_eq!(after(&[write(1, 1, (1100, 1200), true), refused]), (Some(true), Some(200)));
        assert_eq!(after(&[write(1, 1, (2000, 2010), true)]), (Some(false), Some(1010)));
        // Begun during the cut, and accepted when it was mended.
        assert_eq!(after(&[write(1, 1, (2900, 3100), true)]), (Some(true), Some(0)));
    }

    #[test]
    fn every_shard_goes_on_in_time() {
        let go_on = Expect::MajorityAvailableWithin(within("1E"));
        let [one, other] = [write(1, 2, (1400, 1500), true), write(2, 3, (1000, 1010), true)];
        assert_eq!(judged(&cut(&[one, other]), &go_on), (Some(true), Some(500)));
        let before = write(1, 2, (900, 1010), true);
        assert_eq!(
            judged(&cut(&[before, other]), &go_on),
            (Some(false), None),
            "it was begun before the cut"
        );
        let late = write(1, 2, (2400, 2500), true);
        assert_eq!(judged(&cut(&[late, other]), &go_on), (Some(false), Some(1500)));
        let refused = write(1, 2, (1400, 1500), false);
        assert_eq!(judged(&cut(&[refused, other]), &go_on).0, Some(false));
        assert_eq!(judged(&cut(&[]), &go_on), (None, None));
        let longer = Expect::MajorityAvailableWithin(within("3E"));
        assert_eq!(judged(&cut(&[refused]), &longer), (None, None), "the cut did not last for so long");
    }

    #[test]
    fn all_go_on_when_all_is_mended() {
        let go_on = Expect::AvailableAfterHealWithin(within("1E"));
        assert_eq!(judged(&cut(&[write(1, 1, (3000, 3100), true)]), &go_on), (Some(true), Some(100)));
        assert_eq!(judged(&cut(&[write(1, 1, (2900, 3100), true)]), &go_on), (Some(false), None));
        assert_eq!(judged(&Watch::default(), &go_on), (None, None));
    }

    #[test]
    fn a_leader_changes_in_time_or_stays() {
        let change = |text| Expect::LeaderChangeWithin(within(text));
        assert_eq!(judged(&cut(&[]), &change("1E")), (Some(true), Some(800)));
        assert_eq!(judged(&cut(&[]), &change("500ms")), (Some(false), Some(800)));
        assert_eq!(judged(&cut(&[]), &Expect::NoLeaderChange).0, Some(false));
        let mut idle = Watch::default();
        assert_eq!(judged(&idle, &change("1E")), (None, None), "nothing was broken");
        assert_eq!(judged(&idle, &Expect::NoLeaderChange).0, Some(true));
        idle.broken(ms(1), &BTreeMap::new());
        assert_eq!(judged(&idle, &change("1E")), (Some(false), None));
    }

    #[test]
    fn rules_are_met_often_enough_or_not() {
        let expect = |count| Expect::MatchedAtLeast { rule: "cut".parse().unwrap(), count };
        assert_eq!(judged(&cut(&[]), &expect(3)).0, Some(true));
        assert_eq!(judged(&cut(&[]), &expect(4)).0, Some(false));
    }

    #[test]
    fn the_worst_of_several_counts() {
        let (short, long) = (Some(Duration::from_secs(1)), Some(Duration::from_secs(2)));
        assert_eq!(worst([(Some(true), long), (Some(true), short)].into_iter()), (Some(true), long));
        assert_eq!(worst([(None, None), (Some(true), long)].into_iter()), NOT_KNOWN);
        assert_eq!(worst([(Some(false), short), (None, None)].into_iter()), (Some(false), short));
        assert_eq!(worst(std::iter::empty()), NOT_KNOWN);
    }
}
