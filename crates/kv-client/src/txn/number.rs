//! Numbers, as an increment has them.

use kv_proto::status::ApiError;
use kv_types::Value;

/// The longest is `-9223372036854775808`.
const DIGITS_MAX: usize = 20;

/// What a key's value and `delta` give. As at the server only the shortest decimal form is a number, and an absent key
/// counts as 0.
///
/// # Errors
/// [`ApiError::NotANumber`], [`ApiError::NumberOverflow`]
pub(super) fn add(value: Option<&Value>, delta: i64) -> Result<i64, ApiError> {
    let Some(number) = value.map_or(Some(0), parse) else {
        return Err(ApiError::NotANumber("the value is not a decimal number of 64 bits".to_owned()));
    };
    let sum = number.checked_add(delta);
    sum.ok_or_else(|| ApiError::NumberOverflow("the sum does not fit 64 bits".to_owned()))
}

fn parse(value: &Value) -> Option<i64> {
    let text = std::str::from_utf8(value.as_ref()).ok().filter(|text| text.len() <= DIGITS_MAX)?;
    let number: i64 = text.parse().ok()?;
    // `+7` and `007` can be parsed, too.
    (number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_of_shortest_forms_and_never_wrap() {
        let add = |text: &'static str, delta| add(Some(&Value::new(text).unwrap()), delta);
        assert_eq!(super::add(None, -5), Ok(-5));
        assert_eq!(add("-9223372036854775808", i64::MAX), Ok(-1));
        assert_eq!(add("7", 3), Ok(10));
        for text in ["", "-", "-0", "+1", "01", " 1", "1.0", "9223372036854775808", "\u{661}"] {
            assert!(matches!(add(text, 0), Err(ApiError::NotANumber(_))), "{text}");
        }
        assert!(matches!(add("1", i64::MAX), Err(ApiError::NumberOverflow(_))));
        assert!(matches!(add("-1", i64::MIN), Err(ApiError::NumberOverflow(_))));
    }
}
