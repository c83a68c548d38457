//! A step becomes rules.

use std::collections::{BTreeMap, BTreeSet};

use kv_types::NodeId;

use super::step::{Deed, Step, Target};
use crate::resolve::Resolver;
use crate::{Action, Filter, Links, ResolveError, Roles, Rule, RuleName, coin};

/// What a step comes to when it fires.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Fired {
    /// The rules to load: none or one. If the step fires again while its rule is in force, that is healed first.
    pub rules: Vec<Rule>,
    /// The node that each role stood for, by the role's text.
    pub chosen: BTreeMap<String, NodeId>,
    /// The sides of a partition: see [`Cut::sides`](crate::Cut::sides).
    pub sides: Vec<BTreeSet<NodeId>>,
    /// The node to whose process something is done; none if it is done to all.
    pub node: Option<NodeId>,
}

impl Step {
    /// What the step comes to now. The seed is that of the firing: see [`Drill::firings`](super::Drill::firings).
    ///
    /// Nothing but looking up roles happens here. [`Deed::Heal`] comes to nothing.
    ///
    /// # Errors
    /// [`ResolveError`] if a role is nobody's, or a shape does not fit the cluster.
    pub fn rules(&self, roles: &impl Roles, seed: u64) -> Result<Fired, ResolveError> {
        let seed = coin::hash(&[seed, u64::try_from(self.number).unwrap_or(u64::MAX)]);
        match &self.deed {
            Deed::Partition { name, partition, clients } => {
                let cut = partition.resolve(roles, seed)?;
                let cut = if *clients { cut.with_clients() } else { cut };
                let filter = Filter::on(Links::Only(cut.links));
                let rule = Rule { name: name.clone(), filter, action: Action::Drop, pulse: None };
                Ok(Fired { rules: vec![rule], chosen: cut.chosen, sides: cut.sides, node: None })
            }
            Deed::Rule(draft) => {
                let mut resolver = Resolver::new(roles, seed);
                let rules = vec![draft.resolve_by(&mut resolver)?];
                Ok(Fired { rules, chosen: resolver.into_chosen(), ..Fired::default() })
            }
            Deed::Process(process) => match process.target {
                Target::All => Ok(Fired::default()),
                Target::Who(who) => {
                    let mut resolver = Resolver::new(roles, seed);
                    let node = Some(resolver.who(who)?);
                    Ok(Fired { chosen: resolver.into_chosen(), node, ..Fired::default() })
                }
            },
            Deed::Heal { .. } => Ok(Fired::default()),
        }
    }

    /// The name of the rule that the step loads, if it loads one.
    pub fn rule_name(&self) -> Option<&RuleName> {
        match &self.deed {
            Deed::Partition { name, .. } => Some(name),
            Deed::Rule(draft) => Some(&draft.rule.name),
            Deed::Process(_) | Deed::Heal { .. } => None,
        }
    }
}
