//! `oncepay reconcile`.

use crate::inbound::reconcile;
use crate::processor::ProcessorOptions;
use crate::server::adapter;

use super::shared::Database;

/// Options of the `reconcile` command.
#[derive(Debug, clap::Args)]
#[group(id = "reconcile_command")]
pub struct Options {
    /// Database of the service
    #[command(flatten)]
    database: Database,
    /// Processor to reconcile with
    #[command(flatten)]
    processor: ProcessorOptions,
    /// Settings of the comparison
    #[command(flatten)]
    options: reconcile::Options,
}

/// Runs `oncepay reconcile`. The error is a sentence.
pub fn run(options: &Options) -> Result<(), String> {
    let adapter = adapter::of_options(&options.processor)?;
    let report = reconcile::run_once(&options.database.database_url, &adapter, options.options)?;
    print!("{report}");
    if report.is_settled() { Ok(()) } else { Err("Our books and the processor's differ.".to_owned()) }
}
