//! The errors of a request, without HTTP, and the one place that turns an error into an answer.
//!
//! * [`Code`] is the catalogue: one snake_case code per cause, with its status, whether a retry of the same
//!   request can succeed, and the text of its page under `/problems/`.
//! * [`Error`] is a code with its particulars. The client reads its `Display`; only the log gets its
//!   [`cause`](Error::cause).
//! * [`Problem`] is the body of an error answer (RFC 9457, `application/problem+json`).
//!
//! Invariant: text from a library, the database or the operating system never reaches a client.

mod catalogue;
mod database;
pub mod failure;
mod problem;

use std::fmt;

use serde::Serialize;
use utoipa::ToSchema;

use crate::base::ids::{ChargeId, PayoutId, RefundId};
use crate::base::money::{Currency, Money};
use crate::base::signature::Refusal;

pub use catalogue::{CatalogueEntry, Code};
pub use database::{is_connection_lost, is_session_lost, violated_constraint};
pub use failure::{AsFailure, Cause, Failure};
pub use problem::{Problem, SUSPECTED_DUPLICATE_OF};

/// One invalid field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// Location of the field: a JSON pointer (RFC 6901) into the body.
    #[schema(example = "/amount")]
    pub pointer: String,
    /// Description of the problem.
    #[schema(example = "must have at most 2 decimals in USD")]
    pub detail: String,
}

/// The reason why a request failed. `Display` is one sentence for the client.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the catalogue above explains each variant")]
pub enum Error {
    /// A failure that doesn't depend on the operation.
    #[error(transparent)]
    Failure(#[from] Failure),
    #[error("Authenticate with `Authorization: Bearer sk_test_…`.")]
    ApiKeyMissing,
    #[error("An operator key can't act for a merchant.")]
    OperatorKeyNotAllowed,
    #[error("Only an operator's key is taken here.")]
    OperatorKeyRequired,
    #[error("Nothing is served under this path.")]
    RouteNotFound,
    #[error("This path takes {allow}.")]
    MethodNotAllowed { allow: String },
    #[error("This isn't a well-formed request of HTTP/1.1: {0}.")]
    RequestMalformed(&'static str),
    #[error("The head of the request didn't arrive within {limit_s} s.")]
    HeadTimeout { limit_s: u64 },
    #[error("The first line of the request must be at most {limit_bytes} bytes.")]
    UriTooLong { limit_bytes: usize },
    #[error("The headers of the request are too large, or too many.")]
    HeadersTooLarge,
    #[error("This service speaks HTTP/1.1.")]
    HttpVersionUnsupported,
    #[error("{} of the request {} not valid; `errors` lists what to correct.",
        if .0.len() == 1 { "One field".to_owned() } else { format!("{} fields", .0.len()) },
        if .0.len() == 1 { "is" } else { "are" })]
    ValidationFailed(Vec<FieldError>),
    #[error("This instance is stopping.")]
    InstanceStopping,
    /// The database, or the way to it, must be put right: a sentence.
    #[error("{0}")]
    DatabaseUnfit(String),
    #[error("There is no such operation.")]
    OperationNotFound,
    #[error("This looks like a duplicate of {charge_id}.")]
    DuplicateSuspected { charge_id: ChargeId },
    #[error("A charge like this one is being made under another idempotency key.")]
    DuplicateInProgress,
    #[error("The card was declined.")]
    CardDeclined { decline_code: String, charge_id: ChargeId },
    #[error("The card has insufficient funds.")]
    InsufficientFunds { charge_id: ChargeId },
    #[error("A charge that is {status} can't be captured{why}.")]
    ChargeNotCapturable { status: &'static str, why: Hindrance },
    #[error("At most {authorized} can be captured.")]
    CaptureExceedsAuthorization { authorized: Money },
    #[error("A charge that is {status} can't be canceled{why}.")]
    ChargeNotCancelable { status: &'static str, why: Hindrance },
    #[error("A charge that is {status} can't be refunded.")]
    ChargeNotRefundable { status: &'static str },
    #[error("Only {left} of this charge is left to refund.")]
    RefundExceedsCaptured { left: Money },
    #[error("The processor refused the refund: {refusal_code}.")]
    RefundRefused { refund_id: RefundId, refusal_code: String },
    #[error("The processor refused the payout: {refusal_code}.")]
    PayoutRefused { payout_id: PayoutId, refusal_code: String },
    #[error("An operator has ended this request, which could not be finished.")]
    RequestAbandoned,
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
    #[error("This is the merchant's last API key.")]
    LastApiKey,
    #[error("There is no such refund.")]
    RefundNotFound,
    #[error("There is no such payout.")]
    PayoutNotFound,
    #[error("There is no such dispute.")]
    DisputeNotFound,
    #[error("There is no such event of the processor.")]
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
}

/// Reason why a capture or cancellation of a charge is refused, besides its status. `Display` ends the sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hindrance {
    /// The status says it all.
    Status,
    /// Another capture or cancellation is under way.
    InFlight,
    /// The processor's final refusal.
    Processor,
}

impl fmt::Display for Hindrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Status => "",
            Self::InFlight => " while another capture or cancellation of it is under way",
            Self::Processor => ": the processor refuses",
        })
    }
}

impl Error {
    /// Makes an error for our own bug, with the technical cause.
    pub fn internal(cause: impl Into<Cause>) -> Self {
        Failure::internal(cause).into()
    }

    /// Makes an error for one field whose value only proves invalid once its object is known.
    pub fn field(pointer: &str, detail: impl Into<String>) -> Self {
        Self::ValidationFailed(vec![FieldError { pointer: pointer.to_owned(), detail: detail.into() }])
    }

    /// The code of this error.
    pub fn code(&self) -> Code {
        match self {
            Self::Failure(failure) => failure.code(),
            Self::ApiKeyMissing => Code::ApiKeyMissing,
            Self::OperatorKeyNotAllowed => Code::OperatorKeyNotAllowed,
            Self::OperatorKeyRequired => Code::OperatorKeyRequired,
            Self::MerchantNotFound => Code::MerchantNotFound,
            Self::ApiKeyNotFound => Code::ApiKeyNotFound,
            Self::LastApiKey => Code::LastApiKey,
            Self::RouteNotFound => Code::RouteNotFound,
            Self::MethodNotAllowed { .. } => Code::MethodNotAllowed,
            Self::RequestMalformed(_) => Code::RequestMalformed,
            Self::HeadTimeout { .. } => Code::HeadTimeout,
            Self::UriTooLong { .. } => Code::UriTooLong,
            Self::HeadersTooLarge => Code::HeadersTooLarge,
            Self::HttpVersionUnsupported => Code::HttpVersionUnsupported,
            Self::ValidationFailed(_) => Code::ValidationFailed,
            Self::InstanceStopping => Code::InstanceStopping,
            Self::DatabaseUnfit(_) => Code::DatabaseUnfit,
            Self::OperationNotFound => Code::OperationNotFound,
            Self::DuplicateSuspected { .. } => Code::DuplicateSuspected,
            Self::DuplicateInProgress => Code::DuplicateInProgress,
            Self::CardDeclined { .. } => Code::CardDeclined,
            Self::InsufficientFunds { .. } => Code::InsufficientFunds,
            Self::ChargeNotCapturable { .. } => Code::ChargeNotCapturable,
            Self::CaptureExceedsAuthorization { .. } => Code::CaptureExceedsAuthorization,
            Self::ChargeNotCancelable { .. } => Code::ChargeNotCancelable,
            Self::ChargeNotRefundable { .. } => Code::ChargeNotRefundable,
            Self::RefundExceedsCaptured { .. } => Code::RefundExceedsCaptured,
            Self::RefundRefused { .. } => Code::RefundRefused,
            Self::PayoutRefused { .. } => Code::PayoutRefused,
            Self::RequestAbandoned => Code::RequestAbandoned,
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

    /// Whether this error settles the request, so that it is stored and replayed.
    pub fn is_final(&self) -> bool {
        self.code().entry().is_final
    }

    /// Code and cause, for the log. Contains names from the client's request, but no values.
    pub fn detailed(&self) -> String {
        match self {
            Self::Failure(failure) => failure.detailed(),
            Self::ValidationFailed(errors) => {
                let errors = errors.iter().map(|error| format!("{} {}", error.pointer, error.detail));
                format!("{}: {}", self.code().as_str(), errors.collect::<Vec<_>>().join("; "))
            }
            _ => self.code().as_str().to_owned(),
        }
    }

    /// Writes the technical cause to the log, at the level that fits.
    pub fn log(&self, request_id: &str) {
        if let Self::Failure(failure) = self {
            failure.log(request_id);
        }
    }

    /// The technical cause, for the log.
    pub fn cause(&self) -> Option<&Cause> {
        self.failure().and_then(Failure::cause)
    }
}

impl AsFailure for Error {
    fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failure(failure) => Some(failure),
            _ => None,
        }
    }
}
