//! Metrics of the connection pool.

use prometheus::{Histogram, IntGauge};

use crate::base::metrics::Registry;

/// Metrics of the connection pool.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Maximum number of connections.
    pub pool_size: IntGauge,
    /// Connections in use.
    pub pool_in_use: IntGauge,
    /// Time that work waits for a connection.
    pub pool_wait_seconds: Histogram,
}

impl Metrics {
    /// Registers the metrics in `registry`.
    pub fn new(registry: &Registry) -> Self {
        Self {
            pool_size: registry
                .int_gauge("oncepay_db_pool_size", "Maximum number of database connections in use."),
            pool_in_use: registry.int_gauge("oncepay_db_pool_in_use", "Database connections in use."),
            pool_wait_seconds: registry.durations(
                "oncepay_db_pool_wait_duration_seconds",
                "Time that work waits for a database connection.",
            ),
        }
    }
}
