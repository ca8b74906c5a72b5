//! The comparison with the processor's books in a distributed database: merchant by merchant.
//!
//! What a difference is, is said once: by the function and the views of the migrations. Their texts are read from the catalog and put
//! after a `WITH` that gives the names of their tables to one merchant's rows (see [`rows_of`](crate::storage::merchants::rows_of)).

use std::collections::HashSet;

use diesel::prelude::*;
use diesel::sql_types::{Array, Text, Uuid as SqlUuid};
use uuid::Uuid;

use super::{Difference, acceptance};
use crate::error::Error;
use crate::storage::merchants;
use crate::storage::sql::statement;

/// Tables that the views and the function read.
const TABLES: [&str; 6] =
    ["charges", "refunds", "payouts", "events", "idempotency_keys", "acquirer_operations"];

/// What the comparison of every merchant reads first.
pub(in crate::inbound) struct Definitions {
    here: String,
    there: String,
    differences: String,
    since: String,
    read_at: String,
    now: String,
}

impl Definitions {
    /// `None` until the processor is in use.
    pub fn read(conn: &mut PgConnection) -> QueryResult<Option<Self>> {
        let found = statement::<(Text, Text, Text, Text, Text, Text)>(
            "SELECT rtrim(pg_get_viewdef('operations_in_effect_here'::regclass), ';'), \
                 rtrim(pg_get_viewdef('operations_in_effect_there'::regclass), ';'), \
                 (SELECT rtrim(btrim(prosrc, E' \\n'), ';') FROM pg_proc WHERE oid = 'acquirer_differences(interval)'::regprocedure), \
                 since::text, coalesce(quote_literal(read_at::text), 'NULL'), clock_timestamp()::text \
             FROM acquirer_reads",
        )
        .get_result::<(String, String, String, String, String, String)>(conn)
        .optional()?;
        Ok(found.map(|(here, there, differences, since, read_at, now)| Self {
            here,
            there,
            differences,
            since,
            read_at,
            now,
        }))
    }

    /// SQL: a `WITH` after which all that the comparison reads is one merchant's.
    pub fn of(&self, merchant: Uuid, grace_s: f64) -> String {
        let Self { here, there, since, read_at, .. } = self;
        let rows = merchants::rows_of(merchant, &TABLES).join(", ");
        // The function's parameter is a column here.
        format!(
            "WITH {rows}, \
             acquirer_reads AS (SELECT timestamptz '{since}' AS since, {read_at}::timestamptz AS read_at, \
                 make_interval(secs => {grace_s}) AS grace), \
             operations_in_effect_here AS NOT MATERIALIZED ({here}), \
             operations_in_effect_there AS NOT MATERIALIZED ({there}) "
        )
    }

    fn differences(&self, merchant: Uuid, grace_s: f64) -> String {
        // The coordinator's, as first_read_at is.
        let now = &self.now;
        format!(
            "{} SELECT d.*, EXISTS (SELECT FROM charges c \
                 WHERE c.authorization_id = d.authorization_id AND c.status <> 'failed') AS is_relied_on, false AS is_voided, \
                 extract(epoch FROM timestamptz '{now}' - first_read_at)::double precision AS known_for_s \
             FROM ({}) AS d (difference, kind, merchant_id, reference, operation_id, authorization_id, currency, ours, theirs, \
                 first_read_at)",
            self.of(merchant, grace_s),
            self.differences
        )
    }
}

/// All merchants, and that of what belongs to none that we know.
pub(in crate::inbound) fn everybody(conn: &mut PgConnection) -> QueryResult<Vec<Uuid>> {
    Ok(merchants::all(conn)?.into_iter().chain([merchants::NOBODY]).collect())
}

pub(super) fn load(conn: &mut PgConnection, grace_s: f64) -> Result<Vec<Difference>, Error> {
    let everybody = everybody(conn)?;
    load_of(conn, &everybody, grace_s)
}

/// Finds the differences of some merchants that nobody has accepted.
fn load_of(conn: &mut PgConnection, merchants: &[Uuid], grace_s: f64) -> Result<Vec<Difference>, Error> {
    let Some(definitions) = Definitions::read(conn)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for merchant in merchants {
        found
            .extend(diesel::sql_query(definitions.differences(*merchant, grace_s)).load::<Difference>(conn)?);
    }
    for difference in &mut found {
        difference.merchant_id = difference.merchant_id.filter(|merchant| *merchant != merchants::NOBODY);
    }
    let subject = |difference: &Difference| {
        difference.operation_id.as_ref().map(|operation| format!("{} {operation}", difference.difference))
    };
    let subjects: Vec<String> = found.iter().filter_map(subject).collect();
    let accepted = statement::<Text>(concat!(
        "SELECT subject FROM operator_actions WHERE subject = ANY ({}) AND action = '",
        acceptance!(),
        "'"
    ))
    .bind::<Array<Text>, _>(subjects)
    .load::<String>(conn)?;
    let accepted: HashSet<String> = accepted.into_iter().collect();
    found.retain(|difference| subject(difference).is_none_or(|subject| !accepted.contains(&subject)));
    found.sort_by(|one, other| {
        let key = |difference: &Difference| {
            // As the database sorts: nothing comes last.
            (
                difference.currency.is_none(),
                difference.currency.clone(),
                difference.difference.clone(),
                difference.kind.clone(),
            )
        };
        key(one).cmp(&key(other)).then_with(|| one.reference.cmp(&other.reference))
    });
    Ok(found)
}

/// The differences in these operations of the processor that nobody has accepted, each with the operation's id.
pub(super) fn find(conn: &mut PgConnection, operations: &[String]) -> Result<Vec<(String, String)>, Error> {
    let merchants = statement::<SqlUuid>(
        "/* of all merchants */ SELECT DISTINCT merchant_id FROM acquirer_operations WHERE id = ANY ({})",
    )
    .bind::<Array<Text>, _>(operations.to_vec())
    .load::<Uuid>(conn)?;
    let found = load_of(conn, &merchants, 0.0)?.into_iter();
    let named = found.filter_map(|found| Some((found.difference, found.operation_id?)));
    Ok(named.filter(|(_, operation)| operations.contains(operation)).collect())
}
