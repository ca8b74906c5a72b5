//! Retrieval and lists of charges.

use actix_web::{HttpResponse, get, web};
use diesel::prelude::*;

use crate::base::ids::ChargeId;
use crate::base::money::Currency;
use crate::error::Error;
use crate::storage::db::Db;
use crate::storage::schema::charges;
use crate::web::auth::AuthenticatedMerchant;
use crate::web::lists::{List, load_page};
use crate::web::problems::problems;
use crate::web::query::WithQuery;

use super::{Charge, ChargeRow, ChargeStatus};

problems!(GetProblems, reading: ChargeNotFound);

/// Retrieve a charge
///
/// A charge is visible from the moment that its creation is answered with 201 or 402.
#[utoipa::path(
    operation_id = "charges.get",
    tag = "Charges",
    params(("id" = String, Path, description = "Id of the charge", example = "ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")),
    responses((status = 200, description = "The charge's current state.", body = Charge), GetProblems),
)]
#[get("/v1/charges/{id}")]
pub async fn get(
    db: web::Data<Db>,
    merchant: AuthenticatedMerchant,
    id: web::Path<String>,
) -> Result<HttpResponse, Error> {
    let id = id.parse::<ChargeId>().map_err(|_| Error::ChargeNotFound)?;
    let charge = db
        .run_retrying(move |conn| {
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

problems!(ListProblems, reading:);

/// List charges
///
/// Newest first. Filters combine. A cursor is the id of a charge next to the page, so pages don't shift when
/// charges are added. A charge's id and `created_at` are of the time of its request, and it's listed once that
/// request is answered: so it can appear behind charges that you know. To learn of every charge, poll
/// `GET /v1/events?after=`.
#[utoipa::path(
    operation_id = "charges.list",
    tag = "Charges",
    params(
        ("status" = Option<ChargeStatus>, Query, description = "Only charges in this state"),
        ("currency" = Option<String>, Query, description = "Only charges in this currency", example = "USD"),
        ("reference" = Option<String>, Query, min_length = 1, max_length = 255, description = "Only charges with this reference"),
        ("created_after" = Option<String>, Query, format = DateTime, description = "Only charges created after this time (RFC 3339), exclusive: a charge with exactly this `created_at` isn't listed"),
        ("created_before" = Option<String>, Query, format = DateTime, description = "Only charges created before this time (RFC 3339), exclusive: a charge with exactly this `created_at` isn't listed"),
    ),
    responses((status = 200, description = "A page of charges.", body = List<Charge>), ListProblems),
)]
#[get("/v1/charges")]
pub async fn list(
    db: web::Data<Db>,
    WithQuery(merchant, query): WithQuery<AuthenticatedMerchant>,
) -> Result<HttpResponse, Error> {
    let (page, status, currency, reference, created) = query.read(|parameters| {
        (
            parameters.page::<ChargeId>(),
            parameters.optional::<ChargeStatus>("status", "must be a status of charges"),
            parameters.optional::<Currency>("currency", "must be an ISO 4217 currency code in upper case"),
            parameters.optional_text("reference"),
            parameters.created(),
        )
    })?;
    let charges = db
        .run_retrying(move |conn| {
            let mut query = charges::table
                .filter(charges::merchant_id.eq(merchant.0))
                .select(ChargeRow::as_select())
                .into_boxed();
            if let Some(status) = status {
                query = query.filter(charges::status.eq(status.as_str()));
            }
            if let Some(currency) = &currency {
                query = query.filter(charges::currency.eq(currency.code()));
            }
            if let Some(reference) = &reference {
                query = query.filter(charges::reference.eq(reference));
            }
            if let Some(from) = created.from {
                query = query.filter(charges::id.ge(from));
            }
            if let Some(to) = created.to {
                query = query.filter(charges::id.lt(to));
            }
            load_page!(conn, query, charges::id, page)?.try_map(ChargeRow::into_charge)
        })
        .await?;
    Ok(HttpResponse::Ok().json(charges))
}
