//! The outbox: due deliveries, their owners, and their outcomes.
//!
//! Promised: a delivery is with one sender at a time, as long as that sender keeps to its lease. An outcome
//! is stored once, and only by the sender of the last attempt (the fence is the number of the attempt). The
//! cost of a search depends on the number of waiting endpoints, not on their backlog or on what was ever
//! sent.
//!
//! Not promised: that a message is sent once. A sender that dies, or that is slower than its lease, leaves
//! its delivery to another sender, which can't know what has arrived.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{
    Array, BigInt, Bool, Double, Integer, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid,
};
use serde_json::Value;

use crate::base::derived_secrets::MasterKeyVersion;
use crate::base::ids::{DeliveryId, EventId, MerchantId, WebhookEndpointId};
use crate::base::trace::TraceContext;
use crate::error::{Error, Failure};
use crate::events::{self, EventType};
use crate::storage::shape;
use crate::storage::sql::statement;

use super::endpoints::EndpointRow;

mod by_merchant;

/// An endpoint and its merchant.
pub(super) type EndpointKey = (MerchantId, WebhookEndpointId);

/// The endpoints that a claim searches.
#[derive(Clone, Debug)]
pub(super) enum EndpointFilter {
    /// All endpoints with pending deliveries.
    All,
    /// These endpoints, which may have more deliveries. The fewer, the cheaper.
    These(Vec<EndpointKey>),
}

/// The capacity of a sender.
#[derive(Clone, Debug)]
pub(super) struct Capacity {
    /// Free places in all.
    pub(super) places: usize,
    /// Free places for endpoints whose last attempt failed.
    pub(super) places_for_failing: usize,
    /// Maximum number of concurrent attempts per endpoint, including those under way. One while an endpoint fails or
    /// has accepted nothing yet.
    pub(super) places_per_endpoint: u32,
    /// The same per merchant.
    pub(super) places_per_merchant: u32,
    /// Attempts of this sender that are under way.
    pub(super) in_flight: Vec<(EndpointKey, i32)>,
}

/// A delivery that a sender owns until its lease expires.
#[derive(Clone, Debug)]
pub(super) struct ClaimedDelivery {
    pub(super) merchant: MerchantId,
    pub(super) id: DeliveryId,
    pub(super) endpoint: WebhookEndpointId,
    /// Number of the attempt, from 1.
    pub(super) number: i32,
    pub(super) url: String,
    pub(super) secret_version: i32,
    /// Version of the master key from which the secret derives.
    pub(super) secret_key: MasterKeyVersion,
    /// That of the previous secret, if receivers may still know only that one.
    pub(super) previous_secret_key: Option<MasterKeyVersion>,
    /// Whether the last attempt at this endpoint failed.
    pub(super) endpoint_is_failing: bool,
    pub(super) event: EventId,
    pub(super) kind: String,
    pub(super) event_created_at: DateTime<Utc>,
    pub(super) data: Value,
    /// The span of this attempt, in the trace of the event.
    pub(super) trace: TraceContext,
    /// Time of the claim, by the database's clock.
    pub(super) claimed_at: DateTime<Utc>,
    /// Time since which the delivery has been attempted: its creation, or the time when its endpoint was last
    /// enabled.
    pub(super) tried_since: DateTime<Utc>,
}

impl ClaimedDelivery {
    pub(super) fn endpoint_key(&self) -> EndpointKey {
        (self.merchant, self.endpoint)
    }
}

/// The columns of a claim: the delivery, its endpoint, its event.
type ClaimedSql = (
    (SqlUuid, SqlUuid, SqlUuid, Integer),
    (Text, Integer, Integer, Nullable<Integer>, Bool),
    (SqlUuid, Text, Timestamptz, Jsonb, Nullable<Text>, Nullable<Text>, Timestamptz, Timestamptz),
);
type ClaimedRow = (
    (MerchantId, DeliveryId, WebhookEndpointId, i32),
    (String, i32, i32, Option<i32>, bool),
    (EventId, String, DateTime<Utc>, Value, Option<String>, Option<String>, DateTime<Utc>, DateTime<Utc>),
);

/// SQL: the endpoints with pending deliveries, by a walk over the index that jumps from one to the next.
macro_rules! with_waiting {
    () => {
        "WITH RECURSIVE waiting AS ( \
             (SELECT merchant_id, endpoint_id FROM webhook_deliveries WHERE state = 'pending' \
              ORDER BY merchant_id, endpoint_id LIMIT 1) \
             UNION ALL \
             SELECT next.merchant_id, next.endpoint_id FROM waiting w CROSS JOIN LATERAL ( \
                 SELECT d.merchant_id, d.endpoint_id FROM webhook_deliveries d \
                 WHERE d.state = 'pending' AND (d.merchant_id, d.endpoint_id) > (w.merchant_id, w.endpoint_id) \
                 ORDER BY d.merchant_id, d.endpoint_id LIMIT 1) AS next) "
    };
}

/// SQL: the named endpoints.
macro_rules! with_named {
    () => {
        "WITH waiting AS (SELECT * FROM unnest({}, {}) AS w (merchant_id, endpoint_id)) "
    };
}

/// SQL: the claim. Each LIMIT 1 keeps the planner from joining with a whole table that it believes to be
/// small. The order by time keeps it to the index of pending deliveries.
macro_rules! claim {
    ($waiting:ident) => {
        concat!(
            $waiting!(),
            ", in_flight AS MATERIALIZED ( \
             SELECT * FROM unnest({}, {}, {}) AS f (merchant_id, endpoint_id, count)), ",
            "by_merchant AS MATERIALIZED ( \
             SELECT merchant_id, sum(count) AS count FROM in_flight GROUP BY merchant_id), ",
            "ready AS MATERIALIZED ( \
             SELECT e.merchant_id, e.id, e.url, e.secret_version, e.secret_key_version, e.enabled_at, \
                 e.failing_since IS NOT NULL AS is_failing, \
                 CASE WHEN e.previous_secret_expires_at > statement_timestamp() \
                     THEN e.previous_secret_key_version END AS previous_key_version, \
                 CASE WHEN e.failing_since IS NULL AND e.first_accepted_at IS NOT NULL THEN {} ELSE 1 END \
                     - coalesce(f.count, 0) AS places, \
                 {} - coalesce(m.count, 0) AS places_of_merchant \
             FROM waiting w \
             JOIN webhook_endpoints e ON e.merchant_id = w.merchant_id AND e.id = w.endpoint_id \
             LEFT JOIN in_flight f ON f.merchant_id = e.merchant_id AND f.endpoint_id = e.id \
             LEFT JOIN by_merchant m ON m.merchant_id = e.merchant_id \
             CROSS JOIN LATERAL ( \
                 SELECT FROM webhook_deliveries d \
                 WHERE d.state = 'pending' AND d.merchant_id = w.merchant_id AND d.endpoint_id = w.endpoint_id \
                     AND d.due_at <= statement_timestamp() AND d.claimed_until <= statement_timestamp() \
                 ORDER BY d.due_at LIMIT 1) AS due \
             CROSS JOIN (SELECT {} AS versions) AS master_keys \
             WHERE e.status = 'enabled' AND coalesce(e.paused_until <= statement_timestamp(), true) \
                 AND e.secret_key_version = ANY (master_keys.versions) \
                 AND NOT coalesce(e.previous_secret_expires_at > statement_timestamp() \
                     AND e.previous_secret_key_version <> ALL (master_keys.versions), false)), ",
            "chosen AS MATERIALIZED ( \
             SELECT *, least(places, greatest(1, {} / count(*) OVER ()), \
                 greatest(1, places_of_merchant / count(*) OVER (PARTITION BY merchant_id))) AS share FROM ( \
                 SELECT * FROM ( \
                     SELECT *, row_number() OVER (PARTITION BY is_failing ORDER BY random()) AS turn, \
                         row_number() OVER (PARTITION BY merchant_id ORDER BY random()) AS turn_of_merchant \
                     FROM ready WHERE places > 0) AS turns \
                 WHERE (NOT is_failing OR turn <= {}) AND turn_of_merchant <= places_of_merchant \
                 ORDER BY turn LIMIT {}) AS first), ",
            "due AS MATERIALIZED ( \
             SELECT d.place FROM chosen c CROSS JOIN LATERAL ( \
                 SELECT d.ctid AS place FROM webhook_deliveries d \
                 WHERE d.state = 'pending' AND d.merchant_id = c.merchant_id AND d.endpoint_id = c.id \
                     AND d.due_at <= statement_timestamp() AND d.claimed_until <= statement_timestamp() \
                 ORDER BY d.due_at LIMIT c.share FOR UPDATE SKIP LOCKED) AS d), ",
            "claimed AS ( \
             UPDATE webhook_deliveries d SET attempt_count = d.attempt_count + 1, \
                 claimed_until = clock_timestamp() + make_interval(secs => {}) \
             FROM due WHERE d.ctid = due.place \
             RETURNING d.merchant_id, d.id, d.endpoint_id, d.event_id, d.attempt_count, d.created_at) ",
            "SELECT c.merchant_id, c.id, c.endpoint_id, c.attempt_count, \
             e.url, e.secret_version, e.secret_key_version, e.previous_key_version, e.is_failing, \
             c.event_id, event.type, event.created_at, event.data, event.traceparent, event.tracestate, clock_timestamp(), \
             greatest(c.created_at, e.enabled_at) \
         FROM claimed c JOIN chosen e ON e.merchant_id = c.merchant_id AND e.id = c.endpoint_id \
         CROSS JOIN LATERAL ( \
             SELECT type, created_at, data, traceparent, tracestate FROM events \
             WHERE merchant_id = c.merchant_id AND id = c.event_id LIMIT 1) AS event"
        )
    };
}

/// Claims due deliveries for `lease`, as many as there is room for, to all endpoints or to some. The waiting
/// endpoints share the places evenly. If there are more endpoints than places, chance decides, so that none
/// is forgotten. Leaves out endpoints whose secrets derive from other master keys than `keys`: while the master
/// key is being replaced, some instances may not have the new one yet.
///
/// Locks the claimed deliveries, and skips those that others have locked. If the answer to a claim's commit
/// is lost, its deliveries are due again after the lease.
pub(super) fn claim(
    conn: &mut PgConnection,
    among: EndpointFilter,
    room: &Capacity,
    keys: &[MasterKeyVersion],
    lease: Duration,
) -> Result<Vec<ClaimedDelivery>, Error> {
    if shape::is_distributed() {
        return by_merchant::claim(conn, among, room, keys, lease);
    }
    let (in_flight, counts): (Vec<_>, Vec<_>) = room.in_flight.iter().copied().unzip();
    let (merchants, endpoints): (Vec<_>, Vec<_>) = in_flight.into_iter().unzip();
    let count = |places: usize| i64::try_from(places).unwrap_or(i64::MAX);
    let claim = match among {
        EndpointFilter::All => statement::<ClaimedSql>(claim!(with_waiting)),
        EndpointFilter::These(these) => {
            let (merchants, endpoints): (Vec<_>, Vec<_>) = these.into_iter().unzip();
            statement(claim!(with_named))
                .bind::<Array<SqlUuid>, _>(merchants)
                .bind::<Array<SqlUuid>, _>(endpoints)
        }
    };
    let rows = claim
        .bind::<Array<SqlUuid>, _>(merchants)
        .bind::<Array<SqlUuid>, _>(endpoints)
        .bind::<Array<Integer>, _>(counts)
        .bind::<Integer, _>(i32::try_from(room.places_per_endpoint).unwrap_or(i32::MAX))
        .bind::<Integer, _>(i32::try_from(room.places_per_merchant).unwrap_or(i32::MAX))
        .bind::<Array<Integer>, _>(keys.iter().map(|key| key.0).collect::<Vec<_>>())
        .bind::<BigInt, _>(count(room.places))
        .bind::<BigInt, _>(count(room.places_for_failing))
        .bind::<BigInt, _>(count(room.places))
        .bind::<Double, _>(lease.as_secs_f64())
        .load::<ClaimedRow>(conn)?;
    Ok(rows.into_iter().map(claimed).collect())
}

/// Names the columns of a claim.
fn claimed((delivery, endpoint, event): ClaimedRow) -> ClaimedDelivery {
    let (merchant, id, endpoint_id, number) = delivery;
    let (url, secret_version, key, previous_key, failing) = endpoint;
    let (event, kind, event_created_at, data, parent, state, claimed_at, tried_since) = event;
    let trace = TraceContext::stored(parent.as_deref(), state.as_deref());
    ClaimedDelivery {
        merchant,
        id,
        endpoint: endpoint_id,
        number,
        url,
        secret_version,
        secret_key: MasterKeyVersion(key),
        previous_secret_key: previous_key.map(MasterKeyVersion),
        endpoint_is_failing: failing,
        event,
        kind,
        event_created_at,
        data,
        trace: trace.map_or_else(TraceContext::begin, |event| event.child()),
        claimed_at,
        tried_since,
    }
}

/// Outcome of an attempt.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) merchant: MerchantId,
    pub(super) id: DeliveryId,
    /// Number of the attempt.
    pub(super) number: i32,
    /// Time since which the delivery has been attempted.
    pub(super) tried_since: DateTime<Utc>,
    pub(super) has_succeeded: bool,
    /// Pause before the next attempt.
    pub(super) pause: Duration,
    /// Time for which the receiver wants to be left alone.
    pub(super) retry_after: Option<Duration>,
    /// Record of the attempt, an element of `attempts`.
    pub(super) attempt: Value,
}

/// The effect of a stored outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AttemptEffect {
    pub(super) state: State,
    /// Whether the endpoint has failed for so long that it must be disabled.
    pub(super) endpoint_is_given_up: bool,
}

/// State of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Another attempt will follow.
    Pending,
    /// The message has arrived.
    Succeeded,
    /// The service has given it up.
    Failed,
}

impl State {
    /// All states.
    pub const ALL: [Self; 3] = [Self::Pending, Self::Succeeded, Self::Failed];

    /// The state with a stored name.
    fn stored(name: &str) -> Result<Self, Failure> {
        let known = Self::ALL.into_iter().find(|known| known.as_str() == name);
        known.ok_or_else(|| Failure::internal(format!("a delivery can't be {name}")))
    }

    /// Name in the database and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }
}

/// Stores outcomes, in one statement. Another attempt follows a failed one, unless the delivery has been
/// attempted for longer than `give_up_after`. Returns `None` for outcomes that the fence refuses, or that are
/// stored already.
///
/// Locks the deliveries, and then, by id, the endpoints that change: those that begin to fail or want to be left alone,
/// and those that accept a message for the first time or again.
///
/// The statement recognizes a pending delivery by `completed_at`. For `state`, the planner would read the
/// index of all pending deliveries, since its statistics, taken while few were pending, make that index look
/// the smallest.
pub(super) fn note(
    conn: &mut PgConnection,
    outcomes: &[Outcome],
    give_up_after: Duration,
) -> Result<Vec<Option<AttemptEffect>>, Failure> {
    if shape::is_distributed() {
        return by_merchant::note(conn, outcomes, give_up_after);
    }
    let give_up_after_s = give_up_after.as_secs_f64();
    let rows = statement::<(BigInt, Text, Bool)>(
        "WITH outcome AS MATERIALIZED ( \
             SELECT *, statement_timestamp() - make_interval(secs => {}) AS too_old \
             FROM unnest({}, {}, {}, {}, {}, {}, {}, {}) WITH ORDINALITY \
                 AS o (merchant_id, id, number, tried_since, has_succeeded, pause_s, retry_after_s, attempt, position)), \
         noted AS ( \
             UPDATE webhook_deliveries d SET \
                 state = CASE WHEN o.has_succeeded THEN 'succeeded' WHEN o.tried_since < o.too_old THEN 'failed' \
                              ELSE 'pending' END, \
                 completed_at = CASE WHEN o.has_succeeded OR o.tried_since < o.too_old THEN clock_timestamp() END, \
                 due_at = CASE WHEN o.has_succeeded THEN d.due_at \
                               ELSE clock_timestamp() + make_interval(secs => o.pause_s) END, \
                 claimed_until = '-infinity', attempts = d.attempts || o.attempt \
             FROM outcome o \
             WHERE d.merchant_id = o.merchant_id AND d.id = o.id AND d.attempt_count = o.number \
                 AND d.completed_at IS NULL AND d.claimed_until > '-infinity' \
             RETURNING o.position, o.too_old, o.retry_after_s, d.merchant_id, d.endpoint_id, d.state), \
         seen AS MATERIALIZED ( \
             SELECT merchant_id, endpoint_id, bool_or(state = 'succeeded') AS takes_messages, \
                 max(retry_after_s) AS retry_after_s \
             FROM noted GROUP BY merchant_id, endpoint_id), \
         changed AS MATERIALIZED ( \
             SELECT e.merchant_id, e.id, s.takes_messages, s.retry_after_s \
             FROM seen s JOIN webhook_endpoints e ON e.merchant_id = s.merchant_id AND e.id = s.endpoint_id \
             WHERE (e.failing_since IS NULL) <> s.takes_messages \
                 OR s.takes_messages AND e.first_accepted_at IS NULL \
                 OR NOT s.takes_messages AND s.retry_after_s IS NOT NULL \
             ORDER BY e.merchant_id, e.id FOR NO KEY UPDATE OF e), \
         marked AS ( \
             UPDATE webhook_endpoints e \
             SET failing_since = CASE WHEN NOT c.takes_messages THEN coalesce(e.failing_since, clock_timestamp()) END, \
                 first_accepted_at = coalesce(e.first_accepted_at, CASE WHEN c.takes_messages THEN clock_timestamp() END), \
                 paused_until = CASE WHEN NOT c.takes_messages THEN \
                     greatest(e.paused_until, clock_timestamp() + make_interval(secs => c.retry_after_s)) END \
             FROM changed c WHERE e.merchant_id = c.merchant_id AND e.id = c.id) \
         SELECT n.position, n.state, \
             NOT s.takes_messages AND e.status = 'enabled' AND coalesce(e.failing_since < n.too_old, false) \
         FROM noted n \
         JOIN seen s ON s.merchant_id = n.merchant_id AND s.endpoint_id = n.endpoint_id \
         JOIN webhook_endpoints e ON e.merchant_id = n.merchant_id AND e.id = n.endpoint_id",
    )
    .bind::<Double, _>(give_up_after_s)
    .bind::<Array<SqlUuid>, _>(outcomes.iter().map(|outcome| outcome.merchant).collect::<Vec<_>>())
    .bind::<Array<SqlUuid>, _>(outcomes.iter().map(|outcome| outcome.id).collect::<Vec<_>>())
    .bind::<Array<Integer>, _>(outcomes.iter().map(|outcome| outcome.number).collect::<Vec<_>>())
    .bind::<Array<Timestamptz>, _>(outcomes.iter().map(|outcome| outcome.tried_since).collect::<Vec<_>>())
    .bind::<Array<Bool>, _>(outcomes.iter().map(|outcome| outcome.has_succeeded).collect::<Vec<_>>())
    .bind::<Array<Double>, _>(outcomes.iter().map(|outcome| outcome.pause.as_secs_f64()).collect::<Vec<_>>())
    .bind::<Array<Nullable<Double>>, _>(
        outcomes
            .iter()
            .map(|outcome| outcome.retry_after.map(|pause| pause.as_secs_f64()))
            .collect::<Vec<_>>(),
    )
    .bind::<Array<Jsonb>, _>(outcomes.iter().map(|outcome| &outcome.attempt).collect::<Vec<_>>())
    .load::<(i64, String, bool)>(conn)?;
    let mut noted = vec![None; outcomes.len()];
    for (position, state, endpoint_is_given_up) in rows {
        let state = State::stored(&state)?;
        let slot = usize::try_from(position - 1).ok().and_then(|index| noted.get_mut(index));
        *slot.ok_or_else(|| Failure::internal("an outcome that nobody asked for"))? =
            Some(AttemptEffect { state, endpoint_is_given_up });
    }
    Ok(noted)
}

/// Disables an endpoint that has failed for `give_up_after` (zero: that fails), and records the event. Must run in a
/// transaction. Returns whether it did: another instance may have been faster, or the endpoint may have
/// accepted a message meanwhile.
///
/// Pending deliveries to the endpoint stay pending, and go on if it's enabled again. Locks the endpoint.
pub(super) fn disable(
    conn: &mut PgConnection,
    (merchant, endpoint): EndpointKey,
    give_up_after: Duration,
) -> Result<bool, Error> {
    let disabled = statement::<()>(
        "UPDATE webhook_endpoints SET status = 'disabled', disabled_at = statement_timestamp() \
         WHERE merchant_id = {} AND id = {} AND status = 'enabled' \
             AND failing_since <= statement_timestamp() - make_interval(secs => {})",
    )
    .bind::<SqlUuid, _>(merchant)
    .bind::<SqlUuid, _>(endpoint)
    .bind::<Double, _>(give_up_after.as_secs_f64())
    .execute(conn)?;
    if disabled == 0 {
        return Ok(false);
    }
    let object = EndpointRow::find(conn, merchant, endpoint)?.into_endpoint();
    events::record(conn, merchant, EventType::WebhookEndpointDisabled, endpoint.0, &object)?;
    Ok(true)
}

/// Finds endpoints that have failed for `give_up_after` and are still enabled, the longest first, up to
/// `limit` of them. The sender of their last attempt has died since, or nothing is sent to them any more.
pub(super) fn failed_for_too_long(
    conn: &mut PgConnection,
    give_up_after: Duration,
    limit: u32,
) -> Result<Vec<EndpointKey>, Error> {
    Ok(statement::<(SqlUuid, SqlUuid)>(
        "/* of all merchants */ SELECT merchant_id, id FROM webhook_endpoints \
         WHERE status = 'enabled' AND failing_since < statement_timestamp() - make_interval(secs => {}) \
         ORDER BY failing_since LIMIT {}",
    )
    .bind::<Double, _>(give_up_after.as_secs_f64())
    .bind::<BigInt, _>(i64::from(limit))
    .load(conn)?)
}

/// Gives up deliveries to deleted endpoints, up to `batch` of them. Otherwise each search would have to walk
/// over those endpoints. Returns their number.
///
/// Locks the deliveries, and skips those that others have locked or are sending.
pub(super) fn give_up_deleted(conn: &mut PgConnection, batch: u32) -> Result<usize, Error> {
    if shape::is_distributed() {
        return by_merchant::give_up_deleted(conn, batch);
    }
    Ok(statement::<()>(concat!(
        with_waiting!(),
        ", abandoned AS MATERIALIZED ( \
             SELECT d.place FROM waiting w \
             CROSS JOIN LATERAL ( \
                 SELECT status FROM webhook_endpoints \
                 WHERE merchant_id = w.merchant_id AND id = w.endpoint_id LIMIT 1) AS e \
             CROSS JOIN LATERAL ( \
                 SELECT d.ctid AS place FROM webhook_deliveries d \
                 WHERE e.status = 'deleted' AND d.state = 'pending' AND d.merchant_id = w.merchant_id \
                     AND d.endpoint_id = w.endpoint_id AND d.claimed_until <= statement_timestamp() \
                 ORDER BY d.due_at LIMIT {} FOR UPDATE SKIP LOCKED) AS d \
             LIMIT {}) \
         UPDATE webhook_deliveries d SET state = 'failed', completed_at = clock_timestamp() \
         FROM abandoned WHERE d.ctid = abandoned.place"
    ))
    .bind::<BigInt, _>(i64::from(batch))
    .bind::<BigInt, _>(i64::from(batch))
    .execute(conn)?)
}

/// Age in seconds of the oldest unclaimed due delivery, among those to endpoints that accept messages; 0 if
/// there is none. Reads one or two index entries per waiting endpoint.
pub(super) fn oldest_due_age_s(conn: &mut PgConnection) -> Result<f64, Error> {
    if shape::is_distributed() {
        return by_merchant::oldest_due_age_s(conn);
    }
    Ok(statement::<Double>(concat!(
        with_waiting!(),
        "SELECT coalesce(extract(epoch FROM max(statement_timestamp() - due.due_at)), 0)::double precision \
         FROM waiting w \
         JOIN webhook_endpoints e ON e.merchant_id = w.merchant_id AND e.id = w.endpoint_id \
         CROSS JOIN LATERAL ( \
             SELECT d.due_at FROM webhook_deliveries d \
             WHERE d.state = 'pending' AND d.merchant_id = w.merchant_id AND d.endpoint_id = w.endpoint_id \
                 AND d.due_at <= statement_timestamp() AND d.claimed_until <= statement_timestamp() \
             ORDER BY d.due_at LIMIT 1) AS due \
         WHERE e.status = 'enabled' AND e.failing_since IS NULL"
    ))
    .get_result(conn)?)
}
