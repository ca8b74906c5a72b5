//! What operations and their callers count.

use prometheus::IntCounterVec;

use crate::base::metrics::Registry;

/// Operations of this service, and their callers.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Charges that look like another, by what was done about it.
    pub suspected_duplicates: IntCounterVec,
    /// Messages to the acquirer's webhook that were refused, by reason.
    pub webhooks_refused: IntCounterVec,
    /// Events of the acquirer, by type and what has come of them.
    pub acquirer_events: IntCounterVec,
}

impl Metrics {
    /// Registers them in `registry`.
    pub fn new(registry: &Registry) -> Self {
        Self {
            suspected_duplicates: registry.counters("oncepay_suspected_duplicates_total", "Charges that look like another one under another key, reported or rejected.", &["action"]),
            webhooks_refused: registry.counters("oncepay_acquirer_webhooks_refused_total", "Messages to the acquirer's webhook that aren't signed (malformed, out_of_time, forged) or can't be read (unreadable), by reason.", &["reason"]),
            acquirer_events: registry.counters("oncepay_acquirer_events_total", "Events of the acquirer, by type and outcome (applied, unchanged, contradicted, unknown, parked).", &["type", "outcome"]),
        }
    }
}
