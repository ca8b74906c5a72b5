//! What the engine is handed of this service.

pub mod metrics;
