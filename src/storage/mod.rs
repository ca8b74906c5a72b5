//! Access to Postgres.

pub mod batch;
pub mod db;
pub mod deadline;
pub mod metrics;
#[expect(missing_docs, reason = "the migrations describe each table and column")]
pub mod schema;
pub mod sql;
