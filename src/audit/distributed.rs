//! The audit of a distributed database: merchant by merchant.
//!
//! The checks are the same, and their queries, too. In front of each comes a `WITH` that gives the names of tables to the rows that
//! one merchant has in them; so a query finds the merchant's violations, on the merchant's node.

use std::collections::BTreeSet;

use diesel::prelude::*;
use diesel::sql_types::{Array, Text, Uuid as SqlUuid};
use uuid::Uuid;

use super::{CHECKS, Found, SAMPLES_MAX, Timeout, find, on_one_snapshot};
use crate::base::progress::{Step, Tell};
use crate::error::Error;
use crate::idempotency::{ResourceKind, Scope};
use crate::inbound::differences;
use crate::storage::merchants;
use crate::storage::sql::statement;

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
/// Name of the check that looks for the resources of keys.
const OF_RESOURCES: &str = "key_without_resource";
/// Name of the check that counts only events that retention has left.
const OF_EVENTS: &str = "missing_events";

/// The time before which events may have been deleted.
fn events_before(conn: &mut PgConnection) -> QueryResult<String> {
    diesel::select(diesel::dsl::sql::<Text>(
        "(SELECT coalesce(max(events_before), '-infinity')::text FROM event_retention)",
    ))
    .get_result(conn)
}

/// The place of the check with a name.
fn number_of(name: &str) -> usize {
    CHECKS.iter().position(|check| check.name == name).expect("each of these names is a check's")
}

/// Runs all checks, each for all merchants.
pub(super) fn find_all(
    conn: &mut PgConnection,
    kinds: &[&'static ResourceKind],
    timeout: Timeout<'_>,
    tell: Tell<'_>,
) -> Result<Vec<Found>, Error> {
    let mut found: Vec<Found> = CHECKS.iter().map(|_| Found::default()).collect();
    let mut add = |number: usize, more: Found| {
        let sum = &mut found[number];
        sum.violations += more.violations;
        sum.samples.extend(more.samples);
        sum.samples.sort();
        sum.samples.truncate(SAMPLES_MAX);
    };
    // A kind whose rows are of no merchant has keys of no merchant, too: those of operators and of the processor.
    let (of_merchants, of_nobody): (Vec<_>, Vec<_>) =
        kinds.iter().copied().partition(|kind| matches!(kind.scope, Scope::Merchant));
    let tables: BTreeSet<&str> =
        TABLES.into_iter().chain(of_merchants.iter().map(|kind| kind.table)).collect();
    let of_events = number_of(OF_EVENTS);
    let merchants: Vec<Uuid> = merchants::all(conn)?.into_iter().chain([merchants::NOBODY]).collect();
    for (done, &merchant) in merchants.iter().enumerate() {
        tell(Step { what: "merchants", done, total: Some(merchants.len()) });
        on_one_snapshot(conn, |conn| {
            for (number, check) in CHECKS.iter().enumerate() {
                let query = match check.name {
                    OF_NO_MERCHANT if merchant != merchants::NOBODY => continue,
                    OF_NO_MERCHANT => check.sql(kinds),
                    // Below.
                    OF_THE_PROCESSOR | OF_EVENTS => continue,
                    OF_RESOURCES if merchant == merchants::NOBODY => {
                        add(number, without_resource(conn, &of_nobody)?);
                        continue;
                    }
                    _ => of_merchant(&check.sql(&of_merchants), merchant, &tables, None),
                };
                add(number, find(conn, &query, timeout)?);
            }
            Ok(())
        })?;
        let found = loop {
            let before = events_before(conn)?;
            let query = of_merchant(&CHECKS[of_events].sql(&of_merchants), merchant, &tables, Some(&before));
            let found = on_one_snapshot(conn, |conn| find(conn, &query, timeout))?;
            // Else some may have been deleted, as they should, since it was read which are.
            if found.violations == 0 || events_before(conn)? == before {
                break found;
            }
        };
        add(of_events, found);
    }
    let differences = differences::names(conn, 3_600.0)?;
    let violations = i64::try_from(differences.len()).unwrap_or(i64::MAX);
    add(number_of(OF_THE_PROCESSOR), Found { violations, samples: differences });
    Ok(found)
}

/// The query of a check, for one merchant's rows. `events_before`: the time before which events may have been deleted, for the check that
/// asks.
fn of_merchant(query: &str, merchant: Uuid, tables: &BTreeSet<&str>, events_before: Option<&str>) -> String {
    let before = events_before
        .map(|before| format!("event_retention AS (SELECT timestamptz '{before}' AS events_before)"));
    let tables: Vec<&str> = tables.iter().copied().filter(|table| query.contains(table)).collect();
    let named: Vec<String> = before.into_iter().chain(merchants::rows_of(merchant, &tables)).collect();
    format!("WITH {} {query}", named.join(", "))
}

/// Keys of no merchant whose resource doesn't exist. The resources are elsewhere, so they're looked up apart, kind by kind.
fn without_resource(conn: &mut PgConnection, kinds: &[&ResourceKind]) -> QueryResult<Found> {
    let mut found = Found::default();
    for kind in kinds.iter().filter(|kind| kind.is_kept) {
        let Scope::Service(column) = kind.scope else { continue };
        let keys = statement::<(Text, SqlUuid)>(
            "SELECT operation || ' ' || key, resource_id FROM idempotency_keys \
             WHERE merchant_id = {} AND state = 'completed' AND (response_status < 300 OR response_status = 402) \
                 AND resource_type = {}",
        )
        .bind::<SqlUuid, _>(merchants::NOBODY)
        .bind::<Text, _>(kind.name)
        .load::<(String, Uuid)>(conn)?;
        let ids: Vec<Uuid> = keys.iter().map(|(_, id)| *id).collect();
        let query = format!(
            "/* of all merchants */ SELECT {column} AS id FROM {} WHERE {column} = ANY ($1)",
            kind.table
        );
        let there: Vec<Id> = diesel::sql_query(query).bind::<Array<SqlUuid>, _>(ids).load(conn)?;
        let there: BTreeSet<Uuid> = there.into_iter().map(|row| row.id).collect();
        found.samples.extend(keys.into_iter().filter(|(_, id)| !there.contains(id)).map(|(key, _)| key));
    }
    found.violations = i64::try_from(found.samples.len()).unwrap_or(i64::MAX);
    Ok(found)
}

#[derive(QueryableByName)]
struct Id {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
}
