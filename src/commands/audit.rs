//! `oncepay audit`.

use crate::audit;
use crate::inbound::reconcile;
use crate::processor::ProcessorOptions;
use crate::server::{self, adapter};
use crate::storage::db;

use super::shared::Database;

/// Options of the `audit` command.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Database to audit
    #[command(flatten)]
    database: Database,
    /// Processor whose operations are read first, if given
    #[command(flatten)]
    processor: ProcessorOptions,
}

/// Runs `oncepay audit`. The error is a sentence.
pub fn run(options: &Options) -> Result<(), String> {
    let database_url = &options.database.database_url;
    if options.processor.url.is_some() {
        reconcile::read_from(database_url, &adapter::of_options(&options.processor)?)?;
    }
    let report =
        audit::run(&mut db::connect(database_url)?, &server::resource_kinds()).map_err(
            |error| match error.cause() {
                Some(cause) => format!("The audit couldn't be run: {cause}."),
                None => format!("The audit couldn't be run: {error}"),
            },
        )?;
    print!("{report}");
    if report.clean { Ok(()) } else { Err("The books are not in order.".to_owned()) }
}
