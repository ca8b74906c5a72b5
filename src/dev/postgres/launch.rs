//! Runs Postgres on a cluster until it is ready, and finds the reason in its log if it isn't.

use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::Settings;
use super::binaries::Binaries;
use super::cluster::Cluster;
use super::error::{PostgresError, unusable};
use super::os_user::OsUser;
use super::running::{PidFile, SETTLE_TIMEOUT, is_ours};
use super::server_log::{last_lines, open_log};
use super::supervisor::Supervisor;

const LOG_FILE: &str = "oncepay-postgres.log";
/// Maximum time until the server is ready: crash recovery takes a while.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Log messages of failed starts whose reason goes away by itself: another program took the port, or
/// processes of a killed server are still around.
const TRANSIENT: [&str; 2] = ["could not create any TCP/IP sockets", "pre-existing shared memory block"];

impl Cluster {
    /// Runs Postgres, and retries while the remains of an earlier server are in the way.
    pub(super) fn launch(
        &self,
        settings: &Settings<'_>,
        binaries: &Binaries,
        account: Option<&OsUser>,
    ) -> Result<(Supervisor, u16), PostgresError> {
        let postgres = binaries.dir().join("postgres");
        let log_file = self.data.join(LOG_FILE);
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        loop {
            // If another program takes the port before Postgres does, the next attempt gets another port.
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
                // Nothing lasts here, neither the data nor the sessions: each would load the compiler anew.
                for name in ["fsync", "synchronous_commit", "full_page_writes", "jit"] {
                    set(name, "off");
                }
            }

            let (log, before) = open_log(&log_file, account).map_err(unusable(&log_file))?;
            let janitor = self.janitor.as_ref();
            let mut process = Supervisor::supervise(&postgres, &args, account, janitor, log)
                .map_err(unusable(&postgres))?;
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
    fn ready(&self, process: &mut Supervisor, port: u16) -> Result<(), String> {
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
