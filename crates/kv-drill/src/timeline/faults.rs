//! Rules come and go.

use std::collections::{BTreeMap, BTreeSet};

use kv_fault::{Action, Fired, Link, Rule, RuleName, Verb, WireAction};
use kv_proto::v1;
use kv_types::NodeId;

use super::{InForce, NotFired, Stage, Timeline};
use crate::ChaosError;
use crate::error::RunError;
use crate::record::{Counts, Fault};

impl Timeline {
    /// Loads the rules of a step; what it loaded before is healed first.
    pub(super) async fn load(&mut self, stage: &Stage<'_>, fired: &Fired) -> Result<(), NotFired> {
        for rule in &fired.rules {
            if self.in_force.iter().any(|known| known.name == rule.name) {
                self.heal(stage, Some(&rule.name), false).await?;
            }
        }
        let connections = stage.chaos.links().await?;
        stage.chaos.load(&fired.rules, Some(stage.drill.seed)).await?;
        for rule in &fired.rules {
            let is_wire = matches!(rule.action, Action::Wire(_));
            let mut fault = Fault {
                name: rule.name.to_string(),
                text: rule.to_string(),
                plane: if is_wire { "wire" } else { "message" }.to_owned(),
                from_ms: stage.clock.ms(),
                ..Fault::default()
            };
            if counts_connections(rule.action) {
                count_connections(&mut fault, rule, &connections);
            }
            self.faults.push(fault);
            let fault = self.faults.len() - 1;
            let cut_off = kv_fault::minority(&fired.sides);
            let is_counted = !counts_connections(rule.action);
            self.in_force.push(InForce { name: rule.name.clone(), fault, is_counted, cut_off });
        }
        self.tell_cut_off(stage);
        Ok(())
    }

    /// Takes one rule, or all, out of force. One that is out of force already is none of anybody's concern.
    pub(super) async fn heal(
        &mut self,
        stage: &Stage<'_>,
        only: Option<&RuleName>,
        late: bool,
    ) -> Result<(), RunError> {
        let is_meant = |known: &InForce| only.is_none_or(|name| *name == known.name);
        if !self.in_force.iter().any(is_meant) {
            return Ok(());
        }
        match stage.chaos.heal(only, late).await {
            Ok(_) | Err(ChaosError::Refused(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let now = stage.clock.ms();
        self.mended_ms = Some(now);
        let table = stage.chaos.rules().await?.rules;
        let (healed, left) = std::mem::take(&mut self.in_force).into_iter().partition(is_meant);
        self.in_force = left;
        let healed: Vec<InForce> = healed;
        for rule in healed {
            if let Some(fault) = self.faults.get_mut(rule.fault) {
                fault.until_ms = now;
                // The last of its name: those before are of earlier firings.
                let entry = table.iter().rev().find(|entry| entry.name == rule.name.as_str());
                if let Some(entry) = entry.filter(|_| rule.is_counted) {
                    take_counts(fault, &entry.counts);
                }
            }
        }
        self.tell_cut_off(stage);
        Ok(())
    }

    /// Says whom nobody of the majority hears: who is behind a cut, and who stands still.
    pub(super) fn tell_cut_off(&self, stage: &Stage<'_>) {
        let cut_off = self.in_force.iter().flat_map(|rule| rule.cut_off.iter().copied());
        let still = self.broken.iter().filter(|broken| broken.verb == Verb::Pause).map(|broken| broken.node);
        let nodes: BTreeSet<NodeId> = cut_off.chain(still).collect();
        let bits = nodes.iter().filter_map(|node| 1_u64.checked_shl(u32::try_from(node.get()).ok()?));
        stage.clock.cut_off(bits.fold(0, |all, bit| all | bit));
    }
}

fn take_counts(fault: &mut Fault, counts: &[v1::ChaosCount]) {
    let counted = |count: &v1::ChaosCount| Counts { matched: count.matched, acted: count.acted };
    fault.links = counts.iter().map(|count| (count.link.clone(), counted(count))).collect();
    fault.matched = counts.iter().map(|count| count.matched).sum();
    fault.acted = counts.iter().map(|count| count.acted).sum();
}

/// Whether the connections that stand when a rule comes are what it hurts: then the proxy counts none.
fn counts_connections(action: Action) -> bool {
    matches!(action, Action::Wire(action) if !matches!(action, WireAction::Refuse | WireAction::SlowClose(_)))
}

/// The connections that stood when a rule came.
fn count_connections(fault: &mut Fault, rule: &Rule, links: &[v1::ChaosLink]) {
    let mut counts: BTreeMap<String, Counts> = BTreeMap::new();
    for standing in links.iter().filter(|link| link.connections > 0) {
        let ends = standing.from.parse().ok().zip(standing.to.parse().ok());
        let Some(link) = ends.map(|(from, to)| Link { from, to }) else { continue };
        // A connection carries both directions.
        for direction in [link, link.opposite()] {
            if rule.filter.links.contains(direction) {
                let count = counts.entry(direction.to_string()).or_default();
                count.matched += standing.connections;
                count.acted += standing.connections;
            }
        }
    }
    fault.matched = counts.values().map(|count| count.matched).sum();
    fault.acted = fault.matched;
    fault.links = counts;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_counts_in_the_directions_of_the_rule() {
        let rule = kv_fault::Draft::parse("name = \"a\"\nlinks = [\"n1->n2\"]\nstall = true").unwrap();
        let link = |from: &str, to: &str, connections| v1::ChaosLink {
            from: from.to_owned(),
            to: to.to_owned(),
            connections,
            ..v1::ChaosLink::default()
        };
        let mut fault = Fault::default();
        let links = [link("n1", "n2", 2), link("n2", "n1", 1), link("n1", "n3", 5)];
        count_connections(&mut fault, &rule.into_rule().unwrap(), &links);
        assert_eq!((fault.matched, fault.links.len()), (3, 1));
    }
}
