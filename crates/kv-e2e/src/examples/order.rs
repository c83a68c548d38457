//! An order and its message, both or neither; and a consumer that does each message exactly once.
//!
//! An order is a row, `order/ID`. Somebody has to write an invoice for it, later, so a message goes into a queue. If
//! the queue were another system, a crash between the two writes would leave an order without a message, or a message without
//! an order. Here the queue is a few keys, and both are written in one transaction:
//!
//! ```text
//! order/x            the order                                one shard
//! to-bill/tail       how many messages there ever were        another
//! to-bill/0000007    the seventh message: "x"
//! consumer/offset    how many of them are done                a third
//! invoice/x          how many invoices were written for x     a fourth
//! ```
//!
//! The number of a message is the tail plus one, read and written in the same transaction. So numbers have no gaps, whoever
//! gave up in between, and a consumer that finds nothing under the next one has done all there is. The price: all that
//! place orders meet at the tail, and one of two that are committed at once is run anew. A queue for high rates has several tails.
//!
//! **Exactly once.** A consumer reads the offset, takes the message after it, does what is to be done, and moves the offset on:
//! all in *one* transaction. If it is killed before the commit, nothing happened. If it is killed during the commit, nobody
//! who is left knows whether the invoice was written, but the offset does: it has moved if and only if it was. The next
//! consumer just goes on from there. If two consumers take the same message at once, only one of them can move the offset.
//! What a killed consumer has locked is freed by whoever meets the lock; nobody waits for it to come back.
//!
//! That holds for what is written *into the store*. A consumer that sends a parcel sends it twice if it is killed at the wrong
//! moment; then the message has to carry an id, by which the parcel service knows what it has seen.
//!
//! **What happens here.** Two clients place orders. One customer leaves before the commit: there is no trace of it. Another
//! is cut off during the commit, so that there is all of it or nothing. A consumer is at work meanwhile, and is cut off during
//! the commit of its second message. Two others go on, and race.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::ensure;
use kv_client::{Client, Txn};
use kv_types::{Key, ShardId, Value};
use tokio::sync::{Notify, watch};

use super::{Names, Report, TRIES_MAX, check_apart, decided, number, text};

/// Orders that are acknowledged.
const ORDERS: [&str; 4] = ["a1", "a2", "b1", "b2"];

/// The order whose customer leaves before the commit.
const LEFT: &str = "left";

/// The order whose customer is cut off during the commit.
const CUT_OFF: &str = "cut-off";

/// What happened.
#[derive(Clone, Debug)]
pub struct OrderReport {
    /// The shards of orders, queue, consumers and invoices.
    pub shards: Vec<ShardId>,
    /// Messages that the consumer that was cut off did before.
    pub done_before_cut: usize,
    /// Messages that the others did.
    pub done_by_others: usize,
    /// All there is in the end.
    pub found: Found,
}

/// All rows, of one instant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The orders.
    pub orders: BTreeSet<String>,
    /// How many messages there ever were.
    pub tail: i64,
    /// The messages, in their order.
    pub messages: Vec<String>,
    /// How many of them are done.
    pub offset: i64,
    /// How many invoices each order has.
    pub invoices: BTreeMap<String, i64>,
}

/// Places orders and consumes their messages, with clients that are cut off.
///
/// # Errors
/// If the cluster does not answer, or the kinds of rows do not lie on four shards.
pub async fn run(client: &Client, names: &Names) -> anyhow::Result<OrderReport> {
    let kinds = [names.key("order", "x")?, tail(names)?, offset(names)?, names.key("invoice", "x")?];
    let shards = check_apart(client, &kinds.iter().collect::<Vec<_>>()).await?;
    // Who places an order wakes the consumers; when nobody does any more, the channel is closed.
    let (placed, hears) = watch::channel(());
    let consumers = async {
        let before = consume_and_be_cut_off(client, names, hears.clone()).await?;
        let others = (consume(client, names, hears.clone()), consume(client, names, hears));
        let (one, other) = tokio::try_join!(others.0, others.1)?;
        Ok((before, one + other))
    };
    let ((), (done_before_cut, mut done_by_others)) =
        tokio::try_join!(everybody_orders(client, names, placed), consumers)?;
    let mut found = find(client, names).await?;
    for _ in 0..TRIES_MAX {
        // The commit that its customer did not wait for may come later than everything else.
        if found.offset == found.tail {
            break;
        }
        done_by_others += drain(client, names).await?;
        found = find(client, names).await?;
    }
    Ok(OrderReport { shards, done_before_cut, done_by_others, found })
}

fn tail(names: &Names) -> anyhow::Result<Key> {
    names.key("to-bill", "tail")
}

fn message(names: &Names, number: i64) -> anyhow::Result<Key> {
    names.key("to-bill", &format!("{number:07}"))
}

fn offset(names: &Names) -> anyhow::Result<Key> {
    names.key("consumer", "offset")
}

async fn everybody_orders(client: &Client, names: &Names, placed: watch::Sender<()>) -> anyhow::Result<()> {
    let [first, second, third, fourth] = ORDERS;
    let one = async {
        place(client, names, first).await?;
        placed.send_replace(());
        leave(client, names).await?;
        place(client, names, second).await?;
        placed.send_replace(());
        anyhow::Ok(())
    };
    let other = async {
        place(client, names, third).await?;
        placed.send_replace(());
        be_cut_off(client, names).await?;
        place(client, names, fourth).await?;
        placed.send_replace(());
        anyhow::Ok(())
    };
    tokio::try_join!(one, other).map(drop)
}

/// Places an order.
async fn place(client: &Client, names: &Names, id: &'static str) -> anyhow::Result<()> {
    decided(client, |mut txn| async move { write_order(&mut txn, names, id).await }).await
}

/// Writes an order and its message.
async fn write_order(txn: &mut Txn, names: &Names, id: &'static str) -> anyhow::Result<()> {
    let number = txn.incr(tail(names)?, 1).await?;
    txn.put(names.key("order", id)?, Value::new("a lamp")?)?;
    txn.put(message(names, number)?, Value::new(id)?)?;
    Ok(())
}

/// Does all that an order takes, and leaves before the commit.
async fn leave(client: &Client, names: &Names) -> anyhow::Result<()> {
    let mut txn = client.begin();
    write_order(&mut txn, names, LEFT).await?;
    txn.abort();
    Ok(())
}

/// Places an order, and is gone when its commit has begun.
async fn be_cut_off(client: &Client, names: &Names) -> anyhow::Result<()> {
    let begun = &Notify::new();
    let placed = decided(client, |mut txn| async move {
        write_order(&mut txn, names, CUT_OFF).await?;
        begun.notify_one();
        Ok(())
    });
    tokio::select! {
        biased;
        () = begun.notified() => Ok(()),
        placed = placed => placed,
    }
}

/// Consumes until nobody places orders any more and all messages are done; how many it did.
async fn consume(client: &Client, names: &Names, mut hears: watch::Receiver<()>) -> anyhow::Result<usize> {
    let mut done = drain(client, names).await?;
    // A change that was not heard of comes before the end of the channel.
    while hears.changed().await.is_ok() {
        done += drain(client, names).await?;
    }
    Ok(done)
}

/// Consumes until the queue is empty; how many it did.
async fn drain(client: &Client, names: &Names) -> anyhow::Result<usize> {
    let mut done = 0;
    while take(client, names, None).await? {
        done += 1;
    }
    Ok(done)
}

/// Does one message, and is gone when the commit of a second has begun; how many it knows it has done.
async fn consume_and_be_cut_off(
    client: &Client,
    names: &Names,
    mut hears: watch::Receiver<()>,
) -> anyhow::Result<usize> {
    let (begun, mut done) = (Notify::new(), 0);
    loop {
        let told = (done > 0).then_some(&begun);
        let taken = tokio::select! {
            biased;
            () = begun.notified() => return Ok(done),
            taken = take(client, names, told) => taken?,
        };
        if taken {
            done += 1;
        } else if hears.changed().await.is_err() {
            return Ok(done);
        }
    }
}

/// Does the next message and moves the offset on; `false` if there is none. Tells `begun` when only the commit is left.
async fn take(client: &Client, names: &Names, begun: Option<&Notify>) -> anyhow::Result<bool> {
    decided(client, |mut txn| async move {
        let next = number(txn.get(offset(names)?).await?.as_ref())? + 1;
        let Some(message) = txn.get(message(names, next)?).await? else { return Ok(false) };
        txn.put(offset(names)?, Value::new(next.to_string())?)?;
        // A second invoice for one order would count as 2.
        txn.incr(names.key("invoice", &text(&message.value)?)?, 1).await?;
        begun.inspect(|begun| begun.notify_one());
        Ok(true)
    })
    .await
}

/// Everything there is.
async fn find(client: &Client, names: &Names) -> anyhow::Result<Found> {
    decided(client, |mut txn| async move {
        let (tail, offset) = (tail(names)?, offset(names)?);
        let mut found = Found {
            tail: number(txn.get(tail.clone()).await?.as_ref())?,
            offset: number(txn.get(offset).await?.as_ref())?,
            ..Found::default()
        };
        let ids = ORDERS.into_iter().chain([LEFT, CUT_OFF]);
        for id in ids {
            if txn.get(names.key("order", id)?).await?.is_some() {
                found.orders.insert(id.to_owned());
            }
            if let Some(row) = txn.get(names.key("invoice", id)?).await? {
                found.invoices.insert(id.to_owned(), number(Some(&row))?);
            }
        }
        for row in txn.scan(names.all("to-bill")?, None).await? {
            if row.key != tail {
                found.messages.push(text(&row.value)?);
            }
        }
        Ok(found)
    })
    .await
}

impl Report for OrderReport {
    fn check(&self) -> anyhow::Result<()> {
        let Found { orders, tail, messages, offset, invoices } = &self.found;
        ensure!(ORDERS.iter().all(|id| orders.contains(*id)), "an acknowledged order is lost: {self:?}");
        ensure!(!orders.contains(LEFT), "an order without a commit: {self:?}");
        let named: BTreeSet<String> = messages.iter().cloned().collect();
        ensure!(named == *orders, "orders and messages differ: {self:?}");
        ensure!(messages.len() == orders.len(), "an order has two messages: {self:?}");
        ensure!(i64::try_from(messages.len())? == *tail, "a number is missing: {self:?}");
        ensure!(offset == tail, "a message is not done: {self:?}");
        ensure!(invoices.keys().eq(orders.iter()), "orders and invoices differ: {self:?}");
        ensure!(invoices.values().all(|count| *count == 1), "a message was done twice: {self:?}");
        ensure!(self.done_before_cut == 1, "the consumer was not cut off at its second message: {self:?}");
        // Of the message in whose commit that was, nobody knows who did it.
        let known = self.done_before_cut + self.done_by_others;
        ensure!((known..=known + 1).contains(&messages.len()), "consumers are wrong: {self:?}");
        Ok(())
    }
}

impl fmt::Display for OrderReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Found { orders, tail, messages, offset, invoices } = &self.found;
        writeln!(f, "orders, queue, offset and invoices lie on {:?}", self.shards)?;
        writeln!(f, "orders: {orders:?}")?;
        writeln!(f, "messages: {messages:?}; {tail} in all, {offset} of them done")?;
        writeln!(f, "invoices: {invoices:?}")?;
        let cut_off = if orders.contains(CUT_OFF) { "all of it" } else { "nothing of it" };
        writeln!(
            f,
            "of the order whose customer was cut off there is {cut_off}, of the one who left nothing"
        )?;
        write!(
            f,
            "the consumer that was cut off did {} before, the others {}",
            self.done_before_cut, self.done_by_others
        )
    }
}
