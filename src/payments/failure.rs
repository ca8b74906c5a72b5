//! Reasons for the failure of a refund or payout.

use serde::Serialize;
use utoipa::ToSchema;

use crate::error::Code;

/// Code of a refund that the processor refused.
pub(crate) const REFUND_REFUSED: &str = Code::RefundRefused.as_str();
/// Code of a refund that came back.
pub(crate) const REFUND_RETURNED: &str = "refund_returned";
/// Code of a payout that the processor refused.
pub(crate) const PAYOUT_REFUSED: &str = Code::PayoutRefused.as_str();
/// Code of a payout that came back.
pub(crate) const PAYOUT_RETURNED: &str = "payout_returned";
/// Code of an object whose request an operator has ended.
pub(crate) const ABANDONED: &str = Code::RequestAbandoned.as_str();
/// All codes, in the database and in the API.
pub(crate) const CODES: [&str; 5] =
    [REFUND_REFUSED, REFUND_RETURNED, PAYOUT_REFUSED, PAYOUT_RETURNED, ABANDONED];

/// Reason why a refund or payout failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = ObjectFailure)]
pub struct Failure {
    /// `refund_refused` or `payout_refused`: the processor refused it, so no money has moved. `refund_returned` or
    /// `payout_returned`: the money came back. `request_abandoned`: an operator ended the request.
    #[schema(example = "payout_refused")]
    pub(crate) code: String,
    /// The reason as text for people.
    #[schema(example = "The processor refused the payout: request_invalid.")]
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into() }
    }

    /// Reads the failure from its columns.
    pub(crate) fn from_columns(code: Option<String>, message: Option<String>) -> Option<Self> {
        let (code, message) = code.zip(message)?;
        Some(Self { code, message })
    }
}
