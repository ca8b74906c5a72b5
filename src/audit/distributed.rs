//! The audit of a distributed database: merchant by merchant.
//!
//! The checks are the same, and their queries, too. In front of each comes a `WITH` that gives the names of tables to the rows that
//! one merchant has in them; so a query finds the merchant's violations, on the merchant's node.

use diesel::prelude::*;
use diesel::sql_types::{Nullable, Text};
use uuid::Uuid;

use super::{CHECKS, Found, SAMPLES_MAX, Timeout, find, on_one_snapshot};
use crate::error::Error;
use crate::idempotency::ResourceKind;
use crate::inbound::differences;
use crate::storage::merchants;

/// Tables with a merchant's rows that checks read.
const TABLES: [&str; 13] = [
    "acquirer_operations",
    "charges",
    "disputes",
    "events",
    "idempotency_keys",
    "journal_corrections",
    "journal_entries",
    "ledger_accounts",
    "ledger_checkpoints",
    "ledger_holds",
    "payouts",
    "postings",
    "refunds",
];

/// Names of checks about what belongs to no merchant, and of the one that has its own walk over the merchants.
const OF_NO_MERCHANT: &str = "overdue_events";
const OF_THE_PROCESSOR: &str = "processor_operations";

/// Runs all checks, each for all merchants.
pub(super) fn find_all(
    conn: &mut PgConnection,
    kinds: &[&'static ResourceKind],
    timeout: Timeout<'_>,
) -> Result<Vec<Found>, Error> {
    let mut found: Vec<Found> = CHECKS.iter().map(|_| Found::default()).collect();
    let mut add = |number: usize, more: Found| {
        let sum = &mut found[number];
        sum.violations += more.violations;
        sum.samples.extend(more.samples);
        sum.samples.sort();
        sum.samples.truncate(SAMPLES_MAX);
    };
    let events_before = diesel::select(diesel::dsl::sql::<Nullable<Text>>(
        "(SELECT coalesce(max(events_before), '-infinity')::text FROM event_retention)",
    ))
    .get_result::<Option<String>>(conn)?
    .unwrap_or_default();
    // What is of no merchant that we know is kept under the number 0.
    for merchant in merchants::all(conn)?.into_iter().chain([merchants::NOBODY]) {
        on_one_snapshot(conn, |conn| {
            for (number, check) in CHECKS.iter().enumerate() {
                let query = match check.name {
                    OF_NO_MERCHANT if merchant != merchants::NOBODY => continue,
                    OF_NO_MERCHANT => check.sql(kinds),
                    // Below.
                    OF_THE_PROCESSOR => continue,
                    _ => of_merchant(&check.sql(kinds), merchant, &events_before),
                };
                add(number, find(conn, &query, timeout)?);
            }
            Ok(())
        })?;
    }
    let differences = differences::names(conn, 3_600.0)?;
    if let Some(number) = CHECKS.iter().position(|check| check.name == OF_THE_PROCESSOR) {
        let violations = i64::try_from(differences.len()).unwrap_or(i64::MAX);
        add(number, Found { violations, samples: differences });
    }
    Ok(found)
}

/// The query of a check, for one merchant's rows.
fn of_merchant(query: &str, merchant: Uuid, events_before: &str) -> String {
    let mut named = vec![format!("event_retention AS (SELECT timestamptz '{events_before}' AS events_before)")];
    let tables: Vec<&str> = TABLES.into_iter().filter(|table| query.contains(table)).collect();
    named.extend(merchants::rows_of(merchant, &tables));
    format!("WITH {} {query}", named.join(", "))
}
