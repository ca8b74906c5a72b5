//! A circuit breaker: while the processor is down, calls fail at once instead of each waiting for a timeout.
//!
//! The breaker learns of an outage by asking for the processor's health, all the time, and sooner when calls
//! fail. Failing calls alone don't open the circuit: one kind of request that the processor chokes on would
//! shut out all others. So calls are let through again as soon as the processor is healthy, with or without
//! traffic, and no call has to serve as the probe.
//!
//! A processor that is well may still ask for a pause: it limits how often it's called. The breaker holds calls of
//! the same kind back until the pause is over. Calls of other kinds have their own limits: a report that is read
//! too often must not stop payments. Being told to wait isn't an outage, so the circuit stays closed.
//!
//! The pattern is from Michael Nygard's *Release It!*; the usual form lets a call through as the probe.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use prometheus::IntGauge;
use tokio::sync::Notify;

use super::ProcessorError;

/// Number of failed calls in a row after which the health check runs out of turn.
const FAILURES_MAX: u32 = 5;
/// Number of failed health checks in a row after which the circuit opens.
const MISSES_MAX: u32 = 2;
/// Maximum time for which one answer holds back all calls of its kind. A limit may be one of a single card, so after
/// this time another call finds out whether it still holds.
const SHARED_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Lets calls through, or fails them at once.
#[derive(Debug)]
pub struct Breaker {
    is_open: AtomicBool,
    failures: AtomicU32,
    suspicious: Notify,
    /// Ends of the pauses that the processor asked for, by kind of call.
    paused_until: RwLock<BTreeMap<&'static str, Instant>>,
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
            paused_until: RwLock::default(),
            available,
        }
    }

    /// True while the circuit is open.
    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    /// Fails while the circuit is open, with [`ProcessorError::Down`], and during a pause of calls of this kind, with
    /// [`ProcessorError::Busy`].
    pub fn check(&self, kind: &str) -> Result<(), ProcessorError> {
        if self.is_open() { Err(ProcessorError::Down) } else { self.check_pause(kind) }
    }

    /// Fails during a pause of calls of this kind, with [`ProcessorError::Busy`].
    pub fn check_pause(&self, kind: &str) -> Result<(), ProcessorError> {
        let until = self.paused_until.read().unwrap_or_else(PoisonError::into_inner).get(kind).copied();
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        match left {
            Some(retry_after) if !retry_after.is_zero() => Err(ProcessorError::Busy { retry_after }),
            _ => Ok(()),
        }
    }

    /// Records how a call of this kind ended. `kind` is one of a few fixed words.
    pub fn record<T>(&self, kind: &'static str, result: &Result<T, ProcessorError>) {
        match result {
            Ok(_) | Err(ProcessorError::Refused(_) | ProcessorError::Rejected { .. }) => self.succeeded(),
            Err(ProcessorError::Busy { retry_after }) => {
                self.succeeded();
                self.pause(kind, *retry_after);
            }
            Err(_) => self.failed(),
        }
    }

    /// Holds calls of a kind back for `pause`, at most a minute, and at least as long as an earlier pause lasts.
    fn pause(&self, kind: &'static str, pause: Duration) {
        let until = Instant::now() + pause.min(SHARED_PAUSE_MAX);
        let mut all = self.paused_until.write().unwrap_or_else(PoisonError::into_inner);
        let held = all.entry(kind).or_insert(until);
        *held = until.max(*held);
        log::warn!("the processor asks for a pause of {} s ({kind})", pause.as_secs());
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
            assert!(matches!(breaker.check("charge"), Err(ProcessorError::Down)));
            assert_eq!(breaker.available.get(), 0);
            healthy.store(true, Ordering::Relaxed);
            until(|| !breaker.is_open()).await;
            assert!(breaker.check("charge").is_ok());
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
    fn a_pause_holds_calls_of_its_kind_back_for_a_minute_at_most_and_opens_nothing() {
        let breaker = breaker();
        let busy = |seconds| Err::<(), _>(ProcessorError::Busy { retry_after: Duration::from_secs(seconds) });
        let left_s = |kind| match breaker.check(kind) {
            Err(ProcessorError::Busy { retry_after }) => retry_after.as_secs(),
            other => other.map(|()| 0).expect("it isn't open"),
        };
        assert_eq!(left_s("refund"), 0);
        breaker.record("refund", &busy(3600));
        assert!((55..=60).contains(&left_s("refund")));
        breaker.record("refund", &busy(1));
        breaker.record("refund", &Ok(()));
        assert!(left_s("refund") >= 55, "neither ends the pause");
        assert_eq!(left_s("charge"), 0, "others go on");
        assert!(!breaker.is_open());
        breaker
            .record("charge", &Err::<(), _>(ProcessorError::Busy { retry_after: Duration::from_millis(2) }));
        std::thread::sleep(Duration::from_millis(3));
        assert!(breaker.check("charge").is_ok());
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
