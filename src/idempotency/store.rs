//! The statements on `idempotency_keys`. Each is one round trip.
//!
//! All times come from the database's `clock_timestamp()`: clocks of different instances needn't agree,
//! and unlike `now()` it goes on inside a transaction.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{
    Binary, Bool, Double, Integer, Jsonb, Nullable, SmallInt, Text, Timestamptz, Uuid as SqlUuid,
};
use uuid::Uuid;

use crate::error::Error;
use crate::ids::MerchantId;
use crate::sql::statement;

use super::policy::Policy;
use super::reply::Reply;
use super::request::{Envelope, Resource};
use super::{Fingerprint, IdempotencyKey};

/// The right to execute a request, until its lease runs out.
#[derive(Clone, Debug)]
pub struct Claim {
    pub merchant: MerchantId,
    pub key: IdempotencyKey,
    /// The fence: whoever holds the value that the row holds may complete the request.
    pub token: Uuid,
    pub resource_id: Option<Uuid>,
    /// 1 for the first.
    pub attempt: u32,
    /// When the key was first claimed.
    pub created_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
}

/// A stored answer.
#[derive(Debug)]
pub struct Answer {
    pub reply: Reply,
    /// Id of the request that it was made for.
    pub request_id: String,
    pub expires_at: DateTime<Utc>,
}

/// What is there under a key.
#[derive(Debug)]
pub enum Found {
    Nothing,
    /// The key belongs to another request.
    Mismatch,
    Completed(Answer),
    /// Somebody holds a claim with a live lease.
    Running,
    /// The lease of the last claim has run out or was given up.
    Abandoned,
}

#[derive(Queryable)]
struct FoundRow {
    fingerprint_version: i16,
    fingerprint: Vec<u8>,
    request_id: String,
    abandoned: Option<bool>,
    response_status: Option<i16>,
    response_headers: Option<serde_json::Value>,
    response_body: Option<Vec<u8>>,
    expires_at: DateTime<Utc>,
}

type FoundSql = (
    SmallInt,
    Binary,
    Text,
    Nullable<Bool>,
    Nullable<SmallInt>,
    Nullable<Jsonb>,
    Nullable<Binary>,
    Timestamptz,
);

/// Looks the key up. No lock, no write: this is all that a replay does.
pub fn find(conn: &mut PgConnection, envelope: &Envelope) -> Result<Found, Error> {
    let row = statement::<FoundSql>(
        "SELECT fingerprint_version, fingerprint, request_id, lease_expires_at <= clock_timestamp(), \
                response_status, response_headers, response_body, expires_at \
         FROM idempotency_keys WHERE merchant_id = {} AND key = {}",
    )
    .bind::<SqlUuid, _>(envelope.merchant)
    .bind::<Text, _>(envelope.key.as_str())
    .get_result::<FoundRow>(conn)
    .optional()?;
    let Some(row) = row else {
        return Ok(Found::Nothing);
    };

    let stored = Fingerprint { version: row.fingerprint_version, sha256: row.fingerprint };
    let same = if stored.version == Fingerprint::CURRENT_VERSION {
        stored == envelope.fingerprint
    } else {
        Fingerprint::by_version(
            stored.version,
            &envelope.method,
            &envelope.path,
            &envelope.query,
            &envelope.body,
        )
        .is_some_and(|fingerprint| fingerprint == stored)
    };
    if !same {
        return Ok(Found::Mismatch);
    }
    match (row.response_status, row.response_headers, row.response_body) {
        (Some(status), Some(headers), Some(body)) => Ok(Found::Completed(Answer {
            reply: Reply {
                status: u16::try_from(status)
                    .ok()
                    .and_then(|status| status.try_into().ok())
                    .ok_or_else(|| Error::internal("a stored status is out of range"))?,
                headers: serde_json::from_value(headers).map_err(Error::internal)?,
                body,
            },
            request_id: row.request_id,
            expires_at: row.expires_at,
        })),
        _ if row.abandoned == Some(true) => Ok(Found::Abandoned),
        _ => Ok(Found::Running),
    }
}

/// Claims a key that nobody has used. `None` when somebody else has it, or is claiming it right now in
/// a transaction that hasn't ended: look again.
///
/// The primary key is the arbiter. The advisory lock only keeps a loser from *blocking* inside the
/// insert, with a connection in its hand, until the winner's transaction ends: it fails at once instead.
/// Both live until the end of the surrounding transaction.
pub fn claim(
    conn: &mut PgConnection,
    envelope: &Envelope,
    operation: &'static str,
    resource: Resource,
    policy: &Policy,
) -> Result<Option<Claim>, Error> {
    let token = Uuid::now_v7();
    let (resource_type, resource_id) = match resource {
        Resource::None => (None, None),
        Resource::New(kind) => (Some(kind), None),
        Resource::Existing(kind, id) => (Some(kind), Some(id)),
    };
    // A resource with a type and without an id is new.
    let row = statement::<(Nullable<SqlUuid>, Timestamptz, Timestamptz)>(
        "INSERT INTO idempotency_keys (merchant_id, key, state, operation, fingerprint_version, fingerprint, \
             request_id, request_method, request_path, request_query, request_body, \
             resource_type, resource_id, claim_token, lease_expires_at, attempts, recovery_point, \
             created_at, expires_at) \
         SELECT key.merchant_id, key.key, 'in_progress', {}, {}, {}, {}, {}, {}, {}, {}, resource.type, \
             CASE WHEN resource.type IS NOT NULL THEN coalesce(resource.id, uuid_v7(clock.now)) END, {}, \
             clock.now + make_interval(secs => {}), 1, 'started', \
             clock.now, clock.now + make_interval(secs => {}) \
         FROM (SELECT clock_timestamp() AS now) AS clock, \
              (SELECT {} AS type, {} AS id) AS resource, \
              (SELECT {} AS merchant_id, {} AS key) AS key \
         WHERE pg_try_advisory_xact_lock(hashtextextended(key.key, hashtextextended(key.merchant_id::text, 0))) \
         ON CONFLICT DO NOTHING \
         RETURNING resource_id, created_at, expires_at",
    )
    .bind::<Text, _>(operation)
    .bind::<SmallInt, _>(envelope.fingerprint.version)
    .bind::<Binary, _>(&envelope.fingerprint.sha256)
    .bind::<Text, _>(&envelope.request_id)
    .bind::<Text, _>(&envelope.method)
    .bind::<Text, _>(&envelope.path)
    .bind::<Text, _>(&envelope.query)
    .bind::<Binary, _>(&envelope.body)
    .bind::<SqlUuid, _>(token)
    .bind::<Double, _>(policy.lease.as_secs_f64())
    .bind::<Double, _>(policy.ttl.as_secs_f64())
    .bind::<Nullable<Text>, _>(resource_type)
    .bind::<Nullable<SqlUuid>, _>(resource_id)
    .bind::<SqlUuid, _>(envelope.merchant)
    .bind::<Text, _>(envelope.key.as_str())
    .get_result::<(Option<Uuid>, DateTime<Utc>, DateTime<Utc>)>(conn)
    .optional()?;
    Ok(row.map(|(resource_id, created_at, expires_at)| Claim {
        merchant: envelope.merchant,
        key: envelope.key.clone(),
        token,
        resource_id,
        attempt: 1,
        created_at,
        expires_at,
    }))
}

/// Takes over a claim whose lease has run out: `None` when another attempt was faster, or the row is
/// locked because it's being completed at this moment. Later attempts of the slow owner find another
/// token in the row and commit nothing.
pub fn take_over(
    conn: &mut PgConnection,
    envelope: &Envelope,
    policy: &Policy,
) -> Result<Option<Claim>, Error> {
    let token = Uuid::now_v7();
    let row = statement::<(Nullable<SqlUuid>, Integer, Timestamptz, Timestamptz)>(
        "WITH abandoned AS MATERIALIZED ( \
             SELECT merchant_id, key FROM idempotency_keys \
             WHERE merchant_id = {} AND key = {} AND lease_expires_at <= clock_timestamp() \
             FOR UPDATE SKIP LOCKED) \
         UPDATE idempotency_keys k SET claim_token = {}, request_id = {}, attempts = k.attempts + 1, \
             lease_expires_at = clock_timestamp() + make_interval(secs => {}) \
         FROM abandoned a WHERE k.merchant_id = a.merchant_id AND k.key = a.key \
         RETURNING k.resource_id, k.attempts, k.created_at, k.expires_at",
    )
    .bind::<SqlUuid, _>(envelope.merchant)
    .bind::<Text, _>(envelope.key.as_str())
    .bind::<SqlUuid, _>(token)
    .bind::<Text, _>(&envelope.request_id)
    .bind::<Double, _>(policy.lease.as_secs_f64())
    .get_result::<(Option<Uuid>, i32, DateTime<Utc>, DateTime<Utc>)>(conn)
    .optional()?;
    Ok(row.map(|(resource_id, attempts, created_at, expires_at)| Claim {
        merchant: envelope.merchant,
        key: envelope.key.clone(),
        token,
        resource_id,
        attempt: u32::try_from(attempts).unwrap_or(u32::MAX),
        created_at,
        expires_at,
    }))
}

/// Locks the key's row until the transaction ends, and checks that the claim still owns it: the fence.
/// Returns the database's time. Errors with [`Error::ClaimLost`] when another attempt has taken over or
/// completed.
pub fn lock(conn: &mut PgConnection, claim: &Claim) -> Result<DateTime<Utc>, Error> {
    let owner = statement::<(Nullable<SqlUuid>, Timestamptz)>(
        "SELECT claim_token, clock_timestamp() FROM idempotency_keys \
         WHERE merchant_id = {} AND key = {} FOR UPDATE",
    )
    .bind::<SqlUuid, _>(claim.merchant)
    .bind::<Text, _>(claim.key.as_str())
    .get_result::<(Option<Uuid>, DateTime<Utc>)>(conn)
    .optional()?;
    match owner {
        Some((Some(token), now)) if token == claim.token => Ok(now),
        _ => Err(Error::ClaimLost),
    }
}

/// Stores the answer. Errors with [`Error::ClaimLost`] when the claim no longer owns the row.
pub fn complete(conn: &mut PgConnection, claim: &Claim, reply: &Reply) -> Result<(), Error> {
    let status = i16::try_from(reply.status.as_u16()).map_err(Error::internal)?;
    let completed = statement::<()>(
        "UPDATE idempotency_keys SET state = 'completed', recovery_point = 'finished', \
             claim_token = NULL, lease_expires_at = NULL, \
             response_status = {}, response_headers = {}, response_body = {}, \
             completed_at = clock_timestamp() \
         WHERE merchant_id = {} AND key = {} AND claim_token = {}",
    )
    .bind::<SmallInt, _>(status)
    .bind::<Jsonb, _>(serde_json::to_value(&reply.headers).map_err(Error::internal)?)
    .bind::<Binary, _>(&reply.body)
    .bind::<SqlUuid, _>(claim.merchant)
    .bind::<Text, _>(claim.key.as_str())
    .bind::<SqlUuid, _>(claim.token)
    .execute(conn)?;
    if completed == 1 { Ok(()) } else { Err(Error::ClaimLost) }
}

/// Gives up the lease of an attempt that ended without an outcome, so that the next one needn't wait for
/// it to run out. Does nothing if another attempt has taken over already.
pub fn release(conn: &mut PgConnection, claim: &Claim) -> Result<(), Error> {
    statement::<()>(
        "UPDATE idempotency_keys SET lease_expires_at = clock_timestamp() \
         WHERE merchant_id = {} AND key = {} AND claim_token = {}",
    )
    .bind::<SqlUuid, _>(claim.merchant)
    .bind::<Text, _>(claim.key.as_str())
    .bind::<SqlUuid, _>(claim.token)
    .execute(conn)?;
    Ok(())
}
