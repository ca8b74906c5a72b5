//! The clocks of the hosts are wrong, each in its own way.

use chrono::{DateTime, TimeDelta, Utc};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use crate::support::*;

use super::scene::{Scene, Setup, seed};
use super::{amount, table};

/// An hour ahead, an hour behind, right.
const CLOCKS_OFF_S: &[i64] = &[3_600, -3_600, 0];

#[test]
fn clocks_are_an_hour_off() {
    let setup = Setup::of("clocks: of three instances one is 1 h ahead, one 1 h behind; `kill -9` at random");
    let scene = Scene::start(Setup { instances: 3, clocks_off_s: CLOCKS_OFF_S, ..setup.impatient() });
    let dice = std::sync::Mutex::new(StdRng::seed_from_u64(seed()));
    let scene = scene.strike_often(amount(4, 50), |scene| {
        let victim = dice.lock().unwrap().random_range(0..scene.instances.len());
        scene.instances[victim].kill();
    });
    table::add(scene.without_internal_errors().finish());
}

fn by_clocks(database: &TestDatabase) -> Vec<Process> {
    // The recovery worker is out of the way.
    let start = |offset: &i64| {
        let offset = offset.to_string();
        let environment = [("ONCEPAY_CLOCK_OFFSET_S", &*offset), ("ONCEPAY_RECOVERY_INTERVAL_MS", "600000")];
        Process::start(database, &environment)
    };
    CLOCKS_OFF_S.iter().map(start).collect()
}

/// The time that an id holds.
fn time_of(id: &str) -> DateTime<Utc> {
    let digits = id.rsplit('_').next().unwrap();
    DateTime::from_timestamp_millis(i64::from_str_radix(&digits[..12], 16).unwrap()).unwrap()
}

fn page(client: &Client, path: &str) -> Vec<Value> {
    client.get(path).expect(200).json()["data"].as_array().unwrap().clone()
}

fn members(rows: &[Value], name: &str) -> Vec<String> {
    rows.iter().map(|row| row[name].as_str().unwrap().to_owned()).collect()
}

#[test]
fn an_instances_clock_shows_only_in_ids_of_requests() {
    let database = TestDatabase::new();
    let instances = by_clocks(&database);
    let merchant = database.merchant();
    let clients: Vec<_> = instances.iter().map(|instance| instance.client.as_merchant(&merchant)).collect();
    for (client, off) in clients.iter().zip(CLOCKS_OFF_S) {
        let id = client.get("/v1/charges").expect(200).header("X-Request-Id").unwrap().to_owned();
        let seen_off = (time_of(&id) - Utc::now()).num_seconds();
        assert!((seen_off - off).abs() < 60, "this clock isn't off: {seen_off} s");
    }
    let (mut charges, mut sources) = (Vec::new(), Vec::new());
    for number in 0..9 {
        let client = &clients[number % clients.len()];
        // Both ways of writing a charge.
        let mut body = visa();
        if number >= 3 {
            body["reference"] = json!(number.to_string());
        }
        let id = client.charge(&format!("c{number}"), &body).expect(201).field("id");
        let refund = json!({"charge_id": id, "amount": "1.00"});
        let other = &clients[(number + 1) % clients.len()];
        let refunded = other.send("POST", "/v1/refunds", &format!("r{number}"), &refund).expect(201);
        sources.extend([format!("{id}:capture"), refunded.field("id")]);
        charges.push(id);
    }
    charges.reverse();
    sources.reverse();
    let around = |minutes: i64| (Utc::now() + TimeDelta::minutes(minutes)).format("%Y-%m-%dT%H:%M:%SZ");
    let range = format!("limit=100&created_after={}&created_before={}", around(-10), around(10));
    for client in &clients {
        assert_eq!(members(&page(client, &format!("/v1/charges?{range}")), "id"), charges);
        let entries = page(client, "/v1/ledger/journal-entries?limit=100");
        assert_eq!(members(&entries, "source"), sources);
        for id in members(&entries, "id") {
            assert!((time_of(&id) - Utc::now()).abs() < TimeDelta::minutes(10), "{id}");
        }
    }
    let strays = "SELECT count(*) FROM events \
         WHERE id NOT BETWEEN uuid_v7(now() - interval '10 min') AND uuid_v7(now() + interval '10 min')";
    assert_eq!(database.count(strays), 0, "events");
}

#[test]
fn duplicates_are_suspected_whoever_made_the_first() {
    let database = TestDatabase::new();
    let instances = by_clocks(&database);
    let merchant = database.merchant();
    let clients: Vec<_> = instances.iter().map(|instance| instance.client.as_merchant(&merchant)).collect();
    for (one, first) in clients.iter().enumerate() {
        for (other, second) in clients.iter().enumerate() {
            let mut order = visa();
            order["reference"] = json!(format!("{one}-{other}"));
            let made = first.charge(&fresh_key(), &order).expect(201);
            assert_eq!(made.header("Suspected-Duplicate-Of"), None);
            let again = second.charge(&fresh_key(), &order).expect(201);
            assert_eq!(again.header("Suspected-Duplicate-Of"), Some(made.field("id").as_str()));
        }
    }
}

#[test]
fn leases_and_lifetimes_are_the_databases() {
    let database = TestDatabase::new();
    let instances = by_clocks(&database);
    let merchant = database.merchant();
    let clients: Vec<_> = instances.iter().map(|instance| instance.client.as_merchant(&merchant)).collect();
    clients[0].get("/v1/idempotency-policies").expect(200);
    for (number, client) in clients.iter().enumerate() {
        let (key, unfinished) = (format!("k{number}"), format!("u{number}"));
        let first = client.charge(&key, &visa()).expect(201);
        let doomed = Process::start(
            &database,
            &[
                ("ONCEPAY_FAULT", "kill:after_processor"),
                ("ONCEPAY_CLOCK_OFFSET_S", &CLOCKS_OFF_S[number].to_string()),
                ("ONCEPAY_RECOVERY_INTERVAL_MS", "600000"),
            ],
        );
        let request = doomed.client.as_merchant(&merchant).request("POST", "/v1/charges");
        assert!(request.idempotency_key(&unfinished).json(&visa()).try_send().is_err(), "it dies");
        for other in &clients {
            let again = other.charge(&key, &visa()).expect(201);
            assert!(again.is_replay());
            assert_eq!(again.text(), first.text());
            // Its lease is as long for everybody.
            other.charge(&unfinished, &visa()).expect_problem(409, "idempotency_request_in_progress");
        }
        database.end_lease(&unfinished);
        clients[(number + 1) % clients.len()].charge(&unfinished, &visa()).expect(201);
        database.age_key(&key, 25 * 3_600);
        for other in &clients {
            other.charge(&key, &visa()).expect_problem(422, "idempotency_key_expired");
        }
    }
}
