//! The recovery worker: finishes requests that died, without their clients.
//!
//! Each instance runs one. They don't need to know of each other: a request is taken over by an update that
//! skips locked rows, so that each is taken by one. Oldest first; after a failure, with growing pauses; and a
//! request that has failed too often (a *poison* request) is parked until an operator looks at it, so that it
//! can't keep the worker from the others.
//!
//! Guarantee: while processor and database work, a request that died is finished within the rest of its lease
//! (or [`Recovery::delay`] after an attempt that failed), one [`Recovery::interval`], and the time that it takes
//! by itself.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Binary, Integer, Text, Timestamptz, Uuid as SqlUuid};
use futures_util::{StreamExt, stream};

use crate::error::Error;
use crate::ids::MerchantId;
use crate::sql::statement;

use super::engine::Engine;
use super::fingerprint::RequestContent;
use super::key::IdempotencyKey;
use super::registry::Registered;
use super::request::Envelope;

/// Longest pause between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(15 * 60);

/// Requests that are looked up at a time. More than are worked on at a time, so that instances which look at the
/// same ones find others when they come too late.
const BATCH: i64 = 32;

/// How the worker goes about it.
#[derive(Clone, Copy, Debug)]
pub struct Recovery {
    /// How often it looks for work.
    pub interval: Duration,
    /// How long a request is left to its client after an attempt that failed, and the worker's first pause.
    /// It doubles with each of the worker's attempts.
    pub delay: Duration,
    /// Attempts of the worker before it parks a request.
    pub attempts_max: u32,
    /// Requests that it works on at the same time.
    pub concurrency: u32,
}

impl Recovery {
    /// Pause after the worker's attempt number `recoveries`, or after a client's (0). Shortened by up to a
    /// quarter at random, so that requests that failed together don't come back together.
    pub fn backoff(&self, recoveries: u32) -> Duration {
        let pause =
            self.delay.saturating_mul(2_u32.saturating_pow(recoveries)).min(BACKOFF_MAX.max(self.delay));
        pause.mul_f64(rand::random_range(0.75..=1.0))
    }

    /// Whether a request whose worker's attempt number `recoveries` has failed is to be parked.
    pub fn is_last(&self, recoveries: u32) -> bool {
        recoveries >= self.attempts_max
    }
}

/// A request to be taken on.
pub struct Due {
    /// What was asked for.
    pub operation: String,
    /// When the key was claimed.
    pub created_at: DateTime<Utc>,
    /// As it was when the last client sent it.
    pub envelope: Envelope,
}

/// How a recovery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovered {
    /// The request is answered now.
    Finished,
    /// Somebody else was faster.
    Lost,
    /// It isn't finished, and will be tried again.
    Failed,
    /// It isn't finished, and an operator has to look at it.
    Parked,
}

impl Recovered {
    /// As it's counted.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Lost => "lost",
            Self::Failed => "failed",
            Self::Parked => "parked",
        }
    }
}

/// Takes due requests on; doesn't return.
pub async fn keep_recovering(engine: Engine, operations: Arc<Vec<Registered>>) {
    let recovery = engine.timing().recovery;
    loop {
        match run_due(&engine, &operations).await {
            // There may be more.
            Ok(1..) => {}
            Ok(0) => tokio::time::sleep(recovery.interval).await,
            Err(error) => {
                log::warn!("the recovery worker couldn't look for work: {}", error.detailed());
                tokio::time::sleep(recovery.interval).await;
            }
        }
    }
}

/// Takes the oldest due requests on and waits for them. Returns how many were really taken on here.
pub async fn run_due(engine: &Engine, operations: &[Registered]) -> Result<usize, Error> {
    let recovery = engine.timing().recovery;
    // Only what this release knows: after a rollback, requests of the newer release wait for it.
    let known: Vec<&'static str> = operations
        .iter()
        .filter(|operation| operation.is_external())
        .map(|operation| operation.name)
        .collect();
    let parked = engine.db().run_retrying(move |conn| park_exhausted(conn, recovery.attempts_max)).await?;
    engine.metrics().parkings.inc_by(parked as u64);
    let due = engine.db().run_retrying(move |conn| due(conn, &known, BATCH)).await?;
    let attempts = due.into_iter().map(|due| async move {
        // The query asked for known ones only.
        let Some(operation) = operations.iter().find(|operation| operation.name == due.operation) else {
            return 0;
        };
        let recovered = operation.recover(engine.clone(), due).await;
        engine.metrics().recoveries.with_label_values(&[operation.name, recovered.as_str()]).inc();
        if recovered == Recovered::Parked {
            engine.metrics().parkings.inc();
        }
        usize::from(recovered != Recovered::Lost)
    });
    let concurrency = recovery.concurrency as usize;
    Ok(stream::iter(attempts)
        .buffer_unordered(concurrency)
        .fold(0, |sum, taken| async move { sum + taken })
        .await)
}

/// The oldest requests that nobody works on and whose time has come, up to `limit`. No lock: taking one over
/// decides who gets it.
///
/// `statement_timestamp()` is constant in a statement, so that the index can be walked by it.
fn due(conn: &mut PgConnection, operations: &[&'static str], limit: i64) -> Result<Vec<Due>, Error> {
    let rows = statement::<(SqlUuid, Text, Text, Timestamptz, Text, Text, Text, Text, Binary)>(
        "SELECT merchant_id, key, operation, created_at, request_id, request_method, request_path, request_query, \
             request_body \
         FROM idempotency_keys \
         WHERE state = 'in_progress' AND parked_at IS NULL \
             AND lease_expires_at <= statement_timestamp() AND recover_at <= statement_timestamp() \
             AND operation = ANY ({}) \
         ORDER BY created_at LIMIT {}",
    )
    .bind::<Array<Text>, _>(operations)
    .bind::<BigInt, _>(limit)
    .load::<(MerchantId, String, String, DateTime<Utc>, String, String, String, String, Vec<u8>)>(conn)?;
    rows.into_iter()
        .map(|(merchant, key, operation, created_at, request_id, method, path, query, body)| {
            let key = IdempotencyKey::bare(&key).ok_or_else(|| Error::internal("a stored key is none"))?;
            let raw_body = body.clone();
            let content = RequestContent { method, path, query, body, raw_body };
            Ok(Due {
                operation,
                created_at,
                envelope: Envelope { merchant, key, request_id, content, actor: None },
            })
        })
        .collect()
}

/// Parks requests whose last attempt died instead of failing, which nobody could note at that time.
fn park_exhausted(conn: &mut PgConnection, attempts_max: u32) -> Result<usize, Error> {
    Ok(statement::<()>(
        "WITH exhausted AS MATERIALIZED ( \
             SELECT merchant_id, key FROM idempotency_keys \
             WHERE state = 'in_progress' AND parked_at IS NULL AND recoveries >= {} \
                 AND lease_expires_at <= statement_timestamp() AND recover_at <= statement_timestamp() \
             ORDER BY created_at LIMIT 100 FOR UPDATE SKIP LOCKED) \
         UPDATE idempotency_keys k SET parked_at = clock_timestamp(), last_error = coalesce(last_error, 'died') \
         FROM exhausted e WHERE k.merchant_id = e.merchant_id AND k.key = e.key",
    )
    .bind::<Integer, _>(i32::try_from(attempts_max).unwrap_or(i32::MAX))
    .execute(conn)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound() {
        let recovery = Recovery {
            interval: Duration::from_secs(1),
            delay: Duration::from_secs(4),
            attempts_max: 20,
            concurrency: 4,
        };
        for (recoveries, nominal_s) in [(0, 4.0), (1, 8.0), (5, 128.0), (10, 900.0), (1000, 900.0)] {
            let pause = recovery.backoff(recoveries).as_secs_f64();
            assert!((nominal_s * 0.75..=nominal_s).contains(&pause), "{pause} after {recoveries}");
        }
        assert!(!recovery.is_last(19) && recovery.is_last(20));
    }
}
