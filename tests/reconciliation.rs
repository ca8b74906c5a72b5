//! Our books against the acquirer's: each kind of difference is made once, behind the back of both, and found.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::acquirer::Acquirer;
use crate::support::database::exposed;
use crate::support::*;

struct Scene {
    app: App,
    client: Client,
    merchant: Merchant,
    acquirer: Acquirer,
    database: TestDatabase,
}

impl Scene {
    /// With some of everything, in two currencies.
    fn new() -> Self {
        Self::on(TestDatabase::new())
    }

    fn on(database: TestDatabase) -> Self {
        let acquirer = Acquirer::start(&database);
        let app = App::start_at(&acquirer, &database, |_| {});
        let merchant = database.merchant();
        let client = app.client.as_merchant(&merchant);
        let scene = Self { app, client, merchant, acquirer, database };
        let charge = scene.charge("USD", "12.50");
        scene.charge("JPY", "700");
        let refund = json!({"charge_id": charge, "amount": "2.00"});
        scene.client.send("POST", "/v1/refunds", "refund", &refund).expect(201);
        let payout = json!({"amount": "1.00", "currency": "USD", "destination": "ba"});
        scene.client.send("POST", "/v1/payouts", "payout", &payout).expect(201);
        for key in ["held", "canceled"] {
            let held = json!({"amount": "3.00", "currency": "USD", "payment_method": "pm_card_visa", "capture": false});
            let id = scene.client.charge(key, &held).expect(201).field("id");
            if key == "canceled" {
                scene.client.send("POST", &format!("/v1/charges/{id}/cancel"), "x", &json!({})).expect(200);
            }
        }
        scene.client.charge("declined", &with_method("pm_card_declined")).expect(402);
        // Not to be captured: the acquirer would do that, and nobody hears of it here.
        let mut pending = with_method("pm_card_async");
        pending["capture"] = json!(false);
        scene.client.charge("async", &pending).expect(201);
        scene
    }

    fn charge(&self, currency: &str, amount: &str) -> String {
        let body = json!({"amount": amount, "currency": currency, "payment_method": "pm_card_visa"});
        self.client.charge(&fresh_key(), &body).expect(201).field("id")
    }

    /// Runs `oncepay reconcile`. Whether it found both sides in agreement, and what it said.
    fn reconcile(&self, void_orphans_after: &str) -> (bool, String) {
        self.reconcile_with(void_orphans_after, &[])
    }

    /// The same with further arguments.
    fn reconcile_with(&self, void_orphans_after: &str, arguments: &[&str]) -> (bool, String) {
        self.acquirer.wait_for_its_list();
        let output = Command::new(env!("CARGO_BIN_EXE_oncepay"))
            .args(["reconcile", "--reconcile-grace-s", "0", "--void-orphans-after-s", void_orphans_after])
            .args(arguments)
            .env("DATABASE_URL", exposed(&self.database.app_url))
            .envs(self.acquirer.environment())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text.into_owned())
    }

    #[track_caller]
    fn expect_agreement(&self) {
        let (agrees, text) = self.reconcile("never");
        assert!(agrees && text.ends_with("Both sides agree.\n"), "{text}");
    }

    /// Does something at the acquirer that we know nothing of. Returns the operation.
    fn act(&self, path: &str, reference: &str, body: Value) -> Value {
        let mut body = body;
        body["merchant"] = self.merchant.id.to_string().into();
        body["reference"] = reference.into();
        let (status, _, operation) = self.acquirer.post(path, &fresh_key(), &body).unwrap();
        assert_eq!(status, 201, "{operation}");
        operation
    }

    fn damage(&self, statement: &str) {
        execute(&mut self.acquirer.as_owner(), statement);
    }
}

const UNKNOWN_CHARGE: &str = "ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b";

#[test]
fn undisturbed_both_sides_agree_per_currency() {
    let scene = Scene::new();
    let (agrees, text) = scene.reconcile("never");
    assert!(agrees, "{text}");
    let line = |currency: &str, kind: &str| {
        let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        words
            .filter(|words| words.starts_with(&[currency, kind]))
            .map(|words| words[2..].join(" "))
            .collect::<String>()
    };
    assert_eq!(line("USD", "authorize"), "4 31.00 4 31.00");
    assert_eq!(line("USD", "capture"), "1 12.50 1 12.50");
    assert_eq!(line("USD", "refund"), "1 2.00 1 2.00");
    assert_eq!(line("USD", "payout"), "1 1.00 1 1.00");
    assert_eq!(line("JPY", "capture"), "1 700 1 700");
    // Again, from where it stopped, and with what has changed since.
    scene.charge("USD", "0.50");
    scene.expect_agreement();
    scene.database.assert_audit_is_clean();
}

#[test]
fn what_a_sandbox_did_before_counts_on_neither_side() {
    let database = TestDatabase::new();
    let sandbox = App::start(&database);
    let client = sandbox.client.as_merchant(&database.merchant());
    let charge = client.charge("before", &visa()).expect(201).field("id");
    client.send("POST", "/v1/refunds", "refund", &json!({"charge_id": charge, "amount": "2.00"})).expect(201);
    let euro = json!({"amount": "7.00", "currency": "EUR", "payment_method": "pm_card_visa"});
    client.charge("euro", &euro).expect(201);
    drop(sandbox);
    let scene = Scene::on(database);
    let (agrees, text) = scene.reconcile("never");
    assert!(agrees && text.ends_with("Both sides agree.\n"), "{text}");
    let totals: Vec<Vec<_>> = text.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    let totals: Vec<_> = totals.into_iter().take_while(|words| ["JPY", "USD"].contains(&words[0])).collect();
    assert_eq!(totals.len(), 6, "{text}");
    assert!(totals.iter().all(|words| words[2..4] == words[4..6]), "{text}");
    let not_compared: Vec<_> = text.lines().filter(|line| line.starts_with("Not compared")).collect();
    let expected = "Not compared: 5 here that the processor doesn't have, from before it was first asked (20";
    assert!(not_compared.len() == 1 && not_compared[0].starts_with(expected), "{text}");
    // What the processor lacks of its own time is missed as ever.
    let missing = scene.charge("USD", "5.00");
    let mut scene = scene;
    scene.database.skip_audit();
    scene.damage(&format!("DELETE FROM operations WHERE reference = '{missing}' AND kind = 'capture'"));
    let (agrees, text) = scene.reconcile("never");
    assert!(!agrees && text.contains(&format!("missing_at_acquirer: capture of {missing}")), "{text}");
    assert!(
        text.contains("USD      capture           2              17.50           1              12.50"),
        "{text}"
    );
}

#[test]
fn one_of_each_difference_is_made_and_found() {
    let mut scene = Scene::new();
    scene.database.skip_audit();
    let (missing, differing) = (scene.charge("USD", "5.00"), scene.charge("JPY", "900"));
    let refund = json!({"charge_id": scene.charge("USD", "8.00"), "amount": "1.00"});
    let refund = scene.client.send("POST", "/v1/refunds", "twice", &refund).expect(201).field("id");
    let refunded =
        scene.acquirer.operations().into_iter().find(|found| found["reference"] == *refund).unwrap();
    let refunded = refunded["authorization_id"].as_str().unwrap();

    scene.damage(&format!("DELETE FROM operations WHERE reference = '{missing}' AND kind = 'capture'"));
    scene.damage(&format!(
        "UPDATE operations SET amount = 901 WHERE reference = '{differing}' AND kind = 'capture'"
    ));
    let money = json!({"amount": "1.00", "currency": "USD"});
    scene.act(&format!("/authorizations/{refunded}/refunds"), &refund, money);
    let payout = json!({"amount": "77.00", "currency": "USD", "destination": "ba"});
    scene.act("/payouts", "po_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b", payout);
    let hold = json!({"amount": "6.00", "currency": "USD", "payment_method": "pm_card_visa"});
    let orphan = scene.act("/authorizations", UNKNOWN_CHARGE, hold);

    let (agrees, text) = scene.reconcile("never");
    assert!(!agrees && text.contains("5 differences."), "{text}");
    let operation = |reference: &str| {
        let found = scene.acquirer.operations().into_iter().rfind(|found| found["reference"] == reference);
        found.unwrap()["id"].as_str().unwrap().to_owned()
    };
    let captured = scene
        .acquirer
        .operations()
        .into_iter()
        .find(|found| found["reference"] == *differing && found["kind"] == "capture")
        .unwrap();
    for line in [
        format!("missing_at_acquirer: capture of {missing} (no operation): 5.00 here, nothing there, USD"),
        format!(
            "amount_differs: capture of {differing} ({}): 900 here, 901 there, JPY",
            captured["id"].as_str().unwrap()
        ),
        format!("duplicate: refund of {refund} ({}): nothing here, 1.00 there, USD", operation(&refund)),
        format!(
            "missing_here: payout of po_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b ({}): nothing here, 77.00 there, USD",
            operation("po_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")
        ),
        format!(
            "orphaned_authorization: authorize of {UNKNOWN_CHARGE} ({}): nothing here, 6.00 there, USD",
            orphan["id"].as_str().unwrap()
        ),
    ] {
        assert!(text.contains(&line), "{line}\nis not in\n{text}");
    }

    // The audit knows them too, but for what could still come within the hour.
    let report =
        oncepay::audit::run(&mut scene.database.as_app(), &oncepay::server::resource_kinds()).unwrap();
    let check = report.checks.iter().find(|check| check.name == "processor_operations").unwrap();
    assert_eq!(check.violations, 4, "{report}");

    // And the service, by itself, on one instance at a time.
    let watching = App::start_at(&scene.acquirer, &scene.database, |config| {
        config.reconcile_interval_ms = 100;
        config.reconcile.reconcile_grace_s = 0;
    });
    let found = |kind: &str| {
        let metrics = watching.client.metrics();
        metrics.value("oncepay_reconciliation_differences", &[("difference", kind)])
    };
    eventually("the metrics", || found("duplicate") == 1.0);
    for kind in ["missing_at_acquirer", "missing_here", "orphaned_authorization", "amount_differs"] {
        assert_eq!(found(kind), 1.0, "{kind}");
    }
    let compared_at = |app: &App| app.client.metrics().value("oncepay_reconciliation_timestamp_seconds", &[]);
    assert!(compared_at(&watching) > 1e9);
    // An instance that has just been started knows when another has compared.
    let later = App::start_at(&scene.acquirer, &scene.database, |config| {
        config.reconcile_interval_ms = 86_400_000;
    });
    eventually("the last comparison", || compared_at(&later) > 1e9);
}

#[test]
fn the_service_compares_when_it_is_due_and_also_after_a_failure() {
    let database = TestDatabase::new();
    let mut acquirer = Acquirer::start(&database);
    // Another instance has its turn: nobody else compares until it's over.
    execute(
        &mut database.as_owner(),
        "INSERT INTO acquirer_reads (since, due_at) SELECT at - interval '2 hours', at + interval '1 hour' \
         FROM (SELECT statement_timestamp() AS at) AS now \
         ON CONFLICT (one) DO UPDATE SET since = EXCLUDED.since, due_at = EXCLUDED.due_at",
    );
    let app = App::start_at(&acquirer, &database, |config| config.reconcile_interval_ms = 2_000);
    let begun = || database.count("SELECT extract(epoch FROM read_at)::bigint FROM acquirer_reads");
    let compared_at = || app.client.metrics().value("oncepay_reconciliation_timestamp_seconds", &[]);
    let since_s: f64 =
        database.text("SELECT extract(epoch FROM since)::text FROM acquirer_reads").parse().unwrap();
    eventually("the time of its first use", || compared_at() == since_s);
    // It looks five times a second.
    std::thread::sleep(std::time::Duration::from_millis(700));
    let was_read = "SELECT count(*) FROM acquirer_reads WHERE read_at IS NOT NULL";
    assert_eq!((database.count(was_read), compared_at()), (0, since_s));
    let let_it =
        || execute(&mut database.as_owner(), "UPDATE acquirer_reads SET due_at = statement_timestamp()");
    let_it();
    eventually("a comparison", || compared_at() > since_s + 7_000.0);
    assert_eq!(
        database.count("SELECT count(*) FROM acquirer_reads WHERE due_at > read_at"),
        1,
        "its next turn"
    );

    acquirer.stop();
    let before = begun();
    let_it();
    eventually("an attempt", || {
        database.count("SELECT count(*) FROM acquirer_reads WHERE due_at > statement_timestamp()") == 1
    });
    acquirer.start_again();
    eventually("another comparison", || begun() > before);
}

#[test]
fn an_orphaned_authorization_is_voided_once_it_is_old_enough() {
    let scene = Scene::new();
    let hold = json!({"amount": "6.00", "currency": "USD", "payment_method": "pm_card_visa"});
    let orphan = scene.act("/authorizations", UNKNOWN_CHARGE, hold);
    let status = || {
        let id = orphan["authorization_id"].as_str().unwrap();
        let query = format!("SELECT to_jsonb(status) AS row FROM authorizations WHERE id = '{id}'");
        scene.acquirer.rows(&query).remove(0)
    };
    let (agrees, text) = scene.reconcile("3600");
    assert!(!agrees && text.contains("orphaned_authorization"), "{text}");
    assert_eq!(status(), "open", "too young");
    // A charge in progress may be the retry of a request whose claim was lost, and be about to rely on it.
    let lost = with_method("pm_card_timeout");
    scene.client.charge("lost", &lost).expect_problem(503, "processor_unavailable");
    let (agrees, text) = scene.reconcile("0");
    assert!(!agrees && text.contains("orphaned_authorization"), "{text}");
    assert_eq!(status(), "open", "it may be needed");
    scene.client.charge("lost", &lost).expect(201);
    let (agrees, text) = scene.reconcile("0");
    assert!(agrees && text.contains("; voided now"), "{text}");
    assert_eq!(status(), "voided");
    scene.expect_agreement();
    // The service does the same by itself, and counts it.
    let hold = json!({"amount": "6.00", "currency": "USD", "payment_method": "pm_card_visa"});
    scene.act("/authorizations", "ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0c", hold);
    let voiding = App::start_at(&scene.acquirer, &scene.database, |config| {
        config.reconcile_interval_ms = 100;
        config.reconcile.reconcile_grace_s = 0;
        config.reconcile.void_orphans_after_s = "0".parse().unwrap();
    });
    let metric = |name: &str, labels: &[(&str, &str)]| voiding.client.metrics().value(name, labels);
    eventually("the void", || metric("oncepay_reconciliation_orphans_voided_total", &[]) == 1.0);
    drop(voiding);
    scene.expect_agreement();
    // Charges of ours that hold money are left alone.
    let held = "SELECT count(*) FROM charges WHERE status = 'requires_capture'";
    assert_eq!(scene.database.count(held), 1);
    assert_eq!(
        scene
            .acquirer
            .rows("SELECT to_jsonb(id) AS row FROM authorizations WHERE status = 'open' AND amount = 3")
            .len(),
        1
    );
}

#[test]
fn what_is_under_way_is_no_difference_and_never_an_orphan() {
    let scene = Scene::new();
    scene.acquirer.control(json!({"rules": [{"fault": "drop_answer"}]}));
    scene.client.charge("unknown", &visa()).expect(503);
    assert!(scene.acquirer.operations().iter().any(|operation| operation["amount"] == "12.50"));
    scene.acquirer.control(json!({"rules": []}));
    let (agrees, text) = scene.reconcile("0");
    assert!(agrees && text.contains("Not compared: 0 here and 1 there that are under way"), "{text}");
    scene.client.charge("unknown", &visa()).expect(201);
    scene.expect_agreement();
}

#[test]
fn a_charge_younger_than_the_grace_is_not_missed() {
    let mut scene = Scene::new();
    scene.database.skip_audit();
    let charge = scene.charge("USD", "5.00");
    scene.damage(&format!("DELETE FROM operations WHERE reference = '{charge}'"));
    let (agrees, _) = scene.reconcile("never");
    assert!(!agrees);
    assert_eq!(scene.database.violations("processor_operations"), 0);
}

#[test]
fn without_an_acquirer_there_is_nothing_to_compare_with() {
    let database = TestDatabase::new();
    let output = Command::new(env!("CARGO_BIN_EXE_oncepay"))
        .arg("reconcile")
        .env("DATABASE_URL", exposed(&database.app_url))
        .env_remove("ONCEPAY_PROCESSOR_URL")
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("ONCEPAY_PROCESSOR_URL"), "{error}");
}

#[test]
fn the_audit_asks_the_acquirer_when_it_knows_one() {
    let mut scene = Scene::new();
    scene.database.skip_audit();
    let payout = json!({"amount": "77.00", "currency": "USD", "destination": "ba"});
    scene.act("/payouts", "po_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b", payout);
    scene.acquirer.wait_for_its_list();
    let output = Command::new(env!("CARGO_BIN_EXE_oncepay"))
        .arg("audit")
        .env("DATABASE_URL", exposed(&scene.database.app_url))
        .envs(scene.acquirer.environment())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        !output.status.success() && text.contains("missing_here po_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b"),
        "{text}"
    );
    assert_eq!(scene.app.client.get("/readyz").status, 200);
}

#[test]
fn an_operator_accepts_a_difference_with_a_reason() {
    let scene = Scene::new();
    let payout = json!({"amount": "77.00", "currency": "USD", "destination": "ba"});
    let payout = scene.act("/payouts", "po_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b", payout);
    let hold = json!({"amount": "6.00", "currency": "USD", "payment_method": "pm_card_visa"});
    let orphan = scene.act("/authorizations", UNKNOWN_CHARGE, hold);
    let [payout, hold] = [&payout, &orphan].map(|operation| operation["id"].as_str().unwrap());
    let (agrees, text) = scene.reconcile("never");
    assert!(!agrees && text.contains("\n2 differences.\n"), "{text}");

    for (arguments, complaint) in [
        (&["--accept", payout][..], "--reason"),
        (&["--reason", "x"], "--accept"),
        (&["--accept", payout, "--reason", " "], "The reason must have 1 to"),
        (
            &["--accept", payout, "op_x", "--reason", "x"],
            "The books don't differ in op_x. Nothing was accepted.",
        ),
    ] {
        let (accepted, text) = scene.reconcile_with("never", arguments);
        assert!(!accepted && text.contains(complaint), "{arguments:?}: {text}");
    }
    let (agrees, text) =
        scene.reconcile_with("0", &["--accept", payout, hold, "--reason", "told by telephone"]);
    assert!(agrees && text.ends_with("Both sides agree.\n"), "{text}");
    assert!(text.contains("Not compared: 0 here and 2 there"), "{text}");
    assert_eq!(
        scene.database.text(
            "SELECT string_agg(concat_ws(' ', operator, action, reason), ', ') FROM operator_actions \
             WHERE subject IN ('missing_here ' || (SELECT id FROM acquirer_operations WHERE kind = 'payout' \
                 AND reference = 'po_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b'))"
        ),
        "command line reconciliation.accept told by telephone"
    );
    // The orphan isn't voided, and the audit at the end of the test finds nothing.
    let authorization = orphan["authorization_id"].as_str().unwrap();
    let open = format!(
        "SELECT to_jsonb(id) AS row FROM authorizations WHERE id = '{authorization}' AND status = 'open'"
    );
    assert_eq!(scene.acquirer.rows(&open).len(), 1);
    let (accepted, text) = scene.reconcile_with("never", &["--accept", payout, "--reason", "again"]);
    assert!(!accepted && text.contains("don't differ"), "{text}");
}
