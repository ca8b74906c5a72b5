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

/// Pause before a parked event is tried for the second time; it doubles with each try.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Pause of what is overdue: most likely it waits for an operator, and mustn't keep the others waiting.
const PAUSE_OVERDUE: Duration = Duration::from_secs(5 * 60);

/// Keeps an event that came at `now`, with what has come of it. One that is there already stays as it is: that happens
/// only where the policy gives event ids no effect.
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
pub struct Kept {
    /// Ours.
    pub id: AcquirerEventId,
    /// The processor's.
    pub event_id: String,
    /// As it came.
    pub body: Vec<u8>,
    /// What has come of it so far.
    pub state: String,
    /// How often it was tried.
    pub attempts: i32,
    /// Whether it has been called overdue.
    pub is_overdue: bool,
    /// The database's time.
    pub now: DateTime<Utc>,
}

type KeptSql = (SqlUuid, Text, Binary, Text, Integer, Bool, Timestamptz);

macro_rules! kept {
    ($rest:literal) => {
        concat!(
            "SELECT id, event_id, body, state, attempts, overdue_at IS NOT NULL, clock_timestamp() FROM acquirer_events ",
            $rest
        )
    };
}

/// A parked event that is somebody's to try.
#[derive(Clone, Debug, Queryable)]
pub struct Taken {
    /// Ours.
    pub id: AcquirerEventId,
    /// The processor's.
    pub event_id: String,
    /// Its type.
    pub kind: String,
    /// What it waits for.
    pub detail: Option<String>,
    /// Whether it has just now waited for too long.
    pub becomes_overdue: bool,
}

/// Gives whoever asks the parked event that has been due for longest, for a while in which nobody else gets it. It's due again
/// afterwards even if nothing is noted: whatever its handling ends in, the others have had their turn.
///
/// It's overdue from then on if it came longer than `overdue_after` ago. What another instance has locked is skipped.
pub fn take_due(conn: &mut PgConnection, overdue_after: Duration) -> Result<Option<Taken>, Error> {
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

/// The parked events about an object other than the one that the processor calls `event_id`, in the order in which they came.
/// What is being tried by somebody else is skipped, as whoever holds it may be waiting for what we hold.
///
/// That they are parked is told by `settled_at`: for `state` the planner may read the index of all that is parked.
pub fn lock_parked(
    conn: &mut PgConnection,
    merchant: MerchantId,
    object_id: Uuid,
    event_id: &str,
) -> Result<Vec<Kept>, Error> {
    Ok(statement::<KeptSql>(kept!(
        "WHERE settled_at IS NULL AND merchant_id = {} AND object_id = {} AND event_id <> {} \
         ORDER BY id FOR UPDATE SKIP LOCKED"
    ))
    .bind::<SqlUuid, _>(merchant)
    .bind::<SqlUuid, _>(object_id)
    .bind::<Text, _>(event_id)
    .load(conn)?)
}

/// An event by its id.
pub fn lock(conn: &mut PgConnection, id: AcquirerEventId) -> Result<Option<Kept>, Error> {
    Ok(statement::<KeptSql>(kept!("WHERE id = {} FOR UPDATE"))
        .bind::<SqlUuid, _>(id)
        .get_result(conn)
        .optional()?)
}

/// Notes what has come of another try. What was applied once stays so when it's found to be so.
pub fn note(conn: &mut PgConnection, kept: &Kept, outcome: &Outcome) -> Result<(), Error> {
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

fn pause_after(kept: &Kept) -> Duration {
    let longest = if kept.is_overdue { PAUSE_OVERDUE } else { PAUSE_MAX };
    crate::base::time::backoff(PAUSE_MIN, u32::try_from(kept.attempts).unwrap_or(0), longest)
}

/// Deletes up to `batch` settled events that came longer ago than `keep`. Returns how many it were.
pub fn prune(conn: &mut PgConnection, keep: Duration, batch: i32) -> Result<i64, Error> {
    Ok(statement::<BigInt>("SELECT acquirer_events_prune(make_interval(secs => {}), {})")
        .bind::<Double, _>(keep.as_secs_f64())
        .bind::<Integer, _>(batch)
        .get_result(conn)?)
}

/// Events that aren't settled.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    /// They wait for what they are about.
    pub parked: i64,
    /// Of these, those that have waited for too long.
    pub overdue: i64,
    /// They contradict our books.
    pub contradicted: i64,
}

/// How many aren't settled.
pub fn count_open(conn: &mut PgConnection) -> Result<Open, Error> {
    let (parked, overdue, contradicted) = statement::<(BigInt, BigInt, BigInt)>(
        "SELECT count(*) FILTER (WHERE state = 'parked'), count(overdue_at), \
             count(*) FILTER (WHERE state = 'contradicted') \
         FROM acquirer_events WHERE state IN ('parked', 'contradicted')",
    )
    .get_result(conn)?;
    Ok(Open { parked, overdue, contradicted })
}
