//! What workers that listen to the processor count and measure.

use prometheus::{Gauge, IntCounter, IntGauge, IntGaugeVec};

use crate::base::metrics::Registry;

/// Events and books of the processor.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Differences between our books and the processor's at the last reconciliation, by kind.
    pub reconciliation_differences: IntGaugeVec,
    /// When it was, in seconds since 1970. 0: not yet, by this instance.
    pub reconciled_at: Gauge,
    /// Authorizations without a charge that were voided.
    pub orphans_voided: IntCounter,
    /// Events of the processor that wait for what they are about.
    pub acquirer_events_parked: IntGauge,
    /// Those that have waited for too long.
    pub acquirer_events_overdue: IntGauge,
    /// Events of the processor that contradict our books.
    pub acquirer_events_contradicted: IntGauge,
}

impl Metrics {
    /// Registers them in `registry`.
    pub fn new(registry: &Registry) -> Self {
        Self {
            reconciliation_differences: registry.gauges("oncepay_reconciliation_differences", "Differences between our books and the processor's, when this instance compared them last.", &["difference"]),
            reconciled_at: registry.gauge("oncepay_reconciliation_timestamp_seconds", "When this instance compared our books with the processor's last, in seconds since 1970."),
            orphans_voided: registry.counter("oncepay_reconciliation_orphans_voided_total", "Authorizations without a charge that were voided."),
            acquirer_events_parked: registry.int_gauge("oncepay_acquirer_events_parked", "Events of the processor that wait for what they are about, at the last look."),
            acquirer_events_overdue: registry.int_gauge("oncepay_acquirer_events_overdue", "Events of the processor that have waited for too long, at the last look."),
            acquirer_events_contradicted: registry.int_gauge("oncepay_acquirer_events_contradicted", "Events of the processor that contradict our books and that nobody has dismissed, at the last look."),
        }
    }
}
