//! A file per resource, and what all have in common.

mod api_keys;
mod authentication;
mod bad_input;
mod balance;
mod bounds;
mod charges;
mod connections;
mod currencies;
mod event_feed;
mod events;
mod http;
mod ledger;
mod lifecycle;
mod lists;
mod operators;
mod service;
mod webhook_endpoints;
