//! Creating a charge.
//!
//! The claim allocates the charge's id; the processor authorizes and, with `capture`, captures; one
//! transaction then writes the charge, the journal entry, the event and the answer. If we die before the
//! processor is called, nothing has happened; after it, the next attempt calls it again under the same
//! derived key, gets the same outcome, and writes the same charge.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, post, web};
use async_trait::async_trait;
use diesel::PgConnection;
use rust_decimal::Decimal;
use utoipa::ToSchema;

use crate::error::Error;
use crate::fields::{Metadata, TEXT_MAX};
use crate::idempotency::{
    Context, Engine, ExternalOperation, IdempotentRequest, Input, KeptHeader, Operation, Reply, Resource,
};
use crate::ids::ChargeId;
use crate::money::{Currency, Money};
use crate::openapi::problems;
use crate::processor::{Authorization, Decision, PaymentMethod, Processor};

use super::{Charge, ChargeRow, ChargeStatus};

/// Most characters of `reference`.
const REFERENCE_MAX: usize = 255;

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

#[async_trait]
impl ExternalOperation for CreateCharge {
    type Prepared = ();
    type Outcome = Authorization;

    /// There is nothing to reserve: the charge comes into being when the processor has decided.
    const RESERVES: bool = false;

    fn prepare(&self, _conn: &mut PgConnection, _context: &Context<'_>) -> Result<(), Error> {
        Ok(())
    }

    fn resume(&self, _conn: &mut PgConnection, _context: &Context<'_>) -> Result<(), Error> {
        Ok(())
    }

    async fn perform(
        &self,
        processor: &dyn Processor,
        context: &Context<'_>,
        (): &(),
    ) -> Result<Authorization, Error> {
        let call = context.processor_call("authorize");
        let authorization = processor.authorize(&call, self.amount, &self.payment_method).await?;
        if self.capture && authorization.decision == Decision::Approved {
            processor.capture(&context.processor_call("capture"), &authorization.id, self.amount).await?;
        }
        Ok(authorization)
    }

    fn finish(
        &self,
        conn: &mut PgConnection,
        context: &Context<'_>,
        (): &(),
        authorization: &Authorization,
    ) -> Result<Reply, Error> {
        let id = ChargeId(context.resource_id()?);
        let mut row = ChargeRow {
            merchant_id: context.merchant(),
            id,
            status: ChargeStatus::Processing.as_str().to_owned(),
            currency: self.amount.currency().code().to_owned(),
            amount: self.amount.amount(),
            amount_captured: Decimal::ZERO,
            amount_refunded: Decimal::ZERO,
            amount_refund_pending: Decimal::ZERO,
            fee: Decimal::ZERO,
            payment_method: self.payment_method.to_string(),
            capture: self.capture,
            in_flight: None,
            description: self.description.clone(),
            reference: self.reference.clone(),
            metadata: serde_json::to_value(&self.metadata).map_err(Error::internal)?,
            failure_code: None,
            failure_decline_code: None,
            failure_message: None,
            authorization_id: authorization.id.clone(),
            created_at: context.claimed_at(),
            captured_at: None,
            canceled_at: None,
        };
        let event = match authorization.decision {
            Decision::Declined(decline) => {
                let error = row.decline(decline);
                row.insert(conn, "charge.failed")?;
                // Not an `Err`: the failed charge is to be kept, together with this answer.
                return context.problem(&error);
            }
            Decision::Pending => "charge.processing",
            Decision::Approved if self.capture => {
                row.capture(conn, self.amount, context.now())?;
                "charge.succeeded"
            }
            Decision::Approved => {
                row.set_status(ChargeStatus::RequiresCapture);
                "charge.authorized"
            }
        };
        let charge = row.insert(conn, event)?;
        Ok(Reply::json(StatusCode::CREATED, &charge)?
            .header(KeptHeader::Location, format!("/v1/charges/{id}")))
    }
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
        (status = 201, description = "The charge was made. `status` is `succeeded`, `requires_capture` with `capture: false`, or `processing` when the processor will tell later.",
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
