//! Metrics of the deliveries to merchants.

use prometheus::{Gauge, Histogram, IntCounter, IntCounterVec, IntGauge};

use crate::base::metrics::Registry;
use crate::storage::batch;

/// Metrics of the deliveries to merchants.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Rows deleted because of their age, by table.
    pub retention_deleted: IntCounterVec,
    /// Attempts to deliver an event, by outcome.
    pub webhook_deliveries: IntCounterVec,
    /// Time from the beginning of an attempt to its end.
    pub webhook_attempt_seconds: Histogram,
    /// Attempts under way.
    pub webhook_in_flight: IntGauge,
    /// The statements that write outcomes.
    pub webhook_batches: batch::Metrics,
    /// Time for which the oldest unclaimed delivery has been due.
    pub webhook_oldest_due_seconds: Gauge,
    /// Endpoints disabled because they answered 410 or accepted nothing for too long.
    pub webhook_endpoints_disabled: IntCounter,
}

impl Metrics {
    /// Registers the metrics in `registry`.
    pub fn new(registry: &Registry) -> Self {
        Self {
            retention_deleted: registry.counters("oncepay_retention_deleted_total", "Rows deleted because of their age, by table.", &["table"]),
            webhook_deliveries: registry.counters("oncepay_webhook_deliveries_total", "Attempts at deliveries, by outcome: succeeded, failed (another attempt follows), given_up.", &["outcome"]),
            webhook_attempt_seconds: registry.durations("oncepay_webhook_attempt_duration_seconds", "Time from the start of an attempt at a delivery to its end."),
            webhook_in_flight: registry.int_gauge("oncepay_webhook_in_flight", "Attempts at deliveries under way."),
            webhook_batches: batch::Metrics {
                sizes: registry.sizes("oncepay_webhook_batch_size", "Outcomes of attempts per batch.", 8),
                wait_seconds: registry.durations("oncepay_webhook_batch_wait_duration_seconds", "Time that the outcome of an attempt waits for its batch."),
                waiting: registry.int_gauge("oncepay_webhook_batch_waiting", "Outcomes of attempts that wait for their batch."),
            },
            webhook_oldest_due_seconds: registry.gauge("oncepay_webhook_oldest_due_age_seconds", "Time for which the oldest unclaimed delivery has been due, of those to endpoints that accept messages, at the last sample."),
            webhook_endpoints_disabled: registry.counter("oncepay_webhook_endpoints_disabled_total", "Webhook endpoints that this instance disabled because they accepted nothing for too long."),
        }
    }
}
