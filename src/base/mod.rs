//! Values and helpers that know nothing of a request.

pub mod defaults;
pub mod derived_secrets;
pub mod faults;
pub mod ids;
pub mod json;
pub mod metrics;
pub mod money;
pub mod paths;
pub mod signature;
pub mod time;
