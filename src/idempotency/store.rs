//! The statements on `idempotency_keys` that a request needs. Each is one round trip.
//!
//! All times come from the database's `clock_timestamp()`: clocks of different instances needn't agree,
//! and unlike `now()` it goes on inside a transaction.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, SubsecRound, Utc};
use diesel::prelude::*;
use diesel::sql_types::{
    Array, BigInt, Binary, Bool, Double, Integer, Jsonb, Nullable, SmallInt, Text, Timestamptz,
    Uuid as SqlUuid,
};
use uuid::Uuid;

use crate::base::ids::MerchantId;
use crate::error::Error;
use crate::storage::sql::statement;

use super::policy::{OnExpired, Policy};
use super::reply::Reply;
use super::request::{Envelope, Resource};
use super::{Fingerprint, IdempotencyKey};

/// SQL: the channel on which instances tell each other of answers that somebody waits for.
macro_rules! answers_channel {
    () => {
        "oncepay_answers"
    };
}

/// The same.
pub const ANSWERS_CHANNEL: &str = answers_channel!();

/// SQL: has the instances told, when the transaction commits, that a key is completed, if somebody waits for that. A
/// boolean that means nothing.
///
/// Not for every key: a commit with a notification waits for all others that have one.
macro_rules! announcement {
    ($waited:literal, $digest:literal) => {
        concat!(
            "CASE WHEN ",
            $waited,
            " THEN pg_notify('",
            answers_channel!(),
            "', ",
            $digest,
            ") END IS NULL"
        )
    };
}

/// SQL: where a key is in its life, as one of the words of [`Life`]. The same everywhere, so that all agree.
macro_rules! life {
    () => {
        "CASE WHEN state = 'in_progress' THEN \
             CASE WHEN parked_at IS NOT NULL THEN 'parked' \
                  WHEN lease_expires_at <= clock_timestamp() THEN 'abandoned' ELSE 'running' END \
         WHEN expires_at > clock_timestamp() THEN 'completed' \
         WHEN expires_at + make_interval(secs => tombstone_seconds) > clock_timestamp() THEN 'expired' \
         ELSE 'forgotten' END"
    };
}
pub(super) use life;

/// SQL: tries to take the advisory lock of `key.merchant_id` and `key.key`, until the transaction ends.
macro_rules! try_lock_key {
    () => {
        "pg_try_advisory_xact_lock(hashtextextended(key.key, hashtextextended(key.merchant_id::text, 0)))"
    };
}

/// SQL: what completing a key sets, with `clock.now`.
macro_rules! completion {
    ($status:literal, $headers:literal, $body:literal) => {
        concat!(
            "state = 'completed', recovery_point = 'finished', \
             claim_token = NULL, lease_expires_at = NULL, recover_at = NULL, parked_at = NULL, \
             response_status = ",
            $status,
            ", response_headers = ",
            $headers,
            ", response_body = ",
            $body,
            ", completed_at = clock.now, expires_at = clock.now + (expires_at - created_at)"
        )
    };
}

/// SQL: the columns of a [`StoredRow`].
macro_rules! stored_columns {
    () => {
        concat!(
            life!(),
            " AS life, fingerprint_version, fingerprint, request_method, request_path, request_id, \
             response_status, response_headers, response_body, created_at, expires_at"
        )
    };
}

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
    /// How many of the attempts were the recovery worker's, this one included.
    pub recoveries: u32,
    /// When the key was first claimed.
    pub created_at: DateTime<Utc>,
    /// The database's clock when this attempt took the claim, and ours.
    pub taken_at: (DateTime<Utc>, Instant),
    /// Of the request that claimed it.
    pub fingerprint: Fingerprint,
}

impl Claim {
    /// The time by the database's clock, without asking it: when the claim was taken, and what has passed since.
    pub fn now(&self) -> DateTime<Utc> {
        let (taken_at, then) = self.taken_at;
        // As precise as the database keeps it, so that it's the same everywhere.
        (taken_at + then.elapsed()).trunc_subsecs(6)
    }
}

/// A stored answer.
#[derive(Debug)]
pub struct Answer {
    pub reply: Reply,
    /// Id of the request that it was made for.
    pub request_id: String,
    /// What kind of request that was.
    pub fingerprint: Fingerprint,
    pub expires_at: DateTime<Utc>,
}

/// Where a key is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Somebody holds a claim with a live lease.
    Running,
    /// The lease of the last claim has run out or was given up.
    Abandoned,
    /// Recovery was given up; an operator has to look at it.
    Parked,
    /// Answered, and the answer is kept.
    Completed,
    /// Answered, and the answer isn't kept any more.
    Expired,
    /// As if it had never been there. The reaper hasn't come by yet.
    Forgotten,
}

impl std::str::FromStr for Life {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self, Error> {
        Ok(match word {
            "running" => Self::Running,
            "abandoned" => Self::Abandoned,
            "parked" => Self::Parked,
            "completed" => Self::Completed,
            "expired" => Self::Expired,
            "forgotten" => Self::Forgotten,
            _ => return Err(Error::internal(format!("a key's life can't be {word}"))),
        })
    }
}

/// What is there under a key.
#[derive(Debug)]
pub struct Stored {
    pub life: Life,
    /// When the key was claimed, which tells this life of the key from any other.
    pub created_at: DateTime<Utc>,
    /// Whether it's the very request that was asked for.
    pub is_same_request: bool,
    /// Whether it's at least one with the same method and path.
    pub is_same_path: bool,
    /// With [`Life::Completed`].
    pub answer: Option<Arc<Answer>>,
}

#[derive(Queryable)]
struct StoredRow {
    life: String,
    fingerprint_version: i16,
    fingerprint: Vec<u8>,
    request_method: String,
    request_path: String,
    request_id: String,
    response_status: Option<i16>,
    response_headers: Option<serde_json::Value>,
    response_body: Option<Vec<u8>>,
    created_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
}

type StoredSql = (
    Text,
    SmallInt,
    Binary,
    Text,
    Text,
    Text,
    Nullable<SmallInt>,
    Nullable<Jsonb>,
    Nullable<Binary>,
    Timestamptz,
    Timestamptz,
);

impl StoredRow {
    fn load(
        conn: &mut PgConnection,
        merchant: MerchantId,
        key: &IdempotencyKey,
    ) -> Result<Option<Self>, Error> {
        Ok(statement::<StoredSql>(concat!(
            "SELECT ",
            stored_columns!(),
            " FROM idempotency_keys WHERE merchant_id = {} AND key = {}",
        ))
        .bind::<SqlUuid, _>(merchant)
        .bind::<Text, _>(key.as_str())
        .get_result::<Self>(conn)
        .optional()?)
    }

    /// The same for many, and whether the holders of their API keys may know: `Err` for those who may not.
    ///
    /// The limits make each look-up one of its own, by index, whatever the planner thinks of the tables' sizes.
    fn load_all(
        conn: &mut PgConnection,
        envelopes: &[&Envelope],
    ) -> Result<Vec<Result<Option<Self>, Error>>, Error> {
        let rows = statement::<(Bool, Nullable<Bool>, Nullable<StoredSql>)>(concat!(
            "SELECT asked.key_sha256 IS NULL, auth.is_revoked, stored.* \
             FROM unnest({}, {}, {}) WITH ORDINALITY AS asked (merchant_id, key, key_sha256, number) \
             LEFT JOIN LATERAL ( \
                 SELECT a.revoked_at IS NOT NULL AS is_revoked FROM api_keys a \
                 WHERE a.merchant_id = asked.merchant_id AND a.key_sha256 = asked.key_sha256 LIMIT 1) AS auth ON true \
             LEFT JOIN LATERAL ( \
                 SELECT ",
            stored_columns!(),
            " FROM idempotency_keys k \
                 WHERE k.merchant_id = asked.merchant_id AND k.key = asked.key LIMIT 1) AS stored ON true \
             ORDER BY asked.number",
        ))
        .bind::<Array<SqlUuid>, _>(column(envelopes, |envelope| envelope.merchant.0))
        .bind::<Array<Text>, _>(column(envelopes, |envelope| envelope.key.as_str()))
        .bind::<Array<Nullable<Binary>>, _>(column(envelopes, |envelope| envelope.proof.as_deref()))
        .load::<(bool, Option<bool>, Option<Self>)>(conn)?;
        Ok(rows
            .into_iter()
            .map(|(needs_no_proof, is_revoked, stored)| match is_revoked {
                Some(true) => Err(Error::ApiKeyRevoked),
                None if !needs_no_proof => Err(Error::ApiKeyInvalid),
                _ => Ok(stored),
            })
            .collect())
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint { version: self.fingerprint_version, sha256: self.fingerprint.clone() }
    }

    /// What the row means to who asks for `envelope`.
    fn compared_with(self, conn: &mut PgConnection, envelope: &Envelope) -> Result<Stored, Error> {
        let is_same_request = match self.fingerprint().is_of(&envelope.content) {
            Some(is_same) => is_same,
            // By a recipe of a release after this one, which was rolled back.
            None => has_same_content(conn, envelope)?,
        };
        let is_same_path =
            self.request_method == envelope.content.method && self.request_path == envelope.content.path;
        let (life, created_at) = (self.life.parse()?, self.created_at);
        let answer = if life == Life::Completed { self.into_answer()? } else { None };
        Ok(Stored { life, created_at, is_same_request, is_same_path, answer })
    }

    fn into_answer(self) -> Result<Option<Arc<Answer>>, Error> {
        let fingerprint = self.fingerprint();
        let (Some(status), Some(headers), Some(body)) =
            (self.response_status, self.response_headers, self.response_body)
        else {
            return Ok(None);
        };
        let status = u16::try_from(status)
            .ok()
            .and_then(|status| status.try_into().ok())
            .ok_or_else(|| Error::internal("a stored status is out of range"))?;
        let headers = serde_json::from_value(headers).map_err(Error::internal)?;
        Ok(Some(Arc::new(Answer {
            fingerprint,
            reply: Reply { status, headers, body, notes: Vec::new() },
            request_id: self.request_id,
            expires_at: self.expires_at,
        })))
    }
}

/// Looks the key up, and whether who asks may know. No lock, no write: this is all that a replay needs.
///
/// Errors: `api_key_invalid`, `api_key_revoked`.
pub fn find(conn: &mut PgConnection, envelope: &Envelope) -> Result<Option<Stored>, Error> {
    find_all(conn, &[envelope])?.pop().ok_or_else(|| Error::internal("a look-up has no result"))?
}

/// [`find`] for many, in one round trip. The outer error is everybody's, the inner ones are one's own.
pub fn find_all(
    conn: &mut PgConnection,
    envelopes: &[&Envelope],
) -> Result<Vec<Result<Option<Stored>, Error>>, Error> {
    let rows = StoredRow::load_all(conn, envelopes)?;
    let mut compare =
        |row: Option<StoredRow>, envelope| row.map(|row| row.compared_with(conn, envelope)).transpose();
    rows.into_iter()
        .zip(envelopes)
        .map(|(row, envelope)| match row {
            Ok(row) => Ok(Ok(compare(row, envelope)?)),
            Err(refused) => Ok(Err(refused)),
        })
        .collect()
}

/// A value of each, as an array.
fn column<'a, T, V>(of: &'a [T], value: impl Fn(&'a T) -> V) -> Vec<V> {
    of.iter().map(value).collect()
}

/// Whether the stored request is the one at hand, by what it says rather than by its fingerprint. Of a tombstone only
/// method and path are left; it's given the benefit of the doubt, as it's refused in any case.
fn has_same_content(conn: &mut PgConnection, envelope: &Envelope) -> Result<bool, Error> {
    let content = &envelope.content;
    Ok(statement::<Bool>(
        "SELECT request_method = {} AND request_path = {} \
             AND (state = 'expired' OR request_query = {} AND request_body = {}) \
         FROM idempotency_keys WHERE merchant_id = {} AND key = {}",
    )
    .bind::<Text, _>(&content.method)
    .bind::<Text, _>(&content.path)
    .bind::<Text, _>(&content.query)
    .bind::<Binary, _>(&content.body)
    .bind::<SqlUuid, _>(envelope.merchant)
    .bind::<Text, _>(envelope.key.as_str())
    .get_result(conn)
    .optional()?
    .unwrap_or(false))
}

/// A request that wants to claim its key, unless that's taken.
pub struct Claimant {
    pub envelope: Arc<Envelope>,
    pub operation: &'static str,
    pub resource: Resource,
    pub policy: Arc<Policy>,
}

/// Claims a key that nobody has used. `None` when somebody else has it, or is claiming it right now in
/// a transaction that hasn't ended: look again.
pub fn claim(conn: &mut PgConnection, claimant: &Claimant, lease: Duration) -> Result<Option<Claim>, Error> {
    let claimed = claim_all(conn, &[claimant], lease, "NULL")?.pop().flatten();
    Ok(claimed.map(|(claim, _)| claim))
}

/// A claim, and what was read with it.
pub type Claimed = (Claim, Option<serde_json::Value>);

/// [`claim`] for many, in one round trip. `reads` is an SQL expression of type `jsonb` over the new row
/// (`idempotency_keys`), whose value comes with each claim.
///
/// The primary key is the arbiter. The advisory locks only keep a loser from *blocking* inside the
/// insert, with a connection in its hand, until the winner's transaction ends: it fails at once instead.
/// All of them live until the end of the surrounding transaction.
pub fn claim_all(
    conn: &mut PgConnection,
    claimants: &[&Claimant],
    lease: Duration,
    reads: &'static str,
) -> Result<Vec<Option<Claimed>>, Error> {
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
    let rows = statement::<(SqlUuid, Nullable<SqlUuid>, Timestamptz, Nullable<Jsonb>)>(concat!(
        "INSERT INTO idempotency_keys (merchant_id, key, state, operation, fingerprint_version, fingerprint, \
             request_id, request_method, request_path, request_query, request_body, \
             resource_type, resource_id, claim_token, lease_expires_at, recover_at, attempts, recovery_point, \
             created_at, expires_at, tombstone_seconds) \
         SELECT key.merchant_id, key.key, 'in_progress', key.operation, key.fingerprint_version, key.fingerprint, \
             key.request_id, key.method, key.path, key.query, key.body, key.resource_type, \
             CASE WHEN key.resource_type IS NOT NULL THEN coalesce(key.resource_id, uuid_v7(clock.now)) END, \
             key.token, clock.now + life.lease, clock.now + life.lease, 1, 'started', \
             clock.now, clock.now + make_interval(secs => key.ttl_seconds), key.tombstone_seconds \
         FROM (SELECT clock_timestamp() AS now) AS clock, \
              (SELECT make_interval(secs => {}) AS lease) AS life, \
              unnest({}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}) AS key \
                  (merchant_id, key, operation, fingerprint_version, fingerprint, request_id, method, path, query, \
                  body, resource_type, resource_id, token, ttl_seconds, tombstone_seconds) \
         WHERE ",
        try_lock_key!(),
        " ON CONFLICT DO NOTHING \
         RETURNING claim_token, resource_id, created_at, {}",
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
    .fragment(statement::<()>(reads))
    .load::<(Uuid, Option<Uuid>, DateTime<Utc>, Option<serde_json::Value>)>(conn)?;
    let taken_at = Instant::now();
    let mut rows: HashMap<Uuid, _> = rows
        .into_iter()
        .map(|(token, resource_id, created_at, read)| (token, (resource_id, created_at, read)))
        .collect();
    let claims = claimants.iter().zip(tokens).zip(fingerprints).map(|((claimant, token), fingerprint)| {
        let (resource_id, created_at, read) = rows.remove(&token)?;
        let claim = Claim {
            merchant: claimant.envelope.merchant,
            key: claimant.envelope.key.clone(),
            token,
            resource_id,
            attempt: 1,
            recoveries: 0,
            created_at,
            taken_at: (created_at, taken_at),
            fingerprint,
        };
        Some((claim, read))
    });
    Ok(claims.collect())
}

/// Deletes a key that is free to be used again and that the reaper hasn't deleted yet, in the transaction
/// that goes on to [`claim`] it. Whether the row was still there makes no difference.
///
/// Locks: the key's advisory lock, without which nothing is deleted.
pub fn forget(conn: &mut PgConnection, envelope: &Envelope, policy: &Policy) -> Result<(), Error> {
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

/// Who takes a request over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taker {
    /// A client that sent it again.
    Client,
    /// The recovery worker.
    Recovery,
}

/// Takes over a claim of the key's life that began at `created_at`, if its lease has run out: `None` when another
/// attempt was faster, or the row is locked because it's being completed at this moment, or the recovery worker's
/// time hasn't come. What the slow owner tries later finds another token in the row and commits nothing.
///
/// Whoever was frozen between looking and this may find the key in another life, claimed by another request, which
/// isn't his to finish.
pub fn take_over(
    conn: &mut PgConnection,
    envelope: &Envelope,
    created_at: DateTime<Utc>,
    taker: Taker,
    lease: Duration,
) -> Result<Option<Claim>, Error> {
    let token = Uuid::new_v4();
    // A client's attempt leaves the worker's schedule as it is: otherwise one that keeps trying would keep the worker
    // away, and with it the end of a request that can't succeed.
    let row = statement::<(Nullable<SqlUuid>, Integer, Integer, Timestamptz, Timestamptz, SmallInt, Binary)>(
        "WITH abandoned AS MATERIALIZED ( \
             SELECT merchant_id, key, taker.is_recovery \
             FROM idempotency_keys, (SELECT {} AS is_recovery) AS taker \
             WHERE merchant_id = {} AND key = {} AND created_at = {} \
                 AND lease_expires_at <= clock_timestamp() AND parked_at IS NULL \
                 AND (NOT taker.is_recovery OR recover_at <= clock_timestamp()) \
             FOR UPDATE OF idempotency_keys SKIP LOCKED) \
         UPDATE idempotency_keys k SET claim_token = {}, request_id = {}, \
             attempts = k.attempts + 1, recoveries = k.recoveries + a.is_recovery::integer, \
             lease_expires_at = clock.now + life.lease, \
             recover_at = CASE WHEN a.is_recovery THEN clock.now + life.lease ELSE k.recover_at END \
         FROM abandoned a, (SELECT clock_timestamp() AS now) AS clock, \
             (SELECT make_interval(secs => {}) AS lease) AS life \
         WHERE k.merchant_id = a.merchant_id AND k.key = a.key \
         RETURNING k.resource_id, k.attempts, k.recoveries, k.created_at, clock.now, k.fingerprint_version, k.fingerprint",
    )
    .bind::<Bool, _>(taker == Taker::Recovery)
    .bind::<SqlUuid, _>(envelope.merchant)
    .bind::<Text, _>(envelope.key.as_str())
    .bind::<Timestamptz, _>(created_at)
    .bind::<SqlUuid, _>(token)
    .bind::<Text, _>(&envelope.request_id)
    .bind::<Double, _>(lease.as_secs_f64())
    .get_result::<(Option<Uuid>, i32, i32, DateTime<Utc>, DateTime<Utc>, i16, Vec<u8>)>(conn)
    .optional()?;
    Ok(row.map(|(resource_id, attempts, recoveries, created_at, now, version, sha256)| Claim {
        merchant: envelope.merchant,
        key: envelope.key.clone(),
        token,
        resource_id,
        attempt: u32::try_from(attempts).unwrap_or(u32::MAX),
        recoveries: u32::try_from(recoveries).unwrap_or(u32::MAX),
        created_at,
        taken_at: (now, Instant::now()),
        fingerprint: Fingerprint { version, sha256 },
    }))
}

/// Locks the key's row until the transaction ends, and checks that the claim still owns it: the fence.
/// Returns the database's time. Errors with [`Error::ClaimLost`] when another attempt has taken over or
/// completed, or the row is gone.
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

/// Starts the lease anew, for an attempt that had to wait before it could begin: otherwise it would be
/// taken over while it's at work. Errors with [`Error::ClaimLost`] when that has happened already.
pub fn renew(conn: &mut PgConnection, claim: &Claim, lease: Duration) -> Result<(), Error> {
    let renewed = statement::<()>(
        "UPDATE idempotency_keys SET lease_expires_at = clock_timestamp() + make_interval(secs => {}) \
         WHERE merchant_id = {} AND key = {} AND claim_token = {}",
    )
    .bind::<Double, _>(lease.as_secs_f64())
    .bind::<SqlUuid, _>(claim.merchant)
    .bind::<Text, _>(claim.key.as_str())
    .bind::<SqlUuid, _>(claim.token)
    .execute(conn)?;
    if renewed == 1 { Ok(()) } else { Err(Error::ClaimLost) }
}

/// Stores the answer, and tells the instances on which somebody waits for it. Its lifetime begins now, however long
/// the request has taken: an answer that was given must be there for the retry. Errors with [`Error::ClaimLost`] when
/// the claim no longer owns the row.
pub fn complete(
    conn: &mut PgConnection,
    claim: &Claim,
    reply: Reply,
    request_id: &str,
) -> Result<Arc<Answer>, Error> {
    let (expires_at, _) = statement::<(Timestamptz, Bool)>(concat!(
        "UPDATE idempotency_keys SET ",
        completion!("{}", "{}", "{}"),
        " FROM (SELECT clock_timestamp() AS now) AS clock \
         WHERE merchant_id = {} AND key = {} AND claim_token = {} \
         RETURNING expires_at, ",
        announcement!("waited", "{}"),
    ))
    .bind::<SmallInt, _>(stored_status(&reply)?)
    .bind::<Jsonb, _>(stored_headers(&reply)?)
    .bind::<Binary, _>(&reply.body)
    .bind::<SqlUuid, _>(claim.merchant)
    .bind::<Text, _>(claim.key.as_str())
    .bind::<SqlUuid, _>(claim.token)
    .bind::<Text, _>(claim.key.digest_for(claim.merchant))
    .get_result::<(DateTime<Utc>, bool)>(conn)
    .optional()?
    .ok_or(Error::ClaimLost)?;
    let (request_id, fingerprint) = (request_id.to_owned(), claim.fingerprint.clone());
    Ok(Arc::new(Answer { reply, request_id, fingerprint, expires_at }))
}

fn stored_status(reply: &Reply) -> Result<i16, Error> {
    i16::try_from(reply.status.as_u16()).map_err(Error::internal)
}

fn stored_headers(reply: &Reply) -> Result<serde_json::Value, Error> {
    serde_json::to_value(&reply.headers).map_err(Error::internal)
}

/// What is to be written for a request, beside its answer: a document that the operation's SQL takes apart.
pub type Effects = serde_json::Value;

/// A request to be completed.
#[derive(Clone, Debug)]
pub struct Completion {
    pub claim: Claim,
    pub request_id: String,
    pub effects: Effects,
    pub reply: Reply,
}

/// Checks the fences, writes the effects and stores the answers of many requests in one statement: [`lock`] and
/// [`complete`] and what is in between. Needs no transaction around it. `None` for each whose claim doesn't own its
/// row, or whose row somebody else has locked or has just changed: nothing of it is written.
///
/// `writes` is SQL, further parts of a `WITH`, separated by commas. They find `owner`, with a row per request that
/// holds its claim and the columns `merchant_id` and `effects`, and must take all that they write out of that. A part
/// that changes nothing itself but calls a function that does must be read by one that changes something, or it
/// isn't called.
pub fn complete_all(
    conn: &mut PgConnection,
    completions: &[Completion],
    writes: &'static str,
) -> Result<Vec<Option<Arc<Answer>>>, Error> {
    let (mut statuses, mut headers) = (Vec::new(), Vec::new());
    for completion in completions {
        statuses.push(stored_status(&completion.reply)?);
        headers.push(stored_headers(&completion.reply)?);
    }
    // The lock is the fence: where it's had, the row has our token, and nobody changes that before this is committed.
    // What is locked by somebody else is skipped, so that the others needn't wait, and so that two of these statements
    // can't deadlock over keys. By `ctid`, as no plan for that can be a slow one: under the lock it stays what it is.
    // If the row has been changed since the statement began, it's that of a version that the statement can't see, and
    // the update leaves it out.
    let rows = statement::<(SqlUuid, Timestamptz, Bool)>(concat!(
        "WITH held AS MATERIALIZED ( \
             SELECT stored.ctid AS place, asked.* \
             FROM unnest({}, {}, {}, {}, {}, {}, {}, {}) AS asked \
                 (merchant_id, key, token, status, headers, body, digest, effects) \
             CROSS JOIN LATERAL ( \
                 SELECT k.ctid FROM idempotency_keys k \
                 WHERE k.merchant_id = asked.merchant_id AND k.key = asked.key AND k.claim_token = asked.token \
                 LIMIT 1 FOR UPDATE SKIP LOCKED) AS stored), \
         owner AS ( \
             UPDATE idempotency_keys k SET ",
        completion!("held.status", "held.headers", "held.body"),
        " FROM held, (SELECT clock_timestamp() AS now) AS clock \
             WHERE k.ctid = held.place \
             RETURNING held.merchant_id, held.token, held.digest, held.effects, k.waited, k.expires_at), \
         {} \
         SELECT token, expires_at, ",
        announcement!("waited", "digest"),
        " FROM owner"
    ))
    .bind::<Array<SqlUuid>, _>(column(completions, |completion| completion.claim.merchant.0))
    .bind::<Array<Text>, _>(column(completions, |completion| completion.claim.key.as_str()))
    .bind::<Array<SqlUuid>, _>(column(completions, |completion| completion.claim.token))
    .bind::<Array<SmallInt>, _>(statuses)
    .bind::<Array<Jsonb>, _>(headers)
    .bind::<Array<Binary>, _>(column(completions, |completion| completion.reply.body.as_slice()))
    .bind::<Array<Text>, _>(column(completions, |completion| completion.claim.key.digest_for(completion.claim.merchant)))
    .bind::<Array<Jsonb>, _>(column(completions, |completion| &completion.effects))
    .fragment(statement::<()>(writes))
    .load::<(Uuid, DateTime<Utc>, bool)>(conn)?;
    let rows: HashMap<Uuid, _> = rows.into_iter().map(|(token, expires_at, _)| (token, expires_at)).collect();
    let answers = completions.iter().map(|completion| {
        let expires_at = *rows.get(&completion.claim.token)?;
        Some(Arc::new(Answer {
            reply: completion.reply.clone(),
            request_id: completion.request_id.clone(),
            fingerprint: completion.claim.fingerprint.clone(),
            expires_at,
        }))
    });
    Ok(answers.collect())
}

/// An attempt that ended without an outcome.
#[derive(Clone, Copy, Debug)]
pub struct Setback {
    /// Code of the error.
    pub error: &'static str,
    /// Whose attempt it was.
    pub taker: Taker,
    /// When the recovery worker may take it on, if it was the worker's, or the first to fail.
    pub recover_in: Duration,
    /// The worker's attempts before an operator has to look at it.
    pub attempts_max: u32,
}

/// Gives up the lease of an attempt that ended without an outcome, so that the next one needn't wait for
/// it to run out. Returns whether the request is parked now. Does nothing if another attempt has taken over already.
///
/// By the row and not by the claim, as far as the worker's schedule goes: an operator may have changed that meanwhile.
pub fn release(conn: &mut PgConnection, claim: &Claim, setback: Setback) -> Result<bool, Error> {
    Ok(statement::<Bool>(
        "UPDATE idempotency_keys SET lease_expires_at = clock.now, last_error = {}, \
             recover_at = CASE WHEN setback.is_recovery AND recoveries > 0 OR last_error IS NULL \
                 THEN clock.now + make_interval(secs => {}) ELSE recover_at END, \
             parked_at = CASE WHEN setback.is_recovery AND recoveries >= {} THEN clock.now END \
         FROM (SELECT clock_timestamp() AS now) AS clock, (SELECT {} AS is_recovery) AS setback \
         WHERE merchant_id = {} AND key = {} AND claim_token = {} \
         RETURNING parked_at IS NOT NULL",
    )
    .bind::<Text, _>(setback.error)
    .bind::<Double, _>(setback.recover_in.as_secs_f64())
    .bind::<Integer, _>(i32::try_from(setback.attempts_max).unwrap_or(i32::MAX))
    .bind::<Bool, _>(setback.taker == Taker::Recovery)
    .bind::<SqlUuid, _>(claim.merchant)
    .bind::<Text, _>(claim.key.as_str())
    .bind::<SqlUuid, _>(claim.token)
    .get_result(conn)
    .optional()?
    .unwrap_or(false))
}

/// What somebody who waits for a key's answer gets to see.
#[derive(Debug)]
pub enum Glimpse {
    /// Here it is.
    Answered(Arc<Answer>),
    /// It's being worked on, and whoever finishes it will notify.
    Running,
    /// It's being claimed in a transaction that hasn't ended, which will notify nobody.
    Claiming,
    /// Nobody works on it: whoever asks now executes it.
    Free,
}

/// Looks whether a key is answered, and asks for a notification if it isn't: whoever completes it sees that,
/// as both change the same row.
pub fn await_answer(
    conn: &mut PgConnection,
    merchant: MerchantId,
    key: &IdempotencyKey,
) -> Result<Glimpse, Error> {
    // A row that is locked is being completed right now: asking would have to wait for that. That it's in progress is told
    // by its token: for `state` the planner may read the index of all that are, for which its statistics promise nothing.
    statement::<()>(
        "WITH running AS MATERIALIZED ( \
             SELECT merchant_id, key FROM idempotency_keys \
             WHERE merchant_id = {} AND key = {} AND claim_token IS NOT NULL AND NOT waited \
             FOR UPDATE SKIP LOCKED) \
         UPDATE idempotency_keys k SET waited = true FROM running r \
         WHERE k.merchant_id = r.merchant_id AND k.key = r.key",
    )
    .bind::<SqlUuid, _>(merchant)
    .bind::<Text, _>(key.as_str())
    .execute(conn)?;
    let Some(row) = StoredRow::load(conn, merchant, key)? else {
        // A local operation's claim can't be seen before it's done; its advisory lock can.
        let is_free = statement::<Bool>(concat!(
            "SELECT ",
            try_lock_key!(),
            " FROM (SELECT {} AS merchant_id, {} AS key) AS key"
        ))
        .bind::<SqlUuid, _>(merchant)
        .bind::<Text, _>(key.as_str())
        .get_result(conn)?;
        return Ok(if is_free { Glimpse::Free } else { Glimpse::Claiming });
    };
    match row.life.parse()? {
        Life::Running | Life::Parked => Ok(Glimpse::Running),
        Life::Abandoned | Life::Expired | Life::Forgotten => Ok(Glimpse::Free),
        Life::Completed => Ok(row.into_answer()?.map_or(Glimpse::Free, Glimpse::Answered)),
    }
}

/// Most requests that [`others_in_progress`] returns.
const OTHERS_MAX: i64 = 100;

/// Canonical bodies of the latest requests for `operation` of a merchant that are being executed and were begun within
/// `window`, except the one of `claim`. Those that wait for an operator aren't executed.
pub fn others_in_progress(
    conn: &mut PgConnection,
    claim: &Claim,
    operation: &'static str,
    window: Duration,
) -> Result<Vec<Vec<u8>>, Error> {
    Ok(statement::<Binary>(
        "SELECT request_body FROM idempotency_keys \
         WHERE state = 'in_progress' AND parked_at IS NULL AND merchant_id = {} AND operation = {} AND key <> {} \
             AND created_at > statement_timestamp() - make_interval(secs => {}) \
         ORDER BY created_at DESC LIMIT {}",
    )
    .bind::<SqlUuid, _>(claim.merchant)
    .bind::<Text, _>(operation)
    .bind::<Text, _>(claim.key.as_str())
    .bind::<Double, _>(window.as_secs_f64())
    .bind::<BigInt, _>(OTHERS_MAX)
    .load(conn)?)
}

/// Rows of the table, as the planner estimates them, and its size in bytes with all indexes.
pub fn table_size(conn: &mut PgConnection) -> Result<(i64, i64), Error> {
    Ok(statement::<(BigInt, BigInt)>(
        "SELECT reltuples::bigint, pg_total_relation_size(oid) FROM pg_class WHERE oid = 'idempotency_keys'::regclass",
    )
    .get_result(conn)?)
}
