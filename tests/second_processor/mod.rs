//! A provider that speaks another protocol than ours, to show that a provider can be replaced: only
//! [`adapter`] knows it.
//!
//! The tests below go through HTTP like any other test. The short version of the fault suite runs with
//! Crossbank, too: see `tests/faults/provider.rs`.

mod adapter;
pub mod fake;
pub mod service;

use std::time::Duration;

use oncepay::inbound::reconcile::Report;
use serde_json::{Value, json};

use crate::support::*;

pub use adapter::adapter;
use fake::{Crossbank, Message};

struct Scene {
    app: App,
    client: Client,
    merchant: Merchant,
    crossbank: Crossbank,
    // Last: the database is audited after the service has stopped.
    database: TestDatabase,
}

/// Reconciles our books with Crossbank's.
pub fn compare(crossbank: &Crossbank, database: &TestDatabase) -> Result<Report, String> {
    database.reconcile(&adapter(&crossbank.url(), Duration::from_secs(2)))
}

impl Scene {
    fn new() -> Self {
        let database = TestDatabase::new();
        let crossbank = Crossbank::start();
        let app = App::start_using(adapter(&crossbank.url(), Duration::from_secs(2)), &database, |_| {});
        let merchant = database.merchant();
        Self { client: app.client.as_merchant(&merchant), app, merchant, crossbank, database }
    }

    fn charge(&self, source: &str, capture: bool) -> Response {
        let body =
            json!({"amount": "12.50", "currency": "USD", "payment_method": source, "capture": capture});
        self.client.charge(&fresh_key(), &body)
    }

    fn post(&self, path: &str, body: &Value) -> Response {
        self.client.send("POST", path, &fresh_key(), body)
    }

    fn get(&self, path: &str) -> Value {
        self.client.get(path).expect(200).json()
    }

    fn status(&self, path: &str) -> Value {
        self.get(path)["status"].clone()
    }

    fn refund(&self, charge: &str, amount: &str) -> String {
        self.post("/v1/refunds", &json!({"charge_id": charge, "amount": amount})).expect(201).field("id")
    }

    fn payout(&self, amount: &str) -> String {
        let body = json!({"amount": amount, "currency": "USD", "destination": "ba_main"});
        self.post("/v1/payouts", &body).expect(201).field("id")
    }

    /// Returns the entries in effect at Crossbank as `verb minor currency`, in its order.
    fn effects(&self) -> Vec<String> {
        let entries = self.crossbank.entries();
        let shown = entries.iter().map(|entry| {
            let field = |name: &str| entry.form.get(name).map_or("-", String::as_str);
            format!("{} {} {}", entry.verb, field("minor"), field("currency"))
        });
        shown.collect()
    }

    fn deliver(&self, message: &Message) -> Response {
        self.app
            .client
            .request("POST", ACQUIRER_WEBHOOK)
            .header("Crossbank-Signature", &message.signature)
            .body("application/json", message.body.as_str())
            .send()
    }

    /// Delivers a message, and returns the state of its event.
    #[track_caller]
    fn tell(&self, message: &Message) -> String {
        self.deliver(message).expect(200).field("state")
    }

    /// Makes a message about one of the merchant's objects.
    fn message(&self, name: &str, order: &str, more: &Value) -> Message {
        let mut subject = json!({"account": self.merchant.id, "order": order});
        subject.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.crossbank.message(name, &subject)
    }

    fn assert_both_sides_agree(&self) {
        let report = compare(&self.crossbank, &self.database).unwrap();
        assert!(report.differences.is_empty(), "{report}");
    }
}

#[test]
fn money_moves_in_minor_units() {
    let scene = Scene::new();
    for (amount, currency) in
        [("12.50", "USD"), ("1250", "JPY"), ("1.250", "KWD"), ("999999999999.99", "EUR")]
    {
        let body = json!({"amount": amount, "currency": currency, "payment_method": "src_good"});
        let charge = scene.client.charge(&fresh_key(), &body).expect(201).json();
        assert_eq!(
            (&charge["status"], &charge["amount_captured"]),
            (&json!("succeeded"), &json!(amount)),
            "{charge}"
        );
    }
    let both =
        |minor: &str, currency: &str| ["hold", "collect"].map(|verb| format!("{verb} {minor} {currency}"));
    let expected =
        [both("1250", "usd"), both("1250", "jpy"), both("1250", "kwd"), both("99999999999999", "eur")];
    assert_eq!(scene.effects(), expected.concat());
    let bodies = scene.crossbank.bodies();
    assert!(bodies.iter().all(|body| body.starts_with("dedupe=") && body.contains("&minor=")), "{bodies:?}");
    scene.assert_both_sides_agree();
}

#[test]
fn a_charge_goes_its_way() {
    let scene = Scene::new();
    let captured = scene.charge("src_good", false).expect(201).field("id");
    assert_eq!(scene.status(&format!("/v1/charges/{captured}")), "requires_capture");
    scene.post(&format!("/v1/charges/{captured}/capture"), &json!({"amount": "10.00"})).expect(200);
    let canceled = scene.charge("src_good", false).expect(201).field("id");
    scene.post(&format!("/v1/charges/{canceled}/cancel"), &json!({})).expect(200);
    let refund = scene.refund(&captured, "2.00");
    let payout = scene.payout("1.00");
    let expected = [
        "hold 1250 usd",
        "collect 1000 usd",
        "hold 1250 usd",
        "release - -",
        "reverse 200 usd",
        "transfer 100 usd",
    ];
    assert_eq!(scene.effects(), expected);
    for (path, status) in [
        (format!("/v1/charges/{captured}"), "partially_refunded"),
        (format!("/v1/charges/{canceled}"), "canceled"),
        (format!("/v1/refunds/{refund}"), "succeeded"),
        (format!("/v1/payouts/{payout}"), "in_transit"),
    ] {
        assert_eq!(scene.status(&path), status, "{path}");
    }
    scene.assert_both_sides_agree();
}

#[test]
fn codes_of_declines_pass_through() {
    let scene = Scene::new();
    for (source, code, decline_code) in [
        ("src_stolen", "card_declined", "stolen_card"),
        ("src_poor", "insufficient_funds", "insufficient_funds"),
        ("src_unheard_of", "card_declined", "unknown_source"),
    ] {
        let problem = scene.charge(source, true).expect_problem(402, code).json();
        assert_eq!(problem["decline_code"], decline_code);
        let charge = scene.get(&format!("/v1/charges/{}", problem["charge_id"].as_str().unwrap()));
        assert_eq!(charge["failure"]["decline_code"], decline_code);
    }
    scene.assert_both_sides_agree();
}

#[test]
fn the_adapter_says_which_payment_methods_can_be_any() {
    let scene = Scene::new();
    let body = json!({"amount": 1, "currency": "USD", "payment_method": "pm_card_visa"});
    let refused = scene.client.charge("a", &body).expect_problem(422, "validation_failed");
    assert_eq!(refused.pointers(), ["/amount", "/payment_method"]);
    assert!(refused.text().contains("must be a source of Crossbank (src_…)"), "{}", refused.text());
    assert!(scene.effects().is_empty());
    // The key wasn't used up.
    let body = json!({"amount": "1.00", "currency": "USD", "payment_method": "src_good"});
    scene.client.charge("a", &body).expect(201);
}

#[test]
fn a_lost_answer_is_asked_for_and_a_failure_is_tried_again() {
    let scene = Scene::new();
    for source in ["src_silent", "src_flaky"] {
        assert_eq!(scene.charge(source, true).expect(201).json()["status"], "succeeded");
    }
    assert_eq!(scene.effects().len(), 4);
    assert!(scene.crossbank.effects().values().all(|count| *count == 1));
    scene.assert_both_sides_agree();
}

#[test]
fn the_books_are_read_page_by_page_and_what_is_missing_is_found() {
    let scene = Scene::new();
    for _ in 0..30 {
        scene.charge("src_good", true).expect(201);
    }
    scene.assert_both_sides_agree();
    // An entry that was read stays read, so the next one is forgotten before the reading.
    scene.charge("src_good", true).expect(201);
    scene.crossbank.forget_last("collect");
    let report = compare(&scene.crossbank, &scene.database).unwrap();
    let found: Vec<_> = report.differences.iter().map(|found| found.difference.as_str()).collect();
    assert_eq!(found, ["missing_at_acquirer"], "{report}");
}

#[test]
fn while_it_is_down_calls_fail_at_once() {
    let mut scene = Scene::new();
    eventually("readiness", || scene.app.client.get("/readyz").status == 200);
    scene.crossbank.stop();
    eventually("unreadiness", || scene.app.client.get("/readyz").status == 503);
    scene.charge("src_good", true).expect_problem(503, "processor_unavailable");
    scene.crossbank.start_again();
    eventually("readiness again", || scene.app.client.get("/readyz").status == 200);
    scene.charge("src_good", true).expect(201);
}

#[test]
fn a_pause_that_it_asks_for_is_passed_on_and_obeyed() {
    let scene = Scene::new();
    scene.crossbank.misbehave(fake::Faults { busy_for_s: Some(2), ..fake::Faults::default() });
    let told = scene.charge("src_good", true).expect_problem(503, "processor_unavailable");
    assert_eq!(told.header("Retry-After"), Some("2"));
    scene.crossbank.misbehave(fake::Faults::default());
    scene.charge("src_good", true).expect_problem(503, "processor_unavailable");
    assert!(scene.crossbank.bodies().is_empty(), "nobody called during the pause");
    scene.app.client.get("/readyz").expect(200);
    eventually("the end of the pause", || scene.charge("src_good", true).status == 201);
}

#[test]
fn a_charge_is_decided_by_a_message() {
    let scene = Scene::new();
    let [captured, held, declined] = [true, false, true].map(|capture| {
        let charge = scene.charge("src_later", capture).expect(201);
        assert_eq!(charge.field("status"), "processing");
        charge.field("id")
    });
    let told = scene.crossbank.decide("hold", &captured, "done", None, "hold.collected");
    assert_eq!(scene.tell(&told), "applied");
    // The same message again gets the same answer. Another message with the same content changes nothing.
    assert!(scene.deliver(&told).expect(200).is_replay());
    let again = scene.crossbank.decide("hold", &captured, "done", None, "hold.collected");
    assert_eq!(scene.tell(&again), "unchanged");
    let told = scene.crossbank.decide("hold", &held, "done", None, "hold.approved");
    assert_eq!(scene.tell(&told), "applied");
    let told = scene.crossbank.decide("hold", &declined, "denied", Some("stolen_card"), "hold.denied");
    assert_eq!(scene.tell(&told), "applied");
    for (id, status, decline_code) in [
        (&captured, "succeeded", json!(null)),
        (&held, "requires_capture", json!(null)),
        (&declined, "failed", json!("stolen_card")),
    ] {
        let charge = scene.get(&format!("/v1/charges/{id}"));
        assert_eq!((&charge["status"], &charge["failure"]["decline_code"]), (&json!(status), &decline_code));
    }
    scene.post(&format!("/v1/charges/{held}/capture"), &json!({})).expect(200);
    scene.assert_both_sides_agree();
}

#[test]
fn payouts_refunds_and_remittances_are_settled_by_messages() {
    let scene = Scene::new();
    let charge = scene.charge("src_good", true).expect(201).field("id");
    let (refund, paid, failed) = (scene.refund(&charge, "1.00"), scene.payout("2.00"), scene.payout("3.00"));
    for (verb, order, state, name) in [
        ("reverse", &refund, "returned", "reversal.bounced"),
        ("transfer", &paid, "arrived", "transfer.arrived"),
        ("transfer", &failed, "returned", "transfer.returned"),
    ] {
        assert_eq!(scene.tell(&scene.crossbank.decide(verb, order, state, None, name)), "applied", "{name}");
    }
    assert_eq!(scene.status(&format!("/v1/refunds/{refund}")), "failed");
    assert_eq!(scene.status(&format!("/v1/payouts/{paid}")), "paid");
    assert_eq!(scene.status(&format!("/v1/payouts/{failed}")), "failed");
    let remittance = format!("set_{}", uuid::Uuid::now_v7().as_simple());
    let sent = json!({"remittance": remittance, "minor": 1_000, "currency": "usd"});
    assert_eq!(scene.tell(&scene.message("remittance.sent", "-", &sent)), "applied");
    let entries = scene.get(&format!("/v1/ledger/journal-entries?source={remittance}"));
    assert_eq!(entries["data"].as_array().unwrap().len(), 1, "{entries}");
    scene.assert_both_sides_agree();
}

#[test]
fn a_dispute_is_opened_and_won() {
    let scene = Scene::new();
    let charge = scene.charge("src_good", true).expect(201).field("id");
    let case = json!({"case": "cb-1", "story": "never arrived"});
    // The end arrives before the beginning.
    assert_eq!(scene.tell(&scene.message("chargeback.dropped", &charge, &case)), "parked");
    assert_eq!(scene.tell(&scene.message("chargeback.opened", &charge, &case)), "applied");
    let dispute = scene.get("/v1/disputes")["data"][0].clone();
    assert_eq!(
        (&dispute["status"], &dispute["reason"]),
        (&json!("won"), &json!("never arrived")),
        "{dispute}"
    );
    assert_eq!(scene.status(&format!("/v1/charges/{charge}")), "succeeded");
    // An operator can replay the event, which means reading it again.
    let operator = scene.app.client.with_key(&scene.database.operator_key());
    let kept = operator.get("/v1/operator/acquirer-events?type=chargeback.opened").expect(200).json();
    let replay = format!("/v1/operator/acquirer-events/{}/replay", kept["data"][0]["id"].as_str().unwrap());
    let replayed = operator.send("POST", &replay, &fresh_key(), &json!({})).expect(200);
    assert_eq!(replayed.field("state"), "applied");
}

#[test]
fn what_crossbank_has_not_signed_is_refused() {
    let scene = Scene::new();
    let now = chrono::Utc::now().timestamp();
    let body = json!({"event": {"id": "n_real", "name": "nothing.known"}, "subject": {}});
    let nameless = json!({"event": {"name": "nothing.known"}, "subject": {}});
    let mut tampered = Message::new(&body);
    tampered.body = tampered.body.replace("known", "heard.of");
    for (message, reason) in [
        (Message::signed(&body, "another secret", now), "isn't signed by a secret"),
        (Message::signed(&body, fake::SECRET, now - 400), "five minutes"),
        (tampered, "isn't signed by a secret"),
        (Message { signature: "v1=00".to_owned(), ..Message::new(&body) }, "`crossbank-signature`"),
        (Message::new(&nameless), "`event.id`"),
    ] {
        let refused = scene.deliver(&message).expect_problem(401, "webhook_signature_invalid");
        assert!(refused.field("detail").contains(reason), "{}", refused.text());
    }
    // Crossbank doesn't accept our own format.
    scene.app.client.delivery("n_1", &body.to_string()).send().expect(401);
    assert_eq!(scene.tell(&Message::new(&body)), "unknown");

    let unreadable = scene.message("transfer.arrived", "ch_x", &json!({"account": 7}));
    let refused = scene.deliver(&unreadable).expect_problem(422, "validation_failed");
    assert_eq!(refused.pointers(), ["/subject/account", "/subject/order"]);
}
