//! How the commands for idempotency keys list and name them.

use crate::idempotency::status::{KeyRow, KeyState};

/// Maximum number of keys in one list.
pub const KEYS_MAX: i64 = 1_000;

/// Name of a state on the command line.
pub fn state_name(state: KeyState) -> &'static str {
    match state {
        KeyState::Forgotten => KeyState::Expired.as_str(),
        known => known.as_str(),
    }
}

/// What came of a request so far.
pub fn outcome(row: &KeyRow) -> String {
    match (row.response_status, &row.last_error) {
        (Some(status), _) => format!("status={status}"),
        (None, Some(error)) => format!("last_error={error}"),
        (None, None) => String::new(),
    }
}
