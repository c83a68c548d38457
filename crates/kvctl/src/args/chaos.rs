//! The words of `chaos`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};
use kv_fault::{Half, Kind, Nth, Partition, Place, Route, RuleName, Who};

use super::duration;

/// Hurt the network between nodes.
#[derive(Debug, ClapArgs)]
pub(crate) struct Chaos {
    /// Where the proxy is controlled, HOST:PORT
    #[arg(
        long = "chaos",
        value_name = "ADDR",
        env = "KVCTL_CHAOS",
        hide_env_values = true,
        default_value = "127.0.0.1:7600"
    )]
    pub(crate) control: String,
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: ChaosVerb,
}

/// What can be done with a proxy.
#[derive(Debug, Subcommand)]
pub(crate) enum ChaosVerb {
    /// Show the links, where each is dialled, and what passed
    Links,
    /// Show the rules that are in force and those that were, and how many messages each has matched
    Status,
    /// Cut links: `1,2/3,4,5`, `isolate WHO`, `minority [WHO]`, `halves`, `bridge [WHO]`, `ring`, `one-way A->B`, `mute WHO`, `deaf WHO`, `partial A<->B`
    Partition {
        /// Which
        #[arg(required = true, num_args = 1..)]
        shape: Vec<String>,
        /// How the links are cut.
        #[command(flatten)]
        cut: CutArgs,
    },
    /// Cut a node from all others
    Isolate {
        /// The node: 3, leader-of(1), follower-of(1), manager-of(any), any
        who: Who,
        /// How the links are cut.
        #[command(flatten)]
        cut: CutArgs,
    },
    /// Cut one direction
    Oneway {
        /// Whose messages are lost
        from: Who,
        /// Who does not get them
        to: Who,
        /// How the link is cut.
        #[command(flatten)]
        cut: CutArgs,
    },
    /// Have one direction take longer, in order
    Slow {
        /// Whose messages take longer; `*` is every node, `clients` all clients
        from: Place,
        /// Who gets them later
        to: Place,
        /// How much longer
        #[arg(long, value_parser = duration)]
        latency: Duration,
        /// Drawn anew each time, up to so much more or less
        #[arg(long, value_parser = duration)]
        jitter: Option<Duration>,
        /// The rule's name, instead of one that is free
        #[arg(long)]
        name: Option<RuleName>,
    },
    /// Lose single messages
    Drop {
        /// Of these kinds: append, heartbeat, vote, pre-vote, snapshot-chunk, timeout-now, read-index, prepare, decide, resolve, known, client, control
        #[arg(long, value_delimiter = ',')]
        kind: Vec<Kind>,
        /// Only requests, or only replies
        #[arg(long)]
        half: Option<Half>,
        /// Each with this probability, above 0 and up to 1
        #[arg(short, long, default_value_t = 1.0)]
        probability: f64,
        /// On these links only, such as n1->n2, leader-of(1)->*, clients->n3
        #[arg(long, value_delimiter = ',')]
        link: Vec<Route>,
        /// Of this shard only
        #[arg(long)]
        shard: Option<u32>,
        /// Which of those that match: `first 2`, `5`, `every 3`, `after 10`
        #[arg(long)]
        nth: Option<Nth>,
        /// The rule's name, instead of one that is free
        #[arg(long)]
        name: Option<RuleName>,
    },
    /// Put rules from a file in force, all or none: each in a line, as `kvctl -o json chaos status` shows them
    Load {
        /// The file; `-` is standard input
        file: PathBuf,
    },
    /// Take a rule, or all, out of force
    Heal {
        /// Which
        rule: Option<RuleName>,
        /// What it has held arrives now; else it is lost
        #[arg(long)]
        late: bool,
    },
    /// Have links carry messages from now on, so that no rule has to reset them for that
    Watch {
        /// Have them carry bytes again, unless a rule looks at messages
        #[arg(long)]
        off: bool,
    },
    /// Append every message to a file on the proxy's machine, a JSON object a line; without one, end that
    Log {
        /// The file
        path: Option<String>,
    },
}

/// How links are cut.
#[derive(Debug, ClapArgs)]
pub(crate) struct CutArgs {
    /// Cut clients as well, from the nodes without a majority
    #[arg(long)]
    pub(crate) clients: bool,
    /// Hold messages instead of losing them: `heal --late` delivers them
    #[arg(long)]
    pub(crate) hold: bool,
    /// The rule's name, instead of one that is free
    #[arg(long)]
    pub(crate) name: Option<RuleName>,
}

impl ChaosVerb {
    /// The partition that is meant, if one is, and how it is cut.
    ///
    /// # Errors
    /// What is wrong with its text.
    pub(crate) fn partition(&self) -> Result<Option<(Partition, &CutArgs)>, kv_fault::ParseError> {
        Ok(match self {
            Self::Partition { shape, cut } => Some((shape.join(" ").parse()?, cut)),
            Self::Isolate { who, cut } => Some((Partition::Isolate(*who), cut)),
            Self::Oneway { from, to, cut } => Some((Partition::OneWay(*from, *to), cut)),
            Self::Links
            | Self::Status
            | Self::Slow { .. }
            | Self::Drop { .. }
            | Self::Load { .. }
            | Self::Heal { .. }
            | Self::Watch { .. }
            | Self::Log { .. } => None,
        })
    }
}
