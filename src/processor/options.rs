//! Settings for the connection to the processor.

use std::time::Duration;

use secrecy::SecretString;
use url::Url;

use super::{HttpSettings, TestCard};
use crate::base::defaults::defaults;

/// Connection to the payment processor. Without an address, a sandbox in this process simulates it.
#[derive(Clone, Debug, clap::Args)]
pub struct ProcessorOptions {
    /// Address of the processor, such as `https://processor.example`. Without it, a sandbox in this process
    /// simulates the processor, and no money moves
    #[arg(
        long = "processor-url",
        alias = "acquirer-url",
        env = "ONCEPAY_PROCESSOR_URL",
        requires = "api_key"
    )]
    pub url: Option<Url>,

    /// API key with which the service authenticates at the processor
    #[arg(
        long = "processor-api-key",
        alias = "acquirer-api-key",
        id = "api_key",
        env = "ONCEPAY_PROCESSOR_API_KEY",
        hide_env_values = true
    )]
    pub api_key: Option<SecretString>,

    /// Maximum time to connect to the processor, and for its health check, in milliseconds
    #[arg(long = "processor-connect-timeout-ms", alias = "acquirer-connect-timeout-ms", env = "ONCEPAY_PROCESSOR_CONNECT_TIMEOUT_MS", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub connect_timeout_ms: u64,

    /// Maximum time for one HTTP request to the processor, in milliseconds
    #[arg(long = "processor-request-timeout-ms", alias = "acquirer-request-timeout-ms", env = "ONCEPAY_PROCESSOR_REQUEST_TIMEOUT_MS", default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub request_timeout_ms: u64,

    /// Interval of the processor's health check, in milliseconds
    #[arg(long = "processor-probe-interval-ms", alias = "acquirer-probe-interval-ms", env = "ONCEPAY_PROCESSOR_PROBE_INTERVAL_MS", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(10..))]
    pub probe_interval_ms: u64,

    /// Payment methods that are passed on to the processor. The others are refused at once
    #[arg(
        long = "processor-payment-methods",
        env = "ONCEPAY_PROCESSOR_PAYMENT_METHODS",
        value_enum,
        default_value_t = PaymentMethods::TestCards
    )]
    pub payment_methods: PaymentMethods,
}

/// Payment method tokens of a processor that is reached over HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum PaymentMethods {
    /// Those of `oncepay simulator`
    TestCards,
    /// Any: the processor decides
    Any,
}

impl PaymentMethods {
    fn check(self) -> fn(&str) -> Result<(), String> {
        match self {
            Self::TestCards => TestCard::check,
            Self::Any => |_| Ok(()),
        }
    }
}

impl ProcessorOptions {
    /// Settings without a processor.
    pub fn none() -> Self {
        defaults()
    }

    /// Settings for the processor at `url`.
    pub fn at(url: Url, api_key: SecretString) -> Self {
        Self { url: Some(url), api_key: Some(api_key), ..Self::none() }
    }

    /// Settings of the HTTP client, if there is a processor.
    pub fn http_settings(&self) -> Option<HttpSettings> {
        Some(HttpSettings {
            url: self.url.clone()?,
            api_key: self.api_key.clone()?,
            connect_timeout: Duration::from_millis(self.connect_timeout_ms),
            request_timeout: Duration::from_millis(self.request_timeout_ms),
            probe_interval: Duration::from_millis(self.probe_interval_ms),
            check_payment_method: self.payment_methods.check(),
        })
    }
}
