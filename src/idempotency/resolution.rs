//! The end of a request that can't be finished, by an operator's decision.

use std::time::Instant;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Nullable, Text, Timestamptz, Uuid as SqlUuid};
use uuid::Uuid;

use crate::base::ids::MerchantId;
use crate::base::trace::TraceContext;
use crate::error::failure::Failure;
use crate::storage::clock;
use crate::storage::shape;
use crate::storage::sql::statement;

use super::host::{Host, HostError};
use super::key::IdempotencyKey;
use super::operation::Abandoned;
use super::registry::RegisteredOperation;
use super::store::{self, Claim};

type Row = (
    Option<Uuid>,
    Option<Uuid>,
    String,
    String,
    String,
    Option<String>,
    Option<DateTime<Utc>>,
    DateTime<Utc>,
    DateTime<Utc>,
);
type RowSql = (
    Nullable<SqlUuid>,
    Nullable<SqlUuid>,
    Text,
    Text,
    Text,
    Nullable<Text>,
    Nullable<Timestamptz>,
    Timestamptz,
    Timestamptz,
);

/// Ends an unanswered request: releases what its operation has set aside, and stores `answer`, an error, as its
/// final answer. Returns false, without any effect, if the operation is unknown, as when a later release has begun the
/// request: then nothing can be released. Must run in a transaction.
///
/// Errors, in the order checked: `idempotency_key_not_found`, `idempotency_key_not_in_progress`,
/// `idempotency_request_in_progress` while an attempt has a lease: it may be about to succeed.
///
/// Locks: the key's row, then those of the operation.
pub fn abandon<H: Host>(
    conn: &mut PgConnection,
    operations: &[RegisteredOperation<H>],
    merchant: MerchantId,
    key: &IdempotencyKey,
    answer: &H::Error,
) -> Result<bool, H::Error> {
    let row = statement::<RowSql>(
        "SELECT claim_token, resource_id, operation, request_id, request_path, traceparent, \
             CASE WHEN parked_at IS NULL THEN lease_expires_at END, \
             created_at, clock_timestamp() \
         FROM idempotency_keys WHERE merchant_id = {} AND key = {} FOR UPDATE",
    )
    .bind::<SqlUuid, _>(merchant)
    .bind::<Text, _>(key.as_str())
    .get_result::<Row>(conn)
    .optional()?;
    let (token, resource_id, name, request_id, path, parent, leased_until, created_at, now) =
        row.ok_or(Failure::IdempotencyKeyNotFound)?;
    let token = token.ok_or(Failure::IdempotencyKeyNotInProgress)?;
    let now = if shape::is_distributed() { clock::now(conn)? } else { now };
    if leased_until.is_some_and(|until| until > now) {
        return Err(Failure::IdempotencyRequestInProgress { waited_s: None, is_parked: false }.into());
    }
    let Some(operation) = operations.iter().find(|operation| operation.descriptor.name == name) else {
        return Ok(false);
    };
    operation.abandon(conn, &Abandoned { merchant, resource_id, now })?;
    let claim = Claim {
        merchant,
        key: key.clone(),
        token,
        resource_id,
        attempt: 1,
        recoveries: 0,
        trace: TraceContext::stored(parent.as_deref(), None).unwrap_or_else(TraceContext::begin),
        created_at,
        taken_at: (now, Instant::now()),
        // Only calls of the processor need it.
        generation: None,
    };
    store::complete(conn, &claim, answer.reply(&request_id, &path)?, &request_id)?;
    Ok(true)
}
