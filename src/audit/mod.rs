//! The audit: checks that all tables agree.
//!
//! Each check is a query that finds violations; every check must find none. All run on one snapshot, so that
//! concurrent requests don't disturb them, and they only read, so that anybody may run them at any time. The
//! database itself refuses most of the violations. That is why an audit is worth having: it tells when a
//! guard has failed.

pub(crate) mod api;
mod distributed;
pub(crate) mod last_run;
pub mod metrics;
pub mod schedule;

use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Text};
use serde::Serialize;
use utoipa::ToSchema;

use crate::base::progress::{Step, Tell, untold};
use crate::error::{Error, Failure};
use crate::idempotency::ResourceKind;
use crate::inbound::differences::is_open;
use crate::storage::db::plan_freely;
use crate::storage::migrations;
use crate::storage::shape;

/// Maximum duration of a check, unless the audit has a limit of its own.
const CHECK_TIMEOUT: Duration = Duration::from_secs(600);
/// Maximum number of sample ids per check.
const SAMPLES_MAX: usize = 5;

/// Result of an audit.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuditReport {
    /// Whether no check found a violation.
    #[schema(example = true)]
    pub clean: bool,
    /// Results of all checks.
    pub checks: Vec<CheckResult>,
}

/// Result of one check.
#[derive(Debug, Serialize, ToSchema)]
pub struct CheckResult {
    /// Name of the check.
    #[schema(example = "unbalanced_entries")]
    pub name: &'static str,
    /// Violation that the check looks for.
    #[schema(example = "journal entries whose postings don't sum to zero per currency")]
    pub description: &'static str,
    /// Number of violations.
    #[schema(example = 0)]
    pub violations: i64,
    /// Up to five violations.
    #[schema(example = json!([]))]
    pub samples: Vec<String>,
}

/// The query of a check.
enum Query {
    /// A fixed query.
    Fixed(&'static str),
    /// A query that depends on the resource kinds.
    OfKinds(fn(&[&'static ResourceKind]) -> String),
}

struct Check {
    name: &'static str,
    description: &'static str,
    /// Returns one text per violation.
    query: Query,
}

const CHECKS: &[Check] = &[
    Check {
        name: "unbalanced_entries",
        description: "journal entries whose postings don't sum to zero per currency",
        query: Query::Fixed(
            "SELECT DISTINCT 'je_' || replace(entry_id::text, '-', '') FROM postings \
                GROUP BY merchant_id, entry_id, currency HAVING sum(amount) <> 0",
        ),
    },
    Check {
        name: "empty_entries",
        description: "journal entries without postings",
        query: Query::Fixed(
            "SELECT e.source FROM journal_entries e WHERE NOT EXISTS ( \
                SELECT FROM postings p WHERE p.merchant_id = e.merchant_id AND p.entry_id = e.id)",
        ),
    },
    Check {
        name: "trial_balance",
        description: "merchants and currencies whose debits and credits differ",
        query: Query::Fixed(
            "SELECT 'mer_' || replace(merchant_id::text, '-', '') || ' ' || currency FROM postings \
                GROUP BY merchant_id, currency HAVING sum(amount) <> 0",
        ),
    },
    Check {
        name: "foreign_postings",
        description: "postings to an account that doesn't exist or has another currency",
        query: Query::Fixed(
            "SELECT 'je_' || replace(p.entry_id::text, '-', '') || '.' || p.line FROM postings p \
                LEFT JOIN ledger_accounts a ON a.merchant_id = p.merchant_id AND a.id = p.account_id \
                WHERE a.currency IS DISTINCT FROM p.currency",
        ),
    },
    Check {
        name: "balance_mismatch",
        description: "accounts whose checkpoint isn't the sum of the postings that it stands for",
        query: Query::Fixed(
            "SELECT 'la_' || replace(c.account_id::text, '-', '') FROM ledger_checkpoints c \
                WHERE c.balance <> coalesce((SELECT sum(p.amount) FROM postings p \
                    WHERE p.merchant_id = c.merchant_id AND p.account_id = c.account_id \
                    AND p.transaction_id < c.horizon), 0)",
        ),
    },
    Check {
        name: "negative_payable",
        description: "merchant_payable below zero without a dispute or a correcting entry that explains it",
        query: Query::Fixed(
            "SELECT 'la_' || replace(a.id::text, '-', '') FROM ledger_accounts a \
                CROSS JOIN LATERAL (SELECT coalesce(sum(p.amount), 0) AS amount FROM postings p \
                    WHERE p.merchant_id = a.merchant_id AND p.account_id = a.id) AS balance \
                WHERE a.kind = 'merchant_payable' AND balance.amount > 0 \
                AND balance.amount > coalesce((SELECT sum(d.amount) FROM disputes d \
                    WHERE d.merchant_id = a.merchant_id AND d.currency = a.currency AND d.status <> 'won'), 0) \
                    + greatest(coalesce((SELECT sum(p.amount) FROM postings p \
                        JOIN journal_corrections c ON c.merchant_id = p.merchant_id AND c.entry_id = p.entry_id \
                        WHERE p.merchant_id = a.merchant_id AND p.account_id = a.id), 0), 0)",
        ),
    },
    Check {
        name: "key_without_resource",
        description: "completed keys whose answer made a resource that doesn't exist",
        query: Query::OfKinds(keys_without_resource),
    },
    Check {
        name: "two_resources_for_one_key",
        description: "charges that share the processor operation, which is named by the idempotency key",
        query: Query::Fixed(
            "SELECT min('ch_' || replace(id::text, '-', '')) FROM charges \
                GROUP BY merchant_id, authorization_id HAVING count(*) > 1",
        ),
    },
    Check {
        name: "two_keys_for_one_resource",
        description: "resources that two keys claim to have made",
        query: Query::Fixed(
            "SELECT min(key) FROM idempotency_keys WHERE operation LIKE '%.create' \
                GROUP BY merchant_id, resource_id HAVING count(*) > 1 AND resource_id IS NOT NULL",
        ),
    },
    Check {
        name: "charge_entries",
        description: "captured charges without a journal entry of that amount, and entries without such a charge",
        query: Query::Fixed(
            "SELECT coalesce(c.source, e.source) FROM ( \
                    SELECT merchant_id, 'ch_' || replace(id::text, '-', '') || ':capture' AS source, amount_captured AS amount \
                    FROM charges WHERE amount_captured > 0) c \
                FULL JOIN (SELECT e.merchant_id, e.source, sum(p.amount) AS amount \
                    FROM journal_entries e JOIN postings p ON p.merchant_id = e.merchant_id AND p.entry_id = e.id \
                    WHERE e.source LIKE 'ch\\_%:capture' AND p.amount > 0 GROUP BY 1, 2) e \
                ON e.merchant_id = c.merchant_id AND e.source = c.source \
                WHERE c.amount IS DISTINCT FROM e.amount",
        ),
    },
    Check {
        name: "refund_entries",
        description: "refunds that were made without a journal entry of that amount",
        query: Query::Fixed(
            "SELECT 're_' || replace(r.id::text, '-', '') FROM refunds r WHERE r.status <> 'pending' \
                AND coalesce(r.failure_code, '') NOT IN ('refund_refused', 'request_abandoned') \
                AND r.amount IS DISTINCT FROM (SELECT sum(p.amount) FROM journal_entries e \
                    JOIN postings p ON p.merchant_id = e.merchant_id AND p.entry_id = e.id AND p.amount > 0 \
                    WHERE e.merchant_id = r.merchant_id AND e.source = 're_' || replace(r.id::text, '-', ''))",
        ),
    },
    Check {
        name: "refunds_over_captured",
        description: "charges whose refunds exceed what was captured or differ from what the charge says",
        query: Query::Fixed(
            "SELECT 'ch_' || replace(c.id::text, '-', '') FROM charges c \
                JOIN (SELECT merchant_id, charge_id, \
                        coalesce(sum(amount) FILTER (WHERE status = 'succeeded'), 0) AS refunded, \
                        coalesce(sum(amount) FILTER (WHERE status = 'pending'), 0) AS pending \
                      FROM refunds GROUP BY 1, 2) r ON r.merchant_id = c.merchant_id AND r.charge_id = c.id \
                WHERE r.refunded + r.pending > c.amount_captured \
                   OR r.refunded <> c.amount_refunded OR r.pending <> c.amount_refund_pending \
                UNION ALL SELECT 'ch_' || replace(c.id::text, '-', '') FROM charges c \
                WHERE c.amount_refunded + c.amount_refund_pending > 0 AND NOT EXISTS ( \
                    SELECT FROM refunds r WHERE r.merchant_id = c.merchant_id AND r.charge_id = c.id)",
        ),
    },
    Check {
        name: "payout_entries",
        description: "payouts that are on their way or settled without a journal entry of that amount",
        query: Query::Fixed(
            "SELECT 'po_' || replace(o.id::text, '-', '') FROM payouts o WHERE o.status <> 'pending' \
                AND coalesce(o.failure_code, '') NOT IN ('payout_refused', 'request_abandoned') \
                AND o.amount IS DISTINCT FROM (SELECT sum(p.amount) FROM journal_entries e \
                    JOIN postings p ON p.merchant_id = e.merchant_id AND p.entry_id = e.id AND p.amount > 0 \
                    WHERE e.merchant_id = o.merchant_id AND e.source = 'po_' || replace(o.id::text, '-', ''))",
        ),
    },
    Check {
        name: "outcome_entries",
        description: "disputes, and payouts and refunds that have come to an end later, without a journal entry of that amount",
        query: Query::Fixed(
            "SELECT o.source FROM ( \
                    SELECT merchant_id, 'po_' || replace(id::text, '-', '') || ':' || status AS source, amount \
                    FROM payouts WHERE status IN ('paid', 'failed') \
                    AND coalesce(failure_code, '') NOT IN ('payout_refused', 'request_abandoned') \
                    UNION ALL SELECT merchant_id, 're_' || replace(id::text, '-', '') || ':failed', amount \
                    FROM refunds WHERE status = 'failed' \
                    AND coalesce(failure_code, '') NOT IN ('refund_refused', 'request_abandoned') \
                    UNION ALL SELECT merchant_id, 'dp_' || replace(id::text, '-', ''), amount FROM disputes \
                    UNION ALL SELECT d.merchant_id, coalesce(( \
                            SELECT e.source FROM journal_entries e WHERE e.merchant_id = d.merchant_id \
                            AND e.source = ANY (ARRAY(SELECT base.source || number.suffix FROM ( \
                                VALUES (''), (':2'), (':3'), (':4'), (':5'), (':6'), (':7'), (':8'), (':9')) AS number (suffix))) \
                            LIMIT 1), base.source), d.amount \
                    FROM disputes d, LATERAL ( \
                        SELECT 'dp_' || replace(d.id::text, '-', '') || ':' || d.status AS source) base \
                    WHERE d.status <> 'open') o \
                WHERE o.amount IS DISTINCT FROM (SELECT sum(p.amount) FROM journal_entries e \
                    JOIN postings p ON p.merchant_id = e.merchant_id AND p.entry_id = e.id AND p.amount > 0 \
                    WHERE e.merchant_id = o.merchant_id AND e.source = o.source)",
        ),
    },
    Check {
        name: "holds",
        description: "money that is set aside for nothing, or not set aside for what is pending",
        query: Query::Fixed(
            "SELECT coalesce(h.source, o.source) FROM ledger_holds h \
                FULL JOIN ( \
                    SELECT merchant_id, 're_' || replace(id::text, '-', '') AS source, amount FROM refunds WHERE status = 'pending' \
                    UNION ALL \
                    SELECT merchant_id, 'po_' || replace(id::text, '-', ''), amount FROM payouts WHERE status = 'pending') o \
                ON o.merchant_id = h.merchant_id AND o.source = h.source \
                WHERE h.amount IS DISTINCT FROM o.amount",
        ),
    },
    Check {
        name: "processor_operations",
        description: "operations of the processor that don't match ours and that no operator has accepted, as of the last reading of its list",
        query: Query::Fixed(concat!(
            "SELECT d.difference || ' ' || d.reference FROM acquirer_differences(interval '1 hour') d WHERE ",
            is_open!(),
        )),
    },
    Check {
        name: "stuck_keys",
        description: "requests that wait for an operator, or that nobody has worked on for an hour",
        query: Query::Fixed(
            "SELECT operation || ' ' || key FROM idempotency_keys WHERE state = 'in_progress' \
                AND (parked_at IS NOT NULL OR lease_expires_at < clock_timestamp() - interval '1 hour')",
        ),
    },
    Check {
        name: "overdue_events",
        description: "events from the processor that have waited too long for their objects",
        query: Query::Fixed(
            "SELECT event_id || ' ' || type FROM acquirer_events WHERE overdue_at IS NOT NULL",
        ),
    },
    // Old events are deleted, so a missing event proves something only if it would still be kept: for an
    // object that was created or changed since the oldest kept events. An older object without any change
    // since then has no events, and needs none.
    Check {
        name: "missing_events",
        description: "charges, refunds, payouts and disputes without an event that tells their state, as far back as events are kept",
        query: Query::Fixed(
            "SELECT o.name FROM ( \
                    SELECT merchant_id, id, status, created_at, 'ch_' || replace(id::text, '-', '') AS name FROM charges \
                    UNION ALL SELECT merchant_id, id, status, created_at, 're_' || replace(id::text, '-', '') FROM refunds WHERE status <> 'pending' \
                    UNION ALL SELECT merchant_id, id, status, created_at, 'po_' || replace(id::text, '-', '') FROM payouts WHERE status <> 'pending' \
                    UNION ALL SELECT merchant_id, id, status, created_at, 'dp_' || replace(id::text, '-', '') FROM disputes) o \
                CROSS JOIN (SELECT coalesce(max(events_before), '-infinity') AS events_before FROM event_retention) kept \
                WHERE NOT EXISTS (SELECT FROM events e WHERE e.merchant_id = o.merchant_id AND e.object_id = o.id \
                    AND e.data->>'status' = o.status) \
                AND (o.created_at >= kept.events_before OR EXISTS (SELECT FROM events e \
                    WHERE e.merchant_id = o.merchant_id AND e.object_id = o.id AND e.created_at >= kept.events_before))",
        ),
    },
];

/// The violations that a check has found, and some of them.
#[derive(Default, QueryableByName)]
struct Found {
    #[diesel(sql_type = BigInt)]
    violations: i64,
    #[diesel(sql_type = Array<Text>)]
    samples: Vec<String>,
}

/// Runs all checks on one snapshot; in a distributed database, on one of each merchant. Reads everything, so it takes a while on a
/// large database: its statements may run for ten minutes. Takes no locks.
pub fn run(conn: &mut PgConnection, kinds: &[&'static ResourceKind]) -> Result<AuditReport, Error> {
    run_telling(conn, kinds, &mut untold)
}

/// Like [`run`]. Tells the name of each check before it begins or, in a distributed database, the number of merchants.
pub fn run_telling(
    conn: &mut PgConnection,
    kinds: &[&'static ResourceKind],
    tell: Tell<'_>,
) -> Result<AuditReport, Error> {
    check_all(conn, kinds, &|_| Ok(CHECK_TIMEOUT), tell)
}

/// Like [`run`], as background work: for at most `limit`, and in one process of the server, to which the session stays
/// limited. Fails if that isn't enough.
pub fn run_within(
    conn: &mut PgConnection,
    kinds: &[&'static ResourceKind],
    limit: Duration,
) -> Result<AuditReport, Error> {
    diesel::sql_query("SET max_parallel_workers_per_gather = 0").execute(conn)?;
    let started = Instant::now();
    let left = |conn: &mut PgConnection| {
        // The audit's locks would keep it waiting.
        if migrations::are_under_way(conn)? {
            return Err(Failure::TransientConflict(MigrationsUnderWay.into()).into());
        }
        Ok(limit.saturating_sub(started.elapsed()))
    };
    check_all(conn, kinds, &left, &mut untold)
}

/// Why the scheduled audit stands aside.
#[derive(Debug, thiserror::Error)]
#[error("the database is being migrated")]
pub(crate) struct MigrationsUnderWay;

/// Time that a check may take.
type Timeout<'a> = &'a dyn Fn(&mut PgConnection) -> Result<Duration, Error>;

/// Runs all checks, each for at most what `timeout` returns then, or until it fails.
fn check_all(
    conn: &mut PgConnection,
    kinds: &[&'static ResourceKind],
    timeout: Timeout<'_>,
    tell: Tell<'_>,
) -> Result<AuditReport, Error> {
    let found = if shape::is_distributed() {
        distributed::find_all(conn, kinds, timeout, tell)?
    } else {
        on_one_snapshot(conn, |conn| {
            let find = |(done, check): (usize, &Check)| {
                tell(Step { what: check.name, done, total: Some(CHECKS.len()) });
                find(conn, &check.sql(kinds), timeout)
            };
            CHECKS.iter().enumerate().map(find).collect::<Result<Vec<_>, Error>>()
        })?
    };
    let checks = CHECKS.iter().zip(found).map(|(check, found)| CheckResult {
        name: check.name,
        description: check.description,
        violations: found.violations,
        samples: found.samples,
    });
    let checks: Vec<_> = checks.collect();
    Ok(AuditReport { clean: checks.iter().all(|check| check.violations == 0), checks })
}

fn on_one_snapshot<T>(
    conn: &mut PgConnection,
    look: impl FnOnce(&mut PgConnection) -> Result<T, Error>,
) -> Result<T, Error> {
    conn.build_transaction().read_only().repeatable_read().run(|conn| {
        plan_freely(conn)?;
        look(conn)
    })
}

/// The violations that a check's query finds.
fn find(conn: &mut PgConnection, query: &str, timeout: Timeout<'_>) -> Result<Found, Error> {
    // 0 would be no limit at all.
    let timeout_ms = timeout(conn)?.as_millis().max(1);
    diesel::sql_query(format!("SET LOCAL statement_timeout = {timeout_ms}")).execute(conn)?;
    let found = diesel::sql_query(format!(
        "SELECT count(*) AS violations, \
         coalesce((array_agg(v.sample ORDER BY v.sample))[1:{SAMPLES_MAX}], '{{}}') AS samples \
         FROM ({query}) AS v (sample)"
    ));
    Ok(found.get_result(conn)?)
}

impl Check {
    fn sql(&self, kinds: &[&'static ResourceKind]) -> String {
        match self.query {
            Query::Fixed(query) => query.to_owned(),
            Query::OfKinds(query) => query(kinds),
        }
    }
}

/// Covers only kinds whose rows stay for good: for the others, a missing row proves nothing.
fn keys_without_resource(kinds: &[&'static ResourceKind]) -> String {
    let kept = kinds.iter().filter(|kind| kind.is_kept);
    let cases: String = kept
        .map(|kind| {
            format!("WHEN '{}' THEN {} ", kind.name, kind.exists_sql("k.merchant_id", "k.resource_id"))
        })
        .collect();
    format!(
        "SELECT k.operation || ' ' || k.key FROM idempotency_keys k WHERE k.state = 'completed' \
         AND (k.response_status < 300 OR k.response_status = 402) AND NOT CASE k.resource_type {cases} ELSE true END"
    )
}

impl std::fmt::Display for AuditReport {
    /// Prints a table for people.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for check in &self.checks {
            let mark = if check.violations == 0 { "ok" } else { "FAILED" };
            write!(f, "{mark:<7} {:<26} {:>9}  {}", check.name, check.violations, check.description)?;
            if !check.samples.is_empty() {
                write!(f, ": {}", check.samples.join(", "))?;
            }
            writeln!(f)?;
        }
        let failed = self.checks.iter().filter(|check| check.violations > 0).count();
        match failed {
            0 => writeln!(f, "The books are in order: {} checks.", self.checks.len()),
            1 => writeln!(f, "1 check of {} failed.", self.checks.len()),
            _ => writeln!(f, "{failed} checks of {} failed.", self.checks.len()),
        }
    }
}
