//! A bank and a register of names, while the leaders of their shards are killed and come back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use kv_check::{Budget, Datum, Function, History, ModelKind, Operation, Verdict, check};
use kv_client::{Client, Compare, Error, Expect, TxnError, TxnOp};
use kv_e2e::examples::{decided, look, number, text, took_effect};
use kv_e2e::{Cluster, Options, settings, wait};
use kv_types::{Key, ShardId, Value};
use rand::RngExt as _;
use tokio::task::JoinSet;

use super::transactions::{nothing_left, patient};

const PATIENCE: Duration = Duration::from_secs(60);

/// After the last restart nothing may be left of any transaction after so long.
const CLEAN_MAX: Duration = Duration::from_secs(10);

/// How long leaders are killed, in seconds.
const SECONDS: u64 = 10;

/// Of accounts, clients and names: so many, one after the other on the four shards.
const MANY: usize = 8;

/// What each account holds at first, and the instalment that is paid automatically.
const EACH: i64 = 100;
const INSTALMENT: i64 = 3;

/// A search for an order that explains a history takes fewer.
const STEPS_MAX: u64 = 100_000_000;

/// What was done, for a checker, and what stops the clients.
#[derive(Debug)]
struct Book {
    began: Instant,
    done: Mutex<Vec<Operation>>,
    transactions: AtomicUsize,
    stop: AtomicBool,
}

impl Book {
    fn new() -> Arc<Self> {
        let (done, transactions, stop) = (Mutex::default(), AtomicUsize::new(0), AtomicBool::new(false));
        Arc::new(Self { began: Instant::now(), done, transactions, stop })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Notes what a transaction that has just ended found in its keys, and what it wrote.
    fn committed(
        &self,
        process: i64,
        call: u64,
        keys: impl IntoIterator<Item = (Key, Datum, Option<Datum>)>,
    ) {
        let ret = self.now();
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, found, written) in keys {
            let operation = match written {
                None => Operation::open(process, Function::Read, Datum::Nil, call).returned(ret, found),
                Some(new) => {
                    let input = Datum::list([found, new]);
                    Operation::open(process, Function::Cas, input, call).returned(ret, Datum::Nil)
                }
            };
            done.push(operation.on(Datum::text(&key.to_string())));
        }
        self.transactions.fetch_add(1, Ordering::Relaxed);
    }

    /// Each key is a register that was read, and compared and set.
    fn check(&self) -> anyhow::Result<()> {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let report =
            check(&History::from_operations(done)?, ModelKind::CasRegister, &Budget::steps(STEPS_MAX))?;
        ensure!(report.verdict == Verdict::Valid, "{report:#?}");
        eprintln!(
            "{} operations on {} keys are linearisable ({} steps)",
            report.operations, report.keys, report.steps
        );
        Ok(())
    }

    /// Kills the leaders of the shards, one after the other, and starts them again; then stops the clients.
    async fn kill_leaders(&self, cluster: &mut Cluster) -> anyhow::Result<()> {
        let seconds = Duration::from_secs(settings::number("QUORATE_KILL_SECONDS", SECONDS)?);
        let (began, mut kills) = (Instant::now(), 0);
        for shard in (1..=4).cycle() {
            let victim = cluster.led().await?.get(&ShardId::new(shard)).context("the shard is led")?.leader;
            cluster.kill(&[victim]).await?;
            kills += 1;
            cluster.led().await?;
            cluster.start_nodes(&[victim]).await?;
            let before = self.transactions.load(Ordering::Relaxed);
            let worked = || async {
                let more = self.transactions.load(Ordering::Relaxed) - before;
                if more >= 20 { Ok(()) } else { Err(format!("{more} transactions")) }
            };
            wait::until("transactions between kills", PATIENCE, worked).await?;
            if began.elapsed() >= seconds && kills > 3 {
                break;
            }
        }
        self.stop.store(true, Ordering::Relaxed);
        let transactions = self.transactions.load(Ordering::Relaxed);
        eprintln!("{kills} kills, {transactions} transactions in {:?}", began.elapsed());
        Ok(())
    }
}

async fn all_end(mut clients: JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    while let Some(ended) = clients.join_next().await {
        // With all that is known of it, which its text is not.
        ended?.map_err(|cause| match (cause.downcast_ref::<TxnError>(), cause.downcast_ref::<Error>()) {
            (Some(error), _) => anyhow::anyhow!("{error:?}"),
            (None, Some(error)) => anyhow::anyhow!("{error:?}"),
            (None, None) => cause,
        })?;
    }
    Ok(())
}

/// A row on one of the four shards.
fn row(kind: &str, at: usize) -> anyhow::Result<Key> {
    let shard = ["a", "h", "o", "u"].get(at % 4).copied().unwrap_or("a");
    Ok(Key::new(format!("{shard}/{kind}/{at}"))?)
}

fn accounts() -> anyhow::Result<Vec<Key>> {
    (0..MANY).map(|at| row("account", at)).collect()
}

/// Moves money if there is enough, and counts that in a further row if there is one.
async fn pay(
    (client, book, process): (&Client, &Book, i64),
    (from, to): (&Key, &Key),
    amount: i64,
    counter: Option<&Key>,
) -> anyhow::Result<bool> {
    let call = book.now();
    let (found, counted) = decided(client, |mut txn| async move {
        let before = number(txn.get(from.clone()).await?.as_ref())?;
        if before < amount {
            return Ok(((before, None), None));
        }
        let there = txn.incr(to.clone(), amount).await? - amount;
        txn.incr(from.clone(), -amount).await?;
        let counted = match counter {
            Some(counter) => Some(txn.incr(counter.clone(), 1).await? - 1),
            None => None,
        };
        Ok(((before, Some(there)), counted))
    })
    .await?;
    let moved = |before: i64, by: i64| (Datum::from(before), Some(Datum::from(before + by)));
    let keys: Vec<(Key, Datum, Option<Datum>)> = match found {
        (before, None) => vec![(from.clone(), before.into(), None)],
        (before, Some(there)) => {
            let [(of, less), (ot, more)] = [moved(before, -amount), moved(there, amount)];
            let mut keys = vec![(from.clone(), of, less), (to.clone(), ot, more)];
            if let (Some(counter), Some(before)) = (counter, counted) {
                let found = if before == 0 { Datum::Nil } else { before.into() };
                keys.push((counter.clone(), found, Some((before + 1).into())));
            }
            keys
        }
    };
    book.committed(process, call, keys);
    Ok(matches!(found, (_, Some(_))))
}

/// A client that moves money from anybody to anybody.
async fn moves(client: Client, book: Arc<Book>, process: i64) -> anyhow::Result<()> {
    let accounts = accounts()?;
    while book.goes_on() {
        let (from, by, amount) = {
            let mut dice = rand::rng();
            (dice.random_range(0..MANY), dice.random_range(1..MANY), dice.random_range(1..=EACH))
        };
        let (from, to) = (accounts.get(from), accounts.get((from + by) % MANY));
        let between = (from.context("an account")?, to.context("an account")?);
        pay((&client, &book, process), between, amount, None).await?;
    }
    Ok(())
}

/// One of two servers that pay the same instalments automatically, whenever there is enough; how often it has.
async fn pays_instalments(
    client: Client,
    book: Arc<Book>,
    process: i64,
    told: Arc<AtomicUsize>,
) -> anyhow::Result<()> {
    let (from, to, counter) = (row("account", 0)?, row("account", 1)?, row("instalments", 2)?);
    while book.goes_on() {
        if pay((&client, &book, process), (&from, &to), INSTALMENT, Some(&counter)).await? {
            told.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Looks at all accounts at one instant.
async fn observes(client: Client, book: Arc<Book>, process: i64) -> anyhow::Result<()> {
    let accounts = accounts()?;
    while book.goes_on() {
        balances((&client, &book, process), &accounts).await?;
    }
    Ok(())
}

/// All balances, of which the total is what it was, and none is below zero.
async fn balances(
    (client, book, process): (&Client, &Book, i64),
    accounts: &[Key],
) -> anyhow::Result<Vec<i64>> {
    let call = book.now();
    let rows = look(client, accounts).await?;
    let found = rows.iter().map(|row| number(row.as_ref())).collect::<anyhow::Result<Vec<i64>>>()?;
    book.committed(
        process,
        call,
        accounts.iter().cloned().zip(&found).map(|(key, found)| (key, (*found).into(), None)),
    );
    let total: i64 = found.iter().sum();
    ensure!(total == EACH * i64::try_from(MANY)?, "the total is {total}: {found:?}");
    ensure!(found.iter().all(|balance| *balance >= 0), "below zero: {found:?}");
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bank_keeps_its_money_while_leaders_are_killed() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    cluster.led().await?;
    let book = Book::new();
    let client = Client::new(patient(&cluster))?;
    let (accounts, call) = (accounts()?, book.now());
    let mut txn = client.begin();
    for account in &accounts {
        txn.put(account.clone(), Value::new(EACH.to_string())?)?;
    }
    txn.commit().await?;
    book.committed(0, call, accounts.iter().map(|key| (key.clone(), Datum::Nil, Some(EACH.into()))));

    let mut clients = JoinSet::new();
    let told = Arc::new(AtomicUsize::new(0));
    for process in 1..=i64::try_from(MANY)? {
        clients.spawn(moves(Client::new(patient(&cluster))?, Arc::clone(&book), process));
    }
    for process in [101, 102] {
        let client = Client::new(patient(&cluster))?;
        clients.spawn(pays_instalments(client, Arc::clone(&book), process, Arc::clone(&told)));
    }
    clients.spawn(observes(Client::new(patient(&cluster))?, Arc::clone(&book), 103));
    book.kill_leaders(&mut cluster).await?;
    all_end(clients).await?;
    nothing_left(&cluster, CLEAN_MAX).await?;
    let found = balances((&client, &book, 0), &accounts).await?;
    let paid = number(look(&client, &[row("instalments", 2)?]).await?.first().and_then(Option::as_ref))?;
    let told = i64::try_from(told.load(Ordering::Relaxed))?;
    eprintln!("{found:?} in the end; {paid} instalments are stored");
    ensure!(paid == told && paid > 0, "{paid} instalments are stored, {told} were paid");
    book.check()?;
    cluster.agree().await?;
    cluster.finish().await
}

/// How often a claim is made anew of which nobody knows how it ended.
const CLAIMS_MAX: usize = 10;

/// Whose a name is that a user wants to have.
async fn claim(client: &Client, (name, row): (&Key, &Key), user: &str) -> anyhow::Result<String> {
    for _ in 0..CLAIMS_MAX {
        let claim = Compare::new()
            .expect(name.clone(), Expect::Absent)
            .then(TxnOp::Put(name.clone(), Value::new(user.to_owned())?))
            .then(TxnOp::Put(row.clone(), Value::new(name.to_string())?))
            .or_else(TxnOp::Get(name.clone()));
        match client.compare(claim).await {
            Ok(compared) if compared.held => return Ok(user.to_owned()),
            Ok(compared) => {
                let found = compared.found.into_iter().flatten().next();
                return text(&found.context("it is not absent, so it is there")?.value);
            }
            // Now it has ended, one way or the other, and the next claim says which.
            Err(error) => took_effect(client, error.into()).await?,
        };
    }
    bail!("no answer to {CLAIMS_MAX} claims")
}

/// Who was told that a name is his: names with those users.
type Told = Arc<Mutex<BTreeMap<Key, Vec<String>>>>;

/// Two clients that claim the same names at once, one after the other.
async fn claim_names(clients: [Client; 2], book: Arc<Book>, pair: usize, told: Told) -> anyhow::Result<()> {
    for nth in 0.. {
        if !book.goes_on() {
            break;
        }
        // The rows of one claim lie on different shards.
        let name = row(&format!("name/{nth}"), pair)?;
        let one = async |client: &Client, at: usize| {
            let user = format!("{pair}-{at}");
            let own = row(&format!("user/{user}/{nth}"), pair + 1 + at)?;
            let call = book.now();
            let holder = claim(client, (&name, &own), &user).await?;
            let process = i64::try_from(2 * pair + at)?;
            if holder == user {
                let won = [(name.clone(), Datum::Nil, Some(Datum::text(&user)))];
                book.committed(process, call, won);
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                told.entry(name.clone()).or_default().push(user);
            } else {
                book.committed(process, call, [(name.clone(), Datum::text(&holder), None)]);
            }
            anyhow::Ok(())
        };
        let [first, second] = &clients;
        tokio::try_join!(one(first, 0), one(second, 1))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_given_once_while_leaders_are_killed() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    cluster.led().await?;
    let (book, told) = (Book::new(), Told::default());
    let mut clients = JoinSet::new();
    for pair in 0..MANY / 2 {
        let both = [Client::new(patient(&cluster))?, Client::new(patient(&cluster))?];
        clients.spawn(claim_names(both, Arc::clone(&book), pair, Arc::clone(&told)));
    }
    book.kill_leaders(&mut cluster).await?;
    all_end(clients).await?;
    nothing_left(&cluster, CLEAN_MAX).await?;
    let told = told.lock().unwrap_or_else(PoisonError::into_inner).clone();
    // What is stored: each name with its holder, and of each holder the row that says so. Nothing else.
    let stored = kv_e2e::ledger::everything(&cluster.client()?).await?;
    let mut expected = BTreeMap::new();
    for (name, users) in &told {
        let [user] = users.as_slice() else { bail!("{name} was given to {users:?}") };
        expected.insert(name.to_string(), user.clone());
    }
    let mut names = BTreeMap::new();
    let mut users = Vec::new();
    for (key, value) in &stored {
        let (key, value) = (std::str::from_utf8(key)?.to_owned(), std::str::from_utf8(value)?.to_owned());
        match key.split('/').nth(1) {
            Some("name") => drop(names.insert(key, value)),
            _ => users.push((key.split('/').nth(2).unwrap_or_default().to_owned(), value)),
        }
    }
    ensure!(names == expected, "stored are {names:?}, told was {expected:?}");
    let mut holders: Vec<(String, String)> = names.into_iter().map(|(name, user)| (user, name)).collect();
    holders.sort();
    users.sort();
    ensure!(users == holders, "the users' rows are {users:?}, the names' {holders:?}");
    eprintln!("{} names were given", holders.len());
    book.check()?;
    cluster.agree().await?;
    cluster.finish().await
}
