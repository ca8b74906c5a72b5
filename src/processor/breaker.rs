//! A circuit breaker: while the processor is down, calls fail at once instead of each waiting for a timeout.
//!
//! The breaker learns of an outage by asking for the processor's health, all the time, and sooner when calls
//! fail. Failing calls alone don't open the circuit: one kind of request that the processor chokes on would
//! shut out all others. So calls are let through again as soon as the processor is healthy, with or without
//! traffic, and no call has to serve as the probe.
//!
//! A processor that is well may still ask for a pause: it limits how often it's called. The breaker holds all
//! calls back until the pause is over, since such limits count the calls of an account together. Being told to
//! wait isn't an outage, so the circuit stays closed.
//!
//! The pattern is from Michael Nygard's *Release It!*; the usual form lets a call through as the probe.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus::IntGauge;
use tokio::sync::Notify;

use super::ProcessorError;

/// Number of failed calls in a row after which the health check runs out of turn.
const FAILURES_MAX: u32 = 5;
/// Number of failed health checks in a row after which the circuit opens.
const MISSES_MAX: u32 = 2;
/// Maximum time for which one answer holds back all calls. A limit may be one of a single card or endpoint, so
/// after this time another call finds out whether it still holds.
const SHARED_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Lets calls through, or fails them at once.
#[derive(Debug)]
pub struct Breaker {
    is_open: AtomicBool,
    failures: AtomicU32,
    suspicious: Notify,
    /// Time from which the end of the pause counts.
    created: Instant,
    /// End of the pause that the processor asked for, in milliseconds after `created`.
    paused_until_ms: AtomicU64,
    /// 1 while the circuit is closed, 0 while it's open.
    available: IntGauge,
}

impl Breaker {
    /// Makes a closed breaker. `available` is 1 while calls are let through.
    pub fn new(available: IntGauge) -> Self {
        Self {
            is_open: AtomicBool::new(false),
            failures: AtomicU32::new(0),
            suspicious: Notify::new(),
            created: Instant::now(),
            paused_until_ms: AtomicU64::new(0),
            available,
        }
    }

    /// True while the circuit is open.
    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    /// Rest of the pause that the processor asked for.
    pub fn pause_left(&self) -> Option<Duration> {
        let until_ms = self.paused_until_ms.load(Ordering::Relaxed);
        // Most processors never ask for one, and then a call needs no clock.
        if until_ms == 0 {
            return None;
        }
        let left = Duration::from_millis(until_ms).saturating_sub(self.created.elapsed());
        (!left.is_zero()).then_some(left)
    }

    /// Fails while the circuit is open, with [`ProcessorError::Down`], and during a pause, with
    /// [`ProcessorError::Busy`].
    pub fn check(&self) -> Result<(), ProcessorError> {
        if self.is_open() { Err(ProcessorError::Down) } else { self.check_pause() }
    }

    /// Fails during a pause, with [`ProcessorError::Busy`].
    pub fn check_pause(&self) -> Result<(), ProcessorError> {
        self.pause_left().map_or(Ok(()), |retry_after| Err(ProcessorError::Busy { retry_after }))
    }

    /// Records how a call ended.
    pub fn record<T>(&self, result: &Result<T, ProcessorError>) {
        match result {
            Ok(_) | Err(ProcessorError::Refused(_) | ProcessorError::Rejected { .. }) => self.succeeded(),
            Err(ProcessorError::Busy { retry_after }) => {
                self.succeeded();
                self.pause(*retry_after);
            }
            Err(_) => self.failed(),
        }
    }

    /// Holds calls back for `pause`, at most a minute, and at least as long as an earlier pause lasts.
    fn pause(&self, pause: Duration) {
        let until = self.created.elapsed() + pause.min(SHARED_PAUSE_MAX);
        let until_ms = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        self.paused_until_ms.fetch_max(until_ms, Ordering::Relaxed);
        log::warn!("the processor asks for a pause of {} s", pause.as_secs());
    }

    /// Records that a call was answered.
    fn succeeded(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    /// Records that a call failed.
    fn failed(&self) {
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 == FAILURES_MAX {
            self.suspicious.notify_one();
        }
    }

    /// Checks the health every `interval`, and opens and closes the circuit accordingly. Doesn't return.
    pub async fn watch<Healthy>(&self, interval: Duration, is_healthy: impl Fn() -> Healthy)
    where
        Healthy: Future<Output = bool>,
    {
        let mut misses = 0;
        loop {
            if is_healthy().await {
                misses = 0;
                self.succeeded();
                self.set_open(false);
            } else {
                misses += 1;
                if misses >= MISSES_MAX || self.failures.load(Ordering::Relaxed) >= FAILURES_MAX {
                    self.set_open(true);
                }
            }
            let _ = tokio::time::timeout(interval, self.suspicious.notified()).await;
        }
    }

    fn set_open(&self, open: bool) {
        if self.is_open.swap(open, Ordering::Relaxed) == open {
            return;
        }
        self.available.set((!open).into());
        if open {
            log::error!("the processor is down: calls fail at once until it answers again");
        } else {
            log::warn!("the processor answers again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker() -> Breaker {
        Breaker::new(IntGauge::new("a", "b").expect("valid"))
    }

    /// Runs `test` while the breaker watches the health that `test` sets.
    fn watched(test: impl AsyncFn(&Breaker, &AtomicBool)) {
        actix_web::rt::System::new().block_on(async {
            let (breaker, healthy) = (breaker(), AtomicBool::new(true));
            let watching = breaker.watch(Duration::from_millis(2), async || healthy.load(Ordering::Relaxed));
            tokio::select! {
                () = watching => unreachable!(),
                () = test(&breaker, &healthy) => {}
            }
        });
    }

    async fn until(what: impl Fn() -> bool) {
        while !what() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[test]
    fn opens_when_the_processor_is_ill_and_closes_when_it_is_well_without_any_call() {
        watched(async |breaker, healthy| {
            healthy.store(false, Ordering::Relaxed);
            until(|| breaker.is_open()).await;
            assert!(matches!(breaker.check(), Err(ProcessorError::Down)));
            assert_eq!(breaker.available.get(), 0);
            healthy.store(true, Ordering::Relaxed);
            until(|| !breaker.is_open()).await;
            assert!(breaker.check().is_ok());
            assert_eq!(breaker.available.get(), 1);
        });
    }

    #[test]
    fn failing_calls_do_not_open_it_while_the_processor_is_well() {
        watched(async |breaker, _| {
            for _ in 0..10 * FAILURES_MAX {
                breaker.failed();
                tokio::time::sleep(Duration::from_millis(1)).await;
                assert!(!breaker.is_open());
            }
        });
    }

    #[test]
    fn a_pause_holds_calls_back_for_a_minute_at_most_and_opens_nothing() {
        let breaker = breaker();
        let busy = |seconds| Err::<(), _>(ProcessorError::Busy { retry_after: Duration::from_secs(seconds) });
        assert_eq!(breaker.pause_left(), None);
        breaker.record(&busy(3600));
        let left = breaker.pause_left().expect("it's paused");
        assert!((55..=60).contains(&left.as_secs()), "{left:?}");
        breaker.record(&busy(1));
        breaker.record(&Ok(()));
        assert!(breaker.pause_left().is_some_and(|left| left.as_secs() >= 55), "neither ends the pause");
        assert!(matches!(breaker.check(), Err(ProcessorError::Busy { .. })));
        assert!(!breaker.is_open());
        breaker.paused_until_ms.store(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(2));
        assert!(breaker.check().is_ok());
    }

    #[test]
    fn failing_calls_make_it_look_out_of_turn() {
        actix_web::rt::System::new().block_on(async {
            let (breaker, healthy) = (breaker(), AtomicBool::new(true));
            // Too long for a second turn during the test.
            let watching = breaker.watch(Duration::from_secs(3600), async || healthy.load(Ordering::Relaxed));
            let test = async {
                tokio::task::yield_now().await;
                healthy.store(false, Ordering::Relaxed);
                for _ in 0..FAILURES_MAX {
                    assert!(!breaker.is_open());
                    breaker.failed();
                }
                until(|| breaker.is_open()).await;
            };
            tokio::select! {
                () = watching => unreachable!(),
                () = test => {}
            }
        });
    }
}
