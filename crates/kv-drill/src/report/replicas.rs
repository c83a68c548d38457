//! The seventh section: whether all replicas of a shard came to one state.

use std::collections::{BTreeMap, BTreeSet};

use super::text::{self, absent, count, escape, section as wrap};
use crate::record::{Record, Replica};

/// How much of a hash is shown; all of it is under the pointer.
const HASH_CHARS: usize = 8;

/// With more nodes than these, a hash stands below its index.
const NODES_WIDE: usize = 3;

/// A table of shards by nodes.
pub(super) fn section(record: &Record) -> String {
    let all = match record.converged {
        Some(true) => "<p class=\"met\"><b class=\"word\">&#10003; converged</b>: all replicas of each shard have one state.</p>\n".to_owned(),
        Some(false) => "<p class=\"unmet\"><b class=\"word\">&#10007; not converged</b>: replicas of a shard differ.</p>\n".to_owned(),
        None => format!("<p>{}</p>\n", absent("whether replicas converged could not be seen")),
    };
    if record.replicas.is_empty() {
        return wrap(
            "replicas",
            "Replicas after healing",
            &format!("{all}<p>{}</p>\n", absent("no replica was asked")),
        );
    }
    let nodes: BTreeSet<u64> = record.replicas.iter().map(|replica| replica.node).collect();
    let mut shards: BTreeMap<u32, BTreeMap<u64, &Replica>> = BTreeMap::new();
    for replica in &record.replicas {
        shards.entry(replica.shard).or_default().insert(replica.node, replica);
    }
    let head: String = nodes.iter().map(|node| format!("<th>{}</th>", text::node(*node))).collect();
    let rows: String = shards.iter().map(|(shard, replicas)| row(*shard, replicas, &nodes)).collect();
    let body = format!(
        "{all}<p class=\"note\">Applied index, and the beginning of the hash of the state. &ne; marks a hash that most replicas of the shard do not have.</p>\n\
         <div class=\"scroll\"><table class=\"replicas\"><thead><tr><th>Shard</th>{head}<th>One state</th></tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n"
    );
    wrap("replicas", "Replicas after healing", &body)
}

/// The hash that more than half of the replicas have, if there is one.
fn usual<'a>(replicas: &BTreeMap<u64, &'a Replica>) -> Option<&'a str> {
    let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
    for replica in replicas.values() {
        *votes.entry(&replica.state_hash).or_default() += 1;
    }
    votes.into_iter().find(|(_, count)| count * 2 > replicas.len()).map(|(hash, _)| hash)
}

/// A shard's row.
fn row(shard: u32, replicas: &BTreeMap<u64, &Replica>, nodes: &BTreeSet<u64>) -> String {
    let usual = usual(replicas);
    let between = if nodes.len() > NODES_WIDE { "<br>" } else { " " };
    let cell = |node: &u64| {
        let Some(replica) = replicas.get(node) else {
            return format!("<td>{}</td>", absent("no replica"));
        };
        let odd = usual != Some(replica.state_hash.as_str());
        let hash = if replica.state_hash.is_empty() {
            absent("no hash")
        } else {
            escape(&short(&replica.state_hash))
        };
        format!(
            "<td{}>{}{between}<code title=\"{}\">{}{hash}</code></td>",
            if odd { " class=\"odd\"" } else { "" },
            count(replica.applied),
            escape(&replica.state_hash),
            if odd { "&ne; " } else { "" },
        )
    };
    let cells: String = nodes.iter().map(cell).collect();
    let hashes: BTreeSet<&str> = replicas.values().map(|replica| replica.state_hash.as_str()).collect();
    let (class, word) = if hashes.contains("") {
        ("unsaid", "? cannot tell")
    } else if hashes.len() > 1 {
        ("unmet", "&#10007; differ")
    } else if replicas.len() == 1 {
        ("unsaid", "? only one replica")
    } else {
        ("met", "&#10003; one state")
    };
    format!(
        "<tr class=\"{class}\"><td>{}</td>{cells}<td class=\"word\">{word}</td></tr>\n",
        text::shard(shard)
    )
}

/// The beginning of a hash.
fn short(hash: &str) -> String {
    hash.chars().take(HASH_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(shard: u32, node: u64, hash: &str) -> Replica {
        Replica { shard, node, applied: 1234, state_hash: hash.into() }
    }

    #[test]
    fn hashes_that_differ_are_marked() {
        let replicas = vec![
            replica(1, 1, "aa"),
            replica(1, 2, "aa"),
            replica(1, 3, "aa"),
            replica(2, 1, "bb"),
            replica(2, 2, "cc"),
            replica(2, 3, "bb"),
            replica(3, 1, "dd"),
            replica(3, 2, ""),
        ];
        let html = section(&Record { replicas, converged: Some(false), ..Default::default() });
        assert_eq!(html.matches("class=\"odd\"").count(), 3);
        assert!(html.contains("&ne; cc"));
        for word in ["one state", "differ", "cannot tell", "not converged", "no replica", "1,234"] {
            assert!(html.contains(word), "{word}");
        }
    }

    #[test]
    fn what_nobody_saw_is_said() {
        let html = section(&Record::default());
        assert!(html.contains("could not be seen") && html.contains("no replica was asked"));
    }
}
