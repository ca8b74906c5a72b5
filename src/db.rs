//! The way to the database: one bounded pool, and the migrations.
//!
//! Promised: no request waits longer than the acquire timeout for a connection, and none holds one
//! while it waits for anything but the database.

use std::sync::Arc;
use std::time::Duration;

use actix_web::web;
use diesel::connection::TransactionManager;
use diesel::r2d2::{ConnectionManager, CustomizeConnection, Pool};
use diesel::{Connection, PgConnection, RunQueryDsl};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Semaphore;

use crate::error::Error;

/// All migrations, built into the binary.
pub const MIGRATIONS: EmbeddedMigrations = embed_migrations!();

/// Tries of a transaction that collides (deadlock, serialization failure, lock timeout).
const TRIES_MAX: u32 = 5;

/// A handle to the pool, cheap to clone.
///
/// Diesel's connections are synchronous, so each use runs on a thread for blocking work. A permit is
/// taken *before* that, without a thread or a connection: a burst waits in async code, where waiting
/// costs next to nothing, and is told 503 when the wait gets too long.
#[derive(Clone)]
pub struct Db {
    pool: Pool<ConnectionManager<PgConnection>>,
    permits: Arc<Semaphore>,
    acquire_timeout: Duration,
}

impl Db {
    /// A pool of `size` connections to `url`. Doesn't wait for the database: until it can be reached,
    /// requests are answered 503.
    pub fn new(url: &SecretString, size: u32, acquire_timeout: Duration) -> Self {
        let pool = Pool::builder()
            .max_size(size)
            .connection_timeout(acquire_timeout)
            // Would cost a round trip each time. A connection found dead is thrown away below.
            .test_on_check_out(false)
            .connection_customizer(Box::new(SessionLimits))
            .build_unchecked(ConnectionManager::new(url.expose_secret()));
        Self { pool, permits: Arc::new(Semaphore::new(size as usize)), acquire_timeout }
    }

    /// Runs `work` with a connection on a blocking thread.
    ///
    /// Errors, in the order checked: `database_unavailable` when no connection could be had in time,
    /// then whatever `work` says. A panic in `work` is `internal`, and its connection is discarded.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut PgConnection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let permit = tokio::time::timeout(self.acquire_timeout, Arc::clone(&self.permits).acquire_owned())
            .await
            .map_err(|_| Error::DatabaseUnavailable("all connections are in use".into()))?
            .map_err(Error::internal)?;
        let pool = self.pool.clone();
        web::block(move || {
            // Moved in, so that the permit outlives the use of the connection even if the caller is
            // dropped meanwhile.
            let _permit = permit;
            let mut conn = pool.get().map_err(|error| Error::DatabaseUnavailable(error.into()))?;
            let result = work(&mut conn);
            if matches!(result, Err(Error::DatabaseUnavailable(_))) {
                // The pool discards connections in this state when they come back.
                <PgConnection as Connection>::TransactionManager::transaction_manager_status_mut(&mut *conn)
                    .set_in_error();
            }
            result
        })
        .await
        .unwrap_or_else(|_| Err(Error::internal("the database work panicked")))
    }

    /// Like [`run`](Self::run), and starts again when the work collides with other transactions: up to
    /// five tries in all, with growing, jittered pauses during which no connection is held. `work`
    /// must be a whole transaction.
    pub async fn run_retrying<T: Send + 'static>(
        &self,
        work: impl Fn(&mut PgConnection) -> Result<T, Error> + Send + Sync + 'static,
    ) -> Result<T, Error> {
        let work = Arc::new(work);
        let mut tries = 0;
        loop {
            let this_try = Arc::clone(&work);
            let result = self.run(move |conn| this_try(conn)).await;
            tries += 1;
            match result {
                Err(Error::TransientConflict(cause)) if tries < TRIES_MAX => {
                    log::debug!("try {tries} collided: {cause}");
                    let ceiling_ms = 5 << tries;
                    tokio::time::sleep(Duration::from_millis(rand::random_range(1..=ceiling_ms))).await;
                }
                result => return result,
            }
        }
    }
}

/// Bounds for everything that a session of the service may wait for.
#[derive(Debug)]
struct SessionLimits;

impl CustomizeConnection<PgConnection, diesel::r2d2::Error> for SessionLimits {
    fn on_acquire(&self, conn: &mut PgConnection) -> Result<(), diesel::r2d2::Error> {
        diesel::sql_query(
            "SELECT set_config('application_name', 'oncepay', false), \
                    set_config('statement_timeout', '5s', false), \
                    set_config('lock_timeout', '2s', false), \
                    set_config('idle_in_transaction_session_timeout', '10s', false)",
        )
        .execute(conn)
        .map(|_| ())
        .map_err(diesel::r2d2::Error::QueryError)
    }
}

/// Connects outside of the pool, for commands. The error is a sentence.
pub fn connect(url: &SecretString) -> Result<PgConnection, String> {
    PgConnection::establish(url.expose_secret())
        .map_err(|error| format!("Can't connect to the database: {error}"))
}

/// Brings the schema up to date; `conn` must be the owner of the database. Returns the names of the
/// migrations that were run. Each runs in a transaction of its own.
pub fn migrate(conn: &mut PgConnection) -> Result<Vec<String>, String> {
    let has_app_role = diesel::select(diesel::dsl::sql::<diesel::sql_types::Bool>(
        "EXISTS (SELECT FROM pg_roles WHERE rolname = 'oncepay_app')",
    ))
    .get_result::<bool>(conn)
    .map_err(|error| format!("Can't read the database's roles: {error}"))?;
    if !has_app_role {
        return Err("The role that the service connects as is missing. Create it first: \
            CREATE ROLE oncepay_app LOGIN PASSWORD '…';"
            .to_owned());
    }
    let run = conn
        .run_pending_migrations(MIGRATIONS)
        .map(|versions| versions.iter().map(ToString::to_string).collect())
        .map_err(|error| format!("A migration failed and was rolled back: {error}"))?;
    // Until Postgres 15 everybody could create objects in the schema public. The service has no business there.
    let may_create = diesel::select(diesel::dsl::sql::<diesel::sql_types::Bool>(
        "has_schema_privilege('oncepay_app', 'public', 'CREATE')",
    ))
    .get_result::<bool>(conn)
    .map_err(|error| format!("Can't read the database's privileges: {error}"))?;
    if may_create {
        return Err("The role oncepay_app may create objects in the schema public. Take that from it, as a \
            superuser: REVOKE CREATE ON SCHEMA public FROM PUBLIC, oncepay_app;"
            .to_owned());
    }
    Ok(run)
}
