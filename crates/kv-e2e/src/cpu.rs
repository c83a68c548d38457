//! The CPU time of processes.

use std::time::Duration;

use anyhow::Context as _;

/// The CPU time a process has used, user and system, from `/proc`.
///
/// # Errors
/// If it is gone.
pub fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Fields 14 and 15, after the name, which is in brackets and may hold anything; in ticks of 10 ms.
    let (_, after_name) = stat.rsplit_once(')').context("a name")?;
    let ticks = after_name.split_whitespace().skip(11).take(2);
    let ticks = ticks.map(|field| Ok(field.parse::<u64>()?)).sum::<anyhow::Result<u64>>()?;
    Ok(Duration::from_millis(10 * ticks))
}
