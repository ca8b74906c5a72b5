//! Retention: deletes events, and the rows of their deliveries, that are older than they are kept.
//!
//! Every instance runs one; rows that another holds are skipped, so any number of them is harmless. Like the
//! [reaper](crate::idempotency::reaper) it works in small batches with pauses in between, so that those who are paying
//! don't notice.
//!
//! What has been deleted proves nothing any more: how far back events reach is written down with the first batch that
//! deletes some (`event_retention`), for whoever concludes something from an event that isn't there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Nullable, Uuid as SqlUuid};

use super::metrics::Metrics;
use crate::base::ids::MerchantId;
use crate::error::Error;
use crate::storage::db::Db;
use crate::storage::sql::statement;

/// Rows of a batch, and merchants that it looks at.
const BATCH: i32 = 1_000;
/// Pause between two looks when there is nothing to do.
const INTERVAL: Duration = Duration::from_secs(60);
/// For how many times as long as a batch took the next one waits: a seventh of a connection at the most.
const PAUSE_FACTOR: u32 = 6;

/// For how long things are kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Events, in days.
    pub events_days: u32,
    /// Deliveries, in days. They don't outlive their event.
    pub deliveries_days: u32,
}

/// What a batch deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Events, without the deliveries that went with them.
    pub events: i64,
    /// Deliveries that were too old themselves.
    pub deliveries: i64,
    /// The last merchant that the batch looked at; `None` if there are no more.
    pub next_after: Option<MerchantId>,
}

/// Deletes what is too old; doesn't return.
pub async fn keep_pruning(db: Db, retention: Retention, metrics: Arc<Metrics>) {
    let mut after = None;
    loop {
        let started = Instant::now();
        let pause = match db.run_retrying(move |conn| prune(conn, retention, after, BATCH)).await {
            Ok(pruned) => {
                let count = |table, rows: i64| {
                    metrics.retention_deleted.with_label_values(&[table]).inc_by(rows.unsigned_abs());
                };
                count("events", pruned.events);
                count("webhook_deliveries", pruned.deliveries);
                // A full batch may have left something of the merchants that it looked at.
                let is_full = pruned.events.max(pruned.deliveries) >= BATCH.into();
                if !is_full {
                    after = pruned.next_after;
                }
                if is_full || after.is_some() { started.elapsed() * PAUSE_FACTOR } else { jittered(INTERVAL) }
            }
            Err(error) => {
                log::warn!("retention failed: {}", error.detailed());
                jittered(INTERVAL)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// So that instances that were started together spread out.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(rand::random_range(0.5..1.5))
}

/// Deletes up to `batch` events and up to `batch` deliveries, of up to `batch` merchants `after` another one or from the
/// first on, in one transaction.
///
/// Locks: the rows of the batch.
pub fn prune(
    conn: &mut PgConnection,
    retention: Retention,
    after: Option<MerchantId>,
    batch: i32,
) -> Result<Pruned, Error> {
    let days = |days: u32| i32::try_from(days).map_err(Error::internal);
    let (events, deliveries, next_after) = statement::<(BigInt, BigInt, Nullable<SqlUuid>)>(
        "SELECT events_deleted, deliveries_deleted, next_after \
         FROM events_prune(make_interval(days => {}), make_interval(days => {}), {}, {})",
    )
    .bind::<Integer, _>(days(retention.events_days)?)
    .bind::<Integer, _>(days(retention.deliveries_days)?)
    .bind::<Integer, _>(batch)
    .bind::<Nullable<SqlUuid>, _>(after)
    .get_result(conn)?;
    Ok(Pruned { events, deliveries, next_after })
}
