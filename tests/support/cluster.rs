//! The other nodes, if `TEST_DATABASE_URL` names a database on the coordinator of a Citus cluster.
//!
//! Then each test's database is distributed. Citus keeps what it knows of a database in that database, so a copy of the template on
//! each node is a distributed database, too.
//!
//! Without a cluster, `ONCEPAY_TEST_SHAPE=distributed` runs the tests with the statements for one, on one Postgres.

use diesel::connection::SimpleConnection;
use diesel::sql_types::{Integer, Text};
use diesel::{Connection, PgConnection, RunQueryDsl};
use oncepay::dev::database;
use oncepay::storage::{db, distribution};
use secrecy::SecretString;

use super::database::{create, execute};

/// Name of that database.
const APART: &str = "oncepay_tests";

/// Superusers' URLs of the workers.
#[derive(Clone, Debug, Default)]
pub struct Workers(Vec<String>);

#[derive(diesel::QueryableByName)]
struct Node {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Integer)]
    port: i32,
}

/// Whether the tests run with the statements for a distributed database.
pub fn is_wanted() -> bool {
    std::env::var("ONCEPAY_TEST_SHAPE").is_ok_and(|shape| shape == "distributed")
}

impl Workers {
    /// Those of the coordinator that `url` names. None if it's no coordinator.
    pub fn of(url: &str, conn: &mut PgConnection) -> Self {
        let is_coordinator = diesel::select(diesel::dsl::sql::<diesel::sql_types::Bool>(
            "to_regclass('pg_dist_node') IS NOT NULL",
        ));
        if !is_coordinator.get_result::<bool>(conn).unwrap() {
            return Self::default();
        }
        let nodes = diesel::sql_query(
            "SELECT nodename AS name, nodeport AS port FROM pg_dist_node WHERE groupid <> 0 AND isactive ORDER BY nodeport",
        )
        .load::<Node>(conn)
        .unwrap();
        let at = |node: &Node| {
            let mut url = url::Url::parse(url).unwrap();
            url.set_host(Some(&node.name)).unwrap();
            url.set_port(Some(u16::try_from(node.port).unwrap())).unwrap();
            String::from(url)
        };
        Self(nodes.iter().map(at).collect())
    }

    /// Lets all that follows be done in a database that Citus doesn't know: on its own, it would do a part of it on the other nodes,
    /// too. Returns the coordinator's URL for that.
    pub fn apart(&mut self, url: &str) -> String {
        let apart = |url: &str| {
            let conn = &mut db::connect(&url.to_owned().into()).unwrap();
            if !super::database::exists(conn, APART) {
                execute(conn, &format!("CREATE DATABASE {APART}"));
            }
            let mut url = url::Url::parse(url).unwrap();
            url.set_path(APART);
            String::from(url)
        };
        for worker in &mut self.0 {
            *worker = apart(worker);
        }
        apart(url)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn connect(&self) -> impl Iterator<Item = PgConnection> {
        self.0.iter().map(|url| db::connect(&url.clone().into()).unwrap())
    }

    /// Connections to a database on each worker, with the worker's port. They see shards, and what they do isn't done elsewhere.
    pub fn inside(&self, name: &str) -> impl Iterator<Item = (u16, PgConnection)> {
        self.0.iter().map(move |worker| {
            let mut url = url::Url::parse(worker).unwrap();
            url.set_path(name);
            let port = url.port().unwrap();
            let mut conn = db::connect(&String::from(url).into()).unwrap();
            conn.batch_execute(
                "SET citus.enable_ddl_propagation = off; SET citus.show_shards_for_app_name_prefixes = '*'",
            )
            .unwrap();
            (port, conn)
        })
    }

    /// An empty database on each worker, known to that on the coordinator (of which `url` is a superuser's).
    pub fn join(&self, name: &str, url: &SecretString, port: u16) {
        for mut conn in self.connect() {
            execute(&mut conn, &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
            database::ensure_database(&mut conn, name).unwrap();
        }
        for (_, mut conn) in self.inside(name) {
            database::close_public_schema(&mut conn).unwrap();
            execute(&mut conn, "CREATE EXTENSION citus");
        }
        let conn = &mut db::connect(url).unwrap();
        execute(conn, "CREATE EXTENSION citus");
        execute(conn, &format!("SELECT citus_set_coordinator_host('127.0.0.1', {port})"));
        for worker in &self.0 {
            let worker = url::Url::parse(worker).unwrap();
            let (host, port) = (worker.host_str().unwrap(), worker.port().unwrap());
            execute(conn, &format!("SELECT citus_add_node('{host}', {port})"));
        }
    }

    /// Lets nobody into a database on any node, and renames it.
    pub fn seal(&self, coordinator: &mut PgConnection, name: &str, sealed: &str) {
        for conn in self.connect().map(Some).chain([None]) {
            let mut worker = conn;
            let conn = worker.as_mut().unwrap_or(coordinator);
            execute(conn, &format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false"));
            execute(
                conn,
                &format!(
                    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{name}'"
                ),
            );
            execute(conn, &format!("ALTER DATABASE {name} RENAME TO {sealed}"));
        }
    }

    /// A copy of the template on each worker.
    pub fn copy(&self, name: &str, template: &str) {
        self.connect().for_each(|mut conn| create(&mut conn, name, database::OWNER, template));
    }

    /// Drops a database on each worker.
    pub fn drop(&self, name: &str) {
        for url in &self.0 {
            if let Ok(mut conn) = db::connect(&url.clone().into()) {
                let _ = diesel::sql_query(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
                    .execute(&mut conn);
            }
        }
    }
}

#[derive(diesel::QueryableByName)]
struct Shards {
    #[diesel(sql_type = Integer)]
    port: i32,
    /// The tables with the numbers of those of their shards that have the same merchants.
    #[diesel(sql_type = diesel::sql_types::Array<Text>)]
    tables: Vec<String>,
}

/// Runs statements on all shards, each on its node: those that Citus can't plan, and those past the guards. Tables' names in them stand for
/// shards. `conn` is one to the coordinator.
pub fn on_shards(conn: &mut PgConnection, workers: &Workers, statements: &str) {
    let name = diesel::select(diesel::dsl::sql::<Text>("current_database()::text"));
    let name = name.get_result::<String>(conn).unwrap();
    let shards = diesel::sql_query(
        "SELECT n.nodeport AS port, array_agg(c.relname || '_' || s.shardid) AS tables \
         FROM pg_dist_shard s JOIN pg_class c ON c.oid = s.logicalrelid JOIN pg_dist_placement p USING (shardid) \
         JOIN pg_dist_node n USING (groupid) WHERE s.shardminvalue IS NOT NULL GROUP BY n.nodeport, s.shardminvalue",
    );
    let shards = shards.load::<Shards>(conn).unwrap();
    for (port, mut conn) in workers.inside(&name) {
        for shards in shards.iter().filter(|shards| shards.port == i32::from(port)) {
            let statements = of_shards(statements, &shards.tables);
            conn.transaction(|conn| conn.batch_execute(&statements))
                .unwrap_or_else(|error: diesel::result::Error| panic!("{statements}: {error}"));
        }
    }
}

/// Statements with the names of shards in place of those of their tables.
fn of_shards(statements: &str, shards: &[String]) -> String {
    let in_place = |word: &str| {
        let is_its = |shard: &&String| shard.rsplit_once('_').is_some_and(|(table, _)| table == word);
        shards.iter().find(is_its).cloned().unwrap_or_else(|| word.to_owned())
    };
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let replace = |text: &str| {
        let mut replaced = String::new();
        let mut word = String::new();
        for c in text.chars().chain(['\0']) {
            if is_part(c) {
                word.push(c);
            } else {
                replaced.push_str(&in_place(&std::mem::take(&mut word)));
                replaced.push(c);
            }
        }
        replaced.pop();
        replaced
    };
    // What is within quotes stays as it is.
    let parts = statements.split('\'').enumerate();
    parts
        .map(|(number, part)| if number % 2 == 0 { replace(part) } else { part.to_owned() })
        .collect::<Vec<_>>()
        .join("'")
}

#[test]
fn statements_name_shards_in_place_of_tables() {
    let shards = ["charges_7".to_owned(), "idempotency_keys_8".to_owned()];
    assert_eq!(
        of_shards(
            "DELETE FROM idempotency_keys k USING charges WHERE charges.id = 'charges.x' AND keys = 1",
            &shards
        ),
        "DELETE FROM idempotency_keys_8 k USING charges_7 WHERE charges_7.id = 'charges.x' AND keys = 1"
    );
}

/// Makes a migrated database one that is distributed, or that takes the statements for one.
pub fn shape(owner_url: &SecretString, workers: &Workers) {
    let conn = &mut db::connect(owner_url).unwrap();
    if !workers.is_empty() {
        distribution::distribute(conn, &mut |_| ()).unwrap();
    } else if is_wanted() {
        distribution::imitate(conn).unwrap();
    }
}

/// Whether the tests' databases are distributed, or take the statements of one that is.
pub fn is_distributed() -> bool {
    is_wanted() || super::database::is_on_cluster()
}

/// Whether a test can't be run with the statements of a distributed database, for this reason.
pub fn differs(reason: &str) -> bool {
    if is_distributed() {
        eprintln!("not run on a distributed database: {reason}");
    }
    is_distributed()
}

/// Whether the test's database is on a cluster, where the test can't be run for this reason. `docs/scale.md` lists these tests with their
/// reasons.
pub fn cannot(reason: &str) -> bool {
    let is_cluster = super::database::is_on_cluster();
    if is_cluster {
        eprintln!("not run on a cluster: {reason}");
    }
    is_cluster
}

/// Tests that say so with [`differs`] or [`cannot`], and the reason of each.
fn exceptions() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let tests = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests"));
    let mut folders = vec![tests.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") || path.ends_with("cluster.rs") {
                continue;
            }
            let place = path.strip_prefix(tests).unwrap().with_extension("");
            let names = place.iter().map(|name| name.to_string_lossy()).filter(|name| name != "mod");
            let module = names.collect::<Vec<_>>().join("::");
            let text = std::fs::read_to_string(&path).unwrap();
            let mut test = "";
            for line in text.lines() {
                test = line.strip_prefix("fn ").and_then(|rest| rest.split('(').next()).unwrap_or(test);
                let said =
                    line.split_once("cluster::differs(\"").or_else(|| line.split_once("cluster::cannot(\""));
                if let Some((reason, _)) = said.and_then(|(_, rest)| rest.split_once('"')) {
                    found.push((format!("{module}::{test}"), reason.to_owned()));
                }
            }
        }
    }
    found.sort();
    found
}

#[test]
fn the_documentation_lists_the_tests_that_are_not_run_on_a_cluster() {
    let documented = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/scale.md")).unwrap();
    let exceptions = exceptions();
    assert!(exceptions.len() > 10, "{exceptions:?}");
    for (test, reason) in exceptions {
        let row = format!("| `{test}` | {reason} |");
        assert!(documented.contains(&row), "docs/scale.md lacks {row}");
    }
}
