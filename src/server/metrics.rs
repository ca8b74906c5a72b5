//! Metrics of HTTP, and `GET /metrics`.

use actix_web::web::Bytes;
use actix_web::{HttpResponse, get, web};
use prometheus::{HistogramVec, IntCounterVec, IntGauge};

use crate::base::metrics::Registry;
use crate::error::Error;

use super::sharing::Shared;

/// Metrics of HTTP requests.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Unanswered requests.
    pub http_in_flight: IntGauge,
    /// Requests by method, route and status.
    pub http_requests: IntCounterVec,
    /// Time from the request's head to the answer, by method and route.
    pub http_seconds: HistogramVec,
}

impl Metrics {
    /// Registers the metrics in `registry`.
    pub fn new(registry: &Registry) -> Self {
        Self {
            http_in_flight: registry.int_gauge(
                "oncepay_http_requests_in_flight",
                "Unanswered HTTP requests, including this one.",
            ),
            http_requests: registry.counters(
                "oncepay_http_requests_total",
                "HTTP requests, by method, route and status.",
                &["method", "route", "status"],
            ),
            http_seconds: registry.durations_by(
                "oncepay_http_request_duration_seconds",
                "Time to an answer, by method and route.",
                &["method", "route"],
            ),
        }
    }
}

/// After the metrics have been rendered, they aren't for this many times as long: anybody may ask, as often as they like.
const RENDERING_REST: u32 = 10;

/// The metrics of this instance, ready to serve.
pub struct Exposition {
    registry: Registry,
    text: Shared<Result<Bytes, String>>,
}

impl Exposition {
    /// Serves the metrics of `registry`.
    pub fn new(registry: Registry) -> Self {
        Self { registry, text: Shared::new(RENDERING_REST) }
    }
}

/// Shows the metrics of this instance, as they are after the request. Needs no key and doesn't ask the database.
#[get("/metrics")]
pub async fn show(exposition: web::Data<Exposition>) -> Result<HttpResponse, Error> {
    let registry = exposition.registry.clone();
    let render = async move {
        match web::block(move || registry.render()).await {
            Ok(Ok(text)) => Ok(Bytes::from(text)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    };
    let text = exposition.text.get(render).await.map_err(Error::internal)?;
    Ok(HttpResponse::Ok().content_type(prometheus::TEXT_FORMAT).body(text))
}
