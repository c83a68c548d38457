//! Words and numbers as the page shows them.

/// Text from the record, made harmless between tags and in quoted attributes. Control characters, and those that turn the direction of
/// writing, become a mark that shows that something was there.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => out.push('\u{fffd}'),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// What stands where there is nothing to show, with the reason.
pub(super) fn absent(why: &str) -> String {
    format!("<span class=\"absent\">&ndash; {}</span>", escape(why))
}

/// Text from the record, or a dash with the reason.
pub(super) fn or_absent(text: &str, why: &str) -> String {
    if text.trim().is_empty() { absent(why) } else { escape(text) }
}

/// A number in groups of three digits.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A number in at most five characters, for narrow cells; exact below ten thousand.
pub(super) fn short_count(number: u64) -> String {
    if number < 10_000 {
        return count(number);
    }
    let (unit, sign) = [(1_000_000_000_000, "T"), (1_000_000_000, "G"), (1_000_000, "M")]
        .into_iter()
        .find(|(unit, _)| number >= *unit)
        .unwrap_or((1_000, "k"));
    format!("{}{sign}", three_digits(number as f64 / unit as f64))
}

/// A length of time in the unit that suits it, in three digits.
pub(super) fn duration(ms: f64) -> String {
    if !ms.is_finite() {
        return "not a number".to_owned();
    }
    let size = ms.abs();
    if size < 0.9995 {
        format!("{:.0} \u{b5}s", ms * 1000.0)
    } else if size < 999.5 {
        format!("{} ms", three_digits(ms))
    } else {
        format!("{} s", three_digits(ms / 1000.0))
    }
}

/// A length of time that may be absent.
pub(super) fn duration_or(ms: Option<f64>, why: &str) -> String {
    ms.filter(|ms| ms.is_finite()).map_or_else(|| absent(why), duration)
}

/// A moment: seconds since the workload began, to the hundredth.
pub(super) fn moment(ms: f64) -> String {
    if ms.is_finite() { format!("{:.2} s", ms / 1000.0) } else { "not a number".to_owned() }
}

/// A number with as many decimals as make three digits.
fn three_digits(number: f64) -> String {
    let size = number.abs();
    let decimals = if size < 9.995 {
        2
    } else if size < 99.95 {
        1
    } else {
        0
    };
    format!("{number:.decimals$}")
}

/// A node by its short name.
pub(super) fn node(id: u64) -> String {
    format!("n{id}")
}

/// A shard by its name.
pub(super) fn shard(id: u32) -> String {
    if id == 0 { "meta".to_owned() } else { format!("shard {id}") }
}

/// The first `chars_max` characters, the last of them dots if some were left out.
pub(super) fn clip(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    let mut out: String = text.chars().take(chars_max.saturating_sub(2)).collect();
    out.push_str("..");
    out
}

/// Why a verdict is what it is, as a list.
pub(super) fn reasons(reasons: &[String]) -> String {
    let items: String = reasons.iter().map(|reason| format!("<li>{}</li>", escape(reason))).collect();
    if items.is_empty() { items } else { format!("<ul class=\"reasons\">{items}</ul>\n") }
}

/// A section of the page.
pub(super) fn section(id: &str, title: &str, body: &str) -> String {
    format!("<section id=\"{id}\">\n<h2>{title}</h2>\n{body}</section>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_record_becomes_markup() {
        assert_eq!(
            escape("<script>\"a\" & 'b'</script>"),
            "&lt;script&gt;&quot;a&quot; &amp; &#39;b&#39;&lt;/script&gt;"
        );
        assert_eq!(escape("a\u{0}b\u{1b}[1m\u{202e}c\n\td"), "a\u{fffd}b\u{fffd}[1m\u{fffd}c\n\td");
    }

    #[test]
    fn numbers_are_grouped_and_shortened() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([9999, 10_000, 123_456, 1_500_000].map(short_count), ["9,999", "10.0k", "123k", "1.50M"]);
        assert_eq!(short_count(u64::MAX), "18446744T");
    }

    #[test]
    fn times_have_the_unit_that_suits_them() {
        let shown = [0.0, 0.042, 0.9999, 1.0, 9.999, 12.34, 999.7, 1500.0, 61_000.0].map(duration);
        let expected = ["0", "42", "1.00", "1.00", "10.0", "12.3", "1.00", "1.50", "61.0"];
        let units = ["\u{b5}s", "\u{b5}s", "ms", "ms", "ms", "ms", "s", "s", "s"];
        for ((shown, number), unit) in shown.iter().zip(expected).zip(units) {
            assert_eq!(*shown, format!("{number} {unit}"));
        }
        assert_eq!(duration(f64::NAN), "not a number");
        assert_eq!(moment(1234.5), "1.23 s");
    }

    #[test]
    fn what_is_absent_says_why() {
        assert_eq!(
            duration_or(None, "no <new> leader"),
            "<span class=\"absent\">&ndash; no &lt;new&gt; leader</span>"
        );
        assert_eq!(or_absent("  ", "none"), absent("none"));
        assert_eq!(clip("abcdef", 6), "abcdef");
        assert_eq!(clip("abcdefg", 6), "abcd..");
    }
}
