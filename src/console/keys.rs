//! The key inspector: why a retry got what it got.
//!
//! It shows what the engine decides by. Of two requests that differ it shows where, as JSON pointers, and never the values: a body may
//! hold what the person at the screen needn't see.

use actix_web::{HttpRequest, HttpResponse, get, post, web};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Binary, Integer, Nullable, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;

use crate::base::ids::{ChargeId, MerchantId};
use crate::base::{json, paths};
use crate::error::{Error, Failure};
use crate::host::Engine;
use crate::idempotency::policy::{OnExpired, OnMismatch};
use crate::idempotency::status::{KeyRow, KeyState, key_columns};
use crate::idempotency::{Fingerprint, IdempotencyKey, Policy, Recipe, RequestContent};
use crate::storage::clock;

use super::charges::charge_path;
use super::page::{self, Page};
use super::view::{self, View};
use super::{runbook, timeline};

/// Maximum number of differences that are listed.
const DIFFERENCES_MAX: usize = 50;

/// A key's row, with what its fingerprint is of.
#[derive(QueryableByName)]
struct Inspected {
    #[diesel(embed)]
    used: timeline::UsedKey,
    #[diesel(sql_type = SmallInt)]
    fingerprint_version: i16,
    #[diesel(sql_type = Binary)]
    fingerprint: Vec<u8>,
    #[diesel(sql_type = Text)]
    request_method: String,
    #[diesel(sql_type = Text)]
    request_path: String,
    #[diesel(sql_type = Text)]
    request_query: String,
    #[diesel(sql_type = Binary)]
    request_body: Vec<u8>,
    #[diesel(sql_type = Nullable<Binary>)]
    response_body: Option<Vec<u8>>,
    #[diesel(sql_type = Integer)]
    tombstone_seconds: i32,
}

impl Inspected {
    fn row(&self) -> &KeyRow {
        &self.used.key
    }
}

fn find(conn: &mut PgConnection, merchant: MerchantId, key: &str) -> Result<Option<Inspected>, Error> {
    let now = clock::of_cluster(conn)?;
    let found = sql_query(concat!(
        "SELECT ",
        key_columns!(),
        ", takeovers, fingerprint_version, fingerprint, request_method, request_path, request_query, request_body, \
         response_body, tombstone_seconds \
         FROM (SELECT coalesce($3, clock_timestamp()) AS now) AS clock, idempotency_keys WHERE merchant_id = $1 AND key = $2"
    ))
    .bind::<SqlUuid, _>(merchant)
    .bind::<Text, _>(key)
    .bind::<Nullable<Timestamptz>, _>(now)
    .get_result::<Inspected>(conn)
    .optional()?;
    match found {
        Some(found) if found.row().state()? != KeyState::Forgotten => Ok(Some(found)),
        _ => Ok(None),
    }
}

/// Which key is looked at.
#[derive(Deserialize)]
pub struct Asked {
    #[serde(default)]
    key: String,
}

/// Shows a key.
#[get("/console/{merchant}/key")]
pub async fn inspect(request: HttpRequest, asked: web::Query<Asked>) -> HttpResponse {
    let key = asked.into_inner().key.trim().to_owned();
    view::show(&request, async |view| shown(&request, view, &key, None).await).await
}

/// A request to compare with that of a key.
#[derive(Debug, Deserialize)]
pub struct Compared {
    key: String,
    method: String,
    path: String,
    body: String,
}

/// Compares another request with that of a key. Changes nothing; a POST, so that a body gets into no address and no log.
#[post("/console/{merchant}/key")]
pub async fn compare(request: HttpRequest, compared: web::Form<Compared>) -> HttpResponse {
    let compared = compared.into_inner();
    let key = compared.key.trim().to_owned();
    view::show(&request, async |view| shown(&request, view, &key, Some(&compared)).await).await
}

async fn shown(
    request: &HttpRequest,
    view: &View,
    key: &str,
    compared: Option<&Compared>,
) -> Result<Page, Error> {
    let merchant = view.merchant();
    let bare = IdempotencyKey::bare(key).map(|key| key.as_str().to_owned());
    let found = match bare.clone() {
        Some(bare) => view.db.run_retrying(move |conn| find(conn, merchant, &bare)).await?,
        None => None,
    };
    let policy = match &found {
        Some(found) => {
            let engine = request.app_data::<web::Data<Engine>>().expect("the server provides it");
            // None for an operation of another release.
            engine.policy(&found.row().operation).await.ok()
        }
        None => None,
    };
    let content = html! {
        form.search role="search" action={ "/console/" (merchant) "/key" } {
            div.grow {
                label for="key" { "Idempotency key, without quotes" }
                input #key name="key" type="search" value=(key) maxlength="255" autocomplete="off" spellcheck="false";
            }
            button { "Look" }
        }
        @match &found {
            Some(found) => (inspected(view, found, policy.as_deref(), compared)),
            None if key.is_empty() => (page::nothing("Paste a key to see what came of its request.")),
            None if bare.is_none() => (page::nothing("No key can have this form: 1 to 255 visible ASCII characters.")),
            None => (page::nothing("This merchant has never used such a key, or it's forgotten by now. A request with it would be executed.")),
        }
    };
    Ok(Page::new("Key inspector", content).of("Key inspector"))
}

fn inspected(view: &View, found: &Inspected, policy: Option<&Policy>, compared: Option<&Compared>) -> Markup {
    let row = found.row();
    let state = row.state().unwrap_or(KeyState::Forgotten);
    let repeats = view.console.live().of_keys(row.merchant_id, [row.key.as_str()].into_iter());
    html! {
        section {
            h2 { "State" }
            (page::facts(&facts(found, state)))
            p.card { (verdict(state, policy)) }
            @if state == KeyState::Parked { p { a href=(runbook::section("OncepayRequestsParked")) { "Runbook: requests that are parked" } } }
        }
        section {
            h2 { "Compare a request" }
            p.soft { "Of what differs, only the place is shown. Nothing is sent or stored." }
            (compare_form(found, compared))
            @if let Some(compared) = compared { (comparison(found, compared, policy)) }
        }
        section {
            h2 { "What came again" }
            @if repeats.is_empty() { (page::nothing("This instance remembers no other request with this key.")) }
            @else {
                ol.timeline {
                    @for (_, seen) in &repeats {
                        li.of-repeat {
                            div.when { (page::time(seen.at)) }
                            div.whence { (seen.outcome.replace('_', " ")) }
                            div.what { (seen.meaning()) ": " b { (seen.status) } @if let Some(code) = seen.code { " " code { (code) } } }
                        }
                    }
                }
            }
        }
        @if let Some(body) = &found.response_body {
            section {
                h2 { "Stored answer" }
                pre tabindex="0" { code { (pretty(body)) } }
            }
        }
    }
}

fn facts(found: &Inspected, state: KeyState) -> Vec<(&'static str, Markup)> {
    let row = found.row();
    let mut facts = vec![
        ("State", page::state(state.as_str())),
        ("Operation", html! { code { (row.operation) } }),
        (
            "Request",
            html! { code { (found.request_method) " " (found.request_path) @if !found.request_query.is_empty() { "?" (found.request_query) } } },
        ),
        (
            "Fingerprint",
            html! {
                code { (hex::encode(&found.fingerprint[..found.fingerprint.len().min(8)])) "…" }
                span.soft { " of " @if found.fingerprint_version == Recipe::RawBody as i16 { "the body's bytes" } @else { "the canonical body" } ", method, path and query" }
            },
        ),
        ("Claimed (UTC)", page::time(row.created_at)),
        ("Attempts", timeline::attempts(&found.used)),
        ("Last attempt", html! { code { (row.request_id) } }),
    ];
    if let Some(trace) = &row.trace_id {
        facts.push(("Trace", html! { code { (trace) } }));
    }
    if let Some(at) = row.lease_expires_at {
        facts.push(("Lease until (UTC)", page::time(at)));
    }
    if let Some(at) = row.recover_at {
        facts.push(("Finished by the service from (UTC)", page::time(at)));
    }
    if let (Some(at), Some(status)) = (row.completed_at, row.response_status) {
        facts.push(("Answered (UTC)", html! { (page::time(at)) " with " b { (status) } }));
    }
    facts.push(("Kept until (UTC)", page::time(row.expires_at)));
    if state == KeyState::Expired || state == KeyState::Completed {
        let until = row.expires_at + chrono::TimeDelta::seconds(found.tombstone_seconds.into());
        facts.push(("Refused until (UTC)", page::time(until)));
    }
    if let (Some(kind), Some(id)) = (&row.resource_type, row.resource_id) {
        let id = ChargeId(id);
        facts.push((
            "Resource",
            match kind.as_str() {
                "charge" => html! { a href=(charge_path(row.merchant_id, id)) { code { (id) } } },
                _ => html! { (kind.replace('_', " ")) },
            },
        ));
    }
    facts
}

/// What the next request with the key gets, and why.
fn verdict(state: KeyState, policy: Option<&Policy>) -> Markup {
    let code = |failure: &Failure| {
        let entry = failure.code().entry();
        html! { b { (entry.status) } " " a href=(entry.path()) { code { (entry.code) } } }
    };
    let is_rejected = policy.is_none_or(|policy| policy.on_expired == OnExpired::Reject);
    html! {
        "The same request, sent now, gets "
        @match state {
            KeyState::Running => {
                (code(&Failure::IdempotencyRequestInProgress { waited_s: None, is_parked: state == KeyState::Parked }))
                ": an attempt holds the lease. With " code { "Prefer: wait" } ", it waits for that one's answer."
            }
            KeyState::Abandoned => "executed: the lease is over, so it takes over where the last attempt stopped, with the same ids and the same keys for the processor.",
            KeyState::Parked => {
                (code(&Failure::IdempotencyRequestInProgress { waited_s: None, is_parked: state == KeyState::Parked }))
                ": the service has given up finishing it by itself, and a person has to look."
            }
            KeyState::Completed => { b { "the stored answer" } ", byte for byte. Nothing is done again." }
            KeyState::Expired if is_rejected => {
                (code(&Failure::IdempotencyKeyExpired))
                ": the answer isn't kept any more, and to execute it again could do it twice."
            }
            KeyState::Expired | KeyState::Forgotten => "executed: the key is free again.",
        }
        " Another request with this key gets "
        @if policy.is_some_and(|policy| policy.on_mismatch == OnMismatch::Replay) {
            "the stored answer, too, if it has the same method and path: the policy says so."
        } @else { (code(&Failure::IdempotencyKeyReused)) "." }
    }
}

fn compare_form(found: &Inspected, compared: Option<&Compared>) -> Markup {
    let method = compared.map_or(found.request_method.as_str(), |compared| &compared.method);
    let path = compared.map_or(found.request_path.as_str(), |compared| &compared.path);
    html! {
        form.stack method="post" action={ "/console/" (found.row().merchant_id) "/key" } {
            input type="hidden" name="key" value=(found.row().key);
            div.pair {
                div {
                    label for="method" { "Method" }
                    select #method name="method" {
                        @for known in ["POST", "PATCH", "PUT", "DELETE"] { option selected[known == method] { (known) } }
                    }
                }
                div.grow {
                    label for="path" { "Path and query" }
                    input #path name="path" value=(path) autocomplete="off" spellcheck="false";
                }
            }
            label for="body" { "Body" }
            textarea #body name="body" rows="6" spellcheck="false" { (compared.map_or("", |compared| &compared.body)) }
            button { "Compare" }
        }
    }
}

fn comparison(found: &Inspected, compared: &Compared, policy: Option<&Policy>) -> Markup {
    let body = if compared.body.trim().is_empty() { "{}" } else { compared.body.as_str() };
    let Ok(value) = json::parse(body.as_bytes()) else {
        return html! { p.wrong role="status" { "The body isn't JSON, so the service would refuse it before it looks at the key." } };
    };
    let (path, query) = compared.path.split_once('?').unwrap_or((compared.path.as_str(), ""));
    let path = paths::normalized(path.trim());
    let content = RequestContent {
        method: compared.method.clone(),
        path_as_sent: (path != compared.path).then(|| compared.path.clone()),
        path: path.clone().into_owned(),
        query: query.to_owned(),
        body: serde_json_canonicalizer::to_vec(&value).unwrap_or_default(),
        raw_body: body.as_bytes().to_vec(),
    };
    let stored = Fingerprint { version: found.fingerprint_version, sha256: found.fingerprint.clone() };
    let mut parts = Vec::new();
    let mut part = |name: &str, is_same: bool| {
        if !is_same {
            parts.push((name.to_owned(), "differs"));
        }
    };
    part("the method", found.request_method == content.method);
    part("the path", found.request_path == content.path);
    part("the query", sorted(&found.request_query) == sorted(&content.query));
    let first = serde_json::from_slice::<Value>(&found.request_body).ok();
    let mut differences = parts;
    if let Some(first) = &first {
        differ("", first, &value, &mut differences);
    }
    let is_kept = first.is_some();
    html! {
        div role="status" {
            @match stored.is_of(&content) {
                Some(true) => p.good-note { "This is the same request." @if !differences.is_empty() { " What differs below doesn't count." } },
                Some(false) => p.wrong {
                    "This is another request"
                    @if policy.is_some_and(|policy| policy.on_mismatch == OnMismatch::Reject) { ", so the key is refused with it" }
                    "."
                },
                None => p.wrong { "The fingerprint is by a recipe of another release." },
            }
            @if !differences.is_empty() {
                ul {
                    @for (place, how) in differences.iter().take(DIFFERENCES_MAX) { li { code { (place) } " " (how) } }
                    @if differences.len() > DIFFERENCES_MAX { li { (differences.len() - DIFFERENCES_MAX) " more" } }
                }
            } @else if !is_kept {
                p.soft { "The first request's body isn't kept any more, so where they differ can't be shown." }
            } @else if stored.is_of(&content) == Some(false) {
                p.soft { "They have the same members and values: this operation compares the body's bytes." }
            }
        }
    }
}

fn sorted(query: &str) -> Vec<&str> {
    let mut parameters: Vec<_> = query.split('&').filter(|parameter| !parameter.is_empty()).collect();
    parameters.sort_unstable();
    parameters
}

/// Collects where two values differ, as JSON pointers (RFC 6901).
fn differ(at: &str, first: &Value, now: &Value, found: &mut Vec<(String, &'static str)>) {
    let place = || if at.is_empty() { "the body".to_owned() } else { at.to_owned() };
    match (first, now) {
        (Value::Object(before), Value::Object(after)) => {
            let mut names: Vec<_> = before.keys().chain(after.keys()).collect();
            names.sort();
            names.dedup();
            for name in names {
                let inner = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
                match (before.get(name), after.get(name)) {
                    (Some(before), Some(after)) => differ(&inner, before, after, found),
                    (Some(_), None) => found.push((inner, "is only in the first request")),
                    _ => found.push((inner, "is only in this one")),
                }
            }
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            for (number, (before, after)) in before.iter().zip(after).enumerate() {
                differ(&format!("{at}/{number}"), before, after, found);
            }
        }
        (Value::Array(_), Value::Array(_)) => found.push((place(), "has another number of items")),
        _ if std::mem::discriminant(first) != std::mem::discriminant(now) => {
            found.push((place(), "has another type"));
        }
        _ if first != now => found.push((place(), "has another value")),
        _ => {}
    }
}

/// An answer as people read it. Secrets in it are sealed where they're stored.
fn pretty(body: &[u8]) -> String {
    serde_json::from_slice::<Value>(body)
        .and_then(|value| serde_json::to_string_pretty(&value))
        .unwrap_or_else(|_| String::from_utf8_lossy(body).into_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_are_places_and_never_values() {
        let first =
            json!({"amount": "1.00", "metadata": {"a/b": "secret-1", "gone": "x"}, "types": [1, 2], "n": 1});
        let now = json!({"amount": "1.00", "metadata": {"a/b": "secret-2", "new~": "y"}, "types": [1, 3], "n": "1"});
        let mut found = Vec::new();
        differ("", &first, &now, &mut found);
        let expected = [
            ("/metadata/a~1b", "has another value"),
            ("/metadata/gone", "is only in the first request"),
            ("/metadata/new~0", "is only in this one"),
            ("/n", "has another type"),
            ("/types/1", "has another value"),
        ];
        assert_eq!(found, expected.map(|(place, how)| (place.to_owned(), how)));
        found.clear();
        differ("", &json!([1]), &json!([1, 2]), &mut found);
        differ("", &json!(1), &json!(2), &mut found);
        assert_eq!(found[0], ("the body".to_owned(), "has another number of items"));
        assert_eq!(found.len(), 2);
    }
}
