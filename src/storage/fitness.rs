//! Whether a database, and the way to it, are as this release needs them.
//!
//! A deployment that can't work is refused or waited for, with a sentence; one that works and shouldn't be so gets a
//! remark in the log.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::migration::{Migration, MigrationSource};
use diesel::pg::Pg;
use diesel::sql_types::{Bool, Integer, Nullable, Text, Timestamptz};
use diesel::{PgConnection, RunQueryDsl};

use super::distribution;
use super::language;
use super::migrations::MIGRATIONS;
use super::shape;
use super::sql::statement;
use crate::base::time;
use crate::error::Failure;

/// The oldest version of the server whose SQL the service knows, as `server_version_num`.
const OLDEST_VERSION: i32 = 140_000;

/// Difference between the host's clock and the database's that is worth a remark. A tenth of the age that the
/// processor's messages may have.
const CLOCK_TOLERANCE: TimeDelta = TimeDelta::seconds(30);

/// A reason why an instance does nothing with its database until somebody puts it right. `Display` is a sentence for
/// everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// See [`Handling::Mixed`](super::session::Handling::Mixed).
    #[error("The connections to the database don't keep their sessions.")]
    SessionsMixed,
    /// See [`Handling::Scattered`](super::session::Handling::Scattered).
    #[error("The connections to the database lead to a primary and to a standby.")]
    SessionsScattered,
    /// The database is older than this release, or another one.
    #[error("The database lacks migrations of this release.")]
    MigrationsMissing,
    /// Merchants are being spread over the nodes of a cluster, or that was interrupted.
    #[error("The database is distributed in part.")]
    DistributionUnfinished,
    /// Merchants were spread since the session began.
    #[error("The database has been distributed meanwhile.")]
    ShapeChanged,
    /// The role that the service connects as can't do its work.
    #[error("The service's role lacks privileges in the database.")]
    PrivilegesMissing,
}

impl Unfit {
    /// What an operator should do.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::SessionsMixed => {
                "Statements would run with settings, and prepared statements, of other connections. Let the connection string \
                 name the server itself, or a pooler in session mode (PgBouncer: pool_mode = session)."
            }
            Self::SessionsScattered => {
                "Name all servers in DATABASE_URL, with target_session_attrs=read-write, instead of an address that leads to any \
                 of them."
            }
            Self::MigrationsMissing => "Run oncepay migrate, or correct the database in DATABASE_URL.",
            Self::DistributionUnfinished => {
                "Run oncepay migrate --distribute, which goes on where it stopped."
            }
            Self::ShapeChanged => "Nothing: new connections take that into account.",
            Self::PrivilegesMissing => {
                "Connect as oncepay_app. If a backup was restored without privileges (pg_restore --no-privileges), restore it with \
                 them."
            }
        }
    }

    /// Whether only another configuration, and so another start, can help.
    pub fn is_final(self) -> bool {
        matches!(self, Self::SessionsMixed | Self::SessionsScattered)
    }

    /// Both sentences, for the log.
    pub fn explained(self) -> String {
        format!("{self} {}", self.remedy())
    }
}

/// What a [`Remark`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The role that the service connects as.
    Role,
    /// What the server's settings let a crash or a failover take away.
    Server,
    /// That the database can't be written.
    ReadOnly,
    /// The number of connections.
    Connections,
    /// This machine's clock.
    Clock,
    /// The other nodes of a cluster.
    Nodes,
}

/// Something that isn't as it should be, though the service works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// What it's about.
    pub subject: Subject,
    /// A sentence or two: what is, and what to do.
    pub text: String,
}

/// What came of a check.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The database can be used.
    Fit,
    /// It can't be used until somebody puts it right.
    Unfit(Unfit),
    /// It can't be used, and won't be. A sentence.
    Refused(String),
}

/// Checks what the service can't do without: the server's version, the encoding, the language of errors, the
/// migrations, the settings on the other nodes of a cluster, the privileges of the role, in this order.
pub fn check(conn: &mut PgConnection) -> Result<Verdict, Failure> {
    let (version, encoding): (i32, String) = statement::<(Integer, Text)>(
        "SELECT current_setting('server_version_num')::int, current_setting('server_encoding')",
    )
    .get_result(conn)?;
    if version < OLDEST_VERSION {
        return Ok(Verdict::Refused(format!(
            "The database server is of version {}, but Postgres {} or newer is needed.",
            version / 10_000,
            OLDEST_VERSION / 10_000
        )));
    }
    if encoding != "UTF8" {
        return Ok(Verdict::Refused(format!(
            "The database has the encoding {encoding}, which can't hold all texts. Create it anew: \
             CREATE DATABASE … TEMPLATE template0 ENCODING 'UTF8';"
        )));
    }
    if let Err(refused) = language::check(conn)? {
        return Ok(Verdict::Refused(refused));
    }
    let (may_enter, has_history, may_read): (bool, bool, bool) = statement::<(Bool, Bool, Bool)>(
        "SELECT current_schema() IS NOT NULL, history IS NOT NULL, coalesce(has_table_privilege(history, 'SELECT'), false) \
         FROM (SELECT to_regclass('__diesel_schema_migrations') AS history) AS named",
    )
    .get_result(conn)?;
    if !may_enter {
        return Ok(Verdict::Unfit(Unfit::PrivilegesMissing));
    }
    // Who has migrated with an earlier release has not given the right to look.
    if !has_history || may_read && is_behind(conn)? {
        return Ok(Verdict::Unfit(Unfit::MigrationsMissing));
    }
    if distribution::is_half_done(conn)? {
        return Ok(Verdict::Unfit(Unfit::DistributionUnfinished));
    }
    if shape::is_distributed() && distribution::is_behind(conn)? {
        return Ok(Verdict::Unfit(Unfit::MigrationsMissing));
    }
    if shape::is_distributed()
        && let Some(refused) = distribution::unsuitable_settings(conn)?
    {
        return Ok(Verdict::Refused(refused));
    }
    // Without one of these objects: null.
    let has_privileges: Option<bool> = statement::<Nullable<Bool>>(
        "SELECT CASE WHEN bool_and(to_regclass(name) IS NOT NULL) \
                THEN bool_and(has_table_privilege(to_regclass(name), privilege)) \
                     AND (SELECT bool_and(has_function_privilege(oid, 'EXECUTE')) FROM pg_proc \
                          WHERE proname IN ('ledger_post', 'ledger_post_all') AND pronamespace = current_schema()::regnamespace) \
                END \
         FROM (VALUES ('idempotency_keys', 'SELECT'), ('idempotency_keys', 'INSERT'), ('charges', 'INSERT'), \
                      ('events', 'INSERT'), ('journal_entries', 'SELECT'), ('master_keys', 'SELECT'), \
                      ('audit_runs', 'SELECT')) \
              AS needed (name, privilege)",
    )
    .get_result(conn)?;
    Ok(match has_privileges {
        Some(true) => Verdict::Fit,
        Some(false) => Verdict::Unfit(Unfit::PrivilegesMissing),
        None => Verdict::Unfit(Unfit::MigrationsMissing),
    })
}

/// Whether the database lacks migrations of this release. It may have those of a later one.
fn is_behind(conn: &mut PgConnection) -> Result<bool, Failure> {
    Ok(!missing_migrations(conn)?.is_empty())
}

/// Names of the migrations of this release that the database lacks, in their order.
pub fn missing_migrations(conn: &mut PgConnection) -> Result<Vec<String>, Failure> {
    let run: Vec<String> = statement::<Text>("SELECT version FROM __diesel_schema_migrations").load(conn)?;
    let ours = MigrationSource::<Pg>::migrations(&MIGRATIONS).map_err(Failure::internal)?;
    let names = ours.iter().map(|migration| migration.name());
    Ok(names.filter(|name| !run.contains(&name.version().to_string())).map(ToString::to_string).collect())
}

#[derive(diesel::QueryableByName)]
struct Facts {
    #[diesel(sql_type = Text)]
    role: String,
    #[diesel(sql_type = Bool)]
    is_superuser: bool,
    #[diesel(sql_type = Bool)]
    is_owner: bool,
    #[diesel(sql_type = Bool)]
    is_read_only: bool,
    #[diesel(sql_type = Bool)]
    is_crash_safe: bool,
    #[diesel(sql_type = Text)]
    synchronous_commit: String,
    #[diesel(sql_type = Bool)]
    has_synchronous_standbys: bool,
    #[diesel(sql_type = Integer)]
    connections_max: i32,
    #[diesel(sql_type = Timestamptz)]
    clock: DateTime<Utc>,
}

/// What isn't as it should be, though the service works. `connections` is the number of connections that
/// this instance opens.
pub fn remarks(conn: &mut PgConnection, connections: u32) -> Result<Vec<Remark>, Failure> {
    let asked = time::now();
    let facts: Facts = diesel::sql_query(
        "SELECT quote_ident(current_user) AS role, r.rolsuper AS is_superuser, \
             EXISTS (SELECT FROM pg_class t WHERE t.relname = 'journal_entries' \
                 AND t.relnamespace = current_schema()::regnamespace AND pg_has_role(t.relowner, 'USAGE')) AS is_owner, \
             current_setting('transaction_read_only')::boolean AS is_read_only, \
             current_setting('fsync')::boolean AND current_setting('full_page_writes')::boolean AS is_crash_safe, \
             current_setting('synchronous_commit') AS synchronous_commit, \
             current_setting('synchronous_standby_names') <> '' AS has_synchronous_standbys, \
             least(current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int, \
                 nullif(r.rolconnlimit, -1), nullif(d.datconnlimit, -1)) AS connections_max, \
             clock_timestamp() AS clock \
         FROM pg_roles r, pg_database d WHERE r.rolname = current_user AND d.datname = current_database()",
    )
    .get_result(conn)?;
    let now = asked + (time::now() - asked) / 2;
    let mut remarks = judge(&facts, now, connections);
    if shape::is_distributed() {
        let nodes = distribution::remarks(conn)?.into_iter();
        remarks.extend(nodes.map(|text| Remark { subject: Subject::Nodes, text }));
    }
    Ok(remarks)
}

fn judge(facts: &Facts, now: DateTime<Utc>, connections: u32) -> Vec<Remark> {
    let mut remarks = Vec::new();
    let mut remark = |subject, text: String| remarks.push(Remark { subject, text });
    let Facts { role, synchronous_commit, connections_max, .. } = facts;
    if facts.is_superuser || facts.is_owner {
        let kind = if facts.is_superuser { "is a superuser" } else { "owns the tables" };
        remark(
            Subject::Role,
            format!(
                "The service connects as {role}, which {kind}: the database can't keep it from changing the ledger. Connect as \
             oncepay_app."
            ),
        );
    }
    if facts.is_read_only {
        remark(
            Subject::ReadOnly,
            "The database is read-only, and the instance isn't ready until that ends. If it's a standby, name all servers in \
             DATABASE_URL, with target_session_attrs=read-write."
                .to_owned(),
        );
    }
    if !facts.is_crash_safe {
        remark(
            Subject::Server,
            "The database server has fsync or full_page_writes off: a crash of its machine can destroy what was acknowledged."
                .to_owned(),
        );
    }
    if facts.has_synchronous_standbys && ["local", "remote_write"].contains(&synchronous_commit.as_str()) {
        remark(
            Subject::Server,
            format!(
                "The database has a synchronous standby, but synchronous_commit is {synchronous_commit}: a failover can lose what was \
             acknowledged. Set it to on."
            ),
        );
    }
    if i64::from(connections) > i64::from(*connections_max) {
        remark(
            Subject::Connections,
            format!(
                "This instance opens {connections} connections, but the database lets {role} have {connections_max}. Lower \
             ONCEPAY_POOL_SIZE, or raise max_connections or the role's or the database's CONNECTION LIMIT."
            ),
        );
    }
    let ahead = now - facts.clock;
    if ahead.abs() > CLOCK_TOLERANCE {
        let direction = if ahead > TimeDelta::zero() { "ahead of" } else { "behind" };
        remark(
            Subject::Clock,
            format!(
                "The clock of this machine is {} s {direction} the database's. By this clock, the service judges the age of the \
             processor's messages, and refuses those that are more than five minutes off.",
                ahead.abs().num_seconds()
            ),
        );
    }
    remarks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_should_be_otherwise_is_remarked() {
        let now = DateTime::UNIX_EPOCH;
        let sound = || Facts {
            role: "oncepay_app".to_owned(),
            is_superuser: false,
            is_owner: false,
            is_read_only: false,
            is_crash_safe: true,
            synchronous_commit: "on".to_owned(),
            has_synchronous_standbys: true,
            connections_max: 9,
            clock: now + TimeDelta::seconds(29),
        };
        assert_eq!(judge(&sound(), now, 9), []);
        let cases = [
            (Facts { is_superuser: true, is_owner: true, ..sound() }, "which is a superuser"),
            (Facts { is_owner: true, ..sound() }, "which owns the tables"),
            (Facts { is_read_only: true, ..sound() }, "is read-only"),
            (Facts { is_crash_safe: false, ..sound() }, "has fsync or full_page_writes off"),
            (Facts { synchronous_commit: "local".to_owned(), ..sound() }, "synchronous_commit is local"),
            (
                Facts { connections_max: 8, ..sound() },
                "opens 9 connections, but the database lets oncepay_app have 8",
            ),
            (Facts { clock: now + TimeDelta::seconds(60), ..sound() }, "is 60 s behind the database's"),
            (Facts { clock: now - TimeDelta::seconds(60), ..sound() }, "is 60 s ahead of the database's"),
        ];
        for (facts, sign) in cases {
            let remarks = judge(&facts, now, 9);
            assert!(remarks.len() == 1 && remarks[0].text.contains(sign), "{sign}: {remarks:?}");
        }
        let alone =
            Facts { synchronous_commit: "local".to_owned(), has_synchronous_standbys: false, ..sound() };
        assert_eq!(judge(&alone, now, 9), []);
    }
}
