//! Errors as HTTP answers: problems (RFC 9457, `application/problem+json`).

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, ResponseError};
use serde::Serialize;
use utoipa::ToSchema;

use crate::base::ids::{ChargeId, PayoutId, RefundId};

use super::{Code, Error, Failure, FieldError};

impl Code {
    /// The HTTP status.
    pub fn status(self) -> StatusCode {
        StatusCode::from_u16(self.entry().status).expect("the catalogue holds valid statuses")
    }
}

/// Body of every error answer: an RFC 9457 problem with a few more members.
#[derive(Debug, Serialize, ToSchema)]
pub struct Problem {
    /// Path of the page that explains the code.
    #[serde(rename = "type")]
    #[schema(example = "/problems/validation-failed")]
    pub kind: String,
    /// Short title, the same for every occurrence of the code.
    #[schema(example = "Validation failed")]
    pub title: &'static str,
    /// The HTTP status, repeated.
    #[schema(example = 422, minimum = 400, maximum = 599)]
    pub status: u16,
    /// One sentence about this occurrence.
    pub detail: String,
    /// Path of the request.
    #[schema(example = "/v1/charges")]
    pub instance: String,
    /// Machine-readable cause: one code per cause. A later version can have more codes: treat one that you don't know by
    /// `status` and `retryable`.
    #[schema(example = "validation_failed")]
    pub code: &'static str,
    /// Whether the same request can succeed when sent again with the same idempotency key.
    pub retryable: bool,
    /// Id of the request that this answer was made for. A replay has the first request's id.
    #[schema(example = "req_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    pub request_id: String,
    /// With `validation_failed`: all invalid fields.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub errors: Option<Vec<FieldError>>,
    /// With `card_declined` and `insufficient_funds`: the issuer's reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "generic_decline")]
    pub decline_code: Option<String>,
    /// With `card_declined` and `insufficient_funds`: the failed charge. With `duplicate_suspected`: the
    /// earlier charge.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false, example = "ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    pub charge_id: Option<ChargeId>,
    /// With `refund_refused` and `payout_refused`: the processor's reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "amount_exceeds_captured")]
    pub refusal_code: Option<String>,
    /// With `refund_refused`: the failed refund.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false, example = "re_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    pub refund_id: Option<RefundId>,
    /// With `payout_refused`: the failed payout.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false, example = "po_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    pub payout_id: Option<PayoutId>,
}

impl Problem {
    /// Makes the body for an error with this code and sentence, in answer to request `request_id` for `path`.
    fn of(code: Code, detail: String, request_id: &str, path: &str) -> Self {
        let entry = code.entry();
        Self {
            kind: entry.path(),
            title: entry.title,
            status: entry.status,
            detail,
            instance: path.to_owned(),
            code: entry.code,
            retryable: entry.retryable,
            request_id: request_id.to_owned(),
            errors: None,
            decline_code: None,
            charge_id: None,
            refusal_code: None,
            refund_id: None,
            payout_id: None,
        }
    }

    /// Makes the body for `error`, in answer to request `request_id` for `path`.
    pub fn new(error: &Error, request_id: &str, path: &str) -> Self {
        let mut problem = Self::of(error.code(), error.to_string(), request_id, path);
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
            Error::RefundRefused { refund_id, refusal_code } => {
                problem.refusal_code = Some(refusal_code.clone());
                problem.refund_id = Some(*refund_id);
            }
            Error::PayoutRefused { payout_id, refusal_code } => {
                problem.refusal_code = Some(refusal_code.clone());
                problem.payout_id = Some(*payout_id);
            }
            _ => {}
        }
        problem
    }
}

/// Seconds that a client should wait before it retries.
const RETRY_AFTER_S: &str = "1";
/// Maximum of the same, when too many are to retry.
const RETRY_AFTER_MAX_S: u32 = 3;
/// The same, when an operator has to act first.
const RETRY_AFTER_PARKED_S: &str = "60";

/// Name of the header that names the charge of which this one looks like a duplicate.
pub const SUSPECTED_DUPLICATE_OF: &str = "Suspected-Duplicate-Of";

/// The header that links to the page of a problem.
fn described_by(code: Code) -> Vec<(&'static str, String)> {
    vec![("Link", format!("<{}>; rel=\"describedby\"", code.entry().path()))]
}

/// The header that says when to send the same request again, if a retry can help.
fn retry_after(code: Code) -> Vec<(&'static str, String)> {
    let is_worth_it = code.entry().retryable && code.entry().status != 500;
    is_worth_it.then(|| ("Retry-After", RETRY_AFTER_S.to_owned())).into_iter().collect()
}

/// The header that says how to authenticate.
fn authenticate() -> Vec<(&'static str, String)> {
    vec![("WWW-Authenticate", "Bearer realm=\"oncepay\"".to_owned())]
}

impl Failure {
    /// Headers of an answer with this failure, besides the content type.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::ApiKeyInvalid | Self::ApiKeyRevoked => authenticate(),
            Self::IdempotencyKeyMissing
            | Self::IdempotencyKeyInvalid(_)
            | Self::IdempotencyKeyReused
            | Self::IdempotencyKeyExpired => described_by(self.code()),
            Self::IdempotencyRequestInProgress { waited_s, is_parked } => {
                let retry_after = if *is_parked { RETRY_AFTER_PARKED_S } else { RETRY_AFTER_S };
                let mut headers = vec![("Retry-After", retry_after.to_owned())];
                headers.extend(waited_s.map(|seconds| ("Preference-Applied", format!("wait={seconds}"))));
                headers
            }
            Self::OutcomeUnknown { location, .. } => {
                location.iter().map(|location| ("Location", location.clone())).collect()
            }
            Self::ProcessorUnavailable { retry_after: Some(pause), .. }
            | Self::RateLimited { retry_after: pause, .. } => {
                vec![("Retry-After", pause.as_secs_f64().ceil().max(1.0).to_string())]
            }
            // Those who are refused together mustn't all come back together.
            Self::Overloaded => vec![("Retry-After", rand::random_range(1..=RETRY_AFTER_MAX_S).to_string())],
            _ => retry_after(self.code()),
        }
    }

    /// Makes the body in answer to request `request_id` for `path`.
    pub fn problem(&self, request_id: &str, path: &str) -> Problem {
        Problem::of(self.code(), self.to_string(), request_id, path)
    }
}

impl Error {
    /// Headers of an answer with this error, besides the content type.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Failure(failure) => failure.headers(),
            Self::ApiKeyMissing => authenticate(),
            Self::MethodNotAllowed { allow } => vec![("Allow", allow.clone())],
            Self::DuplicateSuspected { charge_id } => vec![(SUSPECTED_DUPLICATE_OF, charge_id.to_string())],
            _ => retry_after(self.code()),
        }
    }

    /// Makes the whole answer to request `request_id` for `path`.
    pub fn to_response(&self, request_id: &str, path: &str) -> HttpResponse {
        response(self.code(), self.headers(), &Problem::new(self, request_id, path))
    }
}

fn response(code: Code, headers: Vec<(&'static str, String)>, problem: &Problem) -> HttpResponse {
    let mut response = HttpResponse::build(code.status());
    for header in headers {
        response.insert_header(header);
    }
    response.content_type("application/problem+json").json(problem)
}

impl ResponseError for Error {
    fn status_code(&self) -> StatusCode {
        self.code().status()
    }

    /// Without the request, neither its id nor its path is known. The server's middleware builds the answer
    /// that the client sees.
    fn error_response(&self) -> HttpResponse {
        self.to_response("", "")
    }
}

impl ResponseError for Failure {
    fn status_code(&self) -> StatusCode {
        self.code().status()
    }

    fn error_response(&self) -> HttpResponse {
        response(self.code(), self.headers(), &self.problem("", ""))
    }
}
