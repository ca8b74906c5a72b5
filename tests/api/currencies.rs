//! Withdrawn currencies, and currencies that this release doesn't know.

use std::sync::Arc;

use diesel::RunQueryDsl;
use diesel::sql_types::Binary;
use oncepay::idempotency::{Fingerprint, Recipe, RequestContent};
use serde_json::{Value, json};

use crate::support::*;

fn start() -> (TestDatabase, App, Client, Merchant) {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let merchant = database.merchant();
    let client = app.client.as_merchant(&merchant);
    (database, app, client, merchant)
}

fn charge_in(currency: &str, payment_method: &str) -> Value {
    json!({"amount": "12.50", "currency": currency, "payment_method": payment_method})
}

/// The body of an answer that must be 200 or 201.
#[track_caller]
fn done(response: Response) -> Value {
    assert!(matches!(response.status, 200 | 201), "{}", response.text());
    response.json()
}

/// Makes what there is of charges one in another currency, as it was in use once. Nothing is in the ledger yet.
fn turn_charges_into(database: &TestDatabase, currency: &str) {
    assert_eq!(database.rows("postings"), 0);
    execute(&mut database.as_superuser(), &format!("UPDATE charges SET currency = '{currency}'"));
}

#[test]
fn a_withdrawn_currency_is_refused_for_new_money() {
    let (database, app, client, _) = start();
    for currency in ["HRK", "ZWL", "SLL", "CUC", "BGN"] {
        let refused = client.charge("charge", &charge_in(currency, "pm_card_visa"));
        let refused = refused.expect_problem(422, "validation_failed");
        assert_eq!(refused.pointers(), ["/currency"], "{currency}");
        let body = json!({"amount": "1.00", "currency": currency, "destination": "ba_main"});
        let refused = client.send("POST", "/v1/payouts", "payout", &body);
        assert_eq!(refused.expect_problem(422, "validation_failed").pointers(), ["/currency"], "{currency}");
    }
    let refused = client.charge("charge", &charge_in("HRK", "pm_card_visa")).json();
    assert_eq!(
        refused["errors"][0]["detail"],
        "must be a currency in use, which this one has not been since 2023-01-01"
    );
    assert_eq!((app.runs(), database.rows("charges"), database.rows("idempotency_keys")), (0, 0, 0));
    // As after any other invalid field, the key is still unused.
    client.charge("charge", &charge_in("EUR", "pm_card_visa")).expect(201);
    // Its successors, and one that ISO 4217 has kept beside its successor.
    for currency in ["ZWG", "SLE", "CUP", "VES", "VED"] {
        client.charge(currency, &charge_in(currency, "pm_card_visa")).expect(201);
    }
}

#[test]
fn a_withdrawn_currency_is_refused_whatever_the_policy_does_with_keys() {
    let (database, app, client, _) = start();
    eventually("the policies", || database.rows("idempotency_policies") > 0);
    for policy in [
        "enforcement = 'observe'",
        "enforcement = 'off'",
        "on_suspected_duplicate = 'reject', enforcement = 'enforce'",
    ] {
        app.set_policy(&database, policy);
        let mut body = charge_in("BGN", "pm_card_visa");
        body["reference"] = json!("order-1");
        let refused = client.charge("k", &body).expect_problem(422, "validation_failed");
        assert_eq!(refused.pointers(), ["/currency"], "{policy}");
    }
    assert_eq!((app.runs(), database.rows("charges")), (0, 0));
}

/// What was claimed on the last day is finished on the next, by the client's retry or without it.
#[test]
fn a_request_from_before_the_withdrawal_is_finished_and_replayed() {
    let (database, app, client, _) = start();
    let keys = ["retried", "abandoned"];
    for key in keys {
        client.charge(key, &with_method("pm_card_error_once")).expect_problem(503, "processor_unavailable");
    }
    // The database's clock can't be set back to when it was taken. So it's made of a request in another currency.
    let before = charge_in("BGN", "pm_card_error_once");
    let body = before.to_string().into_bytes();
    let content = RequestContent {
        method: "POST".to_owned(),
        path: "/v1/charges".to_owned(),
        path_as_sent: None,
        query: String::new(),
        raw_body: body.clone(),
        body: body.clone(),
    };
    diesel::sql_query("UPDATE idempotency_keys SET request_body = $1, fingerprint = $2")
        .bind::<Binary, _>(body)
        .bind::<Binary, _>(Fingerprint::of(Recipe::CanonicalJson, &content).sha256)
        .execute(&mut database.as_superuser())
        .unwrap();

    let answer = client.charge("retried", &before).expect(201);
    assert_eq!((answer.is_replay(), answer.field("currency")), (false, "BGN".to_owned()));
    let _eager = App::start_sharing(&database, Arc::clone(&app.sandbox), |config| {
        config.recovery_interval_ms = 20;
        config.recovery_delay_ms = 1;
    });
    eventually("the recovery", || {
        client.get("/v1/idempotency-keys/abandoned").expect(200).json()["status"] == "completed"
    });
    for key in keys {
        let answer = client.charge(key, &before).expect(201);
        assert_eq!((answer.is_replay(), answer.field("currency")), (true, "BGN".to_owned()), "{key}");
    }
    client.charge("new", &before).expect_problem(422, "validation_failed");
    assert_eq!(database.rows("charges"), 2);
}

/// They can be captured, refunded, canceled and paid out, and are shown at their scale.
#[test]
fn what_is_there_in_a_withdrawn_currency_lives_on() {
    let (database, _app, client, _) = start();
    let mut body = visa();
    body["capture"] = json!(false);
    let [captured, canceled] = ["a", "b"].map(|key| client.charge(key, &body).expect(201).field("id"));
    turn_charges_into(&database, "HRK");
    let act = |path: &str, key: &str, body: &Value| done(client.send("POST", path, key, body));

    act(&format!("/v1/charges/{canceled}/cancel"), "cancel", &json!({}));
    let charge = act(&format!("/v1/charges/{captured}/capture"), "capture", &json!({"amount": "10"}));
    assert_eq!((&charge["currency"], &charge["amount_captured"]), (&json!("HRK"), &json!("10.00")));
    let refund = act("/v1/refunds", "refund", &json!({"charge_id": captured, "amount": "2.5"}));
    assert_eq!((&refund["currency"], &refund["amount"]), (&json!("HRK"), &json!("2.50")));
    let payout = json!({"amount": "1.00", "currency": "HRK", "destination": "ba_main"});
    act("/v1/payouts", "payout", &payout);
    let all = json!({"amount": "100.00", "currency": "HRK", "destination": "ba_main"});
    client.send("POST", "/v1/payouts", "too-much", &all).expect_problem(422, "insufficient_balance");
    let listed = client.get("/v1/charges?currency=HRK").expect(200).json();
    assert_eq!(listed["data"].as_array().unwrap().len(), 2);
    assert_eq!(client.available("HRK").as_deref(), Some("5.91"));
}

/// As after a release that knew it, or with a list that doesn't any more.
#[test]
fn what_is_stored_in_an_unknown_currency_is_shown_everywhere() {
    let (mut database, _app, client, merchant) = start();
    let mut body = visa();
    body["capture"] = json!(false);
    let charge = client.charge("a", &body).expect(201).field("id");
    client.charge("b", &body).expect(201);
    turn_charges_into(&database, "ZZZ");
    let id = merchant.id.0;
    let kinds = "'{acquirer_clearing,merchant_payable,fee_revenue}'::text[]";
    execute(
        &mut database.as_superuser(),
        &format!(
            "INSERT INTO ledger_accounts (merchant_id, kind, currency) SELECT '{id}', kind, 'ZZZ' FROM unnest({kinds}) AS kind"
        ),
    );
    let act = |path: &str, key: &str, body: &Value| done(client.send("POST", path, key, body));
    let captured = act(&format!("/v1/charges/{charge}/capture"), "capture", &json!({}));
    assert_eq!((&captured["amount_captured"], &captured["fee"]), (&json!("12.5"), &json!("0.7")));
    act("/v1/refunds", "refund", &json!({"charge_id": charge, "amount": "1.25"}));
    // Rows without entries and events, which the audit would tell.
    database.skip_audit();
    for statement in [
        format!(
            "INSERT INTO payouts (merchant_id, id, status, amount, currency, destination, created_at) \
             VALUES ('{id}', uuid_v7(), 'pending', 3.5, 'ZZZ', 'ba_main', now())"
        ),
        format!(
            "INSERT INTO disputes (merchant_id, id, charge_id, status, amount, currency, created_at, closed_at) \
             SELECT merchant_id, uuid_v7(), id, 'won', 4.75, 'ZZZ', now(), now() FROM charges \
             WHERE merchant_id = '{id}' ORDER BY id LIMIT 1"
        ),
    ] {
        execute(&mut database.as_superuser(), &statement);
    }
    client.charge("known", &visa()).expect(201);

    let get = |path: &str| client.get(path).expect(200).json();
    let amounts = |path: &str, field: &str| -> Vec<String> {
        let list = get(path);
        let rows = list["data"].as_array().unwrap().iter().filter(|row| row["currency"] == "ZZZ");
        rows.map(|row| row[field].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(amounts("/v1/charges", "amount"), ["12.5", "12.5"]);
    assert_eq!(amounts("/v1/refunds", "amount"), ["1.25"]);
    assert_eq!(amounts("/v1/payouts", "amount"), ["3.5"]);
    assert_eq!(amounts("/v1/disputes", "amount"), ["4.75"]);
    let balance = get("/v1/balance");
    let expected = json!({"currency": "ZZZ", "available": "10.55", "pending": "12.5", "in_transit": "0"});
    assert!(balance["balances"].as_array().unwrap().contains(&expected), "{balance}");

    let trial_balance = get("/v1/ledger/trial-balance");
    let totals: Vec<_> =
        trial_balance["totals"].as_array().unwrap().iter().map(|total| &total["currency"]).collect();
    assert_eq!(totals, ["USD", "ZZZ"]);
    let total = &trial_balance["totals"][1];
    assert_eq!((&total["debit"], &total["credit"]), (&json!("11.25"), &json!("11.25")));
    let accounts = get("/v1/ledger/accounts");
    for account in accounts["data"].as_array().unwrap().iter().filter(|account| account["currency"] == "ZZZ")
    {
        let path = format!("/v1/ledger/accounts/{}", account["id"].as_str().unwrap());
        get(&path);
        let balance = get(&format!("{path}/balance"))["balance"].clone();
        let expected = match account["kind"].as_str().unwrap() {
            "acquirer_clearing" => "11.25",
            "merchant_payable" => "10.55",
            _ => "0.7",
        };
        assert_eq!(balance, expected);
        assert!(!get(&format!("{path}/postings"))["data"].as_array().unwrap().is_empty());
    }
    let entries = get("/v1/ledger/journal-entries");
    assert_eq!(entries["data"].as_array().unwrap().len(), 3);
    for entry in entries["data"].as_array().unwrap() {
        get(&format!("/v1/ledger/journal-entries/{}", entry["id"].as_str().unwrap()));
    }
    let events = get("/v1/events?limit=100&type=charge.captured");
    assert!(events["data"][0].to_string().contains(r#""amount_captured":"12.5""#), "{events}");
}
