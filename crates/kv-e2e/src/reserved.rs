//! Ports of one cluster that no other of this process is given, also while its nodes are down.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use kv_drill::ports;

static RESERVED: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// The ports of a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    pub(crate) client: u16,
    pub(crate) peer: u16,
    pub(crate) http: u16,
}

impl Ports {
    const COUNT: usize = 3;

    fn all(self) -> [u16; Self::COUNT] {
        [self.client, self.peer, self.http]
    }
}

/// Ports of nodes; nobody listened on them when they were taken.
#[derive(Debug)]
pub(crate) struct Reserved {
    pub(crate) nodes: BTreeMap<u64, Ports>,
}

impl Reserved {
    /// Those of nodes 1 to `nodes`.
    ///
    /// # Errors
    /// If there are not so many.
    pub(crate) fn take(nodes: u64) -> anyhow::Result<Self> {
        let count = usize::try_from(nodes)? * Ports::COUNT;
        let mut reserved = reserved();
        let mut free = Vec::with_capacity(count);
        while free.len() < count {
            let found = ports::free(count - free.len())?;
            free.extend(found.into_iter().filter(|port| reserved.insert(*port)));
        }
        let mut free = free.into_iter();
        let mut next = || free.next().context("as many ports as were asked for");
        let node = |node| Ok((node, Ports { client: next()?, peer: next()?, http: next()? }));
        Ok(Self { nodes: (1..=nodes).map(node).collect::<anyhow::Result<_>>()? })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut reserved = reserved();
        for port in self.nodes.values().flat_map(|ports| ports.all()) {
            reserved.remove(&port);
        }
    }
}

fn reserved() -> MutexGuard<'static, BTreeSet<u16>> {
    RESERVED.lock().unwrap_or_else(PoisonError::into_inner)
}
