//! Metrics of the engine.

use prometheus::{Gauge, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use crate::base::metrics::Registry;
use crate::storage::batch;

/// Bounds of the delays of retries, from a second to thirty days: the longest TTL. Fewer than the table tells apart, since
/// each is a series.
const RETRY_DELAYS_S: [f64; 10] =
    [1.0, 10.0, 60.0, 600.0, 3_600.0, 28_800.0, 86_400.0, 259_200.0, 604_800.0, 2_592_000.0];

/// Metrics of the engine.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Decisions of the idempotency engine, by operation and outcome.
    pub requests: IntCounterVec,
    /// Age of the keys that come back, by operation and by what the request finds under its key.
    pub retry_delay_seconds: HistogramVec,
    /// Requests beyond the limits of their policies, by operation and limit.
    pub rate_limited: IntCounterVec,
    /// Time to look a key up and claim it.
    pub claim_seconds: Histogram,
    /// Time to write an external operation's effects and its answer.
    pub finish_seconds: Histogram,
    /// Number of requests in a batch, by step.
    pub batch_sizes: HistogramVec,
    /// Time that requests wait for their batch, by step.
    pub batch_wait_seconds: HistogramVec,
    /// Requests that wait for their batch, by step.
    pub batch_waiting: IntGaugeVec,
    /// Duplicates that wait for an answer.
    pub waiters: IntGauge,
    /// Answers handed to waiting duplicates, by how the group learned of them.
    pub answers_awaited: IntCounterVec,
    /// Requests taken over from an attempt that died or failed.
    pub takeovers: IntCounter,
    /// Commits that the fence refused, because a later attempt had taken over.
    pub fenced_commits: IntCounter,
    /// Attempts of the recovery worker, by operation and outcome.
    pub recoveries: IntCounterVec,
    /// Requests that the recovery worker has given up.
    pub parkings: IntCounter,
    /// Keys that the reaper has expired and forgotten, by stage.
    pub reaped: IntCounterVec,
    /// Time for which the oldest key that the reaper must process has been due.
    pub reaper_lag_seconds: Gauge,
    /// Requests in progress.
    pub in_progress: IntGauge,
    /// Age of the oldest request in progress.
    pub oldest_in_progress_seconds: Gauge,
    /// Time for which the oldest abandoned request has been due for the recovery worker.
    pub recovery_lag_seconds: Gauge,
    /// Requests in progress that are parked.
    pub parked: IntGauge,
    /// Size of the key table with its indexes.
    pub table_bytes: IntGauge,
    /// Rows of the key table, as the planner estimates them.
    pub table_rows: IntGauge,
}

impl Metrics {
    /// Registers the metrics in `registry`.
    pub fn new(registry: &Registry) -> Self {
        Self {
            requests: registry.counters("oncepay_idempotency_requests_total", "Decisions on mutating requests, by operation and outcome.", &["operation", "outcome"]),
            retry_delay_seconds: registry.histograms_by("oncepay_idempotency_retry_delay_seconds", "Time from the first claim of a key to its return, by operation and by what the request finds \
                    under the key: the answer, a request in progress (unfinished), another request (other_request), a tombstone that refuses it (expired), or nothing any more (free).", &["operation", "found"], &RETRY_DELAYS_S),
            rate_limited: registry.counters("oncepay_rate_limited_total", "Requests that were refused with `rate_limited`, by operation and limit (rate, concurrency).", &["operation", "limited"]),
            claim_seconds: registry.durations("oncepay_idempotency_claim_duration_seconds", "Time to look a key up and, if it is new, to claim it."),
            finish_seconds: registry.durations("oncepay_idempotency_finish_duration_seconds", "Time to write the effects and the answer of a request, from its claim or its processor call to its commit."),
            batch_sizes: registry.sizes_by("oncepay_idempotency_batch_size", "Requests per batch, by step: of look-ups and claims (claim) or of finishes (finish) in one statement; of first halves (begin, which is all of a request that calls no processor) or second halves (end) in one transaction.", &["step"], 7),
            batch_wait_seconds: registry.durations_by("oncepay_idempotency_batch_wait_duration_seconds", "Time that a request waits for its batch, by step (claim, finish, begin, end).", &["step"]),
            batch_waiting: registry.gauges("oncepay_idempotency_batch_waiting", "Requests that wait for their batch, by step (claim, finish, begin, end).", &["step"]),
            waiters: registry.int_gauge("oncepay_idempotency_waiters", "Duplicates that wait for an answer (Prefer: wait)."),
            answers_awaited: registry.counters("oncepay_idempotency_answers_awaited_total", "Answers handed to waiting duplicates, by their source: made on this instance \
                    (here), announced by another (notification), or found in the database without an announcement (look).", &["learned_by"]),
            takeovers: registry.counter("oncepay_idempotency_takeovers_total", "Requests taken over from an attempt that died or failed, by clients and by the recovery worker."),
            fenced_commits: registry.counter("oncepay_idempotency_fenced_commits_total", "Commits that were refused because a later attempt had taken over."),
            recoveries: registry.counters("oncepay_idempotency_recoveries_total", "Attempts of the recovery worker, by operation and outcome.", &["operation", "outcome"]),
            parkings: registry.counter("oncepay_idempotency_parkings_total", "Requests that the recovery worker has given up and parked."),
            reaped: registry.counters("oncepay_idempotency_reaped_total", "Keys that were shrunk to a tombstone (expired) and deleted (forgotten).", &["stage"]),
            reaper_lag_seconds: registry.gauge("oncepay_idempotency_reaper_lag_seconds", "Time for which the oldest key that must be shrunk to a tombstone or deleted has been due, at the last sample."),
            in_progress: registry.int_gauge("oncepay_idempotency_in_progress", "Requests in progress on all instances, at the last sample."),
            oldest_in_progress_seconds: registry.gauge("oncepay_idempotency_oldest_in_progress_age_seconds", "Age of the oldest request in progress that is not parked, at the last sample."),
            recovery_lag_seconds: registry.gauge("oncepay_idempotency_recovery_lag_seconds", "Time for which the abandoned request that has waited longest for the recovery worker has been due, at the last sample."),
            parked: registry.int_gauge("oncepay_idempotency_parked", "Requests that wait for an operator, at the last sample."),
            table_bytes: registry.int_gauge("oncepay_idempotency_table_bytes", "Size of the key table with its indexes, at the last sample."),
            table_rows: registry.int_gauge("oncepay_idempotency_table_rows_estimate", "Rows of the key table, as the planner estimates them."),
        }
    }

    /// Metrics of the batches of a step.
    pub fn of_batches(&self, step: &str) -> batch::Metrics {
        batch::Metrics {
            sizes: self.batch_sizes.with_label_values(&[step]),
            wait_seconds: self.batch_wait_seconds.with_label_values(&[step]),
            waiting: self.batch_waiting.with_label_values(&[step]),
        }
    }
}
