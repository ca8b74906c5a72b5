//! A file per resource, and what all have in common.

mod authentication;
mod bad_input;
mod balance;
mod charges;
mod lifecycle;
mod lists;
mod service;
