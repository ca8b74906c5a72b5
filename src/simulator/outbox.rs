//! The outbox of events, stored in the transaction of their operation.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Integer, Numeric, Text, Timestamptz};
use rust_decimal::Decimal;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::base::money::Currency;
use crate::base::time::Timestamp;
use crate::error::Failure;
use crate::storage::sql::statement;

use super::schema::words;

/// Time for which a sender owns an event: longer than its wait for the answer.
const CLAIM: Duration = Duration::from_secs(15);
/// Time for which the delivery of an event is attempted.
const GIVE_UP_AFTER: Duration = Duration::from_secs(3 * 24 * 60 * 60);

words! {
    /// Types of events.
    EventType {
        ChargeSucceeded = "charge.succeeded",
        ChargeFailed = "charge.failed",
        RefundFailed = "refund.failed",
        PayoutPaid = "payout.paid",
        PayoutFailed = "payout.failed",
        SettlementPaid = "settlement.paid",
        DisputeOpened = "dispute.opened",
        DisputeWon = "dispute.won",
        DisputeLost = "dispute.lost",
    }
}

/// The delivery of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Delivery {
    /// Delay.
    pub(super) delay: Duration,
    /// Number of times.
    pub(super) times: i32,
}

/// Puts an event into the outbox. Returns its id.
pub(super) fn add(
    conn: &mut PgConnection,
    event: EventType,
    data: &Value,
    delivery: Delivery,
) -> QueryResult<String> {
    let id = format!("evt_{}", Uuid::now_v7().as_simple());
    #[expect(clippy::disallowed_methods, reason = "the simulator's clock isn't the service's")]
    let timestamp = Timestamp(chrono::Utc::now());
    let body = json!({"type": event, "timestamp": timestamp, "data": data}).to_string();
    statement::<()>(
        "INSERT INTO outbox (id, type, body, deliveries_due, due_at) \
         VALUES ({}, {}, {}, {}, clock_timestamp() + interval '1 ms' * {})",
    )
    .bind::<Text, _>(&id)
    .bind::<Text, _>(event)
    .bind::<Text, _>(&body)
    .bind::<Integer, _>(delivery.times)
    .bind::<BigInt, _>(milliseconds(delivery.delay))
    .execute(conn)?;
    Ok(id)
}

/// An event that a sender owns for a while.
#[derive(Clone, Debug)]
pub(super) struct ClaimedEvent {
    pub(super) id: String,
    pub(super) body: String,
    /// Number of the attempt, from 1.
    pub(super) attempt: i32,
}

/// Claims the event that has been due for longest.
pub(super) fn claim(conn: &mut PgConnection) -> QueryResult<Option<ClaimedEvent>> {
    let claimed = statement::<(Text, Text, Integer)>(
        "UPDATE outbox SET attempts = attempts + 1, due_at = clock_timestamp() + interval '1 ms' * {} \
         WHERE id = (SELECT id FROM outbox WHERE deliveries_due > 0 AND due_at <= statement_timestamp() \
                     ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED) \
         RETURNING id, body, attempts",
    )
    .bind::<BigInt, _>(milliseconds(CLAIM))
    .get_result::<(String, String, i32)>(conn)
    .optional()?;
    Ok(claimed.map(|(id, body, attempt)| ClaimedEvent { id, body, attempt }))
}

/// Records that `event` has arrived. If it must arrive once more, that is due at once.
pub(super) fn delivered(conn: &mut PgConnection, event: &ClaimedEvent) -> QueryResult<()> {
    statement::<()>(
        "UPDATE outbox SET deliveries_due = deliveries_due - 1, delivered_at = clock_timestamp(), \
             due_at = clock_timestamp() \
         WHERE id = {} AND attempts = {}",
    )
    .bind::<Text, _>(&event.id)
    .bind::<Integer, _>(event.attempt)
    .execute(conn)
    .map(|_| ())
}

/// Records that `event` hasn't arrived: it's due again after `pause`, or given up because of its age.
pub(super) fn failed(conn: &mut PgConnection, event: &ClaimedEvent, pause: Duration) -> QueryResult<()> {
    statement::<()>(
        "UPDATE outbox SET due_at = clock_timestamp() + interval '1 ms' * {}, \
             deliveries_due = CASE WHEN created_at > clock_timestamp() - interval '1 ms' * {} \
                                   THEN deliveries_due ELSE 0 END \
         WHERE id = {} AND attempts = {}",
    )
    .bind::<BigInt, _>(milliseconds(pause))
    .bind::<BigInt, _>(milliseconds(GIVE_UP_AFTER))
    .bind::<Text, _>(&event.id)
    .bind::<Integer, _>(event.attempt)
    .execute(conn)
    .map(|_| ())
}

/// Makes the delivered events since `after` due once more. Returns their number.
pub(super) fn redeliver(conn: &mut PgConnection, after: DateTime<Utc>) -> QueryResult<usize> {
    statement::<()>(
        "UPDATE outbox SET deliveries_due = 1, due_at = clock_timestamp() \
         WHERE created_at >= {} AND delivered_at IS NOT NULL AND deliveries_due = 0",
    )
    .bind::<Timestamptz, _>(after)
    .execute(conn)
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Settles a merchant's captures in a currency: those that aren't refunded and not settled yet, and refunds that
/// failed after they had been subtracted. `None` if the sum isn't positive; then it waits for more captures. Returns the data of the event.
pub(super) fn settle(
    conn: &mut PgConnection,
    merchant: &str,
    currency: Currency,
    delivery: Delivery,
) -> Result<Option<Value>, Failure> {
    conn.transaction(|conn| {
        let operations = statement::<(Text, Numeric)>(
            "SELECT id, CASE WHEN kind = 'capture' OR is_owed_back THEN amount ELSE -amount END FROM operations \
             WHERE merchant = {} AND currency = {} AND (is_owed_back \
                 OR settlement_id IS NULL AND status = 'succeeded' AND kind IN ('capture', 'refund')) \
             ORDER BY id FOR UPDATE",
        )
        .bind::<Text, _>(merchant)
        .bind::<Text, _>(currency.code())
        .load::<(String, Decimal)>(conn)?;
        let amount: Decimal = operations.iter().map(|(_, amount)| amount).sum();
        if amount <= Decimal::ZERO {
            return Ok(None);
        }
        let id = format!("set_{}", Uuid::now_v7().as_simple());
        let operation_count = i64::try_from(operations.len()).map_err(Failure::internal)?;
        statement::<()>(
            "INSERT INTO settlements (id, merchant, currency, amount, operation_count) VALUES ({}, {}, {}, {}, {})",
        )
        .bind::<Text, _>(&id)
        .bind::<Text, _>(merchant)
        .bind::<Text, _>(currency.code())
        .bind::<Numeric, _>(amount)
        .bind::<BigInt, _>(operation_count)
        .execute(conn)?;
        let ids: Vec<_> = operations.into_iter().map(|(id, _)| id).collect();
        statement::<()>("UPDATE operations SET settlement_id = {}, is_owed_back = false WHERE id = ANY ({})")
            .bind::<Text, _>(&id)
            .bind::<Array<Text>, _>(ids)
            .execute(conn)?;
        let settlement = json!({
            "id": id,
            "merchant": merchant,
            "currency": currency,
            "amount": currency.format(amount),
            "operation_count": operation_count,
        });
        add(conn, EventType::SettlementPaid, &settlement, delivery)?;
        Ok(Some(settlement))
    })
}
