//! The audit, for operators.

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
/// Checks on one snapshot that the ledger, charges, refunds, payouts, keys and events of all merchants agree.
/// An audit reads everything, so it takes a while on a large database. The command `oncepay audit` does the
/// same without the time limits of a request.
#[utoipa::path(
    operation_id = "operator.audit",
    tag = "Operators",
    responses((status = 200, description = "The findings. `clean` tells whether there are none.", body = AuditReport), AuditProblems),
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
