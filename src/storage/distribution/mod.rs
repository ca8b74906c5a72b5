//! Distributes a database over the nodes of a Citus cluster, by merchant.
//!
//! Every table with merchants' rows has `merchant_id` first in its keys, so all rows of a merchant are on one node, and so are the
//! references between them. The other tables stay on the coordinator, where each instance connects.
//!
//! Each step looks first whether it has been done, so a run that was interrupted is finished by the next one, and a run on a
//! database that is distributed changes nothing. What the nodes have of their own is renewed with every migration: functions of this
//! release, and guards of columns.
//!
//! # Guards
//!
//! Triggers and constraints of a table are made on each of its shards, and go with a shard that is moved. Privileges on single
//! columns don't. So the service's role gets the privilege to update a whole table, and a trigger refuses to update the columns
//! that the migrations don't grant.

mod migrations;
mod nodes;

use diesel::connection::SimpleConnection;
use diesel::sql_types::{Array, Bool, Nullable, Text as SqlText};
use diesel::{Connection, OptionalExtension, PgConnection, QueryResult, QueryableByName, RunQueryDsl};

pub use migrations::{prepare_to_migrate, renew_after_migrations, run_migration};
pub use nodes::{remarks, unsuitable_settings};

use super::shape::is_distributed_sql;
use super::sql;

/// The functions of a distributed database.
const FUNCTIONS: &str = include_str!("functions.sql");
/// Their version: one more with each release that changes them, so that an instance notices at its start if the database has those of
/// an earlier one.
const FUNCTIONS_VERSION: i32 = 2;

/// The oldest major version of Citus that this was run with.
const OLDEST_VERSION: i32 = 13;
/// SQL: whether this is a database of Citus.
const HAS_EXTENSION: &str = "EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')";
/// Table of merchants, with whose rows those of the others go.
const ANCHOR: &str = "merchants";

/// Distributes the migrated database of `conn`, which must be its owner, over a cluster that was [checked](check_cluster). Says each step.
/// The error is a sentence.
pub fn distribute(conn: &mut PgConnection, say: &mut dyn FnMut(&str)) -> Result<(), String> {
    let is_done = is_done(conn)?;
    if !is_done {
        refuse_instances(conn)?;
    }
    let prepared = [
        // For this session: the triggers' functions only read and write rows of the merchant whose row was changed.
        "SET citus.enable_unsafe_triggers = on",
        // All steps see the plans that suit them.
        "SET plan_cache_mode = auto",
        "SET lock_timeout = '30s'",
        "SET statement_timeout = 0",
        "SET client_min_messages = warning",
    ];
    for setting in prepared {
        execute(conn, setting)?;
    }
    if !is_done {
        // First: as the migrations write them, functions refer to tables, and a table can't go to the nodes before what refers to it.
        replace_functions(conn, say)?;
        send_functions(conn, Which::OfNobody, say)?;
        give_operations_a_merchant(conn, say)?;
        spread_tables(conn, say)?;
        copy_operator_keys(conn, say)?;
        empty_coordinator(conn, say)?;
    }
    renew(conn, say)
}

/// What makes a database count as distributed, whether or not its tables are: a function that returns the version of the functions.
fn mark(conn: &mut PgConnection) -> Result<(), String> {
    execute(
        conn,
        &format!(
            "CREATE OR REPLACE FUNCTION merchants_are_distributed() RETURNS integer LANGUAGE sql IMMUTABLE \
             RETURN {FUNCTIONS_VERSION}"
        ),
    )
}

/// Whether a distributed database has functions of an earlier release than this one.
pub fn is_behind(conn: &mut PgConnection) -> QueryResult<bool> {
    let version = diesel::dsl::sql::<diesel::sql_types::Integer>("merchants_are_distributed()");
    Ok(diesel::select(version).get_result::<i32>(conn)? < FUNCTIONS_VERSION)
}

/// Makes a migrated database on one Postgres take the statements of a distributed one: for tests of those statements where there
/// is no cluster.
pub fn imitate(conn: &mut PgConnection) -> Result<(), String> {
    replace_functions(conn, &mut |_| ())?;
    give_operations_a_merchant(conn, &mut |_| ())?;
    guard_columns(conn, &mut |_| ())?;
    mark(conn)
}

fn renew(conn: &mut PgConnection, say: &mut dyn FnMut(&str)) -> Result<(), String> {
    replace_functions(conn, say)?;
    guard_columns(conn, say)?;
    send_functions(conn, Which::All, say)?;
    mark(conn)
}

fn replace_functions(conn: &mut PgConnection, say: &mut dyn FnMut(&str)) -> Result<(), String> {
    conn.transaction(|conn| conn.batch_execute(FUNCTIONS))
        .map_err(|error: diesel::result::Error| format!("Can't replace the functions: {error}"))?;
    say("replaced the functions");
    Ok(())
}

fn is_done(conn: &mut PgConnection) -> Result<bool, String> {
    holds(conn, is_distributed_sql!())
}

fn has_extension(conn: &mut PgConnection) -> Result<bool, String> {
    holds(conn, HAS_EXTENSION)
}

/// Whether the functions are those of a distributed database, or some tables are distributed, and the rest isn't: an interrupted run.
pub fn is_half_done(conn: &mut PgConnection) -> QueryResult<bool> {
    // Citus shows the table to everybody.
    Ok(sql::holds(conn, "to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL")?
        && !sql::holds(conn, is_distributed_sql!())?
        && sql::holds(
            conn,
            "to_regprocedure('require_shard()') IS NOT NULL \
             OR EXISTS (SELECT FROM pg_dist_partition p JOIN pg_class c ON c.oid = p.logicalrelid \
                 WHERE c.relnamespace = current_schema()::regnamespace)",
        )?)
}

/// Checks that there is a cluster that can take the tables. Comes before the migrations, which a worker would refuse in the middle. The
/// error is a sentence.
pub fn check_cluster(conn: &mut PgConnection) -> Result<(), String> {
    if !has_extension(conn)? {
        return Err("The extension citus isn't in this database. As a superuser, on the coordinator and on each worker: CREATE \
             EXTENSION citus; then, on the coordinator: SELECT citus_set_coordinator_host('…'), citus_add_node('…', 5432);"
            .to_owned());
    }
    let version =
        text(conn, "SELECT split_part(extversion, '.', 1) FROM pg_extension WHERE extname = 'citus'")?;
    if version.parse::<i32>().is_ok_and(|version| version < OLDEST_VERSION) {
        return Err(format!("Citus is of version {version}, but {OLDEST_VERSION} or newer is needed."));
    }
    if !holds(conn, "(SELECT groupid = 0 FROM pg_dist_local_group)")? {
        return Err("This is a worker. Connect to the coordinator.".to_owned());
    }
    let has_workers = "EXISTS (SELECT FROM pg_dist_node WHERE groupid <> 0 AND noderole = 'primary' AND isactive AND shouldhaveshards)";
    if !holds(conn, has_workers)? {
        return Err(
            "The cluster has no workers. As a superuser: SELECT citus_add_node('…', 5432);".to_owned()
        );
    }
    // Balances count in the coordinator's transactions, and functions are sent to the merchant's node.
    if holds(conn, "EXISTS (SELECT FROM pg_dist_node WHERE groupid = 0 AND shouldhaveshards)")? {
        return Err("The coordinator takes shards. As a superuser: SELECT citus_set_node_property(nodename, nodeport, \
             'shouldhaveshards', false) FROM pg_dist_node WHERE groupid = 0;"
            .to_owned());
    }
    let without_role = text(
        conn,
        "SELECT coalesce(string_agg(nodename || ':' || nodeport, ', '), '') FROM run_command_on_workers( \
             'SELECT count(*) FROM pg_roles WHERE rolname = ''oncepay_app''') WHERE result <> '1'",
    )?;
    if !without_role.is_empty() {
        return Err(format!("The role oncepay_app is missing on {without_role}. Create it there first."));
    }
    Ok(())
}

/// Tables must not change while they're distributed, and instances find out at their start what they run on.
fn refuse_instances(conn: &mut PgConnection) -> Result<(), String> {
    let running = "EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'oncepay' \
         AND pid <> pg_backend_pid())";
    if holds(conn, running)? {
        return Err("Instances are connected to this database. Stop them all first.".to_owned());
    }
    Ok(())
}

/// The copy of the processor's books has the processor's key, which is unique for all merchants. Here, a merchant comes first in it;
/// an operation of no merchant that we know gets the one with the number 0.
fn give_operations_a_merchant(conn: &mut PgConnection, say: &mut dyn FnMut(&str)) -> Result<(), String> {
    let has_key = "EXISTS (SELECT FROM pg_constraint WHERE conrelid = 'acquirer_operations'::regclass AND contype = 'p' \
         AND cardinality(conkey) > 1)";
    if holds(conn, has_key)? {
        return Ok(());
    }
    conn.transaction(|conn| {
        conn.batch_execute(
            "UPDATE acquirer_operations SET merchant_id = '00000000-0000-0000-0000-000000000000' WHERE merchant_id IS NULL; \
             ALTER TABLE acquirer_operations ALTER COLUMN merchant_id SET NOT NULL, \
                 DROP CONSTRAINT acquirer_operations_pkey, ADD PRIMARY KEY (merchant_id, id)",
        )
    })
    .map_err(|error: diesel::result::Error| format!("Can't change the key of acquirer_operations: {error}"))?;
    say("the key of acquirer_operations begins with the merchant");
    Ok(())
}

#[derive(QueryableByName)]
struct Named {
    #[diesel(sql_type = SqlText)]
    name: String,
}

/// SQL: the tables `c` whose rows belong to merchants.
const OF_MERCHANTS_SQL: &str = "FROM pg_class c \
     JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary \
     JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0] AND a.attname = 'merchant_id' \
     WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace";

/// SQL: distributes a table.
fn spread_sql(table: &str) -> String {
    let beside = if table == ANCHOR { "default" } else { ANCHOR };
    format!("create_distributed_table('{table}', 'merchant_id', colocate_with := '{beside}')")
}

/// Distributes one table after the other, what is referred to first.
fn spread_tables(conn: &mut PgConnection, say: &mut dyn FnMut(&str)) -> Result<(), String> {
    let next = format!(
        "SELECT c.relname::text AS name {OF_MERCHANTS_SQL} \
             AND NOT EXISTS (SELECT FROM pg_dist_partition p WHERE p.logicalrelid = c.oid) \
             AND NOT EXISTS (SELECT FROM pg_constraint f \
                 WHERE f.conrelid = c.oid AND f.contype = 'f' AND f.confrelid <> c.oid \
                     AND NOT EXISTS (SELECT FROM pg_dist_partition p WHERE p.logicalrelid = f.confrelid)) \
         ORDER BY c.relname <> $1, c.relname LIMIT 1"
    );
    loop {
        let found = diesel::sql_query(&next).bind::<SqlText, _>(ANCHOR).get_result::<Named>(conn).optional();
        let Some(Named { name: table }) =
            found.map_err(|error| format!("Can't read the catalog: {error}"))?
        else {
            return Ok(());
        };
        let rows = text(conn, &format!("SELECT count(*)::text FROM \"{table}\""))?;
        let spread = format!("SELECT {}", spread_sql(&table));
        // The rows are inserted on their nodes. That happened before, so no trigger should see it.
        without_triggers(conn, &format!("t.tgtype & {ON_INSERT} <> 0 AND c.relname = '{table}'"), |conn| {
            conn.batch_execute(&spread)
        })
        .map_err(|error| format!("Can't distribute {table}: {error}"))?;
        say(&format!("distributed {table} ({rows} rows)"));
    }
}

/// Bits of `pg_trigger.tgtype`.
const ON_INSERT: i32 = 1 << 2;
const ON_TRUNCATE: i32 = 1 << 5;

/// Does `work` in a transaction in which the triggers that meet a condition, over `t` and the table `c`, aren't there.
fn without_triggers(
    conn: &mut PgConnection,
    condition: &str,
    work: impl FnOnce(&mut PgConnection) -> QueryResult<()>,
) -> QueryResult<()> {
    #[derive(QueryableByName)]
    struct Trigger {
        #[diesel(sql_type = SqlText)]
        name: String,
        #[diesel(sql_type = SqlText)]
        table: String,
        #[diesel(sql_type = SqlText)]
        definition: String,
    }
    conn.transaction(|conn| {
        let triggers: Vec<Trigger> = diesel::sql_query(format!(
            "SELECT t.tgname::text AS name, c.relname::text AS table, pg_get_triggerdef(t.oid) AS definition \
             FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid \
             WHERE NOT t.tgisinternal AND c.relnamespace = current_schema()::regnamespace AND {condition} ORDER BY t.oid"
        ))
        .load(conn)?;
        for Trigger { name, table, .. } in &triggers {
            conn.batch_execute(&format!("DROP TRIGGER {name} ON {table}"))?;
        }
        work(conn)?;
        triggers.iter().try_for_each(|trigger| conn.batch_execute(&trigger.definition))
    })
}

/// Deletes the rows that have been copied to the nodes from the coordinator, where nobody sees them any more.
fn empty_coordinator(conn: &mut PgConnection, say: &mut dyn FnMut(&str)) -> Result<(), String> {
    let left: Vec<Named> = diesel::sql_query(
        "SELECT c.relname::text AS name FROM pg_dist_partition p JOIN pg_class c ON c.oid = p.logicalrelid \
         WHERE p.partmethod = 'h' AND c.relnamespace = current_schema()::regnamespace AND pg_relation_size(c.oid) > 0 \
         ORDER BY c.relname",
    )
    .load(conn)
    .map_err(|error| format!("Can't read the catalog: {error}"))?;
    if left.is_empty() {
        return Ok(());
    }
    // What refers to a table is emptied with it.
    let condition = format!("t.tgtype & {ON_TRUNCATE} <> 0");
    without_triggers(conn, &condition, |conn| {
        left.iter().try_for_each(|Named { name }| {
            conn.batch_execute(&format!("SELECT truncate_local_data_after_distributing_table('{name}')"))
        })
    })
    .map_err(|error| format!("Can't empty the coordinator's tables: {error}"))?;
    say(&format!("deleted the rows of {} tables from the coordinator, which the nodes have now", left.len()));
    Ok(())
}

/// Puts the operators' keys on every node: a key is looked up together with the caller's, on the caller's node.
fn copy_operator_keys(conn: &mut PgConnection, say: &mut dyn FnMut(&str)) -> Result<(), String> {
    if !holds(conn, "EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = 'operator_keys'::regclass)")?
    {
        execute(conn, "SELECT create_reference_table('operator_keys')")?;
        say("copied operator_keys to every node");
    }
    Ok(())
}

#[derive(QueryableByName)]
struct Guarded {
    #[diesel(sql_type = SqlText)]
    name: String,
    /// The columns that the service must not update.
    #[diesel(sql_type = Array<SqlText>)]
    refused: Vec<String>,
    /// The definition of the trigger that is there.
    #[diesel(sql_type = Nullable<SqlText>)]
    present: Option<String>,
}

/// Lets the service update the columns that the migrations grant, and no others, on tables that are distributed. See
/// [Guards](self#guards).
fn guard_columns(conn: &mut PgConnection, say: &mut dyn FnMut(&str)) -> Result<(), String> {
    let tables = diesel::sql_query(
        "SELECT c.relname::text AS name, \
             coalesce(array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE NOT g.is_granted), '{}') AS refused, \
             (SELECT pg_get_triggerdef(t.oid) FROM pg_trigger t \
              WHERE t.tgrelid = c.oid AND t.tgname = c.relname || '_columns') AS present \
         FROM pg_class c \
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
         CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM aclexplode(a.attacl) \
             WHERE grantee = 'oncepay_app'::regrole AND privilege_type = 'UPDATE') AS is_granted) g \
         WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace \
             AND EXISTS (SELECT FROM pg_attribute m WHERE m.attrelid = c.oid AND m.attname = 'merchant_id' AND m.attnotnull) \
         GROUP BY c.oid, c.relname HAVING bool_or(g.is_granted) ORDER BY c.relname",
    )
    .load::<Guarded>(conn)
    .map_err(|error| format!("Can't read the privileges: {error}"))?;
    for Guarded { name, refused, present } in tables {
        let columns = refused.iter().map(|column| format!("\"{column}\"")).collect::<Vec<_>>().join(", ");
        let expected = format!("UPDATE OF {}", refused.join(", "));
        if present.is_some_and(|present| present.replace('"', "").contains(&format!("{expected} ON "))) {
            continue;
        }
        let statements = [
            format!("DROP TRIGGER IF EXISTS {name}_columns ON {name}"),
            format!(
                "CREATE TRIGGER {name}_columns BEFORE UPDATE OF {columns} ON {name} \
                 FOR EACH STATEMENT EXECUTE FUNCTION columns_refuse_update()"
            ),
            format!("GRANT UPDATE ON {name} TO oncepay_app"),
        ];
        // One by one: the nodes take one at a time.
        conn.transaction(|conn| statements.iter().try_for_each(|statement| conn.batch_execute(statement)))
            .map_err(|error: diesel::result::Error| format!("Can't guard the columns of {name}: {error}"))?;
        say(&format!("guarded the columns of {name}"));
    }
    Ok(())
}

/// Which functions are put on the nodes. Those whose body is a text in SQL are about all merchants, and stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    All,
    /// Those that aren't called for a merchant.
    OfNobody,
}

#[derive(QueryableByName)]
struct Function {
    #[diesel(sql_type = SqlText)]
    signature: String,
    #[diesel(sql_type = Bool)]
    is_of_shard: bool,
}

/// Puts functions on all nodes, and has those that write for one merchant called on the merchant's. All functions, or, before there
/// are tables of merchants, those others.
fn send_functions(conn: &mut PgConnection, which: Which, say: &mut dyn FnMut(&str)) -> Result<(), String> {
    let condition = if which == Which::OfNobody { "NOT" } else { "true OR" };
    let functions = diesel::sql_query(format!(
        "SELECT p.oid::regprocedure::text AS signature, p.proname LIKE '%\\_on\\_shard' AS is_of_shard \
         FROM pg_proc p \
         LEFT JOIN pg_catalog.pg_dist_object d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.objsubid = 0 \
         WHERE p.pronamespace = current_schema()::regnamespace AND p.prokind = 'f' \
             AND (p.prosqlbody IS NOT NULL OR p.prolang = (SELECT oid FROM pg_language WHERE lanname = 'plpgsql')) \
             AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_proc'::regclass AND e.objid = p.oid AND e.deptype = 'e') \
             AND (d.objid IS NULL OR p.proname LIKE '%\\_on\\_shard' AND d.distribution_argument_index IS NULL) \
             AND ({condition} p.proname LIKE '%\\_on\\_shard') \
         ORDER BY is_of_shard, p.oid",
    ))
    .load::<Function>(conn)
    .map_err(|error| format!("Can't read the functions: {error}"))?;
    let count = functions.len();
    for Function { signature, is_of_shard } in functions {
        let call = if is_of_shard {
            format!(
                "SELECT create_distributed_function('{signature}', 'p_merchant_id', colocate_with := '{ANCHOR}', \
                     force_delegation := true)"
            )
        } else {
            format!("SELECT create_distributed_function('{signature}')")
        };
        execute(conn, &call)?;
    }
    if count > 0 {
        say(&format!("put {count} functions on the nodes"));
    }
    Ok(())
}

fn execute(conn: &mut PgConnection, sql: &str) -> Result<(), String> {
    conn.batch_execute(sql).map_err(|error| format!("Can't distribute the database: {error} ({sql})"))
}

fn holds(conn: &mut PgConnection, condition: &str) -> Result<bool, String> {
    sql::holds(conn, condition).map_err(|error| format!("Can't read the catalog: {error}"))
}

fn text(conn: &mut PgConnection, query: &str) -> Result<String, String> {
    diesel::select(diesel::dsl::sql::<SqlText>(&format!("({query})")))
        .get_result(conn)
        .map_err(|error| format!("Can't read the catalog: {error}"))
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn the_version_of_the_functions_changes_with_them() {
        let digest = hex::encode(&Sha256::digest(FUNCTIONS)[..4]);
        assert_eq!(
            (FUNCTIONS_VERSION, digest.as_str()),
            (2, "c249e896"),
            "raise FUNCTIONS_VERSION, and tell its digest here"
        );
    }
}
