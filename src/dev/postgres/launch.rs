//! Runs Postgres on a cluster until it can be used, and reads in its log why if it can't.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;

use super::Settings;
use super::account::Account;
use super::binaries::Binaries;
use super::cluster::Cluster;
use super::error::{PostgresError, unusable};
use super::running::{PidFile, SETTLE_TIMEOUT, is_ours};
use super::shell::Shell;

const LOG_FILE: &str = "oncepay-postgres.log";
const LOG_LIMIT: u64 = 1 << 20;
/// Crash recovery takes its time.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// What the log says when a start failed for a reason that goes away by itself: another program
/// took the port, or processes of a killed server are still about.
const TRANSIENT: [&str; 2] = ["could not create any TCP/IP sockets", "pre-existing shared memory block"];

impl Cluster {
    /// Runs Postgres, and tries again while the remains of an earlier server are in the way.
    pub(super) fn launch(
        &self,
        settings: &Settings<'_>,
        binaries: &Binaries,
        account: Option<&Account>,
    ) -> Result<(Shell, u16), PostgresError> {
        let postgres = binaries.dir().join("postgres");
        let log_file = self.data.join(LOG_FILE);
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        loop {
            // Should someone take the port before Postgres does, another try gets another port.
            let port = settings.port.map_or_else(free_port, Ok).map_err(unusable(Path::new("127.0.0.1")))?;
            let mut args: Vec<OsString> = vec!["-D".into(), self.data.clone().into()];
            let mut set = |name: &str, value: &str| {
                args.extend(["-c".into(), format!("{name}={value}").into()]);
            };
            set("port", &port.to_string());
            set("listen_addresses", "127.0.0.1");
            set("unix_socket_directories", "");
            set("max_connections", &settings.max_connections.to_string());
            set("lc_messages", "C");
            set("log_destination", "stderr");
            set("logging_collector", "off");
            if !settings.durable {
                for name in ["fsync", "synchronous_commit", "full_page_writes"] {
                    set(name, "off");
                }
            }

            let (log, before) = open_log(&log_file, account).map_err(unusable(&log_file))?;
            let janitor = self.janitor.as_ref();
            let mut process =
                Shell::supervise(&postgres, &args, account, janitor, log).map_err(unusable(&postgres))?;
            let Err(reason) = self.ready(&mut process, port) else {
                return Ok((process, port));
            };
            drop(process);
            let log = last_lines(&log_file, before);
            let transient = TRANSIENT.iter().any(|sign| log.contains(sign));
            if !transient || Instant::now() > deadline {
                return Err(PostgresError::StartFailed { reason, log });
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits until our server, and not any other, answers on the port.
    fn ready(&self, process: &mut Shell, port: u16) -> Result<(), String> {
        let deadline = Instant::now() + READY_TIMEOUT;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = process.child.try_wait() {
                return Err(format!("it ended ({status})"));
            }
            // Cheaper than a connection, which would also make the server complain in its log.
            if PidFile::read(&self.data).is_some_and(|file| file.ready && file.port == port) {
                match is_ours(&self.data, port, &self.password) {
                    Ok(true) => return Ok(()),
                    Err(error) if error.contains("authentication failed") => {
                        return Err(error.trim().into());
                    }
                    Ok(false) | Err(_) => {}
                }
            }
            thread::sleep(Duration::from_millis(5));
        }
        Err(format!("it wasn't ready within {READY_TIMEOUT:?}"))
    }
}

fn free_port() -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}

/// Opens the server's log, and says how long it is already.
fn open_log(path: &Path, account: Option<&Account>) -> io::Result<(fs::File, usize)> {
    if fs::metadata(path).is_ok_and(|log| log.len() > LOG_LIMIT) {
        fs::rename(path, path.with_extension("log.old"))?;
    }
    let mut options = fs::OpenOptions::new();
    // The folder isn't root's: a link in it could have root open and give away any file.
    options.custom_flags(OFlag::O_NOFOLLOW.bits());
    let log = options.append(true).create(true).mode(0o600).open(path)?;
    if let Some(account) = account {
        fchown(&log, Some(account.uid), Some(account.gid))?;
    }
    let length = usize::try_from(log.metadata()?.len()).unwrap_or(usize::MAX);
    Ok((log, length))
}

/// The end of a log, without what was in it before.
pub(super) fn last_lines(path: &Path, before: usize) -> String {
    let log = fs::read(path).unwrap_or_default();
    let log = String::from_utf8_lossy(log.get(before..).unwrap_or_default());
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
