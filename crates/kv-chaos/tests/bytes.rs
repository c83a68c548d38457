//! The plane of bytes, before a server that says back what it hears.

#![allow(clippy::unwrap_used, reason = "a test file")]

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use kv_chaos::{Proxy, Wanted};
use kv_fault::{Action, Delay, Filter, Link, Links, Rule, WireAction};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// Long enough that what was to arrive would have.
const WHILE: Duration = Duration::from_millis(200);

fn link(text: &str) -> Link {
    text.parse().unwrap()
}

fn rule(name: &str, link: &str, action: WireAction) -> Rule {
    let links = Links::Only(BTreeSet::from([link.parse().unwrap()]));
    Rule { name: name.parse().unwrap(), filter: Filter::on(links), action: Action::Wire(action), pulse: None }
}

struct Rig {
    proxy: Proxy,
    addr: SocketAddr,
}

impl Rig {
    /// A proxy before this server.
    async fn before(upstream: SocketAddr) -> Self {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let link = link("clients->n1");
        let wanted = Wanted { link, listen, upstream: upstream.to_string(), messages: false };
        let proxy = Proxy::start(vec![wanted], 1).await.unwrap();
        let addr = proxy.addr(link).unwrap();
        Self { proxy, addr }
    }

    async fn before_an_echo() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let upstream = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    // What is left is answered even after the other side has ended its half.
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                    let _ = to.shutdown().await;
                });
            }
        });
        Self::before(upstream).await
    }

    /// A proxy, and the two ends of a connection through it.
    async fn before_a_server() -> (Self, TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let rig = Self::before(listener.local_addr().unwrap()).await;
        let stream = rig.dial().await;
        let (server, _) = within(listener.accept()).await.unwrap();
        (rig, stream, server)
    }

    /// What the rule that was loaded last has done something to.
    fn acted(&self) -> u64 {
        self.proxy.table().last().map_or(0, kv_fault::InForce::acted)
    }

    fn load(&self, link: &str, action: WireAction) {
        self.proxy.load(vec![rule("r", link, action)], None).unwrap();
    }

    fn heal(&self) {
        assert_eq!(self.proxy.heal(None, false).len(), 1);
    }

    async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it takes too long")
}

/// Says something and hears it back.
async fn echo(stream: &mut TcpStream, said: &[u8]) -> io::Result<()> {
    stream.write_all(said).await?;
    heard(stream, said).await
}

async fn heard(stream: &mut TcpStream, expected: &[u8]) -> io::Result<()> {
    let mut heard = vec![0; expected.len()];
    within(stream.read_exact(&mut heard)).await?;
    assert_eq!(heard, expected);
    Ok(())
}

/// Bytes that show where they stand.
fn pattern(from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

/// Says as much of the pattern as can be said while nobody reads; how much that was.
async fn fill(stream: &mut TcpStream) -> usize {
    let mut count = 0;
    loop {
        let next = pattern(count, 1 << 16);
        match tokio::time::timeout(WHILE, stream.write(&next)).await {
            Ok(written) => count += written.unwrap(),
            Err(_) => return count,
        }
    }
}

/// That nothing is heard for a while.
async fn silent(stream: &mut TcpStream) {
    let mut byte = [0];
    let read = tokio::time::timeout(WHILE, stream.read(&mut byte)).await;
    assert!(read.is_err(), "something was heard: {read:?}");
}

#[tokio::test]
async fn without_a_rule_bytes_pass_and_so_does_the_end() {
    let rig = Rig::before_an_echo().await;
    let mut stream = rig.dial().await;
    echo(&mut stream, b"hello").await.unwrap();
    let large = vec![7; 3 << 20];
    let (mut from, mut to) = stream.split();
    let mut back = vec![0; large.len()];
    let (sent, received) =
        within(async { tokio::join!(to.write_all(&large), from.read_exact(&mut back)) }).await;
    sent.unwrap();
    received.unwrap();
    assert_eq!(back, large);
    stream.shutdown().await.unwrap();
    assert_eq!(within(stream.read(&mut [0; 8])).await.unwrap(), 0);
    rig.proxy.stop().await;
}

#[tokio::test]
async fn latency_is_of_one_direction() {
    let rig = Rig::before_an_echo().await;
    let mut stream = rig.dial().await;
    let base = Duration::from_millis(150);
    rig.load("n1->clients", WireAction::Latency(Delay::fixed(base)));
    let begun = Instant::now();
    echo(&mut stream, b"one").await.unwrap();
    assert!(begun.elapsed() >= base);
    rig.heal();
    rig.load("n2->n1", WireAction::Latency(Delay::fixed(PATIENCE)));
    echo(&mut stream, b"two").await.unwrap();
}

#[tokio::test]
async fn connections_share_a_bandwidth() {
    let rig = Rig::before_an_echo().await;
    let (mut one, mut two) = (rig.dial().await, rig.dial().await);
    echo(&mut one, b"-").await.unwrap();
    echo(&mut two, b"-").await.unwrap();
    rig.load("clients->n1", WireAction::Bandwidth { bytes_per_second: 1_000_000 });
    let begun = Instant::now();
    let large = vec![7; 100_000];
    let (first, second) = tokio::join!(echo(&mut one, &large), echo(&mut two, &large));
    first.unwrap();
    second.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(200), "200 KB at 1 MB/s: {:?}", begun.elapsed());
}

#[tokio::test]
async fn what_waits_for_a_bandwidth_that_is_healed_waits_no_more() {
    let rig = Rig::before_an_echo().await;
    let mut stream = rig.dial().await;
    echo(&mut stream, b"-").await.unwrap();
    // A hundred seconds of it.
    rig.load("clients->n1", WireAction::Bandwidth { bytes_per_second: 1_000 });
    let large = vec![7; 100_000];
    stream.write_all(&large).await.unwrap();
    silent(&mut stream).await;
    rig.heal();
    heard(&mut stream, &large).await.unwrap();
    echo(&mut stream, b"and what comes after it").await.unwrap();
}

#[tokio::test]
async fn what_is_refused_is_reset_and_what_stands_goes_on() {
    let rig = Rig::before_an_echo().await;
    let mut before = rig.dial().await;
    echo(&mut before, b"-").await.unwrap();
    rig.load("clients->n1", WireAction::Refuse);
    let mut refused = rig.dial().await;
    let ended = within(refused.read(&mut [0])).await;
    assert_eq!(ended.map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionReset));
    assert_eq!(rig.acted(), 1);
    echo(&mut before, b"still").await.unwrap();
    rig.heal();
    echo(&mut rig.dial().await, b"again").await.unwrap();
    assert_eq!(rig.acted(), 1);
}

#[tokio::test]
async fn a_reset_hits_the_connections_of_its_moment() {
    let rig = Rig::before_an_echo().await;
    let mut before = rig.dial().await;
    echo(&mut before, b"-").await.unwrap();
    rig.load("clients->n1", WireAction::Reset);
    let ended = within(before.read(&mut [0])).await;
    assert_eq!(ended.map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionReset));
    echo(&mut rig.dial().await, b"a later one").await.unwrap();
}

#[tokio::test]
async fn a_reset_that_is_healed_hits_no_later_connection_whatever_comes_next() {
    let rig = Rig::before_an_echo().await;
    rig.load("clients->n1", WireAction::Reset);
    rig.heal();
    let mut later = rig.dial().await;
    echo(&mut later, b"-").await.unwrap();
    rig.load("clients->n1", WireAction::Latency(Delay::fixed(Duration::from_millis(1))));
    echo(&mut later, b"still").await.unwrap();
}

#[tokio::test]
async fn a_reset_hits_a_connection_whose_receiver_does_not_read() {
    let (rig, mut stream, _server) = Rig::before_a_server().await;
    fill(&mut stream).await;
    rig.load("clients->n1", WireAction::Reset);
    let ended = within(stream.read(&mut [0])).await;
    assert_eq!(ended.map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_reset_hits_a_connection_whose_end_is_late() {
    let (rig, mut stream, server) = Rig::before_a_server().await;
    rig.load("n1->clients", WireAction::SlowClose(2 * PATIENCE));
    drop(server);
    silent(&mut stream).await;
    let reset = Rule { name: "s".parse().unwrap(), ..rule("r", "n1->clients", WireAction::Reset) };
    rig.proxy.load(vec![reset], None).unwrap();
    let ended = within(stream.read(&mut [0])).await;
    assert_eq!(ended.map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn what_waits_for_its_receiver_stays_in_order_when_rules_change() {
    let (rig, mut stream, mut server) = Rig::before_a_server().await;
    let count = fill(&mut server).await;
    rig.load("n1->clients", WireAction::Latency(Delay::fixed(Duration::from_millis(1))));
    rig.heal();
    rig.load("n1->clients", WireAction::Latency(Delay::fixed(Duration::from_millis(1))));
    heard(&mut stream, &pattern(0, count)).await.unwrap();
}

#[tokio::test]
async fn a_direction_is_half_closed_behind_what_waits_for_its_receiver() {
    let (rig, mut stream, mut server) = Rig::before_a_server().await;
    let count = fill(&mut server).await;
    rig.load("n1->clients", WireAction::HalfClose);
    let mut heard = Vec::new();
    within(stream.read_to_end(&mut heard)).await.unwrap();
    assert!(!heard.is_empty() && heard.len() <= count, "{} of {count}", heard.len());
    assert!(heard == pattern(0, heard.len()), "it is not what was said");
    stream.write_all(b"the other way").await.unwrap();
    self::heard(&mut server, b"the other way").await.unwrap();
}

#[tokio::test]
async fn a_stall_delays_and_a_black_hole_swallows() {
    let rig = Rig::before_an_echo().await;
    let mut stream = rig.dial().await;
    echo(&mut stream, b"-").await.unwrap();
    rig.load("clients->n1", WireAction::Stall);
    stream.write_all(b"late").await.unwrap();
    silent(&mut stream).await;
    rig.heal();
    heard(&mut stream, b"late").await.unwrap();

    rig.load("clients->n1", WireAction::BlackHole);
    stream.write_all(b"lost").await.unwrap();
    silent(&mut stream).await;
    rig.heal();
    // It cannot go on in the middle of what it lost.
    let ended = within(stream.read(&mut [0])).await;
    assert_eq!(ended.map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_half_closed_connection_goes_on_in_the_other_direction() {
    let rig = Rig::before_an_echo().await;
    let mut stream = rig.dial().await;
    echo(&mut stream, b"-").await.unwrap();
    rig.load("n1->clients", WireAction::HalfClose);
    assert_eq!(within(stream.read(&mut [0; 8])).await.unwrap(), 0, "the server's side has ended");
    stream.write_all(b"heard, not answered").await.unwrap();
}

#[tokio::test]
async fn a_slow_close_comes_late() {
    let rig = Rig::before_an_echo().await;
    let mut stream = rig.dial().await;
    echo(&mut stream, b"-").await.unwrap();
    let slow = Duration::from_millis(150);
    rig.load("n1->clients", WireAction::SlowClose(slow));
    let begun = Instant::now();
    stream.shutdown().await.unwrap();
    assert_eq!(within(stream.read(&mut [0; 8])).await.unwrap(), 0);
    assert!(begun.elapsed() >= slow);
    assert_eq!(rig.acted(), 1);
}

#[tokio::test]
async fn a_node_that_is_not_there_resets_its_callers_and_is_found_when_it_comes() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let upstream = listener.local_addr().unwrap();
    drop(listener);
    let rig = Rig::before(upstream).await;
    let ended = within(rig.dial().await.read(&mut [0])).await;
    assert_eq!(ended.map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionReset));
    let listener = TcpListener::bind(upstream).await.unwrap();
    let _stream = rig.dial().await;
    within(listener.accept()).await.unwrap();
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let listen = listener.local_addr().unwrap();
    let wanted = Wanted { link: link("n1->n2"), listen, upstream: "h:1".to_owned(), messages: true };
    let error = Proxy::start(vec![wanted.clone()], 1).await.unwrap_err().to_string();
    assert!(error.contains(&listen.to_string()) && error.contains("n1->n2"), "{error}");
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let twice = Wanted { listen: any, ..wanted };
    let error = Proxy::start(vec![twice.clone(), twice], 1).await.unwrap_err().to_string();
    assert_eq!(error, "the link n1->n2 is named twice");
}
