//! Retries parked events until their objects exist, and deletes old events.

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::{Connection, PgConnection};

use super::metrics::Metrics;
use crate::base::defaults::defaults;
use crate::base::ids::AcquirerEventId;
use crate::base::scope::{self, Scope};
use crate::base::signature::Refusal;
use crate::base::time;
use crate::base::trace::TraceContext;
use crate::error::{AsFailure, Error, Failure};
use crate::host::metrics::Metrics as HostMetrics;
use crate::processor::{Event, Messages};
use crate::storage::db::Db;

use super::events::{self, Outcome};
use super::report;
use super::store::{self, DueEvent, LockedEvent};

/// Number of events deleted at a time.
const PRUNE_BATCH: i32 = 500;
/// Pause between two searches for old events, unless there are more.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);
/// Interval of the counts of parked events.
const COUNT_INTERVAL: Duration = Duration::from_secs(2);

/// Treatment of the processor's events.
#[derive(Clone, Copy, Debug, clap::Args)]
#[group(id = "acquirer_events")]
pub struct Options {
    /// Interval at which each instance retries events that wait for their objects, in milliseconds
    #[arg(long, alias = "acquirer-event-interval-ms", env = "ONCEPAY_PROCESSOR_EVENT_INTERVAL_MS", default_value_t = 500, value_parser = clap::value_parser!(u64).range(10..))]
    pub processor_event_interval_ms: u64,

    /// Age at which a waiting event raises an alarm, in seconds. The service goes on retrying it
    #[arg(
        long,
        alias = "acquirer-event-overdue-after-s",
        env = "ONCEPAY_PROCESSOR_EVENT_OVERDUE_AFTER_S",
        default_value_t = 600
    )]
    pub processor_event_overdue_after_s: u32,

    /// Retention of events as received, in days
    #[arg(long, alias = "acquirer-event-retention-days", env = "ONCEPAY_PROCESSOR_EVENT_RETENTION_DAYS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3_650))]
    pub processor_event_retention_days: u32,
}

impl Default for Options {
    fn default() -> Self {
        defaults()
    }
}

impl Options {
    fn overdue_after(&self) -> Duration {
        Duration::from_secs(self.processor_event_overdue_after_s.into())
    }

    fn retention(&self) -> Duration {
        Duration::from_secs(u64::from(self.processor_event_retention_days) * 24 * 60 * 60)
    }
}

/// Retries parked events. Doesn't return.
pub async fn keep_trying(db: Db, messages: Arc<dyn Messages>, options: Options, metrics: Arc<HostMetrics>) {
    let interval = Duration::from_millis(options.processor_event_interval_ms);
    loop {
        if let Err(error) = try_all(&db, &messages, options.overdue_after(), &metrics).await {
            log::warn!("parked events couldn't be tried: {}", error.detailed());
        }
        tokio::time::sleep(time::jittered(interval)).await;
    }
}

/// Counts the events that people have to know of. Doesn't return. Runs apart from the retries, which take a
/// while when many events are parked: that's when the counts matter.
pub async fn keep_counting(
    db: Db,
    messages: Arc<dyn Messages>,
    metrics: Arc<Metrics>,
    host_metrics: Arc<HostMetrics>,
) {
    announce(&*messages, &host_metrics);
    loop {
        if let Ok(open) = db.run(store::count_open).await {
            metrics.acquirer_events_parked.set(open.parked);
            metrics.acquirer_events_overdue.set(open.overdue);
            metrics.acquirer_events_contradicted.set(open.contradicted);
        }
        tokio::time::sleep(time::jittered(COUNT_INTERVAL)).await;
    }
}

/// Deletes old events. Doesn't return.
pub async fn keep_pruning(db: Db, options: Options) {
    let keep = options.retention();
    loop {
        let started = Instant::now();
        let pause = match db.run(move |conn| store::prune(conn, keep, PRUNE_BATCH)).await {
            // As gentle as the reaper of idempotency keys: takes a share of the time, not all of it.
            Ok(deleted) if deleted == i64::from(PRUNE_BATCH) => started.elapsed() * 6,
            Ok(_) => PRUNE_INTERVAL,
            Err(error) => {
                log::warn!("old events of the processor couldn't be deleted: {}", error.detailed());
                PRUNE_INTERVAL
            }
        };
        tokio::time::sleep(time::jittered(pause)).await;
    }
}

/// Starts the alarm counters at 0, so that their first event shows as an increase.
fn announce(messages: &dyn Messages, metrics: &HostMetrics) {
    for reason in Refusal::NAMES.into_iter().chain(["unreadable"]) {
        metrics.webhooks_refused.with_label_values(&[reason]);
    }
    for kind in messages.types() {
        metrics.acquirer_events.with_label_values(&[kind, Outcome::Contradicted(String::new()).as_str()]);
    }
}

/// Retries the due events, one per transaction.
async fn try_all(
    db: &Db,
    messages: &Arc<dyn Messages>,
    overdue_after: Duration,
    metrics: &Arc<HostMetrics>,
) -> Result<(), Error> {
    while let Some(taken) = db.run_retrying(move |conn| store::take_due(conn, overdue_after)).await? {
        let DueEvent { id, event_id, kind, detail, becomes_overdue } = taken;
        if becomes_overdue {
            let detail = detail.unwrap_or_default();
            log::error!(event_id, kind; "an event of the processor has waited for too long: {detail}");
        }
        let (messages, metrics) = (Arc::clone(messages), Arc::clone(metrics));
        let trying =
            db.run_retrying(move |conn| conn.transaction(|conn| try_parked(conn, id, &*messages, &metrics)));
        let scope = Arc::new(Scope::of_event(event_id.clone(), TraceContext::begin()));
        let tried = scope::within(scope, trying).await;
        // The event is due again in a while.
        if let Err(error) = tried {
            log::error!(event_id, kind; "a parked event couldn't be tried: {}", error.detailed());
        }
    }
    Ok(())
}

/// Retries an event, unless it was settled meanwhile.
fn try_parked(
    conn: &mut PgConnection,
    id: AcquirerEventId,
    messages: &dyn Messages,
    metrics: &HostMetrics,
) -> Result<(), Error> {
    let Some(kept) = store::lock(conn, id)?.filter(|kept| kept.state == "parked") else { return Ok(()) };
    // A failure rolls back only the inner transaction, so that it can be recorded.
    let outcome = match conn.transaction(|conn| try_again(conn, &kept, messages, metrics)) {
        Ok(outcome) => outcome,
        Err(error) if is_passing(&error) => return Err(error),
        Err(error) => {
            let event_id = kept.event_id.as_str();
            log::error!(event_id; "a parked event failed: {}", error.detailed());
            Outcome::Parked(format!("It failed: {}.", error.code().as_str()))
        }
    };
    store::note(conn, &kept, &outcome)
}

/// Retries a stored event, and the events that waited for it.
pub(super) fn try_again(
    conn: &mut PgConnection,
    kept: &LockedEvent,
    messages: &dyn Messages,
    metrics: &HostMetrics,
) -> Result<Outcome, Error> {
    if kept.state == Outcome::Applied.as_str() {
        // What has come after it, such as a dispute's decision the other way, must not be undone.
        return Ok(Outcome::Applied);
    }
    let event = events::parse(messages, &kept.body)?;
    let outcome = events::apply(&event, conn, kept.now)?;
    apply_awaiting(conn, &kept.event_id, &event, &outcome, messages, metrics)?;
    if !matches!(outcome, Outcome::Parked(_)) {
        report(metrics, &kept.event_id, &event, &outcome);
    }
    Ok(outcome)
}

/// Applies the parked events that have waited for `event`, which has just been applied and may still be
/// stored as parked.
pub(super) fn apply_awaiting(
    conn: &mut PgConnection,
    event_id: &str,
    event: &Event,
    outcome: &Outcome,
    messages: &dyn Messages,
    metrics: &HostMetrics,
) -> Result<(), Error> {
    let (true, Outcome::Applied, Some((merchant, object_id))) =
        (events::is_awaited(event), outcome, events::subject(event))
    else {
        return Ok(());
    };
    for kept in store::lock_parked(conn, merchant, object_id, event_id)? {
        // An event that fails here stays parked. It's no reason to refuse `event`.
        let applied = conn.transaction(|conn| {
            let waiting = events::parse(messages, &kept.body)?;
            let outcome = events::apply(&waiting, conn, kept.now)?;
            Ok((waiting, outcome))
        });
        let (waiting, outcome) = match applied {
            Ok(applied) => applied,
            Err(error) if is_passing(&error) => return Err(error),
            Err(_) => continue,
        };
        if !matches!(outcome, Outcome::Parked(_)) {
            store::note(conn, &kept, &outcome)?;
            report(metrics, &kept.event_id, &waiting, &outcome);
        }
    }
    Ok(())
}

/// True if the database caused the failure, and not the event.
fn is_passing(error: &Error) -> bool {
    matches!(error.failure(), Some(Failure::DatabaseUnavailable(_) | Failure::TransientConflict(_)))
}
