//! Requests that change only our own database: claim, work and answer in one transaction.

use std::sync::Arc;
use std::time::Instant;

use diesel::PgConnection;

use crate::base::faults;
use crate::base::spans::Span;
use crate::error::failure::Failure;
use crate::idempotency::decision::{Attempt, Decision, Lookup};
use crate::idempotency::host::{Host, HostError};
use crate::idempotency::operation::{ErrorOf, LocalOperation};
use crate::idempotency::reply::Reply;
use crate::idempotency::request::IdempotentRequest;
use crate::idempotency::store::{self, Answer, Claim};

use super::caller::{Caller, Calling};
use super::outcome::{Patience, transact};
use super::sharing::{BeginResult, Beginning, Begun, Half};
use super::{Engine, Response};

impl<H: Host> Engine<H> {
    /// Runs a local operation: claim, work and answer in one transaction.
    ///
    /// Errors, in the order checked: `database_unavailable`, `idempotency_key_reused`,
    /// `idempotency_key_expired`, `idempotency_request_in_progress`, the operation's errors that aren't
    /// final, `transient_conflict`; `outcome_unknown` in place of each that leaves open whether the request takes
    /// effect, if keys have no effect. The final ones are answers; among them, `precondition_failed` comes last.
    ///
    /// Locks: an advisory lock on (merchant, key), then the operation's locks.
    pub async fn execute_local<O: LocalOperation<Host = H>>(
        &self,
        mut request: IdempotentRequest<O>,
    ) -> Result<Response, H::Error> {
        request.calls_processor = false;
        self.drive(request, |engine, request| async move { engine.try_local(request).await }).await
    }

    /// Executes a local request, or finds out why it can't.
    async fn try_local<O: LocalOperation<Host = H>>(
        &self,
        request: IdempotentRequest<O>,
    ) -> Result<Attempt, H::Error> {
        let _executing = Span::within(&request.envelope.trace, "execute");
        let (engine, work) = (self.clone(), request.clone());
        let alone = self.looking_again(request.treatment.enforcement, move |conn| {
            engine.execute_in_transaction(conn, &work, Patience::Much)
        });
        let shared = self.execute_shared(&request);
        let answer = match self.alone_or_shared::<O, _>(Half::First, &request, shared, alone).await? {
            Ok(answer) => answer,
            Err(attempt) => return Ok(attempt),
        };
        self.executed(&request, 1);
        faults::reach("local_after_commit_before_response");
        Ok(Attempt::Executed(answer))
    }

    /// Executes a local request in a transaction that it shares with others. `None` if it has to have its own.
    async fn execute_shared<O: LocalOperation<Host = H>>(
        &self,
        request: &IdempotentRequest<O>,
    ) -> Result<Option<Result<Arc<Answer>, Attempt>>, H::Error> {
        let call = || Box::new(All(Caller::of(self, request))) as Box<dyn Beginning<H::Error>>;
        Ok(match self.begin_shared(request, call).await? {
            Some(Ok(Begun::Answered(answer))) => Some(Ok(answer)),
            Some(Ok(Begun::Claimed(_))) => {
                return Err(Failure::internal("a local request was claimed and not answered").into());
            }
            Some(Err(attempt)) => Some(Err(attempt)),
            None => None,
        })
    }

    /// Runs one attempt of a local request.
    fn execute_in_transaction<O: LocalOperation<Host = H>>(
        &self,
        conn: &mut PgConnection,
        request: &IdempotentRequest<O>,
        patience: Patience,
    ) -> Result<Lookup<Arc<Answer>>, H::Error> {
        let started = Instant::now();
        let envelope = &request.envelope;
        let decision = self.look_up(conn, request)?;
        if !matches!(decision, Decision::Claim | Decision::ClaimAfresh) {
            // Local operations never commit an unfinished claim, so there is nothing to take over.
            return Ok(Lookup::NotOurs(decision));
        }
        let afresh = matches!(decision, Decision::ClaimAfresh);
        let executed = transact(conn, request, patience, |conn| {
            let Some(claim) = self.claim(conn, request, afresh)? else {
                return Ok(Lookup::Again);
            };
            self.inner.metrics.claim_seconds.observe(started.elapsed().as_secs_f64());
            let claimed = Instant::now();
            faults::reach("local_after_claim");
            let reply = self.work(conn, request, &claim)?;
            let answer = Arc::new(store::complete(conn, &claim, reply, &envelope.request_id)?);
            faults::reach("local_before_commit");
            self.inner.metrics.finish_seconds.observe(claimed.elapsed().as_secs_f64());
            Ok::<_, H::Error>(Lookup::Ours(answer))
        });
        match executed {
            Err(error) if error.is_final() => self.refuse(conn, request, afresh, &error),
            executed => executed,
        }
    }

    /// Does the work of a local request, in the transaction of its claim.
    fn work<O: LocalOperation<Host = H>>(
        &self,
        conn: &mut PgConnection,
        request: &IdempotentRequest<O>,
        claim: &Claim,
    ) -> Result<Reply, H::Error> {
        let context = self.inner.context(request, claim, claim.created_at);
        let reply = request.operation.execute(conn, &context)?;
        if reply.status < 300 {
            request.treatment.check_precondition()?;
        }
        Ok(reply)
    }
}

/// All of a local request that shares a transaction.
struct All<O: LocalOperation>(Caller<O>);

impl<O: LocalOperation> Beginning<ErrorOf<O>> for All<O> {
    fn caller(&self) -> &dyn Calling<ErrorOf<O>> {
        &self.0
    }

    fn run_alone(&self, conn: &mut PgConnection) -> BeginResult<ErrorOf<O>> {
        let executed = self.0.engine.execute_in_transaction(conn, &self.0.request, Patience::Little)?;
        Ok(executed.map(Begun::Answered))
    }

    fn work(&self, conn: &mut PgConnection, claim: &Claim) -> Result<Option<Reply>, ErrorOf<O>> {
        self.0.request.progress.claiming(claim);
        self.0.engine.work(conn, &self.0.request, claim).map(Some)
    }

    fn begun(&self, claimed: Instant) {
        let metrics = &self.0.engine.inner.metrics;
        metrics.claim_seconds.observe(claimed.duration_since(self.0.asked).as_secs_f64());
        metrics.finish_seconds.observe(claimed.elapsed().as_secs_f64());
    }
}
