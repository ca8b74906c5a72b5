//! Metrics of calls to the processor.

use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge};

use crate::base::metrics::Registry;

/// Metrics of calls to the processor.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// HTTP requests to the processor, by call and outcome.
    pub processor_calls: IntCounterVec,
    /// Duration of these requests, by call.
    pub processor_seconds: HistogramVec,
    /// Answers of the processor that belong to another call.
    pub processor_mismatches: IntCounter,
    /// Whether calls to the processor are allowed at the moment.
    pub processor_available: IntGauge,
}

impl Metrics {
    /// Registers the metrics in `registry`.
    pub fn new(registry: &Registry) -> Self {
        let metrics = Self {
            processor_calls: registry.counters("oncepay_processor_requests_total", "HTTP requests to the payment processor, by call and outcome (answered, refused, rejected, busy, failed, lost, unreachable).", &["call", "outcome"]),
            processor_seconds: registry.durations_by("oncepay_processor_request_duration_seconds", "Duration of HTTP requests to the payment processor, by call.", &["call"]),
            processor_mismatches: registry.counter("oncepay_processor_mismatched_answers_total", "Answers of the payment processor that belong to another call: they aren't believed."),
            processor_available: registry.int_gauge("oncepay_processor_available", "1 while the payment processor is called, 0 while its circuit breaker is open."),
        };
        metrics.processor_available.set(1);
        metrics
    }
}
