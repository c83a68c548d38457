//! Drill files: one with everything, and whatever else somebody may hand in.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    unreachable_pub,
    dead_code,
    reason = "a test may panic; the harness is shared"
)]

#[path = "harness/cluster.rs"]
mod cluster;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cluster::Named;
use kv_fault::limits::{EXPECTS_MAX, STEPS_MAX};
use kv_fault::{
    Action, Condition, Deed, Delay, Draft, Drill, Expect, Filter, Half, Held, Kind, Links, Nth, Probability,
    Pulse, Rule, Rules, Shape, Trigger, WireAction, Within, WorkloadKind,
};
use kv_types::{NodeId, ShardId};
use proptest::prelude::*;

const EVERYTHING: &str = include_str!("drills/everything.toml");

const HEAD: &str = "name = \"d\"\nabout = \"x\"\nrunbook = \"x\"\n";

fn everything() -> Drill {
    Drill::parse(EVERYTHING).unwrap()
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn the_head_is_read() {
    let drill = everything();
    assert_eq!((drill.name.as_str(), drill.seed), ("everything", 7));
    assert_eq!((drill.cluster.nodes, drill.cluster.shards), (5, 2));
    assert_eq!(
        (drill.workload.kind, drill.workload.clients, drill.workload.keys),
        (WorkloadKind::Bank, 16, 8)
    );
    assert_eq!((drill.workload.think, drill.workload.duration), (Duration::from_millis(2), s(30)));
}

#[test]
fn what_is_left_out_has_a_default() {
    let drill = Drill::parse(HEAD).unwrap();
    assert_eq!((drill.seed, drill.cluster.nodes, drill.cluster.shards), (1, 5, 4));
    assert_eq!((drill.workload.kind, drill.workload.clients), (WorkloadKind::Register, 8));
    assert_eq!((drill.workload.keys, drill.workload.duration), (4, s(15)));
    assert!(drill.steps.is_empty() && drill.expects.is_empty());
}

#[test]
fn steps_are_read() {
    let drill = everything();
    let deeds: BTreeMap<_, _> = drill.steps.iter().map(|step| (step.number, step)).collect();
    assert_eq!((deeds[&1].line, deeds[&1].trigger.clone()), (16, Trigger::At(s(1))));
    let Deed::Partition { name, partition, clients } = &deeds[&1].deed else { panic!() };
    assert_eq!(
        (name.as_str(), partition.to_string(), *clients),
        ("partition-1", "isolate leader-of(1)".into(), true)
    );
    let Deed::Rule(draft) = &deeds[&2].deed else { panic!() };
    let filter = &draft.rule.filter;
    assert_eq!(filter.kinds, BTreeSet::from([Kind::Append, Kind::Heartbeat]));
    assert_eq!((filter.half, filter.shard), (Some(Half::Request), Some(ShardId::new(1))));
    assert_eq!((filter.terms.clone(), filter.indexes.clone()), (Some(1..=9), Some(2..=u64::MAX)));
    assert_eq!((filter.nth, filter.probability.ppm()), (Some(Nth::Every(2)), 500_000));
    let pulse = Pulse { on: Duration::from_millis(200), off: Duration::from_millis(300) };
    assert_eq!((draft.rule.pulse, draft.rule.action), (Some(pulse), Action::Drop));
    assert_eq!(
        draft.routes.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["leader-of(1)->*", "n2->n3"]
    );
    let condition = Condition::Matched { rule: "lose-acks".parse().unwrap(), count: 3 };
    assert_eq!(deeds[&3].trigger, Trigger::When(condition));
    let only = Some("lose-acks".parse().unwrap());
    assert_eq!(deeds[&3].deed, Deed::Heal { held: Held::Late, only });
}

#[test]
fn every_action_is_read() {
    let ms = Duration::from_millis;
    let jitter = Delay { base: ms(5), jitter: ms(2), shape: Shape::Normal };
    for (text, action) in [
        ("drop = true", Action::Drop),
        ("hold = true", Action::Hold),
        ("delay = \"50ms\"", Action::Delay(Delay::fixed(ms(50)))),
        ("delay = { base = \"5ms\", jitter = \"2ms\", shape = \"normal\" }", Action::Delay(jitter)),
        ("duplicate = { copies = 2, gap = \"3ms\" }", Action::Duplicate { copies: 2, gap: ms(3) }),
        ("duplicate = 1", Action::Duplicate { copies: 1, gap: ms(0) }),
        ("reorder = 4", Action::Reorder { window: 4 }),
        ("flip = 1", Action::Flip { bits: 1 }),
        ("latency = \"1ms\"", Action::Wire(WireAction::Latency(Delay::fixed(ms(1))))),
        ("bandwidth = \"1MB/s\"", Action::Wire(WireAction::Bandwidth { bytes_per_second: 1_000_000 })),
        ("refuse = true", Action::Wire(WireAction::Refuse)),
        ("reset = true", Action::Wire(WireAction::Reset)),
        ("black-hole = true", Action::Wire(WireAction::BlackHole)),
        ("stall = true", Action::Wire(WireAction::Stall)),
        ("slow-close = \"2s\"", Action::Wire(WireAction::SlowClose(s(2)))),
        ("half-close = true", Action::Wire(WireAction::HalfClose)),
    ] {
        let draft = Draft::parse(&format!("name = \"a\"\nlinks = [\"n1->*\"]\n{text}\n")).unwrap();
        assert_eq!(draft.rule.action, action, "{text}");
        let rule = draft.resolve(&Named::of(3), 1).unwrap();
        assert_eq!(Draft::parse(&rule.to_string()).unwrap().into_rule(), Some(rule));
    }
}

#[test]
fn a_rule_prints_as_it_is_written() {
    let fired = everything().steps[1].rules(&Named::of(3), 1).unwrap();
    let line = "{ name = \"lose-acks\", links = [\"n1->n2\", \"n1->n3\", \"n2->n3\"], kinds = [\"append\", \"heartbeat\"], \
                half = \"request\", shard = 1, terms = \"1..=9\", indexes = \"2..\", nth = \"every 2\", probability = 0.5, \
                pulse = { on = \"200ms\", off = \"300ms\" }, drop = true }";
    assert_eq!(fired.rules[0].to_string(), line);
    assert_eq!(Draft::parse(line).unwrap().into_rule().as_ref(), Some(&fired.rules[0]));
    // Who has to look somebody up first has no rule yet.
    for link in ["leader-of(1)->n2", "n1->*"] {
        let draft = Draft::parse(&format!("{{ name = 'a', links = ['{link}'], drop = true }}")).unwrap();
        assert_eq!(draft.into_rule(), None);
    }
    let error = Draft::parse("{ name = 'a', drop = 5 }").unwrap_err();
    assert_eq!(error.to_string(), "line 1, column 22: true or false is expected, not a whole number");
    let lonely = Draft::parse("{ name = 'a', links = ['n1->*'], drop = true }").unwrap();
    let error = lonely.resolve(&Named::of(1), 1).unwrap_err().to_string();
    assert_eq!(error, "there is no such link in a cluster of this size");
}

#[test]
fn deep_nests_are_refused() {
    for text in ["[".repeat(60_000), format!("a = {}", "[".repeat(60_000)), "a = {b = ".repeat(6_000)] {
        assert!(Drill::parse(&text).is_err());
    }
    assert!(Draft::parse(&"{a = ".repeat(10_000)).is_err());
}

#[test]
fn expectations_are_read() {
    let expected = [
        Expect::MinorityRefusesWithin(Within::Fixed(s(2))),
        Expect::MajorityAvailableWithin(Within::Elections(3)),
        Expect::AvailableAfterHealWithin(Within::Elections(3)),
        Expect::LeaderChangeWithin(Within::Fixed(s(5))),
        Expect::MatchedAtLeast { rule: "lose-acks".parse().unwrap(), count: 1 },
    ];
    assert_eq!(everything().expects, expected);
}

#[test]
fn a_timeline_is_in_order_and_each_firing_has_its_seed() {
    let drill = everything();
    let firings = drill.firings();
    assert!(firings.is_sorted_by_key(|firing| firing.at));
    let repeated = drill.steps.iter().position(|step| matches!(step.trigger, Trigger::Every { .. })).unwrap();
    let of_it: Vec<_> = firings.iter().filter(|firing| firing.step == repeated).collect();
    assert_eq!(of_it.iter().map(|firing| firing.at.as_secs()).collect::<Vec<_>>(), [8, 10, 12]);
    assert_eq!(of_it.iter().map(|firing| firing.seed).collect::<BTreeSet<_>>().len(), 3);
}

#[test]
fn steps_become_rules_that_load() {
    let drill = everything();
    let mut rules = Rules::new(drill.seed);
    for firing in drill.firings() {
        let step = &drill.steps[firing.step];
        let fired = step.rules(&Named::of(5), firing.seed).unwrap();
        assert_eq!(fired, step.rules(&Named::of(5), firing.seed).unwrap());
        if let Deed::Heal { only, .. } = &step.deed {
            rules.heal(firing.at, only.as_ref());
        }
        if let Some(name) = step.rule_name() {
            assert_eq!(fired.rules[0].name, *name);
            rules.heal(firing.at, Some(name));
        }
        rules.load(firing.at, fired.rules).unwrap();
    }
    assert!(rules.is_empty(), "the last step heals all");
}

#[test]
fn roles_become_links_when_a_step_fires() {
    let drill = everything();
    let fired = drill.steps[0].rules(&Named::of(5), 1).unwrap();
    assert_eq!(fired.chosen, BTreeMap::from([("leader-of(1)".to_owned(), NodeId::new(1))]));
    let Links::Only(links) = &fired.rules[0].filter.links else { panic!() };
    // Eight between nodes, and clients to and from the one that is cut off.
    assert_eq!(links.len(), 10);
    let fired = drill.steps[1].rules(&Named::of(5), 1).unwrap();
    let Links::Only(links) = &fired.rules[0].filter.links else { panic!() };
    let shown: Vec<_> = links.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["n1->n2", "n1->n3", "n1->n4", "n1->n5", "n2->n3"]);
    let error = drill.steps[0].rules(&Named { nodes: 5, ..Named::default() }, 1).unwrap_err();
    assert_eq!(error.to_string(), "s1 has no known leader");
}

#[test]
fn a_process_step_names_a_node() {
    let text = format!(
        "{HEAD}[[step]]\nat = \"1s\"\nprocess = \"kill leader-of(2)\"\n[[step]]\nat = \"2s\"\nprocess = \"restart all\"\n"
    );
    let drill = Drill::parse(&text).unwrap();
    let fired = drill.steps[0].rules(&Named::of(5), 1).unwrap();
    assert_eq!((fired.node, fired.rules.len()), (Some(NodeId::new(2)), 0));
    assert_eq!(drill.steps[1].rules(&Named::of(5), 1).unwrap().node, None);
}

#[test]
fn a_swizzle_clogs_one_by_one_and_unclogs_all_by_its_end() {
    let mut sizes = BTreeSet::new();
    for seed in 0..60 {
        let text = format!("{HEAD}seed = {seed}\n[[step]]\nat = \"1s\"\nswizzle = {{ over = \"6s\" }}\n");
        let drill = Drill::parse(&text).unwrap();
        assert_eq!(Drill::parse(&text).unwrap(), drill);
        let mut clogged = BTreeSet::new();
        for step in &drill.steps {
            let Trigger::At(at) = step.trigger else { panic!() };
            match &step.deed {
                Deed::Rule(draft) => {
                    assert!(at >= s(1) && at < s(4) && draft.rule.action == Action::Hold);
                    assert!(clogged.insert(draft.rule.name.clone()));
                }
                Deed::Heal { only: Some(name), held: Held::Late } => {
                    assert!(at > s(4) && at <= s(7));
                    assert!(clogged.remove(name));
                }
                Deed::Heal { .. } | Deed::Partition { .. } | Deed::Process(_) => panic!(),
            }
        }
        assert!(clogged.is_empty());
        assert_eq!(drill.steps.last().unwrap().trigger, Trigger::At(s(7)));
        sizes.insert(drill.steps.len() / 2);
    }
    assert_eq!(sizes, BTreeSet::from([2, 3, 4, 5]));
}

#[test]
fn files_have_limits() {
    let step = "[[step]]\nat = \"1s\"\npartition = \"ring\"\n";
    let error = Drill::parse(&format!("{HEAD}{}", step.repeat(STEPS_MAX + 1))).unwrap_err();
    assert_eq!(error.sentence, "there are too many steps; the limit is 256");
    assert_eq!(error.line, 4 + 3 * STEPS_MAX);
    let expect = "[[expect]]\nno-leader-change = true\n";
    let error = Drill::parse(&format!("{HEAD}{}", expect.repeat(EXPECTS_MAX + 1))).unwrap_err();
    assert_eq!(error.to_string(), "line 132, column 1: there are too many expectations; the limit is 64");
    let error = Drill::parse(&" ".repeat(70_000)).unwrap_err();
    assert_eq!(error.to_string(), "line 1, column 1: the text is too long: the limit is 64 KiB");
}

fn some_rule(
    choices: (bool, u8, u8, u8, u8, u8, u8),
    ppm: u32,
    (low, high, count): (u64, u64, u32),
    (short, long): (u64, u64),
) -> Rule {
    let (has_links, kinds, half, nth, shape, action, pulse) = choices;
    let (short, long) = (Duration::from_nanos(short), Duration::from_nanos(long));
    let links = ["n1->n2", "clients->n9", "n3->clients"].map(|link| link.parse().unwrap());
    let range = low.min(high)..=low.max(high);
    let number = low.max(1);
    let shapes = Shape::ALL;
    let delay = Delay { base: short, jitter: long, shape: shapes[usize::from(shape) % shapes.len()] };
    let actions = [
        Action::Drop,
        Action::Delay(delay),
        Action::Delay(Delay::fixed(long)),
        Action::Duplicate { copies: count % 16 + 1, gap: short },
        Action::Reorder { window: count % 64 + 1 },
        Action::Hold,
        Action::Flip { bits: count % 64 + 1 },
    ];
    let nths = [
        None,
        Some(Nth::First(number)),
        Some(Nth::Only(number)),
        Some(Nth::Every(number)),
        Some(Nth::After(number)),
    ];
    Rule {
        name: "a-1".parse().unwrap(),
        filter: Filter {
            links: if has_links { Links::Only(BTreeSet::from(links)) } else { Links::All },
            kinds: Kind::ALL
                .into_iter()
                .filter(|kind| kinds > 99 && (kinds >> (*kind as u8 % 8)) & 1 == 1)
                .collect(),
            half: [None, Some(Half::Request), Some(Half::Reply)][usize::from(half) % 3],
            shard: (half > 99).then(|| ShardId::new(count % 64)),
            terms: (kinds > 50).then(|| range.clone()),
            indexes: (nth > 50).then_some(range),
            nth: nths[usize::from(nth) % nths.len()],
            probability: Probability::from_ppm(ppm).unwrap(),
        },
        action: actions[usize::from(action) % actions.len()],
        pulse: (pulse > 99).then_some(Pulse { on: short, off: long }),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let text = String::from_utf8_lossy(&bytes);
        let _ = (Drill::parse(&text), Draft::parse(&text), Draft::parse(&format!("{{{text}")));
    }

    /// Every rule that can be loaded prints so that it reads back, and no other does.
    #[test]
    fn rules_print_and_read_back(
        choices in any::<(bool, u8, u8, u8, u8, u8, u8)>(),
        ppm in 1..=1_000_000_u32,
        numbers in any::<(u64, u64, u32)>(),
        nanos in (1..1_000_000_000_u64, 1..100_000_000_000_u64),
    ) {
        let rule = some_rule(choices, ppm, numbers, nanos);
        let mut rules = Rules::new(1);
        let draft = Draft::parse(&rule.to_string());
        match rules.load(Duration::ZERO, vec![rule.clone()]) {
            Ok(()) => prop_assert_eq!(draft.map(Draft::into_rule), Ok(Some(rule))),
            Err(_) => prop_assert!(draft.is_err(), "{}", rule),
        }
    }

    /// A good file, damaged: most of what is checked is met.
    #[test]
    fn no_damage_panics(
        cuts in prop::collection::vec((0..EVERYTHING.len(), 0..20_usize, "[ -~\u{e9}]{0,8}"), 1..4),
    ) {
        let mut letters: Vec<char> = EVERYTHING.chars().collect();
        for (at, len, put) in cuts {
            let from = at.min(letters.len());
            let to = (from + len).min(letters.len());
            letters.splice(from..to, put.chars());
        }
        let text: String = letters.into_iter().collect();
        match Drill::parse(&text) {
            Ok(drill) => {
                let _ = drill.firings();
                for step in &drill.steps {
                    let _ = step.rules(&Named::of(5), 1);
                }
            }
            Err(error) => {
                let line = text.split('\n').nth(error.line - 1);
                prop_assert!(line.is_some_and(|line| error.column <= line.chars().count() + 1), "{}", error);
                prop_assert!(!error.sentence.contains('\n'));
            }
        }
    }
}
