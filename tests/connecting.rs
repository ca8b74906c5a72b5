//! Between the service and its database: poolers, TLS, and what a deployment can get wrong.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use diesel_migrations::MigrationHarness;
use oncepay::dev::postgres;
use oncepay::storage::migrations::MIGRATIONS;
use tempfile::TempDir;

use crate::support::database::{exposed, fast_folder};
use crate::support::pooler::{Pooler, pgbouncer};
use crate::support::*;

/// A pooler before the server of a database. `None` if there is no PgBouncer.
fn pooler(database: &TestDatabase, mode: &str) -> Option<Pooler> {
    if pgbouncer().is_none() {
        println!("skipped: PgBouncer isn't installed");
        return None;
    }
    Some(Pooler::start(exposed(&database.superuser_url), mode).unwrap())
}

/// What `oncepay migrate` complains about.
fn refusal_to_migrate(url: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oncepay"));
    let output = command.arg("migrate").env("ONCEPAY_OWNER_DATABASE_URL", url).output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_pooler_that_hands_out_sessions_of_others_is_a_reason_not_to_start_and_not_to_migrate() {
    let database = TestDatabase::new();
    for mode in ["transaction", "statement"] {
        let Some(pooler) = pooler(&database, mode) else { return };
        let url = pooler.before(&database.app_url);
        let refused = Process::refusal(&database, &[("DATABASE_URL", exposed(&url))]);
        assert!(
            refused.contains("don't keep their sessions") && refused.contains("pool_mode = session"),
            "{refused}"
        );
        let refused = refusal_to_migrate(exposed(&pooler.before(&database.owner_url)));
        assert!(refused.contains("don't keep their sessions"), "{refused}");
    }
}

#[test]
fn a_pooler_that_keeps_sessions_is_as_good_as_none() {
    let database = TestDatabase::new();
    let Some(pooler) = pooler(&database, "session") else { return };
    let url = pooler.before(&database.app_url);
    let service = Process::start(&database, &[("DATABASE_URL", exposed(&url))]);
    service.client.get("/readyz").expect(200);
    let client = service.client.as_merchant(&database.merchant());
    client.charge("k", &visa()).expect(201);
    assert!(client.charge("k", &visa()).expect(201).is_replay());
}

/// An operator changes the pooler's settings while the service runs.
#[test]
fn nothing_is_done_in_sessions_of_others() {
    let database = TestDatabase::new();
    let Some(pooler) = pooler(&database, "session") else { return };
    let url = pooler.before(&database.app_url);
    let service = Process::start(&database, &[("DATABASE_URL", exposed(&url))]);
    let client = service.client.as_merchant(&database.merchant());
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|number| {
                let (client, is_over) = (&client, &is_over);
                scope.spawn(move || {
                    let mut keys = Vec::new();
                    while !is_over.load(Ordering::Relaxed) {
                        let key = format!("{number}-{}", keys.len());
                        // Until the first foreign session is noticed, a statement in it may fail in any way.
                        client.charge(&key, &visa());
                        keys.push(key);
                    }
                    keys
                })
            })
            .collect();
        pooler.set_mode("transaction");
        eventually("unreadiness", || service.client.get("/readyz").status == 503);
        is_over.store(true, Ordering::Relaxed);
        let problem = service.client.get("/readyz").expect_problem(503, "database_unfit");
        assert!(problem.field("detail").contains("don't keep their sessions"), "{}", problem.text());
        client.charge("later", &visa()).expect_problem(503, "database_unavailable");
        pooler.set_mode("session");
        eventually("readiness", || service.client.get("/readyz").status == 200);
        let keys: Vec<_> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        for key in &keys {
            client.charge(key, &visa()).expect(201);
        }
        assert_eq!(database.rows("charges"), i64::try_from(keys.len()).unwrap());
    });
}

#[test]
fn missing_migrations_are_told_and_waited_for() {
    if cluster::differs("what was distributed is not taken back") {
        return;
    }
    let database = TestDatabase::new();
    // From another life of the database.
    let early = database.merchant();
    database.as_owner().revert_all_migrations(MIGRATIONS).unwrap();
    let service = Process::start(&database, &[]);
    let problem = service.client.get("/readyz").expect_problem(503, "database_unfit");
    assert_eq!(problem.field("detail"), "The database lacks migrations of this release.");
    service.client.as_merchant(&early).charge("k", &visa()).expect_problem(503, "database_unavailable");
    oncepay::dev::database::migrate(&database.owner_url).unwrap();
    eventually("readiness", || service.client.get("/readyz").status == 200);
    service.client.as_merchant(&database.merchant()).charge("k", &visa()).expect(201);
}

#[test]
fn a_last_migration_that_is_missing_is_told_too() {
    let database = TestDatabase::new();
    database.as_owner().revert_last_migration(MIGRATIONS).unwrap();
    let service = Process::start_logging(&database, &[]);
    service.client.get("/readyz").expect_problem(503, "database_unfit");
    let health = |listen: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oncepay"));
        let output = command.args(["health", "--ready", "--listen", listen]).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let (is_ready, said) = health(service.client.base().trim_start_matches("http://"));
    assert!(!is_ready && said.contains("The database lacks migrations of this release."), "{said}");
    let log = service.log();
    assert!(log.contains("Run oncepay migrate"), "{log}");
    oncepay::dev::database::migrate(&database.owner_url).unwrap();
}

#[test]
fn a_database_of_the_first_release_that_could_not_be_looked_at_lacks_migrations() {
    let database = TestDatabase::new();
    execute(&mut database.as_owner(), "REVOKE SELECT ON __diesel_schema_migrations FROM oncepay_app");
    execute(&mut database.as_owner(), "ALTER TABLE audit_runs RENAME TO not_yet");
    let service = Process::start(&database, &[]);
    service.client.get("/readyz").expect_problem(503, "database_unfit");
    execute(&mut database.as_owner(), "ALTER TABLE not_yet RENAME TO audit_runs");
    eventually("readiness", || service.client.get("/readyz").status == 200);
    oncepay::dev::database::migrate(&database.owner_url).unwrap();
}

#[test]
fn missing_privileges_are_told_and_waited_for() {
    let database = TestDatabase::new();
    // As after a backup that was restored without them. A role that may not even look doesn't lack migrations.
    for (revoke, grant) in [
        (
            "REVOKE INSERT ON idempotency_keys FROM oncepay_app",
            "GRANT INSERT ON idempotency_keys TO oncepay_app",
        ),
        ("REVOKE USAGE ON SCHEMA public FROM PUBLIC, oncepay_app", "GRANT USAGE ON SCHEMA public TO PUBLIC"),
    ] {
        execute(&mut database.as_owner(), revoke);
        let service = Process::start(&database, &[]);
        let problem = service.client.get("/readyz").expect_problem(503, "database_unfit");
        assert_eq!(problem.field("detail"), "The service's role lacks privileges in the database.");
        execute(&mut database.as_owner(), grant);
        eventually("readiness", || service.client.get("/readyz").status == 200);
    }
}

#[test]
fn a_connection_string_that_leads_nowhere_is_a_reason_not_to_start() {
    let database = TestDatabase::new();
    let changed = |change: &dyn Fn(&mut url::Url)| {
        let mut url = url::Url::parse(exposed(&database.app_url)).unwrap();
        change(&mut url);
        String::from(url)
    };
    let cases = [
        (changed(&|url| url.set_password(Some("wrong")).unwrap()), "Check the role and the password"),
        (changed(&|url| url.set_path("oncepay_missing")), "Check the database in DATABASE_URL"),
        (changed(&|url| url.set_query(Some("ssl_mode=require"))), "DATABASE_URL must be such as postgres://"),
        ("nonsense".to_owned(), "DATABASE_URL must be such as postgres://"),
    ];
    for (url, remedy) in cases {
        let refused = Process::refusal(&database, &[("DATABASE_URL", &url)]);
        assert!(
            refused.contains("Can't connect to the database") && refused.contains(remedy),
            "{url}: {refused}"
        );
    }
}

#[test]
fn another_encoding_is_a_reason_not_to_start() {
    let database = TestDatabase::new();
    let other = format!("{}_latin", database.name());
    let superuser = &mut database.as_superuser();
    execute(
        superuser,
        &format!("CREATE DATABASE {other} TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'"),
    );
    let url = exposed(&database.app_url).replace(database.name(), &other);
    let refused = Process::refusal(&database, &[("DATABASE_URL", &url)]);
    execute(superuser, &format!("DROP DATABASE {other}"));
    assert!(refused.contains("The database has the encoding LATIN1"), "{refused}");
}

#[test]
fn what_works_and_should_be_otherwise_is_in_the_log() {
    let database = TestDatabase::new();
    let limit = format!("ALTER DATABASE {} CONNECTION LIMIT 40", database.name());
    execute(&mut database.as_superuser(), &limit);
    let settings = [
        ("DATABASE_URL", exposed(&database.owner_url)),
        ("ONCEPAY_POOL_SIZE", "40"),
        ("ONCEPAY_CLOCK_OFFSET_S", "-3600"),
        ("RUST_LOG", "warn"),
    ];
    let service = Process::start_logging(&database, &settings);
    service.client.get("/readyz").expect(200);
    let log = service.log();
    for remark in [
        "connects as oncepay_owner, which owns the tables",
        "opens 41 connections, but the database lets oncepay_owner have 40",
        "behind the database's",
    ] {
        assert!(log.contains(remark), "{remark} isn't in\n{log}");
    }
    let is_crash_safe = database.text("SELECT current_setting('fsync')") == "on";
    assert_eq!(log.contains("has fsync or full_page_writes off"), !is_crash_safe, "{log}");
    let unlimited = format!("ALTER DATABASE {} CONNECTION LIMIT -1", database.name());
    execute(&mut database.as_superuser(), &unlimited);
}

/// A CA, with a certificate for a server.
struct Certificates(TempDir);

impl Certificates {
    /// `None` if there is no OpenSSL.
    fn make(name: &str) -> Option<Self> {
        let folder = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().unwrap();
        let alternative = format!("subjectAltName=DNS:{name}");
        let ca = [
            "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-keyout", "ca.key", "-out", "ca.crt",
            "-subj", "/CN=A CA",
        ];
        let server =
            ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-CA", "ca.crt", "-CAkey", "ca.key"];
        let files =
            ["-keyout", "server.key", "-out", "server.crt", "-subj", "/CN=server", "-addext", &alternative];
        for arguments in [ca.to_vec(), [&server[..], &files[..]].concat()] {
            let mut command = Command::new("openssl");
            let output = command.arg("req").args(arguments).current_dir(&folder).output().ok()?;
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        Some(Self(folder))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Has a server use the certificate.
    fn hand_over(&self, cluster: &Path, database: &TestDatabase) {
        let owner = fs::metadata(cluster).unwrap();
        for name in ["server.crt", "server.key"] {
            let file = cluster.join(name);
            fs::copy(self.file(name), &file).unwrap();
            fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
            chown(&file, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        let superuser = &mut database.as_superuser();
        execute(superuser, "ALTER SYSTEM SET ssl = on");
        execute(superuser, "SELECT pg_reload_conf()");
        let is_on = "SELECT count(*) FROM pg_settings WHERE name = 'ssl' AND setting = 'on'";
        eventually("TLS", || database.count(is_on) == 1);
    }
}

#[test]
fn the_server_must_prove_its_name_by_a_certificate_of_the_right_ca() {
    let (Some(ours), Some(others)) = (Certificates::make("db.example"), Certificates::make("db.example"))
    else {
        println!("skipped: openssl isn't installed");
        return;
    };
    let folder = tempfile::Builder::new()
        .prefix("oncepay-tls-")
        .permissions(Permissions::from_mode(0o755))
        .tempdir_in(fast_folder())
        .unwrap();
    let cluster = folder.path().join("postgres");
    let settings = postgres::Settings {
        cluster_dir: &cluster,
        durable: false,
        max_connections: 50,
        port: None,
        supply: database::supply(),
    };
    let server = match postgres::Server::start(&settings) {
        Ok(server) => server,
        Err(error) => {
            println!("skipped: {error}");
            return;
        }
    };
    let database = TestDatabase::on(&server);
    let merchant = database.merchant();
    let url = |host: &str, ca: &Path| {
        let mut url = url::Url::parse(exposed(&database.app_url)).unwrap();
        url.set_host(Some(host)).unwrap();
        let ca = ca.display();
        url.set_query(Some(&format!("hostaddr=127.0.0.1&sslmode=verify-full&sslrootcert={ca}")));
        String::from(url)
    };
    let refusal = |url: &str| Process::refusal(&database, &[("DATABASE_URL", url)]);
    let ca = ours.file("ca.crt");
    let refused = refusal(&url("db.example", &ca));
    assert!(refused.contains("Turn on TLS on the server"), "{refused}");
    ours.hand_over(&cluster, &database);

    let refused = refusal(&url("localhost", &ca));
    assert!(refused.contains("\"db.example\" does not match host name \"localhost\""), "{refused}");
    assert!(
        refused.contains("DATABASE_URL must name the server by a name that its certificate has."),
        "{refused}"
    );
    let refused = refusal(&url("db.example", &others.file("ca.crt")));
    assert!(refused.contains("certificate verify failed") && refused.contains("sslrootcert"), "{refused}");
    let refused = refusal(&url("db.example", &ours.file("missing.crt")));
    assert!(refused.contains("missing.crt\" does not exist") && refused.contains("sslrootcert"), "{refused}");

    let service = Process::start(&database, &[("DATABASE_URL", &url("db.example", &ca))]);
    service.client.get("/readyz").expect(200);
    service.client.as_merchant(&merchant).charge("k", &visa()).expect(201);
    let plain = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'oncepay_app' AND NOT ssl";
    assert_eq!(database.count(plain), 0);
    drop(service);
    drop(database);
    server.stop().unwrap();
}
