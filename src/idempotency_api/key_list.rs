//! Lists of keys.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Double, Nullable, Text, Timestamptz, Uuid as SqlUuid};

use crate::base::ids::MerchantId;
use crate::error::Failure;
use crate::idempotency::status::{KeyId, KeyRow, key_columns};
use crate::storage::clock;
use crate::storage::db::plan_freely;
use crate::web::lists::{Cursor, List, Page};

/// A filter of keys by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyFilter {
    /// Not answered.
    #[default]
    InProgress,
    /// Not answered, and without a live attempt.
    Abandoned,
    /// Not answered, and waiting for an operator.
    Parked,
    /// Answered.
    Completed,
    /// Tombstones.
    Expired,
}

impl FromStr for KeyFilter {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|filter| filter.as_str() == text).ok_or(())
    }
}

impl KeyFilter {
    /// All filters.
    pub const ALL: [Self; 5] =
        [Self::InProgress, Self::Abandoned, Self::Parked, Self::Completed, Self::Expired];

    /// Name in the API and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Abandoned => "abandoned",
            Self::Parked => "parked",
            Self::Completed => "completed",
            Self::Expired => "expired",
        }
    }

    /// Format of a filter's text.
    pub const FORMAT: &str = "must be one of in_progress, abandoned, parked, completed, expired";

    /// The condition, and the indexed column that finds the keys; the list is in its order.
    fn sql(self) -> (&'static str, &'static str) {
        match self {
            Self::InProgress => ("state = 'in_progress'", "created_at"),
            Self::Abandoned => (
                "state = 'in_progress' AND parked_at IS NULL AND lease_expires_at <= clock.now",
                "created_at",
            ),
            Self::Parked => ("state = 'in_progress' AND parked_at IS NOT NULL", "created_at"),
            Self::Completed => ("state = 'completed' AND expires_at > clock.now", "expires_at"),
            // Keys whose answers the reaper hasn't dropped yet aren't shown.
            Self::Expired => ("state = 'expired' AND forget_at > clock.now", "forget_at"),
        }
    }
}

/// A query for keys.
#[derive(Clone, Debug, Default)]
pub struct KeyQuery {
    /// State of the keys.
    pub filter: KeyFilter,
    /// Only keys claimed before this time.
    pub created_before: Option<DateTime<Utc>>,
    /// Only keys claimed at least this long ago, by the database's clock.
    pub older_than_s: Option<i64>,
    /// Only keys of this operation.
    pub operation: Option<String>,
    /// Only keys of this merchant.
    pub merchant: Option<MerchantId>,
}

/// Lists a page of keys, newest first. `None` if the page's cursor names no existing key.
pub fn list(
    conn: &mut PgConnection,
    query: &KeyQuery,
    page: Page<KeyId>,
) -> Result<Option<List<KeyRow>>, Failure> {
    let (condition, order) = query.filter.sql();
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
    // A key may have changed its state since it was listed: an unanswered one may have been answered. So the
    // position is the key's current one.
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
    let now = clock::of_cluster(conn)?;
    let rows = sql_query(format!(
        "/* of all merchants */ SELECT {columns} \
         FROM (SELECT coalesce($9, statement_timestamp()) AS now) AS clock, idempotency_keys \
         WHERE {condition} \
             AND ($1 IS NULL OR ({order}, merchant_id, key) {comparison} ($1, $2, $3 COLLATE \"C\")) \
             AND ($4 IS NULL OR created_at < $4) \
             AND ($5 IS NULL OR created_at <= clock.now - make_interval(secs => $5)) \
             AND ($6 IS NULL OR operation = $6) \
             AND ($7 IS NULL OR merchant_id = $7) \
         ORDER BY {order} {direction}, merchant_id {direction}, key {direction} LIMIT $8"
    ))
    .bind::<Nullable<Timestamptz>, _>(position)
    .bind::<Nullable<SqlUuid>, _>(cursor.map(|id| id.merchant))
    .bind::<Nullable<Text>, _>(cursor.map(|id| id.key.clone()))
    .bind::<Nullable<Timestamptz>, _>(query.created_before)
    .bind::<Nullable<Double>, _>(query.older_than_s.map(|seconds| seconds as f64))
    .bind::<Nullable<Text>, _>(query.operation.as_deref())
    .bind::<Nullable<SqlUuid>, _>(query.merchant)
    .bind::<BigInt, _>(page.limit + 1)
    .bind::<Nullable<Timestamptz>, _>(now);
    let rows = conn.transaction(|conn| {
        plan_freely(conn)?;
        rows.load::<KeyRow>(conn)
    })?;
    Ok(Some(page.cut(rows)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_names_all_filters() {
        let names: Vec<_> = KeyFilter::ALL.iter().map(|filter| filter.as_str()).collect();
        assert_eq!(KeyFilter::FORMAT, format!("must be one of {}", names.join(", ")));
    }
}
