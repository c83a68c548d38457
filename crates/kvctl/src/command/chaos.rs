//! `chaos`: tells a chaos proxy what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use kv_client::{Client, v1};
use kv_drill::{Chaos, ChaosError, ClusterRoles};
use kv_fault::{
    Action, Delay, Draft, Filter, Links, Partition, Probability, ResolveError, Route, Rule, RuleName, Shape,
    WireAction,
};
use kv_types::{NodeId, ShardId};
use serde::Serialize;
use serde_json::json;

use super::Ended;
use crate::args::{ChaosArgs, ChaosVerb, CutArgs, Format};
use crate::bytes_text::harmless;
use crate::console::Console;
use crate::failure::{CommandError, Exit};

/// Bytes of a file of rules at most.
pub(super) const RULES_BYTES_MAX: u64 = 256 << 10;

/// Rules, and what roles stood for.
struct Wanted {
    rules: Vec<Rule>,
    chosen: BTreeMap<String, NodeId>,
}

#[derive(Serialize)]
struct LinkJson {
    from: String,
    to: String,
    listen: String,
    upstream: String,
    connections: u64,
    unreachable: u64,
    bytes_sent: u64,
    bytes_received: u64,
}

#[derive(Serialize)]
struct RuleJson {
    name: String,
    rule: String,
    age_ms: u64,
    in_force: bool,
    matched: u64,
    acted: u64,
    links: Vec<CountJson>,
}

#[derive(Serialize)]
struct CountJson {
    link: String,
    matched: u64,
    acted: u64,
}

pub(crate) async fn run(
    args: ChaosArgs,
    stdin: Option<Vec<u8>>,
    (client, timeout): (&Client, Duration),
    console: &mut Console,
) -> Ended {
    let chaos = Chaos::new(&args.control, timeout).map_err(CommandError::usage)?;
    let partition = args.verb.partition().map_err(CommandError::usage)?;
    if let Some((partition, cut)) = partition {
        let wanted = cut_links(&partition, cut, client, free_names(&chaos).await?).await?;
        return load(wanted, &chaos, console).await;
    }
    match args.verb {
        ChaosVerb::Links => links(&chaos, console).await,
        ChaosVerb::Status => status(&chaos, console).await,
        ChaosVerb::Heal { rule, late } => heal(rule.as_ref(), late, &chaos, console).await,
        ChaosVerb::Watch { off } => {
            chaos.watch(!off).await.map_err(unchanged)?;
            match console.format {
                Format::Json => console.json(&json!({ "outcome": "applied", "watching": !off }))?,
                _ if off => console.line("ok not watching")?,
                _ => console.line("ok watching")?,
            }
            Ok(Exit::Ok)
        }
        ChaosVerb::Log { path } => {
            chaos.log(path.as_deref().unwrap_or_default()).await.map_err(unchanged)?;
            match console.format {
                Format::Json => console.json(&json!({ "outcome": "applied", "log": path }))?,
                _ if path.is_some() => console.line("ok logging")?,
                _ => console.line("ok not logging")?,
            }
            Ok(Exit::Ok)
        }
        ChaosVerb::Load { file } => {
            let drafts = read_rules(&file, stdin)?;
            let rules = resolved(&drafts, client).await?;
            load(Wanted { rules, chosen: BTreeMap::new() }, &chaos, console).await
        }
        verb => {
            let draft = draft(verb, free_names(&chaos).await?)?;
            let rules = resolved(std::slice::from_ref(&draft), client).await?;
            load(Wanted { rules, chosen: BTreeMap::new() }, &chaos, console).await
        }
    }
}

/// Names that are not taken.
struct FreeNames(BTreeSet<String>);

impl FreeNames {
    /// The name that was asked for, or one that begins with `word`.
    fn name(&self, asked: Option<RuleName>, word: &str) -> Result<RuleName, CommandError> {
        if let Some(name) = asked {
            return Ok(name);
        }
        let numbered = (2..).map(|number: u32| format!("{word}-{number}"));
        let mut names = std::iter::once(word.to_owned()).chain(numbered);
        let free = names.find(|name| !self.0.contains(name)).unwrap_or_default();
        free.parse().map_err(CommandError::usage)
    }
}

async fn free_names(chaos: &Chaos) -> Result<FreeNames, CommandError> {
    let rules = chaos.rules().await?.rules;
    Ok(FreeNames(rules.into_iter().filter(|rule| !rule.ended).map(|rule| rule.name).collect()))
}

async fn cut_links(
    partition: &Partition,
    cut: &CutArgs,
    client: &Client,
    names: FreeNames,
) -> Result<Wanted, CommandError> {
    let roles = ClusterRoles::read_with_txns(client).await?;
    let mut found = partition.resolve(&roles, 0)?;
    if cut.clients {
        found = found.with_clients();
    }
    let text = partition.to_string();
    let word = text.split(' ').next().filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic()));
    let rule = Rule {
        name: names.name(cut.name.clone(), word.unwrap_or("partition"))?,
        filter: Filter::on(Links::Only(found.links)),
        action: if cut.hold { Action::Hold } else { Action::Drop },
        pulse: None,
    };
    Ok(Wanted { rules: vec![rule], chosen: found.chosen })
}

/// What `slow` and `drop` mean.
fn draft(verb: ChaosVerb, names: FreeNames) -> Result<Draft, CommandError> {
    let mut filter = Filter::on(Links::All);
    let (name, action, routes) = match verb {
        ChaosVerb::Slow { from, to, latency, jitter, name } => {
            let delay = Delay { base: latency, jitter: jitter.unwrap_or_default(), shape: Shape::Uniform };
            let route = Route { from, to };
            (names.name(name, "slow")?, Action::Wire(WireAction::Latency(delay)), vec![route])
        }
        ChaosVerb::Drop { kind, half, probability, link, shard, nth, name } => {
            filter.kinds = kind.into_iter().collect();
            filter.half = half;
            filter.shard = shard.map(ShardId::new);
            filter.nth = nth;
            filter.probability = Probability::from_fraction(probability)
                .filter(|found| *found != Probability::NEVER)
                .ok_or_else(|| CommandError::usage("a probability is above 0 and up to 1"))?;
            (names.name(name, "drop")?, Action::Drop, link)
        }
        other => unreachable!("{other:?} is no rule"),
    };
    Ok(Draft { rule: Rule { name, filter, action, pulse: None }, routes })
}

fn read_rules(file: &Path, stdin: Option<Vec<u8>>) -> Result<Vec<Draft>, CommandError> {
    let shown = file.display();
    let wrong = |cause: &dyn std::fmt::Display| CommandError::usage(format!("{shown}: {cause}"));
    let mut bytes = stdin.unwrap_or_default();
    if file != Path::new("-") {
        let read =
            fs::File::open(file).and_then(|file| file.take(RULES_BYTES_MAX + 1).read_to_end(&mut bytes));
        read.map_err(|cause| wrong(&cause))?;
    }
    if bytes.len() as u64 > RULES_BYTES_MAX {
        return Err(wrong(&format!("more than {} KiB", RULES_BYTES_MAX >> 10)));
    }
    let text = String::from_utf8(bytes).map_err(|cause| wrong(&cause))?;
    let lines = text.lines().enumerate().filter(|(_, line)| {
        let line = line.trim();
        !line.is_empty() && !line.starts_with('#')
    });
    let drafts = lines.map(|(at, line)| {
        let wrong = |cause: kv_fault::DrillError| {
            let place = format!("{shown}, line {}, column {}", at + 1, cause.column);
            CommandError::usage(format!("{place}: {}", cause.sentence))
        };
        Draft::parse(line).map_err(wrong)
    });
    let drafts = drafts.collect::<Result<Vec<_>, _>>()?;
    if drafts.is_empty() {
        Err(CommandError::usage(format!("{shown}: no rule is in it")))
    } else {
        Ok(drafts)
    }
}

/// What drafts mean. The cluster is asked only if a link has to be looked up; whether links exist that are named in full is for
/// the proxy to say.
async fn resolved(drafts: &[Draft], client: &Client) -> Result<Vec<Rule>, CommandError> {
    if let Some(rules) = drafts.iter().cloned().map(Draft::into_rule).collect() {
        return Ok(rules);
    }
    let roles = ClusterRoles::read_with_txns(client).await?;
    Ok(drafts.iter().map(|draft| draft.resolve(&roles, 0)).collect::<Result<_, _>>()?)
}

async fn load(wanted: Wanted, chaos: &Chaos, console: &mut Console) -> Ended {
    chaos.load(&wanted.rules, None).await.map_err(unchanged)?;
    let chosen = wanted.chosen.iter().map(|(role, node)| (role.clone(), node.get()));
    let chosen: BTreeMap<String, u64> = chosen.collect();
    for rule in &wanted.rules {
        let links = match &rule.filter.links {
            Links::All => None,
            Links::Only(links) => Some(links.len()),
        };
        if console.format == Format::Json {
            let rule = rule.to_string();
            console.json(&json!({ "outcome": "applied", "rule": rule, "links": links, "chosen": chosen }))?;
            continue;
        }
        let roles = chosen.iter().map(|(role, node)| format!(" {role}=n{node}")).collect::<String>();
        let links = links.map_or_else(|| "all".to_owned(), |count| count.to_string());
        console.line(&format!("ok rule={} links={links}{roles}", rule.name))?;
    }
    Ok(Exit::Ok)
}

async fn heal(rule: Option<&RuleName>, late: bool, chaos: &Chaos, console: &mut Console) -> Ended {
    let names = chaos.heal(rule, late).await.map_err(unchanged)?;
    match console.format {
        Format::Json => console.json(&json!({ "outcome": "applied", "healed": names }))?,
        Format::Plain | Format::Table if names.is_empty() => console.line("ok nothing was in force")?,
        Format::Plain | Format::Table => console.line(&format!("ok healed={}", names.join(",")))?,
    }
    Ok(Exit::Ok)
}

async fn links(chaos: &Chaos, console: &mut Console) -> Ended {
    let links: Vec<LinkJson> = chaos.links().await?.into_iter().map(LinkJson::from).collect();
    if console.format == Format::Json {
        console.json(&json!({ "links": links }))?;
        return Ok(Exit::Ok);
    }
    let head = ["FROM", "TO", "LISTEN", "UPSTREAM", "CONNECTIONS", "UNREACHABLE", "SENT", "RECEIVED"];
    let row = |link: LinkJson| {
        let counts = [link.connections, link.unreachable, link.bytes_sent, link.bytes_received];
        let words = [link.from, link.to, link.listen, link.upstream].map(|word| harmless(&word));
        words.into_iter().chain(counts.map(|count| count.to_string())).collect()
    };
    console.rows(&head, links.into_iter().map(row).collect())?;
    Ok(Exit::Ok)
}

async fn status(chaos: &Chaos, console: &mut Console) -> Ended {
    let v1::ListRulesReply { rules, waiting, overflowed } = chaos.rules().await?;
    let rules: Vec<RuleJson> = rules.into_iter().map(RuleJson::from).collect();
    if console.format == Format::Json {
        console.json(&json!({ "rules": rules, "waiting": waiting, "overflowed": overflowed }))?;
        return Ok(Exit::Ok);
    }
    let head = ["RULE", "STATE", "AGE_MS", "MATCHED", "ACTED", "TEXT"];
    let row = |rule: RuleJson| {
        let state = if rule.in_force { "in force" } else { "ended" };
        let numbers = [rule.age_ms, rule.matched, rule.acted].map(|number| number.to_string());
        let mut row = vec![harmless(&rule.name), state.to_owned()];
        row.extend(numbers);
        row.push(harmless(&rule.rule));
        row
    };
    console.rows(&head, rules.into_iter().map(row).collect())?;
    if waiting + overflowed > 0 {
        console.line(&format!("waiting={waiting} overflowed={overflowed}"))?;
    }
    Ok(Exit::Ok)
}

impl From<v1::ChaosLink> for LinkJson {
    fn from(link: v1::ChaosLink) -> Self {
        let v1::ChaosLink { from, to, listen, upstream, .. } = link;
        Self {
            from,
            to,
            listen,
            upstream,
            connections: link.connections,
            unreachable: link.unreachable,
            bytes_sent: link.bytes_sent,
            bytes_received: link.bytes_received,
        }
    }
}

impl From<v1::ChaosRule> for RuleJson {
    fn from(rule: v1::ChaosRule) -> Self {
        let count = |count: v1::ChaosCount| CountJson {
            link: count.link,
            matched: count.matched,
            acted: count.acted,
        };
        let links: Vec<_> = rule.counts.into_iter().map(count).collect();
        Self {
            name: rule.name,
            rule: rule.text,
            age_ms: rule.age_ms,
            in_force: !rule.ended,
            matched: links.iter().map(|count| count.matched).sum(),
            acted: links.iter().map(|count| count.acted).sum(),
            links,
        }
    }
}

impl From<ChaosError> for CommandError {
    fn from(error: ChaosError) -> Self {
        let text = error.to_string();
        match error {
            ChaosError::Unreachable { .. } => Self::own(Exit::WorthARetry, "UNAVAILABLE", "no_proxy", text),
            ChaosError::Refused(_) => Self::own(Exit::Error, "INVALID_ARGUMENT", "refused", text),
        }
    }
}

/// A change that was not answered may be in force.
fn unchanged(error: ChaosError) -> CommandError {
    match error {
        ChaosError::Unreachable { may_have_acted: true, .. } => {
            CommandError::unknown("UNAVAILABLE", "no_proxy", error.to_string())
        }
        error => error.into(),
    }
}

impl From<ResolveError> for CommandError {
    fn from(error: ResolveError) -> Self {
        let text = error.to_string();
        match error {
            ResolveError::NoLeader(_) => Self::own(Exit::WorthARetry, "UNAVAILABLE", "no_leader", text),
            _ => Self::own(Exit::Error, "FAILED_PRECONDITION", "roles", text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_name_is_found() {
        let names = FreeNames(BTreeSet::from(["drop".to_owned(), "drop-2".to_owned()]));
        assert_eq!(names.name(None, "drop").unwrap().as_str(), "drop-3");
        assert_eq!(names.name(None, "slow").unwrap().as_str(), "slow");
        assert_eq!(names.name("drop".parse().ok(), "slow").unwrap().as_str(), "drop");
    }
}
