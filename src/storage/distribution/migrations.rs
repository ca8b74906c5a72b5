//! Migrations of a database that is distributed.

use diesel::connection::{BoxableConnection, SimpleConnection};
use diesel::migration::Migration;
use diesel::pg::Pg;
use diesel::sql_types::Text as SqlText;
use diesel::{Connection, PgConnection, QueryResult, RunQueryDsl};

use super::{
    OF_MERCHANTS_SQL, empty_coordinator, execute, has_extension, is_done, renew, spread_sql, spread_tables,
};
use crate::storage::sql::statement;

/// Whether the database is distributed over a cluster, for whoever migrates it. Prepares the session for that.
pub fn prepare_to_migrate(conn: &mut PgConnection) -> Result<bool, String> {
    let is_distributed = is_done(conn)? && has_extension(conn)?;
    if is_distributed {
        execute(conn, "SET citus.enable_unsafe_triggers = on")?;
        execute(conn, "SET plan_cache_mode = auto")?;
    }
    Ok(is_distributed)
}

/// Runs a migration on a distributed database, in a transaction, and records it.
///
/// The nodes take one statement at a time, so all are put into one block. Privileges on columns are the coordinator's, and
/// [guards](super#guards) stand for them on the nodes.
pub fn run_migration(
    conn: &mut PgConnection,
    migration: &dyn Migration<Pg>,
) -> diesel::migration::Result<()> {
    let mut text = Text(String::new());
    migration.run(&mut text)?;
    let block = format!(
        "DO $migration$ BEGIN SET LOCAL citus.multi_shard_modify_mode = 'sequential'; {} END $migration$",
        for_cluster(&text.0)
    );
    Ok(conn.transaction(|conn| {
        conn.batch_execute(&block)?;
        statement::<()>("INSERT INTO __diesel_schema_migrations (version) VALUES ({})")
            .bind::<SqlText, _>(migration.name().version().to_string())
            .execute(conn)
            .map(|_| ())
    })?)
}

/// The text of a migration, which runs itself on what looks like a connection.
struct Text(String);

impl SimpleConnection for Text {
    fn batch_execute(&mut self, query: &str) -> QueryResult<()> {
        self.0.push_str(query);
        Ok(())
    }
}

impl BoxableConnection<Pg> for Text {
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn std::any::Any {
        self
    }
}

/// Statements of migrations that a cluster takes otherwise. Migrations begin each of them on a line of its own.
const APART: [&str; 2] = ["\nGRANT ", "\nCREATE TABLE "];

/// A migration as a cluster takes it.
///
/// Grants of columns aren't passed on to the nodes. A new table of merchants isn't either, so that it may refer to others; then it's
/// distributed, before anything is written into it.
fn for_cluster(sql: &str) -> String {
    let mut rest = sql;
    let mut taken = String::new();
    while let Some(start) = APART.iter().filter_map(|begin| rest.find(begin)).min().map(|at| at + 1) {
        let end = rest[start..].find(';').map_or(rest.len(), |length| start + length + 1);
        let statement = &rest[start..end];
        taken.push_str(&rest[..start]);
        let table = statement.strip_prefix("CREATE TABLE ").and_then(|rest| rest.split_whitespace().next());
        let has_columns =
            statement.split_whitespace().take_while(|word| *word != "ON").any(|word| word.starts_with('('));
        if table.is_some() || has_columns {
            taken.push_str("SET LOCAL citus.enable_ddl_propagation = off; ");
            taken.push_str(statement);
            taken.push_str(" SET LOCAL citus.enable_ddl_propagation = on;");
        } else {
            taken.push_str(statement);
        }
        if let Some(table) = table {
            let is_of_merchants =
                format!("EXISTS (SELECT {OF_MERCHANTS_SQL} AND c.oid = '{table}'::regclass)");
            let spread = spread_sql(table);
            taken.push_str(&format!(" IF {is_of_merchants} THEN PERFORM {spread}; END IF;"));
        }
        rest = &rest[end..];
    }
    taken + rest
}

/// Renews what a distributed database has of its own, after migrations, and distributes new tables.
pub fn renew_after_migrations(conn: &mut PgConnection) -> Result<(), String> {
    let say = &mut |step: &str| log::info!("{step}");
    spread_tables(conn, say)?;
    // What migrations wrote into new tables.
    empty_coordinator(conn, say)?;
    renew(conn, say)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_of_columns_stay_on_the_coordinator_and_new_tables_of_merchants_do_not() {
        let sql = "\nGRANT SELECT ON a TO b;\nGRANT SELECT, UPDATE (c, d)\n ON a TO b;\nGRANT EXECUTE ON FUNCTION f(text) TO b;\n-- end";
        let (off, on) = (
            "SET LOCAL citus.enable_ddl_propagation = off; ",
            " SET LOCAL citus.enable_ddl_propagation = on;",
        );
        let expected = format!(
            "\nGRANT SELECT ON a TO b;\n{off}GRANT SELECT, UPDATE (c, d)\n ON a TO b;{on}\nGRANT EXECUTE ON FUNCTION f(text) TO b;\n-- end"
        );
        assert_eq!(for_cluster(sql), expected);

        let taken = for_cluster("\nCREATE TABLE a (b int);\nINSERT INTO a VALUES (1);");
        let parts = [
            off,
            "CREATE TABLE a (b int);",
            on,
            "'a'::regclass",
            "PERFORM create_distributed_table('a'",
            "INSERT",
        ];
        let places: Vec<_> = parts.iter().map(|part| taken.find(part)).collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{taken}");
    }
}
