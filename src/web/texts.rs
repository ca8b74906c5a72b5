//! Rules for texts that requests bring in.
//!
//! They are checked when a request begins, and not when it's read: what earlier releases have taken is read again,
//! for replays and to finish it.

use icu_normalizer::ComposingNormalizerBorrowed;

use crate::error::{Error, FieldError};

/// Pattern of what [`Texts::name`] takes, whose normalization form no pattern can express.
pub(crate) const NAME_PATTERN: &str = r"^[^\x00-\x1f\x7f-\x9f]*$";
/// Pattern of what [`Texts::lines`] takes.
pub(crate) const LINES_PATTERN: &str = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]*$";

/// The errors in the texts of a request.
#[derive(Debug, Default)]
pub struct Texts {
    errors: Vec<FieldError>,
}

impl Texts {
    /// Checks a name: a text that is compared, and that other systems take. Refuses what they would refuse or
    /// change, and second spellings of the same text.
    pub fn name(mut self, pointer: &str, text: Option<&str>) -> Self {
        let Some(text) = text else { return self };
        if text.chars().any(char::is_control) {
            self.error(pointer, "must not contain control characters");
        } else if !ComposingNormalizerBorrowed::new_nfc().is_normalized(text) {
            self.error(pointer, "must be in Unicode normalization form C");
        }
        self
    }

    /// Checks a text for people, of one or more lines.
    pub fn lines(mut self, pointer: &str, text: Option<&str>) -> Self {
        let is_odd = |char: char| char.is_control() && !matches!(char, '\n' | '\r' | '\t');
        if text.is_some_and(|text| text.chars().any(is_odd)) {
            self.error(pointer, "must not contain control characters other than tabs and line breaks");
        }
        self
    }

    fn error(&mut self, pointer: &str, detail: &str) {
        self.errors.push(FieldError { pointer: pointer.to_owned(), detail: detail.to_owned() });
    }

    /// True if all texts keep the rules.
    pub fn are_fine(&self) -> bool {
        self.errors.is_empty()
    }

    /// Ends the check.
    ///
    /// Errors: `validation_failed`.
    pub fn check(self) -> Result<(), Error> {
        if self.errors.is_empty() { Ok(()) } else { Err(Error::ValidationFailed(self.errors)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_spelling_and_no_control_characters() {
        for text in ["order-1", "Größe 7", "日本", "a b", "\u{1F600}"] {
            assert!(Texts::default().name("/reference", Some(text)).are_fine(), "{text:?}");
        }
        for text in ["a\nb", "\u{7f}", "\u{85}", "o\u{308}", "\u{212b}"] {
            assert!(!Texts::default().name("/reference", Some(text)).are_fine(), "{text:?}");
        }
        assert!(Texts::default().name("/reference", None).lines("/description", Some("a\n\tb")).are_fine());
        assert!(!Texts::default().lines("/description", Some("a\u{7}b")).are_fine());
    }
}
