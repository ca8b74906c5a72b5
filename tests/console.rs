//! The console: who sees what, what its buttons do, and that no text becomes markup. `tests/pages` reads it with a browser.

use serde_json::json;

use crate::recovery::{break_events, repair_events};
use crate::support::*;

fn start(database: &TestDatabase) -> App {
    App::start_with(database, |config| config.console = true)
}

/// A browser with a session.
struct Browser {
    client: Client,
    cookie: String,
}

impl Browser {
    fn enter(app: &App, key: &str) -> Self {
        let client = Client::new(app.client.base());
        let entered = post(&client, "/console/session", "", &[("key", key)]).expect(303);
        let cookie = entered.header("set-cookie").unwrap();
        for attribute in ["HttpOnly", "SameSite=Strict", "Path=/console"] {
            assert!(cookie.contains(attribute), "{cookie}");
        }
        let cookie = cookie.split(';').next().unwrap().to_owned();
        assert!(!cookie.contains(key), "the key can be read");
        Self { client, cookie }
    }

    fn get(&self, path: &str) -> Response {
        self.client.request("GET", path).header("Cookie", &self.cookie).send()
    }

    /// Presses the button of the form for `action` on a page, and again: what it answers both times.
    fn press(&self, page: &str, action: &str, more: &[(&str, &str)]) -> [Response; 2] {
        let html = self.get(page).expect(200).text();
        let marked = format!("name=\"action\" value=\"{action}\"");
        let form = html
            .split("<form")
            .find(|form| form.contains(&marked))
            .unwrap_or_else(|| panic!("no {action} in {html}"));
        let value = |name: &str| {
            let (_, rest) = form.split_once(&format!("name=\"{name}\" value=\"")).unwrap();
            rest.split_once('"').unwrap().0.to_owned()
        };
        let (subject, key) = (value("subject"), value("key"));
        let mut fields = vec![("action", action), ("subject", subject.as_str()), ("key", key.as_str())];
        fields.extend_from_slice(more);
        [(); 2].map(|()| post(&self.client, "/console/act", &self.cookie, &fields))
    }
}

fn post(client: &Client, path: &str, cookie: &str, fields: &[(&str, &str)]) -> Response {
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    client
        .request("POST", path)
        .header("Cookie", cookie)
        .header("Sec-Fetch-Site", "same-origin")
        .body("application/x-www-form-urlencoded", body)
        .send()
}

/// All pages of a merchant, with a charge and a key of it.
fn pages(merchant: &Merchant, charge: &str, key: &str) -> Vec<String> {
    let pages =
        ["charges", &format!("charges/{charge}"), &format!("key?key={key}"), "balances", "attention", "live"];
    pages.iter().map(|page| format!("/console/{}/{page}", merchant.id)).collect()
}

#[test]
fn there_is_no_console_unless_the_settings_say_so() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    for path in ["/console", "/console/live", "/console/assets/console.css"] {
        app.client.get(path).expect_problem(404, "route_not_found");
    }
}

#[test]
fn a_port_for_operators_has_the_console_and_the_other_has_not() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| {
        config.console = true;
        config.admin_listen = Some("127.0.0.1:0".parse().unwrap());
    });
    app.client.get("/console").expect_problem(404, "route_not_found");
    assert!(app.admin().get("/console").expect(200).text().contains("Enter the console"));
}

#[test]
fn each_page_asks_for_a_key_and_shows_a_merchant_nothing_of_another() {
    let database = TestDatabase::new();
    let app = start(&database);
    let (merchant, other) = (database.merchant(), database.merchant());
    let client = app.client.as_merchant(&merchant);
    let charge = client.charge("k1", &visa()).expect(201).field("id");
    let [own, foreign] = [&merchant, &other].map(|merchant| Browser::enter(&app, &merchant.key));
    let operator = Browser::enter(&app, &database.operator_key());
    for page in pages(&merchant, &charge, "k1") {
        let asked = app.client.get(&page).expect(200).text();
        assert!(asked.contains("Enter the console") && !asked.contains(&charge), "{page}");
        assert!(!own.get(&page).expect(200).text().contains("Enter the console"), "{page}");
        assert!(!operator.get(&page).expect(200).text().contains("Enter the console"), "{page}");
        assert!(!foreign.get(&page).expect(404).text().contains(&charge), "{page}");
    }
    // The other merchant's own page doesn't lead there, either.
    let path = format!("/console/{}/charges", other.id);
    assert!(!foreign.get(&format!("{path}?q={charge}")).expect(200).text().contains("/charges/ch_"));
    foreign.get(&format!("{path}/{charge}")).expect(404);
    for page in ["/console/attention", "/console/live", "/console/merchants"] {
        operator.get(page).expect(200);
        own.get(page).expect(404);
    }
    // A development environment's.
    own.get(&format!("/console/{}/storm", merchant.id)).expect(404);
}

#[test]
fn a_session_ends_with_its_key_and_can_not_be_made_up() {
    let database = TestDatabase::new();
    let app = start(&database);
    let merchant = database.merchant();
    let browser = Browser::enter(&app, &merchant.key);
    let page = format!("/console/{}/charges", merchant.id);
    assert!(browser.get(&page).expect(200).text().contains("There are no such charges."));
    let mut changed = browser.cookie.clone().into_bytes();
    let at = changed.len() / 2;
    changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
    let changed =
        Browser { cookie: String::from_utf8(changed).unwrap(), client: Client::new(app.client.base()) };
    assert!(changed.get(&page).expect(200).text().contains("Enter the console"));
    execute(&mut database.as_owner(), "UPDATE api_keys SET revoked_at = clock_timestamp()");
    assert!(browser.get(&page).expect(200).text().contains("Enter the console"));
    let refused = post(&app.client, "/console/session", "", &[("key", &merchant.key)]).expect(422);
    assert!(refused.text().contains("There is no such key, or it was revoked."));
    assert_eq!(refused.header("set-cookie"), None);
}

#[test]
fn a_form_from_elsewhere_does_nothing() {
    let database = TestDatabase::new();
    let app = start(&database);
    let merchant = database.merchant();
    let browser = Browser::enter(&app, &merchant.key);
    let fields = "action=enable&subject=we_1&key=k&method=POST&path=%2F&body=&duplicates=2";
    let paths = [
        "/console/act",
        "/console/session/end",
        &format!("/console/{}/key", merchant.id),
        &format!("/console/{}/storm", merchant.id),
    ];
    for path in paths {
        for (name, value) in
            [("Sec-Fetch-Site", "cross-site"), ("Origin", "https://evil.example"), ("X-Nothing", "1")]
        {
            let sent =
                browser.client.request("POST", path).header("Cookie", &browser.cookie).header(name, value);
            let answer = sent.body("application/x-www-form-urlencoded", fields).send().expect(403);
            assert!(answer.text().contains("nothing was done"), "{path}");
        }
    }
}

#[test]
fn no_text_of_a_client_becomes_markup() {
    let database = TestDatabase::new();
    let app = start(&database);
    let merchant = database.merchant();
    let hostile = r#""><script>alert(1)</script><img src=x onerror=alert(1)>'"#;
    let key = r#"k"><script>alert(1)</script>"#;
    let mut body = visa();
    body["reference"] = hostile.into();
    body["description"] = hostile.into();
    body["metadata"] = json!({ "<b>": hostile });
    let client = app.client.as_merchant(&merchant);
    let charge = client.charge(key, &body).expect(201).field("id");
    client.charge(key, &body).expect(201);
    client
        .send("POST", "/v1/refunds", "r", &json!({"charge_id": charge, "amount": "2.00", "reason": hostile}))
        .expect(201);
    let browser = Browser::enter(&app, &merchant.key);
    let coded: String = url::form_urlencoded::byte_serialize(key.as_bytes()).collect();
    let coded_hostile: String = url::form_urlencoded::byte_serialize(hostile.as_bytes()).collect();
    let mut all = pages(&merchant, &charge, &coded);
    for query in ["q", "status", "currency", "after"] {
        all.push(format!("/console/{}/charges?{query}={coded_hostile}", merchant.id));
    }
    all.push(format!("/console/{}/key?key={coded_hostile}", merchant.id));
    all.push(format!("/console/{}/attention?done={coded_hostile}&part={coded_hostile}", merchant.id));
    for page in all {
        let answer = browser.get(&page).expect(200);
        let policy = answer.header("content-security-policy").unwrap().to_owned();
        assert!(policy.contains("script-src 'self'") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        let html = answer.text();
        for tag in ["<script>", "<img", "<dt><b>"] {
            assert!(!html.contains(tag), "{page} has {tag}: {html}");
        }
        assert!(!html.contains(" style="), "{page} has a style of its own");
    }
}

#[test]
fn the_timeline_tells_attempts_replays_and_refusals() {
    let database = TestDatabase::new();
    let app = start(&database);
    let merchant = database.merchant();
    let client = app.client.as_merchant(&merchant);
    let charge = client.charge("k1", &visa()).expect(201).field("id");
    client.charge("k1", &visa()).expect(201);
    let mut other = visa();
    other["amount"] = "99.00".into();
    client.charge("k1", &other).expect_problem(422, "idempotency_key_reused");
    let browser = Browser::enter(&app, &merchant.key);
    let html = browser.get(&format!("/console/{}/charges/{charge}", merchant.id)).expect(200).text();
    let mut at = 0;
    for told in
        ["is claimed", "is stored with its effects", "the first answer again", "the key was another request"]
    {
        let place = html[at..].find(told).unwrap_or_else(|| panic!("no {told} in order in {html}"));
        at += place;
    }
    assert!(html.contains(":capture"), "no entry in {html}");
}

#[test]
fn a_button_does_what_it_says_once() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| {
        config.console = true;
        config.recovery_interval_ms = 20;
        config.recovery_delay_ms = 20;
        config.recovery_attempts_max = 2;
    });
    let merchant = database.merchant();
    let client = app.client.as_merchant(&merchant);
    break_events(&database);
    client.charge("k/1", &visa()).expect_problem(500, "internal");
    let parked = "SELECT count(*) FROM idempotency_keys WHERE parked_at IS NOT NULL";
    eventually("the parking", || database.count(parked) == 1);
    repair_events(&database);
    let page = format!("/console/{}/attention", merchant.id);
    let own = Browser::enter(&app, &merchant.key);
    let seen = own.get(&page).expect(200).text();
    assert!(seen.contains("k/1") && seen.contains("An operator is needed."), "{seen}");
    let operator = Browser::enter(&app, &database.operator_key());
    let runbook = own.get("/console/runbook").expect(200).text();
    assert!(
        seen.contains("/console/runbook#OncepayRequestsParked")
            && runbook.contains("id=\"OncepayRequestsParked\"")
    );
    for pressed in operator.press("/console/attention", "retry", &[]) {
        assert_eq!(pressed.expect(303).header("location"), Some("/console/attention?done=retry"));
    }
    eventually("the recovery", || client.charge("k/1", &visa()).status == 201);
    let actions = "SELECT count(*) FROM idempotency_keys WHERE operation = 'idempotency_keys.retry'";
    assert_eq!(database.count(actions), 1, "the second press is a replay");
    let html = operator.get("/console/attention").expect(200).text();
    assert!(!html.contains("k/1"), "{html}");
}

#[test]
fn an_event_that_contradicts_is_shown_and_dismissed_with_a_reason() {
    let database = TestDatabase::new();
    let app = start(&database);
    let merchant = database.merchant();
    let client = app.client.as_merchant(&merchant);
    let charge = client.charge("k1", &visa()).expect(201).field("id");
    let body = json!({
        "type": "charge.failed", "timestamp": "2026-01-31T09:30:00Z",
        "data": {"merchant": merchant.id, "reference": charge, "operation": {"decline_code": "generic_decline"}},
    });
    app.client.delivery("evt_1", &body.to_string()).send().expect(200);
    assert_eq!(database.text("SELECT state FROM acquirer_events"), "contradicted");
    let operator = Browser::enter(&app, &database.operator_key());
    let told = operator.get(&format!("/console/{}/charges/{charge}", merchant.id)).expect(200).text();
    assert!(told.contains("charge.failed") && told.contains("contradicted"), "{told}");
    for pressed in operator.press("/console/attention", "dismiss", &[("reason", "Known at the processor.")]) {
        pressed.expect(303);
    }
    assert_eq!(database.text("SELECT state FROM acquirer_events"), "dismissed");
    let differences = operator.get("/console/attention?part=differences").expect(200).text();
    assert!(differences.contains("None, as far as"), "{differences}");
}

#[test]
fn a_disabled_endpoint_is_enabled_by_its_merchant() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| {
        config.console = true;
        config.webhook_allow_loopback = true;
    });
    let merchant = database.merchant();
    let client = app.client.as_merchant(&merchant);
    let endpoint = json!({"url": "http://127.0.0.1:9/hook", "event_types": ["*"]});
    client.send("POST", "/v1/webhook-endpoints", "e", &endpoint).expect(201);
    execute(
        &mut database.as_owner(),
        "UPDATE webhook_endpoints SET status = 'disabled', disabled_at = clock_timestamp()",
    );
    let browser = Browser::enter(&app, &merchant.key);
    let page = format!("/console/{}/attention", merchant.id);
    let [pressed, again] = browser.press(&page, "enable", &[]);
    pressed.expect(303);
    again.expect(303);
    assert_eq!(database.text("SELECT status FROM webhook_endpoints"), "enabled");
}

#[test]
fn what_is_live_is_a_merchants_own_and_all_of_it_for_operators() {
    let database = TestDatabase::new();
    let app = start(&database);
    let (merchant, other) = (database.merchant(), database.merchant());
    let charge =
        |merchant: &Merchant, key: &str| app.client.as_merchant(merchant).charge(key, &visa()).expect(201);
    charge(&merchant, "k1");
    charge(&merchant, "k1");
    charge(&other, "k2");
    let label = |browser: &Browser, path: &str| {
        let html = browser.get(path).expect(200).text();
        let (_, rest) = html.split_once("60 seconds: ").unwrap();
        rest.split_once('"').unwrap().0.to_owned()
    };
    let own = Browser::enter(&app, &merchant.key);
    let told = label(&own, &format!("/console/{}/live", merchant.id));
    assert!(told.starts_with("1 executed, 1 replayed, 0 conflict"), "{told}");
    let operator = Browser::enter(&app, &database.operator_key());
    let told = label(&operator, "/console/live");
    assert!(told.starts_with("2 executed, 1 replayed"), "{told}");
    // htmx is given the part that it replaces.
    let part =
        own.client.request("GET", &format!("/console/{}/live", merchant.id)).header("Cookie", &own.cookie);
    let part = part.header("HX-Request", "true").send().expect(200).text();
    assert!(part.starts_with("<div id=\"live\""), "{part}");
}
