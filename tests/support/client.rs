//! An HTTP client that knows the API, and holds every answer against the OpenAPI document.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use oncepay::base::signature::Secret;

use super::acquirer::WEBHOOK_SECRET;
use super::database::Merchant;
use super::document::{mismatch, resolved_document};

/// Where the acquirer sends its events.
pub const ACQUIRER_WEBHOOK: &str = "/v1/webhooks/acquirer";

/// Talks to one server, as one merchant or as nobody.
#[derive(Clone)]
pub struct Client {
    agent: ureq::Agent,
    base: String,
    authorization: Option<String>,
}

impl Client {
    pub fn new(base: impl Into<String>) -> Self {
        Self::patient(base, Duration::from_secs(30))
    }

    /// One that waits this long for an answer.
    pub fn patient(base: impl Into<String>, timeout: Duration) -> Self {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_global(Some(timeout))
            .max_idle_connections_per_host(64)
            // The service closes what is idle for five seconds, perhaps at the moment of the next request.
            .max_idle_age(Duration::from_secs(2))
            .build()
            .new_agent();
        Self { agent, base: base.into(), authorization: None }
    }

    pub fn as_merchant(&self, merchant: &Merchant) -> Self {
        self.with_key(&merchant.key)
    }

    pub fn with_key(&self, key: &str) -> Self {
        Self { authorization: Some(format!("Bearer {key}")), ..self.clone() }
    }

    /// The same server with another client's key.
    pub fn like(&self, other: &Self) -> Self {
        Self { authorization: other.authorization.clone(), ..self.clone() }
    }

    pub fn base(&self) -> &str {
        &self.base
    }

    pub fn get(&self, path: &str) -> Response {
        self.request("GET", path).send()
    }

    pub fn request(&self, method: &str, path: &str) -> Request {
        let mut request = Request {
            agent: self.agent.clone(),
            base: self.base.clone(),
            method: method.to_owned(),
            path: path.to_owned(),
            headers: Vec::new(),
            body: None,
        };
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        request
    }

    /// A JSON request with an idempotency key, or whatever stands for one where it's sent to.
    pub fn send(&self, method: &str, path: &str, key: &str, body: &Value) -> Response {
        self.change(method, path, key, body).send()
    }

    /// The same, to be sent.
    pub fn change(&self, method: &str, path: &str, key: &str, body: &Value) -> Request {
        if path == ACQUIRER_WEBHOOK {
            return self.delivery(key, &body.to_string());
        }
        self.request(method, path).idempotency_key(key).json(body)
    }

    /// An event of the acquirer, signed now.
    pub fn delivery(&self, event_id: &str, body: &str) -> Request {
        let secret = Secret::parse(WEBHOOK_SECRET).unwrap();
        let timestamp = chrono::Utc::now().timestamp();
        self.request("POST", ACQUIRER_WEBHOOK)
            .header("webhook-id", event_id)
            .header("webhook-timestamp", &timestamp.to_string())
            .header("webhook-signature", &secret.sign(event_id, timestamp, body.as_bytes()))
            .body("application/json", body)
    }

    /// What the server counts.
    pub fn metrics(&self) -> Metrics {
        Metrics(self.get("/metrics").expect(200).text())
    }

    /// `POST /v1/charges`.
    pub fn charge(&self, key: &str, body: &Value) -> Response {
        self.send("POST", "/v1/charges", key, body)
    }

    /// Available balance in `currency`, or `None` if there is none.
    pub fn available(&self, currency: &str) -> Option<String> {
        let balance = self.get("/v1/balance").json();
        let entries = balance["balances"].as_array().expect("a list of balances");
        let entry = entries.iter().find(|entry| entry["currency"] == currency)?;
        entry["available"].as_str().map(str::to_owned)
    }
}

/// Metrics in Prometheus' text format.
#[derive(Clone, Debug)]
pub struct Metrics(pub String);

impl Metrics {
    /// The sum of a metric's series that have these labels, 0 if there is none.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let series = self.0.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, rest) = series.split_once('{').unwrap_or((series, ""));
            let has = |&(label, value): &(&str, &str)| rest.contains(&format!("{label}=\"{value}\""));
            (found == name && labels.iter().all(has)).then(|| value.parse::<f64>().unwrap())
        });
        series.sum()
    }

    /// Decisions of the engine on an operation.
    pub fn decisions(&self, operation: &str, outcome: &str) -> f64 {
        self.value("oncepay_idempotency_requests_total", &[("operation", operation), ("outcome", outcome)])
    }
}

/// A request under construction.
#[derive(Clone)]
pub struct Request {
    agent: ureq::Agent,
    base: String,
    method: String,
    path: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Option<Vec<u8>>,
}

impl Request {
    pub fn header(self, name: &str, value: &str) -> Self {
        self.header_bytes(name, value.as_bytes())
    }

    pub fn header_bytes(mut self, name: &str, value: &[u8]) -> Self {
        self.headers.push((name.to_owned(), value.to_vec()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
        self
    }

    pub fn query(mut self, query: &str) -> Self {
        self.path = format!("{}?{query}", self.path);
        self
    }

    pub fn idempotency_key(self, key: &str) -> Self {
        self.header("Idempotency-Key", key)
    }

    pub fn json(self, body: &Value) -> Self {
        self.body("application/json", body.to_string())
    }

    pub fn body(self, media_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let mut this = self.without("Content-Type").header("Content-Type", media_type);
        this.body = Some(body.into());
        this
    }

    /// Sends it; panics when no answer comes.
    pub fn send(&self) -> Response {
        self.try_send().unwrap_or_else(|error| panic!("{} {}: {error}", self.method, self.path))
    }

    /// Sends it and holds the answer against the OpenAPI document.
    pub fn try_send(&self) -> Result<Response, ureq::Error> {
        let mut request = ureq::http::Request::builder()
            .method(self.method.as_str())
            .uri(format!("{}{}", self.base, self.path));
        for (name, value) in &self.headers {
            request = request.header(name, ureq::http::HeaderValue::from_bytes(value).unwrap());
        }
        let agent = &self.agent;
        let mut response = match &self.body {
            Some(body) => agent.run(request.body(body.clone()).unwrap())?,
            None => agent.run(request.body(()).unwrap())?,
        };
        let headers = response
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect();
        let body = response.body_mut().read_to_vec()?;
        let response = Response { status: response.status().as_u16(), headers, body };
        assert_documented(&self.method, &self.path, &response);
        Ok(response)
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(&name.to_ascii_lowercase()).map(String::as_str)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The problem's code; empty for an answer that is no problem.
    pub fn code(&self) -> String {
        match self.header("Content-Type") {
            Some("application/problem+json") => self.json()["code"].as_str().unwrap().to_owned(),
            _ => String::new(),
        }
    }

    /// Pointers of the fields that were refused, sorted.
    pub fn pointers(&self) -> Vec<String> {
        let problem = self.json();
        let errors = problem["errors"].as_array().unwrap_or_else(|| panic!("no errors in {problem}"));
        let mut pointers: Vec<_> =
            errors.iter().map(|error| error["pointer"].as_str().unwrap().to_owned()).collect();
        pointers.sort();
        pointers
    }

    /// Value of a text field of the body.
    pub fn field(&self, name: &str) -> String {
        let body = self.json();
        body[name].as_str().unwrap_or_else(|| panic!("no {name} in {body}")).to_owned()
    }

    /// Panics unless the status is `status`; returns itself for more.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    /// Panics unless it's this problem.
    #[track_caller]
    pub fn expect_problem(self, status: u16, code: &str) -> Self {
        assert_eq!((self.status, self.code().as_str()), (status, code), "{}", self.text());
        self
    }

    pub fn is_replay(&self) -> bool {
        self.header("Idempotent-Replayed") == Some("true")
    }
}

/// Headers that mean something in this API.
const OWN_HEADERS: &[&str] = &[
    "X-Request-Id",
    "Location",
    "Link",
    "Retry-After",
    "Idempotency-Key",
    "Idempotent-Replayed",
    "Idempotency-Expires",
    "Original-Request-Id",
    "Preference-Applied",
    "Suspected-Duplicate-Of",
];

/// Panics when an operation of the document answers what the document doesn't say: so every test also
/// tests that each operation documents every problem that it can answer, and all that it sends.
fn assert_documented(method: &str, path: &str, response: &Response) {
    assert!(response.header("X-Request-Id").is_some(), "{method} {path} has no X-Request-Id");
    let path = path.split('?').next().unwrap();
    let Some(operation) = operation(method, path) else { return };
    let documented = &operation["responses"][response.status.to_string()];
    let code = response.code();
    let listed = documented["headers"].as_object();
    for header in OWN_HEADERS.iter().filter(|header| response.header(header).is_some()) {
        let is_documented = listed.is_some_and(|listed| listed.contains_key(*header));
        assert!(is_documented, "{method} {path} doesn't document {header} of {} {code}", response.status);
    }
    if response.status == 304 {
        assert!(documented.is_object() && response.body.is_empty(), "{method} {path}");
    } else if code.is_empty() {
        let content = &documented["content"]["application/json"];
        assert!(content.is_object(), "{method} {path}: {}", response.status);
        let mismatch = mismatch("", &response.json(), &content["schema"]);
        assert_eq!(mismatch, None, "{method} {path}: {}", response.text());
    } else {
        assert!(
            documented["content"]["application/problem+json"]["examples"][&code].is_object(),
            "{method} {path} doesn't document {} {code}",
            response.status
        );
        let problem = response.json();
        let schema = &documented["content"]["application/problem+json"]["schema"];
        assert_eq!(mismatch("", &problem, schema), None, "{method} {path}: {problem}");
        assert_eq!(problem["status"], response.status);
        assert_eq!(problem["type"], format!("/problems/{}", code.replace('_', "-")));
        for member in ["title", "detail", "instance", "request_id"] {
            assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{member} of {problem}");
        }
        assert!(problem["retryable"].is_boolean());
    }
}

fn operation(method: &str, path: &str) -> Option<&'static Value> {
    let segments: Vec<_> = path.split('/').collect();
    let (_, item) = resolved_document()["paths"].as_object().unwrap().iter().find(|(template, _)| {
        let pieces: Vec<_> = template.split('/').collect();
        pieces.len() == segments.len()
            && pieces
                .iter()
                .zip(&segments)
                .all(|(piece, segment)| piece == segment || (piece.starts_with('{') && !segment.is_empty()))
    })?;
    item.get(method.to_ascii_lowercase())
}
