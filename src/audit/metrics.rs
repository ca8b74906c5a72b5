//! Metrics of the last audit.

use prometheus::{Gauge, IntGaugeVec};

use crate::base::metrics::Registry;

/// Metrics of the last audit, whoever ran it.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Violations found by the last audit, by check.
    pub violations: IntGaugeVec,
    /// Begin of the last audit, in seconds since 1970. 0 before the first.
    pub last_run_timestamp: Gauge,
    /// Duration of the last audit.
    pub last_run_seconds: Gauge,
}

impl Metrics {
    /// Registers the metrics in `registry`.
    pub fn new(registry: &Registry) -> Self {
        Self {
            violations: registry.gauges(
                "oncepay_audit_violations",
                "Violations that the last audit found, by check: of a scheduled one on any instance, or of `oncepay audit`.",
                &["check"],
            ),
            last_run_timestamp: registry.gauge(
                "oncepay_audit_last_run_timestamp_seconds",
                "Begin of the last audit that came to an end, in seconds since 1970. 0 before the first.",
            ),
            last_run_seconds: registry
                .gauge("oncepay_audit_last_run_duration_seconds", "Duration of the last audit that came to an end."),
        }
    }
}
