//! The client's retries of writes with ids, against nodes that answer as each test tells them.

use std::time::{Duration, Instant};

use kv_client::{ApiError, Client, Config, RequestIds};
use kv_proto::v1::request_id::Id;
use kv_proto::v1::{self, SessionRequest};
use kv_types::{ClusterTime, Outcome, RequestId, SessionId, TimedId};

use crate::server::{Act, Node, map};
use crate::{SHARD, key, value};

/// Nodes with one shard, led by the first of them, and a client of all with sessions.
async fn cluster(count: usize, change: impl FnOnce(&mut Config)) -> (Vec<Node>, Client) {
    let mut nodes: Vec<Node> = Vec::new();
    for _ in 0..count {
        let node = Node::start().await;
        if let Some(first) = nodes.first() {
            node.share(first);
        }
        nodes.push(node);
    }
    let map = map(&nodes, &[("", 0)], 3);
    nodes.iter().for_each(|node| node.set_map(&map));
    let mut config = Config::new(nodes.iter().map(Node::endpoint));
    config.backoff.first = Duration::from_millis(1);
    config.rest = Duration::from_millis(5);
    config.timeout = Duration::from_secs(20);
    change(&mut config);
    (nodes, Client::connect(config).await.unwrap())
}

fn of_session(id: Option<&v1::RequestId>) -> SessionRequest {
    match id.and_then(|id| id.id.clone()) {
        Some(Id::Session(request)) => request,
        other => panic!("{other:?}"),
    }
}

fn expired() -> Act {
    Act::Fail(ApiError::SessionExpired("for the test".into()))
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_and_the_write_is_not_repeated() {
    let (nodes, client) = cluster(1, |_| {}).await;
    assert_eq!(client.incr(key("n"), 2).await.unwrap().value, 2);
    nodes[0].act([
        Act::Lose,
        Act::Break,
        Act::Fail(ApiError::LeadershipLost(SHARD)),
        Act::Fail(ApiError::Deadline),
    ]);
    assert_eq!(client.incr(key("n"), 3).await.unwrap().value, 5);
    assert_eq!(nodes[0].value("n"), Some("5".into()));
    let ids: Vec<_> = nodes[0].ids().iter().map(|id| of_session(id.as_ref())).collect();
    assert_eq!(ids.len(), 6);
    assert_eq!((ids[0].session, ids[0].seq, ids[0].lease_until_ms), (1, 1, 1_000));
    assert!(ids[1..].iter().all(|id| (id.session, id.seq) == (1, 2)), "{ids:?}");
}

#[tokio::test]
async fn calls_at_once_have_numbers_of_their_own_and_few_are_told_as_open() {
    let (nodes, client) = cluster(1, |_| {}).await;
    let calls: Vec<_> = (0..300)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.incr(key("n"), 1).await.unwrap() })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(nodes[0].value("n"), Some("300".into()));
    let ids: Vec<_> = nodes[0].ids().iter().map(|id| of_session(id.as_ref())).collect();
    let names: std::collections::BTreeSet<_> = ids.iter().map(|id| (id.session, id.seq)).collect();
    assert_eq!(names.len(), 300);
    assert!(ids.iter().all(|id| id.seq - id.first_incomplete < 256 && id.first_incomplete % 16 == 0));
    assert!(nodes[0].sessions().0 <= 2, "one is full at 255");
}

#[tokio::test]
async fn an_expired_session_is_renewed_and_the_same_request_sent_again() {
    let (nodes, client) = cluster(1, |_| {}).await;
    nodes[0].act([expired()]);
    assert_eq!(client.incr(key("n"), 1).await.unwrap().value, 1);
    let ids: Vec<_> = nodes[0].ids().iter().map(|id| of_session(id.as_ref())).collect();
    assert_eq!((ids[0].seq, ids[0].lease_until_ms), (1, 1_000));
    assert_eq!((ids[1].seq, ids[1].lease_until_ms), (1, 1_001));
    assert_eq!(nodes[0].sessions(), (1, 1));
}

#[tokio::test]
async fn of_a_session_that_is_gone_nothing_is_known_and_the_next_call_opens_another() {
    let (nodes, client) = cluster(1, |_| {}).await;
    client.incr(key("n"), 1).await.unwrap();
    nodes[0].forget_sessions();
    nodes[0].act([expired()]);
    let error = client.incr(key("n"), 1).await.unwrap_err();
    assert_eq!((error.outcome, &*error.failure.reason()), (Outcome::Unknown, "session_expired"));
    assert_eq!(client.incr(key("n"), 1).await.unwrap().value, 2);
    assert_eq!(nodes[0].sessions().0, 2);
}

#[tokio::test]
async fn a_session_whose_lease_may_be_over_is_renewed_before_it_is_used() {
    let ids = RequestIds::Sessions { ttl: Duration::ZERO };
    let (nodes, client) = cluster(1, |config| config.request_ids = ids).await;
    client.incr(key("n"), 1).await.unwrap();
    assert!(nodes[0].sessions().1 >= 1, "no lease of no length is used");
}

#[tokio::test]
async fn without_a_session_an_id_of_the_shards_time_does() {
    let (nodes, client) = cluster(1, |config| config.timeout = Duration::from_secs(2)).await;
    nodes[0].refuse_sessions();
    nodes[0].act([Act::Lose]);
    assert_eq!(client.incr(key("n"), 1).await.unwrap().value, 1);
    assert_eq!(nodes[0].value("n"), Some("1".into()));
    let ids = nodes[0].ids();
    let Some(Id::Timed(raw)) = ids[0].as_ref().unwrap().id.clone() else { panic!("{ids:?}") };
    assert_eq!((raw.len(), &raw[..5]), (16, &[0, 0, 0, 0, 5][..]));
    assert_eq!(ids[0], ids[1]);
}

#[tokio::test]
async fn what_the_gate_refuses_for_good_settles_the_call() {
    let (nodes, client) = cluster(1, |_| {}).await;
    nodes[0].act([Act::Break, Act::Fail(ApiError::NotANumber("no number".into()))]);
    let error = client.incr(key("n"), 1).await.unwrap_err();
    assert_eq!(error.outcome, Outcome::NotApplied);
    nodes[0].act([Act::Break, Act::Fail(ApiError::Invalid("before the log".into()))]);
    let error = client.incr(key("n"), 1).await.unwrap_err();
    assert_eq!(error.outcome, Outcome::Unknown, "the attempt that broke may have been carried out");
}

#[tokio::test]
async fn a_silent_leader_is_left_for_the_next() {
    let (nodes, client) = cluster(2, |config| config.silence = Duration::from_millis(100)).await;
    client.put(key("k"), value("v")).await.unwrap();
    nodes[0].act([Act::Ignore]);
    let elected = map(&nodes, &[("", 1)], 4);
    nodes[1].set_map(&elected);
    client.put(key("k"), value("w")).await.unwrap();
    assert_eq!(nodes[1].value("k"), Some("w".into()));
    assert_eq!(nodes[0].ids()[1], nodes[1].ids()[0]);
}

#[tokio::test]
async fn a_node_that_is_cut_off_pins_nobody() {
    let (nodes, client) = cluster(3, |_| {}).await;
    // The first is cut off from the others and knows it; it is asked first, and named by nobody as leader any more.
    let mut blind = map(&nodes, &[("", 0)], 3);
    blind.shards[0].leader = None;
    nodes[0].set_map(&blind);
    let elected = map(&nodes, &[("", 2)], 4);
    nodes[1..].iter().for_each(|node| node.set_map(&elected));
    nodes[0].act((0..50).map(|_| Act::Fail(ApiError::NoLeader(SHARD))));
    for _ in 0..20 {
        client.put(key("k"), value("v")).await.unwrap();
    }
    assert_eq!((nodes[0].asked(), nodes[2].asked()), (1, 20));
}

#[tokio::test]
async fn in_a_steady_failure_few_requests_are_added() {
    let (nodes, client) = cluster(1, |config| config.timeout = Duration::from_millis(300)).await;
    client.put(key("k"), value("v")).await.unwrap();
    nodes[0].act((0..100_000).map(|_| Act::Fail(ApiError::Stopped)));
    let asked = nodes[0].asked();
    let mut calls = 0;
    for _ in 0..20 {
        let batch: Vec<_> = (0..200)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.put(key("k"), value("v")).await.unwrap_err() })
            })
            .collect();
        for call in batch {
            let error = call.await.unwrap();
            assert_eq!(error.outcome, Outcome::Unknown);
            calls += 1;
        }
    }
    let extra = nodes[0].asked() - asked - calls;
    // A reserve of 256, a tenth of the calls, and ten a second.
    assert!(extra <= 256 + calls / 10 + 100, "{extra} more than {calls}");
}

/// Asks a node that fails whatever it is asked, far more often than may be tried again at once.
async fn fails_with_few_retries<F>(ask: impl Fn(Client) -> F)
where
    F: Future<Output = bool> + Send + 'static,
{
    let (nodes, client) = cluster(1, |config| config.timeout = Duration::from_millis(300)).await;
    let mut calls = 0;
    for _ in 0..4 {
        let batch: Vec<_> = (0..500).map(|_| tokio::spawn(ask(client.clone()))).collect();
        for call in batch {
            assert!(call.await.unwrap(), "it fails");
            calls += 1;
        }
    }
    let extra = nodes[0].asked() - calls;
    assert!(extra <= 256 + calls / 10 + 100, "{extra} more than {calls}");
}

#[tokio::test]
async fn questions_about_outcomes_are_few_when_they_fail() {
    let of_session = RequestId::Session { session: SessionId::new(1), seq: 1 };
    let timed = RequestId::Timed(TimedId::new(ClusterTime::ZERO, 1));
    for id in [of_session, timed] {
        fails_with_few_retries(
            move |client| async move { client.outcome(id, Some(b"k"), false).await.is_err() },
        )
        .await;
    }
}

#[tokio::test]
async fn scans_are_few_when_they_fail() {
    fails_with_few_retries(|client| async move { client.scan(crate::all()).next_page().await.is_err() })
        .await;
}

#[tokio::test]
async fn calls_that_wait_for_a_leader_add_nothing_to_the_load_and_need_no_leave() {
    let (nodes, client) = cluster(1, |config| config.timeout = Duration::from_secs(5)).await;
    client.put(key("k"), value("v")).await.unwrap();
    let mut headless = map(&nodes, &[("", 0)], 3);
    headless.shards[0].leader = None;
    nodes[0].set_map(&headless);
    nodes[0].act([Act::Fail(ApiError::NoLeader(SHARD))]);
    let before = nodes[0].map_asked();
    // Far more than may be tried again at once.
    let calls: Vec<_> = (0..1000)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.put(key("k"), value("v")).await })
        })
        .collect();
    while nodes[0].map_asked() < before + 20 {
        tokio::task::yield_now().await;
    }
    nodes[0].set_map(&map(&nodes, &[("", 0)], 4));
    for call in calls {
        call.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_renewal_that_failed_is_tried_again_long_before_the_next_is_due() {
    let ttl = Duration::from_secs(9);
    let patience = Duration::from_millis(100);
    let (nodes, client) = cluster(1, |config| {
        config.request_ids = RequestIds::Sessions { ttl };
        config.timeout = patience;
    })
    .await;
    client.incr(key("n"), 1).await.unwrap();
    nodes[0].refuse_sessions();
    // When each renewal is asked for, and asked for again until the client's patience is at its end.
    let asked = async {
        let (mut asked, mut times) = (0, Vec::<Instant>::new());
        while times.len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let count = nodes[0].sessions().1;
            let is_new = times.last().is_none_or(|last| last.elapsed() > patience * 3);
            if count > asked && is_new {
                times.push(Instant::now());
            }
            asked = count;
        }
        times
    };
    let times = asked.await;
    assert!(times[1] - times[0] < ttl / 3 * 3 / 4, "{:?}", times[1] - times[0]);
}

/// A call broken off is a stream reset, and a server ends a connection for many of them.
#[tokio::test]
async fn a_call_once_begun_is_not_broken_off_when_its_caller_goes_away() {
    const CALLS: usize = 20;
    let (nodes, client) = cluster(1, |config| config.connect_timeout = Duration::from_secs(20)).await;
    nodes[0].hold(true);
    nodes[0].act([Act::Fail(ApiError::NoLeader(SHARD))]);
    for _ in 0..CALLS {
        let call = client.put(key("k"), value("v"));
        tokio::time::timeout(Duration::from_millis(20), call).await.unwrap_err();
    }
    assert_eq!((nodes[0].map_asked(), nodes[0].sessions_asked()), (1, 1));
    nodes[0].hold(false);
    client.put(key("k"), value("v")).await.unwrap();
    assert_eq!((nodes[0].map_asked(), nodes[0].sessions_asked()), (2, 1), "what was opened is used");
    nodes[0].hold(true);
    nodes[0].act([Act::Fail(ApiError::NoLeader(SHARD))]);
    for _ in 0..CALLS {
        let call = client.put(key("k"), value("v"));
        tokio::time::timeout(Duration::from_millis(20), call).await.unwrap_err();
    }
    assert_eq!(nodes[0].map_asked(), 3);
}
