//! The recovery worker: finishes abandoned requests without their clients.
//!
//! Each instance runs one. The workers don't need to know of each other: an update that skips locked rows
//! takes a request over, so that one worker gets it. The request that has waited longest comes first. After a
//! failure the pauses grow, so that failing requests don't keep the worker from the others. A request that
//! has failed too often (a *poison* request) is parked until an operator looks at it.
//!
//! Guarantee: while processor and database work, an abandoned request is finished within the rest of its
//! lease (or [`Recovery::delay`](crate::idempotency::Recovery::delay) after a failed attempt), one
//! [`Recovery::interval`](crate::idempotency::Recovery::interval), its turn in the queue, and its own
//! duration.

use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Binary, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::base::ids::MerchantId;
use crate::base::trace::TraceContext;
use crate::error::failure::Failure;
use crate::idempotency::engine::{DueRequest, Engine, RecoveryResult};
use crate::idempotency::envelope::Envelope;
use crate::idempotency::fingerprint::RequestContent;
use crate::idempotency::host::Host;
use crate::idempotency::key::IdempotencyKey;
use crate::idempotency::registry::RegisteredOperation;
use crate::storage::clock;
use crate::storage::shape;
use crate::storage::sql::statement;

use super::reaper::find_by_merchant;

/// Finishes due requests. Doesn't return. A slow request occupies one place, and the others go on.
pub async fn keep_recovering<H: Host>(engine: Engine<H>, operations: Arc<Vec<RegisteredOperation<H>>>) {
    let recovery = engine.timing().recovery;
    let places = recovery.concurrency as usize;
    let mut running = FuturesUnordered::new();
    let mut look_at = Instant::now();
    loop {
        if running.len() < places && look_at <= Instant::now() {
            look_at = Instant::now() + recovery.interval;
            if !engine.host().is_processor_available() {
                // All attempts would fail, again and again until the requests are parked.
                continue;
            }
            match find_due(&engine, &operations, places - running.len()).await {
                Ok(due) => running.extend(due.into_iter().map(|due| recover(&engine, &operations, due))),
                Err(error) => log::warn!("the recovery worker couldn't look for work: {}", error.detailed()),
            }
        }
        let ended = if running.len() == places {
            running.next().await
        } else if running.is_empty() {
            tokio::time::sleep_until(look_at.into()).await;
            None
        } else {
            tokio::time::timeout_at(look_at.into(), running.next()).await.ok().flatten()
        };
        // After one due request there may be more; but a request that another worker has may stay due for a
        // while.
        if ended.is_some_and(|recovered| recovered != RecoveryResult::Lost) {
            look_at = Instant::now();
        }
    }
}

/// Finds due requests, up to `limit`. Parks those that are due and exhausted.
async fn find_due<H: Host>(
    engine: &Engine<H>,
    operations: &[RegisteredOperation<H>],
    limit: usize,
) -> Result<Vec<DueRequest>, Failure> {
    // Only operations that this release knows: after a rollback, requests of the newer release wait for it.
    let known: Vec<&'static str> = operations
        .iter()
        .filter(|operation| operation.is_external())
        .map(|operation| operation.descriptor.name)
        .collect();
    let attempts_max = engine.timing().recovery.attempts_max;
    let parked = engine.db().run_retrying(move |conn| park_exhausted(conn, attempts_max)).await?;
    engine.metrics().parkings.inc_by(parked as u64);
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    engine.db().run_retrying(move |conn| due(conn, &known, attempts_max, limit)).await
}

/// Takes a due request over and tries to finish it.
async fn recover<H: Host>(
    engine: &Engine<H>,
    operations: &[RegisteredOperation<H>],
    due: DueRequest,
) -> RecoveryResult {
    // The query asked only for known operations.
    let Some(operation) = operations.iter().find(|operation| operation.descriptor.name == due.operation)
    else {
        return RecoveryResult::Lost;
    };
    let recovered = operation.recover(engine.clone(), due).await;
    engine.metrics().recoveries.with_label_values(&[operation.descriptor.name, recovered.as_str()]).inc();
    if recovered == RecoveryResult::Parked {
        engine.metrics().parkings.inc();
    }
    recovered
}

/// The columns of a due request: its key, its trace, its content.
type DueSql =
    (SqlUuid, Text, Text, Timestamptz, Text, (Nullable<Text>, Nullable<Text>), (Text, Text, Text, Binary));
type DueRow = (
    MerchantId,
    String,
    String,
    DateTime<Utc>,
    String,
    (Option<String>, Option<String>),
    (String, String, String, Vec<u8>),
);

/// Finds abandoned requests whose time has come, those first that have waited longest since. Of abandoned
/// requests these are the oldest; a request that has failed before counts from its next time. Takes no locks:
/// the takeover decides who gets a request. Skips exhausted requests, since one may have become due after
/// [`park_exhausted`].
///
/// `statement_timestamp()` is constant in a statement, so the planner can walk the index by it.
fn due(
    conn: &mut PgConnection,
    operations: &[&'static str],
    attempts_max: u32,
    limit: i64,
) -> Result<Vec<DueRequest>, Failure> {
    let now = clock::of_cluster(conn)?;
    let rows = statement::<DueSql>(
        "/* of all merchants */ SELECT merchant_id, key, operation, created_at, request_id, traceparent, tracestate, \
             request_method, request_path, request_query, request_body \
         FROM idempotency_keys \
         WHERE state = 'in_progress' AND parked_at IS NULL \
             AND lease_expires_at <= coalesce({}, statement_timestamp()) AND recover_at <= coalesce({}, statement_timestamp()) \
             AND operation = ANY ({}) AND recoveries < {} \
         ORDER BY recover_at LIMIT {}",
    )
    .bind::<Nullable<Timestamptz>, _>(now)
    .bind::<Nullable<Timestamptz>, _>(now)
    .bind::<Array<Text>, _>(operations)
    .bind::<Integer, _>(i32::try_from(attempts_max).unwrap_or(i32::MAX))
    .bind::<BigInt, _>(limit)
    .load::<DueRow>(conn)?;
    rows.into_iter()
        .map(|(merchant, key, operation, created_at, request_id, (parent, state), content)| {
            let (method, path, query, body) = content;
            let first = TraceContext::stored(parent.as_deref(), state.as_deref());
            let key = IdempotencyKey::bare(&key).ok_or_else(|| Failure::internal("a stored key is none"))?;
            let raw_body = body.clone();
            let content = RequestContent { method, path, path_as_sent: None, query, body, raw_body };
            Ok(DueRequest {
                operation,
                created_at,
                envelope: Envelope {
                    merchant,
                    key,
                    request_id,
                    trace: first.map_or_else(TraceContext::begin, |first| first.child()),
                    content,
                    proof: None,
                    actor: None,
                    message_id: None,
                },
            })
        })
        .collect()
}

/// SQL: parks requests whose last attempt died instead of failing, so that nobody could record it then.
macro_rules! park_exhausted {
    ($exhausted:literal, $of_merchant:literal) => {
        concat!(
            "WITH exhausted AS MATERIALIZED ( \
                 SELECT merchant_id, key FROM idempotency_keys \
                 WHERE state = 'in_progress' AND parked_at IS NULL AND recoveries >= {} \
                     AND lease_expires_at <= statement_timestamp() AND recover_at <= statement_timestamp() ",
            $exhausted,
            " FOR UPDATE SKIP LOCKED) \
             UPDATE idempotency_keys k SET parked_at = statement_timestamp(), last_error = coalesce(last_error, 'died') \
             FROM exhausted e WHERE ",
            $of_merchant,
            " k.merchant_id = e.merchant_id AND k.key = e.key",
        )
    };
}

/// Maximum number of requests that are parked at a time.
const PARKED_MAX: i64 = 100;

/// Parks requests whose last attempt died.
fn park_exhausted(conn: &mut PgConnection, attempts_max: u32) -> Result<usize, Failure> {
    let attempts_max = i32::try_from(attempts_max).unwrap_or(i32::MAX);
    if !shape::is_distributed() {
        return Ok(statement::<()>(park_exhausted!("ORDER BY created_at LIMIT {}", ""))
            .bind::<Integer, _>(attempts_max)
            .bind::<BigInt, _>(PARKED_MAX)
            .execute(conn)?);
    }
    let due = "/* of all merchants */ SELECT merchant_id, key FROM (SELECT {} AS now) AS clock, idempotency_keys \
         WHERE state = 'in_progress' AND parked_at IS NULL AND recoveries > 0 \
             AND lease_expires_at <= clock.now AND recover_at <= clock.now \
         ORDER BY recoveries DESC, created_at LIMIT {}";
    let mut parked = 0;
    for (merchant, keys) in find_by_merchant(conn, due, PARKED_MAX)? {
        parked += statement::<()>(park_exhausted!(
            "AND merchant_id = {} AND key = ANY ({})",
            "k.merchant_id = {} AND"
        ))
        .bind::<Integer, _>(attempts_max)
        .bind::<SqlUuid, _>(merchant)
        .bind::<Array<Text>, _>(keys)
        .bind::<SqlUuid, _>(merchant)
        .execute(conn)?;
    }
    Ok(parked)
}
