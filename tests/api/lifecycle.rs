//! What happens to a charge after it was made: captures, cancellations, refunds, disputes; and payouts.

use chrono::Utc;
use diesel::RunQueryDsl;
use oncepay::base::ids::ChargeId;
use oncepay::payments::charges::{self, ChargeStatus, Decision};
use oncepay::payments::disputes::{self, Verdict};
use oncepay::payments::notice::NoticeEffect;
use oncepay::payments::payouts;
use oncepay::processor::Decline;
use serde_json::{Value, json};

use crate::support::*;

struct Scene {
    database: TestDatabase,
    merchant: Merchant,
    app: App,
    client: Client,
}

impl Scene {
    fn new() -> Self {
        let database = TestDatabase::new();
        let app = App::start(&database);
        let merchant = database.merchant();
        Self { client: app.client.as_merchant(&merchant), database, merchant, app }
    }

    /// A charge of 12.50 USD, of which 11.84 are the merchant's once it's captured.
    fn charge(&self, capture: bool) -> String {
        let mut body = visa();
        body["capture"] = json!(capture);
        self.client.charge(&fresh_key(), &body).expect(201).field("id")
    }

    fn post(&self, path: &str, body: Value) -> Response {
        self.client.send("POST", path, &fresh_key(), &body)
    }

    fn refund(&self, charge: &str, amount: &str) -> Response {
        self.post("/v1/refunds", json!({"charge_id": charge, "amount": amount}))
    }

    fn payout(&self, amount: &str) -> Response {
        self.post("/v1/payouts", json!({"amount": amount, "currency": "USD", "destination": "ba_main"}))
    }

    fn get_charge(&self, id: &str) -> Value {
        self.client.get(&format!("/v1/charges/{id}")).expect(200).json()
    }

    fn usd(&self) -> Value {
        let balances = self.client.get("/v1/balance").expect(200).json();
        balances["balances"].as_array().unwrap().iter().find(|b| b["currency"] == "USD").unwrap().clone()
    }

    fn calls(&self, name: &str) -> usize {
        self.app.sandbox.calls().iter().filter(|call| call.call == name).count()
    }
}

#[test]
fn a_capture_takes_all_or_part_once() {
    let scene = Scene::new();
    let whole = scene.charge(false);
    let path = format!("/v1/charges/{whole}/capture");
    let request = scene.client.request("POST", &path).idempotency_key("c");
    // No body, an empty object and a null mean the same to us; the key remembers which of them it was.
    let captured = request.send().expect(200);
    assert_eq!(captured.json()["status"], "succeeded");
    assert_eq!(captured.json()["amount_captured"], "12.50");
    assert_eq!(captured.json()["fee"], "0.66");
    let replay = request.send().expect(200);
    assert!(replay.is_replay());
    assert_eq!(replay.body, captured.body);
    scene.post(&path, json!({})).expect_problem(409, "charge_not_capturable");

    let part = scene.charge(false);
    let captured =
        scene.post(&format!("/v1/charges/{part}/capture"), json!({"amount": "10.00"})).expect(200).json();
    assert_eq!((&captured["amount"], &captured["amount_captured"]), (&json!("12.50"), &json!("10.00")));
    assert_eq!(captured["fee"], "0.59");
    assert_eq!(scene.usd()["available"], "21.25", "11.84 and 9.41");
    assert_eq!(scene.usd()["pending"], "0.00");
    assert_eq!(scene.calls("capture"), 2);
}

#[test]
fn a_capture_that_cannot_be_is_refused_for_good() {
    let scene = Scene::new();
    let charge = scene.charge(false);
    let path = format!("/v1/charges/{charge}/capture");
    let too_much = json!({"amount": "12.51"});
    let refused = scene.client.send("POST", &path, "k", &too_much);
    refused.expect_problem(422, "capture_exceeds_authorization");
    assert!(scene.client.send("POST", &path, "k", &too_much).is_replay());
    scene.post(&path, json!({"amount": "1.005"})).expect_problem(422, "validation_failed");
    scene.post("/v1/charges/ch_1/capture", json!({})).expect_problem(404, "charge_not_found");
    for method in ["pm_card_visa", "pm_card_declined", "pm_card_async"] {
        let response = scene.client.charge(method, &with_method(method));
        let id = response
            .json()
            .get("charge_id")
            .or(response.json().get("id"))
            .unwrap()
            .as_str()
            .unwrap()
            .to_owned();
        let capture = scene.post(&format!("/v1/charges/{id}/capture"), json!({}));
        capture.expect_problem(409, "charge_not_capturable");
        scene
            .post(&format!("/v1/charges/{id}/cancel"), json!({}))
            .expect_problem(409, "charge_not_cancelable");
    }
    assert_eq!(scene.calls("capture"), 1, "only the charge that captures at once");
    assert_eq!(scene.get_charge(&charge)["status"], "requires_capture");
}

#[test]
fn a_cancellation_releases_the_money() {
    let scene = Scene::new();
    let charge = scene.charge(false);
    assert_eq!(scene.usd()["pending"], "12.50");
    let canceled = scene.post(&format!("/v1/charges/{charge}/cancel"), json!({})).expect(200).json();
    assert_eq!(canceled["status"], "canceled");
    assert!(canceled["canceled_at"].is_string());
    assert_eq!(scene.calls("void"), 1);
    scene
        .post(&format!("/v1/charges/{charge}/cancel"), json!({}))
        .expect_problem(409, "charge_not_cancelable");
    scene
        .post(&format!("/v1/charges/{charge}/capture"), json!({}))
        .expect_problem(409, "charge_not_capturable");
    let other = scene.charge(false);
    assert_eq!(scene.usd()["pending"], "12.50");
    scene
        .post(&format!("/v1/charges/{other}/cancel"), json!({"reason": "x"}))
        .expect_problem(422, "validation_failed");
}

#[test]
fn refunds_return_part_after_part_and_never_more() {
    let scene = Scene::new();
    scene.charge(true);
    let charge = scene.charge(true);
    let key = fresh_key();
    let body =
        json!({"charge_id": charge, "amount": "5.00", "reason": "Returned item", "metadata": {"a": "1"}});
    let first = scene.client.send("POST", "/v1/refunds", &key, &body).expect(201);
    let refund = first.json();
    let path = format!("/v1/refunds/{}", first.field("id"));
    assert_eq!(first.header("Location"), Some(path.as_str()));
    assert_eq!(refund["status"], "succeeded");
    assert_eq!((&refund["amount"], &refund["currency"]), (&json!("5.00"), &json!("USD")));
    assert_eq!(scene.client.get(&path).expect(200).json(), refund);
    let replay = scene.client.send("POST", "/v1/refunds", &key, &body).expect(201);
    assert!(replay.is_replay() && replay.body == first.body);
    let state = scene.get_charge(&charge);
    assert_eq!((&state["status"], &state["amount_refunded"]), (&json!("partially_refunded"), &json!("5.00")));
    assert_eq!(scene.usd()["available"], "18.68");

    let refused = scene.refund(&charge, "7.51").expect_problem(422, "refund_exceeds_captured");
    assert!(refused.field("detail").contains("7.50 USD"), "{}", refused.text());
    scene.refund(&charge, "1.005").expect_problem(422, "validation_failed");
    let rest = scene.post("/v1/refunds", json!({"charge_id": charge})).expect(201).json();
    assert_eq!(rest["amount"], "7.50");
    let state = scene.get_charge(&charge);
    assert_eq!((&state["status"], &state["amount_refunded"]), (&json!("refunded"), &json!("12.50")));
    assert_eq!(state["fee"], "0.66", "the fee isn't returned");
    scene.refund(&charge, "0.01").expect_problem(409, "charge_not_refundable");
    let held = scene.charge(false);
    scene.refund(&held, "1.00").expect_problem(409, "charge_not_refundable");
    scene.refund("ch_1", "1.00").expect_problem(404, "charge_not_found");
    assert_eq!(scene.calls("refund"), 2);
}

#[test]
fn a_refund_needs_the_balance_and_leaves_it_alone_when_refused() {
    let scene = Scene::new();
    let charge = scene.charge(true);
    // The fee is gone, so the balance doesn't cover the whole.
    scene.refund(&charge, "12.50").expect_problem(422, "insufficient_balance");
    assert_eq!(scene.usd()["available"], "11.84");
    scene.payout("10.00").expect(201);
    scene.refund(&charge, "1.85").expect_problem(422, "insufficient_balance");
    assert_eq!(scene.usd()["available"], "1.84");
    scene.refund(&charge, "1.84").expect(201);
    assert_eq!(scene.usd()["available"], "0.00");
    assert_eq!(scene.database.rows("ledger_holds"), 0);
    assert_eq!(scene.calls("refund"), 1);
}

#[test]
fn a_payout_moves_the_balance_and_settles_later() {
    let scene = Scene::new();
    scene.payout("0.01").expect_problem(422, "insufficient_balance");
    scene.charge(true);
    scene.payout("11.85").expect_problem(422, "insufficient_balance");
    let response = scene.payout("5.00").expect(201);
    let payout = response.json();
    assert_eq!(payout["status"], "in_transit");
    assert_eq!(
        scene.usd(),
        json!({"currency": "USD", "available": "6.84", "pending": "0.00", "in_transit": "5.00"})
    );
    let path = format!("/v1/payouts/{}", response.field("id"));
    assert_eq!(scene.client.get(&path).expect(200).json(), payout);

    let failing = scene.payout("6.84").expect(201).field("id");
    let conn = &mut scene.database.as_app();
    let merchant = scene.merchant.id;
    let settle = |conn: &mut diesel::PgConnection, id: &str, settlement: payouts::Outcome| {
        payouts::settle(conn, merchant, id.parse().unwrap(), settlement.into(), Utc::now()).unwrap()
            == NoticeEffect::Applied
    };
    assert!(settle(conn, &response.field("id"), payouts::Outcome::Paid));
    assert!(settle(conn, &failing, payouts::Outcome::Failed));
    for settlement in [payouts::Outcome::Paid, payouts::Outcome::Failed] {
        assert!(!settle(conn, &failing, settlement), "it's settled");
    }
    assert_eq!(scene.client.get(&path).json()["status"], "paid");
    assert!(scene.client.get(&path).json()["settled_at"].is_string());
    assert_eq!(
        scene.usd(),
        json!({"currency": "USD", "available": "6.84", "pending": "0.00", "in_transit": "0.00"})
    );
    let bad = json!({"amount": "1", "currency": "USD"});
    assert_eq!(
        scene.post("/v1/payouts", bad).expect_problem(422, "validation_failed").pointers(),
        ["/destination"]
    );
}

#[test]
fn an_asynchronous_charge_is_processing_until_the_processor_tells() {
    let scene = Scene::new();
    let conn = &mut scene.database.as_app();
    let merchant = scene.merchant.id;
    let create = |capture: bool| -> ChargeId {
        let mut body = with_method("pm_card_async");
        body["capture"] = json!(capture);
        let charge = scene.client.charge(&fresh_key(), &body).expect(201);
        assert_eq!(charge.json()["status"], "processing");
        charge.field("id").parse().unwrap()
    };
    let [captured, held, declined] = [create(true), create(false), create(true)];
    assert_eq!(scene.usd()["pending"], "37.50");
    assert_eq!(scene.calls("capture"), 0);
    let settle = |conn: &mut diesel::PgConnection, id, settlement| {
        charges::settle(conn, merchant, id, settlement, Utc::now()).unwrap() == NoticeEffect::Applied
    };
    assert!(settle(conn, captured, Decision::Approved(None)));
    assert!(settle(conn, held, Decision::Approved(None)));
    assert!(settle(conn, declined, Decision::Declined(Decline::insufficient_funds())));
    for id in [captured, held, declined] {
        assert!(!settle(conn, id, Decision::Approved(None)), "it's settled");
    }
    let status = |id: ChargeId| scene.get_charge(&id.to_string())["status"].clone();
    assert_eq!(
        [status(captured), status(held), status(declined)],
        ["succeeded", "requires_capture", "failed"]
    );
    assert_eq!(scene.get_charge(&declined.to_string())["failure"]["code"], "insufficient_funds");
    assert_eq!(scene.usd()["available"], "11.84");
    scene.post(&format!("/v1/charges/{held}/capture"), json!({})).expect(200);
}

#[test]
fn a_dispute_takes_the_money_and_gives_it_back_when_won() {
    let scene = Scene::new();
    let conn = &mut scene.database.as_app();
    let merchant = scene.merchant.id;
    let [won, lost] = [scene.charge(true), scene.charge(true)];
    scene.refund(&won, "2.50").expect(201);
    scene.payout("20.00").expect(201);
    let mut open = |charge: &str, name: &str| {
        let reason = Some("fraudulent".to_owned());
        disputes::open(
            conn,
            merchant,
            charge.parse().unwrap(),
            disputes::Opening { dispute: name, amount: None, reason },
            Utc::now(),
        )
        .unwrap()
    };
    assert_eq!(open(&won, "a"), NoticeEffect::Applied);
    assert_eq!(open(&won, "a"), NoticeEffect::AlreadyApplied);
    assert!(matches!(open(&won, "b"), NoticeEffect::TooEarly(_)), "it's disputed already");
    assert_eq!(open(&lost, "c"), NoticeEffect::Applied);
    let of = |charge: &str| {
        let page = scene.client.get(&format!("/v1/disputes?charge_id={charge}")).expect(200).json();
        page["data"][0].clone()
    };
    let dispute = of(&won);
    assert_eq!((&dispute["amount"], &dispute["status"]), (&json!("10.00"), &json!("open")));
    assert_eq!(scene.usd()["available"], "-21.32", "a merchant may come to owe us by a dispute");
    assert_eq!(scene.get_charge(&won)["status"], "disputed");
    scene.refund(&won, "1.00").expect_problem(409, "charge_not_refundable");
    scene.payout("0.01").expect_problem(422, "insufficient_balance");

    let mut close = |charge: &str, name: &str, verdict| {
        disputes::close(
            conn,
            merchant,
            charge.parse().unwrap(),
            disputes::Decision { dispute: name, verdict, decided_at: None },
            Utc::now(),
        )
        .unwrap()
    };
    assert!(matches!(close(&won, "unheard", Verdict::Won), NoticeEffect::TooEarly(_)));
    assert!(matches!(close(&lost, "a", Verdict::Won), NoticeEffect::Contradicts(_)), "of another charge");
    assert_eq!(close(&won, "a", Verdict::Won), NoticeEffect::Applied);
    assert_eq!(close(&lost, "c", Verdict::Lost), NoticeEffect::Applied);
    assert_eq!(close(&won, "a", Verdict::Won), NoticeEffect::AlreadyApplied);
    assert_eq!(scene.get_charge(&won)["status"], "partially_refunded");
    assert_eq!(scene.get_charge(&lost)["status"], "disputed");
    assert_eq!(scene.usd()["available"], "-11.32");
    let path = format!("/v1/disputes/{}", dispute["id"].as_str().unwrap());
    assert_eq!(scene.client.get(&path).expect(200).json()["status"], "won");
    scene.client.get("/v1/disputes/dp_1").expect_problem(404, "dispute_not_found");
    let of_one = scene.client.get(&format!("/v1/disputes?charge_id={won}")).expect(200).json();
    assert_eq!(of_one["data"].as_array().unwrap().len(), 1);
}

#[test]
fn every_transition_that_is_not_in_the_table_is_refused() {
    let scene = Scene::new();
    let allowed = [
        ("processing", "requires_capture"),
        ("processing", "succeeded"),
        ("processing", "failed"),
        ("requires_capture", "succeeded"),
        ("requires_capture", "canceled"),
        ("succeeded", "partially_refunded"),
        ("succeeded", "refunded"),
        ("succeeded", "disputed"),
        ("partially_refunded", "refunded"),
        ("partially_refunded", "disputed"),
        ("refunded", "disputed"),
        ("disputed", "succeeded"),
        ("disputed", "partially_refunded"),
        ("disputed", "refunded"),
        ("refunded", "partially_refunded"),
        ("refunded", "succeeded"),
        ("partially_refunded", "succeeded"),
    ];
    // What each state asks of the other columns.
    let columns = |status: ChargeStatus| match status {
        ChargeStatus::Processing | ChargeStatus::RequiresCapture => {
            "amount_captured = 0, amount_refunded = 0, captured_at = NULL, canceled_at = NULL, failure_code = NULL"
        }
        ChargeStatus::Failed => {
            "amount_captured = 0, amount_refunded = 0, captured_at = NULL, canceled_at = NULL, failure_code = 'x'"
        }
        ChargeStatus::Canceled => {
            "amount_captured = 0, amount_refunded = 0, captured_at = NULL, canceled_at = now(), failure_code = NULL"
        }
        ChargeStatus::Succeeded | ChargeStatus::Disputed => {
            "amount_captured = 5, amount_refunded = 0, captured_at = now(), canceled_at = NULL, failure_code = NULL"
        }
        ChargeStatus::PartiallyRefunded => {
            "amount_captured = 5, amount_refunded = 2, captured_at = now(), canceled_at = NULL, failure_code = NULL"
        }
        ChargeStatus::Refunded => {
            "amount_captured = 5, amount_refunded = 5, captured_at = now(), canceled_at = NULL, failure_code = NULL"
        }
    };
    let id = scene.charge(false);
    let mut service = scene.database.as_app();
    // Past the guards to get into a state, and as the service out of it.
    let begin_as = |status: ChargeStatus| {
        let update =
            format!("UPDATE charges SET fee = 0, status = '{}', {}", status.as_str(), columns(status));
        scene.database.unguarded(&update);
    };
    for from in ChargeStatus::ALL {
        for to in ChargeStatus::ALL {
            begin_as(from);
            let update = format!("UPDATE charges SET status = '{}', {}", to.as_str(), columns(to));
            let result = diesel::sql_query(&update).execute(&mut service);
            let is_allowed = from == to || allowed.contains(&(from.as_str(), to.as_str()));
            match result {
                Ok(_) => assert!(is_allowed, "{} became {}", from.as_str(), to.as_str()),
                Err(error) => {
                    assert!(!is_allowed, "{} can't become {}: {error}", from.as_str(), to.as_str());
                    assert!(error.to_string().contains("a charge can't become"), "{error}");
                }
            }
        }
    }
    begin_as(ChargeStatus::RequiresCapture);
    assert_eq!(scene.get_charge(&id)["status"], "requires_capture");
}

#[test]
fn refunds_payouts_and_disputes_make_only_the_transitions_of_their_tables() {
    let scene = Scene::new();
    let charge = scene.charge(true);
    scene.refund(&charge, "1.00").expect(201);
    scene.payout("1.00").expect(201);
    let id = charge.parse().unwrap();
    let conn = &mut scene.database.as_app();
    let opened = disputes::open(
        conn,
        scene.merchant.id,
        id,
        disputes::Opening { dispute: "dispute-1", amount: None, reason: None },
        Utc::now(),
    )
    .unwrap();
    assert_eq!(opened, NoticeEffect::Applied);
    let tables = [
        (
            "refunds",
            vec!["pending", "succeeded", "failed"],
            vec![("pending", "succeeded"), ("pending", "failed"), ("succeeded", "failed")],
        ),
        (
            "payouts",
            vec!["pending", "in_transit", "paid", "failed"],
            vec![
                ("pending", "in_transit"),
                ("pending", "failed"),
                ("in_transit", "paid"),
                ("in_transit", "failed"),
                ("paid", "failed"),
            ],
        ),
        (
            "disputes",
            vec!["open", "won", "lost"],
            vec![("open", "won"), ("open", "lost"), ("won", "lost"), ("lost", "won")],
        ),
    ];
    // What each state asks of the other columns.
    let columns = |table: &str, status: &str| match (table, status) {
        ("payouts", "paid" | "failed") => ", settled_at = now()",
        ("payouts", _) => ", settled_at = NULL",
        ("disputes", "open") => ", closed_at = NULL",
        ("disputes", _) => ", closed_at = now()",
        ("refunds", "failed") => ", failed_at = now()",
        ("refunds", _) => ", failed_at = NULL",
        _ => "",
    };
    let mut service = scene.database.as_app();
    for (table, states, allowed) in tables {
        let first = scene.database.text(&format!("SELECT status FROM {table}"));
        let become_sql =
            |status: &str| format!("UPDATE {table} SET status = '{status}'{}", columns(table, status));
        for from in &states {
            for to in &states {
                scene.database.unguarded(&become_sql(from));
                let result = diesel::sql_query(become_sql(to)).execute(&mut service);
                let is_allowed = from == to || allowed.contains(&(*from, *to));
                assert_eq!(result.is_ok(), is_allowed, "{table}: {from} to {to}: {result:?}");
            }
        }
        scene.database.unguarded(&become_sql(&first));
    }
}

#[test]
fn a_state_and_its_columns_cannot_contradict() {
    let scene = Scene::new();
    scene.charge(false);
    scene.charge(true);
    let mut app = scene.database.as_app();
    for statement in [
        "UPDATE charges SET amount_captured = 1 WHERE status = 'requires_capture'",
        "UPDATE charges SET captured_at = now() WHERE status = 'requires_capture'",
        "UPDATE charges SET canceled_at = now() WHERE status = 'requires_capture'",
        "UPDATE charges SET failure_code = 'x' WHERE status = 'requires_capture'",
        "UPDATE charges SET status = 'succeeded' WHERE status = 'requires_capture'",
        "UPDATE charges SET in_flight = 'capture' WHERE status = 'succeeded'",
        "UPDATE charges SET amount_captured = 12.51 WHERE status = 'succeeded'",
        "UPDATE charges SET amount_refunded = 1 WHERE status = 'succeeded'",
        "UPDATE charges SET amount_refund_pending = 12.51 WHERE status = 'succeeded'",
        "UPDATE charges SET status = 'partially_refunded', amount_refunded = 12.50 WHERE status = 'succeeded'",
        "UPDATE charges SET status = 'refunded', amount_refunded = 12.49 WHERE status = 'succeeded'",
    ] {
        let error = diesel::sql_query(statement).execute(&mut app).expect_err(statement).to_string();
        assert!(error.contains("violates check constraint"), "{statement}: {error}");
    }
}
