//! Access to the database: one bounded pool.
//!
//! Promised: no work waits longer than the acquire timeout for a connection, and none holds one while it
//! waits for anything but the database.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use actix_web::rt::task::{JoinHandle, spawn_blocking};
use diesel::connection::TransactionManager;
use diesel::r2d2::{ConnectionManager, CustomizeConnection, Pool};
use diesel::{Connection, ConnectionError, ConnectionResult, PgConnection, RunQueryDsl};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Semaphore;

use super::deadline;
use super::metrics::Metrics;
use crate::base::metrics::GaugeGuard;
use crate::error::{AsFailure, Failure, is_connection_lost};

/// Maximum number of attempts at a transaction that collides (deadlock, serialization failure, lock timeout).
const TRIES_MAX: u32 = 5;
/// Maximum time for all attempts together.
const RETRYING_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time for work that has a connection. The server limits statements to half of this; only a server
/// that doesn't answer at all takes longer.
const WORK_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval of the checks whether a server that doesn't answer on old connections can be reached.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);

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
#[derive(Clone)]
pub struct Db {
    shared: Arc<Shared>,
}

struct Shared {
    /// The current pool.
    lane: RwLock<Arc<Lane>>,
    lanes: Arc<AtomicUsize>,
    url: SecretString,
    size: u32,
    acquire_timeout: Duration,
    metrics: Metrics,
}

/// A pool, and the permits to use it.
struct Lane {
    pool: Pool<ConnectionManager<PgConnection>>,
    permits: Arc<Semaphore>,
    /// Held during the check whether the pool is lost.
    probing: tokio::sync::Mutex<()>,
    lanes: Arc<AtomicUsize>,
}

impl Lane {
    fn new(url: &SecretString, size: u32, acquire_timeout: Duration, lanes: Arc<AtomicUsize>) -> Self {
        keep_tls_until_the_end();
        let pool = Pool::builder()
            .max_size(size)
            .connection_timeout(acquire_timeout)
            // A test would cost a round trip each time. Dead connections are discarded below.
            .test_on_check_out(false)
            .connection_customizer(Box::new(SessionLimits {
                names_schema: names_schema(url.expose_secret()),
            }))
            .build_unchecked(ConnectionManager::new(with_network_timeouts(url.expose_secret())));
        lanes.fetch_add(1, Ordering::Relaxed);
        Self {
            pool,
            permits: Arc::new(Semaphore::new(size as usize)),
            probing: tokio::sync::Mutex::new(()),
            lanes,
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.lanes.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Db {
    /// Makes a pool of `size` connections to `url`. Doesn't wait for the database: until it can be reached,
    /// requests get 503.
    pub fn new(url: &SecretString, size: u32, acquire_timeout: Duration, metrics: Metrics) -> Self {
        metrics.pool_size.set(size.into());
        let lanes = Arc::<AtomicUsize>::default();
        let lane = Arc::new(Lane::new(url, size, acquire_timeout, Arc::clone(&lanes)));
        let lane = RwLock::new(lane);
        Self { shared: Arc::new(Shared { lane, lanes, url: url.clone(), size, acquire_timeout, metrics }) }
    }

    fn lane(&self) -> Arc<Lane> {
        Arc::clone(&self.shared.lane.read().expect("no holder panics"))
    }

    /// Maximum wait for a connection.
    pub fn acquire_timeout(&self) -> Duration {
        self.shared.acquire_timeout
    }

    /// Runs `work` with a connection on a blocking thread.
    ///
    /// Errors, in the order checked: `database_unavailable` if no connection is free in time, then the errors
    /// of `work`, then `database_unavailable` if it takes longer than ten seconds or than the request has
    /// [left](deadline). In that last case it isn't known whether `work` has taken effect. A panic in `work`
    /// is `internal`, and its connection is discarded.
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
        let asked = Instant::now();
        let (lane, metrics) = (self.lane(), &self.shared.metrics);
        let patience = deadline::remaining(self.shared.acquire_timeout);
        let permit = tokio::time::timeout(patience, Arc::clone(&lane.permits).acquire_owned())
            .await
            .map_err(|_| Failure::DatabaseUnavailable("all connections are in use".into()))?
            .map_err(Failure::internal)?;
        metrics.pool_wait_seconds.observe(asked.elapsed().as_secs_f64());
        let in_use = GaugeGuard::new(&metrics.pool_in_use);
        let used = Arc::clone(&lane);
        let work = spawn_blocking(move || {
            // Moved in, so that the permit outlives the use of the connection even if the caller is dropped
            // meanwhile.
            let (_permit, _in_use) = (permit, in_use);
            let mut conn = used.pool.get().map_err(|error| Failure::DatabaseUnavailable(error.into()))?;
            let result = work(&mut conn);
            if is_unavailable(&result) {
                // The pool discards returned connections in this state.
                <PgConnection as Connection>::TransactionManager::transaction_manager_status_mut(&mut *conn)
                    .set_in_error();
            }
            result
        });
        let mut work = WatchedTask { db: self, lane, give_up_at: Instant::now() + limit, work: Some(work) };
        match tokio::time::timeout(deadline::remaining(limit), work.ended()).await {
            Ok(Ok(result)) => result,
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
                    self.replace(&lane);
                }
            }
            let _ = tokio::time::timeout_at(next_at, &mut work).await;
        }
    }

    async fn can_connect(&self) -> bool {
        let mut url = self.shared.url.expose_secret().to_owned();
        // The minimum that libpq accepts.
        add_setting(&mut url, "connect_timeout", "2");
        spawn_blocking(move || establish(&url).is_ok()).await.unwrap_or(false)
    }

    /// Replaces a lost pool, unless that has been done, or too many pools are left to their wait.
    fn replace(&self, lost: &Arc<Lane>) {
        let Shared { lane, lanes, url, size, acquire_timeout, .. } = &*self.shared;
        let mut current = lane.write().expect("no holder panics");
        if !Arc::ptr_eq(&current, lost) || lanes.load(Ordering::Relaxed) >= POOLS_MAX {
            return;
        }
        log::error!(
            "the database is silent on old connections and answers on new ones: the pool is replaced"
        );
        *current = Arc::new(Lane::new(url, *size, *acquire_timeout, Arc::clone(lanes)));
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
        let started = Instant::now();
        let work = Arc::new(work);
        let (mut tries, mut dead_connections) = (0, 0);
        loop {
            let this_try = Arc::clone(&work);
            let error = match self.run(move |conn| this_try(conn)).await {
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

/// Makes OpenSSL free nothing at exit. libpq, which also uses it for passwords, would make it free
/// everything. The pool's threads, for which nobody waits, would then die of a segmentation fault if they
/// were connecting at that time.
fn keep_tls_until_the_end() {
    // The first initialization decides.
    openssl_sys::init();
}

/// Adds the settings that libpq needs to notice a peer that is gone without a word. Keeps existing settings.
fn with_network_timeouts(url: &str) -> String {
    let mut url = url.to_owned();
    for (name, value) in [
        ("connect_timeout", "5"),
        ("keepalives_idle", "10"),
        ("keepalives_interval", "5"),
        ("keepalives_count", "3"),
        ("tcp_user_timeout", "10000"),
    ] {
        add_setting(&mut url, name, value);
    }
    url
}

/// Adds a setting to a connection string, unless it's there.
fn add_setting(url: &mut String, name: &str, value: &str) {
    if url.contains(name) {
        return;
    }
    let separator = match (url.contains("://"), url.contains('?')) {
        (true, true) => '&',
        (true, false) => '?',
        (false, _) => ' ',
    };
    url.push_str(&format!("{separator}{name}={value}"));
}

/// Limits for everything that a session of the service may wait for, and for the planner.
///
/// Acknowledged data must be on disk, so sessions turn asynchronous commits off, even if they are the
/// server's default.
///
/// Nearly all of the service's statements find few rows by index. They're planned once per connection, not
/// again for each batch size, which would cost more than running them; and not as a scan of a table that was
/// empty when the plan was made. The other statements ask for more freedom themselves ([`plan_freely`]).
#[derive(Debug)]
struct SessionLimits {
    names_schema: bool,
}

impl CustomizeConnection<PgConnection, diesel::r2d2::Error> for SessionLimits {
    fn on_acquire(&self, conn: &mut PgConnection) -> Result<(), diesel::r2d2::Error> {
        settle(conn, self.names_schema).map_err(diesel::r2d2::Error::QueryError)?;
        diesel::sql_query(
            "SELECT set_config('application_name', 'oncepay', false), \
                    set_config('statement_timeout', '5s', false), \
                    set_config('lock_timeout', '2s', false), \
                    set_config('idle_in_transaction_session_timeout', '10s', false), \
                    set_config('synchronous_commit', CASE current_setting('synchronous_commit') \
                        WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, false), \
                    set_config('plan_cache_mode', 'force_generic_plan', false), \
                    set_config('enable_seqscan', 'off', false), \
                    set_config('jit', 'off', false)",
        )
        .execute(conn)
        .map(|_| ())
        .map_err(diesel::r2d2::Error::QueryError)
    }
}

/// Frees the planner until the transaction ends, for statements that read most of a table, or whose filters
/// matter only if they're set.
pub fn plan_freely(conn: &mut PgConnection) -> diesel::QueryResult<()> {
    diesel::sql_query(
        "SELECT set_config('plan_cache_mode', 'auto', true), set_config('enable_seqscan', 'on', true), \
                set_config('jit', 'on', true)",
    )
    .execute(conn)
    .map(|_| ())
}

/// Connects outside of the pool. The error is a sentence.
pub fn connect(url: &SecretString) -> Result<PgConnection, String> {
    establish(url.expose_secret()).map_err(|error| format!("Can't connect to the database: {error}"))
}

/// Connects outside of the pool, with libpq's own error. Every connection outside of the pool must begin
/// here: the first one of a process determines what happens at its exit.
pub(crate) fn establish(url: &str) -> ConnectionResult<PgConnection> {
    keep_tls_until_the_end();
    let mut conn = PgConnection::establish(&with_network_timeouts(url))?;
    settle(&mut conn, names_schema(url)).map_err(ConnectionError::CouldntSetupConfiguration)?;
    Ok(conn)
}

/// Sets what statements depend on, whatever the settings of the server, the database and the role are. Transactions
/// see what was committed when each of their statements began: the guards of the ledger insist on that. A role may find
/// other schemas first, and write times, intervals and bytes in its own way.
fn settle(conn: &mut PgConnection, names_schema: bool) -> diesel::QueryResult<()> {
    let settings = "SELECT set_config('default_transaction_isolation', 'read committed', false), \
            set_config('default_transaction_deferrable', 'off', false), \
            set_config('DateStyle', 'ISO, MDY', false), set_config('IntervalStyle', 'postgres', false), \
            set_config('bytea_output', 'hex', false), set_config('extra_float_digits', '1', false), \
            set_config('standard_conforming_strings', 'on', false), set_config('array_nulls', 'on', false), \
            set_config('transform_null_equals', 'off', false)";
    let schema = if names_schema { "" } else { ", set_config('search_path', 'public', false)" };
    diesel::sql_query(format!("{settings}{schema}")).execute(conn).map(|_| ())
}

/// Whether a connection string names the schema itself.
fn names_schema(url: &str) -> bool {
    url.contains("search_path")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_timeouts_are_added_unless_set() {
        let added = "connect_timeout=5&keepalives_idle=10&keepalives_interval=5&keepalives_count=3&tcp_user_timeout=10000";
        assert_eq!(with_network_timeouts("postgres://h/d"), format!("postgres://h/d?{added}"));
        assert_eq!(with_network_timeouts("postgres://h/d?a=b"), format!("postgres://h/d?a=b&{added}"));
        assert_eq!(
            with_network_timeouts("host=h dbname=d"),
            format!("host=h dbname=d {}", added.replace('&', " "))
        );
        let several = "postgres://u:p@h1:1,h2:2/d?target_session_attrs=read-write";
        assert_eq!(with_network_timeouts(several), format!("{several}&{added}"));
        let set = with_network_timeouts("postgres://h/d?connect_timeout=1");
        assert!(
            set.starts_with("postgres://h/d?connect_timeout=1&keepalives_idle=10")
                && !set.contains("timeout=5")
        );
    }
}
