//! The master keys that the database has been used with, by their check values.
//!
//! Promised: of instances with different master keys that start at the same time on a new database, one wins
//! and the others are refused. A key that the database doesn't know is added only to a new database, or beside
//! the key that it replaces. Each key has one successor: of instances that replace one key by different new
//! ones, one wins, too. With two successors, secrets would soon derive from three keys, and no instance has more
//! than two.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Integer};

use crate::base::derived_secrets::{CheckValue, MasterKeyVersion, Vault, Versions};
use crate::error::Failure;
use crate::storage::sql::statement;

/// A reason why a service can't use a database with its master keys. `Display` is a sentence.
#[derive(Debug, thiserror::Error)]
pub enum MasterKeyError {
    /// The current key isn't one of the database's, and doesn't replace one of them either.
    #[error(
        "ONCEPAY_MASTER_KEY isn't the master key that this database has been used with: secrets that were handed out \
         would become others. Set the right one; to replace it, set the old one as ONCEPAY_PREVIOUS_MASTER_KEY."
    )]
    Unknown,
    /// The previous key isn't one of the database's.
    #[error("ONCEPAY_PREVIOUS_MASTER_KEY isn't a master key that this database has been used with.")]
    PreviousUnknown,
    /// The current key is new, but the previous one has been replaced by another already.
    #[error(
        "ONCEPAY_PREVIOUS_MASTER_KEY has already been replaced by another key than ONCEPAY_MASTER_KEY. Set that one as \
         ONCEPAY_MASTER_KEY; once no secret derives from an older one, it can be replaced in its turn."
    )]
    AlreadyReplaced,
    /// Secrets that are in use derive from other keys.
    #[error(
        "{endpoints} webhook endpoints sign with secrets that derive from another master key. Set it as \
         ONCEPAY_PREVIOUS_MASTER_KEY until their merchants have replaced them (POST …/rotate-secret)."
    )]
    StillNeeded {
        /// Number of these endpoints.
        endpoints: i64,
    },
    /// The database can't be asked.
    #[error("The master key can't be checked: {}", .0.detailed())]
    Unchecked(#[from] Failure),
}

impl From<diesel::result::Error> for MasterKeyError {
    fn from(error: diesel::result::Error) -> Self {
        Self::Unchecked(error.into())
    }
}

/// Checks the vault's keys, adds them to the database if they are new and may be, and opens the vault.
///
/// Errors, in the order checked: [`MasterKeyError::PreviousUnknown`], [`MasterKeyError::Unknown`],
/// [`MasterKeyError::AlreadyReplaced`], [`MasterKeyError::StillNeeded`]; the database's at any time. After each, the
/// database knows the keys that it knew before.
pub fn check(conn: &mut PgConnection, vault: &Vault) -> Result<(), MasterKeyError> {
    let (current, previous) = vault.check_values();
    let versions = loop {
        let known = load(conn)?;
        match judge(&known, &current, previous.as_ref())? {
            Step::Known(versions) => {
                refuse_if_needed(conn, versions)?;
                break versions;
            }
            // If another instance has added this version meanwhile, it's looked at in the next round.
            Step::Add(version, check_value, versions) => {
                // First, since an added key stays: an instance that is refused leaves no trace.
                refuse_if_needed(conn, versions)?;
                add(conn, version, &check_value)?;
            }
        }
    };
    log::info!("new secrets derive from version {} of the master key", versions.current.0);
    vault.open(versions);
    Ok(())
}

/// What the database knows of a vault's keys.
#[derive(Debug, PartialEq, Eq)]
pub enum Acquaintance {
    /// It knows them. The version of the one that new secrets derive from.
    Known(MasterKeyVersion),
    /// It will know the newer one, as this version, from the first start of an instance with it.
    New(MasterKeyVersion),
}

/// Finds out what [`check`] would say of a vault's keys, and adds nothing. Errors as there.
pub fn look(conn: &mut PgConnection, vault: &Vault) -> Result<Acquaintance, MasterKeyError> {
    let (current, previous) = vault.check_values();
    let (versions, found) = match judge(&load(conn)?, &current, previous.as_ref())? {
        Step::Known(versions) => (versions, Acquaintance::Known(versions.current)),
        Step::Add(_, _, versions) => (versions, Acquaintance::New(versions.current)),
    };
    refuse_if_needed(conn, versions)?;
    Ok(found)
}

/// What to do next with a vault's keys.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// The database knows all of them.
    Known(Versions),
    /// This one has to be added under this version, which leads to these.
    Add(MasterKeyVersion, CheckValue, Versions),
}

/// Decides by what the database knows, in the order of the versions.
fn judge(
    known: &[(MasterKeyVersion, Vec<u8>)],
    current: &CheckValue,
    previous: Option<&CheckValue>,
) -> Result<Step, MasterKeyError> {
    let version_of =
        |check: &CheckValue| known.iter().find(|(_, stored)| stored == check).map(|(version, _)| *version);
    let last = known.last().map(|(version, _)| *version);
    let Some(last) = last else {
        // The database is older than check values, or new.
        let versions = match previous {
            Some(_) => Versions {
                current: MasterKeyVersion(MasterKeyVersion::FIRST.0 + 1),
                previous: Some(MasterKeyVersion::FIRST),
            },
            None => Versions { current: MasterKeyVersion::FIRST, previous: None },
        };
        return Ok(Step::Add(MasterKeyVersion::FIRST, *previous.unwrap_or(current), versions));
    };
    let previous = match previous.map(version_of) {
        Some(None) => return Err(MasterKeyError::PreviousUnknown),
        Some(version) => version,
        None => None,
    };
    match (version_of(current), previous) {
        (Some(current), previous) => Ok(Step::Known(Versions { current, previous })),
        (None, None) => Err(MasterKeyError::Unknown),
        (None, Some(replaced)) if replaced == last => {
            let next = MasterKeyVersion(last.0 + 1);
            Ok(Step::Add(next, *current, Versions { current: next, previous }))
        }
        (None, Some(_)) => Err(MasterKeyError::AlreadyReplaced),
    }
}

fn load(conn: &mut PgConnection) -> Result<Vec<(MasterKeyVersion, Vec<u8>)>, Failure> {
    let rows =
        statement::<(Integer, Binary)>("SELECT version, check_value FROM master_keys ORDER BY version")
            .load::<(i32, Vec<u8>)>(conn)?;
    Ok(rows.into_iter().map(|(version, check_value)| (MasterKeyVersion(version), check_value)).collect())
}

fn add(conn: &mut PgConnection, version: MasterKeyVersion, check_value: &CheckValue) -> Result<(), Failure> {
    let added = statement::<()>(
        "INSERT INTO master_keys (version, check_value) VALUES ({}, {}) ON CONFLICT DO NOTHING",
    )
    .bind::<Integer, _>(version.0)
    .bind::<Binary, _>(check_value.as_slice())
    .execute(conn)?;
    if added == 1 {
        log::info!("the master key is now known to the database, as version {}", version.0);
    }
    Ok(())
}

/// Fails with [`MasterKeyError::StillNeeded`] if secrets in use derive from none of these keys.
fn refuse_if_needed(conn: &mut PgConnection, versions: Versions) -> Result<(), MasterKeyError> {
    let endpoints = endpoints_without_key(conn, versions)?;
    if endpoints > 0 { Err(MasterKeyError::StillNeeded { endpoints }) } else { Ok(()) }
}

/// Number of endpoints with secrets in use that derive from none of these keys.
fn endpoints_without_key(conn: &mut PgConnection, versions: Versions) -> Result<i64, Failure> {
    let previous = versions.previous.unwrap_or(versions.current);
    Ok(statement::<BigInt>(
        "/* of all merchants */ SELECT count(*) FROM webhook_endpoints e, (SELECT {} AS current, {} AS previous) AS has \
         WHERE e.status <> 'deleted' AND (e.secret_key_version NOT IN (has.current, has.previous) \
             OR e.previous_secret_expires_at > clock_timestamp() \
                 AND e.previous_secret_key_version NOT IN (has.current, has.previous))",
    )
    .bind::<Integer, _>(versions.current.0)
    .bind::<Integer, _>(previous.0)
    .get_result(conn)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: CheckValue = [1; 32];
    const B: CheckValue = [2; 32];
    const C: CheckValue = [3; 32];

    /// What comes of these keys in the end, where the database knows those.
    fn end(known: &[CheckValue], current: CheckValue, previous: Option<CheckValue>) -> String {
        let mut known: Vec<_> =
            (1..).map(MasterKeyVersion).zip(known.iter().map(|check| check.to_vec())).collect();
        loop {
            match judge(&known, &current, previous.as_ref()) {
                Ok(Step::Add(version, check, _)) => known.push((version, check.to_vec())),
                Ok(Step::Known(Versions { current, previous })) => {
                    let previous =
                        previous.map(|version| format!(" after {}", version.0)).unwrap_or_default();
                    return format!("{}{previous} of {}", current.0, known.len());
                }
                Err(MasterKeyError::Unknown) => return "unknown".to_owned(),
                Err(MasterKeyError::PreviousUnknown) => return "previous unknown".to_owned(),
                Err(MasterKeyError::AlreadyReplaced) => return "already replaced".to_owned(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn a_key_is_added_only_to_a_new_database_or_beside_the_one_that_it_replaces() {
        assert_eq!(end(&[], A, None), "1 of 1");
        assert_eq!(end(&[A], A, None), "1 of 1");
        assert_eq!(end(&[A], B, None), "unknown");
        assert_eq!(end(&[A], B, Some(A)), "2 after 1 of 2");
        assert_eq!(end(&[A, B], B, Some(A)), "2 after 1 of 2");
        assert_eq!(end(&[A, B], B, None), "2 of 2");
        assert_eq!(end(&[A, B], A, Some(B)), "1 after 2 of 2", "the way back");
        assert_eq!(end(&[A], B, Some(C)), "previous unknown");
        assert_eq!(end(&[A], A, Some(C)), "previous unknown");
        assert_eq!(end(&[], B, Some(A)), "2 after 1 of 2", "with the upgrade to check values");
        assert_eq!(end(&[A, B], C, Some(B)), "3 after 2 of 3");
        assert_eq!(end(&[A, B], C, Some(A)), "already replaced");
        assert_eq!(end(&[A, B, C], B, Some(A)), "2 after 1 of 3", "keys that are known need no successor");
    }
}
