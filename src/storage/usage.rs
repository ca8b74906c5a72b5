//! The space that tables and indexes take, how the server maintains them, and what an operator can do about it.
//! Reads the server's catalog and statistics only, never a row, so it's cheap on any database.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Nullable, Text};
use serde::Serialize;

use crate::base::quantities::{about, bytes, count, share};
use crate::error::Failure;

/// Number of dead rows, and changed rows, below which none are worth a word.
const ROWS_MIN: i64 = 10_000;
/// Size below which nothing is worth a word, in bytes.
const BYTES_MIN: i64 = 8 * 1024 * 1024;
/// Factor between the size that rows or entries need and the size that is worth a word.
const BLOAT_FACTOR: i64 = 3;
/// Time for which an index may go without a read, in seconds.
const UNREAD_MAX_S: i64 = 7 * 24 * 60 * 60;
/// Time for which a transaction may be open, in seconds.
const TRANSACTION_MAX_S: i64 = 5 * 60;

/// A table.
#[derive(Clone, Debug, QueryableByName, Serialize)]
pub struct Table {
    /// Name.
    #[diesel(sql_type = Text)]
    pub name: String,
    /// Number of rows, as the server estimates it.
    #[diesel(sql_type = BigInt)]
    pub rows: i64,
    /// Number of row versions that nobody can see any more, by the same estimate.
    #[diesel(sql_type = BigInt)]
    pub dead_rows: i64,
    /// Number of rows that were changed since the last analysis.
    #[diesel(sql_type = BigInt)]
    pub changed_rows: i64,
    /// Size of the rows alone.
    #[diesel(sql_type = BigInt)]
    pub row_bytes: i64,
    /// Size of the indexes.
    #[diesel(sql_type = BigInt)]
    pub index_bytes: i64,
    /// Size of everything: rows, long values, maps and indexes.
    #[diesel(sql_type = BigInt)]
    pub total_bytes: i64,
    /// Size that the rows need, from their average width. `None` if the server has no statistics of them.
    #[diesel(sql_type = Nullable<BigInt>)]
    pub needed_bytes: Option<i64>,
    /// Last vacuum, by whomever.
    #[diesel(sql_type = Nullable<Text>)]
    pub vacuumed_at: Option<String>,
    /// Last analysis, by whomever.
    #[diesel(sql_type = Nullable<Text>)]
    pub analyzed_at: Option<String>,
    /// Number of scans of the whole table.
    #[diesel(sql_type = BigInt)]
    pub sequential_scans: i64,
    /// Number of scans by an index.
    #[diesel(sql_type = BigInt)]
    pub index_scans: i64,
    /// Age of the oldest transaction id in it, in transactions.
    #[diesel(sql_type = BigInt)]
    pub xid_age: i64,
    /// Whether the server vacuums it by itself.
    #[diesel(sql_type = Bool)]
    pub has_autovacuum: bool,
}

/// An index.
#[derive(Clone, Debug, QueryableByName, Serialize)]
pub struct Index {
    /// Name.
    #[diesel(sql_type = Text)]
    pub name: String,
    /// Table.
    #[diesel(sql_type = Text)]
    pub table: String,
    /// Number of entries, as the server estimates it.
    #[diesel(sql_type = BigInt)]
    pub entries: i64,
    /// Size.
    #[diesel(sql_type = BigInt)]
    pub bytes: i64,
    /// Size that the entries need, from the average width of their columns. `None` if the server has no statistics of
    /// them.
    #[diesel(sql_type = Nullable<BigInt>)]
    pub needed_bytes: Option<i64>,
    /// Number of scans.
    #[diesel(sql_type = BigInt)]
    pub scans: i64,
    /// Whether it's unique, and so needed whether or not it's read.
    #[diesel(sql_type = Bool)]
    pub is_unique: bool,
    /// Whether it's complete: the build of one that isn't was interrupted.
    #[diesel(sql_type = Bool)]
    pub is_valid: bool,
}

/// Something that keeps old row versions from being removed.
#[derive(Clone, Debug, QueryableByName, Serialize)]
pub struct Holder {
    /// What it is, such as `session 4711 (oncepay)`.
    #[diesel(sql_type = Text)]
    pub name: String,
    /// `session`, `prepared` or `slot`.
    #[diesel(sql_type = Text)]
    pub kind: String,
    /// Its age in seconds; 0 if the server doesn't tell.
    #[diesel(sql_type = BigInt)]
    pub age_seconds: i64,
}

/// The server as a whole.
#[derive(Clone, Debug, QueryableByName, Serialize)]
pub struct Server {
    /// Name of the database.
    #[diesel(sql_type = Text)]
    pub database: String,
    /// Size of the database.
    #[diesel(sql_type = BigInt)]
    pub database_bytes: i64,
    /// Time over which the server has counted scans at least, in seconds.
    #[diesel(sql_type = BigInt)]
    pub counted_seconds: i64,
    /// Age of a transaction id at which the server vacuums in any case.
    #[diesel(sql_type = BigInt)]
    pub freeze_max_age: i64,
    /// Whether it vacuums at all.
    #[diesel(sql_type = Bool)]
    pub has_autovacuum: bool,
}

/// The use of a database.
#[derive(Clone, Debug, Serialize)]
pub struct Usage {
    /// The server.
    pub server: Server,
    /// The tables, largest first.
    pub tables: Vec<Table>,
    /// The indexes, largest first.
    pub indexes: Vec<Index>,
    /// What holds old row versions, oldest first.
    pub holders: Vec<Holder>,
}

/// Something that an operator should do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The table, index or session.
    pub subject: String,
    /// What is wrong, as a sentence.
    pub what: String,
    /// What to do, as a sentence.
    pub remedy: String,
    /// A statement that does it, if one does. It runs as the owner of the table, or as a superuser for the server.
    pub statement: Option<String>,
}

/// Reads the use of the database. Tells the age only of sessions whose role the caller may see (its own, unless it has
/// `pg_read_all_stats`).
pub fn read(conn: &mut PgConnection) -> Result<Usage, Failure> {
    let server = sql_query(
        "SELECT current_database()::text AS database, pg_database_size(current_database()) AS database_bytes, \
             extract(epoch FROM clock_timestamp() - coalesce( \
                 (SELECT stats_reset FROM pg_stat_database WHERE datname = current_database()), \
                 pg_postmaster_start_time()))::bigint AS counted_seconds, \
             current_setting('autovacuum_freeze_max_age')::bigint AS freeze_max_age, \
             current_setting('autovacuum')::boolean AS has_autovacuum",
    )
    .get_result::<Server>(conn)?;
    // The server may have lost its counters in a crash, but not what the last vacuum found. A row has a header of 24 bytes
    // and a pointer of 4.
    let tables = sql_query(
        "SELECT s.relid::regclass::text AS name, size.rows, s.n_dead_tup AS dead_rows, \
             s.n_mod_since_analyze AS changed_rows, pg_relation_size(t.oid) AS row_bytes, \
             pg_indexes_size(t.oid) AS index_bytes, pg_total_relation_size(t.oid) AS total_bytes, \
             (size.rows * (28 + width.bytes))::bigint AS needed_bytes, \
             to_char(greatest(s.last_vacuum, s.last_autovacuum) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') \
                 AS vacuumed_at, \
             to_char(greatest(s.last_analyze, s.last_autoanalyze) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') \
                 AS analyzed_at, \
             s.seq_scan AS sequential_scans, coalesce(s.idx_scan, 0) AS index_scans, \
             age(t.relfrozenxid)::bigint AS xid_age, \
             NOT coalesce('autovacuum_enabled=false' = ANY (t.reloptions) \
                 OR 'autovacuum_enabled=off' = ANY (t.reloptions), false) AS has_autovacuum \
         FROM pg_class t JOIN pg_stat_user_tables s ON s.relid = t.oid, \
             LATERAL (SELECT greatest(s.n_live_tup, t.reltuples::bigint, 0) AS rows) AS size, \
             LATERAL (SELECT sum(p.avg_width * (1 - p.null_frac)) AS bytes FROM pg_stats p \
                 WHERE p.schemaname = s.schemaname AND p.tablename = s.relname) AS width \
         WHERE s.schemaname = ANY (current_schemas(false)) AND t.relkind = 'r' \
         ORDER BY total_bytes DESC, name",
    )
    .load::<Table>(conn)?;
    // An entry has a header of 8 bytes, a pointer of 4, and up to 7 that align it. A page that is filled in random order is
    // two thirds full.
    let indexes = sql_query(
        "SELECT s.indexrelid::regclass::text AS name, s.relid::regclass::text AS table, \
             greatest(c.reltuples, 0)::bigint AS entries, pg_relation_size(s.indexrelid) AS bytes, \
             (greatest(c.reltuples, 0) * (16 + width.bytes) * 3 / 2)::bigint AS needed_bytes, \
             s.idx_scan AS scans, i.indisunique AS is_unique, i.indisvalid AS is_valid \
         FROM pg_stat_user_indexes s JOIN pg_index i ON i.indexrelid = s.indexrelid \
             JOIN pg_class c ON c.oid = s.indexrelid \
             LEFT JOIN LATERAL (SELECT sum(p.avg_width) AS bytes FROM pg_attribute a \
                 JOIN pg_stats p ON p.schemaname = s.schemaname AND p.tablename = s.relname AND p.attname = a.attname \
                 WHERE a.attrelid = s.relid AND a.attnum = ANY (i.indkey) HAVING count(*) = i.indnatts) AS width ON true \
         WHERE s.schemaname = ANY (current_schemas(false)) \
         ORDER BY bytes DESC, name",
    )
    .load::<Index>(conn)?;
    let holders = sql_query(
        "SELECT format('session %s (%s)', pid, application_name) AS name, 'session' AS kind, \
             extract(epoch FROM clock_timestamp() - xact_start)::bigint AS age_seconds \
         FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend' \
             AND pid <> pg_backend_pid() AND xact_start IS NOT NULL \
         UNION ALL \
         SELECT gid, 'prepared', extract(epoch FROM clock_timestamp() - prepared)::bigint \
         FROM pg_prepared_xacts WHERE database = current_database() \
         UNION ALL \
         SELECT slot_name::text, 'slot', 0 FROM pg_replication_slots WHERE NOT active \
         ORDER BY age_seconds DESC, name",
    )
    .load::<Holder>(conn)?;
    Ok(Usage { server, tables, indexes, holders })
}

impl Usage {
    /// What an operator should do, the most urgent first.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let server = &self.server;
        if !server.has_autovacuum {
            findings.push(Finding::new(
                &server.database,
                "autovacuum is off, so tables only grow and, in the end, the server refuses to write."
                    .to_owned(),
                "Turn it on, and reload the configuration with SELECT pg_reload_conf().",
                Some("ALTER SYSTEM SET autovacuum = on".to_owned()),
            ));
        }
        findings.extend(self.tables.iter().filter_map(|table| table.wraparound(server.freeze_max_age)));
        findings.extend(self.holders.iter().filter_map(Holder::finding));
        findings.extend(self.indexes.iter().filter_map(Index::invalid));
        findings.extend(self.tables.iter().flat_map(Table::findings));
        findings.extend(self.indexes.iter().filter_map(|index| index.finding(server.counted_seconds)));
        findings
    }
}

impl Finding {
    fn new(subject: &str, what: String, remedy: &str, statement: Option<String>) -> Self {
        Self { subject: subject.to_owned(), what, remedy: remedy.to_owned(), statement }
    }
}

/// The amount of something that isn't negative.
pub fn amount(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

impl Table {
    fn wraparound(&self, freeze_max_age: i64) -> Option<Finding> {
        let is_late = self.xid_age > freeze_max_age.saturating_add(freeze_max_age / 4);
        is_late.then(|| {
            Finding::new(
                &self.name,
                format!(
                    "its oldest transaction id is {} transactions old; autovacuum should have come at {}. At two billion \
                     the server refuses to write.",
                    count(amount(self.xid_age)),
                    count(amount(freeze_max_age))
                ),
                "Freeze it now, and find out what keeps autovacuum from it (see the oldest transactions and slots).",
                Some(format!("VACUUM (FREEZE, VERBOSE) {}", self.name)),
            )
        })
    }

    fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut find =
            |what, remedy, statement| findings.push(Finding::new(&self.name, what, remedy, Some(statement)));
        let name = &self.name;
        if !self.has_autovacuum {
            find(
                "autovacuum is off for this table.".to_owned(),
                "Turn it on, and reload the configuration with SELECT pg_reload_conf().",
                format!("ALTER TABLE {name} RESET (autovacuum_enabled)"),
            );
        }
        let versions = self.rows.saturating_add(self.dead_rows);
        let is_unanalyzed = self.rows > ROWS_MIN && self.analyzed_at.is_none();
        if self.dead_rows > ROWS_MIN && self.dead_rows > versions / 5 {
            find(
                format!(
                    "{} dead rows, {} of all. The last vacuum was {}.",
                    count(amount(self.dead_rows)),
                    share(amount(self.dead_rows), amount(versions)),
                    self.vacuumed_at.as_deref().unwrap_or("never")
                ),
                "Vacuum it beside the load. If the dead rows stay, an old transaction or an unused replication slot holds \
                 them. If they come back, lower autovacuum_vacuum_scale_factor.",
                format!("VACUUM (ANALYZE, VERBOSE) {name}"),
            );
        } else if is_unanalyzed || self.changed_rows > ROWS_MIN && self.changed_rows > self.rows / 5 {
            find(
                format!(
                    "{} changed rows since the last analysis ({}): the planner relies on old figures.",
                    count(amount(self.changed_rows)),
                    self.analyzed_at.as_deref().unwrap_or("never")
                ),
                "Analyze it beside the load.",
                format!("ANALYZE {name}"),
            );
        }
        if let Some(needed) = self.needed_bytes.filter(|needed| is_bloated(self.row_bytes, *needed)) {
            findings.push(Finding::new(
                name,
                format!(
                    "its rows take {}, and need about {}.",
                    bytes(amount(self.row_bytes)),
                    bytes(amount(needed))
                ),
                "New rows reuse the free space, so leave it if the table is going to grow again. To give it back, use \
                 pg_repack beside the load. VACUUM FULL locks the table until it's done.",
                None,
            ));
        }
        findings
    }
}

impl Index {
    fn invalid(&self) -> Option<Finding> {
        (!self.is_valid).then(|| {
            Finding::new(
                &self.name,
                format!("this index of {} is invalid: every write maintains it, and no query uses it.", self.table),
                "Its build was interrupted. Unless one is running now, drop it; `oncepay migrate` builds it anew if it \
                 belongs to a migration that hasn't ended.",
                Some(format!("DROP INDEX CONCURRENTLY {}", self.name)),
            )
        })
    }

    fn finding(&self, counted_seconds: i64) -> Option<Finding> {
        if !self.is_valid {
            return None;
        }
        if let Some(needed) = self.needed_bytes.filter(|needed| is_bloated(self.bytes, *needed)) {
            return Some(Finding::new(
                &self.name,
                format!(
                    "this index of {} takes {}, and needs about {}.",
                    self.table,
                    bytes(amount(self.bytes)),
                    bytes(amount(needed))
                ),
                "Build it anew beside the load. That needs as much free space as the new one takes.",
                Some(format!("REINDEX INDEX CONCURRENTLY {}", self.name)),
            ));
        }
        let is_unread =
            self.scans == 0 && !self.is_unique && self.bytes > BYTES_MIN && counted_seconds > UNREAD_MAX_S;
        is_unread.then(|| {
            Finding::new(
                &self.name,
                format!(
                    "this index of {} takes {}, and hasn't been read for {}.",
                    self.table,
                    bytes(amount(self.bytes)),
                    about(amount(counted_seconds))
                ),
                "Ask the standbys, which count their own reads. If Oncepay made it, keep it: something rare needs it, such as \
                 the deletion of old rows. Drop it if you made it and no longer need it.",
                None,
            )
        })
    }
}

fn is_bloated(size: i64, needed: i64) -> bool {
    size > BYTES_MIN && size / BLOAT_FACTOR > needed
}

impl Holder {
    fn finding(&self) -> Option<Finding> {
        let age = || about(amount(self.age_seconds));
        let (what, remedy, statement) = match self.kind.as_str() {
            "slot" => (
                "this replication slot isn't in use. It keeps the log, and may keep dead rows, until the disk is full.".to_owned(),
                "Start the standby or the reader that it belongs to, or drop it.",
                Some(format!("SELECT pg_drop_replication_slot('{}')", self.name)),
            ),
            "prepared" if self.age_seconds > TRANSACTION_MAX_S => (
                format!("this prepared transaction has been open for {}. It keeps locks and dead rows.", age()),
                "Commit it or roll it back. Oncepay prepares none.",
                None,
            ),
            "session" if self.age_seconds > TRANSACTION_MAX_S => (
                format!("this session's transaction has been open for {}. It keeps dead rows from being removed.", age()),
                "If nobody needs it, end it: pg_terminate_backend with its number, as its role or a superuser.",
                None,
            ),
            _ => return None,
        };
        Some(Finding::new(&self.name, what, remedy, statement))
    }
}
