//! The listeners of all links, and what connects to them.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kv_fault::{End, InForce, Link, Rule, RuleError, RuleName, WireAction};
use kv_types::NodeId;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::calls;
use crate::faults::Faults;
use crate::wire::{Over, Plane, pump};

/// Bytes between the two planes of a connection.
const BETWEEN_BYTES: usize = 256 << 10;

/// How long the proxy tries to reach a node.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// Connections of one link.
const CONNECTIONS_MAX: u64 = 1024;

/// A link as it is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Who dials, and who is dialled.
    pub link: Link,
    /// Where the proxy listens for it.
    pub listen: SocketAddr,
    /// Whom it dials, HOST:PORT.
    pub upstream: String,
    /// Whether rules may look at messages: it speaks our protocol. Else it is bytes.
    pub messages: bool,
}

/// Why the proxy does not start.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// An address is in use, or not ours.
    #[error("cannot listen on {listen} for {link}: {cause}")]
    Bind {
        /// The link.
        link: Link,
        /// Where.
        listen: SocketAddr,
        /// Why.
        cause: io::Error,
    },
    /// The same link twice.
    #[error("the link {0} is named twice")]
    Twice(Link),
    /// There would be no port for it.
    #[error("the base port {0} leaves no room for the ports of all links")]
    Ports(u16),
}

/// A link of a running proxy.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) wanted: Wanted,
    /// Where it really listens.
    pub(crate) listen: SocketAddr,
    pub(crate) connections: AtomicU64,
    pub(crate) unreachable: AtomicU64,
}

/// A proxy that runs.
#[derive(Debug)]
pub struct Proxy {
    pub(crate) faults: Arc<Faults>,
    pub(crate) links: BTreeMap<Link, Arc<Standing>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// The links of a cluster: one for each ordered pair of nodes, and one from clients to each.
///
/// From node a to node b the port is `base` + 10 a + b, from clients to node b `base` + b: 7612 is from n1 to n2 above 7600.
/// Port 0 is any.
///
/// # Errors
/// [`ProxyError::Ports`]
pub fn cluster_links(
    listen: IpAddr,
    base: u16,
    (peers, clients): (&BTreeMap<NodeId, String>, &BTreeMap<NodeId, String>),
) -> Result<Vec<Wanted>, ProxyError> {
    let at = |offset: u64| match base {
        0 => Ok(SocketAddr::new(listen, 0)),
        _ => u16::try_from(u64::from(base) + offset)
            .map(|port| SocketAddr::new(listen, port))
            .map_err(|_| ProxyError::Ports(base)),
    };
    let mut links = Vec::new();
    for from in peers.keys() {
        for (to, upstream) in peers.iter().filter(|(to, _)| *to != from) {
            let link = Link { from: End::Node(*from), to: End::Node(*to) };
            let listen = at(from.get().saturating_mul(10).saturating_add(to.get()))?;
            links.push(Wanted { link, listen, upstream: upstream.clone(), messages: true });
        }
    }
    for (to, upstream) in clients {
        let link = Link { from: End::Clients, to: End::Node(*to) };
        links.push(Wanted { link, listen: at(to.get())?, upstream: upstream.clone(), messages: true });
    }
    Ok(links)
}

impl Proxy {
    /// Binds all links and serves them. `seed` decides every draw of lots.
    ///
    /// # Errors
    /// [`ProxyError`]; nothing is served then.
    pub async fn start(wanted: Vec<Wanted>, seed: u64) -> Result<Self, ProxyError> {
        let (faults, stop, tasks) =
            (Arc::new(Faults::new(seed)), CancellationToken::new(), TaskTracker::new());
        let mut links: BTreeMap<Link, Arc<Standing>> = BTreeMap::new();
        let mut listeners = Vec::new();
        for wanted in wanted {
            let (link, listen) = (wanted.link, wanted.listen);
            let failed = |cause| ProxyError::Bind { link, listen, cause };
            if links.contains_key(&link) {
                return Err(ProxyError::Twice(link));
            }
            let listener = TcpListener::bind(listen).await.map_err(failed)?;
            let listen = listener.local_addr().map_err(failed)?;
            let (connections, unreachable) = (AtomicU64::new(0), AtomicU64::new(0));
            let standing = Arc::new(Standing { wanted, listen, connections, unreachable });
            links.insert(link, Arc::clone(&standing));
            listeners.push((listener, standing));
        }
        for (listener, standing) in listeners {
            let link =
                Served { standing, faults: Arc::clone(&faults), stop: stop.clone(), tasks: tasks.clone() };
            tasks.spawn(link.accept(listener));
        }
        Ok(Self { faults, links, tasks, stop })
    }

    /// Where a link is dialled.
    pub fn addr(&self, link: Link) -> Option<SocketAddr> {
        self.links.get(&link).map(|standing| standing.listen)
    }

    /// Puts rules in force, all or none. With a seed all chance comes from that from now on.
    ///
    /// # Errors
    /// [`RuleError`]
    pub fn load(&self, rules: Vec<Rule>, seed: Option<u64>) -> Result<(), RuleError> {
        let both = |link: &Link| [*link, Link { from: link.to, to: link.from }];
        let directions: Vec<_> = self.links.keys().flat_map(both).collect();
        self.faults.load(rules, seed, &directions)
    }

    /// Takes a rule, or all, out of force: their names. What they held arrives `late`, or is lost.
    pub fn heal(&self, which: Option<&RuleName>, late: bool) -> Vec<RuleName> {
        self.faults.heal(which, late)
    }

    /// The rules in force and those that were, with what each has matched.
    pub fn table(&self) -> Vec<InForce> {
        self.faults.table()
    }

    /// Appends every message to a file from now on, a JSON object a line; without one, ends that.
    ///
    /// # Errors
    /// The file cannot be opened or written.
    pub fn log_messages(&self, path: Option<&Path>) -> io::Result<()> {
        self.faults.log.set(path)?;
        self.faults.log_changed();
        Ok(())
    }

    /// Has links carry messages from now on, or bytes unless somebody looks at messages. Connections that carry the other
    /// are reset.
    pub fn watch(&self, on: bool) {
        self.faults.watch(on);
    }

    /// All links, and where each is dialled.
    pub fn links(&self) -> impl Iterator<Item = (Link, SocketAddr)> + '_ {
        self.links.iter().map(|(link, standing)| (*link, standing.listen))
    }

    /// Ends all connections and returns when they have ended.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// What the tasks of a link need.
#[derive(Clone)]
struct Served {
    standing: Arc<Standing>,
    faults: Arc<Faults>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// A connection that counts.
struct Counted(Arc<Standing>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Served {
    async fn accept(self, listener: TcpListener) {
        let link = self.standing.wanted.link;
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let downstream = match accepted {
                Ok((downstream, _)) => downstream,
                Err(cause) => {
                    // Out of file descriptors, say: the next may be served.
                    warn!(%link, %cause, "a connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let full = self.standing.connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX;
            let counted = Counted(Arc::clone(&self.standing));
            let refused = self.faults.wire(link).refuse;
            if refused {
                self.faults.count_wire(link, |action| action == WireAction::Refuse);
            }
            if full || refused {
                reset(&downstream);
                continue;
            }
            let (served, stop) = (self.clone(), self.stop.clone());
            self.tasks.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = served.serve(downstream) => {}
                }
                drop(counted);
            });
        }
    }

    async fn serve(&self, mut downstream: TcpStream) {
        let (link, address) = (self.standing.wanted.link, &self.standing.wanted.upstream);
        let upstream = match tokio::time::timeout(CONNECT_MAX, TcpStream::connect(address)).await {
            Ok(Ok(upstream)) => upstream,
            Ok(Err(cause)) => return self.unreachable(&downstream, &cause.to_string()),
            Err(_) => return self.unreachable(&downstream, "it does not answer"),
        };
        // Without it small messages wait for acknowledgements.
        if let Err(cause) = downstream.set_nodelay(true).and_then(|()| upstream.set_nodelay(true)) {
            debug!(%link, %cause, "a connection ended at once");
            return;
        }
        let over = match (self.standing.wanted.messages, self.faults.is_watched()) {
            (true, true) => self.messages(&mut downstream, upstream).await,
            (true, false) => self.bytes(&mut downstream, upstream, Plane::BytesForNow).await,
            (false, _) => self.bytes(&mut downstream, upstream, Plane::Bytes).await,
        };
        match over {
            Over::Done => {}
            Over::Reset => reset(&downstream),
            Over::Broken(cause) => debug!(%link, %cause, "a connection broke"),
        }
    }

    fn unreachable(&self, downstream: &TcpStream, cause: &str) {
        let wanted = &self.standing.wanted;
        if self.standing.unreachable.fetch_add(1, Ordering::Relaxed) == 0 {
            info!(link = %wanted.link, upstream = wanted.upstream, cause, "the node is not reached, for now");
        }
        reset(downstream);
    }

    /// Both directions as bytes.
    async fn bytes(&self, downstream: &mut TcpStream, mut upstream: TcpStream, plane: Plane) -> Over {
        let (link, back) = self.directions();
        let (mut from, mut to) = downstream.split();
        let (mut answers, mut requests) = upstream.split();
        let there = pump(&mut from, &mut requests, (&self.faults, link), plane);
        let back = pump(&mut answers, &mut to, (&self.faults, back), plane);
        let over = both(there, back).await;
        if matches!(over, Over::Reset) {
            reset(&upstream);
        }
        over
    }

    /// As messages, which pass the plane of bytes on the side of whoever dialled.
    async fn messages(&self, downstream: &mut TcpStream, upstream: TcpStream) -> Over {
        let (link, back) = self.directions();
        let (near, far) = tokio::io::duplex(BETWEEN_BYTES);
        let (mut from, mut to) = downstream.split();
        let (mut answers, mut requests) = tokio::io::split(near);
        let there = pump(&mut from, &mut requests, (&self.faults, link), Plane::Messages);
        let back = pump(&mut answers, &mut to, (&self.faults, back), Plane::Messages);
        let served = calls::serve(far, upstream, (Arc::clone(&self.faults), link));
        let moved = both(there, back);
        tokio::pin!(moved, served);
        tokio::select! {
            over = &mut moved => over,
            ended = &mut served => {
                if let Err(error) = ended {
                    debug!(%link, %error, "a connection ended");
                }
                // What was said last still arrives.
                moved.await
            }
        }
    }

    fn directions(&self) -> (Link, Link) {
        let link = self.standing.wanted.link;
        (link, Link { from: link.to, to: link.from })
    }
}

/// Both directions, until both are done or one cannot go on.
async fn both(there: impl Future<Output = Over>, back: impl Future<Output = Over>) -> Over {
    tokio::pin!(there, back);
    let (first, other) = tokio::select! {
        over = &mut there => (over, true),
        over = &mut back => (over, false),
    };
    match (first, other) {
        (Over::Done, true) => back.await,
        (Over::Done, false) => there.await,
        (over, _) => over,
    }
}

/// Has a connection end with a reset instead of an orderly end.
fn reset(stream: &TcpStream) {
    if let Err(cause) = stream.set_zero_linger() {
        debug!(%cause, "a connection ends in good order instead of being reset");
    }
}
