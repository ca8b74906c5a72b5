//! Performs operations, once per idempotency key.

use std::time::Duration;

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Nullable, Timestamptz};
use rust_decimal::Decimal;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::base::money::{Currency, Money};
use crate::error::Failure;

use super::error::Refusal;
use super::operations::{Instruction, Operation, Order, Outcome, find};
use super::payment_method::PaymentMethod;
use super::schema::{
    AuthorizationStatus, DeclineCode, Kind, Status, authorizations, failed_once, operations,
};

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
    currency: Option<&'a str>,
    merchant: &'a str,
    reference: &'a str,
}

/// Result of an [`Order`].
pub(super) enum PerformResult {
    /// The order took effect, or was refused, now.
    New(Operation),
    /// The order had been performed before.
    Replayed(Operation),
    /// The key belongs to another operation.
    KeyReused,
}

/// Performs `order`, unless an operation was performed under its key. A later decision follows after
/// `decide_after`. Locks the authorization, then the key.
pub(super) fn perform(
    conn: &mut PgConnection,
    order: &Order,
    decide_after: Duration,
) -> Result<PerformResult, Failure> {
    conn.transaction(|conn| {
        if let Some(stored) = find(conn, &order.key)? {
            return Ok(replay(stored, order));
        }
        let outcome = judge(conn, &order.instruction)?;
        let new_authorization = format!("auth_{}", Uuid::now_v7().as_simple());
        match insert(conn, order, &outcome, &new_authorization, decide_after)? {
            Some(operation) => {
                take_effect(conn, &order.instruction, outcome.status, &new_authorization)?;
                Ok(PerformResult::New(operation))
            }
            // Another transaction was faster; the insert has waited for its end.
            None => {
                let stored =
                    find(conn, &order.key)?.ok_or_else(|| Failure::internal("an operation is gone"))?;
                Ok(replay(stored, order))
            }
        }
    })
}

fn replay(stored: Operation, order: &Order) -> PerformResult {
    if stored.is_of(&order.instruction) { PerformResult::Replayed(stored) } else { PerformResult::KeyReused }
}

/// Decides the end of `instruction`. Locks its authorization, so that the decision stays true.
fn judge(conn: &mut PgConnection, instruction: &Instruction) -> Result<Outcome, Failure> {
    Ok(match instruction {
        Instruction::Authorize { payment_method, .. } => match payment_method {
            PaymentMethod::Declined => DeclineCode::Generic.into(),
            PaymentMethod::InsufficientFunds => DeclineCode::InsufficientFunds.into(),
            PaymentMethod::Async => Status::Pending.into(),
            _ => Status::Succeeded.into(),
        },
        Instruction::Payout { .. } => Status::Pending.into(),
        Instruction::Capture { authorization_id, .. }
        | Instruction::Void { authorization_id }
        | Instruction::Refund { authorization_id, .. } => {
            let authorization = authorizations::table
                .find(authorization_id)
                .select(Authorization::as_select())
                .for_update()
                .first(conn)
                .optional()?;
            match check(authorization, instruction) {
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
fn check(authorization: Option<Authorization>, instruction: &Instruction) -> Result<(), Refusal> {
    let Some(authorization) = authorization else {
        return Err(Refusal::new("authorization_not_found", "There is no such authorization."));
    };
    if instruction.money().is_some_and(|money| money.currency().code() != authorization.currency) {
        let message = format!("The authorization is in {}.", authorization.currency);
        return Err(Refusal::new("currency_mismatch", message));
    }
    let must_be_open = matches!(instruction.kind(), Kind::Capture | Kind::Void);
    if must_be_open && authorization.status != AuthorizationStatus::Open {
        let status = authorization.status.as_str();
        let refusal = Refusal::new("authorization_not_open", format!("The authorization is {status}."));
        return Err(Refusal { authorization_status: Some(status.to_owned()), ..refusal });
    }
    match instruction {
        Instruction::Capture { money, .. } if money.amount() > authorization.amount => {
            Err(Refusal::new("amount_exceeds_authorization", "More than was authorized can't be captured."))
        }
        Instruction::Refund { money, .. }
            if money.amount() > authorization.captured - authorization.refunded =>
        {
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
    let instruction = &order.instruction;
    let authorization_id = match instruction {
        Instruction::Authorize { .. } => Some(new_authorization),
        Instruction::Payout { .. } => None,
        _ => Some(instruction.target()),
    };
    let currency = instruction.money().map(Money::currency);
    let new = NewOperation {
        id: format!("op_{}", Uuid::now_v7().as_simple()),
        kind: instruction.kind(),
        idempotency_key: &order.key,
        target: instruction.target(),
        status: outcome.status,
        decline_code: outcome.decline_code,
        refusal: outcome.refusal.as_ref().map(|refusal| json!(refusal)),
        authorization_id,
        amount: instruction.money().map(at_scale),
        currency: currency.as_ref().map(Currency::code),
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

/// Applies the operation to its authorization.
fn take_effect(
    conn: &mut PgConnection,
    instruction: &Instruction,
    status: Status,
    new_authorization: &str,
) -> QueryResult<()> {
    if let Instruction::Authorize { money, capture_key, .. } = instruction {
        let capture_key = capture_key.as_ref().filter(|_| status == Status::Pending);
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
                authorizations::capture_key.eq(capture_key),
            ))
            .execute(conn)?;
        return Ok(());
    }
    if status != Status::Succeeded {
        return Ok(());
    }
    let authorization = authorizations::table.find(instruction.target());
    match instruction {
        Instruction::Authorize { .. } | Instruction::Payout { .. } => return Ok(()),
        Instruction::Capture { money, .. } => diesel::update(authorization)
            .set((
                authorizations::status.eq(AuthorizationStatus::Captured),
                authorizations::captured.eq(money.amount()),
            ))
            .execute(conn)?,
        Instruction::Void { .. } => diesel::update(authorization)
            .set(authorizations::status.eq(AuthorizationStatus::Voided))
            .execute(conn)?,
        Instruction::Refund { money, .. } => diesel::update(authorization)
            .set(authorizations::refunded.eq(authorizations::refunded + money.amount()))
            .execute(conn)?,
    };
    Ok(())
}

/// Records that the first attempt under `key` fails. Returns whether this is the first.
pub(super) fn note_failure(conn: &mut PgConnection, key: &str) -> QueryResult<bool> {
    let noted = diesel::insert_into(failed_once::table)
        .values(failed_once::idempotency_key.eq(key))
        .on_conflict_do_nothing()
        .execute(conn)?;
    Ok(noted == 1)
}
