//! What a client is told before it starts.

use std::time::Duration;

/// How long a session lives without a renewal, unless the client is told otherwise.
pub(crate) const SESSION_TTL_DEFAULT: Duration = Duration::from_secs(60);

/// How to reach a cluster and how long to try.
#[derive(Debug, Clone)]
pub struct Config {
    /// Client addresses, `HOST:PORT`; at least one. Any of them can name all the others.
    pub endpoints: Vec<String>,
    /// The cluster meant; empty is any. A node of another cluster refuses every call.
    pub cluster: String,
    /// Bounds every call, retries included. A scan has it for each page, and a deletion of a range for each step; a question
    /// to every node has it for each of them, beside up to half of it for the map that names them.
    pub timeout: Duration,
    /// Bounds the wait for a connection, and for the answer of one node asked for the map.
    pub connect_timeout: Duration,
    /// How long a node that failed is left alone while there are others.
    pub rest: Duration,
    /// How long a node may say nothing at all while it owes answers; then it is left alone, and what it was asked is
    /// asked elsewhere.
    pub silence: Duration,
    /// The first and the longest wait between two attempts of a call.
    pub backoff: Backoff,
    /// What makes a retry of a write safe. Transactions always have sessions, opened when the first one commits.
    pub request_ids: RequestIds,
    /// How often, and for how long, [`Client::transact`](crate::Client::transact) tries a transaction.
    pub transact: Tries,
}

/// Bounds of the tries of a transaction. The waits between them are those of [`Config::backoff`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tries {
    /// At most so many; at least one is made.
    pub max: u32,
    /// None begins later than this after the first. One that has begun is not cut: each of its calls has
    /// [`Config::timeout`].
    pub within: Duration,
}

/// What names a write, so that a retry of it is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestIds {
    /// Sessions, opened at the first write and renewed as long as the client lives: for whatever writes more than once.
    Sessions {
        /// How long a session lives without a renewal: as long as its client may be cut off. 1 second to 24 hours.
        ttl: Duration,
    },
    /// Ids drawn at random, for a client that writes a few times: no session, but each id is remembered for 15 minutes.
    Timed,
    /// None: a write is tried again only if it certainly did not happen.
    None,
}

/// Bounds of the waits between attempts: capped exponential, with full jitter.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// The upper bound of the first wait.
    pub first: Duration,
    /// The upper bound of every wait.
    pub max: Duration,
}

impl Backoff {
    /// The wait before attempt number `attempt` (from 1): a random part, `0.0..1.0`, of the bound, which doubles with
    /// each attempt.
    pub fn wait(&self, attempt: u32, part: f64) -> Duration {
        let factor = 1u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.max).mul_f64(part.clamp(0.0, 1.0))
    }
}

impl Config {
    /// The defaults for these endpoints.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            cluster: String::new(),
            timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(1),
            rest: Duration::from_millis(500),
            silence: Duration::from_secs(1),
            backoff: Backoff { first: Duration::from_millis(10), max: Duration::from_millis(500) },
            request_ids: RequestIds::Sessions { ttl: SESSION_TTL_DEFAULT },
            transact: Tries { max: 20, within: Duration::from_secs(10) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap() {
        let backoff = Backoff { first: Duration::from_millis(10), max: Duration::from_millis(50) };
        let waits: Vec<_> = (1..=5).map(|attempt| backoff.wait(attempt, 1.0).as_millis()).collect();
        assert_eq!(waits, [10, 20, 40, 50, 50]);
        assert_eq!(backoff.wait(3, 0.5), Duration::from_millis(20));
        assert_eq!(backoff.wait(u32::MAX, 1.0), Duration::from_millis(50));
    }
}
