// The requests that change something, and their types, by generate.py: see clients/README.md.

use std::collections::BTreeMap;

use reqwest::Method;
use serde::{Deserialize, Serialize};

use crate::{Oncepay, Result};

/// An API key, without the key itself.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct ApiKey {
    /// Time of its creation.
    pub created_at: String,
    /// Time-ordered id.
    pub id: String,
    /// The secret key. Only in the answer to its creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Name of the key.
    pub name: String,
    /// Always `api_key`.
    pub object: String,
    /// Time of its revocation.
    pub revoked_at: Option<String>,
}

/// An attempt at a delivery.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Attempt {
    /// Duration of the attempt, in milliseconds.
    pub duration_ms: i64,
    /// Reason why there was no answer, or why the answer counts as a failure: `address_not_allowed`,
    /// `answer_too_long` (more than 32 KiB before its status was known), `connection_failed`, `redirected`, `timeout`
    /// or `tls_failed`.
    pub error: Option<String>,
    /// Number of the attempt, from 1.
    pub number: i64,
    /// Beginning of the answer's body.
    pub response_excerpt: Option<String>,
    /// Time at which the attempt began.
    pub started_at: String,
    /// HTTP status of the answer, if there was one.
    pub status: Option<i64>,
}

/// Body of a cancellation, which has no fields.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct CancelCharge {}

/// Body of a capture.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct CaptureCharge {
    /// Decimal string in the charge's currency, at most the authorized amount. Default: the authorized amount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amount: Option<String>,
}

/// A payment from a customer to the merchant.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Charge {
    /// Authorized amount, at the currency's scale.
    pub amount: String,
    /// Captured part of `amount`.
    pub amount_captured: String,
    /// Refunded part of `amount_captured`.
    pub amount_refunded: String,
    /// Time at which the authorization was voided.
    pub canceled_at: Option<String>,
    /// Time of the capture.
    pub captured_at: Option<String>,
    /// Time of the first request for the charge.
    pub created_at: String,
    /// ISO 4217 code.
    pub currency: String,
    /// Free text.
    pub description: Option<String>,

    pub failure: Option<ChargeFailure>,
    /// The merchant's fee for the capture. Zero before it.
    pub fee: String,
    /// Time-ordered id.
    pub id: String,
    /// Free-form entries.
    pub metadata: BTreeMap<String, String>,
    /// Always `charge`.
    pub object: String,
    /// Token of the payment method.
    pub payment_method: String,
    /// The merchant's own name for the payment.
    pub reference: Option<String>,
    /// State of the charge.
    pub status: String,
}

/// Reason why a charge failed, or was canceled by the processor.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct ChargeFailure {
    /// `card_declined`, `insufficient_funds` or `authorization_expired`.
    pub code: String,
    /// The issuer's reason, or the processor's.
    pub decline_code: String,
    /// The reason as text for people.
    pub message: String,
}

/// Body of a new API key.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct CreateApiKey {
    /// Name of the key.
    pub name: String,
}

/// Body of a new charge.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct CreateCharge {
    /// Decimal string greater than zero, with at most as many decimals as the currency has and 12 digits before the
    /// point.
    pub amount: String,
    /// Whether to capture at once. If false, the money is only held. Default: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture: Option<bool>,
    /// ISO 4217 code of a currency in use, in upper case.
    pub currency: String,
    /// Free text, without control characters other than tabs and line breaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Up to 50 entries, names up to 40 and values up to 500 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
    /// Token of a payment method.
    pub payment_method: String,
    /// Your own name for the payment, without control characters and in Unicode normalization form C.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

/// Body of a new payout.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct CreatePayout {
    /// Decimal string greater than zero, with at most as many decimals as the currency has and 12 digits before the
    /// point.
    pub amount: String,
    /// ISO 4217 code in upper case.
    pub currency: String,
    /// Your name for the bank account of the merchant that receives the money, without control characters and in
    /// Unicode normalization form C.
    pub destination: String,
    /// Up to 50 entries, names up to 40 and values up to 500 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
}

/// Body of a new refund.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct CreateRefund {
    /// Decimal string in the charge's currency. Default: the whole remaining amount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amount: Option<String>,
    /// Id of the charge to refund.
    pub charge_id: String,
    /// Up to 50 entries, names up to 40 and values up to 500 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
    /// Free text, without control characters other than tabs and line breaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Body of a new webhook endpoint.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct CreateWebhookEndpoint {
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Event types that the endpoint receives, or `*` for all. Default: `*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_types: Option<Vec<String>>,
    /// URL that messages are sent to: an https URL of a public host, without user name, password and fragment.
    pub url: String,
}

/// The delivery of an event to an endpoint.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Delivery {
    /// Attempts with a known outcome, in order.
    pub attempts: Vec<Attempt>,
    /// Time at which the delivery succeeded or failed.
    pub completed_at: Option<String>,
    /// Time of its creation.
    pub created_at: String,
    /// Id of the endpoint, which may have been deleted since.
    pub endpoint_id: String,
    /// Id of the event.
    pub event_id: String,
    /// Time-ordered id.
    pub id: String,
    /// Time at which the next attempt is due. `null` unless the delivery is pending.
    pub next_attempt_at: Option<String>,
    /// Always `delivery`.
    pub object: String,
    /// `pending` until the delivery has `succeeded`, or has `failed` after many attempts or because its endpoint was
    /// deleted.
    pub status: String,
}

/// A page of a list.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct DeliveryList {
    /// The rows of the page, newest first.
    pub data: Vec<Delivery>,
    /// Whether there are more rows in the direction of paging.
    pub has_more: bool,
}

/// One invalid field.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct FieldError {
    /// Description of the problem.
    pub detail: String,
    /// Location of the field: a JSON pointer (RFC 6901) into the body.
    pub pointer: String,
}

/// Reason why a refund or payout failed.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct ObjectFailure {
    /// `refund_refused` or `payout_refused`: the processor refused it, so no money has moved. `refund_returned` or
    /// `payout_returned`: the money came back. `request_abandoned`: an operator ended the request.
    pub code: String,
    /// The reason as text for people.
    pub message: String,
}

/// Money sent to the merchant's bank.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Payout {
    /// Amount, at the currency's scale.
    pub amount: String,
    /// Time of the first request for the payout.
    pub created_at: String,
    /// ISO 4217 code.
    pub currency: String,
    /// Name of the bank account that receives the money.
    pub destination: String,

    pub failure: Option<ObjectFailure>,
    /// Time-ordered id.
    pub id: String,
    /// Free-form entries.
    pub metadata: BTreeMap<String, String>,
    /// Always `payout`.
    pub object: String,
    /// Time at which the payout arrived or failed.
    pub settled_at: Option<String>,
    /// `pending` until the processor accepts the payout, then `in_transit`, then `paid` or `failed`.
    pub status: String,
}

/// Body of every error answer: an RFC 9457 problem with a few more members.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Problem {
    /// With `card_declined` and `insufficient_funds`: the failed charge. With `duplicate_suspected`: the earlier
    /// charge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub charge_id: Option<String>,
    /// Machine-readable cause: one code per cause. A later version can have more codes: treat one that you don't know
    /// by `status` and `retryable`.
    pub code: String,
    /// With `card_declined` and `insufficient_funds`: the issuer's reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decline_code: Option<String>,
    /// One sentence about this occurrence.
    pub detail: String,
    /// With `validation_failed`: all invalid fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errors: Option<Vec<FieldError>>,
    /// Path of the request.
    pub instance: String,
    /// With `payout_refused`: the failed payout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payout_id: Option<String>,
    /// With `refund_refused`: the failed refund.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refund_id: Option<String>,
    /// With `refund_refused` and `payout_refused`: the processor's reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal_code: Option<String>,
    /// Id of the request that this answer was made for. A replay has the first request's id.
    pub request_id: String,
    /// Whether the same request can succeed when sent again with the same idempotency key.
    pub retryable: bool,
    /// The HTTP status, repeated.
    pub status: i64,
    /// Short title, the same for every occurrence of the code.
    pub title: String,
    /// Path of the page that explains the code.
    pub r#type: String,
}

/// Body of a redelivery. May be empty.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct RedeliverEvent {
    /// Id of the only endpoint to deliver to, whatever event types it receives. Default: all enabled endpoints that
    /// receive this type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint_id: Option<String>,
}

/// Money returned to the customer.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Refund {
    /// Amount, at the currency's scale.
    pub amount: String,
    /// Id of the refunded charge.
    pub charge_id: String,
    /// Time of the first request for the refund.
    pub created_at: String,
    /// ISO 4217 code, that of the charge.
    pub currency: String,
    /// Time at which the refund was refused or the money came back.
    pub failed_at: Option<String>,

    pub failure: Option<ObjectFailure>,
    /// Time-ordered id.
    pub id: String,
    /// Free-form entries.
    pub metadata: BTreeMap<String, String>,
    /// Always `refund`.
    pub object: String,
    /// Free text.
    pub reason: Option<String>,
    /// `pending` until the processor has made the refund, then `succeeded`; `failed` if the processor refused it or
    /// the money came back.
    pub status: String,
}

/// Body of a rotation. May be empty.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct RotateSecret {
    /// Time for which the old secret also signs messages, in seconds: 0 to 604800 (seven days). Default: a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap_seconds: Option<i64>,
}

/// A merge patch (RFC 7396): omitted fields stay, and `null` removes.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct UpdateCharge {
    /// New text, or `null` to remove it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Option<String>>,
    /// Entries to set, or to remove with `null`. `null` instead of the object removes all entries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Option<BTreeMap<String, Option<String>>>>,
}

/// A merge patch (RFC 7396): omitted fields stay.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct UpdateWebhookEndpoint {
    /// New text, or `null` to remove it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Option<String>>,
    /// New list of event types that the endpoint receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_types: Option<Vec<String>>,
    /// `disabled` stops sending: pending deliveries keep waiting, and events that happen meanwhile are never
    /// delivered. `enabled`, after that, resets the endpoint: its failures are forgotten, and pending deliveries are
    /// attempted for as long as new ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// New URL that messages are sent to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// A merchant's destination for events.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct WebhookEndpoint {
    /// Time of its creation.
    pub created_at: String,
    /// Free text.
    pub description: Option<String>,
    /// Time at which the endpoint was disabled.
    pub disabled_at: Option<String>,
    /// Event types that the endpoint receives; `*` stands for all.
    pub event_types: Vec<String>,
    /// Time of the first failed delivery after the last successful one.
    pub failing_since: Option<String>,
    /// Time-ordered id.
    pub id: String,
    /// Always `webhook_endpoint`.
    pub object: String,
    /// Time until which the previous secret signs messages, too.
    pub previous_secret_expires_at: Option<String>,
    /// Secret that signs the messages, as defined by [Standard Webhooks](https://www.standardwebhooks.com). Only in
    /// the answer to the endpoint's creation and to a rotation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// `enabled` or `disabled`; `deleted` in the answer to its deletion.
    pub status: String,
    /// URL that messages are sent to.
    pub url: String,
}

impl Oncepay {
    /// Create an API key.
    pub fn api_keys_create(&self, name: &str, body: &CreateApiKey) -> Result<ApiKey> {
        self.once(name, Method::POST, "/v1/api-keys", body)
    }

    /// Revoke an API key.
    pub fn api_keys_revoke(&self, name: &str, id: &str) -> Result<ApiKey> {
        self.once(name, Method::DELETE, &format!("/v1/api-keys/{id}"), ())
    }

    /// Create a charge.
    pub fn charges_create(&self, name: &str, body: &CreateCharge) -> Result<Charge> {
        self.once(name, Method::POST, "/v1/charges", body)
    }

    /// Update a charge.
    pub fn charges_update(&self, name: &str, id: &str, body: &UpdateCharge) -> Result<Charge> {
        self.once(name, Method::PATCH, &format!("/v1/charges/{id}"), body)
    }

    /// Cancel a charge.
    pub fn charges_cancel(&self, name: &str, id: &str, body: Option<&CancelCharge>) -> Result<Charge> {
        self.once(name, Method::POST, &format!("/v1/charges/{id}/cancel"), body)
    }

    /// Capture a charge.
    pub fn charges_capture(&self, name: &str, id: &str, body: Option<&CaptureCharge>) -> Result<Charge> {
        self.once(name, Method::POST, &format!("/v1/charges/{id}/capture"), body)
    }

    /// Deliver an event again.
    pub fn events_redeliver(
        &self,
        name: &str,
        id: &str,
        body: Option<&RedeliverEvent>,
    ) -> Result<DeliveryList> {
        self.once(name, Method::POST, &format!("/v1/events/{id}/redeliver"), body)
    }

    /// Create a payout.
    pub fn payouts_create(&self, name: &str, body: &CreatePayout) -> Result<Payout> {
        self.once(name, Method::POST, "/v1/payouts", body)
    }

    /// Create a refund.
    pub fn refunds_create(&self, name: &str, body: &CreateRefund) -> Result<Refund> {
        self.once(name, Method::POST, "/v1/refunds", body)
    }

    /// Create a webhook endpoint.
    pub fn webhook_endpoints_create(
        &self,
        name: &str,
        body: &CreateWebhookEndpoint,
    ) -> Result<WebhookEndpoint> {
        self.once(name, Method::POST, "/v1/webhook-endpoints", body)
    }

    /// Delete a webhook endpoint.
    pub fn webhook_endpoints_delete(&self, name: &str, id: &str) -> Result<WebhookEndpoint> {
        self.once(name, Method::DELETE, &format!("/v1/webhook-endpoints/{id}"), ())
    }

    /// Update a webhook endpoint.
    pub fn webhook_endpoints_update(
        &self,
        name: &str,
        id: &str,
        body: &UpdateWebhookEndpoint,
    ) -> Result<WebhookEndpoint> {
        self.once(name, Method::PATCH, &format!("/v1/webhook-endpoints/{id}"), body)
    }

    /// Rotate a webhook endpoint's secret.
    pub fn webhook_endpoints_rotate_secret(
        &self,
        name: &str,
        id: &str,
        body: Option<&RotateSecret>,
    ) -> Result<WebhookEndpoint> {
        self.once(name, Method::POST, &format!("/v1/webhook-endpoints/{id}/rotate-secret"), body)
    }
}
