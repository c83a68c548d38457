//! A meta group, a data group, clients, and a network that delivers every message ever sent at any time, any number of
//! times, or never. What must hold whatever happens is checked after every delivery.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::event::Event;
use crate::naive::Naive;
use crate::table::{Replica, entry};
use bytes::Bytes;
use kv_state::gate::{self, Found, RecordedResult, Refusal};
use kv_state::sessions::{self, Dead, SessionAnswer, SessionBatch, SessionCommand};
use kv_state::{Answer, Command, Expect};
use kv_types::{
    ClusterTime, Key, KeyRange, Request, RequestId, RowKey, SessionId, SessionRequest, Space, TimedId, Value,
};

/// How long sessions live without a renewal.
const TTL_MS: u64 = 5_000;

#[derive(Clone, Debug)]
struct Message {
    request: Request,
    command: Command,
    /// Whose it is.
    client: Option<usize>,
}

#[derive(Clone, Debug, Default)]
struct Client {
    nonce: u128,
    session: Option<SessionId>,
    lease_until: ClusterTime,
    next_seq: u64,
    open: BTreeSet<u64>,
}

impl Client {
    fn first_incomplete(&self) -> u64 {
        self.open.first().copied().unwrap_or(self.next_seq)
    }
}

/// What is true of a request, for ever.
#[derive(Clone, Debug, Default)]
struct Fate {
    decided: Option<RecordedResult>,
    settled: bool,
}

pub struct World {
    meta: Replica,
    meta_time: ClusterTime,
    data: Replica,
    data_time: ClusterTime,
    clients: [Client; 3],
    nonces: u128,
    messages: Vec<Message>,
    answers: Vec<Dead>,
    /// The latest end of a lease that each session ever had, and whether it was named dead.
    leases: BTreeMap<SessionId, (ClusterTime, bool)>,
    fates: BTreeMap<RequestId, Fate>,
    log: Vec<(Bytes, kv_state::StateHash)>,
    /// The kinds of answers that there were.
    pub reached: BTreeSet<&'static str>,
    /// What the gate should answer; not asked when it is known to be wrong.
    naive: Option<Naive>,
}

impl World {
    pub fn new(predicted: bool) -> Self {
        Self {
            meta: Replica::default(),
            meta_time: ms(0),
            data: Replica::default(),
            data_time: ms(2_000_000),
            clients: Default::default(),
            nonces: 0,
            messages: Vec::new(),
            answers: Vec::new(),
            leases: BTreeMap::new(),
            fates: BTreeMap::new(),
            log: Vec::new(),
            reached: BTreeSet::new(),
            naive: predicted.then(Naive::default),
        }
    }

    #[cfg(feature = "planted")]
    pub fn plant(&mut self, bug: kv_state::Planted) {
        self.meta.table.planted = Some(bug);
        self.data.table.planted = Some(bug);
    }

    /// Lets everything happen, then ends all sessions, forgets all there is, and delivers everything once more.
    pub fn run(&mut self, events: &[Event]) -> Result<(), String> {
        // The first reply tells clients the time.
        self.step(&Event::Tick)?;
        for event in events {
            self.step(event)?;
        }
        self.end()?;
        self.check_replay();
        Ok(())
    }

    fn step(&mut self, event: &Event) -> Result<(), String> {
        match event {
            Event::Open { client } => self.open(*client),
            Event::Send { client, kind } => self.send(*client, *kind),
            Event::SendTimed { kind, off } => {
                let now = gate::cluster_time(&self.data.table).unwrap();
                let id = TimedId::new(moved(now, i64::from(*off) * 1000), self.messages.len() as u128);
                let request = Request::Timed(id);
                self.messages.push(Message { request, command: command(request.id(), *kind), client: None });
            }
            Event::Resend { message } => self.send_again(*message, |message| message.command.clone(), true),
            Event::Reuse { message } => {
                let other = Command::Put { key: Key::new("reused").unwrap(), value: Value::default() };
                self.send_again(*message, |_| other.clone(), true);
            }
            Event::Settle { message, stranger } => {
                self.send_again(*message, |_| Command::Settle, !*stranger);
            }
            Event::Deliver { message } => return self.deliver(*message),
            Event::DeliverLate { back } => {
                return self.deliver(self.messages.len().saturating_sub(1 + *back));
            }
            Event::GiveUp { client } => {
                self.clients[*client].open.pop_first();
            }
            Event::Skip { client, numbers } => self.clients[*client].next_seq += numbers,
            Event::Trim => self.trim(),
            Event::Renew { clients } => self.renew(clients),
            Event::RenewLate { session } => {
                let ids: Vec<_> = self.leases.keys().copied().collect();
                if !ids.is_empty() {
                    let sessions = SessionBatch::new([ids[session % ids.len()]]).unwrap();
                    self.meta_command(SessionCommand::Renew { sessions }).unwrap();
                }
            }
            Event::Close { client } => {
                if let Some(session) = self.clients[*client].session.take() {
                    assert_eq!(
                        self.meta_command(SessionCommand::Close { session }),
                        Ok(SessionAnswer::Closed)
                    );
                    self.clients[*client] = Client::default();
                }
            }
            Event::Expire => self.expire(),
            Event::AskDead => return self.ask_dead(),
            Event::Collect { answer } => {
                if !self.answers.is_empty() {
                    self.collect(self.answers[answer % self.answers.len()].clone());
                }
            }
            Event::MetaTime { by_ms } => self.meta_time = moved(self.meta_time, i64::from(*by_ms)),
            Event::DataTime { by_ms } => self.data_time = moved(self.data_time, i64::from(*by_ms)),
            Event::Tick => {
                self.data_entry(Command::Tick, None);
            }
        }
        Ok(())
    }

    fn open(&mut self, client: usize) {
        if self.clients[client].session.is_none() {
            self.nonces += 1;
            self.clients[client] = Client { nonce: self.nonces, next_seq: 1, ..Client::default() };
        }
        let nonce = self.clients[client].nonce;
        let open = SessionCommand::Open { nonce, ttl: Duration::from_millis(TTL_MS) };
        match self.meta_command(open) {
            Ok(SessionAnswer::Opened { session, lease_until }) => {
                let client = &mut self.clients[client];
                // An expired session's nonce opens another one; it begins anew.
                if client.session != Some(session) {
                    *client = Client { nonce, session: Some(session), next_seq: 1, ..Client::default() };
                }
                client.lease_until = lease_until;
            }
            other => panic!("{other:?}"),
        }
    }

    fn send(&mut self, of: usize, kind: u8) {
        let client = &mut self.clients[of];
        let Some(session) = client.session else { return };
        let seq = client.next_seq;
        client.next_seq += 1;
        client.open.insert(seq);
        let request = Request::Session(SessionRequest {
            session,
            seq,
            first_incomplete: client.first_incomplete(),
            lease_until: client.lease_until,
        });
        let command = command(request.id(), kind);
        self.messages.push(Message { request, command, client: Some(of) });
    }

    /// The same id again: with what its client knows now, if that is who sends it.
    fn send_again(&mut self, message: usize, command: impl Fn(&Message) -> Command, by_client: bool) {
        if self.messages.is_empty() {
            return;
        }
        let mut again = self.messages[message % self.messages.len()].clone();
        again.command = command(&again);
        if let Request::Session(request) = &mut again.request {
            match again.client.map(|client| &self.clients[client]) {
                Some(client) if by_client && client.session == Some(request.session) => {
                    // Nobody asks again for what he has given up or got.
                    if !client.open.contains(&request.seq) {
                        return;
                    }
                    request.first_incomplete = client.first_incomplete();
                    request.lease_until = client.lease_until;
                }
                Some(_) | None => request.first_incomplete = 0,
            }
        }
        self.messages.push(again);
    }

    fn renew(&mut self, clients: &BTreeSet<usize>) {
        let ids = clients.iter().filter_map(|client| self.clients[*client].session);
        let renew = SessionCommand::Renew { sessions: SessionBatch::new(ids).unwrap() };
        let Ok(SessionAnswer::Renewed(leases)) = self.meta_command(renew) else {
            panic!("renewals are answered")
        };
        for (session, lease) in leases {
            let client = self.clients.iter_mut().find(|client| client.session == Some(session)).unwrap();
            match lease {
                Some(lease) => client.lease_until = lease,
                None => *client = Client::default(),
            }
        }
    }

    fn expire(&mut self) {
        let all = sessions::list(&self.meta.table, None, 1000).unwrap();
        let sessions = SessionBatch::new(all.iter().map(|(id, _)| *id)).unwrap();
        self.meta_command(SessionCommand::Expire { sessions }).unwrap();
    }

    fn trim(&mut self) {
        let seen = gate::sessions_seen(&self.data.table, None, 1000).unwrap();
        let sessions = SessionBatch::new(seen).unwrap();
        let answer = self.data_entry(Command::TrimSessions { sessions }, None);
        assert!(matches!(answer, Answer::SessionsCollected { left, .. } if left.is_empty()));
    }

    fn ask_dead(&mut self) -> Result<(), String> {
        let seen = gate::sessions_seen(&self.data.table, None, 1000).unwrap();
        let seen = SessionBatch::new(seen).unwrap();
        let dead = sessions::dead(&self.meta.table, self.meta.index, &seen).unwrap();
        for session in dead.sessions.iter() {
            let (lease, named) = self.leases.get_mut(&session).unwrap();
            *named = true;
            // Known from the rows of the meta group alone, so a prediction: what it leads to is judged below.
            if self.naive.is_some() && dead.until < *lease {
                return Err(format!("{session} is dead at {} and lives until {lease}", dead.until));
            }
        }
        self.answers.push(dead);
        Ok(())
    }

    /// Leases never shorten, and none is issued for the dead.
    fn issued(&mut self, session: SessionId, until: ClusterTime) {
        let (lease, named) = self.leases.entry(session).or_default();
        assert!(!*named, "{session} was named dead and lives until {until}");
        assert!(*lease <= until, "the lease of {session} shortens from {lease} to {until}");
        *lease = until;
    }

    fn collect(&mut self, Dead { sessions, until }: Dead) {
        if let Some(naive) = &mut self.naive {
            naive.collect(&sessions, until);
        }
        let answer = self.data_entry(Command::GcSessions { sessions, until }, None);
        assert!(matches!(answer, Answer::SessionsCollected { left, .. } if left.is_empty()));
    }

    fn deliver(&mut self, message: usize) -> Result<(), String> {
        if self.messages.is_empty() {
            return Ok(());
        }
        let Message { request, command, client } = self.messages[message % self.messages.len()].clone();
        let id = request.id();
        let answer = self.data_entry(command.clone(), Some(request));
        if let Some(naive) = &mut self.naive {
            naive.check(&request, &command, &answer)?;
        }
        self.reached.insert(kind_of(&answer));
        self.judge(id, &command, &answer)?;
        if !matches!(answer, Answer::Refused(_))
            && let (Some(client), RequestId::Session { session, seq }) = (client, id)
            && self.clients[client].session == Some(session)
        {
            self.clients[client].open.remove(&seq);
        }
        self.look(&request)
    }

    /// What must hold of an answer whatever happened before.
    fn judge(&mut self, id: RequestId, command: &Command, answer: &Answer) -> Result<(), String> {
        let fate = self.fates.entry(id).or_default();
        match answer {
            Answer::Refused(_) => {}
            Answer::Settled if fate.decided.is_some() => {
                return Err(format!("{id} is settled though applied"));
            }
            Answer::Settled => fate.settled = true,
            Answer::Replayed(known) => {
                if fate.decided != Some(known.result) {
                    return Err(format!(
                        "{id} came to {:?} and is answered {:?}",
                        fate.decided, known.result
                    ));
                }
            }
            decided => {
                if fate.decided.is_some() {
                    return Err(format!("{id} is applied twice"));
                }
                if fate.settled {
                    return Err(format!("{id} is applied though settled"));
                }
                fate.decided = RecordedResult::of(decided);
            }
        }
        // The rows say so, too: each increment has a key of its own.
        if let Command::Increment { key, .. } = command
            && let Some(row) = self.data.table.rows.get(&RowKey::user(key))
            && row.value != "1"
        {
            return Err(format!("{id} is applied twice: {:?}", row.value));
        }
        Ok(())
    }

    /// What a look may say.
    fn look(&self, request: &Request) -> Result<(), String> {
        let fate = self.fates.get(&request.id()).cloned().unwrap_or_default();
        match (gate::outcome(&self.data.table, request).unwrap(), fate) {
            (Found::NoLongerKnown, _) => Ok(()),
            (Found::NotSeen, Fate { decided: None, settled: false }) => Ok(()),
            (Found::Settled, Fate { settled: true, .. }) => Ok(()),
            (Found::Decided(known), Fate { decided: Some(result), .. }) if known.result == result => Ok(()),
            (found, fate) => Err(format!("{} is {fate:?} and looks {found:?}", request.id())),
        }
    }

    fn end(&mut self) -> Result<(), String> {
        for client in 0..self.clients.len() {
            self.step(&Event::Close { client })?;
        }
        self.ask_dead()?;
        self.collect(self.answers.last().unwrap().clone());
        self.deliver_all()?;
        self.meta_time = self.meta_time.after(Duration::from_secs(100));
        self.expire();
        self.ask_dead()?;
        self.collect(self.answers.last().unwrap().clone());
        // Past the retention, and past the ids that were drawn ahead of time.
        self.data_time = self.data_time.after(Duration::from_secs(10_000));
        while matches!(self.data_entry(Command::Tick, None), Answer::Ticked { more: true }) {
            assert!(gate::timed_are_due(&self.data.table).unwrap());
        }
        assert!(!gate::timed_are_due(&self.data.table).unwrap());
        for group in [&self.meta, &self.data] {
            let system = group.table.rows.keys().filter(|key| key.space() == Space::System);
            let left: Vec<_> = system.filter(|key| key.key() != "gate").collect();
            if !left.is_empty() {
                return Err(format!("all sessions are over and these rows are left: {left:?}"));
            }
        }
        self.deliver_all()
    }

    fn deliver_all(&mut self) -> Result<(), String> {
        (0..self.messages.len()).try_for_each(|message| self.deliver(message))
    }

    /// The same entries give the same states.
    fn check_replay(&self) {
        let mut other = Replica::default();
        other.table.clone_planted(&self.data.table);
        for (entry, hash) in &self.log {
            other.apply(entry).unwrap();
            assert_eq!(other.carried.hash(), *hash);
        }
        assert_eq!(other.table.rows, self.data.table.rows);
        other.check_hash();
    }

    fn meta_command(
        &mut self,
        command: SessionCommand,
    ) -> Result<SessionAnswer, kv_state::sessions::SessionRefusal> {
        let entry = entry(Command::Session(command), None, Some(self.meta_time));
        let Answer::Session(answer) = self.meta.apply(&entry).unwrap().answer else {
            panic!("sessions are answered")
        };
        match &answer {
            Ok(SessionAnswer::Opened { session, lease_until }) => self.issued(*session, *lease_until),
            Ok(SessionAnswer::Renewed(leases)) => {
                for (session, lease) in leases {
                    lease.iter().for_each(|until| self.issued(*session, *until));
                }
            }
            Ok(SessionAnswer::Closed | SessionAnswer::Expired(_)) | Err(_) => {}
        }
        answer
    }

    fn data_entry(&mut self, command: Command, request: Option<Request>) -> Answer {
        if let Some(naive) = &mut self.naive {
            naive.advance(self.data_time);
        }
        let before = gate::cluster_time(&self.data.table).unwrap();
        let entry = entry(command, request, Some(self.data_time));
        let applied = self.data.apply(&entry).unwrap();
        let time = gate::cluster_time(&self.data.table).unwrap();
        assert_eq!((applied.time, time), (Some(time), before.max(self.data_time)), "time never runs back");
        if let Answer::Refused(_) | Answer::Replayed(_) = applied.answer {
            assert!(applied.changes.iter().all(|change| change.key.key() == "gate"), "{applied:?}");
        }
        self.log.push((entry, self.data.carried.hash()));
        applied.answer
    }
}

/// Of every kind of command; the last has a key of its own, so that it shows how often it was applied.
fn command(id: RequestId, kind: u8) -> Command {
    let key = |text: &str| Key::new(text.to_owned()).unwrap();
    let value = || Value::new(id.to_string()).unwrap();
    match kind {
        0 => Command::Put { key: key("a"), value: value() },
        1 => Command::Delete { key: key("a") },
        2 => Command::CompareAndSet { key: key("a"), expect: Expect::Absent, value: value() },
        3 => Command::DeleteRange { range: KeyRange::new("a", Some("c".into())).unwrap() },
        4 => Command::Increment { key: key(&format!("n/{id}")), delta: 1 },
        _ => Command::Increment { key: key(&format!("m/{id}")), delta: 1 },
    }
}

/// Every kind of answer to a request that a client within its window can get.
pub const KINDS: [&str; 16] = [
    "compare failed",
    "deleted",
    "expired",
    "incremented",
    "mismatch",
    "replayed",
    "replayed compare failed",
    "replayed deleted",
    "replayed incremented",
    "refused as settled",
    "settled",
    "stale",
    "too early",
    "too old",
    "window",
    "written",
];

fn kind_of(answer: &Answer) -> &'static str {
    match answer {
        Answer::Written => "written",
        Answer::Deleted { .. } => "deleted",
        Answer::CompareFailed { .. } => "compare failed",
        Answer::Incremented { .. } => "incremented",
        Answer::Settled => "settled",
        Answer::Replayed(known) => match known.result {
            RecordedResult::CompareFailed { .. } => "replayed compare failed",
            RecordedResult::Deleted { .. } => "replayed deleted",
            RecordedResult::Incremented { .. } => "replayed incremented",
            RecordedResult::Written | RecordedResult::IncrementFailed(_) => "replayed",
            RecordedResult::TxnCommitted | RecordedResult::TxnAborted => {
                panic!("no transaction is under way")
            }
        },
        Answer::Refused(refusal) => match refusal {
            Refusal::Mismatch => "mismatch",
            Refusal::SessionExpired { .. } => "expired",
            Refusal::Stale { .. } => "stale",
            Refusal::WindowOverflow { .. } => "window",
            Refusal::TooOld { .. } => "too old",
            Refusal::TooEarly { .. } => "too early",
            Refusal::Settled => "refused as settled",
            Refusal::Locked { .. } => panic!("no transaction is under way"),
        },
        other => panic!("{other:?} is no answer to a request"),
    }
}

pub fn ms(ms: u64) -> ClusterTime {
    ClusterTime::from_ms(ms).unwrap()
}

fn moved(time: ClusterTime, by_ms: i64) -> ClusterTime {
    ms(time.ms().saturating_add_signed(by_ms))
}
