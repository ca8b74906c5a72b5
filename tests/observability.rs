//! What can be seen from outside: metrics and log lines.

use std::io::{Read, Write};

use serde_json::json;

use crate::support::*;

#[test]
fn every_decision_is_counted_by_operation_and_outcome() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| {
        config.metrics_interval_ms = 50;
        config.recovery_interval_ms = 600_000;
    });
    let client = app.client.as_merchant(&database.merchant());
    client.charge("k", &visa()).expect(201);
    client.charge("k", &visa()).expect(201);
    client.charge("k", &visa()).expect(201);
    client.charge("k", &with_method("pm_card_slow")).expect_problem(422, "idempotency_key_reused");
    client.request("POST", "/v1/charges").json(&visa()).send().expect_problem(400, "idempotency_key_missing");
    client.charge("a b", &visa()).expect_problem(400, "idempotency_key_invalid");
    client.charge("d", &with_method("pm_card_declined")).expect_problem(402, "card_declined");
    client.charge("t", &with_method("pm_card_timeout")).expect_problem(503, "processor_unavailable");
    execute(
        &mut database.as_owner(),
        "UPDATE idempotency_keys SET lease_expires_at = clock_timestamp() + interval '1 hour' WHERE key = 't'",
    );
    client
        .charge("t", &with_method("pm_card_timeout"))
        .expect_problem(409, "idempotency_request_in_progress");
    database.age_key("d", 24 * 60 * 60);
    client.charge("d", &with_method("pm_card_declined")).expect_problem(422, "idempotency_key_expired");
    client
        .send("POST", "/v1/payouts", "p", &json!({"amount": "1.00", "currency": "USD", "destination": "b"}))
        .expect(201);

    let metrics = app.client.metrics();
    for (outcome, count) in [
        ("executed", 2.0),
        ("replayed", 2.0),
        ("mismatch", 1.0),
        ("missing", 1.0),
        ("invalid", 1.0),
        ("in_progress", 1.0),
        ("expired", 1.0),
        ("failed", 1.0),
    ] {
        assert_eq!(metrics.decisions("charges.create", outcome), count, "{outcome}");
    }
    assert_eq!(metrics.decisions("payouts.create", "executed"), 1.0);
    for (name, least) in [
        ("oncepay_idempotency_claim_duration_seconds_count", 3.0),
        ("oncepay_idempotency_finish_duration_seconds_count", 3.0),
        ("oncepay_db_pool_wait_duration_seconds_count", 10.0),
        ("oncepay_db_pool_size", app::POOL_SIZE.into()),
        ("oncepay_idempotency_table_bytes", 8192.0),
        ("process_resident_memory_bytes", 1.0),
    ] {
        assert!(metrics.value(name, &[]) >= least, "{name} in\n{}", metrics.0);
    }
    let route = [("method", "POST"), ("route", "/v1/charges"), ("status", "201")];
    assert_eq!(metrics.value("oncepay_http_requests_total", &route), 3.0);
    eventually("the sample", || {
        let metrics = app.client.metrics();
        metrics.value("oncepay_idempotency_in_progress", &[]) == 1.0
            && metrics.value("oncepay_idempotency_oldest_in_progress_age_seconds", &[]) > 0.0
    });
    // Paths of clients' making must not become series.
    client.get("/v1/charges/ch_1/nonsense").expect(404);
    let mut stream = connect(&app);
    stream.write_all(b"BREW /v1/charges HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    stream.read_to_string(&mut String::new()).unwrap();
    let metrics = app.client.metrics();
    assert!(!metrics.0.contains("nonsense") && !metrics.0.contains("BREW"), "{}", metrics.0);
    assert!(metrics.value("oncepay_http_requests_total", &[("route", "unmatched")]) >= 1.0);
    execute(&mut database.as_owner(), "ANALYZE idempotency_keys");
    eventually("the estimate", || {
        app.client.metrics().value("oncepay_idempotency_table_rows_estimate", &[]) == 4.0
    });
}

#[test]
fn what_strangers_send_makes_no_new_series() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let series = || {
        let metrics = app.client.metrics().0;
        // Workers add series of their own in time.
        metrics.lines().filter(|line| line.starts_with("oncepay_http_")).count()
    };
    app.client.get("/nothing").expect(404);
    app.client.request("DELETE", "/v1/charges").send().expect(405);
    app.client.metrics();
    let before = series();
    let document = app.client.get("/openapi.json").expect(200).json();
    let known = series();
    let paths: Vec<_> = document["paths"].as_object().unwrap().keys().cloned().collect();
    for path in
        paths.iter().map(String::as_str).chain(["/a", "/metrics", "/docs/none", "/problems/none", "/%00"])
    {
        for method in ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW", "get", "CONNECT"] {
            // Those that there are count by themselves.
            if document["paths"][path][method.to_ascii_lowercase()].is_object() {
                continue;
            }
            let path = path.replace(['{', '}'], "");
            let mut stream = connect(&app);
            write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
            stream.read_to_string(&mut String::new()).unwrap();
        }
    }
    for path in ["/docs/a", "/docs/b", "/problems/a", "/problems/b", "/v1/charges/a/b"] {
        app.client.get(path).expect(404);
    }
    assert!(known > before);
    assert_eq!(series(), known);
}

fn connect(app: &App) -> std::net::TcpStream {
    std::net::TcpStream::connect(app.client.base().trim_start_matches("http://")).unwrap()
}

#[test]
fn metrics_are_well_formed_and_documented() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    client.charge("k", &visa()).expect(201);
    let metrics = app.client.metrics().0;
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let family =
            ["_bucket", "_sum", "_count"].iter().fold(name, |name, suffix| name.trim_end_matches(suffix));
        assert!(metrics.contains(&format!("# HELP {family} ")), "{family} has no help");
        assert!(name.starts_with("oncepay_") || name.starts_with("process_"), "{name}");
    }
    assert!(
        !metrics.contains(&client.get("/v1/charges").json()["data"][0]["id"].as_str().unwrap().to_owned())
    );
}

#[test]
fn each_decision_is_one_log_line_and_keys_are_not_in_it() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let server = Process::start_logging(&database, &[("RUST_LOG", "info")]);
    let client = server.client.as_merchant(&merchant);
    let key = "order-4711-of-alice@example.org";
    let first = client.charge(key, &visa()).expect(201);
    let replay = client.charge(key, &visa()).expect(201);
    client.charge(key, &with_method("pm_card_slow")).expect_problem(422, "idempotency_key_reused");
    client.charge("t", &with_method("pm_card_timeout")).expect_problem(503, "processor_unavailable");
    client.charge("t", &with_method("pm_card_timeout")).expect(201);
    let encoded = key.replace('@', "%40");
    client.get(&format!("/v1/idempotency-keys/{encoded}")).expect(200);
    client.get(&format!("/v1/idempotency-keys/{key}")).expect(200);
    let log = server.log();
    let decisions: Vec<_> = log.lines().filter(|line| line.contains("oncepay::idempotency")).collect();
    assert_eq!(decisions.len(), 5, "{log}");
    for (line, (outcome, attempt)) in decisions.iter().zip([
        ("executed", 1),
        ("replayed", 0),
        ("mismatch", 0),
        ("failed", 0),
        ("executed", 2),
    ]) {
        for part in [
            format!("outcome={outcome}"),
            format!("attempt={attempt}"),
            "operation=charges.create".to_owned(),
            "request_id=req_".to_owned(),
            "key_hash=".to_owned(),
        ] {
            assert!(line.contains(&part), "{part} isn't in {line}");
        }
    }
    assert!(decisions[0].contains(first.header("X-Request-Id").unwrap()));
    assert!(decisions[1].contains(replay.header("X-Request-Id").unwrap()));
    let hash = |line: &str| line.split("key_hash=").nth(1).unwrap()[..32].to_owned();
    assert_eq!(hash(decisions[0]), hash(decisions[1]), "lines of one key belong together");
    assert!(!log.contains(key) && !log.contains("alice"), "{log}");
    assert!(!log.contains(&merchant.key), "{log}");
}
