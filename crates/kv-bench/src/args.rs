//! What may stand on the command line.

use clap::{Parser, ValueEnum};
use kv_types::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

use crate::load::KEY_DIGITS;

/// Loads a Quorate cluster and prints how it fared.
///
/// Exit code 1 if every operation failed.
#[derive(Debug, Clone, Parser)]
#[command(name = "kvbench", version)]
pub struct Args {
    /// What to do
    #[arg(value_enum)]
    pub operation: Operation,
    /// Client addresses of some nodes, HOST:PORT, separated by commas
    #[arg(
        long,
        env = "KVCTL_ENDPOINTS",
        hide_env_values = true,
        value_delimiter = ',',
        default_value = "127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103,127.0.0.1:7104,127.0.0.1:7105"
    )]
    pub endpoints: Vec<String>,
    /// Callers at work at once
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub clients: u32,
    /// Connections to each node, which the callers share
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub conns: u32,
    /// Bytes of each value
    #[arg(long, default_value_t = 128, value_parser = value_size)]
    pub value_size: usize,
    /// Number of keys. Each is four letters, which spread the keys evenly over the alphabet, `-` and 20 digits
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: u64,
    /// Begin every key with this instead of the letters: all load goes where it leads, to one shard
    #[arg(long, value_parser = key_prefix)]
    pub key_prefix: Option<String>,
    /// Seconds to measure
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub secs: u64,
    /// Seconds of load before the measurement
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub warmup: u64,
    /// Operations a second, begun whatever the cluster does (open loop); without it, each caller waits for its answer
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub rate: Option<u64>,
    /// Percentage of gets in `mixed`
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub read_percent: u8,
    /// Write every key once before the load
    #[arg(long)]
    pub preload: bool,
    /// Put each value under a key of its own, number by number, instead of overwriting one of --keys
    #[arg(long)]
    pub sequential: bool,
    /// What the keys of a `txn` begin with: one key under each, of --keys in all
    #[arg(long, value_delimiter = ',', default_value = "a/,o/", value_parser = key_prefix)]
    pub txn_prefixes: Vec<String>,
    /// Put two keys a `txn` under one of --txn-prefixes, or under two, chosen at random each time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=2))]
    pub txn_over: Option<u8>,
    /// Have each `txn` read its keys before it writes them
    #[arg(long)]
    pub txn_reads: bool,
    /// Timeout of each operation, in milliseconds
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub timeout_ms: u64,
    /// What makes a retry of a write safe
    #[arg(long, value_enum, default_value_t = Ids::Sessions)]
    pub request_ids: Ids,
    /// Process ids of the servers, whose CPU time is read from /proc
    #[arg(long, value_delimiter = ',')]
    pub pids: Vec<u32>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Plain)]
    output: Format,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Operation {
    /// Write keys
    Put,
    /// Read keys
    Get,
    /// Do either
    Mixed,
    /// Write several keys in one transaction
    Txn,
}

/// What makes a retry of a write safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Ids {
    /// The numbers of a session
    Sessions,
    /// Ids drawn at random
    Timed,
    /// Nothing: what may have happened is not tried again
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One line
    Plain,
    /// One object
    Json,
}

impl Args {
    /// Whether the report is wanted as json.
    pub fn json(&self) -> bool {
        self.output == Format::Json
    }
}

impl Operation {
    /// The word on the report.
    pub fn word(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Mixed => "mixed",
            Self::Txn => "txn",
        }
    }
}

fn value_size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(bytes) if bytes <= VALUE_BYTES_MAX => Ok(bytes),
        _ => Err(format!("0 to {VALUE_BYTES_MAX} is expected")),
    }
}

fn key_prefix(text: &str) -> Result<String, String> {
    let room = KEY_BYTES_MAX - KEY_DIGITS;
    if text.len() <= room { Ok(text.to_owned()) } else { Err(format!("at most {room} bytes are expected")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn values_hold_their_limit() {
        assert_eq!(value_size("1048576"), Ok(VALUE_BYTES_MAX));
        assert!(value_size("1048577").is_err());
        let longest = "p".repeat(KEY_BYTES_MAX - KEY_DIGITS);
        assert_eq!(key_prefix(&longest), Ok(longest.clone()));
        assert!(key_prefix(&format!("{longest}p")).is_err());
    }
}
