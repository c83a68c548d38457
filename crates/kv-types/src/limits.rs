//! Every size and queue limit, in one place, with the relations between them asserted at compile time.

use std::time::Duration;

/// Longest key in bytes.
pub const KEY_BYTES_MAX: usize = 4 << 10;

/// Longest value in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

/// Largest unary client request, encoded, in bytes.
pub const REQUEST_BYTES_MAX: usize = 3 << 19;

/// Largest frame of the `Pipeline` stream, in either direction, in bytes: a batch of requests or of replies.
pub const PIPELINE_FRAME_BYTES_MAX: usize = 4 << 20;

/// Most requests in one `Pipeline` frame.
pub const PIPELINE_FRAME_REQUESTS_MAX: usize = 1024;

/// Most requests in flight on one `Pipeline` stream; the server stops reading the stream at this many.
pub const PIPELINE_IN_FLIGHT_MAX: usize = 4096;

/// Largest command of a log entry in bytes (a transaction of 8 MiB and its envelope).
pub const ENTRY_BYTES_MAX: usize = 9 << 20;

/// Largest frame between peers in bytes; one entry always fits.
pub const PEER_FRAME_BYTES_MAX: usize = 16 << 20;

/// Payload bytes after which a peer frame takes no further message.
pub const PEER_FRAME_BYTES_TARGET: usize = 256 << 10;

/// Messages waiting for one peer; the newest beyond it are dropped, which Raft tolerates.
pub const PEER_QUEUE_LEN_MAX: usize = 4096;

/// Bytes waiting for one peer.
pub const PEER_QUEUE_BYTES_MAX: usize = 64 << 20;

/// Bytes in one chunk of a snapshot stream.
pub const SNAPSHOT_CHUNK_BYTES: usize = 256 << 10;

/// Client requests waiting for one shard's replica; beyond it a request is refused, not applied.
pub const MAILBOX_LEN_MAX: usize = 8192;

/// Bytes of client requests waiting for one shard's replica.
pub const MAILBOX_BYTES_MAX: usize = 16 << 20;

/// Bytes a leader holds in entries proposed and not committed, each counted as its payload and 64 B; beyond it a write
/// is refused, not applied.
pub const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;

/// Linearisable reads that wait in one replica, for their index or until it is applied; beyond it a read is refused. A
/// batch of a pipeline counts as one.
pub const READS_WAITING_MAX: usize = 16_384;

/// Appends in flight to one follower.
pub const IN_FLIGHT_APPENDS_MAX: usize = 256;

/// Bytes of entries in flight to one follower.
pub const IN_FLIGHT_BYTES_MAX: u64 = 16 << 20;

/// Bytes of entries in one append; a single larger entry travels alone.
pub const APPEND_BYTES_MAX: u64 = 256 << 10;

/// Entries in one append.
pub const APPEND_ENTRIES_MAX: usize = 1024;

/// Keys in one multi-get.
pub const MULTI_GET_KEYS_MAX: usize = 1024;

/// Rows in one page of a scan.
pub const SCAN_PAGE_ROWS_MAX: usize = 1024;

/// Bytes of keys and values in one page of a scan; a page always holds at least one row.
pub const SCAN_PAGE_BYTES_MAX: usize = 1 << 20;

/// Keys one delete-range entry removes; a longer range takes several entries.
pub const DELETE_RANGE_KEYS_MAX: usize = 1024;

/// Longest value that the answer of a failed compare-and-set carries; of a longer one it has all but the value. A
/// tiny request must not make the node hold a large row until its client reads the answer.
pub const COMPARE_FAILED_VALUE_BYTES_MAX: usize = 16 << 10;

/// Requests of one session that may be in flight; the client waits at this many, and a shard refuses beyond it.
pub const SESSION_WINDOW: u64 = 256;

/// Sessions the meta group keeps; beyond it opening one is refused.
pub const SESSIONS_MAX: u64 = 65_536;

/// Sessions that one entry renews, expires or collects.
pub const SESSIONS_PER_ENTRY_MAX: usize = 1024;

/// Shortest time a session may ask to live without a renewal.
pub const SESSION_TTL_MIN: Duration = Duration::from_secs(1);

/// Longest time a session may ask to live without a renewal.
pub const SESSION_TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How long the outcome of a request without a session is kept, in cluster time; older ids are refused.
pub const REQUEST_RETENTION: Duration = Duration::from_secs(15 * 60);

/// How far the id of a request without a session may be ahead of the shard's cluster time.
pub const REQUEST_AHEAD_MAX: Duration = Duration::from_secs(5 * 60);

/// Longest result in the record of a request's outcome, in bytes.
pub const RECORD_RESULT_BYTES_MAX: usize = 32;

/// Records of requests without a session that one entry collects.
pub const COLLECT_RECORDS_MAX: usize = 64;

/// Rows that one entry collects of sessions that are dead.
pub const COLLECT_SESSION_ROWS_MAX: usize = 1024;

/// Keys that a transaction reads, and keys that it writes, together.
pub const TXN_OPERATIONS_MAX: usize = 1024;

/// Bytes of the keys and values of a transaction.
pub const TXN_BYTES_MAX: usize = 8 << 20;

/// Keys of all ranges that one shard's part of a transaction has scanned.
pub const TXN_SCANNED_KEYS_MAX: usize = 1000;

/// A prepared part that is older, by its shard's cluster time, is ended by its leader: the anchor is asked, and decides.
pub const TXN_PREPARED_TTL: Duration = Duration::from_secs(2);

/// Ranges that are locked in one shard at a time, unless all are those of one transaction.
pub const TXN_RANGES_MAX: usize = 64;

/// Transactions that may hold the lock of one key that is only read.
pub const TXN_READERS_MAX: usize = 64;

/// How long a pinned view may live.
pub const PIN_AGE_MAX: Duration = Duration::from_secs(10);

/// Bytes of old versions that pins of one shard may hold.
pub const PIN_BYTES_MAX: usize = 64 << 20;

/// Bytes of rows in the memtables of a node.
pub const MEMTABLE_BYTES_MAX: usize = 256 << 20;

/// Values longer than this are kept in chunk rows of this size in the base.
pub const CHUNK_BYTES: usize = 16 << 10;

/// Size of one WAL segment in bytes.
pub const WAL_SEGMENT_BYTES: u64 = 64 << 20;

/// Bytes of WAL a node keeps before it gives entries up to slow followers.
pub const WAL_BYTES_MAX: u64 = 512 << 20;

/// Effect files that a shard keeps only for a stream of its state take no more than one of so many parts of the free disk.
pub const DISK_FREE_PARTS_HELD: u64 = 4;

/// A base whose file is longer than so many times its live bytes, and [`BASE_SLACK_BYTES`], is rewritten.
pub const BASE_FILE_FACTOR: u64 = 3;

/// Bytes of a base's file beside the above.
pub const BASE_SLACK_BYTES: u64 = 256 << 20;

/// Free disk space below which client writes are refused, in bytes.
pub const DISK_FREE_WRITES_MIN: u64 = 1 << 30;

/// Free disk space below which merges stop, in bytes.
pub const DISK_FREE_MERGE_MIN: u64 = 256 << 20;

/// How far the durable ceiling of a node's Lamport clock rises at a time.
pub const LAMPORT_STEP: u64 = 1 << 20;

/// Shards a node hosts.
pub const SHARDS_MAX: usize = 64;

/// Members of a cluster.
pub const MEMBERS_MAX: usize = 64;

/// How much faster or slower than real time the clock of a node may run, in millionths, unless the cluster says
/// otherwise. Leader leases are shorter by it.
pub const CLOCK_DRIFT_PPM: u32 = 10_000;

/// The most that a cluster may allow for: at a tenth a lease is still four fifths of an election timeout.
pub const CLOCK_DRIFT_PPM_MAX: u32 = 100_000;

/// Longest address of a member in bytes.
pub const ADDR_BYTES_MAX: usize = 256;

/// Longest promise a leader may ask for: no vote is given or asked for so long after a sign of life of it. A longer one
/// would leave a group without a leader for no good reason.
pub const PROMISE_MAX: Duration = Duration::from_secs(60);

/// Interval of heartbeats.
pub const HEARTBEAT_DEFAULT: Duration = Duration::from_millis(50);

/// Shortest election timeout; the longest is twice this.
pub const ELECTION_TIMEOUT_MIN_DEFAULT: Duration = Duration::from_millis(500);

const _: () = {
    assert!(KEY_BYTES_MAX + VALUE_BYTES_MAX < REQUEST_BYTES_MAX, "a put of the largest row fits a request");
    assert!(REQUEST_BYTES_MAX < PIPELINE_FRAME_BYTES_MAX, "the largest request fits a pipeline frame");
    assert!(REQUEST_BYTES_MAX < ENTRY_BYTES_MAX, "the largest request fits an entry");
    assert!(
        ENTRY_BYTES_MAX + PEER_FRAME_BYTES_TARGET < PEER_FRAME_BYTES_MAX,
        "one entry beside a full frame fits"
    );
    assert!(MAILBOX_LEN_MAX <= READS_WAITING_MAX, "an idle replica takes all reads of a mailbox");
    assert!(
        PIPELINE_IN_FLIGHT_MAX * COMPARE_FAILED_VALUE_BYTES_MAX <= 64 << 20,
        "the answers that one stream leaves unread stay small"
    );
    assert!(APPEND_BYTES_MAX <= PEER_FRAME_BYTES_TARGET as u64, "a full append fits a frame");
    assert!(
        SCAN_PAGE_BYTES_MAX + KEY_BYTES_MAX + VALUE_BYTES_MAX < PIPELINE_FRAME_BYTES_MAX,
        "a page fits a frame"
    );
    assert!(ENTRY_BYTES_MAX as u64 * 2 < WAL_SEGMENT_BYTES, "a segment holds the largest group");
    assert!(PIN_BYTES_MAX < MEMTABLE_BYTES_MAX, "pins alone cannot fill the memtables");
    assert!(CHUNK_BYTES <= VALUE_BYTES_MAX, "a chunk is part of a value");
    assert!(
        HEARTBEAT_DEFAULT.as_millis() * 4 < ELECTION_TIMEOUT_MIN_DEFAULT.as_millis(),
        "lost heartbeats elect nobody"
    );
    assert!(
        ELECTION_TIMEOUT_MIN_DEFAULT.as_millis() <= PROMISE_MAX.as_millis(),
        "the default may be promised"
    );
    assert!(
        REQUEST_AHEAD_MAX.as_millis() < REQUEST_RETENTION.as_millis(),
        "a request that is accepted has most of its life before it"
    );
    assert!(
        COLLECT_SESSION_ROWS_MAX as u64 > SESSION_WINDOW,
        "one entry collects the largest session, its floor included"
    );
    assert!(
        TXN_BYTES_MAX + TXN_OPERATIONS_MAX * 64 + KEY_BYTES_MAX < ENTRY_BYTES_MAX,
        "the largest transaction fits an entry"
    );
    assert!(DISK_FREE_MERGE_MIN < DISK_FREE_WRITES_MIN, "writes stop before merges do");
};
