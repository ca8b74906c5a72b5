//! The error answers of an operation, for the OpenAPI document.

use std::collections::BTreeMap;

use serde_json::json;
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{Ref, RefOr};

use crate::error::{CatalogueEntry, Code};

/// Declares the error answers of an operation: `problems!(Name, mutating: …)` for changes, `reading` for reads,
/// and `operating…` for the same by operators (see the functions of these names). A declaration lists only the
/// operation's own codes.
macro_rules! problems {
    ($name:ident, $common:ident: $($code:ident),*) => {
        struct $name;

        impl utoipa::IntoResponses for $name {
            fn responses() -> std::collections::BTreeMap<
                String,
                utoipa::openapi::RefOr<utoipa::openapi::response::Response>,
            > {
                #[allow(unused_imports, reason = "some operations have no codes of their own")]
                use $crate::error::Code;
                $crate::web::problems::problem_responses(
                    &$crate::web::problems::$common(),
                    &[$(Code::$code),*],
                )
            }
        }
    };
}
pub(crate) use problems;

/// Codes that refuse a merchant's key.
const MERCHANT: &[Code] =
    &[Code::ApiKeyMissing, Code::ApiKeyInvalid, Code::ApiKeyRevoked, Code::OperatorKeyNotAllowed];
/// Codes that refuse an operator's key.
const OPERATOR: &[Code] =
    &[Code::ApiKeyMissing, Code::ApiKeyInvalid, Code::ApiKeyRevoked, Code::OperatorKeyRequired];
/// Codes that refuse a message from the processor.
const ACQUIRER: &[Code] = &[Code::WebhookSignatureInvalid];
/// Codes that refuse a query string.
const QUERY: &[Code] = &[Code::ValidationFailed];
/// Codes of requests that go through the idempotency engine.
const CHANGE: &[Code] = &[
    Code::BodyTimeout,
    Code::BodyIncomplete,
    Code::BodyTooLarge,
    Code::MediaTypeUnsupported,
    Code::IdempotencyKeyMissing,
    Code::IdempotencyKeyInvalid,
    Code::JsonMalformed,
    Code::ValidationFailed,
    Code::IdempotencyKeyReused,
    Code::IdempotencyKeyExpired,
    Code::IdempotencyRequestInProgress,
    Code::RateLimited,
    Code::OutcomeUnknown,
];
/// Codes that every request can get.
const ANY: &[Code] = &[
    Code::RequestMalformed,
    Code::HeadTimeout,
    Code::UriTooLong,
    Code::HeadersTooLarge,
    Code::HttpVersionUnsupported,
    Code::PreconditionFailed,
    Code::Overloaded,
    Code::TransientConflict,
    Code::DatabaseUnavailable,
    Code::Internal,
];

/// True if many operations can fail with this code.
pub(crate) fn is_common(code: Code) -> bool {
    [MERCHANT, OPERATOR, ACQUIRER, QUERY, CHANGE, ANY].concat().contains(&code)
}

/// True if every request can fail with this code.
pub(crate) fn is_anybodys(code: Code) -> bool {
    ANY.contains(&code)
}

/// Codes for a merchant's reads.
pub(crate) fn reading() -> Vec<Code> {
    [MERCHANT, QUERY, ANY].concat()
}

/// Codes for a merchant's changes.
pub(crate) fn mutating() -> Vec<Code> {
    [MERCHANT, CHANGE, ANY].concat()
}

/// Codes for messages from the processor.
pub(crate) fn receiving() -> Vec<Code> {
    let needs_key = |code: &Code| *code != Code::IdempotencyKeyMissing;
    [ACQUIRER, CHANGE, ANY].concat().into_iter().filter(needs_key).collect()
}

/// Codes for an operator's reads.
pub(crate) fn operating() -> Vec<Code> {
    [OPERATOR, QUERY, ANY].concat()
}

/// Codes for an operator's changes.
pub(crate) fn operating_mutating() -> Vec<Code> {
    [OPERATOR, CHANGE, ANY].concat()
}

/// Makes the responses for `common` and `own` codes: one per status, with an example per code.
pub(crate) fn problem_responses(common: &[Code], own: &[Code]) -> BTreeMap<String, RefOr<Response>> {
    let mut by_status: BTreeMap<u16, Vec<&'static CatalogueEntry>> = BTreeMap::new();
    for code in common.iter().chain(own) {
        let entry = code.entry();
        let entries = by_status.entry(entry.status).or_default();
        if entries.iter().all(|known| known.code != entry.code) {
            entries.push(entry);
        }
    }
    by_status
        .into_iter()
        .map(|(status, entries)| (status.to_string(), RefOr::T(problem_response(&entries))))
        .collect()
}

fn problem_response(entries: &[&'static CatalogueEntry]) -> Response {
    let description: Vec<_> =
        entries.iter().map(|entry| format!("`{}`: {}", entry.code, entry.meaning)).collect();
    let mut content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem")));
    for entry in entries {
        content = content.examples_from_iter([(
            entry.code,
            ExampleBuilder::new().summary(entry.title).value(Some(example(entry))).build(),
        )]);
    }
    let mut response = ResponseBuilder::new()
        .description(description.join("\n\n"))
        .content("application/problem+json", content.build())
        .build();
    if entries.iter().any(|entry| entry.retryable && entry.status != 500) {
        let seconds = ObjectBuilder::new().schema_type(SchemaType::new(Type::Integer)).minimum(Some(1));
        let retry_after = header("Seconds to wait before sending the same request again.", seconds);
        response.headers.insert("Retry-After".to_owned(), retry_after.into());
    }
    if entries.iter().any(|entry| entry.code == Code::RateLimited.as_str()) {
        document_limits(&mut response);
    }
    response
}

/// Documents the fields that tell the limits of an operation.
pub(crate) fn document_limits(response: &mut Response) {
    for (name, description) in [
        (
            "RateLimit-Policy",
            "If the policy of the operation limits requests: the limits, as structured fields \
              (draft-ietf-httpapi-ratelimit-headers-11, a draft). `charges.create:rate` has the requests that fit into a window of \
              `w` seconds, `charges.create:concurrency` the requests at the same time.",
        ),
        (
            "RateLimit",
            "What is left of these limits: `r` requests, spread over `t` seconds. Other answers of the operation have both \
              fields, too.",
        ),
    ] {
        response.headers.insert(name.to_owned(), string_header(description).into());
    }
}

/// An example problem for a code.
fn example(entry: &CatalogueEntry) -> serde_json::Value {
    let mut problem = json!({
        "type": entry.path(),
        "title": entry.title,
        "status": entry.status,
        "detail": entry.meaning,
        "instance": "/v1/charges",
        "code": entry.code,
        "retryable": entry.retryable,
        "request_id": "req_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b",
    });
    let declined = |problem: &mut serde_json::Value, reason: &str| {
        problem["decline_code"] = reason.into();
        problem["charge_id"] = "ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b".into();
    };
    let refused = |problem: &mut serde_json::Value, member: &str, id: &str| {
        problem["refusal_code"] = "account_closed".into();
        problem[member] = id.into();
    };
    match entry.code {
        "validation_failed" => {
            problem["errors"] =
                json!([{"pointer": "/amount", "detail": "must have at most 2 decimals in USD"}]);
        }
        "duplicate_suspected" => problem["charge_id"] = "ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b".into(),
        "card_declined" => declined(&mut problem, "generic_decline"),
        "insufficient_funds" => declined(&mut problem, "insufficient_funds"),
        "refund_refused" => refused(&mut problem, "refund_id", "re_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b"),
        "payout_refused" => refused(&mut problem, "payout_id", "po_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b"),
        _ => {}
    }
    problem
}

/// Describes a header of an answer whose value is any text.
pub(crate) fn string_header(description: &str) -> Header {
    header(description, ObjectBuilder::new().schema_type(Type::String))
}

/// Describes a header of an answer.
pub(crate) fn header(description: &str, schema: ObjectBuilder) -> Header {
    HeaderBuilder::new().schema(Some(schema)).description(Some(description)).build()
}
