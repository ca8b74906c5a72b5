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

use super::exit::Stop;
use super::shared::{ListForm, write_item};

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
    #[command(flatten)]
    form: ListForm,
}

/// Runs `oncepay ledger`.
pub fn run(options: &Options, out: &mut impl Write) -> Result<(), Stop> {
    let merchant = match (&options.merchant, &options.api_key) {
        (Some(id), _) => {
            id.parse().map_err(|_| Stop::Usage(format!("{id} is no id of a merchant (mer_…).")))?
        }
        (None, Some(key)) => auth::merchant_of_key(key.expose_secret())
            .ok_or_else(|| Stop::Usage("ONCEPAY_API_KEY holds no API key (sk_test_…).".to_owned()))?,
        (None, None) => return Err(Stop::Usage("Say which merchant with --merchant.".to_owned())),
    };
    let conn = &mut db::connect(&options.database_url)?;
    let printed = match options.form.json {
        true => print_json(conn, merchant, out),
        false => print(conn, merchant, out),
    };
    match printed {
        // A reader that has closed it has what it wants.
        Err(PrintError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => Ok(printed.map_err(|error| error.to_string())?),
    }
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
    writeln!(out, "Journal of {merchant}\n")?;
    writeln!(out, "{:ACCOUNT_WIDTH$}{:>AMOUNT_WIDTH$}{:>AMOUNT_WIDTH$}", "", "Debit", "Credit")?;
    walk(conn, merchant, |entry| Ok(print_entry(entry, &mut totals, out)?))?;
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

/// Prints the same as JSON, an entry a line, as the API shows it.
fn print_json(conn: &mut PgConnection, merchant: MerchantId, out: &mut impl Write) -> Result<(), PrintError> {
    walk(conn, merchant, |entry| {
        write_item(out, entry).map_err(|error| PrintError::Write(io::Error::other(error)))
    })
}

/// Reads the whole journal, oldest entry first, page by page.
fn walk(
    conn: &mut PgConnection,
    merchant: MerchantId,
    mut visit: impl FnMut(&Entry) -> Result<(), PrintError>,
) -> Result<(), PrintError> {
    let mut last = JournalEntryId(uuid::Uuid::nil());
    loop {
        let page = Page { limit: 100, cursor: Cursor::Before(last) };
        let list = api::entries(conn, merchant, page, None)?;
        // A page lists its entries newest first.
        for entry in list.data.iter().rev() {
            visit(entry)?;
            last = entry.id;
        }
        if !list.has_more {
            return Ok(());
        }
    }
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
