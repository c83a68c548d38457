//! How often a rule acts on what fits it.

use std::fmt;

use crate::coin;

/// The parts of [`Probability::CERTAIN`].
const PPM: u32 = 1_000_000;

/// A probability in parts per million.
///
/// # Invariants
/// At most a million parts: checked by both constructors.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Probability(u32);

impl Probability {
    /// Always.
    pub const CERTAIN: Self = Self(PPM);

    /// Never.
    pub const NEVER: Self = Self(0);

    /// So many parts per million; `None` beyond a million.
    pub const fn from_ppm(ppm: u32) -> Option<Self> {
        if ppm <= PPM { Some(Self(ppm)) } else { None }
    }

    /// From a fraction, rounded to a millionth; `None` outside of 0 to 1. Only 0 itself is [`Probability::NEVER`].
    pub fn from_fraction(fraction: f64) -> Option<Self> {
        if !(0.0..=1.0).contains(&fraction) {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to a million")]
        let ppm = (fraction * f64::from(PPM)).round() as u32;
        Some(Self(if fraction > 0.0 { ppm.max(1) } else { 0 }))
    }

    /// The parts per million.
    pub const fn ppm(self) -> u32 {
        self.0
    }

    /// Whether it happens, by a hash.
    pub(crate) fn happens(self, hash: u64) -> bool {
        coin::below(hash, u64::from(PPM)) < u64::from(self.0)
    }
}

impl fmt::Display for Probability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:06}", self.0 / PPM, self.0 % PPM);
        let text = text.trim_end_matches('0');
        f.write_str(text)?;
        f.write_str(if text.ends_with('.') { "0" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_become_parts_per_million() {
        assert_eq!(Probability::from_fraction(0.5).unwrap().ppm(), 500_000);
        assert_eq!(Probability::from_fraction(1e-12).unwrap().ppm(), 1);
        assert_eq!(Probability::from_fraction(1.0), Some(Probability::CERTAIN));
        for bad in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert_eq!(Probability::from_fraction(bad), None);
        }
        assert_eq!(Probability::from_ppm(1_000_001), None);
    }

    #[test]
    fn they_print_as_fractions() {
        let texts = [0, 1, 500_000, 1_000_000].map(|ppm| Probability::from_ppm(ppm).unwrap().to_string());
        assert_eq!(texts, ["0.0", "0.000001", "0.5", "1.0"]);
    }
}
