//! `oncepay openapi`.

use crate::server;

/// Prints the OpenAPI document. The error is a sentence.
pub fn run() -> Result<(), String> {
    let document = server::document().to_pretty_json().map_err(|error| error.to_string())?;
    println!("{document}");
    Ok(())
}
