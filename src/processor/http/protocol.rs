//! The processor's answers: the fields that the service reads.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Deserialize;

use crate::processor::{
    CallRefusal, Decline, OperationKind, OperationStatus, Page, ProcessorOperation, RefusalReason,
};

/// An operation that the processor performed or declined.
#[derive(Debug, Deserialize)]
pub(super) struct Operation {
    id: String,
    sequence: i64,
    kind: String,
    idempotency_key: String,
    status: String,
    decline_code: Option<String>,
    refusal: Option<Reason>,
    authorization_id: Option<String>,
    amount: Option<Decimal>,
    currency: Option<String>,
    merchant: String,
    reference: String,
    created_at: DateTime<Utc>,
}

impl From<Operation> for ProcessorOperation {
    fn from(operation: Operation) -> Self {
        let status = match (operation.status.as_str(), operation.refusal) {
            ("pending", _) => OperationStatus::Pending,
            ("succeeded", _) => OperationStatus::Succeeded,
            ("declined", _) => OperationStatus::Declined(
                operation.decline_code.as_deref().map_or_else(Decline::generic, Decline::new),
            ),
            ("refused", Some(refusal)) => OperationStatus::Refused(refusal.into()),
            ("paid", _) => OperationStatus::Paid,
            ("failed", _) => OperationStatus::Failed,
            _ => OperationStatus::Other(operation.status),
        };
        Self {
            id: operation.id,
            sequence: operation.sequence,
            kind: OperationKind::from_word(&operation.kind),
            idempotency_key: operation.idempotency_key,
            status,
            authorization_id: operation.authorization_id,
            amount: operation.amount,
            currency: operation.currency,
            merchant: operation.merchant,
            reference: operation.reference,
            created_at: operation.created_at,
        }
    }
}

/// The reason why the processor refuses something, in snake case.
#[derive(Debug, Deserialize)]
pub(super) struct Reason {
    pub code: String,
    /// State of the authorization, if that's why.
    pub authorization_status: Option<String>,
}

impl From<Reason> for CallRefusal {
    fn from(reason: Reason) -> Self {
        let is_over =
            matches!(reason.authorization_status.as_deref(), Some("voided" | "expired" | "declined"));
        let is_nothing_held = is_over || reason.code == "authorization_not_found";
        let kind = if is_nothing_held { RefusalReason::NothingHeld } else { RefusalReason::Other };
        Self::new(&reason.code, kind)
    }
}

/// The form of the processor's errors.
#[derive(Debug, Deserialize)]
pub(super) struct Problem {
    pub error: Reason,
}

/// A page of the processor's operations.
#[derive(Debug, Deserialize)]
pub(super) struct OperationsPage {
    operations: Vec<Operation>,
    has_more: bool,
}

impl From<OperationsPage> for Page {
    fn from(page: OperationsPage) -> Self {
        Self { operations: page.operations.into_iter().map(Into::into).collect(), has_more: page.has_more }
    }
}
