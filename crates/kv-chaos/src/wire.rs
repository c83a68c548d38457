//! Bytes from one end of a connection to the other, as slowly or as badly as the rules of the direction want it.
//!
//! One task moves both directions of a connection, so that it alone closes it, and how.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use kv_fault::{Link, Wire, WireAction};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::faults::{Faults, Passing};

/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;

/// Bytes on their way through a slow link; more are not read until some have arrived.
const ON_THE_WAY_BYTES_MAX: usize = 8 << 20;

/// How often a direction looks again at rules that come and go by themselves.
const PULSE: Duration = Duration::from_millis(5);

/// What a connection is carried as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plane {
    /// Bytes, whatever rules say.
    Bytes,
    /// Bytes, until somebody looks at messages.
    BytesForNow,
    /// Messages, until nobody will look at them any more.
    Messages,
}

impl Plane {
    fn is_over(self, faults: &Faults) -> bool {
        match self {
            Self::Bytes => false,
            Self::BytesForNow => faults.is_watched(),
            Self::Messages => !faults.is_watched(),
        }
    }
}

/// Why a direction of a connection is over.
#[derive(Debug)]
pub(crate) enum Over {
    /// Everything was passed on, the end included.
    Done,
    /// A rule wants the connection reset, it has lost bytes and cannot go on, or it is to be carried as something else.
    Reset,
    /// The network.
    Broken(io::Error),
}

/// Moves bytes in one direction until it is over.
pub(crate) async fn pump(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    (faults, link): (&Faults, Link),
    plane: Plane,
) -> Over {
    let direction = Direction::new((faults, link), plane);
    match direction.run(from, to).await {
        Ok(over) => over,
        Err(error) => Over::Broken(error),
    }
}

struct Direction<'a> {
    faults: &'a Faults,
    link: Link,
    plane: Plane,
    passing: Arc<Passing>,
    /// Told when rules change.
    changes: watch::Receiver<u64>,
    /// How many resets there were when it began: a further one is meant for it.
    resets: u64,
    /// Bytes on their way, with when they arrive.
    queue: VecDeque<(Instant, Bytes)>,
    queued: usize,
    /// Bytes were swallowed: the receiver waits in the middle of something.
    lost: bool,
    /// The receiver was told that nothing more comes.
    half_closed: bool,
}

impl<'a> Direction<'a> {
    fn new((faults, link): (&'a Faults, Link), plane: Plane) -> Self {
        let (queue, passing) = (VecDeque::new(), faults.passing(link));
        let (resets, changes) = (passing.resets.load(Ordering::Acquire), faults.changes());
        let (queued, lost, half_closed) = (0, false, false);
        Self { faults, link, plane, passing, changes, resets, queue, queued, lost, half_closed }
    }

    async fn run(
        mut self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<Over> {
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        let mut ended = false;
        loop {
            let wire = self.faults.wire(self.link);
            if self.must_reset(&wire) {
                return Ok(Over::Reset);
            }
            if wire.half_close && !self.half_closed && self.queue.is_empty() {
                self.half_closed = true;
                to.shutdown().await?;
            }
            // What is on its way arrives before the end does, and nothing comes behind it.
            let closes = wire.half_close && !self.half_closed;
            if ended && self.queue.is_empty() {
                return self.finish(&wire, to).await;
            }
            if wire.latency.is_empty() && wire.bandwidth.is_none() {
                // What was slowed down is not any more.
                let now = Instant::now();
                self.queue.iter_mut().for_each(|(due, _)| *due = now.min(*due));
            }
            let reads = !ended && !wire.stall && !closes && self.queued < ON_THE_WAY_BYTES_MAX;
            let due = self.queue.front().map(|(due, _)| *due);
            let writes = due.is_some() && !wire.stall;
            // Rules with a pulse come and go without a change.
            let again = (!wire.is_plain() || self.faults.has_pulses()).then(|| Instant::now() + PULSE);
            tokio::select! {
                read = from.read_buf(&mut buffer), if reads => {
                    ended = read? == 0;
                    if !buffer.is_empty() {
                        let read = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
                        self.passing.bytes.fetch_add(read, Ordering::Relaxed);
                        self.take(&wire, &mut buffer, to).await?;
                    }
                }
                () = at(due), if writes => self.write(to).await?,
                _ = self.changes.changed() => {}
                () = at(again), if again.is_some() => {}
            }
        }
    }

    fn must_reset(&self, wire: &Wire) -> bool {
        self.was_reset() || (self.lost && !wire.black_hole) || self.plane.is_over(self.faults)
    }

    fn was_reset(&self) -> bool {
        self.passing.resets.load(Ordering::Acquire) > self.resets
    }

    /// Takes in what was read: passes it on at once if nothing is in the way.
    async fn take(
        &mut self,
        wire: &Wire,
        buffer: &mut BytesMut,
        to: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        if self.plane.is_over(self.faults) {
            // A rule that is in force by now shall have seen it.
            buffer.clear();
            return Ok(());
        }
        if wire.black_hole || self.half_closed {
            self.lost |= !self.half_closed;
            buffer.clear();
            return Ok(());
        }
        if wire.is_plain() && self.queue.is_empty() {
            self.pass(buffer, to).await?;
            buffer.clear();
            return Ok(());
        }
        let mut due = Instant::now() + self.faults.latency(self.link, wire);
        if let Some(rate) = wire.bandwidth {
            due = due.max(self.faults.reserve(self.link, rate, buffer.len()));
        }
        // What was read later does not arrive earlier.
        due = self.queue.back().map_or(due, |(last, _)| due.max(*last));
        self.queued += buffer.len();
        self.queue.push_back((due, buffer.split().freeze()));
        buffer.reserve(READ_BYTES);
        Ok(())
    }

    /// Passes bytes on. If rules change while the receiver takes none, the rest waits until they were looked at.
    async fn pass(&mut self, mut bytes: &[u8], to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        while !bytes.is_empty() {
            match write_some(to, bytes, &mut self.changes).await? {
                Some(written) => bytes.advance(written),
                None => break,
            }
        }
        to.flush().await?;
        if !bytes.is_empty() {
            self.queued += bytes.len();
            self.queue.push_back((Instant::now(), Bytes::copy_from_slice(bytes)));
        }
        Ok(())
    }

    /// Writes what the receiver takes of what is due, unless rules change meanwhile.
    async fn write(&mut self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let Some((_, bytes)) = self.queue.front_mut() else { return Ok(()) };
        let Some(written) = write_some(to, bytes, &mut self.changes).await? else { return Ok(()) };
        bytes.advance(written);
        self.queued -= written;
        if !bytes.has_remaining() {
            self.queue.pop_front();
        }
        if self.queue.is_empty() {
            to.flush().await?;
        }
        Ok(())
    }

    /// Passes the end on, when the rules allow it.
    async fn finish(mut self, wire: &Wire, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<Over> {
        if self.half_closed {
            return Ok(Over::Done);
        }
        if let Some(slow) = wire.slow_close {
            self.faults.count_wire(self.link, |action| matches!(action, WireAction::SlowClose(_)));
            let until = Instant::now() + slow;
            while !self.was_reset()
                && self.faults.wire(self.link).slow_close.is_some()
                && timeout_at(until, self.changes.changed()).await.is_ok()
            {}
        }
        // A black hole swallows the end as well; a stall holds it back.
        loop {
            let wire = self.faults.wire(self.link);
            // An orderly end would make what is missing look as if it had never been sent.
            if self.was_reset() || (self.lost && !wire.black_hole) {
                return Ok(Over::Reset);
            }
            if !wire.stall && !wire.black_hole {
                break;
            }
            // Whether it changes or not: a pulse ends without one.
            let _ = timeout_at(Instant::now() + PULSE, self.changes.changed()).await;
        }
        to.shutdown().await?;
        Ok(Over::Done)
    }
}

/// Writes what the receiver takes; `None` if rules change before it takes any: it may not take any for a long time.
async fn write_some(
    to: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
    changes: &mut watch::Receiver<u64>,
) -> io::Result<Option<usize>> {
    tokio::select! {
        biased;
        written = to.write(bytes) => match written? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            written => Ok(Some(written)),
        },
        _ = changes.changed() => Ok(None),
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
