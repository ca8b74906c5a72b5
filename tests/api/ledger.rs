use serde_json::{Value, json};

use crate::support::*;

struct Scene {
    database: TestDatabase,
    _app: App,
    client: Client,
    other: Client,
}

impl Scene {
    fn new() -> Self {
        let database = TestDatabase::new();
        let app = App::start(&database);
        let [client, other] = [(), ()].map(|()| app.client.as_merchant(&database.merchant()));
        Self { database, client, other, _app: app }
    }

    fn get(&self, path: &str) -> Value {
        self.client.get(path).expect(200).json()
    }

    fn account(&self, kind: &str, currency: &str) -> String {
        let accounts = self.get("/v1/ledger/accounts?limit=100");
        let accounts = accounts["data"].as_array().unwrap();
        let account = accounts.iter().find(|a| a["kind"] == kind && a["currency"] == currency).unwrap();
        account["id"].as_str().unwrap().to_owned()
    }
}

#[test]
fn a_charge_can_be_followed_into_the_ledger() {
    let scene = Scene::new();
    let charge = scene.client.charge("k", &visa()).expect(201).field("id");

    let entries = scene.get(&format!("/v1/ledger/journal-entries?source={charge}:capture"));
    let entry = &entries["data"][0];
    assert_eq!(entries["data"].as_array().unwrap().len(), 1);
    assert_eq!(entry["source"], format!("{charge}:capture"));
    let lines: Vec<_> = entry["postings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| [&line["account_kind"], &line["side"], &line["amount"], &line["currency"]])
        .collect();
    let line = |kind: &str, side: &str, amount: &str| json!([kind, side, amount, "USD"]);
    assert_eq!(
        json!(lines),
        json!([
            line("acquirer_clearing", "debit", "12.50"),
            line("merchant_payable", "credit", "11.84"),
            line("fee_revenue", "credit", "0.66")
        ])
    );
    let path = format!("/v1/ledger/journal-entries/{}", entry["id"].as_str().unwrap());
    assert_eq!(&scene.get(&path), entry);
    scene.other.get(&path).expect_problem(404, "journal_entry_not_found");

    let account = scene.account("merchant_payable", "USD");
    assert_eq!(scene.get(&format!("/v1/ledger/accounts/{account}"))["normal_side"], "credit");
    let balance = scene.get(&format!("/v1/ledger/accounts/{account}/balance"));
    assert_eq!((&balance["balance"], &balance["at"]), (&json!("11.84"), &json!(null)));
    let postings = scene.get(&format!("/v1/ledger/accounts/{account}/postings"));
    assert_eq!(postings["data"][0], entry["postings"][1]);
    for path in ["", "/balance", "/postings"] {
        let path = format!("/v1/ledger/accounts/{account}{path}");
        scene.other.get(&path).expect_problem(404, "account_not_found");
    }
    let nothing = scene.other.get("/v1/ledger/journal-entries").expect(200).json();
    assert_eq!(nothing, json!({"data": [], "has_more": false}));
}

#[test]
fn postings_are_listed_in_pages() {
    let scene = Scene::new();
    for number in 1..=5 {
        let body = json!({"amount": number.to_string(), "currency": "USD", "payment_method": "pm_card_visa"});
        scene.client.charge(&number.to_string(), &body).expect(201);
    }
    let account = scene.account("acquirer_clearing", "USD");
    let page = |query: &str| scene.get(&format!("/v1/ledger/accounts/{account}/postings?limit=2{query}"));
    let amounts = |page: &Value| -> Vec<String> {
        page["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["amount"].as_str().unwrap().to_owned())
            .collect()
    };
    let id = |page: &Value, n: usize| page["data"][n]["id"].as_str().unwrap().to_owned();
    let first = page("");
    assert_eq!((amounts(&first), &first["has_more"]), (vec!["5.00".into(), "4.00".into()], &json!(true)));
    let second = page(&format!("&starting_after={}", id(&first, 1)));
    assert_eq!(amounts(&second), ["3.00", "2.00"]);
    let third = page(&format!("&starting_after={}", id(&second, 1)));
    assert_eq!((amounts(&third), &third["has_more"]), (vec!["1.00".into()], &json!(false)));
    assert_eq!(amounts(&page(&format!("&ending_before={}", id(&third, 0)))), ["3.00", "2.00"]);
    let bad = scene.client.get(&format!("/v1/ledger/accounts/{account}/postings?starting_after=je_1.1"));
    assert_eq!(bad.expect_problem(422, "validation_failed").pointers(), ["/starting_after"]);
}

#[test]
fn balances_at_a_time_are_those_of_then() {
    let scene = Scene::new();
    scene.client.charge("a", &visa()).expect(201);
    let account = scene.account("merchant_payable", "USD");
    let posted =
        scene.get("/v1/ledger/journal-entries")["data"][0]["created_at"].as_str().unwrap().to_owned();
    std::thread::sleep(std::time::Duration::from_millis(20));
    // Times are shown in whole milliseconds, so the next one is certain to include it.
    let at =
        (chrono::DateTime::parse_from_rfc3339(&posted).unwrap() + chrono::Duration::milliseconds(1)).to_utc();
    let at = at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    scene.client.charge("b", &visa()).expect(201);

    let balance =
        |query: &str| scene.get(&format!("/v1/ledger/accounts/{account}/balance{query}"))["balance"].clone();
    assert_eq!(balance(""), "23.68");
    assert_eq!(balance(&format!("?at={at}")), "11.84");
    assert_eq!(balance("?at=2020-01-01T00:00:00Z"), "0.00");
    let totals = |query: &str| scene.get(&format!("/v1/ledger/trial-balance{query}"))["totals"].clone();
    assert_eq!(totals(""), json!([{"currency": "USD", "debit": "25.00", "credit": "25.00"}]));
    assert_eq!(
        totals(&format!("?at={at}")),
        json!([{"currency": "USD", "debit": "12.50", "credit": "12.50"}])
    );
    let bad = scene.client.get("/v1/ledger/trial-balance?at=now").expect_problem(422, "validation_failed");
    assert_eq!(bad.pointers(), ["/at"]);
}

#[test]
fn a_time_as_shown_includes_the_entry_that_shows_it() {
    let scene = Scene::new();
    for number in 0..8 {
        scene.client.charge(&number.to_string(), &visa()).expect(201);
    }
    let account = scene.account("acquirer_clearing", "USD");
    let postings = scene.get(&format!("/v1/ledger/accounts/{account}/postings"));
    let times: Vec<_> =
        postings["data"].as_array().unwrap().iter().map(|row| row["created_at"].as_str().unwrap()).collect();
    for at in &times {
        let posted = 1250 * times.iter().filter(|time| *time <= at).count();
        let expected = json!(format!("{}.{:02}", posted / 100, posted % 100));
        let balance = scene.get(&format!("/v1/ledger/accounts/{account}/balance?at={at}"));
        assert_eq!((&balance["balance"], &balance["at"]), (&expected, &json!(at)));
        let trial_balance = scene.get(&format!("/v1/ledger/trial-balance?at={at}"));
        assert_eq!(trial_balance["totals"][0]["debit"], expected, "{at}");
    }
}

#[test]
fn the_trial_balance_is_even_at_any_time_in_the_middle_of_a_load() {
    let scene = Scene::new();
    scene.client.charge("first", &visa()).expect(201);
    let writers: Vec<_> = (0..3)
        .map(|_| {
            let client = scene.client.clone();
            std::thread::spawn(move || {
                for _ in 0..40 {
                    client.charge(&fresh_key(), &visa()).expect(201);
                }
            })
        })
        .collect();
    let mut reads = 0;
    while writers.iter().any(|writer| !writer.is_finished()) {
        let now = chrono::Utc::now() - chrono::Duration::microseconds(reads * 700);
        let at = now.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
        for query in [String::new(), format!("?at={at}")] {
            for total in scene.get(&format!("/v1/ledger/trial-balance{query}"))["totals"].as_array().unwrap()
            {
                assert_eq!(total["debit"], total["credit"], "{query}");
            }
        }
        reads += 1;
    }
    for writer in writers {
        writer.join().unwrap();
    }
    assert!(reads > 5, "only {reads} reads while charges were made");
    assert_eq!(scene.database.rows("charges"), 121);
}

#[test]
fn checkpoints_are_rolled_up_while_charges_are_made() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| config.roll_up_interval_ms = 20);
    let client = app.client.as_merchant(&database.merchant());
    let mut charged = 0;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(180);
    // A look costs more than a charge.
    while charged % 20 != 0 || database.rows("ledger_checkpoints") < 3 {
        client.charge(&fresh_key(), &visa()).expect(201);
        charged += 1;
        assert!(std::time::Instant::now() < deadline, "nothing is rolled up after {charged} charges");
    }
    assert!(charged > 500, "an account is worth it only after some postings");
    let expected = rust_decimal::Decimal::new(1184, 2) * rust_decimal::Decimal::from(charged);
    assert_eq!(client.available("USD"), Some(expected.to_string()));
}
