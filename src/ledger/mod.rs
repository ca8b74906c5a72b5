//! The double-entry ledger: debts, and the reasons for them.
//!
//! Every account belongs to one merchant and one currency. Every event that moves money is one journal
//! entry, whose postings sum to zero, and which is posted once per *source* (such as `ch_…:capture`).
//! Entries and postings are never changed or deleted.
//!
//! The *database* guards all of that: the service's role can't write the tables, only call the function
//! `ledger_post`, which checks each rule, also that no amount has more decimals than its currency (see the
//! migrations that create and replace it). This module is the service's side of it.
//!
//! # Balances
//!
//! No balance is stored as a number that each posting updates: such a row would make all charges of a
//! merchant wait for each other. A balance is the account's checkpoint plus the postings after it. Only
//! entries that could overdraw an account lock it.

mod accounts;
pub(crate) mod api;
mod balance;
mod checkpoints;
mod corrections;
pub(crate) mod operator_entries;

use diesel::prelude::*;
use diesel::sql_types::{Array, Numeric, Text, Uuid as SqlUuid};
use rust_decimal::Decimal;
use serde_json::json;

use crate::base::ids::MerchantId;
use crate::base::money::{Currency, Money};
use crate::error::{Error, violated_constraint};
use crate::storage::sql::statement;

pub use accounts::AccountKind;
pub use balance::balance;
pub use checkpoints::{keep_rolling_up, roll_up, roll_up_due};
pub use corrections::{Correction, correct, find_entry};

/// A journal entry before it's posted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalEntry {
    source: String,
    kinds: Vec<&'static str>,
    currencies: Vec<Currency>,
    amounts: Vec<Decimal>,
}

impl JournalEntry {
    /// Starts an entry for `source`, without lines.
    pub fn new(source: impl Into<String>) -> Self {
        Self { source: source.into(), kinds: Vec::new(), currencies: Vec::new(), amounts: Vec::new() }
    }

    /// Adds a debit. Omits a line of zero.
    pub fn debit(self, account: AccountKind, money: Money) -> Self {
        self.line(account, money, money.amount())
    }

    /// Adds a credit. Omits a line of zero.
    pub fn credit(self, account: AccountKind, money: Money) -> Self {
        self.line(account, money, -money.amount())
    }

    /// The entry as named arguments of `ledger_post`, for a statement that posts many.
    pub fn to_json(&self) -> serde_json::Value {
        json!({
            "source": self.source,
            "kinds": self.kinds,
            "currencies": self.currencies,
            "amounts": self.amounts,
        })
    }

    /// The currency codes of the lines.
    fn codes(&self) -> Vec<&str> {
        self.currencies.iter().map(Currency::code).collect()
    }

    fn line(mut self, account: AccountKind, money: Money, signed_amount: Decimal) -> Self {
        if !signed_amount.is_zero() {
            self.kinds.push(account.as_str());
            self.currencies.push(money.currency());
            self.amounts.push(signed_amount);
        }
        self
    }
}

/// Converts the error of a statement that sets money in the currency `held` aside: `insufficient_balance` if the balance,
/// less the amounts set aside already, doesn't cover it.
pub fn refusal(error: diesel::result::Error, held: Option<Currency>) -> Error {
    match (violated_constraint(&error), held) {
        (Some("merchant_payable_covered"), Some(currency)) => Error::InsufficientBalance { currency },
        _ => error.into(),
    }
}

/// Posts `entry`, and uses up the amount set aside for its source.
///
/// Errors: `internal` if the entry breaks a rule of the ledger (unbalanced, source posted before). For all
/// present entries that would be our bug.
///
/// Locks: those of the function `ledger_post`: none, unless the entry debits `merchant_payable`.
pub fn post(conn: &mut PgConnection, merchant: MerchantId, entry: &JournalEntry) -> Result<(), Error> {
    statement::<()>("SELECT ledger_post({}, uuid_v7(), {}, {}, {}, {})")
        .bind::<SqlUuid, _>(merchant)
        .bind::<Text, _>(&entry.source)
        .bind::<Array<Text>, _>(&entry.kinds)
        .bind::<Array<Text>, _>(entry.codes())
        .bind::<Array<Numeric>, _>(&entry.amounts)
        .execute(conn)?;
    Ok(())
}
