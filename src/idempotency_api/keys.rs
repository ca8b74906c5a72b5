//! The outcome of a request, by its idempotency key: for the merchant that lost the answer, and for
//! operators, who see all stuck requests and can set them going.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, get, post, web};
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, Uuid as SqlUuid};
use serde::Serialize;
use utoipa::openapi::schema::{AnyOfBuilder, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::openapi::{KnownFormat, RefOr};
use utoipa::{PartialSchema, ToSchema};
use uuid::Uuid;

use super::key_list::{self, KeyFilter, KeyQuery};
use crate::base::ids::MerchantId;
use crate::base::time::{self, Timestamp};
use crate::error::{Error, Failure, FieldError};
use crate::host::{self, Caller, Context, Descriptor, Engine, Input, Oncepay, RegisteredOperation};
use crate::idempotency::status::{self, KeyId, KeyRow, KeyState};
use crate::idempotency::{IdempotencyKey, IdempotentRequest, LocalOperation, Operation, Reply, parameter};
use crate::storage::db::Db;
use crate::web::auth::{AuthenticatedMerchant, AuthenticatedOperator};
use crate::web::fields::Fields;
use crate::web::lists::List;
use crate::web::problems::problems;
use crate::web::query::WithQuery;

/// The request has no answer yet.
const IN_PROGRESS: &str = "in_progress";
/// The answer is stored.
const COMPLETED: &str = "completed";
/// The answer is no longer stored.
const EXPIRED: &str = "expired";
/// All statuses of a key in the API.
pub(crate) const STATUSES: [&str; 3] = [IN_PROGRESS, COMPLETED, EXPIRED];

/// Status of the request with an idempotency key.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeyStatus {
    /// The key, without quotes.
    #[schema(example = "8e03978e-40d5-43dd-bc93-6894a57f9324")]
    key: String,
    /// Always `idempotency_key`.
    #[schema(example = "idempotency_key")]
    object: &'static str,
    /// `in_progress`: there is no answer yet. `completed`: sending the request again replays the answer.
    /// `expired`: the answer is no longer kept, and the key is refused.
    #[schema(example = "completed")]
    status: &'static str,
    /// Name of the requested operation.
    #[schema(example = "charges.create")]
    operation: String,
    /// Trace of the first request with the key, which its effects belong to.
    #[schema(example = "4bf92f3577b34da6a3ce929d0e0e4736")]
    trace_id: Option<String>,
    /// Number of attempts, without replays and refusals.
    #[schema(example = 1)]
    attempts: i32,
    /// `started`: nothing is final yet. `finished`: effects and answer are durable.
    #[schema(example = "finished")]
    recovery_point: String,
    /// HTTP status of the answer.
    #[schema(example = 201)]
    response_status: Option<i16>,
    /// Resource that the request created or changed, if it exists.
    resource: Option<KeyResource>,
    /// Time of the key's first claim.
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T09:30:00.000Z")]
    created_at: Timestamp,
    /// Time of the answer.
    #[schema(value_type = Option<String>, format = DateTime, example = "2026-01-31T09:30:00.000Z")]
    completed_at: Option<Timestamp>,
    /// Time until which the answer is kept.
    #[schema(value_type = String, format = DateTime, example = "2026-02-01T09:30:00.000Z")]
    expires_at: Timestamp,
}

/// The resource that a request created or changed.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeyResource {
    /// Type of the resource.
    #[serde(rename = "type")]
    #[schema(example = "charge")]
    kind: String,
    /// Id of the resource.
    #[schema(example = "ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    id: String,
    /// Path of the resource.
    #[schema(example = "/v1/charges/ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    url: String,
}

/// A key as operators see it.
#[derive(Debug, Serialize, ToSchema)]
pub struct OperatorKeyStatus {
    /// Id of the key among those of all merchants, used as a cursor of lists.
    #[schema(example = "mer_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b/8e03978e-40d5-43dd-bc93-6894a57f9324")]
    id: String,
    /// Owner of the key. All zeros for operators, all `f` for the processor.
    #[schema(value_type = String, example = "mer_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    merchant_id: MerchantId,
    #[serde(flatten)]
    key: KeyStatus,
    /// Request id of the last attempt, as in the log.
    #[schema(example = "req_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    request_id: String,
    /// Number of attempts by the service itself since an operator last asked for a retry.
    #[schema(example = 0)]
    recoveries: i32,
    /// Error code of the last failed attempt.
    #[schema(example = "processor_unavailable")]
    last_error: Option<String>,
    /// If in progress: end of the current attempt's lease.
    #[schema(value_type = Option<String>, format = DateTime, example = "2026-01-31T09:30:30.000Z")]
    lease_expires_at: Option<Timestamp>,
    /// If in progress: time at which the service takes the request over by itself.
    #[schema(value_type = Option<String>, format = DateTime, example = "2026-01-31T09:30:30.000Z")]
    recover_at: Option<Timestamp>,
    /// Time since which the request has waited for an operator.
    #[schema(value_type = Option<String>, format = DateTime, example = "2026-01-31T10:30:00.000Z")]
    parked_at: Option<Timestamp>,
}

impl KeyStatus {
    fn new(conn: &mut PgConnection, operations: &[RegisteredOperation], row: &KeyRow) -> Result<Self, Error> {
        let status = match row.state()? {
            KeyState::Running | KeyState::Abandoned | KeyState::Parked => IN_PROGRESS,
            KeyState::Completed => COMPLETED,
            KeyState::Expired | KeyState::Forgotten => EXPIRED,
        };
        Ok(Self {
            key: row.key.clone(),
            object: "idempotency_key",
            status,
            operation: row.operation.clone(),
            trace_id: row.trace_id.clone(),
            attempts: row.attempts,
            recovery_point: row.recovery_point.clone(),
            response_status: row.response_status,
            resource: match (&row.resource_type, row.resource_id) {
                (Some(kind), Some(id)) => resource(conn, operations, row.merchant_id, kind, id)?,
                _ => None,
            },
            created_at: Timestamp(row.created_at),
            completed_at: row.completed_at.map(Timestamp),
            expires_at: Timestamp(row.expires_at),
        })
    }
}

impl OperatorKeyStatus {
    /// What the API shows of a row. `operations` are those of the service, whose resources a key may name.
    pub fn new(
        conn: &mut PgConnection,
        operations: &[RegisteredOperation],
        row: &KeyRow,
    ) -> Result<Self, Error> {
        Ok(Self {
            id: row.id().to_string(),
            merchant_id: row.merchant_id,
            key: KeyStatus::new(conn, operations, row)?,
            request_id: row.request_id.clone(),
            recoveries: row.recoveries,
            last_error: row.last_error.clone(),
            lease_expires_at: row.lease_expires_at.map(Timestamp),
            recover_at: row.recover_at.map(Timestamp),
            parked_at: row.parked_at.map(Timestamp),
        })
    }
}

#[derive(QueryableByName)]
struct Parents {
    #[diesel(sql_type = Array<SqlUuid>)]
    parents: Vec<Uuid>,
}

/// Finds a resource and its path, if it exists: a claim names the resource before it's created, and a refusal
/// never creates it. `None`, too, for a kind that this release doesn't know, since a later release may have
/// created it before it was rolled back.
fn resource(
    conn: &mut PgConnection,
    operations: &[RegisteredOperation],
    merchant: MerchantId,
    name: &str,
    id: Uuid,
) -> Result<Option<KeyResource>, Error> {
    let Some(kind) = host::resource_kind(operations, name) else {
        log::warn!("a key is about a resource of the unknown kind {name}");
        return Ok(None);
    };
    let parents: Vec<_> = kind.parents.iter().map(|(column, _)| format!("r.{column}")).collect();
    // Both parameters occur, also for a resource that belongs to no merchant.
    let found = diesel::sql_query(format!(
        "SELECT ARRAY[{}]::uuid[] AS parents FROM {} r, (SELECT $1 AS merchant, $2 AS id) asked WHERE {} AND {}",
        parents.join(", "),
        kind.table,
        kind.row_sql("asked.merchant", "asked.id"),
        kind.condition
    ))
    .bind::<SqlUuid, _>(merchant)
    .bind::<SqlUuid, _>(id)
    .get_result::<Parents>(conn)
    .optional()?;
    Ok(found.map(|found| KeyResource {
        kind: kind.name.to_owned(),
        id: kind.format(id),
        url: kind.url(id, &found.parents),
    }))
}

problems!(GetProblems, reading: IdempotencyKeyNotFound);

/// Look up an idempotency key
///
/// For a client that lost the answer and doesn't want to send the request again. Sending it again is just as
/// safe, and gets the answer itself. Percent-encode the key if the path requires it.
#[utoipa::path(
    operation_id = "idempotency_keys.get",
    tag = "Idempotency",
    params(("key" = String, Path, description = "The key, without quotes", example = "8e03978e-40d5-43dd-bc93-6894a57f9324")),
    responses((status = 200, description = "The status of the request.", body = KeyStatus), GetProblems),
)]
#[get("/v1/idempotency-keys/{key}")]
pub async fn get(
    engine: web::Data<Engine>,
    db: web::Data<Db>,
    merchant: AuthenticatedMerchant,
    request: HttpRequest,
) -> Result<HttpResponse, Error> {
    let key = parameter("/v1/idempotency-keys/{key}", request.path(), "key").into_owned();
    let status = db
        .run_retrying(move |conn| {
            let row = find(conn, merchant.0, &key)?;
            KeyStatus::new(conn, &engine.host().operations, &row)
        })
        .await?;
    Ok(HttpResponse::Ok().json(status))
}

/// Finds the row for a text that may be a key.
fn find(conn: &mut PgConnection, merchant: MerchantId, key: &str) -> Result<KeyRow, Failure> {
    let key = IdempotencyKey::bare(key).ok_or(Failure::IdempotencyKeyNotFound)?;
    status::find(conn, merchant, key.as_str())?.ok_or(Failure::IdempotencyKeyNotFound)
}

// ---- Operators -------------------------------------------------------------------------------------

/// Format of `older_than`.
const OLDER_THAN: &str =
    "must be a number of seconds, a number with one of the units s, m, h, d, or an RFC 3339 time";

/// Maximum age in seconds, three hundred years. No key is that old, and Postgres has no time that is much longer ago.
const AGE_MAX_S: i64 = 9_999_999_999;

/// A lower bound for a key's age: seconds, or a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OlderThan {
    /// Claimed at least this many seconds ago.
    Seconds(i64),
    /// Claimed at this time, as it is shown, or before: up to the end of its millisecond.
    Time(DateTime<Utc>),
}

impl PartialSchema for OlderThan {
    fn schema() -> RefOr<Schema> {
        let text = || ObjectBuilder::new().schema_type(Type::String);
        let age = AnyOfBuilder::new()
            .item(text().pattern(Some("^[0-9]{1,10}[smhd]?$")))
            .item(text().format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime))));
        age.description(Some("A number of seconds, a number with a unit, or a time.")).into()
    }
}

impl ToSchema for OlderThan {}

impl std::str::FromStr for OlderThan {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        if let Some(time) = time::parse(text) {
            return Ok(Self::Time(time));
        }
        let (number, unit_s) = match text.char_indices().last() {
            Some((at, 's')) => (&text[..at], 1),
            Some((at, 'm')) => (&text[..at], 60),
            Some((at, 'h')) => (&text[..at], 60 * 60),
            Some((at, 'd')) => (&text[..at], 24 * 60 * 60),
            _ => (text, 1),
        };
        // Ten digits of seconds are three hundred years: a longer number is a mistake.
        let is_number = (1..=10).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
        let seconds = number.parse::<i64>().ok().filter(|_| is_number);
        let seconds = seconds.and_then(|n| n.checked_mul(unit_s)).ok_or(OLDER_THAN)?;
        Ok(Self::Seconds(seconds.min(AGE_MAX_S)))
    }
}

impl OlderThan {
    /// Restricts `query` to keys of this age.
    pub fn apply(self, query: &mut KeyQuery) {
        match self {
            Self::Seconds(seconds) => query.older_than_s = Some(seconds),
            Self::Time(time) => query.created_before = Some(time::end_of_millisecond(time)),
        }
    }
}

problems!(ListProblems, operating:);

/// List idempotency keys
///
/// Lists the keys of all merchants, newest first; by default those in progress. A key that has been in
/// progress for more than a minute deserves a look. Completed and expired keys are in the order of their
/// expiry.
#[utoipa::path(
    operation_id = "operator.idempotency_keys.list",
    tag = "Operators",
    params(
        ("status" = Option<String>, Query, description = "`in_progress` (the default), `abandoned` (in progress, without a live attempt), `parked`, `completed` or `expired`", example = "parked"),
        ("older_than" = Option<OlderThan>, Query, description = "Minimum age: in seconds, or with a unit as in `5m`, `2h`, `1d`; or an RFC 3339 time, which includes the keys claimed in its millisecond", example = "5m"),
        ("operation" = Option<String>, Query, min_length = 1, max_length = 255, description = "Name of an operation", example = "charges.create"),
        ("merchant_id" = Option<String>, Query, pattern = "^mer_[0-9a-f]{32}$", description = "Id of a merchant", example = "mer_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b"),
    ),
    responses((status = 200, description = "A page of keys.", body = List<OperatorKeyStatus>), ListProblems),
)]
#[get("/v1/operator/idempotency-keys")]
pub async fn list(
    engine: web::Data<Engine>,
    db: web::Data<Db>,
    WithQuery(_operator, query): WithQuery<AuthenticatedOperator>,
) -> Result<HttpResponse, Error> {
    let (filter, page) = query.read(|parameters| {
        let mut filter = KeyQuery {
            filter: parameters.optional("status", KeyFilter::FORMAT).unwrap_or_default(),
            operation: parameters.optional_text("operation"),
            merchant: parameters.optional("merchant_id", "must be an id of a merchant"),
            ..KeyQuery::default()
        };
        if let Some(older_than) = parameters.optional::<OlderThan>("older_than", OLDER_THAN) {
            older_than.apply(&mut filter);
        }
        (filter, parameters.page::<KeyId>())
    })?;
    let keys = db
        .run_retrying(move |conn| {
            let keys = key_list::list(conn, &filter, page.clone())?.ok_or_else(|| {
                let pointer = "/starting_after".to_owned();
                let detail = "there is no such key any more".to_owned();
                Error::ValidationFailed(vec![FieldError { pointer, detail }])
            })?;
            keys.try_map(|row| OperatorKeyStatus::new(conn, &engine.host().operations, &row))
        })
        .await?;
    Ok(HttpResponse::Ok().json(keys))
}

problems!(GetAnyProblems, operating: IdempotencyKeyNotFound);

/// Look up any merchant's idempotency key
///
/// Includes data that merchants don't see: the current lease, and the last error.
#[utoipa::path(
    operation_id = "operator.idempotency_keys.get",
    tag = "Operators",
    params(
        ("merchant_id" = String, Path, description = "Id of the key's merchant", example = "mer_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b"),
        ("key" = String, Path, description = "The key, without quotes", example = "8e03978e-40d5-43dd-bc93-6894a57f9324"),
    ),
    responses((status = 200, description = "The key.", body = OperatorKeyStatus), GetAnyProblems),
)]
#[get("/v1/operator/idempotency-keys/{merchant_id}/{key}")]
pub async fn get_any(
    engine: web::Data<Engine>,
    db: web::Data<Db>,
    _operator: AuthenticatedOperator,
    request: HttpRequest,
) -> Result<HttpResponse, Error> {
    let path = "/v1/operator/idempotency-keys/{merchant_id}/{key}";
    let parameter = |name| parameter(path, request.path(), name);
    let merchant = parameter("merchant_id").parse().map_err(|_| Failure::IdempotencyKeyNotFound)?;
    let key = parameter("key").into_owned();
    let status = db
        .run_retrying(move |conn| {
            let row = find(conn, merchant, &key)?;
            OperatorKeyStatus::new(conn, &engine.host().operations, &row)
        })
        .await?;
    Ok(HttpResponse::Ok().json(status))
}

/// Time for which the recovery worker leaves a released request to its client.
pub const RELEASED_FOR_S: u32 = 60;

/// Declares an operator's intervention in an unanswered request.
macro_rules! intervention {
    ($(#[$doc:meta])* $name:ident, $operation:literal, $path:literal, $act:expr) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name {
            merchant: Option<MerchantId>,
            key: String,
        }

        impl Operation for $name {
            type Host = Oncepay;

            const DESCRIPTOR: Descriptor =
                Descriptor::new($operation, "POST", $path, Caller::Operator).with_optional_body();

            fn read(input: &Input<'_>) -> Result<Self, Error> {
                Fields::read(input.body, |_| {
                    let key = input.parameter("key").into_owned();
                    Some(Self { merchant: input.id("merchant_id"), key })
                })
            }
        }

        impl LocalOperation for $name {
            /// Locks: the row of the other key.
            fn execute(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Reply, Error> {
                let merchant = self.merchant.ok_or(Failure::IdempotencyKeyNotFound)?;
                let key = IdempotencyKey::bare(&self.key).ok_or(Failure::IdempotencyKeyNotFound)?;
                if context.is_of_key(merchant, &key) {
                    // The intervention's own key, which was only claimed for this request.
                    return Err(Failure::IdempotencyKeyNotFound.into());
                }
                let act: fn(&mut PgConnection, MerchantId, &str) -> Result<KeyRow, Failure> = $act;
                let row = act(conn, merchant, key.as_str())?;
                host::record_action(conn, context.actor(), $operation, &row.id().to_string(), None)?;
                Ok(Reply::json(StatusCode::OK, &OperatorKeyStatus::new(conn, &context.host().operations, &row)?)?)
            }
        }
    };
}

intervention!(
    /// Makes the service take a request over now.
    RetryKey, "idempotency_keys.retry", "/v1/operator/idempotency-keys/{merchant_id}/{key}/retry", status::retry
);
intervention!(
    /// Ends the lease of a request.
    ReleaseKey, "idempotency_keys.release", "/v1/operator/idempotency-keys/{merchant_id}/{key}/release",
    |conn, merchant, key| status::release(conn, merchant, key, RELEASED_FOR_S)
);

problems!(InterventionProblems, operating_mutating: IdempotencyKeyNotFound, IdempotencyKeyNotInProgress);

/// Retry a stuck request
///
/// Makes the service try to finish the request now, however often that has failed before. A parked request is
/// no longer parked. A live attempt isn't disturbed: the service takes over after its lease.
#[utoipa::path(
    operation_id = "operator.idempotency_keys.retry",
    tag = "Operators",
    params(
        ("merchant_id" = String, Path, description = "Id of the key's merchant", example = "mer_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b"),
        ("key" = String, Path, description = "The key, without quotes", example = "8e03978e-40d5-43dd-bc93-6894a57f9324"),
    ),
    responses((status = 200, description = "The key.", body = OperatorKeyStatus), InterventionProblems),
)]
#[post("/v1/operator/idempotency-keys/{merchant_id}/{key}/retry")]
pub async fn retry(
    engine: web::Data<Engine>,
    request: IdempotentRequest<RetryKey>,
) -> Result<HttpResponse, Error> {
    engine.run_local(request).await
}

/// Release a stuck request
///
/// Ends the request's lease, whoever holds it, so that the client's next retry executes the request at once.
/// An attempt that is still running commits nothing. The service itself leaves the request alone for a
/// minute.
#[utoipa::path(
    operation_id = "operator.idempotency_keys.release",
    tag = "Operators",
    params(
        ("merchant_id" = String, Path, description = "Id of the key's merchant", example = "mer_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b"),
        ("key" = String, Path, description = "The key, without quotes", example = "8e03978e-40d5-43dd-bc93-6894a57f9324"),
    ),
    responses((status = 200, description = "The key.", body = OperatorKeyStatus), InterventionProblems),
)]
#[post("/v1/operator/idempotency-keys/{merchant_id}/{key}/release")]
pub async fn release(
    engine: web::Data<Engine>,
    request: IdempotentRequest<ReleaseKey>,
) -> Result<HttpResponse, Error> {
    engine.run_local(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_a_unit_or_is_in_seconds() {
        for (text, seconds) in [("0", 0), ("90", 90), ("90s", 90), ("5m", 300), ("2h", 7200), ("1d", 86_400)]
        {
            assert_eq!(text.parse(), Ok(OlderThan::Seconds(seconds)), "{text}");
        }
        assert_eq!("9999999999d".parse(), Ok(OlderThan::Seconds(AGE_MAX_S)));
        let time = "2026-01-31T09:30:00Z";
        assert_eq!(time.parse(), Ok(OlderThan::Time(time::parse(time).unwrap())));
        for text in ["", "s", "-5", "5w", "1.5h", "five", "99999999999", "5é", "2026-01-31"] {
            assert_eq!(text.parse::<OlderThan>(), Err(OLDER_THAN), "{text}");
        }
    }
}
