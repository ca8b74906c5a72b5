//! The log: one line per record on standard error, as text for people or as JSON for machines.
//!
//! Each line names the [request or event](super::scope) that is under way, so that all lines of a payment can be
//! found by one of its ids. `docs/following-a-payment.md` lists the fields.

use std::borrow::Cow;
use std::io::Write;
use std::time::Duration;

use env_logger::fmt::Formatter;
use log::Record;
use log::kv::{Error, Key, Value, VisitSource, VisitValue};

use super::scope::{self, Scope};

/// Levels of a server without `RUST_LOG`: its start and end, warnings, and a line per request that changes something.
/// Not the requests that only repeat one, so that a storm of retries isn't a storm of lines, nor reads.
pub const SERVING: &str = "warn,oncepay=info,oncepay::request::duplicate=warn,oncepay::request::read=warn";

/// Levels of a command without `RUST_LOG`.
pub const COMMAND: &str = "warn";

/// Fields that the message names already, for people.
const IN_MESSAGE: [&str; 2] = ["method", "path"];

/// Form of the log's lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people
    #[default]
    Text,
    /// An object a line
    Json,
}

/// Starts the log of this process, at the levels of `RUST_LOG`, or at `levels` if that's empty. Does nothing if it's started
/// already.
pub fn start(format: LogFormat, levels: &str) {
    let mut builder = env_logger::Builder::from_default_env();
    if std::env::var_os("RUST_LOG").is_none_or(|levels| levels.is_empty()) {
        builder.parse_filters(levels);
    }
    builder.format(move |out, record| scope::with_current(|scope| write(out, format, record, scope)));
    if builder.try_init().is_ok() && format == LogFormat::Json {
        // A panic would be several lines that aren't JSON.
        std::panic::set_hook(Box::new(|panic| log::error!(target: "oncepay::panic", "{panic}")));
    }
}

/// A duration in milliseconds, to the microsecond.
#[expect(clippy::float_arithmetic, reason = "a duration, and no amount")]
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

/// A record as a line of JSON, with the fields of the current scope. Without the time.
pub fn json_line(record: &Record<'_>) -> String {
    let line = scope::with_current(|scope| json("", record, scope));
    String::from_utf8(line).expect("it's made of texts")
}

fn write(
    out: &mut Formatter,
    format: LogFormat,
    record: &Record<'_>,
    scope: Option<&Scope>,
) -> std::io::Result<()> {
    let time = out.timestamp_millis().to_string();
    if format == LogFormat::Json {
        return out.write_all(&json(&time, record, scope));
    }
    let style = out.default_level_style(record.level());
    write!(out, "[{time} {style}{:<5}{style:#} {}] ", record.level(), record.target())?;
    out.write_all(indented(&record.args().to_string()).as_bytes())?;
    out.write_all(&Fields { line: Vec::new(), format }.of(record, scope))
}

fn json(time: &str, record: &Record<'_>, scope: Option<&Scope>) -> Vec<u8> {
    let mut fields = Fields { line: Vec::with_capacity(512), format: LogFormat::Json };
    fields.text("timestamp", time);
    fields.text("level", record.level().as_str());
    fields.text("target", record.target());
    fields.text("message", &record.args().to_string());
    fields.of(record, scope)
}

/// A text whose further lines can't be taken for lines of the log, and that does nothing to a terminal.
fn indented(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return text.into();
    }
    let mut plain = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            '\n' => plain.push_str("\n    "),
            '\t' => plain.push('\t'),
            control if control.is_control() => plain.extend(control.escape_default()),
            character => plain.push(character),
        }
    }
    plain.into()
}

/// Fields of a line.
struct Fields {
    line: Vec<u8>,
    format: LogFormat,
}

impl Fields {
    /// Adds the fields of a record and of its scope, and ends the line. A field of the record replaces the scope's.
    fn of(mut self, record: &Record<'_>, scope: Option<&Scope>) -> Vec<u8> {
        let own = record.key_values();
        if let Some(scope) = scope {
            let (id, value) = scope.id();
            let trace = scope.trace();
            let is_free = |name: &str| own.get(Key::from_str(name)).is_none();
            if is_free(id) {
                self.text(id, value);
            }
            self.text("trace_id", &trace.trace_id().to_string());
            self.text("span_id", &trace.span_id().to_string());
            if let Some(original) = scope.original() {
                self.text("original_trace_id", &original.trace_id().to_string());
            }
            if let Some(merchant) = scope.merchant() {
                self.text("merchant", &merchant.to_string());
            }
            if let Some(operation) = scope.operation().filter(|_| is_free("operation")) {
                self.text("operation", operation);
            }
            if is_free("key_hash")
                && let Some(hash) = scope.key_hash()
            {
                self.text("key_hash", &hash);
            }
        }
        // The visitor never fails.
        let _ = own.visit(&mut self);
        self.line.extend_from_slice(if self.format == LogFormat::Json { b"}\n" } else { b"\n" });
        self.line
    }

    fn text(&mut self, name: &str, value: &str) {
        match self.format {
            LogFormat::Json => {
                self.name(name);
                serde_json::to_writer(&mut self.line, value).expect("a text is JSON");
            }
            LogFormat::Text => self.plain(name, &indented(value)),
        }
    }

    fn plain(&mut self, name: &str, value: &impl std::fmt::Display) {
        self.name(name);
        write!(self.line, "{value}").expect("a vector takes everything");
    }

    fn name(&mut self, name: &str) {
        match self.format {
            LogFormat::Json => {
                let separator = if self.line.is_empty() { '{' } else { ',' };
                write!(self.line, "{separator}\"{name}\":")
            }
            LogFormat::Text => write!(self.line, " {name}="),
        }
        .expect("a vector takes everything");
    }
}

impl<'kvs> VisitSource<'kvs> for Fields {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        let name = key.as_str();
        if self.format == LogFormat::Text && IN_MESSAGE.contains(&name) {
            return Ok(());
        }
        value.visit(Field { name, fields: self })
    }
}

struct Field<'a> {
    name: &'a str,
    fields: &'a mut Fields,
}

impl VisitValue<'_> for Field<'_> {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), Error> {
        self.fields.text(self.name, &value.to_string());
        Ok(())
    }

    fn visit_null(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), Error> {
        self.fields.plain(self.name, &value);
        Ok(())
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), Error> {
        self.fields.plain(self.name, &value);
        Ok(())
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), Error> {
        // JSON has no other numbers.
        if value.is_finite() {
            self.fields.plain(self.name, &value);
        }
        Ok(())
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), Error> {
        self.fields.plain(self.name, &value);
        Ok(())
    }

    fn visit_str(&mut self, value: &str) -> Result<(), Error> {
        self.fields.text(self.name, value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_from_elsewhere_can_neither_begin_a_line_nor_steer_a_terminal() {
        assert_eq!(indented("plain, with ümlaut\tand tab"), "plain, with ümlaut\tand tab");
        assert_eq!(
            indented("one\n[2026 ERROR] two\r\u{1b}[2Jthree\u{9b}"),
            "one\n    [2026 ERROR] two\\r\\u{1b}[2Jthree\\u{9b}"
        );
    }
}
