//! Operations of a provider, in our terms.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;

use crate::base::money::Money;

use super::{Authorization, CallRefusal, Decision, Decline, ProcessorCall, ProcessorError, RefusalReason};

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
    /// The provider won't do it, for this reason. Nothing has happened.
    Refused(CallRefusal),
    /// A payout or refund was done and has arrived.
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

/// The content of a call, which its answer must echo.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    kind: OperationKind,
    amount: Option<Money>,
    authorization_id: Option<&'a str>,
}

impl<'a> Asked<'a> {
    /// A call of this kind.
    pub fn to(kind: OperationKind) -> Self {
        Self { kind, amount: None, authorization_id: None }
    }

    /// The same with an amount.
    pub fn of(self, amount: Money) -> Self {
        Self { amount: Some(amount), ..self }
    }

    /// The same, on an authorization.
    pub fn on(self, authorization_id: &'a str) -> Self {
        Self { authorization_id: Some(authorization_id), ..self }
    }
}

impl ProcessorOperation {
    /// Checks that the operation is an answer to `call`, by what it echoes. An authorization may be of less than was
    /// asked for. The reference may be another one if the key is the same: after a claim was lost, such as by a restore
    /// from a backup, the request is executed with the same key and a new object.
    ///
    /// Errors: [`ProcessorError::Mismatch`], with the first member that differs of `idempotency_key`, `kind`, `merchant`,
    /// `authorization_id`, `currency` and `amount`.
    pub fn answers(&self, call: &ProcessorCall, asked: &Asked<'_>) -> Result<(), ProcessorError> {
        let is_of_authorization =
            asked.authorization_id.is_none_or(|id| self.authorization_id.as_deref() == Some(id));
        let (is_of_currency, is_of_amount) = match asked.amount {
            None => (true, true),
            Some(money) => (
                self.currency.as_deref() == Some(money.currency().code()),
                self.amount.is_some_and(|amount| {
                    amount == money.amount()
                        || asked.kind == OperationKind::Authorize
                            && amount > Decimal::ZERO
                            && amount < money.amount()
                }),
            ),
        };
        let members = [
            ("idempotency_key", self.idempotency_key == call.key),
            ("kind", self.kind == asked.kind),
            ("merchant", self.merchant == call.merchant.to_string()),
            ("authorization_id", is_of_authorization),
            ("currency", is_of_currency),
            ("amount", is_of_amount),
        ];
        match members.into_iter().find(|(_, is_same)| !is_same) {
            None => Ok(()),
            Some((member, _)) => Err(ProcessorError::Mismatch { member }),
        }
    }

    /// Reads the operation as the outcome of [`authorize`](super::Processor::authorize), where `amount` was asked for.
    pub fn into_authorization(self, amount: Money) -> Result<Authorization, ProcessorError> {
        let is_of_less = self.amount.is_some_and(|approved| approved < amount.amount());
        let decision = match self.status {
            OperationStatus::Succeeded if is_of_less => Decision::PartiallyApproved,
            OperationStatus::Succeeded => Decision::Approved,
            OperationStatus::Pending => Decision::Pending,
            OperationStatus::Declined(decline) => Decision::Declined(decline),
            OperationStatus::Refused(refusal) => return Err(ProcessorError::Refused(refusal)),
            status @ (OperationStatus::Paid | OperationStatus::Failed | OperationStatus::Other(_)) => {
                return Err(unfit(&status));
            }
        };
        let id = match (&decision, self.authorization_id) {
            (_, Some(id)) => id,
            // There is no authorization, so the key of the call stands for it.
            (Decision::Declined(_), None) => self.idempotency_key,
            // The money could be neither captured nor released, so there is no usable outcome.
            _ => return Err(ProcessorError::AnswerLost),
        };
        Ok(Authorization { id, decision })
    }

    /// Reads the operation as the outcome of any other call. What becomes of it later isn't of interest here.
    pub fn into_done(self) -> Result<(), ProcessorError> {
        // Refunds and payouts go on after they were made: they arrive, or come back.
        let goes_on = matches!(self.kind, OperationKind::Refund | OperationKind::Payout);
        match self.status {
            OperationStatus::Succeeded => Ok(()),
            OperationStatus::Pending | OperationStatus::Paid | OperationStatus::Failed if goes_on => Ok(()),
            OperationStatus::Refused(refusal) => Err(ProcessorError::Refused(refusal)),
            OperationStatus::Declined(decline) => {
                Err(ProcessorError::Refused(CallRefusal::new(decline.code(), RefusalReason::Other)))
            }
            status => Err(unfit(&status)),
        }
    }
}

/// The error for an operation whose status makes no sense for the call. Whether money has moved is for people to find out.
fn unfit(status: &OperationStatus) -> ProcessorError {
    ProcessorError::Rejected { code: format!("status {}", status.as_str()) }
}
