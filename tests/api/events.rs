use serde_json::{Value, json};

use super::webhook_endpoints::{delete, endpoint, update};
use crate::support::*;

fn ids(list: &Value) -> Vec<String> {
    list["data"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

/// Ids of the endpoints that deliveries in a list go to, in order.
fn recipients(list: &Value) -> Vec<String> {
    let deliveries = list["data"].as_array().unwrap();
    let mut ids: Vec<_> =
        deliveries.iter().map(|row| row["endpoint_id"].as_str().unwrap().to_owned()).collect();
    ids.sort();
    ids
}

fn sorted(ids: &[&String]) -> Vec<String> {
    let mut ids: Vec<_> = ids.iter().map(|id| (*id).clone()).collect();
    ids.sort();
    ids
}

/// A charge, and the event that tells of it.
fn charge(client: &Client) -> (String, String) {
    let charge = client.charge(&fresh_key(), &visa()).expect(201).field("id");
    let events = client.get(&format!("/v1/events?object_id={charge}")).expect(200).json();
    (charge, events["data"][0]["id"].as_str().unwrap().to_owned())
}

fn deliveries(client: &Client, event: &str) -> Value {
    client.get(&format!("/v1/events/{event}/deliveries")).expect(200).json()
}

fn redeliver(client: &Client, event: &str, key: &str, body: &Value) -> Response {
    client.send("POST", &format!("/v1/events/{event}/redeliver"), key, body)
}

fn uuid_of(id: &str) -> &str {
    id.split_once('_').unwrap().1
}

#[test]
fn an_event_shows_the_object_as_it_was() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let charge = client.charge("k", &visa()).expect(201);
    let path = format!("/v1/charges/{}", charge.field("id"));
    client.send("PATCH", &path, "p", &json!({"description": "new"})).expect(200);
    let list = client.get("/v1/events").expect(200).json();
    let event = &list["data"][1];
    assert_eq!(
        *event,
        json!({
            "id": event["id"], "object": "event", "type": "charge.succeeded", "created_at": event["created_at"],
            "data": charge.json(),
        })
    );
    let id = event["id"].as_str().unwrap();
    assert!(id.starts_with("evt_"));
    assert_eq!(client.get(&format!("/v1/events/{id}")).expect(200).json(), *event);
    assert_eq!(list["data"][0]["type"], "charge.updated");
    assert_eq!(list["data"][0]["data"]["description"], "new");
}

#[test]
fn events_are_listed_newest_first_and_filters_combine() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    app.client.as_merchant(&database.merchant()).charge("other", &visa()).expect(201);
    let first = client.charge("1", &visa()).expect(201).field("id");
    client.charge("2", &with_method("pm_card_declined")).expect(402);
    let body = json!({"charge_id": first, "amount": "1.00"});
    let refund = client.send("POST", "/v1/refunds", "3", &body).expect(201).field("id");

    let page = |query: &str| client.get(&format!("/v1/events?{query}")).expect(200).json();
    let all = page("");
    let types: Vec<_> = all["data"].as_array().unwrap().iter().map(|event| event["type"].clone()).collect();
    assert_eq!(types.len(), 4, "{all}");
    assert_eq!(types[2..], ["charge.failed", "charge.succeeded"]);
    let all = ids(&all);
    let two = page("limit=2");
    assert_eq!((ids(&two), &two["has_more"]), (all[..2].to_vec(), &json!(true)));
    let rest = page(&format!("limit=2&starting_after={}", all[1]));
    assert_eq!((ids(&rest), &rest["has_more"]), (all[2..].to_vec(), &json!(false)));
    let missed = page(&format!("ending_before={}", all[3]));
    assert_eq!(ids(&missed), all[..3]);

    assert_eq!(ids(&page("type=charge.failed")), all[2..3]);
    assert_eq!(ids(&page("type=payout.paid")), Vec::<String>::new());
    assert_eq!(ids(&page(&format!("object_id={first}"))).len(), 2);
    assert_eq!(ids(&page(&format!("object_id={first}&type=charge.succeeded"))), all[3..]);
    assert_eq!(ids(&page(&format!("object_id={refund}"))).len(), 1);
    let other_kind = format!("object_id=re_{}", uuid_of(&first));
    assert_eq!(ids(&page(&other_kind)), Vec::<String>::new(), "no refund has this id");
    let at = client.get(&format!("/v1/events/{}", all[3])).field("created_at");
    assert_eq!(ids(&page(&format!("created_after={at}"))), all[..3]);
    assert_eq!(ids(&page(&format!("created_before={at}"))), Vec::<String>::new());
    for (query, pointer) in [
        ("type=charge", "/type"),
        ("type=*", "/type"),
        ("object_id=1", "/object_id"),
        ("object_id=ch_1", "/object_id"),
        ("object_id=%00_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b", "/object_id"),
        ("created_after=now", "/created_after"),
        ("starting_after=ch_1", "/starting_after"),
        ("kind=charge.failed", "/kind"),
    ] {
        let refused = client.get(&format!("/v1/events?{query}")).expect_problem(422, "validation_failed");
        assert_eq!(refused.pointers(), [pointer], "{query}");
    }
}

#[test]
fn another_merchants_event_can_not_be_found() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let stranger = app.client.as_merchant(&database.merchant());
    let (charge, event) = charge(&client);
    for id in [event.as_str(), "evt_00000000000070008000000000000000", "x"] {
        stranger.get(&format!("/v1/events/{id}")).expect_problem(404, "event_not_found");
        stranger.get(&format!("/v1/events/{id}/deliveries")).expect_problem(404, "event_not_found");
        redeliver(&stranger, id, &fresh_key(), &json!({})).expect_problem(404, "event_not_found");
    }
    let list = stranger.get(&format!("/v1/events?object_id={charge}")).expect(200).json();
    assert_eq!(list, json!({"data": [], "has_more": false}));
}

#[test]
fn an_event_is_delivered_to_each_enabled_endpoint_that_wants_it_and_to_no_other() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    endpoint(&app.client.as_merchant(&database.merchant()), &["*"]);
    let all = endpoint(&client, &["*"]);
    let this = endpoint(&client, &["charge.failed", "charge.succeeded"]);
    endpoint(&client, &["charge.failed", "payout.created"]);
    let disabled = endpoint(&client, &["*"]);
    update(&client, &disabled, json!({"status": "disabled"})).expect(200);
    let deleted = endpoint(&client, &["*"]);
    delete(&client, &deleted).expect(200);

    let (_, event) = charge(&client);
    let list = deliveries(&client, &event);
    assert_eq!(recipients(&list), sorted(&[&all, &this]));
    for delivery in list["data"].as_array().unwrap() {
        assert_eq!((&delivery["object"], &delivery["event_id"]), (&json!("delivery"), &json!(event)));
        assert!(delivery["id"].as_str().unwrap().starts_with("wd_"));
        assert_eq!((&delivery["status"], &delivery["completed_at"]), (&json!("pending"), &Value::Null));
        assert!(delivery["next_attempt_at"].is_string() && delivery["created_at"].is_string());
    }

    // What changes counts from the next event on.
    update(&client, &disabled, json!({"status": "enabled"})).expect(200);
    update(&client, &this, json!({"event_types": ["payout.paid"]})).expect(200);
    assert_eq!(recipients(&deliveries(&client, &event)).len(), 2);
    let (_, event) = charge(&client);
    let list = deliveries(&client, &event);
    assert_eq!(recipients(&list), sorted(&[&all, &disabled]));
    let path = format!("/v1/events/{event}/deliveries");
    let page = client.get(&format!("{path}?limit=1")).expect(200).json();
    assert_eq!((ids(&page), &page["has_more"]), (ids(&list)[..1].to_vec(), &json!(true)));
    let rest = client.get(&format!("{path}?starting_after={}", ids(&page)[0])).expect(200).json();
    assert_eq!((ids(&rest), &rest["has_more"]), (ids(&list)[1..].to_vec(), &json!(false)));
}

#[test]
fn a_change_that_fails_leaves_neither_event_nor_delivery() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let (charge, _) = charge(&client);
    endpoint(&client, &["*"]);
    let path = format!("/v1/charges/{charge}");
    let before = client.get(&path).expect(200).json();
    let counts = || [database.rows("events"), database.rows("webhook_deliveries")];
    let patch = || client.send("PATCH", &path, "k", &json!({"description": "new"}));

    let owner = &mut database.as_owner();
    execute(owner, "ALTER TABLE webhook_deliveries ADD CONSTRAINT bug CHECK (false) NOT VALID");
    patch().expect_problem(500, "internal");
    assert_eq!(counts(), [1, 0]);
    assert_eq!(client.get(&path).expect(200).json(), before, "nor the change");
    execute(owner, "ALTER TABLE webhook_deliveries DROP CONSTRAINT bug");
    patch().expect(200);
    assert_eq!(counts(), [2, 1]);
}

#[test]
fn an_event_is_delivered_again_once_per_key() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let (_, event) = charge(&client);
    let nobody = redeliver(&client, &event, "nobody", &json!({})).expect(202).json();
    assert_eq!(nobody, json!({"data": [], "has_more": false}));
    let all = endpoint(&client, &["*"]);
    let this = endpoint(&client, &["charge.succeeded"]);
    let other = endpoint(&client, &["payout.paid"]);
    let disabled = endpoint(&client, &["*"]);
    update(&client, &disabled, json!({"status": "disabled"})).expect(200);
    let deleted = endpoint(&client, &["*"]);
    delete(&client, &deleted).expect(200);

    let answer = redeliver(&client, &event, "k", &json!({})).expect(202);
    assert_eq!(recipients(&answer.json()), sorted(&[&all, &this]));
    let replay = redeliver(&client, &event, "k", &json!({})).expect(202);
    assert!(replay.is_replay());
    assert_eq!(replay.body, answer.body);
    assert_eq!(
        ids(&deliveries(&client, &event)),
        ids(&answer.json()),
        "one new set, listed in the same order"
    );

    let named = |id: &str| redeliver(&client, &event, &fresh_key(), &json!({"endpoint_id": id}));
    assert_eq!(recipients(&named(&other).expect(202).json()), [other], "whatever it wants");
    named(&disabled).expect_problem(409, "webhook_endpoint_disabled");
    for unknown in [deleted.as_str(), "we_00000000000070008000000000000000", &event, "x"] {
        named(unknown).expect_problem(404, "webhook_endpoint_not_found");
    }
    let refused = redeliver(&client, &event, "bad", &json!({"endpoint_id": 1, "endpoint": "x"}));
    assert_eq!(refused.expect_problem(422, "validation_failed").pointers(), ["/endpoint", "/endpoint_id"]);
    let path = format!("/v1/events/{event}/redeliver");
    client.request("POST", &path).idempotency_key("no-body").send().expect(202);
    assert_eq!(database.rows("webhook_deliveries"), 2 + 1 + 2);
    let key = client.get("/v1/idempotency-keys/k").expect(200).json();
    let resource = json!({"type": "event", "id": event, "url": format!("/v1/events/{event}")});
    assert_eq!(key["resource"], resource);
}

#[test]
fn a_delivery_shows_its_attempts() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let (_, event) = charge(&client);
    let attempts = json!([
        {"number": 1, "started_at": "2026-11-25T10:00:00.123456Z", "duration_ms": 5000, "status": null,
         "error": "timeout", "response_excerpt": null},
        {"number": 2, "started_at": "2026-11-25T10:01:00.000000+00:00", "duration_ms": 12, "status": 503,
         "error": null, "response_excerpt": "busy"},
    ]);
    execute(
        &mut database.as_app(),
        &format!(
            "INSERT INTO webhook_deliveries (merchant_id, event_id, endpoint_id, state, attempt_count, attempts, completed_at) \
             SELECT merchant_id, id, '{}', 'failed', 2, '{attempts}', statement_timestamp() FROM events",
            uuid_of(&event)
        ),
    );
    let list = deliveries(&client, &event);
    let delivery = &list["data"][0];
    assert_eq!((&delivery["status"], &delivery["next_attempt_at"]), (&json!("failed"), &Value::Null));
    assert!(delivery["completed_at"].is_string());
    let mut expected = attempts;
    expected[0]["started_at"] = json!("2026-11-25T10:00:00.123Z");
    expected[1]["started_at"] = json!("2026-11-25T10:01:00.000Z");
    assert_eq!(delivery["attempts"], expected);
}
