//! Health checks for load balancers and orchestrators.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix_web::{HttpResponse, get, web};
use diesel::RunQueryDsl;
use diesel::dsl::sql;
use diesel::sql_types::Bool;
use serde_json::json;

use crate::error::{Error, Failure};
use crate::host::Engine;
use crate::processor::ProcessorError;
use crate::storage::db::Db;
use crate::storage::deadline;

use super::sharing::Shared;

/// Reports that the process runs. Doesn't ask the database: a restart wouldn't help it.
#[get("/healthz")]
pub async fn live() -> HttpResponse {
    HttpResponse::Ok().json(json!({"status": "ok"}))
}

/// After the database has been asked whether it's ready, it isn't for this many times as long.
pub const READINESS_REST: u32 = 2;

/// Conditions under which this instance is ready.
#[derive(Debug)]
pub struct Readiness {
    /// True if the instance needs the processor.
    pub needs_processor: bool,
    /// True once it has been told to stop.
    pub is_stopping: AtomicBool,
    /// Whether the database can be written: `Err` is the cause if not.
    pub database: Shared<Result<(), String>>,
}

/// Maximum time to find out whether requests can be served. Shorter than the timeouts of the callers
/// (`oncepay health`, and many load balancers), so that they get an answer.
const READINESS_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Reports whether requests can be served: the instance hasn't been told to stop, the database answers and can be
/// written, the master key is the database's, and the processor is available. 503 otherwise.
#[get("/readyz")]
pub async fn ready(
    db: web::Data<Db>,
    engine: web::Data<Engine>,
    readiness: web::Data<Readiness>,
) -> Result<HttpResponse, Error> {
    if readiness.is_stopping.load(Ordering::Relaxed) {
        return Err(Error::InstanceStopping);
    }
    let asked = readiness.database.get(ask(&db));
    match tokio::time::timeout(READINESS_TIMEOUT, asked).await {
        Ok(answer) => answer.map_err(|cause| Failure::DatabaseUnavailable(cause.into()))?,
        // Others have asked before, and wait themselves.
        Err(late) => return Err(Failure::DatabaseUnavailable(late.into()).into()),
    }
    if !engine.host().vault.is_open() {
        return Err(Failure::SecretUnavailable.into());
    }
    if readiness.needs_processor && !engine.host().processor.is_available() {
        return Err(ProcessorError::Down.into());
    }
    Ok(HttpResponse::Ok().json(json!({"status": "ready"})))
}

/// Asks the database whether it can be written.
async fn ask(db: &Db) -> Result<(), String> {
    deadline::restart(deadline::remaining(READINESS_TIMEOUT));
    let asked = db.run_retrying(|conn| {
        let read_only = diesel::select(sql::<Bool>("current_setting('transaction_read_only')::boolean"));
        if read_only.get_result(conn)? {
            return Err(Failure::DatabaseUnavailable("the database is read-only".into()));
        }
        Ok(())
    });
    asked.await.map_err(|failure: Failure| failure.detailed())
}
