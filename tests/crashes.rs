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

#[test]
fn a_charge_survives_a_kill_at_every_point() {
    // Point, whether the retry finds the answer rather than finishing the request, authorizations that
    // the processor saw.
    for (point, replayed, calls) in [
        ("after_claim", false, 1),
        ("after_processor", false, 2),
        ("in_finish", false, 2),
        ("after_commit", true, 1),
    ] {
        let database = TestDatabase::new();
        let journal = SandboxJournal::new();
        let merchant = database.merchant();
        let settings = [
            ("ONCEPAY_LEASE_MS", "700"),
            ("ONCEPAY_PROCESSOR_TIMEOUT_MS", "200"),
            ("ONCEPAY_SANDBOX_JOURNAL", journal.0.to_str().unwrap()),
        ];

        let doomed = Process::start(&database, &[&settings[..], &[("ONCEPAY_CRASH_AT", point)]].concat());
        let request = doomed
            .client
            .as_merchant(&merchant)
            .request("POST", "/v1/charges")
            .idempotency_key("k")
            .json(&visa());
        assert!(request.try_send().is_err(), "{point}: no answer can come");
        assert!(doomed.was_killed(), "{point}");
        assert_eq!(database.rows("idempotency_keys"), 1, "{point}: the claim is there");

        let restarted = Process::start(&database, &settings);
        let client = restarted.client.as_merchant(&merchant);
        let answer = retry(|| client.charge("k", &visa())).expect(201);
        assert_eq!(answer.is_replay(), replayed, "{point}");
        assert_eq!(client.charge("k", &visa()).expect(201).body, answer.body, "{point}");

        assert_eq!(database.rows("charges"), 1, "{point}");
        assert_eq!(database.rows("journal_entries"), 1, "{point}");
        assert_eq!(client.available("USD").as_deref(), Some("11.84"), "{point}");
        let authorizations: Vec<_> =
            journal.calls().into_iter().filter(|call| call["call"] == "authorize").collect();
        assert_eq!(authorizations.len(), calls, "{point}");
        let operations: HashSet<_> = authorizations.iter().map(|call| call["key"].to_string()).collect();
        assert_eq!(operations.len(), 1, "{point}: one operation for the processor");
    }
}

#[test]
fn a_local_operation_survives_a_kill_at_every_point() {
    for (point, replayed) in
        [("local_after_claim", false), ("local_before_commit", false), ("local_after_commit", true)]
    {
        let database = TestDatabase::new();
        let merchant = database.merchant();
        let healthy = Process::start(&database, &[]);
        let client = healthy.client.as_merchant(&merchant);
        let path = format!("/v1/charges/{}", client.charge("create", &visa()).expect(201).field("id"));
        let patch = json!({"description": "new"});

        let doomed = Process::start(&database, &[("ONCEPAY_CRASH_AT", point)]);
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
