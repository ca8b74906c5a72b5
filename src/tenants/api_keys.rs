//! A merchant's API keys: created (shown once), listed, revoked.
//!
//! To rotate a key, create a new key, switch to it, and revoke the old one. A revocation holds from its
//! commit on, on every instance, since each request looks its key up.
//!
//! A merchant without a key can't create one, so the last one is only revoked when the request says so.
//! Operators issue keys, see [`issued_keys`](super::issued_keys).

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, delete, get, post, web};
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use secrecy::ExposeSecret;
use serde::Serialize;
use utoipa::ToSchema;

use crate::base::derived_secrets::Purpose;
use crate::base::ids::{ApiKeyId, MerchantId};
use crate::base::time::Timestamp;
use crate::error::{Error, Failure};
use crate::host::{self, Caller, Context, Descriptor, Engine, Input, Oncepay};
use crate::idempotency::{
    IdempotentRequest, KeptHeader, LocalOperation, Operation, Reply, ResourceKind, SEALED, Target,
};
use crate::storage::db::Db;
use crate::storage::schema::api_keys;
use crate::web::auth::{API_KEY_PREFIX, AuthenticatedMerchant, key_sha256};
use crate::web::fields::Fields;
use crate::web::lists::{List, Parameters, load_page};
use crate::web::problems::problems;
use crate::web::query::WithQuery;

/// API keys, as a resource kind.
pub static API_KEY: ResourceKind =
    ResourceKind::new("api_key", ApiKeyId::PREFIX, "api_keys", "/v1/api-keys/{id}");

/// Maximum number of characters in a name.
pub(super) const NAME_MAX: usize = 100;

/// An API key, without the key itself.
#[derive(Debug, Serialize, ToSchema)]
pub struct ApiKey {
    /// Time-ordered id.
    #[schema(value_type = String, example = "ak_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    id: ApiKeyId,
    /// Always `api_key`.
    #[schema(example = "api_key")]
    object: &'static str,
    /// Name of the key.
    #[schema(example = "checkout")]
    name: String,
    /// The secret key. Only in the answer to its creation.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(
        nullable = false,
        example = "sk_test_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b6f1ed002ab5595859014ebf0951522d9"
    )]
    key: Option<String>,
    /// Time of its creation.
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T09:30:00.000Z")]
    created_at: Timestamp,
    /// Time of its revocation.
    #[schema(value_type = Option<String>, format = DateTime, example = json!(null))]
    revoked_at: Option<Timestamp>,
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = api_keys)]
struct ApiKeyRow {
    id: ApiKeyId,
    name: String,
    created_at: DateTime<Utc>,
    revoked_at: Option<DateTime<Utc>>,
}

impl ApiKeyRow {
    fn into_api_key(self) -> ApiKey {
        ApiKey {
            id: self.id,
            object: "api_key",
            name: self.name,
            key: None,
            created_at: Timestamp(self.created_at),
            revoked_at: self.revoked_at.map(Timestamp),
        }
    }
}

/// Creates a key for `merchant`, with the id `id`. The result holds the placeholder [`SEALED`] in place of
/// the secret; pass the reply that contains it through [`seal`].
pub(crate) fn create_for(
    conn: &mut PgConnection,
    context: &Context<'_>,
    merchant: MerchantId,
    id: ApiKeyId,
    name: &str,
) -> Result<ApiKey, Error> {
    let key = |secret: &str| format!("{API_KEY_PREFIX}{}{secret}", merchant.0.as_simple());
    let vault = &context.host().vault;
    let version = context.host().master_key_version()?;
    let secret = vault.derive(Purpose::ApiKey, id.0, version).ok_or(Failure::SecretUnavailable)?;
    diesel::insert_into(api_keys::table)
        .values((
            api_keys::merchant_id.eq(merchant),
            api_keys::id.eq(id),
            api_keys::name.eq(name),
            api_keys::key_sha256.eq(key_sha256(&key(secret.expose_secret()))),
            api_keys::created_at.eq(context.now()),
        ))
        .execute(conn)?;
    let row = ApiKeyRow { id, name: name.to_owned(), created_at: context.now(), revoked_at: None };
    Ok(ApiKey { key: Some(key(SEALED)), ..row.into_api_key() })
}

/// Seals a reply that shows a new key.
pub(crate) fn seal(context: &Context<'_>, reply: Reply, id: ApiKeyId) -> Result<Reply, Error> {
    Ok(reply.seal(host::seal(Purpose::ApiKey, id.0, context.host().master_key_version()?)))
}

/// Body of a new API key.
#[derive(Debug, ToSchema)]
#[schema(example = json!({"name": "checkout"}))]
#[serde(deny_unknown_fields)]
pub struct CreateApiKey {
    /// Name of the key.
    #[schema(min_length = 1, max_length = 100)]
    name: String,
}

impl Operation for CreateApiKey {
    type Host = Oncepay;

    const DESCRIPTOR: Descriptor =
        Descriptor::new("api_keys.create", "POST", "/v1/api-keys", Caller::Merchant)
            .about(Target::New(&API_KEY));

    fn read(input: &Input<'_>) -> Result<Self, Error> {
        Fields::read(input.body, |fields| Some(Self { name: fields.text("name", NAME_MAX)? }))
    }
}

impl LocalOperation for CreateApiKey {
    fn execute(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Reply, Error> {
        let id = ApiKeyId(context.resource_id()?);
        let api_key = create_for(conn, context, context.merchant(), id, &self.name)?;
        let reply = Reply::json(StatusCode::CREATED, &api_key)?;
        seal(context, reply.header(KeptHeader::Location, format!("/v1/api-keys/{id}")), id)
    }
}

problems!(CreateProblems, mutating: SecretUnavailable);

/// Create an API key
///
/// Only this answer shows the secret key; a retry with the same idempotency key shows it again. The service
/// stores only its hash.
#[utoipa::path(
    operation_id = "api_keys.create",
    tag = "API keys",
    request_body = CreateApiKey,
    responses(
        (status = 201, description = "The key was created.", body = ApiKey,
            headers(("Location" = String, description = "Path of the key"))),
        CreateProblems
    ),
)]
#[post("/v1/api-keys")]
pub async fn create(
    engine: web::Data<Engine>,
    request: IdempotentRequest<CreateApiKey>,
) -> Result<HttpResponse, Error> {
    engine.run_local(request).await
}

problems!(ListProblems, reading:);

/// List API keys
///
/// Newest first, including revoked keys. The list doesn't show the secret keys.
#[utoipa::path(
    operation_id = "api_keys.list",
    tag = "API keys",
    responses((status = 200, description = "A page of API keys.", body = List<ApiKey>), ListProblems),
)]
#[get("/v1/api-keys")]
pub async fn list(
    db: web::Data<Db>,
    WithQuery(merchant, query): WithQuery<AuthenticatedMerchant>,
) -> Result<HttpResponse, Error> {
    let page = query.read(Parameters::page::<ApiKeyId>)?;
    let keys = db
        .run_retrying(move |conn| {
            let query = api_keys::table
                .filter(api_keys::merchant_id.eq(merchant.0))
                .select(ApiKeyRow::as_select())
                .into_boxed();
            load_page!(conn, query, api_keys::id, page)?.try_map(|row: ApiKeyRow| Ok(row.into_api_key()))
        })
        .await?;
    Ok(HttpResponse::Ok().json(keys))
}

/// A revocation. Its body has no fields.
pub struct RevokeApiKey {
    id: Option<ApiKeyId>,
    /// Whether the key may be the last one.
    may_be_last: bool,
}

impl Operation for RevokeApiKey {
    type Host = Oncepay;

    const DESCRIPTOR: Descriptor =
        Descriptor::new("api_keys.revoke", "DELETE", "/v1/api-keys/{id}", Caller::Merchant)
            .about(Target::Named(&API_KEY, "id"))
            .with_query_parameters(&["last"])
            .with_optional_body();

    fn read(input: &Input<'_>) -> Result<Self, Error> {
        let last = Parameters::read(input.query, |query| query.optional("last", "must be true or false"))?;
        let may_be_last = last.unwrap_or(false);
        Fields::read(input.body, |_| Some(Self { id: input.id("id"), may_be_last }))
    }
}

impl LocalOperation for RevokeApiKey {
    /// Locks: the merchant's keys that aren't revoked, by id. So of two keys that revoke each other at the same
    /// time, one stays.
    fn execute(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Reply, Error> {
        let id = self.id.ok_or(Error::ApiKeyNotFound)?;
        let valid: Vec<ApiKeyId> = api_keys::table
            .filter(api_keys::merchant_id.eq(context.merchant()))
            .filter(api_keys::revoked_at.is_null())
            .order(api_keys::id)
            .select(api_keys::id)
            .for_update()
            .load(conn)?;
        let key = api_keys::table.find((context.merchant(), id));
        let row = key.select(ApiKeyRow::as_select()).first(conn).optional()?;
        let mut row = row.ok_or(Error::ApiKeyNotFound)?;
        if row.revoked_at.is_none() {
            if !self.may_be_last && valid == [id] {
                return Err(Error::LastApiKey);
            }
            row.revoked_at = Some(context.now());
            diesel::update(key).set(api_keys::revoked_at.eq(row.revoked_at)).execute(conn)?;
        }
        Ok(Reply::json(StatusCode::OK, &row.into_api_key())?)
    }
}

problems!(RevokeProblems, mutating: ApiKeyNotFound, LastApiKey);

/// Revoke an API key
///
/// Refuses the key from now on, also for replays. A key may revoke itself. Revoking a key again changes
/// nothing. The merchant's last key is only revoked with `last=true`, since only an operator can issue
/// another one then.
#[utoipa::path(
    operation_id = "api_keys.revoke",
    tag = "API keys",
    params(
        ("id" = String, Path, description = "Id of the key", example = "ak_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b"),
        ("last" = Option<bool>, Query, description = "Whether to revoke the key also if it's the merchant's last one. Default: false"),
    ),
    responses((status = 200, description = "The key, revoked.", body = ApiKey), RevokeProblems),
)]
#[delete("/v1/api-keys/{id}")]
pub async fn revoke(
    engine: web::Data<Engine>,
    request: IdempotentRequest<RevokeApiKey>,
) -> Result<HttpResponse, Error> {
    engine.run_local(request).await
}
