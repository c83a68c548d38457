//! What the proxy counts, for Prometheus: taken from the rules and links when it is asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::proxy::Proxy;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfLink {
    link: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfRule {
    rule: String,
    link: String,
}

/// Serves `/metrics` and `/livez` until the proxy stops.
///
/// # Errors
/// Of the socket.
pub(crate) async fn serve(
    listener: TcpListener,
    proxy: Arc<Proxy>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let router =
        Router::new().route("/metrics", get(page)).route("/livez", get(async || "ok\n")).with_state(proxy);
    axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await }).await
}

async fn page(State(proxy): State<Arc<Proxy>>) -> impl IntoResponse {
    let form = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, form)], render(&proxy))
}

fn render(proxy: &Proxy) -> String {
    let mut registry = Registry::with_prefix("kvchaos");
    links(proxy, &mut registry);
    rules(proxy, &mut registry);
    let mut text = String::new();
    // Writing into a string cannot fail.
    if encode(&mut text, &registry).is_err() {
        text.clear();
    }
    text
}

fn links(proxy: &Proxy, registry: &mut Registry) {
    let connections = Family::<OfLink, Gauge>::default();
    let unreachable = Family::<OfLink, Counter>::default();
    let bytes = Family::<OfLink, Counter>::default();
    for (link, standing) in &proxy.links {
        let of = OfLink { link: link.to_string() };
        let now = i64::try_from(standing.connections.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
        connections.get_or_create(&of).set(now);
        unreachable.get_or_create(&of).inc_by(standing.unreachable.load(Ordering::Relaxed));
        bytes.get_or_create(&of).inc_by(proxy.faults.bytes(*link));
    }
    registry.register("connections", "Connections that stand, by who dialled whom", connections);
    registry.register("unreachable", "Connections that failed because a node was not reached", unreachable);
    registry.register("bytes", "Bytes that came from the first end of a link", bytes);
}

fn rules(proxy: &Proxy, registry: &mut Registry) {
    let matched = Family::<OfRule, Counter>::default();
    let acted = Family::<OfRule, Counter>::default();
    let mut in_force = 0;
    for entry in proxy.faults.table() {
        in_force += i64::from(entry.ended.is_none());
        for (link, counts) in &entry.counts {
            let of = OfRule { rule: entry.rule.name.to_string(), link: link.to_string() };
            matched.get_or_create(&of).inc_by(counts.matched);
            acted.get_or_create(&of).inc_by(counts.acted);
        }
    }
    let (waiting, overflowed) = proxy.faults.waiting();
    let of_rules: Gauge = Gauge::default();
    of_rules.set(in_force);
    let of_waiting: Gauge = Gauge::default();
    of_waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    let of_overflowed: Counter<u64, AtomicU64> = Counter::default();
    of_overflowed.inc_by(overflowed);
    registry.register("matched", "Messages that a rule has matched", matched);
    registry.register("acted", "Messages that a rule has acted on", acted);
    registry.register("rules", "Rules in force", of_rules);
    registry.register("waiting", "Messages that are held or wait for their time", of_waiting);
    registry.register("overflowed", "Messages lost because too many waited", of_overflowed);
}
