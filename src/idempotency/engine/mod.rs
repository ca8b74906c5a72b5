//! The state machine: replay, refuse, wait or execute. This file has the parts that all requests share.
//! `local` executes requests that change only our own database, `external` those that call the processor. `sharing` lets both
//! share transactions. `recovery` finishes what was abandoned.

mod caller;
mod external;
mod local;
mod outcome;
mod recovery;
mod respond;
mod shared_external;
mod sharing;

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use diesel::PgConnection;

use crate::base::faults;
use crate::base::ids::MerchantId;
use crate::base::scope::{self, HashedKey};
use crate::error::failure::{AsFailure, Failure};
use crate::storage::admission::Admission;
use crate::storage::db::{Db, Silence};
use crate::storage::deadline;
use crate::storage::party::Party;

use super::batching::Batchers;
use super::context::Context;
use super::decision::{Attempt, Decision, Lookup, decide};
use super::descriptor::Descriptor;
use super::envelope::Envelope;
use super::host::Host;
use super::key::IdempotencyKey;
use super::limits::{LARGE_BODIES_MAX, Limits, Pass, RateLimitFields};
use super::metrics::Metrics;
use super::operation::{ErrorOf, Operation};
use super::policies::{ByOperation, Defaults, Policies};
use super::policy::{Enforcement, Policy};
use super::request::IdempotentRequest;
use super::retries::{self, Found};
use super::settings::{Settings, Timing};
use super::store::{self, Answer, Claim, Claimant, StoredKey};
use super::waiting::{WaitResult, Waiters};

use outcome::for_client;
use sharing::Sharing;

pub use recovery::{DueRequest, RecoveryResult};
pub use respond::Response;

/// Maximum number of look-ups of a key that another request is claiming in an open transaction, or that
/// changes between look-up and claim. With the pauses in between they take some 60 ms: enough for most
/// transactions, so that the duplicate gets the real answer (a replay, or that the key is another request's)
/// and not just a refusal.
const LOOKS_MAX: u32 = 5;

/// Executes requests at most once per (merchant, key). Cheap to clone.
pub struct Engine<H: Host> {
    inner: Arc<Inner<H>>,
}

impl<H: Host> Clone for Engine<H> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

/// The parts that all clones of an engine share.
pub(super) struct Inner<H: Host> {
    db: Db,
    host: Arc<H>,
    settings: Settings,
    metrics: Metrics,
    batchers: HashMap<&'static str, Batchers>,
    sharing: Sharing<H::Error>,
    retries: retries::Counts,
    limits: Limits,
    large_bodies: Arc<Admission>,
    pub(super) policies: Policies,
    pub(super) waiters: Waiters,
}

impl<H: Host> Inner<H> {
    fn context<'a, O>(
        &'a self,
        request: &'a IdempotentRequest<O>,
        claim: &'a Claim,
        now: DateTime<Utc>,
    ) -> Context<'a, H> {
        Context {
            envelope: &request.envelope,
            claim,
            now,
            policy: &request.treatment.policy,
            host: &self.host,
        }
    }
}

impl<H: Host> Engine<H> {
    /// Makes an engine on `db` for `operations` of `host`.
    pub fn new(
        db: Db,
        host: Arc<H>,
        settings: Settings,
        operations: &[Descriptor<H::Caller>],
        metrics: Metrics,
    ) -> Self {
        let Settings { timing, batch_size_max } = settings;
        let batchers = operations.iter().filter_map(|operation| {
            let batching = operation.batching?;
            let batchers = Batchers::new(&db, batching, H::PROOF_SQL, timing.lease, batch_size_max, &metrics);
            Some((operation.name, batchers))
        });
        let batchers = batchers.collect();
        let sharing = Sharing::new::<H>(&db, settings, &metrics);
        let retries = retries::Counts::new(operations.iter().map(|operation| operation.name));
        let policies = Policies::new(operations.iter().map(Defaults::of).collect());
        let waiters = Waiters::new(metrics.waiters.clone(), metrics.answers_awaited.clone());
        let limits = Limits::new(operations.iter().map(|operation| operation.name));
        let large_bodies = db.large_bodies(LARGE_BODIES_MAX);
        let inner = Inner {
            db,
            host,
            settings,
            metrics,
            batchers,
            sharing,
            retries,
            limits,
            large_bodies,
            policies,
            waiters,
        };
        Self { inner: Arc::new(inner) }
    }

    /// The service that the engine works for.
    pub fn host(&self) -> &Arc<H> {
        &self.inner.host
    }

    /// The connection pool.
    pub(super) fn db(&self) -> &Db {
        &self.inner.db
    }

    pub(super) fn timing(&self) -> Timing {
        self.inner.settings.timing
    }

    pub(super) fn downgrade(&self) -> Weak<Inner<H>> {
        Arc::downgrade(&self.inner)
    }

    /// Time after its arrival at which an unanswered request is given up, without the wait that it asked for.
    pub fn request_deadline(&self) -> Duration {
        self.inner.settings.timing.request_deadline
    }

    /// The places for requests with large bodies.
    pub(super) fn large_bodies(&self) -> &Arc<Admission> {
        &self.inner.large_bodies
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Returns all policies, from memory.
    pub async fn policies(&self) -> Result<Arc<ByOperation>, Failure> {
        self.inner.policies.current(&self.inner.db).await
    }

    /// Returns the policy of an operation, from memory.
    pub async fn policy(&self, operation: &str) -> Result<Arc<Policy>, Failure> {
        self.inner.policies.of(operation, &self.inner.db).await
    }

    /// Keeps the policies in memory up to date. Doesn't return.
    pub(super) async fn keep_policies_fresh(&self) {
        self.inner.policies.keep_fresh(&self.inner.db).await;
    }

    /// Lets a request of `caller` in, if it's within the limits of `policy`, that of `operation`, and if there is room
    /// in the queue for the database. Also returns the fields of its answer, if anything is limited.
    ///
    /// Errors, in the order checked: `rate_limited`, `overloaded`.
    pub(super) fn enter(
        &self,
        operation: &'static str,
        caller: MerchantId,
        policy: &Policy,
    ) -> (Option<RateLimitFields>, Result<Pass, Failure>) {
        let entry = self.inner.limits.take(operation, caller, policy);
        let pass = entry.share.and_then(|share| {
            let place = self.inner.db.admit(Party::Caller(caller));
            if place.is_err()
                && let Some(share) = &share
            {
                share.give_back();
            }
            Ok(Pass::new(place?, share))
        });
        if let Err(Failure::RateLimited { limited, .. }) = &pass {
            self.inner.metrics.rate_limited.with_label_values(&[operation, limited.as_str()]).inc();
        }
        (entry.fields, pass)
    }

    /// Returns the key under which a request executes, or `None` if it executes without one.
    pub(super) fn admit(
        &self,
        operation: &'static str,
        sent: Result<IdempotencyKey, Failure>,
        enforcement: Enforcement,
        request_id: &str,
    ) -> Result<Option<IdempotencyKey>, Failure> {
        let outcome = match (&sent, enforcement) {
            (_, Enforcement::Off) => return Ok(None),
            (Ok(_), _) => return sent.map(Some),
            (Err(Failure::IdempotencyKeyMissing), Enforcement::Enforce) => "missing",
            (Err(_), Enforcement::Enforce) => "invalid",
            (Err(Failure::IdempotencyKeyMissing), Enforcement::Observe) => "observed_missing_key",
            (Err(_), Enforcement::Observe) => "observed_invalid_key",
        };
        self.note(operation, outcome, request_id, None, None);
        if enforcement == Enforcement::Enforce { sent.map(Some) } else { Ok(None) }
    }

    /// Counts a decision, and leaves it to the request's closing line. Logs it if there is none to come: the worker
    /// finishes the request, or its client has hung up.
    fn note(
        &self,
        operation: &'static str,
        outcome: &'static str,
        request_id: &str,
        key: Option<&Envelope>,
        attempt: Option<u32>,
    ) {
        self.inner.metrics.requests.with_label_values(&[operation, outcome]).inc();
        if scope::with(|scope| scope.decide(outcome, attempt)) == Some(true) {
            return;
        }
        if log::log_enabled!(target: scope::REQUESTS, log::Level::Info) {
            let key_hash = key.map(HashedKey::key_hash);
            let key_hash = key_hash.as_deref();
            log::info!(target: scope::REQUESTS, request_id, operation, outcome, attempt, key_hash; "{operation}: {outcome}");
        }
    }

    /// Retries until there is an answer or the time to wait for one is over. Holds no connection between two
    /// attempts. If the client hangs up meanwhile, the wait ends.
    async fn drive<O: Operation<Host = H>, F: Future<Output = Result<Attempt, ErrorOf<O>>>>(
        &self,
        mut request: IdempotentRequest<O>,
        attempt: impl Fn(Self, IdempotentRequest<O>) -> F,
    ) -> Result<Response, ErrorOf<O>> {
        let name = O::DESCRIPTOR.name;
        let wait = request.treatment.wait;
        deadline::extend(wait.unwrap_or_default());
        let deadline = wait.filter(|wait| !wait.is_zero()).map(|wait| Instant::now() + wait);
        let mut is_wait_over = false;
        loop {
            let envelope = &request.envelope;
            let note = |outcome| self.note(name, outcome, &envelope.request_id, Some(envelope), None);
            let answer_in = deadline::remaining(Duration::MAX);
            let ending = async {
                if is_wait_over {
                    self.look(&request).await
                } else {
                    attempt(self.clone(), request.clone()).await
                }
            };
            let ended = match tokio::time::timeout(answer_in, ending).await {
                // Another attempt has the claim of this request. Without a key, no retry could find its answer.
                Ok(Ok(Attempt::Running { .. }))
                    if !request.is_protected() && request.progress.is_claimed() =>
                {
                    Err(Failure::ClaimLost.into())
                }
                Ok(ended) => ended,
                // The work goes on, so that a retry finds its result.
                Err(_) => {
                    Err(Failure::DatabaseUnavailable(Silence("the request's time is over").into()).into())
                }
            };
            let ended = ended.map_err(|error| {
                let error = for_client(&request, error);
                let is_stranger =
                    matches!(error.failure(), Some(Failure::ApiKeyInvalid | Failure::ApiKeyRevoked));
                if let Some(proof) = envelope.proof.as_deref().filter(|_| is_stranger) {
                    self.inner.host.disown(proof);
                }
                note(if is_stranger { "unauthorized" } else { "failed" });
                error
            })?;
            let is_parked = match ended {
                Attempt::Executed(answer) => return Ok(self.respond(&request, &answer, false)?),
                Attempt::Replayed(answer) => {
                    note("replayed");
                    name_original(&answer);
                    request.pass.only_looked_up();
                    return Ok(self.respond(&request, &answer, true)?);
                }
                Attempt::ReplayedDespiteMismatch(answer) => {
                    note("mismatch_replayed");
                    name_original(&answer);
                    log::warn!(
                        request_id = envelope.request_id.as_str(), operation = name,
                        key_hash = envelope.key.digest_for(envelope.merchant).as_str();
                        "another request's answer was replayed, as the policy says"
                    );
                    request.pass.only_looked_up();
                    return Ok(self.respond(&request, &answer, true)?);
                }
                Attempt::Mismatch => {
                    note("mismatch");
                    request.pass.only_looked_up();
                    return Err(Failure::IdempotencyKeyReused.into());
                }
                Attempt::Expired => {
                    note("expired");
                    request.pass.only_looked_up();
                    return Err(Failure::IdempotencyKeyExpired.into());
                }
                Attempt::Observed(outcome) => {
                    note(outcome);
                    request = request.unkeyed();
                    continue;
                }
                Attempt::Running { .. } if faults::breaks("claim") => {
                    Arc::make_mut(&mut request.envelope).key = IdempotencyKey::unkeyed();
                    continue;
                }
                Attempt::Running { is_parked } => is_parked,
            };
            if let (Some(deadline), false, false) = (deadline, is_parked, is_wait_over) {
                let inner = &self.inner;
                request.pass.leave_queue();
                match inner.waiters.wait(&inner.db, envelope.merchant, &envelope.key, deadline).await {
                    // Looks the key up again, as for any replay: the caller's secret may have been revoked
                    // meanwhile, and the claim may have been invisible, so that the request hasn't been
                    // compared with it yet.
                    Some(WaitResult::Answered | WaitResult::Free) => continue,
                    // For the same reasons, but without executing anything: that would take too long.
                    None => {
                        is_wait_over = true;
                        continue;
                    }
                }
            }
            let wait = wait.filter(|_| !is_parked && !self.inner.waiters.is_stopping());
            note("in_progress");
            request.pass.only_looked_up();
            let waited_s = wait.map(|wait| wait.as_secs());
            return Err(Failure::IdempotencyRequestInProgress { waited_s, is_parked }.into());
        }
    }

    /// Lets no duplicate wait any longer: the instance is stopping.
    pub fn stop_waiting(&self) {
        self.inner.waiters.stop();
    }

    /// Runs `work` until it isn't [`Lookup::Again`], a few times at most. Holds no connection in between.
    async fn looking_again<T: Send + 'static>(
        &self,
        enforcement: Enforcement,
        work: impl Fn(&mut PgConnection) -> Result<Lookup<T>, H::Error> + Send + Sync + 'static,
    ) -> Result<Result<T, Attempt>, H::Error> {
        let work = Arc::new(work);
        for look in 0..LOOKS_MAX {
            if look > 0 {
                tokio::time::sleep(Duration::from_millis(2 << look)).await;
            }
            let work = Arc::clone(&work);
            match self.inner.db.run_retrying(move |conn| work(conn)).await? {
                Lookup::Ours(done) => return Ok(Ok(done)),
                Lookup::NotOurs(decision) => return Ok(Err(Attempt::of(decision, enforcement))),
                Lookup::Again => {}
            }
        }
        Ok(Err(Attempt::of(Decision::Running { is_parked: false }, enforcement)))
    }

    /// Looks the request's key up once more, and executes nothing.
    async fn look<O: Operation<Host = H>>(
        &self,
        request: &IdempotentRequest<O>,
    ) -> Result<Attempt, H::Error> {
        let looking = Arc::clone(&request.envelope);
        let stored = self.inner.db.run_retrying(move |conn| Self::find(conn, &looking)).await?;
        Ok(Attempt::of(decide(stored, &request.treatment.policy), request.treatment.enforcement))
    }

    /// Looks the request's key up, decides on it, and counts a key that comes back.
    fn look_up<O: Operation<Host = H>>(
        &self,
        conn: &mut PgConnection,
        request: &IdempotentRequest<O>,
    ) -> Result<Decision, Failure> {
        let stored = Self::find(conn, &request.envelope)?;
        let age = stored.as_ref().map(|stored| stored.age);
        let decision = decide(stored, &request.treatment.policy);
        self.count_return(request, Found::of(&decision), age.unwrap_or_default());
        Ok(decision)
    }

    /// Counts what a request has found under its key, which was claimed before `age`; once per request.
    fn count_return<O: Operation<Host = H>>(
        &self,
        request: &IdempotentRequest<O>,
        found: Option<Found>,
        age: Duration,
    ) {
        let Some(found) = found.filter(|_| request.progress.finds_key()) else { return };
        let operation = O::DESCRIPTOR.name;
        self.inner.retries.count(operation, found, age);
        let delays = &self.inner.metrics.retry_delay_seconds;
        delays.with_label_values(&[operation, found.as_str()]).observe(age.as_secs_f64());
    }

    /// Stores what was counted of retries since the last time. If that fails, the counts are kept for the next time.
    pub async fn store_retries(&self) -> Result<(), Failure> {
        let counts = Arc::new(self.inner.retries.take());
        if counts.is_empty() {
            return Ok(());
        }
        let stored = Arc::clone(&counts);
        let result = self.inner.db.run_retrying(move |conn| retries::history::add(conn, &stored)).await;
        if result.is_err() {
            self.inner.retries.put_back(&counts);
        }
        result
    }

    /// Looks the request's key up.
    fn find(conn: &mut PgConnection, envelope: &Envelope) -> Result<Option<StoredKey>, Failure> {
        store::find(conn, envelope, H::PROOF_SQL)
    }

    fn claimant<O: Operation<Host = H>>(request: &IdempotentRequest<O>) -> Claimant {
        Claimant {
            envelope: Arc::clone(&request.envelope),
            operation: O::DESCRIPTOR.name,
            resource: O::DESCRIPTOR.resource(&request.envelope.content.path),
            policy: Arc::clone(&request.treatment.policy),
            // Nobody repeats a request without a client's key.
            has_generation: request.calls_processor && request.treatment.enforcement != Enforcement::Off,
        }
    }

    /// Claims a key that is new, or that is or may be forgotten (`afresh`; needs a transaction).
    fn claim<O: Operation<Host = H>>(
        &self,
        conn: &mut PgConnection,
        request: &IdempotentRequest<O>,
        afresh: bool,
    ) -> Result<Option<Claim>, Failure> {
        if afresh {
            store::forget(conn, &request.envelope, &request.treatment.policy)?;
        }
        let claim = store::claim(conn, &Self::claimant(request), self.inner.settings.timing.lease)?;
        match &claim {
            Some(claim) => request.progress.claiming(claim),
            None => faults::reach("after_conflict"),
        }
        Ok(claim)
    }

    /// Wakes the waiters of an executed request, and counts the execution.
    fn executed<O: Operation<Host = H>>(&self, request: &IdempotentRequest<O>, attempt: u32) {
        let envelope = &request.envelope;
        self.inner.waiters.answered(envelope.merchant, &envelope.key);
        if request.treatment.enforcement != Enforcement::Off {
            self.inner.retries.count(O::DESCRIPTOR.name, Found::New, Duration::ZERO);
        }
        self.note(O::DESCRIPTOR.name, "executed", &envelope.request_id, Some(envelope), Some(attempt));
    }
}

/// Has the log name the trace of the request whose answer is replayed.
fn name_original(answer: &Answer) {
    if let Some(trace) = &answer.trace {
        scope::with(|scope| scope.set_original(trace));
    }
}

/// Whether an error means that another attempt has taken over.
fn is_claim_lost(error: &impl AsFailure) -> bool {
    matches!(error.failure(), Some(Failure::ClaimLost))
}
