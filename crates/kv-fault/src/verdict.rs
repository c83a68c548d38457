//! What happens to one message, and to what is below messages.

use std::time::Duration;

use crate::{Delay, Link, RuleName, WireAction, coin};

/// Whether a message arrives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It arrives, as the rest of the verdict says.
    Deliver,
    /// It never arrives.
    Drop,
    /// It waits until the rule of this name is healed. Then, if it is not discarded, it arrives as it is: the rest of the
    /// verdict is plain.
    Hold(RuleName),
}

/// What all rules together do to one message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Whether it arrives.
    pub fate: Fate,
    /// How much later.
    pub delay: Duration,
    /// Extra copies: how much later than the undisturbed message each arrives, the message's own delay included.
    pub copies: Vec<Duration>,
    /// How many later messages of the link go before it, not counting those that are lost; never zero. Who waits for them
    /// should not wait for ever.
    pub reorder: Option<u32>,
    /// Bits to turn over, each named by a hash: the bit's number is the hash modulo the bits of the payload.
    pub flips: Vec<u64>,
}

impl Verdict {
    /// It arrives as if there were no rules.
    pub const PLAIN: Self = Self {
        fate: Fate::Deliver,
        delay: Duration::ZERO,
        copies: Vec::new(),
        reorder: None,
        flips: Vec::new(),
    };

    /// Whether it arrives as if there were no rules.
    pub fn is_plain(&self) -> bool {
        *self == Self::PLAIN
    }
}

/// What is in force below messages on one link.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Wire {
    /// Delays of bytes; they add up. [`Wire::latency_of`] draws them.
    pub latency: Vec<(RuleName, Delay)>,
    /// The smallest bandwidth, in bytes a second, which the connections of the link share.
    pub bandwidth: Option<u64>,
    /// Whether new connections are refused.
    pub refuse: bool,
    /// Whether bytes are thrown away.
    pub black_hole: bool,
    /// Whether bytes are no longer read.
    pub stall: bool,
    /// How much later the end of a connection is passed on: the longest.
    pub slow_close: Option<Duration>,
    /// Whether this direction is closed.
    pub half_close: bool,
}

impl Wire {
    /// Whether nothing is in force.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }

    /// How much later a chunk of bytes arrives: the `ordinal` numbers the chunks of the link.
    pub fn latency_of(&self, seed: u64, link: Link, ordinal: u64) -> Duration {
        self.latency.iter().fold(Duration::ZERO, |sum, (rule, delay)| {
            let coin = coin::Coin::new(seed, rule, link, ordinal).toss(coin::Purpose::Wire, 0);
            sum.saturating_add(delay.drawn(coin))
        })
    }

    /// Takes up one more action.
    pub(crate) fn join(&mut self, rule: &RuleName, action: WireAction) {
        match action {
            WireAction::Latency(delay) => self.latency.push((rule.clone(), delay)),
            WireAction::Bandwidth { bytes_per_second } => {
                let smaller = self.bandwidth.map_or(bytes_per_second, |rate| rate.min(bytes_per_second));
                self.bandwidth = Some(smaller);
            }
            WireAction::Refuse => self.refuse = true,
            // It was done when the rule was loaded.
            WireAction::Reset => {}
            WireAction::BlackHole => self.black_hole = true,
            WireAction::Stall => self.stall = true,
            WireAction::SlowClose(span) => self.slow_close = self.slow_close.max(Some(span)),
            WireAction::HalfClose => self.half_close = true,
        }
    }
}
