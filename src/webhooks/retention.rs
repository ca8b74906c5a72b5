//! Retention: deletes events and deliveries that are older than they are kept.
//!
//! Every instance runs one. Each skips rows that another holds, so any number of them is harmless. Like the
//! [reaper](crate::idempotency::workers::reaper), retention works in small batches with pauses in between, so that it
//! doesn't slow payments down.
//!
//! A missing event proves nothing if it may have been deleted. So the first batch that deletes events records
//! how far back they reach (`event_retention`), for checks that conclude something from a missing event.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{SubsecRound, TimeDelta};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Timestamptz, Uuid as SqlUuid};

use super::metrics::Metrics;
use crate::base::ids::MerchantId;
use crate::error::Error;
use crate::storage::db::Db;
use crate::storage::sql::statement;
use crate::storage::{clock, merchants, shape};

/// Maximum number of rows in a batch, and of merchants that it searches.
const BATCH: i32 = 1_000;
/// Pause between two searches when there is nothing to delete.
const INTERVAL: Duration = Duration::from_secs(60);
/// Pause after a batch, as a multiple of its duration: a seventh of a connection at most.
const PAUSE_FACTOR: u32 = 6;

/// Retention times.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Retention of events, in days.
    pub events_days: u32,
    /// Retention of deliveries, in days. They don't outlive their event.
    pub deliveries_days: u32,
}

/// Result of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PruneResult {
    /// Deleted events. The deliveries deleted with them don't count.
    pub events: i64,
    /// Deliveries deleted because of their own age.
    pub deliveries: i64,
    /// The last merchant that the batch searched. `None` if there are no more.
    pub next_after: Option<MerchantId>,
}

/// Deletes old events and deliveries. Doesn't return.
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
                // A full batch may have left rows of the merchants that it searched.
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

/// Spreads out instances that were started together.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(rand::random_range(0.5..1.5))
}

/// Deletes up to `batch` events and up to `batch` deliveries, of up to `batch` merchants `after` another one
/// or from the first, in one transaction.
///
/// Locks: the rows of the batch.
pub fn prune(
    conn: &mut PgConnection,
    retention: Retention,
    after: Option<MerchantId>,
    batch: i32,
) -> Result<PruneResult, Error> {
    let days = |days: u32| i32::try_from(days).map_err(Error::internal);
    if shape::is_distributed() {
        return prune_by_merchant(conn, retention, after, batch);
    }
    let (events, deliveries, next_after) = statement::<(BigInt, BigInt, Nullable<SqlUuid>)>(
        "SELECT events_deleted, deliveries_deleted, next_after \
         FROM events_prune(make_interval(days => {}), make_interval(days => {}), {}, {})",
    )
    .bind::<Integer, _>(days(retention.events_days)?)
    .bind::<Integer, _>(days(retention.deliveries_days)?)
    .bind::<Integer, _>(batch)
    .bind::<Nullable<SqlUuid>, _>(after)
    .get_result(conn)?;
    Ok(PruneResult { events, deliveries, next_after })
}

/// The same in a distributed database: each merchant's rows in a transaction of their own, and up to `batch` of each.
fn prune_by_merchant(
    conn: &mut PgConnection,
    retention: Retention,
    after: Option<MerchantId>,
    batch: i32,
) -> Result<PruneResult, Error> {
    let now = clock::now(conn)?;
    // Of whole milliseconds, as the times in ids are.
    let events_before = (now - TimeDelta::days(retention.events_days.into())).trunc_subsecs(3);
    let deliveries_before = now - TimeDelta::days(retention.deliveries_days.into());
    let merchants = merchants::after(conn, after.map(|merchant| merchant.0), batch.into())?;
    let mut pruned = PruneResult::default();
    let mut is_noted = false;
    for merchant in &merchants {
        let has_old = statement::<Bool>(
            "SELECT EXISTS (SELECT FROM events WHERE merchant_id = {} AND id < uuid_v7_lowest({}))",
        )
        .bind::<SqlUuid, _>(merchant)
        .bind::<Timestamptz, _>(events_before)
        .get_result::<bool>(conn)?;
        if has_old && !std::mem::replace(&mut is_noted, true) {
            statement::<()>("SELECT event_retention_note({})")
                .bind::<Timestamptz, _>(events_before)
                .execute(conn)?;
        }
        let (events, deliveries) = statement::<(BigInt, BigInt)>(
            "SELECT events_deleted, deliveries_deleted FROM events_prune_on_shard({}, {}, {}, {})",
        )
        .bind::<SqlUuid, _>(merchant)
        .bind::<Timestamptz, _>(events_before)
        .bind::<Timestamptz, _>(deliveries_before)
        .bind::<Integer, _>(batch)
        .get_result::<(i64, i64)>(conn)?;
        pruned.events += events;
        pruned.deliveries += deliveries;
    }
    let is_last = i32::try_from(merchants.len()).is_ok_and(|count| count < batch);
    pruned.next_after = merchants.last().filter(|_| !is_last).map(|merchant| MerchantId(*merchant));
    Ok(pruned)
}
