//! Requests that share transactions stay each on its own.

use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use diesel::Connection;
use serde_json::{Value, json};

use crate::batches::{Pending, batches, gathered};
use crate::support::*;

fn send(client: &Client, method: &str, path: &str, key: &str, body: &Value) -> Pending {
    let (client, method, path) = (client.clone(), method.to_owned(), path.to_owned());
    let (key, body) = (key.to_owned(), body.clone());
    thread::spawn(move || client.send(&method, &path, &key, &body))
}

fn patch(client: &Client, path: &str, key: &str, description: &str) -> Pending {
    send(client, "PATCH", path, key, &json!({"description": description}))
}

/// Paths of new charges of 12.50 USD.
fn charges(client: &Client, count: usize, capture: bool) -> Vec<String> {
    let mut body = visa();
    body["capture"] = json!(capture);
    let path = |_| format!("/v1/charges/{}", client.charge(&fresh_key(), &body).expect(201).field("id"));
    (0..count).map(path).collect()
}

fn answers(pending: Vec<Pending>) -> Vec<Response> {
    pending.into_iter().map(|pending| pending.join().unwrap()).collect()
}

/// Has the database do something when a charge is described as `bad`: at once, or when the transaction commits.
fn on_bad(database: &TestDatabase, when: &str, does: &str) {
    let mut owner = database.as_owner();
    execute(
        &mut owner,
        &format!(
            "CREATE FUNCTION on_bad() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN IF NEW.description = 'bad' THEN {does}; END IF; RETURN NEW; END $$"
        ),
    );
    let trigger = match when {
        "at commit" => {
            "CREATE CONSTRAINT TRIGGER on_bad AFTER UPDATE ON charges DEFERRABLE INITIALLY DEFERRED"
        }
        _ => "CREATE TRIGGER on_bad BEFORE UPDATE ON charges",
    };
    execute(&mut owner, &format!("{trigger} FOR EACH ROW EXECUTE FUNCTION on_bad()"));
}

/// The number of transactions that have written the events of a type, and of these events.
fn transactions(database: &TestDatabase, kind: &str) -> (i64, i64) {
    let count = |what| database.count(&format!("SELECT count({what}) FROM events WHERE type = '{kind}'"));
    (count("DISTINCT transaction_id"), count("*"))
}

#[test]
fn changes_that_gather_share_a_transaction_and_each_gets_its_own_answer() {
    if cluster::differs("requests share nothing there") {
        return;
    }
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let paths = charges(&client, 12, true);
    let first = client.send("PATCH", &paths[0], "first", &json!({"description": "first"})).expect(200);
    let unknown = format!("/v1/charges/ch_{}", uuid::Uuid::now_v7().as_simple());
    let entries = |letter: &str| -> Value {
        let entries: serde_json::Map<_, _> = (0..30).map(|n| (format!("{letter}{n}"), json!("x"))).collect();
        json!({"metadata": entries})
    };
    client.send("PATCH", &paths[1], "entries", &entries("a")).expect(200);
    let before = batches(&app, "begin");
    let (changes, duplicates, others) = gathered(&database, &app.client, || {
        let changes: Vec<Pending> =
            (0..12).map(|n| patch(&client, &paths[n], &format!("key-{n}"), &format!("number {n}"))).collect();
        let duplicates: Vec<Pending> = (0..4).map(|_| patch(&client, &paths[0], "same", "same")).collect();
        let others = vec![
            patch(&client, &paths[0], "first", "first"),
            patch(&client, &paths[0], "first", "another"),
            patch(&client, &unknown, "unknown", "x"),
            send(&client, "PATCH", &paths[1], "too-many", &entries("b")),
        ];
        (20, (changes, duplicates, others))
    });
    for (n, answer) in answers(changes).into_iter().enumerate() {
        let answer = answer.expect(200);
        assert!(!answer.is_replay());
        assert_eq!(answer.field("description"), format!("number {n}"));
        let path = &paths[n];
        let body = json!({"description": format!("number {n}")});
        let replay = client.send("PATCH", path, &format!("key-{n}"), &body).expect(200);
        assert!(replay.is_replay());
        assert_eq!(replay.body, answer.body);
    }
    let duplicates = answers(duplicates);
    assert_eq!(duplicates.iter().filter(|r| r.status == 200 && !r.is_replay()).count(), 1);
    assert!(duplicates.iter().all(|r| matches!(r.status, 200 | 409)));
    let [replay, reused, missing, too_many]: [Response; 4] = answers(others).try_into().unwrap();
    assert!(replay.is_replay());
    assert_eq!(replay.body, first.body);
    reused.expect_problem(422, "idempotency_key_reused");
    missing.expect_problem(404, "charge_not_found");
    too_many.expect_problem(422, "metadata_too_large");
    // Refusals are answers, too.
    let again = client.send("PATCH", &unknown, "unknown", &json!({"description": "x"}));
    assert!(again.is_replay());
    again.expect_problem(404, "charge_not_found");

    let (count, events) = transactions(&database, "charge.updated");
    assert_eq!(events, 2 + 12 + 1);
    assert!(count < events, "they didn't share: {count} transactions");
    let after = batches(&app, "begin");
    assert!(after.0 - before.0 < (after.1 - before.1) * 0.8, "{before:?} {after:?}");
    let unfinished = "SELECT count(*) FROM idempotency_keys WHERE state = 'in_progress'";
    assert_eq!(database.count(unfinished), 0);
}

#[test]
fn what_fails_for_one_at_once_or_at_the_commit_does_not_fail_the_others() {
    // On a cluster, a transaction that fails when a node commits it looks like one whose node is lost.
    for when in if database::is_on_cluster() { &["at once"][..] } else { &["at once", "at commit"] } {
        let database = TestDatabase::new();
        let app = App::start(&database);
        let client = app.client.as_merchant(&database.merchant());
        let paths = charges(&client, 12, true);
        on_bad(&database, when, "RAISE EXCEPTION 'no' USING ERRCODE = 'raise_exception'");
        let sent = gathered(&database, &app.client, || {
            let sent: Vec<Pending> = (0..12)
                .map(|n| patch(&client, &paths[n], &format!("k{n}"), if n % 6 == 3 { "bad" } else { "good" }))
                .collect();
            (12, sent)
        });
        for (n, answer) in answers(sent).into_iter().enumerate() {
            if n % 6 == 3 {
                answer.expect_problem(500, "internal");
            } else {
                assert!(!answer.expect(200).is_replay(), "{when}");
            }
        }
        assert_eq!(transactions(&database, "charge.updated").1, 10, "{when}");
        assert_eq!(database.count("SELECT count(*) FROM idempotency_keys WHERE state = 'in_progress'"), 0);
        execute(&mut database.as_owner(), "DROP FUNCTION on_bad CASCADE");
        client.send("PATCH", &paths[3], "k3", &json!({"description": "bad"})).expect(200);
    }
}

#[test]
fn locked_charges_hold_up_no_requests_but_their_own() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| config.pool_size = 12);
    let client = app.client.as_merchant(&database.merchant());
    let paths = charges(&client, 10, false);
    let locked: Vec<String> =
        paths[..5].iter().map(|path| path.replace("/v1/charges/ch_", "'") + "'").collect();
    let mut other = database.as_owner();
    let own = other
        .transaction::<_, diesel::result::Error, _>(|other| {
            lock_rows(other, "charges", &format!("id IN ({})", locked.join(", ")))?;
            let mut own = gathered(&database, &app.client, || {
                let sent: Vec<Pending> =
                    (0..10).map(|n| patch(&client, &paths[n], &format!("k{n}"), "x")).collect();
                (10, sent)
            });
            let unlocked = Instant::now();
            for answer in answers(own.split_off(5)) {
                answer.expect(200);
            }
            // One that doesn't share waits for two seconds.
            assert!(unlocked.elapsed() < Duration::from_millis(1_500), "{:?}", unlocked.elapsed());
            // Alone in its batch, too.
            own.push(send(&client, "POST", &format!("{}/capture", paths[0]), "capture", &json!({})));
            for n in 0..10 {
                client
                    .send("PATCH", &paths[9], &format!("later-{n}"), &json!({"description": "y"}))
                    .expect(200);
            }
            eventually("their waits", || database.lock_waits() == 6);
            assert!(own.iter().all(|own| !own.is_finished()), "they're locked");
            Ok(own)
        })
        .unwrap();
    for own in answers(own) {
        assert!(!own.expect(200).is_replay());
    }
}

/// How many requests have had a second half, alone or with others.
fn finished(app: &App) -> f64 {
    app.client.metrics().value("oncepay_idempotency_finish_duration_seconds_count", &[])
}

#[test]
fn of_captures_and_cancellations_that_gather_one_wins_per_charge() {
    if cluster::differs("requests share nothing there") {
        return;
    }
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let paths = charges(&client, 6, false);
    let before = (batches(&app, "begin"), finished(&app));
    let sent = gathered(&database, &app.client, || {
        let sent: Vec<(Pending, Pending)> = (0..12)
            .map(|n| {
                let to = |action: &str| {
                    let path = format!("{}/{action}", paths[n / 2]);
                    send(&client, "POST", &path, &format!("{action}-{n}"), &json!({}))
                };
                (to("capture"), to("cancel"))
            })
            .collect();
        (24, sent)
    });
    let sent: Vec<[Response; 2]> =
        sent.into_iter().map(|(capture, cancel)| [capture.join().unwrap(), cancel.join().unwrap()]).collect();
    for (pairs, path) in sent.chunks(2).zip(&paths) {
        let all: Vec<&Response> = pairs.iter().flatten().collect();
        let won: Vec<&&Response> = all.iter().filter(|response| response.status == 200).collect();
        assert_eq!(won.len(), 1);
        assert_eq!(client.get(path).json(), won[0].json());
        for lost in all.iter().filter(|response| response.status != 200) {
            assert!(matches!(lost.code().as_str(), "charge_not_capturable" | "charge_not_cancelable"));
        }
    }
    let calls = app.sandbox.calls();
    assert_eq!(calls.iter().filter(|call| matches!(call.call, "capture" | "void")).count(), 6);
    assert_eq!(database.count("SELECT count(*) FROM idempotency_keys WHERE state = 'completed'"), 6 + 24);
    let after = (batches(&app, "begin"), finished(&app));
    let [shared, requests] = [after.0.0 - before.0.0, after.0.1 - before.0.1];
    assert!(shared < requests, "first halves share: {shared} transactions of {requests}");
    assert_eq!(after.1 - before.1, 6.0, "those that were refused have no second half");
}

#[test]
fn money_that_requests_of_one_transaction_compete_for_is_spent_once() {
    if cluster::differs("requests share nothing there") {
        return;
    }
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let charge = client.charge("a", &visa()).expect(201).field("id");
    let (ends, all) = (batches(&app, "end"), finished(&app));
    let sent = gathered(&database, &app.client, || {
        let sent: Vec<Pending> = (0..40)
            .map(|n| {
                let (path, body) = if n % 2 == 0 {
                    ("/v1/refunds", json!({"charge_id": charge, "amount": "1.00"}))
                } else {
                    ("/v1/payouts", json!({"amount": "1.00", "currency": "USD", "destination": "ba"}))
                };
                send(&client, "POST", path, &format!("k{n}"), &body)
            })
            .collect();
        (40, sent)
    });
    let answers = answers(sent);
    let made = answers.iter().filter(|answer| answer.status == 201).count();
    assert_eq!(made, 11, "{:?}", answers.iter().map(Response::code).collect::<Vec<_>>());
    let refused = ["insufficient_balance", "refund_exceeds_captured"];
    assert_eq!(answers.iter().filter(|answer| refused.contains(&answer.code().as_str())).count(), 29);
    assert_eq!(client.available("USD").as_deref(), Some("0.84"));
    let after = batches(&app, "end");
    let [shared, requests] = [after.0 - ends.0, after.1 - ends.1];
    assert!(shared < requests, "second halves share: {shared} transactions of {requests}");
    assert_eq!(finished(&app) - all, 11.0);
}

#[test]
fn who_hangs_up_finds_the_answer_later_and_executes_nothing_twice() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let merchant = database.merchant();
    let client = app.client.as_merchant(&merchant);
    let paths = charges(&client, 8, true);
    let host = app.client.base().strip_prefix("http://").unwrap().to_owned();
    let body = json!({"description": "x"}).to_string();
    gathered(&database, &app.client, || {
        let sent: Vec<TcpStream> = paths
            .iter()
            .enumerate()
            .map(|(n, path)| {
                let mut stream = TcpStream::connect(&host).unwrap();
                write!(
                    stream,
                    "PATCH {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nIdempotency-Key: k{n}\r\n\
                     Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                    merchant.key,
                    body.len()
                )
                .unwrap();
                stream
            })
            .collect();
        (8, sent)
    });
    // What was under way goes on; what wasn't is never begun.
    let done = "SELECT count(*) FROM events WHERE type = 'charge.updated'";
    eventually("the first of them", || database.count(done) >= 1);
    for (n, path) in paths.iter().enumerate() {
        eventually("the answer", || {
            client.send("PATCH", path, &format!("k{n}"), &json!({"description": "x"})).status == 200
        });
        assert!(client.send("PATCH", path, &format!("k{n}"), &json!({"description": "x"})).is_replay());
    }
    assert_eq!(transactions(&database, "charge.updated").1, 8);
}

#[test]
fn a_crash_leaves_each_of_a_transaction_done_or_untouched() {
    if cluster::differs("requests share nothing there") {
        return;
    }
    let points = [
        "shared_after_claim",
        "shared_before_commit",
        "local_after_commit_before_response",
        "in_finish",
        "after_commit_before_response",
    ];
    for point in points {
        let is_local = !["in_finish", "after_commit_before_response"].contains(&point);
        let database = TestDatabase::new();
        let settings = [("ONCEPAY_LEASE_MS", "700"), ("ONCEPAY_PROCESSOR_TIMEOUT_MS", "200")];
        let healthy = Process::start(&database, &settings);
        let merchant = database.merchant();
        let client = healthy.client.as_merchant(&merchant);
        // Makes the merchant's accounts, for which captures would have to wait.
        client.charge("accounts", &visa()).expect(201);
        let mut paths = charges(&client, 8, false);
        if !is_local {
            let mut body = visa();
            (body["capture"], body["description"]) = (json!(false), json!("bad"));
            paths[0] = format!("/v1/charges/{}", client.charge("bad", &body).expect(201).field("id"));
        }
        // The first takes so long that the others gather behind it, and get to the point before it.
        let is_last_step = "NEW.status = 'succeeded' OR OLD.description IS NULL";
        on_bad(&database, "at once", &format!("IF {is_last_step} THEN PERFORM pg_sleep(2); END IF"));
        let fault = format!("kill:{point}");
        let doomed = Process::start(&database, &[&settings[..], &[("ONCEPAY_FAULT", &fault)]].concat());
        let request = |client: &Client, n: usize| {
            let (method, path, body) = if is_local {
                ("PATCH", paths[n].clone(), json!({"description": if n == 0 { "bad" } else { "x" }}))
            } else {
                ("POST", format!("{}/capture", paths[n]), json!({}))
            };
            client.change(method, &path, &format!("k{n}"), &body)
        };
        let sender = doomed.client.as_merchant(&merchant);
        let send = |n| {
            let request = request(&sender, n);
            thread::spawn(move || request.try_send().is_ok())
        };
        let mut sent = vec![send(0)];
        let asleep = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
        eventually("the first", || sent[0].is_finished() || database.count(asleep) == 1);
        sent.extend((1..8).map(send));
        assert!(!sent.into_iter().all(|sent| sent.join().unwrap()), "{point}");
        assert!(doomed.was_killed(), "{point}");
        let event = if is_local { "charge.updated" } else { "charge.captured" };
        let done = "SELECT count(*) FROM idempotency_keys \
             WHERE operation IN ('charges.update', 'charges.capture') AND state = 'completed'";
        assert_eq!(transactions(&database, event).1, database.count(done), "{point}: all or nothing");
        if is_local {
            let unfinished = "SELECT count(*) FROM idempotency_keys WHERE state = 'in_progress'";
            assert_eq!(database.count(unfinished), 0, "{point}");
        }
        for n in 0..8 {
            eventually("the answer", || request(&client, n).send().status == 200);
        }
        assert_eq!(transactions(&database, event).1, 8, "{point}: each took effect once");
    }
}

#[test]
fn events_of_the_processor_that_gather_take_effect_each_once() {
    if cluster::differs("requests share nothing there") {
        return;
    }
    let database = TestDatabase::new();
    let app = App::start(&database);
    let merchant = database.merchant();
    let client = app.client.as_merchant(&merchant);
    let paths = charges(&client, 8, true);
    let before = batches(&app, "begin");
    let event = |n: usize| {
        let reference = paths[n].trim_start_matches("/v1/charges/");
        let data = json!({
            "merchant": merchant.id.to_string(),
            "reference": reference, "dispute": format!("dp_{n}"),
        });
        json!({"type": "dispute.opened", "data": data})
    };
    let deliver = |key: String, event: Value| {
        let client = app.client.clone();
        thread::spawn(move || client.delivery(&key, &event.to_string()).send())
    };
    let (sent, others) = gathered(&database, &app.client, || {
        let sent: Vec<Pending> = (0..16).map(|n| deliver(format!("evt_{}", n / 2), event(n / 2))).collect();
        let others = vec![
            deliver("evt_unknown".to_owned(), json!({"type": "nothing.known", "data": {}})),
            deliver(
                "evt_early".to_owned(),
                json!({"type": "payout.paid", "data": {
                    "merchant": merchant.id.to_string(),
                    "reference": format!("po_{}", uuid::Uuid::now_v7().as_simple()),
                }}),
            ),
        ];
        (18, (sent, others))
    });
    let answers_of_events = answers(sent);
    assert!(answers_of_events.iter().all(|answer| matches!(answer.status, 200 | 409)));
    assert_eq!(answers_of_events.iter().filter(|a| a.status == 200 && !a.is_replay()).count(), 8);
    let others = answers(others);
    assert_eq!(others[0].field("state"), "unknown");
    assert_eq!(others[1].field("state"), "parked");
    assert_eq!(database.rows("disputes"), 8);
    assert_eq!(database.rows("acquirer_events"), 8 + 2);
    for n in 0..8 {
        let replay = app.client.delivery(&format!("evt_{n}"), &event(n).to_string()).send().expect(200);
        assert!(replay.is_replay());
        assert_eq!(replay.field("state"), "applied");
    }
    let after = batches(&app, "begin");
    assert!(after.0 - before.0 < (after.1 - before.1) * 0.8, "{before:?} {after:?}");
    eventually("their end", || {
        thread::sleep(Duration::from_millis(10));
        app.client.metrics().value("oncepay_http_requests_in_flight", &[]) <= 1.0
    });
}
