//! A final refusal of the processor is a final answer, and nothing stays reserved for it.

use std::thread;

use diesel::connection::SimpleConnection;
use serde_json::{Value, json};

use crate::support::acquirer::Acquirer;
use crate::support::*;

/// A service with a processor over HTTP, and a merchant with a charge to act on.
struct Scene {
    app: App,
    acquirer: Acquirer,
    client: Client,
    database: TestDatabase,
}

impl Scene {
    fn start() -> Self {
        let database = TestDatabase::new();
        let acquirer = Acquirer::start(&database);
        let app = App::start_at(&acquirer, &database, |config| {
            config.processor.payment_methods = oncepay::processor::PaymentMethods::Any;
        });
        let client = app.client.as_merchant(&database.merchant());
        Self { app, acquirer, client, database }
    }

    /// Makes a charge. Returns it, and its authorization at the processor.
    fn charge(&self, capture: bool) -> (Value, String) {
        let body = json!({"amount": "20.00", "currency": "USD", "payment_method": "pm_card_visa", "capture": capture});
        let charge = self.client.charge(&fresh_key(), &body).expect(201).json();
        let authorization = self.database.text(&format!(
            "SELECT authorization_id FROM charges WHERE id = '{}'",
            uuid_of(charge["id"].as_str().unwrap())
        ));
        (charge, authorization)
    }

    /// Does something at the processor behind the service's back.
    fn at_processor(&self, authorization: &str, call: &str, amount: Option<&str>) {
        let mut body = json!({"merchant": "mer_1", "reference": "by hand"});
        if let Some(amount) = amount {
            (body["amount"], body["currency"]) = (amount.into(), "USD".into());
        }
        let path = format!("/authorizations/{authorization}/{call}");
        let (status, _, answer) = self.acquirer.post(&path, &fresh_key(), &body).unwrap();
        assert_eq!(status, 201, "{answer}");
    }

    /// Sends a request that is refused, and the same again. Returns the problem.
    #[track_caller]
    fn refused(&self, path: &str, body: &Value, status: u16, code: &str) -> Value {
        let key = fresh_key();
        let first = self.client.send("POST", path, &key, body).expect_problem(status, code);
        assert_eq!(first.json()["retryable"], false);
        let again = self.client.send("POST", path, &key, body);
        assert!(again.is_replay());
        assert_eq!(again.body, first.body);
        let known = self.client.get(&format!("/v1/idempotency-keys/{key}")).expect(200).json();
        assert_eq!((&known["status"], &known["response_status"]), (&json!("completed"), &json!(status)));
        first.json()
    }

    fn available(&self) -> Option<String> {
        self.client.available("USD")
    }

    /// The differences between both sides' books.
    fn differences(&self) -> Vec<String> {
        self.acquirer.wait_for_its_list();
        let adapter = oncepay::server::adapter::of_options(&self.acquirer.options()).unwrap();
        let report = self.database.reconcile(&adapter).unwrap();
        report.differences.iter().map(|found| format!("{} {}", found.difference, found.kind)).collect()
    }

    /// Types of the events about an object, oldest first.
    fn events(&self, object: &str) -> Vec<String> {
        let types = self.database.text(&format!(
            "SELECT coalesce(json_agg(type ORDER BY id), '[]')::text FROM events WHERE object_id = '{}'",
            uuid_of(object)
        ));
        serde_json::from_str(&types).unwrap()
    }
}

/// Changes the processor's database.
fn batch(acquirer: &Acquirer, statements: &str) {
    acquirer.as_owner().batch_execute(statements).unwrap();
}

fn uuid_of(id: &str) -> &str {
    id.rsplit_once('_').unwrap().1
}

#[test]
fn a_capture_of_what_has_lapsed_cancels_the_charge() {
    let scene = Scene::start();
    let (charge, authorization) = scene.charge(false);
    let id = charge["id"].as_str().unwrap();
    scene.at_processor(&authorization, "void", None);
    let problem =
        scene.refused(&format!("/v1/charges/{id}/capture"), &json!({}), 409, "charge_not_capturable");
    assert_eq!(problem["detail"], "A charge that is canceled can't be captured: the processor refuses.");
    let charge = scene.client.get(&format!("/v1/charges/{id}")).expect(200).json();
    assert_eq!(charge["status"], "canceled");
    assert_eq!(charge["failure"]["code"], "authorization_expired");
    assert_eq!(charge["failure"]["decline_code"], "authorization_not_open");
    assert!(charge["canceled_at"].is_string());
    assert_eq!(scene.events(id), ["charge.authorized", "charge.canceled"]);
    assert_eq!(scene.differences(), Vec::<String>::new());
}

#[test]
fn a_capture_that_is_refused_for_another_reason_leaves_the_charge_to_be_canceled() {
    let scene = Scene::start();
    // The processor holds less than our books say.
    let (charge, authorization) = scene.charge(false);
    let id = charge["id"].as_str().unwrap();
    execute(
        &mut scene.acquirer.as_owner(),
        &format!("UPDATE authorizations SET amount = 5 WHERE id = '{authorization}'"),
    );
    scene.refused(&format!("/v1/charges/{id}/capture"), &json!({}), 409, "charge_not_capturable");
    let shown = scene.client.get(&format!("/v1/charges/{id}")).expect(200).json();
    assert_eq!((&shown["status"], &shown["failure"]), (&json!("requires_capture"), &json!(null)));
    let smaller = scene.client.send(
        "POST",
        &format!("/v1/charges/{id}/capture"),
        &fresh_key(),
        &json!({"amount": "5.00"}),
    );
    assert_eq!(smaller.expect(200).json()["amount_captured"], "5.00");
    assert_eq!(scene.differences(), Vec::<String>::new());
}

#[test]
fn what_is_void_already_is_canceled_and_what_was_captured_is_not() {
    let scene = Scene::start();
    let (charge, authorization) = scene.charge(false);
    let id = charge["id"].as_str().unwrap();
    scene.at_processor(&authorization, "void", None);
    let canceled = scene
        .client
        .send("POST", &format!("/v1/charges/{id}/cancel"), &fresh_key(), &json!({}))
        .expect(200)
        .json();
    assert_eq!(canceled["status"], "canceled");
    assert_eq!(canceled["failure"]["code"], "authorization_expired");
    assert_eq!(scene.events(id), ["charge.authorized", "charge.canceled"]);
    assert_eq!(scene.differences(), Vec::<String>::new());

    let (charge, authorization) = scene.charge(false);
    let id = charge["id"].as_str().unwrap();
    scene.at_processor(&authorization, "captures", Some("20.00"));
    scene.refused(&format!("/v1/charges/{id}/cancel"), &json!({}), 409, "charge_not_cancelable");
    let shown = scene.client.get(&format!("/v1/charges/{id}")).expect(200).json();
    assert_eq!(shown["status"], "requires_capture");
}

#[test]
fn a_refund_that_is_refused_has_failed_and_its_money_is_free_again() {
    let scene = Scene::start();
    let (charge, authorization) = scene.charge(true);
    let id = charge["id"].as_str().unwrap();
    let before = scene.available();
    scene.at_processor(&authorization, "refunds", Some("15.00"));
    let body = json!({"charge_id": id, "amount": "10.00"});
    let problem = scene.refused("/v1/refunds", &body, 422, "refund_refused");
    assert_eq!(problem["refusal_code"], "amount_exceeds_captured");
    let refund = problem["refund_id"].as_str().unwrap();
    let shown = scene.client.get(&format!("/v1/refunds/{refund}")).expect(200).json();
    assert_eq!(shown["status"], "failed");
    assert_eq!(
        shown["failure"],
        json!({"code": "refund_refused", "message": "The processor refused the refund: amount_exceeds_captured."})
    );
    assert!(shown["failed_at"].is_string());
    assert_eq!(scene.events(refund), ["refund.failed"]);
    assert_eq!(scene.available(), before);
    // The rest can still be returned.
    scene
        .client
        .send("POST", "/v1/refunds", &fresh_key(), &json!({"charge_id": id, "amount": "5.00"}))
        .expect(201);
}

#[test]
fn a_payout_that_is_refused_has_failed_and_its_money_is_free_again() {
    let scene = Scene::start();
    scene.charge(true);
    let before = scene.available();
    batch(
        &scene.acquirer,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF NEW.kind = 'payout' THEN NEW.status := 'refused'; NEW.decide_at := NULL; \
                 NEW.refusal := '{\"code\": \"destination_closed\", \"message\": \"No such account.\"}'; END IF; RETURN NEW; END $$; \
         CREATE TRIGGER refuse BEFORE INSERT ON operations FOR EACH ROW EXECUTE FUNCTION refuse()",
    );
    let body = json!({"amount": "10.00", "currency": "USD", "destination": "ba_1"});
    let problem = scene.refused("/v1/payouts", &body, 422, "payout_refused");
    assert_eq!(problem["refusal_code"], "destination_closed");
    let payout = problem["payout_id"].as_str().unwrap();
    let shown = scene.client.get(&format!("/v1/payouts/{payout}")).expect(200).json();
    assert_eq!((&shown["status"], &shown["failure"]["code"]), (&json!("failed"), &json!("payout_refused")));
    assert_eq!(scene.events(payout), ["payout.failed"]);
    assert_eq!(scene.available(), before);
}

#[test]
fn a_charge_that_the_processor_refuses_is_declined() {
    let scene = Scene::start();
    let body = with_method("pm_card_of_another_processor");
    let problem = scene.refused("/v1/charges", &body, 402, "card_declined");
    assert_eq!(problem["decline_code"], "request_invalid");
    let charge = problem["charge_id"].as_str().unwrap();
    assert_eq!(scene.events(charge), ["charge.failed"]);
    assert_eq!(scene.acquirer.operations(), Vec::<Value>::new());
}

#[test]
fn a_partial_approval_is_given_back_and_declined() {
    let scene = Scene::start();
    batch(
        &scene.acquirer,
        "CREATE FUNCTION approve_less() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF NEW.kind = 'authorize' THEN NEW.amount := 5; END IF; RETURN NEW; END $$; \
         CREATE TRIGGER approve_less BEFORE INSERT ON operations FOR EACH ROW EXECUTE FUNCTION approve_less()",
    );
    for capture in [true, false] {
        let body = json!({"amount": "20.00", "currency": "USD", "payment_method": "pm_card_visa", "capture": capture});
        let problem = scene.refused("/v1/charges", &body, 402, "card_declined");
        assert_eq!(problem["decline_code"], "partial_approval");
    }
    let kinds: Vec<_> =
        scene.acquirer.operations().iter().map(|operation| operation["kind"].clone()).collect();
    assert_eq!(kinds, ["authorize", "void", "authorize", "void"]);
    assert_eq!(scene.differences(), Vec::<String>::new());
}

#[test]
fn what_only_people_can_mend_is_no_final_answer() {
    let scene = Scene::start();
    let (charge, _) = scene.charge(false);
    let wrong = App::start_at(&scene.acquirer, &scene.database, |config| {
        config.processor.api_key = Some("another key".to_owned().into());
    });
    let id = charge["id"].as_str().unwrap();
    let client = wrong.client.like(&scene.client);
    let key = fresh_key();
    let answer = client.send("POST", &format!("/v1/charges/{id}/capture"), &key, &json!({}));
    answer.expect_problem(503, "processor_unavailable");
    scene.client.send("POST", &format!("/v1/charges/{id}/capture"), &key, &json!({})).expect(200);
}

#[test]
fn an_operator_ends_what_only_a_person_can_judge() {
    let scene = Scene::start();
    let operator = scene.app.client.with_key(&scene.database.operator_key());
    let (charge, _) = scene.charge(true);
    let (authorized, _) = scene.charge(false);
    let (charge, authorized) = (charge["id"].as_str().unwrap(), authorized["id"].as_str().unwrap());
    let before = scene.available();
    scene.acquirer.control(json!({"rules": [{"fault": "error_before"}]}));
    let requests = [
        ("/v1/charges".to_owned(), visa()),
        (format!("/v1/charges/{authorized}/capture"), json!({})),
        ("/v1/refunds".to_owned(), json!({"charge_id": charge, "amount": "5.00"})),
        ("/v1/payouts".to_owned(), json!({"amount": "1.00", "currency": "USD", "destination": "ba_1"})),
        (format!("/v1/charges/{authorized}/cancel"), json!({})),
    ];
    let merchant =
        scene.database.text("SELECT 'mer_' || replace(max(merchant_id::text), '-', '') FROM charges");
    for (number, (path, body)) in requests.iter().enumerate() {
        let key = format!("stuck-{number}");
        scene.client.send("POST", path, &key, body).expect_problem(503, "processor_unavailable");
        let resolve = format!("/v1/operator/idempotency-keys/{merchant}/{key}/resolve");
        operator
            .send("POST", &resolve, &fresh_key(), &json!({"as": "paid", "reason": "x"}))
            .expect_problem(422, "validation_failed");
        operator
            .send("POST", &resolve, &fresh_key(), &json!({"as": "failed"}))
            .expect_problem(422, "validation_failed");
        let reason = json!({"as": "failed", "reason": "Nothing has happened there."});
        let ended = operator.send("POST", &resolve, &fresh_key(), &reason).expect(200).json();
        assert_eq!(
            (&ended["status"], &ended["response_status"]),
            (&json!("completed"), &json!(409)),
            "{path}"
        );
        let answer = scene.client.send("POST", path, &key, body).expect_problem(409, "request_abandoned");
        assert!(answer.is_replay());
        operator
            .send("POST", &resolve, &fresh_key(), &reason)
            .expect_problem(409, "idempotency_key_not_in_progress");
    }
    assert_eq!(scene.available(), before);
    assert_eq!(scene.database.count("SELECT count(*) FROM ledger_holds"), 0);
    assert_eq!(scene.database.count("SELECT count(*) FROM charges WHERE in_flight IS NOT NULL"), 0);
    let failures = "SELECT (SELECT failure_code FROM refunds) || ' ' || (SELECT failure_code FROM payouts)";
    assert_eq!(scene.database.text(failures), "request_abandoned request_abandoned");
    let actions = "SELECT string_agg(split_part(operator, ' (', 1) || ' ' || action || ' ' || reason, '; ') FROM \
        (SELECT DISTINCT operator, action, reason FROM operator_actions) AS actions";
    assert_eq!(
        scene.database.text(actions),
        "first key idempotency_keys.resolve Nothing has happened there."
    );
    // The money arrived after all: that contradicts, and isn't passed over.
    let payout = scene.database.text("SELECT 'po_' || replace(id::text, '-', '') FROM payouts");
    let paid = json!({
        "type": "payout.paid", "timestamp": "2026-01-31T09:00:00.000Z",
        "data": {"merchant": merchant, "reference": payout},
    });
    let told = scene.app.client.delivery(&fresh_key(), &paid.to_string()).send().expect(200);
    assert_eq!(told.field("state"), "contradicted");
    // Nothing is known of these, and an attempt that is being made isn't disturbed.
    let unknown = format!("/v1/operator/idempotency-keys/{merchant}/never-used/resolve");
    let reason = json!({"as": "failed", "reason": "x"});
    operator.send("POST", &unknown, &fresh_key(), &reason).expect_problem(404, "idempotency_key_not_found");
    scene.acquirer.control(json!({"rules": []}));
    let client = scene.client.like(&scene.client);
    let slow = thread::spawn(move || client.charge("slow", &with_method("pm_card_slow")));
    eventually("the claim", || {
        scene.database.count("SELECT count(*) FROM idempotency_keys WHERE key = 'slow'") == 1
    });
    let running = format!("/v1/operator/idempotency-keys/{merchant}/slow/resolve");
    operator
        .send("POST", &running, &fresh_key(), &reason)
        .expect_problem(409, "idempotency_request_in_progress");
    slow.join().unwrap().expect(201);
}

#[test]
fn what_the_processor_would_refuse_is_refused_at_once() {
    let scene = Scene::start();
    scene.charge(true);
    let payout = |destination: &str| json!({"amount": "1.00", "currency": "USD", "destination": destination});
    for destination in ["ba\nx", "ba\u{7f}", "ba\u{85}", "ba_o\u{308}"] {
        let answer = scene.client.send("POST", "/v1/payouts", "p", &payout(destination));
        let answer = answer.expect_problem(422, "validation_failed");
        assert_eq!(answer.pointers(), ["/destination"]);
    }
    for (field, text) in [("reference", "a\tb"), ("reference", "o\u{308}"), ("description", "a\u{7}b")] {
        let mut body = visa();
        body[field] = text.into();
        let answer = scene.client.charge("c", &body).expect_problem(422, "validation_failed");
        assert_eq!(answer.pointers(), [format!("/{field}")]);
    }
    // Nothing was stored, and the same keys can be used; the processor takes what is taken here.
    scene.client.send("POST", "/v1/payouts", "p", &payout(&"é".repeat(200))).expect(201);
    let mut body = visa();
    body["description"] = "one line\nand another".into();
    scene.client.charge("c", &body).expect(201);
}

/// Makes the processor refuse every call of these kinds, as `plan` says.
fn refuse_as_planned(acquirer: &Acquirer) {
    batch(
        acquirer,
        "CREATE TABLE plan (kind text PRIMARY KEY, refusal jsonb NOT NULL); \
         CREATE FUNCTION refuse_as_planned() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE planned jsonb; BEGIN \
             SELECT refusal INTO planned FROM plan WHERE kind = NEW.kind; \
             IF FOUND THEN NEW.status := 'refused'; NEW.decide_at := NULL; NEW.refusal := planned; END IF; \
             RETURN NEW; END $$; \
         CREATE TRIGGER refuse_as_planned BEFORE INSERT ON operations \
             FOR EACH ROW EXECUTE FUNCTION refuse_as_planned()",
    );
}

#[test]
fn every_refusal_of_every_call_has_its_final_answer() {
    let scene = Scene::start();
    refuse_as_planned(&scene.acquirer);
    let (captured, _) = scene.charge(true);
    let captured = captured["id"].as_str().unwrap();
    let before = scene.available();
    let refusals: [(&str, Option<&str>); 10] = [
        ("authorization_not_found", None),
        ("currency_mismatch", None),
        ("authorization_not_open", Some("pending")),
        ("authorization_not_open", Some("captured")),
        ("authorization_not_open", Some("voided")),
        ("authorization_not_open", Some("expired")),
        ("authorization_not_open", Some("declined")),
        ("amount_exceeds_authorization", None),
        ("amount_exceeds_captured", None),
        ("request_invalid", None),
    ];
    for (code, status) in refusals {
        let is_nothing_held =
            code == "authorization_not_found" || matches!(status, Some("voided" | "expired" | "declined"));
        let case = format!("{code} {status:?}");
        for kind in ["authorize", "capture", "void", "refund", "payout"] {
            let (held, _) = scene.charge(false);
            let held = held["id"].as_str().unwrap();
            let mut refusal = json!({"code": code, "message": "No."});
            if let Some(status) = status {
                refusal["authorization_status"] = status.into();
            }
            batch(&scene.acquirer, &format!("INSERT INTO plan VALUES ('{kind}', '{refusal}')"));
            let shown = || scene.client.get(&format!("/v1/charges/{held}")).expect(200).json();
            match kind {
                "authorize" => {
                    let problem = scene.refused("/v1/charges", &visa(), 402, "card_declined");
                    assert_eq!(problem["decline_code"], code, "{case}");
                }
                "capture" => {
                    scene.refused(
                        &format!("/v1/charges/{held}/capture"),
                        &json!({}),
                        409,
                        "charge_not_capturable",
                    );
                    let expected = if is_nothing_held { "canceled" } else { "requires_capture" };
                    assert_eq!(shown()["status"], expected, "{case}");
                }
                "void" if is_nothing_held => {
                    let path = format!("/v1/charges/{held}/cancel");
                    scene.client.send("POST", &path, &fresh_key(), &json!({})).expect(200);
                    assert_eq!(shown()["failure"]["code"], "authorization_expired", "{case}");
                }
                "void" => {
                    scene.refused(
                        &format!("/v1/charges/{held}/cancel"),
                        &json!({}),
                        409,
                        "charge_not_cancelable",
                    );
                    assert_eq!(shown()["status"], "requires_capture", "{case}");
                }
                "refund" => {
                    let body = json!({"charge_id": captured, "amount": "1.00"});
                    let problem = scene.refused("/v1/refunds", &body, 422, "refund_refused");
                    assert_eq!(problem["refusal_code"], code, "{case}");
                }
                _ => {
                    let body = json!({"amount": "1.00", "currency": "USD", "destination": "ba_1"});
                    let problem = scene.refused("/v1/payouts", &body, 422, "payout_refused");
                    assert_eq!(problem["refusal_code"], code, "{case}");
                }
            }
            batch(&scene.acquirer, "DELETE FROM plan");
        }
    }
    assert_eq!(scene.available(), before);
    assert_eq!(scene.database.count("SELECT count(*) FROM ledger_holds"), 0);
    assert_eq!(scene.database.count("SELECT count(*) FROM charges WHERE in_flight IS NOT NULL"), 0);
    assert_eq!(scene.app.client.metrics().value("oncepay_processor_available", &[]), 1.0);
}

#[test]
fn an_answer_that_is_not_about_the_call_is_not_believed() {
    let scene = Scene::start();
    batch(
        &scene.acquirer,
        "CREATE FUNCTION mix_up() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             NEW.amount := NEW.amount + 1; RETURN NEW; END $$; \
         CREATE TRIGGER mix_up BEFORE INSERT ON operations FOR EACH ROW EXECUTE FUNCTION mix_up()",
    );
    scene.client.charge("k", &visa()).expect_problem(503, "processor_unavailable");
    assert_eq!(scene.database.count("SELECT count(*) FROM charges"), 0);
    let mismatches = scene.app.client.metrics().value("oncepay_processor_mismatched_answers_total", &[]);
    assert_eq!(mismatches, 3.0, "sent once, and asked about twice");
    // The right answer, under the same key.
    batch(&scene.acquirer, "DROP TRIGGER mix_up ON operations; UPDATE operations SET amount = amount - 1");
    scene.client.charge("k", &visa()).expect(201);
}
