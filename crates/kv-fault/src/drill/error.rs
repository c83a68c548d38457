//! What is wrong with a file, and where.

/// What is wrong with the text of a drill.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {sentence}")]
pub struct DrillError {
    /// The line, from 1.
    pub line: usize,
    /// The column in letters, from 1.
    pub column: usize,
    /// What is wrong.
    pub sentence: String,
}

/// The same, with a place in bytes.
pub(super) struct Flaw {
    pub(super) at: usize,
    pub(super) sentence: String,
}

impl Flaw {
    pub(super) fn new(at: usize, sentence: impl Into<String>) -> Self {
        Self { at, sentence: sentence.into() }
    }

    pub(super) fn in_text(self, text: &str) -> DrillError {
        let (line, column) = place(text, self.at);
        DrillError { line, column, sentence: self.sentence }
    }
}

/// Line and column of a byte.
pub(super) fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.char_indices().take_while(|(start, _)| *start < at).map(|(_, letter)| letter);
    before.fold(
        (1, 1),
        |(line, column), letter| {
            if letter == '\n' { (line + 1, 1) } else { (line, column + 1) }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_letters_from_one() {
        let text = "a\n\u{e9}b\n";
        assert_eq!(place(text, 0), (1, 1));
        assert_eq!(place(text, 2), (2, 1));
        assert_eq!(place(text, 4), (2, 2));
        assert_eq!(place(text, 999), (3, 1));
    }
}
