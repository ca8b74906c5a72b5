//! The idempotency policies: published to merchants, changed by operators.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, get, put, web};
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::base::ids::PolicyChangeId;
use crate::base::time::Timestamp;
use crate::error::Error;
use crate::host::{Caller, Context, Descriptor, Engine, Input, Oncepay};
use crate::idempotency::policies::{self, Defaults};
use crate::idempotency::policy::{Enforcement, FingerprintKind, OnExpired, OnMismatch, Policy};
use crate::idempotency::{
    IdempotentRequest, LocalOperation, Operation, PolicySetting, Reply, SettingKind, SettingValue,
};
use crate::storage::db::Db;
use crate::storage::schema::idempotency_policy_changes;
use crate::web::auth::{AuthenticatedMerchant, AuthenticatedOperator};
use crate::web::fields::{Fields, TEXT_MAX};
use crate::web::lists::{List, Parameters, load_page};
use crate::web::problems::problems;
use crate::web::query::WithQuery;

/// The idempotency policy of an operation.
#[derive(Debug, Serialize, ToSchema)]
pub struct OperationPolicy {
    /// Name of the operation.
    #[schema(example = "charges.create")]
    operation: String,
    #[serde(flatten)]
    policy: Policy,
}

impl OperationPolicy {
    /// What the API shows of a policy.
    pub fn new(operation: &str, policy: &Policy) -> Self {
        Self { operation: operation.to_owned(), policy: policy.clone() }
    }
}

/// Reads all policies from the database, sorted by the name of the operation. The engine must have read them
/// before: it adds missing rows.
fn load_all(conn: &mut PgConnection, defaults: &[Defaults]) -> Result<List<OperationPolicy>, Error> {
    let mut data: Vec<_> = policies::load(conn, defaults)?
        .into_iter()
        .map(|(operation, policy)| OperationPolicy { operation, policy: policy.as_ref().clone() })
        .collect();
    data.sort_by(|a, b| a.operation.cmp(&b.operation));
    Ok(List { data, has_more: false })
}

problems!(ListProblems, reading:);

/// List the idempotency policies
///
/// One policy per operation: whether keys have effect, how long answers are kept, how conflicts are resolved, how much one
/// merchant may send.
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
    let defaults = engine.host().policy_defaults();
    Ok(HttpResponse::Ok().json(db.run_retrying(move |conn| load_all(conn, &defaults)).await?))
}

problems!(OperatorListProblems, operating:);

/// List the idempotency policies as an operator
///
/// The same list that merchants see.
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
    let defaults = engine.host().policy_defaults();
    Ok(HttpResponse::Ok().json(db.run_retrying(move |conn| load_all(conn, &defaults)).await?))
}

problems!(GetProblems, operating: OperationNotFound);

/// Retrieve an idempotency policy
///
/// Returns the policy in the database. Instances adopt it within two seconds.
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
    let (operation, defaults) = (operation.into_inner(), engine.host().policy_defaults());
    let policy = db
        .run_retrying(move |conn| {
            let mut policies = policies::load(conn, &defaults)?;
            let policy = policies.remove(&operation).ok_or(Error::OperationNotFound)?;
            Ok::<_, Error>(OperationPolicy { operation: operation.clone(), policy: policy.as_ref().clone() })
        })
        .await?;
    Ok(HttpResponse::Ok().json(policy))
}

// ---- Change ----------------------------------------------------------------------------------------

/// A change of a policy. Omitted fields stay as they are.
#[derive(Debug, ToSchema)]
#[schema(example = json!({"enforcement": "observe", "rollout_percent": 10}))]
#[serde(deny_unknown_fields)]
pub struct ReplacePolicy {
    /// Name of the operation. Optional, since the path has it.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 500, example = "charges.create")]
    operation: String,
    /// Whether keys have effect.
    #[schema(nullable = false)]
    enforcement: Option<Enforcement>,
    /// Percentage of merchants that it applies to.
    #[schema(minimum = 0, maximum = 100, nullable = false)]
    rollout_percent: Option<u8>,
    /// Time for which an answer is kept. Claimed keys keep their lifetime.
    #[schema(minimum = 60, maximum = 2_592_000, nullable = false)]
    ttl_seconds: Option<u32>,
    /// Time after that for which the key is refused.
    #[schema(minimum = 0, maximum = 31_536_000, nullable = false)]
    tombstone_seconds: Option<u32>,
    /// Treatment of a key that comes back with another request.
    #[schema(nullable = false)]
    on_mismatch: Option<OnMismatch>,
    /// The form of the body that is compared. Claimed keys keep theirs.
    #[schema(nullable = false)]
    fingerprint: Option<FingerprintKind>,
    /// Treatment of a key that comes back after its lifetime.
    #[schema(nullable = false)]
    on_expired: Option<OnExpired>,
    /// Maximum wait that a duplicate can ask for.
    #[schema(minimum = 0, maximum = 30, nullable = false)]
    wait_max_seconds: Option<u8>,
    /// Requests per second that each instance takes from one merchant. 0: any number.
    #[schema(minimum = 0, maximum = 100_000, nullable = false)]
    rate_per_second: Option<u32>,
    /// Requests that it takes at once after a pause. 0: as many as in a second.
    #[schema(minimum = 0, maximum = 1_000_000, nullable = false)]
    burst: Option<u32>,
    /// Requests of one merchant that each instance has under way at the same time. 0: any number.
    #[schema(minimum = 0, maximum = 100_000, nullable = false)]
    concurrency_max: Option<u32>,
    #[schema(ignore)]
    own: Vec<(&'static str, SettingValue)>,
}

impl Operation for ReplacePolicy {
    type Host = Oncepay;

    const DESCRIPTOR: Descriptor = Descriptor::new(
        "idempotency_policies.replace",
        "PUT",
        "/v1/operator/idempotency-policies/{operation}",
        Caller::Operator,
    );

    fn read(input: &Input<'_>) -> Result<Self, Error> {
        let operation = input.parameter("operation").into_owned();
        let settings = input.host.policy_settings(&operation);
        Self::parse(operation, input.body, settings)
    }
}

impl ReplacePolicy {
    /// Reads the changes of the policy of `operation`, which has `settings` of its own, from a body.
    pub fn parse(operation: String, body: &Value, settings: &[PolicySetting]) -> Result<Self, Error> {
        Fields::read(body, |fields| {
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
                rate_per_second: fields.optional_integer("rate_per_second", 0, 100_000),
                burst: fields.optional_integer("burst", 0, 1_000_000),
                concurrency_max: fields.optional_integer("concurrency_max", 0, 100_000),
                own: settings.iter().filter_map(|setting| read_own(fields, setting)).collect(),
            })
        })
    }

    /// Changes the policy in the name of `changed_by`.
    ///
    /// Errors: `operation_not_found`. Locks: the policy's row.
    pub fn apply(
        &self,
        conn: &mut PgConnection,
        defaults: &[Defaults],
        changed_by: &str,
    ) -> Result<OperationPolicy, Error> {
        let old = policies::lock(conn, &self.operation, defaults)?.ok_or(Error::OperationNotFound)?;
        let mut new = Policy {
            enforcement: self.enforcement.unwrap_or(old.enforcement),
            rollout_percent: self.rollout_percent.unwrap_or(old.rollout_percent),
            ttl_seconds: self.ttl_seconds.unwrap_or(old.ttl_seconds),
            tombstone_seconds: self.tombstone_seconds.unwrap_or(old.tombstone_seconds),
            on_mismatch: self.on_mismatch.unwrap_or(old.on_mismatch),
            fingerprint: self.fingerprint.unwrap_or(old.fingerprint),
            on_expired: self.on_expired.unwrap_or(old.on_expired),
            wait_max_seconds: self.wait_max_seconds.unwrap_or(old.wait_max_seconds),
            rate_per_second: self.rate_per_second.unwrap_or(old.rate_per_second),
            burst: self.burst.unwrap_or(old.burst),
            concurrency_max: self.concurrency_max.unwrap_or(old.concurrency_max),
            own: old.own,
        };
        for (name, value) in &self.own {
            new.own.set(name, *value);
        }
        policies::change(conn, &self.operation, &new, changed_by)?;
        Ok(OperationPolicy { operation: self.operation.clone(), policy: new })
    }
}

/// Reads a setting that only one operation has.
fn read_own(fields: &mut Fields<'_>, setting: &PolicySetting) -> Option<(&'static str, SettingValue)> {
    let value = match setting.kind {
        SettingKind::Number(least, most) => {
            fields.optional_integer(setting.name, least.into(), most.into()).map(SettingValue::Number)
        }
        SettingKind::Choice(words) => fields.optional_read(setting.name, |text| {
            let found = words.iter().find(|word| **word == text);
            found
                .map(|word| SettingValue::Word(word))
                .ok_or_else(|| format!("must be one of {}", words.join(", ")))
        }),
    };
    value.map(|value| (setting.name, value))
}

impl LocalOperation for ReplacePolicy {
    fn execute(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Reply, Error> {
        Ok(Reply::json(
            StatusCode::OK,
            &self.apply(conn, &context.host().policy_defaults(), context.actor())?,
        )?)
    }
}

problems!(ReplaceProblems, operating_mutating: OperationNotFound);

/// Change an idempotency policy
///
/// Changes all given members or, if any value is invalid, none. Omitted members stay as they are. Every
/// instance adopts the new policy within two seconds, without a restart. The service records the change with
/// its author and time.
#[utoipa::path(
    operation_id = "operator.idempotency_policies.replace",
    tag = "Operators",
    params(("operation" = String, Path, description = "Name of the operation", example = "charges.create")),
    request_body = ReplacePolicy,
    responses((status = 200, description = "The changed policy.", body = OperationPolicy), ReplaceProblems),
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
    pub(crate) operation: String,
    /// Time of the change.
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T09:30:00.000Z")]
    pub(crate) changed_at: Timestamp,
    /// Author of the change: name and id of the operator's key, or the user of the command line.
    #[schema(example = "first key (0193b2f0c1d87a3e9a4b5c6d7e8f9a0b)")]
    pub(crate) changed_by: String,
    /// Policy before the change.
    #[schema(value_type = Policy)]
    pub(crate) before: serde_json::Value,
    /// Policy after the change.
    #[schema(value_type = Policy)]
    pub(crate) after: serde_json::Value,
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

/// Reads all changes of policies, or those of one operation's, newest first.
pub fn changes(conn: &mut PgConnection, operation: Option<&str>) -> Result<Vec<PolicyChange>, Error> {
    let mut query =
        idempotency_policy_changes::table.order(idempotency_policy_changes::id.desc()).into_boxed();
    if let Some(operation) = operation {
        query = query.filter(idempotency_policy_changes::operation.eq(operation));
    }
    Ok(query.load::<ChangeRow>(conn)?.into_iter().map(PolicyChange::new).collect())
}

problems!(ListChangesProblems, operating: OperationNotFound);

/// List the changes of an idempotency policy
///
/// Newest first, with author, time and content of each change. Includes changes made with `psql`.
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
    WithQuery(_operator, query): WithQuery<AuthenticatedOperator>,
    operation: web::Path<String>,
) -> Result<HttpResponse, Error> {
    let page = query.read(Parameters::page::<PolicyChangeId>)?;
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
