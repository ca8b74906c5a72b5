//! Webhook endpoints: where a merchant receives events, which types, and the secret that signs the messages.
//!
//! A secret appears only in the answer that created it and in the replays of that answer. It's derived rather
//! than stored (see [`derived_secrets`](crate::base::derived_secrets)), from a version that each rotation
//! increments, so that the previous secret can sign along until the receivers have switched. The row names the
//! master keys that both derive from, which may have been replaced since.
//!
//! A deleted endpoint keeps its row, since deliveries refer to it, and is hidden otherwise.
//!
//! Not promised: that a URL leads to a public address. This module checks only literal IP addresses. A name
//! can resolve differently at any time, so the client checks each [address](super::address) that it connects
//! to.

use std::net::IpAddr;
use std::str::FromStr;

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, delete, get, patch, post, web};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::prelude::*;
use diesel::sql_types::Uuid as SqlUuid;
use serde::Serialize;
use url::{Host, Url};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};

use crate::base::derived_secrets::{MasterKeyVersion, Purpose};
use crate::base::ids::{MerchantId, WebhookEndpointId};
use crate::base::time::Timestamp;
use crate::error::Error;
use crate::events::{EventType, one_of};
use crate::host::{self, Caller, Context, Descriptor, Engine, Input, Oncepay};
use crate::idempotency::{
    IdempotentRequest, KeptHeader, LocalOperation, Operation, Reply, ResourceKind, SEALED, Target,
};
use crate::storage::db::Db;
use crate::storage::schema::webhook_endpoints;
use crate::storage::sql::statement;
use crate::web::auth::AuthenticatedMerchant;
use crate::web::fields::{Fields, Patch, TEXT_MAX};
use crate::web::lists::{List, Parameters, load_page};
use crate::web::problems::problems;
use crate::web::query::WithQuery;

use super::address::{can_be_public, is_public};

/// Webhook endpoints, as a resource kind. Deleted ones still have their rows.
pub static WEBHOOK_ENDPOINT: ResourceKind = ResourceKind {
    condition: "r.status <> 'deleted'",
    ..ResourceKind::new(
        "webhook_endpoint",
        WebhookEndpointId::PREFIX,
        "webhook_endpoints",
        "/v1/webhook-endpoints/{id}",
    )
};

/// Maximum number of endpoints of a merchant: each event costs a delivery for each of them.
const ENDPOINTS_MAX: i64 = 16;
/// Maximum number of characters in a URL.
const URL_MAX: usize = 2048;
/// Pattern of a URL, as far as a pattern can tell which ones [`EndpointUrl`] takes.
pub(crate) const URL_PATTERN: &str = r"^[Hh][Tt][Tt][Pp][Ss]?://[^\s\x00-\x1f\x7f-\x9f\\#]+$";
/// Stands for all event types, including future ones.
pub(crate) const EVERYTHING: &str = "*";

/// Element of `event_types` in the API's description: an event type, or `*` for all.
pub struct EventFilter;

impl PartialSchema for EventFilter {
    fn schema() -> RefOr<Schema> {
        let names = std::iter::once(EVERYTHING).chain(EventType::names());
        one_of(names, "An event type, or `*` for all.")
    }
}

impl ToSchema for EventFilter {}
/// Default time for which the previous secret signs along after a rotation.
const OVERLAP_S: u32 = 24 * 60 * 60;
/// Maximum for that time.
const OVERLAP_S_MAX: u32 = 7 * 24 * 60 * 60;

/// A merchant's destination for events.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookEndpoint {
    /// Time-ordered id.
    #[schema(value_type = String, example = "we_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    id: WebhookEndpointId,
    /// Always `webhook_endpoint`.
    #[schema(example = "webhook_endpoint")]
    object: &'static str,
    /// URL that messages are sent to.
    #[schema(example = "https://shop.example/webhooks")]
    url: String,
    /// Event types that the endpoint receives; `*` stands for all.
    #[schema(value_type = Vec<EventFilter>, example = json!(["charge.succeeded", "charge.refunded"]))]
    event_types: Vec<String>,
    /// Free text.
    #[schema(example = "Order system")]
    description: Option<String>,
    /// `enabled` or `disabled`; `deleted` in the answer to its deletion.
    #[schema(example = "enabled")]
    status: String,
    /// Secret that signs the messages, as defined by [Standard Webhooks](https://www.standardwebhooks.com).
    /// Only in the answer to the endpoint's creation and to a rotation.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=")]
    secret: Option<String>,
    /// Time until which the previous secret signs messages, too.
    #[schema(value_type = Option<String>, format = DateTime, example = json!(null))]
    previous_secret_expires_at: Option<Timestamp>,
    /// Time of the first failed delivery after the last successful one.
    #[schema(value_type = Option<String>, format = DateTime, example = json!(null))]
    failing_since: Option<Timestamp>,
    /// Time at which the endpoint was disabled.
    #[schema(value_type = Option<String>, format = DateTime, example = json!(null))]
    disabled_at: Option<Timestamp>,
    /// Time of its creation.
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T09:30:00.000Z")]
    created_at: Timestamp,
}

/// Whether the service sends messages. The merchant sets it; the service disables an endpoint that fails for
/// too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum EndpointStatus {
    /// The service sends messages.
    Enabled,
    /// The service sends no messages, and never delivers events that happen meanwhile.
    Disabled,
}

/// State of a deleted endpoint, for good.
const DELETED: &str = "deleted";

/// Where an endpoint can stand, in the database and in the API.
pub(crate) const STATUSES: [&str; 3] =
    [EndpointStatus::Enabled.as_str(), EndpointStatus::Disabled.as_str(), DELETED];

impl EndpointStatus {
    /// Name in the database and in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Disabled => "disabled",
        }
    }
}

impl FromStr for EndpointStatus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Enabled, Self::Disabled]
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| "must be enabled or disabled".to_owned())
    }
}

/// An endpoint as it is stored.
#[derive(Clone, Debug, Queryable, Selectable)]
#[diesel(table_name = webhook_endpoints)]
pub(crate) struct EndpointRow {
    pub merchant_id: MerchantId,
    pub id: WebhookEndpointId,
    pub url: String,
    pub event_types: Vec<String>,
    pub description: Option<String>,
    pub status: String,
    pub secret_version: i32,
    /// Version of the master key from which the secret derives.
    pub secret_key_version: i32,
    pub previous_secret_expires_at: Option<DateTime<Utc>>,
    /// The same for the secret before it.
    pub previous_secret_key_version: i32,
    pub failing_since: Option<DateTime<Utc>>,
    pub disabled_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub enabled_at: Option<DateTime<Utc>>,
    /// Until then nothing is sent.
    pub paused_until: Option<DateTime<Utc>>,
    /// Time of the first message that it has accepted since it was created or enabled.
    pub first_accepted_at: Option<DateTime<Utc>>,
}

impl EndpointRow {
    /// Finds an endpoint. Errors: `webhook_endpoint_not_found`, also for a deleted one.
    pub fn find(conn: &mut PgConnection, merchant: MerchantId, id: WebhookEndpointId) -> Result<Self, Error> {
        webhook_endpoints::table
            .find((merchant, id))
            .filter(webhook_endpoints::status.ne(DELETED))
            .select(Self::as_select())
            .first(conn)
            .optional()?
            .ok_or(Error::WebhookEndpointNotFound)
    }

    /// Finds an endpoint and locks it until the transaction ends. Recording events never waits for the lock:
    /// it only reads endpoints.
    fn lock(
        conn: &mut PgConnection,
        merchant: MerchantId,
        id: Option<WebhookEndpointId>,
    ) -> Result<Self, Error> {
        let id = id.ok_or(Error::WebhookEndpointNotFound)?;
        webhook_endpoints::table
            .find((merchant, id))
            .filter(webhook_endpoints::status.ne(DELETED))
            .select(Self::as_select())
            .for_update()
            .first(conn)
            .optional()?
            .ok_or(Error::WebhookEndpointNotFound)
    }

    /// Writes the mutable columns.
    fn save(&self, conn: &mut PgConnection) -> Result<(), Error> {
        diesel::update(webhook_endpoints::table.find((self.merchant_id, self.id)))
            .set((
                webhook_endpoints::url.eq(&self.url),
                webhook_endpoints::event_types.eq(&self.event_types),
                webhook_endpoints::description.eq(&self.description),
                webhook_endpoints::status.eq(&self.status),
                webhook_endpoints::secret_version.eq(self.secret_version),
                webhook_endpoints::secret_key_version.eq(self.secret_key_version),
                webhook_endpoints::previous_secret_expires_at.eq(self.previous_secret_expires_at),
                webhook_endpoints::previous_secret_key_version.eq(self.previous_secret_key_version),
                webhook_endpoints::failing_since.eq(self.failing_since),
                webhook_endpoints::disabled_at.eq(self.disabled_at),
                webhook_endpoints::enabled_at.eq(self.enabled_at),
                webhook_endpoints::paused_until.eq(self.paused_until),
                webhook_endpoints::first_accepted_at.eq(self.first_accepted_at),
            ))
            .execute(conn)?;
        Ok(())
    }

    /// Changes nothing if the status stays the same: enabling a failing endpoint again doesn't raise its
    /// share.
    fn set_status(&mut self, status: EndpointStatus, now: DateTime<Utc>) {
        if self.status == status.as_str() {
            return;
        }
        match status {
            EndpointStatus::Enabled => {
                (self.failing_since, self.disabled_at, self.enabled_at) = (None, None, Some(now));
                (self.paused_until, self.first_accepted_at) = (None, None);
            }
            EndpointStatus::Disabled => self.disabled_at = Some(now),
        }
        status.as_str().clone_into(&mut self.status);
    }

    /// Converts the row to the endpoint that the API shows, without the secret.
    pub fn into_endpoint(self) -> WebhookEndpoint {
        WebhookEndpoint {
            id: self.id,
            object: "webhook_endpoint",
            url: self.url,
            event_types: self.event_types,
            description: self.description,
            status: self.status,
            secret: None,
            previous_secret_expires_at: self.previous_secret_expires_at.map(Timestamp),
            failing_since: self.failing_since.map(Timestamp),
            disabled_at: self.disabled_at.map(Timestamp),
            created_at: Timestamp(self.created_at),
        }
    }

    /// Makes an answer that shows the endpoint with its current secret.
    fn into_reply_with_secret(self, status: StatusCode) -> Result<Reply, Error> {
        let (id, purpose) = (self.id, Purpose::WebhookSecret { version: self.secret_version });
        let key = MasterKeyVersion(self.secret_key_version);
        let endpoint = WebhookEndpoint { secret: Some(SEALED.to_owned()), ..self.into_endpoint() };
        Ok(Reply::json(status, &endpoint)?.seal(host::seal(purpose, id.0, key)))
    }
}

/// A URL that messages may be sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct EndpointUrl(String);

impl EndpointUrl {
    /// Parses a URL. The error says what it must be. Only the service's own host may receive messages without
    /// TLS, and only if `allows_loopback` is set.
    fn parse(text: &str, allows_loopback: bool) -> Result<Self, String> {
        if text.chars().count() > URL_MAX {
            return Err(format!("must have at most {URL_MAX} characters"));
        }
        let no_url = || "must be an absolute URL such as https://shop.example/webhooks".to_owned();
        // A slip that a browser would correct for its user is an error here.
        let is_plain = !text.chars().any(|c| c.is_whitespace() || c.is_control() || c == '\\');
        let (scheme, rest) = text.split_once("://").filter(|_| is_plain).ok_or_else(no_url)?;
        let authority = rest.split(['/', '?', '#']).next().filter(|authority| !authority.is_empty());
        let url = Url::parse(text).map_err(|_| no_url())?;
        let (host, authority) = url.host().zip(authority).ok_or_else(no_url)?;
        if !["http", "https"].contains(&scheme.to_ascii_lowercase().as_str()) {
            return Err("must be an https URL".to_owned());
        }
        if authority.contains('@') {
            return Err("must not contain a user name or password".to_owned());
        }
        if url.fragment().is_some() {
            return Err("must not have a fragment".to_owned());
        }
        if url.port() == Some(0) {
            return Err("must not have the port 0".to_owned());
        }
        let is_loopback = match host {
            Host::Domain(name) => {
                let rooted = name.strip_suffix('.').unwrap_or(name);
                let is_loopback = rooted == "localhost" || rooted.ends_with(".localhost");
                if !is_loopback && !can_be_public(name) {
                    return Err("must have a public host name such as shop.example".to_owned());
                }
                is_loopback
            }
            Host::Ipv4(ip) => {
                let written = authority.split(':').next().unwrap_or_default();
                // `0x8.8.8.8` and `134744072` are addresses to a browser, and names to others.
                if written != ip.to_string() {
                    return Err("must have an IPv4 address in the form of four decimal numbers".to_owned());
                }
                judge(ip.into())?
            }
            Host::Ipv6(ip) => judge(ip.into())?,
        };
        match (is_loopback, url.scheme()) {
            (true, _) if allows_loopback => {}
            (_, "http") => return Err("must be an https URL".to_owned()),
            (true, _) => return Err("must lead to a public address".to_owned()),
            (false, _) => {}
        }
        Ok(Self(text.to_owned()))
    }
}

/// Whether the address belongs to the service's own host. An error if it's neither that nor public.
fn judge(ip: IpAddr) -> Result<bool, String> {
    let is_loopback = ip.to_canonical().is_loopback();
    if is_loopback || is_public(ip) {
        Ok(is_loopback)
    } else {
        Err("must lead to a public address".to_owned())
    }
}

/// Reads `url`.
fn read_url(fields: &mut Fields<'_>, input: &Input<'_>) -> Option<EndpointUrl> {
    let allows_loopback = input.host.allows_loopback;
    fields.optional_read("url", |text| EndpointUrl::parse(text, allows_loopback))
}

/// Reads `event_types`.
fn read_event_types(fields: &mut Fields<'_>) -> Option<Vec<&'static str>> {
    fields.optional_choices("event_types", |text| match text {
        EVERYTHING => Ok(EVERYTHING),
        text => text.parse().map(EventType::as_str),
    })
}

fn owned(event_types: &[&str]) -> Vec<String> {
    event_types.iter().map(|&kind| kind.to_owned()).collect()
}

// ---- Create ----------------------------------------------------------------------------------------

/// Body of a new webhook endpoint.
#[derive(Debug, ToSchema)]
#[schema(example = json!({"url": "https://shop.example/webhooks", "event_types": ["charge.succeeded", "charge.refunded"]}))]
#[serde(deny_unknown_fields)]
pub struct CreateWebhookEndpoint {
    /// URL that messages are sent to: an https URL of a public host, without user name, password and
    /// fragment.
    #[schema(value_type = String, format = "uri", max_length = 2048)]
    url: EndpointUrl,
    /// Event types that the endpoint receives, or `*` for all. Default: `*`.
    #[schema(value_type = Option<Vec<EventFilter>>, nullable = false, min_items = 1)]
    event_types: Vec<&'static str>,
    /// Free text.
    #[schema(min_length = 1, max_length = 500)]
    description: Option<String>,
}

impl Operation for CreateWebhookEndpoint {
    type Host = Oncepay;

    const DESCRIPTOR: Descriptor =
        Descriptor::new("webhook_endpoints.create", "POST", "/v1/webhook-endpoints", Caller::Merchant)
            .about(Target::New(&WEBHOOK_ENDPOINT));

    fn read(input: &Input<'_>) -> Result<Self, Error> {
        Fields::read(input.body, |fields| {
            let url = fields.required("url").and_then(|_| read_url(fields, input));
            let event_types = read_event_types(fields).unwrap_or_else(|| vec![EVERYTHING]);
            let description = fields.optional_text("description", TEXT_MAX);
            Some(Self { url: url?, event_types, description })
        })
    }
}

impl LocalOperation for CreateWebhookEndpoint {
    /// Locks: the merchant's number of endpoints.
    fn execute(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Reply, Error> {
        let merchant = context.merchant();
        lock_number_of_endpoints(conn, merchant)?;
        let endpoints: i64 = webhook_endpoints::table
            .filter(webhook_endpoints::merchant_id.eq(merchant))
            .filter(webhook_endpoints::status.ne(DELETED))
            .count()
            .get_result(conn)?;
        if endpoints >= ENDPOINTS_MAX {
            return Err(Error::WebhookEndpointLimitReached { endpoints_max: ENDPOINTS_MAX });
        }
        let id = WebhookEndpointId(context.resource_id()?);
        let row: EndpointRow = diesel::insert_into(webhook_endpoints::table)
            .values((
                webhook_endpoints::merchant_id.eq(merchant),
                webhook_endpoints::id.eq(id),
                webhook_endpoints::url.eq(&self.url.0),
                webhook_endpoints::event_types.eq(owned(&self.event_types)),
                webhook_endpoints::description.eq(&self.description),
                webhook_endpoints::status.eq(EndpointStatus::Enabled.as_str()),
                webhook_endpoints::secret_version.eq(1),
                webhook_endpoints::secret_key_version.eq(context.host().master_key_version()?.0),
                webhook_endpoints::created_at.eq(context.now()),
            ))
            .returning(EndpointRow::as_select())
            .get_result(conn)?;
        let reply = row.into_reply_with_secret(StatusCode::CREATED)?;
        Ok(reply.header(KeptHeader::Location, format!("/v1/webhook-endpoints/{id}")))
    }
}

/// Serializes the creation of a merchant's endpoints, until the transaction ends. The service's role can't
/// lock merchants, whose rows never change, so it takes an advisory lock.
fn lock_number_of_endpoints(conn: &mut PgConnection, merchant: MerchantId) -> Result<(), Error> {
    statement::<()>(
        "SELECT pg_advisory_xact_lock(hashtextextended('webhook_endpoints', hashtextextended({}::text, 0)))",
    )
    .bind::<SqlUuid, _>(merchant)
    .execute(conn)?;
    Ok(())
}

problems!(CreateProblems, mutating: WebhookEndpointLimitReached, SecretUnavailable);

/// Create a webhook endpoint
///
/// From now on, the endpoint receives events of its types. The answer shows the secret that signs the
/// messages ([Standard Webhooks](https://www.standardwebhooks.com)). A retry with the same idempotency key
/// shows it again, and nothing else does. A merchant can have 16 endpoints.
#[utoipa::path(
    operation_id = "webhook_endpoints.create",
    tag = "Webhooks",
    request_body = CreateWebhookEndpoint,
    responses(
        (status = 201, description = "The endpoint was created.", body = WebhookEndpoint,
            headers(("Location" = String, description = "Path of the endpoint"))),
        CreateProblems
    ),
)]
#[post("/v1/webhook-endpoints")]
pub async fn create(
    engine: web::Data<Engine>,
    request: IdempotentRequest<CreateWebhookEndpoint>,
) -> Result<HttpResponse, Error> {
    engine.run_local(request).await
}

// ---- Read ------------------------------------------------------------------------------------------

problems!(ListProblems, reading:);

/// List webhook endpoints
///
/// Newest first. The list doesn't show the secrets.
#[utoipa::path(
    operation_id = "webhook_endpoints.list",
    tag = "Webhooks",
    responses(
        (status = 200, description = "A page of webhook endpoints.", body = List<WebhookEndpoint>),
        ListProblems
    ),
)]
#[get("/v1/webhook-endpoints")]
pub async fn list(
    db: web::Data<Db>,
    WithQuery(merchant, query): WithQuery<AuthenticatedMerchant>,
) -> Result<HttpResponse, Error> {
    let page = query.read(Parameters::page::<WebhookEndpointId>)?;
    let endpoints = db
        .run_retrying(move |conn| {
            let query = webhook_endpoints::table
                .filter(webhook_endpoints::merchant_id.eq(merchant.0))
                .filter(webhook_endpoints::status.ne(DELETED))
                .select(EndpointRow::as_select())
                .into_boxed();
            load_page!(conn, query, webhook_endpoints::id, page)?
                .try_map(|row: EndpointRow| Ok(row.into_endpoint()))
        })
        .await?;
    Ok(HttpResponse::Ok().json(endpoints))
}

problems!(GetProblems, reading: WebhookEndpointNotFound);

/// Retrieve a webhook endpoint
///
/// The answer doesn't show the secret.
#[utoipa::path(
    operation_id = "webhook_endpoints.get",
    tag = "Webhooks",
    params(("id" = String, Path, description = "Id of the endpoint", example = "we_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")),
    responses((status = 200, description = "The endpoint's current state.", body = WebhookEndpoint), GetProblems),
)]
#[get("/v1/webhook-endpoints/{id}")]
pub async fn get(
    db: web::Data<Db>,
    merchant: AuthenticatedMerchant,
    id: web::Path<String>,
) -> Result<HttpResponse, Error> {
    let id = id.parse().map_err(|_| Error::WebhookEndpointNotFound)?;
    let row = db.run_retrying(move |conn| EndpointRow::find(conn, merchant.0, id)).await?;
    Ok(HttpResponse::Ok().json(row.into_endpoint()))
}

// ---- Update ----------------------------------------------------------------------------------------

/// A merge patch (RFC 7396): omitted fields stay.
#[derive(Debug, ToSchema)]
#[schema(example = json!({"event_types": ["*"], "description": null, "status": "enabled"}))]
#[serde(deny_unknown_fields)]
pub struct UpdateWebhookEndpoint {
    #[schema(ignore)]
    id: Option<WebhookEndpointId>,
    /// New URL that messages are sent to.
    #[schema(value_type = Option<String>, nullable = false, format = "uri", max_length = 2048)]
    url: Option<EndpointUrl>,
    /// New list of event types that the endpoint receives.
    #[schema(value_type = Option<Vec<EventFilter>>, nullable = false, min_items = 1)]
    event_types: Option<Vec<&'static str>>,
    /// New text, or `null` to remove it.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 500)]
    description: Patch<String>,
    /// `disabled` stops sending: pending deliveries keep waiting, and events that happen meanwhile are never
    /// delivered. `enabled`, after that, resets the endpoint: its failures are forgotten, and pending
    /// deliveries are attempted for as long as new ones.
    #[schema(value_type = Option<EndpointStatus>, nullable = false)]
    status: Option<EndpointStatus>,
}

impl Operation for UpdateWebhookEndpoint {
    type Host = Oncepay;

    const DESCRIPTOR: Descriptor =
        Descriptor::new("webhook_endpoints.update", "PATCH", "/v1/webhook-endpoints/{id}", Caller::Merchant)
            .about(Target::Named(&WEBHOOK_ENDPOINT, "id"));

    fn read(input: &Input<'_>) -> Result<Self, Error> {
        Fields::read(input.body, |fields| {
            Some(Self {
                id: input.id("id"),
                url: read_url(fields, input),
                event_types: read_event_types(fields),
                description: fields.patch_text("description", TEXT_MAX),
                status: fields.optional_choice("status"),
            })
        })
    }
}

impl LocalOperation for UpdateWebhookEndpoint {
    /// Locks: the endpoint.
    fn execute(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Reply, Error> {
        let mut row = EndpointRow::lock(conn, context.merchant(), self.id)?;
        if let Some(url) = &self.url {
            row.url.clone_from(&url.0);
        }
        if let Some(event_types) = &self.event_types {
            row.event_types = owned(event_types);
        }
        match &self.description {
            Patch::Keep => {}
            Patch::Remove => row.description = None,
            Patch::Set(text) => row.description = Some(text.clone()),
        }
        if let Some(status) = self.status {
            row.set_status(status, context.now());
        }
        row.save(conn)?;
        Ok(Reply::json(StatusCode::OK, &row.into_endpoint())?)
    }
}

problems!(UpdateProblems, mutating: WebhookEndpointNotFound);

/// Update a webhook endpoint
///
/// Updates an endpoint with a JSON merge patch (RFC 7396). Enabling a disabled endpoint resets it:
/// `failing_since` and `disabled_at` are removed.
#[utoipa::path(
    operation_id = "webhook_endpoints.update",
    tag = "Webhooks",
    params(("id" = String, Path, description = "Id of the endpoint", example = "we_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")),
    request_body(content(
        (UpdateWebhookEndpoint = "application/json"),
        (UpdateWebhookEndpoint = "application/merge-patch+json"),
    )),
    responses((status = 200, description = "The updated endpoint.", body = WebhookEndpoint), UpdateProblems),
)]
#[patch("/v1/webhook-endpoints/{id}")]
pub async fn update(
    engine: web::Data<Engine>,
    request: IdempotentRequest<UpdateWebhookEndpoint>,
) -> Result<HttpResponse, Error> {
    engine.run_local(request).await
}

// ---- Rotate the secret -----------------------------------------------------------------------------

/// Body of a rotation. May be empty.
#[derive(Debug, ToSchema)]
#[schema(example = json!({"overlap_seconds": 3600}))]
#[serde(deny_unknown_fields)]
pub struct RotateSecret {
    #[schema(ignore)]
    id: Option<WebhookEndpointId>,
    /// Time for which the old secret also signs messages, in seconds: 0 to 604800 (seven days). Default: a
    /// day.
    #[schema(value_type = Option<u32>, nullable = false, minimum = 0, maximum = 604800)]
    overlap_seconds: u32,
}

impl Operation for RotateSecret {
    type Host = Oncepay;

    const DESCRIPTOR: Descriptor = Descriptor::new(
        "webhook_endpoints.rotate_secret",
        "POST",
        "/v1/webhook-endpoints/{id}/rotate-secret",
        Caller::Merchant,
    )
    .about(Target::Named(&WEBHOOK_ENDPOINT, "id"))
    .with_optional_body();

    fn read(input: &Input<'_>) -> Result<Self, Error> {
        Fields::read(input.body, |fields| {
            let overlap = fields.optional_integer("overlap_seconds", 0, OVERLAP_S_MAX.into());
            Some(Self { id: input.id("id"), overlap_seconds: overlap.unwrap_or(OVERLAP_S) })
        })
    }
}

impl LocalOperation for RotateSecret {
    /// Locks: the endpoint.
    fn execute(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Reply, Error> {
        let mut row = EndpointRow::lock(conn, context.merchant(), self.id)?;
        row.secret_version += 1;
        row.previous_secret_key_version = row.secret_key_version;
        row.secret_key_version = context.host().master_key_version()?.0;
        let overlap = TimeDelta::seconds(self.overlap_seconds.into());
        row.previous_secret_expires_at = (!overlap.is_zero()).then(|| context.now() + overlap);
        row.save(conn)?;
        row.into_reply_with_secret(StatusCode::OK)
    }
}

problems!(RotateProblems, mutating: WebhookEndpointNotFound, SecretUnavailable);

/// Rotate a webhook endpoint's secret
///
/// The answer shows the new secret. A retry with the same idempotency key shows it again, and nothing else
/// does. Until `previous_secret_expires_at`, each message carries two signatures: by the new secret and by
/// the previous one. Without an overlap the old secret stops signing at once, as a leaked secret requires. At
/// most one old secret signs along: another rotation ends the overlap of the one before.
#[utoipa::path(
    operation_id = "webhook_endpoints.rotate_secret",
    tag = "Webhooks",
    params(("id" = String, Path, description = "Id of the endpoint", example = "we_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")),
    request_body = RotateSecret,
    responses((status = 200, description = "The endpoint with its new secret.", body = WebhookEndpoint), RotateProblems),
)]
#[post("/v1/webhook-endpoints/{id}/rotate-secret")]
pub async fn rotate_secret(
    engine: web::Data<Engine>,
    request: IdempotentRequest<RotateSecret>,
) -> Result<HttpResponse, Error> {
    engine.run_local(request).await
}

// ---- Delete ----------------------------------------------------------------------------------------

/// Body of a deletion, which has no fields.
pub struct DeleteWebhookEndpoint {
    id: Option<WebhookEndpointId>,
}

impl Operation for DeleteWebhookEndpoint {
    type Host = Oncepay;

    const DESCRIPTOR: Descriptor =
        Descriptor::new("webhook_endpoints.delete", "DELETE", "/v1/webhook-endpoints/{id}", Caller::Merchant)
            .about(Target::Named(&WEBHOOK_ENDPOINT, "id"))
            .with_optional_body();

    fn read(input: &Input<'_>) -> Result<Self, Error> {
        Fields::read(input.body, |_| Some(Self { id: input.id("id") }))
    }
}

impl LocalOperation for DeleteWebhookEndpoint {
    /// Locks: the endpoint.
    fn execute(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Reply, Error> {
        let mut row = EndpointRow::lock(conn, context.merchant(), self.id)?;
        DELETED.clone_into(&mut row.status);
        row.save(conn)?;
        Ok(Reply::json(StatusCode::OK, &row.into_endpoint())?)
    }
}

problems!(DeleteProblems, mutating: WebhookEndpointNotFound);

/// Delete a webhook endpoint
///
/// From now on, the service sends nothing to the endpoint, gives up its pending deliveries within seconds,
/// and no longer shows it. Past deliveries to it stay visible. To send messages there again, create another
/// endpoint.
#[utoipa::path(
    operation_id = "webhook_endpoints.delete",
    tag = "Webhooks",
    params(("id" = String, Path, description = "Id of the endpoint", example = "we_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")),
    responses((status = 200, description = "The endpoint, deleted.", body = WebhookEndpoint), DeleteProblems),
)]
#[delete("/v1/webhook-endpoints/{id}")]
pub async fn remove(
    engine: web::Data<Engine>,
    request: IdempotentRequest<DeleteWebhookEndpoint>,
) -> Result<HttpResponse, Error> {
    engine.run_local(request).await
}
