//! Three groups, clients that run transactions over them, and a network that delivers every message ever sent at any time,
//! any number of times, or never. Nobody remembers anything but the groups: whoever has seen the answers that a step needs
//! may take it, so a manager that dies and one that takes over are the same.
//!
//! The order of the transactions is that of their decisions. [`Spec`] holds what each key is by that order; everything is
//! held against it.

use std::collections::{BTreeMap, BTreeSet};

use kv_state::gate::{Recorded, RecordedResult, Refusal};
use kv_state::sessions::SessionBatch;
use kv_state::txn::{self, Known, LockedBy, Read, Scan, Transaction, TxnAnswer, TxnCommand, Write};
use kv_state::{Answer, Command};
use kv_types::limits::SESSION_WINDOW;
use kv_types::{
    ClusterTime, Fingerprint, Key, KeyRange, Request, Revision, RowKey, SessionId, SessionRequest, Space,
    TxnId, Value,
};

use crate::table::{Replica, entry};

const GROUPS: usize = 3;
const KEYS_PER_GROUP: usize = 2;
const CLIENTS: usize = 3;

/// Who wrote a key last: the number of a write, or nobody.
type Writer = Option<u64>;

/// What every key is, by the order of decisions, and what it was.
#[derive(Default)]
struct Spec {
    now: usize,
    /// Of each key, the writers in order and since when.
    keys: BTreeMap<Key, Vec<(usize, Writer)>>,
}

impl Spec {
    fn of(&self, key: &Key) -> Writer {
        self.keys.get(key).and_then(|known| known.last()).and_then(|(_, writer)| *writer)
    }

    fn write(&mut self, key: &Key, writer: Writer) {
        self.keys.entry(key.clone()).or_default().push((self.now, writer));
    }

    /// Whether a key was that at some instant from `since` on.
    fn was(&self, key: &Key, since: usize, writer: Writer) -> bool {
        let known = self.keys.get(key).map_or(&[][..], Vec::as_slice);
        let first = known.iter().rposition(|(at, _)| *at < since);
        let before = first.and_then(|at| known[at].1);
        before == writer || known[first.map_or(0, |at| at + 1)..].iter().any(|(_, of)| *of == writer)
    }
}

#[derive(Clone, Debug)]
enum Message {
    /// A step of a client's request, at a group.
    Client {
        request: SessionRequest,
        command: Command,
        group: usize,
    },
    /// A step that passes no gate.
    Internal {
        command: TxnCommand,
        group: usize,
    },
    /// A plain write.
    Put {
        key: Key,
        writer: u64,
    },
    Collect {
        session: SessionId,
        until: ClusterTime,
        group: usize,
    },
}

struct Running {
    txn: Transaction,
    request: SessionRequest,
    writer: u64,
    /// The writers it has read, by key.
    seen: BTreeMap<Key, Writer>,
    yes: BTreeSet<usize>,
    acknowledged: BTreeSet<usize>,
    /// What anybody was told of it.
    committed: bool,
    aborted: bool,
    /// By an entry that decided, not one that repeated it.
    decided: bool,
}

#[derive(Clone)]
struct Reading {
    key: Key,
    since: usize,
    /// What was kept beside whose lock.
    kept: Option<(TxnId, Writer)>,
    /// The manager said *absent*: the lock has to be looked at again.
    absent: bool,
    /// The value, if it was looked at before the lock.
    early: Option<Writer>,
}

struct Client {
    session: SessionId,
    lease_until: ClusterTime,
    next_seq: u64,
    open: BTreeSet<u64>,
}

/// What a party may do wrong that keeps to the shards' rules otherwise: each breaks a duty of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The manager commits before all have said yes.
    CommitsEarly,
    /// The manager forgets a record before all have acknowledged it.
    ForgetsEarly,
    /// A refusal is told as *aborted*.
    RefusalIsTold,
    /// The answer *absent* is told as *aborted*.
    AbsentIsTold,
    /// A lock that is old is taken away without a fence.
    PresumesAbort,
    /// A reader looks at no lock.
    ReaderSkipsLocks,
    /// A reader looks at the value first, then at the lock.
    ValueBeforeLock,
    /// A reader takes *absent* for an answer and does not look at the lock again.
    NoSecondLook,
}

impl Fault {
    pub const ALL: [Self; 8] = [
        Self::CommitsEarly,
        Self::ForgetsEarly,
        Self::RefusalIsTold,
        Self::AbsentIsTold,
        Self::PresumesAbort,
        Self::ReaderSkipsLocks,
        Self::ValueBeforeLock,
        Self::NoSecondLook,
    ];
}

pub struct TxnWorld {
    groups: Vec<Replica>,
    clients: Vec<Client>,
    spec: Spec,
    messages: Vec<Message>,
    txns: BTreeMap<TxnId, Running>,
    readings: Vec<Reading>,
    writers: u64,
    sessions: u64,
    fault: Option<Fault>,
    /// What happened at least once.
    pub reached: BTreeSet<&'static str>,
}

/// Everything that walks are to reach.
pub const REACHED: [&str; 18] = [
    "prepared",
    "conflict",
    "committed",
    "one group",
    "aborted",
    "fenced",
    "fence kept",
    "decided",
    "resolved",
    "resolved together",
    "forgotten",
    "locked",
    "put refused",
    "stale",
    "expired",
    "read past a lock",
    "replayed",
    "late prepare",
];

impl TxnWorld {
    pub fn new() -> Self {
        let client = |n: usize| Client {
            session: SessionId::new(n as u64 + 1),
            lease_until: ms(1_000),
            next_seq: 1,
            open: BTreeSet::new(),
        };
        Self {
            groups: (0..GROUPS).map(|_| Replica::default()).collect(),
            clients: (0..CLIENTS).map(client).collect(),
            spec: Spec::default(),
            messages: Vec::new(),
            txns: BTreeMap::new(),
            readings: Vec::new(),
            writers: 0,
            sessions: CLIENTS as u64,
            fault: None,
            reached: BTreeSet::new(),
        }
    }

    pub fn with(fault: Fault) -> Self {
        Self { fault: Some(fault), ..Self::new() }
    }

    #[cfg(feature = "planted")]
    pub fn plant(&mut self, bug: kv_state::Planted) {
        for group in &mut self.groups {
            group.table.planted = Some(bug);
        }
    }

    /// Lets everything happen, then lets every party do what it does by itself, and looks at what is left.
    pub fn run(&mut self, events: &[(u8, u16, u16)]) -> Result<(), String> {
        for event in events {
            self.spec.now += 1;
            self.step(*event)?;
        }
        self.recover()?;
        self.end()
    }

    fn step(&mut self, (kind, a, b): (u8, u16, u16)) -> Result<(), String> {
        let (a, b) = (usize::from(a), usize::from(b));
        match kind % 20 {
            0 | 1 => self.begin(a, b),
            2 => self.put(a),
            // Mostly what was sent lately, sometimes anything.
            3..=10 => self.deliver(self.messages.len().checked_sub(1 + a % (1 + b % 12)))?,
            11 => self.deliver((!self.messages.is_empty()).then(|| a % self.messages.len().max(1)))?,
            12 => self.manage(a),
            13 => self.abort(a),
            14 => self.fence(a),
            15 => self.start_reading(a),
            16 | 17 => self.go_on_reading(a)?,
            18 => self.client(a, b),
            _ => self.manage(b),
        }
        Ok(())
    }

    fn begin(&mut self, a: usize, b: usize) {
        let keys: BTreeSet<Key> = [a, a / 7, b].into_iter().map(key).collect();
        let (mut reads, mut writes, mut seen) = (Vec::new(), Vec::new(), BTreeMap::new());
        self.writers += 1;
        let writer = self.writers;
        for (at, key) in keys.into_iter().enumerate() {
            if (b >> at) & 1 == 0 {
                let (revision, of) = self.stored(&key);
                reads.push(Read { key: key.clone(), seen: revision });
                seen.insert(key.clone(), of);
            }
            if at == 0 || (a >> at) & 1 == 0 {
                let value = (!(b >> 8).is_multiple_of(5)).then(|| value(writer));
                writes.push(Write { key, value });
            }
        }
        let mut scans = Vec::new();
        if (b >> 3).is_multiple_of(3) {
            scans.push(self.scan(b % GROUPS, &mut seen));
        }
        let anchor = writes[b % writes.len()].key.clone();
        let client = &mut self.clients[a % CLIENTS];
        let seq = client.next_seq;
        if seq - client.first_incomplete() >= SESSION_WINDOW {
            return;
        }
        client.next_seq += 1;
        client.open.insert(seq);
        let request = client.request(seq);
        let txn = Transaction::new(anchor, reads, scans, writes).unwrap();
        for (group, part) in txn.parts(owner) {
            if group != group_of(txn.anchor()) {
                let (fingerprint, anchor) = (txn.fingerprint(), txn.anchor().clone());
                let command = Command::Txn(TxnCommand::Prepare { fingerprint, anchor, part });
                self.messages.push(Message::Client { request, command, group });
            }
        }
        let running = Running {
            txn,
            request,
            writer,
            seen,
            yes: BTreeSet::new(),
            acknowledged: BTreeSet::new(),
            committed: false,
            aborted: false,
            decided: false,
        };
        self.txns.insert(request.txn(), running);
    }

    /// Scans all keys of a group.
    fn scan(&self, group: usize, seen: &mut BTreeMap<Key, Writer>) -> Scan {
        let range = KeyRange::prefix(group.to_string()).unwrap();
        let mut found = Vec::new();
        for key in (0..GROUPS * KEYS_PER_GROUP).map(key).collect::<BTreeSet<_>>() {
            if range.contains(key.as_ref()) {
                let (revision, writer) = self.stored(&key);
                found.extend(revision.map(|revision| (key.clone(), revision)));
                seen.insert(key, writer);
            }
        }
        let digest = Fingerprint::of_scan(found.iter().map(|(key, revision)| (key.as_ref(), *revision)));
        Scan { range, digest }
    }

    fn put(&mut self, a: usize) {
        self.writers += 1;
        self.messages.push(Message::Put { key: key(a), writer: self.writers });
    }

    /// Whoever manages a transaction does what its answers so far allow.
    fn manage(&mut self, a: usize) {
        let Some(running) = nth(&self.txns, a) else { return };
        let (txn, id) = (&running.txn, running.request.txn());
        let anchor = group_of(txn.anchor());
        let others: BTreeSet<usize> = txn.parts(owner).into_keys().filter(|group| *group != anchor).collect();
        let may_commit = running.yes.is_superset(&others) || self.fault == Some(Fault::CommitsEarly);
        if may_commit && !running.committed && !running.aborted {
            let command = Command::Txn(TxnCommand::Commit {
                fingerprint: txn.fingerprint(),
                part: txn.parts(owner).remove(&anchor).unwrap(),
                participants: txn.participants(owner),
            });
            self.messages.push(Message::Client { request: running.request, command, group: anchor });
        }
        if running.committed || running.aborted {
            let command = TxnCommand::resolve(id, running.txn.fingerprint(), running.committed);
            let resolves =
                others.iter().map(|group| Message::Internal { command: command.clone(), group: *group });
            self.messages.extend(resolves);
        }
        let may_forget = running.acknowledged.is_superset(&others) || self.fault == Some(Fault::ForgetsEarly);
        if running.committed && may_forget {
            self.messages
                .push(Message::Internal { command: TxnCommand::Forget { txns: [id].into() }, group: anchor });
        }
    }

    fn abort(&mut self, a: usize) {
        let Some(running) = nth(&self.txns, a) else { return };
        let command = Command::Txn(TxnCommand::Abort { fingerprint: running.txn.fingerprint() });
        let group = group_of(running.txn.anchor());
        self.messages.push(Message::Client { request: running.request, command, group });
    }

    /// Whoever meets a lock may fence.
    fn fence(&mut self, a: usize) {
        let locked = &self.groups[a % GROUPS].table;
        let Some(id) = txn::prepared_txns(locked, None, 9).unwrap().into_iter().nth(a / GROUPS % 3) else {
            return;
        };
        let prepared = txn::prepared(locked, id).unwrap().expect("it was just found");
        let command = TxnCommand::Fence {
            txn: id,
            fingerprint: prepared.fingerprint,
            first_incomplete: prepared.first_incomplete,
        };
        self.messages.push(Message::Internal { command, group: group_of(&prepared.anchor) });
        if self.fault == Some(Fault::PresumesAbort) {
            let command = TxnCommand::resolve(id, prepared.fingerprint, false);
            self.messages.push(Message::Internal { command, group: a % GROUPS });
        }
    }

    fn client(&mut self, a: usize, b: usize) {
        let client = &mut self.clients[a % CLIENTS];
        match b % 5 {
            // Gives up what it waits for longest, whatever became of it.
            0 | 1 => {
                client.open.pop_first();
            }
            // Its records below the floor go.
            4 => {
                let sessions = SessionBatch::new([client.session]).unwrap();
                self.apply(b % GROUPS, Command::TrimSessions { sessions }, None);
            }
            2 => client.lease_until = ms(client.lease_until.ms() + 1_000),
            _ => {
                // The session is closed, and its client opens another one.
                self.sessions += 1;
                let until = client.lease_until;
                for group in 0..GROUPS {
                    self.messages.push(Message::Collect { session: client.session, until, group });
                }
                let lease_until = ms(until.ms() + 1_000);
                *client = Client {
                    session: SessionId::new(self.sessions),
                    lease_until,
                    next_seq: 1,
                    open: BTreeSet::new(),
                };
            }
        }
    }

    fn deliver(&mut self, message: Option<usize>) -> Result<(), String> {
        let Some(message) = message.and_then(|at| self.messages.get(at)).cloned() else { return Ok(()) };
        self.spec.now += 1;
        match message {
            Message::Client { request, command, group } => self.deliver_to_gate(request, &command, group),
            Message::Internal { command, group } => {
                let command = self.with_others(command, group);
                self.deliver_internal(&command, group)
            }
            Message::Put { key, writer } => {
                let command = Command::Put { key: key.clone(), value: value(writer) };
                match self.apply(group_of(&key), command, None) {
                    Answer::Written => self.spec.write(&key, Some(writer)),
                    Answer::Refused(Refusal::Locked { .. }) => {
                        self.reached.insert("put refused");
                    }
                    other => return Err(format!("a put: {other:?}")),
                }
                Ok(())
            }
            Message::Collect { session, until, group } => {
                let sessions = SessionBatch::new([session]).unwrap();
                self.apply(group, Command::GcSessions { sessions, until }, None);
                Ok(())
            }
        }
    }

    /// A resolve with others that are on the way to its group, every other time.
    fn with_others(&self, command: TxnCommand, group: usize) -> TxnCommand {
        let TxnCommand::Resolve { mut endings } = command else { return command };
        if self.spec.now.is_multiple_of(2) {
            for message in &self.messages {
                if let Message::Internal { command: TxnCommand::Resolve { endings: others }, group: to } =
                    message
                    && *to == group
                {
                    for (txn, ending) in others {
                        endings.entry(*txn).or_insert(*ending);
                    }
                }
            }
        }
        TxnCommand::Resolve { endings }
    }

    fn deliver_to_gate(
        &mut self,
        mut request: SessionRequest,
        command: &Command,
        group: usize,
    ) -> Result<(), String> {
        let id = request.txn();
        // An attempt says what its client knows by now, or knew.
        if let Some(client) = self.clients.iter().find(|client| client.session == id.session)
            && self.spec.now.is_multiple_of(2)
        {
            request = SessionRequest {
                first_incomplete: client.first_incomplete().min(id.seq),
                ..client.request(id.seq)
            };
        }
        let prepares = matches!(command, Command::Txn(TxnCommand::Prepare { .. }));
        let answer = self.apply(group, command.clone(), Some(Request::Session(request)));
        let running = self.txns.get_mut(&id).expect("a message is of a transaction");
        match answer {
            Answer::Txn(TxnAnswer::Prepared) => {
                self.reached.insert("prepared");
                running.yes.insert(group);
            }
            Answer::Txn(TxnAnswer::Conflict { .. }) => {
                self.reached.insert("conflict");
            }
            Answer::Txn(TxnAnswer::Committed) => self.decide(id)?,
            Answer::Txn(TxnAnswer::Aborted { .. }) => {
                self.reached.insert("aborted");
                self.told(id, false)?;
            }
            Answer::Replayed(Recorded { result, .. }) => {
                self.reached.insert(if prepares { "late prepare" } else { "replayed" });
                self.told(id, result == RecordedResult::TxnCommitted)?;
            }
            Answer::Refused(_) if self.fault == Some(Fault::RefusalIsTold) => self.told(id, false)?,
            Answer::Refused(refusal) => {
                self.reached.insert(match refusal {
                    Refusal::Stale { .. } => "stale",
                    Refusal::SessionExpired { .. } => "expired",
                    Refusal::Locked { .. } => "locked",
                    other => return Err(format!("{id}: {other}")),
                });
            }
            other => return Err(format!("{id}: {other:?}")),
        }
        Ok(())
    }

    fn deliver_internal(&mut self, command: &TxnCommand, group: usize) -> Result<(), String> {
        let answer = self.apply(group, Command::Txn(command.clone()), None);
        match (command, answer) {
            (TxnCommand::Fence { txn, .. }, Answer::Txn(TxnAnswer::Decided { committed })) => {
                self.reached.insert("decided");
                self.told(*txn, committed)?;
            }
            (TxnCommand::Fence { txn, .. }, Answer::Txn(TxnAnswer::Absent)) => {
                self.reached.insert("fenced");
                let kept = txn::known(&self.groups[group].table, *txn, self.txns[txn].txn.fingerprint())
                    .unwrap()
                    == Known::Absent;
                if kept {
                    self.reached.insert("fence kept");
                }
                if self.fault == Some(Fault::AbsentIsTold) {
                    self.told(*txn, false)?;
                }
                // Whoever asked takes the lock away; nobody is told an outcome.
                let running = &self.txns[txn];
                let fingerprint = running.txn.fingerprint();
                let command = TxnCommand::resolve(*txn, fingerprint, false);
                for group in running.txn.parts(owner).into_keys() {
                    if group != group_of(running.txn.anchor()) {
                        self.messages.push(Message::Internal { command: command.clone(), group });
                    }
                }
            }
            (TxnCommand::Resolve { endings }, Answer::Txn(TxnAnswer::Resolved)) => {
                self.reached.insert(if endings.len() > 1 { "resolved together" } else { "resolved" });
                for (txn, _) in endings.iter().filter(|(_, ending)| ending.committed) {
                    let running = self.txns.get_mut(txn).expect("a message is of a transaction");
                    running.acknowledged.insert(group);
                }
            }
            (TxnCommand::Forget { .. }, Answer::Txn(TxnAnswer::Forgotten)) => {
                self.reached.insert("forgotten");
            }
            (command, answer) => return Err(format!("{command:?}: {answer:?}")),
        }
        Ok(())
    }

    /// The entry of the decision was applied: the transaction's place is here.
    fn decide(&mut self, id: TxnId) -> Result<(), String> {
        let running = self.txns.get_mut(&id).expect("a message is of a transaction");
        if std::mem::replace(&mut running.decided, true) {
            return Err(format!("{id} is decided twice"));
        }
        for (key, seen) in &running.seen {
            if self.spec.of(key) != *seen {
                return Err(format!("{id} read {seen:?} of {key}, which is {:?}", self.spec.of(key)));
            }
        }
        let writer = running.writer;
        for write in running.txn.all().writes() {
            self.spec.write(&write.key, write.value.as_ref().map(|_| writer));
        }
        self.reached.insert("committed");
        if running.txn.participants(owner).is_empty() {
            self.reached.insert("one group");
        }
        self.told(id, true)
    }

    fn told(&mut self, id: TxnId, committed: bool) -> Result<(), String> {
        let running = self.txns.get_mut(&id).expect("a message is of a transaction");
        running.committed |= committed;
        running.aborted |= !committed;
        if running.committed && running.aborted {
            return Err(format!("{id} is told to be committed and aborted"));
        }
        if running.committed && !running.decided {
            return Err(format!("{id} is told to be committed and never was"));
        }
        Ok(())
    }

    fn start_reading(&mut self, a: usize) {
        let (key, since) = (key(a), self.spec.now);
        self.readings.push(Reading { key, since, kept: None, absent: false, early: None });
    }

    /// One step of a reader: it looks, or asks, or looks again.
    fn go_on_reading(&mut self, a: usize) -> Result<(), String> {
        if self.readings.is_empty() {
            return Ok(());
        }
        let at = a % self.readings.len();
        let mut reading = self.readings.swap_remove(at);
        let owner = match txn::lock_of(&self.groups[group_of(&reading.key)].table, &reading.key).unwrap() {
            Some(LockedBy::Writer(owner)) => Some(owner),
            Some(LockedBy::Readers(_)) | None => None,
        };
        let mut now = self.stored(&reading.key).1;
        match (self.fault, reading.early) {
            (Some(Fault::ReaderSkipsLocks), _) => return self.read(&reading, now),
            (Some(Fault::ValueBeforeLock), None) => {
                reading.early = Some(now);
                self.readings.push(reading);
                return Ok(());
            }
            (_, Some(early)) => now = early,
            (_, None) => {}
        }
        let Some((asked, kept)) = reading.kept else {
            match owner {
                None => return self.read(&reading, now),
                Some(owner) => reading.kept = Some((owner, now)),
            }
            self.readings.push(reading);
            return Ok(());
        };
        if reading.absent {
            if owner == Some(asked) || self.fault == Some(Fault::NoSecondLook) {
                self.reached.insert("read past a lock");
                return self.read(&reading, kept);
            }
            reading = Reading { kept: None, absent: false, early: None, ..reading };
        } else {
            let (anchor, fingerprint) =
                (group_of(self.txns[&asked].txn.anchor()), self.txns[&asked].txn.fingerprint());
            match txn::known(&self.groups[anchor].table, asked, fingerprint).unwrap() {
                Known::Aborted => return self.read(&reading, kept),
                Known::Absent => reading.absent = true,
                Known::Committed => {
                    let command = TxnCommand::resolve(asked, fingerprint, true);
                    self.deliver_internal(&command, group_of(&reading.key))?;
                    (reading.kept, reading.early) = (None, None);
                }
            }
        }
        self.readings.push(reading);
        Ok(())
    }

    fn read(&self, reading: &Reading, got: Writer) -> Result<(), String> {
        if self.spec.was(&reading.key, reading.since, got) {
            return Ok(());
        }
        Err(format!("a read of {} from {} on got {got:?}: {:?}", reading.key, reading.since, self.spec.keys))
    }

    /// Each shard's leader does what it does by itself, until nothing is left to do.
    fn recover(&mut self) -> Result<(), String> {
        for group in 0..GROUPS {
            for record in txn::records(&self.groups[group].table, None, 1000).unwrap() {
                for participant in &record.participants {
                    let command = TxnCommand::resolve(record.txn, record.fingerprint, true);
                    self.deliver_internal(&command, owner(participant))?;
                }
                self.deliver_internal(&TxnCommand::Forget { txns: [record.txn].into() }, group)?;
            }
        }
        for group in 0..GROUPS {
            for id in txn::prepared_txns(&self.groups[group].table, None, 1000).unwrap() {
                let prepared = txn::prepared(&self.groups[group].table, id).unwrap().expect("just found");
                let fence = TxnCommand::Fence {
                    txn: id,
                    fingerprint: prepared.fingerprint,
                    first_incomplete: prepared.first_incomplete,
                };
                let anchor = group_of(&prepared.anchor);
                let answer = self.apply(anchor, Command::Txn(fence), None);
                let committed = answer == Answer::Txn(TxnAnswer::Decided { committed: true });
                let fingerprint = prepared.fingerprint;
                self.deliver_internal(&TxnCommand::resolve(id, fingerprint, committed), group)?;
            }
        }
        // Each looks, asks and looks again; what it finds is decided by now.
        for _ in 0..=4 * self.readings.len() {
            self.go_on_reading(0)?;
        }
        if self.readings.is_empty() { Ok(()) } else { Err("a reader finds no end".to_owned()) }
    }

    /// Nothing is half done, nothing acknowledged is lost; and once all sessions are forgotten, nothing is left of them.
    fn end(&mut self) -> Result<(), String> {
        for at in 0..GROUPS * KEYS_PER_GROUP {
            let key = key(at);
            let (stored, expected) = (self.stored(&key).1, self.spec.of(&key));
            if stored != expected {
                return Err(format!("{key} holds {stored:?} and should hold {expected:?}"));
            }
        }
        for group in 0..GROUPS {
            let sessions = SessionBatch::new((1..=self.sessions).map(SessionId::new)).unwrap();
            self.apply(group, Command::GcSessions { sessions, until: ms(1 << 40) }, None);
            self.groups[group].check_hash();
            let rows = self.groups[group].table.rows.keys().filter(|key| key.space() == Space::System);
            let left: Vec<_> = rows.filter(|key| key.key() != "gate").collect();
            if !left.is_empty() {
                return Err(format!("left in group {group}: {left:?}"));
            }
        }
        let late: Vec<_> = (0..self.messages.len()).collect();
        let before = self.spec.keys.len();
        for at in late {
            if !matches!(self.messages[at], Message::Put { .. } | Message::Collect { .. }) {
                self.deliver(Some(at))?;
            }
        }
        if self.spec.keys.len() != before {
            return Err("a late message had an effect".to_owned());
        }
        Ok(())
    }

    fn apply(&mut self, group: usize, command: Command, request: Option<Request>) -> Answer {
        // Time passes, and is of no matter here.
        let time = Some(ms(self.spec.now as u64));
        self.groups[group].apply(&entry(command, request, time)).unwrap().answer
    }

    fn stored(&self, key: &Key) -> (Option<Revision>, Writer) {
        let row = self.groups[group_of(key)].table.rows.get(&RowKey::user(key));
        let writer = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap().parse().unwrap();
        (row.map(|row| row.head.modified), row.map(|row| writer(&row.value)))
    }
}

impl Client {
    fn first_incomplete(&self) -> u64 {
        self.open.first().copied().unwrap_or(self.next_seq)
    }

    fn request(&self, seq: u64) -> SessionRequest {
        SessionRequest {
            session: self.session,
            seq,
            first_incomplete: self.first_incomplete(),
            lease_until: self.lease_until,
        }
    }
}

fn nth(txns: &BTreeMap<TxnId, Running>, at: usize) -> Option<&Running> {
    // Mostly those of late.
    let back = at % txns.len().clamp(1, 4 + at % 9);
    txns.values().rev().nth(back)
}

fn key(at: usize) -> Key {
    let (group, key) = (at % GROUPS, at / GROUPS % KEYS_PER_GROUP);
    Key::new(format!("{group}{key}")).unwrap()
}

fn group_of(key: &Key) -> usize {
    owner(key.as_ref())
}

fn owner(key: &[u8]) -> usize {
    usize::from(key[0] - b'0')
}

fn value(writer: u64) -> Value {
    Value::new(writer.to_string()).unwrap()
}

fn ms(ms: u64) -> ClusterTime {
    ClusterTime::from_ms(ms).unwrap()
}
