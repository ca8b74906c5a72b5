//! Requests that died are finished: by a takeover, by the recovery worker, or with an operator's help.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use oncepay::config::Config;
use oncepay::processor::Sandbox;
use serde_json::json;

use crate::support::*;

/// A worker that looks all the time and waits for nobody.
fn eager(config: &mut Config) {
    config.recovery_interval_ms = 20;
    config.recovery_delay_ms = 1;
    config.metrics_interval_ms = 50;
}

/// Makes the service fail to finish any charge, as a bug of ours would.
pub fn break_events(database: &TestDatabase) {
    execute(&mut database.as_owner(), "ALTER TABLE events ADD CONSTRAINT bug CHECK (false) NOT VALID");
}

pub fn repair_events(database: &TestDatabase) {
    execute(&mut database.as_owner(), "ALTER TABLE events DROP CONSTRAINT bug");
}

fn status(client: &Client, key: &str) -> serde_json::Value {
    client.get(&format!("/v1/idempotency-keys/{key}")).expect(200).json()
}

#[test]
fn what_a_client_gave_up_is_finished_without_it() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, eager);
    let client = app.client.as_merchant(&database.merchant());
    let refused = client.charge("k", &with_method("pm_card_timeout"));
    refused.expect_problem(503, "processor_unavailable");
    eventually("the recovery", || status(&client, "k")["status"] == "completed");
    assert_eq!(database.rows("charges"), 1);
    // Should the client come back after all, it gets the answer, and finds its own request behind it.
    let answer = client.charge("k", &with_method("pm_card_timeout")).expect(201);
    assert!(answer.is_replay());
    let first = database.text("SELECT request_id FROM idempotency_keys WHERE key = 'k'");
    assert_eq!(answer.header("Original-Request-Id"), Some(first.as_str()));
    let keys: std::collections::HashSet<_> = app
        .sandbox
        .calls()
        .into_iter()
        .filter(|call| call.call == "authorize")
        .map(|call| call.key)
        .collect();
    assert_eq!(keys.len(), 1, "one operation for the processor");
    let metrics = app.client.metrics();
    let labels = [("operation", "charges.create"), ("outcome", "finished")];
    assert_eq!(metrics.value("oncepay_idempotency_recoveries_total", &labels), 1.0);
    assert_eq!(metrics.value("oncepay_idempotency_takeovers_total", &[]), 1.0);
}

#[test]
fn the_worker_leaves_a_failed_request_to_its_client_for_a_while() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| {
        eager(config);
        config.recovery_delay_ms = 5_000;
    });
    let client = app.client.as_merchant(&database.merchant());
    client.charge("k", &with_method("pm_card_timeout")).expect_problem(503, "processor_unavailable");
    thread::sleep(Duration::from_millis(700));
    assert_eq!(status(&client, "k")["attempts"], 1);
    eventually("the recovery", || status(&client, "k")["status"] == "completed");
}

#[test]
fn the_oldest_is_recovered_first() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    {
        let app = App::start(&database);
        let client = app.client.as_merchant(&merchant);
        for key in ["c", "a", "d", "b"] {
            client
                .charge(key, &with_method("pm_card_error_once"))
                .expect_problem(503, "processor_unavailable");
        }
        for (number, key) in ["a", "b", "c", "d"].into_iter().enumerate() {
            database.age_key(key, 1_000 - 100 * number as i64);
            database.end_lease(key);
        }
    }
    let app = App::start_with(&database, |config| {
        eager(config);
        config.recovery_concurrency = 1;
    });
    let completed = "SELECT count(*) FROM idempotency_keys WHERE state = 'completed'";
    eventually("all recovered", || database.count(completed) == 4);
    let by_completion = "SELECT string_agg(key, ' ' ORDER BY completed_at) FROM idempotency_keys";
    assert_eq!(database.text(by_completion), "a b c d");
    drop(app);
}

#[test]
fn any_number_of_workers_finish_each_request_once() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    {
        let app = App::start(&database);
        let client = app.client.as_merchant(&merchant);
        for number in 0..60 {
            let key = format!("k{number}");
            client.charge(&key, &with_method("pm_card_timeout")).expect_problem(503, "processor_unavailable");
            database.end_lease(&key);
        }
    }
    let sandbox = Arc::new(Sandbox::recording());
    let instances: Vec<_> =
        (0..3).map(|_| App::start_sharing(&database, Arc::clone(&sandbox), eager)).collect();
    eventually("all recovered", || {
        database.count("SELECT count(*) FROM idempotency_keys WHERE state = 'completed'") == 60
    });
    assert_eq!(database.rows("charges"), 60);
    assert_eq!(
        database.count("SELECT max(attempts) FROM idempotency_keys"),
        2,
        "nobody took what another had"
    );
    let finished = || -> f64 {
        let of = |app: &App| {
            app.client.metrics().value("oncepay_idempotency_recoveries_total", &[("outcome", "finished")])
        };
        instances.iter().map(of).sum()
    };
    // Each is counted a moment after its commit.
    eventually("the last count", || finished() >= 60.0);
    assert_eq!(finished(), 60.0);
    let fenced: f64 = instances
        .iter()
        .map(|app| app.client.metrics().value("oncepay_idempotency_fenced_commits_total", &[]))
        .sum();
    assert_eq!(fenced, 0.0);
}

#[test]
fn a_poison_request_is_parked_and_seen_and_an_operator_retries_it() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| {
        eager(config);
        config.recovery_attempts_max = 3;
    });
    let client = app.client.as_merchant(&database.merchant());
    let operator = app.client.with_key(&database.operator_key());
    break_events(&database);
    client.charge("k/1", &visa()).expect_problem(500, "internal");
    let list = |query: &str| {
        let list = operator.get(&format!("/v1/operator/idempotency-keys{query}")).expect(200).json();
        list["data"].as_array().unwrap().clone()
    };
    eventually("the parking", || list("?status=parked").len() == 1);
    // Others are not held up by it, and it isn't tried any more.
    repair_events(&database);
    client.charge("other", &visa()).expect(201);
    let parked = list("?status=parked").remove(0);
    assert_eq!(parked["key"], "k/1");
    assert_eq!(parked["status"], "in_progress");
    assert_eq!(parked["operation"], "charges.create");
    assert_eq!(parked["recoveries"], 3);
    assert_eq!(parked["attempts"], 4);
    assert_eq!(parked["last_error"], "internal");
    assert_eq!(parked["resource"], json!(null), "it was never made");
    thread::sleep(Duration::from_millis(200));
    assert_eq!(list("?status=parked"), std::slice::from_ref(&parked), "left alone");
    eventually("the metrics", || app.client.metrics().value("oncepay_idempotency_parked", &[]) == 1.0);
    assert_eq!(app.client.metrics().value("oncepay_idempotency_parkings_total", &[]), 1.0);
    let labels = [("operation", "charges.create"), ("outcome", "failed")];
    assert_eq!(app.client.metrics().value("oncepay_idempotency_recoveries_total", &labels), 2.0);
    // Its client is told that it takes longer.
    let refused = client.charge("k/1", &visa()).expect_problem(409, "idempotency_request_in_progress");
    assert_eq!(refused.header("Retry-After"), Some("60"));
    let audit = operator.get("/v1/operator/audit").expect(200).json();
    assert_eq!(audit["clean"], false, "the audit shows it");

    let path = format!("/v1/operator/idempotency-keys/{}/k%2F1", parked["merchant_id"].as_str().unwrap());
    assert_eq!(operator.get(&path).expect(200).json(), parked);
    let retried = operator.send("POST", &format!("{path}/retry"), "r", &json!({})).expect(200).json();
    assert_eq!(retried["parked_at"], json!(null));
    eventually("the recovery", || operator.get(&path).expect(200).json()["status"] == "completed");
    let answer = client.charge("k/1", &visa()).expect(201);
    assert!(answer.is_replay());
    let seen = client.get("/v1/idempotency-keys/k%2F1").expect(200).json();
    assert_eq!(seen["resource"]["id"], answer.json()["id"]);
    operator
        .send("POST", &format!("{path}/retry"), "again", &json!({}))
        .expect_problem(409, "idempotency_key_not_in_progress");
}

/// Parked requests must not depend on the patience of their clients.
#[test]
fn a_client_that_keeps_retrying_does_not_keep_a_poison_request_from_being_parked() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| {
        config.recovery_interval_ms = 50;
        config.recovery_delay_ms = 300;
        config.recovery_attempts_max = 2;
    });
    let client = app.client.as_merchant(&database.merchant());
    break_events(&database);
    let parked = "SELECT count(*) FROM idempotency_keys WHERE parked_at IS NOT NULL";
    eventually("the parking", || {
        let _ = client.charge("k", &visa());
        thread::sleep(Duration::from_millis(100));
        database.count(parked) == 1
    });
    client.charge("k", &visa()).expect_problem(409, "idempotency_request_in_progress");
    // Parked means that nobody waits for it either.
    let started = Instant::now();
    let request = client.request("POST", "/v1/charges").idempotency_key("k").header("Prefer", "wait=7");
    let refused = request.json(&visa()).send().expect_problem(409, "idempotency_request_in_progress");
    assert_eq!(refused.header("Preference-Applied"), None);
    assert!(started.elapsed() < Duration::from_secs(2));
    repair_events(&database);
    execute(&mut database.as_owner(), "UPDATE idempotency_keys SET parked_at = NULL, recoveries = 0");
    eventually("the recovery", || status(&client, "k")["status"] == "completed");
}

#[test]
fn requests_that_take_their_time_do_not_hold_up_the_others() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    {
        let app = App::start(&database);
        let client = app.client.as_merchant(&merchant);
        for number in 0..8 {
            // The first attempt fails without taking a second; from then on each takes two.
            let key = format!("slow{number}");
            client
                .charge(&key, &with_method("pm_card_error_once"))
                .expect_problem(503, "processor_unavailable");
        }
        let slow = "UPDATE idempotency_keys SET request_body = convert_to(replace(convert_from(request_body, 'UTF8'), 'error_once', 'slow'), 'UTF8')";
        execute(&mut database.as_owner(), slow);
        client
            .charge("quick", &with_method("pm_card_error_once"))
            .expect_problem(503, "processor_unavailable");
        for key in (0..8).map(|number| format!("slow{number}")).chain(["quick".to_owned()]) {
            database.end_lease(&key);
        }
    }
    // The slow ones never come to an end: they're given up after half a second each time.
    let app = App::start_with(&database, |config| {
        eager(config);
        config.processor_timeout_ms = 500;
        config.lease_ms = 1_000;
        config.recovery_delay_ms = 100;
        config.recovery_concurrency = 2;
    });
    let client = app.client.as_merchant(&merchant);
    let quick = Instant::now();
    eventually("the quick one's recovery", || status(&client, "quick")["status"] == "completed");
    println!("the quick one was finished after {:?}", quick.elapsed());
    assert!(quick.elapsed() < Duration::from_secs(15));
}

/// The attempt was begun before the operator came, and fails after that.
#[test]
fn an_operators_retry_outlasts_the_attempt_that_was_under_way() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    {
        let app = App::start(&database);
        let client = app.client.as_merchant(&merchant);
        client.charge("k", &with_method("pm_card_error_once")).expect_problem(503, "processor_unavailable");
        let slow = "UPDATE idempotency_keys SET request_body = convert_to(replace(convert_from(request_body, 'UTF8'), 'error_once', 'slow'), 'UTF8')";
        execute(&mut database.as_owner(), slow);
        database.end_lease("k");
    }
    let app = App::start_with(&database, |config| {
        eager(config);
        config.processor_timeout_ms = 1_000;
        config.lease_ms = 1_500;
        config.recovery_attempts_max = 1;
        config.recovery_delay_ms = 60_000;
    });
    let operator = app.client.with_key(&database.operator_key());
    let path = format!("/v1/operator/idempotency-keys/{}/k", merchant.id);
    let key = || operator.get(&path).expect(200).json();
    eventually("the attempt", || key()["recoveries"] == 1);
    operator.send("POST", &format!("{path}/retry"), "r", &json!({})).expect(200);
    // The one under way fails; another one follows, and that is the one which is parked.
    eventually("the end of the second", || key()["attempts"] == 3 && !key()["parked_at"].is_null());
    assert_eq!(key()["recoveries"], 1);
    execute(&mut database.as_owner(), "UPDATE idempotency_keys SET parked_at = NULL WHERE key = 'k'");
}

#[test]
fn an_operator_releases_a_parked_request_to_its_client() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| {
        eager(config);
        config.recovery_attempts_max = 1;
    });
    let merchant = database.merchant();
    let client = app.client.as_merchant(&merchant);
    let operator = app.client.with_key(&database.operator_key());
    break_events(&database);
    client.charge("k", &visa()).expect_problem(500, "internal");
    let path = format!("/v1/operator/idempotency-keys/{}/k", merchant.id);
    eventually("the parking", || !operator.get(&path).expect(200).json()["parked_at"].is_null());
    repair_events(&database);
    // No body is needed.
    operator.request("POST", &format!("{path}/release")).idempotency_key("r").send().expect(200);
    thread::sleep(Duration::from_millis(200));
    assert_eq!(status(&client, "k")["status"], "in_progress", "the worker leaves it to the client");
    assert!(!client.charge("k", &visa()).expect(201).is_replay());
    for (path, key) in [
        ("/v1/operator/idempotency-keys/mer_00000000000000000000000000000000/x/retry", "a"),
        ("/v1/operator/idempotency-keys/nobody/k/retry", "b"),
        ("/v1/operator/idempotency-keys/nobody/k/release", "c"),
        // Operators' keys are under the nil merchant, and this one is the request's own.
        ("/v1/operator/idempotency-keys/mer_00000000000000000000000000000000/own/release", "own"),
    ] {
        operator.send("POST", path, key, &json!({})).expect_problem(404, "idempotency_key_not_found");
    }
    client
        .request("POST", &format!("{path}/release"))
        .idempotency_key("r")
        .send()
        .expect_problem(403, "operator_key_required");
}

#[test]
fn a_released_owner_that_is_alive_after_all_commits_nothing() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let app = App::start(&database);
    let operator = app.client.with_key(&database.operator_key());
    // Its lease would live for another half minute.
    let frozen = Process::start(&database, &[("ONCEPAY_FAULT", "stop:after_processor")]);
    let request = {
        let client = frozen.client.as_merchant(&merchant);
        thread::spawn(move || client.charge("k", &visa()))
    };
    frozen.wait_until_stopped();
    let client = app.client.as_merchant(&merchant);
    client.charge("k", &visa()).expect_problem(409, "idempotency_request_in_progress");
    let path = format!("/v1/operator/idempotency-keys/{}/k/release", merchant.id);
    operator.send("POST", &path, "r", &json!({})).expect(200);
    frozen.go_on();
    // It hurries to commit, before the client is back.
    request.join().unwrap().expect_problem(409, "idempotency_request_in_progress");
    assert_eq!(database.rows("charges"), 0);
    assert!(!client.charge("k", &visa()).expect(201).is_replay());
}

#[test]
fn a_request_that_kills_its_worker_is_parked_too() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    {
        let app = App::start(&database);
        let client = app.client.as_merchant(&merchant);
        client.charge("k", &with_method("pm_card_timeout")).expect_problem(503, "processor_unavailable");
        database.end_lease("k");
    }
    let settings = [
        ("ONCEPAY_RECOVERY_INTERVAL_MS", "20"),
        ("ONCEPAY_RECOVERY_DELAY_MS", "1"),
        ("ONCEPAY_RECOVERY_ATTEMPTS_MAX", "2"),
        ("ONCEPAY_LEASE_MS", "700"),
        ("ONCEPAY_PROCESSOR_TIMEOUT_MS", "200"),
    ];
    for _ in 0..2 {
        let doomed = Process::start(
            &database,
            &[&settings[..], &[("ONCEPAY_FAULT", "kill:before_processor")]].concat(),
        );
        assert!(doomed.was_killed());
    }
    let _healthy = Process::start(&database, &settings);
    let parked = "SELECT count(*) FROM idempotency_keys WHERE parked_at IS NOT NULL AND recoveries = 2 AND attempts = 3";
    eventually("the parking", || database.count(parked) == 1);
    let app = App::start_with(&database, eager);
    let operator = app.client.with_key(&database.operator_key());
    let path = format!("/v1/operator/idempotency-keys/{}/k/retry", merchant.id);
    operator.send("POST", &path, "r", &json!({})).expect(200);
    eventually("the recovery", || database.rows("charges") == 1);
}

#[test]
fn a_stored_request_that_cannot_be_read_any_more_is_parked() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let body = {
        let app = App::start(&database);
        let client = app.client.as_merchant(&merchant);
        client.charge("k", &with_method("pm_card_timeout")).expect_problem(503, "processor_unavailable");
        let body = database.text("SELECT encode(request_body, 'hex') FROM idempotency_keys");
        // As after a deploy that takes fewer payment methods.
        execute(&mut database.as_owner(), "UPDATE idempotency_keys SET request_body = '{}'");
        database.end_lease("k");
        body
    };
    let app = App::start_with(&database, |config| {
        eager(config);
        config.recovery_attempts_max = 2;
    });
    let client = app.client.as_merchant(&merchant);
    let parked = "SELECT count(*) FROM idempotency_keys WHERE parked_at IS NOT NULL";
    eventually("the parking", || database.count(parked) == 1);
    execute(
        &mut database.as_owner(),
        &format!("UPDATE idempotency_keys SET request_body = '\\x{body}', parked_at = NULL, recoveries = 0"),
    );
    eventually("the recovery", || status(&client, "k")["status"] == "completed");
}

#[test]
fn operations_that_this_release_does_not_know_are_left_to_others() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, eager);
    let client = app.client.as_merchant(&database.merchant());
    client.get("/v1/balance").expect(200);
    execute(
        &mut database.as_owner(),
        "INSERT INTO idempotency_keys (merchant_id, key, state, operation, fingerprint_version, fingerprint, request_id, \
             request_method, request_path, request_query, request_body, claim_token, lease_expires_at, recover_at, \
             attempts, recovery_point, created_at, expires_at) \
         SELECT merchant_id, 'k', 'in_progress', 'loans.create', 1, sha256('x'), 'req_1', 'POST', '/v1/loans', '', '{}', \
             gen_random_uuid(), now(), now(), 1, 'started', now(), now() + interval '1 day' FROM merchants",
    );
    thread::sleep(Duration::from_millis(300));
    assert_eq!(status(&client, "k")["attempts"], 1);
}

#[test]
fn an_owner_that_was_stopped_past_its_lease_commits_nothing_and_tells_the_winners_answer() {
    // The lease ends when the test says so.
    let settings = [("ONCEPAY_LEASE_MS", "30000"), ("ONCEPAY_RECOVERY_INTERVAL_MS", "600000")];
    for point in ["after_claim", "after_processor"] {
        let database = TestDatabase::new();
        let merchant = database.merchant();
        let fault = format!("stop:{point}");
        let slow = Process::start(&database, &[&settings[..], &[("ONCEPAY_FAULT", &fault)]].concat());
        let winner = Process::start(&database, &settings);
        let request = {
            let client = slow.client.as_merchant(&merchant);
            thread::spawn(move || client.charge("k", &visa()))
        };
        slow.wait_until_stopped();
        let client = winner.client.as_merchant(&merchant);
        client.charge("k", &visa()).expect_problem(409, "idempotency_request_in_progress");
        database.end_lease("k");
        let answer = client.charge("k", &visa()).expect(201);
        assert!(!answer.is_replay(), "{point}");
        slow.go_on();
        let late = request.join().unwrap().expect(201);
        assert!(late.is_replay(), "{point}");
        assert_eq!(late.body, answer.body, "{point}");
        assert_eq!((database.rows("charges"), database.rows("journal_entries")), (1, 1), "{point}");
        assert_eq!(
            slow.client.metrics().value("oncepay_idempotency_fenced_commits_total", &[]),
            1.0,
            "{point}"
        );
    }
}

#[test]
fn a_lost_answer_can_be_looked_up() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let merchant = database.merchant();
    let client = app.client.as_merchant(&merchant);
    client.get("/v1/idempotency-keys/k").expect_problem(404, "idempotency_key_not_found");
    client.charge("k", &with_method("pm_card_timeout")).expect_problem(503, "processor_unavailable");
    let begun = status(&client, "k");
    let begun = |name: &str| begun[name].clone();
    assert_eq!((begun("status"), begun("recovery_point")), (json!("in_progress"), json!("started")));
    assert_eq!((begun("operation"), begun("attempts")), (json!("charges.create"), json!(1)));
    for absent in ["response_status", "resource", "completed_at"] {
        assert_eq!(begun(absent), json!(null), "{absent}");
    }
    let answer = client.charge("k", &with_method("pm_card_timeout")).expect(201);
    let done = status(&client, "k");
    let id = answer.field("id");
    assert_eq!(done["resource"], json!({"type": "charge", "id": id, "url": format!("/v1/charges/{id}")}));
    assert_eq!((&done["status"], &done["response_status"]), (&json!("completed"), &json!(201)));
    assert_eq!((&done["attempts"], &done["recovery_point"]), (&json!(2), &json!("finished")));
    client.get(done["resource"]["url"].as_str().unwrap()).expect(200);
    for time in ["created_at", "completed_at", "expires_at"] {
        assert!(chrono::DateTime::parse_from_rfc3339(done[time].as_str().unwrap()).is_ok(), "{time}");
    }
    // Refusals have an answer but no resource; declines have the failed charge.
    let payout = json!({"amount": "99.00", "currency": "USD", "destination": "ba"});
    client.send("POST", "/v1/payouts", "p", &payout).expect_problem(422, "insufficient_balance");
    assert_eq!(
        (&status(&client, "p")["response_status"], &status(&client, "p")["resource"]),
        (&json!(422), &json!(null))
    );
    client.charge("d", &with_method("pm_card_declined")).expect_problem(402, "card_declined");
    assert_eq!(status(&client, "d")["resource"]["type"], "charge");
    // A stranger's key is as if it weren't there.
    let stranger = app.client.as_merchant(&database.merchant());
    stranger.get("/v1/idempotency-keys/k").expect_problem(404, "idempotency_key_not_found");
    for nonsense in ["%20", "%C3%A9", &"k".repeat(256)] {
        client
            .get(&format!("/v1/idempotency-keys/{nonsense}"))
            .expect_problem(404, "idempotency_key_not_found");
    }
    for key in ["a/b", "a%b", "a?b#c", "~!@$&'()*+,;=:", "..", "a%2Fb"] {
        let key = if key == ".." { "..." } else { key };
        client.charge(key, &visa()).expect(201);
        let encoded: String = key.bytes().map(|byte| format!("%{byte:02X}")).collect();
        assert_eq!(status(&client, &encoded)["key"], key);
    }
}

#[test]
fn operators_list_what_is_stuck() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let merchants = [database.merchant(), database.merchant()];
    let clients = merchants.each_ref().map(|merchant| app.client.as_merchant(merchant));
    let operator = app.client.with_key(&database.operator_key());
    for (number, key) in ["a", "b", "c"].into_iter().enumerate() {
        clients[number % 2]
            .charge(key, &with_method("pm_card_timeout"))
            .expect_problem(503, "processor_unavailable");
        database.age_key(key, 300 - 100 * number as i64);
    }
    clients[0].charge("done", &visa()).expect(201);
    clients[1].charge("old", &visa()).expect(201);
    database.age_key("old", 24 * 60 * 60);
    let keys = |query: &str| -> Vec<String> {
        let list = operator.get(&format!("/v1/operator/idempotency-keys{query}")).expect(200).json();
        list["data"].as_array().unwrap().iter().map(|key| key["key"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(keys(""), ["c", "b", "a"]);
    assert_eq!(keys("?status=in_progress&older_than=150"), ["b", "a"]);
    assert_eq!(keys("?older_than=4m"), ["a"]);
    assert_eq!(keys("?older_than=9999999999d"), Vec::<String>::new());
    let time = (chrono::Utc::now() - chrono::Duration::seconds(250)).format("%Y-%m-%dT%H:%M:%SZ");
    assert_eq!(keys(&format!("?older_than={time}")), ["a"]);
    for (key, expected) in [("a", &["a"][..]), ("b", &["b", "a"])] {
        let shown =
            clients[usize::from(key == "b")].get(&format!("/v1/idempotency-keys/{key}")).field("created_at");
        assert_eq!(keys(&format!("?older_than={shown}")), expected, "a time as shown includes its key");
    }
    assert_eq!(keys("?status=abandoned"), ["c", "b", "a"]);
    assert_eq!(keys("?status=parked"), Vec::<String>::new());
    assert_eq!(keys(&format!("?merchant_id={}", merchants[1].id)), ["b"]);
    assert_eq!(keys("?operation=refunds.create"), Vec::<String>::new());
    assert_eq!(keys("?operation=charges.create&status=completed"), ["done"]);
    eventually("the tombstone", || keys("?status=expired") == ["old"]);

    let page = operator.get("/v1/operator/idempotency-keys?limit=2").expect(200).json();
    assert_eq!(page["has_more"], true);
    let last = page["data"][1]["id"].as_str().unwrap();
    // Between the pages the key of the cursor is finished: the next page is the same nevertheless.
    clients[1].charge("b", &with_method("pm_card_timeout")).expect(201);
    assert_eq!(keys(&format!("?limit=2&starting_after={last}")), ["a"]);
    assert_eq!(keys(&format!("?limit=2&ending_before={last}")), ["c"]);
    for query in ["?status=stuck", "?older_than=long", "?merchant_id=me", "?starting_after=x", "?x=1"] {
        operator
            .get(&format!("/v1/operator/idempotency-keys{query}"))
            .expect_problem(422, "validation_failed");
    }
    let gone = format!("?starting_after={}/gone", merchants[0].id);
    operator.get(&format!("/v1/operator/idempotency-keys{gone}")).expect_problem(422, "validation_failed");
    clients[0].get("/v1/operator/idempotency-keys").expect_problem(403, "operator_key_required");
}

/// How long the worker takes when there's nothing to wait for.
#[test]
fn a_death_is_mended_within_the_rest_of_its_lease_and_one_interval() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let settings = [
        ("ONCEPAY_LEASE_MS", "1000"),
        ("ONCEPAY_PROCESSOR_TIMEOUT_MS", "500"),
        ("ONCEPAY_RECOVERY_INTERVAL_MS", "100"),
    ];
    let healthy = Process::start(&database, &settings);
    let doomed =
        Process::start(&database, &[&settings[..], &[("ONCEPAY_FAULT", "kill:after_processor")]].concat());
    let client = doomed.client.as_merchant(&merchant);
    let request = client.request("POST", "/v1/charges").idempotency_key("k").json(&visa());
    assert!(request.try_send().is_err());
    let died = Instant::now();
    assert!(doomed.was_killed());
    let client = healthy.client.as_merchant(&merchant);
    eventually("the recovery", || status(&client, "k")["status"] == "completed");
    println!("mended after {:?}", died.elapsed());
    assert!(died.elapsed() < Duration::from_secs(6));
}
