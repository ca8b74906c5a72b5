//! The audit finds what it looks for: each check is shown data that were damaged behind the guards' back.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::database::exposed;
use crate::support::*;

/// A database with something of everything, all of it in order.
fn lively() -> (TestDatabase, App) {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let merchant = database.merchant();
    let client = app.client.as_merchant(&merchant);
    let held =
        json!({"amount": "3.00", "currency": "USD", "payment_method": "pm_card_visa", "capture": false});
    for key in ["held-1", "held-2"] {
        client.charge(key, &held).expect(201);
    }
    client.charge("declined", &with_method("pm_card_declined")).expect(402);
    client.charge("interrupted", &with_method("pm_card_timeout")).expect(503);
    let charge = client.charge("captured", &visa()).expect(201).field("id");
    let refund = json!({"charge_id": charge, "amount": "5.00"});
    client.send("POST", "/v1/refunds", "refund", &refund).expect(201);
    let payout = json!({"amount": "1.00", "currency": "USD", "destination": "ba"});
    client.send("POST", "/v1/payouts", "payout", &payout).expect(201);
    oncepay::ledger::roll_up(&mut database.as_app(), merchant.id).unwrap();
    database.assert_audit_is_clean();
    (database, app)
}

/// Posts a line past all guards, by the transaction with the number `:transaction`. On another node, the default would be a number of
/// that node.
const LINE: &str = "INSERT INTO postings (merchant_id, entry_id, line, account_id, currency, amount, created_at, transaction_id) \
                    SELECT e.merchant_id, e.id, 1 + (SELECT count(*) FROM postings p WHERE p.entry_id = e.id), a.id, a.currency";

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn each_damage_is_found_by_its_check() {
    let entry = |source: &str| {
        format!(
            "INSERT INTO journal_entries (merchant_id, id, source, created_at) \
             SELECT merchant_id, gen_random_uuid(), '{source}', now() FROM merchants"
        )
    };
    let line = |source: &str, kind: &str, amount: i32| {
        format!(
            "{LINE}, {amount}, now(), ':transaction' FROM journal_entries e JOIN ledger_accounts a \
             ON a.merchant_id = e.merchant_id AND a.kind = '{kind}' WHERE e.source = '{source}'"
        )
    };
    let without_entry =
        |prefix: &str| vec![format!("UPDATE journal_entries SET source = 'x' WHERE source LIKE '{prefix}%'")];
    let copy_of_key = |change: &str| {
        vec![
            "DROP TABLE IF EXISTS copy".to_owned(),
            "CREATE TEMP TABLE copy AS SELECT * FROM idempotency_keys WHERE key = 'captured'".to_owned(),
            format!("UPDATE copy SET key = 'copy' {change}"),
            "INSERT INTO idempotency_keys SELECT * FROM copy".to_owned(),
        ]
    };
    let cases = [
        (
            vec!["unbalanced_entries"],
            vec![entry("x"), entry("y"), line("x", "acquirer_clearing", 5), line("y", "acquirer_clearing", -5)],
        ),
        (vec!["empty_entries"], vec![entry("x")]),
        // What is uneven in sum is uneven in some entry.
        (vec!["unbalanced_entries", "trial_balance"], vec![entry("x"), line("x", "acquirer_clearing", 5)]),
        (
            vec!["foreign_postings"],
            vec![
                entry("x"),
                line("x", "acquirer_clearing", 5),
                line("x", "acquirer_clearing", -5),
                "UPDATE postings SET account_id = gen_random_uuid() FROM journal_entries e WHERE e.id = entry_id AND e.source = 'x'"
                    .to_owned(),
            ],
        ),
        (
            vec!["balance_mismatch"],
            vec![
                "UPDATE ledger_checkpoints c SET balance = balance + 1, horizon = '1' FROM ledger_accounts a WHERE a.id = account_id AND kind = 'acquirer_clearing'"
                    .to_owned(),
            ],
        ),
        (
            vec!["negative_payable"],
            vec![entry("x"), line("x", "merchant_payable", 500), line("x", "acquirer_clearing", -500)],
        ),
        (vec!["key_without_resource"], copy_of_key(", resource_id = gen_random_uuid()")),
        (vec!["two_keys_for_one_resource"], copy_of_key("")),
        (
            vec!["two_resources_for_one_key"],
            vec!["UPDATE charges SET authorization_id = 'same' WHERE status = 'requires_capture'".to_owned()],
        ),
        (vec!["charge_entries"], without_entry("ch_")),
        (vec!["refund_entries"], without_entry("re_")),
        (vec!["payout_entries"], without_entry("po_")),
        (
            vec!["refunds_over_captured"],
            vec!["UPDATE charges SET amount_refunded = 4 WHERE status = 'partially_refunded'".to_owned()],
        ),
        (
            vec!["refunds_over_captured"],
            vec!["UPDATE charges SET amount_refund_pending = 1 WHERE status = 'partially_refunded'".to_owned()],
        ),
        (
            vec!["holds"],
            vec![
                "INSERT INTO ledger_holds (merchant_id, source, account_id, amount) \
                 SELECT merchant_id, 'po_x', id, 1 FROM ledger_accounts WHERE kind = 'merchant_payable'"
                    .to_owned(),
            ],
        ),
        (vec!["holds"], vec!["UPDATE payouts SET status = 'pending'".to_owned()]),
        (vec!["missing_events"], vec!["DELETE FROM events WHERE type = 'charge.failed'".to_owned()]),
        (vec!["missing_events"], vec!["DELETE FROM events WHERE type = 'payout.created'".to_owned()]),
    ];
    for (number, (expected, damage)) in cases.into_iter().enumerate() {
        let (mut database, _app) = lively();
        database.skip_audit();
        let transaction = database.text("SELECT pg_current_xact_id()");
        database.unguarded(&damage.join("; ").replace(":transaction", &transaction));
        let report = oncepay::audit::run(&mut database.as_app(), &oncepay::server::resource_kinds()).unwrap();
        let found: Vec<_> =
            report.checks.iter().filter(|check| check.violations > 0).map(|check| check.name).collect();
        assert!(!report.clean);
        assert_eq!(found, expected, "case {number}: {damage:?}\n{report}");
        assert!(report.checks.iter().all(|check| (check.violations > 0) != check.samples.is_empty()));
    }
}

#[test]
fn the_command_and_the_operators_endpoint_tell_the_same() {
    let (mut database, app) = lively();
    let operator = app.client.with_key(&database.operator_key());
    let audit = |database: &TestDatabase| {
        Command::new(env!("CARGO_BIN_EXE_oncepay"))
            .arg("audit")
            .env("DATABASE_URL", exposed(&database.app_url))
            .output()
            .unwrap()
    };
    let output = audit(&database);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("The books are in order"), "{text}");
    assert_eq!(operator.get("/v1/operator/audit").expect(200).json()["clean"], true);

    database.skip_audit();
    execute(&mut database.as_superuser(), "DELETE FROM events WHERE type = 'charge.failed'");
    let output = audit(&database);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("FAILED  missing_events"), "{text}");
    let report = operator.get("/v1/operator/audit").expect(200).json();
    assert_eq!(report["clean"], false);
    let check =
        report["checks"].as_array().unwrap().iter().find(|check| check["name"] == "missing_events").unwrap();
    assert_eq!(check["violations"], 1);
    assert!(check["samples"][0].as_str().unwrap().starts_with("ch_"));
}

#[test]
fn the_journal_is_printed_as_an_accountant_writes_it() {
    let (database, _app) = lively();
    let output = Command::new(env!("CARGO_BIN_EXE_oncepay"))
        .args(["ledger", "--merchant"])
        .arg(format!("mer_{}", database.text("SELECT replace(merchant_id::text, '-', '') FROM merchants")))
        .env("DATABASE_URL", exposed(&database.app_url))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> =
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for expected in [
        "Debit Credit",
        "acquirer_clearing USD 12.50",
        "merchant_payable USD 11.84",
        "fee_revenue USD 0.66",
        "merchant_payable USD 5.00",
        "payouts_in_transit USD 1.00",
        "Total USD 18.50 18.50",
    ] {
        assert!(lines.iter().any(|line| line == expected), "no {expected:?} in:\n{text}");
    }
}

#[test]
fn the_service_audits_by_itself_and_every_instance_shows_what_was_found() {
    let (mut database, app) = lively();
    database.skip_audit();
    let violations =
        |app: &App, check: &str| app.client.metrics().value("oncepay_audit_violations", &[("check", check)]);
    let metric = |name: &str| app.client.metrics().value(name, &[]);
    assert_eq!(metric("oncepay_audit_last_run_timestamp_seconds"), 0.0, "nobody has audited yet");

    let watching = App::start_with(&database, |config| config.metrics_interval_ms = 50);
    let auditing = App::start_with(&database, |config| {
        config.audit.audit_interval_s = "1".parse().unwrap();
        config.metrics_interval_ms = 50;
    });
    let last_run = || watching.client.metrics().value("oncepay_audit_last_run_timestamp_seconds", &[]);
    eventually("an audit", || last_run() > 1e9);
    assert_eq!(violations(&watching, "missing_events"), 0.0);
    assert!(watching.client.metrics().value("oncepay_audit_last_run_duration_seconds", &[]) > 0.0);

    let mut superuser = database.as_superuser();
    execute(&mut superuser, "SET session_replication_role = 'replica'");
    execute(&mut superuser, "CREATE TABLE lost AS SELECT * FROM events WHERE type = 'charge.failed'");
    execute(&mut superuser, "DELETE FROM events WHERE type = 'charge.failed'");
    for app in [&watching, &auditing] {
        eventually("the violation", || violations(app, "missing_events") == 1.0);
        assert_eq!(violations(app, "trial_balance"), 0.0);
    }
    execute(&mut superuser, "INSERT INTO events SELECT * FROM lost");
    execute(&mut superuser, "DROP TABLE lost");
    eventually("its end", || violations(&watching, "missing_events") == 0.0);
}

#[test]
fn one_instance_at_a_time_audits_and_a_command_counts_as_well() {
    let (database, _app) = lively();
    let runs = || {
        database.text("SELECT started_at::text AS text FROM audit_runs WHERE started_at IS NOT NULL UNION ALL SELECT 'none' LIMIT 1")
    };
    assert_eq!(runs(), "none");
    let audited = Command::new(env!("CARGO_BIN_EXE_oncepay"))
        .arg("audit")
        .env("DATABASE_URL", exposed(&database.app_url))
        .output()
        .unwrap();
    assert!(audited.status.success() && audited.stderr.is_empty(), "{audited:?}");
    let by_command = runs();
    assert_ne!(by_command, "none");

    // Another instance has its turn: nobody else audits until it's over.
    execute(
        &mut database.as_owner(),
        "UPDATE audit_runs SET due_at = statement_timestamp() + interval '1 hour'",
    );
    let app = App::start_with(&database, |config| {
        config.audit.audit_interval_s = "1".parse().unwrap();
        config.metrics_interval_ms = 50;
    });
    eventually("the record of the command", || {
        app.client.metrics().value("oncepay_audit_last_run_timestamp_seconds", &[]) > 1e9
    });
    // It looks ten times a second.
    thread::sleep(Duration::from_millis(500));
    assert_eq!(runs(), by_command);
    execute(&mut database.as_owner(), "UPDATE audit_runs SET due_at = statement_timestamp()");
    eventually("an audit on schedule", || runs() != by_command);
}

#[test]
fn a_scheduled_audit_stands_aside_while_the_database_is_migrated() {
    let (database, app) = lively();
    drop(app);
    let mut migrating = database.as_owner();
    let runs =
        || oncepay::audit::run_within(&mut database.as_app(), &oncepay::server::resource_kinds(), MINUTE);
    execute(&mut migrating, &format!("SELECT pg_advisory_lock({})", oncepay::storage::migrations::LOCK));
    assert!(runs().unwrap_err().detailed().contains("is being migrated"));
    execute(&mut migrating, &format!("SELECT pg_advisory_unlock({})", oncepay::storage::migrations::LOCK));
    assert!(runs().unwrap().clean);
}

#[test]
fn a_scheduled_audit_that_stands_aside_is_made_up_for_soon() {
    let (database, _app) = lively();
    let mut migrating = database.as_owner();
    execute(&mut migrating, &format!("SELECT pg_advisory_lock({})", oncepay::storage::migrations::LOCK));
    let _auditing =
        App::start_with(&database, |config| config.audit.audit_interval_s = "50".parse().unwrap());
    let due_within = |longest: &str| {
        let due = format!(
            "SELECT count(*) FROM audit_runs WHERE due_at > statement_timestamp() - interval '1 hour' \
             AND due_at <= statement_timestamp() + interval '{longest}' AND started_at IS NULL"
        );
        database.count(&due) == 1
    };
    eventually("its next look", || due_within("6 seconds"));
    execute(&mut migrating, &format!("SELECT pg_advisory_unlock({})", oncepay::storage::migrations::LOCK));
    eventually("the audit", || {
        database.count("SELECT count(*) FROM audit_runs WHERE started_at IS NOT NULL") == 1
    });
    // After one that came to an end, the interval counts.
    eventually("its end", || {
        let due = "SELECT count(*) FROM audit_runs WHERE due_at BETWEEN statement_timestamp() + interval '30 seconds' \
                   AND statement_timestamp() + interval '50 seconds'";
        database.count(due) == 1
    });
}

#[test]
fn a_scheduled_audit_that_fails_is_not_the_last() {
    let (database, _app) = lively();
    let mut blocker = database.as_superuser();
    execute(&mut blocker, "BEGIN");
    execute(&mut blocker, "LOCK TABLE postings IN ACCESS EXCLUSIVE MODE");
    let _auditing = App::start_with(&database, |config| {
        config.audit.audit_interval_s = "1".parse().unwrap();
        config.audit.audit_timeout_s = 1;
    });
    let is_tried =
        "SELECT count(*) FROM audit_runs WHERE due_at > statement_timestamp() + interval '10 seconds'";
    let has_ended = "SELECT count(*) FROM audit_runs WHERE due_at < statement_timestamp() + interval '10 seconds' AND due_at > '-infinity'";
    eventually("an attempt", || database.count(is_tried) == 1);
    eventually("its end", || database.count(has_ended) == 1);
    assert_eq!(database.count("SELECT count(*) FROM audit_runs WHERE started_at IS NOT NULL"), 0);
    execute(&mut blocker, "ROLLBACK");
    eventually("an audit", || {
        database.count("SELECT count(*) FROM audit_runs WHERE started_at IS NOT NULL") == 1
    });
}

#[test]
fn a_record_is_not_replaced_by_that_of_an_earlier_audit() {
    let (database, app) = lively();
    drop(app);
    let later = "UPDATE audit_runs SET started_at = statement_timestamp() + interval '1 hour', \
                 finished_at = statement_timestamp() + interval '1 hour 90 seconds', findings = '[{\"name\": \"later\", \"violations\": 3}]'";
    execute(&mut database.as_owner(), later);
    let record = || database.text("SELECT to_json(r)::text FROM audit_runs r");
    let before = record();
    let audited = Command::new(env!("CARGO_BIN_EXE_oncepay"))
        .arg("audit")
        .env("DATABASE_URL", exposed(&database.app_url))
        .output()
        .unwrap();
    assert!(audited.status.success(), "{audited:?}");
    assert_eq!(record(), before);

    let app = App::start_with(&database, |config| config.metrics_interval_ms = 50);
    let metric = |name: &str, labels: &[(&str, &str)]| app.client.metrics().value(name, labels);
    let started_at_s: f64 =
        database.text("SELECT extract(epoch FROM started_at)::text FROM audit_runs").parse().unwrap();
    eventually("the record", || metric("oncepay_audit_last_run_timestamp_seconds", &[]) == started_at_s);
    assert!((metric("oncepay_audit_last_run_duration_seconds", &[]) - 90.0).abs() < 1.0);
    assert_eq!(metric("oncepay_audit_violations", &[("check", "later")]), 3.0);
    // A check that the next audit doesn't have is gone.
    let next = "UPDATE audit_runs SET findings = '[{\"name\": \"next\", \"violations\": 4}]'";
    execute(&mut database.as_owner(), next);
    eventually("the next", || metric("oncepay_audit_violations", &[("check", "next")]) == 4.0);
    eventually("an end of the one before", || !app.client.metrics().0.contains("\"later\""));
}

#[test]
fn a_scheduled_audit_ends_at_its_limit() {
    let (database, app) = lively();
    drop(app);
    // A check that waits for a lock takes long, however small the books are.
    let mut blocker = database.as_superuser();
    execute(&mut blocker, "BEGIN");
    execute(&mut blocker, "LOCK TABLE postings IN ACCESS EXCLUSIVE MODE");
    let kinds = oncepay::server::resource_kinds();
    let (limit, started) = (Duration::from_millis(300), Instant::now());
    let error = oncepay::audit::run_within(&mut database.as_app(), &kinds, limit).unwrap_err();
    assert!(error.detailed().contains("statement timeout"), "{}", error.detailed());
    assert!(started.elapsed() < Duration::from_secs(20));
    execute(&mut blocker, "ROLLBACK");
    assert!(oncepay::audit::run_within(&mut database.as_app(), &kinds, MINUTE).unwrap().clean);
}
