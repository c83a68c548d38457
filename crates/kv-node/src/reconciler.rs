//! Makes the cluster what the meta group says it shall be.
//!
//! Every node looks at the cluster's row as it has applied it. From it come the links to the members, what this node
//! believes of its peers, and the settings of its replicas. And for each group that this node leads, its reconciler
//! takes the group one step closer to the wanted members: add who is missing as a learner, let learners vote that have
//! caught up, then let go of who shall leave. Nothing is remembered between two looks, so a step can be taken up by
//! whoever leads next: after a crash at any point the next look finds out where things stand.
//!
//! A node that was away while others joined may not know the node that leads, and so would never hear from it: nobody
//! links to strangers. While it finds no leader of the meta group, it asks the members it knows what they have applied,
//! and believes the newest of that about its peers. After a start, it believes what its own log has of them, committed or
//! not, as Raft does of the voters.
//!
//! The leader of a group may have applied less of the meta group's log than others; before it takes a step it reads the
//! row linearisably, so that nobody works towards members that were wanted once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kv_raft::{PeerStatus, Role, Target};
use kv_shard::ReplicaStatus;
use kv_state::cluster::{ClusterCommand, ClusterState, Member, Wanted};
use kv_types::{LogIndex, Membership, Nanos, NodeId, Revision, ShardId};
use rand::seq::IteratorRandom as _;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::clock;
use crate::directory::Directory;
use crate::fatal::Fatal;
use crate::gateway::{Gateway, ShardHandle};
use crate::identity::Table;
use crate::links::Links;
use crate::mailbox::Control;
use crate::membership::Membership as Peers;
use crate::meta::{Applied, Meta};
use crate::roster::Roster;

/// How often it looks.
const INTERVAL: Duration = Duration::from_millis(100);

/// So often does it ask others for the members while there is no leader of the meta group.
const LEADERLESS_LOOKS: u32 = 5;

/// A learner that lacks at most so many entries has caught up: they take less than an election timeout.
const CAUGHT_UP_ENTRIES: u64 = 1000;

/// What it looks at and works through.
pub(crate) struct Reconciler {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) meta: Meta,
    pub(crate) links: Arc<Links>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) fatal: Fatal,
    /// The table the cluster was formed over.
    pub(crate) table: Table,
    /// The cluster as this node's log had it at the start.
    pub(crate) foreseen: Applied,
    /// The peer addresses this node was started with: whoever starts nodes knows better than what was recorded.
    pub(crate) configured: BTreeMap<NodeId, String>,
    /// Where this node serves: peers, clients.
    pub(crate) addresses: (String, String),
    /// A member that is silent for longer may be down.
    pub(crate) patience: Duration,
}

/// What is kept from one look to the next.
#[derive(Default)]
struct Seen {
    /// What links and roster follow.
    followed: Option<ClusterState>,
    /// The newest that others have told, or that its own log foresees; of no use once as much is applied.
    told: Applied,
    /// Looks without a leader of the meta group, in a row.
    leaderless: u32,
}

/// What a group needs next.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Another membership.
    Reconfigure(Target),
    /// A leader that stays.
    HandOver(BTreeSet<NodeId>),
    /// It is as wanted.
    Done,
    /// Time: for a change under way, or for a learner to catch up.
    Wait,
}

impl Reconciler {
    /// Runs until the node stops.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let _guard = self.fatal.on_panic("the reconciler".to_owned());
        let work = async {
            let mut seen = Seen { told: self.foreseen.clone(), ..Seen::default() };
            loop {
                self.look(&mut seen).await;
                tokio::time::sleep(INTERVAL).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
    }

    async fn look(&self, seen: &mut Seen) {
        // First: the row that is read after it is as new, at least.
        let reached = self.gateway.meta().map_or(LogIndex::ZERO, |meta| meta.reader.applied());
        let Applied { revision, cluster } = match self.meta.applied() {
            Ok(applied) => applied,
            Err(cause) => {
                warn!(%cause, "the cluster's row cannot be read");
                return;
            }
        };
        self.ask_around(revision, seen).await;
        let ahead = seen.told.revision > reached.revision().max(revision);
        let newest = if ahead { &seen.told.cluster } else { &cluster };
        if newest.change != Revision::ZERO && seen.followed.as_ref() != Some(newest) {
            self.follow(newest);
            seen.followed = Some(newest.clone());
        }
        if cluster.change == Revision::ZERO {
            self.found().await;
            return;
        }
        self.announce(&cluster).await;
        let behind = |group: &ShardId| cluster.groups.get(group).is_none_or(|g| g.reached < cluster.change);
        for handle in self.gateway.shards.values().filter(|handle| behind(&handle.shard)) {
            if handle.leadership.leader() == Some(self.gateway.node) {
                self.drive(handle).await;
            }
        }
    }

    /// Without a leader of the meta group, asks those that are linked who the members are.
    async fn ask_around(&self, applied: Revision, seen: &mut Seen) {
        if self.gateway.meta().is_ok_and(|meta| meta.leadership.leader().is_some()) {
            seen.leaderless = 0;
            return;
        }
        seen.leaderless += 1;
        if seen.leaderless.is_multiple_of(LEADERLESS_LOOKS) {
            let contacts = self.directory.all();
            let linked = contacts.iter().filter(|(_, contact)| contact.connected).map(|(node, _)| *node);
            let known = applied.max(seen.told.revision);
            if let Some(told) = self.meta.newer(known, linked).await {
                info!(revision = %told.revision, "others know of newer members");
                seen.told = told;
            }
        }
    }

    /// The first leader of the meta group writes down who formed the cluster, once it knows where all of them are.
    async fn found(&self) {
        let leads = self.gateway.meta().is_ok_and(|meta| meta.leadership.leader() == Some(self.gateway.node));
        let contacts = self.directory.all();
        let member = |(node, life): (&NodeId, &kv_types::Incarnation)| {
            let contact = contacts.get(node)?;
            (!contact.client_addr.is_empty()).then(|| {
                let member = Member {
                    incarnation: Some(*life),
                    wanted: Wanted::Voter,
                    peer_addr: contact.peer_addr.clone(),
                    client_addr: contact.client_addr.clone(),
                };
                (*node, member)
            })
        };
        let members: BTreeMap<NodeId, Member> = self.table.members.iter().filter_map(member).collect();
        if !leads || members.len() < self.table.members.len() {
            return;
        }
        let groups = self.table.shards.shards().collect();
        if let Err(cause) = self.meta.change(ClusterCommand::Found { members, groups }).await {
            debug!(%cause, "the founding is not recorded yet");
        }
    }

    /// A node that serves elsewhere than is recorded says so.
    async fn announce(&self, cluster: &ClusterState) {
        let node = self.gateway.node;
        let Some(me) = cluster.members.get(&node).filter(|me| me.wanted != Wanted::Removed) else { return };
        let (peer_addr, client_addr) = self.addresses.clone();
        let (Some(incarnation), true) =
            (me.incarnation, me.peer_addr != peer_addr || me.client_addr != client_addr)
        else {
            return;
        };
        let moved = ClusterCommand::Join { node, incarnation, peer_addr, client_addr, wanted: me.wanted };
        if let Err(cause) = self.meta.change(moved).await {
            debug!(%cause, "the new addresses are not recorded yet");
        }
    }

    /// Links, roster and settings as the cluster has them now.
    fn follow(&self, cluster: &ClusterState) {
        let me = cluster.members.get(&self.gateway.node);
        if me.is_some_and(|me| me.wanted == Wanted::Removed) && cluster.is_settled() {
            self.peers.stop_as_removed();
        }
        let settled = cluster.is_settled();
        // Who is leaving hears the groups out.
        let linked = cluster.members.iter().filter(|(node, member)| {
            let leaving = cluster.subject == Some(**node) && !settled;
            member.incarnation.is_some() && (member.wanted != Wanted::Removed || leaving)
        });
        let contacts: BTreeMap<NodeId, (String, String)> = linked
            .map(|(node, member)| {
                let peer_addr = self.configured.get(node).unwrap_or(&member.peer_addr);
                (*node, (peer_addr.clone(), member.client_addr.clone()))
            })
            .collect();
        self.peers.learn(Roster::of_cluster(cluster));
        self.directory.set_members(&contacts);
        let addrs = contacts.into_iter().map(|(node, (peer, _))| (node, peer)).collect();
        self.links.set_members(&addrs);
        for handle in self.gateway.shards.values() {
            handle.mailbox.control(Control::Settings(cluster.settings));
        }
    }

    /// Takes a group that this node leads one step closer to what is wanted.
    async fn drive(&self, handle: &ShardHandle) {
        let Ok(cluster) = self.meta.current().await else { return };
        let (asked, status) = oneshot::channel();
        handle.mailbox.control(Control::Status(asked));
        let Ok(status) = status.await else { return };
        if status.raft.role != Role::Leader {
            return;
        }
        let shard = handle.shard;
        let wanted = wanted_of(shard, &cluster, &status.raft.membership);
        match self.next_step(&status, &wanted) {
            // The meta group has everybody it may have for now.
            Step::Done if wanted != cluster.wanted() => {}
            Step::Wait => {}
            Step::Done => {
                let (change, membership) = (cluster.change, status.raft.membership.clone());
                let reached = ClusterCommand::Reached { group: shard, change, membership };
                if let Err(cause) = self.meta.change(reached).await {
                    debug!(%shard, %cause, "what was reached is not recorded yet");
                }
            }
            Step::Reconfigure(target) => {
                let (asked, answer) = oneshot::channel();
                info!(%shard, voters = ?target.voters, learners = ?target.learners, "changing the members");
                handle.mailbox.control(Control::Reconfigure(target, asked));
                if let Ok(Err(cause)) = answer.await {
                    debug!(%shard, %cause, "the members cannot be changed now");
                }
            }
            Step::HandOver(heirs) => {
                let contacts = self.directory.all();
                let now = clock::now();
                let up = |node: &&NodeId| {
                    contacts.get(*node).is_some_and(|contact| !contact.is_suspect(now, self.patience))
                };
                let matched = |node: &&NodeId| {
                    let peer = status.raft.peers.get(*node);
                    peer.map_or(0, |peer| peer.matched.get())
                };
                let most = heirs.iter().filter(up).map(|node| matched(&node)).max().unwrap_or_default();
                // Any that is nearly as far as the furthest: that one may not be able to lead, and nobody says so.
                let fit = |node: &&NodeId| matched(node) + CAUGHT_UP_ENTRIES >= most;
                let Some(heir) = heirs.iter().filter(up).filter(fit).choose(&mut rand::rng()) else { return };
                let (asked, answer) = oneshot::channel();
                handle.mailbox.control(Control::Transfer(*heir, asked));
                if let Ok(Err(cause)) = answer.await {
                    debug!(%shard, %heir, %cause, "the leadership cannot be handed over now");
                }
            }
        }
    }

    fn next_step(&self, status: &ReplicaStatus, wanted: &Membership) -> Step {
        let (now, last) = (clock::now(), status.raft.last.index);
        let caught_up = |node: &NodeId| {
            let peer = status.raft.peers.get(node);
            *node == status.raft.id || peer.is_some_and(|peer| has_caught_up(peer, last, now, self.patience))
        };
        let committed = status.raft.membership_index <= status.raft.commit;
        next_step(&status.raft.membership, committed, wanted, status.raft.id, caught_up)
    }
}

/// Whether a learner may vote: it has answered of late, and lacks little of a log that ends at `last`. Without an answer
/// nothing is known of it, and as a voter it would only count against the others.
fn has_caught_up(peer: &PeerStatus, last: LogIndex, now: Nanos, patience: Duration) -> bool {
    let recent = peer.last_contact.is_some_and(|at| now.since(at) < patience);
    recent && peer.matched.get() + CAUGHT_UP_ENTRIES >= last.get()
}

/// What a group shall have next. The meta group lets go of a node only after all others have: as long as that node leads
/// one of them, it has to read what is wanted.
fn wanted_of(shard: ShardId, cluster: &ClusterState, current: &Membership) -> Membership {
    let mut wanted = cluster.wanted();
    let mut others = cluster.groups.iter().filter(|(group, _)| **group != ShardId::META);
    if shard == ShardId::META && others.any(|(_, group)| group.reached < cluster.change) {
        let stays = |node: &NodeId| !cluster.wanted().contains(*node);
        wanted.voters.extend(current.voters.iter().copied().filter(stays));
        wanted.learners.extend(current.learners.iter().copied().filter(stays));
    }
    wanted
}

/// The next step from the membership in force to the wanted one. Whoever shall vote and does not yet is a learner first;
/// nobody leaves before all who are wanted as voters vote, as far as they have caught up.
fn next_step(
    current: &Membership,
    committed: bool,
    wanted: &Membership,
    me: NodeId,
    caught_up: impl Fn(&NodeId) -> bool,
) -> Step {
    if current.is_joint() || !committed {
        return Step::Wait;
    }
    if current.voters == wanted.voters && current.learners == wanted.learners {
        return Step::Done;
    }
    let mut target = Target { voters: current.voters.clone(), learners: current.learners.clone() };
    for node in wanted.voters.iter().filter(|node| !current.voters.contains(*node)) {
        if current.learners.contains(node) && caught_up(node) {
            target.learners.remove(node);
            target.voters.insert(*node);
        } else {
            target.learners.insert(*node);
        }
    }
    // Who is to be demoted is in both for the moment.
    let waiting = wanted.voters.iter().any(|node| !target.voters.contains(node));
    for node in &wanted.learners {
        if !target.voters.contains(node) {
            target.learners.insert(*node);
        } else if !waiting {
            target.voters.remove(node);
            target.learners.insert(*node);
        }
    }
    let member = |node: &NodeId| wanted.voters.contains(node) || wanted.learners.contains(node);
    target.learners.retain(member);
    if !waiting {
        target.voters.retain(|node| wanted.voters.contains(node));
    }
    if target.voters == current.voters && target.learners == current.learners {
        return Step::Wait;
    }
    if !target.voters.contains(&me) {
        return Step::HandOver(target.voters.intersection(&current.voters).copied().collect());
    }
    Step::Reconfigure(target)
}

#[cfg(test)]
mod tests {
    use kv_raft::ProgressState;

    use super::*;

    const ME: NodeId = NodeId::new(1);

    fn nodes(raw: &[u64]) -> BTreeSet<NodeId> {
        raw.iter().map(|node| NodeId::new(*node)).collect()
    }

    fn members(voters: &[u64], learners: &[u64]) -> Membership {
        Membership { voters: nodes(voters), learners: nodes(learners), ..Membership::default() }
    }

    fn target(voters: &[u64], learners: &[u64]) -> Step {
        Step::Reconfigure(Target { voters: nodes(voters), learners: nodes(learners) })
    }

    fn step(current: &Membership, wanted: &Membership, caught_up: bool) -> Step {
        next_step(current, true, wanted, ME, |_| caught_up)
    }

    #[test]
    fn a_new_voter_is_a_learner_until_it_has_caught_up() {
        let wanted = members(&[1, 2, 3, 4], &[]);
        assert_eq!(step(&members(&[1, 2, 3], &[]), &wanted, true), target(&[1, 2, 3], &[4]));
        let learning = members(&[1, 2, 3], &[4]);
        assert_eq!(step(&learning, &wanted, false), Step::Wait);
        assert_eq!(step(&learning, &wanted, true), target(&[1, 2, 3, 4], &[]));
        assert_eq!(step(&wanted, &wanted, false), Step::Done);
    }

    #[test]
    fn who_has_not_answered_of_late_has_not_caught_up() {
        let (patience, now) = (Duration::from_secs(1), Nanos::new(5_000_000_000));
        let learner = |matched: u64, last_contact: Option<u64>| PeerStatus {
            matched: LogIndex::new(matched),
            next: LogIndex::new(matched + 1),
            state: ProgressState::Replicate,
            in_flight: 0,
            last_contact: last_contact.map(Nanos::new),
            clock_rate: None,
            clock_is_off: false,
        };
        let voter = |peer: PeerStatus, last: u64| has_caught_up(&peer, LogIndex::new(last), now, patience);
        assert!(!voter(learner(0, None), 10), "it has never answered, however little it lacks");
        assert!(!voter(learner(10, Some(4_000_000_000)), 10), "it has fallen silent");
        assert!(voter(learner(0, Some(4_000_000_001)), 10));
        assert!(voter(learner(10, Some(5_000_000_000)), 10 + CAUGHT_UP_ENTRIES));
        assert!(!voter(learner(10, Some(5_000_000_000)), 11 + CAUGHT_UP_ENTRIES), "it lacks too much");
    }

    #[test]
    fn a_learner_stays_one_and_a_voter_may_become_one() {
        let wanted = members(&[1, 2], &[3]);
        assert_eq!(step(&members(&[1, 2], &[]), &wanted, true), target(&[1, 2], &[3]));
        assert_eq!(step(&members(&[1, 2, 3], &[]), &wanted, true), target(&[1, 2], &[3]));
    }

    #[test]
    fn nobody_leaves_before_the_new_voters_vote() {
        let wanted = members(&[1, 2, 4], &[]);
        assert_eq!(step(&members(&[1, 2, 3], &[]), &wanted, true), target(&[1, 2, 3], &[4]));
        assert_eq!(step(&members(&[1, 2, 3], &[4]), &wanted, false), Step::Wait);
        assert_eq!(step(&members(&[1, 2, 3], &[4]), &wanted, true), target(&[1, 2, 4], &[]));
    }

    #[test]
    fn a_leader_that_is_to_leave_hands_over_first() {
        let wanted = members(&[2, 3], &[]);
        assert_eq!(step(&members(&[1, 2, 3], &[]), &wanted, true), Step::HandOver(nodes(&[2, 3])));
        assert_eq!(step(&members(&[2, 3], &[1]), &wanted, true), Step::HandOver(nodes(&[2, 3])));
    }

    #[test]
    fn a_change_under_way_is_waited_for() {
        let joint = Membership { outgoing: nodes(&[1]), ..members(&[1, 2], &[]) };
        assert_eq!(step(&joint, &members(&[1], &[]), true), Step::Wait);
        let uncommitted = next_step(&members(&[1], &[]), false, &members(&[1], &[2]), ME, |_| true);
        assert_eq!(uncommitted, Step::Wait);
    }

    #[test]
    fn the_meta_group_lets_go_of_a_node_last() {
        let member = |node: u64| Member {
            incarnation: Some(kv_types::Incarnation::new(node)),
            wanted: Wanted::Voter,
            peer_addr: String::new(),
            client_addr: String::new(),
        };
        let (data, at) = (ShardId::new(1), Revision::new);
        let found = ClusterCommand::Found {
            members: (1..=3).map(|node| (NodeId::new(node), member(node))).collect(),
            groups: vec![ShardId::META, data],
        };
        let mut cluster = ClusterState::default();
        cluster.apply(at(1), found).unwrap();
        cluster.apply(at(2), ClusterCommand::Remove { node: NodeId::new(3) }).unwrap();
        let (all, left) = (members(&[1, 2, 3], &[]), members(&[1, 2], &[]));
        assert_eq!(wanted_of(data, &cluster, &all), left);
        assert_eq!(wanted_of(ShardId::META, &cluster, &all), all);
        let reached = ClusterCommand::Reached { group: data, change: at(2), membership: left.clone() };
        cluster.apply(at(3), reached).unwrap();
        assert_eq!(wanted_of(ShardId::META, &cluster, &all), left);
    }

    #[test]
    fn every_path_ends_at_what_is_wanted_and_never_without_voters() {
        let all = [&[1_u64][..], &[1, 2], &[1, 2, 3], &[1, 3, 4], &[1, 2, 3, 4, 5]];
        for from in all {
            for to in all {
                for learners in [&[][..], &[6], &[5, 6]] {
                    let learners: Vec<u64> = learners.iter().filter(|n| !to.contains(n)).copied().collect();
                    let wanted = members(to, &learners);
                    let mut current = members(from, &[]);
                    let mut steps = 0;
                    while let Step::Reconfigure(target) = step(&current, &wanted, true) {
                        assert!(!target.voters.is_empty());
                        current = Membership {
                            voters: target.voters,
                            learners: target.learners,
                            ..Membership::default()
                        };
                        current.check().unwrap();
                        steps += 1;
                        assert!(steps < 5, "{from:?} to {wanted}");
                    }
                    assert_eq!(step(&current, &wanted, true), Step::Done, "{from:?} to {wanted}");
                }
            }
        }
    }
}
