//! Configuration: one struct, read from flags and from `ONCEPAY_*` variables.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use crate::idempotency::Timing;
use crate::idempotency::recovery::Recovery;
use crate::vault::MASTER_KEY_LENGTH_MIN;

/// What an attempt needs beside the processor's time: for the transaction that finishes it.
const LEASE_MARGIN_MS: u64 = 500;

/// Settings of a running service. `oncepay serve --help` prints them with their variables.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Connection string of the database, as the role `oncepay_app`
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: SecretString,

    /// Master key from which secrets that are handed out are derived: at least 32 characters, the same on all
    /// instances, kept for good. Losing it makes no key invalid; changing it changes what replays of creations show
    #[arg(long, env = "ONCEPAY_MASTER_KEY", hide_env_values = true)]
    pub master_key: SecretString,

    /// Address to listen on; port 0 takes a free one
    #[arg(long, env = "ONCEPAY_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// Database connections, and threads that use them
    #[arg(long, env = "ONCEPAY_POOL_SIZE", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub pool_size: u32,

    /// Longest wait for a database connection, in milliseconds; then 503
    #[arg(long, env = "ONCEPAY_POOL_TIMEOUT_MS", default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub pool_timeout_ms: u64,

    /// How long an attempt has a request to itself, in milliseconds. After that another attempt may
    /// take over, so it must be longer than the wait for the processor
    #[arg(long, env = "ONCEPAY_LEASE_MS", default_value_t = 30_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub lease_ms: u64,

    /// Longest wait for an answer of the payment processor, in milliseconds
    #[arg(long, env = "ONCEPAY_PROCESSOR_TIMEOUT_MS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub processor_timeout_ms: u64,

    /// How often each instance looks for requests that died, in milliseconds
    #[arg(long, env = "ONCEPAY_RECOVERY_INTERVAL_MS", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(10..))]
    pub recovery_interval_ms: u64,

    /// How long a request whose attempt has failed is left to its client before the service finishes it by
    /// itself, in milliseconds; doubles with each failure of its own
    #[arg(long, env = "ONCEPAY_RECOVERY_DELAY_MS", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub recovery_delay_ms: u64,

    /// Attempts of the service's own to finish a request before it's parked for an operator
    #[arg(long, env = "ONCEPAY_RECOVERY_ATTEMPTS_MAX", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub recovery_attempts_max: u32,

    /// Requests that an instance finishes by itself at the same time
    #[arg(long, env = "ONCEPAY_RECOVERY_CONCURRENCY", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub recovery_concurrency: u32,

    /// How often expired idempotency keys are cleaned up, in milliseconds
    #[arg(long, env = "ONCEPAY_REAPER_INTERVAL_MS", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(10..))]
    pub reaper_interval_ms: u64,

    /// How often the table of idempotency keys is measured for the metrics, in milliseconds
    #[arg(long, env = "ONCEPAY_METRICS_INTERVAL_MS", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(10..))]
    pub metrics_interval_ms: u64,

    /// How often the ledger's checkpoints are moved up, in milliseconds
    #[arg(long, env = "ONCEPAY_ROLL_UP_INTERVAL_MS", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(10..))]
    pub roll_up_interval_ms: u64,

    /// File to which the sandbox processor appends each call as a line of JSON
    #[arg(long, env = "ONCEPAY_SANDBOX_JOURNAL")]
    pub sandbox_journal: Option<PathBuf>,
}

impl Config {
    /// The settings of a service on `database_url` with everything else as by default, on a free port.
    pub fn for_database(database_url: SecretString, master_key: SecretString) -> Self {
        Self {
            database_url,
            master_key,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            pool_size: 8,
            pool_timeout_ms: 2_000,
            lease_ms: 30_000,
            processor_timeout_ms: 10_000,
            recovery_interval_ms: 1_000,
            recovery_delay_ms: 5_000,
            recovery_attempts_max: 20,
            recovery_concurrency: 4,
            reaper_interval_ms: 5_000,
            metrics_interval_ms: 5_000,
            roll_up_interval_ms: 5_000,
            sandbox_journal: None,
        }
    }

    /// Refuses settings that don't go together. The error is a sentence.
    pub fn validate(&self) -> Result<(), String> {
        if self.master_key.expose_secret().len() < MASTER_KEY_LENGTH_MIN {
            return Err(format!("The master key must have at least {MASTER_KEY_LENGTH_MIN} characters."));
        }
        if self.lease_ms < self.processor_timeout_ms + LEASE_MARGIN_MS {
            return Err(format!(
                "The lease ({} ms) must be at least {LEASE_MARGIN_MS} ms longer than the wait for the processor ({} ms): \
                 otherwise each retry takes a request over from an attempt that would have finished.",
                self.lease_ms, self.processor_timeout_ms
            ));
        }
        Ok(())
    }

    /// See [`pool_timeout_ms`](Self::pool_timeout_ms).
    pub fn pool_timeout(&self) -> Duration {
        Duration::from_millis(self.pool_timeout_ms)
    }

    /// How long things last in the idempotency engine.
    pub fn timing(&self) -> Timing {
        Timing {
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
        let short_lease = Config { lease_ms: 10_499, ..valid() };
        assert!(short_lease.validate().is_err_and(|error| error.contains("lease")));
        let short_key = Config { master_key: "m".repeat(31).into(), ..valid() };
        assert!(short_key.validate().is_err_and(|error| error.contains("master key")));
    }

    #[test]
    fn secrets_do_not_show_when_settings_are_printed() {
        let config = Config::for_database("postgres://u:hidden@h/d".into(), "hidden".repeat(6).into());
        assert!(!format!("{config:?}").contains("hidden"));
    }
}
