//! Clogs nodes one by one and unclogs them in another order, as FoundationDB's simulator does.

use std::time::Duration;

use kv_types::NodeId;

use super::draft::{Draft, Place, Route};
use super::error::{Flaw, place};
use super::step::{Deed, Held, Step, Trigger};
use super::step_text::{Setting, numbered};
use super::table::{self, Reader, Value};
use crate::{Action, Filter, Links, Rule, RuleName, Who, coin};

/// The steps that a swizzle stands for. In the first half of its time what goes to some nodes is held, node by node; in the
/// second half it is let go again, and arrives late.
pub(super) fn read(
    number: usize,
    value: &Value<'_>,
    trigger: &Trigger,
    setting: &Setting<'_>,
) -> Result<Vec<Step>, Flaw> {
    let at = value.span().start;
    let reader = Reader::of(value, "a swizzle", &["over"])?;
    let over = table::duration(reader.need("over")?, Duration::from_millis(1)..=setting.duration)?;
    let Trigger::At(start) = trigger else {
        return Err(Flaw::new(at, "a swizzle goes with `at` only"));
    };
    if start.saturating_add(over) > setting.duration {
        return Err(Flaw::new(at, "it would last beyond the end of the workload"));
    }
    let seed = coin::hash(&[setting.seed, coin::text("swizzle"), u64::try_from(number).unwrap_or(0)]);
    let clogged = nodes(setting, seed);
    let unclogged = coin::shuffled(clogged.iter().copied(), coin::hash(&[seed, 1]));
    let line = place(setting.text, at).0;
    let step = |at, deed| Step { number, line, trigger: Trigger::At(at), deed };
    let count = u32::try_from(clogged.len()).expect("nodes are few");
    let part = over / 2 / count.max(1);
    let clogs = (0..count).zip(clogged).map(|(nth, node)| step(*start + part * nth, clog(number, node)));
    // The last is let go at the very end.
    let unclogs = (0..count).rev().zip(unclogged).map(|(left, node)| {
        step(*start + over - part * left, Deed::Heal { held: Held::Late, only: Some(name(number, node)) })
    });
    Ok(clogs.chain(unclogs).collect())
}

/// Some of the nodes, two at least if there are.
fn nodes(setting: &Setting<'_>, seed: u64) -> Vec<NodeId> {
    let mut order = coin::shuffled(setting.cluster.node_ids(), seed);
    let all = u64::from(setting.cluster.nodes);
    let least = all.min(2);
    let count = least + coin::below(coin::hash(&[seed, 2]), all - least + 1);
    order.truncate(usize::try_from(count).unwrap_or(usize::MAX));
    order
}

fn name(number: usize, node: NodeId) -> RuleName {
    format!("{}-{node}", numbered("swizzle", number)).parse().expect("words and numbers make a name")
}

fn clog(number: usize, node: NodeId) -> Deed {
    let rule =
        Rule { name: name(number, node), filter: Filter::on(Links::All), action: Action::Hold, pulse: None };
    Deed::Rule(Draft { rule, routes: vec![Route { from: Place::Nodes, to: Place::Who(Who::Node(node)) }] })
}
