//! `oncepay events`.

use std::io::Write;

use clap::Subcommand;
use serde_json::Value;

use super::exit::Stop;
use super::feed::{self, text_of};

/// `oncepay events …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print events as they happen. Where it stops, it prints the cursor from which another run goes on
    Tail(feed::Options),
}

/// Runs `oncepay events`.
pub fn run(command: &Command, out: &mut impl Write) -> Result<(), Stop> {
    let Command::Tail(options) = command;
    feed::tail(options, out, |event| Some((line(event), event.clone())))
}

/// An event as a line, without the end of the line.
pub fn line(event: &Value) -> String {
    format!("{}  {:<26}  {}", text_of(event, "created_at"), text_of(event, "type"), text_of(event, "id"))
}
