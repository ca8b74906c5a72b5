//! The integration tests: through HTTP, against a real Postgres, each with a database of its own.

mod support;

mod acquirer;
mod api;
mod audit;
mod batches;
mod containers;
mod contract_table;
mod crashes;
mod delivery;
mod dev_command;
mod developers;
mod exit;
mod faults;
mod inbound;
mod known_bugs;
mod ledger;
mod lifetime;
mod migrations;
mod model;
mod openapi;
mod policies;
mod processor;
mod protocol;
mod races;
mod reconciliation;
mod recovery;
mod second_processor;
mod shell;
mod sight;
mod storm;
mod suspicion;
mod waiting;
mod webhooks_retention;
