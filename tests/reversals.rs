//! What was booked, and turns out otherwise: partial and reversed disputes, payouts that come back, settlements of less
//! than nothing, operators' correcting entries.

use serde_json::{Value, json};

use crate::support::*;

struct Scene {
    app: App,
    client: Client,
    operator: Client,
    merchant: Merchant,
    database: TestDatabase,
}

impl Scene {
    fn start() -> Self {
        let database = TestDatabase::new();
        let app = App::start(&database);
        let merchant = database.merchant();
        let client = app.client.as_merchant(&merchant);
        let operator = app.client.with_key(&database.operator_key());
        Self { app, client, operator, merchant, database }
    }

    /// Makes a charge of 20.00 USD, of which the merchant gets 19.12. Returns its id.
    fn charge(&self) -> String {
        let body = json!({"amount": "20.00", "currency": "USD", "payment_method": "pm_card_visa"});
        self.client.charge(&fresh_key(), &body).expect(201).field("id")
    }

    fn refund(&self, charge: &str, amount: &str) -> Response {
        self.client.send("POST", "/v1/refunds", &fresh_key(), &json!({"charge_id": charge, "amount": amount}))
    }

    fn payout(&self, amount: &str) -> String {
        let body = json!({"amount": amount, "currency": "USD", "destination": "ba_1"});
        self.client.send("POST", "/v1/payouts", &fresh_key(), &body).expect(201).field("id")
    }

    /// Delivers an event that happened in this minute. Returns its outcome.
    fn deliver(&self, kind: &str, minute: u32, data: Value) -> String {
        let mut data = data;
        data["merchant"] = self.merchant.id.to_string().into();
        let body =
            json!({"type": kind, "timestamp": format!("2026-01-31T09:{minute:02}:00.000Z"), "data": data});
        self.app.client.delivery(&fresh_key(), &body.to_string()).send().expect(200).field("state")
    }

    fn available(&self) -> String {
        self.client.available("USD").unwrap()
    }

    fn get(&self, path: &str) -> Value {
        self.client.get(path).expect(200).json()
    }

    fn entry(&self, source: &str) -> Value {
        self.get(&format!("/v1/ledger/journal-entries?source={source}"))["data"][0].clone()
    }

    fn dispute(&self, charge: &str) -> Value {
        self.get(&format!("/v1/disputes?charge_id={charge}"))["data"][0].clone()
    }
}

#[test]
fn a_dispute_is_of_the_amount_that_it_says() {
    let scene = Scene::start();
    let charge = scene.charge();
    let open = |name: &str, amount: &str| {
        scene.deliver(
            "dispute.opened",
            0,
            json!({"reference": charge, "dispute": name, "amount": amount, "currency": "USD"}),
        )
    };
    assert_eq!(open("a", "5.00"), "applied");
    assert_eq!(scene.dispute(&charge)["amount"], "5.00");
    assert_eq!(scene.available(), "14.12");
    assert_eq!(open("b", "15.01"), "contradicted", "more than is left");
    assert_eq!(open("c", "15.00"), "applied", "another part, at the same time");
    let euros = json!({"reference": charge, "dispute": "d", "amount": "1.00", "currency": "EUR"});
    assert_eq!(scene.deliver("dispute.opened", 0, euros), "contradicted");
    let won = |name: &str| scene.deliver("dispute.won", 1, json!({"reference": charge, "dispute": name}));
    assert_eq!(won("a"), "applied");
    assert_eq!(scene.get(&format!("/v1/charges/{charge}"))["status"], "disputed", "the other part still is");
    assert_eq!(won("c"), "applied");
    assert_eq!(scene.get(&format!("/v1/charges/{charge}"))["status"], "succeeded");
    assert_eq!(scene.available(), "19.12");
}

#[test]
fn a_refunded_charge_can_be_disputed_all_the_same() {
    let scene = Scene::start();
    let charge = scene.charge();
    scene.charge();
    scene.refund(&charge, "20.00").expect(201);
    let before = scene.available();
    assert_eq!(before, "18.24");
    let dispute = json!({"reference": charge, "dispute": "d"});
    assert_eq!(scene.deliver("dispute.opened", 0, dispute.clone()), "applied");
    assert_eq!(scene.available(), "-1.76", "the bank takes the money whether or not it is there");
    assert_eq!(scene.get(&format!("/v1/charges/{charge}"))["status"], "disputed");
    assert_eq!(scene.deliver("dispute.won", 1, dispute), "applied");
    assert_eq!(scene.get(&format!("/v1/charges/{charge}"))["status"], "refunded");
    assert_eq!(scene.available(), before);
}

#[test]
fn a_dispute_that_is_decided_anew_is_corrected_by_an_entry_that_names_the_first() {
    let scene = Scene::start();
    let charge = scene.charge();
    let data = json!({"reference": charge, "dispute": "d"});
    assert_eq!(scene.deliver("dispute.opened", 0, data.clone()), "applied");
    let id = scene.dispute(&charge)["id"].as_str().unwrap().to_owned();
    let states = [
        ("dispute.won", "won", "19.12", "succeeded", format!("{id}:won"), None),
        ("dispute.lost", "lost", "-0.88", "disputed", format!("{id}:lost:2"), Some(format!("{id}:won"))),
        ("dispute.won", "won", "19.12", "succeeded", format!("{id}:won:3"), Some(format!("{id}:lost:2"))),
    ];
    for (minute, (kind, status, available, charge_status, source, corrects)) in (1..).zip(states) {
        assert_eq!(scene.deliver(kind, minute, data.clone()), "applied");
        assert_eq!(scene.deliver(kind, minute, data.clone()), "unchanged");
        assert_eq!(scene.dispute(&charge)["status"], status);
        assert_eq!(scene.available(), available);
        assert_eq!(scene.get(&format!("/v1/charges/{charge}"))["status"], charge_status);
        let entry = scene.entry(&source);
        match corrects {
            None => assert_eq!(entry["correction"], json!(null)),
            Some(corrected) => assert_eq!(
                entry["correction"],
                json!({
                    "corrects": scene.entry(&corrected)["id"], "reference": "d",
                    "reason": "The dispute was decided the other way.",
                })
            ),
        }
    }
    // An operator replays what took effect and was decided anew since.
    let first = scene.operator.get("/v1/operator/acquirer-events?type=dispute.lost").expect(200).json();
    for event in first["data"].as_array().unwrap() {
        let path = format!("/v1/operator/acquirer-events/{}/replay", event["id"].as_str().unwrap());
        scene.operator.send("POST", &path, &fresh_key(), &json!({})).expect(200);
    }
    assert_eq!(scene.dispute(&charge)["status"], "won");
    // An older decision that was on its way for longer.
    assert_eq!(scene.deliver("dispute.lost", 2, data), "unchanged");
    assert_eq!(scene.dispute(&charge)["status"], "won");
}

#[test]
fn a_refund_that_came_back_after_a_lost_dispute_can_be_sent_again() {
    let scene = Scene::start();
    let charge = scene.charge();
    scene.charge();
    let refund = scene.refund(&charge, "5.00").expect(201).field("id");
    let dispute = json!({"reference": charge, "dispute": "d"});
    assert_eq!(scene.deliver("dispute.opened", 0, dispute.clone()), "applied");
    assert_eq!(scene.dispute(&charge)["amount"], "15.00");
    assert_eq!(scene.deliver("refund.failed", 1, json!({"reference": refund})), "applied");
    scene.refund(&charge, "5.00").expect_problem(409, "charge_not_refundable");
    assert_eq!(scene.deliver("dispute.lost", 2, dispute), "applied");
    scene.refund(&charge, "5.01").expect_problem(422, "refund_exceeds_captured");
    scene.refund(&charge, "5.00").expect(201);
    scene.refund(&charge, "0.01").expect_problem(409, "charge_not_refundable");
    let shown = scene.get(&format!("/v1/charges/{charge}"));
    assert_eq!((&shown["status"], &shown["amount_refunded"]), (&json!("disputed"), &json!("5.00")));
}

#[test]
fn a_dispute_that_was_decided_anew_twice_is_clean_at_each_step() {
    let scene = Scene::start();
    for decisions in [["dispute.won", "dispute.lost"], ["dispute.lost", "dispute.won"]] {
        let data = json!({"reference": scene.charge(), "dispute": decisions[0]});
        assert_eq!(scene.deliver("dispute.opened", 0, data.clone()), "applied");
        for (minute, kind) in (1..).zip(decisions) {
            assert_eq!(scene.deliver(kind, minute, data.clone()), "applied");
        }
    }
}

#[test]
fn what_an_event_tells_and_nobody_can_read_is_kept_for_people() {
    let scene = Scene::start();
    scene.charge();
    let payout = scene.payout("10.00");
    for (amount, currency) in
        [(json!(1000), json!("USD")), (json!("ten"), json!("USD")), (json!("10.00"), json!("usd"))]
    {
        let data = json!({"reference": payout, "amount": amount, "currency": currency});
        assert_eq!(scene.deliver("payout.paid", 1, data), "contradicted");
    }
    let euros = json!({"reference": payout, "currency": "EUR"});
    assert_eq!(scene.deliver("payout.paid", 1, euros), "contradicted");
    assert_eq!(scene.deliver("payout.paid", 1, json!({"reference": payout, "amount": null})), "applied");
}

#[test]
fn a_payout_that_arrived_can_come_back() {
    let scene = Scene::start();
    scene.charge();
    let payout = scene.payout("10.00");
    let data = json!({"reference": payout, "amount": "10.00", "currency": "USD"});
    assert_eq!(scene.deliver("payout.paid", 1, data.clone()), "applied");
    assert_eq!(scene.available(), "9.12");
    let other = json!({"reference": payout, "amount": "9.00", "currency": "USD"});
    assert_eq!(scene.deliver("payout.failed", 2, other), "contradicted");
    assert_eq!(scene.deliver("payout.failed", 2, data.clone()), "applied");
    let shown = scene.get(&format!("/v1/payouts/{payout}"));
    assert_eq!((&shown["status"], &shown["failure"]["code"]), (&json!("failed"), &json!("payout_returned")));
    assert_eq!(scene.available(), "19.12");
    let entry = scene.entry(&format!("{payout}:failed"));
    assert_eq!(entry["correction"]["corrects"], scene.entry(&format!("{payout}:paid"))["id"]);
    let kinds: Vec<_> =
        entry["postings"].as_array().unwrap().iter().map(|line| &line["account_kind"]).collect();
    assert_eq!(kinds, ["bank", "merchant_payable"]);
    // The notice of its arrival was overtaken.
    assert_eq!(scene.deliver("payout.paid", 1, data), "unchanged");
}

#[test]
fn a_settlement_can_be_of_less_than_nothing() {
    let scene = Scene::start();
    scene.charge();
    for (amount, sides) in
        [("-3.20", Some(("credit", "debit"))), ("0.00", None), ("12.50", Some(("debit", "credit")))]
    {
        let id = format!("set_{}", uuid::Uuid::now_v7().as_simple());
        let data = json!({"id": id, "amount": amount, "currency": "USD"});
        assert_eq!(scene.deliver("settlement.paid", 0, data.clone()), "applied");
        assert_eq!(scene.deliver("settlement.paid", 0, data.clone()), "unchanged");
        let other = json!({"id": id, "amount": "3.20", "currency": "USD"});
        assert_eq!(scene.deliver("settlement.paid", 0, other), "contradicted", "{amount}");
        let entry = scene.entry(&id);
        let of = |kind: &str| {
            let postings = entry["postings"].as_array().unwrap();
            postings.iter().find(|line| line["account_kind"] == kind).unwrap()["side"].clone()
        };
        match sides {
            Some((bank, clearing)) => {
                assert_eq!((of("bank"), of("acquirer_clearing")), (json!(bank), json!(clearing)));
            }
            None => assert_eq!(entry, json!(null)),
        }
        let events = scene.get("/v1/events?limit=1");
        assert_eq!(events["data"][0]["data"]["amount"], amount);
    }
    for amount in ["1.001", "--1", "1e3", "", "1000000000000"] {
        let id = format!("set_{}", uuid::Uuid::now_v7().as_simple());
        let data =
            json!({"id": id, "amount": amount, "currency": "USD", "merchant": scene.merchant.id.to_string()});
        let body = json!({"type": "settlement.paid", "timestamp": "2026-01-31T09:00:00.000Z", "data": data});
        let answer = scene.app.client.delivery(&fresh_key(), &body.to_string()).send();
        answer.expect_problem(422, "validation_failed");
    }
}

#[test]
fn operators_post_correcting_entries() {
    let scene = Scene::start();
    scene.charge();
    let line = |kind: &str, side: &str, amount: &str| json!({"account_kind": kind, "side": side, "amount": amount, "currency": "USD"});
    let entry = |postings: Value| {
        json!({
            "merchant_id": scene.merchant.id.to_string(), "reference": "bank letter 7",
            "reason": "The bank charged a fee.", "postings": postings,
        })
    };
    let path = "/v1/operator/journal-entries";
    let body = entry(json!([line("merchant_payable", "debit", "1.12"), line("bank", "credit", "1.12")]));
    let key = fresh_key();
    let posted = scene.operator.send("POST", path, &key, &body).expect(201);
    assert!(scene.operator.send("POST", path, &key, &body).expect(201).is_replay());
    assert_eq!(scene.available(), "18.00");
    let shown = scene.get(&format!("/v1/ledger/journal-entries/{}", posted.field("id")));
    assert_eq!(shown, posted.json());
    assert_eq!(
        shown["correction"],
        json!({"corrects": null, "reference": "bank letter 7", "reason": "The bank charged a fee."})
    );
    let refused = |body: &Value, status, code: &str| {
        scene.operator.send("POST", path, &fresh_key(), body).expect_problem(status, code)
    };
    let unbalanced =
        entry(json!([line("merchant_payable", "debit", "1.12"), line("bank", "credit", "1.13")]));
    assert_eq!(refused(&unbalanced, 422, "validation_failed").pointers(), ["/postings"]);
    let too_fine =
        entry(json!([line("merchant_payable", "debit", "1.123"), line("bank", "credit", "1.123")]));
    assert_eq!(
        refused(&too_fine, 422, "validation_failed").pointers(),
        ["/postings/0/amount", "/postings/1/amount"]
    );
    let odd = entry(json!([line("petty_cash", "left", "1.00"), line("bank", "credit", "1.00"), 7]));
    let pointers = refused(&odd, 422, "validation_failed").pointers();
    assert_eq!(pointers, ["/postings/0/account_kind", "/postings/0/side", "/postings/2"]);
    let overdrawn =
        entry(json!([line("merchant_payable", "debit", "18.01"), line("bank", "credit", "18.01")]));
    refused(&overdrawn, 422, "insufficient_balance");
    let mut unreasoned = body.clone();
    unreasoned["reason"] = "".into();
    refused(&unreasoned, 422, "validation_failed");
    let mut stranger = body.clone();
    stranger["merchant_id"] = format!("mer_{}", uuid::Uuid::now_v7().as_simple()).into();
    refused(&stranger, 404, "merchant_not_found");
    scene.client.send("POST", path, &fresh_key(), &body).expect_problem(403, "operator_key_required");
    let actions = "SELECT count(*) FROM operator_actions WHERE action = 'journal_entries.create'";
    assert_eq!(scene.database.count(actions), 1);
    // The service's role can't change why.
    let change = "UPDATE journal_corrections SET reason = 'x'";
    assert!(diesel::RunQueryDsl::execute(diesel::sql_query(change), &mut scene.database.as_app()).is_err());
    assert!(diesel::RunQueryDsl::execute(diesel::sql_query(change), &mut scene.database.as_owner()).is_err());
}

#[test]
fn of_two_notices_of_one_settlement_at_a_time_one_is_booked() {
    let scene = Scene::start();
    scene.charge();
    for amount in ["0.00", "3.00"] {
        let id = format!("set_{}", uuid::Uuid::now_v7().as_simple());
        let data = json!({"id": id, "amount": amount, "currency": "USD"});
        // Both have looked whether it's booked when the first can go on.
        let mut holder = scene.database.as_owner();
        execute(&mut holder, "BEGIN");
        execute(&mut holder, "LOCK TABLE events IN SHARE MODE");
        let mut outcomes: Vec<_> = std::thread::scope(|scope| {
            let deliver = || scene.deliver("settlement.paid", 0, data.clone());
            let both = [scope.spawn(deliver), scope.spawn(deliver)];
            eventually("both", || scene.database.lock_waits() == 2);
            execute(&mut holder, "COMMIT");
            both.into_iter().map(|one| one.join().unwrap()).collect()
        });
        outcomes.sort();
        assert_eq!(outcomes, ["applied", "unchanged"], "{amount}");
        let events = format!("SELECT count(*) FROM events WHERE data->>'id' = '{id}'");
        assert_eq!(scene.database.count(&events), 1, "{amount}");
    }
}

#[test]
fn a_late_approval_of_less_is_a_decline_unless_it_was_captured() {
    let scene = Scene::start();
    let pending = |capture: bool| {
        let body = json!({"amount": "20.00", "currency": "USD", "payment_method": "pm_card_async", "capture": capture});
        scene.client.charge(&fresh_key(), &body).expect(201).field("id")
    };
    let approve = |charge: &str| {
        let data = json!({"reference": charge, "amount": "5.00", "currency": "USD"});
        scene.deliver("charge.succeeded", 0, data)
    };
    let held = pending(false);
    assert_eq!(approve(&held), "applied");
    let charge = scene.get(&format!("/v1/charges/{held}"));
    assert_eq!((&charge["status"], &charge["amount_captured"]), (&json!("failed"), &json!("0.00")));
    assert_eq!(charge["failure"]["decline_code"], "partial_approval");
    assert_eq!(scene.get("/v1/events?limit=1")["data"][0]["type"], "charge.failed");

    let taken = pending(true);
    assert_eq!(approve(&taken), "applied");
    let charge = scene.get(&format!("/v1/charges/{taken}"));
    assert_eq!((&charge["status"], &charge["amount_captured"]), (&json!("succeeded"), &json!("5.00")));
}

#[test]
fn a_capture_at_the_processor_is_booked() {
    let scene = Scene::start();
    let held = || {
        let body =
            json!({"amount": "20.00", "currency": "USD", "payment_method": "pm_card_visa", "capture": false});
        scene.client.charge(&fresh_key(), &body).expect(201).field("id")
    };
    let captured = |charge: &str, amount: &str| {
        let data = json!({"reference": charge, "amount": amount, "currency": "USD"});
        scene.deliver("charge.captured", 0, data)
    };
    let part = held();
    assert_eq!(captured(&part, "20.01"), "contradicted", "more than was authorized");
    assert_eq!(captured(&part, "5.00"), "applied");
    assert_eq!(captured(&part, "5.00"), "unchanged");
    assert_eq!(captured(&part, "6.00"), "contradicted");
    let charge = scene.get(&format!("/v1/charges/{part}"));
    assert_eq!((&charge["status"], &charge["amount_captured"]), (&json!("succeeded"), &json!("5.00")));
    assert_eq!(scene.get("/v1/events?limit=1")["data"][0]["type"], "charge.captured");
    assert_eq!(scene.available(), "4.56");
    // What is told of a capture of ours, as a processor may that tells of all.
    let ours = scene.charge();
    assert_eq!(captured(&ours, "20.00"), "unchanged");
    // All of it, if no amount is told.
    let all = held();
    assert_eq!(scene.deliver("charge.captured", 0, json!({"reference": all})), "applied");
    assert_eq!(scene.get(&format!("/v1/charges/{all}"))["amount_captured"], "20.00");
    scene.refund(&all, "20.00").expect(201);
    // While a capture of ours is under way, it may be that one.
    let busy = held();
    execute(
        &mut scene.database.as_owner(),
        &format!(
            "UPDATE charges SET in_flight = 'capture' WHERE 'ch_' || replace(id::text, '-', '') = '{busy}'"
        ),
    );
    assert_eq!(captured(&busy, "20.00"), "parked");
    execute(&mut scene.database.as_owner(), "UPDATE charges SET in_flight = NULL");
    let canceled = held();
    scene
        .client
        .send("POST", &format!("/v1/charges/{canceled}/cancel"), &fresh_key(), &json!({}))
        .expect(200);
    assert_eq!(captured(&canceled, "20.00"), "contradicted");
}
