//! The rows, and pieces of SQL that several statements share.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Binary, Jsonb, Nullable, SmallInt, Text, Timestamptz};

use crate::base::trace::TraceContext;
use crate::error::failure::Failure;
use crate::idempotency::envelope::Envelope;
use crate::idempotency::fingerprint::Fingerprint;
use crate::idempotency::reply::Reply;

/// SQL: the channel on which instances announce answers that requests wait for.
macro_rules! answers_channel {
    () => {
        "oncepay_answers"
    };
}

/// The name of that channel.
pub const ANSWERS_CHANNEL: &str = answers_channel!();

/// SQL: notifies the instances, when the transaction commits, that a key is completed, if a request waits for
/// that. The value is a boolean without meaning.
///
/// Doesn't notify for every key: a commit with a notification waits for all others that have one.
macro_rules! announcement {
    ($waited:literal, $digest:literal) => {
        concat!(
            "CASE WHEN ",
            $waited,
            " THEN pg_notify('",
            $crate::idempotency::store::rows::answers_channel!(),
            "', ",
            $digest,
            ") END IS NULL"
        )
    };
}

/// SQL: the state of a key at a time, as one of the words of [`KeyState`]. All statements share it, so that they agree.
macro_rules! key_state {
    ($now:literal) => {
        concat!(
            "CASE WHEN state = 'in_progress' THEN \
                 CASE WHEN parked_at IS NOT NULL THEN 'parked' \
                      WHEN lease_expires_at <= ",
            $now,
            " THEN 'abandoned' ELSE 'running' END \
             WHEN expires_at > ",
            $now,
            " THEN 'completed' \
             WHEN expires_at + make_interval(secs => tombstone_seconds) > ",
            $now,
            " THEN 'expired' ELSE 'forgotten' END"
        )
    };
}

/// SQL: tries to take the advisory lock of `key.merchant_id` and `key.key`, until the transaction ends.
macro_rules! try_lock_key {
    () => {
        "pg_try_advisory_xact_lock(hashtextextended(key.key, hashtextextended(key.merchant_id::text, 0)))"
    };
}

/// SQL: the columns that completing a key sets, with `clock.now`.
macro_rules! completion {
    ($status:literal, $headers:literal, $body:literal) => {
        concat!(
            "state = 'completed', recovery_point = 'finished', \
             claim_token = NULL, lease_expires_at = NULL, recover_at = NULL, parked_at = NULL, \
             response_status = ",
            $status,
            ", response_headers = ",
            $headers,
            ", response_body = ",
            $body,
            ", completed_at = clock.now, expires_at = clock.now + (expires_at - created_at)"
        )
    };
}

/// SQL: the columns of a stored row at a time.
macro_rules! stored_columns {
    ($now:literal) => {
        concat!(
            $crate::idempotency::store::rows::key_state!($now),
            " AS state, fingerprint_version, fingerprint, request_method, request_path, request_id, traceparent, \
             response_status, response_headers, response_body, created_at, expires_at, ",
            $now,
            " AS found_at"
        )
    };
}

pub(crate) use key_state;
pub(super) use {announcement, answers_channel, completion, stored_columns, try_lock_key};

/// A stored answer.
#[derive(Debug)]
pub struct Answer {
    pub reply: Reply,
    /// Id of the request that was executed.
    pub request_id: String,
    /// The trace of the first request with the key, if it was kept.
    pub trace: Option<TraceContext>,
    pub expires_at: DateTime<Utc>,
}

/// State of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// A claim with a live lease.
    Running,
    /// The lease of the last claim has expired or was released.
    Abandoned,
    /// Recovery was given up, and an operator has to look at it.
    Parked,
    /// Answered, and the answer is kept.
    Completed,
    /// Answered, and the answer is no longer kept.
    Expired,
    /// Treated as if the key had never been used. The reaper hasn't deleted it yet.
    Forgotten,
}

impl KeyState {
    /// Word for the state, as in the statements.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Abandoned => "abandoned",
            Self::Parked => "parked",
            Self::Completed => "completed",
            Self::Expired => "expired",
            Self::Forgotten => "forgotten",
        }
    }
}

impl std::str::FromStr for KeyState {
    type Err = Failure;

    fn from_str(word: &str) -> Result<Self, Failure> {
        Ok(match word {
            "running" => Self::Running,
            "abandoned" => Self::Abandoned,
            "parked" => Self::Parked,
            "completed" => Self::Completed,
            "expired" => Self::Expired,
            "forgotten" => Self::Forgotten,
            _ => return Err(Failure::internal(format!("a key can't be {word}"))),
        })
    }
}

/// The stored state of a key.
#[derive(Debug)]
pub struct StoredKey {
    pub state: KeyState,
    /// Time of the claim, which tells this life of the key from any other.
    pub created_at: DateTime<Utc>,
    /// Time since the claim.
    pub age: Duration,
    /// Whether the stored request is the same as this one.
    pub is_same_request: bool,
    /// Whether the stored request has the same method and path.
    pub is_same_path: bool,
    /// The answer, with [`KeyState::Completed`].
    pub answer: Option<Arc<Answer>>,
}

#[derive(Queryable)]
pub(super) struct StoredKeyRow {
    pub state: String,
    fingerprint_version: i16,
    fingerprint: Vec<u8>,
    request_method: String,
    request_path: String,
    request_id: String,
    traceparent: Option<String>,
    response_status: Option<i16>,
    response_headers: Option<serde_json::Value>,
    response_body: Option<Vec<u8>>,
    created_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
    found_at: DateTime<Utc>,
}

pub(super) type StoredKeySql = (
    Text,
    SmallInt,
    Binary,
    Text,
    Text,
    Text,
    Nullable<Text>,
    Nullable<SmallInt>,
    Nullable<Jsonb>,
    Nullable<Binary>,
    Timestamptz,
    Timestamptz,
    Timestamptz,
);

impl StoredKeyRow {
    /// Whether this is the row of the request of `envelope`. `None` if the fingerprint's recipe is of a later
    /// release.
    pub fn is_of(&self, envelope: &Envelope) -> Option<bool> {
        Fingerprint { version: self.fingerprint_version, sha256: self.fingerprint.clone() }
            .is_of(&envelope.content)
    }

    /// Converts the row to the state that the caller of `envelope` sees.
    pub fn compared_with(self, envelope: &Envelope, is_same_request: bool) -> Result<StoredKey, Failure> {
        let content = &envelope.content;
        let is_same_path =
            self.request_method == content.method && content.paths().any(|path| path == self.request_path);
        let (state, created_at) = (self.state.parse()?, self.created_at);
        let age = (self.found_at - created_at).to_std().unwrap_or_default();
        let answer = if state == KeyState::Completed { self.into_answer()? } else { None };
        Ok(StoredKey { state, created_at, age, is_same_request, is_same_path, answer })
    }

    /// Returns the stored answer, if there is one.
    pub fn into_answer(self) -> Result<Option<Arc<Answer>>, Failure> {
        let (Some(status), Some(headers), Some(body)) =
            (self.response_status, self.response_headers, self.response_body)
        else {
            return Ok(None);
        };
        let status =
            u16::try_from(status).map_err(|_| Failure::internal("a stored status is out of range"))?;
        let headers = serde_json::from_value(headers).map_err(Failure::internal)?;
        Ok(Some(Arc::new(Answer {
            reply: Reply { status, headers, body, notes: Vec::new() },
            request_id: self.request_id,
            trace: TraceContext::stored(self.traceparent.as_deref(), None),
            expires_at: self.expires_at,
        })))
    }
}

/// Collects one value of each element, for an array parameter.
pub(super) fn column<'a, T, V>(of: &'a [T], value: impl Fn(&'a T) -> V) -> Vec<V> {
    of.iter().map(value).collect()
}
