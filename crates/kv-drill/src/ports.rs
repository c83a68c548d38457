//! Free ports of the loopback interface.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};

use crate::error::RunError;

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
pub fn free(count: usize) -> Result<Vec<u16>, RunError> {
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
    Err(RunError::Unfit(format!("there are no {count} free ports between {FIRST} and {end}")))
}

/// The first of `count` ports in a row that nobody listens on now, as [`free`] finds them.
///
/// # Errors
/// If there are none.
pub fn block(count: u16) -> Result<u16, RunError> {
    let end = first_ephemeral()?.max(FIRST + 1000);
    let is_free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let bases = (0..1000).map(|_| rand::random_range(FIRST..end.saturating_sub(count)));
    let found = bases.into_iter().find(|base| (*base..base.saturating_add(count)).all(is_free));
    found.ok_or_else(|| RunError::Unfit(format!("there are no {count} free ports in a row below {end}")))
}

fn first_ephemeral() -> Result<u16, RunError> {
    let path = "/proc/sys/net/ipv4/ip_local_port_range";
    let text = std::fs::read_to_string(path).map_err(RunError::system(format!("cannot read {path}")))?;
    let first = text.split_whitespace().next().and_then(|first| first.parse().ok());
    first.ok_or_else(|| RunError::Unfit(format!("{path} holds {text:?}")))
}
