//! Access to Postgres.

pub(crate) mod admission;
pub(crate) mod batch;
pub(crate) mod clock;
pub mod db;
pub(crate) mod deadline;
pub mod distribution;
pub mod fitness;
pub(crate) mod language;
pub(crate) mod master_keys;
pub(crate) mod merchants;
pub mod metrics;
pub mod migrations;
pub(crate) mod party;
mod permits;
pub(crate) mod schema;
pub mod session;
pub(crate) mod shape;
pub(crate) mod sql;
mod turns;
pub(crate) mod usage;
