//! Disputes: charges that a customer contests with the issuer.
//!
//! | from | to | journal entry | charge |
//! |---|---|---|---|
//! | – | `open` | `merchant_payable` to `disputes_held` | becomes `disputed` |
//! | `open` | `won` | `disputes_held` to `merchant_payable` | returns to its earlier status |
//! | `open` | `lost` | `disputes_held` to `acquirer_clearing` | stays `disputed` |
//!
//! The processor's notices open and close disputes. A dispute takes the money whether or not the balance
//! covers it: it's the only way in which a merchant comes to owe us.

use actix_web::{HttpRequest, HttpResponse, get, web};
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use rust_decimal::Decimal;
use serde::Serialize;
use utoipa::ToSchema;

use crate::base::ids::{ChargeId, DisputeId, MerchantId};
use crate::base::money::{Currency, Money};
use crate::base::time::Timestamp;
use crate::error::Error;
use crate::events::{self, EventType};
use crate::ledger::{self, AccountKind, JournalEntry};
use crate::payments::charges::{ChargeRow, ChargeStatus};
use crate::payments::notice::NoticeEffect;
use crate::storage::db::Db;
use crate::storage::schema::disputes;
use crate::web::auth::AuthenticatedMerchant;
use crate::web::lists::{List, Parameters, load_page};
use crate::web::problems::problems;

/// It isn't decided.
const OPEN: &str = "open";
/// The merchant has its money again.
const WON: &str = "won";
/// The customer has it.
const LOST: &str = "lost";
/// Where a dispute can stand, in the database and in the API.
pub(crate) const STATUSES: [&str; 3] = [OPEN, WON, LOST];

/// A contested charge.
#[derive(Debug, Serialize, ToSchema)]
pub struct Dispute {
    /// Time-ordered id.
    #[schema(value_type = String, example = "dp_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    id: DisputeId,
    /// Always `dispute`.
    #[schema(example = "dispute")]
    object: &'static str,
    /// Id of the contested charge.
    #[schema(value_type = String, example = "ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    charge_id: ChargeId,
    /// `open`, then `won` or `lost` from the merchant's point of view.
    #[schema(example = "open")]
    status: String,
    /// Contested amount, at the currency's scale.
    #[schema(example = "12.50")]
    amount: String,
    /// ISO 4217 code.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
    /// The customer's reason.
    #[schema(example = "fraudulent")]
    reason: Option<String>,
    /// Time at which the dispute was opened.
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T09:30:00.000Z")]
    created_at: Timestamp,
    /// Time at which the dispute was won or lost.
    #[schema(value_type = Option<String>, format = DateTime, example = json!(null))]
    closed_at: Option<Timestamp>,
}

#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = disputes)]
struct DisputeRow {
    merchant_id: MerchantId,
    id: DisputeId,
    charge_id: ChargeId,
    status: String,
    amount: Decimal,
    currency: String,
    reason: Option<String>,
    created_at: DateTime<Utc>,
    closed_at: Option<DateTime<Utc>>,
    acquirer_id: Option<String>,
}

impl DisputeRow {
    fn find(conn: &mut PgConnection, merchant: MerchantId, id: DisputeId) -> Result<Self, Error> {
        disputes::table
            .find((merchant, id))
            .select(Self::as_select())
            .first(conn)
            .optional()?
            .ok_or(Error::DisputeNotFound)
    }

    /// Finds the dispute with the processor's id `acquirer_id`.
    fn known_as(
        conn: &mut PgConnection,
        merchant: MerchantId,
        acquirer_id: &str,
    ) -> Result<Option<Self>, Error> {
        Ok(disputes::table
            .filter(disputes::merchant_id.eq(merchant))
            .filter(disputes::acquirer_id.eq(acquirer_id))
            .select(Self::as_select())
            .first(conn)
            .optional()?)
    }

    fn record(self, conn: &mut PgConnection, event: EventType) -> Result<Dispute, Error> {
        let (merchant, id) = (self.merchant_id, self.id);
        let dispute = self.into_dispute()?;
        events::record(conn, merchant, event, id.0, &dispute)?;
        Ok(dispute)
    }

    fn into_dispute(self) -> Result<Dispute, Error> {
        let currency = Currency::stored(&self.currency).map_err(Error::internal)?;
        Ok(Dispute {
            id: self.id,
            object: "dispute",
            charge_id: self.charge_id,
            status: self.status,
            amount: currency.format(self.amount),
            currency,
            reason: self.reason,
            created_at: Timestamp(self.created_at),
            closed_at: self.closed_at.map(Timestamp),
        })
    }
}

/// Opens the dispute with the processor's id `acquirer_id`, over all of a charge that is captured and not
/// refunded.
///
/// Errors: `charge_not_found`.
///
/// Locks: the charge, the merchant's `merchant_payable` account.
pub fn open(
    conn: &mut PgConnection,
    merchant: MerchantId,
    charge_id: ChargeId,
    acquirer_id: &str,
    reason: Option<String>,
    now: DateTime<Utc>,
) -> Result<NoticeEffect, Error> {
    let mut charge = ChargeRow::lock(conn, merchant, charge_id)?;
    match DisputeRow::known_as(conn, merchant, acquirer_id)? {
        None => {}
        Some(known) if known.charge_id == charge_id => return Ok(NoticeEffect::AlreadyApplied),
        Some(known) => {
            return Ok(NoticeEffect::Contradicts(format!("The dispute is of charge {}.", known.charge_id)));
        }
    }
    let status = charge.status()?;
    let amount = charge.money(charge.refundable())?;
    match status {
        ChargeStatus::Succeeded | ChargeStatus::PartiallyRefunded if !amount.amount().is_zero() => {}
        ChargeStatus::Processing
        | ChargeStatus::RequiresCapture
        | ChargeStatus::Succeeded
        | ChargeStatus::PartiallyRefunded
        | ChargeStatus::Refunded => return Ok(NoticeEffect::too_early("charge", status.as_str())),
        // The end of the other dispute may be on its way.
        ChargeStatus::Disputed if is_any_open(conn, merchant, charge_id)? => {
            return Ok(NoticeEffect::too_early("charge", status.as_str()));
        }
        ChargeStatus::Failed | ChargeStatus::Canceled | ChargeStatus::Disputed => {
            return Ok(NoticeEffect::contradicts("charge", status.as_str()));
        }
    }
    let id = DisputeId::at(now);
    let entry = JournalEntry::new(id.to_string())
        .debit(AccountKind::MerchantPayable, amount)
        .credit(AccountKind::DisputesHeld, amount);
    ledger::post(conn, merchant, &entry)?;
    charge.set_status(ChargeStatus::Disputed);
    charge.save(conn, EventType::ChargeDisputed)?;
    let row = DisputeRow {
        merchant_id: merchant,
        id,
        charge_id,
        status: OPEN.to_owned(),
        amount: amount.amount(),
        currency: amount.currency().code().to_owned(),
        reason,
        created_at: now,
        closed_at: None,
        acquirer_id: Some(acquirer_id.to_owned()),
    };
    diesel::insert_into(disputes::table).values(&row).execute(conn)?;
    row.record(conn, EventType::DisputeOpened)?;
    Ok(NoticeEffect::Applied)
}

/// Whether a charge has an open dispute.
fn is_any_open(conn: &mut PgConnection, merchant: MerchantId, charge_id: ChargeId) -> Result<bool, Error> {
    let open = disputes::table
        .filter(disputes::merchant_id.eq(merchant))
        .filter(disputes::charge_id.eq(charge_id))
        .filter(disputes::status.eq(OPEN));
    Ok(diesel::select(diesel::dsl::exists(open)).get_result(conn)?)
}

/// Outcome of a dispute for the merchant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The money goes back to the merchant.
    Won,
    /// The money goes to the customer.
    Lost,
}

/// Closes the charge's dispute with the processor's id `acquirer_id`.
///
/// Errors: `charge_not_found`.
///
/// Locks: the charge. Every change of its disputes locks the charge first.
pub fn close(
    conn: &mut PgConnection,
    merchant: MerchantId,
    charge_id: ChargeId,
    acquirer_id: &str,
    verdict: Verdict,
    now: DateTime<Utc>,
) -> Result<NoticeEffect, Error> {
    let (status, event, credited) = match verdict {
        Verdict::Won => (WON, EventType::DisputeWon, AccountKind::MerchantPayable),
        Verdict::Lost => (LOST, EventType::DisputeLost, AccountKind::AcquirerClearing),
    };
    let mut charge = ChargeRow::lock(conn, merchant, charge_id)?;
    let Some(mut row) = DisputeRow::known_as(conn, merchant, acquirer_id)? else {
        return Ok(NoticeEffect::TooEarly("The dispute hasn't been opened.".to_owned()));
    };
    if row.charge_id != charge_id {
        return Ok(NoticeEffect::Contradicts(format!("The dispute is of charge {}.", row.charge_id)));
    }
    match row.status.as_str() {
        OPEN => {}
        known if known == status => return Ok(NoticeEffect::AlreadyApplied),
        other => return Ok(NoticeEffect::contradicts("dispute", other)),
    }
    let id = row.id;
    let amount = Money::from_stored(row.amount, Currency::stored(&row.currency).map_err(Error::internal)?);
    let entry = JournalEntry::new(format!("{id}:{status}"))
        .debit(AccountKind::DisputesHeld, amount)
        .credit(credited, amount);
    ledger::post(conn, merchant, &entry)?;
    if verdict == Verdict::Won {
        charge.set_captured_status();
        charge.save(conn, EventType::ChargeDisputeWon)?;
    }
    row.status = status.to_owned();
    row.closed_at = Some(now);
    diesel::update(disputes::table.find((merchant, id)))
        .set((disputes::status.eq(&row.status), disputes::closed_at.eq(row.closed_at)))
        .execute(conn)?;
    row.record(conn, event)?;
    Ok(NoticeEffect::Applied)
}

problems!(GetProblems, reading: DisputeNotFound);

/// Retrieve a dispute
///
/// The processor's notices open and close disputes.
#[utoipa::path(
    operation_id = "disputes.get",
    tag = "Disputes",
    params(("id" = String, Path, description = "Id of the dispute", example = "dp_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")),
    responses((status = 200, description = "The dispute's current state.", body = Dispute), GetProblems),
)]
#[get("/v1/disputes/{id}")]
pub async fn get(
    db: web::Data<Db>,
    merchant: AuthenticatedMerchant,
    id: web::Path<String>,
) -> Result<HttpResponse, Error> {
    let id = id.parse::<DisputeId>().map_err(|_| Error::DisputeNotFound)?;
    let dispute = db.run_retrying(move |conn| DisputeRow::find(conn, merchant.0, id)?.into_dispute()).await?;
    Ok(HttpResponse::Ok().json(dispute))
}

problems!(ListProblems, listing:);

/// List disputes
///
/// Newest first. Lists the disputes of all charges, or of one.
#[utoipa::path(
    operation_id = "disputes.list",
    tag = "Disputes",
    params(("charge_id" = Option<String>, Query, description = "Only disputes of this charge")),
    responses((status = 200, description = "A page of disputes.", body = List<Dispute>), ListProblems),
)]
#[get("/v1/disputes")]
pub async fn list(
    db: web::Data<Db>,
    merchant: AuthenticatedMerchant,
    request: HttpRequest,
) -> Result<HttpResponse, Error> {
    let (page, charge_id) = Parameters::read(request.query_string(), |parameters| {
        let page = parameters.page::<DisputeId>();
        (page, parameters.optional::<ChargeId>("charge_id", "must be an id of a charge"))
    })?;
    let disputes = db
        .run_retrying(move |conn| {
            let mut query = disputes::table
                .filter(disputes::merchant_id.eq(merchant.0))
                .select(DisputeRow::as_select())
                .into_boxed();
            if let Some(charge_id) = charge_id {
                query = query.filter(disputes::charge_id.eq(charge_id));
            }
            load_page!(conn, query, disputes::id, page)?.try_map(DisputeRow::into_dispute)
        })
        .await?;
    Ok(HttpResponse::Ok().json(disputes))
}
