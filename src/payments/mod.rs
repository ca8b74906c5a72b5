//! The domain: one module per resource, with its states, types, handlers and rules.

pub mod balance;
pub mod charges;
pub mod disputes;
pub mod notice;
pub mod payouts;
pub mod pricing;
pub mod refunds;
pub mod settlements;
