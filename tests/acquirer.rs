//! The acquirer keeps its protocol, misbehaves as it's told, and loses nothing.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use diesel::RunQueryDsl;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};

use crate::support::acquirer::{Acquirer, Received, Receiver, WEBHOOK_SECRET};
use crate::support::*;

fn authorization(payment_method: &str) -> Value {
    json!({"amount": "12.5", "currency": "USD", "payment_method": payment_method, "merchant": "mer_1", "reference": "ch_1"})
}

fn amount(amount: &str) -> Value {
    json!({"amount": amount, "currency": "USD", "merchant": "mer_1", "reference": "ch_1"})
}

fn parties() -> Value {
    json!({"merchant": "mer_1", "reference": "ch_1"})
}

fn payout(destination: &str) -> Value {
    json!({"amount": "12.50", "currency": "USD", "destination": destination, "merchant": "mer_1", "reference": "po_1"})
}

/// Asks for something that is answered with `status`.
#[track_caller]
fn post(acquirer: &Acquirer, path: &str, key: &str, body: &Value, status: u16) -> Value {
    let (found, is_replay, answer) = acquirer.post(path, key, body).unwrap();
    assert_eq!((found, is_replay), (status, false), "{answer}");
    answer
}

/// The same again.
#[track_caller]
fn replay(acquirer: &Acquirer, path: &str, key: &str, body: &Value, status: u16) -> Value {
    let (found, is_replay, answer) = acquirer.post(path, key, body).unwrap();
    assert_eq!((found, is_replay), (status, true), "{answer}");
    answer
}

/// Asks for something that is refused; twice, since that is stored.
#[track_caller]
fn refused(acquirer: &Acquirer, path: &str, key: &str, body: &Value, code: &str) {
    let answer = post(acquirer, path, key, body, 422);
    assert_eq!(answer["error"]["code"], code);
    assert_eq!(replay(acquirer, path, key, body, 422), answer);
    let operation = acquirer.get(&format!("/operations/by-key/{key}")).unwrap().1;
    assert_eq!(operation["status"], "refused");
    assert_eq!(operation["refusal"], answer["error"]);
}

/// Authorizes 12.50 USD. Returns the authorization's path.
fn authorized(acquirer: &Acquirer, key: &str) -> String {
    let operation = post(acquirer, "/authorizations", key, &authorization("pm_card_visa"), 201);
    format!("/authorizations/{}", operation["authorization_id"].as_str().unwrap())
}

#[test]
fn operations_are_performed_shown_and_replayed() {
    let database = TestDatabase::new();
    let acquirer = Acquirer::start(&database);
    let operation = post(&acquirer, "/authorizations", "k/1:authorize", &authorization("pm_card_visa"), 201);
    assert!(operation["id"].as_str().unwrap().starts_with("op_"));
    assert!(chrono::DateTime::parse_from_rfc3339(operation["created_at"].as_str().unwrap()).is_ok());
    let mut expected = json!({
        "kind": "authorize", "idempotency_key": "k/1:authorize", "status": "succeeded", "decline_code": null,
        "refusal": null, "amount": "12.50", "currency": "USD", "merchant": "mer_1", "reference": "ch_1",
    });
    for member in ["id", "sequence", "created_at", "authorization_id"] {
        expected[member] = operation[member].clone();
    }
    assert_eq!(operation, expected);
    let shown = acquirer.get("/operations/by-key/k%2F1%3Aauthorize").unwrap();
    assert_eq!(shown, (200, operation.clone()));
    // Other digits, the same amount.
    let again = json!({"amount": "12.50", "currency": "USD", "payment_method": "pm_card_visa", "merchant": "mer_1", "reference": "ch_1"});
    assert_eq!(replay(&acquirer, "/authorizations", "k/1:authorize", &again, 200), operation);

    let path = format!("/authorizations/{}", operation["authorization_id"].as_str().unwrap());
    let captured = post(&acquirer, &format!("{path}/captures"), "c", &amount("10.00"), 201);
    assert_eq!((&captured["kind"], &captured["status"]), (&json!("capture"), &json!("succeeded")));
    assert_eq!(captured["authorization_id"], operation["authorization_id"]);
    assert_eq!(captured["amount"], "10.00");
    let refunded = post(&acquirer, &format!("{path}/refunds"), "r", &amount("4.00"), 201);
    assert_eq!((&refunded["kind"], &refunded["status"]), (&json!("refund"), &json!("succeeded")));
    let path = authorized(&acquirer, "second");
    let voided = post(&acquirer, &format!("{path}/void"), "v", &parties(), 201);
    assert_eq!(
        (&voided["kind"], &voided["amount"], &voided["currency"]),
        (&json!("void"), &json!(null), &json!(null))
    );
    let paid = post(&acquirer, "/payouts", "p", &payout("ba_1"), 201);
    assert_eq!((&paid["kind"], &paid["status"]), (&json!("payout"), &json!("pending")));
    assert_eq!(paid["authorization_id"], json!(null));
    assert_eq!(acquirer.get("/operations/by-key/none").unwrap().1["error"]["code"], "operation_not_found");
}

#[test]
fn what_cannot_be_done_is_refused_for_good() {
    let database = TestDatabase::new();
    let acquirer = Acquirer::start(&database);
    refused(&acquirer, "/authorizations/auth_0/captures", "1", &amount("1"), "authorization_not_found");
    let path = authorized(&acquirer, "a");
    let (captures, refunds, void) =
        (format!("{path}/captures"), format!("{path}/refunds"), format!("{path}/void"));
    refused(&acquirer, &refunds, "2", &amount("1"), "amount_exceeds_captured");
    refused(&acquirer, &captures, "3", &amount("12.51"), "amount_exceeds_authorization");
    let euros = json!({"amount": "1", "currency": "EUR", "merchant": "mer_1", "reference": "ch_1"});
    refused(&acquirer, &captures, "4", &euros, "currency_mismatch");
    post(&acquirer, &captures, "5", &amount("10"), 201);
    refused(&acquirer, &captures, "6", &amount("2.50"), "authorization_not_open");
    refused(&acquirer, &void, "7", &parties(), "authorization_not_open");
    refused(&acquirer, &refunds, "8", &euros, "currency_mismatch");
    post(&acquirer, &refunds, "9", &amount("6"), 201);
    refused(&acquirer, &refunds, "10", &amount("4.01"), "amount_exceeds_captured");
    post(&acquirer, &refunds, "11", &amount("4"), 201);

    let void = format!("{}/void", authorized(&acquirer, "b"));
    post(&acquirer, &void, "12", &parties(), 201);
    replay(&acquirer, &void, "12", &parties(), 200);
    refused(&acquirer, &void, "13", &parties(), "authorization_not_open");
    let declined = post(&acquirer, "/authorizations", "c", &authorization("pm_card_declined"), 201);
    let path = format!("/authorizations/{}/captures", declined["authorization_id"].as_str().unwrap());
    refused(&acquirer, &path, "14", &amount("1"), "authorization_not_open");
}

#[test]
fn a_key_belongs_to_one_operation() {
    let database = TestDatabase::new();
    let acquirer = Acquirer::start(&database);
    let path = authorized(&acquirer, "a");
    post(&acquirer, &format!("{path}/captures"), "c", &amount("10"), 201);
    let other = authorized(&acquirer, "b");
    for (path, body) in [
        (format!("{path}/captures"), amount("9")),
        (format!("{other}/captures"), amount("10")),
        (format!("{path}/refunds"), amount("10")),
        (format!("{path}/void"), parties()),
    ] {
        let answer = post(&acquirer, &path, "c", &body, 422);
        assert_eq!(answer["error"]["code"], "idempotency_key_reused", "{path} {body}");
    }
    replay(&acquirer, &format!("{path}/captures"), "c", &amount("10.00"), 200);
    assert_eq!(acquirer.operations().len(), 3);
}

#[test]
fn requests_are_read_with_care() {
    let database = TestDatabase::new();
    let acquirer = Acquirer::start(&database);
    let mut stranger = agent_request(&acquirer, "GET", "/operations");
    assert_eq!(stranger(None), (401, "unauthorized".to_owned()));
    assert_eq!(stranger(Some("Bearer acquirer-kex")), (401, "unauthorized".to_owned()));
    assert_eq!(agent_request(&acquirer, "POST", "/payouts")(None).0, 401);
    assert_eq!(agent_request(&acquirer, "GET", "/health")(None).0, 200);
    let mut without_key = agent_request(&acquirer, "POST", "/payouts");
    let authorization = format!("Bearer {}", acquirer.api_key);
    assert_eq!(without_key(Some(&authorization)), (400, "idempotency_key_missing".to_owned()));
    let code = |path: &str, key: &str, body: Value| {
        let (status, _, answer) = acquirer.post(path, key, &body).unwrap();
        (status, answer["error"]["code"].as_str().unwrap().to_owned())
    };
    let invalid = (400, "request_invalid".to_owned());
    assert_eq!(code("/payouts", "a b", payout("x")), (400, "idempotency_key_invalid".to_owned()));
    assert_eq!(code("/payouts", &"k".repeat(256), payout("x")), (400, "idempotency_key_invalid".to_owned()));
    assert_eq!(code("/payouts", "k", json!({})), invalid);
    assert_eq!(code("/payouts", "k", payout("")), invalid);
    assert_eq!(code("/payouts", "k", payout("a\u{0}b")), invalid);
    assert_eq!(code("/authorizations", "k", self::authorization("pm_none")), invalid);
    for amount in ["0", "-1", "1.005", "1e2"] {
        assert_eq!(code("/authorizations/a/captures", "k", self::amount(amount)), invalid, "{amount}");
    }
    assert_eq!(code("/nothing", "k", json!({})), (404, "not_found".to_owned()));
    for query in ["limit=0", "limit=1001", "after=x"] {
        assert_eq!(acquirer.get(&format!("/operations?{query}")).unwrap().0, 400, "{query}");
    }
    assert!(acquirer.operations().is_empty());
}

/// A request of somebody who may have no key. The answer is its status and code.
fn agent_request<'a>(
    acquirer: &'a Acquirer,
    method: &'a str,
    path: &'a str,
) -> impl FnMut(Option<&str>) -> (u16, String) + 'a {
    move |authorization| {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", acquirer.url))
            .header("Content-Type", "application/json");
        if let Some(authorization) = authorization {
            request = request.header("Authorization", authorization);
        }
        let mut answer = match method {
            "GET" => agent.run(request.body(()).unwrap()).unwrap(),
            _ => agent.run(request.body(payout("ba_1").to_string()).unwrap()).unwrap(),
        };
        let body: Value = serde_json::from_slice(&answer.body_mut().read_to_vec().unwrap()).unwrap();
        (answer.status().as_u16(), body["error"]["code"].as_str().unwrap_or_default().to_owned())
    }
}

#[test]
fn sixteen_at_once_have_one_effect() {
    let database = TestDatabase::new();
    let acquirer = Acquirer::start(&database);
    // Two processes, one database.
    let second = Acquirer::start_beside(&acquirer);
    let all_at_once = |path: &str, key: &str, body: &Value| {
        let answers: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..16)
                .map(|number| {
                    let acquirer = if number % 2 == 0 { &acquirer } else { &second };
                    scope.spawn(move || acquirer.post(path, key, body).unwrap())
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(
            answers.iter().filter(|(status, is_replay, _)| (*status, *is_replay) == (201, false)).count(),
            1
        );
        assert_eq!(
            answers.iter().filter(|(status, is_replay, _)| (*status, *is_replay) == (200, true)).count(),
            15
        );
        let ids: HashSet<_> = answers.iter().map(|(_, _, operation)| operation["id"].to_string()).collect();
        assert_eq!(ids.len(), 1);
        answers[0].2.clone()
    };
    for round in 0..5 {
        let operation = all_at_once("/authorizations", &format!("a{round}"), &authorization("pm_card_visa"));
        let path = format!("/authorizations/{}", operation["authorization_id"].as_str().unwrap());
        all_at_once(&format!("{path}/captures"), &format!("c{round}"), &amount("10"));
        all_at_once(&format!("{path}/refunds"), &format!("r{round}"), &amount("4"));
    }
    let refunded =
        acquirer.rows("SELECT to_jsonb(refunded = 4 AND captured = 10) AS row FROM authorizations");
    assert_eq!(refunded, vec![json!(true); 5]);
    // Different keys: only what is there can be taken.
    let path = authorized(&acquirer, "a");
    let statuses: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..16)
            .map(|number| {
                let (acquirer, path) = (&acquirer, &path);
                scope.spawn(move || {
                    acquirer
                        .post(&format!("{path}/captures"), &format!("n{number}"), &amount("10"))
                        .unwrap()
                        .0
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|&&status| status == 201).count(), 1);
}

#[test]
fn payment_methods_are_played() {
    let database = TestDatabase::new();
    let acquirer = Acquirer::start(&database);
    let declined = post(&acquirer, "/authorizations", "d", &authorization("pm_card_declined"), 201);
    assert_eq!(
        (&declined["status"], &declined["decline_code"]),
        (&json!("declined"), &json!("generic_decline"))
    );
    let poor = post(&acquirer, "/authorizations", "i", &authorization("pm_card_insufficient_funds"), 201);
    assert_eq!((&poor["status"], &poor["decline_code"]), (&json!("declined"), &json!("insufficient_funds")));
    let started = Instant::now();
    post(&acquirer, "/authorizations", "s", &authorization("pm_card_slow"), 201);
    assert!(started.elapsed() >= Duration::from_secs(2));
    let repeated = Instant::now();
    replay(&acquirer, "/authorizations", "s", &authorization("pm_card_slow"), 200);
    assert!(repeated.elapsed() < Duration::from_secs(2));
}

#[test]
fn the_answers_of_an_attempt_get_lost() {
    let database = TestDatabase::new();
    let acquirer = Acquirer::start(&database);
    let body = authorization("pm_card_timeout");
    let find_as = |attempt: u32| {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        let request = ureq::http::Request::get(format!("{}/operations/by-key/t", acquirer.url))
            .header("Authorization", format!("Bearer {}", acquirer.api_key))
            .header("Oncepay-Attempt", attempt.to_string());
        agent.run(request.body(()).unwrap()).and_then(|mut answer| answer.body_mut().read_to_vec())
    };
    let started = Instant::now();
    for _ in 0..2 {
        assert!(acquirer.post_as(Some(1), "/authorizations", "t", &body).is_err());
        assert!(find_as(1).is_err());
    }
    assert!(started.elapsed() < Duration::from_secs(10), "lost answers don't hang");
    assert_eq!(acquirer.operations().len(), 1, "it has taken effect");
    assert!(find_as(2).is_ok());
    let (status, is_replay, _) = acquirer.post_as(Some(2), "/authorizations", "t", &body).unwrap();
    assert_eq!((status, is_replay), (200, true));
    // Without the header the first request is the first attempt.
    assert!(acquirer.post("/authorizations", "u", &body).is_err());
    assert_eq!(acquirer.get("/operations/by-key/u").unwrap().0, 200);
    replay(&acquirer, "/authorizations", "u", &body, 200);

    let body = authorization("pm_card_error_once");
    for _ in 0..2 {
        assert_eq!(acquirer.post_as(Some(1), "/authorizations", "e", &body).unwrap().0, 500);
    }
    assert_eq!(acquirer.get("/operations/by-key/e").unwrap().0, 404, "it has no effect");
    assert_eq!(acquirer.post_as(Some(2), "/authorizations", "e", &body).unwrap().0, 201);
    assert_eq!(acquirer.post("/authorizations", "f", &body).unwrap().0, 500);
    post(&acquirer, "/authorizations", "f", &body, 201);
}

#[test]
fn faults_happen_as_often_as_told() {
    let database = TestDatabase::new();
    let acquirer = Acquirer::start(&database);
    let visa = authorization("pm_card_visa");
    let found = |key: &str| acquirer.get(&format!("/operations/by-key/{key}")).unwrap().0 == 200;

    acquirer.control(json!({"rules": [{"fault": "error_before", "kinds": ["authorize"], "times": 1}]}));
    post(&acquirer, "/authorizations", "eb", &visa, 500);
    assert!(!found("eb"));
    post(&acquirer, "/authorizations", "eb", &visa, 201);
    assert_eq!(acquirer.faults()["rules"][0]["hits"], 1);

    acquirer.control(json!({"rules": [{"fault": "error_after", "kinds": ["authorize", "find"]}]}));
    post(&acquirer, "/authorizations", "ea", &visa, 500);
    assert_eq!(acquirer.get("/operations/by-key/ea").unwrap().0, 500);
    assert_eq!(acquirer.get("/operations").unwrap().0, 200, "it's not of those kinds");
    assert_eq!(acquirer.faults()["rules"][0]["hits"], 2);
    acquirer.try_control("DELETE", "faults", &json!({}));
    assert!(found("ea"));
    replay(&acquirer, "/authorizations", "ea", &visa, 200);

    acquirer.control(json!({"rules": [{"fault": "drop_answer", "kinds": ["payout"]}]}));
    let started = Instant::now();
    assert!(acquirer.post("/payouts", "da", &payout("ba_1")).is_err());
    assert!(started.elapsed() < Duration::from_secs(10));
    assert!(found("da"));

    acquirer.control(json!({"rules": [{"fault": "delay", "delay_ms": 300, "kinds": ["list"]}]}));
    let started = Instant::now();
    assert_eq!(acquirer.get("/operations").unwrap().0, 200);
    assert!(started.elapsed() >= Duration::from_millis(300));

    acquirer.control(json!({"rules": [{"fault": "black_hole", "kinds": ["authorize"]}]}));
    let request = format!(
        "POST /authorizations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nIdempotency-Key: bh\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{visa}",
        acquirer.api_key,
        visa.to_string().len()
    );
    let mut stream = TcpStream::connect(acquirer.url.strip_prefix("http://").unwrap()).unwrap();
    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
    eventually("the effect", || found("bh"));
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let silence = std::io::Read::read(&mut stream, &mut [0; 1]).unwrap_err();
    assert_eq!(silence.kind(), std::io::ErrorKind::WouldBlock);

    for plan in [json!({"rules": [{"fault": "fire"}]}), json!({"rules": [{"fault": "delay", "percent": 0}]})]
    {
        assert_eq!(acquirer.try_control("PUT", "faults", &plan).0, 400, "{plan}");
    }
}

#[test]
fn it_takes_effect_also_for_a_client_that_has_gone() {
    let database = TestDatabase::new();
    let acquirer = Acquirer::start(&database);
    acquirer.control(json!({"rules": [{"fault": "delay", "delay_ms": 300, "kinds": ["payout"]}]}));
    let body = payout("ba_1").to_string();
    let request = format!(
        "POST /payouts HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nIdempotency-Key: k\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        acquirer.api_key,
        body.len()
    );
    let mut stream = TcpStream::connect(acquirer.url.strip_prefix("http://").unwrap()).unwrap();
    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
    eventually("the request's arrival", || acquirer.faults()["rules"][0]["hits"] == 1);
    // By a reset: after a mere end of the stream, the client might still read.
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    eventually("the effect", || acquirer.operations().len() == 1);
}

#[test]
fn it_refuses_connections_and_comes_back() {
    let database = TestDatabase::new();
    let mut acquirer = Acquirer::start(&database);
    let address = acquirer.url.strip_prefix("http://").unwrap().to_owned();
    let mut open = TcpStream::connect(&address).unwrap();
    acquirer.refuse(Duration::from_secs(3));
    open.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let cut = std::io::Read::read(&mut open, &mut [0; 1]);
    assert!(
        matches!(cut, Ok(0)) || cut.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
    );
    assert_eq!(TcpStream::connect(&address).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    eventually("its return", || acquirer.get("/operations").is_ok_and(|(status, _)| status == 200));
    authorized(&acquirer, "a");

    acquirer.stop();
    assert!(TcpStream::connect(&address).is_err());
    acquirer.start_again();
    assert_eq!(acquirer.url, format!("http://{address}"));
    assert_eq!(acquirer.get("/operations/by-key/a").unwrap().0, 200, "it remembers");
}

/// What a transaction of the acquirer does.
fn insert_void(conn: &mut diesel::PgConnection, key: &str) {
    execute(
        conn,
        &format!(
            "INSERT INTO operations (id, kind, idempotency_key, target, status, merchant, reference) \
             VALUES ('op_{key}', 'void', '{key}', 'auth_1', 'succeeded', 'mer_1', 'ch_1')"
        ),
    );
}

/// Reads the whole list from a cursor on, and moves the cursor.
fn read_on(acquirer: &Acquirer, cursor: &mut i64) -> Vec<String> {
    let mut keys = Vec::new();
    loop {
        let page = acquirer.get(&format!("/operations?after={cursor}&limit=2")).unwrap().1;
        for operation in page["operations"].as_array().unwrap() {
            let sequence = operation["sequence"].as_i64().unwrap();
            assert!(sequence > *cursor);
            *cursor = sequence;
            keys.push(format!(
                "{} {}",
                operation["idempotency_key"].as_str().unwrap(),
                operation["status"].as_str().unwrap()
            ));
        }
        if page["has_more"] == false {
            return keys;
        }
    }
}

#[test]
fn a_cursor_misses_no_late_commit() {
    let database = TestDatabase::new();
    let acquirer = Acquirer::start(&database);
    authorized(&acquirer, "first");
    let (mut cursor, mut seen) = (0, Vec::new());
    let wait_for = |cursor: &mut i64, seen: &mut Vec<String>, count: usize| {
        let deadline = Instant::now() + Duration::from_secs(30);
        while seen.len() < count {
            assert!(Instant::now() < deadline, "only {seen:?}");
            seen.extend(read_on(&acquirer, cursor));
            thread::sleep(Duration::from_millis(10));
        }
    };
    wait_for(&mut cursor, &mut seen, 1);

    let late = &mut acquirer.as_owner();
    execute(late, "BEGIN");
    insert_void(late, "late");
    for number in 0..3 {
        authorized(&acquirer, &format!("after{number}"));
    }
    for _ in 0..5 {
        seen.extend(read_on(&acquirer, &mut cursor));
    }
    assert_eq!(seen.len(), 1, "nothing that could hide the late one: {seen:?}");
    execute(late, "COMMIT");
    wait_for(&mut cursor, &mut seen, 5);
    let expected = ["first", "late", "after0", "after1", "after2"].map(|key| format!("{key} succeeded"));
    assert_eq!(seen, expected);

    // Whoever has read on sees what has changed since.
    post(&acquirer, "/authorizations", "async", &authorization("pm_card_async"), 201);
    eventually("the decision", || !acquirer.events().is_empty());
    wait_for(&mut cursor, &mut seen, 6);
    eventually("an end", || acquirer.operations().last().unwrap()["status"] == "succeeded");
    let deadline = Instant::now() + Duration::from_secs(30);
    while seen.last().unwrap() != "async succeeded" {
        assert!(Instant::now() < deadline, "{seen:?}");
        seen.extend(read_on(&acquirer, &mut cursor));
    }
}

/// With many writers that take their time to commit, a reader who reads all the time has seen everything in the end.
#[test]
fn a_cursor_misses_nothing_of_many_writers() {
    let database = TestDatabase::new();
    let acquirer = Acquirer::start(&database);
    let (mut cursor, mut seen) = (0, HashSet::new());
    thread::scope(|scope| {
        for writer in 0..8 {
            let acquirer = &acquirer;
            scope.spawn(move || {
                let conn = &mut acquirer.as_owner();
                for number in 0..25 {
                    execute(conn, "BEGIN");
                    insert_void(conn, &format!("{writer}-{number}"));
                    execute(conn, "SELECT pg_sleep(random() / 10)");
                    execute(conn, "COMMIT");
                }
            });
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while seen.len() < 200 {
            assert!(Instant::now() < deadline, "only {} of 200", seen.len());
            for key in read_on(&acquirer, &mut cursor) {
                assert!(seen.insert(key));
            }
        }
    });
}

#[track_caller]
fn assert_signed(event: &Received) {
    let secret = STANDARD.decode(WEBHOOK_SECRET.strip_prefix("whsec_").unwrap()).unwrap();
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(&secret).unwrap();
    mac.update(format!("{}.{}.{}", event.id, event.timestamp, event.body).as_bytes());
    assert_eq!(event.signature, format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())));
    let age = chrono::Utc::now().timestamp() - event.timestamp.parse::<i64>().unwrap();
    assert!((0..30).contains(&age), "{age} s");
}

#[test]
fn what_is_decided_later_is_told() {
    let (database, receiver) = (TestDatabase::new(), Receiver::start());
    let acquirer = Acquirer::start_sending(&database, &receiver.url);
    let told = |number: usize| {
        eventually("the event", || receiver.received().len() >= number);
        let event = &receiver.received()[number - 1];
        assert_signed(event);
        event.json()
    };
    let pending = post(&acquirer, "/authorizations", "a", &authorization("pm_card_async"), 201);
    assert_eq!(pending["status"], "pending");
    let path = format!("/authorizations/{}/captures", pending["authorization_id"].as_str().unwrap());
    let event = told(1);
    assert_eq!(event["type"], "charge.succeeded");
    let data = &event["data"];
    assert_eq!(data["operation"], acquirer.get("/operations/by-key/a").unwrap().1);
    assert_eq!(data["operation"]["status"], "succeeded");
    assert!(data["operation"]["sequence"].as_i64() > pending["sequence"].as_i64());
    assert_eq!(
        (&data["merchant"], &data["reference"], &data["amount"], &data["currency"]),
        (&json!("mer_1"), &json!("ch_1"), &json!("12.50"), &json!("USD"))
    );
    post(&acquirer, &path, "c", &amount("12.50"), 201);

    acquirer.control(json!({"webhooks": {"async_decision": "failed"}}));
    post(&acquirer, "/authorizations", "b", &authorization("pm_card_async"), 201);
    let event = told(2);
    assert_eq!(
        (&event["type"], &event["data"]["operation"]["status"]),
        (&json!("charge.failed"), &json!("declined"))
    );
    post(&acquirer, "/payouts", "p", &payout("ba_1"), 201);
    let event = told(3);
    assert_eq!(
        (&event["type"], &event["data"]["operation"]["status"]),
        (&json!("payout.paid"), &json!("paid"))
    );
    post(&acquirer, "/payouts", "q", &payout("ba_fail"), 201);
    let event = told(4);
    assert_eq!(
        (&event["type"], &event["data"]["operation"]["status"]),
        (&json!("payout.failed"), &json!("failed"))
    );

    let id = acquirer.send_event("dispute.opened", &json!({"reference": "ch_1"}));
    assert_eq!(told(5)["data"], json!({"reference": "ch_1"}));
    assert_eq!(receiver.received()[4].id, id);
    assert_eq!(acquirer.try_control("POST", "events", &json!({"type": "none", "data": {}})).0, 400);
}

#[test]
fn what_was_captured_is_settled_once() {
    let database = TestDatabase::new();
    let acquirer = Acquirer::start(&database);
    let nothing = |currency: &str| {
        let asked = json!({"merchant": "mer_1", "currency": currency});
        let (status, answer) = acquirer.try_control("POST", "settlements", &asked);
        assert_eq!((status, &answer["error"]["code"]), (422, &json!("nothing_to_settle")));
    };
    nothing("USD");
    for key in ["a", "b"] {
        let path = authorized(&acquirer, key);
        post(&acquirer, &format!("{path}/captures"), &format!("{key}c"), &amount("10"), 201);
        post(&acquirer, &format!("{path}/refunds"), &format!("{key}r"), &amount("2.50"), 201);
    }
    nothing("EUR");
    let settlement = acquirer.settle("mer_1", "USD");
    assert_eq!((&settlement["amount"], &settlement["operation_count"]), (&json!("15.00"), &json!(4)));
    let events = acquirer.events();
    assert_eq!((&events[0]["type"], &events[0]["data"]), (&json!("settlement.paid"), &settlement));
    nothing("USD");
}

#[test]
fn webhooks_are_retried_until_they_arrive() {
    let (database, receiver) = (TestDatabase::new(), Receiver::start());
    let acquirer = Acquirer::start_sending(&database, &receiver.url);
    receiver.answer_next(&[500, 302]);
    let id = acquirer.send_event("dispute.won", &json!({"n": 1}));
    eventually("three attempts", || receiver.received().len() == 3);
    let received = receiver.received();
    assert!(received.iter().all(|event| event.id == id && event.body == received[0].body));
    received.iter().for_each(assert_signed);
    assert_ne!(received[0].timestamp, received[2].timestamp, "each attempt has its own");
    eventually("the note", || acquirer.rows(UNDELIVERED).is_empty());
}

/// For a client that has lost them, as by a restore from a backup.
#[test]
fn webhooks_since_a_time_are_sent_again_on_request() {
    let (database, receiver) = (TestDatabase::new(), Receiver::start());
    let acquirer = Acquirer::start_sending(&database, &receiver.url);
    acquirer.send_event("dispute.won", &json!({"n": 1}));
    eventually("the first", || receiver.received().len() == 1);
    eventually("the note", || acquirer.rows(UNDELIVERED).is_empty());
    let since = acquirer.rows("SELECT to_jsonb(statement_timestamp()) AS row").remove(0);
    let id = acquirer.send_event("dispute.lost", &json!({"n": 2}));
    eventually("the second", || receiver.received().len() == 2);
    eventually("the note", || acquirer.rows(UNDELIVERED).is_empty());
    let (status, answer) = acquirer.try_control("POST", "redeliveries", &json!({"after": since}));
    assert_eq!((status, answer), (200, json!({"events": 1})));
    eventually("the second again", || receiver.received().len() == 3);
    let received = receiver.received();
    assert_eq!((&received[2].id, &received[2].body), (&id, &received[1].body));
    assert_eq!(acquirer.try_control("POST", "redeliveries", &json!({"after": "yesterday"})).0, 400);
}

const UNDELIVERED: &str =
    "SELECT to_jsonb(o) AS row FROM outbox o WHERE delivered_at IS NULL OR deliveries_due > 0";

#[test]
fn webhooks_come_late_twice_and_out_of_order() {
    let (database, receiver) = (TestDatabase::new(), Receiver::start());
    let acquirer = Acquirer::start_sending(&database, &receiver.url);
    let send = |count: usize| -> Vec<String> {
        (0..count).map(|n| acquirer.send_event("dispute.lost", &json!({"n": n}))).collect()
    };
    let ids = |from: usize| -> Vec<String> {
        receiver.received()[from..].iter().map(|event| event.id.clone()).collect()
    };
    let sent = send(10);
    eventually("all", || receiver.received().len() == 10);
    assert_eq!(ids(0), sent, "in order unless told otherwise");

    acquirer.control(json!({"webhooks": {"duplicate_percent": 100}}));
    let sent = send(1);
    eventually("both", || receiver.received().len() == 12);
    assert_eq!(ids(10), [sent[0].clone(), sent[0].clone()]);

    acquirer.control(json!({"webhooks": {"delay_ms": 600}}));
    let started = Instant::now();
    send(1);
    eventually("the late one", || receiver.received().len() == 13);
    assert!(started.elapsed() >= Duration::from_millis(600));

    acquirer.control(json!({"seed": 1, "webhooks": {"shuffle_window_ms": 500}}));
    let sent = send(20);
    eventually("all", || receiver.received().len() == 33);
    let arrived = ids(13);
    assert_ne!(arrived, sent);
    assert_eq!(arrived.into_iter().collect::<HashSet<_>>(), sent.into_iter().collect());
    eventually("the notes", || acquirer.rows(UNDELIVERED).is_empty());
}

#[test]
fn a_sender_that_dies_loses_nothing_and_two_do_not_send_the_same() {
    let (database, receiver) = (TestDatabase::new(), Receiver::start());
    let mut acquirer = Acquirer::start(&database);
    let ids: Vec<_> = (0..30).map(|n| acquirer.send_event("dispute.opened", &json!({"n": n}))).collect();
    acquirer.stop();
    let set = |acquirer: &Acquirer, changes: &str| {
        let changed = diesel::sql_query(format!("UPDATE outbox SET {changes} WHERE id = $1"))
            .bind::<diesel::sql_types::Text, _>(&ids[0])
            .execute(&mut acquirer.as_owner());
        assert_eq!(changed.unwrap(), 1);
    };
    // As a sender leaves it that died after its claim.
    set(&acquirer, "attempts = 1, due_at = statement_timestamp() + interval '1 hour'");
    acquirer.send_to(&receiver.url);
    acquirer.start_again();
    let second = Acquirer::start_beside(&acquirer);
    eventually("the others", || receiver.received().len() >= 29);
    assert!(receiver.received().iter().all(|event| event.id != ids[0]), "the claim still holds");
    set(&acquirer, "due_at = statement_timestamp()");
    eventually("all", || receiver.received().len() >= 30);
    eventually("the notes", || acquirer.rows(UNDELIVERED).is_empty());
    let received = receiver.received();
    assert_eq!(received.len(), 30, "each once");
    let received: HashSet<_> = received.into_iter().map(|event| event.id).collect();
    assert_eq!(received, ids.into_iter().collect());
    drop(second);
}

fn command(acquirer: &Acquirer) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oncepay"));
    command
        .args(["simulator", "--listen", "127.0.0.1:0"])
        .env("ONCEPAY_SIMULATOR_DATABASE_URL", database::exposed(&acquirer.database_url))
        .env("ONCEPAY_SIMULATOR_API_KEY", &acquirer.api_key)
        .env_remove("ONCEPAY_WEBHOOK_SECRET")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

#[test]
fn the_command_serves_until_it_is_told_to_stop() {
    let database = TestDatabase::new();
    let acquirer = Acquirer::start(&database);
    let mut child = command(&acquirer).args(["--control-listen", "127.0.0.1:0"]).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut said = |start: &str| {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        line.trim_end().strip_prefix(start).unwrap_or_else(|| panic!("it said {line:?}")).to_owned()
    };
    let (url, control_url) = (said("Simulator on "), said("Control on "));
    for path in [format!("{url}/health"), format!("{control_url}/control/faults")] {
        assert_eq!(ureq::get(&path).call().unwrap().status(), 200, "{path}");
    }
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn the_command_says_what_to_do_differently() {
    let database = TestDatabase::new();
    let acquirer = Acquirer::start(&database);
    let complaint = |arguments: &[&str], secret: &str| {
        let output =
            command(&acquirer).args(arguments).env("ONCEPAY_WEBHOOK_SECRET", secret).output().unwrap();
        assert_eq!(output.status.code(), Some(3));
        String::from_utf8(output.stderr).unwrap()
    };
    let everywhere = complaint(&["--control-listen", "0.0.0.0:0"], WEBHOOK_SECRET);
    assert!(everywhere.contains("must be an address of this machine"), "{everywhere}");
    let bad = complaint(&["--webhook-url", "http://127.0.0.1:1/"], "whsec_?");
    assert!(bad.contains("must be whsec_ and base64"), "{bad}");
}
