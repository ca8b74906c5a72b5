//! Migrating while the service runs: beside readers, beside others who migrate, and after an interruption.

use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use diesel::RunQueryDsl;
use diesel_migrations::{FileBasedMigrations, MigrationHarness};
use oncepay::base::progress::untold;
use oncepay::storage::migrations::{MIGRATIONS, Patience, migrate_from};

use crate::support::database::exposed;
use crate::support::*;

/// A folder with one migration, beside those of the service.
struct Migration(PathBuf);

impl Migration {
    fn new(name: &str, up: &str, is_transaction: bool) -> Self {
        let folder = std::env::temp_dir().join(format!("oncepay-migrations-{}", fresh_key()));
        let migration = folder.join(format!("2999-01-01-000001_{name}"));
        std::fs::create_dir_all(&migration).unwrap();
        std::fs::write(migration.join("up.sql"), up).unwrap();
        std::fs::write(migration.join("down.sql"), "SELECT 1;").unwrap();
        let metadata = format!("run_in_transaction = {is_transaction}\n");
        std::fs::write(migration.join("metadata.toml"), metadata).unwrap();
        Self(folder)
    }

    fn run(&self, database: &TestDatabase, patience_s: u64) -> Result<Vec<String>, String> {
        let source = FileBasedMigrations::from_path(&self.0).unwrap();
        let patience = Patience { total: Duration::from_secs(patience_s) };
        migrate_from(&mut database.as_owner(), source, patience, &mut untold)
    }
}

impl Drop for Migration {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn of_twenty_who_migrate_at_a_time_one_does() {
    if cluster::differs("what was distributed is not taken back") {
        return;
    }
    let database = TestDatabase::new();
    let mut owner = database.as_owner();
    let count = MigrationHarness::<diesel::pg::Pg>::applied_migrations(&mut owner).unwrap().len();
    owner.revert_all_migrations(MIGRATIONS).unwrap();
    let said: Vec<String> = thread::scope(|scope| {
        let migrate = || {
            let output = Command::new(env!("CARGO_BIN_EXE_oncepay"))
                .arg("migrate")
                .env("ONCEPAY_OWNER_DATABASE_URL", exposed(&database.owner_url))
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let all: Vec<_> = (0..20).map(|_| scope.spawn(migrate)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let done = |migrations: usize| {
        let expected = format!("{migrations} migrations run.\n");
        said.iter().filter(|said| **said == expected).count()
    };
    assert_eq!((done(count), done(0)), (1, 19), "{said:?}");
}

#[test]
fn a_migration_waits_for_readers_and_holds_up_nobody() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let migration = Migration::new("note", "ALTER TABLE webhook_endpoints ADD COLUMN note text;", true);
    let mut reader = database.as_owner();
    execute(&mut reader, "BEGIN");
    execute(&mut reader, "SELECT count(*) FROM webhook_endpoints");

    let gave_up = migration.run(&database, 1).expect_err("the reader stays");
    let pid = database.count(
        "SELECT pid FROM pg_locks WHERE relation = 'webhook_endpoints'::regclass AND pid <> pg_backend_pid() LIMIT 1",
    );
    for part in
        [format!("pid {pid} "), "webhook_endpoints".to_owned(), " since ".to_owned(), "count(*)".to_owned()]
    {
        assert!(gave_up.contains(&part), "{part} in {gave_up}");
    }

    thread::scope(|scope| {
        let migrating = scope.spawn(|| migration.run(&database, 60));
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            assert_eq!(database.lock_waits(), 0, "nobody queues behind the migration");
            client.charge(&fresh_key(), &visa()).expect(201);
        }
        assert!(!migrating.is_finished(), "it waits");
        execute(&mut reader, "COMMIT");
        migrating.join().unwrap().unwrap();
    });
    assert_eq!(database.rows("webhook_endpoints WHERE note IS NOT NULL"), 0);
}

#[test]
fn a_migration_that_meets_a_lock_after_all_gives_way_and_comes_again() {
    let database = TestDatabase::new();
    // Takes the lock that others wait for in the middle, when it's known that nobody had one at the beginning.
    let up = "SET LOCAL lock_timeout = '30s'; DO 'BEGIN PERFORM pg_advisory_xact_lock(4711); END'; \
              SET LOCAL lock_timeout = '500ms'; ALTER TABLE webhook_endpoints ADD COLUMN note text;";
    let migration = Migration::new("note", up, true);
    let mut gate = database.as_owner();
    execute(&mut gate, "SET lock_timeout = 0");
    execute(&mut gate, "SELECT pg_advisory_lock(4711)");
    thread::scope(|scope| {
        let migrating = scope.spawn(|| migration.run(&database, 60));
        eventually("the migration", || database.lock_waits() > 0);
        let mut reader = database.as_superuser();
        execute(&mut reader, "BEGIN");
        execute(&mut reader, "SELECT count(*) FROM webhook_endpoints");
        execute(&mut gate, "SELECT pg_advisory_unlock(4711)");
        thread::sleep(Duration::from_secs(2));
        assert!(!migrating.is_finished(), "it waits again");
        assert_eq!(database.lock_waits(), 0, "and not in the way of others");
        execute(&mut reader, "COMMIT");
        migrating.join().unwrap().unwrap();
    });
}

#[test]
fn an_index_whose_build_was_interrupted_is_built_anew() {
    let database = TestDatabase::new();
    let up = "CREATE INDEX CONCURRENTLY charges_by_fee ON charges (merchant_id, fee);";
    let migration = Migration::new("charges_by_fee", up, false);
    execute(&mut database.as_owner(), "CREATE INDEX charges_by_fee ON charges (merchant_id, fee)");
    execute(
        &mut database.as_superuser(),
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'charges_by_fee'::regclass",
    );
    assert_eq!(migration.run(&database, 60).unwrap().len(), 1);
    let valid = "SELECT count(*) FROM pg_index WHERE indexrelid = 'charges_by_fee'::regclass AND indisvalid";
    assert_eq!(database.count(valid), 1);
    assert_eq!(migration.run(&database, 60).unwrap().len(), 0);
}

#[test]
fn a_later_migration_may_add_a_table_of_merchants_with_rows() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let charge = client.charge("first", &visa()).expect(201);
    let up = "-- Notes about charges.
SET LOCAL lock_timeout = '500ms';
CREATE TABLE charge_notes (
    merchant_id uuid NOT NULL,
    charge_id uuid NOT NULL,
    text text NOT NULL,
    read_at timestamptz,
    PRIMARY KEY (merchant_id, charge_id),
    CONSTRAINT charge_notes_charge FOREIGN KEY (merchant_id, charge_id) REFERENCES charges (merchant_id, id)
);
COMMENT ON TABLE charge_notes IS 'Notes about charges.';
GRANT SELECT, INSERT ON charge_notes TO oncepay_app;
GRANT UPDATE (read_at) ON charge_notes TO oncepay_app;
CREATE TABLE note_kinds (name text PRIMARY KEY);
INSERT INTO note_kinds VALUES ('plain');
INSERT INTO charge_notes (merchant_id, charge_id, text) SELECT merchant_id, id, 'from the migration' FROM charges;
ALTER TABLE charges ADD COLUMN is_noted boolean;
";
    assert_eq!(Migration::new("charge_notes", up, true).run(&database, 60).unwrap().len(), 1);
    assert_eq!((database.rows("charge_notes"), database.rows("note_kinds")), (1, 1));

    let mut service = database.as_app();
    let mut tried =
        |change: &str| diesel::sql_query(change).execute(&mut service).map_err(|error| error.to_string());
    let of_one = "WHERE merchant_id = (SELECT merchant_id FROM merchants LIMIT 1)";
    assert_eq!(tried(&format!("UPDATE charge_notes SET read_at = now() {of_one}")), Ok(1));
    let refused = tried(&format!("UPDATE charge_notes SET text = 'other' {of_one}")).unwrap_err();
    assert!(refused.contains("permission denied"), "{refused}");
    let orphan =
        tried("INSERT INTO charge_notes SELECT merchant_id, merchant_id, 'of no charge' FROM merchants")
            .unwrap_err();
    assert!(orphan.contains("charge_notes_charge"), "{orphan}");

    assert!(client.charge("first", &visa()).expect(201).body == charge.body);
    client.charge("second", &visa()).expect(201);
}
