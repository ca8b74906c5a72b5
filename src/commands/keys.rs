//! `oncepay keys`: the operators' commands for idempotency keys, which use the database instead of the API.
//! They do the same as `/v1/operator/idempotency-keys`.

use std::io::Write;

use clap::Subcommand;
use diesel::prelude::*;

use crate::base::ids::MerchantId;
use crate::error::{Error, Failure};
use crate::host;
use crate::idempotency::Operation;
use crate::idempotency::status::{self, KeyId, KeyRow};
use crate::idempotency_api::key_list::{self, KeyFilter, KeyQuery};
use crate::idempotency_api::keys::{OlderThan, OperatorKeyStatus, RELEASED_FOR_S, ReleaseKey, RetryKey};
use crate::idempotency_api::resolve;
use crate::server;
use crate::storage::db;
use crate::web::lists::{Cursor, Page};

use super::exit::Stop;
use super::key_lines::{KEYS_MAX, outcome, state_name};
use super::keys_tail;
use super::shared::{
    Database, ListForm, OPERATOR, check_reason, sentence, time_text, write_item, write_line,
};

/// `oncepay keys …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List keys, newest first; by default those in progress. Exit status 1 if any is parked
    List {
        /// in_progress, abandoned, parked, completed or expired
        #[arg(long, default_value = "in_progress")]
        status: String,
        /// Minimum age: in seconds, or with a unit as in 5m, 2h, 1d; or an RFC 3339 time, which includes the keys
        /// claimed in its millisecond
        #[arg(long)]
        older_than: Option<String>,
        /// Name of an operation
        #[arg(long)]
        operation: Option<String>,
        /// Id of a merchant
        #[arg(long)]
        merchant: Option<String>,
        /// Maximum number of keys
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=KEYS_MAX))]
        limit: i64,
        #[command(flatten)]
        form: ListForm,
        /// Database of the service
        #[command(flatten)]
        database: Database,
    },
    /// Print how keys without an answer change their state, beginning with those that there are
    Tail {
        /// Name of an operation
        #[arg(long)]
        operation: Option<String>,
        /// Id of a merchant
        #[arg(long)]
        merchant: Option<String>,
        #[command(flatten)]
        form: ListForm,
        /// Database of the service
        #[command(flatten)]
        database: Database,
    },
    /// Show one key
    Show {
        /// mer_…/key
        id: String,
        #[command(flatten)]
        form: ListForm,
        /// Database of the service
        #[command(flatten)]
        database: Database,
    },
    /// Make the service finish a request now, however often that has failed
    Retry {
        /// mer_…/key
        #[arg(required_unless_present = "all_parked")]
        id: Option<String>,
        /// All parked keys, as after an outage
        #[arg(long, conflicts_with = "id")]
        all_parked: bool,
        #[command(flatten)]
        form: ListForm,
        /// Database of the service
        #[command(flatten)]
        database: Database,
    },
    /// End a request as failed that can't be finished, and release what was set aside for it
    Resolve {
        /// mer_…/key
        id: String,
        /// Outcome: failed
        #[arg(long = "as", value_parser = ["failed"])]
        outcome: String,
        /// Reason, for the record of operators' actions
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        form: ListForm,
        /// Database of the service
        #[command(flatten)]
        database: Database,
    },
    /// End the lease of a request, so that its client's next retry executes it
    Release {
        /// mer_…/key
        id: String,
        #[command(flatten)]
        form: ListForm,
        /// Database of the service
        #[command(flatten)]
        database: Database,
    },
}

fn parse_id(text: &str) -> Result<KeyId, Stop> {
    text.parse().map_err(|()| Stop::Usage(format!("{text} isn't of the form mer_…/key.")))
}

fn parse_merchant(text: &str) -> Result<MerchantId, Stop> {
    text.parse().map_err(|_| Stop::Usage(format!("{text} is no id of a merchant (mer_…).")))
}

/// Runs `oncepay keys`.
pub fn run(command: Command, out: &mut impl Write) -> Result<(), Stop> {
    let connect = |database: &Database| db::connect(&database.database_url);
    match command {
        Command::List { status, older_than, operation, merchant, limit, form, database } => {
            let mut filter = KeyQuery {
                filter: status
                    .parse()
                    .map_err(|()| Stop::Usage(format!("The status {}.", KeyFilter::FORMAT)))?,
                operation,
                merchant: merchant.as_deref().map(parse_merchant).transpose()?,
                ..KeyQuery::default()
            };
            if let Some(text) = older_than {
                text.parse::<OlderThan>()
                    .map_err(|detail| Stop::Usage(format!("The age {detail}.")))?
                    .apply(&mut filter);
            }
            let page = Page { limit, cursor: Cursor::Newest };
            let conn = &mut connect(&database)?;
            let keys = key_list::list(conn, &filter, page)
                .map_err(sentence)?
                .unwrap_or_else(|| unreachable!("there is no cursor that could be unknown"));
            for row in &keys.data {
                print(conn, row, &form, out)?;
            }
            if !form.json {
                let more = if keys.has_more { ", and more" } else { "" };
                write_line(out, &format!("{} keys{more}", keys.data.len()));
            }
            let parked = keys.data.iter().filter(|row| row.parked_at.is_some()).count();
            if parked > 0 { Err(Stop::Found(format!("{parked} of them wait for you."))) } else { Ok(()) }
        }
        Command::Tail { operation, merchant, form, database } => {
            let merchant = merchant.as_deref().map(parse_merchant).transpose()?;
            let query = KeyQuery { operation, merchant, ..KeyQuery::default() };
            keys_tail::run(&database, &query, &form, out)
        }
        Command::Show { id, form, database } => {
            let id = parse_id(&id)?;
            let conn = &mut connect(&database)?;
            let row = status::find(conn, id.merchant, &id.key)
                .map_err(sentence)?
                .ok_or_else(|| sentence(Failure::IdempotencyKeyNotFound))?;
            print(conn, &row, &form, out)?;
            if form.json {
                return Ok(());
            }
            let times = [
                ("completed", row.completed_at),
                ("answer kept until", Some(row.expires_at)),
                ("lease until", row.lease_expires_at),
                ("recovery from", row.recover_at),
                ("parked since", row.parked_at),
            ];
            write_line(out, &format!("  {:<18} {}", "last request", row.request_id));
            if let Some(trace_id) = &row.trace_id {
                write_line(out, &format!("  {:<18} {trace_id}", "trace"));
            }
            for (name, time) in times.into_iter().filter_map(|(name, time)| Some((name, time?))) {
                write_line(out, &format!("  {name:<18} {}", time_text(time)));
            }
            Ok(())
        }
        Command::Retry { id: Some(id), form, database, .. } => {
            let id = parse_id(&id)?;
            change(&mut connect(&database)?, |conn| retry(conn, &id), &form, out)
        }
        Command::Retry { id: None, form, database, .. } => {
            let conn = &mut connect(&database)?;
            let filter = KeyQuery { filter: KeyFilter::Parked, ..KeyQuery::default() };
            let mut retried = 0;
            loop {
                let page = Page { limit: KEYS_MAX, cursor: Cursor::Newest };
                let parked = key_list::list(conn, &filter, page).map_err(sentence)?;
                let parked = parked.map(|list| list.data).unwrap_or_default();
                let is_last = i64::try_from(parked.len()).is_ok_and(|count| count < KEYS_MAX);
                for row in parked {
                    match conn.transaction(|conn| retry(conn, &row.id())) {
                        // Another operator or attempt has finished or retried it meanwhile.
                        Ok(_)
                        | Err(Error::Failure(
                            Failure::IdempotencyKeyNotInProgress | Failure::IdempotencyKeyNotFound,
                        )) => retried += 1,
                        Err(error) => return Err(sentence(error).into()),
                    }
                }
                if is_last {
                    break;
                }
            }
            match form.json {
                true => write_item(out, &serde_json::json!({"retried": retried}))?,
                false => write_line(out, &format!("{retried} requests will be tried again.")),
            }
            Ok(())
        }
        Command::Resolve { id, outcome: _, reason, form, database } => {
            let id = parse_id(&id)?;
            check_reason(&reason).map_err(Stop::Usage)?;
            let resolve = |conn: &mut PgConnection| {
                resolve::resolve(conn, &server::operations(), &id, OPERATOR, &reason)
            };
            change(&mut connect(&database)?, resolve, &form, out)
        }
        Command::Release { id, form, database } => {
            let id = parse_id(&id)?;
            let release = |conn: &mut PgConnection| {
                let row = status::release(conn, id.merchant, &id.key, RELEASED_FOR_S)?;
                host::record_action(conn, OPERATOR, ReleaseKey::DESCRIPTOR.name, &id.to_string(), None)?;
                Ok(row)
            };
            change(&mut connect(&database)?, release, &form, out)
        }
    }
}

fn retry(conn: &mut PgConnection, id: &KeyId) -> Result<KeyRow, Error> {
    let row = status::retry(conn, id.merchant, &id.key)?;
    host::record_action(conn, OPERATOR, RetryKey::DESCRIPTOR.name, &id.to_string(), None)?;
    Ok(row)
}

fn change(
    conn: &mut PgConnection,
    act: impl FnOnce(&mut PgConnection) -> Result<KeyRow, Error>,
    form: &ListForm,
    out: &mut impl Write,
) -> Result<(), Stop> {
    let row = conn.transaction(act).map_err(sentence)?;
    Ok(print(conn, &row, form, out)?)
}

/// Prints a key in one line. The error is a sentence.
fn print(conn: &mut PgConnection, row: &KeyRow, form: &ListForm, out: &mut impl Write) -> Result<(), String> {
    if form.json {
        let key = OperatorKeyStatus::new(conn, &server::operations(), row).map_err(sentence)?;
        return write_item(out, &key);
    }
    write_line(out, &one_line(row).map_err(sentence)?);
    Ok(())
}

fn one_line(row: &KeyRow) -> Result<String, Failure> {
    let (state, outcome) = (state_name(row.state()?), outcome(row));
    let line = format!(
        "{}  {state:<9}  {:<28}  attempts={:<3} {outcome:<34} {}",
        time_text(row.created_at),
        row.operation,
        row.attempts,
        row.id()
    );
    Ok(line)
}
