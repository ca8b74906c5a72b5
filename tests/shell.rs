//! The commands `keys`, `policies` and `settings`.

use std::process::Command;

use crate::support::database::exposed;
use crate::support::*;

/// Runs `oncepay` with `arguments`: its exit status, what it printed, and what it complained about.
fn oncepay(database: &TestDatabase, arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_oncepay"))
        .args(arguments)
        .env("DATABASE_URL", exposed(&database.app_url))
        .env("USER", "alice")
        .env_remove("SUDO_USER")
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

fn ok(database: &TestDatabase, arguments: &[&str]) -> String {
    let (success, printed, complained) = oncepay(database, arguments);
    assert!(success, "{arguments:?}: {complained}");
    printed
}

fn fails(database: &TestDatabase, arguments: &[&str]) -> String {
    let (success, _, complained) = oncepay(database, arguments);
    assert!(!success, "{arguments:?}");
    complained
}

#[test]
fn policies_are_listed_set_and_remembered() {
    let database = TestDatabase::new();
    // No service has run yet: the rows are made here.
    let list = ok(&database, &["policies", "list"]);
    assert_eq!(list.lines().count(), oncepay::server::operations().len());
    assert!(list.contains("charges.create") && list.contains("ttl_seconds=86400"), "{list}");
    let set =
        ok(&database, &["policies", "set", "charges.create", "enforcement=observe", "rollout_percent=10"]);
    for setting in ["enforcement=observe", "rollout_percent=10", "ttl_seconds=86400"] {
        assert!(set.contains(setting), "{set}");
    }
    let history = ok(&database, &["policies", "history", "charges.create"]);
    assert_eq!(history.lines().count(), 1);
    assert!(
        history.contains("alice (command line): enforcement=enforce→observe rollout_percent=100→10"),
        "{history}"
    );
    for (arguments, complaint) in [
        (&["charges.create", "enforcement=maybe"][..], "enforcement must be one of enforce, observe, off"),
        (&["charges.create", "ttl_seconds=59"], "ttl_seconds must be an integer from 60 to 2592000"),
        (&["charges.create", "ttl=60"], "ttl is not a known field"),
        (&["charges.create", "ttl_seconds"], "name=value"),
        (&["charges.destroy", "ttl_seconds=60"], "There is no such operation."),
    ] {
        let complained = fails(&database, &[&["policies", "set"], arguments].concat());
        assert!(complained.contains(complaint), "{arguments:?}: {complained}");
    }
    assert_eq!(ok(&database, &["policies", "history"]).lines().count(), 1, "refused whole");
}

#[test]
fn stuck_keys_are_listed_retried_and_released() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let app = App::start_with(&database, |config| {
        config.recovery_interval_ms = 50;
        config.recovery_delay_ms = 1;
        config.recovery_attempts_max = 1;
    });
    let client = app.client.as_merchant(&merchant);
    assert_eq!(ok(&database, &["keys", "list"]), "0 keys\n");
    execute(&mut database.as_owner(), "ALTER TABLE events ADD CONSTRAINT bug CHECK (false) NOT VALID");
    for key in ["a", "b", "c"] {
        client.charge(key, &visa()).expect_problem(500, "internal");
    }
    let parked = "SELECT count(*) FROM idempotency_keys WHERE parked_at IS NOT NULL";
    eventually("the parking", || database.count(parked) == 3);
    let (success, list, complained) =
        oncepay(&database, &["keys", "list", "--status", "parked", "--limit", "2"]);
    assert!(!success && complained.contains("2 of them wait for you."), "{complained}");
    assert!(list.contains("2 keys, and more") && list.contains("last_error=internal"), "{list}");
    execute(&mut database.as_owner(), "ALTER TABLE events DROP CONSTRAINT bug");

    let id = |key: &str| format!("{}/{key}", merchant.id);
    assert!(ok(&database, &["keys", "show", &id("a")]).contains("parked since"));
    ok(&database, &["keys", "retry", &id("a")]);
    eventually("its recovery", || database.rows("charges") == 1);
    ok(&database, &["keys", "release", &id("b")]);
    assert!(!client.charge("b", &visa()).expect(201).is_replay());
    assert_eq!(ok(&database, &["keys", "retry", "--all-parked"]), "1 requests will be tried again.\n");
    eventually("the last recovery", || database.rows("charges") == 3);
    assert!(ok(&database, &["keys", "list", "--status", "completed"]).contains("3 keys\n"));
    assert_eq!(ok(&database, &["keys", "list", "--status", "completed", "--older-than", "1h"]), "0 keys\n");
    let listed = ok(&database, &["keys", "list", "--status", "completed"]);
    let oldest = listed.lines().filter_map(|line| line.split_once("  ")).map(|(time, _)| time).min().unwrap();
    let until = ok(&database, &["keys", "list", "--status", "completed", "--older-than", oldest]);
    assert_eq!(until.lines().last(), Some("1 keys"), "a time as shown includes its key: {until}");
    assert!(ok(&database, &["keys", "show", &id("c")]).contains("status=201"));
    for (arguments, complaint) in [
        (vec!["retry".to_owned(), id("a")], "is finished"),
        (vec!["retry".to_owned(), id("z")], "There is no request with this idempotency key."),
        (vec!["show".to_owned(), "a".to_owned()], "isn't of the form mer_…/key"),
        (vec!["list".to_owned(), "--status=stuck".to_owned()], "must be one of in_progress"),
        (vec!["list".to_owned(), "--older-than=long".to_owned()], "must be a number of seconds"),
        (vec!["retry".to_owned()], "<ID>"),
    ] {
        let arguments: Vec<_> = std::iter::once("keys").chain(arguments.iter().map(String::as_str)).collect();
        let complained = fails(&database, &arguments);
        assert!(complained.contains(complaint), "{arguments:?}: {complained}");
    }
}

/// `ops/SETTINGS.md` is made by `cargo run -- settings > ops/SETTINGS.md`.
#[test]
fn the_reference_of_settings_is_what_the_program_reads() {
    let output = Command::new(env!("CARGO_BIN_EXE_oncepay"))
        .arg("settings")
        .env("ONCEPAY_MASTER_KEY", "from the environment")
        .env("ONCEPAY_ACQUIRER_URL", "http://from.the.environment")
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && !printed.contains("from the environment"), "{printed}");
    for row in [
        "| `ONCEPAY_POOL_SIZE` | `--pool-size` | `8` |",
        "| `ONCEPAY_MASTER_KEY` | `--master-key` | required |",
        "| `ONCEPAY_READY_WITHOUT_PROCESSOR` | `--ready-without-processor` | `false` |",
        "Also read as `ONCEPAY_ACQUIRER_URL`.",
        "| `ONCEPAY_OWNER_DATABASE_URL` | `migrate`, `seed` | required |",
    ] {
        assert!(printed.contains(row), "{row}\nis not in\n{printed}");
    }
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/ops/SETTINGS.md");
    let kept = std::fs::read_to_string(kept).unwrap();
    assert!(kept == printed, "run `cargo run -- settings > ops/SETTINGS.md`");
}
