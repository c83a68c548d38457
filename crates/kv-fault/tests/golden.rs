//! Golden scripts: partitions, rules and drills, and what each comes to. `UPDATE_GOLDENFILES=1` rewrites them; read the
//! difference before you accept it.
//!
//! - `nodes N`: the cluster from now on; `n1` leads `s1`, `n2` leads `s2`, `n3` manages every transaction.
//! - `cut "PARTITION" [seed=N] [clients]`: what a partition comes to.
//! - `at MS`: the time from now on.
//! - `load NAME "FIELD = .." ..`: puts a rule into force.
//! - `heal [NAME]`, `judge LINK KIND HALF [shard=N] [term=N] [index=N]`, `wire LINK`, `table`.
//! - `drill "LINE" ..`: reads these lines behind a good head, and shows where they are wrong. `text "LINE" ..`: without the head.

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

use std::error::Error;
use std::fmt::Write as _;
use std::time::Duration;

use cluster::Named;
use goldenscript::{Command, Context};
use kv_fault::{Draft, Drill, Link, Message, Partition, Rules, Verdict};
use kv_types::{ShardId, Term};

test_each_file::test_each_path! { in "crates/kv-fault/testscripts" as golden => golden }

fn golden(path: &std::path::Path) {
    let mut machine = Machine { cluster: Named::of(5), rules: Rules::new(7), now: Duration::ZERO };
    goldenscript::run(&mut machine, path).expect("the script's output changed");
}

struct Machine {
    cluster: Named,
    rules: Rules,
    now: Duration,
}

const HEAD: [&str; 3] = ["name = 'd'", "about = 'x'", "runbook = 'x'"];

type Answer = Result<String, Box<dyn Error>>;

impl goldenscript::Runner for Machine {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Answer {
        let mut args = command.consume_args();
        let output = match command.name.as_str() {
            "nodes" => {
                self.cluster = Named::of(args.next_pos().unwrap().parse()?);
                String::new()
            }
            "at" => {
                self.now = Duration::from_millis(args.next_pos().unwrap().parse()?);
                String::new()
            }
            "cut" => {
                let partition: Partition = args.next_pos().unwrap().parse()?;
                let seed = args.take_key("seed").map(str::parse).transpose()?.unwrap_or(1);
                self.cut(&partition, seed, args.next_pos().is_some())?
            }
            "load" => {
                let mut lines = std::iter::from_fn(|| args.next_pos().map(str::to_owned));
                let name = lines.next().unwrap();
                let text = format!("name = '{name}'\n{}", lines.collect::<Vec<_>>().join("\n"));
                let rule = Draft::parse(&text)?.resolve(&self.cluster, 1)?;
                self.rules.load(self.now, vec![rule])?;
                String::new()
            }
            "heal" => {
                let name = args.next_pos().map(str::parse).transpose()?;
                let healed = self.rules.heal(self.now, name.as_ref());
                healed.iter().fold(String::new(), |text, rule| format!("{text}{}\n", rule.name))
            }
            "judge" => {
                let link: Link = args.next_pos().unwrap().parse()?;
                let message = Message {
                    kind: args.next_pos().unwrap().parse()?,
                    half: args.next_pos().unwrap().parse()?,
                    shard: args.take_key("shard").map(str::parse).transpose()?.map(ShardId::new),
                    term: args.take_key("term").map(str::parse).transpose()?.map(Term::new),
                    indexes: args
                        .take_key("index")
                        .map(str::parse)
                        .transpose()?
                        .map(|index: u64| index..=index),
                    bytes: 1,
                };
                show(&self.rules.judge(self.now, link, &message))
            }
            "wire" => format!("{:?}\n", self.rules.wire(self.now, args.next_pos().unwrap().parse()?)),
            "table" => self.table(),
            "drill" => {
                let lines = std::iter::from_fn(|| args.next_pos().map(str::to_owned));
                drill(&HEAD.iter().map(ToString::to_string).chain(lines).collect::<Vec<_>>())
            }
            "text" => drill(&std::iter::from_fn(|| args.next_pos().map(str::to_owned)).collect::<Vec<_>>()),
            other => return Err(format!("no command {other}").into()),
        };
        args.reject_next()?;
        Ok(output)
    }
}

impl Machine {
    fn cut(&self, partition: &Partition, seed: u64, clients: bool) -> Answer {
        let mut cut = partition.resolve(&self.cluster, seed)?;
        if clients {
            cut = cut.with_clients();
        }
        let mut text = String::new();
        for (role, node) in &cut.chosen {
            writeln!(text, "{role} is {node}")?;
        }
        let links: Vec<_> = cut.links.iter().map(ToString::to_string).collect();
        writeln!(text, "cut {}", links.join(" "))?;
        for side in &cut.sides {
            let nodes: Vec<_> = side.iter().map(ToString::to_string).collect();
            writeln!(text, "side {}", nodes.join(" "))?;
        }
        Ok(text)
    }

    fn table(&self) -> String {
        let mut text = String::new();
        for entry in self.rules.table() {
            let ended = entry.ended.map_or("in force".to_owned(), |ended| format!("ended {ended:?}"));
            writeln!(text, "{}: {}, since {:?}, {ended}", entry.rule.name, entry.rule.action, entry.since)
                .unwrap();
            for (link, counts) in &entry.counts {
                writeln!(text, "  {link} matched {} acted {}", counts.matched, counts.acted).unwrap();
            }
        }
        text
    }
}

fn show(verdict: &Verdict) -> String {
    if verdict.is_plain() { "plain\n".to_owned() } else { format!("{verdict:?}\n") }
}

/// The place of the mistake is shown by a mark below it.
fn drill(lines: &[String]) -> String {
    match Drill::parse(&lines.join("\n")) {
        Ok(drill) => format!("good, {} steps\n", drill.steps.len()),
        Err(error) => match lines.get(error.line - 1) {
            Some(line) => format!("{error}\n  {line}\n  {}^\n", " ".repeat(error.column - 1)),
            None => format!("{error}\n"),
        },
    }
}
