//! Parts that several commands share.

use std::io::Write;

use clap::Args;
use secrecy::SecretString;
use serde::Serialize;
use serde_json::Value;

use crate::base::time::Timestamp;
use crate::error::Error;
use crate::web::fields::TEXT_MAX;

/// Name of the operator in the record of actions.
pub const OPERATOR: &str = "command line";

/// The database of the service.
#[derive(Debug, Args)]
pub struct Database {
    /// Connection string of the database, as the role `oncepay_app`
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: SecretString,
}

/// The form of what a command prints that prints one thing.
#[derive(Debug, Args)]
pub struct Form {
    /// Print JSON: one document
    #[arg(long)]
    pub json: bool,
}

/// The form of what a command prints that prints a list.
#[derive(Debug, Args)]
pub struct ListForm {
    /// Print JSON: an object a line
    #[arg(long)]
    pub json: bool,
}

/// Checks the reason that an operator gives for an action. The error is a sentence.
pub fn check_reason(reason: &str) -> Result<(), String> {
    if reason.trim().is_empty() || reason.chars().count() > TEXT_MAX {
        return Err(format!("The reason must have 1 to {TEXT_MAX} characters."));
    }
    Ok(())
}

/// An error as a sentence for the command line.
pub fn sentence(error: impl Into<Error>) -> String {
    match &error.into() {
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

/// A message of another program as one line that ends in a full stop.
pub fn as_sentence(message: &str) -> String {
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{}.", line.trim_end_matches('.'))
}

/// Writes a line to `out`. A reader that has closed it isn't an error.
pub fn write_line(out: &mut impl Write, line: &str) {
    let _ = writeln!(out, "{line}");
}

/// Writes a JSON document. The error is a sentence.
pub fn write_document(out: &mut impl Write, document: &impl Serialize) -> Result<(), String> {
    let json = serde_json::to_string_pretty(document).map_err(|error| format!("{error}."))?;
    write_line(out, &json);
    Ok(())
}

/// Writes an item of a list as a line of JSON. The error is a sentence.
pub fn write_item(out: &mut impl Write, item: &impl Serialize) -> Result<(), String> {
    let json = serde_json::to_string(item).map_err(|error| format!("{error}."))?;
    write_line(out, &json);
    Ok(())
}

pub fn time_text(time: chrono::DateTime<chrono::Utc>) -> String {
    match serde_json::to_value(Timestamp(time)) {
        Ok(Value::String(text)) => text,
        _ => time.to_rfc3339(),
    }
}
