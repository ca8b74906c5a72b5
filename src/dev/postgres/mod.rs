//! A private Postgres server, run from the binaries on the machine or from some that are fetched.
//!
//! It is for `oncepay dev`, whose data must last, and for the test suite, which needs a fresh server that
//! leaves no trace.
//!
//! Promised:
//!
//! * A server is private: TCP on 127.0.0.1 only, a free port at each start unless one is asked for,
//!   no Unix socket, and a random superuser password that is kept (mode 0600) beside the data.
//! * It doesn't outlive this process, even if that is killed with SIGKILL: a shell holds the other
//!   end of a pipe and stops the server when the pipe closes. It is in a process group of its own,
//!   so Ctrl-C in the terminal reaches this process and not the server.
//! * A cluster folder is complete or absent, and a failed first start leaves nothing behind.
//!   A throw-away server's folder is removed at the end, whichever way the end comes.
//! * One process uses a cluster at a time; servers and files that an earlier, killed process left
//!   are cleared away.
//! * Root may use it. Postgres refuses to run as root, so it then runs as `postgres` or `nobody` (or as the
//!   owner of existing data). If that user can't reach the folder, the cluster is put into `/var/lib/oncepay`
//!   and the folder becomes a link to it.
//!
//! Not promised: upgrades of data from one major version to another; survival of a throw-away server's data
//! in a crash (`fsync` is off); removal of a throw-away server if the shells that watch it are killed with
//! SIGKILL together with this process; removal of the data in `/var/lib/oncepay` when someone deletes the
//! link to it.

mod binaries;
mod cleanup;
mod cluster;
mod error;
mod fetch;
mod launch;
mod location;
mod os_user;
mod running;
mod server_log;
mod supervisor;

pub use self::binaries::{Binaries, OLDEST_MAJOR, Origin, Supply};
pub use self::error::PostgresError;

use std::fmt;
use std::path::{self, Path};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use self::cleanup::Cleanup;
use self::cluster::Cluster;
use self::error::{unusable, unusable_as};
use self::location::{follow, major_in};
use self::os_user::OsUser;
use self::running::{PidFile, settle, url};
use self::supervisor::{KILL_TIMEOUT, Supervisor};

/// Maximum time for a stop: a big checkpoint takes a while.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// Settings of a server.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// Folder of the data. The first start creates it, along with the folders above it.
    pub cluster_dir: &'a Path,
    /// Whether the data are kept and survive crashes. A server that isn't durable needs a folder that doesn't
    /// exist yet, and removes it at the end.
    pub durable: bool,
    /// Maximum number of connections, three of which Postgres reserves for the superuser.
    pub max_connections: u32,
    /// Port on 127.0.0.1, for a server that keeps its address over a restart. Default: a free one.
    pub port: Option<u16>,
    /// How to come by its binaries.
    pub supply: Supply,
}

/// A running server, which stops when this is dropped.
pub struct Server {
    // In this order: the server ends, then its folder.
    process: Option<Supervisor>,
    cluster: Cluster,
    port: u16,
    binaries: Binaries,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("data", &self.cluster.data)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Starts a server on the folder's data, which it creates if there are none, and waits until the server
    /// is ready.
    pub fn start(settings: &Settings<'_>) -> Result<Self, PostgresError> {
        let named = path::absolute(settings.cluster_dir).map_err(unusable(settings.cluster_dir))?;
        let data = follow(&named)?;
        let major = major_in(&data)?;
        if !settings.durable && named.symlink_metadata().is_ok() {
            let cause = "a throw-away server removes its folder at the end, and this one exists";
            return Err(unusable_as(&named, cause));
        }
        let account = OsUser::choose(major.map(|_| data.as_path()))?;
        let account = account.as_ref();
        let holds = major.map(|major| (named.as_path(), major));
        let binaries = Binaries::find_for(settings.supply, account, holds)?;

        let mut made = Cleanup::default();
        let cluster = match major {
            Some(_) => Cluster::reopen(&named, data, account),
            None => Cluster::create(&named, data, settings, &binaries, account, &mut made),
        }?;
        let (process, port) = cluster.launch(settings, &binaries, account)?;
        made.0.clear();
        Ok(Self { process: Some(process), cluster, port, binaries })
    }

    /// Connection string of a database, with the superuser's rights.
    pub fn superuser_url(&self, database: &str) -> String {
        url(self.port, &self.cluster.password, database)
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of its binaries.
    pub fn binaries_dir(&self) -> &Path {
        self.binaries.dir()
    }

    /// Ends all connections, stops the server and waits for its end. A drop does the same, but can't report a
    /// failure.
    pub fn stop(mut self) -> Result<(), PostgresError> {
        self.shut_down()
    }

    fn shut_down(&mut self) -> Result<(), PostgresError> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        let data = &self.cluster.data;
        if let Ok(Some(status)) = process.child.try_wait() {
            log::warn!("Postgres, or the shell that watched it, had ended already ({status})");
        }
        let mut stopped = process.stop(STOP_TIMEOUT);
        if !stopped && let Some(PidFile { pid, .. }) = PidFile::read(data) {
            // The shell still waits for the process, so no other process can have its pid.
            log::warn!("Postgres takes too long to stop; it will recover at its next start");
            let _ = kill(pid, Signal::SIGQUIT);
            stopped = process.stop(KILL_TIMEOUT);
        }
        // In case the shell was killed.
        if settle(data, &self.cluster.password) && stopped {
            Ok(())
        } else {
            Err(PostgresError::StopFailed { path: data.clone() })
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.shut_down() {
            log::warn!("{error}");
        }
    }
}
