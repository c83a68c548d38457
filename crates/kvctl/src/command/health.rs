//! `health`.

use kv_client::{Client, NodeAnswer, v1};
use serde::Serialize;

use super::Ended;
use crate::args::Format;
use crate::bytes_text::harmless;
use crate::console::Console;
use crate::failure::Exit;

#[derive(Debug, Serialize)]
struct HealthJson {
    healthy: bool,
    endpoints: Vec<EndpointJson>,
}

#[derive(Debug, Serialize)]
struct EndpointJson {
    endpoint: String,
    healthy: bool,
    cause: Option<String>,
}

pub(crate) async fn run(client: &Client, console: &mut Console) -> Ended {
    let answers = client.status_of_endpoints().await;
    let health = HealthJson::of(answers.into_iter().map(EndpointJson::from).collect());
    let exit = if health.healthy { Exit::Ok } else { Exit::WorthARetry };
    match console.format {
        Format::Json => console.json(&health)?,
        Format::Plain => {
            for EndpointJson { endpoint, healthy, cause } in health.endpoints {
                let cause = cause.map_or_else(String::new, |cause| format!(" ({})", harmless(&cause)));
                console.line(&format!("{} {}{cause}", harmless(&endpoint), word(healthy)))?;
            }
        }
        Format::Table => {
            let row = |endpoint: EndpointJson| {
                let cause = endpoint.cause.map_or_else(|| "-".to_owned(), |cause| harmless(&cause));
                vec![harmless(&endpoint.endpoint), word(endpoint.healthy).to_owned(), cause]
            };
            let rows = health.endpoints.into_iter().map(row).collect();
            console.rows(&["ENDPOINT", "HEALTH", "CAUSE"], rows)?;
        }
    }
    Ok(exit)
}

fn word(healthy: bool) -> &'static str {
    if healthy { "healthy" } else { "unhealthy" }
}

impl HealthJson {
    /// Healthy is: more than half of the endpoints are.
    fn of(endpoints: Vec<EndpointJson>) -> Self {
        let healthy = endpoints.iter().filter(|endpoint| endpoint.healthy).count();
        Self { healthy: healthy * 2 > endpoints.len(), endpoints }
    }
}

impl From<NodeAnswer<v1::StatusReply>> for EndpointJson {
    fn from(answer: NodeAnswer<v1::StatusReply>) -> Self {
        let cause = match answer.answer {
            Ok(status) if status.ready => None,
            Ok(_) => Some("the node does not serve yet".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        Self { endpoint: answer.endpoint, healthy: cause.is_none(), cause }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(healthy: &[bool]) -> bool {
        let endpoint = |healthy: &bool| EndpointJson {
            endpoint: "h:1".into(),
            healthy: *healthy,
            cause: (!healthy).then(|| "gone".to_owned()),
        };
        HealthJson::of(healthy.iter().map(endpoint).collect()).healthy
    }

    #[test]
    fn more_than_half_must_serve() {
        assert!(of(&[true]) && of(&[true, true, false]));
        assert!(!of(&[false]) && !of(&[true, false]) && !of(&[]));
    }
}
