//! What merchants' processors ask for, once per idempotency key.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Nullable, Timestamptz};
use rust_decimal::Decimal;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::error::Error;
use crate::money::{Currency, Money};
use crate::processor::PaymentMethod;
use crate::time::Timestamp;

use super::error::Refusal;
use super::outbox::{self, Delivery, EventType};
use super::schema::{
    AuthorizationStatus, DeclineCode, Kind, Status, authorizations, failed_once, operations,
};

/// A payout to this account fails.
const FAILING_DESTINATION: &str = "ba_fail";

/// Id of the current transaction; see [`list`].
const CURRENT_TRANSACTION: &str = "pg_current_xact_id()::text::bigint";

/// An operation to be performed.
#[derive(Clone, Debug)]
pub(super) struct Order {
    pub(super) key: String,
    pub(super) what: What,
    pub(super) merchant: String,
    pub(super) reference: String,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub(super) enum What {
    Authorize { money: Money, payment_method: PaymentMethod },
    Capture { authorization_id: String, money: Money },
    Void { authorization_id: String },
    Refund { authorization_id: String, money: Money },
    Payout { money: Money, destination: String },
}

impl What {
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

    fn money(&self) -> Option<Money> {
        match self {
            Self::Authorize { money, .. }
            | Self::Capture { money, .. }
            | Self::Refund { money, .. }
            | Self::Payout { money, .. } => Some(*money),
            Self::Void { .. } => None,
        }
    }

    fn target(&self) -> &str {
        match self {
            Self::Authorize { payment_method, .. } => payment_method.as_str(),
            Self::Capture { authorization_id, .. }
            | Self::Void { authorization_id }
            | Self::Refund { authorization_id, .. } => authorization_id,
            Self::Payout { destination, .. } => destination,
        }
    }
}

/// An operation as it's stored.
#[derive(Clone, Debug, Queryable, Selectable)]
#[diesel(table_name = operations)]
pub(super) struct Operation {
    id: String,
    pub(super) sequence: i64,
    kind: Kind,
    idempotency_key: String,
    target: String,
    pub(super) status: Status,
    decline_code: Option<DeclineCode>,
    refusal: Option<Value>,
    authorization_id: Option<String>,
    amount: Option<Decimal>,
    currency: Option<String>,
    merchant: String,
    reference: String,
    created_at: DateTime<Utc>,
}

impl Operation {
    /// As it's shown.
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

    /// Why it was refused, if it was.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.refusal.clone().and_then(|refusal| serde_json::from_value(refusal).ok())
    }

    /// Whether it was made with `payment_method`.
    pub(super) fn is_authorization_with(&self, payment_method: PaymentMethod) -> bool {
        self.kind == Kind::Authorize && self.target == payment_method.as_str()
    }

    fn amount_text(&self) -> Option<String> {
        let currency: Currency = self.currency.as_ref()?.parse().ok()?;
        Some(currency.format(self.amount?))
    }

    fn is_of(&self, what: &What) -> bool {
        self.kind == what.kind()
            && self.target == what.target()
            && self.amount == what.money().map(Money::amount)
            && self.currency.as_deref() == what.money().map(|money| money.currency().code())
    }
}

#[derive(Insertable)]
#[diesel(table_name = operations)]
struct NewOperation<'a> {
    id: String,
    kind: Kind,
    idempotency_key: &'a str,
    target: &'a str,
    status: Status,
    decline_code: Option<DeclineCode>,
    refusal: Option<Value>,
    authorization_id: Option<&'a str>,
    amount: Option<Decimal>,
    currency: Option<&'static str>,
    merchant: &'a str,
    reference: &'a str,
}

/// What came of an [`Order`].
pub(super) enum Performed {
    /// It has taken effect, or was refused, now.
    New(Operation),
    /// That had happened before.
    Replayed(Operation),
    /// Its key belongs to another operation.
    KeyReused,
}

/// How an operation ends, before it's stored.
struct Outcome {
    status: Status,
    decline_code: Option<DeclineCode>,
    refusal: Option<Refusal>,
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

/// Performs `order`, unless something has been performed under its key. What is decided later is so after
/// `decide_after`. Locks the authorization, then the key.
pub(super) fn perform(
    conn: &mut PgConnection,
    order: &Order,
    decide_after: Duration,
) -> Result<Performed, Error> {
    conn.transaction(|conn| {
        if let Some(stored) = find(conn, &order.key)? {
            return Ok(replay(stored, order));
        }
        let outcome = judge(conn, &order.what)?;
        let new_authorization = format!("auth_{}", Uuid::now_v7().as_simple());
        match insert(conn, order, &outcome, &new_authorization, decide_after)? {
            Some(operation) => {
                take_effect(conn, &order.what, outcome.status, &new_authorization)?;
                Ok(Performed::New(operation))
            }
            // Another transaction has been faster; the insert has waited for its end.
            None => {
                let stored =
                    find(conn, &order.key)?.ok_or_else(|| Error::internal("an operation is gone"))?;
                Ok(replay(stored, order))
            }
        }
    })
}

fn replay(stored: Operation, order: &Order) -> Performed {
    if stored.is_of(&order.what) { Performed::Replayed(stored) } else { Performed::KeyReused }
}

/// How `what` ends. Locks its authorization, so that it stays true.
fn judge(conn: &mut PgConnection, what: &What) -> Result<Outcome, Error> {
    Ok(match what {
        What::Authorize { payment_method, .. } => match payment_method {
            PaymentMethod::Declined => DeclineCode::Generic.into(),
            PaymentMethod::InsufficientFunds => DeclineCode::InsufficientFunds.into(),
            PaymentMethod::Async => Status::Pending.into(),
            _ => Status::Succeeded.into(),
        },
        What::Payout { .. } => Status::Pending.into(),
        What::Capture { authorization_id, .. }
        | What::Void { authorization_id }
        | What::Refund { authorization_id, .. } => {
            let authorization = authorizations::table
                .find(authorization_id)
                .select(Authorization::as_select())
                .for_update()
                .first(conn)
                .optional()?;
            match check(authorization, what) {
                Ok(()) => Status::Succeeded.into(),
                Err(refusal) => refusal.into(),
            }
        }
    })
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = authorizations)]
struct Authorization {
    status: AuthorizationStatus,
    amount: Decimal,
    currency: String,
    captured: Decimal,
    refunded: Decimal,
}

/// Errors in the order checked: `authorization_not_found`, `currency_mismatch`, `authorization_not_open` for captures
/// and voids, `amount_exceeds_authorization`, `amount_exceeds_captured`.
fn check(authorization: Option<Authorization>, what: &What) -> Result<(), Refusal> {
    let Some(authorization) = authorization else {
        return Err(Refusal::new("authorization_not_found", "There is no such authorization."));
    };
    if what.money().is_some_and(|money| money.currency().code() != authorization.currency) {
        let message = format!("The authorization is in {}.", authorization.currency);
        return Err(Refusal::new("currency_mismatch", message));
    }
    let must_be_open = matches!(what.kind(), Kind::Capture | Kind::Void);
    if must_be_open && authorization.status != AuthorizationStatus::Open {
        let message = format!("The authorization is {}.", authorization.status.as_str());
        return Err(Refusal::new("authorization_not_open", message));
    }
    match what {
        What::Capture { money, .. } if money.amount() > authorization.amount => {
            Err(Refusal::new("amount_exceeds_authorization", "More than was authorized can't be captured."))
        }
        What::Refund { money, .. } if money.amount() > authorization.captured - authorization.refunded => {
            Err(Refusal::new(
                "amount_exceeds_captured",
                "More than is left of the capture can't be refunded.",
            ))
        }
        _ => Ok(()),
    }
}

/// Stores the operation under its key; `None` if the key is taken.
fn insert(
    conn: &mut PgConnection,
    order: &Order,
    outcome: &Outcome,
    new_authorization: &str,
    decide_after: Duration,
) -> QueryResult<Option<Operation>> {
    let what = &order.what;
    let authorization_id = match what {
        What::Authorize { .. } => Some(new_authorization),
        What::Payout { .. } => None,
        _ => Some(what.target()),
    };
    let new = NewOperation {
        id: format!("op_{}", Uuid::now_v7().as_simple()),
        kind: what.kind(),
        idempotency_key: &order.key,
        target: what.target(),
        status: outcome.status,
        decline_code: outcome.decline_code,
        refusal: outcome.refusal.as_ref().map(|refusal| json!(refusal)),
        authorization_id,
        amount: what.money().map(at_scale),
        currency: what.money().map(|money| money.currency().code()),
        merchant: &order.merchant,
        reference: &order.reference,
    };
    let decide_after_ms = i64::try_from(decide_after.as_millis()).unwrap_or(i64::MAX);
    let decide_at = sql::<Nullable<Timestamptz>>("CASE WHEN ")
        .bind::<Bool, _>(outcome.status == Status::Pending)
        .sql(" THEN clock_timestamp() + interval '1 ms' * ")
        .bind::<BigInt, _>(decide_after_ms)
        .sql(" END");
    diesel::insert_into(operations::table)
        .values((&new, operations::decide_at.eq(decide_at)))
        .on_conflict(operations::idempotency_key)
        .do_nothing()
        .returning(Operation::as_returning())
        .get_result(conn)
        .optional()
}

/// The amount with all its decimals, which the database keeps.
fn at_scale(money: Money) -> Decimal {
    let mut amount = money.amount();
    amount.rescale(money.currency().scale());
    amount
}

/// What the operation does to its authorization.
fn take_effect(
    conn: &mut PgConnection,
    what: &What,
    status: Status,
    new_authorization: &str,
) -> QueryResult<()> {
    if let What::Authorize { money, .. } = what {
        let status = match status {
            Status::Succeeded => AuthorizationStatus::Open,
            Status::Pending => AuthorizationStatus::Pending,
            _ => AuthorizationStatus::Declined,
        };
        diesel::insert_into(authorizations::table)
            .values((
                authorizations::id.eq(new_authorization),
                authorizations::status.eq(status),
                authorizations::amount.eq(at_scale(*money)),
                authorizations::currency.eq(money.currency().code()),
            ))
            .execute(conn)?;
        return Ok(());
    }
    if status != Status::Succeeded {
        return Ok(());
    }
    let authorization = authorizations::table.find(what.target());
    match what {
        What::Authorize { .. } | What::Payout { .. } => return Ok(()),
        What::Capture { money, .. } => diesel::update(authorization)
            .set((
                authorizations::status.eq(AuthorizationStatus::Captured),
                authorizations::captured.eq(money.amount()),
            ))
            .execute(conn)?,
        What::Void { .. } => diesel::update(authorization)
            .set(authorizations::status.eq(AuthorizationStatus::Voided))
            .execute(conn)?,
        What::Refund { money, .. } => diesel::update(authorization)
            .set(authorizations::refunded.eq(authorizations::refunded + money.amount()))
            .execute(conn)?,
    };
    Ok(())
}

/// The operation under `key`.
pub(super) fn find(conn: &mut PgConnection, key: &str) -> QueryResult<Option<Operation>> {
    operations::table
        .filter(operations::idempotency_key.eq(key))
        .select(Operation::as_select())
        .first(conn)
        .optional()
}

/// Notes that the first attempt under `key` fails. Whether it's the first.
pub(super) fn note_failure(conn: &mut PgConnection, key: &str) -> QueryResult<bool> {
    let noted = diesel::insert_into(failed_once::table)
        .values(failed_once::idempotency_key.eq(key))
        .on_conflict_do_nothing()
        .execute(conn)?;
    Ok(noted == 1)
}

/// Operations after `after`, up to `limit`, in the order of their sequence numbers; and whether there are more.
///
/// A reader goes on after the last number that it has seen, so a number that was passed over must never appear later.
/// Numbers drawn from a sequence do: they are drawn in one order and committed in another. Hiding what is younger
/// than the oldest running transaction isn't enough for them either, since that may have drawn a smaller number than
/// an older one that has committed.
///
/// So the number *is* the id of the writing transaction. Whatever is below the snapshot's xmin has ended: none of it
/// will ever become visible, or visible again, and whoever commits from now on has a greater number. The price: a
/// transaction that stays open, in any database of the server, holds up what is shown.
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
    let has_more = operations.len() as i64 > limit;
    if has_more {
        operations.pop();
    }
    Ok((operations, has_more))
}

/// Decides the pending operation that has been due for longest, and puts the news into the outbox. Whether there was
/// one. Takes one per call, since each must have its own transaction (see [`list`]).
pub(super) fn decide_next(
    conn: &mut PgConnection,
    approves: bool,
    delivery: Delivery,
) -> Result<bool, Error> {
    conn.transaction(|conn| {
        // The first statement: so this transaction's id, the new sequence number, is greater than the old one.
        let due = operations::table
            .filter(operations::decide_at.le(sql::<Nullable<Timestamptz>>("statement_timestamp()")))
            .order(operations::decide_at)
            .select(Operation::as_select())
            .for_update()
            .skip_locked()
            .first(conn)
            .optional()?;
        let Some(operation) = due else { return Ok(false) };
        let (outcome, event): (Outcome, _) = match operation.kind {
            Kind::Payout if operation.target == FAILING_DESTINATION => {
                (Status::Failed.into(), EventType::PayoutFailed)
            }
            Kind::Payout => (Status::Paid.into(), EventType::PayoutPaid),
            _ if approves => (Status::Succeeded.into(), EventType::ChargeSucceeded),
            _ => (DeclineCode::Generic.into(), EventType::ChargeFailed),
        };
        let operation = diesel::update(operations::table.find(&operation.id))
            .set((
                operations::status.eq(outcome.status),
                operations::decline_code.eq(outcome.decline_code),
                operations::decide_at.eq(None::<DateTime<Utc>>),
                operations::sequence.eq(sql::<BigInt>(CURRENT_TRANSACTION)),
            ))
            .returning(Operation::as_returning())
            .get_result(conn)?;
        if let (Kind::Authorize, Some(id)) = (operation.kind, &operation.authorization_id) {
            let status = if approves { AuthorizationStatus::Open } else { AuthorizationStatus::Declined };
            diesel::update(authorizations::table.find(id))
                .set(authorizations::status.eq(status))
                .execute(conn)?;
        }
        let data = json!({
            "operation": operation.to_json(),
            "merchant": operation.merchant,
            "reference": operation.reference,
            "amount": operation.amount_text(),
            "currency": operation.currency,
        });
        outbox::add(conn, event, &data, delivery)?;
        Ok(true)
    })
}
