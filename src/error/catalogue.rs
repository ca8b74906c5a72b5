//! The catalogue of error codes: what each means, and what to do about it.

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
    fn nothing_that_a_retry_could_change_is_kept() {
        for entry in Code::ALL.iter().map(|code| code.entry()) {
            assert!(!(entry.is_final && entry.retryable), "{}", entry.code);
            assert!(!(entry.is_final && entry.status >= 500), "{}", entry.code);
            let is_unknown = entry.code == Code::OutcomeUnknown.as_str();
            assert!(entry.retryable || is_unknown || entry.status < 500, "{}", entry.code);
        }
    }
}
