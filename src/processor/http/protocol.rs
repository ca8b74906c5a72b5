//! What the acquirer says, as far as we read it.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Deserialize;

use super::{Authorization, Decision, Decline, ProcessorError};

/// One thing that the acquirer did or declined to do.
#[derive(Clone, Debug, Deserialize)]
pub struct AcquirerOperation {
    /// Its name for it.
    pub id: String,
    /// Grows whenever an operation is made or changes, so that a reader can go on where it stopped.
    pub sequence: i64,
    /// `authorize`, `capture`, `void`, `refund` or `payout`.
    pub kind: String,
    /// The key under which we asked.
    pub idempotency_key: String,
    /// `succeeded`, `declined`, `pending`, `refused`; of payouts and refunds later also `paid` and `failed`.
    pub status: String,
    /// Why an authorization was declined.
    pub decline_code: Option<String>,
    /// Why an operation was refused.
    pub refusal: Option<Refusal>,
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

/// Why the acquirer won't do something.
#[derive(Clone, Debug, Deserialize)]
pub struct Refusal {
    /// Its reason, in snake case.
    pub code: String,
}

/// The form of its errors.
#[derive(Debug, Deserialize)]
pub(super) struct Problem {
    pub error: Refusal,
}

/// A page of its operations.
#[derive(Debug, Deserialize)]
pub(super) struct Page {
    pub operations: Vec<AcquirerOperation>,
    pub has_more: bool,
}

impl AcquirerOperation {
    /// What it means for who asked for money.
    pub(super) fn into_authorization(self) -> Result<Authorization, ProcessorError> {
        let decision = match (self.status.as_str(), self.decline_code.as_deref()) {
            ("succeeded", _) => Decision::Approved,
            ("pending", _) => Decision::Pending,
            ("declined", Some("insufficient_funds")) => Decision::Declined(Decline::InsufficientFunds),
            ("declined", _) => Decision::Declined(Decline::Generic),
            _ => return Err(self.into_refusal()),
        };
        // Without it the money could neither be captured nor given back, so that isn't an outcome to go on with.
        let id = self.authorization_id.ok_or(ProcessorError::AnswerLost)?;
        Ok(Authorization { id, decision })
    }

    /// What it means for who asked for anything else. What becomes of it later isn't of interest here.
    pub(super) fn into_done(self) -> Result<(), ProcessorError> {
        match self.status.as_str() {
            "succeeded" | "pending" | "paid" | "failed" => Ok(()),
            _ => Err(self.into_refusal()),
        }
    }

    fn into_refusal(self) -> ProcessorError {
        let code = self.refusal.map_or_else(|| format!("status {}", self.status), |refusal| refusal.code);
        ProcessorError::Refused { code }
    }
}
