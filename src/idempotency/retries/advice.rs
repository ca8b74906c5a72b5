//! A TTL that the retries seen so far speak for.

use std::time::Duration;

use serde::Serialize;

use crate::base::quantities::{about, count, duration};
use crate::idempotency::policy::{OnExpired, Policy};

use super::history::{KeyBytes, Requests};
use super::{BOUNDS_S, DAY_S, Found, HOUR_S};

/// Number of retries below which they say nothing of a TTL.
pub const RETRIES_MIN: u64 = 1_000;
/// Time below which they don't, since a job that runs once a week hasn't run yet.
pub const OBSERVED_MIN: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// One retry in so many may come later than the TTL covers: 0.01 %.
const LATE_ONE_IN: u64 = 10_000;
/// Factor between the delay of the retries and the TTL.
const MARGIN: u32 = 2;
/// Shortest and longest possible TTL.
const TTL_S: std::ops::RangeInclusive<u32> = 60..=30 * DAY_S;
/// TTLs for which the cost of a shorter one is shown.
const SHORTER_S: [u32; 10] =
    [60, 600, HOUR_S, 4 * HOUR_S, 12 * HOUR_S, DAY_S, 3 * DAY_S, 7 * DAY_S, 14 * DAY_S, 21 * DAY_S];

/// A minimum of the TTL that doesn't depend on what was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Floor {
    /// The minimum.
    pub ttl_seconds: u32,
    /// The reason, as the end of a sentence that begins with *since*.
    pub reason: String,
}

/// A recommended TTL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// The TTL; the present one if nothing speaks for another.
    pub ttl_seconds: u32,
    /// Sentences that say why.
    pub reasons: Vec<String>,
    /// Sentences on what an operator should look at.
    pub warnings: Vec<String>,
    /// What shorter TTLs would have done to the retries that were seen, shortest first.
    pub shorter: Vec<Shorter>,
}

/// What a TTL would have done to retries that came later. Those that were already refused or executed again count too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Shorter {
    /// The TTL.
    pub ttl_seconds: u32,
    /// Number of retries that it would have refused.
    pub refused: u64,
    /// Number of retries that it would have executed a second time.
    pub executed_again: u64,
}

/// Recommends a TTL for an operation with these requests and this policy, which were counted over the time `observed`.
///
/// The TTL covers all but one in ten thousand of the retries that came after an answer, with a margin, and no floor is
/// above it. Retries of requests in progress don't matter: a request in progress never expires.
pub fn advise(requests: &Requests, policy: &Policy, observed: Duration, floors: &[Floor]) -> Advice {
    let present = policy.ttl_seconds;
    let retries = requests.number(&Found::FINISHED);
    let floor = floors.iter().max_by_key(|floor| floor.ttl_seconds);
    let mut reasons = Vec::new();
    let mut warnings = Vec::new();
    let mut ttl_seconds = present;
    if retries < RETRIES_MIN || observed < OBSERVED_MIN {
        reasons.push(format!(
            "Too few retries came after an answer to tell: {} in {}. It takes {} in {}. The TTL stays.",
            count(retries),
            about(observed.as_secs()),
            count(RETRIES_MIN),
            about(OBSERVED_MIN.as_secs()),
        ));
        if let Some(floor) = floor.filter(|floor| floor.ttl_seconds > present) {
            warnings.push(format!(
                "The TTL is below {}, the minimum, since {}.",
                duration(floor.ttl_seconds.into()),
                floor.reason
            ));
        }
    } else {
        let covered_s = covered_s(requests, retries);
        let with_margin_s = covered_s.saturating_mul(MARGIN);
        let late = requests.later_than(covered_s, &Found::FINISHED);
        let delay = duration(covered_s.into());
        reasons.push(match late {
            0 => format!("All {} retries that came after an answer came within {delay}.", count(retries)),
            _ => format!(
                "Of {} retries that came after an answer, all but {} came within {delay}.",
                count(retries),
                count(late)
            ),
        });
        let floor = floor.filter(|floor| floor.ttl_seconds >= with_margin_s);
        reasons.push(match floor {
            Some(floor) => format!(
                "With a margin that would be {}, but the minimum is {}, since {}.",
                duration(with_margin_s.into()),
                duration(floor.ttl_seconds.into()),
                floor.reason
            ),
            None => format!(
                "The TTL is twice that, rounded up; the maximum is {}.",
                duration((*TTL_S.end()).into())
            ),
        });
        if retries < 3 * LATE_ONE_IN {
            reasons.push(format!(
                "So many retries only rule out, with 95 % confidence, that more than 1 in {} comes later.",
                count(retries / 3)
            ));
        }
        let wanted_s = floor.map_or(with_margin_s, |floor| floor.ttl_seconds);
        ttl_seconds = choice(wanted_s);
        let beyond = requests.later_than(ttl_seconds, &Found::FINISHED);
        if beyond > late {
            warnings.push(format!(
                "{} retries came later than the longest possible TTL. Their clients must give up sooner.",
                count(beyond)
            ));
        }
    }
    warnings.extend(warn(requests, policy));
    let longest = present.max(ttl_seconds);
    let mut shorter_s: Vec<u32> = SHORTER_S.into_iter().filter(|ttl| *ttl < longest).collect();
    shorter_s.push(present.min(ttl_seconds));
    shorter_s.push(longest);
    shorter_s.sort_unstable();
    shorter_s.dedup();
    let shorter = shorter_s.into_iter().map(|ttl| shorter(requests, policy, ttl)).collect();
    Advice { ttl_seconds, reasons, warnings, shorter }
}

/// The smallest bound beyond which at most one in [`LATE_ONE_IN`] of the retries came.
fn covered_s(requests: &Requests, retries: u64) -> u32 {
    let is_enough = |bound: &u32| requests.later_than(*bound, &Found::FINISHED) <= retries / LATE_ONE_IN;
    BOUNDS_S.into_iter().find(is_enough).unwrap_or(*TTL_S.end())
}

/// The shortest usual TTL that isn't below `wanted_s`, or the longest possible one.
fn choice(wanted_s: u32) -> u32 {
    let usual = BOUNDS_S.into_iter().filter(|bound| TTL_S.contains(bound));
    usual.clone().find(|bound| *bound >= wanted_s).or(usual.max()).unwrap_or(*TTL_S.end())
}

fn shorter(requests: &Requests, policy: &Policy, ttl_seconds: u32) -> Shorter {
    let remembered_s = match policy.on_expired {
        OnExpired::Reject => ttl_seconds.saturating_add(policy.tombstone_seconds),
        OnExpired::Execute => ttl_seconds,
    };
    let late = requests.later_than(ttl_seconds, &Found::FINISHED);
    let executed_again = requests.later_than(remembered_s, &Found::FINISHED);
    Shorter { ttl_seconds, refused: late - executed_again, executed_again }
}

/// What has gone wrong already.
fn warn(requests: &Requests, policy: &Policy) -> Vec<String> {
    let mut warnings = Vec::new();
    let expired = requests.number(&[Found::Expired]);
    if expired > 0 {
        warnings.push(format!("{} retries came after the TTL and were refused.", count(expired)));
    }
    let free = requests.number(&[Found::Free]);
    if free > 0 {
        let remedy = match policy.on_expired {
            OnExpired::Reject => {
                "Raise tombstone_seconds, or have clients make a new key for each new request."
            }
            OnExpired::Execute => "on_expired=reject refuses them instead.",
        };
        warnings.push(format!(
            "{} requests came with a key that was free again, and were executed. Those that were retries were executed \
             twice. {remedy}",
            count(free)
        ));
    }
    warnings
}

/// What the keys of an operation cost with a TTL, once the first of them have expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// The TTL.
    pub ttl_seconds: u32,
    /// Number of rows with an answer.
    pub answers: u64,
    /// Number of tombstones.
    pub tombstones: u64,
    /// Bytes of all these rows with their index entries.
    pub bytes: u64,
}

impl Cost {
    /// The cost of `keys_per_day` new keys a day with the TTL `ttl_seconds` and the tombstones of `policy`.
    pub fn of(keys_per_day: u64, size: KeyBytes, policy: &Policy, ttl_seconds: u32) -> Self {
        let during = |seconds: u32| keys_per_day.saturating_mul(seconds.into()).div_ceil(DAY_S.into());
        let (answers, tombstones) = (during(ttl_seconds), during(policy.tombstone_seconds));
        let bytes =
            answers.saturating_mul(size.answer).saturating_add(tombstones.saturating_mul(size.tombstone));
        Self { ttl_seconds, answers, tombstones, bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MONTH: Duration = Duration::from_secs(30 * 24 * 60 * 60);

    fn floor(ttl_seconds: u32) -> [Floor; 2] {
        [
            Floor { ttl_seconds: 60, reason: "no reason".to_owned() },
            Floor { ttl_seconds, reason: "they say so".to_owned() },
        ]
    }

    /// Requests that found answers, by the upper bound of their delay.
    fn answers(retries: &[(u32, u64)]) -> Requests {
        let mut requests = Requests::default();
        for (at_most_s, number) in retries {
            requests.add(Found::Answer, *at_most_s, *number);
        }
        requests
    }

    fn ttl(retries: &[(u32, u64)], floor_s: u32) -> u32 {
        advise(&answers(retries), &Policy::default(), MONTH, &floor(floor_s)).ttl_seconds
    }

    #[test]
    fn the_ttl_covers_all_but_one_in_ten_thousand_with_a_margin_and_is_never_below_a_floor() {
        for (retries, floor_s, ttl_s) in [
            // Fewer than ten thousand: all of them.
            (&[(1, 9_998), (8 * HOUR_S, 1)][..], 60, DAY_S),
            (&[(1, 9_999), (8 * HOUR_S, 1)], 60, 60),
            (&[(10, 20_000), (DAY_S, 2)], 60, 60),
            (&[(10, 20_000), (DAY_S, 3)], 60, 2 * DAY_S),
            (&[(10, 20_000), (DAY_S, 3)], 3 * DAY_S, 3 * DAY_S),
            (&[(1, 20_000)], DAY_S, DAY_S),
            // Rounded up to a usual TTL, if twice the delay isn't one.
            (&[(36 * HOUR_S, 5_000)], DAY_S, 3 * DAY_S),
            (&[(4 * DAY_S, 5_000)], DAY_S, 10 * DAY_S),
            (&[(400 * DAY_S, 5_000)], DAY_S, 30 * DAY_S),
        ] {
            assert_eq!(ttl(retries, floor_s), ttl_s, "{retries:?}");
        }
    }

    #[test]
    fn too_few_retries_or_days_change_nothing() {
        let policy = Policy { ttl_seconds: 3_600, ..Policy::default() };
        let week = OBSERVED_MIN;
        for (number, observed) in [(RETRIES_MIN - 1, week), (RETRIES_MIN, week - Duration::from_secs(1))] {
            let advice = advise(&answers(&[(10, number)]), &policy, observed, &floor(DAY_S));
            assert_eq!(advice.ttl_seconds, 3_600);
            assert!(advice.reasons[0].contains("Too few"), "{:?}", advice.reasons);
            assert!(
                advice.warnings[0].contains("below 24 h, the minimum, since they say so"),
                "{:?}",
                advice.warnings
            );
        }
        assert_eq!(advise(&answers(&[(10, RETRIES_MIN)]), &policy, week, &floor(DAY_S)).ttl_seconds, DAY_S);
    }

    #[test]
    fn a_shorter_ttl_refuses_what_a_tombstone_covers_and_executes_the_rest_again() {
        let mut requests = answers(&[(10, 5_000), (HOUR_S, 40), (DAY_S, 3)]);
        requests.add(Found::Unfinished, DAY_S, 100);
        requests.add(Found::Expired, 2 * DAY_S, 2);
        requests.add(Found::OtherRequest, 2 * DAY_S, 50);
        let policy = Policy { tombstone_seconds: DAY_S, ..Policy::default() };
        let rows = |policy: &Policy| -> Vec<_> {
            let advice = advise(&requests, policy, MONTH, &[]);
            advice.shorter.iter().map(|row| (row.ttl_seconds, row.refused, row.executed_again)).collect()
        };
        let table = rows(&policy);
        // Two days later is more than a minute and a day later, and may be.
        assert_eq!(table[..2], [(60, 43, 2), (600, 43, 2)]);
        assert_eq!(table[2..4], [(HOUR_S, 3, 2), (4 * HOUR_S, 3, 2)]);
        assert_eq!(table[5], (DAY_S, 2, 0));
        assert_eq!(table.last(), Some(&(4 * DAY_S, 0, 0)), "the recommended one is the last");
        let table = rows(&Policy { on_expired: OnExpired::Execute, ..policy });
        assert_eq!(table[2], (HOUR_S, 0, 5));
    }

    #[test]
    fn the_cost_is_that_of_all_rows_at_a_time() {
        let size = KeyBytes { answer: 1_000, tombstone: 300 };
        let policy = Policy { tombstone_seconds: 10 * DAY_S, ..Policy::default() };
        let cost = Cost::of(100, size, &policy, DAY_S / 2);
        assert_eq!((cost.answers, cost.tombstones, cost.bytes), (50, 1_000, 350_000));
    }
}
