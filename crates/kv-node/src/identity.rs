//! Who this node is, as written in its data directory, and how a cluster is formed exactly once.
//!
//! # Why it is done this way
//!
//! A node whose disk was wiped has forgotten its votes and its acknowledgements. If it came back as a member it could
//! help to elect a leader that lacks acknowledged writes. So each data directory has an *incarnation*, and the cluster
//! is formed over a *table* of (node, incarnation) pairs that every member holds. The table is agreed on like this:
//!
//! 1. An *empty* node that has heard from **every** initial member, none of which is formed, writes down the table of
//!    their incarnations and becomes a *candidate* for that table, for good.
//! 2. A candidate that has heard from **every** member that it is a candidate for (or formed with) the same table is
//!    *formed*.
//! 3. A candidate that hears of a formed table like its own is formed, too. An *empty* node that hears of a formed table
//!    has forgotten something, for nobody is formed before every member has promised: it is a wiped member, and stops.
//!
//! A table is formed only when every member has durably promised it, so two tables can never both be formed as long as
//! one member keeps its disk, and no wiped node is ever taken for the member it was.

use std::collections::BTreeMap;

use bytes::Bytes;
use kv_types::{ClusterId, Incarnation, NodeId};
use serde::{Deserialize, Serialize};

use crate::roster::{Roster, Standing};
use crate::shard_map::ShardMap;

/// How far a node is with the cluster's formation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stage {
    /// No cluster and no candidate for one.
    Empty,
    /// A candidate table is promised.
    Candidate,
    /// Member of a cluster.
    Formed,
}

/// The members and their disks, and the shards the cluster begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    /// The incarnation of each member.
    pub members: BTreeMap<NodeId, Incarnation>,
    /// The shards.
    pub shards: ShardMap,
}

impl Table {
    /// Names the cluster: FNV-1a over everything in the table.
    pub(crate) fn cluster_id(&self) -> ClusterId {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut feed = |bytes: &[u8]| {
            for byte in bytes {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        };
        for (node, incarnation) in &self.members {
            feed(&node.get().to_le_bytes());
            feed(&incarnation.get().to_le_bytes());
        }
        for split in self.shards.splits() {
            feed(&(split.len() as u64).to_le_bytes());
            feed(split);
        }
        ClusterId::new(hash)
    }
}

/// What a node says of itself to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Introduction {
    /// The name of its cluster.
    pub cluster: String,
    /// The node that speaks.
    pub from: NodeId,
    /// The node it means.
    pub to: NodeId,
    /// The life of its data directory.
    pub incarnation: Incarnation,
    /// How far it is.
    pub stage: Stage,
    /// Its table, from stage candidate on.
    pub table: Option<Table>,
}

/// Why a peer is not spoken to, or why this node must stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The peer belongs to a cluster of another name.
    #[error("{peer} belongs to cluster `{theirs}`, this node to `{ours}`: check the --cluster of both")]
    OtherCluster {
        /// The peer.
        peer: NodeId,
        /// Its cluster.
        theirs: String,
        /// Ours.
        ours: String,
    },
    /// The name is the same but it was formed apart.
    #[error("{peer} belongs to another cluster of the same name: {theirs} instead of {ours}")]
    OtherFormation {
        /// The peer.
        peer: NodeId,
        /// Its cluster's id.
        theirs: ClusterId,
        /// Ours.
        ours: ClusterId,
    },
    /// The call was meant for another node.
    #[error("{peer} means to speak to {meant}, but this is {me}: check the addresses in --initial-members")]
    Misdirected {
        /// The peer.
        peer: NodeId,
        /// Whom it meant.
        meant: NodeId,
        /// Who this is.
        me: NodeId,
    },
    /// Nobody we know.
    #[error("{0} is not a member of this cluster")]
    Stranger(NodeId),
    /// A member came back with another disk.
    #[error("{node} was a member with another disk: remove it and join with a new id")]
    Wiped {
        /// The member.
        node: NodeId,
    },
    /// It was a member.
    #[error(
        "{node} was removed from the cluster: its data is of no more use; to come back it joins with a new id and an empty data directory"
    )]
    Removed {
        /// The former member.
        node: NodeId,
    },
    /// The cluster was formed by others.
    #[error("the cluster was formed without {node}: check --initial-members, or join with a new id")]
    LeftOut {
        /// This node.
        node: NodeId,
    },
    /// The initial formation cannot end.
    #[error(
        "{peer} has promised another table for the new cluster: if the cluster never served, clear all data \
         directories and start again"
    )]
    OtherCandidate {
        /// The peer.
        peer: NodeId,
    },
    /// The data directory is another node's.
    #[error("the data directory belongs to {found}, but this node was started as {started}")]
    OtherNode {
        /// Whose it is.
        found: NodeId,
        /// Who was started.
        started: NodeId,
    },
    /// The data directory is another cluster's.
    #[error("the data directory belongs to cluster `{found}`, but this node was started for `{started}`")]
    OtherClusterDir {
        /// Whose it is.
        found: String,
        /// What was started.
        started: String,
    },
    /// The identity file cannot be read.
    #[error("the identity file cannot be read: {0}")]
    Unreadable(String),
}

/// The identity of this node, as its data directory holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The node.
    pub node: NodeId,
    /// The name of its cluster.
    pub cluster: String,
    /// The life of its data directory.
    pub incarnation: Incarnation,
    /// How far it is with formation.
    pub stage: Stage,
    /// The table, from stage candidate on.
    pub table: Option<Table>,
    /// For a node that joined later: the peer addresses it was told then. It is not in the table.
    pub joined: Option<BTreeMap<NodeId, String>>,
}

impl Identity {
    /// The identity of a new data directory.
    pub(crate) fn new(node: NodeId, cluster: String, incarnation: Incarnation) -> Self {
        Self { node, cluster, incarnation, stage: Stage::Empty, table: None, joined: None }
    }

    /// The identity of a node that a formed cluster has taken in.
    #[must_use]
    pub(crate) fn taken_in(&self, table: Table, contacts: BTreeMap<NodeId, String>) -> Self {
        Self { stage: Stage::Formed, table: Some(table), joined: Some(contacts), ..self.clone() }
    }

    /// The cluster's id once formed.
    pub(crate) fn cluster_id(&self) -> Option<ClusterId> {
        match self.stage {
            Stage::Formed => self.table.as_ref().map(Table::cluster_id),
            Stage::Empty | Stage::Candidate => None,
        }
    }

    /// What to say to `to`.
    pub(crate) fn introduction(&self, to: NodeId) -> Introduction {
        Introduction {
            cluster: self.cluster.clone(),
            from: self.node,
            to,
            incarnation: self.incarnation,
            stage: self.stage,
            table: self.table.clone(),
        }
    }

    /// Checks what a peer says of itself. A member with another disk is an error about that member; if it is about
    /// this very node, the node must stop.
    ///
    /// # Errors
    /// [`IdentityError`] says what does not fit.
    pub(crate) fn check(&self, peer: &Introduction, roster: &Roster) -> Result<(), IdentityError> {
        if peer.cluster != self.cluster {
            let (theirs, ours) = (peer.cluster.clone(), self.cluster.clone());
            return Err(IdentityError::OtherCluster { peer: peer.from, theirs, ours });
        }
        if peer.to != self.node {
            return Err(IdentityError::Misdirected { peer: peer.from, meant: peer.to, me: self.node });
        }
        if self.table.is_some() {
            match roster.standing(peer.from) {
                None => return Err(IdentityError::Stranger(peer.from)),
                Some(Standing::Removed) => return Err(IdentityError::Removed { node: peer.from }),
                Some(Standing::Member(known)) if known != peer.incarnation => {
                    return Err(IdentityError::Wiped { node: peer.from });
                }
                Some(Standing::Member(_)) => {}
            }
        }
        let Some(theirs) = &peer.table else { return Ok(()) };
        let known = theirs.members.get(&self.node);
        match peer.stage {
            // The table is that of the founders; whether a later member is one is for the peer to know.
            Stage::Formed if self.joined.is_some() => {}
            Stage::Formed if known.is_none() => return Err(IdentityError::LeftOut { node: self.node }),
            Stage::Formed if known != Some(&self.incarnation) || self.stage == Stage::Empty => {
                return Err(IdentityError::Wiped { node: self.node });
            }
            Stage::Candidate if known != Some(&self.incarnation) => {
                return Err(IdentityError::OtherCandidate { peer: peer.from });
            }
            Stage::Formed | Stage::Candidate | Stage::Empty => {}
        }
        match &self.table {
            Some(ours) if ours != theirs && self.stage == Stage::Formed && peer.stage == Stage::Formed => {
                let (theirs, ours) = (theirs.cluster_id(), ours.cluster_id());
                Err(IdentityError::OtherFormation { peer: peer.from, theirs, ours })
            }
            Some(ours) if ours != theirs => Err(IdentityError::OtherCandidate { peer: peer.from }),
            _ => Ok(()),
        }
    }

    /// Takes one step of the formation if what the peers said allows one; the caller must make the new identity durable
    /// before it says anything. `heard` holds the newest introduction of each initial member but this node, all of
    /// them checked.
    #[must_use]
    pub(crate) fn advance(
        &self,
        heard: &BTreeMap<NodeId, Introduction>,
        members: &[NodeId],
        shards: &ShardMap,
    ) -> Option<Self> {
        if self.stage == Stage::Formed {
            return None;
        }
        let formed = heard.values().find(|peer| peer.stage == Stage::Formed);
        if let Some(peer) = formed {
            let promised = self.stage == Stage::Candidate && self.table == peer.table;
            return promised.then(|| Self { stage: Stage::Formed, ..self.clone() });
        }
        let others = || members.iter().filter(|node| **node != self.node);
        if !others().all(|node| heard.contains_key(node)) {
            return None;
        }
        match &self.table {
            None => {
                let mut incarnations: BTreeMap<NodeId, Incarnation> =
                    heard.iter().map(|(node, peer)| (*node, peer.incarnation)).collect();
                incarnations.insert(self.node, self.incarnation);
                let table = Table { members: incarnations, shards: shards.clone() };
                Some(Self { stage: Stage::Candidate, table: Some(table), ..self.clone() })
            }
            Some(table) => {
                let agreed = heard.values().all(|peer| peer.table.as_ref() == Some(table));
                agreed.then(|| Self { stage: Stage::Formed, ..self.clone() })
            }
        }
    }

    /// Checks that the data directory belongs to the node and cluster it is started for.
    ///
    /// # Errors
    /// [`IdentityError`] names both.
    pub(crate) fn check_started_as(&self, node: NodeId, cluster: &str) -> Result<(), IdentityError> {
        if self.node != node {
            return Err(IdentityError::OtherNode { found: self.node, started: node });
        }
        if self.cluster != cluster {
            let (found, started) = (self.cluster.clone(), cluster.to_owned());
            return Err(IdentityError::OtherClusterDir { found, started });
        }
        Ok(())
    }

    /// The identity as text for the data directory.
    pub(crate) fn encode(&self) -> String {
        let file = IdentityFile {
            version: FILE_VERSION,
            node: self.node.get(),
            cluster: self.cluster.clone(),
            incarnation: self.incarnation.to_string(),
            stage: self.stage,
            members: self.table.as_ref().map(|table| {
                table.members.iter().map(|(node, life)| (node.get().to_string(), life.to_string())).collect()
            }),
            split_keys: self.table.as_ref().map(|table| {
                table
                    .shards
                    .splits()
                    .iter()
                    .map(|split| split.iter().map(|b| format!("{b:02x}")).collect())
                    .collect()
            }),
            joined: self.joined.as_ref().map(|contacts| {
                contacts.iter().map(|(node, addr)| (node.get().to_string(), addr.clone())).collect()
            }),
        };
        toml::to_string(&file).expect("an identity is plain strings and numbers")
    }

    /// Reads an identity.
    ///
    /// # Errors
    /// [`IdentityError::Unreadable`] says what is wrong with the text.
    pub(crate) fn decode(text: &[u8]) -> Result<Self, IdentityError> {
        let unreadable = |what: &dyn std::fmt::Display| IdentityError::Unreadable(what.to_string());
        let text = std::str::from_utf8(text).map_err(|error| unreadable(&error))?;
        let file: IdentityFile = toml::from_str(text).map_err(|error| unreadable(&error))?;
        if file.version != FILE_VERSION {
            return Err(unreadable(&format!("version {} is unknown to this build", file.version)));
        }
        let life = |hex: &str| {
            u64::from_str_radix(hex, 16).map(Incarnation::new).map_err(|error| unreadable(&error))
        };
        let table = match (file.members, file.split_keys) {
            (Some(members), Some(splits)) => {
                let mut incarnations = BTreeMap::new();
                for (node, hex) in members {
                    incarnations.insert(node.parse().map_err(|error| unreadable(&error))?, life(&hex)?);
                }
                let splits: Option<Vec<Bytes>> = splits.iter().map(|hex| unhex(hex)).collect();
                let splits = splits.ok_or_else(|| unreadable(&"a split key is not hexadecimal"))?;
                let shards = ShardMap::split_at(splits).map_err(|error| unreadable(&error))?;
                Some(Table { members: incarnations, shards })
            }
            _ => None,
        };
        if table.is_none() && file.stage != Stage::Empty {
            return Err(unreadable(&"it has no table of members"));
        }
        Ok(Self {
            node: NodeId::new(file.node),
            cluster: file.cluster,
            incarnation: life(&file.incarnation)?,
            stage: file.stage,
            table,
            joined: file.joined.map(contacts).transpose()?,
        })
    }
}

const FILE_VERSION: u32 = 1;

/// The identity file: TOML, so that an operator can read it.
#[derive(Serialize, Deserialize)]
struct IdentityFile {
    version: u32,
    node: u64,
    cluster: String,
    incarnation: String,
    stage: Stage,
    #[serde(skip_serializing_if = "Option::is_none")]
    split_keys: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    members: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    joined: Option<BTreeMap<String, String>>,
}

fn contacts(text: BTreeMap<String, String>) -> Result<BTreeMap<NodeId, String>, IdentityError> {
    let contact = |(node, addr): (String, String)| match node.parse() {
        Ok(node) => Ok((node, addr)),
        Err(error) => Err(IdentityError::Unreadable(format!("{error}"))),
    };
    text.into_iter().map(contact).collect()
}

fn unhex(text: &str) -> Option<Bytes> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let digits = digits?;
    if digits.len() % 2 != 0 {
        return None;
    }
    Some(digits.chunks_exact(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMBERS: [NodeId; 3] = [NodeId::new(1), NodeId::new(2), NodeId::new(3)];

    /// What a node knows that has applied nothing.
    fn roster(node: &Identity) -> Roster {
        node.table.as_ref().map_or_else(Roster::default, |table| Roster::of_table(&table.members))
    }

    fn shards() -> ShardMap {
        ShardMap::split_at(vec![Bytes::from("g"), Bytes::from_static(b"\xff")]).unwrap()
    }

    fn node(id: u64, incarnation: u64) -> Identity {
        Identity::new(NodeId::new(id), "c".to_owned(), Incarnation::new(incarnation))
    }

    /// Every node hears every other once; who hears of an error gives it back.
    fn round(nodes: &mut [Identity]) -> Result<(), IdentityError> {
        let before = nodes.to_vec();
        for me in nodes {
            let mut heard = BTreeMap::new();
            for peer in before.iter().filter(|peer| peer.node != me.node) {
                let introduction = peer.introduction(me.node);
                me.check(&introduction, &roster(me))?;
                heard.insert(peer.node, introduction);
            }
            if let Some(next) = me.advance(&heard, &MEMBERS, &shards()) {
                *me = next;
            }
        }
        Ok(())
    }

    fn formed() -> Vec<Identity> {
        let mut nodes = vec![node(1, 11), node(2, 12), node(3, 13)];
        round(&mut nodes).unwrap();
        assert!(nodes.iter().all(|node| node.stage == Stage::Candidate));
        round(&mut nodes).unwrap();
        nodes
    }

    #[test]
    fn all_members_together_form_one_cluster() {
        let nodes = formed();
        assert!(nodes.iter().all(|node| node.stage == Stage::Formed && node.table == nodes[0].table));
        assert_eq!(nodes[0].cluster_id(), nodes[2].cluster_id());
    }

    #[test]
    fn nobody_forms_a_cluster_while_a_member_is_missing() {
        let mut two = vec![node(1, 11), node(2, 12)];
        round(&mut two).unwrap();
        round(&mut two).unwrap();
        assert!(two.iter().all(|node| node.stage == Stage::Empty));
    }

    #[test]
    fn a_wiped_member_is_refused_by_its_peers_and_by_itself() {
        let nodes = formed();
        let wiped = node(3, 99);
        let by_peer = nodes[0].check(&wiped.introduction(NodeId::new(1)), &roster(&nodes[0]));
        assert_eq!(by_peer, Err(IdentityError::Wiped { node: NodeId::new(3) }));
        let by_itself = wiped.check(&nodes[0].introduction(NodeId::new(3)), &roster(&wiped));
        assert_eq!(by_itself, Err(IdentityError::Wiped { node: NodeId::new(3) }));
        let rolled_back = node(3, 13).check(&nodes[0].introduction(NodeId::new(3)), &Roster::default());
        assert_eq!(rolled_back, Err(IdentityError::Wiped { node: NodeId::new(3) }), "its promise is gone");
        let stranger = node(4, 14).check(&nodes[0].introduction(NodeId::new(4)), &Roster::default());
        assert_eq!(stranger, Err(IdentityError::LeftOut { node: NodeId::new(4) }));
    }

    #[test]
    fn a_member_wiped_during_formation_stops_it() {
        let mut nodes = vec![node(1, 11), node(2, 12), node(3, 13)];
        round(&mut nodes).unwrap();
        nodes[2] = node(3, 99);
        assert!(round(&mut nodes).is_err());
        assert!(nodes.iter().all(|node| node.stage != Stage::Formed));
    }

    #[test]
    fn a_late_member_adopts_the_formed_table() {
        let nodes = formed();
        let mut late = Identity { stage: Stage::Candidate, ..nodes[2].clone() };
        let heard = BTreeMap::from([(nodes[0].node, nodes[0].introduction(late.node))]);
        late = late.advance(&heard, &MEMBERS, &shards()).unwrap();
        assert_eq!(late, nodes[2]);
    }

    #[test]
    fn strangers_and_other_clusters_are_named() {
        let nodes = formed();
        let mut other = node(2, 12);
        other.cluster = "d".to_owned();
        assert!(matches!(
            nodes[0].check(&other.introduction(NodeId::new(1)), &roster(&nodes[0])),
            Err(IdentityError::OtherCluster { .. })
        ));
        assert!(matches!(
            nodes[0].check(&node(9, 1).introduction(NodeId::new(1)), &roster(&nodes[0])),
            Err(IdentityError::Stranger(_))
        ));
        assert!(matches!(
            nodes[0].check(&nodes[1].introduction(NodeId::new(3)), &roster(&nodes[0])),
            Err(IdentityError::Misdirected { .. })
        ));
        assert!(nodes[0].check_started_as(NodeId::new(2), "c").is_err());
        assert!(nodes[0].check_started_as(NodeId::new(1), "x").is_err());
    }

    #[test]
    fn a_node_that_joined_is_heard_once_the_roster_has_it() {
        let nodes = formed();
        let (one, table) = (&nodes[0], nodes[0].table.clone().unwrap());
        let contacts = BTreeMap::from([(NodeId::new(1), "h:1".to_owned())]);
        let joined = node(4, 14).taken_in(table, contacts);
        let from_joined = joined.introduction(NodeId::new(1));
        assert_eq!(one.check(&from_joined, &roster(one)), Err(IdentityError::Stranger(NodeId::new(4))));
        let with = |life| {
            let mut members = one.table.clone().unwrap().members;
            members.insert(NodeId::new(4), Incarnation::new(life));
            Roster::of_table(&members)
        };
        assert_eq!(one.check(&from_joined, &with(14)), Ok(()));
        assert_eq!(one.check(&from_joined, &with(15)), Err(IdentityError::Wiped { node: NodeId::new(4) }));
        assert_eq!(joined.check(&one.introduction(NodeId::new(4)), &roster(one)), Ok(()));
        assert_eq!(joined.cluster_id(), one.cluster_id());
        assert_eq!(Identity::decode(joined.encode().as_bytes()), Ok(joined));
    }

    #[test]
    fn the_file_round_trips_and_damage_is_an_error() {
        for identity in formed().into_iter().chain([node(7, u64::MAX)]) {
            let text = identity.encode();
            assert_eq!(Identity::decode(text.as_bytes()), Ok(identity));
            for cut in 0..text.len() - 1 {
                let _ = Identity::decode(&text.as_bytes()[..cut]);
            }
        }
        assert!(Identity::decode(b"version = 2").is_err());
        assert!(Identity::decode(b"\xff").is_err());
    }
}
