//! The disk under Postgres is full.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

use diesel::RunQueryDsl;
use oncepay::storage::db;

use crate::support::database::binaries;
use crate::support::{cluster, free_port};

use super::history::Answer;
use super::scene::{OwnServer, Scene, Setup, folder};
use super::{amount, eventually, for_ms, table};

/// Room for a cluster, its log and what a scene makes of it.
const DISK: &std::ffi::CStr = c"size=192m,mode=0755";

/// Runs a scenario in a thread that has a small disk at `place`, as have the processes that it starts. Nobody else sees
/// it, and the last of them that ends takes it along. Errors where mounting isn't allowed.
fn with_a_small_disk(place: &Path, scenario: impl FnOnce() + Send) -> io::Result<()> {
    let there = CString::new(place.as_os_str().as_bytes()).expect("a path has no zeros");
    let mount = || {
        let checked = |result| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
        let (nothing, private) = (std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE);
        // SAFETY: the texts end with zeros and live as long as the calls.
        unsafe {
            checked(libc::unshare(libc::CLONE_NEWNS))?;
            checked(libc::mount(nothing, c"/".as_ptr(), nothing, private, nothing.cast()))?;
            let tmpfs = c"tmpfs".as_ptr();
            checked(libc::mount(tmpfs, there.as_ptr(), tmpfs, 0, DISK.as_ptr().cast()))
        }
    };
    thread::scope(|scope| scope.spawn(|| mount().map(|()| scenario())).join())
        .unwrap_or_else(|panic| resume_unwind(panic))
}

/// Takes all the room that is left.
fn fill(ballast: &Path) {
    let mut file = File::create(ballast).unwrap();
    for size in [1 << 20, 1 << 12] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
}

impl Scene {
    /// Waits until the database couldn't do something that was asked for since.
    fn wait_for_refusals(&self, since: u64) {
        eventually("a refusal", || {
            let refused = self.recorder.clients(|attempt| {
                let is_refusal =
                    |answer: &Answer| answer.status == 503 && answer.code == "database_unavailable";
                attempt.sent_at >= since && attempt.answer.as_ref().is_some_and(is_refusal)
            });
            !refused.is_empty()
        });
    }
}

/// Has the server begin new files of its log until it can't, and panics over that. Says whether it did.
fn exhaust_the_log(server: &OwnServer) -> bool {
    let Ok(mut superuser) = db::connect(&server.url("postgres").into()) else { return true };
    let switch = "SELECT pg_logical_emit_message(false, 'oncepay', 'more'), pg_switch_wal()";
    (0..64).any(|_| diesel::sql_query(switch).execute(&mut superuser).is_err())
}

/// Waits until the server is back, and starts it again if it has given up, as its supervisor would.
fn see_to(server: &OwnServer) {
    eventually("the server", || match db::connect(&server.url("postgres").into()) {
        Ok(_) => true,
        Err(error) if error.contains("refused") => {
            server.launch_again();
            true
        }
        Err(_) => false,
    });
}

#[test]
fn the_disk_is_full() {
    if cluster::cannot("a server of its own is one Postgres; `ops/drills/nodes.py` crashes nodes") {
        return;
    }
    if let Err(error) = binaries() {
        println!("skipped: {error}");
        return;
    }
    let disk = folder();
    let played = with_a_small_disk(disk.path(), || {
        let server = OwnServer::start(disk.path().join("postgres"), free_port());
        let database = server.database();
        let setup = Setup::of("Postgres: disk full, for its data and then for its log, too");
        let setup = Setup { acquirer_elsewhere: true, ..setup };
        let scene = Scene::start_on(setup, folder(), Some(server), database);
        let ballast = disk.path().join("ballast");
        let scene = scene.strike_often(amount(1, 5), |scene| {
            let server = scene.server.as_ref().expect("it has one");
            let since = scene.recorder.now();
            fill(&ballast);
            scene.wait_for_refusals(since);
            for_ms(amount(0, 3_000));
            assert!(exhaust_the_log(server), "there was room for a log");
            for_ms(amount(1_000, 5_000));
            std::fs::remove_file(&ballast).unwrap();
            see_to(server);
        });
        table::add(scene.without_internal_errors().finish());
    });
    if let Err(error) = played {
        println!("skipped: no disk can be mounted: {error}");
    }
}
