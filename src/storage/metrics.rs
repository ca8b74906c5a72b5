//! Metrics of the connection pool and of the database's clock.

use prometheus::{Gauge, Histogram, IntCounter, IntGauge};

use crate::base::metrics::Registry;

/// Metrics of the connection pool and of the database's clock.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Maximum number of connections.
    pub pool_size: IntGauge,
    /// Connections in use.
    pub pool_in_use: IntGauge,
    /// Work that waits for a connection.
    pub pool_waiting: IntGauge,
    /// Time that work waits for a connection.
    pub pool_wait_seconds: Histogram,
    /// Requests that wait for the database or use it, before their claim.
    pub waiting_requests: IntGauge,
    /// Requests with large bodies.
    pub large_bodies: IntGauge,
    /// Requests that were refused because too many were waiting, or had large bodies.
    pub overloads: IntCounter,
    /// Work that was given up because no connection was free in time.
    pub pool_timeouts: IntCounter,
    /// Time by which this instance's clock is ahead of the database's. Negative if it's behind.
    pub clock_skew_seconds: Gauge,
}

impl Metrics {
    /// Registers the metrics in `registry`.
    pub fn new(registry: &Registry) -> Self {
        Self {
            pool_size: registry
                .int_gauge("oncepay_db_pool_size", "Maximum number of database connections in use."),
            pool_in_use: registry.int_gauge("oncepay_db_pool_in_use", "Database connections in use."),
            pool_waiting: registry
                .int_gauge("oncepay_db_pool_waiting", "Work that waits for a database connection."),
            pool_wait_seconds: registry.durations(
                "oncepay_db_pool_wait_duration_seconds",
                "Time that work waits for a database connection. Work that gets none isn't counted here.",
            ),
            pool_timeouts: registry.counter(
                "oncepay_db_pool_timeouts_total",
                "Work that was given up because no database connection was free in time.",
            ),
            clock_skew_seconds: registry.gauge(
                "oncepay_clock_skew_seconds",
                "Time by which this instance's clock is ahead of the database's (negative: behind), at the last sample.",
            ),
            waiting_requests: registry.int_gauge(
                "oncepay_db_waiting_requests",
                "Requests that wait for the database or use it, up to their claim or, of reads, up to their answer.",
            ),
            large_bodies: registry.int_gauge(
                "oncepay_large_bodies",
                "Requests under way whose body is larger than 8 KiB.",
            ),
            overloads: registry.counter(
                "oncepay_overloads_total",
                "Requests that were refused with `overloaded`, because too many were waiting for the database or had large bodies.",
            ),
        }
    }
}
