//! Numbers with a unit, and ranges, as text.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

/// Why a text could not be read: what it is not, and what is expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no {what}: {expected}")]
pub struct ParseError {
    /// The text.
    pub text: String,
    /// What it was read as.
    pub what: &'static str,
    /// What would have been right.
    pub expected: &'static str,
}

impl ParseError {
    pub(crate) fn new(text: &str, what: &'static str, expected: &'static str) -> Self {
        // Texts are shown in one line: long ones are cut.
        let text = text.chars().take(64).flat_map(char::escape_debug).collect();
        Self { text, what, expected }
    }
}

/// A whole number in digits alone: no sign, no blanks.
pub(crate) fn whole<T: FromStr>(text: &str) -> Option<T> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// A time such as `50ms`, `1.5s`, `20us`, `300ns`, `2m`.
pub(crate) fn duration(text: &str) -> Result<Duration, ParseError> {
    let expected = "a number and ns, us, ms, s or m are expected, such as 50ms";
    let read = || {
        let unit_at = text.find(|c: char| c.is_ascii_alphabetic())?;
        let (number, unit) = text.split_at_checked(unit_at)?;
        let unit = match unit {
            "ns" => 1,
            "us" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            _ => return None,
        };
        scaled(number, unit).map(Duration::from_nanos)
    };
    read().ok_or_else(|| ParseError::new(text, "time", expected))
}

/// A rate such as `1MB/s`, `64kB/s`, `800B/s`.
pub(crate) fn rate(text: &str) -> Result<u64, ParseError> {
    let expected = "a number from 1 and B/s, kB/s, MB/s or GB/s are expected, such as 64kB/s";
    let read = || {
        let unit_at = text.find(|c: char| c.is_ascii_alphabetic())?;
        let (number, unit) = text.split_at_checked(unit_at)?;
        let unit = match unit {
            "B/s" => 1,
            "kB/s" => 1_000,
            "MB/s" => 1_000_000,
            "GB/s" => 1_000_000_000,
            _ => return None,
        };
        scaled(number, unit).filter(|rate| *rate > 0)
    };
    read().ok_or_else(|| ParseError::new(text, "rate", expected))
}

/// `number`, which may have decimals, times `unit`; only if that is a whole number.
fn scaled(number: &str, unit: u64) -> Option<u64> {
    let Some((full, decimals)) = number.split_once('.') else {
        return whole::<u64>(number)?.checked_mul(unit);
    };
    let divisor = 10_u64.checked_pow(u32::try_from(decimals.len()).ok()?)?;
    let part = whole::<u64>(decimals)?.checked_mul(unit)?;
    let is_whole = part.checked_rem(divisor)? == 0;
    let sum = whole::<u64>(full)?.checked_mul(unit)?.checked_add(part.checked_div(divisor)?);
    sum.filter(|_| is_whole)
}

/// A range such as `3..=5`, `3..6`, `100..`, `..=7` or `4`.
pub(crate) fn range(text: &str) -> Result<RangeInclusive<u64>, ParseError> {
    let read = || {
        let Some((from, to)) = text.split_once("..") else {
            let only = whole(text)?;
            return Some(only..=only);
        };
        let start = if from.is_empty() { 0 } else { whole(from)? };
        let end = match to.strip_prefix('=') {
            Some(last) => whole(last)?,
            None if to.is_empty() => u64::MAX,
            None => whole::<u64>(to)?.checked_sub(1)?,
        };
        (start <= end).then_some(start..=end)
    };
    read().ok_or_else(|| ParseError::new(text, "range", "one such as 3..=5, 100.. or 4 is expected"))
}

/// A range as [`range`] reads it.
pub(crate) struct ShowRange<'a>(pub(crate) &'a RangeInclusive<u64>);

impl fmt::Display for ShowRange<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (*self.0.start(), *self.0.end()) {
            (start, u64::MAX) => write!(f, "{start}.."),
            (start, end) => write!(f, "{start}..={end}"),
        }
    }
}

/// A time as [`duration`] reads it.
pub(crate) struct ShowDuration(pub(crate) Duration);

impl fmt::Display for ShowDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ns = self.0.as_nanos();
        let units = [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us")];
        let unit = units.into_iter().find(|(unit, _)| ns.is_multiple_of(*unit));
        let (unit, name) = unit.unwrap_or((1, "ns"));
        write!(f, "{}{name}", ns / unit)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_have_a_unit() {
        assert_eq!(duration("50ms"), Ok(Duration::from_millis(50)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("0.25ms"), Ok(Duration::from_micros(250)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "5", "ms", "5 ms", "-5ms", "5h", "1.s", ".5s", "1.0000000001s", "99999999999999m"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        let error = duration("5").unwrap_err().to_string();
        assert_eq!(error, "`5` is no time: a number and ns, us, ms, s or m are expected, such as 50ms");
    }

    #[test]
    fn rates_have_a_unit() {
        assert_eq!(rate("1MB/s"), Ok(1_000_000));
        assert_eq!(rate("0.5kB/s"), Ok(500));
        for bad in ["", "1MB", "0B/s", "0.5B/s", "1mb/s"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges_may_be_open() {
        assert_eq!(range("3..=5"), Ok(3..=5));
        assert_eq!(range("3..6"), Ok(3..=5));
        assert_eq!(range("100.."), Ok(100..=u64::MAX));
        assert_eq!(range("..=7"), Ok(0..=7));
        assert_eq!(range("4"), Ok(4..=4));
        for bad in ["", "..=", "5..=3", "3..3", "a..b", "..0", "-1..=2", "1...3"] {
            assert!(range(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn times_print_and_read_back(ns in any::<u64>(), unit in 0..4_u32) {
            let unit = 1000_u64.pow(unit);
            let span = Duration::from_nanos(ns / unit * unit);
            prop_assert_eq!(duration(&ShowDuration(span).to_string()), Ok(span));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,20}") {
            let _ = (duration(&text), rate(&text), range(&text));
        }
    }
}
