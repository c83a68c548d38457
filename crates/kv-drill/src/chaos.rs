//! A chaos proxy, told what to do.

use std::time::Duration;

use kv_fault::{Rule, RuleName};
use kv_proto::v1;
use kv_proto::v1::chaos_client::ChaosClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// A connection to the control of a proxy.
#[derive(Clone, Debug)]
pub struct Chaos {
    addr: String,
    client: ChaosClient<Channel>,
}

/// Why a proxy has not done what it was told.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ChaosError {
    /// It is not there, or does not answer in time.
    #[error("the chaos proxy at {addr} does not answer: {cause}")]
    Unreachable {
        /// Its address.
        addr: String,
        /// Why.
        cause: String,
        /// Whether it may have done what it was told.
        may_have_acted: bool,
    },
    /// It says no.
    #[error("{0}")]
    Refused(String),
}

impl Chaos {
    /// A way to the proxy that is controlled at HOST:PORT; nothing is dialled yet. No call takes longer than `timeout`.
    ///
    /// # Errors
    /// [`ChaosError::Unreachable`] if that is no address.
    pub fn new(addr: &str, timeout: Duration) -> Result<Self, ChaosError> {
        let endpoint = Endpoint::from_shared(format!("http://{addr}")).map_err(|_| {
            let cause = "HOST:PORT is expected".to_owned();
            ChaosError::Unreachable { addr: addr.to_owned(), cause, may_have_acted: false }
        })?;
        let channel = endpoint.timeout(timeout).connect_timeout(timeout).tcp_nodelay(true).connect_lazy();
        Ok(Self { addr: addr.to_owned(), client: ChaosClient::new(channel) })
    }

    /// Its links.
    ///
    /// # Errors
    /// [`ChaosError`]
    pub async fn links(&self) -> Result<Vec<v1::ChaosLink>, ChaosError> {
        let reply = self.client.clone().list_links(v1::ListLinksRequest {}).await;
        Ok(self.told(reply)?.links)
    }

    /// Its rules, and what they have done.
    ///
    /// # Errors
    /// [`ChaosError`]
    pub async fn rules(&self) -> Result<v1::ListRulesReply, ChaosError> {
        let reply = self.client.clone().list_rules(v1::ListRulesRequest {}).await;
        self.told(reply)
    }

    /// Puts rules in force, all or none. With a seed all chance comes from that from now on.
    ///
    /// # Errors
    /// [`ChaosError`]; if the proxy has not answered, they may be in force.
    pub async fn load(&self, rules: &[Rule], seed: Option<u64>) -> Result<(), ChaosError> {
        let rules = rules.iter().map(ToString::to_string).collect();
        let reply = self.client.clone().load_rules(v1::LoadRulesRequest { rules, seed }).await;
        self.told(reply).map(drop)
    }

    /// Takes a rule, or all, out of force: their names. What they held is delivered `late`, or lost.
    ///
    /// # Errors
    /// [`ChaosError`]
    pub async fn heal(&self, which: Option<&RuleName>, late: bool) -> Result<Vec<String>, ChaosError> {
        let name = which.map(ToString::to_string).unwrap_or_default();
        let reply = self.client.clone().heal_rules(v1::HealRulesRequest { name, late }).await;
        Ok(self.told(reply)?.names)
    }

    /// Has every message appended to a file on the proxy's machine; an empty path ends that.
    ///
    /// # Errors
    /// [`ChaosError`]
    pub async fn log(&self, path: &str) -> Result<(), ChaosError> {
        let request = v1::LogMessagesRequest { path: path.to_owned() };
        let reply = self.client.clone().log_messages(request).await;
        self.told(reply).map(drop)
    }

    /// Has links carry messages before a rule looks at one, or bytes again: connections that carry the other are reset.
    ///
    /// # Errors
    /// [`ChaosError`]
    pub async fn watch(&self, on: bool) -> Result<(), ChaosError> {
        let reply = self.client.clone().watch_messages(v1::WatchMessagesRequest { on }).await;
        self.told(reply).map(drop)
    }

    fn told<T>(&self, reply: Result<tonic::Response<T>, Status>) -> Result<T, ChaosError> {
        reply.map(tonic::Response::into_inner).map_err(|status| match status.code() {
            Code::InvalidArgument | Code::NotFound | Code::FailedPrecondition => {
                ChaosError::Refused(status.message().to_owned())
            }
            _ => {
                let source = std::error::Error::source(&status).map(ToString::to_string);
                let cause = source.unwrap_or_else(|| status.message().to_owned());
                let may_have_acted = !is_refused(&status);
                ChaosError::Unreachable { addr: self.addr.clone(), cause, may_have_acted }
            }
        })
    }
}

/// Whether nobody took the connection: then nothing was sent.
fn is_refused(status: &Status) -> bool {
    let mut causes = std::iter::successors(std::error::Error::source(status), |cause| cause.source());
    causes.any(|cause| {
        let cause = cause.downcast_ref::<std::io::Error>();
        cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::ConnectionRefused)
    })
}
