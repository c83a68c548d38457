//! Reads a rule.

use std::collections::BTreeSet;
use std::time::Duration;

use kv_types::ShardId;
use toml::de::{DeTable, DeValue};

use super::cluster::Cluster;
use super::draft::{Draft, Route};
use super::error::{DrillError, Flaw};
use super::table::{self, Reader, Value};
use crate::limits::{COPIES_MAX, DRILL_BYTES_MAX, FLIPS_MAX, NODES_MAX, REORDER_MAX, SHARDS_MAX, SPAN_MAX};
use crate::{Action, Delay, Filter, Links, Probability, Pulse, Rule, Shape, WireAction, quantity};

/// What a rule says beside its action.
const OTHERS: [&str; 10] =
    ["name", "links", "kinds", "half", "shard", "terms", "indexes", "nth", "probability", "pulse"];

/// What a rule below messages cannot say.
const OF_MESSAGES: [&str; 7] = ["kinds", "half", "shard", "terms", "indexes", "nth", "probability"];

/// What a rule does.
const ACTIONS: [&str; 14] = [
    "drop",
    "delay",
    "duplicate",
    "reorder",
    "hold",
    "flip",
    "latency",
    "bandwidth",
    "refuse",
    "reset",
    "black-hole",
    "stall",
    "slow-close",
    "half-close",
];

/// What a rule that is read is, and where its name stands.
pub(super) struct Named {
    pub(super) draft: Draft,
    pub(super) name_at: usize,
}

impl Draft {
    /// Reads one rule by itself: the fields that a step's `rule` has, one a line, or in braces as a [`Rule`] prints.
    ///
    /// # Errors
    /// [`DrillError`] for whatever is wrong with it.
    pub fn parse(text: &str) -> Result<Self, DrillError> {
        if text.len() > DRILL_BYTES_MAX {
            return Err(Flaw::new(0, super::TOO_LONG).in_text(text));
        }
        // Whoever resolves it knows the cluster.
        let largest = Cluster { nodes: NODES_MAX, shards: SHARDS_MAX, ..Cluster::DEFAULT };
        let read = || {
            if text.trim_start().starts_with('{') {
                let value = DeValue::parse(text).map_err(|error| super::syntax(&error))?;
                read(&value, &largest)
            } else {
                let root = DeTable::parse(text).map_err(|error| super::syntax(&error))?;
                read_table(root.get_ref(), 0, &largest)
            }
        };
        read().map(|named| named.draft).map_err(|flaw| flaw.in_text(text))
    }
}

/// A rule as the value of a step.
pub(super) fn read(value: &Value<'_>, cluster: &Cluster) -> Result<Named, Flaw> {
    match value.get_ref().as_table() {
        Some(rule) => read_table(rule, value.span().start, cluster),
        None => Err(Flaw::new(value.span().start, "a rule is a table: { name = .., drop = true }")),
    }
}

fn read_table(rule: &DeTable<'_>, at: usize, cluster: &Cluster) -> Result<Named, Flaw> {
    let fields: Vec<_> = OTHERS.into_iter().chain(ACTIONS).collect();
    let reader = Reader::new(rule, at, "a rule", &fields)?;
    let name = reader.need("name")?;
    let routes = reader.read("links", |links| read_routes(links, cluster))?.unwrap_or_default();
    let (word, value) = reader.one_of(&ACTIONS)?;
    let action = action(word, value)?;
    let is_of_messages = !matches!(action, Action::Wire(_));
    for field in OF_MESSAGES {
        reader.only_beside(field, is_of_messages, "actions on messages")?;
    }
    let rule = Rule {
        name: table::parsed(name)?,
        filter: filter(&reader, cluster)?,
        action,
        pulse: reader.read("pulse", pulse)?,
    };
    // Which links there will be is not known yet, but whether they are of clients is.
    let is_of_clients: Vec<bool> = routes.iter().map(|route| route.is_of_clients()).collect();
    let contradiction = || rule.filter.contradiction(&is_of_clients).filter(|_| !routes.is_empty());
    if let Some(flaw) = rule.flaw().or_else(contradiction) {
        return Err(Flaw::new(reader.at(), flaw));
    }
    Ok(Named { draft: Draft { rule, routes }, name_at: name.span().start })
}

fn read_routes(links: &Value<'_>, cluster: &Cluster) -> Result<Vec<Route>, Flaw> {
    let mut routes = Vec::new();
    for link in table::list(links)? {
        let route: Route = table::parsed(link)?;
        for who in [route.from, route.to].into_iter().filter_map(super::Place::who) {
            cluster.check_who(who).map_err(|sentence| Flaw::new(link.span().start, sentence))?;
        }
        routes.push(route);
    }
    if routes.is_empty() {
        return Err(Flaw::new(links.span().start, "no link is listed; leave out `links` to mean all"));
    }
    Ok(routes)
}

fn filter(reader: &Reader<'_, '_>, cluster: &Cluster) -> Result<Filter, Flaw> {
    let shard = reader.read("shard", |value| table::small(value, 0..=cluster.shards))?;
    Ok(Filter {
        links: Links::All,
        kinds: reader.read("kinds", kinds)?.unwrap_or_default(),
        half: reader.read("half", table::parsed)?,
        shard: shard.map(ShardId::new),
        terms: reader.read("terms", |value| table::by(value, quantity::range))?,
        indexes: reader.read("indexes", |value| table::by(value, quantity::range))?,
        nth: reader.read("nth", table::parsed)?,
        probability: reader.read("probability", probability)?.unwrap_or(Probability::CERTAIN),
    })
}

fn kinds(value: &Value<'_>) -> Result<BTreeSet<crate::Kind>, Flaw> {
    let kinds: BTreeSet<_> = table::list(value)?.iter().map(table::parsed).collect::<Result<_, _>>()?;
    if kinds.is_empty() {
        return Err(Flaw::new(value.span().start, "no kind is listed; leave out `kinds` to mean all"));
    }
    Ok(kinds)
}

fn probability(value: &Value<'_>) -> Result<Probability, Flaw> {
    let found = Probability::from_fraction(table::float(value)?);
    found
        .filter(|probability| *probability != Probability::NEVER)
        .ok_or_else(|| Flaw::new(value.span().start, "a number above 0, up to 1, is expected"))
}

fn pulse(value: &Value<'_>) -> Result<Pulse, Flaw> {
    let reader = Reader::of(value, "a pulse", &["on", "off"])?;
    let half = |field| reader.need(field).and_then(|value| table::duration(value, NS..=SPAN_MAX));
    Ok(Pulse { on: half("on")?, off: half("off")? })
}

/// The shortest time there is.
const NS: Duration = Duration::from_nanos(1);

fn action(word: &str, value: &Value<'_>) -> Result<Action, Flaw> {
    let wire = |action: WireAction| table::yes(value).map(|()| Action::Wire(action));
    match word {
        "drop" => table::yes(value).map(|()| Action::Drop),
        "delay" => delay(value).map(Action::Delay),
        "duplicate" => duplicate(value),
        "reorder" => table::small(value, 1..=REORDER_MAX).map(|window| Action::Reorder { window }),
        "hold" => table::yes(value).map(|()| Action::Hold),
        "flip" => table::small(value, 1..=FLIPS_MAX).map(|bits| Action::Flip { bits }),
        "latency" => delay(value).map(|delay| Action::Wire(WireAction::Latency(delay))),
        "bandwidth" => {
            let bytes_per_second = table::by(value, quantity::rate)?;
            Ok(Action::Wire(WireAction::Bandwidth { bytes_per_second }))
        }
        "slow-close" => {
            let span = table::duration(value, NS..=SPAN_MAX)?;
            Ok(Action::Wire(WireAction::SlowClose(span)))
        }
        "refuse" => wire(WireAction::Refuse),
        "reset" => wire(WireAction::Reset),
        "black-hole" => wire(WireAction::BlackHole),
        "stall" => wire(WireAction::Stall),
        _ => wire(WireAction::HalfClose),
    }
}

fn delay(value: &Value<'_>) -> Result<Delay, Flaw> {
    if value.get_ref().as_str().is_some() {
        return table::duration(value, NS..=SPAN_MAX).map(Delay::fixed);
    }
    if value.get_ref().as_table().is_none() {
        let sentence = "a time such as 50ms, or { base = .., jitter = .. }, is expected";
        return Err(Flaw::new(value.span().start, sentence));
    }
    let reader = Reader::of(value, "a delay", &["base", "jitter", "shape"])?;
    let span = |field| reader.read(field, |value| table::duration(value, Duration::ZERO..=SPAN_MAX));
    let (base, jitter) = (span("base")?.unwrap_or_default(), span("jitter")?.unwrap_or_default());
    reader.only_beside("shape", !jitter.is_zero(), "a jitter")?;
    if base.is_zero() && jitter.is_zero() {
        return Err(Flaw::new(reader.at(), "a delay needs a `base`, a `jitter`, or both"));
    }
    let shape = reader.read("shape", table::parsed)?.unwrap_or(Shape::Uniform);
    Ok(Delay { base, jitter, shape })
}

fn duplicate(value: &Value<'_>) -> Result<Action, Flaw> {
    if value.get_ref().as_integer().is_some() {
        let copies = table::small(value, 1..=COPIES_MAX)?;
        return Ok(Action::Duplicate { copies, gap: Duration::ZERO });
    }
    let reader = Reader::of(value, "a duplication", &["copies", "gap"])?;
    let copies = table::small(reader.need("copies")?, 1..=COPIES_MAX)?;
    let gap = reader.read("gap", |value| table::duration(value, Duration::ZERO..=SPAN_MAX))?;
    Ok(Action::Duplicate { copies, gap: gap.unwrap_or_default() })
}
