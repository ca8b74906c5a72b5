//! Storage of answers, and release of leases.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{
    Array, Binary, Bool, Double, Integer, Jsonb, Nullable, SmallInt, Text, Timestamptz, Uuid as SqlUuid,
};
use uuid::Uuid;

use crate::error::failure::Failure;
use crate::idempotency::descriptor::Batching;
use crate::idempotency::reply::Reply;
use crate::storage::shape;
use crate::storage::sql::statement;

use super::claims::{Claim, Taker};
use super::rows::{Answer, announcement, column, completion};

/// Stores the answer, and notifies the instances with waiting duplicates. Its lifetime begins now, however
/// long the request has taken: an answer that was sent must be there for the retry. Fails with
/// [`Failure::ClaimLost`] if the claim no longer owns the row.
pub fn complete(
    conn: &mut PgConnection,
    claim: &Claim,
    reply: Reply,
    request_id: &str,
) -> Result<Answer, Failure> {
    let (status, headers) = (stored_status(&reply)?, stored_headers(&reply)?);
    let digest = claim.key.digest_for(claim.merchant);
    let complete = if shape::is_distributed() {
        statement::<(Timestamptz, Bool)>(
            "SELECT expires_at, true FROM key_complete({}, {}, {}, {}, {}, {}, {}) WHERE expires_at IS NOT NULL",
        )
        .bind::<SqlUuid, _>(claim.merchant)
        .bind::<Text, _>(claim.key.as_str())
        .bind::<SqlUuid, _>(claim.token)
        .bind::<SmallInt, _>(status)
        .bind::<Jsonb, _>(headers)
        .bind::<Binary, _>(&reply.body)
        .bind::<Text, _>(digest)
    } else {
        statement(concat!(
            "UPDATE idempotency_keys SET ",
            completion!("{}", "{}", "{}"),
            " FROM (SELECT clock_timestamp() AS now) AS clock \
             WHERE merchant_id = {} AND key = {} AND claim_token = {} \
             RETURNING expires_at, ",
            announcement!("waited", "{}"),
        ))
        .bind::<SmallInt, _>(status)
        .bind::<Jsonb, _>(headers)
        .bind::<Binary, _>(&reply.body)
        .bind::<SqlUuid, _>(claim.merchant)
        .bind::<Text, _>(claim.key.as_str())
        .bind::<SqlUuid, _>(claim.token)
        .bind::<Text, _>(digest)
    };
    let (expires_at, _) =
        complete.get_result::<(DateTime<Utc>, bool)>(conn).optional()?.ok_or(Failure::ClaimLost)?;
    Ok(Answer { reply, request_id: request_id.to_owned(), trace: Some(claim.trace.clone()), expires_at })
}

fn stored_status(reply: &Reply) -> Result<i16, Failure> {
    i16::try_from(reply.status).map_err(Failure::internal)
}

fn stored_headers(reply: &Reply) -> Result<serde_json::Value, Failure> {
    serde_json::to_value(&reply.headers).map_err(Failure::internal)
}

/// A request to complete.
#[derive(Clone, Debug)]
pub struct Completion {
    pub claim: Claim,
    pub request_id: String,
    pub effects: serde_json::Value,
    pub reply: Reply,
}

impl Completion {
    /// The completion of a request whose effects are written already.
    pub fn of(claim: Claim, request_id: &str, reply: Reply) -> Self {
        Self { claim, request_id: request_id.to_owned(), effects: serde_json::Value::Null, reply }
    }
}

/// A request that was completed.
#[derive(Debug)]
pub struct Completed {
    pub answer: Answer,
    /// What the batching's `note_sql` has found.
    pub note: Option<serde_json::Value>,
}

/// Checks the fences, writes the effects and stores the answers of many requests in one statement: it
/// combines [`lock`](super::claims::lock), the effects and [`complete`]. Needs no transaction around it. Returns `None` for a
/// request whose claim doesn't own its row, whose row another transaction has locked or just changed, or that the
/// batching's `admit_sql` doesn't admit: nothing of that request is written.
///
/// The batching's `write_sql` is SQL, further parts of a `WITH`, separated by commas. They can read `owner`, which has a row
/// per request that holds its claim and the columns `merchant_id`, `token` and `effects`, and must derive all that
/// they write from it. If a part changes nothing itself but calls a function that does, a part that changes
/// something must read it; otherwise it isn't called.
pub fn complete_all(
    conn: &mut PgConnection,
    completions: &[Completion],
    batching: Batching,
) -> Result<Vec<Option<Completed>>, Failure> {
    let (mut statuses, mut headers) = (Vec::new(), Vec::new());
    for completion in completions {
        statuses.push(stored_status(&completion.reply)?);
        headers.push(stored_headers(&completion.reply)?);
    }
    // The lock is the fence: a locked row has our token, and nobody changes it before the commit. The
    // statement skips rows that others have locked, so that the rest needn't wait, and so that two of these
    // statements can't deadlock over keys. It finds the rows by `ctid`, for which no plan can be slow; under
    // the lock it stays the same. If the row has changed since the statement began, its `ctid` is that of a
    // version that the statement can't see, and the update leaves it out.
    let rows = statement::<(SqlUuid, Timestamptz, Bool, Nullable<Jsonb>)>(concat!(
        "WITH held AS MATERIALIZED ( \
             SELECT stored.ctid AS location, asked.* \
             FROM unnest({}, {}, {}, {}, {}, {}, {}, {}) AS asked \
                 (merchant_id, key, token, status, headers, body, digest, effects) \
             CROSS JOIN LATERAL ( \
                 SELECT k.ctid FROM idempotency_keys k \
                 WHERE k.merchant_id = asked.merchant_id AND k.key = asked.key AND k.claim_token = asked.token \
                 LIMIT 1 FOR UPDATE SKIP LOCKED) AS stored \
             WHERE {}), \
         owner AS ( \
             UPDATE idempotency_keys k SET ",
        completion!("held.status", "held.headers", "held.body"),
        " FROM held, (SELECT clock_timestamp() AS now) AS clock \
             WHERE k.ctid = held.location \
             RETURNING held.merchant_id, held.token, held.digest, held.effects, k.waited, k.expires_at), \
         {} \
         SELECT token, expires_at, ",
        announcement!("waited", "digest"),
        ", {} FROM owner"
    ))
    .bind::<Array<SqlUuid>, _>(column(completions, |completion| completion.claim.merchant.0))
    .bind::<Array<Text>, _>(column(completions, |completion| completion.claim.key.as_str()))
    .bind::<Array<SqlUuid>, _>(column(completions, |completion| completion.claim.token))
    .bind::<Array<SmallInt>, _>(statuses)
    .bind::<Array<Jsonb>, _>(headers)
    .bind::<Array<Binary>, _>(column(completions, |completion| completion.reply.body.as_slice()))
    .bind::<Array<Text>, _>(column(completions, |completion| completion.claim.key.digest_for(completion.claim.merchant)))
    .bind::<Array<Jsonb>, _>(column(completions, |completion| &completion.effects))
    .fragment(statement::<()>(batching.admit_sql))
    .fragment(statement::<()>(batching.write_sql))
    .fragment(statement::<()>(batching.note_sql))
    .load::<(Uuid, DateTime<Utc>, bool, Option<serde_json::Value>)>(conn)?;
    let mut rows: HashMap<Uuid, _> =
        rows.into_iter().map(|(token, expires_at, _, note)| (token, (expires_at, note))).collect();
    let completed = completions.iter().map(|completion| {
        let (expires_at, note) = rows.remove(&completion.claim.token)?;
        let answer = Answer {
            reply: completion.reply.clone(),
            request_id: completion.request_id.clone(),
            trace: Some(completion.claim.trace.clone()),
            expires_at,
        };
        Some(Completed { answer, note })
    });
    Ok(completed.collect())
}

/// Runs [`complete_all`] for one request, in the caller's transaction, which holds its fence. Fails with [`Failure::ClaimLost`] if it
/// doesn't, or if the request isn't admitted.
pub fn complete_with_effects(
    conn: &mut PgConnection,
    completion: Completion,
    batching: Batching,
) -> Result<Completed, Failure> {
    if !shape::is_distributed() {
        return complete_all(conn, &[completion], batching)?.pop().flatten().ok_or(Failure::ClaimLost);
    }
    let Completion { claim, request_id, effects, reply } = completion;
    let note =
        statement::<Nullable<Jsonb>>("SELECT {} FROM (SELECT {} AS merchant_id, {} AS effects) AS owner")
            .fragment(statement::<()>(batching.write_alone_sql))
            .bind::<SqlUuid, _>(claim.merchant)
            .bind::<Jsonb, _>(effects)
            .get_result::<Option<serde_json::Value>>(conn)?;
    Ok(Completed { answer: complete(conn, &claim, reply, &request_id)?, note })
}

/// Stores the answers of requests whose effects are written already, in the caller's transaction, which has claimed or locked
/// their keys. Fails with [`Failure::ClaimLost`] if it hasn't, of any of them: the effects mustn't be committed then.
pub fn answer_all(conn: &mut PgConnection, completions: &[Completion]) -> Result<Vec<Arc<Answer>>, Failure> {
    const NO_EFFECTS: Batching = Batching {
        select_sql: "NULL::jsonb",
        admit_sql: "true",
        write_sql: "nothing AS (SELECT)",
        note_sql: "NULL::jsonb",
        write_alone_sql: "NULL::jsonb",
    };
    if completions.is_empty() {
        return Ok(Vec::new());
    }
    let completed = complete_all(conn, completions, NO_EFFECTS)?.into_iter();
    completed.map(|completed| Ok(Arc::new(completed.ok_or(Failure::ClaimLost)?.answer))).collect()
}

/// An attempt that ended without an outcome.
#[derive(Clone, Copy, Debug)]
pub struct Setback {
    /// Code of the error.
    pub error: &'static str,
    /// The one whose attempt it was.
    pub taker: Taker,
    /// Time after which the recovery worker may take the request over, if the attempt was the worker's or the
    /// first to fail.
    pub recover_in: Duration,
    /// Time for which the worker leaves the request alone in any case, because the processor asked for it.
    pub pause: Option<Duration>,
    /// Maximum number of the worker's attempts before the request is parked.
    pub attempts_max: u32,
}

/// Releases the lease of an attempt that ended without an outcome, so that the next one needn't wait for its
/// end. Returns whether the request is parked now. Does nothing if another attempt has taken over already.
///
/// Reads the worker's schedule from the row and not from the claim: an operator may have changed it
/// meanwhile. `greatest` ignores the NULL of a request without a pause. An attempt that ended with one counts as none: nothing
/// is wrong with the request.
pub fn release(conn: &mut PgConnection, claim: &Claim, setback: Setback) -> Result<bool, Failure> {
    if shape::is_distributed() {
        let (recover_in_s, pause_s) =
            (setback.recover_in.as_secs_f64(), setback.pause.map(|pause| pause.as_secs_f64()));
        return Ok(statement::<Nullable<Bool>>(
            "SELECT is_parked FROM key_release({}, {}, {}, {}, {}, {}, {}, {})",
        )
        .bind::<SqlUuid, _>(claim.merchant)
        .bind::<Text, _>(claim.key.as_str())
        .bind::<SqlUuid, _>(claim.token)
        .bind::<Text, _>(setback.error)
        .bind::<Bool, _>(setback.taker == Taker::Recovery)
        .bind::<Double, _>(recover_in_s)
        .bind::<Nullable<Double>, _>(pause_s)
        .bind::<Integer, _>(i32::try_from(setback.attempts_max).unwrap_or(i32::MAX))
        .get_result::<Option<bool>>(conn)?
        .unwrap_or(false));
    }
    Ok(statement::<Bool>(
        "UPDATE idempotency_keys SET lease_expires_at = clock.now, last_error = {}, \
             recover_at = greatest( \
                 CASE WHEN setback.is_recovery AND recoveries > 0 OR last_error IS NULL \
                     THEN clock.now + make_interval(secs => {}) ELSE recover_at END, \
                 clock.now + make_interval(secs => setback.pause_s)), \
             recoveries = CASE WHEN setback.is_recovery AND setback.pause_s IS NOT NULL \
                 THEN greatest(recoveries - 1, 0) ELSE recoveries END, \
             parked_at = CASE WHEN setback.is_recovery AND setback.pause_s IS NULL AND recoveries >= {} \
                 THEN clock.now END \
         FROM (SELECT clock_timestamp() AS now) AS clock, (SELECT {} AS is_recovery, {} AS pause_s) AS setback \
         WHERE merchant_id = {} AND key = {} AND claim_token = {} \
         RETURNING parked_at IS NOT NULL",
    )
    .bind::<Text, _>(setback.error)
    .bind::<Double, _>(setback.recover_in.as_secs_f64())
    .bind::<Integer, _>(i32::try_from(setback.attempts_max).unwrap_or(i32::MAX))
    .bind::<Bool, _>(setback.taker == Taker::Recovery)
    .bind::<Nullable<Double>, _>(setback.pause.map(|pause| pause.as_secs_f64()))
    .bind::<SqlUuid, _>(claim.merchant)
    .bind::<Text, _>(claim.key.as_str())
    .bind::<SqlUuid, _>(claim.token)
    .get_result(conn)
    .optional()?
    .unwrap_or(false))
}
