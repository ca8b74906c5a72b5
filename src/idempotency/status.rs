//! The state of a key: for clients that lost their answer, and for operators.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Integer, Nullable, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use uuid::Uuid;

use crate::base::ids::MerchantId;
use crate::error::failure::Failure;
use crate::storage::clock;

use super::key::IdempotencyKey;
pub use super::store::KeyState;
pub(crate) use super::store::key_state;

/// How far the effects of a request can be, in the database and in the API.
pub(crate) const RECOVERY_POINTS: [&str; 2] = ["started", "finished"];

/// A key's row, without request and answer.
#[derive(Clone, Debug, QueryableByName)]
pub struct KeyRow {
    #[diesel(sql_type = SqlUuid)]
    pub merchant_id: MerchantId,
    #[diesel(sql_type = Text)]
    pub key: String,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = Text)]
    pub operation: String,
    #[diesel(sql_type = Text)]
    pub request_id: String,
    /// Trace of the first request with the key.
    #[diesel(sql_type = Nullable<Text>)]
    pub trace_id: Option<String>,
    #[diesel(sql_type = Integer)]
    pub attempts: i32,
    #[diesel(sql_type = Integer)]
    pub recoveries: i32,
    #[diesel(sql_type = Text)]
    pub recovery_point: String,
    #[diesel(sql_type = Nullable<Text>)]
    pub last_error: Option<String>,
    #[diesel(sql_type = Nullable<SmallInt>)]
    pub response_status: Option<i16>,
    #[diesel(sql_type = Nullable<Text>)]
    pub resource_type: Option<String>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub resource_id: Option<Uuid>,
    #[diesel(sql_type = Timestamptz)]
    pub created_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub completed_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Timestamptz)]
    pub expires_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub lease_expires_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub recover_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub parked_at: Option<DateTime<Utc>>,
}

impl KeyRow {
    /// The key's state.
    pub fn state(&self) -> Result<KeyState, Failure> {
        self.state.parse()
    }

    /// The id of the row.
    pub fn id(&self) -> KeyId {
        KeyId { merchant: self.merchant_id, key: self.key.clone() }
    }
}

/// SQL: the columns of a [`KeyRow`], at `clock.now`.
macro_rules! key_columns {
    () => {
        concat!(
            "merchant_id, key, ",
            $crate::idempotency::status::key_state!("clock.now"),
            " AS state, operation, request_id, split_part(traceparent, '-', 2) AS trace_id, attempts, recoveries, recovery_point, last_error, response_status, \
             resource_type, resource_id, created_at, completed_at, expires_at, lease_expires_at, recover_at, parked_at"
        )
    };
}

pub(crate) use key_columns;

/// Name of a key among those of all merchants: `mer_…/key`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyId {
    /// The merchant.
    pub merchant: MerchantId,
    /// The key.
    pub key: String,
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.merchant, self.key)
    }
}

impl FromStr for KeyId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (merchant, key) = text.split_once('/').ok_or(())?;
        let key = IdempotencyKey::bare(key).ok_or(())?;
        Ok(Self { merchant: merchant.parse().map_err(|_| ())?, key: key.as_str().to_owned() })
    }
}

/// Finds the row of a key. `None` if the key was never used or has been forgotten.
pub fn find(conn: &mut PgConnection, merchant: MerchantId, key: &str) -> Result<Option<KeyRow>, Failure> {
    let now = clock::of_cluster(conn)?;
    let row = sql_query(concat!(
        "SELECT ",
        key_columns!(),
        " FROM (SELECT coalesce($3, clock_timestamp()) AS now) AS clock, idempotency_keys WHERE merchant_id = $1 AND key = $2"
    ))
    .bind::<SqlUuid, _>(merchant)
    .bind::<Text, _>(key)
    .bind::<Nullable<Timestamptz>, _>(now)
    .get_result::<KeyRow>(conn)
    .optional()?;
    match row {
        Some(row) if row.state()? != KeyState::Forgotten => Ok(Some(row)),
        _ => Ok(None),
    }
}

/// Makes the recovery worker take an unanswered request over now, however often that has failed before. A
/// live attempt isn't disturbed: the worker takes over after its lease.
///
/// Errors, in the order checked: `idempotency_key_not_found`, `idempotency_key_not_in_progress`.
///
/// Locks: the key's row.
pub fn retry(conn: &mut PgConnection, merchant: MerchantId, key: &str) -> Result<KeyRow, Failure> {
    change(conn, merchant, key, "parked_at = NULL, recoveries = 0, recover_at = statement_timestamp()")
}

/// Ends the lease of an unanswered request, whoever holds it, and unparks the request, so that the client's
/// next retry executes it. An attempt that is still running commits nothing. The recovery worker leaves the
/// request alone for `recover_in_s`.
///
/// Errors and locks as with [`retry`].
pub fn release(
    conn: &mut PgConnection,
    merchant: MerchantId,
    key: &str,
    recover_in_s: u32,
) -> Result<KeyRow, Failure> {
    let set = format!(
        "parked_at = NULL, recoveries = 0, claim_token = '{}', takeovers = takeovers + 1, \
         lease_expires_at = statement_timestamp(), \
         recover_at = statement_timestamp() + make_interval(secs => {recover_in_s})",
        Uuid::new_v4(),
    );
    change(conn, merchant, key, &set)
}

fn change(conn: &mut PgConnection, merchant: MerchantId, key: &str, set: &str) -> Result<KeyRow, Failure> {
    let changed = sql_query(format!(
        "UPDATE idempotency_keys SET {set} WHERE merchant_id = $1 AND key = $2 AND claim_token IS NOT NULL"
    ))
    .bind::<SqlUuid, _>(merchant)
    .bind::<Text, _>(key)
    .execute(conn)?;
    let row = find(conn, merchant, key)?.ok_or(Failure::IdempotencyKeyNotFound)?;
    if changed == 1 { Ok(row) } else { Err(Failure::IdempotencyKeyNotInProgress) }
}
