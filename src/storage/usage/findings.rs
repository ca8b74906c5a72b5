//! What an operator can do about the space that tables and indexes take.

use super::{Finding, Holder, Index, Table, Usage, amount};
use crate::base::quantities::{about, bytes, count, share};

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

#[cfg(test)]
mod tests {
    use super::super::Server;
    use super::*;

    const MIB: i64 = 1024 * 1024;
    const DAY_S: i64 = 24 * 60 * 60;

    fn table() -> Table {
        Table {
            name: "charges".to_owned(),
            rows: 100_000,
            dead_rows: 20_000,
            changed_rows: 20_000,
            row_bytes: 30 * MIB,
            index_bytes: 10 * MIB,
            total_bytes: 50 * MIB,
            needed_bytes: Some(10 * MIB),
            vacuumed_at: None,
            analyzed_at: Some("2026-01-31T09:00:00.000Z".to_owned()),
            sequential_scans: 0,
            index_scans: 0,
            xid_age: 250_000_000,
            has_autovacuum: true,
        }
    }

    fn index() -> Index {
        Index {
            name: "charges_by_reference".to_owned(),
            table: "charges".to_owned(),
            entries: 100_000,
            bytes: 30 * MIB,
            needed_bytes: Some(10 * MIB),
            scans: 1,
            is_unique: false,
            is_valid: true,
        }
    }

    fn holder(kind: &str, age_seconds: i64) -> Holder {
        Holder { name: format!("a {kind}"), kind: kind.to_owned(), age_seconds }
    }

    fn usage(tables: Vec<Table>, indexes: Vec<Index>, holders: Vec<Holder>) -> Usage {
        let server = Server {
            database: "oncepay".to_owned(),
            database_bytes: 100 * MIB,
            counted_seconds: 8 * DAY_S,
            freeze_max_age: 200_000_000,
            has_autovacuum: true,
        };
        Usage { server, tables, indexes, holders }
    }

    fn of_table(table: Table) -> Usage {
        usage(vec![table], Vec::new(), Vec::new())
    }

    fn of_index(index: Index) -> Usage {
        usage(Vec::new(), vec![index], Vec::new())
    }

    fn of_holder(kind: &str, age_seconds: i64) -> Usage {
        usage(Vec::new(), Vec::new(), vec![holder(kind, age_seconds)])
    }

    #[test]
    fn each_thing_to_do_is_found_by_itself() {
        let mut off = usage(Vec::new(), Vec::new(), Vec::new());
        off.server.has_autovacuum = false;
        let cases = [
            (
                off,
                "oncepay",
                "autovacuum is off, so tables only grow",
                Some("ALTER SYSTEM SET autovacuum = on"),
            ),
            (
                of_table(Table { xid_age: 250_000_001, ..table() }),
                "charges",
                "its oldest transaction id is 250,000,001 transactions old; autovacuum should have come at 200,000,000.",
                Some("VACUUM (FREEZE, VERBOSE) charges"),
            ),
            (
                of_table(Table { has_autovacuum: false, ..table() }),
                "charges",
                "autovacuum is off for this table.",
                Some("ALTER TABLE charges RESET (autovacuum_enabled)"),
            ),
            (
                of_table(Table { dead_rows: 30_000, changed_rows: 90_000, ..table() }),
                "charges",
                "30,000 dead rows, 23.07 % of all. The last vacuum was never.",
                Some("VACUUM (ANALYZE, VERBOSE) charges"),
            ),
            (
                of_table(Table { changed_rows: 20_001, ..table() }),
                "charges",
                "20,001 changed rows since the last analysis (2026-01-31T09:00:00.000Z)",
                Some("ANALYZE charges"),
            ),
            (
                of_table(Table { changed_rows: 0, analyzed_at: None, ..table() }),
                "charges",
                "0 changed rows since the last analysis (never)",
                Some("ANALYZE charges"),
            ),
            (
                of_table(Table { row_bytes: 31 * MIB, ..table() }),
                "charges",
                "its rows take 32.5 MB, and need about 10.4 MB.",
                None,
            ),
            (
                of_index(Index { is_valid: false, bytes: 31 * MIB, ..index() }),
                "charges_by_reference",
                "this index of charges is invalid",
                Some("DROP INDEX CONCURRENTLY charges_by_reference"),
            ),
            (
                of_index(Index { bytes: 31 * MIB, ..index() }),
                "charges_by_reference",
                "this index of charges takes 32.5 MB, and needs about 10.4 MB.",
                Some("REINDEX INDEX CONCURRENTLY charges_by_reference"),
            ),
            (
                of_index(Index { scans: 0, ..index() }),
                "charges_by_reference",
                "this index of charges takes 31.4 MB, and hasn't been read for 8 d.",
                None,
            ),
            (
                of_holder("slot", 0),
                "a slot",
                "this replication slot isn't in use.",
                Some("SELECT pg_drop_replication_slot('a slot')"),
            ),
            (of_holder("prepared", 301), "a prepared", "has been open for 5 min. It keeps locks", None),
            (of_holder("session", 301), "a session", "has been open for 5 min. It keeps dead rows", None),
        ];
        for (usage, subject, what, statement) in cases {
            let findings = usage.findings();
            assert_eq!(findings.len(), 1, "{what}: {findings:?}");
            let found = &findings[0];
            assert!(found.subject == subject && found.what.contains(what), "{what}: {found:?}");
            assert_eq!(found.statement.as_deref(), statement, "{what}");
        }
    }

    #[test]
    fn what_is_small_young_or_needed_is_no_finding() {
        let small = Table {
            rows: 10_000,
            dead_rows: 10_000,
            changed_rows: 10_000,
            row_bytes: 8 * MIB,
            needed_bytes: Some(0),
            analyzed_at: None,
            ..table()
        };
        let mut just_started = of_index(Index { scans: 0, ..index() });
        just_started.server.counted_seconds = 7 * DAY_S;
        for usage in [
            of_table(table()),
            of_table(small),
            of_table(Table { needed_bytes: None, row_bytes: 900 * MIB, ..table() }),
            of_index(index()),
            of_index(Index { bytes: 8 * MIB, needed_bytes: Some(0), scans: 0, ..index() }),
            of_index(Index { bytes: 900 * MIB, needed_bytes: None, ..index() }),
            of_index(Index { scans: 0, is_unique: true, ..index() }),
            just_started,
            of_holder("prepared", 300),
            of_holder("session", 300),
        ] {
            assert_eq!(usage.findings(), Vec::<Finding>::new(), "{usage:?}");
        }
    }

    #[test]
    fn what_is_most_urgent_comes_first() {
        let mut all = usage(
            vec![Table { dead_rows: 90_000, ..table() }, Table { xid_age: 1_000_000_000, ..table() }],
            vec![Index { scans: 0, ..index() }, Index { is_valid: false, ..index() }],
            vec![holder("slot", 0)],
        );
        all.server.has_autovacuum = false;
        let begins: Vec<_> = all
            .findings()
            .iter()
            .map(|found| found.what.split(' ').take(3).collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            begins,
            [
                "autovacuum is off,",
                "its oldest transaction",
                "this replication slot",
                "this index of",
                "90,000 dead rows,",
                "this index of",
            ]
        );
    }
}
