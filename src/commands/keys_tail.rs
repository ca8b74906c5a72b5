//! `oncepay keys tail`: prints how requests without an answer change their state.
//!
//! It looks at the list of these keys again and again, so it doesn't see what happens between two looks: most requests are
//! answered sooner. What waits for somebody it always sees.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use diesel::prelude::*;
use serde::Serialize;

use super::exit::Stop;
use super::key_lines::{KEYS_MAX, outcome, state_name};
use super::shared::{Database, ListForm, as_sentence, sentence, time_text};
use crate::base::time::{self, Timestamp};
use crate::error::{Error, Failure};
use crate::idempotency::status::{self, KeyRow, KeyState};
use crate::idempotency_api::key_list::{self, KeyQuery};
use crate::idempotency_api::keys::OperatorKeyStatus;
use crate::server;
use crate::storage::{clock, db};
use crate::web::lists::{Cursor, Page};

/// Interval of the looks, and the first pause after a failed one.
const INTERVAL: Duration = Duration::from_secs(1);
/// Maximum pause after a failed look.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The keys without an answer that the last look found, with their states, by id.
type Known = BTreeMap<String, (KeyState, KeyRow)>;

/// A change of a key's state.
struct Change {
    /// `None` if the key was never seen before.
    from: Option<KeyState>,
    to: KeyState,
    row: KeyRow,
}

/// A change as JSON.
#[derive(Serialize)]
struct Document {
    /// When it was seen, by the database's clock.
    seen_at: Timestamp,
    previous_state: Option<&'static str>,
    state: &'static str,
    #[serde(flatten)]
    key: OperatorKeyStatus,
}

/// Prints the changes of the keys that `query` lists until nobody reads any more; a signal ends the process. An error of the first
/// look is returned. Later on, it looks again until the database answers.
pub fn run(database: &Database, query: &KeyQuery, form: &ListForm, out: &mut impl Write) -> Result<(), Stop> {
    let mut conn = db::connect(&database.database_url)?;
    let mut known = Known::new();
    let mut lines = look(&mut conn, query, &mut known, form).map_err(sentence)?;
    loop {
        if lines.iter().any(|line| writeln!(out, "{line}").is_err()) {
            return Ok(());
        }
        std::thread::sleep(INTERVAL);
        lines = match look(&mut conn, query, &mut known, form) {
            Ok(lines) => lines,
            Err(Error::Failure(
                failure @ (Failure::DatabaseUnavailable(_) | Failure::TransientConflict(_)),
            )) => {
                conn = connect_again(database, as_sentence(&sentence(failure)));
                Vec::new()
            }
            Err(error) => return Err(sentence(error).into()),
        };
    }
}

/// Connects, however long that takes. Says why it has to, and when that's over.
fn connect_again(database: &Database, why: String) -> PgConnection {
    eprintln!("{why} Trying again.");
    let (mut complaint, mut failures) = (why, 0);
    loop {
        std::thread::sleep(time::backoff(INTERVAL, failures, PAUSE_MAX));
        failures += 1;
        match db::connect(&database.database_url).map_err(|error| as_sentence(&error)) {
            Ok(conn) => {
                eprintln!("The database answers again.");
                return conn;
            }
            Err(refused) if refused == complaint => {}
            Err(refused) => {
                eprintln!("{refused}");
                complaint = refused;
            }
        }
    }
}

/// Looks, and returns the lines about what has changed since the last look. After an error, nothing counts as seen.
fn look(
    conn: &mut PgConnection,
    query: &KeyQuery,
    known: &mut Known,
    form: &ListForm,
) -> Result<Vec<String>, Error> {
    let found = unanswered(conn, query)?;
    let mut changes = Vec::new();
    for (id, (last, row)) in known.iter().filter(|(id, _)| !found.contains_key(*id)) {
        let now = status::find(conn, row.merchant_id, &row.key)?;
        let (to, row) = match now {
            Some(row) => (row.state()?, row),
            None => (KeyState::Forgotten, row.clone()),
        };
        changes.push((id.clone(), Change { from: Some(*last), to, row }));
    }
    for (id, (to, row)) in found {
        let from = known.get(&id).map(|(state, _)| *state);
        changes.push((id, Change { from, to, row }));
    }
    changes.retain(|(_, change)| change.from != Some(change.to));
    changes.sort_by_key(|(_, change)| change.row.created_at);
    let seen_at = clock::now(conn)?;
    let lines = changes
        .iter()
        .map(|(_, change)| line(conn, change, Timestamp(seen_at), form))
        .collect::<Result<Vec<_>, Error>>()?;
    for (id, Change { to, row, .. }) in changes {
        if matches!(to, KeyState::Running | KeyState::Abandoned | KeyState::Parked) {
            known.insert(id, (to, row));
        } else {
            known.remove(&id);
        }
    }
    Ok(lines)
}

/// All keys without an answer.
fn unanswered(conn: &mut PgConnection, query: &KeyQuery) -> Result<Known, Error> {
    let (mut found, mut cursor) = (Known::new(), Cursor::Newest);
    loop {
        // The last key of a page may have been forgotten. Whoever is missing then is looked for one by one.
        let Some(page) = key_list::list(conn, query, Page { limit: KEYS_MAX, cursor })? else { break };
        let last = page.data.last().map(KeyRow::id);
        for row in page.data {
            found.insert(row.id().to_string(), (row.state()?, row));
        }
        match last {
            Some(last) if page.has_more => cursor = Cursor::After(last),
            _ => break,
        }
    }
    Ok(found)
}

fn line(
    conn: &mut PgConnection,
    change: &Change,
    seen_at: Timestamp,
    form: &ListForm,
) -> Result<String, Error> {
    let Change { from, to, row } = change;
    let (from, to) = (from.map(state_name), state_name(*to));
    if form.json {
        let key = OperatorKeyStatus::new(conn, &server::operations(), row)?;
        let document = Document { seen_at, previous_state: from, state: to, key };
        return serde_json::to_string(&document).map_err(|error| Failure::internal(error).into());
    }
    Ok(format!(
        "{}  {:<9} → {to:<9}  {:<28}  attempts={:<3} {:<34} {}",
        time_text(seen_at.0),
        from.unwrap_or("–"),
        row.operation,
        row.attempts,
        outcome(row),
        row.id()
    ))
}
