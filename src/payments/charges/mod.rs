//! Charges: payments from a customer to a merchant.
//!
//! # States
//!
//! | from | to | by |
//! |---|---|---|
//! | – | `succeeded` | creation with `capture`, approved |
//! | – | `requires_capture` | creation without `capture`, approved |
//! | – | `processing` | creation, with the processor's decision to come later |
//! | – | `failed` | creation, declined |
//! | `processing` | `succeeded`, `requires_capture`, `failed` | the processor's decision ([`settle`]) |
//! | `requires_capture` | `succeeded` | [capture](mod@capture) |
//! | `requires_capture` | `canceled` | [cancellation](mod@cancel), or a capture that comes too late |
//! | `succeeded` | `partially_refunded`, `refunded` | a [refund](crate::payments::refunds) |
//! | `partially_refunded` | `partially_refunded`, `refunded` | a refund |
//! | `partially_refunded`, `refunded` | `partially_refunded`, `succeeded` | a refund that came back |
//! | `succeeded`, `partially_refunded`, `refunded` | `disputed` | a [dispute](crate::payments::disputes) is opened |
//! | `disputed` | `succeeded`, `partially_refunded`, `refunded` | all its disputes are won |
//!
//! A charge whose dispute is lost stays `disputed`. `failed` and `canceled` are final. A CHECK in the
//! database ties each state to the columns that it implies, and a trigger refuses any other transition.
//!
//! # Under way
//!
//! Between the claim of a capture or cancellation and its end, the processor is being called and no row is
//! locked. Meanwhile the column `in_flight` keeps the charge for that one operation: a second one, under
//! another key, is refused for good. Refunds reserve their amount instead, since a charge can have several.

pub mod cancel;
pub mod capture;
pub mod create;
mod notices;
pub mod read;
pub mod update;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use crate::base::ids::{ChargeId, MerchantId};
use crate::base::money::{Currency, Money, Pricing};
use crate::base::time::Timestamp;
use crate::error::{Error, Hindrance};
use crate::events::{self, EventType};
use crate::idempotency::{Effects, ResourceKind};
use crate::ledger::{AccountKind, JournalEntry};
use crate::payments::changes::{Changes, Row};
use crate::payments::pricing;
use crate::processor::{CallRefusal, Decline};
use crate::storage::schema::charges;

use crate::web::fields::Metadata;
pub use notices::{Decision, captured_elsewhere, settle, successor};

/// Failure code of a charge whose authorization has lapsed.
pub(crate) const AUTHORIZATION_EXPIRED: &str = "authorization_expired";

/// Decline code of a charge of which less than the amount was approved.
pub(crate) const PARTIAL_APPROVAL: &str = "partial_approval";

/// Charges, as a resource kind.
pub static CHARGE: ResourceKind =
    ResourceKind::new("charge", ChargeId::PREFIX, "charges", "/v1/charges/{id}");

/// A payment from a customer to the merchant.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b", "object": "charge", "status": "succeeded", "amount": "12.50",
    "amount_captured": "12.50", "amount_refunded": "0.00", "currency": "USD", "payment_method": "pm_card_visa",
    "description": null, "reference": "order-1001", "metadata": {"cart": "7f3a"}, "failure": null, "fee": "0.66",
    "created_at": "2026-01-31T09:30:00.000Z", "captured_at": "2026-01-31T09:30:00.120Z", "canceled_at": null
}))]
pub struct Charge {
    /// Time-ordered id.
    #[schema(value_type = String, example = "ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    id: ChargeId,
    /// Always `charge`.
    #[schema(example = "charge")]
    object: &'static str,
    /// State of the charge.
    status: ChargeStatus,
    /// Authorized amount, at the currency's scale.
    #[schema(example = "12.50")]
    amount: String,
    /// Captured part of `amount`.
    #[schema(example = "12.50")]
    amount_captured: String,
    /// Refunded part of `amount_captured`.
    #[schema(example = "0.00")]
    amount_refunded: String,
    /// ISO 4217 code.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
    /// Token of the payment method.
    #[schema(example = "pm_card_visa")]
    payment_method: String,
    /// Free text.
    #[schema(example = "Order 1001")]
    description: Option<String>,
    /// The merchant's own name for the payment.
    #[schema(example = "order-1001")]
    reference: Option<String>,
    /// Free-form entries.
    #[schema(value_type = std::collections::BTreeMap<String, String>, example = json!({"cart": "7f3a"}))]
    metadata: Metadata,
    /// Reason of the failure, if the charge failed, or was canceled because its authorization had lapsed.
    failure: Option<ChargeFailure>,
    /// The merchant's fee for the capture. Zero before it.
    #[schema(example = "0.66")]
    fee: String,
    /// Time of the first request for the charge.
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T09:30:00.000Z")]
    created_at: Timestamp,
    /// Time of the capture.
    #[schema(value_type = Option<String>, format = DateTime, example = "2026-01-31T09:30:00.120Z")]
    captured_at: Option<Timestamp>,
    /// Time at which the authorization was voided.
    #[schema(value_type = Option<String>, format = DateTime, example = json!(null))]
    canceled_at: Option<Timestamp>,
}

/// State of a charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChargeStatus {
    /// The processor will decide later.
    Processing,
    /// Authorized. The money is held until it's captured.
    RequiresCapture,
    /// Captured.
    Succeeded,
    /// Declined.
    Failed,
    /// The authorization was voided.
    Canceled,
    /// Captured, and returned in part.
    PartiallyRefunded,
    /// Captured, and returned in full.
    Refunded,
    /// The customer contests the charge with the issuer, or has won such a dispute.
    Disputed,
}

impl ChargeStatus {
    /// All states.
    pub const ALL: [Self; 8] = [
        Self::Processing,
        Self::RequiresCapture,
        Self::Succeeded,
        Self::Failed,
        Self::Canceled,
        Self::PartiallyRefunded,
        Self::Refunded,
        Self::Disputed,
    ];

    /// Name in the database and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Processing => "processing",
            Self::RequiresCapture => "requires_capture",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::PartiallyRefunded => "partially_refunded",
            Self::Refunded => "refunded",
            Self::Disputed => "disputed",
        }
    }
}

impl std::str::FromStr for ChargeStatus {
    type Err = ();
    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|status| status.as_str() == name).ok_or(())
    }
}

/// Reason why a charge failed, or was canceled by the processor.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChargeFailure {
    /// `card_declined`, `insufficient_funds` or `authorization_expired`.
    #[schema(example = "card_declined")]
    code: String,
    /// The issuer's reason, or the processor's.
    #[schema(example = "generic_decline")]
    decline_code: String,
    /// The reason as text for people.
    #[schema(example = "The card was declined.")]
    message: String,
}

/// A charge as it is stored.
#[derive(Clone, Queryable, Selectable)]
#[diesel(table_name = charges)]
pub(crate) struct ChargeRow {
    pub merchant_id: MerchantId,
    pub id: ChargeId,
    pub status: String,
    pub currency: String,
    pub amount: Decimal,
    pub amount_captured: Decimal,
    pub amount_refunded: Decimal,
    pub amount_refund_pending: Decimal,
    pub fee: Decimal,
    pub payment_method: String,
    pub capture: bool,
    pub in_flight: Option<String>,
    pub description: Option<String>,
    pub reference: Option<String>,
    pub metadata: serde_json::Value,
    pub failure_code: Option<String>,
    pub failure_decline_code: Option<String>,
    pub failure_message: Option<String>,
    pub authorization_id: String,
    pub created_at: DateTime<Utc>,
    pub captured_at: Option<DateTime<Utc>>,
    pub canceled_at: Option<DateTime<Utc>>,
}

/// SQL: the number of the advisory lock for what makes charges of a merchant alike.
macro_rules! alike_lock {
    ($alike:literal, $merchant_id:literal) => {
        concat!("hashtextextended(", $alike, ", hashtextextended(", $merchant_id, "::text, 1))")
    };
}
use alike_lock;

/// SQL: whether the charge can be written beside others. Not if another transaction has locked what makes charges alike: it may
/// write one.
pub(crate) const ADMIT_SQL: &str = concat!(
    "CASE WHEN asked.effects ? 'alike' THEN pg_try_advisory_xact_lock(",
    alike_lock!("asked.effects->'alike'->>'name'", "asked.merchant_id"),
    ") ELSE true END"
);

/// SQL: writes new charges with their journal entries and events, as [`ChargeRow::to_effects`] describes
/// them. `effects->'alike'`, if it's there, is what to search with for charges that are alike, which [`NOTE_SQL`] tells.
///
/// The charges and events select from `posted`, so that the search and the ledger come first: afterwards the search would find
/// the charges themselves. Of charges in one statement that are alike, each finds the one before. The entries have an
/// order, so that two statements that both create accounts for new merchants wait for each other instead of
/// deadlocking.
pub(crate) const WRITE_SQL: &str = "\
    searched AS MATERIALIZED ( \
        SELECT owner.merchant_id, owner.token, owner.effects, CASE WHEN owner.effects ? 'alike' THEN coalesce( \
            lag(c.id) OVER alike, \
            charge_alike(owner.merchant_id, c.id, (owner.effects->'alike'->>'since')::uuid, c.reference, c.currency, \
                c.amount, c.payment_method)) END AS alike \
        FROM owner CROSS JOIN LATERAL jsonb_to_record(owner.effects->'charge') AS c \
            (id uuid, reference text, currency text, amount numeric, payment_method text) \
        WINDOW alike AS (PARTITION BY owner.effects ? 'alike', owner.merchant_id, c.reference, c.currency, c.amount, \
            c.payment_method ORDER BY c.id)), \
    entry AS MATERIALIZED ( \
        SELECT row_number() OVER (ORDER BY searched.merchant_id, entry.currencies[1])::integer AS number, \
            searched.merchant_id, entry.* \
        FROM searched CROSS JOIN LATERAL jsonb_to_record(nullif(searched.effects->'entry', 'null')) AS entry \
            (source text, kinds text[], currencies text[], amounts numeric[]) \
        WHERE entry.source IS NOT NULL), \
    posted AS MATERIALIZED ( \
        SELECT ledger_post_all( \
            (SELECT array_agg(merchant_id ORDER BY number) FROM entry), \
            (SELECT array_agg(source ORDER BY number) FROM entry), \
            array_agg(entry.number), array_agg(line.number), array_agg(line.kind), array_agg(line.currency), \
            array_agg(line.amount)) \
        FROM entry CROSS JOIN LATERAL unnest(entry.kinds, entry.currencies, entry.amounts) WITH ORDINALITY \
            AS line (kind, currency, amount, number)), \
    charge AS ( \
        INSERT INTO charges (merchant_id, id, status, currency, amount, amount_captured, fee, payment_method, capture, \
            description, reference, metadata, failure_code, failure_decline_code, failure_message, authorization_id, \
            created_at, captured_at) \
        SELECT searched.merchant_id, c.id, c.status, c.currency, c.amount, c.amount_captured, c.fee, c.payment_method, \
            c.capture, c.description, c.reference, c.metadata, c.failure_code, c.failure_decline_code, \
            c.failure_message, c.authorization_id, c.created_at, c.captured_at \
        FROM posted CROSS JOIN searched \
            CROSS JOIN LATERAL jsonb_populate_record(NULL::charges, searched.effects->'charge') AS c), \
    event AS ( \
        INSERT INTO events (merchant_id, id, created_at, type, object_id, data, traceparent, tracestate) \
        SELECT searched.merchant_id, uuid_v7(clock.now), clock.now, e.type, e.object_id, e.data, e.traceparent, e.tracestate \
        FROM (SELECT clock_timestamp() AS now) AS clock CROSS JOIN posted CROSS JOIN searched \
            CROSS JOIN LATERAL jsonb_populate_record(NULL::events, searched.effects->'event') AS e)";

/// SQL: the charge of which this one is a suspected duplicate.
pub(crate) const NOTE_SQL: &str =
    "(SELECT to_jsonb(searched.alike) FROM searched WHERE searched.token = owner.token)";

/// SQL: does what [`WRITE_SQL`] and [`NOTE_SQL`] do, for one charge in a distributed database.
pub(crate) const WRITE_ALONE_SQL: &str = "to_jsonb(charge_write(owner.merchant_id, owner.effects))";

impl ChargeRow {
    /// Reads a charge and locks it until the transaction ends. Errors: `charge_not_found`.
    pub fn lock(conn: &mut PgConnection, merchant: MerchantId, id: ChargeId) -> Result<Self, Error> {
        charges::table
            .find((merchant, id))
            .select(Self::as_select())
            .for_update()
            .first(conn)
            .optional()?
            .ok_or(Error::ChargeNotFound)
    }

    pub fn currency(&self) -> Result<Currency, Error> {
        Currency::stored(&self.currency).map_err(Error::internal)
    }

    pub fn status(&self) -> Result<ChargeStatus, Error> {
        self.status.parse().map_err(|()| Error::internal("a stored charge has an unknown status"))
    }

    /// `amount` in the charge's currency.
    pub fn money(&self, amount: Decimal) -> Result<Money, Error> {
        Ok(Money::from_stored(amount, self.currency()?))
    }

    /// Amount that is captured and neither refunded nor being refunded.
    pub fn refundable(&self) -> Decimal {
        self.amount_captured - self.amount_refunded - self.amount_refund_pending
    }

    pub fn set_status(&mut self, status: ChargeStatus) {
        status.as_str().clone_into(&mut self.status);
    }

    /// Sets the state of a captured charge that isn't disputed, according to its refunded amount.
    pub fn set_captured_status(&mut self) {
        self.set_status(if self.amount_refunded.is_zero() {
            ChargeStatus::Succeeded
        } else if self.amount_refunded < self.amount_captured {
            ChargeStatus::PartiallyRefunded
        } else {
            ChargeStatus::Refunded
        });
    }

    /// Marks `captured` as captured, at the price that holds `now`. Returns the journal entry of the capture, to be posted.
    pub fn capture(
        &mut self,
        conn: &mut PgConnection,
        captured: Money,
        now: DateTime<Utc>,
    ) -> Result<JournalEntry, Error> {
        let pricing = pricing::pricing(conn, self.merchant_id, now)?;
        self.mark_captured(pricing, captured, now)
    }

    /// Marks `captured` as captured. Returns the journal entry of the capture, to be posted:
    /// `acquirer_clearing` gross to `merchant_payable` net and `fee_revenue` fee.
    pub fn mark_captured(
        &mut self,
        pricing: Pricing,
        captured: Money,
        now: DateTime<Utc>,
    ) -> Result<JournalEntry, Error> {
        let fee = pricing.fee(captured);
        let net = captured
            .amount()
            .checked_sub(fee)
            .ok_or_else(|| Error::internal("the net amount of a capture overflows"))?;
        let entry = JournalEntry::new(format!("{}:capture", self.id))
            .debit(AccountKind::AcquirerClearing, captured)
            .credit(AccountKind::MerchantPayable, Money::from_stored(net, captured.currency()))
            .credit(AccountKind::FeeRevenue, Money::from_stored(fee, captured.currency()));
        self.amount_captured = captured.amount();
        self.fee = fee;
        self.captured_at = Some(now);
        self.in_flight = None;
        self.set_status(ChargeStatus::Succeeded);
        Ok(entry)
    }

    /// The reason besides its status why the charge can't be captured or canceled.
    pub fn hindrance(&self) -> Hindrance {
        if self.in_flight.is_some() { Hindrance::InFlight } else { Hindrance::Status }
    }

    /// Marks an authorized charge as canceled, since the processor holds nothing for it any more.
    pub fn expire(&mut self, refusal: &CallRefusal, now: DateTime<Utc>) {
        self.in_flight = None;
        self.canceled_at = Some(now);
        self.set_status(ChargeStatus::Canceled);
        self.failure_code = Some(AUTHORIZATION_EXPIRED.to_owned());
        self.failure_decline_code = Some(refusal.code.clone());
        self.failure_message = Some("The authorization has lapsed at the processor.".to_owned());
    }

    /// Lets other captures and cancellations of a charge begin, after one that an operator has ended.
    ///
    /// Locks: the charge.
    pub fn end_flight(conn: &mut PgConnection, merchant: MerchantId, id: ChargeId) -> Result<(), Error> {
        let mut row = Self::lock(conn, merchant, id)?;
        row.in_flight = None;
        row.reserve(conn)
    }

    /// Marks the charge as declined. Returns the error for the client.
    pub fn decline(&mut self, decline: &Decline) -> Error {
        let (charge_id, decline_code) = (self.id, decline.code().to_owned());
        let error = if decline.is_insufficient_funds() {
            Error::InsufficientFunds { charge_id }
        } else {
            Error::CardDeclined { decline_code: decline_code.clone(), charge_id }
        };
        self.set_status(ChargeStatus::Failed);
        self.failure_code = Some(error.code().as_str().to_owned());
        self.failure_decline_code = Some(decline_code);
        self.failure_message = Some(error.to_string());
        error
    }

    /// Makes the new charge, and the parameters that [`WRITE_SQL`] needs to write it with its event and the
    /// journal entry of its capture.
    pub fn to_effects(
        &self,
        event: EventType,
        entry: Option<&JournalEntry>,
    ) -> Result<(Charge, Effects), Error> {
        let charge = self.clone().into_charge()?;
        let effects = json!({
            "charge": {
                "id": self.id.0,
                "status": self.status,
                "currency": self.currency,
                "amount": self.amount,
                "amount_captured": self.amount_captured,
                "fee": self.fee,
                "payment_method": self.payment_method,
                "capture": self.capture,
                "description": self.description,
                "reference": self.reference,
                "metadata": self.metadata,
                "failure_code": self.failure_code,
                "failure_decline_code": self.failure_decline_code,
                "failure_message": self.failure_message,
                "authorization_id": self.authorization_id,
                "created_at": self.created_at,
                "captured_at": self.captured_at,
            },
            "entry": entry.map(JournalEntry::to_json),
            "event": events::to_json(self.merchant_id, event, self.id.0, &charge)?,
        });
        Ok((charge, effects))
    }

    /// The mutable columns, to be written.
    pub fn changes(&self) -> Changes {
        Changes::of(self.merchant_id).row(
            Row::Charge,
            json!({
                "id": self.id.0,
                "status": self.status,
                "amount_captured": self.amount_captured,
                "amount_refunded": self.amount_refunded,
                "amount_refund_pending": self.amount_refund_pending,
                "fee": self.fee,
                "in_flight": self.in_flight,
                "description": self.description,
                "metadata": self.metadata,
                "failure_code": self.failure_code,
                "failure_decline_code": self.failure_decline_code,
                "failure_message": self.failure_message,
                "captured_at": self.captured_at,
                "canceled_at": self.canceled_at,
            }),
        )
    }

    /// The mutable columns and the event that tells of them, to be written. Also returns the charge.
    pub fn told_changes(self, event: EventType) -> Result<(Changes, Charge), Error> {
        let (changes, id) = (self.changes(), self.id.0);
        let charge = self.into_charge()?;
        Ok((changes.event(event, id, &charge)?, charge))
    }

    /// Writes the mutable columns of a charge, and its event.
    pub fn save(self, conn: &mut PgConnection, event: EventType) -> Result<Charge, Error> {
        let (changes, charge) = self.told_changes(event)?;
        changes.write(conn)?;
        Ok(charge)
    }

    /// Writes the mutable columns of a charge without an event, for changes that no client is told of.
    pub fn reserve(&self, conn: &mut PgConnection) -> Result<(), Error> {
        self.changes().write(conn)
    }

    /// Converts the row to the charge that the API shows.
    pub fn into_charge(self) -> Result<Charge, Error> {
        let (currency, status) = (self.currency()?, self.status()?);
        Ok(Charge {
            id: self.id,
            object: "charge",
            status,
            amount: currency.format(self.amount),
            amount_captured: currency.format(self.amount_captured),
            amount_refunded: currency.format(self.amount_refunded),
            currency,
            payment_method: self.payment_method,
            description: self.description,
            reference: self.reference,
            metadata: serde_json::from_value(self.metadata).map_err(Error::internal)?,
            failure: self.failure_code.map(|code| ChargeFailure {
                code,
                decline_code: self.failure_decline_code.unwrap_or_default(),
                message: self.failure_message.unwrap_or_default(),
            }),
            fee: currency.format(self.fee),
            created_at: Timestamp(self.created_at),
            captured_at: self.captured_at.map(Timestamp),
            canceled_at: self.canceled_at.map(Timestamp),
        })
    }
}
