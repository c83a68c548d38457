//! Two buyers, one lamp.
//!
//! The stock is a number, `goods/lamp`; each order is a row, `order/WHO`, on another shard. The rule that binds them: stock and
//! orders together are what there was at first. So nothing is sold that is not there, and nothing vanishes.
//!
//! Buying reads the stock, and if there is some left, writes one less and the order. Two buyers may both read 1. Without a
//! transaction both would write 0 and an order each: sold twice. A lock in one process would not help, as they
//! need not be in one process. Here the first commit changes the stock, so that the second has read what is not so any more
//! and is aborted. `transact` runs its closure anew, which now reads 0.
//!
//! **Sold out is an answer, not an error.** The loser's last run reads 0 and writes nothing, and is *committed* for all that.
//! Only so is it certain that the lamp was gone: what a transaction reads before its commit may be a mixture of two
//! moments. Whoever turns a customer away should be sure of it.
//!
//! This is linearisable: if a buyer was told that he has it, whoever asks afterwards, anywhere, finds it sold. The price is
//! that the shards of stock and orders must both have a quorum, and that all buyers of one lamp meet at one key. If
//! that is too dear, see [`back_order`](super::back_order).

use std::fmt;

use anyhow::ensure;
use kv_client::Client;
use kv_types::{ShardId, Value};

use super::{Names, Report, check_apart, decided, look, number};

/// Who wants the lamp.
const BUYERS: [&str; 2] = ["anna", "hugo"];

/// What a buyer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is his.
    Bought,
    /// There is none left.
    SoldOut,
}

/// What happened.
#[derive(Clone, Debug)]
pub struct LastItemReport {
    /// The shards of the stock and of the orders.
    pub shards: Vec<ShardId>,
    /// What each buyer was told.
    pub told: Vec<(&'static str, Answer)>,
    /// The stock in the end.
    pub stock: i64,
    /// Whose orders there are in the end.
    pub orders: Vec<&'static str>,
}

/// Puts one lamp on sale and has two buyers take it at once.
///
/// # Errors
/// If the cluster does not answer, or all keys lie on one shard.
pub async fn run(client: &Client, names: &Names) -> anyhow::Result<LastItemReport> {
    let [first, second] = BUYERS;
    let stock = names.key("goods", "lamp")?;
    let (first_order, second_order) = (names.key("order", first)?, names.key("order", second)?);
    let shards = check_apart(client, &[&stock, &first_order]).await?;
    client.put(stock.clone(), Value::new("1")?).await?;
    let (of_first, of_second) = tokio::try_join!(buy(client, names, first), buy(client, names, second))?;
    let rows = look(client, &[stock, first_order, second_order]).await?;
    let (stock, orders) =
        rows.split_first().map_or((None, rows.as_slice()), |(stock, rest)| (stock.as_ref(), rest));
    let placed = BUYERS.into_iter().zip(orders).filter(|(_, row)| row.is_some());
    Ok(LastItemReport {
        shards,
        told: vec![(first, of_first), (second, of_second)],
        stock: number(stock)?,
        orders: placed.map(|(buyer, _)| buyer).collect(),
    })
}

async fn buy(client: &Client, names: &Names, buyer: &'static str) -> anyhow::Result<Answer> {
    let (stock, order) = (&names.key("goods", "lamp")?, &names.key("order", buyer)?);
    decided(client, |mut txn| async move {
        let left = number(txn.get(stock.clone()).await?.as_ref())?;
        if left == 0 {
            return Ok(Answer::SoldOut);
        }
        txn.put(stock.clone(), Value::new((left - 1).to_string())?)?;
        txn.put(order.clone(), Value::new("a lamp")?)?;
        Ok(Answer::Bought)
    })
    .await
}

impl Report for LastItemReport {
    fn check(&self) -> anyhow::Result<()> {
        let bought = self.told.iter().filter(|(_, answer)| *answer == Answer::Bought);
        let buyers: Vec<&str> = bought.map(|(buyer, _)| *buyer).collect();
        ensure!(buyers.len() == 1, "one lamp, and not one buyer: {self:?}");
        ensure!(self.orders == buyers, "the orders are not what was told: {self:?}");
        ensure!(self.stock == 0, "the lamp is still there: {self:?}");
        Ok(())
    }
}

impl fmt::Display for LastItemReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "stock and orders lie on {:?}", self.shards)?;
        for (buyer, answer) in &self.told {
            match answer {
                Answer::Bought => writeln!(f, "{buyer} was told: it is yours")?,
                Answer::SoldOut => writeln!(f, "{buyer} was told: sold out")?,
            }
        }
        write!(f, "in the end the stock is {}, and there are orders of {:?}", self.stock, self.orders)
    }
}
