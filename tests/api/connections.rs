//! What clients do to their connections: requests that aren't HTTP, slow ones, many at once, answers that nobody reads.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::*;

/// An answer as it came over the wire.
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    /// Checks that it's this problem, with all that belongs to one, and that the connection ends with it.
    fn is_last_problem(&self, name: &str, status: u16, code: &str) {
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "{name}: {}\n{text}", self.head);
        let problem: Value = serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{name}: {text}"));
        assert_eq!(problem["code"], code, "{name}: {problem}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{name}");
        assert_eq!(self.header("connection"), Some("close"), "{name}");
        let id = self.header("x-request-id").unwrap_or_else(|| panic!("{name}: {}", self.head));
        assert_eq!(problem["request_id"], id, "{name}");
    }
}

fn connect(client: &Client) -> TcpStream {
    let stream = TcpStream::connect(client.base().strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Reads answers until the service closes the connection.
fn answers(stream: &mut TcpStream) -> Vec<Answer> {
    let mut received = Vec::new();
    let mut piece = [0; 64 * 1024];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => received.extend_from_slice(&piece[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                panic!("the connection stays open after {:?}", String::from_utf8_lossy(&received))
            }
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&received)),
        }
    }
    let mut answers = Vec::new();
    let mut rest = &received[..];
    while !rest.is_empty() {
        let end = rest.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("a whole head") + 4;
        let head = String::from_utf8(rest[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut answer = Answer { status, head, body: Vec::new() };
        let length = answer.header("content-length").map_or(0, |length| length.parse().unwrap());
        answer.body = rest[end..end + length].to_vec();
        rest = &rest[end + length..];
        answers.push(answer);
    }
    answers
}

/// Sends bytes, all of which the service may refuse to take.
fn send(stream: &mut TcpStream, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
}

fn exchange(client: &Client, bytes: &[u8]) -> Vec<Answer> {
    let mut stream = connect(client);
    send(&mut stream, bytes);
    answers(&mut stream)
}

#[test]
fn what_cannot_be_read_as_a_request_is_a_problem_too() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let app = App::start(&database);
    let post = format!(
        "POST /v1/charges HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nIdempotency-Key: k\r\n\
         Content-Type: application/json\r\n",
        merchant.key
    );
    let path = |length: usize| format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "p".repeat(length));
    let header = |length: usize| format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "a".repeat(length));
    let lines = |count: usize| format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: a\r\n".repeat(count));
    let cases = [
        ("no host", "GET /v1/charges HTTP/1.1\r\n\r\n".to_owned(), 400, "request_malformed"),
        ("two hosts", "GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n".to_owned(), 400, "request_malformed"),
        ("no line", "\u{1}\u{2}\u{3}\r\n\r\n".to_owned(), 400, "request_malformed"),
        ("no path", "GET HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 400, "request_malformed"),
        ("no version", "GET /\r\nHost: x\r\n\r\n".to_owned(), 400, "request_malformed"),
        ("no protocol", "GET / FTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 400, "request_malformed"),
        (
            "a space in a name",
            "GET / HTTP/1.1\r\nHost: x\r\nA b: c\r\n\r\n".to_owned(),
            400,
            "request_malformed",
        ),
        (
            "a space before the colon",
            "GET / HTTP/1.1\r\nHost : x\r\n\r\n".to_owned(),
            400,
            "request_malformed",
        ),
        ("no colon", "GET / HTTP/1.1\r\nHost: x\r\nabc\r\n\r\n".to_owned(), 400, "request_malformed"),
        (
            "a control byte",
            "GET / HTTP/1.1\r\nHost: x\r\nA: \u{0}\r\n\r\n".to_owned(),
            400,
            "request_malformed",
        ),
        (
            "both lengths",
            format!("{post}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"),
            400,
            "request_malformed",
        ),
        (
            "two lengths",
            format!("{post}Content-Length: 2\r\nContent-Length: 2\r\n\r\n{{}}"),
            400,
            "request_malformed",
        ),
        ("no number", format!("{post}Content-Length: two\r\n\r\n{{}}"), 400, "request_malformed"),
        ("a signed number", format!("{post}Content-Length: +2\r\n\r\n{{}}"), 400, "request_malformed"),
        (
            "another coding",
            format!("{post}Transfer-Encoding: gzip, chunked\r\n\r\n"),
            400,
            "request_malformed",
        ),
        (
            "chunks in HTTP/1.0",
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
            400,
            "request_malformed",
        ),
        ("no length in HTTP/1.0", "POST / HTTP/1.0\r\n\r\n".to_owned(), 400, "request_malformed"),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 505, "http_version_unsupported"),
        ("HTTP/9.9", "GET / HTTP/9.9\r\nHost: x\r\n\r\n".to_owned(), 505, "http_version_unsupported"),
        ("a long path", path(9_000), 414, "uri_too_long"),
        ("a longer path", path(70_000), 414, "uri_too_long"),
        ("an endless path", path(1_000_000), 414, "uri_too_long"),
        ("a long header", header(40_000), 431, "headers_too_large"),
        ("a longer header", header(100_000), 431, "headers_too_large"),
        ("an endless header", header(1_000_000), 431, "headers_too_large"),
        ("many headers", lines(96), 431, "headers_too_large"),
        ("endless headers", lines(100_000), 431, "headers_too_large"),
        ("no chunk size", format!("{post}Transfer-Encoding: chunked\r\n\r\nzz\r\n"), 400, "body_incomplete"),
        (
            "a huge chunk size",
            format!("{post}Transfer-Encoding: chunked\r\n\r\n{}\r\n", "f".repeat(40)),
            400,
            "body_incomplete",
        ),
        (
            "a chunk that goes on",
            format!("{post}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}}}\r\n0\r\n\r\n"),
            400,
            "body_incomplete",
        ),
        (
            "a bad second chunk",
            format!("{post}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n-1\r\n"),
            400,
            "body_incomplete",
        ),
        ("CONNECT", "CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 404, "route_not_found"),
        (
            "TRACE",
            "TRACE /v1/charges HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(),
            405,
            "method_not_allowed",
        ),
        (
            "a made-up method",
            "BREW /v1/charges HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(),
            405,
            "method_not_allowed",
        ),
        (
            "no path but a star",
            "OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(),
            404,
            "route_not_found",
        ),
    ];
    for (name, bytes, status, code) in cases {
        let mut answers = exchange(&app.client, bytes.as_bytes());
        assert_eq!(answers.len(), 1, "{name}");
        answers.remove(0).is_last_problem(name, status, code);
    }
    let hello = [0x16, 3, 1, 0, 5, 1, 0, 0, 1, 3];
    let refused = exchange(&app.client, &hello);
    refused[0].is_last_problem("TLS", 400, "request_malformed");
    assert!(String::from_utf8_lossy(&refused[0].body).contains("TLS"));
    // The largest that are taken.
    assert_eq!(app.client.get(&format!("/{}", "p".repeat(8_000))).status, 404);
    assert_eq!(app.client.request("GET", "/healthz").header("A", &"a".repeat(30_000)).send().status, 200);

    // What breaks off, too, if its client still listens.
    for (name, bytes, code) in [
        ("a head", "GET / HTTP/1.1\r\nHost".to_owned(), "request_malformed"),
        ("a body", format!("{post}Content-Length: 9\r\n\r\n{{"), "body_incomplete"),
        ("chunks", format!("{post}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n"), "body_incomplete"),
    ] {
        let mut stream = connect(&app.client);
        send(&mut stream, bytes.as_bytes());
        stream.shutdown(Shutdown::Write).unwrap();
        let answers = answers(&mut stream);
        let problem: Value = serde_json::from_slice(&answers[0].body).unwrap();
        assert_eq!((answers.len(), &problem["code"]), (1, &code.into()), "{name}");
    }
    assert_eq!(database.rows("idempotency_keys"), 0);
    app.client.as_merchant(&merchant).charge("k", &visa()).expect(201);
}

#[test]
fn strangers_with_large_bodies_take_no_merchant_s_place() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let large = || app.client.metrics().value("oncepay_large_bodies", &[]);
    let head = "POST /v1/webhooks/acquirer HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n";
    let mut strangers = Vec::new();
    for _ in 0..512 {
        let mut stream = connect(&app.client);
        send(&mut stream, format!("{head}{}", " ".repeat(9_000)).as_bytes());
        strangers.push(stream);
    }
    eventually("the large bodies", || large() == 512.0);
    let mut one_more = connect(&app.client);
    send(&mut one_more, format!("{head}{}", " ".repeat(9_000)).as_bytes());
    let mut status = [0; 12];
    one_more.read_exact(&mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 503");
    let body = format!("{}{}", " ".repeat(9_000), visa());
    client.change("POST", "/v1/charges", "k", &visa()).body("application/json", body).send().expect(201);
    drop(strangers);
    eventually("their end", || large() == 0.0);
}

#[test]
fn a_refused_request_is_logged_and_counted_like_any_other() {
    let database = TestDatabase::new();
    let server = Process::start_logging(&database, &[("RUST_LOG", "info")]);
    let refused = "POST /v1/charges HTTP/1.1\r\nX-Request-Id: mine\r\n\r\n";
    let answers = exchange(&server.client, refused.as_bytes());
    answers[0].is_last_problem("no host", 400, "request_malformed");
    assert_eq!(answers[0].header("x-request-id"), Some("mine"));
    let problem: Value = serde_json::from_slice(&answers[0].body).unwrap();
    assert_eq!(problem["instance"], "/v1/charges");
    assert!(problem["detail"].as_str().unwrap().contains("`Host`"), "{problem}");
    // Unreadable ones have an id of ours. One that could end a header is no id.
    for id in ["", "X-Request-Id: a b\r\n", "X-Request-Id: a\r\nX-Request-Id: b\r\n"] {
        let answers = exchange(&server.client, format!("GET / HTTP/1.1\r\n{id}\r\n").as_bytes());
        assert!(answers[0].header("x-request-id").unwrap().starts_with("req_"), "{id}");
    }
    let labels = [("method", "other"), ("route", "unmatched"), ("status", "400")];
    assert_eq!(server.client.metrics().value("oncepay_http_requests_total", &labels), 4.0);
    // A key isn't logged, even of a request that is refused.
    exchange(&server.client, b"GET /v1/idempotency-keys/of-alice HTTP/1.1\r\n\r\n");
    let log = server.log();
    let line = log.lines().find(|line| line.contains("request_id=mine")).expect("a line");
    assert!(line.contains("POST /v1/charges") && line.contains("status=400"), "{line}");
    assert!(!log.contains("alice"), "{log}");
}

#[test]
fn a_request_before_a_malformed_one_is_answered_first() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let answers =
        exchange(&app.client, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/charges HTTP/1.1\r\n\r\n");
    assert_eq!(answers.len(), 2);
    assert_eq!(answers[0].status, 200);
    answers[1].is_last_problem("the second", 400, "request_malformed");
}

#[test]
fn wishes_for_another_protocol_and_empty_lines_change_nothing() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let key = database.merchant().key;
    let body = r#"{"amount":"10.00","currency":"USD","payment_method":"pm_card_visa"}"#;
    let length = body.len();
    let mut requests = String::new();
    let wishes = [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n",
        "Connection: upgrade\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\n",
        "Upgrade: websocket\r\n",
        "",
    ];
    for (number, wish) in wishes.iter().enumerate() {
        requests.push_str(&format!(
            "POST /v1/charges HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nIdempotency-Key: k{number}\r\n\
             Content-Type: application/json\r\n{wish}Content-Length: {length}\r\n\r\n{body}\r\n"
        ));
    }
    let mut stream = connect(&app.client);
    let asked = Instant::now();
    send(&mut stream, requests.as_bytes());
    let answers = answers(&mut stream);
    let statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [201; 5], "each is answered, and nothing else");
    for answer in answers {
        assert_eq!(answer.header("connection"), None, "{}", answer.head);
    }
    assert!(asked.elapsed() >= Duration::from_secs(4), "the connection is kept for the next request");
}

#[test]
fn a_slow_request_is_told_so_and_disconnected() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let app = App::start(&database);
    let post = format!(
        "POST /v1/charges HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nIdempotency-Key: k\r\n\
         Content-Type: application/json\r\n",
        merchant.key
    );
    let drip = "1\r\n \r\n".repeat(40);
    // What comes at once, and what comes later, half a second between two bytes.
    let cases = [
        ("a client that says nothing", String::new(), "", "head_timeout"),
        ("a head that stalls", "GET /healthz HTT".to_owned(), "", "head_timeout"),
        (
            "a head that drips",
            "GET /healthz HTTP/1.1\r\nA: ".to_owned(),
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "head_timeout",
        ),
        ("a body that stalls", format!("{post}Content-Length: 90\r\n\r\n{{"), "", "body_timeout"),
        (
            "a body that drips",
            format!("{post}Content-Length: 90\r\n\r\n"),
            "{                               ",
            "body_timeout",
        ),
        (
            "chunks that stall",
            format!("{post}Transfer-Encoding: chunked\r\n\r\n1\r\n{{\r\n"),
            "",
            "body_timeout",
        ),
        (
            "chunks that drip",
            format!("{post}Transfer-Encoding: chunked\r\n\r\n"),
            drip.as_str(),
            "body_timeout",
        ),
    ];
    thread::scope(|scope| {
        for (name, at_once, later, code) in &cases {
            let client = &app.client;
            scope.spawn(move || {
                let began = Instant::now();
                let mut stream = connect(client);
                send(&mut stream, at_once.as_bytes());
                let mut dripping = stream.try_clone().unwrap();
                let later = later.as_bytes();
                scope.spawn(move || {
                    for byte in later {
                        thread::sleep(Duration::from_millis(500));
                        if dripping.write_all(&[*byte]).is_err() {
                            break;
                        }
                    }
                });
                let answers = answers(&mut stream);
                assert_eq!(answers.len(), 1, "{name}");
                answers[0].is_last_problem(name, 408, code);
                let took = began.elapsed();
                assert!(took > Duration::from_secs(9) && took < Duration::from_secs(15), "{name}: {took:?}");
            });
        }
        // A later request of a connection has no more time than its first.
        let client = &app.client;
        scope.spawn(move || {
            let mut stream = connect(client);
            send(&mut stream, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /heal");
            let answers = answers(&mut stream);
            assert_eq!((answers.len(), answers[0].status), (2, 200));
            answers[1].is_last_problem("a later head", 408, "head_timeout");
        });
        // One that sends nothing more has ended, and isn't told anything.
        scope.spawn(move || {
            let began = Instant::now();
            let mut stream = connect(client);
            send(&mut stream, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
            assert_eq!(answers(&mut stream).len(), 1);
            let idle = began.elapsed();
            assert!(idle > Duration::from_secs(4) && idle < Duration::from_secs(8), "{idle:?}");
        });
    });
    assert_eq!(database.rows("idempotency_keys"), 0);
    app.client.as_merchant(&merchant).charge("k", &visa()).expect(201);
}

#[test]
fn a_body_that_nobody_wants_is_not_read_to_its_end() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    for head in [
        "POST /v1/charges HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST /nothing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST /v1/charges HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n",
    ] {
        let mut stream = connect(&app.client);
        send(&mut stream, head.as_bytes());
        let mut sending = stream.try_clone().unwrap();
        let sender = thread::spawn(move || {
            let began = Instant::now();
            let chunk = format!("400\r\n{}\r\n", " ".repeat(1024));
            while sending.write_all(chunk.as_bytes()).is_ok() {
                assert!(began.elapsed() < Duration::from_secs(10), "the service still reads");
            }
        });
        let mut first = [0; 12];
        stream.read_exact(&mut first).unwrap();
        assert!(first.starts_with(b"HTTP/1.1 40"), "{head}");
        sender.join().unwrap();
    }
}

#[test]
fn requests_that_are_sent_ahead_are_answered_in_order_and_one_by_one() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let app = App::start(&database);
    let mut bytes = String::new();
    for number in 0..60 {
        bytes.push_str(&format!(
            "POST /v1/charges HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nIdempotency-Key: k{number}\r\n\
             Content-Type: application/json\r\nX-Request-Id: r{number}\r\n",
            merchant.key
        ));
        let body = visa().to_string();
        match number % 2 {
            0 => bytes.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len())),
            _ => bytes.push_str(&format!(
                "Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
                body.len()
            )),
        }
    }
    bytes.push_str("GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let answers = exchange(&app.client, bytes.as_bytes());
    assert_eq!(answers.len(), 61);
    for (number, answer) in answers[..60].iter().enumerate() {
        assert_eq!(
            (answer.status, answer.header("x-request-id")),
            (201, Some(format!("r{number}").as_str()))
        );
    }
    assert_eq!(database.rows("charges"), 60);
}

#[test]
fn clients_that_do_not_read_their_answers_cost_little() {
    let database = TestDatabase::new();
    let server = Process::start(&database, &[]);
    let client = &server.client;
    let paths = ["/openapi.json", "/docs/swagger-ui-bundle.js"];
    for path in paths {
        client.get(path).expect(200);
    }
    let memory = || client.metrics().value("process_resident_memory_bytes", &[]);
    let before = memory();
    let requests = paths.map(|path| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).concat().repeat(25);
    let mut connections = Vec::new();
    for _ in 0..150 {
        let mut stream = connect(client);
        // Not all that the kernel might take.
        socket2::SockRef::from(&stream).set_recv_buffer_size(4096).unwrap();
        send(&mut stream, requests.as_bytes());
        connections.push(stream);
    }
    eventually("their answers", || {
        let labels = [("method", "GET"), ("route", "/openapi.json"), ("status", "200")];
        client.metrics().value("oncepay_http_requests_total", &labels) >= 151.0
    });
    client.get("/healthz").expect(200);
    let grown = memory() - before;
    assert!(grown < 150.0 * 150_000.0, "{grown} bytes for {} connections", connections.len());
}

#[test]
fn more_connections_than_there_may_be_wait_until_one_ends() {
    let database = TestDatabase::new();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let app = App::start_with(&database, |config| config.connections_max = threads as u32);
    let held: Vec<_> = (0..threads)
        .map(|_| {
            let mut stream = connect(&app.client);
            stream.write_all(b"GET /healthz HTTP/1.1\r\n").unwrap();
            stream
        })
        .collect();
    let mut late = connect(&app.client);
    late.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    late.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut byte = [0];
    let early = late.read(&mut byte).map_err(|error| error.kind());
    assert_eq!(early, Err(ErrorKind::WouldBlock), "it was served beside {threads} others");
    drop(held);
    late.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(answers(&mut late)[0].status, 200);
}
