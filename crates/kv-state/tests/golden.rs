//! Golden scripts: commands applied one after the other, with what each did.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::error::Error;
use std::fmt::Write as _;

use kv_state::cluster::{ClusterCommand, ClusterState, Member, ReadMode, Wanted};
use kv_state::{Answer, Command, Expect, Rows, StateHash, apply};
use kv_types::{
    Incarnation, Key, KeyRange, Lamport, LogIndex, NodeId, Revision, Row, RowHead, RowKey, ShardId, Value,
};

test_each_file::test_each_path! { in "crates/kv-state/testscripts" as golden => golden }

fn golden(path: &std::path::Path) {
    goldenscript::run(&mut Machine::default(), path).expect("the script's output changed");
}

/// What a script can say.
#[derive(goldenscript::Command)]
enum Line {
    /// Writes a value.
    Put { key: String, value: String },
    /// Removes a key.
    Delete { key: String },
    /// Removes the keys from `start` up to `end`.
    DeleteRange { start: String, end: String },
    /// Compares and sets; expects absence unless told otherwise.
    Cas {
        key: String,
        value: String,
        #[arg(key)]
        was: Option<String>,
        #[arg(key)]
        revision: Option<u64>,
    },
    /// Writes that many keys `k00000`, `k00001`, ...
    Fill { count: u64 },
    /// Founds the cluster with members 1 to `members`, and groups 0 to `groups` - 1.
    Found { members: u64, groups: u32 },
    /// Announces a node.
    Add {
        node: u64,
        #[arg(key)]
        learner: Option<bool>,
    },
    /// A node joins.
    Join {
        node: u64,
        incarnation: u64,
        #[arg(key)]
        learner: Option<bool>,
    },
    /// A learner shall vote.
    Promote { node: u64 },
    /// A node shall be no member.
    Remove { node: u64 },
    /// A group has carried out the newest change, or another one, and has what is wanted.
    Reached {
        group: u32,
        #[arg(key)]
        change: Option<u64>,
    },
    /// How leaders read: lease or read-index.
    ReadMode { mode: String },
    /// How far clocks drift.
    Drift { ppm: u32 },
    /// Shows the cluster.
    Cluster,
    /// Shows all rows.
    Rows,
}

fn role(learner: Option<bool>) -> Wanted {
    if learner == Some(true) { Wanted::Learner } else { Wanted::Voter }
}

fn initial(node: u64) -> Member {
    Member {
        incarnation: Some(Incarnation::new(node)),
        wanted: Wanted::Voter,
        peer_addr: format!("p{node}"),
        client_addr: format!("c{node}"),
    }
}

fn show_cluster(cluster: &ClusterState) -> String {
    let settled = if cluster.is_settled() { "settled" } else { "under way" };
    let subject = cluster.subject.map_or("nobody".to_owned(), |node| node.to_string());
    let settings = cluster.settings;
    let mut out = format!(
        "change {} about {subject}: {settled}, wanted {}, reads by {:?}, drift {}\n",
        cluster.change,
        cluster.wanted(),
        settings.read_mode,
        settings.clock_drift_ppm
    );
    for (node, member) in &cluster.members {
        let life = member.incarnation.map_or("announced".to_owned(), |life| life.to_string());
        writeln!(out, "  {node} {:?} {life} {} {}", member.wanted, member.peer_addr, member.client_addr)
            .expect("a string takes all");
    }
    for (shard, group) in &cluster.groups {
        writeln!(out, "  {shard} reached {} {}", group.reached, group.membership)
            .expect("a string takes all");
    }
    out
}

#[derive(Default)]
struct Machine {
    rows: Table,
    hash: StateHash,
    index: LogIndex,
}

#[derive(Default)]
struct Table(BTreeMap<RowKey, Row>);

impl Rows for Table {
    type Error = Infallible;

    fn get(&self, key: &RowKey) -> Result<Option<Row>, Infallible> {
        Ok(self.0.get(key).cloned())
    }

    fn head(&self, key: &RowKey) -> Result<Option<RowHead>, Infallible> {
        Ok(self.0.get(key).map(|row| row.head))
    }

    fn heads_in(&self, range: &KeyRange, limit: usize) -> Result<Vec<(RowKey, RowHead)>, Infallible> {
        let rows = self.0.iter();
        let inside = rows.filter(|(key, _)| range.contains(&key.key()));
        Ok(inside.take(limit).map(|(key, row)| (key.clone(), row.head)).collect())
    }
}

impl goldenscript::Runner for Machine {
    type Command = Line;

    fn run(&mut self, line: &Line, _: &goldenscript::Context) -> Result<String, Box<dyn Error>> {
        let key = |text: &String| Key::new(text.clone());
        let value = |text: &String| Value::new(text.clone());
        let command = match line {
            Line::Put { key: k, value: v } => Command::Put { key: key(k)?, value: value(v)? },
            Line::Delete { key: k } => Command::Delete { key: key(k)? },
            Line::DeleteRange { start, end } => {
                Command::DeleteRange { range: KeyRange::new(start.clone(), Some(end.clone().into()))? }
            }
            Line::Cas { key: k, value: v, was, revision } => {
                let expect = match (was, revision) {
                    (Some(was), _) => Expect::Value(value(was)?),
                    (None, Some(revision)) => Expect::Revision(Revision::new(*revision)),
                    (None, None) => Expect::Absent,
                };
                Command::CompareAndSet { key: key(k)?, expect, value: value(v)? }
            }
            Line::Found { members, groups } => {
                let member = |node| (NodeId::new(node), initial(node));
                Command::Cluster(ClusterCommand::Found {
                    members: (1..=*members).map(member).collect(),
                    groups: (0..*groups).map(ShardId::new).collect(),
                })
            }
            Line::Add { node, learner } => Command::Cluster(ClusterCommand::Add {
                node: NodeId::new(*node),
                peer_addr: format!("p{node}"),
                wanted: role(*learner),
            }),
            Line::Join { node, incarnation, learner } => Command::Cluster(ClusterCommand::Join {
                node: NodeId::new(*node),
                incarnation: Incarnation::new(*incarnation),
                peer_addr: format!("p{node}"),
                client_addr: format!("c{node}"),
                wanted: role(*learner),
            }),
            Line::Promote { node } => Command::Cluster(ClusterCommand::Promote { node: NodeId::new(*node) }),
            Line::Remove { node } => Command::Cluster(ClusterCommand::Remove { node: NodeId::new(*node) }),
            Line::Reached { group, change } => {
                let cluster = self.cluster();
                Command::Cluster(ClusterCommand::Reached {
                    group: ShardId::new(*group),
                    change: change.map_or(cluster.change, Revision::new),
                    membership: cluster.wanted(),
                })
            }
            Line::ReadMode { mode } => Command::Cluster(ClusterCommand::SetReadMode(match mode.as_str() {
                "lease" => ReadMode::Lease,
                _ => ReadMode::ReadIndex,
            })),
            Line::Drift { ppm } => Command::Cluster(ClusterCommand::SetClockDrift(*ppm)),
            Line::Cluster => return Ok(show_cluster(&self.cluster())),
            Line::Fill { count } => return self.fill(*count),
            Line::Rows => return Ok(self.show()),
        };
        self.apply(&command)
    }
}

impl Machine {
    fn apply(&mut self, command: &Command) -> Result<String, Box<dyn Error>> {
        self.index = self.index.next();
        let stamp = Lamport { counter: 100 + self.index.get(), node: NodeId::new(1) };
        let applied = apply(&self.rows, self.hash, self.index, stamp, &command.encode())?;
        let mut out = match &applied.answer {
            Answer::Written => format!("{} written\n", self.index.revision()),
            Answer::Deleted { count, resume: None } => format!("deleted {count}\n"),
            Answer::Deleted { count, resume: Some(key) } => format!("deleted {count}, more from {key:?}\n"),
            Answer::CompareFailed { found: None } => "compare failed: absent\n".to_owned(),
            Answer::CompareFailed { found: Some(row) } => {
                format!("compare failed: found {}\n", row.head.modified)
            }
            Answer::Cluster(Ok(())) => format!("{} done\n", self.index.revision()),
            Answer::Cluster(Err(refusal)) => format!("refused: {refusal}\n"),
        };
        let quiet = applied.changes.len() > 10;
        for change in applied.changes {
            if !quiet {
                let old = change.previous.map_or("none".to_owned(), |revision| revision.to_string());
                let new = if change.row.is_some() { "row" } else { "gone" };
                writeln!(out, "  {:?}: {old} -> {new}", change.key)?;
            }
            match change.row {
                Some(row) => self.rows.0.insert(change.key, row),
                None => self.rows.0.remove(&change.key),
            };
        }
        self.hash = applied.hash;
        let recomputed =
            self.rows.0.iter().fold(StateHash::EMPTY, |hash, (key, row)| hash.with(key, &row.head));
        assert_eq!(self.hash, recomputed, "the running hash is the hash of the rows");
        Ok(out)
    }

    fn cluster(&self) -> ClusterState {
        let row = self.rows.0.get(&ClusterState::row_key());
        row.map_or_else(ClusterState::default, |row| {
            ClusterState::decode(&row.value).expect("the state machine wrote it")
        })
    }

    fn fill(&mut self, count: u64) -> Result<String, Box<dyn Error>> {
        for n in 0..count {
            let key = Key::new(format!("k{n:05}"))?;
            self.apply(&Command::Put { key, value: Value::default() })?;
        }
        Ok(format!("{count} keys"))
    }

    fn show(&self) -> String {
        let mut out = String::new();
        for (key, row) in &self.rows.0 {
            let head = row.head;
            let (created, modified, stamp) = (head.created, head.modified, head.stamp);
            let line =
                format!("created={created} modified={modified} version={} stamp={stamp}", head.version);
            writeln!(out, "{key:?} = {:?} {line}", row.value).expect("a string takes all");
        }
        if out.is_empty() {
            "empty, hash zero: ".to_owned() + &(self.hash == StateHash::EMPTY).to_string()
        } else {
            out
        }
    }
}
