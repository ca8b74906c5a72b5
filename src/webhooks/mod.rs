//! Webhooks, both ways, as [Standard Webhooks](https://www.standardwebhooks.com) says.

pub mod address;
pub mod inbound;
pub mod endpoints;
pub mod signature;
