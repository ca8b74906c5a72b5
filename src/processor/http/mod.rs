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

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use reqwest::header::HeaderName;
use reqwest::{Method, RequestBuilder, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use url::Url;

use crate::base::money::Money;

use super::metrics::Metrics;
use super::{
    Authorization, Books, Breaker, Page, Processor, ProcessorCall, ProcessorError, ProcessorOperation, calls,
};
use protocol::{Operation, OperationsPage, Problem};

pub use messages::StandardMessages;

/// Maximum number of idle connections that are kept for later calls.
const IDLE_CONNECTIONS_MAX: usize = 64;
/// Header with the number of the request's attempt. The simulator chooses its faults by it.
const ATTEMPT: HeaderName = HeaderName::from_static("oncepay-attempt");

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
    client: reqwest::Client,
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
        let client = reqwest::Client::builder()
            .connect_timeout(settings.connect_timeout)
            .timeout(settings.request_timeout)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            // Following a redirect would send our key elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| format!("Can't set up the client of the processor: {error}."))?;
        let breaker = Breaker::new(metrics.processor_available.clone());
        Ok(Self { client, settings, breaker, metrics })
    }

    /// Has the processor do something once, and returns the outcome.
    async fn call(
        &self,
        name: &'static str,
        call: &ProcessorCall,
        path: &[&str],
        mut body: Value,
    ) -> Result<ProcessorOperation, ProcessorError> {
        body["merchant"] = call.merchant.to_string().into();
        body["reference"] = call.reference.as_str().into();
        let send = || {
            let request = self
                .request(Method::POST, path)
                .header("Idempotency-Key", &call.key)
                .header(ATTEMPT, call.attempt)
                .json(&body);
            async { Ok(self.send::<Operation>(name, request).await?.into()) }
        };
        calls::once(call, &self.breaker, || self.find(call), send).await
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
        self.client.request(method, url).bearer_auth(self.settings.api_key.expose_secret())
    }

    /// Sends one HTTP request.
    async fn send<T: serde::de::DeserializeOwned>(
        &self,
        name: &'static str,
        request: RequestBuilder,
    ) -> Result<T, ProcessorError> {
        let started = Instant::now();
        let result = read(request).await;
        let outcome = match &result {
            Ok(_) => "answered",
            Err(ProcessorError::Refused { .. }) => "refused",
            Err(ProcessorError::Unreachable) => "unreachable",
            Err(ProcessorError::Failed) => "failed",
            Err(_) => "lost",
        };
        match &result {
            Ok(_) | Err(ProcessorError::Refused { .. }) => self.breaker.succeeded(),
            Err(_) => self.breaker.failed(),
        }
        self.metrics.processor_calls.with_label_values(&[name, outcome]).inc();
        self.metrics.processor_seconds.with_label_values(&[name]).observe(started.elapsed().as_secs_f64());
        result
    }
}

/// Sends a request and classifies the answer.
async fn read<T: serde::de::DeserializeOwned>(request: RequestBuilder) -> Result<T, ProcessorError> {
    let lost = |error: reqwest::Error| {
        log::warn!("no answer from the processor: {:?}", error.without_url());
        ProcessorError::AnswerLost
    };
    let answer = request.send().await.map_err(|error| match error.is_connect() {
        true => ProcessorError::Unreachable,
        false => lost(error),
    })?;
    match answer.status() {
        status if status.is_success() => answer.json().await.map_err(lost),
        StatusCode::TOO_MANY_REQUESTS => Err(ProcessorError::Failed),
        status if status.is_client_error() => {
            let problem = answer.json().await.map_err(lost);
            problem.and_then(|Problem { error }| Err(ProcessorError::Refused { code: error.code }))
        }
        _ => Err(ProcessorError::Failed),
    }
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
        self.call("authorize", call, &["authorizations"], body).await?.into_authorization()
    }

    async fn capture(
        &self,
        call: &ProcessorCall,
        authorization_id: &str,
        amount: Money,
    ) -> Result<(), ProcessorError> {
        let path = ["authorizations", authorization_id, "captures"];
        self.call("capture", call, &path, money(amount)).await?.into_done()
    }

    async fn void(&self, call: &ProcessorCall, authorization_id: &str) -> Result<(), ProcessorError> {
        let path = ["authorizations", authorization_id, "void"];
        self.call("void", call, &path, json!({})).await?.into_done()
    }

    async fn refund(
        &self,
        call: &ProcessorCall,
        authorization_id: &str,
        amount: Money,
    ) -> Result<(), ProcessorError> {
        let path = ["authorizations", authorization_id, "refunds"];
        self.call("refund", call, &path, money(amount)).await?.into_done()
    }

    async fn payout(
        &self,
        call: &ProcessorCall,
        amount: Money,
        destination: &str,
    ) -> Result<(), ProcessorError> {
        let mut body = money(amount);
        body["destination"] = destination.into();
        self.call("payout", call, &["payouts"], body).await?.into_done()
    }

    async fn find(&self, call: &ProcessorCall) -> Result<Option<ProcessorOperation>, ProcessorError> {
        let request =
            self.request(Method::GET, &["operations", "by-key", &call.key]).header(ATTEMPT, call.attempt);
        match self.send::<Operation>("find", request).await {
            Ok(operation) => Ok(Some(operation.into())),
            Err(ProcessorError::Refused { code }) if code == "operation_not_found" => Ok(None),
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
            let asked = self.client.get(health.clone()).timeout(self.settings.connect_timeout).send();
            async { asked.await.is_ok_and(|answer| answer.status().is_success()) }
        };
        self.breaker.watch(self.settings.probe_interval, is_healthy).await;
    }
}

#[async_trait]
impl Books for HttpProcessor {
    async fn operations(&self, after: i64, limit: usize) -> Result<Page, ProcessorError> {
        let mut url = self.url(&["operations"]);
        url.query_pairs_mut()
            .append_pair("after", &after.to_string())
            .append_pair("limit", &limit.to_string());
        let page: OperationsPage = self.send("list", self.request_to(Method::GET, url)).await?;
        Ok(page.into())
    }
}
