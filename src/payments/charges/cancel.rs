//! Cancellation of an authorized charge.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, post, web};
use async_trait::async_trait;
use diesel::PgConnection;
use utoipa::ToSchema;

use crate::base::ids::ChargeId;
use crate::error::{Error, Hindrance};
use crate::events::EventType;
use crate::host::{self, Caller, Context, Descriptor, Engine, Input, Oncepay};
use crate::idempotency::{Abandoned, Commit, ExternalOperation, IdempotentRequest, Operation, Reply, Target};
use crate::processor::{CallRefusal, or_refusal};
use crate::web::fields::Fields;
use crate::web::problems::problems;

use super::{Charge, ChargeRow, ChargeStatus};

/// Body of a cancellation, which has no fields.
#[derive(Debug, ToSchema)]
#[schema(example = json!({}))]
#[serde(deny_unknown_fields)]
pub struct CancelCharge {
    #[schema(ignore)]
    id: Option<ChargeId>,
}

impl Operation for CancelCharge {
    type Host = Oncepay;

    const DESCRIPTOR: Descriptor =
        Descriptor::new("charges.cancel", "POST", "/v1/charges/{id}/cancel", Caller::Merchant)
            .about(Target::Named(&super::CHARGE, "id"))
            .sharing_transactions()
            .with_optional_body();

    fn read(input: &Input<'_>) -> Result<Self, Error> {
        Fields::read(input.body, |_| Some(Self { id: input.id("id") }))
    }
}

#[async_trait]
impl ExternalOperation for CancelCharge {
    /// The processor's id of the authorization.
    type Reservation = String;
    type Outcome = Result<(), CallRefusal>;

    /// Keeps the charge for this cancellation. Errors, in the order checked: `charge_not_found`,
    /// `charge_not_cancelable`.
    ///
    /// Locks: the charge.
    fn reserve(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<String, Error> {
        let id = self.id.ok_or(Error::ChargeNotFound)?;
        let mut row = ChargeRow::lock(conn, context.merchant(), id)?;
        let status = row.status()?;
        if status != ChargeStatus::RequiresCapture || row.in_flight.is_some() {
            return Err(Error::ChargeNotCancelable { status: status.as_str(), why: row.hindrance() });
        }
        row.in_flight = Some("cancel".to_owned());
        row.reserve(conn)?;
        Ok(row.authorization_id)
    }

    fn resume(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<String, Error> {
        let row = ChargeRow::lock(conn, context.merchant(), ChargeId(context.resource_id()?))?;
        Ok(row.authorization_id)
    }

    async fn call_processor(
        &self,
        context: &Context<'_>,
        authorization_id: &String,
    ) -> Result<Self::Outcome, Error> {
        let call = host::processor_call(context, "void", ChargeId(context.resource_id()?));
        Ok(or_refusal(context.host().processor.void(&call, authorization_id).await)?)
    }

    /// A refusal because nothing is held any more is a success: that is what the client wants. After any other
    /// refusal, answers `charge_not_cancelable`.
    ///
    /// Locks: the charge.
    fn commit(
        &self,
        conn: &mut PgConnection,
        context: &Context<'_>,
        _authorization_id: &String,
        voided: &Self::Outcome,
    ) -> Result<Commit, Error> {
        let mut row = ChargeRow::lock(conn, context.merchant(), ChargeId(context.resource_id()?))?;
        row.in_flight = None;
        match voided {
            Ok(()) => {
                row.canceled_at = Some(context.now());
                row.set_status(ChargeStatus::Canceled);
            }
            Err(refusal) if refusal.is_nothing_held() => row.expire(refusal, context.now()),
            Err(_) => {
                row.reserve(conn)?;
                let status = ChargeStatus::RequiresCapture.as_str();
                let error = Error::ChargeNotCancelable { status, why: Hindrance::Processor };
                return Ok(context.problem(&error)?.into());
            }
        }
        let charge = row.save(conn, EventType::ChargeCanceled)?;
        Ok(Reply::json(StatusCode::OK, &charge)?.into())
    }

    /// Locks: the charge.
    fn abandon(conn: &mut PgConnection, abandoned: &Abandoned) -> Result<(), Error> {
        ChargeRow::end_flight(conn, abandoned.merchant, ChargeId(abandoned.resource_id()?))
    }
}

problems!(CancelProblems, mutating: ChargeNotFound, ChargeNotCancelable, RequestAbandoned, ProcessorUnavailable);

/// Cancel a charge
///
/// Voids an authorization, so that the customer's money is no longer held. Succeeds, too, if the authorization
/// has lapsed at the processor meanwhile; then the charge has the failure `authorization_expired`.
#[utoipa::path(
    operation_id = "charges.cancel",
    tag = "Charges",
    params(("id" = String, Path, description = "Id of the charge", example = "ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")),
    request_body = CancelCharge,
    responses((status = 200, description = "The charge, `canceled`.", body = Charge), CancelProblems),
)]
#[post("/v1/charges/{id}/cancel")]
pub async fn cancel(
    engine: web::Data<Engine>,
    request: IdempotentRequest<CancelCharge>,
) -> Result<HttpResponse, Error> {
    engine.run_external(request).await
}
