//! The merchants and what authenticates them.

pub mod api_keys;
pub mod merchants;
