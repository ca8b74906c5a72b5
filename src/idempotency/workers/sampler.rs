//! Measurements of the key table.

use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Double, Nullable};

use crate::error::failure::Failure;
use crate::idempotency::engine::Engine;
use crate::idempotency::host::Host;
use crate::idempotency::metrics::Metrics;
use crate::idempotency::store::table_size;
use crate::storage::sql::statement;

/// Measures the table every `interval`. Doesn't return.
pub(super) async fn keep_sampling<H: Host>(engine: Engine<H>, interval: Duration) {
    loop {
        let metrics = engine.metrics().clone();
        if let Err(error) = engine.db().run_retrying(move |conn| sample(conn, &metrics)).await {
            log::warn!("the table of idempotency keys couldn't be measured: {}", error.detailed());
        }
        tokio::time::sleep(interval).await;
    }
}

fn sample(conn: &mut PgConnection, metrics: &Metrics) -> Result<(), Failure> {
    let (in_progress, parked, oldest, recovery_lag) =
        statement::<(BigInt, BigInt, Nullable<Double>, Nullable<Double>)>(
            "/* of all merchants */ SELECT count(*), count(parked_at), \
                 extract(epoch FROM clock_timestamp() - min(created_at) \
                     FILTER (WHERE parked_at IS NULL))::double precision, \
                 extract(epoch FROM clock_timestamp() - min(greatest(lease_expires_at, recover_at)) \
                     FILTER (WHERE parked_at IS NULL))::double precision \
             FROM idempotency_keys WHERE state = 'in_progress'",
        )
        .get_result::<(i64, i64, Option<f64>, Option<f64>)>(conn)?;
    metrics.in_progress.set(in_progress);
    metrics.parked.set(parked);
    metrics.oldest_in_progress_seconds.set(oldest.unwrap_or(0.0).max(0.0));
    // Negative while every lease lasts, and every pause after a failed attempt.
    metrics.recovery_lag_seconds.set(recovery_lag.unwrap_or(0.0).max(0.0));
    metrics.reaper_lag_seconds.set(reaper_lag_s(conn)?);
    let (rows, bytes) = table_size(conn)?;
    // Before the first ANALYZE, the planner has no estimate.
    metrics.table_rows.set(rows.max(0));
    metrics.table_bytes.set(bytes);
    Ok(())
}

/// Time for which the oldest key has been due for the reaper, whether or not one is running. Reads an entry of each index.
fn reaper_lag_s(conn: &mut PgConnection) -> Result<f64, Failure> {
    Ok(statement::<Double>(
        "/* of all merchants */ SELECT greatest(0, \
             (SELECT extract(epoch FROM statement_timestamp() - min(expires_at)) \
              FROM idempotency_keys WHERE state = 'completed'), \
             (SELECT extract(epoch FROM statement_timestamp() - min(forget_at)) \
              FROM idempotency_keys WHERE state = 'expired'))::double precision",
    )
    .get_result(conn)?)
}
