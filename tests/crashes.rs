//! `kill -9` at the worst moments, then a restart and a retry.

use std::collections::HashSet;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::*;

/// A journal of the sandbox that survives its process.
struct SandboxJournal(PathBuf);

impl SandboxJournal {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("oncepay-sandbox-{}", fresh_key())))
    }

    fn calls(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for SandboxJournal {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Sends the request again, as a client would, until it's no longer told to wait.
fn retry(send: impl Fn() -> Response) -> Response {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let response = send();
        if response.status != 409 {
            return response;
        }
        response.expect_problem(409, "idempotency_request_in_progress");
        assert!(Instant::now() < deadline, "it stays in progress for ever");
        thread::sleep(Duration::from_millis(50));
    }
}

/// An operation that calls the processor, and what to look at afterwards.
struct Operation {
    name: &'static str,
    /// The call of the processor that takes effect.
    call: &'static str,
    /// Makes what it needs; returns path and body.
    prepare: fn(&Client) -> (String, Value),
    /// Status of its success.
    status: u16,
    /// Available balance afterwards.
    available: Option<&'static str>,
}

/// A charge of 12.50 USD; returns its path.
fn charge(client: &Client, capture: bool) -> String {
    let mut body = visa();
    body["capture"] = json!(capture);
    let id = client.charge(&fresh_key(), &body).expect(201).field("id");
    format!("/v1/charges/{id}")
}

const OPERATIONS: [Operation; 5] = [
    Operation {
        name: "create",
        call: "authorize",
        prepare: |_| ("/v1/charges".to_owned(), visa()),
        status: 201,
        available: Some("11.84"),
    },
    Operation {
        name: "capture",
        call: "capture",
        prepare: |client| (format!("{}/capture", charge(client, false)), json!({"amount": "10.00"})),
        status: 200,
        available: Some("9.41"),
    },
    Operation {
        name: "cancel",
        call: "void",
        prepare: |client| (format!("{}/cancel", charge(client, false)), json!({})),
        status: 200,
        available: None,
    },
    Operation {
        name: "refund",
        call: "refund",
        prepare: |client| {
            let path = charge(client, true);
            let body = json!({"charge_id": path.trim_start_matches("/v1/charges/"), "amount": "2.00"});
            ("/v1/refunds".to_owned(), body)
        },
        status: 201,
        available: Some("9.84"),
    },
    Operation {
        name: "payout",
        call: "payout",
        prepare: |client| {
            charge(client, true);
            let body = json!({"amount": "2.00", "currency": "USD", "destination": "ba"});
            ("/v1/payouts".to_owned(), body)
        },
        status: 201,
        available: Some("9.84"),
    },
];

#[test]
fn every_operation_survives_a_kill_at_every_point() {
    // Point, whether the retry finds the answer rather than finishing the request, calls that the processor
    // saw.
    let points = [
        ("after_claim", false, 1),
        ("after_processor", false, 2),
        ("in_finish", false, 2),
        ("after_commit_before_response", true, 1),
    ];
    for operation in &OPERATIONS {
        for (point, replayed, calls) in points {
            let name = format!("{} {point}", operation.name);
            let database = TestDatabase::new();
            let journal = SandboxJournal::new();
            let merchant = database.merchant();
            let settings = [
                ("ONCEPAY_LEASE_MS", "700"),
                ("ONCEPAY_PROCESSOR_TIMEOUT_MS", "200"),
                ("ONCEPAY_SANDBOX_JOURNAL", journal.0.to_str().unwrap()),
            ];
            let healthy = Process::start(&database, &settings);
            let client = healthy.client.as_merchant(&merchant);
            let (path, body) = (operation.prepare)(&client);
            let (keys, seen) = (database.rows("idempotency_keys"), journal.calls().len());

            let doomed = Process::start(
                &database,
                &[&settings[..], &[("ONCEPAY_FAULT", &format!("kill:{point}"))]].concat(),
            );
            let request =
                doomed.client.as_merchant(&merchant).request("POST", &path).idempotency_key("k").json(&body);
            assert!(request.try_send().is_err(), "{name}: no answer can come");
            assert!(doomed.was_killed(), "{name}");
            assert_eq!(database.rows("idempotency_keys"), keys + 1, "{name}: the claim is there");

            let answer = retry(|| client.send("POST", &path, "k", &body)).expect(operation.status);
            assert_eq!(answer.is_replay(), replayed, "{name}");
            let replay = client.send("POST", &path, "k", &body).expect(operation.status);
            assert_eq!(replay.body, answer.body, "{name}");
            if let Some(available) = operation.available {
                assert_eq!(client.available("USD").as_deref(), Some(available), "{name}");
            }
            assert_eq!(database.rows("ledger_holds"), 0, "{name}");
            let calls_seen = journal.calls().split_off(seen);
            let effective: Vec<_> = calls_seen.iter().filter(|call| call["call"] == operation.call).collect();
            assert_eq!(effective.len(), calls, "{name}");
            let named: HashSet<_> = effective.iter().map(|call| call["key"].to_string()).collect();
            assert_eq!(named.len(), 1, "{name}: one operation for the processor");
        }
    }
}

#[test]
fn a_kill_that_holds_money_holds_it_for_its_own_retry_only() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let settings = [("ONCEPAY_LEASE_MS", "700"), ("ONCEPAY_PROCESSOR_TIMEOUT_MS", "200")];
    let healthy = Process::start(&database, &settings);
    let client = healthy.client.as_merchant(&merchant);
    charge(&client, true);
    let payout = json!({"amount": "10.00", "currency": "USD", "destination": "ba"});
    let doomed =
        Process::start(&database, &[&settings[..], &[("ONCEPAY_FAULT", "kill:after_processor")]].concat());
    let request = doomed
        .client
        .as_merchant(&merchant)
        .request("POST", "/v1/payouts")
        .idempotency_key("k")
        .json(&payout);
    assert!(request.try_send().is_err());
    assert_eq!(client.available("USD").as_deref(), Some("1.84"), "set aside");
    client.send("POST", "/v1/payouts", "other", &payout).expect_problem(422, "insufficient_balance");
    retry(|| client.send("POST", "/v1/payouts", "k", &payout)).expect(201);
    assert_eq!(client.available("USD").as_deref(), Some("1.84"));
}

#[test]
fn a_local_operation_survives_a_kill_at_every_point() {
    for (point, replayed) in [
        ("local_after_claim", false),
        ("local_before_commit", false),
        ("local_after_commit_before_response", true),
    ] {
        let database = TestDatabase::new();
        let merchant = database.merchant();
        let healthy = Process::start(&database, &[]);
        let client = healthy.client.as_merchant(&merchant);
        let path = format!("/v1/charges/{}", client.charge("create", &visa()).expect(201).field("id"));
        let patch = json!({"description": "new"});

        let doomed = Process::start(&database, &[("ONCEPAY_FAULT", &format!("kill:{point}"))]);
        let request =
            doomed.client.as_merchant(&merchant).request("PATCH", &path).idempotency_key("k").json(&patch);
        assert!(request.try_send().is_err(), "{point}: no answer can come");
        assert!(doomed.was_killed(), "{point}");
        assert_eq!(database.rows("idempotency_keys"), 1 + i64::from(replayed), "{point}");

        let answer = retry(|| client.send("PATCH", &path, "k", &patch)).expect(200);
        assert_eq!(answer.is_replay(), replayed, "{point}");
        let updates = database.count("SELECT count(*) FROM events WHERE type = 'charge.updated'");
        assert_eq!(updates, 1, "{point}");
    }
}
