//! `oncepay migrate`.

use secrecy::{ExposeSecret, SecretString};

use crate::base::progress::Step;
use crate::storage::fitness::Unfit;
use crate::storage::migrations::{self, MIGRATIONS, Patience};
use crate::storage::session::{self, Handling};
use crate::storage::{db, distribution};

use super::progress::Line;

/// Options of the `migrate` command.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Connection string of the database, as its owner
    #[arg(long, env = "ONCEPAY_OWNER_DATABASE_URL", hide_env_values = true)]
    owner_database_url: SecretString,

    /// Then distributes the merchants over the nodes of the Citus cluster whose coordinator this database is on. All instances must be
    /// stopped. Can be repeated, and goes on where an earlier run stopped
    #[arg(long)]
    distribute: bool,
}

/// Runs `oncepay migrate`. The error is a sentence.
pub fn run(options: &Options) -> Result<(), String> {
    // The lock of the one that migrates belongs to a session. Where a connection fails, the next line says why.
    if let Ok(Handling::Mixed) = session::inspect(options.owner_database_url.expose_secret()) {
        return Err(Unfit::SessionsMixed.explained());
    }
    let mut conn = db::connect(&options.owner_database_url)?;
    if options.distribute {
        distribution::check_cluster(&mut conn)?;
    }
    let line = Line::new(true);
    let tell = &mut |step: Step<'_>| line.show(step);
    let run = migrations::migrate_from(&mut conn, MIGRATIONS, Patience::default(), tell)?;
    line.beside(|| println!("{} migrations run.", run.len()));
    if options.distribute {
        line.show(Step { what: "distributing", done: 0, total: None });
        distribution::distribute(&mut conn, &mut |step| line.beside(|| println!("{step}")))?;
        drop(line);
        println!("The database is distributed.");
    }
    Ok(())
}
