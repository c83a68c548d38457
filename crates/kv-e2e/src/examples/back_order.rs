//! The same lamp, sold without looking: when linearisability is not needed.
//!
//! In [`last_item`](super::last_item) a buyer waits until stock and order are changed together. A shop may not want that: it wants
//! to take an order whenever the shard of *orders* answers, whether or not the warehouse's does, and a thousand orders a second
//! must not meet at one number. So it takes them all, by one plain write each, and thanks the customer. Only later does
//! somebody compare:
//!
//! ```text
//! order/anna, order/hugo     plain puts; both customers are told: accepted
//! goods/lamp = 1             not looked at
//!
//! the reconciler, later, in one transaction:
//!   reads all orders, all events and the stock
//!   first order    -> event/anna "sent",        goods/lamp = 0
//!   second order   -> event/hugo "back order"
//!
//! the messenger, later still:
//!   update/hugo "your lamp will take a while"
//! ```
//!
//! **What is given up.** Between order and event the rows contradict each other: two orders, one lamp. *Accepted* means less than
//! *bought* does: a promise may have to be taken back, with an apology. That is a decision of the shop, not of the store;
//! warehouses burn down, so it has to be able to apologise anyway.
//!
//! **What is not given up.** Each order is durable when it is acknowledged, and none is forgotten. Each is decided once,
//! although several reconcilers may be at work: events and stock change together, and an order that has an event is left alone. The
//! scan of the orders is validated, so no order slips in unseen between the look and the decision: first come, first served, in
//! the order of their revisions, which is that of their shard's log.
//!
//! **What the messenger needs.** No transaction: it may tell the same thing twice, under the same key, and nothing changes.
//! What can be repeated without harm needs no protection against repetition.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context as _, bail, ensure};
use kv_client::Client;
use kv_types::{Key, Revision, ShardId, Value};

use super::{Names, Report, check_apart, decided, number, text};

/// Who orders.
const CUSTOMERS: [&str; 2] = ["anna", "hugo"];

/// The goods leave.
const SENT: &str = "sent";

/// They will have to be made first.
const BACK_ORDER: &str = "back order";

/// What happened.
#[derive(Clone, Debug)]
pub struct BackOrderReport {
    /// The shards of orders, stock, events and updates.
    pub shards: Vec<ShardId>,
    /// Whose orders were accepted, each with its place in the order of arrival.
    pub accepted: BTreeMap<&'static str, Revision>,
    /// Events that reconcilers say they have emitted, in all.
    pub emitted: Vec<(String, String)>,
    /// The events there are, by customer.
    pub events: BTreeMap<String, String>,
    /// What customers were told later.
    pub updates: BTreeMap<String, String>,
    /// The stock in the end.
    pub stock: i64,
}

/// Takes two orders for one lamp, while reconcilers are at work, and settles them afterwards.
///
/// # Errors
/// If the cluster does not answer, or the kinds of rows do not lie on four shards.
pub async fn run(client: &Client, names: &Names) -> anyhow::Result<BackOrderReport> {
    let [mut first, mut second] = CUSTOMERS;
    if rand::random() {
        // Both go over one connection, which keeps their order.
        (first, second) = (second, first);
    }
    let stock = names.key("goods", "lamp")?;
    let kinds = [names.key("order", first)?, names.key("event", first)?, names.key("update", first)?];
    let [order, event, update] = &kinds;
    let shards = check_apart(client, &[order, &stock, event, update]).await?;
    client.put(stock.clone(), Value::new("1")?).await?;
    let (of_first, of_second, one, other) = tokio::try_join!(
        place(client, names, first),
        place(client, names, second),
        reconcile(client, names),
        reconcile(client, names),
    )?;
    // Those may have come too early to see all; two more certainly see it.
    let (third, fourth) = tokio::try_join!(reconcile(client, names), reconcile(client, names))?;
    let events = rows(client, names, "event").await?;
    for (customer, event) in &events {
        tell(client, &names.key("update", customer)?, event).await?;
    }
    Ok(BackOrderReport {
        shards,
        accepted: BTreeMap::from([(first, of_first), (second, of_second)]),
        emitted: [one, other, third, fourth].concat(),
        events,
        updates: rows(client, names, "update").await?,
        stock: decided(client, |mut txn| {
            let stock = stock.clone();
            async move { number(txn.get(stock).await?.as_ref()) }
        })
        .await?,
    })
}

/// Accepts an order, whatever there is in stock.
async fn place(client: &Client, names: &Names, customer: &str) -> anyhow::Result<Revision> {
    let written = client.put(names.key("order", customer)?, Value::new("a lamp")?).await?;
    Ok(written.header.revision)
}

/// Decides on all orders that are not decided; the events that it emitted.
async fn reconcile(client: &Client, names: &Names) -> anyhow::Result<Vec<(String, String)>> {
    let stock = &names.key("goods", "lamp")?;
    decided(client, |mut txn| async move {
        let mut orders = txn.scan(names.all("order")?, None).await?;
        let events = txn.scan(names.all("event")?, None).await?;
        let decided: BTreeSet<String> = events.iter().map(|event| last_part(&event.key)).collect();
        let before = number(txn.get(stock.clone()).await?.as_ref())?;
        let (mut left, mut emitted) = (before, Vec::new());
        orders.sort_by_key(|order| order.mod_revision);
        for customer in orders.iter().map(|order| last_part(&order.key)) {
            if decided.contains(&customer) {
                continue;
            }
            let event = if left > 0 { SENT } else { BACK_ORDER };
            left = left.saturating_sub(1).max(0);
            txn.put(names.key("event", &customer)?, Value::new(event)?)?;
            emitted.push((customer, event.to_owned()));
        }
        if left < before {
            txn.put(stock.clone(), Value::new(left.to_string())?)?;
        }
        Ok(emitted)
    })
    .await
}

/// Tells a customer what became of his order; may be done again.
async fn tell(client: &Client, update: &Key, event: &str) -> anyhow::Result<()> {
    let text = match event {
        SENT => "your lamp is on its way",
        BACK_ORDER => "your lamp will take a while, we are sorry",
        other => bail!("what is the event {other:?}?"),
    };
    client.put(update.clone(), Value::new(text)?).await?;
    Ok(())
}

/// All rows of a kind, by customer.
async fn rows(client: &Client, names: &Names, kind: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let found = decided(client, |mut txn| async move { Ok(txn.scan(names.all(kind)?, None).await?) }).await?;
    found.iter().map(|row| Ok((last_part(&row.key), text(&row.value)?))).collect()
}

/// Whose a row is.
fn last_part(key: &Key) -> String {
    let text = String::from_utf8_lossy(key.as_ref());
    text.rsplit('/').next().unwrap_or_default().to_owned()
}

impl Report for BackOrderReport {
    fn check(&self) -> anyhow::Result<()> {
        let mut by_arrival: Vec<_> = self.accepted.iter().map(|(who, at)| (*at, *who)).collect();
        by_arrival.sort_unstable();
        let expected: BTreeMap<String, String> = by_arrival
            .iter()
            .map(|(_, who)| (*who).to_owned())
            .zip([SENT, BACK_ORDER].map(str::to_owned))
            .collect();
        ensure!(self.accepted.keys().eq(CUSTOMERS.iter()), "an order was not accepted: {self:?}");
        ensure!(self.events == expected, "the events should be {expected:?}: {self:?}");
        let emitted: BTreeMap<String, String> = self.emitted.iter().cloned().collect();
        ensure!(self.emitted.len() == CUSTOMERS.len(), "an event was not emitted once: {self:?}");
        ensure!(emitted == expected, "other events were emitted: {self:?}");
        ensure!(self.stock == 0, "the lamp is still there: {self:?}");
        let (_, last) = by_arrival.last().context("both were accepted")?;
        let told = self.updates.get(*last).is_some_and(|update| update.contains("a while"));
        ensure!(told && self.updates.len() == CUSTOMERS.len(), "somebody was not told: {self:?}");
        Ok(())
    }
}

impl fmt::Display for BackOrderReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "orders, stock, events and updates lie on {:?}", self.shards)?;
        for (customer, revision) in &self.accepted {
            writeln!(f, "{customer} was told at once: accepted (revision {revision})")?;
        }
        for (customer, event) in &self.emitted {
            writeln!(f, "a reconciler decided for {customer}: {event}")?;
        }
        for (customer, update) in &self.updates {
            writeln!(f, "{customer} was told later: {update}")?;
        }
        write!(f, "in the end the stock is {}", self.stock)
    }
}
