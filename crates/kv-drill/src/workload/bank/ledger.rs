//! What each account may hold, by the transfers that were told.
//!
//! A transfer that succeeded is in every look that began after it ended. One that is under way, or of which nobody knows, may be
//! in a look, and one that failed is in none. So an account holds, between two bounds, what all of them come to.

use std::collections::BTreeMap;

use kv_check::{Datum, Event, EventKind};

use super::{EACH, balances};

/// The least and the most that an account may hold.
#[derive(Clone, Copy)]
struct Bounds {
    least: i64,
    most: i64,
}

/// The bounds of all accounts by which something was moved.
type Ledger<'a> = BTreeMap<&'a str, Bounds>;

const OPENED: Bounds = Bounds { least: EACH, most: EACH };

/// Money that goes from one account to another.
struct Transfer<'a> {
    from: &'a str,
    to: &'a str,
    amount: i64,
}

impl<'a> Transfer<'a> {
    fn of(event: &'a Event) -> Option<Self> {
        match event.value.as_list()?.first()?.as_list()? {
            [kind, from, to, amount] if kind.as_text() == Some("transfer") => {
                Some(Self { from: from.as_text()?, to: to.as_text()?, amount: amount.as_int()? })
            }
            _ => None,
        }
    }

    /// It may have happened.
    fn begins(&self, ledger: &mut Ledger<'a>) {
        ledger.entry(self.from).or_insert(OPENED).least -= self.amount;
        ledger.entry(self.to).or_insert(OPENED).most += self.amount;
    }

    /// It has happened.
    fn succeeds(&self, ledger: &mut Ledger<'a>) {
        ledger.entry(self.from).or_insert(OPENED).most -= self.amount;
        ledger.entry(self.to).or_insert(OPENED).least += self.amount;
    }
}

/// The first look that finds what no transfers explain.
pub(super) fn flaw(events: &[Event]) -> Option<String> {
    let mut ledger = Ledger::new();
    // Looks that are under way, by their process.
    let mut looks: BTreeMap<&Datum, Ledger<'_>> = BTreeMap::new();
    for (event, failed) in events.iter().zip(failing(events)) {
        match (event.kind, Transfer::of(event)) {
            (EventKind::Invoke, Some(transfer)) if !failed => {
                transfer.begins(&mut ledger);
                looks.values_mut().for_each(|look| transfer.begins(look));
            }
            (EventKind::Ok, Some(transfer)) => transfer.succeeds(&mut ledger),
            (EventKind::Invoke, None) => drop(looks.insert(&event.process, ledger.clone())),
            (EventKind::Ok, None) => {
                let flaw = looks.remove(&event.process).and_then(|look| unexplained(event, &look));
                if flaw.is_some() {
                    return flaw;
                }
            }
            (EventKind::Invoke | EventKind::Fail | EventKind::Info, _) => {}
        }
    }
    None
}

/// For each event, whether it begins what fails.
fn failing(events: &[Event]) -> Vec<bool> {
    let mut ends: BTreeMap<&Datum, EventKind> = BTreeMap::new();
    let mut failing: Vec<bool> = events
        .iter()
        .rev()
        .map(|event| match event.kind {
            EventKind::Invoke => ends.remove(&event.process) == Some(EventKind::Fail),
            kind => {
                ends.insert(&event.process, kind);
                false
            }
        })
        .collect();
    failing.reverse();
    failing
}

fn unexplained(look: &Event, ledger: &Ledger<'_>) -> Option<String> {
    let Some((items, balances)) = look.value.as_list().zip(balances(look)) else {
        return Some(format!("process {} read {}, which are no balances", look.process, look.value));
    };
    let names = items.iter().map(|item| item.as_list()?.get(1).and_then(Datum::as_text));
    let wrong = names.zip(balances).find_map(|(name, balance)| {
        let name = name?;
        let Bounds { least, most } = ledger.get(name).copied().unwrap_or(OPENED);
        let is_explained = (least..=most).contains(&balance);
        (!is_explained).then(|| format!("{name} holds {balance}; by what was told it is {least} to {most}"))
    });
    wrong.map(|wrong| format!("{wrong}: process {} read {}", look.process, look.value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_check::Function;

    fn transfer(process: i64, kind: EventKind, amount: i64) -> Event {
        let parts = [Datum::text("transfer"), Datum::text("a"), Datum::text("b"), amount.into()];
        Event::new(process, kind, Function::Txn, Datum::list([Datum::list(parts)]))
    }

    fn look(process: i64, kind: EventKind, balances: [i64; 2]) -> Event {
        let each = ["a", "b"]
            .iter()
            .zip(balances)
            .map(|(name, balance)| Datum::list([Datum::text("r"), Datum::text(name), Datum::Int(balance)]));
        Event::new(process, kind, Function::Txn, Datum::list(each))
    }

    /// A look after a transfer of 30 that ended so; what a and b hold then.
    fn after(end: Option<EventKind>, balances: [i64; 2]) -> Option<String> {
        let mut events = vec![transfer(1, EventKind::Invoke, 30)];
        events.extend(end.map(|end| transfer(1, end, 30)));
        events.extend([EventKind::Invoke, EventKind::Ok].map(|kind| look(2, kind, balances)));
        flaw(&events)
    }

    #[test]
    fn what_was_told_is_there_and_what_failed_is_not() {
        let (moved, unmoved) = ([70, 130], [100, 100]);
        assert_eq!(after(Some(EventKind::Ok), moved), None);
        assert!(
            after(Some(EventKind::Ok), unmoved)
                .unwrap()
                .starts_with("a holds 100; by what was told it is 70 to 70")
        );
        assert_eq!(after(Some(EventKind::Fail), unmoved), None);
        assert!(after(Some(EventKind::Fail), moved).is_some());
        for end in [Some(EventKind::Info), None] {
            assert_eq!((after(end, moved), after(end, unmoved)), (None, None));
            assert!(after(end, [40, 160]).is_some(), "a transfer happens once");
        }
    }

    #[test]
    fn a_look_without_a_balance_explains_nothing() {
        let part = |balance: Datum| Datum::list([Datum::text("r"), Datum::text("a"), balance]);
        let look = |kind, value| Event::new(2, kind, Function::Txn, value);
        let read = |value: Datum| flaw(&[look(EventKind::Invoke, Datum::Nil), look(EventKind::Ok, value)]);
        assert_eq!(read(Datum::list([part(Datum::Int(100))])), None);
        assert!(read(Datum::list([part(Datum::Nil)])).unwrap().contains("no balances"));
        assert!(read(Datum::Nil).is_some());
    }

    #[test]
    fn what_overlaps_a_look_may_be_in_it_or_not() {
        for balances in [[70, 130], [100, 100]] {
            let events = [
                look(2, EventKind::Invoke, balances),
                transfer(1, EventKind::Invoke, 30),
                transfer(1, EventKind::Ok, 30),
                look(2, EventKind::Ok, balances),
            ];
            assert_eq!(flaw(&events), None);
        }
        // What begins after a look has ended is not in it.
        let events = [
            look(2, EventKind::Invoke, [70, 130]),
            look(2, EventKind::Ok, [70, 130]),
            transfer(1, EventKind::Invoke, 30),
            transfer(1, EventKind::Ok, 30),
        ];
        assert!(flaw(&events).is_some());
    }
}
