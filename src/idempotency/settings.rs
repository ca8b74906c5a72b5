//! What an engine can be told. Unlike [policies](super::Policy), the same for all operations.

use std::time::Duration;

use crate::base::time;

/// Longest pause between two attempts of the recovery worker.
const BACKOFF_MAX: Duration = Duration::from_secs(15 * 60);

/// Settings of an engine.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long things last.
    pub timing: Timing,
    /// How many requests may share a statement, where they can.
    pub batch_size_max: usize,
}

/// How long things last.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// When a request is given up that isn't answered yet, counted from its arrival, without what it asked to wait.
    pub request_deadline: Duration,
    /// How long an attempt has the request to itself.
    pub lease: Duration,
    /// Longest time for the calls to the processor in one attempt. Below the lease, so that an attempt
    /// that is merely slow gives up before another takes over.
    pub processor_timeout: Duration,
    /// How requests are finished whose clients don't come back.
    pub recovery: Recovery,
}

/// How the recovery worker goes about it.
#[derive(Clone, Copy, Debug)]
pub struct Recovery {
    /// How often it looks for work.
    pub interval: Duration,
    /// How long a request is left to its client after an attempt that failed, and the worker's first pause.
    /// It doubles with each of the worker's attempts.
    pub delay: Duration,
    /// Attempts of the worker before it parks a request.
    pub attempts_max: u32,
    /// Requests that it works on at the same time.
    pub concurrency: u32,
}

impl Recovery {
    /// Pause after the worker's attempt number `recoveries`, or after a client's (0).
    pub fn backoff(&self, recoveries: u32) -> Duration {
        time::backoff(self.delay, recoveries, BACKOFF_MAX.max(self.delay))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound() {
        let recovery = Recovery {
            interval: Duration::from_secs(1),
            delay: Duration::from_secs(4),
            attempts_max: 20,
            concurrency: 4,
        };
        for (recoveries, nominal_s) in [(0, 4.0), (1, 8.0), (5, 128.0), (10, 900.0), (1000, 900.0)] {
            let pause = recovery.backoff(recoveries).as_secs_f64();
            assert!((nominal_s * 0.75..=nominal_s).contains(&pause), "{pause} after {recoveries}");
        }
    }
}
