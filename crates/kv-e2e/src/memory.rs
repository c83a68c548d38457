//! How much memory a process takes.

use std::pin::pin;
use std::time::Duration;

use anyhow::Context as _;

/// How often memory is looked at.
const SAMPLE: Duration = Duration::from_millis(50);

/// Bytes of the process's resident set that are its own: pages of files it maps do not count, as the kernel takes them
/// back when it likes.
///
/// # Errors
/// If the process is gone.
pub fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find(|line| line.starts_with("RssAnon:"));
    let line = line.with_context(|| format!("{path} has no RssAnon"))?;
    let kibibytes = line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
    Ok(kibibytes.with_context(|| format!("{path}: {line}"))? << 10)
}

/// The largest resident set of each of these processes while `run` runs.
///
/// # Errors
/// Of `run`, or if a process ends.
pub async fn peak_while<T>(
    pids: &[u32],
    run: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<(T, u64)> {
    let mut peak = 0;
    let mut run = pin!(run);
    loop {
        for pid in pids {
            peak = peak.max(resident_bytes(*pid)?);
        }
        tokio::select! {
            done = &mut run => return Ok((done?, peak)),
            () = tokio::time::sleep(SAMPLE) => {}
        }
    }
}
