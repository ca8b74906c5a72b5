//! Bugs that other implementations of idempotency keys have had, each as a test that would have shown it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use diesel::{Connection, RunQueryDsl};
use oncepay::config::Config;
use oncepay::idempotency::workers::reaper;
use oncepay::processor::Sandbox;
use serde_json::{Value, json};

use crate::support::*;

fn start() -> (TestDatabase, App, Client) {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    (database, app, client)
}

/// All at the same time.
fn at_once(requests: Vec<impl FnOnce() -> Response + Send + 'static>) -> Vec<Response> {
    let threads: Vec<_> = requests.into_iter().map(thread::spawn).collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

#[test]
fn the_loser_of_the_unique_race_got_500() {
    let (database, _app, client) = start();
    for round in 0..10 {
        let requests = (0..30)
            .map(|_| {
                let client = client.clone();
                move || client.charge(&format!("k{round}"), &visa())
            })
            .collect();
        for answer in at_once(requests) {
            assert!(matches!(answer.status, 201 | 409), "{}: {}", answer.status, answer.text());
        }
        assert_eq!(database.rows("charges"), round + 1);
    }
}

#[test]
fn the_mismatch_race_committed_the_write_that_it_refused() {
    let (database, _app, client) = start();
    let path = format!("/v1/charges/{}", client.charge("c", &visa()).expect(201).field("id"));
    for round in 0..10 {
        let requests = (0..12)
            .map(|number| {
                let (client, path) = (client.clone(), path.clone());
                move || {
                    let patch = json!({"description": format!("{round}/{number}")});
                    client.send("PATCH", &path, &format!("k{round}"), &patch)
                }
            })
            .collect();
        let answers = at_once(requests);
        let won: Vec<_> = answers.iter().filter(|answer| answer.status == 200).collect();
        assert_eq!(won.len(), 1);
        assert_eq!(client.get(&path).expect(200).json()["description"], won[0].json()["description"]);
        let updates = database.count("SELECT count(*) FROM events WHERE type = 'charge.updated'");
        assert_eq!(updates, round + 1);
    }
}

#[test]
fn a_crashed_owner_blocked_the_key_for_ever() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let settings = [
        ("ONCEPAY_LEASE_MS", "700"),
        ("ONCEPAY_PROCESSOR_TIMEOUT_MS", "200"),
        ("ONCEPAY_RECOVERY_INTERVAL_MS", "600000"),
    ];
    let doomed =
        Process::start(&database, &[&settings[..], &[("ONCEPAY_FAULT", "kill:after_claim")]].concat());
    let client = doomed.client.as_merchant(&merchant);
    assert!(client.request("POST", "/v1/charges").idempotency_key("k").json(&visa()).try_send().is_err());
    assert!(doomed.was_killed());
    let healthy = Process::start(&database, &settings);
    let client = healthy.client.as_merchant(&merchant);
    eventually("the takeover", || client.charge("k", &visa()).status == 201);
}

#[test]
fn a_live_but_slow_owner_was_robbed() {
    // A lease can't be set shorter than what an attempt may take …
    let config = Config {
        lease_ms: 10_000,
        processor_timeout_ms: 10_000,
        ..Config::for_database("postgres://h/d".into(), "m".repeat(32).into())
    };
    assert!(config.validate().is_err());
    // … so nobody takes a request from an owner that is at work, neither a client nor the worker.
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| {
        config.processor_timeout_ms = 5_000;
        config.lease_ms = 6_000;
        config.recovery_interval_ms = 20;
    });
    let client = app.client.as_merchant(&database.merchant());
    let owner = {
        let client = client.clone();
        thread::spawn(move || client.charge("k", &with_method("pm_card_slow")))
    };
    eventually("the claim", || database.rows("idempotency_keys") == 1);
    while !owner.is_finished() {
        let refused = client.charge("k", &with_method("pm_card_slow"));
        assert!(matches!(refused.status, 409 | 201), "{}", refused.text());
        thread::sleep(Duration::from_millis(100));
    }
    assert!(!owner.join().unwrap().expect(201).is_replay());
    assert_eq!(database.count("SELECT attempts FROM idempotency_keys"), 1);
    assert_eq!(app.runs(), 1);
}

#[test]
fn the_reaper_handed_out_a_claim_without_a_row() {
    let (database, app, client) = start();
    client.get("/v1/idempotency-policies").expect(200);
    app.set_policy(&database, "on_expired = 'execute', tombstone_seconds = 0");
    let stop = Arc::new(AtomicBool::new(false));
    let reapers: Vec<_> = (0..2)
        .map(|_| {
            let (url, stop) = (database.app_url.clone(), Arc::clone(&stop));
            thread::spawn(move || {
                let mut conn = oncepay::storage::db::connect(&url).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    reaper::reap(&mut conn, 10).unwrap();
                }
            })
        })
        .collect();
    for round in 0..60 {
        database.age_key("k", 24 * 60 * 60);
        let requests = (0..4)
            .map(|_| {
                let client = client.clone();
                move || client.charge("k", &visa())
            })
            .collect();
        let answers = at_once(requests);
        let executed: Vec<_> =
            answers.iter().filter(|answer| answer.status == 201 && !answer.is_replay()).collect();
        assert_eq!(executed.len(), 1, "round {round}");
        let kept = client.charge("k", &visa()).expect(201);
        assert!(kept.is_replay(), "round {round}: an answer was given and not kept");
        assert_eq!(kept.body, executed[0].body);
        assert_eq!(database.rows("charges"), round + 1);
    }
    stop.store(true, Ordering::Relaxed);
    reapers.into_iter().for_each(|reaper| reaper.join().unwrap());
}

#[test]
fn a_lease_was_born_old_in_a_long_transaction() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let settings = [
        ("ONCEPAY_LEASE_MS", "3000"),
        ("ONCEPAY_PROCESSOR_TIMEOUT_MS", "2500"),
        ("ONCEPAY_RECOVERY_INTERVAL_MS", "600000"),
    ];
    let healthy = Process::start(&database, &settings);
    healthy.client.as_merchant(&merchant).charge("c", &visa()).expect(201);
    let stopped =
        Process::start(&database, &[&settings[..], &[("ONCEPAY_FAULT", "stop:before_processor")]].concat());
    let request = {
        let client = stopped.client.as_merchant(&merchant);
        let body = json!({"amount": "1.00", "currency": "USD", "destination": "ba"});
        move || client.send("POST", "/v1/payouts", "k", &body)
    };
    // The claim's transaction waits for the account's lock.
    let request = database
        .as_owner()
        .transaction(|conn| {
            lock_rows(conn, "ledger_accounts", "true")?;
            let request = thread::spawn(request);
            thread::sleep(Duration::from_millis(1_500));
            Ok::<_, diesel::result::Error>(request)
        })
        .unwrap();
    stopped.wait_until_stopped();
    let left_ms = database.count(
        "SELECT extract(epoch FROM lease_expires_at - statement_timestamp()) * 1000 FROM idempotency_keys WHERE key = 'k'",
    );
    stopped.go_on();
    request.join().unwrap().expect(201);
    assert!(left_ms > 1_600, "of 3000 ms, {left_ms} ms were left when the work began");
}

#[test]
fn a_5xx_was_stored_and_replayed() {
    let (database, _app, client) = start();
    execute(&mut database.as_owner(), "ALTER TABLE events ADD CONSTRAINT bug CHECK (false) NOT VALID");
    client.charge("k", &visa()).expect_problem(500, "internal");
    client.charge("k", &visa()).expect_problem(500, "internal");
    execute(&mut database.as_owner(), "ALTER TABLE events DROP CONSTRAINT bug");
    assert!(!client.charge("k", &visa()).expect(201).is_replay());
    // The database wouldn't take one either.
    let stored = "UPDATE idempotency_keys SET state = 'completed', recovery_point = 'finished', claim_token = NULL, \
                  lease_expires_at = NULL, recover_at = NULL, response_status = 503, response_headers = '[]', \
                  response_body = '', completed_at = now() WHERE key = 't'";
    client.charge("t", &with_method("pm_card_timeout")).expect_problem(503, "processor_unavailable");
    let error = diesel::sql_query(stored).execute(&mut database.as_app()).unwrap_err().to_string();
    assert!(error.contains("idempotency_keys_only_final_answers"), "{error}");
}

#[test]
fn one_tenant_got_the_replay_of_another() {
    let (database, app, alice) = start();
    let bob = app.client.as_merchant(&database.merchant());
    let (first, second) = (alice.charge("k", &visa()).expect(201), bob.charge("k", &visa()).expect(201));
    assert!(!second.is_replay());
    assert_ne!(first.field("id"), second.field("id"));
    assert_eq!(alice.charge("k", &visa()).expect(201).body, first.body);
    assert_eq!(bob.charge("k", &visa()).expect(201).body, second.body);
    bob.get(&format!("/v1/charges/{}", first.field("id"))).expect_problem(404, "charge_not_found");
}

#[test]
fn the_key_was_not_bound_to_the_concrete_path() {
    let (_database, _app, client) = start();
    let mut held = visa();
    held["capture"] = json!(false);
    let paths =
        ["a", "b"].map(|key| format!("/v1/charges/{}", client.charge(key, &held).expect(201).field("id")));
    client.send("POST", &format!("{}/capture", paths[0]), "k", &json!({})).expect(200);
    client
        .send("POST", &format!("{}/capture", paths[1]), "k", &json!({}))
        .expect_problem(422, "idempotency_key_reused");
    assert_eq!(client.get(&paths[1]).json()["status"], "requires_capture");
}

#[test]
fn the_order_of_json_members_changed_the_fingerprint() {
    let (_database, app, client) = start();
    let spellings = [
        r#"{"amount":"1.00","currency":"USD","payment_method":"pm_card_visa","metadata":{"a":"1","b":"2"}}"#,
        r#"{"metadata": {"b": "2", "a": "1"}, "payment_method": "pm_card_visa", "currency": "USD", "amount": "1.00"}"#,
        "\n{\"\\u0061mount\":\"1.00\",\t\"currency\":\"USD\",\"payment_method\":\"pm_card_visa\",\"metadata\":{\"b\":\"2\",\"a\":\"1\"}}\n",
    ];
    let answers = spellings.map(|text| {
        let request = client.request("POST", "/v1/charges").idempotency_key("k");
        request.body("application/json", text).send().expect(201)
    });
    assert!(answers.iter().all(|answer| answer.body == answers[0].body));
    assert_eq!(app.runs(), 1);
}

#[test]
fn values_made_by_the_server_were_in_the_fingerprint() {
    let database = TestDatabase::new();
    let sandbox = Arc::new(Sandbox::recording());
    let instances = [(), ()].map(|()| App::start_sharing(&database, Arc::clone(&sandbox), |_| {}));
    let merchant = database.merchant();
    let send = |instance: usize, headers: [(&str, &str); 3]| {
        let client = instances[instance].client.as_merchant(&merchant);
        let request = client.request("POST", "/v1/charges").idempotency_key("k").json(&visa());
        headers.iter().fold(request, |request, (name, value)| request.header(name, value)).send().expect(201)
    };
    let first = send(0, [("X-Request-Id", "one"), ("User-Agent", "a/1"), ("traceparent", "00-1-1-01")]);
    thread::sleep(Duration::from_millis(1_100));
    let second = send(1, [("X-Request-Id", "two"), ("User-Agent", "b/2"), ("traceparent", "00-2-2-01")]);
    assert!(second.is_replay());
    assert_eq!(second.body, first.body);
    assert_eq!(second.header("X-Request-Id"), Some("two"));
    assert_eq!(second.header("Original-Request-Id"), Some("one"));
}

#[test]
fn location_was_lost_and_set_cookie_replayed() {
    let (database, _app, client) = start();
    let first = client.charge("k", &visa()).expect(201);
    let replay = client.charge("k", &visa()).expect(201);
    assert!(first.header("Location").is_some());
    for header in ["Location", "Content-Type"] {
        assert_eq!(replay.header(header), first.header(header));
    }
    assert_eq!(replay.header("Set-Cookie"), None);
    assert_ne!(replay.header("X-Request-Id"), first.header("X-Request-Id"));
    let stored = database.text("SELECT response_headers FROM idempotency_keys");
    let stored: Vec<(String, String)> = serde_json::from_str(&stored).unwrap();
    for (name, _) in stored {
        assert!(["Content-Type", "Location", "Link", "ETag"].contains(&name.as_str()), "{name} is kept");
    }
}

#[test]
fn huge_and_empty_bodies() {
    const MAX: usize = 64 * 1024;
    let (database, app, client) = start();
    let send = |text: String| {
        client.request("POST", "/v1/charges").idempotency_key("k").body("application/json", text).send()
    };
    let padded = |length: usize| {
        let text = visa().to_string();
        format!("{text}{}", " ".repeat(length - text.len()))
    };
    send(String::new()).expect_problem(400, "json_malformed");
    send(" ".to_owned()).expect_problem(400, "json_malformed");
    send("null".to_owned()).expect_problem(422, "validation_failed");
    send(padded(MAX + 1)).expect_problem(413, "body_too_large");
    assert_eq!(database.rows("idempotency_keys"), 0, "nothing of that burns the key");
    let first = send(padded(MAX)).expect(201);
    assert_eq!(send(visa().to_string()).expect(201).body, first.body, "white space is no content");
    send(padded(MAX + 1)).expect_problem(413, "body_too_large");
    // An empty body is a body, where one may be left out.
    let mut held = visa();
    held["capture"] = json!(false);
    let path = format!("/v1/charges/{}/capture", client.charge("h", &held).expect(201).field("id"));
    let captured = client.request("POST", &path).idempotency_key("c").send().expect(200);
    let replay = client.send("POST", &path, "c", &json!({})).expect(200);
    assert!(replay.is_replay());
    assert_eq!(replay.body, captured.body);
    client
        .send("POST", &path, "c", &json!({"amount": "12.50"}))
        .expect_problem(422, "idempotency_key_reused");
    assert_eq!(app.runs(), 2);
}

#[test]
fn the_replay_path_was_never_engaged() {
    let (database, app, client) = start();
    let path = format!("/v1/charges/{}", client.charge("k", &visa()).expect(201).field("id"));
    for _ in 0..9 {
        assert!(client.charge("k", &visa()).expect(201).is_replay());
    }
    assert_eq!(app.runs(), 1, "the handler ran once");
    for _ in 0..10 {
        client.send("PATCH", &path, "p", &json!({"description": "x"})).expect(200);
    }
    assert_eq!(database.count("SELECT count(*) FROM events WHERE type = 'charge.updated'"), 1);
    let metrics = app.client.metrics();
    for operation in ["charges.create", "charges.update"] {
        assert_eq!(
            (metrics.decisions(operation, "executed"), metrics.decisions(operation, "replayed")),
            (1.0, 9.0)
        );
    }
}

#[test]
fn a_key_came_back_after_a_deploy_that_changed_the_fingerprint() {
    let (database, _app, client) = start();
    let other: Value = with_method("pm_card_slow");
    let first = client.charge("k", &visa()).expect(201);
    client.charge("t", &with_method("pm_card_timeout")).expect_problem(503, "processor_unavailable");
    // As if a later release, rolled back since, had claimed them by a recipe of its own.
    database.unguarded("UPDATE idempotency_keys SET fingerprint_version = 99, fingerprint = sha256('new')");
    assert_eq!(client.charge("k", &visa()).expect(201).body, first.body);
    client.charge("k", &other).expect_problem(422, "idempotency_key_reused");
    client.charge("t", &visa()).expect_problem(422, "idempotency_key_reused");
    client.charge("t", &with_method("pm_card_timeout")).expect(201);
}
