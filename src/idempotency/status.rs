//! What has become of a key: for clients that lost their answer, for operators, and for metrics.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Double, Integer, Nullable, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use uuid::Uuid;

use super::metrics::Metrics;
use crate::base::ids::MerchantId;
use crate::error::Error;
use crate::storage::db::plan_freely;
use crate::storage::sql::statement;
use crate::web::lists::{Cursor, List, Page};

use super::IdempotencyKey;
use super::engine::Engine;
pub use super::store::Life;
use super::store::{life, table_size};

/// A key's row, without request and answer.
#[derive(Clone, Debug, QueryableByName)]
#[expect(missing_docs, reason = "the columns are described in the migrations")]
pub struct KeyRow {
    #[diesel(sql_type = SqlUuid)]
    pub merchant_id: MerchantId,
    #[diesel(sql_type = Text)]
    pub key: String,
    #[diesel(sql_type = Text)]
    life: String,
    #[diesel(sql_type = Text)]
    pub operation: String,
    #[diesel(sql_type = Text)]
    pub request_id: String,
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
    /// Where it is in its life.
    pub fn life(&self) -> Result<Life, Error> {
        self.life.parse()
    }

    /// The id of the row.
    pub fn id(&self) -> KeyId {
        KeyId { merchant: self.merchant_id, key: self.key.clone() }
    }
}

macro_rules! key_columns {
    () => {
        concat!(
            "merchant_id, key, ",
            life!(),
            " AS life, operation, request_id, attempts, recoveries, recovery_point, last_error, response_status, \
             resource_type, resource_id, created_at, completed_at, expires_at, lease_expires_at, recover_at, parked_at"
        )
    };
}

/// Names a key among those of all merchants: `mer_…/key`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyId {
    /// Whose.
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

/// The row of a key; `None` if it was never used or has been forgotten.
pub fn find(conn: &mut PgConnection, merchant: MerchantId, key: &str) -> Result<Option<KeyRow>, Error> {
    let row = sql_query(concat!(
        "SELECT ",
        key_columns!(),
        " FROM idempotency_keys WHERE merchant_id = $1 AND key = $2"
    ))
    .bind::<SqlUuid, _>(merchant)
    .bind::<Text, _>(key)
    .get_result::<KeyRow>(conn)
    .optional()?;
    match row {
        Some(row) if row.life()? != Life::Forgotten => Ok(Some(row)),
        _ => Ok(None),
    }
}

/// Which keys are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Which {
    /// Not answered.
    #[default]
    InProgress,
    /// Not answered, and nobody works on it.
    Abandoned,
    /// Not answered, and waiting for an operator.
    Parked,
    /// Answered.
    Completed,
    /// Tombstones.
    Expired,
}

impl FromStr for Which {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Ok(match text {
            "in_progress" => Self::InProgress,
            "abandoned" => Self::Abandoned,
            "parked" => Self::Parked,
            "completed" => Self::Completed,
            "expired" => Self::Expired,
            _ => return Err(()),
        })
    }
}

impl Which {
    /// What a text must be that can be parsed.
    pub const FORMAT: &str = "must be one of in_progress, abandoned, parked, completed, expired";

    /// The condition, and the column of the index by which it's found: the list goes by that.
    fn sql(self) -> (&'static str, &'static str) {
        match self {
            Self::InProgress => ("state = 'in_progress'", "created_at"),
            Self::Abandoned => (
                "state = 'in_progress' AND parked_at IS NULL AND lease_expires_at <= statement_timestamp()",
                "created_at",
            ),
            Self::Parked => ("state = 'in_progress' AND parked_at IS NOT NULL", "created_at"),
            Self::Completed => ("state = 'completed' AND expires_at > statement_timestamp()", "expires_at"),
            // Those whose answers the reaper hasn't dropped yet aren't shown.
            Self::Expired => ("state = 'expired' AND forget_at > statement_timestamp()", "forget_at"),
        }
    }
}

/// What a list of keys is narrowed down to.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Where in their life.
    pub which: Which,
    /// Claimed at this time or before.
    pub created_until: Option<DateTime<Utc>>,
    /// Claimed at least this long ago, by the database's clock.
    pub older_than_s: Option<i64>,
    /// Of this operation.
    pub operation: Option<String>,
    /// Of this merchant.
    pub merchant: Option<MerchantId>,
}

/// A page of keys, newest first; `None` if the page's cursor is no key that exists.
pub fn list(
    conn: &mut PgConnection,
    filter: &Filter,
    page: Page<KeyId>,
) -> Result<Option<List<KeyRow>>, Error> {
    let (condition, order) = filter.which.sql();
    let (cursor, comparison, direction) = match &page.cursor {
        Cursor::Newest => (None, "<", "DESC"),
        Cursor::After(id) => (Some(id), "<", "DESC"),
        Cursor::Before(id) => (Some(id), ">", "ASC"),
    };
    #[derive(QueryableByName)]
    struct Position {
        #[diesel(sql_type = Timestamptz)]
        position: DateTime<Utc>,
    }
    // A key may have moved on in its life since it was listed: an unanswered one has been answered. So the
    // position is that of the key, wherever it is now.
    let position = match cursor {
        None => None,
        Some(id) => {
            let position = sql_query(format!(
                "SELECT coalesce({order}, expires_at + make_interval(secs => tombstone_seconds)) AS position \
                 FROM idempotency_keys WHERE merchant_id = $1 AND key = $2"
            ))
            .bind::<SqlUuid, _>(id.merchant)
            .bind::<Text, _>(&id.key)
            .get_result::<Position>(conn)
            .optional()?;
            let Some(found) = position else { return Ok(None) };
            Some(found.position)
        }
    };
    let columns = key_columns!();
    let rows = sql_query(format!(
        "SELECT {columns} FROM idempotency_keys \
         WHERE {condition} \
             AND ($1 IS NULL OR ({order}, merchant_id, key) {comparison} ($1, $2, $3 COLLATE \"C\")) \
             AND ($4 IS NULL OR created_at <= $4) \
             AND ($5 IS NULL OR created_at <= statement_timestamp() - make_interval(secs => $5)) \
             AND ($6 IS NULL OR operation = $6) \
             AND ($7 IS NULL OR merchant_id = $7) \
         ORDER BY {order} {direction}, merchant_id {direction}, key {direction} LIMIT $8"
    ))
    .bind::<Nullable<Timestamptz>, _>(position)
    .bind::<Nullable<SqlUuid>, _>(cursor.map(|id| id.merchant))
    .bind::<Nullable<Text>, _>(cursor.map(|id| id.key.clone()))
    .bind::<Nullable<Timestamptz>, _>(filter.created_until)
    .bind::<Nullable<Double>, _>(filter.older_than_s.map(|seconds| seconds as f64))
    .bind::<Nullable<Text>, _>(filter.operation.as_deref())
    .bind::<Nullable<SqlUuid>, _>(filter.merchant)
    .bind::<BigInt, _>(page.limit + 1);
    let rows = conn.transaction(|conn| {
        plan_freely(conn)?;
        rows.load::<KeyRow>(conn)
    })?;
    Ok(Some(page.cut(rows)))
}

/// Has the recovery worker take an unanswered request on now, however often that has failed before. Nothing
/// happens to an attempt that is at work: the worker comes after its lease.
///
/// Errors, in the order checked: `idempotency_key_not_found`, `idempotency_key_not_in_progress`.
///
/// Locks: the key's row.
pub fn retry(conn: &mut PgConnection, merchant: MerchantId, key: &str) -> Result<KeyRow, Error> {
    change(conn, merchant, key, "parked_at = NULL, recoveries = 0, recover_at = clock_timestamp()")
}

/// Gives the lease of an unanswered request up, whoever holds it, and lets it go if it's parked: the client's
/// next retry executes it. An attempt that is at work after all commits nothing. The recovery worker leaves it
/// alone for `recover_in_s`.
///
/// Errors and locks as with [`retry`].
pub fn release(
    conn: &mut PgConnection,
    merchant: MerchantId,
    key: &str,
    recover_in_s: u32,
) -> Result<KeyRow, Error> {
    let set = format!(
        "parked_at = NULL, recoveries = 0, claim_token = uuid_v7(), lease_expires_at = clock_timestamp(), \
         recover_at = clock_timestamp() + make_interval(secs => {recover_in_s})"
    );
    change(conn, merchant, key, &set)
}

fn change(conn: &mut PgConnection, merchant: MerchantId, key: &str, set: &str) -> Result<KeyRow, Error> {
    let changed = sql_query(format!(
        "UPDATE idempotency_keys SET {set} WHERE merchant_id = $1 AND key = $2 AND claim_token IS NOT NULL"
    ))
    .bind::<SqlUuid, _>(merchant)
    .bind::<Text, _>(key)
    .execute(conn)?;
    let row = find(conn, merchant, key)?.ok_or(Error::IdempotencyKeyNotFound)?;
    if changed == 1 { Ok(row) } else { Err(Error::IdempotencyKeyNotInProgress) }
}

/// Measures the table every `interval`; doesn't return.
pub(super) async fn keep_sampling(engine: Engine, interval: Duration) {
    loop {
        let metrics = Arc::clone(engine.metrics());
        if let Err(error) = engine.db().run_retrying(move |conn| sample(conn, &metrics)).await {
            log::warn!("the table of idempotency keys couldn't be measured: {}", error.detailed());
        }
        tokio::time::sleep(interval).await;
    }
}

fn sample(conn: &mut PgConnection, metrics: &Metrics) -> Result<(), Error> {
    let (in_progress, parked, oldest) = statement::<(BigInt, BigInt, Nullable<Double>)>(
        "SELECT count(*), count(parked_at), \
             extract(epoch FROM clock_timestamp() - min(created_at) FILTER (WHERE parked_at IS NULL))::double precision \
         FROM idempotency_keys WHERE state = 'in_progress'",
    )
    .get_result::<(i64, i64, Option<f64>)>(conn)?;
    metrics.in_progress.set(in_progress);
    metrics.parked.set(parked);
    metrics.oldest_in_progress_seconds.set(oldest.unwrap_or(0.0).max(0.0));
    let (rows, bytes) = table_size(conn)?;
    // Before the first ANALYZE the planner knows nothing.
    metrics.table_rows.set(rows.max(0));
    metrics.table_bytes.set(bytes);
    Ok(())
}
