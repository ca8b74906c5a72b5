//! `oncepay ledger`: the journal in accounting format. Each entry has its debits and credits in two columns,
//! debits first, credits indented; the columns' totals are at the end.

use std::collections::BTreeMap;
use std::io::{self, Write};

use diesel::PgConnection;
use rust_decimal::Decimal;
use secrecy::{ExposeSecret, SecretString};

use crate::base::ids::{JournalEntryId, MerchantId};
use crate::base::money::Currency;
use crate::error::Error;
use crate::ledger::api::{self, Entry, Side};
use crate::storage::db;
use crate::web::auth;
use crate::web::lists::{Cursor, Page};

/// Options of the `ledger` command.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Id of the merchant (mer_…); default: the owner of the API key in ONCEPAY_API_KEY
    #[arg(long)]
    merchant: Option<String>,
    /// An API key of the merchant
    #[arg(long, env = "ONCEPAY_API_KEY", hide_env_values = true)]
    api_key: Option<SecretString>,
    /// Connection string of the database, as the role `oncepay_app`
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: SecretString,
}

/// Runs `oncepay ledger`. The error is a sentence.
pub fn run(options: &Options, out: &mut impl Write) -> Result<(), String> {
    let merchant = match (&options.merchant, &options.api_key) {
        (Some(id), _) => id.parse().map_err(|_| format!("{id} is no id of a merchant (mer_…)."))?,
        (None, Some(key)) => auth::merchant_of_key(key.expose_secret())
            .ok_or("ONCEPAY_API_KEY holds no API key (sk_test_…).")?,
        (None, None) => return Err("Say which merchant with --merchant.".to_owned()),
    };
    print(&mut db::connect(&options.database_url)?, merchant, out).map_err(|error| error.to_string())
}

/// Width of the account column.
const ACCOUNT_WIDTH: usize = 34;
/// Width of an amount column: fits 12 digits before the point and 4 after it.
const AMOUNT_WIDTH: usize = 18;

/// The reason why a journal couldn't be printed.
#[derive(Debug, thiserror::Error)]
pub enum PrintError {
    /// The journal couldn't be read.
    #[error("the journal can't be read: {0}")]
    Read(#[from] Error),
    /// The journal couldn't be written.
    #[error("the journal can't be written: {0}")]
    Write(#[from] io::Error),
}

/// Prints a merchant's whole journal, oldest entry first, page by page.
pub fn print(conn: &mut PgConnection, merchant: MerchantId, out: &mut impl Write) -> Result<(), PrintError> {
    let mut totals: BTreeMap<String, (Decimal, Decimal)> = BTreeMap::new();
    let mut last = JournalEntryId(uuid::Uuid::nil());
    writeln!(out, "Journal of {merchant}\n")?;
    writeln!(out, "{:ACCOUNT_WIDTH$}{:>AMOUNT_WIDTH$}{:>AMOUNT_WIDTH$}", "", "Debit", "Credit")?;
    loop {
        let page = Page { limit: 100, cursor: Cursor::Before(last) };
        let list = api::entries(conn, merchant, page, None)?;
        // A page lists its entries newest first.
        for entry in list.data.iter().rev() {
            print_entry(entry, &mut totals, out)?;
            last = entry.id;
        }
        if !list.has_more {
            break;
        }
    }
    let rule = "-".repeat(AMOUNT_WIDTH - 4);
    writeln!(out, "{:ACCOUNT_WIDTH$}{rule:>AMOUNT_WIDTH$}{rule:>AMOUNT_WIDTH$}", "")?;
    for (code, (debit, credit)) in &totals {
        let format = |amount: Decimal| match Currency::stored(code) {
            Ok(currency) => currency.format(amount),
            Err(_) => amount.to_string(),
        };
        let label = format!("Total {code}");
        let (debit, credit) = (format(*debit), format(*credit));
        writeln!(out, "{label:ACCOUNT_WIDTH$}{debit:>AMOUNT_WIDTH$}{credit:>AMOUNT_WIDTH$}")?;
    }
    Ok(())
}

fn print_entry(
    entry: &Entry,
    totals: &mut BTreeMap<String, (Decimal, Decimal)>,
    out: &mut impl Write,
) -> io::Result<()> {
    let time = entry.created_at.0.format("%Y-%m-%d %H:%M:%S");
    writeln!(out, "{time}  {}", entry.source)?;
    for side in [Side::Debit, Side::Credit] {
        for posting in entry.postings.iter().filter(|posting| posting.side == side) {
            let (account, amount, currency) = (&posting.account_kind, &posting.amount, &posting.currency);
            let total = totals.entry(currency.clone()).or_default();
            let number: Decimal = amount.parse().unwrap_or_default();
            match side {
                Side::Debit => {
                    total.0 += number;
                    let label = format!("  {account} {currency}");
                    writeln!(out, "{label:ACCOUNT_WIDTH$}{amount:>AMOUNT_WIDTH$}")?;
                }
                Side::Credit => {
                    total.1 += number;
                    let label = format!("      {account} {currency}");
                    writeln!(out, "{label:ACCOUNT_WIDTH$}{:AMOUNT_WIDTH$}{amount:>AMOUNT_WIDTH$}", "")?;
                }
            }
        }
    }
    writeln!(out)
}
