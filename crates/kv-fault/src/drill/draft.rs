//! A rule whose links may still be roles.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::quantity::ParseError;
use crate::resolve::Resolver;
use crate::{End, Link, Links, ResolveError, Roles, Rule, Who};

/// A rule as a step says it: roles become nodes when the step fires.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Draft {
    /// The rule. Its links are all, and wait for the routes.
    pub rule: Rule,
    /// On which links; none given is all.
    pub routes: Vec<Route>,
}

/// Links as a step says them: `leader-of(1)->*`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Route {
    /// Where messages come from.
    pub from: Place,
    /// Where they go.
    pub to: Place,
}

/// One end of a [`Route`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// One node: its id or a role.
    Who(Who),
    /// Every node, except the one at the other end: `*`.
    Nodes,
    /// All clients: `clients`.
    Clients,
}

impl Draft {
    /// The rule with its links.
    ///
    /// # Errors
    /// [`ResolveError`] if a role is nobody's.
    pub fn resolve(&self, roles: &impl Roles, seed: u64) -> Result<Rule, ResolveError> {
        self.resolve_by(&mut Resolver::new(roles, seed))
    }

    /// The rule, if no end of a link has to be looked up.
    pub fn into_rule(mut self) -> Option<Rule> {
        if !self.routes.is_empty() {
            let links: Option<BTreeSet<_>> = self.routes.iter().map(|route| route.link()).collect();
            self.rule.filter.links = Links::Only(links?);
        }
        Some(self.rule)
    }

    pub(super) fn resolve_by(&self, resolver: &mut Resolver<'_, impl Roles>) -> Result<Rule, ResolveError> {
        let mut rule = self.rule.clone();
        if !self.routes.is_empty() {
            let mut links = BTreeSet::new();
            for route in &self.routes {
                links.append(&mut route.links(resolver)?);
            }
            if links.is_empty() {
                return Err(ResolveError::NoLink);
            }
            rule.filter.links = Links::Only(links);
        }
        Ok(rule)
    }
}

impl Route {
    /// Whether one of its ends is all clients.
    pub fn is_of_clients(self) -> bool {
        [self.from, self.to].contains(&Place::Clients)
    }

    /// The link, if nobody has to be looked up.
    fn link(self) -> Option<Link> {
        let end = |place| match place {
            Place::Who(Who::Node(node)) => Some(End::Node(node)),
            Place::Clients => Some(End::Clients),
            Place::Who(Who::LeaderOf(_) | Who::FollowerOf(_) | Who::ManagerOf(_) | Who::Any)
            | Place::Nodes => None,
        };
        Some(Link { from: end(self.from)?, to: end(self.to)? })
    }

    fn links(self, resolver: &mut Resolver<'_, impl Roles>) -> Result<BTreeSet<Link>, ResolveError> {
        let (from, to) = match (self.from, self.to) {
            (Place::Who(from), Place::Who(to)) => {
                let (from, to) = resolver.pair(from, to)?;
                (BTreeSet::from([End::Node(from)]), BTreeSet::from([End::Node(to)]))
            }
            (from, to) => (from.ends(resolver)?, to.ends(resolver)?),
        };
        let links = from.iter().flat_map(|from| to.iter().map(|to| Link { from: *from, to: *to }));
        Ok(links.filter(|link| link.from != link.to).collect())
    }
}

impl Place {
    fn ends(self, resolver: &mut Resolver<'_, impl Roles>) -> Result<BTreeSet<End>, ResolveError> {
        match self {
            Self::Who(who) => Ok(BTreeSet::from([End::Node(resolver.who(who)?)])),
            Self::Nodes => Ok(resolver.nodes().iter().copied().map(End::Node).collect()),
            Self::Clients => Ok(BTreeSet::from([End::Clients])),
        }
    }

    pub(super) fn who(self) -> Option<Who> {
        match self {
            Self::Who(who) => Some(who),
            Self::Nodes | Self::Clients => None,
        }
    }
}

impl FromStr for Place {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text.trim() {
            "*" => Ok(Self::Nodes),
            "clients" => Ok(Self::Clients),
            text => text.parse().map(Self::Who),
        }
    }
}

impl FromStr for Route {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bad = || {
            let expected = "two ends are expected, such as n1->leader-of(1), n1->* or clients->n1";
            ParseError::new(text, "link", expected)
        };
        let (from, to) = text.split_once("->").ok_or_else(bad)?;
        let route = Self { from: from.parse()?, to: to.parse()? };
        let is_loop = match route.from {
            Place::Who(who) => route.to == route.from && !who.is_drawn(),
            Place::Nodes => false,
            Place::Clients => route.to == route.from,
        };
        if is_loop { Err(bad()) } else { Ok(route) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Who(who) => write!(f, "{who}"),
            Self::Nodes => f.write_str("*"),
            Self::Clients => f.write_str("clients"),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}->{}", self.from, self.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_print_and_read_back() {
        for text in ["leader-of(1)->*", "*->*", "n1->n2", "clients->n1", "*->clients", "any->any"] {
            assert_eq!(text.parse::<Route>().unwrap().to_string(), text);
        }
        for bad in ["", "n1", "n1->n1", "clients->clients", "leader-of(1)->leader-of(1)", "n1->x", "*"] {
            assert!(bad.parse::<Route>().is_err(), "{bad}");
        }
    }
}
