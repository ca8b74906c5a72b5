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
