//! Where the members are and when they were last heard from.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kv_types::{Incarnation, Nanos, NodeId};

/// What is known of a member besides its place in the table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contact {
    /// Where it serves peers.
    pub peer_addr: String,
    /// Where it says clients reach it; empty until it was heard from.
    pub client_addr: String,
    /// The life of its disk; 0 until it was heard from.
    pub incarnation: Incarnation,
    /// Whether the stream to it stands.
    pub connected: bool,
    /// When something was last heard from it.
    pub heard: Option<Nanos>,
}

/// All members, this node included.
#[derive(Debug)]
pub(crate) struct Directory {
    members: Mutex<BTreeMap<NodeId, Contact>>,
    /// Where this node dials some of them instead.
    proxies: BTreeMap<NodeId, String>,
}

impl Directory {
    /// The members by their configured peer addresses, and the proxies on the way to them.
    pub(crate) fn new(members: &BTreeMap<NodeId, String>, proxies: BTreeMap<NodeId, String>) -> Self {
        let contact = |addr: &String| Contact { peer_addr: addr.clone(), ..Contact::default() };
        let members = members.iter().map(|(node, addr)| (*node, contact(addr))).collect();
        Self { members: Mutex::new(members), proxies }
    }

    /// The address of the proxy through which a member is dialled, if there is one.
    pub(crate) fn proxy(&self, node: NodeId) -> Option<&str> {
        self.proxies.get(&node).map(String::as_str)
    }

    /// Changes what is known of a member; strangers are not added.
    pub(crate) fn update(&self, node: NodeId, change: impl FnOnce(&mut Contact)) {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(contact) = members.get_mut(&node) {
            change(contact);
        }
    }

    /// Holds exactly these members from now on; what is known of those that stay is kept.
    pub(crate) fn set_members(&self, wanted: &BTreeMap<NodeId, (String, String)>) {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.retain(|node, _| wanted.contains_key(node));
        for (node, (peer_addr, client_addr)) in wanted {
            let contact = members.entry(*node).or_default();
            contact.peer_addr.clone_from(peer_addr);
            if contact.client_addr.is_empty() {
                contact.client_addr.clone_from(client_addr);
            }
        }
    }

    /// Where clients reach a member, if it has said so.
    pub(crate) fn client_addr(&self, node: NodeId) -> Option<String> {
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.get(&node).map(|contact| contact.client_addr.clone()).filter(|addr| !addr.is_empty())
    }

    /// How many members a link stands to.
    pub(crate) fn connected(&self) -> usize {
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.values().filter(|contact| contact.connected).count()
    }

    /// Everything known, by node.
    pub(crate) fn all(&self) -> BTreeMap<NodeId, Contact> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Contact {
    /// Whether nothing was heard for so long that the member may be down.
    pub(crate) fn is_suspect(&self, now: Nanos, patience: Duration) -> bool {
        self.heard.is_none_or(|heard| now.since(heard) > patience)
    }
}
