//! The progress of a request, for the answer to a client that gets no result.
//!
//! With a key in force, any failure can invite a retry: the key protects from a second execution. Without one
//! (the policy observes, or keys are off), an invitation is right only if the request certainly has no effect,
//! now or later. These can't be sure:
//!
//! * Its claim is committed: the recovery worker will finish it, whatever ended this attempt (the processor, a
//!   lost claim, a bug).
//! * The deadline has passed, or the database has been silent for too long: the work goes on in the background.
//! * The connection was lost while a commit was under way ([`is_outcome_open`](crate::storage::db)). The engine also doesn't repeat
//!   such a transaction by itself: it couldn't tell its own first claim from another request's.
//!
//! Everything else has done nothing: no connection was free, the transaction was rolled back, the request was
//! refused.

use std::sync::{Mutex, PoisonError};

use uuid::Uuid;

use super::store::Claim;

/// The progress of a request under one key.
#[derive(Debug, Default)]
pub(super) struct Progress(Mutex<State>);

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// The resource of the last claim, even if that was rolled back.
    resource_id: Option<Uuid>,
    is_claimed: bool,
    has_found_key: bool,
}

impl Progress {
    fn change(&self, change: impl FnOnce(&mut State)) {
        // Each change is atomic, so a panic elsewhere can't have left a partial one.
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn state(&self) -> State {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a claim in a transaction that is still open.
    pub fn claiming(&self, claim: &Claim) {
        self.change(|state| state.resource_id = claim.resource_id);
    }

    /// Notes a committed claim.
    pub fn claimed(&self, claim: &Claim) {
        self.change(|state| (state.resource_id, state.is_claimed) = (claim.resource_id, true));
    }

    /// The resource of the last claim, even if that was rolled back.
    pub fn resource_id(&self) -> Option<Uuid> {
        self.state().resource_id
    }

    /// Whether the request has a committed claim.
    pub fn is_claimed(&self) -> bool {
        self.state().is_claimed
    }

    /// Notes that the request has found its key in use. Returns whether it's the first time: a request that waits
    /// finds it again and again.
    pub fn finds_key(&self) -> bool {
        let mut is_first = false;
        self.change(|state| is_first = !std::mem::replace(&mut state.has_found_key, true));
        is_first
    }
}
