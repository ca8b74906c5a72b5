//! Checkpoints, which make balances cheap to read.

use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Uuid as SqlUuid};

use crate::base::ids::{AccountId, MerchantId};
use crate::error::Error;
use crate::storage::db::Db;
use crate::storage::schema::ledger_accounts;
use crate::storage::shape;
use crate::storage::sql::statement;

/// Advances the checkpoints of a merchant's accounts as far as is safe: up to the oldest transaction that is
/// still running, since it may yet commit postings. Safe to run at any time, by anybody, any number of times.
/// Locks the checkpoint rows, for which neither postings nor reads wait.
pub fn roll_up(conn: &mut PgConnection, merchant: MerchantId) -> Result<(), Error> {
    let accounts = ledger_accounts::table
        .filter(ledger_accounts::merchant_id.eq(merchant))
        .order(ledger_accounts::id)
        .select(ledger_accounts::id)
        .load::<AccountId>(conn)?;
    for account in accounts {
        roll_up_account(conn, merchant, account)?;
    }
    Ok(())
}

fn roll_up_account(conn: &mut PgConnection, merchant: MerchantId, account: AccountId) -> Result<(), Error> {
    statement::<()>("SELECT ledger_roll_up({}, {})")
        .bind::<SqlUuid, _>(merchant)
        .bind::<SqlUuid, _>(account)
        .execute(conn)?;
    Ok(())
}

/// Number of postings after its checkpoint that makes an account due: adding them up takes about as long as
/// the rest of a balance read.
const DUE_POSTINGS: i64 = 500;

/// Rolls up all due accounts, of all merchants: also those whose checkpoint is of another cluster, as after a dump, before
/// this cluster's transactions have its numbers. Returns their number. Each account is a transaction of its
/// own, so a crash loses only the rest of the work.
pub fn roll_up_due(conn: &mut PgConnection) -> Result<usize, Error> {
    let due = if shape::is_distributed() { due_on_nodes(conn)? } else { due(conn)? };
    for &(merchant, account) in &due {
        roll_up_account(conn, merchant, account)?;
    }
    Ok(due.len())
}

fn due(conn: &mut PgConnection) -> QueryResult<Vec<(MerchantId, AccountId)>> {
    statement::<(SqlUuid, SqlUuid)>(
        "SELECT a.merchant_id, a.id FROM ledger_accounts a \
         LEFT JOIN ledger_checkpoints c ON c.merchant_id = a.merchant_id AND c.account_id = a.id \
         WHERE c.horizon > pg_snapshot_xmax(pg_current_snapshot()) OR EXISTS (SELECT FROM postings p WHERE p.merchant_id = a.merchant_id AND p.account_id = a.id \
             AND p.transaction_id >= coalesce(c.horizon, '0') \
             AND p.transaction_id < pg_snapshot_xmin(pg_current_snapshot()) OFFSET {} LIMIT 1) \
         LIMIT 1000",
    )
    .bind::<BigInt, _>(DUE_POSTINGS)
    .load(conn)
}

/// The same in a distributed database. Which accounts are due is found on each node, by the coordinator's count of transactions.
fn due_on_nodes(conn: &mut PgConnection) -> QueryResult<Vec<(MerchantId, AccountId)>> {
    let (oldest, next) = statement::<(BigInt, BigInt)>(
        "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint, pg_snapshot_xmax(pg_current_snapshot())::text::bigint",
    )
    .get_result::<(i64, i64)>(conn)?;
    statement::<(SqlUuid, SqlUuid)>(
        "/* of all merchants */ SELECT a.merchant_id, a.id FROM ledger_accounts a \
         LEFT JOIN ledger_checkpoints c ON c.merchant_id = a.merchant_id AND c.account_id = a.id \
         WHERE c.horizon > {}::text::xid8 OR (SELECT count(*) FROM ( \
             SELECT FROM postings p WHERE p.merchant_id = a.merchant_id AND p.account_id = a.id \
             AND p.transaction_id >= coalesce(c.horizon, '0') AND p.transaction_id < {}::text::xid8 LIMIT {}) AS later) > {} \
         LIMIT 1000",
    )
    .bind::<BigInt, _>(next)
    .bind::<BigInt, _>(oldest)
    .bind::<BigInt, _>(DUE_POSTINGS + 1)
    .bind::<BigInt, _>(DUE_POSTINGS)
    .load(conn)
}

/// Rolls up due accounts, again and again. Any number of instances may do so at the same time.
pub async fn keep_rolling_up(db: Db, interval: Duration) {
    loop {
        // Jittered, so that instances that were started together spread out.
        tokio::time::sleep(interval.mul_f64(rand::random_range(0.5..1.5))).await;
        match db.run(roll_up_due).await {
            Ok(0) => {}
            Ok(accounts) => log::debug!("rolled up {accounts} accounts"),
            Err(error) => log::warn!("couldn't roll up: {error:?}"),
        }
    }
}
