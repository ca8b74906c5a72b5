//! The record of the last audit, and the metrics that show it.
//!
//! The record is in the database, so every instance shows the same, whoever ran the audit: an instance on schedule, or an
//! operator's `oncepay audit`, for example in cron.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Double, Jsonb, Nullable, Timestamptz};
use serde_json::Value;

use super::AuditReport;
use super::metrics::Metrics;
use crate::base::time;
use crate::error::{Error, Failure};
use crate::storage::db::Db;
use crate::storage::sql::statement;

/// Current time by the database's clock: when an audit begins.
pub fn begin(conn: &mut PgConnection) -> Result<DateTime<Utc>, Error> {
    Ok(statement::<Timestamptz>("SELECT clock_timestamp()").get_result(conn)?)
}

/// Records an audit that began at `started_at`, unless a later one is recorded.
///
/// Locks: the one row of `audit_runs`.
pub fn record(conn: &mut PgConnection, started_at: DateTime<Utc>, report: &AuditReport) -> Result<(), Error> {
    let findings = serde_json::to_value(&report.checks).map_err(Failure::internal)?;
    statement::<()>(
        "UPDATE audit_runs SET started_at = asked.started_at, findings = {}, \
             finished_at = greatest(clock_timestamp(), asked.started_at) \
         FROM (SELECT {} AS started_at) AS asked \
         WHERE audit_runs.started_at IS NULL OR audit_runs.started_at <= asked.started_at",
    )
    .bind::<Jsonb, _>(findings)
    .bind::<Timestamptz, _>(started_at)
    .execute(conn)?;
    Ok(())
}

/// Shows the record in the metrics, read anew every `interval`. Doesn't return.
pub async fn keep_showing(db: Db, interval: Duration, metrics: Metrics) {
    let mut shown = BTreeSet::new();
    loop {
        match db.run(load).await {
            Ok(Some((started_at_s, duration_s, findings))) => {
                metrics.last_run_timestamp.set(started_at_s);
                metrics.last_run_seconds.set(duration_s);
                shown = show(&findings, &shown, &metrics);
            }
            Ok(None) => {}
            Err(error) => log::debug!("the last audit couldn't be read: {}", error.detailed()),
        }
        tokio::time::sleep(time::jittered(interval)).await;
    }
}

/// Begin in seconds since 1970, duration in seconds, and findings.
type LastRun = (f64, f64, Value);

fn load(conn: &mut PgConnection) -> Result<Option<LastRun>, Failure> {
    let (started_at_s, duration_s, findings) =
        statement::<(Nullable<Double>, Nullable<Double>, Nullable<Jsonb>)>(
            "SELECT extract(epoch FROM started_at)::double precision, \
                 extract(epoch FROM finished_at - started_at)::double precision, findings \
             FROM audit_runs",
        )
        .get_result::<(Option<f64>, Option<f64>, Option<Value>)>(conn)?;
    Ok(started_at_s
        .zip(duration_s)
        .zip(findings)
        .map(|((started_at_s, duration_s), findings)| (started_at_s, duration_s, findings)))
}

/// Sets the number of violations of each check, and returns the checks. The audit may be another release's, so its checks
/// are taken as they are, and those of `before` that it doesn't have are removed. Between two looks, no other is missing:
/// an alert would end and begin again.
fn show(findings: &Value, before: &BTreeSet<String>, metrics: &Metrics) -> BTreeSet<String> {
    let mut shown = BTreeSet::new();
    for check in findings.as_array().into_iter().flatten() {
        if let (Some(name), Some(violations)) = (check["name"].as_str(), check["violations"].as_i64()) {
            metrics.violations.with_label_values(&[name]).set(violations);
            shown.insert(name.to_owned());
        }
    }
    for gone in before.difference(&shown) {
        // It's there: it was shown.
        let _ = metrics.violations.remove_label_values(&[gone]);
    }
    shown
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::metrics::Registry;

    #[test]
    fn checks_of_another_release_replace_those_before() {
        let metrics = Metrics::new(&Registry::new());
        let before = show(&json!([{"name": "old", "violations": 1}]), &BTreeSet::new(), &metrics);
        let after = show(&json!([{"name": "new", "violations": 2}]), &before, &metrics);
        assert_eq!(after, BTreeSet::from(["new".to_owned()]));
        assert_eq!(metrics.violations.with_label_values(&["new"]).get(), 2);
        // Made anew by being asked for.
        assert_eq!(metrics.violations.with_label_values(&["old"]).get(), 0);
    }
}
