//! Renewals of sessions, gathered: one entry of the meta group for all that have come since the last.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kv_proto::status::{ApiError, Overloaded};
use kv_state::sessions::{SessionAnswer, SessionBatch, SessionCommand};
use kv_state::{Answer, Command, Envelope};
use kv_types::limits::{SESSIONS_MAX, SESSIONS_PER_ENTRY_MAX};
use kv_types::{ClusterTime, SessionId};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use crate::fatal::Fatal;
use crate::gateway::{Gateway, RETRY_AFTER};

/// How long renewals gather. A session lives for seconds at least.
const GATHER: Duration = Duration::from_millis(100);

/// Of each session its lease's end; `None` if it is closed or gone.
pub(crate) type Leases = BTreeMap<SessionId, Option<ClusterTime>>;

struct Waiting {
    sessions: Vec<SessionId>,
    answer: oneshot::Sender<Result<Leases, ApiError>>,
}

/// The renewals that wait on this node.
pub(crate) struct Renewals {
    gateway: Arc<Gateway>,
    waiting: Mutex<Vec<Waiting>>,
    arrived: Notify,
}

impl std::fmt::Debug for Renewals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("renewals")
    }
}

impl Renewals {
    pub(crate) fn new(gateway: Arc<Gateway>) -> Self {
        Self { gateway, waiting: Mutex::default(), arrived: Notify::new() }
    }

    /// Renews sessions together with others; only the meta group's leader can.
    pub(crate) async fn renew(&self, sessions: Vec<SessionId>) -> Result<Leases, ApiError> {
        self.gateway.led_meta()?;
        let (answer, answered) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let count: usize = waiting.iter().map(|waiting| waiting.sessions.len()).sum();
            if (count + sessions.len()) as u64 > SESSIONS_MAX {
                self.gateway.metrics.refused_overload.inc();
                let message = "too many renewals of sessions wait".to_owned();
                return Err(ApiError::Overloaded(Overloaded { message, retry_after: RETRY_AFTER }));
            }
            waiting.push(Waiting { sessions, answer });
        }
        self.arrived.notify_one();
        answered.await.unwrap_or(Err(ApiError::Stopped))
    }

    /// Runs until the node stops.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken, fatal: Fatal) {
        let _guard = fatal.on_panic("the renewal of sessions".to_owned());
        let work = async {
            loop {
                self.arrived.notified().await;
                tokio::time::sleep(GATHER).await;
                let gathered =
                    std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
                self.carry_out(gathered).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
    }

    async fn carry_out(&self, gathered: Vec<Waiting>) {
        let all: Vec<SessionId> = gathered.iter().flat_map(|waiting| waiting.sessions.clone()).collect();
        let mut leases = Leases::new();
        let mut failure = None;
        for part in all.chunks(SESSIONS_PER_ENTRY_MAX) {
            match self.entry(part).await {
                Ok(renewed) => leases.extend(renewed),
                Err(cause) => failure = Some(cause),
            }
        }
        for waiting in gathered {
            let found: Leases = waiting
                .sessions
                .iter()
                .filter_map(|session| leases.get(session).map(|lease| (*session, *lease)))
                .collect();
            // Those of whom nothing is known hear why; they may all ask again.
            let answer = match &failure {
                Some(cause) if found.is_empty() => Err(cause.clone()),
                _ => Ok(found),
            };
            // Whoever asked may have gone away.
            let _ = waiting.answer.send(answer);
        }
    }

    async fn entry(&self, sessions: &[SessionId]) -> Result<Vec<(SessionId, Option<ClusterTime>)>, ApiError> {
        let sessions = SessionBatch::new(sessions.iter().copied())
            .map_err(|cause| ApiError::Invalid(cause.to_string()))?;
        let command = SessionCommand::Renew { sessions };
        match change_sessions(&self.gateway, None, command).await? {
            SessionAnswer::Renewed(renewed) => {
                self.gateway.metrics.sessions.renewed.inc_by(renewed.len() as u64);
                Ok(renewed)
            }
            other => unreachable!("a renewal is answered {other:?}"),
        }
    }
}

/// Changes the sessions, if this node leads the meta group.
pub(crate) async fn change_sessions(
    gateway: &Gateway,
    deadline: Option<Duration>,
    command: SessionCommand,
) -> Result<SessionAnswer, ApiError> {
    let meta = gateway.led_meta()?;
    let envelope =
        Envelope::timed(Command::Session(command)).expect("no settling is put into an envelope here");
    let written = gateway.replicate(meta, deadline, envelope.encode()).await?;
    match written.answer {
        Answer::Session(Ok(answer)) => Ok(answer),
        Answer::Session(Err(refusal)) => Err(crate::once::session_refused(&refusal)),
        other => unreachable!("a change of sessions is answered {other:?}"),
    }
}
