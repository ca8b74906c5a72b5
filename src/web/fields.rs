//! Reads JSON bodies: syntax first, then every field.
//!
//! `serde` stops at the first invalid field. A client that corrects one error only to meet the next is badly
//! served. So bodies are read field by field through [`Fields`], which collects all errors, including unknown
//! fields, with JSON pointers (RFC 6901).

use std::collections::{BTreeMap, HashSet};
use std::str::FromStr;

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde_json::{Map, Value};

use crate::base::money::{Currency, Money, PlainAmount};
use crate::base::{json, time};
use crate::error::{Error, Failure, FieldError};

/// Parses a JSON text (see [`json::parse`]).
pub fn parse_json(bytes: &[u8]) -> Result<Value, Error> {
    json::parse(bytes).map_err(|detail| Failure::JsonMalformed(detail).into())
}

const NO_AMOUNT: &str = "must be a decimal string such as \"12.50\", not a JSON number or other value";

/// Default maximum number of characters in a text field.
pub const TEXT_MAX: usize = 500;
/// Pattern of a text: Postgres has no U+0000, neither in text nor in jsonb.
pub(crate) const TEXT_PATTERN: &str = r"^[^\x00]*$";
/// Maximum number of entries in `metadata`.
pub const METADATA_ENTRIES_MAX: usize = 50;
/// Maximum number of characters in a name in `metadata`.
pub const METADATA_NAME_MAX: usize = 40;

/// Maximum number of unknown fields in an answer: it shouldn't be larger than the request.
pub(crate) const UNKNOWN_MAX: usize = 20;

/// Free-form texts that a merchant attaches to an object.
pub type Metadata = BTreeMap<String, String>;

/// A field of a merge patch (RFC 7396): absent, `null`, or a new value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Patch<T> {
    /// The field isn't in the body and stays as it is.
    #[default]
    Keep,
    /// The field is `null` and is removed.
    Remove,
    /// The field has a new value.
    Set(T),
}

/// The members of a JSON object, taken one by one. Every method records an error and returns `None` (or a
/// default) if its field is invalid, so that reading can go on.
pub struct Fields<'a> {
    members: &'a Map<String, Value>,
    known: HashSet<&'static str>,
    is_open: bool,
    errors: Vec<FieldError>,
}

impl<'a> Fields<'a> {
    /// Reads a whole body with `read`. Returns all errors together, or the value of `read`.
    pub fn read<T>(body: &'a Value, read: impl FnOnce(&mut Self) -> Option<T>) -> Result<T, Error> {
        Self::read_object(Self::members(body)?, read).map_err(Error::ValidationFailed)
    }

    /// The members of a body, which must be an object.
    pub fn members(body: &'a Value) -> Result<&'a Map<String, Value>, Error> {
        body.as_object().ok_or_else(|| {
            Error::ValidationFailed(vec![FieldError {
                pointer: String::new(),
                detail: "must be a JSON object".to_owned(),
            }])
        })
    }

    /// Reads an object with `read`. All errors together, or the value that `read` made.
    pub fn read_object<T>(
        members: &'a Map<String, Value>,
        read: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Result<T, Vec<FieldError>> {
        match Fields::read_members(members, read) {
            (Some(value), errors) if errors.is_empty() => Ok(value),
            (_, errors) => Err(errors),
        }
    }

    fn read_members<T>(
        members: &'a Map<String, Value>,
        read: impl FnOnce(&mut Self) -> Option<T>,
    ) -> (Option<T>, Vec<FieldError>) {
        let mut fields = Fields { members, known: HashSet::new(), is_open: false, errors: Vec::new() };
        let value = read(&mut fields);
        let is_unknown = |name: &&String| !fields.is_open && !fields.known.contains(name.as_str());
        let unknown: Vec<_> = members.keys().filter(is_unknown).take(UNKNOWN_MAX).cloned().collect();
        for name in unknown {
            fields.error(&name, "is not a known field");
        }
        (value, fields.errors)
    }

    /// Accepts unknown fields, for a format that others define.
    pub fn allow_unknown(&mut self) {
        self.is_open = true;
    }

    /// Takes a required object, and reads its fields with `read`.
    pub fn object<T>(&mut self, name: &'static str, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let Value::Object(members) = self.required(name)? else {
            self.error(name, "must be an object");
            return None;
        };
        let (value, errors) = Fields::read_members(members, read);
        self.errors.extend(errors.into_iter().map(|error| FieldError {
            pointer: format!("{}{}", pointer(&[name]), error.pointer),
            detail: error.detail,
        }));
        value
    }

    /// Takes a required list of `min` to `max` objects, and reads the fields of each with `read`.
    pub fn objects<T>(
        &mut self,
        name: &'static str,
        min: usize,
        max: usize,
        read: impl Fn(&mut Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        let items = match self.required(name)? {
            Value::Array(items) if (min..=max).contains(&items.len()) => items,
            _ => {
                self.error(name, format!("must be a list of {min} to {max} objects"));
                return None;
            }
        };
        let mut values = Vec::with_capacity(items.len());
        for (number, item) in items.iter().enumerate() {
            let at = pointer(&[name, &number.to_string()]);
            let Value::Object(members) = item else {
                self.errors.push(FieldError { pointer: at, detail: "must be an object".to_owned() });
                continue;
            };
            let (value, errors) = Fields::read_members(members, &read);
            values.extend(value);
            let within =
                |error: FieldError| FieldError { pointer: format!("{at}{}", error.pointer), ..error };
            self.errors.extend(errors.into_iter().map(within));
            if self.errors.len() > UNKNOWN_MAX {
                break;
            }
        }
        Some(values)
    }

    /// Takes a required string, parsed by `read`, whose error says what it must be.
    pub fn required_read<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.required(name)?;
        self.optional_read(name, read)
    }

    /// Takes an object that may be absent or have another type, in which case it counts as empty.
    pub fn object_if_any<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Option<T> {
        self.take(name)?.as_object()?;
        self.object(name, read)
    }

    /// Records that `name` is invalid.
    pub fn error(&mut self, name: &str, detail: impl Into<String>) {
        self.errors.push(FieldError { pointer: pointer(&[name]), detail: detail.into() });
    }

    fn take(&mut self, name: &'static str) -> Option<&'a Value> {
        self.known.insert(name);
        self.members.get(name)
    }

    /// Takes a required field. Records an error if it's missing.
    pub fn required(&mut self, name: &'static str) -> Option<&'a Value> {
        let value = self.take(name);
        if value.is_none() {
            self.error(name, "is required");
        }
        value
    }

    /// Takes `amount` and `currency`, both required. Checks the amount as far as possible even if the
    /// currency is invalid.
    pub fn money(&mut self) -> Option<Money> {
        let currency =
            self.required("currency").and_then(|value| match value.as_str().map(str::parse::<Currency>) {
                Some(Ok(currency)) => Some(currency),
                Some(Err(error)) => {
                    self.error("currency", error.to_string());
                    None
                }
                None => {
                    self.error("currency", "must be a string");
                    None
                }
            });
        let amount = self.required("amount")?;
        let Some(text) = amount.as_str() else {
            self.error("amount", NO_AMOUNT);
            return None;
        };
        // Without a valid currency, only errors in any currency count.
        match Money::parse(text, currency.unwrap_or(Currency::finest())) {
            Ok(money) => currency.map(|_| money),
            Err(error) => {
                self.error("amount", error.to_string());
                None
            }
        }
    }

    /// Takes an optional `amount` in another object's currency.
    pub fn optional_amount(&mut self) -> Option<PlainAmount> {
        let text = match self.take("amount") {
            None | Some(Value::Null) => return None,
            Some(value) => value.as_str(),
        };
        match text.map(PlainAmount::parse) {
            Some(Ok(amount)) => return Some(amount),
            Some(Err(error)) => self.error("amount", error.to_string()),
            None => self.error("amount", NO_AMOUNT),
        }
        None
    }

    /// Takes a required text of 1 to `max` characters.
    pub fn text(&mut self, name: &'static str, max: usize) -> Option<String> {
        let value = self.required(name)?;
        self.check_text(&[name], value, max)
    }

    /// Takes an optional text of 1 to `max` characters.
    pub fn optional_text(&mut self, name: &'static str, max: usize) -> Option<String> {
        match self.take(name) {
            None | Some(Value::Null) => None,
            Some(value) => self.check_text(&[name], value, max),
        }
    }

    /// Takes a member as it is.
    pub fn raw(&mut self, name: &'static str) -> Option<&'a Value> {
        self.take(name)
    }

    /// Takes a text for people from a sender that isn't bound by our rules: cuts it after `max` characters,
    /// and drops characters that Postgres can't store. `None` if it's no text, or nothing is left of it.
    pub fn lenient_text(&mut self, name: &'static str, max: usize) -> Option<String> {
        let text = self.take(name)?.as_str()?;
        let kept: String = text.chars().filter(|char| *char != '\0').take(max).collect();
        (!kept.is_empty()).then_some(kept)
    }

    /// Takes a required id. A text that isn't an id of this kind finds nothing; that answer is given, and
    /// stored, later, so it is `Some(None)` here.
    pub fn id<T: std::str::FromStr>(&mut self, name: &'static str) -> Option<Option<T>> {
        self.text(name, TEXT_MAX).map(|text| text.parse().ok())
    }

    /// Takes a required id, which must be valid. `detail` says what it must be.
    pub fn well_formed_id<T: FromStr>(&mut self, name: &'static str, detail: &str) -> Option<T> {
        let text = self.text(name, TEXT_MAX)?;
        let id = text.parse().ok();
        if id.is_none() {
            self.error(name, detail);
        }
        id
    }

    /// Takes a required decimal string from 0 to `max` with at most `scale` decimals.
    pub fn decimal(&mut self, name: &'static str, scale: u32, max: Decimal) -> Option<Decimal> {
        let text = self.text(name, TEXT_MAX)?;
        let is_plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        match Decimal::from_str_exact(&text) {
            Ok(value) if is_plain && value <= max && value.scale() <= scale => Some(value),
            _ => {
                self.error(
                    name,
                    format!("must be a decimal string from 0 to {max} with at most {scale} decimals"),
                );
                None
            }
        }
    }

    /// Takes an optional time.
    pub fn optional_time(&mut self, name: &'static str) -> Option<DateTime<Utc>> {
        let text = self.optional_text(name, TEXT_MAX)?;
        let time = time::parse(&text);
        if time.is_none() {
            self.error(name, time::FORMAT);
        }
        time
    }

    /// Takes an optional word of a type that can be parsed.
    pub fn optional_choice<T: FromStr<Err = String>>(&mut self, name: &'static str) -> Option<T> {
        self.optional_read(name, str::parse)
    }

    /// Takes an optional string, parsed by `read`, whose error says what it must be.
    pub fn optional_read<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.take(name)?;
        let parsed = value.as_str().ok_or_else(|| "must be a string".to_owned()).and_then(read);
        parsed.map_err(|detail| self.error(name, detail)).ok()
    }

    /// Takes an optional list of words: at least one, each parsed by `read`, without duplicates.
    pub fn optional_choices<T: PartialEq>(
        &mut self,
        name: &'static str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let Some(items) = self.take(name)?.as_array().filter(|items| !items.is_empty()) else {
            self.error(name, "must be a list of at least one string");
            return None;
        };
        let mut choices = Vec::with_capacity(items.len());
        for (number, item) in items.iter().enumerate() {
            let choice = item.as_str().ok_or_else(|| "must be a string".to_owned()).and_then(&read);
            let detail = match choice {
                Ok(choice) if !choices.contains(&choice) => {
                    choices.push(choice);
                    continue;
                }
                Ok(_) => "must not be repeated".to_owned(),
                Err(detail) => detail,
            };
            self.errors.push(FieldError { pointer: pointer(&[name, &number.to_string()]), detail });
            if self.errors.len() > UNKNOWN_MAX {
                break;
            }
        }
        Some(choices)
    }

    /// Takes an optional integer from `min` to `max`.
    pub fn optional_integer<T: TryFrom<u64>>(&mut self, name: &'static str, min: u64, max: u64) -> Option<T> {
        let value = self.take(name)?;
        // `3.0` and `-0` are integers, in JSON Schema and in the canonical form of a body.
        let whole = || value.as_f64().and_then(|number| number.to_string().replace("-0", "0").parse().ok());
        let number = value.as_u64().or_else(whole).filter(|number| (min..=max).contains(number));
        let number = number.and_then(|number| T::try_from(number).ok());
        if number.is_none() {
            self.error(name, format!("must be an integer from {min} to {max}"));
        }
        number
    }

    /// Takes an optional boolean.
    pub fn boolean_or(&mut self, name: &'static str, default: bool) -> bool {
        match self.take(name) {
            None => default,
            Some(Value::Bool(value)) => *value,
            Some(_) => {
                self.error(name, "must be true or false");
                default
            }
        }
    }

    /// Takes `metadata`: an optional object of texts.
    pub fn metadata(&mut self) -> Metadata {
        match self.patch_metadata() {
            Patch::Keep | Patch::Remove => Metadata::new(),
            // On creation there is nothing to remove, so a null is most likely a mistake.
            Patch::Set(entries) => {
                let mut metadata = Metadata::new();
                for (name, value) in entries {
                    match value {
                        Some(value) => {
                            metadata.insert(name, value);
                        }
                        None => self.errors.push(FieldError {
                            pointer: pointer(&["metadata", &name]),
                            detail: "must be a string".to_owned(),
                        }),
                    }
                }
                metadata
            }
        }
    }

    /// Takes a text of a merge patch.
    pub fn patch_text(&mut self, name: &'static str, max: usize) -> Patch<String> {
        match self.take(name) {
            None => Patch::Keep,
            Some(Value::Null) => Patch::Remove,
            Some(value) => self.check_text(&[name], value, max).map_or(Patch::Keep, Patch::Set),
        }
    }

    /// Takes `metadata` of a merge patch. Entries that are `null` (here `None`) are to be removed.
    pub fn patch_metadata(&mut self) -> Patch<BTreeMap<String, Option<String>>> {
        let entries = match self.take("metadata") {
            None => return Patch::Keep,
            Some(Value::Null) => return Patch::Remove,
            Some(Value::Object(entries)) => entries,
            Some(_) => {
                self.error("metadata", "must be an object of strings");
                return Patch::Keep;
            }
        };
        if entries.len() > METADATA_ENTRIES_MAX {
            self.error("metadata", format!("must have at most {METADATA_ENTRIES_MAX} entries"));
        }
        let mut patch = BTreeMap::new();
        for (name, value) in entries {
            if name.is_empty() || name.chars().count() > METADATA_NAME_MAX || name.contains('\0') {
                self.errors.push(FieldError {
                    pointer: pointer(&["metadata", name]),
                    detail: format!("must have a name of 1 to {METADATA_NAME_MAX} characters without U+0000"),
                });
            }
            let value = match value {
                Value::Null => Some(None),
                // Unlike other texts, a value in metadata may be empty.
                Value::String(text) if text.is_empty() => Some(Some(String::new())),
                value => self.check_text(&["metadata", name], value, TEXT_MAX).map(Some),
            };
            if let Some(value) = value {
                patch.insert(name.clone(), value);
            }
        }
        Patch::Set(patch)
    }

    fn check_text(&mut self, path: &[&str], value: &Value, max: usize) -> Option<String> {
        let detail = match value.as_str() {
            None => "must be a string".to_owned(),
            Some(text) if text.is_empty() || text.chars().count() > max => {
                format!("must have 1 to {max} characters")
            }
            // Postgres has no such character, neither in text nor in jsonb.
            Some(text) if text.contains('\0') => "must not contain the character U+0000".to_owned(),
            Some(text) => return Some(text.to_owned()),
        };
        self.errors.push(FieldError { pointer: pointer(path), detail });
        None
    }
}

/// The JSON pointer (RFC 6901) to a member.
pub(crate) fn pointer(path: &[&str]) -> String {
    path.iter().map(|name| format!("/{}", name.replace('~', "~0").replace('/', "~1"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn repeated_names_are_refused_at_any_depth() {
        for text in [r#"{"a":1,"a":1}"#, r#"{"x":[{"a":1,"b":2,"a":3}]}"#, r#"{"a":1,"\u0061":2}"#] {
            let Err(Error::Failure(Failure::JsonMalformed(detail))) = parse_json(text.as_bytes()) else {
                panic!("{text} was taken")
            };
            assert!(detail.starts_with("a member name repeats"), "{detail}");
        }
    }

    #[test]
    fn a_json_text_is_read_as_it_is() {
        let text = br#"{"a": [1, -2, 1.5, true, null, "x"], "b": {"c": "\u00e9"}}"#;
        let expected = json!({"a": [1, -2, 1.5, true, null, "x"], "b": {"c": "é"}});
        assert_eq!(parse_json(text).unwrap(), expected);
    }

    #[test]
    fn pointers_are_escaped() {
        assert_eq!(pointer(&["metadata", "a/b~c"]), "/metadata/a~1b~0c");
    }
}
