//! The acquirer's events: each takes effect once, whoever sends what, how often, and in which order.

use diesel::PgConnection;
use oncepay::base::signature::Secret;
use serde_json::{Value, json};

use crate::support::acquirer::WEBHOOK_SECRET;
use crate::support::*;

struct Scene {
    app: App,
    client: Client,
    operator: Client,
    merchant: Merchant,
    // Last: it's audited when the service has stopped.
    database: TestDatabase,
}

impl Scene {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(adjust: impl FnOnce(&mut oncepay::config::Config)) -> Self {
        let database = TestDatabase::new();
        let app = App::start_with(&database, adjust);
        let merchant = database.merchant();
        let client = app.client.as_merchant(&merchant);
        let operator = app.client.with_key(&database.operator_key());
        Self { app, client, operator, merchant, database }
    }

    fn charge(&self, body: &Value) -> String {
        self.client.charge(&fresh_key(), body).expect(201).field("id")
    }

    fn payout(&self) -> String {
        let body = json!({"amount": "1.00", "currency": "USD", "destination": "ba"});
        self.client.send("POST", "/v1/payouts", &fresh_key(), &body).expect(201).field("id")
    }

    fn refund(&self, charge: &str, amount: &str) -> String {
        let body = json!({"charge_id": charge, "amount": amount});
        self.client.send("POST", "/v1/refunds", &fresh_key(), &body).expect(201).field("id")
    }

    fn event(&self, kind: &str, reference: &str) -> String {
        event(kind, json!({"merchant": self.merchant.id, "reference": reference}))
    }

    fn dispute(&self, kind: &str, charge: &str, dispute: &str) -> String {
        let data = json!({"merchant": self.merchant.id, "reference": charge, "dispute": dispute, "reason": "fraudulent"});
        event(kind, data)
    }

    /// Delivers an event, and says what has come of it.
    #[track_caller]
    fn deliver(&self, body: &str) -> String {
        self.deliver_as(&fresh_key(), body)
    }

    #[track_caller]
    fn deliver_as(&self, event_id: &str, body: &str) -> String {
        let answer = self.app.client.delivery(event_id, body).send().expect(200);
        assert_eq!(answer.field("id"), event_id);
        answer.field("state")
    }

    fn get(&self, path: &str) -> Value {
        self.client.get(path).expect(200).json()
    }

    fn status(&self, path: &str) -> String {
        self.client.get(path).expect(200).field("status")
    }

    /// Types of the events about an object, in their order.
    fn told(&self, id: &str) -> Vec<String> {
        let digits = id.split_once('_').unwrap().1;
        let list = self.database.text(&format!(
            "SELECT coalesce(string_agg(type, ' ' ORDER BY id), '') FROM events WHERE replace(object_id::text, '-', '') = '{digits}'"
        ));
        list.split_whitespace().map(str::to_owned).collect()
    }

    /// Where an event of the acquirer stands.
    fn kept(&self, event_id: &str) -> Value {
        let path = format!("/v1/operator/acquirer-events?event_id={event_id}");
        self.operator.get(&path).expect(200).json()["data"][0].clone()
    }
}

fn event(kind: &str, data: Value) -> String {
    json!({"type": kind, "timestamp": "2026-01-31T09:30:00.000Z", "data": data}).to_string()
}

#[test]
fn only_what_the_acquirer_has_signed_is_taken() {
    let next = "whsec_bmV4dCBzZWNyZXQgb2YgdGhlIGFjcXVpcmVyIDEyMzQ1Njc4";
    let scene = Scene::with(|config| {
        config.webhook_secret = Some(format!("{WEBHOOK_SECRET}, {next}").into());
    });
    let body = event("nothing.known", json!({}));
    let now = chrono::Utc::now().timestamp();
    let send = |secret: &str, event_id: &str, timestamp: i64, signed: &str, sent: &str| {
        let signature = Secret::parse(secret).unwrap().sign(event_id, timestamp, signed.as_bytes());
        let request = scene.app.client.delivery(event_id, sent).without("webhook-timestamp");
        let request = request.header("webhook-timestamp", &timestamp.to_string());
        request.without("webhook-signature").header("webhook-signature", &signature).send()
    };
    let stranger = "whsec_c3RyYW5nZXJzdHJhbmdlcnN0cmFuZ2VyMTIzNDU2Nzg=";
    for (why, answer) in [
        ("by another secret", send(stranger, "real", now, &body, &body)),
        ("another body", send(WEBHOOK_SECRET, "real", now, &body, &body.replace("known", "heard of"))),
        ("too old", send(WEBHOOK_SECRET, "real", now - 400, &body, &body)),
        ("from the future", send(WEBHOOK_SECRET, "real", now + 400, &body, &body)),
        ("no signature", scene.app.client.delivery("real", &body).without("webhook-signature").send()),
        ("no timestamp", scene.app.client.delivery("real", &body).without("webhook-timestamp").send()),
        ("no id", scene.app.client.delivery("real", &body).without("webhook-id").send()),
        ("two ids", scene.app.client.delivery("real", &body).header("webhook-id", "real").send()),
        ("another id", {
            let request = scene.app.client.delivery("real", &body).without("webhook-id");
            request.header("webhook-id", "other").send()
        }),
        ("an API key instead", {
            let request = scene.client.delivery("real", &body).without("webhook-signature");
            request.idempotency_key(&fresh_key()).send()
        }),
    ] {
        assert_eq!((answer.status, answer.code().as_str()), (401, "webhook_signature_invalid"), "{why}");
    }
    assert_eq!(scene.database.rows("idempotency_keys") + scene.database.rows("acquirer_events"), 0);
    let refused = |reason| {
        let labels = [("reason", reason)];
        scene.app.client.metrics().value("oncepay_acquirer_webhooks_refused_total", &labels)
    };
    assert_eq!((refused("forged"), refused("out_of_time"), refused("malformed")), (3.0, 2.0, 5.0));

    // The forged ones haven't used up the real one's id, and either secret will do.
    send(WEBHOOK_SECRET, "real", now - 200, &body, &body).expect(200);
    assert!(send(next, "real", now, &body, &body).expect(200).is_replay());
    assert_eq!(scene.deliver_as(&"i".repeat(255), &body), "unknown");
    for bad in ["i".repeat(256), "a b".to_owned()] {
        scene.app.client.delivery(&bad, &body).send().expect_problem(400, "idempotency_key_invalid");
    }
}

#[test]
fn without_a_secret_nothing_is_taken() {
    let scene = Scene::with(|config| config.webhook_secret = None);
    let answer = scene.app.client.delivery("e", &event("x", json!({}))).send();
    answer.expect_problem(401, "webhook_signature_invalid");
}

#[test]
fn what_can_not_be_read_is_refused_and_leaves_the_id_unused() {
    let scene = Scene::new();
    let merchant = scene.merchant.id.to_string();
    let charge = scene.charge(&visa());
    let cases = [
        ("{", 400, "json_malformed", ""),
        ("[]", 422, "validation_failed", ""),
        (r#"{"data": {}}"#, 422, "validation_failed", "/type"),
        (r#"{"type": 1}"#, 422, "validation_failed", "/type"),
        (r#"{"type": "payout.paid"}"#, 422, "validation_failed", "/data"),
        (r#"{"type": "payout.paid", "data": []}"#, 422, "validation_failed", "/data"),
        (
            r#"{"type": "payout.paid", "data": {"merchant": "x", "reference": "ch_1"}}"#,
            422,
            "validation_failed",
            "/data/merchant /data/reference",
        ),
    ];
    for (body, status, code, pointers) in cases {
        let answer = scene.app.client.delivery("e", body).send();
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{body}");
        if status == 422 {
            assert_eq!(answer.pointers().join(" "), pointers, "{body}");
        }
    }
    let without_dispute = scene.event("dispute.opened", &charge);
    let answer = scene.app.client.delivery("e", &without_dispute).send();
    assert_eq!(answer.expect_problem(422, "validation_failed").pointers(), ["/data/dispute"]);
    let settlement =
        event("settlement.paid", json!({"merchant": merchant, "id": "x", "amount": 5, "currency": "USD"}));
    let answer = scene.app.client.delivery("e", &settlement).send();
    assert_eq!(answer.expect_problem(422, "validation_failed").pointers(), ["/data/amount", "/data/id"]);
    let request = scene.app.client.delivery("e", &scene.event("payout.paid", "po_1"));
    request.without("Content-Type").send().expect_problem(415, "media_type_unsupported");
    let large = event("x", json!({"filler": "x".repeat(70_000)}));
    scene.app.client.delivery("e", &large).send().expect_problem(413, "body_too_large");
    assert_eq!(scene.database.rows("acquirer_events"), 0);
    let unreadable = [("reason", "unreadable")];
    let refused = scene.app.client.metrics().value("oncepay_acquirer_webhooks_refused_total", &unreadable);
    assert_eq!(refused, 9.0, "somebody has to know");
    assert_eq!(scene.deliver_as("e", &scene.dispute("dispute.opened", &charge, "d")), "applied");
}

#[test]
fn what_only_explains_is_taken_as_far_as_it_can_be() {
    let scene = Scene::new();
    for (number, (reason, kept)) in [
        (json!(""), Value::Null),
        (json!(7), Value::Null),
        (json!("a\u{0}b"), json!("ab")),
        (json!("x".repeat(501)), json!("x".repeat(500))),
    ]
    .into_iter()
    .enumerate()
    {
        let charge = scene.charge(&visa());
        let data = json!({"merchant": scene.merchant.id, "reference": charge, "dispute": number.to_string(), "reason": reason});
        assert_eq!(scene.deliver(&event("dispute.opened", data)), "applied", "{reason}");
        assert_eq!(scene.get("/v1/disputes")["data"][0]["reason"], kept);
    }
}

#[test]
fn a_charge_that_was_pending_is_decided() {
    let scene = Scene::new();
    let pending = with_method("pm_card_async");
    let [approved, declined] = [scene.charge(&pending), scene.charge(&pending)];
    assert_eq!(scene.deliver(&scene.event("charge.succeeded", &approved)), "applied");
    let mut failed: Value = serde_json::from_str(&scene.event("charge.failed", &declined)).unwrap();
    failed["data"]["operation"] = json!({"decline_code": "insufficient_funds", "anything": 1});
    assert_eq!(scene.deliver(&failed.to_string()), "applied");
    assert_eq!(scene.status(&format!("/v1/charges/{approved}")), "succeeded");
    assert_eq!(scene.told(&approved), ["charge.processing", "charge.succeeded"]);
    let charge = scene.get(&format!("/v1/charges/{declined}"));
    assert_eq!(
        (&charge["status"], &charge["failure"]["code"]),
        (&json!("failed"), &json!("insufficient_funds"))
    );
    assert_eq!(scene.client.available("USD").unwrap(), "11.84");

    // News that are none, and news that can't be true.
    assert_eq!(scene.deliver(&scene.event("charge.succeeded", &approved)), "unchanged");
    assert_eq!(scene.deliver(&scene.event("charge.failed", &declined)), "unchanged");
    assert_eq!(scene.deliver(&scene.event("charge.failed", &approved)), "contradicted");
    assert_eq!(scene.deliver(&scene.event("charge.succeeded", &declined)), "contradicted");
    assert_eq!(scene.client.available("USD").unwrap(), "11.84");
    let list = scene.operator.get("/v1/operator/acquirer-events?state=contradicted").expect(200).json();
    assert_eq!(list["data"].as_array().unwrap().len(), 2);
    assert_eq!(list["data"][1]["detail"], "The charge is succeeded.");
}

#[test]
fn a_refund_that_comes_back_is_undone() {
    let scene = Scene::new();
    let charge = scene.charge(&visa());
    let [part, rest] = [scene.refund(&charge, "2.50"), scene.refund(&charge, "0.50")];
    assert_eq!(scene.deliver(&scene.event("refund.failed", &part)), "applied");
    let path = format!("/v1/charges/{charge}");
    let state = |charge: &Value| (charge["status"].clone(), charge["amount_refunded"].clone());
    assert_eq!(state(&scene.get(&path)), (json!("partially_refunded"), json!("0.50")));
    assert_eq!(scene.deliver(&scene.event("refund.failed", &rest)), "applied");
    assert_eq!(state(&scene.get(&path)), (json!("succeeded"), json!("0.00")));
    assert_eq!(scene.client.available("USD").unwrap(), "11.84");
    let refund = scene.get(&format!("/v1/refunds/{part}"));
    assert_eq!(refund["status"], "failed");
    assert!(refund["failed_at"].is_string());
    assert_eq!(scene.told(&part), ["refund.succeeded", "refund.failed"]);
    assert_eq!(
        scene.told(&charge),
        [
            "charge.succeeded",
            "charge.refunded",
            "charge.refunded",
            "charge.refund_failed",
            "charge.refund_failed"
        ]
    );
    // The money can be refunded again, all of it.
    let body = json!({"charge_id": charge});
    let key = fresh_key();
    let refused = scene.client.send("POST", "/v1/refunds", &key, &body);
    refused.expect_problem(422, "insufficient_balance");
    scene.charge(&visa());
    let all = scene.client.send("POST", "/v1/refunds", &fresh_key(), &body).expect(201).field("id");
    assert_eq!(scene.status(&path), "refunded");
    assert_eq!(scene.deliver(&scene.event("refund.failed", &all)), "applied");
    assert_eq!(scene.status(&path), "succeeded");
    assert_eq!(scene.deliver(&scene.event("refund.failed", &all)), "unchanged");
}

#[test]
fn a_refund_that_comes_back_while_its_charge_is_disputed_leaves_it_so() {
    let scene = Scene::new();
    let charge = scene.charge(&visa());
    let refund = scene.refund(&charge, "2.50");
    assert_eq!(scene.deliver(&scene.dispute("dispute.opened", &charge, "d")), "applied");
    assert_eq!(scene.deliver(&scene.event("refund.failed", &refund)), "applied");
    let path = format!("/v1/charges/{charge}");
    assert_eq!(scene.status(&path), "disputed");
    assert_eq!(scene.deliver(&scene.dispute("dispute.won", &charge, "d")), "applied");
    assert_eq!(scene.status(&path), "succeeded");
    assert_eq!(scene.client.available("USD").unwrap(), "11.84");
}

#[test]
fn a_payout_arrives_or_comes_back() {
    let scene = Scene::new();
    scene.charge(&visa());
    let [paid, failed] = [scene.payout(), scene.payout()];
    assert_eq!(scene.deliver(&scene.event("payout.paid", &paid)), "applied");
    assert_eq!(scene.deliver(&scene.event("payout.failed", &failed)), "applied");
    assert_eq!(scene.status(&format!("/v1/payouts/{paid}")), "paid");
    assert_eq!(scene.status(&format!("/v1/payouts/{failed}")), "failed");
    assert_eq!(scene.client.available("USD").unwrap(), "10.84");
    assert_eq!(scene.told(&paid), ["payout.created", "payout.paid"]);
    assert_eq!(scene.deliver(&scene.event("payout.paid", &paid)), "unchanged");
}

#[test]
fn a_settlement_is_booked_once() {
    let scene = Scene::new();
    scene.charge(&visa());
    let id = format!("set_{}", uuid::Uuid::now_v7().as_simple());
    let settlement = |amount: &str| {
        let data = json!({"id": id, "merchant": scene.merchant.id, "amount": amount, "currency": "USD", "operation_count": 1});
        event("settlement.paid", data)
    };
    assert_eq!(scene.deliver(&settlement("12.50")), "applied");
    assert_eq!(scene.deliver(&settlement("12.50")), "unchanged");
    assert_eq!(scene.deliver(&settlement("12.51")), "contradicted");
    let entries = scene.get(&format!("/v1/ledger/journal-entries?source={id}"));
    let entry =
        scene.get(&format!("/v1/ledger/journal-entries/{}", entries["data"][0]["id"].as_str().unwrap()));
    let postings: Vec<_> = entry["postings"].as_array().unwrap().iter().map(|p| p["kind"].clone()).collect();
    assert_eq!(postings.len(), 2, "{entry}");
    assert_eq!(scene.told(&id), ["settlement.paid"]);
    let stranger = json!({
        "id": format!("set_{}", uuid::Uuid::now_v7().as_simple()),
        "merchant": format!("mer_{}", uuid::Uuid::now_v7().as_simple()), "amount": "1.00", "currency": "USD",
    });
    assert_eq!(scene.deliver(&event("settlement.paid", stranger)), "contradicted");
}

#[test]
fn a_charge_can_be_disputed_again() {
    let scene = Scene::new();
    let charge = scene.charge(&visa());
    for dispute in ["first", "second"] {
        assert_eq!(scene.deliver(&scene.dispute("dispute.opened", &charge, dispute)), "applied");
        assert_eq!(scene.client.available("USD").unwrap(), "-0.66");
        assert_eq!(scene.deliver(&scene.dispute("dispute.opened", &charge, dispute)), "unchanged");
        assert_eq!(scene.deliver(&scene.dispute("dispute.won", &charge, dispute)), "applied");
    }
    // The third overtakes the end of the second.
    assert_eq!(scene.deliver(&scene.dispute("dispute.opened", &charge, "third")), "applied");
    let fourth = fresh_key();
    assert_eq!(scene.deliver_as(&fourth, &scene.dispute("dispute.opened", &charge, "fourth")), "parked");
    assert_eq!(scene.deliver(&scene.dispute("dispute.won", &charge, "third")), "applied");
    eventually("the fourth dispute", || scene.kept(&fourth)["state"] == "applied");
    // Two redeliveries, and the fourth wasn't taken for one of itself.
    let labels = [("type", "dispute.opened"), ("outcome", "unchanged")];
    assert_eq!(scene.app.client.metrics().value("oncepay_acquirer_events_total", &labels), 2.0);
    assert_eq!(scene.deliver(&scene.dispute("dispute.lost", &charge, "fourth")), "applied");
    assert_eq!(scene.status(&format!("/v1/charges/{charge}")), "disputed");
    let disputes = scene.get(&format!("/v1/disputes?charge_id={charge}"));
    let statuses: Vec<_> = disputes["data"].as_array().unwrap().iter().map(|d| d["status"].clone()).collect();
    assert_eq!(statuses, ["lost", "won", "won", "won"]);
}

#[test]
fn a_dispute_is_of_one_charge() {
    let scene = Scene::new();
    let [charge, other] = [scene.charge(&visa()), scene.charge(&visa())];
    assert_eq!(scene.deliver(&scene.dispute("dispute.opened", &charge, "d")), "applied");
    for kind in ["dispute.opened", "dispute.won"] {
        let event_id = fresh_key();
        assert_eq!(scene.deliver_as(&event_id, &scene.dispute(kind, &other, "d")), "contradicted", "{kind}");
        assert_eq!(scene.kept(&event_id)["detail"], format!("The dispute is of charge {charge}."));
    }
    assert_eq!(scene.status(&format!("/v1/charges/{other}")), "succeeded");
}

#[test]
fn a_redelivery_gets_the_first_answer_whatever_it_says() {
    let scene = Scene::new();
    scene.charge(&visa());
    let payout = scene.payout();
    let paid = scene.event("payout.paid", &payout);
    let first = scene.app.client.delivery("e", &paid).send().expect(200);
    assert!(!first.is_replay());
    for body in [paid.clone(), scene.event("payout.failed", &payout), event("x", json!({}))] {
        let again = scene.app.client.delivery("e", &body).send().expect(200);
        assert!(again.is_replay());
        assert_eq!(again.body, first.body);
    }
    assert_eq!(scene.status(&format!("/v1/payouts/{payout}")), "paid");
    let metrics = scene.app.client.metrics();
    assert_eq!(metrics.decisions("webhooks.acquirer", "replayed"), 1.0);
    assert_eq!(metrics.decisions("webhooks.acquirer", "mismatch_replayed"), 2.0);

    scene.database.set_policy("webhooks.acquirer", "on_mismatch = 'reject'");
    eventually("the policy", || {
        let again = scene.app.client.delivery("e", &event("x", json!({}))).send();
        again.code() == "idempotency_key_reused"
    });
    assert_eq!(scene.database.rows("acquirer_events"), 1);
    // A merchant's key is another one, though it has the same text.
    scene.client.charge("e", &visa()).expect(201);
}

#[test]
fn where_ids_have_no_effect_the_books_still_hold() {
    let scene = Scene::new();
    scene.charge(&visa());
    let payout = scene.payout();
    for enforcement in ["observe", "off"] {
        scene.database.set_policy("webhooks.acquirer", &format!("enforcement = '{enforcement}'"));
        let paid = scene.event("payout.paid", &payout);
        eventually("the policy", || {
            scene.app.client.delivery("e", &paid).send().expect(200).header("Idempotent-Replayed").is_none()
        });
        assert_eq!(scene.deliver_as("e", &paid), "unchanged");
    }
    assert_eq!(scene.told(&payout), ["payout.created", "payout.paid"]);
}

#[test]
fn an_event_whose_handling_fails_is_as_if_it_had_not_come() {
    let scene = Scene::new();
    scene.charge(&visa());
    let payout = scene.payout();
    let superuser = &mut scene.database.as_superuser();
    execute(
        superuser,
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no luck'; END $$; ",
    );
    // At the beginning and at the end of what the event leads to.
    for table in ["payouts", "acquirer_events"] {
        execute(
            superuser,
            &format!(
                "CREATE TRIGGER fail BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION fail()"
            ),
        );
        let refused = scene.app.client.delivery("e", &scene.event("payout.paid", &payout)).send();
        refused.expect_problem(500, "internal");
        assert_eq!(scene.database.count("SELECT count(*) FROM idempotency_keys WHERE key = 'e'"), 0);
        assert_eq!(scene.database.rows("acquirer_events"), 0);
        assert_eq!(scene.status(&format!("/v1/payouts/{payout}")), "in_transit");
        execute(superuser, &format!("DROP TRIGGER fail ON {table}"));
    }
    assert_eq!(scene.deliver_as("e", &scene.event("payout.paid", &payout)), "applied");
    execute(superuser, "DROP FUNCTION fail()");
}

/// So that the first time is an increase.
#[test]
fn counts_that_are_alarms_begin_at_zero() {
    let scene = Scene::new();
    for series in [
        r#"oncepay_acquirer_events_total{outcome="contradicted",type="payout.failed"} 0"#,
        r#"oncepay_acquirer_webhooks_refused_total{reason="forged"} 0"#,
        r#"oncepay_acquirer_webhooks_refused_total{reason="unreadable"} 0"#,
    ] {
        eventually(series, || {
            scene.app.client.get("/metrics").expect(200).text().lines().any(|line| line == series)
        });
    }
}

#[test]
fn what_is_not_known_is_kept_acknowledged_and_counted() {
    let scene = Scene::new();
    let body = event("charge.smelled", json!({"depth": [1, {"two": 3}]}));
    assert_eq!(scene.deliver_as("e", &body), "unknown");
    assert_eq!(scene.kept("e")["body"], body);
    let labels = [("type", "unknown"), ("outcome", "unknown")];
    assert_eq!(scene.app.client.metrics().value("oncepay_acquirer_events_total", &labels), 1.0);
}

#[test]
fn an_end_that_comes_before_its_beginning_waits_for_it() {
    // Its beginning takes it along, so nobody has to come by.
    let scene = Scene::with(|config| config.processor_events.processor_event_interval_ms = 600_000);
    let charge = scene.charge(&visa());
    let (won, opened) = (fresh_key(), fresh_key());
    assert_eq!(scene.deliver_as(&won, &scene.dispute("dispute.won", &charge, "d")), "parked");
    assert_eq!(scene.client.available("USD").unwrap(), "11.84");
    assert_eq!(scene.kept(&won)["state"], "parked");
    assert!(scene.kept(&won)["next_attempt_at"].is_string());
    assert_eq!(scene.deliver_as(&opened, &scene.dispute("dispute.opened", &charge, "d")), "applied");
    assert_eq!(scene.kept(&won)["state"], "applied");
    assert_eq!(scene.status(&format!("/v1/charges/{charge}")), "succeeded");
    assert_eq!(scene.told(&charge), ["charge.succeeded", "charge.disputed", "charge.dispute_won"]);
    // The acquirer is told what it was told.
    let again = scene.app.client.delivery(&won, &scene.dispute("dispute.won", &charge, "d")).send();
    assert_eq!(again.field("state"), "parked");
}

/// An instance dies between the acquirer's answer and its commit, and the acquirer goes on to tell what became of it.
#[test]
fn an_event_that_overtakes_our_own_commit_waits_for_it() {
    let database = TestDatabase::new();
    let (acquirer, app) = App::start_with_acquirer(&database);
    let client = app.client.as_merchant(&database.merchant());
    client.charge(&fresh_key(), &visa()).expect(201);
    let environment = acquirer.environment();
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let environment = [&environment[..], &[("ONCEPAY_FAULT", "kill:after_processor")]].concat();
    let payout = json!({"amount": "1.00", "currency": "USD", "destination": "ba"});
    for (path, body, before, after) in [
        ("/v1/payouts", payout, "in_transit", "paid"),
        ("/v1/charges", with_method("pm_card_async"), "processing", "succeeded"),
    ] {
        let key = fresh_key();
        let dying = Process::start(&database, &environment);
        let lost =
            dying.client.like(&client).request("POST", path).idempotency_key(&key).json(&body).try_send();
        assert!(lost.is_err() && dying.was_killed());
        let parked = "SELECT count(*) FROM acquirer_events WHERE state = 'parked'";
        eventually("the event", || database.count(parked) == 1);

        database.end_lease(&key);
        let retried = client.send("POST", path, &key, &body).expect(201);
        assert!([before, after].contains(&retried.field("status").as_str()), "{}", retried.text());
        let path = format!("{path}/{}", retried.field("id"));
        eventually("what it tells", || client.get(&path).expect(200).field("status") == after);
        eventually("its end", || database.count(parked) == 0);
    }
    // The charge was captured on the other side, too, and once.
    acquirer.wait_for_its_list();
    let kinds = |wanted: &str| acquirer.operations().iter().filter(|op| op["kind"] == wanted).count();
    assert_eq!((kinds("authorize"), kinds("capture"), kinds("payout")), (2, 2, 1));
}

/// A release may understand less than the one before it.
#[test]
fn a_waiting_event_that_can_not_be_read_is_no_reason_to_refuse_its_cause() {
    let scene = Scene::with(|config| config.processor_events.processor_event_interval_ms = 600_000);
    let charge = scene.charge(&visa());
    assert_eq!(scene.deliver_as("won", &scene.dispute("dispute.won", &charge, "d")), "parked");
    execute(&mut scene.database.as_superuser(), "UPDATE acquirer_events SET body = '{}'");
    assert_eq!(scene.deliver(&scene.dispute("dispute.opened", &charge, "d")), "applied");
    assert_eq!(scene.kept("won")["state"], "parked");
}

#[test]
fn what_waits_for_too_long_is_an_alarm() {
    let scene = Scene::with(|config| config.processor_events.processor_event_overdue_after_s = 1);
    let charge = format!("ch_{}", uuid::Uuid::now_v7().as_simple());
    assert_eq!(scene.deliver_as("e", &scene.event("charge.succeeded", &charge)), "parked");
    let gauge = |name: &str| scene.app.client.metrics().value(name, &[]);
    eventually("the alarm", || gauge("oncepay_acquirer_events_overdue") == 1.0);
    assert_eq!(gauge("oncepay_acquirer_events_parked"), 1.0);
    let kept = scene.kept("e");
    assert_eq!((&kept["state"], &kept["detail"]), (&json!("parked"), &json!("There is no such charge.")));
    assert!(kept["overdue_at"].is_string());
    let report = scene.operator.get("/v1/operator/audit").expect(200).json();
    let check = report["checks"].as_array().unwrap().iter().find(|check| check["name"] == "overdue_events");
    assert_eq!(check.unwrap()["violations"], 1);
    assert_eq!(report["clean"], false);

    // Somebody finds out that it's about another environment's charge.
    let path = format!("/v1/operator/acquirer-events/{}", kept["id"].as_str().unwrap());
    let reason = json!({"reason": "a test of the acquirer's"});
    let dismiss =
        |key: &str| scene.operator.send("POST", &format!("{path}/dismiss"), key, &reason).expect(200);
    let dismissed = dismiss("key").json();
    assert_eq!((&dismissed["state"], &dismissed["overdue_at"]), (&json!("dismissed"), &Value::Null));
    assert!(dismissed["detail"].as_str().unwrap().ends_with(": a test of the acquirer's"), "{dismissed}");
    eventually("the end of the alarm", || gauge("oncepay_acquirer_events_overdue") == 0.0);
    assert_eq!(gauge("oncepay_acquirer_events_parked"), 0.0);
    assert_eq!(dismiss("another").json(), dismissed, "it's dismissed already");
    let refused = scene.operator.send("POST", &format!("{path}/dismiss"), &fresh_key(), &json!({}));
    assert_eq!(refused.expect_problem(422, "validation_failed").pointers(), ["/reason"]);
    // A replay takes it up again.
    let replay = scene.operator.send("POST", &format!("{path}/replay"), &fresh_key(), &json!({})).expect(200);
    assert_eq!(replay.field("state"), "parked");
    dismiss("for-good");
}

#[test]
fn keys_of_interventions_are_listed_with_their_event_and_unknown_kinds_without() {
    let scene = Scene::with(|_| {});
    let charge = format!("ch_{}", uuid::Uuid::now_v7().as_simple());
    assert_eq!(scene.deliver_as("e", &scene.event("charge.succeeded", &charge)), "parked");
    let id = scene.kept("e")["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/operator/acquirer-events/{id}");
    scene.operator.send("POST", &format!("{path}/replay"), "replay", &json!({})).expect(200);
    scene
        .operator
        .send("POST", &format!("{path}/dismiss"), "dismiss", &json!({"reason": "known"}))
        .expect(200);
    let resource_of = |key: &str| {
        let list = scene.operator.get("/v1/operator/idempotency-keys?status=completed").expect(200).json();
        let found = list["data"].as_array().unwrap().iter().find(|listed| listed["key"] == key).cloned();
        found.unwrap()["resource"].clone()
    };
    for key in ["replay", "dismiss"] {
        assert_eq!(resource_of(key), json!({"type": "acquirer_event", "id": id, "url": path}), "{key}");
    }
    // A later release may have made a resource that this one doesn't know, before it was rolled back.
    let unheard_of = "UPDATE idempotency_keys SET resource_type = 'loyalty_card' WHERE key = 'replay'";
    // Past the guard of completed keys.
    scene.database.unguarded(unheard_of);
    assert_eq!(resource_of("replay"), Value::Null);
}

#[test]
fn an_event_that_can_not_even_be_tried_is_an_alarm_and_does_not_keep_others_waiting() {
    let scene = Scene::with(|config| config.processor_events.processor_event_overdue_after_s = 1);
    for statement in [
        "CREATE FUNCTION collide() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RAISE 'collision' USING ERRCODE = 'serialization_failure'; END $$",
        "CREATE TRIGGER collide BEFORE UPDATE OF attempts ON acquirer_events FOR EACH ROW \
             WHEN (new.event_id = 'stuck') EXECUTE FUNCTION collide()",
    ] {
        execute(&mut scene.database.as_superuser(), statement);
    }
    for event_id in ["stuck", "other"] {
        let body = scene.event("payout.paid", &format!("po_{}", uuid::Uuid::now_v7().as_simple()));
        assert_eq!(scene.deliver_as(event_id, &body), "parked");
    }
    let attempts = |event_id| scene.kept(event_id)["attempts"].as_i64().unwrap();
    eventually("the other's turn", || attempts("other") > 1);
    assert_eq!(attempts("stuck"), 1);
    eventually("the alarm", || scene.kept("stuck")["overdue_at"].is_string());
    // The audit would call it unclean.
    execute(&mut scene.database.as_superuser(), "DELETE FROM acquirer_events");
}

#[test]
fn only_what_has_come_to_no_end_can_be_dismissed() {
    let scene = Scene::new();
    let charge = scene.charge(&visa());
    let payout = scene.payout();
    assert_eq!(scene.deliver_as("applied", &scene.event("payout.paid", &payout)), "applied");
    assert_eq!(scene.deliver_as("contradicted", &scene.event("charge.failed", &charge)), "contradicted");
    let contradicted = || scene.app.client.metrics().value("oncepay_acquirer_events_contradicted", &[]);
    eventually("the alarm", || contradicted() == 1.0);
    for (event_id, state) in [("applied", "applied"), ("contradicted", "dismissed")] {
        let path =
            format!("/v1/operator/acquirer-events/{}/dismiss", scene.kept(event_id)["id"].as_str().unwrap());
        let answer =
            scene.operator.send("POST", &path, &fresh_key(), &json!({"reason": "we know"})).expect(200);
        assert_eq!((answer.field("state").as_str(), &answer.json()["attempts"]), (state, &json!(1)));
    }
    eventually("its end", || contradicted() == 0.0);
    let unheard = "/v1/operator/acquirer-events/ae_1/dismiss";
    let refused = scene.operator.send("POST", unheard, &fresh_key(), &json!({"reason": "x"}));
    refused.expect_problem(404, "acquirer_event_not_found");
}

#[test]
fn an_operator_replays_what_has_failed_before() {
    let scene = Scene::with(|config| config.processor_events.processor_event_interval_ms = 600_000);
    scene.charge(&visa());
    let payout = scene.payout();
    // As if a release that had a bug had taken it for something else.
    assert_eq!(scene.deliver_as("e", &scene.event("payout.paid", &payout)), "applied");
    execute(&mut scene.database.as_superuser(), "UPDATE acquirer_events SET state = 'unknown'");
    scene.database.unguarded(
        "UPDATE payouts SET status = 'in_transit', settled_at = NULL; DELETE FROM events WHERE type = 'payout.paid'",
    );
    let entry = format!("source = '{payout}:paid'");
    scene.database.unguarded(&format!(
        "DELETE FROM postings WHERE entry_id IN (SELECT id FROM journal_entries WHERE {entry}); \
         DELETE FROM journal_entries WHERE {entry}"
    ));
    let path = format!("/v1/operator/acquirer-events/{}", scene.kept("e")["id"].as_str().unwrap());
    assert_eq!(scene.operator.get(&path).expect(200).json(), scene.kept("e"));

    let replay =
        |key: &str| scene.operator.send("POST", &format!("{path}/replay"), key, &json!({})).expect(200);
    let replayed = replay("first");
    assert_eq!((replayed.field("state").as_str(), &replayed.json()["attempts"]), ("applied", &json!(2)));
    assert_eq!(scene.status(&format!("/v1/payouts/{payout}")), "paid");
    assert!(replay("first").is_replay());
    assert_eq!(replay("second").json()["state"], "applied", "it was, and isn't again");
    assert_eq!(scene.told(&payout), ["payout.created", "payout.paid"]);
    let unheard = "/v1/operator/acquirer-events/ae_1";
    scene.operator.get(unheard).expect_problem(404, "acquirer_event_not_found");
    let refused = scene.operator.send("POST", &format!("{unheard}/replay"), &fresh_key(), &json!({}));
    refused.expect_problem(404, "acquirer_event_not_found");
    scene.client.get(&path).expect_problem(403, "operator_key_required");
}

#[test]
fn events_are_listed_by_what_they_have_come_to() {
    let scene = Scene::new();
    scene.charge(&visa());
    for number in 0..3 {
        scene.deliver_as(&format!("known-{number}"), &scene.event("payout.paid", &scene.payout()));
        scene.deliver_as(&format!("unknown-{number}"), &event("x", json!({})));
    }
    let list = |query: &str| -> Vec<String> {
        let page = scene.operator.get(&format!("/v1/operator/acquirer-events{query}")).expect(200).json();
        let ids = page["data"].as_array().unwrap().iter().map(|event| event["event_id"].as_str().unwrap());
        ids.map(str::to_owned).collect()
    };
    assert_eq!(list("").len(), 6);
    assert_eq!(list("?state=applied"), ["known-2", "known-1", "known-0"]);
    assert_eq!(list("?type=x&limit=1"), ["unknown-2"]);
    let cursor = scene.kept("unknown-2")["id"].as_str().unwrap().to_owned();
    assert_eq!(list(&format!("?type=x&starting_after={cursor}")), ["unknown-1", "unknown-0"]);
    let refused = scene.operator.get("/v1/operator/acquirer-events?state=done");
    assert_eq!(refused.expect_problem(422, "validation_failed").pointers(), ["/state"]);
}

#[test]
fn old_events_are_deleted_and_young_and_parked_ones_are_not() {
    let scene = Scene::new();
    scene.charge(&visa());
    for event_id in ["old", "young"] {
        scene.deliver_as(event_id, &scene.event("payout.paid", &scene.payout()));
    }
    let charge = format!("ch_{}", uuid::Uuid::now_v7().as_simple());
    scene.deliver_as("parked", &scene.event("charge.succeeded", &charge));
    let app = &mut scene.database.as_app();
    let age = "UPDATE acquirer_events SET id = uuid_v7(now() - interval '31 days'), received_at = now() - interval '31 days' \
               WHERE event_id IN ('old', 'parked')";
    execute(&mut scene.database.as_superuser(), age);
    let prune =
        |conn: &mut PgConnection| execute(conn, "SELECT acquirer_events_prune(interval '30 days', 100)");
    prune(app);
    let left = "SELECT string_agg(event_id, ' ' ORDER BY event_id) FROM acquirer_events";
    assert_eq!(scene.database.text(left), "parked young");
    for forbidden in ["SELECT acquirer_events_prune(interval '1 hour', 100)", "DELETE FROM acquirer_events"] {
        assert!(diesel::RunQueryDsl::execute(diesel::sql_query(forbidden), app).is_err(), "{forbidden}");
    }
    execute(&mut scene.database.as_superuser(), "DELETE FROM acquirer_events");
}
