//! A processor that is reached over HTTP.
//!
//! The processor speaks our own protocol, that of `oncepay simulator`, which `docs/processor.md` describes.
//! [`calls::once`] says how a call goes on when its answer is lost.
//!
//! | bound | |
//! |---|---|
//! | to connect | [`HttpSettings::connect_timeout`] |
//! | for each HTTP request | [`HttpSettings::request_timeout`] |
//! | for all of an attempt's calls together | the engine's (`Timing::processor_timeout`) |

mod messages;
mod protocol;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use reqwest::header::{HeaderName, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use url::Url;

use crate::base::money::Money;
use crate::base::spans::{Kind, Span};
use crate::base::trace::{TRACEPARENT, TraceContext};

use super::metrics::Metrics;
use super::{
    Asked, Authorization, Books, Breaker, OperationKind, Page, Processor, ProcessorCall, ProcessorError,
    ProcessorOperation, calls,
};
use protocol::{Operation, OperationsPage, Problem};

pub use messages::StandardMessages;

/// Maximum number of idle connections that are kept for later calls.
const IDLE_CONNECTIONS_MAX: usize = 64;
/// Header with the number of the request's attempt. The simulator chooses its faults by it.
const ATTEMPT: HeaderName = HeaderName::from_static("oncepay-attempt");

/// Code of the processor's error for an idempotency key under which it has done nothing.
const OPERATION_NOT_FOUND: &str = "operation_not_found";

/// Settings of the connection to the processor.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    /// Address of the processor.
    pub url: Url,
    /// API key with which the service authenticates.
    pub api_key: SecretString,
    /// Maximum time to connect, and for the health check.
    pub connect_timeout: Duration,
    /// Maximum time for one HTTP request, connecting included.
    pub request_timeout: Duration,
    /// Interval of the health check.
    pub probe_interval: Duration,
    /// Implementation of [`Processor::check_payment_method`] for this processor.
    pub check_payment_method: fn(&str) -> Result<(), String>,
}

/// Calls a processor over HTTP, in our own protocol.
pub struct HttpProcessor {
    /// Replaced, with all its connections, when an answer turns out to belong to another call.
    client: RwLock<reqwest::Client>,
    settings: HttpSettings,
    breaker: Breaker,
    metrics: Arc<Metrics>,
}

impl HttpProcessor {
    /// Makes a client of the processor at `settings.url`. Doesn't connect yet. The error is a sentence.
    pub fn new(settings: HttpSettings, metrics: Arc<Metrics>) -> Result<Self, String> {
        if settings.url.cannot_be_a_base() || settings.url.host().is_none() {
            return Err(format!(
                "{} is no address of a processor, such as https://processor.example.",
                settings.url
            ));
        }
        let client = RwLock::new(client(&settings)?);
        let breaker = Breaker::new(metrics.processor_available.clone());
        Ok(Self { client, settings, breaker, metrics })
    }

    /// Has the processor do something once, and returns the outcome.
    async fn call(
        &self,
        name: &'static str,
        call: &ProcessorCall,
        asked: Asked<'_>,
        path: &[&str],
        mut body: Value,
    ) -> Result<ProcessorOperation, ProcessorError> {
        body["merchant"] = call.merchant.to_string().into();
        body["reference"] = call.reference.as_str().into();
        let send = || {
            let span = call.trace.child();
            let request = self
                .request(Method::POST, path)
                .header("Idempotency-Key", &call.key)
                .header(ATTEMPT, call.attempt)
                .header(TRACEPARENT, span.to_string())
                .json(&body);
            async move { Ok(self.send::<Operation>(name, Some(span), request).await?.into()) }
        };
        let mismatched = |error: &ProcessorError| self.distrust_connections(call, error);
        let kinds = calls::Kinds { call: name, find: "find" };
        calls::once(call, &asked, &self.breaker, kinds, mismatched, || self.find(call), send).await
    }

    /// Drops all connections after an answer that belongs to another call, since every later answer on that connection
    /// would be off by one as well.
    fn distrust_connections(&self, call: &ProcessorCall, error: &ProcessorError) {
        log::error!(reference = call.reference.as_str(), key = call.key.as_str(); "{error}: its connections are closed");
        self.metrics.processor_mismatches.inc();
        if let Ok(fresh) = client(&self.settings) {
            *self.client.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        }
    }

    fn client(&self) -> reqwest::Client {
        self.client.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.settings.url.clone();
        // The settings accept only a URL that can have a path.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        self.request_to(method, self.url(path))
    }

    fn request_to(&self, method: Method, url: Url) -> RequestBuilder {
        self.client().request(method, url).bearer_auth(self.settings.api_key.expose_secret())
    }

    /// Sends one HTTP request, whose span is `span`.
    async fn send<T: serde::de::DeserializeOwned>(
        &self,
        name: &'static str,
        span: Option<TraceContext>,
        request: RequestBuilder,
    ) -> Result<T, ProcessorError> {
        let started = Instant::now();
        let mut span = span.map(|span| Span::of(&span, name, Kind::Client));
        let result = read(request).await;
        let outcome = match &result {
            Ok(_) => "answered",
            // That there is no such operation is what `find` wants to know.
            Err(ProcessorError::Rejected { code }) if code == OPERATION_NOT_FOUND => "answered",
            Err(ProcessorError::Refused(_)) => "refused",
            Err(ProcessorError::Rejected { .. }) => "rejected",
            Err(ProcessorError::Unreachable) => "unreachable",
            Err(ProcessorError::Failed) => "failed",
            Err(ProcessorError::Busy { .. }) => "busy",
            Err(_) => "lost",
        };
        if let Some(span) = span.as_mut().filter(|_| outcome != "answered") {
            span.fail(outcome);
        }
        self.breaker.record(name, &result);
        self.metrics.processor_calls.with_label_values(&[name, outcome]).inc();
        self.metrics.processor_seconds.with_label_values(&[name]).observe(started.elapsed().as_secs_f64());
        result
    }
}

fn client(settings: &HttpSettings) -> Result<reqwest::Client, String> {
    reqwest::Client::builder()
        .connect_timeout(settings.connect_timeout)
        .timeout(settings.request_timeout)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        // A redirect would carry our key elsewhere.
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| format!("Can't set up the client of the processor: {error}."))
}

/// The pause that an answer asks for.
fn busy(answer: &reqwest::Response) -> Option<ProcessorError> {
    let retry_after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    ProcessorError::busy(answer.status().as_u16(), retry_after)
}

/// Sends a request and sorts what comes back.
async fn read<T: serde::de::DeserializeOwned>(request: RequestBuilder) -> Result<T, ProcessorError> {
    let lost = |error: reqwest::Error| {
        log::warn!("no answer from the processor: {:?}", error.without_url());
        ProcessorError::AnswerLost
    };
    let answer = request.send().await.map_err(|error| match error.is_connect() {
        true => ProcessorError::Unreachable,
        false => lost(error),
    })?;
    if let Some(busy) = busy(&answer) {
        return Err(busy);
    }
    match answer.status() {
        status if status.is_success() => answer.json().await.map_err(lost),
        StatusCode::REQUEST_TIMEOUT => Err(ProcessorError::Failed),
        status if status.is_client_error() => {
            let Problem { error } = answer.json().await.map_err(lost)?;
            Err(match is_refusal(status, &error.code) {
                true => ProcessorError::Refused(error.into()),
                false => ProcessorError::Rejected { code: error.code },
            })
        }
        _ => Err(ProcessorError::Failed),
    }
}

/// True if the error is about what was asked for, so that asking again can't help. The others are about how it was asked: our
/// credentials, the path, the key.
fn is_refusal(status: StatusCode, code: &str) -> bool {
    let is_about_request = matches!(
        status,
        StatusCode::BAD_REQUEST | StatusCode::CONFLICT | StatusCode::GONE | StatusCode::UNPROCESSABLE_ENTITY
    );
    is_about_request && !code.starts_with("idempotency_key_")
}

fn money(amount: Money) -> Value {
    json!({"amount": amount.currency().format(amount.amount()), "currency": amount.currency()})
}

#[async_trait]
impl Processor for HttpProcessor {
    fn check_payment_method(&self, token: &str) -> Result<(), String> {
        (self.settings.check_payment_method)(token)
    }

    async fn authorize(
        &self,
        call: &ProcessorCall,
        amount: Money,
        payment_method: &str,
        capture: Option<&ProcessorCall>,
    ) -> Result<Authorization, ProcessorError> {
        let mut body = money(amount);
        body["payment_method"] = payment_method.into();
        if let Some(capture) = capture {
            body["capture_key"] = capture.key.as_str().into();
        }
        let asked = Asked::to(OperationKind::Authorize).of(amount);
        self.call("authorize", call, asked, &["authorizations"], body).await?.into_authorization(amount)
    }

    async fn capture(
        &self,
        call: &ProcessorCall,
        authorization_id: &str,
        amount: Money,
    ) -> Result<(), ProcessorError> {
        let asked = Asked::to(OperationKind::Capture).of(amount).on(authorization_id);
        let path = ["authorizations", authorization_id, "captures"];
        self.call("capture", call, asked, &path, money(amount)).await?.into_done()
    }

    async fn void(&self, call: &ProcessorCall, authorization_id: &str) -> Result<(), ProcessorError> {
        let path = ["authorizations", authorization_id, "void"];
        let asked = Asked::to(OperationKind::Void).on(authorization_id);
        self.call("void", call, asked, &path, json!({})).await?.into_done()
    }

    async fn refund(
        &self,
        call: &ProcessorCall,
        authorization_id: &str,
        amount: Money,
    ) -> Result<(), ProcessorError> {
        let asked = Asked::to(OperationKind::Refund).of(amount).on(authorization_id);
        let path = ["authorizations", authorization_id, "refunds"];
        self.call("refund", call, asked, &path, money(amount)).await?.into_done()
    }

    async fn payout(
        &self,
        call: &ProcessorCall,
        amount: Money,
        destination: &str,
    ) -> Result<(), ProcessorError> {
        let mut body = money(amount);
        body["destination"] = destination.into();
        let asked = Asked::to(OperationKind::Payout).of(amount);
        self.call("payout", call, asked, &["payouts"], body).await?.into_done()
    }

    async fn find(&self, call: &ProcessorCall) -> Result<Option<ProcessorOperation>, ProcessorError> {
        let span = call.trace.child();
        let request = self
            .request(Method::GET, &["operations", "by-key", &call.key])
            .header(ATTEMPT, call.attempt)
            .header(TRACEPARENT, span.to_string());
        match self.send::<Operation>("find", Some(span), request).await {
            Ok(operation) => Ok(Some(operation.into())),
            Err(ProcessorError::Rejected { code }) if code == OPERATION_NOT_FOUND => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn is_available(&self) -> bool {
        !self.breaker.is_open()
    }

    /// Checks the processor's health from time to time, and holds calls back while it's down. Doesn't return.
    async fn watch(&self) {
        let health = self.url(&["health"]);
        let is_healthy = || {
            let asked = self.client().get(health.clone()).timeout(self.settings.connect_timeout).send();
            async {
                // Who asks for a pause is alive. Asking again costs less than not to notice an outage.
                asked.await.is_ok_and(|answer| answer.status().is_success() || busy(&answer).is_some())
            }
        };
        self.breaker.watch(self.settings.probe_interval, is_healthy).await;
    }
}

#[async_trait]
impl Books for HttpProcessor {
    async fn operations(&self, after: i64, limit: usize) -> Result<Page, ProcessorError> {
        self.breaker.check_pause("list")?;
        let mut url = self.url(&["operations"]);
        url.query_pairs_mut()
            .append_pair("after", &after.to_string())
            .append_pair("limit", &limit.to_string());
        let page: OperationsPage = self.send("list", None, self.request_to(Method::GET, url)).await?;
        Ok(page.into())
    }
}
