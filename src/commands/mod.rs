//! The commands, one file each, named as on the command line.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "what a command writes is its result")]

mod audit;
mod charges;
mod client;
mod completions;
mod doctor;
mod events;
mod exit;
mod feed;
mod health;
mod key_lines;
mod keys;
mod keys_tail;
mod ledger;
mod listen;
mod migrate;
mod old_names;
mod openapi;
mod policies;
mod progress;
mod recommend;
mod reconcile;
mod secret_files;
mod serve;
mod settings;
mod shared;
mod storage;
mod trigger;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

pub use self::exit::Stop;
use crate::base::logging::{self, LogFormat};
use crate::config::Config;
use crate::{dev, simulator};

/// A payments API that charges once, however often the client retries.
#[derive(Debug, Parser)]
#[command(name = "oncepay", version, after_help = exit::help())]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a development environment: Postgres, schema, a merchant, the API
    Dev(dev::Options),
    /// Serve the API
    Serve(Box<Config>),
    /// Run the simulator: a payment processor for development and tests, with its own database
    #[command(alias = "acquirer")]
    Simulator(Box<simulator::Options>),
    /// Migrate the database's schema
    Migrate(migrate::Options),
    /// Create a merchant and keys to try the service with, unless they exist, and write them to dev.env
    Seed(dev::SeedOptions),
    /// Check that the service on this machine is running; exit status 1 if not
    Health(health::Options),
    /// Examine all that the service depends on, and say what to do; exit status 1 if anything keeps it from working
    Doctor(Box<doctor::Options>),
    /// Check that ledger, charges, refunds, payouts, keys and events agree; exit status 1 if not
    Audit(audit::Options),
    /// Compare our books with the processor's; exit status 1 if they differ
    Reconcile(reconcile::Options),
    /// Print a merchant's journal with debits, credits and totals
    Ledger(ledger::Options),
    /// Show events as they happen, and forward them to your server
    Listen(listen::Options),
    /// Print events as they happen
    #[command(subcommand)]
    Events(events::Command),
    /// Print charges as they're made and change
    #[command(subcommand)]
    Charges(charges::Command),
    /// Make the simulator send an event, such as the opening of a dispute
    Trigger(trigger::Options),
    /// List and watch idempotency keys, and resolve stuck requests
    #[command(subcommand)]
    Keys(keys::Command),
    /// List and change the idempotency policies of operations, and recommend TTLs
    #[command(subcommand)]
    Policies(policies::Command),
    /// Show the sizes of tables and indexes, and what to do about them; exit status 1 if there is anything
    Storage(storage::Options),
    /// Print the OpenAPI document
    Openapi,
    /// Print all settings with their variables and defaults, as Markdown
    Settings(settings::Options),
    /// Print a script that completes commands and options in a shell
    Completions(completions::Options),
}

/// Runs the command in this process's arguments. A request for help, or an unknown command, ends the process.
/// The error says how the process ends, with a sentence.
pub fn run() -> Result<(), Stop> {
    let variable = |name: &str| std::env::var_os(name);
    let command = old_names::with_old_names(Cli::command(), &variable);
    let command = secret_files::with_secret_files(command, variable).map_err(Stop::Usage)?;
    let cli = Cli::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit());
    match &cli.command {
        Command::Serve(config) => logging::start(config.log_format, logging::SERVING),
        _ => logging::start(LogFormat::Text, logging::COMMAND),
    }
    let out = &mut std::io::stdout().lock();
    match cli.command {
        Command::Dev(options) => Ok(dev::run(&options)?),
        Command::Serve(config) => Ok(serve::run(&config)?),
        Command::Simulator(options) => Ok(simulator::run(*options)?),
        Command::Migrate(options) => Ok(migrate::run(&options)?),
        Command::Seed(options) => Ok(dev::seed(&options)?),
        Command::Health(options) => health::run(&options, out),
        Command::Doctor(options) => doctor::run(&options, out),
        Command::Audit(options) => audit::run(&options, out),
        Command::Reconcile(options) => reconcile::run(&options, out),
        Command::Ledger(options) => ledger::run(&options, out),
        Command::Listen(options) => Ok(listen::run(options)?),
        Command::Events(command) => events::run(&command, out),
        Command::Charges(command) => charges::run(&command, out),
        Command::Trigger(options) => trigger::run(&options, out),
        Command::Keys(command) => keys::run(command, out),
        Command::Policies(command) => policies::run(command, out),
        Command::Storage(options) => storage::run(&options, out),
        Command::Openapi => Ok(openapi::run()?),
        Command::Settings(options) => settings::run(&options, &Cli::command(), out),
        Command::Completions(options) => completions::run(&options, &mut Cli::command(), out),
    }
}
