//! Histories beyond what all orders can be tried of.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test file")]

use std::cell::Cell;

use kv_check::model::{CasRegister, Counter, Expected, Kv, KvAppend, Lock, Nature, NoOutlook, Register, Set};
use kv_check::workload::Workload;
use kv_check::{
    Budget, Exhausted, History, HistoryError, Linearised, Model, ModelKind, Operation, Timed, Verdict, check,
    linearise,
};

/// A model without its outlook: the search has to find out everything by itself.
#[derive(Default)]
struct Blind<M>(M);

impl<M: Model> Model for Blind<M> {
    type Op = M::Op;
    type State = M::State;
    type Outlook = NoOutlook;

    const NAME: &'static str = M::NAME;

    fn parse(&mut self, operation: &Operation) -> Result<M::Op, HistoryError> {
        self.0.parse(operation)
    }

    fn initial(&self) -> M::State {
        self.0.initial()
    }

    fn step(&self, state: &M::State, op: &M::Op) -> Option<M::State> {
        self.0.step(state, op)
    }

    fn nature(&self, op: &M::Op) -> Nature {
        self.0.nature(op)
    }

    fn explains(&self, change: &M::Op, observation: &M::Op) -> bool {
        self.0.explains(change, observation)
    }

    fn outlook(&self, _ops: &[Expected<'_, M::Op>]) -> NoOutlook {
        NoOutlook
    }

    fn describe(&self, state: &M::State) -> String {
        self.0.describe(state)
    }
}

fn workloads(kind: ModelKind) -> impl Iterator<Item = Workload> {
    (0..400).map(move |seed| Workload {
        seed,
        values: [0, 3][usize::from(seed.is_multiple_of(2))],
        open: 40 * (seed % 3),
        stale: 30 * (seed % 5),
        ..Workload::new(kind, 5, 1, 40)
    })
}

/// Whether there is an order; none if the search was too long.
fn decide<M: Model + Default>(history: &History) -> Option<bool> {
    let mut model = M::default();
    let ops: Vec<_> = history
        .operations()
        .iter()
        .map(|operation| Timed {
            op: model.parse(operation).unwrap(),
            call: operation.call,
            ret: operation.ret,
        })
        .collect();
    match linearise(&model, &ops, &Budget::steps(200_000)) {
        Linearised::Order(_) => Some(true),
        Linearised::Impossible { .. } => Some(false),
        Linearised::Unknown(_) => None,
    }
}

fn compare<M: Model + Default>(kind: ModelKind) {
    let (mut good, mut bad) = (0, 0);
    for workload in workloads(kind) {
        let history = History::from_events(workload.events()).unwrap();
        let Some(plain) = decide::<Blind<M>>(&history) else { continue };
        assert_eq!(decide::<M>(&history), Some(plain), "{workload:?}");
        assert!(plain || workload.stale > 0, "an honest store is found guilty: {workload:?}");
        good += usize::from(plain);
        bad += usize::from(!plain);
    }
    assert!(good > 50 && bad > 10, "{}: {good} good and {bad} bad histories were compared", kind.name());
}

#[test]
fn the_outlook_changes_no_verdict() {
    compare::<Register>(ModelKind::Register);
    compare::<CasRegister>(ModelKind::CasRegister);
    compare::<Kv>(ModelKind::Kv);
    compare::<KvAppend>(ModelKind::KvAppend);
    compare::<Set>(ModelKind::Set);
    compare::<Lock>(ModelKind::Lock);
    compare::<Counter>(ModelKind::Counter);
}

#[test]
fn honest_revisions_are_a_witness() {
    for kind in ModelKind::ALL {
        let workload = Workload { has_revisions: true, ..Workload::new(kind, 20, 10, 2000) };
        let history = History::from_events(workload.events()).unwrap();
        let report = check(&history, kind, &Budget::steps(0)).unwrap();
        assert_eq!((report.verdict, report.witnessed), (Verdict::Valid, report.keys), "{}", kind.name());
    }
}

/// States come again and again, so configurations differ by nothing but how far they are.
#[test]
fn long_histories_of_an_honest_store_are_valid() {
    for kind in ModelKind::ALL {
        for open in [0, 5] {
            let workload = Workload { values: 2, open, ..Workload::new(kind, 4, 1, 1500) };
            let history = History::from_events(workload.events()).unwrap();
            let report = check(&history, kind, &Budget::steps(2_000_000)).unwrap();
            assert_eq!(report.verdict, Verdict::Valid, "{} open={open}", kind.name());
        }
    }
}

/// One object is hard, one is plainly impossible: the hard one comes first and must not take all the steps.
#[test]
fn a_hard_key_does_not_hide_an_impossible_one() {
    let hard = Workload { values: 2, stale: 100, ..Workload::new(ModelKind::Kv, 60, 1, 4000) };
    let mut operations = History::from_events(hard.events()).unwrap().operations().to_vec();
    let alone = History::from_operations(operations.clone()).unwrap();
    let budget = || Budget::steps(300_000);
    let verdict = check(&alone, ModelKind::Kv, &budget()).unwrap().verdict;
    assert_eq!(verdict, Verdict::Unknown { reason: Exhausted::Steps, undecided: 1 }, "it is hard");
    let read = Operation::open(0, kv_check::Function::Read, kv_check::Datum::Nil, 9_000_000).on("bad");
    operations.push(read.returned(9_000_001, "from nowhere"));
    let both = History::from_operations(operations).unwrap();
    let Verdict::Violation(found) = check(&both, ModelKind::Kv, &budget()).unwrap().verdict else {
        panic!("the impossible key was not found")
    };
    assert_eq!((found.key, found.operations.len()), ("bad".into(), 1));
}

#[test]
fn the_callers_clock_ends_the_search() {
    let hard = Workload { values: 2, stale: 100, ..Workload::new(ModelKind::Kv, 60, 1, 4000) };
    let history = History::from_events(hard.events()).unwrap();
    let asked = Cell::new(0);
    let stop = || {
        asked.set(asked.get() + 1);
        asked.get() > 5
    };
    let report = check(&history, ModelKind::Kv, &Budget::until(&stop)).unwrap();
    assert_eq!(report.verdict, Verdict::Unknown { reason: Exhausted::Stopped, undecided: 1 });
    assert!(report.steps < 5 * 5000, "{} steps between five looks at the clock", report.steps);
}

#[test]
fn the_room_for_configurations_is_bounded() {
    let hard = Workload { values: 2, stale: 100, ..Workload::new(ModelKind::Kv, 60, 1, 4000) };
    let history = History::from_events(hard.events()).unwrap();
    let budget = Budget { configurations: 10_000, ..Budget::steps(u64::MAX) };
    let verdict = check(&history, ModelKind::Kv, &budget).unwrap().verdict;
    assert_eq!(verdict, Verdict::Unknown { reason: Exhausted::Configurations, undecided: 1 });
}

#[test]
fn the_same_history_takes_the_same_steps() {
    let workload = Workload { values: 3, stale: 5, open: 20, ..Workload::new(ModelKind::Kv, 20, 3, 1000) };
    let history = History::from_events(workload.events()).unwrap();
    let report = || check(&history, ModelKind::Kv, &Budget::steps(2_000_000)).unwrap();
    assert_eq!(report(), report());
}
