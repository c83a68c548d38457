//! Snapshots: a shard's whole state as a stream of bytes. Repair, backup and regeneration are the same thing.
//!
//! The sender pins nothing: it streams the base **while merges go on**, from note b, so that rows of any moment between
//! b and now are mixed; then the effects (b, e], which set every row that may have been caught halfway; then a trailer
//! with the state hash at e, against which the receiver compares what it has built. e is the newest entry applied when
//! the last row of the base was read, so it covers every merge that was begun meanwhile.
//!
//! The stream is a sequence of items (header, base rows, effects, trailer), cut into chunks without regard to items.
//! Each chunk carries its number and a CRC32C.
//!
//! A stream that breaks between the two is not lost: the receiver keeps what it has built and says how many chunks it has
//! taken in, and the sender rewinds to there. What may break streams, for how long a half-built generation is kept and
//! how often a stream is resumed is the host's business.

mod check;
mod frame;
mod receiver;
mod sender;

pub(crate) use self::check::RowCheck;
pub(crate) use self::receiver::NetChanges;
pub use self::receiver::{ReceivedSnapshot, SnapshotError, SnapshotReceiver};
pub use self::sender::SnapshotSource;
