//! Capture of an authorized charge: all or part of it, once. The rest is released.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, post, web};
use async_trait::async_trait;
use diesel::PgConnection;
use utoipa::ToSchema;

use crate::base::ids::ChargeId;
use crate::base::money::{Money, PlainAmount};
use crate::error::{Error, Hindrance};
use crate::events::EventType;
use crate::host::{self, Caller, Context, Descriptor, Engine, Input, Oncepay};
use crate::idempotency::{Abandoned, Commit, ExternalOperation, IdempotentRequest, Operation, Reply, Target};
use crate::processor::{CallRefusal, or_refusal};
use crate::web::fields::Fields;
use crate::web::problems::problems;

use super::{Charge, ChargeRow, ChargeStatus};

/// Body of a capture.
#[derive(Debug, ToSchema)]
#[schema(example = json!({"amount": "10.00"}))]
#[serde(deny_unknown_fields)]
pub struct CaptureCharge {
    #[schema(ignore)]
    id: Option<ChargeId>,
    /// Decimal string in the charge's currency, at most the authorized amount. Default: the authorized
    /// amount.
    #[schema(value_type = Option<String>, pattern = r"^[0-9]{1,12}(\.[0-9]{1,4})?$", example = "10.00")]
    amount: Option<PlainAmount>,
}

impl Operation for CaptureCharge {
    type Host = Oncepay;

    const DESCRIPTOR: Descriptor =
        Descriptor::new("charges.capture", "POST", "/v1/charges/{id}/capture", Caller::Merchant)
            .about(Target::Named(&super::CHARGE, "id"))
            .sharing_transactions()
            .with_optional_body();

    fn read(input: &Input<'_>) -> Result<Self, Error> {
        Fields::read(input.body, |fields| Some(Self { id: input.id("id"), amount: fields.optional_amount() }))
    }
}

/// Data that an attempt needs.
pub struct Reservation {
    authorization_id: String,
    amount: Money,
}

impl CaptureCharge {
    /// The amount of `row` to capture.
    fn amount(&self, row: &ChargeRow) -> Result<Money, Error> {
        let amount = match &self.amount {
            None => return row.money(row.amount),
            Some(amount) => amount,
        };
        amount.in_currency(row.currency()?).map_err(|error| Error::field("/amount", error.to_string()))
    }
}

#[async_trait]
impl ExternalOperation for CaptureCharge {
    type Reservation = Reservation;
    type Outcome = Result<(), CallRefusal>;

    /// Keeps the charge for this capture. Errors, in the order checked: `charge_not_found`,
    /// `validation_failed` (decimals), `charge_not_capturable`, `capture_exceeds_authorization`.
    ///
    /// Locks: the charge.
    fn reserve(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Reservation, Error> {
        let id = self.id.ok_or(Error::ChargeNotFound)?;
        let mut row = ChargeRow::lock(conn, context.merchant(), id)?;
        let amount = self.amount(&row)?;
        let status = row.status()?;
        if status != ChargeStatus::RequiresCapture || row.in_flight.is_some() {
            return Err(Error::ChargeNotCapturable { status: status.as_str(), why: row.hindrance() });
        }
        if amount.amount() > row.amount {
            return Err(Error::CaptureExceedsAuthorization { authorized: row.money(row.amount)? });
        }
        row.in_flight = Some("capture".to_owned());
        row.reserve(conn)?;
        Ok(Reservation { authorization_id: row.authorization_id, amount })
    }

    fn resume(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Reservation, Error> {
        let row = ChargeRow::lock(conn, context.merchant(), ChargeId(context.resource_id()?))?;
        let amount = self.amount(&row)?;
        Ok(Reservation { authorization_id: row.authorization_id, amount })
    }

    async fn call_processor(
        &self,
        context: &Context<'_>,
        reservation: &Reservation,
    ) -> Result<Self::Outcome, Error> {
        let call = host::processor_call(context, "capture", ChargeId(context.resource_id()?));
        let processor = &context.host().processor;
        let captured = processor.capture(&call, &reservation.authorization_id, reservation.amount).await;
        Ok(or_refusal(captured)?)
    }

    /// Answers `charge_not_capturable` if the processor refused. If nothing is held there any more, the charge is canceled.
    ///
    /// Locks: the charge.
    fn commit(
        &self,
        conn: &mut PgConnection,
        context: &Context<'_>,
        reservation: &Reservation,
        captured: &Self::Outcome,
    ) -> Result<Commit, Error> {
        let mut row = ChargeRow::lock(conn, context.merchant(), ChargeId(context.resource_id()?))?;
        if let Err(refusal) = captured {
            row.in_flight = None;
            if refusal.is_nothing_held() {
                row.expire(refusal, context.now());
                row.save(conn, EventType::ChargeCanceled)?;
                return Ok(context.problem(&not_capturable(ChargeStatus::Canceled))?.into());
            }
            row.reserve(conn)?;
            return Ok(context.problem(&not_capturable(ChargeStatus::RequiresCapture))?.into());
        }
        let entry = row.capture(conn, reservation.amount, context.now())?;
        let (changes, charge) = row.told_changes(EventType::ChargeCaptured)?;
        changes.post(&entry).write(conn)?;
        Ok(Reply::json(StatusCode::OK, &charge)?.into())
    }

    /// Locks: the charge.
    fn abandon(conn: &mut PgConnection, abandoned: &Abandoned) -> Result<(), Error> {
        ChargeRow::end_flight(conn, abandoned.merchant, ChargeId(abandoned.resource_id()?))
    }
}

fn not_capturable(status: ChargeStatus) -> Error {
    Error::ChargeNotCapturable { status: status.as_str(), why: Hindrance::Processor }
}

problems!(
    CaptureProblems,
    mutating: ChargeNotFound, ChargeNotCapturable, CaptureExceedsAuthorization, RequestAbandoned, ProcessorUnavailable
);

/// Capture a charge
///
/// Captures all or part of the authorized amount, once. The rest is released to the customer. Of two
/// concurrent captures with different keys, or a capture and a cancellation, one succeeds and the other is
/// refused.
///
/// An authorization lapses at the processor some days after it was granted. A capture after that is refused, and
/// the charge becomes `canceled` with the failure `authorization_expired`.
#[utoipa::path(
    operation_id = "charges.capture",
    tag = "Charges",
    params(("id" = String, Path, description = "Id of the charge", example = "ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")),
    request_body = CaptureCharge,
    responses((status = 200, description = "The charge, `succeeded`.", body = Charge), CaptureProblems),
)]
#[post("/v1/charges/{id}/capture")]
pub async fn capture(
    engine: web::Data<Engine>,
    request: IdempotentRequest<CaptureCharge>,
) -> Result<HttpResponse, Error> {
    engine.run_external(request).await
}
