//! Walks over the merchants, for background work in a distributed database.

use diesel::prelude::*;
use uuid::Uuid;

use super::schema::merchants;

/// The number of no merchant, under which a distributed database keeps what belongs to none that we know.
pub const NOBODY: Uuid = Uuid::nil();

/// SQL: parts of a `WITH` that give the names of tables to one merchant's rows in them. A query after it is about that merchant alone,
/// and runs on its node.
pub fn rows_of(merchant: Uuid, tables: &[&str]) -> Vec<String> {
    let rows = |table: &&str| {
        format!("{table} AS NOT MATERIALIZED (SELECT * FROM {table} WHERE merchant_id = '{merchant}')")
    };
    tables.iter().map(rows).collect()
}

/// All merchants, in the order of their ids. Asks each node once.
pub fn all(conn: &mut PgConnection) -> QueryResult<Vec<Uuid>> {
    merchants::table.select(merchants::merchant_id).order(merchants::merchant_id).load(conn)
}

/// Up to `limit` merchants after one, or from the first, in the order of their ids.
pub fn after(conn: &mut PgConnection, after: Option<Uuid>, limit: i64) -> QueryResult<Vec<Uuid>> {
    merchants::table
        .filter(merchants::merchant_id.gt(after.unwrap_or(Uuid::nil())))
        .select(merchants::merchant_id)
        .order(merchants::merchant_id)
        .limit(limit)
        .load(conn)
}
