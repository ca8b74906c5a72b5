//! Limits on what one caller may ask of an operation: requests per second, and requests under way at the same
//! time.
//!
//! The policy of the operation sets them, and each instance counts for itself: with *n* instances behind a load
//! balancer that spreads requests evenly, a caller gets *n* times as much. A count that the instances shared would
//! cost each request a round trip, and an outage of whoever keeps it would be one of the payments.
//!
//! A request pays before anything is known of its key, so a refusal costs no look-up and never follows a claim. If
//! the key turns out to be known, the request gets nine tenths back: a client that retries isn't kept from asking
//! for its answers.
//!
//! Not promised: that a limit survives its change. With a new rate, everybody begins with a full burst.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::{Clock, MonotonicClock};
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter};

use crate::base::ids::MerchantId;
use crate::error::failure::{Failure, Limited};
use crate::storage::admission::Place;

use super::policy::Policy;

/// Number of requests with large bodies at the same time, beyond which no caller has more than its share. What
/// thousands of clients send together must not take all memory.
pub(super) const LARGE_BODIES_MAX: usize = 512;

/// Price of a request, in units of the bucket.
const PRICE: NonZeroU32 = NonZeroU32::new(10).expect("ten isn't zero");
/// The part of the price that comes back if the request only looked its key up.
const GIVEN_BACK: u64 = 9;
/// Number of callers of an operation that are remembered without looking for some to forget.
const CALLERS_KEPT: usize = 1_024;
/// Time after which a caller may try again when a request under way has to end first.
const CONCURRENCY_RETRY_AFTER: Duration = Duration::from_secs(1);

/// The fields `RateLimit-Policy` and `RateLimit` of an answer, as in the IETF draft
/// draft-ietf-httpapi-ratelimit-headers-11.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RateLimitFields {
    /// The limits.
    pub policy: String,
    /// What is left of them.
    pub current: String,
}

impl RateLimitFields {
    /// Name of the field with the limits.
    pub const POLICY: &'static str = "ratelimit-policy";
    /// Name of the field with what is left of them.
    pub const CURRENT: &'static str = "ratelimit";

    /// Adds a limit, which consists of characters that need no escapes.
    fn add(&mut self, name: fmt::Arguments<'_>, quota: fmt::Arguments<'_>, left: fmt::Arguments<'_>) {
        for (field, parameters) in [(&mut self.policy, quota), (&mut self.current, left)] {
            let comma = if field.is_empty() { "" } else { ", " };
            let _ = write!(field, "{comma}\"{name}\";{parameters}");
        }
    }
}

/// The limits of all operations, and what is left of them for each caller.
pub(super) struct Limits {
    by_operation: HashMap<&'static str, Arc<Limiter>>,
}

/// Result of asking whether a request is within the limits.
pub(super) struct Entry {
    /// The fields of its answer, if anything is limited.
    pub fields: Option<RateLimitFields>,
    /// What it takes of the limits. `None` if nothing is limited.
    pub share: Result<Option<Share>, Failure>,
}

impl Limits {
    pub fn new(operations: impl Iterator<Item = &'static str>) -> Self {
        Self { by_operation: operations.map(|name| (name, Arc::default())).collect() }
    }

    /// Takes a share of the limits of `policy`, that of `operation`, for a request of `caller`. Errors:
    /// `rate_limited`.
    pub fn take(&self, operation: &'static str, caller: MerchantId, policy: &Policy) -> Entry {
        let limiter = self.by_operation.get(operation);
        match limiter.filter(|_| policy.rate_per_second > 0 || policy.concurrency_max > 0) {
            Some(limiter) => limiter.take(operation, caller, policy),
            None => Entry { fields: None, share: Ok(None) },
        }
    }
}

/// The limits of an operation.
#[derive(Default)]
struct Limiter {
    rate: Mutex<Option<Rate>>,
    callers: Arc<Callers>,
}

type Bucket = RateLimiter<MerchantId, Buckets, MonotonicClock, StateInformationMiddleware>;

/// A rate, ready to be checked.
struct Rate {
    per_second: u32,
    burst: u32,
    bucket: Bucket,
}

impl Limiter {
    fn take(self: &Arc<Self>, operation: &str, caller: MerchantId, policy: &Policy) -> Entry {
        let mut fields = RateLimitFields::default();
        let share = self.take_share(operation, caller, policy, &mut fields);
        Entry { fields: Some(fields), share: share.map(Some) }
    }

    /// Checks the concurrency first: a refusal of that costs nothing of the rate.
    fn take_share(
        self: &Arc<Self>,
        operation: &str,
        caller: MerchantId,
        policy: &Policy,
        fields: &mut RateLimitFields,
    ) -> Result<Share, Failure> {
        let mut share = Share {
            callers: Arc::clone(&self.callers),
            caller,
            is_counted: false,
            given_back: Nanos::default(),
            has_given_back: AtomicBool::new(false),
        };
        if policy.concurrency_max > 0 {
            let max = policy.concurrency_max;
            let left = self.callers.begin(caller, max);
            fields.add(
                format_args!("{operation}:concurrency"),
                format_args!("q={max};qu=\"concurrent-requests\""),
                format_args!("r={}", left.unwrap_or_default()),
            );
            if left.is_none() {
                let limited = Limited::Concurrency;
                return Err(Failure::RateLimited { limited, retry_after: CONCURRENCY_RETRY_AFTER });
            }
            share.is_counted = true;
        }
        if policy.rate_per_second > 0 {
            // Locked until it's paid: the callers' times are of this rate only.
            let mut current = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
            let rate = self.rate(&mut current, policy);
            let paid = rate.bucket.check_key_n(&caller, PRICE).expect("a burst has room for a request");
            let (left, wait) = match &paid {
                Ok(after) => (after.remaining_burst_capacity() / PRICE, None),
                Err(until) => (0, Some(until.wait_time_from(rate.bucket.clock().now()))),
            };
            let &Rate { per_second, burst, .. } = rate;
            drop(current);
            let window_s = burst.div_ceil(per_second);
            fields.add(
                format_args!("{operation}:rate"),
                format_args!("q={};w={window_s}", u64::from(per_second) * u64::from(window_s)),
                format_args!("r={left}{}", Spread { left, per_second, wait }),
            );
            if let Some(wait) = wait {
                return Err(Failure::RateLimited { limited: Limited::Rate, retry_after: wait });
            }
            share.given_back = unit(per_second) * GIVEN_BACK;
        }
        Ok(share)
    }

    /// The rate of `policy`. If it's another one than before, nobody has used anything of it.
    fn rate<'a>(&self, current: &'a mut Option<Rate>, policy: &Policy) -> &'a Rate {
        let per_second = policy.rate_per_second;
        let burst = if policy.burst == 0 { per_second } else { policy.burst };
        current.take_if(|rate| (rate.per_second, rate.burst) != (per_second, burst));
        current.get_or_insert_with(|| {
            self.callers.refill(Duration::from_secs(burst.div_ceil(per_second).into()));
            let units = NonZeroU32::new(burst * PRICE.get()).expect("a burst isn't zero");
            let quota = Quota::with_period(unit(per_second).into()).expect("a unit takes some time");
            let buckets = Buckets(Arc::clone(&self.callers));
            let bucket = RateLimiter::new(quota.allow_burst(units), buckets, MonotonicClock);
            Rate { per_second, burst, bucket }
        })
    }
}

/// The parameter `t`: the time in which the rate refills what is left, so that a client that spreads it keeps to the
/// rate, or after which there is something again. Nothing if that's sooner than in a second: whole seconds would say
/// too much.
struct Spread {
    left: u32,
    per_second: u32,
    wait: Option<Duration>,
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.wait {
            Some(wait) => write!(f, ";t={}", seconds_up(wait).max(1)),
            None if self.left == 0 && self.per_second > 1 => Ok(()),
            None => write!(f, ";t={}", self.left.div_ceil(self.per_second).max(1)),
        }
    }
}

/// The time in which a rate brings one unit.
fn unit(per_second: u32) -> Nanos {
    Nanos::new(1_000_000_000 / (u64::from(per_second) * u64::from(PRICE.get())))
}

fn seconds_up(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// The callers of an operation.
#[derive(Default)]
struct Callers(Mutex<CallersState>);

#[derive(Default)]
struct CallersState {
    callers: HashMap<MerchantId, Caller>,
    /// Time in which the rate refills an empty bucket.
    refill: Duration,
    /// Number of callers at which some may be forgotten.
    look_at: usize,
}

/// What a caller has taken of the limits.
struct Caller {
    /// Requests under way.
    running: u32,
    /// Time at which the bucket will be full, since the limiter's start. `None` if nothing was taken of it.
    full_at: Option<Nanos>,
    used_at: Instant,
}

impl Callers {
    fn state(&self) -> MutexGuard<'_, CallersState> {
        // Each change is whole, so a panic elsewhere can't have left a partial one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request of `caller`, and returns how many more it may have. `None` if it has `max` already.
    fn begin(&self, caller: MerchantId, max: u32) -> Option<u32> {
        let mut state = self.state();
        let caller = state.caller(caller);
        let left = max.checked_sub(caller.running + 1)?;
        caller.running += 1;
        Some(left)
    }

    fn end(&self, caller: MerchantId) {
        if let Some(caller) = self.state().callers.get_mut(&caller) {
            caller.running -= 1;
        }
    }

    /// Fills all buckets. From now on an empty one is full after `refill`.
    fn refill(&self, refill: Duration) {
        let mut state = self.state();
        state.refill = refill;
        for caller in state.callers.values_mut() {
            caller.full_at = None;
        }
    }

    fn give_back(&self, caller: MerchantId, units: Nanos) {
        if let Some(caller) = self.state().callers.get_mut(&caller) {
            caller.full_at = caller.full_at.map(|full_at| full_at.saturating_sub(units));
        }
    }
}

impl CallersState {
    fn caller(&mut self, caller: MerchantId) -> &mut Caller {
        let now = Instant::now();
        if self.callers.len() >= self.look_at.max(CALLERS_KEPT) {
            let refill = self.refill;
            self.callers.retain(|_, caller| caller.running > 0 || now - caller.used_at <= refill);
            self.look_at = 2 * self.callers.len();
        }
        let caller = self.callers.entry(caller).or_insert(Caller { running: 0, full_at: None, used_at: now });
        caller.used_at = now;
        caller
    }
}

/// The buckets of the callers, as the rate limiter sees them.
struct Buckets(Arc<Callers>);

impl StateStore for Buckets {
    type Key = MerchantId;

    fn measure_and_replace<T, F, E>(&self, caller: &MerchantId, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut state = self.0.state();
        let caller = state.caller(*caller);
        let (outcome, full_at) = measure(caller.full_at)?;
        caller.full_at = Some(full_at);
        Ok(outcome)
    }
}

/// What a request has taken of its caller's limits. The count of requests under way ends with it.
pub(super) struct Share {
    callers: Arc<Callers>,
    caller: MerchantId,
    is_counted: bool,
    /// What it gives back if it only looked its key up.
    given_back: Nanos,
    has_given_back: AtomicBool,
}

impl Share {
    /// Gives back what a request needs that is executed. Once at most.
    pub fn give_back(&self) {
        if !self.has_given_back.swap(true, Ordering::Relaxed) {
            self.callers.give_back(self.caller, self.given_back);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.is_counted {
            self.callers.end(self.caller);
        }
    }
}

/// What a request has taken of what it shares with others. All is free again when it's dropped, with the last clone
/// of the request.
#[derive(Default)]
pub(super) struct Pass {
    place: Mutex<Option<Place>>,
    share: Option<Share>,
    /// Held if its body is large.
    _large_body: Option<Place>,
}

impl Pass {
    pub fn new(place: Place, share: Option<Share>) -> Self {
        Self { place: Mutex::new(Some(place)), share, _large_body: None }
    }

    /// Adds the place of a large body.
    pub fn with_large_body(self, large_body: Option<Place>) -> Self {
        Self { _large_body: large_body, ..self }
    }

    /// Leaves the queue for the database: the request has been claimed, or waits for something else.
    pub fn leave_queue(&self) {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Gives back what a request needs that is executed: this one only looked its key up.
    pub fn only_looked_up(&self) {
        if let Some(share) = &self.share {
            share.give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const OPERATION: &str = "charges.create";

    fn limits() -> Limits {
        Limits::new([OPERATION].into_iter())
    }

    fn merchant(number: u128) -> MerchantId {
        MerchantId(Uuid::from_u128(number))
    }

    /// A policy with a burst that takes long to refill, compared with a test.
    fn slow(burst: u32) -> Policy {
        Policy { rate_per_second: 1, burst, ..Policy::default() }
    }

    /// How many of a hundred requests get through.
    fn passed(limits: &Limits, caller: MerchantId, policy: &Policy) -> usize {
        (0..100).filter(|_| limits.take(OPERATION, caller, policy).share.is_ok()).count()
    }

    #[test]
    fn each_caller_has_a_burst_of_its_own() {
        let (limits, policy) = (limits(), slow(20));
        assert_eq!(passed(&limits, merchant(1), &policy), 20);
        assert_eq!(passed(&limits, merchant(2), &policy), 20);
        assert_eq!(passed(&limits, merchant(1), &Policy::default()), 100);
    }

    #[test]
    fn a_request_that_only_looked_its_key_up_costs_a_tenth() {
        let (limits, policy) = (limits(), slow(5));
        for number in 0..40 {
            let share = limits.take(OPERATION, merchant(1), &policy).share;
            let share = share.unwrap_or_else(|_| panic!("number {number} was refused")).unwrap();
            share.give_back();
            share.give_back();
        }
        // Forty tenths are four of five.
        assert_eq!(passed(&limits, merchant(1), &policy), 1);
    }

    #[test]
    fn a_request_under_way_counts_until_it_ends() {
        let (limits, policy) = (limits(), Policy { concurrency_max: 2, ..slow(50) });
        let take = || limits.take(OPERATION, merchant(1), &policy).share;
        let (first, _second) = (take().unwrap(), take().unwrap());
        assert!(matches!(take(), Err(Failure::RateLimited { limited: Limited::Concurrency, .. })));
        assert!(limits.take(OPERATION, merchant(2), &policy).share.is_ok());
        drop(first);
        assert!(take().is_ok());
    }

    #[test]
    fn the_fields_tell_the_limits_and_what_is_left() {
        let (limits, policy) = (limits(), Policy { concurrency_max: 3, ..slow(2) });
        let take = || limits.take(OPERATION, merchant(1), &policy);
        let kept = take();
        let fields = kept.fields.unwrap();
        assert_eq!(
            fields.policy,
            "\"charges.create:concurrency\";q=3;qu=\"concurrent-requests\", \"charges.create:rate\";q=2;w=2"
        );
        assert_eq!(fields.current, "\"charges.create:concurrency\";r=2, \"charges.create:rate\";r=1;t=1");
        drop(take());
        let refused = take();
        assert!(refused.fields.unwrap().current.ends_with("\"charges.create:rate\";r=0;t=1"));
        let Err(Failure::RateLimited { retry_after, .. }) = refused.share else { panic!("it got through") };
        assert!(retry_after > Duration::ZERO && retry_after <= Duration::from_secs(1));
    }

    #[test]
    fn a_refusal_takes_nothing_of_the_other_limit() {
        let (limits, policy) = (limits(), Policy { concurrency_max: 2, ..slow(4) });
        let refused = || match limits.take(OPERATION, merchant(1), &policy).share {
            Err(Failure::RateLimited { limited, .. }) => Some(limited.as_str()),
            _ => None,
        };
        let kept: Vec<_> =
            (0..2).map(|_| limits.take(OPERATION, merchant(1), &policy).share.unwrap()).collect();
        for _ in 0..20 {
            assert_eq!(refused(), Some("concurrency"));
        }
        drop(kept);
        assert_eq!((refused(), refused()), (None, None), "two of four were left");
        for _ in 0..20 {
            assert_eq!(refused(), Some("rate"));
        }
    }

    #[test]
    fn a_window_is_the_time_that_refills_the_burst_in_whole_seconds() {
        let policy = Policy { rate_per_second: 2, burst: 5, ..Policy::default() };
        let fields = limits().take(OPERATION, merchant(1), &policy).fields.unwrap();
        assert_eq!(fields.policy, "\"charges.create:rate\";q=6;w=3");
        assert_eq!(fields.current, "\"charges.create:rate\";r=4;t=2");
    }

    #[test]
    fn who_is_refused_may_come_again_when_there_is_room_for_one() {
        let (limits, policy) = (limits(), Policy { rate_per_second: 100, burst: 1, ..Policy::default() });
        let refused = (0..100).find_map(|_| limits.take(OPERATION, merchant(1), &policy).share.err());
        let Some(Failure::RateLimited { retry_after, .. }) = refused else { panic!("all got through") };
        assert!(retry_after > Duration::ZERO && retry_after <= Duration::from_millis(10), "{retry_after:?}");
    }

    #[test]
    fn each_operation_has_limits_of_its_own() {
        let limits = Limits::new([OPERATION, "refunds.create"].into_iter());
        assert_eq!(passed(&limits, merchant(1), &slow(3)), 3);
        let taken = |operation| limits.take(operation, merchant(1), &slow(3)).share;
        assert!(taken("refunds.create").is_ok() && taken(OPERATION).is_err());
        assert!(taken("unknown").unwrap().is_none());
    }

    #[test]
    fn a_changed_rate_begins_with_full_buckets_and_a_burst_of_zero_is_a_second_s_worth() {
        let limits = limits();
        assert_eq!(passed(&limits, merchant(1), &slow(3)), 3);
        assert_eq!(passed(&limits, merchant(1), &slow(4)), 4);
        let fields = limits.take(OPERATION, merchant(2), &slow(0)).fields.unwrap();
        assert_eq!(fields.policy, "\"charges.create:rate\";q=1;w=1");
    }

    #[test]
    fn a_rate_that_changes_under_load_locks_nobody_out() {
        let limits = limits();
        std::thread::scope(|scope| {
            for burst in [1_000, 1_001] {
                let limits = &limits;
                scope.spawn(move || {
                    for _ in 0..20_000 {
                        if let Err(Failure::RateLimited { retry_after, .. }) =
                            limits.take(OPERATION, merchant(1), &slow(burst)).share
                        {
                            assert!(retry_after <= Duration::from_secs(1), "{retry_after:?}");
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn a_burst_below_the_rate_tells_no_one_to_wait_a_second() {
        let limits = limits();
        let policy = Policy { rate_per_second: 50, burst: 1, ..Policy::default() };
        let fields = limits.take(OPERATION, merchant(1), &policy).fields.unwrap();
        assert_eq!(fields.current, "\"charges.create:rate\";r=0");
    }

    #[test]
    fn callers_that_have_taken_something_are_remembered() {
        let limits = limits();
        let policy = Policy { concurrency_max: 1, ..slow(500) };
        let take = |number| limits.take(OPERATION, merchant(number), &policy).share;
        let running = take(1).unwrap();
        // Empties its bucket, which takes minutes to be full again.
        while take(2).is_ok() {}
        for number in 3..20_000 {
            assert!(take(number).is_ok());
        }
        assert!(take(1).is_err(), "its request is under way");
        assert!((0..100).filter(|_| take(2).is_ok()).count() < 50);
        // It's still under way when nobody's bucket has to be remembered.
        limits.by_operation[OPERATION].callers.refill(Duration::ZERO);
        for number in 20_000..80_000 {
            assert!(take(number).is_ok());
        }
        assert!(take(1).is_err());
        drop(running);
        assert!(take(1).is_ok());
    }

    #[test]
    fn callers_that_have_gone_are_forgotten() {
        let limits = limits();
        let policy = Policy { rate_per_second: 100_000, burst: 1, ..Policy::default() };
        for number in 0..10_000 {
            let _ = limits.take(OPERATION, merchant(number), &policy);
        }
        let callers = &limits.by_operation[OPERATION].callers;
        callers.refill(Duration::ZERO);
        let _ = limits.take(OPERATION, merchant(0), &policy);
        for number in 0..20_000 {
            let _ = limits.take(OPERATION, merchant(number), &policy);
        }
        assert!(callers.state().callers.len() < 20_000);
    }
}
