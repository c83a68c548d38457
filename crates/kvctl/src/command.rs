//! The verbs: one file each.

mod cas;
mod chaos;
mod cluster;
mod completion;
mod del;
mod drill;
mod get;
mod health;
mod incr;
mod leader;
mod member;
mod members;
mod outcome;
mod put;
mod request_id;
mod scan;
mod session;
mod shards;
mod status;
mod txn;
mod version;

use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use kv_client::{Client, Config, RequestIds};
use kv_types::limits::VALUE_BYTES_MAX;
use kv_types::{Key, Value};

use crate::args::{
    Args, Cas, ChaosArgs, ChaosVerb, ClusterVerb, Command, Drill, Global, LeaderVerb, MemberVerb, Put,
    TxnVerb,
};
use crate::bytes_text::Encoding;
use crate::console::Console;
use crate::failure::{CommandError, Exit};

/// Added to a command's timeout before it is cut off from outside: its calls end by themselves at the timeout, and know
/// better what became of them.
const GRACE: Duration = Duration::from_millis(250);

/// What a command came to.
type Ended = Result<Exit, CommandError>;

/// Carries out the command line.
pub(crate) fn run(args: Args) -> Ended {
    let Args { global, command } = args;
    let acts = acts(&command);
    let ended = carry_out(global, command, acts);
    ended.map_err(|failure| if acts { failure.of_one_that_acts() } else { failure })
}

fn carry_out(global: Global, command: Command, acts: bool) -> Ended {
    let mut console = Console::stdout(&global);
    let exit = match command {
        Command::Version => version::run(&mut console)?,
        Command::Completion(completion) => completion::run(&completion, &mut console)?,
        // A drill has times of its own.
        Command::Drill(Drill { verb }) => drill::run(&verb, &mut console)?,
        Command::Txn(args) => runtime()?.block_on(txn::run(args, &global, &mut console))?,
        command => {
            // Standard input is read before the clock starts: it may be a person.
            let stdin = match &command {
                Command::Put(Put { value, .. }) | Command::Cas(Cas { value, .. }) if value == "-" => {
                    // One byte more than a value may have is enough to see that it is too large.
                    Some(read_stdin(VALUE_BYTES_MAX as u64 + 1)?)
                }
                Command::Chaos(ChaosArgs { verb: ChaosVerb::Load { file }, .. })
                    if file == Path::new("-") =>
                {
                    Some(read_stdin(chaos::RULES_BYTES_MAX + 1)?)
                }
                _ => None,
            };
            let timed = within_timeout(&global, (command, acts), stdin, &mut console);
            runtime()?.block_on(timed)?
        }
    };
    console.flush()?;
    Ok(exit)
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// A client each call of which may take `timeout`.
fn connect(global: &Global, timeout: Duration) -> Result<Client, CommandError> {
    let mut config = Config::new(global.endpoints.iter().map(|endpoint| endpoint.trim()));
    config.cluster.clone_from(&global.cluster);
    config.timeout = timeout;
    config.connect_timeout = config.connect_timeout.min(timeout);
    config.request_ids = RequestIds::Timed;
    Client::new(config).map_err(|cause| CommandError::usage(format!("--endpoints: {cause}")))
}

/// Whether a command that comes to no answer may have done something.
fn acts(command: &Command) -> bool {
    match command {
        Command::Put(_) | Command::Del(_) | Command::Cas(_) | Command::Incr(_) => true,
        Command::Txn(txn) => !matches!(txn.verb, Some(TxnVerb::List { .. } | TxnVerb::Show { .. })),
        // It settles what it is asked about; and without an answer nothing is known of that.
        Command::Outcome(_) => true,
        Command::Member(member) => !matches!(member.verb, MemberVerb::List),
        Command::Leader(leader) => matches!(leader.verb, LeaderVerb::Transfer { .. }),
        Command::Chaos(chaos) => !matches!(chaos.verb, ChaosVerb::Links | ChaosVerb::Status),
        Command::Cluster(cluster) => matches!(cluster.verb, ClusterVerb::Set { .. }),
        _ => false,
    }
}

async fn within_timeout(
    global: &Global,
    (command, acts): (Command, bool),
    stdin: Option<Vec<u8>>,
    console: &mut Console,
) -> Ended {
    let client = connect(global, global.timeout)?;
    let running = dispatch(command, stdin, (global, &client), console);
    tokio::time::timeout(global.timeout + GRACE, running)
        .await
        .unwrap_or_else(|_| Err(CommandError::timed_out(acts, global.timeout)))
}

async fn dispatch(
    command: Command,
    stdin: Option<Vec<u8>>,
    (global, client): (&Global, &Client),
    console: &mut Console,
) -> Ended {
    match command {
        Command::Put(args) => put::run(args, stdin, client, console).await,
        Command::Get(args) => get::run(args, client, console).await,
        Command::Del(args) => del::run(args, client, console).await,
        Command::Scan(args) => scan::run(args, client, console).await,
        Command::Cas(args) => cas::run(args, stdin, client, console).await,
        Command::Incr(args) => incr::run(args, client, console).await,
        Command::Txn(args) => txn::run(args, global, console).await,
        Command::Outcome(args) => outcome::run(args, client, console).await,
        Command::RequestId(args) => request_id::run(args, client, console).await,
        Command::Session(args) => session::run(args.verb, client, console).await,
        Command::Status => status::run(client, console).await,
        Command::Members => members::run(client, console).await,
        Command::Member(args) => member::run(args.verb, (client, global.timeout), console).await,
        Command::Leader(args) => leader::run(args.verb, client, console).await,
        Command::Cluster(args) => cluster::run(args.verb, client, console).await,
        Command::Chaos(args) => chaos::run(args, stdin, (client, global.timeout), console).await,
        Command::Shards => shards::run(client, console).await,
        Command::Health => health::run(client, console).await,
        Command::Version => version::run(console),
        Command::Completion(args) => completion::run(&args, console),
        Command::Drill(Drill { verb }) => drill::run(&verb, console),
    }
}

/// Standard input, up to so many bytes.
fn read_stdin(bytes_max: u64) -> Result<Vec<u8>, CommandError> {
    let mut bytes = Vec::new();
    io::stdin()
        .take(bytes_max)
        .read_to_end(&mut bytes)
        .map_err(|error| CommandError::usage(format!("standard input could not be read: {error}")))?;
    Ok(bytes)
}

fn parse_key(encoding: Encoding, argument: &str) -> Result<Key, CommandError> {
    let bytes = encoding.read(argument).map_err(CommandError::usage)?;
    Key::new(bytes).map_err(CommandError::usage)
}

fn parse_value(encoding: Encoding, argument: &str, stdin: Option<Vec<u8>>) -> Result<Value, CommandError> {
    let bytes = match stdin {
        Some(bytes) => bytes,
        None => encoding.read(argument).map_err(CommandError::usage)?,
    };
    Value::new(bytes).map_err(CommandError::usage)
}

/// The address part of an answer or a failure, for columns that would otherwise be empty.
fn or_dash<T: ToString>(field: Option<T>) -> String {
    field.map_or_else(|| "-".to_owned(), |field| field.to_string())
}

/// The word for a role.
fn role_word(role: i32) -> &'static str {
    use kv_client::v1::Role;
    match Role::try_from(role) {
        Ok(Role::Follower) => "follower",
        Ok(Role::Candidate) => "candidate",
        Ok(Role::Leader) => "leader",
        Ok(Role::Learner) => "learner",
        Ok(Role::Unspecified) | Err(_) => "unknown",
    }
}

/// Bytes of a hash as hexadecimal; nothing if it is not known.
fn hash_text(hash: &[u8]) -> Option<String> {
    (!hash.is_empty()).then(|| Encoding::Hex.write(hash))
}
