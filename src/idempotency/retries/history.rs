//! The stored counts, and the size of what a TTL keeps.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Timestamptz};

use crate::error::failure::Failure;
use crate::storage::shape;
use crate::storage::sql::statement;

use super::{BOUNDS_S, Count, Found};

/// Number of days for which counts are kept.
pub const DAYS_MAX: u32 = 90;

/// Adds counts to those of all instances, as requests of today by the database's clock.
///
/// A day's rows take the place of those of 90 days before. The rows are locked in one order, so that instances
/// don't deadlock.
pub fn add(conn: &mut PgConnection, counts: &[Count]) -> Result<(), Failure> {
    let requests = |count: &Count| i64::try_from(count.requests).unwrap_or(i64::MAX);
    statement::<()>(
        "INSERT INTO idempotency_retry_delays AS stored \
             (operation, found, at_most_seconds, slot, day, since, requests) \
         SELECT counted.operation, counted.found, counted.at_most_seconds, (today.day - date '2000-01-01') % 90, \
             today.day, clock_timestamp(), counted.requests \
         FROM unnest({}, {}, {}, {}) AS counted (operation, found, at_most_seconds, requests), \
              (SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date AS day) AS today \
         ORDER BY 1, 2, 3 \
         ON CONFLICT (operation, found, at_most_seconds, slot) DO UPDATE SET \
             day = excluded.day, \
             since = CASE WHEN stored.day = excluded.day THEN stored.since ELSE excluded.since END, \
             requests = CASE WHEN stored.day = excluded.day THEN stored.requests ELSE 0 END + excluded.requests",
    )
    .bind::<Array<Text>, _>(counts.iter().map(|count| count.operation).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(counts.iter().map(|count| count.found.as_str()).collect::<Vec<_>>())
    .bind::<Array<Integer>, _>(counts.iter().map(|count| stored_bound(count.bucket)).collect::<Vec<_>>())
    .bind::<Array<BigInt>, _>(counts.iter().map(requests).collect::<Vec<_>>())
    .execute(conn)?;
    Ok(())
}

fn stored_bound(bucket: usize) -> i32 {
    i32::try_from(BOUNDS_S[bucket]).expect("the longest bound is some years")
}

/// The requests of one operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    counts: [[u64; BOUNDS_S.len()]; Found::ALL.len()],
    /// Number of new keys per day, at the rate of the last one or two days.
    pub keys_per_day: u64,
}

impl Requests {
    /// Adds requests whose delay is at most `at_most_s`, and exceeds the bound before that.
    pub fn add(&mut self, found: Found, at_most_s: u32, requests: u64) {
        let bucket = BOUNDS_S.partition_point(|bound| *bound < at_most_s).min(BOUNDS_S.len() - 1);
        self.counts[found as usize][bucket] += requests;
    }

    /// Number of requests that found one of these.
    pub fn number(&self, found: &[Found]) -> u64 {
        found.iter().flat_map(|found| self.counts[*found as usize]).sum()
    }

    /// Number of requests that found one of these, by the upper bound of their delay in seconds.
    pub fn by_bound(&self, found: &[Found]) -> impl Iterator<Item = (u32, u64)> {
        BOUNDS_S.into_iter().enumerate().map(|(bucket, bound)| {
            (bound, found.iter().map(|found| self.counts[*found as usize][bucket]).sum())
        })
    }

    /// Number of requests that found one of these later than `delay_s`, or that may have: it's exact if `delay_s` is
    /// one of [`BOUNDS_S`].
    pub fn later_than(&self, delay_s: u32, found: &[Found]) -> u64 {
        self.by_bound(found).filter(|(bound, _)| *bound > delay_s).map(|(_, requests)| requests).sum()
    }
}

/// The requests of all operations, over a number of days.
#[derive(Clone, Debug)]
pub struct History {
    /// When the first of them was counted. `None` if there are none.
    pub since: Option<DateTime<Utc>>,
    /// Current time, by the database's clock.
    pub now: DateTime<Utc>,
    /// Time over which the rate of new keys is taken, in seconds: since the beginning of yesterday in UTC, or since
    /// the first count.
    pub rate_seconds: u64,
    /// The requests, by operation.
    pub by_operation: HashMap<String, Requests>,
}

/// Reads the requests of the last `days` days, today included.
pub fn load(conn: &mut PgConnection, days: u32) -> Result<History, Failure> {
    let days = i32::try_from(days.clamp(1, DAYS_MAX)).expect("these are few");
    let (since, now, rate_seconds) = statement::<(Nullable<Timestamptz>, Timestamptz, BigInt)>(
        "SELECT min(stored.since) FILTER (WHERE stored.day > clock.today - {}::integer), statement_timestamp(), \
             greatest(60, extract(epoch FROM max(clock.now) - greatest(max(clock.yesterday), min(stored.since))))::bigint \
         FROM idempotency_retry_delays AS stored, \
             (SELECT statement_timestamp() AS now, (statement_timestamp() AT TIME ZONE 'UTC')::date AS today, \
                  date_trunc('day', statement_timestamp() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' - interval '24 hours' \
                      AS yesterday) AS clock \
         WHERE stored.day > clock.today - 90",
    )
    .bind::<Integer, _>(days)
    .get_result::<(Option<DateTime<Utc>>, DateTime<Utc>, i64)>(conn)?;
    let rate_seconds = u64::try_from(rate_seconds).unwrap_or(1).max(1);
    let rows = statement::<(Text, Text, Integer, BigInt, BigInt)>(
        "SELECT stored.operation, stored.found, stored.at_most_seconds, \
             coalesce(sum(stored.requests) FILTER (WHERE stored.day > clock.today - {}::integer), 0)::bigint, \
             coalesce(sum(stored.requests) FILTER (WHERE stored.day >= clock.today - 1), 0)::bigint \
         FROM idempotency_retry_delays AS stored, \
             (SELECT (statement_timestamp() AT TIME ZONE 'UTC')::date AS today) AS clock \
         WHERE stored.day > clock.today - 90 \
         GROUP BY stored.operation, stored.found, stored.at_most_seconds",
    )
    .bind::<Integer, _>(days)
    .load::<(String, String, i32, i64, i64)>(conn)?;
    let number = |number: i64| u64::try_from(number).unwrap_or_default();
    let mut by_operation = HashMap::<String, Requests>::new();
    for (operation, found, at_most_s, requests, recent) in rows {
        // A later release may know more words.
        let Some(found) = Found::ALL.into_iter().find(|known| known.as_str() == found) else { continue };
        let of = by_operation.entry(operation).or_default();
        of.add(found, u32::try_from(at_most_s).unwrap_or_default(), number(requests));
        if found == Found::New {
            of.keys_per_day += number(recent).saturating_mul(24 * 60 * 60).div_ceil(rate_seconds);
        }
    }
    Ok(History { since, now, rate_seconds, by_operation })
}

/// Bytes that a key takes in the table, with its index entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyBytes {
    /// With its answer.
    pub answer: u64,
    /// As a tombstone.
    pub tombstone: u64,
}

impl KeyBytes {
    /// Sizes to assume where there are no rows yet.
    const ASSUMED: Self = Self { answer: 1_000, tombstone: 500 };
}

/// Number of rows that the sizes are estimated from.
const SAMPLE: i64 = 10_000;
/// Number of rows below which the size of the indexes says nothing of the size of an entry.
const INDEXED_MIN: i64 = 10_000;
/// Bytes of a key's index entries, where the indexes are too small to tell.
const INDEX_BYTES_ASSUMED: u64 = 200;
/// Bytes of a row beside its own: its pointer in the page, and its share of the page's unused rest.
const ROW_OVERHEAD_BYTES: u64 = 28;

/// Estimates the size of a key per operation, from a sample of the rows. Keys of other operations have the sizes in the
/// second result.
pub fn key_bytes(conn: &mut PgConnection) -> Result<(HashMap<String, KeyBytes>, KeyBytes), Failure> {
    let is_distributed = shape::is_distributed();
    let size = if is_distributed {
        "SELECT greatest(estimated_rows, 0), index_bytes FROM idempotency_keys_size()"
    } else {
        "SELECT greatest(t.reltuples::bigint, s.n_live_tup, 0), pg_indexes_size(t.oid) \
         FROM pg_class t LEFT JOIN pg_stat_user_tables s ON s.relid = t.oid \
         WHERE t.oid = 'idempotency_keys'::regclass"
    };
    let (rows, index_bytes) = statement::<(BigInt, BigInt)>(size).get_result::<(i64, i64)>(conn)?;
    let sampled = statement::<(Nullable<Text>, Bool, BigInt)>(if is_distributed {
        "SELECT operation, is_tombstone, (sum(bytes) / sum(sampled_rows))::bigint \
         FROM idempotency_keys_sample(least(100.0, 100.0 * {} / greatest({}, 1))) \
         GROUP BY GROUPING SETS ((operation, is_tombstone), (is_tombstone))"
    } else {
        "SELECT operation, state = 'expired', avg(pg_column_size(k.*))::bigint \
         FROM idempotency_keys k TABLESAMPLE SYSTEM (least(100.0, 100.0 * {} / greatest({}, 1))) \
         WHERE state <> 'in_progress' \
         GROUP BY GROUPING SETS ((operation, state = 'expired'), (state = 'expired'))"
    })
    .bind::<BigInt, _>(SAMPLE)
    .bind::<BigInt, _>(rows)
    .load::<(Option<String>, bool, i64)>(conn)?;
    let index_bytes = match rows >= INDEXED_MIN {
        true => u64::try_from(index_bytes / rows).unwrap_or_default(),
        false => INDEX_BYTES_ASSUMED,
    };
    let size = |operation: Option<&str>, is_tombstone: bool| {
        let is_it =
            |row: &&(Option<String>, bool, i64)| row.0.as_deref() == operation && row.1 == is_tombstone;
        let row = u64::try_from(sampled.iter().find(is_it)?.2).ok()?;
        Some(row + ROW_OVERHEAD_BYTES + index_bytes)
    };
    let sizes = |operation: Option<&str>, others: KeyBytes| KeyBytes {
        answer: size(operation, false).unwrap_or(others.answer),
        tombstone: size(operation, true).unwrap_or(others.tombstone),
    };
    let others = sizes(None, KeyBytes::ASSUMED);
    let operations = sampled.iter().filter_map(|(operation, _, _)| operation.as_deref());
    let by_operation = operations.map(|operation| (operation.to_owned(), sizes(Some(operation), others)));
    Ok((by_operation.collect(), others))
}
