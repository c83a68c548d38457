//! Fault rules, named partitions and drill files: what goes wrong between the processes of a cluster, decided without doing
//! any of it.
//!
//! # The problem
//!
//! A store promises things that only faults can break, so faults have to be made: in a simulator on virtual time, and by a
//! proxy between real processes. Both should break the same thing when they are told the same, and do it again when they are
//! asked to repeat it. So what is to be broken is said in one language and decided in one place, here, from arguments alone.
//!
//! # Terms
//!
//! A *link* is one direction between two ends: what travels from `n1` to `n2`. An answer travels on the link opposite to its
//! request's. A *rule* is a [`Filter`], which says what messages it is about, and an [`Action`], which says what happens to
//! them; it may come and go in *pulses*. A *verdict* is what all rules in force together do to one message. To *heal* is to take rules out of
//! force. What was *held* until then is delivered late or discarded; whoever holds it decides, as the drill says.
//! A *role* is a node by what it does ([`Who`]: `leader-of(1)`), looked up when a step fires. A *partition* is a
//! set of links to cut that has a name ([`Partition`]). A *drill* is a timeline of faults, with a workload and with what is
//! expected of the cluster ([`Drill`]).
//!
//! # How it works
//!
//! **Rules.** [`Rules::load`] puts rules into force, all of a step or none. [`Rules::judge`] is asked about each message and
//! returns its [`Verdict`]. [`Rules::wire`] says what is in force below messages, for whole TCP connections.
//! [`Rules::table`] says what matched what. A [`Rule`] prints as a drill writes it, and [`Draft::parse`] reads that: between
//! processes rules travel as text.
//!
//! Chance is no stream that everybody draws from. A coin is a hash of the seed, the name of the rule, the link, and the
//! *ordinal*: the message's number among those of that link that fit the rule, before `nth` and `probability` are asked. So
//! what happens on another link, or to messages of another kind, or when, changes no verdict. The hash is
//! written down here and tested against fixed values: a seed means the same for ever.
//!
//! Several rules may match one message. A drop beats everything, then a hold; else delays add up, copies and flips join, and
//! the furthest reordering counts.
//!
//! **Partitions.** [`Partition::resolve`] looks up roles, draws what is left to chance and returns a [`Cut`]: the links, the
//! nodes that roles stood for, and the sides, which are the largest sets of nodes that all reach each other in both
//! directions. In a bridge or a ring sides overlap.
//!
//! **Drills.** [`Drill::parse`] reads and checks a file. Whatever is wrong with it is said with line and column, before
//! anything is started. A drill heals itself: what it breaks, a later step mends. [`Step::rules`] turns a step into rules.
//!
//! # Caller's duties
//!
//! 1. Time never runs back from call to call, and is the same clock for all calls of one [`Rules`].
//! 2. Each message of a link is judged once, in the order in which the link carries them.
//! 3. Rules that are in force must not be reached through another table: one [`Rules`] for all links of a cluster.
//! 4. Who repeats a step passes each firing its own seed: [`Drill::firings`] gives it.
//!
//! # What it does not do
//!
//! It drops, delays and holds nothing itself, opens no connection, stops no process, and reads no clock. It does not know
//! whether an expectation was met; it only reads what was expected. It does not count connections, so a rule below messages
//! matches nothing in its table.

mod quantity;

mod end;
mod link;
mod message;

mod filter;
mod links;
mod probability;

mod action;
mod delay;

mod coin;
mod rule;
mod rule_line;
mod rules;
mod verdict;

mod who;

mod partition;

mod cut;
mod resolve;
mod shapes;

mod drill;
pub mod limits;

pub use action::{Action, WireAction};
pub use cut::{Cut, minority};
pub use delay::{Delay, Shape};
pub use drill::{
    Cluster, Condition, Deed, Draft, Drill, DrillError, Expect, Fired, Firing, Held, Place, Process, Route,
    Step, Target, Trigger, Verb, Within, Workload, WorkloadKind,
};
pub use end::End;
pub use filter::{Filter, Nth};
pub use link::Link;
pub use links::Links;
pub use message::{Half, Kind, Message};
pub use partition::Partition;
pub use probability::Probability;
pub use quantity::ParseError;
pub use resolve::ResolveError;
pub use rule::{Pulse, Rule, RuleName};
pub use rules::{Counts, InForce, RuleError, Rules};
pub use verdict::{Fate, Verdict, Wire};
pub use who::{Roles, Who};
