//! `oncepay reconcile`.

use std::io::Write;

use diesel::Connection;

use crate::base::progress::Step;
use crate::inbound::{differences, reconcile};
use crate::processor::ProcessorOptions;
use crate::server::adapter;
use crate::storage::db;

use super::exit::Stop;
use super::progress::Line;
use super::shared::{Database, Form, OPERATOR, check_reason, sentence, write_document};

/// Options of the `reconcile` command.
#[derive(Debug, clap::Args)]
#[group(id = "reconcile_command")]
pub struct Options {
    /// Accept the differences in these operations of the processor, which you have dealt with, before the comparison
    #[arg(long, value_name = "OPERATION", num_args = 1.., requires = "reason")]
    accept: Vec<String>,
    /// Reason, for the record of operators' actions
    #[arg(long, requires = "accept")]
    reason: Option<String>,
    /// Database of the service
    #[command(flatten)]
    database: Database,
    /// Processor to reconcile with
    #[command(flatten)]
    processor: ProcessorOptions,
    /// Settings of the comparison
    #[command(flatten)]
    options: reconcile::Options,
    #[command(flatten)]
    form: Form,
}

/// Runs `oncepay reconcile`.
pub fn run(options: &Options, out: &mut impl Write) -> Result<(), Stop> {
    let adapter = adapter::of_options(&options.processor)?;
    if let Some(reason) = &options.reason {
        accept(options, reason)?;
    }
    let line = Line::new(!options.form.json);
    let tell = &mut |step: Step<'_>| line.show(step);
    let report = reconcile::run_once(&options.database.database_url, &adapter, options.options, tell)?;
    drop(line);
    match options.form.json {
        true => write_document(out, &report.to_json())?,
        // A reader that has closed it isn't an error.
        false => drop(write!(out, "{report}")),
    }
    match report.is_settled() {
        true => Ok(()),
        false => Err(Stop::Found("Our books and the processor's differ.".to_owned())),
    }
}

/// Accepts differences, as of the last reading of the processor's books.
fn accept(options: &Options, reason: &str) -> Result<(), Stop> {
    check_reason(reason).map_err(Stop::Usage)?;
    let conn = &mut db::connect(&options.database.database_url)?;
    let others = conn
        .transaction(|conn| differences::accept(conn, OPERATOR, &options.accept, reason))
        .map_err(sentence)?;
    if others.is_empty() {
        Ok(())
    } else {
        Err(Stop::Failed(format!("The books don't differ in {}. Nothing was accepted.", others.join(", "))))
    }
}
