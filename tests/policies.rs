//! The policies: published, changed by operators, followed by all instances, and what each setting does.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::*;

const PATH: &str = "/v1/operator/idempotency-policies/charges.create";

struct Scene {
    app: App,
    database: TestDatabase,
    client: Client,
    operator: Client,
}

impl Scene {
    fn new() -> Self {
        let database = TestDatabase::new();
        let app = App::start(&database);
        let client = app.client.as_merchant(&database.merchant());
        let operator = app.client.with_key(&database.operator_key());
        Self { database, app, client, operator }
    }

    /// Changes the policy of `charges.create` and waits until this instance follows it.
    fn change(&self, changes: Value) -> Value {
        let changed = self.operator.send("PUT", PATH, &fresh_key(), &changes).expect(200).json();
        eventually("the policy", || {
            let current = self.app.policy();
            changes.as_object().unwrap().iter().all(|(name, value)| current[name] == *value)
        });
        changed
    }

    fn charges(&self) -> i64 {
        self.database.rows("charges")
    }

    fn decisions(&self, outcome: &str) -> f64 {
        self.app.client.metrics().decisions("charges.create", outcome)
    }
}

#[test]
fn policies_are_published_with_one_row_per_operation() {
    let scene = Scene::new();
    let list = scene.client.get("/v1/idempotency-policies").expect(200).json();
    let names: Vec<_> =
        list["data"].as_array().unwrap().iter().map(|row| row["operation"].as_str().unwrap()).collect();
    let mut registered: Vec<_> =
        oncepay::server::operations().iter().map(|operation| operation.descriptor.name).collect();
    registered.sort_unstable();
    assert_eq!(names, registered);
    let create = &list["data"][names.iter().position(|name| *name == "charges.create").unwrap()];
    assert_eq!(
        *create,
        json!({
            "operation": "charges.create", "enforcement": "enforce", "rollout_percent": 100, "ttl_seconds": 86_400,
            "tombstone_seconds": 2_592_000, "on_mismatch": "reject", "fingerprint": "canonical_json",
            "on_expired": "reject", "wait_max_seconds": 30, "rate_per_second": 0, "burst": 0, "concurrency_max": 0,
            "on_suspected_duplicate": "report",
            "suspicion_window_seconds": 600,
        })
    );
    let operators = scene.operator.get("/v1/operator/idempotency-policies").expect(200).json();
    assert_eq!(operators, list);
    assert_eq!(scene.operator.get(PATH).expect(200).json(), *create);
    scene.operator.get("/v1/operator/idempotency-policies/x").expect_problem(404, "operation_not_found");
    scene.client.get(PATH).expect_problem(403, "operator_key_required");
}

#[test]
fn a_change_is_in_force_on_every_instance_within_two_seconds_and_is_kept() {
    let scene = Scene::new();
    let other = App::start(&scene.database);
    let published = |app: &App| app.policy()["ttl_seconds"].clone();
    assert_eq!((published(&scene.app), published(&other)), (json!(86_400), json!(86_400)));
    let changed = scene.operator.send("PUT", PATH, "k", &json!({"ttl_seconds": 3600})).expect(200);
    assert_eq!(changed.json()["ttl_seconds"], 3600);
    assert_eq!(changed.json()["wait_max_seconds"], 30, "what was left out stays");
    let started = Instant::now();
    eventually("the new policy", || published(&scene.app) == 3600 && published(&other) == 3600);
    assert!(started.elapsed() < Duration::from_secs(2));

    // The change itself is idempotent.
    let replay = scene.operator.send("PUT", PATH, "k", &json!({"ttl_seconds": 3600})).expect(200);
    assert!(replay.is_replay());
    // What was read can be written back.
    let whole = scene.operator.get(PATH).expect(200).json();
    scene.operator.send("PUT", PATH, "whole", &whole).expect(200);
    scene.database.set_policy("charges.create", "ttl_seconds = 7200");
    eventually("psql's policy", || published(&scene.app) == 7200 && published(&other) == 7200);

    let changes = scene.operator.get(&format!("{PATH}/changes")).expect(200).json();
    let changes = changes["data"].as_array().unwrap();
    let figures: Vec<_> = changes
        .iter()
        .map(|change| (change["before"]["ttl_seconds"].clone(), change["after"]["ttl_seconds"].clone()))
        .collect();
    let expected = [(3600, 7200), (3600, 3600), (86_400, 3600)].map(|(b, a)| (json!(b), json!(a)));
    assert_eq!(figures, expected, "newest first");
    assert_eq!(changes[0]["changed_by"], "test");
    let by = changes[2]["changed_by"].as_str().unwrap();
    assert!(by.starts_with("first key ("), "{by}");
    let age = chrono::Utc::now()
        - chrono::DateTime::parse_from_rfc3339(changes[2]["changed_at"].as_str().unwrap()).unwrap().to_utc();
    assert!(age.num_seconds().abs() < 60);
    for statement in [
        "UPDATE idempotency_policy_changes SET changed_by = 'x'",
        "DELETE FROM idempotency_policy_changes",
        "DELETE FROM idempotency_policies",
    ] {
        let error = diesel::RunQueryDsl::execute(diesel::sql_query(statement), &mut scene.database.as_app());
        assert!(error.unwrap_err().to_string().contains("permission denied"), "{statement}");
    }
}

#[test]
fn bad_values_are_refused_whole() {
    let scene = Scene::new();
    let before = scene.operator.get(PATH).expect(200).json();
    let bad = json!({
        "enforcement": "maybe", "rollout_percent": 101, "ttl_seconds": 59, "tombstone_seconds": -1,
        "on_mismatch": "ignore", "fingerprint": 1, "on_expired": null, "wait_max_seconds": 31,
        "on_suspected_duplicate": "", "suspicion_window_seconds": 1.5, "operation": "refunds.create", "ttl": 60,
        "rate_per_second": 100_001, "burst": -1, "concurrency_max": "many",
    });
    let refused = scene.operator.send("PUT", PATH, "k", &bad).expect_problem(422, "validation_failed");
    assert_eq!(refused.pointers().len(), 15, "{:?}", refused.pointers());
    for (name, value) in bad.as_object().unwrap() {
        let mut body = json!({"wait_max_seconds": 5});
        body[name] = value.clone();
        let refused = scene.operator.send("PUT", PATH, "k", &body).expect_problem(422, "validation_failed");
        assert_eq!(refused.pointers(), [format!("/{name}")]);
    }
    assert_eq!(scene.operator.get(PATH).expect(200).json(), before);
    for (name, value) in [
        ("ttl_seconds", json!(60)),
        ("ttl_seconds", json!(2_592_000)),
        ("wait_max_seconds", json!(0)),
        ("rollout_percent", json!(0)),
    ] {
        scene.operator.send("PUT", PATH, &fresh_key(), &json!({name: value})).expect(200);
    }
    let unknown = "/v1/operator/idempotency-policies/charges.destroy";
    scene.operator.send("PUT", unknown, "k", &json!({})).expect_problem(404, "operation_not_found");
}

#[test]
fn on_mismatch_replay_gives_the_first_answer_for_the_same_path_only() {
    let scene = Scene::new();
    let (first, second) =
        (scene.client.charge("a", &visa()).expect(201), scene.client.charge("b", &visa()).expect(201));
    scene.change(json!({"on_mismatch": "replay"}));
    let mut other = visa();
    other["amount"] = json!("99.00");
    let replay = scene.client.charge("a", &other).expect(201);
    assert!(replay.is_replay());
    assert_eq!(replay.body, first.body);
    assert_eq!(scene.decisions("mismatch_replayed"), 1.0);
    // Of another operation, or another charge, the answer would be a lie.
    scene.database.set_policy("charges.update", "on_mismatch = 'replay'");
    std::thread::sleep(Duration::from_millis(500));
    let path = |charge: &Response| format!("/v1/charges/{}", charge.field("id"));
    let patch = |path: &str, key: &str| scene.client.send("PATCH", path, key, &json!({"description": "x"}));
    patch(&path(&first), "a").expect_problem(422, "idempotency_key_reused");
    patch(&path(&first), "p").expect(200);
    patch(&path(&second), "p").expect_problem(422, "idempotency_key_reused");
    // What isn't finished isn't carried on by another request.
    scene.client.charge("t", &with_method("pm_card_timeout")).expect_problem(503, "processor_unavailable");
    scene.client.charge("t", &visa()).expect_problem(409, "idempotency_request_in_progress");
    scene.client.charge("t", &with_method("pm_card_timeout")).expect(201);
}

#[test]
fn raw_body_fingerprints_tell_spellings_apart_and_old_keys_keep_theirs() {
    let scene = Scene::new();
    let spellings = [
        r#"{"amount":"12.50","currency":"USD","payment_method":"pm_card_visa"}"#,
        r#"{"currency":"USD", "amount":"12.50", "payment_method":"pm_card_visa"}"#,
    ];
    let send = |key: &str, text: &str| {
        scene.client.request("POST", "/v1/charges").idempotency_key(key).body("application/json", text).send()
    };
    send("canonical", spellings[0]).expect(201);
    scene.change(json!({"fingerprint": "raw_body"}));
    send("raw", spellings[0]).expect(201);
    assert!(send("raw", spellings[0]).expect(201).is_replay());
    send("raw", spellings[1]).expect_problem(422, "idempotency_key_reused");
    assert!(send("canonical", spellings[1]).expect(201).is_replay(), "claimed under the old policy");
    scene.change(json!({"fingerprint": "canonical_json"}));
    send("raw", spellings[1]).expect_problem(422, "idempotency_key_reused");
}

#[test]
fn observe_executes_everything_and_counts_what_it_would_have_done() {
    let scene = Scene::new();
    scene.change(json!({"enforcement": "observe"}));
    let first = scene.client.charge("k", &visa()).expect(201);
    for header in ["Idempotency-Key", "Idempotent-Replayed", "Idempotency-Expires"] {
        assert_eq!(first.header(header), None, "nobody may take himself for protected");
    }
    let again = scene.client.charge("k", &visa()).expect(201);
    assert_ne!(again.field("id"), first.field("id"));
    scene.client.charge("k", &with_method("pm_card_slow")).expect(201);
    let bare = scene.client.request("POST", "/v1/charges").json(&visa());
    bare.send().expect(201);
    bare.clone().idempotency_key("a b").send().expect(201);
    scene.client.charge("t", &with_method("pm_card_timeout")).expect_problem(503, "outcome_unknown");
    // As if another instance were at it.
    execute(
        &mut scene.database.as_owner(),
        "UPDATE idempotency_keys SET lease_expires_at = statement_timestamp() + interval '1 hour' WHERE key = 't'",
    );
    let unprotected = scene.client.charge("t", &with_method("pm_card_timeout"));
    let unprotected = unprotected.expect_problem(503, "outcome_unknown");
    assert_eq!(unprotected.json()["retryable"], false, "a retry would be another payment");
    assert_eq!(unprotected.header("Retry-After"), None);
    scene.database.end_lease("t");
    assert_eq!(scene.charges(), 5);
    for (outcome, count) in [
        ("observed_would_replay", 1.0),
        ("observed_would_mismatch", 1.0),
        ("observed_would_conflict", 1.0),
        ("observed_missing_key", 1.0),
        ("observed_invalid_key", 1.0),
        ("executed", 5.0),
        ("replayed", 0.0),
    ] {
        assert_eq!(scene.decisions(outcome), count, "{outcome}");
    }
    // What was executed while observing is protected as soon as that is enforced.
    scene.change(json!({"enforcement": "enforce"}));
    assert_eq!(scene.client.charge("k", &visa()).expect(201).body, first.body);
    scene.client.charge("t", &with_method("pm_card_timeout")).expect(201);
    scene
        .client
        .request("POST", "/v1/charges")
        .json(&visa())
        .send()
        .expect_problem(400, "idempotency_key_missing");
}

/// With recovery at work, too, what failed under observation is one payment, as long as the key is the same.
#[test]
fn a_retry_after_a_lost_answer_resumes_while_observing() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| {
        config.recovery_interval_ms = 20;
        config.recovery_delay_ms = 300;
    });
    let client = app.client.as_merchant(&database.merchant());
    client.get("/v1/idempotency-policies").expect(200);
    database.set_policy("charges.create", "enforcement = 'observe'");
    eventually("the policy", || {
        client.charge(&fresh_key(), &visa()).expect(201).header("Idempotency-Key").is_none()
    });
    let charges = database.rows("charges");
    client.charge("k", &with_method("pm_card_timeout")).expect_problem(503, "outcome_unknown");
    client.charge("k", &with_method("pm_card_timeout")).expect(201);
    std::thread::sleep(Duration::from_millis(1_000));
    assert_eq!(database.rows("charges"), charges + 1);
    // What has no key at all is finished once, by the service.
    let bare = client.request("POST", "/v1/charges").json(&with_method("pm_card_timeout"));
    bare.send().expect_problem(503, "outcome_unknown");
    eventually("the recovery", || database.rows("charges") == charges + 2);
    let lifetime = "SELECT max(extract(epoch FROM expires_at - completed_at)) FROM idempotency_keys WHERE key LIKE 'unkeyed-%'";
    assert_eq!(database.count(lifetime), 60, "nobody will ask for it again");
}

#[test]
fn off_executes_everything_and_counts_nothing() {
    let scene = Scene::new();
    scene.client.charge("before", &visa()).expect(201);
    scene.change(json!({"enforcement": "off"}));
    scene.client.charge("before", &visa()).expect(201);
    scene.client.charge("k", &visa()).expect(201);
    scene.client.charge("k", &visa()).expect(201);
    scene.client.request("POST", "/v1/charges").json(&visa()).send().expect(201);
    assert_eq!(scene.charges(), 5);
    assert!(!scene.app.client.metrics().0.contains("outcome=\"observed"), "nothing is observed");
    scene.client.get("/v1/idempotency-keys/k").expect_problem(404, "idempotency_key_not_found");
    scene.change(json!({"enforcement": "enforce"}));
    assert!(scene.client.charge("before", &visa()).expect(201).is_replay());
}

#[test]
fn a_local_operation_can_be_observed_and_switched_off_too() {
    let scene = Scene::new();
    let path = format!("/v1/charges/{}", scene.client.charge("c", &visa()).expect(201).field("id"));
    let patch = |key: &str| scene.client.send("PATCH", &path, key, &json!({"description": "x"}));
    for enforcement in ["observe", "off"] {
        scene.database.set_policy("charges.update", &format!("enforcement = '{enforcement}'"));
        eventually("the policy", || {
            let published = scene.app.client.get("/openapi.json").expect(200).json();
            published["paths"]["/v1/charges/{id}"]["patch"]["x-idempotency"]["policy"]["enforcement"]
                == enforcement
        });
        let events = scene.database.rows("events");
        patch(enforcement).expect(200);
        patch(enforcement).expect(200);
        scene.client.request("PATCH", &path).json(&json!({"description": "x"})).send().expect(200);
        assert_eq!(scene.database.rows("events"), events + 3, "{enforcement}");
    }
    assert_eq!(scene.app.client.metrics().decisions("charges.update", "observed_would_replay"), 1.0);
}

#[test]
fn a_rollout_enforces_for_its_share_and_widening_it_drops_nobody() {
    let scene = Scene::new();
    let merchants: Vec<_> =
        (0..30).map(|_| scene.app.client.as_merchant(&scene.database.merchant())).collect();
    let enforced = || -> Vec<bool> {
        merchants
            .iter()
            .map(|client| {
                client.charge(&fresh_key(), &visa()).expect(201).header("Idempotency-Key").is_some()
            })
            .collect()
    };
    scene.change(json!({"rollout_percent": 0}));
    assert!(enforced().iter().all(|enforced| !enforced));
    let mut before = vec![false; merchants.len()];
    for percent in [10, 50, 90, 100] {
        scene.change(json!({"rollout_percent": percent}));
        let now = enforced();
        assert!(before.iter().zip(&now).all(|(before, now)| *now || !before), "{percent} % dropped one");
        assert_eq!(now, enforced(), "the same each time");
        before = now;
    }
    assert!(before.iter().all(|enforced| *enforced));
}

#[test]
fn requests_beyond_the_rate_are_refused_before_their_claim_and_may_be_sent_again() {
    let scene = Scene::new();
    scene.change(json!({"rate_per_second": 1, "burst": 2}));
    let first = scene.client.charge("k0", &visa()).expect(201);
    assert_eq!(first.header("RateLimit-Policy"), Some("\"charges.create:rate\";q=2;w=2"));
    assert_eq!(first.header("RateLimit"), Some("\"charges.create:rate\";r=1;t=1"));
    // A slow machine gets another one per second.
    let (key, refused) = (1..50)
        .map(|n| (format!("k{n}"), scene.client.charge(&format!("k{n}"), &visa())))
        .find(|(_, answer)| answer.status != 201)
        .expect("one is refused");
    let refused = refused.expect_problem(429, "rate_limited");
    assert_eq!(refused.json()["retryable"], true);
    assert_eq!(refused.header("Retry-After"), Some("1"));
    assert_eq!(refused.header("RateLimit-Policy"), Some("\"charges.create:rate\";q=2;w=2"));
    assert_eq!(refused.header("RateLimit"), Some("\"charges.create:rate\";r=0;t=1"));
    let stored = format!("SELECT count(*) FROM idempotency_keys WHERE key = '{key}'");
    assert_eq!(scene.database.count(&stored), 0, "it was claimed");
    let labels = [("operation", "charges.create"), ("limited", "rate")];
    assert!(scene.app.client.metrics().value("oncepay_rate_limited_total", &labels) >= 1.0);

    // It's a limit of one merchant and of one operation.
    let other = scene.app.client.as_merchant(&scene.database.merchant());
    other.charge("k", &visa()).expect(201);
    let path = format!("/v1/charges/{}", first.field("id"));
    let patch = scene.client.send("PATCH", &path, "p", &json!({"description": "x"})).expect(200);
    assert_eq!(patch.header("RateLimit"), None);
    eventually("the next token", || scene.client.charge(&key, &visa()).status == 201);
    assert!(scene.client.get(&format!("/v1/idempotency-keys/{key}")).expect(200).json()["attempts"] == 1);
    scene.change(json!({"rate_per_second": 0}));
    assert_eq!(scene.client.charge("free", &visa()).expect(201).header("RateLimit"), None);
}

#[test]
fn retries_of_answered_requests_count_a_tenth() {
    let scene = Scene::new();
    scene.change(json!({"rate_per_second": 1, "burst": 5}));
    scene.client.charge("k", &visa()).expect(201);
    let mut other = visa();
    other["amount"] = json!("99.00");
    for _ in 0..15 {
        assert!(scene.client.charge("k", &visa()).expect(201).is_replay());
        // Nor does a mistake of the client execute anything.
        scene.client.charge("k", &other).expect_problem(422, "idempotency_key_reused");
    }
}

#[test]
fn whatever_a_request_finds_under_its_key_it_counts_a_tenth_unless_it_is_executed() {
    let scene = Scene::new();
    let unfinished = with_method("pm_card_timeout");
    scene.client.charge("unfinished", &unfinished).expect_problem(503, "processor_unavailable");
    execute(
        &mut scene.database.as_owner(),
        "UPDATE idempotency_keys SET lease_expires_at = statement_timestamp() + interval '1 hour'",
    );
    for key in ["expired", "k"] {
        scene.client.charge(key, &visa()).expect(201);
    }
    scene.database.age_key("expired", 25 * 60 * 60);
    let limit = json!({"rate_per_second": 1, "burst": 5});
    let requests =
        || scene.decisions("in_progress") + scene.decisions("expired") + scene.decisions("mismatch_replayed");
    scene.change(limit);
    for _ in 0..20 {
        scene.client.charge("unfinished", &unfinished).expect_problem(409, "idempotency_request_in_progress");
        scene.client.charge("expired", &visa()).expect_problem(422, "idempotency_key_expired");
    }
    // Another rate, and so another burst.
    scene.change(json!({"burst": 4, "on_mismatch": "replay"}));
    for _ in 0..20 {
        assert!(scene.client.charge("k", &with_method("pm_card_slow")).expect(201).is_replay());
    }
    assert_eq!(requests(), 60.0);
}

#[test]
fn requests_at_the_same_time_are_limited_until_one_ends() {
    let scene = Scene::new();
    scene.change(json!({"concurrency_max": 1}));
    let slow = {
        let client = scene.client.clone();
        std::thread::spawn(move || client.charge("slow", &with_method("pm_card_slow")))
    };
    let claimed = "SELECT count(*) FROM idempotency_keys WHERE key = 'slow'";
    eventually("the claim", || scene.database.count(claimed) == 1);
    let refused = scene.client.charge("k", &visa()).expect_problem(429, "rate_limited");
    assert!(refused.field("detail").contains("at the same time"), "{}", refused.text());
    assert_eq!(refused.header("Retry-After"), Some("1"));
    let policy = "\"charges.create:concurrency\";q=1;qu=\"concurrent-requests\"";
    assert_eq!(refused.header("RateLimit-Policy"), Some(policy));
    assert_eq!(refused.header("RateLimit"), Some("\"charges.create:concurrency\";r=0"));
    let other = scene.app.client.as_merchant(&scene.database.merchant());
    other.charge("k", &visa()).expect(201);
    slow.join().unwrap().expect(201);
    scene.client.charge("k", &visa()).expect(201);
}
