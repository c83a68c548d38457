//! What the node counts, for Prometheus.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry};

/// The counters of one node. Each node of a process has its own.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    /// Writes answered.
    pub(crate) writes: Counter,
    /// Reads answered.
    pub(crate) reads: Counter,
    /// Requests refused because a queue was full.
    pub(crate) refused_overload: Counter,
    /// Connections of clients closed for want of room.
    pub(crate) connections_refused: Counter,
    /// Requests dropped unbegun because their deadline had passed.
    pub(crate) expired: Counter,
    /// Writes answered from the record of an earlier attempt.
    pub(crate) replayed: Counter,
    /// What becomes of transactions.
    pub(crate) txns: TxnCounts,
    /// What becomes of sessions.
    pub(crate) sessions: SessionCounts,
    /// Frames, greetings and pieces of snapshots of peers whose checksum or content was wrong.
    pub(crate) frames_bad: Counter,
    /// Messages to or from peers dropped because a queue was full.
    pub(crate) messages_dropped: Counter,
    /// Appends not taken because the log was full; their leaders send them again.
    pub(crate) appends_put_off: Counter,
    /// Messages to peers that only reads have caused.
    pub(crate) read_messages: Counter,
    /// Frames sent to peers.
    pub(crate) frames_sent: Counter,
    /// Frames received from peers.
    pub(crate) frames_received: Counter,
    /// Times a replica of this node became leader.
    pub(crate) elections_won: Counter,
    /// Checkpoints completed.
    pub(crate) checkpoints: Counter,
    /// Bases rewritten into a new generation.
    pub(crate) regenerations: Counter,
    /// Snapshots installed here.
    pub(crate) snapshots_installed: Counter,
    /// Comparisons of a group's states by its leader here.
    pub(crate) scrubs: Counter,
    /// Comparisons in which replicas differed.
    pub(crate) scrub_mismatches: Counter,
    /// Bases read through by the scrub and found sound.
    pub(crate) bases_read: Counter,
    /// Broken streams of snapshots taken up again here.
    pub(crate) snapshots_resumed: Counter,
    /// What data takes, and may take.
    pub(crate) space: Space,
    /// Replicas whose rows are being fetched anew.
    pub(crate) replicas_damaged: Gauge,
    /// Shards this node leads.
    pub(crate) leading: Gauge,
    /// Those of them that have no lease because of a member's clock.
    pub(crate) clocks_off: Gauge,
    /// What transactions have left.
    pub(crate) txns_left: TxnsLeft,
}

fn register<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

/// What data takes, and may take.
#[derive(Debug)]
pub(crate) struct Space {
    /// Bytes of rows in memory.
    pub(crate) memtable_bytes: Gauge,
    /// Bytes of effects above the bases.
    pub(crate) unmerged_bytes: Gauge,
    /// Bytes of write-ahead log.
    pub(crate) wal_bytes: Gauge,
    /// Bytes of the files of all bases.
    pub(crate) base_bytes: Gauge,
    /// Bytes free on the disk.
    pub(crate) disk_free_bytes: Gauge,
    /// Bytes of writes a second that are let through; 0 for any.
    pub(crate) write_rate_max: Gauge,
}

impl Space {
    fn new(gauge: &mut impl FnMut(&str, &str) -> Gauge) -> Self {
        Self {
            memtable_bytes: gauge("memtable_bytes", "Bytes of rows in memory"),
            unmerged_bytes: gauge("unmerged_bytes", "Bytes of effects above the bases"),
            wal_bytes: gauge("wal_bytes", "Bytes of write-ahead log"),
            base_bytes: gauge("base_bytes", "Bytes of the files of all bases"),
            disk_free_bytes: gauge("disk_free_bytes", "Bytes free on the disk"),
            write_rate_max: gauge(
                "write_rate_max_bytes",
                "Bytes of writes a second let through because merges are behind; 0 for any",
            ),
        }
    }
}

/// What becomes of sessions.
#[derive(Debug)]
pub(crate) struct SessionCounts {
    /// Renewed.
    pub(crate) renewed: Counter,
    /// Ended because nobody renewed them.
    pub(crate) expired: Counter,
    /// Dead, and forgotten by a shard.
    pub(crate) collected: Counter,
}

impl SessionCounts {
    fn new(counter: &mut impl FnMut(&str, &str) -> Counter) -> Self {
        Self {
            renewed: counter("sessions_renewed", "Sessions renewed"),
            expired: counter("sessions_expired", "Sessions that ended unrenewed"),
            collected: counter("sessions_collected", "Dead sessions that a shard has forgotten"),
        }
    }
}

/// What becomes of transactions at the shards that this node leads.
#[derive(Debug)]
pub(crate) struct TxnCounts {
    /// Parts prepared.
    pub(crate) prepared: Counter,
    /// Committed.
    pub(crate) committed: Counter,
    /// Aborted.
    pub(crate) aborted: Counter,
    /// Fenced, so that their locks may go.
    pub(crate) fenced: Counter,
    /// Prepared parts that were ended because nobody else had.
    pub(crate) unblocked: Counter,
    /// Reads that have met the lock of a writer.
    pub(crate) reads_locked: Counter,
}

/// What transactions have left at the shards that this node leads.
#[derive(Debug)]
pub(crate) struct TxnsLeft {
    /// Prepared parts.
    pub(crate) in_doubt: Gauge,
    /// Records of committed transactions that a participant has not ended yet.
    pub(crate) unfinished: Gauge,
}

impl TxnsLeft {
    fn new(gauge: &mut impl FnMut(&str, &str) -> Gauge) -> Self {
        let unfinished = "Committed transactions at shards led here that a participant has not ended";
        Self {
            in_doubt: gauge("txns_in_doubt", "Prepared parts at shards led here"),
            unfinished: gauge("txns_unfinished", unfinished),
        }
    }
}

impl TxnCounts {
    fn new(counter: &mut impl FnMut(&str, &str) -> Counter) -> Self {
        Self {
            prepared: counter("txns_prepared", "Parts of transactions prepared at shards led here"),
            committed: counter("txns_committed", "Transactions committed at shards led here"),
            aborted: counter("txns_aborted", "Transactions aborted at shards led here"),
            fenced: counter("txns_fenced", "Transactions fenced at shards led here so that locks may go"),
            unblocked: counter("txns_unblocked", "Prepared parts ended because nobody else had"),
            reads_locked: counter("reads_locked", "Reads that have met the lock of a writer"),
        }
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("quorate");
        let mut counter = |name: &str, help: &str| -> Counter { register(&mut registry, name, help) };
        let writes = counter("writes", "Writes answered");
        let reads = counter("reads", "Reads answered");
        let refused_overload = counter("refused_overload", "Requests refused because a queue was full");
        let connections_refused =
            counter("connections_refused", "Connections of clients closed for want of room");
        let expired = counter("requests_expired", "Requests dropped unbegun, their deadline having passed");
        let replayed = counter("writes_replayed", "Writes answered from the record of an earlier attempt");
        let txns = TxnCounts::new(&mut counter);
        let sessions = SessionCounts::new(&mut counter);
        let frames_bad = counter("peer_frames_bad", "What peers sent with a wrong checksum or content");
        let messages_dropped = counter("peer_messages_dropped", "Messages dropped because a queue was full");
        let appends_put_off =
            counter("appends_put_off", "Appends not taken while the write-ahead log was full");
        let read_messages =
            counter("peer_messages_for_reads", "Messages to peers that only reads have caused");
        let frames_sent = counter("peer_frames_sent", "Frames sent to peers");
        let frames_received = counter("peer_frames_received", "Frames received from peers");
        let elections_won = counter("elections_won", "Times a replica of this node became leader");
        let checkpoints = counter("checkpoints", "Checkpoints completed");
        let regenerations = counter("regenerations", "Bases rewritten because their files had outgrown them");
        let snapshots_installed = counter("snapshots_installed", "Snapshots installed here");
        let scrubs = counter("scrubs", "Comparisons of a group's states by its leader here");
        let scrub_mismatches = counter("scrub_mismatches", "Comparisons in which replicas differed");
        let bases_read = counter("bases_read", "Bases read through by the scrub and found sound");
        let snapshots_resumed =
            counter("snapshots_resumed", "Broken streams of snapshots taken up again here");
        let mut gauge = |name: &str, help: &str| -> Gauge { register(&mut registry, name, help) };
        let space = Space::new(&mut gauge);
        let replicas_damaged = gauge("replicas_damaged", "Replicas whose rows are being fetched anew");
        let leading = gauge("leading", "Shards this node leads");
        let clocks_off = gauge(
            "clocks_off",
            "Shards led here without a lease, because a member's clock is too fast or too slow",
        );
        let txns_left = TxnsLeft::new(&mut gauge);
        Self {
            registry,
            writes,
            reads,
            refused_overload,
            connections_refused,
            expired,
            replayed,
            txns,
            sessions,
            frames_bad,
            messages_dropped,
            appends_put_off,
            read_messages,
            frames_sent,
            frames_received,
            elections_won,
            checkpoints,
            regenerations,
            snapshots_installed,
            scrubs,
            scrub_mismatches,
            bases_read,
            snapshots_resumed,
            space,
            replicas_damaged,
            leading,
            clocks_off,
            txns_left,
        }
    }

    /// All metrics as text.
    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_page_of_metrics_is_complete() {
        let page = include_str!("../../../docs/metrics.md");
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `quorate_")?.split_once("` | "));
        let said: BTreeSet<(&str, &str)> =
            rows.filter_map(|(name, rest)| Some((name, rest.split_once(" |")?.0))).collect();
        let rendered = Metrics::new().render();
        let types = rendered.lines().filter_map(|line| line.strip_prefix("# TYPE quorate_")?.split_once(' '));
        let served: Vec<(String, &str)> = types
            .map(|(name, kind)| {
                (if kind == "counter" { format!("{name}_total") } else { name.to_owned() }, kind)
            })
            .collect();
        let served: BTreeSet<(&str, &str)> =
            served.iter().map(|(name, kind)| (name.as_str(), *kind)).collect();
        assert!(!served.is_empty());
        // The table of alarms names metrics again, with what they mean in place of their kind.
        let kinds = ["counter", "gauge"];
        let said: BTreeSet<_> = said.into_iter().filter(|(_, kind)| kinds.contains(kind)).collect();
        assert_eq!(said, served);
    }
}
