//! Spans: what a request's time went to, for an OpenTelemetry collector.
//!
//! They are recorded only with the cargo feature `otlp` and a collector's address (`ONCEPAY_OTLP_ENDPOINT`). Without the
//! feature a [`Span`] is nothing, and what it would be told is never computed.

#[cfg(feature = "otlp")]
mod otlp;

use super::trace::TraceContext;

/// The part that a span plays between services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The answer to a request from outside.
    Server,
    /// A request to another service.
    Client,
    /// A step inside.
    Internal,
}

/// A span under way. It ends when it's dropped.
pub struct Span {
    #[cfg(feature = "otlp")]
    open: Option<Box<otlp::OpenSpan>>,
}

/// Whether this process records spans.
pub fn are_recorded() -> bool {
    #[cfg(feature = "otlp")]
    return otlp::is_started();
    #[cfg(not(feature = "otlp"))]
    false
}

/// Records spans from now on, and sends them to the collector at `endpoint`. The error is a sentence.
pub fn record_to(endpoint: &url::Url) -> Result<(), String> {
    check(endpoint)?;
    #[cfg(feature = "otlp")]
    otlp::start(endpoint)?;
    Ok(())
}

/// Whether this build can send spans to `endpoint`. The error is a sentence.
pub fn check(endpoint: &url::Url) -> Result<(), String> {
    if cfg!(feature = "otlp") {
        return Ok(());
    }
    Err(format!(
        "This build sends no spans to {endpoint}. Build it with `--features otlp`, or unset ONCEPAY_OTLP_ENDPOINT."
    ))
}

/// Sends what is recorded so far, before the process ends.
pub fn flush() {
    #[cfg(feature = "otlp")]
    otlp::flush();
}

#[cfg(feature = "otlp")]
impl Span {
    /// Begins the span `context`, whose id others may know.
    pub fn of(context: &TraceContext, name: &'static str, kind: Kind) -> Self {
        Self { open: otlp::OpenSpan::of(context, name, kind) }
    }

    /// Begins a step within `parent`.
    pub fn within(parent: &TraceContext, name: &'static str) -> Self {
        let is_recorded = parent.is_sampled() && are_recorded();
        Self {
            open: is_recorded.then(|| otlp::OpenSpan::of(&parent.child(), name, Kind::Internal)).flatten(),
        }
    }

    /// Gives the span a name that wasn't known at its beginning.
    pub fn rename(&mut self, name: impl FnOnce() -> String) {
        if let Some(open) = &mut self.open {
            open.rename(name());
        }
    }

    /// Sets an attribute, if there is a value.
    pub fn set(&mut self, name: &'static str, value: impl FnOnce() -> Option<String>) {
        if let Some(open) = &mut self.open
            && let Some(value) = value()
        {
            open.set(name, value);
        }
    }

    /// Marks the span as failed.
    pub fn fail(&mut self, why: &'static str) {
        if let Some(open) = &mut self.open {
            open.fail(why);
        }
    }

    /// Ends the span.
    pub fn end(self) {}

    /// Links the span to one of another trace.
    pub fn link(&mut self, other: &TraceContext) {
        if let Some(open) = &mut self.open {
            open.link(other);
        }
    }
}

#[cfg(not(feature = "otlp"))]
impl Span {
    /// Does nothing without the feature.
    #[inline(always)]
    pub fn of(_context: &TraceContext, _name: &'static str, _kind: Kind) -> Self {
        Self {}
    }

    /// Does nothing without the feature.
    #[inline(always)]
    pub fn within(_parent: &TraceContext, _name: &'static str) -> Self {
        Self {}
    }

    /// Does nothing without the feature.
    #[inline(always)]
    pub fn rename(&mut self, _name: impl FnOnce() -> String) {}

    /// Does nothing without the feature.
    #[inline(always)]
    pub fn set(&mut self, _name: &'static str, _value: impl FnOnce() -> Option<String>) {}

    /// Does nothing without the feature.
    #[inline(always)]
    pub fn fail(&mut self, _why: &'static str) {}

    /// Does nothing without the feature.
    #[inline(always)]
    pub fn end(self) {}

    /// Does nothing without the feature.
    #[inline(always)]
    pub fn link(&mut self, _other: &TraceContext) {}
}

#[cfg(all(test, not(feature = "otlp")))]
mod tests {
    use super::*;

    #[test]
    fn without_the_feature_a_span_is_nothing_and_computes_nothing() {
        assert_eq!(size_of::<Span>(), 0);
        assert!(!std::mem::needs_drop::<Span>());
        let mut span = Span::within(&TraceContext::begin(), "claim");
        span.set("a", || panic!("nobody asks for it"));
        span.rename(|| panic!("nor for that"));
        assert!(!are_recorded());
        let endpoint = "http://127.0.0.1:4318".parse().expect("it's a URL");
        assert!(record_to(&endpoint).is_err_and(|error| error.contains("--features otlp")));
    }
}
