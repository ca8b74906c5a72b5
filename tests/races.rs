//! Many at once.

use std::io::Write;
use std::net::TcpStream;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use oncepay::processor::Sandbox;
use serde_json::json;

use crate::support::*;

/// Runs all at the same moment, each on a thread of its own.
fn at_once<T: Send + 'static>(tasks: Vec<Box<dyn FnOnce() -> T + Send>>) -> Vec<T> {
    let barrier = Arc::new(Barrier::new(tasks.len()));
    let threads: Vec<_> = tasks
        .into_iter()
        .map(|task| {
            let barrier = Arc::clone(&barrier);
            thread::spawn(move || {
                barrier.wait();
                task()
            })
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

/// `count` identical requests at once, spread over `clients`.
fn duplicates(clients: &[Client], count: usize, key: &str, body: &serde_json::Value) -> Vec<Response> {
    let tasks = (0..count)
        .map(|number| {
            let (client, key, body) = (clients[number % clients.len()].clone(), key.to_owned(), body.clone());
            Box::new(move || client.charge(&key, &body)) as Box<dyn FnOnce() -> Response + Send>
        })
        .collect();
    at_once(tasks)
}

/// Checks that duplicates saw only one charge, or were told that it's being made.
fn assert_one_charge(responses: &[Response]) {
    let mut bodies = Vec::new();
    for response in responses {
        match response.status {
            201 => bodies.push(response.body.clone()),
            409 => assert_eq!(response.code(), "idempotency_request_in_progress"),
            other => panic!("{other}: {}", response.text()),
        }
    }
    assert!(!bodies.is_empty(), "somebody must have won");
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "two different charges were shown");
    let executed = responses.iter().filter(|r| r.status == 201 && !r.is_replay()).count();
    assert_eq!(executed, 1);
}

#[test]
fn fifty_duplicates_at_once_make_one_charge() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let clients = [app.client.as_merchant(&database.merchant())];
    for round in 1..=20 {
        let key = format!("round-{round}");
        assert_one_charge(&duplicates(&clients, 50, &key, &visa()));
        assert_eq!(database.rows("charges"), round);
        assert_eq!(database.rows("journal_entries"), round);
        assert_eq!(app.runs() as i64, round);
        assert!(clients[0].charge(&key, &visa()).expect(201).is_replay());
    }
}

#[test]
fn fifty_duplicates_at_once_on_two_instances_make_one_charge() {
    let database = TestDatabase::new();
    let sandbox = Arc::new(Sandbox::recording());
    let instances = [(), ()].map(|()| App::start_sharing(&database, Arc::clone(&sandbox), |_| {}));
    let merchant = database.merchant();
    let clients: Vec<_> = instances.iter().map(|app| app.client.as_merchant(&merchant)).collect();
    for round in 1..=20 {
        assert_one_charge(&duplicates(&clients, 50, &format!("round-{round}"), &visa()));
        assert_eq!(database.rows("charges"), round);
        assert_eq!(database.rows("journal_entries"), round);
        assert_eq!(instances[0].runs() as i64, round);
    }
}

#[test]
fn fifty_duplicates_of_a_local_operation_at_once_run_it_once() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let path = format!("/v1/charges/{}", client.charge("create", &visa()).expect(201).field("id"));
    for round in 1..=20 {
        let tasks = (0..50)
            .map(|_| {
                let (client, path) = (client.clone(), path.clone());
                let patch = json!({"description": format!("round {round}")});
                Box::new(move || client.send("PATCH", &path, &format!("round-{round}"), &patch))
                    as Box<dyn FnOnce() -> Response + Send>
            })
            .collect();
        let responses = at_once(tasks);
        let executed = responses.iter().filter(|r| r.status == 200 && !r.is_replay()).count();
        assert_eq!(executed, 1);
        assert!(responses.iter().all(|r| matches!(r.status, 200 | 409)));
        let updates = database.count("SELECT count(*) FROM events WHERE type = 'charge.updated'");
        assert_eq!(updates, round);
    }
}

#[test]
fn different_bodies_at_once_under_one_key_commit_one_and_write_nothing_else() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    for round in 1..=10 {
        let key = format!("round-{round}");
        let tasks = (1..=20)
            .map(|number| {
                let (client, key) = (client.clone(), key.clone());
                let body = json!({"amount": number.to_string(), "currency": "USD", "payment_method": "pm_card_visa"});
                Box::new(move || client.charge(&key, &body)) as Box<dyn FnOnce() -> Response + Send>
            })
            .collect();
        let responses = at_once(tasks);
        let won = responses.iter().filter(|response| response.status == 201).count();
        assert_eq!(won, 1);
        for response in responses.into_iter().filter(|response| response.status != 201) {
            response.expect_problem(422, "idempotency_key_reused");
        }
        assert_eq!(database.rows("charges"), round);
        assert_eq!(database.rows("journal_entries"), round);
        assert_eq!(database.rows("idempotency_keys"), round);
        assert_eq!(app.runs() as i64, round);
    }
}

#[test]
fn duplicates_of_a_slow_request_do_not_starve_others() {
    let database = TestDatabase::new();
    // So slow that all duplicates come while it runs.
    let sandbox = Arc::new(Sandbox::recording().with_slowness(Duration::from_secs(6)));
    let app = App::start_sharing(&database, sandbox, |config| config.pool_size = 4);
    let storm = app.client.as_merchant(&database.merchant());
    let other = app.client.as_merchant(&database.merchant());
    let slow = with_method("pm_card_slow");

    let first = thread::spawn({
        let (storm, slow) = (storm.clone(), slow.clone());
        move || storm.charge("slow", &slow)
    });
    while database.rows("idempotency_keys") == 0 {
        thread::sleep(Duration::from_millis(5));
    }
    let duplicates = thread::spawn({
        let (storm, slow) = (storm.clone(), slow.clone());
        move || duplicates(&[storm], 40, "slow", &slow)
    });
    let mut served = 0;
    while !first.is_finished() {
        other.charge(&fresh_key(), &visa()).expect(201);
        served += 1;
    }
    assert!(served >= 10, "only {served} requests of another merchant were served meanwhile");
    let responses = duplicates.join().unwrap();
    assert!(responses.iter().all(|response| response.status == 409), "all came while it ran");
    first.join().unwrap().expect(201);
    assert!(storm.charge("slow", &slow).expect(201).is_replay());
}

#[test]
fn a_local_loser_does_not_wait_for_the_winners_transaction() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let path = format!("/v1/charges/{}", client.charge("create", &visa()).expect(201).field("id"));
    // Another session holds the charge, so that the winner waits inside its transaction, claim in hand.
    let mut blocker = database.as_superuser();
    execute(&mut blocker, "BEGIN");
    crate::support::lock_charges(&mut blocker).unwrap();
    let winner = thread::spawn({
        let (client, path) = (client.clone(), path.clone());
        move || client.send("PATCH", &path, "k", &json!({"description": "x"}))
    });
    eventually("the winner's wait for the lock", || database.long_lock_waits() > 0);
    let loser = client.send("PATCH", &path, "k", &json!({"description": "x"}));
    loser.expect_problem(409, "idempotency_request_in_progress");
    assert_eq!(database.lock_waits(), 1, "the winner still waits, and nobody else does");
    execute(&mut blocker, "COMMIT");
    winner.join().unwrap().expect(200);
}

#[test]
fn a_client_that_hangs_up_finds_its_answer_later() {
    // Orderly, as when a program ends, and by a reset, at which the server drops what it was doing for
    // the connection.
    for linger in [None, Some(Duration::ZERO)] {
        let database = TestDatabase::new();
        let app = App::start(&database);
        let merchant = database.merchant();
        let body = with_method("pm_card_slow");
        let text = body.to_string();
        let mut stream = TcpStream::connect(app.client.base().strip_prefix("http://").unwrap()).unwrap();
        socket2::SockRef::from(&stream).set_linger(linger).unwrap();
        write!(
            stream,
            "POST /v1/charges HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nIdempotency-Key: k\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}",
            merchant.key,
            text.len()
        )
        .unwrap();
        while database.rows("idempotency_keys") == 0 {
            thread::sleep(Duration::from_millis(5));
        }
        drop(stream);

        let client = app.client.as_merchant(&merchant);
        let deadline = Instant::now() + Duration::from_secs(10);
        let answer = loop {
            let response = client.charge("k", &body);
            if response.status == 201 {
                break response;
            }
            response.expect_problem(409, "idempotency_request_in_progress");
            assert!(Instant::now() < deadline, "the request wasn't finished without its client");
            thread::sleep(Duration::from_millis(50));
        };
        assert!(answer.is_replay(), "the first attempt was carried on, not a second one begun");
        assert_eq!(app.runs(), 1);
    }
}

#[test]
fn an_owner_that_outlives_its_lease_commits_nothing_and_tells_the_winners_answer() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| config.lease_ms = 300);
    let client = app.client.as_merchant(&database.merchant());
    let body = with_method("pm_card_slow");
    let slow = thread::spawn({
        let (client, body) = (client.clone(), body.clone());
        move || client.charge("k", &body)
    });
    while database.rows("idempotency_keys") == 0 {
        thread::sleep(Duration::from_millis(5));
    }
    thread::sleep(Duration::from_millis(500));
    // The takeover is slow too, so by the time that the first owner finishes, its claim is gone.
    let second = client.charge("k", &body).expect(201);
    let first = slow.join().unwrap();
    match first.status {
        201 => assert_eq!(first.body, second.body),
        _ => drop(first.expect_problem(409, "idempotency_request_in_progress")),
    }
    assert!(!second.is_replay());
    assert_eq!(database.rows("charges"), 1);
    assert_eq!(database.rows("journal_entries"), 1);
    let keys: std::collections::HashSet<_> = app.sandbox.calls().into_iter().map(|call| call.key).collect();
    assert_eq!(keys.len(), 2, "one authorization and one capture for the processor");
}

/// Somebody who begins to wait on another instance changes the key's row, at any moment.
#[test]
fn a_finish_that_meets_another_change_of_its_row_writes_all_or_nothing() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    client.charge("before", &visa()).expect(201);
    for round in 0..5 {
        let key = format!("k{round}");
        let request = {
            let (client, key) = (client.clone(), key.clone());
            thread::spawn(move || client.charge(&key, &with_method("pm_card_slow")))
        };
        eventually("the claim", || database.rows("idempotency_keys") == round + 2);
        let mut owner = database.as_owner();
        diesel::Connection::transaction(&mut owner, |conn| {
            let mark = format!("UPDATE idempotency_keys SET waited = true WHERE key = '{key}'");
            diesel::RunQueryDsl::execute(diesel::sql_query(mark), conn)?;
            // Until the request stands before the row.
            thread::sleep(Duration::from_millis(2_300));
            Ok::<_, diesel::result::Error>(())
        })
        .unwrap();
        let answer = request.join().unwrap().expect(201);
        let replay = client.charge(&key, &with_method("pm_card_slow")).expect(201);
        assert!(replay.is_replay());
        assert_eq!(replay.body, answer.body);
    }
    assert_eq!((database.rows("charges"), database.rows("journal_entries")), (6, 6));
}

/// Starts one where many may queue for one account: that takes a while where the machine is slow.
fn start_for_a_queue(database: &TestDatabase) -> App {
    App::start_with(database, |config| config.pool_timeout_ms = 20_000)
}

/// The same request under `count` different keys at once.
fn under_different_keys(
    client: &Client,
    count: usize,
    path: &str,
    body: &serde_json::Value,
) -> Vec<Response> {
    let tasks = (0..count)
        .map(|_| {
            let (client, path, body) = (client.clone(), path.to_owned(), body.clone());
            Box::new(move || client.send("POST", &path, &fresh_key(), &body))
                as Box<dyn FnOnce() -> Response + Send>
        })
        .collect();
    at_once(tasks)
}

fn count(responses: &[Response], status: u16, code: &str) -> usize {
    responses.iter().filter(|response| (response.status, response.code().as_str()) == (status, code)).count()
}

#[test]
fn forty_refunds_at_once_never_exceed_the_charge() {
    let database = TestDatabase::new();
    let app = start_for_a_queue(&database);
    let client = app.client.as_merchant(&database.merchant());
    // Enough balance for more than the charge.
    for key in ["a", "b"] {
        client.charge(key, &visa()).expect(201);
    }
    let charge = client.charge("c", &visa()).expect(201).field("id");
    let refund = json!({"charge_id": charge, "amount": "1.00"});
    let responses = under_different_keys(&client, 40, "/v1/refunds", &refund);
    assert_eq!(count(&responses, 201, ""), 12);
    // While some are under way the rest exceeds; once all is refunded, nothing can be.
    let refused =
        count(&responses, 422, "refund_exceeds_captured") + count(&responses, 409, "charge_not_refundable");
    assert_eq!(refused, 28);
    let state = client.get(&format!("/v1/charges/{charge}")).json();
    assert_eq!(state["amount_refunded"], "12.00");
    assert_eq!(client.available("USD").as_deref(), Some("23.52"));
    assert_eq!(app.sandbox.calls().iter().filter(|call| call.call == "refund").count(), 12);
}

#[test]
fn forty_payouts_at_once_never_overdraw() {
    let database = TestDatabase::new();
    let app = start_for_a_queue(&database);
    let client = app.client.as_merchant(&database.merchant());
    client.charge("a", &visa()).expect(201);
    let payout = json!({"amount": "1.00", "currency": "USD", "destination": "ba"});
    let responses = under_different_keys(&client, 40, "/v1/payouts", &payout);
    assert_eq!(count(&responses, 201, ""), 11);
    assert_eq!(count(&responses, 422, "insufficient_balance"), 29);
    assert_eq!(client.available("USD").as_deref(), Some("0.84"));
    assert_eq!(app.sandbox.calls().iter().filter(|call| call.call == "payout").count(), 11);
}

#[test]
fn a_capture_races_a_cancellation_and_one_wins() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let mut body = visa();
    body["capture"] = json!(false);
    for round in 0..10 {
        let charge = client.charge(&format!("c{round}"), &body).expect(201).field("id");
        let tasks = (0..8)
            .map(|number| {
                let action = if number % 2 == 0 { "capture" } else { "cancel" };
                let (client, path) = (client.clone(), format!("/v1/charges/{charge}/{action}"));
                Box::new(move || client.send("POST", &path, &fresh_key(), &json!({})))
                    as Box<dyn FnOnce() -> Response + Send>
            })
            .collect();
        let responses = at_once(tasks);
        assert_eq!(count(&responses, 200, ""), 1);
        let refused =
            count(&responses, 409, "charge_not_capturable") + count(&responses, 409, "charge_not_cancelable");
        assert_eq!(refused, 7);
        let winner = responses.iter().find(|response| response.status == 200).unwrap().json();
        assert_eq!(client.get(&format!("/v1/charges/{charge}")).json(), winner);
        let calls = app.sandbox.calls();
        let settled = calls.iter().filter(|call| matches!(call.call, "capture" | "void")).count();
        assert_eq!(settled, round + 1, "the loser never reached the processor");
    }
}

#[test]
fn refunds_race_payouts_for_one_balance() {
    let database = TestDatabase::new();
    let app = start_for_a_queue(&database);
    let client = app.client.as_merchant(&database.merchant());
    let charge = client.charge("a", &visa()).expect(201).field("id");
    let tasks = (0..40)
        .map(|number| {
            let (path, body) = if number % 2 == 0 {
                ("/v1/refunds", json!({"charge_id": charge, "amount": "1.00"}))
            } else {
                ("/v1/payouts", json!({"amount": "1.00", "currency": "USD", "destination": "ba"}))
            };
            let client = client.clone();
            Box::new(move || client.send("POST", path, &fresh_key(), &body))
                as Box<dyn FnOnce() -> Response + Send>
        })
        .collect();
    let responses = at_once(tasks);
    let answers: Vec<_> = responses.iter().map(|response| (response.status, response.code())).collect();
    assert_eq!(count(&responses, 201, ""), 11, "{answers:?}");
    let refused =
        count(&responses, 422, "insufficient_balance") + count(&responses, 422, "refund_exceeds_captured");
    assert_eq!(refused, 29, "{answers:?}");
    assert_eq!(client.available("USD").as_deref(), Some("0.84"));
}
