//! How long a key lives: its answer, its tombstone, the reaper that comes for both, and reuse afterwards.

use std::thread;

use diesel::{Connection, RunQueryDsl};
use oncepay::idempotency::workers::reaper;
use serde_json::json;

use crate::support::*;

const DAY: i64 = 24 * 60 * 60;
const MONTH: i64 = 30 * DAY;

/// A service whose reaper doesn't come by itself, and whose policies are there.
fn start(database: &TestDatabase) -> (App, Client) {
    let merchant = database.merchant();
    // With this one the reaper's first look ends.
    execute(
        &mut database.as_owner(),
        "INSERT INTO idempotency_keys (merchant_id, key, state, operation, fingerprint_version, fingerprint, request_id, \
             request_method, request_path, request_query, request_body, attempts, recovery_point, response_status, \
             created_at, completed_at, expires_at, forget_at) \
         SELECT merchant_id, 'first', 'expired', 'charges.create', 1, sha256('x'), 'req_1', 'POST', '/v1/charges', '', '', \
             1, 'finished', 201, now() - interval '2 days', now() - interval '2 days', now() - interval '1 day', now() \
         FROM merchants",
    );
    let app = App::start_with(database, |config| config.reaper_interval_ms = 600_000);
    let client = app.client.as_merchant(&merchant);
    client.get("/v1/idempotency-policies").expect(200);
    eventually("the reaper's first look", || database.rows("idempotency_keys") == 0);
    (app, client)
}

/// One batch of the reaper: how many keys it shrank, and how many it forgot.
fn reap(database: &TestDatabase, batch: i64) -> (usize, usize) {
    let reaped = reaper::reap(&mut database.as_app(), batch).unwrap();
    (reaped.expired, reaped.forgotten)
}

fn state(database: &TestDatabase, key: &str) -> String {
    database
        .text(&format!("SELECT coalesce((SELECT state FROM idempotency_keys WHERE key = '{key}'), 'gone')"))
}

#[test]
fn an_expired_key_is_refused_and_not_executed_again() {
    let database = TestDatabase::new();
    let (app, client) = start(&database);
    let first = client.charge("k", &visa()).expect(201);
    database.age_key("k", DAY - 60);
    assert_eq!(client.charge("k", &visa()).expect(201).body, first.body, "a minute before its end");
    database.age_key("k", 60);

    for reaped in [false, true] {
        if reaped {
            reap(&database, 100);
            assert_eq!(state(&database, "k"), "expired");
        }
        let refused = client.charge("k", &visa()).expect_problem(422, "idempotency_key_expired");
        assert_eq!(refused.header("Idempotent-Replayed"), None);
        assert_eq!(refused.json()["retryable"], false);
        // Another request is told that before it's told of the expiry.
        client.charge("k", &with_method("pm_card_slow")).expect_problem(422, "idempotency_key_reused");
        let status = client.get("/v1/idempotency-keys/k").expect(200).json();
        assert_eq!(status["status"], "expired");
        assert_eq!(status["resource"]["id"], first.json()["id"], "the late client still finds its charge");
        assert_eq!(status["response_status"], 201);
    }
    assert_eq!(app.runs(), 1);
    assert_eq!(database.rows("charges"), 1);
}

#[test]
fn a_forgotten_key_is_free_whether_or_not_the_reaper_came() {
    for reaped in [false, true] {
        let database = TestDatabase::new();
        let (app, client) = start(&database);
        let first = client.charge("k", &visa()).expect(201);
        database.age_key("k", DAY + MONTH);
        if reaped {
            // Shrinks it and forgets it at once.
            assert_eq!(reap(&database, 100), (1, 1));
            assert_eq!(state(&database, "k"), "gone");
        }
        client.get("/v1/idempotency-keys/k").expect_problem(404, "idempotency_key_not_found");
        // Also for another request.
        let second = client.charge("k", &with_method("pm_card_slow")).expect(201);
        assert_ne!(second.field("id"), first.field("id"));
        assert!(!second.is_replay());
        let calls: std::collections::HashSet<_> =
            app.sandbox.calls().into_iter().map(|call| call.key).collect();
        assert_eq!(calls.len(), 4, "a new payment for the processor too");
    }
}

#[test]
fn lifetime_and_tombstone_are_those_of_the_policy_at_the_claim() {
    let database = TestDatabase::new();
    let (_app, client) = start(&database);
    client.charge("before", &visa()).expect(201);
    database.set_policy("charges.create", "ttl_seconds = 60, tombstone_seconds = 120");
    eventually("the policy", || {
        let answer = client.charge(&fresh_key(), &visa()).expect(201);
        let expires = answer.header("Idempotency-Expires").unwrap();
        let expires = chrono::DateTime::parse_from_rfc2822(expires).unwrap().to_utc();
        (expires - chrono::Utc::now()).num_seconds() <= 60
    });
    client.charge("after", &visa()).expect(201);
    for key in ["before", "after"] {
        database.age_key(key, 61);
    }
    client.charge("before", &visa()).expect(201);
    client.charge("after", &visa()).expect_problem(422, "idempotency_key_expired");
    // Another operation's keys live as long as before.
    let id = client.charge("other", &visa()).expect(201).field("id");
    let path = format!("/v1/charges/{id}");
    client.send("PATCH", &path, "patched", &json!({"description": "x"})).expect(200);
    database.age_key("patched", 61);
    assert!(client.send("PATCH", &path, "patched", &json!({"description": "x"})).expect(200).is_replay());
    database.age_key("after", 120);
    assert!(!client.charge("after", &visa()).expect(201).is_replay());
}

#[test]
fn where_the_policy_says_so_an_expired_key_is_executed_again_by_one() {
    for operation in ["external", "local"] {
        let database = TestDatabase::new();
        let (_app, client) = start(&database);
        let id = client.charge("charge", &visa()).expect(201).field("id");
        let send = {
            let (client, path) = (client.clone(), format!("/v1/charges/{id}"));
            move || match operation {
                "external" => client.charge("k", &visa()),
                _ => client.send("PATCH", &path, "k", &json!({"description": "x"})),
            }
        };
        database.set_policy("charges.create", "on_expired = 'execute'");
        database.set_policy("charges.update", "on_expired = 'execute'");
        send();
        let events = database.rows("events");
        for round in 1..=5 {
            database.age_key("k", DAY);
            eventually("the policy", || send().code() != "idempotency_key_expired");
            let executed = database.rows("events") - events;
            assert_eq!(executed, round, "{operation}: the first reuse");
        }
        for round in 6..=15 {
            database.age_key("k", DAY);
            let reuses: Vec<_> = (0..8)
                .map(|_| {
                    let send = send.clone();
                    thread::spawn(send)
                })
                .collect();
            let answers: Vec<_> = reuses.into_iter().map(|reuse| reuse.join().unwrap()).collect();
            let executed = answers.iter().filter(|answer| answer.status < 300 && !answer.is_replay()).count();
            assert_eq!(executed, 1, "{operation}");
            assert!(answers.iter().all(|answer| matches!(answer.status, 200 | 201 | 409)), "{operation}");
            assert_eq!(database.rows("events") - events, round, "{operation}: one event per reuse");
        }
    }
}

#[test]
fn the_reaper_leaves_what_is_in_progress_alone() {
    let database = TestDatabase::new();
    let (_app, client) = start(&database);
    client.charge("k", &with_method("pm_card_timeout")).expect_problem(503, "processor_unavailable");
    database.age_key("k", DAY + MONTH + DAY);
    assert_eq!(reap(&database, 100), (0, 0));
    // It's resumed as if it were young, and its answer is kept for a whole lifetime from now on.
    let answer = client.charge("k", &with_method("pm_card_timeout")).expect(201);
    assert_eq!(reap(&database, 100), (0, 0));
    assert_eq!(client.charge("k", &with_method("pm_card_timeout")).expect(201).body, answer.body);
}

/// However long it has taken to make an answer, it's there for the retry.
#[test]
fn an_answers_lifetime_begins_when_it_is_given() {
    let database = TestDatabase::new();
    let (app, client) = start(&database);
    app.set_policy(&database, "ttl_seconds = 60, on_expired = 'execute'");
    let frozen = Process::start(
        &database,
        &[("ONCEPAY_FAULT", "stop:after_processor"), ("ONCEPAY_RECOVERY_INTERVAL_MS", "600000")],
    );
    let request = {
        let client = frozen.client.like(&client);
        thread::spawn(move || client.charge("k", &visa()))
    };
    frozen.wait_until_stopped();
    database.age_key("k", 61);
    frozen.go_on();
    let answer = request.join().unwrap().expect(201);
    let replay = client.charge("k", &visa()).expect(201);
    assert!(replay.is_replay());
    assert_eq!(replay.body, answer.body);
    assert_eq!(replay.header("Idempotency-Expires"), answer.header("Idempotency-Expires"));
    assert_eq!(database.rows("charges"), 1);
}

#[test]
fn the_reaper_does_not_change_what_a_mismatch_is_told() {
    let database = TestDatabase::new();
    let (app, client) = start(&database);
    app.set_policy(&database, "on_mismatch = 'replay'");
    client.charge("k", &visa()).expect(201);
    database.age_key("k", DAY);
    let ask =
        || client.charge("k", &with_method("pm_card_slow")).expect_problem(422, "idempotency_key_expired");
    ask();
    assert_eq!(reap(&database, 10), (1, 0));
    ask();
}

#[test]
fn the_reaper_works_in_batches_oldest_first_and_many_do_each_row_once() {
    let database = TestDatabase::new();
    let (_app, client) = start(&database);
    for number in 0..40 {
        let key = format!("k{number:02}");
        client.charge(&key, &visa()).expect(201);
        database.age_key(&key, DAY + 100 - number);
    }
    client.charge("young", &visa()).expect(201);
    assert_eq!(reap(&database, 10), (10, 0));
    assert_eq!(
        database
            .text("SELECT string_agg(key, ' ' ORDER BY key) FROM idempotency_keys WHERE state = 'expired'"),
        "k00 k01 k02 k03 k04 k05 k06 k07 k08 k09"
    );
    let reapers: Vec<_> = (0..4)
        .map(|_| {
            let url = database.app_url.clone();
            thread::spawn(move || {
                let mut conn = oncepay::storage::db::connect(&url).unwrap();
                (0..10).map(|_| reaper::reap(&mut conn, 3).unwrap().expired).sum::<usize>()
            })
        })
        .collect();
    let reaped: usize = reapers.into_iter().map(|reaper| reaper.join().unwrap()).sum();
    assert_eq!(reaped, 30);
    assert_eq!(state(&database, "young"), "completed");
    let bytes = database.count(
        "SELECT sum(octet_length(request_body) + octet_length(request_query) + coalesce(octet_length(response_body), 0)) \
         FROM idempotency_keys WHERE state = 'expired'",
    );
    assert_eq!(bytes, 0, "a tombstone holds neither request nor answer");
}

#[test]
fn the_reaper_does_not_wait_for_a_locked_row() {
    let database = TestDatabase::new();
    let (_app, client) = start(&database);
    for key in ["locked", "free"] {
        client.charge(key, &visa()).expect(201);
        database.age_key(key, DAY + 1);
    }
    let mut other = database.as_owner();
    other
        .transaction(|conn| {
            lock_rows(conn, "idempotency_keys", "key = 'locked'")?;
            assert_eq!(reap(&database, 100), (1, 0));
            Ok::<_, diesel::result::Error>(())
        })
        .unwrap();
    assert_eq!(
        (state(&database, "locked"), state(&database, "free")),
        ("completed".into(), "expired".into())
    );
}

#[test]
fn the_service_reaps_by_itself() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| config.reaper_interval_ms = 50);
    let client = app.client.as_merchant(&database.merchant());
    client.charge("k", &visa()).expect(201);
    database.age_key("k", DAY);
    eventually("the tombstone", || state(&database, "k") == "expired");
    database.age_key("k", MONTH);
    eventually("its end", || state(&database, "k") == "gone");
    let reaped = |stage| app.client.metrics().value("oncepay_idempotency_reaped_total", &[("stage", stage)]);
    eventually("the count", || ["expired", "forgotten"].map(reaped) == [1.0, 1.0]);
    assert!(app.client.metrics().value("oncepay_idempotency_reaper_lag_seconds", &[]) >= 0.0);
}

/// While a request stands between finding its key taken (or free) and its next step, the row vanishes.
#[test]
fn a_row_that_vanishes_between_conflict_and_lock_means_deciding_again() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let app = App::start_with(&database, |config| config.reaper_interval_ms = 600_000);
    let client = app.client.as_merchant(&merchant);
    // A request that another one has begun and given up. The doomed instance looks at it, is stopped when it finds
    // the row locked, and goes on when it's gone.
    client.charge("k", &with_method("pm_card_error_once")).expect_problem(503, "processor_unavailable");
    let stopped = Process::start(
        &database,
        &[("ONCEPAY_FAULT", "stop:after_conflict"), ("ONCEPAY_RECOVERY_INTERVAL_MS", "600000")],
    );
    let mut owner = database.as_superuser();
    let request = {
        let client = stopped.client.as_merchant(&merchant);
        owner
            .transaction(|conn| {
                lock_rows(conn, "idempotency_keys", "key = 'k'")?;
                let request = thread::spawn(move || client.charge("k", &with_method("pm_card_error_once")));
                stopped.wait_until_stopped();
                Ok::<_, diesel::result::Error>(request)
            })
            .unwrap()
    };
    database.unguarded("DELETE FROM idempotency_keys WHERE key = 'k'");
    stopped.go_on();
    // Nothing is left of the first one, so this is a new request, with a first attempt of its own.
    request.join().unwrap().expect_problem(503, "processor_unavailable");
    let answer = client.charge("k", &with_method("pm_card_error_once")).expect(201);
    assert_eq!(client.charge("k", &with_method("pm_card_error_once")).expect(201).body, answer.body);
    assert_eq!(database.rows("charges"), 1);
}

/// Who was frozen between looking and taking over must not finish, as his, what another request has begun since.
#[test]
fn a_takeover_is_of_the_life_that_was_looked_at() {
    let database = TestDatabase::new();
    let (app, client) = start(&database);
    app.set_policy(&database, "tombstone_seconds = 0");
    let (body, other) = (with_method("pm_card_error_once"), with_method("pm_card_timeout"));
    client.charge("k", &body).expect_problem(503, "processor_unavailable");
    let frozen = Process::start(
        &database,
        &[("ONCEPAY_FAULT", "stop:before_takeover"), ("ONCEPAY_RECOVERY_INTERVAL_MS", "600000")],
    );
    let request = {
        let (client, body) = (frozen.client.like(&client), body.clone());
        thread::spawn(move || client.charge("k", &body))
    };
    frozen.wait_until_stopped();
    // Meanwhile the request is finished, forgotten, and its key used for another one, which is abandoned.
    client.charge("k", &body).expect(201);
    database.age_key("k", DAY);
    client.charge("k", &other).expect_problem(503, "processor_unavailable");
    frozen.go_on();
    request.join().unwrap().expect_problem(422, "idempotency_key_reused");
    client.charge("k", &other).expect(201);
    assert_eq!(database.rows("charges"), 2);
}

#[test]
fn the_database_guards_the_life_of_a_key() {
    let database = TestDatabase::new();
    let (_app, client) = start(&database);
    client.charge("done", &visa()).expect(201);
    client.charge("begun", &with_method("pm_card_timeout")).expect_problem(503, "processor_unavailable");
    let mut service = database.as_app();
    for statement in [
        "DELETE FROM idempotency_keys WHERE key = 'begun'",
        "DELETE FROM idempotency_keys WHERE key = 'done'",
        "UPDATE idempotency_keys SET response_body = 'x' WHERE key = 'done'",
        "UPDATE idempotency_keys SET expires_at = statement_timestamp() WHERE key = 'done'",
        "UPDATE idempotency_keys SET state = 'expired', forget_at = statement_timestamp(), request_body = '', \
         response_body = NULL, response_headers = NULL WHERE key = 'done'",
        "UPDATE idempotency_keys SET state = 'in_progress', claim_token = '018f3e3e-0000-7000-8000-000000000000', \
         lease_expires_at = statement_timestamp(), recover_at = statement_timestamp(), recovery_point = 'started', \
         response_status = NULL, response_body = NULL, response_headers = NULL, completed_at = NULL WHERE key = 'done'",
    ] {
        let error = diesel::sql_query(statement).execute(&mut service).expect_err(statement).to_string();
        assert!(error.contains("can't be changed in this way"), "{statement}: {error}");
    }
    let resurrected = "UPDATE idempotency_keys SET state = 'expired' WHERE key = 'begun'";
    let error = diesel::sql_query(resurrected).execute(&mut service).unwrap_err().to_string();
    assert!(error.contains("idempotency_keys_"), "{error}");
    client.charge("begun", &with_method("pm_card_timeout")).expect(201);
}
