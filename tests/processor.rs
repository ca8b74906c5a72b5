//! The acquirer on the other side of a network: whatever happens to calls and answers, each takes effect once, and
//! nothing is assumed about what isn't known.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use oncepay::processor::TestCard;
use serde_json::{Value, json};

use crate::support::acquirer::Acquirer;
use crate::support::*;

/// A service at an acquirer.
struct Scene {
    app: App,
    client: Client,
    acquirer: Acquirer,
    database: TestDatabase,
}

impl Scene {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(adjust: impl FnOnce(&mut oncepay::config::Config)) -> Self {
        let database = TestDatabase::new();
        let acquirer = Acquirer::start(&database);
        let app = App::start_at(&acquirer, &database, adjust);
        let client = app.client.as_merchant(&database.merchant());
        Self { app, client, acquirer, database }
    }

    /// The acquirer's operations, as `kind status reference`.
    fn operations(&self) -> Vec<String> {
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let describe = |row: Value| {
            format!("{} {} {}", text(&row["kind"]), text(&row["status"]), text(&row["reference"]))
        };
        self.acquirer.operations().into_iter().map(describe).collect()
    }

    fn requests(&self, call: &str, outcome: &str) -> f64 {
        let labels = [("call", call), ("outcome", outcome)];
        self.app.client.metrics().value("oncepay_processor_requests_total", &labels)
    }

    fn fault(&self, rule: Value) {
        self.acquirer.control(json!({"rules": [rule]}));
    }

    fn held(&self, key: &str) -> String {
        let body =
            json!({"amount": "12.50", "currency": "USD", "payment_method": "pm_card_visa", "capture": false});
        self.client.charge(key, &body).expect(201).field("id")
    }

    /// One request of each kind, under `key`. The charge of those that need one is made before `then`.
    fn request(&self, kind: &str, key: &str, then: impl FnOnce()) -> Box<dyn Fn() -> Response> {
        let client = self.client.clone();
        let (path, body) = match kind {
            "authorize" => ("/v1/charges".to_owned(), visa()),
            "capture" => (format!("/v1/charges/{}/capture", self.held(&fresh_key())), json!({})),
            "void" => (format!("/v1/charges/{}/cancel", self.held(&fresh_key())), json!({})),
            "refund" => {
                let charge = client.charge(&fresh_key(), &visa()).expect(201).field("id");
                ("/v1/refunds".to_owned(), json!({"charge_id": charge, "amount": "2.00"}))
            }
            "payout" => {
                client.charge(&fresh_key(), &visa()).expect(201);
                ("/v1/payouts".to_owned(), json!({"amount": "2.00", "currency": "USD", "destination": "ba"}))
            }
            _ => unreachable!(),
        };
        then();
        let key = key.to_owned();
        Box::new(move || client.send("POST", &path, &key, &body))
    }

    /// Operations of a kind that took effect.
    fn effects(&self, kind: &str) -> usize {
        self.operations().iter().filter(|operation| operation.starts_with(&format!("{kind} "))).count()
    }
}

const KINDS: [&str; 5] = ["authorize", "capture", "void", "refund", "payout"];

fn is_success(answer: &Response) -> bool {
    matches!(answer.status, 200 | 201)
}

#[test]
fn each_step_of_a_payment_is_one_operation_of_the_acquirer() {
    let scene = Scene::new();
    let charge = scene.held("held");
    scene
        .client
        .send("POST", &format!("/v1/charges/{charge}/capture"), "c", &json!({"amount": "10"}))
        .expect(200);
    let refund = json!({"charge_id": charge, "amount": "1.50"});
    let refund = scene.client.send("POST", "/v1/refunds", "r", &refund).expect(201).field("id");
    let payout = json!({"amount": "2.00", "currency": "USD", "destination": "ba"});
    let payout = scene.client.send("POST", "/v1/payouts", "p", &payout).expect(201).field("id");
    let canceled = scene.held("to-cancel");
    scene.client.send("POST", &format!("/v1/charges/{canceled}/cancel"), "x", &json!({})).expect(200);
    let operations: Vec<_> = scene
        .operations()
        .into_iter()
        // Whose bank may have decided by now.
        .map(|operation| operation.replace("payout pending", "payout paid"))
        .collect();
    let expected = [
        format!("authorize succeeded {charge}"),
        format!("capture succeeded {charge}"),
        format!("refund succeeded {refund}"),
        format!("authorize succeeded {canceled}"),
        format!("void succeeded {canceled}"),
        format!("payout paid {payout}"),
    ];
    for operation in &expected {
        assert!(operations.contains(operation), "{operation} is not in {operations:?}");
    }
    assert_eq!(operations.len(), expected.len());
    let amounts: Vec<_> =
        scene.acquirer.operations().iter().map(|operation| operation["amount"].clone()).collect();
    assert!(amounts.contains(&json!("10.00")) && amounts.contains(&json!("1.50")), "{amounts:?}");
}

#[test]
fn payment_methods_play_the_same_as_in_the_sandbox() {
    let scene = Scene::new();
    let sandbox_database = TestDatabase::new();
    let sandbox = App::start(&sandbox_database);
    let merchant = sandbox_database.merchant();
    let sandbox = sandbox.client.as_merchant(&merchant);
    for method in TestCard::ALL {
        let body = with_method(method.as_str());
        for attempt in 1..=3 {
            let told = |client: &Client| {
                let answer = client.charge(method.as_str(), &body);
                let code = answer.code();
                (answer.status, code, answer.json()["status"].clone(), answer.json()["decline_code"].clone())
            };
            assert_eq!(told(&scene.client), told(&sandbox), "{method}, attempt {attempt}");
        }
    }
}

#[test]
fn a_lost_answer_is_asked_for_and_the_client_notices_nothing() {
    let scene = Scene::new();
    for kind in KINDS {
        let send = scene.request(kind, kind, || {
            scene.fault(json!({"fault": "drop_answer", "kinds": [kind], "times": 1}));
        });
        let (before, found) = (scene.effects(kind), scene.requests("find", "answered"));
        let answer = send();
        assert!(is_success(&answer), "{kind}: {}", answer.text());
        assert_eq!(scene.requests("find", "answered"), found + 1.0, "{kind}");
        assert_eq!(scene.effects(kind), before + 1, "{kind}");
        assert_eq!(scene.requests(kind, "lost"), 1.0, "{kind}");
    }
}

#[test]
fn an_error_is_an_unknown_outcome_whether_or_not_it_had_an_effect() {
    let scene = Scene::new();
    for fault in ["error_before", "error_after"] {
        for kind in KINDS {
            let send = scene.request(kind, &format!("{kind}-{fault}"), || {
                scene.fault(json!({"fault": fault, "kinds": [kind], "times": 1}));
            });
            let (before, found) = (scene.effects(kind), scene.requests("find", "answered"));
            let answer = send();
            assert!(is_success(&answer), "{kind} {fault}: {}", answer.text());
            assert_eq!(scene.requests("find", "answered"), found + 1.0, "{kind} {fault}");
            assert_eq!(scene.effects(kind), before + 1, "{kind} {fault}");
        }
    }
}

#[test]
fn what_stays_unknown_is_told_and_the_retry_resumes_the_same_charge() {
    let scene = Scene::new();
    scene.fault(json!({"fault": "drop_answer"}));
    let unknown = scene.client.charge("k", &visa()).expect_problem(503, "processor_unavailable");
    assert!(unknown.header("Retry-After").is_some());
    // The money is held, and nobody knows it yet.
    let operation = scene.operations().pop().unwrap();
    scene.acquirer.control(json!({"rules": []}));
    let posted = scene.requests("authorize", "answered");
    let charge = scene.client.charge("k", &visa()).expect(201);
    assert!(!charge.is_replay());
    assert_eq!(operation, format!("authorize succeeded {}", charge.field("id")), "the same charge");
    assert_eq!(scene.requests("authorize", "answered"), posted, "it was asked for, and not made again");
    assert_eq!(scene.effects("authorize"), 1);
    assert_eq!(scene.client.charge("k", &visa()).expect(201).body, charge.body);
}

#[test]
fn an_acquirer_that_never_answers_costs_a_timeout_and_is_asked() {
    let scene = Scene::with(|config| config.processor.request_timeout_ms = 200);
    scene.fault(json!({"fault": "black_hole", "kinds": ["authorize"], "times": 1}));
    let asked = Instant::now();
    scene.client.charge("k", &visa()).expect(201);
    assert!(asked.elapsed() >= Duration::from_millis(200));
    assert_eq!((scene.effects("authorize"), scene.requests("authorize", "lost")), (1, 1.0));
}

#[test]
fn calls_together_are_bounded_too() {
    let scene = Scene::with(|config| config.processor_timeout_ms = 2_000);
    scene.fault(json!({"fault": "black_hole"}));
    let asked = Instant::now();
    scene.client.charge("k", &visa()).expect_problem(503, "processor_unavailable");
    // Three tries and two questions would be ten seconds.
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
}

#[test]
fn while_the_acquirer_is_down_nobody_waits_for_it_and_it_is_noticed_when_it_is_back() {
    let mut scene = Scene::with(|config| {
        config.recovery_interval_ms = 50;
        config.recovery_delay_ms = 50;
        config.recovery_attempts_max = 1;
    });
    let before = scene.client.charge("before", &visa()).expect(201);
    scene.acquirer.stop();
    eventually("unready", || scene.app.client.get("/readyz").status == 503);
    scene.app.client.get("/readyz").expect_problem(503, "processor_unavailable");
    assert_eq!(scene.app.client.metrics().value("oncepay_processor_available", &[]), 0.0);

    let calls = scene.requests("authorize", "unreachable");
    let refused = scene.client.charge("during", &visa()).expect_problem(503, "processor_unavailable");
    assert!(refused.header("Retry-After").is_some());
    assert_eq!(scene.requests("authorize", "unreachable"), calls, "it wasn't even tried");
    assert!(scene.client.charge("before", &visa()).expect(201).is_replay(), "what is known is known");
    scene.client.get(&format!("/v1/charges/{}", before.field("id"))).expect(200);

    scene.acquirer.start_again();
    eventually("ready again, without traffic", || scene.app.client.get("/readyz").status == 200);
    // One attempt of the recovery worker would have been enough to park it.
    let done = "SELECT count(*) FROM idempotency_keys WHERE key = 'during' AND response_status = 201";
    eventually("the request is finished without its client", || scene.database.count(done) == 1);
    assert_eq!(scene.effects("authorize"), 2);
}

#[test]
fn an_instance_may_be_told_to_stay_ready_without_the_acquirer() {
    let mut scene = Scene::with(|config| config.ready_without_processor = true);
    scene.acquirer.stop();
    eventually("down", || scene.app.client.metrics().value("oncepay_processor_available", &[]) == 0.0);
    scene.app.client.get("/readyz").expect(200);
}

#[test]
fn one_kind_of_call_that_always_fails_does_not_shut_out_the_others() {
    let scene = Scene::new();
    scene.client.charge("funds", &visa()).expect(201);
    scene.fault(json!({"fault": "error_before", "kinds": ["payout"]}));
    let payout = json!({"amount": "0.10", "currency": "USD", "destination": "ba"});
    for _ in 0..10 {
        scene
            .client
            .send("POST", "/v1/payouts", &fresh_key(), &payout)
            .expect_problem(503, "processor_unavailable");
    }
    scene.client.charge("another", &visa()).expect(201);
    assert_eq!(scene.app.client.metrics().value("oncepay_processor_available", &[]), 1.0);
}

#[test]
fn a_pause_that_the_acquirer_asks_for_is_obeyed_and_passed_on() {
    let scene = Scene::with(|config| {
        config.recovery_interval_ms = 20;
        config.recovery_delay_ms = 1;
        config.recovery_attempts_max = 1;
    });
    scene.client.charge("before", &visa()).expect(201);
    scene.fault(
        json!({"fault": "rate_limited", "kinds": ["authorize", "find"], "retry_after_s": 2, "times": 2}),
    );
    let limited = scene.client.charge("limited", &visa()).expect_problem(503, "processor_unavailable");
    assert_eq!(limited.header("Retry-After"), Some("2"));
    // Other requests wait too, and so does the worker. Its only attempt is limited again, and doesn't count.
    let other = scene.client.charge("other", &visa()).expect_problem(503, "processor_unavailable");
    assert!(matches!(other.header("Retry-After"), Some("1" | "2")), "{:?}", other.header("Retry-After"));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(scene.requests("authorize", "busy"), 1.0, "it isn't called again at once");
    assert_eq!(scene.requests("authorize", "answered"), 1.0);
    assert_eq!(scene.client.get("/v1/idempotency-keys/limited").json()["attempts"], 1);
    // Calls of another kind go on.
    let charge = scene.client.get("/v1/charges").expect(200).json()["data"][0]["id"].clone();
    scene
        .client
        .send("POST", "/v1/refunds", "refund", &json!({"charge_id": charge, "amount": "1.00"}))
        .expect(201);
    // It's no outage: what needs no processor is served here as ever.
    scene.app.client.get("/readyz").expect(200);
    assert_eq!(scene.app.client.metrics().value("oncepay_processor_available", &[]), 1.0);
    let done =
        "SELECT count(*) FROM idempotency_keys WHERE key IN ('limited', 'other') AND response_status = 201";
    eventually("the requests are finished without their client", || scene.database.count(done) == 2);
    assert_eq!(scene.effects("authorize"), 3);
}

#[test]
fn an_acquirer_that_limits_questions_about_its_health_is_well() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    let asked = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            count.fetch_add(1, Ordering::Relaxed);
            let mut stream = stream;
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(
                b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 30\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            );
        }
    });
    let database = TestDatabase::new();
    let app = App::start_at(&Acquirer::start(&database), &database, |config| {
        config.processor.url = Some(url);
        config.processor.probe_interval_ms = 20;
    });
    eventually("some questions", || asked.load(Ordering::Relaxed) >= 10);
    app.client.get("/readyz").expect(200);
    assert_eq!(app.client.metrics().value("oncepay_processor_available", &[]), 1.0);
    let client = app.client.as_merchant(&database.merchant());
    let told = client.charge("k", &visa()).expect_problem(503, "processor_unavailable");
    assert_eq!(told.header("Retry-After"), Some("30"));
}

#[test]
fn the_recovery_worker_obeys_a_longer_pause_than_that_of_the_others_up_to_an_hour() {
    let scene = Scene::with(|config| config.recovery_delay_ms = 30_000);
    let waits = |key: &str, pause_s: i64| {
        let wait = "SELECT (extract(epoch FROM recover_at - statement_timestamp()))::bigint AS count FROM idempotency_keys";
        let waits_s = scene.database.count(&format!("{wait} WHERE key = '{key}'"));
        assert!((pause_s - 20..=pause_s).contains(&waits_s), "{key}: {waits_s}");
    };
    // A client's further attempts leave the worker's schedule alone, unless the processor asks for a pause.
    scene.fault(json!({"fault": "error_before"}));
    scene.client.charge("k", &visa()).expect_problem(503, "processor_unavailable");
    waits("k", 30);
    scene.fault(json!({"fault": "rate_limited", "retry_after_s": 86_400}));
    let limited = scene.client.charge("k", &visa()).expect_problem(503, "processor_unavailable");
    assert_eq!(limited.header("Retry-After"), Some("3600"));
    waits("k", 3600);
    // What was limited is the question what has become of the first attempt. A new charge is another kind of call.
    let other = scene.client.charge("other", &visa()).expect_problem(503, "processor_unavailable");
    assert_eq!(other.header("Retry-After"), Some("3600"));
    waits("other", 3600);
    let third = scene.client.charge("third", &visa()).expect_problem(503, "processor_unavailable");
    let told_s: i64 = third.header("Retry-After").and_then(|told| told.parse().ok()).expect("a number");
    assert!((40..=60).contains(&told_s), "{told_s}");
    waits("third", 60);
    assert_eq!(scene.requests("authorize", "busy"), 1.0);
}

#[test]
fn that_the_processor_has_done_nothing_is_an_answer_and_not_a_rejection() {
    let scene = Scene::new();
    scene.fault(json!({"fault": "error_before", "kinds": ["authorize"]}));
    scene.client.charge("k", &visa()).expect_problem(503, "processor_unavailable");
    assert!(scene.requests("find", "answered") >= 1.0, "it asks what has become of the call");
    assert_eq!(scene.requests("find", "rejected"), 0.0, "an alert fires for those");
}

#[test]
fn whoever_takes_over_from_a_process_that_died_asks_before_it_calls() {
    let database = TestDatabase::new();
    let acquirer = Acquirer::start(&database);
    let merchant = database.merchant();
    let mut environment = acquirer.environment();
    environment.extend([
        ("ONCEPAY_LEASE_MS", "1200".to_owned()),
        ("ONCEPAY_PROCESSOR_TIMEOUT_MS", "600".to_owned()),
        ("ONCEPAY_RECOVERY_INTERVAL_MS", "600000".to_owned()),
    ]);
    let mut environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let healthy = Process::start(&database, &environment);
    environment.push(("ONCEPAY_FAULT", "kill:after_processor"));
    let doomed = Process::start(&database, &environment);
    let body = visa();
    let request =
        doomed.client.as_merchant(&merchant).request("POST", "/v1/charges").idempotency_key("k").json(&body);
    assert!(request.try_send().is_err());
    assert!(doomed.was_killed());
    let client = healthy.client.as_merchant(&merchant);
    eventually("the charge", || client.charge("k", &body).status == 201);
    let metrics = healthy.client.metrics();
    for (call, outcome, times) in
        [("find", "answered", 2.0), ("authorize", "answered", 0.0), ("capture", "answered", 0.0)]
    {
        let labels = [("call", call), ("outcome", outcome)];
        assert_eq!(metrics.value("oncepay_processor_requests_total", &labels), times, "{call}");
    }
    assert_eq!(acquirer.operations().len(), 2, "authorized and captured, once");
}

#[test]
fn a_refusal_is_not_taken_for_an_outage_and_not_for_success() {
    let scene = Scene::new();
    let charge = scene.held("held");
    execute(&mut scene.acquirer.as_owner(), "UPDATE authorizations SET status = 'voided'");
    let path = format!("/v1/charges/{charge}/capture");
    scene.client.send("POST", &path, "c", &json!({})).expect_problem(409, "charge_not_capturable");
    assert_eq!(scene.requests("capture", "refused"), 1.0, "and not tried again at once");
    assert_eq!(
        scene.requests("find", "answered"),
        1.0,
        "but asked whether it's really this call that is refused"
    );
    assert_eq!(scene.client.get(&format!("/v1/charges/{charge}")).field("status"), "canceled");
    assert_eq!(scene.app.client.metrics().value("oncepay_processor_available", &[]), 1.0);
}
