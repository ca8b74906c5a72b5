//! Events on their way to webhook endpoints.

use std::collections::{BTreeMap, HashSet};
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use diesel::{Connection, PgConnection};
use oncepay::base::derived_secrets::{MasterKeyVersion, Vault};
use oncepay::base::ids::WebhookEndpointId;
use oncepay::base::signature::{self, Secret, SignatureHeaders};
use oncepay::config::Config;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::acquirer::{Received, Receiver};
use crate::support::*;

/// An endpoint of a merchant.
struct Endpoint {
    id: Uuid,
    merchant: Uuid,
}

/// An endpoint that is told everything.
fn endpoint(database: &TestDatabase, merchant: &Merchant, url: &str) -> Endpoint {
    endpoint_for(database, merchant, url, "*")
}

fn endpoint_for(database: &TestDatabase, merchant: &Merchant, url: &str, event_type: &str) -> Endpoint {
    let (id, merchant) = (Uuid::now_v7(), merchant.id.0);
    execute(
        &mut database.as_owner(),
        &format!(
            "INSERT INTO webhook_endpoints (merchant_id, id, url, event_types, created_at) \
             VALUES ('{merchant}', '{id}', '{url}', '{{{event_type}}}', statement_timestamp())"
        ),
    );
    Endpoint { id, merchant }
}

impl Endpoint {
    fn secret(&self, version: i32) -> Secret {
        let vault = Vault::of_first("m".repeat(32).into());
        vault.webhook_secret(WebhookEndpointId(self.id), version, MasterKeyVersion::FIRST).unwrap()
    }

    fn set(&self, database: &TestDatabase, changes: &str) {
        let update = format!("UPDATE webhook_endpoints SET {changes} WHERE id = '{}'", self.id);
        execute(&mut database.as_owner(), &update);
    }

    /// Deliveries to it in a state.
    fn deliveries(&self, database: &TestDatabase, state: &str) -> i64 {
        let of = format!("endpoint_id = '{}' AND state = '{state}'", self.id);
        database.count(&format!("SELECT count(*) FROM webhook_deliveries WHERE {of}"))
    }

    /// The attempts of its only delivery.
    fn attempts(&self, database: &TestDatabase) -> Vec<Value> {
        let text = database
            .text(&format!("SELECT attempts FROM webhook_deliveries WHERE endpoint_id = '{}'", self.id));
        serde_json::from_str(&text).unwrap()
    }

    /// Waits for its only delivery's first attempt to be noted, and returns that.
    fn first_attempt(&self, database: &TestDatabase) -> Value {
        eventually("an attempt", || !self.attempts(database).is_empty());
        self.attempts(database).remove(0)
    }

    fn is_failing(&self, database: &TestDatabase) -> bool {
        let failing = format!("id = '{}' AND failing_since IS NOT NULL", self.id);
        database.count(&format!("SELECT count(*) FROM webhook_endpoints WHERE {failing}")) == 1
    }

    fn has_accepted(&self, database: &TestDatabase) -> bool {
        let accepted = format!("id = '{}' AND first_accepted_at IS NOT NULL", self.id);
        database.count(&format!("SELECT count(*) FROM webhook_endpoints WHERE {accepted}")) == 1
    }

    fn make_events(&self, database: &TestDatabase, count: u32) {
        self.make_events_within(&mut database.as_owner(), count);
    }

    fn make_events_within(&self, conn: &mut PgConnection, count: u32) {
        let merchant = self.merchant;
        execute(
            conn,
            &format!(
                "INSERT INTO events (merchant_id, id, type, object_id, data) \
                 SELECT '{merchant}', uuid_v7(), 'charge.updated', gen_random_uuid(), \
                     jsonb_build_object('id', 'ch_' || n, 'object', 'charge') \
                 FROM generate_series(1, {count}) AS n"
            ),
        );
    }
}

/// Settings with which nobody has to wait.
fn quick(config: &mut Config) {
    config.webhook_allow_loopback = true;
    config.delivery.delivery_interval_ms = 20;
    config.delivery.delivery_backoff_ms = 100;
}

/// The same for a process.
const QUICK: &[(&str, &str)] =
    &[("ONCEPAY_WEBHOOK_ALLOW_LOOPBACK", "true"), ("ONCEPAY_DELIVERY_INTERVAL_MS", "20")];

fn wait_for(receiver: &Receiver, count: usize) -> Vec<Received> {
    eventually("messages", || receiver.received().len() >= count);
    receiver.received()
}

fn ids(received: &[Received]) -> HashSet<String> {
    received.iter().map(|message| message.id.clone()).collect()
}

fn verify(message: &Received, secret: Secret) -> Result<(), signature::Refusal> {
    let Received { id, timestamp, signature, body, .. } = message;
    signature::verify(
        &[secret],
        SignatureHeaders { id, timestamp, signature },
        body.as_bytes(),
        chrono::Utc::now(),
    )
}

#[test]
fn an_event_arrives_signed_and_its_delivery_is_noted() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, quick);
    let merchant = database.merchant();
    let receiver = Receiver::start();
    let endpoint = endpoint(&database, &merchant, &receiver.url);
    let charge = app.client.as_merchant(&merchant).charge("k", &visa()).expect(201);

    let message = wait_for(&receiver, 1).remove(0);
    assert_eq!(verify(&message, endpoint.secret(1)), Ok(()));
    assert_eq!(message.head[0], "POST /hooks HTTP/1.1");
    assert_eq!(message.header("content-type"), "application/json");
    assert_eq!(message.header("user-agent"), format!("Oncepay/{}", env!("CARGO_PKG_VERSION")));
    assert_eq!(message.signature.split(' ').count(), 1);
    let event = message.json();
    let keys: Vec<_> = event.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["data", "id", "timestamp", "type"]);
    assert_eq!(event["type"], "charge.succeeded");
    assert_eq!(event["id"], message.id.as_str());
    assert_eq!(event["data"]["id"], charge.field("id"));
    let happened =
        "SELECT to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') FROM events";
    assert_eq!(event["timestamp"], database.text(happened));
    assert_eq!(message.id, database.text("SELECT 'evt_' || replace(id::text, '-', '') FROM events"));

    eventually("the outcome", || endpoint.deliveries(&database, "succeeded") == 1);
    let attempt = endpoint.first_attempt(&database);
    let keys: Vec<_> = attempt.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["duration_ms", "error", "number", "response_excerpt", "started_at", "status"]);
    assert_eq!(
        (&attempt["number"], &attempt["status"], &attempt["error"]),
        (&json!(1), &json!(200), &Value::Null)
    );
    let started_at = attempt["started_at"].as_str().unwrap();
    assert!(
        started_at.ends_with('Z') && started_at.len() == "2026-01-31T09:30:00.000Z".len(),
        "{started_at}"
    );
    assert!(!endpoint.is_failing(&database));

    let metrics = || app.client.metrics();
    eventually("its count", || {
        metrics().value("oncepay_webhook_deliveries_total", &[("outcome", "succeeded")]) == 1.0
    });
    assert_eq!(metrics().value("oncepay_webhook_attempt_duration_seconds_count", &[]), 1.0);
    eventually("the end", || metrics().value("oncepay_webhook_in_flight", &[]) == 0.0);
}

#[test]
fn what_fails_is_sent_again_after_growing_pauses() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| {
        quick(config);
        config.delivery.delivery_backoff_ms = 400;
    });
    let receiver = Receiver::start();
    receiver.answer_next(&[500, 404, 429]);
    let endpoint = endpoint(&database, &database.merchant(), &receiver.url);
    endpoint.make_events(&database, 1);
    wait_for(&receiver, 2);
    assert!(endpoint.is_failing(&database));
    let messages = wait_for(&receiver, 4);
    for (failures, pair) in messages.windows(2).enumerate() {
        let pause = pair[1].at - pair[0].at;
        let least = Duration::from_millis(300 << failures);
        assert!(pause >= least, "{pause:?} after {failures} failures");
        assert_eq!((&pair[0].id, &pair[0].body), (&pair[1].id, &pair[1].body));
        assert_eq!(verify(&pair[1], endpoint.secret(1)), Ok(()));
    }
    eventually("the outcome", || endpoint.deliveries(&database, "succeeded") == 1);
    let attempts = endpoint.attempts(&database);
    let of = |key: &str| attempts.iter().map(|attempt| attempt[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("number"), [1, 2, 3, 4]);
    assert_eq!(of("status"), [500, 404, 429, 200]);
    assert_eq!(of("error"), vec![Value::Null; 4]);
    assert!(!endpoint.is_failing(&database), "it takes messages again");
    let failed = || app.client.metrics().value("oncepay_webhook_deliveries_total", &[("outcome", "failed")]);
    eventually("their count", || failed() == 3.0);
}

#[test]
fn attempts_that_get_no_answer_say_why() {
    let database = TestDatabase::new();
    let _app = App::start_with(&database, |config| {
        quick(config);
        config.delivery.delivery_timeout_ms = 2_000;
        // Once is enough.
        config.delivery.delivery_backoff_ms = 60_000;
    });
    let (slow, plain, redirecting, target) =
        (Receiver::start(), Receiver::start(), Receiver::start(), Receiver::start());
    slow.answer_after(Duration::from_secs(10));
    redirecting.answer(307);
    redirecting.answer_saying(&format!("Location: {}\r\n", target.url), b"");
    // Nobody listens there, and nobody else is given it.
    let nobody = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    nobody.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let nowhere = nobody.local_addr().unwrap().as_socket().unwrap();
    let merchant = database.merchant();
    let endpoints: Vec<_> = [
        (slow.url.clone(), "timeout", Value::Null),
        (format!("http://{nowhere}/"), "connection_failed", Value::Null),
        (plain.url.replace("http:", "https:"), "tls_failed", Value::Null),
        (redirecting.url.clone(), "redirected", json!(307)),
        ("http://10.0.0.1/".to_owned(), "address_not_allowed", Value::Null),
        ("http://8.8.8.8/".to_owned(), "address_not_allowed", Value::Null),
        ("ftp://127.0.0.1/".to_owned(), "address_not_allowed", Value::Null),
    ]
    .into_iter()
    .map(|(url, error, status)| (endpoint(&database, &merchant, &url), url, error, status))
    .collect();
    let unresolved = endpoint(&database, &merchant, "https://no-such-host.invalid/");
    endpoints[0].0.make_events(&database, 1);
    for (endpoint, url, error, status) in endpoints {
        let attempt = endpoint.first_attempt(&database);
        assert_eq!((&attempt["error"], &attempt["status"]), (&json!(error), &status), "{url}: {attempt}");
        assert!(endpoint.is_failing(&database), "{url}");
    }
    let error = unresolved.first_attempt(&database)["error"].clone();
    // A name server may take its time to say that there's no such name.
    assert!(error == "connection_failed" || error == "timeout", "{error}");
    assert!(target.received().is_empty(), "a redirect was followed");
}

#[test]
fn nothing_is_sent_to_addresses_that_are_not_public() {
    let database = TestDatabase::new();
    let _app = App::start_with(&database, |config| {
        quick(config);
        config.webhook_allow_loopback = false;
    });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let merchant = database.merchant();
    let endpoints: Vec<_> = [
        format!("https://127.0.0.1:{port}/"),
        format!("https://2130706433:{port}/"),
        format!("https://[::ffff:127.0.0.1]:{port}/"),
        format!("https://localhost:{port}/"),
        format!("http://localhost:{port}/"),
        format!("http://127.0.0.1:{port}/"),
        "https://169.254.169.254/latest/meta-data/".to_owned(),
        "https://[fd00:ec2::254]/".to_owned(),
    ]
    .into_iter()
    .map(|url| (endpoint(&database, &merchant, &url), url))
    .collect();
    endpoints[0].0.make_events(&database, 1);
    for (endpoint, url) in endpoints {
        assert_eq!(endpoint.first_attempt(&database)["error"], "address_not_allowed", "{url}");
    }
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "somebody connected");
}

#[test]
fn names_that_resolve_to_this_host_are_reached_where_that_is_allowed() {
    let database = TestDatabase::new();
    let _app = App::start_with(&database, quick);
    let receiver = Receiver::start();
    let url = receiver.url.replace("127.0.0.1", "localhost");
    endpoint(&database, &database.merchant(), &url).make_events(&database, 1);
    wait_for(&receiver, 1);
}

#[test]
fn both_secrets_sign_while_one_replaces_the_other() {
    let database = TestDatabase::new();
    let _app = App::start_with(&database, quick);
    let receiver = Receiver::start();
    let endpoint = endpoint(&database, &database.merchant(), &receiver.url);
    endpoint.set(
        &database,
        "secret_version = 2, previous_secret_expires_at = statement_timestamp() + interval '1 hour'",
    );
    endpoint.make_events(&database, 1);
    let message = wait_for(&receiver, 1).remove(0);
    assert_eq!(verify(&message, endpoint.secret(1)), Ok(()));
    assert_eq!(verify(&message, endpoint.secret(2)), Ok(()));

    endpoint.set(&database, "previous_secret_expires_at = statement_timestamp()");
    endpoint.make_events(&database, 1);
    let message = wait_for(&receiver, 2).remove(1);
    assert_eq!(verify(&message, endpoint.secret(1)), Err(signature::Refusal::Forged));
    assert_eq!(verify(&message, endpoint.secret(2)), Ok(()));
}

#[test]
fn of_an_answer_only_the_beginning_is_kept() {
    let database = TestDatabase::new();
    let _app = App::start_with(&database, quick);
    let receiver = Receiver::start();
    receiver.answer_next(&[500]);
    receiver.answer_saying("", &["é\0\"".as_bytes(), &b"\xffx".repeat(1_000_000)].concat());
    let endpoint = endpoint(&database, &database.merchant(), &receiver.url);
    endpoint.make_events(&database, 1);
    eventually("the outcome", || endpoint.deliveries(&database, "succeeded") == 1);
    for attempt in endpoint.attempts(&database) {
        let expected = format!("é\"{}", "\u{fffd}x".repeat(249));
        assert_eq!(attempt["response_excerpt"], expected);
    }
}

#[test]
fn an_event_that_is_too_large_is_sent_without_its_object() {
    let database = TestDatabase::new();
    let _app = App::start_with(&database, quick);
    let receiver = Receiver::start();
    let endpoint = endpoint(&database, &database.merchant(), &receiver.url);
    for filler in [60 * 1024, 70 * 1024] {
        execute(
            &mut database.as_owner(),
            &format!(
                "INSERT INTO events (merchant_id, id, type, object_id, data) VALUES \
                 ('{}', uuid_v7(), 'charge.updated', gen_random_uuid(), \
                  '{{\"id\": \"ch_1\", \"object\": \"charge\", \"description\": \"{}\"}}')",
                endpoint.merchant,
                "x".repeat(filler)
            ),
        );
    }
    let mut messages = wait_for(&receiver, 2);
    messages.sort_by_key(|message| message.id.clone());
    let (whole, thin) = (messages[0].json(), messages[1].json());
    assert_eq!(whole["data"]["description"].as_str().map(str::len), Some(60 * 1024));
    assert_eq!(whole.get("data_omitted"), None);
    assert_eq!(thin["data"], json!({"id": "ch_1", "object": "charge"}));
    assert_eq!(thin["data_omitted"], true);
    assert_eq!(verify(&messages[1], endpoint.secret(1)), Ok(()));
}

#[test]
fn an_endpoint_that_hangs_with_much_to_be_sent_does_not_delay_another() {
    let database = TestDatabase::new();
    let _app = App::start_with(&database, |config| {
        quick(config);
        config.delivery.delivery_timeout_ms = 600_000;
    });
    let (hanging, unknown, healthy) = (Receiver::start(), Receiver::start(), Receiver::start());
    hanging.answer_after(Duration::from_secs(3600));
    unknown.answer_after(Duration::from_secs(3600));
    let slow = endpoint(&database, &database.merchant(), &hanging.url);
    slow.set(&database, "first_accepted_at = statement_timestamp()");
    let new = endpoint(&database, &database.merchant(), &unknown.url);
    let quick = endpoint(&database, &database.merchant(), &healthy.url);
    slow.make_events(&database, 500);
    new.make_events(&database, 500);
    wait_for(&hanging, 16);
    wait_for(&unknown, 1);
    let made = Instant::now();
    quick.make_events(&database, 50);
    wait_for(&healthy, 50);
    assert!(made.elapsed() < Duration::from_secs(10), "{:?}", made.elapsed());
    assert_eq!(hanging.received().len(), 16, "no more than its places");
    assert_eq!(unknown.received().len(), 1, "one until it has accepted a message");
    assert!(quick.has_accepted(&database) && !new.has_accepted(&database));
}

#[test]
fn endpoints_that_fail_leave_room_for_those_that_do_not() {
    let database = TestDatabase::new();
    let _app = App::start_with(&database, |config| {
        quick(config);
        config.delivery.delivery_concurrency = 4;
        config.delivery.delivery_timeout_ms = 600_000;
    });
    let (hanging, busy, healthy) = (Receiver::start(), Receiver::start(), Receiver::start());
    hanging.answer_after(Duration::from_secs(3600));
    busy.answer_after(Duration::from_millis(50));
    for _ in 0..8 {
        let dead = endpoint(&database, &database.merchant(), &hanging.url);
        dead.set(&database, "failing_since = statement_timestamp()");
        dead.make_events(&database, 5);
    }
    wait_for(&hanging, 2);
    let (much, little) = (database.merchant(), database.merchant());
    endpoint(&database, &much, &busy.url).make_events(&database, 300);
    wait_for(&busy, 1);
    endpoint(&database, &little, &healthy.url).make_events(&database, 10);
    wait_for(&healthy, 10);
    assert!(busy.received().len() < 300, "it waits for nobody's backlog");
    assert_eq!(hanging.received().len(), 2, "half of the places");
}

#[test]
fn the_endpoints_of_a_merchant_leave_room_for_those_of_others() {
    let database = TestDatabase::new();
    let _app = App::start_with(&database, |config| {
        quick(config);
        config.delivery.delivery_timeout_ms = 600_000;
        config.delivery.delivery_concurrency = 16;
        config.delivery.delivery_concurrency_per_endpoint = 4;
    });
    let (hanging, healthy) = (Receiver::start(), Receiver::start());
    hanging.answer_after(Duration::from_secs(3600));
    let (large, small) = (database.merchant(), database.merchant());
    let endpoints: Vec<_> = (0..8).map(|_| endpoint(&database, &large, &hanging.url)).collect();
    endpoints[0].make_events(&database, 10);
    wait_for(&hanging, 4);
    endpoint(&database, &small, &healthy.url).make_events(&database, 10);
    wait_for(&healthy, 10);
    assert_eq!(hanging.received().len(), 4, "a quarter of the places");
}

#[test]
fn an_endpoint_that_fails_is_tried_at_a_steady_pace_however_much_waits_for_it() {
    let database = TestDatabase::new();
    let _app = App::start_with(&database, |config| {
        quick(config);
        config.delivery.delivery_backoff_ms = 300;
    });
    let receiver = Receiver::start();
    receiver.answer(500);
    let endpoint = endpoint(&database, &database.merchant(), &receiver.url);
    endpoint.make_events(&database, 1);
    eventually("its failure", || endpoint.is_failing(&database));
    endpoint.make_events(&database, 20);
    wait_for(&receiver, 6);
    eventually("their outcomes", || {
        database.count("SELECT sum(jsonb_array_length(attempts)) FROM webhook_deliveries") >= 6
    });
    // The first attempt of all was at an endpoint that didn't fail.
    let shortest = database.count(
        "SELECT min(pause) FROM ( \
             SELECT extract(epoch FROM at - lag(at) OVER (ORDER BY at)) * 1000 AS pause, row_number() OVER (ORDER BY at) AS n \
             FROM (SELECT (jsonb_array_elements(attempts) ->> 'started_at')::timestamptz AS at \
                 FROM webhook_deliveries) AS t) AS pauses \
         WHERE n > 2",
    );
    assert!(shortest >= 299, "{shortest} ms");
}

#[test]
fn what_waited_for_a_disabled_endpoint_is_tried_like_what_is_new() {
    let database = TestDatabase::new();
    let (merchant, receiver) = (database.merchant(), Receiver::start());
    receiver.answer_next(&[500]);
    let endpoint = endpoint(&database, &merchant, &receiver.url);
    endpoint.make_events(&database, 1);
    endpoint.set(&database, "status = 'disabled', disabled_at = statement_timestamp()");
    execute(
        &mut database.as_owner(),
        "UPDATE webhook_deliveries SET created_at = created_at - interval '4 days'",
    );
    let app = App::start_with(&database, quick);
    let path = format!("/v1/webhook-endpoints/{}", WebhookEndpointId(endpoint.id));
    let client = app.client.as_merchant(&merchant);
    client.send("PATCH", &path, "k", &json!({"status": "enabled"})).expect(200);
    eventually("its arrival", || endpoint.deliveries(&database, "succeeded") == 1);
    let statuses: Vec<_> =
        endpoint.attempts(&database).iter().map(|attempt| attempt["status"].clone()).collect();
    assert_eq!(statuses, [500, 200]);
}

#[test]
fn an_endpoint_that_has_failed_for_too_long_is_disabled_also_when_nothing_waits_for_it() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let [dead, young] = [(); 2].map(|()| endpoint(&database, &merchant, "http://127.0.0.1:1/"));
    dead.set(&database, "failing_since = statement_timestamp() - interval '1 hour'");
    young.set(&database, "failing_since = statement_timestamp() + interval '1 hour'");
    let _app = App::start_with(&database, |config| {
        quick(config);
        config.delivery.delivery_give_up_after_s = 1;
    });
    let disabled = "SELECT count(*) FROM webhook_endpoints WHERE status = 'disabled'";
    eventually("its end", || database.count(disabled) == 1);
    assert!(young.is_failing(&database), "it has its time");
    assert_eq!(database.count("SELECT count(*) FROM events WHERE type = 'webhook_endpoint.disabled'"), 1);
}

/// Kills an instance at `point` with one message to be sent. `sent`: how often it has been sent by then.
fn survive(point: &str, sent: usize) {
    let database = TestDatabase::new();
    let receiver = Receiver::start();
    let endpoint = endpoint(&database, &database.merchant(), &receiver.url);
    let fault = format!("kill:{point}");
    let doomed = Process::start(&database, &[QUICK, &[("ONCEPAY_FAULT", &fault)]].concat());
    endpoint.make_events(&database, 1);
    assert!(doomed.was_killed());
    assert_eq!(receiver.received().len(), sent);
    let _healthy = Process::start(&database, QUICK);
    thread::sleep(Duration::from_millis(500));
    assert_eq!(receiver.received().len(), sent, "the claim still holds");
    execute(&mut database.as_owner(), "UPDATE webhook_deliveries SET claimed_until = statement_timestamp()");
    eventually("the outcome", || endpoint.deliveries(&database, "succeeded") == 1);
    let messages = receiver.received();
    assert_eq!((messages.len(), ids(&messages).len()), (sent + 1, 1));
    assert_eq!(endpoint.first_attempt(&database)["number"], 2);
}

#[test]
fn a_kill_before_a_message_is_sent_does_not_lose_it() {
    survive("delivery_before_send", 0);
}

#[test]
fn a_kill_before_the_outcome_is_noted_sends_it_again() {
    survive("delivery_after_send", 1);
}

#[test]
fn an_attempt_that_ends_after_its_lease_changes_nothing() {
    let database = TestDatabase::new();
    let receiver = Receiver::start();
    let endpoint = endpoint(&database, &database.merchant(), &receiver.url);
    receiver.answer_next(&[500]);
    let late = Process::start(&database, &[QUICK, &[("ONCEPAY_FAULT", "stop:delivery_after_send")]].concat());
    endpoint.make_events(&database, 1);
    late.wait_until_stopped();
    execute(&mut database.as_owner(), "UPDATE webhook_deliveries SET claimed_until = statement_timestamp()");
    let _other = Process::start(&database, QUICK);
    eventually("the outcome", || endpoint.deliveries(&database, "succeeded") == 1);
    late.go_on();
    let noted = || late.client.metrics().value("oncepay_webhook_batch_size_sum", &[]);
    eventually("the late outcome", || noted() == 1.0);
    assert_eq!(late.client.metrics().value("oncepay_webhook_deliveries_total", &[]), 0.0);
    assert_eq!(endpoint.attempts(&database).len(), 1);
    assert!(!endpoint.is_failing(&database));
}

#[test]
fn instances_share_the_work_and_send_nothing_twice() {
    let database = TestDatabase::new();
    let _apps = [App::start_with(&database, quick), App::start_with(&database, quick)];
    let targets: Vec<_> = (0..3)
        .map(|_| {
            let receiver = Receiver::start();
            (endpoint(&database, &database.merchant(), &receiver.url), receiver)
        })
        .collect();
    for _ in 0..10 {
        for (endpoint, _) in &targets {
            endpoint.make_events(&database, 20);
        }
        thread::sleep(Duration::from_millis(20));
    }
    for (endpoint, receiver) in &targets {
        eventually("all of them", || endpoint.deliveries(&database, "succeeded") == 200);
        let received = receiver.received();
        assert_eq!((ids(&received).len(), received.len()), (200, 200));
    }
    assert_eq!(database.count("SELECT count(*) FROM webhook_deliveries WHERE attempt_count <> 1"), 0);
}

#[test]
fn an_endpoint_that_takes_nothing_for_too_long_is_disabled_and_can_be_enabled_again() {
    let database = TestDatabase::new();
    let give_up_soon = |config: &mut Config| {
        quick(config);
        config.delivery.delivery_give_up_after_s = 1;
    };
    let apps = [App::start_with(&database, give_up_soon), App::start_with(&database, give_up_soon)];
    let (receiver, other) = (Receiver::start(), Receiver::start());
    receiver.answer(500);
    let merchant = database.merchant();
    let dead = endpoint(&database, &merchant, &receiver.url);
    endpoint_for(&database, &merchant, &other.url, "webhook_endpoint.disabled");
    // With one message at a time, as of an endpoint that has accepted nothing yet, it may end before the first is given up.
    dead.set(&database, "first_accepted_at = statement_timestamp()");
    // One of them is given up at its first attempt, however soon the endpoint is disabled.
    let made = database.as_owner().transaction::<_, diesel::result::Error, _>(|conn| {
        dead.make_events_within(conn, 300);
        let old = "UPDATE webhook_deliveries SET created_at = statement_timestamp() - interval '30 seconds' \
             WHERE id = (SELECT min(id::text)::uuid FROM webhook_deliveries)";
        execute(conn, old);
        Ok(())
    });
    made.unwrap();
    let status = |status: &str| {
        database.count(&format!(
            "SELECT count(*) FROM webhook_endpoints WHERE id = '{}' AND status = '{status}'",
            dead.id
        ))
    };
    eventually("its end", || status("disabled") == 1);

    let message = wait_for(&other, 1).remove(0).json();
    assert_eq!(message["type"], "webhook_endpoint.disabled");
    let object: BTreeMap<String, Value> = serde_json::from_value(message["data"].clone()).unwrap();
    let keys: Vec<_> = object.keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "created_at",
            "description",
            "disabled_at",
            "event_types",
            "failing_since",
            "id",
            "object",
            "previous_secret_expires_at",
            "status",
            "url"
        ]
    );
    assert_eq!(object["id"], WebhookEndpointId(dead.id).to_string());
    assert_eq!((&object["object"], &object["status"]), (&json!("webhook_endpoint"), &json!("disabled")));
    assert!(object["failing_since"].as_str() < object["disabled_at"].as_str());
    // What was under way at that time ends.
    let in_flight = "SELECT count(*) FROM webhook_deliveries WHERE claimed_until > statement_timestamp()";
    eventually("silence", || database.count(in_flight) == 0);
    let (given_up, pending) = (dead.deliveries(&database, "failed"), dead.deliveries(&database, "pending"));
    assert!(given_up > 0 && pending > 0, "{given_up} {pending}");
    let count = |name: &str, labels: &[(&str, &str)]| {
        apps.iter().map(|app| app.client.metrics().value(name, labels)).sum::<f64>()
    };
    let given_up_by_metrics = || count("oncepay_webhook_deliveries_total", &[("outcome", "given_up")]);
    eventually("their count", || given_up_by_metrics() == given_up as f64);
    assert_eq!(count("oncepay_webhook_endpoints_disabled_total", &[]), 1.0);
    let sent = receiver.received().len();
    thread::sleep(Duration::from_millis(300));
    assert_eq!(receiver.received().len(), sent, "nothing is sent to it");

    receiver.answer(200);
    dead.set(&database, "status = 'enabled', disabled_at = NULL, failing_since = NULL");
    eventually("what was pending", || dead.deliveries(&database, "succeeded") == pending);
    assert_eq!(database.count("SELECT count(*) FROM events WHERE type = 'webhook_endpoint.disabled'"), 1);
}

/// Also what was on its way when it was deleted. Those of others wait on.
#[test]
fn what_waits_for_a_deleted_endpoint_is_given_up() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", nobody.local_addr().unwrap());
    let [deleted, disabled] = ["deleted", "disabled"].map(|status| {
        let endpoint = endpoint(&database, &merchant, &url);
        (endpoint, status)
    });
    deleted.0.make_events(&database, 1_100);
    for (endpoint, status) in [&deleted, &disabled] {
        endpoint.set(&database, &format!("status = '{status}', disabled_at = statement_timestamp()"));
    }
    execute(
        &mut database.as_owner(),
        "UPDATE webhook_deliveries SET claimed_until = statement_timestamp() + interval '1 second' \
         WHERE (merchant_id, id) IN (SELECT merchant_id, id FROM webhook_deliveries LIMIT 5)",
    );
    let app = App::start_with(&database, quick);
    eventually("the end", || deleted.0.deliveries(&database, "failed") == 1_100);
    assert_eq!(disabled.0.deliveries(&database, "pending"), 1_100);
    let given_up = [("outcome", "given_up")];
    let count = || app.client.metrics().value("oncepay_webhook_deliveries_total", &given_up);
    eventually("the count", || count() == 1_100.0);
}

#[test]
fn claiming_moves_no_index_entry() {
    let database = TestDatabase::new();
    let receiver = Receiver::start();
    receiver.answer_after(Duration::from_secs(3600));
    let endpoint = endpoint(&database, &database.merchant(), &receiver.url);
    endpoint.set(&database, "first_accepted_at = statement_timestamp()");
    endpoint.make_events(&database, 200);
    let _app = App::start_with(&database, |config| {
        quick(config);
        config.delivery.delivery_timeout_ms = 600_000;
    });
    let updates = |kind: &str| {
        database.count_everywhere(&format!(
            "SELECT sum({kind}) FROM pg_stat_user_tables WHERE relname ~ '^webhook_deliveries(_[0-9]+)?$'"
        ))
    };
    eventually("the claims", || updates("n_tup_upd") == 16);
    assert_eq!(updates("n_tup_hot_upd"), 16);
}

/// Statistics that were made while nothing waited promise that the index of what waits is the smallest one.
#[test]
fn noting_an_outcome_does_not_read_all_that_waits() {
    let database = TestDatabase::new();
    let receiver = Receiver::start();
    let endpoint = endpoint(&database, &database.merchant(), &receiver.url);
    endpoint.make_events(&database, 3_000);
    let deliver = "UPDATE webhook_deliveries SET state = 'succeeded', completed_at = now()";
    for statement in [deliver, "VACUUM ANALYZE webhook_deliveries"] {
        execute(&mut database.as_superuser(), statement);
    }
    let read = || {
        let read = "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE indexrelname ~ '^webhook_deliveries_due(_[0-9]+)?$'";
        database.count_everywhere(read)
    };
    // What waits for somebody else is read by none but a bad plan, once for each batch of outcomes: so 50 times or more.
    let other = self::endpoint(&database, &database.merchant(), &receiver.url);
    other.make_events(&database, 4_000);
    other.set(&database, "status = 'disabled', disabled_at = statement_timestamp()");
    endpoint.make_events(&database, 800);
    let _app = App::start_with(&database, quick);
    eventually("all of them", || endpoint.deliveries(&database, "succeeded") == 3_800);
    eventually("statistics", || read() >= 800);
    println!("{} entries were read", read());
    assert!(read() < 800 * 100, "{} entries were read", read());
}

#[test]
fn an_outage_of_the_database_costs_nothing_but_time() {
    let database = TestDatabase::new();
    let _app = App::start_with(&database, quick);
    let receiver = Receiver::start();
    receiver.answer_after(Duration::from_millis(300));
    let endpoint = endpoint(&database, &database.merchant(), &receiver.url);
    endpoint.make_events(&database, 40);
    wait_for(&receiver, 16);
    database.cut_off(true);
    thread::sleep(Duration::from_secs(2));
    database.cut_off(false);
    eventually("all of them", || endpoint.deliveries(&database, "succeeded") == 40);
    let received = receiver.received();
    assert_eq!(
        (ids(&received).len(), received.len()),
        (40, 40),
        "outcomes were kept until they could be noted"
    );
}

#[test]
fn a_receiver_that_asks_for_a_pause_gets_it() {
    let database = TestDatabase::new();
    let _app = App::start_with(&database, quick);
    let merchant = database.merchant();
    let date = chrono::Utc::now() + chrono::Duration::hours(2);
    let date = date.format("%a, %d %b %Y %H:%M:%S GMT").to_string();
    for (wish, seconds) in [("3600", 3600), ("99999999", 6 * 3600), (&*date, 2 * 3600)] {
        let receiver = Receiver::start();
        receiver.answer(503);
        receiver.answer_saying(&format!("Retry-After: {wish}\r\n"), b"");
        let endpoint = endpoint(&database, &merchant, &receiver.url);
        endpoint.make_events(&database, 1);
        endpoint.first_attempt(&database);
        let pause = |what: &str| {
            let now = chrono::Utc::now().to_rfc3339();
            database.count(&format!("SELECT extract(epoch FROM {what} - timestamptz '{now}') FROM webhook_endpoints e \
                JOIN webhook_deliveries d ON d.merchant_id = e.merchant_id AND d.endpoint_id = e.id WHERE e.id = '{}' \
                ORDER BY d.id LIMIT 1", endpoint.id))
        };
        for what in ["e.paused_until", "d.due_at"] {
            assert!((seconds - 60..=seconds).contains(&pause(what)), "{wish}: {what} in {} s", pause(what));
        }
        // What happens meanwhile waits, too.
        endpoint.make_events(&database, 3);
        thread::sleep(Duration::from_millis(1_500));
        assert_eq!(receiver.received().len(), 1, "{wish}");
        // Until it's enabled anew, or takes something.
        receiver.answer(200);
        endpoint.set(&database, "paused_until = NULL");
        wait_for(&receiver, 4);
        endpoint.set(&database, "status = 'deleted', disabled_at = statement_timestamp()");
    }
}

#[test]
fn a_receiver_that_is_gone_is_disabled() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, quick);
    let merchant = database.merchant();
    let (gone, other) = (Receiver::start(), Receiver::start());
    gone.answer(410);
    endpoint_for(&database, &merchant, &other.url, "webhook_endpoint.disabled");
    let endpoint = endpoint_for(&database, &merchant, &gone.url, "charge.updated");
    endpoint.make_events(&database, 1);
    let message = wait_for(&other, 1).remove(0).json();
    assert_eq!(message["type"], "webhook_endpoint.disabled");
    assert_eq!(message["data"]["status"], "disabled");
    assert_eq!(endpoint.attempts(&database)[0]["status"], 410);
    assert_eq!(endpoint.deliveries(&database, "pending"), 1, "it's sent if the endpoint is enabled again");
    assert_eq!(app.client.metrics().value("oncepay_webhook_endpoints_disabled_total", &[]), 1.0);
}
