//! What the engine counts of retries, and what survives of it.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use oncepay::processor::Sandbox;

use crate::support::*;

const DAY: i64 = 24 * 60 * 60;
/// An age between two bounds, far from both.
const AGE: i64 = 45 * 60;
/// The upper bound above it.
const BOUND: i64 = 60 * 60;

/// A service that stores its counts at once.
fn start(database: &TestDatabase) -> App {
    App::start_with(database, |config| config.metrics_interval_ms = 50)
}

/// Number of stored requests for charges that found this.
fn stored(database: &TestDatabase, found: &str) -> i64 {
    stored_up_to(database, found, None)
}

/// The same, of those whose delay has this upper bound.
fn stored_up_to(database: &TestDatabase, found: &str, bound: Option<i64>) -> i64 {
    let bound = bound.map(|bound| format!("AND at_most_seconds = {bound}")).unwrap_or_default();
    database.count(&format!(
        "SELECT coalesce(sum(requests), 0) FROM idempotency_retry_delays \
         WHERE operation = 'charges.create' AND found = '{found}' {bound}"
    ))
}

#[test]
fn a_retry_is_counted_by_its_delay_and_by_what_it_finds_on_whichever_instance_it_arrives() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    // Slow enough for a duplicate to come before the answer.
    let sandbox = Arc::new(Sandbox::recording().with_slowness(Duration::from_secs(6)));
    let apps = [0, 1].map(|_: u8| {
        App::start_sharing(&database, Arc::clone(&sandbox), |config| config.metrics_interval_ms = 50)
    });
    let [client, other] = [0, 1].map(|number: usize| apps[number].client.as_merchant(&merchant));
    for key in ["replayed", "expired", "forgotten"] {
        client.charge(key, &visa()).expect(201);
    }
    client.charge("begun", &with_method("pm_card_timeout")).expect_problem(503, "processor_unavailable");
    let lease = "lease_expires_at = statement_timestamp() + interval '1 hour'";
    execute(&mut database.as_owner(), &format!("UPDATE idempotency_keys SET {lease} WHERE key = 'begun'"));
    for (key, age) in [("replayed", 0), ("begun", 0), ("expired", DAY), ("forgotten", 31 * DAY)] {
        database.age_key(key, age + AGE);
    }

    client.charge("replayed", &visa()).expect(201);
    other.charge("replayed", &visa()).expect(201);
    other.charge("replayed", &with_method("pm_card_slow")).expect_problem(422, "idempotency_key_reused");
    let timeout = with_method("pm_card_timeout");
    client.charge("begun", &timeout).expect_problem(409, "idempotency_request_in_progress");
    database.end_lease("begun");
    other.charge("begun", &timeout).expect(201);
    client.charge("expired", &visa()).expect_problem(422, "idempotency_key_expired");
    assert!(!client.charge("forgotten", &visa()).expect(201).is_replay());
    for (found, bound, requests) in [
        ("answer", BOUND, 2),
        ("other_request", BOUND, 1),
        ("unfinished", BOUND, 2),
        ("expired", 36 * 60 * 60, 1),
        ("free", 45 * DAY, 1),
    ] {
        eventually(found, || stored_up_to(&database, found, Some(bound)) == requests);
        assert_eq!(stored(&database, found), requests, "{found}");
        let series = [("operation", "charges.create"), ("found", found)];
        let counts = apps
            .each_ref()
            .map(|app| app.client.metrics().value("oncepay_idempotency_retry_delay_seconds_count", &series));
        assert_eq!(counts.iter().sum::<f64>(), requests as f64, "{found}");
    }
    eventually("the new keys", || stored(&database, "new") == 5);

    // A duplicate that waits looks again and again, and is one retry.
    let first = {
        let client = client.clone();
        thread::spawn(move || client.charge("waited", &with_method("pm_card_slow")))
    };
    eventually("the claim", || {
        database.count("SELECT count(*) FROM idempotency_keys WHERE key = 'waited'") == 1
    });
    let waiting = other.change("POST", "/v1/charges", "waited", &with_method("pm_card_slow"));
    assert!(waiting.header("Prefer", "wait=30").send().expect(201).is_replay());
    first.join().unwrap().expect(201);
    eventually("the new key", || stored(&database, "new") == 6);
    eventually("the duplicate", || stored(&database, "unfinished") == 3);
    assert_eq!(stored(&database, "answer"), 2);
}

#[test]
fn retries_are_counted_while_keys_are_only_observed_and_not_while_they_are_off() {
    let database = TestDatabase::new();
    let app = start(&database);
    let client = app.client.as_merchant(&database.merchant());
    client.get("/v1/idempotency-policies").expect(200);
    app.set_policy(&database, "enforcement = 'observe'");
    for _ in 0..3 {
        client.charge("k", &visa()).expect(201);
    }
    assert_eq!(database.rows("charges"), 3);
    eventually("the retries", || stored(&database, "answer") == 2);
    app.set_policy(&database, "enforcement = 'off'");
    client.charge("k", &visa()).expect(201);
    app.set_policy(&database, "enforcement = 'enforce'");
    client.charge("k", &visa()).expect(201);
    eventually("the last retry", || stored(&database, "answer") == 3);
    assert_eq!(stored(&database, "new"), 1, "what is executed without a key takes no part");
}

#[test]
fn an_operation_that_changes_only_our_database_counts_too() {
    let database = TestDatabase::new();
    let app = start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let path = format!("/v1/charges/{}", client.charge("charge", &visa()).expect(201).field("id"));
    for _ in 0..3 {
        client.send("PATCH", &path, "k", &serde_json::json!({"description": "x"})).expect(200);
    }
    let counts = "SELECT coalesce(string_agg(found || ' ' || requests, ', ' ORDER BY found), '') FROM \
                  (SELECT found, sum(requests) AS requests FROM idempotency_retry_delays \
                   WHERE operation = 'charges.update' GROUP BY found) AS counts";
    eventually("the counts", || database.text(counts) == "answer 2, new 1");
}

#[test]
fn an_instance_that_stops_stores_its_counts_and_the_next_one_adds_to_them() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    for round in 1..=2 {
        let mut process = Process::start(&database, &[("ONCEPAY_METRICS_INTERVAL_MS", "600000")]);
        let client = process.client.as_merchant(&merchant);
        client.charge("k", &visa()).expect(201);
        client.charge("k", &visa()).expect(201);
        assert_eq!(stored(&database, "answer"), if round == 1 { 0 } else { 1 }, "before its time");
        process.signal(libc::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(30);
        while !process.has_ended() {
            assert!(Instant::now() < deadline, "it doesn't end");
            thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(
            (stored(&database, "new"), stored(&database, "answer")),
            (1, if round == 1 { 1 } else { 3 })
        );
    }
}

#[test]
fn counts_that_cannot_be_stored_are_kept_for_the_next_time() {
    let database = TestDatabase::new();
    let app = start(&database);
    let client = app.client.as_merchant(&database.merchant());
    client.charge("k", &visa()).expect(201);
    eventually("the first count", || stored(&database, "new") == 1);
    let mut owner = database.as_owner();
    execute(&mut owner, "REVOKE INSERT ON idempotency_retry_delays FROM oncepay_app");
    client.charge("k", &visa()).expect(201);
    // Time for some attempts, which leave no trace.
    thread::sleep(Duration::from_millis(500));
    execute(&mut owner, "GRANT INSERT ON idempotency_retry_delays TO oncepay_app");
    eventually("the retry", || stored(&database, "answer") == 1);
}

#[test]
fn a_day_takes_the_place_of_the_day_ninety_days_before() {
    let database = TestDatabase::new();
    let app = start(&database);
    let client = app.client.as_merchant(&database.merchant());
    client.charge("k", &visa()).expect(201);
    eventually("the first count", || stored(&database, "new") == 1);
    execute(
        &mut database.as_owner(),
        "UPDATE idempotency_retry_delays SET day = day - 90, requests = 1000, since = since - interval '90 days'",
    );
    client.charge("l", &visa()).expect(201);
    eventually("today's row", || stored(&database, "new") == 1);
    assert_eq!(database.rows("idempotency_retry_delays"), 1);
    let is_young =
        "SELECT bool_and(since > statement_timestamp() - interval '1 day') FROM idempotency_retry_delays";
    assert_eq!(database.text(is_young), "true");
}
