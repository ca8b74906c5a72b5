//! Headers that tell browsers what they may do with an answer.
//!
//! Nobody pays on these pages, and they hold no secrets. But somebody who tries the API in `/docs` types a key
//! into it, so no other page may frame it, and no script but ours may run in it.

use std::sync::LazyLock;

use actix_web::http::header::{
    CONTENT_SECURITY_POLICY, HeaderMap, HeaderName, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

use super::pages;

/// For answers that are no pages.
const NOTHING: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox",
);

/// For the API reference. Swagger UI writes styles into its elements.
const REFERENCE: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
);

/// For the console: its style and htmx are files, and htmx fetches parts of pages.
const CONSOLE: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'; \
     frame-ancestors 'none'",
);

/// For our own pages, which have only their style.
static PAGES: LazyLock<HeaderValue> = LazyLock::new(|| {
    let style = BASE64_STANDARD.encode(Sha256::digest(pages::STYLE));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::from_str(&policy).expect("base64 is visible ASCII")
});

/// Adds the headers to the answer to a request for `path`.
pub fn protect(path: &str, headers: &mut HeaderMap) {
    // A text is no script, whatever it looks like.
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if path.starts_with("/v1/") {
        return;
    }
    let policy = match path {
        path if path.starts_with("/docs/") => REFERENCE,
        path if path == "/console" || path.starts_with("/console/") => CONSOLE,
        "/" => PAGES.clone(),
        path if path.starts_with("/problems") => PAGES.clone(),
        _ => NOTHING,
    };
    headers.insert(CONTENT_SECURITY_POLICY, policy);
    // For browsers that don't know `frame-ancestors`.
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    for name in ["cross-origin-opener-policy", "cross-origin-resource-policy"] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static("same-origin"));
    }
}
