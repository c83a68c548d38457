//! Makes up histories: clients at work on a perfect store, or on one that lies.
//!
//! For tests of the checker, for measuring it, and for whoever wants to see it find something.

mod transactions;

pub use transactions::TransactionWorkload;

use crate::datum::Datum;
use crate::event::{Event, EventKind, Function};
use crate::model::ModelKind;

/// What the clients do.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Everything follows from it.
    pub seed: u64,
    /// The model the store behaves as.
    pub model: ModelKind,
    /// How many clients there are; each has one operation at a time.
    pub clients: usize,
    /// On how many objects they work.
    pub keys: usize,
    /// How many operations they begin.
    pub operations: usize,
    /// How many different values they write; 0: every write has its own.
    pub values: u64,
    /// How many in a hundred operations read.
    pub reads: u64,
    /// How many in a thousand operations end without an answer.
    pub open: u64,
    /// Whether answers carry the revision.
    pub has_revisions: bool,
    /// How many in a thousand reads tell an old state, or how many locks are given although they are held. Not every one
    /// need be a contradiction.
    pub stale: u64,
}

impl Workload {
    /// Some clients on some keys of a model, every write with its own value.
    #[must_use]
    pub fn new(model: ModelKind, clients: usize, keys: usize, operations: usize) -> Self {
        Self {
            seed: 1,
            model,
            clients,
            keys,
            operations,
            values: 0,
            reads: 50,
            open: 0,
            has_revisions: false,
            stale: 0,
        }
    }

    /// The events, in order.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        let mut run = Run {
            workload: self,
            dice: Dice(self.seed),
            clients: (0..self.clients)
                .map(|number| Client { process: number as u64, phase: Phase::Idle })
                .collect(),
            objects: vec![Object::default(); self.keys.max(1)],
            events: Vec::with_capacity(2 * self.operations),
            begun: 0,
            revision: 0,
        };
        run.all();
        run.events
    }
}

/// A small generator of numbers that look random: SplitMix64 (Steele, Lea and Flood, 2014).
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    /// The next number.
    pub fn next_number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below the bound; 0 if that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_number().checked_rem(bound).unwrap_or(0)
    }

    /// A place in a list of this length.
    pub fn place(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or(0)
    }
}

#[derive(Clone, Debug)]
struct Client {
    process: u64,
    phase: Phase,
}

/// Where a client's operation stands. The scheduler takes one client a phase further at a time.
#[derive(Clone, Debug)]
enum Phase {
    Idle,
    /// Sent, and not executed yet.
    Sent(Event),
    /// Executed; this is the answer on its way, or none if nobody will ever hear.
    Executed(Option<Event>),
}

/// An object of the store, with the states it has been in.
#[derive(Clone, Debug, Default)]
struct Object {
    value: Datum,
    holder: Option<u64>,
    token: u64,
    past: Vec<Datum>,
}

/// How many states back a lie reaches.
const PAST: usize = 64;

struct Run<'a> {
    workload: &'a Workload,
    dice: Dice,
    clients: Vec<Client>,
    objects: Vec<Object>,
    events: Vec<Event>,
    begun: usize,
    revision: u64,
}

impl Run<'_> {
    fn all(&mut self) {
        let mut busy = 0;
        while self.begun < self.workload.operations || busy > 0 {
            let at = self.dice.place(self.clients.len());
            let Some(client) = self.clients.get_mut(at) else { return };
            let process = client.process;
            let phase = match std::mem::replace(&mut client.phase, Phase::Idle) {
                Phase::Idle if self.begun == self.workload.operations => Phase::Idle,
                Phase::Idle => {
                    busy += 1;
                    Phase::Sent(self.begin(process))
                }
                Phase::Sent(event) => Phase::Executed(self.execute(event)),
                Phase::Executed(answer) => {
                    busy -= 1;
                    self.end(at, answer)
                }
            };
            if let Some(client) = self.clients.get_mut(at) {
                client.phase = phase;
            }
        }
    }

    fn begin(&mut self, process: u64) -> Event {
        self.begun += 1;
        let key = self.dice.place(self.objects.len());
        let reads = self.dice.below(100) < self.workload.reads;
        let function = self.function(key, reads, process);
        let value = match function {
            Function::Read | Function::Delete | Function::Acquire | Function::Release | Function::Txn => {
                Datum::Nil
            }
            Function::Cas => Datum::list([self.guess(key), self.value()]),
            Function::Write | Function::Append | Function::Add | Function::Incr => self.value(),
        };
        let mut event = Event::new(number(process), EventKind::Invoke, function, value);
        if self.workload.keys > 0 {
            event.key = Datum::Text(format!("k{key}").into());
        }
        self.events.push(event.clone());
        event
    }

    fn function(&mut self, key: usize, reads: bool, process: u64) -> Function {
        let choice = self.dice.below(8);
        match self.workload.model {
            ModelKind::Lock => {
                let is_mine = self.objects.get(key).is_some_and(|object| object.holder == Some(process));
                if is_mine { Function::Release } else { Function::Acquire }
            }
            _ if reads => Function::Read,
            ModelKind::Register => Function::Write,
            ModelKind::CasRegister if choice < 3 => Function::Cas,
            ModelKind::CasRegister => Function::Write,
            ModelKind::Kv if choice == 0 => Function::Delete,
            ModelKind::Kv if choice == 1 => Function::Cas,
            ModelKind::Kv => Function::Write,
            ModelKind::KvAppend if choice == 0 => Function::Write,
            ModelKind::KvAppend => Function::Append,
            ModelKind::Set => Function::Add,
            ModelKind::Counter if choice < 2 => Function::Incr,
            ModelKind::Counter => Function::Add,
        }
    }

    /// A value to write.
    fn value(&mut self) -> Datum {
        let value = match self.workload.values {
            0 => self.begun as u64,
            values => self.dice.below(values),
        };
        match self.workload.model {
            ModelKind::KvAppend => Datum::Text(format!("x{value}y").into()),
            ModelKind::Counter => number(value % 5),
            _ => number(value),
        }
    }

    /// A value that a `cas` may well find.
    fn guess(&mut self, key: usize) -> Datum {
        if self.dice.below(4) == 0 {
            return self.value();
        }
        self.objects.get(key).map(|object| object.value.clone()).unwrap_or_default()
    }

    /// Executes an operation, and gives the answer.
    fn execute(&mut self, event: Event) -> Option<Event> {
        let is_open = self.dice.below(1000) < self.workload.open;
        // Half of those without an answer never happened.
        if is_open && self.dice.below(2) == 0 {
            return None;
        }
        let lies = matches!(event.function, Function::Read | Function::Acquire)
            && self.dice.below(1000) < self.workload.stale;
        self.revision += 1;
        let at = self.key_of(&event);
        let object = self.objects.get_mut(at)?;
        let mut answer = Event { kind: EventKind::Ok, ..event };
        answer.revision = self.workload.has_revisions.then_some(self.revision);
        object.execute(&mut answer, self.workload.model);
        match (answer.function, object.past.first()) {
            (Function::Acquire, _) if lies => answer.kind = EventKind::Ok,
            (_, Some(past)) if lies => answer.value = shown(past, self.workload.model),
            _ => {}
        }
        (!is_open).then_some(answer)
    }

    fn key_of(&self, event: &Event) -> usize {
        match &event.key {
            Datum::Text(key) => key.trim_start_matches('k').parse().unwrap_or_default(),
            Datum::Nil | Datum::Int(_) | Datum::List(_) => 0,
        }
    }

    fn end(&mut self, at: usize, answer: Option<Event>) -> Phase {
        match answer {
            Some(answer) => self.events.push(answer),
            // As Jepsen does, the client goes on as another process.
            None => {
                if let Some(client) = self.clients.get_mut(at) {
                    client.process += self.workload.clients as u64;
                }
            }
        }
        Phase::Idle
    }
}

impl Object {
    fn execute(&mut self, answer: &mut Event, model: ModelKind) {
        let before = self.value.clone();
        let argument = answer.value.clone();
        match answer.function {
            Function::Read => {
                answer.value = shown(&self.value, model);
            }
            Function::Write => self.value = argument,
            Function::Delete => self.value = Datum::Nil,
            Function::Cas => match argument.as_list() {
                Some([expected, new]) if *expected == self.value => self.value = new.clone(),
                _ => (answer.kind, answer.mismatch) = (EventKind::Fail, true),
            },
            Function::Append => {
                let text = |datum: &Datum| match datum {
                    Datum::Text(text) => text.to_string(),
                    Datum::Nil | Datum::Int(_) | Datum::List(_) => String::new(),
                };
                self.value = Datum::Text((text(&self.value) + &text(&argument)).into());
            }
            Function::Add if model == ModelKind::Set => {
                let mut items = self.value.as_list().unwrap_or_default().to_vec();
                if !items.contains(&argument) {
                    items.push(argument);
                }
                self.value = Datum::list(items);
            }
            Function::Add | Function::Incr => {
                let sum = self.value.as_int().unwrap_or_default() + argument.as_int().unwrap_or_default();
                self.value = sum.into();
                if answer.function == Function::Incr {
                    answer.value = sum.into();
                }
            }
            Function::Acquire | Function::Release => self.turn(answer),
            // Never begun here: transactions have a workload of their own.
            Function::Txn => {}
        }
        if self.value != before {
            self.past.push(before);
            if self.past.len() > PAST {
                self.past.remove(0);
            }
        }
    }

    /// Takes or gives back the lock.
    fn turn(&mut self, answer: &mut Event) {
        let process = answer.process.as_int().and_then(|process| u64::try_from(process).ok());
        let takes = answer.function == Function::Acquire;
        match (takes, self.holder) {
            (true, None) => {
                self.holder = process;
                self.token += 1;
                answer.token = Some(self.token);
            }
            (false, holder) if holder == process => self.holder = None,
            _ => answer.kind = EventKind::Fail,
        }
    }
}

/// How a read shows a state.
fn shown(state: &Datum, model: ModelKind) -> Datum {
    match model {
        ModelKind::Set => Datum::list(state.as_list().unwrap_or_default().to_vec()),
        ModelKind::Counter => state.as_int().unwrap_or_default().into(),
        _ => state.clone(),
    }
}

fn number(number: u64) -> Datum {
    Datum::Int(i64::try_from(number).unwrap_or(i64::MAX))
}
