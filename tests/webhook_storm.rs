//! The acquirer's events as they come in the worst case: all of them several times, in any order, by many connections, to
//! two instances, while merchants go on being paid.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use rand::seq::SliceRandom;
use serde_json::{Value, json};

use crate::support::*;

/// Deliveries of each event.
const DELIVERIES: usize = 3;
/// Connections that deliver.
const CONNECTIONS: usize = 32;
/// Events that come of one set of a merchant's objects.
const EVENTS_PER_SET: usize = 10;

/// How many sets there are: 10,000 events where that's asked for, a twentieth of it as a part of the suite.
fn sets() -> usize {
    let is_full = std::env::var("ONCEPAY_FAULTS").is_ok_and(|value| value == "all");
    if is_full { 1_000 } else { 50 }
}

/// Makes a set of objects, and returns the events that are about them.
fn make_set(client: &Client, merchant: &Merchant) -> Vec<Value> {
    let charge = |method| client.charge(&fresh_key(), &with_method(method)).expect(201).field("id");
    let [won, lost, refunded] = [(); 3].map(|()| charge("pm_card_visa"));
    let [approved, declined] = [(); 2].map(|()| charge("pm_card_async"));
    let post = |path, body: Value| client.send("POST", path, &fresh_key(), &body).expect(201).field("id");
    let refund = post("/v1/refunds", json!({"charge_id": refunded, "amount": "2.50"}));
    let [paid, failed] = [(); 2]
        .map(|()| post("/v1/payouts", json!({"amount": "1.00", "currency": "USD", "destination": "ba"})));
    let about = |kind: &str, reference: &str| {
        let data =
            json!({"merchant": merchant.id, "reference": reference, "dispute": format!("of-{reference}")});
        json!({"type": kind, "data": data})
    };
    let settlement = json!({
        "id": format!("set_{}", uuid::Uuid::now_v7().as_simple()),
        "merchant": merchant.id, "amount": "10.00", "currency": "USD",
    });
    let events = vec![
        about("dispute.opened", &won),
        about("dispute.won", &won),
        about("dispute.opened", &lost),
        about("dispute.lost", &lost),
        about("refund.failed", &refund),
        about("charge.succeeded", &approved),
        about("charge.failed", &declined),
        about("payout.paid", &paid),
        about("payout.failed", &failed),
        json!({"type": "settlement.paid", "data": settlement}),
    ];
    assert_eq!(events.len(), EVENTS_PER_SET);
    events
}

#[test]
fn shuffled_redeliveries_to_two_instances_apply_each_event_once() {
    let database = TestDatabase::new();
    let apps = [App::start(&database), App::start(&database)];
    let merchants: Vec<_> = (0..4).map(|_| database.merchant()).collect();
    let (sets, next) = (sets(), AtomicUsize::new(0));
    let events = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for worker in 0..8 {
            let (apps, merchants, next, events) = (&apps, &merchants, &next, &events);
            scope.spawn(move || {
                while next.fetch_add(1, Ordering::Relaxed) < sets {
                    let merchant = &merchants[worker % merchants.len()];
                    let client = apps[worker % 2].client.as_merchant(merchant);
                    // What pays for the payouts, whatever the disputes take.
                    events.lock().unwrap().extend(make_set(&client, merchant));
                }
            });
        }
    });
    let events: Vec<_> =
        events.into_inner().unwrap().into_iter().map(|event| (fresh_key(), event.to_string())).collect();

    let mut deliveries: Vec<_> = (0..events.len()).flat_map(|event| [event; DELIVERIES]).collect();
    deliveries.shuffle(&mut rand::rng());
    let (queue, is_over) = (Mutex::new(deliveries), AtomicBool::new(false));
    let (executed, replayed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let charges_meanwhile = AtomicUsize::new(0);
    thread::scope(|scope| {
        let connections: Vec<_> = (0..CONNECTIONS)
            .map(|connection| {
                let (apps, events, queue) = (&apps, &events, &queue);
                let (executed, replayed) = (&executed, &replayed);
                scope.spawn(move || {
                    let client = &apps[connection % 2].client;
                    loop {
                        let Some(event) = queue.lock().unwrap().pop() else { return };
                        let (event_id, body) = &events[event];
                        let answer = client.delivery(event_id, body).send();
                        match (answer.status, answer.code().as_str()) {
                            (200, _) if answer.is_replay() => replayed.fetch_add(1, Ordering::Relaxed),
                            (200, _) => executed.fetch_add(1, Ordering::Relaxed),
                            // It's being handled, or there are too many: as any provider does, once more later.
                            (409, "idempotency_request_in_progress") | (503, _) => {
                                queue.lock().unwrap().insert(0, event);
                                0
                            }
                            _ => panic!("{} {}", answer.status, answer.text()),
                        };
                    }
                })
            })
            .collect();
        for (merchant, app) in merchants.iter().zip(apps.iter().cycle()) {
            let (is_over, charges_meanwhile) = (&is_over, &charges_meanwhile);
            scope.spawn(move || {
                let client = app.client.as_merchant(merchant);
                while !is_over.load(Ordering::Relaxed) {
                    client.charge(&fresh_key(), &visa()).expect(201);
                    charges_meanwhile.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for connection in connections {
            connection.join().unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert_eq!(executed.into_inner(), events.len());
    assert_eq!(replayed.into_inner(), events.len() * (DELIVERIES - 1));
    assert!(charges_meanwhile.load(Ordering::Relaxed) > 0);

    let count = |condition: &str| {
        database.count(&format!("SELECT count(*) FROM acquirer_events WHERE {condition}")) as usize
    };
    eventually("the end of all waiting", || count("state = 'parked'") == 0);
    assert_eq!(count("state = 'applied'"), events.len(), "each has taken effect");
    assert!(count("attempts > 1") > 0, "some have overtaken what they were about");
    // Once: as many of each kind as there were sets.
    let told = database.text(
        "SELECT string_agg(type || ' ' || n, ',') FROM (SELECT type, count(*) AS n FROM events GROUP BY type) AS t",
    );
    let told: BTreeMap<_, usize> = told
        .split(',')
        .map(|line| line.split_once(' ').unwrap())
        .map(|(kind, n)| (kind, n.parse().unwrap()))
        .collect();
    let once =
        ["dispute.won", "dispute.lost", "refund.failed", "payout.paid", "payout.failed", "settlement.paid"];
    for kind in once.into_iter().chain(["charge.failed", "charge.dispute_won", "charge.refund_failed"]) {
        assert_eq!(told[kind], sets, "{kind}");
    }
    assert_eq!(told["dispute.opened"], 2 * sets);
    // Of a set: its three captures and that of the one that was approved, less the lost dispute and the payout that
    // arrived; and what was paid meanwhile. All of it at 0.66 a capture.
    let captures = 4 * sets + charges_meanwhile.into_inner();
    let expected_cents = captures * (1250 - 66) - sets * (1250 + 100);
    let available_cents: usize = merchants
        .iter()
        .filter_map(|merchant| apps[0].client.as_merchant(merchant).available("USD"))
        .map(|amount| amount.replace('.', "").parse::<usize>().unwrap())
        .sum();
    assert_eq!(available_cents, expected_cents);
}
