//! The list of charges, and the search.

use actix_web::{HttpRequest, HttpResponse, get, web};
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use maud::{Markup, html};
use serde::Deserialize;
use uuid::Uuid;

use crate::base::ids::{ChargeId, DisputeId, MerchantId, RefundId};
use crate::error::Error;
use crate::idempotency::IdempotencyKey;
use crate::idempotency::status;
use crate::payments::charges::{ChargeRow, ChargeStatus};
use crate::storage::schema::{charges, disputes, merchants, refunds};
use crate::web::lists::{Cursor, List, Page as Range, load_page};

use super::page::{self, Page};
use super::view;

/// Number of charges in a page.
const LIMIT: i64 = 50;
/// Number of merchants that are listed.
const MERCHANTS_MAX: u16 = 100;
/// Maximum number of characters of what is searched for.
const TEXT_MAX: usize = 255;

/// What a person has asked for. Fields of a form that are left empty are sent all the same.
#[derive(Debug, Default, Deserialize)]
pub struct Asked {
    #[serde(default)]
    q: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    currency: String,
    #[serde(default)]
    after: String,
}

/// A charge by its id, or that of its refund or dispute; those with a reference; and what a key was used for.
struct Found {
    charges: List<ChargeRow>,
    key: Option<status::KeyRow>,
}

/// Lists charges, newest first, or what a search finds.
#[get("/console/{merchant}/charges")]
pub async fn list(request: HttpRequest, asked: web::Query<Asked>) -> HttpResponse {
    view::show(&request, async |view| {
        let merchant = view.merchant();
        let asked = asked.into_inner();
        let text = asked.q.trim().to_owned();
        let status = asked.status.parse::<ChargeStatus>().ok();
        let currency = Some(asked.currency.trim().to_ascii_uppercase()).filter(|code| !code.is_empty());
        let after = asked.after.parse::<ChargeId>().ok();
        let query = Query { text: text.clone(), status, currency: currency.clone(), after };
        let found = view.db.run_retrying(move |conn| find(conn, merchant, &query)).await?;
        let content = html! {
            (search(merchant, &text, status, currency.as_deref()))
            @if let Some(key) = &found.key { (key_note(key)) }
            (results(merchant, &found, &text))
            @if let Some(last) = found.charges.data.last().filter(|_| found.charges.has_more) {
                p { a href=(next(merchant, status, currency.as_deref(), last.id)) rel="next" { "Older charges" } }
            }
        };
        Ok(Page::new("Charges", content).of("Charges"))
    })
    .await
}

struct Query {
    text: String,
    status: Option<ChargeStatus>,
    currency: Option<String>,
    after: Option<ChargeId>,
}

fn find(conn: &mut PgConnection, merchant: MerchantId, asked: &Query) -> Result<Found, Error> {
    let mut query =
        charges::table.filter(charges::merchant_id.eq(merchant)).select(ChargeRow::as_select()).into_boxed();
    let mut key = None;
    if !asked.text.is_empty() {
        if asked.text.chars().count() > TEXT_MAX || asked.text.contains('\0') {
            return Ok(Found { charges: List { data: Vec::new(), has_more: false }, key: None });
        }
        match named(conn, merchant, &asked.text)? {
            Some(id) => query = query.filter(charges::id.eq(id)),
            None => query = query.filter(charges::reference.eq(&asked.text)),
        }
        if let Some(bare) = IdempotencyKey::bare(&asked.text) {
            key = status::find(conn, merchant, bare.as_str())?;
        }
    }
    if let Some(status) = asked.status {
        query = query.filter(charges::status.eq(status.as_str()));
    }
    if let Some(currency) = &asked.currency {
        query = query.filter(charges::currency.eq(currency));
    }
    let cursor = asked.after.map_or(Cursor::Newest, Cursor::After);
    let charges = load_page!(conn, query, charges::id, Range { limit: LIMIT, cursor })?;
    Ok(Found { charges, key })
}

/// The charge that an id stands for: its own, or that of a refund or dispute of it.
fn named(conn: &mut PgConnection, merchant: MerchantId, text: &str) -> QueryResult<Option<ChargeId>> {
    if let Ok(id) = text.parse::<ChargeId>() {
        return Ok(Some(id));
    }
    if let Ok(id) = text.parse::<RefundId>() {
        let of_refund = refunds::table.find((merchant, id)).select(refunds::charge_id);
        return of_refund.first::<Uuid>(conn).optional().map(|id| id.map(ChargeId));
    }
    if let Ok(id) = text.parse::<DisputeId>() {
        let of_dispute = disputes::table.find((merchant, id)).select(disputes::charge_id);
        return of_dispute.first::<Uuid>(conn).optional().map(|id| id.map(ChargeId));
    }
    Ok(None)
}

fn search(merchant: MerchantId, text: &str, status: Option<ChargeStatus>, currency: Option<&str>) -> Markup {
    html! {
        form.search role="search" action={ "/console/" (merchant) "/charges" } {
            div.grow {
                label for="q" { "Id, reference or idempotency key" }
                input #q name="q" type="search" value=(text) maxlength=(TEXT_MAX) autocomplete="off" spellcheck="false";
            }
            div {
                label for="status" { "State" }
                select #status name="status" {
                    option value="" { "any" }
                    @for known in ChargeStatus::ALL {
                        option value=(known.as_str()) selected[status == Some(known)] { (known.as_str().replace('_', " ")) }
                    }
                }
            }
            div {
                label for="currency" { "Currency" }
                input #currency name="currency" value=[currency] maxlength="3" size="4" autocomplete="off";
            }
            button { "Search" }
        }
    }
}

fn key_note(key: &status::KeyRow) -> Markup {
    html! {
        div.card {
            p {
                "An idempotency key has this name. It was used for " code { (key.operation) } ", "
                (key.attempts) @if key.attempts == 1 { " attempt" } @else { " attempts" } "."
            }
            p {
                a href=(page::key_path(key.merchant_id, &key.key)) { "Look at the key" }
                @if let (Some("charge"), Some(id)) = (key.resource_type.as_deref(), key.resource_id) {
                    " · " a href=(charge_path(key.merchant_id, ChargeId(id))) { "Look at its charge" }
                }
            }
        }
    }
}

fn results(merchant: MerchantId, found: &Found, text: &str) -> Markup {
    if found.charges.data.is_empty() {
        return match (text, &found.key) {
            (_, Some(_)) => html! {},
            ("", _) => page::nothing("There are no such charges."),
            _ => page::nothing("No charge has this id or reference, and no key has this name."),
        };
    }
    let rows: Vec<_> = found
        .charges
        .data
        .iter()
        .map(|charge| {
            html! {
                td { a href=(charge_path(merchant, charge.id)) { code { (charge.id) } } }
                td { (page::state(&charge.status)) }
                td.right { (page::money(charge.amount, &charge.currency)) }
                td.long { (charge.reference.as_deref().unwrap_or_default()) }
                td { (page::time(charge.created_at)) }
            }
        })
        .collect();
    page::table("Charges", &["Charge", "State", "=Amount", "Reference", "Created (UTC)"], &rows)
}

fn next(
    merchant: MerchantId,
    status: Option<ChargeStatus>,
    currency: Option<&str>,
    last: ChargeId,
) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("after", &last.to_string());
    if let Some(status) = status {
        query.append_pair("status", status.as_str());
    }
    if let Some(currency) = currency {
        query.append_pair("currency", currency);
    }
    format!("/console/{merchant}/charges?{}", query.finish())
}

/// The path of a charge's page.
pub fn charge_path(merchant: MerchantId, id: ChargeId) -> String {
    format!("/console/{merchant}/charges/{id}")
}

// ---- Merchants -------------------------------------------------------------------------------------

/// The form of the list of merchants.
#[derive(Deserialize)]
pub struct Named {
    #[serde(default)]
    name: String,
}

/// Lists merchants, for operators.
#[get("/console/merchants")]
pub async fn list_merchants(request: HttpRequest, named: web::Query<Named>) -> HttpResponse {
    view::show(&request, async |view| {
        if !view.session.is_operator() {
            return Err(Error::RouteNotFound);
        }
        let name = named.into_inner().name.trim().replace('\0', "");
        if let Ok(id) = name.parse::<MerchantId>() {
            return Ok(Page::new("Merchants", one(id)).of("Merchants"));
        }
        let searched = name.clone();
        let rows = view
            .db
            .run_retrying(move |conn| {
                let mut query = merchants::table.order(merchants::created_at.desc()).limit(MERCHANTS_MAX.into()).into_boxed();
                if !searched.is_empty() {
                    let pattern = searched.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
                    query = query.filter(merchants::name.ilike(format!("%{pattern}%")));
                }
                Ok::<_, Error>(query.load::<(Uuid, String, DateTime<Utc>)>(conn)?)
            })
            .await?;
        let rows: Vec<_> = rows
            .into_iter()
            .map(|(id, name, at)| {
                let id = MerchantId(id);
                html! {
                    td { a href={ "/console/" (id) "/charges" } { (name) } }
                    td { code { (id) } }
                    td { (page::time(at)) }
                }
            })
            .collect();
        let content = html! {
            form.search role="search" action="/console/merchants" {
                div.grow {
                    label for="name" { "Part of a name, or an id" }
                    input #name name="name" type="search" value=(name) maxlength=(TEXT_MAX);
                }
                button { "Search" }
            }
            @if rows.is_empty() { (page::nothing("No merchant has such a name.")) }
            @else { (page::table("Merchants", &["Name", "Id", "Since (UTC)"], &rows)) }
            @if rows.len() == usize::from(MERCHANTS_MAX) { p.soft { "These are the newest ones. Search for others." } }
        };
        Ok(Page::new("Merchants", content).of("Merchants"))
    })
    .await
}

fn one(id: MerchantId) -> Markup {
    html! { p { a href={ "/console/" (id) "/charges" } { code { (id) } } } }
}
