//! The merchants, and the API keys that authenticate them.

pub mod api_keys;
pub mod issued_keys;
pub mod merchants;
