//! Charges that look like another one under another key.

use std::thread;

use serde_json::{Value, json};

use crate::support::*;

const HEADER: &str = "Suspected-Duplicate-Of";

/// A charge for an order.
fn order(reference: &str) -> Value {
    let mut body = visa();
    body["reference"] = json!(reference);
    body
}

fn start() -> (TestDatabase, App, Client) {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    client.get("/v1/idempotency-policies").expect(200);
    (database, app, client)
}

fn counted(app: &App, action: &str) -> f64 {
    app.client.metrics().value("oncepay_suspected_duplicates_total", &[("action", action)])
}

#[test]
fn a_second_charge_for_the_same_order_is_reported() {
    let (database, app, client) = start();
    let first = client.charge("a", &order("1")).expect(201);
    assert_eq!(first.header(HEADER), None);
    let second = client.charge("b", &order("1")).expect(201);
    assert_eq!(second.header(HEADER), Some(first.field("id").as_str()));
    let third = client.charge("c", &order("1")).expect(201);
    assert_eq!(third.header(HEADER), Some(second.field("id").as_str()), "the latest");
    assert_eq!(counted(&app, "reported"), 2.0);
    // A replay is the same payment, and its headers are those that belong to the answer.
    let replay = client.charge("b", &order("1")).expect(201);
    assert!(replay.is_replay());
    assert_eq!(replay.header(HEADER), None);
    assert_eq!(counted(&app, "reported"), 2.0);
    assert_eq!(database.rows("charges"), 3);
}

#[test]
fn what_differs_or_failed_or_was_long_ago_is_no_duplicate() {
    let (database, app, client) = start();
    let suspected = |key: &str, body: &Value| client.charge(key, body).expect(201).header(HEADER).is_some();
    client.charge("a", &order("1")).expect(201);
    for (name, value) in
        [("amount", "12.51"), ("currency", "EUR"), ("payment_method", "pm_card_slow"), ("reference", "2")]
    {
        let mut body = order("1");
        body[name] = json!(value);
        assert!(!suspected(name, &body), "{name}");
    }
    let stranger = app.client.as_merchant(&database.merchant());
    assert_eq!(stranger.charge("a", &order("1")).expect(201).header(HEADER), None, "another merchant's");
    // What doesn't matter to the payment doesn't matter here.
    let mut described = order("1");
    (described["description"], described["metadata"]) = (json!("again"), json!({"try": "2"}));
    assert!(suspected("described", &described));
    // Without a reference nothing tells a second coffee from a duplicate.
    assert!(!suspected("coffee1", &visa()));
    assert!(!suspected("coffee2", &visa()));

    let mut declined = order("3");
    declined["payment_method"] = json!("pm_card_declined");
    client.charge("declined", &declined).expect_problem(402, "card_declined");
    client.charge("declined2", &declined).expect_problem(402, "card_declined");
    let mut held = order("4");
    held["capture"] = json!(false);
    let id = client.charge("held", &held).expect(201).field("id");
    client.send("POST", &format!("/v1/charges/{id}/cancel"), "cancel", &json!({})).expect(200);
    assert!(!suspected("held-again", &held), "the first was canceled");
    app.set_policy(&database, "suspicion_window_seconds = 3");
    thread::sleep(std::time::Duration::from_millis(3_100));
    assert!(!suspected("late", &order("1")), "the first was longer ago than the window");
    assert!(suspected("soon", &order("1")));
    database.set_policy("charges.create", "suspicion_window_seconds = 0");
    eventually("the policy", || !suspected(&fresh_key(), &order("1")));
}

#[test]
fn where_the_policy_says_so_it_is_refused_before_the_card_is_touched() {
    let (database, app, client) = start();
    database.set_policy("charges.create", "on_suspected_duplicate = 'reject'");
    eventually("the policy", || {
        let reference = fresh_key();
        client.charge(&fresh_key(), &order(&reference)).expect(201);
        client.charge(&fresh_key(), &order(&reference)).status == 409
    });
    let (rejected, runs) = (counted(&app, "rejected"), app.runs());
    let first = client.charge("a", &order("1")).expect(201);
    let refused = client.charge("b", &order("1")).expect_problem(409, "duplicate_suspected");
    assert_eq!(refused.header(HEADER), Some(first.field("id").as_str()));
    assert_eq!(refused.json()["charge_id"], first.json()["id"]);
    assert_eq!(app.runs(), runs + 1);
    assert_eq!(counted(&app, "rejected"), rejected + 1.0);
    let replay = client.charge("b", &order("1")).expect_problem(409, "duplicate_suspected");
    assert!(replay.is_replay(), "the refusal is final");
    assert!(client.charge("a", &order("1")).expect(201).is_replay());
    client.charge("c", &order("2")).expect(201);
    client.charge("d", &visa()).expect(201);
    client.charge("e", &visa()).expect(201);
}

#[test]
fn of_many_at_once_under_different_keys_one_is_made() {
    let (database, app, client) = start();
    app.set_policy(&database, "on_suspected_duplicate = 'reject'");
    // One that is slow: the others can't see its charge yet, only that it's being made.
    let slow = {
        let mut body = order("slow");
        body["payment_method"] = json!("pm_card_slow");
        body
    };
    for (name, body) in [("fast", order("fast")), ("slow", slow)] {
        let requests: Vec<_> = (0..10)
            .map(|number| {
                let (client, key, body) = (client.clone(), format!("{name}{number}"), body.clone());
                thread::spawn(move || client.charge(&key, &body))
            })
            .collect();
        let answers: Vec<_> = requests.into_iter().map(|request| request.join().unwrap()).collect();
        let made: Vec<_> = answers.iter().filter(|answer| answer.status == 201).collect();
        assert_eq!(made.len(), 1, "{name}");
        for (number, refused) in answers.iter().enumerate().filter(|(_, answer)| answer.status != 201) {
            // While the one was being made nothing was known for good, so that the key isn't used up.
            if refused.code() == "duplicate_in_progress" {
                assert_eq!((refused.status, &refused.json()["retryable"]), (409, &json!(true)));
            } else {
                refused.clone().expect_problem(409, "duplicate_suspected");
            }
            let again =
                client.charge(&format!("{name}{number}"), &body).expect_problem(409, "duplicate_suspected");
            assert_eq!(again.json()["charge_id"], made[0].json()["id"], "{name}");
        }
    }
    assert_eq!(database.rows("charges"), 2);
}

/// One that is parked, or was begun longer ago than the window, stands in nobody's way.
#[test]
fn what_is_stuck_does_not_make_others_duplicates() {
    let (database, app, client) = start();
    app.set_policy(&database, "on_suspected_duplicate = 'reject'");
    let stuck = |key: &str, reference: &str| {
        let mut body = order(reference);
        body["payment_method"] = json!("pm_card_timeout");
        client.charge(key, &body).expect_problem(503, "processor_unavailable");
        body
    };
    let (parked, old, recent) = (stuck("a", "1"), stuck("b", "2"), stuck("c", "3"));
    execute(&mut database.as_owner(), "UPDATE idempotency_keys SET parked_at = now() WHERE key = 'a'");
    database.age_key("b", 601);
    for (key, body) in [("d", &parked), ("e", &old)] {
        client.charge(key, body).expect_problem(503, "processor_unavailable");
    }
    client.charge("f", &recent).expect_problem(409, "duplicate_in_progress");
    execute(&mut database.as_owner(), "UPDATE idempotency_keys SET parked_at = NULL WHERE key = 'a'");
}

/// Whether they share a statement, follow each other or run on two instances: whoever is written later finds another.
#[test]
fn of_many_reported_at_once_exactly_one_is_the_first() {
    let (database, app, client) = start();
    let other = App::start(&database);
    for round in 0..5 {
        let body = order(&format!("order-{round}"));
        let requests: Vec<_> = (0..24)
            .map(|number| {
                let app = if number % 2 == 0 { &app } else { &other };
                let (client, body) = (app.client.like(&client), body.clone());
                thread::spawn(move || client.charge(&format!("{round}-{number}"), &body).expect(201))
            })
            .collect();
        let answers: Vec<_> = requests.into_iter().map(|request| request.join().unwrap()).collect();
        let ids: Vec<String> = answers.iter().map(|answer| answer.field("id")).collect();
        let firsts = answers.iter().filter(|answer| answer.header(HEADER).is_none()).count();
        assert_eq!(firsts, 1, "{round}");
        for (id, named) in
            ids.iter().zip(&answers).filter_map(|(id, answer)| Some((id, answer.header(HEADER)?)))
        {
            assert!(ids.iter().any(|other| other == named) && named != id, "{id} names {named}");
        }
    }
    assert_eq!(counted(&app, "reported") + counted(&other, "reported"), 5.0 * 23.0);
}

#[test]
fn of_two_reported_at_once_the_later_waits_for_the_earlier() {
    let (database, app, client) = start();
    // So that the ledger's accounts are there, and nothing else makes one wait for the other.
    client.charge("before", &visa()).expect(201);
    let frozen = Process::start(&database, &[("ONCEPAY_FAULT", "stop:in_finish")]);
    let first = {
        let client = frozen.client.like(&client);
        thread::spawn(move || client.charge("a", &order("1")).expect(201))
    };
    frozen.wait_until_stopped();
    let second = {
        let client = client.clone();
        thread::spawn(move || client.charge("b", &order("1")).expect(201))
    };
    thread::sleep(std::time::Duration::from_millis(300));
    frozen.go_on();
    let (first, second) = (first.join().unwrap(), second.join().unwrap());
    assert_eq!(first.header(HEADER), None);
    assert_eq!(second.header(HEADER), Some(first.field("id").as_str()));
    drop(app);
}

#[test]
fn of_many_reported_at_once_all_but_one_name_another() {
    let (_database, app, client) = start();
    let requests: Vec<_> = (0..10)
        .map(|number| {
            let client = client.clone();
            thread::spawn(move || client.charge(&format!("k{number}"), &order("1")).expect(201))
        })
        .collect();
    let answers: Vec<_> = requests.into_iter().map(|request| request.join().unwrap()).collect();
    assert_eq!(answers.iter().filter(|answer| answer.header(HEADER).is_none()).count(), 1);
    assert_eq!(counted(&app, "reported"), 9.0);
}
