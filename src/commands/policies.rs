//! `oncepay policies`: the idempotency policies on the command line. The commands do the same as
//! `/v1/operator/idempotency-policies`.

use std::io::Write;

use clap::Subcommand;
use diesel::prelude::*;
use serde_json::Value;

use crate::idempotency::Policy;
use crate::idempotency::policies::{self, ByOperation, Defaults};
use crate::idempotency_api::policies::ReplacePolicy;
use crate::server;
use crate::storage::db;
use crate::storage::schema::idempotency_policy_changes;

use super::recommend;
use super::shared::{Database, sentence, time_text, write_line};

/// `oncepay policies …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the policies
    List {
        /// Database of the service
        #[command(flatten)]
        database: Database,
    },
    /// Change a policy; settings that aren't named stay
    Set {
        /// Name of the operation
        operation: String,
        /// Settings as name=value, such as enforcement=observe or rollout_percent=10
        #[arg(required = true, value_parser = parse_change)]
        changes: Vec<(String, Value)>,
        /// Database of the service
        #[command(flatten)]
        database: Database,
    },
    /// Recommend TTLs from the retries that were seen, and say what they cost
    Recommend(recommend::Options),
    /// List the changes with their authors, newest first
    History {
        /// Name of the operation; default: all
        operation: Option<String>,
        /// Database of the service
        #[command(flatten)]
        database: Database,
    },
}

/// Parses `name=value`. A value that looks like a number is one.
fn parse_change(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("must be name=value")?;
    let value = value.parse::<u64>().map_or_else(|_| Value::from(value), Value::from);
    Ok((name.to_owned(), value))
}

/// Runs `oncepay policies`. The error is a sentence.
pub fn run(command: Command, out: &mut impl Write) -> Result<(), String> {
    match command {
        Command::List { database } => {
            let policies = load(&mut db::connect(&database.database_url)?)?;
            let mut policies: Vec<_> = policies.iter().collect();
            policies.sort_by_key(|(operation, _)| *operation);
            for (operation, policy) in policies {
                write_line(out, &format!("{operation:<28}  {}", settings(policy)));
            }
            Ok(())
        }
        Command::Set { operation, changes, database } => {
            let conn = &mut db::connect(&database.database_url)?;
            let body = Value::Object(changes.into_iter().collect());
            let defaults = defaults();
            let own = policies::defaults_of(&operation, &defaults).map_or(&[][..], |known| known.settings);
            let change = ReplacePolicy::parse(operation.clone(), &body, own).map_err(sentence)?;
            load(conn)?;
            let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_default();
            let who = format!("{} (command line)", if user.is_empty() { "somebody" } else { user.as_str() });
            conn.transaction(|conn| change.apply(conn, &defaults, &who)).map_err(sentence)?;
            let policies = load(conn)?;
            write_line(out, &format!("{operation:<28}  {}", settings(&policies[&operation])));
            Ok(())
        }
        Command::Recommend(options) => recommend::run(&options, out),
        Command::History { operation, database } => {
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
                .map_err(sentence)?;
            for (operation, at, by, before, after) in changes {
                let changed = difference(&before, &after);
                write_line(out, &format!("{}  {operation:<28}  {by}: {changed}", time_text(at)));
            }
            Ok(())
        }
    }
}

/// Reads all policies, after adding missing rows.
fn load(conn: &mut PgConnection) -> Result<ByOperation, String> {
    let defaults = defaults();
    policies::add_missing(conn, &defaults).and_then(|()| policies::load(conn, &defaults)).map_err(sentence)
}

fn defaults() -> Vec<Defaults> {
    server::operations().iter().map(|operation| Defaults::of(&operation.descriptor)).collect()
}

/// The settings of a policy, as `set` takes them.
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
