//! Parts that several commands share.

use std::io::Write;

use clap::Args;
use secrecy::SecretString;
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

/// Writes a line to `out`. A reader that has closed it isn't an error.
pub fn write_line(out: &mut impl Write, line: &str) {
    let _ = writeln!(out, "{line}");
}

pub fn time_text(time: chrono::DateTime<chrono::Utc>) -> String {
    match serde_json::to_value(Timestamp(time)) {
        Ok(Value::String(text)) => text,
        _ => time.to_rfc3339(),
    }
}
