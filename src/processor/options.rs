//! How the processor is reached, as settings.

use std::time::Duration;

use secrecy::SecretString;
use url::Url;

use super::HttpSettings;
use crate::base::defaults::defaults;

/// How to reach the acquirer. Without an address, a sandbox in our own process plays it.
#[derive(Clone, Debug, clap::Args)]
pub struct ProcessorOptions {
    /// Address of the acquirer, as in `https://acquirer.example`. Without it a sandbox in this process plays the
    /// acquirer, and no money is moved
    #[arg(
        long = "processor-url",
        alias = "acquirer-url",
        env = "ONCEPAY_PROCESSOR_URL",
        requires = "api_key"
    )]
    pub url: Option<Url>,

    /// What the acquirer knows us by
    #[arg(
        long = "processor-api-key",
        alias = "acquirer-api-key",
        id = "api_key",
        env = "ONCEPAY_PROCESSOR_API_KEY",
        hide_env_values = true
    )]
    pub api_key: Option<SecretString>,

    /// Longest time to connect to the acquirer, and for it to tell that it's well, in milliseconds
    #[arg(long = "processor-connect-timeout-ms", alias = "acquirer-connect-timeout-ms", env = "ONCEPAY_PROCESSOR_CONNECT_TIMEOUT_MS", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub connect_timeout_ms: u64,

    /// Longest time for one HTTP request to the acquirer, in milliseconds
    #[arg(long = "processor-request-timeout-ms", alias = "acquirer-request-timeout-ms", env = "ONCEPAY_PROCESSOR_REQUEST_TIMEOUT_MS", default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub request_timeout_ms: u64,

    /// How often the acquirer is asked whether it's well, in milliseconds
    #[arg(long = "processor-probe-interval-ms", alias = "acquirer-probe-interval-ms", env = "ONCEPAY_PROCESSOR_PROBE_INTERVAL_MS", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(10..))]
    pub probe_interval_ms: u64,
}

impl ProcessorOptions {
    /// No acquirer.
    pub fn none() -> Self {
        defaults()
    }

    /// The acquirer at `url`.
    pub fn at(url: Url, api_key: SecretString) -> Self {
        Self { url: Some(url), api_key: Some(api_key), ..Self::none() }
    }

    /// For the client of the acquirer, if there is one.
    pub fn http_settings(&self) -> Option<HttpSettings> {
        Some(HttpSettings {
            url: self.url.clone()?,
            api_key: self.api_key.clone()?,
            connect_timeout: Duration::from_millis(self.connect_timeout_ms),
            request_timeout: Duration::from_millis(self.request_timeout_ms),
            probe_interval: Duration::from_millis(self.probe_interval_ms),
        })
    }
}
