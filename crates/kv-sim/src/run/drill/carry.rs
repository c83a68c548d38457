//! What the rules make of each message. Like the proxy it has two planes: that of messages, where each is judged by itself, and
//! what is below, where everything on a link goes on in order.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kv_fault::{Fate, Half, Link, Links, Message, Rule, RuleName, Wire};
use kv_types::{Nanos, NodeId, ShardId};
use rand::RngExt;

use super::super::txns::{Deed as OfTxns, Letter, Origin};
use super::super::{Happening, Run};
use super::{Deed, Playing, inspect, of_rule};
use crate::network::Packet;
use crate::stream::Stage;

/// A message that lets others pass goes on after so long, if no others come; as in the proxy.
const REORDER_MAX: Duration = Duration::from_millis(50);

/// What is carried.
#[derive(Clone, Debug)]
pub(in crate::run) enum Cargo {
    Packet(Packet),
    Letter(Letter),
}

/// A message that waits.
#[derive(Debug)]
struct Parcel {
    link: Link,
    bytes: u64,
    cargo: Cargo,
}

/// What a stream of a snapshot waits for.
#[derive(Debug)]
enum Chunk {
    Until(Nanos),
    Held(RuleName),
    /// What was held is lost.
    Lost,
}

/// Everything that waits, and what is known of links.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// Until a rule is healed.
    held: Vec<(RuleName, Parcel)>,
    /// Until so many others have passed, by a number.
    overtaken: BTreeMap<u64, (u32, Parcel)>,
    /// Until bytes move again.
    stalled: Vec<Parcel>,
    chunks: BTreeMap<(NodeId, NodeId, ShardId), Chunk>,
    /// What questions were about, for their answers.
    asked: BTreeMap<Origin, Message>,
    next: u64,
    /// When the last of what goes in order arrives.
    in_order: BTreeMap<Link, Nanos>,
    /// When a link of some bandwidth is free.
    free: BTreeMap<Link, Nanos>,
    /// Numbers what was delayed below messages.
    pieces: BTreeMap<Link, u64>,
}

/// The link that is on the way of something, if it is on one.
fn way(happening: &Happening) -> Option<Link> {
    let of_letter = |letter: &Letter| match letter.path() {
        (Some(from), Some(to)) => Some(Link::between(from, to)),
        _ => None,
    };
    match happening {
        Happening::Arrival(packet) => Some(Link::between(packet.message.from, packet.message.to)),
        Happening::Txn(OfTxns::Letter(letter)) => of_letter(letter),
        Happening::Drill(Deed::Leave(link, ..)) => Some(*link),
        _ => None,
    }
}

impl Playing {
    /// What is below messages on a link; each rule there has met one message more.
    fn below(&mut self, now: Nanos, link: Link) -> Wire {
        let clock = self.clock(now);
        let mut names = Vec::new();
        for wired in &self.wires {
            let is_on = wired.rule.pulse.is_none_or(|pulse| pulse.is_on(clock.saturating_sub(wired.since)));
            if is_on && wired.rule.filter.links.contains(link) && has_meaning(&wired.rule) {
                names.push(of_rule(&wired.rule.name));
            }
        }
        for name in names {
            self.meet(name, 1);
        }
        self.rules.wire(clock, link)
    }

    /// When something leaves a link that may take longer than others, or carries so many bytes a second.
    fn passes(&mut self, now: Nanos, (link, bytes): (Link, u64), wire: &Wire) -> Nanos {
        let mut at = now;
        if let Some(rate) = wire.bandwidth {
            let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
            let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            let free = self.waiting.free.entry(link).or_default();
            *free = (*free).max(now).after(takes);
            at = *free;
        }
        if !wire.latency.is_empty() {
            let ordinal = self.waiting.pieces.entry(link).or_default();
            *ordinal += 1;
            at = at.after(wire.latency_of(self.rules.seed(), link, *ordinal));
        }
        if wire.bandwidth.is_some() || !wire.latency.is_empty() {
            self.waiting.in_order.entry(link).or_default();
        }
        at
    }
}

/// Ends of connections do not exist here.
fn has_meaning(rule: &Rule) -> bool {
    use kv_fault::{Action, WireAction};
    !matches!(rule.action, Action::Wire(WireAction::SlowClose(_) | WireAction::HalfClose))
}

impl Run {
    /// Takes a packet if rules are to judge it.
    pub(in crate::run) fn carry_packet(&mut self, packet: Packet) -> Option<Packet> {
        if !self.is_drilled() {
            return Some(packet);
        }
        let link = Link::between(packet.message.from, packet.message.to);
        let message = inspect::packet(&packet);
        self.carry(link, &message, Cargo::Packet(packet));
        None
    }

    /// Takes a letter between nodes if rules are to judge it; clients reach every node.
    pub(in crate::run) fn carry_letter(&mut self, letter: Letter) -> Option<Letter> {
        let Some(playing) = self.drill.as_mut().filter(|playing| !playing.is_over) else {
            return Some(letter);
        };
        let (Some(from), Some(to)) = letter.path() else { return Some(letter) };
        let message = match &letter {
            Letter::Ask { origin, question, .. } => {
                let message = inspect::question(question);
                if let Some(message) = &message {
                    playing.waiting.asked.insert(*origin, message.clone());
                }
                message
            }
            Letter::Reply { origin, .. } => {
                let asked = playing.waiting.asked.get(origin);
                asked.map(|asked| Message { half: Half::Reply, ..asked.clone() })
            }
            Letter::Commit { .. } | Letter::Read { .. } | Letter::Told { .. } => None,
        };
        let Some(message) = message else { return Some(letter) };
        self.carry(Link::between(from, to), &message, Cargo::Letter(letter));
        None
    }

    /// The plane of messages.
    fn carry(&mut self, link: Link, message: &Message, cargo: Cargo) {
        let now = self.cluster.now;
        let Some(playing) = self.drill.as_mut() else { return };
        let clock = playing.clock(now);
        let verdict = playing.rules.judge(clock, link, message);
        let bytes = message.bytes;
        // Whoever receives it refuses it by its checksum, and every copy.
        let is_refused = !verdict.flips.is_empty();
        for delay in verdict.copies.iter().filter(|_| !is_refused) {
            self.after(*delay, Happening::Drill(Deed::Leave(link, bytes, cargo.clone())));
        }
        if verdict.fate != Fate::Drop {
            self.passed(link);
        }
        let Some(playing) = self.drill.as_mut() else { return };
        match (verdict.fate, verdict.reorder) {
            (Fate::Drop, _) => {}
            (Fate::Hold(by), _) => playing.waiting.held.push((by, Parcel { link, bytes, cargo })),
            (Fate::Deliver, _) if is_refused => {}
            (Fate::Deliver, Some(others)) => {
                playing.waiting.next += 1;
                let number = playing.waiting.next;
                playing.waiting.overtaken.insert(number, (others, Parcel { link, bytes, cargo }));
                self.after(verdict.delay + REORDER_MAX, Happening::Drill(Deed::Overtaken(number)));
            }
            (Fate::Deliver, None) if verdict.delay.is_zero() => self.leave(link, bytes, cargo),
            (Fate::Deliver, None) => {
                self.after(verdict.delay, Happening::Drill(Deed::Leave(link, bytes, cargo)));
            }
        }
    }

    /// A message has passed those that let others pass.
    fn passed(&mut self, link: Link) {
        let Some(playing) = self.drill.as_mut() else { return };
        let mut ready = Vec::new();
        for (number, (others, parcel)) in &mut playing.waiting.overtaken {
            if parcel.link == link {
                *others = others.saturating_sub(1);
                if *others == 0 {
                    ready.push(*number);
                }
            }
        }
        for number in ready {
            // The one that has passed is still to leave: this one goes just behind it.
            self.after(Duration::ZERO, Happening::Drill(Deed::Overtaken(number)));
        }
    }

    pub(super) fn overtaken(&mut self, number: u64) {
        let parcel = self.drill.as_mut().and_then(|playing| playing.waiting.overtaken.remove(&number));
        if let Some((_, Parcel { link, bytes, cargo })) = parcel {
            self.leave(link, bytes, cargo);
        }
    }

    /// What is below messages.
    pub(super) fn leave(&mut self, link: Link, bytes: u64, cargo: Cargo) {
        let now = self.cluster.now;
        let (low, high) = self.plan.delay_us;
        let takes = Duration::from_micros(self.dice.network.random_range(low..=high));
        let Some(playing) = self.drill.as_mut() else { return };
        let wire = playing.below(now, link);
        if wire.black_hole || wire.refuse {
            return;
        }
        if wire.stall {
            playing.waiting.stalled.push(Parcel { link, bytes, cargo });
            return;
        }
        let mut at = playing.passes(now, (link, bytes), &wire).after(takes);
        if let Some(last) = playing.waiting.in_order.get_mut(&link) {
            at = at.max(*last);
            *last = at;
        }
        let happening = match cargo {
            Cargo::Packet(packet) => Happening::Arrival(packet),
            Cargo::Letter(letter) => Happening::Txn(OfTxns::Letter(letter)),
        };
        self.at(at, happening);
    }

    /// Rules were healed: what they held arrives, or is lost, and bytes may move again.
    pub(super) fn release(&mut self, healed: &BTreeSet<RuleName>, late: bool) {
        let Some(playing) = self.drill.as_mut() else { return };
        playing.waiting.free.clear();
        let released: Vec<_> =
            playing.waiting.held.extract_if(.., |(by, _)| healed.contains(by)).map(|(_, it)| it).collect();
        for chunk in playing.waiting.chunks.values_mut() {
            if matches!(chunk, Chunk::Held(by) if healed.contains(by)) {
                *chunk = if late { Chunk::Until(self.cluster.now) } else { Chunk::Lost };
            }
        }
        for Parcel { link, bytes, cargo } in released.into_iter().filter(|_| late) {
            self.leave(link, bytes, cargo);
        }
        self.let_stalled_pass();
    }

    /// Bytes that may move again do so, in order.
    pub(super) fn let_stalled_pass(&mut self) {
        let Some(playing) = self.drill.as_mut() else { return };
        let clock = playing.clock(self.cluster.now);
        for parcel in std::mem::take(&mut playing.waiting.stalled) {
            let Some(playing) = self.drill.as_mut() else { return };
            if playing.rules.wire(clock, parcel.link).stall {
                playing.waiting.stalled.push(parcel);
            } else {
                playing.waiting.in_order.entry(parcel.link).or_default();
                self.leave(parcel.link, parcel.bytes, parcel.cargo);
            }
        }
    }

    /// Nothing waits any more.
    pub(super) fn let_all_pass(&mut self) {
        let Some(playing) = self.drill.as_mut() else { return };
        playing.waiting.chunks.clear();
        for (_, Parcel { link, bytes, cargo }) in std::mem::take(&mut playing.waiting.overtaken).into_values()
        {
            self.leave(link, bytes, cargo);
        }
    }

    /// Connections are reset: what is under way on their links is lost.
    pub(super) fn reset(&mut self, rule: &Rule) {
        let links: &Links = &rule.filter.links;
        let before = self.queue.len();
        self.queue.retain(|_, happening| way(happening).is_none_or(|link| !links.contains(link)));
        let mut lost = before - self.queue.len();
        if let Some(playing) = self.drill.as_mut() {
            let waiting = &mut playing.waiting;
            lost += waiting.stalled.extract_if(.., |parcel| links.contains(parcel.link)).count();
            lost += waiting.held.extract_if(.., |(_, parcel)| links.contains(parcel.link)).count();
            let overtaken = waiting.overtaken.len();
            waiting.overtaken.retain(|_, (_, parcel)| !links.contains(parcel.link));
            lost += overtaken - waiting.overtaken.len();
        }
        for at in (0..self.cluster.streams.len()).rev() {
            let ends = self.cluster.streams.get(at).map(|stream| (stream.from, stream.job.to));
            if ends.is_some_and(|(from, to)| links.contains(Link::between(from, to))) {
                self.cluster.break_stream(at);
                lost += 1;
            }
        }
        if let Some(playing) = self.drill.as_mut() {
            playing.meet(of_rule(&rule.name), u64::try_from(lost).unwrap_or(u64::MAX));
        }
    }

    /// A snapshot's next part is judged, and goes on its way. One that is lost ends its stream.
    pub(in crate::run) fn carry_chunk(&mut self, at: usize) {
        match self.judge_chunk(at) {
            Some(true) => {
                self.cluster.step_stream(at);
            }
            Some(false) => self.cluster.break_stream(at),
            None => {}
        }
    }

    /// Whether a part arrives; `None` if it waits.
    fn judge_chunk(&mut self, at: usize) -> Option<bool> {
        let now = self.cluster.now;
        let Some(playing) = self.drill.as_mut().filter(|playing| !playing.is_over) else { return Some(true) };
        let stream = self.cluster.streams.get(at)?;
        if !matches!(stream.stage, Stage::Flowing { .. }) {
            return Some(true);
        }
        let (from, to) = (stream.from, stream.job.to);
        let (name, link) = ((from, to, stream.shard), Link::between(from, to));
        match playing.waiting.chunks.get(&name) {
            Some(Chunk::Until(time)) if *time > now => return None,
            Some(Chunk::Held(_)) => return None,
            Some(waited @ (Chunk::Until(_) | Chunk::Lost)) => {
                let arrives = matches!(waited, Chunk::Until(_));
                playing.waiting.chunks.remove(&name);
                return Some(arrives);
            }
            None => {}
        }
        let clock = playing.clock(now);
        if playing.rules.wire(clock, link).stall {
            return None;
        }
        let message = inspect::chunk(stream.shard, stream.job.term);
        let verdict = playing.rules.judge(clock, link, &message);
        let wire = playing.below(now, link);
        let is_lost = wire.black_hole || wire.refuse || !verdict.flips.is_empty();
        match verdict.fate {
            Fate::Drop => Some(false),
            Fate::Hold(by) => {
                playing.waiting.chunks.insert(name, Chunk::Held(by));
                None
            }
            Fate::Deliver if is_lost => Some(false),
            Fate::Deliver => {
                let passes = playing.passes(now, (link, message.bytes), &wire).after(verdict.delay);
                if passes <= now {
                    return Some(true);
                }
                playing.waiting.chunks.insert(name, Chunk::Until(passes));
                None
            }
        }
    }
}
