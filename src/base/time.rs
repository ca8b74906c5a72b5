//! Times on the wire, the host's clock, and pauses.

use std::time::Duration;

use chrono::{DateTime, Datelike, SecondsFormat, SubsecRound, TimeDelta, Utc};
use serde::{Serialize, Serializer};

use crate::base::faults;

/// Format that [`parse`] accepts.
pub const FORMAT: &str = "must be an RFC 3339 time such as 2026-01-31T09:30:00Z";

/// Parses an RFC 3339 time of any offset. In UTC its year must have four digits, too, since it's shown in UTC.
pub fn parse(text: &str) -> Option<DateTime<Utc>> {
    let time = DateTime::parse_from_rfc3339(text).ok()?.to_utc();
    (0..=9999).contains(&time.year()).then_some(time)
}

/// First moment after the millisecond of `time`.
///
/// Times are stored to the microsecond and shown to the millisecond. So a time that comes back as a parameter
/// stands for its whole millisecond: what is shown with this time, or an earlier one, is before this moment.
pub fn end_of_millisecond(time: DateTime<Utc>) -> DateTime<Utc> {
    time.trunc_subsecs(3) + TimeDelta::milliseconds(1)
}

/// Current time by this host's clock, which may be wrong, and which other instances don't share. For logs,
/// metrics and request ids. Times that are stored and compared come from the database.
#[expect(clippy::disallowed_methods, reason = "the one place that adds the offset")]
pub fn now() -> DateTime<Utc> {
    Utc::now() + faults::clock_offset()
}

/// The pause that a `Retry-After` asks for, from `now` on: seconds or a date (RFC 9110, section 10.2.3).
pub fn retry_after(text: &str, now: DateTime<Utc>) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a number holds are longer than any limit.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::from(u32::MAX))));
    }
    // In each of the three forms that HTTP has had, or as in mail.
    let date = match httpdate::parse_http_date(text) {
        Ok(date) => DateTime::<Utc>::from(date),
        Err(_) => DateTime::parse_from_rfc2822(text).ok()?.to_utc(),
    };
    Some((date - now).to_std().unwrap_or_default())
}

/// Pause after `failures` failures beyond the first: `first`, doubled with each, at most `longest`. It's
/// shortened by up to a quarter at random, so that clients that failed together don't come back together.
pub fn backoff(first: Duration, failures: u32, longest: Duration) -> Duration {
    let pause = first.saturating_mul(2_u32.saturating_pow(failures)).min(longest);
    pause.mul_f64(rand::random_range(0.75..=1.0))
}

/// Lengthens or shortens a pause by up to a quarter at random, so that instances that were started together
/// spread out.
pub fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.75..=1.25))
}

/// A time that serializes as RFC 3339 in UTC with milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub DateTime<Utc>);

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_if_its_year_has_four_digits_in_utc_too() {
        for text in [
            "0000-01-01T00:00:00Z",
            "9999-12-31T23:59:59.999Z",
            "2016-12-31T23:59:60Z",
            "2026-01-31t09:30:00z",
        ] {
            assert!(parse(text).is_some(), "{text}");
        }
        for text in
            ["0000-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01", "2026-01-31", "2026-01-31T09:30:00"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_pause_is_asked_for_in_seconds_or_with_a_date() {
        let now = "2026-01-31T09:30:00Z".parse().unwrap();
        for (text, pause_s) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("99999999999999999999999", Some(u64::from(u32::MAX))),
            ("Sat, 31 Jan 2026 10:30:00 GMT", Some(3600)),
            ("Fri, 30 Jan 2026 10:30:00 GMT", Some(0)),
            ("Saturday, 31-Jan-26 10:30:00 GMT", Some(3600)),
            ("Sat Jan 31 10:30:00 2026", Some(3600)),
            ("", None),
            ("-5", None),
            ("1.5", None),
            ("soon", None),
        ] {
            assert_eq!(retry_after(text, now).map(|pause| pause.as_secs()), pause_s, "{text}");
        }
    }

    #[test]
    fn a_time_as_shown_stands_for_its_whole_millisecond() {
        for (time, end) in [
            ("2026-01-31T09:30:00Z", "2026-01-31T09:30:00.001Z"),
            ("2026-01-31T09:30:00.123Z", "2026-01-31T09:30:00.124Z"),
            ("2026-01-31T09:30:00.123456Z", "2026-01-31T09:30:00.124Z"),
            ("2026-01-31T09:30:00.999999999Z", "2026-01-31T09:30:01Z"),
            ("0000-01-01T00:00:00Z", "0000-01-01T00:00:00.001Z"),
            ("9999-12-31T23:59:59.999Z", "+10000-01-01T00:00:00Z"),
        ] {
            assert_eq!(
                end_of_millisecond(parse(time).unwrap()),
                end.parse::<DateTime<Utc>>().unwrap(),
                "{time}"
            );
        }
    }
}
