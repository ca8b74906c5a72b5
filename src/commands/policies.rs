//! `oncepay policies`: the idempotency policies on the command line. The commands do the same as
//! `/v1/operator/idempotency-policies`.

use std::io::Write;

use clap::Subcommand;
use diesel::prelude::*;
use serde_json::Value;

use crate::idempotency::Policy;
use crate::idempotency::policies::{self, ByOperation, Defaults};
use crate::idempotency_api::policies::{OperationPolicy, ReplacePolicy, changes};
use crate::server;
use crate::storage::db;

use super::exit::Stop;
use super::recommend;
use super::shared::{Database, ListForm, sentence, time_text, write_item, write_line};

/// `oncepay policies …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the policies
    List {
        #[command(flatten)]
        form: ListForm,
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
        #[command(flatten)]
        form: ListForm,
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
        #[command(flatten)]
        form: ListForm,
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

/// Runs `oncepay policies`.
pub fn run(command: Command, out: &mut impl Write) -> Result<(), Stop> {
    match command {
        Command::List { form, database } => {
            let policies = load(&mut db::connect(&database.database_url)?)?;
            let mut policies: Vec<_> = policies.iter().collect();
            policies.sort_by_key(|(operation, _)| *operation);
            for (operation, policy) in policies {
                print(operation, policy, &form, out)?;
            }
            Ok(())
        }
        Command::Set { operation, changes, form, database } => {
            let conn = &mut db::connect(&database.database_url)?;
            let body = Value::Object(changes.into_iter().collect());
            let defaults = defaults();
            let own = policies::defaults_of(&operation, &defaults).map_or(&[][..], |known| known.settings);
            let change = ReplacePolicy::parse(operation.clone(), &body, own)
                .map_err(|error| Stop::Usage(sentence(error)))?;
            load(conn)?;
            let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_default();
            let who = format!("{} (command line)", if user.is_empty() { "somebody" } else { user.as_str() });
            conn.transaction(|conn| change.apply(conn, &defaults, &who)).map_err(sentence)?;
            let policies = load(conn)?;
            Ok(print(&operation, &policies[&operation], &form, out)?)
        }
        Command::Recommend(options) => recommend::run(&options, out),
        Command::History { operation, form, database } => {
            let conn = &mut db::connect(&database.database_url)?;
            for change in changes(conn, operation.as_deref()).map_err(sentence)? {
                if form.json {
                    write_item(out, &change)?;
                    continue;
                }
                let (at, by) = (time_text(change.changed_at.0), &change.changed_by);
                let changed = difference(&change.before, &change.after);
                write_line(out, &format!("{at}  {:<28}  {by}: {changed}", change.operation));
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

fn print(operation: &str, policy: &Policy, form: &ListForm, out: &mut impl Write) -> Result<(), String> {
    if form.json {
        return write_item(out, &OperationPolicy::new(operation, policy));
    }
    write_line(out, &format!("{operation:<28}  {}", settings(policy)));
    Ok(())
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
