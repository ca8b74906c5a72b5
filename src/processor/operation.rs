//! Operations of a provider, in our terms.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;

use super::{Authorization, Decision, Decline, ProcessorError};

/// An operation that the provider performed, declined or refused.
#[derive(Clone, Debug)]
pub struct ProcessorOperation {
    /// The provider's id of the operation.
    pub id: String,
    /// Position in the provider's books. Grows whenever an operation is made or changes, so that a reader can
    /// go on where it stopped.
    pub sequence: i64,
    /// Kind of the operation.
    pub kind: OperationKind,
    /// Our idempotency key of the call.
    pub idempotency_key: String,
    /// Outcome of the operation.
    pub status: OperationStatus,
    /// Authorization that the operation made or used.
    pub authorization_id: Option<String>,
    /// Amount, if the operation moves or holds money.
    pub amount: Option<Decimal>,
    /// ISO 4217 code.
    pub currency: Option<String>,
    /// Merchant named in our call.
    pub merchant: String,
    /// Object named in our call.
    pub reference: String,
    /// Time of the call.
    pub created_at: DateTime<Utc>,
}

/// A page of a provider's books.
#[derive(Clone, Debug)]
pub struct Page {
    /// Operations in the order of their sequence.
    pub operations: Vec<ProcessorOperation>,
    /// True if there are more operations after the last one.
    pub has_more: bool,
}

/// Kinds of operations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperationKind {
    /// Holds money.
    Authorize,
    /// Moves held money.
    Capture,
    /// Releases held money.
    Void,
    /// Returns moved money.
    Refund,
    /// Sends money to a bank account.
    Payout,
    /// A kind that we never request. If it's in effect at the provider, it's reported as missing here.
    Other(String),
}

impl OperationKind {
    /// Reads the kind's word in our copy of the books.
    pub fn from_word(word: &str) -> Self {
        match word {
            "authorize" => Self::Authorize,
            "capture" => Self::Capture,
            "void" => Self::Void,
            "refund" => Self::Refund,
            "payout" => Self::Payout,
            other => Self::Other(other.to_owned()),
        }
    }

    /// Returns the kind's word in our copy of the books.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Authorize => "authorize",
            Self::Capture => "capture",
            Self::Void => "void",
            Self::Refund => "refund",
            Self::Payout => "payout",
            Self::Other(word) => word,
        }
    }
}

/// Outcome of an operation so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperationStatus {
    /// The operation isn't decided yet.
    Pending,
    /// The operation took effect.
    Succeeded,
    /// The issuer declined. No money is held.
    Declined(Decline),
    /// The provider refused, for this reason. Nothing has happened.
    Refused(String),
    /// A payout or refund took effect and has arrived.
    Paid,
    /// A payout or refund took effect and has come back.
    Failed,
    /// An unknown status, which counts as no effect.
    Other(String),
}

impl OperationStatus {
    /// Returns the status's word in our copy of the books.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Pending => "pending",
            Self::Succeeded => "succeeded",
            Self::Declined(_) => "declined",
            Self::Refused(_) => "refused",
            Self::Paid => "paid",
            Self::Failed => "failed",
            Self::Other(word) => word,
        }
    }
}

impl ProcessorOperation {
    /// Converts the operation to the outcome of [`authorize`](super::Processor::authorize).
    pub fn into_authorization(self) -> Result<Authorization, ProcessorError> {
        let decision = match self.status {
            OperationStatus::Succeeded => Decision::Approved,
            OperationStatus::Pending => Decision::Pending,
            OperationStatus::Declined(decline) => Decision::Declined(decline),
            OperationStatus::Refused(code) => return Err(ProcessorError::Refused { code }),
            status @ (OperationStatus::Paid | OperationStatus::Failed | OperationStatus::Other(_)) => {
                return Err(unfit(&status));
            }
        };
        // Without an id, the money could be neither captured nor released, so there is no usable outcome.
        let id = self.authorization_id.ok_or(ProcessorError::AnswerLost)?;
        Ok(Authorization { id, decision })
    }

    /// Converts the operation to the outcome of any other call. Later changes of a payout or refund don't
    /// matter here.
    pub fn into_done(self) -> Result<(), ProcessorError> {
        match self.status {
            OperationStatus::Succeeded
            | OperationStatus::Pending
            | OperationStatus::Paid
            | OperationStatus::Failed => Ok(()),
            OperationStatus::Refused(code) => Err(ProcessorError::Refused { code }),
            status @ (OperationStatus::Declined(_) | OperationStatus::Other(_)) => Err(unfit(&status)),
        }
    }
}

/// The refusal of an operation whose status doesn't fit its kind.
fn unfit(status: &OperationStatus) -> ProcessorError {
    ProcessorError::Refused { code: format!("status {}", status.as_str()) }
}
