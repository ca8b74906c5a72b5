//! What can be seen from outside: metrics and log lines.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::path::Path;

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
        "UPDATE idempotency_keys SET lease_expires_at = statement_timestamp() + interval '1 hour' WHERE key = 't'",
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
    let decisions: Vec<_> = log.lines().filter(|line| line.contains(" outcome=")).collect();
    assert_eq!(decisions.len(), 5, "{log}");
    for (line, (outcome, attempt)) in decisions.iter().zip([
        ("executed", Some(1)),
        ("replayed", None),
        ("mismatch", None),
        ("failed", None),
        ("executed", Some(2)),
    ]) {
        for part in [
            format!(" outcome={outcome} "),
            attempt.map(|attempt| format!(" attempt={attempt} ")).unwrap_or_default(),
            " operation=charges.create ".to_owned(),
            " request_id=req_".to_owned(),
            " key_hash=".to_owned(),
        ] {
            assert!(line.contains(&part), "{part} isn't in {line}");
        }
        assert_eq!(line.contains(" attempt="), attempt.is_some(), "{line}");
    }
    assert!(decisions[0].contains(first.header("X-Request-Id").unwrap()));
    assert!(decisions[1].contains(replay.header("X-Request-Id").unwrap()));
    let hash = |line: &str| line.split("key_hash=").nth(1).unwrap()[..32].to_owned();
    assert_eq!(hash(decisions[0]), hash(decisions[1]), "lines of one key belong together");
    assert!(!log.contains(key) && !log.contains("alice"), "{log}");
    assert!(!log.contains(&merchant.key), "{log}");
}

/// A file of `ops/`.
fn ops(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("ops").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The words that follow `mark` in `text`.
fn words_after<'a>(text: &'a str, mark: &str) -> BTreeSet<&'a str> {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    text.split(mark)
        .skip(1)
        .map(|rest| &rest[..rest.find(|letter| !is_part(letter)).unwrap_or(rest.len())])
        .collect()
}

#[test]
fn each_alert_has_a_section_of_the_runbook_and_a_unit_test_and_the_reverse() {
    let rules = ops("alerts.yml");
    let alerts = words_after(&rules, "- alert: ");
    assert!(alerts.len() > 20, "{alerts:?}");

    let runbook = ops("runbook.md");
    assert_eq!(words_after(&runbook, "\n## "), alerts);
    for section in runbook.split("\n## ").skip(1) {
        for part in ["**Meaning.**", "**Look.**", "**Do.**", "**Over when**", "```console\n$ "] {
            assert_eq!(section.matches(part).count(), 1, "{part} in {section}");
        }
    }
    for rule in rules.split("- alert: ").skip(1) {
        let name = rule.split_whitespace().next().unwrap();
        let link = format!("runbook: ops/runbook.md#{}\n", name.to_ascii_lowercase());
        assert!(rule.contains(&link), "{name} doesn't link to its section");
        assert!(rule.contains("severity: page}") || rule.contains("severity: ticket}"), "{name}");
    }

    let cases = ops("alerts.test.yml");
    assert_eq!(
        words_after(&cases, "alertname=\"")
            .union(&words_after(&cases, "alertname: "))
            .copied()
            .collect::<BTreeSet<_>>(),
        alerts
    );
    for alert in &alerts {
        let of_it = format!("alertname=\"{alert}\"");
        let firing = cases.split("- expr: ").filter(|case| case.contains(&of_it));
        let (quiet, loud): (Vec<_>, Vec<_>) = firing.partition(|case| case.contains("exp_samples: []"));
        assert!(!quiet.is_empty() && !loud.is_empty(), "{alert} must be seen to fire and not to fire");
    }
}

#[test]
fn alerts_runbook_and_dashboard_name_only_metrics_that_the_service_has() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    app.client.as_merchant(&database.merchant()).charge("k", &visa()).expect(201);
    let shown = app.client.metrics().0;
    let shown = words_after(&shown, "# HELP ");

    // Metrics with labels show only when there is a value. The registry knows the names of all.
    let mut registered = BTreeMap::new();
    for folder in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap() {
        let Ok(source) = fs::read_to_string(folder.unwrap().path().join("metrics.rs")) else { continue };
        for call in source.split("registry").skip(1) {
            let Some((kind, rest)) =
                call.trim_start().strip_prefix('.').and_then(|call| call.split_once('('))
            else {
                continue;
            };
            if let Some(name) = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next()) {
                registered.insert(name.to_owned(), kind.to_owned());
            }
        }
    }
    assert!(registered.len() > 40, "{registered:?}");
    for (name, kind) in &registered {
        let has_labels =
            ["counters", "gauges", "durations_by", "histograms_by", "sizes_by"].contains(&kind.as_str());
        assert!(has_labels || shown.contains(name.as_str()), "{name} is registered and not shown");
    }
    for name in shown.iter().filter(|name| name.starts_with("oncepay_")) {
        assert!(registered.contains_key(*name), "{name} isn't found in the sources");
    }

    let mut texts: Vec<_> =
        ["alerts.yml", "alerts.test.yml", "runbook.md"].map(|file| (file.to_owned(), ops(file))).into();
    for file in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("ops/grafana/dashboards")).unwrap() {
        let file = file.unwrap().path();
        texts.push((file.display().to_string(), fs::read_to_string(&file).unwrap()));
    }
    for (file, text) in &texts {
        for rest in words_after(text, "oncepay_") {
            let name = format!("oncepay_{rest}");
            // Names of tables and roles are no metrics.
            if ["oncepay_app", "oncepay_owner"].contains(&name.as_str()) {
                continue;
            }
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let is_known = registered.contains_key(&name)
                || family.and_then(|family| registered.get(family)).is_some_and(|kind| {
                    ["durations", "durations_by", "histograms_by", "sizes", "sizes_by"]
                        .contains(&kind.as_str())
                });
            assert!(is_known, "{file} names {name}, which isn't a metric");
        }
    }
    // A threshold between two boundaries of the buckets would be a guess.
    let first = 0.000_25_f64;
    let boundaries: BTreeSet<_> = (0..16).map(|power| (first * f64::from(1 << power)).to_string()).collect();
    for le in ops("alerts.yml").split("le=\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned())
    {
        assert!(boundaries.contains(&le), "{le} isn't in {boundaries:?}");
    }
}

#[test]
fn requests_that_nobody_recovers_show_by_how_long_they_have_been_due() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| config.metrics_interval_ms = 50);
    let client = app.client.as_merchant(&database.merchant());
    let metric = |name: &str| app.client.metrics().value(name, &[]);

    client.charge("abandoned", &with_method("pm_card_timeout")).expect(503);
    database.end_lease("abandoned");
    eventually("the lag", || metric("oncepay_idempotency_recovery_lag_seconds") > 0.0);
    client.charge("abandoned", &with_method("pm_card_timeout")).expect(201);
    eventually("its end", || metric("oncepay_idempotency_recovery_lag_seconds") == 0.0);
}

#[test]
fn keys_that_no_reaper_cleans_up_show_by_how_long_they_have_been_due() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| {
        config.metrics_interval_ms = 50;
        config.reaper_interval_ms = 600_000;
    });
    let lag_s = || app.client.metrics().value("oncepay_idempotency_reaper_lag_seconds", &[]);
    app.client.as_merchant(&database.merchant()).charge("old", &visa()).expect(201);
    // The reaper's first turn is over when it has found nothing.
    eventually("a sample", || app.client.metrics().value("oncepay_clock_skew_seconds", &[]) != 0.0);
    assert_eq!(lag_s(), 0.0);
    database.age_key("old", 25 * 60 * 60);
    eventually("the key that is due", || lag_s() > 3_500.0);
}

#[test]
fn work_that_gets_no_connection_is_counted() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| {
        // Shorter than the wait for a lock.
        config.pool_timeout_ms = 1_000;
        config.pool_size = 1;
    });
    let client = app.client.as_merchant(&database.merchant());
    let mut holder = database.as_owner();
    execute(&mut holder, "BEGIN");
    execute(&mut holder, "LOCK TABLE disputes IN ACCESS EXCLUSIVE MODE");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| client.get("/v1/disputes"));
        eventually("the lock", || database.lock_waits() > 0);
        client.get("/v1/disputes").expect_problem(503, "database_unavailable");
        assert!(app.client.metrics().value("oncepay_db_pool_timeouts_total", &[]) >= 1.0);
        execute(&mut holder, "ROLLBACK");
        waiting.join().unwrap().expect(200);
    });
}

#[test]
fn an_instance_whose_clock_is_off_says_so() {
    let database = TestDatabase::new();
    let server = Process::start(
        &database,
        &[("ONCEPAY_CLOCK_OFFSET_S", "-90"), ("ONCEPAY_METRICS_INTERVAL_MS", "50")],
    );
    let skew = || server.client.metrics().value("oncepay_clock_skew_seconds", &[]);
    eventually("the skew", || (-95.0..-85.0).contains(&skew()));
    let app = App::start_with(&database, |config| config.metrics_interval_ms = 50);
    let skew = || app.client.metrics().value("oncepay_clock_skew_seconds", &[]);
    eventually("a comparison", || skew() != 0.0);
    assert!(skew().abs() < 5.0, "the same clock, and the time that a question takes");
}
