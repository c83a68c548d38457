//! Waiting for a condition, with an end.

use std::future::Future;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Asks `look` until it gives something, at most for `limit`.
///
/// # Errors
/// Names `what` if the time is up, with what the last look said instead.
pub async fn until<T, F>(what: &str, limit: Duration, mut look: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = Result<T, String>>,
{
    let deadline = Instant::now() + limit;
    loop {
        match look().await {
            Ok(found) => return Ok(found),
            Err(instead) if Instant::now() >= deadline => {
                anyhow::bail!("waited {limit:?} for {what}; in the end: {instead}")
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}
