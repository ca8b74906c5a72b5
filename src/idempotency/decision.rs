//! What to do about a key, by what is found under it.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::policy::{Enforcement, OnExpired, OnMismatch, Policy};
use super::store::{Answer, Life, Stored};

/// What to do about a key.
#[derive(Debug)]
pub enum Decision {
    /// It's new: claim it.
    Claim,
    /// It's free again: delete what is left, and claim it.
    ClaimAfresh,
    /// It's answered, with this.
    Replay(Arc<Answer>),
    /// It's another request's, but the policy says to replay that one's answer.
    ReplayDespiteMismatch(Arc<Answer>),
    /// It's another request's.
    Mismatch,
    /// It was answered too long ago.
    Expired,
    /// It's being worked on, or waits for an operator.
    Running { is_parked: bool },
    /// Nobody works on it any more: take it over, in the life that began at this time.
    TakeOver(DateTime<Utc>),
}

/// Decides what is to be done about a key for which `stored` was found. Checked in this order: free, other
/// request, expired, running.
pub fn decide(stored: Option<Stored>, policy: &Policy) -> Decision {
    let Some(stored) = stored else { return Decision::Claim };
    let is_free = match stored.life {
        Life::Forgotten => true,
        Life::Expired => policy.on_expired == OnExpired::Execute,
        _ => false,
    };
    if is_free {
        return Decision::ClaimAfresh;
    }
    let is_same = stored.is_same_request;
    // The answer for one charge is never given for another.
    let is_forgiven = policy.on_mismatch == OnMismatch::Replay && stored.is_same_path;
    if !is_same && !is_forgiven {
        return Decision::Mismatch;
    }
    match (stored.life, stored.answer) {
        (Life::Expired, _) => Decision::Expired,
        (_, Some(answer)) if is_same => Decision::Replay(answer),
        (_, Some(answer)) => Decision::ReplayDespiteMismatch(answer),
        // What was begun is finished as it was begun, so not by another request.
        (Life::Abandoned, None) if is_same => Decision::TakeOver(stored.created_at),
        (life, None) => Decision::Running { is_parked: life == Life::Parked },
    }
}

/// The end of one attempt at a request.
pub enum Attempt {
    /// It was executed just now.
    Executed(Arc<Answer>),
    /// It was executed before.
    Replayed(Arc<Answer>),
    /// Another one was executed before, whose answer has to do.
    ReplayedDespiteMismatch(Arc<Answer>),
    /// Another one was executed before.
    Mismatch,
    /// It was executed too long ago.
    Expired,
    /// It's being executed.
    Running { is_parked: bool },
    /// Any of the above, if the policy weren't just to observe.
    Observed(&'static str),
}

impl Attempt {
    /// What a key that isn't ours to claim or take over leads to.
    pub fn of(decision: Decision, enforcement: Enforcement) -> Self {
        if enforcement != Enforcement::Enforce {
            return Self::Observed(match decision {
                Decision::Replay(_) => "observed_would_replay",
                Decision::Mismatch | Decision::ReplayDespiteMismatch(_) => "observed_would_mismatch",
                Decision::Expired => "observed_would_expire",
                _ => "observed_would_conflict",
            });
        }
        match decision {
            Decision::Replay(answer) => Self::Replayed(answer),
            Decision::ReplayDespiteMismatch(answer) => Self::ReplayedDespiteMismatch(answer),
            Decision::Mismatch => Self::Mismatch,
            Decision::Expired => Self::Expired,
            Decision::Running { is_parked } => Self::Running { is_parked },
            Decision::Claim | Decision::ClaimAfresh | Decision::TakeOver(_) => {
                Self::Running { is_parked: false }
            }
        }
    }
}

/// The end of one look-up of a key.
pub enum Lookup<T> {
    /// It's ours, and this was done with it.
    Ours(T),
    /// It's not.
    NotOurs(Decision),
    /// Somebody else was faster, or hasn't committed yet: look again.
    Again,
}

impl<T> Lookup<T> {
    /// The same with what was done as `convert` makes it.
    pub fn map<U>(self, convert: impl FnOnce(T) -> U) -> Lookup<U> {
        match self {
            Self::Ours(done) => Lookup::Ours(convert(done)),
            Self::NotOurs(decision) => Lookup::NotOurs(decision),
            Self::Again => Lookup::Again,
        }
    }
}
