//! What the commands do for containers: secrets from files.

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

/// Runs the command, which must fail. Returns what it complained about.
fn complaint(command: &mut Command) -> String {
    let Output { status, stderr, .. } = command.output().unwrap();
    assert_eq!(status.code(), Some(1));
    String::from_utf8(stderr).unwrap()
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
    let complained = complaint(oncepay(&["audit"]).env("DATABASE_URL_FILE", &missing));
    assert!(complained.contains(missing.to_str().unwrap()), "{complained}");
    let complained = complaint(
        oncepay(&["serve"])
            .env("DATABASE_URL_FILE", &url)
            .env("ONCEPAY_MASTER_KEY_FILE", file("master_key", "short"))
            .env("ONCEPAY_LISTEN", "127.0.0.1:0"),
    );
    assert!(complained.contains("The master key must have at least 32 characters."), "{complained}");
}
