//! Events, recorded in the transaction of the change that they tell of.
//!
//! An event is written with its change, so that both are there or neither is. The same statement creates a
//! row for each endpoint that receives it (see [`webhooks`](crate::webhooks)).

use diesel::prelude::*;
use diesel::sql_types::{Jsonb, Nullable, Text, Uuid as SqlUuid};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::openapi::RefOr;
use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};
use uuid::Uuid;

use crate::base::ids::MerchantId;
use crate::base::scope;
use crate::error::Error;
use crate::storage::shape;
use crate::storage::sql::statement;

macro_rules! event_types {
    ($($name:ident: $wire:literal, $object:literal, $meaning:literal;)*) => {
        /// Types of events. Names are part of the API and never change meaning; new ones can be added.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
        pub enum EventType {
            $(#[doc = $meaning] #[serde(rename = $wire)] $name,)*
        }

        impl EventType {
            /// All types.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Name that is stored and sent.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $wire,)* }
            }

            /// Name of the schema of the object in `data`.
            pub const fn object(self) -> &'static str {
                match self { $(Self::$name => $object,)* }
            }

            /// Meaning of the event, in a sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning,)* }
            }
        }
    };
}

event_types! {
    ChargeAuthorized: "charge.authorized", "Charge", "A charge was authorized and can now be captured.";
    ChargeSucceeded: "charge.succeeded", "Charge", "A charge was authorized and captured in one go.";
    ChargeProcessing: "charge.processing", "Charge", "A charge was created, and the processor will decide on it later.";
    ChargeFailed: "charge.failed", "Charge", "A charge was declined.";
    ChargeCaptured: "charge.captured", "Charge", "An authorized charge was captured.";
    ChargeCanceled: "charge.canceled", "Charge", "The authorization of a charge was voided, or has lapsed.";
    ChargeUpdated: "charge.updated", "Charge", "The description or metadata of a charge changed.";
    ChargeRefunded: "charge.refunded", "Charge", "A charge was refunded, in part or in full.";
    ChargeRefundFailed: "charge.refund_failed", "Charge", "A refund of a charge came back, so the refunded amount is lower again.";
    ChargeDisputed: "charge.disputed", "Charge", "The customer contests a charge.";
    ChargeDisputeWon: "charge.dispute_won", "Charge", "A dispute of a charge was won, and the charge returned to its earlier status.";
    RefundSucceeded: "refund.succeeded", "Refund", "A refund was made.";
    RefundFailed: "refund.failed", "Refund", "A refund was refused, or came back from the customer's bank after it was made.";
    PayoutCreated: "payout.created", "Payout", "A payout is on its way.";
    PayoutPaid: "payout.paid", "Payout", "A payout arrived.";
    PayoutFailed: "payout.failed", "Payout", "A payout was refused, or came back.";
    SettlementPaid: "settlement.paid", "Settlement", "The processor paid the captured amounts that weren't refunded.";
    DisputeOpened: "dispute.opened", "Dispute", "A dispute was opened, and its amount is held.";
    DisputeWon: "dispute.won", "Dispute", "A dispute was won, and its amount is available again.";
    DisputeLost: "dispute.lost", "Dispute", "A dispute was lost. Its amount went to the customer, and the charge stays `disputed`.";
    WebhookEndpointDisabled: "webhook_endpoint.disabled", "WebhookEndpoint", "A webhook endpoint was disabled because it answered 410 or accepted nothing for too long.";
}

impl std::str::FromStr for EventType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == text).ok_or_else(|| {
            let all: Vec<_> = Self::names().collect();
            format!("{text} is no type of event; there are {}", all.join(", "))
        })
    }
}

impl EventType {
    /// The names of all types.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::ALL.iter().map(|kind| kind.as_str())
    }
}

// Written by hand, since the derive doesn't see names that a macro inserts.
impl PartialSchema for EventType {
    fn schema() -> RefOr<Schema> {
        let meaning = "What an event tells of. Names are part of the API and never change meaning; there can be new ones.";
        one_of(Self::names(), meaning)
    }
}

impl ToSchema for EventType {}

/// The schema of a text that is one of these names, or of those that a later version adds.
pub fn one_of(names: impl Iterator<Item = &'static str>, meaning: &str) -> RefOr<Schema> {
    let schema = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(names));
    schema.description(Some(meaning)).extensions(Some(may_grow())).into()
}

/// Says of a list of values that a later version can have more of them.
pub fn may_grow() -> Extensions {
    Extensions::from_iter([("x-may-grow".to_owned(), Value::Bool(true))])
}

/// Records an event about the object `object_id`, which is `object` after the change. It belongs to the trace of the
/// work that is under way.
pub fn record(
    conn: &mut PgConnection,
    merchant: MerchantId,
    kind: EventType,
    object_id: Uuid,
    object: &impl Serialize,
) -> Result<(), Error> {
    if shape::is_distributed() {
        statement::<()>("SELECT event_record({}, {})")
            .bind::<SqlUuid, _>(merchant)
            .bind::<Jsonb, _>(to_json(merchant, kind, object_id, object)?)
            .execute(conn)?;
        return Ok(());
    }
    let data = serde_json::to_value(object).map_err(Error::internal)?;
    let trace = scope::trace_of_effects(merchant);
    // Of one time, so that a page by time and a page by id agree on which side of a millisecond it is.
    let insert = "INSERT INTO events (merchant_id, id, created_at, type, object_id, data, traceparent, tracestate) \
         SELECT {}, uuid_v7(clock.now), clock.now, {}, {}, {}, {}, {} FROM (SELECT clock_timestamp() AS now) AS clock";
    statement::<()>(insert)
        .bind::<SqlUuid, _>(merchant)
        .bind::<Text, _>(kind.as_str())
        .bind::<SqlUuid, _>(object_id)
        .bind::<Jsonb, _>(data)
        .bind::<Text, _>(trace.to_string())
        .bind::<Nullable<Text>, _>(trace.state())
        .execute(conn)?;
    Ok(())
}

/// Makes the event's columns of `events`, for a statement that records many.
pub fn to_json(
    merchant: MerchantId,
    kind: EventType,
    object_id: Uuid,
    object: &impl Serialize,
) -> Result<Value, Error> {
    let data = serde_json::to_value(object).map_err(Error::internal)?;
    let trace = scope::trace_of_effects(merchant);
    Ok(json!({
        "type": kind.as_str(), "object_id": object_id, "data": data,
        "traceparent": trace.to_string(), "tracestate": trace.state(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_have_the_names_that_they_are_sent_with() {
        for kind in EventType::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
            assert_eq!(kind.as_str().parse(), Ok(*kind));
        }
        assert!("charge.unheard_of".parse::<EventType>().is_err());
    }
}
