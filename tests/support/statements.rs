//! What the service may ask a distributed database.
//!
//! With `ONCEPAY_TEST_SHAPE=distributed`, each statement of the service's pools in this process is checked against what a Citus cluster
//! can plan for one node, and a test that issues another fails when it drops its database.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use diesel::connection::{Instrumentation, InstrumentationEvent};

/// Tables whose rows belong to merchants.
const TABLES: [&str; 19] = [
    "acquirer_operations",
    "api_keys",
    "charges",
    "disputes",
    "events",
    "forgotten_idempotency_keys",
    "idempotency_keys",
    "journal_corrections",
    "journal_entries",
    "ledger_accounts",
    "ledger_checkpoints",
    "ledger_holds",
    "merchant_pricing",
    "merchants",
    "payouts",
    "postings",
    "refunds",
    "webhook_deliveries",
    "webhook_endpoints",
];

/// What statements about merchants' tables mustn't have, and why.
const REFUSED: [(&str, &str); 9] = [
    ("WITH RECURSIVE", "a recursive query can't be sent to a node"),
    ("ctid", "a row's place is another row's on another node"),
    ("( INSERT INTO", "an INSERT in a WITH is a statement of its own there"),
    (
        "clock_timestamp()",
        "a node's clock isn't the coordinator's; in a change, the function isn't even allowed",
    ),
    ("CURRENT_", "unlike a function, it's passed on to the node, with its clock"),
    ("random()", "its value differs from node to node"),
    ("uuid_v7()", "its time would be that of a node's clock"),
    ("pg_notify(", "nobody listens on a node"),
    ("advisory", "a lock on a node is none on the coordinator"),
];

/// Functions that a change evaluates on the coordinator, but a query on the node, by its clock. Ages for metrics and in the audit may be off.
const CLOCKS: [&str; 4] = ["clock_timestamp()", "statement_timestamp()", "transaction_timestamp()", "now()"];

/// In front of a query that asks all nodes.
pub const OF_ALL: &str = "/* of all merchants */";

/// Why a statement can't be planned for one node. `None` if it can.
pub fn violation(statement: &str) -> Option<String> {
    let text = statement.split_whitespace().collect::<Vec<_>>().join(" ");
    let is_of_all = text.starts_with(OF_ALL);
    let plain = text.trim_start_matches(OF_ALL).trim_start().replace('"', "");
    // What a WITH has named is one merchant's.
    let is_named = |table: &str| {
        plain.contains(&format!("{table} AS NOT MATERIALIZED (SELECT * FROM {table} WHERE merchant_id = '"))
    };
    let mentions = mentions(&plain, is_named);
    if mentions == 0 {
        return None;
    }
    let changes = ["INSERT INTO ", "UPDATE ", "DELETE FROM "].iter().any(|verb| {
        plain.starts_with(verb)
            || plain.contains(&format!(") {verb}"))
            || plain.contains(&format!("( {verb}"))
    });
    let locks = plain.contains("FOR UPDATE") || plain.contains("FOR NO KEY UPDATE");
    for (sign, why) in REFUSED {
        // A query's are looked at below.
        if plain.contains(sign) && (changes || !CLOCKS.contains(&sign)) {
            return Some(format!("{sign}: {why}"));
        }
    }
    let is_of_audit = plain.contains(" AS NOT MATERIALIZED (SELECT * FROM ");
    if !changes && !is_of_all && !is_of_audit {
        // A time that is only returned, with a lock, is replaced by the coordinator's, which is asked for after the lock.
        let plain = if locks { plain.replace(", clock_timestamp() FROM ", " FROM ") } else { plain.clone() };
        // On a cluster, the parameter is the coordinator's time.
        let told = |clock: &str| {
            plain
                .match_indices(clock)
                .any(|(at, _)| !plain[..at].rsplit("coalesce(").next().is_some_and(is_parameter))
        };
        if let Some(clock) = CLOCKS.into_iter().find(|clock| told(clock)) {
            return Some(format!("{clock}: in a query, a node's clock isn't the coordinator's"));
        }
    }
    if plain.contains("unnest(") && plain.contains("LEFT JOIN LATERAL") {
        return Some("LEFT JOIN LATERAL after unnest: can't be planned for several nodes".to_owned());
    }
    // Lists of merchants go through Diesel's own language, which has no comments.
    if is_of_all || plain.starts_with("SELECT merchants.") {
        return (changes || locks).then(|| "a change or a lock of all merchants".to_owned());
    }
    // Nothing is read: the rows have their merchant.
    let is_insert = plain.starts_with("INSERT INTO ") && mentions == 1;
    let is_empty = plain.ends_with("WHERE 1=0");
    // A parameter, a text, or a row of one's own with the parameter in it.
    let asked = ["merchant_id = $", "merchant_id = '", " AS merchant_id, ", " AS merchant, "];
    let given: usize = asked.iter().map(|sign| plain.matches(sign).count()).sum();
    let joined = plain.matches("merchant_id = ").count();
    if is_insert || is_empty || given >= 1 && joined >= mentions {
        return None;
    }
    Some(format!("{mentions} tables of merchants, {joined} of them for one merchant, {given} times given"))
}

/// Whether a text is `$1, `, with any number.
fn is_parameter(text: &str) -> bool {
    text.strip_prefix('$')
        .and_then(|text| text.strip_suffix(", "))
        .is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// How often merchants' tables are read or written.
fn mentions(text: &str, is_named: impl Fn(&str) -> bool) -> usize {
    let words: Vec<&str> = text.split([' ', '(', ')', ',']).filter(|word| !word.is_empty()).collect();
    let is_table = |pair: &&[&str]| {
        let [verb, table] = pair else { return false };
        ["FROM", "JOIN", "INTO", "UPDATE", "USING"].contains(verb)
            && TABLES.contains(table)
            && !is_named(table)
    };
    words.windows(2).filter(is_table).count()
}

static VIOLATIONS: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

/// Watches the statements of one connection.
#[derive(Default)]
struct Watch {
    is_of_service: bool,
}

impl Instrumentation for Watch {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        let InstrumentationEvent::StartQuery { query, .. } = event else { return };
        let query = query.to_string();
        // As each session of a pool does first.
        self.is_of_service |= query.contains("set_config('application_name', 'oncepay'");
        if !self.is_of_service {
            return;
        }
        let statement = query.split(" -- binds:").next().unwrap_or_default();
        if let Some(violation) = violation(statement) {
            let mut violations = VIOLATIONS.lock().unwrap_or_else(PoisonError::into_inner);
            violations.insert(statement.to_owned(), violation);
        }
    }
}

/// Watches all connections from now on.
pub fn watch() {
    diesel::connection::set_default_instrumentation(|| Some(Box::new(Watch::default()))).unwrap();
}

/// Fails if the service has issued a statement that it may not. Tells each once.
pub fn assert_clean() {
    let violations = std::mem::take(&mut *VIOLATIONS.lock().unwrap_or_else(PoisonError::into_inner));
    let told: Vec<_> = violations.iter().map(|(statement, why)| format!("{why}: {statement}")).collect();
    assert!(told.is_empty(), "statements that a cluster can't run on one node:\n{}", told.join("\n"));
}

#[test]
fn a_statement_about_one_merchant_passes_and_any_other_is_told() {
    for fine in [
        "SELECT 1",
        "SELECT name FROM idempotency_policies",
        "SELECT state FROM idempotency_keys WHERE merchant_id = $1 AND key = $2 FOR UPDATE",
        r#"SELECT "charges"."id" FROM "charges" WHERE "charges"."merchant_id" = $1"#,
        "INSERT INTO api_keys (merchant_id, id) VALUES ($1, $2)",
        "SELECT p.amount FROM journal_entries e JOIN postings p ON p.merchant_id = e.merchant_id WHERE e.merchant_id = $1",
        "/* of all merchants */ SELECT merchant_id, key FROM idempotency_keys ORDER BY created_at LIMIT 9",
        "SELECT expires_at FROM key_complete($1, $2)",
        "SELECT FROM idempotency_keys WHERE merchant_id = $1 AND expires_at > coalesce($12, clock_timestamp())",
    ] {
        assert_eq!(violation(fine), None, "{fine}");
    }
    for (planted, sign) in [
        ("SELECT key FROM idempotency_keys LIMIT 1", "1 tables"),
        ("/* of all merchants */ SELECT key FROM idempotency_keys FOR UPDATE SKIP LOCKED", "a lock of all"),
        ("/* of all merchants */ UPDATE charges SET status = 'failed'", "a change"),
        ("UPDATE charges SET status = $2 WHERE id = $1", "1 tables"),
        ("UPDATE charges SET captured_at = clock_timestamp() WHERE merchant_id = $1", "clock"),
        (
            "INSERT INTO merchant_pricing (merchant_id, effective_at) VALUES ($1, CURRENT_TIMESTAMP)",
            "its clock",
        ),
        ("SELECT id FROM webhook_deliveries WHERE merchant_id = $1 AND due_at <= now()", "a node's clock"),
        (
            "SELECT state FROM idempotency_keys WHERE merchant_id = $1 AND expires_at > clock_timestamp()",
            "a node's clock",
        ),
        ("WITH RECURSIVE w AS (SELECT 1) SELECT FROM events WHERE merchant_id = $1", "RECURSIVE"),
        ("DELETE FROM events WHERE merchant_id = $1 AND ctid = $2", "ctid"),
        (
            "WITH x AS ( INSERT INTO events (merchant_id) SELECT 1) SELECT FROM events WHERE merchant_id = $1",
            "INSERT",
        ),
        (
            "SELECT FROM unnest($1) a LEFT JOIN LATERAL (SELECT FROM charges WHERE merchant_id = $1) b ON true",
            "LATERAL",
        ),
        ("SELECT FROM charges c JOIN refunds r ON r.charge_id = c.id WHERE c.merchant_id = $1", "2 tables"),
        ("SELECT pg_advisory_lock(1) FROM charges WHERE merchant_id = $1", "advisory"),
    ] {
        let told = violation(planted).unwrap_or_default();
        assert!(told.contains(sign), "{planted}: {told}");
    }
}
