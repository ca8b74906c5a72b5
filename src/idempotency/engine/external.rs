//! Requests that call the processor: three steps, of which the one in the middle has no transaction, and may be
//! taken up again by whoever comes after a crash.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use diesel::{Connection, PgConnection};
use futures_util::FutureExt;

use crate::base::faults;
use crate::error::Error;
use crate::idempotency::decision::{Decision, Look, Tried, decide};
use crate::idempotency::operation::{ExternalOperation, Finished};
use crate::idempotency::policy::Enforcement;
use crate::idempotency::recovery::{Due, Recovered};
use crate::idempotency::request::{IdempotentRequest, Operation, Treatment};
use crate::idempotency::store::{self, Answer, Claim, Completion, Setback, Taker};
use crate::idempotency::together::Looked;

use super::Engine;

/// How old a lease may be when its attempt begins. If preparing took longer (it may have waited for a lock; requests
/// that are claimed together prepare nothing), the lease is started anew: it's only as long as the attempt may take,
/// with little to spare.
const LEASE_AGE_MAX: Duration = Duration::from_millis(100);

/// How an external request was begun.
enum Begun<P> {
    /// It's ours, and this was reserved, or has yet to be found.
    Ours(Claim, Option<P>),
    /// It was refused for good.
    Refused(Arc<Answer>),
}

impl Engine {
    /// Executes an external request, or finds out why not.
    pub(super) async fn try_external<O: ExternalOperation>(
        &self,
        request: IdempotentRequest<O>,
    ) -> Result<Tried, Error> {
        let begun = match self.begin(&request).await? {
            Ok(begun) => begun,
            Err(tried) => return Ok(tried),
        };
        let (claim, prepared) = match begun {
            Begun::Refused(answer) => {
                self.executed(&request, &answer, 1);
                return Ok(Tried::Executed(answer));
            }
            Begun::Ours(claim, prepared) => (claim, prepared),
        };
        faults::reach("after_claim");
        match self.perform_and_finish(&request, &claim, prepared).await {
            Ok(answer) => {
                self.executed(&request, &answer, claim.attempt);
                faults::reach("after_commit_before_response");
                Ok(Tried::Executed(answer))
            }
            // The lease ran out and another attempt was faster. What we did here was rolled back, and
            // the client gets the winner's answer, if there is one yet.
            Err(Error::ClaimLost) => self.winners_answer(&request).await,
            Err(error) => {
                self.give_up(&claim, &request.envelope.request_id, &error, Taker::Client).await;
                // Without a key nothing can be resumed, only done again, beside the recovery of this one.
                let is_keyed = request.treatment.enforcement != Enforcement::Off;
                Err(if is_keyed { error } else { Error::OutcomeUnknown(error.detailed().into()) })
            }
        }
    }

    /// Gives the lease up after a failure. Returns whether the request is parked now.
    async fn give_up(&self, claim: &Claim, request_id: &str, error: &Error, taker: Taker) -> bool {
        let recovery = self.inner.settings.timing.recovery;
        let setback = Setback {
            error: error.code().as_str(),
            taker,
            recover_in: recovery.backoff(claim.recoveries),
            attempts_max: recovery.attempts_max,
        };
        let released = claim.clone();
        let release = self.inner.db.run(move |conn| store::release(conn, &released, setback)).await;
        self.inner.waiters.freed(claim.merchant, &claim.key);
        release.unwrap_or_else(|error| {
            // Then the lease has to run out by itself.
            error.log(request_id);
            false
        })
    }

    /// Finds the answer, or claims the key and prepares, or takes it over.
    async fn begin<O: ExternalOperation>(
        &self,
        request: &IdempotentRequest<O>,
    ) -> Result<Result<Begun<O::Prepared>, Tried>, Error> {
        if let Some(begun) = self.begin_together(request).await? {
            return Ok(begun);
        }
        let (engine, work) = (self.clone(), request.clone());
        let enforcement = request.treatment.enforcement;
        self.looking_again(enforcement, move |conn| engine.look_external(conn, &work)).await
    }

    /// The same together with other requests, where that's all there is to do. `None`: there is more.
    async fn begin_together<O: ExternalOperation>(
        &self,
        request: &IdempotentRequest<O>,
    ) -> Result<Option<Result<Begun<O::Prepared>, Tried>>, Error> {
        let policy = &request.treatment.policy;
        let Some(batchers) = self.inner.batchers.get(O::NAME).filter(|_| !request.operation.reserves(policy))
        else {
            return Ok(None);
        };
        let started = Instant::now();
        Ok(match batchers.claims.call(Self::claimant(request)).await?.transpose()? {
            Some(Looked::Claimed(claim, read)) => {
                self.inner.metrics.claim_seconds.observe(started.elapsed().as_secs_f64());
                // If it can't be understood: it's read again, and fails then.
                Some(Ok(Begun::Ours(claim, request.operation.prepared(read).ok())))
            }
            Some(Looked::Found(Decision::ClaimAfresh | Decision::TakeOver(_)) | Looked::Contended) | None => {
                None
            }
            Some(Looked::Found(decision)) => {
                self.inner.metrics.claim_seconds.observe(started.elapsed().as_secs_f64());
                Some(Err(Tried::of(decision, request.treatment.enforcement)))
            }
        })
    }

    /// One look at the key of an external request.
    fn look_external<O: ExternalOperation>(
        &self,
        conn: &mut PgConnection,
        request: &IdempotentRequest<O>,
    ) -> Result<Look<Begun<O::Prepared>>, Error> {
        let started = Instant::now();
        let policy = &request.treatment.policy;
        let begun = match decide(store::find(conn, &request.envelope)?, policy) {
            decision @ (Decision::Claim | Decision::ClaimAfresh) => {
                let afresh = matches!(decision, Decision::ClaimAfresh);
                match conn.transaction(|conn| self.claim_and_prepare(conn, request, afresh)) {
                    Err(error) if error.is_final() => {
                        Ok(self.refuse(conn, request, afresh, &error)?.map(Begun::Refused))
                    }
                    begun => begun,
                }
            }
            // While observing, too: the processor may have acted, and the recovery worker would finish the first one
            // beside a second.
            Decision::TakeOver(created_at) => {
                let taken = self.take_over(conn, request, created_at)?;
                Ok(taken.map_or(Look::Again, |claim| Look::Ours(Begun::Ours(claim, None))))
            }
            decision => return Ok(Look::NotOurs(decision)),
        }?;
        self.inner.metrics.claim_seconds.observe(started.elapsed().as_secs_f64());
        Ok(begun)
    }

    fn take_over<O: Operation>(
        &self,
        conn: &mut PgConnection,
        request: &IdempotentRequest<O>,
        created_at: DateTime<Utc>,
    ) -> Result<Option<Claim>, Error> {
        faults::reach("before_takeover");
        let (envelope, lease) = (&request.envelope, self.inner.settings.timing.lease);
        let claim = store::take_over(conn, envelope, created_at, Taker::Client, lease)?;
        match &claim {
            Some(_) => self.inner.metrics.takeovers.inc(),
            None => faults::reach("after_conflict"),
        }
        Ok(claim)
    }

    /// Claims a key and reserves what its request needs.
    fn claim_and_prepare<O: ExternalOperation>(
        &self,
        conn: &mut PgConnection,
        request: &IdempotentRequest<O>,
        afresh: bool,
    ) -> Result<Look<Begun<O::Prepared>>, Error> {
        let started = Instant::now();
        let Some(claim) = self.claim(conn, request, afresh)? else {
            return Ok(Look::Again);
        };
        let context = self.inner.context(request, &claim, claim.created_at);
        let prepared = request.operation.prepare(conn, &context)?;
        self.renew_if_old(conn, &claim, started)?;
        Ok(Look::Ours(Begun::Ours(claim, Some(prepared))))
    }

    fn renew_if_old(&self, conn: &mut PgConnection, claim: &Claim, since: Instant) -> Result<(), Error> {
        if since.elapsed() > LEASE_AGE_MAX {
            store::renew(conn, claim, self.inner.settings.timing.lease)?;
        }
        Ok(())
    }

    /// Calls the processor and writes what follows. Without `prepared`, finds that first.
    async fn perform_and_finish<O: ExternalOperation>(
        &self,
        request: &IdempotentRequest<O>,
        claim: &Claim,
        prepared: Option<O::Prepared>,
    ) -> Result<Arc<Answer>, Error> {
        let prepared = match prepared {
            Some(prepared) => prepared,
            None => self.resume(request, claim).await?,
        };
        faults::reach("before_processor");
        let context = self.inner.context(request, claim, claim.created_at);
        let calls = request.operation.perform(&*self.inner.processor, &context, &prepared);
        // A panic is caught here, so that the lease is given up like after any other failure.
        let timeout = self.inner.settings.timing.processor_timeout;
        let outcome = tokio::time::timeout(timeout, AssertUnwindSafe(calls).catch_unwind())
            .await
            .map_err(|_| Error::ProcessorUnavailable("the processor took too long".into()))?
            .map_err(|_| Error::internal("the operation panicked"))??;
        faults::reach("after_processor");

        let started = Instant::now();
        let finished = match self.finish_together(request, claim, &prepared, &outcome).await? {
            Some(answer) => Ok(answer),
            None => self.finish(request, claim, prepared, outcome).await,
        };
        match &finished {
            Ok(_) => self.inner.metrics.finish_seconds.observe(started.elapsed().as_secs_f64()),
            Err(Error::ClaimLost) => self.inner.metrics.fenced_commits.inc(),
            Err(_) => {}
        }
        finished
    }

    /// Writes what follows from the outcome together with other requests, where it takes no look at the database to
    /// know that. `None`: it does, or somebody else has the row at this moment, or has taken over.
    async fn finish_together<O: ExternalOperation>(
        &self,
        request: &IdempotentRequest<O>,
        claim: &Claim,
        prepared: &O::Prepared,
        outcome: &O::Outcome,
    ) -> Result<Option<Arc<Answer>>, Error> {
        // What has failed before would fail the others with it. And a fault between writing and committing needs a
        // transaction to happen in.
        let is_apart = claim.attempt > 1 || faults::is_set("in_finish");
        let Some(batchers) = self.inner.batchers.get(O::NAME).filter(|_| !is_apart) else {
            return Ok(None);
        };
        let context = self.inner.context(request, claim, claim.now());
        // An error or a panic will come again there, where it's dealt with.
        let conclude = || request.operation.conclude(&context, prepared, outcome);
        let Ok(Ok(Some((effects, reply)))) = catch_unwind(AssertUnwindSafe(conclude)) else {
            return Ok(None);
        };
        let (claim, request_id) = (claim.clone(), request_id(request).to_owned());
        Ok(batchers.completions.call(Completion { claim, request_id, effects, reply }).await?.flatten())
    }

    /// The same in a transaction.
    async fn finish<O: ExternalOperation>(
        &self,
        request: &IdempotentRequest<O>,
        claim: &Claim,
        prepared: O::Prepared,
        outcome: O::Outcome,
    ) -> Result<Arc<Answer>, Error> {
        let (engine, request, claim) = (self.clone(), request.clone(), claim.clone());
        self.inner
            .db
            .run_retrying(move |conn| {
                let finished = conn.transaction(|conn| {
                    let now = store::lock(conn, &claim)?;
                    let context = engine.inner.context(&request, &claim, now);
                    let answer = match request.operation.finish(conn, &context, &prepared, &outcome)? {
                        Finished::Written(reply) => {
                            store::complete(conn, &claim, reply, request_id(&request))?
                        }
                        Finished::ToWrite(effects, reply) => {
                            let writes = O::TOGETHER.map(|together| together.writes).unwrap_or_default();
                            let (claim, request_id) = (claim.clone(), request_id(&request).to_owned());
                            let completion = Completion { claim, request_id, effects, reply };
                            let mut completed = store::complete_all(conn, &[completion], writes)?;
                            completed.pop().flatten().ok_or(Error::ClaimLost)?
                        }
                    };
                    faults::reach("in_finish");
                    Ok(answer)
                });
                match finished {
                    // See `refuse`; here the claim is held anyway.
                    Err(error) if Error::is_final(&error) => conn.transaction(|conn| {
                        let now = store::lock(conn, &claim)?;
                        let reply = engine.inner.context(&request, &claim, now).problem(&error)?;
                        store::complete(conn, &claim, reply, request_id(&request))
                    }),
                    finished => finished,
                }
            })
            .await
    }

    /// Finds what an earlier attempt has reserved.
    async fn resume<O: ExternalOperation>(
        &self,
        request: &IdempotentRequest<O>,
        claim: &Claim,
    ) -> Result<O::Prepared, Error> {
        let (engine, request, claim) = (self.clone(), request.clone(), claim.clone());
        let taken = Instant::now();
        self.inner
            .db
            .run_retrying(move |conn| {
                conn.transaction(|conn| {
                    let context = engine.inner.context(&request, &claim, claim.created_at);
                    let prepared = request.operation.resume(conn, &context)?;
                    engine.renew_if_old(conn, &claim, taken)?;
                    Ok(prepared)
                })
            })
            .await
    }

    /// What the attempt that took our claim over has made of the request.
    async fn winners_answer<O: ExternalOperation>(
        &self,
        request: &IdempotentRequest<O>,
    ) -> Result<Tried, Error> {
        let looking = Arc::clone(&request.envelope);
        let stored = self.inner.db.run_retrying(move |conn| store::find(conn, &looking)).await?;
        Ok(match decide(stored, &request.treatment.policy) {
            Decision::Replay(answer) => Tried::Replayed(answer),
            _ => Tried::Running { is_parked: false },
        })
    }

    /// Finishes a stored request that died, for the recovery worker.
    pub(in crate::idempotency) async fn recover<O: ExternalOperation>(&self, due: Due) -> Recovered {
        let request_id = due.envelope.request_id.clone();
        match self.take_over_and_finish::<O>(due).await {
            Ok(recovered) => recovered,
            Err(error) => {
                error.log(&request_id);
                Recovered::Failed
            }
        }
    }

    async fn take_over_and_finish<O: ExternalOperation>(&self, due: Due) -> Result<Recovered, Error> {
        let policy = self.policy(O::NAME).await?;
        let lease = self.inner.settings.timing.lease;
        let Due { envelope, created_at, .. } = due;
        let taking = envelope.clone();
        // Taken over before it's read: a request that can't be read must count as tried.
        let taken = self
            .inner
            .db
            .run_retrying(move |conn| store::take_over(conn, &taking, created_at, Taker::Recovery, lease))
            .await?;
        let Some(claim) = taken else { return Ok(Recovered::Lost) };
        self.inner.metrics.takeovers.inc();

        let request_id = envelope.request_id.clone();
        let treatment = Treatment { policy, enforcement: Enforcement::Enforce, wait: None };
        let attempt = async {
            let restored = IdempotentRequest::<O>::restore(envelope, treatment, self.allows_loopback());
            let request = restored.map_err(|error| {
                Error::internal(format!("a stored request can't be read any more: {error}"))
            })?;
            let answer = self.perform_and_finish(&request, &claim, None).await?;
            self.executed(&request, &answer, claim.attempt);
            Ok(())
        };
        match attempt.await {
            Ok(()) => Ok(Recovered::Finished),
            Err(Error::ClaimLost) => Ok(Recovered::Lost),
            Err(error) => {
                error.log(&request_id);
                let is_parked = self.give_up(&claim, &request_id, &error, Taker::Recovery).await;
                if is_parked {
                    log::error!(
                        request_id = request_id.as_str(), operation = O::NAME, attempt = claim.attempt,
                        key_hash = claim.key.digest_for(claim.merchant).as_str();
                        "a request can't be finished and waits for an operator"
                    );
                }
                Ok(if is_parked { Recovered::Parked } else { Recovered::Failed })
            }
        }
    }
}

fn request_id<O>(request: &IdempotentRequest<O>) -> &str {
    &request.envelope.request_id
}
