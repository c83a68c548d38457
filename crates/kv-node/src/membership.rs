//! This node's identity at run time: what it says to peers, what it learns from them, and when the cluster is formed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use kv_proto::v1;
use kv_storage::data_dir::{DataDirError, write_identity};
use kv_storage::disk::Disk;
use kv_types::{ClusterId, Incarnation, NodeId};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::clock;
use crate::directory::Directory;
use crate::fatal::Fatal;
use crate::identity::{Identity, IdentityError, Introduction, Stage, Table};
use crate::roster::{Roster, Standing};
use crate::shard_map::ShardMap;

/// The identity, shared by everything that talks to peers.
#[derive(Debug)]
pub(crate) struct Membership {
    state: Mutex<State>,
    members: Vec<NodeId>,
    shards: ShardMap,
    disk: Arc<dyn Disk>,
    directory: Arc<Directory>,
    fatal: Fatal,
    formed: watch::Sender<bool>,
    /// Where this node serves: peers, clients.
    addresses: (String, String),
}

#[derive(Debug)]
struct State {
    identity: Identity,
    roster: Roster,
    heard: BTreeMap<NodeId, Introduction>,
    /// The last complaint about each peer, so that each is logged once.
    complaints: BTreeMap<NodeId, IdentityError>,
}

impl Membership {
    pub(crate) fn new(
        identity: Identity,
        (members, shards): (Vec<NodeId>, ShardMap),
        disk: Arc<dyn Disk>,
        (directory, fatal): (Arc<Directory>, Fatal),
        addresses: (String, String),
    ) -> Self {
        let formed = watch::Sender::new(identity.stage == Stage::Formed);
        let roster = founders(&identity);
        let state = State { identity, roster, heard: BTreeMap::new(), complaints: BTreeMap::new() };
        let membership =
            Self { state: Mutex::new(state), members, shards, disk, directory, fatal, formed, addresses };
        // A cluster of one has heard from everybody.
        membership.advance(&mut membership.lock());
        membership
    }

    /// Completes once the cluster is formed.
    pub(crate) async fn formed(&self) -> Table {
        let mut formed = self.formed.subscribe();
        // The sender lives as long as `self`.
        let _ = formed.wait_for(|formed| *formed).await;
        let table = self.lock().identity.table.clone();
        table.expect("a formed identity has a table")
    }

    pub(crate) fn is_formed(&self) -> bool {
        *self.formed.borrow()
    }

    pub(crate) fn cluster_id(&self) -> Option<ClusterId> {
        self.lock().identity.cluster_id()
    }

    /// The name of the cluster.
    pub(crate) fn cluster(&self) -> String {
        self.lock().identity.cluster.clone()
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        self.lock().identity.incarnation
    }

    /// Which members have not been heard from yet.
    pub(crate) fn missing(&self) -> Vec<NodeId> {
        let state = self.lock();
        let missing = |node: &&NodeId| **node != state.identity.node && !state.heard.contains_key(*node);
        self.members.iter().filter(missing).copied().collect()
    }

    /// What this node says to a peer.
    pub(crate) fn introduce(&self, to: NodeId) -> v1::Identity {
        let state = self.lock();
        let introduction = state.identity.introduction(to);
        let (peer_addr, client_addr) = self.addresses.clone();
        let speaker = v1::Member {
            node: introduction.from.get(),
            peer_addr,
            client_addr,
            incarnation: introduction.incarnation.get(),
        };
        v1::Identity {
            cluster: introduction.cluster,
            from: introduction.from.get(),
            to: introduction.to.get(),
            incarnation: introduction.incarnation.get(),
            stage: match introduction.stage {
                Stage::Empty => v1::Stage::Empty,
                Stage::Candidate => v1::Stage::Candidate,
                Stage::Formed => v1::Stage::Formed,
            }
            .into(),
            candidate: introduction.table.as_ref().map(table_to_wire),
            cluster_id: state.identity.cluster_id().unwrap_or_default().get(),
            speaker: Some(speaker),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Hears what a peer says of itself, and takes the steps of formation that it allows.
    ///
    /// # Errors
    /// [`IdentityError`] if it is not to be spoken to. If this very node turns out to be a member with another disk,
    /// the node stops.
    pub(crate) fn hear(&self, wire: &v1::Identity) -> Result<NodeId, IdentityError> {
        let introduction = introduction(wire)?;
        let peer = introduction.from;
        let mut state = self.lock();
        let formed = state.identity.stage == Stage::Formed;
        if !formed && !self.members.contains(&peer) {
            return Err(IdentityError::Stranger(peer));
        }
        if let Err(error) = state.identity.check(&introduction, &state.roster) {
            let me = state.identity.node;
            if error == (IdentityError::Wiped { node: me }) || error == (IdentityError::LeftOut { node: me })
            {
                self.fatal.stop(error.to_string());
            }
            if state.complaints.insert(peer, error.clone()).as_ref() != Some(&error) {
                warn!(%peer, "{error}");
            }
            return Err(error);
        }
        state.complaints.remove(&peer);
        if let Some(speaker) = &wire.speaker {
            self.directory.update(peer, |contact| {
                contact.client_addr.clone_from(&speaker.client_addr);
                contact.incarnation = introduction.incarnation;
                contact.heard = Some(clock::now());
            });
        }
        state.heard.insert(peer, introduction);
        self.advance(&mut state);
        Ok(peer)
    }

    /// Takes the steps of formation that what was heard allows; each is durable before anybody hears of it.
    fn advance(&self, state: &mut State) {
        // A node that joins forms nothing.
        if self.members.is_empty() {
            return;
        }
        while let Some(next) = state.identity.advance(&state.heard, &self.members, &self.shards) {
            if let Err(error) = self.save(&next) {
                self.fatal.stop(format!("the identity cannot be written: {error}"));
                return;
            }
            state.identity = next;
            state.roster = founders(&state.identity);
            if let Some(id) = state.identity.cluster_id() {
                info!(cluster_id = %id, "the cluster is formed");
                self.formed.send_replace(true);
            }
        }
    }

    /// The meta group has other members than this node knew.
    pub(crate) fn learn(&self, roster: Roster) {
        self.lock().roster = roster;
    }

    /// Whether a node may speak at the moment.
    pub(crate) fn is_member(&self, node: NodeId) -> bool {
        matches!(self.lock().roster.standing(node), Some(Standing::Member(_)))
    }

    /// A formed cluster has taken this node in.
    ///
    /// # Errors
    /// [`DataDirError`] if that cannot be written down.
    pub(crate) fn taken_in(
        &self,
        table: Table,
        contacts: BTreeMap<NodeId, String>,
    ) -> Result<(), DataDirError> {
        let mut state = self.lock();
        let next = state.identity.taken_in(table, contacts);
        self.save(&next)?;
        state.identity = next;
        state.roster = founders(&state.identity);
        info!(cluster_id = ?state.identity.cluster_id(), "joined the cluster");
        self.formed.send_replace(true);
        Ok(())
    }

    /// The addresses this node was told when it joined; `None` if it is one of the founders.
    pub(crate) fn joined(&self) -> Option<BTreeMap<NodeId, String>> {
        self.lock().identity.joined.clone()
    }

    /// The table the cluster was formed over.
    pub(crate) fn table(&self) -> Option<Table> {
        self.lock().identity.table.clone().filter(|_| self.is_formed())
    }

    /// The members have removed this node: it says so and stops.
    pub(crate) fn stop_as_removed(&self) {
        let node = self.lock().identity.node;
        self.fatal.stop(IdentityError::Removed { node }.to_string());
    }

    fn save(&self, identity: &Identity) -> Result<(), DataDirError> {
        write_identity(self.disk.as_ref(), identity.encode().as_bytes())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The members as the identity has them, before anything of the meta group's log is known.
fn founders(identity: &Identity) -> Roster {
    identity.table.as_ref().map_or_else(Roster::default, |table| Roster::of_table(&table.members))
}

pub(crate) fn table_to_wire(table: &Table) -> v1::CandidateTable {
    let member = |(node, incarnation): (&NodeId, &Incarnation)| v1::Member {
        node: node.get(),
        incarnation: incarnation.get(),
        ..v1::Member::default()
    };
    v1::CandidateTable {
        members: table.members.iter().map(member).collect(),
        split_keys: table.shards.splits().to_vec(),
    }
}

pub(crate) fn table_from_wire(table: &v1::CandidateTable) -> Result<Table, IdentityError> {
    let mut members = BTreeMap::new();
    for member in &table.members {
        members.insert(node_from_wire(member.node)?, Incarnation::new(member.incarnation));
    }
    let shards = ShardMap::split_at(table.split_keys.clone());
    let shards = shards.map_err(|error| IdentityError::Unreadable(error.to_string()))?;
    Ok(Table { members, shards })
}

fn node_from_wire(raw: u64) -> Result<NodeId, IdentityError> {
    if raw == 0 { Err(IdentityError::Unreadable("node 0".to_owned())) } else { Ok(NodeId::new(raw)) }
}

fn introduction(wire: &v1::Identity) -> Result<Introduction, IdentityError> {
    let unreadable = |what: &str| IdentityError::Unreadable(what.to_owned());
    let stage = match wire.stage() {
        v1::Stage::Empty => Stage::Empty,
        v1::Stage::Candidate => Stage::Candidate,
        v1::Stage::Formed => Stage::Formed,
        v1::Stage::Unspecified => return Err(unreadable("no stage")),
    };
    let table = match &wire.candidate {
        None if stage == Stage::Empty => None,
        None => return Err(unreadable("no table")),
        Some(table) => Some(table_from_wire(table)?),
    };
    Ok(Introduction {
        cluster: wire.cluster.clone(),
        from: node_from_wire(wire.from)?,
        to: node_from_wire(wire.to)?,
        incarnation: Incarnation::new(wire.incarnation),
        stage,
        table,
    })
}
