//! How long something takes longer.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::coin;
use crate::quantity::{ParseError, ShowDuration};

/// How delays spread around their base.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Shape {
    /// Anything from base - jitter to base + jitter, all alike.
    Uniform,
    /// A bell around the base: two thirds lie within the jitter, all within three and a half of it.
    Normal,
    /// The base and more: half are at most the jitter longer, a quarter up to 3 of it, an eighth up to 7, and so on until 63.
    LongTail,
}

/// A time drawn anew for each message. It is never below zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Delay {
    /// What it is about.
    pub base: Duration,
    /// How much it differs; zero for not at all.
    pub jitter: Duration,
    /// In what way it differs.
    pub shape: Shape,
}

/// Four numbers of 16 bits add up to a bell: this is twice its centre, and its standard deviation.
const BELL: (u64, u64) = (4 * 65_535, 37_837);

impl Delay {
    /// Always the same.
    pub const fn fixed(base: Duration) -> Self {
        Self { base, jitter: Duration::ZERO, shape: Shape::Uniform }
    }

    /// The delay by a hash: whole numbers all through, so that every machine finds the same.
    pub fn drawn(&self, hash: u64) -> Duration {
        let nanos = |span: Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        let (base, jitter) = (nanos(self.base), nanos(self.jitter));
        let drawn = match self.shape {
            Shape::Uniform => {
                let more = coin::below(hash, jitter.saturating_mul(2).saturating_add(1));
                base.saturating_add(more).saturating_sub(jitter)
            }
            Shape::Normal => {
                let sum: u64 = (0..4).map(|nth| (hash >> (16 * nth)) & 0xffff).sum();
                let (centre, deviation) = (BELL.0 / 2, BELL.1);
                let scaled = |distance: u64| {
                    let product = u128::from(jitter) * u128::from(distance) / u128::from(deviation);
                    u64::try_from(product).unwrap_or(u64::MAX)
                };
                if sum >= centre {
                    base.saturating_add(scaled(sum - centre))
                } else {
                    base.saturating_sub(scaled(centre - sum))
                }
            }
            Shape::LongTail => {
                // Each doubling is half as likely as the one before.
                let doublings = hash.leading_zeros().min(5);
                let (from, width) = ((1_u64 << doublings) - 1, 1_u64 << doublings);
                let within = coin::below(coin::hash(&[hash]), jitter.saturating_mul(width).saturating_add(1));
                base.saturating_add(jitter.saturating_mul(from)).saturating_add(within)
            }
        };
        Duration::from_nanos(drawn)
    }
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Uniform, Self::Normal, Self::LongTail];

    /// Its name in text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Normal => "normal",
            Self::LongTail => "long-tail",
        }
    }
}

impl FromStr for Shape {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let found = Self::ALL.into_iter().find(|shape| shape.name() == text);
        found.ok_or_else(|| ParseError::new(text, "shape", "uniform, normal or long-tail is expected"))
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Delay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", ShowDuration(self.base))?;
        if self.jitter.is_zero() {
            return Ok(());
        }
        write!(f, " jitter {} {}", ShowDuration(self.jitter), self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(shape: Shape) -> Vec<u64> {
        let (base, jitter) = (Duration::from_micros(1000), Duration::from_micros(100));
        let delay = Delay { base, jitter, shape };
        let mut found: Vec<_> = (0..10_000).map(|nth| delay.drawn(coin::hash(&[nth]))).collect();
        found.sort();
        found.iter().map(|span| u64::try_from(span.as_micros()).unwrap()).collect()
    }

    #[test]
    fn uniform_fills_its_span() {
        let found = sorted(Shape::Uniform);
        assert!(found[0] < 902 && found[9_999] > 1098 && found[9_999] <= 1100);
        assert!((995..1005).contains(&found[5_000]));
    }

    #[test]
    fn normal_is_a_bell() {
        let found = sorted(Shape::Normal);
        let within = found.iter().filter(|us| (900..=1100).contains(*us)).count();
        assert!((6_600..7_000).contains(&within), "{within}");
        assert!(found[0] >= 650 && found[9_999] <= 1350);
    }

    #[test]
    fn a_long_tail_is_long_and_ends() {
        let found = sorted(Shape::LongTail);
        assert!(found[0] >= 1000 && found[4_800] <= 1100 && found[7_300] <= 1300);
        assert!(found[9_999] > 5000 && found[9_999] <= 1000 + 6300);
    }

    #[test]
    fn no_delay_is_below_zero_or_overflows() {
        for shape in Shape::ALL {
            for (base, jitter) in [(0, 1000), (0, u64::MAX), (u64::MAX, u64::MAX)] {
                let (base, jitter) = (Duration::from_nanos(base), Duration::from_nanos(jitter));
                for hash in [0, 1, u64::MAX, 0x1234_5678_9abc_def0] {
                    let _ = Delay { base, jitter, shape }.drawn(hash);
                }
            }
        }
        assert_eq!(Delay::fixed(Duration::from_secs(1)).drawn(99), Duration::from_secs(1));
    }
}
