//! The state machine: replay, refuse or execute.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use actix_web::HttpResponse;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use diesel::{Connection, PgConnection};
use futures_util::FutureExt;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::db::Db;
use crate::error::Error;
use crate::faults;
use crate::ids::MerchantId;
use crate::processor::{Processor, ProcessorCall};
use crate::request::log_cause;
use crate::vault::Vault;

use super::policy::Policy;
use super::reply::Reply;
use super::request::{Envelope, IdempotentRequest, Operation};
use super::store::{self, Answer, Claim, Found};

/// How often the engine looks at a key that somebody else is claiming in a transaction that hasn't ended, or
/// that changes between looking and claiming. With the pauses in between some 60 ms: enough for most
/// transactions, so that the duplicate gets the real answer (a replay, or that the key is another
/// request's) rather than being sent away.
const LOOKS_MAX: u32 = 5;

/// What an operation gets to know about its execution.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    envelope: &'a Envelope,
    claim: &'a Claim,
    now: DateTime<Utc>,
    vault: &'a Vault,
}

impl Context<'_> {
    /// Whose request it is.
    pub fn merchant(&self) -> MerchantId {
        self.envelope.merchant
    }

    /// When the key was first claimed: the same in every attempt.
    pub fn claimed_at(&self) -> DateTime<Utc> {
        self.claim.created_at
    }

    /// Time of the effects, by the database's clock.
    pub fn now(&self) -> DateTime<Utc> {
        self.now
    }

    /// Id of the resource: allocated with the first claim or named by the request, and the same in every
    /// attempt.
    pub fn resource_id(&self) -> Result<Uuid, Error> {
        self.claim.resource_id.ok_or_else(|| Error::internal("the claim has no resource"))
    }

    /// The secret for `purpose` of the object `id`, to be handed out in a [sealed](Reply::seal) reply.
    pub fn secret(&self, purpose: &str, id: Uuid) -> String {
        self.vault.derive(purpose, id)
    }

    /// `error` as an answer to this request.
    pub fn problem(&self, error: &Error) -> Result<Reply, Error> {
        Reply::problem(error, &self.envelope.request_id, &self.envelope.path)
    }

    /// Names one step of this request towards the processor: the same in every attempt, another for
    /// every other request.
    ///
    /// The processor's key is derived rather than passed through, so that two merchants with the same
    /// key stay apart. The time of the first claim is part of it: when a key is used again after it has
    /// been forgotten, that is a new payment for the processor too.
    pub fn processor_call(&self, step: &str) -> ProcessorCall {
        let mut hash = Sha256::new();
        hash.update(self.claim.merchant.0.as_bytes());
        hash.update(self.claim.created_at.timestamp_micros().to_be_bytes());
        hash.update(self.claim.key.as_str());
        ProcessorCall {
            key: format!("{}:{step}", hex::encode(&hash.finalize()[..16])),
            attempt: self.claim.attempt,
        }
    }
}

/// An operation that changes only our own database.
pub trait LocalOperation: Operation {
    /// Does the work, inside the engine's transaction. A final error (see [`Error::is_final`]) undoes
    /// what was written and is kept as the answer; any other undoes the claim as well.
    fn execute(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Reply, Error>;
}

/// An operation that calls the payment processor.
///
/// ```text
/// one transaction   claim, prepare        reserve what the call will use, or refuse for good
/// no transaction    perform               call the processor
/// one transaction   lock (fence), finish  write what follows, release the reservation, store the answer
/// ```
#[async_trait]
pub trait ExternalOperation: Operation {
    /// What performing and finishing need to know of the reservation.
    type Prepared: Send + Sync + 'static;

    /// What the processor said, as far as finishing needs it.
    type Outcome: Send + Sync + 'static;

    /// Whether [`prepare`](Self::prepare) uses the database. Without it the claim needs no transaction
    /// around it, which saves most of its round trips.
    const RESERVES: bool = true;

    /// Checks whether the operation is allowed and reserves what it needs (money, the right to change an
    /// object), in the transaction of the first claim: so that two requests can't both be let through to
    /// the processor where there is room for one. A final error is kept as the answer, and the
    /// processor is never called; any other undoes the claim.
    fn prepare(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Self::Prepared, Error>;

    /// Finds the reservation of an earlier attempt again, in the transaction of a takeover.
    fn resume(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Self::Prepared, Error>;

    /// Calls the processor, with no transaction open. May run again after a crash, so each call must go
    /// out under a key from [`Context::processor_call`]. A decline is an outcome; an error means that
    /// there is none yet.
    async fn perform(
        &self,
        processor: &dyn Processor,
        context: &Context<'_>,
        prepared: &Self::Prepared,
    ) -> Result<Self::Outcome, Error>;

    /// Writes what follows from the outcome, inside the engine's transaction, which holds a lock on the
    /// key's row. Errors as with [`LocalOperation::execute`], except that the claim stays.
    fn finish(
        &self,
        conn: &mut PgConnection,
        context: &Context<'_>,
        prepared: &Self::Prepared,
        outcome: &Self::Outcome,
    ) -> Result<Reply, Error>;
}

/// Executes requests at most once per (merchant, key). Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    db: Db,
    processor: Arc<dyn Processor>,
    rules: Arc<Rules>,
}

/// What executions go by.
struct Rules {
    policy: Policy,
    vault: Vault,
}

impl Rules {
    fn context<'a>(&'a self, envelope: &'a Envelope, claim: &'a Claim, now: DateTime<Utc>) -> Context<'a> {
        Context { envelope, claim, now, vault: &self.vault }
    }
}

/// What became of the attempt to begin.
enum Begun<P> {
    /// The request is ours to execute.
    Claimed(Claim, P),
    /// It was refused for good just now.
    Refused(Answer),
    /// It was answered before.
    Answered(Answer),
}

impl Engine {
    /// An engine on `db` whose external operations call `processor` and whose secrets come from `vault`.
    pub fn new(db: Db, processor: Arc<dyn Processor>, policy: Policy, vault: Vault) -> Self {
        Self { db, processor, rules: Arc::new(Rules { policy, vault }) }
    }

    /// Runs a local operation: claim, work and answer in one transaction.
    ///
    /// Errors, in the order checked: `database_unavailable`, `idempotency_key_reused`,
    /// `idempotency_request_in_progress`, those of the operation that aren't final,
    /// `transient_conflict`.
    ///
    /// Locks: an advisory lock on (merchant, key), then what the operation locks.
    pub async fn run_local<O: LocalOperation>(
        &self,
        request: IdempotentRequest<O>,
    ) -> Result<HttpResponse, Error> {
        let request = Arc::new(request);
        let rules = Arc::clone(&self.rules);
        let work = Arc::clone(&request);
        let (answer, replayed) = self.looking_again(move |conn| execute_local(conn, &work, &rules)).await?;
        Ok(self.respond(&request.envelope, answer, replayed))
    }

    /// Runs `work` until it decides, a few times at the most, with no connection held in between.
    async fn looking_again<T: Send + 'static>(
        &self,
        work: impl Fn(&mut PgConnection) -> Result<Option<T>, Error> + Send + Sync + 'static,
    ) -> Result<T, Error> {
        let work = Arc::new(work);
        for look in 0..LOOKS_MAX {
            if look > 0 {
                tokio::time::sleep(Duration::from_millis(2 << look)).await;
            }
            let work = Arc::clone(&work);
            if let Some(decided) = self.db.run_retrying(move |conn| work(conn)).await? {
                return Ok(decided);
            }
        }
        Err(Error::IdempotencyRequestInProgress)
    }

    /// Runs an external operation: committed claim, processor, finish in one fenced transaction.
    ///
    /// It goes on when the client hangs up, so that the client's retry finds an answer.
    ///
    /// Errors, in the order checked: `database_unavailable`, `idempotency_key_reused`,
    /// `idempotency_request_in_progress`, `processor_unavailable`, those of the operation that aren't
    /// final, `transient_conflict`. After each of them the same request can be sent again and goes on
    /// where this one stopped.
    ///
    /// Locks, in the finishing transaction: the key's row, then what the operation locks.
    pub async fn run_external<O: ExternalOperation>(
        &self,
        request: IdempotentRequest<O>,
    ) -> Result<HttpResponse, Error> {
        let engine = self.clone();
        actix_web::rt::spawn(async move { engine.execute_external(request).await })
            .await
            .unwrap_or_else(|error| Err(Error::internal(error)))
    }

    async fn execute_external<O: ExternalOperation>(
        &self,
        request: IdempotentRequest<O>,
    ) -> Result<HttpResponse, Error> {
        let request = Arc::new(request);
        let envelope = &request.envelope;
        let (claim, prepared) = match self.begin(&request).await? {
            Begun::Answered(answer) => return Ok(self.respond(envelope, answer, true)),
            Begun::Refused(answer) => return Ok(self.respond(envelope, answer, false)),
            Begun::Claimed(claim, prepared) => (claim, prepared),
        };
        faults::reach("after_claim");
        match self.attempt(&request, &claim, prepared).await {
            Ok(answer) => {
                faults::reach("after_commit");
                Ok(self.respond(envelope, answer, false))
            }
            // The lease ran out and another attempt was faster. What we did here was rolled back, and
            // the client gets the winner's answer, if there is one yet.
            Err(Error::ClaimLost) => self.winners_answer(&request).await,
            Err(error) => {
                let release = move |conn: &mut PgConnection| store::release(conn, &claim);
                if let Err(error) = self.db.run(release).await {
                    // Then the lease has to run out by itself.
                    log_cause(&error, &envelope.request_id);
                }
                Err(error)
            }
        }
    }

    /// Finds the answer, or claims the key and prepares.
    async fn begin<O: ExternalOperation>(
        &self,
        request: &Arc<IdempotentRequest<O>>,
    ) -> Result<Begun<O::Prepared>, Error> {
        let request = Arc::clone(request);
        let rules = Arc::clone(&self.rules);
        self.looking_again(move |conn| match store::find(conn, &request.envelope)? {
            Found::Completed(answer) => Ok(Some(Begun::Answered(answer))),
            Found::Mismatch => Err(Error::IdempotencyKeyReused),
            Found::Running => Err(Error::IdempotencyRequestInProgress),
            Found::Nothing if O::RESERVES => conn.transaction(|conn| claim(conn, &request, &rules)),
            Found::Nothing => claim(conn, &request, &rules),
            Found::Abandoned => conn.transaction(|conn| take_over(conn, &request, &rules)),
        })
        .await
    }

    /// Calls the processor and writes what follows.
    async fn attempt<O: ExternalOperation>(
        &self,
        request: &Arc<IdempotentRequest<O>>,
        claim: &Claim,
        prepared: O::Prepared,
    ) -> Result<Answer, Error> {
        let context = self.rules.context(&request.envelope, claim, claim.created_at);
        let calls = request.operation.perform(&*self.processor, &context, &prepared);
        // A panic is caught here, so that the lease is given up like after any other failure.
        let outcome =
            tokio::time::timeout(self.rules.policy.processor_timeout, AssertUnwindSafe(calls).catch_unwind())
                .await
                .map_err(|_| Error::ProcessorUnavailable("the processor took too long".into()))?
                .map_err(|_| Error::internal("the operation panicked"))??;
        faults::reach("after_processor");

        let request = Arc::clone(request);
        let claim = claim.clone();
        let rules = Arc::clone(&self.rules);
        self.db
            .run_retrying(move |conn| {
                conn.transaction(|conn| {
                    let now = store::lock(conn, &claim)?;
                    let context = rules.context(&request.envelope, &claim, now);
                    let reply = settle(conn, &context, |conn| {
                        request.operation.finish(conn, &context, &prepared, &outcome)
                    })?;
                    store::complete(conn, &claim, &reply)?;
                    faults::reach("in_finish");
                    Ok(answer(&request.envelope, &claim, reply))
                })
            })
            .await
    }

    fn respond(&self, envelope: &Envelope, answer: Answer, replayed: bool) -> HttpResponse {
        let mut response = HttpResponse::build(answer.reply.status);
        let (headers, body) = answer.reply.unseal(&self.rules.vault);
        for (name, value) in headers {
            response.insert_header((name, value));
        }
        response.insert_header(("Idempotency-Key", envelope.key.as_str()));
        response.insert_header(("Idempotent-Replayed", if replayed { "true" } else { "false" }));
        // An HTTP date, as in `Expires` (RFC 9110, section 5.6.7).
        let expires = answer.expires_at.format("%a, %d %b %Y %H:%M:%S GMT").to_string();
        response.insert_header(("Idempotency-Expires", expires));
        if replayed {
            response.insert_header(("Original-Request-Id", answer.request_id));
        }
        response.body(body)
    }

    /// What the attempt that took our claim over has made of the request.
    async fn winners_answer<O: ExternalOperation>(
        &self,
        request: &Arc<IdempotentRequest<O>>,
    ) -> Result<HttpResponse, Error> {
        let looking = Arc::clone(request);
        match self.db.run_retrying(move |conn| store::find(conn, &looking.envelope)).await? {
            Found::Completed(answer) => Ok(self.respond(&request.envelope, answer, true)),
            _ => Err(Error::IdempotencyRequestInProgress),
        }
    }
}

/// Claims an unused key and prepares: both, or a stored refusal. `None` when somebody else was faster.
fn claim<O: ExternalOperation>(
    conn: &mut PgConnection,
    request: &IdempotentRequest<O>,
    rules: &Rules,
) -> Result<Option<Begun<O::Prepared>>, Error> {
    let (envelope, operation) = (&request.envelope, &request.operation);
    let Some(claim) = store::claim(conn, envelope, O::NAME, operation.resource(), &rules.policy)? else {
        return Ok(None);
    };
    let context = rules.context(envelope, &claim, claim.created_at);
    if !O::RESERVES {
        let prepared = operation.prepare(conn, &context)?;
        return Ok(Some(Begun::Claimed(claim, prepared)));
    }
    match conn.transaction(|conn| operation.prepare(conn, &context)) {
        Ok(prepared) => Ok(Some(Begun::Claimed(claim, prepared))),
        Err(error) if error.is_final() => {
            let reply = context.problem(&error)?;
            store::complete(conn, &claim, &reply)?;
            Ok(Some(Begun::Refused(answer(envelope, &claim, reply))))
        }
        Err(error) => Err(error),
    }
}

/// Takes over an abandoned request where it was left. `None` when somebody else was faster.
fn take_over<O: ExternalOperation>(
    conn: &mut PgConnection,
    request: &IdempotentRequest<O>,
    rules: &Rules,
) -> Result<Option<Begun<O::Prepared>>, Error> {
    let Some(claim) = store::take_over(conn, &request.envelope, &rules.policy)? else {
        return Ok(None);
    };
    let context = rules.context(&request.envelope, &claim, claim.created_at);
    let prepared = request.operation.resume(conn, &context)?;
    Ok(Some(Begun::Claimed(claim, prepared)))
}

/// One try of a local request: its answer, and whether that is a replay. `None` when somebody else was
/// faster.
fn execute_local<O: LocalOperation>(
    conn: &mut PgConnection,
    request: &IdempotentRequest<O>,
    rules: &Rules,
) -> Result<Option<(Answer, bool)>, Error> {
    let envelope = &request.envelope;
    match store::find(conn, envelope)? {
        Found::Completed(answer) => return Ok(Some((answer, true))),
        Found::Mismatch => return Err(Error::IdempotencyKeyReused),
        // Local operations never commit an unfinished claim, so this row is another operation's with the
        // same fingerprint, which can't be; refusing is the safe answer.
        Found::Running | Found::Abandoned => return Err(Error::IdempotencyRequestInProgress),
        Found::Nothing => {}
    }
    let executed = conn.transaction(|conn| {
        let resource = request.operation.resource();
        let Some(claim) = store::claim(conn, envelope, O::NAME, resource, &rules.policy)? else {
            return Ok(None);
        };
        faults::reach("local_after_claim");
        let context = rules.context(envelope, &claim, claim.created_at);
        let reply = settle(conn, &context, |conn| request.operation.execute(conn, &context))?;
        store::complete(conn, &claim, &reply)?;
        faults::reach("local_before_commit");
        Ok::<_, Error>(Some((answer(envelope, &claim, reply), false)))
    })?;
    if executed.is_some() {
        faults::reach("local_after_commit");
    }
    Ok(executed)
}

/// Runs the domain's part in a savepoint: a final error undoes what it wrote and becomes the answer.
fn settle(
    conn: &mut PgConnection,
    context: &Context<'_>,
    work: impl FnOnce(&mut PgConnection) -> Result<Reply, Error>,
) -> Result<Reply, Error> {
    match conn.transaction(work) {
        Err(error) if error.is_final() => context.problem(&error),
        result => result,
    }
}

fn answer(envelope: &Envelope, claim: &Claim, reply: Reply) -> Answer {
    Answer { reply, request_id: envelope.request_id.clone(), expires_at: claim.expires_at }
}
