//! Decides pending operations.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Timestamptz};
use serde_json::{Value, json};

use crate::error::Failure;

use super::faults::Faults;
use super::operations::{Instruction, Operation, Order, Outcome};
use super::outbox::{self, Delivery, EventType};
use super::perform::perform;
use super::schema::{AuthorizationStatus, DeclineCode, Kind, Status, authorizations, operations};

/// Account to which every payout fails.
const FAILING_DESTINATION: &str = "ba_fail";

/// Id of the current transaction; see [`operations::list`](super::operations::list).
const CURRENT_TRANSACTION: &str = "pg_current_xact_id()::text::bigint";

/// Decides the pending operation that has been due for longest, and puts its event into the outbox. Returns
/// whether there was one. Decides one per call, since each must have its own transaction (see
/// [`operations::list`](super::operations::list)).
pub(super) fn decide_next(conn: &mut PgConnection, faults: &Faults) -> Result<bool, Failure> {
    conn.transaction(|conn| {
        // Must be the first statement, so that this transaction's id, the new sequence number, is greater
        // than the old one.
        let due = operations::table
            .filter(operations::decide_at.le(sql::<Nullable<Timestamptz>>("statement_timestamp()")))
            .order(operations::decide_at)
            .select(Operation::as_select())
            .for_update()
            .skip_locked()
            .first(conn)
            .optional()?;
        let Some(operation) = due else { return Ok(false) };
        decide(conn, &operation, faults.issuers_approve(), faults)?;
        Ok(true)
    })
}

/// Decides the pending authorization for `reference` now. Returns whether there was one.
pub(super) fn decide_now(
    conn: &mut PgConnection,
    reference: &str,
    approves: bool,
    faults: &Faults,
) -> Result<bool, Failure> {
    conn.transaction(|conn| {
        let pending = operations::table
            .filter(operations::status.eq(Status::Pending))
            .filter(operations::kind.eq(Kind::Authorize))
            .filter(operations::reference.eq(reference))
            .select(Operation::as_select())
            .for_update()
            .first(conn)
            .optional()?;
        let Some(operation) = pending else { return Ok(false) };
        decide(conn, &operation, approves, faults)?;
        Ok(true)
    })
}

/// Lets the refund for `reference` fail, as when it comes back from the customer's bank, and puts its event with
/// what `data` has in addition into the outbox. Its amount can be refunded again. Returns the event's id, or `None` if
/// there is no successful refund. Locks the refund, then its authorization.
pub(super) fn fail_refund(
    conn: &mut PgConnection,
    merchant: &str,
    reference: &str,
    data: &Value,
    delivery: Delivery,
) -> Result<Option<String>, Failure> {
    conn.transaction(|conn| {
        let succeeded = operations::table
            .filter(operations::status.eq(Status::Succeeded))
            .filter(operations::kind.eq(Kind::Refund))
            .filter(operations::merchant.eq(merchant))
            .filter(operations::reference.eq(reference))
            .order(operations::id)
            .select((Operation::as_select(), operations::settlement_id))
            .for_update()
            .first::<(Operation, Option<String>)>(conn)
            .optional()?;
        let Some((refund, settlement_id)) = succeeded else { return Ok(None) };
        let refund = diesel::update(operations::table.find(&refund.id))
            .set((
                operations::status.eq(Status::Failed),
                operations::is_owed_back.eq(settlement_id.is_some()),
                operations::sequence.eq(sql::<BigInt>(CURRENT_TRANSACTION)),
            ))
            .returning(Operation::as_returning())
            .get_result(conn)?;
        if let (Some(id), Some(amount)) = (&refund.authorization_id, refund.amount) {
            diesel::update(authorizations::table.find(id))
                .set(authorizations::refunded.eq(authorizations::refunded - amount))
                .execute(conn)?;
        }
        let mut told = data_about(&refund);
        if let (Some(told), Some(data)) = (told.as_object_mut(), data.as_object()) {
            told.extend(data.clone());
        }
        Ok(Some(outbox::add(conn, EventType::RefundFailed, &told, delivery)?))
    })
}

fn decide(
    conn: &mut PgConnection,
    operation: &Operation,
    approves: bool,
    faults: &Faults,
) -> Result<(), Failure> {
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
        let capture_key = diesel::update(authorizations::table.find(id))
            .set(authorizations::status.eq(status))
            .returning(authorizations::capture_key)
            .get_result::<Option<String>>(conn)?;
        if approves && capture_key.is_some() {
            // The capture sends the event.
            return Ok(());
        }
    }
    tell(conn, event, &operation, faults)
}

/// Captures an authorization with a requested automatic capture, once it's approved, and puts the event into
/// the outbox. Returns whether there was one. Needs a transaction of its own, as [`decide_next`] does.
pub(super) fn capture_next(conn: &mut PgConnection, faults: &Faults) -> Result<bool, Failure> {
    conn.transaction(|conn| {
        let due = authorizations::table
            .filter(authorizations::capture_key.is_not_null())
            .filter(authorizations::status.eq_any([AuthorizationStatus::Open, AuthorizationStatus::Captured]))
            .select((authorizations::id, authorizations::capture_key.assume_not_null()))
            .for_update()
            .skip_locked()
            .first::<(String, String)>(conn)
            .optional()?;
        let Some((authorization_id, key)) = due else { return Ok(false) };
        let authorize = operations::table
            .filter(operations::authorization_id.eq(&authorization_id))
            .filter(operations::kind.eq(Kind::Authorize))
            .select(Operation::as_select())
            .first(conn)?;
        let money = authorize.money().ok_or_else(|| Failure::internal("an authorization has no amount"))?;
        let order = Order {
            key,
            instruction: Instruction::Capture { authorization_id: authorization_id.clone(), money },
            merchant: authorize.merchant.clone(),
            reference: authorize.reference.clone(),
        };
        // A client's request under that key was faster.
        perform(conn, &order, Duration::ZERO)?;
        diesel::update(authorizations::table.find(&authorization_id))
            .set(authorizations::capture_key.eq(None::<String>))
            .execute(conn)?;
        tell(conn, EventType::ChargeSucceeded, &authorize, faults)?;
        Ok(true)
    })
}

/// Puts an event about an operation into the outbox.
fn tell(
    conn: &mut PgConnection,
    event: EventType,
    operation: &Operation,
    faults: &Faults,
) -> Result<(), Failure> {
    outbox::add(conn, event, &data_about(operation), faults.draw_delivery())?;
    Ok(())
}

/// The data of an event about an operation.
fn data_about(operation: &Operation) -> Value {
    json!({
        "operation": operation.to_json(),
        "merchant": operation.merchant,
        "reference": operation.reference,
        "amount": operation.amount_text(),
        "currency": operation.currency,
    })
}
