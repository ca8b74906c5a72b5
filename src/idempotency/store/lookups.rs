//! Look-ups of keys.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Binary, Bool, Double, Nullable, Text, Timestamptz, Uuid as SqlUuid};

use crate::base::ids::MerchantId;
use crate::error::failure::Failure;
use crate::idempotency::envelope::Envelope;
use crate::idempotency::key::IdempotencyKey;
use crate::storage::clock;
use crate::storage::shape;
use crate::storage::sql::statement;

use super::claims::Claim;
use super::rows::{
    KeyState, StoredKey, StoredKeyRow, StoredKeySql, column, key_state, stored_columns, try_lock_key,
};

/// Looks the key up, and checks the caller's proof. Takes no lock and writes nothing: a replay needs only
/// this.
///
/// Errors: `api_key_invalid`, `api_key_revoked`.
pub fn find(
    conn: &mut PgConnection,
    envelope: &Envelope,
    proof_sql: &'static str,
) -> Result<Option<StoredKey>, Failure> {
    find_all(conn, &[envelope], proof_sql)?
        .pop()
        .ok_or_else(|| Failure::internal("a look-up has no result"))?
}

/// Runs [`find`] for many requests, in one round trip. The outer error concerns all of them, the inner ones
/// one each.
pub fn find_all(
    conn: &mut PgConnection,
    envelopes: &[&Envelope],
    proof_sql: &'static str,
) -> Result<Vec<Result<Option<StoredKey>, Failure>>, Failure> {
    let rows = load_all(conn, envelopes, proof_sql)?;
    let mut compare = |row: Option<StoredKeyRow>, envelope: &Envelope| {
        let Some(row) = row else { return Ok(None) };
        let is_same = match row.is_of(envelope) {
            Some(is_same) => is_same,
            // The recipe is of a later release, which was rolled back.
            None => has_same_content(conn, envelope)?,
        };
        row.compared_with(envelope, is_same).map(Some)
    };
    rows.into_iter()
        .zip(envelopes)
        .map(|(row, envelope)| match row {
            Ok(row) => Ok(Ok(compare(row, envelope)?)),
            Err(refused) => Ok(Err(refused)),
        })
        .collect()
}

/// Compares the stored request with this one by content rather than by fingerprint. A tombstone keeps only
/// method and path; it counts as the same request, since it's refused in any case.
fn has_same_content(conn: &mut PgConnection, envelope: &Envelope) -> Result<bool, Failure> {
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

/// SQL: looks keys up at a time and checks their callers' proofs, for the rows of `asked`, whose SQL is given.
///
/// The limits make each look-up a separate one, by index, whatever the planner estimates for the tables'
/// sizes.
macro_rules! look_up {
    ($asked:literal, $now:literal) => {
        concat!(
            "SELECT asked.key_sha256 IS NULL, auth.is_revoked, stored.* \
             FROM ",
            $asked,
            " LEFT JOIN LATERAL ({}) AS auth ON true \
             LEFT JOIN LATERAL ( \
                 SELECT ",
            stored_columns!($now),
            " FROM idempotency_keys k \
                 WHERE k.merchant_id = asked.merchant_id AND k.key = asked.key LIMIT 1) AS stored ON true \
             ORDER BY asked.number",
        )
    };
}

/// The columns of [`look_up!`].
type LookedUpSql = (Bool, Nullable<Bool>, Nullable<StoredKeySql>);
type LookedUpRow = (bool, Option<bool>, Option<StoredKeyRow>);

/// Reads many keys, and checks their callers' proofs: `Err` for callers that fail. In one round trip, unless their merchants may be on
/// different nodes.
fn load_all(
    conn: &mut PgConnection,
    envelopes: &[&Envelope],
    proof_sql: &'static str,
) -> Result<Vec<Result<Option<StoredKeyRow>, Failure>>, Failure> {
    let rows = if shape::is_distributed() {
        let now = clock::now(conn)?;
        let each = envelopes.iter().map(|envelope| load_one(conn, envelope, proof_sql, now));
        each.collect::<QueryResult<Vec<_>>>()?
    } else {
        statement::<LookedUpSql>(look_up!(
            "unnest({}, {}, {}) WITH ORDINALITY AS asked (merchant_id, key, key_sha256, number)",
            "clock_timestamp()"
        ))
        .bind::<Array<SqlUuid>, _>(column(envelopes, |envelope| envelope.merchant.0))
        .bind::<Array<Text>, _>(column(envelopes, |envelope| envelope.key.as_str()))
        .bind::<Array<Nullable<Binary>>, _>(column(envelopes, |envelope| envelope.proof.as_deref()))
        .fragment(statement::<()>(proof_sql))
        .load::<LookedUpRow>(conn)?
    };
    Ok(rows
        .into_iter()
        .map(|(needs_no_proof, is_revoked, stored)| match is_revoked {
            Some(true) => Err(Failure::ApiKeyRevoked),
            None if !needs_no_proof => Err(Failure::ApiKeyInvalid),
            _ => Ok(stored),
        })
        .collect())
}

fn load_one(
    conn: &mut PgConnection,
    envelope: &Envelope,
    proof_sql: &'static str,
    now: DateTime<Utc>,
) -> QueryResult<LookedUpRow> {
    statement::<LookedUpSql>(look_up!(
        "(SELECT {} AS merchant_id, {} AS key, {} AS key_sha256, 1 AS number, {} AS now) AS asked",
        "asked.now"
    ))
    .bind::<SqlUuid, _>(envelope.merchant)
    .bind::<Text, _>(envelope.key.as_str())
    .bind::<Nullable<Binary>, _>(envelope.proof.as_deref())
    .bind::<Timestamptz, _>(now)
    .fragment(statement::<()>(proof_sql))
    .get_result(conn)
}

/// State of a key's answer, for a waiting request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerState {
    /// The answer is there.
    Answered,
    /// The request is being executed, and its end sends a notification.
    Running,
    /// A transaction that hasn't ended is claiming the key, and its end sends no notification.
    Claiming,
    /// The request is abandoned: the next attempt executes it.
    Free,
}

/// Checks whether a key is answered, and asks for a notification if it isn't. The completion sees that wish,
/// since both change the same row.
pub fn await_answer(
    conn: &mut PgConnection,
    merchant: MerchantId,
    key: &IdempotencyKey,
) -> Result<AnswerState, Failure> {
    // A locked row is being completed right now; asking would have to wait for that. The token tells that a
    // request is in progress: for `state`, the planner may read the index of all requests in progress, for
    // which its statistics promise nothing.
    statement::<()>(
        "WITH running AS MATERIALIZED ( \
             SELECT merchant_id, key FROM idempotency_keys \
             WHERE merchant_id = {} AND key = {} AND claim_token IS NOT NULL AND NOT waited \
             FOR UPDATE SKIP LOCKED) \
         UPDATE idempotency_keys k SET waited = true FROM running r \
         WHERE k.merchant_id = {} AND k.merchant_id = r.merchant_id AND k.key = r.key",
    )
    .bind::<SqlUuid, _>(merchant)
    .bind::<Text, _>(key.as_str())
    .bind::<SqlUuid, _>(merchant)
    .execute(conn)?;
    let now = clock::of_cluster(conn)?;
    let state = statement::<Text>(concat!(
        "SELECT ",
        key_state!("clock.now"),
        " FROM (SELECT coalesce({}, clock_timestamp()) AS now) AS clock, idempotency_keys \
         WHERE merchant_id = {} AND key = {}",
    ))
    .bind::<Nullable<Timestamptz>, _>(now)
    .bind::<SqlUuid, _>(merchant)
    .bind::<Text, _>(key.as_str())
    .get_result::<String>(conn)
    .optional()?;
    let Some(state) = state else {
        // A local operation's claim is invisible until it's done; its advisory lock is visible.
        let is_free = statement::<Bool>(concat!(
            "SELECT ",
            try_lock_key!(),
            " FROM (SELECT {} AS merchant_id, {} AS key) AS key"
        ))
        .bind::<SqlUuid, _>(merchant)
        .bind::<Text, _>(key.as_str())
        .get_result(conn)?;
        return Ok(if is_free { AnswerState::Free } else { AnswerState::Claiming });
    };
    Ok(match state.parse()? {
        KeyState::Running | KeyState::Parked => AnswerState::Running,
        KeyState::Abandoned | KeyState::Expired | KeyState::Forgotten => AnswerState::Free,
        KeyState::Completed => AnswerState::Answered,
    })
}

/// Maximum number of requests that [`others_in_progress`] returns.
const OTHERS_MAX: i64 = 100;

/// Canonical bodies of the merchant's latest requests for `operation` that are being executed and began
/// within `window`, except the one of `claim`. Requests that wait for an operator don't count.
pub fn others_in_progress(
    conn: &mut PgConnection,
    claim: &Claim,
    operation: &'static str,
    window: Duration,
) -> Result<Vec<Vec<u8>>, Failure> {
    let now = clock::of_cluster(conn)?;
    Ok(statement::<Binary>(
        "SELECT request_body FROM idempotency_keys \
         WHERE state = 'in_progress' AND parked_at IS NULL AND merchant_id = {} AND operation = {} AND key <> {} \
             AND created_at > coalesce({}, statement_timestamp()) - make_interval(secs => {}) \
         ORDER BY created_at DESC LIMIT {}",
    )
    .bind::<SqlUuid, _>(claim.merchant)
    .bind::<Text, _>(operation)
    .bind::<Text, _>(claim.key.as_str())
    .bind::<Nullable<Timestamptz>, _>(now)
    .bind::<Double, _>(window.as_secs_f64())
    .bind::<BigInt, _>(OTHERS_MAX)
    .load(conn)?)
}

/// Estimated number of rows, as the planner has it, and the table's size in bytes with all indexes.
pub fn table_size(conn: &mut PgConnection) -> Result<(i64, i64), Failure> {
    let size = if shape::is_distributed() {
        "SELECT estimated_rows, bytes FROM idempotency_keys_size()"
    } else {
        "SELECT reltuples::bigint, pg_total_relation_size(oid) FROM pg_class WHERE oid = 'idempotency_keys'::regclass"
    };
    Ok(statement::<(BigInt, BigInt)>(size).get_result(conn)?)
}
