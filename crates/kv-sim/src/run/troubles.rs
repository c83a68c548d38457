//! Trouble of every kind, with an end to most.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kv_raft::Target;
use kv_storage::Generation;
use kv_storage::disk::faulty::{FaultKind, VirtualDisk};
use kv_storage::disk::{Disk, DiskFile};
use kv_types::{Membership, NodeId, ShardId};
use rand::RngExt;

use super::{Happening, Run};
use crate::clock::MILLION;
use crate::planted::Planted;
use crate::scenario::Fault;

/// Where the WAL lies in the data directory.
const WAL_DIR: &str = "wal";

impl Run {
    pub(super) fn next_trouble(&mut self) {
        let pause = self.dice.troubles.random_range(1..=2 * self.plan.trouble_ms * 1000);
        self.after(Duration::from_micros(pause), Happening::Trouble);
    }

    fn lasting(&mut self) -> Duration {
        Duration::from_micros(self.dice.troubles.random_range(1000..=self.plan.lasts_ms.max(2) * 1000))
    }

    fn any_node(&mut self) -> NodeId {
        NodeId::new(self.dice.troubles.random_range(1..=self.cluster.settings.nodes))
    }

    fn any_shard(&mut self) -> ShardId {
        let first = u32::from(!self.cluster.settings.has_meta);
        ShardId::new(self.dice.troubles.random_range(first..=self.cluster.settings.shards))
    }

    /// A leader half of the time: trouble there matters most.
    fn victim(&mut self, shard: ShardId) -> NodeId {
        let any = self.any_node();
        match self.cluster.leader(shard) {
            Some(leader) if self.dice.troubles.random_range(0..2) == 0 => leader,
            Some(_) | None => any,
        }
    }

    pub(super) fn trouble(&mut self) {
        if !self.is_troubled {
            return;
        }
        self.next_trouble();
        let Some(fault) = self.draw_fault() else { return };
        self.troubles += 1;
        let shard = self.any_shard();
        let node = self.victim(shard);
        self.strike(fault, node, shard);
    }

    fn draw_fault(&mut self) -> Option<Fault> {
        let sum: u32 = self.plan.mix.iter().map(|(_, weight)| weight).sum();
        let mut dice = self.dice.troubles.random_range(0..sum.max(1));
        let fault = self.plan.mix.iter().find(|(_, weight)| {
            let hit = dice < *weight;
            dice = dice.saturating_sub(*weight);
            hit
        });
        fault.map(|(fault, _)| *fault)
    }

    fn strike(&mut self, fault: Fault, node: NodeId, shard: ShardId) {
        match fault {
            Fault::Crash => self.power_cut(node),
            Fault::TornCrash => self.torn_crash(node),
            Fault::Suspend => {
                let until = self.cluster.now.after(self.lasting());
                self.suspended.insert(node, until);
            }
            Fault::OneWayCut => {
                let other = self.any_node();
                self.cut(vec![(node, other)]);
            }
            Fault::Isolate => self.part(&BTreeSet::from([node])),
            Fault::Mute => {
                let others = self.cluster.settings.nodes().filter(|other| *other != node);
                let cuts = others.map(|other| (node, other)).collect();
                self.cut(cuts);
            }
            Fault::Partition => {
                let side: BTreeSet<NodeId> = self
                    .cluster
                    .settings
                    .nodes()
                    .filter(|_| self.dice.troubles.random_range(0..2) == 0)
                    .collect();
                self.part(&side);
            }
            Fault::StallDisk => {
                self.cluster.stalled_disks.insert(node);
                let span = self.lasting();
                self.after(span, Happening::Unstall(node));
            }
            Fault::FailSync => self.fail_sync(node),
            Fault::FullDisk => {
                let left = self.dice.troubles.random_range(0..=self.cluster.settings.segment_bytes * 2);
                self.cluster.of(node).disk.leave_free(left);
                let span = self.lasting();
                self.after(span, Happening::Room(node));
            }
            Fault::ClockRate => self.draw_rate(node),
            Fault::ClockFreeze => {
                let now = self.cluster.now;
                self.cluster.clock_mut(node).set_rate(now, 0);
                let span = self.lasting();
                self.after(span, Happening::Unfreeze(node));
            }
            Fault::ClockJump => {
                let (now, by) = (self.cluster.now, self.lasting());
                self.cluster.clock_mut(node).jump(now, by);
                self.touch(node);
            }
            Fault::Transfer => self.transfer(shard),
            Fault::Reconfigure => self.reconfigure(shard),
            Fault::Campaign => {
                self.cluster.turn_with(node, shard, |replica, now| {
                    replica.campaign(now);
                    Ok(())
                });
            }
            Fault::Wipe => self.wipe(node),
            Fault::Rot => self.rot(node),
            Fault::Spoil => self.spoil(node, shard),
            Fault::KeepHouse => self.keep_house(node, shard),
        }
    }

    /// What is to be done next may have another time now.
    fn touch(&mut self, node: NodeId) {
        for shard in self.cluster.settings.shards() {
            self.turns.remove(&(node, shard));
            self.cluster.touched.insert((node, shard));
        }
    }

    /// The power goes: of what was not synced, all stays, or any legal part.
    pub(super) fn crash(&mut self, node: NodeId) {
        let keeps_all = self.dice.troubles.random_range(0..3) == 0;
        let rng = &mut self.dice.disk;
        self.cluster.crash(node, &mut |outcomes| if keeps_all { 0 } else { rng.random_range(0..outcomes) });
        self.forget(node);
    }

    /// The process is gone, and with it what it was about to do.
    fn forget(&mut self, node: NodeId) {
        self.writing.remove(&node);
        self.suspended.remove(&node);
        self.cluster.stalled_disks.remove(&node);
        for shard in self.cluster.settings.shards() {
            self.turns.remove(&(node, shard));
        }
    }

    fn power_cut(&mut self, node: NodeId) {
        if self.cluster.is_up(node) {
            self.crash(node);
            let span = self.lasting();
            self.after(span, Happening::Restart(node));
        }
    }

    fn torn_crash(&mut self, node: NodeId) {
        if !self.cluster.is_up(node) {
            return;
        }
        let calls = self.dice.troubles.random_range(0..6);
        match self.dice.troubles.random_range(0..3) {
            0 => self.cluster.node(node).tear_wal(calls),
            1 => self.cluster.step_merges_in_vain(node, calls),
            _ => {
                self.crash(node);
                let calls = self.dice.troubles.random_range(0..20);
                self.cluster.restart_in_vain(node, calls);
            }
        }
        self.crash(node);
        let span = self.lasting();
        self.after(span, Happening::Restart(node));
    }

    pub(super) fn restart(&mut self, node: NodeId) {
        if self.cluster.is_up(node) || self.lost.contains(&node) {
            return;
        }
        self.forget(node);
        self.cluster.failing_disks.remove(&node);
        // Without room a node does not start: whoever starts it sees to that.
        self.cluster.of(node).disk.set_capacity(u64::MAX);
        self.cluster.restart(node);
    }

    /// Somebody has tidied up.
    pub(super) fn make_room(&mut self, node: NodeId) {
        self.cluster.of(node).disk.set_capacity(u64::MAX);
        self.begin_write(node);
        self.touch(node);
    }

    fn fail_sync(&mut self, node: NodeId) {
        if self.cluster.is_up(node) {
            self.cluster.failing_disks.insert(node);
            let nth = self.dice.troubles.random_range(1..4);
            self.cluster.node(node).disk.fail_nth(FaultKind::Sync, nth, std::io::ErrorKind::Other);
            let span = self.lasting();
            self.after(span, Happening::Restart(node));
        }
    }

    fn cut(&mut self, cuts: Vec<(NodeId, NodeId)>) {
        for (from, to) in &cuts {
            self.cluster.network.cut(*from, *to);
        }
        let span = self.lasting();
        self.after(span, Happening::Mend(cuts));
    }

    /// Cuts every path between these nodes and the others.
    fn part(&mut self, side: &BTreeSet<NodeId>) {
        let nodes = || self.cluster.settings.nodes();
        let across = nodes().flat_map(|from| nodes().map(move |to| (from, to)));
        let cuts = across.filter(|(from, to)| side.contains(from) != side.contains(to)).collect();
        self.cut(cuts);
    }

    /// A rate that the bound allows, or any that a clock may have if nothing rests on it.
    fn draw_rate(&mut self, node: NodeId) {
        let skew = self.plan.skew_ppm;
        // The ends of the range are where it matters.
        let ends = [MILLION - skew, MILLION + skew, MILLION];
        let between = self.dice.troubles.random_range(MILLION - skew..=MILLION + skew);
        let at = self.dice.troubles.random_range(0..4usize);
        let ppm = ends.get(at).copied().unwrap_or(between);
        let now = self.cluster.now;
        self.cluster.clock_mut(node).set_rate(now, ppm);
        self.touch(node);
    }

    pub(super) fn draw_rates(&mut self) {
        for node in self.cluster.settings.nodes() {
            self.draw_rate(node);
        }
    }

    pub(super) fn unfreeze(&mut self, node: NodeId) {
        self.draw_rate(node);
    }

    fn transfer(&mut self, shard: ShardId) {
        let to = self.any_node();
        if let Some(leader) = self.cluster.leader(shard)
            && self.awake(leader).is_none()
        {
            self.cluster.turn_with(leader, shard, |replica, now| {
                // A refusal is an answer as well.
                let _ = replica.transfer(now, to);
                Ok(())
            });
        }
    }

    fn reconfigure(&mut self, shard: ShardId) {
        let Some(leader) = self.cluster.leader(shard) else { return };
        // One whose rows are damaged could not lead.
        let mut sound: Vec<NodeId> = self.sound().into_iter().collect();
        if sound.is_empty() {
            return;
        }
        let mut voters = BTreeSet::new();
        for _ in 0..self.dice.troubles.random_range(1..=sound.len().min(5)) {
            let at = self.dice.troubles.random_range(0..sound.len());
            voters.insert(sound.swap_remove(at));
        }
        let learners = match self.dice.troubles.random_range(0..3) {
            0 => sound.first().copied().into_iter().collect(),
            _ => BTreeSet::new(),
        };
        if self.awake(leader).is_none() {
            self.cluster.turn_with(leader, shard, |replica, now| {
                let _ = replica.reconfigure(now, Target { voters, learners });
                Ok(())
            });
        }
    }

    fn keep_house(&mut self, node: NodeId, shard: ShardId) {
        if self.awake(node).is_some() {
            return;
        }
        match self.dice.troubles.random_range(0..8) {
            0..6 => {
                self.cluster.begin_merge(node, shard);
                let span = self.lasting() / 4;
                self.after(span, Happening::Compact(node, shard));
            }
            6 => self.cluster.begin_regeneration(node, shard),
            _ => self.cluster.release(node),
        }
    }

    /// The memberships that a group may be decided by: those in the logs of all nodes that are left.
    pub(super) fn memberships(&self) -> Vec<Membership> {
        let groups = self.cluster.world.groups.values();
        let ghosts = groups.flat_map(|group| group.replicas.iter());
        ghosts.filter(|(node, _)| !self.lost.contains(node)).map(|(_, ghost)| ghost.membership().1).collect()
    }

    /// Whether these nodes are a quorum, whichever membership counts.
    pub(super) fn suffice(&self, nodes: &BTreeSet<NodeId>) -> bool {
        let most = |voters: &BTreeSet<NodeId>| {
            voters.is_empty() || voters.intersection(nodes).count() > voters.len() / 2
        };
        self.memberships().iter().all(|membership| most(&membership.voters) && most(&membership.outgoing))
    }

    /// Whether the groups can go on without this node for ever.
    pub(super) fn is_expendable(&self, node: NodeId) -> bool {
        let left = self.sound().into_iter().filter(|other| *other != node);
        let left: BTreeSet<NodeId> = left.collect();
        !self.lost.contains(&node) && self.suffice(&left)
    }

    /// The nodes that are left and have all their rows.
    pub(super) fn sound(&self) -> BTreeSet<NodeId> {
        let spoiled = |node: &NodeId| self.cluster.spoiled.keys().any(|(spoiled, _)| spoiled == node);
        self.cluster.settings.nodes().filter(|node| !self.lost.contains(node) && !spoiled(node)).collect()
    }

    /// A row rots on the disk of a node that is down; or it is only found out, by the scrub of one that is up.
    fn spoil(&mut self, node: NodeId, shard: ShardId) {
        let is_spoiled = self.cluster.spoiled.contains_key(&(node, shard));
        if is_spoiled || !self.is_expendable(node) || !self.cluster.is_up(node) {
            return;
        }
        let generation = self.cluster.generation(node, shard);
        if self.dice.troubles.random_range(0..2) == 0 {
            if self.awake(node).is_none() {
                self.cluster.spoiled.insert((node, shard), generation);
                self.cluster.find_damage(node, shard, generation, "the scrub says so".to_owned());
                self.keep_busy(node);
            }
            return;
        }
        self.crash(node);
        self.rot_row(node, (shard, generation));
        let span = self.lasting();
        self.after(span, Happening::Restart(node));
    }

    /// A row rots on the disk of a node that is down; whether there is one.
    pub(super) fn rot_row(&mut self, node: NodeId, (shard, generation): (ShardId, Generation)) -> bool {
        let rng = &mut self.dice.disk;
        let dir = Path::new(&format!("shard-{}", shard.get())).join(generation.to_string());
        let has_rotted =
            self.cluster.of(node).engines.rot(&dir, &mut |outcomes| rng.random_range(0..outcomes));
        if has_rotted {
            self.cluster.spoiled.insert((node, shard), generation);
        }
        has_rotted
    }

    /// There is something to do in the background.
    fn keep_busy(&mut self, node: NodeId) {
        if let Some(life) = self.cluster.life(node) {
            life.is_busy = true;
        }
        self.touch(node);
    }

    /// The disk is replaced by an empty one. Its node has no place in the groups any more: it might vote twice.
    fn wipe(&mut self, node: NodeId) {
        if !self.is_expendable(node) {
            return;
        }
        self.lose_disk(node);
        if !self.lost.contains(&node) {
            let span = self.lasting();
            self.after(span, Happening::Restart(node));
        }
    }

    /// A node loses its disk, and with it its place: it is not started again, unless a bug lets it vote.
    pub(super) fn lose_disk(&mut self, node: NodeId) {
        self.crash(node);
        self.cluster.wipe(node);
        if !self.cluster.settings.is_planted(Planted::WipedDiskVotes) {
            self.lost.insert(node);
        }
    }

    /// A byte in the middle of the WAL rots: the node must not come up, or must have lost nothing.
    fn rot(&mut self, node: NodeId) {
        if !self.is_expendable(node) || !self.cluster.is_up(node) {
            return;
        }
        // With a note behind it the last group cannot pass for a torn one.
        let noted = self.cluster.life(node).is_some_and(|life| life.wal.sync_note().is_ok());
        self.crash(node);
        let disk = self.cluster.node(node).disk.clone();
        let rotten = if noted { self.rot_byte(&disk) } else { None };
        self.cluster.failing_disks.insert(node);
        let mut is_up = self.cluster.restart(node);
        if !is_up && self.cluster.settings.is_planted(Planted::WalCutAtDamage) {
            if let Some((path, offset)) = rotten {
                cut_wal(&disk, &path, offset);
            }
            is_up = self.cluster.restart(node);
        }
        self.cluster.failing_disks.remove(&node);
        if !is_up {
            self.forget(node);
            self.lost.insert(node);
        }
    }

    fn rot_byte(&mut self, disk: &VirtualDisk) -> Option<(PathBuf, u64)> {
        let names = disk.list(Path::new(WAL_DIR)).ok()?;
        let at = self.dice.disk.random_range(0..names.len().max(1));
        let path = Path::new(WAL_DIR).join(names.get(at)?);
        let used = used_bytes(disk.open(&path).ok()?.as_ref())?;
        let offset = self.dice.disk.random_range(0..used.max(1));
        let bit = self.dice.disk.random_range(0..8);
        disk.flip(&path, offset, bit).then_some((path, offset))
    }
}

/// Where a file of zeros stops being written.
fn used_bytes(file: &dyn DiskFile) -> Option<u64> {
    let len = usize::try_from(file.len().ok()?).ok()?;
    let mut bytes = vec![0; len];
    file.read_at(0, &mut bytes).ok()?;
    let last = bytes.iter().rposition(|byte| *byte != 0)?;
    Some(last as u64 + 1)
}

/// Zeros a WAL from its damage on, which makes it look torn there.
fn cut_wal(disk: &dyn Disk, path: &Path, offset: u64) {
    let begin = offset / 4096 * 4096;
    if let Ok(file) = disk.open(path)
        && let Ok(len) = file.len()
    {
        let zeros = vec![0; usize::try_from(len.saturating_sub(begin)).unwrap_or(0)];
        // What fails here shows when the node starts.
        let _ = file.write_at(begin, &zeros).and_then(|()| file.sync());
    }
    let dir = Path::new(WAL_DIR);
    for name in disk.list(dir).unwrap_or_default() {
        let other = dir.join(name);
        if other.as_path() > path {
            let _ = disk.remove(&other);
        }
    }
    let _ = disk.sync_dir(dir);
}
