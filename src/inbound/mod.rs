//! What the processor tells us: `POST /v1/webhooks/acquirer`.
//!
//! An event goes through the idempotency engine like any other request, with its own id as the key and the processor in
//! the place of the merchant: so it takes effect once, however often it's delivered. Its signature is checked before
//! anything else, so that a forged event can't use up the id of a real one.
//!
//! Events overtake each other, and us: a payout can be told to be paid before the request that made it has been
//! committed. What can't take effect yet is *parked*: kept, acknowledged, and tried again until it can. Whatever
//! an event leads to commits with the event and with the answer; if that fails, nothing is kept, and the 5xx makes the
//! processor send it again.
//!
//! Promised: each event takes effect at most once, and once if it's ever delivered and what it's about comes to be; it's
//! kept as it came for as long as the policy says, and longer while it's parked.
//!
//! Not promised: an order. What can't be true after what has happened already (`charge.failed` of a charge that is
//! captured) changes nothing, and is kept as *contradicted*, for people to look at.

pub mod api;
mod events;
pub mod metrics;
pub mod reconcile;
mod store;
mod worker;

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, post, web};
use diesel::PgConnection;
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::Error;
use crate::host::metrics::Metrics;
use crate::host::{Caller, Context, Descriptor, Engine, Input, Oncepay};
use crate::idempotency::policy::OnMismatch;
use crate::idempotency::{IdempotentRequest, LocalOperation, Operation, Policy, Reply};
use crate::processor::Event;
use crate::web::problems::problems;

pub use events::Outcome;
pub use worker::{Options, keep_counting, keep_pruning, keep_trying};

/// What we answer the processor.
#[derive(Debug, Serialize, ToSchema)]
pub struct Receipt {
    /// The event's id.
    #[schema(example = "evt_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    id: String,
    /// Always `acquirer_event`.
    #[schema(example = "acquirer_event")]
    object: &'static str,
    /// Its type.
    #[serde(rename = "type")]
    #[schema(example = "payout.paid")]
    kind: String,
    /// What has come of it: `applied`, `unchanged` (things were so already), `contradicted` (they can't be), `unknown` (a
    /// type that we don't know) or `parked` (it's tried again when what it's about is there).
    #[schema(example = "applied")]
    state: &'static str,
    /// Why, where that isn't obvious.
    #[schema(example = json!(null))]
    detail: Option<String>,
}

/// An event as the processor sends it.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it's here for the schema")]
#[schema(example = json!({
    "type": "payout.paid", "timestamp": "2026-01-31T09:30:00.000Z",
    "data": {"merchant": "mer_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b", "reference": "po_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b"}
}))]
struct IncomingEvent {
    /// What has happened: `charge.succeeded`, `charge.failed`, `refund.failed`, `payout.paid`, `payout.failed`,
    /// `settlement.paid`, `dispute.opened`, `dispute.won` or `dispute.lost`. Other types are kept and acknowledged.
    r#type: String,
    /// When.
    #[schema(format = DateTime)]
    timestamp: Option<String>,
    /// To what: `merchant`, and `reference` with the id of the charge, refund or payout. Of a dispute also `dispute`, the
    /// processor's name for it, and `reason`; of a failed charge `operation` with its `decline_code`. Of a settlement
    /// `merchant`, `id` (`set_…`), `amount` and `currency`.
    #[schema(value_type = Object)]
    data: serde_json::Value,
}

/// Takes an event in.
#[derive(Debug)]
pub struct ReceiveEvent(Event);

impl Operation for ReceiveEvent {
    type Host = Oncepay;

    const DESCRIPTOR: Descriptor =
        Descriptor::new("webhooks.acquirer", "POST", "/v1/webhooks/acquirer", Caller::Acquirer)
            .with_default_policy(default_policy);

    fn read(input: &Input<'_>) -> Result<Self, Error> {
        events::read(&*input.host.messages, input.body).map(Self)
    }
}

/// The processor sends an event again for days, and what differs from the first time isn't worth an alarm at its
/// end: the first outcome stands.
fn default_policy() -> Policy {
    Policy { ttl_seconds: 7 * 24 * 60 * 60, on_mismatch: OnMismatch::Replay, ..Policy::default() }
}

impl LocalOperation for ReceiveEvent {
    /// Applies the event and keeps it.
    ///
    /// Locks: what it's about, then events that waited for it, unless somebody else is trying them.
    fn execute(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Reply, Error> {
        let (Self(event), now) = (self, context.now());
        let event_id = context.message_id()?;
        let outcome = events::apply(event, conn, now)?;
        store::insert(conn, event_id, event, context.raw_body(), &outcome, now)?;
        let host = context.host();
        worker::apply_awaiting(conn, event_id, event, &outcome, &*host.messages, &host.metrics)?;
        report(&host.metrics, event_id, event, &outcome);
        let receipt = Receipt {
            id: event_id.to_owned(),
            object: "acquirer_event",
            kind: event.kind.clone(),
            state: outcome.as_str(),
            detail: outcome.detail().map(str::to_owned),
        };
        Ok(Reply::json(StatusCode::OK, &receipt)?)
    }
}

/// Counts what has come of an event, and writes to the log what people have to know. Types that we don't know are counted
/// as one: anybody could make up others.
fn report(metrics: &Metrics, event_id: &str, event: &Event, outcome: &Outcome) {
    let kind = event.kind.as_str();
    let counted = if event.notice.is_some() { kind } else { "unknown" };
    metrics.acquirer_events.with_label_values(&[counted, outcome.as_str()]).inc();
    match outcome {
        Outcome::Contradicted(detail) => {
            log::error!(event_id, kind; "the processor's event contradicts our books: {detail}");
        }
        Outcome::Unknown => {
            log::warn!(event_id, kind; "the processor sends events of a type that we don't know")
        }
        _ => {}
    }
}

problems!(ReceiveProblems, receiving:);

/// Receive an event of the processor
///
/// For the processor, which signs its events as [Standard Webhooks](https://www.standardwebhooks.com) says. `webhook-id` is
/// the idempotency key: a redelivery gets the first answer again, whatever its body. The signature is checked before
/// anything is claimed, over the bytes of the body, which must be at most 64 KiB, and must be at most five minutes old.
/// Several secrets can be valid at once.
///
/// An event that comes before what it's about (`dispute.won` before `dispute.opened`) is acknowledged as `parked` and
/// applied later. After a 5xx, send it again. Fields that we don't know are passed over.
#[utoipa::path(
    operation_id = "webhooks.acquirer",
    tag = "Acquirer",
    request_body = IncomingEvent,
    responses((status = 200, description = "The event was kept.", body = Receipt), ReceiveProblems),
)]
#[post("/v1/webhooks/acquirer")]
pub async fn receive(
    engine: web::Data<Engine>,
    request: IdempotentRequest<ReceiveEvent>,
) -> Result<HttpResponse, Error> {
    engine.run_local(request).await
}
