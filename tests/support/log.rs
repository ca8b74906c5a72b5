//! A watch over the log of everything that runs in the test process: at the finest level, no line may show what doesn't
//! belong into a log. After such a line, the next test that drops its [`TestDatabase`](super::TestDatabase) fails, which
//! may be another one that ran at the same time.

use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use log::{LevelFilter, Log, Metadata, Record};

use super::acquirer::WEBHOOK_SECRET;

/// Begins every key of [`fresh_key`](super::fresh_key).
pub const KEY_MARK: &str = "key-of-a-test-";

/// What the tests' API keys, secrets, idempotency keys and bodies contain.
const FORBIDDEN: [&str; 6] =
    ["sk_test_", WEBHOOK_SECRET, "mmmmmmmmmmmmmmmm", "acquirer-key", "pm_card_", KEY_MARK];

/// What the keys of operators begin with. Words end like this, too, but without a secret after it.
const OPERATOR_KEY: &str = "ok_";

/// The tests' own tools. The client logs what it sends.
const OF_THE_TESTS: [&str; 3] = ["ureq", "bollard", "testcontainers"];

static FOUND: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Watch;

impl Log for Watch {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if OF_THE_TESTS.iter().any(|tool| record.target().starts_with(tool)) {
            return;
        }
        let line = oncepay::base::logging::json_line(record);
        // The ids of the processor's events are keys, too, and are logged under this name.
        let line = line.replace(&format!("\"event_id\":\"{KEY_MARK}"), "\"event_id\":\"");
        if let Some(forbidden) = forbidden_in(&line) {
            found().push(format!("{forbidden} is in the log: {line}"));
        }
    }

    fn flush(&self) {}
}

fn found() -> MutexGuard<'static, Vec<String>> {
    FOUND.lock().unwrap_or_else(PoisonError::into_inner)
}

fn forbidden_in(line: &str) -> Option<&'static str> {
    let is_secret = |rest: &str| rest.get(..32).is_some_and(|it| it.bytes().all(|b| b.is_ascii_hexdigit()));
    let has_operator_key = || line.match_indices(OPERATOR_KEY).any(|(at, _)| is_secret(&line[at + 3..]));
    let known = FORBIDDEN.into_iter().find(|forbidden| line.contains(forbidden));
    known.or_else(|| has_operator_key().then_some(OPERATOR_KEY))
}

/// Begins to watch, once per process.
pub fn watch() {
    static BEGUN: Once = Once::new();
    BEGUN.call_once(|| {
        if log::set_boxed_logger(Box::new(Watch)).is_ok() {
            log::set_max_level(LevelFilter::Trace);
        }
    });
}

/// Fails if a line has shown something that doesn't belong into the log.
pub fn assert_clean() {
    let found = std::mem::take(&mut *found());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_line_that_shows_a_key_is_noticed() {
    let key = super::fresh_key();
    assert_eq!(forbidden_in(&format!("the key {key}")), Some(KEY_MARK));
    assert_eq!(forbidden_in(&format!("ok_{}", "0f".repeat(16))), Some(OPERATOR_KEY));
    assert_eq!(forbidden_in("it took_effect, and key_hash=0f0f0f0f"), None);
}
