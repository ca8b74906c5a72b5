//! Configuration: one struct, read from flags and from `ONCEPAY_*` variables; secrets also from files.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::audit;
use crate::base::defaults::defaults_with;
use crate::base::derived_secrets::MASTER_KEY_LENGTH_MIN;
use crate::base::logging::LogFormat;
use crate::base::signature::Secret;
use crate::idempotency::{Recovery, Timing};
use crate::inbound;
use crate::inbound::reconcile;
use crate::processor::ProcessorOptions;
use crate::storage::db::WAITING_MAX;
use crate::webhooks::delivery;

/// Time that a lease adds to the processor's: for the transaction that finishes the attempt.
const LEASE_MARGIN_MS: u64 = 500;

/// Keys that a development environment shows to whoever opens its pages on the same machine.
#[derive(Clone, Debug)]
pub struct DevelopmentKeys {
    /// API key of the seeded merchant.
    pub api_key: SecretString,
    /// Key of the seeded operator.
    pub operator_key: SecretString,
}

/// Settings of a running service. `oncepay serve --help` prints them with their variables.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Connection string of the database, as the role `oncepay_app`
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: SecretString,

    /// Master key from which the service derives the secrets that it hands out: at least 32 characters, the
    /// same on all instances, kept for good. The database knows it by a check value, and the service doesn't
    /// start with another one
    #[arg(long, env = "ONCEPAY_MASTER_KEY", hide_env_values = true)]
    pub master_key: SecretString,

    /// Master key that the current one replaces: secrets that were derived from it stay as they are. Needed
    /// while answers that show such secrets are kept, and webhook endpoints sign with them
    #[arg(long, env = "ONCEPAY_PREVIOUS_MASTER_KEY", hide_env_values = true)]
    pub previous_master_key: Option<SecretString>,

    /// Address to listen on; port 0 picks a free one
    #[arg(long, env = "ONCEPAY_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// Form of the log on standard error. `RUST_LOG` sets its levels
    #[arg(long, env = "ONCEPAY_LOG_FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,

    /// Address of an OpenTelemetry collector that takes OTLP over HTTP, such as http://collector:4318. Only for builds with
    /// the cargo feature `otlp`. The usual OTEL_… variables set headers, protocol and batches
    #[arg(long, env = "ONCEPAY_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<Url>,

    /// Address of another port for the metrics and the API reference (/metrics, /docs), for operators only. The port
    /// for clients then doesn't serve them. By default there is no other port, and it does
    #[arg(long, env = "ONCEPAY_ADMIN_LISTEN")]
    pub admin_listen: Option<SocketAddr>,

    /// Serve the console (/console), in which merchants and operators look at payments with their keys: on the port for
    /// operators, if there is one
    #[arg(long, env = "ONCEPAY_CONSOLE")]
    pub console: bool,

    /// Maximum number of connections of clients at the same time; more wait until one ends. Each takes some 20 KB of
    /// memory, and up to 100 KB while it sends or receives much
    #[arg(long, env = "ONCEPAY_CONNECTIONS_MAX", default_value_t = 8_192, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub connections_max: u32,

    /// Maximum number of requests that wait for the database at the same time; beyond that, merchants with more than
    /// their share of them get 503
    #[arg(long, env = "ONCEPAY_WAITING_MAX", default_value_t = WAITING_MAX, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub waiting_max: u32,

    /// Number of database connections, and of threads that use them
    #[arg(long, env = "ONCEPAY_POOL_SIZE", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub pool_size: u32,

    /// Maximum wait for a database connection, in milliseconds; after that the request gets 503
    #[arg(long, env = "ONCEPAY_POOL_TIMEOUT_MS", default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub pool_timeout_ms: u64,

    /// Maximum number of concurrent requests that share database statements; with 1 each has its own
    #[arg(long, env = "ONCEPAY_BATCH_SIZE_MAX", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub batch_size_max: u32,

    /// Time for which an attempt owns a request, in milliseconds. After that another attempt may take over,
    /// so it must be longer than the processor's timeout
    #[arg(long, env = "ONCEPAY_LEASE_MS", default_value_t = 30_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub lease_ms: u64,

    /// Maximum wait for the payment processor's answer, in milliseconds
    #[arg(long, env = "ONCEPAY_PROCESSOR_TIMEOUT_MS", default_value_t = 8_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub processor_timeout_ms: u64,

    /// Interval at which each instance looks for abandoned requests, in milliseconds
    #[arg(long, env = "ONCEPAY_RECOVERY_INTERVAL_MS", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(10..))]
    pub recovery_interval_ms: u64,

    /// Time for which a request with a failed attempt is left to its client before the service finishes it by
    /// itself, in milliseconds; doubles with each failure of the service
    #[arg(long, env = "ONCEPAY_RECOVERY_DELAY_MS", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub recovery_delay_ms: u64,

    /// Maximum number of the service's own attempts to finish a request before it's parked for an operator
    #[arg(long, env = "ONCEPAY_RECOVERY_ATTEMPTS_MAX", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub recovery_attempts_max: u32,

    /// Maximum number of requests that an instance finishes by itself at the same time
    #[arg(long, env = "ONCEPAY_RECOVERY_CONCURRENCY", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub recovery_concurrency: u32,

    /// Interval of the cleanup of expired idempotency keys, in milliseconds
    #[arg(long, env = "ONCEPAY_REAPER_INTERVAL_MS", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(10..))]
    pub reaper_interval_ms: u64,

    /// Interval at which waiting idempotency keys and deliveries are measured for the metrics, and at which the delays of
    /// retries are stored for `oncepay policies recommend`, in milliseconds
    #[arg(long, env = "ONCEPAY_METRICS_INTERVAL_MS", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(10..))]
    pub metrics_interval_ms: u64,

    /// Interval at which the ledger's checkpoints are advanced, in milliseconds
    #[arg(long, env = "ONCEPAY_ROLL_UP_INTERVAL_MS", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(10..))]
    pub roll_up_interval_ms: u64,

    /// Maximum time to answer a request after its arrival, in milliseconds; after that it gets 503. Its work
    /// goes on, and its retry gets the answer. `Prefer: wait` adds to the time
    #[arg(long, env = "ONCEPAY_REQUEST_DEADLINE_MS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub request_deadline_ms: u64,

    /// Time for which an instance goes on serving after SIGTERM, but reports that it isn't ready, in milliseconds: longer
    /// than load balancers need to notice. Then it closes its port and finishes the requests under way
    #[arg(long, env = "ONCEPAY_SHUTDOWN_DELAY_MS", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(0..=600_000))]
    pub shutdown_delay_ms: u64,

    /// Settings of the payment processor
    #[command(flatten)]
    pub processor: ProcessorOptions,

    /// Interval at which one instance compares our books with the processor's, in milliseconds
    #[arg(long, env = "ONCEPAY_RECONCILE_INTERVAL_MS", default_value_t = 600_000, value_parser = clap::value_parser!(u64).range(10..))]
    pub reconcile_interval_ms: u64,

    /// Settings of that comparison
    #[command(flatten)]
    pub reconcile: reconcile::Options,

    /// Settings of the scheduled audit
    #[command(flatten)]
    pub audit: audit::schedule::Options,

    /// Secret that signs the processor's events: whsec_ and base64. Several, separated by commas, while the
    /// processor switches from one to the next. Without a secret, the service refuses events
    #[arg(long, env = "ONCEPAY_WEBHOOK_SECRET", hide_env_values = true)]
    pub webhook_secret: Option<SecretString>,

    /// Settings for the processor's events
    #[command(flatten)]
    pub processor_events: inbound::Options,
    /// Settings for deliveries to webhook endpoints
    #[command(flatten)]
    pub delivery: delivery::Options,

    /// Report ready (/readyz) while the processor is down: reads and replays still work then
    #[arg(long, alias = "ready-without-acquirer", env = "ONCEPAY_READY_WITHOUT_PROCESSOR")]
    pub ready_without_processor: bool,

    /// Allow webhook endpoints on this host, also without TLS (`http://127.0.0.1:9000/`): for development
    #[arg(long, env = "ONCEPAY_WEBHOOK_ALLOW_LOOPBACK")]
    pub webhook_allow_loopback: bool,

    /// Retention of events, in days
    #[arg(long, env = "ONCEPAY_EVENT_RETENTION_DAYS", default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub event_retention_days: u32,

    /// Retention of deliveries, in days; at most that of the events
    #[arg(long, env = "ONCEPAY_DELIVERY_RETENTION_DAYS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub delivery_retention_days: u32,

    /// File to which the sandbox processor appends each call as a line of JSON
    #[arg(long, alias = "sandbox-journal", env = "ONCEPAY_SANDBOX_CALL_LOG")]
    pub sandbox_call_log: Option<PathBuf>,

    /// Set by `oncepay dev` alone.
    #[arg(skip)]
    pub development_keys: Option<DevelopmentKeys>,
}

impl Config {
    /// Returns the settings of a service on `database_url`, with defaults for everything else, on a free
    /// port.
    pub fn for_database(database_url: SecretString, master_key: SecretString) -> Self {
        // Secrets bypass the parser, whose errors quote the refused value.
        let needed = ["--database-url=", "--master-key="];
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { database_url, master_key, listen, ..defaults_with(needed) }
    }

    /// Refuses combinations of settings that don't fit together. The error is a sentence.
    pub fn validate(&self) -> Result<(), String> {
        if self.master_key.expose_secret().len() < MASTER_KEY_LENGTH_MIN {
            return Err(format!("The master key must have at least {MASTER_KEY_LENGTH_MIN} characters."));
        }
        let previous = self.previous_master_key.as_ref().map(ExposeSecret::expose_secret);
        if previous == Some(self.master_key.expose_secret()) {
            return Err("ONCEPAY_PREVIOUS_MASTER_KEY is the same as ONCEPAY_MASTER_KEY. Unset it.".to_owned());
        }
        if self.lease_ms < self.processor_timeout_ms + LEASE_MARGIN_MS {
            return Err(format!(
                "The lease ({} ms) must be at least {LEASE_MARGIN_MS} ms longer than the wait for the processor ({} ms): \
                 otherwise each retry takes a request over from an attempt that would have finished.",
                self.lease_ms, self.processor_timeout_ms
            ));
        }
        if self.processor.url.is_some() && self.processor.request_timeout_ms > self.processor_timeout_ms {
            return Err(format!(
                "One request to the processor ({} ms) can't take longer than all that a charge needs of it ({} ms).",
                self.processor.request_timeout_ms, self.processor_timeout_ms
            ));
        }
        let kept_days = self.delivery_retention_days.min(self.event_retention_days);
        if u64::from(kept_days) * 24 * 60 * 60 <= self.delivery.delivery_give_up_after_s {
            return Err(format!(
                "Deliveries are tried for {} s, but kept for {kept_days} days only. They must be kept for longer than they are tried.",
                self.delivery.delivery_give_up_after_s
            ));
        }
        self.webhook_secrets().map(|_| ())
    }

    /// The secrets that the processor may sign with. The error is a sentence.
    pub fn webhook_secrets(&self) -> Result<Vec<Secret>, String> {
        let secrets = self.webhook_secret.as_ref().map(ExposeSecret::expose_secret).unwrap_or_default();
        secrets.split(',').map(str::trim).filter(|secret| !secret.is_empty()).map(Secret::parse).collect()
    }

    /// See [`pool_timeout_ms`](Self::pool_timeout_ms).
    pub fn pool_timeout(&self) -> Duration {
        Duration::from_millis(self.pool_timeout_ms)
    }

    /// Durations for the idempotency engine.
    pub fn timing(&self) -> Timing {
        Timing {
            // An answer that gives up at the last moment is late.
            request_deadline: Duration::from_millis(self.request_deadline_ms).mul_f64(0.95),
            lease: Duration::from_millis(self.lease_ms),
            processor_timeout: Duration::from_millis(self.processor_timeout_ms),
            recovery: Recovery {
                interval: Duration::from_millis(self.recovery_interval_ms),
                delay: Duration::from_millis(self.recovery_delay_ms),
                attempts_max: self.recovery_attempts_max,
                concurrency: self.recovery_concurrency,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_do_not_go_together_are_refused() {
        let valid = || Config::for_database("postgres://h/d".into(), "m".repeat(32).into());
        assert_eq!(valid().validate(), Ok(()));
        let short_lease = Config { lease_ms: 8_499, ..valid() };
        assert!(short_lease.validate().is_err_and(|error| error.contains("lease")));
        let short_key = Config { master_key: "m".repeat(31).into(), ..valid() };
        assert!(short_key.validate().is_err_and(|error| error.contains("master key")));
        let same_key = Config { previous_master_key: Some("m".repeat(32).into()), ..valid() };
        assert!(same_key.validate().is_err_and(|error| error.contains("the same")));
        let short_retention = Config { event_retention_days: 3, ..valid() };
        assert!(short_retention.validate().is_err_and(|error| error.contains("kept for 3 days only")));
    }

    #[test]
    fn secrets_do_not_show_when_settings_are_printed() {
        let config = Config::for_database("postgres://u:hidden@h/d".into(), "hidden".repeat(6).into());
        assert!(!format!("{config:?}").contains("hidden"));
    }
}
