//! The engine's tables, as merchants and operators see them.

pub mod key_list;
pub mod keys;
pub mod policies;
pub mod resolve;
