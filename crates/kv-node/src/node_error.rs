//! Why a node cannot start, or had to stop.

use std::io;
use std::net::SocketAddr;

use kv_storage::data_dir::DataDirError;
use kv_storage::wal::WalError;
use kv_types::ShardId;

use crate::identity::IdentityError;
use crate::links::AddressError;

/// Why a node cannot start, or has stopped.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// An address cannot be served.
    #[error("cannot serve {what} on {addr}: {cause}; is another process using the port?")]
    Bind {
        /// What.
        what: &'static str,
        /// Where.
        addr: SocketAddr,
        /// Why.
        cause: io::Error,
    },
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The data directory or the cluster is another one's.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The WAL cannot be opened.
    #[error(
        "{cause}. This node may have lost a vote or an acknowledged write: it never comes back under its id. Keep the \
         directory for inquiry, and replace the node by a new one: `kvctl member remove`, then `kvnode serve --join` \
         with a new id and an empty directory"
    )]
    Wal {
        /// Why.
        cause: WalError,
    },
    /// The WAL of a formed node is gone.
    #[error(
        "the data directory belongs to a formed cluster, but its write-ahead log is gone: this node may have lost \
         acknowledged writes and must not come back under its id; replace it by a new one: `kvctl member remove`, then \
         `kvnode serve --join` with a new id and an empty directory"
    )]
    WalMissing,
    /// A running cluster does not take this node in.
    #[error("cannot join the cluster at {addr}: {cause}")]
    Join {
        /// Who was asked.
        addr: String,
        /// Why.
        cause: String,
    },
    /// A shard's rows cannot be opened.
    #[error("{shard} cannot be opened: {cause}")]
    Open {
        /// The shard.
        shard: ShardId,
        /// Why.
        cause: String,
    },
    /// A peer's address makes no sense.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The operating system refuses something.
    #[error("cannot {doing}: {cause}")]
    Os {
        /// What.
        doing: &'static str,
        /// Why.
        cause: io::Error,
    },
    /// The node had to stop.
    #[error("{0}")]
    Fatal(String),
}
