//! For load balancers and orchestrators.

use actix_web::{HttpResponse, get, web};
use diesel::RunQueryDsl;
use diesel::dsl::sql;
use diesel::sql_types::Integer;
use serde_json::json;

use crate::db::Db;
use crate::error::Error;

/// Whether the process runs. Asks nothing of the database: a restart wouldn't help that.
#[get("/healthz")]
pub async fn live() -> HttpResponse {
    HttpResponse::Ok().json(json!({"status": "ok"}))
}

/// Whether requests can be served: a connection of the pool answers. 503 otherwise.
#[get("/readyz")]
pub async fn ready(db: web::Data<Db>) -> Result<HttpResponse, Error> {
    db.run(|conn| Ok(diesel::select(sql::<Integer>("1")).get_result::<i32>(conn)?)).await?;
    Ok(HttpResponse::Ok().json(json!({"status": "ready"})))
}
