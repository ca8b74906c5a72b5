//! Sessions of the database: how to connect, and what every session is set to.
//!
//! Statements rely on their session: on its settings, and on the statements that were prepared in it. A pooler in
//! transaction mode hands out another session with each transaction. There, settings are gone, and a prepared
//! statement is missing or, worse, another connection's. So each session gets a name, by which its connection can
//! tell whether it's still the same ([`Session::check`]), and [`inspect`] finds such a pooler out at the start.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use diesel::r2d2::{ConnectionManager, ManageConnection};
use diesel::sql_types::{Bool, Nullable, Text};
use diesel::{Connection, ConnectionError, ConnectionResult, PgConnection, QueryResult, RunQueryDsl};
use secrecy::{ExposeSecret, SecretString};

use super::fitness::Unfit;
use super::shape::{self, is_distributed_sql};
use super::sql::statement;
use crate::error::Failure;

/// Maximum number of connections that [`inspect`] compares. A pooler of several processes shares a session among
/// the connections of a process only, so two connections might not meet.
const INSPECTED_MAX: usize = 4;
/// Maximum wait for each of them but the first.
const INSPECTION_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection with a session of its own.
pub struct Session {
    /// The connection.
    pub conn: PgConnection,
    /// Name of the session that the connection began.
    name: String,
    /// Whether the database was [distributed](shape) then.
    is_distributed: bool,
}

impl Session {
    /// Checks that the session can write, that it's still the one that the connection began, and that it's set up for the shape that
    /// the database has. Errors: `database_unavailable`, the second time with [`Unfit::SessionsMixed`] as its cause, the third
    /// time with [`Unfit::ShapeChanged`]: new sessions are in order then.
    pub fn check(&mut self) -> Result<(), Failure> {
        let (is_read_only, is_kept, is_distributed) = statement::<(Bool, Nullable<Bool>, Bool)>(concat!(
            "SELECT current_setting('transaction_read_only')::boolean, current_setting('oncepay.session', true) = {}, ",
            is_distributed_sql!()
        ))
        .bind::<Text, _>(&self.name)
        .get_result::<(bool, Option<bool>, bool)>(&mut self.conn)?;
        if is_kept != Some(true) {
            return Err(Failure::DatabaseUnavailable(Unfit::SessionsMixed.into()));
        }
        if is_read_only {
            return Err(Failure::DatabaseUnavailable("the database is read-only".into()));
        }
        if is_distributed != self.is_distributed {
            return Err(Failure::DatabaseUnavailable(Unfit::ShapeChanged.into()));
        }
        Ok(())
    }
}

/// Makes the sessions of a pool.
pub(super) struct Sessions {
    manager: ConnectionManager<PgConnection>,
    names_schema: bool,
}

impl Sessions {
    pub(super) fn new(url: &SecretString) -> Self {
        keep_tls_until_the_end();
        let url = url.expose_secret();
        Self { manager: ConnectionManager::new(with_network_timeouts(url)), names_schema: names_schema(url) }
    }
}

impl ManageConnection for Sessions {
    type Connection = Session;
    type Error = diesel::r2d2::Error;

    fn connect(&self) -> Result<Session, diesel::r2d2::Error> {
        let mut conn = self.manager.connect()?;
        let mut begin = || {
            let is_distributed = settle(&mut conn, self.names_schema)?;
            limit(&mut conn, is_distributed)?;
            Ok((give_name(&mut conn)?, is_distributed))
        };
        let (name, is_distributed) = begin().map_err(diesel::r2d2::Error::QueryError)?;
        Ok(Session { conn, name, is_distributed })
    }

    fn is_valid(&self, session: &mut Session) -> Result<(), diesel::r2d2::Error> {
        self.manager.is_valid(&mut session.conn)
    }

    fn has_broken(&self, session: &mut Session) -> bool {
        self.manager.has_broken(&mut session.conn)
    }
}

/// Gives the session a name that no other has, and returns it.
fn give_name(conn: &mut PgConnection) -> QueryResult<String> {
    let name = uuid::Uuid::new_v4().to_string();
    diesel::sql_query("SELECT set_config('oncepay.session', $1, false)")
        .bind::<Text, _>(&name)
        .execute(conn)?;
    Ok(name)
}

/// Limits for everything that a session of the service may wait for, and for the planner.
///
/// Acknowledged data must be on disk, so sessions turn asynchronous commits off, even if they are the
/// server's default.
///
/// Nearly all of the service's statements find few rows by index. They're planned once per connection, not
/// again for each batch size, which would cost more than running them; and not as a scan of a table that was
/// empty when the plan was made. The other statements ask for more freedom themselves ([`plan_freely`]). In a distributed database,
/// a plan depends on the merchant: it says which node the statement goes to.
fn limit(conn: &mut PgConnection, is_distributed: bool) -> QueryResult<()> {
    let plans = if is_distributed { "auto" } else { "force_generic_plan" };
    diesel::sql_query(
        "SELECT set_config('application_name', 'oncepay', false), \
                set_config('statement_timeout', '5s', false), \
                set_config('lock_timeout', '2s', false), \
                set_config('idle_in_transaction_session_timeout', '10s', false), \
                set_config('idle_session_timeout', '0', false), \
                set_config('synchronous_commit', CASE current_setting('synchronous_commit') \
                    WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, false), \
                set_config('plan_cache_mode', $1, false), \
                set_config('enable_seqscan', 'off', false), \
                set_config('jit', 'off', false)",
    )
    .bind::<Text, _>(plans)
    .execute(conn)
    .map(|_| ())
}

/// Frees the planner until the transaction ends, for statements that read most of a table, or whose filters
/// matter only if they're set.
pub fn plan_freely(conn: &mut PgConnection) -> QueryResult<()> {
    diesel::sql_query(
        "SELECT set_config('plan_cache_mode', 'auto', true), set_config('enable_seqscan', 'on', true), \
                set_config('jit', 'on', true)",
    )
    .execute(conn)
    .map(|_| ())
}

/// Sets what statements depend on, whatever the settings of the server, the database and the role are. Transactions
/// see what was committed when each of their statements began: the guards of the ledger insist on that. A role may find
/// other schemas first, and write times, intervals and bytes in its own way. Returns whether the database is
/// [distributed](shape).
fn settle(conn: &mut PgConnection, names_schema: bool) -> QueryResult<bool> {
    let settings = "SELECT set_config('default_transaction_isolation', 'read committed', false), \
            set_config('default_transaction_deferrable', 'off', false), \
            set_config('DateStyle', 'ISO, MDY', false), set_config('IntervalStyle', 'postgres', false), \
            set_config('bytea_output', 'hex', false), set_config('extra_float_digits', '1', false), \
            set_config('standard_conforming_strings', 'on', false), set_config('array_nulls', 'on', false), \
            set_config('transform_null_equals', 'off', false)";
    let schema = if names_schema { "" } else { ", set_config('search_path', 'public', false)" };
    // Comes last: by now the schema is set.
    let look = concat!(", ", is_distributed_sql!(), " AS is_distributed");
    let settled: Settled = diesel::sql_query(format!("{settings}{schema}{look}")).get_result(conn)?;
    if settled.is_distributed {
        // Other nodes hear of what a transaction sets.
        diesel::sql_query("SELECT set_config('citus.propagate_set_commands', 'local', false)")
            .execute(conn)?;
    }
    shape::note(settled.is_distributed);
    Ok(settled.is_distributed)
}

#[derive(diesel::QueryableByName)]
struct Settled {
    #[diesel(sql_type = Bool)]
    is_distributed: bool,
}

/// Connects outside of the pool. The error is a sentence.
pub fn connect(url: &SecretString) -> Result<PgConnection, String> {
    establish(url.expose_secret()).map_err(|error| format!("Can't connect to the database: {error}"))
}

/// Connects outside of the pool, with libpq's own error. Every connection outside of the pool must begin
/// here or in [`inspect`]: the first one of a process determines what happens at its exit.
pub(crate) fn establish(url: &str) -> ConnectionResult<PgConnection> {
    let mut conn = establish_unsettled(url)?;
    settle(&mut conn, names_schema(url)).map_err(ConnectionError::CouldntSetupConfiguration)?;
    Ok(conn)
}

fn establish_unsettled(url: &str) -> ConnectionResult<PgConnection> {
    keep_tls_until_the_end();
    PgConnection::establish(&with_network_timeouts(url)).map_err(without_secrets)
}

/// Parts of libpq's errors about the URL itself, which quote it: perhaps the password.
const QUOTING: [&str; 7] = [
    "percent-encoded",
    "in connection info string",
    "invalid URI",
    "in URI",
    "connection option \"",
    "invalid port number",
    // What follows an `@` within the password is taken for the host.
    "could not translate host name",
];
/// Replaces what quotes a URL that can't be read.
const MALFORMED: &str = "the URL is malformed";

/// An error without parts of the URL that may belong to the password.
fn without_secrets(error: ConnectionError) -> ConnectionError {
    match &error {
        ConnectionError::BadConnection(text) if may_quote_password(text) => {
            ConnectionError::BadConnection(MALFORMED.to_owned())
        }
        ConnectionError::InvalidConnectionUrl(_) | ConnectionError::InvalidCString(_) => {
            ConnectionError::BadConnection(MALFORMED.to_owned())
        }
        _ => error,
    }
}

fn may_quote_password(text: &str) -> bool {
    let is_host = |sign: &str| sign == "could not translate host name";
    QUOTING.iter().any(|sign| text.contains(sign) && (!is_host(sign) || text.contains('@')))
}

/// What becomes of the sessions of connections to one URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handling {
    /// Each connection keeps its session.
    Kept,
    /// Connections get sessions of others.
    Mixed,
    /// Some connections lead to a primary and some to a standby.
    Scattered,
}

/// Finds out what becomes of the sessions of connections to `url`, with up to four connections at a time.
///
/// Each connection gives its session a name. Then each looks for it, in the opposite order. A pooler with fewer
/// sessions than connections has given one session two names. One with more sessions hands out either the session
/// that was used last, and all connections have named the same, or the one that wasn't used for longest, and the
/// last connection looks in another than it has just named.
///
/// Errors: of the first connection. The others are left out if there is none for them: who keeps sessions may have no
/// more.
pub fn inspect(url: &str) -> ConnectionResult<Handling> {
    let mut named = vec![begin_named(url)?];
    while named.len() < INSPECTED_MAX
        && let Some(session) = begin_another(url)
    {
        named.push(session);
    }
    let mut standbys = 0;
    for session in named.iter_mut().rev() {
        let look = diesel::sql_query(
            "SELECT coalesce(current_setting('oncepay.session', true), '') AS name, pg_is_in_recovery() AS is_standby",
        );
        let seen: Seen =
            look.get_result(&mut session.conn).map_err(ConnectionError::CouldntSetupConfiguration)?;
        if seen.name != session.name {
            return Ok(Handling::Mixed);
        }
        standbys += usize::from(seen.is_standby);
    }
    Ok(if standbys == 0 || standbys == named.len() { Handling::Kept } else { Handling::Scattered })
}

fn begin_named(url: &str) -> ConnectionResult<Session> {
    let mut conn = establish_unsettled(url)?;
    let name = give_name(&mut conn).map_err(ConnectionError::CouldntSetupConfiguration)?;
    Ok(Session { conn, name, is_distributed: false })
}

/// The same, unless it takes long: a pooler whose sessions are all taken lets a connection wait.
fn begin_another(url: &str) -> Option<Session> {
    let (sender, receiver) = mpsc::channel();
    let url = url.to_owned();
    thread::spawn(move || {
        // If nobody waits any more, the connection is closed.
        let _ = sender.send(begin_named(&url).ok());
    });
    receiver.recv_timeout(INSPECTION_TIMEOUT).ok()?
}

#[derive(diesel::QueryableByName)]
struct Seen {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Bool)]
    is_standby: bool,
}

/// Parts of errors of libpq, the server and PgBouncer that stay until somebody changes a setting, and what to change.
const REMEDIES: [(&[&str], &str); 10] = [
    (&["does not match host name"], "DATABASE_URL must name the server by a name that its certificate has."),
    (
        &["certificate verify failed", "root certificate file"],
        "The setting sslrootcert of DATABASE_URL must name a file with the certificate of the CA that issued the server's.",
    ),
    (
        &["server does not support SSL"],
        "Turn on TLS on the server, or change the setting sslmode of DATABASE_URL.",
    ),
    (
        &["password authentication failed", "SASL authentication failed", "no password supplied"],
        "Check the role and the password in DATABASE_URL.",
    ),
    (&["no such user", "role \""], "Check the role in DATABASE_URL."),
    (&["no such database", "database \""], "Check the database in DATABASE_URL, or create it."),
    (&["no pg_hba.conf entry"], "The server's pg_hba.conf must let this role in from this address."),
    (&["permission denied for database"], "The role in DATABASE_URL needs the privilege CONNECT."),
    (&["unsupported startup parameter"], "The pooler must take this parameter, or ignore it."),
    (
        &[MALFORMED, "invalid sslmode value"],
        "DATABASE_URL must be such as postgres://role:password@host/database?sslmode=verify-full.",
    ),
];

/// What to do about an error that a later attempt would meet, too. `None` if a later attempt may succeed.
pub fn remedy(error: &ConnectionError) -> Option<&'static str> {
    let text = error.to_string();
    let has = |sign: &&str| match *sign {
        // A quoted name, which is there for other reasons, too.
        named if named.ends_with('"') => {
            let ends = ["\" does not exist", "\" is not permitted to log in"];
            text.contains(named) && ends.iter().any(|end| text.contains(end))
        }
        sign => text.contains(sign),
    };
    REMEDIES.iter().find(|(signs, _)| signs.iter().any(has)).map(|(_, remedy)| *remedy)
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
pub(super) fn add_setting(url: &mut String, name: &str, value: &str) {
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

    #[test]
    fn an_error_never_shows_a_part_of_the_password() {
        for url in [
            "postgres://app:hush%zz@127.0.0.1:1/db",
            "postgres://app:hu%sh@127.0.0.1:1/db",
            "postgres://app:hush%00@127.0.0.1:1/db",
            "postgres://app:x@hush@127.0.0.1:1/db",
            "postgres://app:1/hush@127.0.0.1:1/db",
            "postgres://app:x#hush@127.0.0.1:1/db",
            "postgres://app:x?hush@127.0.0.1:1/db",
            "postgres://app:[hush@127.0.0.1:1/db",
            "postgres://app:hush@127.0.0.1:port/db",
            "postgres:/app:hush@127.0.0.1/db?sslmode=disable",
            "host=127.0.0.1 password='hush",
            "host=127.0.0.1 password hush",
            "host=127.0.0.1 hush",
            "host=127.0.0.1 hush=1",
            "postgres://app:pw@127.0.0.1:1/db?hush=1",
            "postgres://app:pw@127.0.0.1:1/db?hush",
            // Taken for a port.
            "postgres://app:987654321/x@127.0.0.1/db",
        ] {
            let error = establish_unsettled(url).map(|_| ()).unwrap_err();
            for secret in ["hush", "987654321"] {
                assert!(!error.to_string().contains(secret), "{url}: {error}");
            }
            let is_malformed = error.to_string().contains(MALFORMED);
            assert_eq!(remedy(&error).is_some(), is_malformed, "{url}: {error}");
        }
    }

    #[test]
    fn what_time_does_not_heal_has_a_remedy() {
        let remedy = |text: &str| remedy(&ConnectionError::BadConnection(text.to_owned()));
        let at = "connection to server at \"db\" (10.0.0.1), port 5432 failed:";
        for hopeless in [
            format!("{at} server certificate for \"db.internal\" does not match host name \"db\""),
            format!("{at} SSL error: certificate verify failed"),
            format!("{at} FATAL:  password authentication failed for user \"oncepay_app\""),
            format!("{at} FATAL:  role \"oncepay\" does not exist"),
            format!("{at} FATAL:  role \"oncepay\" is not permitted to log in"),
            format!("{at} FATAL:  database \"oncepay\" does not exist"),
            format!("{at} FATAL:  server login failed: FATAL database \"oncepay\" does not exist"),
            MALFORMED.to_owned(),
        ] {
            assert!(remedy(&hopeless).is_some(), "{hopeless}");
        }
        for passing in [
            format!("{at} Connection refused"),
            format!("{at} FATAL:  the database system is starting up"),
            format!("{at} FATAL:  sorry, too many clients already"),
            format!("{at} FATAL:  database \"oncepay\" is not currently accepting connections"),
            format!("{at} session is read-only"),
            "could not translate host name \"db\" to address: Name or service not known".to_owned(),
        ] {
            assert_eq!(remedy(&passing), None, "{passing}");
        }
    }
}
