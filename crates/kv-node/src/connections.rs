//! Connections of clients: so many at most that files are left for everything else. A node that cannot open a file cannot
//! write its log, and stops; a client that is turned away goes to another node, or tries again.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::Stream;
use tonic::transport::server::{Connected, TcpConnectInfo, TcpIncoming};
use tracing::warn;

/// More would cost more memory than they are worth.
const CONNECTIONS_MAX: u64 = 16_384;

/// Of the files that the process may open, this part is for clients.
const SHARE: u64 = 2;

/// Between two warnings that connections are refused.
const WARN_PAUSE: Duration = Duration::from_secs(10);

/// Lets this process open as many files as it may ask for, and says how many of them are for connections of clients.
pub(crate) fn connections_max() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Who may not raise it lives with what there is.
    if limit.current != limit.maximum && setrlimit(Resource::Nofile, wanted).is_ok() {
        limit = wanted;
    }
    // None is no limit.
    let files = limit.current.unwrap_or(u64::MAX);
    usize::try_from((files / SHARE).min(CONNECTIONS_MAX)).unwrap_or(usize::MAX)
}

/// Accepts connections as long as there is room, and closes what is beyond it.
pub(crate) struct Bounded {
    incoming: TcpIncoming,
    room: Arc<Semaphore>,
    refused: Counter,
    warned: Option<Instant>,
}

impl Bounded {
    pub(crate) fn new(incoming: TcpIncoming, connections_max: usize, refused: Counter) -> Self {
        Self { incoming, room: Arc::new(Semaphore::new(connections_max)), refused, warned: None }
    }

    fn refuse(&mut self) {
        self.refused.inc();
        if self.warned.is_none_or(|warned| warned.elapsed() >= WARN_PAUSE) {
            self.warned = Some(Instant::now());
            warn!(
                refused = self.refused.get(),
                "too many connections of clients: new ones are closed until old ones are"
            );
        }
    }
}

impl Stream for Bounded {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let stream = match ready!(Pin::new(&mut self.incoming).poll_next(cx)) {
                Some(Ok(stream)) => stream,
                Some(Err(cause)) => return Poll::Ready(Some(Err(cause))),
                None => return Poll::Ready(None),
            };
            if let Ok(slot) = Arc::clone(&self.room).try_acquire_owned() {
                return Poll::Ready(Some(Ok(Connection { stream, _slot: slot })));
            }
            self.refuse();
        }
    }
}

/// A connection, which counts until it is dropped.
pub(crate) struct Connection {
    stream: TcpStream,
    _slot: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;
    use tokio_stream::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn what_has_no_room_is_closed_until_there_is_some() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let refused = Counter::default();
        let mut bounded = Bounded::new(TcpIncoming::from(listener), 1, refused.clone());
        let _first = TcpStream::connect(address).await.unwrap();
        let held = bounded.next().await.unwrap().unwrap();
        let mut second = TcpStream::connect(address).await.unwrap();
        let closed = async {
            let read = second.read(&mut [0]).await;
            assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
        };
        tokio::select! {
            () = closed => {}
            _ = bounded.next() => panic!("there is no room for it"),
        }
        assert_eq!(refused.get(), 1);
        drop(held);
        let _third = TcpStream::connect(address).await.unwrap();
        assert!(bounded.next().await.unwrap().is_ok());
    }

    #[test]
    fn files_are_left_for_the_rest() {
        let most = connections_max();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert!(limit.current.is_none_or(|files| most as u64 * SHARE <= files));
    }
}
