//! Settings of an engine. Unlike [policies](super::Policy), they are the same for all operations.

use std::time::Duration;

use crate::base::time;

/// Maximum pause between two attempts of the recovery worker.
const BACKOFF_MAX: Duration = Duration::from_secs(15 * 60);

/// Settings of an engine.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Durations.
    pub timing: Timing,
    /// Maximum number of requests in a batch.
    pub batch_size_max: usize,
}

/// Durations of an engine.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Time after its arrival at which an unanswered request is given up, without the wait that it asked for.
    pub request_deadline: Duration,
    /// Time for which an attempt owns the request.
    pub lease: Duration,
    /// Maximum time for the calls to the processor in one attempt. Shorter than the lease, so that an attempt
    /// that is merely slow gives up before another takes over.
    pub processor_timeout: Duration,
    /// Settings of the recovery worker.
    pub recovery: Recovery,
}

/// Settings of the recovery worker, which finishes requests without their clients.
#[derive(Clone, Copy, Debug)]
pub struct Recovery {
    /// Interval at which it looks for work.
    pub interval: Duration,
    /// Time for which a request is left to its client after a failed attempt, and the worker's first pause.
    /// The pause doubles with each of the worker's attempts.
    pub delay: Duration,
    /// Maximum number of the worker's attempts before it parks a request.
    pub attempts_max: u32,
    /// Maximum number of requests that it works on at the same time.
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
