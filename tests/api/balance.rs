use serde_json::json;

use crate::support::*;

#[test]
fn the_balance_follows_the_charges_per_currency() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    assert_eq!(client.get("/v1/balance").expect(200).json(), json!({"balances": []}));

    client.charge("a", &visa()).expect(201);
    client.charge("b", &visa()).expect(201);
    client.charge("c", &with_method("pm_card_declined")).expect(402);
    let yen = json!({"amount": "1000", "currency": "JPY", "payment_method": "pm_card_visa"});
    client.charge("d", &yen).expect(201);
    let held = json!({"amount": "40", "currency": "USD", "payment_method": "pm_card_visa", "capture": false});
    client.charge("e", &held).expect(201);
    let held_only =
        json!({"amount": "7", "currency": "EUR", "payment_method": "pm_card_visa", "capture": false});
    client.charge("f", &held_only).expect(201);

    let expected = json!({"balances": [
        {"currency": "EUR", "available": "0.00", "pending": "7.00", "in_transit": "0.00"},
        {"currency": "JPY", "available": "971", "pending": "0", "in_transit": "0"},
        {"currency": "USD", "available": "23.68", "pending": "40.00", "in_transit": "0.00"},
    ]});
    assert_eq!(client.get("/v1/balance").expect(200).json(), expected);
    let other = app.client.as_merchant(&database.merchant());
    assert_eq!(other.get("/v1/balance").expect(200).json(), json!({"balances": []}));
}
