//! What the nodes of a cluster are like, as its coordinator sees them.

use diesel::sql_types::{Bool, Text};
use diesel::{PgConnection, QueryResult, QueryableByName, RunQueryDsl};

use super::HAS_EXTENSION;
use crate::storage::sql;

/// Maximum difference between the clocks of two nodes that isn't worth a remark: a hundredth of the shortest lease.
const CLOCK_TOLERANCE_S: f64 = 0.1;

#[derive(QueryableByName)]
struct NodeFacts {
    #[diesel(sql_type = Text)]
    node: String,
    #[diesel(sql_type = Bool)]
    answers: bool,
    #[diesel(sql_type = Bool)]
    is_durable: bool,
    #[diesel(sql_type = diesel::sql_types::Double)]
    ahead_s: f64,
}

/// What isn't as it should be on the other nodes, as sentences.
pub fn remarks(conn: &mut PgConnection) -> QueryResult<Vec<String>> {
    if !sql::holds(conn, HAS_EXTENSION)? {
        return Ok(Vec::new());
    }
    let nodes = diesel::sql_query(
        "SELECT n.nodename || ':' || n.nodeport AS node, r.success AS answers, \
             CASE WHEN r.success THEN split_part(r.result, ' ', 1)::boolean ELSE true END AS is_durable, \
             CASE WHEN r.success THEN split_part(r.result, ' ', 2)::double precision \
                 - extract(epoch FROM clock_timestamp())::double precision ELSE 0 END AS ahead_s \
         FROM run_command_on_workers($q$SELECT (current_setting('fsync')::boolean AND current_setting('full_page_writes')::boolean)::text || ' ' || extract(epoch FROM clock_timestamp())$q$) r \
         JOIN pg_dist_node n ON n.nodename = r.nodename AND n.nodeport = r.nodeport",
    )
    .load::<NodeFacts>(conn)?;
    Ok(nodes.iter().flat_map(judge).collect())
}

fn judge(NodeFacts { node, answers, is_durable, ahead_s }: &NodeFacts) -> Vec<String> {
    let mut remarks = Vec::new();
    if !answers {
        remarks.push(format!("The node {node} doesn't answer: its merchants have to wait."));
    }
    if !is_durable {
        remarks.push(format!(
            "The node {node} has fsync or full_page_writes off: a crash of its machine can destroy what was acknowledged."
        ));
    }
    if ahead_s.abs() > CLOCK_TOLERANCE_S {
        remarks.push(format!(
            "The clock of the node {node} is {:.1} s {} the coordinator's. Ages that it tells to metrics and to the audit are off by that.",
            ahead_s.abs(),
            if *ahead_s > 0.0 { "ahead of" } else { "behind" }
        ));
    }
    remarks
}

#[derive(QueryableByName)]
struct Unsuitable {
    #[diesel(sql_type = Text)]
    node: String,
    #[diesel(sql_type = Text)]
    settings: String,
}

/// Settings of the service's sessions on other nodes with which it can't work, as a sentence. On the coordinator, each session sets them
/// itself; it has no say in those that Citus opens for it, which are set by the node, the database and the role.
pub fn unsuitable_settings(conn: &mut PgConnection) -> QueryResult<Option<String>> {
    if !sql::holds(conn, HAS_EXTENSION)? {
        return Ok(None);
    }
    let unsuitable = diesel::sql_query(
        "SELECT r.nodename || ':' || r.nodeport AS node, r.result AS settings \
         FROM run_command_on_workers($q$SELECT coalesce(string_agg(format('%s = %s', name, setting), ', ' ORDER BY name), '') \
             FROM pg_settings WHERE CASE name \
                 WHEN 'DateStyle' THEN NOT starts_with(setting, 'ISO') \
                 WHEN 'IntervalStyle' THEN setting <> 'postgres' \
                 WHEN 'array_nulls' THEN setting <> 'on' \
                 WHEN 'bytea_output' THEN setting <> 'hex' \
                 WHEN 'default_transaction_isolation' THEN setting <> 'read committed' \
                 WHEN 'extra_float_digits' THEN setting::integer < 1 \
                 WHEN 'lock_timeout' THEN setting::integer BETWEEN 1 AND 1999 \
                 WHEN 'standard_conforming_strings' THEN setting <> 'on' \
                 WHEN 'statement_timeout' THEN setting::integer BETWEEN 1 AND 4999 \
                 WHEN 'synchronous_commit' THEN setting = 'off' \
                 WHEN 'transform_null_equals' THEN setting <> 'off' \
                 ELSE false END$q$) r \
         WHERE r.success AND r.result <> '' ORDER BY 1 LIMIT 1",
    )
    .load::<Unsuitable>(conn)?;
    Ok(unsuitable.first().map(|Unsuitable { node, settings }| {
        format!(
            "On the node {node}, the service's sessions have settings with which it can't work: {settings}. Reset them where they are \
             set: by ALTER ROLE, by ALTER DATABASE, or in the server's configuration."
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_node_is_remarked() {
        let sound =
            || NodeFacts { node: "db2:5432".to_owned(), answers: true, is_durable: true, ahead_s: 0.1 };
        assert_eq!(judge(&sound()), Vec::<String>::new());
        for (facts, sign) in [
            (NodeFacts { answers: false, ..sound() }, "doesn't answer"),
            (NodeFacts { is_durable: false, ..sound() }, "full_page_writes off"),
            (NodeFacts { ahead_s: 2.0, ..sound() }, "is 2.0 s ahead of"),
            (NodeFacts { ahead_s: -2.0, ..sound() }, "is 2.0 s behind"),
        ] {
            let remarks = judge(&facts);
            assert!(remarks.len() == 1 && remarks[0].contains(sign), "{sign}: {remarks:?}");
        }
    }
}
