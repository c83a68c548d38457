//! The cluster's row and its commands as bytes.
//!
//! The same layout rules as for commands: little-endian numbers, byte strings with their length, a tag before each
//! choice; the row begins with its version.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kv_types::limits::{ADDR_BYTES_MAX, CLOCK_DRIFT_PPM_MAX};
use kv_types::{Incarnation, Membership, NodeId, Revision, ShardId};

use super::{ClusterCommand, ClusterState, Group, Member, ReadMode, Settings, Wanted};
use crate::codec::{DecodeError, put_bytes, take_bytes, take_u8, take_u32, take_u64};

const ROW_VERSION: u8 = 1;

const FOUND: u8 = 1;
const ADD: u8 = 2;
const JOIN: u8 = 3;
const PROMOTE: u8 = 4;
const REMOVE: u8 = 5;
const REACHED: u8 = 6;
const SET_READ_MODE: u8 = 7;
const SET_CLOCK_DRIFT: u8 = 8;

impl ClusterState {
    /// The row's value.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(ROW_VERSION);
        out.put_u64_le(self.change.get());
        out.put_u64_le(self.subject.map_or(0, NodeId::get));
        put_members(&mut out, &self.members);
        out.put_u32_le(len(self.groups.len()));
        for (shard, group) in &self.groups {
            out.put_u32_le(shard.get());
            out.put_u64_le(group.reached.get());
            put_membership(&mut out, &group.membership);
        }
        out.put_u8(read_mode_tag(self.settings.read_mode));
        out.put_u32_le(self.settings.clock_drift_ppm);
        out.freeze()
    }

    /// Reads the row's value.
    ///
    /// # Errors
    /// [`DecodeError`] says what is wrong; no input panics.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let input = &mut bytes.clone();
        match take_u8(input)? {
            ROW_VERSION => {}
            version => return Err(DecodeError::Version(version)),
        }
        let change = Revision::new(take_u64(input)?);
        let subject = Some(NodeId::new(take_u64(input)?)).filter(|node| *node != NodeId::ZERO);
        let members = take_members(input)?;
        let mut groups = BTreeMap::new();
        for _ in 0..take_u32(input)? {
            let shard = ShardId::new(take_u32(input)?);
            let reached = Revision::new(take_u64(input)?);
            groups.insert(shard, Group { reached, membership: take_membership(input)? });
        }
        let settings = Settings { read_mode: take_read_mode(input)?, clock_drift_ppm: take_drift(input)? };
        let state = Self { change, subject, members, groups, settings };
        if input.has_remaining() {
            return Err(DecodeError::Trailing(input.remaining()));
        }
        if state.groups.values().any(|group| group.reached > state.change) {
            return Err(DecodeError::Field("a group ahead of the cluster"));
        }
        Ok(state)
    }
}

impl ClusterCommand {
    pub(crate) fn put(&self, out: &mut BytesMut) {
        match self {
            Self::Found { members, groups } => {
                out.put_u8(FOUND);
                put_members(out, members);
                out.put_u32_le(len(groups.len()));
                for group in groups {
                    out.put_u32_le(group.get());
                }
            }
            Self::Add { node, peer_addr, wanted } => {
                out.put_u8(ADD);
                out.put_u64_le(node.get());
                put_bytes(out, peer_addr.as_bytes());
                out.put_u8(wanted_tag(*wanted));
            }
            Self::Join { node, incarnation, peer_addr, client_addr, wanted } => {
                out.put_u8(JOIN);
                out.put_u64_le(node.get());
                out.put_u64_le(incarnation.get());
                put_bytes(out, peer_addr.as_bytes());
                put_bytes(out, client_addr.as_bytes());
                out.put_u8(wanted_tag(*wanted));
            }
            Self::Promote { node } => {
                out.put_u8(PROMOTE);
                out.put_u64_le(node.get());
            }
            Self::Remove { node } => {
                out.put_u8(REMOVE);
                out.put_u64_le(node.get());
            }
            Self::Reached { group, change, membership } => {
                out.put_u8(REACHED);
                out.put_u32_le(group.get());
                out.put_u64_le(change.get());
                put_membership(out, membership);
            }
            Self::SetReadMode(mode) => {
                out.put_u8(SET_READ_MODE);
                out.put_u8(read_mode_tag(*mode));
            }
            Self::SetClockDrift(ppm) => {
                out.put_u8(SET_CLOCK_DRIFT);
                out.put_u32_le(*ppm);
            }
        }
    }

    pub(crate) fn take(input: &mut Bytes) -> Result<Self, DecodeError> {
        Ok(match take_u8(input)? {
            FOUND => {
                let members = take_members(input)?;
                let count = take_u32(input)?;
                let groups =
                    (0..count).map(|_| take_u32(input).map(ShardId::new)).collect::<Result<_, _>>()?;
                Self::Found { members, groups }
            }
            ADD => {
                Self::Add { node: take_node(input)?, peer_addr: take_addr(input)?, wanted: take_role(input)? }
            }
            JOIN => Self::Join {
                node: take_node(input)?,
                incarnation: Incarnation::new(take_u64(input)?),
                peer_addr: take_addr(input)?,
                client_addr: take_addr(input)?,
                wanted: take_role(input)?,
            },
            PROMOTE => Self::Promote { node: take_node(input)? },
            REMOVE => Self::Remove { node: take_node(input)? },
            REACHED => Self::Reached {
                group: ShardId::new(take_u32(input)?),
                change: Revision::new(take_u64(input)?),
                membership: take_membership(input)?,
            },
            SET_READ_MODE => Self::SetReadMode(take_read_mode(input)?),
            SET_CLOCK_DRIFT => Self::SetClockDrift(take_u32(input)?),
            tag => return Err(DecodeError::Tag { field: "cluster command", tag }),
        })
    }
}

fn len(count: usize) -> u32 {
    u32::try_from(count).expect("members and groups are few")
}

fn put_members(out: &mut BytesMut, members: &BTreeMap<NodeId, Member>) {
    out.put_u32_le(len(members.len()));
    for (node, member) in members {
        out.put_u64_le(node.get());
        out.put_u8(u8::from(member.incarnation.is_some()));
        out.put_u64_le(member.incarnation.unwrap_or_default().get());
        out.put_u8(wanted_tag(member.wanted));
        put_bytes(out, member.peer_addr.as_bytes());
        put_bytes(out, member.client_addr.as_bytes());
    }
}

fn take_members(input: &mut Bytes) -> Result<BTreeMap<NodeId, Member>, DecodeError> {
    let mut members = BTreeMap::new();
    for _ in 0..take_u32(input)? {
        let node = take_node(input)?;
        let joined = match take_u8(input)? {
            0 => false,
            1 => true,
            tag => return Err(DecodeError::Tag { field: "joined", tag }),
        };
        let incarnation = Incarnation::new(take_u64(input)?);
        let member = Member {
            incarnation: joined.then_some(incarnation),
            wanted: take_wanted(input)?,
            peer_addr: take_addr(input)?,
            client_addr: take_addr(input)?,
        };
        members.insert(node, member);
    }
    Ok(members)
}

fn put_nodes(out: &mut BytesMut, nodes: &BTreeSet<NodeId>) {
    out.put_u32_le(len(nodes.len()));
    for node in nodes {
        out.put_u64_le(node.get());
    }
}

fn take_nodes(input: &mut Bytes) -> Result<BTreeSet<NodeId>, DecodeError> {
    let count = take_u32(input)?;
    (0..count).map(|_| take_node(input)).collect()
}

fn put_membership(out: &mut BytesMut, membership: &Membership) {
    put_nodes(out, &membership.voters);
    put_nodes(out, &membership.outgoing);
    put_nodes(out, &membership.learners);
}

fn take_membership(input: &mut Bytes) -> Result<Membership, DecodeError> {
    let (voters, outgoing, learners) = (take_nodes(input)?, take_nodes(input)?, take_nodes(input)?);
    let membership = Membership { voters, outgoing, learners };
    membership.check().map_err(|_| DecodeError::Field("a membership"))?;
    Ok(membership)
}

fn take_node(input: &mut Bytes) -> Result<NodeId, DecodeError> {
    match take_u64(input)? {
        0 => Err(DecodeError::Field("node 0")),
        raw => Ok(NodeId::new(raw)),
    }
}

fn take_addr(input: &mut Bytes) -> Result<String, DecodeError> {
    let text =
        String::from_utf8(take_bytes(input)?.to_vec()).map_err(|_| DecodeError::Field("an address"))?;
    if text.len() > ADDR_BYTES_MAX { Err(DecodeError::Field("an address")) } else { Ok(text) }
}

fn wanted_tag(wanted: Wanted) -> u8 {
    match wanted {
        Wanted::Voter => 0,
        Wanted::Learner => 1,
        Wanted::Removed => 2,
    }
}

fn take_wanted(input: &mut Bytes) -> Result<Wanted, DecodeError> {
    match take_u8(input)? {
        0 => Ok(Wanted::Voter),
        1 => Ok(Wanted::Learner),
        2 => Ok(Wanted::Removed),
        tag => Err(DecodeError::Tag { field: "wanted role", tag }),
    }
}

/// What a node can be asked to join as.
fn take_role(input: &mut Bytes) -> Result<Wanted, DecodeError> {
    match take_wanted(input)? {
        Wanted::Removed => Err(DecodeError::Field("a node that joins to be removed")),
        role @ (Wanted::Voter | Wanted::Learner) => Ok(role),
    }
}

fn read_mode_tag(mode: ReadMode) -> u8 {
    match mode {
        ReadMode::Lease => 0,
        ReadMode::ReadIndex => 1,
    }
}

fn take_read_mode(input: &mut Bytes) -> Result<ReadMode, DecodeError> {
    match take_u8(input)? {
        0 => Ok(ReadMode::Lease),
        1 => Ok(ReadMode::ReadIndex),
        tag => Err(DecodeError::Tag { field: "read mode", tag }),
    }
}

fn take_drift(input: &mut Bytes) -> Result<u32, DecodeError> {
    let ppm = take_u32(input)?;
    if ppm > CLOCK_DRIFT_PPM_MAX { Err(DecodeError::Field("a clock drift")) } else { Ok(ppm) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Command;

    fn node() -> impl Strategy<Value = NodeId> {
        (1..9_u64).prop_map(NodeId::new)
    }

    fn role() -> impl Strategy<Value = Wanted> {
        prop_oneof![Just(Wanted::Voter), Just(Wanted::Learner)]
    }

    fn member() -> impl Strategy<Value = Member> {
        let wanted = prop_oneof![role(), Just(Wanted::Removed)];
        (prop::option::of(any::<u64>()), wanted, "[a-z]{0,9}", "[a-z]{0,9}").prop_map(
            |(life, wanted, peer_addr, client_addr)| Member {
                incarnation: life.map(Incarnation::new),
                wanted,
                peer_addr,
                client_addr,
            },
        )
    }

    fn members() -> impl Strategy<Value = BTreeMap<NodeId, Member>> {
        prop::collection::btree_map(node(), member(), 0..5)
    }

    fn membership() -> impl Strategy<Value = Membership> {
        let voters = || prop::collection::btree_set(node(), 1..5);
        (voters(), voters(), any::<bool>()).prop_map(|(voters, outgoing, joint)| Membership {
            outgoing: if joint { outgoing } else { BTreeSet::new() },
            learners: BTreeSet::from([NodeId::new(9)]),
            voters,
        })
    }

    fn mode() -> impl Strategy<Value = ReadMode> {
        prop_oneof![Just(ReadMode::Lease), Just(ReadMode::ReadIndex)]
    }

    fn command() -> impl Strategy<Value = ClusterCommand> {
        let groups = prop::collection::vec((0..9_u32).prop_map(ShardId::new), 0..4);
        let life = any::<u64>().prop_map(Incarnation::new);
        prop_oneof![
            (members(), groups).prop_map(|(members, groups)| ClusterCommand::Found { members, groups }),
            (node(), "[a-z]{0,9}", role()).prop_map(|(node, peer_addr, wanted)| ClusterCommand::Add {
                node,
                peer_addr,
                wanted
            }),
            (node(), life, "[a-z]{0,9}", "[a-z]{0,9}", role()).prop_map(
                |(node, incarnation, peer_addr, client_addr, wanted)| ClusterCommand::Join {
                    node,
                    incarnation,
                    peer_addr,
                    client_addr,
                    wanted
                }
            ),
            node().prop_map(|node| ClusterCommand::Promote { node }),
            node().prop_map(|node| ClusterCommand::Remove { node }),
            (0..9_u32, any::<u64>(), membership()).prop_map(|(group, change, membership)| {
                ClusterCommand::Reached {
                    group: ShardId::new(group),
                    change: Revision::new(change),
                    membership,
                }
            }),
            mode().prop_map(ClusterCommand::SetReadMode),
            any::<u32>().prop_map(ClusterCommand::SetClockDrift),
        ]
    }

    fn state() -> impl Strategy<Value = ClusterState> {
        let group = (any::<u64>(), membership());
        let groups = prop::collection::btree_map((0..9_u32).prop_map(ShardId::new), group, 0..4);
        let settings = (mode(), 0..=CLOCK_DRIFT_PPM_MAX);
        (any::<u64>(), prop::option::of(node()), members(), groups, settings).prop_map(
            |(change, subject, members, groups, (read_mode, clock_drift_ppm))| ClusterState {
                change: Revision::new(change),
                subject,
                members,
                groups: groups
                    .into_iter()
                    .map(|(shard, (reached, membership))| {
                        (shard, Group { reached: Revision::new(reached.min(change)), membership })
                    })
                    .collect(),
                settings: Settings { read_mode, clock_drift_ppm },
            },
        )
    }

    proptest! {
        #[test]
        fn commands_round_trip_and_every_truncation_is_refused(command in command()) {
            let command = Command::Cluster(command);
            let bytes = command.encode();
            prop_assert_eq!(Command::decode(bytes.clone()), Ok(command));
            for cut in 0..bytes.len() {
                prop_assert!(Command::decode(bytes.slice(..cut)).is_err());
            }
        }

        #[test]
        fn rows_round_trip_and_every_truncation_is_refused(state in state()) {
            let bytes = state.encode();
            prop_assert_eq!(ClusterState::decode(&bytes), Ok(state));
            for cut in 0..bytes.len() {
                prop_assert!(ClusterState::decode(&bytes.slice(..cut)).is_err());
            }
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..96)) {
            let _ = ClusterState::decode(&Bytes::from(bytes));
        }
    }
}
