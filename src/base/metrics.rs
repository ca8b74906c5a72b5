//! The registry of metrics, in Prometheus's text format.
//!
//! Each area registers its own metrics here (`storage::metrics`, `idempotency::metrics` …), so that no area
//! has to know another's. Labels have few values: operations, outcomes, route patterns. Never keys, ids or
//! merchants.

use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, TextEncoder, exponential_buckets,
};

/// All metrics of one server. Several servers can live in one process, each with its own registry. Cheap to
/// clone.
#[derive(Clone, Debug, Default)]
pub struct Registry(prometheus::Registry);

/// From a quarter of a millisecond to some eight seconds.
fn seconds() -> Vec<f64> {
    exponential_buckets(0.000_25, 2.0, 16).expect("the arguments are valid")
}

/// From 1, doubling.
fn sizes(buckets: usize) -> Vec<f64> {
    exponential_buckets(1.0, 2.0, buckets).expect("the arguments are valid")
}

impl Registry {
    /// Makes a registry with the operating system's metrics of this process.
    pub fn new() -> Self {
        let registry = Self::default();
        #[cfg(target_os = "linux")]
        registry
            .0
            .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
            .expect("names are unique");
        registry
    }

    fn register<M: Collector + Clone + 'static>(&self, metric: prometheus::Result<M>) -> M {
        let metric = metric.expect("names and labels are valid");
        self.0.register(Box::new(metric.clone())).expect("names are unique");
        metric
    }

    /// Registers a counter.
    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::new(name, help))
    }

    /// Registers a counter per combination of `labels`.
    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(Opts::new(name, help), labels))
    }

    /// Registers a gauge of fractions.
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.register(Gauge::new(name, help))
    }

    /// Registers a gauge of whole numbers.
    pub fn int_gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::new(name, help))
    }

    /// Registers a gauge of whole numbers per combination of `labels`.
    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    /// Registers a histogram of seconds.
    pub fn durations(&self, name: &str, help: &str) -> Histogram {
        self.register(Histogram::with_opts(HistogramOpts::new(name, help).buckets(seconds())))
    }

    /// Registers a histogram of seconds per combination of `labels`.
    pub fn durations_by(&self, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
        self.register(HistogramVec::new(HistogramOpts::new(name, help).buckets(seconds()), labels))
    }

    /// Registers a histogram with these upper bounds per combination of `labels`.
    pub fn histograms_by(&self, name: &str, help: &str, labels: &[&str], bounds: &[f64]) -> HistogramVec {
        self.register(HistogramVec::new(HistogramOpts::new(name, help).buckets(bounds.to_vec()), labels))
    }

    /// Registers a histogram of whole numbers from 1 to 2 to the power of `buckets` less 1.
    pub fn sizes(&self, name: &str, help: &str, buckets: usize) -> Histogram {
        self.register(Histogram::with_opts(HistogramOpts::new(name, help).buckets(sizes(buckets))))
    }

    /// Registers such a histogram per combination of `labels`.
    pub fn sizes_by(&self, name: &str, help: &str, labels: &[&str], buckets: usize) -> HistogramVec {
        self.register(HistogramVec::new(HistogramOpts::new(name, help).buckets(sizes(buckets)), labels))
    }

    /// All metrics in Prometheus's text format.
    pub fn render(&self) -> prometheus::Result<String> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.0.gather(), &mut text)?;
        String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }
}

/// Adds one to a gauge while it lives.
#[derive(Debug)]
pub struct GaugeGuard(IntGauge);

impl GaugeGuard {
    /// Adds one to `gauge`.
    pub fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
