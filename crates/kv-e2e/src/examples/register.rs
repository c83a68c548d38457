//! A unique user name.
//!
//! Two people ask for the name `ada` at the same moment. Users are rows `user/ID`; that a name is given once is what the
//! rows `name/NAME` are for, of which there can be only one a name:
//!
//! ```text
//! name/ada -> 17        one shard
//! user/17  -> ada       another shard
//! ```
//!
//! The rule that binds them: there is a name row for each user row, and it names that user. A crash between two writes
//! would break it, either way around: a name that belongs to nobody and can never be had, or two users of one name. So both
//! rows are written in one transaction, and only if the name row is *absent*.
//!
//! That a key is absent is something that was read like any other: whoever commits second has read an absence that is none
//! any more, and is refused. It looks again, finds who was faster, and can say so. Nobody has to lock anything first, and
//! nobody has to ask a registrar.
//!
//! The transaction is a comparison with two branches, so [`Client::compare`] does. Its answer to the loser is true, too: *else*
//! is committed like *then*.
//!
//! **An answer that is lost.** If the connection breaks during a commit, the name may have been given or not. Whoever
//! just tried again could be told *taken*, by himself. Here the row says whose the name is, so that the second try
//! recognises the first. But it must not begin before the first has ended: [`took_effect`] sees to that.

use std::fmt;

use anyhow::{Context as _, bail, ensure};
use kv_client::{Client, Compare, Expect, TxnOp};
use kv_types::{ShardId, Value};

use super::{Names, Report, TRIES_MAX, check_apart, look, text, took_effect};

/// What both want.
const NAME: &str = "ada";

/// Who wants it.
const USERS: [&str; 2] = ["17", "18"];

/// What a user is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The name is his.
    Yours,
    /// It is somebody else's.
    Taken {
        /// Whose.
        by: String,
    },
}

/// What happened.
#[derive(Clone, Debug)]
pub struct RegisterReport {
    /// The shards of the name and of the users.
    pub shards: Vec<ShardId>,
    /// What each user was told.
    pub told: Vec<(&'static str, Answer)>,
    /// Whose the name is in the end.
    pub holder: Option<String>,
    /// The users there are in the end, each with his name.
    pub users: Vec<(&'static str, String)>,
}

/// Has two users register one name at once.
///
/// # Errors
/// If the cluster does not answer, or all keys lie on one shard.
pub async fn run(client: &Client, names: &Names) -> anyhow::Result<RegisterReport> {
    let [first, second] = USERS;
    let (name, users) = (names.key("name", NAME)?, [names.key("user", first)?, names.key("user", second)?]);
    let [first_row, second_row] = users;
    let shards = check_apart(client, &[&name, &first_row]).await?;
    let (of_first, of_second) =
        tokio::try_join!(register(client, names, first), register(client, names, second))?;
    let rows = look(client, &[name, first_row, second_row]).await?;
    let mut values = rows.iter().map(|row| row.as_ref().map(|row| text(&row.value)).transpose());
    let holder = values.next().transpose()?.flatten();
    let mut found = Vec::new();
    for (user, value) in USERS.into_iter().zip(values) {
        found.extend(value?.map(|name| (user, name)));
    }
    Ok(RegisterReport { shards, told: vec![(first, of_first), (second, of_second)], holder, users: found })
}

async fn register(client: &Client, names: &Names, user: &'static str) -> anyhow::Result<Answer> {
    let (name, row) = (names.key("name", NAME)?, names.key("user", user)?);
    for _ in 0..TRIES_MAX {
        let claim = Compare::new()
            .expect(name.clone(), Expect::Absent)
            .then(TxnOp::Put(name.clone(), Value::new(user)?))
            .then(TxnOp::Put(row.clone(), Value::new(NAME)?))
            .or_else(TxnOp::Get(name.clone()));
        match client.compare(claim).await {
            Ok(compared) if compared.held => return Ok(Answer::Yours),
            Ok(compared) => {
                let found = compared.found.into_iter().flatten().next();
                let by = text(&found.context("it is not absent, so it is there")?.value)?;
                return Ok(if by == user { Answer::Yours } else { Answer::Taken { by } });
            }
            // Whether it did or not: now it has ended, and the next look at the name says whose it is.
            Err(error) => took_effect(client, error.into()).await?,
        };
    }
    bail!("no answer to {TRIES_MAX} claims")
}

impl Report for RegisterReport {
    fn check(&self) -> anyhow::Result<()> {
        let winners: Vec<_> = self.told.iter().filter(|(_, answer)| *answer == Answer::Yours).collect();
        let [(winner, _)] = winners.as_slice() else { bail!("not one winner: {self:?}") };
        ensure!(self.holder.as_deref() == Some(*winner), "the name is not the winner's: {self:?}");
        ensure!(self.users == [(*winner, NAME.to_owned())], "not one user of the name: {self:?}");
        let rightly = |(user, answer): &(&str, Answer)| {
            user == winner || *answer == Answer::Taken { by: (*winner).to_owned() }
        };
        ensure!(self.told.iter().all(rightly), "the loser was told something else: {self:?}");
        Ok(())
    }
}

impl fmt::Display for RegisterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "name row and user rows lie on {:?}", self.shards)?;
        for (user, answer) in &self.told {
            match answer {
                Answer::Yours => writeln!(f, "user {user} was told: `{NAME}` is yours")?,
                Answer::Taken { by } => writeln!(f, "user {user} was told: `{NAME}` is taken, by user {by}")?,
            }
        }
        write!(f, "in the end `{NAME}` belongs to {:?}, and the users are {:?}", self.holder, self.users)
    }
}
