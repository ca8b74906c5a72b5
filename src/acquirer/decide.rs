//! Decides what was left pending.

use chrono::{DateTime, Utc};
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Timestamptz};
use serde_json::json;

use crate::error::Error;

use super::faults::Faults;
use super::operations::{Operation, Outcome};
use super::outbox::{self, EventType};
use super::schema::{AuthorizationStatus, DeclineCode, Kind, Status, authorizations, operations};

/// A payout to this account fails.
const FAILING_DESTINATION: &str = "ba_fail";

/// Id of the current transaction; see [`operations::list`](super::operations::list).
const CURRENT_TRANSACTION: &str = "pg_current_xact_id()::text::bigint";

/// Decides the pending operation that has been due for longest, and puts the news into the outbox. Whether there was
/// one. Takes one per call, since each must have its own transaction (see [`operations::list`](super::operations::list)).
pub(super) fn decide_next(conn: &mut PgConnection, faults: &Faults) -> Result<bool, Error> {
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
        let approves = faults.issuers_approve();
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
        outbox::add(conn, event, &data, faults.draw_delivery())?;
        Ok(true)
    })
}
