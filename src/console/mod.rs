//! The console: what somebody opens when a customer says "I was charged twice".
//!
//! Pages are made on the server and can be read without JavaScript; with it, htmx replaces parts of a page. They are read from the
//! tables, in one connection a page, and show at most a few hundred rows each. What a page *does* (retry a key, replay an
//! event) goes through the API like anybody's request, with an idempotency key that the form was made with: to press a
//! button twice does it once.
//!
//! A [session](mod@session) is a merchant's or an operator's. Merchants see what is theirs; what isn't is answered as if it weren't
//! there.
//!
//! What the database doesn't keep, replays and refusals, is shown from the memory of the instance that gave them: see
//! [`Live`].

mod attention;
mod balances;
mod charge;
mod charges;
mod chart;
mod entry;
mod keys;
mod live;
mod page;
mod runbook;
mod seen;
mod session;
mod state;
mod storm;
mod timeline;
mod view;

use std::sync::LazyLock;

use actix_web::{HttpRequest, HttpResponse, get, web};

use crate::error::Error;
use crate::web::files::File;

pub use seen::{Live, Seen};
pub use state::Console;

/// Maximum size of a form: the largest body that is compared, and what encoding adds.
const FORM_BYTES_MAX: usize = 256 * 1024;

/// Registers the pages.
pub fn routes(config: &mut web::ServiceConfig) {
    let refused = |detail: String| actix_web::Error::from(Error::field("", detail));
    config
        .app_data(
            web::FormConfig::default()
                .limit(FORM_BYTES_MAX)
                .error_handler(move |error, _| refused(error.to_string())),
        )
        .app_data(web::QueryConfig::default().error_handler(move |error, _| refused(error.to_string())))
        .service(asset)
        .service(entry::enter)
        .service(entry::sign_in)
        .service(entry::sign_out)
        .service(runbook::show)
        .service(attention::of_all)
        .service(attention::act)
        .service(live::of_all)
        .service(charges::list_merchants)
        .service(charges::list)
        .service(charge::show)
        .service(keys::inspect)
        .service(keys::compare)
        .service(balances::show)
        .service(attention::of_merchant)
        .service(live::of_merchant)
        .service(storm::begin)
        .service(storm::send)
        .service(not_found);
}

/// Everything that is no page: an answer for people, not a problem document.
#[get("/console/{rest:.*}")]
async fn not_found(request: HttpRequest) -> HttpResponse {
    page::failure(&request, &Error::RouteNotFound)
}

/// The style, and htmx. They change with the binary only, so a browser asks each time and is told that nothing has.
#[get("/console/assets/{name}")]
async fn asset(request: HttpRequest, name: web::Path<String>) -> Result<HttpResponse, Error> {
    static FILES: LazyLock<[(&str, std::sync::Arc<File>); 2]> = LazyLock::new(|| {
        let file = |kind: &str, text: &'static str| {
            std::sync::Arc::new(File::new(format!("{kind}; charset=utf-8"), text))
        };
        [
            ("console.css", file("text/css", include_str!("assets/console.css"))),
            ("htmx.min.js", file("text/javascript", include_str!("assets/htmx.min.js"))),
        ]
    });
    let (_, file) = FILES.iter().find(|(known, _)| *known == name.as_str()).ok_or(Error::RouteNotFound)?;
    file.answer(&request).await
}
