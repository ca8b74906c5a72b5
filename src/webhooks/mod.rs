//! Webhooks, both ways, as [Standard Webhooks](https://www.standardwebhooks.com) says.

pub mod address;
pub mod catalogue;
mod client;
pub mod delivery;
pub mod endpoints;
pub mod inbound;
mod outbox;
pub mod retention;
pub mod signature;
