//! Metrics of HTTP, and `GET /metrics`.

use actix_web::{HttpResponse, get, web};
use prometheus::{HistogramVec, IntCounterVec, IntGauge};

use crate::base::metrics::Registry;
use crate::error::Error;

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

/// Shows the metrics of this instance. Needs no key and doesn't ask the database.
#[get("/metrics")]
pub async fn show(registry: web::Data<Registry>) -> Result<HttpResponse, Error> {
    let text = registry.render().map_err(Error::internal)?;
    Ok(HttpResponse::Ok().content_type(prometheus::TEXT_FORMAT).body(text))
}
