//! `oncepay audit`.

use std::io::Write;

use secrecy::SecretString;

use crate::audit::{self, last_run};
use crate::error::Error;
use crate::inbound::reconcile;
use crate::processor::ProcessorOptions;
use crate::server::{self, adapter};
use crate::storage::db;

use super::exit::Stop;
use super::progress::Line;
use super::shared::{Database, Form, sentence, write_document};

/// Options of the `audit` command.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Database to audit. It may be a standby
    #[command(flatten)]
    database: Database,

    /// Connection string of the database in which the result is recorded for the service's metrics, if it isn't the
    /// audited one: the primary, for an audit of a standby
    #[arg(long, env = "ONCEPAY_AUDIT_RECORD_URL", hide_env_values = true)]
    record_url: Option<SecretString>,

    /// Processor whose operations are read first, if given
    #[command(flatten)]
    processor: ProcessorOptions,

    #[command(flatten)]
    form: Form,
}

/// Runs `oncepay audit`.
pub fn run(options: &Options, out: &mut impl Write) -> Result<(), Stop> {
    let database_url = &options.database.database_url;
    let line = Line::new(!options.form.json);
    if options.processor.url.is_some() {
        let adapter = adapter::of_options(&options.processor)?;
        reconcile::read_from(database_url, &adapter, &mut |step| line.show(step))?;
    }
    let mut conn = db::connect(database_url)?;
    let failed = |error: Error| match error.cause() {
        Some(cause) => format!("The audit couldn't be run: {cause}."),
        None => format!("The audit couldn't be run: {error}"),
    };
    let started_at = last_run::begin(&mut conn).map_err(failed)?;
    let report = audit::run_telling(&mut conn, &server::resource_kinds(), &mut |step| line.show(step))
        .map_err(failed)?;
    drop(line);
    match options.form.json {
        true => write_document(out, &report)?,
        // A reader that has closed it isn't an error.
        false => drop(write!(out, "{report}")),
    }
    // The audit is worth as much without it. Who counts on the metrics notices, since they get old.
    let recorded = match &options.record_url {
        Some(url) => db::connect(url)
            .and_then(|mut conn| last_run::record(&mut conn, started_at, &report).map_err(sentence)),
        None => last_run::record(&mut conn, started_at, &report).map_err(sentence),
    };
    if let Err(cause) = recorded {
        eprintln!("The metrics of the service don't show this audit: {cause}");
    }
    if report.clean { Ok(()) } else { Err(Stop::Found("The books are not in order.".to_owned())) }
}
