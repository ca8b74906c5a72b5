//! Canceling an authorized charge.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, post, web};
use async_trait::async_trait;
use diesel::PgConnection;
use utoipa::ToSchema;

use crate::base::ids::ChargeId;
use crate::error::Error;
use crate::events::EventType;
use crate::idempotency::{
    Context, Engine, ExternalOperation, Finished, IdempotentRequest, Input, Operation, Reply, Resource,
};
use crate::processor::Processor;
use crate::web::problems::problems;

use super::{Charge, ChargeRow, ChargeStatus};

/// Nothing to say.
#[derive(Debug, ToSchema)]
#[schema(example = json!({}))]
#[serde(deny_unknown_fields)]
pub struct CancelCharge {
    #[schema(ignore)]
    id: Option<ChargeId>,
}

impl Operation for CancelCharge {
    const NAME: &'static str = "charges.cancel";
    const BODY_OPTIONAL: bool = true;

    fn read(input: &mut Input<'_, '_>) -> Option<Self> {
        Some(Self { id: input.segment(2).parse().ok() })
    }

    fn resource(&self) -> Resource {
        Resource::named("charge", self.id.map(|id| id.0))
    }
}

#[async_trait]
impl ExternalOperation for CancelCharge {
    /// Name of the authorization.
    type Prepared = String;
    type Outcome = ();

    /// Keeps the charge for this cancellation. Errors, in the order checked: `charge_not_found`,
    /// `charge_not_cancelable`.
    ///
    /// Locks: the charge.
    fn prepare(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<String, Error> {
        let id = self.id.ok_or(Error::ChargeNotFound)?;
        let mut row = ChargeRow::lock(conn, context.merchant(), id)?;
        let status = row.status()?;
        if status != ChargeStatus::RequiresCapture || row.in_flight.is_some() {
            return Err(Error::ChargeNotCancelable {
                status: status.as_str(),
                in_flight: row.in_flight.is_some(),
            });
        }
        row.in_flight = Some("cancel".to_owned());
        row.reserve(conn)?;
        Ok(row.authorization_id)
    }

    fn resume(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<String, Error> {
        let row = ChargeRow::lock(conn, context.merchant(), ChargeId(context.resource_id()?))?;
        Ok(row.authorization_id)
    }

    async fn perform(
        &self,
        processor: &dyn Processor,
        context: &Context<'_>,
        authorization_id: &String,
    ) -> Result<(), Error> {
        let call = context.processor_call("void", ChargeId(context.resource_id()?));
        Ok(processor.void(&call, authorization_id).await?)
    }

    /// Locks: the charge.
    fn finish(
        &self,
        conn: &mut PgConnection,
        context: &Context<'_>,
        _authorization_id: &String,
        (): &(),
    ) -> Result<Finished, Error> {
        let mut row = ChargeRow::lock(conn, context.merchant(), ChargeId(context.resource_id()?))?;
        row.in_flight = None;
        row.canceled_at = Some(context.now());
        row.set_status(ChargeStatus::Canceled);
        let charge = row.save(conn, EventType::ChargeCanceled)?;
        Ok(Reply::json(StatusCode::OK, &charge)?.into())
    }
}

problems!(CancelProblems, mutating: ChargeNotFound, ChargeNotCancelable, ProcessorUnavailable, OutcomeUnknown);

/// Cancel a charge
///
/// Gives an authorization up, so that the customer's money is no longer held.
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
