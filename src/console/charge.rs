//! The page of a charge.

use actix_web::{HttpRequest, HttpResponse, get};
use maud::{Markup, html};
use rust_decimal::Decimal;

use crate::base::ids::{ChargeId, MerchantId};
use crate::base::logging::milliseconds;
use crate::error::Error;

use super::page::{self, Page};
use super::seen::Seen;
use super::timeline::{self, Moment, Part, PostedEntry, Story};
use super::view;

/// Shows a charge: its state, what happened to it, and what was posted for it.
#[get("/console/{merchant}/charges/{id}")]
pub async fn show(request: HttpRequest) -> HttpResponse {
    view::show(&request, async |view| {
        let merchant = view.merchant();
        let id = request.match_info().get("id").and_then(|id| id.parse::<ChargeId>().ok());
        let id = id.ok_or(Error::ChargeNotFound)?;
        let mut story = view.db.run_retrying(move |conn| timeline::read(conn, merchant, id)).await?;
        let keys = story.keys.iter().map(|used| used.key.key.as_str());
        let repeats = view.console.live().of_keys(merchant, keys);
        let has_repeats = !repeats.is_empty();
        story.moments.extend(repeats.iter().map(|(key, seen)| Moment {
            at: seen.at,
            source: "repeat",
            what: repeat(seen, key, merchant),
        }));
        story.moments.sort_by_key(|moment| moment.at);
        let content = html! {
            (summary(&story))
            section {
                h2 { "What happened" }
                (events(&story.moments))
                p.soft {
                    @if story.keys.is_empty() { "The keys of its requests are forgotten by now. " }
                    "Replays and refusals are shown as far as this instance gave them and still remembers"
                    @if !has_repeats { "; it remembers none" } "."
                }
            }
            section {
                h2 { "Journal entries" }
                @if story.entries.is_empty() { (page::nothing("No money has moved in our books.")) }
                @for entry in &story.entries { (journal_entry(entry)) }
            }
            (parts("Refunds", &["Refund", "State", "=Amount", "Reason", "Created (UTC)"], "failed", &story.refunds))
            (parts("Disputes", &["Dispute", "State", "=Amount", "Reason", "Opened (UTC)"], "closed", &story.disputes))
        };
        Ok(Page::new(format!("Charge {id}"), content).of("Charges"))
    })
    .await
}

fn summary(story: &Story) -> Markup {
    let charge = &story.charge;
    let currency = charge.currency.as_str();
    let mut facts = vec![
        ("State", page::state(&charge.status)),
        ("Amount", page::money(charge.amount, currency)),
        ("Captured", page::money(charge.amount_captured, currency)),
        ("Refunded", page::money(charge.amount_refunded, currency)),
        ("Fee", page::money(charge.fee, currency)),
        ("Payment method", html! { code { (charge.payment_method) } }),
        ("Authorization", html! { code { (charge.authorization_id) } }),
        ("Created (UTC)", page::time(charge.created_at)),
    ];
    if let Some(reference) = &charge.reference {
        facts.push(("Reference", html! { (reference) }));
    }
    if let Some(description) = &charge.description {
        facts.push(("Description", html! { span.lines { (description) } }));
    }
    if let Some(operation) = &charge.in_flight {
        facts.push(("Under way", html! { code { (operation) } }));
    }
    if let Some(code) = &charge.failure_code {
        let decline = charge.failure_decline_code.as_deref().unwrap_or_default();
        let message = charge.failure_message.as_deref().unwrap_or_default();
        facts.push(("Failure", html! { code { (code) } " (" (decline) "): " (message) }));
    }
    let metadata = charge.metadata.as_object();
    html! {
        (page::facts(&facts))
        @if let Some(metadata) = metadata.filter(|metadata| !metadata.is_empty()) {
            details {
                summary { "Metadata" }
                dl.facts {
                    @for (name, value) in metadata {
                        div { dt { (name) } dd { (value.as_str().unwrap_or_default()) } }
                    }
                }
            }
        }
    }
}

fn events(moments: &[Moment]) -> Markup {
    html! {
        ol.timeline {
            @for moment in moments {
                li class={ "of-" (moment.source) } {
                    div.when { (page::time(moment.at)) }
                    div.whence { (moment.source) }
                    div.what { (moment.what) }
                }
            }
        }
    }
}

/// A request that was not executed, or not first.
fn repeat(seen: &Seen, key: &str, merchant: MerchantId) -> Markup {
    html! {
        (seen.meaning()) ": " b { (seen.status) }
        @if let Some(code) = seen.code { " " a href={ "/problems/" (code.replace('_', "-")) } { code { (code) } } }
        " for key " a href=(page::key_path(merchant, key)) { code { (key) } }
        div.soft { code { (seen.request_id) } ", answered in " (format!("{:.1}", milliseconds(seen.duration))) " ms" }
    }
}

fn journal_entry(entry: &PostedEntry) -> Markup {
    let side = |amount: Decimal, currency: &str, is_shown: bool| {
        if is_shown { page::amount_only(amount.abs(), currency) } else { String::new() }
    };
    let rows: Vec<_> = entry
        .lines
        .iter()
        .map(|(account, currency, amount)| {
            html! {
                th scope="row" { (account.replace('_', " ")) }
                td.right { (side(*amount, currency, amount.is_sign_positive())) }
                td.right { (side(*amount, currency, amount.is_sign_negative())) }
                td { (currency) }
            }
        })
        .collect();
    html! {
        div.entry id=(entry.id) {
            h3 { code { (entry.source) } " " span.soft { (page::time(entry.at)) } }
            (page::table(&format!("Lines of {}", entry.source), &["Account", "=Debit", "=Credit", "Currency"], &rows))
        }
    }
}

/// Refunds or disputes, if there are any. `ended` is the word for their end.
fn parts(name: &str, columns: &[&str], ended: &str, parts: &[Part]) -> Markup {
    let rows: Vec<_> = parts
        .iter()
        .map(|part| {
            html! {
                td { code { (part.id) } }
                td { (page::state(&part.status)) }
                td.right { (page::money(part.amount, &part.currency)) }
                td { (part.reason.as_deref().unwrap_or_default()) }
                td { (page::time(part.created_at)) @if let Some(at) = part.ended_at { div.soft { (ended) " " (page::time(at)) } } }
            }
        })
        .collect();
    html! {
        @if !rows.is_empty() { section { h2 { (name) } (page::table(name, columns, &rows)) } }
    }
}
