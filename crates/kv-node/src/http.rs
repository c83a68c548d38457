//! Metrics and health over HTTP.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::readiness::Readiness;

#[derive(Clone)]
struct Page {
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
}

/// Serves `/metrics`, `/livez` and `/readyz` until the node stops.
pub(crate) async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(render))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .with_state(Page { metrics, readiness });
    axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await }).await
}

async fn render(State(page): State<Page>) -> impl IntoResponse {
    let form = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, form)], page.metrics.render())
}

/// The process answers.
async fn live() -> &'static str {
    "ok\n"
}

/// The node serves: the cluster is formed, the replicas are open, and every shard has a leader that it knows.
async fn ready(State(page): State<Page>) -> impl IntoResponse {
    match page.readiness.problem() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")),
    }
}
