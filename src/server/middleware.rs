//! Middleware around every request: its id, its log line, and error answers in one form.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{CACHE_CONTROL, HeaderValue};
use actix_web::http::{ConnectionType, Method};
use actix_web::middleware::Next;
use actix_web::{HttpMessage, web};

use super::health::Readiness;
use super::metrics::Metrics;
use crate::base::metrics::GaugeGuard;
use crate::base::paths;
use crate::error::{Code, Error};
use crate::host::Engine;
use crate::storage::deadline;
use crate::web::connection::{Answer, HeldBody, Link, Refusal};
use crate::web::request_id::{RequestId, X_REQUEST_ID};

/// Gives the request its id, builds the answer for an [`Error`], and logs one line. Answers requests that the connection
/// has refused.
pub async fn context(
    mut req: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<Answer>, actix_web::Error> {
    let started = std::time::Instant::now();
    let id = RequestId::of(&req);
    req.extensions_mut().insert(id.clone());
    let _in_flight =
        req.app_data::<web::Data<Metrics>>().map(|metrics| GaugeGuard::new(&metrics.http_in_flight));
    let link = req.conn_data::<Rc<Link>>().cloned();
    let request_body = link.as_ref().and_then(|link| HeldBody::of(&mut req, link));

    // No clone of the request may be alive here: the router needs it exclusively. Errors of handlers and
    // extractors come back as responses, so `?` only passes on the failure of an inner middleware.
    let method = req.method().clone();
    let mut response = match link.as_ref().and_then(|link| link.take_refusal()) {
        Some(Refusal(error)) => req.error_response(error),
        None => {
            let engine = req.app_data::<web::Data<Engine>>().expect("the server provides it");
            let limit = engine.request_deadline();
            deadline::within(limit, next.call(req)).await?.map_into_boxed_body()
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
    let header = HeaderValue::from_str(&id.0).expect("only visible ASCII gets into an id");
    response.headers_mut().insert(X_REQUEST_ID, header);
    // Idempotency keys don't belong into the log, even as part of a path.
    let shown = match &pattern {
        Some(pattern) if pattern.contains("{key}") => pattern,
        Some(_) => response.request().path(),
        None => before_key(&path),
    };
    log::info!(
        request_id = id.0.as_str(), status = response.status().as_u16(),
        duration_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        "{method} {shown}"
    );
    Ok(response.map_body(|_, body| Answer::new(body, request_body, link)))
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
