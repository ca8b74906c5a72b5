//! The time that a request may take until it's answered.
//!
//! Each wait of a request has a limit of its own, but a request may have several waits, one after the other.
//! The time that it has in all belongs to its task, so that no function has to pass it on.

use std::cell::Cell;
use std::time::{Duration, Instant};

tokio::task_local! {
    static DEADLINE: Cell<Instant>;
}

/// Runs `work`, in which [`remaining`] counts down from `limit`. Doesn't end it.
pub fn within<F: Future>(limit: Duration, work: F) -> impl Future<Output = F::Output> {
    DEADLINE.scope(Cell::new(Instant::now() + limit), work)
}

/// Gives the request `limit` from now: a client may take its time to send a body.
pub fn restart(limit: Duration) {
    let _ = DEADLINE.try_with(|deadline| deadline.set(Instant::now() + limit));
}

/// Gives the request more time, because it asked to wait.
pub fn extend(more: Duration) {
    let _ = DEADLINE.try_with(|deadline| deadline.set(deadline.get() + more));
}

/// The rest of the request's time, at most `bound`. Just `bound` outside of a request.
pub fn remaining(bound: Duration) -> Duration {
    DEADLINE
        .try_with(|deadline| deadline.get().saturating_duration_since(Instant::now()).min(bound))
        .unwrap_or(bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn a_request_has_less_and_less_time_and_background_work_always_the_same() {
        assert_eq!(remaining(LONG), LONG);
        actix_web::rt::System::new().block_on(within(Duration::from_secs(60), async {
            let at_first = remaining(LONG);
            assert!(at_first <= Duration::from_secs(60));
            assert_eq!(remaining(Duration::from_secs(1)), Duration::from_secs(1));
            extend(Duration::from_secs(60));
            assert!(remaining(LONG) > at_first);
            restart(Duration::ZERO);
            assert_eq!(remaining(LONG), Duration::ZERO);
        }));
    }
}
