use serde_json::json;

use crate::support::*;

#[test]
fn every_way_to_have_no_valid_key_has_its_own_answer() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let merchant = database.merchant();
    let revoked = database.merchant();
    database.revoke(&revoked.key);
    let operator_key = database.operator_key();
    let last_digit_changed = {
        let (rest, last) = merchant.key.split_at(merchant.key.len() - 1);
        format!("{rest}{}", if last == "0" { "1" } else { "0" })
    };
    let bearer = |key: &str| format!("Bearer {key}");

    let cases = [
        (None, 401, "api_key_missing"),
        (Some(String::new()), 401, "api_key_missing"),
        (Some("Bearer".to_owned()), 401, "api_key_missing"),
        (Some(format!("Basic {}", merchant.key)), 401, "api_key_missing"),
        (Some(bearer("")), 401, "api_key_missing"),
        (Some(bearer("sk_test_")), 401, "api_key_invalid"),
        (Some(bearer(&"x".repeat(4000))), 401, "api_key_invalid"),
        (Some(bearer(&last_digit_changed)), 401, "api_key_invalid"),
        (Some(bearer(&merchant.key.to_uppercase())), 401, "api_key_invalid"),
        (Some(bearer(&revoked.key)), 401, "api_key_revoked"),
        (Some(bearer("ok_00000000000000000000000000000000")), 401, "api_key_invalid"),
        (Some(bearer(&operator_key)), 403, "operator_key_not_allowed"),
    ];
    for (authorization, status, code) in cases {
        for request in [
            app.client.request("GET", "/v1/balance"),
            app.client.request("POST", "/v1/charges").idempotency_key("k").json(&visa()),
        ] {
            let request = match &authorization {
                Some(value) => request.header("Authorization", value),
                None => request,
            };
            let response = request.send();
            assert_eq!((response.status, response.code().as_str()), (status, code), "{authorization:?}");
            assert_eq!(response.header("WWW-Authenticate").is_some(), status == 401);
        }
    }
    assert_eq!(database.rows("idempotency_keys"), 0);
    let lower_case_scheme = app.client.request("GET", "/v1/balance");
    lower_case_scheme.header("Authorization", &format!("bearer {}", merchant.key)).send().expect(200);
}

#[test]
fn a_revoked_key_gets_no_stored_answer() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let merchant = database.merchant();
    let client = app.client.as_merchant(&merchant);
    client.charge("k", &visa()).expect(201);
    database.revoke(&merchant.key);
    client.charge("k", &visa()).expect_problem(401, "api_key_revoked");
}

/// Keys that were used before are looked up together with the idempotency key. That must not show.
#[test]
fn a_key_that_was_valid_before_is_told_nothing_else_after_it_is_revoked() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let merchant = database.merchant();
    let client = app.client.as_merchant(&merchant);
    client.charge("k", &visa()).expect(201);
    client.charge("t", &with_method("pm_card_timeout")).expect_problem(503, "processor_unavailable");
    let attempts = "SELECT sum(attempts) FROM idempotency_keys";
    let (keys, tried) = (database.rows("idempotency_keys"), database.count(attempts));
    database.revoke(&merchant.key);
    let request = || client.request("POST", "/v1/charges");
    for refused in [
        request().json(&visa()).send(),
        request().idempotency_key("a b").json(&visa()).send(),
        request().idempotency_key("new").body("application/json", "{").send(),
        request().idempotency_key("new").body("text/plain", "x").send(),
        request().idempotency_key("new").body("application/json", " ".repeat(70_000)).send(),
        request().idempotency_key("new").json(&json!({})).send(),
        client.charge("new", &visa()),
        client.charge("k", &with_method("pm_card_slow")),
        client.charge("t", &with_method("pm_card_timeout")),
    ] {
        refused.expect_problem(401, "api_key_revoked");
    }
    assert_eq!((database.rows("idempotency_keys"), database.count(attempts)), (keys, tried));
}

#[test]
fn only_hashes_of_keys_are_stored() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let stored = database.count(&format!(
        "SELECT count(*) FROM api_keys WHERE key_sha256 = sha256('{}'::bytea) AND position('{}' IN api_keys::text) = 0",
        merchant.key, merchant.key
    ));
    assert_eq!(stored, 1);
}
