//! Values and helpers that know nothing of a request.

mod currency;
pub(crate) mod defaults;
pub mod derived_secrets;
pub mod faults;
pub mod ids;
pub(crate) mod json;
pub mod metrics;
pub mod money;
pub(crate) mod paths;
pub(crate) mod preconditions;
pub mod signature;
pub(crate) mod time;
