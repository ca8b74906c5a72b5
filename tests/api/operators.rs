use serde_json::{Value, json};

use crate::support::*;

fn operator(database: &TestDatabase, app: &App) -> Client {
    app.client.with_key(&database.operator_key())
}

fn shop(name: &str) -> Value {
    json!({"name": name, "fee_rate": "0.029", "fee_fixed": "0.30"})
}

#[test]
fn an_operator_creates_merchants_that_can_charge_at_once() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let operator = operator(&database, &app);
    let created = operator.send("POST", "/v1/operator/merchants", "k", &shop("Corner shop")).expect(201);
    let merchant = created.json();
    let id = created.field("id");
    assert_eq!(merchant["prices"][0]["fee_rate"], "0.029");
    assert_eq!(merchant["prices"][0]["fee_fixed"], "0.3");
    let replay = operator.send("POST", "/v1/operator/merchants", "k", &shop("Corner shop")).expect(201);
    assert!(replay.is_replay() && replay.body == created.body);
    assert_eq!(database.rows("merchants"), 1);

    let client = app.client.with_key(merchant["api_key"]["key"].as_str().unwrap());
    assert_eq!(client.charge("k", &visa()).expect(201).field("fee"), "0.66");
    let path = format!("/v1/operator/merchants/{id}");
    let shown = operator.get(&path).expect(200).json();
    assert!(shown.get("api_key").is_none());
    let list = operator.get("/v1/operator/merchants").expect(200).json();
    assert_eq!(list["data"], json!([shown]));
    operator.get("/v1/operator/merchants/mer_1").expect_problem(404, "merchant_not_found");
}

#[test]
fn a_price_holds_from_its_time_on() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let operator = operator(&database, &app);
    let merchant = database.merchant();
    let client = app.client.as_merchant(&merchant);
    let path = format!("/v1/operator/merchants/{}/pricing", merchant.id);
    assert_eq!(client.charge("a", &visa()).expect(201).field("fee"), "0.66");

    let soon = (chrono::Utc::now() + chrono::Duration::milliseconds(2_000)).to_rfc3339();
    let change = json!({"fee_rate": "0.1", "fee_fixed": "0", "effective_at": soon});
    let changed = operator.send("POST", &path, "k", &change).expect(201).json();
    assert_eq!(changed["prices"].as_array().unwrap().len(), 2);
    assert_eq!(client.charge("b", &visa()).expect(201).field("fee"), "0.66");
    std::thread::sleep(std::time::Duration::from_millis(2_100));
    assert_eq!(client.charge("c", &visa()).expect(201).field("fee"), "1.25");
    let now = json!({"fee_rate": "0", "fee_fixed": "0"});
    operator.send("POST", &path, "now", &now).expect(201);
    assert_eq!(client.charge("d", &visa()).expect(201).field("fee"), "0.00");
    assert!(client.charge("a", &visa()).expect(201).is_replay());

    for (change, pointers) in [
        (json!({"fee_rate": "1.1", "fee_fixed": "-1"}), vec!["/fee_fixed", "/fee_rate"]),
        (json!({"fee_rate": "0.000001", "fee_fixed": "1e3"}), vec!["/fee_fixed", "/fee_rate"]),
        (
            json!({"fee_rate": 0.1, "fee_fixed": "0", "effective_at": "soon"}),
            vec!["/effective_at", "/fee_rate"],
        ),
        (
            json!({"fee_rate": "0", "fee_fixed": "0", "effective_at": "2020-01-01T00:00:00Z"}),
            vec!["/effective_at"],
        ),
        (json!({}), vec!["/fee_fixed", "/fee_rate"]),
    ] {
        let refused =
            operator.send("POST", &path, &fresh_key(), &change).expect_problem(422, "validation_failed");
        assert_eq!(refused.pointers(), pointers, "{change}");
    }
    let unknown = "/v1/operator/merchants/mer_1/pricing";
    operator.send("POST", unknown, "u", &now).expect_problem(404, "merchant_not_found");
}

#[test]
fn a_merchants_key_reaches_nothing_of_the_operators() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let merchant = database.merchant();
    let client = app.client.as_merchant(&merchant);
    for path in ["/v1/operator/merchants", "/v1/operator/merchants/mer_1", "/v1/operator/audit"] {
        client.get(path).expect_problem(403, "operator_key_required");
        app.client.get(path).expect_problem(401, "api_key_missing");
        app.client.with_key("ok_1").get(path).expect_problem(401, "api_key_invalid");
    }
    let refused = client.send("POST", "/v1/operator/merchants", "k", &shop("x"));
    refused.expect_problem(403, "operator_key_required");
    database.revoke(&merchant.key);
    client.get("/v1/operator/audit").expect_problem(401, "api_key_revoked");
}
