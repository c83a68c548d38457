//! What rules do to messages: alone, together, and whatever else is on the wire.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may panic")]

use std::time::Duration;

use kv_fault::limits::{COPIES_MAX, ENDED_MAX, RULES_MAX};
use kv_fault::{
    Action, Draft, Fate, Filter, Half, Kind, Link, Links, Message, Pulse, Rule, RuleError, RuleName, Rules,
    Verdict, WireAction,
};
use kv_types::{ShardId, Term};
use proptest::prelude::*;

const NOW: Duration = Duration::from_secs(1);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn name(text: &str) -> RuleName {
    text.parse().unwrap()
}

fn link(text: &str) -> Link {
    text.parse().unwrap()
}

/// A rule on all links.
fn rule(name: &str, text: &str) -> Rule {
    Draft::parse(&format!("name = \"{name}\"\n{text}")).unwrap().rule
}

fn append() -> Message {
    Message {
        kind: Kind::Append,
        half: Half::Request,
        shard: Some(ShardId::new(1)),
        term: Some(Term::new(2)),
        indexes: Some(5..=6),
        bytes: 100,
    }
}

fn with(rules: &[(&str, &str)]) -> Rules {
    let mut loaded = Rules::new(7);
    loaded.load(NOW, rules.iter().map(|(name, text)| rule(name, text)).collect()).unwrap();
    loaded
}

fn verdicts(rules: &mut Rules, count: usize) -> Vec<Verdict> {
    (0..count).map(|_| rules.judge(NOW, link("n1->n2"), &append())).collect()
}

fn counts(rules: &Rules) -> Vec<(u64, u64)> {
    rules.table().iter().map(|entry| (entry.matched(), entry.acted())).collect()
}

#[test]
fn without_rules_all_is_plain() {
    let mut rules = Rules::new(1);
    assert!(rules.is_empty() && verdicts(&mut rules, 1)[0].is_plain());
    assert!(rules.wire(NOW, link("n1->n2")).is_plain());
}

#[test]
fn a_drop_beats_a_hold_beats_all_else() {
    let all = [("slow", "delay = \"5ms\""), ("wait", "hold = true"), ("lose", "drop = true")];
    let mut rules = with(&all);
    assert_eq!(verdicts(&mut rules, 1), [Verdict { fate: Fate::Drop, ..Verdict::PLAIN }]);
    assert_eq!(counts(&rules), [(1, 0), (1, 0), (1, 1)]);
    assert_eq!(rules.heal(NOW, Some(&name("lose"))).len(), 1);
    let held = Verdict { fate: Fate::Hold(name("wait")), ..Verdict::PLAIN };
    assert_eq!(verdicts(&mut rules, 1), [held]);
    rules.heal(NOW, Some(&name("wait")));
    assert_eq!(verdicts(&mut rules, 1), [Verdict { delay: ms(5), ..Verdict::PLAIN }]);
}

#[test]
fn delays_add_up_and_copies_and_flips_join() {
    let mut rules = with(&[
        ("a", "delay = \"5ms\""),
        ("b", "duplicate = { copies = 2, gap = \"10ms\" }"),
        ("c", "delay = \"2ms\""),
        ("d", "duplicate = 1"),
        ("e", "flip = 2"),
        ("f", "flip = 1"),
    ]);
    let verdict = &verdicts(&mut rules, 1)[0];
    assert_eq!((verdict.delay, verdict.copies.clone()), (ms(7), vec![ms(17), ms(27), ms(7)]));
    assert_eq!(verdict.flips.iter().collect::<std::collections::BTreeSet<_>>().len(), 3);
    assert!(counts(&rules).iter().all(|counts| *counts == (1, 1)));
}

#[test]
fn copies_have_a_limit_for_all_rules_together() {
    let mut rules = with(&[("a", "duplicate = 10"), ("b", "duplicate = 10"), ("c", "duplicate = 1")]);
    assert_eq!(verdicts(&mut rules, 1)[0].copies.len(), COPIES_MAX as usize);
    assert_eq!(counts(&rules), [(1, 1), (1, 1), (1, 0)]);
}

#[test]
fn reordering_reaches_from_none_to_the_window() {
    let mut rules = with(&[("a", "reorder = 3")]);
    let mut drawn: Vec<_> = verdicts(&mut rules, 1000).iter().map(|verdict| verdict.reorder).collect();
    drawn.sort_unstable();
    drawn.dedup();
    assert_eq!(drawn, [None, Some(1), Some(2), Some(3)]);
}

#[test]
fn numbers_count_on_each_link_by_itself() {
    let mut rules = with(&[("a", "nth = \"every 3\"\ndrop = true")]);
    let mut dropped = Vec::new();
    for nth in 1..=6 {
        for text in ["n1->n2", "n2->n1"] {
            if rules.judge(NOW, link(text), &append()).fate == Fate::Drop {
                dropped.push((nth, text));
            }
        }
    }
    assert_eq!(dropped, [(3, "n1->n2"), (3, "n2->n1"), (6, "n1->n2"), (6, "n2->n1")]);
    let table = rules.table();
    assert_eq!(table[0].counts[&link("n1->n2")].matched, 2);
}

#[test]
fn a_pulse_comes_and_goes_from_when_it_was_loaded() {
    let mut rules = with(&[("a", "pulse = { on = \"200ms\", off = \"300ms\" }\ndrop = true")]);
    let dropped: Vec<_> = (0..8)
        .filter(|tenth| {
            let now = NOW + ms(tenth * 100);
            rules.judge(now, link("n1->n2"), &append()).fate == Fate::Drop
        })
        .collect();
    assert_eq!(dropped, [0, 1, 5, 6]);
    assert_eq!(counts(&rules), [(4, 4)]);
}

/// Messages are counted while a rule is off as well, so that their time changes no coin.
#[test]
fn a_pulse_changes_no_coin() {
    let text = "probability = 0.5\ndrop = true";
    let mut steady = with(&[("a", text)]);
    let mut flapping = with(&[("a", &format!("pulse = {{ on = \"200ms\", off = \"300ms\" }}\n{text}"))]);
    for (nth, expected) in (0..).zip(verdicts(&mut steady, 100)) {
        let now = NOW + ms(nth * 100);
        let found = flapping.judge(now, link("n1->n2"), &append());
        assert_eq!(found, if nth % 5 < 2 { expected } else { Verdict::PLAIN });
    }
}

#[test]
fn probability_is_kept_over_many() {
    for (fraction, bounds) in [(0.5, 49_000..51_000), (0.01, 850..1150), (0.000_1, 1..30)] {
        let mut rules = with(&[("a", &format!("probability = {fraction}\ndrop = true"))]);
        verdicts(&mut rules, 100_000);
        let matched = counts(&rules)[0].0;
        assert!(bounds.contains(&matched), "{fraction}: {matched}");
    }
}

#[test]
fn the_wire_has_the_worst_of_each() {
    let mut rules = with(&[
        ("a", "latency = \"5ms\""),
        ("b", "latency = { base = \"2ms\", jitter = \"1ms\" }"),
        ("c", "bandwidth = \"2MB/s\""),
        ("d", "bandwidth = \"1MB/s\""),
        ("e", "slow-close = \"2s\""),
        ("f", "slow-close = \"1s\""),
        ("g", "refuse = true"),
        ("h", "reset = true"),
        ("i", "black-hole = true"),
        ("j", "stall = true"),
        ("k", "half-close = true"),
    ]);
    let wire = rules.wire(NOW, link("n1->n2"));
    assert_eq!((wire.bandwidth, wire.slow_close), (Some(1_000_000), Some(Duration::from_secs(2))));
    assert!(wire.refuse && wire.black_hole && wire.stall && wire.half_close);
    for ordinal in 0..100 {
        let latency = wire.latency_of(rules.seed(), link("n1->n2"), ordinal);
        assert!((ms(6)..=ms(8)).contains(&latency), "{latency:?}");
    }
    assert!(verdicts(&mut rules, 1)[0].is_plain(), "messages are left alone");
    rules.heal(NOW, None);
    assert!(rules.wire(NOW, link("n1->n2")).is_plain());
}

/// It is done once: what stands later is left alone.
#[test]
fn a_reset_is_not_in_force_later_and_has_no_pulse() {
    let mut rules = with(&[("a", "reset = true")]);
    assert!(rules.wire(NOW, link("n1->n2")).is_plain());
    let flaw = "a reset is done once, when its rule is loaded: it has no pulse";
    let pulse = Some(Pulse { on: ms(200), off: ms(300) });
    let error = rules.load(NOW, vec![Rule { pulse, ..rule("b", "reset = true") }]).unwrap_err();
    assert_eq!(error, RuleError::OutOfBounds { name: name("b"), flaw });
    let text = "{ name = 'b', pulse = { on = '200ms', off = '300ms' }, reset = true }";
    assert_eq!(Draft::parse(text).unwrap_err().sentence, flaw);
}

#[test]
fn what_is_done_to_connections_one_by_one_is_counted() {
    let mut rules = with(&[("a", "refuse = true"), ("b", "slow-close = \"1s\""), ("c", "stall = true")]);
    let refuses = |action| action == WireAction::Refuse;
    rules.count_wire(NOW, link("n1->n2"), refuses);
    rules.count_wire(NOW, link("n2->n1"), refuses);
    rules.count_wire(NOW, link("n1->n2"), |action| matches!(action, WireAction::SlowClose(_)));
    assert_eq!(counts(&rules), [(2, 2), (1, 1), (0, 0)]);
}

#[test]
fn a_step_is_loaded_whole_or_not_at_all() {
    let mut rules = with(&[("a", "drop = true")]);
    let taken = RuleError::NameTaken(name("a"));
    let step = vec![rule("b", "drop = true"), rule("a", "hold = true")];
    assert_eq!(rules.load(NOW, step), Err(taken.clone()));
    assert_eq!(rules.table().len(), 1);
    let twice = vec![rule("b", "drop = true"), rule("b", "hold = true")];
    assert_eq!(rules.load(NOW, twice), Err(RuleError::NameTaken(name("b"))));
    let action = Action::Reorder { window: 0 };
    let flawed = Rule { name: name("b"), filter: Filter::on(Links::All), action, pulse: None };
    let error = rules.load(NOW, vec![flawed]).unwrap_err().to_string();
    assert_eq!(error, "rule `b`: a reordering reaches over 1 to 64 messages");
    let many = (0..RULES_MAX).map(|nth| rule(&format!("b-{nth}"), "drop = true")).collect();
    assert_eq!(rules.load(NOW, many), Err(RuleError::TooMany(RULES_MAX + 1)));
    assert_eq!(rules.table().len(), 1);
    // A name is free again when its rule is healed.
    rules.heal(NOW, None);
    assert_eq!(rules.load(NOW, vec![rule("a", "drop = true")]), Ok(()));
}

#[test]
fn what_was_healed_stays_in_the_table_up_to_a_limit() {
    let mut rules = with(&[("a", "drop = true"), ("b", "hold = true")]);
    verdicts(&mut rules, 3);
    assert!(rules.heal(NOW, Some(&name("c"))).is_empty());
    assert_eq!(rules.heal(NOW + ms(5), None).len(), 2);
    assert!(rules.is_empty() && verdicts(&mut rules, 1)[0].is_plain());
    let table = rules.table();
    assert_eq!((table[0].since, table[0].ended), (NOW, Some(NOW + ms(5))));
    assert_eq!(counts(&rules), [(3, 3), (3, 0)]);
    for _ in 0..ENDED_MAX {
        rules.load(NOW, vec![rule("c", "drop = true")]).unwrap();
        rules.heal(NOW, None);
    }
    let table = rules.table();
    assert_eq!((table.len(), table[0].rule.name.clone()), (ENDED_MAX, name("c")));
}

/// A message of some kind on some link.
fn traffic() -> impl Strategy<Value = (Link, Message)> {
    let links = prop::sample::select(vec!["n1->n2", "n2->n1", "n1->n3", "clients->n1"]);
    let kinds = prop::sample::select(Kind::ALL.to_vec());
    (links, kinds, any::<bool>(), 0..3_u32).prop_map(|(text, kind, is_reply, shard)| {
        let half = if is_reply { Half::Reply } else { Half::Request };
        (link(text), Message { kind, half, shard: Some(ShardId::new(shard)), ..append() })
    })
}

fn chancy() -> Rules {
    let filter = "kinds = [\"append\"]\nhalf = \"request\"\nshard = 1\n";
    with(&[
        ("lose", &format!("{filter}probability = 0.3\ndrop = true")),
        ("slow", &format!("{filter}delay = {{ base = \"5ms\", jitter = \"3ms\", shape = \"long-tail\" }}")),
        ("twist", &format!("{filter}nth = \"every 2\"\nprobability = 0.7\nflip = 3")),
        ("mix", &format!("{filter}reorder = 4")),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Neither what happens on other links, nor other messages on the same, nor the time changes what happens to a message.
    #[test]
    fn other_traffic_changes_no_verdict(
        others in prop::collection::vec((traffic(), 0..50_usize), 0..60),
        pause in 0..1000_u64,
    ) {
        let observed = link("n1->n2");
        let mut alone = chancy();
        let expected = verdicts(&mut alone, 50);
        let mut rules = chancy();
        let mut found = Vec::new();
        for nth in 0..50_usize {
            for ((other, message), _) in others.iter().filter(|(_, at)| *at == nth) {
                let is_observed = *other == observed
                    && message.kind == Kind::Append
                    && message.half == Half::Request
                    && message.shard == Some(ShardId::new(1));
                if !is_observed {
                    rules.judge(NOW, *other, message);
                }
            }
            found.push(rules.judge(NOW + ms(pause * nth as u64), observed, &append()));
        }
        prop_assert_eq!(found, expected);
    }

    /// Nor does another rule change the coins of one.
    #[test]
    fn other_rules_change_no_coin(seed in any::<u64>()) {
        let matched = |texts: &[(&str, &str)]| {
            let mut rules = Rules::new(seed);
            rules.load(NOW, texts.iter().map(|(name, text)| rule(name, text)).collect()).unwrap();
            verdicts(&mut rules, 40);
            let table = rules.table();
            table.iter().find(|entry| entry.rule.name == name("a")).unwrap().matched()
        };
        let a = ("a", "probability = 0.4\ndelay = \"1ms\"");
        prop_assert_eq!(matched(&[a]), matched(&[("z", "drop = true"), a, ("b", "probability = 0.5\nhold = true")]));
    }

    #[test]
    fn the_same_seed_gives_the_same_and_another_seed_another(messages in prop::collection::vec(traffic(), 1..50)) {
        let run = || {
            let mut rules = chancy();
            messages.iter().map(|(link, message)| rules.judge(NOW, *link, message)).collect::<Vec<_>>()
        };
        prop_assert_eq!(run(), run());
    }
}

#[test]
fn a_new_seed_is_the_seed_of_whatever_comes_then() {
    let mut reseeded = Rules::new(1);
    let mut fresh = Rules::new(9);
    for rules in [&mut reseeded, &mut fresh] {
        rules.load(NOW, vec![rule("a", "probability = 0.4\ndelay = { jitter = \"9ms\" }")]).unwrap();
    }
    reseeded.reseed(9);
    assert_eq!(verdicts(&mut reseeded, 40), verdicts(&mut fresh, 40));
}

/// A seed in a report stands for what it did, for ever.
#[test]
fn verdicts_never_change() {
    let mut rules = chancy();
    let shown: Vec<_> = verdicts(&mut rules, 6)
        .iter()
        .map(|verdict| {
            let fate = if verdict.fate == Fate::Drop { "drop" } else { "go" };
            format!("{fate} {:?} {:?} {}", verdict.delay, verdict.reorder, verdict.flips.len())
        })
        .collect();
    let fixed = [
        "go 48.448798ms None 0",
        "go 5.301271ms Some(1) 3",
        "go 5.731194ms None 0",
        "go 7.396332ms Some(1) 0",
        "go 11.117447ms Some(3) 0",
        "drop 0ns None 0",
    ];
    assert_eq!(shown, fixed);
}
