//! Claims that the database loses, by a failover or a restore from a backup: the processor recognizes the client's retry. And
//! keys that were forgotten on purpose: for the processor they are new payments, however long it remembers keys.

use std::collections::HashSet;
use std::process::Command;
use std::sync::Arc;

use diesel::RunQueryDsl;
use oncepay::idempotency::workers::reaper;
use oncepay::processor::Sandbox;
use secrecy::SecretString;
use serde_json::{Value, json};

use crate::support::acquirer::Acquirer;
use crate::support::database::exposed;
use crate::support::*;

const LIFE: i64 = 31 * 24 * 60 * 60;

/// A copy of a database, as a restored backup is one.
struct Backup<'a> {
    database: &'a TestDatabase,
    name: String,
}

impl<'a> Backup<'a> {
    fn of(database: &'a TestDatabase) -> Self {
        let this = Self { database, name: format!("{}_backup", database.name()) };
        // A database can be copied only while nobody is connected.
        eventually("the copy", || {
            let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                          WHERE datname = current_database() AND pid <> pg_backend_pid()";
            let mut superuser = database.as_superuser();
            execute(&mut superuser, others);
            let copy = format!("CREATE DATABASE {} TEMPLATE {}", this.name, database.name());
            diesel::sql_query(copy).execute(&mut superuser).is_ok()
        });
        this
    }

    fn url(&self) -> SecretString {
        exposed(&self.database.app_url).replace(self.database.name(), &self.name).into()
    }
}

impl Drop for Backup<'_> {
    fn drop(&mut self) {
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        let _ = diesel::sql_query(drop).execute(&mut self.database.as_superuser());
    }
}

fn held() -> Value {
    json!({"amount": "12.50", "currency": "USD", "payment_method": "pm_card_visa", "capture": false})
}

fn path(charge: &Response, step: &str) -> String {
    format!("/v1/charges/{}/{step}", charge.field("id"))
}

#[test]
fn what_a_restored_backup_has_lost_happens_once_at_the_processor() {
    let database = TestDatabase::new();
    let acquirer = Acquirer::start(&database);
    let merchant = database.merchant();
    let app = App::start_at(&acquirer, &database, |_| {});
    let client = app.client.as_merchant(&merchant);
    let paid = client.charge("paid", &visa()).expect(201);
    let to_capture = client.charge("to-capture", &held()).expect(201);
    let to_cancel = client.charge("to-cancel", &held()).expect(201);
    drop(app);
    let backup = Backup::of(&database);

    let send_all = |client: &Client| {
        let send = |path: &str, key: &str, body: Value| client.send("POST", path, key, &body);
        [
            send("/v1/charges", "charge", visa()).expect(201),
            send("/v1/charges", "authorization", held()).expect(201),
            send(&path(&to_capture, "capture"), "capture", json!({"amount": "10.00"})).expect(200),
            send(&path(&to_cancel, "cancel"), "cancel", json!({})).expect(200),
            send("/v1/refunds", "refund", json!({"charge_id": paid.field("id"), "amount": "1.00"}))
                .expect(201),
            send("/v1/payouts", "payout", json!({"amount": "2.00", "currency": "USD", "destination": "ba"}))
                .expect(201),
        ]
    };
    let app = App::start_at(&acquirer, &database, |_| {});
    send_all(&app.client.as_merchant(&merchant));
    drop(app);
    // Payouts change by themselves.
    let operations = || -> Vec<_> {
        let all = acquirer.operations().into_iter();
        let mut all: Vec<_> = all.map(|operation| operation["idempotency_key"].to_string()).collect();
        all.sort_unstable();
        all
    };
    let before = operations();

    // The restored database has never heard of any of that; the clients send it again.
    let app = App::start_at(&acquirer, &database, |config| config.database_url = backup.url());
    let client = app.client.as_merchant(&merchant);
    let answers = send_all(&client);
    assert!(answers.iter().all(|answer| !answer.is_replay()));
    assert_eq!(operations(), before, "nothing happens twice");

    // The new charge relies on the authorization of the lost one, which is no orphan.
    acquirer.wait_for_its_list();
    let reconciled = Command::new(env!("CARGO_BIN_EXE_oncepay"))
        .args(["reconcile", "--reconcile-grace-s", "0", "--void-orphans-after-s", "0"])
        .env("DATABASE_URL", exposed(&backup.url()))
        .envs(acquirer.environment())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&reconciled.stdout);
    assert!(!reconciled.status.success(), "the references differ: {text}");
    assert_eq!(operations(), before, "nothing is voided: {text}");
    client.send("POST", &path(&answers[1], "capture"), "capture-2", &json!({})).expect(200);
    assert_eq!(operations().len(), before.len() + 1);
    drop(app);
}

/// The processor would answer with what came of the first.
#[test]
fn a_forgotten_key_is_a_new_payment_for_a_processor_that_forgets_nothing() {
    let database = TestDatabase::new();
    let acquirer = Acquirer::start(&database);
    let app = App::start_at(&acquirer, &database, |config| config.reaper_interval_ms = 600_000);
    let client = app.client.as_merchant(&database.merchant());
    for life in 0..4 {
        client.charge("k", &visa()).expect(201);
        let keys: HashSet<_> = acquirer
            .operations()
            .iter()
            .map(|operation| operation["idempotency_key"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(keys.len(), (life + 1) * 2, "an authorization and a capture each");
        assert_eq!(database.count("SELECT generation FROM idempotency_keys"), i64::try_from(life).unwrap());
        database.age_key("k", LIFE);
        // With the reaper and without.
        if life % 2 == 0 {
            assert_eq!(reaper::reap(&mut database.as_app(), 100).unwrap().forgotten, 1);
        }
    }
    assert_eq!(database.rows("charges"), 4);
    assert_eq!(database.rows("forgotten_idempotency_keys"), 1);
}

#[test]
fn a_claim_that_is_lost_in_flight_comes_back_under_the_same_key() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    client.charge("k", &with_method("pm_card_timeout")).expect_problem(503, "processor_unavailable");
    let mut superuser = database.as_superuser();
    // A standby that hasn't got the row has no trace of it either.
    for statement in ["SET session_replication_role = 'replica'", "DELETE FROM idempotency_keys"] {
        execute(&mut superuser, statement);
    }
    client.charge("k", &with_method("pm_card_timeout")).expect_problem(503, "processor_unavailable");
    client.charge("k", &with_method("pm_card_timeout")).expect(201);
    let calls = app.sandbox.calls();
    let authorized: Vec<_> = calls.iter().filter(|call| call.call == "authorize").collect();
    assert_eq!(authorized.len(), 3);
    assert!(authorized.iter().all(|call| call.key == authorized[0].key));
}

/// They may be in flight when this release takes over, and an instance of the release before may take theirs over.
#[test]
fn claims_of_the_release_before_keep_their_keys() {
    let database = TestDatabase::new();
    let sandbox = Arc::new(Sandbox::recording());
    let app = App::start_sharing(&database, Arc::clone(&sandbox), |_| {});
    let client = app.client.as_merchant(&database.merchant());
    let mut owner = database.as_owner();
    // While the release is rolled out.
    execute(&mut owner, "UPDATE idempotency_generation_start SET claims_from = 'infinity'");
    client.charge("k", &with_method("pm_card_timeout")).expect_problem(503, "processor_unavailable");
    assert_eq!(database.count("SELECT count(*) FROM idempotency_keys WHERE generation IS NULL"), 1);
    execute(&mut owner, "UPDATE idempotency_generation_start SET claims_from = '-infinity'");
    client.charge("k", &with_method("pm_card_timeout")).expect(201);
    let authorizations = || sandbox.calls().into_iter().filter(|call| call.call == "authorize");
    let keys: HashSet<_> = authorizations().map(|call| call.key).collect();
    assert_eq!(keys.len(), 1, "the retry goes on under the key of the first attempt");
    // When it's forgotten, the next claim is a new payment.
    database.age_key("k", LIFE);
    assert_eq!(reaper::reap(&mut database.as_app(), 100).unwrap().forgotten, 1);
    client.charge("k", &visa()).expect(201);
    assert!(!keys.contains(&authorizations().next_back().unwrap().key));
}

/// A trace is kept only of keys under which the processor may have been called.
#[test]
fn only_keys_that_the_processor_may_know_leave_a_trace() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| config.reaper_interval_ms = 600_000);
    let client = app.client.as_merchant(&database.merchant());
    let id = client.charge("external", &visa()).expect(201).field("id");
    client.send("PATCH", &format!("/v1/charges/{id}"), "local", &json!({"description": "x"})).expect(200);
    app.set_policy(&database, "enforcement = 'off'");
    client.charge("off", &visa()).expect(201);
    let counted =
        database.text("SELECT string_agg(key, ',') FROM idempotency_keys WHERE generation IS NOT NULL");
    assert_eq!(counted, "external");
    for key in ["external", "local"] {
        database.age_key(key, LIFE);
    }
    reaper::reap(&mut database.as_app(), 100).unwrap();
    assert_eq!(database.rows("forgotten_idempotency_keys"), 1);
    for statement in [
        "UPDATE forgotten_idempotency_keys SET generation = 7",
        "DELETE FROM forgotten_idempotency_keys",
        "INSERT INTO forgotten_idempotency_keys SELECT merchant_id, sha256('x'), 1 FROM merchants",
    ] {
        let refused = diesel::sql_query(statement).execute(&mut database.as_app()).unwrap_err();
        assert!(refused.to_string().contains("permission denied"), "{statement}");
    }
}
