//! The first page that a person sees: what this is, and where to go on.
//!
//! In a development environment the page has a `curl` line that works, and the reference has its keys filled in. Both are only for a
//! browser that asks for this machine by its own name: a page from elsewhere whose name is made to lead here (DNS rebinding) gets
//! neither.

use std::fmt::Write;
use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, get, web};
use secrecy::ExposeSecret;
use serde_json::json;
use uuid::Uuid;

use crate::config::DevelopmentKeys;
use crate::error::Error;

use super::pages;
use crate::web::files::File;
use crate::web::this_machine;

/// The pages that depend on who asks.
pub struct Home {
    /// For whoever opens them on this machine.
    local: Pages,
    /// Without keys.
    public: Pages,
}

struct Pages {
    first: Arc<File>,
    authorization: Arc<File>,
}

impl Home {
    /// Makes the pages for a server at `url`. `keys` only in a development environment.
    pub fn new(url: &str, keys: Option<&DevelopmentKeys>) -> Self {
        let pages = |keys: Option<&DevelopmentKeys>| Pages {
            first: Arc::new(page(keys.map(|keys| (url, keys)))),
            authorization: Arc::new(authorization(keys)),
        };
        Self { local: pages(keys), public: pages(None) }
    }

    fn pages_for(&self, request: &HttpRequest) -> &Pages {
        if this_machine::is_named_by(request) { &self.local } else { &self.public }
    }
}

/// Shows the first page. Needs no key.
#[get("/")]
pub async fn show(request: HttpRequest, home: web::Data<Home>) -> Result<HttpResponse, Error> {
    home.pages_for(&request).first.answer(&request).await
}

/// The keys that the reference fills in, an empty object outside of development environments.
#[get("/docs/authorization.json")]
pub async fn show_authorization(request: HttpRequest, home: web::Data<Home>) -> Result<HttpResponse, Error> {
    home.pages_for(&request).authorization.answer(&request).await
}

fn authorization(keys: Option<&DevelopmentKeys>) -> File {
    let keys = keys.map_or_else(
        || json!({}),
        |keys| json!({"api_key": keys.api_key.expose_secret(), "operator_key": keys.operator_key.expose_secret()}),
    );
    File::new("application/json", keys.to_string())
}

/// Where to go on: path, name, what is there.
const WAYS: [(&str, &str, &str); 4] = [
    ("/docs/", "API reference", "every operation, to read and to try"),
    ("/openapi.json", "OpenAPI document", "the same, for generators and tools"),
    ("/problems", "Problems", "what each error code means, and what to do"),
    ("/readyz", "Readiness", "whether this instance can serve, and what keeps it from that"),
];

fn page(development: Option<(&str, &DevelopmentKeys)>) -> File {
    let mut content = String::from(
        "<p class=\"lead\">A payments API that charges once, however often the client retries.</p>\
         <p>Each request that changes something carries an <code>Idempotency-Key</code>. It is executed at most once per key. Every \
         retry gets the first answer, byte for byte.</p>",
    );
    if let Some((url, keys)) = development {
        let line = format!(
            "curl -i {url}/v1/charges \\\n  -H 'Authorization: Bearer {}' \\\n  -H 'Idempotency-Key: {}' \\\n  \
             -H 'Content-Type: application/json' \\\n  \
             -d '{{\"amount\":\"12.50\",\"currency\":\"USD\",\"payment_method\":\"pm_card_visa\"}}'",
            keys.api_key.expose_secret(),
            Uuid::new_v4(),
        );
        let _ = write!(
            content,
            "<h2>Try it</h2><p>Create a charge. Then send the same line again: there is no second charge.</p>\
             <pre tabindex=\"0\"><code>{}</code></pre>\
             <p>The key is of this development environment, and no money moves. The reference has it filled in.</p>",
            pages::escaped(&line)
        );
    }
    content.push_str("<h2>Go on</h2><ul class=\"ways\">");
    for (path, name, what) in WAYS {
        let _ = write!(content, "<li><a href=\"{path}\">{name}</a><span>{what}</span></li>");
    }
    content.push_str("</ul>");
    pages::page("Oncepay", &content)
}
