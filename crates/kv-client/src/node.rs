//! One node as the client knows it: its connection, its pipeline, and whether it is to be left alone.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kv_proto::request::Request;
use kv_proto::status::ApiError;
use kv_proto::v1;
use kv_proto::v1::cluster_client::ClusterClient;
use kv_proto::v1::kv_client::KvClient;
use kv_proto::v1::sessions_client::SessionsClient;
use kv_proto::v1::txn_client::TxnClient;
use kv_types::limits::{ENTRY_BYTES_MAX, PIPELINE_FRAME_BYTES_MAX, REQUEST_BYTES_MAX};
use tokio::task::AbortHandle;
use tonic::transport::{Channel, Endpoint};

use crate::config::Config;
use crate::error::Failure;
use crate::pipeline::{Answer, Requests};
use crate::reply::Source;
use crate::token::Token;

/// How often requests that wait are checked against their deadlines.
const EXPIRE_INTERVAL: Duration = Duration::from_millis(20);

/// How often an idle or silent connection is probed, and how long the probe may take.
const KEEPALIVE: Duration = Duration::from_secs(2);

/// Bytes in flight on one stream, and on one connection, before flow control stops the sender.
const WINDOW_BYTES: u32 = 8 << 20;

/// A list of what transactions have left in a shard is read up to this size.
const TXN_LIST_BYTES_MAX: usize = 64 << 20;

/// A node of the cluster, by its client address.
pub(crate) struct Node {
    endpoint: Arc<str>,
    channel: Channel,
    requests: Arc<Requests>,
    driver: AbortHandle,
    health: Arc<Health>,
}

/// Whether a node is to be left alone: its connection broke, it cannot be reached, or it owes answers and is silent. A
/// single request that is slow is none of these.
struct Health {
    started: Instant,
    rest: Duration,
    /// Milliseconds after `started` until which the node is left alone; 0 if it is not.
    down_until_ms: AtomicU64,
}

impl Drop for Node {
    fn drop(&mut self) {
        // Whoever could wait for an answer holds the node.
        self.driver.abort();
        self.requests.close();
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node at {}", self.endpoint)
    }
}

impl Node {
    /// A node at `endpoint`; connects when first used. Must be called within a tokio runtime.
    pub(crate) fn new(endpoint: &str, config: &Config, token: &Arc<Token>) -> Result<Self, Failure> {
        let Config { connect_timeout, rest, silence, .. } = *config;
        let wrong = || Failure::Config(format!("`{}` is not HOST:PORT", endpoint.escape_debug()));
        let channel = Endpoint::from_shared(format!("http://{endpoint}"))
            .ok()
            .filter(|parsed| parsed.uri().port_u16().is_some() && parsed.uri().path() == "/")
            .ok_or_else(wrong)?
            .connect_timeout(connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .connect_lazy();
        let endpoint: Arc<str> = endpoint.into();
        let requests = Arc::new(Requests::new(Arc::clone(&endpoint)));
        let started = Instant::now();
        let health = Arc::new(Health { started, rest, down_until_ms: AtomicU64::new(0) });
        let driver = Driver {
            endpoint: Arc::clone(&endpoint),
            channel: channel.clone(),
            requests: Arc::clone(&requests),
            health: Arc::clone(&health),
            connect_timeout,
            silence,
            token: Arc::clone(token),
        };
        let driver = tokio::spawn(driver.run()).abort_handle();
        Ok(Self { endpoint, channel, requests, driver, health })
    }

    pub(crate) fn endpoint(&self) -> &Arc<str> {
        &self.endpoint
    }

    /// Sends a request by the pipeline and waits for its answer.
    pub(crate) async fn send(
        &self,
        request: Request,
        identity: Option<kv_types::Request>,
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        let answer = self.requests.push(request, identity, deadline)?;
        answer.await.unwrap_or_else(|_| Err(Failure::Broken(self.endpoint.to_string())))
    }

    /// What an answer of the node takes at the moment.
    pub(crate) fn typical(&self) -> Duration {
        self.requests.typical()
    }

    /// Whether the node failed a moment ago.
    pub(crate) fn is_resting(&self) -> bool {
        self.health.is_resting()
    }

    /// Asks the node again from now on.
    pub(crate) fn wake(&self) {
        self.health.wake();
    }

    /// Leaves the node alone for a moment.
    pub(crate) fn leave_alone(&self) {
        self.health.leave_alone();
    }

    /// A client for unary calls and scans.
    pub(crate) fn kv(&self) -> KvClient<Channel> {
        kv_client(self.channel.clone())
    }

    /// A client for questions about the cluster.
    pub(crate) fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel.clone()).max_decoding_message_size(PIPELINE_FRAME_BYTES_MAX)
    }

    /// A client for sessions.
    pub(crate) fn sessions(&self) -> SessionsClient<Channel> {
        SessionsClient::new(self.channel.clone()).max_decoding_message_size(PIPELINE_FRAME_BYTES_MAX)
    }

    /// A client for transactions. The largest, with its envelope, is as large as an entry may be; a list of what they have
    /// left may be larger than any one.
    pub(crate) fn txn(&self) -> TxnClient<Channel> {
        TxnClient::new(self.channel.clone())
            .max_encoding_message_size(ENTRY_BYTES_MAX)
            .max_decoding_message_size(TXN_LIST_BYTES_MAX)
    }
}

impl Health {
    fn is_resting(&self) -> bool {
        self.since_start_ms() < self.down_until_ms.load(Ordering::Relaxed)
    }

    fn wake(&self) {
        self.down_until_ms.store(0, Ordering::Relaxed);
    }

    fn leave_alone(&self) {
        let rest_ms = u64::try_from(self.rest.as_millis()).unwrap_or(u64::MAX);
        self.down_until_ms.store(self.since_start_ms().saturating_add(rest_ms), Ordering::Relaxed);
    }

    fn since_start_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

fn kv_client(channel: Channel) -> KvClient<Channel> {
    let frame_bytes_max = PIPELINE_FRAME_BYTES_MAX + REQUEST_BYTES_MAX;
    KvClient::new(channel)
        .max_decoding_message_size(frame_bytes_max)
        .max_encoding_message_size(frame_bytes_max)
}

/// The task that keeps a node's pipeline open while there is something to send.
struct Driver {
    endpoint: Arc<str>,
    channel: Channel,
    requests: Arc<Requests>,
    health: Arc<Health>,
    connect_timeout: Duration,
    silence: Duration,
    token: Arc<Token>,
}

impl Driver {
    async fn run(self) {
        loop {
            self.requests.wanted().await;
            let (cause, sent) = self.stream().await;
            tracing::debug!(endpoint = %self.endpoint, %cause, "pipeline ended");
            // Before callers hear of it, so that none of them comes back here.
            self.health.leave_alone();
            self.requests.fail_sent(&sent);
            // What was never framed was never sent: those callers may go elsewhere at once.
            self.requests.fail_queued(&cause);
        }
    }

    /// Opens one stream and serves it to its end; returns why it ended, and what that means for what was sent.
    async fn stream(&self) -> (String, Failure) {
        let broken = |cause: String| (cause, Failure::Broken(self.endpoint.to_string()));
        let token = Arc::clone(&self.token);
        let frames = self.requests.open(Box::new(move || token.context()));
        let mut client = kv_client(self.channel.clone());
        let mut expire = tokio::time::interval(EXPIRE_INTERVAL);
        expire.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut opening = pin!(tokio::time::timeout(self.connect_timeout, client.pipeline(frames)));
        let opened = loop {
            tokio::select! {
                biased;
                opened = &mut opening => break opened,
                // Whoever has less time than a connection may take does not wait for it.
                _ = expire.tick() => self.requests.expire(Instant::now()),
            }
        };
        let mut replies = match opened {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return broken(cause_of(&status)),
            Err(_) => return broken("no connection in time".to_owned()),
        };
        let mut source = Source { endpoint: Arc::clone(&self.endpoint), cluster: "".into() };
        loop {
            tokio::select! {
                biased;
                frame = replies.message() => match frame {
                    Ok(Some(frame)) => self.take(frame, &mut source),
                    Ok(None) => return broken("the server closed the stream".to_owned()),
                    Err(status) => return match ApiError::from_status(&status) {
                        // A node that stops answers all it has read before it ends the stream so.
                        error @ ApiError::Draining(_) => (cause_of(&status), error.into()),
                        _ => broken(cause_of(&status)),
                    },
                },
                _ = expire.tick() => {
                    let now = Instant::now();
                    self.requests.expire(now);
                    if self.requests.silence(now) > self.silence {
                        // It may answer yet, but nobody will wait for that.
                        let cause = format!("it has said nothing for {} ms", self.silence.as_millis());
                        return (cause, Failure::TimedOut(self.endpoint.to_string()));
                    }
                }
            }
        }
    }

    fn take(&self, frame: v1::PipelineReplies, source: &mut Source) {
        self.health.wake();
        if *frame.cluster != *source.cluster {
            source.cluster = frame.cluster.into();
        }
        self.requests.answer(frame.replies, source);
    }
}

/// The innermost cause of a status that tonic made itself; its own words say only "transport error".
pub(crate) fn cause_of(status: &tonic::Status) -> String {
    let mut cause = std::error::Error::source(status);
    let mut text = status.message().to_owned();
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    text.lines().collect::<Vec<_>>().join(" ")
}

/// Carries a call to its end, also if whoever waits for it goes away. A call broken off is a stream reset, and a server ends
/// a connection, with all that is under way on it, for resets before it came to the calls: when it is slow, that is soon.
pub(crate) async fn to_its_end<T: Send + 'static>(
    call: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::spawn(call).await {
        Ok(result) => result,
        Err(cause) => match cause.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// What a failed unary call means, given that it changes nothing.
pub(crate) fn unary_failure(endpoint: &str, status: &tonic::Status) -> Failure {
    match ApiError::from_status(status) {
        ApiError::Foreign(_) if status.code() == tonic::Code::Unavailable => {
            Failure::Unreachable { endpoint: endpoint.to_owned(), cause: cause_of(status) }
        }
        // No node said so: the connection broke while the answer was waited for.
        ApiError::Foreign(_) if std::error::Error::source(status).is_some() => {
            Failure::Broken(endpoint.to_owned())
        }
        error => Failure::Api(error),
    }
}

/// What a failed unary call means that may have changed something: only what had no connection was certainly not sent.
pub(crate) fn unary_write_failure(endpoint: &str, status: &tonic::Status) -> Failure {
    let is_ours = std::error::Error::source(status).is_some();
    match ApiError::from_status(status) {
        ApiError::Foreign(_) if ApiError::was_not_sent(status) => {
            Failure::Unreachable { endpoint: endpoint.to_owned(), cause: cause_of(status) }
        }
        ApiError::Foreign(_) if is_ours => Failure::Broken(endpoint.to_owned()),
        error => Failure::Api(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_breaks_is_no_answer_of_a_node() {
        let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let made_here = tonic::Status::from_error(Box::new(broken));
        assert_eq!(unary_failure("h:1", &made_here), Failure::Broken("h:1".to_owned()));
        let told = tonic::Status::unknown("a proxy's word");
        assert!(matches!(unary_failure("h:1", &told), Failure::Api(ApiError::Foreign(_))));
        let away = tonic::Status::unavailable("away");
        assert!(matches!(unary_failure("h:1", &away), Failure::Unreachable { .. }));
        // A connection that falls silent ends so, too: what was to be changed may have been.
        assert_eq!(unary_write_failure("h:1", &away).outcome(), kv_types::Outcome::Unknown);
    }
}
