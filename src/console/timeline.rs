//! What happened to a charge, from all tables, in the order of time.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{
    Array, BigInt, Integer, Jsonb, Nullable, Numeric, SmallInt, Text, Timestamptz, Uuid as SqlUuid,
};
use maud::{Markup, html};
use rust_decimal::Decimal;
use serde_json::Value;
use uuid::Uuid;

use crate::base::ids::{
    AcquirerEventId, ChargeId, DisputeId, EventId, JournalEntryId, MerchantId, RefundId, WebhookEndpointId,
};
use crate::base::time as times;
use crate::error::Error;
use crate::idempotency::status::{KeyRow, key_columns};
use crate::payments::charges::ChargeRow;
use crate::storage::clock;
use crate::storage::schema::{charges, disputes, refunds};
use crate::storage::sql::statement;

use super::page;

/// Maximum number of rows of each kind.
const ROWS_MAX: u16 = 200;

/// How often an object's entry can be posted again, as far as it's looked for: a dispute that is reopened and decided anew.
const REPEATED_MAX: u32 = 9;

/// Something that happened.
pub struct Moment {
    pub at: DateTime<Utc>,
    /// Word for where it comes from: `request`, `processor`, `ledger` and so on.
    pub source: &'static str,
    pub what: Markup,
}

/// A charge and all that is known of it.
pub struct Story {
    pub charge: ChargeRow,
    pub refunds: Vec<Part>,
    pub disputes: Vec<Part>,
    pub keys: Vec<UsedKey>,
    pub entries: Vec<PostedEntry>,
    pub moments: Vec<Moment>,
}

/// A refund or a dispute of the charge.
pub struct Part {
    /// As in the API.
    pub id: String,
    pub status: String,
    pub amount: Decimal,
    pub currency: String,
    pub reason: Option<String>,
    pub created_at: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
}

/// A part as it's stored.
type PartRow = (Uuid, String, Decimal, String, Option<String>, DateTime<Utc>, Option<DateTime<Utc>>);

/// Reads refunds or disputes, newest first, each with its id in the database.
macro_rules! load_parts {
    ($conn:expr, $merchant:expr, $charge:expr, $table:ident, $ended_at:ident, $id:ident) => {
        $table::table
            .filter($table::merchant_id.eq($merchant).and($table::charge_id.eq($charge.0)))
            .order($table::id.desc())
            .limit(ROWS_MAX.into())
            .select((
                $table::id,
                $table::status,
                $table::amount,
                $table::currency,
                $table::reason,
                $table::created_at,
                $table::$ended_at,
            ))
            .load::<PartRow>($conn)?
            .into_iter()
            .map(|(id, status, amount, currency, reason, created_at, ended_at)| {
                let shown = $id(id).to_string();
                (id, Part { id: shown, status, amount, currency, reason, created_at, ended_at })
            })
            .collect::<Vec<_>>()
    };
}

/// A key whose request was about the charge, or a refund of it.
#[derive(QueryableByName)]
pub struct UsedKey {
    #[diesel(embed)]
    pub key: KeyRow,
    #[diesel(sql_type = Integer)]
    pub takeovers: i32,
}

/// A journal entry with its lines.
pub struct PostedEntry {
    pub id: JournalEntryId,
    pub source: String,
    pub at: DateTime<Utc>,
    /// Account, currency, amount; debits are positive.
    pub lines: Vec<(String, String, Decimal)>,
}

/// Reads all of a charge. Errors: `charge_not_found`.
pub fn read(conn: &mut PgConnection, merchant: MerchantId, id: ChargeId) -> Result<Story, Error> {
    let charge = charges::table
        .find((merchant, id))
        .select(ChargeRow::as_select())
        .first(conn)
        .optional()?
        .ok_or(Error::ChargeNotFound)?;
    let refunds = load_parts!(conn, merchant, id, refunds, failed_at, RefundId);
    let disputes = load_parts!(conn, merchant, id, disputes, closed_at, DisputeId);
    let mut objects = BTreeMap::from([(id.0, id.to_string())]);
    objects.extend(refunds.iter().chain(&disputes).map(|(id, part)| (*id, part.id.clone())));
    let [refunds, disputes] =
        [refunds, disputes].map(|parts| parts.into_iter().map(|(_, part)| part).collect());
    let ids: Vec<Uuid> = objects.keys().copied().collect();
    let keys = used_keys(conn, merchant, &ids)?;
    let entries = entries(conn, merchant, objects.values())?;
    let mut moments = Vec::new();
    of_keys(&keys, &mut moments);
    of_actions(conn, &keys, &mut moments)?;
    of_processor(conn, merchant, &ids, &mut moments)?;
    of_entries(&entries, &mut moments);
    of_events(conn, merchant, &ids, &mut moments)?;
    moments.sort_by_key(|moment| moment.at);
    Ok(Story { charge, refunds, disputes, keys, entries, moments })
}

fn used_keys(conn: &mut PgConnection, merchant: MerchantId, objects: &[Uuid]) -> Result<Vec<UsedKey>, Error> {
    let now = clock::of_cluster(conn)?;
    // Each half has an index of its own.
    macro_rules! keys_where {
        ($state:literal) => {
            concat!(
                "SELECT ",
                key_columns!(),
                ", takeovers FROM (SELECT coalesce($3, clock_timestamp()) AS now) AS clock, idempotency_keys \
                 WHERE merchant_id = $1 AND resource_id = ANY($2) AND ",
                $state
            )
        };
    }
    Ok(sql_query(concat!(
        keys_where!("state <> 'in_progress'"),
        " UNION ALL ",
        keys_where!("state = 'in_progress'"),
        " ORDER BY created_at LIMIT $4"
    ))
    .bind::<SqlUuid, _>(merchant)
    .bind::<Array<SqlUuid>, _>(objects)
    .bind::<Nullable<Timestamptz>, _>(now)
    .bind::<BigInt, _>(i64::from(ROWS_MAX))
    .load(conn)?)
}

fn of_keys(keys: &[UsedKey], moments: &mut Vec<Moment>) {
    for key in keys {
        let row = &key.key;
        moments.push(Moment {
            at: row.created_at,
            source: "request",
            what: html! {
                "Request for " code { (row.operation) } ": the key "
                a href=(page::key_path(row.merchant_id, &row.key)) { code { (row.key) } } " is claimed"
                div.soft {
                    "Last attempt " code { (row.request_id) }
                    @if let Some(trace) = &row.trace_id { " · trace " code { (trace) } }
                }
            },
        });
        if let Some(at) = row.completed_at {
            moments.push(Moment {
                at,
                source: "request",
                what: html! {
                    "The answer " @if let Some(status) = row.response_status { b { (status) } " " }
                    "is stored with its effects; every retry gets it"
                    @if row.attempts > 1 || key.takeovers > 0 { div.soft { (attempts(key)) } }
                },
            });
        } else if let Some(at) = row.parked_at {
            let what = html! { "Given up for a person: " (attempts(key)) };
            moments.push(Moment { at, source: "request", what });
        }
    }
}

/// Who has tried, and what kept them from it.
pub fn attempts(key: &UsedKey) -> Markup {
    let UsedKey { key: row, takeovers } = key;
    html! {
        (row.attempts) @if row.attempts == 1 { " attempt" } @else { " attempts" }
        @if *takeovers > 0 { ", " (takeovers) " of them taken over from one that had gone silent" }
        @if row.recoveries > 0 { "; " (row.recoveries) " by the service itself" }
        @if let Some(error) = &row.last_error { "; the last failure was " code { (error) } }
    }
}

/// What operators did to the keys.
fn of_actions(conn: &mut PgConnection, keys: &[UsedKey], moments: &mut Vec<Moment>) -> Result<(), Error> {
    let subjects: Vec<_> = keys.iter().map(|key| key.key.id().to_string()).collect();
    let actions = statement::<(Timestamptz, Text, Text, Nullable<Text>)>(
        "/* of all merchants */ SELECT created_at, operator, action, reason FROM operator_actions \
         WHERE subject = ANY ({}) ORDER BY id LIMIT {}",
    )
    .bind::<Array<Text>, _>(subjects)
    .bind::<BigInt, _>(i64::from(ROWS_MAX))
    .load::<(DateTime<Utc>, String, String, Option<String>)>(conn)?;
    moments.extend(actions.into_iter().map(|(at, operator, action, reason)| Moment {
        at,
        source: "operator",
        what: html! {
            (operator) ": " code { (action) } @if let Some(reason) = reason { div.soft { (reason) } }
        },
    }));
    Ok(())
}

/// What the processor did by its books, as far as they have been read, and what it told us.
fn of_processor(
    conn: &mut PgConnection,
    merchant: MerchantId,
    objects: &[Uuid],
    moments: &mut Vec<Moment>,
) -> Result<(), Error> {
    let calls = statement::<(Timestamptz, Text, Text, Text, Nullable<Numeric>, Nullable<Text>)>(
        "/* of all merchants */ SELECT created_at, kind, status, id, amount, currency FROM acquirer_operations \
         WHERE merchant_id = {} AND object_id = ANY ({}) ORDER BY sequence LIMIT {}",
    )
    .bind::<SqlUuid, _>(merchant)
    .bind::<Array<SqlUuid>, _>(objects)
    .bind::<BigInt, _>(i64::from(ROWS_MAX))
    .load::<(DateTime<Utc>, String, String, String, Option<Decimal>, Option<String>)>(conn)?;
    moments.extend(calls.into_iter().map(|(at, kind, status, id, amount, currency)| Moment {
        at,
        source: "processor",
        what: html! {
            "By its books: " code { (kind) } " " (page::state(&status))
            @if let (Some(amount), Some(currency)) = (amount, &currency) { " of " (page::money(amount, currency)) }
            div.soft { code { (id) } }
        },
    }));
    let told = statement::<(Timestamptz, SqlUuid, Text, Text, Nullable<Text>)>(
        "/* of all merchants */ SELECT received_at, id, type, state, detail FROM acquirer_events \
         WHERE merchant_id = {} AND object_id = ANY ({}) ORDER BY id LIMIT {}",
    )
    .bind::<SqlUuid, _>(merchant)
    .bind::<Array<SqlUuid>, _>(objects)
    .bind::<BigInt, _>(i64::from(ROWS_MAX))
    .load::<(DateTime<Utc>, AcquirerEventId, String, String, Option<String>)>(conn)?;
    moments.extend(told.into_iter().map(|(at, id, kind, state, detail)| Moment {
        at,
        source: "processor",
        what: html! {
            "It sends " code { (kind) } ": " (page::state(&state))
            @if let Some(detail) = detail { " " (detail) }
            div.soft { code { (id) } }
        },
    }));
    Ok(())
}

fn entries<'a>(
    conn: &mut PgConnection,
    merchant: MerchantId,
    objects: impl Iterator<Item = &'a String>,
) -> Result<Vec<PostedEntry>, Error> {
    let mut sources = Vec::new();
    for object in objects {
        sources.push(object.clone());
        for change in ["capture", "failed", "won", "lost", "reopened"] {
            sources.push(format!("{object}:{change}"));
            sources.extend((1..=REPEATED_MAX).map(|number| format!("{object}:{change}:{number}")));
        }
    }
    let lines = statement::<(SqlUuid, Text, Timestamptz, SmallInt, Text, Text, Numeric)>(
        "SELECT e.id, e.source, e.created_at, p.line, a.kind, p.currency, p.amount \
         FROM journal_entries e JOIN postings p ON p.merchant_id = e.merchant_id AND p.entry_id = e.id \
             JOIN ledger_accounts a ON a.merchant_id = p.merchant_id AND a.id = p.account_id \
         WHERE e.merchant_id = {} AND e.source = ANY ({}) ORDER BY e.id, p.line",
    )
    .bind::<SqlUuid, _>(merchant)
    .bind::<Array<Text>, _>(sources)
    .load::<(JournalEntryId, String, DateTime<Utc>, i16, String, String, Decimal)>(conn)?;
    let mut entries: Vec<PostedEntry> = Vec::new();
    for (id, source, at, _, account, currency, amount) in lines {
        if entries.last().is_none_or(|last| last.id != id) {
            entries.push(PostedEntry { id, source, at, lines: Vec::new() });
        }
        if let Some(entry) = entries.last_mut() {
            entry.lines.push((account, currency, amount));
        }
    }
    Ok(entries)
}

fn of_entries(entries: &[PostedEntry], moments: &mut Vec<Moment>) {
    moments.extend(entries.iter().map(|entry| Moment {
        at: entry.at,
        source: "ledger",
        what: html! {
            "Entry " code { (entry.source) } " is posted, " (entry.lines.len()) " lines"
            div.soft { a href={ "#" (entry.id) } { code { (entry.id) } } }
        },
    }));
}

/// The events, and how they were delivered.
fn of_events(
    conn: &mut PgConnection,
    merchant: MerchantId,
    objects: &[Uuid],
    moments: &mut Vec<Moment>,
) -> Result<(), Error> {
    let events = statement::<(SqlUuid, Text, Timestamptz)>(
        "SELECT id, type, created_at FROM events WHERE merchant_id = {} AND object_id = ANY ({}) ORDER BY id LIMIT {}",
    )
    .bind::<SqlUuid, _>(merchant)
    .bind::<Array<SqlUuid>, _>(objects)
    .bind::<BigInt, _>(i64::from(ROWS_MAX))
    .load::<(EventId, String, DateTime<Utc>)>(conn)?;
    let ids: Vec<Uuid> = events.iter().map(|(id, ..)| id.0).collect();
    let kinds: BTreeMap<Uuid, String> = events.iter().map(|(id, kind, _)| (id.0, kind.clone())).collect();
    moments.extend(events.into_iter().map(|(id, kind, at)| Moment {
        at,
        source: "event",
        what: html! { code { (kind) } div.soft { code { (id) } } },
    }));
    let deliveries = statement::<(SqlUuid, SqlUuid, Text, Jsonb, Timestamptz)>(
        "SELECT event_id, endpoint_id, state, attempts, created_at FROM webhook_deliveries \
         WHERE merchant_id = {} AND event_id = ANY ({}) ORDER BY id LIMIT {}",
    )
    .bind::<SqlUuid, _>(merchant)
    .bind::<Array<SqlUuid>, _>(ids)
    .bind::<BigInt, _>(i64::from(ROWS_MAX))
    .load::<(Uuid, WebhookEndpointId, String, Value, DateTime<Utc>)>(conn)?;
    for (event, endpoint, state, attempts, created_at) in deliveries {
        let kind = kinds.get(&event).map(String::as_str).unwrap_or_default();
        let attempts = attempts.as_array().cloned().unwrap_or_default();
        if attempts.is_empty() {
            let what = html! { code { (kind) } " waits for " code { (endpoint) } };
            moments.push(Moment { at: created_at, source: "delivery", what });
        }
        let last = attempts.len();
        for (number, attempt) in attempts.iter().enumerate().map(|(at, attempt)| (at + 1, attempt)) {
            let at = attempt["started_at"].as_str().and_then(times::parse).unwrap_or(created_at);
            let what = html! {
                code { (kind) } " to " code { (endpoint) } ", attempt " (number) ": "
                @match (attempt["status"].as_u64(), attempt["error"].as_str()) {
                    (Some(status), _) => b { (status) },
                    (None, Some(error)) => (error.replace('_', " ")),
                    (None, None) => "no answer",
                }
                @if let Some(took) = attempt["duration_ms"].as_u64() { " in " (took) " ms" }
                @if number == last { " " (page::state(&state)) }
            };
            moments.push(Moment { at, source: "delivery", what });
        }
    }
    Ok(())
}
