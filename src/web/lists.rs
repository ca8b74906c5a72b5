//! Lists: newest first, in pages, stable while rows are added.
//!
//! A cursor is the id of a row next to the page, not a number of rows to skip, so new rows don't shift the
//! pages. Ids hold the time of creation, so the order by id is the order by time, and a filter by time is a
//! range of ids. Every list is a walk along one index.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::base::time;
use crate::error::{Error, FieldError};
use crate::web::fields::{UNKNOWN_MAX, pointer};

/// Default number of rows in a page.
pub(crate) const LIMIT_DEFAULT: i64 = 20;
/// Maximum number of rows in a page.
pub(crate) const LIMIT_MAX: i64 = 100;

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct List<T> {
    /// The rows of the page, newest first.
    pub data: Vec<T>,
    /// Whether there are more rows in the direction of paging.
    #[schema(example = false)]
    pub has_more: bool,
}

/// The requested page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page<K> {
    /// Maximum number of rows, 1 to 100.
    pub limit: i64,
    /// Start of the page.
    pub cursor: Cursor<K>,
}

/// Start of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cursor<K> {
    /// The newest row.
    Newest,
    /// The row after this one, which is older.
    After(K),
    /// The rows right before this one, which are newer.
    Before(K),
}

impl<K> Page<K> {
    /// Makes the page from `rows`, which were read in the direction of paging and are one more than the limit
    /// if there are more.
    pub fn cut<T>(&self, mut rows: Vec<T>) -> List<T> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let has_more = rows.len() > limit;
        rows.truncate(limit);
        if matches!(self.cursor, Cursor::Before(_)) {
            rows.reverse();
        }
        List { data: rows, has_more }
    }
}

impl<T> List<T> {
    /// Converts each row of the page.
    pub fn try_map<U>(self, convert: impl FnMut(T) -> Result<U, Error>) -> Result<List<U>, Error> {
        Ok(List {
            data: self.data.into_iter().map(convert).collect::<Result<_, _>>()?,
            has_more: self.has_more,
        })
    }
}

/// Loads a page of a boxed query, ordered by the column `$id`.
macro_rules! load_page {
    ($conn:expr, $query:expr, $id:expr, $page:expr) => {{
        use diesel::{ExpressionMethods, QueryDsl, RunQueryDsl};
        let page = $page;
        let query = match page.cursor {
            $crate::web::lists::Cursor::Newest => $query.order($id.desc()),
            $crate::web::lists::Cursor::After(id) => $query.filter($id.lt(id)).order($id.desc()),
            $crate::web::lists::Cursor::Before(id) => $query.filter($id.gt(id)).order($id.asc()),
        };
        query.limit(page.limit + 1).load($conn).map(|rows| page.cut(rows))
    }};
}
pub(crate) use load_page;

/// The parameters of a query string, taken one by one. Like [`Fields`](crate::web::fields::Fields), this
/// collects all errors, including repeated and unknown parameters: a misspelled filter must not show
/// everything.
pub struct Parameters {
    values: BTreeMap<String, String>,
    errors: Vec<FieldError>,
}

impl Parameters {
    /// Reads a whole query string with `read`. Returns all errors together, or the value of `read`.
    pub fn read<T>(query: &str, read: impl FnOnce(&mut Self) -> T) -> Result<T, Error> {
        let mut parameters = Self { values: BTreeMap::new(), errors: Vec::new() };
        let mut repeated = BTreeSet::new();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            if parameters.values.insert(name.to_string(), value.into_owned()).is_some() {
                repeated.insert(name.into_owned());
            }
        }
        for name in repeated.iter().take(UNKNOWN_MAX) {
            parameters.error(name, "must not be repeated");
        }
        let value = read(&mut parameters);
        parameters.errors.extend(parameters.values.keys().take(UNKNOWN_MAX).map(|name| unknown(name)));
        if parameters.errors.is_empty() { Ok(value) } else { Err(Error::ValidationFailed(parameters.errors)) }
    }

    fn error(&mut self, name: &str, detail: impl Into<String>) {
        self.errors.push(FieldError { pointer: pointer(&[name]), detail: detail.into() });
    }

    /// Takes a parameter of a type that can be parsed. `detail` says what it must be.
    pub fn optional<T: FromStr>(&mut self, name: &str, detail: &str) -> Option<T> {
        let text = self.values.remove(name)?;
        let value = text.parse().ok();
        if value.is_none() {
            self.error(name, detail);
        }
        value
    }

    /// Takes a text that fits a column: 1 to 255 characters, without U+0000.
    pub fn optional_text(&mut self, name: &str) -> Option<String> {
        let text = self.values.remove(name)?;
        if text.is_empty() || text.chars().count() > 255 || text.contains('\0') {
            self.error(name, "must have 1 to 255 characters");
            return None;
        }
        Some(text)
    }

    /// Takes a time.
    pub fn optional_time(&mut self, name: &str) -> Option<DateTime<Utc>> {
        let text = self.values.remove(name)?;
        let time = time::parse(&text);
        if time.is_none() {
            self.error(name, time::FORMAT);
        }
        time
    }

    /// Refuses the parameter `name` beside any of `others`. Comes before those are taken.
    pub fn exclude(&mut self, name: &str, others: &[&str]) {
        for other in others {
            if self.values.contains_key(name) && self.values.contains_key(*other) {
                self.error(name, format!("can't be combined with {other}"));
            }
        }
    }

    /// Takes `limit`, `starting_after` and `ending_before`. The cursors are ids of type `K`.
    pub fn page<K: FromStr>(&mut self) -> Page<K> {
        let limit = self.optional::<i64>("limit", "must be a number from 1 to 100");
        if limit.is_some_and(|limit| !(1..=LIMIT_MAX).contains(&limit)) {
            self.error("limit", "must be a number from 1 to 100");
        }
        let both = self.values.contains_key("starting_after") && self.values.contains_key("ending_before");
        let detail = "must be an id of this list";
        let after = self.optional("starting_after", detail);
        let before = self.optional("ending_before", detail);
        if both {
            self.error("ending_before", "can't be combined with starting_after");
        }
        let cursor = match (after, before) {
            (Some(id), _) => Cursor::After(id),
            (None, Some(id)) => Cursor::Before(id),
            (None, None) => Cursor::Newest,
        };
        Page { limit: limit.unwrap_or(LIMIT_DEFAULT), cursor }
    }

    /// Takes `created_after` and `created_before`, both exclusive, and returns a range of ids. A time stands
    /// for its whole millisecond, so neither bound includes what is shown with exactly that time.
    pub fn created(&mut self) -> CreatedRange {
        let after = self.optional_time("created_after");
        let before = self.optional_time("created_before");
        CreatedRange {
            from: after.map(|time| lowest_id(time::end_of_millisecond(time).timestamp_millis())),
            to: before.map(|time| {
                // With more digits than are shown, the time is after the beginning of its millisecond.
                let is_shown = time.timestamp_subsec_nanos() % 1_000_000 == 0;
                let end = if is_shown { time } else { time::end_of_millisecond(time) };
                lowest_id(end.timestamp_millis())
            }),
        }
    }
}

/// Returns an error for each parameter of a query string that isn't `known`.
pub fn unknown_parameters(query: &str, known: &[&str]) -> Vec<FieldError> {
    let names = url::form_urlencoded::parse(query.as_bytes()).map(|(name, _)| name);
    let names: BTreeSet<_> = names.filter(|name| !known.contains(&name.as_ref())).collect();
    names.iter().take(UNKNOWN_MAX).map(|name| unknown(name)).collect()
}

fn unknown(name: &str) -> FieldError {
    FieldError { pointer: pointer(&[name]), detail: "is not a known parameter".to_owned() }
}

/// A range of ids by time of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreatedRange {
    /// Start, inclusive.
    pub from: Option<Uuid>,
    /// End, exclusive.
    pub to: Option<Uuid>,
}

/// The id below every id of this millisecond and above every earlier one.
pub(crate) fn lowest_id(unix_ms: i64) -> Uuid {
    let unix_ms = unix_ms.clamp(0, (1 << 48) - 1).unsigned_abs();
    Uuid::from_u128(u128::from(unix_ms) << 80)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::ChargeId;

    fn pointers(query: &str) -> Vec<String> {
        match Parameters::read(query, |p| (p.page::<ChargeId>(), p.created())) {
            Err(Error::ValidationFailed(errors)) => errors.into_iter().map(|error| error.pointer).collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn a_bad_parameter_is_named() {
        let id = ChargeId::at(time::now());
        assert_eq!(pointers(&format!("limit=100&starting_after={id}")), Vec::<String>::new());
        assert_eq!(pointers("created_after=2026-01-31T09:30:00%2B01:00"), Vec::<String>::new());
        for (query, expected) in [
            ("limit=0", "/limit"),
            ("limit=101", "/limit"),
            ("limit=ten", "/limit"),
            ("limit=", "/limit"),
            ("limit=1&limit=2", "/limit"),
            ("starting_after=re_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b", "/starting_after"),
            ("ending_before=x", "/ending_before"),
            ("created_after=yesterday", "/created_after"),
            ("created_before=2026-01-31", "/created_before"),
            ("stauts=succeeded", "/stauts"),
            ("a%2Fb=1", "/a~1b"),
        ] {
            assert_eq!(pointers(query), [expected], "{query}");
        }
        assert_eq!(pointers(&format!("starting_after={id}&ending_before={id}")), ["/ending_before"]);
        assert_eq!(pointers("limit=0&starting_after=x&y=1"), ["/limit", "/starting_after", "/y"]);
    }

    #[test]
    fn a_range_of_times_is_a_range_of_ids() {
        let range = |query: &str| Parameters::read(query, Parameters::created).unwrap();
        let id = |text: &str| lowest_id(DateTime::parse_from_rfc3339(text).unwrap().timestamp_millis());
        let after = range("created_after=2026-01-31T09:30:00.500Z");
        assert_eq!(after, CreatedRange { from: Some(id("2026-01-31T09:30:00.501Z")), to: None });
        let before = range("created_before=2026-01-31T09:30:00.500Z");
        assert_eq!(before, CreatedRange { from: None, to: Some(id("2026-01-31T09:30:00.500Z")) });
        let within = range("created_before=2026-01-31T09:30:00.500001Z");
        assert_eq!(within.to, Some(id("2026-01-31T09:30:00.501Z")));
        assert_eq!(range("created_after=0001-01-01T00:00:00Z").from, Some(Uuid::nil()));
    }
}

#[cfg(test)]
mod properties {
    use proptest::prelude::*;

    use super::*;
    use crate::base::ids::ChargeId;

    proptest! {
        #[test]
        fn any_query_is_a_page_or_refused(
            query in "((limit|starting_after|ending_before|created_after|created_before|x)=([0-9]{0,4}|ch_[0-9a-f]{32}|\\PC{0,6}|%[0-9a-f]{2})&?){0,3}|\\PC{0,40}",
        ) {
            let read = Parameters::read(&query, |parameters| (parameters.page::<ChargeId>(), parameters.created()));
            if let Ok((page, _)) = read {
                prop_assert!((1..=LIMIT_MAX).contains(&page.limit));
            }
        }

        #[test]
        fn an_id_has_one_spelling(text in "ch_[0-9a-fA-F]{31,33}|(ch_)?[0-9a-f-]{30,36}|\\PC{0,40}", number in any::<u128>()) {
            let id = ChargeId(Uuid::from_u128(number));
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            if let Ok(id) = text.parse::<ChargeId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }

        #[test]
        fn a_time_is_read_as_it_is_shown_and_a_pause_is_never_negative(
            unix_ms in 0i64..253_402_300_799_999, text in "\\PC{0,30}|[0-9TZ:.+ -]{0,32}", now in 0i64..4_102_444_800,
        ) {
            let shown = time::Timestamp(DateTime::from_timestamp_millis(unix_ms).unwrap());
            let json = serde_json::to_value(shown).unwrap();
            prop_assert_eq!(json.as_str().and_then(time::parse), Some(shown.0));
            let _ = (time::parse(&text), time::retry_after(&text, DateTime::from_timestamp(now, 0).unwrap()));
        }
    }
}
