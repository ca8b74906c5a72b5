//! The catalogue of error codes: the meaning of each code, and the client's remedy.

macro_rules! codes {
    ($($name:ident: $code:literal, $status:literal, $retryable:literal, $final:literal, $title:literal,
        $meaning:literal, $remedy:literal;)*) => {
        /// Causes of error answers. Names and codes are part of the API and never change meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code {
            $(#[doc = $meaning] $name,)*
        }

        impl Code {
            /// Every code, for the catalogue's index and its tests.
            pub const ALL: &[Code] = &[$(Code::$name,)*];

            /// The catalogue entry of this code.
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

/// Entry of the catalogue for one code.
#[derive(Debug)]
pub struct CatalogueEntry {
    /// Snake_case name, as in the field `code`.
    pub code: &'static str,
    /// HTTP status of the answer.
    pub status: u16,
    /// Whether the same request can succeed when sent again with the same idempotency key.
    pub retryable: bool,
    /// Whether the answer settles the request: it is stored, and every retry gets the same bytes.
    pub is_final: bool,
    /// Short title, the same for every occurrence.
    pub title: &'static str,
    /// Explanation of the error, for its page.
    pub meaning: &'static str,
    /// Remedy for the client, for its page.
    pub remedy: &'static str,
}

impl CatalogueEntry {
    /// Path of the page that explains this code: `/problems/` and the code with dashes.
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
        "Check that you copied the whole key and that it belongs to this environment.";
    ApiKeyRevoked: "api_key_revoked", 401, false, false, "API key revoked",
        "The API key was valid and has been revoked. A revoked key gets no replays either: the service never shows it a stored answer.",
        "Create a new API key and use it. Retrying a payment with the new API key and the same idempotency key is safe.";
    OperatorKeyNotAllowed: "operator_key_not_allowed", 403, false, false, "Operator key not allowed here",
        "Operator keys (`ok_…`) reach only `/v1/operator/*`, so an operator can't act for a merchant.",
        "Use an API key of the merchant (`sk_test_…`).";
    OperatorKeyRequired: "operator_key_required", 403, false, false, "Operator key required",
        "Only operator keys reach `/v1/operator/*`. A merchant's API key doesn't.",
        "Use an operator key (`ok_…`).";
    WebhookSignatureInvalid: "webhook_signature_invalid", 401, false, false, "Webhook signature invalid",
        "The message isn't signed according to Standard Webhooks, is signed with a secret that the service doesn't know, or has a timestamp more than five minutes from the service's clock. Nothing was stored.",
        "When sending, sign the bytes of the body with the current secret, and send `webhook-id`, `webhook-timestamp` and `webhook-signature` once each.";
    RouteNotFound: "route_not_found", 404, false, false, "No such route",
        "The service has no route at this path.",
        "Check the path against the API reference at `/docs`.";
    MethodNotAllowed: "method_not_allowed", 405, false, false, "Method not allowed",
        "The path exists, but doesn't take this method. The `Allow` header lists the methods that it takes.",
        "Check the method against the API reference at `/docs`.";
    RequestMalformed: "request_malformed", 400, false, false, "Malformed request",
        "The request isn't well-formed HTTP/1.1 (RFC 9112): for example, it has no `Host` header, has both `Content-Length` and `Transfer-Encoding`, ends within its head, or is a TLS handshake on a port for plain HTTP. `detail` says what is wrong. The connection is closed.",
        "Send requests with an HTTP library. If you do, look for a proxy that changes them, and check the scheme and the port of the URL.";
    HeadTimeout: "head_timeout", 408, true, false, "Head took too long",
        "The request line and the headers didn't arrive within 10 seconds. Nothing was executed. The connection is closed.",
        "Send the request again on a new connection, with the same idempotency key.";
    UriTooLong: "uri_too_long", 414, false, false, "URI too long",
        "The first line of the request (method, path and query) is longer than 8 KiB. The connection is closed.",
        "Send a shorter path and query; no request of this API needs 8 KiB.";
    HeadersTooLarge: "headers_too_large", 431, false, false, "Headers too large",
        "The request line and the headers are larger than 32 KiB together, or there are more than 96 header lines. The connection is closed.",
        "Send fewer or smaller headers. Cookies have no meaning here.";
    HttpVersionUnsupported: "http_version_unsupported", 505, false, false, "HTTP version not supported",
        "The request line names another version of HTTP than 1.1 or 1.0. The connection is closed.",
        "Send requests of HTTP/1.1. If the client insists on HTTP/2, put a proxy in between that translates.";
    BodyTooLarge: "body_too_large", 413, false, false, "Body too large",
        "The body is larger than 64 KiB.",
        "Send a smaller body; no request of this API needs 64 KiB. Keep large free-form data in your own store and put its id in `metadata`.";
    MediaTypeUnsupported: "media_type_unsupported", 415, false, false, "Media type unsupported",
        "The body isn't declared as JSON, or it is compressed.",
        "Send `Content-Type: application/json` (on `PATCH` also `application/merge-patch+json`) and no `Content-Encoding`.";
    BodyTimeout: "body_timeout", 408, true, false, "Body took too long",
        "The body didn't arrive within 10 seconds. Nothing was executed. The connection is closed.",
        "Send the request again with the same idempotency key.";
    BodyIncomplete: "body_incomplete", 400, true, false, "Body incomplete",
        "The body ended before its announced length, or its chunks are malformed, so that its end can't be told. Nothing was executed. The connection is closed.",
        "Send the whole request again with the same idempotency key.";
    IdempotencyKeyMissing: "idempotency_key_missing", 400, false, false, "Idempotency key missing",
        "A request that changes something needs an `Idempotency-Key`, so that a retry can't execute it twice.",
        "Generate a random UUID for each intended operation, store it with your order, and send it as `Idempotency-Key` with every attempt of that operation.";
    IdempotencyKeyInvalid: "idempotency_key_invalid", 400, false, false, "Idempotency key invalid",
        "The `Idempotency-Key` must be 1 to 255 visible ASCII characters, bare or as a quoted structured-field string, in a single header without parameters.",
        "Send a UUID, bare or in double quotes.";
    JsonMalformed: "json_malformed", 400, false, false, "Malformed JSON",
        "The body isn't JSON text in UTF-8, is cut off, is nested too deeply, or repeats a member name.",
        "Serialize the body with a JSON library. `detail` gives the line and column.";
    ValidationFailed: "validation_failed", 422, false, false, "Validation failed",
        "The body is JSON, but some fields are missing, unknown or invalid. `errors` lists all of them, each with a JSON pointer. Nothing was stored, so the idempotency key is still unused.",
        "Correct the fields and send the request again. You may use the same idempotency key.";
    IdempotencyKeyReused: "idempotency_key_reused", 422, false, false, "Idempotency key reused for another request",
        "This idempotency key was used before with another method, path, query or body. The first request stands; this one was not executed.",
        "Use a new key for a new operation. To retry the first request, send it exactly as before.";
    IdempotencyKeyExpired: "idempotency_key_expired", 422, false, false, "Idempotency key expired",
        "This idempotency key was used so long ago that its answer is no longer kept. The service still remembers the key, so a late retry can't execute the request a second time.",
        "If this is a late retry, look up the outcome: `GET /v1/idempotency-keys/{key}` names the resource. Use a new key for a new operation.";
    IdempotencyRequestInProgress: "idempotency_request_in_progress", 409, true, false, "The first request is still running",
        "A request with this idempotency key is being executed, or is waiting to be. This one was not executed.",
        "Wait as long as `Retry-After` says and send the same request again: it gets the first request's answer. With `Prefer: wait=N`, the service waits up to N seconds for that answer.";
    PreconditionFailed: "precondition_failed", 412, false, true, "Precondition failed",
        "A condition of the request, `If-Match` or `If-None-Match`, doesn't hold, so the request wasn't performed. Where an answer to `GET` has no `ETag`, no tag matches, and `*` matches whatever exists. A request that fails for another reason is answered with that reason.",
        "Retrieve the object and decide again. Then send the change without the condition, or with one that holds, and with a new idempotency key.";
    IdempotencyKeyNotFound: "idempotency_key_not_found", 404, false, true, "No such idempotency key",
        "This idempotency key was never used, or was used so long ago that the service has forgotten it.",
        "Check the key. If you sent a request with it, that request never arrived: send it again.";
    IdempotencyKeyNotInProgress: "idempotency_key_not_in_progress", 409, false, true, "The request is finished",
        "The request with this idempotency key has been answered. There is nothing to retry or release.",
        "Retrieve the key again to see its state.";
    OperationNotFound: "operation_not_found", 404, false, true, "No such operation",
        "There is no operation with this name.",
        "Use one of the operations that `GET /v1/idempotency-policies` lists.";
    DuplicateSuspected: "duplicate_suspected", 409, false, true, "Suspected duplicate",
        "Another charge with the same amount, currency, payment method and reference was created a short time ago with another idempotency key, and the policy refuses such duplicates.",
        "If the first charge is the one you want, keep it: its id is in `charge_id`. If you want both, send this request with another `reference` and a new key.";
    DuplicateInProgress: "duplicate_in_progress", 409, true, false, "A similar charge is being made",
        "Another charge with the same amount, currency, payment method and reference is being created right now with another idempotency key, and the policy refuses duplicates. This one was not executed.",
        "If both are the same payment, use one key for all its attempts. Otherwise send this request again after `Retry-After`: the service creates the charge if the other one fails, and refuses it if the other one succeeds.";
    OutcomeUnknown: "outcome_unknown", 503, false, false, "Outcome unknown",
        "The request began without the protection of an idempotency key, because the policy of its operation currently gives keys no effect, and its outcome isn't known. If it calls the payment processor, the service finishes it by itself; otherwise it has taken effect by now, or never will.",
        "Don't send the request again: that could be another payment. Look at the resource that the header `Location` names; without that header, look in the list of the resources that the operation creates. A new resource is found (no more 404) when the request is finished.";
    DatabaseUnavailable: "database_unavailable", 503, true, false, "Database unavailable",
        "The service couldn't reach its database in time.",
        "Send the same request with the same idempotency key again after `Retry-After`.";
    TransientConflict: "transient_conflict", 503, true, false, "Transient conflict",
        "The request collided with others in the database more often than the service retries by itself. Its last transaction was rolled back. If the request had called the payment processor, the service finishes by itself what has begun.",
        "Send the same request with the same idempotency key again after `Retry-After`.";
    ProcessorUnavailable: "processor_unavailable", 503, true, false, "Payment processor unavailable",
        "The payment processor failed, didn't answer in time, or asked for a pause, so the outcome isn't known yet.",
        "Send the same request with the same idempotency key again after `Retry-After`. It resumes the same payment and can't charge twice. A *new* key would start a new payment.";
    RateLimited: "rate_limited", 429, true, false, "Too many requests",
        "The merchant has sent more requests of this operation per second, or has more of them under way at the same time, than the operation's policy allows on this instance of the service. `detail` says which. Nothing was executed or stored, so the idempotency key is as it was.",
        "Wait as long as `Retry-After` says and send the same request with the same idempotency key again. `RateLimit-Policy` and `RateLimit` tell the limits and what is left of them, so that a client can slow down before it's refused. Retries of answered requests count a tenth.";
    Overloaded: "overloaded", 503, true, false, "Overloaded",
        "More requests are waiting than the service can answer in time, and this merchant has its share of them or more. The request was refused at once, before anything was done.",
        "Send the same request with the same idempotency key again after `Retry-After`, and double the pause with each further refusal. Fewer requests at the same time get more done.";
    SecretUnavailable: "secret_unavailable", 503, true, false, "Secret unavailable",
        "The answer shows a secret, and this instance of the service can't derive it at the moment: the service's master key is being replaced, or hasn't been checked yet. Rather than a wrong secret, it shows none.",
        "Send the same request with the same idempotency key again after `Retry-After`. Another instance, or this one later, answers with the secret.";
    InstanceStopping: "instance_stopping", 503, true, false, "Instance stopping",
        "This instance of the service is being stopped, and says so to load balancers that ask whether it's ready. It still answers requests.",
        "Send new requests to another instance.";
    DatabaseUnfit: "database_unfit", 503, true, false, "Database unfit",
        "This instance of the service reaches its database, but can't use it as it is, and says so to load balancers that ask whether it's ready. `detail` says why: migrations are missing, the service's role lacks privileges, or a pooler or an address in between gives connections sessions that aren't theirs. Requests are answered with `database_unavailable` meanwhile, and nothing is executed.",
        "Send new requests to another instance. Operators find what to do in the service's log.";
    Internal: "internal", 500, true, false, "Internal error",
        "The service hit a bug of its own. It rolled back the request's changes.",
        "Send the same request with the same idempotency key again. If the error persists, report the `request_id`.";
    CardDeclined: "card_declined", 402, false, true, "Card declined",
        "The issuer declined the card. `decline_code` gives the issuer's reason, as far as the issuer tells it; `charge_id` names the failed charge. The decline is final for this idempotency key.",
        "Ask the customer for another payment method and send a new request with a new idempotency key.";
    InsufficientFunds: "insufficient_funds", 402, false, true, "Insufficient funds",
        "The customer's account doesn't hold enough. `charge_id` names the failed charge. The decline is final for this idempotency key.",
        "Ask the customer for another payment method, or try again later, with a new idempotency key.";
    ChargeNotCapturable: "charge_not_capturable", 409, false, true, "Charge can't be captured",
        "Only an authorized charge (`requires_capture`) can be captured, only once, and not while a capture or cancellation of it is under way. The processor can refuse a capture as well: if the authorization has lapsed there, the charge is `canceled` now, with the failure `authorization_expired`.",
        "Retrieve the charge to see its status.";
    CaptureExceedsAuthorization: "capture_exceeds_authorization", 422, false, true, "Capture exceeds the authorization",
        "A capture can't exceed the authorized amount.",
        "Capture the authorized amount or less, with a new idempotency key. To collect more, create another charge.";
    ChargeNotCancelable: "charge_not_cancelable", 409, false, true, "Charge can't be canceled",
        "Only an authorized charge (`requires_capture`) can be canceled, and not while a capture or cancellation of it is under way. The processor can refuse a cancellation as well, for example of what was captured there.",
        "Retrieve the charge to see its status. A captured charge can be refunded instead.";
    ChargeNotRefundable: "charge_not_refundable", 409, false, true, "Charge can't be refunded",
        "Only a captured charge that isn't fully refunded can be refunded, and not while a dispute of it is open or has taken the rest.",
        "Retrieve the charge to see its status.";
    RefundExceedsCaptured: "refund_exceeds_captured", 422, false, true, "Refund exceeds what was captured",
        "The refunds of a charge together, including those under way, can't exceed the captured amount, less what disputes have taken.",
        "Retrieve the charge. You can refund `amount_captured` less `amount_refunded`, less the refunds under way. Use a new idempotency key.";
    InsufficientBalance: "insufficient_balance", 422, false, true, "Insufficient balance",
        "The merchant's available balance in this currency doesn't cover the amount.",
        "Retrieve the balance. When it covers the amount, send the request again with a new idempotency key.";
    RefundRefused: "refund_refused", 422, false, true, "Refund refused",
        "The payment processor refuses this refund for good, for example because the charge was refunded there. `refund_id` names the failed refund, and `refusal_code` gives the processor's reason. Its amount is available again.",
        "Retrieve the charge. If `refusal_code` tells what to correct, send another refund with a new idempotency key. Otherwise ask support.";
    PayoutRefused: "payout_refused", 422, false, true, "Payout refused",
        "The payment processor refuses this payout for good, for example because it doesn't pay to this destination. `payout_id` names the failed payout, and `refusal_code` gives the processor's reason. Its amount is available again.",
        "Correct what `refusal_code` names, and send another payout with a new idempotency key.";
    RequestAbandoned: "request_abandoned", 409, false, true, "Request abandoned",
        "The service couldn't finish this request, and an operator has ended it as failed. Whatever was reserved for it is available again, and a refund or payout of the request is `failed`.",
        "Ask support what has become of the payment before you make another one with a new idempotency key.";
    RefundNotFound: "refund_not_found", 404, false, true, "No such refund",
        "There is no refund with this id, or it belongs to another merchant.",
        "Check the id, and use an API key of the merchant that created the refund.";
    PayoutNotFound: "payout_not_found", 404, false, true, "No such payout",
        "There is no payout with this id, or it belongs to another merchant.",
        "Check the id, and use an API key of the merchant that created the payout.";
    DisputeNotFound: "dispute_not_found", 404, false, true, "No such dispute",
        "There is no dispute with this id, or it belongs to another merchant.",
        "Check the id, and use an API key of the merchant whose charge is disputed.";
    AcquirerEventNotFound: "acquirer_event_not_found", 404, false, true, "No such event of the processor",
        "There is no processor event with this id, or it was received so long ago that it is no longer kept.",
        "Check the id (`ae_…`). To find an event by the processor's own id, list with `event_id=`.";
    AccountNotFound: "account_not_found", 404, false, true, "No such ledger account",
        "There is no ledger account with this id, or it belongs to another merchant.",
        "List the accounts. The service creates an account with the first posting to it.";
    JournalEntryNotFound: "journal_entry_not_found", 404, false, true, "No such journal entry",
        "There is no journal entry with this id, or it belongs to another merchant.",
        "Check the id, or look the entry up by its source.";
    MerchantNotFound: "merchant_not_found", 404, false, true, "No such merchant",
        "There is no merchant with this id.",
        "Check the id against the list of merchants.";
    ApiKeyNotFound: "api_key_not_found", 404, false, true, "No such API key",
        "There is no API key with this id, or it belongs to another merchant.",
        "Check the id (`ak_…`, not the key itself) against the list of keys.";
    LastApiKey: "last_api_key", 409, false, true, "Last API key",
        "This is the merchant's last API key that isn't revoked. Without a key, the merchant can't make requests, not even one for another key.",
        "To rotate the key, create another one first. To revoke the last key all the same, send the request with `?last=true` and a new idempotency key. After that, only an operator can issue a key.";
    WebhookEndpointNotFound: "webhook_endpoint_not_found", 404, false, true, "No such webhook endpoint",
        "There is no webhook endpoint with this id, it was deleted, or it belongs to another merchant.",
        "Check the id against the list of webhook endpoints.";
    WebhookEndpointLimitReached: "webhook_endpoint_limit_reached", 409, false, true, "Too many webhook endpoints",
        "A merchant can have at most 16 webhook endpoints, including disabled ones.",
        "Delete an endpoint that you no longer need and send this request again with a new idempotency key, or subscribe an existing endpoint to more event types.";
    WebhookEndpointDisabled: "webhook_endpoint_disabled", 409, false, true, "Webhook endpoint disabled",
        "The endpoint is disabled, by the merchant or because its deliveries failed for too long. Nothing is delivered to it.",
        "Enable the endpoint (`PATCH` with `{\"status\": \"enabled\"}`) and send the request again with a new idempotency key.";
    EventNotFound: "event_not_found", 404, false, true, "No such event",
        "There is no event with this id, it belongs to another merchant, or it was deleted because of its age.",
        "Check the id, and use an API key of the merchant that the event belongs to.";
    MetadataTooLarge: "metadata_too_large", 422, false, true, "Too many metadata entries",
        "With this change, the object would have more than 50 entries in `metadata`.",
        "Remove entries by setting them to `null` in the same request, and use a new idempotency key.";
    ChargeNotFound: "charge_not_found", 404, false, true, "No such charge",
        "There is no charge with this id, or it belongs to another merchant.",
        "Check the id, and use an API key of the merchant that created the charge.";
}

impl Code {
    /// The snake_case name.
    pub const fn as_str(self) -> &'static str {
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
            // The one whose outcome nobody knows, and the one that is the client's doing although it isn't a 4xx.
            let others = [Code::OutcomeUnknown.as_str(), Code::HttpVersionUnsupported.as_str()];
            assert!(entry.retryable || others.contains(&entry.code) || entry.status < 500, "{}", entry.code);
        }
    }
}
