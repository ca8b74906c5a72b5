//! Payouts: money sent from a merchant's balance to its bank.
//!
//! | from | to | by | journal entry |
//! |---|---|---|---|
//! | – | `pending` | the claim, which holds the amount in the ledger | |
//! | `pending` | `in_transit` | the processor's acceptance | `merchant_payable` to `payouts_in_transit` |
//! | `pending` | `failed` | the processor's final refusal, or an operator who ends the request | |
//! | `in_transit` | `paid` | its arrival ([`settle`]) | `payouts_in_transit` to `bank` |
//! | `in_transit` | `failed` | its return ([`settle`]) | `payouts_in_transit` to `merchant_payable` |
//! | `paid` | `failed` | its return after it arrived ([`settle`]) | `bank` to `merchant_payable`, a correction |

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, get, post, web};
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use crate::base::ids::{MerchantId, PayoutId};
use crate::base::money::{Currency, Money};
use crate::base::time::Timestamp;
use crate::error::Error;
use crate::events::EventType;
use crate::host::{self, Caller, Context, Descriptor, Engine, Input, Oncepay};
use crate::idempotency::{
    Abandoned, Commit, ExternalOperation, IdempotentRequest, KeptHeader, Operation, Reply, ResourceKind,
    Target,
};
use crate::ledger::{self, AccountKind, Correction, JournalEntry};
use crate::payments::changes::{Changes, Row};
use crate::payments::failure::{ABANDONED, Failure, PAYOUT_REFUSED, PAYOUT_RETURNED};
use crate::payments::notice::NoticeEffect;
use crate::processor::{CallRefusal, EventAmount, or_refusal};
use crate::storage::db::Db;
use crate::storage::schema::payouts;
use crate::web::auth::AuthenticatedMerchant;
use crate::web::fields::{Fields, Metadata};
use crate::web::lists::{List, Parameters, load_page};
use crate::web::problems::problems;
use crate::web::query::WithQuery;
use crate::web::texts::Texts;

/// Maximum number of characters in `destination`.
const DESTINATION_MAX: usize = 255;

/// Payouts, as a resource kind.
pub static PAYOUT: ResourceKind =
    ResourceKind::new("payout", PayoutId::PREFIX, "payouts", "/v1/payouts/{id}");

/// The processor is being asked.
const PENDING: &str = "pending";
/// It's on its way.
const IN_TRANSIT: &str = "in_transit";
/// It arrived.
const PAID: &str = "paid";
/// It came back, or was never made.
const FAILED: &str = "failed";
/// Where a payout can stand, in the database and in the API.
pub(crate) const STATUSES: [&str; 4] = [PENDING, IN_TRANSIT, PAID, FAILED];

/// Money sent to the merchant's bank.
#[derive(Debug, Serialize, ToSchema)]
pub struct Payout {
    /// Time-ordered id.
    #[schema(value_type = String, example = "po_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    id: PayoutId,
    /// Always `payout`.
    #[schema(example = "payout")]
    object: &'static str,
    /// `pending` until the processor accepts the payout, then `in_transit`, then `paid` or `failed`.
    #[schema(example = "in_transit")]
    status: String,
    /// Amount, at the currency's scale.
    #[schema(example = "100.00")]
    amount: String,
    /// ISO 4217 code.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
    /// Name of the bank account that receives the money.
    #[schema(example = "ba_main")]
    destination: String,
    /// Free-form entries.
    #[schema(value_type = std::collections::BTreeMap<String, String>, example = json!({}))]
    metadata: Metadata,
    /// Time of the first request for the payout.
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T09:30:00.000Z")]
    created_at: Timestamp,
    /// Time at which the payout arrived or failed.
    #[schema(value_type = Option<String>, format = DateTime, example = json!(null))]
    settled_at: Option<Timestamp>,
    /// Reason of the failure, if the payout failed.
    #[schema(example = json!(null))]
    failure: Option<Failure>,
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = payouts)]
struct PayoutRow {
    merchant_id: MerchantId,
    id: PayoutId,
    status: String,
    amount: Decimal,
    currency: String,
    destination: String,
    metadata: serde_json::Value,
    created_at: DateTime<Utc>,
    settled_at: Option<DateTime<Utc>>,
    failure_code: Option<String>,
    failure_message: Option<String>,
    decided_at: Option<DateTime<Utc>>,
}

impl PayoutRow {
    fn find(conn: &mut PgConnection, merchant: MerchantId, id: PayoutId) -> Result<Self, Error> {
        payouts::table
            .find((merchant, id))
            .select(Self::as_select())
            .first(conn)
            .optional()?
            .ok_or(Error::PayoutNotFound)
    }

    fn lock(conn: &mut PgConnection, merchant: MerchantId, id: PayoutId) -> Result<Self, Error> {
        payouts::table
            .find((merchant, id))
            .select(Self::as_select())
            .for_update()
            .first(conn)
            .optional()?
            .ok_or(Error::PayoutNotFound)
    }

    fn money(&self) -> Result<Money, Error> {
        Ok(Money::from_stored(self.amount, Currency::stored(&self.currency).map_err(Error::internal)?))
    }

    /// The state and its event, to be written. Also returns the payout.
    fn told_changes(self, event: EventType) -> Result<(Changes, Payout), Error> {
        let (merchant, id) = (self.merchant_id, self.id.0);
        let columns = json!({
            "id": id,
            "status": self.status,
            "settled_at": self.settled_at,
            "failure_code": self.failure_code,
            "failure_message": self.failure_message,
            "decided_at": self.decided_at,
        });
        let payout = self.into_payout()?;
        Ok((Changes::of(merchant).row(Row::Payout, columns).event(event, id, &payout)?, payout))
    }

    /// Marks the payout as failed.
    fn fail(&mut self, failure: Failure, now: DateTime<Utc>) {
        FAILED.clone_into(&mut self.status);
        self.settled_at = Some(now);
        self.failure_code = Some(failure.code);
        self.failure_message = Some(failure.message);
    }

    fn into_payout(self) -> Result<Payout, Error> {
        let currency = Currency::stored(&self.currency).map_err(Error::internal)?;
        Ok(Payout {
            id: self.id,
            object: "payout",
            status: self.status,
            amount: currency.format(self.amount),
            currency,
            destination: self.destination,
            metadata: serde_json::from_value(self.metadata).map_err(Error::internal)?,
            created_at: Timestamp(self.created_at),
            settled_at: self.settled_at.map(Timestamp),
            failure: Failure::from_columns(self.failure_code, self.failure_message),
        })
    }
}

/// Body of a new payout.
#[derive(Debug, ToSchema)]
#[schema(example = json!({"amount": "100.00", "currency": "USD", "destination": "ba_main"}))]
#[serde(deny_unknown_fields)]
pub struct CreatePayout {
    /// Decimal string greater than zero, with at most as many decimals as the currency has and 12 digits
    /// before the point.
    #[schema(value_type = String, pattern = r"^[0-9]{1,12}(\.[0-9]{1,4})?$", example = "100.00")]
    amount: Money,
    /// ISO 4217 code in upper case.
    #[schema(value_type = String, pattern = "^[A-Z]{3}$", example = "USD")]
    #[expect(dead_code, reason = "amount holds it too; it's here for the schema")]
    currency: Currency,
    /// Your name for the bank account of the merchant that receives the money, without control characters and in
    /// Unicode normalization form C.
    #[schema(min_length = 1, max_length = 255)]
    destination: String,
    /// Up to 50 entries, names up to 40 and values up to 500 characters.
    #[schema(value_type = Option<std::collections::BTreeMap<String, String>>)]
    metadata: Metadata,
}

impl Operation for CreatePayout {
    type Host = Oncepay;

    const DESCRIPTOR: Descriptor = Descriptor::new("payouts.create", "POST", "/v1/payouts", Caller::Merchant)
        .about(Target::New(&PAYOUT))
        .sharing_transactions();

    fn read(input: &Input<'_>) -> Result<Self, Error> {
        Fields::read(input.body, |fields| {
            let amount = fields.money();
            let destination = fields.text("destination", DESTINATION_MAX);
            let metadata = fields.metadata();
            let amount = amount?;
            Some(Self { amount, currency: amount.currency(), destination: destination?, metadata })
        })
    }
}

#[async_trait]
impl ExternalOperation for CreatePayout {
    type Reservation = ();
    type Outcome = Result<(), CallRefusal>;

    /// Holds the amount in the ledger, so that nothing else can use it during the processor call.
    ///
    /// Errors, in the order checked: `validation_failed` (texts, or a withdrawn currency and no balance in it),
    /// `insufficient_balance`.
    ///
    /// Locks: the merchant's `merchant_payable` account.
    fn reserve(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<(), Error> {
        Texts::default().name("/destination", Some(&self.destination)).check()?;
        let (merchant, id) = (context.merchant(), PayoutId(context.resource_id()?));
        let currency = self.amount.currency();
        if let Err(withdrawn) = currency.check_in_use(context.claimed_at())
            // What is left in it isn't new money, and must be able to leave.
            && ledger::balance(conn, merchant, AccountKind::MerchantPayable, currency)?.is_zero()
        {
            return Err(Error::field("/currency", withdrawn.to_string()));
        }
        let payout = json!({
            "id": id.0,
            "status": PENDING,
            "amount": self.amount.amount(),
            "currency": currency,
            "destination": self.destination,
            "metadata": self.metadata,
            "created_at": context.claimed_at(),
        });
        Changes::of(merchant).hold(&id.to_string(), self.amount).row(Row::NewPayout, payout).write(conn)
    }

    fn resume(&self, _conn: &mut PgConnection, _context: &Context<'_>) -> Result<(), Error> {
        Ok(())
    }

    async fn call_processor(&self, context: &Context<'_>, (): &()) -> Result<Self::Outcome, Error> {
        let call = host::processor_call(context, "payout", PayoutId(context.resource_id()?));
        let accepted = context.host().processor.payout(&call, self.amount, &self.destination).await;
        Ok(or_refusal(accepted)?)
    }

    /// Answers `payout_refused` if the processor refused.
    ///
    /// Locks: the payout, the merchant's `merchant_payable` account.
    fn commit(
        &self,
        conn: &mut PgConnection,
        context: &Context<'_>,
        (): &(),
        accepted: &Self::Outcome,
    ) -> Result<Commit, Error> {
        let (merchant, id) = (context.merchant(), PayoutId(context.resource_id()?));
        if let Err(refusal) = accepted {
            let error = Error::PayoutRefused { payout_id: id, refusal_code: refusal.code.clone() };
            let failure = Failure::new(PAYOUT_REFUSED, error.to_string());
            undo(conn, merchant, id, failure, context.now())?;
            return Ok(context.problem(&error)?.into());
        }
        let mut row = PayoutRow::lock(conn, merchant, id)?;
        let entry = JournalEntry::new(id.to_string())
            .debit(AccountKind::MerchantPayable, self.amount)
            .credit(AccountKind::PayoutsInTransit, self.amount);
        row.status = IN_TRANSIT.to_owned();
        let (changes, payout) = row.told_changes(EventType::PayoutCreated)?;
        changes.post(&entry).write(conn)?;
        Ok(Reply::json(StatusCode::CREATED, &payout)?
            .header(KeptHeader::Location, format!("/v1/payouts/{id}"))
            .into())
    }

    /// Locks: the payout.
    fn abandon(conn: &mut PgConnection, abandoned: &Abandoned) -> Result<(), Error> {
        let id = PayoutId(abandoned.resource_id()?);
        let failure = Failure::new(ABANDONED, Error::RequestAbandoned.to_string());
        undo(conn, abandoned.merchant, id, failure, abandoned.now)
    }
}

/// Ends a pending payout that was never made, and releases its amount.
///
/// Locks: the payout.
fn undo(
    conn: &mut PgConnection,
    merchant: MerchantId,
    id: PayoutId,
    failure: Failure,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    let mut row = PayoutRow::lock(conn, merchant, id)?;
    row.fail(failure, now);
    let (changes, _) = row.told_changes(EventType::PayoutFailed)?;
    changes.release(&id.to_string()).write(conn)
}

/// Outcome of a payout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The payout arrived.
    Paid,
    /// The payout came back.
    Failed,
}

/// The processor's notice of a payout's outcome.
#[derive(Clone, Copy, Debug)]
pub struct Notice<'a> {
    /// The outcome.
    pub outcome: Outcome,
    /// The amount, if the processor tells it.
    pub amount: Option<&'a EventAmount>,
    /// Time of the outcome, by the processor's clock, if it tells.
    pub occurred_at: Option<DateTime<Utc>>,
}

impl From<Outcome> for Notice<'_> {
    /// A notice without further particulars.
    fn from(outcome: Outcome) -> Self {
        Self { outcome, amount: None, occurred_at: None }
    }
}

/// Settles a payout, on the processor's notice: one that is in transit, or one that comes back after it arrived.
/// Then a correcting entry takes the money out of the bank account again.
///
/// Errors: `payout_not_found`.
///
/// Locks: the payout.
pub fn settle(
    conn: &mut PgConnection,
    merchant: MerchantId,
    id: PayoutId,
    notice: Notice<'_>,
    now: DateTime<Utc>,
) -> Result<NoticeEffect, Error> {
    let mut row = PayoutRow::lock(conn, merchant, id)?;
    let amount = row.money()?;
    // By the processor's clock alone: ours tells when we learned of it.
    let is_overtaken = notice.occurred_at.zip(row.decided_at).is_some_and(|(told, known)| told < known);
    let was_made = row.failure_code.as_deref().is_none_or(|code| code == PAYOUT_RETURNED);
    match (row.status.as_str(), notice.outcome) {
        // The notices have overtaken each other: it came back after it arrived, or arrived when it was sent again.
        (FAILED, Outcome::Paid) if was_made && is_overtaken => return Ok(NoticeEffect::AlreadyApplied),
        (PAID, Outcome::Failed) if is_overtaken => return Ok(NoticeEffect::AlreadyApplied),
        (IN_TRANSIT, _) | (PAID, Outcome::Failed) => {}
        (PENDING, _) => return Ok(NoticeEffect::too_early("payout", PENDING)),
        (PAID, Outcome::Paid) | (FAILED, Outcome::Failed) => return Ok(NoticeEffect::AlreadyApplied),
        (other, _) => return Ok(NoticeEffect::contradicts("payout", other)),
    }
    if let Some(effect) = NoticeEffect::of_other_amount(notice.amount, amount) {
        return Ok(effect);
    }
    let (status, event) = match notice.outcome {
        Outcome::Paid => (PAID, EventType::PayoutPaid),
        Outcome::Failed => (FAILED, EventType::PayoutFailed),
    };
    let (debited, credited) = match notice.outcome {
        Outcome::Paid => (AccountKind::PayoutsInTransit, AccountKind::Bank),
        Outcome::Failed if row.status == PAID => (AccountKind::Bank, AccountKind::MerchantPayable),
        Outcome::Failed => (AccountKind::PayoutsInTransit, AccountKind::MerchantPayable),
    };
    let entry = JournalEntry::new(format!("{id}:{status}")).debit(debited, amount).credit(credited, amount);
    // A correction says what it corrects, in a statement of its own.
    let entry = if row.status == PAID {
        let correction = Correction {
            corrects: ledger::find_entry(conn, merchant, &format!("{id}:{PAID}"))?,
            reference: &id.to_string(),
            reason: "The payout came back after it had arrived.",
        };
        ledger::correct(conn, merchant, &entry, &correction)?;
        None
    } else {
        Some(entry)
    };
    row.decided_at = notice.occurred_at;
    match notice.outcome {
        Outcome::Paid => {
            row.status = PAID.to_owned();
            row.settled_at = Some(now);
        }
        Outcome::Failed => row.fail(Failure::new(PAYOUT_RETURNED, "The money came back."), now),
    }
    let (changes, _) = row.told_changes(event)?;
    changes.post(&entry).write(conn)?;
    Ok(NoticeEffect::Applied)
}

problems!(CreateProblems, mutating: InsufficientBalance, PayoutRefused, RequestAbandoned, ProcessorUnavailable);

/// Create a payout
///
/// Sends available balance to the merchant's bank. The payout is `in_transit` until the processor reports
/// that it arrived or failed. Any number of concurrent payouts never overdraw the balance.
///
/// A balance that is left in a currency that ISO 4217 has withdrawn can still be paid out. Without one, the currency is
/// refused with `validation_failed`.
#[utoipa::path(
    operation_id = "payouts.create",
    tag = "Payouts",
    request_body = CreatePayout,
    responses(
        (status = 201, description = "The payout is on its way.", body = Payout,
            headers(("Location" = String, description = "Path of the payout"))),
        CreateProblems
    ),
)]
#[post("/v1/payouts")]
pub async fn create(
    engine: web::Data<Engine>,
    request: IdempotentRequest<CreatePayout>,
) -> Result<HttpResponse, Error> {
    engine.run_external(request).await
}

problems!(GetProblems, reading: PayoutNotFound);

/// Retrieve a payout
///
/// A payout is `pending` until the processor has accepted it.
#[utoipa::path(
    operation_id = "payouts.get",
    tag = "Payouts",
    params(("id" = String, Path, description = "Id of the payout", example = "po_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")),
    responses((status = 200, description = "The payout's current state.", body = Payout), GetProblems),
)]
#[get("/v1/payouts/{id}")]
pub async fn get(
    db: web::Data<Db>,
    merchant: AuthenticatedMerchant,
    id: web::Path<String>,
) -> Result<HttpResponse, Error> {
    let id = id.parse::<PayoutId>().map_err(|_| Error::PayoutNotFound)?;
    let payout = db.run_retrying(move |conn| PayoutRow::find(conn, merchant.0, id)?.into_payout()).await?;
    Ok(HttpResponse::Ok().json(payout))
}

problems!(ListProblems, reading:);

/// List payouts
///
/// Newest first.
#[utoipa::path(
    operation_id = "payouts.list",
    tag = "Payouts",
    responses((status = 200, description = "A page of payouts.", body = List<Payout>), ListProblems),
)]
#[get("/v1/payouts")]
pub async fn list(
    db: web::Data<Db>,
    WithQuery(merchant, query): WithQuery<AuthenticatedMerchant>,
) -> Result<HttpResponse, Error> {
    let page = query.read(Parameters::page::<PayoutId>)?;
    let payouts = db
        .run_retrying(move |conn| {
            let query = payouts::table
                .filter(payouts::merchant_id.eq(merchant.0))
                .select(PayoutRow::as_select())
                .into_boxed();
            load_page!(conn, query, payouts::id, page)?.try_map(PayoutRow::into_payout)
        })
        .await?;
    Ok(HttpResponse::Ok().json(payouts))
}
