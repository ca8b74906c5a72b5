//! The catalogue of events, as the `webhooks` of the OpenAPI document.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::path::{
    HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, PathItem, Paths, PathsBuilder,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::response::{ResponseBuilder, ResponsesBuilder};
use utoipa::openapi::schema::{
    AdditionalProperties, AnyOfBuilder, Discriminator, ObjectBuilder, OneOfBuilder, Schema, SchemaFormat,
    Type,
};
use utoipa::openapi::security::SecurityRequirement;
use utoipa::openapi::{Components, KnownFormat, Ref, RefOr, Required};

use crate::base::signature;
use crate::base::trace::TRACEPARENT;
use crate::events::{self, EventType};

/// Returns one entry per event type. `components` holds the schemas of the objects; their examples make up
/// those of the events.
pub fn webhooks(components: &Components) -> Paths {
    let entries = EventType::ALL.iter().map(|kind| (kind.as_str(), entry(*kind, components)));
    entries.fold(PathsBuilder::new(), |paths, (name, item)| paths.path(name, item)).build()
}

/// Describes an event by the type of its object: the schema `Event` becomes one of `ChargeEvent`, `RefundEvent` and so on, which
/// have the types of such events, and such an object as `data`.
pub fn describe_events(components: &mut Components) {
    let Some(RefOr::T(Schema::Object(any))) = components.schemas.remove("Event") else {
        panic!("the document has no Event");
    };
    let mut types: BTreeMap<&str, Vec<EventType>> = BTreeMap::new();
    for kind in EventType::ALL {
        types.entry(kind.object()).or_default().push(*kind);
    }
    let mut event = OneOfBuilder::new();
    let mut mapping = BTreeMap::new();
    for (object, types) in types {
        let name = format!("{object}Event");
        let reference = Ref::from_schema_name(&name);
        mapping.extend(types.iter().map(|kind| (kind.as_str(), reference.ref_location.clone())));
        event = event.item(reference);
        let names = types.iter().map(|kind| kind.as_str());
        let mut of_object = any.clone();
        of_object.description = Some(format!("A change of an object with the schema `{object}`."));
        let mut data = Ref::from_schema_name(object);
        data.description = "The object right after the event.".to_owned();
        of_object.properties.insert("type".to_owned(), events::one_of(names, "Type of the event."));
        of_object.properties.insert("data".to_owned(), data.into());
        let is_example = |example: &Value| types.iter().any(|kind| example["type"] == kind.as_str());
        if !any.example.as_ref().is_some_and(is_example) {
            let message = example(types[0], components);
            let [id, kind, created_at, data] = ["id", "type", "timestamp", "data"].map(|name| &message[name]);
            of_object.example = Some(json!({
                "id": id, "object": "event", "type": kind, "created_at": created_at, "data": data,
            }));
        }
        components.schemas.insert(name, of_object.into());
    }
    let event = event
        .description(Some(
            "A change of an object. `type` tells what `data` is. A later version can have more types: skip an event whose type \
             you don't know.",
        ))
        .examples(any.example)
        .discriminator(Some(Discriminator::with_mapping("type", mapping)))
        .extensions(Some(events::may_grow()));
    components.schemas.insert("Event".to_owned(), event.into());
}

fn entry(kind: EventType, components: &Components) -> PathItem {
    let text =
        |example: &str| ObjectBuilder::new().schema_type(Type::String).examples([json!(example)]).build();
    let named = ObjectBuilder::new()
        .property("id", ObjectBuilder::new().schema_type(Type::String))
        .property("object", ObjectBuilder::new().schema_type(Type::String))
        .required("id")
        .required("object")
        .additional_properties(Some(AdditionalProperties::FreeForm(false)))
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
        .parameter(header(signature::ID, "Id of the event.", Type::String, json!("evt_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")))
        .parameter(header(
            TRACEPARENT,
            "Span of this delivery, in the trace of the request that changed the object, as defined by W3C Trace Context.",
            Type::String,
            json!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ))
        .parameter(header(
            signature::TIMESTAMP,
            "Time of sending, in seconds since 1970.",
            Type::Integer,
            json!(1_769_851_800),
        ))
        .parameter(header(
            signature::SIGNATURE,
            "Signatures of the body, separated by spaces: several while a secret is being replaced.",
            Type::String,
            json!("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
        ));
    PathItem::new(HttpMethod::Post, operation)
}

fn header(name: &str, description: &str, kind: Type, example: Value) -> ParameterBuilder {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .required(Required::True)
        .description(Some(description))
        .schema(Some(ObjectBuilder::new().schema_type(kind)))
        .example(Some(example))
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
