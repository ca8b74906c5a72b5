//! The end of a request that only a person can judge.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, post, web};
use diesel::prelude::*;
use utoipa::ToSchema;

use super::keys::OperatorKeyStatus;
use crate::base::ids::MerchantId;
use crate::error::{Error, Failure};
use crate::host::{self, Caller, Context, Descriptor, Engine, Input, Oncepay, RegisteredOperation};
use crate::idempotency::status::{self, KeyId, KeyRow};
use crate::idempotency::{IdempotencyKey, IdempotentRequest, LocalOperation, Operation, Reply, resolution};
use crate::web::fields::{Fields, TEXT_MAX};
use crate::web::problems::problems;

/// The only outcome that an operator can decide on.
pub const FAILED: &str = "failed";

/// Body of a resolution.
#[derive(Debug, ToSchema)]
#[schema(as = ResolveIdempotencyKey, example = json!({"as": "failed", "reason": "The processor confirms that nothing was captured."}))]
#[serde(deny_unknown_fields)]
pub struct ResolveKey {
    /// Outcome of the request, which has failed.
    #[schema(rename = "as", example = "failed")]
    #[expect(dead_code, reason = "there is one outcome; it's here for the schema")]
    outcome: String,
    /// Reason of the decision, for the record of operators' actions.
    #[schema(min_length = 1, max_length = 500)]
    reason: String,
    #[schema(ignore)]
    merchant: Option<MerchantId>,
    #[schema(ignore)]
    key: String,
}

impl Operation for ResolveKey {
    type Host = Oncepay;

    const DESCRIPTOR: Descriptor = Descriptor::new(
        "idempotency_keys.resolve",
        "POST",
        "/v1/operator/idempotency-keys/{merchant_id}/{key}/resolve",
        Caller::Operator,
    );

    fn read(input: &Input<'_>) -> Result<Self, Error> {
        Fields::read(input.body, |fields| {
            let outcome = fields.required_read("as", |word| match word {
                FAILED => Ok(word.to_owned()),
                _ => Err(format!("must be {FAILED}")),
            });
            let reason = fields.text("reason", TEXT_MAX);
            let key = input.parameter("key").into_owned();
            Some(Self { outcome: outcome?, reason: reason?, merchant: input.id("merchant_id"), key })
        })
    }
}

impl LocalOperation for ResolveKey {
    /// Locks: the row of the other key, then those of its operation.
    fn execute(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Reply, Error> {
        let merchant = self.merchant.ok_or(Failure::IdempotencyKeyNotFound)?;
        let key = IdempotencyKey::bare(&self.key).ok_or(Failure::IdempotencyKeyNotFound)?;
        if context.is_of_key(merchant, &key) {
            // The key of this very request.
            return Err(Failure::IdempotencyKeyNotFound.into());
        }
        let operations = &context.host().operations;
        let row = resolve(
            conn,
            operations,
            &KeyId { merchant, key: self.key.clone() },
            context.actor(),
            &self.reason,
        )?;
        Ok(Reply::json(StatusCode::OK, &OperatorKeyStatus::new(conn, operations, &row)?)?)
    }
}

/// Ends a request as failed, with the final answer `request_abandoned`, and records who did that and why. Must run
/// in a transaction.
///
/// Errors and locks as with [`resolution::abandon`]; then `operation_not_found` if this release doesn't know the
/// operation.
pub fn resolve(
    conn: &mut PgConnection,
    operations: &[RegisteredOperation],
    id: &KeyId,
    operator: &str,
    reason: &str,
) -> Result<KeyRow, Error> {
    let key = IdempotencyKey::bare(&id.key).ok_or(Failure::IdempotencyKeyNotFound)?;
    if !resolution::abandon(conn, operations, id.merchant, &key, &Error::RequestAbandoned)? {
        return Err(Error::OperationNotFound);
    }
    let name = ResolveKey::DESCRIPTOR.name;
    host::record_action(conn, operator, name, &id.to_string(), Some(reason))?;
    Ok(status::find(conn, id.merchant, key.as_str())?.ok_or(Failure::IdempotencyKeyNotFound)?)
}

problems!(ResolveProblems, operating_mutating: IdempotencyKeyNotFound, IdempotencyKeyNotInProgress, OperationNotFound);

/// End a stuck request
///
/// Ends a request as failed that the service can't finish, after you have found out at the processor that it had no
/// effect there. Everything that was set aside for it is available again, its object is `failed`, and its client
/// gets `request_abandoned` from now on. Reconciliation still reports what the processor did after all. Refused while an attempt
/// is being made: wait for the end of its lease.
#[utoipa::path(
    operation_id = "operator.idempotency_keys.resolve",
    tag = "Operators",
    params(
        ("merchant_id" = String, Path, description = "Id of the key's merchant", example = "mer_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b"),
        ("key" = String, Path, description = "The key, without quotes", example = "8e03978e-40d5-43dd-bc93-6894a57f9324"),
    ),
    request_body = ResolveKey,
    responses((status = 200, description = "The key, `completed`.", body = OperatorKeyStatus), ResolveProblems),
)]
#[post("/v1/operator/idempotency-keys/{merchant_id}/{key}/resolve")]
pub async fn resolve_key(
    engine: web::Data<Engine>,
    request: IdempotentRequest<ResolveKey>,
) -> Result<HttpResponse, Error> {
    engine.run_local(request).await
}
