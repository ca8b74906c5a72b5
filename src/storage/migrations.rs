//! Migrates the schema while the service runs.
//!
//! A statement that waits for an exclusive lock holds up every later statement on its table, also mere reads. So a
//! migration first waits, without asking for any lock, until no transaction has held one for longer than an instant.
//! Then it waits for the short transactions that are left, gives up soon, and begins anew later.
//!
//! Promised: of several that migrate at a time, one does, and the others find it done. A migration that was
//! interrupted leaves nothing that keeps the next one from being run, also if it builds an index concurrently.
//!
//! Not promised: to end. While somebody holds a lock all the time, it gives up after [`Patience::total`] and says who.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use diesel::migration::{Migration, MigrationSource};
use diesel::pg::Pg;
use diesel::sql_types::{Bool, Integer, Nullable, Text};
use diesel::{PgConnection, QueryResult, QueryableByName, RunQueryDsl};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::distribution;
use super::language;
use super::sql::{holds, statement};
use crate::base::progress::{Step, Tell, untold};
use crate::base::time;

/// All migrations, built into the binary.
pub const MIGRATIONS: EmbeddedMigrations = embed_migrations!();

/// Key of the advisory lock of the one that migrates.
pub const LOCK: i64 = 0x006f_6e63_6570_6179;
/// Maximum time for which a migration waits for a lock, and holds up what comes after it. Shorter than what a client
/// notices; a migration may set another limit itself.
const LOCK_TIMEOUT: &str = "500ms";
/// Time after which a transaction that holds a lock counts as one to wait for.
const INSTANT: Duration = Duration::from_millis(250);
/// Maximum pause between two attempts, and the first one.
const PAUSE_MAX: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(500);
/// Maximum number of characters of a query that is named.
const QUERY_MAX: usize = 120;

/// How long to wait for others.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Maximum time for each migration, and for another one who migrates.
    pub total: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { total: Duration::from_secs(600) }
    }
}

/// Runs the pending migrations; `conn` must be the owner of the database. Returns their names. Each runs in a transaction
/// of its own. The error is a sentence.
pub fn migrate(conn: &mut PgConnection) -> Result<Vec<String>, String> {
    migrate_from(conn, MIGRATIONS, Patience::default(), &mut untold)
}

/// Like [`migrate`], with the migrations of `source`. Tells the name of each before it begins.
pub fn migrate_from(
    conn: &mut PgConnection,
    source: impl MigrationSource<Pg>,
    patience: Patience,
    tell: Tell<'_>,
) -> Result<Vec<String>, String> {
    language::check(conn).map_err(|failure| {
        format!("Can't find out the language of the database's errors: {}", failure.detailed())
    })??;
    let has_app_role = "EXISTS (SELECT FROM pg_roles WHERE rolname = 'oncepay_app')";
    if !holds(conn, has_app_role).map_err(|error| format!("Can't read the database's roles: {error}"))? {
        return Err("The role that the service connects as is missing. Create it first: \
            CREATE ROLE oncepay_app LOGIN PASSWORD '…';"
            .to_owned());
    }
    lock(conn, patience)?;
    let run = run_pending(conn, source, patience, tell);
    // The lock ends with the session at the latest.
    let _ = statement::<()>("SELECT pg_advisory_unlock({}::bigint)")
        .bind::<diesel::sql_types::BigInt, _>(LOCK)
        .execute(conn);
    let run = run?;
    // Until Postgres 15, everybody could create objects in the schema public. The service doesn't use it.
    let may_create = "has_schema_privilege('oncepay_app', 'public', 'CREATE')";
    if holds(conn, may_create).map_err(|error| format!("Can't read the database's privileges: {error}"))? {
        return Err("The role oncepay_app may create objects in the schema public. Take that from it, as a \
            superuser: REVOKE CREATE ON SCHEMA public FROM PUBLIC, oncepay_app;"
            .to_owned());
    }
    begin_epoch(conn, patience)?;
    Ok(run)
}

/// Takes the lock of the one that migrates. Asks again and again instead of waiting in the database: there, the waiting
/// statement would be an old transaction for whoever builds an index concurrently, and each would wait for the other.
fn lock(conn: &mut PgConnection, patience: Patience) -> Result<(), String> {
    let started = Instant::now();
    let mut is_told = false;
    loop {
        let taken = statement::<Bool>("SELECT pg_try_advisory_lock({}::bigint)")
            .bind::<diesel::sql_types::BigInt, _>(LOCK)
            .get_result::<bool>(conn)
            .map_err(|error| format!("Can't lock the migrations: {error}"))?;
        if taken {
            return Ok(());
        }
        if started.elapsed() > patience.total {
            return Err("Another session has been migrating this database all the time.".to_owned());
        }
        if !std::mem::replace(&mut is_told, true) {
            log::warn!("another session migrates this database; waiting for it");
        }
        std::thread::sleep(time::jittered(Duration::from_millis(100)));
    }
}

/// Whether another session migrates this database.
pub fn are_under_way(conn: &mut PgConnection) -> QueryResult<bool> {
    statement::<Bool>(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1 \
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
             AND (classid::bigint << 32) | objid::bigint = {}::bigint)",
    )
    .bind::<diesel::sql_types::BigInt, _>(LOCK)
    .get_result(conn)
}

fn run_pending(
    conn: &mut PgConnection,
    source: impl MigrationSource<Pg>,
    patience: Patience,
    tell: Tell<'_>,
) -> Result<Vec<String>, String> {
    // Nobody else's limits and habits: building an index takes as long as it takes.
    statement::<()>(
        "SELECT set_config('lock_timeout', {}, false), set_config('statement_timeout', '0', false), \
             set_config('idle_in_transaction_session_timeout', '0', false)",
    )
    .bind::<Text, _>(LOCK_TIMEOUT)
    .execute(conn)
    .map_err(|error| format!("Can't prepare the session: {error}"))?;
    let pending = conn
        .pending_migrations(source)
        .map_err(|error| format!("Can't find out which migrations are pending: {error}"))?;
    let is_distributed = distribution::prepare_to_migrate(conn)?;
    let mut run = Vec::new();
    for migration in &pending {
        let name = migration.name().to_string();
        tell(Step { what: &name, done: run.len(), total: Some(pending.len()) });
        run_one(conn, &**migration, is_distributed, patience)?;
        run.push(migration.name().version().to_string());
    }
    let_service_look(conn).map_err(|error| format!("Can't grant a privilege to oncepay_app: {error}"))?;
    if is_distributed {
        distribution::renew_after_migrations(conn)?;
    }
    Ok(run)
}

/// Lets the service see which migrations have been run, so that it notices at its start if some are missing.
fn let_service_look(conn: &mut PgConnection) -> QueryResult<()> {
    if !holds(conn, "has_table_privilege('oncepay_app', '__diesel_schema_migrations', 'SELECT')")? {
        diesel::sql_query("GRANT SELECT ON __diesel_schema_migrations TO oncepay_app").execute(conn)?;
    }
    Ok(())
}

fn run_one(
    conn: &mut PgConnection,
    migration: &dyn Migration<Pg>,
    is_distributed: bool,
    patience: Patience,
) -> Result<(), String> {
    let (started, name) = (Instant::now(), migration.name().to_string());
    let mut attempts = 0;
    loop {
        wait_until_quiet(conn, &name, started, patience)?;
        let done = match migration.metadata().run_in_transaction() {
            true if is_distributed => distribution::run_migration(conn, migration),
            true => conn.run_migration(migration).map(|_| ()),
            false => build_anew(conn, migration, &name),
        };
        let error = match done {
            Ok(()) => return Ok(()),
            Err(error) => error.to_string(),
        };
        let is_collision = ["lock timeout", "could not obtain lock", "deadlock detected"]
            .iter()
            .any(|sign| error.contains(sign));
        if !is_collision || started.elapsed() > patience.total {
            return Err(format!("A migration failed and was rolled back: {name}: {error}"));
        }
        log::warn!("{name} gave way to other transactions, and is tried again: {error}");
        std::thread::sleep(time::backoff(PAUSE, attempts, PAUSE_MAX));
        attempts += 1;
    }
}

/// Runs a migration that builds an index concurrently, outside of a transaction. The index has the name of the
/// migration. One that is there was left by an attempt that was interrupted.
fn build_anew(
    conn: &mut PgConnection,
    migration: &dyn Migration<Pg>,
    name: &str,
) -> diesel::migration::Result<()> {
    let index = name.split_once('_').map_or(name, |(_, subject)| subject);
    let is_there = statement::<Bool>(
        "SELECT EXISTS (SELECT FROM pg_class WHERE relkind = 'i' AND relname = {} AND relnamespace = current_schema()::regnamespace)",
    )
    .bind::<Text, _>(index)
    .get_result::<bool>(conn)?;
    // A build waits for older transactions, and holds up nobody meanwhile.
    diesel::sql_query("SET lock_timeout = 0").execute(conn)?;
    if is_there {
        log::warn!("the index {index} was left by an attempt that was interrupted, and is built anew");
        diesel::sql_query(format!("DROP INDEX CONCURRENTLY \"{index}\"")).execute(conn)?;
    }
    let built = conn.run_migration(migration).map(|_| ());
    diesel::sql_query(format!("SET lock_timeout = '{LOCK_TIMEOUT}'")).execute(conn)?;
    built
}

/// A transaction that holds locks on our tables.
#[derive(Debug, QueryableByName)]
struct Holder {
    #[diesel(sql_type = Text)]
    transaction: String,
    #[diesel(sql_type = Nullable<Integer>)]
    pid: Option<i32>,
    #[diesel(sql_type = Text)]
    tables: String,
    /// Hidden from the owner, unless it may read all statistics or the session is its own.
    #[diesel(sql_type = Nullable<Text>)]
    since: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    query: Option<String>,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "pid {pid} holds locks on {}", self.tables)?,
            None => write!(f, "a prepared transaction holds locks on {}", self.tables)?,
        }
        match &self.since {
            Some(since) => write!(f, " since {since}")?,
            None => write!(f, " (only a role with pg_read_all_stats sees since when)")?,
        }
        let query: String = self.query.iter().flat_map(|query| query.chars()).take(QUERY_MAX).collect();
        if query.is_empty() { Ok(()) } else { write!(f, ", with {query}") }
    }
}

fn holders(conn: &mut PgConnection) -> QueryResult<Vec<Holder>> {
    diesel::sql_query(
        "SELECT l.virtualtransaction AS transaction, l.pid, \
             string_agg(DISTINCT c.relname, ', ' ORDER BY c.relname) AS tables, \
             to_char(a.xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS since, \
             nullif(a.query, '<insufficient privilege>') AS query \
         FROM pg_locks l \
         JOIN pg_class c ON c.oid = l.relation AND c.relkind IN ('r', 'p') AND c.relnamespace = current_schema()::regnamespace \
         LEFT JOIN pg_stat_activity a ON a.pid = l.pid \
         WHERE l.locktype = 'relation' AND l.granted \
             AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
             AND l.pid IS DISTINCT FROM pg_backend_pid() AND l.mode <> 'ShareUpdateExclusiveLock' \
         GROUP BY l.virtualtransaction, l.pid, a.xact_start, a.query ORDER BY a.xact_start, l.pid",
    )
    .load(conn)
}

/// Waits until no transaction has held a lock on our tables for longer than an instant. Takes no lock itself. The locks of
/// an autovacuum don't count: it gives way by itself.
fn wait_until_quiet(
    conn: &mut PgConnection,
    name: &str,
    started: Instant,
    patience: Patience,
) -> Result<(), String> {
    let look = |conn: &mut PgConnection| {
        holders(conn).map_err(|error| format!("Can't find out who holds locks: {error}"))
    };
    let mut earlier = look(conn)?;
    let mut told = HashSet::new();
    while !earlier.is_empty() {
        std::thread::sleep(INSTANT);
        let known: HashSet<_> = earlier.iter().map(|holder| holder.transaction.clone()).collect();
        let now = look(conn)?;
        let lasting: Vec<_> = now.iter().filter(|holder| known.contains(&holder.transaction)).collect();
        if lasting.is_empty() {
            return Ok(());
        }
        if started.elapsed() > patience.total {
            let named: Vec<_> = lasting.iter().map(ToString::to_string).collect();
            return Err(format!("{name} can't be run beside other transactions: {}.", named.join("; ")));
        }
        for holder in lasting {
            if told.insert(holder.transaction.clone()) {
                log::warn!("{name} waits for other transactions: {holder}");
            }
        }
        earlier = now;
    }
    Ok(())
}

/// Begins an epoch of the events, if the database is in another cluster than before: after a restore, new events come
/// after the restored ones.
fn begin_epoch(conn: &mut PgConnection, patience: Patience) -> Result<(), String> {
    let started = Instant::now();
    loop {
        let begun = diesel::sql_query("SELECT FROM event_feed_horizon()").execute(conn);
        match begun {
            Ok(_) => return Ok(()),
            // It doesn't wait for whoever reads the events.
            Err(error)
                if error.to_string().contains("could not obtain lock")
                    && started.elapsed() < patience.total =>
            {
                std::thread::sleep(time::jittered(Duration::from_millis(200)));
            }
            Err(error) => {
                return Err(format!("Can't find out whether the events are in another cluster: {error}"));
            }
        }
    }
}
