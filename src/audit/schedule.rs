//! The scheduled audit: one instance at a time audits the books, so that nobody has to remember to.
//!
//! Its cost is bounded. It runs on a connection and a thread of its own, so it takes no place from requests; the server
//! gives it one process, not several; and it's given up when it takes longer than the limit. What an audit costs grows with
//! the books, since it reads everything. Where the limit is too short, let cron run `oncepay audit`, against a standby if
//! there is one, and turn the schedule off: the result gets into the metrics all the same.

use std::str::FromStr;
use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::Double;
use secrecy::SecretString;

use super::{AuditReport, MigrationsUnderWay, last_run};
use crate::base::defaults::defaults;
use crate::base::time;
use crate::error::failure::Cause;
use crate::error::{Error, Failure};
use crate::idempotency::ResourceKind;
use crate::storage::db::{self, Db};
use crate::storage::sql::statement;

/// Longest pause between two looks whether an audit is due.
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Time after its limit at which another instance may take the turn of one that has died.
const TURN_MARGIN: Duration = Duration::from_secs(60);

/// Settings of the scheduled audit.
#[derive(Clone, Copy, Debug, clap::Args)]
#[group(id = "audit")]
pub struct Options {
    /// Interval at which one instance audits the books, in seconds; or `never`, if cron runs `oncepay audit`
    #[arg(long, env = "ONCEPAY_AUDIT_INTERVAL_S", default_value = "21600")]
    pub audit_interval_s: AuditInterval,

    /// Maximum duration of that audit, in seconds; after that it's given up until its next turn
    #[arg(long, env = "ONCEPAY_AUDIT_TIMEOUT_S", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub audit_timeout_s: u32,
}

impl Default for Options {
    fn default() -> Self {
        defaults()
    }
}

/// Interval of audits, if there are any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditInterval(pub Option<Duration>);

impl FromStr for AuditInterval {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "never" {
            return Ok(Self(None));
        }
        match text.parse::<u32>() {
            Ok(seconds @ 1..) => Ok(Self(Some(Duration::from_secs(seconds.into())))),
            _ => Err("must be a number of seconds from 1, or `never`"),
        }
    }
}

/// Audits on schedule, on one instance at a time, and records the result. Doesn't return, unless the schedule is off.
pub async fn keep_auditing(
    db: Db,
    database_url: SecretString,
    kinds: Vec<&'static ResourceKind>,
    options: Options,
) {
    let AuditInterval(Some(interval)) = options.audit_interval_s else { return };
    let limit = Duration::from_secs(options.audit_timeout_s.into());
    // Often enough to notice soon when it's due, whichever instance did it last.
    let look = (interval / 10).min(LOOK_INTERVAL_MAX);
    loop {
        tokio::time::sleep(time::jittered(look)).await;
        let turn = limit + TURN_MARGIN;
        match db.run_retrying(move |conn| take_turn(conn, turn)).await {
            Ok(false) => continue,
            Ok(true) => {}
            Err(error) => {
                log::warn!("can't find out whether to audit: {}", error.detailed());
                continue;
            }
        }
        let mut pause = interval;
        match audit_apart(database_url.clone(), kinds.clone(), limit).await {
            Ok(report) if report.clean => log::info!("the books are in order"),
            Ok(report) => log::error!("the books are not in order:\n{report}"),
            Err(cause) if cause.is::<MigrationsUnderWay>() => {
                log::info!("the audit waits until the database has been migrated");
                pause = look;
            }
            Err(cause) => log::error!("the audit wasn't finished: {cause}"),
        }
        // Also after a failure: what takes too long once does so again.
        if let Err(error) = db.run_retrying(move |conn| set_due(conn, pause)).await {
            log::warn!("couldn't note when the next audit is due: {}", error.detailed());
        }
    }
}

/// Returns true if it's this instance's turn. If so, no other instance has one for the time `turn`.
fn take_turn(conn: &mut PgConnection, turn: Duration) -> Result<bool, Failure> {
    let taken = statement::<()>(
        "UPDATE audit_runs SET due_at = clock_timestamp() + make_interval(secs => {}) \
         WHERE due_at <= clock_timestamp()",
    )
    .bind::<Double, _>(turn.as_secs_f64())
    .execute(conn)?;
    Ok(taken == 1)
}

/// Ends a turn: the next audit is due after `pause`.
fn set_due(conn: &mut PgConnection, pause: Duration) -> Result<(), Failure> {
    statement::<()>("UPDATE audit_runs SET due_at = clock_timestamp() + make_interval(secs => {})")
        .bind::<Double, _>(pause.as_secs_f64())
        .execute(conn)?;
    Ok(())
}

/// Audits on a thread of its own, which the end of the process doesn't wait for.
async fn audit_apart(
    database_url: SecretString,
    kinds: Vec<&'static ResourceKind>,
    limit: Duration,
) -> Result<AuditReport, Cause> {
    let (ended, result) = tokio::sync::oneshot::channel();
    let run = move || {
        let audited = db::connect(&database_url)
            .map_err(Cause::from)
            .and_then(|mut conn| audit(&mut conn, &kinds, limit).map_err(cause_of));
        // Nobody waits for it any more if the server has ended.
        let _ = ended.send(audited);
    };
    std::thread::Builder::new().name("oncepay-audit".to_owned()).spawn(run)?;
    // A server that acknowledges and doesn't answer must not end this instance's audits.
    match tokio::time::timeout(limit + TURN_MARGIN, result).await {
        Ok(audited) => audited.unwrap_or_else(|_| Err("it panicked".into())),
        Err(_) => Err("the database didn't answer in time".into()),
    }
}

fn cause_of(error: Error) -> Cause {
    match error {
        Error::Failure(Failure::TransientConflict(cause)) if cause.is::<MigrationsUnderWay>() => cause,
        error => error.detailed().into(),
    }
}

fn audit(
    conn: &mut PgConnection,
    kinds: &[&'static ResourceKind],
    limit: Duration,
) -> Result<AuditReport, Error> {
    let started_at = last_run::begin(conn)?;
    let report = super::run_within(conn, kinds, limit)?;
    last_run::record(conn, started_at, &report)?;
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_in_seconds_or_never() {
        let parse = |text: &str| text.parse::<AuditInterval>().ok();
        assert_eq!(parse("90"), Some(AuditInterval(Some(Duration::from_secs(90)))));
        assert_eq!(parse("never"), Some(AuditInterval(None)));
        assert_eq!(
            Options::default().audit_interval_s,
            AuditInterval(Some(Duration::from_secs(6 * 60 * 60)))
        );
        for text in ["0", "-1", "1h", ""] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
