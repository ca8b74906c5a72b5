//! Values and helpers that know nothing of what a request asks for.

mod currency;
pub(crate) mod defaults;
pub mod derived_secrets;
pub mod faults;
pub mod ids;
pub(crate) mod json;
pub mod logging;
pub mod metrics;
pub mod money;
pub(crate) mod paths;
pub(crate) mod preconditions;
pub mod progress;
pub(crate) mod quantities;
pub mod scope;
pub mod signature;
pub mod spans;
pub(crate) mod time;
pub mod trace;
