//! The changes of one operation to the payments, written in one statement.
//!
//! A refund moves money, changes the refund and its charge, and tells of both. Each of these could be a statement; a round
//! trip costs more than the work that it asks for.

use diesel::prelude::*;
use diesel::sql_types::{Jsonb, Uuid as SqlUuid};
use serde::Serialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::base::ids::MerchantId;
use crate::base::money::{Currency, Money};
use crate::error::Error;
use crate::events::{self, EventType};
use crate::ledger::{self, JournalEntry};
use crate::storage::shape;
use crate::storage::sql::statement;

/// SQL: writes what [`Changes`] holds.
///
/// All parts select from `posted`, so that the ledger comes first, which may refuse. The rows that are changed are locked by
/// now, or nobody else can change them. Events get times of their own, and so ids in their order.
const WRITE_SQL: &str = "\
    WITH owner AS (SELECT {} AS merchant_id, {} AS effects), \
    posted AS MATERIALIZED ( \
        SELECT owner.merchant_id, owner.effects, \
            CASE WHEN hold.source IS NOT NULL THEN \
                ledger_hold(owner.merchant_id, hold.source, hold.currency, hold.amount) END, \
            CASE WHEN release.source IS NOT NULL THEN ledger_release(owner.merchant_id, release.source) END, \
            CASE WHEN entry.source IS NOT NULL THEN \
                ledger_post(owner.merchant_id, uuid_v7(), entry.source, entry.kinds, entry.currencies, entry.amounts) END \
        FROM owner \
        LEFT JOIN LATERAL jsonb_to_record(owner.effects->'hold') AS hold (source text, currency text, amount numeric) ON true \
        LEFT JOIN LATERAL jsonb_to_record(owner.effects->'release') AS release (source text) ON true \
        LEFT JOIN LATERAL jsonb_to_record(owner.effects->'entry') AS entry \
            (source text, kinds text[], currencies text[], amounts numeric[]) ON true), \
    charge AS ( \
        UPDATE charges c SET status = n.status, amount_captured = n.amount_captured, \
            amount_refunded = n.amount_refunded, amount_refund_pending = n.amount_refund_pending, fee = n.fee, \
            in_flight = n.in_flight, description = n.description, metadata = n.metadata, \
            failure_code = n.failure_code, failure_decline_code = n.failure_decline_code, \
            failure_message = n.failure_message, captured_at = n.captured_at, canceled_at = n.canceled_at \
        FROM posted CROSS JOIN LATERAL jsonb_populate_record(NULL::charges, posted.effects->'charge') AS n \
        WHERE c.merchant_id = posted.merchant_id AND c.id = n.id), \
    new_refund AS ( \
        INSERT INTO refunds (merchant_id, id, charge_id, status, amount, currency, reason, metadata, created_at) \
        SELECT posted.merchant_id, n.id, n.charge_id, n.status, n.amount, n.currency, n.reason, n.metadata, n.created_at \
        FROM posted CROSS JOIN LATERAL jsonb_populate_record(NULL::refunds, posted.effects->'new_refund') AS n \
        WHERE n.id IS NOT NULL), \
    refund AS ( \
        UPDATE refunds r SET status = n.status, failed_at = n.failed_at, failure_code = n.failure_code, \
            failure_message = n.failure_message \
        FROM posted CROSS JOIN LATERAL jsonb_populate_record(NULL::refunds, posted.effects->'refund') AS n \
        WHERE r.merchant_id = posted.merchant_id AND r.id = n.id), \
    new_payout AS ( \
        INSERT INTO payouts (merchant_id, id, status, amount, currency, destination, metadata, created_at) \
        SELECT posted.merchant_id, n.id, n.status, n.amount, n.currency, n.destination, n.metadata, n.created_at \
        FROM posted CROSS JOIN LATERAL jsonb_populate_record(NULL::payouts, posted.effects->'new_payout') AS n \
        WHERE n.id IS NOT NULL), \
    payout AS ( \
        UPDATE payouts p SET status = n.status, settled_at = n.settled_at, failure_code = n.failure_code, \
            failure_message = n.failure_message, decided_at = n.decided_at \
        FROM posted CROSS JOIN LATERAL jsonb_populate_record(NULL::payouts, posted.effects->'payout') AS n \
        WHERE p.merchant_id = posted.merchant_id AND p.id = n.id) \
    INSERT INTO events (merchant_id, id, created_at, type, object_id, data, traceparent, tracestate) \
    SELECT posted.merchant_id, uuid_v7(clock.now), clock.now, e.type, e.object_id, e.data, e.traceparent, e.tracestate \
    FROM posted CROSS JOIN LATERAL jsonb_array_elements(posted.effects->'events') WITH ORDINALITY AS event (columns, number) \
        CROSS JOIN LATERAL jsonb_populate_record(NULL::events, event.columns) AS e \
        CROSS JOIN LATERAL (SELECT clock_timestamp() + event.number * interval '1 microsecond' AS now) AS clock \
    ORDER BY event.number";

/// SQL: the same in a distributed database.
const WRITE_ALONE_SQL: &str = "SELECT changes_write({}, {})";

/// A row to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// The columns of a charge that can change.
    Charge,
    /// A new refund.
    NewRefund,
    /// The columns of a refund that can change.
    Refund,
    /// A new payout.
    NewPayout,
    /// The columns of a payout that can change.
    Payout,
}

impl Row {
    const fn name(self) -> &'static str {
        match self {
            Self::Charge => "charge",
            Self::NewRefund => "new_refund",
            Self::Refund => "refund",
            Self::NewPayout => "new_payout",
            Self::Payout => "payout",
        }
    }
}

/// Changes of one merchant's payments: at most one row of each kind, one hold and one journal entry.
#[derive(Debug)]
#[must_use = "nothing is written yet"]
pub struct Changes {
    merchant: MerchantId,
    effects: Map<String, Value>,
    events: Vec<Value>,
    /// Currency of the hold.
    held: Option<Currency>,
}

impl Changes {
    /// Starts without any.
    pub fn of(merchant: MerchantId) -> Self {
        Self { merchant, effects: Map::new(), events: Vec::new(), held: None }
    }

    /// Adds a row, as its columns with its `id`.
    pub fn row(mut self, row: Row, columns: Value) -> Self {
        let earlier = self.effects.insert(row.name().to_owned(), columns);
        debug_assert!(earlier.is_none(), "{row:?} is there already");
        self
    }

    /// Sets `money` of the merchant's payable balance aside for the entry of `source`, until that is posted.
    pub fn hold(mut self, source: &str, money: Money) -> Self {
        let hold = json!({"source": source, "currency": money.currency(), "amount": money.amount()});
        self.effects.insert("hold".to_owned(), hold);
        self.held = Some(money.currency());
        self
    }

    /// Frees what was set aside for the entry of `source`, which won't be posted.
    pub fn release(mut self, source: &str) -> Self {
        self.effects.insert("release".to_owned(), json!({"source": source}));
        self
    }

    /// Posts `entry`, if there is one, like [`ledger::post`] does.
    pub fn post<'a>(mut self, entry: impl Into<Option<&'a JournalEntry>>) -> Self {
        if let Some(entry) = entry.into() {
            self.effects.insert("entry".to_owned(), entry.to_json());
        }
        self
    }

    /// Records an event, after those that are here already, like [`events::record`] does.
    pub fn event(mut self, kind: EventType, object_id: Uuid, object: &impl Serialize) -> Result<Self, Error> {
        self.events.push(events::to_json(self.merchant, kind, object_id, object)?);
        Ok(self)
    }

    /// Writes everything. The rows that change must be locked.
    ///
    /// Errors: `insufficient_balance` if the balance doesn't cover the hold; those of [`ledger::post`].
    ///
    /// Locks: for a hold, and for an entry that debits it, the merchant's `merchant_payable` account.
    pub fn write(mut self, conn: &mut PgConnection) -> Result<(), Error> {
        self.effects.insert("events".to_owned(), Value::Array(self.events));
        let write = if shape::is_distributed() { WRITE_ALONE_SQL } else { WRITE_SQL };
        statement::<()>(write)
            .bind::<SqlUuid, _>(self.merchant)
            .bind::<Jsonb, _>(Value::Object(self.effects))
            .execute(conn)
            .map_err(|error| ledger::refusal(error, self.held))?;
        Ok(())
    }
}
