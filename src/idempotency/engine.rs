//! The state machine: replay, refuse, wait or execute. Here is what all requests have in common and how local ones are
//! executed, in one transaction; `external` has those that call the processor.

mod external;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::HttpResponse;
use chrono::{DateTime, Utc};
use diesel::{Connection, PgConnection};
use secrecy::SecretString;

use super::metrics::Metrics;
use crate::base::derived_secrets::Vault;
use crate::base::faults;
use crate::error::Error;
use crate::processor::Processor;
use crate::storage::db::Db;
use crate::storage::deadline;

use super::decision::{Decision, Look, Tried, decide};
use super::key::IdempotencyKey;
use super::operation::{Context, ExternalOperation, LocalOperation};
use super::policy::{ByOperation, Enforcement, Policies, Policy};
use super::recovery::Recovery;
use super::registry::Registered;
use super::request::{Envelope, IdempotentRequest, Operation};
use super::store::{self, Answer, Claim, Claimant};
use super::together::Batchers;
use super::waiting::{Waiters, Woken};
use super::{listen, reaper, recovery, status};

/// How often the engine looks at a key that somebody else is claiming in a transaction that hasn't ended, or
/// that changes between looking and claiming. With the pauses in between some 60 ms: enough for most
/// transactions, so that the duplicate gets the real answer (a replay, or that the key is another
/// request's) rather than being sent away.
const LOOKS_MAX: u32 = 5;

/// How long things last. Unlike [policies](Policy), the same for all operations.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// When a request is given up that isn't answered yet, counted from its arrival, without what it asked to wait.
    pub request_deadline: Duration,
    /// How long an attempt has the request to itself.
    pub lease: Duration,
    /// Longest time for the calls to the processor in one attempt. Below the lease, so that an attempt
    /// that is merely slow gives up before another takes over.
    pub processor_timeout: Duration,
    /// How requests are finished whose clients don't come back.
    pub recovery: Recovery,
}

/// What an engine can be told.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long things last.
    pub timing: Timing,
    /// How many requests may share a statement, where they can.
    pub batch_size_max: usize,
    /// See [`Input::allows_loopback`](super::Input::allows_loopback).
    pub webhook_allow_loopback: bool,
}

/// Executes requests at most once per (merchant, key). Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

/// What all clones of an engine share.
pub(super) struct Inner {
    db: Db,
    processor: Arc<dyn Processor>,
    vault: Vault,
    settings: Settings,
    metrics: Arc<Metrics>,
    host_metrics: Arc<crate::host::metrics::Metrics>,
    batchers: HashMap<&'static str, Batchers>,
    pub(super) policies: Policies,
    pub(super) waiters: Waiters,
}

impl Inner {
    fn context<'a, O>(
        &'a self,
        request: &'a IdempotentRequest<O>,
        claim: &'a Claim,
        now: DateTime<Utc>,
    ) -> Context<'a> {
        Context {
            envelope: &request.envelope,
            claim,
            now,
            policy: &request.treatment.policy,
            vault: &self.vault,
            metrics: &self.host_metrics,
        }
    }
}

impl Engine {
    /// An engine on `db` for `operations`, whose external operations call `processor` and whose secrets come
    /// from `vault`.
    pub fn new(
        db: Db,
        processor: Arc<dyn Processor>,
        vault: Vault,
        settings: Settings,
        operations: &[Registered],
        metrics: Arc<Metrics>,
        host_metrics: Arc<crate::host::metrics::Metrics>,
    ) -> Self {
        let Settings { timing, batch_size_max, .. } = settings;
        let batchers = operations.iter().filter_map(|operation| {
            let together = operation.together?;
            Some((operation.name, Batchers::new(&db, together, timing.lease, batch_size_max, &metrics)))
        });
        let batchers = batchers.collect();
        let policies = Policies::new(operations.to_vec());
        let waiters = Waiters::new(metrics.waiters.clone(), metrics.answers_awaited.clone());
        Self {
            inner: Arc::new(Inner {
                db,
                processor,
                vault,
                settings,
                metrics,
                host_metrics,
                batchers,
                policies,
                waiters,
            }),
        }
    }

    /// Starts what runs beside the requests: the copy of the policies, the recovery worker, the reaper, what
    /// measures the table of keys, and a thread that listens to other instances with a connection of its own to
    /// `url`.
    pub fn start_workers(
        &self,
        operations: Vec<Registered>,
        url: SecretString,
        reaper_interval: Duration,
        metrics_interval: Duration,
    ) {
        let engine = self.clone();
        actix_web::rt::spawn(async move { engine.inner.policies.keep_fresh(&engine.inner.db).await });
        actix_web::rt::spawn(recovery::keep_recovering(self.clone(), Arc::new(operations)));
        actix_web::rt::spawn(reaper::keep_reaping(self.clone(), reaper_interval));
        actix_web::rt::spawn(status::keep_sampling(self.clone(), metrics_interval));
        listen::start(Arc::downgrade(&self.inner), url);
    }

    /// The pool.
    pub(super) fn db(&self) -> &Db {
        &self.inner.db
    }

    pub(super) fn timing(&self) -> Timing {
        self.inner.settings.timing
    }

    /// When a request is given up that isn't answered yet, counted from its arrival, without what it asked to wait.
    pub fn request_deadline(&self) -> Duration {
        self.inner.settings.timing.request_deadline
    }

    /// Whether the processor is called at the moment, as far as is known.
    pub fn is_processor_available(&self) -> bool {
        self.inner.processor.is_available()
    }

    /// See [`Input::allows_loopback`](super::Input::allows_loopback).
    pub(super) fn allows_loopback(&self) -> bool {
        self.inner.settings.webhook_allow_loopback
    }

    pub(super) fn host_metrics(&self) -> &crate::host::metrics::Metrics {
        &self.inner.host_metrics
    }

    pub(super) fn metrics(&self) -> &Arc<Metrics> {
        &self.inner.metrics
    }

    /// All policies, from memory.
    pub async fn policies(&self) -> Result<Arc<ByOperation>, Error> {
        self.inner.policies.current(&self.inner.db).await
    }

    /// The policy of an operation, from memory.
    pub async fn policy(&self, operation: &str) -> Result<Arc<Policy>, Error> {
        self.inner.policies.of(operation, &self.inner.db).await
    }

    /// The key to execute a request under, or `None` where it's to be executed without.
    pub(super) fn admit<O: Operation>(
        &self,
        sent: Result<IdempotencyKey, Error>,
        enforcement: Enforcement,
        request_id: &str,
    ) -> Result<Option<IdempotencyKey>, Error> {
        let outcome = match (&sent, enforcement) {
            (_, Enforcement::Off) => return Ok(None),
            (Ok(_), _) => return sent.map(Some),
            (Err(Error::IdempotencyKeyMissing), Enforcement::Enforce) => "missing",
            (Err(_), Enforcement::Enforce) => "invalid",
            (Err(Error::IdempotencyKeyMissing), Enforcement::Observe) => "observed_missing_key",
            (Err(_), Enforcement::Observe) => "observed_invalid_key",
        };
        self.note(O::NAME, outcome, request_id, None, None);
        if enforcement == Enforcement::Enforce { sent.map(Some) } else { Ok(None) }
    }

    /// Counts and logs a decision.
    fn note(
        &self,
        operation: &'static str,
        outcome: &'static str,
        request_id: &str,
        key: Option<&Envelope>,
        attempt: Option<u32>,
    ) {
        self.inner.metrics.requests.with_label_values(&[operation, outcome]).inc();
        if log::log_enabled!(target: "oncepay::idempotency", log::Level::Info) {
            let key = key.map(|envelope| envelope.key.digest_for(envelope.merchant)).unwrap_or_default();
            log::info!(
                target: "oncepay::idempotency",
                request_id, operation, outcome, attempt = attempt.unwrap_or_default(), key_hash = key.as_str();
                "{outcome}"
            );
        }
    }

    /// Runs a local operation: claim, work and answer in one transaction.
    ///
    /// Errors, in the order checked: `database_unavailable`, `idempotency_key_reused`,
    /// `idempotency_key_expired`, `idempotency_request_in_progress`, those of the operation that aren't final,
    /// `transient_conflict`.
    ///
    /// Locks: an advisory lock on (merchant, key), then what the operation locks.
    pub async fn run_local<O: LocalOperation>(
        &self,
        request: IdempotentRequest<O>,
    ) -> Result<HttpResponse, Error> {
        self.drive(request, |engine, request| async move { engine.try_local(request).await }).await
    }

    /// Runs an external operation: committed claim, processor, finish in one fenced transaction.
    ///
    /// It goes on when the client hangs up, so that the client's retry finds an answer.
    ///
    /// Errors, in the order checked: `database_unavailable`, `idempotency_key_reused`,
    /// `idempotency_key_expired`, `idempotency_request_in_progress`, `processor_unavailable`, those of the
    /// operation that aren't final, `transient_conflict`. After each of them but the second and third, the same
    /// request can be sent again and goes on where this one stopped.
    ///
    /// Locks, in the finishing transaction: the key's row, then what the operation locks.
    pub async fn run_external<O: ExternalOperation>(
        &self,
        request: IdempotentRequest<O>,
    ) -> Result<HttpResponse, Error> {
        self.drive(request, |engine, request| async move {
            actix_web::rt::spawn(async move { engine.try_external(request).await })
                .await
                .unwrap_or_else(|error| Err(Error::internal(error)))
        })
        .await
    }

    /// Tries until there is an answer or the time to wait for one is over. No connection is held between two
    /// tries, and if the client hangs up meanwhile, the wait ends.
    async fn drive<O: Operation, F: Future<Output = Result<Tried, Error>>>(
        &self,
        mut request: IdempotentRequest<O>,
        attempt: impl Fn(Self, IdempotentRequest<O>) -> F,
    ) -> Result<HttpResponse, Error> {
        let wait = request.treatment.wait;
        deadline::extend(wait.unwrap_or_default());
        let deadline = wait.map(|wait| Instant::now() + wait);
        loop {
            let envelope = &request.envelope;
            let note = |outcome| self.note(O::NAME, outcome, &envelope.request_id, Some(envelope), None);
            let answer_in = deadline::remaining(Duration::MAX);
            let tried = match tokio::time::timeout(answer_in, attempt(self.clone(), request.clone())).await {
                Ok(tried) => tried,
                // It goes on, so that a retry finds what comes of it.
                Err(_) => Err(Error::DatabaseUnavailable("the request's time is over".into())),
            };
            let tried = tried.inspect_err(|error| {
                let is_stranger = matches!(error, Error::ApiKeyInvalid | Error::ApiKeyRevoked);
                note(if is_stranger { "unauthorized" } else { "failed" });
            })?;
            let is_parked = match tried {
                Tried::Executed(answer) => return Ok(self.respond(&request, &answer, false)),
                Tried::Replayed(answer) => {
                    note("replayed");
                    return Ok(self.respond(&request, &answer, true));
                }
                Tried::ReplayedDespiteMismatch(answer) => {
                    note("mismatch_replayed");
                    log::warn!(
                        request_id = envelope.request_id.as_str(), operation = O::NAME,
                        key_hash = envelope.key.digest_for(envelope.merchant).as_str();
                        "another request's answer was replayed, as the policy says"
                    );
                    return Ok(self.respond(&request, &answer, true));
                }
                Tried::Mismatch => {
                    note("mismatch");
                    return Err(Error::IdempotencyKeyReused);
                }
                Tried::Expired => {
                    note("expired");
                    return Err(Error::IdempotencyKeyExpired);
                }
                Tried::Observed(outcome) => {
                    note(outcome);
                    request = request.unkeyed();
                    continue;
                }
                Tried::Running { .. } if faults::breaks("claim") => {
                    Arc::make_mut(&mut request.envelope).key = IdempotencyKey::unkeyed();
                    continue;
                }
                Tried::Running { is_parked } => is_parked,
            };
            if let (Some(deadline), false) = (deadline, is_parked) {
                let inner = &self.inner;
                match inner.waiters.wait(&inner.db, envelope.merchant, &envelope.key, deadline).await {
                    // The claim may not have been visible, so that nobody has compared it yet.
                    Some(Woken::Answered(answer))
                        if answer.fingerprint.is_of(&envelope.content) == Some(true) =>
                    {
                        note("replayed");
                        return Ok(self.respond(&request, &answer, true));
                    }
                    Some(Woken::Answered(_) | Woken::Free) => continue,
                    None => {}
                }
            }
            let wait = wait.filter(|_| !is_parked);
            note("in_progress");
            return Err(Error::IdempotencyRequestInProgress {
                waited_s: wait.map(|wait| wait.as_secs()),
                is_parked,
            });
        }
    }

    /// Runs `work` until it isn't [`Look::Again`], a few times at the most, with no connection held in between.
    async fn looking_again<T: Send + 'static>(
        &self,
        enforcement: Enforcement,
        work: impl Fn(&mut PgConnection) -> Result<Look<T>, Error> + Send + Sync + 'static,
    ) -> Result<Result<T, Tried>, Error> {
        let work = Arc::new(work);
        for look in 0..LOOKS_MAX {
            if look > 0 {
                tokio::time::sleep(Duration::from_millis(2 << look)).await;
            }
            let work = Arc::clone(&work);
            match self.inner.db.run_retrying(move |conn| work(conn)).await? {
                Look::Ours(begun) => return Ok(Ok(begun)),
                Look::NotOurs(decision) => return Ok(Err(Tried::of(decision, enforcement))),
                Look::Again => {}
            }
        }
        Ok(Err(Tried::of(Decision::Running { is_parked: false }, enforcement)))
    }

    /// Executes a local request, or finds out why not.
    async fn try_local<O: LocalOperation>(&self, request: IdempotentRequest<O>) -> Result<Tried, Error> {
        let (engine, work) = (self.clone(), request.clone());
        let executed = self
            .looking_again(request.treatment.enforcement, move |conn| engine.execute_local(conn, &work))
            .await?;
        let answer = match executed {
            Ok(answer) => answer,
            Err(tried) => return Ok(tried),
        };
        self.executed(&request, &answer, 1);
        faults::reach("local_after_commit_before_response");
        Ok(Tried::Executed(answer))
    }

    /// One try of a local request.
    fn execute_local<O: LocalOperation>(
        &self,
        conn: &mut PgConnection,
        request: &IdempotentRequest<O>,
    ) -> Result<Look<Arc<Answer>>, Error> {
        let started = Instant::now();
        let (envelope, policy) = (&request.envelope, &request.treatment.policy);
        let decision = decide(store::find(conn, envelope)?, policy);
        if !matches!(decision, Decision::Claim | Decision::ClaimAfresh) {
            // Local operations never commit an unfinished claim, so nothing of theirs can be taken over.
            return Ok(Look::NotOurs(decision));
        }
        let afresh = matches!(decision, Decision::ClaimAfresh);
        let executed = conn.transaction(|conn| {
            let Some(claim) = self.claim(conn, request, afresh)? else {
                return Ok(Look::Again);
            };
            self.inner.metrics.claim_seconds.observe(started.elapsed().as_secs_f64());
            let claimed = Instant::now();
            faults::reach("local_after_claim");
            let context = self.inner.context(request, &claim, claim.created_at);
            let reply = request.operation.execute(conn, &context)?;
            let answer = store::complete(conn, &claim, reply, &envelope.request_id)?;
            faults::reach("local_before_commit");
            self.inner.metrics.finish_seconds.observe(claimed.elapsed().as_secs_f64());
            Ok::<_, Error>(Look::Ours(answer))
        });
        match executed {
            Err(error) if error.is_final() => self.refuse(conn, request, afresh, &error),
            executed => executed,
        }
    }

    /// Stores a final error as the answer to a request whose transaction it has ended.
    ///
    /// In a transaction of its own: what was written before the error is undone with that one, without a savepoint
    /// around the work, which would cost every request two round trips. Whoever claims the key in between executes
    /// the request instead.
    fn refuse<O: Operation>(
        &self,
        conn: &mut PgConnection,
        request: &IdempotentRequest<O>,
        afresh: bool,
        error: &Error,
    ) -> Result<Look<Arc<Answer>>, Error> {
        conn.transaction(|conn| {
            let Some(claim) = self.claim(conn, request, afresh)? else {
                return Ok(Look::Again);
            };
            let reply = self.inner.context(request, &claim, claim.created_at).problem(error)?;
            Ok(Look::Ours(store::complete(conn, &claim, reply, &request.envelope.request_id)?))
        })
    }

    fn claimant<O: Operation>(request: &IdempotentRequest<O>) -> Claimant {
        Claimant {
            envelope: Arc::clone(&request.envelope),
            operation: O::NAME,
            resource: request.operation.resource(),
            policy: Arc::clone(&request.treatment.policy),
        }
    }

    /// Claims a key that is new, or that was forgotten or may be (`afresh`; needs a transaction).
    fn claim<O: Operation>(
        &self,
        conn: &mut PgConnection,
        request: &IdempotentRequest<O>,
        afresh: bool,
    ) -> Result<Option<Claim>, Error> {
        if afresh {
            store::forget(conn, &request.envelope, &request.treatment.policy)?;
        }
        let claim = store::claim(conn, &Self::claimant(request), self.inner.settings.timing.lease)?;
        if claim.is_none() {
            faults::reach("after_conflict");
        }
        Ok(claim)
    }

    /// Tells everybody that a request has been executed.
    fn executed<O: Operation>(&self, request: &IdempotentRequest<O>, answer: &Arc<Answer>, attempt: u32) {
        let envelope = &request.envelope;
        self.inner.waiters.answered(envelope.merchant, &envelope.key, answer);
        self.note(O::NAME, "executed", &envelope.request_id, Some(envelope), Some(attempt));
    }

    fn respond<O>(&self, request: &IdempotentRequest<O>, answer: &Answer, replayed: bool) -> HttpResponse {
        let mut response = HttpResponse::build(answer.reply.status);
        let (headers, body) = answer.reply.unseal(&self.inner.vault);
        for header in headers {
            response.insert_header(header);
        }
        if !replayed {
            for (name, value) in &answer.reply.notes {
                response.insert_header((*name, value.as_str()));
            }
        }
        // Where keys have no effect, nothing may look as if they had.
        if request.treatment.enforcement == Enforcement::Enforce {
            response.insert_header(("Idempotency-Key", request.envelope.key.as_str()));
            response.insert_header(("Idempotent-Replayed", if replayed { "true" } else { "false" }));
            // An HTTP date, as in `Expires` (RFC 9110, section 5.6.7).
            let expires = answer.expires_at.format("%a, %d %b %Y %H:%M:%S GMT").to_string();
            response.insert_header(("Idempotency-Expires", expires));
        }
        if replayed {
            response.insert_header(("Original-Request-Id", answer.request_id.as_str()));
            if let Some(wait) = request.treatment.wait {
                response.insert_header(("Preference-Applied", format!("wait={}", wait.as_secs())));
            }
        }
        response.body(body)
    }
}
