//! Metrics of operations and their callers.

use prometheus::IntCounterVec;

use crate::base::metrics::Registry;

/// Metrics of this service's operations and their callers.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Suspected duplicates of charges, by the action taken.
    pub suspected_duplicates: IntCounterVec,
    /// Refused messages to the processor's webhook, by reason.
    pub webhooks_refused: IntCounterVec,
    /// Events from the processor, by type and outcome.
    pub acquirer_events: IntCounterVec,
}

impl Metrics {
    /// Registers the metrics in `registry`.
    pub fn new(registry: &Registry) -> Self {
        Self {
            suspected_duplicates: registry.counters("oncepay_suspected_duplicates_total", "Charges that look like another one under another key, reported or rejected.", &["action"]),
            webhooks_refused: registry.counters("oncepay_acquirer_webhooks_refused_total", "Refused messages to the processor's webhook, by reason: not signed (malformed, out_of_time, forged) or unreadable.", &["reason"]),
            acquirer_events: registry.counters("oncepay_acquirer_events_total", "Events from the processor, by type and outcome (applied, unchanged, contradicted, unknown, parked).", &["type", "outcome"]),
        }
    }
}
