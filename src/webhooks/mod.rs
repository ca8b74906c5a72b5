//! Webhooks, both ways, as [Standard Webhooks](https://www.standardwebhooks.com) says.

pub mod address;
pub mod catalogue;
pub mod endpoints;
pub mod inbound;
pub mod retention;
pub mod signature;
