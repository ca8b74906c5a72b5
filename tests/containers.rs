//! What the commands do for containers: seeding, health checks, secrets from files.

use std::fs;
use std::process::{Command, Output};

use crate::support::database::exposed;
use crate::support::*;

fn oncepay(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oncepay"));
    command.args(arguments);
    for variable in ["DATABASE_URL", "ONCEPAY_OWNER_DATABASE_URL", "ONCEPAY_MASTER_KEY", "ONCEPAY_LISTEN"] {
        command.env_remove(variable);
    }
    command
}

/// Runs the command, which must succeed. Returns what it printed.
fn ok(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// Runs the command, which must end with `expected`. Returns what it complained about.
fn complaint(command: &mut Command, expected: i32) -> String {
    let Output { status, stderr, .. } = command.output().unwrap();
    assert_eq!(status.code(), Some(expected));
    String::from_utf8(stderr).unwrap()
}

#[test]
fn seeding_gives_keys_that_work_and_keeps_them() {
    let database = TestDatabase::new();
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("owner_database_url");
    fs::write(&secret, format!("{}\n", exposed(&database.owner_url))).unwrap();
    let data = folder.path().join("data");
    let seed = || {
        let printed = ok(oncepay(&["seed", "--url", "http://proxy:8080", "--data-dir"])
            .arg(&data)
            .env("ONCEPAY_OWNER_DATABASE_URL_FILE", &secret));
        let text = fs::read_to_string(data.join("dev.env")).unwrap();
        let setting = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_else(|| panic!("{name} is missing")).to_owned()
        };
        assert_eq!(setting("ONCEPAY_URL"), "http://proxy:8080");
        let key = setting("ONCEPAY_API_KEY");
        assert!(
            printed
                .contains(&format!("curl -i http://proxy:8080/v1/charges -H 'Authorization: Bearer {key}'"))
        );
        assert!(!text.contains("DATABASE_URL"), "who has the keys needs no more");
        (key, setting("ONCEPAY_OPERATOR_KEY"))
    };
    let app = App::start(&database);
    let keys = seed();
    assert_eq!(seed(), keys);
    assert_eq!(database.rows("merchants"), 1);
    app.client.with_key(&keys.0).charge("k", &visa()).expect(201);
    app.client.with_key(&keys.1).get("/v1/operator/audit").expect(200);

    // Keys that don't work any more are replaced, and the merchant stays.
    database.revoke(&keys.0);
    assert_ne!(seed().0, keys.0);
    assert_eq!(database.rows("merchants"), 1);
}

#[test]
fn health_tells_a_dead_service_from_one_that_can_not_serve() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    // As in a container: the service listens on all addresses, and the command finds it by the same setting.
    let port = app.client.base().rsplit(':').next().unwrap().to_owned();
    let listen = format!("0.0.0.0:{port}");
    let health = |arguments: &[&str]| {
        let mut command = oncepay(&[&["health"], arguments].concat());
        command.env("ONCEPAY_LISTEN", &listen);
        command
    };
    assert_eq!(ok(&mut health(&[])), "");
    assert_eq!(ok(&mut health(&["--ready"])), "");

    let superuser = &mut database.as_superuser();
    let name = database.name();
    execute(superuser, &format!("ALTER DATABASE {name} SET default_transaction_read_only = on"));
    execute(
        superuser,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE datname = current_database() AND pid <> pg_backend_pid()",
    );
    assert_eq!(ok(&mut health(&[])), "", "a restart wouldn't help");
    assert!(complaint(&mut health(&["--ready"]), 1).contains("/readyz answers: HTTP/1.1 503"));
    execute(superuser, &format!("ALTER DATABASE {name} RESET default_transaction_read_only"));

    drop(app);
    assert!(complaint(&mut health(&[]), 1).contains(&format!("No answer from 127.0.0.1:{port}")));
}

#[test]
fn commands_take_their_secrets_from_files() {
    let database = TestDatabase::new();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, secret: &str| {
        let path = folder.path().join(name);
        fs::write(&path, format!("{secret}\n")).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let url = file("database_url", exposed(&database.app_url));
    let report = ok(oncepay(&["audit"]).env("DATABASE_URL_FILE", &url));
    assert!(!report.is_empty());
    let missing = folder.path().join("missing");
    let complained = complaint(oncepay(&["audit"]).env("DATABASE_URL_FILE", &missing), 2);
    assert!(complained.contains(missing.to_str().unwrap()), "{complained}");
    let complained = complaint(
        oncepay(&["serve"])
            .env("DATABASE_URL_FILE", &url)
            .env("ONCEPAY_MASTER_KEY_FILE", file("master_key", "short"))
            .env("ONCEPAY_LISTEN", "127.0.0.1:0"),
        3,
    );
    assert!(complained.contains("The master key must have at least 32 characters."), "{complained}");
}
