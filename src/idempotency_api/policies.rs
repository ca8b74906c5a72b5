//! The idempotency policies: published to merchants, changed by operators.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, get, put, web};
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::base::ids::PolicyChangeId;
use crate::base::time::Timestamp;
use crate::error::Error;
use crate::idempotency::policy::{
    self, Enforcement, FingerprintKind, OnExpired, OnMismatch, OnSuspectedDuplicate, Policy,
};
use crate::idempotency::{
    Caller, Context, Engine, IdempotentRequest, Input, LocalOperation, Operation, Reply, Resource,
};
use crate::storage::db::Db;
use crate::storage::schema::idempotency_policy_changes;
use crate::web::auth::{AuthenticatedMerchant, AuthenticatedOperator};
use crate::web::fields::TEXT_MAX;
use crate::web::lists::{List, Parameters, load_page};
use crate::web::problems::problems;

/// How an operation treats its idempotency keys.
#[derive(Debug, Serialize, ToSchema)]
pub struct OperationPolicy {
    /// Name of the operation.
    #[schema(example = "charges.create")]
    operation: String,
    #[serde(flatten)]
    policy: Policy,
}

/// All policies as they are in the database, by the name of the operation. The engine must have read them before:
/// it adds the rows that are missing.
fn load_all(conn: &mut PgConnection) -> Result<List<OperationPolicy>, Error> {
    let mut data: Vec<_> = policy::load(conn)?
        .into_iter()
        .map(|(operation, policy)| OperationPolicy { operation, policy: policy.as_ref().clone() })
        .collect();
    data.sort_by(|a, b| a.operation.cmp(&b.operation));
    Ok(List { data, has_more: false })
}

problems!(ListProblems, reading:);

/// List the idempotency policies
///
/// One per operation: whether keys have effect, how long answers are kept, what conflicts lead to.
#[utoipa::path(
    operation_id = "idempotency_policies.all",
    tag = "Idempotency",
    responses((status = 200, description = "All policies, by operation.", body = List<OperationPolicy>), ListProblems),
)]
#[get("/v1/idempotency-policies")]
pub async fn list(
    engine: web::Data<Engine>,
    db: web::Data<Db>,
    _merchant: AuthenticatedMerchant,
) -> Result<HttpResponse, Error> {
    engine.policies().await?;
    Ok(HttpResponse::Ok().json(db.run_retrying(load_all).await?))
}

problems!(OperatorListProblems, operating:);

/// List the idempotency policies as an operator
///
/// The same list as merchants see.
#[utoipa::path(
    operation_id = "operator.idempotency_policies.all",
    tag = "Operators",
    responses((status = 200, description = "All policies, by operation.", body = List<OperationPolicy>), OperatorListProblems),
)]
#[get("/v1/operator/idempotency-policies")]
pub async fn list_for_operators(
    engine: web::Data<Engine>,
    db: web::Data<Db>,
    _operator: AuthenticatedOperator,
) -> Result<HttpResponse, Error> {
    engine.policies().await?;
    Ok(HttpResponse::Ok().json(db.run_retrying(load_all).await?))
}

problems!(GetProblems, operating: OperationNotFound);

/// Retrieve an idempotency policy
///
/// As it is in the database; instances follow it within two seconds.
#[utoipa::path(
    operation_id = "operator.idempotency_policies.get",
    tag = "Operators",
    params(("operation" = String, Path, description = "Name of the operation", example = "charges.create")),
    responses((status = 200, description = "The policy.", body = OperationPolicy), GetProblems),
)]
#[get("/v1/operator/idempotency-policies/{operation}")]
pub async fn get(
    engine: web::Data<Engine>,
    db: web::Data<Db>,
    _operator: AuthenticatedOperator,
    operation: web::Path<String>,
) -> Result<HttpResponse, Error> {
    engine.policies().await?;
    let operation = operation.into_inner();
    let policy = db
        .run_retrying(move |conn| {
            let mut policies = policy::load(conn)?;
            let policy = policies.remove(&operation).ok_or(Error::OperationNotFound)?;
            Ok(OperationPolicy { operation: operation.clone(), policy: policy.as_ref().clone() })
        })
        .await?;
    Ok(HttpResponse::Ok().json(policy))
}

// ---- Change ----------------------------------------------------------------------------------------

/// What is to be changed of a policy; what is left out stays as it is.
#[derive(Debug, ToSchema)]
#[schema(example = json!({"enforcement": "observe", "rollout_percent": 10}))]
#[serde(deny_unknown_fields)]
pub struct ReplacePolicy {
    /// May be repeated from the path.
    #[schema(value_type = Option<String>, nullable = false, example = "charges.create")]
    operation: String,
    /// Whether keys have effect.
    #[schema(nullable = false)]
    enforcement: Option<Enforcement>,
    /// For how many of a hundred merchants.
    #[schema(minimum = 0, maximum = 100, nullable = false)]
    rollout_percent: Option<u8>,
    /// How long an answer is kept. Keys that are claimed already keep their lifetime.
    #[schema(minimum = 60, maximum = 2_592_000, nullable = false)]
    ttl_seconds: Option<u32>,
    /// How long after that the key is refused.
    #[schema(minimum = 0, maximum = 31_536_000, nullable = false)]
    tombstone_seconds: Option<u32>,
    /// What happens to a key that comes back with another request.
    #[schema(nullable = false)]
    on_mismatch: Option<OnMismatch>,
    /// What of the body is compared. Keys that are claimed already are compared as they were.
    #[schema(nullable = false)]
    fingerprint: Option<FingerprintKind>,
    /// What happens to a key that comes back after its lifetime.
    #[schema(nullable = false)]
    on_expired: Option<OnExpired>,
    /// Longest wait that a duplicate can ask for.
    #[schema(minimum = 0, maximum = 30, nullable = false)]
    wait_max_seconds: Option<u8>,
    /// What happens to a charge that looks like another one under another key.
    #[schema(nullable = false)]
    on_suspected_duplicate: Option<OnSuspectedDuplicate>,
    /// How far back it looks; 0 turns it off.
    #[schema(minimum = 0, maximum = 86_400, nullable = false)]
    suspicion_window_seconds: Option<u32>,
}

impl Operation for ReplacePolicy {
    const NAME: &'static str = "idempotency_policies.replace";
    const CALLER: Caller = Caller::Operator;

    fn read(input: &mut Input<'_, '_>) -> Option<Self> {
        let operation = input.segment(3).into_owned();
        let fields = &mut *input.fields;
        if fields.optional_text("operation", TEXT_MAX).is_some_and(|repeated| repeated != operation) {
            fields.error("operation", "must be the operation of the path");
        }
        Some(Self {
            operation,
            enforcement: fields.optional_choice("enforcement"),
            rollout_percent: fields.optional_integer("rollout_percent", 0, 100),
            ttl_seconds: fields.optional_integer("ttl_seconds", 60, 2_592_000),
            tombstone_seconds: fields.optional_integer("tombstone_seconds", 0, 31_536_000),
            on_mismatch: fields.optional_choice("on_mismatch"),
            fingerprint: fields.optional_choice("fingerprint"),
            on_expired: fields.optional_choice("on_expired"),
            wait_max_seconds: fields.optional_integer("wait_max_seconds", 0, 30),
            on_suspected_duplicate: fields.optional_choice("on_suspected_duplicate"),
            suspicion_window_seconds: fields.optional_integer("suspicion_window_seconds", 0, 86_400),
        })
    }

    fn resource(&self) -> Resource {
        Resource::None
    }
}

impl ReplacePolicy {
    /// Changes the policy in the name of `changed_by`.
    ///
    /// Errors: `operation_not_found`. Locks: the policy's row.
    pub fn apply(&self, conn: &mut PgConnection, changed_by: &str) -> Result<OperationPolicy, Error> {
        let old = policy::lock(conn, &self.operation)?.ok_or(Error::OperationNotFound)?;
        let new = Policy {
            enforcement: self.enforcement.unwrap_or(old.enforcement),
            rollout_percent: self.rollout_percent.unwrap_or(old.rollout_percent),
            ttl_seconds: self.ttl_seconds.unwrap_or(old.ttl_seconds),
            tombstone_seconds: self.tombstone_seconds.unwrap_or(old.tombstone_seconds),
            on_mismatch: self.on_mismatch.unwrap_or(old.on_mismatch),
            fingerprint: self.fingerprint.unwrap_or(old.fingerprint),
            on_expired: self.on_expired.unwrap_or(old.on_expired),
            wait_max_seconds: self.wait_max_seconds.unwrap_or(old.wait_max_seconds),
            on_suspected_duplicate: self.on_suspected_duplicate.unwrap_or(old.on_suspected_duplicate),
            suspicion_window_seconds: self.suspicion_window_seconds.unwrap_or(old.suspicion_window_seconds),
        };
        policy::change(conn, &self.operation, &new, changed_by)?;
        Ok(OperationPolicy { operation: self.operation.clone(), policy: new })
    }
}

impl LocalOperation for ReplacePolicy {
    fn execute(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Reply, Error> {
        Reply::json(StatusCode::OK, &self.apply(conn, context.actor())?)
    }
}

problems!(ReplaceProblems, operating_mutating: OperationNotFound);

/// Change an idempotency policy
///
/// All of it or, if any value isn't allowed, nothing. Members that are left out stay as they are. Every instance
/// follows the new policy within two seconds, without a restart, and the change is kept with who and when.
#[utoipa::path(
    operation_id = "operator.idempotency_policies.replace",
    tag = "Operators",
    params(("operation" = String, Path, description = "Name of the operation", example = "charges.create")),
    request_body = ReplacePolicy,
    responses((status = 200, description = "The policy after the change.", body = OperationPolicy), ReplaceProblems),
)]
#[put("/v1/operator/idempotency-policies/{operation}")]
pub async fn replace(
    engine: web::Data<Engine>,
    request: IdempotentRequest<ReplacePolicy>,
) -> Result<HttpResponse, Error> {
    engine.run_local(request).await
}

// ---- History ---------------------------------------------------------------------------------------

/// A change of a policy.
#[derive(Debug, Serialize, ToSchema)]
pub struct PolicyChange {
    /// Time-ordered id.
    #[schema(value_type = String, example = "pc_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    id: PolicyChangeId,
    /// Always `idempotency_policy_change`.
    #[schema(example = "idempotency_policy_change")]
    object: &'static str,
    /// Name of the operation.
    #[schema(example = "charges.create")]
    operation: String,
    /// When.
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T09:30:00.000Z")]
    changed_at: Timestamp,
    /// Who: name and id of the operator's key, or who used the command line.
    #[schema(example = "first key (0193b2f0c1d87a3e9a4b5c6d7e8f9a0b)")]
    changed_by: String,
    /// The policy before.
    #[schema(value_type = Policy)]
    before: serde_json::Value,
    /// The policy after.
    #[schema(value_type = Policy)]
    after: serde_json::Value,
}

type ChangeRow = (Uuid, String, DateTime<Utc>, String, serde_json::Value, serde_json::Value);

impl PolicyChange {
    fn new((id, operation, changed_at, changed_by, before, after): ChangeRow) -> Self {
        Self {
            id: PolicyChangeId(id),
            object: "idempotency_policy_change",
            operation,
            changed_at: Timestamp(changed_at),
            changed_by,
            before,
            after,
        }
    }
}

problems!(ListChangesProblems, operating_listing: OperationNotFound);

/// List the changes of an idempotency policy
///
/// Newest first: who changed what, and when. Changes made with `psql` are among them.
#[utoipa::path(
    operation_id = "operator.idempotency_policies.changes.list",
    tag = "Operators",
    params(("operation" = String, Path, description = "Name of the operation", example = "charges.create")),
    responses((status = 200, description = "A page of changes.", body = List<PolicyChange>), ListChangesProblems),
)]
#[get("/v1/operator/idempotency-policies/{operation}/changes")]
pub async fn list_changes(
    engine: web::Data<Engine>,
    db: web::Data<Db>,
    _operator: AuthenticatedOperator,
    operation: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, Error> {
    let page = Parameters::read(request.query_string(), Parameters::page::<PolicyChangeId>)?;
    let operation = operation.into_inner();
    if !engine.policies().await?.contains_key(&operation) {
        return Err(Error::OperationNotFound);
    }
    let changes = db
        .run_retrying(move |conn| {
            let query = idempotency_policy_changes::table
                .filter(idempotency_policy_changes::operation.eq(&operation))
                .into_boxed();
            let rows: List<ChangeRow> = load_page!(conn, query, idempotency_policy_changes::id, page)?;
            rows.try_map(|row| Ok(PolicyChange::new(row)))
        })
        .await?;
    Ok(HttpResponse::Ok().json(changes))
}
