//! Balances, and the checkpoints that keep reading them cheap.

use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Numeric, Text, Uuid as SqlUuid};
use rust_decimal::Decimal;
use serde::Serialize;
use utoipa::ToSchema;

use crate::db::Db;
use crate::error::Error;
use crate::ids::{AccountId, MerchantId};
use crate::money::Currency;
use crate::schema::ledger_accounts;
use crate::sql::statement;

use super::AccountKind;

/// What a merchant has, per currency.
#[derive(Debug, Serialize, ToSchema)]
pub struct Balance {
    /// One entry per currency in which there has been anything, by code.
    pub balances: Vec<CurrencyBalance>,
}

/// What a merchant has in one currency.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct CurrencyBalance {
    /// ISO 4217 code.
    #[schema(value_type = String, example = "USD")]
    pub currency: Currency,
    /// There to pay out or refund from: captured, less fees, refunds, disputes and payouts, those under way
    /// included. Negative only after a dispute.
    #[schema(example = "118.20")]
    pub available: String,
    /// Authorized and not captured yet, or still processing, before fees. In no journal entry, since no money has moved.
    #[schema(example = "40.00")]
    pub pending: String,
    /// In payouts that haven't arrived yet.
    #[schema(example = "0.00")]
    pub in_transit: String,
}

/// All balances of a merchant, from one snapshot. Locks nothing.
pub fn balances(conn: &mut PgConnection, merchant: MerchantId) -> Result<Balance, Error> {
    let rows = statement::<(Text, Numeric, Numeric, Numeric)>(
        "SELECT currency, sum(available), sum(pending), sum(in_transit) FROM ( \
             SELECT currency, \
                 CASE kind WHEN 'merchant_payable' THEN ledger_spendable(merchant_id, id) ELSE 0 END AS available, \
                 0 AS pending, \
                 CASE kind WHEN 'payouts_in_transit' THEN -ledger_balance(merchant_id, id) ELSE 0 END AS in_transit \
             FROM ledger_accounts WHERE merchant_id = {} \
             UNION ALL \
             SELECT currency, 0, amount, 0 FROM charges WHERE merchant_id = {} AND status IN ('requires_capture', 'processing') \
         ) AS part GROUP BY currency ORDER BY currency",
    )
    .bind::<SqlUuid, _>(merchant)
    .bind::<SqlUuid, _>(merchant)
    .load::<(String, Decimal, Decimal, Decimal)>(conn)?;

    let balances = rows
        .into_iter()
        .filter_map(|(code, available, pending, in_transit)| {
            // The database knows the form of a code, not which there are. What somebody posted by hand in
            // one that doesn't exist must not hide the rest.
            let Ok(currency) = code.parse::<Currency>() else {
                log::error!("{merchant} has postings in {code}, which is no currency");
                return None;
            };
            Some(CurrencyBalance {
                currency,
                available: currency.format(available),
                pending: currency.format(pending),
                in_transit: currency.format(in_transit),
            })
        })
        .collect();
    Ok(Balance { balances })
}

/// The balance of one account, debits positive; zero if it was never posted to. Locks nothing.
pub fn balance(
    conn: &mut PgConnection,
    merchant: MerchantId,
    kind: AccountKind,
    currency: Currency,
) -> Result<Decimal, Error> {
    let balance = statement::<Numeric>(
        "SELECT ledger_balance(merchant_id, id) FROM ledger_accounts \
         WHERE merchant_id = {} AND kind = {} AND currency = {}",
    )
    .bind::<SqlUuid, _>(merchant)
    .bind::<Text, _>(kind.as_str())
    .bind::<Text, _>(currency.code())
    .get_result::<Decimal>(conn)
    .optional()?;
    Ok(balance.unwrap_or_default())
}

/// Moves the checkpoints of a merchant's accounts as far as is safe: up to the oldest transaction that
/// is still running, since that one may yet commit postings. Safe to run at any time, by anybody, any
/// number of times. Locks the checkpoint rows, for which neither postings nor reads wait.
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

/// Postings after its checkpoint from which on an account is worth rolling up: summing them up takes about
/// as long as the rest of a balance read.
const DUE_POSTINGS: i64 = 500;

/// Rolls up whatever is due, of all merchants; returns how many accounts that was. Each account is a
/// transaction of its own, so a crash loses nothing but the rest of the work.
pub fn roll_up_due(conn: &mut PgConnection) -> Result<usize, Error> {
    let due = statement::<(SqlUuid, SqlUuid)>(
        "SELECT a.merchant_id, a.id FROM ledger_accounts a \
         LEFT JOIN ledger_checkpoints c ON c.merchant_id = a.merchant_id AND c.account_id = a.id \
         WHERE EXISTS (SELECT FROM postings p WHERE p.merchant_id = a.merchant_id AND p.account_id = a.id \
             AND p.transaction_id >= coalesce(c.horizon, '0') \
             AND p.transaction_id < pg_snapshot_xmin(pg_current_snapshot()) OFFSET {} LIMIT 1) \
         LIMIT 1000",
    )
    .bind::<BigInt, _>(DUE_POSTINGS)
    .load::<(MerchantId, AccountId)>(conn)?;
    for &(merchant, account) in &due {
        roll_up_account(conn, merchant, account)?;
    }
    Ok(due.len())
}

/// Rolls up what is due, again and again. Any number of instances may do so at the same time.
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
