//! For load balancers and orchestrators.

use actix_web::{HttpResponse, route, web};
use diesel::RunQueryDsl;
use diesel::dsl::sql;
use diesel::sql_types::Bool;
use serde_json::json;

use crate::db::Db;
use crate::error::Error;

/// Whether the process runs. Asks nothing of the database: a restart wouldn't help that.
#[route("/healthz", method = "GET", method = "HEAD")]
pub async fn live() -> HttpResponse {
    HttpResponse::Ok().json(json!({"status": "ok"}))
}

/// Whether requests can be served: the database answers and can be written. 503 otherwise.
#[route("/readyz", method = "GET", method = "HEAD")]
pub async fn ready(db: web::Data<Db>) -> Result<HttpResponse, Error> {
    db.run_retrying(|conn| {
        let read_only = diesel::select(sql::<Bool>("current_setting('transaction_read_only')::boolean"));
        if read_only.get_result(conn)? {
            return Err(Error::DatabaseUnavailable("the database is read-only".into()));
        }
        Ok(())
    })
    .await?;
    Ok(HttpResponse::Ok().json(json!({"status": "ready"})))
}
