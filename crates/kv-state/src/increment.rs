//! Numbers that can be added to.
//!
//! A number is a value like any other: decimal ASCII in its shortest form. So `put` writes one, `get` shows it, and
//! what `incr` wrote is what a person would have written. Anything else is no number, `007` and `+7` included: a value
//! that looks like a number and is not written as one belongs to somebody who does not expect it to be rewritten.

use bytes::Bytes;

/// Why nothing was added. The same on every replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IncrementFailure {
    /// The value is not a number as `incr` writes them.
    #[error("the value is not a decimal number of 64 bits")]
    NotANumber,
    /// The sum does not fit 64 bits.
    #[error("the sum does not fit 64 bits")]
    Overflow,
}

/// The number that a key's value and `delta` give; an absent key counts as 0.
pub(crate) fn sum(value: Option<&Bytes>, delta: i64) -> Result<i64, IncrementFailure> {
    let number = value.map_or(Some(0), number).ok_or(IncrementFailure::NotANumber)?;
    number.checked_add(delta).ok_or(IncrementFailure::Overflow)
}

/// The longest is `-9223372036854775808`: longer values are not even looked at.
fn number(value: &Bytes) -> Option<i64> {
    if value.len() > 20 {
        return None;
    }
    let text = std::str::from_utf8(value).ok()?;
    text.parse().ok().filter(|number: &i64| number.to_string() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_shortest_decimal_form_is_a_number() {
        for (text, number) in
            [("0", 0), ("-1", -1), ("9223372036854775807", i64::MAX), ("-9223372036854775808", i64::MIN)]
        {
            assert_eq!(sum(Some(&Bytes::from(text)), 0), Ok(number), "{text}");
        }
        for text in ["", "-", "-0", "+1", "01", " 1", "1 ", "1.0", "0x1", "9223372036854775808", "\u{661}"] {
            assert_eq!(sum(Some(&Bytes::from(text)), 0), Err(IncrementFailure::NotANumber), "{text}");
        }
    }

    #[test]
    fn sums_begin_at_zero_and_never_wrap() {
        assert_eq!(sum(None, -5), Ok(-5));
        assert_eq!(sum(Some(&Bytes::from("1")), i64::MAX), Err(IncrementFailure::Overflow));
        assert_eq!(sum(Some(&Bytes::from("-1")), i64::MIN), Err(IncrementFailure::Overflow));
        assert_eq!(sum(Some(&Bytes::from("-1")), i64::MAX), Ok(i64::MAX - 1));
    }
}
