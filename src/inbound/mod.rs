//! Events from the processor: `POST /v1/webhooks/acquirer`.
//!
//! An event goes through the idempotency engine like any other request, with its own id as the key and the
//! processor in place of the merchant. So it takes effect once, however often it's delivered. The engine
//! verifies its signature before anything else, so a forged event can't use up the id of a real one.
//!
//! Events overtake each other, and us: the processor can report a payout as paid before the request that
//! created it has committed. An event that can't take effect yet is *parked*: stored, acknowledged, and
//! retried until it can. The effects of an event commit with the event and with the answer. If that fails,
//! nothing is stored, and the 5xx makes the processor send the event again.
//!
//! Promised: each event takes effect at most once, and exactly once if it's ever delivered and its object
//! comes to exist. The service keeps it as received for as long as the policy says, and longer while it's
//! parked.
//!
//! Not promised: an order. An event that contradicts earlier ones (`charge.failed` of a captured charge)
//! changes nothing, and is kept as *contradicted*, for people to look at.

pub(crate) mod api;
pub(crate) mod differences;
mod events;
mod lost;
pub(crate) mod metrics;
pub mod reconcile;
mod store;
mod totals;
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

/// The service's answer to the processor.
#[derive(Debug, Serialize, ToSchema)]
pub struct Receipt {
    /// Id of the event.
    #[schema(example = "evt_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    id: String,
    /// Always `acquirer_event`.
    #[schema(example = "acquirer_event")]
    object: &'static str,
    /// Type of the event.
    #[serde(rename = "type")]
    #[schema(example = "payout.paid")]
    kind: String,
    /// Effect of the event: `applied`, `unchanged` (the object was in that state already), `contradicted`
    /// (our books rule it out), `unknown` (the service doesn't know the type) or `parked` (the service
    /// retries it when the object is there).
    #[schema(example = "applied")]
    state: &'static str,
    /// Reason for the state, if it isn't obvious.
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
    /// Type of the event: `charge.succeeded`, `charge.failed`, `charge.captured`, `refund.failed`,
    /// `payout.paid`, `payout.failed`, `settlement.paid`, `dispute.opened`, `dispute.won` or `dispute.lost`.
    /// Other types are stored and acknowledged.
    #[schema(min_length = 1, max_length = 100)]
    r#type: String,
    /// Time of the event, in RFC 3339. Anything else is ignored.
    #[schema(value_type = serde_json::Value, required = false)]
    timestamp: serde_json::Value,
    /// The object of the event, which the types above require: `merchant`, and `reference` with the id of the
    /// charge, refund or payout. A dispute also has `dispute`, the processor's id for it, and `reason`. A failed
    /// charge has `operation` with its `decline_code`. A settlement has `merchant`, `id` (`set_…`), `amount` and
    /// `currency`.
    #[schema(value_type = serde_json::Value, required = false)]
    data: serde_json::Value,
}

/// Receives an event.
#[derive(Debug)]
pub struct ReceiveEvent(Event);

impl Operation for ReceiveEvent {
    type Host = Oncepay;

    const DESCRIPTOR: Descriptor =
        Descriptor::new("webhooks.acquirer", "POST", "/v1/webhooks/acquirer", Caller::Acquirer)
            .with_default_policy(default_policy)
            .sharing_transactions();

    fn read(input: &Input<'_>) -> Result<Self, Error> {
        events::read(&*input.host.messages, input.body).map(Self)
    }
}

/// The processor sends an event again for days, and a difference from the first body isn't worth an alarm on
/// its side: the first outcome stands.
fn default_policy() -> Policy {
    Policy { ttl_seconds: 7 * 24 * 60 * 60, on_mismatch: OnMismatch::Replay, ..Policy::default() }
}

impl LocalOperation for ReceiveEvent {
    /// Applies the event and stores it.
    ///
    /// Locks: its object, then events that waited for that object, unless another process is trying them.
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

/// Counts the outcome of an event, and logs what people have to know. All unknown types count as one, since
/// anybody could make up others.
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

/// Receive an event from the processor
///
/// For the processor, which signs its events as defined by [Standard
/// Webhooks](https://www.standardwebhooks.com). `webhook-id` is the idempotency key: a redelivery gets the
/// first answer again, whatever its body. Before anything is claimed, the service verifies the signature over
/// the bytes of the body. The body must be at most 64 KiB, and the message at most five minutes old. Several
/// secrets can be valid at once.
///
/// An event that arrives before its object (`dispute.won` before `dispute.opened`) is acknowledged as
/// `parked` and applied later. After a 5xx, send it again. Unknown fields are ignored.
#[utoipa::path(
    operation_id = "webhooks.acquirer",
    tag = "Acquirer",
    request_body = IncomingEvent,
    responses((status = 200, description = "The event was stored.", body = Receipt), ReceiveProblems),
)]
#[post("/v1/webhooks/acquirer")]
pub async fn receive(
    engine: web::Data<Engine>,
    request: IdempotentRequest<ReceiveEvent>,
) -> Result<HttpResponse, Error> {
    engine.run_local(request).await
}
