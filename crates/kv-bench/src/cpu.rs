//! The CPU time of processes, from `/proc`.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

/// Clock ticks in a second, in which the kernel tells users CPU times: 100 on every Linux that Rust's targets name.
const TICKS_PER_SECOND: u64 = 100;

/// User and system time of all the processes so far.
///
/// # Errors
/// If one of them cannot be read.
pub fn of(pids: &[u32]) -> anyhow::Result<Duration> {
    pids.iter().map(|pid| of_one(*pid)).sum()
}

fn of_one(pid: u32) -> anyhow::Result<Duration> {
    let path = Path::new("/proc").join(pid.to_string()).join("stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("process {pid} cannot be read"))?;
    parse(&stat).with_context(|| format!("{} is not as expected", path.display()))
}

/// Fields 14 and 15 of `/proc/PID/stat`, after the name, which is in brackets and may hold anything.
fn parse(stat: &str) -> Option<Duration> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis(user.checked_add(system)?.checked_mul(1000 / TICKS_PER_SECOND)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_may_hold_anything() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1 0 9 1 2";
        assert_eq!(parse(stat), Some(Duration::from_secs(3)));
        assert_eq!(parse("42 (short) S 1"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn this_process_can_be_read() {
        assert!(of(&[std::process::id()]).is_ok());
        assert!(of(&[u32::MAX]).is_err());
    }
}
