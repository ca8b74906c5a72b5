//! Disputes: charges that a customer contests with the issuer.
//!
//! | from | to | journal entry | charge |
//! |---|---|---|---|
//! | – | `open` | `merchant_payable` to `disputes_held` | becomes `disputed` |
//! | `open` | `won` | `disputes_held` to `merchant_payable` | returns to its earlier status |
//! | `open` | `lost` | `disputes_held` to `acquirer_clearing` | stays `disputed` |
//! | `won` | `lost` | `merchant_payable` to `disputes_held` to `acquirer_clearing`, a correction | becomes `disputed` |
//! | `lost` | `won` | `acquirer_clearing` to `merchant_payable`, a correction | returns to its earlier status |
//!
//! The processor's notices open and close disputes. A dispute takes the money whether or not the balance
//! covers it: it's the only way in which a merchant comes to owe us. So does one on a charge that was refunded.

use actix_web::{HttpResponse, get, web};
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
use crate::ledger::{self, AccountKind, Correction, JournalEntry};
use crate::payments::charges::{ChargeRow, ChargeStatus};
use crate::payments::notice::NoticeEffect;
use crate::processor::EventAmount;
use crate::storage::db::Db;
use crate::storage::schema::disputes;
use crate::web::auth::AuthenticatedMerchant;
use crate::web::lists::{List, load_page};
use crate::web::problems::problems;
use crate::web::query::WithQuery;

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
    decided_at: Option<DateTime<Utc>>,
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

    /// Writes the state.
    fn save(&self, conn: &mut PgConnection) -> Result<(), Error> {
        diesel::update(disputes::table.find((self.merchant_id, self.id)))
            .set((
                disputes::status.eq(&self.status),
                disputes::closed_at.eq(self.closed_at),
                disputes::decided_at.eq(self.decided_at),
            ))
            .execute(conn)?;
        Ok(())
    }

    /// Posts the journal entry of a decision: the first, or one that corrects the last.
    fn book(&self, conn: &mut PgConnection, decision: Decision<'_>) -> Result<(), Error> {
        let (merchant, id) = (self.merchant_id, self.id);
        let amount =
            Money::from_stored(self.amount, Currency::stored(&self.currency).map_err(Error::internal)?);
        let entry = |source: String, debited, credited| {
            JournalEntry::new(source).debit(debited, amount).credit(credited, amount)
        };
        let (status, credited) = match decision.verdict {
            Verdict::Won => (WON, AccountKind::MerchantPayable),
            Verdict::Lost => (LOST, AccountKind::AcquirerClearing),
        };
        if self.status == OPEN {
            let first = entry(format!("{id}:{status}"), AccountKind::DisputesHeld, credited);
            return ledger::post(conn, merchant, &first);
        }
        // Each decision after the first has a number.
        let source = |status: &str, number: u32| match number {
            1 => format!("{id}:{status}"),
            number => format!("{id}:{status}:{number}"),
        };
        let mut decisions = Vec::new();
        for number in 1.. {
            let found = [
                ledger::find_entry(conn, merchant, &source(WON, number))?,
                ledger::find_entry(conn, merchant, &source(LOST, number))?,
            ];
            match found.into_iter().flatten().next() {
                Some(found) => decisions.push(found),
                None => break,
            }
        }
        let correction = Correction {
            corrects: decisions.last().copied(),
            reference: decision.dispute,
            reason: "The dispute was decided the other way.",
        };
        let number = u32::try_from(decisions.len() + 1).map_err(Error::internal)?;
        match decision.verdict {
            Verdict::Won => {
                let entry =
                    entry(source(WON, number), AccountKind::AcquirerClearing, AccountKind::MerchantPayable);
                ledger::correct(conn, merchant, &entry, &correction)?;
            }
            Verdict::Lost => {
                // By way of the held money: only so can a merchant come to owe us.
                ledger::correct(
                    conn,
                    merchant,
                    &held(format!("{id}:reopened:{number}"), amount),
                    &correction,
                )?;
                let entry =
                    entry(source(LOST, number), AccountKind::DisputesHeld, AccountKind::AcquirerClearing);
                ledger::correct(conn, merchant, &entry, &correction)?;
            }
        }
        Ok(())
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

/// A dispute as the processor opens it.
#[derive(Clone, Debug)]
pub struct Opening<'a> {
    /// The processor's id of the dispute.
    pub dispute: &'a str,
    /// The contested amount. `None`: what is captured and not refunded, or, if that is nothing, all that was captured.
    pub amount: Option<&'a EventAmount>,
    /// The customer's reason.
    pub reason: Option<String>,
}

/// Opens a dispute over all or a part of a captured charge, refunded or not: the bank takes the money all the same.
/// A charge can have several at a time, if the processor tells their amounts.
///
/// Errors: `charge_not_found`.
///
/// Locks: the charge, the merchant's `merchant_payable` account.
pub fn open(
    conn: &mut PgConnection,
    merchant: MerchantId,
    charge_id: ChargeId,
    opening: Opening<'_>,
    now: DateTime<Utc>,
) -> Result<NoticeEffect, Error> {
    let mut charge = ChargeRow::lock(conn, merchant, charge_id)?;
    match DisputeRow::known_as(conn, merchant, opening.dispute)? {
        None => {}
        Some(known) if known.charge_id == charge_id => return Ok(NoticeEffect::AlreadyApplied),
        Some(known) => {
            return Ok(NoticeEffect::Contradicts(format!("The dispute is of charge {}.", known.charge_id)));
        }
    }
    let status = charge.status()?;
    let tells_amount = opening.amount.is_some_and(|amount| amount.amount.is_some());
    match status {
        ChargeStatus::Processing | ChargeStatus::RequiresCapture => {
            return Ok(NoticeEffect::too_early("charge", status.as_str()));
        }
        ChargeStatus::Failed | ChargeStatus::Canceled => {
            return Ok(NoticeEffect::contradicts("charge", status.as_str()));
        }
        // Of what amount? The end of the other dispute may be on its way.
        ChargeStatus::Disputed if !tells_amount && is_any_open(conn, merchant, charge_id)? => {
            return Ok(NoticeEffect::too_early("charge", status.as_str()));
        }
        _ => {}
    }
    if !tells_amount && !charge.amount_refund_pending.is_zero() {
        // How much is left depends on the refund.
        return Ok(NoticeEffect::TooEarly("A refund of the charge is under way.".to_owned()));
    }
    let taken = taken(conn, merchant, charge_id)?;
    let contestable = charge.money(charge.amount_captured - taken)?;
    let left = (charge.refundable() - taken).max(Decimal::ZERO);
    let rest = if left.is_zero() { contestable } else { charge.money(left)? };
    let amount = match opening.amount.map(|amount| amount.of(rest)) {
        None => rest,
        Some(Ok(amount)) => amount,
        Some(Err(sentence)) => return Ok(NoticeEffect::Contradicts(sentence)),
    };
    if amount.amount() > contestable.amount() || amount.amount().is_zero() {
        let sentence = format!("Only {contestable} of the charge isn't contested already.");
        return Ok(NoticeEffect::Contradicts(sentence));
    }
    let id = DisputeId::at(now);
    charge.set_status(ChargeStatus::Disputed);
    let (changes, _) = charge.told_changes(EventType::ChargeDisputed)?;
    changes.post(&held(id.to_string(), amount)).write(conn)?;
    let row = DisputeRow {
        merchant_id: merchant,
        id,
        charge_id,
        status: OPEN.to_owned(),
        amount: amount.amount(),
        currency: amount.currency().code().to_owned(),
        reason: opening.reason,
        created_at: now,
        closed_at: None,
        acquirer_id: Some(opening.dispute.to_owned()),
        decided_at: None,
    };
    diesel::insert_into(disputes::table).values(&row).execute(conn)?;
    row.record(conn, EventType::DisputeOpened)?;
    Ok(NoticeEffect::Applied)
}

/// The entry that takes the contested amount from the merchant.
fn held(source: String, amount: Money) -> JournalEntry {
    JournalEntry::new(source)
        .debit(AccountKind::MerchantPayable, amount)
        .credit(AccountKind::DisputesHeld, amount)
}

/// The amount of a charge that open and lost disputes have taken. Call it with the charge locked.
pub(crate) fn taken(
    conn: &mut PgConnection,
    merchant: MerchantId,
    charge_id: ChargeId,
) -> Result<Decimal, Error> {
    let taken = disputes::table
        .filter(disputes::merchant_id.eq(merchant))
        .filter(disputes::charge_id.eq(charge_id))
        .filter(disputes::status.ne(WON))
        .select(diesel::dsl::sum(disputes::amount))
        .first::<Option<Decimal>>(conn)?;
    Ok(taken.unwrap_or_default())
}

/// Whether a charge has an open dispute.
pub(crate) fn is_any_open(
    conn: &mut PgConnection,
    merchant: MerchantId,
    charge_id: ChargeId,
) -> Result<bool, Error> {
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

/// The decision on a dispute.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'a> {
    /// The processor's id of the dispute.
    pub dispute: &'a str,
    /// The outcome.
    pub verdict: Verdict,
    /// Time of the decision, by the processor's clock, if it tells.
    pub decided_at: Option<DateTime<Utc>>,
}

/// Closes a dispute of the charge. A later decision the other way, as networks make them, is booked by a correcting
/// entry that names the entry of the first.
///
/// Errors: `charge_not_found`.
///
/// Locks: the charge. Every change of its disputes locks the charge first. If a won dispute is lost after all, the
/// merchant's `merchant_payable` account.
pub fn close(
    conn: &mut PgConnection,
    merchant: MerchantId,
    charge_id: ChargeId,
    decision: Decision<'_>,
    now: DateTime<Utc>,
) -> Result<NoticeEffect, Error> {
    let mut charge = ChargeRow::lock(conn, merchant, charge_id)?;
    let Some(mut row) = DisputeRow::known_as(conn, merchant, decision.dispute)? else {
        return Ok(NoticeEffect::TooEarly("The dispute hasn't been opened.".to_owned()));
    };
    if row.charge_id != charge_id {
        return Ok(NoticeEffect::Contradicts(format!("The dispute is of charge {}.", row.charge_id)));
    }
    let (status, event) = match decision.verdict {
        Verdict::Won => (WON, EventType::DisputeWon),
        Verdict::Lost => (LOST, EventType::DisputeLost),
    };
    if row.status == status {
        // The latest word for it counts, should an older one the other way still come.
        row.decided_at = row.decided_at.max(decision.decided_at);
        row.save(conn)?;
        return Ok(NoticeEffect::AlreadyApplied);
    }
    let known = row.decided_at.or(row.closed_at);
    if known.zip(decision.decided_at).is_some_and(|(known, told)| told < known) {
        // It was decided the other way since.
        return Ok(NoticeEffect::AlreadyApplied);
    }
    if row.status == WON && taken(conn, merchant, charge_id)? + row.amount > charge.amount_captured {
        return Ok(NoticeEffect::Contradicts("Other disputes have taken the rest of the charge.".to_owned()));
    }
    row.book(conn, decision)?;
    row.status = status.to_owned();
    row.closed_at = Some(now);
    row.decided_at = decision.decided_at;
    row.save(conn)?;
    // Other disputes may be open, or lost.
    if taken(conn, merchant, charge_id)?.is_zero() {
        charge.set_captured_status();
        charge.save(conn, EventType::ChargeDisputeWon)?;
    } else if charge.status()? != ChargeStatus::Disputed {
        charge.set_status(ChargeStatus::Disputed);
        charge.save(conn, EventType::ChargeDisputed)?;
    }
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

problems!(ListProblems, reading:);

/// List disputes
///
/// Newest first. Lists the disputes of all charges, or of one.
#[utoipa::path(
    operation_id = "disputes.list",
    tag = "Disputes",
    params(("charge_id" = Option<String>, Query, pattern = "^ch_[0-9a-f]{32}$", description = "Only disputes of this charge")),
    responses((status = 200, description = "A page of disputes.", body = List<Dispute>), ListProblems),
)]
#[get("/v1/disputes")]
pub async fn list(
    db: web::Data<Db>,
    WithQuery(merchant, query): WithQuery<AuthenticatedMerchant>,
) -> Result<HttpResponse, Error> {
    let (page, charge_id) = query.read(|parameters| {
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
