//! Middleware around every request: its id, its log line, and error answers in one form.

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::Method;
use actix_web::http::header::{CACHE_CONTROL, HeaderValue};
use actix_web::middleware::Next;
use actix_web::{HttpMessage, web};

use super::metrics::Metrics;
use crate::base::metrics::GaugeGuard;
use crate::error::Error;
use crate::host::Engine;
use crate::storage::deadline;
use crate::web::request_id::{RequestId, X_REQUEST_ID};

/// Gives the request its id, builds the answer for an [`Error`], and logs one line.
pub async fn context(
    req: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let started = std::time::Instant::now();
    let id = RequestId::of(&req);
    req.extensions_mut().insert(id.clone());
    let _in_flight =
        req.app_data::<web::Data<Metrics>>().map(|metrics| GaugeGuard::new(&metrics.http_in_flight));

    // No clone of the request may be alive here: the router needs it exclusively. Errors of handlers and
    // extractors come back as responses, so `?` only passes on the failure of an inner middleware.
    let method = req.method().clone();
    let engine = req.app_data::<web::Data<Engine>>().expect("the server provides it");
    let limit = engine.request_deadline();
    let mut response = deadline::within(limit, next.call(req)).await?.map_into_boxed_body();
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
        error.to_response(&id.0, path)
    });
    if let Some(answer) = answer {
        response = response.into_response(answer);
    }

    let route = response.request().match_pattern().unwrap_or_else(|| "unmatched".to_owned());
    if let Some(metrics) = response.request().app_data::<web::Data<Metrics>>() {
        let label = known_method(&method);
        let status = response.status();
        metrics.http_requests.with_label_values(&[label, &route, status.as_str()]).inc();
        metrics.http_seconds.with_label_values(&[label, &route]).observe(started.elapsed().as_secs_f64());
    }

    // Everything here belongs to one merchant, and some answers hold a secret.
    if response.request().path().starts_with("/v1/") {
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    let header = HeaderValue::from_str(&id.0).expect("only visible ASCII gets into an id");
    response.headers_mut().insert(X_REQUEST_ID, header);
    // Idempotency keys don't belong into the log, even as part of a path.
    let shown = if route.contains("{key}") { &route } else { response.request().path() };
    log::info!(
        request_id = id.0.as_str(), status = response.status().as_u16(),
        duration_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        "{method} {shown}"
    );
    Ok(response)
}

/// A method's name, if it's a known one: clients can make up others, and each would be a series.
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
