//! The log: one line per record on standard error, as text for people or as JSON for machines.
//!
//! Each line names the [request or event](super::scope) that is under way, so that all lines of a payment can be
//! found by one of its ids. `docs/following-a-payment.md` lists the fields.

use std::borrow::Cow;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// Whether a line that isn't the log's is drawn where the log is written, with the cursor at its end.
static IS_DRAWN_OVER: AtomicBool = AtomicBool::new(false);

/// Takes note that something that draws itself again and again begins or ends to use the terminal's last line. Lines of the log
/// wipe that away first.
pub fn note_drawing(begins: bool) {
    IS_DRAWN_OVER.store(begins, Ordering::Relaxed);
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
    if IS_DRAWN_OVER.load(Ordering::Relaxed) {
        out.write_all(b"\r\x1b[2K")?;
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
    use std::sync::Arc;

    use log::Level;
    use serde_json::{Value as Json, json};
    use uuid::Uuid;

    use super::super::ids::MerchantId;
    use super::super::scope::HashedKey;
    use super::super::trace::TraceContext;
    use super::*;

    struct Hash;

    impl HashedKey for Hash {
        fn key_hash(&self) -> String {
            "0123".to_owned()
        }
    }

    /// The lines of a record with these fields: as JSON, and what follows the message for people.
    fn lines(message: &str, fields: &[(&str, Value<'_>)], scope: Option<&Scope>) -> (String, String) {
        let line = |make: &dyn Fn(&Record<'_>) -> Vec<u8>| {
            let mut record = Record::builder();
            record.level(Level::Warn).target("oncepay::engine").key_values(&fields);
            String::from_utf8(make(&record.args(format_args!("{message}")).build())).unwrap()
        };
        let for_people =
            |record: &Record<'_>| Fields { line: Vec::new(), format: LogFormat::Text }.of(record, scope);
        (line(&|record| super::json("now", record, scope)), line(&for_people))
    }

    #[test]
    fn a_field_has_the_type_of_its_value_and_no_text_leaves_its_quotes() {
        let text = "a \"quoted\" \\ text\nof two lines\u{1b}, \u{e9}";
        let fields = [
            ("text", Value::from(text)),
            ("shown", Value::from_display(&text)),
            ("whole", Value::from(u64::MAX)),
            ("negative", Value::from(i64::MIN)),
            ("real", Value::from(1.5)),
            ("flag", Value::from(true)),
            ("nothing", Value::null()),
            ("no_number", Value::from(f64::NAN)),
        ];
        let (line, for_people) = lines(text, &fields, None);
        assert_eq!(line.find('\n'), Some(line.len() - 1), "{line}");
        assert_eq!(
            serde_json::from_str::<Json>(&line).unwrap(),
            json!({
                "timestamp": "now", "level": "WARN", "target": "oncepay::engine", "message": text, "text": text,
                "shown": text, "whole": u64::MAX, "negative": i64::MIN, "real": 1.5, "flag": true,
            })
        );
        let shown = "a \"quoted\" \\ text\n    of two lines\\u{1b}, \u{e9}";
        assert_eq!(
            for_people,
            format!(
                " text={shown} shown={shown} whole={} negative={} real=1.5 flag=true\n",
                u64::MAX,
                i64::MIN
            )
        );
    }

    #[test]
    fn a_line_names_its_scope_and_each_field_once() {
        let trace = TraceContext::begin();
        let first = TraceContext::begin();
        let merchant = MerchantId(Uuid::from_u128(1));
        let scope = Scope::of_request("req_1".to_owned(), trace.clone());
        scope.set_merchant(merchant);
        scope.set_operation("charges.create");
        scope.set_key(Arc::new(Hash));
        scope.set_original(&first);
        let mut expected = json!({
            "timestamp": "now", "level": "WARN", "target": "oncepay::engine", "message": "m", "request_id": "req_1",
            "trace_id": trace.trace_id().to_string(), "span_id": trace.span_id().to_string(),
            "original_trace_id": first.trace_id().to_string(), "merchant": merchant.to_string(),
            "operation": "charges.create", "key_hash": "0123",
        });
        let parsed = |line: &str| serde_json::from_str::<Json>(line).unwrap();
        assert_eq!(parsed(&lines("m", &[], Some(&scope)).0), expected);

        // Of a record that names its own, as the worker's do.
        let own = ["request_id", "operation", "key_hash"].map(|name| (name, Value::from("own")));
        let (line, for_people) = lines("m", &own, Some(&scope));
        for (name, _) in &own {
            expected[*name] = json!("own");
            assert_eq!(line.matches(&format!("\"{name}\":")).count(), 1, "{line}");
            assert_eq!(for_people.matches(&format!(" {name}=")).count(), 1, "{for_people}");
        }
        assert_eq!(parsed(&line), expected);
        let event = Scope::of_event("evt_1".to_owned(), trace);
        assert_eq!(parsed(&lines("m", &[], Some(&event)).0)["event_id"], "evt_1");
    }

    /// Set in a process of its own, of which [`start`] makes the log.
    const LOGS: &str = "ONCEPAY_TEST_LOGS";

    #[test]
    fn the_levels_are_those_of_the_environment_or_the_programs_and_a_panic_is_one_line() {
        if let Some(format) = std::env::var_os(LOGS) {
            start(if format == "json" { LogFormat::Json } else { LogFormat::Text }, COMMAND);
            log::info!("quiet");
            log::warn!("loud\n[2026 ERROR] forged");
            let panics = std::thread::spawn(|| panic!("broken\nin two lines"));
            assert!(panics.join().is_err());
            return;
        }
        let (_, module) = module_path!().split_once("::").expect("it's in a crate");
        let name = format!(
            "{module}::the_levels_are_those_of_the_environment_or_the_programs_and_a_panic_is_one_line"
        );
        let written = |format: &str, levels: Option<&str>| {
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", &name, "--nocapture"]).env(LOGS, format).env_remove("RUST_LOG");
            command.envs(levels.map(|levels| ("RUST_LOG", levels)));
            let output = command.output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stderr).unwrap()
        };
        for (levels, expected) in [
            (None, &["loud", "broken"][..]),
            (Some(""), &["loud", "broken"]),
            (Some("info"), &["quiet", "loud", "broken"]),
            (Some("error"), &["broken"]),
        ] {
            let written = written("json", levels);
            let written: Vec<Json> =
                written.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
            assert_eq!(written.len(), expected.len(), "{levels:?}: {written:?}");
            for (line, expected) in written.iter().zip(expected) {
                assert!(line["message"].as_str().unwrap().contains(expected), "{levels:?}: {written:?}");
            }
            let panic = written.last().unwrap();
            assert_eq!((&panic["level"], &panic["target"]), (&json!("ERROR"), &json!("oncepay::panic")));
        }
        // For people, a panic is what Rust makes of it.
        let written = written("text", None);
        let forged = written.lines().find(|line| line.contains("forged"));
        assert_eq!(forged, Some("    [2026 ERROR] forged"), "{written}");
        assert!(written.contains("panicked at") && !written.contains("oncepay::panic"), "{written}");
    }

    #[test]
    fn people_are_not_told_twice_what_the_message_says() {
        let fields =
            [("method", Value::from("GET")), ("path", Value::from("/a")), ("status", Value::from(200))];
        let (line, for_people) = lines("GET /a", &fields, None);
        assert_eq!(for_people, " status=200\n");
        assert!(line.contains(r#""method":"GET","path":"/a","status":200}"#), "{line}");
    }

    #[test]
    fn a_text_from_elsewhere_can_neither_begin_a_line_nor_steer_a_terminal() {
        assert_eq!(indented("plain, with ümlaut\tand tab"), "plain, with ümlaut\tand tab");
        assert_eq!(
            indented("one\n[2026 ERROR] two\r\u{1b}[2Jthree\u{9b}"),
            "one\n    [2026 ERROR] two\\r\\u{1b}[2Jthree\\u{9b}"
        );
    }
}
