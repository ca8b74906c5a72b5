use std::thread;

use oncepay::base::signature::Secret;
use serde_json::{Value, json};

use crate::support::*;

const PATH: &str = "/v1/webhook-endpoints";
const URL: &str = "https://shop.example/webhooks";

fn create(client: &Client, body: &Value) -> Response {
    client.send("POST", PATH, &fresh_key(), body)
}

/// An endpoint for these types of events; returns its id.
pub fn endpoint(client: &Client, event_types: &[&str]) -> String {
    create(client, &json!({"url": URL, "event_types": event_types})).expect(201).field("id")
}

pub fn update(client: &Client, id: &str, patch: Value) -> Response {
    client.send("PATCH", &format!("{PATH}/{id}"), &fresh_key(), &patch)
}

pub fn delete(client: &Client, id: &str) -> Response {
    client.request("DELETE", &format!("{PATH}/{id}")).idempotency_key(&fresh_key()).send()
}

#[test]
fn an_endpoint_is_created_read_changed_and_deleted() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let created = create(&client, &json!({"url": URL, "description": "orders"})).expect(201);
    let id = created.field("id");
    let path = format!("{PATH}/{id}");
    assert_eq!(created.header("Location"), Some(path.as_str()));
    assert!(id.starts_with("we_"));
    let mut expected = created.json();
    expected.as_object_mut().unwrap().remove("secret");
    assert_eq!(
        expected,
        json!({
            "id": id, "object": "webhook_endpoint", "url": URL, "event_types": ["*"], "description": "orders",
            "status": "enabled", "previous_secret_expires_at": null, "failing_since": null, "disabled_at": null,
            "created_at": expected["created_at"],
        })
    );
    assert_eq!(client.get(&path).expect(200).json(), expected);

    let other = endpoint(&client, &["charge.succeeded", "refund.succeeded"]);
    let list = client.get(PATH).expect(200).json();
    assert_eq!(list["data"][1], expected);
    assert_eq!((&list["data"][0]["id"], &list["has_more"]), (&json!(other), &json!(false)));
    assert_eq!(list["data"][0]["event_types"], json!(["charge.succeeded", "refund.succeeded"]));
    let page = client.get(&format!("{PATH}?starting_after={other}")).expect(200).json();
    assert_eq!(page, json!({"data": [expected], "has_more": false}));

    assert_eq!(update(&client, &id, json!({})).expect(200).json(), expected);
    let patch =
        json!({"url": "https://shop.example/2?a=b", "event_types": ["charge.failed"], "description": null});
    let updated = update(&client, &id, patch.clone()).expect(200).json();
    for field in ["url", "event_types", "description"] {
        assert_eq!(updated[field], patch[field]);
    }
    assert_eq!(client.get(&path).expect(200).json(), updated);

    let deleted = delete(&client, &id).expect(200).json();
    assert_eq!((&deleted["id"], &deleted["status"]), (&json!(id), &json!("deleted")));
    client.get(&path).expect_problem(404, "webhook_endpoint_not_found");
    delete(&client, &id).expect_problem(404, "webhook_endpoint_not_found");
    update(&client, &id, json!({"status": "enabled"})).expect_problem(404, "webhook_endpoint_not_found");
    let list = client.get(PATH).expect(200).json();
    assert_eq!(list["data"].as_array().unwrap().len(), 1);
}

#[test]
fn enabling_an_endpoint_makes_it_new() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let id = endpoint(&client, &["*"]);
    let disabled = update(&client, &id, json!({"status": "disabled"})).expect(200).json();
    assert_eq!(disabled["status"], "disabled");
    assert!(disabled["disabled_at"].is_string());
    let again = update(&client, &id, json!({"status": "disabled"})).expect(200).json();
    assert_eq!(again["disabled_at"], disabled["disabled_at"], "it stays when it was");
    execute(
        &mut database.as_app(),
        "UPDATE webhook_endpoints SET failing_since = disabled_at - interval '5 days', first_accepted_at = created_at",
    );
    assert!(client.get(&format!("{PATH}/{id}")).expect(200).json()["failing_since"].is_string());
    let enabled = update(&client, &id, json!({"status": "enabled"})).expect(200).json();
    assert_eq!(
        [&enabled["status"], &enabled["disabled_at"], &enabled["failing_since"]],
        [&json!("enabled"), &Value::Null, &Value::Null]
    );
    let proven = "SELECT count(*) FROM webhook_endpoints WHERE first_accepted_at IS NOT NULL";
    assert_eq!(database.count(proven), 0, "it may be another receiver now");
    // One that is enabled already doesn't get another chance by saying so.
    execute(&mut database.as_app(), "UPDATE webhook_endpoints SET failing_since = created_at");
    let still = update(&client, &id, json!({"status": "enabled"})).expect(200).json();
    assert!(still["failing_since"].is_string());
}

/// Panics if a table holds the secret, as a text or as bytes.
fn assert_not_stored(database: &TestDatabase, secret: &str) {
    let encoded = secret.strip_prefix("whsec_").unwrap();
    let tables = database.text(
        "SELECT string_agg(relname, ' ') FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace",
    );
    for table in tables.split(' ') {
        let query = format!(
            "SELECT count(*) FROM {table} t WHERE position('{encoded}' IN t::text) > 0 \
             OR position('{}' IN t::text) > 0 OR position(encode(decode('{encoded}', 'base64'), 'hex') IN t::text) > 0",
            hex::encode(encoded)
        );
        assert_eq!(database.count(&query), 0, "{table} holds the secret");
    }
}

#[test]
fn a_secret_is_shown_once_and_in_replays_and_is_not_stored() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let body = json!({"url": URL, "description": oncepay::idempotency::SEALED});
    let created = client.send("POST", PATH, "c", &body).expect(201);
    let (id, secret) = (created.field("id"), created.field("secret"));
    assert!(Secret::parse(&secret).is_ok(), "{secret}");
    assert_eq!(
        created.field("description"),
        oncepay::idempotency::SEALED,
        "the client's words stay as they are"
    );
    let replay = client.send("POST", PATH, "c", &body).expect(201);
    assert!(replay.is_replay());
    assert_eq!(replay.body, created.body, "whoever lost the answer sees the secret");

    let path = format!("{PATH}/{id}/rotate-secret");
    let rotate = |key: &str, body: Value| client.send("POST", &path, key, &body);
    let rotated = rotate("r", json!({"overlap_seconds": 60})).expect(200);
    let next = rotated.field("secret");
    assert!(Secret::parse(&next).is_ok() && next != secret, "{next}");
    let replay = rotate("r", json!({"overlap_seconds": 60})).expect(200);
    assert!(replay.is_replay());
    assert_eq!(replay.body, rotated.body);
    assert_eq!(client.send("POST", PATH, "c", &body).field("secret"), secret, "a replay is what it was");
    assert_eq!(database.count("SELECT secret_version FROM webhook_endpoints"), 2, "one key, one rotation");

    for secret in [&secret, &next] {
        assert_not_stored(&database, secret);
    }
    assert!(client.get(&format!("{PATH}/{id}")).expect(200).json().get("secret").is_none());
    assert!(client.get(PATH).expect(200).json()["data"][0].get("secret").is_none());
    assert!(update(&client, &id, json!({})).expect(200).json().get("secret").is_none());
    assert!(delete(&client, &id).expect(200).json().get("secret").is_none());
}

#[test]
fn the_secret_before_signs_along_for_as_long_as_was_asked_for() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let id = endpoint(&client, &["*"]);
    let path = format!("{PATH}/{id}/rotate-secret");
    let overlap = "SELECT round(extract(epoch FROM previous_secret_expires_at - k.created_at)) \
                   FROM webhook_endpoints e JOIN idempotency_keys k ON k.merchant_id = e.merchant_id \
                   WHERE k.operation = 'webhook_endpoints.rotate_secret' \
                   ORDER BY k.created_at DESC LIMIT 1";
    for (body, expected_s) in [
        (json!({}), 86_400),
        (json!({"overlap_seconds": 60}), 60),
        (json!({"overlap_seconds": 604_800}), 604_800),
    ] {
        let rotated = client.send("POST", &path, &fresh_key(), &body).expect(200).json();
        assert!(rotated["previous_secret_expires_at"].is_string());
        assert_eq!(database.count(overlap), expected_s, "{body}");
    }
    let rotated = client.send("POST", &path, &fresh_key(), &json!({"overlap_seconds": 0})).expect(200).json();
    assert_eq!(rotated["previous_secret_expires_at"], Value::Null);
    client.request("POST", &path).idempotency_key("no-body").send().expect(200);
    for overlap in [json!(604_801), json!(-1), json!("60"), json!(1.5), Value::Null] {
        let refused = client.send("POST", &path, &fresh_key(), &json!({"overlap_seconds": overlap}));
        assert_eq!(refused.expect_problem(422, "validation_failed").pointers(), ["/overlap_seconds"]);
    }
}

#[test]
fn a_merchant_has_sixteen_endpoints_at_the_most_however_many_ask_at_once() {
    let database = TestDatabase::new();
    let instances = [(), ()].map(|()| App::start(&database));
    let merchant = database.merchant();
    let clients: Vec<_> = instances.iter().map(|app| app.client.as_merchant(&merchant)).collect();
    let others = instances[0].client.as_merchant(&database.merchant());
    let ids: Vec<_> = (0..14).map(|_| endpoint(&clients[0], &["*"])).collect();

    let statuses: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..20)
            .map(|number| {
                let client = &clients[number % 2];
                scope.spawn(move || create(client, &json!({"url": URL})))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap().status).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 2, "{statuses:?}");
    assert_eq!(database.rows("webhook_endpoints"), 16);

    let refused = clients[0].send("POST", PATH, "k", &json!({"url": URL}));
    refused.expect_problem(409, "webhook_endpoint_limit_reached");
    endpoint(&others, &["*"]);
    update(&clients[0], &ids[0], json!({"status": "disabled"})).expect(200);
    create(&clients[0], &json!({"url": URL})).expect_problem(409, "webhook_endpoint_limit_reached");
    delete(&clients[0], &ids[0]).expect(200);
    create(&clients[0], &json!({"url": URL})).expect(201);
    let replay = clients[0].send("POST", PATH, "k", &json!({"url": URL}));
    assert!(replay.expect_problem(409, "webhook_endpoint_limit_reached").is_replay());
}

/// Which URLs are taken: by default, and where this host is allowed.
#[rustfmt::skip]
const URLS: &[(&str, bool, bool)] = &[
    ("https://shop.example/webhooks", true, true),
    ("https://shop.example", true, true),
    ("HTTPS://Shop.Example:8443/a%20b?c=d&e", true, true),
    ("https://xn--bcher-kva.example/", true, true),
    ("https://bücher.example/", true, true),
    ("https://8.8.8.8/", true, true),
    ("https://[2606:4700:4700::1111]/", true, true),
    ("https://shop.example./webhooks", true, true),
    ("https://shop.example:1/", true, true),
    ("https://my_shop.co.example/", true, true),
    ("https://internal.example/", true, true),
    ("https://notlocal/", false, false),
    ("https://my-internal.example/", true, true),
    // No port, and no public name.
    ("https://shop.example:0/", false, false),
    ("https://8.8.8.8:0/", false, false),
    ("http://localhost:0/", false, false),
    ("https://intranet/", false, false),
    ("https://intranet./", false, false),
    ("https://com:8443/", false, false),
    ("https://shop..example/", false, false),
    ("https://.example/", false, false),
    ("https://shop.example../", false, false),
    ("https://metadata.google.internal/", false, false),
    ("https://printer.local/", false, false),
    ("https://PRINTER.LOCAL./", false, false),
    ("https://nas.home.arpa/", false, false),
    ("https://shop.onion/", false, false),
    // A public address that only some read as one.
    ("https://134744072/", false, false),
    ("https://0x8.0x8.0x8.0x8/", false, false),
    ("https://8.8.2056/", false, false),
    ("https://010.8.8.8/", false, false),
    ("https://8.8.8.8./", false, false),
    ("https://[2606:4700:4700::1111%25eth0]/", false, false),
    // No absolute URL.
    ("", false, false),
    ("shop.example/webhooks", false, false),
    ("//shop.example/webhooks", false, false),
    ("/webhooks", false, false),
    ("https:shop.example", false, false),
    ("https:/shop.example", false, false),
    ("https:///shop.example", false, false),
    ("https://", false, false),
    ("https://:443/", false, false),
    ("https://shop.example:65536/", false, false),
    ("https://shop example/", false, false),
    (" https://shop.example/", false, false),
    ("https://shop.example/\n", false, false),
    ("https://shop.example\\@evil.example/", false, false),
    ("https://shop.example/\u{0}", false, false),
    // Another scheme.
    ("http://shop.example/webhooks", false, false),
    ("ftp://shop.example/webhooks", false, false),
    ("ws://shop.example/webhooks", false, false),
    ("file:///etc/passwd", false, false),
    ("javascript://shop.example/", false, false),
    // What a message has no use for.
    ("https://user@shop.example/", false, false),
    ("https://user:secret@shop.example/", false, false),
    ("https://@shop.example/", false, false),
    ("https://shop.example/#top", false, false),
    ("https://shop.example/#", false, false),
    // Addresses inside.
    ("https://10.0.0.1/", false, false),
    ("https://192.168.1.1/", false, false),
    ("https://169.254.169.254/latest/meta-data", false, false),
    ("https://0.0.0.0/", false, false),
    ("https://3232235777/", false, false),
    ("https://0xa9fea9fe/", false, false),
    ("https://[fd00::1]/", false, false),
    ("https://[fe80::1]/", false, false),
    ("https://[::]/", false, false),
    ("https://[::ffff:10.0.0.1]/", false, false),
    ("http://10.0.0.1/", false, false),
    ("http://8.8.8.8/", false, false),
    // This host.
    ("https://localhost/", false, true),
    ("https://localhost./", false, true),
    ("https://LOCALHOST:9000/", false, true),
    ("https://a.localhost/", false, true),
    ("http://localhost:9000/hook", false, true),
    ("http://127.0.0.1:9000/hook", false, true),
    ("http://127.1:9000/hook", false, false),
    ("http://2130706433/", false, false),
    ("http://[::1]:9000/hook", false, true),
    ("https://[::ffff:127.0.0.1]/", false, true),
    ("https://127.0.0.1/", false, true),
    ("https://localhost.example/", true, true),
];

#[test]
fn a_url_is_taken_only_if_it_leads_to_a_public_place() {
    let database = TestDatabase::new();
    let careful = App::start(&database);
    let local = App::start_with(&database, |config| config.webhook_allow_loopback = true);
    let merchant = database.merchant();
    let existing = endpoint(&careful.client.as_merchant(&merchant), &["*"]);
    for (app, column) in [(&careful, 0), (&local, 1)] {
        let client = app.client.as_merchant(&merchant);
        for &(url, by_default, where_allowed) in URLS {
            let taken = [by_default, where_allowed][column];
            let keys = database.rows("idempotency_keys");
            let created = create(&client, &json!({"url": url}));
            let updated = update(&client, &existing, json!({"url": url}));
            if taken {
                assert_eq!(created.expect(201).field("url"), url, "as it was written");
                assert_eq!(updated.expect(200).field("url"), url);
                execute(
                    &mut database.as_app(),
                    &format!(
                        "UPDATE webhook_endpoints SET status = 'deleted' WHERE id <> '{}'",
                        uuid_of(&existing)
                    ),
                );
                continue;
            }
            for refused in [created, updated] {
                assert_eq!(refused.status, 422, "{url} was taken");
                assert_eq!(refused.expect_problem(422, "validation_failed").pointers(), ["/url"], "{url}");
            }
            assert_eq!(database.rows("idempotency_keys"), keys, "{url}: nothing is kept of it");
        }
    }
    let client = careful.client.as_merchant(&merchant);
    let long = |length: usize| format!("{URL}?{}", "a".repeat(length - URL.len() - 1));
    create(&client, &json!({"url": long(2048)})).expect(201);
    let refused = create(&client, &json!({"url": long(2049)}));
    assert_eq!(refused.expect_problem(422, "validation_failed").pointers(), ["/url"]);
}

fn uuid_of(id: &str) -> String {
    id.split_once('_').unwrap().1.to_owned()
}

#[test]
fn bad_fields_are_named_all_at_once() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    for (body, expected) in [
        (json!({}), vec!["/url"]),
        (json!({"url": null}), vec!["/url"]),
        (
            json!({"url": 1, "event_types": [], "description": "", "x": 1}),
            vec!["/description", "/event_types", "/url", "/x"],
        ),
        (json!({"url": "http://shop.example/", "event_types": ["nope"]}), vec!["/event_types/0", "/url"]),
        (json!({"url": URL, "event_types": "*"}), vec!["/event_types"]),
        (json!({"url": URL, "event_types": null}), vec!["/event_types"]),
        (
            json!({"url": URL, "event_types": ["charge.succeeded", "charge", 1]}),
            vec!["/event_types/1", "/event_types/2"],
        ),
        (json!({"url": URL, "event_types": ["*", "charge.failed", "*"]}), vec!["/event_types/2"]),
        (json!({"url": URL, "status": "enabled"}), vec!["/status"]),
        (json!({"url": URL, "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}), vec!["/secret"]),
    ] {
        let refused = create(&client, &body).expect_problem(422, "validation_failed");
        assert_eq!(refused.pointers(), expected, "{body}");
    }
    let id = endpoint(&client, &["*"]);
    for (patch, expected) in [
        (json!({"status": "deleted"}), "/status"),
        (json!({"status": null}), "/status"),
        (json!({"url": null}), "/url"),
        (json!({"event_types": null}), "/event_types"),
        (json!({"description": ""}), "/description"),
        (json!({"failing_since": null}), "/failing_since"),
    ] {
        let refused = update(&client, &id, patch.clone()).expect_problem(422, "validation_failed");
        assert_eq!(refused.pointers(), [expected], "{patch}");
    }
}

#[test]
fn another_merchants_endpoint_can_not_be_found() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let stranger = app.client.as_merchant(&database.merchant());
    let id = endpoint(&client, &["*"]);
    for id in [id.as_str(), "we_00000000000070008000000000000000", "x"] {
        let path = format!("{PATH}/{id}");
        let rotate = stranger.send("POST", &format!("{path}/rotate-secret"), &fresh_key(), &json!({}));
        for refused in [
            stranger.get(&path),
            update(&stranger, id, json!({"status": "disabled"})),
            rotate,
            delete(&stranger, id),
        ] {
            refused.expect_problem(404, "webhook_endpoint_not_found");
        }
    }
    assert_eq!(stranger.get(PATH).expect(200).json(), json!({"data": [], "has_more": false}));
    assert_eq!(client.get(&format!("{PATH}/{id}")).expect(200).field("status"), "enabled");
}

#[test]
fn a_key_leads_to_the_endpoint_that_it_made_until_that_is_deleted() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let id = client.send("POST", PATH, "k", &json!({"url": URL})).expect(201).field("id");
    let resource = || client.get("/v1/idempotency-keys/k").expect(200).json()["resource"].clone();
    assert_eq!(resource(), json!({"type": "webhook_endpoint", "id": id, "url": format!("{PATH}/{id}")}));
    delete(&client, &id).expect(200);
    assert_eq!(resource(), Value::Null);
}
