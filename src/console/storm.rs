//! A retry storm, in development environments: the same charge many times at once, to see it happen once.

use std::time::Instant;

use actix_web::{HttpRequest, HttpResponse, get, post, web};
use futures_util::future::join_all;
use maud::{Markup, html};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::base::ids::ChargeId;
use crate::base::logging::milliseconds;
use crate::error::Error;

use super::charges::charge_path;
use super::chart;
use super::page::{self, Page};
use super::view::{self, View};

/// Maximum number of duplicates.
const DUPLICATES_MAX: u16 = 200;
/// Default number of duplicates.
const DUPLICATES: u16 = 50;

/// Kinds of what a duplicate can get, and what they mean.
const OUTCOMES: [(&str, &str); 4] = [
    ("executed", "done, for the first time"),
    ("replayed", "the first answer again"),
    ("conflict", "the first was still under way"),
    ("failed", "another answer, or none"),
];

/// What one of the duplicates got.
struct Arrival {
    began_ms: f64,
    ended_ms: f64,
    /// Kind of the outcome, as the charts name it.
    kind: &'static str,
    status: u16,
    charge: Option<String>,
}

/// Shows the button.
#[get("/console/{merchant}/storm")]
pub async fn begin(request: HttpRequest) -> HttpResponse {
    view::show(&request, async |view| {
        allowed(view)?;
        Ok(Page::new("Retry storm", form(view, DUPLICATES)).of("Retry storm"))
    })
    .await
}

/// The form's number.
#[derive(Deserialize)]
pub struct Wanted {
    duplicates: u16,
}

/// Sends the duplicates, and shows what each got.
#[post("/console/{merchant}/storm")]
pub async fn send(request: HttpRequest, wanted: web::Form<Wanted>) -> HttpResponse {
    let wanted = wanted.duplicates.clamp(2, DUPLICATES_MAX);
    view::show(&request, async |view| {
        allowed(view)?;
        let key = format!("storm-{}", Uuid::new_v4());
        let began = Instant::now();
        let arrivals = join_all((0..wanted).map(|_| one(view, &key, began))).await;
        let content = html! {
            (form(view, wanted))
            (result(view, &key, &arrivals))
        };
        Ok(Page::new("Retry storm", content).of("Retry storm"))
    })
    .await
}

/// Only in a development environment, and only for its own merchant: it makes a charge.
fn allowed(view: &View) -> Result<(), Error> {
    if view.console.development_merchant() == Some(view.merchant()) {
        Ok(())
    } else {
        Err(Error::RouteNotFound)
    }
}

async fn one(view: &View, key: &str, began: Instant) -> Arrival {
    let began_ms = milliseconds(began.elapsed());
    let keys = view.console.development_keys.as_ref().expect("it's a development environment");
    let answer = view
        .console
        .client
        .post(format!("{}/v1/charges", view.console.api))
        .bearer_auth(keys.api_key.expose_secret())
        .header("Idempotency-Key", key)
        .json(&json!({
            "amount": "12.50", "currency": "USD", "payment_method": "pm_card_visa", "reference": "retry-storm",
        }))
        .send()
        .await;
    let (status, is_replay, body) = match answer {
        Ok(answer) => {
            let is_replay = answer.headers().get("idempotent-replayed").is_some_and(|value| value == "true");
            (answer.status().as_u16(), is_replay, answer.json::<Value>().await.unwrap_or_default())
        }
        Err(error) => {
            log::warn!("a request of a retry storm has no answer: {error}");
            (0, false, Value::Null)
        }
    };
    let kind = match status {
        201 if is_replay => "replayed",
        201 => "executed",
        409 => "conflict",
        _ => "failed",
    };
    let charge = body["id"].as_str().map(str::to_owned).filter(|_| status == 201);
    Arrival { began_ms, ended_ms: milliseconds(began.elapsed()), kind, status, charge }
}

fn form(view: &View, duplicates: u16) -> Markup {
    let path = format!("/console/{}/storm", view.merchant());
    html! {
        p.lead { "Sends the same charge many times at once, with one idempotency key. One is executed; the others get its answer, or are told that it's under way." }
        form.search method="post" action=(path) hx-post=(path) hx-target="#page" hx-swap="innerHTML" hx-disabled-elt="find button" {
            div {
                label for="duplicates" { "Requests" }
                input #duplicates name="duplicates" type="number" min="2" max=(DUPLICATES_MAX) value=(duplicates) required;
            }
            button { "Send them" }
        }
    }
}

fn result(view: &View, key: &str, arrivals: &[Arrival]) -> Markup {
    let count = |kind: &str| arrivals.iter().filter(|arrival| arrival.kind == kind).count();
    let mut charges: Vec<_> = arrivals.iter().filter_map(|arrival| arrival.charge.as_deref()).collect();
    charges.sort_unstable();
    charges.dedup();
    let mut spans: Vec<_> =
        arrivals.iter().map(|arrival| (arrival.kind, arrival.began_ms, arrival.ended_ms)).collect();
    spans.sort_by(|a, b| a.2.total_cmp(&b.2));
    let last_ms = spans.last().map_or(0.0, |span| span.2);
    let other: Vec<_> = arrivals.iter().filter(|arrival| arrival.kind == "failed").collect();
    html! {
        section #result aria-live="polite" {
            h2 { (arrivals.len()) " requests, " (charges.len()) @if charges.len() == 1 { " charge" } @else { " charges" } }
            (chart::legend(OUTCOMES.into_iter().map(|(kind, meaning)| ((kind, meaning), count(kind)))))
            (chart::spans(
                &format!("Each request from its sending to its answer, within {last_ms:.0} ms"),
                &spans, &format!("{last_ms:.0} ms"),
            ))
            @if let Some(first) = other.first() { p.wrong { "One of the others got " (first.status) "." } }
            p {
                @for charge in &charges {
                    @if let Ok(id) = charge.parse::<ChargeId>() { a href=(charge_path(view.merchant(), id)) { "Look at the charge" } " · " }
                }
                a href=(page::key_path(view.merchant(), key)) { "Look at the key" }
            }
        }
    }
}
