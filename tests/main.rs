//! The integration tests: through HTTP, against a real Postgres, each with a database of its own.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::exit,
    reason = "helpers end a test by a panic, and tell what they find on the terminal"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::float_arithmetic,
    reason = "what tests count and measure is small, and no amount"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the clock of this machine, whatever the service is told"
)]
#![allow(unsafe_code, reason = "signals, mounts and an exit handler, which the faults need")]

mod support;

mod acquirer;
mod api;
mod architecture;
mod audit;
mod batches;
mod command_line;
mod connecting;
mod console;
mod containers;
mod contract_table;
mod costs;
mod crashes;
mod delivery;
mod dev_command;
mod doctor;
mod faults;
mod foreign_settings;
mod hostile_receivers;
mod inbound;
mod key_expiry;
mod known_bugs;
mod ledger;
mod ledger_guards;
mod listen_and_trigger;
mod lost_claims;
mod master_key;
mod migrating;
mod migrations;
mod model;
mod observability;
mod openapi;
mod policies;
mod processor;
mod progress;
mod protocol;
mod races;
mod reconciliation;
mod recovery;
mod refusals;
mod retries;
mod reversals;
mod schema;
mod seats;
mod second_processor;
mod sharing;
mod shell;
mod shutdown;
mod suspected_duplicates;
mod tails;
mod traces;
mod unprotected;
mod waiting;
mod webhook_storm;
mod webhooks_retention;
