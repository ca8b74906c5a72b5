//! The processor's events, as operators see them.

use std::str::FromStr;

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, get, post, web};
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use serde::Serialize;
use utoipa::ToSchema;

use crate::base::ids::{AcquirerEventId, MerchantId};
use crate::base::time::Timestamp;
use crate::error::Error;
use crate::host::{Caller, Context, Descriptor, Engine, Input, Oncepay};
use crate::idempotency::{IdempotentRequest, LocalOperation, Operation, Reply, ResourceKind, Scope, Target};
use crate::storage::db::{Db, plan_freely};
use crate::storage::schema::acquirer_events;
use crate::web::auth::AuthenticatedOperator;
use crate::web::fields::Fields;
use crate::web::lists::{List, load_page};
use crate::web::problems::problems;
use crate::web::query::WithQuery;

use super::events::Outcome;
use super::{store, worker};

/// The processor's events, as a resource kind.
pub static PROCESSOR_EVENT: ResourceKind = ResourceKind {
    scope: Scope::Service("id"),
    is_kept: false,
    ..ResourceKind::new(
        "acquirer_event",
        AcquirerEventId::PREFIX,
        "acquirer_events",
        "/v1/operator/acquirer-events/{id}",
    )
};

/// Maximum number of characters in a reason.
const REASON_MAX: usize = 500;

/// An event from the processor.
#[derive(Debug, Serialize, ToSchema)]
pub struct AcquirerEvent {
    /// Our id for the event, in the order of receipt.
    #[schema(value_type = String, example = "ae_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    id: AcquirerEventId,
    /// Always `acquirer_event`.
    #[schema(example = "acquirer_event")]
    object: &'static str,
    /// The processor's id for the event, `webhook-id`.
    #[schema(example = "evt_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    event_id: String,
    /// Type of the event.
    #[serde(rename = "type")]
    #[schema(example = "payout.paid")]
    kind: String,
    /// Effect of the event: `applied`, `unchanged`, `contradicted`, `unknown`, `parked` or `dismissed`.
    #[schema(example = "applied")]
    state: String,
    /// Reason for the state, if it isn't obvious.
    #[schema(example = json!(null))]
    detail: Option<String>,
    /// Id of the merchant whose object the event is about, according to the processor.
    #[schema(value_type = Option<String>, example = "mer_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    merchant_id: Option<MerchantId>,
    /// Body as received.
    #[schema(example = "{\"type\":\"payout.paid\",\"timestamp\":\"2026-01-31T09:30:00.000Z\",\"data\":{}}")]
    body: String,
    /// Number of attempts to apply the event.
    #[schema(example = 1)]
    attempts: i32,
    /// Time of receipt.
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T09:30:00.000Z")]
    received_at: Timestamp,
    /// Time of the next attempt, if the event is parked.
    #[schema(value_type = Option<String>, format = DateTime, example = json!(null))]
    next_attempt_at: Option<Timestamp>,
    /// Time since which the event has been parked for too long.
    #[schema(value_type = Option<String>, format = DateTime, example = json!(null))]
    overdue_at: Option<Timestamp>,
    /// Time at which the event got its current state, unless it's parked.
    #[schema(value_type = Option<String>, format = DateTime, example = "2026-01-31T09:30:00.000Z")]
    settled_at: Option<Timestamp>,
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = acquirer_events)]
struct AcquirerEventRow {
    id: AcquirerEventId,
    event_id: String,
    #[diesel(column_name = type_)]
    kind: String,
    body: Vec<u8>,
    merchant_id: Option<MerchantId>,
    state: String,
    detail: Option<String>,
    received_at: DateTime<Utc>,
    attempts: i32,
    due_at: Option<DateTime<Utc>>,
    overdue_at: Option<DateTime<Utc>>,
    settled_at: Option<DateTime<Utc>>,
}

impl AcquirerEventRow {
    fn find(conn: &mut PgConnection, id: AcquirerEventId) -> Result<Self, Error> {
        acquirer_events::table
            .find(id)
            .select(Self::as_select())
            .first(conn)
            .optional()?
            .ok_or(Error::AcquirerEventNotFound)
    }

    fn into_event(self) -> AcquirerEvent {
        AcquirerEvent {
            id: self.id,
            object: "acquirer_event",
            event_id: self.event_id,
            kind: self.kind,
            state: self.state,
            detail: self.detail,
            merchant_id: self.merchant_id,
            // The body was parsed as JSON, so it's UTF-8.
            body: String::from_utf8_lossy(&self.body).into_owned(),
            attempts: self.attempts,
            received_at: Timestamp(self.received_at),
            next_attempt_at: self.due_at.map(Timestamp),
            overdue_at: self.overdue_at.map(Timestamp),
            settled_at: self.settled_at.map(Timestamp),
        }
    }
}

/// A state to filter by.
struct State(&'static str);

/// All states of an event, in the database and in the API.
pub(crate) const STATES: [&str; 6] =
    ["applied", "unchanged", "contradicted", "unknown", "parked", "dismissed"];

impl FromStr for State {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        STATES.into_iter().find(|state| *state == text).map(Self).ok_or(())
    }
}

problems!(ListProblems, operating:);

/// List processor events
///
/// Newest first. `state=parked` or `state=contradicted` shows the events that need attention.
#[utoipa::path(
    operation_id = "operator.acquirer_events.list",
    tag = "Operators",
    params(
        ("state" = Option<String>, Query, description = "Only events in this state: `applied`, `unchanged`, `contradicted`, `unknown`, `parked` or `dismissed`"),
        ("type" = Option<String>, Query, min_length = 1, max_length = 255, description = "Only events of this type"),
        ("event_id" = Option<String>, Query, min_length = 1, max_length = 255, description = "Only the event with this id of the processor"),
    ),
    responses((status = 200, description = "A page of events.", body = List<AcquirerEvent>), ListProblems),
)]
#[get("/v1/operator/acquirer-events")]
pub async fn list(
    db: web::Data<Db>,
    WithQuery(_operator, query): WithQuery<AuthenticatedOperator>,
) -> Result<HttpResponse, Error> {
    let (page, state, kind, event_id) = query.read(|parameters| {
        let page = parameters.page::<AcquirerEventId>();
        let state = parameters.optional::<State>("state", &format!("must be one of {}", STATES.join(", ")));
        (page, state, parameters.optional_text("type"), parameters.optional_text("event_id"))
    })?;
    let events = db
        .run_retrying(move |conn| {
            conn.transaction(|conn| {
                plan_freely(conn)?;
                let mut query = acquirer_events::table.select(AcquirerEventRow::as_select()).into_boxed();
                if let Some(State(state)) = state {
                    query = query.filter(acquirer_events::state.eq(state));
                }
                if let Some(kind) = &kind {
                    query = query.filter(acquirer_events::type_.eq(kind));
                }
                if let Some(event_id) = &event_id {
                    query = query.filter(acquirer_events::event_id.eq(event_id));
                }
                load_page!(conn, query, acquirer_events::id, page)?
                    .try_map(|row: AcquirerEventRow| Ok(row.into_event()))
            })
        })
        .await?;
    Ok(HttpResponse::Ok().json(events))
}

problems!(GetProblems, operating: AcquirerEventNotFound);

/// Retrieve a processor event
///
/// Includes the body as received.
#[utoipa::path(
    operation_id = "operator.acquirer_events.get",
    tag = "Operators",
    params(("id" = String, Path, description = "Id of the acquirer event", example = "ae_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")),
    responses((status = 200, description = "The event.", body = AcquirerEvent), GetProblems),
)]
#[get("/v1/operator/acquirer-events/{id}")]
pub async fn get(
    db: web::Data<Db>,
    _operator: AuthenticatedOperator,
    id: web::Path<String>,
) -> Result<HttpResponse, Error> {
    let id = id.parse().map_err(|_| Error::AcquirerEventNotFound)?;
    let event = db
        .run_retrying(move |conn| AcquirerEventRow::find(conn, id).map(AcquirerEventRow::into_event))
        .await?;
    Ok(HttpResponse::Ok().json(event))
}

/// Replays an event.
#[derive(Debug)]
pub struct ReplayEvent {
    id: Option<AcquirerEventId>,
}

impl Operation for ReplayEvent {
    type Host = Oncepay;

    const DESCRIPTOR: Descriptor = Descriptor::new(
        "acquirer_events.replay",
        "POST",
        "/v1/operator/acquirer-events/{id}/replay",
        Caller::Operator,
    )
    .about(Target::Named(&PROCESSOR_EVENT, "id"))
    .with_optional_body();

    fn read(input: &Input<'_>) -> Result<Self, Error> {
        Fields::read(input.body, |_| Some(Self { id: input.id("id") }))
    }
}

impl LocalOperation for ReplayEvent {
    /// Locks: the event, then its object.
    fn execute(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Reply, Error> {
        let id = self.id.ok_or(Error::AcquirerEventNotFound)?;
        let kept = store::lock(conn, id)?.ok_or(Error::AcquirerEventNotFound)?;
        let outcome = worker::try_again(conn, &kept, &*context.host().messages, &context.host().metrics)?;
        store::note(conn, &kept, &outcome)?;
        Ok(Reply::json(StatusCode::OK, &AcquirerEventRow::find(conn, id)?.into_event())?)
    }
}

problems!(ReplayProblems, operating_mutating: AcquirerEventNotFound);

/// Replay a processor event
///
/// Applies the event once more, as received: after the fix of a bug that made it fail, or after a restore of
/// our books from a backup. An event that has taken effect doesn't take effect again.
#[utoipa::path(
    operation_id = "operator.acquirer_events.replay",
    tag = "Operators",
    params(("id" = String, Path, description = "Id of the acquirer event", example = "ae_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")),
    responses((status = 200, description = "The event, with its new state.", body = AcquirerEvent), ReplayProblems),
)]
#[post("/v1/operator/acquirer-events/{id}/replay")]
pub async fn replay(
    engine: web::Data<Engine>,
    request: IdempotentRequest<ReplayEvent>,
) -> Result<HttpResponse, Error> {
    engine.run_local(request).await
}

/// Body of a dismissal.
#[derive(Debug, ToSchema)]
#[schema(as = DismissAcquirerEvent, example = json!({"reason": "It's about a charge of the test environment."}))]
#[serde(deny_unknown_fields)]
pub struct DismissEvent {
    /// Reason why the event needs no action.
    #[schema(min_length = 1, max_length = 500)]
    reason: String,
    #[schema(ignore)]
    id: Option<AcquirerEventId>,
}

impl Operation for DismissEvent {
    type Host = Oncepay;

    const DESCRIPTOR: Descriptor = Descriptor::new(
        "acquirer_events.dismiss",
        "POST",
        "/v1/operator/acquirer-events/{id}/dismiss",
        Caller::Operator,
    )
    .about(Target::Named(&PROCESSOR_EVENT, "id"));

    fn read(input: &Input<'_>) -> Result<Self, Error> {
        Fields::read(input.body, |fields| {
            let id = input.id("id");
            Some(Self { reason: fields.text("reason", REASON_MAX)?, id })
        })
    }
}

impl LocalOperation for DismissEvent {
    /// Locks: the event.
    fn execute(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Reply, Error> {
        let id = self.id.ok_or(Error::AcquirerEventNotFound)?;
        let kept = store::lock(conn, id)?.ok_or(Error::AcquirerEventNotFound)?;
        if matches!(kept.state.as_str(), "parked" | "contradicted") {
            let outcome = Outcome::Dismissed(format!("{}: {}", context.actor(), self.reason));
            store::note(conn, &kept, &outcome)?;
        }
        Ok(Reply::json(StatusCode::OK, &AcquirerEventRow::find(conn, id)?.into_event())?)
    }
}

problems!(DismissProblems, operating_mutating: AcquirerEventNotFound);

/// Dismiss a processor event
///
/// For an event that is parked or contradicted and needs no action. The service retries it no more and raises
/// no alarm for it. It stores who dismissed the event and why. An event that has reached its end by itself
/// stays as it is. A replay tries a dismissed event again.
#[utoipa::path(
    operation_id = "operator.acquirer_events.dismiss",
    tag = "Operators",
    params(("id" = String, Path, description = "Id of the acquirer event", example = "ae_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")),
    request_body = DismissEvent,
    responses((status = 200, description = "The event.", body = AcquirerEvent), DismissProblems),
)]
#[post("/v1/operator/acquirer-events/{id}/dismiss")]
pub async fn dismiss(
    engine: web::Data<Engine>,
    request: IdempotentRequest<DismissEvent>,
) -> Result<HttpResponse, Error> {
    engine.run_local(request).await
}
