//! Records that no cluster made, to look at reports: the same each time.

use std::collections::BTreeMap;

use kv_drill::record::{
    Checked, Counts, Expectation, FORMAT, Fault, Leadership, Operation, Played, Record, Replica, StepFired,
    Times,
};

/// All of them, by name.
pub(crate) fn all() -> [(&'static str, Record); 4] {
    [("valid", valid()), ("violation", violation()), ("empty", Record::default()), ("crowded", crowded())]
}

/// Numbers that look drawn at random.
struct Dice(u64);

impl Dice {
    /// From 0 to 1.
    fn roll(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// A fault on messages of all links between nodes.
fn fault(name: &str, text: &str, plane: &str, (from_ms, until_ms): (f64, f64), matched: u64) -> Fault {
    let mut links = BTreeMap::new();
    if plane == "message" && matched > 0 {
        for (i, link) in
            ["n1->n2", "n1->n3", "n1->n4", "n1->n5", "n2->n1", "clients->n1"].into_iter().enumerate()
        {
            let part = matched / (1 << (i + 1));
            links.insert(link.to_owned(), Counts { matched: part, acted: part - part / 8 });
        }
    }
    let (name, text, plane) = (name.to_owned(), text.to_owned(), plane.to_owned());
    let acted = links.values().map(|counts| counts.acted).sum();
    let matched = links.values().map(|counts| counts.matched).sum();
    Fault { name, text, plane, from_ms, until_ms, matched, acted, links, concurrent: 24 }
}

/// What a drill of five nodes says of itself.
fn played(name: &str, workload: &str) -> Played {
    Played {
        name: name.to_owned(),
        about: "A leader that hears nobody and is heard by all must step down, and the others go on within three election timeouts.".to_owned(),
        runbook: "docs/operations.md, A leader that is not heard: look at `kvctl status`, then move the leader with `kvctl transfer`.".to_owned(),
        seed: 20_260_131,
        repro: format!("kvctl drill run drills/{name}.toml --seed 20260131 --nodes 5 --out target/drills/{name}"),
        version: "quorate 0.1.0 (3f2c1d0)".to_owned(),
        begun: "2026-01-31T12:00:00Z".to_owned(),
        nodes: 5,
        shards: 4,
        workload: workload.to_owned(),
        clients: 24,
        keys: 64,
        duration_ms: 60_000.0,
        election_ms: 1000.0,
    }
}

/// Operations at about equal distances; when the outage begins some hang in it and the clients then wait, and on the minority they never succeed.
fn operations(total: u32, duration_ms: f64, outage: (f64, f64), cut: (f64, f64)) -> Vec<Operation> {
    let mut dice = Dice(7);
    let mut operations: Vec<Operation> = (0..total)
        .map(|i| {
            let mut call_ms = (f64::from(i) + dice.roll()) * duration_ms / f64::from(total);
            if outage.0 <= call_ms && call_ms < outage.1 && (call_ms > outage.0 + 400.0 || dice.roll() > 0.05)
            {
                call_ms = outage.1 + (duration_ms - outage.1) * dice.roll();
            }
            let minority = cut.0 <= call_ms && call_ms < cut.1 && dice.roll() < 0.2;
            let slow = if dice.roll() < 0.02 { 25.0 } else { 1.0 };
            let mut took = (0.6 + 1.8 * dice.roll() + 3.0 * dice.roll().powi(6)) * slow;
            let mut outcome = "ok";
            if minority {
                took = if dice.roll() < 0.6 { 2000.0 } else { took };
                outcome = if took > 1000.0 {
                    "unknown"
                } else if dice.roll() < 0.4 {
                    "failed"
                } else {
                    "ok"
                };
            } else if outage.0 <= call_ms && call_ms < outage.1 {
                took = outage.1 - call_ms + took * 4.0;
                outcome = if dice.roll() < 0.15 {
                    "failed"
                } else if dice.roll() < 0.1 {
                    "unknown"
                } else {
                    "ok"
                };
            }
            let return_ms = (i % 9973 != 9972).then_some(call_ms + took);
            let outcome = if return_ms.is_none() { "unknown" } else { outcome }.to_owned();
            Operation { client: i % 24, write: i % 3 == 0, minority, call_ms, return_ms, outcome }
        })
        .collect();
    operations.sort_by(|a, b| a.call_ms.total_cmp(&b.call_ms));
    operations
}

fn checked(model: &str, operations: &[Operation]) -> Checked {
    let number = |outcome: &str| operations.iter().filter(|op| op.outcome == outcome).count() as u64;
    Checked {
        model: model.to_owned(),
        operations: operations.len() as u64,
        ok: number("ok"),
        failed: number("failed"),
        unknown: number("unknown"),
        took_ms: 1834.0,
        counterexample: String::new(),
        history: "history.jsonl".to_owned(),
    }
}

fn led(shard: u32, at_ms: f64, epoch: u64, leader: Option<u64>) -> Leadership {
    Leadership { shard, at_ms, epoch, leader }
}

fn step(number: u32, text: &str, planned_ms: Option<f64>, at_ms: f64) -> StepFired {
    StepFired { number, text: text.to_owned(), planned_ms, at_ms: Some(at_ms), ..Default::default() }
}

/// Says whom a step meant, and into what it parted the nodes.
fn meant(steps: &mut [StepFired], at: usize, role: &str, node: u64, sides: Vec<Vec<u64>>) {
    if let Some(step) = steps.get_mut(at) {
        step.chosen.insert(role.to_owned(), node);
        step.sides = sides;
    }
}

fn replicas(shards: u32, nodes: u64) -> Vec<Replica> {
    let replica = |shard, node| Replica {
        shard,
        node,
        applied: 4000 + u64::from(shard) * 731,
        state_hash: format!("{:016x}", 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(u64::from(shard) + 1)),
    };
    (0..=shards).flat_map(|shard| (1..=nodes).map(move |node| replica(shard, node))).collect()
}

/// Fifty thousand operations, six faults, nothing wrong.
pub(crate) fn valid() -> Record {
    let operations = operations(50_000, 60_000.0, (12_000.0, 14_100.0), (12_000.0, 30_000.0));
    let faults = vec![
        fault("deaf-leader", "drop *->leader-of(1)", "message", (12_000.0, 30_000.0), 41_812),
        fault("slow-heartbeats", "delay heartbeat n2->* 40ms +-10ms", "message", (18_000.0, 41_000.0), 9120),
        fault("lost-snapshots", "drop snapshot-chunk *->n5 nth 3", "message", (24_000.0, 44_000.0), 0),
        fault("thin-wire", "bandwidth n1->n3 64KiB/s", "wire", (33_000.0, 45_000.0), 0),
        fault("kill n2", "kill n2", "process", (36_000.0, 39_500.0), 0),
        fault("pause n3", "pause n3", "process", (47_000.0, 49_000.0), 0),
    ];
    let mut steps = vec![
        step(1, "drop *->leader-of(1) as deaf-leader", Some(12_000.0), 12_003.0),
        step(2, "delay heartbeat n2->* 40ms +-10ms as slow-heartbeats", Some(18_000.0), 18_001.0),
        step(3, "drop snapshot-chunk *->n5 nth 3 as lost-snapshots", Some(24_000.0), 24_002.0),
        step(4, "heal deaf-leader", Some(30_000.0), 30_001.0),
        step(5, "kill leader-of(2)", None, 36_002.0),
        step(6, "start n2", None, 39_500.0),
        step(7, "pause n3 for 2s", Some(47_000.0), 47_001.0),
        step(8, "heal all", Some(50_000.0), 50_000.0),
    ];
    meant(&mut steps, 0, "leader-of(1)", 1, vec![vec![2, 3, 4, 5], vec![1]]);
    meant(&mut steps, 4, "leader-of(2)", 2, Vec::new());
    let mut leadership = vec![
        led(1, 12_900.0, 2, None),
        led(1, 14_050.0, 3, Some(4)),
        led(2, 36_000.0, 2, None),
        led(2, 37_400.0, 4, Some(5)),
        led(3, 47_400.0, 2, None),
        led(3, 48_900.0, 3, Some(4)),
    ];
    leadership.extend((0..=4).map(|shard| {
        led(
            shard,
            if shard == 4 { 4000.0 } else { 0.0 },
            2,
            Some(u64::from(shard) + 1).filter(|n| *n != 1).or(Some(1)),
        )
    }));
    let expect = |text: &str, met, measured: &str| Expectation {
        text: text.to_owned(),
        met,
        measured: measured.to_owned(),
    };
    Record {
        format: FORMAT,
        verdict: "VALID".to_owned(),
        reasons: Vec::new(),
        drill: played("deaf-leader", "register"),
        check: checked("linearizable register, key by key", &operations),
        steps,
        faults,
        operations,
        leadership,
        expectations: vec![
            expect("the majority succeeds again within 3 E", Some(true), "2.10 s"),
            expect("the minority refuses writes within 2 s", Some(true), "0.84 s"),
            expect("no more than 2 elections a shard", None, "elections of shard 4 were not seen"),
        ],
        times: Times {
            first_error_ms: Some(212.0),
            new_leader_ms: Some(2047.0),
            first_success_ms: Some(2113.0),
            recovery_ms: Some(640.0),
        },
        replicas: replicas(4, 5),
        converged: Some(true),
    }
}

/// A stale read, a replica that differs, a step that failed.
pub(crate) fn violation() -> Record {
    let operations = operations(900, 20_000.0, (6000.0, 9500.0), (6000.0, 14_000.0));
    let mut check = checked("linearizable register, key by key", &operations);
    check.counterexample = "key k17\n\n  c3   write 4   |---ok---|\n  c5   write 7              |-----ok-----|\n  c9   read  7                             |--ok--|\n  c2   read  4                                        |--ok--|   <- cannot be placed\n\nlast state: k17 = 7. The read of 4 was called 12.4 ms after the read of 7 had returned.".to_owned();
    let mut drill = played("mute-leader <script>alert(1)</script>", "register");
    drill.duration_ms = 20_000.0;
    let mut steps = vec![
        step(1, "partition isolate leader-of(1)", Some(6000.0), 6002.0),
        step(2, "clock n2 +3s", Some(8000.0), 8001.0),
        step(3, "heal all", Some(14_000.0), 14_003.0),
        StepFired { number: 4, text: "when no-leader(1) kill n3".to_owned(), ..Default::default() },
    ];
    meant(&mut steps, 0, "leader-of(1)", 1, vec![vec![2, 3, 4, 5], vec![1]]);
    if let Some(step) = steps.get_mut(1) {
        step.error = "the proxy refused: clock is no deed of this platform".to_owned();
    }
    let mut replicas = replicas(2, 5);
    if let Some(replica) = replicas.iter_mut().find(|replica| replica.shard == 1 && replica.node == 4) {
        replica.state_hash = "00c0ffee00c0ffee".to_owned();
        replica.applied -= 3;
    }
    let expect = |text: &str, met, measured: &str| Expectation {
        text: text.to_owned(),
        met,
        measured: measured.to_owned(),
    };
    Record {
        format: FORMAT,
        verdict: "VIOLATION".to_owned(),
        reasons: vec![
            "a read of k17 returned a value that had been overwritten before it was called".to_owned(),
            "replicas of shard 1 differ after healing".to_owned(),
        ],
        drill,
        check,
        steps,
        faults: vec![fault("isolate", "drop n1->* and *->n1", "message", (6000.0, 14_000.0), 18_000)],
        operations,
        leadership: vec![
            led(1, 0.0, 2, Some(1)),
            led(2, 0.0, 2, Some(2)),
            led(1, 6900.0, 2, None),
            led(1, 9400.0, 3, Some(3)),
        ],
        expectations: vec![
            expect("the majority succeeds again within 3 E", Some(false), "3.52 s"),
            expect("no stale read", Some(false), ""),
        ],
        times: Times {
            first_error_ms: Some(96.0),
            new_leader_ms: Some(3400.0),
            first_success_ms: Some(3520.0),
            recovery_ms: None,
        },
        replicas,
        converged: Some(false),
    }
}

/// Forty faults, sixteen shards, nine nodes, long names.
pub(crate) fn crowded() -> Record {
    let mut dice = Dice(11);
    let mut record = valid();
    record.verdict = "NOT EXERCISED".to_owned();
    record.reasons = vec!["eight rules matched no message".to_owned()];
    record.drill.name = "everything-at-once".to_owned();
    record.drill.nodes = 9;
    record.drill.shards = 16;
    record.operations = operations(5000, 60_000.0, (20_000.0, 22_000.0), (12_000.0, 50_000.0));
    record.check = checked("bank: the sum stays", &record.operations);
    record.steps.clear();
    record.faults = (1..=40)
        .map(|i| {
            let from = 55_000.0 * dice.roll();
            let until = from + 300.0 + 12_000.0 * dice.roll();
            let name =
                if i % 4 == 0 { "flapping-link".to_owned() } else { format!("rule-{i}-of-many-with-a-name") };
            record.steps.push(step(
                i,
                &format!("drop append n{}->n{} as {name}", i % 9 + 1, (i + 3) % 9 + 1),
                Some(from),
                from + 2.0,
            ));
            let mut fault = fault(
                &name,
                "drop append",
                "message",
                (from, until),
                if i % 5 == 0 { 0 } else { 300 * u64::from(i) },
            );
            fault.links = (1..=9)
                .map(|n| {
                    (
                        format!("n{n}->n{}", (n + u64::from(i)) % 9 + 1),
                        Counts { matched: u64::from(i) * n * n * 40, acted: u64::from(i) * n * 9 },
                    )
                })
                .collect();
            fault
        })
        .collect();
    record.leadership = (0..=16_u32)
        .flat_map(|shard| {
            let mut at = 3000.0 * dice.roll();
            let mut out = vec![led(shard, at, 1, Some(u64::from(shard) % 9 + 1))];
            for epoch in 2..3 + u64::from(shard) * 2 {
                at += 800.0 + 5000.0 * dice.roll();
                out.push(led(shard, at, epoch - 1, None));
                at += 200.0 + 1500.0 * dice.roll();
                out.push(led(shard, at, epoch, Some((u64::from(shard) + epoch) % 9 + 1)));
            }
            out.retain(|change| change.at_ms < 60_000.0);
            out
        })
        .collect();
    record.replicas = replicas(16, 9);
    record.converged = None;
    record
}
