//! Reconciliation: checks that the processor did what our books say, and nothing else.
//!
//! A table holds a copy of the processor's list of operations, continued from the end of the last reading.
//! One query (`acquirer_differences`, in the migrations) then compares it with our charges, refunds and
//! payouts. The two sides know each other's objects by the reference in every call. An operation that is
//! under way at that moment is no difference: its request is in progress, and either it finishes or its
//! absence shows the next time.
//!
//! Reconciliation repairs two kinds of differences. An operation under the reference of an object that was lost, and
//! whose request has come again, is given to the object that this made (see the module `lost`). An authorization
//! without a charge (an *orphan*, for example after a restore from a backup) holds a customer's money for nothing; the
//! policy decides whether and when it's voided. All other differences take a person to judge, who ends them or
//! [accepts](differences::accept) them.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Double, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use secrecy::SecretString;
use serde_json::{Value, json};
use uuid::Uuid;

use super::differences;
use super::lost;
use super::metrics::Metrics;
use super::totals::{self, Named, NotCompared};
use crate::base::defaults::defaults;
use crate::base::ids::MerchantId;
use crate::base::metrics::Registry;
use crate::base::progress::{Step, Tell, untold};
use crate::base::time;
use crate::base::trace::TraceContext;
use crate::error::Error;
use crate::processor::{Adapter, Books, Page, Processor, ProcessorCall, ProcessorError, ProcessorOperation};
use crate::storage;
use crate::storage::db::{Db, plan_freely};
use crate::storage::sql::{grouped, statement};
use crate::storage::{merchants, shape};

pub use super::differences::{Difference, Report};

/// Number of operations requested at a time.
const PAGE: usize = 1_000;
/// The error if the processor keeps no books.
const NO_BOOKS: &str = "The processor keeps no books that could be compared with ours.";
/// Differences that the comparison can find.
const DIFFERENCES: [&str; 5] =
    ["missing_at_acquirer", "missing_here", "orphaned_authorization", "amount_differs", "duplicate"];
/// Maximum time for the comparison, which reads everything.
const COMPARISON_TIMEOUT: Duration = Duration::from_secs(600);

/// Settings of the reconciliation.
#[derive(Clone, Copy, Debug, clap::Args)]
#[group(id = "reconciliation")]
pub struct Options {
    /// Minimum age of our operations that are reported as missing in the processor's list when it's read, in
    /// seconds: the list may lag by so much
    #[arg(long, env = "ONCEPAY_RECONCILE_GRACE_S", default_value_t = 60)]
    pub reconcile_grace_s: u32,

    /// Age at which an authorization without a charge is voided, in seconds; or `never`
    #[arg(long, env = "ONCEPAY_VOID_ORPHANS_AFTER_S", default_value = "86400")]
    pub void_orphans_after_s: VoidAfter,
}

impl Default for Options {
    fn default() -> Self {
        defaults()
    }
}

/// Age at which orphans are voided, if at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoidAfter(pub Option<Duration>);

impl FromStr for VoidAfter {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "never" {
            return Ok(Self(None));
        }
        let seconds: u32 = text.parse().map_err(|_| "must be a number of seconds, or `never`")?;
        Ok(Self(Some(Duration::from_secs(seconds.into()))))
    }
}

/// Reads the processor's new operations, compares, and voids orphans.
///
/// The totals take longer than all the rest. Without `needs_totals`, they are only added up if there are differences.
///
/// Errors, in the order checked: `database_unavailable`; `processor_unavailable` when the processor's list
/// can't be read. An orphan that can't be voided is logged and stays a difference.
pub async fn run(
    db: &Db,
    processor: &dyn Processor,
    books: &dyn Books,
    options: Options,
    needs_totals: bool,
    metrics: &Metrics,
    tell: Tell<'_>,
) -> Result<Report, Error> {
    read(db, books, tell).await?;
    tell(Step { what: "comparing", done: 0, total: None });
    let grace_s = options.reconcile_grace_s;
    let mut report = db
        .run_within(COMPARISON_TIMEOUT, move |conn| assign_and_compare(conn, grace_s, needs_totals))
        .await?;
    if let VoidAfter(Some(age)) = options.void_orphans_after_s {
        for difference in &mut report.differences {
            if difference.is_orphan_since(age) && is_forsaken(db, difference).await? {
                difference.is_voided = void(processor, difference).await;
                metrics.orphans_voided.inc_by(difference.is_voided.into());
            }
        }
    }
    note(&report, metrics);
    Ok(report)
}

fn note(report: &Report, metrics: &Metrics) {
    for kind in DIFFERENCES {
        let found = report.differences.iter().filter(|found| found.difference == kind && !found.is_voided);
        let count = i64::try_from(found.count()).unwrap_or(i64::MAX);
        metrics.reconciliation_differences.with_label_values(&[kind]).set(count);
    }
    #[expect(clippy::float_arithmetic, reason = "Prometheus' times are seconds in floats")]
    metrics.reconciled_at.set(time::now().timestamp_millis() as f64 / 1e3);
}

/// Copies the processor's operations since the last reading.
pub async fn read(db: &Db, books: &dyn Books, tell: Tell<'_>) -> Result<(), Error> {
    let (begun, mut sequence) = db.run_retrying(begin_reading).await?;
    let mut done = 0;
    loop {
        tell(Step { what: "operations of the processor", done, total: None });
        let Page { operations, has_more } = books.operations(sequence, PAGE).await?;
        sequence = operations.last().map_or(sequence, |operation| operation.sequence);
        done += operations.len();
        let rows: Vec<_> = operations.iter().map(to_row).collect();
        let rows = Value::Array(rows);
        db.run_retrying(move |conn| conn.transaction(|conn| keep(conn, rows.clone(), sequence))).await?;
        if !has_more {
            break;
        }
    }
    let finish = move |conn: &mut PgConnection| {
        statement::<()>("UPDATE acquirer_reads SET read_at = greatest(read_at, {})")
            .bind::<Timestamptz, _>(begun)
            .execute(conn)?;
        Ok(())
    };
    db.run_retrying(finish).await
}

/// Reads and compares once, for a command. The error is a sentence.
pub fn run_once(
    database_url: &SecretString,
    adapter: &Adapter,
    options: Options,
    tell: Tell<'_>,
) -> Result<Report, String> {
    once(database_url, adapter, async |db, books, metrics| {
        run(&db, &*adapter.processor, books, options, true, &metrics, tell).await
    })
}

/// Reads without comparing, for the audit. The error is a sentence.
pub fn read_from(database_url: &SecretString, adapter: &Adapter, tell: Tell<'_>) -> Result<(), String> {
    once(database_url, adapter, async |db, books, _| read(&db, books, tell).await)
}

fn once<T>(
    database_url: &SecretString,
    adapter: &Adapter,
    work: impl AsyncFnOnce(Db, &dyn Books, Arc<Metrics>) -> Result<T, Error>,
) -> Result<T, String> {
    let books = adapter.books.as_deref().ok_or(NO_BOOKS)?;
    let registry = Registry::new();
    let metrics = Arc::new(Metrics::new(&registry));
    actix_web::rt::System::new().block_on(async {
        let db = Db::new(database_url, 1, Duration::from_secs(5), storage::metrics::Metrics::new(&registry));
        work(db, books, metrics).await.map_err(|error| {
            format!("Couldn't compare our books with the processor's: {}.", error.detailed())
        })
    })
}

/// Records that the processor is in use from now on, unless that is recorded already.
fn remember_beginning(conn: &mut PgConnection) -> Result<(), Error> {
    statement::<()>("INSERT INTO acquirer_reads DEFAULT VALUES ON CONFLICT DO NOTHING").execute(conn)?;
    Ok(())
}

/// Records that the processor is in use. Returns the time of the last reading, or else of the first use, in seconds since
/// 1970.
fn begin_comparing(conn: &mut PgConnection) -> Result<f64, Error> {
    remember_beginning(conn)?;
    Ok(statement::<Double>(
        "SELECT extract(epoch FROM coalesce(read_at, since))::double precision FROM acquirer_reads",
    )
    .get_result(conn)?)
}

fn begin_reading(conn: &mut PgConnection) -> Result<(DateTime<Utc>, i64), Error> {
    remember_beginning(conn)?;
    Ok(statement::<(Timestamptz, BigInt)>("SELECT clock_timestamp(), sequence FROM acquirer_reads")
        .get_result(conn)?)
}

/// Converts an operation to a row of the copy.
fn to_row(operation: &ProcessorOperation) -> Value {
    let object_id = operation.reference.split_once('_').and_then(|(_, id)| Uuid::try_parse(id).ok());
    json!({
        "id": operation.id,
        "sequence": operation.sequence,
        "kind": operation.kind.as_str(),
        "status": operation.status.as_str(),
        "idempotency_key": operation.idempotency_key,
        "authorization_id": operation.authorization_id,
        "merchant_id": operation.merchant.parse::<MerchantId>().ok().map(|merchant| merchant.0),
        "object_id": object_id,
        "reference": operation.reference,
        "currency": operation.currency,
        "amount": operation.amount,
        "created_at": operation.created_at,
    })
}

/// SQL: keeps operations, of the merchant that is given. Two readings may overlap; the later state wins.
macro_rules! keep_operations {
    ($merchant:literal, $key:literal) => {
        concat!(
            "INSERT INTO acquirer_operations (id, sequence, kind, status, idempotency_key, authorization_id, merchant_id, \
                 object_id, reference, currency, amount, created_at) \
             SELECT r.id, r.sequence, r.kind, r.status, r.idempotency_key, r.authorization_id, ",
            $merchant,
            ", r.object_id, r.reference, r.currency, r.amount, r.created_at \
             FROM jsonb_to_recordset({}) AS r (id text, sequence bigint, kind text, status text, \
                 idempotency_key text, authorization_id text, merchant_id uuid, object_id uuid, reference text, \
                 currency text, amount numeric, created_at timestamptz) \
             ON CONFLICT (",
            $key,
            ") DO UPDATE SET sequence = EXCLUDED.sequence, status = EXCLUDED.status, \
                 amount = EXCLUDED.amount, currency = EXCLUDED.currency \
             WHERE acquirer_operations.sequence < EXCLUDED.sequence"
        )
    };
}

/// Sorts operations by merchant.
fn by_merchant(rows: Value) -> BTreeMap<Uuid, Vec<Value>> {
    let Value::Array(rows) = rows else { return BTreeMap::new() };
    grouped(rows.into_iter().map(|row| {
        let merchant = row["merchant_id"].as_str().and_then(|id| Uuid::try_parse(id).ok());
        (merchant.unwrap_or(merchants::NOBODY), row)
    }))
}

fn keep(conn: &mut PgConnection, rows: Value, sequence: i64) -> Result<(), Error> {
    if shape::is_distributed() {
        for (merchant, rows) in by_merchant(rows) {
            statement::<()>(keep_operations!("{}", "merchant_id, id"))
                .bind::<SqlUuid, _>(merchant)
                .bind::<Jsonb, _>(Value::Array(rows))
                .execute(conn)?;
        }
    } else {
        statement::<()>(keep_operations!("r.merchant_id", "id")).bind::<Jsonb, _>(rows).execute(conn)?;
    }
    statement::<()>("UPDATE acquirer_reads SET sequence = greatest(sequence, {})")
        .bind::<BigInt, _>(sequence)
        .execute(conn)?;
    Ok(())
}

/// Compares on one snapshot. Reads everything, takes no locks.
fn compare(conn: &mut PgConnection, grace_s: u32, needs_totals: bool) -> Result<Report, Error> {
    conn.build_transaction().read_only().repeatable_read().run(|conn| {
        read_slowly(conn)?;
        let differences = differences::load(conn, f64::from(grace_s))?;
        if differences.is_empty() && !needs_totals {
            return Ok(Report { totals: Vec::new(), not_compared: NotCompared::default(), differences });
        }
        let mut named = Named::default();
        for difference in &differences {
            match &difference.operation_id {
                Some(id) => named.operations.push(id.clone()),
                None => named.missing.push(format!("{} {}", difference.kind, difference.reference)),
            }
        }
        let (totals, not_compared) = totals::load(conn, &named)?;
        Ok(Report { totals, not_compared, differences })
    })
}

/// Compares, after giving operations of lost objects to those that took their place.
fn assign_and_compare(conn: &mut PgConnection, grace_s: u32, needs_totals: bool) -> Result<Report, Error> {
    let report = compare(conn, grace_s, needs_totals)?;
    let assigned = conn.transaction(|conn| {
        read_slowly(conn)?;
        lost::assign(conn, &report.differences)
    })?;
    if assigned == 0 { Ok(report) } else { compare(conn, grace_s, needs_totals) }
}

/// Lets the transaction's statements take their time.
fn read_slowly(conn: &mut PgConnection) -> Result<(), Error> {
    diesel::sql_query("SET LOCAL statement_timeout = '10min'").execute(conn)?;
    plan_freely(conn)?;
    Ok(())
}

/// True if nobody has begun to rely on an orphan since the comparison. After a claim was lost, the retry of its
/// request gets a new charge and the lost one's authorization, however old that is.
async fn is_forsaken(db: &Db, orphan: &Difference) -> Result<bool, Error> {
    let (merchant, authorization_id) = (orphan.merchant_id, orphan.authorization_id.clone());
    let look = move |conn: &mut PgConnection| {
        let is_forsaken = statement::<Bool>(
            "SELECT NOT EXISTS (SELECT FROM charges WHERE merchant_id = {} AND authorization_id = {} AND status <> 'failed') \
                 AND NOT EXISTS (SELECT FROM idempotency_keys \
                     WHERE merchant_id = {} AND state = 'in_progress' AND resource_type = 'charge')",
        )
        .bind::<Nullable<SqlUuid>, _>(merchant)
        .bind::<Nullable<Text>, _>(authorization_id.as_deref())
        .bind::<Nullable<SqlUuid>, _>(merchant)
        .get_result(conn)?;
        Ok::<bool, Error>(is_forsaken)
    };
    db.run_retrying(look).await
}

/// Voids an orphan.
async fn void(processor: &dyn Processor, orphan: &Difference) -> bool {
    let Some(authorization_id) = orphan.authorization_id.as_deref() else { return false };
    let call = ProcessorCall {
        // The same key for every attempt until the orphan shows as voided.
        key: format!("orphan:{authorization_id}:void"),
        merchant: MerchantId(orphan.merchant_id.unwrap_or_default()),
        reference: orphan.reference.clone(),
        attempt: 1,
        trace: TraceContext::begin(),
    };
    match processor.void(&call, authorization_id).await {
        Ok(()) => {
            log::warn!(authorization_id, reference = orphan.reference.as_str(); "an orphaned authorization was voided");
            true
        }
        // It has lapsed by itself.
        Err(ProcessorError::Refused(refusal)) if refusal.is_nothing_held() => true,
        Err(error) => {
            log::error!(authorization_id, reference = orphan.reference.as_str(); "an orphaned authorization can't be voided: {error}");
            false
        }
    }
}

/// Reconciles every `interval`, on one instance at a time. Doesn't return.
pub async fn keep_reconciling(
    db: Db,
    processor: Arc<dyn Processor>,
    books: Arc<dyn Books>,
    options: Options,
    interval: Duration,
    metrics: Arc<Metrics>,
) {
    // Often enough to notice soon when it's due, whichever instance did it last.
    let look = (interval / 10).max(Duration::from_millis(10));
    // Operations from now on can be reported as missing.
    match db.run_retrying(begin_comparing).await {
        Ok(compared_at_s) => metrics.reconciled_at.set(compared_at_s),
        Err(error) => log::warn!("couldn't note since when the processor is asked: {}", error.detailed()),
    }
    loop {
        tokio::time::sleep(time::jittered(look)).await;
        match db.run_retrying(move |conn| take_turn(conn, interval)).await {
            Ok(false) => continue,
            Ok(true) => {}
            Err(error) => {
                log::warn!("can't find out whether to reconcile: {}", error.detailed());
                continue;
            }
        }
        match run(&db, &*processor, &*books, options, false, &metrics, &mut untold).await {
            Ok(report) if report.is_settled() => {}
            Ok(report) => log::error!("our books and the processor's differ:\n{report}"),
            Err(error) => log::warn!("couldn't reconcile with the processor: {}", error.detailed()),
        }
    }
}

/// Returns true if it's this instance's turn. If so, no instance has another turn for `interval`.
fn take_turn(conn: &mut PgConnection, interval: Duration) -> Result<bool, Error> {
    remember_beginning(conn)?;
    let taken = statement::<()>(
        "UPDATE acquirer_reads SET due_at = clock_timestamp() + make_interval(secs => {}) \
         WHERE due_at <= clock_timestamp()",
    )
    .bind::<Double, _>(interval.as_secs_f64())
    .execute(conn)?;
    Ok(taken == 1)
}
