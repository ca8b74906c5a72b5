//! Pages that explain error codes: the targets of a problem's `type`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, LazyLock};

use actix_web::{HttpRequest, HttpResponse, get, web};

use crate::error::{CatalogueEntry, Code, Error};

use super::pages::{escaped, page};
use crate::web::files::File;

/// Shows the index of all error codes.
#[get("/problems")]
pub async fn index(request: HttpRequest) -> Result<HttpResponse, Error> {
    static INDEX: LazyLock<Arc<File>> = LazyLock::new(|| {
        let mut rows = String::new();
        for entry in Code::ALL.iter().map(|code| code.entry()) {
            let CatalogueEntry { code, status, title, .. } = entry;
            let _ = write!(
                rows,
                "<tr><td><a href=\"{}\"><code>{code}</code></a></td><td>{status}</td><td>{title}</td></tr>",
                entry.path()
            );
        }
        let table = format!("<table><tr><th>Code</th><th>Status</th><th>Meaning</th></tr>{rows}</table>");
        Arc::new(page("Problems", &table))
    });
    INDEX.answer(&request).await
}

/// Shows the page of one code, which may have dashes or underscores.
#[get("/problems/{code}")]
pub async fn show(request: HttpRequest, code: web::Path<String>) -> Result<HttpResponse, Error> {
    static PAGES: LazyLock<BTreeMap<&'static str, Arc<File>>> = LazyLock::new(|| {
        let entries = Code::ALL.iter().map(|code| code.entry());
        entries.map(|entry| (entry.code, Arc::new(explanation(entry)))).collect()
    });
    let file = PAGES.get(code.replace('-', "_").as_str()).ok_or(Error::RouteNotFound)?;
    file.answer(&request).await
}

fn explanation(entry: &CatalogueEntry) -> File {
    let kept = if entry.is_final {
        "This answer settles the request. It is stored, and every retry with the same idempotency key gets it again."
    } else {
        "This answer is not stored with the idempotency key."
    };
    let retryable = if entry.retryable {
        "Sending the very same request again, with the same idempotency key, can succeed and is safe."
    } else {
        "Sending the very same request again won't help."
    };
    page(
        entry.title,
        &format!(
            "<p><code>{}</code>, HTTP status {}</p><h2>What happened</h2><p>{}</p><h2>What to do</h2><p>{}</p>\
             <h2>Retries</h2><p>{retryable} {kept}</p><p><a href=\"/problems\">All problems</a></p>",
            entry.code,
            entry.status,
            code_spans(entry.meaning),
            code_spans(entry.remedy),
        ),
    )
}

/// Renders the catalogue's `backquotes` as code.
fn code_spans(text: &str) -> String {
    let mut html = String::new();
    for (number, piece) in text.split('`').enumerate() {
        let piece = escaped(piece);
        if number % 2 == 1 {
            let _ = write!(html, "<code>{piece}</code>");
        } else {
            html.push_str(&piece.replace("*new*", "<em>new</em>"));
        }
    }
    html
}
