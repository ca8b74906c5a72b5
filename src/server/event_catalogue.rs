//! The catalogue of events, as the `webhooks` of the OpenAPI document.

use serde_json::{Value, json};
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::path::{
    HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, PathItem, Paths, PathsBuilder,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::response::{ResponseBuilder, ResponsesBuilder};
use utoipa::openapi::schema::{AnyOfBuilder, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::openapi::security::SecurityRequirement;
use utoipa::openapi::{Components, KnownFormat, Ref, RefOr, Required};

use crate::events::EventType;

use crate::base::signature;
use crate::base::trace::TRACEPARENT;

/// Returns one entry per event type. `components` holds the schemas of the objects; their examples make up
/// those of the events.
pub fn webhooks(components: &Components) -> Paths {
    let entries = EventType::ALL.iter().map(|kind| (kind.as_str(), entry(*kind, components)));
    entries.fold(PathsBuilder::new(), |paths, (name, item)| paths.path(name, item)).build()
}

fn entry(kind: EventType, components: &Components) -> PathItem {
    let text =
        |example: &str| ObjectBuilder::new().schema_type(Type::String).examples([json!(example)]).build();
    let named = ObjectBuilder::new()
        .property("id", ObjectBuilder::new().schema_type(Type::String))
        .property("object", ObjectBuilder::new().schema_type(Type::String))
        .required("id")
        .required("object")
        .description(Some("The type and id of an object that is too large to send."));
    let message = ObjectBuilder::new()
        .property("id", text("evt_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b"))
        .property("type", ObjectBuilder::new().schema_type(Type::String).enum_values(Some([kind.as_str()])))
        .property(
            "timestamp",
            ObjectBuilder::new()
                .schema_type(Type::String)
                .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime))),
        )
        .property(
            "data",
            AnyOfBuilder::new()
                .item(Ref::from_schema_name(kind.object()))
                .item(named)
                .description(Some("The object right after the event.")),
        )
        .property(
            "data_omitted",
            ObjectBuilder::new().schema_type(Type::Boolean).description(Some(
                "`true` if the message would be larger than 64 KiB. `data` then has only `id` and `object`; retrieve the event for \
                 the rest. Otherwise absent.",
            )),
        )
        .required("id")
        .required("type")
        .required("timestamp")
        .required("data");
    let content =
        ContentBuilder::new().schema(Some(message)).example(Some(example(kind, components))).build();
    let body = RequestBodyBuilder::new().content("application/json", content).required(Some(Required::True));
    let taken = ResponseBuilder::new().description(
        "Accepted. A delivery without a 2xx within 10 seconds (a redirect isn't one) has failed and is retried, with growing \
         pauses, for three days.",
    );
    let operation = OperationBuilder::new()
        .operation_id(Some(format!("webhooks.{}", kind.as_str())))
        .summary(Some(kind.meaning()))
        .description(Some(
            "Sent to each webhook endpoint that receives this type. The tag `Webhooks` says what all messages have in common.",
        ))
        .tag("Webhooks")
        .security(SecurityRequirement::new("webhook_signature", Vec::<String>::new()))
        .request_body(Some(body.build()))
        .responses(ResponsesBuilder::new().response("2XX", taken))
        .parameter(header(signature::ID, "Id of the event.", "evt_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b"))
        .parameter(header(
            TRACEPARENT,
            "Span of this delivery, in the trace of the request that changed the object, as defined by W3C Trace Context.",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ))
        .parameter(header(signature::TIMESTAMP, "Time of sending, in seconds since 1970.", "1769851800"))
        .parameter(header(
            signature::SIGNATURE,
            "Signatures of the body, separated by spaces: several while a secret is being replaced.",
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        ));
    PathItem::new(HttpMethod::Post, operation)
}

fn header(name: &str, description: &str, example: &str) -> ParameterBuilder {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .required(Required::True)
        .description(Some(description))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .example(Some(json!(example)))
}

/// Times in the examples: that of the object's creation, or days later.
const SOON: &str = "2026-01-31T09:30:00.120Z";
const LATER: &str = "2026-02-03T09:31:00.000Z";

/// A message as it's sent.
fn example(kind: EventType, components: &Components) -> Value {
    let mut data = object_example(kind.object(), components);
    let particulars = particulars(kind);
    let is_later =
        particulars.as_object().is_some_and(|members| members.values().any(|value| value == LATER));
    if let (Value::Object(data), Value::Object(particulars)) = (&mut data, particulars) {
        data.extend(particulars);
    }
    json!({
        "id": "evt_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b",
        "type": kind.as_str(),
        "timestamp": if is_later { LATER } else { SOON },
        "data": data,
    })
}

/// The example of a schema, or one made from the examples of its properties.
fn object_example(name: &str, components: &Components) -> Value {
    let Some(RefOr::T(Schema::Object(object))) = components.schemas.get(name) else {
        return Value::Null;
    };
    if let Some(example) = &object.example {
        return example.clone();
    }
    // Answers show secrets once, and events never do.
    let shown = object.properties.iter().filter(|(name, _)| *name != "secret");
    let members = shown.map(|(name, property)| {
        let example = match property {
            RefOr::T(Schema::Object(property)) => property.example.clone(),
            RefOr::T(Schema::Array(property)) => property.example.clone(),
            _ => None,
        };
        (name.clone(), example.unwrap_or_default())
    });
    Value::Object(members.collect())
}

/// The fields in which such an event differs from the others.
fn particulars(kind: EventType) -> Value {
    let uncaptured = |status: &str| json!({"status": status, "amount_captured": "0.00", "fee": "0.00", "captured_at": null});
    match kind {
        EventType::ChargeAuthorized => uncaptured("requires_capture"),
        EventType::ChargeProcessing => {
            let mut processing = uncaptured("processing");
            processing["payment_method"] = "pm_card_async".into();
            processing
        }
        EventType::ChargeFailed => {
            let mut failed = uncaptured("failed");
            failed["failure"] = json!({
                "code": "card_declined", "decline_code": "generic_decline", "message": "The card was declined."
            });
            failed
        }
        EventType::ChargeCanceled => {
            let mut canceled = uncaptured("canceled");
            canceled["canceled_at"] = LATER.into();
            canceled
        }
        EventType::ChargeRefunded => json!({"status": "partially_refunded", "amount_refunded": "5.00"}),
        EventType::ChargeDisputed => json!({"status": "disputed"}),
        EventType::RefundFailed => json!({"status": "failed", "failed_at": LATER}),
        EventType::PayoutPaid => json!({"status": "paid", "settled_at": LATER}),
        EventType::PayoutFailed => json!({"status": "failed", "settled_at": LATER}),
        EventType::DisputeWon => json!({"status": "won", "closed_at": LATER}),
        EventType::DisputeLost => json!({"status": "lost", "closed_at": LATER}),
        EventType::WebhookEndpointDisabled => {
            json!({"status": "disabled", "failing_since": "2026-01-31T09:31:00.000Z", "disabled_at": LATER})
        }
        EventType::ChargeSucceeded
        | EventType::ChargeCaptured
        | EventType::ChargeUpdated
        | EventType::ChargeRefundFailed
        | EventType::ChargeDisputeWon
        | EventType::RefundSucceeded
        | EventType::PayoutCreated
        | EventType::SettlementPaid
        | EventType::DisputeOpened => json!({}),
    }
}
