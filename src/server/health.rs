//! Health checks for load balancers and orchestrators.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix_web::{HttpResponse, get, web};
use serde_json::json;

use crate::error::{Error, Failure};
use crate::host::Engine;
use crate::processor::ProcessorError;
use crate::storage::db::Db;
use crate::storage::deadline;
use crate::storage::fitness::Unfit;
use crate::storage::party::{self, Party};

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
    /// Whether the database can be used.
    pub database: Shared<Result<(), Unusable>>,
}

/// Why the database can't be used.
#[derive(Clone, Debug)]
pub enum Unusable {
    /// It doesn't answer, or can't be written. For the log.
    Unavailable(String),
    /// Somebody must put it right.
    Unfit(Unfit),
}

/// Maximum time to find out whether requests can be served. Shorter than the timeouts of the callers
/// (`oncepay health`, and many load balancers), so that they get an answer.
const READINESS_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Reports whether requests can be served: the instance hasn't been told to stop, the database is as this release needs
/// it, answers and can be written, the master key is the database's, and the processor is available. 503 otherwise.
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
        Ok(Ok(())) => {}
        Ok(Err(Unusable::Unfit(unfit))) => return Err(Error::DatabaseUnfit(unfit.to_string())),
        Ok(Err(Unusable::Unavailable(cause))) => {
            return Err(Failure::DatabaseUnavailable(cause.into()).into());
        }
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

/// Asks the database whether it can be used.
async fn ask(db: &Db) -> Result<(), Unusable> {
    deadline::restart(deadline::remaining(READINESS_TIMEOUT));
    // However many strangers there are, whoever balances the load gets an answer.
    party::belongs_to(Party::First);
    let checked = db.check().await;
    match db.unfit() {
        Some(unfit) => Err(Unusable::Unfit(unfit)),
        None => checked.map_err(|failure| Unusable::Unavailable(failure.detailed())),
    }
}
