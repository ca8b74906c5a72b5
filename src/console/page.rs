//! The frame of the pages, and how they show ids, times, states and amounts.

use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, HeaderValue, LOCATION};
use actix_web::{HttpRequest, HttpResponse};
use chrono::{DateTime, SecondsFormat, Utc};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use rust_decimal::Decimal;

use crate::base::ids::MerchantId;
use crate::base::money::Currency;
use crate::error::{Error, Problem};

/// htmx adds no style of its own, runs no text as a script, and keeps no copies of pages in the browser.
const HTMX: &str =
    r#"{"includeIndicatorStyles":false,"allowEval":false,"historyCacheSize":0,"selfRequestsOnly":true}"#;

/// A page.
pub struct Page {
    title: String,
    content: Markup,
    section: &'static str,
    /// Where it is, with a session.
    place: Option<Place>,
}

/// Where a page is among the others.
pub struct Place {
    /// The merchant that it's about.
    pub merchant: Option<MerchantId>,
    pub is_operator: bool,
    /// Whether retry storms are for this merchant.
    pub has_storm: bool,
}

impl Place {
    /// Paths and names of the sections.
    fn sections(&self) -> Vec<(String, &'static str)> {
        let mut sections = Vec::new();
        let base = base(self.merchant);
        if self.is_operator {
            sections.push(("/console/merchants".to_owned(), "Merchants"));
        }
        if self.merchant.is_some() {
            for (path, name) in [("charges", "Charges"), ("key", "Key inspector"), ("balances", "Balances")] {
                sections.push((format!("{base}/{path}"), name));
            }
        }
        sections.push((format!("{base}/attention"), "Needs a person"));
        sections.push((format!("{base}/live"), "Live"));
        if self.has_storm {
            sections.push((format!("{base}/storm"), "Retry storm"));
        }
        sections
    }
}

/// The beginning of the paths of pages about a merchant, or about all.
pub fn base(merchant: Option<MerchantId>) -> String {
    merchant.map_or_else(|| "/console".to_owned(), |merchant| format!("/console/{merchant}"))
}

impl Page {
    /// Makes a page with a title, which is its heading, too.
    pub fn new(title: impl Into<String>, content: Markup) -> Self {
        Self { title: title.into(), content, section: "", place: None }
    }

    /// Names the section that the page belongs to.
    pub fn of(mut self, section: &'static str) -> Self {
        self.section = section;
        self
    }

    /// Adds the way to other pages.
    pub fn within(mut self, place: Place) -> Self {
        self.place = Some(place);
        self
    }

    /// The answer with the page.
    pub fn answer(&self, request: &HttpRequest, status: u16) -> HttpResponse {
        let status = StatusCode::from_u16(status).expect("a constant");
        let is_part = request.headers().contains_key("hx-request");
        let html = if is_part { self.content.clone() } else { self.frame() };
        let mut answer = HttpResponse::build(status);
        answer.insert_header((CACHE_CONTROL, HeaderValue::from_static("no-store")));
        answer.content_type("text/html; charset=utf-8").body(html.into_string())
    }

    fn frame(&self) -> Markup {
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="htmx-config" content=(HTMX);
                    title { (self.title) " · Oncepay console" }
                    link rel="stylesheet" href="/console/assets/console.css";
                    script src="/console/assets/htmx.min.js" defer {}
                }
                body {
                    a.skip href="#content" { "Skip to the content" }
                    header.top {
                        a.name href="/console" { "Oncepay" }
                        @if let Some(place) = &self.place {
                            nav aria-label="Console" {
                                @for (path, name) in place.sections() {
                                    a href=(path) aria-current=[self.current(name)] { (name) }
                                }
                            }
                            form method="post" action="/console/session/end" { button.quiet { "Leave" } }
                        }
                    }
                    main #content tabindex="-1" {
                        @if let Some(Place { merchant: Some(merchant), is_operator: true, .. }) = &self.place {
                            p.soft { "Merchant " code { (merchant) } }
                        }
                        h1 { (self.title) }
                        div #page { (self.content) }
                    }
                }
            }
        }
    }

    fn current(&self, section: &str) -> Option<&'static str> {
        (self.section == section).then_some("page")
    }
}

/// Leads to another page, which is read with GET.
pub fn redirect(path: &str) -> HttpResponse {
    HttpResponse::SeeOther()
        .insert_header((LOCATION, path))
        .insert_header((CACHE_CONTROL, HeaderValue::from_static("no-store")))
        .finish()
}

/// The page for an error. What only the log may know goes there.
pub fn failure(request: &HttpRequest, error: &Error) -> HttpResponse {
    let id = crate::web::request_id::RequestId::from_request(request).0;
    error.log(&id);
    let problem = Problem::new(error, &id, request.path());
    let content = html! {
        p.lead { (problem.detail) }
        p { a href=(problem.kind) { "What this means, and what to do" } }
        p.soft { "Request " code { (id) } }
    };
    Page::new(problem.title, content).answer(request, problem.status)
}

/// The page for a form that another site's page has sent, or a browser that doesn't say where it comes from.
pub fn foreign(request: &HttpRequest) -> HttpResponse {
    let content = html! {
        p.lead { "This form wasn't sent from a page of this console, so nothing was done." }
        p { a href="/console" { "Go to the console" } }
    };
    Page::new("Not from here", content).answer(request, 403)
}

// ---- Pieces ----------------------------------------------------------------------------------------

/// A time, to the millisecond.
pub fn time(at: DateTime<Utc>) -> Markup {
    html! {
        time datetime=(at.to_rfc3339_opts(SecondsFormat::Millis, true)) {
            (at.format("%Y-%m-%d")) " " span.clock { (at.format("%H:%M:%S%.3f")) }
        }
    }
}

/// An amount with its currency.
pub fn money(amount: Decimal, currency: &str) -> Markup {
    html! { span.amount { (amount_only(amount, currency)) " " (currency) } }
}

/// An amount, at its currency's scale.
pub fn amount_only(amount: Decimal, currency: &str) -> String {
    Currency::stored(currency).map_or_else(|_| amount.to_string(), |known| known.format(amount))
}

/// A state, whose color only repeats what the word says.
pub fn state(word: &str) -> Markup {
    let tone = match word {
        "succeeded" | "completed" | "delivered" | "paid" | "won" | "applied" | "enabled" | "executed" => {
            "good"
        }
        "failed" | "failing" | "parked" | "abandoned" | "contradicted" | "lost" | "disabled" | "disputed" => {
            "bad"
        }
        "processing" | "pending" | "in_progress" | "running" | "open" | "in_transit" => "under-way",
        _ => "plain",
    };
    html! { span class={ "state " (tone) } { (word.replace('_', " ")) } }
}

/// A table that scrolls by itself where it's too wide, also with the keyboard. Columns of amounts, whose names begin with `=`, are
/// aligned to the right.
pub fn table(name: &str, columns: &[&str], rows: &[Markup]) -> Markup {
    html! {
        div.scroll role="region" aria-label=(name) tabindex="0" {
            table {
                thead { tr { @for column in columns { th scope="col" class=[column.starts_with('=').then_some("right")] { (column.trim_start_matches('=')) } } } }
                tbody { @for row in rows { tr { (row) } } }
            }
        }
    }
}

/// Names and values.
pub fn facts(facts: &[(&str, Markup)]) -> Markup {
    html! { dl.facts { @for (name, value) in facts { div { dt { (name) } dd { (value) } } } } }
}

/// Nothing, where something could be.
pub fn nothing(text: &str) -> Markup {
    html! { p.nothing { (text) } }
}

/// A text in HTML that is ours, from the binary.
pub fn ours(html: String) -> Markup {
    PreEscaped(html)
}

/// A path with an idempotency key in it.
pub fn key_path(merchant: MerchantId, key: &str) -> String {
    let query: String = url::form_urlencoded::byte_serialize(key.as_bytes()).collect();
    format!("/console/{merchant}/key?key={query}")
}
