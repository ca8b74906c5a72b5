//! Balances of accounts.

use diesel::prelude::*;
use diesel::sql_types::{Numeric, Text, Uuid as SqlUuid};
use rust_decimal::Decimal;

use crate::base::ids::MerchantId;
use crate::base::money::Currency;
use crate::error::Error;
use crate::storage::shape;
use crate::storage::sql::statement;

use super::AccountKind;

/// Reads the balance of one account, debits positive; zero if it was never posted to. Takes no locks.
pub fn balance(
    conn: &mut PgConnection,
    merchant: MerchantId,
    kind: AccountKind,
    currency: Currency,
) -> Result<Decimal, Error> {
    let sql = if shape::is_distributed() {
        "SELECT balance FROM ledger_balances({}) WHERE kind = {} AND currency = {}"
    } else {
        "SELECT ledger_balance(merchant_id, id) FROM ledger_accounts \
         WHERE merchant_id = {} AND kind = {} AND currency = {}"
    };
    let balance = statement::<Numeric>(sql)
        .bind::<SqlUuid, _>(merchant)
        .bind::<Text, _>(kind.as_str())
        .bind::<Text, _>(currency.code())
        .get_result::<Decimal>(conn)
        .optional()?;
    Ok(balance.unwrap_or_default())
}
