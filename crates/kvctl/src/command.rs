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
use std::time::Duration;

use kv_client::{Client, Config, RequestIds};
use kv_types::limits::VALUE_BYTES_MAX;
use kv_types::{Key, Value};

use crate::args::{Args, Cas, ChaosVerb, ClusterVerb, Command, Drill, Global, MemberVerb, Put};
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
                    Some(read_stdin()?)
                }
                _ => None,
            };
            runtime()?.block_on(within_timeout(&global, command, stdin, &mut console))?
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
    Client::new(config).map_err(CommandError::usage)
}

async fn within_timeout(
    global: &Global,
    command: Command,
    stdin: Option<Vec<u8>>,
    console: &mut Console,
) -> Ended {
    let client = connect(global, global.timeout)?;
    let is_write = match &command {
        Command::Put(_) | Command::Del(_) | Command::Cas(_) | Command::Incr(_) => true,
        Command::Member(member) => !matches!(member.verb, MemberVerb::List),
        Command::Chaos(chaos) => !matches!(chaos.verb, ChaosVerb::Links | ChaosVerb::Status),
        Command::Cluster(cluster) => matches!(cluster.verb, ClusterVerb::Set { .. }),
        _ => false,
    };
    let running = dispatch(command, stdin, (global, &client), console);
    tokio::time::timeout(global.timeout + GRACE, running)
        .await
        .unwrap_or_else(|_| Err(CommandError::timed_out(is_write)))
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
        Command::Member(args) => member::run(args.verb, client, console).await,
        Command::Leader(args) => leader::run(args.verb, client, console).await,
        Command::Cluster(args) => cluster::run(args.verb, client, console).await,
        Command::Chaos(args) => chaos::run(args, (client, global.timeout), console).await,
        Command::Shards => shards::run(client, console).await,
        Command::Health => health::run(client, console).await,
        Command::Version => version::run(console),
        Command::Completion(args) => completion::run(&args, console),
        Command::Drill(Drill { verb }) => drill::run(&verb, console),
    }
}

/// Standard input, up to one byte more than a value may have: enough to see that it is too large.
fn read_stdin() -> Result<Vec<u8>, CommandError> {
    let mut bytes = Vec::new();
    io::stdin()
        .take(VALUE_BYTES_MAX as u64 + 1)
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
