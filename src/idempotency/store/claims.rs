//! Claims of keys, and their leases.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use diesel::prelude::*;
use diesel::sql_types::{
    Array, Binary, Bool, Double, Integer, Jsonb, Nullable, SmallInt, Text, Timestamptz, Uuid as SqlUuid,
};
use uuid::Uuid;

use crate::base::ids::MerchantId;
use crate::base::trace::TraceContext;
use crate::error::failure::Failure;
use crate::idempotency::descriptor::Resource;
use crate::idempotency::envelope::Envelope;
use crate::idempotency::fingerprint::Fingerprint;
use crate::idempotency::key::IdempotencyKey;
use crate::idempotency::policy::{OnExpired, Policy};
use crate::storage::clock;
use crate::storage::shape;
use crate::storage::sql::{Statement, statement};

use super::rows::{column, try_lock_key};

/// The right to execute a request, until its lease expires.
#[derive(Clone, Debug)]
pub struct Claim {
    pub merchant: MerchantId,
    pub key: IdempotencyKey,
    /// The fence: the claim with the row's token may complete the request.
    pub token: Uuid,
    pub resource_id: Option<Uuid>,
    /// Number of the attempt, from 1.
    pub attempt: u32,
    /// Number of the recovery worker's attempts, including this one.
    pub recoveries: u32,
    /// Generation of the key, if the processor's keys derive from it: see
    /// [`Context::derived_key`](crate::idempotency::Context::derived_key).
    pub generation: Option<i32>,
    /// The span of this attempt, in the trace of the first request with the key.
    pub trace: TraceContext,
    /// Time of the key's first claim.
    pub created_at: DateTime<Utc>,
    /// Time at which this attempt took the claim, by the database's clock and by ours.
    pub taken_at: (DateTime<Utc>, Instant),
}

impl Claim {
    /// Current time by the database's clock, without a query: the time of the claim plus the time since.
    pub fn now(&self) -> DateTime<Utc> {
        let (taken_at, then) = self.taken_at;
        // Rounded to the database's precision, so that it's the same everywhere.
        (taken_at + then.elapsed()).trunc_subsecs(6)
    }
}

/// A request that wants to claim its key.
pub struct Claimant {
    pub envelope: Arc<Envelope>,
    pub operation: &'static str,
    pub resource: Resource,
    pub policy: Arc<Policy>,
    /// Whether the processor may be called under this key again when the claim is lost.
    pub has_generation: bool,
}

/// Claims an unused key. `None` if another request has it, or is claiming it right now in an open
/// transaction: look again.
pub fn claim(
    conn: &mut PgConnection,
    claimant: &Claimant,
    lease: Duration,
) -> Result<Option<Claim>, Failure> {
    if shape::is_distributed() {
        return claim_apart(conn, claimant, lease);
    }
    let claimed = claim_all(conn, &[claimant], lease, "NULL")?.pop().flatten();
    Ok(claimed.map(|(claim, _)| claim))
}

/// Claims a key on its merchant's node, in the caller's transaction. The lock, the time and the id are the coordinator's, so that they
/// are the same for all who ask; the generation is found by a trigger.
fn claim_apart(
    conn: &mut PgConnection,
    claimant: &Claimant,
    lease: Duration,
) -> Result<Option<Claim>, Failure> {
    let Claimant { envelope, operation, resource, policy, has_generation } = claimant;
    let Some((now, new_id)) = lock_apart(conn, envelope)? else { return Ok(None) };
    let taken_at = Instant::now();
    let fingerprint = Fingerprint::of(policy.fingerprint.recipe(), &envelope.content);
    let (resource_type, resource_id) = match *resource {
        Resource::None => (None, None),
        Resource::New(kind) => (Some(kind), Some(new_id)),
        Resource::Existing(kind, id) => (Some(kind), Some(id)),
    };
    let token = Uuid::new_v4();
    let (lease_ends, lifetime) = (now + lease, TimeDelta::seconds(policy.ttl_seconds.into()));
    let generation = statement::<Nullable<Integer>>(
        "INSERT INTO idempotency_keys (merchant_id, key, state, operation, fingerprint_version, fingerprint, request_id, \
             request_method, request_path, request_query, request_body, resource_type, resource_id, claim_token, \
             lease_expires_at, recover_at, attempts, recovery_point, created_at, expires_at, tombstone_seconds, traceparent, \
             tracestate, generation) \
         VALUES ({}, {}, 'in_progress', {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, 1, 'started', {}, {}, {}, {}, {}, {}) \
         ON CONFLICT DO NOTHING RETURNING generation",
    )
    .bind::<SqlUuid, _>(envelope.merchant)
    .bind::<Text, _>(envelope.key.as_str())
    .bind::<Text, _>(*operation)
    .bind::<SmallInt, _>(fingerprint.version)
    .bind::<Binary, _>(fingerprint.sha256.as_slice())
    .bind::<Text, _>(&envelope.request_id)
    .bind::<Text, _>(&envelope.content.method)
    .bind::<Text, _>(&envelope.content.path)
    .bind::<Text, _>(&envelope.content.query)
    .bind::<Binary, _>(&envelope.content.body)
    .bind::<Nullable<Text>, _>(resource_type)
    .bind::<Nullable<SqlUuid>, _>(resource_id)
    .bind::<SqlUuid, _>(token)
    .bind::<Timestamptz, _>(lease_ends)
    .bind::<Timestamptz, _>(lease_ends)
    .bind::<Timestamptz, _>(now)
    .bind::<Timestamptz, _>(now + lifetime)
    .bind::<Integer, _>(i32::try_from(policy.tombstone_seconds).unwrap_or(i32::MAX))
    .bind::<Text, _>(envelope.trace.to_string())
    .bind::<Nullable<Text>, _>(envelope.trace.state())
    .bind::<Nullable<Integer>, _>(has_generation.then_some(GENERATION_UNKNOWN))
    .get_result::<Option<i32>>(conn)
    .optional()?;
    Ok(generation.map(|generation| Claim {
        merchant: envelope.merchant,
        key: envelope.key.clone(),
        token,
        resource_id,
        attempt: 1,
        recoveries: 0,
        generation,
        trace: envelope.trace.clone(),
        created_at: now,
        taken_at: (now, taken_at),
    }))
}

/// Takes a key's advisory lock on the coordinator, until the transaction ends. Returns the time, and an id of that time; `None` if
/// another request has the lock.
fn lock_apart(
    conn: &mut PgConnection,
    envelope: &Envelope,
) -> Result<Option<(DateTime<Utc>, Uuid)>, Failure> {
    let (is_ours, now, id) = statement::<(Bool, Timestamptz, SqlUuid)>(concat!(
        "SELECT ",
        try_lock_key!(),
        ", clock.now, uuid_v7(clock.now) \
         FROM (SELECT {} AS merchant_id, {} AS key) AS key, (SELECT clock_timestamp() AS now) AS clock"
    ))
    .bind::<SqlUuid, _>(envelope.merchant)
    .bind::<Text, _>(envelope.key.as_str())
    .get_result::<(bool, DateTime<Utc>, Uuid)>(conn)?;
    Ok(is_ours.then_some((now, id)))
}

/// Lets the trigger `idempotency_keys_next_generation` find the generation of a new row.
const GENERATION_UNKNOWN: i32 = -1;

/// A claim, and the data that was read with it.
pub type ClaimWithData = (Claim, Option<serde_json::Value>);

/// Runs [`claim`] for many requests whose callers have proven who they are, in one round trip. `select_sql` is an SQL
/// expression of type `jsonb` over the new row (`idempotency_keys`), whose value comes with each claim.
///
/// The primary key is the arbiter. The advisory locks only keep a loser from *blocking* inside the insert,
/// while it holds a connection, until the winner's transaction ends: it fails at once instead. All locks last
/// until the end of the surrounding transaction.
///
/// A key that was forgotten before gets the next generation, also if it's forgotten by the surrounding
/// transaction.
pub fn claim_all(
    conn: &mut PgConnection,
    claimants: &[&Claimant],
    lease: Duration,
    select_sql: &'static str,
) -> Result<Vec<Option<ClaimWithData>>, Failure> {
    insert_all(conn, claimants, lease, select_sql, statement("true"))
}

/// Like [`claim_all`] for one request, and checks the caller's proof with `proof_sql`: without a valid one, there is no claim.
pub fn prove_and_claim(
    conn: &mut PgConnection,
    claimant: &Claimant,
    lease: Duration,
    select_sql: &'static str,
    proof_sql: &'static str,
) -> Result<Option<ClaimWithData>, Failure> {
    let is_proven = statement(
        "(SELECT asked.key_sha256 IS NULL OR (SELECT NOT auth.is_revoked FROM ({}) AS auth) \
          FROM (SELECT key.merchant_id, key.key_sha256) AS asked)",
    );
    let is_proven = is_proven.fragment(statement::<()>(proof_sql));
    Ok(insert_all(conn, &[claimant], lease, select_sql, is_proven)?.pop().flatten())
}

/// Claims the keys for which `condition` holds, an SQL expression over `key`.
fn insert_all(
    conn: &mut PgConnection,
    claimants: &[&Claimant],
    lease: Duration,
    select_sql: &'static str,
    condition: Statement<'_, ()>,
) -> Result<Vec<Option<ClaimWithData>>, Failure> {
    let tokens = column(claimants, |_| Uuid::new_v4());
    let fingerprints = column(claimants, |claimant| {
        Fingerprint::of(claimant.policy.fingerprint.recipe(), &claimant.envelope.content)
    });
    let resources = column(claimants, |claimant| match claimant.resource {
        Resource::None => (None, None),
        Resource::New(kind) => (Some(kind), None),
        Resource::Existing(kind, id) => (Some(kind), Some(id)),
    });
    // A resource with a type and without an id is new.
    let rows = statement::<(SqlUuid, Nullable<SqlUuid>, Nullable<Integer>, Timestamptz, Nullable<Jsonb>)>(concat!(
        "INSERT INTO idempotency_keys (merchant_id, key, state, operation, fingerprint_version, fingerprint, \
             request_id, request_method, request_path, request_query, request_body, \
             resource_type, resource_id, claim_token, lease_expires_at, recover_at, attempts, recovery_point, \
             created_at, expires_at, tombstone_seconds, traceparent, tracestate, generation) \
         SELECT key.merchant_id, key.key, 'in_progress', key.operation, key.fingerprint_version, key.fingerprint, \
             key.request_id, key.method, key.path, key.query, key.body, key.resource_type, \
             CASE WHEN key.resource_type IS NOT NULL THEN coalesce(key.resource_id, uuid_v7(clock.now)) END, \
             key.token, clock.now + life.lease, clock.now + life.lease, 1, 'started', \
             clock.now, clock.now + make_interval(secs => key.ttl_seconds), key.tombstone_seconds, \
             key.traceparent, key.tracestate, \
             CASE WHEN key.has_generation THEN \
                 coalesce((SELECT f.generation + 1 FROM forgotten_idempotency_keys f \
                     WHERE f.merchant_id = key.merchant_id AND f.key_digest = idempotency_key_digest(key.key) LIMIT 1), \
                     0) END \
         FROM (SELECT clock_timestamp() AS now) AS clock, \
              (SELECT make_interval(secs => {}) AS lease) AS life, \
              unnest({}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}) AS key \
                  (merchant_id, key, operation, fingerprint_version, fingerprint, request_id, method, path, query, \
                  body, resource_type, resource_id, token, ttl_seconds, tombstone_seconds, traceparent, tracestate, \
                  has_generation, key_sha256) \
         WHERE {} AND ",
        try_lock_key!(),
        " ON CONFLICT DO NOTHING \
         RETURNING claim_token, resource_id, generation, created_at, {}",
    ))
    .bind::<Double, _>(lease.as_secs_f64())
    .bind::<Array<SqlUuid>, _>(column(claimants, |claimant| claimant.envelope.merchant.0))
    .bind::<Array<Text>, _>(column(claimants, |claimant| claimant.envelope.key.as_str()))
    .bind::<Array<Text>, _>(column(claimants, |claimant| claimant.operation))
    .bind::<Array<SmallInt>, _>(column(&fingerprints, |fingerprint| fingerprint.version))
    .bind::<Array<Binary>, _>(column(&fingerprints, |fingerprint| fingerprint.sha256.as_slice()))
    .bind::<Array<Text>, _>(column(claimants, |claimant| claimant.envelope.request_id.as_str()))
    .bind::<Array<Text>, _>(column(claimants, |claimant| claimant.envelope.content.method.as_str()))
    .bind::<Array<Text>, _>(column(claimants, |claimant| claimant.envelope.content.path.as_str()))
    .bind::<Array<Text>, _>(column(claimants, |claimant| claimant.envelope.content.query.as_str()))
    .bind::<Array<Binary>, _>(column(claimants, |claimant| claimant.envelope.content.body.as_slice()))
    .bind::<Array<Nullable<Text>>, _>(column(&resources, |(kind, _)| *kind))
    .bind::<Array<Nullable<SqlUuid>>, _>(column(&resources, |(_, id)| *id))
    .bind::<Array<SqlUuid>, _>(tokens.clone())
    .bind::<Array<Double>, _>(column(claimants, |claimant| f64::from(claimant.policy.ttl_seconds)))
    .bind::<Array<Integer>, _>(column(claimants, |claimant| {
        i32::try_from(claimant.policy.tombstone_seconds).unwrap_or(i32::MAX)
    }))
    .bind::<Array<Text>, _>(column(claimants, |claimant| claimant.envelope.trace.to_string()))
    .bind::<Array<Nullable<Text>>, _>(column(claimants, |claimant| claimant.envelope.trace.state()))
    .bind::<Array<Bool>, _>(column(claimants, |claimant| claimant.has_generation))
    .bind::<Array<Nullable<Binary>>, _>(column(claimants, |claimant| claimant.envelope.proof.as_deref()))
    .fragment(condition)
    .fragment(statement::<()>(select_sql))
    .load::<(Uuid, Option<Uuid>, Option<i32>, DateTime<Utc>, Option<serde_json::Value>)>(conn)?;
    let taken_at = Instant::now();
    let mut rows: HashMap<Uuid, _> = rows
        .into_iter()
        .map(|(token, resource_id, generation, created_at, read)| {
            (token, (resource_id, generation, created_at, read))
        })
        .collect();
    let claims = claimants.iter().zip(tokens).map(|(claimant, token)| {
        let (resource_id, generation, created_at, read) = rows.remove(&token)?;
        let claim = Claim {
            merchant: claimant.envelope.merchant,
            key: claimant.envelope.key.clone(),
            token,
            resource_id,
            attempt: 1,
            recoveries: 0,
            generation,
            trace: claimant.envelope.trace.clone(),
            created_at,
            taken_at: (created_at, taken_at),
        };
        Some((claim, read))
    });
    Ok(claims.collect())
}

/// Deletes a key that is free again and that the reaper hasn't deleted yet, in the transaction that then
/// [claims](claim) it. It doesn't matter whether the row was still there.
///
/// Locks: the key's advisory lock. Without it nothing is deleted.
pub fn forget(conn: &mut PgConnection, envelope: &Envelope, policy: &Policy) -> Result<(), Failure> {
    if shape::is_distributed() {
        if lock_apart(conn, envelope)?.is_some() {
            statement::<()>("SELECT key_forget({}, {}, {})")
                .bind::<SqlUuid, _>(envelope.merchant)
                .bind::<Text, _>(envelope.key.as_str())
                .bind::<Bool, _>(policy.on_expired == OnExpired::Execute)
                .execute(conn)?;
        }
        return Ok(());
    }
    statement::<()>(concat!(
        "WITH lock AS MATERIALIZED ( \
             SELECT ",
        try_lock_key!(),
        " AS is_ours, key.merchant_id, key.key FROM (SELECT {} AS merchant_id, {} AS key) AS key) \
         DELETE FROM idempotency_keys k USING lock \
         WHERE lock.is_ours AND k.merchant_id = lock.merchant_id AND k.key = lock.key \
             AND k.state <> 'in_progress' AND k.expires_at <= clock_timestamp() \
             AND ({} OR k.expires_at + make_interval(secs => k.tombstone_seconds) <= clock_timestamp())",
    ))
    .bind::<SqlUuid, _>(envelope.merchant)
    .bind::<Text, _>(envelope.key.as_str())
    .bind::<Bool, _>(policy.on_expired == OnExpired::Execute)
    .execute(conn)?;
    Ok(())
}

/// The columns of a takeover.
type TakenSql = (
    Nullable<SqlUuid>,
    Integer,
    Integer,
    Nullable<Integer>,
    Nullable<Text>,
    Nullable<Text>,
    Timestamptz,
    Timestamptz,
);
type TakenRow =
    (Option<Uuid>, i32, i32, Option<i32>, Option<String>, Option<String>, DateTime<Utc>, DateTime<Utc>);

/// The one who takes a request over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taker {
    /// A client that sent the request again.
    Client,
    /// The recovery worker.
    Recovery,
}

/// Takes over a claim of the key's life that began at `created_at`, if its lease has expired. `None` if
/// another attempt was faster, if the row is locked because the request is being completed, or if the
/// recovery worker's time hasn't come. The slow owner later finds another token in the row and commits
/// nothing. The attempt goes on with the trace of the first request with the key.
///
/// An attempt that was suspended before this call may find the key in another life, claimed by another
/// request, which it must not finish.
pub fn take_over(
    conn: &mut PgConnection,
    envelope: &Envelope,
    created_at: DateTime<Utc>,
    taker: Taker,
    lease: Duration,
) -> Result<Option<Claim>, Failure> {
    let token = Uuid::new_v4();
    // Counting the takeover tells the database that this release knows generations.
    //
    // A client's attempt doesn't change the worker's schedule. Otherwise a client that keeps trying would
    // keep the worker away, and with it the end of a request that can't succeed.
    let take = if shape::is_distributed() {
        statement::<TakenSql>(
            "SELECT resource_id, attempts, recoveries, generation, traceparent, tracestate, created_at, taken_at \
             FROM key_take_over({}, {}, {}, {}, {}, {}, {}) WHERE attempts IS NOT NULL",
        )
        .bind::<SqlUuid, _>(envelope.merchant)
        .bind::<Text, _>(envelope.key.as_str())
        .bind::<Timestamptz, _>(created_at)
        .bind::<SqlUuid, _>(token)
        .bind::<Text, _>(&envelope.request_id)
        .bind::<Bool, _>(taker == Taker::Recovery)
        .bind::<Double, _>(lease.as_secs_f64())
    } else {
        statement(
            "WITH abandoned AS MATERIALIZED ( \
             SELECT merchant_id, key, taker.is_recovery \
             FROM idempotency_keys, (SELECT {} AS is_recovery) AS taker \
             WHERE merchant_id = {} AND key = {} AND created_at = {} \
                 AND lease_expires_at <= clock_timestamp() AND parked_at IS NULL \
                 AND (NOT taker.is_recovery OR recover_at <= clock_timestamp()) \
             FOR UPDATE OF idempotency_keys SKIP LOCKED) \
         UPDATE idempotency_keys k SET claim_token = {}, request_id = {}, \
             attempts = k.attempts + 1, takeovers = k.takeovers + 1, \
             recoveries = k.recoveries + a.is_recovery::integer, \
             lease_expires_at = clock.now + life.lease, \
             recover_at = CASE WHEN a.is_recovery THEN clock.now + life.lease ELSE k.recover_at END \
         FROM abandoned a, (SELECT clock_timestamp() AS now) AS clock, \
             (SELECT make_interval(secs => {}) AS lease) AS life \
         WHERE k.merchant_id = a.merchant_id AND k.key = a.key \
         RETURNING k.resource_id, k.attempts, k.recoveries, k.generation, k.traceparent, k.tracestate, \
             k.created_at, clock.now",
        )
        .bind::<Bool, _>(taker == Taker::Recovery)
        .bind::<SqlUuid, _>(envelope.merchant)
        .bind::<Text, _>(envelope.key.as_str())
        .bind::<Timestamptz, _>(created_at)
        .bind::<SqlUuid, _>(token)
        .bind::<Text, _>(&envelope.request_id)
        .bind::<Double, _>(lease.as_secs_f64())
    };
    let row = take.get_result::<TakenRow>(conn).optional()?;
    Ok(row.map(|(resource_id, attempts, recoveries, generation, parent, state, created_at, now)| Claim {
        merchant: envelope.merchant,
        key: envelope.key.clone(),
        token,
        resource_id,
        attempt: u32::try_from(attempts).unwrap_or(u32::MAX),
        recoveries: u32::try_from(recoveries).unwrap_or(u32::MAX),
        generation,
        trace: match TraceContext::stored(parent.as_deref(), state.as_deref()) {
            Some(first) if first.trace_id() != envelope.trace.trace_id() => first.child(),
            _ => envelope.trace.clone(),
        },
        created_at,
        taken_at: (now, Instant::now()),
    }))
}

/// Locks the key's row until the transaction ends, and checks that the claim still owns it: the fence.
/// Returns the database's time. Fails with [`Failure::ClaimLost`] if another attempt has taken over or
/// completed, or the row is gone.
pub fn lock(conn: &mut PgConnection, claim: &Claim) -> Result<DateTime<Utc>, Failure> {
    let owner = statement::<(Nullable<SqlUuid>, Timestamptz)>(
        "SELECT claim_token, clock_timestamp() FROM idempotency_keys \
         WHERE merchant_id = {} AND key = {} FOR UPDATE",
    )
    .bind::<SqlUuid, _>(claim.merchant)
    .bind::<Text, _>(claim.key.as_str())
    .get_result::<(Option<Uuid>, DateTime<Utc>)>(conn)
    .optional()?;
    match owner {
        Some((Some(token), _)) if token == claim.token && shape::is_distributed() => clock::now(conn),
        Some((Some(token), now)) if token == claim.token => Ok(now),
        _ => Err(Failure::ClaimLost),
    }
}

/// Runs [`lock`] for many claims, in one round trip. `None` for a claim that doesn't own its row, or whose row another
/// transaction has locked: the others needn't wait for that, and two of these statements can't deadlock over keys.
pub fn lock_all(conn: &mut PgConnection, claims: &[&Claim]) -> Result<Vec<Option<DateTime<Utc>>>, Failure> {
    let rows = statement::<(SqlUuid, Timestamptz)>(
        "SELECT asked.token, clock_timestamp() \
         FROM unnest({}, {}, {}) AS asked (merchant_id, key, token) \
         CROSS JOIN LATERAL ( \
             SELECT FROM idempotency_keys k \
             WHERE k.merchant_id = asked.merchant_id AND k.key = asked.key AND k.claim_token = asked.token \
             LIMIT 1 FOR UPDATE SKIP LOCKED) AS stored",
    )
    .bind::<Array<SqlUuid>, _>(column(claims, |claim| claim.merchant.0))
    .bind::<Array<Text>, _>(column(claims, |claim| claim.key.as_str()))
    .bind::<Array<SqlUuid>, _>(column(claims, |claim| claim.token))
    .load::<(Uuid, DateTime<Utc>)>(conn)?;
    let rows: HashMap<Uuid, DateTime<Utc>> = rows.into_iter().collect();
    Ok(column(claims, |claim| rows.get(&claim.token).copied()))
}

/// Renews the lease, for an attempt that had to wait before it could begin. Otherwise another attempt would
/// take over during its work. Fails with [`Failure::ClaimLost`] if that has happened already.
pub fn renew(conn: &mut PgConnection, claim: &Claim, lease: Duration) -> Result<(), Failure> {
    let renewed = statement::<()>(
        "UPDATE idempotency_keys SET lease_expires_at = statement_timestamp() + make_interval(secs => {}) \
         WHERE merchant_id = {} AND key = {} AND claim_token = {}",
    )
    .bind::<Double, _>(lease.as_secs_f64())
    .bind::<SqlUuid, _>(claim.merchant)
    .bind::<Text, _>(claim.key.as_str())
    .bind::<SqlUuid, _>(claim.token)
    .execute(conn)?;
    if renewed == 1 { Ok(()) } else { Err(Failure::ClaimLost) }
}
