//! The state of a server that runs or has run: its `postmaster.pid`, and the answer on its port.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use diesel::RunQueryDsl;
use diesel::dsl::sql;
use diesel::sql_types::Text;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::storage::db;

pub(super) const SUPERUSER: &str = "postgres";
/// Maximum time for the remains of an earlier server to go away.
pub(super) const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) fn url(port: u16, password: &str, database: &str) -> String {
    format!("postgres://{SUPERUSER}:{password}@127.0.0.1:{port}/{database}")
}

/// Whether the server on a port is the one of the data.
pub(super) fn is_ours(data: &Path, port: u16, password: &str) -> Result<bool, String> {
    // Explicit settings can't be changed by PGHOSTADDR and the like, and don't show the password to a
    // stranger who asks for it.
    let options = "hostaddr=127.0.0.1&sslmode=disable&gssencmode=disable&connect_timeout=3\
                   &require_auth=scram-sha-256";
    let url = format!("{}?{options}", url(port, password, "postgres"));
    let mut connection = db::establish(&url).map_err(|error| error.to_string())?;
    let served = diesel::select(sql::<Text>("current_setting('data_directory')"))
        .get_result::<String>(&mut connection)
        .map_err(|error| error.to_string())?;
    let id = |path: &Path| fs::metadata(path).map(|data| (data.dev(), data.ino())).ok();
    Ok(id(data).is_some_and(|ours| id(Path::new(&served)) == Some(ours)))
}

/// Content of Postgres's `postmaster.pid`.
#[derive(Debug, PartialEq)]
pub(super) struct PidFile {
    pub(super) pid: Pid,
    pub(super) port: u16,
    /// Whether we started the server, judging by the address on which it listens.
    local: bool,
    pub(super) ready: bool,
}

impl PidFile {
    fn path(data: &Path) -> PathBuf {
        data.join("postmaster.pid")
    }

    pub(super) fn read(data: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(Self::path(data)).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let pid: i32 = lines.first()?.parse().ok()?;
        // `kill` takes a negative number for a group of processes.
        (pid > 1).then_some(Self {
            pid: Pid::from_raw(pid),
            port: lines.get(3)?.parse().ok()?,
            local: lines.get(5) == Some(&"127.0.0.1"),
            // A standby can be read.
            ready: matches!(lines.get(7), Some(&"ready" | &"standby")),
        })
    }
}

/// Stops a server that is still there, or waits for it to stop. Returns whether none is left.
///
/// The pid in `postmaster.pid` may be that of any process by now, so it only counts together with an answer
/// on the port. If a process that isn't a server uses the pid, the file is removed, because Postgres wouldn't
/// start over it. Should that be a mistake, the shared memory of a running server still keeps another one
/// from starting.
pub(super) fn settle(data: &Path, password: &str) -> bool {
    let deadline = Instant::now() + SETTLE_TIMEOUT;
    let mut signaled = false;
    let mut absences = 0;
    while let Some(file) = PidFile::read(data) {
        if kill(file.pid, None) == Err(Errno::ESRCH) {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        match is_ours(data, file.port, password) {
            Ok(true) if !signaled => {
                log::info!("Stopping a Postgres server that was left behind");
                signaled = kill(file.pid, Signal::SIGINT).is_ok();
            }
            Ok(true) => {}
            Ok(false) => absences += 1,
            Err(error) if error.contains("Connection refused") => absences += 1,
            // Starting up or shutting down, for example.
            Err(_) => {}
        }
        // Repeats: a server that is about to end closes its port first.
        if absences > 20 {
            if !file.local {
                // Started by hand, so it may be a server without a port. Postgres knows.
                return false;
            }
            log::info!("Removing the postmaster.pid of a server that is gone");
            let _ = fs::remove_file(PidFile::path(data));
        }
        thread::sleep(Duration::from_millis(100));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_files() {
        let text = "4711\n/data\n1700000000\n54321\n\n127.0.0.1\n  3 4\nready   \n";
        let file = PidFile::parse(text).unwrap();
        assert_eq!((file.pid.as_raw(), file.port), (4711, 54321));
        assert!(file.local && file.ready);
        let starting = PidFile::parse("4711\n/data\n1700000000\n54321\n").unwrap();
        assert!(!starting.local && !starting.ready);
        assert_eq!(PidFile::parse("-4711\n/data\n1700000000\n54321\n"), None);
        assert_eq!(PidFile::parse(""), None);
    }
}
