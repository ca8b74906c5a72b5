//! The language of the database's errors.
//!
//! Diesel tells a few kinds of errors apart, and of all others only their text. A deadlock, a lock that came too late and a
//! server that is shutting down are recognized by the English text, so in another language they would be our bugs: 500
//! instead of another try. Only a superuser may change `lc_messages`, so an instance refuses to start instead, and
//! `oncepay migrate` to migrate.

use diesel::connection::SimpleConnection;
use diesel::sql_types::Text;
use diesel::{PgConnection, RunQueryDsl};

use crate::error::Failure;
use crate::storage::sql::statement;

/// Checks that errors are told in English. The inner error is a sentence. Asks for the text of an error rather than for
/// the setting: a server that has no translation for a language falls back to English.
pub fn check(conn: &mut PgConnection) -> Result<Result<(), String>, Failure> {
    // Caught, so that the server logs nothing.
    conn.batch_execute(
        "DO $$ BEGIN PERFORM 1 / 0; EXCEPTION WHEN division_by_zero THEN \
             PERFORM set_config('oncepay.error_sample', SQLERRM, false); END $$",
    )?;
    let (told, role): (String, String) = statement::<(Text, Text)>(
        "SELECT current_setting('oncepay.error_sample'), quote_ident(current_user)",
    )
    .get_result(conn)?;
    if told == "division by zero" {
        return Ok(Ok(()));
    }
    Ok(Err(format!(
        "The database tells its errors in another language than English (\"{told}\"), so that some can't be recognized. \
         Change that, as a superuser: ALTER ROLE {role} SET lc_messages = 'C';"
    )))
}
