//! What the meta group knows of the cluster: its members, how far each group has taken them over, and its settings.
//!
//! # How it works
//!
//! An operator, or a node that joins, changes the *wanted* members ([`ClusterCommand`]). Each change that concerns the
//! groups has a number, the revision of its entry. The leader of every group compares the wanted members with its own
//! membership, takes one step at a time, and reports the change it has carried out ([`ClusterCommand::Reached`]). A
//! change is under way until every group has reported it; the next one is refused until then, with one exception: what
//! is under way may always be given up by removing the node it is about.
//!
//! All of it is one row of the meta group: it is small, it changes seldom, and every node reads it as a whole.
//!
//! # Invariants
//! Checked by [`ClusterState::apply`] and by the codec:
//! - at least one node that has joined is wanted as a voter, once the cluster is founded;
//! - an id that was removed, and an incarnation that was refused, never come back;
//! - no group has reached a change that was not asked for.

mod codec;
mod step;

use std::collections::BTreeMap;

use kv_types::{Incarnation, Membership, NodeId, Revision, RowKey, ShardId};

/// The cluster as the meta group has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterState {
    /// The newest change of the wanted members; zero before the cluster is founded.
    pub change: Revision,
    /// The node which that change is about; `None` if it is the founding.
    pub subject: Option<NodeId>,
    /// Every node that is or ever was a member, or is announced.
    pub members: BTreeMap<NodeId, Member>,
    /// Every group.
    pub groups: BTreeMap<ShardId, Group>,
    /// The settings of the cluster.
    pub settings: Settings,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The life of its data directory; `None` while it is announced and has not joined.
    pub incarnation: Option<Incarnation>,
    /// What it shall be in every group.
    pub wanted: Wanted,
    /// Where it serves peers, HOST:PORT.
    pub peer_addr: String,
    /// Where it serves clients, HOST:PORT.
    pub client_addr: String,
}

/// What a member shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// It votes, once it has caught up.
    Voter,
    /// It receives the log and does not vote.
    Learner,
    /// It is no member any more; its id is never used again.
    Removed,
}

/// How far a group is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// The change of the wanted members it has carried out.
    pub reached: Revision,
    /// Its membership at that time.
    pub membership: Membership,
}

/// Settings that every node follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How leaders serve linearisable reads.
    pub read_mode: ReadMode,
    /// How much faster or slower than real time a clock may run, in millionths. Leases are shorter by it.
    pub clock_drift_ppm: u32,
}

/// How leaders serve linearisable reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadMode {
    /// By their lease, while they have one.
    Lease,
    /// By a round of messages.
    ReadIndex,
}

/// A change of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterCommand {
    /// The cluster was formed by these members with these groups. Only the first one counts.
    Found {
        /// The initial members, all voters.
        members: BTreeMap<NodeId, Member>,
        /// All groups.
        groups: Vec<ShardId>,
    },
    /// Announces a node: it may join from now on as what it is wanted to be.
    Add {
        /// The node.
        node: NodeId,
        /// Where it will serve peers.
        peer_addr: String,
        /// Voter or learner.
        wanted: Wanted,
    },
    /// A node with an empty disk has started. Announced or not, it is a member from now on. Said twice, it counts once.
    Join {
        /// The node.
        node: NodeId,
        /// The life of its data directory.
        incarnation: Incarnation,
        /// Where it serves peers.
        peer_addr: String,
        /// Where it serves clients.
        client_addr: String,
        /// Voter or learner, if it was not announced.
        wanted: Wanted,
    },
    /// A learner shall vote.
    Promote {
        /// The node.
        node: NodeId,
    },
    /// A node shall be no member any more.
    Remove {
        /// The node.
        node: NodeId,
    },
    /// A group has carried a change out.
    Reached {
        /// The group.
        group: ShardId,
        /// The change.
        change: Revision,
        /// Its membership now.
        membership: Membership,
    },
    /// How leaders serve linearisable reads from now on.
    SetReadMode(ReadMode),
    /// How far clocks may drift, in millionths.
    SetClockDrift(u32),
}

/// Why the cluster was not changed. The same on every replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClusterRefusal {
    /// There is no such member.
    #[error("{0} is not a member")]
    UnknownMember(NodeId),
    /// There is one already.
    #[error("{0} is a member already")]
    MemberExists(NodeId),
    /// A node of that id was removed, or is a member with another disk.
    #[error("the id of {0} is used up: join with a new id")]
    IdUsed(NodeId),
    /// The group needs one voter at least.
    #[error("{0} is the last voter")]
    LastVoter(NodeId),
    /// Another change is under way.
    #[error("a change of the members is under way: wait for it, or remove the node it is about")]
    ChangeInProgress,
    /// There are too many members.
    #[error("a cluster has at most {} members", kv_types::limits::MEMBERS_MAX)]
    TooManyMembers,
    /// No such group, or no such change.
    #[error("{0} cannot have reached that change")]
    NotAsked(ShardId),
    /// A number that makes no sense.
    #[error("clocks may drift by at most {} millionths", kv_types::limits::CLOCK_DRIFT_PPM_MAX)]
    DriftOutOfRange,
    /// The founding of the cluster is not recorded yet.
    #[error("the cluster has just been formed: try again")]
    NotFounded,
}

impl Default for Settings {
    fn default() -> Self {
        Self { read_mode: ReadMode::Lease, clock_drift_ppm: kv_types::limits::CLOCK_DRIFT_PPM }
    }
}

impl ClusterState {
    /// The row of the meta group that holds it.
    pub fn row_key() -> RowKey {
        crate::system_key::cluster()
    }

    /// What every group's membership shall be: those that have joined and are not removed.
    pub fn wanted(&self) -> Membership {
        let joined = |wanted| {
            let members = self.members.iter();
            let fits = members.filter(move |(_, m)| m.incarnation.is_some() && m.wanted == wanted);
            fits.map(|(node, _)| *node).collect()
        };
        Membership {
            voters: joined(Wanted::Voter),
            learners: joined(Wanted::Learner),
            ..Membership::default()
        }
    }

    /// Whether every group has carried out the newest change.
    pub fn is_settled(&self) -> bool {
        self.groups.values().all(|group| group.reached == self.change)
    }
}
