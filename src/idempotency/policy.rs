//! The rules that the engine follows.

use std::time::Duration;

/// How long things last.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// How long an answer is kept, from the claim on.
    pub ttl: Duration,
    /// How long an attempt has the request to itself.
    pub lease: Duration,
    /// Longest time for the calls to the processor in one attempt. Below the lease, so that an attempt
    /// that is merely slow gives up before another takes over.
    pub processor_timeout: Duration,
}

impl Policy {
    /// Answers are kept for a day.
    pub const TTL: Duration = Duration::from_secs(24 * 60 * 60);
}
