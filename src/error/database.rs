//! The meaning of a database error for a request: nothing was done, try again, or our bug.

use diesel::result::{DatabaseErrorInformation, DatabaseErrorKind};

use super::{Error, Failure};

impl From<diesel::result::Error> for Failure {
    /// Sorts a database error: unavailable (nothing was done), collided (the whole transaction may be
    /// retried), or our bug. Business rules that the database enforces never get here: the caller that
    /// expects one recognizes it by its constraint's name first.
    fn from(error: diesel::result::Error) -> Self {
        use diesel::result::Error as Diesel;
        match &error {
            Diesel::DatabaseError(DatabaseErrorKind::SerializationFailure, _) => {
                Self::TransientConflict(error.into())
            }
            Diesel::DatabaseError(
                DatabaseErrorKind::ClosedConnection
                | DatabaseErrorKind::UnableToSendCommand
                | DatabaseErrorKind::ReadOnlyTransaction,
                _,
            )
            | Diesel::BrokenTransactionManager => Self::DatabaseUnavailable(error.into()),
            Diesel::DatabaseError(_, information) if collided(&**information) => {
                Self::TransientConflict(error.into())
            }
            Diesel::DatabaseError(_, information) if unavailable(&**information) => {
                Self::DatabaseUnavailable(error.into())
            }
            _ => Self::internal(error),
        }
    }
}

impl From<diesel::result::Error> for Error {
    fn from(error: diesel::result::Error) -> Self {
        Failure::from(error).into()
    }
}

/// Deadlock (40P01) and lock timeout (55P03). Diesel doesn't expose the SQLSTATE, so this matches the
/// message; the server must have `lc_messages` in English.
fn collided(information: &(dyn DatabaseErrorInformation + Send + Sync)) -> bool {
    ["deadlock detected", "canceling statement due to lock timeout", "could not obtain lock"]
        .iter()
        .any(|message| information.message().starts_with(message))
}

/// The server is there but can't serve: it is shutting down, starting up or read-only, or out of time, disk
/// or memory. A failed file operation (53100, 58030, 58P01) rolls the transaction back; it works again when
/// an operator has repaired the disk.
fn unavailable(information: &(dyn DatabaseErrorInformation + Send + Sync)) -> bool {
    [
        "terminating connection",
        "the database system is",
        "server closed the connection",
        "canceling statement due to",
        "cannot execute",
        "could not receive data from server",
        "no connection to the server",
        "SSL connection has been closed",
        "out of memory",
        "out of shared memory",
        "could not access",
        "could not create",
        "could not extend",
        "could not fsync",
        "could not open",
        "could not read",
        "could not resize shared memory segment",
        "could not stat",
        "could not write",
    ]
    .iter()
    .any(|message| information.message().starts_with(message))
        || information.message().ends_with("No space left on device")
}

/// Name of the constraint that a statement violated, if that is why the statement failed.
pub fn violated_constraint(error: &diesel::result::Error) -> Option<&str> {
    match error {
        diesel::result::Error::DatabaseError(_, information) => information.constraint_name(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn a_server_that_cannot_serve_is_told_from_a_bug() {
        let sorted = |message: &str| {
            let information = Box::new(message.to_owned());
            Error::from(diesel::result::Error::DatabaseError(DatabaseErrorKind::Unknown, information)).code()
        };
        for message in [
            "could not extend file \"base/16384/16563\": No space left on device",
            "could not write to file \"pg_wal/xlogtemp.4711\": No space left on device",
            "could not access status of transaction 32768",
            "could not open file \"base/16384/16563\": No such file or directory",
            "could not fsync file \"base/16384/16563\": Input/output error",
            "could not resize shared memory segment \"/PostgreSQL.1\" to 8192 bytes: No space left on device",
            "out of memory",
            "terminating connection due to administrator command",
            "terminating connection because of crash of another server process",
            "the database system is shutting down",
            "the database system is in recovery mode",
            "cannot execute INSERT in a read-only transaction",
            "canceling statement due to statement timeout",
        ] {
            assert_eq!(sorted(message), Code::DatabaseUnavailable, "{message}");
        }
        for message in ["deadlock detected", "could not obtain lock on row in relation \"charges\""] {
            assert_eq!(sorted(message), Code::TransientConflict, "{message}");
        }
        for message in ["could not determine data type of parameter $1", "relation \"charge\" does not exist"]
        {
            assert_eq!(sorted(message), Code::Internal, "{message}");
        }
    }
}
