//! Metrics of the processor's events and books.

use prometheus::{Gauge, IntCounter, IntGauge, IntGaugeVec};

use crate::base::metrics::Registry;

/// Metrics of the processor's events and books.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Differences between our books and the processor's at the last reconciliation, by kind.
    pub reconciliation_differences: IntGaugeVec,
    /// Time of the last reconciliation that this instance knows of, in seconds since 1970. 0 if there are no books to
    /// compare with.
    pub reconciled_at: Gauge,
    /// Authorizations without a charge that were voided.
    pub orphans_voided: IntCounter,
    /// Events from the processor that wait for their objects.
    pub acquirer_events_parked: IntGauge,
    /// Events that have waited for too long.
    pub acquirer_events_overdue: IntGauge,
    /// Events from the processor that contradict our books.
    pub acquirer_events_contradicted: IntGauge,
}

impl Metrics {
    /// Registers the metrics in `registry`.
    pub fn new(registry: &Registry) -> Self {
        Self {
            reconciliation_differences: registry.gauges("oncepay_reconciliation_differences", "Differences between our books and the processor's, at this instance's last comparison.", &["difference"]),
            reconciled_at: registry.gauge("oncepay_reconciliation_timestamp_seconds", "Time of this instance's last comparison of our books with the processor's, in seconds since 1970; before its first, that of the last one on any instance. 0 if the processor keeps no books."),
            orphans_voided: registry.counter("oncepay_reconciliation_orphans_voided_total", "Authorizations without a charge that were voided."),
            acquirer_events_parked: registry.int_gauge("oncepay_acquirer_events_parked", "Events from the processor that wait for their objects, at the last sample."),
            acquirer_events_overdue: registry.int_gauge("oncepay_acquirer_events_overdue", "Events from the processor that have waited for too long, at the last sample."),
            acquirer_events_contradicted: registry.int_gauge("oncepay_acquirer_events_contradicted", "Events from the processor that contradict our books and that nobody has dismissed, at the last sample."),
        }
    }
}
