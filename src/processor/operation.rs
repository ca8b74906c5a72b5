//! What a provider did, in our words.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;

use super::{Authorization, Decision, Decline, ProcessorError};

/// One thing that the provider did, or declined or refused to do.
#[derive(Clone, Debug)]
pub struct ProcessorOperation {
    /// The provider's name for it.
    pub id: String,
    /// Position in its books. Grows whenever an operation is made or changes, so that a reader can go on where it stopped.
    pub sequence: i64,
    /// What was asked for.
    pub kind: OperationKind,
    /// The key under which we asked.
    pub idempotency_key: String,
    /// What came of it.
    pub status: OperationStatus,
    /// The authorization that it made or was about.
    pub authorization_id: Option<String>,
    /// Of what moves or holds money.
    pub amount: Option<Decimal>,
    /// ISO 4217 code.
    pub currency: Option<String>,
    /// The merchant that we named.
    pub merchant: String,
    /// The object that we named.
    pub reference: String,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
}

/// A page of a provider's books.
#[derive(Clone, Debug)]
pub struct Page {
    /// In the order of their sequence.
    pub operations: Vec<ProcessorOperation>,
    /// Whether there are more after the last one.
    pub has_more: bool,
}

/// What a provider can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperationKind {
    /// To hold money.
    Authorize,
    /// To move what is held.
    Capture,
    /// To give up what is held.
    Void,
    /// To return what was moved.
    Refund,
    /// To send money to a bank account.
    Payout,
    /// Something that we never ask for. It's reported as missing here if it's in effect there.
    Other(String),
}

impl OperationKind {
    /// Reads the word for it in our copy of the books.
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

    /// The word for it in our copy of the books.
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

/// What came of an operation, so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperationStatus {
    /// It isn't decided.
    Pending,
    /// It was done.
    Succeeded,
    /// The issuer declined: nothing is held.
    Declined(Decline),
    /// The provider won't do it, for this reason. Nothing has happened.
    Refused(String),
    /// A payout or refund was done and has arrived.
    Paid,
    /// A payout or refund was done and has come back.
    Failed,
    /// Something that we don't know, which counts as no effect.
    Other(String),
}

impl OperationStatus {
    /// The word for it in our copy of the books.
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
    /// Reads it as the outcome of [`authorize`](super::Processor::authorize).
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
        // Without it the money could neither be captured nor given back, so that isn't an outcome to go on with.
        let id = self.authorization_id.ok_or(ProcessorError::AnswerLost)?;
        Ok(Authorization { id, decision })
    }

    /// Reads it as the outcome of any other call. What becomes of it later isn't of interest here.
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

/// The refusal of an operation whose status makes no sense for what was asked.
fn unfit(status: &OperationStatus) -> ProcessorError {
    ProcessorError::Refused { code: format!("status {}", status.as_str()) }
}
