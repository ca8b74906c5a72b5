//! Correcting entries: what was booked stays, and an entry that names it sets it right.

use diesel::prelude::*;
use diesel::sql_types::{Array, Nullable, Numeric, Text, Uuid as SqlUuid};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::base::ids::{JournalEntryId, MerchantId};
use crate::error::Error;
use crate::storage::sql::statement;

use super::JournalEntry;

/// Reason of a correcting entry.
#[derive(Clone, Copy, Debug)]
pub struct Correction<'a> {
    /// The entry that it corrects, if there is one.
    pub corrects: Option<JournalEntryId>,
    /// What it goes back to: the processor's name for a dispute, our id of a payout, an operator's reference.
    pub reference: &'a str,
    /// The reason as text for people.
    pub reason: &'a str,
}

/// Reason of a correcting entry, as the API shows it.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = JournalCorrection)]
pub struct ShownCorrection {
    /// Id of the entry that is corrected, if it's one.
    #[schema(value_type = Option<String>, example = "je_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    pub corrects: Option<JournalEntryId>,
    /// What the correction goes back to, such as a dispute or a letter of the bank.
    #[schema(example = "bank letter 2026-0147")]
    pub reference: String,
    /// The reason as text for people.
    #[schema(example = "The bank returned a transfer that it had reported as paid.")]
    pub reason: String,
}

/// Posts `entry` as [`post`](super::post) does, and records what it corrects, and why.
///
/// Errors and locks as with [`post`](super::post).
pub fn correct(
    conn: &mut PgConnection,
    merchant: MerchantId,
    entry: &JournalEntry,
    correction: &Correction<'_>,
) -> Result<(), Error> {
    Ok(post_correction(conn, merchant, None, entry, correction)?)
}

/// The same under an id of the caller's, if it has one, and with the database's error, for a caller that knows what
/// the database can refuse.
pub(super) fn post_correction(
    conn: &mut PgConnection,
    merchant: MerchantId,
    id: Option<JournalEntryId>,
    entry: &JournalEntry,
    correction: &Correction<'_>,
) -> QueryResult<()> {
    statement::<()>("SELECT ledger_correct({}, coalesce({}, uuid_v7()), {}, {}, {}, {}, {}, {}, {})")
        .bind::<SqlUuid, _>(merchant)
        .bind::<Nullable<SqlUuid>, _>(id)
        .bind::<Text, _>(&entry.source)
        .bind::<Array<Text>, _>(&entry.kinds)
        .bind::<Array<Text>, _>(entry.codes())
        .bind::<Array<Numeric>, _>(&entry.amounts)
        .bind::<Nullable<SqlUuid>, _>(correction.corrects)
        .bind::<Text, _>(correction.reference)
        .bind::<Text, _>(correction.reason)
        .execute(conn)?;
    Ok(())
}

/// Finds the entry of `source`.
pub fn find_entry(
    conn: &mut PgConnection,
    merchant: MerchantId,
    source: &str,
) -> Result<Option<JournalEntryId>, Error> {
    let found = statement::<SqlUuid>("SELECT id FROM journal_entries WHERE merchant_id = {} AND source = {}")
        .bind::<SqlUuid, _>(merchant)
        .bind::<Text, _>(source)
        .get_result::<Uuid>(conn)
        .optional()?;
    Ok(found.map(JournalEntryId))
}

/// Reads the corrections among these entries.
pub(super) fn corrections(
    conn: &mut PgConnection,
    merchant: MerchantId,
    entries: &[Uuid],
) -> Result<Vec<(Uuid, ShownCorrection)>, Error> {
    let rows = statement::<(SqlUuid, Nullable<SqlUuid>, Text, Text)>(
        "SELECT entry_id, corrects_id, reference, reason FROM journal_corrections \
         WHERE merchant_id = {} AND entry_id = ANY ({})",
    )
    .bind::<SqlUuid, _>(merchant)
    .bind::<Array<SqlUuid>, _>(entries)
    .load::<(Uuid, Option<Uuid>, String, String)>(conn)?;
    let shown = |(id, corrects, reference, reason): (Uuid, Option<Uuid>, String, String)| {
        (id, ShownCorrection { corrects: corrects.map(JournalEntryId), reference, reason })
    };
    Ok(rows.into_iter().map(shown).collect())
}
