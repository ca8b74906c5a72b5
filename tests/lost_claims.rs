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
        eventually("the copy", || database.copy_to(&this.name));
        this
    }

    fn url(&self) -> SecretString {
        exposed(&self.database.app_url).replace(self.database.name(), &self.name).into()
    }
}

impl Drop for Backup<'_> {
    fn drop(&mut self) {
        self.database.drop_copy(&self.name);
    }
}

fn held() -> Value {
    json!({"amount": "12.50", "currency": "USD", "payment_method": "pm_card_visa", "capture": false})
}

fn path(charge: &Response, step: &str) -> String {
    format!("/v1/charges/{}/{step}", charge.field("id"))
}

/// A message of the processor about an object, of 99.00 if its type has an amount that matters.
fn told_of(kind: &str, merchant: &Merchant, reference: &str) -> String {
    let mut data = json!({"merchant": merchant.id.to_string(), "reference": reference});
    if !kind.starts_with("payout") {
        data["amount"] = json!("99.00");
        data["currency"] = json!("USD");
    }
    json!({"type": kind, "data": data}).to_string()
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
    let first = send_all(&app.client.as_merchant(&merchant));
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

    // The processor goes on naming the lost ones, and the reconciliation knows what took their place.
    let reconcile = || {
        acquirer.wait_for_its_list();
        let output = Command::new(env!("CARGO_BIN_EXE_oncepay"))
            .args(["reconcile", "--reconcile-grace-s", "0", "--void-orphans-after-s", "0"])
            .env("DATABASE_URL", exposed(&backup.url()))
            .envs(acquirer.environment())
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let payout = first[5].field("id");
    let paid =
        app.client.delivery("paid", &told_of("payout.paid", &merchant, &payout)).send().expect(200).json();
    assert_eq!(paid["state"], "parked", "nobody has compared yet: {paid}");
    let (agrees, text) = reconcile();
    assert!(agrees && text.ends_with("Both sides agree.\n"), "{text}");
    assert_eq!(operations(), before, "nothing is voided: {text}");
    let capture = app.client.delivery("event", &told_of("charge.captured", &merchant, &first[1].field("id")));
    let captured = capture.send().expect(200).json();
    assert_eq!(captured["state"], "contradicted", "it's about the new one, of 12.50: {captured}");
    let refunded = told_of("refund.failed", &merchant, &first[4].field("id")).replace("99.00", "1.00");
    let refunded = app.client.delivery("refunded", &refunded).send().expect(200).json();
    assert_eq!(refunded["state"], "applied", "{refunded}");
    let status = |answer: &Response, of: &str| {
        client.get(&format!("/v1/{of}/{}", answer.field("id"))).expect(200).field("status")
    };
    assert_eq!(status(&answers[4], "refunds"), "failed");
    eventually("the parked event", || status(&answers[5], "payouts") == "paid");
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
    // A standby that hasn't got the row has no trace of it either.
    database.unguarded("DELETE FROM idempotency_keys");
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
    if cluster::cannot("no release before runs there") {
        return;
    }
    let database = TestDatabase::new();
    let sandbox = Arc::new(Sandbox::recording());
    let app = App::start_sharing(&database, Arc::clone(&sandbox), |_| {});
    let client = app.client.as_merchant(&database.merchant());
    let mut owner = database.as_owner();
    // It doesn't know the column.
    for statement in [
        "CREATE FUNCTION pg_temp.before() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN NEW.generation := NULL; RETURN NEW; END'",
        "CREATE TRIGGER release_before BEFORE INSERT ON idempotency_keys \
         FOR EACH ROW EXECUTE FUNCTION pg_temp.before()",
    ] {
        execute(&mut owner, statement);
    }
    client.charge("k", &with_method("pm_card_timeout")).expect_problem(503, "processor_unavailable");
    assert_eq!(database.count("SELECT count(*) FROM idempotency_keys WHERE generation IS NULL"), 1);
    execute(&mut owner, "DROP TRIGGER release_before ON idempotency_keys");
    assert_eq!(take_over_as_the_release_before(&database), 1);
    database.end_lease("k");
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

/// Runs the statement with which an instance of the release before takes a request over, and returns the number of rows
/// that it finds. It derives the processor's keys from the time of the claim.
fn take_over_as_the_release_before(database: &TestDatabase) -> usize {
    let statement = "WITH abandoned AS MATERIALIZED ( \
             SELECT merchant_id, key FROM idempotency_keys \
             WHERE lease_expires_at <= statement_timestamp() AND parked_at IS NULL \
             FOR UPDATE OF idempotency_keys SKIP LOCKED) \
         UPDATE idempotency_keys k SET claim_token = gen_random_uuid(), request_id = 'req_before', \
             attempts = k.attempts + 1, recoveries = k.recoveries + 1, \
             lease_expires_at = statement_timestamp() + interval '1 hour', \
             recover_at = statement_timestamp() + interval '1 hour' \
         FROM abandoned a WHERE k.merchant_id = a.merchant_id AND k.key = a.key RETURNING k.created_at";
    diesel::sql_query(statement).execute(&mut database.as_app()).unwrap()
}

/// It would call the processor under other keys than those that this release has called it with.
#[test]
fn the_release_before_leaves_claims_with_a_generation_alone() {
    if cluster::cannot("no release before runs there") {
        return;
    }
    let database = TestDatabase::new();
    let app = App::start(&database);
    let merchant = database.merchant();
    let client = app.client.as_merchant(&merchant);
    let operator = app.client.with_key(&database.operator_key());
    client.charge("k", &with_method("pm_card_timeout")).expect_problem(503, "processor_unavailable");
    database.end_lease("k");
    assert_eq!(take_over_as_the_release_before(&database), 0);
    let release = "UPDATE idempotency_keys SET parked_at = NULL, recoveries = 0, claim_token = uuid_v7(), \
         lease_expires_at = statement_timestamp(), recover_at = statement_timestamp() + interval '1 hour' \
         WHERE claim_token IS NOT NULL";
    assert_eq!(diesel::sql_query(release).execute(&mut database.as_app()).unwrap(), 0);
    assert_eq!(database.count("SELECT attempts FROM idempotency_keys WHERE key = 'k'"), 1);

    // An operator of this release may, and whoever takes over goes on where the first attempt stopped.
    let path = format!("/v1/operator/idempotency-keys/{}/k/release", merchant.id);
    operator.request("POST", &path).idempotency_key("release").send().expect(200);
    client.charge("k", &with_method("pm_card_timeout")).expect(201);
    assert_eq!(database.count("SELECT takeovers FROM idempotency_keys WHERE key = 'k'"), 2);
    let calls = app.sandbox.calls();
    let keys: HashSet<_> =
        calls.iter().filter(|call| call.call == "authorize").map(|call| call.key.clone()).collect();
    assert_eq!(keys.len(), 1);
}

/// Nor can it stop the reaper with one, or make a key unusable.
#[test]
fn the_services_role_cannot_make_up_a_generation() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| config.reaper_interval_ms = 600_000);
    let client = app.client.as_merchant(&database.merchant());
    client.charge("k", &visa()).expect(201);
    let mut service = database.as_app();
    let generations = || {
        database.text("SELECT string_agg(key || '=' || generation, ' ' ORDER BY key COLLATE \"C\") FROM idempotency_keys")
    };
    for (key, made_up) in [("a", i32::MAX), ("b", i32::MIN), ("c", i32::MAX - 1)] {
        let copy = format!(
            "INSERT INTO idempotency_keys (merchant_id, key, state, operation, fingerprint_version, fingerprint, \
                 request_id, request_method, request_path, request_query, request_body, resource_type, resource_id, \
                 attempts, recovery_point, response_status, response_headers, response_body, created_at, \
                 completed_at, expires_at, generation) \
             SELECT merchant_id, '{key}', state, operation, fingerprint_version, fingerprint, request_id, request_method, \
                 request_path, request_query, request_body, NULL, NULL, attempts, recovery_point, \
                 response_status, response_headers, response_body, created_at, completed_at, expires_at, {made_up} \
             FROM idempotency_keys WHERE key = 'k'"
        );
        execute(&mut service, &copy);
    }
    assert_eq!(generations(), "a=0 b=0 c=0 k=0");
    let refused =
        diesel::sql_query("UPDATE idempotency_keys SET generation = 7").execute(&mut service).unwrap_err();
    assert!(refused.to_string().contains("permission denied"), "{refused}");
    client.charge("begun", &with_method("pm_card_timeout")).expect_problem(503, "processor_unavailable");
    let last = format!("UPDATE idempotency_keys SET generation = {} WHERE key = 'begun'", i32::MAX);
    let refused = diesel::sql_query(last).execute(&mut database.as_owner()).unwrap_err();
    assert!(refused.to_string().contains("idempotency_keys_generation"), "{refused}");
    client.charge("begun", &with_method("pm_card_timeout")).expect(201);

    for key in ["a", "b", "c", "k"] {
        database.age_key(key, LIFE);
    }
    assert_eq!(reaper::reap(&mut service, 100).unwrap().forgotten, 4);
    for key in ["a", "b", "c", "k"] {
        client.charge(key, &visa()).expect(201);
    }
    assert_eq!(generations(), "a=1 b=1 begun=0 c=1 k=1");
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
