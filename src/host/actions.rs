//! The record of operators' actions.

use diesel::prelude::*;
use diesel::sql_types::{Nullable, Text};

use crate::error::Error;
use crate::storage::sql::statement;

/// Records that `operator` has done `action` (the name of an operation) to `subject`, in the transaction of its
/// effect.
pub fn record_action(
    conn: &mut PgConnection,
    operator: &str,
    action: &str,
    subject: &str,
    reason: Option<&str>,
) -> Result<(), Error> {
    statement::<()>(
        "INSERT INTO operator_actions (operator, action, subject, reason) VALUES ({}, {}, {}, {})",
    )
    .bind::<Text, _>(operator)
    .bind::<Text, _>(action)
    .bind::<Text, _>(subject)
    .bind::<Nullable<Text>, _>(reason)
    .execute(conn)?;
    Ok(())
}
