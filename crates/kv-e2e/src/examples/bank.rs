//! Money that is moved, and a standing order.
//!
//! Each of four people has an account, `WHO/account`, on a shard of its own. Two rules: no account is ever below zero, and the
//! sum of all accounts never changes. The first is about one row, the second about all of them.
//!
//! A transfer reads the balance, refuses if that is too little, and otherwise changes both accounts. Ulla has 100, and
//! two of her cards pay 60 each at the same moment: both see 100, both would be right alone. The second commit has read a
//! balance that is not so any more, is run anew, and refuses.
//!
//! **The standing order** pays Ulla's rent of 150 to Anna, once, when the balance allows: not before her salary of 300 has
//! come, which would do for two. Its state is a row, `ulla/rents-paid`. Two servers look after standing orders, so that one may
//! fail; both wake up when Ulla's balance may have changed. That the rent is paid once is due to no agreement between them: *was it paid, is there enough, pay, note that it
//! is paid* is one transaction, and of two that do it at once only one can be committed. A server that is killed halfway has
//! either paid and noted it, or neither.
//!
//! **Looking at it.** While all that happens, an observer adds the accounts up, in a transaction that only reads. It writes
//! nothing anywhere; each shard is asked at the end whether what was read still is so. Four ordinary reads would now
//! and then see money twice or not at all: a debit before, a credit after.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::ensure;
use kv_client::Client;
use kv_types::{Key, ShardId, Value};
use tokio::sync::watch;

use super::{Names, Report, check_apart, decided, look, number};

/// Whose accounts there are, and what is in them at first. Each name begins the keys of a shard of its own.
const OPENED: [(&str, i64); 4] = [("anna", 100), ("hugo", 400), ("otto", 100), ("ulla", 100)];

/// What Ulla pays Anna once, when she can.
const RENT: i64 = 150;

/// A transfer, and what it came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Who pays.
    pub from: &'static str,
    /// Who is paid.
    pub to: &'static str,
    /// How much.
    pub amount: i64,
    /// Whether there was enough.
    pub done: bool,
}

/// What the observer saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// How often it looked.
    pub looks: usize,
    /// Every sum of all accounts that it saw.
    pub totals: BTreeSet<i64>,
    /// The lowest balance that it saw.
    pub lowest: Option<i64>,
}

/// What happened.
#[derive(Clone, Debug)]
pub struct BankReport {
    /// The shards of the accounts.
    pub shards: Vec<ShardId>,
    /// All transfers.
    pub transfers: Vec<Transfer>,
    /// How often a server says that it paid the rent.
    pub rents_told: i64,
    /// How often the store says so.
    pub rents_stored: i64,
    /// What the observer saw.
    pub seen: Seen,
    /// The balances in the end.
    pub balances: BTreeMap<&'static str, i64>,
}

/// Opens the accounts and has clients move money at once.
///
/// # Errors
/// If the cluster does not answer, or the accounts do not lie on four shards.
pub async fn run(client: &Client, names: &Names) -> anyhow::Result<BankReport> {
    let mut accounts = Vec::new();
    for (owner, _) in OPENED {
        accounts.push(names.key(owner, "account")?);
    }
    let shards = check_apart(client, &accounts.iter().collect::<Vec<_>>()).await?;
    open(client, &accounts).await?;
    // Who moves money wakes the servers; when nobody does any more, the channel is closed.
    let (moved, hears) = watch::channel(());
    let (transfers, one, other, seen) = tokio::try_join!(
        everybody_pays(client, names, moved),
        look_after_rent(client, names, hears.clone()),
        look_after_rent(client, names, hears.clone()),
        observe(client, &accounts, hears),
    )?;
    accounts.push(names.key("ulla", "rents-paid")?);
    let rows = look(client, &accounts).await?;
    let mut numbers = Vec::new();
    for row in &rows {
        numbers.push(number(row.as_ref())?);
    }
    let rents_stored = numbers.last().copied().unwrap_or_default();
    let balances = OPENED.into_iter().map(|(owner, _)| owner).zip(numbers).collect();
    Ok(BankReport { shards, transfers, rents_told: one + other, rents_stored, seen, balances })
}

async fn open(client: &Client, accounts: &[Key]) -> anyhow::Result<()> {
    decided(client, |mut txn| async move {
        for (account, (_, balance)) in accounts.iter().zip(OPENED) {
            txn.put(account.clone(), Value::new(balance.to_string())?)?;
        }
        Ok(())
    })
    .await
}

/// Ulla gets her salary while two of her cards pay, and others pay each other.
async fn everybody_pays(
    client: &Client,
    names: &Names,
    moved: watch::Sender<()>,
) -> anyhow::Result<Vec<Transfer>> {
    let pay = |list| transfers(client, names, &moved, list);
    let (salary, card, other_card) = tokio::try_join!(
        pay(&[("hugo", "ulla", 300), ("hugo", "anna", 40)]),
        pay(&[("ulla", "otto", 60), ("anna", "hugo", 170)]),
        pay(&[("ulla", "otto", 60), ("otto", "anna", 20)]),
    )?;
    Ok([salary, card, other_card].concat())
}

async fn transfers(
    client: &Client,
    names: &Names,
    moved: &watch::Sender<()>,
    list: &[(&'static str, &'static str, i64)],
) -> anyhow::Result<Vec<Transfer>> {
    let mut made = Vec::new();
    for (from, to, amount) in list.iter().copied() {
        let done =
            transfer(client, (&names.key(from, "account")?, &names.key(to, "account")?), amount).await?;
        made.push(Transfer { from, to, amount, done });
        moved.send_replace(());
    }
    Ok(made)
}

/// Moves money from the first account to the second; whether there was enough.
async fn transfer(client: &Client, (from, to): (&Key, &Key), amount: i64) -> anyhow::Result<bool> {
    decided(client, |mut txn| async move {
        if number(txn.get(from.clone()).await?.as_ref())? < amount {
            return Ok(false);
        }
        txn.incr(from.clone(), -amount).await?;
        txn.incr(to.clone(), amount).await?;
        Ok(true)
    })
    .await
}

/// One of the servers that look after the standing order; how often it has paid the rent.
async fn look_after_rent(
    client: &Client,
    names: &Names,
    mut hears: watch::Receiver<()>,
) -> anyhow::Result<i64> {
    let mut paid = i64::from(pay_rent(client, names).await?);
    // A change that was not heard of comes before the end of the channel.
    while hears.changed().await.is_ok() {
        paid += i64::from(pay_rent(client, names).await?);
    }
    Ok(paid)
}

/// Pays the rent if that is due and there is enough; whether it did.
async fn pay_rent(client: &Client, names: &Names) -> anyhow::Result<bool> {
    let (ulla, anna) = (&names.key("ulla", "account")?, &names.key("anna", "account")?);
    let paid = &names.key("ulla", "rents-paid")?;
    decided(client, |mut txn| async move {
        let is_paid = number(txn.get(paid.clone()).await?.as_ref())? > 0;
        if is_paid || number(txn.get(ulla.clone()).await?.as_ref())? < RENT {
            return Ok(false);
        }
        txn.incr(ulla.clone(), -RENT).await?;
        txn.incr(anna.clone(), RENT).await?;
        txn.incr(paid.clone(), 1).await?;
        Ok(true)
    })
    .await
}

/// Looks at all accounts, again and again, until nobody moves money any more.
async fn observe(client: &Client, accounts: &[Key], hears: watch::Receiver<()>) -> anyhow::Result<Seen> {
    let mut seen = Seen::default();
    while hears.has_changed().is_ok() {
        let mut total = 0;
        for row in look(client, accounts).await? {
            let balance = number(row.as_ref())?;
            total += balance;
            seen.lowest = Some(seen.lowest.map_or(balance, |lowest| lowest.min(balance)));
        }
        seen.totals.insert(total);
        seen.looks += 1;
    }
    Ok(seen)
}

impl Report for BankReport {
    fn check(&self) -> anyhow::Result<()> {
        let mut expected = BTreeMap::from(OPENED);
        let rent = Transfer { from: "ulla", to: "anna", amount: RENT, done: true };
        for Transfer { from, to, amount, .. } in self.transfers.iter().chain([&rent]).filter(|made| made.done)
        {
            *expected.entry(from).or_default() -= amount;
            *expected.entry(to).or_default() += amount;
        }
        ensure!((self.rents_told, self.rents_stored) == (1, 1), "the rent was not paid once: {self:?}");
        ensure!(self.balances == expected, "the balances should be {expected:?}: {self:?}");
        ensure!(self.balances.values().all(|balance| *balance >= 0), "below zero: {self:?}");
        let total = OPENED.iter().map(|(_, balance)| balance).sum();
        ensure!(self.seen.totals == BTreeSet::from([total]), "the total changed: {self:?}");
        ensure!(self.seen.lowest.is_some_and(|lowest| lowest >= 0), "below zero: {self:?}");
        Ok(())
    }
}

impl fmt::Display for BankReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the accounts {OPENED:?} lie on {:?}", self.shards)?;
        for Transfer { from, to, amount, done } in &self.transfers {
            writeln!(f, "{from} pays {to} {amount}: {}", if *done { "done" } else { "refused, not enough" })?;
        }
        writeln!(f, "the rent was paid {} time(s)", self.rents_stored)?;
        let Seen { looks, totals, lowest } = &self.seen;
        writeln!(f, "meanwhile, {looks} looks: totals {totals:?}, lowest balance {lowest:?}")?;
        write!(f, "in the end: {:?}", self.balances)
    }
}
