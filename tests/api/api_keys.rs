use serde_json::json;

use crate::support::*;

#[test]
fn a_key_is_shown_once_works_and_can_be_revoked() {
    let database = TestDatabase::new();
    let sandbox = std::sync::Arc::new(oncepay::processor::Sandbox::recording());
    let [app, other_instance] =
        [(), ()].map(|()| App::start_sharing(&database, std::sync::Arc::clone(&sandbox), |_| {}));
    let merchant = database.merchant();
    let client = app.client.as_merchant(&merchant);

    let created = client.send("POST", "/v1/api-keys", "k", &json!({"name": "checkout"})).expect(201);
    let key = created.field("key");
    let id = created.field("id");
    assert!(key.starts_with("sk_test_") && key.len() == 72 && id.starts_with("ak_"), "{key} {id}");
    let replay = client.send("POST", "/v1/api-keys", "k", &json!({"name": "checkout"})).expect(201);
    assert!(replay.is_replay());
    assert_eq!(replay.body, created.body, "whoever lost the answer sees the key");

    let secret = &key[40..];
    for table in ["idempotency_keys", "api_keys", "events"] {
        let query = format!(
            "SELECT count(*) FROM {table} t WHERE position('{secret}' IN t::text) > 0 OR position('{}' IN t::text) > 0",
            hex::encode(secret)
        );
        assert_eq!(database.count(&query), 0, "{table} holds the secret");
    }

    let with_new = other_instance.client.with_key(&key);
    with_new.charge("paid", &visa()).expect(201);
    let list = client.get("/v1/api-keys").expect(200).json();
    assert_eq!(list["data"].as_array().unwrap().len(), 2);
    assert_eq!((&list["data"][0]["id"], &list["data"][0]["name"]), (&json!(id), &json!("checkout")));
    assert!(list["data"][0].get("key").is_none());

    let path = format!("/v1/api-keys/{id}");
    let revoked = client.request("DELETE", &path).idempotency_key("r").send().expect(200);
    assert!(revoked.json()["revoked_at"].is_string());
    assert!(client.request("DELETE", &path).idempotency_key("r").send().is_replay());
    let again = client.request("DELETE", &path).idempotency_key("again").send().expect(200);
    assert_eq!(again.json(), revoked.json());
    with_new.charge("paid", &visa()).expect_problem(401, "api_key_revoked");
    with_new.get("/v1/balance").expect_problem(401, "api_key_revoked");
    assert!(client.charge("paid", &visa()).expect(201).is_replay(), "another key of the merchant sees it");

    let stranger = app.client.as_merchant(&database.merchant());
    let refused = stranger.request("DELETE", &path).idempotency_key("r").send();
    refused.expect_problem(404, "api_key_not_found");
    client
        .request("DELETE", "/v1/api-keys/x")
        .idempotency_key("x")
        .send()
        .expect_problem(404, "api_key_not_found");
    let nameless = client.send("POST", "/v1/api-keys", "n", &json!({}));
    assert_eq!(nameless.expect_problem(422, "validation_failed").pointers(), ["/name"]);
}

fn revoke(client: &Client, key: &str, id: &str, query: &str) -> Response {
    client.request("DELETE", &format!("/v1/api-keys/{id}{query}")).idempotency_key(key).send()
}

fn ids(client: &Client) -> Vec<String> {
    let list = client.get("/v1/api-keys").expect(200).json();
    list["data"].as_array().unwrap().iter().map(|key| key["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_last_key_is_only_revoked_when_asked_for() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let [only] = ids(&client).try_into().unwrap();
    for query in ["", "?last=false"] {
        revoke(&client, &format!("k{query}"), &only, query).expect_problem(409, "last_api_key");
    }
    assert!(revoke(&client, "k", &only, "").expect_problem(409, "last_api_key").is_replay());
    revoke(&client, "k", &only, "?last=true").expect_problem(422, "idempotency_key_reused");
    for query in ["?last=yes", "?last=", "?last=true&last=true", "?lest=true"] {
        let refused = revoke(&client, "bad", &only, query).expect_problem(422, "validation_failed");
        assert_eq!(refused.pointers(), [if query.contains("lest") { "/lest" } else { "/last" }], "{query}");
    }
    // A key that is revoked already is none that is left.
    let spare =
        client.send("POST", "/v1/api-keys", "spare", &json!({"name": "spare"})).expect(201).field("id");
    revoke(&client, "s1", &spare, "").expect(200);
    revoke(&client, "s2", &only, "").expect_problem(409, "last_api_key");
    revoke(&client, "s3", &spare, "").expect(200);

    revoke(&client, "last", &only, "?last=true").expect(200);
    client.get("/v1/api-keys").expect_problem(401, "api_key_revoked");
}

#[test]
fn two_keys_that_revoke_each_other_at_once_leave_one() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    for _ in 0..10 {
        let first = app.client.as_merchant(&database.merchant());
        let second = first.send("POST", "/v1/api-keys", "k", &json!({"name": "second"})).expect(201);
        let second = app.client.with_key(&second.field("key"));
        let ids = ids(&first);
        let barrier = std::sync::Barrier::new(2);
        let statuses = std::thread::scope(|scope| {
            let revocations = [(&first, &ids[0]), (&second, &ids[1])].map(|(client, other)| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    revoke(client, &fresh_key(), other, "").status
                })
            });
            revocations.map(|revocation| revocation.join().unwrap())
        });
        // The slower one is told that its key is revoked, or that the other one is the last.
        assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
        let left = [&first, &second].into_iter().filter(|client| client.get("/v1/balance").status == 200);
        assert_eq!(left.count(), 1);
    }
}

#[test]
fn an_operator_issues_a_key_to_a_merchant_without_one() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let merchant = database.merchant();
    let client = app.client.as_merchant(&merchant);
    let operator = app.client.with_key(&database.operator_key());
    client.charge("paid", &visa()).expect(201);
    revoke(&client, "last", &ids(&client)[0], "?last=true").expect(200);
    client.get("/v1/balance").expect_problem(401, "api_key_revoked");

    let path = format!("/v1/operator/merchants/{}/api-keys", merchant.id);
    let body = json!({"name": "recovered"});
    let issued = operator.send("POST", &path, "k", &body).expect(201);
    let replay = operator.send("POST", &path, "k", &body).expect(201);
    assert!(replay.is_replay() && replay.body == issued.body, "whoever lost the answer sees the key");
    let back = app.client.with_key(&issued.field("key"));
    assert!(back.charge("paid", &visa()).expect(201).is_replay());
    assert_eq!(ids(&back)[0], issued.field("id"), "the merchant sees it");

    let secret = &issued.field("key")[40..];
    for table in ["idempotency_keys", "api_keys", "operator_actions"] {
        let held = format!(
            "SELECT count(*) FROM {table} t WHERE position('{secret}' IN t::text) > 0 OR position('{}' IN t::text) > 0",
            hex::encode(secret)
        );
        assert_eq!(database.count(&held), 0, "{table} holds the secret");
    }
    let action = database.text("SELECT action || ' ' || subject AS text FROM operator_actions");
    assert_eq!(action, format!("merchants.issue_api_key {}/{}", merchant.id, issued.field("id")));

    let nobody = "/v1/operator/merchants/mer_00000000000000000000000000000001/api-keys";
    operator.send("POST", nobody, "n", &body).expect_problem(404, "merchant_not_found");
    operator
        .send("POST", "/v1/operator/merchants/x/api-keys", "x", &body)
        .expect_problem(404, "merchant_not_found");
    back.send("POST", &path, "m", &body).expect_problem(403, "operator_key_required");
    let nameless = operator.send("POST", &path, "e", &json!({})).expect_problem(422, "validation_failed");
    assert_eq!(nameless.pointers(), ["/name"]);
}
