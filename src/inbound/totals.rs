//! Totals of a comparison with the processor: of what is compared. How much isn't is counted apart.
//!
//! Totals begin where the comparison begins. If a sandbox was in use before the processor, its charges are in
//! our books and can't be in the processor's, so they don't count. Neither does what is under way, was voided as
//! an orphan, or was accepted by an operator. So where totals aren't equal, there is a difference that says why.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Numeric, Text, Timestamptz};
use rust_decimal::Decimal;

use super::differences::by_merchant::{Definitions, everybody};
use crate::base::time::Timestamp;
use crate::storage::shape;

/// Totals of one kind of operation in one currency.
#[derive(Debug, QueryableByName)]
pub struct Totals {
    /// ISO 4217 code.
    #[diesel(sql_type = Text)]
    pub currency: String,
    /// `authorize`, `capture`, `refund` or `payout`.
    #[diesel(sql_type = Text)]
    pub kind: String,
    /// Number of compared operations in our books.
    #[diesel(sql_type = BigInt)]
    pub our_count: i64,
    /// Total amount of those.
    #[diesel(sql_type = Numeric)]
    pub our_amount: Decimal,
    /// Number of compared operations in the processor's books.
    #[diesel(sql_type = BigInt)]
    pub their_count: i64,
    /// Total amount of those.
    #[diesel(sql_type = Numeric)]
    pub their_amount: Decimal,
    #[diesel(sql_type = BigInt)]
    earlier: i64,
    #[diesel(sql_type = BigInt)]
    our_rest: i64,
    #[diesel(sql_type = BigInt)]
    their_rest: i64,
    #[diesel(sql_type = Timestamptz)]
    since: DateTime<Utc>,
}

/// Number of operations that aren't compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NotCompared {
    /// Ours from before the processor was first asked, which it doesn't have.
    pub earlier: i64,
    /// The time at which it was first asked.
    pub since: DateTime<Utc>,
    /// Ours that the processor needn't have yet.
    pub our_rest: i64,
    /// The processor's that we needn't have: under way, voided, or accepted by an operator.
    pub their_rest: i64,
}

/// Which operations are in a difference, by the reading that the totals belong to.
#[derive(Debug, Default)]
pub struct Named {
    /// Ours that the processor lacks: kind and reference, with a space in between.
    pub missing: Vec<String>,
    /// Ids of the processor's operations.
    pub operations: Vec<String>,
}

/// Adds up what is compared: what both sides have, and what `named` holds. Needs the snapshot in which `named` was
/// found.
pub fn load(conn: &mut PgConnection, named: &Named) -> QueryResult<(Vec<Totals>, NotCompared)> {
    let mut totals = if shape::is_distributed() {
        load_by_merchant(conn, named)?
    } else {
        load_from(conn, format!("WITH {TOTALS}"), named)?
    };
    let not_compared = totals.iter().fold(NotCompared::default(), |sum, total| NotCompared {
        earlier: sum.earlier + total.earlier,
        since: total.since,
        our_rest: sum.our_rest + total.our_rest,
        their_rest: sum.their_rest + total.their_rest,
    });
    totals.retain(|total| total.our_count + total.their_count > 0);
    Ok((totals, not_compared))
}

fn load_from(conn: &mut PgConnection, query: String, named: &Named) -> QueryResult<Vec<Totals>> {
    diesel::sql_query(query)
        .bind::<Array<Text>, _>(&named.missing)
        .bind::<Array<Text>, _>(&named.operations)
        .load(conn)
}

/// The same, in a distributed database.
fn load_by_merchant(conn: &mut PgConnection, named: &Named) -> QueryResult<Vec<Totals>> {
    let Some(definitions) = Definitions::read(conn)? else { return Ok(Vec::new()) };
    let mut sums = BTreeMap::<_, Totals>::new();
    for merchant in everybody(conn)? {
        for more in load_from(conn, format!("{}, {TOTALS}", definitions.of(merchant, 0.0)), named)? {
            match sums.entry((more.currency.clone(), more.kind.clone())) {
                Entry::Vacant(empty) => {
                    empty.insert(more);
                }
                Entry::Occupied(mut sum) => sum.get_mut().add(&more),
            }
        }
    }
    Ok(sums.into_values().collect())
}

impl Totals {
    fn add(&mut self, more: &Self) {
        self.our_count += more.our_count;
        self.our_amount += more.our_amount;
        self.their_count += more.their_count;
        self.their_amount += more.their_amount;
        self.earlier += more.earlier;
        self.our_rest += more.our_rest;
        self.their_rest += more.their_rest;
    }
}

/// SQL: what follows `WITH`. One of theirs belongs to one of ours; a further one is a duplicate, and counts only if it's named.
const TOTALS: &str = "ours AS MATERIALIZED (SELECT * FROM operations_in_effect_here WHERE currency IS NOT NULL), \
         theirs AS MATERIALIZED ( \
             SELECT *, row_number() OVER (PARTITION BY merchant_id, object_id, kind ORDER BY is_voided, created_at, id) AS nth \
             FROM (SELECT *, kind = 'authorize' AND EXISTS ( \
                       SELECT FROM acquirer_operations v WHERE v.authorization_id = a.authorization_id \
                           AND v.kind = 'void' AND v.status = 'succeeded') AS is_voided \
                   FROM operations_in_effect_there a WHERE currency IS NOT NULL) AS a), \
         judged AS ( \
             SELECT o.currency, o.kind, o.amount, true AS is_ours, o.created_at < r.since AS is_earlier, \
                 t.id IS NOT NULL OR o.kind || ' ' || o.prefix || replace(o.id::text, '-', '') = ANY ($1) AS is_compared \
             FROM acquirer_reads r CROSS JOIN ours o LEFT JOIN theirs t \
                 ON t.merchant_id = o.merchant_id AND t.object_id = o.id AND t.kind = o.kind AND t.nth = 1 \
             UNION ALL \
             SELECT t.currency, t.kind, t.amount, false, false, t.id = ANY ($2) OR (t.nth = 1 AND o.id IS NOT NULL) \
             FROM theirs t LEFT JOIN ours o ON o.merchant_id = t.merchant_id AND o.id = t.object_id AND o.kind = t.kind) \
         SELECT currency, kind, count(*) FILTER (WHERE is_compared AND is_ours) AS our_count, \
             coalesce(sum(amount) FILTER (WHERE is_compared AND is_ours), 0) AS our_amount, \
             count(*) FILTER (WHERE is_compared AND NOT is_ours) AS their_count, \
             coalesce(sum(amount) FILTER (WHERE is_compared AND NOT is_ours), 0) AS their_amount, \
             count(*) FILTER (WHERE NOT is_compared AND is_ours AND is_earlier) AS earlier, \
             count(*) FILTER (WHERE NOT is_compared AND is_ours AND NOT is_earlier) AS our_rest, \
             count(*) FILTER (WHERE NOT is_compared AND NOT is_ours) AS their_rest, \
             (SELECT since FROM acquirer_reads) AS since \
         FROM judged GROUP BY currency, kind ORDER BY currency, kind";

impl fmt::Display for NotCompared {
    /// Prints a line for each reason that there is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.earlier > 0 {
            let since = serde_json::to_value(Timestamp(self.since)).map_err(|_| fmt::Error)?;
            writeln!(
                f,
                "Not compared: {} here that the processor doesn't have, from before it was first asked ({}).",
                self.earlier,
                since.as_str().unwrap_or_default()
            )?;
        }
        if self.our_rest + self.their_rest > 0 {
            writeln!(
                f,
                "Not compared: {} here and {} there that are under way, or were voided or accepted.",
                self.our_rest, self.their_rest
            )?;
        }
        Ok(())
    }
}
