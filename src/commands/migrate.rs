//! `oncepay migrate`.

use secrecy::{ExposeSecret, SecretString};

use crate::storage::fitness::Unfit;
use crate::storage::session::{self, Handling};
use crate::storage::{db, migrations};

/// Options of the `migrate` command.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Connection string of the database, as its owner
    #[arg(long, env = "ONCEPAY_OWNER_DATABASE_URL", hide_env_values = true)]
    owner_database_url: SecretString,
}

/// Runs `oncepay migrate`. The error is a sentence.
pub fn run(options: &Options) -> Result<(), String> {
    // The lock of the one that migrates belongs to a session. Where a connection fails, the next line says why.
    if let Ok(Handling::Mixed) = session::inspect(options.owner_database_url.expose_secret()) {
        return Err(Unfit::SessionsMixed.explained());
    }
    let run = migrations::migrate(&mut db::connect(&options.owner_database_url)?)?;
    println!("{} migrations run.", run.len());
    Ok(())
}
