//! Checks that the tables declared to Diesel are those that the migrations make.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use diesel::connection::SimpleConnection;
use diesel::sql_types::{Array, Bool, Text};
use diesel::{PgConnection, QueryableByName, RunQueryDsl};

use crate::support::*;

/// Tables and columns that aren't declared to Diesel, with the reason. All others are.
const UNTOLD: &[(&str, &str)] = &[
    ("acquirer_operations", "a copy of the processor's list, which SQL compares with our books"),
    ("acquirer_reads", "one row, beside that copy"),
    ("audit_runs", "one row, with which an audit is recorded and its metrics are read"),
    ("event_feed", "one row, which the function of the feed's horizon writes"),
    ("event_retention", "one row, which the pruning function writes"),
    ("events.epoch", "of the feed, which SQL reads"),
    ("events.traceparent", "statements that record and deliver events"),
    ("events.tracestate", "as the span"),
    ("events.transaction_id", "as the epoch"),
    ("forgotten_idempotency_keys", "triggers write it, and the claim reads it"),
    ("idempotency_retry_delays", "counts that instances add up, and one command reads"),
    ("idempotency_keys", "statements that claim and answer many keys at once"),
    ("journal_corrections", "a function of the ledger writes them, and one statement reads them"),
    ("ledger_checkpoints", "sums that the roll-up and the balance make in SQL"),
    ("ledger_holds", "functions of the ledger write them, and read them with the balance"),
    ("operator_actions", "one statement writes them"),
    ("master_keys", "two statements, at the start of an instance"),
    ("postings", "functions of the ledger write them, and every reader sums or joins them"),
    ("webhook_deliveries.attempt_count", "the fence between senders, in the statements that claim and note"),
    ("webhook_deliveries.claimed_until", "as the fence"),
];

/// A table: its columns by name with their types, and its primary key.
#[derive(Debug, PartialEq, Eq)]
struct Table {
    columns: BTreeMap<String, String>,
    key: Vec<String>,
}

#[test]
fn diesel_knows_the_tables_as_they_are() {
    let database = TestDatabase::new();
    let told = told(&source("src/storage/schema.rs"));
    compare(&told, &real(&mut database.as_owner(), "public"), UNTOLD);
}

#[test]
fn diesel_knows_the_simulators_tables_as_they_are() {
    let database = TestDatabase::new();
    let mut owner = database.as_owner();
    owner.batch_execute("CREATE SCHEMA simulator; SET search_path = simulator").unwrap();
    let schema = source("src/simulator/schema.rs");
    let mut migrations: Vec<_> = fs::read_dir(schema.with_file_name("migrations"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    migrations.sort();
    for migration in migrations {
        owner.batch_execute(&fs::read_to_string(migration.join("up.sql")).unwrap()).unwrap();
    }
    compare(&told(&schema), &real(&mut owner, "simulator"), &[]);
}

fn compare(told: &BTreeMap<String, Table>, real: &BTreeMap<String, Table>, untold: &[(&str, &str)]) {
    let mut faults = Vec::new();
    for (name, table) in told {
        let Some(real) = real.get(name) else {
            faults.push(format!("{name}: Diesel is told of it, and it isn't in the database"));
            continue;
        };
        for (column, kind) in &table.columns {
            match real.columns.get(column) {
                None => faults
                    .push(format!("{name}.{column}: Diesel is told of it, and it isn't in the database")),
                Some(real) if real != kind => {
                    faults.push(format!("{name}.{column}: {kind} for Diesel, {real} in the database"));
                }
                Some(_) => {}
            }
        }
        if table.key != real.key {
            faults.push(format!(
                "{name}: its key is {:?} for Diesel, {:?} in the database",
                table.key, real.key
            ));
        }
    }
    let mut missing = Vec::new();
    for (name, table) in real {
        match told.get(name) {
            None => missing.push(name.clone()),
            Some(told) => {
                let columns = table.columns.keys().filter(|column| !told.columns.contains_key(*column));
                missing.extend(columns.map(|column| format!("{name}.{column}")));
            }
        }
    }
    let excused = |what: &String| untold.iter().any(|(excused, _)| excused == what);
    faults.extend(missing.iter().filter(|what| !excused(what)).map(|what| {
        format!(
            "{what}: it's in the database, and Diesel isn't told of it; if that's meant, say so in UNTOLD"
        )
    }));
    faults.extend(untold.iter().filter(|(excused, _)| !missing.iter().any(|what| what == excused)).map(
        |(excused, _)| format!("{excused}: nothing is missing, so it's no exception; take it out of UNTOLD"),
    ));
    assert!(
        faults.is_empty(),
        "the schema that Diesel is told of isn't the database's:\n{}",
        faults.join("\n")
    );
}

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Reads the `table!` macros of a file.
fn told(file: &Path) -> BTreeMap<String, Table> {
    let text = fs::read_to_string(file).unwrap();
    let code: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap().trim()).collect();
    let mut tables = BTreeMap::new();
    let mut lines = code.iter().filter(|line| !line.is_empty());
    while let Some(line) = lines.next() {
        if !line.ends_with("table! {") {
            continue;
        }
        // name (key, …) {
        let (name, key) =
            lines.next().and_then(|head| head.strip_suffix(") {")?.split_once(" (")).expect("its head");
        let key = key.split(", ").map(str::to_owned).collect();
        let (mut columns, mut sql_name) = (BTreeMap::new(), None);
        for line in lines.by_ref().take_while(|line| **line != "}") {
            if let Some(attribute) = line.strip_prefix("#[sql_name = \"") {
                sql_name = Some(attribute.strip_suffix("\"]").expect("its end"));
                continue;
            }
            let (column, kind) = line.strip_suffix(',').and_then(|line| line.split_once(" -> ")).expect(line);
            columns.insert(sql_name.take().unwrap_or(column).to_owned(), kind.to_owned());
        }
        tables.insert(name.to_owned(), Table { columns, key });
    }
    assert!(!tables.is_empty(), "no tables in {}", file.display());
    tables
}

/// Reads the tables of a schema, with their types in Diesel's terms.
fn real(conn: &mut PgConnection, schema: &str) -> BTreeMap<String, Table> {
    #[derive(QueryableByName)]
    struct Column {
        #[diesel(sql_type = Text)]
        of: String,
        #[diesel(sql_type = Text)]
        name: String,
        #[diesel(sql_type = Text)]
        kind: String,
        #[diesel(sql_type = Bool)]
        is_required: bool,
        #[diesel(sql_type = Array<Text>)]
        key: Vec<String>,
    }
    let columns = diesel::sql_query(
        "SELECT t.relname::text AS of, a.attname::text AS name, format_type(a.atttypid, NULL) AS kind, \
                a.attnotnull AS is_required, \
                ARRAY(SELECT k.attname::text FROM pg_constraint c, unnest(c.conkey) WITH ORDINALITY AS n (attnum, nth) \
                      JOIN pg_attribute k ON k.attnum = n.attnum AND k.attrelid = t.oid \
                      WHERE c.conrelid = t.oid AND c.contype = 'p' ORDER BY n.nth) AS key \
         FROM pg_class t JOIN pg_attribute a ON a.attrelid = t.oid \
         WHERE t.relnamespace = $1::regnamespace AND t.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped \
               AND t.relname <> '__diesel_schema_migrations'",
    )
    .bind::<Text, _>(schema)
    .load::<Column>(conn)
    .unwrap();
    let mut tables = BTreeMap::new();
    for Column { of, name, kind, is_required, key } in columns {
        let kind = in_diesels_words(&kind);
        let kind = if is_required { kind } else { format!("Nullable<{kind}>") };
        tables.entry(of).or_insert(Table { columns: BTreeMap::new(), key }).columns.insert(name, kind);
    }
    tables
}

fn in_diesels_words(kind: &str) -> String {
    if let Some(element) = kind.strip_suffix("[]") {
        return format!("Array<{}>", in_diesels_words(element));
    }
    match kind {
        "bigint" => "BigInt",
        "boolean" => "Bool",
        "bytea" => "Bytea",
        "integer" => "Integer",
        "jsonb" => "Jsonb",
        "numeric" => "Numeric",
        "smallint" => "SmallInt",
        "text" => "Text",
        "timestamp with time zone" => "Timestamptz",
        "uuid" => "Uuid",
        // A type that isn't listed here has to be added first.
        other => other,
    }
    .to_owned()
}
