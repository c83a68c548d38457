//! The gRPC servers: one for clients, one for peers.

use std::sync::Arc;
use std::time::Duration;

use kv_proto::status::ApiError;
use kv_proto::v1;
use kv_types::limits::{ENTRY_BYTES_MAX, PEER_FRAME_BYTES_MAX, PIPELINE_FRAME_BYTES_MAX};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::http::Response;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Status};
use tower::util::MapResponseLayer;
use tracing::{info, warn};

use crate::connections::{Bounded, connections_max};
use crate::fatal::Fatal;
use crate::gateway::Gateway;
use crate::host::chain;
use crate::service::cluster::ClusterService;
use crate::service::kv::KvService;
use crate::service::peer::PeerService;
use crate::service::session::SessionService;
use crate::service::txn::TxnService;
use crate::txns::Txns;

/// What may lie here of a stream that nobody has read yet. It gets older there unseen: a client's deadline counts from when it
/// is read. So it is no more than is read in a moment, and enough for 25 MB/s over 10 ms.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;

/// How long a stopping node waits for calls that are under way.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// What serving clients needs.
pub(crate) struct Clients {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) cluster: ClusterService,
    pub(crate) sessions: SessionService,
    pub(crate) txns: Arc<Txns>,
    pub(crate) stop: CancellationToken,
    pub(crate) fatal: Fatal,
}

impl Clients {
    /// Serves until the node stops; then takes no new calls and gives those under way a moment.
    pub(crate) async fn serve(self, listener: TcpListener) {
        let Self { gateway, cluster, sessions, txns, stop, fatal } = self;
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_serving::<v1::kv_server::KvServer<KvService>>().await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(kv_proto::FILE_DESCRIPTOR_SET)
            .build_v1();
        let reflection = match reflection {
            Ok(reflection) => reflection,
            Err(cause) => return fatal.stop(format!("the reflection service cannot be built: {cause}")),
        };
        let (service, txn) = (
            KvService { gateway: Arc::clone(&gateway), txns: Arc::clone(&txns) },
            TxnService { gateway: Arc::clone(&gateway), txns },
        );
        // A transaction is one entry at each of its shards, so that it may be as large as one.
        let txn = v1::txn_server::TxnServer::new(txn)
            .max_decoding_message_size(ENTRY_BYTES_MAX)
            .max_encoding_message_size(ENTRY_BYTES_MAX);
        let kv = v1::kv_server::KvServer::new(service)
            .max_decoding_message_size(PIPELINE_FRAME_BYTES_MAX)
            .max_encoding_message_size(PIPELINE_FRAME_BYTES_MAX);
        let server = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(4 * STREAM_WINDOW_BYTES)
            .http2_keepalive_interval(Some(Duration::from_secs(10)))
            .layer(MapResponseLayer::new(with_outcome))
            .add_service(kv)
            .add_service(v1::cluster_server::ClusterServer::new(cluster))
            .add_service(txn)
            .add_service(v1::sessions_server::SessionsServer::new(sessions))
            .add_service(health)
            .add_service(reflection);
        let refused = gateway.metrics.connections_refused.clone();
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let incoming = Bounded::new(incoming, connections_max(), refused);
        let stopping = stop.clone();
        let draining = async move {
            stopping.cancelled().await;
            gateway.drain();
            reporter.set_not_serving::<v1::kv_server::KvServer<KvService>>().await;
        };
        tokio::select! {
            served = server.serve_with_incoming_shutdown(incoming, draining) => {
                match served {
                    Ok(()) => info!("all calls of clients are answered"),
                    Err(cause) => fatal.stop(format!("clients are not served any more: {}", chain(&cause))),
                }
            }
            // An answer that nobody takes does not keep the node from stopping.
            () = async { stop.cancelled().await; tokio::time::sleep(DRAIN_MAX).await; } => {
                warn!("calls under way did not end within {} s and are broken off", DRAIN_MAX.as_secs());
            }
        }
    }
}

/// A message above its limit is refused below our services, by a status without our detail, which clients have to take for an
/// unknown outcome; but nothing has read it, so nothing was done.
fn with_outcome(answer: Response<Body>) -> Response<Body> {
    match Status::from_header_map(answer.headers()) {
        Some(status) if status.code() == Code::OutOfRange && status.details().is_empty() => {
            Status::from(ApiError::TooLarge(status.message().to_owned())).into_http()
        }
        _ => answer,
    }
}

/// Serves peers until the node stops.
pub(crate) async fn serve_peers(
    service: PeerService,
    listener: TcpListener,
    stop: CancellationToken,
    fatal: Fatal,
) {
    let peers = v1::peer_server::PeerServer::new(service)
        .max_decoding_message_size(PEER_FRAME_BYTES_MAX)
        .max_encoding_message_size(PEER_FRAME_BYTES_MAX);
    let server = Server::builder()
        .initial_stream_window_size(u32::try_from(PEER_FRAME_BYTES_MAX).ok())
        .initial_connection_window_size(u32::try_from(2 * PEER_FRAME_BYTES_MAX).ok())
        .http2_keepalive_interval(Some(Duration::from_secs(1)))
        .http2_keepalive_timeout(Some(Duration::from_secs(2)))
        .add_service(peers);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::select! {
        served = server.serve_with_incoming(incoming) => {
            if let Err(cause) = served {
                fatal.stop(format!("peers are not served any more: {}", chain(&cause)));
            }
        }
        () = stop.cancelled() => {}
    }
}
