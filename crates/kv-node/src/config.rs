//! What a node is started with: flags over environment over file over defaults.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use clap::builder::BoolishValueParser;
use kv_types::NodeId;
use kv_types::limits::WAL_SEGMENT_BYTES;
use kv_types::limits::{
    BASE_SLACK_BYTES, DISK_FREE_WRITES_MIN, ELECTION_TIMEOUT_MIN_DEFAULT, HEARTBEAT_DEFAULT, MEMBERS_MAX,
    MEMTABLE_BYTES_MAX, WAL_BYTES_MAX,
};
use serde::Deserialize;

use crate::shard_map::{ShardMap, ShardMapError};

/// Length of the file that is given up when the disk is full.
const BALLAST_BYTES: u64 = 64 << 20;

/// Time between two rounds of the scrub.
const SCRUB_INTERVAL_DEFAULT: Duration = Duration::from_secs(60);

/// More seldom is never.
const SCRUB_INTERVAL_MAX: Duration = Duration::from_hours(24);

/// More help nobody.
const WORKER_THREADS_MAX: usize = 1024;

/// Flags of `kvnode serve`. Each has an environment variable; `--config` names a TOML file with the same names (with
/// `_` for `-`). A flag wins over the environment, the environment over the file.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Flags {
    /// The id of this node, from 1.
    #[arg(long, env = "KVNODE_NODE_ID", value_name = "N")]
    pub node_id: Option<u64>,
    /// Where this node keeps everything; created if needed.
    #[arg(long, env = "KVNODE_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The name of the cluster [default: quorate].
    #[arg(long, env = "KVNODE_CLUSTER", value_name = "NAME")]
    pub cluster: Option<String>,
    /// Where clients are served [default: 127.0.0.1:7100+N].
    #[arg(long, env = "KVNODE_CLIENT_ADDR", value_name = "ADDR")]
    pub client_addr: Option<String>,
    /// Where peers are served [default: 127.0.0.1:7200+N].
    #[arg(long, env = "KVNODE_PEER_ADDR", value_name = "ADDR")]
    pub peer_addr: Option<String>,
    /// Where metrics and health are served over HTTP [default: 127.0.0.1:7300+N].
    #[arg(long, env = "KVNODE_HTTP_ADDR", value_name = "ADDR")]
    pub http_addr: Option<String>,
    /// The address clients are told to use [default: the client address].
    #[arg(long, env = "KVNODE_ADVERTISE_CLIENT", value_name = "HOST:PORT")]
    pub advertise_client: Option<String>,
    /// The address peers are told to use [default: this node's in --initial-members].
    #[arg(long, env = "KVNODE_ADVERTISE_PEER", value_name = "HOST:PORT")]
    pub advertise_peer: Option<String>,
    /// Peers to dial at other addresses than their own, those of a chaos proxy: `2=HOST:PORT,3=HOST:PORT,...`.
    #[arg(long, env = "KVNODE_PEER_PROXIES", value_name = "PROXIES")]
    pub peer_proxies: Option<String>,
    /// The members that form the cluster, this node included: `1=HOST:PORT,2=HOST:PORT,...` (peer addresses).
    #[arg(long, env = "KVNODE_INITIAL_MEMBERS", value_name = "MEMBERS")]
    pub initial_members: Option<String>,
    /// The peer address of any member of a running cluster: with an empty data directory this node joins it. Takes the
    /// place of --initial-members, and stays on the command line.
    #[arg(long, env = "KVNODE_JOIN", value_name = "HOST:PORT")]
    pub join: Option<String>,
    /// Whether a node that joins stays a learner, which gets the log and does not vote, until it is promoted.
    #[arg(long, env = "KVNODE_JOIN_AS_LEARNER", value_parser = BoolishValueParser::new())]
    pub join_as_learner: bool,
    /// Keys at which the key space is split into shards when the cluster is formed, as a comma list.
    #[arg(long, env = "KVNODE_SPLIT_KEYS", value_name = "KEYS")]
    pub split_keys: Option<String>,
    /// Shortest election timeout in milliseconds; the longest is twice this [default: 500].
    #[arg(long, env = "KVNODE_ELECTION_TIMEOUT_MS", value_name = "MS")]
    pub election_timeout_ms: Option<u64>,
    /// Interval of heartbeats in milliseconds [default: 50].
    #[arg(long, env = "KVNODE_HEARTBEAT_MS", value_name = "MS")]
    pub heartbeat_ms: Option<u64>,
    /// Memory for rows not yet merged into the base, in MiB [default: 256].
    #[arg(long, env = "KVNODE_MEMTABLE_MB", value_name = "MIB")]
    pub memtable_mb: Option<u64>,
    /// Memory for the base's cache, in MiB [default: 256].
    #[arg(long, env = "KVNODE_CACHE_MB", value_name = "MIB")]
    pub cache_mb: Option<u64>,
    /// Disk space the write-ahead log may take, in MiB [default: 512].
    #[arg(long, env = "KVNODE_WAL_MB", value_name = "MIB")]
    pub wal_mb: Option<u64>,
    /// Disk space the base of a shard may take beside three times its live bytes before it is rewritten, in MiB
    /// [default: 256].
    #[arg(long, env = "KVNODE_BASE_SLACK_MB", value_name = "MIB")]
    pub base_slack_mb: Option<u64>,
    /// Free disk space below which client writes are refused, in MiB [default: 1024].
    #[arg(long, env = "KVNODE_DISK_FREE_MIN_MB", value_name = "MIB")]
    pub disk_free_min_mb: Option<u64>,
    /// Time between two comparisons of the replicas' states in milliseconds, 0 for none; every 60th also reads each base
    /// through [default: 60000].
    #[arg(long, env = "KVNODE_SCRUB_INTERVAL_MS", value_name = "MS")]
    pub scrub_interval_ms: Option<u64>,
    /// Threads that serve clients and peers and carry out entries [default: half of the cores].
    #[arg(long, env = "KVNODE_WORKER_THREADS", value_name = "N")]
    pub worker_threads: Option<u64>,
    /// What is logged, such as `info` or `info,kv_node=debug` [default: info].
    #[arg(long, env = "KVNODE_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// How it is logged: `text` or `json` [default: text].
    #[arg(long, env = "KVNODE_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,
}

/// Why a node cannot be started with this configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration file {path} cannot be read: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("the configuration file {path} is wrong: {cause}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What and where.
        cause: Box<toml::de::Error>,
    },
    /// Something that has no default is missing.
    #[error("--{0} is missing")]
    Missing(&'static str),
    /// A value makes no sense.
    #[error("--{flag} `{value}` is wrong: {why}")]
    Wrong {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// Two values contradict each other.
    #[error("{0}")]
    Contradiction(String),
}

/// What a node runs with, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// The cluster's name.
    pub cluster: String,
    /// Where clients are served.
    pub client_addr: SocketAddr,
    /// Where peers are served.
    pub peer_addr: SocketAddr,
    /// Where metrics and health are served.
    pub http_addr: SocketAddr,
    /// What clients are told; `None` is the address really bound.
    pub advertise_client: Option<String>,
    /// What peers are told.
    pub advertise_peer: String,
    /// Where peers are dialled instead of at their own addresses.
    pub peer_proxies: BTreeMap<NodeId, String>,
    /// The peer address of each initial member, this node included.
    pub members: BTreeMap<NodeId, String>,
    /// Whom to ask to be taken in, if this node has an empty disk.
    pub join: Option<Join>,
    /// The shards a new cluster begins with.
    pub shards: ShardMap,
    /// Shortest election timeout.
    pub election_timeout_min: Duration,
    /// Interval of heartbeats.
    pub heartbeat: Duration,
    /// Bytes of rows in memory.
    pub memtable_bytes: usize,
    /// Bytes of cache over all bases.
    pub cache_bytes: u64,
    /// Bytes of WAL.
    pub wal_bytes: u64,
    /// Bytes of one segment of it.
    pub wal_segment_bytes: u64,
    /// Bytes of the file that is given up when the disk is full; 0 is none.
    pub ballast_bytes: u64,
    /// Bytes of a base's file beside three times its live bytes.
    pub base_slack_bytes: u64,
    /// Free bytes below which client writes are refused.
    pub disk_free_min: u64,
    /// Time between two rounds of the scrub; none, and nobody compares.
    pub scrub_interval: Option<Duration>,
    /// Threads of the runtime that `kvnode` starts the node on.
    pub worker_threads: usize,
}

/// How a node joins a running cluster.
#[derive(Clone, Debug)]
pub struct Join {
    /// The peer address of any member.
    pub addr: String,
    /// Whether it stays a learner.
    pub learner: bool,
}

impl Flags {
    /// These flags, with what they leave out taken from a file.
    ///
    /// # Errors
    /// [`ConfigError::File`] or [`ConfigError::Syntax`], with the place in the file.
    pub fn over_file(self, path: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = path else { return Ok(self) };
        let text = std::fs::read_to_string(path)
            .map_err(|cause| ConfigError::File { path: path.to_owned(), cause })?;
        let file: Self = toml::from_str(&text)
            .map_err(|cause| ConfigError::Syntax { path: path.to_owned(), cause: Box::new(cause) })?;
        Ok(Self {
            node_id: self.node_id.or(file.node_id),
            data_dir: self.data_dir.or(file.data_dir),
            cluster: self.cluster.or(file.cluster),
            client_addr: self.client_addr.or(file.client_addr),
            peer_addr: self.peer_addr.or(file.peer_addr),
            http_addr: self.http_addr.or(file.http_addr),
            advertise_client: self.advertise_client.or(file.advertise_client),
            advertise_peer: self.advertise_peer.or(file.advertise_peer),
            peer_proxies: self.peer_proxies.or(file.peer_proxies),
            initial_members: self.initial_members.or(file.initial_members),
            join: self.join.or(file.join),
            join_as_learner: self.join_as_learner || file.join_as_learner,
            split_keys: self.split_keys.or(file.split_keys),
            election_timeout_ms: self.election_timeout_ms.or(file.election_timeout_ms),
            heartbeat_ms: self.heartbeat_ms.or(file.heartbeat_ms),
            memtable_mb: self.memtable_mb.or(file.memtable_mb),
            cache_mb: self.cache_mb.or(file.cache_mb),
            wal_mb: self.wal_mb.or(file.wal_mb),
            base_slack_mb: self.base_slack_mb.or(file.base_slack_mb),
            disk_free_min_mb: self.disk_free_min_mb.or(file.disk_free_min_mb),
            scrub_interval_ms: self.scrub_interval_ms.or(file.scrub_interval_ms),
            worker_threads: self.worker_threads.or(file.worker_threads),
            log: self.log.or(file.log),
            log_format: self.log_format.or(file.log_format),
        })
    }

    /// Checks everything.
    ///
    /// # Errors
    /// [`ConfigError`] names the flag.
    pub fn check(&self) -> Result<Config, ConfigError> {
        let node = match self.node_id {
            None => return Err(ConfigError::Missing("node-id")),
            Some(0) => return Err(wrong("node-id", "0", "ids begin with 1")),
            Some(id) => NodeId::new(id),
        };
        let peer_addr = address("peer-addr", self.peer_addr.as_deref(), 7200, node)?;
        let members = self.members(node, peer_addr)?;
        let cluster = self.cluster.clone().unwrap_or_else(|| "quorate".to_owned());
        if cluster.is_empty()
            || cluster.len() > 64
            || cluster.chars().any(|c| c.is_control() || c.is_whitespace())
        {
            return Err(wrong("cluster", &cluster, "1 to 64 characters without spaces are expected"));
        }
        let (election_timeout_min, heartbeat) = self.timing()?;
        let advertise_peer =
            self.advertise_peer.clone().or_else(|| members.get(&node).cloned()).unwrap_or_default();
        Ok(Config {
            node,
            data_dir: self.data_dir.clone().ok_or(ConfigError::Missing("data-dir"))?,
            cluster,
            client_addr: address("client-addr", self.client_addr.as_deref(), 7100, node)?,
            peer_addr,
            http_addr: address("http-addr", self.http_addr.as_deref(), 7300, node)?,
            advertise_client: self.advertise_client.clone(),
            advertise_peer,
            peer_proxies: addresses("peer-proxies", self.peer_proxies.as_deref().unwrap_or_default())?,
            members,
            join: self.join.clone().map(|addr| Join { addr, learner: self.join_as_learner }),
            shards: split_keys(self.split_keys.as_deref().unwrap_or_default())?,
            election_timeout_min,
            heartbeat,
            memtable_bytes: usize::try_from(mebibytes(
                "memtable-mb",
                self.memtable_mb,
                MEMTABLE_BYTES_MAX as u64,
                8,
            )?)
            .unwrap_or(MEMTABLE_BYTES_MAX),
            cache_bytes: mebibytes("cache-mb", self.cache_mb, 256 << 20, 8)?,
            wal_bytes: mebibytes("wal-mb", self.wal_mb, WAL_BYTES_MAX, 192)?,
            wal_segment_bytes: WAL_SEGMENT_BYTES,
            ballast_bytes: BALLAST_BYTES,
            base_slack_bytes: mebibytes("base-slack-mb", self.base_slack_mb, BASE_SLACK_BYTES, 1)?,
            disk_free_min: mebibytes("disk-free-min-mb", self.disk_free_min_mb, DISK_FREE_WRITES_MIN, 0)?,
            scrub_interval: self.scrub_interval()?,
            worker_threads: self.worker_threads()?,
        })
    }

    fn worker_threads(&self) -> Result<usize, ConfigError> {
        let Some(given) = self.worker_threads else {
            return Ok(std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2)));
        };
        let allowed =
            usize::try_from(given).ok().filter(|threads| (1..=WORKER_THREADS_MAX).contains(threads));
        let said = format!("1 to {WORKER_THREADS_MAX} are expected");
        allowed.ok_or_else(|| wrong("worker-threads", &given.to_string(), &said))
    }

    /// Who forms the cluster; of one that is joined, this node alone.
    fn members(&self, node: NodeId, peer_addr: SocketAddr) -> Result<BTreeMap<NodeId, String>, ConfigError> {
        if self.join_as_learner && self.join.is_none() {
            return Err(ConfigError::Contradiction(
                "--join-as-learner is of use with --join only".to_owned(),
            ));
        }
        let members = match (&self.initial_members, &self.join) {
            (Some(_), Some(_)) => {
                let said =
                    "--initial-members and --join contradict each other: a node forms a cluster or joins one";
                return Err(ConfigError::Contradiction(said.to_owned()));
            }
            (None, None) => return Err(ConfigError::Missing("initial-members")),
            (Some(text), None) => members(text)?,
            (None, Some(join)) => {
                if !is_host_and_port(join) {
                    return Err(wrong("join", join, "HOST:PORT is expected"));
                }
                let own = self.advertise_peer.clone().unwrap_or_else(|| peer_addr.to_string());
                BTreeMap::from([(node, own)])
            }
        };
        if members.contains_key(&node) {
            return Ok(members);
        }
        let said = format!("--initial-members does not name this node ({})", node.get());
        Err(ConfigError::Contradiction(said))
    }

    fn scrub_interval(&self) -> Result<Option<Duration>, ConfigError> {
        let interval = self.scrub_interval_ms.map_or(SCRUB_INTERVAL_DEFAULT, Duration::from_millis);
        if interval > SCRUB_INTERVAL_MAX {
            let said = format!("at most {} is expected", SCRUB_INTERVAL_MAX.as_millis());
            return Err(wrong("scrub-interval-ms", &interval.as_millis().to_string(), &said));
        }
        Ok((!interval.is_zero()).then_some(interval))
    }

    fn timing(&self) -> Result<(Duration, Duration), ConfigError> {
        let election = self.election_timeout_ms.map_or(ELECTION_TIMEOUT_MIN_DEFAULT, Duration::from_millis);
        let heartbeat = self.heartbeat_ms.map_or(HEARTBEAT_DEFAULT, Duration::from_millis);
        if heartbeat.is_zero() || election < heartbeat * 4 || election > Duration::from_secs(60) {
            let said = format!(
                "--election-timeout-ms {} and --heartbeat-ms {} do not fit: the heartbeat is at least 1 and the election \
                 timeout at least four heartbeats and at most 60000",
                election.as_millis(),
                heartbeat.as_millis()
            );
            return Err(ConfigError::Contradiction(said));
        }
        Ok((election, heartbeat))
    }
}

fn wrong(flag: &'static str, value: &str, why: &str) -> ConfigError {
    ConfigError::Wrong { flag, value: value.to_owned(), why: why.to_owned() }
}

fn mebibytes(flag: &'static str, given: Option<u64>, default: u64, least: u64) -> Result<u64, ConfigError> {
    match given {
        None => Ok(default),
        Some(mib) if mib < least || mib > 1 << 20 => {
            Err(wrong(flag, &mib.to_string(), &format!("{least} to 1048576 MiB are expected")))
        }
        Some(mib) => Ok(mib << 20),
    }
}

fn address(
    flag: &'static str,
    given: Option<&str>,
    base: u64,
    node: NodeId,
) -> Result<SocketAddr, ConfigError> {
    let text = match given {
        Some(text) => text.to_owned(),
        None => format!("127.0.0.1:{}", base.saturating_add(node.get())),
    };
    text.parse()
        .map_err(|_| wrong(flag, &text, "an IP address and a port are expected, such as 127.0.0.1:7101"))
}

fn is_host_and_port(addr: &str) -> bool {
    addr.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

fn members(text: &str) -> Result<BTreeMap<NodeId, String>, ConfigError> {
    let flag = "initial-members";
    let members = addresses(flag, text)?;
    match members.len() {
        0 => Err(wrong(flag, text, "at least this node is expected")),
        count if count > MEMBERS_MAX => {
            Err(wrong(flag, text, &format!("at most {MEMBERS_MAX} members are allowed")))
        }
        _ => Ok(members),
    }
}

/// An address for each of some nodes.
fn addresses(flag: &'static str, text: &str) -> Result<BTreeMap<NodeId, String>, ConfigError> {
    let mut members = BTreeMap::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (id, addr) = part.split_once('=').ok_or_else(|| wrong(flag, part, "ID=HOST:PORT is expected"))?;
        let id: NodeId = id.parse().map_err(|error| wrong(flag, part, &format!("{error}")))?;
        if !is_host_and_port(addr) {
            return Err(wrong(flag, part, "HOST:PORT is expected after the `=`"));
        }
        if members.insert(id, addr.to_owned()).is_some() {
            return Err(wrong(flag, part, "the id is named twice"));
        }
    }
    Ok(members)
}

/// Reads a comma list of split keys.
///
/// # Errors
/// [`ConfigError::Wrong`] if they do not rise.
pub fn split_keys(text: &str) -> Result<ShardMap, ConfigError> {
    let keys =
        text.split(',').filter(|key| !key.is_empty()).map(|key| Bytes::copy_from_slice(key.as_bytes()));
    ShardMap::split_at(keys.collect())
        .map_err(|error: ShardMapError| wrong("split-keys", text, &error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> Flags {
        Flags {
            node_id: Some(2),
            data_dir: Some(PathBuf::from("d")),
            initial_members: Some("1=127.0.0.1:7201,2=127.0.0.1:7202".to_owned()),
            ..Flags::default()
        }
    }

    #[test]
    fn defaults_follow_the_node() {
        let config = flags().check().unwrap();
        assert_eq!(config.client_addr.port(), 7102);
        assert_eq!(config.http_addr.port(), 7302);
        assert_eq!(config.members.len(), 2);
        assert_eq!(config.cluster, "quorate");
    }

    #[test]
    fn each_wrong_value_is_named() {
        type Mistake = (fn(&mut Flags), &'static str);
        let cases: [Mistake; 11] = [
            (|f| f.node_id = None, "--node-id is missing"),
            (|f| f.node_id = Some(0), "--node-id `0`"),
            (|f| f.node_id = Some(3), "does not name this node (3)"),
            (|f| f.data_dir = None, "--data-dir is missing"),
            (|f| f.cluster = Some("a b".to_owned()), "--cluster `a b`"),
            (|f| f.client_addr = Some("here".to_owned()), "--client-addr `here`"),
            (|f| f.initial_members = Some("2=x".to_owned()), "--initial-members `2=x`"),
            (|f| f.initial_members = Some("2=a:1,2=b:1".to_owned()), "named twice"),
            (|f| f.split_keys = Some("t,g".to_owned()), "--split-keys `t,g`"),
            (|f| f.election_timeout_ms = Some(100), "do not fit"),
            (|f| f.worker_threads = Some(0), "--worker-threads `0`"),
        ];
        for (break_it, said) in cases {
            let mut flags = flags();
            break_it(&mut flags);
            let error = flags.check().expect_err(said).to_string();
            assert!(error.contains(said), "{error} does not say {said}");
        }
    }

    #[test]
    fn every_flag_is_in_its_page() {
        let page = include_str!("../../../docs/config.md");
        let command = Flags::augment_args(clap::Command::new("serve"));
        for arg in command.get_arguments() {
            let flag = format!("`--{}", arg.get_long().unwrap());
            let variable = format!("`{}`", arg.get_env().unwrap().to_str().unwrap());
            assert!(
                page.contains(&flag) && page.contains(&variable),
                "docs/config.md lacks {flag} or {variable}"
            );
        }
    }

    #[test]
    fn a_file_fills_what_flags_leave_out() {
        let dir = std::env::temp_dir().join(format!("quorate-config-{}", std::process::id()));
        std::fs::write(&dir, "node_id = 9\ncluster = \"file\"\n").unwrap();
        let merged = flags().over_file(Some(&dir)).unwrap();
        assert_eq!((merged.node_id, merged.cluster.as_deref()), (Some(2), Some("file")));
        std::fs::write(&dir, "nodeid = 9\n").unwrap();
        let error = flags().over_file(Some(&dir)).unwrap_err().to_string();
        assert!(error.contains("nodeid"), "{error}");
        std::fs::remove_file(&dir).unwrap();
        assert!(matches!(flags().over_file(Some(&dir)), Err(ConfigError::File { .. })));
    }
}
