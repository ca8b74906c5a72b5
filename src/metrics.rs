//! What the service counts and measures, in Prometheus' text format at `/metrics`.
//!
//! Labels have few values: operations, outcomes, route patterns. Never keys, ids or merchants.

use actix_web::{HttpResponse, get, web};
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder, exponential_buckets,
};

use crate::error::Error;

/// All metrics of one server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Decisions of the idempotency engine, by operation and outcome.
    pub requests: IntCounterVec,
    /// Time to look a key up and claim it.
    pub claim_seconds: Histogram,
    /// Time to write an external operation's effects and its answer.
    pub finish_seconds: Histogram,
    /// Requests that share a statement, by step.
    pub batch_sizes: HistogramVec,
    /// Time that requests wait to be among them, by step.
    pub batch_wait_seconds: HistogramVec,
    /// Duplicates that wait for an answer.
    pub waiters: IntGauge,
    /// Answers handed to those who waited, by how they were learned of.
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
    /// For how long the oldest key had been due that the reaper dealt with last.
    pub reaper_lag_seconds: Gauge,
    /// Requests in progress.
    pub in_progress: IntGauge,
    /// Age of the oldest of them.
    pub oldest_in_progress_seconds: Gauge,
    /// Requests in progress that are parked.
    pub parked: IntGauge,
    /// Size of the table of keys with its indexes.
    pub table_bytes: IntGauge,
    /// Rows in it, as the planner estimates them.
    pub table_rows: IntGauge,
    /// Charges that look like another, by what was done about it.
    pub suspected_duplicates: IntCounterVec,
    /// HTTP requests to the processor, by call and outcome.
    pub processor_calls: IntCounterVec,
    /// Time that they take, by call.
    pub processor_seconds: HistogramVec,
    /// Whether the processor is called at the moment.
    pub processor_available: IntGauge,
    /// Differences between our books and the acquirer's at the last reconciliation, by kind.
    pub reconciliation_differences: IntGaugeVec,
    /// When it was, in seconds since 1970. 0: not yet, by this instance.
    pub reconciled_at: Gauge,
    /// Authorizations without a charge that were voided.
    pub orphans_voided: IntCounter,
    /// Messages to the acquirer's webhook that were refused, by reason.
    pub webhooks_refused: IntCounterVec,
    /// Events of the acquirer, by type and what has come of them.
    pub acquirer_events: IntCounterVec,
    /// Events of the acquirer that wait for what they are about.
    pub acquirer_events_parked: IntGauge,
    /// Those that have waited for too long.
    pub acquirer_events_overdue: IntGauge,
    /// Events of the acquirer that contradict our books.
    pub acquirer_events_contradicted: IntGauge,
    /// Rows that were deleted because they are too old, by table.
    pub retention_deleted: IntCounterVec,
    /// Attempts to deliver an event, by outcome.
    pub webhook_deliveries: IntCounterVec,
    /// Time from the beginning of an attempt to its end.
    pub webhook_attempt_seconds: Histogram,
    /// Attempts under way.
    pub webhook_in_flight: IntGauge,
    /// Outcomes that share a statement.
    pub webhook_batch_sizes: Histogram,
    /// Time that an outcome waits to be among them.
    pub webhook_batch_wait_seconds: Histogram,
    /// For how long the oldest delivery has been due that nobody has begun.
    pub webhook_oldest_due_seconds: Gauge,
    /// Endpoints that were disabled because they took nothing for too long.
    pub webhook_endpoints_disabled: IntCounter,
    /// Size of the pool.
    pub pool_size: IntGauge,
    /// Connections in use.
    pub pool_in_use: IntGauge,
    /// Time that work waits for a connection.
    pub pool_wait_seconds: Histogram,
    /// Requests that aren't answered yet.
    pub http_in_flight: IntGauge,
    /// Requests by method, route and status.
    pub http_requests: IntCounterVec,
    /// Time from the request's head to the answer, by method and route.
    pub http_seconds: HistogramVec,
}

/// From a quarter of a millisecond to some eight seconds.
fn buckets() -> Vec<f64> {
    exponential_buckets(0.000_25, 2.0, 16).expect("the arguments are valid")
}

impl Metrics {
    /// A registry of its own, so that several servers can live in one process.
    pub fn new() -> Self {
        let registry = Registry::new();
        macro_rules! register {
            ($metric:expr) => {{
                let metric = $metric.expect("names and labels are valid");
                registry.register(Box::new(metric.clone())).expect("names are unique");
                metric
            }};
        }
        let histogram = |name: &str, help: &str| HistogramOpts::new(name, help).buckets(buckets());
        let metrics = Self {
            requests: register!(IntCounterVec::new(
                Opts::new(
                    "oncepay_idempotency_requests_total",
                    "Decisions on mutating requests, by operation and outcome."
                ),
                &["operation", "outcome"]
            )),
            claim_seconds: register!(Histogram::with_opts(histogram(
                "oncepay_idempotency_claim_duration_seconds",
                "Time to look a key up and, if it is new, to claim it."
            ))),
            finish_seconds: register!(Histogram::with_opts(histogram(
                "oncepay_idempotency_finish_duration_seconds",
                "Time to write the effects and the answer of a request, from its claim or its processor call to its commit."
            ))),
            batch_sizes: register!(HistogramVec::new(
                HistogramOpts::new(
                    "oncepay_idempotency_batch_size",
                    "Requests that were looked up and claimed, or finished, together, by step (claim, finish)."
                )
                .buckets(exponential_buckets(1.0, 2.0, 7).expect("the bounds are positive")),
                &["step"]
            )),
            batch_wait_seconds: register!(HistogramVec::new(
                histogram(
                    "oncepay_idempotency_batch_wait_duration_seconds",
                    "Time that a request waits for the others under way, by step (claim, finish)."
                ),
                &["step"]
            )),
            waiters: register!(IntGauge::new(
                "oncepay_idempotency_waiters",
                "Duplicates that wait for an answer (Prefer: wait)."
            )),
            answers_awaited: register!(IntCounterVec::new(
                Opts::new(
                    "oncepay_idempotency_answers_awaited_total",
                    "Answers handed to duplicates that waited, by how they were learned of: made on this instance \
                    (here), told by another (notification), or found in the database without being told (look)."
                ),
                &["learned_by"]
            )),
            takeovers: register!(IntCounter::new(
                "oncepay_idempotency_takeovers_total",
                "Requests taken over from an attempt that died or failed, by clients and by the recovery worker."
            )),
            fenced_commits: register!(IntCounter::new(
                "oncepay_idempotency_fenced_commits_total",
                "Commits that were refused because a later attempt had taken over."
            )),
            recoveries: register!(IntCounterVec::new(
                Opts::new(
                    "oncepay_idempotency_recoveries_total",
                    "Attempts of the recovery worker, by operation and outcome."
                ),
                &["operation", "outcome"]
            )),
            parkings: register!(IntCounter::new(
                "oncepay_idempotency_parkings_total",
                "Requests that the recovery worker has given up and parked."
            )),
            reaped: register!(IntCounterVec::new(
                Opts::new(
                    "oncepay_idempotency_reaped_total",
                    "Keys that were shrunk to a tombstone (expired) and deleted (forgotten)."
                ),
                &["stage"]
            )),
            reaper_lag_seconds: register!(Gauge::new(
                "oncepay_idempotency_reaper_lag_seconds",
                "For how long the oldest key had been due that was expired or forgotten last."
            )),
            in_progress: register!(IntGauge::new(
                "oncepay_idempotency_in_progress",
                "Requests in progress on all instances, at the last look."
            )),
            oldest_in_progress_seconds: register!(Gauge::new(
                "oncepay_idempotency_oldest_in_progress_age_seconds",
                "Age of the oldest request in progress that is not parked, at the last look."
            )),
            parked: register!(IntGauge::new(
                "oncepay_idempotency_parked",
                "Requests that wait for an operator, at the last look."
            )),
            table_bytes: register!(IntGauge::new(
                "oncepay_idempotency_table_bytes",
                "Size of the table of keys with its indexes, at the last look."
            )),
            table_rows: register!(IntGauge::new(
                "oncepay_idempotency_table_rows_estimate",
                "Rows of the table of keys, as the planner estimates them."
            )),
            suspected_duplicates: register!(IntCounterVec::new(
                Opts::new(
                    "oncepay_suspected_duplicates_total",
                    "Charges that look like another one under another key, reported or rejected."
                ),
                &["action"]
            )),
            processor_calls: register!(IntCounterVec::new(
                Opts::new(
                    "oncepay_processor_requests_total",
                    "HTTP requests to the payment processor, by call and outcome (answered, refused, failed, lost, unreachable)."
                ),
                &["call", "outcome"]
            )),
            processor_seconds: register!(HistogramVec::new(
                histogram(
                    "oncepay_processor_request_duration_seconds",
                    "Time that an HTTP request to the payment processor takes, by call."
                ),
                &["call"]
            )),
            processor_available: register!(IntGauge::new(
                "oncepay_processor_available",
                "1 while the payment processor is called, 0 while its circuit breaker is open."
            )),
            reconciliation_differences: register!(IntGaugeVec::new(
                Opts::new(
                    "oncepay_reconciliation_differences",
                    "Differences between our books and the acquirer's, when this instance compared them last."
                ),
                &["difference"]
            )),
            reconciled_at: register!(Gauge::new(
                "oncepay_reconciliation_timestamp_seconds",
                "When this instance compared our books with the acquirer's last, in seconds since 1970."
            )),
            orphans_voided: register!(IntCounter::new(
                "oncepay_reconciliation_orphans_voided_total",
                "Authorizations without a charge that were voided."
            )),
            webhooks_refused: register!(IntCounterVec::new(
                Opts::new(
                    "oncepay_acquirer_webhooks_refused_total",
                    "Messages to the acquirer's webhook that aren't signed (malformed, out_of_time, forged) or can't be read (unreadable), by reason."
                ),
                &["reason"]
            )),
            acquirer_events: register!(IntCounterVec::new(
                Opts::new(
                    "oncepay_acquirer_events_total",
                    "Events of the acquirer, by type and outcome (applied, unchanged, contradicted, unknown, parked)."
                ),
                &["type", "outcome"]
            )),
            acquirer_events_parked: register!(IntGauge::new(
                "oncepay_acquirer_events_parked",
                "Events of the acquirer that wait for what they are about, at the last look."
            )),
            acquirer_events_overdue: register!(IntGauge::new(
                "oncepay_acquirer_events_overdue",
                "Events of the acquirer that have waited for too long, at the last look."
            )),
            acquirer_events_contradicted: register!(IntGauge::new(
                "oncepay_acquirer_events_contradicted",
                "Events of the acquirer that contradict our books and that nobody has dismissed, at the last look."
            )),
            retention_deleted: register!(IntCounterVec::new(
                Opts::new(
                    "oncepay_retention_deleted_total",
                    "Rows that were deleted because they are older than they are kept, by table."
                ),
                &["table"]
            )),
            webhook_deliveries: register!(IntCounterVec::new(
                Opts::new(
                    "oncepay_webhook_deliveries_total",
                    "Attempts to deliver an event whose outcome is noted: succeeded, failed (it will be tried again), given_up."
                ),
                &["outcome"]
            )),
            webhook_attempt_seconds: register!(Histogram::with_opts(histogram(
                "oncepay_webhook_attempt_duration_seconds",
                "Time that an endpoint takes to answer, or not to."
            ))),
            webhook_in_flight: register!(IntGauge::new(
                "oncepay_webhook_in_flight",
                "Attempts to deliver an event that are under way."
            )),
            webhook_batch_sizes: register!(Histogram::with_opts(
                HistogramOpts::new("oncepay_webhook_batch_size", "Outcomes of attempts that were noted together.")
                    .buckets(exponential_buckets(1.0, 2.0, 8).expect("the bounds are positive"))
            )),
            webhook_batch_wait_seconds: register!(Histogram::with_opts(histogram(
                "oncepay_webhook_batch_wait_duration_seconds",
                "Time that the outcome of an attempt waits for the others under way."
            ))),
            webhook_oldest_due_seconds: register!(Gauge::new(
                "oncepay_webhook_oldest_due_age_seconds",
                "For how long the oldest delivery has been due that nobody has begun, of those to endpoints that take messages, at the last look."
            )),
            webhook_endpoints_disabled: register!(IntCounter::new(
                "oncepay_webhook_endpoints_disabled_total",
                "Webhook endpoints that this instance disabled because they took nothing for too long."
            )),
            pool_size: register!(IntGauge::new(
                "oncepay_db_pool_size",
                "Most database connections in use at once."
            )),
            pool_in_use: register!(IntGauge::new("oncepay_db_pool_in_use", "Database connections in use.")),
            pool_wait_seconds: register!(Histogram::with_opts(histogram(
                "oncepay_db_pool_wait_duration_seconds",
                "Time that work waits for a database connection."
            ))),
            http_in_flight: register!(IntGauge::new(
                "oncepay_http_requests_in_flight",
                "HTTP requests that aren't answered yet, this one included."
            )),
            http_requests: register!(IntCounterVec::new(
                Opts::new("oncepay_http_requests_total", "HTTP requests, by method, route and status."),
                &["method", "route", "status"]
            )),
            http_seconds: register!(HistogramVec::new(
                histogram("oncepay_http_request_duration_seconds", "Time to an answer, by method and route."),
                &["method", "route"]
            )),
            registry: registry.clone(),
        };
        #[cfg(target_os = "linux")]
        registry
            .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
            .expect("names are unique");
        metrics.processor_available.set(1);
        metrics
    }

    /// In Prometheus' text format.
    pub fn render(&self) -> Result<String, Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).map_err(Error::internal)?;
        String::from_utf8(text).map_err(Error::internal)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Counts one more in a gauge, for as long as it lives.
#[derive(Debug)]
pub struct Counted(IntGauge);

impl Counted {
    /// Counts one more in `gauge`.
    pub fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The metrics of this instance. Needs no key and asks nothing of the database.
#[get("/metrics")]
pub async fn show(metrics: web::Data<Metrics>) -> Result<HttpResponse, Error> {
    Ok(HttpResponse::Ok().content_type(prometheus::TEXT_FORMAT).body(metrics.render()?))
}
