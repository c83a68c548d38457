//! What a script can say.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;

use kv_state::cluster::{ClusterCommand, ClusterState, Member, ReadMode, Wanted};
use kv_state::sessions::{SessionBatch, SessionCommand};
use kv_state::txn::{Part, Read, Scan, TxnCommand, Write};
use kv_state::{Command, Expect};
use kv_types::{
    ClusterTime, Fingerprint, Incarnation, Key, KeyRange, NodeId, Revision, SessionId, ShardId, TxnId, Value,
};

/// A line of a script.
#[derive(goldenscript::Command)]
pub enum Line {
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
    /// Adds to a number.
    Incr { key: String, delta: i64 },
    /// Closes the request that `as` or `once` named.
    Settle,
    /// Moves the cluster time on.
    Tick,
    /// Writes that many keys `k00000`, `k00001`, ...
    Fill { count: u64 },
    /// Writes a key under so many request ids in a row, from the one that `as` or `once` named.
    FillRecords { count: u64 },
    /// Opens a session.
    Open { nonce: u64, ttl_ms: u64 },
    /// Renews sessions.
    Renew { sessions: Vec<u64> },
    /// Closes a session.
    Close { session: u64 },
    /// Removes those of the sessions that are over.
    Expire { sessions: Vec<u64> },
    /// Forgets dead sessions.
    Gc {
        sessions: Vec<u64>,
        #[arg(key)]
        until: u64,
    },
    /// Forgets what sessions have passed.
    Trim { sessions: Vec<u64> },
    /// A participant's part of the transaction that `as` named: `key@REVISION` or `key@-` reads, `key/VALUE` writes, `key/`
    /// deletes, `START-END_KEY.REVISION_KEY.REVISION` has scanned. The content is told from another one by `content`.
    Prepare {
        parts: Vec<String>,
        #[arg(key)]
        anchor: String,
        #[arg(key)]
        content: Option<u64>,
    },
    /// The decision about the transaction that `as` named, at its anchor; `others` are keys of participants.
    Commit {
        parts: Vec<String>,
        #[arg(key)]
        others: Option<String>,
        #[arg(key)]
        content: Option<u64>,
    },
    /// Gives the transaction up that `as` named.
    Abort {
        #[arg(key)]
        content: Option<u64>,
    },
    /// Asks what a transaction came to, and forbids it to be committed if it is undecided.
    Fence {
        session: u64,
        seq: u64,
        #[arg(key)]
        first: Option<u64>,
        #[arg(key)]
        content: Option<u64>,
    },
    /// Ends a participant's part.
    Resolve {
        session: u64,
        seq: u64,
        outcome: String,
        #[arg(key)]
        content: Option<u64>,
    },
    /// Removes a record that all participants have acknowledged.
    Forget { session: u64, seq: u64 },
    /// Shows who has locked a key.
    Lock { key: String },
    /// Shows what is prepared, and which records wait for acknowledgements.
    Txns,
    /// What the leader stamps from now on.
    Time { ms: u64 },
    /// The next line is an attempt of this request of a session.
    As {
        session: u64,
        seq: u64,
        #[arg(key)]
        first: Option<u64>,
        #[arg(key)]
        lease: Option<u64>,
    },
    /// The next line is an attempt of this request without a session.
    Once { seconds: u64, random: u64 },
    /// What is known of the request that `as` or `once` named.
    Outcome,
    /// Shows the cluster time.
    Gate,
    /// Shows the sessions that there are rows of.
    Seen {
        #[arg(key)]
        after: Option<u64>,
        limit: usize,
    },
    /// Shows how far a session is.
    Progress { session: u64 },
    /// Shows the sessions of the meta group.
    Sessions,
    /// Asks which sessions are dead.
    Dead { sessions: Vec<u64> },
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

impl Line {
    /// The command that a line stands for.
    pub fn command(&self, cluster: &ClusterState) -> Result<Command, Box<dyn Error>> {
        let key = |text: &String| Key::new(text.clone());
        let value = |text: &String| Value::new(text.clone());
        Ok(match self {
            Self::Put { key: k, value: v } => Command::Put { key: key(k)?, value: value(v)? },
            Self::Delete { key: k } => Command::Delete { key: key(k)? },
            Self::DeleteRange { start, end } => {
                Command::DeleteRange { range: KeyRange::new(start.clone(), Some(end.clone().into()))? }
            }
            Self::Cas { key: k, value: v, was, revision } => {
                let expect = match (was, revision) {
                    (Some(was), _) => Expect::Value(value(was)?),
                    (None, Some(revision)) => Expect::Revision(Revision::new(*revision)),
                    (None, None) => Expect::Absent,
                };
                Command::CompareAndSet { key: key(k)?, expect, value: value(v)? }
            }
            Self::Incr { key: k, delta } => Command::Increment { key: key(k)?, delta: *delta },
            Self::Settle => Command::Settle,
            Self::Tick => Command::Tick,
            Self::Trim { sessions } => Command::TrimSessions { sessions: batch(sessions)? },
            Self::Gc { sessions, until } => {
                Command::GcSessions { sessions: batch(sessions)?, until: time(*until)? }
            }
            other => match (other.session_command()?, other.txn_command()?) {
                (Some(command), _) => Command::Session(command),
                (None, Some(command)) => Command::Txn(command),
                (None, None) => Command::Cluster(other.cluster_command(cluster)),
            },
        })
    }

    fn session_command(&self) -> Result<Option<SessionCommand>, Box<dyn Error>> {
        Ok(Some(match self {
            Self::Open { nonce, ttl_ms } => {
                SessionCommand::Open { nonce: u128::from(*nonce), ttl: Duration::from_millis(*ttl_ms) }
            }
            Self::Renew { sessions } => SessionCommand::Renew { sessions: batch(sessions)? },
            Self::Close { session } => SessionCommand::Close { session: SessionId::new(*session) },
            Self::Expire { sessions } => SessionCommand::Expire { sessions: batch(sessions)? },
            _ => return Ok(None),
        }))
    }

    fn txn_command(&self) -> Result<Option<TxnCommand>, Box<dyn Error>> {
        let fingerprint = |content: &Option<u64>| Fingerprint::from_raw(u128::from(content.unwrap_or(1)));
        Ok(Some(match self {
            Self::Prepare { parts, anchor, content } => TxnCommand::Prepare {
                fingerprint: fingerprint(content),
                anchor: Key::new(anchor.clone())?,
                part: part(parts)?,
            },
            Self::Commit { parts, others, content } => TxnCommand::Commit {
                fingerprint: fingerprint(content),
                part: part(parts)?,
                participants: others
                    .iter()
                    .flat_map(|keys| keys.split(' '))
                    .map(|place| Bytes::copy_from_slice(place.as_bytes()))
                    .collect(),
            },
            Self::Abort { content } => TxnCommand::Abort { fingerprint: fingerprint(content) },
            Self::Fence { session, seq, first, content } => TxnCommand::Fence {
                txn: txn(*session, *seq),
                fingerprint: fingerprint(content),
                first_incomplete: first.unwrap_or(0),
            },
            Self::Resolve { session, seq, outcome, content } => {
                TxnCommand::resolve(txn(*session, *seq), fingerprint(content), outcome == "committed")
            }
            Self::Forget { session, seq } => TxnCommand::Forget { txns: [txn(*session, *seq)].into() },
            _ => return Ok(None),
        }))
    }

    fn cluster_command(&self, cluster: &ClusterState) -> ClusterCommand {
        match self {
            Self::Found { members, groups } => {
                let member = |node| (NodeId::new(node), initial(node));
                ClusterCommand::Found {
                    members: (1..=*members).map(member).collect(),
                    groups: (0..*groups).map(ShardId::new).collect(),
                }
            }
            Self::Add { node, learner } => ClusterCommand::Add {
                node: NodeId::new(*node),
                peer_addr: format!("p{node}"),
                wanted: role(*learner),
            },
            Self::Join { node, incarnation, learner } => ClusterCommand::Join {
                node: NodeId::new(*node),
                incarnation: Incarnation::new(*incarnation),
                peer_addr: format!("p{node}"),
                client_addr: format!("c{node}"),
                wanted: role(*learner),
            },
            Self::Promote { node } => ClusterCommand::Promote { node: NodeId::new(*node) },
            Self::Remove { node } => ClusterCommand::Remove { node: NodeId::new(*node) },
            Self::Reached { group, change } => ClusterCommand::Reached {
                group: ShardId::new(*group),
                change: change.map_or(cluster.change, Revision::new),
                membership: cluster.wanted(),
            },
            Self::ReadMode { mode } => ClusterCommand::SetReadMode(match mode.as_str() {
                "lease" => ReadMode::Lease,
                _ => ReadMode::ReadIndex,
            }),
            Self::Drift { ppm } => ClusterCommand::SetClockDrift(*ppm),
            _ => panic!("the line is no command"),
        }
    }
}

/// A time that a script gives.
pub fn time(ms: u64) -> Result<ClusterTime, Box<dyn Error>> {
    Ok(ClusterTime::from_ms(ms).ok_or("beyond the last time")?)
}

/// Sessions that a script gives.
pub fn batch(sessions: &[u64]) -> Result<SessionBatch, Box<dyn Error>> {
    Ok(SessionBatch::new(sessions.iter().copied().map(SessionId::new))?)
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

fn txn(session: u64, seq: u64) -> TxnId {
    TxnId { session: SessionId::new(session), seq }
}

fn part(parts: &[String]) -> Result<Part, Box<dyn Error>> {
    let (mut reads, mut scans, mut writes) = (Vec::new(), Vec::new(), Vec::new());
    for text in parts {
        if let Some((key, seen)) = text.split_once('@') {
            let seen = if seen == "-" { None } else { Some(Revision::new(seen.parse()?)) };
            reads.push(Read { key: Key::new(key.to_owned())?, seen });
        } else if let Some((range, seen)) = text.split_once('_') {
            let (start, end) = range.split_once('-').ok_or("a range is `START-END`")?;
            let mut keys = Vec::new();
            for key in seen.split('_').filter(|key| !key.is_empty()) {
                let (key, revision) = key.split_once('.').ok_or("a scanned key is `KEY.REVISION`")?;
                keys.push((key.as_bytes(), Revision::new(revision.parse()?)));
            }
            let range = KeyRange::new(start.to_owned(), Some(end.to_owned().into()))?;
            scans.push(Scan { range, digest: Fingerprint::of_scan(keys) });
        } else {
            let (key, value) = text.split_once('/').ok_or("a read has an `@`, a write a `/`")?;
            let value = if value.is_empty() { None } else { Some(Value::new(value.to_owned())?) };
            writes.push(Write { key: Key::new(key.to_owned())?, value });
        }
    }
    Ok(Part::new(reads, scans, writes)?)
}
