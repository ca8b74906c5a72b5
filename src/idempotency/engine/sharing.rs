//! Transactions that requests of different operations share.
//!
//! What a request does costs a few statements, and its transaction a commit, which waits for the disk. So of operations that
//! [say so](crate::idempotency::Descriptor::sharing_transactions), requests that arrive while others are under way run
//! together, in one transaction: all keys are looked up, and claimed, by one statement each; then each request does its own
//! work; then one statement stores the answers. The second half of external operations, after the processor's answer, shares
//! in the same way: one statement locks all keys, which is the fence of each.
//!
//! While few are under way, each has a transaction of its own: it would wait for company, and for the work of others.
//!
//! Each works behind a savepoint. A final error undoes its own work and is stored as its answer, like any other. Whatever
//! else goes wrong with one (a lock that isn't free, a bug) costs it its part: it goes again in a transaction of its own,
//! where errors, retries and waits have their one implementation. Its claim mustn't be committed, and a claim can't be
//! taken back, so the first half then begins anew without it. A panic, or a failure of the commit, ends the whole
//! transaction, and each goes alone.
//!
//! # Locks
//!
//! A shared transaction holds the locks of all its requests until its end, in whatever order their operations take them. It
//! waits for a lock for a moment at most ([`Patience::Little`]), so that it can't hold up its own requests or others for long, and no
//! deadlock lasts. Three things keep such waits rare:
//!
//! * Nearly all locks belong to one merchant, and requests of one merchant go to one *lane*, one batch at a time. There may
//!   be many of them in a transaction: they'd wait for each other's commits otherwise.
//! * In a transaction, requests are sorted by merchant and resource.
//! * Parties take turns for a place in a batch, and a batch has few places: the locks are held for as long as all of it takes.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, SubsecRound, Utc};
use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::base::faults;
use crate::base::ids::MerchantId;
use crate::base::preconditions::Precondition;
use crate::base::scope::{self, Scope};
use crate::error::failure::{AsFailure, Failure};
use crate::idempotency::decision::{Attempt, Decision, Lookup, decide};
use crate::idempotency::envelope::Envelope;
use crate::idempotency::host::{Host, HostError};
use crate::idempotency::metrics::Metrics;
use crate::idempotency::operation::Operation;
use crate::idempotency::reply::Reply;
use crate::idempotency::request::IdempotentRequest;
use crate::idempotency::settings::Settings;
use crate::idempotency::store::{self, Answer, Claim, Claimant, Completion};
use crate::storage::batch::Batcher;
use crate::storage::db::Db;
use crate::storage::party::Party;
use crate::storage::shape;

use super::Engine;
use super::caller::Calling;
use super::outcome::{Patience, transaction};

/// Number of lanes. With more, batches are smaller. Each takes a connection for either half as long as requests come, and
/// goes before what runs alone, for which most of the pool must remain.
const LANES: usize = 2;

/// Maximum number of concurrent batches of a lane, for either half.
const BATCHES_MAX: usize = 2;

/// Maximum number of requests in a transaction: with more, a commit is divided among hardly more, and locks are held longer.
const SIZE_MAX: usize = 16;

/// Maximum number of attempts at a transaction, each without the requests that failed in the one before.
const PASSES_MAX: usize = 2;

/// Maximum age of a lease when the attempt begins its work. If the reservation took longer (it may have waited for a lock, or
/// for others; batched claims reserve nothing), the lease is renewed: it covers the duration of an attempt with little to
/// spare.
pub(super) const LEASE_AGE_MAX: Duration = Duration::from_millis(100);

/// Result of the first half of a request.
pub(super) enum Begun {
    /// It's answered: done, or refused for good.
    Answered(Arc<Answer>),
    /// It owns its key, and has reserved what it needs.
    Claimed(Claim),
}

/// Result of the first half in a batch. [`Lookup::Again`] if the request has to look for itself, alone.
pub(super) type BeginResult<E> = Result<Lookup<Begun>, E>;

/// Result of the second half in a batch. `None` if the request has to finish alone.
pub(super) type FinishResult<E> = Result<Option<Arc<Answer>>, E>;

/// The first half of a request: all of a local one.
pub(super) trait Beginning<E>: Send + Sync {
    /// The request.
    fn caller(&self) -> &dyn Calling<E>;

    /// Runs in a transaction of its own.
    fn run_alone(&self, conn: &mut PgConnection) -> BeginResult<E>;

    /// Does the work under a `claim`, in the caller's transaction. Returns the answer, or `None` if the claim stays.
    fn work(&self, conn: &mut PgConnection, claim: &Claim) -> Result<Option<Reply>, E>;

    /// Takes the time, once all is written; the claim was at `claimed`.
    fn begun(&self, claimed: Instant);
}

/// The second half of a request: what follows the processor's answer.
pub(super) trait Finish<E>: Send + Sync {
    /// The claim under which it runs.
    fn claim(&self) -> &Claim;

    /// Id of the request.
    fn request_id(&self) -> &str;

    /// The scope of the request.
    fn scope(&self) -> Option<&Arc<Scope>>;

    /// Runs in a transaction of its own.
    fn run_alone(&self, conn: &mut PgConnection) -> Result<Arc<Answer>, E>;

    /// Writes the effects at the time `now`, in the caller's transaction, which holds the fence.
    fn work(&self, conn: &mut PgConnection, now: DateTime<Utc>) -> Result<Reply, E>;

    /// The answer that a final error is.
    fn refusal(&self, now: DateTime<Utc>, error: &E) -> Result<Reply, Failure>;
}

type Beginnings<E> = Batcher<Box<dyn Beginning<E>>, BeginResult<E>>;
type Finishes<E> = Batcher<Box<dyn Finish<E>>, FinishResult<E>>;

/// The batchers of requests that share transactions.
pub(super) struct Sharing<E> {
    lanes: Vec<Lane<E>>,
    /// Permits to run alone.
    alone: Arc<Semaphore>,
}

/// A half of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    /// Up to the claim with its reservation. All of a local request.
    First,
    /// What follows the processor's answer.
    Second,
}

/// The batchers of some of the merchants.
pub(super) struct Lane<E> {
    pub begins: Arc<Beginnings<E>>,
    pub finishes: Arc<Finishes<E>>,
}

impl<E: HostError> Sharing<E> {
    /// Makes the batchers of an engine.
    pub fn new<H: Host<Error = E>>(db: &Db, settings: Settings, metrics: &Metrics) -> Self {
        // One request at a time has nothing to share.
        let lanes = if settings.batch_size_max > 1 { LANES } else { 0 };
        let size_max = SIZE_MAX.min(settings.batch_size_max);
        let lease = settings.timing.lease;
        let lane = |_| Lane {
            begins: Batcher::with_batches_max(
                BATCHES_MAX,
                db.clone(),
                size_max,
                metrics.of_batches("begin"),
                move |conn, calls: &[Box<dyn Beginning<E>>]| begin_all(conn, calls, lease, H::PROOF_SQL),
            ),
            finishes: Batcher::with_batches_max(
                BATCHES_MAX,
                db.clone(),
                size_max,
                metrics.of_batches("end"),
                finish_all,
            ),
        };
        // While there are few, connections of their own serve them sooner than a transaction for all. The other half of the
        // pool is for the batches, and for what has to be alone.
        let alone = Arc::new(Semaphore::new((db.size() / 2) as usize));
        Self { lanes: (0..lanes).map(lane).collect(), alone }
    }

    /// Lets a merchant's request run alone for as long as this is held, if so few are under way that it would have nobody to
    /// share with.
    fn alone(&self, merchant: MerchantId, half: Half) -> Option<OwnedSemaphorePermit> {
        let lane = self.lane(merchant)?;
        let is_idle = match half {
            Half::First => lane.begins.is_idle(),
            Half::Second => lane.finishes.is_idle(),
        };
        is_idle.then(|| Arc::clone(&self.alone).try_acquire_owned().ok()).flatten()
    }

    /// The lane of a merchant's requests. `None` if nothing is shared.
    pub fn lane(&self, merchant: MerchantId) -> Option<&Lane<E>> {
        if shape::is_distributed() {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        merchant.0.hash(&mut hasher);
        let number = hasher.finish() % self.lanes.len().max(1) as u64;
        self.lanes.get(usize::try_from(number).unwrap_or_default())
    }
}

impl<H: Host> Engine<H> {
    /// Does a half of a request: `alone` if so few are under way that it would have nobody to share with. Otherwise `shared`,
    /// and `alone` only if that's `None`.
    pub(super) async fn alone_or_shared<O: Operation<Host = H>, T>(
        &self,
        half: Half,
        request: &IdempotentRequest<O>,
        shared: impl Future<Output = Result<Option<T>, H::Error>>,
        alone: impl Future<Output = Result<T, H::Error>>,
    ) -> Result<T, H::Error> {
        let shares = O::DESCRIPTOR.shares_transactions;
        let permit = shares.then(|| self.inner.sharing.alone(request.envelope.merchant, half)).flatten();
        if permit.is_none()
            && let Some(done) = shared.await?
        {
            return Ok(done);
        }
        let done = alone.await;
        drop(permit);
        done
    }

    /// Runs the first half of a request in a transaction that it shares. `None` if it has to have its own.
    ///
    /// Errors: as of the batcher, and those of the request.
    pub(super) async fn begin_shared<O: Operation<Host = H>>(
        &self,
        request: &IdempotentRequest<O>,
        call: impl FnOnce() -> Box<dyn Beginning<H::Error>>,
    ) -> Result<Option<Result<Begun, Attempt>>, H::Error> {
        // A request that no key protects can't look again after a commit without an answer. Whether a condition holds is
        // known: such a request most likely ends with the error, and without effects.
        let may_share = O::DESCRIPTOR.shares_transactions
            && request.is_protected()
            && request.treatment.precondition == Precondition::Holds;
        let merchant = request.envelope.merchant;
        let Some(lane) = self.inner.sharing.lane(merchant).filter(|_| may_share) else {
            return Ok(None);
        };
        let begun = match lane.begins.call(Party::Caller(merchant), call()).await {
            // The next look tells.
            Err(Failure::OutcomeUnknown { .. }) => return Ok(None),
            begun => begun?.transpose()?,
        };
        Ok(match begun {
            Some(Lookup::Ours(begun)) => Some(Ok(begun)),
            Some(Lookup::NotOurs(decision)) => {
                Some(Err(Attempt::of(decision, request.treatment.enforcement)))
            }
            Some(Lookup::Again) | None => None,
        })
    }

    /// Runs the second half of a request in a transaction that it shares. `None` if it has to have its own.
    pub(super) async fn finish_shared(
        &self,
        merchant: MerchantId,
        call: Box<dyn Finish<H::Error>>,
    ) -> Result<Option<Arc<Answer>>, H::Error> {
        let Some(lane) = self.inner.sharing.lane(merchant) else { return Ok(None) };
        match lane.finishes.call(Party::Caller(merchant), call).await {
            // Alone it finds out: a finish that was committed has ended the claim.
            Err(Failure::OutcomeUnknown { .. }) => Ok(None),
            finished => Ok(finished?.transpose()?.flatten()),
        }
    }
}

/// Why a transaction of many doesn't come to its end.
enum Stop {
    /// The requests with these numbers can't be part of it.
    Without(Vec<usize>),
    /// It failed.
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<diesel::result::Error> for Stop {
    fn from(error: diesel::result::Error) -> Self {
        Self::Failed(error.into())
    }
}

/// Runs the first half of requests. The outer error concerns all of them.
fn begin_all<E: HostError>(
    conn: &mut PgConnection,
    calls: &[Box<dyn Beginning<E>>],
    lease: Duration,
    proof_sql: &'static str,
) -> Result<Vec<BeginResult<E>>, Failure> {
    if let [call] = calls {
        let begun = scope::entered(call.caller().scope(), || call.run_alone(conn));
        return Ok(vec![passed_on(begun, Lookup::Again)?]);
    }
    let envelopes: Vec<&Envelope> = calls.iter().map(|call| &*call.caller().claimant().envelope).collect();
    let stored = store::find_all(conn, &envelopes, proof_sql)?;
    let (mut results, mut new) = (Vec::with_capacity(calls.len()), Vec::new());
    for (number, (stored, call)) in stored.into_iter().zip(calls).enumerate() {
        results.push(stored.map_err(E::from).map(|stored| {
            let age = stored.as_ref().map(|stored| stored.age).unwrap_or_default();
            match decide(stored, &call.caller().claimant().policy) {
                Decision::Claim => {
                    new.push(number);
                    Lookup::Again
                }
                Decision::ClaimAfresh | Decision::TakeOver(_) => Lookup::Again,
                decision => {
                    call.caller().found(&decision, age);
                    Lookup::NotOurs(decision)
                }
            }
        }));
    }
    new.sort_by_key(|number| {
        let claimant = calls[*number].caller().claimant();
        (claimant.envelope.merchant.0, claimant.resource.existing())
    });
    for _ in 0..PASSES_MAX {
        if new.is_empty() {
            break;
        }
        match transaction(conn, Patience::Little, |conn| begin_together(conn, calls, &new, lease)) {
            Ok(begun) => {
                for (number, begun) in begun {
                    results[number] = Ok(Lookup::Ours(begun));
                }
                break;
            }
            Err(Stop::Without(failed)) => new.retain(|number| !failed.contains(number)),
            Err(Stop::Failed(failure)) => return Err(failure),
        }
    }
    Ok(results)
}

/// Claims the keys of the requests with these numbers, does their work and stores the answers, in the caller's transaction.
/// Leaves those out whose keys others are claiming.
fn begin_together<E: HostError>(
    conn: &mut PgConnection,
    calls: &[Box<dyn Beginning<E>>],
    numbers: &[usize],
    lease: Duration,
) -> Result<Vec<(usize, Begun)>, Stop> {
    let started = Instant::now();
    let claimants: Vec<&Claimant> = numbers.iter().map(|number| calls[*number].caller().claimant()).collect();
    let claims = store::claim_all(conn, &claimants, lease, "NULL")?;
    let claimed = Instant::now();
    faults::reach("shared_after_claim");
    let (mut begun, mut answered, mut completions, mut failed) = (vec![], vec![], vec![], vec![]);
    let mut savepoint = Savepoint::default();
    for (number, claim) in numbers.iter().zip(claims) {
        let Some((claim, _)) = claim else { continue };
        let call = &calls[*number];
        let reply = match savepoint
            .run(conn, |conn| scope::entered(call.caller().scope(), || call.work(conn, &claim)))?
        {
            Ok(Some(reply)) => reply,
            Ok(None) => {
                begun.push((*number, Begun::Claimed(claim)));
                continue;
            }
            Err(error) if error.is_final() => call.caller().refusal(&claim, &error)?,
            Err(_) => {
                failed.push(*number);
                continue;
            }
        };
        answered.push(*number);
        completions.push(Completion::of(claim, &call.caller().claimant().envelope.request_id, reply));
    }
    if !failed.is_empty() {
        return Err(Stop::Without(failed));
    }
    if started.elapsed() > LEASE_AGE_MAX {
        for (_, begun) in &begun {
            if let Begun::Claimed(claim) = begun {
                store::renew(conn, claim, lease)?;
            }
        }
    }
    let answers = store::answer_all(conn, &completions)?;
    begun.extend(answered.into_iter().zip(answers.into_iter().map(Begun::Answered)));
    for (number, _) in &begun {
        calls[*number].begun(claimed);
    }
    faults::reach("shared_before_commit");
    Ok(begun)
}

/// Runs the second half of requests. The outer error concerns all of them.
fn finish_all<E: HostError>(
    conn: &mut PgConnection,
    calls: &[Box<dyn Finish<E>>],
) -> Result<Vec<FinishResult<E>>, Failure> {
    if let [call] = calls {
        let finished = scope::entered(call.scope(), || call.run_alone(conn));
        return Ok(vec![passed_on(finished.map(Some), None)?]);
    }
    let mut numbers: Vec<usize> = (0..calls.len()).collect();
    numbers.sort_by_key(|number| {
        let claim = calls[*number].claim();
        (claim.merchant.0, claim.resource_id)
    });
    let mut results: Vec<FinishResult<E>> = calls.iter().map(|_| Ok(None)).collect();
    let finished = transaction(conn, Patience::Little, |conn| finish_together(conn, calls, &numbers))?;
    for (number, answer) in finished {
        results[number] = Ok(Some(answer));
    }
    Ok(results)
}

/// Writes the effects and the answers of requests, in the caller's transaction. Leaves those out that have lost their claims,
/// whose keys others have locked, or that fail.
fn finish_together<E: HostError>(
    conn: &mut PgConnection,
    calls: &[Box<dyn Finish<E>>],
    numbers: &[usize],
) -> Result<Vec<(usize, Arc<Answer>)>, Failure> {
    let claims: Vec<&Claim> = numbers.iter().map(|number| calls[*number].claim()).collect();
    let held = store::lock_all(conn, &claims)?;
    let locked = Instant::now();
    let (mut answered, mut completions) = (vec![], vec![]);
    let mut savepoint = Savepoint::default();
    for (number, held) in numbers.iter().zip(held) {
        let Some(locked_at) = held else { continue };
        let call = &calls[*number];
        // The others before it may have taken a while.
        let now = (locked_at + locked.elapsed()).trunc_subsecs(6);
        let reply = match savepoint.run(conn, |conn| scope::entered(call.scope(), || call.work(conn, now)))? {
            Ok(reply) => reply,
            Err(error) if error.is_final() => call.refusal(now, &error)?,
            Err(_) => continue,
        };
        answered.push(*number);
        completions.push(Completion::of(call.claim().clone(), call.request_id(), reply));
    }
    let answers = store::answer_all(conn, &completions)?;
    faults::reach("in_finish");
    Ok(answered.into_iter().zip(answers).collect())
}

/// The result of a request that was alone in its batch, for its caller. `again` if it has to go on by itself: it may wait
/// longer for a lock than a batch. The error ends the connection.
fn passed_on<T, E: AsFailure>(result: Result<T, E>, again: T) -> Result<Result<T, E>, Failure> {
    match result.as_ref().err().and_then(AsFailure::failure) {
        Some(Failure::TransientConflict(_)) => Ok(Ok(again)),
        // Whether or not it has come through: a protected request looks again, and so does a finish.
        Some(lost @ (Failure::DatabaseUnavailable(_) | Failure::OutcomeUnknown { .. })) => {
            Err(Failure::outcome_unknown(lost.detailed()))
        }
        _ => Ok(result),
    }
}

/// The savepoint of one request after the other, in one transaction.
#[derive(Default)]
struct Savepoint {
    is_set: bool,
}

impl Savepoint {
    /// Runs the work of the next request. If that fails, undoes it: the inner error. The outer one ends the transaction.
    fn run<T, E: AsFailure>(
        &mut self,
        conn: &mut PgConnection,
        work: impl FnOnce(&mut PgConnection) -> Result<T, E>,
    ) -> Result<Result<T, E>, Failure> {
        // One round trip per request.
        conn.batch_execute(if self.is_set {
            "RELEASE SAVEPOINT request; SAVEPOINT request"
        } else {
            "SAVEPOINT request"
        })?;
        self.is_set = true;
        let done = work(conn);
        let Err(error) = &done else { return Ok(done) };
        match error.failure() {
            Some(lost @ (Failure::DatabaseUnavailable(_) | Failure::OutcomeUnknown { .. })) => {
                return Err(Failure::outcome_unknown(lost.detailed()));
            }
            // The others have waited enough.
            Some(Failure::TransientConflict(_)) => {
                conn.batch_execute("ROLLBACK TO SAVEPOINT request; SET LOCAL lock_timeout = '1ms'")?;
            }
            _ => conn.batch_execute("ROLLBACK TO SAVEPOINT request")?,
        }
        Ok(done)
    }
}
