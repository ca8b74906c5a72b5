//! Everything that can go wrong with a request, without HTTP in it, and the one place that turns it
//! into an answer.
//!
//! * [`Code`] is the catalogue: one snake_case code per cause, each with its status, whether a retry
//!   of the very same request can succeed, and the text of its page under `/problems/`.
//! * [`Error`] is a code with its particulars. What the client may read is its `Display`; what only
//!   the log may hold is its [`cause`](Error::cause).
//! * [`Problem`] is the body of an error answer (RFC 9457, `application/problem+json`).
//!
//! Invariant: text from a library, the database or the operating system never reaches a client.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, ResponseError};
use diesel::result::{DatabaseErrorInformation, DatabaseErrorKind};
use serde::Serialize;
use utoipa::ToSchema;

use crate::ids::ChargeId;
use crate::money::{Currency, Money};
use crate::webhooks::signature::Refusal;

macro_rules! codes {
    ($($name:ident: $code:literal, $status:literal, $retryable:literal, $final:literal, $title:literal,
        $meaning:literal, $remedy:literal;)*) => {
        /// The causes of error answers. Names and codes are part of the API and never change meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code {
            $(#[doc = $meaning] $name,)*
        }

        impl Code {
            /// Every code, for the catalogue's index and its tests.
            pub const ALL: &[Code] = &[$(Code::$name,)*];

            /// The entry of this code in the catalogue.
            pub const fn entry(self) -> &'static CatalogueEntry {
                match self {
                    $(Code::$name => &CatalogueEntry {
                        code: $code,
                        status: $status,
                        retryable: $retryable,
                        is_final: $final,
                        title: $title,
                        meaning: $meaning,
                        remedy: $remedy,
                    },)*
                }
            }
        }
    };
}

/// What the catalogue says of a code.
#[derive(Debug)]
pub struct CatalogueEntry {
    /// Snake_case name, as in the field `code`.
    pub code: &'static str,
    /// HTTP status of the answer.
    pub status: u16,
    /// Whether sending the very same request with the same idempotency key again can succeed.
    pub retryable: bool,
    /// Whether the answer settles the request: it is stored, and every retry gets the same bytes.
    pub is_final: bool,
    /// A few words, the same for every occurrence.
    pub title: &'static str,
    /// What has happened, for the page.
    pub meaning: &'static str,
    /// What to do about it, for the page.
    pub remedy: &'static str,
}

impl CatalogueEntry {
    /// Path of the page that explains this code: the code with dashes, under `/problems/`.
    pub fn path(&self) -> String {
        format!("/problems/{}", self.code.replace('_', "-"))
    }
}

codes! {
    ApiKeyMissing: "api_key_missing", 401, false, false, "API key missing",
        "The request has no `Authorization: Bearer …` header.",
        "Send your secret API key as `Authorization: Bearer sk_test_…`.";
    ApiKeyInvalid: "api_key_invalid", 401, false, false, "API key invalid",
        "The key in the `Authorization` header is malformed or unknown.",
        "Check that the whole key was copied and that it belongs to this environment.";
    ApiKeyRevoked: "api_key_revoked", 401, false, false, "API key revoked",
        "The key was valid once and has been revoked. This holds for replays too: a stored answer is never shown to a revoked key.",
        "Create a new key and use that one. Retrying a payment with the new key and the same idempotency key is safe.";
    OperatorKeyNotAllowed: "operator_key_not_allowed", 403, false, false, "Operator key not allowed here",
        "Operator keys (`ok_…`) reach `/v1/operator/*` and nothing else, so that running the service never means acting for a merchant.",
        "Use an API key of the merchant (`sk_test_…`).";
    OperatorKeyRequired: "operator_key_required", 403, false, false, "Operator key required",
        "Only operators reach `/v1/operator/*`; a merchant's key doesn't.",
        "Use an operator key (`ok_…`).";
    WebhookSignatureInvalid: "webhook_signature_invalid", 401, false, false, "Webhook signature invalid",
        "The message isn't signed as Standard Webhooks says, not by one of the secrets that we share, or its timestamp is more than five minutes from our clock. Nothing was stored.",
        "Sign the bytes of the body, at the time of sending, with the current secret, and send `webhook-id`, `webhook-timestamp` and `webhook-signature` once each.";
    RouteNotFound: "route_not_found", 404, false, false, "No such route",
        "Nothing is served under this path.",
        "Check the path against the API reference at `/docs`.";
    MethodNotAllowed: "method_not_allowed", 405, false, false, "Method not allowed",
        "The path exists, but not with this method. The header `Allow` lists those that it has.",
        "Check the method against the API reference at `/docs`.";
    BodyTooLarge: "body_too_large", 413, false, false, "Body too large",
        "The body is larger than 64 KiB.",
        "Send less: no request of this API needs that much. Large free-form data belongs into a store of your own, with its id in `metadata`.";
    MediaTypeUnsupported: "media_type_unsupported", 415, false, false, "Media type unsupported",
        "The body isn't declared as JSON, or it is compressed.",
        "Send `Content-Type: application/json` (on `PATCH` also `application/merge-patch+json`) and no `Content-Encoding`.";
    BodyTimeout: "body_timeout", 408, true, false, "Body took too long",
        "The body didn't arrive in time. Nothing was done.",
        "Send the request again with the same idempotency key.";
    IdempotencyKeyMissing: "idempotency_key_missing", 400, false, false, "Idempotency key missing",
        "Requests that change something need an `Idempotency-Key`, so that a retry can't do it twice.",
        "Make a random UUID per intended operation, store it with your order, and send it as `Idempotency-Key` with every attempt of that operation.";
    IdempotencyKeyInvalid: "idempotency_key_invalid", 400, false, false, "Idempotency key invalid",
        "A key is 1 to 255 visible ASCII characters, bare or as a quoted structured-field string, in a single header without parameters.",
        "Send a UUID, bare or in double quotes.";
    JsonMalformed: "json_malformed", 400, false, false, "Malformed JSON",
        "The body isn't a JSON text in UTF-8, is cut off, is nested too deeply, or repeats a member name.",
        "Serialize the body with a JSON library; `detail` gives line and column.";
    ValidationFailed: "validation_failed", 422, false, false, "Validation failed",
        "The body is JSON, but fields are missing, unknown or have values that aren't allowed. `errors` lists all of them, each with a JSON pointer. Nothing was stored, so the idempotency key is still unused.",
        "Correct the fields and send the request again; the same idempotency key may be used.";
    IdempotencyKeyReused: "idempotency_key_reused", 422, false, false, "Idempotency key reused for another request",
        "This key was used before with another method, path, query or body. The first request stands, and this one was not executed.",
        "For a new operation use a new key. To retry the first one, send it exactly as before.";
    IdempotencyKeyExpired: "idempotency_key_expired", 422, false, false, "Idempotency key expired",
        "This key was used before, so long ago that its answer isn't kept any more. It is still remembered, so that a late retry can't execute the request a second time.",
        "If this is a late retry, look up what became of it: `GET /v1/idempotency-keys/{key}` names the resource. For a new operation use a new key.";
    IdempotencyRequestInProgress: "idempotency_request_in_progress", 409, true, false, "The first request is still running",
        "A request with this key is being executed at this moment, or waits to be. This one was not executed.",
        "Wait as long as `Retry-After` says and send the same request again: it gets the first one's answer. With `Prefer: wait=N` it waits for that up to N seconds.";
    IdempotencyKeyNotFound: "idempotency_key_not_found", 404, false, true, "No such idempotency key",
        "This key was never used, or so long ago that it is forgotten.",
        "Check the key. If a request was sent under it, it never arrived: send it again.";
    IdempotencyKeyNotInProgress: "idempotency_key_not_in_progress", 409, false, true, "The request is finished",
        "The request under this key has been answered, so there is nothing to retry or release.",
        "Look at the key again.";
    OperationNotFound: "operation_not_found", 404, false, true, "No such operation",
        "There is no operation of this name.",
        "Use one of those that `GET /v1/idempotency-policies` lists.";
    DuplicateSuspected: "duplicate_suspected", 409, false, true, "Suspected duplicate",
        "Another charge of the same amount, currency, payment method and reference was made a short time ago under another idempotency key, and the policy is to refuse that.",
        "If the first charge is the one that you want, you have it: its id is in `charge_id`. If you want both, send this one with another `reference` and a new key.";
    DuplicateInProgress: "duplicate_in_progress", 409, true, false, "A similar charge is being made",
        "Another charge of the same amount, currency, payment method and reference is being made at this moment under another idempotency key, and the policy is to refuse duplicates. This one was not executed.",
        "If that was meant to be the same payment, use its key for all attempts. Otherwise send this request again after `Retry-After`: it's made if the other one fails, and refused if it succeeds.";
    OutcomeUnknown: "outcome_unknown", 503, false, false, "Outcome unknown",
        "The request was begun without the protection of an idempotency key, because the policy of its operation gives keys no effect at the moment, and its outcome isn't known. The service finishes it by itself.",
        "Don't send it again: that would be another payment. Look for its outcome in the list of what it makes.";
    DatabaseUnavailable: "database_unavailable", 503, true, false, "Database unavailable",
        "The service couldn't reach its database in time.",
        "Send the same request with the same idempotency key again after `Retry-After`.";
    TransientConflict: "transient_conflict", 503, true, false, "Transient conflict",
        "The request collided with others in the database more often than the service retries by itself. Nothing was changed.",
        "Send the same request with the same idempotency key again after `Retry-After`.";
    ProcessorUnavailable: "processor_unavailable", 503, true, false, "Payment processor unavailable",
        "The payment processor failed or didn't answer in time, so the outcome isn't known yet.",
        "Send the same request with the same idempotency key again after `Retry-After`: it resumes the same payment and can't charge twice. A *new* key would be a new payment.";
    Internal: "internal", 500, true, false, "Internal error",
        "We have a bug. What the request did was rolled back.",
        "Send the same request with the same idempotency key again. If it persists, tell us the `request_id`.";
    CardDeclined: "card_declined", 402, false, true, "Card declined",
        "The issuer declined. `decline_code` says why as far as it tells, `charge_id` names the failed charge. This is final for the idempotency key.",
        "Ask the customer for another payment method and send a new request with a new idempotency key.";
    InsufficientFunds: "insufficient_funds", 402, false, true, "Insufficient funds",
        "The customer's account doesn't hold enough. `charge_id` names the failed charge. This is final for the idempotency key.",
        "Ask the customer for another payment method or try again later, with a new idempotency key.";
    ChargeNotCapturable: "charge_not_capturable", 409, false, true, "Charge can't be captured",
        "Only an authorized charge (`requires_capture`) can be captured, once, and not while a capture or cancellation of it is under way.",
        "Retrieve the charge to see where it stands.";
    CaptureExceedsAuthorization: "capture_exceeds_authorization", 422, false, true, "Capture exceeds the authorization",
        "At most what was authorized can be captured.",
        "Capture the authorized amount or less, with a new idempotency key; for more, make another charge.";
    ChargeNotCancelable: "charge_not_cancelable", 409, false, true, "Charge can't be canceled",
        "Only an authorized charge (`requires_capture`) can be canceled, and not while a capture or cancellation of it is under way.",
        "Retrieve the charge to see where it stands. What was captured can be refunded.";
    ChargeNotRefundable: "charge_not_refundable", 409, false, true, "Charge can't be refunded",
        "Only a captured charge that isn't fully refunded and isn't disputed can be refunded.",
        "Retrieve the charge to see where it stands.";
    RefundExceedsCaptured: "refund_exceeds_captured", 422, false, true, "Refund exceeds what was captured",
        "All refunds of a charge together, those under way included, can't exceed what was captured.",
        "Retrieve the charge: `amount_captured` less `amount_refunded` is left, less what is under way. Use a new idempotency key.";
    InsufficientBalance: "insufficient_balance", 422, false, true, "Insufficient balance",
        "The merchant's available balance in this currency doesn't cover the amount.",
        "Retrieve the balance; try again with a new idempotency key when it covers the amount.";
    RefundNotFound: "refund_not_found", 404, false, true, "No such refund",
        "There is no refund with this id, or it belongs to another merchant.",
        "Check the id, and that the API key is the one of the merchant that made the refund.";
    PayoutNotFound: "payout_not_found", 404, false, true, "No such payout",
        "There is no payout with this id, or it belongs to another merchant.",
        "Check the id, and that the API key is the one of the merchant that made the payout.";
    DisputeNotFound: "dispute_not_found", 404, false, true, "No such dispute",
        "There is no dispute with this id, or it belongs to another merchant.",
        "Check the id, and that the API key is the one of the merchant whose charge is disputed.";
    AcquirerEventNotFound: "acquirer_event_not_found", 404, false, true, "No such event of the acquirer",
        "There is no event with this id, or it came so long ago that it isn't kept any more.",
        "Check the id (`ae_…`): the list finds it by the acquirer's own id with `event_id=`.";
    AccountNotFound: "account_not_found", 404, false, true, "No such ledger account",
        "There is no ledger account with this id, or it belongs to another merchant.",
        "List the accounts; they are made when something is first posted to them.";
    JournalEntryNotFound: "journal_entry_not_found", 404, false, true, "No such journal entry",
        "There is no journal entry with this id, or it belongs to another merchant.",
        "Check the id, or look the entry up by its source.";
    MerchantNotFound: "merchant_not_found", 404, false, true, "No such merchant",
        "There is no merchant with this id.",
        "Check the id against the list of merchants.";
    ApiKeyNotFound: "api_key_not_found", 404, false, true, "No such API key",
        "There is no API key with this id, or it belongs to another merchant.",
        "Check the id (`ak_…`, not the key itself) against the list of keys.";
    WebhookEndpointNotFound: "webhook_endpoint_not_found", 404, false, true, "No such webhook endpoint",
        "There is no webhook endpoint with this id, it was deleted, or it belongs to another merchant.",
        "Check the id against the list of webhook endpoints.";
    WebhookEndpointLimitReached: "webhook_endpoint_limit_reached", 409, false, true, "Too many webhook endpoints",
        "A merchant has at most 16 webhook endpoints, disabled ones included.",
        "Delete one that isn't needed any more, and send this request again with a new idempotency key; or let one endpoint take more types of events.";
    WebhookEndpointDisabled: "webhook_endpoint_disabled", 409, false, true, "Webhook endpoint disabled",
        "The endpoint is disabled, by the merchant or because it has failed for too long, so nothing is delivered to it.",
        "Enable it (`PATCH` with `{\"status\": \"enabled\"}`) and try again with a new idempotency key.";
    EventNotFound: "event_not_found", 404, false, true, "No such event",
        "There is no event with this id, it belongs to another merchant, or it is so old that it was deleted.",
        "Check the id, and that the API key is the one of the merchant whom the event is about.";
    MetadataTooLarge: "metadata_too_large", 422, false, true, "Too many metadata entries",
        "With this change the object would have more than 50 entries in `metadata`.",
        "Remove entries with `null` in the same request, with a new idempotency key.";
    ChargeNotFound: "charge_not_found", 404, false, true, "No such charge",
        "There is no charge with this id, or it belongs to another merchant.",
        "Check the id, and that the API key is the one of the merchant that created the charge.";
}

impl Code {
    /// The snake_case name.
    pub fn as_str(self) -> &'static str {
        self.entry().code
    }

    /// The HTTP status.
    pub fn status(self) -> StatusCode {
        StatusCode::from_u16(self.entry().status).expect("the catalogue holds valid statuses")
    }
}

/// One field that isn't as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// Where: a JSON pointer (RFC 6901) into the body.
    #[schema(example = "/amount")]
    pub pointer: String,
    /// What is wrong with it.
    #[schema(example = "must have at most 2 decimals in USD")]
    pub detail: String,
}

/// Why a request failed. `Display` is one sentence for the client.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the catalogue above explains each variant")]
pub enum Error {
    #[error("Authenticate with `Authorization: Bearer sk_test_…`.")]
    ApiKeyMissing,
    #[error("This API key is malformed or unknown.")]
    ApiKeyInvalid,
    #[error("This API key has been revoked.")]
    ApiKeyRevoked,
    #[error("An operator key can't act for a merchant.")]
    OperatorKeyNotAllowed,
    #[error("Only an operator's key is taken here.")]
    OperatorKeyRequired,
    #[error("Nothing is served under this path.")]
    RouteNotFound,
    #[error("This path takes {allow}.")]
    MethodNotAllowed { allow: String },
    #[error("The body must be at most {limit_bytes} bytes.")]
    BodyTooLarge { limit_bytes: usize },
    #[error("The body must be sent as {expected}, uncompressed.")]
    MediaTypeUnsupported { expected: &'static str },
    #[error("The body didn't arrive within {limit_s} s.")]
    BodyTimeout { limit_s: u64 },
    #[error("Send an `Idempotency-Key` header, for example a random UUID.")]
    IdempotencyKeyMissing,
    #[error("The `Idempotency-Key` {0}.")]
    IdempotencyKeyInvalid(&'static str),
    #[error("The body is no valid JSON: {0}.")]
    JsonMalformed(String),
    #[error("{} of the request {} not valid; `errors` lists what to correct.",
        if .0.len() == 1 { "One field".to_owned() } else { format!("{} fields", .0.len()) },
        if .0.len() == 1 { "is" } else { "are" })]
    ValidationFailed(Vec<FieldError>),
    #[error("This idempotency key was used before with another method, path, query or body.")]
    IdempotencyKeyReused,
    #[error("This idempotency key was used before, and its answer isn't kept any more.")]
    IdempotencyKeyExpired,
    #[error("{}", if *.is_parked {
        "The request with this idempotency key couldn't be finished and waits for our operators."
    } else {
        "A request with this idempotency key is still running."
    })]
    IdempotencyRequestInProgress {
        /// How long this one has waited.
        waited_s: Option<u64>,
        is_parked: bool,
    },
    #[error("There is no request with this idempotency key.")]
    IdempotencyKeyNotFound,
    #[error("The request with this idempotency key is finished.")]
    IdempotencyKeyNotInProgress,
    #[error("There is no such operation.")]
    OperationNotFound,
    #[error("This looks like a duplicate of {charge_id}.")]
    DuplicateSuspected { charge_id: ChargeId },
    #[error("A charge like this one is being made under another idempotency key.")]
    DuplicateInProgress,
    #[error(
        "It isn't known yet what came of this request; it's being finished. Sending it again would do it again."
    )]
    OutcomeUnknown(Cause),
    #[error("The database can't be reached at the moment.")]
    DatabaseUnavailable(Cause),
    #[error("The request collided with others; nothing was changed.")]
    TransientConflict(Cause),
    #[error(
        "The payment processor didn't answer; retry with the same idempotency key to resume this payment."
    )]
    ProcessorUnavailable(Cause),
    #[error("Something went wrong on our side.")]
    Internal(Cause),
    #[error("The card was declined.")]
    CardDeclined { decline_code: String, charge_id: ChargeId },
    #[error("The card has insufficient funds.")]
    InsufficientFunds { charge_id: ChargeId },
    #[error("A charge that is {status} can't be captured{}.", while_in_flight(*.in_flight))]
    ChargeNotCapturable { status: &'static str, in_flight: bool },
    #[error("At most {authorized} can be captured.")]
    CaptureExceedsAuthorization { authorized: Money },
    #[error("A charge that is {status} can't be canceled{}.", while_in_flight(*.in_flight))]
    ChargeNotCancelable { status: &'static str, in_flight: bool },
    #[error("A charge that is {status} can't be refunded.")]
    ChargeNotRefundable { status: &'static str },
    #[error("Only {left} of this charge is left to refund.")]
    RefundExceedsCaptured { left: Money },
    #[error("The available balance in {currency} doesn't cover this.")]
    InsufficientBalance { currency: Currency },
    #[error("The object would have more than {entries_max} metadata entries.")]
    MetadataTooLarge { entries_max: usize },
    #[error("There is no such charge.")]
    ChargeNotFound,
    #[error("There is no such merchant.")]
    MerchantNotFound,
    #[error("There is no such API key.")]
    ApiKeyNotFound,
    #[error("There is no such refund.")]
    RefundNotFound,
    #[error("There is no such payout.")]
    PayoutNotFound,
    #[error("There is no such dispute.")]
    DisputeNotFound,
    #[error("There is no such event of the acquirer.")]
    AcquirerEventNotFound,
    #[error("The message {}.", .0.reason())]
    WebhookSignatureInvalid(Refusal),
    #[error("There is no such ledger account.")]
    AccountNotFound,
    #[error("There is no such journal entry.")]
    JournalEntryNotFound,
    #[error("There is no such webhook endpoint.")]
    WebhookEndpointNotFound,
    #[error("A merchant can have {endpoints_max} webhook endpoints.")]
    WebhookEndpointLimitReached { endpoints_max: i64 },
    #[error("The webhook endpoint is disabled.")]
    WebhookEndpointDisabled,
    #[error("There is no such event.")]
    EventNotFound,
    /// Another claim of the same key has taken over, so what this one did was rolled back. The engine
    /// answers with the winner's outcome; a client never sees this.
    #[error("A later attempt of this request has taken over.")]
    ClaimLost,
}

fn while_in_flight(in_flight: bool) -> &'static str {
    if in_flight { " while another capture or cancellation of it is under way" } else { "" }
}

/// What the log gets to see and the client doesn't.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

impl Error {
    /// Our own bug, with the technical cause.
    pub fn internal(cause: impl Into<Cause>) -> Self {
        Self::Internal(cause.into())
    }

    /// One field that isn't valid in a way that only shows once its object is known.
    pub fn field(pointer: &str, detail: impl Into<String>) -> Self {
        Self::ValidationFailed(vec![FieldError { pointer: pointer.to_owned(), detail: detail.into() }])
    }

    /// The code of this error.
    pub fn code(&self) -> Code {
        match self {
            Self::ApiKeyMissing => Code::ApiKeyMissing,
            Self::ApiKeyInvalid => Code::ApiKeyInvalid,
            Self::ApiKeyRevoked => Code::ApiKeyRevoked,
            Self::OperatorKeyNotAllowed => Code::OperatorKeyNotAllowed,
            Self::OperatorKeyRequired => Code::OperatorKeyRequired,
            Self::MerchantNotFound => Code::MerchantNotFound,
            Self::ApiKeyNotFound => Code::ApiKeyNotFound,
            Self::RouteNotFound => Code::RouteNotFound,
            Self::MethodNotAllowed { .. } => Code::MethodNotAllowed,
            Self::BodyTooLarge { .. } => Code::BodyTooLarge,
            Self::MediaTypeUnsupported { .. } => Code::MediaTypeUnsupported,
            Self::BodyTimeout { .. } => Code::BodyTimeout,
            Self::IdempotencyKeyMissing => Code::IdempotencyKeyMissing,
            Self::IdempotencyKeyInvalid(_) => Code::IdempotencyKeyInvalid,
            Self::JsonMalformed(_) => Code::JsonMalformed,
            Self::ValidationFailed(_) => Code::ValidationFailed,
            Self::IdempotencyKeyReused => Code::IdempotencyKeyReused,
            Self::IdempotencyKeyExpired => Code::IdempotencyKeyExpired,
            Self::IdempotencyKeyNotFound => Code::IdempotencyKeyNotFound,
            Self::IdempotencyKeyNotInProgress => Code::IdempotencyKeyNotInProgress,
            Self::OperationNotFound => Code::OperationNotFound,
            Self::DuplicateSuspected { .. } => Code::DuplicateSuspected,
            Self::DuplicateInProgress => Code::DuplicateInProgress,
            Self::OutcomeUnknown(_) => Code::OutcomeUnknown,
            // A lost claim means that another attempt owns the key right now.
            Self::IdempotencyRequestInProgress { .. } | Self::ClaimLost => Code::IdempotencyRequestInProgress,
            Self::DatabaseUnavailable(_) => Code::DatabaseUnavailable,
            Self::TransientConflict(_) => Code::TransientConflict,
            Self::ProcessorUnavailable(_) => Code::ProcessorUnavailable,
            Self::Internal(_) => Code::Internal,
            Self::CardDeclined { .. } => Code::CardDeclined,
            Self::InsufficientFunds { .. } => Code::InsufficientFunds,
            Self::ChargeNotCapturable { .. } => Code::ChargeNotCapturable,
            Self::CaptureExceedsAuthorization { .. } => Code::CaptureExceedsAuthorization,
            Self::ChargeNotCancelable { .. } => Code::ChargeNotCancelable,
            Self::ChargeNotRefundable { .. } => Code::ChargeNotRefundable,
            Self::RefundExceedsCaptured { .. } => Code::RefundExceedsCaptured,
            Self::InsufficientBalance { .. } => Code::InsufficientBalance,
            Self::MetadataTooLarge { .. } => Code::MetadataTooLarge,
            Self::ChargeNotFound => Code::ChargeNotFound,
            Self::RefundNotFound => Code::RefundNotFound,
            Self::PayoutNotFound => Code::PayoutNotFound,
            Self::DisputeNotFound => Code::DisputeNotFound,
            Self::AcquirerEventNotFound => Code::AcquirerEventNotFound,
            Self::WebhookSignatureInvalid(_) => Code::WebhookSignatureInvalid,
            Self::AccountNotFound => Code::AccountNotFound,
            Self::JournalEntryNotFound => Code::JournalEntryNotFound,
            Self::WebhookEndpointNotFound => Code::WebhookEndpointNotFound,
            Self::WebhookEndpointLimitReached { .. } => Code::WebhookEndpointLimitReached,
            Self::WebhookEndpointDisabled => Code::WebhookEndpointDisabled,
            Self::EventNotFound => Code::EventNotFound,
        }
    }

    /// Whether this settles the request, so that it is kept and replayed.
    pub fn is_final(&self) -> bool {
        self.code().entry().is_final
    }

    /// Code and cause, for the log. Of what a client sent only names are in it, no values.
    pub fn detailed(&self) -> String {
        let code = self.code().as_str();
        match self {
            Self::ValidationFailed(errors) => {
                let errors = errors.iter().map(|error| format!("{} {}", error.pointer, error.detail));
                format!("{code}: {}", errors.collect::<Vec<_>>().join("; "))
            }
            Self::JsonMalformed(detail) => format!("{code}: {detail}"),
            _ => self.cause().map_or_else(|| code.to_owned(), |cause| format!("{code}: {cause}")),
        }
    }

    /// What the log should say beside the code.
    pub fn cause(&self) -> Option<&Cause> {
        match self {
            Self::DatabaseUnavailable(cause)
            | Self::TransientConflict(cause)
            | Self::ProcessorUnavailable(cause)
            | Self::OutcomeUnknown(cause)
            | Self::Internal(cause) => Some(cause),
            _ => None,
        }
    }
}

impl From<diesel::result::Error> for Error {
    /// Sorts a database error: gone (nothing was done), collided (the whole transaction may be tried
    /// again), or a bug of ours. Business rules that the database enforces are recognized by the name
    /// of their constraint where they are expected, before this is asked.
    fn from(error: diesel::result::Error) -> Self {
        use diesel::result::Error as Diesel;
        match &error {
            Diesel::DatabaseError(DatabaseErrorKind::SerializationFailure, _) => {
                Self::TransientConflict(error.into())
            }
            Diesel::DatabaseError(
                DatabaseErrorKind::ClosedConnection
                | DatabaseErrorKind::UnableToSendCommand
                | DatabaseErrorKind::ReadOnlyTransaction,
                _,
            )
            | Diesel::BrokenTransactionManager => Self::DatabaseUnavailable(error.into()),
            Diesel::DatabaseError(_, information) if collided(&**information) => {
                Self::TransientConflict(error.into())
            }
            Diesel::DatabaseError(_, information) if unavailable(&**information) => {
                Self::DatabaseUnavailable(error.into())
            }
            _ => Self::internal(error),
        }
    }
}

/// Deadlock (40P01) and lock timeout (55P03). Diesel doesn't hand out the SQLSTATE, so the message has
/// to do; the service needs a server with `lc_messages` in English.
fn collided(information: &(dyn DatabaseErrorInformation + Send + Sync)) -> bool {
    ["deadlock detected", "canceling statement due to lock timeout", "could not obtain lock"]
        .iter()
        .any(|message| information.message().starts_with(message))
}

/// The server is there but can't serve: shutting down, starting up, read-only, out of time, of disk or of memory. What it
/// couldn't do with a file (53100, 58030, 58P01) rolls the transaction back, and is over when an operator has seen to
/// the disk.
fn unavailable(information: &(dyn DatabaseErrorInformation + Send + Sync)) -> bool {
    [
        "terminating connection",
        "the database system is",
        "server closed the connection",
        "canceling statement due to",
        "cannot execute",
        "could not receive data from server",
        "no connection to the server",
        "SSL connection has been closed",
        "out of memory",
        "out of shared memory",
        "could not access",
        "could not create",
        "could not extend",
        "could not fsync",
        "could not open",
        "could not read",
        "could not resize shared memory segment",
        "could not stat",
        "could not write",
    ]
    .iter()
    .any(|message| information.message().starts_with(message))
        || information.message().ends_with("No space left on device")
}

/// Name of the constraint that a statement violated, if that is why it failed.
pub fn violated_constraint(error: &diesel::result::Error) -> Option<&str> {
    match error {
        diesel::result::Error::DatabaseError(_, information) => information.constraint_name(),
        _ => None,
    }
}

/// Body of every error answer: an RFC 9457 problem with a few more members.
#[derive(Debug, Serialize, ToSchema)]
pub struct Problem {
    /// Path of the page that explains the code.
    #[serde(rename = "type")]
    #[schema(example = "/problems/validation-failed")]
    pub kind: String,
    /// A few words, the same for every occurrence of the code.
    #[schema(example = "Validation failed")]
    pub title: &'static str,
    /// The HTTP status again.
    #[schema(example = 422)]
    pub status: u16,
    /// A sentence on this occurrence.
    pub detail: String,
    /// Path of the request.
    #[schema(example = "/v1/charges")]
    pub instance: String,
    /// The cause, for programs: one code per cause.
    #[schema(example = "validation_failed")]
    pub code: &'static str,
    /// Whether the very same request with the same idempotency key can succeed if sent again.
    pub retryable: bool,
    /// The request that this answer was made for; on a replay that is the first one.
    #[schema(example = "req_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    pub request_id: String,
    /// With `validation_failed`: all fields to correct.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub errors: Option<Vec<FieldError>>,
    /// With `card_declined` and `insufficient_funds`: the issuer's reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "generic_decline")]
    pub decline_code: Option<String>,
    /// With `card_declined` and `insufficient_funds`: the failed charge. With `duplicate_suspected`: the other one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false, example = "ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    pub charge_id: Option<ChargeId>,
}

impl Problem {
    /// The body for `error`, answering the request `request_id` for `path`.
    pub fn new(error: &Error, request_id: &str, path: &str) -> Self {
        let entry = error.code().entry();
        let mut problem = Self {
            kind: entry.path(),
            title: entry.title,
            status: entry.status,
            detail: error.to_string(),
            instance: path.to_owned(),
            code: entry.code,
            retryable: entry.retryable,
            request_id: request_id.to_owned(),
            errors: None,
            decline_code: None,
            charge_id: None,
        };
        match error {
            Error::ValidationFailed(errors) => problem.errors = Some(errors.clone()),
            Error::CardDeclined { decline_code, charge_id } => {
                problem.decline_code = Some(decline_code.clone());
                problem.charge_id = Some(*charge_id);
            }
            Error::InsufficientFunds { charge_id } => {
                problem.decline_code = Some("insufficient_funds".to_owned());
                problem.charge_id = Some(*charge_id);
            }
            Error::DuplicateSuspected { charge_id } => problem.charge_id = Some(*charge_id),
            _ => {}
        }
        problem
    }
}

/// How long a client should wait before it retries.
const RETRY_AFTER_S: &str = "1";
/// The same where an operator has to do something first.
const RETRY_AFTER_PARKED_S: &str = "60";

/// Name of the header that tells which charge another looks like.
pub const SUSPECTED_DUPLICATE_OF: &str = "Suspected-Duplicate-Of";

impl Error {
    /// Headers that go with this error beside the content type.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::ApiKeyMissing | Self::ApiKeyInvalid | Self::ApiKeyRevoked => {
                vec![("WWW-Authenticate", "Bearer realm=\"oncepay\"".to_owned())]
            }
            Self::MethodNotAllowed { allow } => vec![("Allow", allow.clone())],
            Self::IdempotencyKeyMissing
            | Self::IdempotencyKeyInvalid(_)
            | Self::IdempotencyKeyReused
            | Self::IdempotencyKeyExpired => {
                vec![("Link", format!("<{}>; rel=\"describedby\"", self.code().entry().path()))]
            }
            Self::IdempotencyRequestInProgress { waited_s, is_parked } => {
                let retry_after = if *is_parked { RETRY_AFTER_PARKED_S } else { RETRY_AFTER_S };
                let mut headers = vec![("Retry-After", retry_after.to_owned())];
                headers.extend(waited_s.map(|seconds| ("Preference-Applied", format!("wait={seconds}"))));
                headers
            }
            Self::DuplicateSuspected { charge_id } => vec![(SUSPECTED_DUPLICATE_OF, charge_id.to_string())],
            _ if self.code().entry().retryable && self.code().entry().status != 500 => {
                vec![("Retry-After", RETRY_AFTER_S.to_owned())]
            }
            _ => Vec::new(),
        }
    }

    /// The whole answer for the request `request_id` for `path`.
    pub fn to_response(&self, request_id: &str, path: &str) -> HttpResponse {
        let mut response = HttpResponse::build(self.code().status());
        for header in self.headers() {
            response.insert_header(header);
        }
        response.content_type("application/problem+json").json(Problem::new(self, request_id, path))
    }
}

impl ResponseError for Error {
    fn status_code(&self) -> StatusCode {
        self.code().status()
    }

    /// Without the request at hand the id and the path are unknown; the middleware
    /// [`request::context`](crate::request::context) builds the answer that the client sees.
    fn error_response(&self) -> HttpResponse {
        self.to_response("", "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_snake_case_and_explained() {
        let mut codes: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Code::ALL.len());
        for entry in Code::ALL.iter().map(|code| code.entry()) {
            assert!(entry.code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{}", entry.code);
            assert!(!entry.title.is_empty() && !entry.meaning.is_empty() && !entry.remedy.is_empty());
        }
    }

    #[test]
    fn a_server_that_cannot_serve_is_told_from_a_bug() {
        let sorted = |message: &str| {
            let information = Box::new(message.to_owned());
            Error::from(diesel::result::Error::DatabaseError(DatabaseErrorKind::Unknown, information)).code()
        };
        for message in [
            "could not extend file \"base/16384/16563\": No space left on device",
            "could not write to file \"pg_wal/xlogtemp.4711\": No space left on device",
            "could not access status of transaction 32768",
            "could not open file \"base/16384/16563\": No such file or directory",
            "could not fsync file \"base/16384/16563\": Input/output error",
            "could not resize shared memory segment \"/PostgreSQL.1\" to 8192 bytes: No space left on device",
            "out of memory",
            "terminating connection due to administrator command",
            "terminating connection because of crash of another server process",
            "the database system is shutting down",
            "the database system is in recovery mode",
            "cannot execute INSERT in a read-only transaction",
            "canceling statement due to statement timeout",
        ] {
            assert_eq!(sorted(message), Code::DatabaseUnavailable, "{message}");
        }
        for message in ["deadlock detected", "could not obtain lock on row in relation \"charges\""] {
            assert_eq!(sorted(message), Code::TransientConflict, "{message}");
        }
        for message in ["could not determine data type of parameter $1", "relation \"charge\" does not exist"]
        {
            assert_eq!(sorted(message), Code::Internal, "{message}");
        }
    }

    #[test]
    fn nothing_that_a_retry_could_change_is_kept() {
        for entry in Code::ALL.iter().map(|code| code.entry()) {
            assert!(!(entry.is_final && entry.retryable), "{}", entry.code);
            assert!(!(entry.is_final && entry.status >= 500), "{}", entry.code);
            let is_unknown = entry.code == Code::OutcomeUnknown.as_str();
            assert!(entry.retryable || is_unknown || entry.status < 500, "{}", entry.code);
        }
    }
}
