//! Charges: payments from a customer to a merchant.
//!
//! # States
//!
//! | from | to | by |
//! |---|---|---|
//! | – | `succeeded` | creation with `capture`, approved |
//! | – | `requires_capture` | creation without `capture`, approved |
//! | – | `failed` | creation, declined |
//!
//! A CHECK in the database ties each state to the columns that it implies.
//!
//! # Creation
//!
//! Shape: [`ExternalOperation`]. The claim allocates the charge's id; the processor authorizes and, with
//! `capture`, captures; one transaction then writes the charge, the journal entry
//! (`acquirer_clearing` gross to `merchant_payable` net and `fee_revenue` fee), the event and the answer.
//! If we die before the processor is called, nothing has happened; after it, the next attempt calls it
//! again under the same derived key, gets the same outcome, and writes the same charge.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, get, patch, post, web};
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use rust_decimal::Decimal;
use serde::Serialize;
use utoipa::ToSchema;

use crate::auth::AuthenticatedMerchant;
use crate::db::Db;
use crate::error::{Error, FieldError};
use crate::events;
use crate::fields::{METADATA_ENTRIES_MAX, Metadata, Patch, TEXT_MAX};
use crate::idempotency::{
    Context, Engine, ExternalOperation, IdempotentRequest, Input, KeptHeader, LocalOperation, Operation,
    Reply, Resource,
};
use crate::ids::{ChargeId, MerchantId};
use crate::ledger::{self, AccountKind, JournalEntry};
use crate::merchants;
use crate::money::{Currency, Money};
use crate::openapi::problems;
use crate::processor::{Authorization, Decline, PaymentMethod, Processor};
use crate::schema::charges;
use crate::time::Timestamp;

/// Most characters of `reference`.
const REFERENCE_MAX: usize = 255;

/// A payment from a customer to the merchant.
#[derive(Debug, Serialize, ToSchema)]
pub struct Charge {
    /// Time-ordered id.
    #[schema(value_type = String, example = "ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    id: ChargeId,
    /// Always `charge`.
    #[schema(example = "charge")]
    object: &'static str,
    /// Where it stands.
    status: ChargeStatus,
    /// What was authorized, at the currency's scale.
    #[schema(example = "12.50")]
    amount: String,
    /// What was captured of it.
    #[schema(example = "12.50")]
    amount_captured: String,
    /// What was refunded of that.
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
    /// Why it failed, if it did.
    failure: Option<ChargeFailure>,
    /// What the merchant paid for the capture; zero before it.
    #[schema(example = "0.66")]
    fee: String,
    /// When it was first asked for.
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T09:30:00.000Z")]
    created_at: Timestamp,
    /// When it was captured.
    #[schema(value_type = Option<String>, format = DateTime, example = "2026-01-31T09:30:00.120Z")]
    captured_at: Option<Timestamp>,
    /// When its authorization was voided.
    #[schema(value_type = Option<String>, format = DateTime, example = json!(null))]
    canceled_at: Option<Timestamp>,
}

/// Where a charge stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChargeStatus {
    /// Authorized; the money is held until it's captured.
    RequiresCapture,
    /// Captured.
    Succeeded,
    /// Declined.
    Failed,
}

impl ChargeStatus {
    const ALL: [Self; 3] = [Self::RequiresCapture, Self::Succeeded, Self::Failed];

    fn as_str(self) -> &'static str {
        match self {
            Self::RequiresCapture => "requires_capture",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }
}

/// Why a charge failed.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChargeFailure {
    /// `card_declined` or `insufficient_funds`.
    #[schema(example = "card_declined")]
    code: String,
    /// The issuer's reason.
    #[schema(example = "generic_decline")]
    decline_code: String,
    /// The same for people.
    #[schema(example = "The card was declined.")]
    message: String,
}

#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = charges)]
struct ChargeRow {
    merchant_id: MerchantId,
    id: ChargeId,
    status: String,
    currency: String,
    amount: Decimal,
    amount_captured: Decimal,
    amount_refunded: Decimal,
    fee: Decimal,
    payment_method: String,
    description: Option<String>,
    reference: Option<String>,
    metadata: serde_json::Value,
    failure_code: Option<String>,
    failure_decline_code: Option<String>,
    failure_message: Option<String>,
    authorization_id: Option<String>,
    created_at: DateTime<Utc>,
    captured_at: Option<DateTime<Utc>>,
    canceled_at: Option<DateTime<Utc>>,
}

impl ChargeRow {
    fn into_charge(self) -> Result<Charge, Error> {
        let currency: Currency = self.currency.parse().map_err(Error::internal)?;
        let status = ChargeStatus::ALL
            .into_iter()
            .find(|status| status.as_str() == self.status)
            .ok_or_else(|| Error::internal("a stored charge has an unknown status"))?;
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

// ---- Create ----------------------------------------------------------------------------------------

/// Body of a new charge.
#[derive(Debug, ToSchema)]
#[schema(example = json!({
    "amount": "12.50", "currency": "USD", "payment_method": "pm_card_visa",
    "reference": "order-1001", "metadata": {"cart": "7f3a"}
}))]
#[serde(deny_unknown_fields)]
pub struct CreateCharge {
    /// Decimal string with at most as many decimals as the currency has and 12 digits before the point,
    /// greater than zero.
    #[schema(value_type = String, pattern = r"^[0-9]{1,12}(\.[0-9]{1,4})?$", example = "12.50")]
    amount: Money,
    /// ISO 4217 code in upper case.
    #[schema(value_type = String, pattern = "^[A-Z]{3}$", example = "USD")]
    #[expect(dead_code, reason = "amount holds it too; it's here for the schema")]
    currency: Currency,
    /// Token of a payment method.
    #[schema(value_type = String, example = "pm_card_visa")]
    payment_method: PaymentMethod,
    /// Whether to capture at once; otherwise the money is only held.
    #[schema(value_type = Option<bool>, default = true, nullable = false)]
    capture: bool,
    /// Free text.
    #[schema(min_length = 1, max_length = 500)]
    description: Option<String>,
    /// Your own name for the payment.
    #[schema(min_length = 1, max_length = 255)]
    reference: Option<String>,
    /// Up to 50 entries, names up to 40 and values up to 500 characters.
    #[schema(value_type = Option<std::collections::BTreeMap<String, String>>)]
    metadata: Metadata,
}

impl Operation for CreateCharge {
    const NAME: &'static str = "charges.create";

    fn read(input: &mut Input<'_, '_>) -> Option<Self> {
        let fields = &mut *input.fields;
        let amount = fields.money();
        let payment_method = fields.text("payment_method", TEXT_MAX).and_then(|token| {
            token
                .parse()
                .map_err(|error: crate::processor::UnknownPaymentMethod| {
                    fields.error("payment_method", error.to_string());
                })
                .ok()
        });
        let capture = fields.boolean_or("capture", true);
        let description = fields.optional_text("description", TEXT_MAX);
        let reference = fields.optional_text("reference", REFERENCE_MAX);
        let metadata = fields.metadata();
        let amount = amount?;
        Some(Self {
            amount,
            currency: amount.currency(),
            payment_method: payment_method?,
            capture,
            description,
            reference,
            metadata,
        })
    }

    fn resource(&self) -> Resource {
        Resource::New("charge")
    }
}

/// What the processor made of a new charge.
pub enum CreateOutcome {
    /// Authorized and, if so asked, captured.
    Approved {
        /// The processor's name for the authorization.
        authorization_id: String,
    },
    /// Refused for good.
    Declined(Decline),
}

#[async_trait]
impl ExternalOperation for CreateCharge {
    type Outcome = CreateOutcome;

    async fn perform(
        &self,
        processor: &dyn Processor,
        context: &Context<'_>,
    ) -> Result<CreateOutcome, Error> {
        let call = context.processor_call("authorize");
        let authorization = processor.authorize(&call, self.amount, &self.payment_method).await?;
        match authorization {
            Authorization::Declined(decline) => Ok(CreateOutcome::Declined(decline)),
            Authorization::Approved { authorization_id } => {
                if self.capture {
                    let call = context.processor_call("capture");
                    processor.capture(&call, &authorization_id, self.amount).await?;
                }
                Ok(CreateOutcome::Approved { authorization_id })
            }
        }
    }

    fn finish(
        &self,
        conn: &mut PgConnection,
        context: &Context<'_>,
        outcome: &CreateOutcome,
    ) -> Result<Reply, Error> {
        let merchant = context.merchant();
        let id = context
            .resource_id()
            .map(ChargeId)
            .ok_or_else(|| Error::internal("the claim of a new charge has no charge id"))?;
        let mut row = ChargeRow {
            merchant_id: merchant,
            id,
            status: ChargeStatus::RequiresCapture.as_str().to_owned(),
            currency: self.amount.currency().code().to_owned(),
            amount: self.amount.amount(),
            amount_captured: Decimal::ZERO,
            amount_refunded: Decimal::ZERO,
            fee: Decimal::ZERO,
            payment_method: self.payment_method.to_string(),
            description: self.description.clone(),
            reference: self.reference.clone(),
            metadata: serde_json::to_value(&self.metadata).map_err(Error::internal)?,
            failure_code: None,
            failure_decline_code: None,
            failure_message: None,
            authorization_id: None,
            created_at: context.claimed_at(),
            captured_at: None,
            canceled_at: None,
        };
        match outcome {
            CreateOutcome::Declined(decline) => {
                let error = declined(*decline, id);
                row.status = ChargeStatus::Failed.as_str().to_owned();
                row.failure_code = Some(error.code().as_str().to_owned());
                row.failure_decline_code = Some(decline_code(*decline).to_owned());
                row.failure_message = Some(error.to_string());
                insert(conn, row, "charge.failed")?;
                // Not an `Err`: the failed charge is to be kept, together with this answer.
                context.problem(&error)
            }
            CreateOutcome::Approved { authorization_id } => {
                row.authorization_id = Some(authorization_id.clone());
                let mut event = "charge.authorized";
                if self.capture {
                    row.status = ChargeStatus::Succeeded.as_str().to_owned();
                    row.amount_captured = row.amount;
                    row.fee = merchants::pricing(conn, merchant)?.fee(self.amount);
                    row.captured_at = Some(context.now());
                    let entry = capture_entry(id, self.amount, row.fee)?;
                    ledger::post(conn, merchant, &entry)?;
                    event = "charge.succeeded";
                }
                let charge = insert(conn, row, event)?;
                Ok(Reply::json(StatusCode::CREATED, &charge)?
                    .header(KeptHeader::Location, format!("/v1/charges/{id}")))
            }
        }
    }
}

fn declined(decline: Decline, charge_id: ChargeId) -> Error {
    match decline {
        Decline::Generic => Error::CardDeclined { decline_code: decline_code(decline).to_owned(), charge_id },
        Decline::InsufficientFunds => Error::InsufficientFunds { charge_id },
    }
}

fn decline_code(decline: Decline) -> &'static str {
    match decline {
        Decline::Generic => "generic_decline",
        Decline::InsufficientFunds => "insufficient_funds",
    }
}

/// The journal entry of a capture: `acquirer_clearing` gross to `merchant_payable` net and `fee_revenue`
/// fee.
fn capture_entry(id: ChargeId, captured: Money, fee: Decimal) -> Result<JournalEntry, Error> {
    let currency = captured.currency();
    let net = captured
        .amount()
        .checked_sub(fee)
        .ok_or_else(|| Error::internal("the net amount of a capture overflows"))?;
    Ok(JournalEntry::new(format!("{id}:capture"))
        .debit(AccountKind::AcquirerClearing, captured)
        .credit(AccountKind::MerchantPayable, Money::from_stored(net, currency))
        .credit(AccountKind::FeeRevenue, Money::from_stored(fee, currency)))
}

/// Writes a new charge and the event that tells of it.
fn insert(conn: &mut PgConnection, row: ChargeRow, event: &'static str) -> Result<Charge, Error> {
    let merchant = row.merchant_id;
    diesel::insert_into(charges::table).values(&row).execute(conn)?;
    let charge = row.into_charge()?;
    events::record(conn, merchant, event, &charge)?;
    Ok(charge)
}

problems!(CreateProblems, mutating: CardDeclined, InsufficientFunds, ProcessorUnavailable);

/// Create a charge
///
/// Authorizes a payment and, unless `capture` is false, captures it. The charge is made once per
/// `Idempotency-Key`, however often the request is sent: a retry gets the first answer again, byte for
/// byte, with `Idempotent-Replayed: true`. After a 503 send the same request again: it resumes the same
/// charge under the same id. A decline is final for its key.
#[utoipa::path(
    operation_id = "charges.create",
    tag = "Charges",
    request_body = CreateCharge,
    responses(
        (status = 201, description = "The charge was made. `status` is `succeeded`, or `requires_capture` with `capture: false`.",
            body = Charge, headers(("Location" = String, description = "Path of the charge"))),
        CreateProblems
    ),
)]
#[post("/v1/charges")]
pub async fn create(
    engine: web::Data<Engine>,
    request: IdempotentRequest<CreateCharge>,
) -> Result<HttpResponse, Error> {
    engine.run_external(request).await
}

// ---- Read ------------------------------------------------------------------------------------------

problems!(GetProblems, reading: ChargeNotFound);

/// Retrieve a charge
///
/// A charge is visible from the moment that its creation was answered with 201 or 402.
#[utoipa::path(
    operation_id = "charges.get",
    tag = "Charges",
    params(("id" = String, Path, description = "Id of the charge", example = "ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")),
    responses((status = 200, description = "The charge as it is now.", body = Charge), GetProblems),
)]
#[get("/v1/charges/{id}")]
pub async fn get(
    db: web::Data<Db>,
    merchant: AuthenticatedMerchant,
    id: web::Path<String>,
) -> Result<HttpResponse, Error> {
    let id = id.parse::<ChargeId>().map_err(|_| Error::ChargeNotFound)?;
    let charge = db
        .run(move |conn| {
            charges::table
                .find((merchant.0, id))
                .select(ChargeRow::as_select())
                .first(conn)
                .optional()?
                .ok_or(Error::ChargeNotFound)?
                .into_charge()
        })
        .await?;
    Ok(HttpResponse::Ok().json(charge))
}

// ---- Update ----------------------------------------------------------------------------------------

/// A merge patch (RFC 7396): fields that are left out stay, `null` removes.
#[derive(Debug, ToSchema)]
#[schema(example = json!({"description": "Order 1001, gift", "metadata": {"cart": null, "gift": "yes"}}))]
#[serde(deny_unknown_fields)]
pub struct UpdateCharge {
    #[schema(ignore)]
    id: Option<ChargeId>,
    /// New text, or `null`.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 500)]
    description: Patch<String>,
    /// Entries to set, or to remove with `null`; `null` instead of the object removes all.
    #[schema(value_type = Option<std::collections::BTreeMap<String, Option<String>>>)]
    metadata: Patch<std::collections::BTreeMap<String, Option<String>>>,
}

impl Operation for UpdateCharge {
    const NAME: &'static str = "charges.update";

    fn read(input: &mut Input<'_, '_>) -> Option<Self> {
        Some(Self {
            // What is no id of a charge can't be found; that answer is given, and kept, later.
            id: input.segment(2).parse().ok(),
            description: input.fields.patch_text("description", TEXT_MAX),
            metadata: input.fields.patch_metadata(),
        })
    }

    fn resource(&self) -> Resource {
        self.id.map_or(Resource::None, |id| Resource::Existing("charge", id.0))
    }
}

impl LocalOperation for UpdateCharge {
    /// Locks the charge.
    fn execute(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Reply, Error> {
        let id = self.id.ok_or(Error::ChargeNotFound)?;
        let mut row = charges::table
            .find((context.merchant(), id))
            .select(ChargeRow::as_select())
            .for_update()
            .first(conn)
            .optional()?
            .ok_or(Error::ChargeNotFound)?;

        match &self.description {
            Patch::Keep => {}
            Patch::Remove => row.description = None,
            Patch::Set(text) => row.description = Some(text.clone()),
        }
        let mut metadata: Metadata = serde_json::from_value(row.metadata).map_err(Error::internal)?;
        match &self.metadata {
            Patch::Keep => {}
            Patch::Remove => metadata.clear(),
            Patch::Set(entries) => {
                for (name, value) in entries {
                    match value {
                        Some(value) => metadata.insert(name.clone(), value.clone()),
                        None => metadata.remove(name),
                    };
                }
            }
        }
        if metadata.len() > METADATA_ENTRIES_MAX {
            return Err(Error::ValidationFailed(vec![FieldError {
                pointer: "/metadata".to_owned(),
                detail: format!("would have more than {METADATA_ENTRIES_MAX} entries"),
            }]));
        }
        row.metadata = serde_json::to_value(&metadata).map_err(Error::internal)?;

        diesel::update(charges::table.find((context.merchant(), id)))
            .set((charges::description.eq(&row.description), charges::metadata.eq(&row.metadata)))
            .execute(conn)?;
        let charge = row.into_charge()?;
        events::record(conn, context.merchant(), "charge.updated", &charge)?;
        Reply::json(StatusCode::OK, &charge)
    }
}

problems!(UpdateProblems, mutating: ChargeNotFound);

/// Update a charge
///
/// Changes what the merchant may change of a charge, as a JSON merge patch (RFC 7396). Amounts, currency
/// and payment method never change.
#[utoipa::path(
    operation_id = "charges.update",
    tag = "Charges",
    params(("id" = String, Path, description = "Id of the charge", example = "ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")),
    request_body(content(
        (UpdateCharge = "application/json"),
        (UpdateCharge = "application/merge-patch+json"),
    )),
    responses((status = 200, description = "The charge after the change.", body = Charge), UpdateProblems),
)]
#[patch("/v1/charges/{id}")]
pub async fn update(
    engine: web::Data<Engine>,
    request: IdempotentRequest<UpdateCharge>,
) -> Result<HttpResponse, Error> {
    engine.run_local(request).await
}
