//! Times on the wire, the host's clock, and pauses.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};

use crate::base::faults;

/// Format that [`parse`] accepts.
pub const FORMAT: &str = "must be an RFC 3339 time such as 2026-01-31T09:30:00Z";

/// Parses an RFC 3339 time of any offset.
pub fn parse(text: &str) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc())
}

/// Current time by this host's clock, which may be wrong, and which other instances don't share. For logs,
/// metrics and request ids. Times that are stored and compared come from the database.
#[expect(clippy::disallowed_methods, reason = "the one place that adds the offset")]
pub fn now() -> DateTime<Utc> {
    Utc::now() + faults::clock_offset()
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
