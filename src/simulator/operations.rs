//! Operations as requested, stored and shown.

use chrono::{DateTime, Utc};
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use rust_decimal::Decimal;
use serde_json::{Value, json};

use crate::base::money::{Currency, Money};
use crate::base::time::Timestamp;

use super::error::Refusal;
use super::payment_method::PaymentMethod;
use super::schema::{DeclineCode, Kind, Status, operations};

/// An operation to perform.
#[derive(Clone, Debug)]
pub(super) struct Order {
    pub(super) key: String,
    pub(super) instruction: Instruction,
    pub(super) merchant: String,
    pub(super) reference: String,
}

/// The kind of an operation, with its arguments.
#[derive(Clone, Debug)]
pub(super) enum Instruction {
    /// If the decision takes time, the whole amount is then captured as if requested under `capture_key`.
    Authorize {
        money: Money,
        payment_method: PaymentMethod,
        capture_key: Option<String>,
    },
    Capture {
        authorization_id: String,
        money: Money,
    },
    Void {
        authorization_id: String,
    },
    Refund {
        authorization_id: String,
        money: Money,
    },
    Payout {
        money: Money,
        destination: String,
    },
}

impl Instruction {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Authorize { .. } => Kind::Authorize,
            Self::Capture { .. } => Kind::Capture,
            Self::Void { .. } => Kind::Void,
            Self::Refund { .. } => Kind::Refund,
            Self::Payout { .. } => Kind::Payout,
        }
    }

    pub(super) fn payment_method(&self) -> Option<PaymentMethod> {
        match self {
            Self::Authorize { payment_method, .. } => Some(*payment_method),
            _ => None,
        }
    }

    pub(super) fn money(&self) -> Option<Money> {
        match self {
            Self::Authorize { money, .. }
            | Self::Capture { money, .. }
            | Self::Refund { money, .. }
            | Self::Payout { money, .. } => Some(*money),
            Self::Void { .. } => None,
        }
    }

    pub(super) fn target(&self) -> &str {
        match self {
            Self::Authorize { payment_method, .. } => payment_method.as_str(),
            Self::Capture { authorization_id, .. }
            | Self::Void { authorization_id }
            | Self::Refund { authorization_id, .. } => authorization_id,
            Self::Payout { destination, .. } => destination,
        }
    }
}

/// An operation as stored.
#[derive(Clone, Debug, Queryable, Selectable)]
#[diesel(table_name = operations)]
pub(super) struct Operation {
    pub(super) id: String,
    pub(super) sequence: i64,
    pub(super) kind: Kind,
    pub(super) idempotency_key: String,
    pub(super) target: String,
    pub(super) status: Status,
    pub(super) decline_code: Option<DeclineCode>,
    pub(super) refusal: Option<Value>,
    pub(super) authorization_id: Option<String>,
    pub(super) amount: Option<Decimal>,
    pub(super) currency: Option<String>,
    pub(super) merchant: String,
    pub(super) reference: String,
    pub(super) created_at: DateTime<Utc>,
}

impl Operation {
    /// The operation as the API shows it.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "id": self.id,
            "sequence": self.sequence,
            "kind": self.kind,
            "idempotency_key": self.idempotency_key,
            "status": self.status,
            "decline_code": self.decline_code,
            "refusal": self.refusal,
            "authorization_id": self.authorization_id,
            "amount": self.amount_text(),
            "currency": self.currency,
            "merchant": self.merchant,
            "reference": self.reference,
            "created_at": Timestamp(self.created_at),
        })
    }

    /// The refusal, if the operation was refused.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.refusal.clone().and_then(|refusal| serde_json::from_value(refusal).ok())
    }

    /// True if the operation is an authorization with `payment_method`.
    pub(super) fn is_authorization_with(&self, payment_method: PaymentMethod) -> bool {
        self.kind == Kind::Authorize && self.target == payment_method.as_str()
    }

    pub(super) fn money(&self) -> Option<Money> {
        let currency = Currency::stored(self.currency.as_ref()?).ok()?;
        Some(Money::from_stored(self.amount?, currency))
    }

    pub(super) fn amount_text(&self) -> Option<String> {
        let currency = Currency::stored(self.currency.as_ref()?).ok()?;
        Some(currency.format(self.amount?))
    }

    pub(super) fn is_of(&self, instruction: &Instruction) -> bool {
        self.kind == instruction.kind()
            && self.target == instruction.target()
            && self.amount == instruction.money().map(Money::amount)
            && self.currency == instruction.money().map(|money| money.currency().to_string())
    }
}

/// The end of an operation, before it's stored.
pub(super) struct Outcome {
    pub(super) status: Status,
    pub(super) decline_code: Option<DeclineCode>,
    pub(super) refusal: Option<Refusal>,
}

impl From<Status> for Outcome {
    fn from(status: Status) -> Self {
        Self { status, decline_code: None, refusal: None }
    }
}

impl From<DeclineCode> for Outcome {
    fn from(code: DeclineCode) -> Self {
        Self { status: Status::Declined, decline_code: Some(code), refusal: None }
    }
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        Self { status: Status::Refused, decline_code: None, refusal: Some(refusal) }
    }
}

/// Finds the operation under `key`.
pub(super) fn find(conn: &mut PgConnection, key: &str) -> QueryResult<Option<Operation>> {
    operations::table
        .filter(operations::idempotency_key.eq(key))
        .select(Operation::as_select())
        .first(conn)
        .optional()
}

/// Lists operations after `after`, up to `limit`, in the order of their sequence numbers. Also returns
/// whether there are more.
///
/// A reader goes on after the last number that it has seen, so a skipped number must never appear later.
/// Numbers from a sequence do: they are drawn in one order and committed in another. Hiding operations
/// younger than the oldest running transaction isn't enough for them either: that transaction may have drawn
/// a smaller number than an older one that has committed.
///
/// So the number *is* the id of the writing transaction. All transactions below the snapshot's xmin have
/// ended: none of them will become visible, or visible again, and each later commit has a greater number. The
/// price: a transaction that stays open, in any database of the server, holds the list up.
pub(super) fn list(conn: &mut PgConnection, after: i64, limit: i64) -> QueryResult<(Vec<Operation>, bool)> {
    let mut operations = operations::table
        .filter(operations::sequence.gt(after))
        .filter(
            operations::sequence.lt(sql::<BigInt>("pg_snapshot_xmin(pg_current_snapshot())::text::bigint")),
        )
        .order(operations::sequence)
        .limit(limit + 1)
        .select(Operation::as_select())
        .load(conn)?;
    let has_more = i64::try_from(operations.len()).is_ok_and(|count| count > limit);
    if has_more {
        operations.pop();
    }
    Ok((operations, has_more))
}
