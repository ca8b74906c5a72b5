//! The ledger as a merchant reads it: accounts, postings, journal entries, balances, the trial balance.
//!
//! Amounts follow accounting conventions: a posting is a debit or a credit, and a balance has the sign of the
//! account's normal side, so that a debt to a merchant is positive.

use actix_web::{HttpResponse, get, web};
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Numeric, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use rust_decimal::Decimal;
use serde::Serialize;
use utoipa::ToSchema;

use crate::base::ids::{AccountId, JournalEntryId, MerchantId};
use crate::base::money::Currency;
use crate::base::time::{self, Timestamp};
use crate::error::Error;
use crate::storage::db::Db;
use crate::storage::schema::{journal_entries, ledger_accounts};
use crate::storage::shape;
use crate::storage::sql::statement;
use crate::web::auth::AuthenticatedMerchant;
use crate::web::lists::{Cursor, List, Page, Parameters, load_page};
use crate::web::problems::problems;
use crate::web::query::WithQuery;

use super::corrections::{ShownCorrection, corrections};

/// Side of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Left: increases an asset.
    Debit,
    /// Right: increases a liability or an income.
    Credit,
}

/// The side on which an account of this kind grows.
fn normal_side(kind: &str) -> Side {
    match kind {
        "acquirer_clearing" | "bank" => Side::Debit,
        _ => Side::Credit,
    }
}

/// Converts `balance`, debits positive, to a number on the account's normal side.
fn on_normal_side(kind: &str, balance: Decimal) -> Decimal {
    match normal_side(kind) {
        Side::Debit => balance,
        Side::Credit => -balance,
    }
}

/// An account of the ledger: one per kind and currency.
#[derive(Debug, Serialize, ToSchema)]
pub struct Account {
    /// Time-ordered id.
    #[schema(value_type = String, example = "la_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    id: AccountId,
    /// Always `ledger_account`.
    #[schema(example = "ledger_account")]
    object: &'static str,
    /// Kind of the account: `acquirer_clearing`, `bank`, `merchant_payable`, `payouts_in_transit`,
    /// `disputes_held` or `fee_revenue`.
    #[schema(example = "merchant_payable")]
    kind: String,
    /// ISO 4217 code.
    #[schema(example = "USD")]
    currency: String,
    /// Side on which the account grows.
    normal_side: Side,
    /// Time of the first posting to the account.
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T09:30:00.000Z")]
    created_at: Timestamp,
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = ledger_accounts)]
struct AccountRow {
    id: AccountId,
    kind: String,
    currency: String,
    created_at: DateTime<Utc>,
}

impl AccountRow {
    fn find(conn: &mut PgConnection, merchant: MerchantId, id: &str) -> Result<Self, Error> {
        let id = id.parse::<AccountId>().map_err(|_| Error::AccountNotFound)?;
        ledger_accounts::table
            .find((merchant, id))
            .select(Self::as_select())
            .first(conn)
            .optional()?
            .ok_or(Error::AccountNotFound)
    }

    fn into_account(self) -> Account {
        Account {
            id: self.id,
            object: "ledger_account",
            normal_side: normal_side(&self.kind),
            kind: self.kind,
            currency: self.currency,
            created_at: Timestamp(self.created_at),
        }
    }
}

problems!(ListAccountsProblems, reading:);

/// List ledger accounts
///
/// Newest first. The first posting to an account creates it.
#[utoipa::path(
    operation_id = "ledger.accounts.list",
    tag = "Ledger",
    responses((status = 200, description = "A page of accounts.", body = List<Account>), ListAccountsProblems),
)]
#[get("/v1/ledger/accounts")]
pub async fn list_accounts(
    db: web::Data<Db>,
    WithQuery(merchant, query): WithQuery<AuthenticatedMerchant>,
) -> Result<HttpResponse, Error> {
    let page = query.read(Parameters::page::<AccountId>)?;
    let accounts = db
        .run_retrying(move |conn| {
            let query = ledger_accounts::table
                .filter(ledger_accounts::merchant_id.eq(merchant.0))
                .select(AccountRow::as_select())
                .into_boxed();
            load_page!(conn, query, ledger_accounts::id, page)?
                .try_map(|row: AccountRow| Ok(row.into_account()))
        })
        .await?;
    Ok(HttpResponse::Ok().json(accounts))
}

problems!(GetAccountProblems, reading: AccountNotFound);

/// Retrieve a ledger account
///
/// The account's balance and postings have paths below this one.
#[utoipa::path(
    operation_id = "ledger.accounts.get",
    tag = "Ledger",
    params(("id" = String, Path, description = "Id of the account", example = "la_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")),
    responses((status = 200, description = "The account.", body = Account), GetAccountProblems),
)]
#[get("/v1/ledger/accounts/{id}")]
pub async fn get_account(
    db: web::Data<Db>,
    merchant: AuthenticatedMerchant,
    id: web::Path<String>,
) -> Result<HttpResponse, Error> {
    let account = db.run_retrying(move |conn| AccountRow::find(conn, merchant.0, &id)).await?;
    Ok(HttpResponse::Ok().json(account.into_account()))
}

/// One line of a journal entry.
#[derive(Debug, Serialize, ToSchema)]
pub struct Posting {
    /// Id of the entry and the number of the line.
    #[schema(example = "je_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b.1")]
    pub(crate) id: String,
    /// Id of the entry.
    #[schema(value_type = String, example = "je_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    pub(crate) entry_id: JournalEntryId,
    /// Id of the account.
    #[schema(value_type = String, example = "la_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    pub(crate) account_id: AccountId,
    /// Kind of the account.
    #[schema(example = "merchant_payable")]
    pub(crate) account_kind: String,
    /// Debit or credit.
    pub(crate) side: Side,
    /// Positive amount, at the currency's scale.
    #[schema(example = "11.84")]
    pub(crate) amount: String,
    /// ISO 4217 code.
    #[schema(example = "USD")]
    pub(crate) currency: String,
    /// Time of the posting.
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T09:30:00.000Z")]
    pub(crate) created_at: Timestamp,
}

/// A posting as it is stored: entry, line, account, kind, currency, signed amount, time.
type PostingRow = (JournalEntryId, i16, AccountId, String, String, Decimal, DateTime<Utc>);
type PostingSql = (SqlUuid, SmallInt, SqlUuid, Text, Text, Numeric, Timestamptz);

/// Selects a merchant's postings as [`PostingSql`]; the rest of the condition and the order follow.
macro_rules! postings_where {
    ($rest:literal) => {
        concat!(
            "SELECT p.entry_id, p.line, p.account_id, a.kind, p.currency, p.amount, p.created_at ",
            "FROM postings p JOIN ledger_accounts a ON a.merchant_id = p.merchant_id AND a.id = p.account_id ",
            "WHERE p.merchant_id = {} AND ",
            $rest
        )
    };
}

fn posting(
    (entry_id, line, account_id, account_kind, currency, amount, at): PostingRow,
) -> Result<Posting, Error> {
    Ok(Posting {
        id: format!("{entry_id}.{line}"),
        entry_id,
        account_id,
        account_kind,
        side: if amount.is_sign_positive() { Side::Debit } else { Side::Credit },
        amount: Currency::stored(&currency).map_err(Error::internal)?.format(amount.abs()),
        currency,
        created_at: Timestamp(at),
    })
}

/// Start of a page of postings: entry and line.
#[derive(Clone, Copy)]
struct PostingKey(JournalEntryId, i16);

impl std::str::FromStr for PostingKey {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (entry, line) = text.split_once('.').ok_or(())?;
        if line.len() > 4 || !line.bytes().all(|b| b.is_ascii_digit()) {
            return Err(());
        }
        Ok(Self(entry.parse().map_err(|_| ())?, line.parse().map_err(|_| ())?))
    }
}

problems!(ListPostingsProblems, reading: AccountNotFound);

/// List the postings of an account
///
/// Newest first.
#[utoipa::path(
    operation_id = "ledger.accounts.postings.list",
    tag = "Ledger",
    params(("id" = String, Path, description = "Id of the account", example = "la_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")),
    responses((status = 200, description = "A page of postings.", body = List<Posting>), ListPostingsProblems),
)]
#[get("/v1/ledger/accounts/{id}/postings")]
pub async fn list_postings(
    db: web::Data<Db>,
    WithQuery(merchant, query): WithQuery<AuthenticatedMerchant>,
    id: web::Path<String>,
) -> Result<HttpResponse, Error> {
    let page: Page<PostingKey> = query.read(Parameters::page)?;
    let postings = db
        .run_retrying(move |conn| {
            let account = AccountRow::find(conn, merchant.0, &id)?;
            let (sql, PostingKey(entry, line)) = match page.cursor {
                // Greater than every possible entry.
                Cursor::Newest => (OLDER_POSTINGS, PostingKey(JournalEntryId(uuid::Uuid::max()), 0)),
                Cursor::After(key) => (OLDER_POSTINGS, key),
                Cursor::Before(key) => (NEWER_POSTINGS, key),
            };
            let rows = statement::<PostingSql>(sql)
                .bind::<SqlUuid, _>(merchant.0)
                .bind::<SqlUuid, _>(account.id)
                .bind::<SqlUuid, _>(entry)
                .bind::<SmallInt, _>(line)
                .bind::<BigInt, _>(page.limit + 1)
                .load::<PostingRow>(conn)?;
            page.cut(rows).try_map(posting)
        })
        .await?;
    Ok(HttpResponse::Ok().json(postings))
}

const OLDER_POSTINGS: &str = postings_where!(
    "p.account_id = {} AND (p.entry_id, p.line) < ({}, {}) \
     ORDER BY p.entry_id DESC, p.line DESC LIMIT {}"
);

const NEWER_POSTINGS: &str = postings_where!(
    "p.account_id = {} AND (p.entry_id, p.line) > ({}, {}) \
     ORDER BY p.entry_id, p.line LIMIT {}"
);

/// The balance of an account.
#[derive(Debug, Serialize, ToSchema)]
pub struct AccountBalance {
    /// Id of the account.
    #[schema(value_type = String, example = "la_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    account_id: AccountId,
    /// Balance at the currency's scale, positive on the account's normal side.
    #[schema(example = "118.20")]
    balance: String,
    /// ISO 4217 code.
    #[schema(example = "USD")]
    currency: String,
    /// Time of the balance, if the request named one.
    #[schema(value_type = Option<String>, format = DateTime, example = json!(null))]
    at: Option<Timestamp>,
}

problems!(GetBalanceProblems, reading: AccountNotFound);

/// Retrieve the balance of an account
///
/// Returns the current balance, or the balance at a time. Times are shown in milliseconds, and a time stands
/// for its whole millisecond: the balance at the `created_at` of a posting includes that posting.
#[utoipa::path(
    operation_id = "ledger.accounts.balance.get",
    tag = "Ledger",
    params(
        ("id" = String, Path, description = "Id of the account", example = "la_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b"),
        ("at" = Option<String>, Query, format = DateTime, description = "RFC 3339 time. Includes all postings up to the end of its millisecond", example = "2026-01-31T09:30:00Z"),
    ),
    responses((status = 200, description = "The balance.", body = AccountBalance), GetBalanceProblems),
)]
#[get("/v1/ledger/accounts/{id}/balance")]
pub async fn get_account_balance(
    db: web::Data<Db>,
    WithQuery(merchant, query): WithQuery<AuthenticatedMerchant>,
    id: web::Path<String>,
) -> Result<HttpResponse, Error> {
    let at = query.read(|parameters| parameters.optional_time("at"))?;
    let balance = db
        .run_retrying(move |conn| {
            let account = AccountRow::find(conn, merchant.0, &id)?;
            let query = match at {
                None => statement::<Numeric>("SELECT ledger_balance({}, {})")
                    .bind::<SqlUuid, _>(merchant.0)
                    .bind::<SqlUuid, _>(account.id),
                Some(at) => statement::<Numeric>(
                    "SELECT coalesce(sum(amount), 0) FROM postings \
                     WHERE merchant_id = {} AND account_id = {} AND created_at < {}",
                )
                .bind::<SqlUuid, _>(merchant.0)
                .bind::<SqlUuid, _>(account.id)
                .bind::<Timestamptz, _>(time::end_of_millisecond(at)),
            };
            let balance = on_normal_side(&account.kind, query.get_result::<Decimal>(conn)?);
            Ok::<_, Error>(AccountBalance {
                account_id: account.id,
                balance: Currency::stored(&account.currency).map_err(Error::internal)?.format(balance),
                currency: account.currency,
                at: at.map(Timestamp),
            })
        })
        .await?;
    Ok(HttpResponse::Ok().json(balance))
}

/// A journal entry with its postings, whose debits and credits are equal.
#[derive(Debug, Serialize, ToSchema)]
pub struct Entry {
    /// Time-ordered id.
    #[schema(value_type = String, example = "je_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    pub(crate) id: JournalEntryId,
    /// Always `journal_entry`.
    #[schema(example = "journal_entry")]
    object: &'static str,
    /// Source of the entry, the change that it records. A source is posted once.
    #[schema(example = "ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b:capture")]
    pub(crate) source: String,
    /// Time of the posting.
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T09:30:00.000Z")]
    pub(crate) created_at: Timestamp,
    /// Lines of the entry.
    pub(crate) postings: Vec<Posting>,
    /// What the entry corrects, and why, if it's a correcting entry.
    #[schema(example = json!(null))]
    correction: Option<ShownCorrection>,
}

/// An entry without its postings: id, source, time.
pub(super) type EntryRow = (JournalEntryId, String, DateTime<Utc>);

/// Adds the postings to their entries.
pub(super) fn with_postings(
    conn: &mut PgConnection,
    merchant: MerchantId,
    rows: List<EntryRow>,
) -> Result<List<Entry>, Error> {
    use diesel::sql_types::Array;
    let ids: Vec<uuid::Uuid> = rows.data.iter().map(|(id, ..)| id.0).collect();
    let lines = statement::<PostingSql>(postings_where!("p.entry_id = ANY ({}) ORDER BY p.entry_id, p.line"))
        .bind::<SqlUuid, _>(merchant)
        .bind::<Array<SqlUuid>, _>(&ids)
        .load::<PostingRow>(conn)?;
    let mut corrections: std::collections::HashMap<_, _> =
        corrections(conn, merchant, &ids)?.into_iter().collect();
    let mut by_entry = std::collections::HashMap::<JournalEntryId, Vec<Posting>>::new();
    for line in lines {
        by_entry.entry(line.0).or_default().push(posting(line)?);
    }
    rows.try_map(|(id, source, created_at)| {
        let postings = by_entry.remove(&id).unwrap_or_default();
        let correction = corrections.remove(&id.0);
        let created_at = Timestamp(created_at);
        Ok(Entry { id, object: "journal_entry", source, created_at, postings, correction })
    })
}

problems!(ListEntriesProblems, reading:);

/// List journal entries
///
/// Newest first. Lists all entries, or the one of a source.
#[utoipa::path(
    operation_id = "ledger.journal_entries.list",
    tag = "Ledger",
    params(("source" = Option<String>, Query, min_length = 1, max_length = 255, description = "Source of the entry", example = "ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b:capture")),
    responses((status = 200, description = "A page of entries.", body = List<Entry>), ListEntriesProblems),
)]
#[get("/v1/ledger/journal-entries")]
pub async fn list_entries(
    db: web::Data<Db>,
    WithQuery(merchant, query): WithQuery<AuthenticatedMerchant>,
) -> Result<HttpResponse, Error> {
    let (page, source) =
        query.read(|parameters| (parameters.page::<JournalEntryId>(), parameters.optional_text("source")))?;
    let entries = db.run_retrying(move |conn| entries(conn, merchant.0, page, source.as_deref())).await?;
    Ok(HttpResponse::Ok().json(entries))
}

/// Reads a page of a merchant's journal, newest first.
pub fn entries(
    conn: &mut PgConnection,
    merchant: MerchantId,
    page: Page<JournalEntryId>,
    source: Option<&str>,
) -> Result<List<Entry>, Error> {
    let mut query = journal_entries::table
        .filter(journal_entries::merchant_id.eq(merchant))
        .select((journal_entries::id, journal_entries::source, journal_entries::created_at))
        .into_boxed();
    if let Some(source) = source {
        query = query.filter(journal_entries::source.eq(source));
    }
    let rows: List<EntryRow> = load_page!(conn, query, journal_entries::id, page)?;
    with_postings(conn, merchant, rows)
}

problems!(GetEntryProblems, reading: JournalEntryNotFound);

/// Retrieve a journal entry
///
/// Includes the entry's postings. Entries never change.
#[utoipa::path(
    operation_id = "ledger.journal_entries.get",
    tag = "Ledger",
    params(("id" = String, Path, description = "Id of the entry", example = "je_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")),
    responses((status = 200, description = "The entry.", body = Entry), GetEntryProblems),
)]
#[get("/v1/ledger/journal-entries/{id}")]
pub async fn get_entry(
    db: web::Data<Db>,
    merchant: AuthenticatedMerchant,
    id: web::Path<String>,
) -> Result<HttpResponse, Error> {
    let id = id.parse::<JournalEntryId>().map_err(|_| Error::JournalEntryNotFound)?;
    let entry = db
        .run_retrying(move |conn| {
            let row = journal_entries::table
                .find((merchant.0, id))
                .select((journal_entries::id, journal_entries::source, journal_entries::created_at))
                .first::<EntryRow>(conn)
                .optional()?
                .ok_or(Error::JournalEntryNotFound)?;
            let list = with_postings(conn, merchant.0, List { data: vec![row], has_more: false })?;
            list.data.into_iter().next().ok_or(Error::JournalEntryNotFound)
        })
        .await?;
    Ok(HttpResponse::Ok().json(entry))
}

/// All accounts with their balances in two columns of equal sums.
#[derive(Debug, Serialize, ToSchema)]
pub struct TrialBalance {
    /// Time of the balances, if the request named one.
    #[schema(value_type = Option<String>, format = DateTime, example = json!(null))]
    at: Option<Timestamp>,
    /// One line per account.
    accounts: Vec<TrialBalanceLine>,
    /// One line per currency, with the sums of the columns.
    totals: Vec<TrialBalanceTotal>,
}

/// An account in the trial balance.
#[derive(Debug, Serialize, ToSchema)]
pub struct TrialBalanceLine {
    /// Id of the account.
    #[schema(value_type = String, example = "la_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    account_id: AccountId,
    /// Kind of the account.
    #[schema(example = "merchant_payable")]
    kind: String,
    /// ISO 4217 code.
    #[schema(example = "USD")]
    currency: String,
    /// Balance, if it is on the debit side; otherwise zero.
    #[schema(example = "0.00")]
    debit: String,
    /// Balance, if it is on the credit side; otherwise zero.
    #[schema(example = "118.20")]
    credit: String,
}

/// The column sums of a currency.
#[derive(Debug, Serialize, ToSchema)]
pub struct TrialBalanceTotal {
    /// ISO 4217 code.
    #[schema(example = "USD")]
    currency: String,
    /// Sum of the debit column.
    #[schema(example = "120.00")]
    debit: String,
    /// Sum of the credit column, equal to that of the debit column.
    #[schema(example = "120.00")]
    credit: String,
}

problems!(GetTrialBalanceProblems, reading:);

/// Retrieve the trial balance
///
/// Lists every account with its balance on the debit or the credit side, now or at a time. The sums of the
/// two columns are equal at every time, since all postings of an entry have the same time. Times are shown in
/// milliseconds, and a time stands for its whole millisecond: the trial balance at the `created_at` of an entry
/// includes that entry.
#[utoipa::path(
    operation_id = "ledger.trial_balance.get",
    tag = "Ledger",
    params(("at" = Option<String>, Query, format = DateTime, description = "RFC 3339 time. Includes all postings up to the end of its millisecond", example = "2026-01-31T09:30:00Z")),
    responses((status = 200, description = "The trial balance.", body = TrialBalance), GetTrialBalanceProblems),
)]
#[get("/v1/ledger/trial-balance")]
pub async fn get_trial_balance(
    db: web::Data<Db>,
    WithQuery(merchant, query): WithQuery<AuthenticatedMerchant>,
) -> Result<HttpResponse, Error> {
    let at = query.read(|parameters| parameters.optional_time("at"))?;
    let trial_balance = db.run_retrying(move |conn| trial_balance(conn, merchant.0, at)).await?;
    Ok(HttpResponse::Ok().json(trial_balance))
}

/// An account with its balance, debits positive.
pub(crate) struct AccountLine {
    pub id: AccountId,
    pub kind: String,
    pub currency: String,
    pub balance: Decimal,
}

impl AccountLine {
    /// The side on which the account grows.
    pub fn normal_side(&self) -> Side {
        normal_side(&self.kind)
    }
}

/// Reads all accounts of a merchant with their balances, now or at a time, from one snapshot. Takes no locks.
pub(crate) fn account_lines(
    conn: &mut PgConnection,
    merchant: MerchantId,
    at: Option<DateTime<Utc>>,
) -> Result<Vec<AccountLine>, Error> {
    // One statement in both cases, so that it reads all accounts from the same snapshot.
    let query = match at {
        None if shape::is_distributed() => statement::<(SqlUuid, Text, Text, Numeric)>(
            "SELECT id, kind, currency, balance FROM ledger_balances({}) ORDER BY currency, kind",
        )
        .bind::<SqlUuid, _>(merchant),
        None => statement::<(SqlUuid, Text, Text, Numeric)>(
            "SELECT id, kind, currency, ledger_balance(merchant_id, id) FROM ledger_accounts \
             WHERE merchant_id = {} ORDER BY currency, kind",
        )
        .bind::<SqlUuid, _>(merchant),
        Some(at) => statement::<(SqlUuid, Text, Text, Numeric)>(
            "SELECT a.id, a.kind, a.currency, coalesce((SELECT sum(p.amount) FROM postings p \
                 WHERE p.merchant_id = {} AND p.account_id = a.id AND p.created_at < {}), 0) \
             FROM ledger_accounts a WHERE a.merchant_id = {} ORDER BY a.currency, a.kind",
        )
        .bind::<SqlUuid, _>(merchant)
        .bind::<Timestamptz, _>(time::end_of_millisecond(at))
        .bind::<SqlUuid, _>(merchant),
    };
    let rows = query.load::<(AccountId, String, String, Decimal)>(conn)?;
    let line = |(id, kind, currency, balance)| AccountLine { id, kind, currency, balance };
    Ok(rows.into_iter().map(line).collect())
}

fn trial_balance(
    conn: &mut PgConnection,
    merchant: MerchantId,
    at: Option<DateTime<Utc>>,
) -> Result<TrialBalance, Error> {
    let mut accounts = Vec::new();
    let mut totals: Vec<(Currency, Decimal, Decimal)> = Vec::new();
    for AccountLine { id: account_id, kind, currency: code, balance } in account_lines(conn, merchant, at)? {
        let currency = Currency::stored(&code).map_err(Error::internal)?;
        let (debit, credit) = (balance.max(Decimal::ZERO), (-balance).max(Decimal::ZERO));
        match totals.last_mut() {
            Some((last, debits, credits)) if *last == currency => {
                *debits += debit;
                *credits += credit;
            }
            _ => totals.push((currency, debit, credit)),
        }
        accounts.push(TrialBalanceLine {
            account_id,
            kind,
            currency: code,
            debit: currency.format(debit),
            credit: currency.format(credit),
        });
    }
    let totals = totals
        .into_iter()
        .map(|(currency, debit, credit)| TrialBalanceTotal {
            currency: currency.to_string(),
            debit: currency.format(debit),
            credit: currency.format(credit),
        })
        .collect();
    Ok(TrialBalance { at: at.map(Timestamp), accounts, totals })
}
