//! Requests that change only our own database: claim, work and answer in one transaction.

use std::sync::Arc;
use std::time::Instant;

use diesel::PgConnection;

use crate::base::faults;
use crate::base::spans::Span;
use crate::idempotency::decision::{Attempt, Decision, Lookup};
use crate::idempotency::host::{Host, HostError};
use crate::idempotency::operation::LocalOperation;
use crate::idempotency::request::IdempotentRequest;
use crate::idempotency::store::{self, Answer};

use super::outcome::transact;
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
        let executed = self
            .looking_again(request.treatment.enforcement, move |conn| {
                engine.execute_in_transaction(conn, &work)
            })
            .await?;
        let answer = match executed {
            Ok(answer) => answer,
            Err(attempt) => return Ok(attempt),
        };
        self.executed(&request, 1);
        faults::reach("local_after_commit_before_response");
        Ok(Attempt::Executed(answer))
    }

    /// Runs one attempt of a local request.
    fn execute_in_transaction<O: LocalOperation<Host = H>>(
        &self,
        conn: &mut PgConnection,
        request: &IdempotentRequest<O>,
    ) -> Result<Lookup<Arc<Answer>>, H::Error> {
        let started = Instant::now();
        let envelope = &request.envelope;
        let decision = self.look_up(conn, request)?;
        if !matches!(decision, Decision::Claim | Decision::ClaimAfresh) {
            // Local operations never commit an unfinished claim, so there is nothing to take over.
            return Ok(Lookup::NotOurs(decision));
        }
        let afresh = matches!(decision, Decision::ClaimAfresh);
        let executed = transact(conn, request, |conn| {
            let Some(claim) = self.claim(conn, request, afresh)? else {
                return Ok(Lookup::Again);
            };
            self.inner.metrics.claim_seconds.observe(started.elapsed().as_secs_f64());
            let claimed = Instant::now();
            faults::reach("local_after_claim");
            let context = self.inner.context(request, &claim, claim.created_at);
            let reply = request.operation.execute(conn, &context)?;
            if reply.status < 300 {
                request.treatment.check_precondition()?;
            }
            let answer = store::complete(conn, &claim, reply, &envelope.request_id)?;
            faults::reach("local_before_commit");
            self.inner.metrics.finish_seconds.observe(claimed.elapsed().as_secs_f64());
            Ok::<_, H::Error>(Lookup::Ours(answer))
        });
        match executed {
            Err(error) if error.is_final() => self.refuse(conn, request, afresh, &error),
            executed => executed,
        }
    }
}
