//! Receivers of webhooks that would keep the service busy.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::*;

/// What a receiver does with a connection.
#[derive(Clone, Copy)]
enum Behavior {
    /// Sends the first part, and the second one again and again.
    Endless(&'static [u8], &'static [u8]),
    /// The same, a byte at a time with pauses between them.
    Dripping(&'static [u8], &'static [u8]),
    /// Sends the first part, and nothing more.
    Silent(&'static [u8]),
}

use Behavior::{Dripping, Endless, Silent};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\n";
const ENDLESS_BODY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n";
const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
/// A chunk of eight bytes.
const CHUNK: &[u8] = b"8\r\nxxxxxxxx\r\n";
/// TLS's request to negotiate anew, which a client ignores during a handshake (RFC 5246, section 7.4.1.1).
const HELLO_REQUEST: &[u8] = &[22, 3, 3, 0, 4, 0, 0, 0, 0];

/// A name, the scheme, what the receiver does, and what an attempt notes as `error` and as `status`.
type Case = (&'static str, &'static str, Behavior, Option<&'static str>, Option<u16>);

const CASES: &[Case] = &[
    (
        "100 Continue without end",
        "http",
        Endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        Some("answer_too_long"),
        None,
    ),
    (
        "early hints without end",
        "http",
        Endless(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"),
        Some("answer_too_long"),
        None,
    ),
    (
        "100 Continue, dripping",
        "http",
        Dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        Some("timeout"),
        None,
    ),
    ("a reason without end", "http", Endless(b"HTTP/1.1 200 ", b"OK"), Some("answer_too_long"), None),
    ("a header without end", "http", Endless(b"HTTP/1.1 200 OK\r\nA: ", b"a"), Some("answer_too_long"), None),
    ("headers without end", "http", Endless(OK, b"A: a\r\n"), Some("connection_failed"), None),
    ("headers, dripping", "http", Dripping(OK, b"A: a\r\n"), Some("timeout"), None),
    ("a body without end", "http", Endless(ENDLESS_BODY, b"xxxxxxxx"), None, Some(200)),
    (
        "a body without end or length",
        "http",
        Endless(b"HTTP/1.1 200 OK\r\n\r\n", b"xxxxxxxx"),
        None,
        Some(200),
    ),
    ("a body, dripping", "http", Dripping(ENDLESS_BODY, b"x"), None, Some(200)),
    ("chunks without end", "http", Endless(CHUNKED, CHUNK), None, Some(200)),
    ("a chunk's length without end", "http", Endless(CHUNKED, b"0000000000"), None, Some(200)),
    (
        "a chunk's extension without end",
        "http",
        Endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8;", b"a=b;"),
        None,
        Some(200),
    ),
    (
        "trailers without end",
        "http",
        Endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"A: a\r\n"),
        None,
        Some(200),
    ),
    (
        "a redirect to itself, with a body without end",
        "http",
        Endless(b"HTTP/1.1 307 Again\r\nLocation: /\r\n\r\n", b"x"),
        Some("redirected"),
        Some(307),
    ),
    ("no HTTP", "http", Endless(b"", b"\0\x01\x02\x03\xff"), Some("connection_failed"), None),
    ("silence", "http", Silent(b""), Some("timeout"), None),
    ("a handshake without end", "https", Endless(b"", HELLO_REQUEST), Some("timeout"), None),
    ("a silent handshake", "https", Silent(b""), Some("timeout"), None),
    ("no TLS", "https", Endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), Some("tls_failed"), None),
];

/// Starts a receiver; returns its address, and how many bytes it could send.
fn receiver(behavior: Behavior, reads_request: bool) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let sent = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&sent);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let count = Arc::clone(&count);
            // It ends when the service hangs up.
            thread::spawn(move || behave(stream?, behavior, reads_request, &count));
        }
    });
    (address, sent)
}

fn behave(
    mut stream: TcpStream,
    behavior: Behavior,
    reads_request: bool,
    sent: &AtomicUsize,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    if reads_request {
        let mut line = String::new();
        while reader.read_line(&mut line)? > 0 && line != "\r\n" {
            line.clear();
        }
    }
    let mut send = |bytes: &[u8]| {
        stream.write_all(bytes)?;
        sent.fetch_add(bytes.len(), Ordering::Relaxed);
        Ok::<_, std::io::Error>(())
    };
    match behavior {
        Endless(first, more) => {
            let many = more.repeat(4096 / more.len());
            // Together: HTTP libraries look more closely at what comes first, and only there for too many headers.
            send(&[first, &many].concat())?;
            loop {
                send(&many)?;
            }
        }
        Dripping(first, more) => {
            send(first)?;
            loop {
                for byte in more.chunks(1) {
                    send(byte)?;
                    thread::sleep(Duration::from_millis(10));
                }
            }
        }
        Silent(first) => {
            send(first)?;
            reader.fill_buf()?;
            thread::sleep(Duration::from_secs(60));
            Ok(())
        }
    }
}

/// Starts a service that tries each delivery once.
fn start(database: &TestDatabase) -> App {
    App::start_with(database, |config| {
        config.webhook_allow_loopback = true;
        config.delivery.delivery_interval_ms = 20;
        config.delivery.delivery_timeout_ms = 2_000;
        config.delivery.delivery_connect_timeout_ms = 1_000;
        config.delivery.delivery_backoff_ms = 600_000;
    })
}

/// The delivery of a client's only event to its only endpoint.
fn delivery(client: &Client) -> Value {
    let event = client.get("/v1/events").expect(200).json()["data"][0]["id"].clone();
    let path = format!("/v1/events/{}/deliveries", event.as_str().unwrap());
    client.get(&path).expect(200).json()["data"][0].clone()
}

#[test]
fn receivers_get_no_more_attention_than_an_answer_deserves() {
    /// What the buffers of both sides take, beyond what is read.
    const SENT_MAX: usize = 8 * 1024 * 1024;
    let database = TestDatabase::new();
    let app = start(&database);
    let receivers: Vec<_> = CASES
        .iter()
        .map(|&(name, scheme, behavior, error, status)| {
            let client = app.client.as_merchant(&database.merchant());
            let (address, sent) = receiver(behavior, scheme == "http");
            let endpoint = json!({"url": format!("{scheme}://{address}/")});
            client.send("POST", "/v1/webhook-endpoints", "endpoint", &endpoint).expect(201);
            client.charge("charge", &visa()).expect(201);
            (name, client, sent, error, status)
        })
        .collect();
    let attempted = "SELECT count(*) FROM webhook_deliveries WHERE attempts <> '[]'";
    eventually("an attempt at each", || database.count(attempted) == CASES.len() as i64);
    for (name, client, sent, error, status) in receivers {
        let delivery = delivery(&client);
        let attempt = &delivery["attempts"][0];
        assert_eq!(
            (&attempt["error"], &attempt["status"]),
            (&json!(error), &json!(status)),
            "{name}: {delivery}"
        );
        let sent = sent.load(Ordering::Relaxed);
        assert!(sent < SENT_MAX, "{name}: {sent} bytes were taken");
        println!("{name}: {sent}");
    }
}

#[test]
fn an_answer_that_is_longer_than_usual_is_read_with_pauses() {
    // 15,000 bytes, of which eight KiB are read at once and the rest in pieces of two KiB.
    let answer =
        [b"HTTP/1.1 100 Continue\r\n\r\n".repeat(600), OK.into(), b"Content-Length: 0\r\n\r\n".into()];
    let (address, _) = receiver(Silent(answer.concat().leak()), true);
    let database = TestDatabase::new();
    let app = start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let endpoint = json!({"url": format!("http://{address}/")});
    client.send("POST", "/v1/webhook-endpoints", "endpoint", &endpoint).expect(201);
    client.charge("charge", &visa()).expect(201);
    eventually("the delivery", || {
        database.count("SELECT count(*) FROM webhook_deliveries WHERE state = 'succeeded'") == 1
    });
    let attempt = delivery(&client)["attempts"][0].clone();
    assert!(attempt["duration_ms"].as_i64() >= Some(150), "{attempt}");
}
