//! What a merchant has.

use actix_web::{HttpResponse, get, web};

use crate::auth::AuthenticatedMerchant;
use crate::db::Db;
use crate::error::Error;
use crate::ledger::{self, Balance};
use crate::openapi::problems;

problems!(GetProblems, reading:);

/// Retrieve the balance
///
/// What the merchant has in each currency, computed from the ledger's postings. A charge counts from the
/// moment that it was answered.
#[utoipa::path(
    operation_id = "balance.get",
    tag = "Balance",
    responses(
        (status = 200, description = "The balance now.", body = Balance, example = json!({
            "balances": [{"currency": "USD", "available": "118.20", "pending": "40.00", "in_transit": "0.00"}]
        })),
        GetProblems
    ),
)]
#[get("/v1/balance")]
pub async fn get(db: web::Data<Db>, merchant: AuthenticatedMerchant) -> Result<HttpResponse, Error> {
    let balance = db.run_retrying(move |conn| ledger::balances(conn, merchant.0)).await?;
    Ok(HttpResponse::Ok().json(balance))
}
