//! Crossbank, a made-up provider: a small server in the test process.
//!
//! Crossbank has nothing in common with our own protocol: bodies are form-encoded, amounts are in minor
//! units, idempotency keys are a field (`dedupe`), and messages are signed in one header. Its books are in
//! memory, and outlive a stop of the server.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use chrono::Utc;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use url::form_urlencoded;

use crate::support::free_port;

/// API key of our service.
pub const API_KEY: &str = "crossbank-key";
/// Secret that signs messages.
pub const SECRET: &str = "crossbank-secret";
/// Maximum number of entries in a page of the books.
const PAGE_MAX: usize = 50;
/// Interval at which the server looks whether it has to stop.
const TICK: Duration = Duration::from_millis(5);

/// The fields of a form.
pub type Form = BTreeMap<String, String>;

/// An entry in Crossbank's books.
#[derive(Clone, Debug)]
pub struct Entry {
    pub id: String,
    /// Position in the books. Grows with every entry and change.
    pub mark: i64,
    /// `hold`, `collect`, `release`, `reverse` or `transfer`.
    pub verb: &'static str,
    /// `done`, `denied`, `undecided`, `arrived` or `returned`.
    pub state: &'static str,
    pub denial: Option<&'static str>,
    pub hold: Option<String>,
    /// Fields of the request.
    pub form: Form,
    path: String,
    at_ms: i64,
}

impl Entry {
    pub fn dedupe(&self) -> &str {
        &self.form["dedupe"]
    }

    fn json(&self) -> Value {
        json!({
            "entry": self.id, "mark": self.mark, "verb": self.verb, "state": self.state, "denial": self.denial,
            "hold": self.hold, "dedupe": self.form["dedupe"], "account": self.form["account"],
            "order": self.form["order"], "minor": self.minor(), "currency": self.form.get("currency"),
            "at_ms": self.at_ms,
        })
    }

    fn minor(&self) -> Option<i64> {
        self.form.get("minor").map(|minor| minor.parse().expect("it was checked"))
    }

    fn is_in_effect(&self) -> bool {
        self.state != "denied"
    }
}

/// Faults of the server, in percent of the requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Performs the call, and closes the connection.
    pub drop_answer: u8,
    /// Answers 500 and does nothing.
    pub error_before: u8,
    /// Performs the call, and answers 500.
    pub error_after: u8,
    /// Answers 503 with this `Retry-After` and does nothing.
    pub busy_for_s: Option<u64>,
    /// Delay of each answer.
    pub delay_ms: u64,
}

/// Crossbank's books.
#[derive(Default)]
struct Books {
    entries: Vec<Entry>,
    mark: i64,
    /// Keys whose first request has failed or whose first answer was lost, as their source demands.
    had_their_fault: Vec<String>,
    faults: Faults,
    /// Number of times that each fault has struck, in the order of the fields.
    hits: [u32; 3],
    /// Bodies of requests, as received.
    bodies: Vec<String>,
}

/// An answer to a request.
enum Answer {
    Json(u16, Value),
    /// No answer: the connection is closed.
    Nothing,
}

fn fault(status: u16, code: &str) -> Answer {
    Answer::Json(status, json!({"fault": code}))
}

impl Books {
    fn of_hold(&self, hold: &str) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |entry| entry.hold.as_deref() == Some(hold) && entry.is_in_effect())
    }

    fn total(&self, hold: &str, verb: &str) -> i64 {
        self.of_hold(hold).filter(|entry| entry.verb == verb).filter_map(Entry::minor).sum()
    }

    fn has(&self, hold: &str, verb: &str) -> bool {
        self.of_hold(hold).any(|entry| entry.verb == verb)
    }

    fn next_mark(&mut self) -> i64 {
        self.mark += 1;
        self.mark
    }

    fn enter(&mut self, path: &str, form: Form, verb: &'static str, hold: Option<String>) -> Entry {
        let mark = self.next_mark();
        let (mut state, mut denial) = ("done", None);
        if verb == "hold" {
            (state, denial) = match form["source"].as_str() {
                "src_good" | "src_flaky" | "src_silent" => ("done", None),
                "src_later" => ("undecided", None),
                "src_poor" => ("denied", Some("insufficient_funds")),
                "src_stolen" => ("denied", Some("stolen_card")),
                _ => ("denied", Some("unknown_source")),
            };
        }
        let hold = hold.or_else(|| (verb == "hold").then(|| format!("ho_{mark}")));
        let at_ms = Utc::now().timestamp_millis();
        let (id, path) = (format!("en_{mark}"), path.to_owned());
        let entry = Entry { id, mark, verb, state, denial, hold, form, path, at_ms };
        self.entries.push(entry.clone());
        entry
    }

    /// Performs a call, once per key.
    fn perform(&mut self, path: &str, form: Form) -> Answer {
        for name in ["dedupe", "account", "order"] {
            if form.get(name).is_none_or(String::is_empty) {
                return fault(400, "field_missing");
            }
        }
        let dedupe = form["dedupe"].clone();
        if let Some(known) = self.entries.iter().find(|entry| entry.dedupe() == dedupe) {
            let is_same = known.path == path && known.form == form;
            return if is_same { Answer::Json(200, known.json()) } else { fault(409, "dedupe_reused") };
        }
        let is_amount =
            form.get("minor").and_then(|minor| minor.parse::<i64>().ok()).is_some_and(|it| it > 0);
        let minor = || form["minor"].parse::<i64>().expect("it was checked");
        let parts: Vec<_> = path.trim_matches('/').split('/').collect();
        if !matches!(parts[..], [_, "holds", _, "release"]) && !is_amount {
            return fault(400, "minor_invalid");
        }
        let entry = match parts[..] {
            ["v2", "holds"] => self.enter(path, form, "hold", None),
            ["v2", "transfers"] => self.enter(path, form, "transfer", None),
            ["v2", "holds", hold, verb] => {
                let Some(held) = self.of_hold(hold).find(|entry| entry.verb == "hold").cloned() else {
                    return fault(404, "no_such_hold");
                };
                let is_spent = self.has(hold, "collect") || self.has(hold, "release");
                let verb = match verb {
                    "collect" if is_spent || held.state != "done" => return fault(409, "hold_spent"),
                    "collect" if Some(minor()) > held.minor() => return fault(409, "too_much"),
                    "release" if is_spent => return fault(409, "hold_spent"),
                    "reverse" if minor() + self.total(hold, "reverse") > self.total(hold, "collect") => {
                        return fault(409, "too_much");
                    }
                    "collect" => "collect",
                    "release" => "release",
                    "reverse" => "reverse",
                    _ => return fault(404, "no_such_path"),
                };
                self.enter(path, form, verb, Some(hold.to_owned()))
            }
            _ => return fault(404, "no_such_path"),
        };
        Answer::Json(201, entry.json())
    }

    /// Draws whether a fault of this probability strikes.
    fn strikes(&mut self, place: usize, percent: u8) -> bool {
        let strikes = rand::random_range(0..100) < percent;
        self.hits[place] += u32::from(strikes);
        strikes
    }

    /// Returns true the first time that a key has its fault.
    fn is_first(&mut self, dedupe: &str) -> bool {
        let is_first = !self.had_their_fault.iter().any(|had| had == dedupe);
        if is_first {
            self.had_their_fault.push(dedupe.to_owned());
        }
        is_first
    }

    fn handle(&mut self, method: &str, target: &str, body: &str) -> Answer {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let faults = self.faults;
        if faults.busy_for_s.is_some() {
            return fault(503, "busy");
        }
        if self.strikes(1, faults.error_before) {
            return fault(500, "broken");
        }
        let mut answer = match (method, path) {
            ("POST", _) => {
                self.bodies.push(body.to_owned());
                let form: Form = form_urlencoded::parse(body.as_bytes()).into_owned().collect();
                let dedupe = form.get("dedupe").cloned().unwrap_or_default();
                let source = form.get("source").cloned().unwrap_or_default();
                if source == "src_flaky" && self.is_first(&dedupe) {
                    return fault(500, "broken");
                }
                let answer = self.perform(path, form);
                if source == "src_silent" && self.is_first(&dedupe) { Answer::Nothing } else { answer }
            }
            ("GET", "/v2/entries") => self.list(query),
            ("GET", _) => {
                let key = path.strip_prefix("/v2/entries/").unwrap_or_default();
                let key = percent_encoding::percent_decode_str(key).decode_utf8_lossy();
                let found = self.entries.iter().find(|entry| entry.dedupe() == key);
                found.map_or_else(|| fault(404, "no_such_entry"), |entry| Answer::Json(200, entry.json()))
            }
            _ => fault(405, "no_such_path"),
        };
        if self.strikes(0, faults.drop_answer) {
            answer = Answer::Nothing;
        }
        if self.strikes(2, faults.error_after) {
            answer = fault(500, "broken");
        }
        answer
    }

    fn list(&self, query: &str) -> Answer {
        let query: Form = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let after: i64 = query["newer_than"].parse().expect("a number");
        let most: usize = query["max"].parse().expect("a number");
        let mut entries: Vec<_> = self.entries.iter().filter(|entry| entry.mark > after).collect();
        entries.sort_by_key(|entry| entry.mark);
        let (all, most) = (entries.len(), most.min(PAGE_MAX));
        entries.truncate(most);
        let entries: Vec<_> = entries.into_iter().map(Entry::json).collect();
        Answer::Json(200, json!({"last": all <= most, "entries": entries}))
    }
}

/// State that the threads of a server share.
#[derive(Default)]
struct Shared {
    books: Mutex<Books>,
    is_stopped: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
}

impl Shared {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap()
    }
}

/// A running Crossbank.
pub struct Crossbank {
    port: u16,
    shared: Arc<Shared>,
    listening: Option<JoinHandle<()>>,
    events: AtomicU64,
}

impl Crossbank {
    pub fn start() -> Self {
        let mut this =
            Self { port: free_port(), shared: Arc::default(), listening: None, events: AtomicU64::new(0) };
        this.start_again();
        this
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Starts the server on the same port, after [`stop`](Self::stop).
    pub fn start_again(&mut self) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        self.shared.is_stopped.store(false, Ordering::Relaxed);
        let shared = Arc::clone(&self.shared);
        self.listening = Some(thread::spawn(move || {
            while !shared.is_stopped.load(Ordering::Relaxed) {
                let Ok((stream, _)) = listener.accept() else {
                    thread::sleep(TICK);
                    continue;
                };
                stream.set_nonblocking(false).unwrap();
                let _ = stream.set_nodelay(true);
                shared.connections.lock().unwrap().push(stream.try_clone().unwrap());
                let shared = Arc::clone(&shared);
                // A client that disconnects early gets no answer.
                thread::spawn(move || serve(stream, &shared));
            }
        }));
    }

    /// Stops the server and closes all connections. The books stay.
    pub fn stop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
        if let Some(listening) = self.listening.take() {
            listening.join().unwrap();
        }
        for connection in self.shared.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    pub fn misbehave(&self, faults: Faults) {
        self.shared.books().faults = faults;
    }

    /// Returns how often `drop_answer`, `error_before` and `error_after` have struck.
    pub fn hits(&self) -> [u32; 3] {
        self.shared.books().hits
    }

    pub fn entries(&self) -> Vec<Entry> {
        self.shared.books().entries.clone()
    }

    /// Returns the bodies of the requests, as received.
    pub fn bodies(&self) -> Vec<String> {
        self.shared.books().bodies.clone()
    }

    /// Returns how often each call has taken effect, by our key.
    pub fn effects(&self) -> BTreeMap<String, u32> {
        let mut effects = BTreeMap::new();
        for entry in self.entries().iter().filter(|entry| entry.is_in_effect()) {
            *effects.entry(entry.dedupe().to_owned()).or_default() += 1;
        }
        effects
    }

    /// Removes the last entry of a kind from the books.
    pub fn forget_last(&self, verb: &str) {
        let mut books = self.shared.books();
        let place = books.entries.iter().rposition(|entry| entry.verb == verb).expect("there is one");
        books.entries.remove(place);
    }

    /// Changes the state of the entry of a kind for one of our objects. Collects an approved hold that is to
    /// be collected at once. Returns the message of type `name` that reports the change.
    pub fn decide(
        &self,
        verb: &str,
        order: &str,
        state: &'static str,
        denial: Option<&'static str>,
        name: &str,
    ) -> Message {
        let mut books = self.shared.books();
        let mark = books.next_mark();
        let is_it = |entry: &&mut Entry| entry.verb == verb && entry.form["order"] == order;
        let entry = books.entries.iter_mut().find(is_it).expect("it was asked for");
        (entry.state, entry.denial, entry.mark) = (state, denial, mark);
        let entry = entry.clone();
        let collect = entry.form.get("collect_dedupe").filter(|_| state == "done");
        if let (Some(dedupe), Some(hold)) = (collect, &entry.hold) {
            let mut form = entry.form.clone();
            form.retain(|name, _| ["account", "order", "minor", "currency"].contains(&name.as_str()));
            form.insert("dedupe".to_owned(), dedupe.clone());
            books.perform(&format!("/v2/holds/{hold}/collect"), form);
        }
        drop(books);
        let subject = json!({"account": entry.form["account"], "order": order, "denial": denial});
        self.message(name, &subject)
    }

    /// Makes a message, signed now.
    pub fn message(&self, name: &str, subject: &Value) -> Message {
        let id = format!("n_{}", self.events.fetch_add(1, Ordering::Relaxed));
        Message::new(&json!({"event": {"id": id, "name": name}, "subject": subject}))
    }
}

impl Drop for Crossbank {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A message from Crossbank.
#[derive(Clone, Debug)]
pub struct Message {
    pub signature: String,
    pub body: String,
}

impl Message {
    pub fn new(body: &Value) -> Self {
        Self::signed(body, SECRET, Utc::now().timestamp())
    }

    pub fn signed(body: &Value, secret: &str, at: i64) -> Self {
        let body = body.to_string();
        Self { signature: format!("t={at},v1={}", sign(secret, &at.to_string(), body.as_bytes())), body }
    }
}

/// Returns the signature of a message, in hex.
pub fn sign(secret: &str, at: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(format!("{at}.").as_bytes());
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

/// Answers the requests on a connection, one after the other.
fn serve(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line == "\r\n" {
                break;
            }
            head.push(line.trim_end().to_owned());
        }
        let header = |name: &str| {
            let found = head.iter().filter_map(|line| line.split_once(": "));
            found.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
        };
        let mut body = vec![0; header("content-length").map_or(0, |length| length.parse().unwrap())];
        reader.read_exact(&mut body)?;
        let request: Vec<_> = head[0].split(' ').collect();
        let is_form = header("content-type") == Some("application/x-www-form-urlencoded");
        let delay = shared.books().faults.delay_ms;
        thread::sleep(Duration::from_millis(delay));
        let answer = match (request[0], request[1]) {
            _ if shared.is_stopped.load(Ordering::Relaxed) => Answer::Nothing,
            ("GET", "/v2/ping") => Answer::Json(200, json!({})),
            _ if header("x-api-key") != Some(API_KEY) => fault(401, "who_are_you"),
            ("POST", _) if !is_form => fault(415, "form_expected"),
            (method, target) => shared.books().handle(method, target, &String::from_utf8(body).unwrap()),
        };
        let Answer::Json(status, answer) = answer else {
            let _ = stream.shutdown(Shutdown::Both);
            return Ok(());
        };
        let answer = answer.to_string();
        let retry_after = match (status, shared.books().faults.busy_for_s) {
            (503, Some(seconds)) => format!("Retry-After: {seconds}\r\n"),
            _ => String::new(),
        };
        write!(
            stream,
            "HTTP/1.1 {status} Status\r\n{retry_after}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{answer}",
            answer.len()
        )?;
    }
}
