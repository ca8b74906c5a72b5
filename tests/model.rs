//! Random sequences of operations against a simple model, answer by answer and balance by balance.
//!
//! A case is several merchants at the same time on the same service, each with a random sequence of requests in
//! several currencies. Any request may be sent twice at once, and any earlier one again at any later time. The
//! model is a few integers in minor units that knows nothing of the implementation.
//!
//! `PROPTEST_CASES=5000 cargo test --test suite model` runs longer. A failing case is shrunk and printed.

use std::collections::BTreeMap;

use chrono::Utc;
use diesel::PgConnection;
use oncepay::base::ids::MerchantId;
use oncepay::payments::charges::{self, Decision};
use oncepay::payments::disputes::{self, Verdict};
use oncepay::payments::notice::NoticeEffect;
use oncepay::payments::payouts;
use oncepay::processor::Decline;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use crate::support::*;

/// Code, decimals, and the fixed fee of 0.30 in ten-thousandths of the minor unit.
const CURRENCIES: [(&str, usize, u64); 3] = [("USD", 2, 300_000), ("JPY", 0, 3_000), ("KWD", 3, 3_000_000)];

#[derive(Clone, Debug)]
enum Step {
    Charge {
        minor: u64,
        currency: usize,
        method: usize,
        capture: bool,
    },
    Capture {
        charge: usize,
        minor: Option<u64>,
    },
    Cancel {
        charge: usize,
    },
    Refund {
        charge: usize,
        minor: Option<u64>,
    },
    Payout {
        minor: u64,
        currency: usize,
    },
    Update {
        charge: usize,
    },
    /// The processor or acquirer tells something.
    SettleCharge {
        charge: usize,
        approved: bool,
    },
    SettlePayout {
        payout: usize,
        paid: bool,
    },
    OpenDispute {
        charge: usize,
    },
    CloseDispute {
        dispute: usize,
        won: bool,
    },
    /// An earlier request again.
    Retry {
        request: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let index = 0usize..8;
    // Multiples of 500 have fees that lie between two minor units, where the rounding shows.
    let minor = prop_oneof![5 => 1u64..3_000, 1 => (1u64..6).prop_map(|n| n * 500)];
    let part = proptest::option::of(1u64..2_000);
    prop_oneof![
        4 => (minor.clone(), 0usize..3, 0usize..6, any::<bool>())
            .prop_map(|(minor, currency, method, capture)| Step::Charge { minor, currency, method, capture }),
        2 => (index.clone(), part.clone()).prop_map(|(charge, minor)| Step::Capture { charge, minor }),
        1 => index.clone().prop_map(|charge| Step::Cancel { charge }),
        4 => (index.clone(), part).prop_map(|(charge, minor)| Step::Refund { charge, minor }),
        2 => (minor, 0usize..3).prop_map(|(minor, currency)| Step::Payout { minor, currency }),
        1 => index.clone().prop_map(|charge| Step::Update { charge }),
        1 => (index.clone(), any::<bool>()).prop_map(|(charge, approved)| Step::SettleCharge { charge, approved }),
        1 => (index.clone(), any::<bool>()).prop_map(|(payout, paid)| Step::SettlePayout { payout, paid }),
        1 => index.clone().prop_map(|charge| Step::OpenDispute { charge }),
        1 => (index.clone(), any::<bool>()).prop_map(|(dispute, won)| Step::CloseDispute { dispute, won }),
        3 => (0usize..40).prop_map(|request| Step::Retry { request }),
    ]
}

/// What the model knows of a charge, in minor units.
#[derive(Debug)]
struct ModelCharge {
    id: String,
    currency: usize,
    status: &'static str,
    capture: bool,
    amount: u64,
    captured: u64,
    refunded: u64,
    fee: u64,
}

#[derive(Debug, Default)]
struct Model {
    charges: Vec<ModelCharge>,
    /// Id, currency, amount, status.
    payouts: Vec<(String, usize, u64, &'static str)>,
    /// The processor's name, charge, amount, status.
    disputes: Vec<(String, usize, u64, &'static str)>,
    available: [i64; 3],
    in_transit: [i64; 3],
    /// Whether anything was ever posted in a currency.
    seen: [bool; 3],
}

/// 2.9 % + 0.30, rounded half-even, at most the amount: in integers.
fn fee(minor: u64, currency: usize) -> u64 {
    let exact = minor * 290 + CURRENCIES[currency].2;
    let (whole, rest) = (exact / 10_000, exact % 10_000);
    let rounded = whole + u64::from(rest > 5_000 || (rest == 5_000 && whole % 2 == 1));
    rounded.min(minor)
}

fn decimal(minor: i64, currency: usize) -> String {
    let scale = CURRENCIES[currency].1;
    let sign = if minor < 0 { "-" } else { "" };
    let digits = format!("{:0width$}", minor.unsigned_abs(), width = scale + 1);
    let (integer, fraction) = digits.split_at(digits.len() - scale);
    if scale == 0 { format!("{sign}{integer}") } else { format!("{sign}{integer}.{fraction}") }
}

fn amount(minor: u64, currency: usize) -> String {
    decimal(i64::try_from(minor).unwrap(), currency)
}

impl Model {
    fn capture(&mut self, charge: usize, captured: u64) {
        let charge = &mut self.charges[charge];
        charge.captured = captured;
        charge.fee = fee(captured, charge.currency);
        charge.status = "succeeded";
        self.available[charge.currency] += (captured - charge.fee) as i64;
        self.seen[charge.currency] = true;
    }

    fn set_captured_status(&mut self, charge: usize) {
        let charge = &mut self.charges[charge];
        charge.status = match charge.refunded {
            0 => "succeeded",
            refunded if refunded < charge.captured => "partially_refunded",
            _ => "refunded",
        };
    }

    /// What open and lost disputes have taken of a charge.
    fn taken(&self, charge: usize) -> u64 {
        let taken = self.disputes.iter().filter(|(_, index, _, status)| *index == charge && *status != "won");
        taken.map(|(_, _, minor, _)| minor).sum()
    }

    fn has_open_dispute(&self, charge: usize) -> bool {
        self.disputes.iter().any(|(_, index, _, status)| *index == charge && *status == "open")
    }

    fn balances(&self) -> Value {
        let mut balances = BTreeMap::new();
        for (currency, (code, ..)) in CURRENCIES.iter().enumerate() {
            let pending = |c: &&ModelCharge| {
                c.currency == currency && matches!(c.status, "requires_capture" | "processing")
            };
            let held: Vec<_> = self.charges.iter().filter(pending).collect();
            if self.seen[currency] || !held.is_empty() {
                let pending = held.iter().map(|charge| charge.amount as i64).sum();
                balances.insert(
                    code,
                    json!({
                        "currency": code, "available": decimal(self.available[currency], currency),
                        "pending": decimal(pending, currency), "in_transit": decimal(self.in_transit[currency], currency),
                    }),
                );
            }
        }
        json!({"balances": balances.into_values().collect::<Vec<_>>()})
    }
}

/// One merchant, the real one and its model.
struct Player {
    /// For what the processor and the acquirer tell.
    conn: PgConnection,
    merchant: MerchantId,
    client: Client,
    model: Model,
    /// Requests sent so far with their final answers.
    history: Vec<(String, String, String, Value, Response)>,
}

impl Player {
    /// Sends a request, at the same moment a second time, and as often again as a 5xx or 409 asks for it. All
    /// final answers must be the same bytes.
    fn send(&mut self, method: &str, path: &str, body: Value) -> Response {
        let key = fresh_key();
        let answer = self.until_final(method, path, &key, &body);
        self.history.push((method.to_owned(), path.to_owned(), key, body, answer.clone()));
        answer
    }

    fn until_final(&self, method: &str, path: &str, key: &str, body: &Value) -> Response {
        let client = &self.client;
        let attempt = || {
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
            loop {
                let response = client.send(method, path, key, body);
                let again = response.status >= 500 || response.code() == "idempotency_request_in_progress";
                if !again {
                    return response;
                }
                assert!(std::time::Instant::now() < deadline, "{}", response.text());
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        };
        // A share of the requests goes out twice, by an arbitrary bit of the key.
        if !key.as_bytes()[0].is_multiple_of(4) {
            return attempt();
        }
        std::thread::scope(|scope| {
            let twin = scope.spawn(attempt);
            let answer = attempt();
            let other = twin.join().unwrap();
            if other.code() != "validation_failed" {
                assert_eq!(
                    (other.status, &other.body),
                    (answer.status, &answer.body),
                    "two answers to one key"
                );
                assert!(answer.is_replay() || other.is_replay(), "both were executed");
            }
            answer
        })
    }

    fn run(&mut self, step: &Step) {
        let merchant = self.merchant;
        let pick = |index: usize, length: usize| (length > 0).then(|| index % length.max(1));
        match *step {
            Step::Charge { minor, currency, method, capture } => {
                let methods = [
                    "pm_card_visa",
                    "pm_card_declined",
                    "pm_card_insufficient_funds",
                    "pm_card_timeout",
                    "pm_card_error_once",
                    "pm_card_async",
                ];
                let method = methods[method];
                let body = json!({
                    "amount": amount(minor, currency), "currency": CURRENCIES[currency].0,
                    "payment_method": method, "capture": capture,
                });
                let answer = self.send("POST", "/v1/charges", body);
                let (status, code) = match method {
                    "pm_card_declined" => (402, "card_declined"),
                    "pm_card_insufficient_funds" => (402, "insufficient_funds"),
                    _ => (201, ""),
                };
                assert_eq!((answer.status, answer.code().as_str()), (status, code), "{}", answer.text());
                let id = answer.field(if status == 201 { "id" } else { "charge_id" });
                let status = match (status, method) {
                    (402, _) => "failed",
                    (_, "pm_card_async") => "processing",
                    _ => "requires_capture",
                };
                self.model.charges.push(ModelCharge {
                    id,
                    currency,
                    status,
                    capture,
                    amount: minor,
                    captured: 0,
                    refunded: 0,
                    fee: 0,
                });
                if status == "requires_capture" && capture {
                    self.model.capture(self.model.charges.len() - 1, minor);
                }
            }
            Step::Capture { charge, minor } => {
                let Some(index) = pick(charge, self.model.charges.len()) else { return };
                let charge = &self.model.charges[index];
                let (path, currency) = (format!("/v1/charges/{}/capture", charge.id), charge.currency);
                let body = minor.map_or(json!({}), |minor| json!({"amount": amount(minor, currency)}));
                let wanted = minor.unwrap_or(charge.amount);
                let expected = match charge.status {
                    "requires_capture" if wanted <= charge.amount => (200, ""),
                    "requires_capture" => (422, "capture_exceeds_authorization"),
                    _ => (409, "charge_not_capturable"),
                };
                let answer = self.send("POST", &path, body);
                assert_eq!((answer.status, answer.code().as_str()), expected, "{}", answer.text());
                if expected.0 == 200 {
                    self.model.capture(index, wanted);
                }
            }
            Step::Cancel { charge } => {
                let Some(index) = pick(charge, self.model.charges.len()) else { return };
                let path = format!("/v1/charges/{}/cancel", self.model.charges[index].id);
                let cancelable = self.model.charges[index].status == "requires_capture";
                let answer = self.send("POST", &path, json!({}));
                let expected = if cancelable { (200, "") } else { (409, "charge_not_cancelable") };
                assert_eq!((answer.status, answer.code().as_str()), expected, "{}", answer.text());
                if cancelable {
                    self.model.charges[index].status = "canceled";
                }
            }
            Step::Refund { charge, minor } => {
                let Some(index) = pick(charge, self.model.charges.len()) else { return };
                let charge = &self.model.charges[index];
                let currency = charge.currency;
                let mut body = json!({"charge_id": charge.id});
                if let Some(minor) = minor {
                    body["amount"] = json!(amount(minor, currency));
                }
                let left = (charge.captured - charge.refunded).saturating_sub(self.model.taken(index));
                let wanted = minor.unwrap_or(left);
                let is_refundable = match charge.status {
                    "succeeded" | "partially_refunded" => true,
                    "disputed" => left > 0 && !self.model.has_open_dispute(index),
                    _ => false,
                };
                let expected = match is_refundable {
                    true if wanted > left => (422, "refund_exceeds_captured"),
                    true if wanted as i64 > self.model.available[currency] => (422, "insufficient_balance"),
                    true => (201, ""),
                    false => (409, "charge_not_refundable"),
                };
                let answer = self.send("POST", "/v1/refunds", body);
                assert_eq!((answer.status, answer.code().as_str()), expected, "{}", answer.text());
                if expected.0 == 201 {
                    assert_eq!(answer.field("amount"), amount(wanted, currency));
                    self.model.available[currency] -= wanted as i64;
                    self.model.charges[index].refunded += wanted;
                    if self.model.charges[index].status != "disputed" {
                        self.model.set_captured_status(index);
                    }
                }
            }
            Step::Payout { minor, currency } => {
                let body = json!({
                    "amount": amount(minor, currency), "currency": CURRENCIES[currency].0, "destination": "ba",
                });
                let covered = minor as i64 <= self.model.available[currency];
                let answer = self.send("POST", "/v1/payouts", body);
                let expected = if covered { (201, "") } else { (422, "insufficient_balance") };
                assert_eq!((answer.status, answer.code().as_str()), expected, "{}", answer.text());
                if covered {
                    self.model.available[currency] -= minor as i64;
                    self.model.in_transit[currency] += minor as i64;
                    self.model.payouts.push((answer.field("id"), currency, minor, "in_transit"));
                }
            }
            Step::Update { charge } => {
                let Some(index) = pick(charge, self.model.charges.len()) else { return };
                let path = format!("/v1/charges/{}", self.model.charges[index].id);
                let text = fresh_key();
                let answer = self.send("PATCH", &path, json!({"description": text})).expect(200);
                assert_eq!(answer.field("description"), text);
            }
            Step::SettleCharge { charge, approved } => {
                let Some(index) = pick(charge, self.model.charges.len()) else { return };
                let charge = &self.model.charges[index];
                let settlement =
                    if approved { Decision::Approved(None) } else { Decision::Declined(Decline::generic()) };
                let id = charge.id.parse().unwrap();
                let settled = charges::settle(&mut self.conn, merchant, id, settlement, Utc::now()).unwrap()
                    == NoticeEffect::Applied;
                assert_eq!(settled, charge.status == "processing");
                match (settled, approved, charge.capture) {
                    (false, ..) => {}
                    (true, true, true) => self.model.capture(index, self.model.charges[index].amount),
                    (true, true, false) => self.model.charges[index].status = "requires_capture",
                    (true, false, _) => self.model.charges[index].status = "failed",
                }
            }
            Step::SettlePayout { payout, paid } => {
                let Some(index) = pick(payout, self.model.payouts.len()) else { return };
                let (id, currency, minor, status) = self.model.payouts[index].clone();
                let settlement = if paid { payouts::Outcome::Paid } else { payouts::Outcome::Failed };
                let settled = payouts::settle(
                    &mut self.conn,
                    merchant,
                    id.parse().unwrap(),
                    settlement.into(),
                    Utc::now(),
                )
                .unwrap()
                    == NoticeEffect::Applied;
                assert_eq!(settled, status == "in_transit" || (status == "paid" && !paid));
                if settled {
                    self.model.payouts[index].3 = if paid { "paid" } else { "failed" };
                    self.model.in_transit[currency] -= if status == "in_transit" { minor as i64 } else { 0 };
                    self.model.available[currency] += if paid { 0 } else { minor as i64 };
                }
            }
            Step::OpenDispute { charge } => {
                let Some(index) = pick(charge, self.model.charges.len()) else { return };
                let (taken, is_open) = (self.model.taken(index), self.model.has_open_dispute(index));
                let charge = &mut self.model.charges[index];
                let contestable = charge.captured - taken;
                let left = match (charge.captured - charge.refunded).saturating_sub(taken) {
                    0 => contestable,
                    left => left,
                };
                let id = charge.id.parse().unwrap();
                let name = fresh_key();
                let opened = disputes::open(
                    &mut self.conn,
                    merchant,
                    id,
                    disputes::Opening { dispute: &name, amount: None, reason: None },
                    Utc::now(),
                )
                .unwrap();
                let is_captured =
                    matches!(charge.status, "succeeded" | "partially_refunded" | "refunded" | "disputed");
                let disputable = is_captured && !is_open && left > 0;
                assert_eq!(opened == NoticeEffect::Applied, disputable);
                if disputable {
                    let path = format!("/v1/disputes?limit=1&charge_id={}", charge.id);
                    let dispute = &self.client.get(&path).expect(200).json()["data"][0];
                    assert_eq!(dispute["amount"], amount(left, charge.currency));
                    charge.status = "disputed";
                    self.model.available[charge.currency] -= left as i64;
                    self.model.disputes.push((name, index, left, "open"));
                }
            }
            Step::CloseDispute { dispute, won } => {
                let Some(number) = pick(dispute, self.model.disputes.len()) else { return };
                let (name, index, minor, status) = self.model.disputes[number].clone();
                let charge_id = self.model.charges[index].id.parse().unwrap();
                let verdict = if won { Verdict::Won } else { Verdict::Lost };
                let closed = disputes::close(
                    &mut self.conn,
                    merchant,
                    charge_id,
                    disputes::Decision { dispute: &name, verdict, decided_at: None },
                    Utc::now(),
                )
                .unwrap()
                    == NoticeEffect::Applied;
                let decided = if won { "won" } else { "lost" };
                assert_eq!(closed, status != decided);
                if closed {
                    self.model.disputes[number].3 = decided;
                    let currency = self.model.charges[index].currency;
                    match (status, won) {
                        (_, true) => self.model.available[currency] += minor as i64,
                        ("won", false) => self.model.available[currency] -= minor as i64,
                        _ => {}
                    }
                    match self.model.taken(index) {
                        0 => self.model.set_captured_status(index),
                        _ => self.model.charges[index].status = "disputed",
                    }
                }
            }
            Step::Retry { request } => {
                let Some(index) = pick(request, self.history.len()) else { return };
                let (method, path, key, body, answer) = &self.history[index];
                let again = self.client.send(method, path, key, body);
                assert_eq!(
                    (again.status, &again.body),
                    (answer.status, &answer.body),
                    "an answer has changed"
                );
                assert!(again.is_replay());
            }
        }
    }

    /// Compares everything that can be seen.
    fn check(&self) {
        assert_eq!(self.client.get("/v1/balance").expect(200).json(), self.model.balances());
        let list = self.client.get("/v1/charges?limit=100").expect(200).json();
        let shown: Vec<_> = list["data"].as_array().unwrap().iter().rev().collect();
        assert_eq!(shown.len(), self.model.charges.len());
        for (shown, charge) in shown.into_iter().zip(&self.model.charges) {
            for (name, expected) in [
                ("id", charge.id.clone()),
                ("status", charge.status.to_owned()),
                ("amount", amount(charge.amount, charge.currency)),
                ("amount_captured", amount(charge.captured, charge.currency)),
                ("amount_refunded", amount(charge.refunded, charge.currency)),
                ("fee", amount(charge.fee, charge.currency)),
            ] {
                assert_eq!(shown[name], expected, "{name} of {charge:?}");
            }
        }
        for total in
            self.client.get("/v1/ledger/trial-balance").expect(200).json()["totals"].as_array().unwrap()
        {
            assert_eq!(total["debit"], total["credit"]);
        }
    }
}

#[test]
fn every_answer_and_every_balance_is_what_the_model_says() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(200);
    // Shrinking runs the case again each time; after two minutes it is small enough to read.
    let config = Config { cases, failure_persistence: None, max_shrink_time: 120_000, ..Config::default() };
    let merchants = proptest::collection::vec(proptest::collection::vec(step(), 1..20), 1..=3);
    TestRunner::new(config)
        .run(&merchants, |merchants| {
            let (database, app) = (&database, &app);
            std::thread::scope(|scope| {
                for steps in &merchants {
                    scope.spawn(move || {
                        let merchant = database.merchant();
                        let mut player = Player {
                            conn: database.as_app(),
                            merchant: merchant.id,
                            client: app.client.as_merchant(&merchant),
                            model: Model::default(),
                            history: Vec::new(),
                        };
                        for step in steps {
                            player.run(step);
                        }
                        player.check();
                    });
                }
            });
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
}
