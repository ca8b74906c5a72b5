//! `kill -9` at every named point of every operation (see `oncepay::base::faults`). Then either the client sends its
//! request again, or it never does. In both cases what is there in the end is exactly what one undisturbed
//! request leaves, and the processor has seen one operation.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use oncepay::base::faults::{EXTERNAL_POINTS, LOCAL_POINTS};
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

/// The tables that an operation can have an effect on beside those of the resources that operations are about.
const OTHER_TABLES: &[&str] = &[
    "disputes",
    "idempotency_policy_changes",
    "journal_entries",
    "ledger_holds",
    "merchant_pricing",
    "operator_actions",
    "postings",
    "webhook_deliveries",
];

/// Who comes after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// The client, with the same request.
    Client,
    /// The recovery worker of another instance, and never the client.
    Worker,
}

/// Where an operation's crashes are tried.
struct Scene {
    // Before the database: fields are dropped in this order.
    _healthy: Process,
    database: TestDatabase,
    journal: SandboxJournal,
    settings: Vec<(&'static str, String)>,
    merchant: Client,
    operator: Client,
    merchant_key: String,
    operator_key: String,
    merchant_id: String,
}

impl Scene {
    fn new(after: After) -> Self {
        let database = TestDatabase::new();
        let journal = SandboxJournal::new();
        let interval = if after == After::Worker { "50" } else { "600000" };
        let settings = vec![
            // Not so short that an owner which is merely slow is taken for dead.
            ("ONCEPAY_LEASE_MS", "1500".to_owned()),
            ("ONCEPAY_PROCESSOR_TIMEOUT_MS", "200".to_owned()),
            ("ONCEPAY_RECOVERY_INTERVAL_MS", interval.to_owned()),
            ("ONCEPAY_RECOVERY_DELAY_MS", "50".to_owned()),
            ("ONCEPAY_SANDBOX_CALL_LOG", journal.0.to_str().unwrap().to_owned()),
        ];
        let (merchant, operator_key) = (database.merchant(), database.operator_key());
        let healthy = start(&database, &settings, None);
        Self {
            merchant: healthy.client.as_merchant(&merchant),
            operator: healthy.client.with_key(&operator_key),
            merchant_key: merchant.key,
            operator_key,
            merchant_id: merchant.id.to_string(),
            database,
            journal,
            settings,
            _healthy: healthy,
        }
    }

    /// Everything that an operation can have an effect on.
    fn effects(&self) -> Vec<String> {
        let kinds = oncepay::server::resource_kinds();
        let tables = kinds.iter().map(|kind| kind.table).chain(OTHER_TABLES.iter().copied());
        let mut effects: Vec<_> = tables.map(|table| self.database.rows(table).to_string()).collect();
        effects.push(
            self.database.count("SELECT count(*) FROM api_keys WHERE revoked_at IS NOT NULL").to_string(),
        );
        for aspect in
            ["sum(attempts) FILTER (WHERE state = 'unknown')", "count(*) FILTER (WHERE state = 'dismissed')"]
        {
            let query = format!("SELECT coalesce({aspect}, 0) FROM acquirer_events");
            effects.push(self.database.count(&query).to_string());
        }
        effects.push(
            self.database
                .count("SELECT count(*) FROM idempotency_keys WHERE key LIKE 'stuck-%' AND recoveries = 0")
                .to_string(),
        );
        for aspect in
            ["count(description)", "sum(secret_version)", "count(*) FILTER (WHERE status = 'deleted')"]
        {
            let query = format!("SELECT coalesce({aspect}, 0) FROM webhook_endpoints");
            effects.push(self.database.count(&query).to_string());
        }
        effects
    }
}

fn start(database: &TestDatabase, settings: &[(&str, String)], point: Option<&str>) -> Process {
    let fault = point.map(|point| format!("kill:{point}"));
    let mut environment: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    environment.extend(fault.as_deref().map(|fault| ("ONCEPAY_FAULT", fault)));
    Process::start(database, &environment)
}

/// What two readings of the effects differ by.
fn difference(before: &[String], after: &[String]) -> Vec<i64> {
    let number = |text: &String| text.parse::<i64>().unwrap();
    before.iter().zip(after).map(|(before, after)| number(after) - number(before)).collect()
}

/// A mutating operation.
struct Operation {
    name: &'static str,
    /// The call of the processor that takes effect, if it's one that calls it.
    call: Option<&'static str>,
    /// Makes what it needs; returns method, path and body.
    prepare: fn(&Scene) -> (&'static str, String, Value),
    /// Status of its success.
    status: u16,
}

/// A charge of 12.50 USD; returns its path.
fn charge(client: &Client, capture: bool) -> String {
    let mut body = visa();
    body["capture"] = json!(capture);
    let id = client.charge(&fresh_key(), &body).expect(201).field("id");
    format!("/v1/charges/{id}")
}

/// A request that is stuck, of the scene's merchant; returns its path among the operators'.
fn stuck(scene: &Scene) -> String {
    stuck_in(scene, "loans.create")
}

fn stuck_in(scene: &Scene, operation: &str) -> String {
    let key = format!("stuck-{}", fresh_key());
    execute(
        &mut scene.database.as_owner(),
        &format!(
            "INSERT INTO idempotency_keys (merchant_id, key, state, operation, fingerprint_version, fingerprint, request_id, \
                 request_method, request_path, request_query, request_body, claim_token, lease_expires_at, recover_at, \
                 attempts, recoveries, recovery_point, created_at, expires_at) \
             SELECT merchant_id, '{key}', 'in_progress', '{operation}', 1, sha256('x'), 'req_1', 'POST', '/v1/loans', '', \
                 '{{}}', gen_random_uuid(), now(), now(), 1, 5, 'started', now(), now() + interval '1 day' \
             FROM merchants WHERE replace(merchant_id::text, '-', '') = '{}'",
            scene.merchant_id.trim_start_matches("mer_")
        ),
    );
    format!("/v1/operator/idempotency-keys/{}/{key}", scene.merchant_id)
}

/// A webhook endpoint; returns its id.
fn endpoint(client: &Client) -> String {
    let body = json!({"url": "https://shop.example/webhooks", "event_types": ["payout.paid"]});
    client.send("POST", "/v1/webhook-endpoints", &fresh_key(), &body).expect(201).field("id")
}

const OPERATIONS: &[Operation] = &[
    Operation {
        name: "charges.create",
        call: Some("authorize"),
        prepare: |_| ("POST", "/v1/charges".to_owned(), visa()),
        status: 201,
    },
    Operation {
        name: "charges.capture",
        call: Some("capture"),
        prepare: |scene| {
            ("POST", format!("{}/capture", charge(&scene.merchant, false)), json!({"amount": "10.00"}))
        },
        status: 200,
    },
    Operation {
        name: "charges.cancel",
        call: Some("void"),
        prepare: |scene| ("POST", format!("{}/cancel", charge(&scene.merchant, false)), json!({})),
        status: 200,
    },
    Operation {
        name: "refunds.create",
        call: Some("refund"),
        prepare: |scene| {
            let path = charge(&scene.merchant, true);
            let body = json!({"charge_id": path.trim_start_matches("/v1/charges/"), "amount": "2.00"});
            ("POST", "/v1/refunds".to_owned(), body)
        },
        status: 201,
    },
    Operation {
        name: "payouts.create",
        call: Some("payout"),
        prepare: |scene| {
            charge(&scene.merchant, true);
            (
                "POST",
                "/v1/payouts".to_owned(),
                json!({"amount": "2.00", "currency": "USD", "destination": "ba"}),
            )
        },
        status: 201,
    },
    Operation {
        name: "charges.update",
        call: None,
        prepare: |scene| ("PATCH", charge(&scene.merchant, true), json!({"description": "new"})),
        status: 200,
    },
    Operation {
        name: "webhooks.acquirer",
        call: None,
        prepare: |scene| {
            let charge = charge(&scene.merchant, true);
            let reference = charge.trim_start_matches("/v1/charges/");
            let data = json!({"merchant": scene.merchant_id, "reference": reference, "dispute": fresh_key()});
            ("POST", ACQUIRER_WEBHOOK.to_owned(), json!({"type": "dispute.opened", "data": data}))
        },
        status: 200,
    },
    Operation {
        name: "acquirer_events.dismiss",
        call: None,
        prepare: |scene| {
            let event_id = fresh_key();
            let reference = format!("po_{}", uuid::Uuid::now_v7().as_simple());
            let event = json!({"type": "payout.paid", "data": {"merchant": scene.merchant_id, "reference": reference}});
            scene.merchant.send("POST", ACQUIRER_WEBHOOK, &event_id, &event).expect(200);
            let path = "/v1/operator/acquirer-events";
            let found = scene.operator.get(&format!("{path}?event_id={event_id}")).expect(200).json();
            let path = format!("{path}/{}/dismiss", found["data"][0]["id"].as_str().unwrap());
            ("POST", path, json!({"reason": "a test"}))
        },
        status: 200,
    },
    Operation {
        name: "acquirer_events.replay",
        call: None,
        prepare: |scene| {
            let event_id = fresh_key();
            let event = json!({"type": "nothing.known"});
            scene.merchant.send("POST", ACQUIRER_WEBHOOK, &event_id, &event).expect(200);
            let path = "/v1/operator/acquirer-events";
            let found = scene.operator.get(&format!("{path}?event_id={event_id}")).expect(200).json();
            ("POST", format!("{path}/{}/replay", found["data"][0]["id"].as_str().unwrap()), json!({}))
        },
        status: 200,
    },
    Operation {
        name: "api_keys.create",
        call: None,
        prepare: |_| ("POST", "/v1/api-keys".to_owned(), json!({"name": "second"})),
        status: 201,
    },
    Operation {
        name: "api_keys.revoke",
        call: None,
        prepare: |scene| {
            let key = scene.merchant.send("POST", "/v1/api-keys", &fresh_key(), &json!({"name": "spare"}));
            ("DELETE", format!("/v1/api-keys/{}", key.expect(201).field("id")), json!({}))
        },
        status: 200,
    },
    Operation {
        name: "webhook_endpoints.create",
        call: None,
        prepare: |_| {
            ("POST", "/v1/webhook-endpoints".to_owned(), json!({"url": "https://shop.example/webhooks"}))
        },
        status: 201,
    },
    Operation {
        name: "webhook_endpoints.update",
        call: None,
        prepare: |scene| {
            let path = format!("/v1/webhook-endpoints/{}", endpoint(&scene.merchant));
            ("PATCH", path, json!({"description": "new"}))
        },
        status: 200,
    },
    Operation {
        name: "webhook_endpoints.rotate_secret",
        call: None,
        prepare: |scene| {
            let path = format!("/v1/webhook-endpoints/{}/rotate-secret", endpoint(&scene.merchant));
            ("POST", path, json!({}))
        },
        status: 200,
    },
    Operation {
        name: "webhook_endpoints.delete",
        call: None,
        prepare: |scene| {
            ("DELETE", format!("/v1/webhook-endpoints/{}", endpoint(&scene.merchant)), json!({}))
        },
        status: 200,
    },
    Operation {
        name: "events.redeliver",
        call: None,
        prepare: |scene| {
            let endpoint = endpoint(&scene.merchant);
            charge(&scene.merchant, true);
            let events = scene.merchant.get("/v1/events").expect(200).json();
            let event = events["data"][0]["id"].as_str().unwrap();
            ("POST", format!("/v1/events/{event}/redeliver"), json!({"endpoint_id": endpoint}))
        },
        status: 202,
    },
    Operation {
        name: "merchants.create",
        call: None,
        prepare: |_| {
            let body = json!({"name": "Shop", "fee_rate": "0.01", "fee_fixed": "0.10"});
            ("POST", "/v1/operator/merchants".to_owned(), body)
        },
        status: 201,
    },
    Operation {
        name: "merchants.change_pricing",
        call: None,
        prepare: |scene| {
            let path = format!("/v1/operator/merchants/{}/pricing", scene.merchant_id);
            ("POST", path, json!({"fee_rate": "0.01", "fee_fixed": "0.10"}))
        },
        status: 201,
    },
    Operation {
        name: "idempotency_keys.retry",
        call: None,
        prepare: |scene| ("POST", format!("{}/retry", stuck(scene)), json!({})),
        status: 200,
    },
    Operation {
        name: "idempotency_keys.release",
        call: None,
        prepare: |scene| ("POST", format!("{}/release", stuck(scene)), json!({})),
        status: 200,
    },
    Operation {
        name: "idempotency_keys.resolve",
        call: None,
        prepare: |scene| {
            let body = json!({"as": "failed", "reason": "Nothing has happened there."});
            let path = format!("{}/resolve", stuck_in(scene, "charges.create"));
            // Otherwise the recovery worker finishes it first.
            execute(
                &mut scene.database.as_owner(),
                "UPDATE idempotency_keys SET recover_at = now() + interval '1 hour' WHERE operation = 'charges.create' AND state = 'in_progress'",
            );
            ("POST", path, body)
        },
        status: 200,
    },
    Operation {
        name: "merchants.issue_api_key",
        call: None,
        prepare: |scene| {
            let path = format!("/v1/operator/merchants/{}/api-keys", scene.merchant_id);
            ("POST", path, json!({"name": "another"}))
        },
        status: 201,
    },
    Operation {
        name: "journal_entries.create",
        call: None,
        prepare: |scene| {
            let line = |kind: &str, side: &str| json!({"account_kind": kind, "side": side, "amount": "0.01", "currency": "USD"});
            let body = json!({
                "merchant_id": scene.merchant_id, "reference": "letter 1", "reason": "The bank charged a fee.",
                "postings": [line("fee_revenue", "debit"), line("bank", "credit")],
            });
            ("POST", "/v1/operator/journal-entries".to_owned(), body)
        },
        status: 201,
    },
    Operation {
        name: "idempotency_policies.replace",
        call: None,
        prepare: |_| {
            let path = "/v1/operator/idempotency-policies/refunds.create".to_owned();
            ("PUT", path, json!({"wait_max_seconds": 7}))
        },
        status: 200,
    },
];

impl Operation {
    fn client<'a>(&self, path: &str, merchant: &'a Client, operator: &'a Client) -> &'a Client {
        if path.starts_with("/v1/operator") { operator } else { merchant }
    }

    /// Tries every crash of this operation.
    fn survive(&self, after: After) {
        let scene = Scene::new(after);
        // What a request that nothing happens to leaves behind.
        let (method, path, body) = (self.prepare)(&scene);
        let (before, balance_before) = (scene.effects(), scene.merchant.available("USD"));
        let client = self.client(&path, &scene.merchant, &scene.operator);
        client.send(method, &path, &fresh_key(), &body).expect(self.status);
        let undisturbed = difference(&before, &scene.effects());
        let moved = cents(scene.merchant.available("USD")) - cents(balance_before);

        let points = if self.call.is_some() { EXTERNAL_POINTS } else { LOCAL_POINTS };
        for point in points {
            let name = format!("{} {point} {after:?}", self.name);
            let (method, path, body) = (self.prepare)(&scene);
            let (before, balance_before) = (scene.effects(), scene.merchant.available("USD"));
            let seen = scene.journal.calls().len();
            let key = fresh_key();

            let doomed = start(&scene.database, &scene.settings, Some(point));
            let merchant = doomed.client.with_key(&scene.merchant_key);
            let operator = doomed.client.with_key(&scene.operator_key);
            let request = self.client(&path, &merchant, &operator).change(method, &path, &key, &body);
            assert!(request.try_send().is_err(), "{name}: no answer can come");
            assert!(doomed.was_killed(), "{name}");

            // A local operation that died before its commit has never begun, and a request that hasn't begun is
            // the client's business.
            let was_committed = point.ends_with("after_commit_before_response");
            let is_there = self.call.is_some() || was_committed;
            let claims = format!("SELECT count(*) FROM idempotency_keys WHERE key = '{key}'");
            assert_eq!(scene.database.count(&claims), i64::from(is_there), "{name}");

            let client = self.client(&path, &scene.merchant, &scene.operator);
            match after {
                After::Client => {
                    let answer = retry(|| client.send(method, &path, &key, &body)).expect(self.status);
                    assert_eq!(answer.is_replay(), was_committed, "{name}");
                    let replay = client.send(method, &path, &key, &body).expect(self.status);
                    assert_eq!(replay.body, answer.body, "{name}");
                }
                After::Worker if is_there => {
                    let done =
                        format!("{claims} AND state = 'completed' AND response_status = {}", self.status);
                    eventually(&name, || scene.database.count(&done) == 1);
                }
                After::Worker => {
                    assert_eq!(scene.effects(), before, "{name}: nothing is half done");
                    continue;
                }
            }
            assert_eq!(difference(&before, &scene.effects()), undisturbed, "{name}: exactly one effect");
            assert_eq!(cents(scene.merchant.available("USD")) - cents(balance_before), moved, "{name}");
            if let Some(call) = self.call {
                let calls = scene.journal.calls().split_off(seen);
                let named: HashSet<_> = calls
                    .iter()
                    .filter(|made| made["call"] == call)
                    .map(|made| made["key"].to_string())
                    .collect();
                assert_eq!(named.len(), 1, "{name}: one operation for the processor");
            }
        }
    }
}

/// A balance in cents; none is zero.
fn cents(balance: Option<String>) -> i64 {
    balance.map_or(0, |text| text.replace('.', "").parse().unwrap())
}

/// Most of the time is spent in waiting for leases to run out, so several wait together. The first take longest.
fn survive_all(after: After) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some(operation) = OPERATIONS.get(next.fetch_add(1, Ordering::Relaxed)) {
                    operation.survive(after);
                }
            });
        }
    });
}

#[test]
fn every_operation_that_dies_at_any_point_is_finished_by_its_client() {
    survive_all(After::Client);
}

#[test]
fn every_operation_that_dies_at_any_point_is_finished_without_its_client() {
    survive_all(After::Worker);
}

#[test]
fn no_operation_is_left_out_of_that() {
    let registered = oncepay::server::operations();
    for operation in &registered {
        let name = operation.descriptor.name;
        let tried = OPERATIONS.iter().find(|tried| tried.name == name);
        let tried = tried.unwrap_or_else(|| {
            panic!("{name} is never killed: add a request for it to OPERATIONS in tests/crashes.rs")
        });
        assert_eq!(tried.call.is_some(), operation.is_external(), "{name} calls the processor, or doesn't");
    }
    assert_eq!(OPERATIONS.len(), registered.len(), "OPERATIONS in tests/crashes.rs has some that are none");
}

#[test]
fn a_kill_that_holds_money_holds_it_for_its_own_retry_only() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let settings = [
        ("ONCEPAY_LEASE_MS", "700"),
        ("ONCEPAY_PROCESSOR_TIMEOUT_MS", "200"),
        ("ONCEPAY_RECOVERY_INTERVAL_MS", "600000"),
    ];
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
