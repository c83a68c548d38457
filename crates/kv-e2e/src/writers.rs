//! Clients that write unique values as fast as they are answered, and log every answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kv_client::{Client, Config, Error};
use kv_types::{Key, Value};
use tokio::task::JoinSet;

use crate::ledger::Ledger;
use crate::wait;

/// The first byte of the keys of each shard of a cluster split at g, n, t.
pub const LETTERS: [char; 4] = ['a', 'h', 'o', 'u'];

/// Most clients with connections of their own.
const CONNECTED_MAX: usize = 32;

/// How long a client that was refused leaves the cluster alone.
const AFTER_FAILURE: Duration = Duration::from_millis(10);

/// Writers under way.
#[derive(Debug)]
pub struct Writers {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<anyhow::Result<()>>,
    /// What they were answered.
    pub ledger: Arc<Ledger>,
}

impl Writers {
    /// Starts `clients` clients; client i writes to the shard of `LETTERS[i % 4]`, values of `value_bytes` bytes. `round`
    /// keeps the keys of several calls apart.
    ///
    /// # Errors
    /// If an endpoint is no address.
    pub fn start(
        endpoints: &[String],
        ledger: &Arc<Ledger>,
        round: &str,
        clients: usize,
        value_bytes: usize,
    ) -> anyhow::Result<Self> {
        Self::start_with(Config::new(endpoints.to_vec()), ledger, round, (&LETTERS, clients, value_bytes))
    }

    /// Starts clients with the settings of `config`: keys that begin with these letters in turn, how many clients,
    /// bytes of each value.
    ///
    /// # Errors
    /// If an endpoint is no address.
    pub fn start_with(
        config: Config,
        ledger: &Arc<Ledger>,
        round: &str,
        (letters, clients, value_bytes): (&[char], usize, usize),
    ) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        // Beyond so many, clients share connections: more of them would load this machine and not the nodes.
        let shared = (0..clients.min(CONNECTED_MAX)).map(|_| Client::new(config.clone()));
        let shared: Vec<Client> = shared.collect::<Result<_, _>>()?;
        for ((nth, letter), client) in (0..clients).zip(letters.iter().cycle()).zip(shared.iter().cycle()) {
            let name = format!("{letter}/{round}/{nth:04}");
            tasks.spawn(write(client.clone(), name, value_bytes, Arc::clone(ledger), Arc::clone(&stop)));
        }
        Ok(Self { stop, tasks, ledger: Arc::clone(ledger) })
    }

    /// Waits until `count` more writes are acknowledged.
    ///
    /// # Errors
    /// If that takes longer than `limit`.
    pub async fn progress(&self, when: &str, count: usize, limit: Duration) -> anyhow::Result<()> {
        let before = self.ledger.count();
        let look = || async {
            let more = self.ledger.count() - before;
            if more >= count { Ok(()) } else { Err(format!("{more} of {count} writes")) }
        };
        wait::until(when, limit, look).await
    }

    /// Ends the writers after the call each is in.
    ///
    /// # Errors
    /// Of a writer.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended??;
        }
        Ok(())
    }
}

async fn write(
    client: Client,
    name: String,
    value_bytes: usize,
    ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<()> {
    for nth in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let text = format!("{name}/{nth:08}");
        let value = Bytes::from(format!("{text:=<value_bytes$}"));
        if put(&client, &ledger, &text, value).await?.is_err() {
            tokio::time::sleep(AFTER_FAILURE).await;
        }
    }
    Ok(())
}

/// Writes one key and logs what comes of it; the inner result is the client's.
///
/// # Errors
/// If the key or the value is beyond its limit.
pub async fn put(
    client: &Client,
    ledger: &Ledger,
    key: &str,
    value: Bytes,
) -> anyhow::Result<Result<(), Error>> {
    let key = Key::new(key.to_owned())?;
    let done = client.put(key.clone(), Value::new(value.clone())?).await;
    match &done {
        Ok(written) => ledger.acknowledged(&key, &value, &written.header),
        Err(error) => ledger.failed(&key, &value, error),
    }
    Ok(done.map(|_| ()))
}
