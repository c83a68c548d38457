//! The client's transactions, against nodes that answer as each test tells them.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kv_client::{
    AbortCause, ApiError, Client, Code, Compare, Config, Expect, Failure, LeaderHint, LimitExceeded,
    RequestIds, TxnError, TxnOp, TxnRow,
};
use kv_proto::status::NotLeader;
use kv_proto::v1::request_id::Id;
use kv_proto::v1::{AbortReason, CommitRequest, SessionRequest};
use kv_types::{Fingerprint, Key, KeyRange, NodeId, Outcome, RequestId, Revision, SessionId};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::server::{Act, Node, map};
use crate::{SHARD, key, value};

/// Nodes that share their rows, with the shards `["", m)` at the first and `[m, ...)` at the last, and a client.
async fn cluster(count: usize, change: impl FnOnce(&mut Config)) -> (Vec<Node>, Client) {
    let mut nodes: Vec<Node> = Vec::new();
    for _ in 0..count {
        let node = Node::start().await;
        if let Some(first) = nodes.first() {
            node.share(first);
        }
        nodes.push(node);
    }
    let map = map(&nodes, &[("", 0), ("m", count - 1)], 3);
    nodes.iter().for_each(|node| node.set_map(&map));
    let mut config = Config::new(nodes.iter().map(Node::endpoint));
    config.backoff.first = Duration::from_millis(1);
    config.backoff.max = Duration::from_millis(5);
    config.rest = Duration::from_millis(5);
    config.timeout = Duration::from_secs(20);
    change(&mut config);
    (nodes, Client::connect(config).await.unwrap())
}

fn id(commit: &CommitRequest) -> SessionRequest {
    let id = commit.context.as_ref().and_then(|context| context.request_id.clone());
    match id.and_then(|id| id.id) {
        Some(Id::Session(request)) => request,
        other => panic!("{other:?}"),
    }
}

/// The numbers of the commits that a node was asked for.
fn numbers(node: &Node) -> Vec<u64> {
    node.commits().iter().map(|commit| id(commit).seq).collect()
}

fn values(rows: &[TxnRow]) -> Vec<(&str, &str)> {
    let text = |bytes| std::str::from_utf8(bytes).unwrap();
    rows.iter().map(|row| (text(row.key.as_ref()), text(row.value.as_ref()))).collect()
}

fn range(start: &'static str, end: &'static str) -> KeyRange {
    KeyRange::new(start, Some(end.into())).unwrap()
}

fn cause(error: &TxnError) -> AbortCause {
    match error {
        TxnError::Aborted(aborted) => aborted.cause,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn nothing_is_sent_before_the_commit_and_then_everything_takes_effect() {
    let (nodes, client) = cluster(2, |_| {}).await;
    nodes[0].put("a", "1");
    let mut txn = client.begin();
    assert_eq!(txn.get(key("a")).await.unwrap().unwrap().value, value("1"));
    txn.put(key("x"), value("2")).unwrap();
    txn.delete(key("a")).unwrap();
    assert_eq!((nodes[0].value("x"), nodes[0].commits().len()), (None, 0));
    let committed = txn.commit().await.unwrap();
    assert_eq!(committed.header.unwrap().revision, Revision::new(9));
    assert_eq!((nodes[0].value("a"), nodes[0].value("x")), (None, Some("2".into())));
    assert_eq!(nodes[0].commits()[0].anchor, "a", "it was read and is written");
    let mut txn = client.begin();
    txn.put(key("y"), value("3")).unwrap();
    txn.abort();
    assert_eq!((nodes[0].value("y"), nodes[1].commits().len()), (None, 0));
}

#[tokio::test]
async fn one_that_did_nothing_needs_no_call_and_one_that_only_read_is_validated() {
    let (nodes, client) = cluster(2, |_| {}).await;
    assert_eq!(client.begin().commit().await.unwrap().header, None);
    assert_eq!(nodes[0].validated().len(), 0);
    nodes[0].put("a", "1");
    let mut txn = client.begin();
    txn.multi_get(vec![key("b"), key("x"), key("a")]).await.unwrap();
    txn.commit().await.unwrap();
    let reads =
        |node: &Node| node.validated()[0].reads.iter().map(|read| read.key.clone()).collect::<Vec<_>>();
    assert_eq!((reads(&nodes[0]), reads(&nodes[1])), (vec!["a".into(), "b".into()], vec!["x".into()]));
    let mut txn = client.begin();
    txn.get(key("b")).await.unwrap();
    nodes[0].put("b", "1");
    let TxnError::Aborted(aborted) = txn.commit().await.unwrap_err() else { panic!() };
    assert_eq!((aborted.cause, aborted.at), (AbortCause::Conflict, Some("b".into())));
    assert_eq!(aborted.request, None, "it needs no number");
    assert_eq!((nodes[0].commits().len(), nodes[0].sessions().0), (0, 0));
}

#[tokio::test]
async fn own_writes_are_seen_by_every_read() {
    let (nodes, client) = cluster(2, |_| {}).await;
    for (key, value) in [("a", "1"), ("b", "2"), ("c", "3"), ("n", "4")] {
        nodes[0].put(key, value);
    }
    let mut txn = client.begin();
    txn.put(key("aa"), value("own")).unwrap();
    txn.put(key("c"), value("own")).unwrap();
    txn.delete(key("b")).unwrap();
    let asked = nodes[0].asked();
    assert_eq!(txn.get(key("aa")).await.unwrap().unwrap().mod_revision, None);
    assert_eq!(txn.get(key("b")).await.unwrap(), None);
    assert!(txn.compare(key("b"), &Expect::Absent).await.unwrap());
    assert!(txn.compare(key("c"), &Expect::Value(value("own"))).await.unwrap());
    assert!(!txn.compare(key("c"), &Expect::Revision(Revision::new(3))).await.unwrap());
    assert_eq!(nodes[0].asked(), asked, "nothing had to be read");
    let rows = txn.multi_get(vec![key("c"), key("a"), key("b")]).await.unwrap();
    let rows: Vec<_> = rows.into_iter().map(|row| row.map(|row| row.value)).collect();
    assert_eq!(rows, [Some(value("own")), Some(value("1")), None]);
    let rows = txn.scan(KeyRange::all(), None).await.unwrap();
    assert_eq!(values(&rows), [("a", "1"), ("aa", "own"), ("c", "own"), ("n", "4")]);
    assert_eq!(txn.incr(key("a"), 5).await.unwrap(), 6);
    assert_eq!(txn.incr(key("a"), 5).await.unwrap(), 11);
    assert_eq!(txn.incr(key("new"), -1).await.unwrap(), -1);
    txn.commit().await.unwrap();
    assert_eq!((nodes[0].value("a"), nodes[0].value("new")), (Some("11".into()), Some("-1".into())));
}

#[tokio::test]
async fn what_is_no_number_or_would_overflow_is_refused_as_by_incr() {
    let (nodes, client) = cluster(1, |_| {}).await;
    nodes[0].put("text", "abc");
    nodes[0].put("large", "9223372036854775807");
    let mut txn = client.begin();
    for (name, reason) in [("text", "not_a_number"), ("large", "number_overflow")] {
        let TxnError::Failed(error) = txn.incr(key(name), 1).await.unwrap_err() else { panic!() };
        assert_eq!((&*error.failure.reason(), error.outcome), (reason, Outcome::NotApplied));
    }
    txn.commit().await.unwrap();
    assert_eq!(nodes[0].validated().len(), 2, "both were read, each of its shard");
}

#[tokio::test]
async fn a_key_is_read_once_and_stays_as_it_was() {
    let (nodes, client) = cluster(1, |_| {}).await;
    nodes[0].put("a", "1");
    let mut txn = client.begin();
    txn.get(key("a")).await.unwrap();
    txn.get(key("b")).await.unwrap();
    txn.scan(range("c", "e"), None).await.unwrap();
    let asked = nodes[0].asked();
    for name in ["a", "b", "c", "d"] {
        nodes[0].put(name, "2");
    }
    assert_eq!(txn.get(key("a")).await.unwrap().unwrap().value, value("1"));
    assert_eq!(txn.multi_get(vec![key("b"), key("c"), key("d")]).await.unwrap(), [None, None, None]);
    assert_eq!(txn.scan(range("c", "e"), None).await.unwrap(), []);
    assert!(txn.compare(key("d"), &Expect::Absent).await.unwrap());
    assert_eq!(nodes[0].asked(), asked);
    assert_eq!(cause(&txn.commit().await.unwrap_err()), AbortCause::Conflict);
}

#[tokio::test]
async fn a_scan_that_finds_a_read_key_changed_dooms_the_transaction() {
    let (nodes, client) = cluster(1, |_| {}).await;
    let mut txn = client.begin();
    txn.get(key("b")).await.unwrap();
    nodes[0].put("b", "1");
    let error = txn.scan(range("a", "c"), None).await.unwrap_err();
    assert_eq!(cause(&error), AbortCause::Conflict);
    assert_eq!(txn.get(key("z")).await.unwrap_err(), error);
    assert_eq!(txn.commit().await.unwrap_err(), error);
    assert_eq!(nodes[0].commits().len(), 0);
}

#[tokio::test]
async fn a_scan_over_shards_and_pages_is_validated_shard_by_shard() {
    let (nodes, client) = cluster(2, |_| {}).await;
    for name in ["a", "b", "c", "n", "o"] {
        nodes[0].put(name, "1");
    }
    nodes[0].set_page_rows(2);
    let mut txn = client.begin();
    txn.put(key("bb"), value("own")).unwrap();
    let rows = txn.scan(range("a", "x"), None).await.unwrap();
    assert_eq!(values(&rows), [("a", "1"), ("b", "1"), ("bb", "own"), ("c", "1"), ("n", "1"), ("o", "1")]);
    txn.commit().await.unwrap();
    let commit = kv_proto::txn::Commit::try_from(nodes[0].commits()[0].clone()).unwrap();
    let digest = |keys: &[(&'static str, u64)]| {
        Fingerprint::of_scan(keys.iter().map(|(key, revision)| (key.as_bytes(), Revision::new(*revision))))
    };
    let expected = [
        (range("a", "m"), digest(&[("a", 1), ("b", 2), ("c", 3)])),
        (range("m", "x"), digest(&[("n", 4), ("o", 5)])),
    ];
    assert_eq!(commit.scans, expected);
    assert_eq!(commit.anchor, key("bb"));
}

#[tokio::test]
async fn a_limit_ends_the_range_behind_the_last_row() {
    let (nodes, client) = cluster(2, |_| {}).await;
    for name in ["a", "b", "c", "d", "n", "o", "p"] {
        nodes[0].put(name, "1");
    }
    let scanned = async |limit, prepare: fn(&mut kv_client::Txn)| {
        let mut txn = client.begin();
        prepare(&mut txn);
        let rows = txn.scan(range("a", "z"), Some(limit)).await.unwrap();
        // Behind the limit anything may happen.
        nodes[0].put("p", "2");
        txn.put(key("zz"), value("written")).unwrap();
        txn.commit().await.unwrap();
        let commits = [nodes[0].commits(), nodes[1].commits()].concat();
        let commit = commits.into_iter().max_by_key(|commit| id(commit).seq).unwrap();
        let commit = kv_proto::txn::Commit::try_from(commit).unwrap();
        let keys: String = rows.iter().map(|row| std::str::from_utf8(row.key.as_ref()).unwrap()).collect();
        (keys, commit.scans.into_iter().map(|(range, _)| range).collect::<Vec<_>>())
    };
    assert_eq!(scanned(2, |_| {}).await, ("ab".into(), vec![range("a", "b\0")]));
    assert_eq!(scanned(4, |_| {}).await, ("abcd".into(), vec![range("a", "d\0")]));
    let over = ("abcdn".to_owned(), vec![range("a", "m"), range("m", "n\0")]);
    assert_eq!(scanned(5, |_| {}).await, over);
    // Own deletions do not count, and cost no further call; own keys count.
    let asked = nodes[0].asked();
    let deleting = |txn: &mut kv_client::Txn| txn.delete(key("a")).unwrap();
    assert_eq!(scanned(2, deleting).await, ("bc".into(), vec![range("a", "c\0")]));
    assert_eq!(nodes[0].asked(), asked + 1);
    nodes[0].put("a", "1");
    let adding = |txn: &mut kv_client::Txn| txn.put(key("ab"), value("own")).unwrap();
    assert_eq!(scanned(2, adding).await, ("aab".into(), vec![range("a", "ab\0")]));
}

#[tokio::test]
async fn overlapping_scans_are_one_and_read_only_what_lies_between() {
    let (nodes, client) = cluster(1, |_| {}).await;
    for name in ["a", "b", "c", "d", "e"] {
        nodes[0].put(name, "1");
    }
    let mut txn = client.begin();
    assert_eq!(txn.scan(range("b", "d"), None).await.unwrap().len(), 2);
    nodes[0].put("c", "2");
    nodes[0].put("bb", "2");
    let rows = txn.scan(range("a", "z"), Some(4)).await.unwrap();
    assert_eq!(values(&rows), [("a", "1"), ("b", "1"), ("c", "1"), ("d", "1")]);
    assert_eq!(txn.scan(range("a", "c"), None).await.unwrap().len(), 2);
    assert_eq!(txn.scan(range("a", "z"), Some(0)).await.unwrap(), []);
    assert_eq!(cause(&txn.commit().await.unwrap_err()), AbortCause::Conflict);
    let asked = nodes[0].validated()[0].clone();
    let ranges: Vec<_> = asked.scans.into_iter().map(|scan| scan.range.unwrap()).collect();
    assert_eq!(ranges.len(), 1);
    assert_eq!((&ranges[0].start[..], ranges[0].end.as_deref()), (&b"a"[..], Some(&b"d\0"[..])));
}

#[tokio::test]
async fn scans_see_what_a_model_sees_whatever_was_scanned_and_written_before() {
    let (nodes, client) = cluster(2, |_| {}).await;
    let mut dice = StdRng::seed_from_u64(7);
    let name = |n: u32| format!("{}{}", ["a", "d", "l", "m", "n"][n as usize / 4], n % 4);
    for _ in 0..300 {
        let mut model = BTreeMap::new();
        nodes[0].set_page_rows(dice.random_range(1..6));
        for n in 0..20 {
            let key = Key::new(name(n)).unwrap();
            client.delete(key.clone()).await.unwrap();
            if dice.random_bool(0.6) {
                client.put(key.clone(), value("old")).await.unwrap();
                model.insert(key, value("old"));
            }
        }
        let mut txn = client.begin();
        for _ in 0..dice.random_range(1..9) {
            let key = Key::new(name(dice.random_range(0..20))).unwrap();
            match dice.random_range(0..4) {
                0 => {
                    model.insert(key.clone(), value("own"));
                    txn.put(key, value("own")).unwrap();
                }
                1 => {
                    model.remove(&key);
                    txn.delete(key).unwrap();
                }
                2 => {
                    let found = txn.get(key.clone()).await.unwrap().map(|row| row.value);
                    assert_eq!(found.as_ref(), model.get(&key));
                }
                _ => {
                    let (start, end) = (name(dice.random_range(0..20)), name(dice.random_range(0..20)));
                    let Ok(range) = KeyRange::new(start, Some(end.into())) else { continue };
                    let limit = dice.random_bool(0.7).then(|| dice.random_range(0..6));
                    let rows = txn.scan(range.clone(), limit).await.unwrap();
                    let within = model.iter().filter(|(key, _)| range.contains(key.as_ref()));
                    let expected: Vec<_> = within.take(limit.unwrap_or(usize::MAX)).collect();
                    let found: Vec<_> = rows.iter().map(|row| (&row.key, &row.value)).collect();
                    assert_eq!(found, expected, "{range:?} {limit:?}");
                }
            }
        }
        // The server recomputes what was seen, and refuses ranges that overlap or reach beyond a shard.
        txn.commit().await.unwrap();
    }
}

#[tokio::test]
async fn one_that_only_reads_locks_what_it_reads_after_three_tries() {
    let (nodes, client) = cluster(1, |_| {}).await;
    nodes[0].put("b", "1");
    let tries = std::cell::Cell::new(0);
    let (nodes_of, tries_of) = (&nodes, &tries);
    let rows = client
        .transact(|mut txn| async move {
            let rows = txn.scan(KeyRange::all(), None).await?;
            tries_of.set(tries_of.get() + 1);
            if tries_of.get() <= 3 {
                nodes_of[0].put("b", "changed meanwhile");
            }
            Ok::<_, TxnError>(rows.len())
        })
        .await
        .unwrap();
    // Two shards are asked at each try.
    assert_eq!((rows, tries.get(), nodes[0].validated().len()), (1, 4, 6));
    let commits = nodes[0].commits();
    assert_eq!((commits.len(), &commits[0].anchor[..], commits[0].writes.len()), (1, &b"b"[..], 0));
    assert_eq!(commits[0].reads[0].seen, 4, "the row that it has seen is its anchor");
}

#[tokio::test]
async fn what_exceeds_a_limit_is_refused_before_anything_is_sent() {
    let (nodes, client) = cluster(1, |_| {}).await;
    let number = |n: u32| Key::new(format!("k{n:04}")).unwrap();
    for n in 0..1001 {
        client.put(number(n), value("v")).await.unwrap();
    }
    let mut txn = client.begin();
    let error = txn.scan(KeyRange::all(), None).await.unwrap_err();
    assert_eq!(error, TxnError::Limit(LimitExceeded::ScannedKeys));
    assert_eq!(txn.scan(KeyRange::all(), Some(1000)).await.unwrap().len(), 1000);
    let error = txn.scan(KeyRange::all(), Some(1001)).await.unwrap_err();
    assert_eq!(error, TxnError::Limit(LimitExceeded::ScannedKeys));
    txn.commit().await.unwrap();
    let mut txn = client.begin();
    (0..1024).for_each(|n| txn.put(number(n), value("v")).unwrap());
    let more = txn.put(number(1024), value("v")).unwrap_err();
    assert_eq!(more, TxnError::Limit(LimitExceeded::Operations));
    assert_eq!(txn.get(number(1024)).await.unwrap_err(), more);
    txn.commit().await.unwrap();
    assert_eq!((nodes[0].commits().len(), nodes[0].validated().len()), (1, 1));
}

#[tokio::test]
async fn the_largest_transaction_can_be_sent() {
    let (nodes, client) = cluster(1, |_| {}).await;
    let mut txn = client.begin();
    for n in 0..1024 {
        let key = Key::new(format!("k{n:04}")).unwrap();
        txn.put(key, kv_types::Value::new(vec![7; (8 << 10) - 5]).unwrap()).unwrap();
    }
    let error = txn.put(key("k0000"), kv_types::Value::new(vec![7; 8 << 10]).unwrap()).unwrap_err();
    assert_eq!(error, TxnError::Limit(LimitExceeded::Bytes((8 << 20) + 5)));
    txn.commit().await.unwrap();
    assert_eq!(nodes[0].value("k1023").unwrap().len(), (8 << 10) - 5);
}

#[tokio::test]
async fn a_conflict_is_tried_anew_with_a_new_number() {
    let (nodes, client) = cluster(2, |_| {}).await;
    nodes[0].put("a", "1");
    let first = nodes[0].clone();
    // Within a task and with what the closure borrows, as applications call it.
    let tried = tokio::spawn(async move {
        let (first, counter) = (&first, &key("a"));
        let mut tries = 0;
        let sum = client
            .transact(|mut txn| {
                tries += 1;
                async move {
                    let sum = txn.incr(counter.clone(), 1).await?;
                    if tries <= 2 {
                        first.put("a", if tries == 1 { "10" } else { "20" });
                    }
                    txn.put(key("x"), value("done"))?;
                    Ok::<_, TxnError>(sum)
                }
            })
            .await;
        (sum, tries)
    });
    assert_eq!(tried.await.unwrap(), (Ok(21), 3));
    assert_eq!((nodes[0].value("a"), nodes[0].value("x")), (Some("21".into()), Some("done".into())));
    assert_eq!(numbers(&nodes[0]), [1, 2, 3]);
    // From the second try on its keys were reserved, shard by shard.
    let reserved = |node: &Node| node.reserved().into_iter().map(|asked| (asked.reservation, asked.keys));
    let by: Vec<u64> = nodes[0].commits().iter().map(|commit| commit.reservation).collect();
    assert!(by[0] == 0 && by[1] != 0 && by[2] != by[1], "{by:?}");
    let of = |key: &'static str| vec![(by[1], vec![Bytes::from(key)]), (by[2], vec![Bytes::from(key)])];
    assert_eq!(reserved(&nodes[0]).collect::<Vec<_>>(), of("a"));
    assert_eq!(reserved(&nodes[1]).collect::<Vec<_>>(), of("x"));
}

#[tokio::test]
async fn every_abort_is_tried_anew_and_the_last_one_told() {
    let (nodes, client) = cluster(1, |config| config.transact.max = 6).await;
    let reasons =
        [AbortReason::Locked, AbortReason::Unreachable, AbortReason::DecidedBefore, AbortReason::Conflict];
    nodes[0].act(reasons.map(Act::Abort));
    let run = async |mut txn: kv_client::Txn| txn.put(key("a"), value("1"));
    client.transact(run).await.unwrap();
    assert_eq!(numbers(&nodes[0]), [1, 2, 3, 4, 5]);
    nodes[0].act([AbortReason::Locked; 6].map(Act::Abort));
    assert_eq!(cause(&client.transact(run).await.unwrap_err()), AbortCause::Locked);
    assert_eq!(numbers(&nodes[0]).len(), 11);
    let (nodes, client) = cluster(1, |config| config.transact.within = Duration::ZERO).await;
    nodes[0].act([Act::Abort(AbortReason::Conflict)]);
    assert_eq!(cause(&client.transact(run).await.unwrap_err()), AbortCause::Conflict);
    assert_eq!(numbers(&nodes[0]), [1]);
}

#[tokio::test]
async fn an_error_of_the_closure_aborts_and_is_returned() {
    #[derive(Debug, PartialEq)]
    enum Own {
        NoMoney,
        Txn(TxnError),
    }
    impl From<TxnError> for Own {
        fn from(error: TxnError) -> Self {
            Self::Txn(error)
        }
    }
    let (nodes, client) = cluster(1, |_| {}).await;
    let refused = client
        .transact(async |mut txn| {
            txn.put(key("a"), value("1"))?;
            Err::<(), _>(Own::NoMoney)
        })
        .await;
    assert_eq!((refused, nodes[0].commits().len()), (Err(Own::NoMoney), 0));
    // Unless what it has read has changed already.
    let mut tries = 0;
    let node = &nodes[0];
    let done = client
        .transact(|mut txn| {
            tries += 1;
            async move {
                txn.get(key("b")).await?;
                if tries == 1 {
                    node.put("b", "1");
                }
                txn.scan(range("a", "c"), None).await?;
                Ok::<_, Own>(())
            }
        })
        .await;
    assert_eq!((done, tries), (Ok(()), 2));
}

#[tokio::test]
async fn a_transaction_that_its_closure_keeps_or_ends_is_not_committed_for_it() {
    let (nodes, client) = cluster(1, |_| {}).await;
    let kept = std::sync::Mutex::new(None);
    let error = client
        .transact(async |mut txn| {
            txn.put(key("a"), value("1"))?;
            *kept.lock().unwrap() = Some(txn);
            Ok::<_, TxnError>(())
        })
        .await
        .unwrap_err();
    assert_eq!((error.outcome(), nodes[0].commits().len()), (Outcome::NotApplied, 0));
    let aborted = client
        .transact(async |mut txn| {
            txn.put(key("a"), value("1"))?;
            txn.abort();
            Ok::<_, TxnError>("nothing to do")
        })
        .await;
    assert_eq!((aborted, nodes[0].commits().len()), (Ok("nothing to do"), 0));
    nodes[0].act([Act::Abort(AbortReason::Conflict)]);
    let run = async |mut txn: kv_client::Txn| {
        txn.put(key("a"), value("1"))?;
        txn.commit().await
    };
    assert!(client.transact(run).await.unwrap().header.is_some());
    assert_eq!(numbers(&nodes[0]), [1, 2], "one that ends it itself is tried anew, too");
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_and_the_transaction_decided_once() {
    let (nodes, client) = cluster(1, |_| {}).await;
    nodes[0].put("n", "5");
    let mut txn = client.begin();
    txn.incr(key("n"), 1).await.unwrap();
    nodes[0].act([
        Act::Break,
        Act::Lose,
        Act::Fail(ApiError::LeadershipLost(SHARD)),
        Act::Fail(ApiError::Locked("n".into())),
    ]);
    let committed = txn.commit().await.unwrap();
    assert!(committed.header.unwrap().replayed);
    assert_eq!(nodes[0].value("n"), Some("6".into()));
    assert_eq!(numbers(&nodes[0]), [1, 1, 1, 1, 1]);
    let commits = nodes[0].commits();
    assert!(commits.iter().all(|commit| commit.writes == commits[0].writes && commit.crc == commits[0].crc));
    assert!(commits[0].context.as_ref().unwrap().deadline_ms > 0);
}

#[tokio::test]
async fn an_expired_session_is_renewed_and_the_same_commit_sent_again() {
    let (nodes, client) = cluster(1, |_| {}).await;
    nodes[0].act([Act::Fail(ApiError::SessionExpired("for the test".into()))]);
    let mut txn = client.begin();
    txn.put(key("a"), value("1")).unwrap();
    txn.commit().await.unwrap();
    let leases: Vec<_> = nodes[0].commits().iter().map(|c| (id(c).seq, id(c).lease_until_ms)).collect();
    assert_eq!(leases, [(1, 1_000), (1, 1_001)]);
    assert_eq!(nodes[0].sessions(), (1, 1));
}

#[tokio::test]
async fn a_leader_hint_is_followed_with_the_same_number() {
    let (nodes, client) = cluster(2, |_| {}).await;
    let hint = Some(LeaderHint { node: NodeId::new(2), client_addr: nodes[1].endpoint() });
    nodes[0].act([Act::Fail(ApiError::NotLeader(NotLeader { shard: SHARD, hint }))]);
    let mut txn = client.begin();
    txn.put(key("a"), value("1")).unwrap();
    txn.commit().await.unwrap();
    assert_eq!((numbers(&nodes[0]), numbers(&nodes[1])), (vec![1], vec![1]));
    assert_eq!(nodes[0].value("a"), Some("1".into()));
}

#[tokio::test]
async fn an_unknown_outcome_is_told_and_not_tried_anew() {
    let (nodes, client) = cluster(1, |config| config.timeout = Duration::from_millis(1000)).await;
    nodes[0].act((0..1000).map(|_| Act::Break));
    let mut tries = 0;
    let error = client
        .transact(|mut txn| {
            tries += 1;
            async move { txn.put(key("a"), value("1")) }
        })
        .await
        .unwrap_err();
    assert_eq!((tries, error.outcome(), error.is_worth_a_retry()), (1, Outcome::Unknown, false));
    assert_eq!(error.request(), Some(RequestId::Session { session: SessionId::new(1), seq: 1 }));
    let TxnError::Unknown { anchor, source } = error else { panic!("{error:?}") };
    assert_eq!((anchor, source.outcome), (key("a"), Outcome::Unknown));
    let numbers = numbers(&nodes[0]);
    assert!(numbers.len() > 1 && numbers.iter().all(|number| *number == 1), "{numbers:?}");
}

#[tokio::test]
async fn silence_after_the_commit_is_unknown_and_a_new_leader_is_found() {
    let (nodes, client) = cluster(2, |config| config.timeout = Duration::from_millis(1500)).await;
    let put = async || {
        let mut txn = client.begin();
        txn.put(key("a"), value("1")).unwrap();
        txn.commit().await
    };
    nodes[0].act((0..10).map(|_| Act::Ignore));
    let error = put().await.unwrap_err();
    assert!(
        matches!(&error, TxnError::Unknown { source, .. }
        if matches!(source.failure, Failure::TimedOut(_))),
        "{error:?}"
    );
    let elected = map(&nodes, &[("", 1), ("m", 1)], 4);
    nodes.iter().for_each(|node| node.set_map(&elected));
    put().await.unwrap();
    assert_eq!(nodes[1].commits().len(), 1);
}

#[tokio::test]
async fn without_a_session_nothing_is_sent_and_without_a_node_nothing_happened() {
    let (nodes, client) = cluster(1, |config| config.timeout = Duration::from_millis(300)).await;
    nodes[0].refuse_sessions();
    let mut txn = client.begin();
    txn.put(key("a"), value("1")).unwrap();
    let TxnError::Failed(error) = txn.commit().await.unwrap_err() else { panic!() };
    assert_eq!((error.outcome, nodes[0].commits().len()), (Outcome::NotApplied, 0));
    let (nodes, client) = cluster(2, |config| config.timeout = Duration::from_millis(300)).await;
    let mut txn = client.begin();
    txn.put(key("z"), value("1")).unwrap();
    // The shard of `z` is at the second node, which nobody has a connection to yet.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = listener.local_addr().unwrap().to_string();
    drop(listener);
    let mut elsewhere = map(&nodes, &[("", 0), ("m", 1)], 9);
    elsewhere.members[1].client_addr = dead;
    nodes.iter().for_each(|node| node.set_map(&elsewhere));
    let mut config = Config::new([nodes[0].endpoint()]);
    config.timeout = Duration::from_millis(300);
    drop((txn, client));
    let client = Client::connect(config).await.unwrap();
    let mut txn = client.begin();
    txn.put(key("z"), value("1")).unwrap();
    let TxnError::Failed(error) = txn.commit().await.unwrap_err() else { panic!() };
    assert_eq!((error.outcome, error.failure.code()), (Outcome::NotApplied, Code::Unavailable), "{error:?}");
}

#[tokio::test]
async fn transactions_have_sessions_of_their_own_whatever_names_other_writes() {
    for request_ids in [RequestIds::Timed, RequestIds::None] {
        let (nodes, client) = cluster(1, |config| config.request_ids = request_ids).await;
        client.put(key("a"), value("1")).await.unwrap();
        assert_eq!(nodes[0].sessions().0, 0);
        client.transact(async |mut txn| txn.put(key("a"), value("2"))).await.unwrap();
        assert_eq!((numbers(&nodes[0]), nodes[0].sessions().0), (vec![1], 1));
        client.put(key("a"), value("1")).await.unwrap();
        assert_eq!(nodes[0].sessions().0, 1);
    }
    let (nodes, client) = cluster(1, |_| {}).await;
    client.put(key("a"), value("1")).await.unwrap();
    client.transact(async |mut txn| txn.put(key("a"), value("2"))).await.unwrap();
    let sessions = nodes[0].commits().iter().map(|commit| id(commit).session).collect::<Vec<_>>();
    assert_eq!((sessions, nodes[0].sessions().0), (vec![2], 2), "not that of the shard");
    client.close().await.unwrap();
}

#[tokio::test]
async fn a_comparison_carries_out_one_branch_and_is_validated_even_if_that_is_empty() {
    let (nodes, client) = cluster(2, |_| {}).await;
    let take = || {
        Compare::new()
            .expect(key("lock"), Expect::Absent)
            .expect(key("z"), Expect::Absent)
            .then(TxnOp::Put(key("lock"), value("me")))
            .then(TxnOp::Get(key("lock")))
            .or_else(TxnOp::Get(key("lock")))
            .or_else(TxnOp::Get(key("x")))
    };
    let taken = client.compare(take()).await.unwrap();
    assert!(taken.held && taken.committed.header.is_some());
    assert_eq!(taken.found[0].clone().unwrap().mod_revision, None);
    let refused = client.compare(take()).await.unwrap();
    assert!(!refused.held);
    assert_eq!(refused.found[0].clone().unwrap().mod_revision, Some(Revision::new(1)));
    assert_eq!(refused.found[1], None);
    let empty = Compare::new().expect(key("x"), Expect::Absent);
    assert!(client.compare(empty.clone()).await.unwrap().held);
    assert_eq!((nodes[1].commits().len(), nodes[1].validated().len()), (0, 2), "two branches wrote nothing");
    nodes[0].put("x", "1");
    assert!(!client.compare(empty).await.unwrap().held);
    let nothing = client.compare(Compare::new()).await.unwrap();
    assert!(nothing.held && nothing.committed.header.is_none());
    let mut deleted = Compare::new().expect(key("lock"), Expect::Value(value("me")));
    deleted = deleted.then(TxnOp::Delete(key("lock")));
    assert!(client.compare(deleted).await.unwrap().held);
    assert_eq!(nodes[0].value("lock"), None);
}
