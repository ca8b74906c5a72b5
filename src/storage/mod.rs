//! Access to Postgres.

pub(crate) mod batch;
pub mod db;
pub(crate) mod deadline;
pub(crate) mod master_keys;
pub mod metrics;
pub(crate) mod schema;
pub(crate) mod sql;
