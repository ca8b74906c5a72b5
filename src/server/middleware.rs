//! Middleware around every request: its id, its log line, and error answers in one form.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{CACHE_CONTROL, HeaderName, HeaderValue};
use actix_web::http::{ConnectionType, Method};
use actix_web::middleware::Next;
use actix_web::{HttpMessage, web};

use super::health::Readiness;
use super::metrics::Metrics;
use super::security;
use crate::base::logging;
use crate::base::metrics::GaugeGuard;
use crate::base::paths;
use crate::base::scope::{self, Decision, Scope};
use crate::base::spans::{Kind, Span};
use crate::base::time;
use crate::base::trace::{TRACEPARENT, TRACESTATE, TraceContext};
use crate::console::{Console, Live, Seen};
use crate::error::{Code, Error};
use crate::host::Engine;
use crate::idempotency::RateLimitFields;
use crate::storage::deadline;
use crate::storage::party::{self, Party};
use crate::web::connection::{Answer, HeldBody, Link, Refusal};
use crate::web::request_id::{RequestId, X_REQUEST_ID};

/// Target in the log of the closing line of a request that repeats another one.
const DUPLICATES: &str = "oncepay::request::duplicate";
/// The same of a request that changes nothing.
const READS: &str = "oncepay::request::read";

/// Gives the request its id and its trace, builds the answer for an [`Error`], and logs one line. Answers requests that
/// the connection has refused.
pub async fn context(
    req: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<Answer>, actix_web::Error> {
    let id = RequestId::of(&req);
    req.extensions_mut().insert(id.clone());
    let values = |name| req.headers().get_all(name).map(|value| value.as_bytes());
    let caller = TraceContext::from_headers(values(TRACEPARENT), values(TRACESTATE));
    let trace = caller.map_or_else(TraceContext::begin, |caller| caller.child());
    let scope = Arc::new(Scope::of_request(id.0.clone(), trace));
    scope::within(Arc::clone(&scope), in_scope(req, next, id, &scope)).await
}

async fn in_scope(
    mut req: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
    id: RequestId,
    scope: &Scope,
) -> Result<ServiceResponse<Answer>, actix_web::Error> {
    let started = Instant::now();
    let _in_flight =
        req.app_data::<web::Data<Metrics>>().map(|metrics| GaugeGuard::new(&metrics.http_in_flight));
    let link = req.conn_data::<Rc<Link>>().cloned();
    let request_body = link.as_ref().and_then(|link| HeldBody::of(&mut req, link));

    // No clone of the request may be alive here: the router needs it exclusively. Errors of handlers and
    // extractors come back as responses, so `?` only passes on the failure of an inner middleware.
    let method = req.method().clone();
    let span = Span::of(scope.trace(), "request", Kind::Server);
    let mut closing = ClosingLine { scope, method: &method, started, span, is_written: false };
    let mut response = match link.as_ref().and_then(|link| link.take_refusal()) {
        Some(Refusal(error)) => req.error_response(error),
        None => {
            let engine = req.app_data::<web::Data<Engine>>().expect("the server provides it");
            let limit = engine.request_deadline();
            let answer = deadline::within(limit, next.call(req));
            party::within(Party::Strangers, answer).await?.map_into_boxed_body()
        }
    };
    let answer = response.response().error().map(|error| {
        let path = response.request().path();
        // An error of another type comes from actix-web itself and can only be a bug.
        let foreign;
        let error = match error.as_error::<Error>() {
            Some(error) => error,
            None => {
                foreign = Error::internal(error.to_string());
                &foreign
            }
        };
        error.log(&id.0);
        (error.code(), error.to_response(&id.0, path))
    });
    let code = answer.as_ref().map(|(code, _)| *code);
    if let Some((_, answer)) = answer {
        response = response.into_response(answer);
    }

    let pattern = response.request().match_pattern();
    if let Some(metrics) = response.request().app_data::<web::Data<Metrics>>() {
        let (method, route) = labels(&method, pattern.as_deref(), code);
        let status = response.status();
        metrics.http_requests.with_label_values(&[method, route, status.as_str()]).inc();
        metrics.http_seconds.with_label_values(&[method, route]).observe(started.elapsed().as_secs_f64());
    }

    if response
        .request()
        .app_data::<web::Data<Readiness>>()
        .is_some_and(|it| it.is_stopping.load(Ordering::Relaxed))
    {
        // So that nobody sends the next request on a connection that is about to end.
        response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
    }
    let path = paths::normalized(response.request().path()).into_owned();
    // Everything here belongs to one merchant, and some answers hold a secret.
    if path.starts_with("/v1/") {
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    security::protect(&path, response.headers_mut());
    let limits = response.request().extensions_mut().remove::<RateLimitFields>();
    if let Some(RateLimitFields { policy, current }) = limits {
        for (name, value) in [(RateLimitFields::POLICY, policy), (RateLimitFields::CURRENT, current)] {
            let value = HeaderValue::from_str(&value).expect("only visible ASCII gets into it");
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
    let header = HeaderValue::from_str(&id.0).expect("only visible ASCII gets into an id");
    response.headers_mut().insert(X_REQUEST_ID, header);
    // Idempotency keys don't belong into the log, even as part of a path.
    let shown = match &pattern {
        Some(pattern) if pattern.contains("{key}") => pattern,
        Some(_) => response.request().path(),
        None => before_key(&path),
    };
    closing.span.rename(|| format!("{method} {}", pattern.as_deref().unwrap_or("unmatched")));
    let status = response.status().as_u16();
    if let Some(console) = response.request().app_data::<web::Data<Console>>() {
        remember(console.live(), scope, &id, status, code, started);
    }
    closing.write(Some(status), code, Some(shown));
    Ok(response.map_body(|_, body| Answer::new(body, request_body, link)))
}

/// Remembers a request that changes something, for the console.
fn remember(live: &Live, scope: &Scope, id: &RequestId, status: u16, code: Option<Code>, started: Instant) {
    let Some(operation) = scope.operation() else { return };
    live.remember(Seen {
        at: time::now(),
        merchant: scope.merchant(),
        key_hash: scope.key_hash(),
        operation,
        outcome: scope.outcome().unwrap_or("refused"),
        status,
        code: code.map(Code::as_str),
        request_id: id.0.clone(),
        duration: started.elapsed(),
    });
}

/// The line of the log that closes a request. If the client hangs up first, the line has no status, and what becomes of
/// the request has lines of its own.
struct ClosingLine<'a> {
    scope: &'a Scope,
    method: &'a Method,
    started: Instant,
    span: Span,
    is_written: bool,
}

impl ClosingLine<'_> {
    fn write(&mut self, status: Option<u16>, code: Option<Code>, path: Option<&str>) {
        self.is_written = true;
        let Decision { outcome, observed, attempt, .. } = self.scope.close();
        let target = match (self.scope.operation(), outcome) {
            (None, _) => READS,
            (_, Some("replayed" | "in_progress")) => DUPLICATES,
            _ => scope::REQUESTS,
        };
        let unanswered = if status.is_some() { "refused" } else { "client_gone" };
        let outcome = outcome.or(self.scope.operation().map(|_| unanswered));
        self.finish_span(status, outcome, attempt);
        let (method, code) = (self.method.as_str(), code.map(Code::as_str));
        let duration_ms = logging::milliseconds(self.started.elapsed());
        log::info!(
            target: target, method, path, status, code, outcome, observed, attempt, duration_ms;
            "{method} {}", path.unwrap_or("(the client has hung up)")
        );
    }

    fn finish_span(&mut self, status: Option<u16>, outcome: Option<&'static str>, attempt: Option<u32>) {
        let (scope, span, method) = (self.scope, &mut self.span, self.method);
        span.set("http.request.method", || Some(method.to_string()));
        span.set("http.response.status_code", || status.map(|status| status.to_string()));
        span.set("oncepay.request_id", || Some(scope.id().1.to_owned()));
        span.set("oncepay.operation", || scope.operation().map(str::to_owned));
        span.set("oncepay.merchant", || scope.merchant().map(|merchant| merchant.to_string()));
        span.set("oncepay.key_hash", || scope.key_hash());
        span.set("oncepay.outcome", || outcome.map(str::to_owned));
        span.set("oncepay.attempt", || attempt.map(|attempt| attempt.to_string()));
        if let Some(original) = scope.original() {
            span.link(original);
        }
        if status.is_none_or(|status| status >= 500) {
            span.fail(outcome.unwrap_or("failed"));
        }
    }
}

impl Drop for ClosingLine<'_> {
    fn drop(&mut self) {
        if !self.is_written {
            self.write(None, None, None);
        }
    }
}

/// The part of a path that no route takes, up to where a key may follow.
fn before_key(path: &str) -> &str {
    const KEYS: &str = "/idempotency-keys/";
    path.find(KEYS).map_or(path, |begin| &path[..begin + KEYS.len()])
}

/// Method and route of a request, as metrics show them. Requests that no route takes are all alike: clients can make up
/// paths and methods, and each would be a series.
fn labels<'a>(method: &Method, pattern: Option<&'a str>, code: Option<Code>) -> (&'static str, &'a str) {
    let is_routed = !matches!(
        code,
        Some(
            Code::RouteNotFound
                | Code::MethodNotAllowed
                | Code::RequestMalformed
                | Code::HeadTimeout
                | Code::UriTooLong
                | Code::HeadersTooLarge
                | Code::HttpVersionUnsupported
        )
    );
    match pattern {
        Some(pattern) if is_routed => (known_method(method), pattern),
        _ => ("other", "unmatched"),
    }
}

/// The name of a method that routes take. A `HEAD` is counted as the `GET` that it is.
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET | Method::HEAD => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_unknown_paths_are_not_logged() {
        for (path, shown) in [
            ("/v1/idempotency-keys/k/", "/v1/idempotency-keys/"),
            ("//v1/idempotency-keys/k", "//v1/idempotency-keys/"),
            ("/v1/operator/idempotency-keys/mer_x/k/retryy", "/v1/operator/idempotency-keys/"),
            ("/v1/nothing", "/v1/nothing"),
        ] {
            assert_eq!(before_key(path), shown);
        }
    }
}
