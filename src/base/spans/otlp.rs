//! The export of spans, with OpenTelemetry's own exporter: in batches, from a thread of its own. When the collector can't
//! keep up, spans are dropped, and nobody waits.
//!
//! The spans don't come from a `Tracer` of OpenTelemetry, because their ids are those of [`TraceContext`]: they have been
//! sent, or stored with a key, before their spans end, and sometimes by another process.

use std::borrow::Cow;
use std::sync::OnceLock;

use opentelemetry::trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor};
use url::Url;

use super::Kind;
use crate::base::time;
use crate::base::trace::TraceContext;

/// Path of the collector that takes spans.
const TRACES_PATH: &str = "v1/traces";

static PROCESSOR: OnceLock<BatchSpanProcessor> = OnceLock::new();

/// Whether spans are exported.
pub(super) fn is_started() -> bool {
    PROCESSOR.get().is_some()
}

/// Exports spans to the collector at `endpoint` from now on. The standard variables set the rest
/// (`OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_EXPORTER_OTLP_PROTOCOL`, `OTEL_SERVICE_NAME`, `OTEL_BSP_SCHEDULE_DELAY` …). The
/// error is a sentence.
pub(super) fn start(endpoint: &Url) -> Result<(), String> {
    let endpoint = format!("{}/{TRACES_PATH}", endpoint.as_str().trim_end_matches('/'));
    let exporter = SpanExporter::builder()
        .with_http()
        .with_endpoint(endpoint)
        .build()
        .map_err(|error| format!("Can't set up the export of spans: {error}."))?;
    let mut processor = BatchSpanProcessor::builder(exporter).build();
    let mut resource = Resource::builder();
    if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name("oncepay");
    }
    processor.set_resource(&resource.build());
    let _ = PROCESSOR.set(processor);
    Ok(())
}

/// Exports what has been recorded.
pub(super) fn flush() {
    if let Some(Err(error)) = PROCESSOR.get().map(SpanProcessor::force_flush) {
        log::warn!("the last spans couldn't be exported: {error}");
    }
}

/// A span that is recorded.
pub(super) struct OpenSpan {
    data: Option<SpanData>,
}

impl OpenSpan {
    /// Begins the span `context`. `None` if nobody records its trace.
    pub(super) fn of(context: &TraceContext, name: &'static str, kind: Kind) -> Option<Box<Self>> {
        if !context.is_sampled() || !is_started() {
            return None;
        }
        let now = time::now().into();
        let data = SpanData {
            span_context: span_context(context),
            parent_span_id: context.parent().map_or(SpanId::INVALID, |id| SpanId::from_bytes(id.to_bytes())),
            parent_span_is_remote: kind == Kind::Server,
            span_kind: match kind {
                Kind::Server => SpanKind::Server,
                Kind::Client => SpanKind::Client,
                Kind::Internal => SpanKind::Internal,
            },
            name: Cow::Borrowed(name),
            start_time: now,
            end_time: now,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::builder("oncepay")
                .with_version(env!("CARGO_PKG_VERSION"))
                .build(),
        };
        Some(Box::new(Self { data: Some(data) }))
    }

    fn data(&mut self) -> &mut SpanData {
        self.data.as_mut().expect("it's taken when the span is dropped")
    }

    pub(super) fn rename(&mut self, name: String) {
        self.data().name = Cow::Owned(name);
    }

    pub(super) fn set(&mut self, name: &'static str, value: String) {
        self.data().attributes.push(KeyValue::new(name, value));
    }

    pub(super) fn fail(&mut self, why: &'static str) {
        self.data().status = Status::error(why);
    }

    pub(super) fn link(&mut self, other: &TraceContext) {
        self.data().links.links.push(Link::with_context(span_context(other)));
    }
}

impl Drop for OpenSpan {
    fn drop(&mut self) {
        if let (Some(mut data), Some(processor)) = (self.data.take(), PROCESSOR.get()) {
            data.end_time = time::now().into();
            processor.on_end(data);
        }
    }
}

fn span_context(context: &TraceContext) -> SpanContext {
    SpanContext::new(
        TraceId::from_bytes(context.trace_id().to_bytes()),
        SpanId::from_bytes(context.span_id().to_bytes()),
        if context.is_sampled() { TraceFlags::SAMPLED } else { TraceFlags::default() },
        false,
        TraceState::default(),
    )
}
