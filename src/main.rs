//! The commands.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command, and what it writes is its result")]

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use oncepay::config::{self, AcquirerOptions, Config};
use oncepay::server::{self, Bound};
use oncepay::{acquirer, audit, auth, db, dev, health, journal, listen, reconcile, shell, trigger};
use secrecy::{ExposeSecret, SecretString};

/// A payments API that charges once, however often the client retries.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start everything for development: a Postgres, the schema, a merchant, the API
    Dev(dev::Options),
    /// Serve the API
    Serve(Box<Config>),
    /// Play the acquiring bank: a stand-in for development and tests, with its own database
    Acquirer(Box<acquirer::Options>),
    /// Bring the database's schema up to date
    Migrate {
        /// Connection string of the database, as its owner
        #[arg(long, env = "ONCEPAY_OWNER_DATABASE_URL", hide_env_values = true)]
        owner_database_url: SecretString,
    },
    /// Make sure that there are a merchant and keys to try the service with, and write them to dev.env
    Seed(dev::SeedOptions),
    /// Ask the service on this machine whether it lives; exit status 1 if not
    Health(health::Options),
    /// Check that everything that must agree does; exit status 1 if not
    Audit {
        /// Connection string of the database, as the role `oncepay_app`
        #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
        database_url: SecretString,
        /// The acquirer, if its operations are to be read first
        #[command(flatten)]
        acquirer: AcquirerOptions,
    },
    /// Compare our books with the acquirer's; exit status 1 if they differ
    Reconcile {
        /// Connection string of the database, as the role `oncepay_app`
        #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
        database_url: SecretString,
        /// The acquirer
        #[command(flatten)]
        acquirer: AcquirerOptions,
        /// How
        #[command(flatten)]
        options: reconcile::Options,
    },
    /// Print a merchant's journal with debits, credits and totals
    Ledger {
        /// Id of the merchant (mer_…); by default, that of the API key in ONCEPAY_API_KEY
        #[arg(long)]
        merchant: Option<String>,
        /// An API key of the merchant
        #[arg(long, env = "ONCEPAY_API_KEY", hide_env_values = true)]
        api_key: Option<SecretString>,
        /// Connection string of the database, as the role `oncepay_app`
        #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
        database_url: SecretString,
    },
    /// Show events as they come, and forward them to a server of yours
    Listen(listen::Options),
    /// Have the acquirer tell something, such as that a dispute was opened
    Trigger(trigger::Options),
    /// List idempotency keys, and set going what is stuck
    #[command(subcommand)]
    Keys(shell::Keys),
    /// List and change how operations treat their idempotency keys
    #[command(subcommand)]
    Policies(shell::Policies),
    /// Print the OpenAPI document
    Openapi,
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    match settings().and_then(|settings| run(settings.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What was asked for. Asking for help, or for what there isn't, ends the program here.
fn settings() -> Result<Cli, String> {
    let command = config::with_secret_files(Cli::command(), |name| std::env::var_os(name))?;
    Ok(Cli::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit()))
}

fn run(command: Command) -> Result<(), String> {
    match command {
        Command::Dev(options) => dev::run(&options),
        Command::Serve(config) => {
            let bound = Bound::new(config.listen, "--listen")?;
            let address = bound.address();
            if config.acquirer.url.is_none() {
                log::warn!(
                    "a sandbox plays the acquirer, and no money is moved; ONCEPAY_ACQUIRER_URL names a real one"
                );
            }
            oncepay::serve(bound, &config, || println!("Serving on http://{address}"))
        }
        Command::Acquirer(options) => acquirer::run(*options),
        Command::Migrate { owner_database_url } => {
            let run = db::migrate(&mut db::connect(&owner_database_url)?)?;
            println!("{} migrations run.", run.len());
            Ok(())
        }
        Command::Seed(options) => dev::seed(&options),
        Command::Health(options) => health::ask(&options),
        Command::Audit { database_url, acquirer } => {
            if acquirer.url.is_some() {
                reconcile::read_from(&database_url, &acquirer)?;
            }
            let report =
                audit::run(&mut db::connect(&database_url)?).map_err(|error| match error.cause() {
                    Some(cause) => format!("The audit couldn't be run: {cause}."),
                    None => format!("The audit couldn't be run: {error}"),
                })?;
            print!("{report}");
            if report.clean { Ok(()) } else { Err("The books are not in order.".to_owned()) }
        }
        Command::Reconcile { database_url, acquirer, options } => {
            let report = reconcile::run_once(&database_url, &acquirer, options)?;
            print!("{report}");
            if report.is_settled() { Ok(()) } else { Err("Our books and the acquirer's differ.".to_owned()) }
        }
        Command::Ledger { merchant, api_key, database_url } => {
            let merchant = match (&merchant, &api_key) {
                (Some(id), _) => id.parse().map_err(|_| format!("{id} is no id of a merchant (mer_…)."))?,
                (None, Some(key)) => auth::merchant_of_key(key.expose_secret())
                    .ok_or("ONCEPAY_API_KEY holds no API key (sk_test_…).")?,
                (None, None) => return Err("Say which merchant with --merchant.".to_owned()),
            };
            let conn = &mut db::connect(&database_url)?;
            journal::print(conn, merchant, &mut std::io::stdout().lock()).map_err(|error| error.to_string())
        }
        Command::Listen(options) => listen::run(options),
        Command::Trigger(options) => trigger::run(&options),
        Command::Keys(command) => shell::keys(command, &mut std::io::stdout().lock()),
        Command::Policies(command) => shell::policies(command, &mut std::io::stdout().lock()),
        Command::Openapi => {
            let document = server::document().to_pretty_json().map_err(|error| error.to_string())?;
            println!("{document}");
            Ok(())
        }
    }
}
