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
            // A connection that is lost during the commit can't roll back either.
            Diesel::RollbackErrorOnCommit { .. } => match error {
                Diesel::RollbackErrorOnCommit { commit_error, .. } => (*commit_error).into(),
                error => Self::internal(error),
            },
            Diesel::DatabaseError(_, information) if collided(&**information) => {
                Self::TransientConflict(error.into())
            }
            Diesel::DatabaseError(_, information) if unavailable(&**information) => {
                Self::DatabaseUnavailable(error.into())
            }
            _ if is_session_lost(&error) => Self::DatabaseUnavailable(error.into()),
            _ => Self::internal(error),
        }
    }
}

impl From<diesel::result::Error> for Error {
    fn from(error: diesel::result::Error) -> Self {
        Failure::from(error).into()
    }
}

/// Deadlock (40P01), lock timeout (55P03), and a plan that names a shard which has been split since. Diesel doesn't expose
/// the SQLSTATE, so this matches the message; the server must have `lc_messages` in English.
fn collided(information: &(dyn DatabaseErrorInformation + Send + Sync)) -> bool {
    let collided = [
        "deadlock detected",
        "canceling statement due to lock timeout",
        "could not obtain lock",
        "could not find valid entry for shard",
    ];
    collided.iter().any(|message| information.message().starts_with(message))
}

/// Whether an error means that the connection ended before the answer to a statement came. Then the statement
/// may have been committed all the same. Any other error is the server's own word that it wasn't.
pub fn is_connection_lost(error: &diesel::result::Error) -> bool {
    use diesel::result::Error as Diesel;
    match error {
        Diesel::DatabaseError(
            DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand,
            _,
        )
        | Diesel::BrokenTransactionManager => true,
        Diesel::DatabaseError(_, information) => {
            LOST.iter().any(|text| information.message().starts_with(text))
        }
        _ => false,
    }
}

/// Whether an error means that a statement ran in another session than the one in which its connection has prepared
/// statements (SQLSTATE 26000, 42P05, 08P01, 22P03), as behind a pooler in transaction mode. Such a statement had no effect.
pub fn is_session_lost(error: &diesel::result::Error) -> bool {
    use diesel::result::Error as Diesel;
    let Diesel::DatabaseError(_, information) = error else { return false };
    let message = information.message();
    let is_gone = message.ends_with("\" does not exist") || message.ends_with("\" already exists");
    // Or it was another connection's, with other parameters.
    let is_others = [
        "bind message ",
        "incorrect binary data format in bind parameter",
        "insufficient data left in message",
    ];
    message.starts_with("prepared statement \"") && is_gone
        || is_others.iter().any(|text| message.starts_with(text))
}

/// What the server or libpq says when a connection ends, also one of a coordinator to another node.
const LOST: [&str; 8] = [
    "connection to the remote node",
    "could not commit transaction for shard",
    "failure on connection marked as essential",
    "terminating connection",
    "server closed the connection",
    "could not receive data from server",
    "no connection to the server",
    "SSL connection has been closed",
];

/// The server is there but can't serve: it is shutting down, starting up or read-only, or out of time, disk
/// or memory. A failed file operation (53100, 58030, 58P01) rolls the transaction back; it works again when
/// an operator has repaired the disk.
fn unavailable(information: &(dyn DatabaseErrorInformation + Send + Sync)) -> bool {
    let has_failed = [
        "the database system is",
        "canceling statement due to",
        "cannot execute",
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
    ];
    has_failed.iter().chain(&LOST).any(|message| information.message().starts_with(message))
        || information.message().ends_with("No space left on device")
}

/// Name of the constraint that a statement violated, if that is why the statement failed.
///
/// An error that comes from another node of a cluster has lost the name, and says it only in its texts, there with the number of the
/// shard.
pub fn violated_constraint(error: &diesel::result::Error) -> Option<&str> {
    let diesel::result::Error::DatabaseError(_, information) = error else { return None };
    let told =
        || named_constraint(information.message()).or_else(|| named_constraint(information.details()?));
    information.constraint_name().or_else(told)
}

/// The name in `… constraint "NAME" …`, or in `… constraint "NAME_102008" …`.
fn named_constraint(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("constraint \"")?;
    let (name, _) = rest.split_once('"')?;
    let is_shard = |number: &str| number.len() >= 6 && number.bytes().all(|byte| byte.is_ascii_digit());
    Some(name.rsplit_once('_').filter(|(_, number)| is_shard(number)).map_or(name, |(name, _)| name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn a_constraint_is_found_in_the_text_of_an_error_from_a_node() {
        let name = "merchant_payable_covered";
        assert_eq!(named_constraint(&format!("constraint \"{name}\"")), Some(name));
        let duplicate =
            "duplicate key value violates unique constraint \"journal_entries_source_once_102152\"";
        assert_eq!(named_constraint(duplicate), Some("journal_entries_source_once"));
        assert_eq!(named_constraint("deadlock detected"), None);
    }

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
            "connection to the remote node oncepay_app@db2:5432 failed with the following error: Connection refused",
            "could not commit transaction for shard 102032 on any active node",
            "prepared statement \"__diesel_stmt_3\" does not exist",
            "prepared statement \"__diesel_stmt_0\" already exists",
            "bind message supplies 3 parameters, but prepared statement \"__diesel_stmt_1\" requires 2",
        ] {
            assert_eq!(sorted(message), Code::DatabaseUnavailable, "{message}");
        }
        let error = |message: &str| {
            diesel::result::Error::DatabaseError(DatabaseErrorKind::Unknown, Box::new(message.to_owned()))
        };
        let lost = "terminating connection due to administrator command";
        assert!(is_connection_lost(&error(lost)));
        assert!(!is_connection_lost(&error("canceling statement due to statement timeout")));
        let at_commit = diesel::result::Error::RollbackErrorOnCommit {
            rollback_error: Box::new(diesel::result::Error::BrokenTransactionManager),
            commit_error: Box::new(error(lost)),
        };
        assert_eq!(Error::from(at_commit).code(), Code::DatabaseUnavailable);
        for message in [
            "deadlock detected",
            "could not obtain lock on row in relation \"charges\"",
            "could not find valid entry for shard 102232",
        ] {
            assert_eq!(sorted(message), Code::TransientConflict, "{message}");
        }
        for message in ["could not determine data type of parameter $1", "relation \"charge\" does not exist"]
        {
            assert_eq!(sorted(message), Code::Internal, "{message}");
        }
    }
}
