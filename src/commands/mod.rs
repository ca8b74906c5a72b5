//! The commands, one file each, named as they are typed.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "what a command writes is its result")]

mod audit;
mod client;
mod health;
mod keys;
mod ledger;
mod listen;
mod migrate;
mod old_names;
mod openapi;
mod policies;
mod reconcile;
mod secret_files;
mod serve;
mod shared;
mod trigger;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::Config;
use crate::{dev, simulator};

/// A payments API that charges once, however often the client retries.
#[derive(Debug, Parser)]
#[command(name = "oncepay", version)]
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
    /// Play the payment processor: a stand-in for development and tests, with its own database
    #[command(alias = "acquirer")]
    Simulator(Box<simulator::Options>),
    /// Bring the database's schema up to date
    Migrate(migrate::Options),
    /// Make sure that there are a merchant and keys to try the service with, and write them to dev.env
    Seed(dev::SeedOptions),
    /// Ask the service on this machine whether it lives; exit status 1 if not
    Health(health::Options),
    /// Check that everything that must agree does; exit status 1 if not
    Audit(audit::Options),
    /// Compare our books with the processor's; exit status 1 if they differ
    Reconcile(reconcile::Options),
    /// Print a merchant's journal with debits, credits and totals
    Ledger(ledger::Options),
    /// Show events as they come, and forward them to a server of yours
    Listen(listen::Options),
    /// Have the simulator send an event, such as that a dispute was opened
    Trigger(trigger::Options),
    /// List idempotency keys, and set going what is stuck
    #[command(subcommand)]
    Keys(keys::Command),
    /// List and change how operations treat their idempotency keys
    #[command(subcommand)]
    Policies(policies::Command),
    /// Print the OpenAPI document
    Openapi,
}

/// Runs the command of this process' arguments. Asking for help, or for a command that doesn't exist, ends the process.
/// The error is a sentence.
pub fn run() -> Result<(), String> {
    let variable = |name: &str| std::env::var_os(name);
    let command = old_names::with_old_names(Cli::command(), &variable);
    let command = secret_files::with_secret_files(command, variable)?;
    let cli = Cli::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit());
    let out = &mut std::io::stdout().lock();
    match cli.command {
        Command::Dev(options) => dev::run(&options),
        Command::Serve(config) => serve::run(&config),
        Command::Simulator(options) => simulator::run(*options),
        Command::Migrate(options) => migrate::run(&options),
        Command::Seed(options) => dev::seed(&options),
        Command::Health(options) => health::ask(&options),
        Command::Audit(options) => audit::run(&options),
        Command::Reconcile(options) => reconcile::run(&options),
        Command::Ledger(options) => ledger::run(&options, out),
        Command::Listen(options) => listen::run(options),
        Command::Trigger(options) => trigger::run(&options),
        Command::Keys(command) => keys::run(command, out),
        Command::Policies(command) => policies::run(command, out),
        Command::Openapi => openapi::run(),
    }
}
