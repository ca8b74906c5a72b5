//! The parts that all endpoints share.

pub mod auth;
pub mod fields;
pub mod listener;
pub mod lists;
pub mod problems;
pub mod request_id;
