//! The client against nodes that answer as each test tells them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test file")]

#[path = "scripted/exactly_once.rs"]
mod exactly_once;
#[path = "scripted/server.rs"]
mod server;
#[path = "scripted/transactions.rs"]
mod transactions;

use std::time::Duration;

use bytes::Bytes;
use kv_client::{ApiError, Client, Code, Config, Failure, LeaderHint, RequestIds, ScanRequest};
use kv_proto::status::{NotLeader, Overloaded};
use kv_proto::v1;
use kv_types::{Key, KeyRange, NodeId, Outcome, ShardId, Value};
use server::{Act, Node, header, map, row};
use tonic::Status;

fn key(text: &'static str) -> Key {
    Key::new(text).unwrap()
}

fn value(text: &'static str) -> Value {
    Value::new(text).unwrap()
}

const SHARD: ShardId = ShardId::new(1);

/// Nodes with one shard, led by the first of them, and a client of the first.
async fn cluster(count: usize) -> (Vec<Node>, Client) {
    let mut nodes = Vec::new();
    for _ in 0..count {
        nodes.push(Node::start().await);
    }
    let map = map(&nodes, &[("", 0)], 3);
    nodes.iter().for_each(|node| node.set_map(&map));
    let client = Client::connect(config(&nodes)).await.unwrap();
    (nodes, client)
}

fn config(nodes: &[Node]) -> Config {
    let mut config = Config::new(nodes.iter().map(Node::endpoint));
    config.backoff.first = Duration::from_millis(1);
    config.timeout = Duration::from_secs(20);
    config.rest = Duration::from_millis(50);
    config.request_ids = RequestIds::None;
    config
}

fn hint(nodes: &[Node], index: usize) -> Act {
    let node = NodeId::new(index as u64 + 1);
    let hint = Some(LeaderHint { node, client_addr: nodes[index].endpoint() });
    Act::Fail(ApiError::NotLeader(NotLeader { shard: SHARD, hint }))
}

#[tokio::test]
async fn what_is_put_is_got() {
    let (nodes, client) = cluster(1).await;
    let written = client.put(key("k"), value("v")).await.unwrap();
    assert_eq!((&*written.header.cluster, written.header.revision.get()), ("test", 9));
    let row = client.get(key("k")).await.unwrap().row.unwrap();
    assert_eq!((row.key, row.value), (key("k"), value("v")));
    assert_eq!(client.get(key("absent")).await.unwrap().row, None);
    assert_eq!(client.delete(key("k")).await.unwrap().deleted, 1);
    assert_eq!(nodes[0].value("k"), None);
}

#[tokio::test]
async fn a_leader_hint_is_followed_and_remembered() {
    let (nodes, client) = cluster(2).await;
    nodes[0].act([hint(&nodes, 1)]);
    client.put(key("k"), value("v")).await.unwrap();
    client.put(key("l"), value("w")).await.unwrap();
    assert_eq!((nodes[0].asked(), nodes[1].asked()), (1, 2));
    assert_eq!(nodes[1].value("l"), Some("w".into()));
}

#[tokio::test]
async fn a_write_that_did_not_happen_is_tried_again() {
    let (nodes, client) = cluster(1).await;
    let busy = Overloaded { message: "full".into(), retry_after: Duration::from_millis(1) };
    nodes[0].act([
        Act::Fail(ApiError::Overloaded(busy)),
        Act::Fail(ApiError::NoLeader(SHARD)),
        Act::Fail(ApiError::Draining("starting".into())),
    ]);
    client.put(key("k"), value("v")).await.unwrap();
    assert_eq!(nodes[0].asked(), 4);
}

#[tokio::test]
async fn a_write_without_an_id_that_may_have_happened_is_not_tried_again() {
    let (nodes, client) = cluster(1).await;
    for act in [Act::Fail(ApiError::LeadershipLost(SHARD)), Act::Fail(ApiError::Deadline), Act::Break] {
        let asked = nodes[0].asked();
        nodes[0].act([act]);
        let error = client.put(key("k"), value("v")).await.unwrap_err();
        assert_eq!(error.outcome, Outcome::Unknown, "{error}");
        assert!(!error.is_worth_a_retry());
        assert_eq!(nodes[0].asked(), asked + 1);
    }
}

#[tokio::test]
async fn a_read_is_tried_again_whatever_broke() {
    let (nodes, client) = cluster(1).await;
    client.put(key("k"), value("v")).await.unwrap();
    nodes[0].act([Act::Break, Act::Fail(ApiError::Stopped), Act::Damage]);
    assert!(client.get(key("k")).await.unwrap().row.is_some());
    assert_eq!(nodes[0].asked(), 5);
}

#[tokio::test]
async fn a_refusal_stands() {
    let (nodes, client) = cluster(1).await;
    nodes[0].act([Act::Fail(ApiError::Invalid("no".into()))]);
    let error = client.put(key("k"), value("v")).await.unwrap_err();
    assert_eq!((error.failure.code(), error.outcome), (Code::InvalidArgument, Outcome::NotApplied));
    assert_eq!(error.failure.reason(), "invalid");
    assert_eq!(nodes[0].asked(), 1);
}

#[tokio::test]
async fn silence_ends_with_the_deadline() {
    let (nodes, _) = cluster(1).await;
    let mut config = config(&nodes);
    config.timeout = Duration::from_millis(600);
    let client = Client::connect(config).await.unwrap();
    nodes[0].act([Act::Ignore]);
    let error = client.put(key("k"), value("v")).await.unwrap_err();
    assert_eq!((error.failure.code(), error.outcome), (Code::DeadlineExceeded, Outcome::Unknown));
    // The late id is free again, and later calls are not disturbed.
    client.put(key("k"), value("v")).await.unwrap();
}

#[tokio::test]
async fn a_read_does_not_wait_for_a_silent_node_to_the_end() {
    let (nodes, _) = cluster(2).await;
    let mut config = config(&nodes);
    config.timeout = Duration::from_millis(2000);
    config.silence = Duration::from_millis(200);
    let client = Client::connect(config).await.unwrap();
    nodes[0].act([Act::Ignore]);
    let elected = map(&nodes, &[("", 1)], 4);
    nodes.iter().for_each(|node| node.set_map(&elected));
    assert_eq!(client.get(key("k")).await.unwrap().row, None);
    assert_eq!((nodes[0].asked(), nodes[1].asked()), (1, 1));
}

#[tokio::test]
async fn a_stopped_node_is_left_for_the_others() {
    let (nodes, client) = cluster(3).await;
    client.put(key("k"), value("v")).await.unwrap();
    nodes[0].stop();
    let elected = map(&nodes, &[("", 1)], 4);
    nodes[1..].iter().for_each(|node| node.set_map(&elected));
    // The stream to the old leader still stands, so this one's outcome is unknown; the next must find the new leader.
    assert_eq!(client.put(key("k"), value("w")).await.unwrap_err().outcome, Outcome::Unknown);
    client.put(key("k"), value("x")).await.unwrap();
    assert_eq!(nodes[1].value("k"), Some("x".into()));
}

#[tokio::test]
async fn nothing_listens_means_not_applied() {
    let (nodes, _) = cluster(1).await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = listener.local_addr().unwrap().to_string();
    drop(listener);
    let mut config = config(&nodes);
    config.endpoints = vec![dead];
    config.timeout = Duration::from_millis(500);
    let error = Client::new(config).unwrap().put(key("k"), value("v")).await.unwrap_err();
    assert_eq!((error.failure.code(), error.outcome), (Code::Unavailable, Outcome::NotApplied), "{error}");
    assert!(error.is_worth_a_retry());
}

/// That nobody says where a shard is led leaves no doubt about a write that was never sent.
#[tokio::test]
async fn a_write_that_found_no_way_is_not_applied() {
    let (nodes, _) = cluster(1).await;
    for request_ids in [RequestIds::None, RequestIds::Timed] {
        let mut config = config(&nodes);
        config.timeout = Duration::from_millis(600);
        config.silence = Duration::from_millis(100);
        config.rest = Duration::from_secs(60);
        config.request_ids = request_ids;
        let client = Client::connect(config).await.unwrap();
        client.put(key("k"), value("v")).await.unwrap();
        // The node owes an answer and says nothing, so it is left alone; nor does it tell a map.
        nodes[0].hold(true);
        nodes[0].act([Act::Ignore]);
        client.get(key("k")).await.unwrap_err();
        let asked = nodes[0].asked();
        let error = client.put(key("k"), value("w")).await.unwrap_err();
        assert_eq!((error.outcome, nodes[0].asked()), (Outcome::NotApplied, asked), "{error}");
        nodes[0].hold(false);
    }
}

/// A node that takes connections and says nothing holds nobody longer than he waits.
#[tokio::test]
async fn a_deadline_holds_while_a_connection_is_made() {
    let (nodes, _) = cluster(1).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut elsewhere = map(&nodes, &[("", 0)], 3);
    let silent = listener.local_addr().unwrap().to_string();
    elsewhere.members[0].client_addr = silent.clone();
    elsewhere.shards[0].leader.as_mut().unwrap().client_addr = silent;
    nodes[0].set_map(&elsewhere);
    let mut config = config(&nodes);
    config.timeout = Duration::from_millis(200);
    config.connect_timeout = Duration::from_secs(600);
    let error = Client::connect(config).await.unwrap().put(key("k"), value("v")).await.unwrap_err();
    assert!(matches!(error.failure, Failure::NotSent(_) | Failure::TimedOut(_)), "{error}");
}

/// A deadline that cuts an attempt short says less than the attempt before it.
#[tokio::test]
async fn what_was_seen_before_the_deadline_is_told() {
    let (nodes, _) = cluster(1).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = config(&nodes);
    config.endpoints = vec![listener.local_addr().unwrap().to_string()];
    config.request_ids = RequestIds::Timed;
    config.timeout = Duration::from_millis(500);
    config.connect_timeout = Duration::from_secs(20);
    let once = tokio::spawn(async move {
        // The first connection breaks; the second is silent.
        drop(listener.accept().await.unwrap());
        (listener.accept().await.unwrap(), std::future::pending::<()>().await)
    });
    let error = Client::new(config).unwrap().put(key("k"), value("v")).await.unwrap_err();
    once.abort();
    assert!(!matches!(error.failure, Failure::NotSent(_)), "{error}");
    assert_eq!((error.failure.code(), error.outcome), (Code::Unavailable, Outcome::NotApplied), "{error}");
}

#[tokio::test]
async fn concurrent_callers_share_frames_and_one_map_fetch() {
    let (nodes, client) = cluster(1).await;
    let mut calls = tokio::task::JoinSet::new();
    for i in 0..500u32 {
        let client = client.clone();
        let key = Key::new(i.to_string()).unwrap();
        calls.spawn(async move { client.put(key.clone(), Value::new(i.to_string()).unwrap()).await });
    }
    while let Some(call) = calls.join_next().await {
        call.unwrap().unwrap();
    }
    let frames = nodes[0].frames();
    assert_eq!(frames.iter().sum::<usize>(), 500);
    assert!(frames.len() <= 50, "{frames:?}");
    assert_eq!(nodes[0].map_asked(), 1);
}

#[tokio::test]
async fn requests_say_which_cluster_and_what_was_seen() {
    let (nodes, _) = cluster(1).await;
    let mut config = config(&nodes);
    config.cluster = "test".into();
    let client = Client::connect(config).await.unwrap();
    client.put(key("k"), value("v")).await.unwrap();
    client.put(key("k"), value("v")).await.unwrap();
    let contexts = nodes[0].contexts();
    assert_eq!((contexts[0].cluster.as_str(), contexts[0].lamport), ("test", None));
    assert_eq!((contexts[1].cluster.as_str(), contexts[1].lamport), ("test", Some(77)));
    assert_eq!(client.lamport(), 77);
}

#[tokio::test]
async fn multi_get_answers_in_the_order_asked_over_shards_and_replies() {
    let (nodes, _) = cluster(2).await;
    let map = map(&nodes, &[("", 0), ("m", 1)], 3);
    nodes.iter().for_each(|node| node.set_map(&map));
    let client = Client::connect(config(&nodes)).await.unwrap();
    for text in ["a", "b", "x", "z"] {
        client.put(key(text), value(text)).await.unwrap();
    }
    let asked = ["z", "a", "nothing", "b", "x", "a"];
    let found = client.multi_get(asked.map(key).to_vec()).await.unwrap().found;
    let values: Vec<_> = found.into_iter().map(|got| got.row.map(|row| row.value)).collect();
    let expected = asked.map(|text| (text != "nothing").then(|| value(text)));
    assert_eq!(values, expected);
}

#[tokio::test]
async fn delete_range_goes_on_to_the_end() {
    let (nodes, client) = cluster(1).await;
    for text in ["a1", "a2", "a3", "b"] {
        client.put(key(text), value("v")).await.unwrap();
    }
    assert_eq!(client.delete_range(KeyRange::prefix("a").unwrap()).await.unwrap().deleted, 3);
    assert_eq!(nodes[0].value("b"), Some("v".into()));
    for text in ["a1", "a2"] {
        client.put(key(text), value("v")).await.unwrap();
    }
    nodes[0].act([Act::Fail(ApiError::LeadershipLost(SHARD))]);
    let error = client.delete_range(KeyRange::all()).await.unwrap_err();
    assert_eq!((error.deleted, error.source.outcome), (0, Outcome::Unknown));
}

fn page(keys: &[&'static str], resume_key: Option<&'static str>) -> v1::ScanReply {
    let rows = keys.iter().map(|key| row(&Bytes::from(*key), &Bytes::from("v"))).collect();
    v1::ScanReply { header: header(), rows, resume_key: resume_key.map(Bytes::from) }
}

fn all() -> ScanRequest {
    ScanRequest { range: KeyRange::all(), limit: None, keys_only: false }
}

#[tokio::test]
async fn a_scan_goes_on_in_the_next_shard() {
    let (nodes, _) = cluster(2).await;
    let map = map(&nodes, &[("", 0), ("m", 1)], 3);
    nodes.iter().for_each(|node| node.set_map(&map));
    nodes[0].add_scan(vec![Ok(page(&["a", "b"], Some("c"))), Ok(page(&["c"], Some("m")))]);
    nodes[1].add_scan(vec![Ok(page(&["n"], None))]);
    let mut scan = Client::connect(config(&nodes)).await.unwrap().scan(all());
    let mut keys = Vec::new();
    while let Some(page) = scan.next_page().await.unwrap() {
        keys.extend(page.rows.into_iter().map(|row| row.key));
    }
    assert_eq!(keys, ["a", "b", "c", "n"].map(key));
}

#[tokio::test]
async fn a_scan_never_mixes_revisions() {
    let (nodes, client) = cluster(1).await;
    nodes[0].add_scan(vec![Ok(page(&["a"], Some("b"))), Err(Status::unavailable("gone"))]);
    let mut scan = client.scan(all());
    assert_eq!(scan.next_page().await.unwrap().unwrap().rows.len(), 1);
    let error = scan.next_page().await.unwrap_err();
    assert!(matches!(&error.failure, Failure::ScanCut { resume_key, .. } if resume_key == "b"), "{error}");
}

#[tokio::test]
async fn a_scan_that_has_read_nothing_begins_again() {
    let (nodes, client) = cluster(1).await;
    nodes[0].add_scan(vec![Err(Status::from(ApiError::NoLeader(SHARD)))]);
    nodes[0].add_scan(vec![]);
    nodes[0].add_scan(vec![Ok(page(&["a"], None))]);
    let mut scan = client.scan(all());
    assert_eq!(scan.next_page().await.unwrap().unwrap().rows.len(), 1);
    assert_eq!(scan.next_page().await.unwrap(), None);
}
