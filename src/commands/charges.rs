//! `oncepay charges`.

use std::io::Write;

use clap::Subcommand;
use serde_json::{Value, json};

use super::exit::Stop;
use super::feed::{self, text_of};

/// `oncepay charges …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print charges as they're made and change. Where it stops, it prints the cursor from which another run goes on
    Tail(feed::Options),
}

/// Runs `oncepay charges`.
pub fn run(command: &Command, out: &mut impl Write) -> Result<(), Stop> {
    let Command::Tail(options) = command;
    feed::tail(options, out, show)
}

/// What is printed of an event, if it's about a charge.
fn show(event: &Value) -> Option<(String, Value)> {
    let charge = &event["data"];
    if charge["object"] != "charge" {
        return None;
    }
    let line = format!(
        "{}  {}  {:<16}  {:>12} {}  {}",
        text_of(event, "created_at"),
        text_of(charge, "id"),
        text_of(charge, "status"),
        text_of(charge, "amount"),
        text_of(charge, "currency"),
        text_of(charge, "reference"),
    );
    let object = json!({
        "time": event["created_at"],
        "event": event["id"],
        "type": event["type"],
        "id": charge["id"],
        "status": charge["status"],
        "amount": charge["amount"],
        "currency": charge["currency"],
        "reference": charge["reference"],
    });
    Some((line, object))
}
