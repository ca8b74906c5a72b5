//! The trace that a request belongs to, across services: W3C Trace Context.
//!
//! A request continues the trace of its caller (`traceparent`), or begins one. What it causes belongs to the
//! same trace: calls of the processor, events, deliveries, and further attempts by whoever finishes it.
//!
//! Source: <https://www.w3.org/TR/trace-context-2/>. Level 1 differs only in the flag for random ids.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Name of the header with the ids of trace and span.
pub const TRACEPARENT: &str = "traceparent";
/// Name of the header with what tracing systems add to it.
pub const TRACESTATE: &str = "tracestate";

/// The caller records this trace.
const SAMPLED: u8 = 0x01;
/// The trace's id is random.
const RANDOM: u8 = 0x02;
/// Length of a header of the only version that is defined.
const LENGTH: usize = 55;
/// Maximum number of bytes of a `tracestate` that is passed on. Everybody must pass on at least as many.
const STATE_LENGTH_MAX: usize = 512;
/// Maximum number of members of a `tracestate`.
const STATE_MEMBERS_MAX: usize = 32;

/// Id of a trace: 32 hexadecimal digits, not all of them zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 16]);

/// Id of a span, an operation within a trace: 16 hexadecimal digits, not all of them zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId([u8; 8]);

impl TraceId {
    /// The bytes.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

impl SpanId {
    /// The bytes.
    pub fn to_bytes(self) -> [u8; 8] {
        self.0
    }

    fn random() -> Self {
        // The lowest bit spares a second draw for the one value that isn't allowed.
        Self((rand::random::<u64>() | 1).to_be_bytes())
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Writes at most 16 bytes in hexadecimal, at once: it's done several times for each payment.
fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    let mut digits = [0; 32];
    let digits = digits.get_mut(..2 * bytes.len()).ok_or(fmt::Error)?;
    hex::encode_to_slice(bytes, digits).map_err(|_| fmt::Error)?;
    f.write_str(std::str::from_utf8(digits).map_err(|_| fmt::Error)?)
}

/// A span and its trace. `Display` writes it as a `traceparent` header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: TraceId,
    span_id: SpanId,
    /// The span within which this one was begun here.
    parent: Option<SpanId>,
    flags: u8,
    state: Option<Arc<str>>,
}

impl TraceContext {
    /// Begins a trace. It isn't marked as sampled, unless this service records spans.
    pub fn begin() -> Self {
        let trace_id = TraceId((rand::random::<u128>() | 1).to_be_bytes());
        let sampled = if super::spans::are_recorded() { SAMPLED } else { 0 };
        Self { trace_id, span_id: SpanId::random(), parent: None, flags: RANDOM | sampled, state: None }
    }

    /// Reads the caller's span from the values of a request's headers `traceparent` and `tracestate`. `None`
    /// unless there is exactly one valid `traceparent`. An invalid `tracestate` is left out.
    pub fn from_headers<'a>(
        mut parents: impl Iterator<Item = &'a [u8]>,
        states: impl Iterator<Item = &'a [u8]>,
    ) -> Option<Self> {
        let (Some(parent), None) = (parents.next(), parents.next()) else { return None };
        let parent: Self = std::str::from_utf8(parent).ok()?.parse().ok()?;
        let states: Option<Vec<&str>> = states.map(|state| std::str::from_utf8(state).ok()).collect();
        Some(parent.with_state(states.as_deref().and_then(state)))
    }

    /// Reads a stored context. `None` if there is none, or if it can't be read.
    pub fn stored(parent: Option<&str>, state: Option<&str>) -> Option<Self> {
        let parent: Self = parent?.parse().ok()?;
        Some(parent.with_state(state.map(Arc::from)))
    }

    fn with_state(self, state: Option<Arc<str>>) -> Self {
        Self { state, ..self }
    }

    /// The same without what the caller's tracing system has added.
    pub fn without_state(self) -> Self {
        self.with_state(None)
    }

    /// A new span of the same trace.
    pub fn child(&self) -> Self {
        Self { span_id: SpanId::random(), parent: Some(self.span_id), ..self.clone() }
    }

    /// Id of the trace.
    pub fn trace_id(&self) -> TraceId {
        self.trace_id
    }

    /// Id of the span.
    pub fn span_id(&self) -> SpanId {
        self.span_id
    }

    /// Id of the span within which this one was begun.
    pub fn parent(&self) -> Option<SpanId> {
        self.parent
    }

    /// Whether somebody records the trace.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// Value of `tracestate`.
    pub fn state(&self) -> Option<&str> {
        self.state.as_deref()
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

/// The text isn't a `traceparent`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent")]
pub struct ParseTraceError;

impl FromStr for TraceContext {
    type Err = ParseTraceError;

    /// Reads a header of version 00, or what a later version must have in common with it. Flags without a
    /// meaning are dropped.
    fn from_str(text: &str) -> Result<Self, ParseTraceError> {
        let bytes = text.as_bytes();
        let has_rest = bytes.len() > LENGTH;
        let is_shaped = bytes.len() >= LENGTH
            && [2, 35, 52].iter().all(|at| bytes[*at] == b'-')
            && (!has_rest || bytes[LENGTH] == b'-');
        if !is_shaped {
            return Err(ParseTraceError);
        }
        let version = hex::<1>(&bytes[..2])?[0];
        let trace_id = hex::<16>(&bytes[3..35])?;
        let span_id = hex::<8>(&bytes[36..52])?;
        let flags = hex::<1>(&bytes[53..55])?[0] & (SAMPLED | RANDOM);
        let is_valid =
            version != 0xff && (version != 0 || !has_rest) && trace_id != [0; 16] && span_id != [0; 8];
        if !is_valid {
            return Err(ParseTraceError);
        }
        Ok(Self { trace_id: TraceId(trace_id), span_id: SpanId(span_id), parent: None, flags, state: None })
    }
}

/// Reads bytes in hexadecimal, in lower case only.
fn hex<const N: usize>(digits: &[u8]) -> Result<[u8; N], ParseTraceError> {
    if !digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(ParseTraceError);
    }
    let mut bytes = [0; N];
    hex::decode_to_slice(digits, &mut bytes).map_err(|_| ParseTraceError)?;
    Ok(bytes)
}

/// Joins the values of `tracestate` headers. `None` if a member is malformed or repeated, or if there are none or
/// too many.
fn state(values: &[&str]) -> Option<Arc<str>> {
    let members = values.iter().flat_map(|value| value.split(','));
    let members: Vec<&str> = members.map(|member| member.trim_matches([' ', '\t'])).collect();
    let members: Vec<&str> = members.into_iter().filter(|member| !member.is_empty()).collect();
    if members.is_empty() || members.len() > STATE_MEMBERS_MAX {
        return None;
    }
    let mut keys = Vec::with_capacity(members.len());
    for member in &members {
        let (key, value) = member.split_once('=')?;
        if !is_state_key(key) || !is_state_value(value) || keys.contains(&key) {
            return None;
        }
        keys.push(key);
    }
    let joined = members.join(",");
    (joined.len() <= STATE_LENGTH_MAX).then(|| joined.into())
}

fn is_state_key(key: &str) -> bool {
    let begins_well = key.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    let is_made_of = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-*/@".contains(&b);
    begins_well && key.len() <= 256 && key.bytes().all(is_made_of)
}

fn is_state_value(value: &str) -> bool {
    let is_made_of = |b: u8| matches!(b, b' '..=b'~') && b != b'=';
    (1..=256).contains(&value.len()) && value.bytes().all(is_made_of)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn read(parents: &[&str], states: &[&str]) -> Option<TraceContext> {
        TraceContext::from_headers(
            parents.iter().map(|value| value.as_bytes()),
            states.iter().map(|value| value.as_bytes()),
        )
    }

    #[test]
    fn a_valid_header_is_read_and_written() {
        let context = read(&[VALID], &[]).unwrap();
        assert_eq!(context.to_string(), VALID);
        assert_eq!(context.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(context.span_id().to_string(), "00f067aa0ba902b7");
        assert!(context.is_sampled());
        let child = context.child();
        assert_eq!(child.trace_id(), context.trace_id());
        assert_ne!(child.span_id(), context.span_id());
        assert_eq!(child.to_string()[53..], VALID[53..]);
    }

    #[test]
    fn of_a_later_version_the_known_part_is_read() {
        for later in ["cc", "01", "fe"] {
            let known = VALID.replacen("00", later, 1);
            assert_eq!(read(&[&known], &[]).unwrap().to_string(), VALID);
            assert_eq!(read(&[&format!("{known}-what-comes")], &[]).unwrap().to_string(), VALID);
            assert_eq!(read(&[&format!("{known}.what-comes")], &[]), None);
        }
        // Flags that nobody has defined yet.
        let flagged = VALID.replace("-01", "-ff");
        assert_eq!(read(&[&flagged], &[]).unwrap().to_string(), VALID.replace("-01", "-03"));
    }

    #[test]
    fn what_is_no_header_is_ignored() {
        let cases = [
            "",
            "00",
            &VALID[..54],
            &format!("{VALID}-"),
            &format!("{VALID}0"),
            &format!(" {VALID}"),
            &VALID.to_ascii_uppercase(),
            &VALID.replacen("00", "ff", 1),
            &VALID.replacen("00", "0x", 1),
            &VALID.replace("4bf92f3577b34da6a3ce929d0e0e4736", "00000000000000000000000000000000"),
            &VALID.replace("00f067aa0ba902b7", "0000000000000000"),
            &VALID.replace('-', "_"),
            &VALID.replace("-01", "-0g"),
            "00-4bf92f3577b34da6a3ce929d0e0e473\u{e9}-00f067aa0ba902b7-01",
        ];
        for text in cases {
            assert_eq!(read(&[text], &[]), None, "{text}");
        }
        assert_eq!(read(&[], &["a=1"]), None);
        assert_eq!(read(&[VALID, VALID], &[]), None);
    }

    #[test]
    fn a_state_is_passed_on_as_a_whole_or_not_at_all() {
        let kept = |states: &[&str]| read(&[VALID], states).unwrap().state().map(str::to_owned);
        assert_eq!(kept(&["a=1, b@c=x y!,\t", "", "d=2"]).as_deref(), Some("a=1,b@c=x y!,d=2"));
        let many = (0..33).map(|number| format!("k{number}=v")).collect::<Vec<_>>().join(",");
        let long = format!("a={},b={},c=1", "x".repeat(256), "x".repeat(256));
        let cases = ["", ",", "a", "a=", "=1", "A=1", "a=1,a=2", "a=1=2", "a=caf\u{e9}", "-=1", &many, &long];
        for text in cases {
            assert_eq!(kept(&[text]), None, "{text}");
        }
        assert_eq!(read(&[VALID], &["a=1"]).unwrap().without_state().state(), None);
    }

    #[test]
    fn traces_of_ours_are_valid_and_each_another() {
        let (one, other) = (TraceContext::begin(), TraceContext::begin());
        assert_eq!(one.to_string().parse(), Ok(one.clone()));
        assert_ne!(one.trace_id(), other.trace_id());
        assert!(!one.is_sampled(), "nobody records it");
    }

    #[test]
    fn what_was_stored_is_read_again_and_what_was_not_is_none() {
        let stored = TraceContext::stored(Some(VALID), Some("a=1")).unwrap();
        assert_eq!((stored.to_string().as_str(), stored.state()), (VALID, Some("a=1")));
        assert_eq!(TraceContext::stored(None, Some("a=1")), None);
        assert_eq!(TraceContext::stored(Some("garbage"), None), None);
    }
}
