//! The domain: one module per resource, with its states, types, handlers and rules.

pub(crate) mod balance;
mod changes;
pub mod charges;
pub mod disputes;
pub(crate) mod failure;
pub mod notice;
pub mod payouts;
pub(crate) mod pricing;
pub(crate) mod refunds;
pub(crate) mod settlements;
