//! The schema: what holds for all tables, and that migrations go both ways.

use std::process::Command;

use chrono::DateTime;
use diesel::{QueryableByName, RunQueryDsl};
use diesel_migrations::MigrationHarness;
use oncepay::storage::migrations::MIGRATIONS;
use uuid::Uuid;

use crate::support::database::exposed;
use crate::support::*;

#[derive(QueryableByName)]
struct Name {
    #[diesel(sql_type = diesel::sql_types::Text)]
    name: String,
}

fn names(database: &TestDatabase, query: &str) -> Vec<String> {
    let rows = diesel::sql_query(query).load::<Name>(&mut database.as_superuser()).unwrap();
    rows.into_iter().map(|row| row.name).collect()
}

/// Tables that belong to no merchant: small, and the same on every node of a distributed database.
const GLOBAL: &str = "'operator_keys', 'idempotency_policies', 'idempotency_policy_changes', 'acquirer_operations', 'acquirer_reads', 'acquirer_events', 'audit_runs', 'event_feed', 'event_retention', 'operator_actions', 'master_keys', 'idempotency_retry_delays', '__diesel_schema_migrations'";

#[test]
fn every_key_of_a_merchants_table_starts_with_merchant_id() {
    let database = TestDatabase::new();
    let offending = format!(
        "SELECT conrelid::regclass || '.' || conname AS name FROM pg_constraint c \
         JOIN pg_class t ON t.oid = conrelid AND t.relnamespace = 'public'::regnamespace \
         JOIN pg_attribute a ON a.attrelid = conrelid AND a.attnum = c.conkey[1] \
         WHERE contype IN ('p', 'u', 'f') AND t.relname NOT IN ({GLOBAL}) AND a.attname <> 'merchant_id'"
    );
    assert_eq!(names(&database, &offending), Vec::<String>::new());
    let without = format!(
        "SELECT relname AS name FROM pg_class t WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace \
         AND relname NOT IN ({GLOBAL}) AND NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = t.oid AND contype = 'p')"
    );
    assert_eq!(names(&database, &without), Vec::<String>::new(), "tables without a primary key");
    let unique_indexes = format!(
        "SELECT i.indexrelid::regclass::text AS name FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid \
         JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = i.indkey[0] \
         WHERE i.indisunique AND t.relnamespace = 'public'::regnamespace \
         AND t.relname NOT IN ({GLOBAL}) AND a.attname <> 'merchant_id'"
    );
    assert_eq!(names(&database, &unique_indexes), Vec::<String>::new());
}

#[test]
fn every_table_says_what_it_is_for() {
    let database = TestDatabase::new();
    let silent = "SELECT relname AS name FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace \
                  AND relname <> '__diesel_schema_migrations' AND obj_description(oid, 'pg_class') IS NULL";
    assert_eq!(names(&database, silent), Vec::<String>::new());
}

/// The first half holds all but chance, so that ids which the database makes are in one order with those that we make.
#[test]
fn the_database_makes_the_same_identifiers_of_a_time_as_we_do() {
    let database = TestDatabase::new();
    let times = [0, 1, 999, 1_000, 999_999, 1_800_000_000_123_456].map(DateTime::from_timestamp_micros);
    for time in times.map(Option::unwrap) {
        let theirs = names(&database, &format!("SELECT uuid_v7('{}')::text AS name", time.to_rfc3339()));
        let theirs: Uuid = theirs[0].parse().unwrap();
        assert_eq!(theirs.as_bytes()[..8], oncepay::base::ids::v7(time).as_bytes()[..8], "{time}");
        assert_eq!(theirs.get_variant(), uuid::Variant::RFC4122);
    }
    let many = "SELECT count(DISTINCT uuid_v7(now()))::text AS name FROM generate_series(1, 1000)";
    assert_eq!(names(&database, many), ["1000"], "the other half is chance");
}

#[test]
fn the_services_role_owns_nothing_and_is_nobody_special() {
    let database = TestDatabase::new();
    let owned = "SELECT relname AS name FROM pg_class WHERE relowner = 'oncepay_app'::regrole \
                 UNION ALL SELECT proname FROM pg_proc WHERE proowner = 'oncepay_app'::regrole \
                 UNION ALL SELECT datname FROM pg_database WHERE datdba = 'oncepay_app'::regrole";
    assert_eq!(names(&database, owned), Vec::<String>::new());
    let special = "SELECT rolname AS name FROM pg_roles WHERE rolname = 'oncepay_app' \
                   AND (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)";
    assert_eq!(names(&database, special), Vec::<String>::new());
}

#[test]
fn migrations_go_up_down_and_up_again_to_the_same_schema() {
    let database = TestDatabase::new();
    let mut owner = database.as_owner();
    let Some(before) = dump(&database) else {
        eprintln!("skipped: there is no pg_dump that fits the server");
        return;
    };
    let count = MigrationHarness::<diesel::pg::Pg>::applied_migrations(&mut owner).unwrap().len();
    owner.revert_all_migrations(MIGRATIONS).unwrap();
    let left = "SELECT relname AS name FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'S', 'v') \
                AND relname <> '__diesel_schema_migrations' \
                UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace";
    assert_eq!(names(&database, left), Vec::<String>::new(), "left after going down");
    assert_eq!(owner.run_pending_migrations(MIGRATIONS).unwrap().len(), count);
    assert_eq!(dump(&database).unwrap(), before);
}

/// The schema as pg_dump writes it, or `None` if there's no pg_dump for this server.
fn dump(database: &TestDatabase) -> Option<String> {
    let program =
        database::binaries().map_or_else(|_| "pg_dump".into(), |binaries| binaries.dir().join("pg_dump"));
    let output = Command::new(program)
        .args(["--schema-only", "--dbname", exposed(&database.superuser_url)])
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).unwrap();
    // Newer versions add a random token against injection.
    let lines =
        text.lines().filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"));
    Some(lines.collect::<Vec<_>>().join("\n"))
}

#[test]
fn each_migration_has_a_number_of_its_own() {
    // Diesel takes the digits before the name for the version, and runs one of two that share it.
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let names =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let numbers = names.filter_map(|name| Some(name.split_once('_')?.0.rsplit_once('-')?.1.to_owned()));
    let mut numbers: Vec<_> = numbers.collect();
    let all = numbers.len();
    assert!(all > 20);
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), all);
}
