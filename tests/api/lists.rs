use serde_json::{Value, json};

use crate::support::*;

fn ids(list: &Value) -> Vec<String> {
    list["data"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn charges_are_listed_newest_first_in_pages_that_do_not_shift() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let other = app.client.as_merchant(&database.merchant());
    other.charge("other", &visa()).expect(201);
    let make = |number: usize| client.charge(&format!("k{number}"), &visa()).expect(201).field("id");
    let mut made: Vec<_> = (0..7).map(make).collect();
    made.reverse();

    let page = |query: &str| client.get(&format!("/v1/charges?{query}")).expect(200).json();
    let first = page("limit=3");
    assert_eq!((ids(&first), &first["has_more"]), (made[..3].to_vec(), &json!(true)));
    make(7);
    let second = page(&format!("limit=3&starting_after={}", made[2]));
    assert_eq!((ids(&second), &second["has_more"]), (made[3..6].to_vec(), &json!(true)));
    let last = page(&format!("limit=3&starting_after={}", made[5]));
    assert_eq!((ids(&last), &last["has_more"]), (made[6..].to_vec(), &json!(false)));
    let back = page(&format!("limit=2&ending_before={}", made[3]));
    assert_eq!((ids(&back), &back["has_more"]), (made[1..3].to_vec(), &json!(true)));
    let newest = page(&format!("ending_before={}", made[1]));
    assert_eq!((ids(&newest).len(), &newest["has_more"]), (2, &json!(false)));
    assert_eq!(ids(&page("")).len(), 8);
}

#[test]
fn filters_combine() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let make = |key: &str, change: Value| {
        let mut body = visa();
        for (name, value) in change.as_object().unwrap() {
            body[name] = value.clone();
        }
        let response = client.charge(key, &body).json();
        response.get("id").or(response.get("charge_id")).unwrap().as_str().unwrap().to_owned()
    };
    let held = make("held", json!({"capture": false}));
    let euro = make("euro", json!({"currency": "EUR", "reference": "order 1"}));
    let declined = make("declined", json!({"payment_method": "pm_card_declined", "reference": "order 1"}));
    let created = client.get(&format!("/v1/charges/{euro}")).field("created_at");
    let later = client.get(&format!("/v1/charges/{declined}")).field("created_at");
    for (query, expected) in [
        ("status=requires_capture".to_owned(), vec![&held]),
        ("currency=EUR".to_owned(), vec![&euro]),
        ("reference=order+1".to_owned(), vec![&declined, &euro]),
        ("reference=order%201&status=failed".to_owned(), vec![&declined]),
        ("reference=order".to_owned(), vec![]),
        ("currency=JPY".to_owned(), vec![]),
        (format!("created_before={later}"), vec![&euro, &held]),
        (format!("created_after={created}"), vec![&declined]),
        (format!("created_after={created}&created_before={later}"), vec![]),
    ] {
        let list = client.get(&format!("/v1/charges?{query}")).expect(200).json();
        assert_eq!(ids(&list).iter().collect::<Vec<_>>(), expected, "{query}");
    }
    for (query, pointer) in [
        ("status=done", "/status"),
        ("currency=usd", "/currency"),
        ("reference=", "/reference"),
        ("created_after=now", "/created_after"),
        ("limit=0", "/limit"),
        ("starting_after=po_1", "/starting_after"),
        ("stauts=failed", "/stauts"),
    ] {
        let refused = client.get(&format!("/v1/charges?{query}")).expect_problem(422, "validation_failed");
        assert_eq!(refused.pointers(), [pointer], "{query}");
    }
}

#[test]
fn refunds_and_payouts_are_listed() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let charges: Vec<_> =
        ["a", "b"].iter().map(|key| client.charge(key, &visa()).expect(201).field("id")).collect();
    let refund = |charge: &str| {
        let body = json!({"charge_id": charge, "amount": "1.00"});
        client.send("POST", "/v1/refunds", &fresh_key(), &body).expect(201).field("id")
    };
    let refunds = [refund(&charges[0]), refund(&charges[1]), refund(&charges[0])];
    let list = |path: &str| client.get(path).expect(200).json();
    assert_eq!(ids(&list("/v1/refunds")), [refunds[2].as_str(), &refunds[1], &refunds[0]]);
    assert_eq!(
        ids(&list(&format!("/v1/refunds?charge_id={}", charges[0]))),
        [refunds[2].as_str(), &refunds[0]]
    );
    client.get("/v1/refunds?charge_id=1").expect_problem(422, "validation_failed");
    let body = json!({"amount": "1.00", "currency": "USD", "destination": "ba"});
    let payouts: Vec<_> = ["p", "q"]
        .iter()
        .map(|key| client.send("POST", "/v1/payouts", key, &body).expect(201).field("id"))
        .collect();
    assert_eq!(ids(&list("/v1/payouts?limit=1")), [payouts[1].as_str()]);
    assert_eq!(ids(&list(&format!("/v1/payouts?starting_after={}", payouts[1]))), [payouts[0].as_str()]);
    assert_eq!(list("/v1/disputes"), json!({"data": [], "has_more": false}));
    client.get("/v1/refunds/re_1").expect_problem(404, "refund_not_found");
    client.get("/v1/payouts/po_1").expect_problem(404, "payout_not_found");
}
