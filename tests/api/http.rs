//! What HTTP itself demands of an API: one meaning per path and query, `HEAD` beside `GET`, conditions that are obeyed.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::support::*;

/// Method, path pattern and description of every operation.
fn operations() -> Vec<(String, &'static str)> {
    let paths = resolved_document()["paths"].as_object().unwrap();
    let of = |(path, item): (&'static String, &'static Value)| {
        let methods = item.as_object().unwrap().keys();
        methods.map(|method| (method.to_uppercase(), path.as_str())).collect::<Vec<_>>()
    };
    paths.iter().flat_map(of).collect()
}

/// A path of a pattern, about something that doesn't exist.
fn concrete(pattern: &str) -> String {
    let parts = pattern.split('/').map(|part| if part.starts_with('{') { "some_id" } else { part });
    parts.collect::<Vec<_>>().join("/")
}

#[test]
fn an_unknown_query_parameter_is_refused_by_every_operation() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let merchant = app.client.as_merchant(&database.merchant());
    let operator = app.client.with_key(&database.operator_key());
    for (method, pattern) in operations() {
        let client = if pattern.starts_with("/v1/operator") { &operator } else { &merchant };
        let path = concrete(pattern);
        let request = |client: &Client| match method.as_str() {
            "GET" => client.request("GET", &path),
            method => client.change(method, &path, "k", &json!({})),
        };
        for query in ["expand=x", "expand", "a=1&expand=", "%65xpand=x"] {
            let refused = request(client).query(query).send().expect_problem(422, "validation_failed");
            assert!(refused.pointers().contains(&"/expand".to_owned()), "{method} {pattern}?{query}");
        }
        if pattern != ACQUIRER_WEBHOOK {
            request(&app.client).query("expand=x").send().expect_problem(401, "api_key_missing");
        }
    }
    // Together with what is wrong with the body, and nothing is stored under the key.
    let both = merchant.change("POST", "/v1/charges", "k", &json!({"amount": 1}));
    let refused = both.query("expand=x").send().expect_problem(422, "validation_failed");
    assert_eq!(refused.pointers(), ["/amount", "/currency", "/expand", "/payment_method"]);
    assert_eq!((database.rows("idempotency_keys"), app.runs()), (0, 0));
    merchant.change("POST", "/v1/charges", "k", &visa()).query("").send().expect(201);
    assert!(merchant.charge("k", &visa()).expect(201).is_replay());
}

#[test]
fn a_query_without_end_gets_a_short_answer() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let refused =
        client.get(&format!("/v1/charges?{}", "a&".repeat(2_000))).expect_problem(422, "validation_failed");
    assert_eq!(refused.pointers(), ["/a", "/a"], "repeated, and unknown");
}

#[test]
fn a_path_has_one_meaning_however_it_is_encoded() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let mut body = visa();
    body["capture"] = json!(false);
    let first = client.charge("a=b", &body).expect(201);
    for path in ["/v1/%63harges", "/%761/charge%73"] {
        let again = client.send("POST", path, "a=b", &body).expect(201);
        assert!(again.is_replay() && again.body == first.body, "{path}");
    }
    let id = first.field("id");
    let encoded = id.replace('_', "%5f");
    assert_eq!(client.get(&format!("/v1/charges/{encoded}")).expect(200).field("id"), id);
    let captured =
        client.send("POST", &format!("/v1/charges/{encoded}/capture"), "c", &json!({})).expect(200);
    let again = client.send("POST", &format!("/v1/charges/{id}/c%61pture"), "c", &json!({})).expect(200);
    assert!(again.is_replay() && again.body == captured.body);
    for key in ["a=b", "a%3Db", "a%3db", "%61=b"] {
        let status = client.get(&format!("/v1/idempotency-keys/{key}")).expect(200);
        assert_eq!(status.json()["resource"]["id"], id.as_str(), "{key}");
    }
    // The stored answer of a failure names the path in its one spelling, too.
    let missing = client.send("PATCH", "/v1/%63harges/ch_1", "p", &json!({})).expect(404);
    assert_eq!(missing.field("instance"), "/v1/charges/ch_1");
    assert_eq!(app.runs(), 1);
}

#[test]
fn other_slashes_and_dots_make_another_path() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    for path in [
        "/v1/charges/",
        "/v1//charges",
        "//v1/charges",
        "/v1/charges%2F",
        "/v1%2Fcharges",
        "/v1/./charges",
        "/v1/%2E/charges",
        "/v1/refunds/../charges",
        "/V1/charges",
        "/v1/charges;a=b",
    ] {
        client.send("POST", path, "k", &visa()).expect_problem(404, "route_not_found");
        client.get(path).expect_problem(404, "route_not_found");
    }
    assert_eq!((database.rows("idempotency_keys"), app.runs()), (0, 0));
    client.get("/v1/charges/..").expect_problem(404, "charge_not_found");
}

#[test]
fn head_is_get_without_the_body() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let merchant = app.client.as_merchant(&database.merchant());
    let operator = app.client.with_key(&database.operator_key());
    let id = merchant.charge("k", &visa()).expect(201).field("id");
    let reads = operations().into_iter().filter(|(method, _)| method == "GET");
    let mut paths: Vec<_> = reads.map(|(_, pattern)| concrete(pattern)).collect();
    paths.push(format!("/v1/charges/{id}"));
    let pages = [
        "/healthz",
        "/readyz",
        "/metrics",
        "/docs",
        "/docs/",
        "/docs/swagger-ui.css",
        "/openapi.json",
        "/",
        "/v1/nothing",
    ];
    paths.extend(pages.map(str::to_owned));
    paths.extend(["/problems", "/problems/", "/problems/card-declined", "/problems/none"].map(str::to_owned));
    for path in paths {
        let client = if path.starts_with("/v1/operator") { &operator } else { &merchant };
        let (full, head) = (client.get(&path), client.request("HEAD", &path).send());
        assert_eq!(head.status, full.status, "{path}");
        assert!(head.body.is_empty() && head.header("X-Request-Id").is_some(), "{path}");
        // The metrics count the requests for them.
        let own = ["date", "x-request-id", if path == "/metrics" { "content-length" } else { "" }];
        let headers = |response: &Response| {
            let mut headers = response.headers.clone();
            headers.retain(|name, _| !own.contains(&name.as_str()));
            headers
        };
        assert_eq!(headers(&head), headers(&full), "{path}");
        assert!(head.header("Content-Length").is_some(), "{path}");
    }
    // A HEAD is counted as the GET that it is.
    let labels = [("method", "GET"), ("route", "/v1/charges/{id}"), ("status", "200")];
    assert_eq!(app.client.metrics().value("oncepay_http_requests_total", &labels), 2.0);

    let address = app.client.base().strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "HEAD /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
}

/// Conditions that don't hold for anything that exists.
const FAILING: [(&str, &str); 4] = [
    ("If-Match", "\"33a64df5\""),
    ("If-Match", "W/\"33a64df5\", \"a\""),
    ("If-Match", "33a64df5"),
    ("If-None-Match", "*"),
];

/// Conditions that hold for everything that exists, or are to be ignored.
const HOLDING: [(&str, &str); 5] = [
    ("If-Match", "*"),
    ("If-None-Match", "\"33a64df5\""),
    ("If-Unmodified-Since", "Sat, 29 Oct 1994 19:43:31 GMT"),
    ("Range", "bytes=0-1"),
    ("If-Range", "\"33a64df5\""),
];

#[test]
fn a_change_whose_condition_fails_is_not_performed() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let operator = app.client.with_key(&database.operator_key());
    let id = client.charge("captured", &visa()).expect(201).field("id");
    let mut body = visa();
    body["capture"] = json!(false);
    let held = client.charge("held", &body).expect(201).field("id");
    let endpoint = json!({"url": "https://shop.example/webhooks"});
    let endpoint = client.send("POST", "/v1/webhook-endpoints", "e", &endpoint).expect(201).field("id");
    let merchant_id =
        operator.get("/v1/operator/merchants").json()["data"][0]["id"].as_str().unwrap().to_owned();
    let charge = format!("/v1/charges/{id}");
    let before = client.get(&charge).json();
    let runs = app.runs();

    let price = json!({"fee_rate": "0.1", "fee_fixed": "0"});
    let refund = json!({"charge_id": id, "amount": "1.00"});
    let payout = json!({"amount": "1.00", "currency": "USD", "destination": "ba_main"});
    let changes = [
        (&client, "PATCH", charge.clone(), json!({"description": "new"})),
        (&client, "POST", format!("/v1/charges/{held}/capture"), json!({})),
        (&client, "POST", format!("/v1/charges/{held}/cancel"), json!({})),
        (&client, "POST", "/v1/charges".to_owned(), visa()),
        (&client, "POST", "/v1/refunds".to_owned(), refund),
        (&client, "POST", "/v1/payouts".to_owned(), payout),
        (&client, "POST", format!("/v1/webhook-endpoints/{endpoint}/rotate-secret"), json!({})),
        (&client, "DELETE", format!("/v1/webhook-endpoints/{endpoint}"), json!({})),
        (
            &operator,
            "PUT",
            "/v1/operator/idempotency-policies/charges.update".to_owned(),
            json!({"ttl_seconds": 60}),
        ),
        (&operator, "POST", format!("/v1/operator/merchants/{merchant_id}/pricing"), price),
    ];
    for (number, (client, method, path, body)) in changes.iter().enumerate() {
        for (condition, (name, value)) in FAILING.iter().enumerate() {
            let change = client.change(method, path, &format!("{number}.{condition}"), body);
            let refused =
                change.clone().header(name, value).send().expect_problem(412, "precondition_failed");
            assert_eq!(refused.json()["retryable"], false);
            // The answer is final: with its key it comes again, and without the condition, too.
            for again in [change.clone().header(name, value), change] {
                let again = again.send().expect_problem(412, "precondition_failed");
                assert!(again.is_replay() && again.body == refused.body, "{method} {path}");
            }
        }
    }
    assert_eq!(app.runs(), runs, "the processor isn't asked");
    assert_eq!(client.get(&charge).json(), before);
    assert_eq!(client.get(&format!("/v1/charges/{held}")).field("status"), "requires_capture");
    for (number, (name, value)) in HOLDING.iter().enumerate() {
        let patch = client.change("PATCH", &charge, &format!("p{number}"), &json!({"description": value}));
        assert_eq!(patch.header(name, value).send().expect(200).field("description"), *value, "{name}");
    }
    let capture = client.change("POST", &format!("/v1/charges/{held}/capture"), "c", &json!({}));
    let captured = capture.clone().header("If-Match", "*").send().expect(200);
    // A retry is the same request, whose condition was decided on before.
    let again = capture.header("If-Match", "\"33a64df5\"").send().expect(200);
    assert!(again.is_replay() && again.body == captured.body);
}

#[test]
fn what_would_fail_anyway_fails_for_that_reason_and_not_for_a_condition() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let id = client.charge("k", &visa()).expect(201).field("id");
    for (number, (name, value)) in FAILING.iter().chain(&HOLDING).enumerate() {
        for (method, path, body, status, code) in [
            ("PATCH", "/v1/charges/ch_1".to_owned(), json!({}), 404, "charge_not_found"),
            ("POST", format!("/v1/charges/{id}/capture"), json!({}), 409, "charge_not_capturable"),
            ("POST", "/v1/charges".to_owned(), json!({}), 422, "validation_failed"),
        ] {
            let change = client.change(method, &path, &format!("{code}{number}"), &body);
            change.header(name, value).send().expect_problem(status, code);
        }
        client.request("GET", "/v1/charges/ch_1").header(name, value).send().expect(404);
    }
}

#[test]
fn conditions_hold_whatever_the_policy_does_with_keys() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let id = client.charge("k", &visa()).expect(201).field("id");
    for policy in ["enforcement = 'observe'", "enforcement = 'off'"] {
        app.set_policy(&database, policy);
        for (method, path) in [("PATCH", format!("/v1/charges/{id}")), ("POST", "/v1/charges".to_owned())] {
            let body = if method == "POST" { visa() } else { json!({"description": "new"}) };
            let change = client.change(method, &path, &fresh_key(), &body).header("If-Match", "\"a\"");
            change.send().expect_problem(412, "precondition_failed");
        }
    }
    assert_eq!((app.runs(), database.rows("charges")), (1, 1));
}

#[test]
fn a_read_whose_condition_fails_is_not_answered() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let id = client.charge("k", &visa()).expect(201).field("id");
    for path in [format!("/v1/charges/{id}"), "/v1/charges".to_owned(), "/healthz".to_owned()] {
        let full = client.get(&path).expect(200);
        for (name, value) in HOLDING {
            let read = client.request("GET", &path).header(name, value).send().expect(200);
            assert_eq!(read.body, full.body, "{path} {name}");
        }
        for (name, value) in FAILING {
            let read = client.request("GET", &path).header(name, value).send();
            if name == "If-Match" {
                read.expect_problem(412, "precondition_failed");
            } else {
                assert_eq!((read.status, read.body.len()), (304, 0), "{path}");
            }
        }
    }
}
