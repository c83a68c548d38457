//! Where a drill is played: on a cluster of its own, or on one that runs.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use kv_client::Client;
use kv_fault::{Cluster, Deed, Drill, End, Kind};
use kv_types::NodeId;

use crate::Chaos;
use crate::error::RunError;
use crate::local::{Local, Shape};
use crate::workload::{self, config};

/// How long the proxy may take for an answer.
const CONTROL_MAX: Duration = Duration::from_secs(5);

/// Where a drill is to be played.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Where {
    /// On processes that are started for it.
    Local,
    /// On a cluster that runs, with its proxy.
    Running {
        /// Client addresses of its nodes.
        endpoints: Vec<String>,
        /// Where its proxy is controlled.
        chaos: String,
    },
}

/// Where a drill is played.
#[derive(Debug)]
pub(crate) struct Site {
    /// The processes, if they are ours.
    pub(crate) local: Option<Local>,
    /// The proxy.
    pub(crate) chaos: Chaos,
    /// The nodes, where clients dial them.
    pub(crate) dialled: BTreeMap<NodeId, String>,
    /// The nodes, past the proxy if that is possible.
    pub(crate) direct: BTreeMap<NodeId, String>,
}

impl Site {
    /// Starts what the drill needs, or looks whether it is there.
    pub(crate) async fn open(drill: &Drill, place: &Where) -> Result<Self, RunError> {
        match place {
            Where::Local => {
                let Cluster { nodes, shards, memtable_mb } = drill.cluster;
                let shape = Shape {
                    name: drill.name.clone(),
                    nodes,
                    shards,
                    memtable_mb,
                    through_proxy: cuts_clients(drill),
                    seed: drill.seed,
                };
                let local = Local::start(shape).await?;
                let chaos = Chaos::new(local.control(), CONTROL_MAX)?;
                // Now, and not when the first rule is loaded: that would break links in the middle of the drill.
                chaos.watch(true).await?;
                let (dialled, direct) = (local.dialled(), local.direct());
                Ok(Self { local: Some(local), chaos, dialled, direct })
            }
            Where::Running { endpoints, chaos } => Self::join(drill, endpoints, chaos).await,
        }
    }

    async fn join(drill: &Drill, endpoints: &[String], chaos: &str) -> Result<Self, RunError> {
        if let Some(step) = drill.steps.iter().find(|step| matches!(step.deed, Deed::Process(_))) {
            let sentence = "a process step needs processes that are this program's";
            let why = format!("line {}: {sentence}: play it with --cluster local", step.line);
            return Err(RunError::Unfit(why));
        }
        let chaos = Chaos::new(chaos, CONTROL_MAX)?;
        let links = chaos.links().await?;
        if let Some(rule) = chaos.rules().await?.rules.into_iter().find(|rule| !rule.ended) {
            let why = format!("rule `{}` is in force at the proxy already: kvctl chaos heal", rule.name);
            return Err(RunError::Unfit(why));
        }
        if cuts_clients(drill) {
            let of_clients = |endpoint: &String| {
                let clients = End::Clients.to_string();
                links.iter().any(|link| link.from == clients && link.listen == *endpoint)
            };
            if let Some(past) = endpoints.iter().find(|endpoint| !of_clients(endpoint)) {
                let why = format!("the drill cuts clients, and {past} is no link of the proxy for clients");
                return Err(RunError::Unfit(why));
            }
        }
        let client =
            Client::new(config(endpoints.to_vec())).map_err(|error| RunError::Unfit(error.to_string()))?;
        let mut nodes = BTreeMap::new();
        for answer in client.status().await {
            let status = answer.answer.map_err(|error| RunError::Cluster(error.to_string()))?;
            nodes.insert(NodeId::new(status.node), answer.endpoint);
        }
        let wanted = drill.cluster.node_ids();
        if nodes.keys().copied().collect::<std::collections::BTreeSet<_>>() != wanted {
            let why = format!("the drill needs the nodes n1 to n{}, all up", drill.cluster.nodes);
            return Err(RunError::Unfit(why));
        }
        chaos.watch(true).await?;
        Ok(Self { local: None, chaos, dialled: nodes.clone(), direct: nodes })
    }

    /// A client that begins at one of the nodes, and goes wherever leaders are.
    pub(crate) fn client(&self, number: usize) -> Result<Client, RunError> {
        let mut endpoints: Vec<_> = self.dialled.values().cloned().collect();
        let first = number.checked_rem(endpoints.len()).unwrap_or(0);
        endpoints.rotate_left(first);
        Client::new(config(endpoints)).map_err(|error| RunError::Unfit(error.to_string()))
    }

    /// One place on each shard, for whoever works on all of them: the first key that begins with this.
    pub(crate) async fn places(
        &self,
        client: &Client,
        suffix: &str,
    ) -> Result<Vec<workload::Place>, RunError> {
        let shards = client.shards().await.map_err(|error| RunError::Cluster(error.to_string()))?;
        let mut places = Vec::new();
        for shard in shards {
            let Some(range) = shard.range else { continue };
            let start = String::from_utf8(range.start.to_vec());
            let start =
                start.map_err(|_| RunError::Unfit(format!("s{} begins with no text", shard.shard)))?;
            places.push(workload::Place { key: format!("{start}/{suffix}"), shard: shard.shard });
        }
        if places.is_empty() { Err(RunError::Cluster("there are no shards".to_owned())) } else { Ok(places) }
    }

    /// Ends what was started, and mends what was not.
    pub(crate) async fn close(&mut self, keep_logs: Option<&Path>) -> Result<(), RunError> {
        match &mut self.local {
            Some(local) => {
                let stopped = local.stop().await;
                if let Some(to) = keep_logs {
                    local.keep_logs(to)?;
                }
                stopped
            }
            None => {
                self.chaos.heal(None, false).await?;
                Ok(self.chaos.watch(false).await?)
            }
        }
    }
}

/// Whether clients must go through the proxy to feel what the drill does.
fn cuts_clients(drill: &Drill) -> bool {
    drill.steps.iter().any(|step| match &step.deed {
        Deed::Partition { clients, .. } => *clients,
        Deed::Rule(draft) => {
            let names_clients = draft.routes.iter().any(|route| route.is_of_clients());
            names_clients || (draft.routes.is_empty() && draft.rule.filter.kinds.contains(&Kind::Client))
        }
        Deed::Process(_) | Deed::Heal { .. } => false,
    })
}
