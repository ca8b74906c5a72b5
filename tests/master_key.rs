//! The master key: an instance with another one doesn't start, and while it's replaced, whatever was handed out stays as it is.

use std::process::Stdio;
use std::thread;

use oncepay::base::derived_secrets::{MasterKeyVersion, Vault, Versions};
use oncepay::base::ids::WebhookEndpointId;
use oncepay::base::signature::{self, Secret, SignatureHeaders};
use oncepay::config::Config;
use serde_json::{Value, json};

use crate::support::acquirer::{Received, Receiver};
use crate::support::*;

/// The master key that the tests' services have unless told otherwise.
fn old() -> String {
    "m".repeat(32)
}

fn new() -> String {
    "n".repeat(32)
}

/// Settings of a service whose key is being replaced.
fn replacing(config: &mut Config) {
    (config.master_key, config.previous_master_key) = (new().into(), Some(old().into()));
    quick(config);
}

fn quick(config: &mut Config) {
    config.webhook_allow_loopback = true;
    config.delivery.delivery_interval_ms = 20;
    config.delivery.delivery_backoff_ms = 100;
}

fn create_endpoint(client: &Client, key: &str, url: &str) -> Response {
    client.send("POST", "/v1/webhook-endpoints", key, &json!({"url": url, "event_types": ["*"]}))
}

fn is_signed_with(message: &Received, secret: &str) -> bool {
    let Received { id, timestamp, signature, body, .. } = message;
    let headers = SignatureHeaders { id, timestamp, signature };
    let secrets = [Secret::parse(secret).unwrap()];
    signature::verify(&secrets, headers, body.as_bytes(), chrono::Utc::now()).is_ok()
}

#[test]
fn an_instance_with_another_master_key_does_not_start() {
    let database = TestDatabase::new();
    drop(App::start(&database));
    assert_eq!(database.rows("master_keys"), 1);
    let refused = Process::refusal(&database, &[("ONCEPAY_MASTER_KEY", &new())]);
    assert!(
        refused.contains("ONCEPAY_MASTER_KEY isn't the master key that this database has been used with"),
        "{refused}"
    );
    let refused = Process::refusal(
        &database,
        &[("ONCEPAY_MASTER_KEY", &new()), ("ONCEPAY_PREVIOUS_MASTER_KEY", &"x".repeat(32))],
    );
    assert!(refused.contains("ONCEPAY_PREVIOUS_MASTER_KEY isn't a master key"), "{refused}");
    assert_eq!(database.rows("master_keys"), 1, "a refused key isn't remembered");
    let stored = database.text("SELECT encode(check_value, 'escape') FROM master_keys");
    assert!(!stored.contains(&old()), "{stored}");
    App::start(&database).client.get("/readyz").expect(200);
}

#[test]
fn of_two_master_keys_on_a_new_database_one_wins() {
    let database = TestDatabase::new();
    let starts: Vec<_> = thread::scope(|scope| {
        let keys = [old(), new(), old(), new()];
        let starts: Vec<_> = keys
            .into_iter()
            .map(|key| {
                let database = &database;
                scope.spawn(move || {
                    let environment = [("ONCEPAY_MASTER_KEY", key.as_str())];
                    Process::try_start(Process::command(), database, &environment, Stdio::null()).is_ok()
                })
            })
            .collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    assert_eq!((starts[0], starts[1]), (starts[2], starts[3]), "{starts:?}");
    assert_ne!(starts[0], starts[1], "{starts:?}");
    assert_eq!(database.rows("master_keys"), 1);
}

#[test]
fn while_the_master_key_is_replaced_what_was_handed_out_stays_as_it_is() {
    let database = TestDatabase::new();
    let (merchant, operator) = (database.merchant(), database.operator_key());
    let receiver = Receiver::start();
    let issue =
        |client: &Client, key: &str| client.send("POST", "/v1/api-keys", key, &json!({"name": "shop"}));
    let shop = json!({"name": "Shop", "fee_rate": "0.029", "fee_fixed": "0.30"});
    let app = App::start_with(&database, quick);
    let client = app.client.as_merchant(&merchant);
    let before = [
        issue(&client, "issued").expect(201),
        create_endpoint(&client, "endpoint", &receiver.url).expect(201),
        app.client.with_key(&operator).send("POST", "/v1/operator/merchants", "shop", &shop).expect(201),
    ];
    drop(app);

    let app = App::start_with(&database, replacing);
    let client = app.client.as_merchant(&merchant);
    let replays = [
        issue(&client, "issued").expect(201),
        create_endpoint(&client, "endpoint", &receiver.url).expect(201),
        app.client.with_key(&operator).send("POST", "/v1/operator/merchants", "shop", &shop).expect(201),
    ];
    for (replay, before) in replays.iter().zip(&before) {
        assert!(replay.is_replay());
        assert_eq!(replay.text(), before.text());
    }
    app.client.with_key(&before[0].field("key")).charge("k", &visa()).expect(201);
    eventually("the message", || !receiver.received().is_empty());
    assert!(is_signed_with(&receiver.received()[0], &before[1].field("secret")));

    // What is new derives from the new key, and is replayed, too.
    let issued = issue(&client, "issued-2").expect(201);
    assert_eq!(issue(&client, "issued-2").expect(201).body, issued.body);
    app.client.with_key(&issued.field("key")).get("/v1/balance").expect(200);
    let id = before[1].field("id");
    let rotate = |overlap_s: u32, key: &str| {
        let path = format!("/v1/webhook-endpoints/{id}/rotate-secret");
        client.send("POST", &path, key, &json!({"overlap_seconds": overlap_s})).expect(200)
    };
    let rotated = rotate(3600, "rotate");
    let vault = Vault::new(new().into(), None);
    vault.open(Versions { current: MasterKeyVersion(2), previous: None });
    let endpoint: WebhookEndpointId = id.parse().unwrap();
    let derived = vault.webhook_secret(endpoint, 2, MasterKeyVersion(2)).unwrap();
    assert_eq!(rotated.field("secret"), secrecy::ExposeSecret::expose_secret(&derived.reveal()));
    let count = receiver.received().len();
    client.charge("k2", &visa()).expect(201);
    eventually("the next message", || receiver.received().len() > count);
    let message = receiver.received().pop().unwrap();
    for secret in [rotated.field("secret"), before[1].field("secret")] {
        assert!(is_signed_with(&message, &secret), "both sign during the overlap");
    }

    // The old key is needed as long as something signs with it.
    let alone = [("ONCEPAY_MASTER_KEY", new())];
    let alone: Vec<_> = alone.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let refused = Process::refusal(&database, &alone);
    assert!(
        refused.contains("1 webhook endpoints sign with secrets that derive from another master key"),
        "{refused}"
    );
    rotate(0, "rotate-at-once");
    drop(app);
    let app = App::start_with(&database, |config| config.master_key = new().into());
    let client = app.client.as_merchant(&merchant);
    assert_eq!(issue(&client, "issued-2").expect(201).body, issued.body);
    let lost = issue(&client, "issued").expect_problem(503, "secret_unavailable");
    assert_eq!(lost.json()["retryable"], true, "better no secret than a wrong one");
    app.client.with_key(&before[0].field("key")).get("/v1/balance").expect(200);
    drop(app);
    // The way back is open with both keys.
    drop(App::start_with(&database, |config| {
        config.previous_master_key = Some(new().into());
    }));
    assert_eq!(database.rows("master_keys"), 2);
}

/// Of instances that are given different new keys by mistake, all but one are refused, and leave no trace.
#[test]
fn a_master_key_is_replaced_by_one_other() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let app = App::start_with(&database, quick);
    create_endpoint(&app.client.as_merchant(&merchant), "old", "http://127.0.0.1:9/").expect(201);
    drop(app);
    let app = App::start_with(&database, replacing);
    create_endpoint(&app.client.as_merchant(&merchant), "new", "http://127.0.0.1:9/").expect(201);
    let third = "t".repeat(32);
    let start = |current: &str, previous: &str| {
        let keys = [("ONCEPAY_MASTER_KEY", current), ("ONCEPAY_PREVIOUS_MASTER_KEY", previous)];
        Process::refusal(&database, &keys)
    };
    let refused = start(&third, &old());
    assert!(refused.contains("has already been replaced by another key"), "{refused}");
    // The successor may be replaced only when nothing derives from the first key any more.
    let refused = start(&third, &new());
    assert!(refused.contains("1 webhook endpoints sign with secrets"), "{refused}");
    assert_eq!(database.rows("master_keys"), 2);
    drop(app);
    // All that was handed out has its key, so instances can be restarted.
    drop(App::start_with(&database, replacing));
}

#[test]
fn an_instance_without_the_new_key_leaves_to_the_others_what_needs_it() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let receiver = Receiver::start();
    let sandbox = std::sync::Arc::new(oncepay::processor::Sandbox::recording());
    let before = App::start_sharing(&database, std::sync::Arc::clone(&sandbox), quick);
    let after = App::start_sharing(&database, sandbox, replacing);
    let [client, client_after] = [&before, &after].map(|app| app.client.as_merchant(&merchant));
    let created = create_endpoint(&client_after, "endpoint", &receiver.url).expect(201);
    create_endpoint(&client, "endpoint", &receiver.url).expect_problem(503, "secret_unavailable");
    assert_eq!(create_endpoint(&client_after, "endpoint", &receiver.url).expect(201).body, created.body);
    // The other way round, both can answer.
    let issued = client.send("POST", "/v1/api-keys", "issued", &json!({"name": "shop"})).expect(201);
    let replay = client_after.send("POST", "/v1/api-keys", "issued", &json!({"name": "shop"})).expect(201);
    assert_eq!(replay.body, issued.body);
    for number in 0..20 {
        client.charge(&format!("k{number}"), &visa()).expect(201);
    }
    eventually("the messages", || receiver.received().len() >= 20);
    let secret = created.field("secret");
    assert!(receiver.received().iter().all(|message| is_signed_with(message, &secret)));
    drop(after);
    // On its own, the instance without the key sends nothing, rather than something that receivers refuse.
    client.charge("left", &visa()).expect(201);
    let sent = receiver.received().len();
    thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(receiver.received().len(), sent);
}

#[test]
fn until_the_master_key_is_checked_an_instance_is_not_ready_and_shows_no_secret() {
    let database = TestDatabase::new();
    let mut owner = database.as_owner();
    execute(&mut owner, "ALTER TABLE master_keys RENAME check_value TO illegible");
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    app.client.get("/readyz").expect_problem(503, "secret_unavailable");
    let body: Value = json!({"name": "shop"});
    client.send("POST", "/v1/api-keys", "k", &body).expect_problem(503, "secret_unavailable");
    client.charge("charge", &visa()).expect(201);
    execute(&mut owner, "ALTER TABLE master_keys RENAME illegible TO check_value");
    eventually("the check", || app.client.get("/readyz").status == 200);
    client.send("POST", "/v1/api-keys", "k", &body).expect(201);
}
