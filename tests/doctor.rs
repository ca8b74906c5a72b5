//! `oncepay doctor`: a healthy environment passes, and each fault is named in its line.

use std::net::TcpListener;
use std::process::Command;

use oncepay::dev::database::url_in_schema;
use serde_json::{Value, json};

use crate::support::acquirer::{Acquirer, WEBHOOK_SECRET};
use crate::support::database::exposed;
use crate::support::*;

/// An environment in which an instance could start.
struct Scene {
    acquirer: Acquirer,
    port: u16,
    database: TestDatabase,
}

impl Scene {
    fn new() -> Self {
        let database = TestDatabase::new();
        drop(App::start(&database));
        Self { acquirer: Acquirer::start(&database), port: free_port(), database }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oncepay"));
        command
            .arg("doctor")
            .env("DATABASE_URL", exposed(&self.database.app_url))
            .env("ONCEPAY_MASTER_KEY", "m".repeat(32))
            .env("ONCEPAY_WEBHOOK_SECRET", WEBHOOK_SECRET)
            .env("ONCEPAY_LISTEN", format!("127.0.0.1:{}", self.port))
            .envs(self.acquirer.environment());
        command
    }

    /// What the doctor says with these variables: its exit status, and its lines.
    fn examine(&self, variables: &[(&str, &str)]) -> (i32, Vec<String>) {
        let output = self.command().envs(variables.iter().copied()).output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap(), printed.lines().map(str::to_owned).collect())
    }

    /// Examines with these variables. The line of `check`, and no other, must have the state and say that.
    #[track_caller]
    fn expect(&self, variables: &[(&str, &str)], state: &str, check: &str, says: &str) {
        let (status, lines) = self.examine(variables);
        let line = lines.iter().find(|line| line[9..].starts_with(check)).unwrap();
        assert!(line.starts_with(state) && line.contains(says), "{lines:#?}");
        let others = lines.iter().filter(|other| *other != line && !is_of_tests(other));
        let others: Vec<_> = others.filter(|other| other.starts_with(state)).collect();
        assert!(state == "ok " || others.is_empty(), "{others:#?}");
        assert_eq!(status, i32::from(state == "FAILURE"), "{lines:#?}");
    }
}

/// The tests' servers don't keep what they acknowledge.
fn is_of_tests(line: &str) -> bool {
    line.starts_with("warning  server  ") && line.contains("fsync")
}

#[test]
fn a_healthy_environment_passes_and_nothing_is_changed() {
    let scene = Scene::new();
    let rows = || {
        let tables = ["master_keys", "idempotency_policies", "acquirer_reads", "acquirer_operations"];
        tables.map(|table| scene.database.rows(table))
    };
    let before = rows();
    let (status, lines) = scene.examine(&[]);
    assert_eq!((status, lines.len()), (0, 12), "{lines:#?}");
    for line in lines.iter().filter(|line| !is_of_tests(line)) {
        assert!(line.starts_with("ok       "), "{lines:#?}");
    }
    assert_eq!(rows(), before);
    let calls = scene.acquirer.operations();
    assert!(calls.is_empty(), "{calls:?}");

    let output = scene.command().arg("--json").output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<_> = report["checks"].as_array().unwrap().iter().map(|check| &check["check"]).collect();
    let chapter = include_str!("../docs/command-line.md");
    let (_, table) = chapter.split_once("| check | a failure | a warning |\n|---|---|---|\n").unwrap();
    let table = table.lines().take_while(|line| !line.is_empty());
    let told: Vec<_> = table.map(|line| json!(line.split('`').nth(1).unwrap())).collect();
    assert_eq!(names, told.iter().collect::<Vec<_>>());
    let states: Vec<_> = report["checks"].as_array().unwrap().iter().map(|check| &check["state"]).collect();
    let is_warned = states.contains(&&json!("warning"));
    assert_eq!(report["worst"], if is_warned { "warning" } else { "ok" });
}

#[test]
fn each_fault_of_the_settings_is_named_in_its_line() {
    let scene = Scene::new();
    let lease = [("ONCEPAY_LEASE_MS", "100")];
    scene.expect(&lease, "FAILURE", "settings", "The lease (100 ms) must be at least");
    if !cfg!(feature = "otlp") {
        let collector = [("ONCEPAY_OTLP_ENDPOINT", "http://127.0.0.1:4318")];
        scene.expect(&collector, "FAILURE", "settings", "This build sends no spans");
    }
    let other_key = "n".repeat(32);
    let other_key = [("ONCEPAY_MASTER_KEY", other_key.as_str())];
    scene.expect(
        &other_key,
        "FAILURE",
        "master key",
        "isn't the master key that this database has been used with",
    );
    assert_eq!(scene.database.rows("master_keys"), 1);
    scene.expect(
        &[("ONCEPAY_WEBHOOK_SECRET", "")],
        "warning",
        "processor events",
        "Set ONCEPAY_WEBHOOK_SECRET",
    );
    let nowhere = format!("http://127.0.0.1:{}", free_port());
    let nowhere = [("ONCEPAY_PROCESSOR_URL", nowhere.as_str())];
    scene.expect(&nowhere, "FAILURE", "processor ", "can't be reached");
    let stranger = [("ONCEPAY_PROCESSOR_API_KEY", "another")];
    scene.expect(&stranger, "FAILURE", "processor ", "rejects our requests");
    let pool = [("ONCEPAY_POOL_SIZE", "1000")];
    scene.expect(&pool, "warning", "connections", "Lower ONCEPAY_POOL_SIZE");

    let taken = TcpListener::bind(("127.0.0.1", scene.port)).unwrap();
    scene.expect(&[], "FAILURE", "address", "Another program has");
    let other = taken.local_addr().unwrap().to_string();
    scene.expect(
        &[("ONCEPAY_LISTEN", "127.0.0.1:0"), ("ONCEPAY_ADMIN_LISTEN", &other)],
        "FAILURE",
        "address",
        "with ONCEPAY_ADMIN_LISTEN",
    );
    drop(taken);
    let app = App::start(&scene.database);
    let address = app.client.base().strip_prefix("http://").unwrap();
    scene.expect(&[("ONCEPAY_LISTEN", address)], "ok ", "address", "A service that is well has");
}

#[test]
fn each_fault_of_the_database_is_named_in_its_line() {
    let scene = Scene::new();
    let nowhere = format!("postgres://oncepay_app@127.0.0.1:{}/oncepay", free_port());
    let nowhere = [("DATABASE_URL", nowhere.as_str())];
    scene.expect(&nowhere, "FAILURE", "database", "Connection refused");
    let (_, lines) = scene.examine(&nowhere);
    assert_eq!(lines.iter().filter(|line| line.starts_with("skipped ")).count(), 7, "{lines:#?}");
    let wrong_password = exposed(&scene.database.app_url).replace(":oncepay-test@", ":wrong@");
    let wrong_password = [("DATABASE_URL", wrong_password.as_str())];
    scene.expect(&wrong_password, "FAILURE", "database", "Check the role and the password");
    let owner = [("DATABASE_URL", exposed(&scene.database.owner_url))];
    scene.expect(&owner, "FAILURE", "role", "oncepay_owner, which owns the tables");

    let endpoint = "INSERT INTO webhook_endpoints (merchant_id, id, url, event_types, created_at, failing_since, paused_until) \
         SELECT '{}', gen_random_uuid(), 'https://receiver.example/', '{*}', now(), now(), now() + interval '1 hour'";
    let merchant = scene.database.merchant();
    scene.database.unguarded(&endpoint.replacen("{}", &merchant.id.0.to_string(), 1));
    scene.expect(&[], "warning", "webhook endpoints", "1 fail and 1 have asked for a pause: we_");

    // A clock that is found before the server's.
    let mut owner = scene.database.as_superuser();
    execute(
        &mut owner,
        "CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql \
         AS $$ SELECT pg_catalog.clock_timestamp() - interval '5 minutes' $$",
    );
    let url = url_in_schema(&scene.database.app_url, "public,pg_catalog").unwrap();
    let late = [("DATABASE_URL", exposed(&url))];
    let (status, lines) = scene.examine(&late);
    let clock = lines.iter().find(|line| line[9..].starts_with("clock")).unwrap();
    assert!(
        status == 0 && clock.starts_with("warning") && clock.contains("s ahead of the database's"),
        "{lines:#?}"
    );
    execute(&mut owner, "DROP FUNCTION public.clock_timestamp()");

    let read_only = |value: &str| {
        let conn = &mut scene.database.as_superuser();
        execute(conn, "SET default_transaction_read_only = off");
        let name = scene.database.name();
        execute(conn, &format!("ALTER DATABASE {name} SET default_transaction_read_only = {value}"));
    };
    read_only("on");
    scene.expect(&[], "FAILURE", "server", "The database is read-only");
    read_only("off");

    execute(&mut owner, "REVOKE INSERT ON charges FROM oncepay_app");
    scene.expect(&[], "FAILURE", "role", "lacks privileges");
    execute(&mut owner, "GRANT INSERT ON charges TO oncepay_app");
    execute(&mut owner, "REVOKE SELECT ON master_keys FROM oncepay_app");
    scene.expect(&[], "FAILURE", "role", "lacks privileges");
    let (_, lines) = scene.examine(&[]);
    let states: Vec<_> = lines.iter().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(states[3..9], ["ok", "FAILURE", "ok", "ok", "skipped", "skipped"], "{lines:#?}");
    execute(&mut owner, "GRANT SELECT ON master_keys TO oncepay_app");
    let last = "SELECT max(version) FROM __diesel_schema_migrations";
    execute(&mut owner, &format!("DELETE FROM __diesel_schema_migrations WHERE version = ({last})"));
    scene.expect(&[], "FAILURE", "migrations", "is missing. Run oncepay migrate");
}
