//! The page `/docs`: Swagger UI, with a start of our own.
//!
//! Swagger UI fills a field with the example of its parameter, so each try would send the same `Idempotency-Key`:
//! the mistake against which the service protects. `api_docs.js` gives each try a key of its own, and adds a button
//! that sends the same request again.

use actix_web::{HttpResponse, get};
use utoipa_swagger_ui::{Config, SwaggerUi};

/// The page and its parts. Register [`script`] first: it takes the place of the start that comes with Swagger UI.
pub fn page() -> SwaggerUi {
    SwaggerUi::new("/docs/{_:.*}").config(Config::from("/openapi.json"))
}

/// The script that starts the page.
#[get("/docs/swagger-initializer.js")]
pub async fn script() -> HttpResponse {
    HttpResponse::Ok().content_type("text/javascript; charset=utf-8").body(include_str!("api_docs.js"))
}
