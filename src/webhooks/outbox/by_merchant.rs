//! The outbox of a distributed database.
//!
//! Endpoints with work are found on all nodes, without a lock: each node looks at its enabled endpoints, and for each at the first entry of
//! the index of what waits (a minimum, since Postgres would join an EXISTS with all that waits). Their deliveries are then
//! claimed endpoint by endpoint, each on its merchant's node. All times are the coordinator's.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::prelude::*;
use diesel::sql_types::{
    Array, BigInt, Bool, Double, Integer, Interval, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid,
};

use super::{
    AttemptEffect, Capacity, ClaimedDelivery, ClaimedRow, ClaimedSql, EndpointFilter, EndpointKey, Outcome,
    State, claimed,
};
use crate::base::derived_secrets::MasterKeyVersion;
use crate::base::ids::{MerchantId, WebhookEndpointId};
use crate::error::{Error, Failure};
use crate::storage::clock;
use crate::storage::sql::statement;

/// Maximum number of endpoints that a search looks at. Chance decides which, if there are more.
const ENDPOINTS_MAX: i64 = 1_000;

/// An endpoint with due deliveries.
#[derive(Clone, Debug, Queryable)]
struct Ready {
    merchant: MerchantId,
    id: WebhookEndpointId,
    is_failing: bool,
    has_accepted: bool,
}

impl Ready {
    fn key(&self) -> EndpointKey {
        (self.merchant, self.id)
    }
}

pub(super) fn claim(
    conn: &mut PgConnection,
    among: EndpointFilter,
    room: &Capacity,
    keys: &[MasterKeyVersion],
    lease: Duration,
) -> Result<Vec<ClaimedDelivery>, Error> {
    let ready = ready(conn, among, keys)?;
    let mut deliveries = Vec::new();
    if ready.is_empty() {
        return Ok(deliveries);
    }
    let now = clock::now(conn)?;
    for (endpoint, places) in share(&ready, room) {
        deliveries.extend(claim_of(conn, endpoint.key(), places, keys, (now, now + lease))?);
    }
    Ok(deliveries)
}

/// In an order that chance decides.
fn ready(
    conn: &mut PgConnection,
    among: EndpointFilter,
    keys: &[MasterKeyVersion],
) -> Result<Vec<Ready>, Error> {
    let these = match among {
        EndpointFilter::All => None,
        EndpointFilter::These(these) => {
            Some(these.into_iter().map(|(_, endpoint)| endpoint).collect::<Vec<_>>())
        }
    };
    Ok(statement::<(SqlUuid, SqlUuid, Bool, Bool)>(
        "/* of all merchants */ SELECT e.merchant_id, e.id, e.failing_since IS NOT NULL, e.first_accepted_at IS NOT NULL \
         FROM (SELECT {} AS now) AS clock, webhook_endpoints e \
         WHERE e.status = 'enabled' AND coalesce(e.paused_until <= clock.now, true) \
             AND e.secret_key_version = ANY ({}) \
             AND NOT coalesce(e.previous_secret_expires_at > clock.now \
                 AND e.previous_secret_key_version <> ALL ({}), false) \
             AND ({} OR e.id = ANY ({})) \
             AND (SELECT min(d.due_at) FROM webhook_deliveries d \
                  WHERE d.merchant_id = e.merchant_id AND d.endpoint_id = e.id AND d.state = 'pending' \
                      AND d.claimed_until <= clock.now) <= clock.now \
         ORDER BY md5(e.id::text || {}) LIMIT {}",
    )
    .bind::<Timestamptz, _>(clock::now(conn)?)
    .bind::<Array<Integer>, _>(numbers(keys))
    .bind::<Array<Integer>, _>(numbers(keys))
    .bind::<Bool, _>(these.is_none())
    .bind::<Array<SqlUuid>, _>(these.unwrap_or_default())
    .bind::<Text, _>(rand::random::<u32>().to_string())
    .bind::<BigInt, _>(ENDPOINTS_MAX)
    .load(conn)?)
}

fn numbers(keys: &[MasterKeyVersion]) -> Vec<i32> {
    keys.iter().map(|key| key.0).collect()
}

/// Shares the free places among endpoints, those first that come first.
fn share<'a>(ready: &'a [Ready], room: &Capacity) -> Vec<(&'a Ready, usize)> {
    let in_flight: HashMap<EndpointKey, usize> =
        room.in_flight.iter().map(|(key, count)| (*key, usize::try_from(*count).unwrap_or(0))).collect();
    let mut merchants: HashMap<MerchantId, usize> = HashMap::new();
    for ((merchant, _), count) in &in_flight {
        *merchants.entry(*merchant).or_default() += count;
    }
    let per_merchant = usize::try_from(room.places_per_merchant).unwrap_or(usize::MAX);
    let per_endpoint = usize::try_from(room.places_per_endpoint).unwrap_or(usize::MAX);
    let places = |endpoint: &Ready| {
        let most = if endpoint.is_failing || !endpoint.has_accepted { 1 } else { per_endpoint };
        most.saturating_sub(in_flight.get(&endpoint.key()).copied().unwrap_or(0))
    };
    let free_of = |merchant| per_merchant.saturating_sub(merchants.get(&merchant).copied().unwrap_or(0));
    let (mut failing, mut taken) = (0, HashMap::<MerchantId, usize>::new());
    let mut chosen: Vec<&Ready> = Vec::new();
    for endpoint in ready {
        let of_merchant = taken.entry(endpoint.merchant).or_default();
        let is_refused = places(endpoint) == 0
            || *of_merchant >= free_of(endpoint.merchant)
            || endpoint.is_failing && failing >= room.places_for_failing
            || chosen.len() >= room.places;
        if !is_refused {
            *of_merchant += 1;
            failing += usize::from(endpoint.is_failing);
            chosen.push(endpoint);
        }
    }
    let count = chosen.len().max(1);
    let mut left = room.places;
    let shares = chosen.into_iter().map(|endpoint| {
        let of_merchant = free_of(endpoint.merchant) / taken[&endpoint.merchant].max(1);
        let share = places(endpoint).min((room.places / count).max(1)).min(of_merchant.max(1)).min(left);
        left -= share;
        (endpoint, share)
    });
    shares.filter(|(_, share)| *share > 0).collect()
}

fn claim_of(
    conn: &mut PgConnection,
    (merchant, endpoint): EndpointKey,
    places: usize,
    keys: &[MasterKeyVersion],
    (now, claimed_until): (DateTime<Utc>, DateTime<Utc>),
) -> Result<Vec<ClaimedDelivery>, Error> {
    let rows = statement::<ClaimedSql>(
        "WITH due AS MATERIALIZED ( \
             SELECT id FROM webhook_deliveries \
             WHERE merchant_id = {} AND endpoint_id = {} AND state = 'pending' AND due_at <= {} AND claimed_until <= {} \
                 AND EXISTS (SELECT FROM events v WHERE v.merchant_id = webhook_deliveries.merchant_id AND v.id = event_id) \
             ORDER BY due_at LIMIT {} FOR UPDATE SKIP LOCKED) \
         UPDATE webhook_deliveries d SET attempt_count = d.attempt_count + 1, claimed_until = {} \
         FROM due, webhook_endpoints e, events event \
         WHERE d.merchant_id = {} AND d.id = due.id AND e.merchant_id = {} AND e.id = d.endpoint_id \
             AND e.status = 'enabled' AND e.secret_key_version = ANY ({}) \
             AND event.merchant_id = {} AND event.id = d.event_id \
         RETURNING d.merchant_id, d.id, d.endpoint_id, d.attempt_count, \
             e.url, e.secret_version, e.secret_key_version, \
             CASE WHEN e.previous_secret_expires_at > {} THEN e.previous_secret_key_version END, e.failing_since IS NOT NULL, \
             d.event_id, event.type, event.created_at, event.data, event.traceparent, event.tracestate, {}, \
             greatest(d.created_at, e.enabled_at)",
    )
    .bind::<SqlUuid, _>(merchant)
    .bind::<SqlUuid, _>(endpoint)
    .bind::<Timestamptz, _>(now)
    .bind::<Timestamptz, _>(now)
    .bind::<BigInt, _>(i64::try_from(places).unwrap_or(i64::MAX))
    .bind::<Timestamptz, _>(claimed_until)
    .bind::<SqlUuid, _>(merchant)
    .bind::<SqlUuid, _>(merchant)
    .bind::<Array<Integer>, _>(numbers(keys))
    .bind::<SqlUuid, _>(merchant)
    .bind::<Timestamptz, _>(now)
    .bind::<Timestamptz, _>(now)
    .load::<ClaimedRow>(conn)?;
    Ok(rows.into_iter().map(claimed).collect())
}

/// Failures come before successes: of several outcomes of one endpoint, one success says that it takes messages.
pub(super) fn note(
    conn: &mut PgConnection,
    outcomes: &[Outcome],
    give_up_after: Duration,
) -> Result<Vec<Option<AttemptEffect>>, Failure> {
    let now = clock::now(conn)?;
    let too_old = now - TimeDelta::from_std(give_up_after).unwrap_or(TimeDelta::MAX);
    let mut effects = vec![None; outcomes.len()];
    let mut order: Vec<usize> = (0..outcomes.len()).collect();
    order.sort_by_key(|position| outcomes[*position].has_succeeded);
    for position in order {
        effects[position] = note_one(conn, &outcomes[position], now, too_old)?;
    }
    Ok(effects)
}

fn note_one(
    conn: &mut PgConnection,
    outcome: &Outcome,
    now: DateTime<Utc>,
    too_old: DateTime<Utc>,
) -> Result<Option<AttemptEffect>, Failure> {
    let interval = |duration: Duration| {
        diesel::data_types::PgInterval::from_microseconds(
            i64::try_from(duration.as_micros()).unwrap_or(i64::MAX),
        )
    };
    let (state, endpoint_is_given_up) = statement::<(Nullable<Text>, Nullable<Bool>)>(
        "SELECT state, endpoint_is_given_up FROM delivery_note_on_shard({}, {}, {}, {}, {}, {}, {}, {}, {}, {})",
    )
    .bind::<SqlUuid, _>(outcome.merchant)
    .bind::<SqlUuid, _>(outcome.id)
    .bind::<Integer, _>(outcome.number)
    .bind::<Timestamptz, _>(outcome.tried_since)
    .bind::<Bool, _>(outcome.has_succeeded)
    .bind::<Interval, _>(interval(outcome.pause))
    .bind::<Nullable<Interval>, _>(outcome.retry_after.map(interval))
    .bind::<Jsonb, _>(&outcome.attempt)
    .bind::<Timestamptz, _>(now)
    .bind::<Timestamptz, _>(too_old)
    .get_result::<(Option<String>, Option<bool>)>(conn)?;
    let Some(state) = state else { return Ok(None) };
    Ok(Some(AttemptEffect {
        state: State::stored(&state)?,
        endpoint_is_given_up: endpoint_is_given_up.unwrap_or_default(),
    }))
}

pub(super) fn give_up_deleted(conn: &mut PgConnection, batch: u32) -> Result<usize, Error> {
    let endpoints = statement::<(SqlUuid, SqlUuid)>(
        "/* of all merchants */ SELECT e.merchant_id, e.id FROM webhook_endpoints e \
         WHERE e.status = 'deleted' AND (SELECT min(d.due_at) FROM webhook_deliveries d \
             WHERE d.merchant_id = e.merchant_id AND d.endpoint_id = e.id AND d.state = 'pending' \
                 AND d.claimed_until <= {}) IS NOT NULL \
         LIMIT {}",
    )
    .bind::<Timestamptz, _>(clock::now(conn)?)
    .bind::<BigInt, _>(i64::from(batch))
    .load::<EndpointKey>(conn)?;
    let mut given_up = 0;
    for (merchant, endpoint) in endpoints {
        given_up += statement::<()>(
            "WITH abandoned AS MATERIALIZED ( \
                 SELECT id FROM webhook_deliveries \
                 WHERE merchant_id = {} AND endpoint_id = {} AND state = 'pending' \
                     AND claimed_until <= statement_timestamp() \
                 ORDER BY due_at LIMIT {} FOR UPDATE SKIP LOCKED) \
             UPDATE webhook_deliveries d SET state = 'failed', completed_at = statement_timestamp() \
             FROM abandoned WHERE d.merchant_id = {} AND d.id = abandoned.id",
        )
        .bind::<SqlUuid, _>(merchant)
        .bind::<SqlUuid, _>(endpoint)
        .bind::<BigInt, _>(i64::from(batch))
        .bind::<SqlUuid, _>(merchant)
        .execute(conn)?;
        if given_up >= usize::try_from(batch).unwrap_or(usize::MAX) {
            break;
        }
    }
    Ok(given_up)
}

pub(super) fn oldest_due_age_s(conn: &mut PgConnection) -> Result<f64, Error> {
    Ok(statement::<Double>(
        "/* of all merchants */ SELECT greatest(coalesce(max(waiting.age_s), 0), 0)::double precision FROM ( \
             SELECT (SELECT extract(epoch FROM clock.now - min(d.due_at)) FROM webhook_deliveries d \
                 WHERE d.merchant_id = e.merchant_id AND d.endpoint_id = e.id AND d.state = 'pending' \
                     AND d.claimed_until <= clock.now) AS age_s \
             FROM (SELECT {} AS now) AS clock, webhook_endpoints e WHERE e.status = 'enabled' AND e.failing_since IS NULL) AS waiting",
    )
    .bind::<Timestamptz, _>(clock::now(conn)?)
    .get_result(conn)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_shared_evenly_and_within_limits() {
        let merchant = |number: u128| MerchantId(uuid::Uuid::from_u128(number));
        let endpoint = |of, number: u128, is_failing| Ready {
            merchant: merchant(of),
            id: WebhookEndpointId(uuid::Uuid::from_u128(number)),
            is_failing,
            has_accepted: true,
        };
        let room = Capacity {
            places: 10,
            places_for_failing: 1,
            places_per_endpoint: 4,
            places_per_merchant: 5,
            in_flight: vec![(endpoint(1, 1, false).key(), 3)],
        };
        let ready = [
            endpoint(1, 1, false),
            endpoint(1, 2, false),
            endpoint(2, 3, true),
            endpoint(2, 4, true),
            endpoint(3, 5, false),
        ];
        let shares: Vec<_> = share(&ready, &room)
            .into_iter()
            .map(|(endpoint, places)| (endpoint.id.0.as_u128(), places))
            .collect();
        // Of merchant 1, two are left for two endpoints; of two failing endpoints, one has its turn.
        assert_eq!(shares, [(1, 1), (2, 1), (3, 1), (5, 2)]);
        let full = Capacity { places: 0, ..room };
        assert!(share(&ready, &full).is_empty());
    }
}
