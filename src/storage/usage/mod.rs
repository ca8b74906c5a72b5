//! The space that tables and indexes take, how the server maintains them, and what an operator can do about it.
//! Reads the server's catalog and statistics only, never a row, so it's cheap on any database.

mod findings;

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Nullable, Text};
use serde::Serialize;

use crate::error::Failure;

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
///
/// On a node of a cluster, that of this node's shards.
pub fn read(conn: &mut PgConnection) -> Result<Usage, Failure> {
    // Else Citus hides them.
    sql_query(
        "SELECT set_config('citus.show_shards_for_app_name_prefixes', '*', false) FROM pg_extension WHERE extname = 'citus'",
    )
    .execute(conn)?;
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

/// The amount of something that isn't negative.
pub fn amount(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}
