//! Access to Postgres.

pub(crate) mod batch;
pub mod db;
pub(crate) mod deadline;
pub(crate) mod language;
pub(crate) mod master_keys;
pub mod metrics;
pub mod migrations;
pub(crate) mod schema;
pub(crate) mod sql;
