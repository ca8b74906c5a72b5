//! `docs/command-line.md`: what commands print as JSON, their exit statuses, completions.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::acquirer::Acquirer;
use crate::support::database::exposed;
use crate::support::*;

const CHAPTER: &str = include_str!("../docs/command-line.md");

fn run(database: &TestDatabase, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_oncepay"))
        .args(arguments)
        .env("DATABASE_URL", exposed(&database.app_url))
        .env("ONCEPAY_RECONCILE_GRACE_S", "0")
        .env_remove("ONCEPAY_API_KEY")
        .output()
        .unwrap()
}

/// The cells of the chapter's row about a command.
fn row(command: &str) -> (&'static str, &'static str) {
    let cells = |line: &'static str| {
        let mut cells = line.trim_matches('|').split(" | ").map(str::trim);
        Some((cells.next()?, cells.next()?, cells.next()?))
    };
    let name = format!("`{command}`");
    let (_, chapter) = CHAPTER.split_once("\n## JSON\n").unwrap();
    let found = chapter.lines().filter(|line| line.starts_with("| `")).filter_map(cells);
    let found = found.into_iter().find(|(commands, ..)| commands.split(", ").any(|one| one == name));
    let (_, form, members) = found.unwrap_or_else(|| panic!("the chapter has no row about {command}"));
    (form, members)
}

/// Runs a command with `--json`, which must end with `status` and print the form and the members that the chapter names.
#[track_caller]
fn as_told(database: &TestDatabase, command: &str, arguments: &[&str], status: i32) -> Vec<Value> {
    let words: Vec<&str> = command.split(' ').chain(arguments.iter().copied()).chain(["--json"]).collect();
    let output = run(database, &words);
    let complained = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{command}: {complained}");
    let printed = String::from_utf8(output.stdout).unwrap();
    let (form, _) = row(command);
    let values: Vec<Value> = match form {
        "document" => vec![serde_json::from_str(&printed).expect(&printed)],
        "lines" => printed.lines().map(|line| serde_json::from_str(line).expect(line)).collect(),
        other => panic!("{command}: {other}"),
    };
    assert!(!values.is_empty(), "{command} printed nothing");
    are_told(command, &values);
    values
}

/// What a command prints as JSON must have the members that the chapter names, and no others.
#[track_caller]
pub fn are_told(command: &str, values: &[Value]) {
    let (_, members) = row(command);
    for value in values {
        for name in value.as_object().unwrap().keys() {
            let is_told =
                members.contains(&format!("`{name}`")) || members.contains("settings of its policy");
            assert!(is_told, "the chapter's row about {command} lacks {name}");
        }
    }
    // What is listed in front of the details, or alone.
    let list = members.rsplit_once(": ").map_or(members, |(_, list)| list);
    let list = list.split(';').next().unwrap();
    let mut depth = 0;
    let outer: String = list
        .chars()
        .filter(|letter| {
            depth += i32::from(*letter == '(') - i32::from(*letter == ')');
            depth == 0
        })
        .collect();
    for name in outer.split('`').skip(1).step_by(2).filter(|name| !name.starts_with("GET ")) {
        assert!(values[0].get(name).is_some(), "{command} prints no {name}: {}", values[0]);
    }
}

#[test]
fn commands_print_as_json_what_the_chapter_says() {
    let mut database = TestDatabase::new();
    let app = App::start(&database);
    let merchant = database.merchant();
    let client = app.client.as_merchant(&merchant);
    client.charge("order-1", &visa()).expect(201);
    let id = format!("{}/order-1", merchant.id);

    let keys = as_told(&database, "keys list", &["--status", "completed"], 0);
    assert_eq!((keys.len(), &keys[0]["id"]), (1, &json!(id)));
    assert!(keys[0]["resource"]["url"].as_str().unwrap().starts_with("/v1/charges/ch_"), "{}", keys[0]);
    let of_api = app.client.with_key(&database.operator_key());
    let of_api = of_api.get(&format!("/v1/operator/idempotency-keys/{id}")).expect(200).json();
    assert_eq!(as_told(&database, "keys show", &[&id], 0), [of_api]);

    let entries = as_told(&database, "ledger", &["--merchant", &merchant.id.to_string()], 0);
    let mut of_api = client.get("/v1/ledger/journal-entries").expect(200).json()["data"].take();
    of_api.as_array_mut().unwrap().reverse();
    assert_eq!(Value::from(entries), of_api);

    let changed = as_told(&database, "policies set", &["charges.create", "ttl_seconds=600"], 0);
    assert_eq!(changed[0]["ttl_seconds"], 600);
    let policies = as_told(&database, "policies list", &[], 0);
    assert_eq!(policies.len(), oncepay::server::operations().len());
    assert!(policies.contains(&changed[0]));
    let history = as_told(&database, "policies history", &[], 0);
    assert_eq!(
        (&history[0]["before"]["ttl_seconds"], &history[0]["after"]),
        (&json!(86_400), &{
            let mut after = changed[0].clone();
            after.as_object_mut().unwrap().remove("operation");
            after
        })
    );

    as_told(&database, "policies recommend", &[], 0);
    as_told(&database, "settings", &[], 0);
    assert_eq!(as_told(&database, "trigger --list", &[], 0).len(), 9);
    let address = app.client.base().strip_prefix("http://").unwrap();
    assert_eq!(as_told(&database, "health", &["--listen", address], 0)[0]["healthy"], true);
    let nowhere = format!("127.0.0.1:{}", free_port());
    let unwell = as_told(&database, "health", &["--listen", &nowhere], 1);
    assert!(unwell[0]["problem"].as_str().unwrap().starts_with("No answer"), "{}", unwell[0]);

    let audit = &as_told(&database, "audit", &[], 0)[0];
    assert_eq!(audit["clean"], true);
    database.skip_audit();
    execute(&mut database.as_superuser(), "DELETE FROM events");
    let audit = &as_told(&database, "audit", &[], 1)[0];
    let failed = |check: &&Value| check["violations"] != 0;
    assert_eq!(audit["checks"].as_array().unwrap().iter().filter(failed).count(), 1, "{audit}");

    // The server may have findings of its own.
    let status = run(&database, &["storage"]).status.code().unwrap();
    as_told(&database, "storage", &[], status);
}

#[test]
fn requests_that_wait_for_an_operator_are_shown_as_json_and_found() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| {
        config.recovery_interval_ms = 50;
        config.recovery_delay_ms = 1;
        config.recovery_attempts_max = 1;
    });
    execute(&mut database.as_owner(), "ALTER TABLE events ADD CONSTRAINT bug CHECK (false) NOT VALID");
    let client = app.client.as_merchant(&database.merchant());
    client.charge("order-1", &visa()).expect_problem(500, "internal");
    let parked = "SELECT count(*) FROM idempotency_keys WHERE parked_at IS NOT NULL";
    eventually("the parking", || database.count(parked) == 1);
    // Nobody takes it up meanwhile.
    drop(app);
    execute(&mut database.as_owner(), "ALTER TABLE events DROP CONSTRAINT bug");
    let keys = as_told(&database, "keys list", &["--status", "parked"], 1);
    let id = keys[0]["id"].as_str().unwrap().to_owned();
    assert!(keys[0]["parked_at"].is_string());
    assert_eq!(as_told(&database, "keys retry", &[&id], 0)[0]["parked_at"], Value::Null);
    let all = run(&database, &["keys", "retry", "--all-parked", "--json"]);
    assert_eq!(String::from_utf8(all.stdout).unwrap(), "{\"retried\":0}\n");
    let reason = ["--as", "failed", "--reason", "test"];
    let resolved = as_told(&database, "keys resolve", &[&[id.as_str()], &reason[..]].concat(), 0);
    assert_eq!(resolved[0]["status"], "completed");
}

#[test]
fn both_sides_books_are_compared_as_json() {
    let mut database = TestDatabase::new();
    let acquirer = Acquirer::start(&database);
    let app = App::start_at(&acquirer, &database, |_| {});
    let merchant = database.merchant();
    app.client.as_merchant(&merchant).charge("order-1", &visa()).expect(201);
    acquirer.wait_for_its_list();
    let reconcile = |database: &TestDatabase| {
        let output = Command::new(env!("CARGO_BIN_EXE_oncepay"))
            .args(["reconcile", "--reconcile-grace-s", "0", "--void-orphans-after-s", "never", "--json"])
            .env("DATABASE_URL", exposed(&database.app_url))
            .envs(acquirer.environment())
            .output()
            .unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).expect("it prints JSON alone");
        (output.status.code(), report)
    };
    let (status, report) = reconcile(&database);
    assert_eq!((status, &report["agree"], &report["differences"]), (Some(0), &json!(true), &json!([])));
    let total = json!({"currency": "USD", "kind": "authorize", "ours": {"count": 1, "amount": "12.50"},
        "processor": {"count": 1, "amount": "12.50"}});
    assert!(report["totals"].as_array().unwrap().contains(&total), "{report}");

    database.skip_audit();
    let body = json!({"amount": "3.00", "currency": "USD", "payment_method": "pm_card_visa", "capture": false,
        "merchant": merchant.id.to_string(), "reference": "ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b"});
    assert_eq!(acquirer.post("/authorizations", &fresh_key(), &body).unwrap().0, 201);
    acquirer.wait_for_its_list();
    let (status, report) = reconcile(&database);
    assert_eq!((status, &report["agree"]), (Some(1), &json!(false)));
    let found = &report["differences"][0];
    assert_eq!(
        (&found["difference"], &found["processor"]),
        (&json!("orphaned_authorization"), &json!("3.00"))
    );
    let (form, members) = row("reconcile");
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    for name in names(&report).into_iter().chain(names(found)).chain(names(&report["totals"][0])) {
        assert!(form == "document" && members.contains(&format!("`{name}`")), "{name}");
    }
}

/// All commands, from the help of each.
fn commands(path: &[String]) -> Vec<Vec<String>> {
    let output = Command::new(env!("CARGO_BIN_EXE_oncepay")).args(path).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let Some((_, list)) = help.split_once("\nCommands:\n") else { return vec![path.to_vec()] };
    let names = list.lines().take_while(|line| !line.is_empty());
    let names = names.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    names.flat_map(|name| commands(&[path, &[name.to_owned()]].concat())).collect()
}

#[test]
fn the_chapter_has_a_row_about_each_command_that_prints_json() {
    let all = commands(&[]);
    assert!(all.len() > 20, "{all:?}");
    for path in all {
        let output = Command::new(env!("CARGO_BIN_EXE_oncepay")).args(&path).arg("--help").output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        match path.join(" ").as_str() {
            "trigger" => row("trigger --list"),
            name if help.contains("--json") => row(name),
            _ => continue,
        };
    }
}

#[test]
fn exit_statuses_are_those_of_the_table() {
    let output = Command::new(env!("CARGO_BIN_EXE_oncepay")).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let (_, told) = help.split_once("Exit status:\n").expect("the help ends with them");
    let told: Vec<_> = told.lines().map(|line| line.trim().split_once("  ").unwrap()).collect();
    let (_, table) = CHAPTER.split_once("| status | meaning |\n|---|---|\n").unwrap();
    let rows = table.lines().take_while(|line| !line.is_empty());
    let rows: Vec<_> = rows.map(|line| line.trim_matches(['|', ' ']).split_once(" | ").unwrap()).collect();
    assert_eq!(told, rows);

    let database = TestDatabase::new();
    let status = |arguments: &[&str]| run(&database, arguments).status.code().unwrap();
    assert_eq!(status(&["audit"]), 0);
    assert_eq!(status(&["health", "--listen", &format!("127.0.0.1:{}", free_port())]), 1);
    for arguments in [
        &["nonsense"][..],
        &["ledger"],
        &["ledger", "--merchant", "me"],
        &["keys", "show", "x"],
        &["keys", "list", "--status", "lost"],
        &["keys", "tail", "--merchant", "me"],
        &["policies", "set", "charges.create", "ttl_seconds=1"],
        &["policies", "recommend", "--operation", "nothing"],
    ] {
        assert_eq!(status(arguments), 2, "{arguments:?}");
    }
    let nowhere = format!("postgres://oncepay_app@127.0.0.1:{}/oncepay", free_port());
    for command in [&["audit"][..], &["storage"], &["keys", "list"], &["keys", "tail"], &["policies", "list"]]
    {
        assert_eq!(status(&[command, &["--database-url", &nowhere]].concat()), 3, "{command:?}");
    }
    assert_eq!(status(&["reconcile"]), 3);
}

#[test]
fn completions_know_the_commands_in_every_shell() {
    let script = |shell: &str| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_oncepay")).args(["completions", shell]).output().unwrap();
        assert!(output.status.success(), "{shell}");
        String::from_utf8(output.stdout).unwrap()
    };
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        assert!(CHAPTER.contains(&format!("`{shell}`")), "{shell}");
        let script = script(shell);
        for word in ["recommend", "reconcile", "doctor", "charges", "tail"] {
            assert!(script.contains(word), "{shell} {word}");
        }
    }
    // As bash does when somebody presses Tab.
    let asked = "COMP_WORDS=(oncepay keys re) COMP_CWORD=2; _oncepay oncepay re keys; echo ${COMPREPLY[@]}";
    let mut bash = Command::new("bash").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    writeln!(bash.stdin.take().unwrap(), "{}\n{asked}", script("bash")).unwrap();
    let output = bash.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "retry resolve release");
}
