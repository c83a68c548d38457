//! What a rule may look at.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use kv_types::{ShardId, Term};

use crate::Filter;
use crate::quantity::ParseError;

/// What a message is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// Entries of a log.
    Append,
    /// An append without entries.
    Heartbeat,
    /// A vote.
    Vote,
    /// A vote that binds nobody.
    PreVote,
    /// A part of a snapshot.
    SnapshotChunk,
    /// A leader tells its successor to stand for election.
    TimeoutNow,
    /// A follower asks for a read index.
    ReadIndex,
    /// A participant is to prepare a transaction.
    Prepare,
    /// The anchor is to decide a transaction.
    Decide,
    /// A participant is told a decision.
    Resolve,
    /// The anchor is asked for a decision.
    Known,
    /// Between a client and a node.
    Client,
    /// Everything else.
    Control,
}

/// Whether a message asks or answers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Half {
    /// It asks.
    Request,
    /// It answers.
    Reply,
}

/// One message, as far as rules look at it. What is unknown fits no filter that asks for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// What it is about.
    pub kind: Kind,
    /// Whether it asks or answers.
    pub half: Half,
    /// The shard it is about.
    pub shard: Option<ShardId>,
    /// The term of its sender.
    pub term: Option<Term>,
    /// The log indexes of its entries.
    pub indexes: Option<RangeInclusive<u64>>,
    /// Its size.
    pub bytes: u64,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Append,
        Self::Heartbeat,
        Self::Vote,
        Self::PreVote,
        Self::SnapshotChunk,
        Self::TimeoutNow,
        Self::ReadIndex,
        Self::Prepare,
        Self::Decide,
        Self::Resolve,
        Self::Known,
        Self::Client,
        Self::Control,
    ];

    /// Its name in text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Heartbeat => "heartbeat",
            Self::Vote => "vote",
            Self::PreVote => "pre-vote",
            Self::SnapshotChunk => "snapshot-chunk",
            Self::TimeoutNow => "timeout-now",
            Self::ReadIndex => "read-index",
            Self::Prepare => "prepare",
            Self::Decide => "decide",
            Self::Resolve => "resolve",
            Self::Known => "known",
            Self::Client => "client",
            Self::Control => "control",
        }
    }
}

impl Kind {
    /// Whether a message of this kind and half is ever sent.
    const fn has(self, half: Half) -> bool {
        // A heartbeat is answered as an append.
        !matches!((self, half), (Self::Heartbeat | Self::TimeoutNow, Half::Reply))
    }

    const fn names_shard(self) -> bool {
        !matches!(self, Self::Client)
    }

    const fn names_term(self) -> bool {
        matches!(
            self,
            Self::Append
                | Self::Heartbeat
                | Self::Vote
                | Self::PreVote
                | Self::SnapshotChunk
                | Self::TimeoutNow
                | Self::ReadIndex
        )
    }

    /// Whether some message of this kind can be what a filter asks for, on a link of clients or of nodes.
    pub(crate) fn can_fit(self, filter: &Filter, is_of_clients: bool) -> bool {
        let has_half = |half: Half| {
            filter.half.is_none_or(|wanted| wanted == half)
                && self.has(half)
                && (filter.indexes.is_none() || (self, half) == (Self::Append, Half::Request))
        };
        (self == Self::Client) == is_of_clients
            && (filter.kinds.is_empty() || filter.kinds.contains(&self))
            && Half::ALL.into_iter().any(has_half)
            && (filter.shard.is_none() || self.names_shard())
            && (filter.terms.is_none() || self.names_term())
    }
}

impl Half {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Request, Self::Reply];

    /// Its name in text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Reply => "reply",
        }
    }
}

impl FromStr for Kind {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let expected = "append, heartbeat, vote, pre-vote, snapshot-chunk, timeout-now, read-index, prepare, decide, \
                        resolve, known, client or control is expected";
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| ParseError::new(text, "kind of message", expected))
    }
}

impl FromStr for Half {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let found = Self::ALL.into_iter().find(|half| half.name() == text);
        found.ok_or_else(|| ParseError::new(text, "half", "request or reply is expected"))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Half {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_print_and_read_back() {
        for kind in Kind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        for half in Half::ALL {
            assert_eq!(half.to_string().parse(), Ok(half));
        }
        assert_eq!(BTreeSet::from(Kind::ALL).len(), Kind::ALL.len());
        assert!("Append".parse::<Kind>().is_err() && "".parse::<Half>().is_err());
    }
}
