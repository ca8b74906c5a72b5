//! What the requests that share a transaction have in common, whatever they do in it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::scope::{self, Scope};
use crate::error::failure::Failure;
use crate::idempotency::decision::Decision;
use crate::idempotency::operation::{ErrorOf, Operation};
use crate::idempotency::reply::Reply;
use crate::idempotency::request::IdempotentRequest;
use crate::idempotency::retries::Found;
use crate::idempotency::store::{Claim, Claimant};

use super::Engine;

/// A request of whatever operation.
pub(super) trait Calling<E>: Send + Sync {
    /// What it wants to claim.
    fn claimant(&self) -> &Claimant;

    /// The scope of the request.
    fn scope(&self) -> Option<&Arc<Scope>>;

    /// Counts a key that comes back.
    fn found(&self, decision: &Decision, age: Duration);

    /// The answer that a final error is.
    fn refusal(&self, claim: &Claim, error: &E) -> Result<Reply, Failure>;
}

/// A request of an operation.
pub(super) struct Caller<O: Operation> {
    pub engine: Engine<O::Host>,
    pub request: IdempotentRequest<O>,
    /// Time from which it has waited.
    pub asked: Instant,
    claimant: Claimant,
    scope: Option<Arc<Scope>>,
}

impl<O: Operation> Caller<O> {
    /// The request, from now on.
    pub fn of(engine: &Engine<O::Host>, request: &IdempotentRequest<O>) -> Self {
        let (claimant, scope) = (Engine::claimant(request), scope::current());
        Self { engine: engine.clone(), request: request.clone(), asked: Instant::now(), claimant, scope }
    }
}

impl<O: Operation> Calling<ErrorOf<O>> for Caller<O> {
    fn claimant(&self) -> &Claimant {
        &self.claimant
    }

    fn scope(&self) -> Option<&Arc<Scope>> {
        self.scope.as_ref()
    }

    fn found(&self, decision: &Decision, age: Duration) {
        self.engine.count_return(&self.request, Found::of(decision), age);
    }

    fn refusal(&self, claim: &Claim, error: &ErrorOf<O>) -> Result<Reply, Failure> {
        self.engine.inner.context(&self.request, claim, claim.created_at).problem(error)
    }
}
