//! Counts how long after its first claim a key comes back, and derives a TTL from that.
//!
//! ```text
//!     Engine::look_up          finds the key with its age, and counts it once per request, in memory
//!     workers::retries         adds the counts to the table every few seconds; so does an instance that stops
//!     history::load            the sum over instances and days
//!     advice::advise           a TTL, its reasons and its cost, for `oncepay policies recommend`
//! ```
//!
//! Promised: counting costs a request neither a statement nor a wait. The counts of all instances add up, and
//! outlast restarts. The table has a bounded number of rows.
//!
//! Not promised: exact numbers. An instance that is killed loses the counts of its last few seconds. If the
//! connection breaks while it stores them, they may be stored twice.

pub mod advice;
mod counts;
pub mod history;

use std::time::Duration;

use super::decision::Decision;

pub use counts::{Count, Counts};

/// Upper bounds of the delays that are told apart, in seconds. TTLs that people choose are among them, so that the
/// number of retries beyond such a TTL is exact. Nothing is remembered for longer than the last one, except a
/// request that is never finished.
pub const BOUNDS_S: [u32; 30] = [
    1,
    2,
    5,
    10,
    30,
    60,
    2 * 60,
    5 * 60,
    10 * 60,
    30 * 60,
    HOUR_S,
    2 * HOUR_S,
    4 * HOUR_S,
    8 * HOUR_S,
    12 * HOUR_S,
    DAY_S,
    36 * HOUR_S,
    2 * DAY_S,
    3 * DAY_S,
    4 * DAY_S,
    5 * DAY_S,
    7 * DAY_S,
    10 * DAY_S,
    14 * DAY_S,
    21 * DAY_S,
    30 * DAY_S,
    45 * DAY_S,
    60 * DAY_S,
    90 * DAY_S,
    400 * DAY_S,
];
const HOUR_S: u32 = 60 * 60;
const DAY_S: u32 = 24 * HOUR_S;

/// Number of the bound that a delay belongs to: the first one that it doesn't exceed.
fn bucket(delay: Duration) -> usize {
    let exceeded = |bound: &u32| Duration::from_secs((*bound).into()) < delay;
    BOUNDS_S.partition_point(exceeded).min(BOUNDS_S.len() - 1)
}

/// What a request finds under its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Found {
    /// Nothing: the key is new. Counted when the request is executed, for the rate of new keys.
    New,
    /// The answer, which is replayed.
    Answer,
    /// The same request, which isn't finished: it's refused, waits, or is taken over.
    Unfinished,
    /// Another request.
    OtherRequest,
    /// A tombstone: the request is refused, because it comes too late.
    Expired,
    /// Nothing that would stop it: the key was used before and is free again, so the request is executed again.
    Free,
}

impl Found {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::New, Self::Answer, Self::Unfinished, Self::OtherRequest, Self::Expired, Self::Free];
    /// Those that depend on the TTL: requests that were finished before.
    pub const FINISHED: [Self; 3] = [Self::Answer, Self::Expired, Self::Free];

    /// What the decision on a key says. `None` for a new key.
    pub fn of(decision: &Decision) -> Option<Self> {
        Some(match decision {
            Decision::Claim => return None,
            Decision::ClaimAfresh => Self::Free,
            Decision::Replay(_) => Self::Answer,
            Decision::ReplayDespiteMismatch(_) | Decision::Mismatch => Self::OtherRequest,
            Decision::Expired => Self::Expired,
            Decision::Running { .. } | Decision::TakeOver(_) => Self::Unfinished,
        })
    }

    /// Word in stored rows and in the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Answer => "answer",
            Self::Unfinished => "unfinished",
            Self::OtherRequest => "other_request",
            Self::Expired => "expired",
            Self::Free => "free",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_belongs_to_the_first_bound_that_it_does_not_exceed() {
        for (delay_ms, bound_s) in [
            (0, 1),
            (1_000, 1),
            (1_001, 2),
            (86_400_000, 86_400),
            (86_400_001, 129_600),
            (u64::MAX, 400 * DAY_S),
        ] {
            assert_eq!(BOUNDS_S[bucket(Duration::from_millis(delay_ms))], bound_s, "{delay_ms} ms");
        }
        assert!(BOUNDS_S.is_sorted());
    }
}
