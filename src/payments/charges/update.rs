//! Updates of a charge's mutable fields. They involve only our own database.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, patch, web};
use diesel::PgConnection;
use utoipa::ToSchema;

use crate::base::ids::ChargeId;
use crate::error::Error;
use crate::events::EventType;
use crate::host::{Caller, Context, Descriptor, Engine, Input, Oncepay};
use crate::idempotency::{IdempotentRequest, LocalOperation, Operation, Reply, Target};
use crate::web::fields::{Fields, METADATA_ENTRIES_MAX, Metadata, Patch, TEXT_MAX};
use crate::web::problems::problems;
use crate::web::texts::Texts;

use super::{Charge, ChargeRow};

/// A merge patch (RFC 7396): omitted fields stay, and `null` removes.
#[derive(Debug, ToSchema)]
#[schema(example = json!({"description": "Order 1001, gift", "metadata": {"cart": null, "gift": "yes"}}))]
#[serde(deny_unknown_fields)]
pub struct UpdateCharge {
    #[schema(ignore)]
    id: Option<ChargeId>,
    /// New text, or `null` to remove it.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 500)]
    description: Patch<String>,
    /// Entries to set, or to remove with `null`. `null` instead of the object removes all entries.
    #[schema(value_type = Option<std::collections::BTreeMap<String, Option<String>>>)]
    metadata: Patch<std::collections::BTreeMap<String, Option<String>>>,
}

impl Operation for UpdateCharge {
    type Host = Oncepay;

    const DESCRIPTOR: Descriptor =
        Descriptor::new("charges.update", "PATCH", "/v1/charges/{id}", Caller::Merchant)
            .about(Target::Named(&super::CHARGE, "id"))
            .sharing_transactions();

    fn read(input: &Input<'_>) -> Result<Self, Error> {
        Fields::read(input.body, |fields| {
            Some(Self {
                // An id that no charge can have finds none. That answer is given, and stored, later.
                id: input.id("id"),
                description: fields.patch_text("description", TEXT_MAX),
                metadata: fields.patch_metadata(),
            })
        })
    }
}

impl LocalOperation for UpdateCharge {
    /// Locks: the charge.
    fn execute(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Reply, Error> {
        if let Patch::Set(text) = &self.description {
            Texts::default().lines("/description", Some(text)).check()?;
        }
        let id = self.id.ok_or(Error::ChargeNotFound)?;
        let mut row = ChargeRow::lock(conn, context.merchant(), id)?;

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
            return Err(Error::MetadataTooLarge { entries_max: METADATA_ENTRIES_MAX });
        }
        row.metadata = serde_json::to_value(&metadata).map_err(Error::internal)?;

        let charge = row.save(conn, EventType::ChargeUpdated)?;
        Ok(Reply::json(StatusCode::OK, &charge)?)
    }
}

problems!(UpdateProblems, mutating: ChargeNotFound, MetadataTooLarge);

/// Update a charge
///
/// Updates the mutable fields of a charge with a JSON merge patch (RFC 7396). Amounts, currency and payment
/// method never change.
#[utoipa::path(
    operation_id = "charges.update",
    tag = "Charges",
    params(("id" = String, Path, description = "Id of the charge", example = "ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")),
    request_body(content(
        (UpdateCharge = "application/json"),
        (UpdateCharge = "application/merge-patch+json"),
    )),
    responses((status = 200, description = "The updated charge.", body = Charge), UpdateProblems),
)]
#[patch("/v1/charges/{id}")]
pub async fn update(
    engine: web::Data<Engine>,
    request: IdempotentRequest<UpdateCharge>,
) -> Result<HttpResponse, Error> {
    engine.run_local(request).await
}
