//! Bad input: a clear problem each, no key stored, nothing lost, no panic.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::support::*;

#[test]
fn what_is_no_json_is_refused() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let valid = visa().to_string();
    let with_nul = {
        let mut bytes = valid.clone().into_bytes();
        bytes.insert(5, 0);
        bytes
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("white space", b"  \n".to_vec()),
        ("cut off", valid.as_bytes()[..valid.len() - 1].to_vec()),
        ("no JSON", b"amount=12.50".to_vec()),
        ("trailing text", format!("{valid} x").into_bytes()),
        ("two values", format!("{valid}{valid}").into_bytes()),
        ("trailing comma", br#"{"amount":"1.00",}"#.to_vec()),
        ("single quotes", b"{'amount':'1.00'}".to_vec()),
        ("NaN", br#"{"amount":NaN}"#.to_vec()),
        ("huge number", br#"{"amount":1e999}"#.to_vec()),
        ("repeated name", br#"{"amount":"1.00","amount":"2.00"}"#.to_vec()),
        ("repeated name inside", br#"{"metadata":{"a":"1","a":"1"}}"#.to_vec()),
        ("deep arrays", [b"[".repeat(30_000), b"]".repeat(30_000)].concat()),
        ("deep objects", [br#"{"a":"#.repeat(10_000), b"1".to_vec(), b"}".repeat(10_000)].concat()),
        ("NUL byte", with_nul),
        ("invalid UTF-8", b"{\"description\":\"\xff\xfe\"}".to_vec()),
        ("overlong UTF-8", b"{\"description\":\"\xc0\xaf\"}".to_vec()),
        ("lone surrogate", br#"{"description":"\ud800"}"#.to_vec()),
        ("control character", b"{\"description\":\"a\x01b\"}".to_vec()),
        ("byte order mark", [b"\xef\xbb\xbf".as_slice(), valid.as_bytes()].concat()),
    ];
    for (name, body) in cases {
        let response =
            client.request("POST", "/v1/charges").idempotency_key("k").body("application/json", body).send();
        assert_eq!((response.status, response.code().as_str()), (400, "json_malformed"), "{name}");
    }
    assert_eq!(database.rows("idempotency_keys"), 0);
    client.charge("k", &visa()).expect(201);
}

#[test]
fn every_field_is_checked() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let changed = |name: &str, value: Value| {
        let mut body = visa();
        body[name] = value;
        body
    };
    let amounts = [
        json!("1e3"),
        json!("1E3"),
        json!("-1"),
        json!("+1"),
        json!("0"),
        json!("0.00"),
        json!("1.005"),
        json!("999999999999999999"),
        json!("1000000000000"),
        json!(""),
        json!(" 1"),
        json!("1 "),
        json!("1,00"),
        json!("NaN"),
        json!("Infinity"),
        json!("0x10"),
        json!("١"),
        json!("1."),
        json!(".5"),
        json!("1.2.3"),
        json!("1\u{0}"),
        json!(12.5),
        json!(12),
        json!(null),
        json!(true),
        json!(["1"]),
        json!({"value": "1"}),
        json!("9".repeat(5000)),
    ];
    let currencies = [
        json!("usd"),
        json!("XYZ"),
        json!("XXX"),
        json!("US"),
        json!(""),
        json!(840),
        json!(null),
        json!("USD "),
    ];
    let methods = [
        json!("pm_card_asynchronous"),
        json!("pm_card_VISA"),
        json!("4242424242424242"),
        json!(""),
        json!(1),
        json!(null),
    ];
    let captures = [json!("true"), json!(1), json!(null)];
    let texts = [json!(""), json!("x".repeat(501)), json!("a\u{0}b"), json!(1), json!([])];
    let metadata = [json!("x"), json!([]), json!(1)];

    let cases = amounts
        .into_iter()
        .map(|value| ("amount", value))
        .chain(currencies.into_iter().map(|value| ("currency", value)))
        .chain(methods.into_iter().map(|value| ("payment_method", value)))
        .chain(captures.into_iter().map(|value| ("capture", value)))
        .chain(texts.clone().into_iter().map(|value| ("description", value)))
        .chain(texts.into_iter().map(|value| ("reference", value)))
        .chain(metadata.into_iter().map(|value| ("metadata", value)));
    for (name, value) in cases {
        let response = client.charge("k", &changed(name, value.clone()));
        assert_eq!(
            (response.status, response.code().as_str()),
            (422, "validation_failed"),
            "{name}: {value}"
        );
        assert_eq!(response.pointers(), [format!("/{name}")], "{value}");
    }

    for (metadata, pointer) in [
        (json!({"a": 1}), "/metadata/a"),
        (json!({"a": null}), "/metadata/a"),
        (json!({"a/b~c": {}}), "/metadata/a~1b~0c"),
        (json!({"": "x"}), "/metadata/"),
        (json!({"a": "\u{0}"}), "/metadata/a"),
    ] {
        let response = client.charge("k", &changed("metadata", metadata));
        assert_eq!(response.expect_problem(422, "validation_failed").pointers(), [pointer]);
    }
    let too_many: serde_json::Map<_, _> = (0..51).map(|number| (number.to_string(), json!(""))).collect();
    let response = client.charge("k", &changed("metadata", too_many.into()));
    assert_eq!(response.expect_problem(422, "validation_failed").pointers(), ["/metadata"]);

    for body in [json!([]), json!("text"), json!(null), json!(1)] {
        let response = client.charge("k", &body).expect_problem(422, "validation_failed");
        assert_eq!(response.pointers(), [""], "{body}");
    }
    assert_eq!(database.rows("idempotency_keys"), 0);
    assert_eq!(app.runs(), 0);
}

#[test]
fn all_errors_are_told_at_once() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let body =
        json!({"amount": 1, "currency": "usd", "capture": "yes", "metadata": {"a": 1}, "amuont": "1.00"});
    let response = client.charge("k", &body).expect_problem(422, "validation_failed");
    assert_eq!(
        response.pointers(),
        ["/amount", "/amuont", "/capture", "/currency", "/metadata/a", "/payment_method"]
    );
}

#[test]
fn texts_of_any_language_and_the_largest_values_survive() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let mut body = visa();
    body["description"] = json!("🧾".repeat(500));
    body["reference"] = json!("r".repeat(255));
    body["metadata"] = json!({"ключ": "值", "quote\"\\": "\u{7f}\u{2028}", "x".repeat(40): "y".repeat(500)});
    let charge = client.charge("k", &body).expect(201).json();
    for name in ["description", "reference", "metadata"] {
        assert_eq!(charge[name], body[name]);
    }
}

#[test]
fn large_bodies_are_refused_whether_announced_or_not() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let merchant = database.merchant();
    let client = app.client.as_merchant(&merchant);
    let padded = |length: usize| {
        let body = visa().to_string();
        format!("{}{body}", " ".repeat(length - body.len()))
    };
    let send = |key: &str, length: usize| {
        client
            .request("POST", "/v1/charges")
            .idempotency_key(key)
            .body("application/json", padded(length))
            .send()
    };
    send("exact", 64 * 1024).expect(201);
    send("over", 64 * 1024 + 1).expect_problem(413, "body_too_large");
    send("far over", 10 * 1024 * 1024).expect_problem(413, "body_too_large");

    // Without a Content-Length the size only shows while reading.
    let mut stream = connect(&app);
    write!(
        stream,
        "POST /v1/charges HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nIdempotency-Key: chunked\r\n\
         Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        merchant.key
    )
    .unwrap();
    let chunk = format!("4000\r\n{}\r\n", " ".repeat(0x4000));
    for _ in 0..5 {
        let _ = stream.write_all(chunk.as_bytes());
    }
    assert_eq!(status_line(&mut stream), "HTTP/1.1 413 Payload Too Large");
    assert_eq!(database.rows("idempotency_keys"), 1);
}

#[test]
fn other_media_types_and_compressed_bodies_are_refused() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let request = client.request("POST", "/v1/charges").idempotency_key("k");
    let body = visa().to_string();
    for media_type in [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonx",
        "json",
        "multipart/form-data; boundary=x",
        "application/merge-patch+json",
    ] {
        let response = request.clone().body(media_type, body.clone()).send();
        assert_eq!(
            (response.status, response.code().as_str()),
            (415, "media_type_unsupported"),
            "{media_type}"
        );
    }
    let bare = request.clone().body("x", body.clone()).without("Content-Type").send();
    bare.expect_problem(415, "media_type_unsupported");
    let gzip = request.clone().json(&visa()).header("Content-Encoding", "gzip").send();
    gzip.expect_problem(415, "media_type_unsupported");
    assert_eq!(database.rows("idempotency_keys"), 0);
    request.body("Application/JSON; charset=utf-8", body).send().expect(201);
}

#[test]
fn the_first_violated_rule_decides_the_answer() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let used = fresh_key();
    client.charge(&used, &visa()).expect(201);

    let anonymous = app.client.request("POST", "/v1/charges");
    let known = client.request("POST", "/v1/charges");
    let huge = "[".repeat(70_000);
    let invalid = json!({"amount": "0"});
    let cases = [
        (anonymous.body("text/plain", huge.clone()), 401, "api_key_missing"),
        (known.clone().body("text/plain", huge), 413, "body_too_large"),
        (known.clone().body("text/plain", "["), 415, "media_type_unsupported"),
        (known.clone().body("application/json", "["), 400, "idempotency_key_missing"),
        (known.clone().idempotency_key("a b").body("application/json", "["), 400, "idempotency_key_invalid"),
        (known.clone().idempotency_key(&used).body("application/json", "["), 400, "json_malformed"),
        (known.clone().idempotency_key(&used).json(&invalid), 422, "validation_failed"),
        (
            known.clone().idempotency_key(&used).json(&with_method("pm_card_slow")),
            422,
            "idempotency_key_reused",
        ),
        (known.idempotency_key(&used).json(&visa()), 201, ""),
    ];
    for (request, status, code) in cases {
        let response = request.send();
        assert_eq!((response.status, response.code().as_str()), (status, code), "{}", response.text());
    }
    assert_eq!(app.runs(), 1);
}

#[test]
fn a_truncated_request_does_nothing() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let merchant = database.merchant();
    let body = visa().to_string();
    let mut stream = connect(&app);
    write!(
        stream,
        "POST /v1/charges HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nIdempotency-Key: k\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{}",
        merchant.key,
        body.len(),
        &body[..body.len() - 10]
    )
    .unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert_eq!(database.rows("idempotency_keys"), 0);
    app.client.as_merchant(&merchant).charge("k", &visa()).expect(201);
}

fn connect(app: &App) -> TcpStream {
    TcpStream::connect(app.client.base().strip_prefix("http://").unwrap()).unwrap()
}

fn status_line(stream: &mut TcpStream) -> String {
    let mut bytes = [0; 1024];
    let length = stream.read(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes[..length]).lines().next().unwrap().to_owned()
}
