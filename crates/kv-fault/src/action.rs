//! What a rule does.

use std::fmt;
use std::time::Duration;

use crate::Delay;
use crate::quantity::ShowDuration;

/// What happens to a message that a rule matches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// It never arrives.
    Drop,
    /// It arrives later. Others may overtake it.
    Delay(Delay),
    /// It arrives more than once.
    Duplicate {
        /// How many extra copies there are.
        copies: u32,
        /// The time between one copy and the next.
        gap: Duration,
    },
    /// Some later messages of the link go before it: from none up to `window`, drawn for each.
    Reorder {
        /// The most that go before it.
        window: u32,
    },
    /// It waits until the rule is healed; also while a pulse is off, during which others pass.
    Hold,
    /// Bits of its payload are turned over.
    Flip {
        /// How many.
        bits: u32,
    },
    /// Nothing happens to messages, but to the connections below them.
    Wire(WireAction),
}

/// What happens below messages, to every TCP connection in that direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WireAction {
    /// Bytes arrive later, and in order.
    Latency(Delay),
    /// So many bytes a second get through, which the connections of the link share.
    Bandwidth {
        /// The rate; never zero.
        bytes_per_second: u64,
    },
    /// New connections are refused.
    Refuse,
    /// Connections that stand when the rule is loaded are reset, once; later ones are left alone. It has no pulse.
    Reset,
    /// Bytes are read and thrown away; nobody is told.
    BlackHole,
    /// Bytes are no longer read, until the sender's buffers are full.
    Stall,
    /// The end of a connection is passed on this much later.
    SlowClose(Duration),
    /// This direction is closed, the other stays open.
    HalfClose,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drop => f.write_str("drop"),
            Self::Delay(delay) => write!(f, "delay {delay}"),
            Self::Duplicate { copies, gap } => write!(f, "duplicate {copies} gap {}", ShowDuration(*gap)),
            Self::Reorder { window } => write!(f, "reorder {window}"),
            Self::Hold => f.write_str("hold"),
            Self::Flip { bits } => write!(f, "flip {bits}"),
            Self::Wire(action) => write!(f, "{action}"),
        }
    }
}

impl fmt::Display for WireAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latency(delay) => write!(f, "latency {delay}"),
            Self::Bandwidth { bytes_per_second } => write!(f, "bandwidth {bytes_per_second}B/s"),
            Self::Refuse => f.write_str("refuse"),
            Self::Reset => f.write_str("reset"),
            Self::BlackHole => f.write_str("black-hole"),
            Self::Stall => f.write_str("stall"),
            Self::SlowClose(span) => write!(f, "slow-close {}", ShowDuration(*span)),
            Self::HalfClose => f.write_str("half-close"),
        }
    }
}
