//! What operators do beside managing merchants.

use actix_web::{HttpResponse, get, web};

use crate::audit::{self, AuditReport};
use crate::error::Error;
use crate::host::Engine;
use crate::storage::db::Db;
use crate::web::auth::AuthenticatedOperator;
use crate::web::problems::problems;

problems!(AuditProblems, operating:);

/// Audit the books
///
/// Checks, on one snapshot, that everything that must agree does: ledger, charges, refunds, payouts, keys and
/// events of all merchants. Reads everything, so it takes its time on a large database; the command
/// `oncepay audit` does the same without the bounds of a request.
#[utoipa::path(
    operation_id = "operator.audit",
    tag = "Operators",
    responses((status = 200, description = "What was found; `clean` tells whether that is nothing.", body = AuditReport), AuditProblems),
)]
#[get("/v1/operator/audit")]
pub async fn audit_books(
    engine: web::Data<Engine>,
    db: web::Data<Db>,
    _operator: AuthenticatedOperator,
) -> Result<HttpResponse, Error> {
    let report = db.run_retrying(move |conn| audit::run(conn, &engine.host().resource_kinds())).await?;
    Ok(HttpResponse::Ok().json(report))
}
