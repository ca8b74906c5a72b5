//! The primary is lost for good, and its standby takes over.
//!
//! The standby is a synchronous one: a commit is answered when it's in both logs. An asynchronous one gets the log a
//! little later, so that the primary takes some commits with it that clients know of already: charges that were
//! acknowledged would be gone from the books, with the money taken, and a retry would find no key and charge again.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use diesel::{PgConnection, RunQueryDsl};
use oncepay::storage::db;
use tempfile::TempDir;

use crate::support::database::{binaries, exposed};
use crate::support::*;

use super::scene::{OwnServer, Scene, Setup, folder};
use super::{amount, for_ms, table};

/// Two servers with the same data. Both have a port for good; which of them leads changes.
struct Pair {
    servers: Mutex<(OwnServer, OwnServer)>,
    folder: TempDir,
}

impl Pair {
    fn start() -> Self {
        let folder = folder();
        let primary = OwnServer::start(folder.path().join("first"), free_port());
        let standby = follow(&primary, folder.path().join("second"), free_port());
        Self { servers: Mutex::new((primary, standby)), folder }
    }

    /// Loses the primary, together with what it hasn't sent in its last moments. That's where the standby's being
    /// synchronous matters: on one machine it's hardly ever behind.
    fn lose(&self) {
        let primary = &self.servers.lock().unwrap().0;
        let sender = sender(&mut superuser(primary));
        // SAFETY: it's a process of the server that we run.
        let signal = |signal| assert_eq!(unsafe { libc::kill(sender, signal) }, 0);
        signal(libc::SIGSTOP);
        for_ms(300);
        primary.quit();
        signal(libc::SIGKILL);
        primary.bury();
    }

    /// Lets the standby lead.
    fn promote(&self) {
        execute(&mut superuser(&self.servers.lock().unwrap().1), "SELECT pg_promote(true, 60)");
    }

    /// Gives the server that leads now a new standby, where the one is that was lost.
    fn complete(&self) {
        let mut servers = self.servers.lock().unwrap();
        let (lost, primary) = &mut *servers;
        let data = self.folder.path().join(fresh_key());
        *lost = follow(primary, data, lost.port);
        std::mem::swap(lost, primary);
    }
}

/// The program that copies a server; links to the others needn't have it beside them.
fn pg_basebackup() -> Result<PathBuf, String> {
    let postgres = binaries()?.dir().join("postgres").canonicalize().map_err(|error| error.to_string())?;
    let copier = postgres.with_file_name("pg_basebackup");
    if copier.is_file() { Ok(copier) } else { Err(format!("there is no {}", copier.display())) }
}

fn superuser(server: &OwnServer) -> PgConnection {
    db::connect(&server.url("postgres").into()).unwrap()
}

/// A standby of `primary`, for which its commits wait from now on.
fn follow(primary: &OwnServer, data: PathBuf, port: u16) -> OwnServer {
    let owner = fs::metadata(&primary.folder).unwrap();
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, Permissions::from_mode(0o700)).unwrap();
    chown(&data, Some(owner.uid()), Some(owner.gid())).unwrap();
    let source = format!("{}?application_name=standby", primary.url("postgres"));
    let mut copy = Command::new(pg_basebackup().unwrap());
    copy.args(["--checkpoint=fast", "--write-recovery-conf", "--create-slot", "--slot=standby"])
        .args(["--dbname", &source, "--pgdata"])
        .arg(&data)
        .current_dir("/")
        .stdin(Stdio::null());
    if owner.uid() != nix::unistd::geteuid().as_raw() {
        copy.uid(owner.uid()).gid(owner.gid());
    }
    let copied = copy.output().unwrap();
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    let standby = OwnServer::start(data, port);
    let conn = &mut superuser(primary);
    // Not before: the copy would have it, too, and wait for a standby of its own once it leads.
    execute(conn, "ALTER SYSTEM SET synchronous_standby_names = 'standby'");
    execute(conn, "SELECT pg_reload_conf()");
    eventually("the standby", || is_synchronous(&mut superuser(primary)));
    standby
}

fn is_synchronous(primary: &mut PgConnection) -> bool {
    let is_there =
        "SELECT FROM pg_stat_replication WHERE application_name = 'standby' AND sync_state = 'sync'";
    diesel::sql_query(is_there).execute(primary).unwrap() > 0
}

/// Id of the process that sends the log to the standby.
fn sender(primary: &mut PgConnection) -> libc::pid_t {
    diesel::select(diesel::dsl::sql::<diesel::sql_types::Integer>("(SELECT pid FROM pg_stat_replication)"))
        .get_result(primary)
        .unwrap()
}

#[test]
fn the_primary_is_lost() {
    if cluster::cannot("a server of its own is one Postgres; `ops/drills/nodes.py` crashes nodes") {
        return;
    }
    if let Err(error) = pg_basebackup() {
        println!("skipped: {error}");
        return;
    }
    let pair = Pair::start();
    let database = {
        let servers = pair.servers.lock().unwrap();
        servers.0.database().or_at(servers.1.port)
    };
    let setup = Setup::of("Postgres: the primary lost, its synchronous standby promoted a second later");
    let setup = Setup { acquirer_elsewhere: true, ..setup };
    let mut scene = Scene::start_on(setup, folder(), None, database);
    for round in 0..amount(1, 5) {
        if round > 0 {
            pair.complete();
        }
        scene = scene.strike_often(1, |scene| {
            pair.lose();
            eventually("unreadiness", || !scene.instances[0].is_ready());
            for_ms(1_000);
            pair.promote();
        });
        scene.wait_for_everybody();
    }
    table::add(scene.without_internal_errors().finish());
}

#[test]
fn an_address_that_leads_to_any_of_the_servers_is_a_reason_not_to_start() {
    if let Err(error) = pg_basebackup() {
        println!("skipped: {error}");
        return;
    }
    let pair = Pair::start();
    let (database, url) = {
        let servers = pair.servers.lock().unwrap();
        let (database, standby) = (servers.0.database(), servers.1.port);
        let (server, name) = exposed(&database.app_url).rsplit_once('/').unwrap();
        let url = format!("{server},127.0.0.1:{standby}/{name}?load_balance_hosts=random");
        (database, url)
    };
    let log = pair.folder.path().join("log");
    // Chance may lead all connections of a start to the same server.
    let is_refused = || {
        let file = File::create(&log).unwrap();
        Process::try_start(Process::command(), &database, &[("DATABASE_URL", &url)], file.into()).is_err()
    };
    assert!((0..50).any(|_| is_refused()), "it always starts");
    let said = fs::read_to_string(&log).unwrap();
    assert!(said.contains("lead to a primary and to a standby"), "{said}");
}

#[test]
fn a_service_that_reaches_only_a_standby_is_not_ready() {
    if let Err(error) = pg_basebackup() {
        println!("skipped: {error}");
        return;
    }
    let pair = Pair::start();
    let (mut database, standby) = {
        let servers = pair.servers.lock().unwrap();
        (servers.0.database(), servers.1.port)
    };
    let merchant = database.merchant();
    let primary = format!(":{}/", pair.servers.lock().unwrap().0.port);
    let url = exposed(&database.app_url).replace(&primary, &format!(":{standby}/"));
    let service = Process::start(&database, &[("DATABASE_URL", &url)]);
    service.client.get("/readyz").expect_problem(503, "database_unavailable");
    let client = service.client.as_merchant(&merchant);
    client.charge("a", &visa()).expect_problem(503, "database_unavailable");
    pair.lose();
    pair.promote();
    eventually("readiness", || service.client.get("/readyz").status == 200);
    client.charge("a", &visa()).expect(201);
    drop(service);
    // It's at the other server now.
    database.skip_audit();
}
