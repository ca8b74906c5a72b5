//! The acquirer, in this process, and a receiver of its webhooks.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use diesel::RunQueryDsl;
use oncepay::dev::database::OWNER;
use oncepay::processor::ProcessorOptions;
use oncepay::simulator::{Settings, Thread, Webhook};
use oncepay::storage::db;
use secrecy::SecretString;
use serde_json::{Value, json};

use super::database::{TestDatabase, create};

/// Signs the webhooks of every acquirer of the tests.
pub const WEBHOOK_SECRET: &str = "whsec_b25jZXBheSB0ZXN0IHNlY3JldCAwMTIzNDU2Nzg5";

/// An acquirer with a database of its own, which vanishes with this value.
pub struct Acquirer {
    /// Where it's reached, `http://…`.
    pub url: String,
    /// Where its control is.
    pub control_url: String,
    pub api_key: String,
    /// As its owner.
    pub database_url: SecretString,
    settings: Settings,
    database: String,
    superuser_url: SecretString,
    /// Whether the database ends with this value.
    owns_database: bool,
    running: Option<Thread>,
}

impl Acquirer {
    /// Starts one whose events stay in its outbox.
    pub fn start(database: &TestDatabase) -> Self {
        Self::start_with(database, |_| {})
    }

    /// Starts one that sends its events to `webhook_url`.
    pub fn start_sending(database: &TestDatabase, webhook_url: &str) -> Self {
        let webhook = Webhook { url: webhook_url.parse().unwrap(), secret: WEBHOOK_SECRET.into() };
        Self::start_with(database, |settings| settings.webhook = Some(webhook))
    }

    /// Starts one with other settings.
    pub fn start_with(database: &TestDatabase, adjust: impl FnOnce(&mut Settings)) -> Self {
        let name = format!("{}_acquirer", database.name());
        create(&mut database.as_superuser(), &name, OWNER, "template1");
        let at_it = |url: &SecretString| -> SecretString {
            let mut url = url::Url::parse(super::database::exposed(url)).unwrap();
            url.set_path(&name);
            String::from(url).into()
        };
        let database_url = at_it(&database.owner_url);
        let api_key = "acquirer-key".to_owned();
        let mut settings = Settings {
            database_url: database_url.clone(),
            api_key: api_key.clone().into(),
            listen: local(),
            control_listen: Some(local()),
            webhook: None,
            decide_after: Duration::from_millis(100),
        };
        adjust(&mut settings);
        let mut this = Self {
            url: String::new(),
            control_url: String::new(),
            api_key,
            database_url,
            settings,
            database: name,
            superuser_url: database.superuser_url.clone(),
            owns_database: true,
            running: None,
        };
        this.start_again();
        this
    }

    /// Starts another one with the database of `first`, as a second process would.
    pub fn start_beside(first: &Self) -> Self {
        let mut this = Self {
            url: String::new(),
            control_url: String::new(),
            api_key: first.api_key.clone(),
            database_url: first.database_url.clone(),
            settings: Settings { listen: local(), control_listen: Some(local()), ..first.settings.clone() },
            database: first.database.clone(),
            superuser_url: first.superuser_url.clone(),
            owns_database: false,
            running: None,
        };
        this.start_again();
        this
    }

    /// How the service reaches it: with timeouts that an acquirer which is merely slow doesn't exceed.
    pub fn options(&self) -> ProcessorOptions {
        ProcessorOptions {
            connect_timeout_ms: 2_000,
            request_timeout_ms: 2_000,
            probe_interval_ms: 50,
            ..ProcessorOptions::at(self.url.parse().unwrap(), self.api_key.clone().into())
        }
    }

    /// The same for a service in a process of its own, with timeouts that fit a short lease.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("ONCEPAY_PROCESSOR_URL", self.url.clone()),
            ("ONCEPAY_PROCESSOR_API_KEY", self.api_key.clone()),
            ("ONCEPAY_PROCESSOR_CONNECT_TIMEOUT_MS", "500".to_owned()),
            ("ONCEPAY_PROCESSOR_REQUEST_TIMEOUT_MS", "500".to_owned()),
            ("ONCEPAY_PROCESSOR_PROBE_INTERVAL_MS", "50".to_owned()),
        ]
    }

    /// Waits until its list shows everything, and will show the same from now on: it holds back what is younger than
    /// any open transaction of the server, also an operation that it has shown before and that has changed.
    pub fn wait_for_its_list(&self) {
        super::eventually("decisions", || {
            self.operations().iter().all(|operation| operation["status"] != "pending")
        });
        let latest =
            || self.operations().iter().map(|operation| operation["sequence"].as_i64().unwrap()).max();
        super::eventually("the acquirer's whole list", || {
            let after = latest().unwrap_or(0) - 1;
            let (_, page) = self.get(&format!("/operations?after={after}")).unwrap();
            !page["operations"].as_array().unwrap().is_empty()
        });
    }

    /// Sends events to `webhook_url`, from the next start on.
    pub fn send_to(&mut self, webhook_url: &str) {
        self.settings.webhook =
            Some(Webhook { url: webhook_url.parse().unwrap(), secret: WEBHOOK_SECRET.into() });
    }

    /// Starts it again on the same ports, after [`stop`](Self::stop).
    pub fn start_again(&mut self) {
        // A process that another test is starting holds our sockets for a moment, also those that are closed here.
        let until = Instant::now() + Duration::from_secs(5);
        let running = loop {
            match Thread::start(self.settings.clone()) {
                Ok(running) => break running,
                Err(taken) if taken.contains(" is taken ") && Instant::now() < until => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(error) => panic!("{error}"),
            }
        };
        let (address, control) = (running.address, running.control_address.unwrap());
        (self.settings.listen, self.settings.control_listen) = (address, Some(control));
        (self.url, self.control_url) = (format!("http://{address}"), format!("http://{control}"));
        self.running = Some(running);
    }

    /// Stops it; its database stays.
    pub fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop();
        }
    }

    /// Replaces its faults (`PUT /control/faults`).
    #[track_caller]
    pub fn control(&self, plan: Value) -> Value {
        self.ask_control("PUT", "faults", &plan)
    }

    /// Its faults, with hits.
    pub fn faults(&self) -> Value {
        let request = ureq::http::Request::get(format!("{}/control/faults", self.control_url));
        json_of(agent().run(request.body(()).unwrap()).unwrap()).1
    }

    /// Makes it refuse connections for a while; returns when it does.
    pub fn refuse(&self, duration: Duration) {
        self.ask_control("POST", "refuse", &json!({"for_ms": duration.as_millis() as u64}));
    }

    /// Makes it send an event. Returns its id.
    pub fn send_event(&self, kind: &str, data: &Value) -> String {
        let event = self.ask_control("POST", "events", &json!({"type": kind, "data": data}));
        event["id"].as_str().unwrap().to_owned()
    }

    /// Settles what a merchant has coming.
    #[track_caller]
    pub fn settle(&self, merchant: &str, currency: &str) -> Value {
        self.ask_control("POST", "settlements", &json!({"merchant": merchant, "currency": currency}))
    }

    #[track_caller]
    fn ask_control(&self, method: &str, path: &str, body: &Value) -> Value {
        let (status, answer) = self.try_control(method, path, body);
        assert!((200..300).contains(&status), "{status} {answer}");
        answer
    }

    /// Asks the control for something that it may refuse.
    pub fn try_control(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}/control/{path}", self.control_url))
            .header("Content-Type", "application/json");
        let answer = agent().run(request.body(body.to_string()).unwrap()).unwrap();
        let (status, _, answer) = parts(answer);
        (status, answer)
    }

    /// All operations in their order. From the database, since the API holds back what is younger than any open
    /// transaction of the server, also those of other tests.
    pub fn operations(&self) -> Vec<Value> {
        self.rows(
            "SELECT to_jsonb(o) || jsonb_build_object('amount', amount::text) AS row FROM operations o ORDER BY sequence",
        )
    }

    /// The events of the outbox, sent or not, in the order of their making.
    pub fn events(&self) -> Vec<Value> {
        self.rows("SELECT body::jsonb || jsonb_build_object('id', id) AS row FROM outbox ORDER BY id")
    }

    /// What a query gives, one `jsonb` named `row` each.
    pub fn rows(&self, query: &str) -> Vec<Value> {
        #[derive(diesel::QueryableByName)]
        struct Row {
            #[diesel(sql_type = diesel::sql_types::Jsonb)]
            row: Value,
        }
        let rows = diesel::sql_query(query).load::<Row>(&mut self.as_owner()).unwrap();
        rows.into_iter().map(|row| row.row).collect()
    }

    pub fn as_owner(&self) -> diesel::PgConnection {
        db::connect(&self.database_url).unwrap()
    }

    /// A request with the key of the acquirer's client.
    pub fn get(&self, path: &str) -> Result<(u16, Value), ureq::Error> {
        let request = ureq::http::Request::get(format!("{}{path}", self.url))
            .header("Authorization", format!("Bearer {}", self.api_key));
        let (status, _, body) = try_parts(agent().run(request.body(()).unwrap())?)?;
        Ok((status, body))
    }

    /// Asks for an operation under `key`. The answer tells also whether it's a replay.
    pub fn post(&self, path: &str, key: &str, body: &Value) -> Result<(u16, bool, Value), ureq::Error> {
        self.post_as(None, path, key, body)
    }

    /// The same, as a certain attempt.
    pub fn post_as(
        &self,
        attempt: Option<u32>,
        path: &str,
        key: &str,
        body: &Value,
    ) -> Result<(u16, bool, Value), ureq::Error> {
        let mut request = ureq::http::Request::post(format!("{}{path}", self.url))
            .header("Authorization", format!("Bearer {}", self.api_key))
            .header("Content-Type", "application/json")
            .header("Idempotency-Key", key);
        if let Some(attempt) = attempt {
            request = request.header("Oncepay-Attempt", attempt.to_string());
        }
        try_parts(agent().run(request.body(body.to_string()).unwrap())?)
    }
}

impl Drop for Acquirer {
    fn drop(&mut self) {
        self.stop();
        if self.owns_database
            && let Ok(mut conn) = db::connect(&self.superuser_url)
        {
            let _ = diesel::sql_query(format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.database))
                .execute(&mut conn);
        }
    }
}

/// Where one may listen again after it has stopped: nobody else is given that port meanwhile.
fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], super::free_port()))
}

/// A client that keeps no connection and doesn't try again by itself.
fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .timeout_global(Some(Duration::from_secs(10)))
        .max_idle_connections(0)
        .build()
        .new_agent()
}

fn json_of(answer: ureq::http::Response<ureq::Body>) -> (u16, Value) {
    let (status, _, body) = parts(answer);
    (status, body)
}

fn parts(answer: ureq::http::Response<ureq::Body>) -> (u16, bool, Value) {
    try_parts(answer).unwrap()
}

fn try_parts(mut answer: ureq::http::Response<ureq::Body>) -> Result<(u16, bool, Value), ureq::Error> {
    let is_replay = answer.headers().get("Idempotent-Replayed").is_some_and(|value| value == "true");
    let body = answer.body_mut().read_to_vec()?;
    let body = serde_json::from_slice(&body)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&body)));
    Ok((answer.status().as_u16(), is_replay, body))
}

/// An event as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    pub id: String,
    pub timestamp: String,
    pub signature: String,
    pub body: String,
    /// Lines of the request's head.
    pub head: Vec<String>,
    pub at: Instant,
}

impl Received {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// A header, or nothing.
    pub fn header(&self, name: &str) -> String {
        header(&self.head, name)
    }
}

fn header(head: &[String], name: &str) -> String {
    let found = head.iter().find_map(|line| {
        let (found, value) = line.split_once(": ")?;
        found.eq_ignore_ascii_case(name).then(|| value.to_owned())
    });
    found.unwrap_or_default()
}

/// Takes webhooks, until the end of the test.
#[derive(Clone)]
pub struct Receiver {
    pub url: String,
    script: Arc<Mutex<Script>>,
}

/// What has come, and what is answered.
#[derive(Default)]
struct Script {
    received: Vec<Received>,
    /// What the next requests are answered, the last one first.
    next_statuses: Vec<u16>,
    /// What they are answered when that is used up; 200 if it's nothing.
    status: Option<u16>,
    /// How long answers take.
    pause: Duration,
    /// Further lines of the answers' heads.
    headers: String,
    answer: Vec<u8>,
}

impl Receiver {
    pub fn start() -> Self {
        Self::start_at("127.0.0.1:0")
    }

    /// Starts one on a certain port.
    pub fn start_at(address: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let url = format!("http://{}/hooks", listener.local_addr().unwrap());
        let this = Self { url, script: Arc::default() };
        let script = Arc::clone(&this.script);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let script = Arc::clone(&script);
                // Whoever goes away in the middle hasn't delivered.
                thread::spawn(move || stream.and_then(|stream| Self::take(stream, &script)));
            }
        });
        this
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    /// Answers the next requests with these.
    pub fn answer_next(&self, statuses: &[u16]) {
        self.script().next_statuses = statuses.iter().rev().copied().collect();
    }

    /// Answers all requests with this, from now on.
    pub fn answer(&self, status: u16) {
        self.script().status = Some(status);
    }

    /// Gives answers this body and these lines in their head.
    pub fn answer_saying(&self, headers: &str, body: &[u8]) {
        let mut script = self.script();
        (script.headers, script.answer) = (headers.to_owned(), body.to_owned());
    }

    /// Takes so long for each answer.
    pub fn answer_after(&self, pause: Duration) {
        self.script().pause = pause;
    }

    pub fn received(&self) -> Vec<Received> {
        self.script().received.clone()
    }

    fn take(mut stream: TcpStream, script: &Mutex<Script>) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 || line == "\r\n" {
                break;
            }
            head.push(line.trim_end().to_owned());
        }
        if head.is_empty() {
            return Ok(());
        }
        let mut body = vec![0; header(&head, "content-length").parse().unwrap_or(0)];
        reader.read_exact(&mut body)?;
        let (status, pause, headers, answer) = {
            let mut script = script.lock().unwrap();
            script.received.push(Received {
                id: header(&head, "webhook-id"),
                timestamp: header(&head, "webhook-timestamp"),
                signature: header(&head, "webhook-signature"),
                body: String::from_utf8(body).unwrap(),
                head,
                at: Instant::now(),
            });
            let status = script.next_statuses.pop().or(script.status).unwrap_or(200);
            (status, script.pause, script.headers.clone(), script.answer.clone())
        };
        thread::sleep(pause);
        let length = answer.len();
        write!(
            stream,
            "HTTP/1.1 {status} Status\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
        )?;
        stream.write_all(&answer)
    }
}
