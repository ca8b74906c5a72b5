//! What surrounds every request: its id, its log line, and error answers in one form.

use std::borrow::Cow;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::Method;
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::{HttpMessage, HttpRequest, web};
use percent_encoding::percent_decode_str;

use crate::deadline;
use crate::error::Error;
use crate::idempotency::Engine;
use crate::ids;
use crate::metrics::{Counted, Metrics};
use crate::time;

/// Name of the header that carries the request id.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Most characters of a request id that a client sends.
const REQUEST_ID_MAX: usize = 128;

/// Identifies one request in answers and in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(pub String);

impl RequestId {
    /// The client's id when it's sane (1 to 128 letters, digits, `.`, `_` or `-`), else a new one.
    fn of(req: &ServiceRequest) -> Self {
        let mut sent = req.headers().get_all(&X_REQUEST_ID);
        let sane = |id: &&str| {
            (1..=REQUEST_ID_MAX).contains(&id.len())
                && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        match (sent.next().and_then(|value| value.to_str().ok()).filter(sane), sent.next()) {
            (Some(id), None) => Self(id.to_owned()),
            _ => Self(format!("req_{}", ids::v7(time::now()).as_simple())),
        }
    }

    /// The id of a request that passed through [`context`].
    pub fn from_request(req: &HttpRequest) -> Self {
        req.extensions().get::<Self>().cloned().expect("the middleware sets it on every request")
    }
}

/// Middleware: gives the request its id, builds the answer for an [`Error`], logs one line.
pub async fn context(
    req: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let started = std::time::Instant::now();
    let id = RequestId::of(&req);
    req.extensions_mut().insert(id.clone());
    let _in_flight =
        req.app_data::<web::Data<Metrics>>().map(|metrics| Counted::new(&metrics.http_in_flight));

    // No clone of the request may be alive here: the router wants it to itself. Errors of handlers and
    // extractors come back as responses, so `?` only passes on what an inner middleware failed with.
    let engine = req.app_data::<web::Data<Engine>>().expect("the server provides it");
    let limit = engine.request_deadline();
    let mut response = deadline::within(limit, next.call(req)).await?.map_into_boxed_body();
    let answer = response.response().error().map(|error| {
        let path = response.request().path();
        // What isn't ours comes from actix-web itself and can only be a bug.
        let foreign;
        let error = match error.as_error::<Error>() {
            Some(error) => error,
            None => {
                foreign = Error::internal(error.to_string());
                &foreign
            }
        };
        log_cause(error, &id.0);
        error.to_response(&id.0, path)
    });
    if let Some(answer) = answer {
        response = response.into_response(answer);
    }

    let route = response.request().match_pattern().unwrap_or_else(|| "unmatched".to_owned());
    if let Some(metrics) = response.request().app_data::<web::Data<Metrics>>() {
        let method = known_method(response.request().method());
        let status = response.status();
        metrics.http_requests.with_label_values(&[method, &route, status.as_str()]).inc();
        metrics.http_seconds.with_label_values(&[method, &route]).observe(started.elapsed().as_secs_f64());
    }

    let header = HeaderValue::from_str(&id.0).expect("only visible ASCII gets into an id");
    response.headers_mut().insert(X_REQUEST_ID, header);
    // Idempotency keys don't belong into the log, also where they're part of a path.
    let shown = if route.contains("{key}") { &route } else { response.request().path() };
    log::info!(
        request_id = id.0.as_str(), status = response.status().as_u16(),
        duration_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        "{} {shown}", response.request().method()
    );
    Ok(response)
}

/// The `n`-th segment of a path, counted from 0 and percent-decoded: of `/v1/charges/ch_1`, 2 is `ch_1`. Decoded
/// after splitting, so that a slash that was encoded belongs to its segment.
pub fn path_segment(path: &str, n: usize) -> Cow<'_, str> {
    let segment = path.split('/').skip(1).nth(n).unwrap_or_default();
    percent_decode_str(segment).decode_utf8_lossy()
}

/// A method's name, if it's one that we know: clients can make up others, and each would be a series.
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

/// Writes the technical cause of an error to the log, at the level that it deserves.
pub fn log_cause(error: &Error, request_id: &str) {
    match (error, error.cause()) {
        (Error::Internal(_), Some(cause)) => log::error!(request_id; "internal error: {cause}"),
        (_, Some(cause)) => log::warn!(request_id; "{}: {cause}", error.code().as_str()),
        (_, None) => {}
    }
}
