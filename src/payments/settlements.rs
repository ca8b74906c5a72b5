//! Settlements: payments from the processor into our bank account, for a merchant's charges.
//!
//! The processor initiates them. Here a settlement is just a journal entry: `bank` from `acquirer_clearing`. If fees
//! and refunds exceed what was taken, the amount is negative, and so is the entry. A settlement of zero moves nothing and
//! has no entry, only its event.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Nullable, Numeric, Text, Uuid as SqlUuid};
use rust_decimal::Decimal;
use serde::Serialize;
use utoipa::ToSchema;

use crate::base::ids::{MerchantId, SettlementId};
use crate::base::money::{Currency, Money};
use crate::base::time::Timestamp;
use crate::error::Error;
use crate::events::{self, EventType};
use crate::ledger::{self, AccountKind, JournalEntry};
use crate::payments::notice::NoticeEffect;
use crate::storage::schema::merchants;
use crate::storage::sql::statement;

/// A payment from the processor for a merchant's charges.
#[derive(Debug, Serialize, ToSchema)]
pub struct Settlement {
    /// The processor's id.
    #[schema(value_type = String, example = "set_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    id: SettlementId,
    /// Always `settlement`.
    #[schema(example = "settlement")]
    object: &'static str,
    /// Amount, at the currency's scale. Negative if we had to pay the processor.
    #[schema(example = "1250.00")]
    amount: String,
    /// ISO 4217 code.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
    /// Time at which the service learned of the settlement.
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T09:30:00.000Z")]
    created_at: Timestamp,
}

/// Books a settlement, on the processor's notice.
///
/// Locks: the settlement's id, until the transaction ends.
pub fn book(
    conn: &mut PgConnection,
    merchant: MerchantId,
    id: SettlementId,
    money: Money,
    now: DateTime<Utc>,
) -> Result<NoticeEffect, Error> {
    let source = id.to_string();
    // There is no row yet that could be locked, and a settlement of zero never has an entry whose source is unique.
    statement::<()>("SELECT pg_advisory_xact_lock(hashtextextended({}, hashtextextended({}::text, 2)))")
        .bind::<Text, _>(&source)
        .bind::<SqlUuid, _>(merchant)
        .execute(conn)?;
    let booked = statement::<(Nullable<Numeric>, Nullable<Text>)>(
        "SELECT p.amount, p.currency FROM journal_entries e \
         JOIN postings p ON p.merchant_id = e.merchant_id AND p.entry_id = e.id \
         JOIN ledger_accounts a ON a.merchant_id = p.merchant_id AND a.id = p.account_id AND a.kind = 'bank' \
         WHERE e.merchant_id = {} AND e.source = {} \
         UNION ALL \
         SELECT (data->>'amount')::numeric, data->>'currency' FROM events \
         WHERE merchant_id = {} AND object_id = {} AND type = {} LIMIT 1",
    )
    .bind::<SqlUuid, _>(merchant)
    .bind::<Text, _>(&source)
    .bind::<SqlUuid, _>(merchant)
    .bind::<SqlUuid, _>(id.0)
    .bind::<Text, _>(EventType::SettlementPaid.as_str())
    .get_result::<(Option<Decimal>, Option<String>)>(conn)
    .optional()?;
    if let Some((amount, currency)) = booked {
        let is_same = amount == Some(money.amount()) && currency.as_deref() == Some(money.currency().code());
        let other = || NoticeEffect::Contradicts("It was booked with another amount.".to_owned());
        return Ok(if is_same { NoticeEffect::AlreadyApplied } else { other() });
    }
    let merchant_row = merchants::table.find(merchant);
    if !diesel::select(diesel::dsl::exists(merchant_row)).get_result::<bool>(conn)? {
        return Ok(NoticeEffect::Contradicts("There is no such merchant.".to_owned()));
    }
    let absolute = Money::from_stored(money.amount().abs(), money.currency());
    let (debited, credited) = match money.amount().is_sign_negative() {
        false => (AccountKind::Bank, AccountKind::AcquirerClearing),
        true => (AccountKind::AcquirerClearing, AccountKind::Bank),
    };
    if !absolute.amount().is_zero() {
        let entry = JournalEntry::new(source).debit(debited, absolute).credit(credited, absolute);
        ledger::post(conn, merchant, &entry)?;
    }
    let settlement = Settlement {
        id,
        object: "settlement",
        amount: money.currency().format(money.amount()),
        currency: money.currency(),
        created_at: Timestamp(now),
    };
    events::record(conn, merchant, EventType::SettlementPaid, id.0, &settlement)?;
    Ok(NoticeEffect::Applied)
}
