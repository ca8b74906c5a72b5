//! `oncepay storage`: the space that tables and indexes take, and what to do about it. Reads only.

use std::io::Write;

use serde::Serialize;

use crate::base::quantities::{bytes, count};
use crate::storage::db;
use crate::storage::usage::{self, Finding, Usage, amount};

use super::exit::Stop;
use super::shared::{Database, Form, sentence, write_document, write_line};

/// Options of the `storage` command.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    form: Form,
    /// Database of the service
    #[command(flatten)]
    database: Database,
}

/// The report as JSON.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    usage: &'a Usage,
    findings: &'a [Finding],
}

/// Runs `oncepay storage`.
pub fn run(options: &Options, out: &mut impl Write) -> Result<(), Stop> {
    let usage = usage::read(&mut db::connect(&options.database.database_url)?).map_err(sentence)?;
    let findings = usage.findings();
    if options.form.json {
        write_document(out, &Document { usage: &usage, findings: &findings })?;
    } else {
        print(&usage, &findings, out);
    }
    match findings.len() {
        0 => Ok(()),
        1 => Err(Stop::Found("There is 1 finding.".to_owned())),
        number => Err(Stop::Found(format!("There are {number} findings."))),
    }
}

/// Number of tables, and of indexes, that are printed for people.
const LINES_MAX: usize = 12;

fn print(usage: &Usage, findings: &[Finding], out: &mut impl Write) {
    let mut line = |text: &str| write_line(out, text.trim_end());
    let number = |number: i64| count(amount(number));
    let size = |size: i64| bytes(amount(size));
    line(&format!("Database {}, {}", usage.server.database, size(usage.server.database_bytes)));
    line("");
    line(&format!(
        "{:<28} {:>13} {:>11} {:>9} {:>9} {:>11} {:>11}  last vacuum",
        "table", "rows", "dead rows", "size", "indexes", "index scans", "seq scans"
    ));
    for table in usage.tables.iter().take(LINES_MAX) {
        line(&format!(
            "{:<28} {:>13} {:>11} {:>9} {:>9} {:>11} {:>11}  {}",
            table.name,
            number(table.rows),
            number(table.dead_rows),
            size(table.total_bytes),
            size(table.index_bytes),
            number(table.index_scans),
            number(table.sequential_scans),
            table.vacuumed_at.as_deref().unwrap_or("never")
        ));
    }
    if let Some(more @ 1..) = usage.tables.len().checked_sub(LINES_MAX) {
        line(&format!("and {more} smaller tables"));
    }
    line("");
    line(&format!("{:<42} {:>13} {:>9} {:>11}", "index", "entries", "size", "scans"));
    for index in usage.indexes.iter().take(LINES_MAX) {
        line(&format!(
            "{:<42} {:>13} {:>9} {:>11}",
            index.name,
            number(index.entries),
            size(index.bytes),
            number(index.scans)
        ));
    }
    if let Some(more @ 1..) = usage.indexes.len().checked_sub(LINES_MAX) {
        line(&format!("and {more} smaller indexes"));
    }
    line("");
    if findings.is_empty() {
        line("Nothing to do.");
    }
    for finding in findings {
        line(&format!("! {}: {}", finding.subject, finding.what));
        line(&format!("  {}", finding.remedy));
        if let Some(statement) = &finding.statement {
            line(&format!("    {statement};"));
        }
    }
}
