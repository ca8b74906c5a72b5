use serde_json::json;

use crate::support::*;

#[test]
fn a_charge_is_authorized_captured_and_posted_with_its_fee() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());

    let body = json!({
        "amount": "12.5", "currency": "USD", "payment_method": "pm_card_visa", "description": "Order 1001",
        "reference": "order-1001", "metadata": {"cart": "7f3a", "empty": ""},
    });
    let response = client.charge("k", &body).expect(201);
    let charge = response.json();
    let id = response.field("id");

    assert_eq!(response.header("Location"), Some(format!("/v1/charges/{id}").as_str()));
    assert!(id.starts_with("ch_") && id.len() == 35, "{id}");
    let expected = json!({
        "id": id, "object": "charge", "status": "succeeded", "amount": "12.50", "amount_captured": "12.50",
        "amount_refunded": "0.00", "currency": "USD", "payment_method": "pm_card_visa",
        "description": "Order 1001", "reference": "order-1001", "metadata": {"cart": "7f3a", "empty": ""},
        "failure": null, "fee": "0.66", "created_at": charge["created_at"],
        "captured_at": charge["captured_at"], "canceled_at": null,
    });
    assert_eq!(charge, expected);
    for time in ["created_at", "captured_at"] {
        let text = response.field(time);
        assert!(text.len() == 24 && text.ends_with('Z'), "{time} is {text}");
        chrono::DateTime::parse_from_rfc3339(&text).unwrap();
    }
    // The id holds the same time, so that lists by id are lists by time.
    let milliseconds = i64::from_str_radix(&id[3..15], 16).unwrap();
    let created_at = chrono::DateTime::parse_from_rfc3339(&response.field("created_at")).unwrap();
    assert_eq!(created_at.timestamp_millis(), milliseconds);

    let entry = "SELECT count(*) FROM postings p JOIN ledger_accounts a ON (a.merchant_id, a.id) = (p.merchant_id, p.account_id) WHERE ";
    assert_eq!(database.count(&format!("{entry} a.kind = 'acquirer_clearing' AND p.amount = 12.50")), 1);
    assert_eq!(database.count(&format!("{entry} a.kind = 'merchant_payable' AND p.amount = -11.84")), 1);
    assert_eq!(database.count(&format!("{entry} a.kind = 'fee_revenue' AND p.amount = -0.66")), 1);
    assert_eq!(database.rows("postings"), 3);
    assert_eq!(
        database.count(&format!("SELECT count(*) FROM journal_entries WHERE source = '{id}:capture'")),
        1
    );
    assert_eq!(client.get(&format!("/v1/charges/{id}")).expect(200).json(), charge);
}

#[test]
fn without_capture_the_money_is_only_held() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());

    let mut body = visa();
    body["capture"] = json!(false);
    let charge = client.charge("k", &body).expect(201).json();

    assert_eq!(charge["status"], "requires_capture");
    assert_eq!(charge["amount_captured"], "0.00");
    assert_eq!(charge["fee"], "0.00");
    assert_eq!(charge["captured_at"], json!(null));
    assert_eq!(database.rows("journal_entries"), 0);
    let calls: Vec<_> = app.sandbox.calls().iter().map(|call| call.call).collect();
    assert_eq!(calls, ["authorize"]);
}

#[test]
fn a_declined_charge_is_kept_and_can_be_read() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());

    for (method, code, decline_code) in [
        ("pm_card_declined", "card_declined", "generic_decline"),
        ("pm_card_insufficient_funds", "insufficient_funds", "insufficient_funds"),
    ] {
        let problem = client.charge(method, &with_method(method)).expect_problem(402, code).json();
        assert_eq!(problem["decline_code"], decline_code);
        let id = problem["charge_id"].as_str().unwrap();
        let charge = client.get(&format!("/v1/charges/{id}")).expect(200).json();
        assert_eq!(charge["status"], "failed");
        assert_eq!(charge["failure"]["code"], code);
        assert_eq!(charge["failure"]["decline_code"], decline_code);
    }
    assert_eq!(database.rows("journal_entries"), 0);
}

#[test]
fn a_slow_card_is_charged_once_it_answers() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    client.charge("k", &with_method("pm_card_slow")).expect(201);
}

#[test]
fn every_currency_is_charged_at_its_scale() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());

    // 2.9 % + 0.30, half-even at the currency's scale.
    for (currency, amount, shown, fee) in [
        ("USD", "10", "10.00", "0.59"),
        ("EUR", "10.1", "10.10", "0.59"),
        ("GBP", "0.01", "0.01", "0.01"),
        ("JPY", "1250", "1250", "37"),
        ("KWD", "1.5", "1.500", "0.344"),
        ("BHD", "999999999999.999", "999999999999.999", "29000000000.300"),
    ] {
        let body = json!({"amount": amount, "currency": currency, "payment_method": "pm_card_visa"});
        let charge = client.charge(currency, &body).expect(201).json();
        assert_eq!(charge["amount"], shown, "{currency}");
        assert_eq!(charge["fee"], fee, "{currency}");
    }
}

#[test]
fn a_charge_is_updated_by_merge_patch() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let mut body = visa();
    body["description"] = json!("first");
    body["metadata"] = json!({"a": "1", "b": "2"});
    let id = client.charge("create", &body).expect(201).field("id");
    let path = format!("/v1/charges/{id}");

    let steps = [
        (json!({}), json!("first"), json!({"a": "1", "b": "2"})),
        (json!({"description": "second"}), json!("second"), json!({"a": "1", "b": "2"})),
        (json!({"metadata": {"a": null, "c": "3"}}), json!("second"), json!({"b": "2", "c": "3"})),
        (json!({"description": null, "metadata": null}), json!(null), json!({})),
    ];
    for (number, (patch, description, metadata)) in steps.into_iter().enumerate() {
        let charge = client.send("PATCH", &path, &format!("p{number}"), &patch).expect(200).json();
        assert_eq!(charge["description"], description, "{patch}");
        assert_eq!(charge["metadata"], metadata, "{patch}");
        assert_eq!(client.get(&path).json(), charge);
    }

    let merge_patch = client
        .request("PATCH", &path)
        .idempotency_key("merge")
        .body("application/merge-patch+json", r#"{"description":"third"}"#);
    assert_eq!(merge_patch.send().expect(200).field("description"), "third");
    let replay = merge_patch.send().expect(200);
    assert!(replay.is_replay());
    assert_eq!(database.count("SELECT count(*) FROM events WHERE type = 'charge.updated'"), 5);

    let amount = json!({"amount": "1.00", "status": "refunded"});
    let refused = client.send("PATCH", &path, "amount", &amount).expect_problem(422, "validation_failed");
    assert_eq!(refused.pointers(), ["/amount", "/status"]);
}

#[test]
fn metadata_cannot_grow_beyond_its_bound_by_patches() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let entries = |from: usize, to: usize| -> serde_json::Map<_, _> {
        (from..to).map(|number| (format!("n{number}"), json!("v"))).collect()
    };
    let mut body = visa();
    body["metadata"] = entries(0, 50).into();
    let id = client.charge("create", &body).expect(201).field("id");

    let path = format!("/v1/charges/{id}");
    let patch = json!({"metadata": entries(50, 51)});
    client.send("PATCH", &path, "p", &patch).expect_problem(422, "metadata_too_large");
    assert!(client.send("PATCH", &path, "p", &patch).is_replay());
    let exchange = json!({"metadata": {"n0": null, "n50": "v"}});
    client.send("PATCH", &path, "q", &exchange).expect(200);
}

#[test]
fn another_merchants_charge_is_not_found() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let owner = app.client.as_merchant(&database.merchant());
    let other = app.client.as_merchant(&database.merchant());
    let path = format!("/v1/charges/{}", owner.charge("k", &visa()).expect(201).field("id"));

    other.get(&path).expect_problem(404, "charge_not_found");
    other.send("PATCH", &path, "p", &json!({"description": "mine"})).expect_problem(404, "charge_not_found");
    // However its characters are spelled, it's the same path to every operation.
    let encoded = path.replace('_', "%5F");
    owner.get(&encoded).expect(200);
    owner.send("PATCH", &encoded, "encoded", &json!({})).expect(200);
    for no_id in ["/v1/charges/ch_1", "/v1/charges/mer_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b", "/v1/charges/%00"] {
        owner.get(no_id).expect_problem(404, "charge_not_found");
    }
    assert_eq!(owner.get(&path).json()["description"], json!(null));
}

#[test]
fn two_merchants_with_the_same_key_do_not_see_each_other() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let [one, two] = [(), ()].map(|()| app.client.as_merchant(&database.merchant()));

    let first = one.charge("same", &visa()).expect(201);
    let other_body = json!({"amount": "99.00", "currency": "EUR", "payment_method": "pm_card_visa"});
    let second = two.charge("same", &other_body).expect(201);

    assert_ne!(first.field("id"), second.field("id"));
    assert!(!second.is_replay());
    assert_eq!(one.available("USD").as_deref(), Some("11.84"));
    assert_eq!(two.available("USD"), None);
    let keys: std::collections::HashSet<_> = app.sandbox.calls().into_iter().map(|call| call.key).collect();
    assert_eq!(keys.len(), 4, "each merchant's calls have keys of their own");
}
