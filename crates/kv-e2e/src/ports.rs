//! Free ports of the loopback interface.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};

use anyhow::Context as _;

/// The first port that is taken; those below are other programs' by custom.
const FIRST: u16 = 10_000;

/// `count` ports that nobody listens on now.
///
/// They lie below the range from which the kernel takes the ports of outgoing connections: a node that is down for a
/// while must find its port free when it comes back, and a peer that dials the port meanwhile must not be given the
/// same number for its own end, which would connect it to itself. So a port is not asked for as 0: random ones are
/// asked for until the kernel grants them.
///
/// # Errors
/// If the range is full.
pub fn free(count: usize) -> anyhow::Result<Vec<u16>> {
    let end = first_ephemeral()?.max(FIRST + 1000);
    let mut found = BTreeSet::new();
    for _ in 0..10_000 {
        if found.len() == count {
            return Ok(found.into_iter().collect());
        }
        let port = rand::random_range(FIRST..end);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            found.insert(port);
        }
    }
    anyhow::bail!("no {count} free ports between {FIRST} and {end}")
}

fn first_ephemeral() -> anyhow::Result<u16> {
    let path = "/proc/sys/net/ipv4/ip_local_port_range";
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let first = text.split_whitespace().next().context("the port range is empty")?;
    first.parse().with_context(|| format!("{path} holds {text:?}"))
}
