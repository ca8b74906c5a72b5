//! The engine's decision on a key, by the row that is found for it.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::policy::{Enforcement, OnExpired, OnMismatch, Policy};
use super::store::{Answer, KeyState, StoredKey};

/// The decision on a key.
#[derive(Debug)]
pub enum Decision {
    /// The key is new: claim it.
    Claim,
    /// The key is free again: delete its row, and claim it.
    ClaimAfresh,
    /// The request was answered: replay this.
    Replay(Arc<Answer>),
    /// The key is another request's, but the policy says to replay that answer.
    ReplayDespiteMismatch(Arc<Answer>),
    /// The key is another request's.
    Mismatch,
    /// The key has expired.
    Expired,
    /// The request is being executed, or waits for an operator.
    Running { is_parked: bool },
    /// The request is abandoned: take it over, in the life of the key that began at this time.
    TakeOver(DateTime<Utc>),
}

/// Decides on a key for which `stored` was found. Checks in this order: free, other request, expired,
/// running.
pub fn decide(stored: Option<StoredKey>, policy: &Policy) -> Decision {
    let Some(stored) = stored else { return Decision::Claim };
    let is_free = match stored.state {
        KeyState::Forgotten => true,
        KeyState::Expired => policy.on_expired == OnExpired::Execute,
        _ => false,
    };
    if is_free {
        return Decision::ClaimAfresh;
    }
    let is_same = stored.is_same_request;
    // The answer for one charge never goes to another.
    let is_forgiven = policy.on_mismatch == OnMismatch::Replay && stored.is_same_path;
    if !is_same && !is_forgiven {
        return Decision::Mismatch;
    }
    match (stored.state, stored.answer) {
        (KeyState::Expired, _) => Decision::Expired,
        (_, Some(answer)) if is_same => Decision::Replay(answer),
        (_, Some(answer)) => Decision::ReplayDespiteMismatch(answer),
        // Only the same request may finish what was begun.
        (KeyState::Abandoned, None) if is_same => Decision::TakeOver(stored.created_at),
        (state, None) => Decision::Running { is_parked: state == KeyState::Parked },
    }
}

/// Result of one attempt at a request.
pub enum Attempt {
    /// The request was executed just now.
    Executed(Arc<Answer>),
    /// The request was executed before.
    Replayed(Arc<Answer>),
    /// Another request was executed before, whose answer is replayed.
    ReplayedDespiteMismatch(Arc<Answer>),
    /// Another request was executed before.
    Mismatch,
    /// The key has expired.
    Expired,
    /// The request is being executed.
    Running { is_parked: bool },
    /// The decision that the policy only observes.
    Observed(&'static str),
}

impl Attempt {
    /// The result for a key that can be neither claimed nor taken over.
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

/// Result of one look-up of a key.
pub enum Lookup<T> {
    /// The request owns the key, with this result.
    Ours(T),
    /// The request doesn't own the key.
    NotOurs(Decision),
    /// Another request was faster, or hasn't committed yet: look again.
    Again,
}

impl<T> Lookup<T> {
    /// Converts the result with `convert`.
    pub fn map<U>(self, convert: impl FnOnce(T) -> U) -> Lookup<U> {
        match self {
            Self::Ours(done) => Lookup::Ours(convert(done)),
            Self::NotOurs(decision) => Lookup::NotOurs(decision),
            Self::Again => Lookup::Again,
        }
    }
}
