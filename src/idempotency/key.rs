//! The `Idempotency-Key` header.

use std::fmt;

use sfv::{BareItem, Item, Parser};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::base::ids::MerchantId;
use crate::error::failure::Failure;

/// Name of the header.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Maximum number of characters in a key.
pub const KEY_LENGTH_MAX: usize = 255;

/// Name of an intended operation of a merchant: 1 to 255 visible ASCII characters.
///
/// A client may send it bare (`8e03978e-…`), as is common, or as a structured-field string (`"8e03978e-…"`),
/// as in the IETF draft (RFC 9651). Both are the same key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// Reads the key from the values of a request's `Idempotency-Key` headers. Errors, in the order checked:
    /// `idempotency_key_missing`, then `idempotency_key_invalid` for a repeated header, bytes outside
    /// ASCII, malformed quoting, parameters, a wrong length, other characters.
    pub fn from_headers<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> Result<Self, Failure> {
        let value = values.next().ok_or(Failure::IdempotencyKeyMissing)?;
        if values.next().is_some() {
            return Err(Failure::IdempotencyKeyInvalid("must be sent once, not repeated"));
        }
        let is_text = value.iter().all(|b| matches!(b, b' '..=b'~' | b'\t'));
        let text = std::str::from_utf8(value).ok().filter(|_| is_text);
        let text = text.ok_or(Failure::IdempotencyKeyInvalid("must consist of ASCII characters"))?;
        Self::parse(text.trim())
    }

    fn parse(text: &str) -> Result<Self, Failure> {
        let invalid = |why| Err(Failure::IdempotencyKeyInvalid(why));
        let key = if text.starts_with('"') {
            match Parser::new(text).parse::<Item>() {
                Ok(Item { bare_item: BareItem::String(_), params }) if !params.is_empty() => {
                    return invalid("must not have parameters");
                }
                Ok(Item { bare_item: BareItem::String(key), .. }) => String::from(key),
                _ => return invalid("has malformed quotes"),
            }
        } else if looks_parametrised(text) {
            return invalid("must not have parameters");
        } else {
            text.to_owned()
        };
        if key.is_empty() || key.len() > KEY_LENGTH_MAX {
            return invalid("must have 1 to 255 characters");
        }
        match Self::bare(&key) {
            Some(key) => Ok(key),
            None => invalid("must consist of visible ASCII characters"),
        }
    }

    /// Reads a key from a place where it stands unquoted: a path, a command line, the database.
    pub fn bare(text: &str) -> Option<Self> {
        let is_key = (1..=KEY_LENGTH_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        is_key.then(|| Self(text.to_owned()))
    }

    /// Makes a key that no client has, for a request that executes as if it had none.
    pub fn unkeyed() -> Self {
        Self(format!("unkeyed-{}", Uuid::new_v4()))
    }

    /// The key without quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Digest that stands for a merchant's key where the key itself doesn't belong, such as in logs: clients
    /// put order numbers and addresses into keys.
    pub fn digest_for(&self, merchant: MerchantId) -> String {
        let hash = Sha256::new().chain_update(merchant.0.as_bytes()).chain_update(&self.0).finalize();
        hex::encode(&hash[..16])
    }
}

/// Whether the end of a bare key looks like a parameter to a structured-field parser (`;name` or `;name=…`).
/// A semicolon that starts no parameter is an ordinary character of a bare key.
fn looks_parametrised(text: &str) -> bool {
    text.match_indices(';')
        .any(|(at, _)| text[at + 1..].trim_start().starts_with(|c: char| c.is_ascii_lowercase() || c == '*'))
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<String> {
        IdempotencyKey::parse(text).ok().map(|key| key.0)
    }

    #[test]
    fn bare_and_quoted_spellings_are_the_same_key() {
        let uuid = "8e03978e-40d5-43dd-bc93-6894a57f9324";
        assert_eq!(parse(uuid).as_deref(), Some(uuid));
        assert_eq!(parse(&format!("\"{uuid}\"")).as_deref(), Some(uuid));
        assert_eq!(parse(r#""a\"b\\c""#).as_deref(), Some(r#"a"b\c"#));
    }

    #[test]
    fn every_visible_ascii_character_is_allowed() {
        let all: String = ('!'..='~').filter(|&c| c != '"').collect();
        assert_eq!(parse(&all).as_deref(), Some(all.as_str()));
    }

    #[test]
    fn lengths_are_counted_after_unquoting() {
        let longest = "k".repeat(255);
        assert!(parse(&longest).is_some());
        assert!(parse(&format!("\"{longest}\"")).is_some());
        assert!(parse(&format!("{longest}k")).is_none());
        assert!(parse(&format!("\"{longest}k\"")).is_none());
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let cases = [
            "",
            "\"\"",
            "\"",
            "\"abc",
            "abc def",
            "\"abc def\"",
            "\"abc\";a=1",
            "\"abc\"; a",
            "abc;a=1",
            "abc; a=1",
            "\"abc\" x",
            "\"a\\b\"",
            "a\tb",
            "caf\u{e9}",
        ];
        for text in cases {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}

#[cfg(test)]
mod properties {
    use proptest::prelude::*;

    use super::*;

    fn read(value: &[u8]) -> Result<IdempotencyKey, Failure> {
        IdempotencyKey::from_headers(std::iter::once(value))
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_key_or_refused(value in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(key) = read(&value) {
                prop_assert_eq!(IdempotencyKey::bare(key.as_str()), Some(key));
            }
        }

        #[test]
        fn what_is_quoted_is_what_a_structured_field_says(value in r#"["\\;=*a-c 0\t]{0,16}"#) {
            let field = Parser::new(value.trim()).parse::<Item>().ok();
            let string = field.and_then(|item| match item {
                Item { bare_item: BareItem::String(text), params } if params.is_empty() => Some(String::from(text)),
                _ => None,
            });
            if value.trim().starts_with('"') {
                let string = string.filter(|text| IdempotencyKey::bare(text).is_some());
                prop_assert_eq!(read(value.as_bytes()).ok().map(|key| key.0), string);
            }
        }

        #[test]
        fn a_key_is_the_same_bare_and_quoted(text in "[!-~]{1,255}") {
            let quoted = format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
            let key = read(quoted.as_bytes()).unwrap();
            prop_assert_eq!(key.as_str(), &text);
            match read(text.as_bytes()) {
                Ok(bare) => prop_assert!(bare == key || text.starts_with('"')),
                Err(_) => prop_assert!(text.starts_with('"') || text.contains(';')),
            }
        }
    }
}
