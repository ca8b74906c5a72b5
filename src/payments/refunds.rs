//! Refunds: money returned to the customer, in one part or several per charge.
//!
//! | from | to | by |
//! |---|---|---|
//! | – | `pending` | the claim, which reserves the amount in the charge and holds it in the ledger |
//! | `pending` | `succeeded` | the processor's success |
//! | `pending` | `failed` | the processor's final refusal, or an operator who ends the request |
//! | `succeeded` | `failed` | its return, on the processor's notice ([`fail`]) |
//!
//! A client never sees `pending` in an answer to its request, since the answer waits for the success; a list
//! shows it. The journal entry debits `merchant_payable` and credits `acquirer_clearing`. If a refund comes
//! back, the opposite entry reverses it, and the amount can be refunded again. The charge's fee isn't
//! returned.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, get, post, web};
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use crate::base::ids::{ChargeId, MerchantId, RefundId};
use crate::base::money::{Currency, Money, PlainAmount};
use crate::base::time::Timestamp;
use crate::error::Error;
use crate::events::EventType;
use crate::host::{self, Caller, Context, Descriptor, Engine, Input, Oncepay};
use crate::idempotency::{
    Abandoned, Commit, ExternalOperation, IdempotentRequest, KeptHeader, Operation, Reply, ResourceKind,
    Target,
};
use crate::ledger::{AccountKind, JournalEntry};
use crate::payments::changes::{Changes, Row};
use crate::payments::charges::{ChargeRow, ChargeStatus};
use crate::payments::disputes;
use crate::payments::failure::{ABANDONED, Failure, REFUND_REFUSED, REFUND_RETURNED};
use crate::payments::notice::NoticeEffect;
use crate::processor::{CallRefusal, EventAmount, or_refusal};
use crate::storage::db::Db;
use crate::storage::schema::{charges, refunds};
use crate::web::auth::AuthenticatedMerchant;
use crate::web::fields::{Fields, Metadata, TEXT_MAX};
use crate::web::lists::{List, load_page};
use crate::web::problems::problems;
use crate::web::query::WithQuery;
use crate::web::texts::Texts;

/// Refunds, as a resource kind.
pub static REFUND: ResourceKind =
    ResourceKind::new("refund", RefundId::PREFIX, "refunds", "/v1/refunds/{id}");

/// The processor is being asked.
const PENDING: &str = "pending";
/// It was made.
const SUCCEEDED: &str = "succeeded";
/// It was made and came back, or was never made.
const FAILED: &str = "failed";
/// Where a refund can stand, in the database and in the API.
pub(crate) const STATUSES: [&str; 3] = [PENDING, SUCCEEDED, FAILED];

/// Money returned to the customer.
#[derive(Debug, Serialize, ToSchema)]
pub struct Refund {
    /// Time-ordered id.
    #[schema(value_type = String, example = "re_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    id: RefundId,
    /// Always `refund`.
    #[schema(example = "refund")]
    object: &'static str,
    /// Id of the refunded charge.
    #[schema(value_type = String, example = "ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    charge_id: ChargeId,
    /// `pending` until the processor has made the refund, then `succeeded`; `failed` if the processor refused it or the
    /// money came back.
    #[schema(example = "succeeded")]
    status: String,
    /// Amount, at the currency's scale.
    #[schema(example = "5.00")]
    amount: String,
    /// ISO 4217 code, that of the charge.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
    /// Free text.
    #[schema(example = "Returned item")]
    reason: Option<String>,
    /// Free-form entries.
    #[schema(value_type = std::collections::BTreeMap<String, String>, example = json!({}))]
    metadata: Metadata,
    /// Time of the first request for the refund.
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T09:30:00.000Z")]
    created_at: Timestamp,
    /// Time at which the refund was refused or the money came back.
    #[schema(value_type = Option<String>, format = DateTime, example = json!(null))]
    failed_at: Option<Timestamp>,
    /// Reason of the failure, if the refund failed.
    #[schema(example = json!(null))]
    failure: Option<Failure>,
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = refunds)]
struct RefundRow {
    id: RefundId,
    charge_id: ChargeId,
    status: String,
    amount: Decimal,
    currency: String,
    reason: Option<String>,
    metadata: serde_json::Value,
    created_at: DateTime<Utc>,
    failed_at: Option<DateTime<Utc>>,
    failure_code: Option<String>,
    failure_message: Option<String>,
}

impl RefundRow {
    fn find(conn: &mut PgConnection, merchant: MerchantId, id: RefundId) -> Result<Self, Error> {
        refunds::table
            .find((merchant, id))
            .select(Self::as_select())
            .first(conn)
            .optional()?
            .ok_or(Error::RefundNotFound)
    }

    /// Reads a refund and its charge, and locks both until the transaction ends. Errors: `refund_not_found`.
    fn lock_with_charge(
        conn: &mut PgConnection,
        merchant: MerchantId,
        id: RefundId,
    ) -> Result<(Self, ChargeRow), Error> {
        let is_its_charge =
            charges::merchant_id.eq(refunds::merchant_id).and(charges::id.eq(refunds::charge_id));
        refunds::table
            .inner_join(charges::table.on(is_its_charge))
            .filter(refunds::merchant_id.eq(merchant).and(refunds::id.eq(id)))
            .select((Self::as_select(), ChargeRow::as_select()))
            .for_update()
            .first(conn)
            .optional()?
            .ok_or(Error::RefundNotFound)
    }

    /// Adds the state and its event to `changes`. Also returns the refund.
    fn told(self, changes: Changes, event: EventType) -> Result<(Changes, Refund), Error> {
        let id = self.id.0;
        let columns = json!({
            "id": id,
            "status": self.status,
            "failed_at": self.failed_at,
            "failure_code": self.failure_code,
            "failure_message": self.failure_message,
        });
        let refund = self.into_refund()?;
        Ok((changes.row(Row::Refund, columns).event(event, id, &refund)?, refund))
    }

    /// Marks the refund as failed.
    fn fail(&mut self, failure: Failure, now: DateTime<Utc>) {
        FAILED.clone_into(&mut self.status);
        self.failed_at = Some(now);
        self.failure_code = Some(failure.code);
        self.failure_message = Some(failure.message);
    }

    fn into_refund(self) -> Result<Refund, Error> {
        let currency = Currency::stored(&self.currency).map_err(Error::internal)?;
        Ok(Refund {
            id: self.id,
            object: "refund",
            charge_id: self.charge_id,
            status: self.status,
            amount: currency.format(self.amount),
            currency,
            reason: self.reason,
            metadata: serde_json::from_value(self.metadata).map_err(Error::internal)?,
            created_at: Timestamp(self.created_at),
            failed_at: self.failed_at.map(Timestamp),
            failure: Failure::from_columns(self.failure_code, self.failure_message),
        })
    }
}

/// Body of a new refund.
#[derive(Debug, ToSchema)]
#[schema(example = json!({"charge_id": "ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b", "amount": "5.00"}))]
#[serde(deny_unknown_fields)]
pub struct CreateRefund {
    /// Id of the charge to refund.
    #[schema(value_type = String, min_length = 1, max_length = 500)]
    charge_id: Option<ChargeId>,
    /// Decimal string in the charge's currency. Default: the whole remaining amount.
    #[schema(value_type = Option<String>, pattern = r"^[0-9]{1,12}(\.[0-9]{1,4})?$", example = "5.00")]
    amount: Option<PlainAmount>,
    /// Free text, without control characters other than tabs and line breaks.
    #[schema(min_length = 1, max_length = 500)]
    reason: Option<String>,
    /// Up to 50 entries, names up to 40 and values up to 500 characters.
    #[schema(value_type = Option<std::collections::BTreeMap<String, String>>)]
    metadata: Metadata,
}

impl Operation for CreateRefund {
    type Host = Oncepay;

    const DESCRIPTOR: Descriptor = Descriptor::new("refunds.create", "POST", "/v1/refunds", Caller::Merchant)
        .about(Target::New(&REFUND))
        .sharing_transactions();

    fn read(input: &Input<'_>) -> Result<Self, Error> {
        Fields::read(input.body, |fields| {
            let charge_id = fields.id("charge_id");
            let amount = fields.optional_amount();
            let reason = fields.optional_text("reason", TEXT_MAX);
            let metadata = fields.metadata();
            Some(Self { charge_id: charge_id?, amount, reason, metadata })
        })
    }
}

/// Data that an attempt needs.
pub struct Reservation {
    authorization_id: String,
    amount: Money,
}

#[async_trait]
impl ExternalOperation for CreateRefund {
    type Reservation = Reservation;
    type Outcome = Result<(), CallRefusal>;

    /// Reserves the amount in the charge and holds it in the ledger, so that neither other refunds nor
    /// payouts can use it during the processor call.
    ///
    /// Errors, in the order checked: `validation_failed` (texts), `charge_not_found`, `charge_not_refundable`,
    /// `validation_failed` (decimals), `refund_exceeds_captured`, `insufficient_balance`.
    ///
    /// Locks: the charge, the merchant's `merchant_payable` account.
    fn reserve(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Reservation, Error> {
        Texts::default().lines("/reason", self.reason.as_deref()).check()?;
        let merchant = context.merchant();
        let charge_id = self.charge_id.ok_or(Error::ChargeNotFound)?;
        let mut charge = ChargeRow::lock(conn, merchant, charge_id)?;
        let status = charge.status()?;
        let left = match status {
            ChargeStatus::Succeeded | ChargeStatus::PartiallyRefunded => Some(charge.refundable()),
            // What a lost dispute hasn't taken, such as a refund that came back, can be returned.
            ChargeStatus::Disputed if !disputes::is_any_open(conn, merchant, charge_id)? => {
                let left = charge.refundable() - disputes::taken(conn, merchant, charge_id)?;
                Some(left).filter(|left| *left > Decimal::ZERO)
            }
            _ => None,
        };
        let left = charge.money(left.ok_or(Error::ChargeNotRefundable { status: status.as_str() })?)?;
        let amount = match &self.amount {
            None => left,
            Some(amount) => amount
                .in_currency(left.currency())
                .map_err(|error| Error::field("/amount", error.to_string()))?,
        };
        if amount.amount() > left.amount() || amount.amount().is_zero() {
            return Err(Error::RefundExceedsCaptured { left });
        }

        let id = RefundId(context.resource_id()?);
        charge.amount_refund_pending += amount.amount();
        let refund = json!({
            "id": id.0,
            "charge_id": charge_id.0,
            "status": PENDING,
            "amount": amount.amount(),
            "currency": amount.currency(),
            "reason": self.reason,
            "metadata": self.metadata,
            "created_at": context.claimed_at(),
        });
        charge.changes().hold(&id.to_string(), amount).row(Row::NewRefund, refund).write(conn)?;
        Ok(Reservation { authorization_id: charge.authorization_id, amount })
    }

    fn resume(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Reservation, Error> {
        let row = RefundRow::find(conn, context.merchant(), RefundId(context.resource_id()?))?;
        let charge = ChargeRow::lock(conn, context.merchant(), row.charge_id)?;
        let amount = charge.money(row.amount)?;
        Ok(Reservation { authorization_id: charge.authorization_id, amount })
    }

    async fn call_processor(
        &self,
        context: &Context<'_>,
        reservation: &Reservation,
    ) -> Result<Self::Outcome, Error> {
        let call = host::processor_call(context, "refund", RefundId(context.resource_id()?));
        let processor = &context.host().processor;
        let made = processor.refund(&call, &reservation.authorization_id, reservation.amount).await;
        Ok(or_refusal(made)?)
    }

    /// Answers `refund_refused` if the processor refused.
    ///
    /// Locks: the charge, the merchant's `merchant_payable` account.
    fn commit(
        &self,
        conn: &mut PgConnection,
        context: &Context<'_>,
        reservation: &Reservation,
        made: &Self::Outcome,
    ) -> Result<Commit, Error> {
        let (merchant, id) = (context.merchant(), RefundId(context.resource_id()?));
        if let Err(refusal) = made {
            let error = Error::RefundRefused { refund_id: id, refusal_code: refusal.code.clone() };
            let failure = Failure::new(REFUND_REFUSED, error.to_string());
            undo(conn, merchant, id, failure, context.now())?;
            return Ok(context.problem(&error)?.into());
        }
        let (mut row, mut charge) = RefundRow::lock_with_charge(conn, merchant, id)?;
        let entry = JournalEntry::new(id.to_string())
            .debit(AccountKind::MerchantPayable, reservation.amount)
            .credit(AccountKind::AcquirerClearing, reservation.amount);
        charge.amount_refund_pending -= row.amount;
        charge.amount_refunded += row.amount;
        // A dispute that was opened in the meantime stays open.
        if charge.status()? != ChargeStatus::Disputed {
            charge.set_captured_status();
        }
        row.status = SUCCEEDED.to_owned();
        let (changes, _) = charge.told_changes(EventType::ChargeRefunded)?;
        let (changes, refund) = row.told(changes.post(&entry), EventType::RefundSucceeded)?;
        changes.write(conn)?;
        Ok(Reply::json(StatusCode::CREATED, &refund)?
            .header(KeptHeader::Location, format!("/v1/refunds/{id}"))
            .into())
    }

    /// Locks: the charge.
    fn abandon(conn: &mut PgConnection, abandoned: &Abandoned) -> Result<(), Error> {
        let id = RefundId(abandoned.resource_id()?);
        let failure = Failure::new(ABANDONED, Error::RequestAbandoned.to_string());
        undo(conn, abandoned.merchant, id, failure, abandoned.now)
    }
}

/// Ends a pending refund that was never made: releases its amount in the charge and in the ledger.
///
/// Locks: the charge.
fn undo(
    conn: &mut PgConnection,
    merchant: MerchantId,
    id: RefundId,
    failure: Failure,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    let (mut row, mut charge) = RefundRow::lock_with_charge(conn, merchant, id)?;
    charge.amount_refund_pending -= row.amount;
    row.fail(failure, now);
    let changes = charge.changes().release(&id.to_string());
    let (changes, _) = row.told(changes, EventType::RefundFailed)?;
    changes.write(conn)
}

/// Reverses a refund that came back, on the processor's notice.
///
/// Errors: `refund_not_found`.
///
/// Locks: the refund, the charge.
pub fn fail(
    conn: &mut PgConnection,
    merchant: MerchantId,
    id: RefundId,
    amount: Option<&EventAmount>,
    now: DateTime<Utc>,
) -> Result<NoticeEffect, Error> {
    let (mut row, mut charge) = RefundRow::lock_with_charge(conn, merchant, id)?;
    match row.status.as_str() {
        SUCCEEDED => {}
        PENDING => return Ok(NoticeEffect::too_early("refund", PENDING)),
        _ => return Ok(NoticeEffect::AlreadyApplied),
    }
    let told = amount;
    let amount = charge.money(row.amount)?;
    if let Some(effect) = NoticeEffect::of_other_amount(told, amount) {
        return Ok(effect);
    }
    let entry = JournalEntry::new(format!("{id}:failed"))
        .debit(AccountKind::AcquirerClearing, amount)
        .credit(AccountKind::MerchantPayable, amount);
    charge.amount_refunded -= row.amount;
    if charge.status()? != ChargeStatus::Disputed {
        charge.set_captured_status();
    }
    row.fail(Failure::new(REFUND_RETURNED, "The money came back."), now);
    let (changes, _) = charge.told_changes(EventType::ChargeRefundFailed)?;
    let (changes, _) = row.told(changes.post(&entry), EventType::RefundFailed)?;
    changes.write(conn)?;
    Ok(NoticeEffect::Applied)
}

problems!(
    CreateProblems,
    mutating: ChargeNotFound, ChargeNotRefundable, RefundExceedsCaptured, InsufficientBalance, RefundRefused,
    RequestAbandoned, ProcessorUnavailable
);

/// Create a refund
///
/// Returns part of a charge, or its whole remaining amount, to the customer. A charge can have many refunds;
/// any number of concurrent ones never exceed the captured amount together. The money comes from the
/// merchant's available balance. The charge's fee isn't returned.
#[utoipa::path(
    operation_id = "refunds.create",
    tag = "Refunds",
    request_body = CreateRefund,
    responses(
        (status = 201, description = "The refund was created.", body = Refund,
            headers(("Location" = String, description = "Path of the refund"))),
        CreateProblems
    ),
)]
#[post("/v1/refunds")]
pub async fn create(
    engine: web::Data<Engine>,
    request: IdempotentRequest<CreateRefund>,
) -> Result<HttpResponse, Error> {
    engine.run_external(request).await
}

problems!(GetProblems, reading: RefundNotFound);

/// Retrieve a refund
///
/// A refund is `pending` until the processor has made it.
#[utoipa::path(
    operation_id = "refunds.get",
    tag = "Refunds",
    params(("id" = String, Path, description = "Id of the refund", example = "re_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")),
    responses((status = 200, description = "The refund's current state.", body = Refund), GetProblems),
)]
#[get("/v1/refunds/{id}")]
pub async fn get(
    db: web::Data<Db>,
    merchant: AuthenticatedMerchant,
    id: web::Path<String>,
) -> Result<HttpResponse, Error> {
    let id = id.parse::<RefundId>().map_err(|_| Error::RefundNotFound)?;
    let refund = db.run_retrying(move |conn| RefundRow::find(conn, merchant.0, id)?.into_refund()).await?;
    Ok(HttpResponse::Ok().json(refund))
}

problems!(ListProblems, reading:);

/// List refunds
///
/// Newest first. Lists the refunds of all charges, or of one.
#[utoipa::path(
    operation_id = "refunds.list",
    tag = "Refunds",
    params(("charge_id" = Option<String>, Query, pattern = "^ch_[0-9a-f]{32}$", description = "Only refunds of this charge")),
    responses((status = 200, description = "A page of refunds.", body = List<Refund>), ListProblems),
)]
#[get("/v1/refunds")]
pub async fn list(
    db: web::Data<Db>,
    WithQuery(merchant, query): WithQuery<AuthenticatedMerchant>,
) -> Result<HttpResponse, Error> {
    let (page, charge_id) = query.read(|parameters| {
        let page = parameters.page::<RefundId>();
        (page, parameters.optional::<ChargeId>("charge_id", "must be an id of a charge"))
    })?;
    let refunds = db
        .run_retrying(move |conn| {
            let mut query = refunds::table
                .filter(refunds::merchant_id.eq(merchant.0))
                .select(RefundRow::as_select())
                .into_boxed();
            if let Some(charge_id) = charge_id {
                query = query.filter(refunds::charge_id.eq(charge_id));
            }
            load_page!(conn, query, refunds::id, page)?.try_map(RefundRow::into_refund)
        })
        .await?;
    Ok(HttpResponse::Ok().json(refunds))
}
