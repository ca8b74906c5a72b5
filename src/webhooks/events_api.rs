//! Events as a merchant reads them, their deliveries, and redelivery.
//!
//! A message carries the event in the form that this API returns, so a merchant that missed messages can
//! catch up by reading.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, get, post, web};
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::Text;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::base::ids::{self, DeliveryId, EventId, MerchantId, WebhookEndpointId};
use crate::base::time::Timestamp;
use crate::error::Error;
use crate::events::EventType;
use crate::host::{Caller, Context, Descriptor, Engine, Input, Oncepay};
use crate::idempotency::{IdempotentRequest, LocalOperation, Operation, Reply, ResourceKind, Target};
use crate::storage::db::Db;
use crate::storage::schema::{events, webhook_deliveries, webhook_endpoints};
use crate::web::auth::AuthenticatedMerchant;
use crate::web::fields::{Fields, TEXT_MAX};
use crate::web::lists::{List, Parameters, load_page};
use crate::web::problems::problems;
use crate::web::query::WithQuery;
use crate::webhooks::endpoints::{EVERYTHING, EndpointRow, EndpointStatus};
use crate::webhooks::feed::{self, FeedPage, Filter, Start};

/// Events, as a resource kind.
pub static EVENT: ResourceKind = ResourceKind {
    is_kept: false,
    ..ResourceKind::new("event", EventId::PREFIX, "events", "/v1/events/{id}")
};

/// A change of an object.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "evt_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b",
    "object": "event",
    "type": "dispute.won",
    "created_at": "2026-01-31T09:30:00.000Z",
    "data": {
        "id": "dp_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b",
        "object": "dispute",
        "charge_id": "ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b",
        "status": "won",
        "amount": "12.50",
        "currency": "USD",
        "reason": "fraudulent",
        "created_at": "2026-01-20T09:30:00.000Z",
        "closed_at": "2026-01-31T09:30:00.000Z",
    },
}))]
pub struct Event {
    /// Time-ordered id.
    #[schema(value_type = String, example = "evt_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    id: EventId,
    /// Always `event`.
    #[schema(example = "event")]
    object: &'static str,
    /// Type of the event.
    #[serde(rename = "type")]
    #[schema(value_type = EventType)]
    kind: String,
    /// Time of the event.
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T09:30:00.000Z")]
    created_at: Timestamp,
    /// The object right after the event.
    #[schema(value_type = Object)]
    data: serde_json::Value,
}

/// An event as it is stored.
#[derive(Queryable, Selectable)]
#[diesel(table_name = events)]
pub(crate) struct EventRow {
    pub id: EventId,
    pub kind: String,
    pub data: serde_json::Value,
    pub created_at: DateTime<Utc>,
}

impl EventRow {
    /// Finds an event. Errors: `event_not_found`.
    pub fn find(conn: &mut PgConnection, merchant: MerchantId, id: EventId) -> Result<Self, Error> {
        events::table
            .find((merchant, id))
            .select(Self::as_select())
            .first(conn)
            .optional()?
            .ok_or(Error::EventNotFound)
    }

    /// Converts the row to the event that the API shows.
    pub fn into_event(self) -> Event {
        Event {
            id: self.id,
            object: "event",
            kind: self.kind,
            created_at: Timestamp(self.created_at),
            data: self.data,
        }
    }
}

/// A page of events.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventPage {
    /// The events of the page: newest first, or oldest first with `after`.
    data: Vec<Event>,
    /// Whether there are more events in the direction of paging.
    #[schema(example = false)]
    has_more: bool,
    /// The `after` of the next page. Only in answers to requests with `after`, and in each of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, example = "c1_AAAAAQAAAAAAAAMgAAAAAAAAAAAAAAAAAAAAAA")]
    next: Option<String>,
}

impl From<FeedPage> for EventPage {
    fn from(page: FeedPage) -> Self {
        let to_event = |(id, kind, created_at, data)| EventRow { id, kind, data, created_at }.into_event();
        Self {
            data: page.events.into_iter().map(to_event).collect(),
            has_more: page.has_more,
            next: Some(page.next.to_string()),
        }
    }
}

/// The delivery of an event to an endpoint.
#[derive(Debug, Serialize, ToSchema)]
pub struct Delivery {
    /// Time-ordered id.
    #[schema(value_type = String, example = "wd_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    id: DeliveryId,
    /// Always `delivery`.
    #[schema(example = "delivery")]
    object: &'static str,
    /// Id of the event.
    #[schema(value_type = String, example = "evt_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    event_id: EventId,
    /// Id of the endpoint, which may have been deleted since.
    #[schema(value_type = String, example = "we_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    endpoint_id: WebhookEndpointId,
    /// `pending` until the delivery has `succeeded`, or has `failed` after many attempts or because its
    /// endpoint was deleted.
    #[schema(example = "succeeded")]
    status: String,
    /// Time at which the next attempt is due. `null` unless the delivery is pending.
    #[schema(value_type = Option<String>, format = DateTime, example = json!(null))]
    next_attempt_at: Option<Timestamp>,
    /// Time of its creation.
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T09:30:00.000Z")]
    created_at: Timestamp,
    /// Time at which the delivery succeeded or failed.
    #[schema(value_type = Option<String>, format = DateTime, example = "2026-01-31T09:30:00.120Z")]
    completed_at: Option<Timestamp>,
    /// Attempts with a known outcome, in order.
    attempts: Vec<Attempt>,
}

/// An attempt at a delivery.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub struct Attempt {
    /// Number of the attempt, from 1.
    #[schema(example = 1)]
    number: i32,
    /// Time at which the attempt began.
    #[serde(serialize_with = "as_timestamp")]
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T09:30:00.000Z")]
    started_at: DateTime<Utc>,
    /// Duration of the attempt, in milliseconds.
    #[schema(example = 120)]
    duration_ms: i64,
    /// HTTP status of the answer, if there was one.
    #[schema(example = 200)]
    status: Option<u16>,
    /// Reason why there was no answer, or why the answer counts as a failure: `address_not_allowed`,
    /// `answer_too_long` (more than 32 KiB before its status was known), `connection_failed`, `redirected`, `timeout`
    /// or `tls_failed`.
    #[schema(example = json!(null))]
    error: Option<String>,
    /// Beginning of the answer's body.
    #[schema(example = "ok")]
    response_excerpt: Option<String>,
}

fn as_timestamp<S: serde::Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    Timestamp(*time).serialize(serializer)
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = webhook_deliveries)]
struct DeliveryRow {
    id: DeliveryId,
    event_id: EventId,
    endpoint_id: WebhookEndpointId,
    state: String,
    due_at: DateTime<Utc>,
    attempts: serde_json::Value,
    created_at: DateTime<Utc>,
    completed_at: Option<DateTime<Utc>>,
}

impl DeliveryRow {
    fn into_delivery(self) -> Result<Delivery, Error> {
        Ok(Delivery {
            id: self.id,
            object: "delivery",
            event_id: self.event_id,
            endpoint_id: self.endpoint_id,
            next_attempt_at: self.completed_at.is_none().then_some(Timestamp(self.due_at)),
            status: self.state,
            created_at: Timestamp(self.created_at),
            completed_at: self.completed_at.map(Timestamp),
            attempts: serde_json::from_value(self.attempts).map_err(Error::internal)?,
        })
    }
}

// ---- Read ------------------------------------------------------------------------------------------

problems!(GetProblems, reading: EventNotFound);

/// Retrieve an event
///
/// Events are kept for a limited time, by default 90 days.
#[utoipa::path(
    operation_id = "events.get",
    tag = "Events",
    params(("id" = String, Path, description = "Id of the event", example = "evt_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")),
    responses((status = 200, description = "The event.", body = Event), GetProblems),
)]
#[get("/v1/events/{id}")]
pub async fn get(
    db: web::Data<Db>,
    merchant: AuthenticatedMerchant,
    id: web::Path<String>,
) -> Result<HttpResponse, Error> {
    let id = id.parse().map_err(|_| Error::EventNotFound)?;
    let row = db.run_retrying(move |conn| EventRow::find(conn, merchant.0, id)).await?;
    Ok(HttpResponse::Ok().json(row.into_event()))
}

/// The id of an object of any kind.
struct ObjectId {
    text: String,
    uuid: Uuid,
}

impl std::str::FromStr for ObjectId {
    type Err = ids::ParseIdError;

    fn from_str(text: &str) -> Result<Self, ids::ParseIdError> {
        Ok(Self { text: text.to_owned(), uuid: ids::parse_any(text)? })
    }
}

problems!(ListProblems, reading:);

/// List events
///
/// Newest first; with `after`, oldest first. Filters combine. A cursor is the id of an event next to the page, so
/// pages don't shift when events are added.
///
/// To poll, or to catch up on missed messages, use `after`: it skips no event. An event can become visible after
/// younger ones, so a client that asks for what is newer than the newest event it knows (`ending_before`,
/// `created_after`) would miss some. Each answer to a request with `after` has a `next`, also if the page is
/// empty: store it when you have dealt with the page, and pass it as the next `after`.
///
/// The feed ends where a transaction still runs that can add an event, usually for milliseconds. A transaction
/// that stays open holds it back, even in another database of the same server. Pages are in the order in which
/// transactions began, and the events of a page in the order of their time, so an event can be slightly older
/// than one of the page before. With a filter, a page can be empty and `has_more` be `true`. Cursors stay valid
/// across restarts, upgrades and restores of the database. Events are kept for a limited time, by default 90
/// days; an older cursor goes on with the oldest event.
#[utoipa::path(
    operation_id = "events.list",
    tag = "Events",
    params(
        ("type" = Option<EventType>, Query, description = "Only events of this type"),
        ("object_id" = Option<String>, Query, pattern = "^[a-z]+_[0-9a-f]{32}$", description = "Only events of the object with this id", example = "ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b"),
        ("created_after" = Option<String>, Query, format = DateTime, description = "Only events after this time (RFC 3339), exclusive: an event with exactly this `created_at` isn't listed"),
        ("created_before" = Option<String>, Query, format = DateTime, description = "Only events before this time (RFC 3339), exclusive: an event with exactly this `created_at` isn't listed"),
        ("after" = Option<String>, Query, pattern = "^(now|evt_[0-9a-f]{32}|c1_[A-Za-z0-9_-]{38})?$", description = "Reads events oldest first, without missing any. The `next` of the page before; or the id of an event, to go on after it (events recorded at about the same time can come again); or `now`, to begin with what is recorded from now on; or empty, to begin with the oldest event. Can't be combined with `starting_after` or `ending_before`", example = "now"),
    ),
    responses((status = 200, description = "A page of events.", body = EventPage), ListProblems),
)]
#[get("/v1/events")]
pub async fn list(
    db: web::Data<Db>,
    WithQuery(merchant, query): WithQuery<AuthenticatedMerchant>,
) -> Result<HttpResponse, Error> {
    let (after, page, kind, object, created) = query.read(|parameters| {
        parameters.exclude("after", &["starting_after", "ending_before"]);
        (
            parameters.optional::<Start>("after", Start::FORMAT),
            parameters.page::<EventId>(),
            parameters.optional::<EventType>("type", "must be a type of events"),
            parameters.optional::<ObjectId>("object_id", "must be the id of an object"),
            parameters.created(),
        )
    })?;
    if let Some(start) = after {
        let filter = Filter {
            kind: kind.map(EventType::as_str),
            object: object.map(|object| (object.text, object.uuid)),
            from: created.from,
            to: created.to,
        };
        let page =
            db.run_retrying(move |conn| feed::page(conn, merchant.0, start, &filter, page.limit)).await?;
        return Ok(HttpResponse::Ok().json(EventPage::from(page)));
    }
    let events = db
        .run_retrying(move |conn| {
            let mut query = events::table
                .filter(events::merchant_id.eq(merchant.0))
                .select(EventRow::as_select())
                .into_boxed();
            if let Some(kind) = kind {
                query = query.filter(events::kind.eq(kind.as_str()));
            }
            if let Some(object) = &object {
                // This expression has an index; it is the same for objects of every kind.
                let id = diesel::dsl::sql::<Text>("data->>'id'");
                query = query.filter(events::object_id.eq(object.uuid)).filter(id.eq(&object.text));
            }
            if let Some(from) = created.from {
                query = query.filter(events::id.ge(from));
            }
            if let Some(to) = created.to {
                query = query.filter(events::id.lt(to));
            }
            let list =
                load_page!(conn, query, events::id, page)?.try_map(|row: EventRow| Ok(row.into_event()))?;
            Ok::<_, Error>(EventPage { data: list.data, has_more: list.has_more, next: None })
        })
        .await?;
    Ok(HttpResponse::Ok().json(events))
}

problems!(ListDeliveriesProblems, reading: EventNotFound);

/// List the deliveries of an event
///
/// Newest first: one delivery for each endpoint that received this type when the event happened, and those
/// requested since. Deliveries are kept for a limited time, by default 30 days.
#[utoipa::path(
    operation_id = "events.deliveries.list",
    tag = "Events",
    params(("id" = String, Path, description = "Id of the event", example = "evt_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")),
    responses((status = 200, description = "A page of deliveries.", body = List<Delivery>), ListDeliveriesProblems),
)]
#[get("/v1/events/{id}/deliveries")]
pub async fn list_deliveries(
    db: web::Data<Db>,
    WithQuery(merchant, query): WithQuery<AuthenticatedMerchant>,
    id: web::Path<String>,
) -> Result<HttpResponse, Error> {
    let page = query.read(Parameters::page::<DeliveryId>)?;
    let id: EventId = id.parse().map_err(|_| Error::EventNotFound)?;
    let deliveries = db
        .run_retrying(move |conn| {
            EventRow::find(conn, merchant.0, id)?;
            let query = webhook_deliveries::table
                .filter(webhook_deliveries::merchant_id.eq(merchant.0))
                .filter(webhook_deliveries::event_id.eq(id))
                .select(DeliveryRow::as_select())
                .into_boxed();
            load_page!(conn, query, webhook_deliveries::id, page)?.try_map(DeliveryRow::into_delivery)
        })
        .await?;
    Ok(HttpResponse::Ok().json(deliveries))
}

// ---- Redeliver -------------------------------------------------------------------------------------

/// Body of a redelivery. May be empty.
#[derive(Debug, ToSchema)]
#[schema(example = json!({"endpoint_id": "we_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b"}))]
#[serde(deny_unknown_fields)]
pub struct RedeliverEvent {
    #[schema(ignore)]
    id: Option<EventId>,
    /// Id of the only endpoint to deliver to, whatever event types it receives. Default: all enabled
    /// endpoints that receive this type.
    #[schema(min_length = 1, max_length = 500)]
    endpoint_id: Option<String>,
}

impl Operation for RedeliverEvent {
    type Host = Oncepay;

    const DESCRIPTOR: Descriptor =
        Descriptor::new("events.redeliver", "POST", "/v1/events/{id}/redeliver", Caller::Merchant)
            .about(Target::Named(&EVENT, "id"))
            .with_optional_body();

    fn read(input: &Input<'_>) -> Result<Self, Error> {
        Fields::read(input.body, |fields| {
            Some(Self { id: input.id("id"), endpoint_id: fields.optional_text("endpoint_id", TEXT_MAX) })
        })
    }
}

impl RedeliverEvent {
    /// Finds the endpoints to deliver to. Errors: `webhook_endpoint_not_found`, `webhook_endpoint_disabled`.
    fn endpoints(
        &self,
        conn: &mut PgConnection,
        merchant: MerchantId,
        event: &EventRow,
    ) -> Result<Vec<WebhookEndpointId>, Error> {
        let Some(named) = &self.endpoint_id else {
            return Ok(webhook_endpoints::table
                .filter(webhook_endpoints::merchant_id.eq(merchant))
                .filter(webhook_endpoints::status.eq(EndpointStatus::Enabled.as_str()))
                .filter(webhook_endpoints::event_types.overlaps_with(vec![EVERYTHING, &event.kind]))
                .select(webhook_endpoints::id)
                .load(conn)?);
        };
        let id = named.parse().map_err(|_| Error::WebhookEndpointNotFound)?;
        let endpoint = EndpointRow::find(conn, merchant, id)?;
        if endpoint.status != EndpointStatus::Enabled.as_str() {
            return Err(Error::WebhookEndpointDisabled);
        }
        Ok(vec![id])
    }
}

impl LocalOperation for RedeliverEvent {
    /// Errors, in the order checked: `event_not_found`, `webhook_endpoint_not_found`, `webhook_endpoint_disabled`.
    fn execute(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Reply, Error> {
        let merchant = context.merchant();
        let id = self.id.ok_or(Error::EventNotFound)?;
        let event = EventRow::find(conn, merchant, id)?;
        let endpoints = self.endpoints(conn, merchant, &event)?;
        let rows: Vec<_> = endpoints
            .into_iter()
            .map(|endpoint| {
                (
                    webhook_deliveries::merchant_id.eq(merchant),
                    webhook_deliveries::event_id.eq(id),
                    webhook_deliveries::endpoint_id.eq(endpoint),
                )
            })
            .collect();
        let mut deliveries: Vec<DeliveryRow> = diesel::insert_into(webhook_deliveries::table)
            .values(rows)
            .returning(DeliveryRow::as_select())
            .get_results(conn)?;
        deliveries.sort_by_key(|delivery| std::cmp::Reverse(delivery.id));
        let deliveries = List { data: deliveries, has_more: false }.try_map(DeliveryRow::into_delivery)?;
        Ok(Reply::json(StatusCode::ACCEPTED, &deliveries)?)
    }
}

problems!(RedeliverProblems, mutating: EventNotFound, WebhookEndpointNotFound, WebhookEndpointDisabled);

/// Deliver an event again
///
/// Creates new deliveries, whatever the outcome of the earlier ones. The message is the same, with the same
/// `webhook-id`, so a receiver can recognize a message that it has seen. If no enabled endpoint receives this
/// type of event, there are no deliveries. A failing endpoint gets one message at a time, at most one per
/// second, and the new delivery waits for its turn.
#[utoipa::path(
    operation_id = "events.redeliver",
    tag = "Events",
    params(("id" = String, Path, description = "Id of the event", example = "evt_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")),
    request_body = RedeliverEvent,
    responses((status = 202, description = "The new deliveries.", body = List<Delivery>), RedeliverProblems),
)]
#[post("/v1/events/{id}/redeliver")]
pub async fn redeliver(
    engine: web::Data<Engine>,
    request: IdempotentRequest<RedeliverEvent>,
) -> Result<HttpResponse, Error> {
    engine.run_local(request).await
}
