//! Requests that call the processor, in three steps. The middle one has no transaction, and after a crash
//! another attempt may repeat it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use diesel::{Connection, PgConnection};
use futures_util::FutureExt;
use serde_json::Value;

use crate::base::faults;
use crate::base::preconditions::Precondition;
use crate::base::scope;
use crate::base::spans::{Kind, Span};
use crate::error::failure::{AsFailure, Failure};
use crate::idempotency::batching::ClaimResult;
use crate::idempotency::context::Context;
use crate::idempotency::decision::{Attempt, Decision, Lookup, decide};
use crate::idempotency::envelope::Envelope;
use crate::idempotency::host::{Host, HostError};
use crate::idempotency::operation::{
    BatchedOperation, Commit, Effects, ErrorOf, ExternalOperation, Operation,
};
use crate::idempotency::policy::Policy;
use crate::idempotency::reply::Reply;
use crate::idempotency::request::IdempotentRequest;
use crate::idempotency::retries::Found;
use crate::idempotency::store::{self, Answer, Claim, Completed, Completion, Setback, Taker};
use crate::storage::party::{self, Party};
use crate::storage::shape;

use super::outcome::{Patience, not_to_be_repeated, transact, transaction};
use super::shared_external::Start;
use super::sharing::{Half, LEASE_AGE_MAX};
use super::{Engine, Response, is_claim_lost};

/// The result of [`BatchedOperation::reservation_from`].
type ReservationResult<O> = Result<<O as ExternalOperation>::Reservation, ErrorOf<O>>;
/// The result of [`BatchedOperation::effects`].
type EffectsResult<O> = Result<(Effects, Reply), ErrorOf<O>>;
/// [`BatchedOperation::effects`].
type EffectsHook<O> = fn(
    &O,
    &Context<'_, <O as Operation>::Host>,
    &<O as ExternalOperation>::Reservation,
    &<O as ExternalOperation>::Outcome,
) -> EffectsResult<O>;

/// [`BatchedOperation::note`].
type NoteHook<O> = fn(&O, &Context<'_, <O as Operation>::Host>, Reply, Value) -> Reply;

/// The hooks of a [`BatchedOperation`], for code that serves other external operations too.
pub(super) struct BatchHooks<O: ExternalOperation> {
    needs_reservation: fn(&O, &Policy) -> bool,
    reservation_from: fn(&O, Option<Value>) -> ReservationResult<O>,
    effects: EffectsHook<O>,
    note: NoteHook<O>,
}

impl<O: ExternalOperation> Clone for BatchHooks<O> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<O: ExternalOperation> Copy for BatchHooks<O> {}

impl<O: BatchedOperation> BatchHooks<O> {
    const OF: Self = Self {
        needs_reservation: O::needs_reservation,
        reservation_from: O::reservation_from,
        effects: O::effects,
        note: O::note,
    };
}

impl<H: Host> Engine<H> {
    /// Runs an external operation: committed claim, processor call, finish in one fenced transaction.
    ///
    /// Goes on after the client hangs up, so that the client's retry finds an answer.
    ///
    /// Errors, in the order checked: `database_unavailable`, `idempotency_key_reused`,
    /// `idempotency_key_expired`, `idempotency_request_in_progress`, `processor_unavailable`, the operation's
    /// errors that aren't final, `transient_conflict`. The final ones are answers; among them, `precondition_failed`
    /// comes after those of the reservation. After each of them but the second and third, the
    /// client can send the same request again, and it goes on where this one stopped. If keys have no effect,
    /// it can't: `outcome_unknown` comes in place of each that leaves open whether the request takes effect.
    ///
    /// Locks, in the finishing transaction: the key's row, then the operation's locks.
    pub async fn execute_external<O: ExternalOperation<Host = H>>(
        &self,
        request: IdempotentRequest<O>,
    ) -> Result<Response, H::Error> {
        self.drive_external(request, None).await
    }

    /// Runs an external operation whose requests may share statements. Otherwise like
    /// [`execute_external`](Self::execute_external).
    pub async fn execute_batched<O: BatchedOperation<Host = H>>(
        &self,
        request: IdempotentRequest<O>,
    ) -> Result<Response, H::Error> {
        self.drive_external(request, Some(BatchHooks::OF)).await
    }

    async fn drive_external<O: ExternalOperation<Host = H>>(
        &self,
        request: IdempotentRequest<O>,
        batch: Option<BatchHooks<O>>,
    ) -> Result<Response, H::Error> {
        self.drive(request, |engine, request| async move {
            let caller = Party::Caller(request.envelope.merchant);
            // Kilobytes, which each wrapper around it would move.
            let attempt = Box::pin(async move { engine.try_external(request, batch).await });
            let attempt = party::within(caller, attempt);
            tokio::spawn(scope::inherited(attempt))
                .await
                .unwrap_or_else(|error| Err(Failure::internal(error).into()))
        })
        .await
    }

    /// Executes an external request, or finds out why it can't.
    async fn try_external<O: ExternalOperation<Host = H>>(
        &self,
        request: IdempotentRequest<O>,
        batch: Option<BatchHooks<O>>,
    ) -> Result<Attempt, H::Error> {
        let claiming = Span::within(&request.envelope.trace, "claim");
        let begun = self.begin(&request, batch).await?;
        claiming.end();
        let begun = match begun {
            Ok(begun) => begun,
            Err(attempt) => return Ok(attempt),
        };
        let (claim, reservation) = match begun {
            Start::Refused(answer) => {
                self.executed(&request, 1);
                return Ok(Attempt::Executed(answer));
            }
            Start::Ours(claim, reservation) => (claim, reservation),
        };
        request.progress.claimed(&claim);
        if claim.attempt == 1 && claim.generation > Some(0) {
            // The reaper has deleted the key since, so that its age isn't known: more than all that it's remembered for.
            self.count_return(
                &request,
                Some(Found::Free),
                request.treatment.policy.remembered() + Duration::from_secs(1),
            );
        }
        scope::with(|scope| scope.set_original(&claim.trace));
        let _attempt = self.attempt_span(&request.envelope, &claim);
        request.pass.leave_queue();
        // What has begun should end: it doesn't wait behind this merchant's other requests.
        party::belongs_to(Party::First);
        faults::reach("after_claim");
        match self.call_and_commit(&request, &claim, reservation, batch).await {
            Ok(answer) => {
                self.executed(&request, claim.attempt);
                faults::reach("after_commit_before_response");
                Ok(Attempt::Executed(answer))
            }
            // The lease expired and another attempt was faster. The work here was rolled back, and the client
            // gets the winner's answer, if there is one yet.
            Err(error) if is_claim_lost(&error) => self.winners_answer(&request).await,
            Err(error) => {
                self.give_up(&claim, &request.envelope.request_id, &error, Taker::Client).await;
                Err(error)
            }
        }
    }

    /// The span of an attempt at what another request has begun in another trace. An attempt of the request's own is its
    /// request's span.
    fn attempt_span(&self, envelope: &Envelope, claim: &Claim) -> Option<Span> {
        if claim.trace.trace_id() == envelope.trace.trace_id() {
            return None;
        }
        let mut span = Span::of(&claim.trace, "take over", Kind::Internal);
        span.link(&envelope.trace);
        span.set("oncepay.attempt", || Some(claim.attempt.to_string()));
        Some(span)
    }

    /// Releases the lease after a failure. Returns whether the request is parked now.
    pub(super) async fn give_up(
        &self,
        claim: &Claim,
        request_id: &str,
        error: &H::Error,
        taker: Taker,
    ) -> bool {
        let recovery = self.inner.settings.timing.recovery;
        let setback = Setback {
            error: error.code(),
            taker,
            recover_in: recovery.backoff(claim.recoveries),
            pause: match error.failure() {
                Some(Failure::ProcessorUnavailable { retry_after, .. }) => *retry_after,
                _ => None,
            },
            attempts_max: recovery.attempts_max,
        };
        let released = claim.clone();
        let release = self.inner.db.run(move |conn| store::release(conn, &released, setback)).await;
        self.inner.waiters.freed(claim.merchant, &claim.key);
        release.unwrap_or_else(|error: Failure| {
            // Then the lease has to expire by itself.
            error.log(request_id);
            false
        })
    }

    /// Finds the answer, or claims the key and reserves, or takes the key over.
    async fn begin<O: ExternalOperation<Host = H>>(
        &self,
        request: &IdempotentRequest<O>,
        batch: Option<BatchHooks<O>>,
    ) -> Result<Result<Start<O::Reservation>, Attempt>, H::Error> {
        if let Some(batch) = batch
            && let Some(begun) = self.begin_batched(request, batch).await?
        {
            return Ok(begun);
        }
        let (engine, work) = (self.clone(), request.clone());
        let enforcement = request.treatment.enforcement;
        let alone =
            self.looking_again(enforcement, move |conn| engine.look_external(conn, &work, Patience::Much));
        self.alone_or_shared::<O, _>(Half::First, request, self.begin_sharing(request), alone).await
    }

    /// Claims the key in a batch, if the request needs no more than that. `None` if it needs more.
    async fn begin_batched<O: ExternalOperation<Host = H>>(
        &self,
        request: &IdempotentRequest<O>,
        batch: BatchHooks<O>,
    ) -> Result<Option<Result<Start<O::Reservation>, Attempt>>, H::Error> {
        let policy = &request.treatment.policy;
        let batchers = self.inner.batchers.get(O::DESCRIPTOR.name);
        let needs_more = request.treatment.precondition != Precondition::Holds
            || (batch.needs_reservation)(&request.operation, policy);
        let Some(batchers) = batchers.filter(|_| !needs_more && !shape::is_distributed()) else {
            return Ok(None);
        };
        let started = Instant::now();
        let claimed = match batchers
            .claims
            .call(Party::Caller(request.envelope.merchant), Self::claimant(request))
            .await
        {
            // With a key, the next look tells whether the claim was committed.
            Err(Failure::OutcomeUnknown { .. }) if request.is_protected() => return Ok(None),
            claimed => claimed?,
        };
        Ok(match claimed.transpose()? {
            Some(ClaimResult::ClaimWithData(claim, read)) => {
                self.inner.metrics.claim_seconds.observe(started.elapsed().as_secs_f64());
                // A reservation that can't be parsed is read again later, and fails then.
                Some(Ok(Start::Ours(*claim, (batch.reservation_from)(&request.operation, read).ok())))
            }
            Some(
                ClaimResult::Found(Decision::ClaimAfresh | Decision::TakeOver(_), _) | ClaimResult::Contended,
            )
            | None => None,
            Some(ClaimResult::Found(decision, age)) => {
                self.count_return(request, Found::of(&decision), age);
                self.inner.metrics.claim_seconds.observe(started.elapsed().as_secs_f64());
                Some(Err(Attempt::of(decision, request.treatment.enforcement)))
            }
        })
    }

    /// Looks the key of an external request up once.
    pub(super) fn look_external<O: ExternalOperation<Host = H>>(
        &self,
        conn: &mut PgConnection,
        request: &IdempotentRequest<O>,
        patience: Patience,
    ) -> Result<Lookup<Start<O::Reservation>>, H::Error> {
        let started = Instant::now();
        let begun = match self.look_up(conn, request)? {
            decision @ (Decision::Claim | Decision::ClaimAfresh) => {
                let afresh = matches!(decision, Decision::ClaimAfresh);
                match transact(conn, request, patience, |conn| self.claim_and_reserve(conn, request, afresh))
                {
                    Err(error) if error.is_final() => {
                        Ok(self.refuse(conn, request, afresh, &error)?.map(Start::Refused))
                    }
                    begun => begun,
                }
            }
            // Also while observing: the processor may have acted, and the recovery worker would finish the
            // first request beside a second one.
            Decision::TakeOver(created_at) => {
                let taken = self.take_over(conn, request, created_at)?;
                Ok(taken.map_or(Lookup::Again, |claim| Lookup::Ours(Start::Ours(claim, None))))
            }
            decision => return Ok(Lookup::NotOurs(decision)),
        }?;
        self.inner.metrics.claim_seconds.observe(started.elapsed().as_secs_f64());
        Ok(begun)
    }

    fn take_over<O: Operation<Host = H>>(
        &self,
        conn: &mut PgConnection,
        request: &IdempotentRequest<O>,
        created_at: DateTime<Utc>,
    ) -> Result<Option<Claim>, H::Error> {
        faults::reach("before_takeover");
        let (envelope, lease) = (&request.envelope, self.inner.settings.timing.lease);
        // A takeover whose answer is lost would look like another request's, beside which a request may be executed
        // again while the policy observes.
        let claim = store::take_over(conn, envelope, created_at, Taker::Client, lease)
            .map_err(|error| not_to_be_repeated(request, error.into()))?;
        match &claim {
            Some(_) => self.inner.metrics.takeovers.inc(),
            None => faults::reach("after_conflict"),
        }
        Ok(claim)
    }

    /// Claims a key and reserves what its request needs.
    fn claim_and_reserve<O: ExternalOperation<Host = H>>(
        &self,
        conn: &mut PgConnection,
        request: &IdempotentRequest<O>,
        afresh: bool,
    ) -> Result<Lookup<Start<O::Reservation>>, H::Error> {
        let started = Instant::now();
        let Some(claim) = self.claim(conn, request, afresh)? else {
            return Ok(Lookup::Again);
        };
        let context = self.inner.context(request, &claim, claim.created_at);
        let reservation = request.operation.reserve(conn, &context)?;
        request.treatment.check_precondition()?;
        self.renew_if_old(conn, &claim, started)?;
        Ok(Lookup::Ours(Start::Ours(claim, Some(reservation))))
    }

    fn renew_if_old(&self, conn: &mut PgConnection, claim: &Claim, since: Instant) -> Result<(), H::Error> {
        if since.elapsed() > LEASE_AGE_MAX {
            store::renew(conn, claim, self.inner.settings.timing.lease)?;
        }
        Ok(())
    }

    /// Calls the processor and writes the effects. Without `reservation`, reads that first.
    pub(super) async fn call_and_commit<O: ExternalOperation<Host = H>>(
        &self,
        request: &IdempotentRequest<O>,
        claim: &Claim,
        reservation: Option<O::Reservation>,
        batch: Option<BatchHooks<O>>,
    ) -> Result<Arc<Answer>, H::Error> {
        let reservation = match reservation {
            Some(reservation) => reservation,
            None => self.resume(request, claim).await?,
        };
        faults::reach("before_processor");
        let context = self.inner.context(request, claim, claim.created_at);
        let mut calling = Span::within(&claim.trace, "call processor");
        calling.set("oncepay.attempt", || Some(claim.attempt.to_string()));
        let calls = request.operation.call_processor(&context, &reservation);
        // Catches a panic, so that the lease is released as after any other failure.
        let timeout = self.inner.settings.timing.processor_timeout;
        let outcome = tokio::time::timeout(timeout, AssertUnwindSafe(calls).catch_unwind())
            .await
            .map_err(|_| Failure::ProcessorUnavailable {
                cause: "the processor took too long".into(),
                retry_after: None,
            })?
            .map_err(|_| Failure::internal("the operation panicked"))??;
        calling.end();
        faults::reach("after_processor");

        let _committing = Span::within(&claim.trace, "commit");
        let started = Instant::now();
        let settled = Arc::new((reservation, outcome));
        let alone = self.commit(request, claim, batch, Arc::clone(&settled));
        let committed = match batch {
            Some(batch) => match self.commit_batched(request, claim, batch, &settled.0, &settled.1).await? {
                Some(answer) => Ok(answer),
                None => alone.await,
            },
            None => {
                let shared = self.commit_sharing(request, claim, &settled);
                self.alone_or_shared::<O, _>(Half::Second, request, shared, alone).await
            }
        };
        match &committed {
            Ok(_) => self.inner.metrics.finish_seconds.observe(started.elapsed().as_secs_f64()),
            Err(error) if is_claim_lost(error) => self.inner.metrics.fenced_commits.inc(),
            Err(_) => {}
        }
        committed
    }

    /// Writes the effects of the outcome in a batch. `None` if the request has to be completed alone: it has failed before,
    /// another transaction has locked what it needs, or another attempt has taken over.
    async fn commit_batched<O: ExternalOperation<Host = H>>(
        &self,
        request: &IdempotentRequest<O>,
        claim: &Claim,
        batch: BatchHooks<O>,
        reservation: &O::Reservation,
        outcome: &O::Outcome,
    ) -> Result<Option<Arc<Answer>>, H::Error> {
        // A request that has failed before could fail the batch. And a fault between writing and committing
        // needs a transaction of its own.
        let is_apart = claim.attempt > 1 || faults::is_set("in_finish") || shape::is_distributed();
        let Some(batchers) = self.inner.batchers.get(O::DESCRIPTOR.name).filter(|_| !is_apart) else {
            return Ok(None);
        };
        let context = self.inner.context(request, claim, claim.now());
        // An error or a panic repeats in `commit`, which handles it.
        let effects = || (batch.effects)(&request.operation, &context, reservation, outcome);
        let Ok(Ok((effects, reply))) = catch_unwind(AssertUnwindSafe(effects)) else {
            return Ok(None);
        };
        let (claim, request_id) = (claim.clone(), request_id(request).to_owned());
        let completion = Completion { claim, request_id, effects, reply };
        let completed =
            match batchers.completions.call(Party::Caller(completion.claim.merchant), completion).await {
                // Alone it finds out: a completion that was committed has ended the claim.
                Err(Failure::OutcomeUnknown { .. }) => None,
                completed => completed?.flatten(),
            };
        Ok(completed.map(|completed| noted(request, &context, Some(batch), completed)))
    }

    /// Writes the effects in a transaction of their own.
    async fn commit<O: ExternalOperation<Host = H>>(
        &self,
        request: &IdempotentRequest<O>,
        claim: &Claim,
        batch: Option<BatchHooks<O>>,
        settled: Arc<(O::Reservation, O::Outcome)>,
    ) -> Result<Arc<Answer>, H::Error> {
        let (engine, request, claim) = (self.clone(), request.clone(), claim.clone());
        self.inner
            .db
            .run_retrying(move |conn| {
                engine.commit_alone(conn, &request, &claim, batch, &settled, Patience::Much)
            })
            .await
    }

    /// Writes the effects in a transaction of their own, once.
    pub(super) fn commit_alone<O: ExternalOperation<Host = H>>(
        &self,
        conn: &mut PgConnection,
        request: &IdempotentRequest<O>,
        claim: &Claim,
        batch: Option<BatchHooks<O>>,
        (reservation, outcome): &(O::Reservation, O::Outcome),
        patience: Patience,
    ) -> Result<Arc<Answer>, H::Error> {
        let committed = transaction::<_, H::Error>(conn, patience, |conn| {
            let now = store::lock(conn, claim)?;
            let context = self.inner.context(request, claim, now);
            let answer = match request.operation.commit(conn, &context, reservation, outcome)? {
                Commit::Written(reply) => Arc::new(store::complete(conn, claim, reply, request_id(request))?),
                Commit::Effects(effects, reply) => {
                    let batching = O::DESCRIPTOR
                        .batching
                        .ok_or_else(|| Failure::internal("only a batched operation can return effects"))?;
                    let (claim, request_id) = (claim.clone(), request_id(request).to_owned());
                    let completion = Completion { claim, request_id, effects, reply };
                    let completed = store::complete_with_effects(conn, completion, batching)?;
                    noted(request, &context, batch, completed)
                }
            };
            faults::reach("in_finish");
            Ok(answer)
        });
        match committed {
            // See `refuse`; here the claim is held anyway.
            Err(error) if HostError::is_final(&error) => transaction(conn, patience, |conn| {
                let now = store::lock(conn, claim)?;
                let reply = self.inner.context(request, claim, now).problem(&error)?;
                Ok(Arc::new(store::complete(conn, claim, reply, request_id(request))?))
            }),
            committed => committed,
        }
    }

    /// Reads the reservation of an earlier attempt.
    async fn resume<O: ExternalOperation<Host = H>>(
        &self,
        request: &IdempotentRequest<O>,
        claim: &Claim,
    ) -> Result<O::Reservation, H::Error> {
        let (engine, request, claim) = (self.clone(), request.clone(), claim.clone());
        let taken = Instant::now();
        self.inner
            .db
            .run_retrying(move |conn| {
                conn.transaction(|conn| {
                    let context = engine.inner.context(&request, &claim, claim.created_at);
                    let reservation = request.operation.resume(conn, &context)?;
                    engine.renew_if_old(conn, &claim, taken)?;
                    Ok(reservation)
                })
            })
            .await
    }

    /// Reads the result of the attempt that took our claim over.
    async fn winners_answer<O: ExternalOperation<Host = H>>(
        &self,
        request: &IdempotentRequest<O>,
    ) -> Result<Attempt, H::Error> {
        let looking = Arc::clone(&request.envelope);
        let stored = self.inner.db.run_retrying(move |conn| Self::find(conn, &looking)).await?;
        Ok(match decide(stored, &request.treatment.policy) {
            Decision::Replay(answer) => Attempt::Replayed(answer),
            _ => Attempt::Running { is_parked: false },
        })
    }
}

/// The answer to a request that was completed, with what else its first client is told.
fn noted<O: ExternalOperation>(
    request: &IdempotentRequest<O>,
    context: &Context<'_, O::Host>,
    batch: Option<BatchHooks<O>>,
    completed: Completed,
) -> Arc<Answer> {
    let Completed { mut answer, note } = completed;
    if let (Some(batch), Some(found)) = (batch, note) {
        answer.reply = (batch.note)(&request.operation, context, answer.reply, found);
    }
    Arc::new(answer)
}

fn request_id<O>(request: &IdempotentRequest<O>) -> &str {
    &request.envelope.request_id
}
