//! The distance between this instance's clock and the database's.
//!
//! Times that matter come from the database's clock. But an instance judges by its own whether a message from the
//! processor is recent, and its log is hard to read beside others if the clocks differ.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::pg::sql_types::PgLsn;
use diesel::sql_types::Timestamptz;
use diesel::{PgConnection, RunQueryDsl};

use super::db::Db;
use super::metrics::Metrics;
use super::shape;
use super::sql::statement;
use crate::base::time;
use crate::error::Failure;

/// Measures the distance every `interval`. Doesn't return.
pub async fn keep_comparing(db: Db, interval: Duration, metrics: Metrics) {
    loop {
        match db.run(skew).await {
            Ok(skew) => metrics.clock_skew_seconds.set(skew.as_seconds_f64()),
            Err(error) => log::debug!("the clocks couldn't be compared: {}", error.detailed()),
        }
        tokio::time::sleep(time::jittered(interval)).await;
    }
}

/// Time by which this instance's clock is ahead of the database's, off by at most half of the statement's round trip.
pub fn skew(conn: &mut PgConnection) -> Result<TimeDelta, Failure> {
    let asked = time::now();
    let theirs = now(conn)?;
    let answered = time::now();
    Ok(asked + (answered - asked) / 2 - theirs)
}

/// Current time by the database's clock. In a distributed database, by that of the coordinator, which all times are of.
pub fn now(conn: &mut PgConnection) -> Result<DateTime<Utc>, Failure> {
    Ok(statement::<Timestamptz>("SELECT clock_timestamp()").get_result(conn)?)
}

/// The coordinator's time, if the database is distributed: a node that reads takes its own for `clock_timestamp()`. So statements that find
/// out by the time what a row is say `coalesce({}, clock_timestamp())`.
pub fn of_cluster(conn: &mut PgConnection) -> Result<Option<DateTime<Utc>>, Failure> {
    shape::is_distributed().then(|| now(conn)).transpose()
}

/// Returns when all numbers of transactions so far outlast a crash of the server, which else gives out the last ones again: a
/// coordinator's transaction that writes only on other nodes leaves nothing in its log. This one does.
pub fn keep_transaction_numbers(conn: &mut PgConnection) -> Result<(), Failure> {
    statement::<PgLsn>("SELECT pg_logical_emit_message(true, 'oncepay', '')").execute(conn)?;
    Ok(())
}
