//! Makes up histories of transactions: clients at work on a store of lists, that is serial or lies.

use super::{Dice, number};
use crate::datum::Datum;
use crate::event::{Event, EventKind};
use crate::transaction::MicroOperation;

/// What the clients do.
#[derive(Clone, Debug)]
pub struct TransactionWorkload {
    /// Everything follows from it.
    pub seed: u64,
    /// How many clients there are; each has one transaction at a time.
    pub clients: usize,
    /// How many keys are in use at a time.
    pub keys: usize,
    /// After how many appends a key is given up for a new one, so that lists stay short.
    pub appends_max: usize,
    /// How many transactions they begin.
    pub transactions: usize,
    /// How many micro-operations a transaction has at most.
    pub operations_max: usize,
    /// How many in a hundred micro-operations read.
    pub reads: u64,
    /// How many in a thousand transactions end without an answer.
    pub open: u64,
    /// How many in a thousand transactions fail.
    pub failed: u64,
    /// How many in a thousand transactions are not isolated: taken apart, or shown the state at their call. Not every one
    /// need be a contradiction.
    pub skews: u64,
    /// How many in a thousand transactions are lied to: robbed of their appends, or put anywhere into the lists, or made
    /// although they fail.
    pub lies: u64,
}

impl TransactionWorkload {
    /// Some clients at work on a serial store.
    #[must_use]
    pub fn new(clients: usize, keys: usize, transactions: usize) -> Self {
        Self {
            seed: 1,
            clients,
            keys,
            appends_max: 64,
            transactions,
            operations_max: 4,
            reads: 50,
            open: 0,
            failed: 0,
            skews: 0,
            lies: 0,
        }
    }

    /// The events, in order.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        let clients = (0..self.clients).map(|process| Client { process: process as u64, running: None });
        let mut run = Run {
            workload: self,
            dice: Dice(self.seed),
            clients: clients.collect(),
            lists: vec![Vec::new(); self.keys.max(1)],
            in_use: (0..self.keys.max(1)).collect(),
            events: Vec::with_capacity(2 * self.transactions),
            begun: 0,
            element: 0,
        };
        run.all();
        run.events
    }
}

struct Client {
    process: u64,
    running: Option<Running>,
}

/// How the store treats a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Treatment {
    /// All at once.
    Fair,
    /// One micro-operation at a time, with others in between.
    Apart,
    /// Its reads show the state at its call: snapshot isolation without a look at conflicts.
    Snapshot,
    /// Its appends are not made.
    Robbed,
    /// Its appends are made although it fails.
    Undead,
    /// Its appends are put anywhere into the list.
    Shuffled,
}

/// A transaction under way. The scheduler takes one a step further at a time.
struct Running {
    operations: Vec<(usize, MicroOperation)>,
    treatment: Treatment,
    ending: EventKind,
    /// How long each list of its keys was at its call.
    lengths: Vec<usize>,
    /// How many micro-operations were executed.
    done: usize,
}

struct Run<'a> {
    workload: &'a TransactionWorkload,
    dice: Dice,
    clients: Vec<Client>,
    /// The list of each key there ever was.
    lists: Vec<Vec<i64>>,
    /// The keys in use.
    in_use: Vec<usize>,
    events: Vec<Event>,
    begun: usize,
    element: i64,
}

impl Run<'_> {
    fn all(&mut self) {
        let mut busy = 0;
        while self.begun < self.workload.transactions || busy > 0 {
            let at = self.dice.place(self.clients.len());
            let Some(client) = self.clients.get_mut(at) else { return };
            let process = client.process;
            let next = match client.running.take() {
                None if self.begun == self.workload.transactions => None,
                None => {
                    busy += 1;
                    Some(self.begin(process))
                }
                Some(running) if running.done < running.operations.len() => Some(self.execute(running)),
                Some(running) => {
                    busy -= 1;
                    self.end(at, &running);
                    None
                }
            };
            if let Some(client) = self.clients.get_mut(at) {
                client.running = next;
            }
        }
    }

    fn begin(&mut self, process: u64) -> Running {
        self.begun += 1;
        let count = 1 + self.dice.place(self.workload.operations_max);
        let operations: Vec<_> = (0..count).map(|_| self.micro_operation()).collect();
        let chance = self.dice.below(1000);
        let ending = match () {
            () if chance < self.workload.open => EventKind::Info,
            () if chance < self.workload.open + self.workload.failed => EventKind::Fail,
            () => EventKind::Ok,
        };
        let treatment = self.treatment(ending);
        let length = |key: &usize| self.lists.get(*key).map_or(0, Vec::len);
        let lengths = operations.iter().map(|(key, _)| length(key)).collect();
        self.note(process, EventKind::Invoke, &operations);
        Running { operations, treatment, ending, lengths, done: 0 }
    }

    fn treatment(&mut self, ending: EventKind) -> Treatment {
        let lies = self.dice.below(1000) < self.workload.lies;
        let skews = self.dice.below(1000) < self.workload.skews;
        let is_heads = self.dice.below(2) == 0;
        match (ending, lies, skews) {
            (EventKind::Fail, true, _) => Treatment::Undead,
            (EventKind::Fail, false, _) => Treatment::Robbed,
            // Half of those without an answer never happen.
            (EventKind::Info, ..) if is_heads => Treatment::Robbed,
            (_, true, _) if is_heads => Treatment::Robbed,
            (_, true, _) => Treatment::Shuffled,
            (_, _, true) if is_heads => Treatment::Apart,
            (_, _, true) => Treatment::Snapshot,
            (_, false, false) => Treatment::Fair,
        }
    }

    fn micro_operation(&mut self) -> (usize, MicroOperation) {
        let slot = self.dice.place(self.in_use.len());
        let mut key = self.in_use.get(slot).copied().unwrap_or_default();
        if self.lists.get(key).map_or(0, Vec::len) >= self.workload.appends_max {
            key = self.lists.len();
            self.lists.push(Vec::new());
            self.in_use.iter_mut().skip(slot).take(1).for_each(|slot| *slot = key);
        }
        let name = Datum::Text(format!("k{key}").into());
        if self.dice.below(100) < self.workload.reads {
            return (key, MicroOperation::read(name));
        }
        self.element += 1;
        (key, MicroOperation::append(name, self.element))
    }

    fn execute(&mut self, mut running: Running) -> Running {
        let step = if running.treatment == Treatment::Apart { 1 } else { running.operations.len() };
        // Whether something is an own append is seen by the element.
        let mut own = Vec::new();
        let (treatment, lengths) = (running.treatment, &running.lengths);
        let todo = running.operations.iter_mut().zip(lengths).skip(running.done).take(step);
        for ((key, operation), length) in todo {
            let Some(list) = self.lists.get_mut(*key) else { continue };
            match operation {
                MicroOperation::Append { element, .. } => {
                    match treatment {
                        Treatment::Robbed => {}
                        Treatment::Shuffled => list.insert(self.dice.place(list.len() + 1), *element),
                        Treatment::Fair | Treatment::Apart | Treatment::Snapshot | Treatment::Undead => {
                            list.push(*element);
                        }
                    }
                    own.push((*key, *element));
                }
                MicroOperation::Read { list: shown, .. } if treatment == Treatment::Snapshot => {
                    let own = own.iter().filter(|(of, _)| of == key).map(|(_, element)| *element);
                    *shown = Some(list.iter().copied().take(*length).chain(own).collect());
                }
                MicroOperation::Read { list: shown, .. } => *shown = Some(list.as_slice().into()),
            }
        }
        running.done += step;
        running
    }

    fn end(&mut self, at: usize, running: &Running) {
        let Some(client) = self.clients.get_mut(at) else { return };
        let process = client.process;
        if running.ending == EventKind::Info {
            // As Jepsen does, the client goes on as another process.
            client.process += self.workload.clients as u64;
        }
        self.note(process, running.ending, &running.operations);
    }

    fn note(&mut self, process: u64, kind: EventKind, operations: &[(usize, MicroOperation)]) {
        // Only who hears of a commit hears what was read.
        let told = |operation: &MicroOperation| match operation {
            MicroOperation::Read { key, .. } if kind != EventKind::Ok => MicroOperation::read(key.clone()),
            MicroOperation::Read { .. } | MicroOperation::Append { .. } => operation.clone(),
        };
        let operations: Vec<_> = operations.iter().map(|(_, operation)| told(operation)).collect();
        self.events.push(Event::transaction(number(process), kind, &operations));
    }
}
