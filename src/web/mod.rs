//! The parts that all endpoints share.

pub mod auth;
pub(crate) mod connection;
pub(crate) mod fields;
pub(crate) mod files;
pub mod listener;
pub(crate) mod lists;
pub(crate) mod problems;
pub(crate) mod query;
pub(crate) mod request_id;
pub(crate) mod texts;
pub(crate) mod this_machine;
