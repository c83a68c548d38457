//! A proxy with its control and its metrics.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use kv_proto::v1::chaos_server::ChaosServer;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::error;

use crate::control::Control;
use crate::metrics;
use crate::proxy::{Proxy, ProxyError, Wanted};

/// A proxy that is controlled by gRPC.
#[derive(Debug)]
pub struct Server {
    proxy: Arc<Proxy>,
    control: SocketAddr,
    http: SocketAddr,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Why it does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A link.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The address for control or for metrics is in use, or not ours.
    #[error("cannot listen on {listen} for {what}: {cause}")]
    Bind {
        /// What is served there.
        what: &'static str,
        /// Where.
        listen: SocketAddr,
        /// Why.
        cause: io::Error,
    },
}

impl Server {
    /// Binds everything and serves it. `seed` decides every draw of lots.
    ///
    /// # Errors
    /// [`ServerError`]
    pub async fn start(
        links: Vec<Wanted>,
        seed: u64,
        (control, http): (SocketAddr, SocketAddr),
    ) -> Result<Self, ServerError> {
        let (control, control_addr) = bind("control", control).await?;
        let (http, http_addr) = bind("metrics", http).await?;
        let proxy = Arc::new(Proxy::start(links, seed).await?);
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let service = ChaosServer::new(Control::new(Arc::clone(&proxy)));
        let until = stop.clone();
        tasks.spawn(async move {
            let server = tonic::transport::Server::builder().add_service(service);
            let stopped = async move { until.cancelled().await };
            let served = server.serve_with_incoming_shutdown(TcpListenerStream::new(control), stopped);
            if let Err(cause) = served.await {
                error!(%cause, "control has ended");
            }
        });
        let (page, until) = (Arc::clone(&proxy), stop.clone());
        tasks.spawn(async move {
            if let Err(cause) = metrics::serve(http, page, until).await {
                error!(%cause, "metrics have ended");
            }
        });
        Ok(Self { proxy, control: control_addr, http: http_addr, tasks, stop })
    }

    /// Where it is controlled.
    pub fn control_addr(&self) -> SocketAddr {
        self.control
    }

    /// Where its metrics are.
    pub fn http_addr(&self) -> SocketAddr {
        self.http
    }

    /// The proxy itself.
    pub fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// Stops everything and returns when it has stopped.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.proxy.stop().await;
    }
}

async fn bind(what: &'static str, listen: SocketAddr) -> Result<(TcpListener, SocketAddr), ServerError> {
    let failed = |cause| ServerError::Bind { what, listen, cause };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let addr = listener.local_addr().map_err(failed)?;
    Ok((listener, addr))
}
