//! Forms of histories: what is written can be read, and what is wrong is said with its line and column.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test file")]

use kv_check::workload::{TransactionWorkload, Workload};
use kv_check::{
    Budget, Ending, Event, EventKind, History, MicroOperation, ModelKind, Operation, Place, Problem,
    Recorder, Transaction, TransactionHistory, check, check_transactions, read, read_bytes,
    read_transactions,
};
use proptest::prelude::*;

fn events(kind: ModelKind, seed: u64) -> Vec<Event> {
    let workload =
        Workload { seed, open: 100, has_revisions: seed.is_multiple_of(2), ..Workload::new(kind, 4, 3, 60) };
    workload.events()
}

fn as_json(events: &[Event]) -> String {
    let mut recorder = Recorder::new();
    events.iter().map(|event| recorder.line(event).unwrap() + "\n").collect()
}

fn as_edn(events: &[Event]) -> String {
    let line = |event: &Event| {
        let mut line = format!(
            "{{:process {}, :type :{}, :f :{}, :key {}, :value {}",
            event.process,
            event.kind.word(),
            event.function.word(),
            event.key,
            event.value
        );
        let numbers = [(":revision", event.revision), (":token", event.token)];
        for (name, number) in numbers.into_iter().filter_map(|(name, number)| Some((name, number?))) {
            line += &format!(", {name} {number}");
        }
        line + if event.mismatch { ", :error :compare-failed}\n" } else { "}\n" }
    };
    events.iter().map(line).collect::<String>().replace("null", "nil")
}

fn without_places(history: &History) -> Vec<Operation> {
    let mut operations = history.operations().to_vec();
    for operation in &mut operations {
        (operation.called_at, operation.returned_at) = (Place::default(), Place::default());
    }
    operations
}

#[test]
fn what_is_written_can_be_read() {
    for kind in ModelKind::ALL {
        for seed in 0..50 {
            let events = events(kind, seed);
            let expected = without_places(&History::from_events(events.clone()).unwrap());
            assert!(expected.len() > 5);
            for text in [as_json(&events), as_edn(&events)] {
                assert_eq!(without_places(&read(&text).unwrap()), expected);
                assert_eq!(without_places(&read(&text.replace('\n', "\r\n")).unwrap()), expected);
            }
        }
    }
}

/// Cut anywhere, a history is either refused in its last line, or it is the beginning of the whole.
#[test]
fn what_breaks_off_is_noticed() {
    for kind in ModelKind::ALL {
        let events: Vec<_> = events(kind, 3).into_iter().take(30).collect();
        for text in [as_json(&events), as_edn(&events)] {
            for cut in 0..text.len() {
                let part = text.get(..cut).unwrap();
                let lines = part.lines().count();
                let ends_a_line = part.is_empty() || part.ends_with(['\n', '}']) && !is_inside(&text, cut);
                match read(part) {
                    Ok(history) => {
                        assert!(ends_a_line, "`{part}`");
                        assert!(history.operations().len() <= lines);
                    }
                    Err(error) => {
                        assert!(!ends_a_line, "{error}: `{part}`");
                        assert_eq!(error.line as usize, lines, "{error}: `{part}`");
                        let last = part.lines().last().unwrap();
                        assert!(error.column >= 1 && error.column as usize <= last.len() + 1, "{error}");
                    }
                }
            }
        }
    }
}

/// Whether the brace before the cut does not end the line.
fn is_inside(text: &str, cut: usize) -> bool {
    !text.get(cut..).unwrap().starts_with('\n') && !text.get(..cut).unwrap().ends_with('\n')
}

fn fault(text: &str) -> (u32, u32, Problem) {
    let history = read(text);
    let error =
        match history.and_then(|history| check(&history, ModelKind::CasRegister, &Budget::steps(1000))) {
            Ok(report) => panic!("{report:?} of `{text}`"),
            Err(error) => error,
        };
    (error.line, error.column, error.problem)
}

#[test]
fn errors_say_where() {
    let invoke = r#"{"process":0,"type":"invoke","f":"read","value":null}"#;
    let unknown_f = r#"{"process":0,"type":"invoke","f":"frobnicate","value":null}"#;
    let json = |line: &str| fault(&format!("# a comment counts as a line\n{invoke}\n{line}"));
    assert_eq!(fault(unknown_f), (1, 34, Problem::UnknownFunction("frobnicate".into())));
    let foreign = fault(r#"{"process":0,"type":"invoke","f":"append","value":"x"}"#);
    assert!(matches!(foreign, (1, 34, Problem::ForeignFunction { .. })), "{foreign:?}");
    let twice = json(r#"{"type":"invoke","process":0,"f":"read","value":null}"#);
    assert!(matches!(twice, (3, 28, Problem::DoubleInvoke { since: 2, .. })), "{twice:?}");
    let never = json(r#"{"process": 1,"type":"ok","f":"read","value":null}"#);
    assert!(matches!(never, (3, 13, Problem::ReturnWithoutInvoke { .. })), "{never:?}");
    let other = json(r#"{"process":0,"type":"ok","f":"write","value":null}"#);
    assert!(matches!(other, (3, 30, Problem::OtherReturn { field: "f", since: 2, .. })), "{other:?}");
    let bad = fault(r#"{"process":0,"type":"invoke","f":"cas","value":[1]}"#);
    assert!(matches!(bad, (1, 48, Problem::BadValue { .. })), "{bad:?}");
    assert_eq!(json(r#"{"process":0,"type":"#), (3, 21, Problem::Truncated));
    assert_eq!(
        json(r#"{"process":0,"type":"done","f":"read"}"#),
        (3, 21, Problem::UnknownType("done".into()))
    );
    assert_eq!(json(r#"{"type":"ok","f":"read"}"#), (3, 1, Problem::MissingField("process")));
    assert!(matches!(json("[1]"), (3, 1, Problem::Syntax(_))));
    assert!(matches!(
        json(r#"{"process":0,"type":"ok","f":"read","value":1.5}"#),
        (3, 45, Problem::Syntax(_))
    ));
    let back = r#"{"index":5,"process":1,"type":"invoke","f":"read","value":null}"#;
    let back = fault(&format!("{back}\n{}", back.replace("5,\"process\":1", "4,\"process\":2")));
    assert_eq!(back, (2, 1, Problem::IndexRunsBack { before: 5, index: 4 }));
}

#[test]
fn errors_say_where_in_maps_and_logs() {
    let map = "{:process 0, :type :invoke, :f :frobnicate, :value nil}";
    assert_eq!(fault(map), (1, 32, Problem::UnknownFunction("frobnicate".into())));
    assert_eq!(fault("{:process 0, :type :invoke, :f"), (1, 31, Problem::Truncated));
    assert_eq!(fault("{:process 0, :type :invoke, :f :write, :value \"ab"), (1, 50, Problem::Truncated));
    let log = |line: &str| fault(&format!("INFO  jepsen.util - 0\t:invoke\t:write\t1\n{line}"));
    assert_eq!(
        log("INFO  jepsen.util - 1\t:invoke\t:push\t1\n"),
        (2, 31, Problem::UnknownFunction("push".into()))
    );
    assert_eq!(log("INFO  jepsen.util - 1\t:invoke"), (2, 30, Problem::Truncated));
    assert_eq!(log("INFO  jepsen.util - 1\t:invoke\t:write\t"), (2, 38, Problem::Truncated));
    assert_eq!(log("INFO  jepsen.util - 1\t:invoke\t:cas\t[1 "), (2, 39, Problem::Truncated));
    assert_eq!(log("INFO  jepsen.util - 1\t:inv"), (2, 27, Problem::Truncated));
    assert_eq!(log("INFO  jepsen.util - 1\t:inv\t:read\tnil"), (2, 23, Problem::UnknownType("inv".into())));
    let cut = log("INFO  jepsen.util - 1\t:invoke\t:write\t4");
    assert_eq!(cut, (2, 39, Problem::Truncated), "it may have been 42");
    let twice = log("INFO  jepsen.util - 0\t:invoke\t:write\t2\n");
    assert!(matches!(twice, (2, 21, Problem::DoubleInvoke { since: 1, .. })), "{twice:?}");
    let never = log("INFO  jepsen.util - 7\t:ok\t:write\t2\n");
    assert!(matches!(never, (2, 21, Problem::ReturnWithoutInvoke { .. })), "{never:?}");
    assert_eq!(fault("hello\n"), (1, 1, Problem::UnknownFormat));
    let error = read_bytes(b"{\"process\":0}\n{\"f\":\"\xff\"}").unwrap_err();
    assert_eq!((error.line, error.column), (2, 7));
}

fn transaction_events(seed: u64) -> Vec<Event> {
    let shape = TransactionWorkload::new(4, 3, 60);
    TransactionWorkload { seed, open: 100, failed: 100, ..shape }.events()
}

#[test]
fn what_is_written_of_transactions_can_be_read() {
    for seed in 0..50 {
        let events = transaction_events(seed);
        let expected = TransactionHistory::from_events(events.clone()).unwrap().transactions().to_vec();
        assert!(expected.len() == 60 && expected.iter().any(|txn| txn.ending == Ending::Failed));
        for text in [as_json(&events), as_edn(&events)] {
            let mut read = read_transactions(&text).unwrap().transactions().to_vec();
            for transaction in &mut read {
                assert!(transaction.called_at.line > 0);
                (transaction.called_at, transaction.returned_at) = (Place::default(), Place::default());
            }
            assert_eq!(read, expected);
        }
    }
}

/// Jepsen's own form: keywords, and nil for the list of a key that is absent.
#[test]
fn jepsens_maps_are_histories_of_transactions() {
    let text = "{:type :invoke, :f :txn, :value [[:append 3 1] [:r 4 nil] [:r 5 nil]], :process 0, :index 7}
{:type :ok, :f :txn, :value [[:append 3 1] [:r 4 [1 2]] [:r 5 nil]], :process 0, :index 8}
{:type :info, :f :start, :process :nemesis, :index 9}
{:type :invoke, :f :txn, :value [[:r 3 nil]], :process 1, :index 10}
{:type :info, :f :txn, :value [[:r 3 nil]], :process 1, :index 11, :error :timeout}";
    let history = read_transactions(text).unwrap();
    let [first, second] = history.transactions() else { panic!("{history:?}") };
    let (append, empty) = (MicroOperation::append(3, 1), MicroOperation::read_as(5, []));
    assert_eq!(first.operations, [append, MicroOperation::read_as(4, [1, 2]), empty]);
    assert_eq!(second.operations, [MicroOperation::read(3)]);
    assert_eq!((first.ending, second.ending), (Ending::Committed, Ending::Open));
    assert_eq!((first.call, first.ret, second.call, second.ret), (1, Some(2), 3, None));
}

fn transaction_fault(lines: &[&str]) -> (u32, u32, Problem) {
    let error = read_transactions(&lines.join("\n")).unwrap_err();
    (error.line, error.column, error.problem)
}

#[test]
fn errors_say_where_in_transactions() {
    let invoke = r#"{"process":0,"type":"invoke","f":"txn","value":[["append","x",1],["r","y",null]]}"#;
    let ok = |value: &str| format!(r#"{{"process":0,"type":"ok","f":"txn","value":{value}}}"#);
    let again = invoke.replace(":0", ":1");
    let twice = transaction_fault(&[invoke, &again]);
    assert!(matches!(twice, (2, 48, Problem::AppendedTwice { element: 1, since: 1, .. })), "{twice:?}");
    for other in [
        r#"[["append","x",1]]"#,
        r#"[["append","x",2],["r","y",[]]]"#,
        r#"[["append","x",1],["r","z",[]]]"#,
        r#"[["r","y",[]],["append","x",1]]"#,
        "[]",
    ] {
        let fault = transaction_fault(&[invoke, &ok(other)]);
        assert!(matches!(fault, (2, 44, Problem::OtherReturn { field: "value", since: 1, .. })), "{fault:?}");
    }
    // A value that is null is none, and has no column.
    assert!(matches!(transaction_fault(&[invoke, &ok("null")]), (2, 1, Problem::BadValue { .. })));
    for bad in [
        "7",
        r#"[["append","x"]]"#,
        r#"[["append","x",1],["r","y",["a"]]]"#,
        r#"[["append","x",1],["w","y",2]]"#,
        r#"[["append","x",null],["r","y",[]]]"#,
    ] {
        let fault = transaction_fault(&[invoke, &ok(bad)]);
        assert!(matches!(fault, (2, 44, Problem::BadValue { .. })), "{bad}: {fault:?}");
    }
    let foreign = transaction_fault(&[r#"{"process":0,"type":"invoke","f":"read","value":null}"#]);
    assert!(matches!(foreign, (1, 34, Problem::ForeignFunction { .. })), "{foreign:?}");
    for kind in ModelKind::ALL {
        let refused = check(&read(invoke).unwrap(), kind, &Budget::steps(1000)).unwrap_err();
        assert!(matches!(refused.problem, Problem::ForeignFunction { .. }), "{refused}");
    }
    let early = Transaction::open(0, [MicroOperation::read("x")], 5).committed(4);
    assert!(TransactionHistory::from_transactions(vec![early]).is_err());
    assert_eq!(
        Event::transaction(0, EventKind::Invoke, &[MicroOperation::append("x", 1)]).to_json_line(3),
        r#"{"f":"txn","index":3,"process":0,"type":"invoke","value":[["append","x",1]]}"#
    );
}

#[test]
fn deep_nesting_is_refused() {
    let deep = "[".repeat(100_000);
    let json =
        format!(r#"{{"process":0,"type":"invoke","f":"write","value":{deep}{}}}"#, "]".repeat(100_000));
    assert!(read(&json).is_err());
    assert!(read(&format!("{{:process 0, :type :invoke, :f :write, :value {deep}")).is_err());
}

proptest! {
    /// Whatever stands in a file, it is read or refused.
    #[test]
    fn no_input_panics(head in prop::sample::select(vec!["", "{", "{:", "{\"", "0 ", "INFO jepsen.util - 0 ", "#jepsen{"]), rest in "[ -~\n\t\u{e9}]{0,80}") {
        let _ = read(&format!("{head}{rest}"));
    }

    /// The same for what is nearly a history.
    #[test]
    fn no_broken_history_panics(seed in 0u64..1000, kind in 0..ModelKind::ALL.len(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let kind = *ModelKind::ALL.get(kind).unwrap();
        let events = events(kind, seed);
        for text in [as_json(&events), as_edn(&events)] {
            let mut bytes = text.into_bytes();
            let at = at.index(bytes.len());
            *bytes.get_mut(at).unwrap() = byte;
            if let Ok(history) = read_bytes(&bytes) {
                let _ = check(&history, kind, &Budget::steps(1000));
            }
        }
    }

    /// The same for transactions.
    #[test]
    fn no_broken_history_of_transactions_panics(seed in 0u64..1000, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let events = transaction_events(seed);
        for text in [as_json(&events), as_edn(&events)] {
            let mut bytes = text.into_bytes();
            let at = at.index(bytes.len());
            *bytes.get_mut(at).unwrap() = byte;
            if let Ok(Ok(history)) = String::from_utf8(bytes).map(|text| read_transactions(&text)) {
                let _ = check_transactions(&history);
            }
        }
    }
}
