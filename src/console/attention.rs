//! What needs a person: each with the one thing to do about it, and where the runbook says more.
//!
//! What is done goes through the API, with the key of the session and the idempotency key of the form: pressed twice, it's done
//! once.

use actix_web::{HttpRequest, HttpResponse, get, post, web};
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use maud::{Markup, html};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::base::ids::{AcquirerEventId, MerchantId, WebhookEndpointId};
use crate::error::Error;
use crate::idempotency::status::{KeyId, KeyRow};
use crate::idempotency_api::key_list::{self, KeyFilter, KeyQuery};
use crate::inbound::differences::{self, Difference};
use crate::storage::sql::statement;
use crate::web::lists::{Cursor, Page as Range};

use super::page::{self, Page};
use super::runbook;
use super::view::{self, View};

/// Maximum number of rows of each kind.
const ROWS_MAX: u16 = 50;

/// What needs an operator, of all merchants.
#[get("/console/attention")]
pub async fn of_all(request: HttpRequest, asked: web::Query<Asked>) -> HttpResponse {
    show(&request, asked.into_inner(), false).await
}

/// What of a merchant needs a person.
#[get("/console/{merchant}/attention")]
pub async fn of_merchant(request: HttpRequest, asked: web::Query<Asked>) -> HttpResponse {
    show(&request, asked.into_inner(), true).await
}

/// What else the address says.
#[derive(Default, Deserialize)]
pub struct Asked {
    /// `differences`: only those, which take longer to find.
    #[serde(default)]
    part: String,
    /// What was just done.
    #[serde(default)]
    done: String,
}

/// An event of the processor that doesn't fit our books, or waits for too long.
type Event = (AcquirerEventId, String, String, Option<String>, Option<MerchantId>, DateTime<Utc>);
/// An endpoint that doesn't take events.
type Endpoint = (MerchantId, WebhookEndpointId, String, String, Option<DateTime<Utc>>, Option<DateTime<Utc>>);

struct Open {
    parked: Vec<KeyRow>,
    events: Vec<Event>,
    endpoints: Vec<Endpoint>,
}

async fn show(request: &HttpRequest, asked: Asked, has_merchant: bool) -> HttpResponse {
    view::show(request, async |view| {
        let is_operator = view.session.is_operator();
        if !has_merchant && !is_operator {
            return Err(Error::RouteNotFound);
        }
        let merchant = has_merchant.then(|| view.merchant());
        if asked.part == "differences" {
            return differences_page(view, merchant).await;
        }
        let open = view.db.run_retrying(move |conn| read(conn, merchant)).await?;
        let content = html! {
            @if let Some(done) = DONE.iter().find(|(name, _)| *name == asked.done).map(|(_, text)| *text) {
                p.good-note role="status" { (done) }
            }
            (parked(&open.parked, is_operator))
            (events(&open.events, is_operator))
            @if is_operator { (differences_later(merchant)) }
            (endpoints(&open.endpoints, is_operator))
        };
        Ok(Page::new("Needs a person", content).of("Needs a person"))
    })
    .await
}

fn read(conn: &mut PgConnection, merchant: Option<MerchantId>) -> Result<Open, Error> {
    let query = KeyQuery { filter: KeyFilter::Parked, merchant, ..KeyQuery::default() };
    let range = Range { limit: ROWS_MAX.into(), cursor: Cursor::Newest };
    let parked = key_list::list(conn, &query, range)?.map(|list| list.data).unwrap_or_default();
    let events = statement::<(SqlUuid, Text, Text, Nullable<Text>, Nullable<SqlUuid>, Timestamptz)>(
        "/* of all merchants */ SELECT id, type, state, detail, merchant_id, received_at FROM acquirer_events \
         WHERE state IN ('parked', 'contradicted') AND (state = 'contradicted' OR overdue_at IS NOT NULL) \
             AND ({} IS NULL OR merchant_id = {}) ORDER BY id DESC LIMIT {}",
    )
    .bind::<Nullable<SqlUuid>, _>(merchant)
    .bind::<Nullable<SqlUuid>, _>(merchant)
    .bind::<BigInt, _>(i64::from(ROWS_MAX))
    .load::<Event>(conn)?;
    let endpoints = statement::<(SqlUuid, SqlUuid, Text, Text, Nullable<Timestamptz>, Nullable<Timestamptz>)>(
        "/* of all merchants */ SELECT merchant_id, id, url, status, failing_since, disabled_at FROM webhook_endpoints \
         WHERE (failing_since IS NOT NULL OR disabled_at IS NOT NULL) AND ({} IS NULL OR merchant_id = {}) \
         ORDER BY coalesce(disabled_at, failing_since) LIMIT {}",
    )
    .bind::<Nullable<SqlUuid>, _>(merchant)
    .bind::<Nullable<SqlUuid>, _>(merchant)
    .bind::<BigInt, _>(i64::from(ROWS_MAX))
    .load::<Endpoint>(conn)?;
    Ok(Open { parked, events, endpoints })
}

/// A kind of what needs a person, in a table.
fn section(name: &str, alert: &str, none: &str, columns: &[&str], rows: &[Markup]) -> Markup {
    html! {
        section {
            h2 { (name) }
            @if rows.is_empty() { (page::nothing(none)) } @else { (page::table(name, columns, rows)) }
            p.soft { a href=(runbook::section(alert)) { "Runbook: " (alert) } }
        }
    }
}

fn parked(keys: &[KeyRow], is_operator: bool) -> Markup {
    let rows: Vec<_> = keys
        .iter()
        .map(|key| {
            html! {
                td { a href=(page::key_path(key.merchant_id, &key.key)) { code { (key.key) } } }
                td { code { (key.operation) } }
                td { (key.last_error.as_deref().unwrap_or_default()) }
                td { @if let Some(at) = key.parked_at { (page::time(at)) } }
                td { @if is_operator { (button("retry", &key.id().to_string(), "Try again", false)) } @else { "An operator is needed." } }
            }
        })
        .collect();
    section(
        "Requests that were given up",
        "OncepayRequestsParked",
        "None.",
        &["Key", "Operation", "Last failure", "Since (UTC)", "What to do"],
        &rows,
    )
}

fn events(events: &[Event], is_operator: bool) -> Markup {
    let rows: Vec<_> = events
        .iter()
        .map(|(id, kind, state, detail, _, at)| {
            html! {
                td { code { (id) } div.soft { (kind) } }
                td { (page::state(state)) }
                td { (detail.as_deref().unwrap_or_default()) }
                td { (page::time(*at)) }
                td {
                    @if is_operator {
                        div.actions { (button("replay", &id.to_string(), "Apply again", false)) (button("dismiss", &id.to_string(), "Dismiss", true)) }
                    } @else { "An operator is needed." }
                }
            }
        })
        .collect();
    section(
        "What the processor says, and our books don't",
        "OncepayProcessorEventsContradicted",
        "None.",
        &["Event", "State", "Why", "Received (UTC)", "What to do"],
        &rows,
    )
}

fn endpoints(endpoints: &[Endpoint], is_operator: bool) -> Markup {
    let rows: Vec<_> = endpoints
        .iter()
        .map(|(merchant, id, url, status, failing_since, disabled_at)| {
            html! {
                td { code { (id) } @if is_operator { div.soft { (merchant) } } }
                td { span.long { (url) } }
                td { (page::state(if disabled_at.is_some() { status } else { "failing" })) }
                td { @if let Some(at) = disabled_at.or(*failing_since) { (page::time(at)) } }
                td {
                    @if is_operator { "The merchant has to mend it." }
                    @else if disabled_at.is_some() { (button("enable", &id.to_string(), "Enable", false)) }
                    @else { "Mend the receiver. Events are sent again by themselves." }
                }
            }
        })
        .collect();
    section(
        "Endpoints that take no events",
        "OncepayDeliveryBacklog",
        "None.",
        &["Endpoint", "URL", "State", "Since (UTC)", "What to do"],
        &rows,
    )
}

/// To compare whole books takes longer than a page may, so they're fetched after it, or on a page of their own.
fn differences_later(merchant: Option<MerchantId>) -> Markup {
    let path = format!("{}/attention?part=differences", page::base(merchant));
    html! {
        div hx-get=(path) hx-trigger="load" hx-swap="outerHTML" {
            section {
                h2 { "Differences to the processor's books" }
                p { a href=(path) { "Compare the books" } }
            }
        }
    }
}

async fn differences_page(view: &View, merchant: Option<MerchantId>) -> Result<Page, Error> {
    if !view.session.is_operator() {
        return Err(Error::RouteNotFound);
    }
    let grace_s = view.console.reconcile_grace_s.into();
    let mut found = view.db.run(move |conn| differences::load(conn, grace_s)).await?;
    if let Some(merchant) = merchant {
        found.retain(|difference| difference.merchant_id == Some(merchant.0));
    }
    let content = differences(&found);
    Ok(Page::new("Differences to the processor's books", content).of("Needs a person"))
}

fn differences(found: &[Difference]) -> Markup {
    let amount = |amount: Option<rust_decimal::Decimal>, currency: &Option<String>| match (amount, currency) {
        (Some(amount), Some(currency)) => page::money(amount, currency),
        _ => html! { "–" },
    };
    let rows: Vec<_> = found
        .iter()
        .take(ROWS_MAX.into())
        .map(|difference| {
            html! {
                td { (difference.difference.replace('_', " ")) div.soft { (difference.kind) } }
                td { code { (difference.reference) } }
                td.right { (amount(difference.ours, &difference.currency)) }
                td.right { (amount(difference.theirs, &difference.currency)) }
                td { "Clear it up with the processor, then " code { "oncepay reconcile accept" } }
            }
        })
        .collect();
    html! {
        (section(
            "Differences to the processor's books",
            "OncepayReconciliationDifferences",
            "None, as far as the processor's books have been read.",
            &["Difference", "Of", "=Ours", "=Theirs", "What to do"],
            &rows,
        ))
        @if found.len() > usize::from(ROWS_MAX) { p.soft { (found.len()) " in all. " code { "oncepay reconcile" } " lists them." } }
    }
}

/// A button with the idempotency key of what it does.
fn button(action: &str, subject: &str, text: &str, needs_reason: bool) -> Markup {
    html! {
        form.inline method="post" action="/console/act" {
            input type="hidden" name="action" value=(action);
            input type="hidden" name="subject" value=(subject);
            input type="hidden" name="key" value={ "console-" (Uuid::new_v4()) };
            @if needs_reason {
                input name="reason" aria-label={ "Reason to " (text.to_lowercase()) " " (subject) } placeholder="Reason" required maxlength="500";
            }
            button.quiet aria-label={ (text) " " (subject) } { (text) }
        }
    }
}

/// What is to be done.
#[derive(Deserialize)]
pub struct Action {
    action: String,
    subject: String,
    key: String,
    #[serde(default)]
    reason: String,
}

/// What is said afterwards, by action.
const DONE: [(&str, &str); 4] = [
    ("retry", "The request is tried again within seconds."),
    ("replay", "The event was applied again; if it's still here, it still doesn't fit."),
    ("dismiss", "The event is dismissed, with your reason."),
    ("enable", "The endpoint gets events again."),
];

/// Does what a button says, through the API.
#[post("/console/act")]
pub async fn act(request: HttpRequest, action: web::Form<Action>) -> HttpResponse {
    let action = action.into_inner();
    let mut led = None;
    let shown = view::show(&request, async |view| {
        let call = call(&action).ok_or(Error::RouteNotFound)?;
        match send(view, &action.key, &call).await {
            Ok(()) => {
                led =
                    Some(format!("{}/attention?done={}", page::base(view.session.merchant()), action.action));
                Ok(Page::new("Done", html! {}))
            }
            Err(detail) => {
                let content =
                    html! { p.wrong role="alert" { (detail) } p { a href="/console" { "Go back" } } };
                Ok(Page::new("That didn't work", content))
            }
        }
    })
    .await;
    led.map_or(shown, |path| page::redirect(&path))
}

/// Method, path and body of a request to the API.
type Call = (reqwest::Method, String, Value);

fn call(action: &Action) -> Option<Call> {
    use reqwest::Method;
    let event = || action.subject.parse::<AcquirerEventId>().ok();
    Some(match action.action.as_str() {
        "retry" => {
            let KeyId { merchant, key } = action.subject.parse().ok()?;
            let key = utf8_percent_encode(&key, NON_ALPHANUMERIC);
            (Method::POST, format!("/v1/operator/idempotency-keys/{merchant}/{key}/retry"), json!({}))
        }
        "replay" => (Method::POST, format!("/v1/operator/acquirer-events/{}/replay", event()?), json!({})),
        "dismiss" => {
            let body = json!({"reason": action.reason});
            (Method::POST, format!("/v1/operator/acquirer-events/{}/dismiss", event()?), body)
        }
        "enable" => {
            let id: WebhookEndpointId = action.subject.parse().ok()?;
            (Method::PATCH, format!("/v1/webhook-endpoints/{id}"), json!({"status": "enabled"}))
        }
        _ => return None,
    })
}

/// Sends a request as the session's. The error is what the answer says.
async fn send(view: &View, key: &str, (method, path, body): &Call) -> Result<(), String> {
    let console = &view.console;
    let answer = console
        .client
        .request(method.clone(), format!("{}{path}", console.api))
        .bearer_auth(view.session.key.expose_secret())
        .header("Idempotency-Key", key)
        .json(body)
        .send()
        .await
        .map_err(|error| {
            log::warn!("the console's request to {path} has no answer: {error}");
            "The service didn't answer. Look whether it was done before you try again.".to_owned()
        })?;
    if answer.status().is_success() {
        return Ok(());
    }
    let problem = answer.json::<Value>().await.unwrap_or_default();
    Err(problem["detail"].as_str().unwrap_or("The service refused it.").to_owned())
}
