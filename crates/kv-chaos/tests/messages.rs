//! The plane of messages, before a node that notes what it hears.

#![allow(clippy::unwrap_used, reason = "a test file")]

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kv_chaos::{Proxy, Wanted};
use kv_fault::{Action, Delay, Filter, Half, Kind, Link, Links, Nth, Rule};
use kv_proto::v1::shard_message::Body;
use kv_proto::{sealed, v1};
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Request, Response, Status, Streaming};

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// Long enough that what was to arrive would have.
const WHILE: Duration = Duration::from_millis(200);

/// What the node has heard.
#[derive(Debug, Default)]
struct Heard {
    /// The index of the last entry of each append, in order; 0 of a frame whose checksum is wrong.
    appends: Vec<u64>,
    /// Calls that are no part of a link.
    calls: u64,
}

#[derive(Clone, Default)]
struct Node(Arc<Mutex<Heard>>);

type Acks = Pin<Box<dyn Stream<Item = Result<v1::LinkAck, Status>> + Send>>;

fn nothing<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("no test asks for it"))
}

#[tonic::async_trait]
impl v1::peer_server::Peer for Node {
    async fn hello(&self, _: Request<v1::HelloRequest>) -> Result<Response<v1::HelloReply>, Status> {
        Err(Status::failed_precondition("go away"))
    }

    type LinkStream = Acks;

    async fn link(&self, request: Request<Streaming<v1::Frame>>) -> Result<Response<Acks>, Status> {
        let (node, mut frames) = (self.clone(), request.into_inner());
        let (acks, stream) = mpsc::channel(100);
        tokio::spawn(async move {
            while let Some(Ok(frame)) = frames.next().await {
                let batch = sealed::open(frame);
                let messages =
                    batch.map_or_else(|_| vec![0], |batch| batch.messages.iter().map(last).collect());
                let count = {
                    let mut heard = node.0.lock().unwrap();
                    heard.appends.extend(messages);
                    heard.appends.len()
                };
                if acks.send(Ok(v1::LinkAck { frames: u64::try_from(count).unwrap() })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn snapshot_stream(
        &self,
        _: Request<Streaming<v1::SnapshotChunk>>,
    ) -> Result<Response<v1::SnapshotResult>, Status> {
        nothing()
    }

    async fn snapshot_position(
        &self,
        _: Request<v1::SnapshotPositionRequest>,
    ) -> Result<Response<v1::SnapshotPositionReply>, Status> {
        nothing()
    }

    async fn join(&self, _: Request<v1::JoinRequest>) -> Result<Response<v1::JoinReply>, Status> {
        nothing()
    }

    async fn change_cluster(
        &self,
        _: Request<v1::ChangeClusterRequest>,
    ) -> Result<Response<v1::ChangeClusterReply>, Status> {
        nothing()
    }

    async fn read_cluster(
        &self,
        request: Request<v1::ReadClusterRequest>,
    ) -> Result<Response<v1::ReadClusterReply>, Status> {
        sealed::open(request.into_inner()).map_err(|_| Status::data_loss("a bad checksum"))?;
        self.0.lock().unwrap().calls += 1;
        Ok(Response::new(sealed::seal(&v1::ReadClusterOutcome::default())))
    }

    async fn repair(&self, _: Request<v1::RepairRequest>) -> Result<Response<v1::RepairReply>, Status> {
        nothing()
    }

    async fn compare_state(
        &self,
        _: Request<v1::CompareStateRequest>,
    ) -> Result<Response<v1::CompareStateReply>, Status> {
        nothing()
    }
}

fn last(message: &v1::ShardMessage) -> u64 {
    match &message.body {
        Some(Body::Raft(v1::RaftMessage { kind: Some(v1::raft_message::Kind::Append(append)), .. })) => {
            append.last.unwrap_or_default().index
        }
        _ => u64::MAX,
    }
}

/// An append that ends with this entry.
fn append(index: u64) -> v1::ShardMessage {
    let id = Some(v1::LogId { term: 1, index });
    let entry = v1::Entry { id, ..v1::Entry::default() };
    let append = v1::Append { last: id, entries: vec![entry], ..v1::Append::default() };
    let kind = Some(v1::raft_message::Kind::Append(append));
    v1::ShardMessage { shard: 1, body: Some(Body::Raft(v1::RaftMessage { from: 1, to: 2, term: 1, kind })) }
}

/// What a rule asks for beside what all ask for.
type Change = &'static dyn Fn(&mut Filter);

struct Rig {
    proxy: Proxy,
    node: Node,
    client: v1::peer_client::PeerClient<tonic::transport::Channel>,
}

impl Rig {
    /// A proxy on the way from n1 to n2 that looks at messages.
    async fn new() -> Self {
        Self::with(|proxy| proxy.watch(true)).await
    }

    async fn with(told: impl FnOnce(&Proxy)) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (upstream, node) = (listener.local_addr().unwrap().to_string(), Node::default());
        let service = v1::peer_server::PeerServer::new(node.clone());
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        let (link, listen) = ("n1->n2".parse().unwrap(), SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let proxy = Proxy::start(vec![Wanted { link, listen, upstream, messages: true }], 1).await.unwrap();
        told(&proxy);
        let addr = proxy.addr(link).unwrap();
        let client = v1::peer_client::PeerClient::connect(format!("http://{addr}")).await.unwrap();
        Self { proxy, node, client }
    }

    fn load(&self, action: Action, change: impl FnOnce(&mut Filter)) {
        let mut filter = Filter::on(Links::All);
        change(&mut filter);
        let rule = Rule { name: "r".parse().unwrap(), filter, action, pulse: None };
        self.proxy.load(vec![rule], None).unwrap();
    }

    /// Links n1 to n2; frames go in, acknowledgements come out.
    async fn link(&self) -> (mpsc::Sender<v1::Frame>, Streaming<v1::LinkAck>) {
        let (frames, stream) = mpsc::channel(100);
        let acks = self.client.clone().link(ReceiverStream::new(stream)).await.unwrap();
        (frames, acks.into_inner())
    }

    /// Waits until the node has heard so many appends.
    async fn appends(&self, count: usize) -> Vec<u64> {
        let begun = Instant::now();
        loop {
            let heard = self.node.0.lock().unwrap().appends.clone();
            if heard.len() >= count {
                return heard;
            }
            assert!(begun.elapsed() < PATIENCE, "{heard:?} instead of {count}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn calls(&self, count: u64) {
        let begun = Instant::now();
        while self.node.0.lock().unwrap().calls < count {
            assert!(begun.elapsed() < PATIENCE, "the node was not asked {count} times");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until the rule has matched so many messages.
    async fn matches(&self, count: u64) {
        let begun = Instant::now();
        while self.matched() < count {
            assert!(begun.elapsed() < PATIENCE, "the rule has not matched {count} messages");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn matched(&self) -> u64 {
        self.proxy.table().last().map_or(0, kv_fault::InForce::matched)
    }
}

async fn send(frames: &mpsc::Sender<v1::Frame>, indexes: &[u64]) {
    let messages = indexes.iter().map(|index| append(*index)).collect();
    frames.send(sealed::seal(&v1::PeerBatch { lamport: 7, messages })).await.unwrap();
}

async fn ask(rig: &Rig, patience: Duration) -> Result<(), Code> {
    let subject = v1::ReadClusterSubject { cluster_id: 1 };
    let request = sealed::seal::<v1::ReadClusterRequest>(&subject);
    match tokio::time::timeout(patience, rig.client.clone().read_cluster(request)).await {
        Err(_) => Err(Code::DeadlineExceeded),
        Ok(answer) => answer.map(drop).map_err(|status| status.code()),
    }
}

/// Reads acknowledgements until the link breaks.
async fn broken(mut acks: Streaming<v1::LinkAck>) {
    while let Ok(ack) = acks.message().await {
        assert!(ack.is_some(), "the link ends in good order");
    }
}

#[tokio::test]
async fn a_link_is_bytes_until_somebody_looks_at_messages() {
    let rig = Rig::with(|_| {}).await;
    let (frames, acks) = rig.link().await;
    send(&frames, &[1]).await;
    assert_eq!(rig.appends(1).await, [1]);
    rig.load(Action::Drop, |filter| filter.kinds = BTreeSet::from([Kind::Append]));
    tokio::time::timeout(PATIENCE, broken(acks)).await.unwrap();
    let (frames, acks) = rig.link().await;
    send(&frames, &[2]).await;
    while rig.matched() == 0 {
        tokio::task::yield_now().await;
    }
    // As long as a rule looks at messages that says nothing, and the end of a rule breaks nothing.
    rig.proxy.watch(false);
    rig.proxy.heal(None, false);
    send(&frames, &[3]).await;
    assert_eq!(rig.appends(2).await, [1, 3]);
    rig.proxy.watch(false);
    tokio::time::timeout(PATIENCE, broken(acks)).await.unwrap();
}

#[tokio::test]
async fn without_a_rule_everything_passes_and_errors_too() {
    let rig = Rig::new().await;
    let (frames, mut acks) = rig.link().await;
    send(&frames, &[1, 2]).await;
    send(&frames, &[3]).await;
    assert_eq!(rig.appends(3).await, [1, 2, 3]);
    assert_eq!(acks.message().await.unwrap().unwrap().frames, 2);
    ask(&rig, PATIENCE).await.unwrap();
    let refused = rig.client.clone().hello(v1::HelloRequest::default()).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::FailedPrecondition, "go away"));
    drop(frames);
    while acks.message().await.unwrap().is_some() {}
    rig.proxy.stop().await;
}

#[tokio::test]
async fn one_message_of_a_frame_is_lost() {
    let rig = Rig::new().await;
    let (frames, _acks) = rig.link().await;
    send(&frames, &[1]).await;
    rig.appends(1).await;
    // In the middle of a stream that passed as it was until now.
    rig.load(Action::Drop, |filter| {
        filter.half = Some(Half::Request);
        filter.nth = Some(Nth::Only(2));
    });
    send(&frames, &[2, 3, 4]).await;
    send(&frames, &[5]).await;
    assert_eq!(rig.appends(4).await, [1, 2, 4, 5]);
    assert_eq!(rig.matched(), 1);
    rig.proxy.heal(None, false);
    send(&frames, &[6]).await;
    assert_eq!(rig.appends(5).await, [1, 2, 4, 5, 6]);
}

#[tokio::test]
async fn a_rule_looks_at_kind_half_link_shard_term_and_index() {
    let rig = Rig::new().await;
    let (frames, _acks) = rig.link().await;
    let mut sent = 0;
    let mut expected = Vec::new();
    let changes: [(Change, bool); 9] = [
        (&|filter| filter.kinds = BTreeSet::from([Kind::Append]), true),
        (&|filter| filter.kinds = BTreeSet::from([Kind::Vote, Kind::Heartbeat]), false),
        (&|filter| filter.half = Some(Half::Reply), false),
        (&|filter| filter.shard = Some(kv_types::ShardId::new(2)), false),
        (&|filter| filter.terms = Some(1..=1), true),
        (&|filter| filter.terms = Some(2..=9), false),
        (&|filter| filter.indexes = Some(0..=0), false),
        (&|filter| filter.indexes = Some(1..=99), true),
        (&|filter| filter.links = Links::Only(BTreeSet::from(["n2->n1".parse::<Link>().unwrap()])), false),
    ];
    for (change, dropped) in changes {
        rig.load(Action::Drop, |filter| change(filter));
        sent += 1;
        send(&frames, &[sent]).await;
        if !dropped {
            expected.push(sent);
        }
        // What comes behind a rule shows that the one before it has passed it.
        rig.appends(expected.len()).await;
        if dropped {
            while rig.matched() == 0 {
                tokio::task::yield_now().await;
            }
        }
        rig.proxy.heal(None, false);
    }
    assert_eq!(rig.appends(expected.len()).await, expected);
}

#[tokio::test]
async fn copies_come_after_the_message() {
    let rig = Rig::new().await;
    let (frames, _acks) = rig.link().await;
    rig.load(Action::Duplicate { copies: 2, gap: Duration::from_millis(20) }, |filter| {
        filter.nth = Some(Nth::Only(1));
    });
    send(&frames, &[1, 2]).await;
    assert_eq!(rig.appends(4).await, [1, 2, 1, 1]);
}

#[tokio::test]
async fn what_is_doubled_or_flipped_keeps_its_place_in_its_frame() {
    let rig = Rig::new().await;
    let (frames, _acks) = rig.link().await;
    let second = |filter: &mut Filter| filter.nth = Some(Nth::Only(2));
    rig.load(Action::Duplicate { copies: 1, gap: Duration::from_millis(20) }, second);
    send(&frames, &[1, 2, 3]).await;
    assert_eq!(rig.appends(4).await, [1, 2, 3, 2]);
    rig.proxy.heal(None, false);
    rig.load(Action::Flip { bits: 1 }, second);
    send(&frames, &[4, 5, 6]).await;
    assert_eq!(rig.appends(7).await, [1, 2, 3, 2, 4, 0, 6]);
}

#[tokio::test]
async fn a_delayed_message_is_overtaken() {
    let rig = Rig::new().await;
    let (frames, _acks) = rig.link().await;
    let delay = Duration::from_millis(100);
    rig.load(Action::Delay(Delay::fixed(delay)), |filter| filter.indexes = Some(1..=1));
    let begun = Instant::now();
    send(&frames, &[1, 2]).await;
    assert_eq!(rig.appends(2).await, [2, 1]);
    assert!(begun.elapsed() >= delay);
}

#[tokio::test]
async fn messages_are_turned_around_within_a_window_and_none_stays_behind() {
    let rig = Rig::new().await;
    let (frames, _acks) = rig.link().await;
    rig.load(Action::Reorder { window: 4 }, |_| {});
    let sent: Vec<u64> = (1..=100).collect();
    for index in &sent {
        send(&frames, &[*index]).await;
    }
    let mut heard = rig.appends(100).await;
    assert_ne!(heard, sent);
    heard.sort_unstable();
    assert_eq!(heard, sent);
}

#[tokio::test]
async fn what_is_held_comes_late_or_never() {
    let rig = Rig::new().await;
    let (frames, _acks) = rig.link().await;
    for (late, expected) in [(true, vec![2, 1]), (false, vec![2, 1, 2])] {
        rig.load(Action::Hold, |filter| filter.indexes = Some(1..=1));
        send(&frames, &[1, 2]).await;
        rig.appends(expected.len() - usize::from(late)).await;
        tokio::time::sleep(WHILE).await;
        rig.proxy.heal(None, late);
        assert_eq!(rig.appends(expected.len()).await, expected);
    }
    send(&frames, &[3]).await;
    assert_eq!(rig.appends(4).await, [2, 1, 2, 3], "the second 1 was lost");
}

#[tokio::test]
async fn a_flipped_bit_is_found_by_the_receiver() {
    let rig = Rig::new().await;
    rig.load(Action::Flip { bits: 1 }, |filter| filter.kinds = BTreeSet::from([Kind::Control]));
    let found = ask(&rig, PATIENCE).await;
    assert!(matches!(found, Err(Code::DataLoss | Code::Internal)), "{found:?}");
    assert_eq!(rig.node.0.lock().unwrap().calls, 0);
}

#[tokio::test]
async fn a_lost_request_is_not_done_and_a_lost_answer_is() {
    let rig = Rig::new().await;
    rig.load(Action::Drop, |filter| filter.half = Some(Half::Request));
    assert_eq!(ask(&rig, WHILE).await, Err(Code::DeadlineExceeded));
    assert_eq!(rig.node.0.lock().unwrap().calls, 0);
    rig.proxy.heal(None, false);
    rig.load(Action::Drop, |filter| {
        filter.half = Some(Half::Reply);
        filter.kinds = BTreeSet::from([Kind::Control]);
    });
    assert_eq!(ask(&rig, WHILE).await, Err(Code::DeadlineExceeded));
    rig.calls(1).await;
    rig.proxy.heal(None, false);
    ask(&rig, PATIENCE).await.unwrap();
}

#[tokio::test]
async fn an_error_without_a_body_is_held_delayed_and_lost_as_other_answers_are() {
    let rig = Rig::new().await;
    let answers = |filter: &mut Filter| filter.half = Some(Half::Reply);
    let refused = |answer: Result<Response<v1::HelloReply>, Status>| {
        assert_eq!(answer.unwrap_err().code(), Code::FailedPrecondition);
    };
    for late in [true, false] {
        rig.load(Action::Hold, answers);
        let mut client = rig.client.clone();
        let mut asked = tokio::spawn(async move { client.hello(v1::HelloRequest::default()).await });
        rig.matches(1).await;
        assert!(tokio::time::timeout(WHILE, &mut asked).await.is_err(), "it was not held");
        rig.proxy.heal(None, late);
        if late {
            refused(tokio::time::timeout(PATIENCE, asked).await.unwrap().unwrap());
        } else {
            assert!(tokio::time::timeout(WHILE, &mut asked).await.is_err(), "it was not lost");
            asked.abort();
        }
    }
    let delay = Duration::from_millis(150);
    rig.load(Action::Delay(Delay::fixed(delay)), answers);
    let begun = Instant::now();
    refused(rig.client.clone().hello(v1::HelloRequest::default()).await);
    assert!(begun.elapsed() >= delay);
    rig.proxy.heal(None, false);
    rig.load(Action::Drop, answers);
    let asked =
        tokio::time::timeout(WHILE, rig.client.clone().hello(v1::HelloRequest::default())).await.is_err();
    assert!(asked, "it was not lost");
}

#[tokio::test]
async fn a_doubled_call_is_done_twice_and_answered_once() {
    let rig = Rig::new().await;
    rig.load(Action::Duplicate { copies: 1, gap: Duration::ZERO }, |filter| {
        filter.half = Some(Half::Request)
    });
    ask(&rig, PATIENCE).await.unwrap();
    rig.calls(2).await;
}

#[tokio::test]
async fn a_held_call_arrives_after_its_caller_has_given_up() {
    let rig = Rig::new().await;
    rig.load(Action::Hold, |filter| filter.half = Some(Half::Request));
    assert_eq!(ask(&rig, WHILE).await, Err(Code::DeadlineExceeded));
    assert_eq!(rig.node.0.lock().unwrap().calls, 0);
    rig.proxy.heal(None, true);
    rig.calls(1).await;
}

#[tokio::test]
async fn the_log_has_every_message() {
    let rig = Rig::new().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("messages.jsonl");
    rig.proxy.log_messages(Some(&path)).unwrap();
    let (frames, _acks) = rig.link().await;
    send(&frames, &[1, 2]).await;
    rig.appends(2).await;
    rig.proxy.log_messages(None).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        text.lines().filter(|line| line.contains(r#""kind":"append","half":"request","shard":1"#)).count(),
        2
    );
    assert!(text.lines().all(|line| line.starts_with('{') && line.ends_with('}')), "{text}");
    assert!(v1::Frame::default().encode_to_vec().is_empty());
}
