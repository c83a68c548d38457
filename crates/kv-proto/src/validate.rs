//! Wire input becomes `kv-types` here and nowhere else; and back.

use std::time::Duration;

use bytes::Bytes;
use kv_types::limits::ENTRY_BYTES_MAX;
use kv_types::{
    Body, Entry, Key, KeyError, KeyRange, Lamport, LogId, LogIndex, Membership, MembershipError, NodeId,
    RangeError, Request, Term, Value, ValueError,
};

use crate::request_id;
use crate::status::ApiError;
use crate::v1;

/// Largest term, log index and counter taken from the wire. Far above what a cluster reaches in its life, and far
/// enough below the end of `u64` that arithmetic on them cannot overflow.
pub const NUMBER_MAX: u64 = 1 << 62;

/// Why wire input is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A field that must be there is not.
    #[error("the field `{0}` is missing")]
    Missing(&'static str),
    /// A number that no cluster reaches.
    #[error("the field `{field}` is {number}, more than any cluster reaches")]
    Number {
        /// The field.
        field: &'static str,
        /// What it says.
        number: u64,
    },
    /// Node id zero.
    #[error("the field `{0}` is node 0, which is not a node")]
    ZeroNode(&'static str),
    /// Not an address.
    #[error("the field `{0}` is no HOST:PORT")]
    Address(&'static str),
    /// Too many bytes or items.
    #[error("the field `{field}` has {found}; the limit is {max}")]
    TooLarge {
        /// The field.
        field: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        max: usize,
    },
    /// Not a key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Not a value.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// Not a range.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// Not a membership.
    #[error(transparent)]
    Membership(#[from] MembershipError),
}

impl From<WireError> for ApiError {
    fn from(error: WireError) -> Self {
        match &error {
            WireError::Key(KeyError::TooLong(_))
            | WireError::Range(RangeError::BoundTooLong(_))
            | WireError::Value(_)
            | WireError::TooLarge { .. } => Self::TooLarge(error.to_string()),
            WireError::Missing(_)
            | WireError::Number { .. }
            | WireError::ZeroNode(_)
            | WireError::Address(_)
            | WireError::Key(KeyError::Empty)
            | WireError::Range(RangeError::Empty)
            | WireError::Membership(_) => Self::Invalid(error.to_string()),
        }
    }
}

/// What a client says about its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Context {
    /// What remains until the client gives up.
    pub deadline: Option<Duration>,
    /// The largest Lamport counter it has seen.
    pub lamport: Option<u64>,
    /// What makes its retry safe.
    pub request: Option<Request>,
}

/// Reads a request's context on a node of cluster `ours`.
///
/// # Errors
/// [`ApiError::WrongCluster`] if the client means another cluster; [`ApiError::Invalid`] for an impossible counter.
pub fn context(wire: Option<&v1::RequestContext>, ours: &str) -> Result<Context, ApiError> {
    let Some(wire) = wire else { return Ok(Context::default()) };
    if !wire.cluster.is_empty() && wire.cluster != ours {
        let text = format!("the request is for cluster `{}`, this is `{ours}`", wire.cluster.escape_debug());
        return Err(ApiError::WrongCluster(text));
    }
    if let Some(counter) = wire.lamport {
        number("lamport", counter)?;
    }
    let request = request_id::read(wire.request_id.clone())?;
    Ok(Context { deadline: deadline(wire.deadline_ms), lamport: wire.lamport, request })
}

/// Reads a deadline in milliseconds; 0 is none.
pub fn deadline(ms: u32) -> Option<Duration> {
    (ms > 0).then(|| Duration::from_millis(u64::from(ms)))
}

/// Refuses every consistency but the one there is.
///
/// # Errors
/// [`ApiError::Unsupported`].
pub fn linearizable(consistency: i32) -> Result<(), ApiError> {
    match v1::Consistency::try_from(consistency) {
        Ok(v1::Consistency::Linearizable) => Ok(()),
        Ok(v1::Consistency::Causal | v1::Consistency::Stale) | Err(_) => {
            Err(ApiError::Unsupported("only linearisable reads are served".to_owned()))
        }
    }
}

/// Reads a key.
///
/// # Errors
/// [`WireError::Key`].
pub fn key(wire: Bytes) -> Result<Key, WireError> {
    Ok(Key::new(wire)?)
}

/// Reads a value.
///
/// # Errors
/// [`WireError::Value`].
pub fn value(wire: Bytes) -> Result<Value, WireError> {
    Ok(Value::new(wire)?)
}

/// Reads a range; an absent one is every key.
///
/// # Errors
/// [`WireError::Range`].
pub fn range(wire: Option<v1::KeyRange>) -> Result<KeyRange, WireError> {
    match wire {
        None => Ok(KeyRange::all()),
        Some(wire) => Ok(KeyRange::new(wire.start, wire.end)?),
    }
}

/// Writes a range.
pub fn range_to_wire(range: &KeyRange) -> v1::KeyRange {
    v1::KeyRange { start: range.start().clone(), end: range.end().cloned() }
}

/// Reads a stamp; an absent one is [`Lamport::ZERO`].
///
/// # Errors
/// [`WireError::Number`].
pub fn lamport(wire: Option<v1::Lamport>) -> Result<Lamport, WireError> {
    let wire = wire.unwrap_or_default();
    Ok(Lamport { counter: number("counter", wire.counter)?, node: NodeId::new(wire.node) })
}

/// Writes a stamp.
pub fn lamport_to_wire(stamp: Lamport) -> v1::Lamport {
    v1::Lamport { counter: stamp.counter, node: stamp.node.get() }
}

/// An address of a node, HOST:PORT.
///
/// # Errors
/// [`WireError`] if it is none, or too long.
pub fn addr(field: &'static str, wire: &str) -> Result<(), WireError> {
    let fits = wire.len() <= kv_types::limits::ADDR_BYTES_MAX && !wire.chars().any(char::is_control);
    let port =
        wire.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if fits && port { Ok(()) } else { Err(WireError::Address(field)) }
}

/// Reads a node id that must be one.
///
/// # Errors
/// [`WireError::ZeroNode`].
pub fn node(field: &'static str, wire: u64) -> Result<NodeId, WireError> {
    if wire == 0 { Err(WireError::ZeroNode(field)) } else { Ok(NodeId::new(wire)) }
}

/// Reads a term.
///
/// # Errors
/// [`WireError::Number`].
pub fn term(wire: u64) -> Result<Term, WireError> {
    Ok(Term::new(number("term", wire)?))
}

/// Reads a log index.
///
/// # Errors
/// [`WireError::Number`].
pub fn index(field: &'static str, wire: u64) -> Result<LogIndex, WireError> {
    Ok(LogIndex::new(number(field, wire)?))
}

/// Reads the name of an entry.
///
/// # Errors
/// [`WireError::Missing`] or [`WireError::Number`].
pub fn log_id(field: &'static str, wire: Option<v1::LogId>) -> Result<LogId, WireError> {
    let wire = wire.ok_or(WireError::Missing(field))?;
    Ok(LogId::new(Term::new(number(field, wire.term)?), LogIndex::new(number(field, wire.index)?)))
}

/// Writes the name of an entry.
pub fn log_id_to_wire(id: LogId) -> v1::LogId {
    v1::LogId { term: id.term.get(), index: id.index.get() }
}

/// Reads a membership.
///
/// # Errors
/// [`WireError::Membership`].
pub fn membership(wire: v1::Membership) -> Result<Membership, WireError> {
    let nodes = |raw: Vec<u64>| raw.into_iter().map(NodeId::new).collect();
    let membership = Membership {
        voters: nodes(wire.voters),
        outgoing: nodes(wire.outgoing),
        learners: nodes(wire.learners),
    };
    membership.check()?;
    Ok(membership)
}

/// Writes a membership.
pub fn membership_to_wire(membership: &Membership) -> v1::Membership {
    let raw = |nodes: &std::collections::BTreeSet<NodeId>| nodes.iter().map(|node| node.get()).collect();
    v1::Membership {
        voters: raw(&membership.voters),
        outgoing: raw(&membership.outgoing),
        learners: raw(&membership.learners),
    }
}

/// Reads an entry of a peer's log. Whether it follows the one before is the Raft core's to check.
///
/// # Errors
/// [`WireError`] for a missing part, an impossible number, a command over its limit or a bad membership.
pub fn entry(wire: v1::Entry) -> Result<Entry, WireError> {
    let id = log_id("entry.id", wire.id)?;
    if id.index == LogIndex::ZERO || id.term == Term::ZERO {
        return Err(WireError::Missing("entry.id"));
    }
    let body = match wire.body.ok_or(WireError::Missing("entry.body"))? {
        v1::entry::Body::Blank(true) => Body::Blank,
        v1::entry::Body::Blank(false) => return Err(WireError::Missing("entry.body.blank")),
        v1::entry::Body::Command(command) => {
            let found = command.len();
            at_most("entry.body.command", found, ENTRY_BYTES_MAX)?;
            Body::Command(command)
        }
        v1::entry::Body::Config(config) => Body::Config(self::membership(config)?),
    };
    Ok(Entry { id, stamp: lamport(wire.stamp)?, body })
}

/// Writes an entry; the command shares the entry's memory.
pub fn entry_to_wire(entry: &Entry) -> v1::Entry {
    let body = match &entry.body {
        Body::Blank => v1::entry::Body::Blank(true),
        Body::Command(command) => v1::entry::Body::Command(command.clone()),
        Body::Config(config) => v1::entry::Body::Config(membership_to_wire(config)),
    };
    v1::Entry {
        id: Some(log_id_to_wire(entry.id)),
        stamp: Some(lamport_to_wire(entry.stamp)),
        body: Some(body),
    }
}

/// Reads a hint; node 0 is none.
pub fn leader_hint(wire: Option<v1::LeaderHint>) -> Option<crate::status::LeaderHint> {
    let wire = wire.filter(|hint| hint.node > 0)?;
    Some(crate::status::LeaderHint { node: NodeId::new(wire.node), client_addr: wire.client_addr })
}

/// Reads the outer fields of a Raft message, whose receiver and sender must be nodes.
///
/// # Errors
/// [`WireError::Missing`] or [`WireError::ZeroNode`].
pub fn raft_message(wire: v1::RaftMessage) -> Result<Envelope, WireError> {
    Ok(Envelope {
        from: node("from", wire.from)?,
        to: node("to", wire.to)?,
        term: term(wire.term)?,
        kind: wire.kind.ok_or(WireError::Missing("kind"))?,
    })
}

/// A Raft message whose outer fields are read; its kind is read by who knows the Raft core's types.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    /// The sender.
    pub from: NodeId,
    /// The receiver.
    pub to: NodeId,
    /// The sender's term.
    pub term: Term,
    /// What it says.
    pub kind: v1::raft_message::Kind,
}

/// Refuses more than `max`.
///
/// # Errors
/// [`WireError::TooLarge`].
pub fn at_most(field: &'static str, found: usize, max: usize) -> Result<(), WireError> {
    if found > max { Err(WireError::TooLarge { field, found, max }) } else { Ok(()) }
}

pub(crate) fn number(field: &'static str, number: u64) -> Result<u64, WireError> {
    if number > NUMBER_MAX { Err(WireError::Number { field, number }) } else { Ok(number) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message as _;

    fn any_body() -> impl Strategy<Value = Body> {
        let nodes = || prop::collection::btree_set((1..9u64).prop_map(NodeId::new), 0..4);
        let config = (nodes(), nodes(), nodes())
            .prop_map(|(voters, outgoing, learners)| Membership { voters, outgoing, learners })
            .prop_filter("sound", |membership| membership.check().is_ok());
        prop_oneof![
            Just(Body::Blank),
            prop::collection::vec(any::<u8>(), 0..64).prop_map(|bytes| Body::Command(bytes.into())),
            config.prop_map(Body::Config),
        ]
    }

    fn any_entry() -> impl Strategy<Value = Entry> {
        (1..1000u64, 1..NUMBER_MAX, 0..NUMBER_MAX, any::<u64>(), any_body()).prop_map(
            |(term, index, counter, node, body)| Entry {
                id: LogId::new(Term::new(term), LogIndex::new(index)),
                stamp: Lamport { counter, node: NodeId::new(node) },
                body,
            },
        )
    }

    proptest! {
        #[test]
        fn entries_round_trip(sent in any_entry()) {
            let wire = entry_to_wire(&sent).encode_to_vec();
            let received = v1::Entry::decode(&wire[..]).unwrap();
            prop_assert_eq!(entry(received), Ok(sent));
        }

        #[test]
        fn a_cut_entry_never_panics_and_is_never_another_command(sent in any_entry()) {
            let wire = entry_to_wire(&sent).encode_to_vec();
            for len in 0..wire.len() {
                let Ok(cut) = v1::Entry::decode(&wire[..len]) else { continue };
                prop_assert!(entry(cut) != Ok(sent.clone()));
            }
        }

        #[test]
        fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(batch) = v1::PeerBatch::decode(&bytes[..]) {
                for message in batch.messages {
                    if let Some(v1::shard_message::Body::Raft(message)) = message.body {
                        let _ = raft_message(message);
                    }
                }
            }
            if let Ok(wire) = v1::Entry::decode(&bytes[..]) {
                let _ = entry(wire);
            }
        }
    }

    #[test]
    fn entries_hold_their_limits() {
        let of = |term, index, body| v1::Entry { id: Some(v1::LogId { term, index }), stamp: None, body };
        let command = |len| Some(v1::entry::Body::Command(vec![0; len].into()));
        assert!(entry(of(1, 1, command(ENTRY_BYTES_MAX))).is_ok());
        assert!(matches!(entry(of(1, 1, command(ENTRY_BYTES_MAX + 1))), Err(WireError::TooLarge { .. })));
        assert_eq!(entry(of(1, 1, None)), Err(WireError::Missing("entry.body")));
        assert_eq!(entry(of(0, 1, command(1))), Err(WireError::Missing("entry.id")));
        assert_eq!(entry(of(1, 0, command(1))), Err(WireError::Missing("entry.id")));
        assert!(matches!(entry(of(1, NUMBER_MAX + 1, command(1))), Err(WireError::Number { .. })));
    }

    #[test]
    fn another_cluster_is_refused() {
        let of =
            |cluster: &str| v1::RequestContext { cluster: cluster.into(), ..v1::RequestContext::default() };
        assert!(context(Some(&of("")), "a").is_ok());
        assert!(context(Some(&of("a")), "a").is_ok());
        assert!(matches!(context(Some(&of("b")), "a"), Err(ApiError::WrongCluster(_))));
    }

    #[test]
    fn a_deadline_of_zero_is_none() {
        assert_eq!(deadline(0), None);
        assert_eq!(deadline(20), Some(Duration::from_millis(20)));
    }

    #[test]
    fn reserved_consistencies_are_refused() {
        assert_eq!(linearizable(0), Ok(()));
        for reserved in [1, 2, 77] {
            assert!(matches!(linearizable(reserved), Err(ApiError::Unsupported(_))));
        }
    }
}
