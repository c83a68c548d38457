//! What the proxy is told, by gRPC.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kv_fault::{Draft, InForce, Link, Rule, RuleName};
use kv_proto::v1;
use tonic::{Request, Response, Status};
use tracing::info;

use crate::proxy::{Proxy, Standing};

/// Serves whoever controls the proxy.
#[derive(Debug)]
pub(crate) struct Control {
    proxy: Arc<Proxy>,
}

impl Control {
    pub(crate) fn new(proxy: Arc<Proxy>) -> Self {
        Self { proxy }
    }

    fn link(&self, (link, standing): (&Link, &Arc<Standing>)) -> v1::ChaosLink {
        let back = Link { from: link.to, to: link.from };
        v1::ChaosLink {
            from: link.from.to_string(),
            to: link.to.to_string(),
            listen: standing.listen.to_string(),
            upstream: standing.wanted.upstream.clone(),
            connections: standing.connections.load(Ordering::Relaxed),
            unreachable: standing.unreachable.load(Ordering::Relaxed),
            bytes_sent: self.proxy.faults.bytes(*link),
            bytes_received: self.proxy.faults.bytes(back),
        }
    }

    fn rule(&self, entry: InForce) -> v1::ChaosRule {
        let age = self.proxy.faults.now().saturating_sub(entry.since);
        let count = |(link, counts): (&Link, &kv_fault::Counts)| v1::ChaosCount {
            link: link.to_string(),
            matched: counts.matched,
            acted: counts.acted,
        };
        v1::ChaosRule {
            name: entry.rule.name.to_string(),
            age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            ended: entry.ended.is_some(),
            counts: entry.counts.iter().map(count).collect(),
            text: entry.rule.to_string(),
        }
    }

    /// A rule for a link that is not here would never match, and nobody would know why.
    fn check_links(&self, rules: &[Rule]) -> Result<(), Status> {
        let here = |link: &Link| {
            let back = Link { from: link.to, to: link.from };
            self.proxy.links.contains_key(link) || self.proxy.links.contains_key(&back)
        };
        for rule in rules {
            if let kv_fault::Links::Only(links) = &rule.filter.links
                && let Some(unknown) = links.iter().find(|link| !here(link))
            {
                let text = format!("rule `{}`: this proxy has no link {unknown}", rule.name);
                return Err(Status::not_found(text));
            }
        }
        Ok(())
    }
}

/// A rule as it travels.
fn rule(text: &str) -> Result<Rule, Status> {
    let draft = Draft::parse(text).map_err(|cause| Status::invalid_argument(format!("a rule: {cause}")))?;
    let name = draft.rule.name.clone();
    let unresolved =
        || Status::invalid_argument(format!("rule `{name}`: its links are not nodes and clients alone"));
    draft.into_rule().ok_or_else(unresolved)
}

#[tonic::async_trait]
impl v1::chaos_server::Chaos for Control {
    async fn list_links(
        &self,
        _: Request<v1::ListLinksRequest>,
    ) -> Result<Response<v1::ListLinksReply>, Status> {
        let links = self.proxy.links.iter().map(|link| self.link(link)).collect();
        Ok(Response::new(v1::ListLinksReply { links }))
    }

    async fn load_rules(
        &self,
        request: Request<v1::LoadRulesRequest>,
    ) -> Result<Response<v1::LoadRulesReply>, Status> {
        let v1::LoadRulesRequest { rules, seed } = request.into_inner();
        let rules = rules.iter().map(|text| rule(text)).collect::<Result<Vec<_>, _>>()?;
        self.check_links(&rules)?;
        let names: Vec<_> = rules.iter().map(|rule| rule.name.to_string()).collect();
        self.proxy.load(rules, seed).map_err(|cause| Status::failed_precondition(cause.to_string()))?;
        info!(rules = names.join(", "), "in force");
        Ok(Response::new(v1::LoadRulesReply { names }))
    }

    async fn heal_rules(
        &self,
        request: Request<v1::HealRulesRequest>,
    ) -> Result<Response<v1::HealRulesReply>, Status> {
        let v1::HealRulesRequest { name, late } = request.into_inner();
        let which = match name.as_str() {
            "" => None,
            name => {
                Some(name.parse::<RuleName>().map_err(|cause| Status::invalid_argument(cause.to_string()))?)
            }
        };
        let names: Vec<_> = self.proxy.heal(which.as_ref(), late).iter().map(ToString::to_string).collect();
        if names.is_empty() && which.is_some() {
            return Err(Status::not_found(format!("no rule `{name}` is in force")));
        }
        info!(rules = names.join(", "), late, "healed");
        Ok(Response::new(v1::HealRulesReply { names }))
    }

    async fn watch_messages(
        &self,
        request: Request<v1::WatchMessagesRequest>,
    ) -> Result<Response<v1::WatchMessagesReply>, Status> {
        self.proxy.watch(request.into_inner().on);
        Ok(Response::new(v1::WatchMessagesReply {}))
    }

    async fn list_rules(
        &self,
        _: Request<v1::ListRulesRequest>,
    ) -> Result<Response<v1::ListRulesReply>, Status> {
        let rules = self.proxy.table().into_iter().map(|entry| self.rule(entry)).collect();
        let (waiting, overflowed) = self.proxy.faults.waiting();
        let waiting = u64::try_from(waiting).unwrap_or(u64::MAX);
        Ok(Response::new(v1::ListRulesReply { rules, waiting, overflowed }))
    }

    async fn log_messages(
        &self,
        request: Request<v1::LogMessagesRequest>,
    ) -> Result<Response<v1::LogMessagesReply>, Status> {
        let path = request.into_inner().path;
        let file = (!path.is_empty()).then(|| Path::new(&path));
        let failed = |cause| Status::failed_precondition(format!("the log {path}: {cause}"));
        self.proxy.log_messages(file).map_err(failed)?;
        Ok(Response::new(v1::LogMessagesReply {}))
    }
}
