//! The reaper: shrinks keys when their answers expire, and deletes them when their tombstones do.
//!
//! Every instance runs one, at its own pace. Each skips rows that another holds, so any number of them is
//! harmless. The reaper works in small batches with pauses in between, because a delete without pauses takes
//! a large share of the throughput from payments. Nothing waits for the reaper, so it's gentle at first. But
//! it must keep up with the claims, so its pauses get shorter the further it lags behind.
//!
//! The reaper never touches a request in progress, and it can't change the decision of a claim: a claim reads
//! the times in the row, whether or not the reaper has processed it, relies only on what a tombstone keeps,
//! and starts again when a row vanishes in between.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Double, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use uuid::Uuid;

use crate::error::failure::Failure;
use crate::storage::clock;
use crate::storage::shape;
use crate::storage::sql::{grouped, statement};

use crate::idempotency::engine::Engine;
use crate::idempotency::host::Host;

/// Maximum number of rows in a batch.
const BATCH: i64 = 200;

/// Pause after a batch, as a multiple of its duration, by how long the batch's oldest row has been due. The
/// inverse is, roughly, the reaper's share of a connection and of the disk.
fn pause_factor(lag: Duration) -> u32 {
    match lag.as_secs() {
        0..600 => 6,
        600..3_600 => 2,
        _ => 1,
    }
}

/// Result of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReapResult {
    /// Number of keys that were shrunk to tombstones.
    pub expired: usize,
    /// Number of tombstones that were deleted.
    pub forgotten: usize,
    /// Time for which the oldest of all these rows had been due.
    pub lag: Duration,
}

/// Reaps. Doesn't return. Checks every `interval` whether there is work.
pub async fn keep_reaping<H: Host>(engine: Engine<H>, interval: Duration) {
    loop {
        let started = Instant::now();
        let reaped = engine.db().run_retrying(|conn| reap(conn, BATCH)).await;
        let pause = match reaped {
            Ok(reaped) => {
                let metrics = engine.metrics();
                metrics.reaped.with_label_values(&["expired"]).inc_by(reaped.expired as u64);
                metrics.reaped.with_label_values(&["forgotten"]).inc_by(reaped.forgotten as u64);
                let is_more = usize::try_from(BATCH) == Ok(reaped.expired.max(reaped.forgotten));
                if is_more { started.elapsed() * pause_factor(reaped.lag) } else { interval }
            }
            Err(error) => {
                log::warn!("the reaper failed: {}", error.detailed());
                interval
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Processes one batch of each kind, each in a transaction of its own.
///
/// Locks: the rows of the batch.
pub fn reap(conn: &mut PgConnection, batch: i64) -> Result<ReapResult, Failure> {
    let (expired, shrinking_lag_s) = shrink(conn, batch)?;
    let (forgotten, forgetting_lag_s) = forget(conn, batch)?;
    let lag_s = shrinking_lag_s.unwrap_or_default().max(forgetting_lag_s.unwrap_or_default());
    let count = |rows: i64| usize::try_from(rows).unwrap_or_default();
    let lag = Duration::try_from_secs_f64(lag_s).unwrap_or_default();
    Ok(ReapResult { expired: count(expired), forgotten: count(forgotten), lag })
}

/// Number of rows that were due, and the seconds for which the oldest had been.
type Batch = (i64, Option<f64>);

/// Turns completed keys with an expired lifetime into tombstones, the longest expired first.
///
/// `statement_timestamp()` is constant in a statement, so the planner can walk the index by it.
fn shrink(conn: &mut PgConnection, batch: i64) -> Result<Batch, Failure> {
    if shape::is_distributed() {
        let due = "/* of all merchants */ SELECT merchant_id, key FROM idempotency_keys \
             WHERE state = 'completed' AND expires_at <= {} ORDER BY expires_at LIMIT {}";
        return by_merchant(conn, due, batch, "SELECT count, lag_s FROM keys_shrink({}, {})");
    }
    Ok(statement::<(BigInt, Nullable<Double>)>(
        "WITH due AS MATERIALIZED ( \
             SELECT merchant_id, key FROM idempotency_keys \
             WHERE state = 'completed' AND expires_at <= statement_timestamp() \
             ORDER BY expires_at LIMIT {} FOR UPDATE SKIP LOCKED), \
         shrunk AS ( \
             UPDATE idempotency_keys k SET state = 'expired', \
                 forget_at = k.expires_at + make_interval(secs => k.tombstone_seconds), \
                 request_query = '', request_body = '', response_headers = NULL, response_body = NULL, tracestate = NULL \
             FROM due WHERE k.merchant_id = due.merchant_id AND k.key = due.key \
             RETURNING k.expires_at) \
         SELECT count(*), extract(epoch FROM statement_timestamp() - min(expires_at))::double precision FROM shrunk",
    )
    .bind::<BigInt, _>(batch)
    .get_result(conn)?)
}

/// Deletes expired tombstones: their keys are free again.
fn forget(conn: &mut PgConnection, batch: i64) -> Result<Batch, Failure> {
    if shape::is_distributed() {
        let due = "/* of all merchants */ SELECT merchant_id, key FROM idempotency_keys \
             WHERE state = 'expired' AND forget_at <= {} ORDER BY forget_at LIMIT {}";
        return by_merchant(conn, due, batch, "SELECT count, lag_s FROM keys_forget({}, {})");
    }
    Ok(statement::<(BigInt, Nullable<Double>)>(
        "WITH due AS MATERIALIZED ( \
             SELECT merchant_id, key FROM idempotency_keys \
             WHERE state = 'expired' AND forget_at <= statement_timestamp() \
             ORDER BY forget_at LIMIT {} FOR UPDATE SKIP LOCKED), \
         forgotten AS ( \
             DELETE FROM idempotency_keys k USING due WHERE k.merchant_id = due.merchant_id AND k.key = due.key \
             RETURNING k.forget_at) \
         SELECT count(*), extract(epoch FROM statement_timestamp() - min(forget_at))::double precision FROM forgotten",
    )
    .bind::<BigInt, _>(batch)
    .get_result(conn)?)
}

/// Finds keys that are due, without a lock, and then changes those of one merchant after the other.
fn by_merchant(
    conn: &mut PgConnection,
    due: &'static str,
    batch: i64,
    change: &'static str,
) -> Result<Batch, Failure> {
    let (mut count, mut lag_s) = (0, None);
    for (merchant, keys) in find_by_merchant(conn, due, batch)? {
        let (changed, oldest_s) = statement::<(BigInt, Nullable<Double>)>(change)
            .bind::<SqlUuid, _>(merchant)
            .bind::<Array<Text>, _>(keys)
            .get_result::<Batch>(conn)?;
        count += changed;
        lag_s = oldest_s.into_iter().chain(lag_s).reduce(f64::max);
    }
    Ok((count, lag_s))
}

/// Finds up to `limit` keys with a query, and sorts them by merchant.
pub(super) fn find_by_merchant(
    conn: &mut PgConnection,
    query: &'static str,
    limit: i64,
) -> Result<BTreeMap<Uuid, Vec<String>>, Failure> {
    let now = clock::now(conn)?;
    let found = statement::<(SqlUuid, Text)>(query).bind::<Timestamptz, _>(now).bind::<BigInt, _>(limit);
    let found = found.load::<(Uuid, String)>(conn)?;
    Ok(grouped(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_further_it_lags_behind_the_less_it_pauses() {
        let factors = [0, 599, 600, 3_599, 3_600].map(|lag_s| pause_factor(Duration::from_secs(lag_s)));
        assert_eq!(factors, [6, 6, 2, 2, 1]);
    }
}
