//! Events and deliveries are deleted when they are old, and nothing else is; and nobody misses them.

use diesel::RunQueryDsl;
use oncepay::webhooks::retention::{PruneResult, Retention, prune};
use serde_json::json;

use crate::support::*;

const RETENTION: Retention = Retention { events_days: 90, deliveries_days: 30 };

fn pruned(database: &TestDatabase, batch: i32) -> PruneResult {
    prune(&mut database.as_app(), RETENTION, None, batch).unwrap()
}

/// Makes everything that there is older, ids of events and deliveries included.
fn age(database: &TestDatabase, days: i32) {
    // The guards don't allow that.
    let statements = "CREATE OR REPLACE FUNCTION pg_temp.older(id uuid, days integer) RETURNS uuid LANGUAGE sql AS $$ \
            SELECT encode(overlay(uuid_send(id) PLACING substring(int8send( \
                ('x' || left(replace(id::text, '-', ''), 12))::bit(48)::bigint - days * 86400000::bigint) FROM 3) \
                FROM 1 FOR 6), 'hex')::uuid $$; \
        UPDATE events SET created_at = created_at - make_interval(days => $1), id = pg_temp.older(id, $1); \
        UPDATE webhook_deliveries SET created_at = created_at - make_interval(days => $1), \
            id = pg_temp.older(id, $1), event_id = pg_temp.older(event_id, $1); \
        UPDATE charges SET created_at = created_at - make_interval(days => $1); \
        UPDATE refunds SET created_at = created_at - make_interval(days => $1)";
    database.unguarded(&statements.replace("$1", &days.to_string()));
}

/// A merchant with an endpoint that wants everything, and to which nothing is sent meanwhile.
fn start(database: &TestDatabase) -> (App, Client) {
    let app = App::start_with(database, |config| config.delivery.delivery_interval_ms = 600_000);
    let client = app.client.as_merchant(&database.merchant());
    let body = json!({"url": "https://shop.example/webhooks"});
    client.send("POST", "/v1/webhook-endpoints", "endpoint", &body).expect(201);
    (app, client)
}

fn counts(database: &TestDatabase) -> [i64; 2] {
    [database.rows("events"), database.rows("webhook_deliveries")]
}

#[test]
fn what_is_old_is_deleted_and_the_audit_stays_clean() {
    let database = TestDatabase::new();
    let (app, client) = start(&database);
    let charge = |key: &str| client.charge(key, &visa()).expect(201).field("id");
    let [forgotten, changed] = ["forgotten", "changed"].map(charge);
    age(&database, 60);
    charge("seldom");
    let kept = client.get("/v1/events?limit=1").expect(200).json()["data"][0]["id"].clone();
    age(&database, 31);
    client.send("PATCH", &format!("/v1/charges/{changed}"), "p", &json!({"description": "new"})).expect(200);
    charge("new");
    // 91, 91, 31, 0 and 0 days old.
    assert_eq!(counts(&database), [5, 5]);

    assert_eq!(pruned(&database, 100), PruneResult { events: 2, deliveries: 3, next_after: None });
    assert_eq!(counts(&database), [3, 2]);
    assert_eq!(pruned(&database, 100), PruneResult::default());
    let events = client.get("/v1/events").expect(200).json();
    let types: Vec<_> =
        events["data"].as_array().unwrap().iter().map(|event| event["type"].clone()).collect();
    assert_eq!(types, ["charge.succeeded", "charge.updated", "charge.succeeded"]);
    let kept = format!("/v1/events/{}", database_id(&kept, &events["data"][2]["id"]));
    assert_eq!(client.get(&format!("{kept}/deliveries")).expect(200).json()["data"], json!([]));
    client.send("POST", &format!("{kept}/redeliver"), "again", &json!({})).expect(202);
    database.assert_audit_is_clean();
    client.get(&format!("/v1/charges/{forgotten}")).expect(200);
    drop(app);
}

/// The id that an event has got by being aged.
fn database_id(before: &serde_json::Value, now: &serde_json::Value) -> String {
    let (before, now) = (before.as_str().unwrap(), now.as_str().unwrap());
    assert_eq!(before[16..], now[16..], "it's the same event");
    now.to_owned()
}

#[test]
fn deliveries_go_with_their_event_and_batches_are_no_larger_than_asked_for() {
    let database = TestDatabase::new();
    let (_app, client) = start(&database);
    for key in ["1", "2", "3"] {
        client.charge(key, &visa()).expect(201);
    }
    let keep = Retention { events_days: 90, deliveries_days: 36_500 };
    age(&database, 89);
    assert_eq!(prune(&mut database.as_app(), keep, None, 2).unwrap(), PruneResult::default());
    age(&database, 2);
    assert_eq!(
        prune(&mut database.as_app(), keep, None, 2).unwrap(),
        PruneResult { events: 2, deliveries: 0, next_after: None }
    );
    assert_eq!(counts(&database), [1, 1]);
    assert_eq!(
        prune(&mut database.as_app(), keep, None, 2).unwrap(),
        PruneResult { events: 1, deliveries: 0, next_after: None }
    );
    assert_eq!(counts(&database), [0, 0]);
}

#[test]
fn merchants_are_looked_at_in_turn() {
    let database = TestDatabase::new();
    let (app, client) = start(&database);
    let others = [(), ()].map(|()| app.client.as_merchant(&database.merchant()));
    for client in others.iter().chain([&client]) {
        client.charge("k", &visa()).expect(201);
    }
    age(&database, 91);
    let mut after = None;
    let mut rounds = 0;
    loop {
        let pruned = prune(&mut database.as_app(), RETENTION, after, 1).unwrap();
        after = pruned.next_after;
        assert_eq!((pruned.events, after.is_some()), (1 - rounds / 3, rounds < 3), "round {rounds}");
        rounds += 1;
        if after.is_none() {
            break;
        }
    }
    assert_eq!((rounds, counts(&database)), (4, [0, 0]));
}

#[test]
fn young_events_can_not_be_deleted() {
    let database = TestDatabase::new();
    let (_app, client) = start(&database);
    client.charge("k", &visa()).expect(201);
    let mut app = database.as_app();
    for statement in [
        "SELECT events_prune(interval '1 hour', interval '30 days', 100, NULL)",
        "SELECT events_prune(interval '90 days', interval '-1 days', 100, NULL)",
        "DELETE FROM events",
        "UPDATE events SET created_at = '-infinity'",
        "DELETE FROM webhook_deliveries",
        "UPDATE event_retention SET events_before = 'infinity'",
    ] {
        assert!(diesel::sql_query(statement).execute(&mut app).is_err(), "{statement}");
    }
    assert_eq!(counts(&database), [1, 1]);
}

#[test]
fn every_instance_deletes_by_itself_and_counts() {
    let database = TestDatabase::new();
    {
        let (_app, client) = start(&database);
        client.charge("k", &visa()).expect(201);
    }
    age(&database, 10);
    // What somebody is sending is left to its event's end.
    execute(
        &mut database.as_superuser(),
        "UPDATE webhook_deliveries SET state = 'failed', completed_at = now()",
    );
    let app = App::start_with(&database, |config| {
        (config.event_retention_days, config.delivery_retention_days) = (9, 5);
    });
    eventually("their end", || counts(&database) == [0, 0]);
    let deleted =
        |table: &str| app.client.metrics().value("oncepay_retention_deleted_total", &[("table", table)]);
    eventually("the count", || deleted("events") == 1.0 && deleted("webhook_deliveries") == 1.0);
}

#[test]
fn an_event_that_is_missing_for_another_reason_is_found_all_the_same() {
    let mut database = TestDatabase::new();
    database.skip_audit();
    let (_app, client) = start(&database);
    let charges = ["old", "changed", "captured"].map(|key| {
        let body =
            json!({"amount": "3.00", "currency": "USD", "payment_method": "pm_card_visa", "capture": false});
        client.charge(key, &body).expect(201).field("id")
    });
    age(&database, 91);
    let change = |action: &str| client.send("POST", action, &fresh_key(), &json!({})).expect(200);
    change(&format!("/v1/charges/{}/cancel", charges[1]));
    change(&format!("/v1/charges/{}/capture", charges[2]));
    let new = client.charge("new", &visa()).expect(201).field("id");
    assert_eq!(pruned(&database, 100).events, 3);
    database.assert_audit_is_clean();

    let missing = || {
        let report = oncepay::audit::run(&mut database.as_app(), &oncepay::server::resource_kinds()).unwrap();
        let check = report.checks.into_iter().find(|check| check.name == "missing_events").unwrap();
        let mut samples = check.samples;
        samples.sort();
        samples
    };
    let mut superuser = database.as_superuser();
    // A state of which no event tells, though there are events of that time.
    execute(
        &mut superuser,
        "UPDATE events SET data = data || '{\"status\": \"lost\"}' WHERE type = 'charge.captured'",
    );
    assert_eq!(missing(), [charges[2].clone()]);
    // An object that's younger than the events that were deleted.
    execute(&mut superuser, "DELETE FROM events WHERE type = 'charge.succeeded'");
    assert_eq!(missing(), [charges[2].clone(), new]);
}

#[test]
fn a_difference_to_the_acquirer_shows_also_when_the_events_are_gone() {
    let mut database = TestDatabase::new();
    database.skip_audit();
    let (_app, client) = start(&database);
    client.charge("k", &visa()).expect(201);
    age(&database, 91);
    execute(
        &mut database.as_superuser(),
        "INSERT INTO acquirer_reads (since, read_at) VALUES (now() - interval '1 year', now())",
    );
    let differences = || database.violations("processor_operations");
    assert_eq!(differences(), 2, "neither authorization nor capture is there");
    assert_eq!(pruned(&database, 100).events, 1);
    assert_eq!(differences(), 2);
}
