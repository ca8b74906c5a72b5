//! What operators do from a shell, with the database at hand instead of the API: the same as under
//! `/v1/operator/idempotency-keys` and `/v1/operator/idempotency-policies`.

use std::io::Write;

use clap::{Args, Subcommand};
use diesel::prelude::*;
use secrecy::SecretString;
use serde_json::Value;

use crate::db;
use crate::error::Error;
use crate::fields::Fields;
use crate::idempotency::policy::{self, ByOperation, Policy};
use crate::idempotency::status::{self, Filter, KeyId, KeyRow, Life, Which};
use crate::idempotency::{Input, Operation};
use crate::keys_api::{OlderThan, RELEASED_FOR_S};
use crate::lists::{Cursor, Page};
use crate::policies_api::ReplacePolicy;
use crate::schema::idempotency_policy_changes;
use crate::server;
use crate::time::Timestamp;

/// Most keys of one listing.
const KEYS_MAX: i64 = 1_000;

/// The database to work on.
#[derive(Debug, Args)]
pub struct Database {
    /// Connection string of the database, as the role `oncepay_app`
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: SecretString,
}

/// `oncepay keys …`
#[derive(Debug, Subcommand)]
pub enum Keys {
    /// List keys, newest first; by default those in progress. Exit status 1 if any is parked
    List {
        /// in_progress, abandoned, parked, completed or expired
        #[arg(long, default_value = "in_progress")]
        status: String,
        /// Least age: seconds, or with a unit as in 5m, 2h, 1d; or an RFC 3339 time
        #[arg(long)]
        older_than: Option<String>,
        /// Name of an operation
        #[arg(long)]
        operation: Option<String>,
        /// Id of a merchant
        #[arg(long)]
        merchant: Option<String>,
        /// Most keys
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=KEYS_MAX))]
        limit: i64,
        /// Where
        #[command(flatten)]
        database: Database,
    },
    /// Show one key
    Show {
        /// mer_…/key
        id: String,
        /// Where
        #[command(flatten)]
        database: Database,
    },
    /// Have the service finish a request now, however often that has failed
    Retry {
        /// mer_…/key
        #[arg(required_unless_present = "all_parked")]
        id: Option<String>,
        /// All that are parked, as after an outage
        #[arg(long, conflicts_with = "id")]
        all_parked: bool,
        /// Where
        #[command(flatten)]
        database: Database,
    },
    /// Give the lease of a request up, so that its client's next retry executes it
    Release {
        /// mer_…/key
        id: String,
        /// Where
        #[command(flatten)]
        database: Database,
    },
}

/// `oncepay policies …`
#[derive(Debug, Subcommand)]
pub enum Policies {
    /// List the policies
    List {
        /// Where
        #[command(flatten)]
        database: Database,
    },
    /// Change a policy; what isn't named stays
    Set {
        /// Name of the operation
        operation: String,
        /// As name=value, such as enforcement=observe or rollout_percent=10
        #[arg(required = true, value_parser = parse_change)]
        changes: Vec<(String, Value)>,
        /// Where
        #[command(flatten)]
        database: Database,
    },
    /// List who changed what, newest first
    History {
        /// Name of the operation; by default, all
        operation: Option<String>,
        /// Where
        #[command(flatten)]
        database: Database,
    },
}

/// Reads `name=value`, where the value is a number if it looks like one.
fn parse_change(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("must be name=value")?;
    let value = value.parse::<u64>().map_or_else(|_| Value::from(value), Value::from);
    Ok((name.to_owned(), value))
}

/// The sentence that an error is for somebody in a shell.
fn sentence(error: &Error) -> String {
    match error {
        Error::ValidationFailed(errors) => {
            let errors: Vec<_> = errors
                .iter()
                .map(|error| format!("{} {}", error.pointer.trim_start_matches('/'), error.detail))
                .collect();
            format!("{}.", errors.join("; "))
        }
        error => match error.cause() {
            Some(cause) => format!("{error} {cause}"),
            None => error.to_string(),
        },
    }
}

fn parse_id(text: &str) -> Result<KeyId, String> {
    text.parse().map_err(|()| format!("{text} isn't of the form mer_…/key."))
}

/// Writes to `out`; a reader that has seen enough isn't an error.
fn write_line(out: &mut impl Write, line: &str) {
    let _ = writeln!(out, "{line}");
}

/// Runs `oncepay keys`. The error is a sentence.
pub fn keys(command: Keys, out: &mut impl Write) -> Result<(), String> {
    let connect = |database: &Database| db::connect(&database.database_url);
    match command {
        Keys::List { status, older_than, operation, merchant, limit, database } => {
            let mut filter = Filter {
                which: status.parse().map_err(|()| format!("The status {}.", Which::FORMAT))?,
                operation,
                merchant: match merchant {
                    Some(id) => {
                        Some(id.parse().map_err(|_| format!("{id} is no id of a merchant (mer_…)."))?)
                    }
                    None => None,
                },
                ..Filter::default()
            };
            if let Some(text) = older_than {
                text.parse::<OlderThan>().map_err(|detail| format!("The age {detail}."))?.apply(&mut filter);
            }
            let page = Page { limit, cursor: Cursor::Newest };
            let keys = status::list(&mut connect(&database)?, &filter, page)
                .map_err(|error| sentence(&error))?
                .unwrap_or_else(|| unreachable!("there is no cursor that could be unknown"));
            for row in &keys.data {
                write_line(out, &one_line(row).map_err(|error| sentence(&error))?);
            }
            write_line(
                out,
                &format!("{} keys{}", keys.data.len(), if keys.has_more { ", and more" } else { "" }),
            );
            let parked = keys.data.iter().filter(|row| row.parked_at.is_some()).count();
            if parked > 0 { Err(format!("{parked} of them wait for you.")) } else { Ok(()) }
        }
        Keys::Show { id, database } => {
            let id = parse_id(&id)?;
            let row = status::find(&mut connect(&database)?, id.merchant, &id.key)
                .map_err(|error| sentence(&error))?
                .ok_or_else(|| sentence(&Error::IdempotencyKeyNotFound))?;
            write_line(out, &one_line(&row).map_err(|error| sentence(&error))?);
            let times = [
                ("completed", row.completed_at),
                ("answer kept until", Some(row.expires_at)),
                ("lease until", row.lease_expires_at),
                ("recovery from", row.recover_at),
                ("parked since", row.parked_at),
            ];
            write_line(out, &format!("  {:<18} {}", "last request", row.request_id));
            for (name, time) in times.into_iter().filter_map(|(name, time)| Some((name, time?))) {
                write_line(out, &format!("  {name:<18} {}", time_text(time)));
            }
            Ok(())
        }
        Keys::Retry { id: Some(id), database, .. } => {
            let id = parse_id(&id)?;
            change(&mut connect(&database)?, |conn| status::retry(conn, id.merchant, &id.key), out)
        }
        Keys::Retry { id: None, database, .. } => {
            let conn = &mut connect(&database)?;
            let filter = Filter { which: Which::Parked, ..Filter::default() };
            let mut retried = 0;
            loop {
                let page = Page { limit: KEYS_MAX, cursor: Cursor::Newest };
                let parked = status::list(conn, &filter, page).map_err(|error| sentence(&error))?;
                let parked = parked.map(|list| list.data).unwrap_or_default();
                let is_last = i64::try_from(parked.len()).is_ok_and(|count| count < KEYS_MAX);
                for row in parked {
                    match status::retry(conn, row.merchant_id, &row.key) {
                        // Finished or retried by somebody else meanwhile.
                        Ok(_) | Err(Error::IdempotencyKeyNotInProgress | Error::IdempotencyKeyNotFound) => {
                            retried += 1
                        }
                        Err(error) => return Err(sentence(&error)),
                    }
                }
                if is_last {
                    break;
                }
            }
            write_line(out, &format!("{retried} requests will be tried again."));
            Ok(())
        }
        Keys::Release { id, database } => {
            let id = parse_id(&id)?;
            let release =
                |conn: &mut PgConnection| status::release(conn, id.merchant, &id.key, RELEASED_FOR_S);
            change(&mut connect(&database)?, release, out)
        }
    }
}

fn change(
    conn: &mut PgConnection,
    act: impl FnOnce(&mut PgConnection) -> Result<KeyRow, Error>,
    out: &mut impl Write,
) -> Result<(), String> {
    let row = conn.transaction(act).map_err(|error| sentence(&error))?;
    write_line(out, &one_line(&row).map_err(|error| sentence(&error))?);
    Ok(())
}

fn one_line(row: &KeyRow) -> Result<String, Error> {
    let life = match row.life()? {
        Life::Running => "running",
        Life::Abandoned => "abandoned",
        Life::Parked => "parked",
        Life::Completed => "completed",
        Life::Expired | Life::Forgotten => "expired",
    };
    let outcome = match (row.response_status, &row.last_error) {
        (Some(status), _) => format!("status={status}"),
        (None, Some(error)) => format!("last_error={error}"),
        (None, None) => String::new(),
    };
    let line = format!(
        "{}  {life:<9}  {:<28}  attempts={:<3} {outcome:<34} {}",
        time_text(row.created_at),
        row.operation,
        row.attempts,
        row.id()
    );
    Ok(line)
}

fn time_text(time: chrono::DateTime<chrono::Utc>) -> String {
    match serde_json::to_value(Timestamp(time)) {
        Ok(Value::String(text)) => text,
        _ => time.to_rfc3339(),
    }
}

/// Runs `oncepay policies`. The error is a sentence.
pub fn policies(command: Policies, out: &mut impl Write) -> Result<(), String> {
    match command {
        Policies::List { database } => {
            let policies = load(&mut db::connect(&database.database_url)?)?;
            let mut policies: Vec<_> = policies.iter().collect();
            policies.sort_by_key(|(operation, _)| *operation);
            for (operation, policy) in policies {
                write_line(out, &format!("{operation:<28}  {}", settings(policy)));
            }
            Ok(())
        }
        Policies::Set { operation, changes, database } => {
            let conn = &mut db::connect(&database.database_url)?;
            let body = Value::Object(changes.into_iter().collect());
            let path = format!("/v1/operator/idempotency-policies/{operation}");
            let change = Fields::read(&body, |fields| {
                ReplacePolicy::read(&mut Input { path: &path, fields, allows_loopback: false })
            })
            .map_err(|error| sentence(&error))?;
            load(conn)?;
            let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_default();
            let who = format!("{} (command line)", if user.is_empty() { "somebody" } else { user.as_str() });
            conn.transaction(|conn| change.apply(conn, &who)).map_err(|error| sentence(&error))?;
            let policies = load(conn)?;
            write_line(out, &format!("{operation:<28}  {}", settings(&policies[&operation])));
            Ok(())
        }
        Policies::History { operation, database } => {
            let conn = &mut db::connect(&database.database_url)?;
            let mut query = idempotency_policy_changes::table
                .select((
                    idempotency_policy_changes::operation,
                    idempotency_policy_changes::changed_at,
                    idempotency_policy_changes::changed_by,
                    idempotency_policy_changes::before,
                    idempotency_policy_changes::after,
                ))
                .order(idempotency_policy_changes::id.desc())
                .into_boxed();
            if let Some(operation) = operation {
                query = query.filter(idempotency_policy_changes::operation.eq(operation));
            }
            let changes = query
                .load::<(String, chrono::DateTime<chrono::Utc>, String, Value, Value)>(conn)
                .map_err(|error| sentence(&error.into()))?;
            for (operation, at, by, before, after) in changes {
                let changed = difference(&before, &after);
                write_line(out, &format!("{}  {operation:<28}  {by}: {changed}", time_text(at)));
            }
            Ok(())
        }
    }
}

/// All policies, with the rows that were missing.
fn load(conn: &mut PgConnection) -> Result<ByOperation, String> {
    policy::add_missing(conn, &server::operations())
        .and_then(|()| policy::load(conn))
        .map_err(|error| sentence(&error))
}

/// What a policy says, as it can be set.
fn settings(policy: &Policy) -> String {
    let Ok(Value::Object(members)) = serde_json::to_value(policy) else { return String::new() };
    let words: Vec<_> = members.iter().map(|(name, value)| format!("{name}={}", plain(value))).collect();
    words.join(" ")
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The members that differ, as `name=before→after`.
fn difference(before: &Value, after: &Value) -> String {
    let Some(members) = after.as_object() else { return String::new() };
    let changed: Vec<_> = members
        .iter()
        .filter(|(name, value)| before[name.as_str()] != **value)
        .map(|(name, value)| format!("{name}={}→{}", plain(&before[name.as_str()]), plain(value)))
        .collect();
    if changed.is_empty() { "nothing".to_owned() } else { changed.join(" ") }
}
