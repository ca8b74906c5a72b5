//! Access to the database: one bounded pool.
//!
//! Promised: no work waits longer than the acquire timeout for a connection, and none holds one while it
//! waits for anything but the database. Who waits for a connection gets it [in turn](super::turns).

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use actix_web::rt::task::{JoinHandle, spawn_blocking};
use diesel::connection::TransactionManager;
use diesel::r2d2::Pool;
use diesel::{Connection, PgConnection};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use secrecy::{ExposeSecret, SecretString};

use super::admission::{Admission, Place};
use super::deadline;
use super::fitness::Unfit;
use super::metrics::Metrics;
use super::party::{self, Party};
use super::permits::Permits;
use super::session::{self, Handling, Session, Sessions};
use crate::base::metrics::GaugeGuard;
use crate::base::scope;
use crate::error::{AsFailure, Failure, is_connection_lost, is_session_lost};

pub(crate) use super::session::establish;
pub use super::session::{connect, plan_freely};

/// Maximum number of attempts at a transaction that collides (deadlock, serialization failure, lock timeout).
const TRIES_MAX: u32 = 5;
/// Maximum time for all attempts together.
const RETRYING_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time for work that has a connection. The server limits statements to half of this; only a server
/// that doesn't answer at all takes longer.
const WORK_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval of the checks whether a server that doesn't answer on old connections can be reached.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// Pause between two checks whether connections keep their sessions again.
const INSPECTION_INTERVAL: Duration = Duration::from_secs(1);

/// Default of the number of requests that may wait for the database at the same time: those of a fraction of a second,
/// so that the last of them is still answered in time.
pub const WAITING_MAX: u32 = 1_024;

/// Maximum number of pools at the same time: the current one, and abandoned ones, each until its last thread
/// has got an answer.
pub const POOLS_MAX: usize = 4;

/// The cause of a [`Failure::DatabaseUnavailable`] for work that was begun and whose end nobody waited for. It
/// may still take effect.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Silence(pub &'static str);

/// Whether a failure leaves open whether the work that it ended has taken effect: the database didn't answer in
/// time, or the connection was lost. Meant for work whose every statement matters; the caller knows whether
/// anything had been sent that can take effect.
pub fn is_outcome_open(failure: &Failure) -> bool {
    let Failure::DatabaseUnavailable(cause) = failure else { return false };
    cause.is::<Silence>() || cause.downcast_ref::<diesel::result::Error>().is_some_and(is_connection_lost)
}

/// A handle to the pool, cheap to clone.
///
/// Diesel's connections are synchronous, so each use runs on a thread for blocking work. A permit is taken
/// *before* that, without a thread or a connection: a burst waits in async code, where waiting costs next to
/// nothing, and gets 503 when the wait becomes too long.
///
/// libpq waits for an answer for as long as the other side acknowledges what was sent, and nothing can wake
/// it. A server with a hanging disk does that, and so may the network in between. So when work takes too long
/// and a new connection succeeds, the old connections count as lost: the pool is replaced, and its threads
/// are left to their wait.
///
/// A session that isn't the connection's own could run another statement than it's told. So as soon as one is met, no
/// work begins until connections keep their sessions again.
#[derive(Clone)]
pub struct Db {
    shared: Arc<Shared>,
}

struct Shared {
    /// The current pool.
    lane: RwLock<Arc<Lane>>,
    lanes: Arc<AtomicUsize>,
    /// Why no work begins at the moment.
    unfit: RwLock<Option<Unfit>>,
    /// Whether no work begins because a connection had lost its session.
    has_doubts: AtomicBool,
    url: SecretString,
    size: u32,
    acquire_timeout: Duration,
    admission: Arc<Admission>,
    metrics: Metrics,
}

/// A pool, and the permits to use it.
struct Lane {
    pool: Pool<Sessions>,
    permits: Arc<Permits>,
    /// Held during the check whether the pool is lost.
    probing: tokio::sync::Mutex<()>,
    lanes: Arc<AtomicUsize>,
}

impl Lane {
    fn new(
        url: &SecretString,
        size: u32,
        acquire_timeout: Duration,
        lanes: Arc<AtomicUsize>,
        metrics: &Metrics,
    ) -> Self {
        let permits = Permits::new(size as usize, metrics.pool_waiting.clone());
        let pool = Pool::builder()
            .max_size(size)
            .connection_timeout(acquire_timeout)
            // A test would cost a round trip each time. Dead connections are discarded below.
            .test_on_check_out(false)
            .build_unchecked(Sessions::new(url));
        lanes.fetch_add(1, Ordering::Relaxed);
        Self { pool, permits, probing: tokio::sync::Mutex::new(()), lanes }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.lanes.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The places for requests that wait for the database.
fn waiting(places_max: u32, metrics: &Metrics) -> Arc<Admission> {
    Admission::new(places_max as usize, metrics.waiting_requests.clone(), metrics.overloads.clone())
}

impl Db {
    /// Makes a pool of `size` connections to `url`. Doesn't wait for the database: until it can be reached,
    /// requests get 503.
    pub fn new(url: &SecretString, size: u32, acquire_timeout: Duration, metrics: Metrics) -> Self {
        metrics.pool_size.set(size.into());
        let lanes = Arc::<AtomicUsize>::default();
        let lane = Arc::new(Lane::new(url, size, acquire_timeout, Arc::clone(&lanes), &metrics));
        let (lane, unfit) = (RwLock::new(lane), RwLock::default());
        let url = url.clone();
        let admission = waiting(WAITING_MAX, &metrics);
        Self {
            shared: Arc::new(Shared {
                lane,
                lanes,
                unfit,
                has_doubts: AtomicBool::new(false),
                url,
                size,
                acquire_timeout,
                admission,
                metrics,
            }),
        }
    }

    /// Sets the number of requests that may wait for the database at the same time. Only for a new pool.
    pub fn with_waiting_max(mut self, waiting_max: u32) -> Self {
        let shared = Arc::get_mut(&mut self.shared).expect("nobody has a clone of a new pool");
        shared.admission = waiting(waiting_max, &shared.metrics);
        self
    }

    /// Takes a place among the requests that may wait for the database. A request takes one before it does anything
    /// else, and leaves it when it has what it needs or has become a claim. What comes after a claim needs none, since
    /// it must not be refused any more. Errors: `overloaded`.
    pub fn admit(&self, party: Party) -> Result<Place, Failure> {
        self.shared.admission.enter(party)
    }

    /// Makes places for requests with large bodies.
    pub fn large_bodies(&self, places_max: usize) -> Arc<Admission> {
        let Metrics { large_bodies, overloads, .. } = &self.shared.metrics;
        Admission::new(places_max, large_bodies.clone(), overloads.clone())
    }

    /// Why no work begins at the moment, if that's so.
    pub fn unfit(&self) -> Option<Unfit> {
        let refused = *self.shared.unfit.read().expect("no holder panics");
        let has_doubts = self.shared.has_doubts.load(Ordering::Acquire);
        refused.or_else(|| has_doubts.then_some(Unfit::SessionsMixed))
    }

    /// Lets no work begin until [`accept`](Self::accept).
    pub fn refuse(&self, unfit: Unfit) {
        *self.shared.unfit.write().expect("no holder panics") = Some(unfit);
    }

    /// Lets work begin again, unless connections are in doubt.
    pub fn accept(&self) {
        *self.shared.unfit.write().expect("no holder panics") = None;
    }

    /// Checks that the database can be written, on a connection that must have kept its session. Errors:
    /// `database_unavailable`; [`unfit`](Self::unfit) knows more if no work begins.
    pub async fn check(&self) -> Result<(), Failure> {
        self.refuse_if_unfit()?;
        self.retry(|| self.run_session(WORK_TIMEOUT, Session::check)).await
    }

    fn refuse_if_unfit(&self) -> Result<(), Failure> {
        self.unfit().map_or(Ok(()), |unfit| Err(Failure::DatabaseUnavailable(unfit.into())))
    }

    fn lane(&self) -> Arc<Lane> {
        Arc::clone(&self.shared.lane.read().expect("no holder panics"))
    }

    /// Maximum number of connections in use.
    pub fn size(&self) -> u32 {
        self.shared.size
    }

    /// Maximum wait for a connection.
    pub fn acquire_timeout(&self) -> Duration {
        self.shared.acquire_timeout
    }

    /// Runs `work` with a connection on a blocking thread.
    ///
    /// Errors, in the order checked: `database_unavailable` if the database is [unfit](Self::unfit) or no
    /// connection is free in time, then the errors of `work`, then `database_unavailable` if it takes longer than
    /// ten seconds or than the request has [left](deadline). In that last case it isn't known whether `work` has
    /// taken effect. A panic in `work` is `internal`, and its connection is discarded.
    pub async fn run<T: Send + 'static, E: AsFailure + Send + 'static>(
        &self,
        work: impl FnOnce(&mut PgConnection) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        self.run_within(WORK_TIMEOUT, work).await
    }

    /// Like [`run`](Self::run), with another limit than ten seconds: for background work that sets its own
    /// `statement_timeout`.
    pub async fn run_within<T: Send + 'static, E: AsFailure + Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce(&mut PgConnection) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        self.refuse_if_unfit()?;
        self.run_session(limit, |session| work(&mut session.conn)).await
    }

    /// Like [`run`](Self::run), also while the database is [unfit](Self::unfit): for the check whether it still is.
    pub async fn run_regardless<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut PgConnection) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        self.run_session(WORK_TIMEOUT, |session| work(&mut session.conn)).await
    }

    async fn run_session<T: Send + 'static, E: AsFailure + Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce(&mut Session) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        let asked = Instant::now();
        let (lane, metrics) = (self.lane(), &self.shared.metrics);
        let patience = deadline::remaining(self.shared.acquire_timeout);
        let permit =
            tokio::time::timeout(patience, lane.permits.acquire(party::current())).await.map_err(|_| {
                metrics.pool_timeouts.inc();
                Failure::DatabaseUnavailable("all connections are in use".into())
            })?;
        metrics.pool_wait_seconds.observe(asked.elapsed().as_secs_f64());
        let in_use = GaugeGuard::new(&metrics.pool_in_use);
        let used = Arc::clone(&lane);
        let work = spawn_blocking(scope::carried(move || {
            // Moved in, so that the permit outlives the use of the connection even if the caller is dropped
            // meanwhile.
            let (_permit, _in_use) = (permit, in_use);
            let mut session = used.pool.get().map_err(|error| Failure::DatabaseUnavailable(error.into()))?;
            let result = work(&mut session);
            if is_unavailable(&result) {
                // The pool discards returned connections in this state.
                let conn = &mut session.conn;
                <PgConnection as Connection>::TransactionManager::transaction_manager_status_mut(conn)
                    .set_in_error();
            }
            result
        }));
        let mut work = WatchedTask { db: self, lane, give_up_at: Instant::now() + limit, work: Some(work) };
        match tokio::time::timeout(deadline::remaining(limit), work.ended()).await {
            Ok(Ok(result)) => {
                if is_of_another_session(&result) {
                    self.doubt_sessions();
                }
                result
            }
            Ok(Err(_)) => Err(Failure::internal("the database work panicked").into()),
            Err(_) => {
                let silence = Silence("the database didn't answer in time");
                Err(Failure::DatabaseUnavailable(silence.into()).into())
            }
        }
    }

    /// Replaces the pool if `work` doesn't end in time and new connections succeed.
    async fn watch<T>(self, lane: Arc<Lane>, give_up_at: Instant, mut work: JoinHandle<T>) {
        if tokio::time::timeout_at(give_up_at.into(), &mut work).await.is_ok() {
            return;
        }
        let _one = lane.probing.lock().await;
        // A probe that begins while the server is silent waits for its whole timeout. The next probes don't
        // wait for it.
        let mut probes = FuturesUnordered::new();
        while !work.is_finished() && Arc::ptr_eq(&lane, &self.lane()) {
            probes.push(self.can_connect());
            let next_at = tokio::time::Instant::now() + PROBE_INTERVAL;
            while let Ok(Some(connected)) = tokio::time::timeout_at(next_at, probes.next()).await {
                // Work that was only slow ends meanwhile.
                if connected && !work.is_finished() {
                    self.replace(&lane, "the database is silent on old connections and answers on new ones");
                }
            }
            let _ = tokio::time::timeout_at(next_at, &mut work).await;
        }
    }

    async fn can_connect(&self) -> bool {
        let mut url = self.shared.url.expose_secret().to_owned();
        // The minimum that libpq accepts.
        session::add_setting(&mut url, "connect_timeout", "2");
        spawn_blocking(move || establish(&url).is_ok()).await.unwrap_or(false)
    }

    /// Replaces a lost pool, unless that has been done, or too many pools are left to their wait. Returns whether
    /// the pool is another one than the lost one.
    fn replace(&self, lost: &Arc<Lane>, why: &str) -> bool {
        let Shared { lane, lanes, url, size, acquire_timeout, metrics, .. } = &*self.shared;
        let mut current = lane.write().expect("no holder panics");
        if !Arc::ptr_eq(&current, lost) {
            return true;
        }
        if lanes.load(Ordering::Relaxed) >= POOLS_MAX {
            return false;
        }
        log::error!("{why}: the pool is replaced");
        *current = Arc::new(Lane::new(url, *size, *acquire_timeout, Arc::clone(lanes), metrics));
        true
    }

    /// Lets no work begin until connections are found to keep their sessions, and begins to look for that.
    fn doubt_sessions(&self) {
        // Without a system, the process is ending.
        let Some(system) = actix_web::rt::System::try_current() else { return };
        if !self.shared.has_doubts.swap(true, Ordering::AcqRel) {
            system.arbiter().spawn(self.clone().inspect_sessions());
        }
    }

    /// Waits until connections keep their sessions. Then lets work begin again, on new connections: the old ones are
    /// in an unknown state.
    async fn inspect_sessions(self) {
        let lane = self.lane();
        let mut is_told = false;
        loop {
            let url = self.shared.url.clone();
            match spawn_blocking(move || session::inspect(url.expose_secret())).await {
                Ok(Ok(Handling::Mixed)) => {
                    if !std::mem::replace(&mut is_told, true) {
                        log::error!("{} No work begins meanwhile.", Unfit::SessionsMixed.explained());
                    }
                }
                Ok(Ok(_)) => {
                    if self.replace(&lane, "a connection has lost its session, and new ones keep theirs") {
                        return self.shared.has_doubts.store(false, Ordering::Release);
                    }
                }
                Ok(Err(error)) => log::debug!("sessions can't be inspected: {error}"),
                // The process is ending.
                Err(_) => return,
            }
            tokio::time::sleep(INSPECTION_INTERVAL).await;
        }
    }

    /// Like [`run`](Self::run), and starts again
    ///
    /// * when the work collides with other transactions: up to five attempts in all, with growing, jittered
    ///   pauses during which no connection is held;
    /// * when the connection turns out to be dead, as all of them are after a restart of the database: once
    ///   per connection of the pool.
    ///
    /// Gives up after five seconds. `work` must be a whole transaction that is safe to repeat if the answer
    /// to an earlier commit was lost, as reads, claims and fenced writes are.
    pub async fn run_retrying<T: Send + 'static, E: AsFailure + Send + 'static>(
        &self,
        work: impl Fn(&mut PgConnection) -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<T, E> {
        let work = Arc::new(work);
        self.retry(|| {
            let this_try = Arc::clone(&work);
            self.run(move |conn| this_try(conn))
        })
        .await
    }

    async fn retry<T, E: AsFailure, F: Future<Output = Result<T, E>>>(
        &self,
        attempt: impl Fn() -> F,
    ) -> Result<T, E> {
        let started = Instant::now();
        let (mut tries, mut dead_connections) = (0, 0);
        loop {
            let error = match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            match error.failure() {
                _ if started.elapsed() > RETRYING_TIMEOUT => return Err(error),
                Some(Failure::TransientConflict(cause)) if tries + 1 < TRIES_MAX => {
                    tries += 1;
                    log::debug!("try {tries} collided: {cause}");
                    let ceiling_ms = 5 << tries;
                    tokio::time::sleep(Duration::from_millis(rand::random_range(1..=ceiling_ms))).await;
                }
                Some(Failure::DatabaseUnavailable(cause))
                    if cause.is::<diesel::result::Error>() && dead_connections < self.shared.size =>
                {
                    dead_connections += 1;
                }
                _ => return Err(error),
            }
        }
    }
}

fn is_unavailable<T, E: AsFailure>(result: &Result<T, E>) -> bool {
    let is_broken = |failure: &Failure| {
        matches!(failure, Failure::DatabaseUnavailable(_) | Failure::OutcomeUnknown { .. })
    };
    result.as_ref().is_err_and(|error| error.failure().is_some_and(is_broken))
}

/// Whether work has met a session that isn't the connection's own.
fn is_of_another_session<T, E: AsFailure>(result: &Result<T, E>) -> bool {
    let Some(Failure::DatabaseUnavailable(cause)) = result.as_ref().err().and_then(AsFailure::failure) else {
        return false;
    };
    cause.is::<Unfit>() || cause.downcast_ref::<diesel::result::Error>().is_some_and(is_session_lost)
}

/// Work under way, which is still watched when its caller no longer waits.
struct WatchedTask<'a, T: Send + 'static> {
    db: &'a Db,
    lane: Arc<Lane>,
    give_up_at: Instant,
    /// The work, until it has ended.
    work: Option<JoinHandle<T>>,
}

impl<T: Send + 'static> WatchedTask<'_, T> {
    async fn ended(&mut self) -> Result<T, tokio::task::JoinError> {
        let ended = self.work.as_mut().expect("it's asked for once").await;
        self.work = None;
        ended
    }
}

impl<T: Send + 'static> Drop for WatchedTask<'_, T> {
    fn drop(&mut self) {
        // Without a runtime, the process is ending.
        if let Some(work) = self.work.take().filter(|work| !work.is_finished())
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(self.db.clone().watch(Arc::clone(&self.lane), self.give_up_at, work));
        }
    }
}
