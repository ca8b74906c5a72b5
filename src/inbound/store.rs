//! The statements on `acquirer_events`.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{
    BigInt, Binary, Bool, Double, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid,
};
use uuid::Uuid;

use crate::base::ids::{AcquirerEventId, MerchantId};
use crate::error::Error;
use crate::processor::Event;
use crate::storage::sql::statement;

use super::events::{self, Outcome};

/// Pause before the second attempt at a parked event. It doubles with each attempt.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Maximum pause.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Pause for an overdue event: most likely it waits for an operator, and it must not keep the others waiting.
const PAUSE_OVERDUE: Duration = Duration::from_secs(5 * 60);

/// Stores an event that was received at `now`, with its outcome. An event that is stored already stays as it
/// is; that happens only if the policy gives event ids no effect.
pub fn insert(
    conn: &mut PgConnection,
    event_id: &str,
    event: &Event,
    body: &[u8],
    outcome: &Outcome,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    let id = AcquirerEventId::at(now);
    let (merchant, object_id) = events::subject(event).unzip();
    statement::<()>(
        "INSERT INTO acquirer_events \
             (id, event_id, type, body, merchant_id, object_id, state, detail, received_at, due_at, settled_at) \
         SELECT {}, {}, {}, {}, {}, {}, {}, {}, asked.now, \
             CASE WHEN asked.is_parked THEN clock_timestamp() + make_interval(secs => {}) END, \
             CASE WHEN NOT asked.is_parked THEN clock_timestamp() END \
         FROM (SELECT {} AS now, {} AS is_parked) AS asked \
         ON CONFLICT (event_id) DO NOTHING",
    )
    .bind::<SqlUuid, _>(id)
    .bind::<Text, _>(event_id)
    .bind::<Text, _>(&event.kind)
    .bind::<Binary, _>(body)
    .bind::<Nullable<SqlUuid>, _>(merchant)
    .bind::<Nullable<SqlUuid>, _>(object_id)
    .bind::<Text, _>(outcome.as_str())
    .bind::<Nullable<Text>, _>(outcome.detail())
    .bind::<Double, _>(PAUSE_MIN.as_secs_f64())
    .bind::<Timestamptz, _>(now)
    .bind::<Bool, _>(matches!(outcome, Outcome::Parked(_)))
    .execute(conn)?;
    Ok(())
}

/// A stored event that is locked until the transaction ends.
#[derive(Clone, Debug, Queryable)]
pub struct LockedEvent {
    /// Our id.
    pub id: AcquirerEventId,
    /// The processor's id.
    pub event_id: String,
    /// Body as received.
    pub body: Vec<u8>,
    /// State so far.
    pub state: String,
    /// Number of attempts.
    pub attempts: i32,
    /// True if the event has been marked as overdue.
    pub is_overdue: bool,
    /// Current time by the database's clock.
    pub now: DateTime<Utc>,
}

type LockedEventSql = (SqlUuid, Text, Binary, Text, Integer, Bool, Timestamptz);

macro_rules! locked_event {
    ($rest:literal) => {
        concat!(
            "SELECT id, event_id, body, state, attempts, overdue_at IS NOT NULL, clock_timestamp() FROM acquirer_events ",
            $rest
        )
    };
}

/// A parked event that its caller must try.
#[derive(Clone, Debug, Queryable)]
pub struct DueEvent {
    /// Our id.
    pub id: AcquirerEventId,
    /// The processor's id.
    pub event_id: String,
    /// Type of the event.
    pub kind: String,
    /// The reason why the event waits.
    pub detail: Option<String>,
    /// True if the event has just become overdue.
    pub becomes_overdue: bool,
}

/// Takes the parked event that has been due for longest, and keeps it from others for a while. Afterwards
/// it's due again even without a recorded outcome, so however its handling ends, the others have had their
/// turn.
///
/// Marks the event as overdue if it was received longer than `overdue_after` ago. Skips events that another
/// instance has locked.
pub fn take_due(conn: &mut PgConnection, overdue_after: Duration) -> Result<Option<DueEvent>, Error> {
    Ok(statement::<(SqlUuid, Text, Text, Nullable<Text>, Bool)>(
        "WITH due AS MATERIALIZED ( \
             SELECT id, overdue_at FROM acquirer_events WHERE due_at <= statement_timestamp() \
             ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED) \
         UPDATE acquirer_events e SET due_at = clock.now + make_interval(secs => {}), \
             overdue_at = coalesce(e.overdue_at, \
                 CASE WHEN e.received_at + make_interval(secs => {}) <= clock.now THEN clock.now END) \
         FROM due, (SELECT clock_timestamp() AS now) AS clock \
         WHERE e.id = due.id \
         RETURNING e.id, e.event_id, e.type, e.detail, e.overdue_at IS NOT NULL AND due.overdue_at IS NULL",
    )
    .bind::<Double, _>(PAUSE_MAX.as_secs_f64())
    .bind::<Double, _>(overdue_after.as_secs_f64())
    .get_result(conn)
    .optional()?)
}

/// Locks the parked events about an object, in the order of receipt, except the one with the processor's id
/// `event_id`. Skips events that others are trying: their holder may be waiting for our locks.
///
/// Recognizes parked events by `settled_at`: for `state`, the planner may read the index of all parked
/// events.
pub fn lock_parked(
    conn: &mut PgConnection,
    merchant: MerchantId,
    object_id: Uuid,
    event_id: &str,
) -> Result<Vec<LockedEvent>, Error> {
    Ok(statement::<LockedEventSql>(locked_event!(
        "WHERE settled_at IS NULL AND merchant_id = {} AND object_id = {} AND event_id <> {} \
         ORDER BY id FOR UPDATE SKIP LOCKED"
    ))
    .bind::<SqlUuid, _>(merchant)
    .bind::<SqlUuid, _>(object_id)
    .bind::<Text, _>(event_id)
    .load(conn)?)
}

/// Finds an event by its id and locks it.
pub fn lock(conn: &mut PgConnection, id: AcquirerEventId) -> Result<Option<LockedEvent>, Error> {
    Ok(statement::<LockedEventSql>(locked_event!("WHERE id = {} FOR UPDATE"))
        .bind::<SqlUuid, _>(id)
        .get_result(conn)
        .optional()?)
}

/// Stores the outcome of another attempt. An applied event stays applied if the attempt finds it so.
pub fn note(conn: &mut PgConnection, kept: &LockedEvent, outcome: &Outcome) -> Result<(), Error> {
    statement::<()>(
        "UPDATE acquirer_events e SET \
             attempts = e.attempts + CASE WHEN asked.state = 'dismissed' THEN 0 ELSE 1 END, \
             state = CASE WHEN e.state = 'applied' AND asked.state = 'unchanged' THEN e.state ELSE asked.state END, \
             detail = asked.detail, \
             due_at = CASE WHEN asked.is_parked THEN clock.now + make_interval(secs => {}) END, \
             settled_at = CASE WHEN NOT asked.is_parked THEN clock.now END, \
             overdue_at = CASE WHEN asked.is_parked THEN e.overdue_at END \
         FROM (SELECT {} AS state, {} AS detail, {} AS is_parked) AS asked, \
             (SELECT clock_timestamp() AS now) AS clock \
         WHERE e.id = {}",
    )
    .bind::<Double, _>(pause_after(kept).as_secs_f64())
    .bind::<Text, _>(outcome.as_str())
    .bind::<Nullable<Text>, _>(outcome.detail())
    .bind::<Bool, _>(matches!(outcome, Outcome::Parked(_)))
    .bind::<SqlUuid, _>(kept.id)
    .execute(conn)?;
    Ok(())
}

fn pause_after(kept: &LockedEvent) -> Duration {
    let longest = if kept.is_overdue { PAUSE_OVERDUE } else { PAUSE_MAX };
    crate::base::time::backoff(PAUSE_MIN, u32::try_from(kept.attempts).unwrap_or(0), longest)
}

/// Deletes up to `batch` settled events that were received longer than `keep` ago. Returns their number.
pub fn prune(conn: &mut PgConnection, keep: Duration, batch: i32) -> Result<i64, Error> {
    Ok(statement::<BigInt>("SELECT acquirer_events_prune(make_interval(secs => {}), {})")
        .bind::<Double, _>(keep.as_secs_f64())
        .bind::<Integer, _>(batch)
        .get_result(conn)?)
}

/// Numbers of unsettled events.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    /// Events that wait for their objects.
    pub parked: i64,
    /// Those of them that have waited for too long.
    pub overdue: i64,
    /// Events that contradict our books.
    pub contradicted: i64,
}

/// Counts unsettled events.
pub fn count_open(conn: &mut PgConnection) -> Result<Open, Error> {
    let (parked, overdue, contradicted) = statement::<(BigInt, BigInt, BigInt)>(
        "SELECT count(*) FILTER (WHERE state = 'parked'), count(overdue_at), \
             count(*) FILTER (WHERE state = 'contradicted') \
         FROM acquirer_events WHERE state IN ('parked', 'contradicted')",
    )
    .get_result(conn)?;
    Ok(Open { parked, overdue, contradicted })
}
