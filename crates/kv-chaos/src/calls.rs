//! A connection whose messages rules look at: HTTP/2 from both sides, and each call carried message by message.
//!
//! Each connection from one side has one to the other, so that they stand and fall together. What HTTP/2 itself says (pings,
//! settings, windows) ends at the proxy: to freeze those too is for the plane below.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Either, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kv_fault::Link;
use kv_types::limits::PEER_FRAME_BYTES_MAX;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tracing::debug;

use crate::carry::{Carried, Carrier, Copier, Out, Side};
use crate::faults::Faults;
use crate::inspect::{Call, Stream};

/// How long an answer is waited for that nobody wants any more, because its request was on its way.
const UNWANTED_MAX: Duration = Duration::from_secs(10);

/// As nodes have it: a peer that is silent for so long is given up.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(2));

const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;
const _: () = assert!(STREAM_WINDOW as usize >= PEER_FRAME_BYTES_MAX, "a frame fits a window");

/// What is sent on: a body that is carried, a copy, or nothing.
pub(crate) type Sent = Either<Carried, Full<Bytes>>;
type Answer = Response<Either<Carried, Empty<Bytes>>>;

/// The connection to the node, and what its calls need.
#[derive(Clone)]
struct Way {
    upstream: SendRequest<Sent>,
    faults: Arc<Faults>,
    /// The direction of requests.
    link: Link,
}

/// Serves one connection until either side ends it.
///
/// # Errors
/// Whatever HTTP/2 says of one of the two.
pub(crate) async fn serve(
    downstream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    upstream: TcpStream,
    (faults, link): (Arc<Faults>, Link),
) -> Result<(), hyper::Error> {
    let mut client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    client
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(KEEP_ALIVE.0)
        .keep_alive_timeout(KEEP_ALIVE.1)
        .keep_alive_while_idle(true);
    let (upstream, connection) = client.handshake(TokioIo::new(upstream)).await?;
    let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    server
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(None);
    let way = Way { upstream, faults, link };
    let service = service_fn(move |request| way.clone().call(request));
    let serving = pin!(server.serve_connection(TokioIo::new(downstream), service));
    tokio::select! {
        ended = serving => ended,
        ended = connection => ended,
    }
}

impl Way {
    /// Answers one call by asking the node.
    async fn call(self, request: Request<Incoming>) -> Result<Answer, Cut> {
        let (answer, answered) = oneshot::channel();
        // A task of its own: what rules hold arrives even if the caller has given up.
        tokio::spawn(self.exchange(request, answer));
        answered.await.unwrap_or(Err(Cut))
    }

    async fn exchange(
        mut self,
        request: Request<Incoming>,
        mut answer: oneshot::Sender<Result<Answer, Cut>>,
    ) {
        let (head, body) = request.into_parts();
        let call = Call::of(head.uri.path());
        let (out, sent) = Out::new();
        let mut carrier = Carrier::new(Arc::clone(&self.faults), self.link, call.is_stream());
        carrier.copier = (!call.is_stream()).then(|| self.copier(&head));
        let (seen, stream) = oneshot::channel();
        let carrying = tokio::spawn(async move {
            let mut stream = Stream::new(call);
            let late = carrier.carry(body, &out, Side::Request(&mut stream)).await;
            // The answer may have come before.
            let _ = seen.send(stream);
            // A request that was lost does not end, as long as somebody waits for its answer.
            (late, carrier.was_lost().then_some(out))
        });
        let mut asked = pin!(self.upstream.send_request(Request::from_parts(head, Either::Left(sent))));
        let response = tokio::select! {
            response = &mut asked => response,
            () = answer.closed() => {
                // The node is told that nobody waits any more, unless what it was asked was late: that is seen through.
                if carrying.await.is_ok_and(|(late, _)| late) {
                    let _ = tokio::time::timeout(UNWANTED_MAX, asked).await;
                }
                return;
            }
        };
        match response {
            Err(error) => {
                debug!(link = %self.link, %error, "a call failed");
                let _ = answer.send(Err(Cut));
            }
            Ok(response) => self.reply(call, response, (answer, stream)).await,
        }
    }

    async fn reply(
        self,
        call: Call,
        response: Response<Incoming>,
        (mut answer, stream): (oneshot::Sender<Result<Answer, Cut>>, oneshot::Receiver<Stream>),
    ) {
        let link = Link { from: self.link.to, to: self.link.from };
        // What was asked is known by now, unless requests are a stream: then it does not matter.
        let stream =
            if call.is_stream() { Stream::new(call) } else { stream.await.unwrap_or(Stream::new(call)) };
        let (head, body) = response.into_parts();
        if head.headers.contains_key("grpc-status") {
            // An error without a body is a message, too.
            let mut carrier = Carrier::new(self.faults, link, false);
            let arrives = tokio::select! {
                arrives = carrier.carry_head(&stream) => arrives,
                () = answer.closed() => return,
            };
            if !arrives {
                answer.closed().await;
                return;
            }
            let _ = answer.send(Ok(Response::from_parts(head, Either::Right(Empty::new()))));
            return;
        }
        let (out, sent) = Out::new();
        if answer.send(Ok(Response::from_parts(head, Either::Left(sent)))).is_err() {
            return;
        }
        let mut carrier = Carrier::new(self.faults, link, call.answers_stream());
        carrier.carry(body, &out, Side::Reply(&stream)).await;
        if carrier.was_lost() {
            // So that its caller waits, and learns nothing.
            out.closed().await;
        }
    }

    /// Makes calls of copies; their answers interest nobody.
    fn copier(&self, head: &http::request::Parts) -> Copier {
        let (way, head) = (self.clone(), head.clone());
        Box::new(move |bytes, delay| {
            let Some(room) = way.faults.room(bytes.len()) else { return };
            let (mut upstream, head) = (way.upstream.clone(), head.clone());
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                drop(room);
                let copy = Request::from_parts(head, Either::Right(Full::new(bytes)));
                if let Ok(Ok(answer)) = tokio::time::timeout(UNWANTED_MAX, upstream.send_request(copy)).await
                {
                    let _ = tokio::time::timeout(UNWANTED_MAX, answer.into_body().collect()).await;
                }
            });
        })
    }
}

/// The node did not answer: the call is reset, as a broken connection would.
#[derive(Debug, thiserror::Error)]
#[error("the node has not answered")]
struct Cut;
