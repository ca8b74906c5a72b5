//! The reaper: makes keys small when their answers expire, and forgets them when their tombstones do.
//!
//! Every instance runs one, at its own pace; rows that another holds are skipped, so any number of them is
//! harmless. It works in small batches with pauses in between, because a delete without pauses takes a large
//! share of the throughput from those who are paying.
//!
//! It never touches a request in progress, and it can't change what a claim decides: that looks at the times in
//! the row, whether or not the reaper has come by, and starts again when a row vanishes before it.

use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::sql_types::BigInt;

use crate::error::Error;
use crate::sql::statement;

use super::engine::Engine;

/// Rows of a batch.
const BATCH: i64 = 200;
/// For how many times as long as a batch took the reaper pauses: the share of a connection and of the disk that
/// it takes at the most.
const PAUSE_FACTOR: u32 = 4;

/// What a batch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reaped {
    /// Keys that were shrunk to tombstones.
    pub expired: usize,
    /// Tombstones that were deleted.
    pub forgotten: usize,
}

/// Reaps; doesn't return. Looks every `interval` whether there is something to do.
pub async fn keep_reaping(engine: Engine, interval: Duration) {
    loop {
        let started = Instant::now();
        let reaped = engine.db().run_retrying(|conn| reap(conn, BATCH)).await;
        let is_more = match reaped {
            Ok(reaped) => {
                let count = |stage: &str, rows: usize| {
                    engine.metrics().reaped.with_label_values(&[stage]).inc_by(rows as u64);
                };
                count("expired", reaped.expired);
                count("forgotten", reaped.forgotten);
                reaped.expired.max(reaped.forgotten) == BATCH as usize
            }
            Err(error) => {
                log::warn!("the reaper failed: {}", error.detailed());
                false
            }
        };
        tokio::time::sleep(if is_more { started.elapsed() * PAUSE_FACTOR } else { interval }).await;
    }
}

/// One batch of each kind, each in a transaction of its own.
///
/// Locks: the rows of the batch.
pub fn reap(conn: &mut PgConnection, batch: i64) -> Result<Reaped, Error> {
    Ok(Reaped { expired: shrink(conn, batch)?, forgotten: forget(conn, batch)? })
}

/// Turns completed keys whose lifetime is over into tombstones, the longest expired first.
///
/// `statement_timestamp()` is constant in a statement, so that the index can be walked by it.
fn shrink(conn: &mut PgConnection, batch: i64) -> Result<usize, Error> {
    Ok(statement::<()>(
        "WITH due AS MATERIALIZED ( \
             SELECT merchant_id, key FROM idempotency_keys \
             WHERE state = 'completed' AND expires_at <= statement_timestamp() \
             ORDER BY expires_at LIMIT {} FOR UPDATE SKIP LOCKED) \
         UPDATE idempotency_keys k SET state = 'expired', \
             forget_at = k.expires_at + make_interval(secs => k.tombstone_seconds), \
             request_path = '', request_query = '', request_body = '', response_headers = NULL, response_body = NULL \
         FROM due WHERE k.merchant_id = due.merchant_id AND k.key = due.key",
    )
    .bind::<BigInt, _>(batch)
    .execute(conn)?)
}

/// Deletes tombstones whose time is over: the keys are free again.
fn forget(conn: &mut PgConnection, batch: i64) -> Result<usize, Error> {
    Ok(statement::<()>(
        "WITH due AS MATERIALIZED ( \
             SELECT merchant_id, key FROM idempotency_keys \
             WHERE state = 'expired' AND forget_at <= statement_timestamp() \
             ORDER BY forget_at LIMIT {} FOR UPDATE SKIP LOCKED) \
         DELETE FROM idempotency_keys k USING due WHERE k.merchant_id = due.merchant_id AND k.key = due.key",
    )
    .bind::<BigInt, _>(batch)
    .execute(conn)?)
}
