//! The layer table: which crate may name which. ARCHITECTURE.md tells it in prose; this is the one that counts.

/// One crate of the workspace and what it may depend on.
pub(crate) struct Layer {
    /// The crate's name, which is its folder's name too.
    pub(crate) name: &'static str,
    /// 0 at the bottom. Imports only point down.
    pub(crate) depth: u8,
    /// The crates of the workspace it may name.
    pub(crate) uses: Uses,
}

/// Which crates of the workspace a crate may name.
pub(crate) enum Uses {
    /// Exactly these.
    Only(&'static [&'static str]),
    /// Every crate of a lower layer: for tests on whole processes.
    AnyBelow,
}

use Uses::{AnyBelow, Only};

const fn layer(depth: u8, name: &'static str, uses: Uses) -> Layer {
    Layer { name, depth, uses }
}

/// Every crate, also those still to come: a crate without a row here does not pass.
pub(crate) const LAYERS: &[Layer] = &[
    layer(0, "kv-types", Only(&[])),
    layer(1, "kv-raft", Only(&["kv-types"])),
    layer(1, "kv-state", Only(&["kv-types"])),
    layer(1, "kv-storage", Only(&["kv-types"])),
    layer(1, "kv-proto", Only(&["kv-types"])),
    layer(1, "kv-check", Only(&["kv-types"])),
    layer(1, "kv-fault", Only(&["kv-types"])),
    layer(2, "kv-shard", Only(&["kv-types", "kv-raft", "kv-state", "kv-storage"])),
    layer(2, "kv-txn", Only(&["kv-types", "kv-state"])),
    layer(2, "kv-client", Only(&["kv-types", "kv-proto"])),
    // The node hosts the shards, so it meets the types of what is inside them; it calls into them through kv-shard.
    layer(
        3,
        "kv-node",
        Only(&[
            "kv-types",
            "kv-raft",
            "kv-proto",
            "kv-shard",
            "kv-state",
            "kv-storage",
            "kv-txn",
            "kv-fault",
            "kv-chaos",
        ]),
    ),
    layer(
        3,
        "kv-sim",
        Only(&[
            "kv-types",
            "kv-raft",
            "kv-state",
            "kv-storage",
            "kv-shard",
            "kv-txn",
            "kv-check",
            "kv-fault",
        ]),
    ),
    // It reads what the steps of a transaction are, which travel as their shard's log holds them.
    layer(2, "kv-chaos", Only(&["kv-types", "kv-proto", "kv-state", "kv-fault"])),
    // It tells the proxy by gRPC what to do, and runs it as a process of its own.
    layer(3, "kv-drill", Only(&["kv-types", "kv-proto", "kv-client", "kv-check", "kv-fault"])),
    layer(3, "kv-bench", Only(&["kv-types", "kv-client", "kv-check"])),
    layer(4, "kvctl", Only(&["kv-types", "kv-client", "kv-drill", "kv-check", "kv-fault"])),
    layer(4, "kv-e2e", AnyBelow),
    layer(4, "xtask", Only(&[])),
];

/// An outside crate that only some of ours may name, and why.
pub(crate) struct Fence {
    /// The names it covers: the crate, or with a trailing `-` every crate that begins so.
    pub(crate) names: &'static [&'static str],
    /// The crates of ours that may name it.
    pub(crate) only: &'static [&'static str],
    /// Said to whoever runs into it.
    pub(crate) reason: &'static str,
}

/// Outside crates that stay behind one door.
pub(crate) const FENCES: &[Fence] = &[
    Fence { names: &["sled"], only: &["kv-storage"], reason: "only kv-storage touches the data directory" },
    Fence {
        names: &["tonic", "tonic-", "prost", "prost-"],
        // kv-e2e stands between clients and nodes in some tests, and sends what no client would.
        only: &["kv-proto", "kv-client", "kv-node", "kv-chaos", "kv-drill", "kv-e2e"],
        reason: "the wire ends at kv-proto; others speak kv-types",
    },
    Fence { names: &["protox"], only: &["kv-proto"], reason: "only kv-proto generates code from proto/" },
    Fence {
        names: &["tokio", "tokio-"],
        only: &["kv-client", "kv-node", "kv-chaos", "kv-drill", "kv-bench", "kvctl", "kv-e2e"],
        reason: "cores are synchronous and run in the simulator unchanged",
    },
];

/// The row of one crate.
pub(crate) fn layer_of(name: &str) -> Option<&'static Layer> {
    LAYERS.iter().find(|layer| layer.name == name)
}

impl Fence {
    /// Whether this fence stands around the outside crate `name`.
    pub(crate) fn covers(&self, name: &str) -> bool {
        self.names.iter().any(
            |&fenced| {
                if fenced.ends_with('-') { name.starts_with(fenced) } else { name == fenced }
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_allowed_edge_points_strictly_down() {
        for layer in LAYERS {
            let Only(uses) = layer.uses else { continue };
            for &used in uses {
                let below = layer_of(used).unwrap_or_else(|| panic!("{} may use unknown {used}", layer.name));
                assert!(below.depth < layer.depth, "{} -> {used} does not point down", layer.name);
            }
        }
    }

    #[test]
    fn every_crate_has_one_row() {
        for layer in LAYERS {
            assert_eq!(LAYERS.iter().filter(|other| other.name == layer.name).count(), 1, "{}", layer.name);
        }
    }

    #[test]
    fn tokio_stays_out_of_the_layers_below_the_node_but_for_the_client_and_the_proxy() {
        let tokio = FENCES.iter().find(|fence| fence.covers("tokio-util")).unwrap();
        for layer in
            LAYERS.iter().filter(|layer| layer.depth <= 2 && !["kv-client", "kv-chaos"].contains(&layer.name))
        {
            assert!(!tokio.only.contains(&layer.name), "{} may name tokio", layer.name);
        }
    }

    #[test]
    fn a_fence_covers_its_family_and_no_namesake() {
        let tokio = FENCES.iter().find(|fence| fence.covers("tokio")).unwrap();
        assert!(tokio.covers("tokio-stream"));
        assert!(!tokio.covers("tokioish"));
    }
}
