//! The shape of the database: one Postgres, or the nodes of a Citus cluster over which merchants are spread.
//!
//! On one Postgres, requests share statements and transactions, and workers search all merchants at a time. On a cluster, a
//! statement goes to one merchant's node, or it's planned and run as many; and only what one node commits alone is seen at once, in
//! the order of the coordinator's transactions, on which balances and the feed rely. So there each statement of a request is about
//! one merchant, each transaction writes one merchant's rows, and workers first find merchants with work and then do it for one
//! after the other.

use std::sync::atomic::{AtomicBool, Ordering};

/// SQL: whether the session is in a distributed database. The function is the last thing that the distribution creates.
macro_rules! is_distributed_sql {
    () => {
        "to_regprocedure('merchants_are_distributed()') IS NOT NULL"
    };
}
pub(crate) use is_distributed_sql;

/// A process serves one database.
static IS_DISTRIBUTED: AtomicBool = AtomicBool::new(false);

/// Whether merchants are spread over nodes. False until the first session is there, and true from the first session on that finds it so:
/// a process may also have sessions in other databases, such as the simulator's.
pub fn is_distributed() -> bool {
    IS_DISTRIBUTED.load(Ordering::Relaxed)
}

/// Notes what a session has found.
pub(super) fn note(is_distributed: bool) {
    if is_distributed {
        IS_DISTRIBUTED.store(true, Ordering::Relaxed);
    }
}
