//! Requests that call the processor, and share the transactions before and after the call.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use chrono::{DateTime, Utc};
use diesel::PgConnection;

use crate::base::scope::{self, Scope};
use crate::error::failure::Failure;
use crate::idempotency::decision::Attempt;
use crate::idempotency::host::Host;
use crate::idempotency::operation::{Commit, ErrorOf, ExternalOperation};
use crate::idempotency::reply::Reply;
use crate::idempotency::request::IdempotentRequest;
use crate::idempotency::store::{Answer, Claim};

use super::Engine;
use super::caller::{Caller, Calling};
use super::outcome::Patience;
use super::sharing::{BeginResult, Beginning, Begun, Finish};

/// The start of an external request.
pub(super) enum Start<R> {
    /// The request owns its key. The reservation is here, or has yet to be read.
    Ours(Claim, Option<R>),
    /// The request was refused for good.
    Refused(Arc<Answer>),
}

impl<H: Host> Engine<H> {
    /// Claims the key and reserves in a transaction that is shared. `None` if the request has to have its own.
    pub(super) async fn begin_sharing<O: ExternalOperation<Host = H>>(
        &self,
        request: &IdempotentRequest<O>,
    ) -> Result<Option<Result<Start<O::Reservation>, Attempt>>, H::Error> {
        let reserved = Reserved::<O>::default();
        let call = || {
            let (caller, reserved) = (Caller::of(self, request), Arc::clone(&reserved));
            Box::new(Begin { caller, reserved }) as Box<dyn Beginning<H::Error>>
        };
        let begun = self.begin_shared(request, call).await?;
        Ok(begun.map(|begun| {
            begun.map(|begun| match begun {
                Begun::Answered(answer) => Start::Refused(answer),
                Begun::Claimed(claim) => Start::Ours(claim, set(&reserved, None)),
            })
        }))
    }

    /// Writes the effects of the outcome in a transaction that is shared. `None` if the request has to have its own.
    pub(super) async fn commit_sharing<O: ExternalOperation<Host = H>>(
        &self,
        request: &IdempotentRequest<O>,
        claim: &Claim,
        settled: &Arc<(O::Reservation, O::Outcome)>,
    ) -> Result<Option<Arc<Answer>>, H::Error> {
        // What has failed before would most likely fail again.
        if !O::DESCRIPTOR.shares_transactions || claim.attempt > 1 {
            return Ok(None);
        }
        let (engine, request, claim) = (self.clone(), request.clone(), claim.clone());
        let (merchant, settled, scope) = (claim.merchant, Arc::clone(settled), scope::current());
        self.finish_shared(merchant, Box::new(End { engine, request, claim, scope, settled })).await
    }
}

/// The reservation, once it's made.
type Reserved<O> = Arc<Mutex<Option<<O as ExternalOperation>::Reservation>>>;

/// Sets the reservation. Returns the one before.
fn set<R>(reserved: &Mutex<Option<R>>, reservation: Option<R>) -> Option<R> {
    // Each change is whole, so a panic elsewhere can't have left a partial one.
    std::mem::replace(&mut *reserved.lock().unwrap_or_else(PoisonError::into_inner), reservation)
}

/// The first half of an external request.
struct Begin<O: ExternalOperation> {
    caller: Caller<O>,
    reserved: Reserved<O>,
}

impl<O: ExternalOperation> Beginning<ErrorOf<O>> for Begin<O> {
    fn caller(&self) -> &dyn Calling<ErrorOf<O>> {
        &self.caller
    }

    fn run_alone(&self, conn: &mut PgConnection) -> BeginResult<ErrorOf<O>> {
        let begun = self.caller.engine.look_external(conn, &self.caller.request, Patience::Little)?;
        Ok(begun.map(|start| match start {
            Start::Refused(answer) => Begun::Answered(answer),
            Start::Ours(claim, reservation) => {
                set(&self.reserved, reservation);
                Begun::Claimed(claim)
            }
        }))
    }

    fn work(&self, conn: &mut PgConnection, claim: &Claim) -> Result<Option<Reply>, ErrorOf<O>> {
        let Caller { engine, request, .. } = &self.caller;
        request.progress.claiming(claim);
        let context = engine.inner.context(request, claim, claim.created_at);
        let reservation = request.operation.reserve(conn, &context)?;
        request.treatment.check_precondition()?;
        set(&self.reserved, Some(reservation));
        Ok(None)
    }

    fn begun(&self, _claimed: Instant) {
        let Caller { engine, asked, .. } = &self.caller;
        engine.inner.metrics.claim_seconds.observe(asked.elapsed().as_secs_f64());
    }
}

/// The second half of an external request.
struct End<O: ExternalOperation> {
    engine: Engine<O::Host>,
    request: IdempotentRequest<O>,
    claim: Claim,
    scope: Option<Arc<Scope>>,
    settled: Arc<(O::Reservation, O::Outcome)>,
}

impl<O: ExternalOperation> Finish<ErrorOf<O>> for End<O> {
    fn claim(&self) -> &Claim {
        &self.claim
    }

    fn request_id(&self) -> &str {
        &self.request.envelope.request_id
    }

    fn scope(&self) -> Option<&Arc<Scope>> {
        self.scope.as_ref()
    }

    fn run_alone(&self, conn: &mut PgConnection) -> Result<Arc<Answer>, ErrorOf<O>> {
        self.engine.commit_alone(conn, &self.request, &self.claim, None, &self.settled, Patience::Little)
    }

    fn work(&self, conn: &mut PgConnection, now: DateTime<Utc>) -> Result<Reply, ErrorOf<O>> {
        let context = self.engine.inner.context(&self.request, &self.claim, now);
        let (reservation, outcome) = &*self.settled;
        match self.request.operation.commit(conn, &context, reservation, outcome)? {
            Commit::Written(reply) => Ok(reply),
            Commit::Effects(..) => {
                Err(Failure::internal("only a batched operation can return effects").into())
            }
        }
    }

    fn refusal(&self, now: DateTime<Utc>, error: &ErrorOf<O>) -> Result<Reply, Failure> {
        self.engine.inner.context(&self.request, &self.claim, now).problem(error)
    }
}
