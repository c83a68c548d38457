//! What may stand on the command line.

mod chaos;
mod drill;

use std::path::PathBuf;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args as ClapArgs, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use kv_types::{NodeId, RequestId, SessionId, TxnId};

pub(crate) use self::chaos::{Chaos as ChaosArgs, ChaosVerb, CutArgs};
use self::drill::LOCAL;
pub(crate) use self::drill::{Drill, DrillCheck, DrillRun, DrillVerb, HistoryModel};

/// Where nodes serve clients if nobody says otherwise: those of `kvnode dev`, of `scripts/cluster` and of the compose file.
pub(crate) const DEFAULT_ENDPOINTS: &str =
    "127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103,127.0.0.1:7104,127.0.0.1:7105";

/// Talks to a Quorate cluster.
///
/// Keys and values are bytes. Exit codes: 0 ok, 1 error, 2 usage, 3 key absent, 4 outcome unknown, 5 compare failed, 6 not applied and worth a retry, 7 transaction aborted by a conflict. From `drill`: 0 VALID, 10 VIOLATION, 11 UNKNOWN, 12 NOT EXERCISED.
#[derive(Debug, Parser)]
#[command(name = "kvctl", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Args {
    /// What holds for every command.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Args {
    /// Reads the command line, or ends the program with what is wrong with it.
    pub(crate) fn read() -> Self {
        let matches = Self::command().get_matches();
        let mut args = Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        args.mend_cluster(&matches);
        args
    }

    /// `--cluster` of `drill run` says where, not which cluster is meant; what the environment says of the latter is handed
    /// down to it all the same.
    fn mend_cluster(&mut self, matches: &ArgMatches) {
        let leaf = matches.subcommand_matches("drill").and_then(|drill| drill.subcommand_matches("run"));
        let source = leaf.and_then(|leaf| leaf.value_source("cluster"));
        if let Command::Drill(Drill { verb: DrillVerb::Run(run) }) = &mut self.command
            && source == Some(ValueSource::EnvVariable)
        {
            LOCAL.clone_into(&mut run.cluster);
        }
    }
}

/// What holds for every command.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Global {
    /// Client addresses of some nodes, HOST:PORT, separated by commas
    #[arg(
        long,
        global = true,
        env = "KVCTL_ENDPOINTS",
        hide_env_values = true,
        value_delimiter = ',',
        default_value = DEFAULT_ENDPOINTS
    )]
    pub(crate) endpoints: Vec<String>,
    /// The cluster meant; nodes of another one refuse. Empty: any
    #[arg(
        long,
        global = true,
        env = "KVCTL_CLUSTER",
        hide_env_values = true,
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) cluster: String,
    /// Bounds the command: 500ms, 5s, 2m; a bare number is seconds
    #[arg(long, global = true, default_value = "5s", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Plain)]
    pub(crate) output: Format,
    /// Keys and values are hexadecimal, as arguments and as output
    #[arg(long, global = true, conflicts_with = "base64")]
    pub(crate) hex: bool,
    /// Keys and values are Base64, as arguments and as output
    #[arg(long, global = true)]
    pub(crate) base64: bool,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Lines for people and scripts
    Plain,
    /// Tables for people
    Table,
    /// Objects for programs, one a line
    Json,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write a key
    Put(Put),
    /// Read keys; exit 3 if one is absent
    Get(Get),
    /// Delete a key, or all keys with a prefix; print how many there were
    Del(Del),
    /// Read a range of keys in order
    Scan(Scan),
    /// Write a key if it is as expected; exit 5 if it is not
    Cas(Cas),
    /// Add to a number and print the sum
    Incr(Incr),
    /// Read and write keys of any shards in one transaction; exit 0 only if it is committed
    ///
    /// A line each: `get K`, `put K V`, `delete K`, `incr K [N]`, `compare K value V`, `compare K revision N`, `compare K absent`, `scan START [END] [limit N]`, and at the end `commit` or `abort`. Words are parted by blanks; in "double quotes" a word may have blanks in it, or be empty. \xNN is any byte. Blank lines, and those that begin with #, are passed over. From a terminal it is a prompt, else a script, which stops at the first error.
    ///
    /// Writes are sent by `commit` and not before. It succeeds only if all that was read still is as it was. If it is not, the transaction is aborted, exit code 7, and never tried again by itself: what the script has printed may have been acted on. Read all of it anew.
    ///
    /// Exit codes: 0 committed, 1 given up by `abort`, by the end of the input or by an error, 2 a line that makes no sense, 4 not known (the message says how to find out), 5 a comparison failed, 6 not applied and worth a retry, 7 aborted by a conflict. The timeout bounds each step.
    Txn(TxnArgs),
    /// Say what a write with a request id came to; exit 0 applied, 4 not known, 5 compare failed, 6 never applied, 7 aborted
    Outcome(OutcomeOf),
    /// Draw a request id for a write, good for 15 minutes: with it a put can be repeated safely
    RequestId(NewRequestId),
    /// Look at the sessions of clients
    Session(SessionArgs),
    /// Show every node and its replicas
    Status,
    /// Look at the members and change them
    Member(Member),
    /// Short for `member list`
    Members,
    /// Show every shard and its replicas
    Shards,
    /// Show who leads each shard, and hand a leadership over
    Leader(Leader),
    /// Show the settings of the cluster, and change them
    Cluster(Cluster),
    /// Say of each endpoint whether it serves; exit 0 if more than half do, else 6
    Health,
    /// Hurt the network between nodes, through a chaos proxy that stands there
    Chaos(ChaosArgs),
    /// Play drills: faults on a timeline against a cluster, with a verdict; look at what clients saw
    Drill(Drill),
    /// Print the version of kvctl
    Version,
    /// Print a completion script
    Completion(Completion),
}

/// Write a key.
#[derive(Debug, ClapArgs)]
pub(crate) struct Put {
    /// The key
    pub(crate) key: String,
    /// The value; `-` reads standard input to its last byte, never decoded
    #[arg(allow_negative_numbers = true)]
    pub(crate) value: String,
    /// What names this write: repeated with the same id it is done once. See `request-id`
    #[arg(long, value_name = "ID", value_parser = str::parse::<RequestId>)]
    pub(crate) request_id: Option<RequestId>,
}

/// Add to a number.
#[derive(Debug, ClapArgs)]
pub(crate) struct Incr {
    /// The key; absent counts as 0
    pub(crate) key: String,
    /// What is added, within 64 bits
    #[arg(default_value_t = 1, allow_negative_numbers = true)]
    pub(crate) delta: i64,
}

/// Read and write keys of any shards in one transaction.
#[derive(Debug, ClapArgs)]
pub(crate) struct TxnArgs {
    /// Read the script from a file, which is checked as a whole before anything is read; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// What to do with what transactions have left.
    #[command(subcommand)]
    pub(crate) verb: Option<TxnVerb>,
}

/// What can be done with what transactions have left.
#[derive(Debug, Subcommand)]
pub(crate) enum TxnVerb {
    /// List what transactions have left in all shards: parts that are in doubt, and what is committed but unfinished
    List {
        /// Only what is in doubt
        #[arg(long)]
        in_doubt: bool,
    },
    /// Show what one transaction has left, with its locks, and what its anchor's shard knows of it; exit 3 if there is nothing
    Show {
        /// The transaction: sesN/SEQ
        #[arg(value_parser = txn)]
        id: TxnId,
    },
    /// End the parts of a transaction; exit 3 if there is none
    ///
    /// The anchor's shard is asked what the transaction came to, and decides now if it has not yet. This cannot choose the outcome. While a manager is at work on the transaction it is refused: exit 6.
    Force {
        /// The transaction: sesN/SEQ
        #[arg(value_parser = txn)]
        id: TxnId,
    },
}

/// Say what a write came to.
#[derive(Debug, ClapArgs)]
pub(crate) struct OutcomeOf {
    /// The request id: sesN/SEQ or 32 hexadecimal digits
    #[arg(value_parser = str::parse::<RequestId>)]
    pub(crate) id: RequestId,
    /// The key the write was about, or the start of its range. Without it every shard is asked
    #[arg(long)]
    pub(crate) key: Option<String>,
    /// If it was not seen, see to it that it never will be applied
    #[arg(long)]
    pub(crate) settle: bool,
}

/// Draw a request id.
#[derive(Debug, ClapArgs)]
pub(crate) struct NewRequestId {
    /// The key that will be written
    pub(crate) key: String,
}

/// Look at the sessions of clients.
#[derive(Debug, ClapArgs)]
pub(crate) struct SessionArgs {
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: SessionVerb,
}

/// What can be done with sessions.
#[derive(Debug, Subcommand)]
pub(crate) enum SessionVerb {
    /// List the sessions that live, and those closed whose lease still runs
    List,
    /// Show one session, and how far it is on each shard
    Show {
        /// The session: sesN or N
        #[arg(value_parser = session)]
        session: SessionId,
    },
}

/// Read keys.
#[derive(Debug, ClapArgs)]
pub(crate) struct Get {
    /// The keys
    #[arg(required = true)]
    pub(crate) keys: Vec<String>,
    /// Write the bytes as they are, without a newline
    #[arg(long)]
    pub(crate) raw: bool,
}

/// Delete keys.
#[derive(Debug, ClapArgs)]
pub(crate) struct Del {
    /// The key
    #[arg(required_unless_present = "prefix", conflicts_with = "prefix")]
    pub(crate) key: Option<String>,
    /// Delete all keys that begin with this; not atomic
    #[arg(long, requires = "yes")]
    pub(crate) prefix: Option<String>,
    /// Needed with --prefix
    #[arg(long)]
    pub(crate) yes: bool,
}

/// Read a range.
#[derive(Debug, ClapArgs)]
pub(crate) struct Scan {
    /// Only keys that begin with this
    pub(crate) prefix: Option<String>,
    /// Only this key and those after it
    #[arg(long)]
    pub(crate) from: Option<String>,
    /// Only keys before this one
    #[arg(long)]
    pub(crate) to: Option<String>,
    /// At most this many
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,
    /// Leave the values out
    #[arg(long)]
    pub(crate) keys_only: bool,
    /// Write the bytes as they are, each key and value followed by a NUL
    #[arg(long)]
    pub(crate) raw: bool,
}

/// Write a key if it is as expected.
#[derive(Debug, ClapArgs)]
pub(crate) struct Cas {
    /// The key
    pub(crate) key: String,
    /// The new value; `-` reads standard input to its last byte, never decoded
    #[arg(allow_negative_numbers = true)]
    pub(crate) value: String,
    /// What it must be.
    #[command(flatten)]
    pub(crate) expect: Expected,
}

/// What a key must be.
#[derive(Debug, ClapArgs)]
#[group(required = true, multiple = false)]
pub(crate) struct Expected {
    /// The key has this value
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) expect_value: Option<String>,
    /// The key was last written at this revision
    #[arg(long)]
    pub(crate) expect_revision: Option<u64>,
    /// The key does not exist
    #[arg(long)]
    pub(crate) expect_absent: bool,
}

/// Look at the members and change them.
#[derive(Debug, ClapArgs)]
pub(crate) struct Member {
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: MemberVerb,
}

/// What can be done with members.
#[derive(Debug, Subcommand)]
pub(crate) enum MemberVerb {
    /// Show the members, and how far each group is with the newest change
    List,
    /// Announce a node, which may then join with `kvnode serve --join`; not needed for one that may come unannounced
    Add {
        /// The id of the node, never used before in this cluster
        node: NodeId,
        /// Where it will serve peers, HOST:PORT
        addr: String,
        /// It stays a learner until it is promoted
        #[arg(long)]
        learner: bool,
    },
    /// Let a node leave every group; its id is never used again
    Remove {
        /// The node
        node: NodeId,
        /// Return when every group has let go of it
        #[arg(long)]
        wait: bool,
    },
    /// Let a learner vote in every group
    Promote {
        /// The node
        node: NodeId,
        /// Return when it votes in every group
        #[arg(long)]
        wait: bool,
    },
}

/// Who leads.
#[derive(Debug, ClapArgs)]
pub(crate) struct Leader {
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: LeaderVerb,
}

/// What can be done with leaders.
#[derive(Debug, Subcommand)]
pub(crate) enum LeaderVerb {
    /// Show who leads each shard
    List,
    /// Hand the leadership of a shard to another voter, and wait until it leads
    Transfer {
        /// The shard
        shard: u32,
        /// Who shall lead it
        node: NodeId,
    },
}

/// The settings of the cluster.
#[derive(Debug, ClapArgs)]
pub(crate) struct Cluster {
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: ClusterVerb,
}

/// What can be done with the settings of the cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterVerb {
    /// Show the settings
    Settings,
    /// Change a setting: `read-mode lease|read-index`, `clock-drift-ppm N`
    Set {
        /// The setting
        name: String,
        /// Its value
        value: String,
    },
}

/// Print a completion script.
#[derive(Debug, ClapArgs)]
pub(crate) struct Completion {
    /// For which shell
    pub(crate) shell: Shell,
}

/// Reads `500ms`, `5s`, `2m` or a bare number of seconds; more than nothing.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| "a number and ms, s or m is expected".to_owned())?;
    let span = match unit {
        "ms" => Duration::from_millis(number),
        "s" | "" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.saturating_mul(60)),
        _ => return Err(format!("`{unit}` is no unit; ms, s and m are")),
    };
    // A day bounds what the clocks below have to add up.
    if span.is_zero() || span > Duration::from_secs(86_400) {
        return Err("more than nothing and at most a day is expected".to_owned());
    }
    Ok(span)
}

/// Reads the name of a session.
fn session(text: &str) -> Result<SessionId, String> {
    let digits = text.strip_prefix("ses").unwrap_or(text);
    match digits.parse::<u64>() {
        Ok(id) if id > 0 => Ok(SessionId::new(id)),
        _ => Err("a session is sesN or N, from 1".to_owned()),
    }
}

/// Reads the name of a transaction.
fn txn(text: &str) -> Result<TxnId, String> {
    match text.parse() {
        Ok(RequestId::Session { session, seq }) => Ok(TxnId { session, seq }),
        _ => Err("a transaction is a request of a session: sesN/SEQ".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "s", "5h", "0", "-1s", "1.5s", "99999999999999999999s", "18446744073709551615m"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
