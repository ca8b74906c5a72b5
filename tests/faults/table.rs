//! What came of the faults, as a table.

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

/// What makes the table that is checked in.
const COMMAND: &str =
    "ONCEPAY_FAULTS=all ONCEPAY_FAULTS_TABLE=tests/FAULTS.md cargo test faults:: -- --test-threads=1";

const INTRODUCTION: &str = "\
# Faults

While clients charge, capture, cancel, refund and pay out, and retry as real clients do (timeouts, backoff with jitter, the
same key, another instance; some send the same twice at once, some never come back), one kind of fault strikes again and
again. In the end every acknowledged answer must still be the answer, byte for byte; there must be one effect per key, in
the database and at the processor; the audit must be clean, and no request unfinished; and the history of every request and
answer must be one that a service which executes each key once can have (`tests/faults/history.rs`). The tests are in
`tests/faults/`.

* *requests*: what clients intended; *retries*: further attempts at them, most for lack of an answer, some for no reason.
* *acknowledged*: requests with a final answer. The others are those whose clients never came back; the service has
  finished them by itself.
* *taken over*: requests that one attempt began and another finished.
* *lost*: acknowledged answers that are gone; *duplicated*: effects beyond the first.
* *worst time to recover*: from a fault's end to the first final answer to a request sent since; *slowest request*: from its first attempt, fault included.
";

/// One kind of fault.
#[derive(Clone, Debug)]
pub struct Row {
    pub fault: String,
    /// How often it happened.
    pub injections: usize,
    /// Operations that clients intended.
    pub requests: usize,
    /// Further attempts at them: retries, most of all, but also those made for no reason.
    pub retries: usize,
    /// Operations with a final answer.
    pub acknowledged: usize,
    /// Operations that one attempt has begun and another has finished.
    pub taken_over: i64,
    /// Acknowledged answers that are gone.
    pub lost: usize,
    /// Effects beyond the first.
    pub duplicated: usize,
    /// Longest time from the end of a fault to the first final answer to a request that was sent since.
    pub worst_recovery: Duration,
    /// Longest time from the first attempt at an operation to its final answer.
    pub slowest: Duration,
    /// Version of the server.
    pub postgres: String,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {:.2} s | {:.2} s |",
            self.fault,
            self.injections,
            self.requests,
            self.retries,
            self.acknowledged,
            self.taken_over,
            self.lost,
            self.duplicated,
            self.worst_recovery.as_secs_f64(),
            self.slowest.as_secs_f64(),
        )
    }
}

/// Adds a row to the table of this run, and writes that to the file that `ONCEPAY_FAULTS_TABLE` names, if it does. Keeps
/// the file's later sections, which others write.
pub fn add(row: Row) {
    static ROWS: Mutex<Vec<Row>> = Mutex::new(Vec::new());
    let mut rows = ROWS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    println!("{row}");
    rows.push(row);
    rows.sort_by(|one, other| one.fault.cmp(&other.fault));
    if let Some(path) = std::env::var_os("ONCEPAY_FAULTS_TABLE") {
        // The directory of tests is the package's.
        let before = std::fs::read_to_string(&path).unwrap_or_default();
        let later = before.find("\n## ").map_or("", |at| &before[at..]);
        std::fs::write(path, markdown(&rows) + later).unwrap();
    }
}

fn markdown(rows: &[Row]) -> String {
    let mut versions: Vec<_> = rows.iter().map(|row| row.postgres.as_str()).collect();
    versions.sort_unstable();
    versions.dedup();
    let rows: Vec<_> = rows.iter().map(ToString::to_string).collect();
    format!(
        "{INTRODUCTION}\n\
         Made by `{COMMAND}` on {}, with Postgres {}.\n\n\
         | fault | times | requests | retries | acknowledged | taken over | lost | duplicated | worst time to recover | slowest request |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n\
         {}\n",
        chrono::Utc::now().format("%Y-%m-%d"),
        versions.join(" and "),
        rows.join("\n"),
    )
}
