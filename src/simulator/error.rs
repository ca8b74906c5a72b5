//! Errors, and refusals of operations.

use crate::error::Failure;
use actix_web::http::StatusCode;
use actix_web::{HttpResponse, ResponseError};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The reason why a request isn't answered with an operation. `Display` is a sentence for the client.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("Authenticate with `Authorization: Bearer …`.")]
    Unauthorized,
    #[error("Send an `Idempotency-Key` header.")]
    IdempotencyKeyMissing,
    #[error("The `Idempotency-Key` must have 1 to 255 visible ASCII characters.")]
    IdempotencyKeyInvalid,
    #[error("{0}")]
    Invalid(String),
    #[error("This idempotency key was used before for something else.")]
    IdempotencyKeyReused,
    #[error("There is no operation with this idempotency key.")]
    OperationNotFound,
    #[error("Nothing is served here.")]
    RouteNotFound,
    #[error("Nothing is left to settle.")]
    NothingToSettle,
    #[error("Nothing is pending for that reference.")]
    NothingToDecide,
    #[error("{}", .0.message)]
    Refused(Refusal),
    #[error("Something went wrong on the simulator's side.")]
    Failed,
    #[error("Too many requests.")]
    RateLimited { retry_after_s: Option<u64> },
    #[error("The simulator can't serve at the moment.")]
    Unavailable,
}

impl From<Failure> for Error {
    fn from(error: Failure) -> Self {
        match error {
            Failure::DatabaseUnavailable(_) | Failure::TransientConflict(_) => {
                log::warn!("the simulator couldn't serve a request: {}", error.detailed());
                Self::Unavailable
            }
            _ => {
                log::error!("the simulator failed: {}", error.detailed());
                Self::Failed
            }
        }
    }
}

impl Error {
    fn code(&self) -> &str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::IdempotencyKeyMissing => "idempotency_key_missing",
            Self::IdempotencyKeyInvalid => "idempotency_key_invalid",
            Self::Invalid(_) => "request_invalid",
            Self::IdempotencyKeyReused => "idempotency_key_reused",
            Self::OperationNotFound => "operation_not_found",
            Self::RouteNotFound => "not_found",
            Self::NothingToSettle => "nothing_to_settle",
            Self::NothingToDecide => "nothing_to_decide",
            Self::Refused(refusal) => &refusal.code,
            Self::Failed => "internal",
            Self::RateLimited { .. } => "rate_limited",
            Self::Unavailable => "unavailable",
        }
    }
}

impl ResponseError for Error {
    fn status_code(&self) -> StatusCode {
        match self {
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::IdempotencyKeyMissing | Self::IdempotencyKeyInvalid | Self::Invalid(_) => {
                StatusCode::BAD_REQUEST
            }
            Self::OperationNotFound | Self::RouteNotFound => StatusCode::NOT_FOUND,
            Self::IdempotencyKeyReused | Self::NothingToSettle | Self::NothingToDecide | Self::Refused(_) => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            Self::Failed => StatusCode::INTERNAL_SERVER_ERROR,
            Self::RateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn error_response(&self) -> HttpResponse {
        let mut error = json!({"code": self.code(), "message": self.to_string()});
        if let Self::Refused(Refusal { authorization_status: Some(status), .. }) = self {
            error["authorization_status"] = json!(status);
        }
        let mut response = HttpResponse::build(self.status_code());
        if let Self::RateLimited { retry_after_s: Some(seconds) } = self {
            response.insert_header(("Retry-After", seconds.to_string()));
        }
        response.json(json!({"error": error}))
    }
}

/// The reason why an operation was refused for good. It's stored with the operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Refusal {
    pub(super) code: String,
    pub(super) message: String,
    /// State of the authorization, if that is the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) authorization_status: Option<String>,
}

impl Refusal {
    pub(super) fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), authorization_status: None }
    }
}
