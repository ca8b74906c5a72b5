//! The pages of the API reference: Swagger UI, with a start of our own.
//!
//! Swagger UI fills a field with the example of its parameter, so each try would send the same `Idempotency-Key`:
//! the mistake against which the service protects. `docs.js` gives each try a key of its own, and adds a button that
//! sends the same request again.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use actix_web::{HttpRequest, HttpResponse, get, web};
use utoipa_swagger_ui::Config;

use crate::error::Error;

use crate::web::files::File;

/// Shows the reference and the files that belong to it. Needs no key.
#[get("/docs/{file:.*}")]
pub async fn show(request: HttpRequest, name: web::Path<String>) -> Result<HttpResponse, Error> {
    file(&name)?.answer(&request).await
}

/// Returns a file, which is unpacked only once.
fn file(name: &str) -> Result<Arc<File>, Error> {
    static CONFIG: LazyLock<Arc<Config<'static>>> = LazyLock::new(|| Arc::new(Config::from("/openapi.json")));
    // Only names of files get in.
    static FILES: RwLock<BTreeMap<String, Arc<File>>> = RwLock::new(BTreeMap::new());
    if let Some(file) = FILES.read().unwrap_or_else(PoisonError::into_inner).get(name) {
        return Ok(Arc::clone(file));
    }
    let file = match name {
        "swagger-initializer.js" => File::new("text/javascript; charset=utf-8", include_str!("docs.js")),
        _ => {
            let unpacked = utoipa_swagger_ui::serve(name, Arc::clone(&CONFIG))
                .map_err(|error| Error::internal(error.to_string()))?
                .ok_or(Error::RouteNotFound)?;
            File::new(unpacked.content_type, unpacked.bytes.into_owned())
        }
    };
    let file = Arc::new(file);
    FILES.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), Arc::clone(&file));
    Ok(file)
}
