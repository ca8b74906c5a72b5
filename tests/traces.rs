//! One payment, followed: the trace of a request, and the lines of the log that name it.

use std::collections::HashSet;
use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use oncepay::processor::ProcessorOptions;
use serde_json::{Value, json};

use crate::support::acquirer::Receiver;
use crate::support::*;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";
const OTHER_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn parent(trace: &str) -> String {
    format!("00-{trace}-{SPAN}-01")
}

/// A charge whose caller has a span in `trace`.
fn charge_in(client: &Client, trace: &str, key: &str, body: &Value) -> Response {
    let request = client.change("POST", "/v1/charges", key, body);
    request.header("traceparent", &parent(trace)).header("tracestate", "shop=a1").send()
}

/// Trace and span of a `traceparent`.
fn ids(header: &str) -> (String, String) {
    let parts: Vec<_> = header.split('-').collect();
    assert_eq!((parts.len(), parts[0], parts[1].len(), parts[2].len()), (4, "00", 32, 16), "{header}");
    (parts[1].to_owned(), parts[2].to_owned())
}

/// An endpoint of `merchant` that is told everything.
fn endpoint(client: &Client, receiver: &Receiver) {
    let body = json!({"url": receiver.url, "event_types": ["*"]});
    client.send("POST", "/v1/webhook-endpoints", &fresh_key(), &body).expect(201);
}

/// A file that vanishes with its name.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("oncepay-traces-{}", fresh_key())))
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.0).unwrap_or_default()
    }

    fn lines(&self) -> Vec<Value> {
        let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        self.text().lines().map(parse).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A service that logs to a file.
fn start_logging(database: &TestDatabase, log: &Scratch, environment: &[(&str, &str)]) -> Process {
    let file = File::options().create(true).append(true).open(&log.0).unwrap();
    Process::try_start(Process::command(), database, environment, Stdio::from(file)).unwrap()
}

#[test]
fn what_a_request_causes_belongs_to_its_callers_trace() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| config.webhook_allow_loopback = true);
    let client = app.client.as_merchant(&database.merchant());
    let receiver = Receiver::start();
    endpoint(&client, &receiver);
    let charge = charge_in(&client, TRACE, "k", &visa()).expect(201);
    let calls = app.sandbox.calls();
    let mut spans: Vec<_> = calls.iter().map(|call| ids(&call.traceparent)).collect();
    // With a transaction of its own, as for operations that share no statement.
    let refund = client.change(
        "POST",
        "/v1/refunds",
        "r",
        &json!({"charge_id": charge.field("id"), "amount": "1.00"}),
    );
    refund.header("traceparent", &parent(TRACE)).send().expect(201);
    let update = client.change(
        "PATCH",
        &format!("/v1/charges/{}", charge.field("id")),
        "u",
        &json!({"description": "new"}),
    );
    update.header("traceparent", &parent(TRACE)).send().expect(200);
    eventually("messages", || receiver.received().len() >= 4);
    let received = receiver.received();
    spans.extend(received.iter().map(|message| ids(&message.header("traceparent"))));
    assert!(spans.iter().all(|(trace, _)| trace == TRACE), "{spans:?}");
    let different: HashSet<_> = spans.iter().map(|(_, span)| span.as_str()).chain([SPAN]).collect();
    assert_eq!(different.len(), spans.len() + 1, "{spans:?}");
    // What the merchant's tracing systems have added comes back to the merchant.
    assert!(received.iter().any(|message| message.header("tracestate") == "shop=a1"));
    let status = client.get("/v1/idempotency-keys/k").expect(200);
    assert_eq!(status.field("trace_id"), TRACE);
}

#[test]
fn a_request_without_a_valid_parent_begins_a_trace() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let zeros = parent(&"0".repeat(32));
    let upper = parent(TRACE).to_ascii_uppercase();
    let cases = [None, Some(""), Some("garbage"), Some(zeros.as_str()), Some(upper.as_str())];
    let mut traces = HashSet::from([TRACE.to_owned(), "0".repeat(32)]);
    for (number, header) in cases.into_iter().enumerate() {
        let key = format!("k{number}");
        let mut request = client.change("POST", "/v1/charges", &key, &visa());
        if let Some(header) = header {
            request = request.header("traceparent", header);
        }
        request.send().expect(201);
        let trace = client.get(&format!("/v1/idempotency-keys/{key}")).field("trace_id");
        assert!(traces.insert(trace), "{header:?}");
    }
    let twice = client.change("POST", "/v1/charges", "twice", &visa());
    let twice = twice.header("traceparent", &parent(TRACE)).header("traceparent", &parent(OTHER_TRACE));
    twice.send().expect(201);
    assert!(traces.insert(client.get("/v1/idempotency-keys/twice").field("trace_id")));
}

#[test]
fn the_processor_gets_a_span_of_its_own_with_each_request() {
    let database = TestDatabase::new();
    let processor = Receiver::start();
    // Its answers say nothing, so it's asked what has become of the call.
    let options = ProcessorOptions {
        probe_interval_ms: 600_000,
        ..ProcessorOptions::at(processor.url.parse().unwrap(), "processor-key".into())
    };
    let app = App::start_with_options(&database, options);
    let client = app.client.as_merchant(&database.merchant());
    charge_in(&client, TRACE, "k", &visa()).expect_problem(503, "processor_unavailable");
    let received = processor.received();
    let calls: Vec<_> =
        received.iter().filter(|request| !request.header("oncepay-attempt").is_empty()).collect();
    assert!(calls.len() >= 2, "{received:?}");
    let spans: HashSet<_> = calls.iter().map(|request| ids(&request.header("traceparent"))).collect();
    assert_eq!(spans.len(), calls.len(), "{spans:?}");
    assert!(spans.iter().all(|(trace, _)| trace == TRACE), "{spans:?}");
    // The processor is no business of the merchant's tracing systems.
    assert!(calls.iter().all(|request| request.header("tracestate").is_empty()));
}

#[test]
fn whoever_finishes_a_request_goes_on_with_its_trace() {
    let database = TestDatabase::new();
    for by_worker in [true, false] {
        let app = App::start_with(&database, |config| {
            config.webhook_allow_loopback = true;
            if by_worker {
                config.recovery_interval_ms = 20;
                config.recovery_delay_ms = 1;
            }
        });
        let client = app.client.as_merchant(&database.merchant());
        let receiver = Receiver::start();
        endpoint(&client, &receiver);
        let key = format!("k-{by_worker}");
        charge_in(&client, TRACE, &key, &with_method("pm_card_timeout"))
            .expect_problem(503, "processor_unavailable");
        let path = format!("/v1/idempotency-keys/{key}");
        if by_worker {
            eventually("the recovery", || client.get(&path).field("status") == "completed");
        } else {
            charge_in(&client, OTHER_TRACE, &key, &with_method("pm_card_timeout")).expect(201);
        }
        let calls = app.sandbox.calls();
        let attempts: HashSet<_> = calls.iter().map(|call| call.attempt).collect();
        assert_eq!(attempts, HashSet::from([1, 2]));
        assert!(calls.iter().all(|call| ids(&call.traceparent).0 == TRACE), "{calls:?}");
        eventually("the message", || !receiver.received().is_empty());
        assert_eq!(ids(&receiver.received()[0].header("traceparent")).0, TRACE);
        // A replay changes nothing of that.
        assert!(
            charge_in(&client, OTHER_TRACE, &key, &with_method("pm_card_timeout")).expect(201).is_replay()
        );
        assert_eq!(client.get(&path).field("trace_id"), TRACE);
    }
}

#[test]
fn a_kill_between_call_and_commit_leaves_one_trace_with_both_attempts() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let (log, calls) = (Scratch::new(), Scratch::new());
    let settings = [
        ("ONCEPAY_LOG_FORMAT", "json"),
        ("ONCEPAY_LEASE_MS", "1500"),
        ("ONCEPAY_PROCESSOR_TIMEOUT_MS", "200"),
        ("ONCEPAY_RECOVERY_INTERVAL_MS", "50"),
        ("ONCEPAY_WEBHOOK_ALLOW_LOOPBACK", "true"),
        ("ONCEPAY_DELIVERY_INTERVAL_MS", "20"),
        ("ONCEPAY_SANDBOX_CALL_LOG", calls.0.to_str().unwrap()),
        ("RUST_LOG", "info"),
    ];
    let doomed =
        Process::start(&database, &[&settings[..], &[("ONCEPAY_FAULT", "kill:after_processor")]].concat());
    let request = doomed.client.as_merchant(&merchant).change("POST", "/v1/charges", "k", &visa());
    assert!(request.header("traceparent", &parent(TRACE)).try_send().is_err());
    assert!(doomed.was_killed());

    let server = start_logging(&database, &log, &settings);
    let client = server.client.as_merchant(&merchant);
    let receiver = Receiver::start();
    endpoint(&client, &receiver);
    eventually("the recovery", || client.get("/v1/idempotency-keys/k").field("status") == "completed");
    assert!(charge_in(&client, OTHER_TRACE, "k", &visa()).expect(201).is_replay());
    eventually("the message", || !receiver.received().is_empty());
    let calls = calls.lines();
    let authorized: Vec<_> = calls.iter().filter(|call| call["call"] == "authorize").collect();
    let attempts: Vec<_> = authorized.iter().map(|call| call["attempt"].as_u64().unwrap()).collect();
    assert_eq!(attempts, [1, 2]);
    let spans: Vec<_> = authorized.iter().map(|call| ids(call["traceparent"].as_str().unwrap())).collect();
    assert!(spans[0].0 == TRACE && spans[1].0 == TRACE && spans[0].1 != spans[1].1, "{spans:?}");
    assert_eq!(ids(&receiver.received()[0].header("traceparent")).0, TRACE);
    // The worker's line is of the first request's trace, and the replay's line names it.
    let lines = log.lines();
    let line = |outcome: &str, operation: &str| {
        let is_it = |line: &&Value| line["outcome"] == outcome && line["operation"] == operation;
        lines.iter().find(is_it).unwrap_or_else(|| panic!("{outcome} isn't in {lines:#?}")).clone()
    };
    let executed = line("executed", "charges.create");
    assert_eq!((&executed["trace_id"], &executed["attempt"]), (&json!(TRACE), &json!(2)));
    let replayed = line("replayed", "charges.create");
    assert_eq!(replayed["trace_id"], OTHER_TRACE);
    assert_eq!(replayed["original_trace_id"], TRACE);
    assert_eq!(executed["key_hash"], replayed["key_hash"]);
}

#[test]
fn a_line_about_a_delivery_names_its_event_and_the_trace_of_the_request() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let log = Scratch::new();
    let settings = [
        ("ONCEPAY_LOG_FORMAT", "json"),
        ("ONCEPAY_WEBHOOK_ALLOW_LOOPBACK", "true"),
        ("ONCEPAY_DELIVERY_INTERVAL_MS", "20"),
        ("RUST_LOG", "warn"),
    ];
    let server = start_logging(&database, &log, &settings);
    let client = server.client.as_merchant(&merchant);
    let receiver = Receiver::start();
    // It's gone, so the endpoint is disabled.
    receiver.answer(410);
    endpoint(&client, &receiver);
    charge_in(&client, TRACE, "k", &visa()).expect(201);
    let about_it = |line: &Value| line["message"].as_str().unwrap().contains("was disabled");
    eventually("the line", || log.text().lines().any(|line| line.contains("was disabled")));
    let message = receiver.received()[0].header("traceparent");
    drop(server);
    let line = log.lines().into_iter().find(about_it).unwrap();
    assert_eq!((&line["trace_id"], &line["span_id"]), (&json!(TRACE), &json!(ids(&message).1)), "{line}");
    let event = database
        .text("SELECT 'evt_' || replace(id::text, '-', '') FROM events WHERE type = 'charge.succeeded'");
    assert_eq!(
        (&line["event_id"], &line["merchant"]),
        (&json!(event), &json!(merchant.id.to_string())),
        "{line}"
    );
}

/// The spans that a collector has received, flat.
fn spans(collector: &Receiver) -> Vec<Value> {
    let all = |value: &Value, name: &str| value[name].as_array().cloned().unwrap_or_default();
    let received = collector.received();
    let resources = received.iter().flat_map(|request| all(&request.json(), "resourceSpans"));
    let scopes = resources.flat_map(|resource| all(&resource, "scopeSpans"));
    scopes.flat_map(|scope| all(&scope, "spans")).collect()
}

/// Needs a binary that was built with the feature `otlp`: `.ci/otlp.sh` builds one and runs this test.
#[test]
fn a_collector_gets_one_trace_with_both_attempts() {
    let Ok(binary) = std::env::var("ONCEPAY_TEST_OTLP_BINARY") else {
        println!("skipped: ONCEPAY_TEST_OTLP_BINARY names no binary with the feature otlp");
        return;
    };
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let (collector, receiver) = (Receiver::start(), Receiver::start());
    let endpoint_url = collector.url.trim_end_matches("/hooks").to_owned();
    let settings = [
        ("ONCEPAY_OTLP_ENDPOINT", endpoint_url.as_str()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ("ONCEPAY_LEASE_MS", "3600"),
        ("ONCEPAY_PROCESSOR_TIMEOUT_MS", "3000"),
        ("ONCEPAY_RECOVERY_INTERVAL_MS", "50"),
        ("ONCEPAY_WEBHOOK_ALLOW_LOOPBACK", "true"),
        ("ONCEPAY_DELIVERY_INTERVAL_MS", "20"),
    ];
    let start = |settings: &[(&str, &str)]| {
        let mut command = std::process::Command::new(&binary);
        command.arg("serve");
        Process::try_start(command, &database, settings, Stdio::inherit()).unwrap()
    };
    // The processor takes two seconds, in which the span of the claim reaches the collector.
    let doomed = start(&[&settings[..], &[("ONCEPAY_FAULT", "kill:after_processor")]].concat());
    let client = doomed.client.as_merchant(&merchant);
    endpoint(&client, &receiver);
    let request = client.change("POST", "/v1/charges", "k", &with_method("pm_card_slow"));
    assert!(request.header("traceparent", &parent(TRACE)).try_send().is_err());
    assert!(doomed.was_killed());
    let first =
        spans(&collector).into_iter().find(|span| span["name"] == "claim" && span["traceId"] == TRACE);
    let request_span = first.expect("the claim of the first attempt")["parentSpanId"].clone();

    let server = start(&settings);
    let client = server.client.as_merchant(&merchant);
    eventually("the recovery", || client.get("/v1/idempotency-keys/k").field("status") == "completed");
    eventually("the message", || !receiver.received().is_empty());
    charge_in(&client, OTHER_TRACE, "k", &with_method("pm_card_slow")).expect(201);
    let named = |trace: &str, name: &str| {
        let mut spans = spans(&collector).into_iter();
        spans.find(|span| span["name"] == name && span["traceId"] == trace)
    };
    let names = ["recover", "call processor", "commit", "deliver charge.succeeded"];
    eventually("all spans", || names.iter().all(|name| named(TRACE, name).is_some()));
    let span = |name| named(TRACE, name).unwrap();
    // The second attempt hangs below the request that never ended, and what it does below the attempt.
    assert_eq!(span("recover")["parentSpanId"], request_span);
    for step in ["call processor", "commit"] {
        assert_eq!(span(step)["parentSpanId"], span("recover")["spanId"], "{step}");
    }
    assert_eq!(span("deliver charge.succeeded")["parentSpanId"], span("recover")["spanId"]);
    // The replay has a trace of its own, and a link to the first.
    eventually("the replay's span", || named(OTHER_TRACE, "POST /v1/charges").is_some());
    let replay = named(OTHER_TRACE, "POST /v1/charges").unwrap();
    assert_eq!(replay["parentSpanId"], SPAN);
    assert_eq!(replay["links"][0]["traceId"], TRACE);
    let text = spans(&collector).iter().map(Value::to_string).collect::<String>();
    assert!(!text.contains(&merchant.key) && !text.contains("pm_card_"), "{text}");
    // A collector that's gone delays nobody.
    collector.answer_after(Duration::from_secs(60));
    charge_in(&client, TRACE, "l", &visa()).expect(201);
}

#[test]
fn each_line_of_the_log_is_an_object_with_fields_that_stay() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let log = Scratch::new();
    // The levels of a server of which nobody has set them.
    let server = start_logging(&database, &log, &[("ONCEPAY_LOG_FORMAT", "json"), ("RUST_LOG", "")]);
    let client = server.client.as_merchant(&merchant);
    let key = fresh_key();
    let answer = charge_in(&client, TRACE, &key, &visa()).expect(201);
    charge_in(&client, TRACE, &key, &visa()).expect(201);
    client.get("/v1/charges").expect(200);
    charge_in(&client, TRACE, &key, &with_method("pm_card_slow"))
        .expect_problem(422, "idempotency_key_reused");
    charge_in(&client, TRACE, "t", &with_method("pm_card_timeout"))
        .expect_problem(503, "processor_unavailable");
    charge_in(&client, TRACE, "v", &json!({})).expect_problem(422, "validation_failed");
    drop(server);
    let lines = log.lines();
    for line in &lines {
        for field in ["timestamp", "level", "target", "message"] {
            assert!(line[field].as_str().is_some_and(|text| !text.is_empty()), "{field} of {line}");
        }
        let time = line["timestamp"].as_str().unwrap();
        assert!(chrono::DateTime::parse_from_rfc3339(time).is_ok());
        assert_eq!(time.len(), "2026-01-31T09:00:00.000Z".len(), "{time}");
    }
    assert!(lines.iter().any(|line| line["message"] == "serving" && line["level"] == "INFO"), "{lines:#?}");
    let closing: Vec<_> = lines.iter().filter(|line| !line["outcome"].is_null()).collect();
    // Neither what only repeats something, nor reads.
    let outcomes: Vec<_> = closing.iter().map(|line| line["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["executed", "mismatch", "failed", "refused"]);
    let mut executed = closing[0].clone();
    let request_id = answer.header("X-Request-Id").unwrap();
    for (field, value) in [
        ("level", json!("INFO")),
        ("target", json!("oncepay::request")),
        ("message", json!("POST /v1/charges")),
        ("request_id", json!(request_id)),
        ("trace_id", json!(TRACE)),
        ("merchant", json!(merchant.id.to_string())),
        ("operation", json!("charges.create")),
        ("method", json!("POST")),
        ("path", json!("/v1/charges")),
        ("status", json!(201)),
        ("attempt", json!(1)),
    ] {
        assert_eq!(executed[field], value, "{field} of {executed}");
    }
    assert!(executed["duration_ms"].as_f64().is_some_and(|duration| duration > 0.0), "{executed}");
    assert_eq!(executed["key_hash"].as_str().map(str::len), Some(32), "{executed}");
    assert_eq!(executed["span_id"].as_str().map(str::len), Some(16), "{executed}");
    assert_ne!(executed["span_id"], SPAN, "the caller's isn't ours");
    let executed = executed.as_object_mut().unwrap();
    let known = [
        "attempt",
        "duration_ms",
        "key_hash",
        "level",
        "merchant",
        "message",
        "method",
        "operation",
        "outcome",
        "path",
        "request_id",
        "span_id",
        "status",
        "target",
        "timestamp",
        "trace_id",
    ];
    let mut fields: Vec<_> = executed.keys().map(String::as_str).collect();
    fields.sort_unstable();
    assert_eq!(fields, known, "new fields belong into docs/following-a-payment.md");
    // A line from within names its request, too, wherever it's written.
    let within =
        lines.iter().find(|line| line["message"].as_str().unwrap().starts_with("processor_unavailable"));
    let within = within.unwrap_or_else(|| panic!("no cause in {lines:#?}"));
    assert_eq!(within["operation"], "charges.create");
    assert_eq!(within["key_hash"], closing[2]["key_hash"]);
    assert_eq!(closing[2]["code"], "processor_unavailable");
}

/// The suite's own services are watched for the same (`support::log`); this one is a process, and logs what its
/// libraries have to say, too.
#[test]
fn at_the_finest_level_the_log_shows_no_key_no_secret_and_no_body() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let operator_key = database.operator_key();
    let receiver = Receiver::start();
    let processor = acquirer::Acquirer::start(&database);
    let processor_key = processor.api_key.clone();
    let log = Scratch::new();
    let mut settings = processor.environment();
    settings.extend([
        ("ONCEPAY_LOG_FORMAT", "json".to_owned()),
        ("ONCEPAY_WEBHOOK_ALLOW_LOOPBACK", "true".to_owned()),
        ("ONCEPAY_DELIVERY_INTERVAL_MS", "20".to_owned()),
        ("RUST_LOG", "trace".to_owned()),
    ]);
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let server = start_logging(&database, &log, &settings);
    let client = server.client.as_merchant(&merchant);
    let operator = server.client.with_key(&operator_key);
    let (mark, key) = ("pear-and-plum", "order-of-alice-0001");
    let endpoint = json!({"url": receiver.url, "event_types": ["*"], "description": mark});
    let endpoint = client.send("POST", "/v1/webhook-endpoints", key, &endpoint).expect(201);
    let endpoint_secret = endpoint.field("secret");
    let mut body = visa();
    body["description"] = json!(mark);
    let charge = client.charge("order-of-alice-0002", &body).expect(201).field("id");
    client.charge("order-of-alice-0002", &body).expect(201);
    client.charge("order-of-alice-0002", &visa()).expect_problem(422, "idempotency_key_reused");
    client.charge("order-of-alice-0003", &with_method("pm_card_declined")).expect(402);
    client
        .send(
            "POST",
            "/v1/refunds",
            "order-of-alice-0004",
            &json!({"charge_id": charge, "amount": "1.00", "reason": mark}),
        )
        .expect(201);
    client.charge("order-of-alice-0005", &json!({"description": mark})).expect(422);
    client
        .request("POST", "/v1/charges")
        .idempotency_key(key)
        .body("application/json", mark)
        .send()
        .expect(400);
    client.get(&format!("/v1/idempotency-keys/{key}")).expect(200);
    client.get(&format!("/v1/idempotency-keys/{key}/nothing")).expect(404);
    let created =
        client.send("POST", "/v1/api-keys", "order-of-alice-0006", &json!({"name": mark})).expect(201);
    let named = json!({"name": mark, "fee_rate": "0.029", "fee_fixed": "0.30"});
    let merchants = operator.send("POST", "/v1/operator/merchants", "order-of-alice-0007", &named);
    let merchants = merchants.expect(201).json();
    server.client.with_key(&format!("{}0", merchant.key)).get("/v1/charges").expect(401);
    // A message of the processor, and one that can't be read. Their ids are logged, as `event_id`.
    let event = json!({"type": "x", "data": {"note": mark}});
    server.client.delivery("evt-8", &event.to_string()).send();
    server.client.delivery("evt-9", mark).send();
    // An error of the database that quotes rows.
    execute(&mut database.as_owner(), "ALTER TABLE events ADD CONSTRAINT bug CHECK (false) NOT VALID");
    client.charge("order-of-alice-0010", &body).expect_problem(500, "internal");
    execute(&mut database.as_owner(), "ALTER TABLE events DROP CONSTRAINT bug");
    client.charge("order-of-alice-0010", &body).expect(201);
    eventually("messages", || receiver.received().len() >= 3);
    std::thread::sleep(Duration::from_millis(200));
    drop(server);
    let text = log.text();
    assert!(log.lines().iter().any(|line| line["level"] == "TRACE"), "nothing was logged at that level");
    let text_of = |value: &Value| value.as_str().unwrap().to_owned();
    let master_key = "m".repeat(32);
    let api_key = text_of(&created.json()["key"]);
    let other_key = merchants.to_string();
    let at = other_key.find("sk_test_").expect("a merchant's first key");
    let secrets = [
        merchant.key.as_str(),
        operator_key.as_str(),
        api_key.as_str(),
        &other_key[at..at + 72],
        endpoint_secret.as_str(),
        acquirer::WEBHOOK_SECRET,
        processor_key.as_str(),
        master_key.as_str(),
        "order-of-alice",
        mark,
        "pm_card_",
    ];
    for secret in secrets {
        let line = text.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret} is in the log");
    }
    drop(processor);
}
