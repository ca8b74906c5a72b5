//! `oncepay policies recommend`: the retries that were seen, and the TTLs that follow from them. Reads only.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use diesel::PgConnection;
use diesel::prelude::*;
use serde::Serialize;

use crate::base::quantities::{about, bytes, count, duration, share};
use crate::base::time::Timestamp;
use crate::host::{Caller, RegisteredOperation};
use crate::idempotency::Policy;
use crate::idempotency::policies::{self, Defaults};
use crate::idempotency::policy::OnExpired;
use crate::idempotency::retries::Found;
use crate::idempotency::retries::advice::{Advice, Cost, Floor, advise};
use crate::idempotency::retries::history::{self, DAYS_MAX, History, KeyBytes, Requests};
use crate::server;
use crate::storage::db;
use crate::storage::schema::webhook_endpoints;

use super::exit::Stop;
use super::shared::{Database, Form, sentence, time_text, write_document, write_line};

/// Width of a bar that stands for all requests.
const BAR_WIDTH: u64 = 30;
/// Shortest TTL that the API promises its clients without naming one.
const PROMISED_S: u32 = 24 * 60 * 60;

/// Options of `oncepay policies recommend`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Name of the operation; default: all that were requested
    #[arg(long)]
    operation: Option<String>,
    /// Number of days to look back, today included
    #[arg(long, default_value_t = DAYS_MAX, value_parser = clap::value_parser!(u32).range(1..=i64::from(DAYS_MAX)))]
    days: u32,
    /// Time for which the processor sends an event again that it got no answer to, in seconds: a minimum for the TTL of
    /// its events
    #[arg(long, default_value_t = 3 * 24 * 60 * 60)]
    processor_redelivers_for_s: u32,
    /// Time for which the service sends a webhook again, in seconds: a minimum for the TTL of merchants' operations, if
    /// there are webhook endpoints
    #[arg(long, env = "ONCEPAY_DELIVERY_GIVE_UP_AFTER_S", default_value_t = 3 * 24 * 60 * 60)]
    delivery_give_up_after_s: u32,
    #[command(flatten)]
    form: Form,
    /// Database of the service
    #[command(flatten)]
    database: Database,
}

/// Runs `oncepay policies recommend`.
pub fn run(options: &Options, out: &mut impl Write) -> Result<(), Stop> {
    let operations = server::operations();
    let asked = |operation: &&RegisteredOperation| {
        options.operation.as_ref().is_none_or(|name| name == operation.descriptor.name)
    };
    let operations: Vec<_> = operations.iter().filter(asked).collect();
    if operations.is_empty() {
        return Err(Stop::Usage("There is no such operation.".to_owned()));
    }
    let conn = &mut db::connect(&options.database.database_url)?;
    let history = history::load(conn, options.days).map_err(sentence)?;
    let (sizes, other_sizes) = history::key_bytes(conn).map_err(sentence)?;
    let defaults: Vec<_> = operations.iter().map(|operation| Defaults::of(&operation.descriptor)).collect();
    let policies = policies::load(conn, &defaults).map_err(sentence)?;
    let has_endpoints = has_endpoints(conn).map_err(sentence)?;
    let reports: Vec<_> = operations
        .iter()
        .map(|operation| {
            let descriptor = &operation.descriptor;
            let name = descriptor.name;
            let policy = policies.get(name).cloned().unwrap_or_else(|| Arc::new(descriptor.policy()));
            let requests = history.by_operation.get(name).cloned().unwrap_or_default();
            let size = sizes.get(name).copied().unwrap_or(other_sizes);
            let floors = floors(descriptor.caller, options, has_endpoints);
            Report::new(name, policy, requests, size, &history, &floors)
        })
        .collect();
    if options.form.json {
        return Ok(write_document(out, &Document::of(&history, &reports))?);
    }
    print(&reports, &history, options.operation.is_some(), out);
    Ok(())
}

/// Whether any merchant has webhooks delivered.
fn has_endpoints(conn: &mut PgConnection) -> QueryResult<bool> {
    diesel::select(diesel::dsl::exists(
        webhook_endpoints::table.filter(webhook_endpoints::status.eq("enabled")),
    ))
    .get_result(conn)
}

/// The minimums for the TTL of operations of this caller.
fn floors(caller: Caller, options: &Options, has_endpoints: bool) -> Vec<Floor> {
    let floor = |ttl_seconds, reason: &str| Floor { ttl_seconds, reason: reason.to_owned() };
    let mut floors = vec![floor(PROMISED_S, "clients expect to be able to retry for a day")];
    match caller {
        Caller::Acquirer => floors.push(floor(
            options.processor_redelivers_for_s,
            "the processor sends an event again for that long",
        )),
        Caller::Merchant if has_endpoints => floors.push(floor(
            options.delivery_give_up_after_s,
            "a webhook is sent again for that long, and its receiver may repeat a request each time",
        )),
        Caller::Merchant | Caller::Operator => {}
    }
    floors
}

/// What is reported of an operation.
struct Report {
    operation: &'static str,
    policy: Arc<Policy>,
    requests: Requests,
    advice: Advice,
    /// Bytes of an answer.
    answer_bytes: u64,
    present: Cost,
    recommended: Cost,
}

impl Report {
    fn new(
        operation: &'static str,
        policy: Arc<Policy>,
        requests: Requests,
        size: KeyBytes,
        history: &History,
        floors: &[Floor],
    ) -> Self {
        let observed =
            history.since.map_or(Duration::ZERO, |since| (history.now - since).to_std().unwrap_or_default());
        let advice = advise(&requests, &policy, observed, floors);
        let cost = |ttl_seconds| Cost::of(requests.keys_per_day, size, &policy, ttl_seconds);
        let (present, recommended) = (cost(policy.ttl_seconds), cost(advice.ttl_seconds));
        Self { operation, policy, requests, advice, answer_bytes: size.answer, present, recommended }
    }

    fn retries(&self) -> u64 {
        self.requests.number(&RETRIES)
    }
}

/// All requests but those with a new key.
const RETRIES: [Found; 5] =
    [Found::Answer, Found::Unfinished, Found::OtherRequest, Found::Expired, Found::Free];

fn print(reports: &[Report], history: &History, is_asked: bool, out: &mut impl Write) {
    let Some(since) = history.since else {
        write_line(
            out,
            "No requests were counted yet. A service that runs stores its counts every few seconds.",
        );
        return;
    };
    let observed_s = u64::try_from((history.now - since).num_seconds()).unwrap_or_default();
    write_line(out, &format!("Requests since {} ({})", time_text(since), about(observed_s)));
    let (with, without): (Vec<_>, Vec<_>) = reports.iter().partition(|report| report.retries() > 0);
    for report in with {
        print_one(report, history, out);
    }
    let (unretried, unused): (Vec<_>, Vec<_>) =
        without.into_iter().partition(|report| is_asked || report.requests.number(&[Found::New]) > 0);
    for report in &unretried {
        let keys = count(report.requests.number(&[Found::New]));
        let ttl = duration(report.policy.ttl_seconds.into());
        write_line(out, "");
        write_line(
            out,
            &format!("{}: {keys} new keys and no retries. The TTL stays {ttl}.", report.operation),
        );
    }
    if !unused.is_empty() {
        write_line(out, "");
        write_line(out, &format!("Operations that were not requested: {}.", unused.len()));
    }
}

fn print_one(report: &Report, history: &History, out: &mut impl Write) {
    let Report { operation, policy, requests, advice, .. } = report;
    let mut line = |text: &str| write_line(out, text.trim_end());
    let afterwards = match (policy.on_expired, policy.tombstone_seconds) {
        (OnExpired::Reject, 1..) => {
            format!("then refused for {}, then free", duration(policy.tombstone_seconds.into()))
        }
        _ => "then free".to_owned(),
    };
    line("");
    line(&format!("{operation}: answers are kept for {}, {afterwards}", duration(policy.ttl_seconds.into())));
    line("");
    line(&format!(
        "  {} new keys, and {} retries, which found",
        count(requests.number(&[Found::New])),
        count(report.retries())
    ));
    for (found, meaning) in [
        (Found::Answer, "the answer"),
        (Found::Unfinished, "a request in progress"),
        (Found::OtherRequest, "another request under their key (refused, or as on_mismatch says)"),
        (Found::Expired, "an expired key (refused)"),
        (Found::Free, "a key that was free again (executed again)"),
    ] {
        let number = requests.number(&[found]);
        if number > 0 {
            line(&format!("  {:>12}  {meaning}", count(number)));
        }
    }
    line("");
    line("  since the first claim       retries      share");
    for (bound_s, number) in requests.by_bound(&RETRIES).filter(|(_, number)| *number > 0) {
        let bar =
            "#".repeat(usize::try_from((number * BAR_WIDTH).div_ceil(report.retries())).unwrap_or_default());
        line(&format!(
            "  up to {:<12} {:>16} {:>10}  {bar}",
            duration(bound_s.into()),
            count(number),
            share(number, report.retries())
        ));
    }
    line("");
    let (present, recommended) = (policy.ttl_seconds, advice.ttl_seconds);
    line(&match recommended == present {
        true => format!("  Recommended TTL: {}, as it is", duration(present.into())),
        false => {
            format!(
                "  Recommended TTL: {} instead of {}",
                duration(recommended.into()),
                duration(present.into())
            )
        }
    });
    for reason in &advice.reasons {
        line(&format!("    {reason}"));
    }
    for warning in &advice.warnings {
        line(&format!("  ! {warning}"));
    }
    line("");
    line(&format!(
        "  Cost: {} new keys and {} a day, at the rate of the last {}",
        count(requests.keys_per_day),
        bytes(requests.keys_per_day.saturating_mul(report.answer_bytes)),
        about(history.rate_seconds)
    ));
    let mut costs = vec![report.present, report.recommended];
    costs.dedup();
    for cost in costs {
        line(&format!(
            "    {:<8} {:>12} answers and {:>12} tombstones at a time, {} with their indexes",
            duration(cost.ttl_seconds.into()),
            count(cost.answers),
            count(cost.tombstones),
            bytes(cost.bytes)
        ));
    }
    line("");
    line("  With a TTL of       refused   executed again");
    for row in &advice.shorter {
        let mark = match row.ttl_seconds {
            ttl if ttl == recommended => "  recommended",
            ttl if ttl == present => "  at present",
            _ => "",
        };
        line(&format!(
            "    {:<12} {:>10} {:>16}{mark}",
            duration(row.ttl_seconds.into()),
            count(row.refused),
            count(row.executed_again)
        ));
    }
    if recommended != present {
        line("");
        line(&format!("  oncepay policies set {operation} ttl_seconds={recommended}"));
    }
}

/// The reports as JSON.
#[derive(Serialize)]
struct Document<'a> {
    since: Option<Timestamp>,
    until: Timestamp,
    operations: Vec<OperationReport<'a>>,
}

#[derive(Serialize)]
struct OperationReport<'a> {
    operation: &'a str,
    ttl_seconds: u32,
    tombstone_seconds: u32,
    on_expired: OnExpired,
    new_keys: u64,
    keys_per_day: u64,
    bytes_per_day: u64,
    retries: Vec<Retries>,
    recommended: &'a Advice,
    costs: [Cost; 2],
}

#[derive(Serialize)]
struct Retries {
    found: &'static str,
    at_most_seconds: u32,
    requests: u64,
}

impl<'a> Document<'a> {
    fn of(history: &History, reports: &'a [Report]) -> Self {
        let operations = reports.iter().map(|report| OperationReport {
            operation: report.operation,
            ttl_seconds: report.policy.ttl_seconds,
            tombstone_seconds: report.policy.tombstone_seconds,
            on_expired: report.policy.on_expired,
            new_keys: report.requests.number(&[Found::New]),
            keys_per_day: report.requests.keys_per_day,
            bytes_per_day: report.requests.keys_per_day.saturating_mul(report.answer_bytes),
            retries: retries(&report.requests),
            recommended: &report.advice,
            costs: [report.present, report.recommended],
        });
        Self {
            since: history.since.map(Timestamp),
            until: Timestamp(history.now),
            operations: operations.collect(),
        }
    }
}

fn retries(requests: &Requests) -> Vec<Retries> {
    let of = |found: Found| {
        let counts: Vec<_> = requests.by_bound(&[found]).filter(|(_, requests)| *requests > 0).collect();
        counts.into_iter().map(move |(at_most_seconds, requests)| Retries {
            found: found.as_str(),
            at_most_seconds,
            requests,
        })
    };
    RETRIES.into_iter().flat_map(of).collect()
}
